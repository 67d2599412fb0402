/* SPDX-License-Identifier: MIT */
/* format_header.c - header slots: every field, every rule, and which slot counts. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <xxhash.h>

#include "format/layer.h"

static struct fmt_header overlay(void)
{
	return (struct fmt_header){
		.kind = FMT_KIND_OVERLAY,
		.state = FMT_STATE_ACTIVE,
		.block_bits = 12,
		.seq = 6,
		.store_id = {{1}},
		.disk_id = {{2}},
		.layer_id = {{3}},
		.parent_id = {{4}},
		.generation = 1,
		.size = 1ull << 30,
		.salt = 0x1122334455667788,
		.created_ns = 1700000000000000000,
		.data_offset = FMT_DATA_OFFSET,
		.log0_len = FMT_DATA_OFFSET - FMT_LOG0_OFFSET,
		.log_granule = 512,
		.log_segments = 1,
	};
}

static struct fmt_header sealed(void)
{
	struct fmt_header h = overlay();

	h.state = FMT_STATE_SEALED;
	h.slots = 1000;
	h.index_runs = 300; /* two leaves and a root */
	h.index_offset = h.data_offset + (1000ull << 12);
	h.csum_offset = h.index_offset + 3 * FMT_PAGE;
	return h;
}

static void edit(uint8_t *slot, size_t offset, uint64_t value, size_t bytes)
{
	le64 csum;

	for (size_t i = 0; i < bytes; i++)
		slot[offset + i] = (uint8_t)(value >> (8 * i));
	csum = le64_make(XXH3_64bits(slot, 0xff8));
	memcpy(slot + 0xff8, &csum, 8);
}

/* LH-1 */
Test(format_header, every_field_comes_back)
{
	struct fmt_header h = sealed(), got;
	uint8_t slot[FMT_PAGE];

	h.incompat = FMT_INCOMPAT_ONE_FLUSH;
	h.ro_compat = 5;
	h.compat = 6;
	h.created_ns = -1;
	h.log_segments = 9;
	h.boot_id[15] = 7;
	h.journal_nonce = 8;
	h.snapshot_id.b[3] = 9;
	h.snapshot_members = 4;
	h.snapshot_index = 3;
	h.seal_hash[1] = 10;
	h.parent_hash[2] = 11;
	h.base_mtime_ns = -12;
	h.base_bytes = 13;
	h.log_seq = 14;
	fmt_header_encode(&h, slot);
	memset(&got, 0, sizeof(got));
	cr_assert_eq(fmt_header_decode(slot, &got, NULL), 0);
	cr_expect_eq(got.kind, h.kind);
	cr_expect_eq(got.state, h.state);
	cr_expect_eq(got.block_bits, h.block_bits);
	cr_expect_eq(got.seq, h.seq);
	cr_expect_eq(got.incompat, h.incompat);
	cr_expect_eq(got.ro_compat, h.ro_compat);
	cr_expect_eq(got.compat, h.compat);
	cr_expect(fmt_uuid_equal(&got.store_id, &h.store_id));
	cr_expect(fmt_uuid_equal(&got.disk_id, &h.disk_id));
	cr_expect(fmt_uuid_equal(&got.layer_id, &h.layer_id));
	cr_expect(fmt_uuid_equal(&got.parent_id, &h.parent_id));
	cr_expect_eq(got.generation, h.generation);
	cr_expect_eq(got.size, h.size);
	cr_expect_eq(got.salt, h.salt);
	cr_expect_eq(got.created_ns, h.created_ns);
	cr_expect_eq(got.data_offset, h.data_offset);
	cr_expect_eq(got.log0_len, h.log0_len);
	cr_expect_eq(got.log_granule, h.log_granule);
	cr_expect_eq(got.log_segments, h.log_segments);
	cr_expect_arr_eq(got.boot_id, h.boot_id, 16);
	cr_expect_eq(got.journal_nonce, h.journal_nonce);
	cr_expect(fmt_uuid_equal(&got.snapshot_id, &h.snapshot_id));
	cr_expect_eq(got.snapshot_members, h.snapshot_members);
	cr_expect_eq(got.snapshot_index, h.snapshot_index);
	cr_expect_eq(got.index_offset, h.index_offset);
	cr_expect_eq(got.index_runs, h.index_runs);
	cr_expect_eq(got.csum_offset, h.csum_offset);
	cr_expect_eq(got.slots, h.slots);
	cr_expect_arr_eq(got.seal_hash, h.seal_hash, 16);
	cr_expect_arr_eq(got.parent_hash, h.parent_hash, 16);
	cr_expect_eq(got.base_mtime_ns, h.base_mtime_ns);
	cr_expect_eq(got.base_bytes, h.base_bytes);
	cr_expect_eq(got.log_seq, h.log_seq);
}

/* LH-3 */
Test(format_header, any_flipped_byte_is_found)
{
	struct fmt_header h = overlay(), got = {.seq = 42};
	uint8_t slot[FMT_PAGE];

	fmt_header_encode(&h, slot);
	for (size_t i = 0; i < FMT_PAGE; i++) {
		slot[i] ^= 0x10;
		cr_assert_eq(fmt_header_decode(slot, &got, NULL), -EBADMSG, "byte %zu", i);
		slot[i] ^= 0x10;
	}
	cr_expect_eq(got.seq, 42, "written on failure");
	cr_expect_eq(fmt_header_decode(slot, &got, NULL), 0);
}

/* LH-2, FB-1 */
Test(format_header, unknown_version_and_features_are_refused_by_name)
{
	struct fmt_header h = overlay(), got;
	struct fmt_error err;
	uint8_t slot[FMT_PAGE];

	fmt_header_encode(&h, slot);
	edit(slot, 0x08, 2, 4);
	cr_expect_eq(fmt_header_decode(slot, &got, &err), -ENOTSUP);
	cr_expect(strstr(err.text, "version 2"), "%s", err.text);
	edit(slot, 0x08, FMT_VERSION, 4);
	edit(slot, 0x18, 1ull << 63 | FMT_INCOMPAT_ONE_FLUSH, 8);
	cr_expect_eq(fmt_header_decode(slot, &got, &err), -ENOTSUP);
	cr_expect(strstr(err.text, "0x8000000000000000"), "%s", err.text);
	edit(slot, 0x18, 0, 8);
	edit(slot, 0x20, ~0ull, 8); /* read-only compatible and compatible: the reader's business */
	edit(slot, 0x28, ~0ull, 8);
	cr_expect_eq(fmt_header_decode(slot, &got, &err), 0);
}

/* LH-5 */
Test(format_header, reserved_bytes_are_ignored)
{
	struct fmt_header h = overlay(), got;
	uint8_t slot[FMT_PAGE];

	fmt_header_encode(&h, slot);
	edit(slot, 0xac, 1, 4);
	edit(slot, 0x540, 1, 8);
	edit(slot, 0xff0, 1, 8);
	cr_expect_eq(fmt_header_decode(slot, &got, NULL), 0);
}

struct rule {
	const char *what;
	size_t offset, bytes;
	uint64_t value;
};

static void expect_all_broken(const struct fmt_header *h, const struct rule *rules, size_t count)
{
	uint8_t good[FMT_PAGE], slot[FMT_PAGE];
	struct fmt_header got;
	struct fmt_error err;

	fmt_header_encode(h, good);
	for (size_t i = 0; i < count; i++) {
		memcpy(slot, good, FMT_PAGE);
		edit(slot, rules[i].offset, rules[i].value, rules[i].bytes);
		err.text[0] = '\0';
		cr_expect_eq(fmt_header_decode(slot, &got, &err), -EUCLEAN, "%s", rules[i].what);
		cr_expect_neq(err.text[0], '\0', "%s", rules[i].what);
	}
	edit(good, 0x13c, 0, 1); /* edit() itself breaks nothing */
	cr_expect_eq(fmt_header_decode(good, &got, &err), 0);
}

/* LH-6, LH-7 */
Test(format_header, rules_of_an_overlay)
{
	static const struct rule rules[] = {
		{"kind 0", 0x0c, 4, 0},
		{"kind 4", 0x0c, 4, 4},
		{"state 0", 0x84, 4, 0},
		{"state 4", 0x84, 4, 4},
		{"block_bits 11", 0x80, 4, 11},
		{"block_bits 17", 0x80, 4, 17},
		{"block_bits huge", 0x80, 4, UINT32_MAX},
		{"size 0", 0x78, 8, 0},
		{"size odd", 0x78, 8, 513},
		{"size too large", 0x78, 8, FMT_SIZE_MAX + 512},
		{"granule 0", 0xa4, 4, 0},
		{"granule 256", 0xa4, 4, 256},
		{"granule 768", 0xa4, 4, 768},
		{"granule 8192", 0xa4, 4, 8192},
		{"no log", 0xa0, 4, 0},
		{"log0_len not in granules", 0xa0, 4, 0x2100},
		{"log0_len over the data", 0xa0, 4, 0xe200},
		{"log0_len huge", 0xa0, 4, 0xfffffe00},
		{"log_segments", 0xa8, 4, FMT_LOG_SEGMENTS_MAX + 1},
		{"data_offset unaligned", 0x98, 8, 0x10200},
		{"data_offset in the log", 0x98, 8, 0xf000},
		{"data_offset far", 0x98, 8, FMT_DATA_OFFSET_MAX + 4096},
		{"no layer id", 0x50, 1, 0},
		{"own parent", 0x60, 1, 3},
		{"parent without generation", 0x70, 8, 0},
		{"generation without parent", 0x60, 1, 0},
		{"members without snapshot", 0xd8, 4, 1},
		{"index without snapshot", 0xdc, 4, 1},
		{"snapshot without members", 0xc8, 1, 1},
	};
	struct fmt_header h = overlay();

	expect_all_broken(&h, rules, sizeof(rules) / sizeof(rules[0]));
}

/* LH-7, BD-1 */
Test(format_header, rules_of_a_boundary)
{
	static const struct rule rules[] = {
		{"index is members", 0xdc, 4, 2},
		{"members 0", 0xd8, 4, 0},
		{"active", 0x84, 4, FMT_STATE_ACTIVE},
		{"snapshot gone, members stay", 0xc8, 1, 0},
	};
	struct fmt_header h = overlay();

	h.state = FMT_STATE_FROZEN;
	h.snapshot_id.b[0] = 1;
	h.snapshot_members = 2;
	h.snapshot_index = 1;
	expect_all_broken(&h, rules, sizeof(rules) / sizeof(rules[0]));
}

/* SL-2 */
Test(format_header, rules_of_a_seal)
{
	static const struct rule rules[] = {
		{"index unaligned", 0xe0, 8, 0x10000 + (1000ull << 12) + 512},
		{"index in the slots", 0xe0, 8, 0x10000 + (999ull << 12)},
		{"index far", 0xe0, 8, UINT64_MAX - 4095},
		{"csum unaligned", 0xf0, 8, (1ull << 40) + 1},
		{"csum in the slots", 0xf0, 8, 0x2000},
		{"csum far", 0xf0, 8, UINT64_MAX - 4095},
		{"overlap", 0xf0, 8, 0x10000 + (1000ull << 12) + 2 * FMT_PAGE},
		{"same place", 0xf0, 8, 0x10000 + (1000ull << 12)},
		{"more slots than there are", 0xf8, 8, FMT_SLOT_NONE},
		{"slots overflow", 0xf8, 8, UINT64_MAX},
		{"more runs than blocks", 0xe8, 8, (1ull << 18) + 1},
		{"runs overflow", 0xe8, 8, UINT64_MAX},
	};
	struct fmt_header h = sealed();

	expect_all_broken(&h, rules, sizeof(rules) / sizeof(rules[0]));
}

/* SL-2: without a state of SEALED the fields mean nothing. */
Test(format_header, seal_fields_count_in_a_sealed_layer_only)
{
	struct fmt_header h = overlay(), got;
	uint8_t slot[FMT_PAGE];

	fmt_header_encode(&h, slot);
	edit(slot, 0xe0, 1, 8);
	cr_expect_eq(fmt_header_decode(slot, &got, NULL), 0);
}

/* LH-6, LH-7, SC-1 */
Test(format_header, rules_of_a_sidecar)
{
	static const struct rule raw[] = {
		{"sealed", 0x84, 4, FMT_STATE_SEALED},
		{"parent", 0x60, 1, 9},
		{"generation", 0x70, 8, 1},
		{"parent's hash", 0x110, 1, 1},
	};
	static const struct rule qcow2[] = {
		{"active", 0x84, 4, FMT_STATE_ACTIVE},
		{"sealed", 0x84, 4, FMT_STATE_SEALED},
	};
	struct fmt_header h = {
		.kind = FMT_KIND_RAW,
		.state = FMT_STATE_ACTIVE,
		.block_bits = 12,
		.layer_id = {{3}},
		.size = 512,
	};

	expect_all_broken(&h, raw, sizeof(raw) / sizeof(raw[0]));
	h.kind = FMT_KIND_QCOW2;
	h.state = FMT_STATE_FROZEN;
	expect_all_broken(&h, qcow2, sizeof(qcow2) / sizeof(qcow2[0]));
}

/* FD-1 */
Test(format_header, rules_of_a_list)
{
	static const struct rule overlays[] = {
		{"without the bit", 0x18, 8, 0},
		{"none listed", 0x138, 4, 0},
		{"too many", 0x138, 4, FMT_REPLACED_MAX + 1},
		{"huge", 0x138, 4, UINT32_MAX},
		{"active", 0x84, 4, FMT_STATE_ACTIVE},
		{"an entry of none", 0x160, 1, 0},
		{"itself", 0x160, 1, 3},
		{"its parent", 0x160, 1, 4},
	};
	static const struct rule bases[] = {
		{"active", 0x84, 4, FMT_STATE_ACTIVE},
		{"qcow2", 0x0c, 4, FMT_KIND_QCOW2},
		{"without the bit", 0x18, 8, 0},
	};
	struct fmt_header h = sealed();

	h.incompat = FMT_INCOMPAT_FOLDED;
	h.replaced_count = 2;
	h.replaced[0].id.b[0] = 7;
	h.replaced[1].id.b[0] = 8;
	expect_all_broken(&h, overlays, sizeof(overlays) / sizeof(overlays[0]));
	h = (struct fmt_header){
		.kind = FMT_KIND_RAW,
		.state = FMT_STATE_FROZEN,
		.block_bits = 12,
		.layer_id = {{3}},
		.size = 512,
		.incompat = FMT_INCOMPAT_FOLDED,
		.replaced_count = 1,
		.replaced[0].id = {{7}},
	};
	expect_all_broken(&h, bases, sizeof(bases) / sizeof(bases[0]));
}

/* GO-1 */
Test(format_header, rules_of_gone_slots)
{
	static const struct rule rules[] = {
		{"without the bit", 0x18, 8, 0},
		{"no runs", 0x548, 4, 0},
		{"too many", 0x548, 4, FMT_GONE_RUNS_MAX + 1},
		{"huge", 0x548, 4, UINT32_MAX},
		{"unaligned", 0x540, 8, (1ull << 40) + 512},
		{"in the checksums", 0x540, 8, 0x10000 + (1003ull << 12)},
		{"too long for its place", 0x540, 8, 0x8000},
		{"in the log", 0x540, 8, 0x2000},
		{"far", 0x540, 8, UINT64_MAX - 4095},
		{"not sealed", 0x84, 4, FMT_STATE_FROZEN},
	};
	struct fmt_header h = sealed(), got;
	uint8_t slot[FMT_PAGE];
	uint32_t pages;
	uint64_t gap;

	h.incompat = FMT_INCOMPAT_GONE;
	h.gone_offset = fmt_seal_end(&h);
	h.gone_runs = FMT_GONE_RUNS_MAX;
	h.gone_hash[7] = 9;
	cr_expect_eq(h.gone_offset, 0x10000 + (1005ull << 12));
	fmt_header_encode(&h, slot);
	cr_assert_eq(fmt_header_decode(slot, &got, NULL), 0);
	cr_expect_eq(got.gone_offset, h.gone_offset);
	cr_expect_eq(got.gone_runs, h.gone_runs);
	cr_expect_arr_eq(got.gone_hash, h.gone_hash, 16);
	expect_all_broken(&h, rules, sizeof(rules) / sizeof(rules[0]));
	h.log0_len = 0x6000;
	fmt_header_encode(&h, slot);
	pages = (uint32_t)fmt_gap_pages(&h, &gap);
	cr_expect_eq(pages, 8);
	cr_expect_eq(gap + pages * FMT_PAGE, h.data_offset);
	edit(slot, 0x548, pages * 509, 4);
	edit(slot, 0x540, gap, 8);
	cr_expect_eq(fmt_header_decode(slot, &got, NULL), 0, "before slot 0");
	edit(slot, 0x548, pages * 509 + 1, 4);
	cr_expect_eq(fmt_header_decode(slot, &got, NULL), -EUCLEAN, "into slot 0");
	edit(slot, 0x548, 1, 4);
	edit(slot, 0xc8, 1, 1); /* a snapshot's */
	edit(slot, 0xd8, 1, 4);
	cr_expect_eq(fmt_header_decode(slot, &got, NULL), -EUCLEAN);
}

/* FD-2, SL-4 */
Test(format_header, who_stands_on_a_layer_that_lists_others)
{
	const struct fmt_uuid own = {{3}}, listed = {{7}}, bare = {{8}}, other = {{9}};
	const uint8_t hash[16] = {1, 2, 3}, another[16] = {3, 2, 1}, none[16] = {0};
	struct fmt_header h = {
		.kind = FMT_KIND_RAW,
		.state = FMT_STATE_FROZEN,
		.layer_id = own,
		.replaced_count = 2,
		.replaced = {{listed, {1, 2, 3}}, {bare, {0}}},
	};

	cr_expect_eq(fmt_header_check_child(&h, &own, none), 0);
	cr_expect_eq(fmt_header_check_child(&h, &listed, hash), 0);
	cr_expect_eq(fmt_header_check_child(&h, &listed, none), 0);
	cr_expect_eq(fmt_header_check_child(&h, &listed, another), -EUCLEAN);
	cr_expect_eq(fmt_header_check_child(&h, &bare, another), 0, "it had no hash");
	cr_expect_eq(fmt_header_check_child(&h, &other, none), -ENOENT);
	cr_expect_null(fmt_header_hash_for(&h, &other));
	cr_expect_arr_eq(fmt_header_hash_for(&h, &listed), hash, 16);
}

static void encode_slot(uint8_t *slots, uint64_t seq)
{
	struct fmt_header h = overlay();

	h.seq = seq;
	fmt_header_encode(&h, slots + seq % 2 * FMT_PAGE);
}

/* LH-4 */
Test(format_header, the_newest_valid_slot_counts)
{
	uint8_t slots[2 * FMT_PAGE];
	struct fmt_header got;

	memset(slots, 0, sizeof(slots));
	cr_expect_eq(fmt_header_pick(slots, &got, NULL), -EBADMSG, "no header at all");
	encode_slot(slots, 7);
	cr_assert_eq(fmt_header_pick(slots, &got, NULL), 0);
	cr_expect_eq(got.seq, 7);
	encode_slot(slots, 8);
	cr_assert_eq(fmt_header_pick(slots, &got, NULL), 0);
	cr_expect_eq(got.seq, 8);
	encode_slot(slots, 9);
	cr_assert_eq(fmt_header_pick(slots, &got, NULL), 0);
	cr_expect_eq(got.seq, 9);
}

/* LH-4 */
Test(format_header, torn_newest_slot_falls_back_to_the_older)
{
	uint8_t slots[2 * FMT_PAGE], old[FMT_PAGE];
	struct fmt_header got;

	encode_slot(slots, 7);
	encode_slot(slots, 6);
	memcpy(old, slots, FMT_PAGE);
	encode_slot(slots, 8);
	memcpy(slots + 512, old + 512, FMT_PAGE - 512); /* only the first sector arrived */
	cr_assert_eq(fmt_header_pick(slots, &got, NULL), 0);
	cr_expect_eq(got.seq, 7);
}

/* LH-4 */
Test(format_header, newest_slot_that_is_not_ours_is_not_ignored)
{
	uint8_t slots[2 * FMT_PAGE];
	struct fmt_header got;

	encode_slot(slots, 7);
	encode_slot(slots, 8);
	edit(slots, 0x18, 1ull << 40, 8);
	cr_expect_eq(fmt_header_pick(slots, &got, NULL), -ENOTSUP);
	encode_slot(slots, 8);
	edit(slots, 0x80, 9, 4);
	cr_expect_eq(fmt_header_pick(slots, &got, NULL), -EUCLEAN);
	encode_slot(slots, 9); /* an older one that is not ours no longer matters */
	cr_assert_eq(fmt_header_pick(slots, &got, NULL), 0);
	cr_expect_eq(got.seq, 9);
}

/* LH-4 */
Test(format_header, a_slot_in_the_wrong_place_breaks_the_rule)
{
	uint8_t slots[2 * FMT_PAGE];
	struct fmt_header got;

	encode_slot(slots, 7);
	memcpy(slots, slots + FMT_PAGE, FMT_PAGE);
	cr_expect_eq(fmt_header_pick(slots, &got, NULL), -EUCLEAN);
}
