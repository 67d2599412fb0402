/* SPDX-License-Identifier: MIT */
/* engine_map.c - the map against a plain array, its memory, and what a reservation promises. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/disk/map.h"
#include "format/layer.h"

#define BLOCKS (5 * ENG_MAP_REGION + 77)

static uint64_t rng_state = 88172645463325252ull;

static uint64_t rng(void)
{
	rng_state ^= rng_state << 13;
	rng_state ^= rng_state >> 7;
	rng_state ^= rng_state << 17;
	return rng_state;
}

static struct eng_map *create(uint64_t blocks)
{
	struct eng_map *map = NULL;

	cr_assert_eq(eng_map_create(blocks, &map), 0);
	return map;
}

static struct eng_map_entry data(uint32_t layer, uint32_t slot)
{
	return (struct eng_map_entry){.layer = layer, .slot = slot, .state = ENG_MAP_DATA};
}

static struct eng_map_entry zero(uint32_t layer, uint32_t slot)
{
	return (struct eng_map_entry){.layer = layer, .slot = slot, .state = ENG_MAP_ZERO};
}

static bool same(struct eng_map_entry a, struct eng_map_entry b)
{
	return a.state == b.state &&
	       (a.state == ENG_MAP_NONE || (a.layer == b.layer && a.slot == b.slot));
}

static struct eng_map_entry nth(struct eng_map_entry first, uint32_t i)
{
	if (first.slot != FMT_SLOT_NONE)
		first.slot += i;
	return first;
}

/* M3. The memory a put would need is there when it does not grow. */
static void expect_no_growth(struct eng_map *map, uint64_t block, uint32_t count)
{
	size_t before = eng_map_memory(map);

	cr_assert_eq(eng_map_put(map, block, count, data(9, 0)), 0);
	cr_expect_eq(eng_map_memory(map), before, "the put at %lu allocated", block);
}

/* --- the model: an array --- */

static struct eng_map_entry model[BLOCKS];

static void model_put(uint64_t block, uint32_t count, struct eng_map_entry first)
{
	for (uint32_t i = 0; i < count; i++) {
		struct eng_map_entry *e = &model[block + i];

		if (e->state == ENG_MAP_NONE || e->layer <= first.layer)
			*e = nth(first, i);
	}
}

static void model_evict(uint64_t region, uint32_t keep_from)
{
	for (uint64_t b = region * ENG_MAP_REGION; b < (region + 1) * ENG_MAP_REGION && b < BLOCKS;
	     b++) {
		if (model[b].layer < keep_from)
			model[b] = (struct eng_map_entry){0};
	}
}

static uint64_t each_next;
static uint32_t each_layer;

static int each_check(void *arg, uint64_t block, uint32_t count, struct eng_map_entry first)
{
	(void)arg;
	for (; each_next < block; each_next++)
		cr_assert(model[each_next].state == ENG_MAP_NONE ||
				  model[each_next].layer != each_layer,
			  "block %lu left out", each_next);
	cr_assert_eq(first.layer, each_layer);
	for (uint32_t i = 0; i < count; i++)
		cr_assert(same(model[block + i], nth(first, i)), "block %lu", block + i);
	each_next = block + count;
	return 0;
}

static void check_all(const struct eng_map *map)
{
	uint32_t count;

	for (uint64_t b = 0; b < BLOCKS; b += count) {
		uint32_t max = 1 + rng() % 6000;
		struct eng_map_entry e = eng_map_get_run(map, b, max, &count);
		uint32_t want = 1;

		cr_assert(same(eng_map_get(map, b), model[b]), "block %lu", b);
		cr_assert(same(e, model[b]), "block %lu", b);
		while (want < max && b + want < BLOCKS && (b + want) % ENG_MAP_REGION &&
		       same(model[b + want], nth(model[b], want)) &&
		       model[b + want].state == e.state)
			want++;
		cr_assert_eq(count, want, "run at block %lu: %u, expected %u", b, count, want);
	}
	for (each_layer = 0; each_layer < 12; each_layer++) {
		each_next = 0;
		cr_assert_eq(eng_map_each(map, each_layer, each_check, NULL), 0);
		each_check(NULL, BLOCKS, 0, data(each_layer, 0));
	}
}

/* M1, M2 */
Test(engine_map, agrees_with_an_array_over_random_operations)
{
	struct eng_map *map = create(BLOCKS);

	for (int round = 0; round < 4000; round++) {
		uint64_t block = rng() % BLOCKS;
		uint32_t count = 1 + (rng() % 4 ? rng() % 8 : rng() % 5000);
		uint32_t layer = rng() % 12, slot = rng() % 1000000;

		if (round % 11 == 0) { /* whole regions */
			block -= block % ENG_MAP_REGION;
			count = ENG_MAP_REGION * (1 + rng() % 3);
		}
		if (count > BLOCKS - block)
			count = BLOCKS - block;
		if (round % 97 == 0) {
			eng_map_evict(map, block / ENG_MAP_REGION, layer);
			model_evict(block / ENG_MAP_REGION, layer);
		} else if (round % 5 == 0) {
			cr_assert_eq(eng_map_reserve(map, block, count), 0);
		} else {
			struct eng_map_entry e = rng() % 4 ? data(layer, slot)
							   : zero(layer,
								  rng() % 2 ? slot : FMT_SLOT_NONE);

			cr_assert_eq((round % 2 ? eng_map_put : eng_map_merge)(map, block, count,
									       e),
				     0);
			model_put(block, count, e);
		}
		if (round % 500 == 499)
			check_all(map);
	}
	eng_map_destroy(map);
}

/* M2: one block at a time, in every order, so that leaves pass through every size. */
Test(engine_map, single_puts_in_any_order_and_their_memory)
{
	static uint16_t order[ENG_MAP_REGION];
	size_t empty;

	for (int pass = 0; pass < 3; pass++) {
		struct eng_map *map = create(ENG_MAP_REGION);

		memset(model, 0, sizeof(model));
		empty = eng_map_memory(map);
		for (uint32_t i = 0; i < ENG_MAP_REGION; i++)
			order[i] = pass == 1 ? ENG_MAP_REGION - 1 - i : i;
		for (uint32_t i = ENG_MAP_REGION; pass == 2 && i-- > 1;) {
			uint32_t j = rng() % (i + 1);
			uint16_t t = order[i];

			order[i] = order[j];
			order[j] = t;
		}
		for (uint32_t i = 0; i < ENG_MAP_REGION; i++) {
			cr_assert_eq(eng_map_put(map, order[i], 1, data(3, i * 2)), 0);
			model[order[i]] = data(3, i * 2);
			if (i + 1 >= 16)
				cr_assert_leq(eng_map_memory(map) - empty, 16u * (i + 1),
					      "%u blocks", i + 1);
			if (i % 512 == 0 || i == ENG_MAP_REGION - 1) {
				for (uint32_t b = 0; b < ENG_MAP_REGION; b++)
					cr_assert(same(eng_map_get(map, b), model[b]), "block %u",
						  b);
			}
		}
		eng_map_destroy(map);
	}
}

/* M2 */
Test(engine_map, an_empty_map_of_1_tib_takes_less_than_1_mib)
{
	struct eng_map *map = create(1ull << 28);

	cr_expect_leq(eng_map_memory(map), 1u << 20);
	cr_expect_eq(eng_map_get(map, (1ull << 28) - 1).state, ENG_MAP_NONE);
	eng_map_destroy(map);
}

/* M2: a discard of everything is not paid for block by block, and can still be written over. */
Test(engine_map, a_region_put_at_once_takes_one_value)
{
	struct eng_map *map = create(1ull << 28);
	size_t empty = eng_map_memory(map);
	uint32_t count;

	cr_assert_eq(eng_map_put(map, 0, 1u << 28, zero(1, FMT_SLOT_NONE)), 0);
	cr_expect_leq(eng_map_memory(map) - empty, 4u << 20);
	cr_expect(same(eng_map_get_run(map, 5, 99999, &count), zero(1, FMT_SLOT_NONE)));
	cr_expect_eq(count, ENG_MAP_REGION - 5);
	cr_assert_eq(eng_map_put(map, 9, 1, data(1, 3)), 0);
	cr_expect(same(eng_map_get(map, 9), data(1, 3)));
	cr_expect(same(eng_map_get(map, 10), zero(1, FMT_SLOT_NONE)));
	cr_assert_eq(eng_map_merge(map, 0, ENG_MAP_REGION, data(0, 0)), 0);
	cr_expect(same(eng_map_get(map, 9), data(1, 3)));
	cr_expect(same(eng_map_get(map, 10), zero(1, FMT_SLOT_NONE)));
	cr_assert_eq(eng_map_put(map, 0, ENG_MAP_REGION, data(2, 100)), 0);
	cr_expect(same(eng_map_get(map, 10), data(2, 110)));
	eng_map_destroy(map);
}

/* M2, M3: nor is the room for it. */
Test(engine_map, a_region_reserved_at_once_takes_one_value)
{
	struct eng_map *map = create(1ull << 28);
	size_t empty = eng_map_memory(map);
	uint32_t count;
	uint64_t long_count;

	cr_assert_eq(eng_map_reserve(map, 0, 1u << 28), 0);
	cr_expect_leq(eng_map_memory(map) - empty, 4u << 20);
	cr_expect_eq(eng_map_get_run(map, 5, 99999, &count).state, ENG_MAP_NONE);
	cr_expect_eq(count, ENG_MAP_REGION - 5);
	cr_expect_eq(eng_map_get_state(map, 5, UINT64_MAX, &long_count).state, ENG_MAP_NONE);
	cr_expect_eq(long_count, (1u << 28) - 5);
	eng_map_evict(map, 3, 9);
	cr_assert_eq(eng_map_merge(map, ENG_MAP_REGION, ENG_MAP_REGION, data(1, 50)), 0);
	cr_expect(same(eng_map_get(map, ENG_MAP_REGION + 7), data(1, 57)));
	expect_no_growth(map, 0, ENG_MAP_REGION);
	expect_no_growth(map, ENG_MAP_REGION, ENG_MAP_REGION);
	expect_no_growth(map, 3 * ENG_MAP_REGION, ENG_MAP_REGION);
	cr_assert_eq(eng_map_merge(map, 2 * ENG_MAP_REGION + 9, 2, data(1, 3)), 0);
	cr_expect_eq(eng_map_get(map, 2 * ENG_MAP_REGION + 8).state, ENG_MAP_NONE);
	cr_assert_eq(eng_map_put(map, 2 * ENG_MAP_REGION, ENG_MAP_REGION, data(9, 0)), 0);
	cr_expect(same(eng_map_get(map, 2 * ENG_MAP_REGION + 10), data(9, 10)));
	eng_map_destroy(map);
}

/* M3: a build of the whole region does not take a reserved block's place away. */
Test(engine_map, a_uniform_build_keeps_reservations)
{
	struct eng_map *map = create(BLOCKS);

	cr_assert_eq(eng_map_reserve(map, 7, 3), 0);
	cr_assert_eq(eng_map_merge(map, 0, ENG_MAP_REGION, data(1, 0)), 0);
	expect_no_growth(map, 7, 3);
	cr_expect(same(eng_map_get(map, 6), data(1, 6)));
	eng_map_destroy(map);
}

/* M1, T5 */
Test(engine_map, nothing_replaces_an_entry_of_a_newer_layer)
{
	struct eng_map *map = create(100);

	cr_assert_eq(eng_map_put(map, 10, 1, data(5, 50)), 0);
	cr_assert_eq(eng_map_put(map, 0, 20, data(4, 100)), 0);
	cr_expect(same(eng_map_get(map, 10), data(5, 50)),
		  "a late completion took a newer one's place");
	cr_expect(same(eng_map_get(map, 9), data(4, 109)));
	cr_assert_eq(eng_map_merge(map, 0, 20, data(3, 200)), 0);
	cr_expect(same(eng_map_get(map, 10), data(5, 50)), "a build took a newer one's place");
	cr_expect(same(eng_map_get(map, 9), data(4, 109)));
	cr_assert_eq(eng_map_put(map, 10, 1, zero(5, 50)), 0);
	cr_expect(same(eng_map_get(map, 10), zero(5, 50)), "the same layer's later entry must win");
	eng_map_destroy(map);
}

/* T17: the slot that a zeroed block owns is not lost in a run. */
Test(engine_map, runs_of_zeros_keep_their_slots)
{
	struct eng_map *map = create(100);
	uint32_t count;

	cr_assert_eq(eng_map_put(map, 0, 3, zero(1, FMT_SLOT_NONE)), 0);
	cr_assert_eq(eng_map_put(map, 3, 1, zero(1, 9)), 0);
	cr_assert_eq(eng_map_put(map, 4, 2, zero(1, 10)), 0);
	cr_assert_eq(eng_map_put(map, 6, 1, zero(1, 30)), 0);
	cr_expect_eq(eng_map_get_run(map, 0, 100, &count).slot, FMT_SLOT_NONE);
	cr_expect_eq(count, 3);
	cr_expect_eq(eng_map_get_run(map, 3, 100, &count).slot, 9);
	cr_expect_eq(count, 3);
	cr_expect_eq(eng_map_get_run(map, 6, 100, &count).slot, 30);
	cr_expect_eq(count, 1);
	cr_expect_eq(eng_map_get_run(map, 7, 100, &count).state, ENG_MAP_NONE);
	cr_expect_eq(count, 93);
	eng_map_destroy(map);
}

Test(engine_map, a_region_is_built_once_marked_and_until_evicted)
{
	struct eng_map *map = create(BLOCKS);

	cr_expect(!eng_map_is_built(map, 1));
	eng_map_set_built(map, 1);
	cr_assert_eq(eng_map_put(map, ENG_MAP_REGION, 3000, data(1, 0)), 0);
	cr_expect(eng_map_is_built(map, 1), "a new leaf lost the mark");
	cr_expect(!eng_map_is_built(map, 0));
	eng_map_evict(map, 1, 1);
	cr_expect(!eng_map_is_built(map, 1));
	cr_expect(same(eng_map_get(map, ENG_MAP_REGION), data(1, 0)), "evicted too much");
	eng_map_destroy(map);
}

/* P7: what is evicted gives its memory back. */
Test(engine_map, evicting_gives_memory_back)
{
	struct eng_map *map = create(BLOCKS);
	size_t empty = eng_map_memory(map);

	cr_assert_eq(eng_map_put(map, 0, ENG_MAP_REGION, data(1, 0)), 0);
	cr_assert_eq(eng_map_put(map, 17, 1, data(2, 0)), 0);
	eng_map_evict(map, 0, 2);
	cr_expect_lt(eng_map_memory(map) - empty, 256);
	cr_expect(same(eng_map_get(map, 17), data(2, 0)));
	cr_expect_eq(eng_map_get(map, 16).state, ENG_MAP_NONE);
	eng_map_evict(map, 0, 3);
	cr_expect_eq(eng_map_memory(map), empty);
	eng_map_destroy(map);
}

/* M3 */
Test(engine_map, a_reserved_put_needs_no_memory_whatever_happens_in_between)
{
	struct eng_map *map = create(BLOCKS);

	cr_assert_eq(eng_map_reserve(map, 4000, 200), 0); /* two regions */
	cr_expect_eq(eng_map_get(map, 4000).state, ENG_MAP_NONE, "a reservation is not an entry");
	for (uint32_t i = 0; i < 60; i++)
		cr_assert_eq(eng_map_put(map, i * 3, 1, data(8, i)), 0);
	cr_assert_eq(eng_map_merge(map, 4000, 200, data(1, 77)), 0);
	eng_map_evict(map, 0, 9);
	eng_map_evict(map, 1, 9);
	cr_expect_eq(eng_map_get(map, 4000).state, ENG_MAP_NONE);
	expect_no_growth(map, 4000, 200);
	eng_map_evict(map, 0, 10); /* the put used the reservation up */
	eng_map_evict(map, 1, 10);
	cr_expect_eq(eng_map_get(map, 4000).state, ENG_MAP_NONE);
	eng_map_destroy(map);
}

/* M3: in a dense leaf, and over an old entry that is evicted. */
Test(engine_map, reservations_survive_the_eviction_of_a_dense_leaf)
{
	struct eng_map *map = create(BLOCKS);
	size_t empty = eng_map_memory(map);

	cr_assert_eq(eng_map_put(map, 0, ENG_MAP_REGION, data(1, 0)), 0);
	cr_assert_eq(eng_map_reserve(map, 100, 50), 0);
	cr_expect(same(eng_map_get(map, 100), data(1, 100)), "reserving hid the entry");
	eng_map_evict(map, 0, 9);
	expect_no_growth(map, 100, 50);
	eng_map_evict(map, 0, 10);
	cr_expect_eq(eng_map_memory(map), empty, "a reservation was left behind");
	eng_map_destroy(map);
}

static int stop_at_second(void *arg, uint64_t block, uint32_t count, struct eng_map_entry first)
{
	int *calls = arg;

	(void)block;
	(void)count;
	(void)first;
	return ++*calls == 2 ? -EINTR : 0;
}

Test(engine_map, each_merges_across_regions_and_stops_when_told)
{
	struct eng_map *map = create(BLOCKS);
	int calls = 0;

	cr_assert_eq(eng_map_put(map, 10, 2 * ENG_MAP_REGION, data(1, 5)), 0);
	cr_expect_eq(eng_map_each(map, 1, stop_at_second, &calls), 0);
	cr_expect_eq(calls, 1);
	cr_assert_eq(eng_map_put(map, 5, 1, data(1, 999)), 0);
	cr_assert_eq(eng_map_put(map, 3 * ENG_MAP_REGION, 1, data(1, 1000)), 0);
	calls = 0;
	cr_expect_eq(eng_map_each(map, 1, stop_at_second, &calls), -EINTR);
	cr_expect_eq(calls, 2);
	eng_map_destroy(map);
}

Test(engine_map, bad_sizes_are_refused)
{
	struct eng_map *map = NULL;

	cr_expect_eq(eng_map_create(0, &map), -EINVAL);
	cr_expect_eq(eng_map_create(UINT64_MAX, &map), -EINVAL);
	cr_expect_null(map);
	eng_map_destroy(NULL);
}
