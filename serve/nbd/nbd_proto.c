/* SPDX-License-Identifier: MIT */
/* nbd_proto.c - requests and reply headers as bytes, and what a request may say. Pure; any thread. */
#include "serve/nbd/nbd_proto.h"

#include <errno.h>
#include <stddef.h>

int nbd_request_decode(const uint8_t *bytes, struct nbd_request *ret)
{
	if (nbd_get32(bytes) != NBD_REQUEST_MAGIC)
		return -EPROTO;
	*ret = (struct nbd_request){
		.flags = nbd_get16(bytes + 4),
		.type = nbd_get16(bytes + 6),
		.cookie = nbd_get64(bytes + 8),
		.offset = nbd_get64(bytes + 16),
		.length = nbd_get32(bytes + 24),
	};
	return 0;
}

/* What each command may carry besides FUA, and what it does. */
static const struct command {
	uint16_t flags;
	bool writes, payload; /* payload: in either direction */
} commands[] = {
	[NBD_CMD_READ] = {.payload = true, .flags = NBD_CMD_FLAG_DF},
	[NBD_CMD_WRITE] = {.payload = true, .writes = true},
	[NBD_CMD_DISC] = {0},
	[NBD_CMD_FLUSH] = {0},
	[NBD_CMD_TRIM] = {.writes = true},
	[NBD_CMD_CACHE] = {0},
	[NBD_CMD_WRITE_ZEROES] = {.writes = true,
				  .flags = NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO},
	[NBD_CMD_BLOCK_STATUS] = {.flags = NBD_CMD_FLAG_REQ_ONE},
};

static bool malformed(const struct nbd_request *r, const struct nbd_bounds *b)
{
	const struct command *c = &commands[r->type];

	if (r->flags & ~(c->flags | NBD_CMD_FLAG_FUA))
		return true;
	if ((r->flags & NBD_CMD_FLAG_DF) && !b->structured)
		return true;
	if (r->type == NBD_CMD_BLOCK_STATUS)
		return !b->structured || !b->contexts || r->length == 0;
	if (r->type == NBD_CMD_FLUSH)
		return r->offset || r->length;
	return false;
}

uint32_t nbd_request_check(const struct nbd_request *r, const struct nbd_bounds *b)
{
	const struct command *c;

	if (r->type >= sizeof(commands) / sizeof(commands[0]) || malformed(r, b))
		return NBD_EINVAL;
	c = &commands[r->type];
	if (r->type == NBD_CMD_DISC)
		return 0;
	if (c->writes && b->read_only)
		return NBD_EPERM;
	if (c->payload && r->length > b->max_request)
		return r->flags & NBD_CMD_FLAG_DF ? NBD_EOVERFLOW : NBD_EINVAL;
	if (r->offset > b->size || r->length > b->size - r->offset)
		return c->writes ? NBD_ENOSPC : NBD_EINVAL;
	return 0;
}

uint32_t nbd_request_payload(const struct nbd_request *r)
{
	return r->type == NBD_CMD_WRITE ? r->length : 0;
}

uint32_t nbd_error_of(int32_t result)
{
	switch (-result) {
	case 0: return 0;
	case EPERM:
	case EACCES:
	case EROFS: return NBD_EPERM;
	case ENOMEM: return NBD_ENOMEM;
	case EINVAL: return NBD_EINVAL;
	case ENOSPC:
	case EDQUOT:
	case EFBIG: return NBD_ENOSPC;
	case EOVERFLOW: return NBD_EOVERFLOW;
	case ENOTSUP: return NBD_ENOTSUP;
	case ESHUTDOWN: return NBD_ESHUTDOWN;
	default: return NBD_EIO;
	}
}

uint16_t nbd_export_flags(bool read_only, bool structured)
{
	unsigned flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA |
			 NBD_FLAG_SEND_CACHE | NBD_FLAG_CAN_MULTI_CONN;

	if (read_only)
		flags |= NBD_FLAG_READ_ONLY;
	else
		flags |= NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES | NBD_FLAG_SEND_FAST_ZERO;
	if (structured)
		flags |= NBD_FLAG_SEND_DF;
	return (uint16_t)flags;
}

uint32_t nbd_simple_encode(uint8_t *to, uint64_t cookie, uint32_t error)
{
	nbd_put64(nbd_put32(nbd_put32(to, NBD_SIMPLE_MAGIC), error), cookie);
	return NBD_SIMPLE_LEN;
}

uint32_t nbd_chunk_encode(uint8_t *to, uint64_t cookie, uint16_t flags, uint16_t type,
			  uint32_t length)
{
	uint8_t *p = nbd_put16(nbd_put16(nbd_put32(to, NBD_STRUCTURED_MAGIC), flags), type);

	nbd_put32(nbd_put64(p, cookie), length);
	return NBD_STRUCTURED_LEN;
}
