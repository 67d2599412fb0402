/* SPDX-License-Identifier: MIT */
/*
 * format_content.c - the checksum of an exported file's content (spec/stream.md MF-5).
 */
#include <criterion/criterion.h>
#include <string.h>

#include "format/content.h"
#include "format/le.h"

#define SECTORS 64u

static uint8_t bytes[SECTORS * FMT_SECTOR];

static void fill(void)
{
	for (size_t i = 0; i < sizeof(bytes); i++)
		bytes[i] = (uint8_t)(i * 7 + i / 251);
	memset(bytes + 5 * FMT_SECTOR, 0, 3 * FMT_SECTOR);
}

static struct fmt_content whole(void)
{
	struct fmt_content c = {0};

	fmt_content_add(&c, bytes, sizeof(bytes), 1 << 20);
	return c;
}

static bool same(struct fmt_content a, struct fmt_content b)
{
	return a.lo == b.lo && a.hi == b.hi;
}

/* MF-5 */
Test(format_content, order_pieces_and_holes_do_not_matter)
{
	struct fmt_content parts = {0}, none = {0};

	fill();
	for (size_t i = SECTORS; i-- > 0;)
		if (i < 5 || i > 7) /* zeros: a hole */
			fmt_content_add(&parts, bytes + i * FMT_SECTOR, FMT_SECTOR,
					(1 << 20) + i * FMT_SECTOR);
	cr_expect(same(parts, whole()));
	fmt_content_add(&none, bytes + 5 * FMT_SECTOR, 3 * FMT_SECTOR, 0);
	cr_expect(same(none, (struct fmt_content){0}), "zeros count for nothing");
}

/* MF-5 */
Test(format_content, every_byte_and_its_place_count)
{
	struct fmt_content was, c = {0};

	fill();
	was = whole();
	for (size_t i = 0; i < sizeof(bytes); i += 97) {
		bytes[i] ^= 1;
		cr_assert_not(same(whole(), was), "byte %zu", i);
		bytes[i] ^= 1;
	}
	cr_assert(same(whole(), was));
	fmt_content_add(&c, bytes, sizeof(bytes), 0);
	cr_expect_not(same(c, was), "moved");
	memcpy(bytes + FMT_SECTOR, bytes, FMT_SECTOR);
	c = whole();
	memcpy(bytes, bytes + 2 * FMT_SECTOR, FMT_SECTOR);
	memcpy(bytes + 2 * FMT_SECTOR, bytes + FMT_SECTOR, FMT_SECTOR);
	cr_expect_not(same(whole(), c), "two that changed places");
}

/* MF-5: the bytes are fixed; another sum makes every export that is out there one that was changed. */
Test(format_content, the_sum_is_what_it_always_was)
{
	static const uint8_t expected[16] = {0xbf, 0xc4, 0x07, 0x49, 0x44, 0xc0, 0xbc, 0x88,
					     0x7e, 0x2e, 0xd7, 0x4b, 0x25, 0xe3, 0x8c, 0xa7};
	struct fmt_content c;
	uint8_t got[16];

	fill();
	c = whole();
	fmt_content_get(&c, got);
	cr_expect(memcmp(got, expected, sizeof(got)) == 0,
		  "%02x%02x%02x%02x%02x%02x%02x%02x%02x%02x%02x%02x%02x%02x%02x%02x", got[0],
		  got[1], got[2], got[3], got[4], got[5], got[6], got[7], got[8], got[9], got[10],
		  got[11], got[12], got[13], got[14], got[15]);
}
