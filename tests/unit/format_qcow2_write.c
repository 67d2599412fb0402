/* SPDX-License-Identifier: MIT */
/* format_qcow2_write.c - the pieces of a new qcow2 image, as bytes and as our own decoder sees them. */
#include "format/qcow2.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_CLUSTER = 1 << FMT_QCOW2_MAX_CLUSTER_BITS };

static uint8_t cluster[MAX_CLUSTER];
static struct fmt_error err;

static struct fmt_qcow2 decode(const struct fmt_qcow2_new *new)
{
	struct fmt_qcow2 hdr;

	memset(cluster, 0xee, sizeof(cluster));
	fmt_qcow2_encode(new, cluster);
	cr_assert_eq(fmt_qcow2_decode(cluster, 1u << new->cluster_bits, &err, &hdr), 0, "%s",
		     err.text);
	return hdr;
}

/* Q2W-1: the header as bytes, as spec/qcow2.md shows it. */
Test(format_qcow2_write, header_is_the_one_of_the_specification)
{
	static const uint8_t expected[112] = {
		0x51,     0x46, 0x49, 0xfb, 0, 0, 0, 3,  /* magic, version */
		0,        0,    0,    0,    0, 0, 0, 0,  /* no backing file */
		0,        0,    0,    0,    0, 0, 0, 16, /* its length; cluster_bits */
		0,        0,    0,    1,    0, 0, 0, 0,  /* 4 GiB */
		0,        0,    0,    0,    0, 0, 0, 8,  /* not encrypted; l1_size */
		0,        0,    0,    0,    0, 2, 0, 0,  /* L1 table: third cluster */
		0,        0,    0,    0,    0, 3, 0, 0,  /* refcount table: fourth */
		0,        0,    0,    1,    0, 0, 0, 0,  /* its clusters; no snapshots */
		[96] = 0, 0,    0,    4,    0, 0, 0, 112,
		0,        0,    0,    0, /* 16 bits; header_length; zlib */
	};
	struct fmt_qcow2_new new = {.cluster_bits = 16, .size = UINT64_C(4) << 30};

	cr_assert_eq(fmt_qcow2_new_check(&new, &err), 0, "%s", err.text);
	cr_expect_eq(new.l1_entries, 8u);
	new.l1_offset = 2 << 16;
	new.refcount_offset = 3 << 16;
	new.refcount_clusters = 1;
	decode(&new);
	cr_expect_eq(memcmp(cluster, expected, sizeof(expected)), 0);
	for (unsigned i = sizeof(expected); i < 1u << 16; i++)
		cr_assert_eq(cluster[i], 0, "byte %u", i);
}

/* Q2W-1, Q2W-2 */
Test(format_qcow2_write, every_header_decodes_to_what_it_was_made_of)
{
	for (uint32_t bits = 9; bits <= 21; bits++) {
		for (unsigned i = 0; i < 3; i++) {
			struct fmt_qcow2_new new = {
				.cluster_bits = bits,
				.size = UINT64_C(123) << bits,
				.backing = i ? "base-1.img" : NULL,
				.backing_format = i == 1 ? "raw" : "qcow2",
			};
			struct fmt_qcow2 hdr;

			cr_assert_eq(fmt_qcow2_new_check(&new, &err), 0, "%s", err.text);
			new.l1_offset = UINT64_C(2) << bits;
			new.refcount_offset = UINT64_C(9) << bits;
			new.refcount_clusters = 1;
			hdr = decode(&new);
			cr_expect_eq(hdr.version, 3u);
			cr_expect_eq(hdr.cluster_bits, bits);
			cr_expect_eq(hdr.size, new.size);
			cr_expect_eq(hdr.l1_offset, new.l1_offset);
			cr_expect_eq(hdr.l1_entries, new.l1_entries);
			cr_expect_eq(hdr.incompatible | hdr.compatible | hdr.autoclear, 0u);
			cr_expect_eq(hdr.snapshots, 0u);
			cr_expect_str_eq(hdr.backing, i ? "base-1.img" : "");
			cr_expect_str_eq(hdr.backing_format, i ? new.backing_format : "");
		}
	}
}

/* Q2W-1, Q2W-4 */
Test(format_qcow2_write, sizes_without_a_table_are_refused)
{
	struct fmt_qcow2_new new = {.cluster_bits = 16, .size = 1000};

	cr_expect_eq(fmt_qcow2_new_check(&new, &err), -EINVAL, "no multiple of 512");
	new.size = UINT64_C(1) << 51;
	cr_expect_eq(fmt_qcow2_new_check(&new, &err), 0, "%s", err.text);
	cr_expect_eq(new.l1_entries, (uint32_t)FMT_QCOW2_MAX_L1_ENTRIES);
	new.size += 512;
	cr_expect_eq(fmt_qcow2_new_check(&new, &err), -EFBIG);
	new.cluster_bits = 9; /* 254 clusters of L1 table are left in region 0 */
	new.size = UINT64_C(254) * 64 << 15;
	cr_expect_eq(fmt_qcow2_new_check(&new, &err), 0, "%s", err.text);
	new.size += 512;
	cr_expect_eq(fmt_qcow2_new_check(&new, &err), -EFBIG);
	new.size = 512;
	for (new.cluster_bits = 0; new.cluster_bits < 64; new.cluster_bits++)
		cr_expect_eq(fmt_qcow2_new_check(&new, &err),
			     new.cluster_bits >= 9 && new.cluster_bits <= 21 ? 0 : -EINVAL);
}

/* Q2W-5, Q2W-7 */
Test(format_qcow2_write, entries_decode_to_what_they_were_made_of)
{
	for (uint32_t bits = 9; bits <= 21; bits++) {
		struct fmt_qcow2 hdr = {.version = 3, .cluster_bits = bits};
		uint64_t host = UINT64_C(0x1234) << bits, l2;
		struct fmt_qcow2_cluster c;
		uint8_t raw[16] = {0};
		uint32_t lens[] = {1, 511, (1u << bits) - 1};

		fmt_qcow2_put_l1(raw, host);
		cr_expect_eq(raw[0], 0x80, "copied");
		cr_expect_eq(fmt_qcow2_l1_decode(&hdr, raw, &err, &l2), 0, "%s", err.text);
		cr_expect_eq(l2, host);
		fmt_qcow2_put_data(raw, host);
		cr_expect_eq(raw[0], 0x80, "copied");
		cr_expect_eq(fmt_qcow2_l2_decode(&hdr, raw, &err, &c), 0, "%s", err.text);
		cr_expect(c.state == FMT_QCOW2_DATA && c.host == host);
		fmt_qcow2_put_zero(raw);
		cr_expect_eq(fmt_qcow2_l2_decode(&hdr, raw, &err, &c), 0, "%s", err.text);
		cr_expect(c.state == FMT_QCOW2_ZERO && !c.host);
		for (unsigned i = 0; i < 3; i++) {
			for (uint64_t at = host; at < host + 1024; at += 73) {
				uint64_t end = (at + lens[i] + 511) / 512 * 512;

				cr_assert_eq(fmt_qcow2_put_compressed(raw, bits, at, lens[i]), 0);
				cr_assert_eq(fmt_qcow2_l2_decode(&hdr, raw, &err, &c), 0, "%s",
					     err.text);
				cr_assert(c.state == FMT_QCOW2_COMPRESSED && c.host == at);
				cr_assert_eq(c.host + c.compressed_len, end, "to a sector's end");
			}
		}
		cr_expect_eq(fmt_qcow2_put_compressed(raw, bits, UINT64_C(1) << (70 - bits), 1),
			     -EFBIG);
	}
}

/* Q2W-7 */
Test(format_qcow2_write, streams_inflate_and_what_does_not_shrink_is_none)
{
	static uint8_t in[MAX_CLUSTER], out[MAX_CLUSTER], back[MAX_CLUSTER];
	struct fmt_qcow2_deflater *d = fmt_qcow2_deflater_create();
	uint64_t x = 1;

	cr_assert(d != NULL);
	for (uint32_t bits = 9; bits <= 21; bits++) {
		uint32_t size = 1u << bits, len;

		for (uint32_t i = 0; i < size; i++)
			in[i] = (uint8_t)(i % 5000 * 11 % 251 + i / 5000);
		memset(out, 0xee, size);
		len = fmt_qcow2_deflate(d, in, size, out);
		cr_assert(len && len < size);
		cr_expect_eq(out[size - 1], 0xee, "the last byte is not needed");
		cr_expect_eq(fmt_qcow2_inflate(out, len, back, size), 0);
		cr_expect_eq(memcmp(in, back, size), 0);
		memset(in, 7, size); /* the shortest stream there is */
		len = fmt_qcow2_deflate(d, in, size, out);
		cr_assert(len && (size / len < 60000), "counts have 16 bits");
		for (uint32_t i = 0; i < size; i++) {
			x ^= x << 13;
			x ^= x >> 7;
			x ^= x << 17;
			in[i] = (uint8_t)(x >> 24);
		}
		cr_expect_eq(fmt_qcow2_deflate(d, in, size, out), 0u);
	}
	fmt_qcow2_deflater_destroy(d);
}

/* Q2W-5 */
Test(format_qcow2_write, references_are_counted_in_big_endian)
{
	uint8_t raw[2] = {0, 255};

	fmt_qcow2_add_reference(raw);
	cr_expect(raw[0] == 1 && raw[1] == 0);
	fmt_qcow2_add_reference(raw);
	cr_expect(raw[0] == 1 && raw[1] == 1);
}
