/* SPDX-License-Identifier: MIT */
/*
 * punch.c - see punch.h.
 *
 * Both indexes are laid over each other in windows of blocks, those left out in which the upper layer
 * holds nothing: what both hold is a bit of the lower one's slots. Slots that the index does not name
 * are never taken: the log lies in some of them.
 */
#include "engine/fold/punch.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "engine/layer/index.h"

#define WINDOW       (1u << 18)   /* blocks looked at at a time */
#define PIECE        (4ull << 20) /* bytes punched at a time: readers of the file wait so long */
#define CHEAPER      16u          /* than reading: so many times the limit of a fold's reads */
#define SLEEP_MAX_NS 20000000ull

struct find {
	const struct eng_punch *p;
	struct fmt_error *err;
	uint64_t first;  /* block of the window */
	uint8_t *held;   /* by the upper layer: a bit a block of the window */
	uint8_t *masked; /* a bit a slot of the lower one */
	uint64_t slots;
	struct run *runs;
	size_t count, cap;
};

struct run {
	struct fmt_gone gone;
	bool old; /* some of it is gone already */
};

static int check_stop(const struct eng_punch *p, struct fmt_error *err)
{
	if (p->stop && p->stop(p->arg))
		return fmt_fail(err, -ECANCELED, "%s: the punch was stopped", p->lower->path);
	return 0;
}

/* --- what is masked --- */

static bool get_bit(const uint8_t *bits, uint64_t i)
{
	return bits[i / 8] >> i % 8 & 1;
}

static void set_bit(uint8_t *bits, uint64_t i)
{
	bits[i / 8] |= (uint8_t)(1u << i % 8);
}

static int note_block(void *arg, const struct fmt_run *run)
{
	*(uint64_t *)arg = run->block;
	return 1;
}

static int take_held(void *arg, const struct fmt_run *run)
{
	struct find *f = arg;

	for (uint32_t i = 0; i < run->count; i++)
		set_bit(f->held, run->block + i - f->first);
	return 0;
}

static int take_masked(void *arg, const struct fmt_run *run)
{
	struct find *f = arg;

	for (uint32_t i = 0; run->kind == FMT_RUN_DATA && i < run->count; i++)
		if (get_bit(f->held, run->block + i - f->first))
			set_bit(f->masked, (uint64_t)run->slot + i); /* below slots: RU-2 */
	return 0;
}

static int look_at_windows(struct find *f)
{
	uint64_t blocks = FMT_SIZE_MAX >> f->p->upper->block_bits, at = 0;
	struct eng_index *lower, *upper;
	int r = eng_layer_index(f->p->lower, f->err, &lower);

	if (r == 0)
		r = eng_layer_index(f->p->upper, f->err, &upper);
	while (r == 0 && at < blocks) {
		uint64_t next = blocks;

		r = eng_index_each(upper, at, blocks - at, note_block, &next, f->err);
		if (r < 0 || next == blocks)
			break;
		f->first = next;
		at = next + WINDOW;
		memset(f->held, 0, WINDOW / 8);
		r = eng_index_each(upper, f->first, WINDOW, take_held, f, f->err);
		if (r == 0)
			r = eng_index_each(lower, f->first, WINDOW, take_masked, f, f->err);
		if (r == 0)
			r = check_stop(f->p, f->err);
	}
	return r < 0 ? r : 0;
}

/* --- runs of it --- */

/* PU-2: what is gone must be masked, or somebody would miss it. */
static int check_gone(const struct find *f)
{
	const struct eng_gone *gone = f->p->lower->gone;

	for (uint32_t i = 0; gone && i < gone->count; i++)
		for (uint64_t j = 0; j < gone->run[i].count; j++)
			if (!get_bit(f->masked, gone->run[i].slot + j))
				return fmt_fail(f->err, -EUCLEAN,
						"%s: slot %" PRIu64 " is gone, and %s does not "
						"hold its block (PU-2)",
						f->p->lower->path, gone->run[i].slot + j,
						f->p->upper->path);
	return 0;
}

static int add_run(struct find *f, uint64_t slot, uint64_t count)
{
	struct run run = {.gone = {(uint32_t)slot, (uint32_t)count}};

	run.old = eng_gone_any(f->p->lower->gone, run.gone.slot, run.gone.count);
	if (!run.old && count << f->p->lower->block_bits < f->p->shortest)
		return 0;
	if (f->count == f->cap) {
		size_t cap = f->cap ? 2 * f->cap : 64;
		struct run *runs = realloc(f->runs, cap * sizeof(*runs));

		if (!runs)
			return fmt_fail(f->err, -ENOMEM, "%s: no memory for %zu runs",
					f->p->lower->path, cap);
		f->runs = runs;
		f->cap = cap;
	}
	f->runs[f->count++] = run;
	return 0;
}

static int collect(struct find *f)
{
	uint64_t from = 0;
	bool in = false;
	int r = 0;

	for (uint64_t i = 0; r == 0 && i <= f->slots; i++) {
		bool bit = i < f->slots && get_bit(f->masked, i);

		if (bit && !in)
			from = i;
		else if (!bit && in)
			r = add_run(f, from, i - from);
		in = bit;
	}
	return r;
}

static int by_worth(const void *a, const void *b)
{
	const struct run *x = a, *y = b;

	if (x->old != y->old)
		return x->old ? -1 : 1;
	return x->gone.count > y->gone.count ? -1 : x->gone.count < y->gone.count;
}

static int by_slot(const void *a, const void *b)
{
	const struct run *x = a, *y = b;

	return x->gone.slot < y->gone.slot ? -1 : x->gone.slot > y->gone.slot;
}

/* --- what the file has of it --- */

/* The next bytes of [*@at, @end) that are there; false: none. */
static bool next_there(const struct eng_punch *p, uint64_t *at, uint64_t end, uint64_t *len)
{
	uint64_t data, hole;
	int r = eng_io_next_data(p->io, p->lower->file, *at, &data, &hole);

	if (r == -ENXIO || (r == 0 && data >= end))
		return false;
	if (r < 0) { /* the file system cannot tell */
		data = *at;
		hole = end;
	}
	*at = data;
	*len = (hole < end ? hole : end) - data;
	return true;
}

static uint64_t count_there(const struct eng_punch *p, const struct fmt_gone *runs, uint32_t n)
{
	uint64_t sum = 0;

	for (uint32_t i = 0; i < n; i++) {
		uint64_t at = eng_layer_slot_offset(p->lower, runs[i].slot), len,
			 end = at + ((uint64_t)runs[i].count << p->lower->block_bits);

		for (; at < end && next_there(p, &at, end, &len); at += len)
			sum += len;
	}
	return sum;
}

static int make_list(struct find *f, struct eng_punch_list *ret)
{
	size_t n = f->count < f->p->most ? f->count : f->p->most;
	struct eng_punch_list list = {.count = (uint32_t)n};

	list.runs = malloc((n + 1) * sizeof(*list.runs));
	if (!list.runs)
		return fmt_fail(f->err, -ENOMEM, "%s: no memory for %zu runs", f->p->lower->path,
				n);
	if (n < f->count)
		qsort(f->runs, f->count, sizeof(*f->runs), by_worth);
	/* GO-1: it only grows. */
	if (n < f->count && f->runs[n].old) {
		free(list.runs);
		return fmt_fail(f->err, -ENOSPC, "%s: more than %zu runs are gone already",
				f->p->lower->path, n);
	}
	if (n < f->count)
		qsort(f->runs, n, sizeof(*f->runs), by_slot);
	for (size_t i = 0; i < n; i++)
		list.runs[i] = f->runs[i].gone;
	list.bytes = count_there(f->p, list.runs, list.count);
	*ret = list;
	return 0;
}

int eng_punch_find(const struct eng_punch *p, struct fmt_error *err, struct eng_punch_list *ret)
{
	struct find f = {.p = p, .err = err, .slots = p->lower->hdr.slots};
	int r = 0;

	f.held = malloc(WINDOW / 8);
	f.masked = calloc(f.slots / 8 + 1, 1);
	if (!f.held || !f.masked)
		r = fmt_fail(err, -ENOMEM, "%s: no memory to look for what is masked",
			     p->lower->path);
	if (r == 0 && p->lower->block_bits != p->upper->block_bits)
		r = fmt_fail(err, -EUCLEAN, "%s: its blocks are not those of %s", p->lower->path,
			     p->upper->path);
	if (r == 0)
		r = look_at_windows(&f);
	if (r == 0)
		r = check_gone(&f);
	if (r == 0)
		r = collect(&f);
	if (r == 0)
		r = make_list(&f, ret);
	free(f.held);
	free(f.masked);
	free(f.runs);
	return r;
}

/* --- giving it back --- */

/* So that @len bytes have taken as long since @start_ns as the limit wants. */
static int pace(const struct eng_punch *p, uint64_t len, uint64_t start_ns, struct fmt_error *err)
{
	for (;;) {
		uint64_t rate = p->rate ? atomic_load(p->rate) : 0, now = eng_io_now_ns(p->io);
		uint64_t due = start_ns;
		int r = check_stop(p, err);

		if (rate)
			due += (uint64_t)((double)len / CHEAPER * 1e9 / (double)rate);
		if (r < 0 || now >= due)
			return r;
		eng_io_sleep_ns(p->io, due - now < SLEEP_MAX_NS ? due - now : SLEEP_MAX_NS);
	}
}

int eng_punch_do(const struct eng_punch *p, struct fmt_error *err, uint64_t *done)
{
	const struct eng_gone *gone = p->lower->gone;
	int r = check_stop(p, err);

	for (uint32_t i = 0; gone && r == 0 && i < gone->count; i++) {
		uint64_t at = eng_layer_slot_offset(p->lower, gone->run[i].slot), len,
			 end = at + ((uint64_t)gone->run[i].count << p->lower->block_bits);

		for (; r == 0 && at < end && next_there(p, &at, end, &len); at += len) {
			uint64_t start = eng_io_now_ns(p->io);

			len = len < PIECE ? len : PIECE;
			r = eng_io_punch(p->io, p->lower->file, at, len);
			if (r < 0)
				return fmt_fail(err, r,
						"%s: cannot punch %" PRIu64 " bytes at %#" PRIx64
						": %s",
						p->lower->path, len, at, strerror(-r));
			*done += len;
			r = pace(p, len, start, err);
		}
	}
	return r;
}
