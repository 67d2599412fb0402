/* SPDX-License-Identifier: MIT */
/* image.c - image files without a store: IM-1 to IM-9. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/api/fixture.h"

TestSuite(api_image, .init = fixture_init, .fini = fixture_fini, .timeout = 60);

static char paths[4][400];

static const char *path_of(unsigned i, const char *name)
{
	snprintf(paths[i], sizeof(paths[i]), "%s/%s", scratch, name);
	return paths[i];
}

static struct vmimg_image *open_image(const char *path, bool writable)
{
	struct vmimg_image *image = NULL;

	expect_ok(vmimg_image_open(path, NULL, writable, &err, &image));
	return image;
}

static void put(const char *path, uint64_t offset, size_t len, uint8_t byte)
{
	struct vmimg_image *image = open_image(path, true);
	uint8_t *buf = malloc(len);

	memset(buf, byte, len);
	expect_ok(vmimg_image_write(image, buf, len, offset, &err));
	expect_ok(vmimg_image_flush(image, &err));
	free(buf);
	cr_assert_eq(vmimg_image_close(image), 0);
}

static void expect_bytes(const char *path, uint64_t offset, size_t len, uint8_t byte)
{
	struct vmimg_image *image = open_image(path, false);
	uint8_t *buf = malloc(len);

	expect_ok(vmimg_image_read(image, buf, len, offset, &err));
	for (size_t i = 0; i < len; i++)
		cr_assert_eq(buf[i], byte, "%s: byte %llu is %02x, expected %02x", path,
			     (unsigned long long)(offset + i), buf[i], byte);
	free(buf);
	cr_assert_eq(vmimg_image_close(image), 0);
}

Test(api_image, raw_and_vmo_keep_what_is_written)
{
	const char *raw = path_of(0, "a.raw"), *vmo = path_of(1, "a.vmo");
	struct vmimg_image *image;

	expect_ok(vmimg_image_create(raw, "raw", NULL, MIB, &err));
	expect_ok(vmimg_image_create(vmo, "vmo", NULL, MIB, &err));
	for (int i = 0; i < 2; i++) {
		put(paths[i], 1000, 10000, 0x31);
		expect_bytes(paths[i], 1000, 10000, 0x31);
		expect_bytes(paths[i], 0, 1000, 0);
		expect_bytes(paths[i], 11000, MIB - 11000, 0);
		image = open_image(paths[i], false);
		cr_expect_eq(vmimg_image_size(image), MIB);
		cr_expect_eq(vmimg_image_close(image), 0);
	}
}

/* IM-1, IM-2 */
Test(api_image, a_vmo_stands_on_its_base)
{
	const char *raw = path_of(0, "a.raw"), *low = path_of(1, "b.vmo"),
		   *top = path_of(2, "c.vmo");

	expect_ok(vmimg_image_create(raw, "raw", NULL, MIB, &err));
	put(raw, 0, MIB, 0x10);
	expect_ok(vmimg_image_create(low, "vmo", raw, 0, &err));
	put(low, 4096, 4096, 0x20);
	expect_ok(vmimg_image_create(top, "vmo", low, 0, &err));
	put(top, 4096 + 512, 512, 0x30);
	expect_bytes(top, 0, 4096, 0x10);
	expect_bytes(top, 4096, 512, 0x20);
	expect_bytes(top, 4096 + 512, 512, 0x30);
	expect_bytes(top, 5120, 3072, 0x20);
	expect_bytes(low, 4096, 4096, 0x20);
	expect_bytes(raw, 0, MIB, 0x10);
}

/* IM-2 */
Test(api_image, bad_creations)
{
	const char *raw = path_of(0, "a.raw"), *vmo = path_of(1, "a.vmo"),
		   *gone = path_of(2, "gone.raw");

	expect_ok(vmimg_image_create(raw, "raw", NULL, MIB, &err));
	expect_error(vmimg_image_create(raw, "raw", NULL, MIB, &err), -EEXIST);
	expect_error(vmimg_image_create(raw, "vmo", NULL, MIB, &err), -EEXIST);
	expect_error(vmimg_image_create(vmo, "qcow2", NULL, MIB, &err), -EINVAL);
	expect_error(vmimg_image_create(vmo, NULL, NULL, MIB, &err), -EINVAL);
	expect_error(vmimg_image_create(vmo, "vmo", NULL, 0, &err), -EINVAL);
	expect_error(vmimg_image_create(vmo, "vmo", NULL, 100, &err), -EINVAL);
	expect_error(vmimg_image_create(vmo, "raw", raw, 0, &err), -EINVAL);
	expect_error(vmimg_image_create(vmo, "vmo", gone, 0, &err), -ENOENT);
	expect_error(vmimg_image_create(NULL, "vmo", NULL, MIB, &err), -EINVAL);
	expect_error(vmimg_image_create("", "vmo", NULL, MIB, &err), -EINVAL);
	cr_expect_neq(access(vmo, F_OK), 0, "a failure leaves no file");
}

Test(api_image, bad_calls)
{
	const char *vmo = path_of(0, "a.vmo");
	struct vmimg_image *image = NULL;
	struct vmimg_extent extent;
	char buf[512] = {0}, *json = NULL;

	expect_ok(vmimg_image_create(vmo, "vmo", NULL, MIB, &err));
	expect_error(vmimg_image_open(path_of(1, "gone"), NULL, false, &err, &image), -ENOENT);
	expect_error(vmimg_image_open(NULL, NULL, false, &err, &image), -EINVAL);
	expect_error(vmimg_image_open(vmo, NULL, false, &err, NULL), -EINVAL);
	expect_error(vmimg_image_info(path_of(1, "gone"), NULL, true, &err, &json), -ENOENT);
	expect_error(vmimg_image_info(NULL, NULL, true, &err, &json), -EINVAL);
	expect_error(vmimg_image_info(vmo, NULL, true, &err, NULL), -EINVAL);
	cr_expect_null(image);
	cr_expect_null(json);
	image = open_image(vmo, false);
	expect_error(vmimg_image_write(image, buf, 512, 0, &err), -EROFS);
	expect_error(vmimg_image_read(image, buf, 512, MIB - 511, &err), -EINVAL);
	expect_error(vmimg_image_read(image, buf, 512, UINT64_MAX, &err), -EINVAL);
	expect_error(vmimg_image_read(image, NULL, 512, 0, &err), -EINVAL);
	expect_error(vmimg_image_read(NULL, buf, 512, 0, &err), -EINVAL);
	expect_error(vmimg_image_write(NULL, buf, 512, 0, &err), -EINVAL);
	expect_error(vmimg_image_flush(NULL, &err), -EINVAL);
	expect_error(vmimg_image_extent(image, MIB, &extent, &err), -EINVAL); /* IM-7 */
	expect_error(vmimg_image_extent(image, 0, NULL, &err), -EINVAL);
	expect_ok(vmimg_image_read(image, buf, 0, MIB, &err));
	cr_expect_eq(vmimg_image_close(image), 0);
	cr_expect_eq(vmimg_image_close(NULL), 0);
	cr_expect_eq(vmimg_image_size(NULL), 0);
}

/* IM-4 */
Test(api_image, one_writer)
{
	const char *vmo = path_of(0, "a.vmo");
	struct vmimg_image *image, *other = NULL;

	expect_ok(vmimg_image_create(vmo, "vmo", NULL, MIB, &err));
	image = open_image(vmo, true);
	expect_error(vmimg_image_open(vmo, NULL, true, &err, &other), -EBUSY);
	cr_expect_eq(vmimg_image_close(image), 0);
	image = open_image(vmo, true);
	cr_expect_eq(vmimg_image_close(image), 0);
}

/* IM-7 */
Test(api_image, extents_cover_the_image)
{
	const char *raw = path_of(0, "a.raw"), *vmo = path_of(1, "b.vmo");
	struct vmimg_image *image;
	struct vmimg_extent extent;
	uint64_t at = 0, data = 0, beneath = 0;

	expect_ok(vmimg_image_create(raw, "raw", NULL, MIB, &err));
	put(raw, 0, 65536, 0x10);
	expect_ok(vmimg_image_create(vmo, "vmo", raw, 0, &err));
	put(vmo, 65536, 8192, 0x20);
	image = open_image(vmo, false);
	while (at < MIB) {
		expect_ok(vmimg_image_extent(image, at, &extent, &err));
		cr_assert_eq(extent.start, at);
		cr_assert(extent.length > 0 && extent.length <= MIB - at);
		cr_assert(extent.state >= VMIMG_EXTENT_DATA && extent.state <= VMIMG_EXTENT_HOLE);
		if (extent.state == VMIMG_EXTENT_DATA && extent.depth == 0)
			data += extent.length;
		if (extent.state == VMIMG_EXTENT_DATA && extent.depth == 1)
			beneath += extent.length;
		at += extent.length;
	}
	cr_expect_eq(data, 8192);
	cr_expect_geq(beneath, 65536);
	cr_expect_eq(vmimg_image_close(image), 0);
}

/* IM-9 */
Test(api_image, info_tells_the_chain)
{
	const char *raw = path_of(0, "a.raw"), *vmo = path_of(1, "b.vmo");
	json_t *doc, *top;
	char *json = NULL;

	expect_ok(vmimg_image_create(raw, "raw", NULL, MIB, &err));
	expect_ok(vmimg_image_create(vmo, "vmo", raw, 0, &err));
	expect_ok(vmimg_image_info(vmo, NULL, false, &err, &json));
	doc = json_loads(json, 0, NULL);
	cr_expect_str_eq(text(doc, "format"), "vmo");
	cr_expect_eq(number(doc, "virtual_size"), MIB);
	cr_expect_eq(number(doc, "block_size"), 4096);
	cr_expect_str_eq(text(doc, "state"), "active");
	json_decref(doc);
	vmimg_free(json);
	expect_ok(vmimg_image_info(vmo, NULL, true, &err, &json));
	doc = json_loads(json, 0, NULL);
	cr_assert_eq(json_array_size(doc), 2);
	top = json_array_get(doc, 0);
	cr_expect_not_null(strstr(text(top, "filename"), "b.vmo"));
	cr_expect_not_null(strstr(text(top, "backing_filename"), "a.raw"));
	cr_expect_str_eq(text(json_array_get(doc, 1), "format"), "raw");
	cr_expect_eq(number(json_array_get(doc, 1), "depth"), 1);
	json_decref(doc);
	vmimg_free(json);
}

static int count_progress(void *arg, uint64_t done, uint64_t total)
{
	cr_assert_leq(done, total);
	++*(unsigned *)arg;
	return 0;
}

static int cancel(void *arg, uint64_t done, uint64_t total)
{
	(void)arg;
	(void)done;
	(void)total;
	return 1;
}

/* IM-8 */
Test(api_image, convert)
{
	const char *raw = path_of(0, "a.raw"), *vmo = path_of(1, "b.vmo"),
		   *back = path_of(2, "c.raw");
	unsigned calls = 0;
	struct vmimg_convert how = {.src_format = "raw",
				    .dst_format = "vmo",
				    .progress = count_progress,
				    .arg = &calls};

	expect_ok(vmimg_image_create(raw, "raw", NULL, MIB, &err));
	put(raw, 70000, 100000, 0x10);
	expect_ok(vmimg_image_convert(raw, vmo, &how, &err));
	cr_expect_gt(calls, 0);
	expect_bytes(vmo, 70000, 100000, 0x10);
	expect_bytes(vmo, 0, 70000, 0);
	expect_ok(vmimg_image_convert(vmo, back, NULL, &err));
	expect_bytes(back, 70000, 100000, 0x10);
	expect_bytes(back, 170000, MIB - 170000, 0);
	expect_error(vmimg_image_convert(raw, vmo, &how, &err), -EEXIST);
	expect_error(vmimg_image_convert(NULL, back, &how, &err), -EINVAL);
	expect_error(vmimg_image_convert(raw, NULL, &how, &err), -EINVAL);
	back = path_of(3, "d.raw");
	how.src_format = "vhdx";
	expect_error(vmimg_image_convert(raw, back, &how, &err), -EINVAL);
	how = (struct vmimg_convert){.dst_format = "vhdx"};
	expect_error(vmimg_image_convert(raw, back, &how, &err), -EINVAL);
	how = (struct vmimg_convert){.progress = cancel};
	expect_error(vmimg_image_convert(raw, back, &how, &err), -ECANCELED);
	cr_expect_neq(access(back, F_OK), 0, "what was cancelled is removed");
}

/* IM-8, Q2W-7 */
Test(api_image, convert_to_qcow2)
{
	const char *raw = path_of(0, "a.raw"), *qcow2 = path_of(1, "b.qcow2"),
		   *packed = path_of(2, "c.qcow2");
	struct vmimg_convert how = {.dst_format = "qcow2"};

	expect_ok(vmimg_image_create(raw, "raw", NULL, MIB, &err));
	put(raw, 70000, 100000, 0x10);
	expect_ok(vmimg_image_convert(raw, qcow2, &how, &err));
	expect_bytes(qcow2, 70000, 100000, 0x10);
	expect_bytes(qcow2, 170000, MIB - 170000, 0);
	how.compressed = true;
	how.cluster_size = 4096;
	expect_ok(vmimg_image_convert(qcow2, packed, &how, &err));
	expect_bytes(packed, 70000, 100000, 0x10);
	expect_bytes(packed, 0, 70000, 0);
	packed = path_of(3, "d.qcow2");
	for (uint32_t size = 256; size <= 4u << 20; size += size < 512 ? 1 : size - 1) {
		how.cluster_size = size;
		if (size < 512 || size > 2u << 20 || size & (size - 1))
			expect_error(vmimg_image_convert(raw, packed, &how, &err), -EINVAL);
	}
	how = (struct vmimg_convert){.compressed = true};
	expect_error(vmimg_image_convert(raw, packed, &how, &err), -EINVAL);
	how = (struct vmimg_convert){.dst_format = "vmo", .cluster_size = 4096};
	expect_error(vmimg_image_convert(raw, packed, &how, &err), -EINVAL);
}

/* IM-10, IM-11 */
Test(api_image, compare)
{
	const char *a = path_of(0, "a.raw"), *b = path_of(1, "b.qcow2"), *c = path_of(2, "c.raw");
	struct vmimg_convert to_qcow2 = {.dst_format = "qcow2"};
	struct vmimg_compare how = {.strict = true};
	struct vmimg_comparison got = {0};

	expect_ok(vmimg_image_create(a, "raw", NULL, MIB, &err));
	put(a, 70000, 100000, 0x10);
	expect_ok(vmimg_image_convert(a, b, &to_qcow2, &err));
	expect_ok(vmimg_image_compare(a, b, &how, &err, &got));
	cr_expect(got.same && got.first_difference == UINT64_MAX);
	cr_expect(got.size_a == MIB && got.size_b == MIB);
	put(a, 169999, 1, 0x77);
	expect_ok(vmimg_image_compare(a, b, NULL, &err, &got));
	cr_expect(!got.same && got.first_difference == 169999);

	expect_ok(vmimg_image_create(c, "raw", NULL, 2 * MIB, &err));
	put(c, 70000, 100000, 0x10);
	expect_ok(vmimg_image_compare(c, b, NULL, &err, &got));
	cr_expect(got.same && got.size_a == 2 * MIB && got.size_b == MIB);
	expect_ok(vmimg_image_compare(c, b, &how, &err, &got));
	cr_expect(!got.same && got.first_difference == UINT64_MAX);
	how.format_b = "raw";
	how.strict = false;
	expect_ok(vmimg_image_compare(c, b, &how, &err, &got));
	cr_expect(!got.same && got.first_difference == 0);

	expect_error(vmimg_image_compare(a, path_of(3, "none"), NULL, &err, &got), -ENOENT);
	expect_error(vmimg_image_compare(NULL, b, NULL, &err, &got), -EINVAL);
	expect_error(vmimg_image_compare(a, b, NULL, &err, NULL), -EINVAL);
	how.format_a = "vhdx";
	expect_error(vmimg_image_compare(a, b, &how, &err, &got), -EINVAL);
	how = (struct vmimg_compare){.progress = cancel};
	expect_error(vmimg_image_compare(a, b, &how, &err, &got), -ECANCELED);
}
