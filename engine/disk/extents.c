/* SPDX-License-Identifier: MIT */
/*
 * extents.c - block status: which parts of a disk hold data, in which layer (BQ-17 to BQ-21). Worker only,
 * but for the tasks.
 *
 * A walk from the request's start on: the map says what the overlays hold, the base's file what is below
 * them. What may wait is a pool task's: building a region from indexes, looking for the next region that
 * an index names at all, asking a base for its holes. A walk counts its tasks and its steps and ends
 * early when it has had its share; between slices the worker serves others.
 */
#include <errno.h>
#include <stdlib.h>

#include "engine/layer/index.h"
#include "engine/disk/part.h"
#include "engine/layer/qcow2.h"

#define TASKS  64u    /* tasks of one request */
#define LOOKS  32u    /* questions to the base's file in one task */
#define SLICE  65536u /* work on the worker in a row: blocks looked at, and */
#define STEP   64u    /* so much for a step of any length */
#define SLICES 64u    /* of one request */

/* The walk of one request; it lies in req->bounce and goes with it. */
struct walk {
	struct eng_req *req;
	uint64_t at, end; /* bytes; what is before @at has been told */
	uint32_t count, cap;
	uint32_t tasks, slices; /* left */
	uint64_t ready;         /* in this slice: the map knows the blocks before it */

	/* a task's: copied from the disk, whose fields are the worker's */
	const struct eng_layer *base;
	uint64_t base_end;
	struct eng_layer **layers; /* those with an index */
	uint32_t nlayers;
	uint64_t first, last;                /* base: bytes; indexes: blocks */
	struct eng_disk_extent found[LOOKS]; /* base */
	uint32_t nfound;
	int result;
	struct eng_task task;
	struct eng_msg msg;
};

static void walk_resume(struct eng_req *req, int result);

static struct walk *walk_of(struct eng_req *req)
{
	return req->bounce;
}

/* Adds @len bytes at the walk's place; false: the array is full. */
static bool add(struct walk *w, uint64_t len, uint32_t state, uint32_t layer)
{
	struct eng_disk_extent *e = (struct eng_disk_extent *)w->req->iov->iov_base + w->count;

	len = len < w->end - w->at ? len : w->end - w->at;
	if (w->count && e[-1].state == state && e[-1].layer == layer) {
		e[-1].length += len;
	} else if (w->count < w->cap) {
		*e = (struct eng_disk_extent){len, state, layer};
		w->count++;
	} else {
		return false;
	}
	w->at += len;
	return true;
}

/* --- what the base says --- */

uint64_t eng_base_end(const struct eng_layer *base)
{
	return base->kind == FMT_KIND_RAW     ? base->base_bytes
	       : base->kind == FMT_KIND_QCOW2 ? eng_qcow2_size(base->qcow2)
					      : 0;
}

static int qcow2_extent(struct eng_qcow2 *q, uint64_t offset, struct fmt_error *err, uint64_t *len,
			enum eng_extent_state *state, uint32_t *depth)
{
	enum eng_qcow2_state s;
	int r = eng_qcow2_extent(q, offset, err, len, &s, depth);

	if (r == 0)
		*state = s == ENG_QCOW2_DATA   ? ENG_EXTENT_DATA
			 : s == ENG_QCOW2_ZERO ? ENG_EXTENT_ZERO
					       : ENG_EXTENT_HOLE;
	return r;
}

int eng_base_extent(const struct eng_layer *base, uint64_t end, uint64_t offset,
		    struct fmt_error *err, uint64_t *len, enum eng_extent_state *state,
		    uint32_t *depth)
{
	uint64_t data = offset, hole = end;
	int r;

	if (base->kind == FMT_KIND_QCOW2)
		return qcow2_extent(base->qcow2, offset, err, len, state, depth);
	r = eng_io_next_data(base->io, base->file, offset, &data, &hole);
	if (r == -ENXIO) {
		data = end;
	} else if (r < 0) { /* the file cannot tell: data (P6) */
		data = offset;
		hole = end;
	}
	*state = data > offset ? ENG_EXTENT_HOLE : ENG_EXTENT_DATA;
	*len = (data > offset ? (data < end ? data : end) : (hole < end ? hole : end)) - offset;
	*depth = 0;
	return 0;
}

static void msg_base(struct eng_msg *msg)
{
	struct walk *w = (struct walk *)((char *)msg - offsetof(struct walk, msg));
	int r = w->nfound ? 0 : w->result; /* what is known counts; the rest is asked for again */

	for (uint32_t i = 0; i < w->nfound; i++)
		if (!add(w, w->found[i].length, w->found[i].state, 0))
			break;
	walk_resume(w->req, r);
}

static void task_base(struct eng_task *task)
{
	struct walk *w = (struct walk *)((char *)task - offsetof(struct walk, task));
	uint64_t at = w->first, len;
	enum eng_extent_state state;
	uint32_t depth;

	w->nfound = 0;
	w->result = 0;
	while (at < w->last && w->nfound < LOOKS) {
		w->result = eng_base_extent(w->base, w->base_end, at, NULL, &len, &state, &depth);
		if (w->result < 0)
			break;
		len = len < w->last - at ? len : w->last - at;
		w->found[w->nfound++] = (struct eng_disk_extent){.length = len, .state = state};
		at += len;
	}
	w->msg.run = msg_base;
	eng_queue_post(w->req->disk->queue, &w->msg);
}

/* --- what no sealed layer names (M4) --- */

static int stop_at(void *arg, const struct fmt_run *run)
{
	*(uint64_t *)arg = run->block;
	return 1;
}

/* Lowers w->last to the first block from w->first on that an index names. */
static void task_gap(struct eng_task *task)
{
	struct walk *w = (struct walk *)((char *)task - offsetof(struct walk, task));
	struct eng_index *index;
	int r = 0;

	for (uint32_t i = 0; i < w->nlayers && r >= 0 && w->last > w->first; i++) {
		if (w->layers[i]->kind != FMT_KIND_OVERLAY)
			continue;
		r = eng_layer_index(w->layers[i], NULL, &index);
		if (r == 0)
			r = eng_index_each(index, w->first, w->last - w->first, stop_at, &w->last,
					   NULL);
	}
	w->result = r < 0 ? r : 0;
	eng_queue_post(w->req->disk->queue, &w->msg);
}

static void msg_gap(struct eng_msg *msg)
{
	struct walk *w = (struct walk *)((char *)msg - offsetof(struct walk, msg));
	struct eng_disk *disk = w->req->disk;
	uint64_t region = w->first >> ENG_MAP_REGION_BITS, last = w->last >> ENG_MAP_REGION_BITS;

	free(w->layers);
	w->layers = NULL;
	/* Layers sealed meanwhile may have left the map (D-3), and were not asked. */
	if (w->result == 0 && w->nlayers == disk->indexed) {
		for (uint64_t r = region; r < last; r++)
			eng_map_set_built(disk->map, r);
		if (last == region && !eng_build_region(disk, region, w->req, walk_resume))
			return;
	}
	walk_resume(w->req, w->result);
}

static void submit(struct walk *w, void (*run)(struct eng_task *task))
{
	w->tasks--;
	w->task.run = run;
	eng_pool_submit(w->req->disk->pool, ENG_POOL_URGENT, &w->task);
}

/* Regions that hold the blocks [@block, @last), as far as they are as ready as the first. */
static uint64_t count_ready(const struct walk *w, uint64_t block, uint64_t last)
{
	uint64_t region = block >> ENG_MAP_REGION_BITS;

	return eng_build_count_ready(w->req->disk, region,
				     ((last - 1) >> ENG_MAP_REGION_BITS) + 1 - region);
}

/* Moves w->ready past @block, if the map knows it. */
static bool look_ahead(struct walk *w, uint64_t block, uint64_t last)
{
	uint64_t region = block >> ENG_MAP_REGION_BITS;

	if (!eng_build_ready(w->req->disk, region))
		return false;
	w->ready = (region + count_ready(w, block, last)) << ENG_MAP_REGION_BITS;
	return true;
}

enum step { AGAIN, WAIT, END };

/* The map does not know @block: the walk is resumed when it does. */
static enum step ask_indexes(struct walk *w, uint64_t block, uint64_t last)
{
	struct eng_disk *disk = w->req->disk;
	uint64_t region = block >> ENG_MAP_REGION_BITS, more = count_ready(w, block, last);

	w->layers = malloc(disk->indexed * sizeof(struct eng_layer *));
	if (!w->layers) {
		w->result = -ENOMEM;
		return END;
	}
	for (uint32_t i = 0; i < disk->indexed; i++)
		w->layers[i] = disk->layers[i];
	w->nlayers = disk->indexed;
	w->first = region << ENG_MAP_REGION_BITS;
	w->last = (region + more) << ENG_MAP_REGION_BITS;
	w->msg.run = msg_gap;
	submit(w, task_gap); /* the walk is the task's from here on */
	return WAIT;
}

/* --- the walk --- */

static enum step ask_base(struct walk *w, uint64_t len)
{
	struct eng_layer *base = w->req->disk->layers[0];
	uint64_t end = eng_base_end(base);

	if (w->at >= end)
		return add(w, len, ENG_EXTENT_HOLE, 0) ? AGAIN : END;
	if (w->count && !w->tasks)
		return END;
	w->first = w->at;
	w->last = w->at + len < end ? w->at + len : end;
	w->base_end = end;
	w->base = base;
	submit(w, task_base);
	return WAIT;
}

/* Tells the run at the walk's place. *@work: what that took. */
static enum step step(struct walk *w, uint32_t *work)
{
	struct eng_disk *disk = w->req->disk;
	uint32_t bits = disk->block_bits;
	uint64_t block = w->at >> bits, last = ((w->end - 1) >> bits) + 1, count, len;
	struct eng_map_entry e;

	if (w->at == w->end)
		return END;
	if (block >= w->ready && !look_ahead(w, block, last)) {
		if (w->count && !w->tasks)
			return END;
		return ask_indexes(w, block, last);
	}
	last = last < w->ready ? last : w->ready;
	e = eng_map_get_state(disk->map, block, last - block, &count);
	*work += STEP + (uint32_t)(count < ENG_MAP_REGION ? count : ENG_MAP_REGION) +
		 (uint32_t)(count >> ENG_MAP_REGION_BITS);
	len = ((block + count) << bits) - w->at;
	len = len < w->end - w->at ? len : w->end - w->at;
	if (e.state == ENG_MAP_NONE)
		return ask_base(w, len);
	return add(w, len, e.state == ENG_MAP_DATA ? ENG_EXTENT_DATA : ENG_EXTENT_ZERO, e.layer)
		       ? AGAIN
		       : END;
}

static void msg_slice(struct eng_msg *msg)
{
	struct walk *w = (struct walk *)((char *)msg - offsetof(struct walk, msg));

	walk_resume(w->req, 0);
}

static void walk_resume(struct eng_req *req, int result)
{
	struct walk *w = walk_of(req);
	enum step next = result < 0 ? END : AGAIN;
	uint32_t work = 0;

	w->result = result;
	w->ready = 0; /* regions may have been forgotten meanwhile */
	while (next == AGAIN && work < SLICE)
		next = step(w, &work);
	if (next == AGAIN && (w->slices || !w->count)) {
		w->slices -= w->slices != 0;
		w->msg.run = msg_slice;
		eng_queue_post(req->disk->queue, &w->msg);
	} else if (next != WAIT) {
		/* An error comes up again with the request that starts at it. */
		eng_req_end(req, w->count ? (int)w->count : w->result);
	}
}

void eng_extents_start(struct eng_req *req)
{
	size_t cap = req->iov->iov_len / sizeof(struct eng_disk_extent);
	struct walk *w = calloc(1, sizeof(*w));

	if (!w) {
		eng_req_end(req, -ENOMEM);
		return;
	}
	req->bounce = w;
	w->req = req;
	w->at = req->offset;
	w->end = req->offset + req->length;
	w->cap = cap < INT32_MAX ? (uint32_t)cap : INT32_MAX;
	w->tasks = TASKS;
	w->slices = SLICES;
	walk_resume(req, 0);
}
