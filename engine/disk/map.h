/* SPDX-License-Identifier: MIT */
/*
 * map.h - where each block of a disk is: block -> (layer, slot, state), built lazily per region.
 *
 * M1: nothing replaces an entry of a newer layer (T5): every put compares layer ordinals.
 * M2: memory follows what is written: at most 16 bytes a block once a region holds a few (16), and
 *     at most 1 MiB for an empty 1 TiB disk of 4 KiB blocks. A region put, or reserved, at once takes
 *     40 bytes.
 * M3: a reserved block's put never fails.
 * One thread: the disk's worker (or whoever owns the disk while none is attached).
 */
#ifndef ENGINE_MAP_H
#define ENGINE_MAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ENG_MAP_REGION_BITS 12u /* blocks of a region: 16 MiB of 4 KiB blocks */
#define ENG_MAP_REGION      (1u << ENG_MAP_REGION_BITS)

/* State of a block as the map knows it. */
enum eng_map_state {
	ENG_MAP_NONE = 0, /* in no overlay: the base (or zeros) answers */
	ENG_MAP_DATA = 1,
	ENG_MAP_ZERO = 2, /* zeros; slot is the one the block owns in that layer, or NONE (T17) */
};

struct eng_map_entry {
	uint32_t layer; /* ordinal in the chain, 0 = base; below 2^24 */
	uint32_t slot;  /* FMT_SLOT_NONE when it has none */
	uint8_t state;  /* enum eng_map_state */
};

struct eng_map;

int eng_map_create(uint64_t blocks, struct eng_map **ret);
void eng_map_destroy(struct eng_map *map);
/* What a map needs to grow to @blocks; any thread. free(); NULL: no memory. */
void *eng_map_table(uint64_t blocks);
/* Grows to @blocks, not fewer than it has, with @table of as many; returns the old table: free(). */
void *eng_map_grow(struct eng_map *map, uint64_t blocks, void *table);

/* A region is built when every layer older than the ones that publish into it was merged in. */
bool eng_map_is_built(const struct eng_map *map, uint64_t region);
void eng_map_set_built(struct eng_map *map, uint64_t region);
/*
 * Forgets a region's entries of layers below @keep_from and its built mark; newer entries and
 * reservations stay.
 */
void eng_map_evict(struct eng_map *map, uint64_t region, uint32_t keep_from);

/* The entry of @block; state NONE when absent. Meaningful for old layers only in a built region. */
struct eng_map_entry eng_map_get(const struct eng_map *map, uint64_t block);
/*
 * The entry of @block, and in *@count how many blocks from @block on (1..max) have it too: same
 * layer and state, slots in a row or all NONE. Never crosses a region or the disk's end.
 */
struct eng_map_entry eng_map_get_run(const struct eng_map *map, uint64_t block, uint32_t max,
				     uint32_t *count);
/*
 * The same wherever the slots are, and across regions: *@count blocks from @block on (1..max, never past
 * the disk's end) are in the same layer and state; the run may go on after it. Looks at no more than one
 * region block by block.
 */
struct eng_map_entry eng_map_get_state(const struct eng_map *map, uint64_t block, uint64_t max,
				       uint64_t *count);
/* How many regions from @region on (@max at most) are built, or (@built false) are not. */
uint64_t eng_map_count_built(const struct eng_map *map, uint64_t region, uint64_t max, bool built);
/*
 * Enters @count blocks from @block at slots from @first.slot (all NONE when that is NONE); entries
 * of newer layers are kept. Uses up the reservation of every block it names. -ENOMEM: nothing
 * changed in the region that failed, what was entered before it stays, and the call can be
 * repeated.
 */
int eng_map_put(struct eng_map *map, uint64_t block, uint32_t count, struct eng_map_entry first);
/* The same for the build of a region from older layers: leaves the reservations alone. */
int eng_map_merge(struct eng_map *map, uint64_t block, uint32_t count, struct eng_map_entry first);
/*
 * Makes sure the next eng_map_put() of these blocks cannot fail, whatever is put, merged or evicted
 * in between: enters the blocks' keys, as absent. One reservation a block: the caller holds the
 * blocks' locks from here to the put. A write that fails may leave its reservation behind; it costs
 * the key's memory until the block's next put.
 */
int eng_map_reserve(struct eng_map *map, uint64_t block, uint32_t count);

/*
 * Calls @each for maximal runs of entries of exactly @layer (same state, slots in a row or all
 * NONE), ascending; a non-zero value stops and is returned. @each must not change the map.
 */
int eng_map_each(const struct eng_map *map, uint32_t layer,
		 int (*each)(void *arg, uint64_t block, uint32_t count, struct eng_map_entry first),
		 void *arg);

/*
 * The same for entries of @layer or newer, of @regions regions from @region on at most (fewer at the map's
 * end): maximal runs of one state, wherever their slots are, never across regions. Returns what @each did.
 */
int eng_map_each_newer(const struct eng_map *map, uint64_t region, uint64_t regions, uint32_t layer,
		       int (*each)(void *arg, uint64_t block, uint32_t count), void *arg);
/* How many entries a walk of that region looks at; 0 too beyond the map's end. */
uint32_t eng_map_entries(const struct eng_map *map, uint64_t region);

size_t eng_map_memory(const struct eng_map *map); /* bytes, allocator overhead estimated */

#endif
