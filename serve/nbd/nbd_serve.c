/* SPDX-License-Identifier: MIT */
/*
 * nbd_serve.c - transmission: requests out of the read buffer, through the limits, to the disk, and their
 * replies. All on the export's worker; nothing here waits.
 *
 * A request lives from its header to the last byte of its reply, and counts in flight for as long
 * (NB-41). A write goes to the disk only with its whole payload in memory (NB-33).
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "serve/nbd/nbd_conn.h"

#define SPARE_MAX   512u
#define ZERO_PIECE  (4u << 20) /* of one write of zeros (NB-34) */
#define CACHE_PIECE (1u << 20)

static void on_io(struct srv_io *io, int32_t result);

/* --- requests --- */

/* NB-41, NB-42: counts @cost in, or says that there is no room. */
static bool admit(struct nbd_conn *c, uint32_t cost)
{
	struct srv_server *s = c->nbd->server;
	bool alone = c->requests == 0;
	uint64_t total;

	if (c->requests >= NBD_REQUESTS_MAX)
		return false;
	if (!alone && c->inflight + cost > s->options.max_inflight)
		return false;
	if (cost) {
		total = atomic_fetch_add(&s->inflight_bytes, cost) + cost;
		if (!alone && total > s->options.max_inflight_total) {
			atomic_fetch_sub(&s->inflight_bytes, cost);
			return false;
		}
	}
	c->inflight += cost;
	return true;
}

static struct nbd_req *req_get(struct nbd_conn *c, const struct nbd_request *wire, uint32_t cost)
{
	struct nbd_lane *lane = c->lane;
	struct nbd_req *req = lane->spare;

	if (req) {
		lane->spare = req->next;
		lane->nspare--;
	} else {
		req = malloc(sizeof(*req));
		if (!req)
			return NULL;
	}
	req->io.done = on_io;
	req->conn = c;
	req->next = NULL;
	req->wire = *wire;
	req->buf = NULL;
	req->buf_len = 0;
	req->cost = cost;
	req->piece = 0;
	req->payload = 0;
	c->requests++;
	return req;
}

static void drop_buffer(struct nbd_req *req)
{
	nbd_buffer_put(&req->conn->lane->buffers, req->buf, req->buf_len);
	req->buf = NULL;
	req->buf_len = 0;
}

void nbd_req_put(struct nbd_req *req)
{
	struct nbd_conn *c = req->conn;
	struct nbd_lane *lane = c->lane;

	drop_buffer(req);
	if (req->cost) {
		c->inflight -= req->cost;
		atomic_fetch_sub(&c->nbd->server->inflight_bytes, req->cost);
		nbd_lane_tick(lane);
	}
	c->requests--;
	if (lane->nspare < SPARE_MAX) {
		req->next = lane->spare;
		lane->spare = req;
		lane->nspare++;
	} else {
		free(req);
	}
	if (c->blocked || !c->requests)
		nbd_conn_kick(c);
}

int nbd_req_grow(struct nbd_req *req, uint32_t len)
{
	void *buf = nbd_buffer_get(&req->conn->lane->buffers, len);

	if (!buf)
		return -ENOMEM;
	drop_buffer(req);
	req->buf = buf;
	req->buf_len = len;
	return 0;
}

/* --- replies --- */

static void encode_error_chunk(struct nbd_req *req, uint32_t error)
{
	uint8_t *p = req->head + nbd_chunk_encode(req->head, req->wire.cookie, NBD_REPLY_DONE,
						  NBD_CHUNK_ERROR, 6);

	nbd_put16(nbd_put32(p, error), 0);
	req->head_len = NBD_STRUCTURED_LEN + 6;
}

static void encode_data_chunk(struct nbd_req *req)
{
	uint8_t *p = req->head + nbd_chunk_encode(req->head, req->wire.cookie, NBD_REPLY_DONE,
						  NBD_CHUNK_OFFSET_DATA, 8 + req->payload);

	nbd_put64(p, req->wire.offset);
	req->head_len = NBD_STRUCTURED_LEN + 8;
}

/* NB-31 */
void nbd_reply(struct nbd_req *req, int32_t result)
{
	struct nbd_conn *c = req->conn;
	uint32_t error = nbd_error_of(result < 0 ? result : 0);
	uint16_t type = req->wire.type;

	if (c->broken) {
		nbd_req_put(req);
		nbd_conn_kick(c);
		return;
	}
	if (error || type == NBD_CMD_WRITE)
		drop_buffer(req);
	req->payload = !error && type == NBD_CMD_READ ? req->wire.length : req->payload;
	if (error)
		req->payload = 0;
	if (c->structured && (type == NBD_CMD_READ || type == NBD_CMD_BLOCK_STATUS)) {
		if (error)
			encode_error_chunk(req, error);
		else if (type == NBD_CMD_READ && req->payload)
			encode_data_chunk(req);
		else if (type == NBD_CMD_READ) /* nothing was asked for, and nothing it is */
			req->head_len = nbd_chunk_encode(req->head, req->wire.cookie,
							 NBD_REPLY_DONE, 0, 0);
		else
			req->head_len = 0; /* nbd_status.c has put chunks into the payload */
	} else {
		req->head_len = nbd_simple_encode(req->head, req->wire.cookie, error);
	}
	*c->replies_tail = req;
	c->replies_tail = &req->next;
	nbd_conn_kick(c);
}

/* --- to the disk --- */

/* Read-only, and the kernel's one page of zeros throughout. */
static void *zeros(void)
{
	static void *memory; /* the same for all; whoever comes second gives his back */
	void *p = __atomic_load_n(&memory, __ATOMIC_ACQUIRE), *none = NULL;

	if (p)
		return p;
	p = mmap(NULL, ZERO_PIECE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED)
		return NULL;
	if (!__atomic_compare_exchange_n(&memory, &none, p, false, __ATOMIC_ACQ_REL,
					 __ATOMIC_ACQUIRE)) {
		munmap(p, ZERO_PIECE);
		p = none;
	}
	return p;
}

static bool is_zero_write(const struct nbd_req *req)
{
	return req->wire.type == NBD_CMD_WRITE_ZEROES && req->wire.flags & NBD_CMD_FLAG_NO_HOLE;
}

static uint8_t op_of(const struct nbd_req *req)
{
	switch (req->wire.type) {
	case NBD_CMD_WRITE: return VMIMG_WRITE;
	case NBD_CMD_FLUSH: return VMIMG_FLUSH;
	case NBD_CMD_TRIM: return VMIMG_DISCARD;
	case NBD_CMD_WRITE_ZEROES: return is_zero_write(req) ? VMIMG_WRITE : VMIMG_WRITE_ZEROES;
	default: return VMIMG_READ;
	}
}

static void start(struct nbd_req *req, uint64_t offset, uint64_t length)
{
	struct vmimg_request *r = &req->io.request;
	bool data;

	*r = (struct vmimg_request){
		.disk = req->conn->export->disk,
		.op = op_of(req),
		.offset = offset,
		.length = length,
	};
	data = r->op == VMIMG_READ || r->op == VMIMG_WRITE;
	if (data) {
		req->iov.iov_len = length;
		r->iov = &req->iov;
		r->iovcnt = 1;
	}
	if ((req->wire.flags & NBD_CMD_FLAG_FUA) && r->op != VMIMG_READ && r->op != VMIMG_FLUSH)
		r->flags = VMIMG_FUA;
	srv_worker_io(req->conn->lane->worker, &req->io);
}

/* The next part of what goes to the disk in pieces, one at a time: zeros, or reading ahead. */
static void start_piece(struct nbd_req *req)
{
	uint64_t left = req->wire.length - req->piece;
	uint32_t most = is_zero_write(req) ? ZERO_PIECE : CACHE_PIECE;

	start(req, req->wire.offset + req->piece, left < most ? left : most);
}

static bool in_pieces(const struct nbd_req *req)
{
	return req->wire.type == NBD_CMD_CACHE || is_zero_write(req);
}

static void note(struct nbd_req *req, int32_t result)
{
	if (req->wire.type != NBD_CMD_CACHE)
		srv_stats_note(&req->conn->export->stats, req->io.request.op, req->wire.length,
			       req->start_ns, result);
}

static void on_io(struct srv_io *io, int32_t result)
{
	struct nbd_req *req = nbd_of(struct nbd_req, io, io);

	if (in_pieces(req) && result == 0) {
		req->piece += io->request.length;
		if (req->piece < req->wire.length && !req->conn->broken) {
			start_piece(req);
			return;
		}
	}
	note(req, result);
	nbd_reply(req, result);
}

/* Payload is there, or none belongs. */
static void go(struct nbd_req *req)
{
	const struct nbd_request *w = &req->wire;
	bool idle = w->type == NBD_CMD_CACHE && !req->conn->nbd->server->options.open.buffered;

	req->start_ns = srv_now_ns();
	req->iov.iov_base = req->buf;
	if (w->type == NBD_CMD_BLOCK_STATUS)
		nbd_status_start(req);
	else if (w->type == NBD_CMD_FLUSH)
		start(req, 0, 0);
	else if (w->length == 0 || idle) /* NB-35 */
		nbd_reply(req, 0);
	else if (!in_pieces(req))
		start(req, w->offset, w->length);
	else if (is_zero_write(req) && w->flags & NBD_CMD_FLAG_FAST_ZERO)
		nbd_reply(req, -ENOTSUP); /* NB-34 */
	else if (is_zero_write(req) && !(req->iov.iov_base = zeros()))
		nbd_reply(req, -ENOMEM);
	else
		start_piece(req);
}

void nbd_serve_filled(struct nbd_conn *c)
{
	struct nbd_req *req = c->filling;

	c->filling = NULL;
	if (c->draining)
		nbd_req_put(req); /* NB-50 */
	else
		go(req); /* T2: from here on it is a write */
}

/* --- out of the read buffer --- */

/* What a request counts in flight: its buffer, and of block status the reply that it may become. */
static uint32_t memory_of(const struct nbd_conn *c, const struct nbd_request *w)
{
	if (w->type == NBD_CMD_BLOCK_STATUS)
		return nbd_status_memory(c);
	if (w->type == NBD_CMD_READ || w->type == NBD_CMD_WRITE)
		return w->length;
	if (w->type == NBD_CMD_CACHE && c->nbd->server->options.open.buffered)
		return w->length < CACHE_PIECE ? w->length : CACHE_PIECE;
	return 0;
}

static uint32_t check(const struct nbd_conn *c, const struct nbd_request *w)
{
	const struct nbd_bounds bounds = {
		.size = atomic_load_explicit(&c->export->size, memory_order_relaxed),
		.max_request = c->nbd->server->options.max_request,
		.read_only = c->export->read_only,
		.structured = c->structured,
		.contexts = c->nlenses > 0,
	};

	return nbd_request_check(w, &bounds);
}

/* Takes what the buffer has of the payload; whether that is all of it. */
static bool fill(struct nbd_conn *c)
{
	uint32_t left = c->filling->wire.length - c->filled, have = c->in_len - c->in_at;
	uint32_t n = left < have ? left : have;

	memcpy(c->filling->buf + c->filled, c->in + c->in_at, n);
	c->in_at += n;
	c->filled += n;
	if (n < left)
		return false;
	nbd_serve_filled(c);
	return true;
}

/* A request that is in order, or has @error; there is room. */
static void begin(struct nbd_conn *c, const struct nbd_request *w, uint32_t error, uint32_t memory)
{
	struct nbd_req *req = req_get(c, w, memory);
	uint32_t payload = nbd_request_payload(w);

	if (!req) {
		c->inflight -= memory;
		atomic_fetch_sub(&c->nbd->server->inflight_bytes, memory);
		nbd_conn_fail(c, "out of memory");
		return;
	}
	if (!error && memory && w->type != NBD_CMD_BLOCK_STATUS && nbd_req_grow(req, memory) < 0)
		error = NBD_ENOMEM;
	if (error && payload) { /* NB-30: a client may not know the request before it is sent */
		c->skip = payload;
		c->refused = req;
		c->refusal = -(int32_t)error;
	} else if (error) {
		nbd_reply(req, -(int32_t)error);
	} else if (payload) {
		c->filling = req;
		c->filled = 0;
	} else {
		go(req);
	}
}

static void skip(struct nbd_conn *c)
{
	uint32_t have = c->in_len - c->in_at;
	uint32_t n = c->skip < have ? c->skip : have;

	c->skip -= n;
	c->in_at += n;
	if (!c->skip && c->refused) {
		struct nbd_req *req = c->refused;

		c->refused = NULL;
		nbd_reply(req, c->refusal);
	}
}

bool nbd_serve_consume(struct nbd_conn *c)
{
	for (;;) {
		struct nbd_request w;
		uint32_t error, memory;

		skip(c);
		if (c->filling && !fill(c))
			return true;
		if (c->in_len - c->in_at < NBD_REQUEST_LEN)
			return true;
		if (nbd_request_decode(c->in + c->in_at, &w) < 0) {
			nbd_conn_fail(c, "no request where one was expected");
			return false;
		}
		error = check(c, &w);
		if (w.type == NBD_CMD_DISC && !error) { /* NB-37 */
			c->ended = true;
			return false;
		}
		memory = error ? 0 : memory_of(c, &w);
		if (!admit(c, memory)) {
			c->blocked = true;
			return false;
		}
		c->in_at += NBD_REQUEST_LEN;
		begin(c, &w, error, memory);
		if (c->ended)
			return false;
	}
}
