/* SPDX-License-Identifier: MIT */
/*
 * fold_copy.c - see fold_copy.h.
 *
 * The indexes are merged twice: to know how much there is, and to collect what is to be copied. What was
 * collected is put in the order in which the inputs have it, and so read from front to back; the writes
 * go to the page cache, which puts them in the base's order. Blocks of zeros become holes where they
 * come in long runs, and are written where they do not.
 *
 * Memory: 16 bytes a block for a million blocks at a time, and one window.
 */
#include "engine/fold_copy.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "engine/fold_merge.h"

#define BATCH (1u << 20)     /* blocks collected before they are copied */
#define CHUNK (1u << 20)     /* bytes of an input read at a time */
#define GAP   (128u << 10)   /* bytes of an input that are read rather than left out */
#define PUNCH (64u << 10)    /* bytes of zeros from which on a hole is cheaper */
#define SYNC  (256ull << 20) /* bytes written between two syncs */

/* A block to be copied. */
struct item {
	uint64_t block;
	uint32_t slot, input;
};

struct copy {
	struct eng_fold_copy *c;
	struct fmt_error *err;
	struct eng_fold_merge merge;
	struct eng_file **files; /* of the inputs, buffered */
	struct eng_file *out;
	uint32_t bits;
	struct item *items; /* BATCH */
	uint32_t nitems;
	uint64_t zero, nzero;     /* a run of blocks of zeros under construction */
	uint64_t unsynced, total; /* bytes */
	uint8_t *buf;             /* CHUNK */
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

/* So that a fold of any length leaves little for one sync to wait for, of ours and of guests. */
static int note_written(struct copy *k, uint64_t len)
{
	int r;

	k->unsynced += len;
	if (k->unsynced < SYNC)
		return 0;
	k->unsynced = 0;
	r = eng_io_fdatasync(k->c->io, k->out);
	return r < 0 ? fail(k, r, "sync") : 0;
}

static int write_blocks(struct copy *k, const uint8_t *data, uint64_t block, uint32_t count)
{
	uint64_t len = clip(k, block, count);
	int r = eng_io_pwrite(k->c->io, k->out, data, len, block << k->bits);

	return r < 0 ? fail(k, r, "write") : note_written(k, len);
}

static bool is_hole(const struct copy *k, uint64_t at, uint64_t len)
{
	uint64_t data, hole;
	int r = eng_io_next_data(k->c->io, k->out, at, &data, &hole);

	return r == -ENXIO || (r == 0 && data >= at + len);
}

static int write_zeros(struct copy *k, uint64_t block, uint64_t count)
{
	uint32_t most = CHUNK >> k->bits;
	int r = 0;

	memset(k->buf, 0, CHUNK);
	while (r == 0 && count) {
		uint32_t n = count < most ? (uint32_t)count : most;

		r = write_blocks(k, k->buf, block, n);
		block += n;
		count -= n;
		if (r == 0)
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
		r = eng_io_punch(k->c->io, k->out, at, len);
	if (r == -EOPNOTSUPP)
		r = write_zeros(k, k->zero, k->nzero);
	else if (r < 0)
		r = fail(k, r, "make a hole");
	k->nzero = 0;
	return r;
}

/* --- out of the overlays --- */

/* P6: what is rotten does not get where nothing would tell. */
static int check_block(const struct copy *k, const struct item *it, const uint8_t *data)
{
	struct eng_index *index = k->merge.indexes[it->input];
	uint64_t want;
	int r = eng_index_csum(index, it->slot, &want);

	if (r == -EAGAIN) {
		r = eng_index_load_csum(index, it->slot, k->err);
		if (r == 0)
			r = eng_index_csum(index, it->slot, &want);
	}
	if (r == 0 && fmt_block_csum(data, (size_t)1 << k->bits) != want)
		r = fmt_fail(k->err, -EBADMSG,
			     "%s: the data of slot %" PRIu32 " does not match its checksum (CS-2)",
			     k->c->inputs[it->input]->path, it->slot);
	return r;
}

/* Items from @from on that are read at once; *@len: from the first one's slot to the last one's end. */
static uint32_t count_together(const struct copy *k, uint32_t from, size_t *len)
{
	const struct item *first = &k->items[from], *last = first;
	uint32_t n = 1;

	for (; from + n < k->nitems; n++) {
		const struct item *it = &k->items[from + n];

		if (it->input != first->input ||
		    (uint64_t)(it->slot - first->slot + 1) << k->bits > CHUNK ||
		    (uint64_t)(it->slot - last->slot - 1) << k->bits > GAP)
			break;
		last = it;
	}
	*len = (size_t)(last->slot - first->slot + 1) << k->bits;
	return n;
}

/* Writes @count items whose data was read from the first one's slot on; neighbours together. */
static int write_items(struct copy *k, const struct item *items, uint32_t count)
{
	uint32_t i = 0, n;
	int r = 0;

	while (r == 0 && i < count) {
		const uint8_t *data = k->buf + ((size_t)(items[i].slot - items[0].slot) << k->bits);

		r = check_block(k, &items[i], data);
		for (n = 1; r == 0 && i + n < count && items[i + n].block == items[i].block + n &&
			    items[i + n].slot == items[i].slot + n;
		     n++)
			r = check_block(k, &items[i + n], data + ((size_t)n << k->bits));
		if (r == 0)
			r = write_blocks(k, data, items[i].block, n);
		i += n;
	}
	return r;
}

static int by_slot(const void *a, const void *b)
{
	const struct item *x = a, *y = b;

	if (x->input != y->input)
		return x->input < y->input ? -1 : 1;
	return x->slot < y->slot ? -1 : x->slot > y->slot;
}

/* What was collected. */
static int copy_items(struct copy *k)
{
	struct eng_fold_copy *c = k->c;
	uint32_t n;
	int r = 0;

	qsort(k->items, k->nitems, sizeof(*k->items), by_slot);
	for (uint32_t i = 0; r == 0 && i < k->nitems; i += n) {
		const struct item *first = &k->items[i];
		struct eng_layer *layer = c->inputs[first->input];
		size_t len;
		ssize_t got;

		n = count_together(k, i, &len);
		got = eng_io_pread(c->io, k->files[first->input], k->buf, len,
				   eng_layer_slot_offset(layer, first->slot));
		if (got < (ssize_t)len)
			return fmt_fail(k->err, got < 0 ? (int)got : -EUCLEAN,
					"%s: cannot read %zu bytes of slot %" PRIu32 ": %s",
					layer->path, len, first->slot,
					got < 0 ? strerror((int)-got) : "the file ends");
		r = write_items(k, first, n);
		eng_progress_add(c->progress, (uint64_t)n << k->bits);
		if (r == 0)
			r = check_stop(k);
		if (r == 0)
			r = eng_progress_wait(c->progress, c->io, len, layer->path, k->err);
	}
	k->nitems = 0;
	return r;
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
	k->items[k->nitems++] = (struct item){block, m->slot[i], m->owner[i] - 1u};
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

static int open_files(struct copy *k)
{
	struct eng_fold_copy *c = k->c;
	int r = 0;

	for (uint32_t i = 0; r == 0 && i < c->count; i++) {
		r = eng_io_open(c->io, c->inputs[i]->path, ENG_OPEN_NOFOLLOW, &k->files[i]);
		if (r < 0)
			fmt_fail(k->err, r, "%s: %s", c->inputs[i]->path, strerror(-r));
	}
	if (r == 0)
		r = eng_io_open(c->io, c->path, ENG_OPEN_WRITE | ENG_OPEN_NOFOLLOW, &k->out);
	return r < 0 ? fail(k, r, "open") : 0;
}

/* Long enough, before anything is written: a write never decides how long the base is. */
static int grow(struct copy *k)
{
	struct eng_stat st;
	int r = eng_io_fstat(k->c->io, k->out, &st);

	if (r < 0 || st.size >= k->c->size)
		return r < 0 ? fail(k, r, "look at it") : 0;
	r = eng_io_truncate(k->c->io, k->out, k->c->size);
	if (r == 0)
		r = eng_io_fdatasync(k->c->io, k->out);
	return r < 0 ? fail(k, r, "grow") : 0;
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
	k->files = calloc(c->count, sizeof(struct eng_file *));
	k->items = malloc(BATCH * sizeof(*k->items));
	if (posix_memalign((void **)&k->buf, FMT_PAGE, CHUNK))
		k->buf = NULL;
	if (!k->files || !k->items || !k->buf)
		return fmt_fail(k->err, -ENOMEM, "no memory to fold %u layers", c->count);
	r = eng_fold_merge_init(&k->merge);
	if (r == 0)
		r = open_files(k);
	return r == 0 ? grow(k) : r;
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
	if (r == 0) {
		r = eng_io_fdatasync(c->io, k.out);
		if (r < 0)
			fail(&k, r, "sync");
	}
	for (uint32_t i = 0; k.files && i < c->count; i++)
		eng_io_close(c->io, k.files[i]);
	eng_io_close(c->io, k.out);
	eng_fold_merge_fini(&k.merge);
	free(k.files);
	free(k.items);
	free(k.buf);
	return r;
}
