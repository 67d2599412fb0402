/* SPDX-License-Identifier: MIT */
/*
 * usage.c - see usage.h.
 *
 * Layers form trees by their parents (families). Some have referrers: the snapshot that froze them,
 * the disk whose head they are. A block of a layer is seen by those at it and above it, up to the
 * layers that hold it again. Two sets a layer: all that it holds (that masks what is below it), and
 * of that the data (that takes space). From the top down: @hides, what nobody at the layer or above
 * it sees of the layers below it. Then each layer's data is followed upwards to who sees it; where
 * every layer has a snapshot that is one step.
 */
#include "engine/space/usage.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/diff/blocks.h"
#include "engine/layer/gone.h"
#include "engine/layer/index.h"

#define UNIT_BITS FMT_BLOCK_BITS_MIN /* all sets count blocks of 4 KiB */
#define NONE      SIZE_MAX

struct node {
	struct cat_layer row;
	size_t parent, child, sibling; /* places in nodes[]; NONE */
	size_t family;                 /* place of the root */
	unsigned refs;
	uint64_t used, exclusive; /* of each referrer: units */
	uint64_t gone;            /* of its data, no longer there: units */
	struct eng_layer_usage layer;
	bool exact;      /* its sets are all that it holds */
	bool used_exact; /* and those of all beneath it */
	bool counted;    /* the family's results are there */

	/* while the family is counted */
	struct eng_blocks *all, *data, *visible;
	struct eng_blocks *hides; /* may be @all itself */
	bool unseen;              /* nobody at it or above it sees anything */
	bool hides_exact;
};

struct eng_usage {
	struct eng_store *store;
	struct node *nodes; /* by id */
	size_t count;
};

static int compare_ids(const void *a, const void *b)
{
	return memcmp(a, b, sizeof(struct fmt_uuid));
}

static size_t find(const struct eng_usage *u, const struct fmt_uuid *id)
{
	const struct node *n;

	if (fmt_uuid_is_none(id) || !u->count)
		return NONE;
	n = bsearch(id, u->nodes, u->count, sizeof(*n), compare_ids); /* the row begins with it */
	return n ? (size_t)(n - u->nodes) : NONE;
}

/* --- the catalog --- */

static int load_layers(struct eng_usage *u)
{
	struct cat_layer *rows = NULL;
	size_t n = 0;
	int r = eng_catalog_list_layers(u->store->catalog, NULL, &rows, &n);

	if (r == 0)
		u->nodes = calloc(n + 1, sizeof(*u->nodes));
	if (r == 0 && !u->nodes)
		r = -ENOMEM;
	for (size_t i = 0; r == 0 && i < n; i++)
		if (rows[i].state != CAT_LAYER_PENDING)
			u->nodes[u->count++].row = rows[i];
	free(rows);
	if (r < 0)
		return r;
	qsort(u->nodes, u->count, sizeof(*u->nodes), compare_ids);
	for (size_t i = 0; i < u->count; i++) {
		u->nodes[i].child = u->nodes[i].sibling = NONE;
		u->nodes[i].parent = find(u, &u->nodes[i].row.parent);
	}
	for (size_t i = 0; i < u->count; i++) {
		struct node *node = &u->nodes[i];

		if (node->parent == NONE)
			continue;
		node->sibling = u->nodes[node->parent].child;
		u->nodes[node->parent].child = i;
	}
	return 0;
}

static void add_ref(struct eng_usage *u, const struct fmt_uuid *layer)
{
	size_t i = find(u, layer);

	if (i != NONE)
		u->nodes[i].refs++;
}

static int load_refs(struct eng_usage *u)
{
	struct eng_catalog *cat = u->store->catalog;
	struct cat_snapshot_disk *members = NULL;
	struct cat_snapshot *snaps = NULL;
	struct cat_disk *disks = NULL;
	size_t n = 0, all = 0, count;
	int r = eng_catalog_list_disks(cat, NULL, &disks, &n);

	for (size_t i = 0; r == 0 && i < n; i++)
		add_ref(u, &disks[i].head);
	if (r == 0)
		r = eng_catalog_list_snapshots(cat, NULL, &snaps, &all);
	for (size_t i = 0; r == 0 && i < all; i++) {
		if (snaps[i].state != CAT_SNAPSHOT_COMPLETE)
			continue;
		r = eng_catalog_list_snapshot_disks(cat, &snaps[i].id, &members, &count);
		for (size_t j = 0; r == 0 && j < count; j++)
			if (!members[j].skipped)
				add_ref(u, &members[j].layer);
		free(members);
		members = NULL;
	}
	free(disks);
	free(snaps);
	return r;
}

/* A loop of parents has no root; its nodes get none, and are never counted (CT-11 is others' to find). */
static int find_families(struct eng_usage *u)
{
	for (size_t i = 0; i < u->count; i++) {
		size_t root = i, steps = 0;

		while (u->nodes[root].parent != NONE && steps++ <= u->count)
			root = u->nodes[root].parent;
		if (steps > u->count)
			return -EUCLEAN;
		u->nodes[i].family = root;
	}
	return 0;
}

int eng_usage_create(struct eng_store *store, struct eng_usage **ret)
{
	struct eng_usage *u = calloc(1, sizeof(*u));
	int r = -ENOMEM;

	if (!u)
		return r;
	u->store = store;
	r = load_layers(u);
	if (r == 0)
		r = load_refs(u);
	if (r == 0)
		r = find_families(u);
	if (r < 0)
		eng_usage_destroy(u);
	else
		*ret = u;
	return r;
}

/* --- what one layer holds --- */

struct collect {
	struct eng_blocks_adder all, data;
	uint32_t shift;
};

static int collect_run(void *arg, const struct fmt_run *run)
{
	struct collect *c = arg;
	uint64_t first = run->block << c->shift, count = (uint64_t)run->count << c->shift;
	int r = eng_blocks_adder_add(&c->all, first, count);

	return r < 0 || run->kind == FMT_RUN_ZERO ? r
						  : eng_blocks_adder_add(&c->data, first, count);
}

/* US-4: of a raw base what its file has allocated; a qcow2 is not the store's, and holds nothing here. */
static int collect_base(struct collect *c, struct eng_layer *base, struct fmt_error *err)
{
	uint64_t end = eng_base_end(base), at = 0, len = 0;
	enum eng_extent_state state;
	uint32_t depth;
	int r = 0;

	for (; r == 0 && at < end && base->kind == FMT_KIND_RAW; at += len) {
		struct fmt_run run = {.block = at >> UNIT_BITS, .kind = FMT_RUN_DATA};

		r = eng_base_extent(base, end, at, err, &len, &state, &depth);
		if (r < 0 || len == 0)
			return r < 0 ? r : -EIO;
		if (state != ENG_EXTENT_DATA)
			continue;
		for (uint64_t last = (at + len + 4095) >> UNIT_BITS; r == 0 && run.block < last;
		     run.block += run.count) {
			uint64_t left = last - run.block;

			run.count = left < FMT_RUN_COUNT_MAX ? (uint32_t)left : FMT_RUN_COUNT_MAX;
			r = collect_run(c, &run);
		}
	}
	return r;
}

static bool is_attached(struct eng_store *store, const struct fmt_uuid *disk)
{
	bool attached = false;

	pthread_mutex_lock(&store->lock);
	for (const struct eng_entry *e = store->entries; e; e = e->next)
		if (fmt_uuid_equal(&e->id, disk))
			attached = e->disk && !e->disk->read_only;
	pthread_mutex_unlock(&store->lock);
	return attached;
}

static int collect_layer(struct node *n, struct eng_layer *layer, struct fmt_error *err)
{
	struct eng_index *index;
	struct collect c = {.shift = 0};
	int r;

	eng_blocks_adder_init(&c.all, n->all);
	eng_blocks_adder_init(&c.data, n->data);
	if (layer->kind != FMT_KIND_OVERLAY) {
		r = collect_base(&c, layer, err);
	} else if (atomic_load(&layer->sealed)) {
		c.shift = layer->block_bits - UNIT_BITS;
		r = eng_layer_index(layer, err, &index);
		if (r == 0)
			r = eng_index_each(index, 0, FMT_SIZE_MAX >> layer->block_bits, collect_run,
					   &c, err);
	} else {
		c.shift = layer->block_bits - UNIT_BITS;
		r = eng_log_replay(layer, collect_run, &c, err);
	}
	if (r == 0)
		r = eng_blocks_adder_end(&c.all);
	return r < 0 ? r : eng_blocks_adder_end(&c.data);
}

/* US-5: what cannot be read counts as empty, and is no exact answer. -ENOMEM only. */
static int collect(struct eng_usage *u, struct node *n)
{
	struct fmt_error err = {""};
	struct eng_layer *layer = NULL;
	int r = eng_blocks_create(&n->all);

	n->used = n->exclusive = n->gone = 0; /* of a try before this */
	n->layer = (struct eng_layer_usage){0};
	n->unseen = false;
	if (r == 0)
		r = eng_blocks_create(&n->data);
	if (r < 0)
		return r;
	r = eng_store_open_layer(u->store, &n->row, false, &err, &layer);
	if (r == 0)
		r = collect_layer(n, layer, &err);
	if (r == 0 && layer->gone)
		n->gone = layer->gone->slots << (layer->block_bits - UNIT_BITS);
	n->exact = r == 0 &&
		   !(n->row.state == CAT_LAYER_ACTIVE && n->row.kind == FMT_KIND_OVERLAY &&
		     is_attached(u->store, &n->row.disk));
	eng_layer_put(layer);
	return r == -ENOMEM ? r : 0;
}

/* --- what is hidden from all at a layer and above it --- */

/* What every child hides that sees anything: *@ret NULL where there is none of them. */
static int common_of_children(const struct eng_usage *u, const struct node *n,
			      struct eng_blocks **ret, bool *exact)
{
	struct eng_blocks *common = NULL;
	int r = 0;

	for (size_t c = n->child; r == 0 && c != NONE; c = u->nodes[c].sibling) {
		const struct node *child = &u->nodes[c];

		if (child->unseen)
			continue;
		*exact = *exact && child->hides_exact;
		if (common)
			eng_blocks_and(common, child->hides);
		else
			r = eng_blocks_copy(child->hides, &common);
	}
	if (r < 0)
		eng_blocks_destroy(common);
	else
		*ret = common;
	return r;
}

static int find_hidden(struct eng_usage *u, struct node *n)
{
	struct eng_blocks *common = NULL;
	int r;

	n->hides = n->all;
	n->hides_exact = n->exact;
	if (n->refs)
		return 0;
	r = common_of_children(u, n, &common, &n->hides_exact);
	if (r < 0)
		return r;
	n->unseen = !common;
	if (common) {
		r = eng_blocks_or(common, n->all);
		n->hides = common;
	}
	return r;
}

/* --- who sees a layer's data --- */

static int follow(struct eng_usage *u, struct node *owner, size_t at, struct eng_blocks *set);

/* Several branches and nobody here: what one alone sees goes on there. Takes nothing. */
static int follow_branches(struct eng_usage *u, struct node *owner, const struct node *n,
			   const struct eng_blocks *set)
{
	struct eng_blocks *seen = NULL, *twice = NULL, *one = NULL;
	int r = eng_blocks_create(&seen);

	if (r == 0)
		r = eng_blocks_create(&twice);
	for (int pass = 0; r == 0 && pass < 2; pass++) {
		for (size_t c = n->child; r == 0 && c != NONE; c = u->nodes[c].sibling) {
			struct eng_blocks *both = NULL;

			if (u->nodes[c].unseen)
				continue;
			r = eng_blocks_copy(set, &one);
			if (r < 0)
				break;
			eng_blocks_andnot(one, u->nodes[c].hides);
			if (pass == 0) {
				r = eng_blocks_copy(one, &both);
				if (r == 0) {
					eng_blocks_and(both, seen);
					r = eng_blocks_or(twice, both);
				}
				if (r == 0)
					r = eng_blocks_or(seen, one);
				eng_blocks_destroy(both);
			} else {
				eng_blocks_andnot(one, twice);
				r = follow(u, owner, c, one);
			}
			eng_blocks_destroy(one);
			one = NULL;
		}
	}
	if (r == 0) {
		owner->layer.shared += eng_blocks_cardinality(twice);
		owner->layer.masked += eng_blocks_cardinality(set) - eng_blocks_cardinality(seen);
	}
	eng_blocks_destroy(seen);
	eng_blocks_destroy(twice);
	return r;
}

/* The referrers at @n see the whole set: alone what everything above it hides. */
static int settle(struct eng_usage *u, struct node *owner, struct node *n,
		  const struct eng_blocks *set)
{
	uint64_t count = eng_blocks_cardinality(set), alone = count;
	struct eng_blocks *common = NULL;
	bool exact = true;
	int r = 0;

	if (n->refs > 1) {
		owner->layer.shared += count;
		return 0;
	}
	r = common_of_children(u, n, &common, &exact);
	if (r < 0)
		return r;
	if (common)
		alone = eng_blocks_and_cardinality(set, common);
	owner->layer.exclusive += alone;
	owner->layer.shared += count - alone;
	owner->layer.exact = owner->layer.exact && exact;
	n->used_exact = n->used_exact && exact;
	n->exclusive += alone;
	eng_blocks_destroy(common);
	return 0;
}

/* Changes @set, which stays the caller's. */
static int follow(struct eng_usage *u, struct node *owner, size_t at, struct eng_blocks *set)
{
	for (;;) {
		struct node *n = &u->nodes[at];
		size_t only = NONE, seeing = 0;

		if (!eng_blocks_cardinality(set))
			return 0;
		if (n->refs)
			return settle(u, owner, n, set);
		for (size_t c = n->child; c != NONE; c = u->nodes[c].sibling) {
			if (u->nodes[c].unseen)
				continue;
			only = c;
			seeing++;
			owner->layer.exact = owner->layer.exact && u->nodes[c].hides_exact;
		}
		if (seeing > 1)
			return follow_branches(u, owner, n, set);
		if (!seeing) {
			owner->layer.masked += eng_blocks_cardinality(set);
			return 0;
		}
		owner->layer.masked += eng_blocks_and_cardinality(set, u->nodes[only].all);
		eng_blocks_andnot(set, u->nodes[only].all);
		at = only;
	}
}

static int attribute(struct eng_usage *u, size_t i)
{
	struct node *n = &u->nodes[i];
	struct eng_blocks *set = NULL;
	int r = eng_blocks_copy(n->data, &set);

	n->layer.exact = n->exact;
	n->layer.data = eng_blocks_cardinality(n->data);
	if (r == 0)
		r = follow(u, n, i, set);
	/* US-3: what is gone was masked, and takes no space. */
	if (r == 0 && n->gone <= n->layer.masked) {
		n->layer.data -= n->gone;
		n->layer.masked -= n->gone;
	}
	eng_blocks_destroy(set);
	return r;
}

/* What its top shows: the parent's, which the last child that comes takes over, without what it masks. */
static int find_visible(struct eng_usage *u, struct node *n)
{
	struct node *parent = n->parent == NONE ? NULL : &u->nodes[n->parent];
	int r = 0;

	if (!parent) {
		r = eng_blocks_create(&n->visible);
	} else if (n->sibling == NONE) {
		n->visible = parent->visible;
		parent->visible = NULL;
	} else {
		r = eng_blocks_copy(parent->visible, &n->visible);
	}
	if (r < 0)
		return r;
	n->used_exact = n->exact && (!parent || parent->used_exact);
	eng_blocks_andnot(n->visible, n->all);
	r = eng_blocks_or(n->visible, n->data);
	n->used = eng_blocks_cardinality(n->visible);
	return r;
}

/* --- a family --- */

/* Parents before their children, and of children the one that is last in its list last. */
static size_t order_family(const struct eng_usage *u, size_t root, size_t *order)
{
	size_t n = 0;

	order[n++] = root;
	for (size_t i = 0; i < n; i++)
		for (size_t c = u->nodes[order[i]].child; c != NONE; c = u->nodes[c].sibling)
			order[n++] = c;
	return n;
}

static void forget_sets(struct node *n)
{
	if (n->hides != n->all)
		eng_blocks_destroy(n->hides);
	eng_blocks_destroy(n->all);
	eng_blocks_destroy(n->data);
	eng_blocks_destroy(n->visible);
	n->hides = n->all = n->data = n->visible = NULL;
}

static void to_bytes(struct node *n)
{
	n->used <<= UNIT_BITS;
	n->exclusive <<= UNIT_BITS;
	n->layer.data <<= UNIT_BITS;
	n->layer.exclusive <<= UNIT_BITS;
	n->layer.shared <<= UNIT_BITS;
	n->layer.masked <<= UNIT_BITS;
}

static int count_family(struct eng_usage *u, size_t root)
{
	size_t *order = calloc(u->count, sizeof(*order)), n = 0;
	int r = order ? 0 : -ENOMEM;

	if (r == 0)
		n = order_family(u, root, order);
	for (size_t i = 0; r == 0 && i < n; i++)
		r = collect(u, &u->nodes[order[i]]);
	for (size_t i = n; r == 0 && i-- > 0;)
		r = find_hidden(u, &u->nodes[order[i]]);
	for (size_t i = 0; r == 0 && i < n; i++)
		r = find_visible(u, &u->nodes[order[i]]);
	for (size_t i = 0; r == 0 && i < n; i++)
		r = attribute(u, order[i]);
	for (size_t i = 0; i < n; i++) {
		forget_sets(&u->nodes[order[i]]);
		to_bytes(&u->nodes[order[i]]);
		u->nodes[order[i]].counted = r == 0;
	}
	free(order);
	return r;
}

static int find_counted(struct eng_usage *u, const struct fmt_uuid *layer, const struct node **ret)
{
	size_t i = find(u, layer);
	int r = i == NONE ? -ENOENT : 0;

	if (r == 0 && !u->nodes[i].counted)
		r = count_family(u, u->nodes[i].family);
	if (r == 0)
		*ret = &u->nodes[i];
	return r;
}

int eng_usage_layer(struct eng_usage *usage, const struct fmt_uuid *layer,
		    struct eng_layer_usage *ret)
{
	const struct node *n = NULL;
	int r = find_counted(usage, layer, &n);

	if (r == 0)
		*ret = n->layer;
	return r;
}

int eng_usage_state(struct eng_usage *usage, const struct fmt_uuid *layer,
		    struct eng_state_usage *ret)
{
	const struct node *n = NULL;
	int r = find_counted(usage, layer, &n);

	if (r == 0)
		*ret = (struct eng_state_usage){n->used, n->refs > 1 ? 0 : n->exclusive,
						n->used_exact};
	return r;
}

void eng_usage_destroy(struct eng_usage *usage)
{
	if (!usage)
		return;
	free(usage->nodes);
	free(usage);
}
