/* SPDX-License-Identifier: MIT */
/*
 * The load loop's parts: the order of blocks, the stamps that verify them, the latency histogram. What
 * the loop as a whole does is tests/cli/bench.sh's.
 */
#include "bench/histogram.h"
#include "bench/pattern.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

static void check_passes(uint64_t blocks, uint64_t seed)
{
	uint8_t *seen = calloc(blocks, 1);
	struct pattern p;

	cr_assert(seen);
	pattern_init(&p, blocks, true, false, seed);
	for (uint8_t pass = 1; pass <= 3; pass++) {
		for (uint64_t i = 0; i < blocks; i++) {
			uint64_t block = pattern_next(&p);

			cr_assert_lt(block, blocks);
			cr_assert_eq(seen[block], pass - 1, "block %lu of %lu twice in a pass",
				     (unsigned long)block, (unsigned long)blocks);
			seen[block] = pass;
		}
	}
	free(seen);
}

Test(bench_load, random_pass_visits_every_block_once)
{
	for (uint64_t blocks = 1; blocks <= 300; blocks++)
		check_passes(blocks, blocks * 7919);
	check_passes(65536, 1);
	check_passes(65537, 2);
	check_passes(100000, 3);
}

Test(bench_load, random_pass_is_not_a_stride)
{
	enum { BLOCKS = 4096 };
	struct pattern p;
	uint64_t last, steps[BLOCKS] = {0}, most = 0;

	pattern_init(&p, BLOCKS, true, false, 42);
	last = pattern_next(&p);
	for (unsigned i = 1; i < BLOCKS; i++) {
		uint64_t block = pattern_next(&p);
		uint64_t *step = &steps[(block + BLOCKS - last) % BLOCKS];

		most = ++*step > most ? *step : most;
		last = block;
	}
	cr_assert_lt(most, 64, "one step is taken %lu times", (unsigned long)most);
}

Test(bench_load, sequential_pass_is_in_order_and_starts_again)
{
	struct pattern p;

	pattern_init(&p, 5, false, false, 1);
	for (uint64_t i = 0; i < 15; i++)
		cr_assert_eq(pattern_next(&p), i % 5);
}

Test(bench_load, stamp_tells_every_changed_byte_and_every_other_place)
{
	unsigned char block[512];

	stamp_write(block, sizeof(block), 9, 4096, 3);
	cr_assert(stamp_check(block, sizeof(block), 9, 4096, 3));
	cr_assert(stamp_check(block, sizeof(block), 0, 4096, 77), "any run's, any generation");
	cr_assert_not(stamp_check(block, sizeof(block), 8, 4096, 3), "another run");
	cr_assert_not(stamp_check(block, sizeof(block), 9, 8192, 3), "another place");
	cr_assert_not(stamp_check(block, sizeof(block), 9, 4096, 2), "an older write");
	for (size_t i = 0; i < sizeof(block); i++) {
		block[i] ^= 1;
		cr_assert_not(stamp_check(block, sizeof(block), 0, 4096, 0), "byte %zu", i);
		block[i] ^= 1;
	}
}

static int by_value(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

Test(bench_load, percentiles_are_within_two_percent)
{
	enum { COUNT = 10000 };
	static uint64_t values[COUNT];
	static struct histogram h, half, sum;
	struct pattern random = {.random = 5};
	struct load_latency l;

	for (unsigned i = 0; i < COUNT; i++) {
		values[i] = pattern_random(&random) >> (pattern_random(&random) % 50 + 14);
		histogram_add(i % 2 ? &h : &half, values[i]);
	}
	histogram_merge(&sum, &h);
	histogram_merge(&sum, &half);
	histogram_latency(&sum, &l);
	qsort(values, COUNT, sizeof(*values), by_value);
	cr_expect_eq(l.count, COUNT);
	cr_expect_eq(l.min, values[0]);
	cr_expect_eq(l.max, values[COUNT - 1]);
	cr_expect(l.p50 >= values[4999] && l.p50 <= values[4999] + values[4999] / 50);
	cr_expect(l.p99 >= values[9899] && l.p99 <= values[9899] + values[9899] / 50);
	cr_expect(l.p99_9 >= values[9989] && l.p99_9 <= values[9989] + values[9989] / 50);
}

Test(bench_load, histogram_takes_every_value)
{
	static struct histogram h;
	struct load_latency l;

	histogram_latency(&h, &l);
	cr_expect_eq(l.count, 0);
	cr_expect_eq(l.p50, 0);
	histogram_add(&h, 0);
	for (unsigned bit = 0; bit < 64; bit++) {
		histogram_add(&h, (UINT64_C(1) << bit) - 1);
		histogram_add(&h, UINT64_C(1) << bit);
	}
	histogram_add(&h, UINT64_MAX);
	histogram_latency(&h, &l);
	cr_expect_eq(l.min, 0);
	cr_expect_eq(l.max, UINT64_MAX);
	cr_expect_eq(l.p99_9, UINT64_MAX);
}
