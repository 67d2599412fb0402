/* SPDX-License-Identifier: MIT */
/*
 * fold_refpoints.c - see fold_refpoints.h.
 *
 * A point at input k of a fold says: changed since is its set, and everything above k. The result's top is
 * that of the topmost input, so a point moved there has to remember the inputs above k itself. Nothing
 * here is ever lost by doing it twice, and too much is never wrong (P6). A point's set changes only in a
 * move (RP-12), and one thread at a time moves a disk's: a point that is still where it was has still the
 * set that was read.
 */
#include "engine/fold/fold_refpoints.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/diff/diff.h"

#define COARSE_STEP 2u  /* bits that a set is made coarser by at a time */
#define COARSE_MAX  40u /* a group is larger than any disk */

/* A point of one disk, and the set that it shall have. */
struct move {
	struct fmt_uuid refpoint, disk, layer;
	struct eng_blocks *set; /* under construction */
	bool lost;
	void *bytes;
	size_t len;
};

struct eng_refpoint_moves {
	struct fmt_uuid *layers; /* whose points are moved */
	size_t layer_count;
	struct move *moves;
	size_t count, cap;
};

/* --- the points --- */

static int add_move(struct eng_refpoint_moves *m, const struct cat_refpoint_disk *row)
{
	if (m->count == m->cap) {
		size_t cap = m->cap ? m->cap * 2 : 8;
		struct move *p = reallocarray(m->moves, cap, sizeof(*p));

		if (!p)
			return -ENOMEM;
		m->moves = p;
		m->cap = cap;
	}
	m->moves[m->count++] = (struct move){
		.refpoint = row->refpoint,
		.disk = row->disk,
		.layer = row->layer,
	};
	return 0;
}

static int find_points(struct eng_catalog *cat, struct eng_refpoint_moves *m)
{
	int r = 0;

	for (size_t i = 0; r == 0 && i < m->layer_count; i++) {
		struct cat_refpoint_disk *rows = NULL;
		size_t n = 0;

		r = eng_catalog_list_layer_refpoints(cat, &m->layers[i], &rows, &n);
		for (size_t j = 0; r == 0 && j < n; j++)
			r = add_move(m, &rows[j]);
		free(rows);
	}
	return r;
}

/* --- the sets --- */

struct coarse {
	struct eng_blocks_adder adder;
	uint64_t mask;   /* of the blocks within a group */
	uint64_t end;    /* of the last range */
	uint64_t lo, hi; /* groups that touch, to be added */
};

static int note_end(void *arg, uint64_t first, uint64_t count)
{
	((struct coarse *)arg)->end = first + count;
	return 0;
}

static int add_groups(void *arg, uint64_t first, uint64_t count)
{
	struct coarse *c = arg;
	uint64_t lo = first & ~c->mask, hi = (first + count + c->mask) & ~c->mask;
	int r = 0;

	hi = hi < c->end ? hi : c->end;
	if (lo > c->hi) {
		r = eng_blocks_adder_add(&c->adder, c->lo, c->hi - c->lo);
		c->lo = lo;
	}
	c->hi = hi;
	return r;
}

/* RP-17: groups of 1 << @bits blocks count as a whole. */
static int make_coarse(struct eng_blocks **set, unsigned bits)
{
	struct coarse c = {.mask = (1ull << bits) - 1};
	struct eng_blocks *made = NULL;
	int r = eng_blocks_create(&made);

	if (r < 0)
		return r;
	eng_blocks_adder_init(&c.adder, made);
	r = eng_blocks_each(*set, 0, UINT64_MAX, note_end, &c);
	if (r == 0)
		r = eng_blocks_each(*set, 0, UINT64_MAX, add_groups, &c);
	if (r == 0)
		r = eng_blocks_adder_add(&c.adder, c.lo, c.hi - c.lo);
	if (r == 0)
		r = eng_blocks_adder_end(&c.adder);
	if (r < 0) {
		eng_blocks_destroy(made);
		return r;
	}
	eng_blocks_destroy(*set);
	*set = made;
	return 0;
}

static int encode_within(struct eng_blocks **set, size_t limit, void **bytes, size_t *len)
{
	for (unsigned bits = COARSE_STEP;; bits += COARSE_STEP) {
		void *p = NULL;
		size_t n = 0;
		int r = eng_blocks_encode(*set, &p, &n);

		if (r == 0 && (n <= limit || bits > COARSE_MAX)) {
			*bytes = p;
			*len = n;
			return 0;
		}
		free(p);
		if (r < 0 && r != -EFBIG)
			return r;
		r = make_coarse(set, bits);
		if (r < 0)
			return r;
	}
}

/* What it has saved so far. RP-14: a set that says nothing any more is no reason to say too little. */
static int add_saved(struct eng_store *store, struct move *mv)
{
	struct cat_refpoint_disk row;
	struct eng_blocks *saved = NULL;
	struct fmt_error why = {""};
	void *bytes = NULL;
	size_t len = 0;
	int r = eng_catalog_get_refpoint_disk(store->catalog, &mv->refpoint, &mv->disk, &row,
					      &bytes, &len);

	if (r == -ENOENT)
		return 0; /* it is gone: so will its move be */
	if (r == 0 && bytes)
		r = eng_blocks_decode(bytes, len, &why, &saved);
	free(bytes);
	if (r == -EBADMSG || r == -EUCLEAN || r == -ENOTSUP) {
		mv->lost = true;
		return 0;
	}
	if (r == 0)
		r = eng_blocks_or(mv->set, saved);
	eng_blocks_destroy(saved);
	return r;
}

static int make_set(struct eng_store *store, struct move *mv, const struct eng_blocks *above,
		    size_t limit)
{
	int r = eng_blocks_create(&mv->set);

	if (r == 0)
		r = eng_blocks_or(mv->set, above);
	if (r == 0)
		r = add_saved(store, mv);
	if (r == 0 && !mv->lost)
		r = encode_within(&mv->set, limit, &mv->bytes, &mv->len);
	eng_blocks_destroy(mv->set); /* one at a time in memory, and their bytes */
	mv->set = NULL;
	return r;
}

static size_t limit_of(const struct eng_refpoint_moves *m)
{
	size_t share = ENG_REFPOINT_FOLD_MAX / (m->count ? m->count : 1);

	return share < ENG_REFPOINT_SET_MAX ? share : ENG_REFPOINT_SET_MAX;
}

/* For every i, from the top down: above the points of m->layers[i] are @above_them[i] and up. */
static int make_sets(struct eng_store *store, struct eng_refpoint_moves *m,
		     struct eng_layer *const *above_them, struct fmt_error *err)
{
	struct eng_blocks *above = NULL;
	int r = eng_blocks_create(&above);

	for (size_t i = m->layer_count; r == 0 && i-- > 0;) {
		r = eng_diff_add_layer(above, above_them[i], err);
		for (size_t j = 0; r == 0 && j < m->count; j++)
			if (fmt_uuid_equal(&m->moves[j].layer, &m->layers[i]))
				r = make_set(store, &m->moves[j], above, limit_of(m));
	}
	eng_blocks_destroy(above);
	return r;
}

/* --- the move --- */

static int moves_create(size_t layers, struct eng_refpoint_moves **ret)
{
	struct eng_refpoint_moves *m = calloc(1, sizeof(*m));

	if (!m)
		return -ENOMEM;
	m->layers = calloc(layers + 1, sizeof(*m->layers));
	if (!m->layers) {
		free(m);
		return -ENOMEM;
	}
	m->layer_count = layers;
	*ret = m;
	return 0;
}

int eng_refpoint_moves_prepare(struct eng_store *store, const struct fmt_uuid *beneath,
			       struct eng_layer *const *inputs, size_t count, struct fmt_error *err,
			       struct eng_refpoint_moves **ret)
{
	struct eng_refpoint_moves *m = NULL;
	size_t first = beneath ? 1 : 0;
	int r = moves_create(count - 1 + first, &m);

	if (r < 0)
		return r;
	if (beneath)
		m->layers[0] = *beneath;
	for (size_t i = 0; i + 1 < count; i++)
		m->layers[first + i] = inputs[i]->id;
	r = find_points(store->catalog, m);
	if (r == 0 && m->count)
		r = make_sets(store, m, beneath ? inputs : inputs + 1, err);
	if (r < 0) {
		eng_refpoint_moves_destroy(m);
		return r;
	}
	*ret = m;
	return 0;
}

static const struct move *find_move(const struct eng_refpoint_moves *m,
				    const struct cat_refpoint_disk *row)
{
	for (size_t i = 0; i < m->count; i++)
		if (fmt_uuid_equal(&m->moves[i].refpoint, &row->refpoint) &&
		    fmt_uuid_equal(&m->moves[i].disk, &row->disk) &&
		    fmt_uuid_equal(&m->moves[i].layer, &row->layer))
			return &m->moves[i];
	return NULL;
}

static int put_one(struct eng_catalog *cat, const struct eng_refpoint_moves *m,
		   const struct cat_refpoint_disk *row, const struct fmt_uuid *result)
{
	static const struct fmt_uuid none;
	const struct move *mv = find_move(m, row);

	if (!mv) /* RP-12 */
		return -ESTALE;
	if (mv->lost)
		return eng_catalog_set_refpoint_state(cat, &row->refpoint, &row->disk, &none, NULL,
						      0);
	return eng_catalog_set_refpoint_state(cat, &row->refpoint, &row->disk, result, mv->bytes,
					      mv->len);
}

int eng_refpoint_moves_put(struct eng_catalog *cat, const struct eng_refpoint_moves *m,
			   const struct fmt_uuid *result)
{
	int r = 0;

	/* What is there now, not what was: points may have come and gone. */
	for (size_t i = 0; r == 0 && i < m->layer_count; i++) {
		struct cat_refpoint_disk *rows = NULL;
		size_t n = 0;

		r = eng_catalog_list_layer_refpoints(cat, &m->layers[i], &rows, &n);
		for (size_t j = 0; r == 0 && j < n; j++)
			r = put_one(cat, m, &rows[j], result);
		free(rows);
	}
	return r;
}

void eng_refpoint_moves_destroy(struct eng_refpoint_moves *m)
{
	if (!m)
		return;
	for (size_t i = 0; i < m->count; i++) {
		eng_blocks_destroy(m->moves[i].set);
		free(m->moves[i].bytes);
	}
	free(m->moves);
	free(m->layers);
	free(m);
}

/* --- ends of branches (RP-13) --- */

static int leave_end(struct eng_store *store, const struct cat_layer *row, struct fmt_error *err)
{
	struct eng_refpoint_moves *m = NULL;
	struct eng_layer *end = NULL;
	int r = moves_create(1, &m);

	if (r < 0)
		return r;
	m->layers[0] = row->id;
	r = find_points(store->catalog, m);
	if (r == 0)
		r = eng_store_open_layer(store, row, false, err, &end);
	if (r == 0) /* its points remember the layer itself: it stands above them from now on */
		r = make_sets(store, m, &end, err);
	eng_layer_put(end);
	if (r == -EBADMSG || r == -EUCLEAN) { /* RP-14: what it changed cannot be told */
		for (size_t i = 0; i < m->count; i++)
			m->moves[i].lost = true;
		r = 0;
	}
	if (r == 0)
		r = eng_catalog_begin(store->catalog);
	if (r == 0) {
		r = eng_refpoint_moves_put(store->catalog, m, &row->parent);
		if (r < 0)
			eng_catalog_rollback(store->catalog);
		else
			r = eng_catalog_commit(store->catalog, err);
	}
	eng_refpoint_moves_destroy(m);
	return r;
}

int eng_refpoint_leave_ends(struct eng_store *store, const struct fmt_uuid *disk,
			    struct fmt_error *err)
{
	struct cat_layer *rows = NULL;
	size_t n = 1;
	int r = 0;

	while (r == 0 && n) { /* the layer beneath may be one now */
		r = eng_catalog_list_refpoint_ends(store->catalog, disk, &rows, &n);
		for (size_t i = 0; r == 0 && i < n; i++)
			r = leave_end(store, &rows[i], err);
		free(rows);
		rows = NULL;
	}
	return r;
}

/* --- what a point says --- */

int eng_refpoint_state(struct eng_store *store, const struct fmt_uuid *refpoint,
		       const struct fmt_uuid *disk, struct fmt_error *err,
		       struct cat_refpoint_disk *ret, struct eng_blocks **saved)
{
	struct cat_refpoint_disk row;
	struct eng_blocks *set = NULL;
	struct fmt_error why = {""};
	void *bytes = NULL;
	size_t len = 0;
	int r = eng_catalog_get_refpoint_disk(store->catalog, refpoint, disk, &row, &bytes, &len);

	if (r < 0)
		return fmt_fail(err, r, "reference point: %s",
				r == -ENOENT ? "no such disk in it" : strerror(-r));
	if (fmt_uuid_is_none(&row.layer))
		r = fmt_fail(err, -ENODATA, "%s/%s: change tracking was lost (RP-15)", row.vm_name,
			     row.disk_name);
	if (r == 0 && bytes)
		r = eng_blocks_decode(bytes, len, &why, &set);
	free(bytes);
	if (r == -EBADMSG || r == -EUCLEAN || r == -ENOTSUP)
		r = fmt_fail(err, -ENODATA, "%s/%s: change tracking was lost: %s (RP-15)",
			     row.vm_name, row.disk_name, why.text);
	if (r < 0)
		return r;
	*ret = row;
	*saved = set;
	return 0;
}

int eng_refpoint_unmoved(struct eng_store *store, const struct fmt_uuid *refpoint,
			 const struct fmt_uuid *disk, const struct fmt_uuid *layer,
			 const struct eng_blocks *saved)
{
	struct cat_refpoint_disk row;
	struct eng_blocks *now = NULL;
	int r = eng_refpoint_state(store, refpoint, disk, NULL, &row, &now);

	if (r == 0 && (!fmt_uuid_equal(&row.layer, layer) ||
		       eng_blocks_cardinality(now) != eng_blocks_cardinality(saved)))
		r = -ENOENT;
	eng_blocks_destroy(now);
	return r;
}
