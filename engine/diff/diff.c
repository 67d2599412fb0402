/* SPDX-License-Identifier: MIT */
/*
 * diff.c - see diff.h.
 *
 * First, with the disk's shape lock held (no cut, fold or attach comes between), the layers that make the
 * difference are found in the catalog and opened, and what only the disk's worker or the head's log can
 * tell is collected. Then the lock goes, and the indexes of what is sealed are read: until they have
 * been, every disk that the two chains have layers of counts a reader, so that no fold takes one away (FO-5).
 */
#include "engine/diff/diff.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/diff/diff_live.h"
#include "engine/diff/diff_merge.h"
#include "engine/fold/fold.h"
#include "engine/layer/index.h"

#define BUSY_NS (30ull * 1000000000) /* longest wait for a cut to end */
#define TRIES   50u                  /* of a look at a chain that changes */
#define NAP_NS  1000000u

#define MERGE_LEAST 1024u      /* runs */
#define MERGE_MOST  (4u << 20) /* of 32 bytes while they are merged */

/* One layer to collect, and of which blocks. */
struct part {
	struct eng_layer *layer;
	uint64_t first, last; /* blocks of the disk: [first, last) */
	bool is_head;         /* of a disk that is not attached: its log may grow */
};

struct side {
	struct cat_layer *rows; /* base first */
	size_t count;
	uint64_t size; /* bytes */
	bool is_now;
};

struct diff {
	struct eng_store *store;
	struct cat_disk disk;
	struct fmt_error *err;
	struct eng_blocks *set;
	struct eng_entry *entry;
	struct eng_disk *attached; /* for writing, or NULL */
	struct side sides[2];
	size_t common; /* layers at the bottom that both stand on */
	struct part *parts;
	size_t count, cap;
	struct eng_entry **held; /* disks with one reader more by us */
	size_t held_count;
};

/* --- what one layer holds --- */

struct collect {
	struct eng_blocks_adder adder;
	struct eng_merge *merge; /* instead of the adder; or NULL */
	uint64_t first, last;    /* of the disk's blocks */
	uint32_t up, down; /* a layer's block is 1 << up of the disk's, or one of them 1 << down */
};

static int collect_range(struct collect *c, uint64_t first, uint64_t last)
{
	first = first << c->up >> c->down;
	last = ((last << c->up) + (1ull << c->down) - 1) >> c->down;
	first = first > c->first ? first : c->first;
	last = last < c->last ? last : c->last;
	if (first >= last)
		return 0;
	return c->merge ? eng_merge_add(c->merge, first, last - first)
			: eng_blocks_adder_add(&c->adder, first, last - first);
}

static int collect_run(void *arg, const struct fmt_run *run)
{
	return collect_range(arg, run->block, run->block + run->count);
}

/* Whatever the file does not call a hole: a base knows no changes. */
static int collect_base(struct collect *c, struct eng_layer *base, uint32_t disk_bits,
			struct fmt_error *err)
{
	uint64_t end = eng_base_end(base), at = c->first << disk_bits, len;
	enum eng_extent_state state;
	uint32_t depth;
	int r = 0;

	end = end >> disk_bits < c->last ? end : c->last << disk_bits;
	c->up = 0;
	c->down = disk_bits;
	for (; r == 0 && at < end; at += len) {
		r = eng_base_extent(base, end, at, err, &len, &state, &depth);
		if (r == 0 && len == 0)
			r = fmt_fail(err, -EIO, "%s: tells nothing about byte %llu",
				     base->data_path, (unsigned long long)at);
		if (r == 0 && state != ENG_EXTENT_HOLE)
			r = collect_range(c, at, at + len < end ? at + len : end);
	}
	return r;
}

/* To @merge, as a row, when that is not NULL, else to @set. */
static int collect_layer(struct eng_blocks *set, struct eng_merge *merge, struct eng_layer *layer,
			 uint32_t disk_bits, uint64_t first, uint64_t last, struct fmt_error *err)
{
	uint32_t bits = layer->block_bits;
	struct collect c = {
		.merge = merge,
		.first = first,
		.last = last,
		.up = bits > disk_bits ? bits - disk_bits : 0,
		.down = bits < disk_bits ? disk_bits - bits : 0,
	};
	struct eng_index *index;
	uint64_t from = first << c.down >> c.up, to = last << c.down >> c.up;
	int r;

	eng_blocks_adder_init(&c.adder, set);
	if (layer->kind != FMT_KIND_OVERLAY) {
		r = collect_base(&c, layer, disk_bits, err);
	} else if (atomic_load(&layer->sealed)) {
		r = eng_layer_index(layer, err, &index);
		if (r == 0)
			r = eng_index_each(index, from, to + 1 - from, collect_run, &c, err);
	} else {
		r = eng_log_replay(layer, collect_run, &c, err);
	}
	if (r == 0)
		r = merge ? eng_merge_end_row(merge) : eng_blocks_adder_end(&c.adder);
	return r;
}

int eng_diff_add_layer(struct eng_blocks *set, struct eng_layer *layer, struct fmt_error *err)
{
	return collect_layer(set, NULL, layer, layer->block_bits, 0,
			     FMT_SIZE_MAX >> layer->block_bits, err);
}

/* --- holding chains still (FO-5) --- */

static bool is_held(const struct diff *d, const struct fmt_uuid *disk)
{
	for (size_t i = 0; i < d->held_count; i++)
		if (fmt_uuid_equal(&d->held[i]->id, disk))
			return true;
	return false;
}

/* -EAGAIN: a fold of that disk is about to commit. */
static int hold(struct diff *d, const struct fmt_uuid *disk)
{
	struct eng_entry **p = realloc(d->held, (d->held_count + 1) * sizeof(struct eng_entry *));
	struct eng_entry *e;
	int r = 0;

	if (!p)
		return -ENOMEM;
	d->held = p;
	pthread_mutex_lock(&d->store->lock);
	e = eng_entry_get_locked(d->store, disk);
	if (!e)
		r = -ENOMEM;
	else if (e->folding)
		r = -EAGAIN;
	else
		e->readers++;
	pthread_mutex_unlock(&d->store->lock);
	if (r == 0)
		p[d->held_count++] = e;
	return r;
}

static int hold_side(struct diff *d, const struct side *side)
{
	int r = 0;

	for (size_t i = 0; r == 0 && i < side->count; i++)
		if (!is_held(d, &side->rows[i].disk))
			r = hold(d, &side->rows[i].disk);
	return r;
}

static void let_go(struct diff *d)
{
	for (size_t i = 0; i < d->held_count; i++) {
		pthread_mutex_lock(&d->store->lock);
		d->held[i]->readers--;
		pthread_mutex_unlock(&d->store->lock);
		eng_folder_want(d->store->folder, &d->held[i]->id);
	}
	d->held_count = 0;
}

/* --- the two chains --- */

static int read_side(struct diff *d, const struct eng_state *state, struct side *side)
{
	struct eng_catalog *cat = d->store->catalog;
	int r;

	free(side->rows);
	side->rows = NULL;
	side->count = 0;
	side->is_now = fmt_uuid_is_none(&state->layer);
	r = eng_catalog_chain(cat, side->is_now ? &d->disk.head : &state->layer, &side->rows,
			      &side->count);
	side->size = state->size ? state->size : side->is_now ? d->disk.size : 0;
	return r;
}

static int read_chains(struct diff *d, const struct eng_state *from, const struct eng_state *to)
{
	const struct side *a = &d->sides[0], *b = &d->sides[1];
	int r = eng_catalog_get_disk_id(d->store->catalog, &d->disk.id, &d->disk);

	if (r == 0)
		r = read_side(d, from, &d->sides[0]);
	if (r == 0)
		r = read_side(d, to, &d->sides[1]);
	if (r < 0)
		return r;
	d->common = 0;
	while (d->common < a->count && d->common < b->count &&
	       fmt_uuid_equal(&a->rows[d->common].id, &b->rows[d->common].id))
		d->common++;
	return 0;
}

/* The chains as they stay: read again once they are held. */
static int hold_chains(struct diff *d, const struct eng_state *from, const struct eng_state *to)
{
	int r = read_chains(d, from, to);

	for (int i = 0; r == 0 && i < 2; i++)
		r = hold_side(d, &d->sides[i]);
	if (r == 0)
		r = read_chains(d, from, to);
	for (int i = 0; r == 0 && i < 2; i++)
		for (size_t j = 0; r == 0 && j < d->sides[i].count; j++)
			if (!is_held(d, &d->sides[i].rows[j].disk))
				r = -EAGAIN;
	return r;
}

static int add_part(struct diff *d, const struct cat_layer *row, uint64_t first, uint64_t last)
{
	struct eng_layer *layer = NULL;
	int r;

	if (d->count == d->cap) {
		size_t cap = d->cap ? d->cap * 2 : 16;
		struct part *p = realloc(d->parts, cap * sizeof(*p));

		if (!p)
			return -ENOMEM;
		d->parts = p;
		d->cap = cap;
	}
	r = eng_store_open_layer(d->store, row, false, d->err, &layer);
	if (r == 0)
		d->parts[d->count++] = (struct part){
			.layer = layer,
			.first = first,
			.last = last,
			.is_head = row->kind == FMT_KIND_OVERLAY &&
				   row->state != CAT_LAYER_HARDENED &&
				   row->state != CAT_LAYER_SEALED,
		};
	return r;
}

static void drop_parts(struct diff *d)
{
	for (size_t i = 0; i < d->count; i++)
		eng_layer_put(d->parts[i].layer);
	d->count = 0;
}

/* Whether the files do not say all that the layer holds, but the worker does (DF-3). */
static bool is_live(const struct diff *d, const struct side *side, size_t i)
{
	const struct cat_layer *row = &side->rows[i];

	return d->attached && side->is_now && row->kind == FMT_KIND_OVERLAY &&
	       fmt_uuid_equal(&row->disk, &d->disk.id) &&
	       (i + 1 == side->count || row->state == CAT_LAYER_PENDING ||
		row->state == CAT_LAYER_ACTIVE);
}

/* The layers of @side from @first on; the worker's part is collected at once. */
static int open_side(struct diff *d, const struct side *side)
{
	uint64_t blocks = FMT_SIZE_MAX >> d->disk.block_bits;
	int r = 0;

	for (size_t i = d->common; r == 0 && i < side->count; i++) {
		if (is_live(d, side, i))
			return eng_diff_live(d->attached, &side->rows[i].id, d->set);
		r = add_part(d, &side->rows[i], 0, blocks);
	}
	return r;
}

/* DF-6: of what only the longer one has, all that it holds, from whatever layer. */
static int open_beyond(struct diff *d)
{
	uint64_t a = d->sides[0].size, b = d->sides[1].size, first, last;
	const struct side *longer = &d->sides[a < b];
	uint32_t bits = d->disk.block_bits;
	int r = 0;

	if (a == b || !a || !b)
		return 0;
	first = (a < b ? a : b) >> bits;
	last = ((a < b ? b : a) + (1ull << bits) - 1) >> bits;
	for (size_t i = 0; r == 0 && i < d->common; i++)
		if (!is_live(d, longer, i))
			r = add_part(d, &longer->rows[i], first, last);
	return r;
}

/* A size that was not told is the layer's own. */
static int learn_size(struct diff *d, struct side *side)
{
	const struct cat_layer *top = &side->rows[side->count - 1];
	struct eng_layer *layer = NULL;
	int r;

	if (side->size)
		return 0;
	r = eng_store_open_layer(d->store, top, false, d->err, &layer);
	if (r == 0)
		side->size = atomic_load(&layer->size);
	eng_layer_put(layer);
	return r;
}

/* Attached for writing: it stays while we have the shape lock; a view of it comes and goes. */
static struct eng_disk *find_attached(struct diff *d)
{
	struct eng_disk *disk;

	pthread_mutex_lock(&d->store->lock);
	disk = d->entry->disk;
	if (disk && disk->read_only)
		disk = NULL;
	pthread_mutex_unlock(&d->store->lock);
	return disk;
}

static int collect_claimed(struct diff *d, const struct eng_state *from, const struct eng_state *to)
{
	int r = hold_chains(d, from, to);

	if (r < 0)
		return r;
	d->attached = find_attached(d);
	if (d->entry->refused && (d->sides[0].is_now || d->sides[1].is_now))
		return fmt_fail(d->err, -ENOTRECOVERABLE,
				"%s/%s: recovery refused it, or it was not detached cleanly",
				d->disk.vm_name, d->disk.name);
	r = learn_size(d, &d->sides[0]);
	if (r == 0)
		r = learn_size(d, &d->sides[1]);
	for (int i = 0; r == 0 && i < 2; i++)
		r = open_side(d, &d->sides[i]);
	if (r == 0)
		r = open_beyond(d);
	/* The head's log is read while nobody can attach and append to it. */
	for (size_t i = 0; r == 0 && i < d->count; i++)
		if (d->parts[i].is_head) {
			r = collect_layer(d->set, NULL, d->parts[i].layer, d->disk.block_bits,
					  d->parts[i].first, d->parts[i].last, d->err);
			eng_layer_put(d->parts[i].layer);
			d->parts[i--] = d->parts[--d->count];
		}
	return r;
}

/* --- the whole --- */

/* What a fold that came between would explain: of another disk that the chain goes through. */
static bool is_passing(int r, unsigned tries)
{
	return r == -EAGAIN || (tries < 3 && (r == -ENOENT || r == -EUCLEAN));
}

static int collect(struct diff *d, const struct eng_state *from, const struct eng_state *to)
{
	struct eng_io *io = d->store->io;
	int r = -EAGAIN;

	for (unsigned i = 0; i < TRIES && is_passing(r, i); i++) {
		if (i)
			eng_io_sleep_ns(io, NAP_NS);
		drop_parts(d);
		let_go(d);
		r = eng_entry_claim(d->store, &d->disk.id, eng_io_now_ns(io) + BUSY_NS, &d->entry);
		if (r < 0)
			return fmt_fail(d->err, r, "%s/%s: busy", d->disk.vm_name, d->disk.name);
		r = collect_claimed(d, from, to);
		eng_entry_release(d->entry);
	}
	return r;
}

/* Ascending, and its runs counted. */
static bool is_row(const struct part *part)
{
	return part->layer->kind == FMT_KIND_OVERLAY && atomic_load(&part->layer->sealed);
}

/* Several layers with many runs are merged before they become a set, while that takes little memory. */
static bool is_worth_merging(const struct diff *d, uint64_t *runs)
{
	size_t rows = 0;

	*runs = 0;
	for (size_t i = 0; i < d->count; i++)
		if (is_row(&d->parts[i]) && *runs <= MERGE_MOST) {
			rows++;
			*runs += d->parts[i].layer->hdr.index_runs;
		}
	return rows > 1 && *runs >= MERGE_LEAST && *runs <= MERGE_MOST;
}

static int collect_parts(struct diff *d)
{
	struct eng_merge merge = {.cap = 0};
	uint64_t runs;
	bool merging = is_worth_merging(d, &runs);
	int r = merging ? eng_merge_init(&merge, runs) : 0;

	for (size_t i = 0; r == 0 && i < d->count; i++)
		r = collect_layer(d->set, merging && is_row(&d->parts[i]) ? &merge : NULL,
				  d->parts[i].layer, d->disk.block_bits, d->parts[i].first,
				  d->parts[i].last, d->err);
	if (r == 0 && merging)
		r = eng_merge_finish(&merge, d->set);
	eng_merge_fini(&merge);
	return r;
}

/* Takes *@set over where @r is 0. */
static int end(struct diff *d, int r, struct fmt_error *err, struct eng_blocks **set)
{
	drop_parts(d);
	let_go(d);
	free(d->parts);
	free(d->held);
	free(d->sides[0].rows);
	free(d->sides[1].rows);
	if (r < 0) {
		eng_blocks_destroy(d->set);
		return fmt_fail(err, r, "%s", d->err->text[0] ? d->err->text : strerror(-r));
	}
	*set = d->set;
	return 0;
}

int eng_diff(struct eng_store *store, const struct cat_disk *disk, const struct eng_state *from,
	     const struct eng_state *to, struct fmt_error *err, struct eng_blocks **ret)
{
	struct diff d = {.store = store, .disk = *disk};
	struct fmt_error why = {""};
	int r;

	d.err = &why;
	if (eng_entry_is_mine(store, &disk->id))
		return fmt_fail(err, -EDEADLK, "%s/%s: asked by the thread that works on it",
				disk->vm_name, disk->name);
	r = eng_blocks_create(&d.set);
	if (r == 0)
		r = collect(&d, from, to);
	if (r == 0)
		r = collect_parts(&d);
	if (r == 0)
		r = eng_blocks_or(d.set, from->extra);
	if (r == 0)
		r = eng_blocks_or(d.set, to->extra);
	return end(&d, r, err, ret);
}

static int open_aside(struct diff *d, const struct eng_state *state, const struct fmt_uuid *top)
{
	const struct eng_state to = {.layer = *top};
	const struct side *side = &d->sides[0];
	int r = hold_chains(d, state, &to);

	for (size_t i = d->common; r == 0 && i < side->count; i++)
		r = add_part(d, &side->rows[i], 0, FMT_SIZE_MAX >> d->disk.block_bits);
	return r;
}

int eng_diff_aside(struct eng_store *store, const struct cat_disk *disk,
		   const struct eng_state *state, const struct fmt_uuid *top, struct fmt_error *err,
		   struct fmt_uuid *common, struct eng_blocks **ret)
{
	struct diff d = {.store = store, .disk = *disk};
	struct fmt_uuid last = {{0}};
	struct fmt_error why = {""};
	int r = eng_blocks_create(&d.set), again = -EAGAIN;

	d.err = &why;
	for (unsigned i = 0; r == 0 && i < TRIES && is_passing(again, i); i++) {
		if (i)
			eng_io_sleep_ns(store->io, NAP_NS);
		drop_parts(&d);
		let_go(&d);
		again = open_aside(&d, state, top);
	}
	if (r == 0)
		r = again;
	if (r == 0)
		r = collect_parts(&d);
	if (r == 0)
		r = eng_blocks_or(d.set, state->extra);
	if (r == 0 && d.common)
		last = d.sides[0].rows[d.common - 1].id;
	r = end(&d, r, err, ret);
	if (r == 0)
		*common = last;
	return r;
}
