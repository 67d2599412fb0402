/* SPDX-License-Identifier: MIT */
/* changes.c - GetVirtualDiskChanges and the diff of a collection (DF-9 to DF-13). */
#include <errno.h>
#include <string.h>

#include "tests/api/fixture.h"

TestSuite(api_changes, .init = fixture_init, .fini = fixture_fini, .timeout = 120);

#define DISK (8 * MIB)

static struct vmimg_changes got;

static uint32_t changes(const char *path, const char *limit, const char *target, uint64_t offset,
			uint64_t length)
{
	vmimg_changes_free(&got);
	return vmimg_get_virtual_disk_changes(svc, path, limit, target, offset, length, &got, &err);
}

/* The ranges got are these: offset and length in turn, ended by UINT64_MAX. */
static void expect_ranges(uint64_t processed, const uint64_t *want)
{
	size_t n = 0;

	cr_expect_eq(got.processed_byte_length, processed, "%lu", got.processed_byte_length);
	for (; want[2 * n] != UINT64_MAX; n++) {
		cr_assert_lt(n, got.count, "too few: %zu", got.count);
		cr_expect_eq(got.changed_byte_offsets[n], want[2 * n], "%lu",
			     got.changed_byte_offsets[n]);
		cr_expect_eq(got.changed_byte_lengths[n], want[2 * n + 1], "%lu",
			     got.changed_byte_lengths[n]);
	}
	cr_expect_eq(got.count, n, "too many: %zu", got.count);
}
#define RANGES(...) ((const uint64_t[]){__VA_ARGS__ __VA_OPT__(, ) UINT64_MAX})

static void make_two_snapshots(void)
{
	make_vm("web", 2);
	make_collection("prod", "web", NULL);
	fill("web/d0", 0, MIB, 1);
	expect_ok(create("prod", "a"));
	fill("web/d0", 4096 * 3, 4096 * 2, 2);
	fill("web/d0", MIB + 100, 50, 3);
	expect_ok(create("prod", "b"));
	fill("web/d0", DISK - 4096, 4096, 4);
}

static char id_text[40];
static const char *id_of(const char *snapshot)
{
	json_t *document = describe(VMIMG_KIND_SNAPSHOT, snapshot);

	strcpy(id_text, text(document, "snapshot_id"));
	json_decref(document);
	return id_text;
}

/* DF-9: by id and by name, in both directions, now and at a snapshot. */
Test(api_changes, ranges_are_sorted_merged_and_whole_blocks)
{
	const uint64_t *ab = RANGES(12288, 8192, MIB, 4096);

	make_two_snapshots();
	expect_ok(changes("web/d0", "prod@a", "prod@b", 0, DISK));
	expect_ranges(DISK, ab);
	expect_ok(changes("web/d0", "prod@b", "prod@a", 0, DISK));
	expect_ranges(DISK, ab);
	expect_ok(changes("prod@b/web/d0", id_of("prod@a"), NULL, 0, DISK));
	expect_ranges(DISK, ab);
	expect_ok(changes("web/d0", id_of("prod@b"), "", 0, DISK));
	expect_ranges(DISK, RANGES(DISK - 4096, 4096));
	expect_ok(changes("web/d0", "prod@a", NULL, 0, DISK));
	expect_ranges(DISK, RANGES(12288, 8192, MIB, 4096, DISK - 4096, 4096));
	expect_ok(changes("web/d1", "prod@a", NULL, 0, DISK));
	expect_ranges(DISK, RANGES());
	fixture_reopen();
	expect_ok(changes("web/d0", "prod@a", NULL, 0, DISK));
	expect_ranges(DISK, RANGES(12288, 8192, MIB, 4096, DISK - 4096, 4096));
	vmimg_changes_free(&got);
}

/* DF-11: the region cuts the ranges; its end may be the disk's, or beyond; at the end there is nothing. */
Test(api_changes, a_region_is_processed_whole)
{
	make_two_snapshots();
	expect_ok(changes("web/d0", "prod@a", NULL, 14000, 100));
	expect_ranges(100, RANGES(14000, 100));
	expect_ok(changes("web/d0", "prod@a", NULL, 20000, MIB));
	expect_ranges(MIB, RANGES(20000, 480, MIB, 4096));
	expect_ok(changes("web/d0", "prod@a", NULL, DISK - 100, UINT64_MAX));
	expect_ranges(100, RANGES(DISK - 100, 100));
	expect_ok(changes("web/d0", "prod@a", NULL, DISK, DISK));
	expect_ranges(0, RANGES());
	expect_ok(changes("web/d0", "prod@a", NULL, 0, 0));
	expect_ranges(0, RANGES());
	expect_error(changes("web/d0", "prod@a", NULL, DISK + 1, 1), VMIMG_V_INVALID_PARAMETER);
}

/* DF-10: an unknown id is never "no changes". */
Test(api_changes, what_is_unknown_is_refused)
{
	make_two_snapshots();
	make_vm("db", 1);
	expect_error(changes("web/d0", "prod@c", NULL, 0, DISK), VMIMG_V_INVALID_PARAMETER);
	expect_error(changes("web/d0", "prod#a", NULL, 0, DISK), VMIMG_V_INVALID_PARAMETER);
	expect_error(changes("web/d0", "", NULL, 0, DISK), VMIMG_V_INVALID_PARAMETER);
	expect_error(changes("web/d0", NULL, NULL, 0, DISK), VMIMG_V_INVALID_PARAMETER);
	expect_error(changes("web/d0", "prod", NULL, 0, DISK), VMIMG_V_INVALID_PARAMETER);
	expect_error(changes("web/d0", "00000000-0000-0000-0000-000000000000", NULL, 0, DISK),
		     VMIMG_V_INVALID_PARAMETER);
	expect_error(changes("web/d0", "12345678-1234-1234-1234-123456789012", NULL, 0, DISK),
		     VMIMG_V_INVALID_PARAMETER);
	expect_error(changes("web/d0", "prod@a", "prod@c", 0, DISK), VMIMG_V_INVALID_PARAMETER);
	expect_error(changes("db/d0", "prod@a", NULL, 0, DISK), VMIMG_V_INVALID_PARAMETER);
	expect_error(changes("web/d2", "prod@a", NULL, 0, DISK), VMIMG_V_NOT_FOUND);
	expect_error(changes("prod@b/web/d2", "prod@a", NULL, 0, DISK), VMIMG_V_NOT_FOUND);
	expect_error(changes("prod@x/web/d0", "prod@a", NULL, 0, DISK), VMIMG_V_NOT_FOUND);
	expect_error(changes("web", "prod@a", NULL, 0, DISK), VMIMG_V_INVALID_PARAMETER);
	expect_error(changes(NULL, "prod@a", NULL, 0, DISK), VMIMG_V_INVALID_PARAMETER);
	expect_error(vmimg_get_virtual_disk_changes(NULL, "web/d0", "prod@a", NULL, 0, 1, &got,
						    &err),
		     VMIMG_V_INVALID_PARAMETER);
	expect_ok(vmimg_destroy_snapshot(svc, "prod@a", NULL, &err));
	expect_error(changes("web/d0", "prod@a", NULL, 0, DISK), VMIMG_V_INVALID_PARAMETER);
	vmimg_changes_free(NULL);
}

/* DF-3: while the guest writes; its own thread would wait for itself. */
Test(api_changes, an_attached_disk_tells_what_was_acknowledged)
{
	struct vmimg_queue *queue;
	struct vmimg_disk *disk;
	char block[4096];

	make_two_snapshots();
	queue = new_queue();
	disk = attach(queue, "web/d0", 0);
	memset(block, 9, sizeof(block));
	expect_ok(transfer(queue, disk, VMIMG_WRITE, block, sizeof(block), 2 * MIB));
	expect_error(changes("web/d0", "prod@a", NULL, 0, DISK), VMIMG_V_FAILED);
	expect_error(changes("prod@b/web/d0", "prod@b", NULL, 0, DISK), VMIMG_V_FAILED);
	expect_ok(vmimg_disk_detach(disk));
	expect_ok(vmimg_queue_destroy(queue));
	expect_ok(changes("web/d0", "prod@b", NULL, 0, DISK));
	expect_ranges(DISK, RANGES(2 * MIB, 4096, DISK - 4096, 4096));
}

static json_t *diff(const char *from, const char *to)
{
	char *json = NULL;
	json_t *document;

	expect_ok(vmimg_diff(svc, from, to, &err, &json));
	document = json_loads(json, JSON_REJECT_DUPLICATES, NULL);
	cr_assert_not_null(document, "%s", json);
	vmimg_free(json);
	return document;
}

static json_t *disk_of(const json_t *document, size_t i)
{
	return json_array_get(json_object_get(document, "disks"), i);
}

/* DF-13 */
Test(api_changes, a_collection_is_one_document)
{
	json_t *document, *changed;

	make_two_snapshots();
	document = diff("prod@a", "prod@b");
	cr_expect_str_eq(text(document, "from"), "prod@a");
	cr_expect_str_eq(text(document, "to"), "prod@b");
	cr_expect_eq(json_array_size(json_object_get(document, "disks")), 2);
	cr_expect_str_eq(text(disk_of(document, 0), "disk"), "web/d0");
	cr_expect_eq(number(disk_of(document, 0), "size"), DISK);
	cr_expect_eq(number(disk_of(document, 0), "block_size"), 4096);
	cr_expect(json_is_true(json_object_get(disk_of(document, 0), "tracked")));
	changed = json_object_get(disk_of(document, 0), "changed");
	cr_expect_eq(json_array_size(changed), 2);
	cr_expect_eq(number(json_array_get(changed, 1), "start"), MIB);
	cr_expect_eq(number(json_array_get(changed, 1), "length"), 4096);
	cr_expect_eq(json_array_size(json_object_get(disk_of(document, 1), "changed")), 0);
	json_decref(document);
	document = diff("prod@b", NULL);
	cr_expect_str_eq(text(document, "to"), "now");
	json_decref(document);
}

/* DF-13: of a disk that the first point does not have all counts; one that has gone is named. */
Test(api_changes, disks_that_come_and_go)
{
	json_t *document, *changed;

	make_two_snapshots();
	make_vm("db", 1);
	expect_ok(vmimg_add_member(svc, "db", "prod", &err));
	expect_ok(vmimg_remove_member(svc, "web", "prod", &err));
	document = diff("prod@a", NULL);
	cr_expect_eq(json_array_size(json_object_get(document, "disks")), 1);
	cr_expect(json_is_false(json_object_get(disk_of(document, 0), "tracked")));
	changed = json_object_get(disk_of(document, 0), "changed");
	cr_expect_eq(json_array_size(changed), 1);
	cr_expect_eq(number(json_array_get(changed, 0), "start"), 0);
	cr_expect_eq(number(json_array_get(changed, 0), "length"), DISK);
	cr_expect_eq(json_array_size(json_object_get(document, "gone")), 2);
	json_decref(document);
}

Test(api_changes, a_diff_of_what_is_not_there)
{
	char *json = NULL;

	make_two_snapshots();
	make_collection("other", "web", NULL);
	expect_ok(create("other", "o"));
	expect_error(vmimg_diff(svc, "prod@x", NULL, &err, &json), -ENOENT);
	expect_error(vmimg_diff(svc, "prod@a", "prod@x", &err, &json), -ENOENT);
	expect_error(vmimg_diff(svc, "prod", NULL, &err, &json), -EINVAL);
	expect_error(vmimg_diff(svc, NULL, NULL, &err, &json), -EINVAL);
	expect_error(vmimg_diff(svc, "prod@a", "other@o", &err, &json), -EINVAL);
	expect_error(vmimg_diff(NULL, "prod@a", NULL, &err, &json), -EINVAL);
	expect_error(vmimg_diff(svc, "prod@a", NULL, &err, NULL), -EINVAL);
	cr_expect_null(json);
}

/* --- reference points --- */

static char rct[40];

/* A recovery snapshot prod@NAME made a point prod#NAME; its id of the first disk's change tracking. */
static void make_point(const char *name)
{
	char snapshot[64], point[64];
	struct vmimg_ref ref = {.name = ""};
	json_t *document;

	snprintf(snapshot, sizeof(snapshot), "prod@%s", name);
	snprintf(point, sizeof(point), "prod#%s", name);
	snprintf(ref.name, sizeof(ref.name), "%s", name);
	expect_ok(vmimg_create_snapshot(svc, "prod", "{\"Synchronous\": true}",
					VMIMG_SNAPSHOT_RECOVERY, &ref, NULL, &err));
	expect_ok(vmimg_convert_to_reference_point(svc, snapshot, NULL, NULL, &err));
	document = describe(VMIMG_KIND_REFPOINT, point);
	strcpy(rct, text(json_array_get(json_object_get(document, "members"), 0), "rct_id"));
	json_decref(document);
}

/* DF-5, DF-9: by name, and by the RCT id of the disk, which is of no other. */
Test(api_changes, since_a_reference_point)
{
	json_t *document;

	make_two_snapshots();
	make_point("r");
	expect_ok(changes("web/d0", "prod#r", NULL, 0, DISK));
	expect_ranges(DISK, RANGES());
	fill("web/d0", 8192, 4096, 5);
	expect_ok(changes("web/d0", "prod#r", NULL, 0, DISK));
	expect_ranges(DISK, RANGES(8192, 4096));
	expect_ok(changes("web/d0", rct, NULL, 0, DISK));
	expect_ranges(DISK, RANGES(8192, 4096));
	expect_ok(changes("web/d0", rct, "prod@b", 0, DISK));
	expect_ranges(DISK, RANGES(DISK - 4096, 4096));
	expect_error(changes("web/d1", rct, NULL, 0, DISK), VMIMG_V_INVALID_PARAMETER);
	document = diff("prod#r", NULL);
	cr_expect_str_eq(text(document, "from"), "prod#r");
	cr_expect_eq(json_array_size(json_object_get(disk_of(document, 0), "changed")), 1);
	json_decref(document);
	document = diff("prod#r", "prod@b");
	cr_expect_eq(json_array_size(json_object_get(disk_of(document, 0), "changed")), 1);
	json_decref(document);
	expect_ok(vmimg_destroy_reference_point(svc, "prod#r", NULL, &err));
	expect_error(changes("web/d0", rct, NULL, 0, DISK), VMIMG_V_INVALID_PARAMETER);
}

/* T29, DF-5: folds that have taken the layers of the points do not change what is told of them. */
Test(api_changes, reference_points_outlive_folds)
{
	char name[16], from[32];

	make_vm("web", 2);
	make_collection("prod", "web", NULL);
	fill("web/d0", 0, MIB, 1);
	for (unsigned i = 0; i < 12; i++) {
		snprintf(name, sizeof(name), "r%u", i);
		make_point(name);
		fill("web/d0", (i + 1) * 8192, 4096, (uint8_t)(2 + i));
	}
	for (int round = 0; round < 3; round++) {
		for (unsigned i = 0; i < 12; i++) {
			uint64_t offset = (i + 1) * 8192;

			snprintf(from, sizeof(from), "prod#r%u", i);
			expect_ok(changes("web/d0", from, NULL, 0, DISK));
			cr_expect_eq(got.count, 12 - i, "%s: %zu", from, got.count);
			cr_expect_eq(got.changed_byte_offsets[0], offset, "%s: %lu", from,
				     got.changed_byte_offsets[0]);
			cr_expect_eq(got.changed_byte_lengths[0], 4096);
		}
		if (round == 0)
			expect_ok(vmimg_settle(svc, NULL, VMIMG_SETTLE_WAIT | VMIMG_SETTLE_WHOLE,
					       UINT64_MAX, NULL, &err));
		else
			fixture_reopen();
	}
	vmimg_changes_free(&got);
}
