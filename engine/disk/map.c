/* SPDX-License-Identifier: MIT */
/*
 * map.c - the map of a disk: a table with one word a region, which points to the region's leaf or
 * is empty; bit 0 of the word is the region's built mark.
 *
 * A leaf is sparse (sorted 16-bit keys beside packed 64-bit values, 10 bytes a block, growing by a
 * quarter) until a dense one (a value for every block of the region) is within 16 bytes a block
 * (M2); it is uniform, one value, when its whole region was put or reserved at once (a discard of a
 * large disk). A value of 0 means absent, so that a key can be reserved, or an entry evicted, without
 * moving anything. M1 and M3 are kept by write_values() and by never removing a key marked
 * VALUE_RESERVED. One thread: the disk's worker.
 */
#include "engine/disk/map.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "format/layer.h"

/* A packed entry: slot 0..31, layer 32..55, state 56..57, reserved 58. */
#define VALUE_SLOT        0xffffffffull
#define VALUE_LAYER_SHIFT 32
#define VALUE_LAYER_MAX   0xffffffu
#define VALUE_STATE_SHIFT 56
#define VALUE_RESERVED    (1ull << 58)

#define DENSE_FROM     2064u /* keys: from here on a dense leaf takes below 16 bytes a block */
#define BUILT          1u    /* in a table word; leaves are aligned to more than this */
#define UNIFORM        1u    /* cap of a uniform leaf; a sparse one's is larger */
#define ALLOC_OVERHEAD 16u   /* bytes the allocator adds to a leaf, an estimate */

struct leaf {
	uint32_t used;     /* keys in use; dense and uniform: 0, there are none */
	uint32_t cap;      /* keys there is room for; dense: ENG_MAP_REGION; uniform: 1 */
	uint64_t values[]; /* cap of them, then cap 16-bit keys */
};

struct eng_map {
	uint64_t blocks;
	uint64_t regions;
	size_t leaf_bytes; /* of all leaves, with the allocator's overhead */
	uintptr_t *table;
};

static bool is_dense(const struct leaf *leaf)
{
	return leaf->cap == ENG_MAP_REGION;
}

static bool is_uniform(const struct leaf *leaf)
{
	return leaf->cap == UNIFORM;
}

/* Has a list of keys. */
static bool is_sparse(const struct leaf *leaf)
{
	return !is_dense(leaf) && !is_uniform(leaf);
}

static uint16_t *leaf_keys(const struct leaf *leaf)
{
	return (uint16_t *)(leaf->values + leaf->cap);
}

static size_t leaf_size(uint32_t cap)
{
	size_t key = cap == ENG_MAP_REGION || cap == UNIFORM ? 0 : sizeof(uint16_t);

	return sizeof(struct leaf) + cap * (sizeof(uint64_t) + key);
}

static struct leaf *leaf_of(const struct eng_map *map, uint64_t region)
{
	return (struct leaf *)(map->table[region] & ~(uintptr_t)BUILT);
}

/* Puts @leaf (NULL: none) in the place of the region's leaf and frees that. */
static void replace_leaf(struct eng_map *map, uint64_t region, struct leaf *leaf)
{
	struct leaf *old = leaf_of(map, region);

	if (old)
		map->leaf_bytes -= leaf_size(old->cap) + ALLOC_OVERHEAD;
	if (leaf)
		map->leaf_bytes += leaf_size(leaf->cap) + ALLOC_OVERHEAD;
	map->table[region] = (uintptr_t)leaf | (map->table[region] & BUILT);
	free(old);
}

/* --- values --- */

static uint64_t value_of(const struct eng_map_entry *e)
{
	assert(e->layer <= VALUE_LAYER_MAX);
	assert(e->state == ENG_MAP_ZERO || (e->state == ENG_MAP_DATA && e->slot != FMT_SLOT_NONE));
	return e->slot | (uint64_t)e->layer << VALUE_LAYER_SHIFT |
	       (uint64_t)e->state << VALUE_STATE_SHIFT;
}

static uint8_t value_state(uint64_t value)
{
	return (value >> VALUE_STATE_SHIFT) & 3;
}

static uint32_t value_layer(uint64_t value)
{
	return (value >> VALUE_LAYER_SHIFT) & VALUE_LAYER_MAX;
}

static struct eng_map_entry entry_of(uint64_t value)
{
	if (value_state(value) == ENG_MAP_NONE)
		return (struct eng_map_entry){.slot = FMT_SLOT_NONE, .state = ENG_MAP_NONE};
	return (struct eng_map_entry){
		.layer = value_layer(value),
		.slot = (uint32_t)(value & VALUE_SLOT),
		.state = value_state(value),
	};
}

/* What the value of the @i-th block of a run is when the first one's is @first, without marks. */
static uint64_t nth_value(uint64_t first, uint32_t i)
{
	return first == 0 || (first & VALUE_SLOT) == FMT_SLOT_NONE ? first : first + i;
}

/* The value of the @i-th block of a uniform leaf. */
static uint64_t uniform_value(const struct leaf *leaf, uint32_t i)
{
	uint64_t mark = leaf->values[0] & VALUE_RESERVED;

	return nth_value(leaf->values[0] & ~VALUE_RESERVED, i) | mark;
}

/*
 * Writes @count values of a run that starts with @first, over entries of the same or older layers
 * only (M1, T5). @consume: also clears the marks of reservation.
 */
static void write_values(uint64_t *values, uint32_t count, uint64_t first, bool consume)
{
	for (uint32_t i = 0; i < count; i++) {
		uint64_t mark = consume ? 0 : values[i] & VALUE_RESERVED;
		uint64_t old = values[i] & ~VALUE_RESERVED;
		bool keep = value_state(old) != ENG_MAP_NONE &&
			    value_layer(old) > value_layer(first);

		values[i] = (keep ? old : nth_value(first, i)) | mark;
	}
}

/* --- leaves --- */

/* Index of the first key that is not below @key. */
static uint32_t lower_bound(const struct leaf *leaf, uint32_t key)
{
	const uint16_t *keys = leaf_keys(leaf);
	uint32_t low = 0, high = leaf->used;

	if (high && keys[high - 1] < key) /* appends are the common case */
		return high;
	while (low < high) {
		uint32_t mid = (low + high) / 2;

		if (keys[mid] < key)
			low = mid + 1;
		else
			high = mid;
	}
	return low;
}

/* A copy of @old (NULL: empty) with room for @need keys, dense where that pays; NULL: no memory. */
static struct leaf *leaf_grow(const struct leaf *old, uint32_t need)
{
	uint32_t cap = (need + need / 4 + 3) & ~3u;
	struct leaf *leaf;

	if (need >= DENSE_FROM) {
		leaf = calloc(1, leaf_size(ENG_MAP_REGION));
		if (!leaf)
			return NULL;
		leaf->cap = ENG_MAP_REGION;
		if (old && is_uniform(old)) {
			for (uint32_t i = 0; i < ENG_MAP_REGION; i++)
				leaf->values[i] = uniform_value(old, i);
		}
		for (uint32_t i = 0; old && i < old->used; i++)
			leaf->values[leaf_keys(old)[i]] = old->values[i];
		return leaf;
	}
	leaf = malloc(leaf_size(cap));
	if (!leaf)
		return NULL;
	leaf->cap = cap;
	leaf->used = 0;
	if (old) {
		leaf->used = old->used;
		memcpy(leaf->values, old->values, old->used * sizeof(uint64_t));
		memcpy(leaf_keys(leaf), leaf_keys(old), old->used * sizeof(uint16_t));
	}
	return leaf;
}

/* Makes place for the absent ones of the keys @key..@key+@count-1, of which @high - @low exist. */
static void open_gap(struct leaf *leaf, uint32_t low, uint32_t high, uint32_t key, uint32_t count)
{
	uint16_t *keys = leaf_keys(leaf);
	uint32_t added = count - (high - low), from = high;

	memmove(leaf->values + high + added, leaf->values + high,
		(leaf->used - high) * sizeof(uint64_t));
	memmove(keys + high + added, keys + high, (leaf->used - high) * sizeof(uint16_t));
	for (uint32_t i = count; i-- > 0;) { /* from the back: what moves only moves up */
		bool exists = from > low && keys[from - 1] == key + i;

		leaf->values[low + i] = exists ? leaf->values[--from] : 0;
		keys[low + i] = (uint16_t)(key + i);
	}
	leaf->used += added;
}

/* The values of @count blocks from @key of @region, in a row, entered where absent. */
static int enter_keys(struct eng_map *map, uint64_t region, uint32_t key, uint32_t count,
		      uint64_t **ret)
{
	struct leaf *leaf = leaf_of(map, region);
	uint32_t low = 0, high = 0, need = count;

	if (leaf && is_uniform(leaf)) {
		need = ENG_MAP_REGION;
	} else if (leaf && !is_dense(leaf)) {
		low = lower_bound(leaf, key);
		high = low;
		while (high < leaf->used && leaf_keys(leaf)[high] < key + count)
			high++;
		need = leaf->used + count - (high - low);
	}
	if (!leaf || (!is_dense(leaf) && need > leaf->cap)) {
		leaf = leaf_grow(leaf, need);
		if (!leaf)
			return -ENOMEM;
		replace_leaf(map, region, leaf);
	}
	if (is_dense(leaf)) {
		*ret = leaf->values + key;
		return 0;
	}
	if (high - low < count)
		open_gap(leaf, low, high, key, count);
	*ret = leaf->values + low;
	return 0;
}

/* --- the map --- */

static uint64_t regions_of(uint64_t blocks)
{
	return (blocks + ENG_MAP_REGION - 1) >> ENG_MAP_REGION_BITS;
}

void *eng_map_table(uint64_t blocks)
{
	return calloc(regions_of(blocks), sizeof(uintptr_t));
}

int eng_map_create(uint64_t blocks, struct eng_map **ret)
{
	struct eng_map *map;

	if (!blocks || blocks > FMT_SIZE_MAX >> FMT_BLOCK_BITS_MIN)
		return -EINVAL;
	map = calloc(1, sizeof(*map));
	if (!map)
		return -ENOMEM;
	map->blocks = blocks;
	map->regions = regions_of(blocks);
	map->table = eng_map_table(blocks);
	if (!map->table) {
		free(map);
		return -ENOMEM;
	}
	*ret = map;
	return 0;
}

void eng_map_destroy(struct eng_map *map)
{
	if (!map)
		return;
	for (uint64_t region = 0; map->leaf_bytes && region < map->regions; region++)
		replace_leaf(map, region, NULL);
	free(map->table);
	free(map);
}

void *eng_map_grow(struct eng_map *map, uint64_t blocks, void *table)
{
	void *old = map->table;

	assert(blocks >= map->blocks);
	memcpy(table, old, map->regions * sizeof(*map->table));
	/* A last region that is not full is never uniform: what is new in it is absent. */
	map->table = table;
	map->blocks = blocks;
	map->regions = regions_of(blocks);
	return old;
}

bool eng_map_is_built(const struct eng_map *map, uint64_t region)
{
	assert(region < map->regions);
	return map->table[region] & BUILT;
}

void eng_map_set_built(struct eng_map *map, uint64_t region)
{
	assert(region < map->regions);
	map->table[region] |= BUILT;
}

/*
 * A run that covers the whole region and replaces all of its entries becomes a uniform leaf. False:
 * it does not, or there is no memory; the entries then take it one by one.
 */
static bool make_uniform(struct eng_map *map, uint64_t region, uint64_t first, bool consume)
{
	struct leaf *old = leaf_of(map, region), *leaf;
	uint32_t n = !old ? 0 : is_dense(old) ? ENG_MAP_REGION : old->used;

	if (old && is_uniform(old)) { /* in place: nothing can fail (M3) */
		write_values(old->values, 1, first, consume);
		return true;
	}
	for (uint32_t i = 0; i < n; i++) {
		uint64_t value = old->values[i];

		if (!consume && value & VALUE_RESERVED)
			return false;
		if (value_state(value) != ENG_MAP_NONE && value_layer(value) > value_layer(first))
			return false;
	}
	leaf = malloc(leaf_size(UNIFORM));
	if (!leaf)
		return false;
	leaf->used = 0;
	leaf->cap = UNIFORM;
	leaf->values[0] = first;
	replace_leaf(map, region, leaf);
	return true;
}

/* Clears what is evicted and counts what is left; a reserved key stays, as absent (M3). */
static uint32_t clear_values(struct leaf *leaf, uint32_t keep_from)
{
	uint32_t n = is_dense(leaf) ? ENG_MAP_REGION : is_uniform(leaf) ? 1 : leaf->used, left = 0;

	for (uint32_t i = 0; i < n; i++) {
		uint64_t value = leaf->values[i];

		if (value_state(value) != ENG_MAP_NONE && value_layer(value) < keep_from)
			leaf->values[i] = value & VALUE_RESERVED;
		left += leaf->values[i] != 0;
	}
	return left;
}

void eng_map_evict(struct eng_map *map, uint64_t region, uint32_t keep_from)
{
	struct leaf *old, *leaf;
	uint32_t n, left;

	assert(region < map->regions);
	map->table[region] &= ~(uintptr_t)BUILT;
	old = leaf_of(map, region);
	if (!old)
		return;
	left = clear_values(old, keep_from);
	if (left == 0) {
		replace_leaf(map, region, NULL);
		return;
	}
	if (left >= DENSE_FROM || is_uniform(old))
		return;
	leaf = leaf_grow(NULL, left);
	if (!leaf)
		return; /* the old one will do: cleared keys are absent */
	n = is_dense(old) ? ENG_MAP_REGION : old->used;
	for (uint32_t i = 0; i < n; i++) {
		if (old->values[i] == 0)
			continue;
		leaf_keys(leaf)[leaf->used] = is_dense(old) ? (uint16_t)i : leaf_keys(old)[i];
		leaf->values[leaf->used++] = old->values[i];
	}
	replace_leaf(map, region, leaf);
}

struct eng_map_entry eng_map_get(const struct eng_map *map, uint64_t block)
{
	uint32_t count;

	return eng_map_get_run(map, block, 1, &count);
}

struct eng_map_entry eng_map_get_run(const struct eng_map *map, uint64_t block, uint32_t max,
				     uint32_t *count)
{
	uint64_t region = block >> ENG_MAP_REGION_BITS;
	uint32_t key = block & (ENG_MAP_REGION - 1), at, n = 1;
	const struct leaf *leaf;
	uint64_t first = 0;

	assert(block < map->blocks && max);
	if (max > ENG_MAP_REGION - key)
		max = ENG_MAP_REGION - key;
	if (max > map->blocks - block)
		max = (uint32_t)(map->blocks - block);
	leaf = leaf_of(map, region);
	if (!leaf || is_uniform(leaf)) {
		first = leaf ? uniform_value(leaf, key) & ~VALUE_RESERVED : 0;
		n = max;
	} else if (is_dense(leaf)) {
		first = leaf->values[key] & ~VALUE_RESERVED;
		while (n < max && (leaf->values[key + n] & ~VALUE_RESERVED) == nth_value(first, n))
			n++;
	} else {
		const uint16_t *keys = leaf_keys(leaf);

		at = lower_bound(leaf, key);
		if (at < leaf->used && keys[at] == key)
			first = leaf->values[at++] & ~VALUE_RESERVED;
		/* Absent: up to the next key that has an entry. Else: as long as the keys go on. */
		for (; n < max; n++) {
			bool exists = at < leaf->used && keys[at] == key + n;
			uint64_t value = exists ? leaf->values[at] & ~VALUE_RESERVED : 0;

			if (value != nth_value(first, n))
				break;
			at += exists;
		}
	}
	*count = n;
	return entry_of(first);
}

/* Layer and state alone: what is above the slot. */
static uint64_t class_of(uint64_t value)
{
	return (value & ~VALUE_RESERVED) >> VALUE_LAYER_SHIFT;
}

/* How many of the @max blocks from @key of the region are of @class. */
static uint32_t count_class(const struct leaf *leaf, uint32_t key, uint32_t max, uint64_t class)
{
	uint32_t n = 0;

	if (!leaf)
		return class == 0 ? max : 0;
	if (is_uniform(leaf))
		return class_of(leaf->values[0]) == class ? max : 0;
	if (is_dense(leaf)) {
		while (n < max && class_of(leaf->values[key + n]) == class)
			n++;
		return n;
	}
	for (uint32_t at = lower_bound(leaf, key); n < max; n++) {
		bool exists = at < leaf->used && leaf_keys(leaf)[at] == key + n;

		if (class_of(exists ? leaf->values[at] : 0) != class)
			break;
		at += exists;
	}
	return n;
}

struct eng_map_entry eng_map_get_state(const struct eng_map *map, uint64_t block, uint64_t max,
				       uint64_t *count)
{
	uint32_t one, n;
	struct eng_map_entry e = eng_map_get_run(map, block, 1, &one);
	uint64_t class = e.state == ENG_MAP_NONE ? 0 : class_of(value_of(&e)), done = 0;
	bool listed = false; /* a region was looked at block by block */

	max = max < map->blocks - block ? max : map->blocks - block;
	while (done < max && !listed) {
		const struct leaf *leaf = leaf_of(map, (block + done) >> ENG_MAP_REGION_BITS);
		uint32_t key = (block + done) & (ENG_MAP_REGION - 1), want = ENG_MAP_REGION - key;

		want = want < max - done ? want : (uint32_t)(max - done);
		listed = leaf && !is_uniform(leaf);
		n = count_class(leaf, key, want, class);
		done += n;
		if (n < want)
			break;
	}
	*count = done;
	return e;
}

uint64_t eng_map_count_built(const struct eng_map *map, uint64_t region, uint64_t max, bool built)
{
	uint64_t n = 0;

	max = max < map->regions - region ? max : map->regions - region;
	while (n < max && eng_map_is_built(map, region + n) == built)
		n++;
	return n;
}

/* The reservation of a whole region that has nothing yet, or is uniform already. */
static bool reserve_uniform(struct eng_map *map, uint64_t region)
{
	struct leaf *leaf = leaf_of(map, region);

	if (leaf && !is_uniform(leaf))
		return false;
	if (!leaf) {
		leaf = calloc(1, leaf_size(UNIFORM));
		if (!leaf)
			return false;
		leaf->cap = UNIFORM;
		replace_leaf(map, region, leaf);
	}
	leaf->values[0] |= VALUE_RESERVED;
	return true;
}

enum change { PUT, MERGE, RESERVE };

static int change_region(struct eng_map *map, uint64_t block, uint32_t count, uint64_t first,
			 enum change change)
{
	uint64_t region = block >> ENG_MAP_REGION_BITS;
	uint64_t *values;
	int r;

	if (count == ENG_MAP_REGION &&
	    (change == RESERVE ? reserve_uniform(map, region)
			       : make_uniform(map, region, first, change == PUT)))
		return 0;
	r = enter_keys(map, region, block & (ENG_MAP_REGION - 1), count, &values);
	if (r < 0)
		return r;
	if (change != RESERVE)
		write_values(values, count, first, change == PUT);
	for (uint32_t i = 0; change == RESERVE && i < count; i++)
		values[i] |= VALUE_RESERVED;
	return 0;
}

static int change_blocks(struct eng_map *map, uint64_t block, uint32_t count, uint64_t first,
			 enum change change)
{
	int r = 0;

	assert(count && block < map->blocks && count <= map->blocks - block);
	assert((first & VALUE_SLOT) == FMT_SLOT_NONE ||
	       (first & VALUE_SLOT) + count <= FMT_SLOT_NONE);
	for (uint32_t done = 0, n; r == 0 && done < count; done += n) {
		n = ENG_MAP_REGION - ((block + done) & (ENG_MAP_REGION - 1));
		if (n > count - done)
			n = count - done;
		r = change_region(map, block + done, n, nth_value(first, done), change);
	}
	return r;
}

int eng_map_put(struct eng_map *map, uint64_t block, uint32_t count, struct eng_map_entry first)
{
	return change_blocks(map, block, count, value_of(&first), PUT);
}

int eng_map_merge(struct eng_map *map, uint64_t block, uint32_t count, struct eng_map_entry first)
{
	return change_blocks(map, block, count, value_of(&first), MERGE);
}

int eng_map_reserve(struct eng_map *map, uint64_t block, uint32_t count)
{
	return change_blocks(map, block, count, 0, RESERVE);
}

/* --- walking --- */

struct walk {
	uint32_t layer;
	int (*each)(void *arg, uint64_t block, uint32_t count, struct eng_map_entry first);
	void *arg;
	uint64_t block; /* the run under construction */
	uint64_t first; /* its first value */
	uint32_t count; /* 0: none */
};

static int walk_end(struct walk *w)
{
	int r = w->count ? w->each(w->arg, w->block, w->count, entry_of(w->first)) : 0;

	w->count = 0;
	return r;
}

static int walk_value(struct walk *w, uint64_t block, uint64_t value)
{
	int r;

	value &= ~VALUE_RESERVED;
	if (value_state(value) == ENG_MAP_NONE || value_layer(value) != w->layer)
		return 0;
	if (w->count && w->count < FMT_RUN_COUNT_MAX && block == w->block + w->count &&
	    value == nth_value(w->first, w->count)) {
		w->count++;
		return 0;
	}
	r = walk_end(w);
	w->block = block;
	w->first = value;
	w->count = 1;
	return r;
}

int eng_map_each(const struct eng_map *map, uint32_t layer,
		 int (*each)(void *arg, uint64_t block, uint32_t count, struct eng_map_entry first),
		 void *arg)
{
	struct walk w = {.layer = layer, .each = each, .arg = arg};

	for (uint64_t region = 0; region < map->regions; region++) {
		const struct leaf *leaf = leaf_of(map, region);
		uint64_t start = region << ENG_MAP_REGION_BITS;
		uint32_t n;

		if (!leaf)
			continue;
		n = is_sparse(leaf) ? leaf->used : ENG_MAP_REGION;
		for (uint32_t i = 0; i < n; i++) {
			uint64_t block = start + (is_sparse(leaf) ? leaf_keys(leaf)[i] : i);
			uint64_t value = is_uniform(leaf) ? uniform_value(leaf, i)
							  : leaf->values[i];
			int r = walk_value(&w, block, value);

			if (r != 0)
				return r;
		}
	}
	return walk_end(&w);
}

uint32_t eng_map_entries(const struct eng_map *map, uint64_t region)
{
	const struct leaf *leaf = region < map->regions ? leaf_of(map, region) : NULL;

	return !leaf ? 0 : is_sparse(leaf) ? leaf->used : ENG_MAP_REGION;
}

int eng_map_each_newer(const struct eng_map *map, uint64_t region, uint64_t regions, uint32_t layer,
		       int (*each)(void *arg, uint64_t block, uint32_t count), void *arg)
{
	int r = 0;

	for (; regions && region < map->regions && r == 0; region++, regions--) {
		const struct leaf *leaf = leaf_of(map, region);
		uint64_t start = region << ENG_MAP_REGION_BITS, first = 0;
		uint32_t n = leaf && is_sparse(leaf) ? leaf->used : ENG_MAP_REGION, count = 0;

		for (uint32_t i = 0; leaf && i < n && r == 0; i++) {
			uint64_t block = start + (is_sparse(leaf) ? leaf_keys(leaf)[i] : i);
			uint64_t value = leaf->values[is_uniform(leaf) ? 0 : i];

			if (value_state(value) == ENG_MAP_NONE || value_layer(value) < layer)
				continue;
			if (count && block == first + count) {
				count++;
				continue;
			}
			if (count)
				r = each(arg, first, count);
			first = block;
			count = 1;
		}
		if (r == 0 && count)
			r = each(arg, first, count);
	}
	return r;
}

size_t eng_map_memory(const struct eng_map *map)
{
	return sizeof(*map) + map->regions * sizeof(*map->table) + 2 * ALLOC_OVERHEAD +
	       map->leaf_bytes;
}
