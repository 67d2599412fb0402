/* SPDX-License-Identifier: MIT */
/* describe.c - the documents: DS-1 to DS-10. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "tests/api/fixture.h"

TestSuite(api_describe, .init = fixture_init, .fini = fixture_fini, .timeout = 60);

static void expect_keys(json_t *doc, const char *const *keys)
{
	for (; *keys; keys++)
		cr_expect_not_null(json_object_get(doc, *keys), "no %s", *keys);
	json_decref(doc);
}

/* "2026-01-31T23:59:59.123456Z" */
static void expect_time(const json_t *doc, const char *key)
{
	unsigned y, mo, d, h, mi, s, us;
	char z;

	cr_expect_eq(sscanf(text(doc, key), "%4u-%2u-%2uT%2u:%2u:%2u.%6u%c", &y, &mo, &d, &h, &mi,
			    &s, &us, &z),
		     8, "%s: %s", key, text(doc, key));
}

static void make_store(void)
{
	make_vm("web", 2);
	make_vm("db", 1);
	make_disk("db/swap", MIB, true);
	make_collection("prod", "web", NULL);
	expect_ok(create("prod", "s1"));
	expect_ok(create("prod", "s2"));
}

/* DS-3 */
Test(api_describe, bad_questions)
{
	char *json = NULL;

	make_store();
	for (int kind = VMIMG_KIND_VM; kind <= VMIMG_KIND_JOB; kind++) {
		expect_error(vmimg_describe(svc, (enum vmimg_kind)kind, NULL, &err, &json),
			     -EINVAL);
		expect_error(vmimg_describe(svc, (enum vmimg_kind)kind, "a//b", &err, &json),
			     -EINVAL);
	}
	expect_error(vmimg_describe(svc, VMIMG_KIND_VM, "gone", &err, &json), -ENOENT);
	expect_error(vmimg_describe(svc, VMIMG_KIND_DISK, "web/gone", &err, &json), -ENOENT);
	expect_error(vmimg_describe(svc, VMIMG_KIND_COLLECTION, "gone", &err, &json), -ENOENT);
	expect_error(vmimg_describe(svc, VMIMG_KIND_SNAPSHOT, "prod@gone", &err, &json), -ENOENT);
	expect_error(vmimg_describe(svc, VMIMG_KIND_JOB, "00000000-0000-4000-8000-000000000000",
				    &err, &json),
		     -ENOENT);
	expect_error(vmimg_describe(svc, VMIMG_KIND_STORE, "x", &err, &json), -EINVAL);
	expect_error(vmimg_describe(svc, VMIMG_KIND_TREE, "x", &err, &json), -EINVAL);
	expect_error(vmimg_describe(svc, (enum vmimg_kind)7, NULL, &err, &json), -EINVAL);
	expect_error(vmimg_describe(NULL, VMIMG_KIND_STORE, NULL, &err, &json), -EINVAL);
	expect_error(vmimg_describe(svc, VMIMG_KIND_STORE, NULL, &err, NULL), -EINVAL);
	expect_error(vmimg_list(svc, VMIMG_KIND_DISK, "gone", &err, &json), -ENOENT);
	expect_error(vmimg_list(svc, VMIMG_KIND_SNAPSHOT, "gone", &err, &json), -ENOENT);
	expect_error(vmimg_list(svc, VMIMG_KIND_VM, "web", &err, &json), -EINVAL);
	expect_error(vmimg_list(svc, VMIMG_KIND_COLLECTION, "prod", &err, &json), -EINVAL);
	expect_error(vmimg_list(svc, VMIMG_KIND_JOB, "x", &err, &json), -EINVAL);
	expect_error(vmimg_list(svc, (enum vmimg_kind) - 1, NULL, &err, &json), -EINVAL);
	cr_expect_null(json);
}

/* DS-2 */
Test(api_describe, lists_are_ordered_and_filtered)
{
	json_t *rows;

	make_store();
	rows = list(VMIMG_KIND_VM, NULL);
	cr_assert_eq(json_array_size(rows), 2);
	cr_expect_str_eq(text(json_array_get(rows, 0), "name"), "db");
	json_decref(rows);
	rows = list(VMIMG_KIND_DISK, NULL);
	cr_assert_eq(json_array_size(rows), 4);
	cr_expect_str_eq(text(json_array_get(rows, 1), "disk"), "db/swap");
	json_decref(rows);
	rows = list(VMIMG_KIND_DISK, "web");
	cr_assert_eq(json_array_size(rows), 2);
	cr_expect_str_eq(text(json_array_get(rows, 0), "disk"), "web/d0");
	json_decref(rows);
	rows = list(VMIMG_KIND_SNAPSHOT, "prod");
	cr_assert_eq(json_array_size(rows), 2);
	cr_expect_str_eq(text(json_array_get(rows, 0), "snapshot"), "prod@s1");
	json_decref(rows);
	cr_expect_eq(count_of(VMIMG_KIND_COLLECTION), 1);
	cr_expect_eq(count_of(VMIMG_KIND_JOB), 2);
	cr_expect_eq(count_of(VMIMG_KIND_STORE), 1);
	cr_expect_eq(count_of(VMIMG_KIND_TREE), 1);
}

/* DS-4 */
Test(api_describe, store)
{
	static const char *const keys[] = {"store", "id", "version", "allocated", NULL};
	json_t *doc;

	make_store();
	doc = describe(VMIMG_KIND_STORE, NULL);
	cr_expect_str_eq(text(doc, "store"), store_dir);
	cr_expect_eq(number(doc, "vms"), 2);
	cr_expect_eq(number(doc, "disks"), 4);
	cr_expect_eq(number(doc, "collections"), 1);
	cr_expect_eq(number(doc, "snapshots"), 2);
	cr_expect_eq(number(doc, "layers"), 8);
	expect_keys(doc, keys);
}

/* DS-5, DS-6, DS-7 */
Test(api_describe, vm_disk_and_collection)
{
	static const char *const vm_keys[] = {"name", "id", "created", "disks", NULL};
	static const char *const disk_keys[] = {"disk",   "vm",         "name",        "id",
						"size",   "block_size", "independent", "attached",
						"layers", "head",       "allocated",   "created",
						NULL};
	static const char *const collection_keys[] = {"collection", "id",    "created",
						      "members",    "disks", "snapshots",
						      NULL};
	struct vmimg_queue *queue = new_queue();
	struct vmimg_disk *attached;
	json_t *doc;

	make_store();
	doc = describe(VMIMG_KIND_VM, "web");
	expect_time(doc, "created");
	cr_expect_eq(json_array_size(json_object_get(doc, "disks")), 2);
	expect_keys(doc, vm_keys);
	attached = attach(queue, "web/d0", 0);
	doc = describe(VMIMG_KIND_DISK, "web/d0");
	cr_expect_eq(number(doc, "size"), 8 * MIB);
	cr_expect_eq(number(doc, "layers"), 3);
	cr_expect(json_is_true(json_object_get(doc, "attached")));
	cr_expect(json_is_false(json_object_get(doc, "independent")));
	cr_expect_str_eq(text(json_object_get(doc, "head"), "kind"), "overlay");
	expect_keys(doc, disk_keys);
	cr_expect_eq(vmimg_disk_detach(attached), 0);
	cr_expect_eq(vmimg_queue_destroy(queue), 0);
	doc = describe(VMIMG_KIND_DISK, "db/swap");
	cr_expect(json_is_false(json_object_get(doc, "attached")));
	cr_expect(json_is_true(json_object_get(doc, "independent")));
	cr_expect_str_eq(text(json_object_get(doc, "head"), "kind"), "raw");
	json_decref(doc);
	doc = describe(VMIMG_KIND_COLLECTION, "prod");
	cr_expect_eq(number(doc, "disks"), 2);
	cr_expect_eq(number(doc, "snapshots"), 2);
	expect_keys(doc, collection_keys);
}

/* DS-8 */
Test(api_describe, snapshot)
{
	static const char *const keys[] = {"snapshot",     "snapshot_id", "collection",
					   "element_name", "type",        "type_name",
					   "consistency",  "created",     "cut_time",
					   "state",        "disks",       "skipped",
					   "cut_ns",       "prepare_ns",  "drain_ns",
					   "harden_ns",    "total_ns",    "max_write_latency_ns",
					   "members",      NULL};
	static const char *const member_keys[] = {"disk",   "layer",   "size", "allocated",
						  "sealed", "skipped", NULL};
	json_t *doc;

	make_store();
	doc = describe(VMIMG_KIND_SNAPSHOT, "prod@s1");
	expect_time(doc, "created");
	expect_time(doc, "cut_time");
	cr_expect_str_eq(text(doc, "state"), "complete");
	cr_expect_str_eq(text(doc, "type_name"), "standard");
	cr_expect_gt(number(doc, "total_ns"), 0);
	cr_expect_geq(number(doc, "total_ns"),
		      number(doc, "prepare_ns") + number(doc, "harden_ns"));
	expect_keys(json_incref(json_array_get(json_object_get(doc, "members"), 0)), member_keys);
	expect_keys(doc, keys);
}

/* DS-9 */
Test(api_describe, job)
{
	static const char *const keys[] = {"instance_id",
					   "name",
					   "job_state",
					   "job_type",
					   "percent_complete",
					   "error_code",
					   "error_description",
					   "job_status",
					   "cancellable",
					   "time_submitted",
					   "start_time",
					   "time_of_last_state_change",
					   "elapsed_time",
					   "time_before_removal",
					   "affected_element",
					   "element_effects",
					   NULL};
	json_t *rows, *doc;

	make_store();
	rows = list(VMIMG_KIND_JOB, NULL);
	doc = describe(VMIMG_KIND_JOB, text(json_array_get(rows, 0), "instance_id"));
	cr_expect_eq(number(doc, "job_state"), VMIMG_JOB_COMPLETED);
	cr_expect_eq(number(doc, "percent_complete"), 100);
	cr_expect_str_eq(text(json_object_get(doc, "affected_element"), "name"), "prod@s1");
	cr_expect_eq(json_integer_value(json_array_get(json_object_get(doc, "element_effects"), 0)),
		     VMIMG_EFFECT_CREATE);
	expect_time(doc, "time_submitted");
	expect_keys(doc, keys);
	json_decref(rows);
}

/* DS-2: what is being created is not shown; DS-9: its job is, as it runs */
Test(api_describe, a_running_create_shows_its_job_only)
{
	struct stuck guest;
	struct vmimg_job *job;
	json_t *rows;

	make_vm("web", 1);
	make_collection("prod", "web", NULL);
	stuck_begin(&guest, "web/d0");
	job = start_job("prod", "s1");
	cr_expect_eq(count_of(VMIMG_KIND_SNAPSHOT), 0);
	rows = list(VMIMG_KIND_JOB, NULL);
	cr_assert_eq(json_array_size(rows), 1);
	cr_expect_eq(number(json_array_get(rows, 0), "job_state"), VMIMG_JOB_RUNNING);
	cr_expect(json_is_null(json_object_get(json_array_get(rows, 0), "affected_element")));
	cr_expect(json_is_true(json_object_get(json_array_get(rows, 0), "cancellable")));
	json_decref(rows);
	stuck_end(&guest);
	expect_state(job, VMIMG_JOB_COMPLETED);
	vmimg_job_put(job);
	cr_expect_eq(count_of(VMIMG_KIND_SNAPSHOT), 1);
}

/* DS-10 */
Test(api_describe, tree)
{
	json_t *doc, *collection, *vm, *chain;

	make_store();
	doc = describe(VMIMG_KIND_TREE, NULL);
	cr_expect_str_eq(text(doc, "store"), store_dir);
	collection = json_array_get(json_object_get(doc, "collections"), 0);
	cr_expect_str_eq(text(collection, "collection"), "prod");
	cr_expect_eq(json_array_size(json_object_get(collection, "snapshots")), 2);
	vm = json_array_get(json_object_get(doc, "vms"), 1);
	cr_expect_str_eq(text(vm, "vm"), "web");
	chain = json_object_get(json_array_get(json_object_get(vm, "disks"), 0), "chain");
	cr_assert_eq(json_array_size(chain), 3);
	cr_expect_str_eq(text(json_array_get(chain, 0), "kind"), "raw");
	cr_expect_str_eq(text(json_array_get(chain, 0), "snapshot"), "prod@s1");
	cr_expect_str_eq(text(json_array_get(chain, 1), "kind"), "overlay");
	cr_expect_str_eq(text(json_array_get(chain, 1), "snapshot"), "prod@s2");
	cr_expect(json_is_null(json_object_get(json_array_get(chain, 2), "snapshot")));
	cr_expect_str_eq(text(json_array_get(chain, 2), "state"), "active");
	cr_expect_eq(number(json_array_get(chain, 2), "generation"), 2);
	json_decref(doc);
}
