/* SPDX-License-Identifier: MIT */
/*
 * nbd_status.c - block status: one look at the disk's extents, seen through each chosen context
 * (spec/nbd.md 3). The request's buffer first holds the disk's extents, then the reply.
 */
#include <errno.h>
#include <string.h>

#include "serve/nbd/nbd_conn.h"

#define EXTENTS_MAX 512u
#define DEPTH_NONE  UINT32_MAX

static void on_extents(struct srv_io *io, int32_t result);

void nbd_status_choose(struct nbd_conn *c, const struct nbd_context *contexts,
		       struct vmimg_baseline **baselines, unsigned count)
{
	for (unsigned i = 0; i < count; i++) {
		c->lenses[i] = (struct nbd_lens){contexts[i].kind, baselines[i]};
		if (baselines[i])
			vmimg_baseline_attach(baselines[i], c->export->disk);
		baselines[i] = NULL;
	}
	c->nlenses = count;
}

void nbd_status_fini(struct nbd_conn *c)
{
	for (unsigned i = 0; i < c->nlenses; i++)
		vmimg_baseline_destroy(c->lenses[i].baseline);
	c->nlenses = 0;
}

uint32_t nbd_status_memory(const struct nbd_conn *c)
{
	return EXTENTS_MAX * sizeof(struct vmimg_disk_extent) +
	       c->nlenses * (NBD_STRUCTURED_LEN + 4 + EXTENTS_MAX * 8);
}

void nbd_status_start(struct nbd_req *req)
{
	struct vmimg_request *r = &req->io.request;

	if (nbd_req_grow(req, EXTENTS_MAX * sizeof(struct vmimg_disk_extent)) < 0) {
		nbd_reply(req, -ENOMEM);
		return;
	}
	req->iov = (struct iovec){req->buf, EXTENTS_MAX * sizeof(struct vmimg_disk_extent)};
	*r = (struct vmimg_request){
		.disk = req->conn->export->disk,
		.op = VMIMG_EXTENTS,
		.iov = &req->iov,
		.iovcnt = 1,
		.offset = req->wire.offset,
		.length = req->wire.length,
	};
	req->io.done = on_extents;
	srv_worker_io(req->conn->lane->worker, &req->io);
}

/* The first bytes of @e, at @offset, that look the same: how many, and *@flags. */
static uint64_t look(const struct nbd_conn *c, const struct nbd_lens *lens, uint64_t offset,
		     const struct vmimg_disk_extent *e, uint32_t newest, uint32_t *flags)
{
	uint64_t length = e->length;
	bool changed = true;

	switch (lens->kind) {
	case NBD_CONTEXT_ALLOCATION:
		*flags = e->state == VMIMG_EXTENT_DATA ? 0 : NBD_STATE_HOLE | NBD_STATE_ZERO;
		break;
	case NBD_CONTEXT_DEPTH:
		*flags = e->state == VMIMG_EXTENT_HOLE ? DEPTH_NONE : newest - e->layer;
		break;
	case NBD_CONTEXT_CHANGED:
		if (lens->baseline)
			length = vmimg_baseline_extent(lens->baseline, c->export->disk, offset, e,
						       &changed);
		*flags = changed;
		break;
	}
	return length;
}

/* A chunk under construction. */
struct chunk {
	uint8_t *at, *last; /* last: its newest extent, or NULL */
	uint32_t flags;     /* of that */
	unsigned count;
};

/* False: there is no place for it, so that the chunk ends before it. */
static bool put_extent(struct chunk *k, uint64_t length, uint32_t flags, unsigned most)
{
	if (k->last && flags == k->flags) {
		nbd_put32(k->last, nbd_get32(k->last) + (uint32_t)length);
		return true;
	}
	if (k->count == most)
		return false;
	k->count++;
	k->flags = flags;
	k->last = k->at;
	k->at = nbd_put32(nbd_put32(k->at, (uint32_t)length), flags);
	return true;
}

/* One context's chunk at @to; returns what follows it. NB-24. */
static uint8_t *put_chunk(const struct nbd_req *req, unsigned context, uint32_t newest,
			  const struct vmimg_disk_extent *extents, int count, uint8_t *to)
{
	const struct nbd_conn *c = req->conn;
	unsigned most = req->wire.flags & NBD_CMD_FLAG_REQ_ONE ? 1 : EXTENTS_MAX;
	struct chunk k = {.at = nbd_put32(to + NBD_STRUCTURED_LEN, context)};
	uint64_t offset = req->wire.offset;
	bool room = true;

	for (int i = 0; i < count && room; i++) {
		struct vmimg_disk_extent e = extents[i];

		while (e.length && room) {
			uint32_t flags = 0;
			uint64_t n = look(c, &c->lenses[context], offset, &e, newest, &flags);

			room = put_extent(&k, n, flags, most);
			offset += n;
			e.length -= n;
		}
	}
	nbd_chunk_encode(to, req->wire.cookie, context + 1 == c->nlenses ? NBD_REPLY_DONE : 0,
			 NBD_CHUNK_BLOCK_STATUS, (uint32_t)(k.at - to) - NBD_STRUCTURED_LEN);
	return k.at;
}

/* Bytes that the reply may take: a baseline may cut extents in pieces. */
static uint32_t reply_room(const struct nbd_conn *c, unsigned count)
{
	for (unsigned i = 0; i < c->nlenses; i++)
		if (c->lenses[i].baseline)
			count = EXTENTS_MAX;
	return c->nlenses * (NBD_STRUCTURED_LEN + 4 + count * 8);
}

static void on_extents(struct srv_io *io, int32_t result)
{
	struct nbd_req *req = nbd_of(struct nbd_req, io, io);
	struct nbd_conn *c = req->conn;
	struct vmimg_disk_extent extents[EXTENTS_MAX];
	uint32_t newest = vmimg_disk_layers(c->export->disk);
	uint8_t *p;

	if (result > 0) {
		memcpy(extents, req->buf, (unsigned)result * sizeof(extents[0]));
		if (nbd_req_grow(req, reply_room(c, (unsigned)result)))
			result = -ENOMEM;
	}
	if (result <= 0) {
		nbd_reply(req, result < 0 ? result : -EIO);
		return;
	}
	p = req->buf;
	for (unsigned i = 0; i < c->nlenses; i++)
		p = put_chunk(req, i, newest, extents, result, p);
	req->payload = (uint32_t)(p - req->buf);
	nbd_reply(req, 0);
}
