/* SPDX-License-Identifier: MIT */
/*
 * format_stream.c - headers, frames and manifests of streams: what is written is read, and nothing else is
 * taken for it (spec/stream.md ST-*, MF-*).
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "format/layer.h"
#include "format/manifest.h"
#include "format/stream.h"

static struct fmt_error err;

static struct fmt_stream a_stream(void)
{
	struct fmt_stream s = {.manifest_len = 100, .manifest_csum = 7};

	memset(s.id.b, 0x5a, sizeof(s.id.b));
	return s;
}

/* ST-1: a byte that is another is never taken. */
Test(format_stream, header_with_any_other_byte_is_refused)
{
	struct fmt_stream s = a_stream(), got;
	uint8_t buf[FMT_STREAM_HEADER];

	fmt_stream_encode(&s, buf);
	cr_assert_eq(fmt_stream_decode(buf, &got, &err), 0);
	cr_assert_eq(got.manifest_len, 100);
	for (size_t i = 0; i < sizeof(buf); i++) {
		buf[i] ^= 0x10;
		cr_expect_lt(fmt_stream_decode(buf, &got, &err), 0, "byte %zu", i);
		buf[i] ^= 0x10;
	}
}

/* ST-3 */
Test(format_stream, frame_with_any_other_byte_is_refused)
{
	struct fmt_frame f = {.type = FMT_FRAME_DATA, .seq = 3, .disk = 1, .count = 2, .start = 9};
	uint8_t buf[FMT_FRAME_HEADER], tail[16];
	struct fmt_frame got;

	f.length = 8192;
	fmt_frame_put_csum(tail, 0, 11);
	fmt_frame_put_csum(tail, 1, 12);
	fmt_frame_encode(&f, 99, tail, buf);
	cr_assert_eq(fmt_frame_check(buf, 99, tail, &err), 0);
	cr_expect_eq(fmt_frame_check(buf, 98, tail, &err), -EBADMSG, "of another stream");
	cr_assert_eq(fmt_frame_decode(buf, &got, &err), 0);
	cr_expect_eq(got.start, 9);
	for (size_t i = 0; i < sizeof(buf); i++) {
		int r;

		buf[i] ^= 0x01;
		r = fmt_frame_decode(buf, &got, &err);
		/* Who is told a longer tail reads that, and finds another checksum. */
		if (r == 0 && fmt_frame_tail(&got) <= sizeof(tail))
			r = fmt_frame_check(buf, 99, tail, &err);
		cr_expect(r < 0 || fmt_frame_tail(&got) > sizeof(tail), "byte %zu", i);
		buf[i] ^= 0x01;
	}
	for (size_t i = 0; i < sizeof(tail); i++) {
		tail[i] ^= 0x80;
		cr_expect_eq(fmt_frame_check(buf, 99, tail, &err), -EBADMSG, "tail %zu", i);
		tail[i] ^= 0x80;
	}
}

/* ST-7 */
Test(format_stream, frames_ascend_and_stay_on_their_disk)
{
	struct fmt_frame f = {.type = FMT_FRAME_DATA, .count = 4, .start = 10, .length = 4 << 12};
	struct fmt_cursor c = {0};

	cr_assert_eq(fmt_cursor_take(&c, &f, 100, 12, &err), 0);
	f.seq = 1;
	f.start = 13;
	cr_expect_eq(fmt_cursor_take(&c, &f, 100, 12, &err), -EUCLEAN, "overlaps");
	f.start = 97;
	cr_expect_eq(fmt_cursor_take(&c, &f, 100, 12, &err), -EUCLEAN, "reaches beyond");
	f.start = UINT64_MAX - 1;
	cr_expect_eq(fmt_cursor_take(&c, &f, 100, 12, &err), -EUCLEAN, "wraps");
	f.start = 96;
	f.seq = 2;
	cr_expect_eq(fmt_cursor_take(&c, &f, 100, 12, &err), -EUCLEAN, "a number is missing");
	f.seq = 1;
	f.length = 4095;
	cr_expect_eq(fmt_cursor_take(&c, &f, 100, 12, &err), -EUCLEAN, "another length");
	f.length = 4 << 12;
	cr_expect_eq(fmt_cursor_take(&c, &f, 100, 12, &err), 0);
	f.disk = 1;
	f.seq = 2;
	f.start = 0;
	cr_expect_eq(fmt_cursor_take(&c, &f, 100, 12, &err), 0, "the next disk");
	f.disk = 0;
	f.seq = 3;
	cr_expect_eq(fmt_cursor_take(&c, &f, 100, 12, &err), -EUCLEAN, "a disk again");
}

/* ST-4 */
Test(format_stream, what_is_deflated_is_inflated_exactly)
{
	struct fmt_deflater *d = fmt_deflater_create();
	struct fmt_inflater *i = fmt_inflater_create();
	uint8_t *src = calloc(1, 65536), *packed = malloc(65536), *out = malloc(65536);
	uint32_t n;

	for (unsigned k = 0; k < 65536; k++)
		src[k] = (uint8_t)(k / 100);
	n = fmt_deflate(d, src, 65536, packed);
	cr_assert_gt(n, 0);
	cr_assert_eq(fmt_inflate(i, packed, n, out, 65536), 0);
	cr_expect_eq(memcmp(src, out, 65536), 0);
	cr_expect_eq(fmt_inflate(i, packed, n - 1, out, 65536), -EUCLEAN, "cut short");
	cr_expect_eq(fmt_inflate(i, packed, n, out, 65535), -EUCLEAN, "more than there is room");
	packed[n] = 0;
	cr_expect_eq(fmt_inflate(i, packed, n + 1, out, 65536), -EUCLEAN, "something behind");
	fmt_deflater_destroy(d);
	fmt_inflater_destroy(i);
	free(src);
	free(packed);
	free(out);
}

/* --- manifest --- */

static struct fmt_manifest a_manifest(struct fmt_manifest_vm *vms, struct fmt_manifest_disk *disks)
{
	struct fmt_manifest m = {
		.type = 2,
		.consistency = 2,
		.intent = 1,
		.vms = vms,
		.vm_count = 1,
		.disks = disks,
		.disk_count = 2,
	};

	memset(m.collection.b, 1, 16);
	memset(m.snapshot.b, 2, 16);
	strcpy(m.collection_name, "prod");
	strcpy(m.snapshot_name, "s1");
	memset(vms[0].id.b, 3, 16);
	strcpy(vms[0].name, "web");
	for (unsigned i = 0; i < 2; i++) {
		memset(disks[i].id.b, (int)(4 + i), 16);
		strcpy(disks[i].name, i ? "data" : "root");
		disks[i].size = 1 << 20;
		disks[i].block_bits = 12;
		disks[i].position = i;
		disks[i].full = true;
	}
	cr_assert_eq(fmt_manifest_state(&m.snapshot, disks, 2, m.state), 0);
	return m;
}

/* MF-1 */
Test(format_stream, manifest_comes_back)
{
	struct fmt_manifest_vm vms[1] = {0};
	struct fmt_manifest_disk disks[2] = {0};
	struct fmt_manifest m = a_manifest(vms, disks), got;
	char *text;
	size_t len;

	cr_assert_eq(fmt_manifest_encode(&m, &text, &len), 0);
	cr_assert_eq(fmt_manifest_decode(text, len, &got, &err), 0, "%s", err.text);
	cr_expect_eq(got.disk_count, 2);
	cr_expect_str_eq(got.disks[1].name, "data");
	cr_expect_eq(got.has_base, 0);
	fmt_manifest_fini(&got);
	cr_expect_lt(fmt_manifest_decode(text, len - 1, &got, &err), 0, "cut short");
	free(text);
}

static void refused(const char *from, const char *to)
{
	struct fmt_manifest_vm vms[1] = {0};
	struct fmt_manifest_disk disks[2] = {0};
	struct fmt_manifest m = a_manifest(vms, disks), got;
	char *text, *changed, *at;
	size_t len;

	cr_assert_eq(fmt_manifest_encode(&m, &text, &len), 0);
	changed = calloc(1, len + 4096);
	at = strstr(text, from);
	cr_assert_neq(at, NULL, "%s", from);
	memcpy(changed, text, (size_t)(at - text));
	strcat(changed, to);
	strcat(changed, at + strlen(from));
	cr_expect_lt(fmt_manifest_decode(changed, strlen(changed), &got, &err), 0,
		     "%s for %s is taken", to, from);
	free(text);
	free(changed);
}

/* MF-1, MF-2, MF-3 */
Test(format_stream, manifest_that_lies_is_refused)
{
	refused("\"root\"", "\"../root\"");
	refused("\"root\"", "\"data\"");
	refused("\"root\"", "\"\"");
	refused("\"root\"", "\".root\"");
	refused("\"web\"", "\"a/b\"");
	refused("\"prod\"", "7");
	refused("1048576", "1048577");
	refused("1048576", "-512");
	refused("1048576", "2097152");
	refused("\"block_bits\":12", "\"block_bits\":40");
	refused("\"vm\":0", "\"vm\":1");
	refused("\"position\":0", "\"position\":1");
	refused("\"full\":true", "\"full\":false");
	refused("\"version\":1", "\"version\":2");
	refused("05050505-0505-0505-0505-050505050505", "04040404-0404-0404-0404-040404040404");
	refused("03030303-0303-0303-0303-030303030303", "00000000-0000-0000-0000-000000000000");
	refused("\"type\":2", "\"type\":3");
	refused("\"disks\":[", "\"disks\":[7,");
	refused("\"base\":null", "\"base\":{}");
}
