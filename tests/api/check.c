/* SPDX-License-Identifier: MIT */
/* check.c - vmimg_check(): its verdicts, its document, and that it changes nothing (CK-*). */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "tests/api/fixture.h"

TestSuite(api_check, .init = fixture_init, .fini = fixture_fini, .timeout = 60);

/* The file of the overlay that is @disk's head. */
static void layer_file(char path[500], const char *disk)
{
	json_t *doc = describe(VMIMG_KIND_DISK, disk);
	json_t *head = json_object_get(doc, "head");

	snprintf(path, 500, "%s/layers/%s.vmo", store_dir, text(head, "id"));
	json_decref(doc);
}

static void make_store(void)
{
	make_vm("web", 2);
	make_collection("prod", "web", NULL);
	expect_ok(create("prod", "s1"));
	fill("web/d0", 0, 65536, 0x11);
	expect_ok(create("prod", "s2"));
}

static json_t *check(const char *path, int expected)
{
	char *json = NULL;
	json_t *doc;
	int result = vmimg_check(path, &err, &json);

	cr_assert_eq(result, expected, "%d, expected %d: %s %s", result, expected, err.message,
		     json ? json : "");
	cr_assert_not_null(json);
	doc = json_loads(json, 0, NULL);
	vmimg_free(json);
	cr_expect_eq(number(doc, "result"), expected);
	cr_expect_str_eq(text(doc, "path"), path);
	return doc;
}

/* CK-2 0, CK-3 */
Test(api_check, a_sound_store)
{
	json_t *doc;

	make_store();
	fixture_close();
	doc = check(store_dir, VMIMG_CHECK_SOUND);
	cr_expect_geq(number(json_object_get(doc, "checked"), "layers"), 6);
	cr_expect_eq(number(json_object_get(doc, "checked"), "snapshots"), 2);
	json_decref(doc);
	expect_ok(vmimg_open(store_dir, NULL, &err, &svc));
	expect_filled("web/d0", 0, 65536, 0x11);
}

/* CK-1, CK-2 1 */
Test(api_check, what_cannot_be_checked)
{
	char path[500], *json = NULL;

	expect_error((vmimg_check(store_dir, &err, &json), err.code), -EBUSY);
	cr_expect_eq(vmimg_check(store_dir, NULL, &json), VMIMG_CHECK_FAILED);
	snprintf(path, sizeof(path), "%s/gone", scratch);
	cr_expect_eq(vmimg_check(path, &err, &json), VMIMG_CHECK_FAILED);
	cr_expect_eq(err.code, -ENOENT);
	cr_expect_str_neq(err.message, "");
	cr_expect_eq(vmimg_check(NULL, &err, &json), VMIMG_CHECK_FAILED);
	cr_expect_eq(vmimg_check("", &err, &json), VMIMG_CHECK_FAILED);
	cr_expect_eq(vmimg_check(path, &err, NULL), VMIMG_CHECK_FAILED);
	cr_expect_null(json);
}

/* CK-2 2, CK-3 */
Test(api_check, a_damaged_layer)
{
	static const uint8_t junk[8192] = {0xff, 0xfe, 0xfd};
	json_t *doc, *finding = NULL, *each;
	char path[500];
	size_t i;
	FILE *file;

	make_store();
	layer_file(path, "web/d0");
	fixture_close();
	file = fopen(path, "r+");
	cr_assert_not_null(file, "%s", path);
	cr_assert_eq(fwrite(junk, sizeof(junk), 1, file), 1);
	cr_assert_eq(fclose(file), 0);
	doc = check(store_dir, VMIMG_CHECK_CORRUPT);
	json_array_foreach (json_object_get(doc, "findings"), i, each) {
		if (strcmp(text(each, "kind"), "corruption") == 0)
			finding = each;
	}
	cr_assert_not_null(finding);
	cr_expect_str_neq(text(finding, "rule"), "");
	cr_expect_str_neq(text(finding, "where"), "");
	cr_expect_str_neq(text(finding, "message"), "");
	json_decref(doc);
	expect_ok(vmimg_open(store_dir, NULL, &err, &svc));
}

/* CK-2 3 */
Test(api_check, a_file_too_many_is_a_leak)
{
	json_t *doc;
	char path[500];
	FILE *file;

	make_store();
	fixture_close();
	snprintf(path, sizeof(path), "%s/layers/8f8c1e8a-1f5f-4b1a-9d2e-0a1b2c3d4e5f.vmo",
		 store_dir);
	file = fopen(path, "w");
	cr_assert_not_null(file);
	cr_assert_eq(fclose(file), 0);
	doc = check(store_dir, VMIMG_CHECK_LEAKS);
	json_decref(doc);
	expect_ok(vmimg_open(store_dir, NULL, &err, &svc));
}

/* CK-1 */
Test(api_check, an_image)
{
	char path[500];

	snprintf(path, sizeof(path), "%s/a.vmo", scratch);
	expect_ok(vmimg_image_create(path, "vmo", NULL, MIB, &err));
	json_decref(check(path, VMIMG_CHECK_SOUND));
}
