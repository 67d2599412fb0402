/* SPDX-License-Identifier: MIT */
/*
 * read.c - reads: the map says which layer holds what; each run is one operation, straight into the
 * caller's buffer where alignment allows. Worker only.
 *
 * Data of a sealed layer is read in whole blocks and checked against its checksum before the caller
 * sees it (P6). A checksum page that is not in memory, and everything of a qcow2 base, is fetched by a
 * background thread: the worker never waits.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/layer/gone.h"
#include "engine/layer/index.h"
#include "engine/disk/part.h"
#include "engine/layer/qcow2.h"
#include "engine/disk/swap.h"

static void read_continue(struct eng_req *req, int result);

static void part_ended(struct eng_req *req, int result)
{
	if (result < 0 && req->result == 0)
		req->result = result;
	if (--req->parts == 0)
		eng_req_end(req, req->result);
}

/* --- checking sealed data --- */

/* Where @block of a part's data is: in the bounce, or in the caller's buffer (gathered in @tmp). */
static const void *part_block(const struct eng_part *part, uint32_t i, uint32_t bs, void *tmp)
{
	const struct eng_req *req = part->req;

	if (part->bounce)
		return (char *)part->bounce + (size_t)i * bs;
	if (part->op.iovcnt == 1)
		return (char *)part->op.iov[0].iov_base + (size_t)i * bs;
	eng_iov_copy_out(req->iov, req->iovcnt, part->from + (uint64_t)i * bs, tmp, bs);
	return tmp;
}

/* 0, -EBADMSG, or -EAGAIN with *@missing: a checksum page must be loaded. */
static int verify_blocks(struct eng_part *part, struct eng_index *index, uint32_t *missing)
{
	uint32_t bs = 1u << part->layer->block_bits;
	uint32_t n = (uint32_t)((part->skip + part->len + bs - 1) / bs);
	uint8_t tmp[1u << FMT_BLOCK_BITS_MAX];
	uint64_t want;

	for (uint32_t i = 0; i < n; i++) {
		int r = eng_index_csum(index, part->slot + i, &want);

		if (r < 0) {
			*missing = part->slot + i;
			return r;
		}
		if (fmt_block_csum(part_block(part, i, bs, tmp), bs) != want)
			return -EBADMSG;
	}
	return 0;
}

static void part_finish(struct eng_part *part, int result)
{
	struct eng_req *req = part->req;

	if (result == 0 && part->bounce)
		eng_iov_copy_in(req->iov, req->iovcnt, part->from,
				(char *)part->bounce + part->skip, part->len);
	eng_part_put(req->disk->queue, part);
	part_ended(req, result);
}

static void part_verify(struct eng_part *part);

static void msg_csum_loaded(struct eng_msg *msg)
{
	struct eng_part *part = (struct eng_part *)((char *)msg - offsetof(struct eng_part, msg));

	if (part->result < 0)
		part_finish(part, (int)part->result);
	else
		part_verify(part);
}

static void task_load_csum(struct eng_task *task)
{
	struct eng_part *part = (struct eng_part *)((char *)task - offsetof(struct eng_part, task));
	struct eng_index *index;
	int r = eng_layer_index(part->layer, NULL, &index);

	if (r == 0)
		r = eng_index_load_csum(index, (uint32_t)part->result, NULL);
	part->result = r;
	part->msg.run = msg_csum_loaded;
	eng_queue_post(part->req->disk->queue, &part->msg);
}

static void part_verify(struct eng_part *part)
{
	struct eng_index *index = atomic_load(&part->layer->index);
	uint32_t missing = part->slot;
	int r = index ? verify_blocks(part, index, &missing) : -EAGAIN;

	if (r != -EAGAIN) {
		part_finish(part, r);
		return;
	}
	part->result = missing;
	part->task.run = task_load_csum;
	eng_pool_submit(part->req->disk->pool, ENG_POOL_URGENT, &part->task);
}

/* --- operations --- */

static void op_done(struct eng_op *op)
{
	struct eng_part *part = (struct eng_part *)((char *)op - offsetof(struct eng_part, op));
	uint64_t want = 0;

	if (op->res < 0) {
		part_finish(part, (int)op->res);
		return;
	}
	for (unsigned i = 0; i < op->iovcnt; i++)
		want += op->iov[i].iov_len;
	if ((uint64_t)op->res < want) {
		/* Only a raw base may end early (its disk has grown): zeros follow. */
		if (part->layer) {
			part_finish(part, -EUCLEAN);
			return;
		}
		if (part->bounce)
			memset((char *)part->bounce + op->res, 0, want - (uint64_t)op->res);
		else
			eng_iov_zero(part->iov, op->iovcnt, (uint64_t)op->res,
				     want - (uint64_t)op->res);
	}
	if (part->layer)
		part_verify(part);
	else
		part_finish(part, 0);
}

/*
 * Reads @len bytes at @at of @file into the request from its byte @from. @granule: the unit that
 * must be read whole: the block for checked data, the direct I/O alignment else.
 */
static void read_file(struct eng_req *req, struct eng_layer *layer, uint64_t at, uint64_t from,
		      uint64_t len, uint32_t granule, bool verify, uint32_t slot)
{
	struct eng_part *part = eng_part_get(req->disk->queue);
	uint64_t lo = at / granule * granule;
	uint64_t hi = (at + len + granule - 1) / granule * granule;
	int r = -ENOMEM;

	req->parts++;
	if (!part) {
		part_ended(req, r);
		return;
	}
	part->req = req;
	part->from = from;
	part->len = len;
	part->skip = (uint32_t)(at - lo);
	part->slot = slot;
	part->layer = verify ? layer : NULL;
	part->op.kind = ENG_OP_READ;
	part->op.file = layer->file;
	part->op.offset = lo;
	part->op.done = op_done;
	if (lo == at && hi == at + len &&
	    eng_iov_aligned(req->iov, req->iovcnt, from, len, layer->mem_align, layer->dio_align)) {
		r = eng_part_set_iov(part, req->iov, req->iovcnt, from, len);
	} else if (posix_memalign(&part->bounce, FMT_PAGE, hi - lo) == 0) {
		part->iov = part->iov_inline;
		part->iov[0] = (struct iovec){part->bounce, hi - lo};
		part->op.iov = part->iov;
		part->op.iovcnt = 1;
		r = 0;
	}
	if (r < 0)
		part_finish(part, r);
	else
		eng_ring_queue(eng_queue_ring(req->disk->queue), &part->op);
}

static void msg_qcow2_read(struct eng_msg *msg)
{
	struct eng_part *part = (struct eng_part *)((char *)msg - offsetof(struct eng_part, msg));

	part_finish(part, (int)part->result);
}

static void task_qcow2_read(struct eng_task *task)
{
	struct eng_part *part = (struct eng_part *)((char *)task - offsetof(struct eng_part, task));
	struct eng_disk *disk = part->req->disk;

	part->result = eng_qcow2_read(part->qcow2, part->bounce, part->len, part->op.offset, NULL);
	part->msg.run = msg_qcow2_read;
	eng_queue_post(disk->queue, &part->msg);
}

static void read_qcow2(struct eng_req *req, uint64_t at, uint64_t from, uint64_t len)
{
	struct eng_part *part = eng_part_get(req->disk->queue);

	req->parts++;
	if (!part || !(part->bounce = malloc(len))) {
		if (part)
			eng_part_put(req->disk->queue, part);
		part_ended(req, -ENOMEM);
		return;
	}
	part->req = req;
	part->from = from;
	part->len = len;
	part->op.offset = at;
	part->qcow2 = req->disk->layers[0]->qcow2; /* a swap may put another base in its place */
	part->task.run = task_qcow2_read;
	eng_pool_submit(req->disk->pool, ENG_POOL_URGENT, &part->task);
}

/* What no overlay holds: the base's bytes, zeros beyond its end or without one. */
static void read_base(struct eng_req *req, uint64_t at, uint64_t from, uint64_t len)
{
	struct eng_layer *base = req->disk->layers[0];
	uint64_t end = eng_base_end(base);
	uint64_t have = at < end ? (end - at < len ? end - at : len) : 0;

	if (have < len)
		eng_iov_zero(req->iov, req->iovcnt, from + have, len - have);
	if (!have)
		return;
	if (base->kind == FMT_KIND_QCOW2)
		read_qcow2(req, at, from, have);
	else
		read_file(req, base, at, from, have, base->dio_align, false, 0);
}

/* --- the request --- */

/* Issues the run at @at; returns its bytes. */
static uint64_t read_run(struct eng_req *req, uint64_t at, uint64_t end)
{
	struct eng_disk *disk = req->disk;
	uint32_t bits = disk->block_bits, count;
	uint64_t block = at >> bits, left = end - at;
	uint64_t blocks = ((end - 1) >> bits) - block + 1;
	struct eng_map_entry e = eng_map_get_run(disk->map, block,
						 blocks < UINT32_MAX ? (uint32_t)blocks
								     : UINT32_MAX,
						 &count);
	uint64_t skip = at - (block << bits);
	uint64_t len = ((uint64_t)count << bits) - skip;
	struct eng_layer *layer;
	bool verify;

	len = len < left ? len : left;
	if (e.state == ENG_MAP_ZERO) {
		eng_iov_zero(req->iov, req->iovcnt, at - req->offset, len);
	} else if (e.state == ENG_MAP_NONE) {
		read_base(req, at, at - req->offset, len);
	} else {
		layer = eng_swap_layer(disk, e.layer, block >> ENG_MAP_REGION_BITS);
		verify = disk->verify && atomic_load(&layer->sealed);
		if (layer->gone &&
		    eng_gone_any(layer->gone, e.slot,
				 (uint32_t)((skip + len + (1u << bits) - 1) >> bits))) {
			req->result = req->result ? req->result : -EUCLEAN; /* PU-6 */
			return len;
		}
		read_file(req, layer, eng_layer_slot_offset(layer, e.slot) + skip, at - req->offset,
			  len, verify ? 1u << bits : layer->dio_align, verify, e.slot);
	}
	return len;
}

static void read_go(struct eng_req *req)
{
	uint64_t end = req->offset + req->length;

	req->parts = 1;
	for (uint64_t at = req->offset; at < end;)
		at += read_run(req, at, end);
	part_ended(req, 0);
}

static bool regions_built(struct eng_req *req)
{
	struct eng_disk *disk = req->disk;
	uint32_t bits = disk->block_bits + ENG_MAP_REGION_BITS;
	uint64_t last = (req->offset + req->length - 1) >> bits;

	for (uint64_t r = req->offset >> bits; r <= last; r++)
		if (!eng_build_region(disk, r, req, read_continue))
			return false;
	return true;
}

static void read_continue(struct eng_req *req, int result)
{
	if (result < 0)
		eng_req_end(req, result);
	else if (regions_built(req))
		read_go(req);
}

void eng_read_start(struct eng_req *req)
{
	read_continue(req, 0);
}
