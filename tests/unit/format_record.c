/* SPDX-License-Identifier: MIT */
/* format_record.c - map log records and their runs. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <xxhash.h>

#include "format/layer.h"

#define SALT 0x0123456789abcdefull

static const struct fmt_run RUNS[] = {
	{.block = 100, .slot = 7, .count = 2, .kind = FMT_RUN_DATA},
	{.block = 50, .slot = FMT_SLOT_NONE, .count = 1000000, .kind = FMT_RUN_ZERO},
	{.block = 1ull << 40, .slot = 9, .count = 1, .kind = FMT_RUN_DATA},
};
static const uint64_t CSUMS[] = {11, 22, 33};

static struct fmt_record record(uint32_t flags)
{
	return (struct fmt_record){
		.seq = 5, .journal_seq = 77, .confirmed_seq = 4, .flags = flags, .runs = 3};
}

/* Overwrites a field and makes the checksum good again. */
static void edit(uint8_t *buf, size_t offset, uint64_t value, size_t bytes)
{
	uint32_t len;
	le64 csum = le64_make(0);
	le32 v;

	for (size_t i = 0; i < bytes; i++)
		buf[offset + i] = (uint8_t)(value >> (8 * i));
	memcpy(&v, buf + 4, 4);
	len = le32_get(v);
	memcpy(buf + 0x38, &csum, 8);
	csum = le64_make(XXH3_64bits_withSeed(buf, len, SALT));
	memcpy(buf + 0x38, &csum, 8);
}

/* ML-2, ML-3, ML-4 */
Test(format_record, one_flush_record_comes_back)
{
	struct fmt_record rec = record(0), got;
	uint8_t buf[4096];
	struct fmt_run run;

	memset(buf, 0xaa, sizeof(buf));
	cr_assert_eq(fmt_record_encode(&rec, RUNS, CSUMS, SALT, 512, buf, sizeof(buf)), 512);
	cr_assert_eq(fmt_record_decode(buf, sizeof(buf), SALT, &got, NULL), 0);
	cr_expect_eq(got.seq, 5);
	cr_expect_eq(got.journal_seq, 77);
	cr_expect_eq(got.confirmed_seq, 4);
	cr_expect_eq(got.flags, 0);
	cr_expect_eq(got.runs, 3);
	cr_expect_eq(got.len, 0x40 + 3 * 16 + 3 * 8);
	cr_expect_eq(got.len, fmt_record_size(3, 3));
	for (uint32_t i = 0; i < 3; i++) {
		fmt_record_run(&got, i, &run);
		cr_expect_eq(run.block, RUNS[i].block);
		cr_expect_eq(run.slot, RUNS[i].slot);
		cr_expect_eq(run.count, RUNS[i].count);
		cr_expect_eq(run.kind, RUNS[i].kind);
		cr_expect_eq(fmt_record_csum(&got, i), CSUMS[i]);
	}
	for (size_t i = got.len; i < 512; i++)
		cr_assert_eq(buf[i], 0, "padding at %zu", i);
	cr_expect_eq(buf[512], 0xaa, "past the padding");
}

/* ML-4 */
Test(format_record, durable_first_record_has_no_checksums)
{
	struct fmt_record rec = record(FMT_REC_DURABLE_FIRST), got;
	uint8_t buf[4096];

	cr_assert_eq(fmt_record_encode(&rec, RUNS, NULL, SALT, 4096, buf, sizeof(buf)), 4096);
	cr_assert_eq(fmt_record_decode(buf, sizeof(buf), SALT, &got, NULL), 0);
	cr_expect_eq(got.len, 0x40 + 3 * 16);
	cr_expect_null(got.csum_bytes);
}

/* ML-6 */
Test(format_record, link_comes_back)
{
	struct fmt_record rec = {.seq = 9,
				 .flags = FMT_REC_DURABLE_FIRST | FMT_REC_LINK,
				 .link_offset = 0x100000,
				 .link_len = 0x10000};
	struct fmt_record got;
	uint8_t buf[512];

	cr_assert_eq(fmt_record_encode(&rec, NULL, NULL, SALT, 512, buf, sizeof(buf)), 512);
	cr_assert_eq(fmt_record_decode(buf, sizeof(buf), SALT, &got, NULL), 0);
	cr_expect_eq(got.flags, FMT_REC_DURABLE_FIRST | FMT_REC_LINK);
	cr_expect_eq(got.link_offset, 0x100000);
	cr_expect_eq(got.link_len, 0x10000);
}

Test(format_record, encode_refuses_what_does_not_fit)
{
	struct fmt_record rec = record(0);
	uint8_t buf[4096];

	cr_expect_eq(fmt_record_encode(&rec, RUNS, CSUMS, SALT, 4096, buf, 4095), -ENOSPC);
	cr_expect_eq(fmt_record_encode(&rec, RUNS, CSUMS, SALT, 4096, buf, 4096), 4096);
}

/* ML-8: whatever is missing or torn is no record; it is never half a record. */
Test(format_record, every_truncation_and_flipped_byte_is_no_record)
{
	struct fmt_record rec = record(0), got = {.seq = 42};
	uint8_t buf[512];

	cr_assert_gt(fmt_record_encode(&rec, RUNS, CSUMS, SALT, 512, buf, sizeof(buf)), 0);
	for (size_t len = 0; len < fmt_record_size(3, 3); len++)
		cr_assert_eq(fmt_record_decode(buf, len, SALT, &got, NULL), -ENODATA, "%zu", len);
	for (size_t i = 0; i < fmt_record_size(3, 3); i++) {
		buf[i] ^= 1;
		cr_assert_eq(fmt_record_decode(buf, sizeof(buf), SALT, &got, NULL), -ENODATA, "%zu",
			     i);
		buf[i] ^= 1;
	}
	cr_expect_eq(got.seq, 42, "written on failure");
}

/* ML-5, T13 */
Test(format_record, another_layers_record_is_no_record)
{
	struct fmt_record rec = record(0), got;
	uint8_t buf[512];

	cr_assert_gt(fmt_record_encode(&rec, RUNS, CSUMS, SALT, 512, buf, sizeof(buf)), 0);
	cr_expect_eq(fmt_record_decode(buf, sizeof(buf), SALT + 1, &got, NULL), -ENODATA);
	memset(buf, 0, sizeof(buf));
	cr_expect_eq(fmt_record_decode(buf, sizeof(buf), SALT, &got, NULL), -ENODATA);
}

/* ML-2, ML-3, ML-5, ML-6, RU-1 */
Test(format_record, a_checksummed_record_against_a_rule_is_unclean)
{
	static const struct {
		const char *what;
		size_t offset, bytes;
		uint64_t value;
	} rules[] = {
		{"seq 0", 0x08, 8, 0},
		{"seq wraps", 0x08, 8, UINT64_MAX},
		{"journal number wraps", 0x10, 8, UINT64_MAX},
		{"confirms the future", 0x18, 8, 6},
		{"unknown flag", 0x20, 4, 4},
		{"link with runs", 0x20, 4, FMT_REC_LINK},
		{"durable first with checksums", 0x20, 4, FMT_REC_DURABLE_FIRST},
		{"fewer runs", 0x24, 4, 2},
		{"more runs", 0x24, 4, 4},
		{"too many runs", 0x24, 4, UINT32_MAX},
		{"link offset without link", 0x28, 8, 0x10000},
		{"link length without link", 0x30, 4, 512},
		{"length without the last checksum", 0x04, 4, 0x40 + 3 * 16 + 2 * 8},
		{"length past the last checksum", 0x04, 4, 0x40 + 3 * 16 + 4 * 8},
		{"run of nothing", 0x4c, 4, 0},
		{"run of a kind unknown", 0x4c, 4, 2u << 30 | 2},
		{"run past any disk", 0x40, 8, UINT64_MAX},
		{"run past any slot", 0x48, 4, FMT_SLOT_NONE - 1},
		{"more data blocks than checksums", 0x4c, 4, 3},
		{"zeros with a slot", 0x58, 4, 1},
	};
	struct fmt_record rec = record(0), got;
	uint8_t good[512], buf[512];
	struct fmt_error err;

	cr_assert_gt(fmt_record_encode(&rec, RUNS, CSUMS, SALT, 512, good, sizeof(good)), 0);
	for (size_t i = 0; i < sizeof(rules) / sizeof(rules[0]); i++) {
		memcpy(buf, good, sizeof(buf));
		edit(buf, rules[i].offset, rules[i].value, rules[i].bytes);
		cr_expect_eq(fmt_record_decode(buf, sizeof(buf), SALT, &got, &err), -EUCLEAN, "%s",
			     rules[i].what);
	}
	edit(good, 0x34, 1, 4); /* reserved: ignored */
	cr_expect_eq(fmt_record_decode(good, sizeof(good), SALT, &got, &err), 0);
}

/* ML-6 */
Test(format_record, a_link_to_nowhere_is_unclean)
{
	static const struct {
		size_t offset, bytes;
		uint64_t value;
	} rules[] = {
		{0x28, 8, 0}, {0x28, 8, 0x1000}, {0x28, 8, 0x10001}, {0x28, 8, UINT64_MAX - 511},
		{0x30, 4, 0}, {0x30, 4, 100},
	};
	struct fmt_record rec = {.seq = 9,
				 .flags = FMT_REC_LINK,
				 .link_offset = 0x10000,
				 .link_len = 0x10000};
	struct fmt_record got;
	uint8_t good[512], buf[512];

	cr_assert_gt(fmt_record_encode(&rec, NULL, NULL, SALT, 512, good, sizeof(good)), 0);
	cr_expect_eq(fmt_record_decode(good, sizeof(good), SALT, &got, NULL), 0);
	for (size_t i = 0; i < sizeof(rules) / sizeof(rules[0]); i++) {
		memcpy(buf, good, sizeof(buf));
		edit(buf, rules[i].offset, rules[i].value, rules[i].bytes);
		cr_expect_eq(fmt_record_decode(buf, sizeof(buf), SALT, &got, NULL), -EUCLEAN, "%zu",
			     i);
	}
}

/* ML-3: the largest record. */
Test(format_record, the_largest_record_fits)
{
	struct fmt_record rec = {.seq = 1, .runs = FMT_RECORD_RUNS_MAX}, got;
	struct fmt_run *runs = calloc(FMT_RECORD_RUNS_MAX, sizeof(*runs));
	uint64_t *csums = calloc(FMT_RECORD_CSUMS_MAX, sizeof(*csums));
	uint32_t len = fmt_record_size(FMT_RECORD_RUNS_MAX, FMT_RECORD_CSUMS_MAX);
	size_t padded = (len + 4095) & ~4095u;
	uint8_t *buf = malloc(padded);

	for (uint32_t i = 0; i < FMT_RECORD_RUNS_MAX; i++)
		runs[i] = (struct fmt_run){.block = i * 8, .slot = i * 4, .count = 4};
	for (uint32_t i = 0; i < FMT_RECORD_CSUMS_MAX; i++)
		csums[i] = i * 3;
	cr_assert_eq(fmt_record_encode(&rec, runs, csums, SALT, 4096, buf, padded),
		     (int64_t)padded);
	cr_assert_eq(fmt_record_decode(buf, padded, SALT, &got, NULL), 0);
	cr_expect_eq(fmt_record_csum(&got, FMT_RECORD_CSUMS_MAX - 1),
		     (FMT_RECORD_CSUMS_MAX - 1) * 3);
	free(buf);
	free(csums);
	free(runs);
}

/* RU-1, RU-2 */
Test(format_record, runs_are_bounded_by_disk_and_layer)
{
	struct fmt_run run = {.block = 90, .slot = 40, .count = 10, .kind = FMT_RUN_DATA};
	struct fmt_run zero = {.block = 0,
			       .slot = FMT_SLOT_NONE,
			       .count = 100,
			       .kind = FMT_RUN_ZERO};

	cr_expect_eq(fmt_run_check(&run, 100, 50, NULL), 0);
	cr_expect_eq(fmt_run_check(&run, 99, 50, NULL), -EUCLEAN);
	cr_expect_eq(fmt_run_check(&run, 90, 50, NULL), -EUCLEAN);
	cr_expect_eq(fmt_run_check(&run, 100, 49, NULL), -EUCLEAN);
	cr_expect_eq(fmt_run_check(&zero, 100, 0, NULL), 0);
	run.block = UINT64_MAX - 3;
	cr_expect_eq(fmt_run_check(&run, 100, 50, NULL), -EUCLEAN);
	cr_expect_eq(fmt_run_check(&run, UINT64_MAX, 50, NULL), -EUCLEAN);
	run.block = 0;
	run.count = FMT_RUN_COUNT_MAX + 1;
	cr_expect_eq(fmt_run_check(&run, UINT64_MAX, UINT64_MAX, NULL), -EUCLEAN);
}
