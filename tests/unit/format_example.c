/* SPDX-License-Identifier: MIT */
/*
 * format_example.c - the example overlay of spec/format.md, rebuilt byte for byte from its hex
 * dump. The dump is every block fenced as "```hex"; bytes that it leaves out are zero. VMIMG_SRCDIR
 * names the source tree, the current directory when unset.
 */
#include <criterion/criterion.h>
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "format/layer.h"

#define EXAMPLE_LEN 0x2200u /* the header slots and the log's first granule */

static FILE *open_spec(void)
{
	const char *dir = getenv("VMIMG_SRCDIR");
	char path[4096];
	FILE *f;

	snprintf(path, sizeof(path), "%s/spec/format.md", dir ? dir : ".");
	f = fopen(path, "r");
	cr_assert_not_null(f, "%s: set VMIMG_SRCDIR to the source tree", path);
	return f;
}

/* One line: an offset of eight digits, up to 16 bytes, then words. */
static size_t parse_line(const char *line, uint8_t image[EXAMPLE_LEN])
{
	char *end;
	unsigned long at = strtoul(line, &end, 16);
	size_t n = 0;

	cr_assert_eq(end - line, 8, "not a line of a dump: %s", line);
	for (; n < 16; end += 2) {
		end += strspn(end, " ");
		if (!isxdigit((unsigned char)end[0]) || !isxdigit((unsigned char)end[1]))
			break;
		cr_assert_lt(at + n, EXAMPLE_LEN);
		image[at + n++] = (uint8_t)strtoul((char[]){end[0], end[1], '\0'}, NULL, 16);
	}
	return n;
}

static void read_dump(uint8_t image[EXAMPLE_LEN])
{
	FILE *f = open_spec();
	char line[256];
	bool inside = false;
	size_t bytes = 0;

	memset(image, 0, EXAMPLE_LEN);
	while (fgets(line, sizeof(line), f)) {
		if (strncmp(line, "```", 3) == 0)
			inside = strncmp(line, "```hex", 6) == 0;
		else if (inside)
			bytes += parse_line(line, image);
	}
	fclose(f);
	cr_assert_gt(bytes, 0x130, "spec/format.md has no dump");
}

static void build(uint8_t image[EXAMPLE_LEN])
{
	static const struct fmt_run runs[] = {
		{.block = 5, .slot = 0, .count = 3, .kind = FMT_RUN_DATA},
		{.block = 16, .slot = FMT_SLOT_NONE, .count = 16, .kind = FMT_RUN_ZERO},
	};
	struct fmt_record rec = {
		.seq = 1,
		.journal_seq = 2,
		.flags = FMT_REC_DURABLE_FIRST,
		.runs = 2,
	};
	struct fmt_header h = {
		.kind = FMT_KIND_OVERLAY,
		.state = FMT_STATE_ACTIVE,
		.block_bits = 12,
		.seq = 1,
		.generation = 1,
		.size = 1 << 20,
		.salt = 0x0123456789abcdef,
		.created_ns = 1700000000000000000,
		.data_offset = 0x10000,
		.log0_len = 0x6000,
		.log_granule = 512,
		.log_segments = 1,
		.journal_nonce = 0x1122334455667788,
	};

	cr_assert_eq(fmt_uuid_parse("5107e000-0000-4000-8000-000000000001", &h.store_id), 0);
	cr_assert_eq(fmt_uuid_parse("d15c0000-0000-4000-8000-000000000002", &h.disk_id), 0);
	cr_assert_eq(fmt_uuid_parse("1a7e6000-0000-4000-8000-000000000003", &h.layer_id), 0);
	cr_assert_eq(fmt_uuid_parse("ba5e0000-0000-4000-8000-000000000004", &h.parent_id), 0);
	memset(h.boot_id, 0xb0, sizeof(h.boot_id));
	memset(image, 0, EXAMPLE_LEN);
	fmt_header_encode(&h, image + h.seq % FMT_HEADER_SLOTS * FMT_PAGE);
	cr_assert_eq(fmt_record_encode(&rec, runs, NULL, h.salt, h.log_granule,
				       image + FMT_LOG0_OFFSET, EXAMPLE_LEN - FMT_LOG0_OFFSET),
		     512);
}

/* LH-1, ML-2, ML-3 */
Test(format_example, the_dump_in_the_spec_is_what_we_write)
{
	static uint8_t dump[EXAMPLE_LEN], image[EXAMPLE_LEN];

	read_dump(dump);
	build(image);
	for (size_t i = 0; i < EXAMPLE_LEN; i++)
		cr_assert_eq(dump[i], image[i], "byte %#zx: the spec says %02x, we write %02x", i,
			     dump[i], image[i]);
}

/* LH-4, ML-5 */
Test(format_example, the_dump_in_the_spec_is_read)
{
	static uint8_t dump[EXAMPLE_LEN];
	struct fmt_header h;
	struct fmt_record rec;
	struct fmt_run run;

	read_dump(dump);
	cr_assert_eq(fmt_header_pick(dump, &h, NULL), 0);
	cr_expect_eq(h.size, 1 << 20);
	cr_assert_eq(fmt_record_decode(dump + FMT_LOG0_OFFSET, EXAMPLE_LEN - FMT_LOG0_OFFSET,
				       h.salt, &rec, NULL),
		     0);
	fmt_record_run(&rec, 0, &run);
	cr_expect_eq(run.block, 5);
	cr_expect_eq(run.count, 3);
}
