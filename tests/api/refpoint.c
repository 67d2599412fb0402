/* SPDX-License-Identifier: MIT */
/*
 * refpoint.c - the collection reference point service: its numbers, which are not the snapshot service's,
 * its answers, jobs, documents and events (spec/refpoint.md RP-20..RP-28).
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/api/fixture.h"

static void setup(void)
{
	fixture_init();
	make_vm("web", 2);
	make_vm("db", 1);
	make_collection("prod", "web", "db", NULL);
}

TestSuite(api_refpoint, .init = setup, .fini = fixture_fini, .timeout = 120);

static uint32_t snapshot_of(const char *name, const char *settings, uint16_t type)
{
	struct vmimg_ref result = {.name = ""};

	snprintf(result.name, sizeof(result.name), "%s", name);
	return vmimg_create_snapshot(svc, "prod", settings, type, &result, NULL, &err);
}

static uint32_t recovery(const char *name)
{
	return snapshot_of(name, "{\"Synchronous\": true}", VMIMG_SNAPSHOT_RECOVERY);
}

static uint32_t point(const char *collection, const char *settings, uint16_t type, const char *name,
		      struct vmimg_job **job)
{
	struct vmimg_ref result = {.name = ""};

	snprintf(result.name, sizeof(result.name), "%s", name);
	return vmimg_create_reference_point(svc, collection, settings, type, &result, job, &err);
}

static uint32_t convert_to(const char *snapshot, const char *name)
{
	struct vmimg_ref result = {.name = ""};

	snprintf(result.name, sizeof(result.name), "%s", name);
	return vmimg_convert_to_reference_point(svc, snapshot, &result, NULL, &err);
}

/* T2, T3: the numbers are the pages', and the two of ConsistencyLevel differ. */
Test(api_refpoint, numbers_are_those_of_the_collection_service)
{
	cr_expect_eq(VMIMG_REFPOINT_UNKNOWN, 0);
	cr_expect_eq(VMIMG_REFPOINT_LOG, 1);
	cr_expect_eq(VMIMG_REFPOINT_RCT, 2);
	cr_expect_eq(VMIMG_REFPOINT_CONSISTENCY_CRASH, 1);
	cr_expect_eq(VMIMG_REFPOINT_CONSISTENCY_APPLICATION, 2);
	cr_expect_eq(VMIMG_CONSISTENCY_APPLICATION, 1);
	cr_expect_eq(VMIMG_CONSISTENCY_CRASH, 2);
	cr_expect_eq(VMIMG_JOB_TYPE_CONVERT_TO_REFPOINT, 200);
	cr_expect_eq(VMIMG_JOB_TYPE_CREATE_REFPOINT_COLLECTION, 205);
	cr_expect_eq(VMIMG_JOB_TYPE_EXPORT_REFPOINT_COLLECTION, 206);
	cr_expect_eq(VMIMG_JOB_TYPE_REMOVE_REFPOINT_DATA_COLLECTION, 207);
	cr_expect_eq(VMIMG_JOB_TYPE_DELETE_REFPOINT_COLLECTION, 208);
}

/* RP-23, RP-7, JB-6 */
Test(api_refpoint, a_conversion_answers_0_with_its_job_ended)
{
	struct vmimg_ref result = {.name = ""};
	struct vmimg_refpoint_info info;
	struct vmimg_job_info told;
	struct vmimg_job *job = NULL;

	expect_ok(recovery("b1"));
	expect_ok(vmimg_convert_to_reference_point(svc, "prod@b1", &result, &job, &err));
	cr_expect_str_eq(result.name, "prod#b1", "the snapshot's name where none is wanted");
	cr_assert_not_null(job);
	vmimg_job_info(job, &told);
	vmimg_job_put(job);
	cr_expect_eq(told.job_state, VMIMG_JOB_COMPLETED);
	cr_expect_eq(told.job_type, 200);
	cr_expect_eq(told.percent_complete, 100);
	cr_expect_eq(told.element_effect, VMIMG_EFFECT_CREATE);
	cr_expect_str_eq(told.affected.name, "prod#b1");
	cr_expect_str_eq(told.affected.id, result.id);
	cr_expect_eq(count_of(VMIMG_KIND_SNAPSHOT), 0);
	expect_ok(vmimg_refpoint_info(svc, "prod#b1", &err, &info));
	cr_expect_eq(info.reference_point_type, VMIMG_REFPOINT_RCT);
	cr_expect_eq(info.consistency_level, VMIMG_REFPOINT_CONSISTENCY_CRASH);
	cr_expect_not(info.has_associated_log);
	cr_expect_eq(info.disks, 3);
	fixture_reopen();
	expect_ok(vmimg_refpoint_info(svc, "prod#b1", &err, &info));
	cr_expect_str_eq(info.ref.id, result.id);

	expect_ok(recovery("b1"));
	result.name[0] = 0;
	expect_ok(vmimg_convert_to_reference_point(svc, "prod@b1", &result, NULL, &err));
	cr_expect_str_eq(result.name, "prod#b1-2", "RP-23");
}

/* RP-23 */
Test(api_refpoint, conversions_that_are_refused_change_nothing)
{
	expect_ok(create("prod", "std"));
	expect_ok(recovery("b1"));
	expect_ok(recovery("b2"));
	expect_ok(convert_to("prod@b1", "taken"));
	expect_error(convert_to("prod@std", "p"), VMIMG_INVALID_TYPE);
	expect_error(convert_to("prod@none", "p"), VMIMG_INVALID_PARAMETER);
	expect_error(convert_to("nobody@b2", "p"), VMIMG_INVALID_PARAMETER);
	expect_error(convert_to("prod#b2", "p"), VMIMG_INVALID_PARAMETER);
	expect_error(convert_to(NULL, "p"), VMIMG_INVALID_PARAMETER);
	expect_error(convert_to("prod@b2", "taken"), VMIMG_INVALID_PARAMETER);
	expect_error(convert_to("prod@b2", "prod@p"), VMIMG_INVALID_PARAMETER);
	expect_error(convert_to("prod@b2", "other#p"), VMIMG_INVALID_PARAMETER);
	expect_error(convert_to("prod@b2", ".p"), VMIMG_INVALID_PARAMETER);
	expect_ok(vmimg_hold_snapshot(svc, "prod@b2", "tag", &err));
	expect_error(convert_to("prod@b2", "p"), VMIMG_INVALID_STATE);
	expect_error(vmimg_convert_to_reference_point(NULL, "prod@b2", NULL, NULL, &err),
		     VMIMG_INVALID_PARAMETER);
	cr_expect_eq(count_of(VMIMG_KIND_SNAPSHOT), 2);
	cr_expect_eq(count_of(VMIMG_KIND_REFPOINT), 1);
	expect_ok(vmimg_release_snapshot(svc, "prod@b2", "tag", &err));
	expect_ok(convert_to("prod@b2", "prod#p"));
}

/* RP-22 */
Test(api_refpoint, a_create_is_a_job_of_type_205)
{
	struct vmimg_ref result = {.name = "p1"};
	struct vmimg_job_info told;
	struct vmimg_job *job = NULL;

	cr_assert_eq(vmimg_create_reference_point(svc, "prod", NULL, VMIMG_REFPOINT_RCT, &result,
						  &job, &err),
		     VMIMG_JOB_STARTED);
	cr_expect_str_eq(result.id, "", "CSN-4");
	cr_assert_eq(vmimg_job_wait(job, 20 * SECOND), 0);
	vmimg_job_info(job, &told);
	vmimg_job_put(job);
	cr_expect_eq(told.job_state, VMIMG_JOB_COMPLETED, "%s", told.error_description);
	cr_expect_eq(told.job_type, 205);
	cr_expect_str_eq(told.name, "prod#p1");
	cr_expect_str_eq(told.affected.name, "prod#p1");
	cr_expect_eq(count_of(VMIMG_KIND_SNAPSHOT), 0, "RP-8");
	cr_expect_eq(count_of(VMIMG_KIND_REFPOINT), 1);
	expect_ok(point("prod", "{\"Synchronous\": true, \"ElementName\": \"Sunday\"}", 2, "p2",
			NULL));
}

/* RP-22: 1 Log and vendors', 6 others, and the checks of CSN-2. */
Test(api_refpoint, creates_that_are_refused_change_nothing)
{
	make_collection("empty", NULL);
	expect_ok(point("prod", "{\"Synchronous\": true}", 2, "p1", NULL));
	expect_error(point("prod", NULL, VMIMG_REFPOINT_LOG, "p", NULL), VMIMG_NOT_SUPPORTED);
	expect_error(point("prod", NULL, 32768, "p", NULL), VMIMG_NOT_SUPPORTED);
	expect_error(point("prod", NULL, VMIMG_REFPOINT_UNKNOWN, "p", NULL), VMIMG_INVALID_TYPE);
	expect_error(point("prod", NULL, 3, "p", NULL), VMIMG_INVALID_TYPE);
	expect_error(point("nobody", NULL, 2, "p", NULL), VMIMG_INVALID_PARAMETER);
	expect_error(point("prod", "{\"Bogus\": 1}", 2, "p", NULL), VMIMG_INVALID_PARAMETER);
	expect_error(point("prod", NULL, 2, "p1", NULL), VMIMG_INVALID_PARAMETER);
	expect_error(point("prod", NULL, 2, "prod@p", NULL), VMIMG_INVALID_PARAMETER);
	expect_error(point("empty", NULL, 2, "p", NULL), VMIMG_INVALID_STATE);
	expect_error(point("prod", "{\"ConsistencyLevel\": 1}", 2, "p", NULL), VMIMG_NOT_SUPPORTED);
	cr_expect_eq(count_of(VMIMG_KIND_REFPOINT), 1);
}

static int freeze(void *arg, uint64_t deadline_ns)
{
	(void)arg;
	(void)deadline_ns;
	return 0;
}

static int thaw(void *arg)
{
	(void)arg;
	return 0;
}

/* RP-21: what the settings call 1 the collection's point calls 2, and each VM's 1 again. */
Test(api_refpoint, application_consistency_is_told_by_both_numberings)
{
	const struct vmimg_guest_ops ops = {.freeze = freeze, .thaw = thaw};
	struct vmimg_refpoint_info info;
	json_t *doc;

	expect_ok(vmimg_vm_set_guest(svc, "web", &ops, NULL, &err));
	expect_ok(vmimg_vm_set_guest(svc, "db", &ops, NULL, &err));
	expect_ok(point("prod", "{\"Synchronous\": true, \"ConsistencyLevel\": 1}", 2, "p1", NULL));
	expect_ok(snapshot_of("b1", "{\"Synchronous\": true, \"ConsistencyLevel\": 1}",
			      VMIMG_SNAPSHOT_RECOVERY));
	expect_ok(convert_to("prod@b1", "p2"));
	expect_ok(vmimg_refpoint_info(svc, "prod#p1", &err, &info));
	cr_expect_eq(info.consistency_level, VMIMG_REFPOINT_CONSISTENCY_APPLICATION);
	expect_ok(vmimg_refpoint_info(svc, "prod#p2", &err, &info));
	cr_expect_eq(info.consistency_level, VMIMG_REFPOINT_CONSISTENCY_APPLICATION);
	doc = describe(VMIMG_KIND_REFPOINT, "prod#p2");
	cr_expect_eq(number(doc, "consistency_level"), 2);
	cr_expect_eq(number(json_array_get(json_object_get(doc, "virtual_systems"), 0),
			    "consistency_level"),
		     1);
	json_decref(doc);
	expect_ok(vmimg_vm_set_guest(svc, "web", NULL, NULL, &err));
	expect_ok(vmimg_vm_set_guest(svc, "db", NULL, NULL, &err));
}

/* RP-25, RP-5: parallel, in the order of the snapshot's members. */
Test(api_refpoint, ids_and_disks_are_paired_by_their_place)
{
	json_t *snap, *doc, *of_vm, *member;
	size_t i, at = 0;

	expect_ok(recovery("b1"));
	snap = describe(VMIMG_KIND_SNAPSHOT, "prod@b1");
	expect_ok(convert_to("prod@b1", "p"));
	doc = describe(VMIMG_KIND_REFPOINT, "prod#p");
	cr_assert_eq(json_array_size(json_object_get(doc, "members")), 3);
	json_array_foreach (json_object_get(doc, "members"), i, member)
		cr_expect_str_eq(text(member, "disk"),
				 text(json_array_get(json_object_get(snap, "members"), i), "disk"));
	json_array_foreach (json_object_get(doc, "virtual_systems"), i, of_vm) {
		const json_t *disks = json_object_get(of_vm, "virtual_disk_identifiers");
		const json_t *ids = json_object_get(of_vm, "resilient_change_tracking_identifiers");

		cr_assert_eq(json_array_size(disks), json_array_size(ids));
		for (size_t j = 0; j < json_array_size(disks); j++, at++) {
			member = json_array_get(json_object_get(doc, "members"), at);
			cr_expect_str_eq(text(member, "disk_id"),
					 json_string_value(json_array_get(disks, j)));
			cr_expect_str_eq(text(member, "rct_id"),
					 json_string_value(json_array_get(ids, j)));
		}
	}
	cr_expect_eq(at, 3);
	cr_expect_str_eq(text(doc, "snapshot"), "prod@b1");
	cr_expect_str_eq(text(doc, "snapshot_id"), text(snap, "snapshot_id"));
	json_decref(snap);
	json_decref(doc);
}

/* RP-24, RP-27 */
Test(api_refpoint, destroy_and_remove_data)
{
	struct vmimg_job_info told;
	struct vmimg_job *job = NULL;

	expect_ok(point("prod", "{\"Synchronous\": true}", 2, "p1", NULL));
	expect_ok(point("prod", "{\"Synchronous\": true}", 2, "p2", NULL));
	expect_error(vmimg_remove_associated_data(svc, "prod#p1", NULL, &err), VMIMG_INVALID_TYPE);
	expect_error(vmimg_remove_associated_data(svc, "prod#none", NULL, &err),
		     VMIMG_INVALID_PARAMETER);
	expect_error(vmimg_destroy_collection(svc, "prod", &err), VMIMG_V_INVALID_STATE);
	expect_ok(vmimg_destroy_reference_point(svc, "prod#p1", &job, &err));
	vmimg_job_info(job, &told);
	vmimg_job_put(job);
	cr_expect_eq(told.job_state, VMIMG_JOB_COMPLETED);
	cr_expect_eq(told.job_type, 208);
	cr_expect_eq(told.element_effect, 0);
	expect_error(vmimg_destroy_reference_point(svc, "prod#p1", NULL, &err),
		     VMIMG_INVALID_PARAMETER);
	expect_error(vmimg_destroy_reference_point(svc, "prod@p2", NULL, &err),
		     VMIMG_INVALID_PARAMETER);
	cr_expect_eq(count_of(VMIMG_KIND_REFPOINT), 1);
	expect_ok(vmimg_destroy_reference_point(svc, "prod#p2", NULL, &err));
	expect_ok(vmimg_destroy_collection(svc, "prod", &err));
}

/* RP-15: GetVirtualDiskChanges by the disk's own id; 32775 once it is lost, 32773 once it is gone. */
Test(api_refpoint, changes_by_the_id_of_change_tracking)
{
	struct vmimg_changes changes = {0};
	json_t *doc;
	char id[37];

	expect_ok(point("prod", "{\"Synchronous\": true}", 2, "p1", NULL));
	doc = describe(VMIMG_KIND_REFPOINT, "prod#p1");
	snprintf(id, sizeof(id), "%s",
		 text(json_array_get(json_object_get(doc, "members"), 1), "rct_id"));
	cr_expect_str_eq(text(json_array_get(json_object_get(doc, "members"), 1), "disk"),
			 "web/d0");
	json_decref(doc);
	fill("web/d0", 64 << 10, 8192, 7);
	expect_ok(vmimg_get_virtual_disk_changes(svc, "web/d0", id, NULL, 0, 8 * MIB, &changes,
						 &err));
	cr_assert_eq(changes.count, 1);
	cr_expect_eq(changes.changed_byte_offsets[0], 64u << 10);
	cr_expect_eq(changes.changed_byte_lengths[0], 8192u);
	vmimg_changes_free(&changes);
	expect_ok(vmimg_destroy_reference_point(svc, "prod#p1", NULL, &err));
	expect_error(vmimg_get_virtual_disk_changes(svc, "web/d0", id, NULL, 0, 8 * MIB, &changes,
						    &err),
		     VMIMG_V_INVALID_PARAMETER);
}

/* --- export: RP-28, XP-9 --- */

static json_t *exported(const char *dir)
{
	char path[400];
	json_t *document;

	snprintf(path, sizeof(path), "%s/refpoint.json", dir);
	document = json_load_file(path, JSON_REJECT_DUPLICATES, NULL);
	cr_assert_not_null(document, "%s", path);
	return document;
}

/* XP-6: what the job came to. */
static void expect_report(struct vmimg_job *job, const char *base, const char *dir)
{
	struct vmimg_job_info told;
	char *report = NULL;
	json_t *document;

	vmimg_job_info(job, &told);
	expect_ok(vmimg_job_report(svc, told.instance_id, &err, &report));
	document = json_loads(report, 0, NULL);
	vmimg_free(report);
	cr_expect_str_eq(text(document, "refpoint"), "prod#p2");
	cr_expect_str_eq(text(document, "base"), base);
	cr_expect_str_eq(text(document, "target"), dir);
	json_decref(document);
}

Test(api_refpoint, an_export_is_a_job_of_type_206)
{
	struct vmimg_job_info told;
	struct vmimg_job *job = NULL;
	const json_t *disk, *range;
	json_t *document;
	char dir[300];

	expect_ok(point("prod", "{\"Synchronous\": true}", 2, "p1", NULL));
	fill("web/d1", 64 << 10, 8192, 7);
	expect_ok(point("prod", "{\"Synchronous\": true}", 2, "p2", NULL));
	snprintf(dir, sizeof(dir), "%s/exported", scratch);
	cr_assert_eq(vmimg_export_reference_point(svc, "prod#p2", dir,
						  "{\"BaseReferencePointCollection\": \"prod#p1\"}",
						  &job, &err),
		     VMIMG_JOB_STARTED);
	cr_assert_eq(vmimg_job_wait(job, 20 * SECOND), 0);
	vmimg_job_info(job, &told);
	cr_expect_eq(told.job_state, VMIMG_JOB_COMPLETED, "%s", told.error_description);
	cr_expect_eq(told.job_type, 206);
	cr_expect_eq(told.percent_complete, 100);
	cr_expect_str_eq(told.name, "prod#p2");
	expect_report(job, "prod#p1", dir);
	vmimg_job_put(job);
	document = exported(dir);
	cr_expect_str_eq(text(json_object_get(document, "refpoint"), "refpoint"), "prod#p2");
	cr_expect_eq(json_array_size(
			     json_object_get(json_object_get(document, "refpoint"), "members")),
		     3);
	disk = json_array_get(json_object_get(json_object_get(document, "changes"), "disks"), 2);
	cr_expect_str_eq(text(disk, "disk"), "web/d1");
	range = json_array_get(json_object_get(disk, "changed"), 0);
	cr_expect_eq(json_array_size(json_object_get(disk, "changed")), 1);
	cr_expect_eq(number(range, "start"), 64 << 10);
	cr_expect_eq(number(range, "length"), 8192);
	json_decref(document);
	snprintf(dir, sizeof(dir), "%s/alone", scratch);
	expect_ok(vmimg_export_reference_point(svc, "prod#p2", dir, "{\"Synchronous\": true}", NULL,
					       &err));
	document = exported(dir);
	cr_expect(json_is_null(json_object_get(document, "changes")));
	json_decref(document);
}

/* XP-4: at once what the arguments say, by the job what is found later; neither leaves anything. */
Test(api_refpoint, exports_that_are_refused_leave_nothing)
{
	static const char *const bases[] = {"prod#none", "other#p1", "prod@p1", "p1"};
	struct vmimg_job_info told;
	struct vmimg_job *job = NULL;
	char dir[300], settings[200];

	make_vm("lone", 1);
	make_collection("other", "lone", NULL);
	expect_ok(point("prod", "{\"Synchronous\": true}", 2, "p1", NULL));
	expect_ok(point("other", "{\"Synchronous\": true}", 2, "p1", NULL));
	snprintf(dir, sizeof(dir), "%s/exported", scratch);
	for (size_t i = 0; i < sizeof(bases) / sizeof(bases[0]); i++) {
		snprintf(settings, sizeof(settings), "{\"BaseReferencePointCollection\": \"%s\"}",
			 bases[i]);
		expect_error(vmimg_export_reference_point(svc, "prod#p1", dir, settings, &job,
							  &err),
			     VMIMG_INVALID_PARAMETER);
	}
	expect_error(vmimg_export_reference_point(svc, "prod#none", dir, NULL, &job, &err),
		     VMIMG_INVALID_PARAMETER);
	expect_error(vmimg_export_reference_point(svc, "prod#p1", "exported", NULL, &job, &err),
		     VMIMG_INVALID_PARAMETER);
	expect_error(vmimg_export_reference_point(svc, "prod#p1", scratch, NULL, &job, &err),
		     VMIMG_INVALID_PARAMETER);
	expect_error(vmimg_export_reference_point(svc, "prod#p1", dir, "{\"Bogus\": 1}", &job,
						  &err),
		     VMIMG_INVALID_PARAMETER);
	cr_expect_null(job);
	cr_expect_neq(access(dir, F_OK), 0);
	snprintf(dir, sizeof(dir), "%s/none/exported", scratch);
	cr_assert_eq(vmimg_export_reference_point(svc, "prod#p1", dir, NULL, &job, &err),
		     VMIMG_JOB_STARTED);
	vmimg_job_wait(job, 20 * SECOND);
	vmimg_job_info(job, &told);
	vmimg_job_put(job);
	cr_expect_eq(told.job_state, VMIMG_JOB_EXCEPTION);
	cr_expect_not_null(strstr(told.error_description, dir), "%s", told.error_description);
}
