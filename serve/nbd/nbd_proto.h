/* SPDX-License-Identifier: MIT */
/*
 * nbd_proto.h - the NBD protocol's numbers, and its fixed-size messages to and from bytes
 * (spec/nbd.md). Pure: no I/O, no memory of its own; any thread.
 */
#ifndef SERVE_NBD_PROTO_H
#define SERVE_NBD_PROTO_H

#include <stdbool.h>
#include <stdint.h>

#define NBD_MAGIC            UINT64_C(0x4e42444d41474943) /* "NBDMAGIC" */
#define NBD_OPTION_MAGIC     UINT64_C(0x49484156454f5054) /* "IHAVEOPT" */
#define NBD_REPLY_MAGIC      UINT64_C(0x0003e889045565a9)
#define NBD_REQUEST_MAGIC    UINT32_C(0x25609513)
#define NBD_SIMPLE_MAGIC     UINT32_C(0x67446698)
#define NBD_STRUCTURED_MAGIC UINT32_C(0x668e33ef)

#define NBD_GREETING_LEN   18u
#define NBD_OPTION_LEN     16u /* magic, option, length */
#define NBD_OPT_REPLY_LEN  20u
#define NBD_REQUEST_LEN    28u
#define NBD_SIMPLE_LEN     16u
#define NBD_STRUCTURED_LEN 20u
#define NBD_NAME_LEN_MAX   4096u /* the protocol's bound on strings */

/* Handshake flags; the client's have the same bits. */
enum { NBD_FIXED_NEWSTYLE = 1 << 0, NBD_NO_ZEROES = 1 << 1 };

enum nbd_option {
	NBD_OPT_EXPORT_NAME = 1,
	NBD_OPT_ABORT = 2,
	NBD_OPT_LIST = 3,
	NBD_OPT_STARTTLS = 5,
	NBD_OPT_INFO = 6,
	NBD_OPT_GO = 7,
	NBD_OPT_STRUCTURED_REPLY = 8,
	NBD_OPT_LIST_META_CONTEXT = 9,
	NBD_OPT_SET_META_CONTEXT = 10,
};

enum nbd_option_reply {
	NBD_REP_ACK = 1,
	NBD_REP_SERVER = 2,
	NBD_REP_INFO = 3,
	NBD_REP_META_CONTEXT = 4,
};
#define NBD_REP_ERROR        (UINT32_C(1) << 31)
#define NBD_REP_ERR_UNSUP    (NBD_REP_ERROR + 1)
#define NBD_REP_ERR_POLICY   (NBD_REP_ERROR + 2)
#define NBD_REP_ERR_INVALID  (NBD_REP_ERROR + 3)
#define NBD_REP_ERR_TLS_REQD (NBD_REP_ERROR + 5)
#define NBD_REP_ERR_UNKNOWN  (NBD_REP_ERROR + 6)
#define NBD_REP_ERR_SHUTDOWN (NBD_REP_ERROR + 7)
#define NBD_REP_ERR_TOO_BIG  (NBD_REP_ERROR + 9)

enum { NBD_INFO_EXPORT = 0, NBD_INFO_NAME = 1, NBD_INFO_BLOCK_SIZE = 3 };

/* Transmission flags. */
enum {
	NBD_FLAG_HAS_FLAGS = 1 << 0,
	NBD_FLAG_READ_ONLY = 1 << 1,
	NBD_FLAG_SEND_FLUSH = 1 << 2,
	NBD_FLAG_SEND_FUA = 1 << 3,
	NBD_FLAG_SEND_TRIM = 1 << 5,
	NBD_FLAG_SEND_WRITE_ZEROES = 1 << 6,
	NBD_FLAG_SEND_DF = 1 << 7,
	NBD_FLAG_CAN_MULTI_CONN = 1 << 8,
	NBD_FLAG_SEND_CACHE = 1 << 10,
	NBD_FLAG_SEND_FAST_ZERO = 1 << 11,
};

enum nbd_command {
	NBD_CMD_READ = 0,
	NBD_CMD_WRITE = 1,
	NBD_CMD_DISC = 2,
	NBD_CMD_FLUSH = 3,
	NBD_CMD_TRIM = 4,
	NBD_CMD_CACHE = 5,
	NBD_CMD_WRITE_ZEROES = 6,
	NBD_CMD_BLOCK_STATUS = 7,
};

enum {
	NBD_CMD_FLAG_FUA = 1 << 0,
	NBD_CMD_FLAG_NO_HOLE = 1 << 1,
	NBD_CMD_FLAG_DF = 1 << 2,
	NBD_CMD_FLAG_REQ_ONE = 1 << 3,
	NBD_CMD_FLAG_FAST_ZERO = 1 << 4,
};

enum { NBD_REPLY_DONE = 1 << 0 }; /* of a chunk */
enum nbd_chunk {
	NBD_CHUNK_OFFSET_DATA = 1,
	NBD_CHUNK_BLOCK_STATUS = 5,
	NBD_CHUNK_ERROR = 32769,
};

/* Errors on the wire: numbers of their own that happen to be Linux's. */
enum nbd_errno {
	NBD_EPERM = 1,
	NBD_EIO = 5,
	NBD_ENOMEM = 12,
	NBD_EINVAL = 22,
	NBD_ENOSPC = 28,
	NBD_EOVERFLOW = 75,
	NBD_ENOTSUP = 95,
	NBD_ESHUTDOWN = 108,
};

enum { NBD_STATE_HOLE = 1 << 0, NBD_STATE_ZERO = 1 << 1 }; /* base:allocation */

static inline uint16_t nbd_get16(const uint8_t *p)
{
	return (uint16_t)(p[0] << 8 | p[1]);
}

static inline uint32_t nbd_get32(const uint8_t *p)
{
	return (uint32_t)nbd_get16(p) << 16 | nbd_get16(p + 2);
}

static inline uint64_t nbd_get64(const uint8_t *p)
{
	return (uint64_t)nbd_get32(p) << 32 | nbd_get32(p + 4);
}

/* Each returns what follows. */
static inline uint8_t *nbd_put16(uint8_t *p, uint16_t v)
{
	p[0] = (uint8_t)(v >> 8);
	p[1] = (uint8_t)v;
	return p + 2;
}

static inline uint8_t *nbd_put32(uint8_t *p, uint32_t v)
{
	return nbd_put16(nbd_put16(p, (uint16_t)(v >> 16)), (uint16_t)v);
}

static inline uint8_t *nbd_put64(uint8_t *p, uint64_t v)
{
	return nbd_put32(nbd_put32(p, (uint32_t)(v >> 32)), (uint32_t)v);
}

struct nbd_request {
	uint16_t flags, type;
	uint64_t cookie, offset;
	uint32_t length;
};

/* What a connection may ask for. */
struct nbd_bounds {
	uint64_t size;
	uint32_t max_request;
	bool read_only;
	bool structured;
	bool contexts; /* some were chosen */
};

/* @bytes: NBD_REQUEST_LEN of them. -EPROTO: not the magic (NB-30). */
int nbd_request_decode(const uint8_t *bytes, struct nbd_request *ret);
/* NB-32: 0, or the error to reply with. */
uint32_t nbd_request_check(const struct nbd_request *request, const struct nbd_bounds *bounds);
/* Bytes of payload that follow a request, right or wrong. */
uint32_t nbd_request_payload(const struct nbd_request *request);
/* NB-36: of 0 or a negative errno. */
uint32_t nbd_error_of(int32_t result);
/* NB-4 */
uint16_t nbd_export_flags(bool read_only, bool structured);

/* Write a header and return its length. */
uint32_t nbd_simple_encode(uint8_t *to, uint64_t cookie, uint32_t error);
uint32_t nbd_chunk_encode(uint8_t *to, uint64_t cookie, uint16_t flags, uint16_t type,
			  uint32_t length);

#endif
