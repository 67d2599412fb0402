/* SPDX-License-Identifier: MIT */
/* format_qcow2.c - qcow2 headers and entries: what is read, and that all else is refused by name. */
#include "format/qcow2.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

enum { HEAD = 65536 }; /* the default cluster */

static uint8_t head[HEAD];
static struct fmt_error err;
static struct fmt_qcow2 hdr;

static void put32(uint8_t *p, uint32_t v)
{
	for (int i = 0; i < 4; i++)
		p[i] = (uint8_t)(v >> (24 - 8 * i));
}

static void put64(uint8_t *p, uint64_t v)
{
	put32(p, (uint32_t)(v >> 32));
	put32(p + 4, (uint32_t)v);
}

static void header(uint32_t version, uint32_t cluster_bits, uint64_t size, uint32_t l1_size)
{
	memset(head, 0, sizeof(head));
	put32(head, 0x514649fb);
	put32(head + 4, version);
	put32(head + 20, cluster_bits);
	put64(head + 24, size);
	put32(head + 36, l1_size);
	put64(head + 40, UINT64_C(3) << cluster_bits);
	if (version == 3) {
		put32(head + 96, 4);
		put32(head + 100, 112);
	}
}

static int decode(void)
{
	memset(&err, 0, sizeof(err));
	return fmt_qcow2_decode(head, sizeof(head), &err, &hdr);
}

/* Appends an extension at @at; returns where the next one goes. */
static size_t extension(size_t at, uint32_t type, const void *data, uint32_t len)
{
	put32(head + at, type);
	put32(head + at + 4, len);
	memcpy(head + at + 8, data, len);
	return at + 8 + (len + 7) / 8 * 8;
}

static void expect_refused(int code, const char *naming)
{
	struct fmt_qcow2 before = hdr;

	cr_expect_eq(decode(), code, "%s: %s", naming, err.text);
	cr_expect(strstr(err.text, naming), "\"%s\" does not say \"%s\"", err.text, naming);
	cr_expect_eq(memcmp(&before, &hdr, sizeof(hdr)), 0, "written although refused");
}

/* Q2-1 Q2-4 */
Test(format_qcow2, versions_2_and_3_decode)
{
	for (uint32_t version = 2; version <= 3; version++) {
		header(version, 16, UINT64_C(5) << 30, 10);
		put32(head + 60, 2);
		cr_assert_eq(decode(), 0, "%s", err.text);
		cr_expect_eq(hdr.version, version);
		cr_expect_eq(hdr.cluster_bits, 16);
		cr_expect_eq(hdr.l2_bits, 13);
		cr_expect_eq(hdr.size, UINT64_C(5) << 30);
		cr_expect_eq(hdr.l1_entries, 10);
		cr_expect_eq(hdr.l1_offset, 3 << 16);
		cr_expect_eq(hdr.snapshots, 2);
		cr_expect_str_eq(hdr.backing, "");
	}
}

/* Q2-2 */
Test(format_qcow2, all_cluster_sizes_decode_and_no_others)
{
	uint32_t len = 0;

	for (uint32_t bits = 9; bits <= 21; bits++) {
		header(3, bits, 1, 1);
		cr_expect_eq(fmt_qcow2_head_len(head, 72, &err, &len), 0, "%u: %s", bits, err.text);
		cr_expect_eq(len, 1u << bits);
		cr_expect_eq(decode(), 0, "%u: %s", bits, err.text);
	}
	for (uint32_t bits = 0; bits < 200; bits = bits == 8 ? 22 : bits + 1) {
		header(3, 16, 1, 1);
		put32(head + 20, bits);
		expect_refused(-EUCLEAN, "cluster_bits");
	}
}

/* Q2-1 */
Test(format_qcow2, other_files_and_versions_are_refused)
{
	header(3, 16, 1, 1);
	head[0] = 'R';
	expect_refused(-EINVAL, "magic");
	header(1, 16, 1, 1);
	expect_refused(-ENOTSUP, "version 1");
	header(4, 16, 1, 1);
	expect_refused(-ENOTSUP, "version 4");
}

/* Q2-3 */
Test(format_qcow2, every_shorter_header_is_refused)
{
	for (uint32_t version = 2; version <= 3; version++) {
		size_t need = version == 2 ? 72 : 112;

		header(version, 16, 1, 1);
		for (size_t len = 0; len < need; len++) {
			uint8_t *exact = malloc(len +
						1); /* a read behind it is seen by the sanitizer */

			memcpy(exact, head, len);
			cr_expect_lt(fmt_qcow2_decode(exact, len, &err, &hdr), 0, "%zu bytes", len);
			free(exact);
		}
		cr_expect_eq(fmt_qcow2_decode(head, need, &err, &hdr), 0, "%s", err.text);
	}
}

/* Q2-4 */
Test(format_qcow2, version_3_fields_are_bounded)
{
	const uint32_t bad[] = {0, 72, 96, 103, 105, 109, HEAD + 8, UINT32_MAX, UINT32_MAX - 7};

	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		header(3, 16, 1, 1);
		put32(head + 100, bad[i]);
		expect_refused(-EUCLEAN, "header_length");
	}
	header(3, 16, 1, 1);
	put32(head + 96, 7);
	expect_refused(-EUCLEAN, "refcount_order");
	header(3, 16, 1, 1);
	put32(head + 100, 104); /* as written before the compression type existed */
	cr_assert_eq(decode(), 0, "%s", err.text);
}

/* Q2-7 Q2-8 Q2-9 Q2-10 Q2-11 */
Test(format_qcow2, what_is_not_read_is_refused_by_name)
{
	header(3, 16, 1, 1);
	put32(head + 32, 1);
	expect_refused(-ENOTSUP, "AES");
	put32(head + 32, 2);
	expect_refused(-ENOTSUP, "LUKS");
	header(2, 16, 1, 1);
	put32(head + 32, 9);
	expect_refused(-ENOTSUP, "encrypted");

	header(3, 16, 1, 1);
	put64(head + 72, FMT_QCOW2_EXTERNAL_DATA);
	extension(112, 0x44415441, "disk.data", 9);
	expect_refused(-ENOTSUP, "external data file \"disk.data\"");

	header(3, 16, 1, 1);
	put64(head + 72, FMT_QCOW2_COMPRESSION_TYPE);
	head[104] = 1;
	expect_refused(-ENOTSUP, "zstd");
	head[104] = 2;
	expect_refused(-ENOTSUP, "compression type 2");
	head[104] = 0;
	expect_refused(-EUCLEAN, "compression type");
	put64(head + 72, 0);
	head[104] = 1;
	expect_refused(-ENOTSUP, "zstd");

	header(3, 16, 1, 1);
	put64(head + 72, FMT_QCOW2_CORRUPT);
	expect_refused(-EUCLEAN, "marked corrupt");
}

/* Q2-10 */
Test(format_qcow2, unknown_incompatible_bits_are_named_by_the_image)
{
	uint8_t names[2 * 48] = {0};

	for (int bit = 5; bit < 64; bit++) {
		char number[16];

		header(3, 16, 1, 1);
		put64(head + 72, UINT64_C(1) << bit);
		snprintf(number, sizeof(number), "bit %d ", bit);
		expect_refused(-ENOTSUP, number);
	}
	names[0] = 1; /* a compatible feature of the same number */
	names[1] = 40;
	memcpy(names + 2, "harmless", 8);
	names[49] = 40;
	memset(names + 50, 'N', 46); /* fills its field, no NUL */
	header(3, 16, 1, 1);
	put64(head + 72, UINT64_C(1) << 40);
	extension(112, 0x6803f857, names, sizeof(names));
	expect_refused(-ENOTSUP, "(NNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNN)");
}

/* Q2-12 */
Test(format_qcow2, a_dirty_image_and_unknown_compatible_bits_are_read)
{
	char text[128];

	header(3, 16, 1, 1);
	put64(head + 72, FMT_QCOW2_DIRTY);
	put64(head + 80, UINT64_MAX);
	put64(head + 88, UINT64_MAX - 1);
	cr_assert_eq(decode(), 0, "%s", err.text);
	fmt_qcow2_features(&hdr, text, sizeof(text));
	cr_expect_str_eq(text, "dirty, lazy-refcounts");
	header(2, 16, 1, 1);
	cr_assert_eq(decode(), 0);
	fmt_qcow2_features(&hdr, text, sizeof(text));
	cr_expect_str_eq(text, "none");
	put64(head + 72, FMT_QCOW2_CORRUPT << 32); /* in version 2 it is an extension of type 2 */
	cr_expect_eq(decode(), 0, "%s", err.text);
	cr_expect_eq(hdr.incompatible, 0);
}

/* Q2-6 */
Test(format_qcow2, extensions_are_bounded_and_unknown_ones_skipped)
{
	size_t at;

	header(3, 16, 1, 1);
	at = extension(112, 0x12345678, "abc", 3);
	extension(at, 0xe2792aca, "raw", 3);
	cr_assert_eq(decode(), 0, "%s", err.text);
	cr_expect_str_eq(hdr.backing_format, "raw");
	put32(head + 116, HEAD);
	expect_refused(-EUCLEAN, "extension 0x12345678");
	put32(head + 116, UINT32_MAX);
	expect_refused(-EUCLEAN, "extension 0x12345678");
	header(3, 16, 1, 1);
	extension(112, 0xe2792aca, "0123456789abcdef", 16);
	expect_refused(-EUCLEAN, "backing format");
	header(2, 16, 1, 1);
	extension(72, 0xe2792aca, "qcow2", 5);
	cr_assert_eq(decode(), 0, "%s", err.text);
	cr_expect_str_eq(hdr.backing_format, "qcow2");
}

/* Q2-5 */
Test(format_qcow2, the_backing_name_is_bounded)
{
	header(3, 16, 1, 1);
	put64(head + 8, 512);
	put32(head + 16, 1023);
	memset(head + 512, 'n', 1024);
	cr_assert_eq(decode(), 0, "%s", err.text);
	cr_expect_eq(strlen(hdr.backing), 1023);
	put32(head + 16, 1024);
	expect_refused(-EUCLEAN, "backing file name");
	put32(head + 16, UINT32_MAX);
	expect_refused(-EUCLEAN, "backing file name");
	put32(head + 16, 8);
	head[515] = 0;
	expect_refused(-EUCLEAN, "NUL");
	put64(head + 8, 104); /* inside the header */
	expect_refused(-EUCLEAN, "8 bytes at 104, expected inside 112 to");
	put64(head + 8, HEAD - 7); /* one byte beyond the cluster */
	expect_refused(-EUCLEAN, "backing file name");
	put64(head + 8, UINT64_MAX - 3);
	expect_refused(-EUCLEAN, "backing file name");
	put64(head + 8, HEAD - 8);
	memset(head + HEAD - 8, 'e', 8);
	cr_assert_eq(decode(), 0, "%s", err.text);
	cr_expect_str_eq(hdr.backing, "eeeeeeee");
}

/* Q2-13 Q2-14 */
Test(format_qcow2, size_and_l1_table_are_bounded)
{
	const uint64_t span = UINT64_C(1) << 29;

	header(3, 16, 0, 0);
	put64(head + 40, 0);
	cr_expect_eq(decode(), 0, "%s", err.text);
	cr_expect_eq(hdr.l1_entries, 0);
	header(3, 16, 7 * span + 1, 8);
	cr_expect_eq(decode(), 0, "%s", err.text);
	cr_expect_eq(hdr.l1_entries, 8);
	header(3, 16, 7 * span + 1, 7);
	expect_refused(-EUCLEAN, "the size needs 8");
	header(3, 16, span << 22, 1 << 22);
	cr_expect_eq(decode(), 0, "%s", err.text);
	header(3, 16, 1, (1 << 22) + 1);
	expect_refused(-EFBIG, "L1 table");
	header(3, 16, (span << 22) + 1, 1 << 22);
	expect_refused(-EFBIG, "L1 table");
	header(3, 21, UINT64_C(1) << 63, 1 << 22);
	expect_refused(-EUCLEAN, "size");
	header(3, 16, 1, 1);
	put64(head + 40, 512);
	expect_refused(-EUCLEAN, "L1 table at 0x200");
	put64(head + 40, 0);
	expect_refused(-EUCLEAN, "L1 table at 0x0");
	put64(head + 40, UINT64_MAX & ~UINT64_C(0xffff));
	expect_refused(-EUCLEAN, "L1 table at");
}

static void decoded(uint32_t version, uint32_t bits, bool extended)
{
	header(version, bits, UINT64_C(1) << 20, 1 << 20);
	if (extended)
		put64(head + 72, FMT_QCOW2_EXTENDED_L2);
	cr_assert_eq(decode(), 0, "%s", err.text);
}

/* Q2-15 */
Test(format_qcow2, entries_are_found_where_the_spec_says)
{
	decoded(3, 16, false);
	cr_expect_eq(fmt_qcow2_l2_span(&hdr), UINT64_C(1) << 29);
	cr_expect_eq(fmt_qcow2_l1_place(&hdr, (UINT64_C(5) << 29) + 77), hdr.l1_offset + 40);
	cr_expect_eq(fmt_qcow2_l2_place(&hdr, 0x50000, (UINT64_C(5) << 29) + (9 << 16) + 3),
		     0x50000 + 9 * 8);
	decoded(3, 16, true);
	cr_expect_eq(fmt_qcow2_l2_span(&hdr), UINT64_C(1) << 28);
	cr_expect_eq(fmt_qcow2_l1_place(&hdr, UINT64_C(5) << 28), hdr.l1_offset + 40);
	cr_expect_eq(fmt_qcow2_l2_place(&hdr, 0x50000, 9 << 16), 0x50000 + 9 * 16);
}

/* Q2-15 */
Test(format_qcow2, l1_entries_decode_and_reserved_bits_are_refused)
{
	uint64_t l2 = 1;
	uint8_t raw[8];

	decoded(3, 16, false);
	put64(raw, 0);
	cr_expect_eq(fmt_qcow2_l1_decode(&hdr, raw, &err, &l2), 0);
	cr_expect_eq(l2, 0);
	put64(raw, (UINT64_C(1) << 63) | 0x00fffffffff70000);
	cr_expect_eq(fmt_qcow2_l1_decode(&hdr, raw, &err, &l2), 0);
	cr_expect_eq(l2, 0x00fffffffff70000);
	for (int bit = 0; bit < 63; bit++) {
		int want = bit >= 16 && bit < 56 ? 0 : -EUCLEAN; /* 9..15: unaligned */

		put64(raw, UINT64_C(1) << bit);
		cr_expect_eq(fmt_qcow2_l1_decode(&hdr, raw, &err, &l2), want, "bit %d", bit);
	}
}

static int l2(uint64_t entry, uint64_t bitmap, struct fmt_qcow2_cluster *ret)
{
	uint8_t raw[16];

	put64(raw, entry);
	put64(raw + 8, bitmap);
	return fmt_qcow2_l2_decode(&hdr, raw, &err, ret);
}

/* Q2-16 Q2-17 */
Test(format_qcow2, standard_l2_entries_decode)
{
	struct fmt_qcow2_cluster c = {0};
	const uint64_t copied = UINT64_C(1) << 63;
	uint64_t len = 0;

	decoded(3, 16, false);
	cr_expect_eq(l2(0, UINT64_MAX, &c), 0); /* the second half is not there */
	cr_expect_eq(c.state, FMT_QCOW2_UNALLOCATED);
	cr_expect_eq(l2(copied | 0x70000, 0, &c), 0);
	cr_expect_eq(c.state, FMT_QCOW2_DATA);
	cr_expect_eq(c.host, 0x70000);
	cr_expect_eq(fmt_qcow2_cluster_at(&hdr, &c, 5000, &len), FMT_QCOW2_DATA);
	cr_expect_eq(len, 65536 - 5000);
	cr_expect_eq(l2(1, 0, &c), 0);
	cr_expect_eq(c.state, FMT_QCOW2_ZERO);
	cr_expect_eq(l2(copied | 0x70001, 0, &c), 0); /* preallocated zeros */
	cr_expect_eq(c.state, FMT_QCOW2_ZERO);
	cr_expect_eq(fmt_qcow2_cluster_at(&hdr, &c, 65535, &len), FMT_QCOW2_ZERO);
	cr_expect_eq(len, 1);
	for (int bit = 1; bit < 62; bit++) {
		int want = bit >= 16 && bit < 56 ? 0 : -EUCLEAN;

		cr_expect_eq(l2(UINT64_C(1) << bit, 0, &c), want, "bit %d", bit);
	}
	decoded(2, 16, false);
	cr_expect_eq(l2(1, 0, &c), -EUCLEAN);
	cr_expect_eq(l2(0x70001, 0, &c), -EUCLEAN);
	cr_expect_eq(l2(0x70000, 0, &c), 0);
}

/* Q2-18: x = 62 - (cluster_bits - 8) bits of place, the rest counts further sectors. */
Test(format_qcow2, compressed_descriptors_decode_for_every_cluster_size)
{
	struct fmt_qcow2_cluster c = {0};

	for (uint32_t bits = 9; bits <= 21; bits++) {
		uint32_t x = 70 - bits;
		uint64_t most = (UINT64_C(1) << (bits - 8)) - 1; /* further sectors */

		decoded(2 + bits % 2, bits, false);
		cr_expect_eq(l2((UINT64_C(1) << 62) | (most << x) | 1234567, 0, &c), 0);
		cr_expect_eq(c.state, FMT_QCOW2_COMPRESSED);
		cr_expect_eq(c.host, 1234567);
		cr_expect_eq(c.compressed_len, (most + 1) * 512 - 1234567 % 512, "%u", bits);
		cr_expect_leq(c.compressed_len, 2u << bits, "%u", bits);
		cr_expect_eq(l2((UINT64_C(1) << 62) | ((UINT64_C(1) << x) - 1), 0, &c), 0);
		cr_expect_eq(c.host, (UINT64_C(1) << x) - 1);
		cr_expect_eq(c.compressed_len, 1);
		cr_expect_eq(l2((UINT64_C(3) << 62) | 1234567, 0, &c), -EUCLEAN, "copied");
	}
	decoded(3, 16, true);
	cr_expect_eq(l2((UINT64_C(1) << 62) | 1234567, 0, &c), 0);
	cr_expect_eq(l2((UINT64_C(1) << 62) | 1234567, 4, &c), -EUCLEAN, "subclusters");
}

/* Q2-19 */
Test(format_qcow2, subclusters_decode_into_runs)
{
	struct fmt_qcow2_cluster c = {0};
	uint64_t len = 0;

	decoded(3, 16, true); /* subclusters of 2 KiB */
	cr_expect_eq(l2(0x70000, UINT64_C(0x0000000c) << 32 | 0x80000003, &c), 0, "%s", err.text);
	cr_expect_eq(c.state, FMT_QCOW2_DATA);
	cr_expect_eq(fmt_qcow2_cluster_at(&hdr, &c, 100, &len), FMT_QCOW2_DATA);
	cr_expect_eq(len, 4096 - 100);
	cr_expect_eq(fmt_qcow2_cluster_at(&hdr, &c, 4096, &len), FMT_QCOW2_ZERO);
	cr_expect_eq(len, 4096);
	cr_expect_eq(fmt_qcow2_cluster_at(&hdr, &c, 8192, &len), FMT_QCOW2_UNALLOCATED);
	cr_expect_eq(len, 65536 - 8192 - 2048);
	cr_expect_eq(fmt_qcow2_cluster_at(&hdr, &c, 65535, &len), FMT_QCOW2_DATA);
	cr_expect_eq(len, 1);
	cr_expect_eq(l2(0, UINT64_C(1) << 35, &c), 0);
	cr_expect_eq(c.state, FMT_QCOW2_ZERO);
	cr_expect_eq(fmt_qcow2_cluster_at(&hdr, &c, 3 * 2048, &len), FMT_QCOW2_ZERO);
	cr_expect_eq(l2(0x70000, 0, &c), 0);
	cr_expect_eq(c.state, FMT_QCOW2_UNALLOCATED);
	cr_expect_eq(l2(0x70000, UINT64_C(2) << 32 | 2, &c), -EUCLEAN, "allocated and zero");
	cr_expect_eq(l2(0, 2, &c), -EUCLEAN, "allocated nowhere");
	cr_expect_eq(l2(0x70001, 0, &c), -EUCLEAN, "bit 0 is reserved here");
	header(3, 13, 1, 1);
	put64(head + 72, FMT_QCOW2_EXTENDED_L2);
	expect_refused(-EUCLEAN, "extended L2");
}

static size_t deflated(const void *src, size_t len, int window, uint8_t *dst, size_t room)
{
	z_stream z = {.next_in = (void *)src,
		      .avail_in = (uInt)len,
		      .next_out = dst,
		      .avail_out = (uInt)room};

	cr_assert_eq(deflateInit2(&z, 9, Z_DEFLATED, window, 9, Z_DEFAULT_STRATEGY), Z_OK);
	cr_assert_eq(deflate(&z, Z_FINISH), Z_STREAM_END);
	deflateEnd(&z);
	return room - z.avail_out;
}

/* Q2-23 */
Test(format_qcow2, inflates_exactly_one_cluster)
{
	static uint8_t in[HEAD], packed[HEAD + 1024], out[HEAD];
	size_t len;

	for (size_t i = 0; i < HEAD; i++)
		in[i] = (uint8_t)(i % 3000 * 7 % 251);
	len = deflated(in, HEAD, -12, packed, sizeof(packed));
	memset(packed + len, 0xaa, 511); /* the rest of the last sector is another cluster's */
	cr_assert_eq(fmt_qcow2_inflate(packed, len + 511, out, HEAD), 0);
	cr_assert_eq(memcmp(in, out, HEAD), 0);
	for (size_t cut = 0; cut + 2 < len; cut += 37)
		cr_expect_eq(fmt_qcow2_inflate(packed, cut, out, HEAD), -EUCLEAN, "%zu", cut);
	len = deflated(in, HEAD - 1, -12, packed, sizeof(packed));
	cr_expect_eq(fmt_qcow2_inflate(packed, len, out, HEAD), -EUCLEAN, "a byte short");
	memset(packed, 0xff, sizeof(packed));
	cr_expect_eq(fmt_qcow2_inflate(packed, HEAD, out, HEAD), -EUCLEAN, "garbage");
	cr_expect_eq(fmt_qcow2_inflate(packed, 0, out, HEAD), -EUCLEAN, "nothing");
}

static uint64_t random_next(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

/* Q2-3 to Q2-19: whatever the bytes, what comes out is inside the bounds that readers rely on. */
Test(format_qcow2, random_headers_and_entries_stay_inside_their_bounds)
{
	uint64_t state = 0x5eed, accepted = 0;

	for (int round = 0; round < 200000; round++) {
		uint64_t len, in;
		struct fmt_qcow2_cluster c;
		enum fmt_qcow2_state at;

		if (round % 64 == 0)
			header(2 + (uint32_t)(random_next(&state) % 2),
			       9 + random_next(&state) % 13, 1 << 20, 64);
		head[random_next(&state) % 128] = (uint8_t)random_next(&state);
		if (decode() < 0) {
			header(3, 14 + random_next(&state) % 8, 1 << 20, 64);
			put64(head + 72, random_next(&state) % 2 ? FMT_QCOW2_EXTENDED_L2 : 0);
			continue;
		}
		accepted++;
		cr_assert(hdr.cluster_bits >= 9 && hdr.cluster_bits <= 21);
		cr_assert_leq(hdr.l1_entries, FMT_QCOW2_MAX_L1_ENTRIES);
		cr_assert_leq(hdr.size, (uint64_t)hdr.l1_entries * fmt_qcow2_l2_span(&hdr));
		if (l2(random_next(&state) & random_next(&state),
		       random_next(&state) & random_next(&state), &c) < 0)
			continue;
		in = random_next(&state) & ((1u << hdr.cluster_bits) - 1);
		at = fmt_qcow2_cluster_at(&hdr, &c, in, &len);
		cr_assert(len >= 1 && in + len <= 1u << hdr.cluster_bits);
		cr_assert(at != FMT_QCOW2_DATA || (c.host && c.host < UINT64_C(1) << 56));
		cr_assert(at != FMT_QCOW2_COMPRESSED || c.compressed_len <= 2u << hdr.cluster_bits);
	}
	cr_assert_gt(accepted, 1000, "the random headers were all refused");
}
