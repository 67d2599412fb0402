/* SPDX-License-Identifier: MIT */
/* branch.c - ApplySnapshot, CloneSnapshot, Flatten: every answer of CSN-16 to CSN-18. */
#include <errno.h>
#include <string.h>

#include "tests/api/fixture.h"

TestSuite(api_branch, .init = fixture_init, .fini = fixture_fini, .timeout = 60);

static json_t *document(char *json)
{
	json_t *doc = json_loads(json ? json : "", 0, NULL);

	cr_assert_not_null(doc, "no document");
	vmimg_free(json);
	return doc;
}

/* prod@s1 with 1, then 2 on both disks. */
static void begin(void)
{
	make_vm("web", 2);
	make_collection("prod", "web", NULL);
	fill("web/d0", 0, MIB, 1);
	fill("web/d1", 0, MIB, 1);
	expect_ok(create("prod", "s1"));
	fill("web/d0", 0, MIB, 2);
	fill("web/d1", 0, MIB, 2);
}

static void expect_both(const char *vm, uint8_t byte)
{
	char disk[64];

	for (int i = 0; i < 2; i++) {
		snprintf(disk, sizeof(disk), "%s/d%d", vm, i);
		expect_filled(disk, 0, MIB, byte);
	}
}

/* CSN-16 */
Test(api_branch, a_revert_tells_what_it_kept_and_what_it_left)
{
	struct vmimg_job_info info;
	struct vmimg_job *job = NULL;
	char *json = NULL, kept[200];
	json_t *doc, *snap;

	begin();
	make_disk("web/new", MIB, false);
	expect_ok(vmimg_apply_snapshot(svc, "prod@s1", NULL, &json, &job, &err));
	doc = document(json);
	cr_expect_str_eq(text(doc, "snapshot"), "prod@s1");
	cr_expect_eq(number(doc, "disks"), 2);
	cr_expect_str_eq(json_string_value(json_array_get(json_object_get(doc, "untouched"), 0)),
			 "web/new");
	snprintf(kept, sizeof(kept), "%s", text(doc, "kept"));
	vmimg_job_info(job, &info);
	cr_expect_eq(info.job_type, VMIMG_JOB_TYPE_APPLY_SNAPSHOT);
	expect_state(job, VMIMG_JOB_COMPLETED);
	cr_expect_str_eq(info.affected.name, kept);
	cr_expect_str_eq(info.affected.id, text(doc, "kept_id"));
	vmimg_job_put(job);
	json_decref(doc);
	snap = describe(VMIMG_KIND_SNAPSHOT, kept);
	cr_expect(json_is_true(json_object_get(snap, "automatic")));
	cr_expect_eq(number(snap, "disks"), 2);
	json_decref(snap);
	expect_both("web", 1);
	expect_ok(vmimg_apply_snapshot(svc, kept, "{\"KeepState\": false}", &json, NULL, &err));
	doc = document(json);
	cr_expect(json_is_null(json_object_get(doc, "kept")));
	json_decref(doc);
	expect_both("web", 2);
	cr_expect_eq(count_of(VMIMG_KIND_SNAPSHOT), 2);
}

/* CSN-16 */
Test(api_branch, a_revert_refuses)
{
	struct vmimg_queue *queue;
	struct vmimg_disk *disk;
	struct vmimg_job *job = (struct vmimg_job *)&job;

	begin();
	expect_error(vmimg_apply_snapshot(NULL, "prod@s1", NULL, NULL, &job, &err),
		     VMIMG_INVALID_PARAMETER);
	cr_expect_null(job);
	expect_error(vmimg_apply_snapshot(svc, NULL, NULL, NULL, NULL, &err),
		     VMIMG_INVALID_PARAMETER);
	expect_error(vmimg_apply_snapshot(svc, "prod", NULL, NULL, NULL, &err),
		     VMIMG_INVALID_PARAMETER);
	expect_error(vmimg_apply_snapshot(svc, "prod@none", NULL, NULL, NULL, &err),
		     VMIMG_INVALID_PARAMETER);
	expect_error(vmimg_apply_snapshot(svc, "prod@s1", "{", NULL, NULL, &err),
		     VMIMG_INVALID_PARAMETER);
	expect_error(vmimg_apply_snapshot(svc, "prod@s1", "{\"KeepState\": 1}", NULL, NULL, &err),
		     VMIMG_INVALID_PARAMETER);
	expect_error(vmimg_apply_snapshot(svc, "prod@s1", "{\"Keep\": true}", NULL, NULL, &err),
		     VMIMG_INVALID_PARAMETER);
	expect_error(vmimg_apply_snapshot(svc, "prod@s1", "{\"KeptName\": \"s1\"}", NULL, NULL,
					  &err),
		     VMIMG_INVALID_PARAMETER);
	queue = new_queue();
	disk = attach(queue, "web/d1", 0);
	cr_expect_eq(vmimg_apply_snapshot(svc, "prod@s1", NULL, NULL, NULL, &err),
		     VMIMG_INVALID_STATE);
	cr_expect(strstr(err.message, "web/d1") != NULL, "%s", err.message);
	expect_ok(vmimg_disk_detach(disk));
	disk = attach(queue, "web/d1", VMIMG_ATTACH_READ_ONLY);
	expect_error(vmimg_apply_snapshot(svc, "prod@s1", NULL, NULL, NULL, &err),
		     VMIMG_INVALID_STATE);
	expect_ok(vmimg_disk_detach(disk));
	disk = attach(queue, "prod@s1/web/d1", VMIMG_ATTACH_READ_ONLY);
	expect_both("web", 2);
	expect_ok(vmimg_apply_snapshot(svc, "prod@s1", "", NULL, NULL, &err));
	expect_ok(vmimg_disk_detach(disk));
	vmimg_queue_destroy(queue);
	expect_both("web", 1);
}

/* CSN-17, CL-5 */
Test(api_branch, a_clone_is_a_collection_of_its_own)
{
	struct vmimg_ref made = {0};
	struct vmimg_job_info info;
	struct vmimg_job *job = NULL;
	char *json = NULL;
	json_t *doc;

	begin();
	expect_ok(vmimg_clone_snapshot(svc, "prod@s1", "test", &made, &json, &job, &err));
	doc = document(json);
	cr_expect_str_eq(text(doc, "collection"), "test");
	cr_expect_str_eq(text(doc, "collection_id"), made.id);
	cr_expect_eq(number(doc, "disks"), 2);
	json_decref(doc);
	vmimg_job_info(job, &info);
	cr_expect_eq(info.job_type, VMIMG_JOB_TYPE_CLONE);
	cr_expect_str_eq(info.affected.name, "test");
	cr_expect_str_eq(info.affected.id, made.id);
	vmimg_job_put(job);
	doc = describe(VMIMG_KIND_COLLECTION, "test");
	cr_expect_eq(number(doc, "disks"), 2);
	json_decref(doc);
	expect_both("test-web", 1);
	fill("test-web/d0", 0, MIB, 3);
	expect_both("web", 2);
	doc = describe(VMIMG_KIND_SNAPSHOT, "prod@s1");
	cr_expect_str_eq(json_string_value(json_array_get(
				 json_object_get(json_array_get(json_object_get(doc, "members"), 0),
						 "clones"),
				 0)),
			 "test-web/d0");
	json_decref(doc);
	expect_ok(vmimg_destroy_snapshot(svc, "prod@s1", NULL, &err));
	expect_filled("test-web/d1", 0, MIB, 1);
	expect_error(vmimg_disk_delete(svc, "web/d1", &err), -EBUSY);
	expect_error(vmimg_clone_snapshot(svc, "prod@s1", "more", NULL, NULL, NULL, &err),
		     VMIMG_INVALID_PARAMETER);
	expect_ok(create("prod", "s2"));
	expect_error(vmimg_clone_snapshot(svc, "prod@s2", "test", NULL, NULL, NULL, &err),
		     VMIMG_INVALID_PARAMETER);
	expect_error(vmimg_clone_snapshot(svc, "prod@s2", "-", NULL, NULL, NULL, &err),
		     VMIMG_INVALID_PARAMETER);
}

/* CSN-18 */
Test(api_branch, a_flatten_is_a_job)
{
	struct vmimg_job_info info;
	struct vmimg_queue *queue;
	struct vmimg_disk *disk;
	struct vmimg_job *job = NULL;

	begin();
	expect_ok(vmimg_clone_snapshot(svc, "prod@s1", "test", NULL, NULL, NULL, &err));
	expect_error(vmimg_flatten(svc, "test-web/none", 0, 0, NULL, &err),
		     VMIMG_INVALID_PARAMETER);
	expect_error(vmimg_flatten(svc, "none", 0, 0, NULL, &err), VMIMG_INVALID_PARAMETER);
	expect_error(vmimg_flatten(svc, "test", 0, 64, NULL, &err), VMIMG_INVALID_PARAMETER);
	cr_assert_eq(vmimg_flatten(svc, "test", 0, 0, &job, &err), VMIMG_JOB_STARTED);
	expect_ok(vmimg_job_wait(job, 20 * SECOND));
	expect_state(job, VMIMG_JOB_COMPLETED);
	vmimg_job_info(job, &info);
	cr_expect_eq(info.job_type, VMIMG_JOB_TYPE_FLATTEN);
	vmimg_job_put(job);
	expect_both("test-web", 1);
	expect_ok(vmimg_destroy_snapshot(svc, "prod@s1", NULL, &err));
	expect_ok(vmimg_disk_delete(svc, "web/d0", &err));
	expect_both("test-web", 1);
	expect_ok(vmimg_flatten(svc, "test-web/d0", 0, VMIMG_FLATTEN_WAIT, NULL, &err));
	queue = new_queue();
	disk = attach(queue, "test-web/d0", VMIMG_ATTACH_READ_ONLY);
	expect_ok(vmimg_flatten(svc, "test-web/d0", 0, VMIMG_FLATTEN_WAIT, NULL, &err));
	expect_ok(vmimg_disk_detach(disk));
	vmimg_queue_destroy(queue);
}
