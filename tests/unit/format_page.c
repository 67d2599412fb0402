/* SPDX-License-Identifier: MIT */
/* format_page.c - index and checksum pages, their places, the seal hash. */
#include <criterion/criterion.h>
#include <errno.h>
#include <xxhash.h>

#include "format/layer.h"

#define SALT 0xfeedfacecafebeefull
#define AT   0x123000ull

static void edit(uint8_t *page, size_t offset, uint64_t value, size_t bytes)
{
	le64 csum = le64_make(0);

	for (size_t i = 0; i < bytes; i++)
		page[offset + i] = (uint8_t)(value >> (8 * i));
	memcpy(page + 0x10, &csum, 8);
	csum = le64_make(XXH3_64bits_withSeed(page, FMT_PAGE, SALT ^ AT));
	memcpy(page + 0x10, &csum, 8);
}

static void full_leaf(uint8_t page[FMT_PAGE])
{
	struct fmt_run runs[FMT_LEAF_RUNS];

	for (uint32_t i = 0; i < FMT_LEAF_RUNS; i++)
		runs[i] = (struct fmt_run){.block = i * 10, .slot = i * 5, .count = 5};
	fmt_leaf_encode(runs, FMT_LEAF_RUNS, SALT, AT, page);
}

/* IX-1, IX-3 */
Test(format_page, leaf_comes_back)
{
	uint8_t page[FMT_PAGE];
	struct fmt_run run;
	uint32_t count = 0;

	full_leaf(page);
	cr_assert_eq(fmt_page_check(page, FMT_PAGE_LEAF, 0, SALT, AT, &count, NULL), 0);
	cr_expect_eq(count, 254);
	fmt_leaf_run(page, 253, &run);
	cr_expect_eq(run.block, 2530);
	cr_expect_eq(run.slot, 1265);
	cr_expect_eq(run.count, 5);
	cr_expect_eq(run.kind, FMT_RUN_DATA);
}

/* IX-2 */
Test(format_page, empty_leaf_is_a_page_too)
{
	uint8_t page[FMT_PAGE];
	uint32_t count = 1;

	fmt_leaf_encode(NULL, 0, SALT, AT, page);
	cr_assert_eq(fmt_page_check(page, FMT_PAGE_LEAF, 0, SALT, AT, &count, NULL), 0);
	cr_expect_eq(count, 0);
}

/* IX-4, CS-1 */
Test(format_page, inner_and_checksum_pages_come_back)
{
	uint64_t words[FMT_INNER_KEYS];
	uint8_t page[FMT_PAGE];
	uint32_t count;

	for (uint32_t i = 0; i < FMT_INNER_KEYS; i++)
		words[i] = i * 1000ull << 20;
	fmt_inner_encode(words, FMT_INNER_KEYS, 3, SALT, AT, page);
	cr_assert_eq(fmt_page_check(page, FMT_PAGE_INNER, 3, SALT, AT, &count, NULL), 0);
	cr_expect_eq(count, 509);
	cr_expect_eq(fmt_inner_key(page, 508), 508000ull << 20);
	fmt_csum_encode(words, 7, SALT, AT, page);
	cr_assert_eq(fmt_page_check(page, FMT_PAGE_CSUM, 0, SALT, AT, &count, NULL), 0);
	cr_expect_eq(count, 7);
	cr_expect_eq(fmt_csum_get(page, 6), 6000ull << 20);
}

/* A list of @runs runs of three slots, five apart, as @h names it: its pages. */
static void make_list(struct fmt_header *h, uint32_t runs, uint8_t *pages)
{
	struct fmt_seal_hash *hash = fmt_seal_hash_create();
	struct fmt_gone list[FMT_GONE_SLOTS];

	*h = (struct fmt_header){.salt = SALT,
				 .slots = 5ull * runs,
				 .gone_offset = AT,
				 .gone_runs = runs};
	for (uint32_t i = 0; i < runs; i += FMT_GONE_SLOTS) {
		uint32_t n = runs - i < FMT_GONE_SLOTS ? runs - i : FMT_GONE_SLOTS;
		uint8_t *page = pages + i / FMT_GONE_SLOTS * FMT_PAGE;

		for (uint32_t j = 0; j < n; j++)
			list[j] = (struct fmt_gone){5 * (i + j), 3};
		fmt_gone_encode(list, n, SALT, AT + (uint64_t)(page - pages), page);
		fmt_seal_hash_add(hash, page, FMT_PAGE);
	}
	fmt_seal_hash_end(hash, h->gone_hash);
	fmt_seal_hash_destroy(hash);
}

/* GO-1, GO-2 */
Test(format_page, a_list_of_gone_slots_comes_back_or_is_refused)
{
	enum { RUNS = FMT_GONE_SLOTS + 3 };
	uint8_t pages[2 * FMT_PAGE], bad[2 * FMT_PAGE];
	struct fmt_gone got[RUNS];
	struct fmt_header h, other;
	uint32_t count;

	make_list(&h, RUNS, pages);
	cr_expect_eq(fmt_gone_pages(RUNS), 2);
	cr_expect_eq(fmt_gone_pages(FMT_GONE_RUNS_MAX), 128);
	cr_assert_eq(fmt_gone_decode(&h, pages, got, NULL), 0);
	for (uint32_t i = 0; i < RUNS; i++)
		cr_assert(got[i].slot == 5 * i && got[i].count == 3);
	for (size_t i = 0; i < sizeof(pages); i += 7) {
		memcpy(bad, pages, sizeof(bad));
		bad[i] ^= 0x10;
		cr_assert_eq(fmt_gone_decode(&h, bad, got, NULL), -EBADMSG, "byte %zu", i);
	}
	other = h;
	other.slots = 5 * RUNS - 3;
	cr_expect_eq(fmt_gone_decode(&other, pages, got, NULL), -EUCLEAN, "past the last slot");
	other = h;
	other.gone_hash[0] ^= 1;
	cr_expect_eq(fmt_gone_decode(&other, pages, got, NULL), -EBADMSG, "another list");
	other = h;
	other.gone_runs = RUNS - 1;
	cr_expect_eq(fmt_gone_decode(&other, pages, got, NULL), -EUCLEAN, "one too many");
	other = h;
	other.gone_offset += FMT_PAGE;
	cr_expect_eq(fmt_gone_decode(&other, pages, got, NULL), -EBADMSG, "in another place");

	memcpy(bad, pages, FMT_PAGE);
	edit(bad, 0x18 + 4, 0, 4);
	cr_expect_eq(fmt_page_check(bad, FMT_PAGE_GONE, 0, SALT, AT, &count, NULL), -EUCLEAN,
		     "an empty run");
	memcpy(bad, pages, FMT_PAGE);
	edit(bad, 0x18 + 4, 5, 4);
	cr_expect_eq(fmt_page_check(bad, FMT_PAGE_GONE, 0, SALT, AT, &count, NULL), -EUCLEAN,
		     "one that touches the next");
	memcpy(bad, pages, FMT_PAGE);
	edit(bad, 0x18 + 4, UINT32_MAX, 4);
	cr_expect_eq(fmt_page_check(bad, FMT_PAGE_GONE, 0, SALT, AT, &count, NULL), -EUCLEAN,
		     "one without an end");
}

/* IX-1 */
Test(format_page, any_flipped_byte_is_found)
{
	uint8_t page[FMT_PAGE];
	uint32_t count = 42;

	full_leaf(page);
	for (size_t i = 0; i < FMT_PAGE; i++) {
		page[i] ^= 0x80;
		cr_assert_eq(fmt_page_check(page, FMT_PAGE_LEAF, 0, SALT, AT, &count, NULL),
			     -EBADMSG, "byte %zu", i);
		page[i] ^= 0x80;
	}
	cr_expect_eq(count, 42, "written on failure");
}

/* IX-1: a page of another layer, or of another place, is not this page. */
Test(format_page, a_misplaced_page_is_found)
{
	uint8_t page[FMT_PAGE];
	uint32_t count;

	full_leaf(page);
	cr_expect_eq(fmt_page_check(page, FMT_PAGE_LEAF, 0, SALT, AT + FMT_PAGE, &count, NULL),
		     -EBADMSG);
	cr_expect_eq(fmt_page_check(page, FMT_PAGE_LEAF, 0, SALT + 1, AT, &count, NULL), -EBADMSG);
	cr_expect_eq(fmt_page_check(page, FMT_PAGE_INNER, 0, SALT, AT, &count, NULL), -EUCLEAN);
	cr_expect_eq(fmt_page_check(page, FMT_PAGE_LEAF, 1, SALT, AT, &count, NULL), -EUCLEAN);
}

/* IX-3, IX-4, RU-1 */
Test(format_page, a_checksummed_page_against_a_rule_is_unclean)
{
	static const struct {
		const char *what;
		size_t offset, bytes;
		uint64_t value;
	} rules[] = {
		{"too many runs", 0x08, 4, FMT_LEAF_RUNS + 1},
		{"far too many runs", 0x08, 4, UINT32_MAX},
		{"runs overlap", 0x28, 8, 4},
		{"runs descend", 0x38, 8, 0},
		{"a run of nothing", 0x24, 4, 0},
		{"a run past any disk", 0x18, 8, UINT64_MAX},
		{"a kind unknown", 0x24, 4, 3u << 30 | 1},
	};
	uint64_t words[3] = {1, 2, 3};
	uint8_t good[FMT_PAGE], page[FMT_PAGE];
	uint32_t count;

	full_leaf(good);
	for (size_t i = 0; i < sizeof(rules) / sizeof(rules[0]); i++) {
		memcpy(page, good, FMT_PAGE);
		edit(page, rules[i].offset, rules[i].value, rules[i].bytes);
		cr_expect_eq(fmt_page_check(page, FMT_PAGE_LEAF, 0, SALT, AT, &count, NULL),
			     -EUCLEAN, "%s", rules[i].what);
	}
	fmt_inner_encode(words, 3, 1, SALT, AT, page);
	edit(page, 0x20, 1, 8);
	cr_expect_eq(fmt_page_check(page, FMT_PAGE_INNER, 1, SALT, AT, &count, NULL), -EUCLEAN);
	fmt_inner_encode(words, 3, 1, SALT, AT, page);
	edit(page, 0x08, 0, 4);
	cr_expect_eq(fmt_page_check(page, FMT_PAGE_INNER, 1, SALT, AT, &count, NULL), -EUCLEAN);
	fmt_csum_encode(words, 3, SALT, AT, page);
	edit(page, 0x08, FMT_CSUM_SLOTS + 1, 4);
	cr_expect_eq(fmt_page_check(page, FMT_PAGE_CSUM, 0, SALT, AT, &count, NULL), -EUCLEAN);
}

/* IX-2 */
Test(format_page, the_index_has_the_shape_its_runs_give_it)
{
	struct fmt_index_shape s;

	cr_assert_eq(fmt_index_shape(0, &s), 0);
	cr_expect_eq(s.levels, 1);
	cr_expect_eq(s.total, 1);
	cr_assert_eq(fmt_index_shape(254, &s), 0);
	cr_expect_eq(s.levels, 1);
	cr_assert_eq(fmt_index_shape(255, &s), 0);
	cr_expect_eq(s.levels, 2);
	cr_expect_eq(s.pages[0], 2);
	cr_expect_eq(s.pages[1], 1);
	cr_expect_eq(s.first[1], 2);
	cr_assert_eq(fmt_index_shape(254ull * 509 + 1, &s), 0);
	cr_expect_eq(s.levels, 3);
	cr_expect_eq(s.pages[0], 510);
	cr_expect_eq(s.pages[1], 2);
	cr_expect_eq(s.first[2], 512);
	cr_expect_eq(s.total, 513);
	cr_assert_eq(fmt_index_shape(UINT64_MAX, &s), 0);
	cr_expect_leq(s.levels, (uint32_t)FMT_INDEX_LEVELS_MAX);
}

/* SP-3, CS-1 */
Test(format_page, the_reserve_holds_the_index_and_checksums_of_all_slots)
{
	struct fmt_index_shape s;

	cr_expect_eq(fmt_csum_pages(0), 0);
	cr_expect_eq(fmt_csum_pages(509), 1);
	cr_expect_eq(fmt_csum_pages(510), 2);
	cr_expect_geq(fmt_seal_reserve(0), FMT_PAGE);
	for (uint64_t slots = 1; slots < FMT_SLOT_NONE; slots = slots * 3 + 1) {
		cr_assert_eq(fmt_index_shape(2 * slots + 1, &s), 0);
		cr_expect_geq(fmt_seal_reserve(slots),
			      (s.total + fmt_csum_pages(slots)) * FMT_PAGE);
	}
}

/* SL-3 */
Test(format_page, seal_hash_is_xxh3_128_whatever_the_pieces)
{
	struct fmt_seal_hash *h = fmt_seal_hash_create();
	uint8_t pages[3 * FMT_PAGE], got[16];
	XXH128_canonical_t want;

	for (size_t i = 0; i < sizeof(pages); i++)
		pages[i] = (uint8_t)(i * 31 >> 3);
	XXH128_canonicalFromHash(&want, XXH3_128bits(pages, sizeof(pages)));
	cr_assert_not_null(h);
	fmt_seal_hash_add(h, pages, FMT_PAGE);
	fmt_seal_hash_add(h, pages + FMT_PAGE, 2 * FMT_PAGE);
	fmt_seal_hash_end(h, got);
	cr_expect_arr_eq(got, want.digest, 16);
	fmt_seal_hash_destroy(h);
	fmt_seal_hash_destroy(NULL);
}

/* CS-2 */
Test(format_page, block_checksum_is_xxh3_64_without_a_seed)
{
	uint8_t block[4096] = {1, 2, 3};

	cr_expect_eq(fmt_block_csum(block, sizeof(block)), XXH3_64bits(block, sizeof(block)));
	block[4095] = 1;
	cr_expect_neq(fmt_block_csum(block, sizeof(block)), fmt_block_csum(block, 4095));
}
