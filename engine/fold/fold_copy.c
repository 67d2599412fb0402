/* SPDX-License-Identifier: MIT */
/*
 * fold_copy.c - see fold_copy.h.
 *
 * The indexes are merged twice: to know how much there is, and to collect what is to be copied. What was
 * collected is put in the order in which the inputs have it, and so read from front to back. Blocks of
 * zeros become holes where they come in long runs, and are written where they do not.
 *
 * Memory: 16 bytes a block for a million blocks at a time, and one window.
 */
#include "engine/fold/fold_copy.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "engine/fold/fold_merge.h"
#include "engine/fold/fold_move.h"
#include "engine/layer/gone.h"

#define BATCH (1u << 20)  /* blocks collected before they are copied */
#define CHUNK (1u << 20)  /* bytes of zeros written at a time */
#define PUNCH (64u << 10) /* bytes of zeros from which on a hole is cheaper */

struct copy {
	struct eng_fold_copy *c;
	struct fmt_error *err;
	struct eng_fold_merge merge;
	struct eng_fold_move move;
	uint32_t bits;
	struct eng_fold_item *items; /* BATCH */
	uint32_t nitems;
	uint64_t zero, nzero; /* a run of blocks of zeros under construction */
	uint64_t total;       /* bytes */
	uint8_t *zeros;       /* CHUNK */
};

static int fail(const struct copy *k, int r, const char *what)
{
	return fmt_fail(k->err, r, "%s: cannot %s: %s", k->c->path, what, strerror(-r));
}

static int check_stop(const struct copy *k)
{
	if (k->c->stop && k->c->stop(k->c->arg))
		return fmt_fail(k->err, -ECANCELED, "the fold was stopped");
	return 0;
}

/* --- into the base --- */

/* The part of @count blocks from @block that lies within the disk. */
static uint64_t clip(const struct copy *k, uint64_t block, uint64_t count)
{
	uint64_t at = block << k->bits, len = count << k->bits;

	return len < k->c->size - at ? len : k->c->size - at;
}

static bool is_hole(const struct copy *k, uint64_t at, uint64_t len)
{
	uint64_t data, hole;
	int r = eng_io_next_data(k->c->io, k->move.out, at, &data, &hole);

	return r == -ENXIO || (r == 0 && data >= at + len);
}

static int write_zeros(struct copy *k, uint64_t at, uint64_t len)
{
	int r = 0;

	while (r == 0 && len) {
		uint64_t n = len < CHUNK ? len : CHUNK;

		r = eng_io_pwrite(k->c->io, k->move.out, k->zeros, n, at);
		if (r < 0)
			return fail(k, r, "write zeros");
		at += n;
		len -= n;
		r = check_stop(k);
	}
	return r;
}

/* The run under construction. */
static int put_zeros(struct copy *k)
{
	uint64_t at = k->zero << k->bits, len = k->nzero ? clip(k, k->zero, k->nzero) : 0;
	int r = -EOPNOTSUPP;

	if (!len || is_hole(k, at, len)) {
		k->nzero = 0;
		return 0;
	}
	if (len >= PUNCH)
		r = eng_io_punch(k->c->io, k->move.out, at, len);
	if (r == -EOPNOTSUPP)
		r = write_zeros(k, at, len);
	else if (r < 0)
		r = fail(k, r, "make a hole");
	k->nzero = 0;
	return r;
}

/* --- out of the overlays --- */

static int by_slot(const void *a, const void *b)
{
	const struct eng_fold_item *x = a, *y = b;

	if (x->input != y->input)
		return x->input < y->input ? -1 : 1;
	return x->slot < y->slot ? -1 : x->slot > y->slot;
}

/* What was collected. */
static int copy_items(struct copy *k)
{
	uint32_t n = k->nitems;

	k->nitems = 0;
	qsort(k->items, n, sizeof(*k->items), by_slot);
	return eng_fold_move(&k->move, k->items, n);
}

/* --- the merge --- */

static void count_window(struct copy *k)
{
	const struct eng_fold_merge *m = &k->merge;
	uint64_t n = 0;

	for (uint32_t i = 0; i < m->length; i++)
		n += m->owner[i] && m->slot[i] != ENG_FOLD_ZERO;
	k->total += n << k->bits;
	eng_progress_start(k->c->progress, k->total);
}

static int take_block(struct copy *k, uint32_t i)
{
	const struct eng_fold_merge *m = &k->merge;
	uint64_t block = m->first + i;
	int r = 0;

	if (m->slot[i] == ENG_FOLD_ZERO) {
		if (k->nzero && k->zero + k->nzero != block)
			r = put_zeros(k);
		if (!k->nzero)
			k->zero = block;
		k->nzero++;
		return r;
	}
	if (m->slot[i] >= m->layers[m->owner[i] - 1]->hdr.slots)
		return fmt_fail(k->err, -EUCLEAN,
				"%s: slot %" PRIu32 " is past the last one (IX-5)",
				m->layers[m->owner[i] - 1]->path, m->slot[i]);
	r = eng_gone_refuse(m->layers[m->owner[i] - 1], block, m->slot[i], k->err);
	if (r < 0)
		return r;
	k->items[k->nitems++] = (struct eng_fold_item){block, m->slot[i], m->owner[i] - 1u};
	return k->nitems == BATCH ? copy_items(k) : 0;
}

static int each_window(struct copy *k, bool count)
{
	struct eng_fold_merge *m = &k->merge;
	uint64_t at = 0;
	int r;

	while ((r = eng_fold_merge_next(m, at)) > 0) {
		r = check_stop(k);
		if (r == 0 && count)
			count_window(k);
		for (uint32_t i = 0; r == 0 && !count && i < m->length; i++)
			if (m->owner[i])
				r = take_block(k, i);
		if (r < 0)
			break;
		at = m->first + m->length;
	}
	return r;
}

/* --- all of it --- */

/* Long enough, before anything is written: a write never decides how long the base is. */
static int grow(struct copy *k)
{
	struct eng_stat st;
	int r = eng_io_fstat(k->c->io, k->move.out, &st);

	if (r < 0 || st.size >= k->c->size)
		return r < 0 ? fail(k, r, "look at it") : 0;
	r = eng_io_truncate(k->c->io, k->move.out, k->c->size);
	if (r == 0)
		r = eng_io_fdatasync(k->c->io, k->move.out);
	return r < 0 ? fail(k, r, "grow") : 0;
}

static int start_move(struct copy *k)
{
	struct eng_fold_copy *c = k->c;
	int r;

	k->move = (struct eng_fold_move){
		.io = c->io,
		.hold = c->hold,
		.inputs = c->inputs,
		.indexes = k->merge.indexes,
		.count = c->count,
		.path = c->path,
		.end = c->size,
		.direct = c->direct,
		.stop = c->stop,
		.arg = c->arg,
		.progress = c->progress,
		.err = k->err,
	};
	r = eng_fold_move_init(&k->move);
	return r == 0 ? grow(k) : r;
}

static int prepare(struct copy *k)
{
	struct eng_fold_copy *c = k->c;
	int r;

	k->bits = c->inputs[0]->block_bits;
	k->merge = (struct eng_fold_merge){
		.layers = c->inputs,
		.count = c->count,
		.blocks = (c->size + (1ull << k->bits) - 1) >> k->bits,
		.err = k->err,
	};
	k->items = malloc(BATCH * sizeof(*k->items));
	if (posix_memalign((void **)&k->zeros, FMT_PAGE, CHUNK))
		k->zeros = NULL;
	if (!k->items || !k->zeros)
		return fmt_fail(k->err, -ENOMEM, "no memory to fold %u layers", c->count);
	memset(k->zeros, 0, CHUNK);
	r = eng_fold_merge_init(&k->merge);
	return r == 0 ? start_move(k) : r;
}

int eng_fold_copy(struct eng_fold_copy *c, struct fmt_error *err)
{
	struct copy k = {.c = c, .err = err};
	int r = prepare(&k);

	if (r == 0)
		r = each_window(&k, true);
	if (r == 0)
		r = each_window(&k, false);
	if (r == 0)
		r = copy_items(&k);
	if (r == 0)
		r = put_zeros(&k);
	if (r == 0)
		r = eng_fold_move_sync(&k.move);
	eng_fold_move_fini(&k.move);
	eng_fold_merge_fini(&k.merge);
	free(k.items);
	free(k.zeros);
	return r;
}
