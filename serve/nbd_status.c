/* SPDX-License-Identifier: MIT */
/*
 * nbd_status.c - block status: one look at the disk's extents, seen through each chosen context
 * (spec/nbd.md 3). The request's buffer first holds the disk's extents, then the reply.
 */
#include <errno.h>
#include <string.h>

#include "serve/nbd_conn.h"

#define EXTENTS_MAX 512u
#define DEPTH_NONE  UINT32_MAX

static void on_extents(struct srv_io *io, int32_t result);

void nbd_status_choose(struct nbd_conn *c, const struct nbd_context *contexts, unsigned count)
{
	for (unsigned i = 0; i < count; i++) {
		struct nbd_lens *lens = &c->lenses[i];

		*lens = (struct nbd_lens){.kind = contexts[i].kind};
		if (lens->kind == NBD_CONTEXT_CHANGED) /* NB-22 */
			lens->lost = vmimg_disk_frozen_layer(c->export->disk, contexts[i].snapshot,
							     NULL, &lens->frozen) < 0;
	}
	c->nlenses = count;
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

static uint32_t flags_of(const struct nbd_lens *lens, const struct vmimg_disk_extent *e,
			 uint32_t newest)
{
	switch (lens->kind) {
	case NBD_CONTEXT_ALLOCATION:
		return e->state == VMIMG_EXTENT_DATA ? 0 : NBD_STATE_HOLE | NBD_STATE_ZERO;
	case NBD_CONTEXT_DEPTH:
		return e->state == VMIMG_EXTENT_HOLE ? DEPTH_NONE : newest - e->layer;
	case NBD_CONTEXT_CHANGED: return lens->lost || e->layer > lens->frozen;
	}
	return 0;
}

/* One context's chunk at @to; returns what follows it. NB-24. */
static uint8_t *put_chunk(const struct nbd_req *req, unsigned context, uint32_t newest,
			  const struct vmimg_disk_extent *e, int count, uint8_t *to)
{
	const struct nbd_conn *c = req->conn;
	bool one = req->wire.flags & NBD_CMD_FLAG_REQ_ONE;
	uint8_t *p = nbd_put32(to + NBD_STRUCTURED_LEN, context), *last = NULL;
	uint32_t flags = 0;

	for (int i = 0; i < count; i++) {
		uint32_t next = flags_of(&c->lenses[context], &e[i], newest);

		if (last && next == flags) {
			nbd_put32(last, nbd_get32(last) + (uint32_t)e[i].length);
			continue;
		}
		if (last && one)
			break;
		flags = next;
		last = p;
		p = nbd_put32(nbd_put32(p, (uint32_t)e[i].length), flags);
	}
	nbd_chunk_encode(to, req->wire.cookie, context + 1 == c->nlenses ? NBD_REPLY_DONE : 0,
			 NBD_CHUNK_BLOCK_STATUS, (uint32_t)(p - to) - NBD_STRUCTURED_LEN);
	return p;
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
		if (nbd_req_grow(req, c->nlenses * (NBD_STRUCTURED_LEN + 4 + (unsigned)result * 8)))
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
