/* SPDX-License-Identifier: MIT */
/* create.c - CreateSnapshot: each return value, each check, and that a refusal changes nothing. */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tests/api/fixture.h"

TestSuite(api_create, .init = fixture_init, .fini = fixture_fini, .timeout = 120);

/* A call with nothing wanted back but the answer; nothing must have come of it. */
static uint32_t refused(const char *collection, const char *settings, uint16_t type,
			const char *name)
{
	struct vmimg_ref result = {.name = "", .id = "untouched"};
	struct vmimg_job *job = (struct vmimg_job *)&result;
	size_t jobs = count_of(VMIMG_KIND_JOB), snapshots = count_of(VMIMG_KIND_SNAPSHOT);
	struct vmimg_error first;
	uint32_t code, check;

	snprintf(result.name, sizeof(result.name), "%s", name ? name : "");
	code = vmimg_create_snapshot(svc, collection, settings, type, &result, &job, &err);
	first = err;
	cr_expect_null(job, "CSN-6");
	cr_expect_str_eq(result.name, name ? name : "", "CSN-4");
	cr_expect_str_eq(result.id, "untouched", "CSN-4");
	cr_expect_eq(count_of(VMIMG_KIND_JOB), jobs, "RC-4");
	cr_expect_eq(count_of(VMIMG_KIND_SNAPSHOT), snapshots, "RC-4");
	check = vmimg_check_snapshot(svc, collection, settings, type, name, &err);
	cr_expect_eq(check, code, "CSN-13: the check says %u, the call %u", check, code);
	cr_expect_neq(err.message[0], 0);
	err = first;
	return code;
}

static uint32_t refused_settings(const char *settings)
{
	return refused("prod", settings, VMIMG_SNAPSHOT_STANDARD, NULL);
}

static uint32_t refused_name(const char *name)
{
	return refused("prod", NULL, VMIMG_SNAPSHOT_STANDARD, name);
}

/* --- 0, 4096 --- */

/* RC-1 0, CSN-4, JB-6 */
Test(api_create, synchronous_returns_0_and_the_snapshot)
{
	struct vmimg_ref result = {.name = "s1"};
	struct vmimg_job *job = NULL;
	struct vmimg_job_info info;
	json_t *snap;

	make_vm("web", 2);
	make_vm("db", 1);
	make_collection("prod", "web", "db", NULL);
	expect_ok(vmimg_create_snapshot(svc, "prod", "{\"Synchronous\": true}",
					VMIMG_SNAPSHOT_RECOVERY, &result, &job, &err));
	cr_expect_str_eq(result.name, "prod@s1");
	vmimg_job_info(job, &info);
	cr_expect_eq(info.job_state, VMIMG_JOB_COMPLETED);
	cr_expect_str_eq(info.affected.name, "prod@s1");
	cr_expect_str_eq(info.affected.id, result.id);
	cr_expect_eq(info.element_effect, VMIMG_EFFECT_CREATE);
	vmimg_job_put(job);
	snap = describe(VMIMG_KIND_SNAPSHOT, "prod@s1");
	cr_expect_str_eq(text(snap, "snapshot_id"), result.id);
	cr_expect_eq(number(snap, "type"), VMIMG_SNAPSHOT_RECOVERY);
	cr_expect_eq(number(snap, "disks"), 3);
	cr_expect_eq(json_array_size(json_object_get(snap, "members")), 3);
	json_decref(snap);
}

/* RC-1 4096, CSN-4, CSN-6 */
Test(api_create, asynchronous_returns_4096_with_a_running_job)
{
	struct vmimg_ref result = {.name = "s1", .id = "untouched"};
	struct vmimg_job *job = NULL;
	struct vmimg_job_info info;
	struct stuck guest;

	make_vm("web", 1);
	make_collection("prod", "web", NULL);
	stuck_begin(&guest, "web/d0");
	cr_assert_eq(vmimg_create_snapshot(svc, "prod", NULL, VMIMG_SNAPSHOT_STANDARD, &result,
					   &job, &err),
		     VMIMG_JOB_STARTED, "%s", err.message);
	vmimg_job_info(job, &info);
	cr_expect_eq(info.job_state, VMIMG_JOB_RUNNING);
	cr_expect_str_eq(result.name, "s1");
	cr_expect_str_eq(result.id, "untouched");
	stuck_end(&guest);
	expect_state(job, VMIMG_JOB_COMPLETED);
	vmimg_job_put(job);
	cr_expect_eq(count_of(VMIMG_KIND_SNAPSHOT), 1);
}

/* CSN-6 */
Test(api_create, a_dropped_job_goes_on)
{
	make_vm("web", 1);
	make_collection("prod", "web", NULL);
	cr_assert_eq(vmimg_create_snapshot(svc, "prod", NULL, VMIMG_SNAPSHOT_STANDARD, NULL, NULL,
					   &err),
		     VMIMG_JOB_STARTED, "%s", err.message);
	fixture_reopen(); /* close waits for it */
	cr_expect_eq(count_of(VMIMG_KIND_SNAPSHOT), 1);
}

/* P1, CSN-9: attached or not */
Test(api_create, the_snapshot_keeps_what_was_there)
{
	make_vm("web", 2);
	make_collection("prod", "web", NULL);
	fill("web/d0", 0, MIB, 0x11);
	fill("web/d1", 4096, 4096, 0x22);
	expect_ok(create("prod", "s1"));
	fill("web/d0", 8192, 512, 0x33);
	fill("web/d1", 4096, 4096, 0x44);
	expect_ok(create("prod", "s2"));
	fill("web/d0", 0, MIB, 0x55);
	expect_filled("prod@s1/web/d0", 0, MIB, 0x11);
	expect_filled("prod@s1/web/d1", 4096, 4096, 0x22);
	expect_filled("prod@s2/web/d0", 8192, 512, 0x33);
	expect_filled("prod@s2/web/d0", 8704, 4096, 0x11);
	expect_filled("prod@s2/web/d1", 4096, 4096, 0x44);
	expect_filled("web/d0", 0, MIB, 0x55);
	fixture_reopen();
	expect_filled("prod@s1/web/d0", 0, MIB, 0x11);
	expect_filled("prod@s2/web/d1", 4096, 4096, 0x44);
	expect_filled("prod@s1/web/d1", 8192, 4096, 0);
}

/* --- 1 --- */

/* RC-1 1; T24 */
Test(api_create, application_consistency_is_1)
{
	make_vm("web", 1);
	make_collection("prod", "web", NULL);
	expect_error(refused_settings("{\"ConsistencyLevel\": 1}"), VMIMG_NOT_SUPPORTED);
}

/* RC-1 1 */
Test(api_create, vendor_types_are_1)
{
	make_vm("web", 1);
	make_collection("prod", "web", NULL);
	expect_error(refused("prod", NULL, 32768, NULL), VMIMG_NOT_SUPPORTED);
	expect_error(refused("prod", NULL, 65535, NULL), VMIMG_NOT_SUPPORTED);
}

/* --- 2, 3 --- */

static void *create_in_thread(void *arg)
{
	*(uint32_t *)arg = create("prod", "s1");
	return NULL;
}

/* RC-1 2, CSN-11: the job was cancelled */
Test(api_create, synchronous_returns_2_when_the_job_fails)
{
	struct vmimg_job *job = NULL;
	struct stuck guest;
	pthread_t thread;
	uint32_t code = 0;
	json_t *jobs;

	make_vm("web", 1);
	make_collection("prod", "web", NULL);
	stuck_begin(&guest, "web/d0");
	cr_assert_eq(pthread_create(&thread, NULL, create_in_thread, &code), 0);
	while (count_of(VMIMG_KIND_JOB) == 0)
		nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
	jobs = list(VMIMG_KIND_JOB, NULL);
	expect_ok(vmimg_job_get(svc, text(json_array_get(jobs, 0), "instance_id"), &err, &job));
	json_decref(jobs);
	cr_expect_eq(vmimg_job_request_state_change(job, VMIMG_REQUEST_TERMINATE, 0, NULL),
		     VMIMG_REQUEST_TRANSITION_STARTED);
	pthread_join(thread, NULL);
	expect_error(code, VMIMG_FAILED);
	vmimg_job_put(job);
	stuck_end(&guest);
	cr_expect_eq(count_of(VMIMG_KIND_SNAPSHOT), 0);
}

/* RC-1 3, CSN-12, T8: the caller waits for its own queue */
Test(api_create, synchronous_returns_3_when_a_queue_does_not_answer)
{
	struct vmimg_ref result = {.name = "s1"};
	struct vmimg_job *job = NULL;
	struct vmimg_job_info info;
	struct stuck guest;

	make_vm("web", 2);
	make_collection("prod", "web", NULL);
	stuck_begin(&guest, "web/d0");
	expect_error(vmimg_create_snapshot(svc, "prod", "{\"Synchronous\": true, \"Timeout\": 100}",
					   VMIMG_SNAPSHOT_STANDARD, &result, &job, &err),
		     VMIMG_TIMEOUT);
	cr_assert_not_null(job, "CSN-6");
	cr_expect_str_eq(result.name, "s1");
	vmimg_job_info(job, &info);
	cr_expect_eq(info.job_state, VMIMG_JOB_EXCEPTION);
	cr_expect_eq(info.error_code, VMIMG_V_TIMEOUT);
	vmimg_job_put(job);
	stuck_end(&guest);
	cr_expect_eq(count_of(VMIMG_KIND_SNAPSHOT), 0);
	expect_ok(create("prod", "s1"));
}

/* --- 4 --- */

/* CSN-2 1 */
Test(api_create, bad_references_are_4)
{
	struct vmimg_job *job;

	make_collection("prod", NULL);
	expect_error(vmimg_create_snapshot(NULL, "prod", NULL, 1, NULL, &job, &err),
		     VMIMG_INVALID_PARAMETER);
	expect_error(vmimg_check_snapshot(NULL, "prod", NULL, 1, NULL, &err),
		     VMIMG_INVALID_PARAMETER);
	expect_error(refused(NULL, NULL, 1, NULL), VMIMG_INVALID_PARAMETER);
	expect_error(refused("", NULL, 1, NULL), VMIMG_INVALID_PARAMETER);
	expect_error(refused("no/name", NULL, 1, NULL), VMIMG_INVALID_PARAMETER);
	expect_error(refused("prod@s1", NULL, 1, NULL), VMIMG_INVALID_PARAMETER);
	expect_error(refused("other", NULL, 1, NULL), VMIMG_INVALID_PARAMETER);
	expect_error(refused("Prod", NULL, 1, NULL), VMIMG_INVALID_PARAMETER);
}

/* CSN-2 2, CSN-8 */
Test(api_create, bad_settings_are_4_and_named)
{
	make_vm("web", 1);
	make_collection("prod", "web", NULL);
	vmimg_check_snapshot(svc, "prod", "{\"Quiesce\": true}", 1, NULL, &err);
	cr_expect_not_null(strstr(err.message, "Quiesce"), "%s", err.message);
	expect_error(refused_settings("{\"Quiesce\": true}"), VMIMG_INVALID_PARAMETER);
	expect_error(refused_settings("{"), VMIMG_INVALID_PARAMETER);
	expect_error(refused_settings("[]"), VMIMG_INVALID_PARAMETER);
	expect_error(refused_settings("{\"Timeout\": 0}"), VMIMG_INVALID_PARAMETER);
	expect_error(refused_settings("{\"ConsistencyLevel\": 3}"), VMIMG_INVALID_PARAMETER);
	expect_error(refused_settings("{\"ConsistencyLevel\": null}"), VMIMG_INVALID_PARAMETER);
}

/* CSN-2 6, CSN-4, RC-6 */
Test(api_create, bad_and_taken_names_are_4)
{
	static const char *const bad[] = {
		"-s",
		".s",
		"s 1",
		"s/1",
		"prod@",
		"@s1",
		"other@s1",
		"prod@s@1",
		"prod@s 1",
		"s\n",
		"s23456789012345678901234567890123456789012345678901234567890123456",
	};

	make_vm("web", 1);
	make_collection("prod", "web", NULL);
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		expect_error(refused_name(bad[i]), VMIMG_INVALID_PARAMETER);
	expect_ok(create("prod", "prod@s1"));
	expect_error(refused_name("s1"), VMIMG_INVALID_PARAMETER);
	expect_error(refused_name("prod@s1"), VMIMG_INVALID_PARAMETER);
	expect_ok(
		create("prod", "s2345678901234567890123456789012345678901234567890123456789.-_4"));
}

/* --- 5 --- */

/* CSN-2 9 */
Test(api_create, a_collection_without_disks_is_5)
{
	make_collection("none", NULL);
	make_vm("bare", 0);
	make_collection("prod", "bare", NULL);
	expect_error(refused("none", NULL, 1, NULL), VMIMG_INVALID_STATE);
	expect_error(refused("prod", NULL, 1, NULL), VMIMG_INVALID_STATE);
}

/* CSN-2 10 */
Test(api_create, an_independent_disk_is_5)
{
	make_vm("web", 1);
	make_disk("web/swap", MIB, true);
	make_vm("tmp", 0);
	make_disk("tmp/swap", MIB, true);
	make_collection("prod", "web", NULL);
	make_collection("swaps", "tmp", NULL);
	expect_error(refused("prod", NULL, 1, NULL), VMIMG_INVALID_STATE);
	expect_error(refused("prod", "{\"IgnoreNonSnapshottableDisks\": false}", 1, NULL),
		     VMIMG_INVALID_STATE);
	/* none left when they are skipped */
	expect_error(refused("swaps", "{\"IgnoreNonSnapshottableDisks\": true}", 1, NULL),
		     VMIMG_INVALID_STATE);
}

/* CSN-2 10, DS-8 */
Test(api_create, an_independent_disk_can_be_skipped_and_is_listed)
{
	struct vmimg_ref result = {.name = "s1"};
	json_t *snap, *members;
	int skipped = 0;

	make_vm("web", 2);
	make_disk("web/swap", MIB, true);
	make_collection("prod", "web", NULL);
	expect_ok(vmimg_create_snapshot(
		svc, "prod", "{\"IgnoreNonSnapshottableDisks\": true, \"Synchronous\": true}", 1,
		&result, NULL, &err));
	snap = describe(VMIMG_KIND_SNAPSHOT, "prod@s1");
	cr_expect_eq(number(snap, "disks"), 2);
	cr_expect_eq(number(snap, "skipped"), 1);
	members = json_object_get(snap, "members");
	cr_assert_eq(json_array_size(members), 3);
	for (size_t i = 0; i < 3; i++) {
		json_t *member = json_array_get(members, i);

		if (!json_is_true(json_object_get(member, "skipped")))
			continue;
		skipped++;
		cr_expect_str_eq(text(member, "disk"), "web/swap");
		cr_expect(json_is_null(json_object_get(member, "layer")));
	}
	cr_expect_eq(skipped, 1);
	json_decref(snap);
}

/* CSN-2 8, T7 */
Test(api_create, a_second_create_on_a_member_is_5)
{
	struct vmimg_job *job;
	struct stuck guest;

	make_vm("web", 1);
	make_vm("db", 1);
	make_vm("mail", 1);
	make_collection("prod", "web", "db", NULL);
	make_collection("also", "web", "mail", NULL);
	make_collection("apart", "mail", NULL);
	stuck_begin(&guest, "web/d0");
	job = start_job("prod", "s1");
	expect_error(refused("prod", NULL, 1, "s1"), VMIMG_INVALID_STATE);
	expect_error(refused("prod", NULL, 1, "s2"), VMIMG_INVALID_STATE);
	expect_error(refused("also", NULL, 1, "s1"), VMIMG_INVALID_STATE);
	expect_ok(create("apart", "s1")); /* nothing shared */
	stuck_end(&guest);
	expect_state(job, VMIMG_JOB_COMPLETED);
	vmimg_job_put(job);
	expect_ok(create("also", "s1"));
	expect_ok(create("prod", "s2"));
}

/* Overwrites both header slots of a disk's head. */
static void damage_head(const char *name)
{
	static const uint8_t junk[8192] = {0xff, 0xfe, 0xfd};
	json_t *disk = describe(VMIMG_KIND_DISK, name);
	json_t *head = json_object_get(disk, "head");
	bool raw = strcmp(text(head, "kind"), "raw") == 0;
	char path[500];
	FILE *file;

	snprintf(path, sizeof(path), "%s/layers/%s.%s", store_dir, text(head, "id"),
		 raw ? "vmr" : "vmo");
	json_decref(disk);
	fixture_close();
	file = fopen(path, "r+");
	cr_assert_not_null(file, "%s", path);
	cr_assert_eq(fwrite(junk, sizeof(junk), 1, file), 1);
	cr_assert_eq(fclose(file), 0);
	expect_ok(vmimg_open(store_dir, NULL, &err, &svc));
}

/* CSN-2 11 */
Test(api_create, an_unusable_disk_is_5)
{
	struct vmimg_queue *queue = NULL;
	struct vmimg_disk *disk = NULL;

	make_vm("web", 2);
	make_vm("db", 1);
	make_collection("prod", "web", NULL);
	make_collection("other", "db", NULL);
	expect_ok(create("prod", "s1"));
	damage_head("web/d1");
	expect_error(refused("prod", NULL, 1, "s2"), VMIMG_INVALID_STATE);
	queue = new_queue();
	expect_error(vmimg_disk_attach(queue, "web/d1", 0, &err, &disk), -EBADMSG);
	cr_expect_null(disk);
	cr_expect_eq(vmimg_queue_destroy(queue), 0);
	expect_filled("prod@s1/web/d1", 0, 4096, 0);
	expect_ok(create("other", "s1"));
	fill("web/d0", 0, 4096, 0x12);
}

/* --- 6 --- */

/* RC-1 6 */
Test(api_create, other_types_are_6)
{
	make_vm("web", 1);
	make_collection("prod", "web", NULL);
	expect_error(refused("prod", NULL, 0, NULL), VMIMG_INVALID_TYPE);
	expect_error(refused("prod", NULL, 3, NULL), VMIMG_INVALID_TYPE);
	expect_error(refused("prod", NULL, 32767, NULL), VMIMG_INVALID_TYPE);
}

/* --- the order, names, the check --- */

/* CSN-2 */
Test(api_create, the_first_failed_check_answers)
{
	make_collection("none", NULL);
	expect_error(refused("gone", "{", 0, "-"), VMIMG_INVALID_PARAMETER);
	expect_error(refused("none", "{\"ConsistencyLevel\": 1, \"x\": 1}", 0, "-"),
		     VMIMG_INVALID_PARAMETER);
	expect_error(refused("none", "{\"ConsistencyLevel\": 1}", 0, "-"), VMIMG_INVALID_TYPE);
	expect_error(refused("none", NULL, 0, "-"), VMIMG_INVALID_TYPE);
	expect_error(refused("none", NULL, 40000, "-"), VMIMG_NOT_SUPPORTED);
	expect_error(refused("none", NULL, 1, "-"), VMIMG_INVALID_PARAMETER);
	expect_error(refused("none", NULL, 1, "s1"), VMIMG_INVALID_STATE);
	expect_error(refused("none", "{\"ConsistencyLevel\": 1}", 1, "s1"), VMIMG_INVALID_STATE);
}

/* CSN-5 */
Test(api_create, names_are_made_and_differ)
{
	struct vmimg_ref result = {0};
	unsigned date, time;
	json_t *snaps;

	make_vm("web", 1);
	make_collection("prod", "web", NULL);
	for (int i = 0; i < 4; i++) {
		memset(&result, 0, sizeof(result));
		expect_ok(vmimg_create_snapshot(svc, "prod", "{\"Synchronous\": true}", 1, &result,
						NULL, &err));
		cr_expect_eq(sscanf(result.name, "prod@s-%8u-%6u", &date, &time), 2, "%s",
			     result.name);
	}
	snaps = list(VMIMG_KIND_SNAPSHOT, "prod");
	cr_expect_eq(json_array_size(snaps), 4);
	json_decref(snaps);
}

/* CSN-7 */
Test(api_create, settings_are_kept_with_the_snapshot)
{
	struct vmimg_ref result = {.name = "s1"};
	json_t *snap;

	make_vm("web", 1);
	make_collection("prod", "web", NULL);
	expect_ok(vmimg_create_snapshot(
		svc, "prod",
		"{\"ConsistencyLevel\": 0, \"GuestBackupType\": 2, \"ElementName\": "
		"\"before \\u00fcpgrade\", \"Synchronous\": true, \"MaxStall\": 5, "
		"\"Timeout\": 60000}",
		1, &result, NULL, &err));
	expect_ok(create("prod", "s2"));
	snap = describe(VMIMG_KIND_SNAPSHOT, "prod@s1");
	cr_expect_str_eq(text(snap, "element_name"), "before \xc3\xbcpgrade");
	cr_expect_eq(number(snap, "guest_backup_type"), 2);
	cr_expect_eq(number(snap, "consistency"), VMIMG_CONSISTENCY_CRASH);
	json_decref(snap);
	snap = describe(VMIMG_KIND_SNAPSHOT, "prod@s2");
	cr_expect_str_eq(text(snap, "element_name"), "s2");
	json_decref(snap);
}

/* CSN-13 */
Test(api_create, the_check_creates_nothing)
{
	make_vm("web", 1);
	make_collection("prod", "web", NULL);
	for (int i = 0; i < 3; i++)
		expect_ok(vmimg_check_snapshot(svc, "prod", NULL, 1, "s1", &err));
	cr_expect_eq(count_of(VMIMG_KIND_JOB), 0);
	cr_expect_eq(count_of(VMIMG_KIND_SNAPSHOT), 0);
	expect_ok(create("prod", "s1"));
}
