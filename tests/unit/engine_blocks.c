/* SPDX-License-Identifier: MIT */
/* engine_blocks.c - sets of blocks: against a plain array; their bytes against all that is wrong (DF-8). */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/diff/blocks.h"
#include "format/layer.h"
#include "format/le.h"

#define SPACE (5u << 16) /* blocks of the model: some containers */

static uint64_t rng = 12345;

static uint64_t rnd(uint64_t below)
{
	rng = rng * 6364136223846793005ull + 1442695040888963407ull;
	return (rng >> 20) % below;
}

TestSuite(engine_blocks, .timeout = 60);

static struct eng_blocks *made(void)
{
	struct eng_blocks *set;

	cr_assert_eq(eng_blocks_create(&set), 0);
	return set;
}

struct check {
	const uint8_t *model;
	uint64_t base, at, end; /* all below @at was looked at */
};

static int check_range(void *arg, uint64_t first, uint64_t count)
{
	struct check *c = arg;

	cr_assert_gt(count, 0u);
	cr_assert(first >= c->base + c->at && first + count <= c->base + c->end);
	for (; c->at < first - c->base; c->at++)
		cr_assert_not(c->model[c->at], "block %lu is missing", c->at);
	for (; c->at < first - c->base + count; c->at++)
		cr_assert(c->model[c->at], "block %lu is too many", c->at);
	/* Merged: what follows is not in the set. */
	cr_assert(c->at == c->end || !c->model[c->at], "not merged at %lu", c->at);
	return 0;
}

static void check_window(const struct eng_blocks *set, const uint8_t *model, uint64_t base,
			 uint64_t first, uint64_t count)
{
	struct check c = {.model = model, .base = base, .at = first, .end = first + count};

	cr_assert_eq(eng_blocks_each(set, base + first, count, check_range, &c), 0);
	for (; c.at < c.end; c.at++)
		cr_assert_not(model[c.at], "block %lu is missing", c.at);
}

static void check_all(const struct eng_blocks *set, const uint8_t *model, uint64_t base)
{
	uint64_t count = 0;

	for (uint64_t i = 0; i < SPACE; i++)
		count += model[i];
	cr_assert_eq(eng_blocks_cardinality(set), count);
	check_window(set, model, base, 0, SPACE);
	for (int i = 0; i < 20; i++) {
		uint64_t first = rnd(SPACE), block = rnd(SPACE);

		check_window(set, model, base, first, 1 + rnd(SPACE - first));
		cr_assert_eq(eng_blocks_has(set, base + block), model[block]);
	}
}

static struct eng_blocks *copy_by_bytes(struct eng_blocks *set)
{
	struct eng_blocks *back;
	struct fmt_error err = {""};
	void *bytes;
	size_t len;

	cr_assert_eq(eng_blocks_encode(set, &bytes, &len), 0);
	cr_assert_eq(eng_blocks_decode(bytes, len, &err, &back), 0, "%s", err.text);
	free(bytes);
	return back;
}

/* DF-8: random ranges, short and long, whole containers too; on both sides of a 32-bit border. */
Test(engine_blocks, behaves_like_an_array)
{
	uint8_t *model = malloc(SPACE);

	for (int round = 0; round < 30; round++) {
		uint64_t base = round % 3 ? 0 : (1ull << 32) - (2u << 16);
		struct eng_blocks *set = made(), *other = made(), *back;
		struct eng_blocks_adder adder;

		memset(model, 0, SPACE);
		eng_blocks_adder_init(&adder, other);
		for (int i = 0; i < 200; i++) {
			uint64_t first = rnd(SPACE), most = rnd(8) ? 9 : SPACE / 3, count;

			count = 1 + rnd(most < SPACE - first ? most : SPACE - first);
			if (rnd(60) == 0)
				first = 1u << 16, count = 1u << 16;
			if (rnd(2))
				cr_assert_eq(eng_blocks_add_range(set, base + first, count), 0);
			else
				cr_assert_eq(eng_blocks_adder_add(&adder, base + first, count), 0);
			memset(model + first, 1, count);
		}
		cr_assert_eq(eng_blocks_adder_end(&adder), 0);
		cr_assert_eq(eng_blocks_or(set, other), 0);
		check_all(set, model, base);
		back = copy_by_bytes(set);
		check_all(back, model, base);
		eng_blocks_destroy(back);
		eng_blocks_destroy(other);
		eng_blocks_destroy(set);
	}
	free(model);
}

static int count_one(void *arg, uint64_t first, uint64_t count)
{
	*(uint64_t *)arg += count;
	cr_assert_eq(first, 0u);
	return 0;
}

static int stop_at_once(void *arg, uint64_t first, uint64_t count)
{
	(void)first;
	(void)count;
	++*(int *)arg;
	return -ECANCELED;
}

Test(engine_blocks, the_largest_disk_is_one_range)
{
	uint64_t all = 1ull << 30, found = 0;
	struct eng_blocks *set = made();
	int calls = 0;

	cr_expect_eq(eng_blocks_add_range(set, 0, all), 0);
	cr_expect_eq(eng_blocks_each(set, 0, UINT64_MAX, count_one, &found), 0);
	cr_expect_eq(found, all);
	cr_expect_eq(eng_blocks_each(set, 0, UINT64_MAX, stop_at_once, &calls), -ECANCELED);
	cr_expect_eq(calls, 1);
	cr_expect_eq(eng_blocks_add_range(set, (FMT_SIZE_MAX >> 12) - 1, 2), -EINVAL);
	cr_expect_eq(eng_blocks_add_range(set, UINT64_MAX, 1), -EINVAL);
	cr_expect_eq(eng_blocks_add_range(set, 1, UINT64_MAX), -EINVAL);
	cr_expect_eq(eng_blocks_add_range(set, UINT64_MAX, 0), 0);
	eng_blocks_destroy(set);
	cr_expect_eq(eng_blocks_cardinality(NULL), 0u);
}

/* What the checksum does not keep out: it is made anew. */
static int decode_with_checksum(uint8_t *bytes, size_t len)
{
	le64 csum = le64_make(fmt_block_csum(bytes + 24, len - 24));
	struct eng_blocks *set = NULL;
	int r;

	memcpy(bytes + 16, &csum, 8);
	r = eng_blocks_decode(bytes, len, NULL, &set);
	if (r == 0) /* what was accepted is a set */
		cr_assert_leq(eng_blocks_cardinality(set), 1ull << 33);
	eng_blocks_destroy(set);
	return r;
}

/* DF-8: arrays, bitmaps and runs, in two chunks. */
static void make_bytes(void **bytes, size_t *len)
{
	struct eng_blocks *set = made();

	for (uint64_t i = 0; i < 20; i++)
		eng_blocks_add_range(set, i * i * 7, 1);
	for (uint64_t i = 0; i < 9000; i++)
		eng_blocks_add_range(set, (1u << 16) + i * 7 + i % 3, 1);
	eng_blocks_add_range(set, 5u << 16, 3u << 16);
	eng_blocks_add_range(set, (1ull << 32) + 17, 3);
	cr_assert_eq(eng_blocks_encode(set, bytes, len), 0);
	eng_blocks_destroy(set);
}

Test(engine_blocks, damaged_bytes_are_refused)
{
	struct eng_blocks *set;
	uint8_t *bytes;
	void *p;
	size_t len;

	make_bytes(&p, &len);
	bytes = p;
	for (size_t i = 0; i < len; i += 1 + i / 40) {
		bytes[i] ^= 0x41;
		cr_expect_lt(eng_blocks_decode(bytes, len, NULL, &set), 0, "byte %zu", i);
		bytes[i] ^= 0x41;
		cr_expect_lt(eng_blocks_decode(bytes, i, NULL, &set), 0, "length %zu", i);
	}
	bytes[8] = 2;
	cr_expect_eq(eng_blocks_decode(bytes, len, NULL, &set), -ENOTSUP);
	bytes[8] = 1;
	bytes[24] ^= 1;
	cr_expect_eq(eng_blocks_decode(bytes, len, NULL, &set), -EBADMSG);
	bytes[24] ^= 1;
	cr_expect_eq(decode_with_checksum(bytes, len), 0);
	free(p);
}

/* DF-8: a checksum is no proof: every byte of the frame and of the containers' heads is looked at. */
Test(engine_blocks, malformed_bytes_with_a_checksum_are_refused)
{
	static const size_t frame[] = {12, 24, 28,
				       32, 36, 40}; /* chunks, high, length, cookie, ... */
	uint8_t *bytes;
	unsigned refused = 0;
	void *p;
	size_t len;

	make_bytes(&p, &len);
	bytes = p;
	for (size_t i = 0; i < sizeof(frame) / sizeof(frame[0]); i++) {
		bytes[frame[i]] ^= 0x11;
		cr_expect_lt(decode_with_checksum(bytes, len), 0, "byte %zu", frame[i]);
		bytes[frame[i]] ^= 0x11;
	}
	for (size_t i = 24; i < len; i++) { /* must not crash, whatever it says */
		uint8_t old = bytes[i];

		bytes[i] = (uint8_t)rnd(256);
		refused += decode_with_checksum(bytes, len) < 0;
		bytes[i] = old;
		refused += decode_with_checksum(bytes, i > 24 ? i : 25) < 0;
	}
	cr_expect_gt(refused, (unsigned)len / 2);
	free(p);
}

Test(engine_blocks, no_blocks_are_bytes_too)
{
	struct eng_blocks *set = made(), *back = copy_by_bytes(set);

	cr_expect_eq(eng_blocks_cardinality(back), 0u);
	cr_expect_eq(eng_blocks_or(set, back), 0);
	cr_expect_eq(eng_blocks_or(set, NULL), 0);
	eng_blocks_destroy(back);
	eng_blocks_destroy(set);
}
