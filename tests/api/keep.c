/* SPDX-License-Identifier: MIT */
/* keep.c - holds and retention through the library: HD-*, RT-*. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/api/fixture.h"

static void begin(void)
{
	fixture_init();
	make_vm("web", 1);
	make_collection("prod", "web", NULL);
}

TestSuite(api_keep, .init = begin, .fini = fixture_fini, .timeout = 60);

static uint32_t prune(const struct vmimg_prune *how, json_t **ret)
{
	struct vmimg_prune sized = *how;
	char *json = NULL;
	uint32_t code;

	sized.size_of = sizeof(sized);
	code = vmimg_prune_snapshots(svc, "prod", &sized, &err, &json);
	if (code == VMIMG_OK)
		*ret = json_loads(json, JSON_REJECT_DUPLICATES, NULL);
	vmimg_free(json);
	return code;
}

static void make_snapshots(unsigned n)
{
	char name[16];

	for (unsigned i = 0; i < n; i++) {
		snprintf(name, sizeof(name), "s%u", i);
		fill("web/d0", i * 4096u, 4096, (uint8_t)(i + 1));
		expect_ok(create("prod", name));
	}
}

/* The row of a snapshot in the answer. */
static const json_t *row_of(const json_t *answer, const char *snapshot)
{
	const json_t *row;
	size_t i;

	json_array_foreach (json_object_get(answer, "snapshots"), i, row)
		if (!strcmp(text(row, "snapshot"), snapshot))
			return row;
	cr_assert_fail("%s is not in the answer", snapshot);
	return NULL;
}

static void expect_reason(const json_t *answer, const char *snapshot, const char *reason)
{
	const json_t *reasons = json_object_get(row_of(answer, snapshot), "reasons");
	const json_t *is;
	bool found = false;
	size_t i;

	json_array_foreach (reasons, i, is)
		found = found || !strcmp(json_string_value(is), reason);
	cr_expect(found, "%s: no reason '%s'", snapshot, reason);
}

/* HD-1, HD-2 */
Test(api_keep, a_held_snapshot_is_not_deleted)
{
	json_t *snapshot;

	make_snapshots(1);
	expect_ok(vmimg_hold_snapshot(svc, "prod@s0", "audit", &err));
	expect_ok(vmimg_hold_snapshot(svc, "prod@s0", "backup", &err));
	cr_expect_eq(vmimg_destroy_snapshot(svc, "prod@s0", NULL, &err), VMIMG_INVALID_STATE);
	cr_expect(strstr(err.message, "audit, backup"), "%s", err.message);
	fixture_reopen();
	expect_error(vmimg_destroy_snapshot(svc, "prod@s0", NULL, &err), VMIMG_INVALID_STATE);
	snapshot = describe(VMIMG_KIND_SNAPSHOT, "prod@s0");
	cr_expect_eq(json_array_size(json_object_get(snapshot, "holds")), 2);
	json_decref(snapshot);
	expect_ok(vmimg_release_snapshot(svc, "prod@s0", "audit", &err));
	expect_error(vmimg_destroy_snapshot(svc, "prod@s0", NULL, &err), VMIMG_INVALID_STATE);
	expect_ok(vmimg_release_snapshot(svc, "prod@s0", "backup", &err));
	expect_ok(vmimg_destroy_snapshot(svc, "prod@s0", NULL, &err));
	cr_expect_eq(count_of(VMIMG_KIND_SNAPSHOT), 0);
}

/* HD-4 */
Test(api_keep, bad_holds_change_nothing)
{
	make_snapshots(1);
	expect_error(vmimg_hold_snapshot(NULL, "prod@s0", "a", &err), VMIMG_INVALID_PARAMETER);
	expect_error(vmimg_hold_snapshot(svc, "prod", "a", &err), VMIMG_INVALID_PARAMETER);
	expect_error(vmimg_hold_snapshot(svc, NULL, "a", &err), VMIMG_INVALID_PARAMETER);
	expect_error(vmimg_hold_snapshot(svc, "prod@gone", "a", &err), VMIMG_INVALID_PARAMETER);
	expect_error(vmimg_hold_snapshot(svc, "prod@s0", "", &err), VMIMG_INVALID_PARAMETER);
	expect_error(vmimg_hold_snapshot(svc, "prod@s0", NULL, &err), VMIMG_INVALID_PARAMETER);
	expect_error(vmimg_hold_snapshot(svc, "prod@s0", "a b", &err), VMIMG_INVALID_PARAMETER);
	expect_error(vmimg_release_snapshot(svc, "prod@s0", "a", &err), VMIMG_INVALID_PARAMETER);
	expect_ok(vmimg_hold_snapshot(svc, "prod@s0", "a", &err));
	expect_error(vmimg_hold_snapshot(svc, "prod@s0", "a", &err), VMIMG_INVALID_PARAMETER);
	expect_error(vmimg_release_snapshot(svc, "prod@s0", "b", &err), VMIMG_INVALID_PARAMETER);
	expect_ok(vmimg_release_snapshot(svc, "prod@s0", "a", &err));
	expect_ok(vmimg_hold_snapshot(svc, "prod@s0", "a", &err));
	expect_ok(vmimg_release_snapshot(svc, "prod@s0", "a", &err));
}

/* RT-6: the plan is told, nothing is done. */
Test(api_keep, a_dry_run_deletes_nothing)
{
	json_t *answer = NULL;

	make_snapshots(4);
	expect_ok(vmimg_hold_snapshot(svc, "prod@s0", "audit", &err));
	expect_ok(prune(&(struct vmimg_prune){.keep_last = 2, .keep_monthly = 1, .dry_run = true},
			&answer));
	cr_expect_eq(number(answer, "kept"), 3);
	cr_expect_eq(number(answer, "deleted"), 0);
	cr_expect_str_eq(text(json_array_get(json_object_get(answer, "snapshots"), 0), "snapshot"),
			 "prod@s3", "newest first");
	expect_reason(answer, "prod@s3", "last #1");
	expect_reason(answer, "prod@s3", "monthly #1");
	expect_reason(answer, "prod@s2", "last #2");
	expect_reason(answer, "prod@s0", "held: audit");
	cr_expect(json_is_false(json_object_get(row_of(answer, "prod@s1"), "keep")));
	cr_expect_eq(json_array_size(json_object_get(row_of(answer, "prod@s1"), "reasons")), 0);
	json_decref(answer);
	cr_expect_eq(count_of(VMIMG_KIND_SNAPSHOT), 4);
}

/* RT-5, RT-7: what is held or read stays; the rest goes, and what stays reads as before. */
Test(api_keep, pruning_deletes_what_no_rule_keeps)
{
	struct vmimg_queue *queue;
	struct vmimg_disk *disk;
	json_t *answer = NULL;

	make_snapshots(6);
	expect_ok(vmimg_hold_snapshot(svc, "prod@s1", "audit", &err));
	queue = new_queue();
	disk = attach(queue, "prod@s2/web/d0", VMIMG_ATTACH_READ_ONLY);
	expect_ok(prune(&(struct vmimg_prune){.keep_last = 1}, &answer));
	cr_expect_eq(number(answer, "deleted"), 3);
	cr_expect_eq(number(answer, "kept"), 3);
	expect_reason(answer, "prod@s2", "in use");
	cr_expect(json_is_true(json_object_get(row_of(answer, "prod@s4"), "deleted")));
	json_decref(answer);
	cr_expect_eq(vmimg_disk_detach(disk), 0);
	cr_expect_eq(vmimg_queue_destroy(queue), 0);
	cr_expect_eq(count_of(VMIMG_KIND_SNAPSHOT), 3);
	for (unsigned i = 0; i < 6; i++)
		expect_filled("prod@s5/web/d0", i * 4096u, 4096, (uint8_t)(i + 1));
	expect_filled("prod@s2/web/d0", 2 * 4096u, 4096, 3);
	expect_filled("prod@s2/web/d0", 3 * 4096u, 4096, 0);
	answer = NULL;
	expect_ok(prune(&(struct vmimg_prune){.keep_last = 1}, &answer));
	cr_expect_eq(number(answer, "deleted"), 1, "it is not in use any more");
	json_decref(answer);
}

/* RT-1: what a revert kept goes only when asked for. */
Test(api_keep, automatic_snapshots_stay_unless_told_to_go)
{
	json_t *answer = NULL;

	make_snapshots(2);
	expect_ok(
		vmimg_apply_snapshot(svc, "prod@s0", "{\"KeptName\": \"kept\"}", NULL, NULL, &err));
	expect_ok(prune(&(struct vmimg_prune){.keep_last = 1}, &answer));
	cr_expect_eq(number(answer, "deleted"), 1);
	expect_reason(answer, "prod@kept", "automatic");
	expect_reason(answer, "prod@s1", "last #1");
	json_decref(answer);
	expect_ok(prune(&(struct vmimg_prune){.keep_last = 1, .automatic = true}, &answer));
	cr_expect_eq(number(answer, "deleted"), 1);
	expect_reason(answer, "prod@kept", "last #1");
	json_decref(answer);
	cr_expect_eq(count_of(VMIMG_KIND_SNAPSHOT), 1);
}

/* RT-4 */
Test(api_keep, rules_are_checked)
{
	struct vmimg_prune sized = {.size_of = sizeof(sized), .keep_last = 1};
	json_t *answer = NULL;
	char *json = NULL;

	make_snapshots(1);
	expect_error(prune(&(struct vmimg_prune){.dry_run = true}, &answer),
		     VMIMG_INVALID_PARAMETER);
	expect_error(prune(&(struct vmimg_prune){.keep_daily = 1000001}, &answer),
		     VMIMG_INVALID_PARAMETER);
	expect_error(vmimg_prune_snapshots(svc, "gone", &sized, &err, &json),
		     VMIMG_INVALID_PARAMETER);
	expect_error(vmimg_prune_snapshots(svc, "a b", &sized, &err, &json),
		     VMIMG_INVALID_PARAMETER);
	expect_error(vmimg_prune_snapshots(svc, "prod", &(struct vmimg_prune){.keep_last = 1}, &err,
					   &json),
		     VMIMG_INVALID_PARAMETER);
	expect_error(vmimg_prune_snapshots(svc, "prod", NULL, &err, &json),
		     VMIMG_INVALID_PARAMETER);
	expect_error(vmimg_prune_snapshots(NULL, "prod", &sized, &err, &json),
		     VMIMG_INVALID_PARAMETER);
	cr_expect_null(json);
	cr_expect_eq(count_of(VMIMG_KIND_SNAPSHOT), 1);
}
