/* SPDX-License-Identifier: MIT */
/*
 * write.c - writes, write-zeroes and discards. Worker only.
 *
 * The life of a write: it is counted in flight on the layer its dequeue chose (P1, T2, T3), takes its
 * place in the block locks (T4), fills up the edges of blocks that its layer does not hold yet, gets
 * slots, and is written. When the data is there: journal, publish, acknowledge, in this order (T20).
 * A block its layer holds is overwritten in place, only the guest's sectors (T18).
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/disk/part.h"

static void write_locked(struct eng_req *req);
static void write_issue(struct eng_req *req);
static void zero_locked(struct eng_req *req);

static void lock_granted(struct eng_rangelock *lock)
{
	struct eng_req *req = (struct eng_req *)((char *)lock - offsetof(struct eng_req, lock));

	if (req->op == ENG_WRITE)
		write_locked(req);
	else
		zero_locked(req);
}

/* --- the end of a write --- */

static int ensure_pending(struct eng_layer *layer, uint32_t more)
{
	uint32_t want = layer->pending_count + layer->promised_runs + more, cap;
	struct fmt_run *p;

	if (want <= layer->pending_cap)
		return 0;
	cap = want * 2;
	p = realloc(layer->pending, cap * sizeof(*p));
	if (!p)
		return -ENOMEM;
	layer->pending = p;
	layer->pending_cap = cap;
	return 0;
}

/* Journal, pending, map. Room for all three was made before the data was written. */
static void publish(struct eng_req *req, const struct fmt_run *run)
{
	struct eng_disk *disk = req->disk;
	struct eng_layer *layer = req->layer;
	uint64_t number = 0;
	int r = 0;

	if (disk->journal) {
		r = layer->journal_tag == UINT32_MAX
			    ? -ENOSPC
			    : eng_journal_append(disk->journal, layer->journal_tag, run, &number);
		if (r < 0) { /* no journal: not to be acknowledged */
			eng_layer_poison(layer, r);
			req->result = r;
			return;
		}
	}
	if (!layer->first_uncovered)
		layer->first_uncovered = number;
	r = eng_layer_add_pending(layer, run, number);
	if (r < 0) { /* would never be logged: no flush may succeed any more */
		eng_layer_poison(layer, r);
		req->result = r;
		return;
	}
	if (run->kind == FMT_RUN_ZERO)
		return; /* zero_map() keeps the slots that the blocks own */
	r = eng_map_put(disk->map, run->block, run->count,
			(struct eng_map_entry){
				.layer = req->ordinal,
				.slot = run->slot,
				.state = ENG_MAP_DATA,
			});
	assert(r == 0);
}

static void release(struct eng_req *req)
{
	struct eng_layer *layer = req->layer;

	layer->promised_writes -= req->journal_promised != 0;
	layer->promised_runs -= req->journal_promised;
	req->disk->journal_reserved -= req->journal_promised;
	req->journal_promised = 0;
	if (req->locked)
		eng_rangelock_unlock(&req->disk->locks, &req->lock, lock_granted);
	req->locked = false;
	if (!req->parent)
		eng_layer_leave(layer);
}

/* What waits for log or journal room may have waited for this very write: a round frees its room. */
static void wake_stalled(struct eng_disk *disk)
{
	struct eng_req *first = disk->stalled;

	if (!first || first->layer->extending || first->layer->segmenting)
		return; /* the space that comes wakes all */
	eng_flush_background(disk);
	if (!disk->is_emptying)
		eng_write_unstall(disk, 0);
}

/* Sub-requests (edges of a write-zeroes) report to their parent; their layer and lock are its. */
static void write_end(struct eng_req *req)
{
	struct eng_disk *disk = req->disk;
	bool fua = req->flags & ENG_REQ_FUA && req->result == 0 && !req->parent;

	release(req);
	wake_stalled(disk);
	if (fua)
		eng_flush_chain(disk, req);
	else
		eng_req_end(req, req->result);
}

static void write_part_ended(struct eng_req *req, int result)
{
	if (result < 0 && req->result == 0)
		req->result = result;
	if (--req->parts)
		return;
	if (req->result == 0) {
		req->layer->dirty_gen++;
		for (uint32_t i = 0; i < req->nruns; i++)
			publish(req, &req->runs[i]);
	}
	write_end(req);
}

static void write_done(struct eng_op *op)
{
	struct eng_part *part = (struct eng_part *)((char *)op - offsetof(struct eng_part, op));
	struct eng_req *req = part->req;
	int r = op->res < 0 ? (int)op->res : 0;

	eng_part_put(req->disk->queue, part);
	write_part_ended(req, r);
}

/* --- issuing --- */

static void write_file(struct eng_req *req, uint64_t at, uint64_t from, uint64_t len, bool dsync)
{
	struct eng_disk *disk = req->disk;
	struct eng_part *part = eng_part_get(disk->queue);

	req->parts++;
	if (!part) {
		write_part_ended(req, -ENOMEM);
		return;
	}
	part->req = req;
	part->op.kind = ENG_OP_WRITE;
	part->op.dsync = dsync;
	part->op.file = req->layer->file;
	part->op.offset = at;
	part->op.done = write_done;
	if (eng_part_set_iov(part, req->wiov, req->wiovcnt, from - req->lo, len) < 0) {
		eng_part_put(disk->queue, part);
		write_part_ended(req, -ENOMEM);
		return;
	}
	eng_ring_queue(eng_queue_ring(disk->queue), &part->op);
}

static int add_run(struct eng_req *req, const struct fmt_run *run)
{
	if (!req->runs) {
		req->runs = req->runs_inline;
		req->runs_cap = 2;
	}
	if (req->nruns == req->runs_cap) {
		uint32_t cap = req->runs_cap * 4;
		struct fmt_run *p = malloc(cap * sizeof(*p));

		if (!p)
			return -ENOMEM;
		memcpy(p, req->runs, req->nruns * sizeof(*p));
		if (req->runs != req->runs_inline)
			free(req->runs);
		req->runs = p;
		req->runs_cap = cap;
	}
	req->runs[req->nruns++] = *run;
	return 0;
}

/* What the layer of @req holds of @block: DATA in place, ZERO with a slot of its own, else NONE. */
static struct eng_map_entry own_entry(const struct eng_req *req, uint64_t block, uint32_t max,
				      uint32_t *count)
{
	struct eng_map_entry e = eng_map_get_run(req->disk->map, block, max, count);

	assert(e.state == ENG_MAP_NONE || e.layer <= req->ordinal);
	if (e.state == ENG_MAP_NONE || e.layer != req->ordinal)
		return (struct eng_map_entry){.state = ENG_MAP_NONE, .slot = FMT_SLOT_NONE};
	if (e.slot == FMT_SLOT_NONE)
		e.state = ENG_MAP_NONE;
	return e;
}

static bool is_raw(const struct eng_req *req)
{
	return req->layer->kind == FMT_KIND_RAW;
}

/* Slots and mappings that the write needs. */
static void count_new(const struct eng_req *req, uint32_t *slots, uint32_t *runs)
{
	uint32_t bits = req->disk->block_bits, count;
	uint64_t end = (req->hi - 1) >> bits;

	*slots = 0;
	*runs = 0;
	for (uint64_t b = req->lo >> bits; b <= end; b += count) {
		struct eng_map_entry e = own_entry(req, b, (uint32_t)(end - b + 1), &count);

		if (e.state == ENG_MAP_NONE)
			*slots += count;
		*runs += e.state != ENG_MAP_DATA;
	}
}

static void stall(struct eng_req *req)
{
	struct eng_disk *disk = req->disk;

	req->next = NULL;
	*disk->stalled_tail = req;
	disk->stalled_tail = &req->next;
}

void eng_write_unstall(struct eng_disk *disk, int error)
{
	struct eng_req *req = disk->stalled, *next;

	disk->stalled = NULL;
	disk->stalled_tail = &disk->stalled;
	for (; req; req = next) {
		next = req->next;
		if (error < 0) {
			req->result = error;
			write_end(req);
		} else if (req->op == ENG_WRITE) {
			write_issue(req);
		} else {
			zero_locked(req);
		}
	}
}

/* JN-5: the layer's tag, given before its first entry. Tags of hardened layers are taken back first. */
static int journal_tag(struct eng_disk *disk, struct eng_layer *layer)
{
	if (!disk->journal || layer->journal_tag != UINT32_MAX)
		return 0;
	eng_flush_advance(disk);
	return eng_journal_add_layer(disk->journal, &layer->id, layer->dev, layer->ino,
				     &layer->journal_tag);
}

/*
 * Promises everything the end of the write needs, so that nothing can fail once its data is written.
 * False: the request was stalled, or ended with an error.
 */
static bool promise(struct eng_req *req, uint32_t slots, uint32_t runs)
{
	struct eng_disk *disk = req->disk;
	struct eng_layer *layer = req->layer;
	int r = 0;

	if (!eng_space_have(disk, layer, slots, runs, &r)) {
		if (r == 0)
			stall(req);
	} else if (disk->journal &&
		   eng_journal_room(disk->journal) < disk->journal_reserved + runs) {
		stall(req);
		eng_flush_background(disk);
		return false;
	} else {
		r = journal_tag(disk, layer);
		if (r == 0)
			r = ensure_pending(layer, runs);
		if (r == 0) {
			req->journal_promised = runs;
			layer->promised_runs += runs;
			layer->promised_writes += runs != 0;
			disk->journal_reserved += runs;
			return true;
		}
	}
	if (r < 0) {
		req->result = r;
		write_end(req);
	}
	return false;
}

/* Every mapping of the blocks is in a durable record, and so is all below (T11). */
static bool lone_dsync(const struct eng_req *req, uint32_t new_runs)
{
	const struct eng_disk *disk = req->disk;

	return req->flags & ENG_REQ_FUA && !req->parent && !new_runs && req->layer == disk->head &&
	       disk->first_undurable == req->ordinal && !req->layer->pending_count &&
	       eng_flush_quiet(req->layer);
}

static void issue_overlay(struct eng_req *req, bool dsync)
{
	struct eng_disk *disk = req->disk;
	struct eng_layer *layer = req->layer;
	uint32_t bits = disk->block_bits, count;
	uint64_t last = (req->hi - 1) >> bits;

	for (uint64_t b = req->lo >> bits; b <= last; b += count) {
		struct eng_map_entry e = own_entry(req, b, (uint32_t)(last - b + 1), &count);
		uint64_t from = b << bits > req->lo ? b << bits : req->lo;
		uint64_t end = (b + count) << bits < req->hi ? (b + count) << bits : req->hi;

		if (e.state == ENG_MAP_NONE)
			e.slot = eng_space_take(layer, count);
		if (e.state != ENG_MAP_DATA) {
			struct fmt_run run = {
				.block = b,
				.slot = e.slot,
				.count = count,
				.kind = FMT_RUN_DATA,
			};
			int r = add_run(req, &run);

			if (r == 0)
				r = eng_map_reserve(disk->map, b, count);
			if (r < 0 && req->result == 0)
				req->result = r;
		}
		write_file(req, eng_layer_slot_offset(layer, e.slot) + (from - (b << bits)), from,
			   end - from, dsync);
	}
}

/* FL-9: a failed sync here or beneath: what is written could never be flushed. */
static bool is_poisoned(const struct eng_req *req)
{
	const struct eng_disk *disk = req->disk;

	for (uint32_t i = disk->first_undurable; i < req->ordinal; i++)
		if (atomic_load(&disk->layers[i]->poisoned))
			return true;
	return atomic_load(&req->layer->poisoned);
}

static void write_issue(struct eng_req *req)
{
	struct eng_disk *disk = req->disk;
	uint32_t slots = 0, runs = 0;
	bool dsync;

	if (is_poisoned(req)) {
		req->result = -ENOTRECOVERABLE;
		write_end(req);
		return;
	}
	if (!is_raw(req))
		count_new(req, &slots, &runs);
	if (runs && !promise(req, slots, runs))
		return;
	dsync = lone_dsync(req, runs);
	if (dsync)
		req->flags &= (uint8_t)~ENG_REQ_FUA;
	req->parts = 1;
	if (is_raw(req))
		write_file(req, req->lo, req->lo, req->hi - req->lo, dsync);
	else
		issue_overlay(req, dsync);
	eng_space_ahead(disk, req->layer);
	write_part_ended(req, 0);
}

/* --- parts of a request that are requests of their own --- */

/* For the bytes from @from to @to, at @buf; @done frees it. NULL: no memory. (wiov's first is a bounce's.) */
static struct eng_req *make_sub(struct eng_req *req, uint8_t op, void *buf, uint64_t from,
				uint64_t to, void (*done)(struct eng_req *sub))
{
	struct eng_req *sub = calloc(1, sizeof(*sub));

	if (!sub)
		return NULL;
	sub->disk = req->disk;
	sub->op = op;
	sub->wiov_inline[1] = (struct iovec){buf, to - from};
	sub->iov = &sub->wiov_inline[1];
	sub->iovcnt = 1;
	sub->offset = from;
	sub->length = to - from;
	sub->parent = req;
	sub->done = done;
	return sub;
}

/* --- edges: what must be read before it can be written --- */

static void edge_ended(struct eng_req *req, int result)
{
	if (result < 0 && req->result == 0)
		req->result = result;
	if (--req->parts)
		return;
	if (req->result < 0) {
		write_end(req);
		return;
	}
	eng_iov_copy_out(req->iov, req->iovcnt, 0, (char *)req->bounce + (req->offset - req->lo),
			 req->length);
	write_issue(req);
}

static void edge_done(struct eng_req *sub)
{
	struct eng_req *req = sub->parent;
	int r = sub->result;

	free(sub);
	edge_ended(req, r);
}

static void read_edge(struct eng_req *req, uint64_t from, uint64_t to)
{
	struct eng_req *sub;

	if (to > req->disk->size)
		to = req->disk->size; /* a slot's bytes past the disk's end are zeros */
	sub = make_sub(req, ENG_READ, (char *)req->bounce + (from - req->lo), from, to, edge_done);
	if (!sub) {
		req->result = -ENOMEM;
		return;
	}
	req->parts++;
	eng_req_begin(sub);
	eng_read_start(sub);
}

/* How far an edge inside @block must be filled up: to the block where the layer does not hold it. */
static uint64_t edge_unit(const struct eng_req *req, uint64_t block)
{
	uint32_t count;

	if (is_raw(req) || own_entry(req, block, 1, &count).state == ENG_MAP_DATA)
		return req->layer->dio_align;
	return 1ull << req->disk->block_bits;
}

/*
 * JN-6: a write of more blocks than the journal can promise goes in pieces, which keep its layer and
 * its place in the locks (T3).
 */
#define PIECE_BLOCKS (ENG_JOURNAL_ENTRIES / 4)

static void piece_done(struct eng_req *sub)
{
	struct eng_req *req = sub->parent;
	int r = sub->result;

	free((void *)sub->iov);
	free(sub);
	write_part_ended(req, r);
}

static void write_piece(struct eng_req *req, uint64_t from, uint64_t to)
{
	struct eng_disk *disk = req->disk;
	struct eng_req *sub = calloc(1, sizeof(*sub));
	struct iovec *iov = malloc(req->iovcnt * sizeof(*iov));

	req->parts++;
	if (!sub || !iov) {
		free(sub);
		free(iov);
		write_part_ended(req, -ENOMEM);
		return;
	}
	sub->disk = disk;
	sub->op = ENG_WRITE;
	sub->iov = iov;
	sub->iovcnt = eng_iov_slice(req->iov, req->iovcnt, from - req->offset, to - from, iov);
	sub->offset = from;
	sub->length = to - from;
	sub->parent = req;
	sub->layer = req->layer;
	sub->ordinal = req->ordinal;
	sub->done = piece_done;
	eng_req_begin(sub);
	write_locked(sub);
}

static bool write_in_pieces(struct eng_req *req)
{
	uint32_t bits = req->disk->block_bits;
	uint64_t piece = (uint64_t)PIECE_BLOCKS << bits, end = req->offset + req->length;

	if (is_raw(req) || req->length <= piece)
		return false;
	req->parts = 1;
	for (uint64_t at = req->offset, to; at < end; at = to) {
		to = (at / piece + 1) * piece;
		to = to < end ? to : end;
		write_piece(req, at, to);
	}
	write_part_ended(req, 0);
	return true;
}

static void write_locked(struct eng_req *req)
{
	uint32_t bits = req->disk->block_bits;
	uint64_t end = req->offset + req->length;
	uint64_t bs = 1ull << bits, first = bs, last = bs;
	uint64_t head_end, tail;

	if (write_in_pieces(req))
		return;
	if (req->offset % bs)
		first = edge_unit(req, req->offset >> bits);
	if (end % bs)
		last = edge_unit(req, (end - 1) >> bits);
	req->lo = req->offset / first * first;
	req->hi = (end + last - 1) / last * last;
	req->wiov = (struct iovec *)req->iov;
	req->wiovcnt = req->iovcnt;
	if (req->lo == req->offset && req->hi == end &&
	    eng_iov_aligned(req->iov, req->iovcnt, 0, req->length, req->layer->mem_align,
			    req->layer->dio_align)) {
		write_issue(req);
		return;
	}
	req->wiov = req->wiov_inline;
	req->wiovcnt = 1;
	if (posix_memalign(&req->bounce, FMT_PAGE, req->hi - req->lo)) {
		req->bounce = NULL;
		req->result = -ENOMEM;
		write_end(req);
		return;
	}
	memset(req->bounce, 0, req->hi - req->lo);
	req->wiov_inline[0] = (struct iovec){req->bounce, req->hi - req->lo};
	req->parts = 1;
	head_end = req->lo < req->offset ? req->lo + first : req->lo;
	tail = req->hi > end ? req->hi - last : req->hi;
	if (head_end >= tail && head_end > req->lo) {
		read_edge(req, req->lo, req->hi);
	} else {
		if (head_end > req->lo)
			read_edge(req, req->lo, head_end);
		if (tail < req->hi)
			read_edge(req, tail, req->hi);
	}
	edge_ended(req, 0);
}

static void take_place(struct eng_req *req)
{
	struct eng_disk *disk = req->disk;
	uint32_t bits = disk->block_bits;

	req->layer = eng_disk_enter(disk, &req->ordinal);
	req->locked = true;
	if (eng_rangelock_lock(&disk->locks, &req->lock, req->offset >> bits,
			       (req->offset + req->length - 1) >> bits))
		lock_granted(&req->lock);
}

void eng_write_start(struct eng_req *req)
{
	take_place(req);
}

/* --- write-zeroes and discard --- */

static const uint8_t zeros[1u << FMT_BLOCK_BITS_MAX] __attribute__((aligned(4096)));

static void zero_part_ended(struct eng_req *req, int result);

static void zero_edge_done(struct eng_req *sub)
{
	struct eng_req *req = sub->parent;
	int r = sub->result;

	free(sub);
	zero_part_ended(req, r);
}

/* A part of a block: zeros written as data, in the same place in the cut's order (T3). */
static void zero_edge(struct eng_req *req, uint64_t from, uint64_t to)
{
	struct eng_req *sub = make_sub(req, ENG_WRITE, (void *)zeros, from, to, zero_edge_done);

	req->parts++;
	if (!sub) {
		zero_part_ended(req, -ENOMEM);
		return;
	}
	sub->layer = req->layer;
	sub->ordinal = req->ordinal;
	eng_req_begin(sub);
	write_locked(sub);
}

/* The map's side of a zero run: a block that owns a slot in this layer keeps it (T17). */
static int zero_map(struct eng_req *req, uint64_t block, uint64_t count)
{
	uint32_t run;
	int r = 0;

	for (uint64_t b = block, end = block + count; r == 0 && b < end; b += run) {
		uint32_t max = end - b < UINT32_MAX ? (uint32_t)(end - b) : UINT32_MAX;
		struct eng_map_entry e = own_entry(req, b, max, &run);

		e.layer = req->ordinal;
		e.state = ENG_MAP_ZERO;
		r = eng_map_put(req->disk->map, b, run, e);
	}
	return r;
}

/* Whole blocks: mappings and no data. */
static int zero_blocks(struct eng_req *req, uint64_t block, uint64_t count)
{
	int r = 0;

	while (r == 0 && count) {
		struct fmt_run run = {
			.block = block,
			.slot = FMT_SLOT_NONE,
			.kind = FMT_RUN_ZERO,
			.count = count < FMT_RUN_COUNT_MAX ? (uint32_t)count : FMT_RUN_COUNT_MAX,
		};

		r = eng_map_reserve(req->disk->map, block, run.count);
		if (r == 0) {
			publish(req, &run);
			r = req->result;
		}
		if (r == 0)
			r = zero_map(req, block, run.count);
		block += run.count;
		count -= run.count;
	}
	return r;
}

static void zero_part_ended(struct eng_req *req, int result)
{
	if (result < 0 && req->result == 0)
		req->result = result;
	if (--req->parts == 0) {
		req->layer->dirty_gen++;
		write_end(req);
	}
}

static void msg_punched(struct eng_msg *msg)
{
	struct eng_part *part = (struct eng_part *)((char *)msg - offsetof(struct eng_part, msg));
	struct eng_req *req = part->req;
	int r = (int)part->result;

	eng_part_put(req->disk->queue, part);
	zero_part_ended(req, r);
}

static void task_punch(struct eng_task *task)
{
	struct eng_part *part = (struct eng_part *)((char *)task - offsetof(struct eng_part, task));
	struct eng_req *req = part->req;

	part->result = eng_io_punch(req->disk->io, req->layer->file, req->offset, req->length);
	part->msg.run = msg_punched;
	eng_queue_post(req->disk->queue, &part->msg);
}

static void zero_raw(struct eng_req *req)
{
	struct eng_part *part = eng_part_get(req->disk->queue);

	if (!part) {
		zero_part_ended(req, -ENOMEM);
		return;
	}
	part->req = req;
	part->task.run = task_punch;
	eng_pool_submit(req->disk->pool, ENG_POOL_URGENT, &part->task);
}

static void zero_locked(struct eng_req *req)
{
	struct eng_disk *disk = req->disk;
	uint64_t bs = 1ull << disk->block_bits, end = req->offset + req->length;
	uint64_t lo = (req->offset + bs - 1) / bs * bs, hi = end / bs * bs;

	if (end == disk->size) /* the disk's last block is whole even where the disk is not */
		hi = (end + bs - 1) / bs * bs;
	if (is_poisoned(req)) {
		req->result = -ENOTRECOVERABLE;
		write_end(req);
		return;
	}
	if (is_raw(req)) {
		req->parts = 1;
		zero_raw(req);
		return;
	}
	if (lo < hi && !promise(req, 0, (uint32_t)((hi - lo) / bs / FMT_RUN_COUNT_MAX) + 1))
		return;
	req->parts = 1;
	if (lo >= hi) {
		uint64_t middle = lo < end ? lo : end; /* inside one block, or across a border */

		if (middle > req->offset)
			zero_edge(req, req->offset, middle);
		if (middle < end)
			zero_edge(req, middle, end);
	} else {
		int r = zero_blocks(req, lo / bs, (hi - lo) / bs);

		if (r < 0)
			req->result = r;
		if (req->offset < lo)
			zero_edge(req, req->offset, lo);
		if (end > hi)
			zero_edge(req, hi, end);
	}
	zero_part_ended(req, 0);
}

void eng_zero_start(struct eng_req *req)
{
	take_place(req);
}
