/* SPDX-License-Identifier: MIT */
/*
 * map.c - the third pass: that each slot has one owner (RU-4, T17), and the map that the log's runs make
 * (RU-3): halves of the log are mapped and laid over each other, the newer on the older, down to single
 * runs. Memory follows the runs, never the blocks. One thread a check.
 */
#include "fsck/layer.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

int fsck_runs_add(struct fsck *f, struct fsck_runs *runs, const struct fsck_run *run)
{
	if (runs->count == runs->cap) {
		size_t cap = runs->cap ? runs->cap * 2 : 64;
		struct fsck_run *p = realloc(runs->run, cap * sizeof(*p));

		if (!p)
			return fsck_cannot(f, -ENOMEM, "%s: no memory for %zu runs", f->where, cap);
		runs->run = p;
		runs->cap = cap;
	}
	runs->run[runs->count++] = *run;
	return 0;
}

/* --- slots (RU-4) --- */

static int by_slot(const void *a, const void *b)
{
	const struct fsck_run *x = a, *y = b;

	if (x->slot != y->slot)
		return x->slot < y->slot ? -1 : 1;
	return x->block < y->block ? -1 : x->block > y->block;
}

int fsck_runs_by_slot(struct fsck *f, const struct fsck_runs *runs, struct fsck_runs *ret)
{
	for (size_t i = 0; i < runs->count; i++) {
		if (runs->run[i].kind == FMT_RUN_DATA && fsck_runs_add(f, ret, &runs->run[i]) < 0)
			return -ENOMEM;
	}
	if (ret->count)
		qsort(ret->run, ret->count, sizeof(*ret->run), by_slot);
	return 0;
}

/* Of the slots from @slot up to @end, those of segments; @*next is where to go on looking. */
static uint64_t in_segments(const struct fsck_layer *l, uint64_t slot, uint64_t end, size_t *next)
{
	uint64_t n = 0;

	while (*next < l->segment_count && l->segments[*next].end <= slot)
		++*next;
	for (size_t i = *next; i < l->segment_count && l->segments[i].slot < end; i++) {
		uint64_t from = l->segments[i].slot > slot ? l->segments[i].slot : slot;
		uint64_t to = l->segments[i].end < end ? l->segments[i].end : end;

		n += to - from;
	}
	return n;
}

/*
 * Runs in order of slots. As long as no slot has two owners, all runs over one slot agree about its
 * block, so the one that reaches farthest speaks for them.
 */
static uint64_t check_owners(const struct fsck_layer *l, const struct fsck_runs *runs)
{
	const struct fsck_run *far = NULL;
	uint64_t named = 0, end = 0;
	size_t segment = 0;

	for (size_t i = 0; i < runs->count; i++) {
		const struct fsck_run *r = &runs->run[i];
		uint64_t r_end = (uint64_t)r->slot + r->count;

		if (r->slot < end && far->block + (r->slot - far->slot) != r->block)
			fsck_found(l->f, PR_SLOT_TWICE,
				   "slot %" PRIu32 " for block %" PRIu64 " and for block %" PRIu64,
				   r->slot, far->block + (r->slot - far->slot), r->block);
		if (in_segments(l, r->slot, r_end, &segment))
			fsck_found(l->f, PR_SLOT_IN_LOG,
				   "slots %" PRIu32 "+%" PRIu32 " for block %" PRIu64, r->slot,
				   r->count, r->block);
		if (r_end > end) {
			named += r_end - (r->slot > end ? r->slot : end);
			end = r_end;
			far = r;
		}
	}
	return named;
}

static int check_slots(const struct fsck_layer *l)
{
	struct fsck_runs runs = {0};
	uint64_t used = 0, slots;
	size_t segment = 0;
	int r = fsck_runs_by_slot(l->f, &l->log, &runs);

	if (r == 0) {
		used = check_owners(l, &runs) + in_segments(l, 0, l->log_slots, &segment);
		/* Writes and segments that came to nothing; only a sealed layer takes no more. */
		slots = l->log_slots;
		if (l->hdr.state == FMT_STATE_SEALED && used < slots)
			fsck_leaked(l->f, PR_SLOT_UNNAMED, (slots - used) << l->hdr.block_bits,
				    "%" PRIu64 " of %" PRIu64, slots - used, slots);
	}
	free(runs.run);
	return r;
}

/* --- the map (RU-3) --- */

static uint64_t run_end(const struct fsck_run *r)
{
	return r->block + r->count;
}

/* What of @r lies from block @from up to @to. */
static struct fsck_run part(const struct fsck_run *r, uint64_t from, uint64_t to)
{
	struct fsck_run p = *r;

	p.block = from;
	p.count = (uint32_t)(to - from);
	if (p.kind == FMT_RUN_DATA)
		p.slot += (uint32_t)(from - r->block);
	return p;
}

/* @new over @old; both are sorted, and neither overlaps itself. */
static int lay_over(struct fsck *f, const struct fsck_runs *old, const struct fsck_runs *new,
		    struct fsck_runs *ret)
{
	size_t i = 0;
	uint64_t from = 0; /* what lies before it is done */

	for (size_t j = 0; j <= new->count; j++) {
		uint64_t stop = j < new->count ? new->run[j].block : UINT64_MAX;

		for (; i < old->count && old->run[i].block < stop; i++) {
			const struct fsck_run *o = &old->run[i];
			uint64_t at = o->block > from ? o->block : from;
			uint64_t to = run_end(o) < stop ? run_end(o) : stop;
			struct fsck_run p;

			if (at < to) {
				p = part(o, at, to);
				if (fsck_runs_add(f, ret, &p) < 0)
					return -ENOMEM;
			}
			if (run_end(o) > stop)
				break; /* it may go on behind the new run */
		}
		if (j == new->count)
			break;
		if (fsck_runs_add(f, ret, &new->run[j]) < 0)
			return -ENOMEM;
		from = run_end(&new->run[j]);
	}
	return 0;
}

static int build(struct fsck *f, const struct fsck_run *runs, size_t count, struct fsck_runs *ret)
{
	struct fsck_runs old = {0}, new = {0};
	int r;

	if (count == 1)
		return runs->dropped ? 0 : fsck_runs_add(f, ret, runs);
	r = build(f, runs, count / 2, &old);
	if (r == 0)
		r = build(f, runs + count / 2, count - count / 2, &new);
	if (r == 0)
		r = lay_over(f, &old, &new, ret);
	free(old.run);
	free(new.run);
	return r;
}

/* SP-4: the last block's bytes past the disk's end. */
static int check_last_block(struct fsck_layer *l)
{
	size_t bs = (size_t)1 << l->hdr.block_bits, used = l->hdr.size & (bs - 1), i;
	const struct fsck_run *last = l->map.count ? &l->map.run[l->map.count - 1] : NULL;
	uint64_t slot;
	int r;

	if (!used || !last || last->kind != FMT_RUN_DATA || run_end(last) != l->blocks)
		return 0;
	slot = (uint64_t)last->slot + last->count - 1;
	r = fsck_read(l, l->buf, bs, l->hdr.data_offset + (slot << l->hdr.block_bits));
	if (r < 0)
		return r;
	for (i = used; i < bs && !l->buf[i]; i++)
		;
	if (i < bs)
		fsck_found(l->f, PR_SLOT_TAIL,
			   "block %" PRIu64 " in slot %" PRIu64 ", byte %zu of it", l->blocks - 1,
			   slot, i);
	return 0;
}

int fsck_map(struct fsck_layer *l)
{
	int r = check_slots(l);

	if (r == 0 && l->log.count)
		r = build(l->f, l->log.run, l->log.count, &l->map);
	return r < 0 ? r : check_last_block(l);
}
