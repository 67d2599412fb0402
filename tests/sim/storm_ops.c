/* SPDX-License-Identifier: MIT */
/* storm_ops.c - what the threads of a storm do, but for copies (storm_copy.c). */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/sim/storm.h"

void storm_some_name(struct storm_thread *t, char sep, char ret[40])
{
	snprintf(ret, 40, "c%cn%u", sep, (unsigned)storm_pick(t, STORM_NAMES));
}

bool storm_ok(struct storm_thread *t, int64_t code)
{
	static const char *const damage[] = {
		"cannot read", "damaged", "broken", "checksum", "Structure needs cleaning",
		"Bad message"};

	t->calls++;
	t->done += code == 0;
	if (code == 0)
		return true;
	if (!t->err.message[0])
		storm_fail(t, "%lld, without a message", (long long)code);
	for (size_t i = 0; i < sizeof(damage) / sizeof(damage[0]); i++)
		if (strstr(t->err.message, damage[i]))
			storm_fail(t, "%lld: %s", (long long)code, t->err.message);
	if (getenv("STORM_ERRORS"))
		fprintf(stderr, "%.20s: %lld %s\n", t->doing, (long long)code, t->err.message);
	return false;
}

bool storm_job(struct storm_thread *t, struct vmimg_job *job, json_t **report)
{
	struct vmimg_job_info info;
	char *json = NULL;

	if (!job)
		storm_fail(t, "no job");
	if (vmimg_job_wait(job, 60 * STORM_SECOND) < 0)
		storm_fail(t, "its job does not end");
	vmimg_job_info(job, &info);
	if (info.job_state == VMIMG_JOB_COMPLETED && report &&
	    vmimg_job_report(storm_svc, info.instance_id, NULL, &json) == 0) {
		*report = json_loads(json, 0, NULL);
		vmimg_free(json);
	}
	vmimg_job_put(job);
	if (info.job_state == VMIMG_JOB_TERMINATED)
		return false;
	snprintf(t->err.message, sizeof(t->err.message), "%.400s", info.error_description);
	return storm_ok(t, info.job_state == VMIMG_JOB_COMPLETED ? 0 : info.error_code);
}

/* --- snapshots and points --- */

static void create(struct storm_thread *t)
{
	bool point = storm_pick(t, 6) == 0;
	struct vmimg_job *job = NULL;
	struct vmimg_ref ref = {.name = ""};
	uint32_t code;

	snprintf(ref.name, sizeof(ref.name), "n%u", (unsigned)storm_pick(t, STORM_NAMES));
	snprintf(t->doing, sizeof(t->doing), "create %s%s", point ? "point " : "", ref.name);
	if (point)
		code = vmimg_create_reference_point(storm_svc, "c", NULL, VMIMG_REFPOINT_RCT, &ref,
						    &job, &t->err);
	else
		code = vmimg_create_snapshot(storm_svc, "c", NULL,
					     storm_pick(t, 2) ? VMIMG_SNAPSHOT_RECOVERY
							      : VMIMG_SNAPSHOT_STANDARD,
					     &ref, &job, &t->err);
	if (code != VMIMG_JOB_STARTED) {
		storm_ok(t, code);
		return;
	}
	if (storm_pick(t, 10) == 0)
		vmimg_job_request_state_change(job, VMIMG_REQUEST_TERMINATE, 0, NULL);
	storm_job(t, job, NULL);
}

static void destroy(struct storm_thread *t)
{
	struct vmimg_job *job = NULL;
	char name[40];
	bool point = storm_pick(t, 4) == 0;

	storm_some_name(t, point ? '#' : '@', name);
	snprintf(t->doing, sizeof(t->doing), "destroy %s", name);
	if (storm_ok(t, point ? vmimg_destroy_reference_point(storm_svc, name, &job, &t->err)
			      : vmimg_destroy_snapshot(storm_svc, name, &job, &t->err)))
		storm_job(t, job, NULL);
}

/* The point is what the snapshot was. */
static void convert(struct storm_thread *t)
{
	struct vmimg_job *job = NULL;
	struct vmimg_ref ref = {.name = ""};
	char name[40], id[80];
	json_t *doc;

	storm_some_name(t, '@', name);
	snprintf(t->doing, sizeof(t->doing), "convert %s", name);
	if (!storm_ok(t, vmimg_convert_to_reference_point(storm_svc, name, &ref, &job, &t->err)))
		return;
	storm_job(t, job, NULL);
	doc = storm_document(t, storm_svc, VMIMG_KIND_REFPOINT, ref.name);
	if (doc && !strcmp(json_string_value(json_object_get(doc, "refpoint_id")), ref.id)) {
		snprintf(id, sizeof(id), "%s",
			 json_string_value(json_object_get(doc, "snapshot_id")));
		if (storm_known(id))
			storm_note(t, ref.id, storm_known(id));
	}
	json_decref(doc);
}

static void hold(struct storm_thread *t)
{
	char name[40];
	bool put = storm_pick(t, 2) != 0;

	storm_some_name(t, '@', name);
	snprintf(t->doing, sizeof(t->doing), "%s %s", put ? "hold" : "release", name);
	storm_ok(t, put ? vmimg_hold_snapshot(storm_svc, name, "tag", &t->err)
			: vmimg_release_snapshot(storm_svc, name, "tag", &t->err));
}

static void prune(struct storm_thread *t)
{
	const struct vmimg_prune how = {
		.size_of = sizeof(how),
		.keep_last = 2,
		.automatic = true,
	};
	char *json = NULL;

	snprintf(t->doing, sizeof(t->doing), "prune");
	if (storm_ok(t, vmimg_prune_snapshots(storm_svc, "c", &how, &t->err, &json)))
		vmimg_free(json);
}

static void revert(struct storm_thread *t)
{
	struct vmimg_job *job = NULL;
	char name[40];

	storm_some_name(t, '@', name);
	snprintf(t->doing, sizeof(t->doing), "revert %s", name);
	if (storm_ok(t, vmimg_apply_snapshot(storm_svc, name,
					     storm_pick(t, 3) ? "{\"KeepState\": false}" : NULL,
					     NULL, &job, &t->err)))
		storm_job(t, job, NULL);
}

/* --- looking --- */

static void verify(struct storm_thread *t)
{
	struct vmimg_job *job = NULL;
	json_t *report = NULL;
	char name[40];
	uint32_t code;

	storm_some_name(t, '@', name);
	snprintf(t->doing, sizeof(t->doing), "verify %s", name);
	code = vmimg_verify_snapshot(storm_svc, name, NULL, &job, &t->err);
	if (code != VMIMG_JOB_STARTED) {
		storm_ok(t, code);
		return;
	}
	if (!storm_job(t, job, &report))
		return;
	if (report && json_integer_value(json_object_get(report, "disks")) != STORM_DISKS)
		storm_fail(t, "verified other than all disks: %s",
			   json_dumps(report, JSON_COMPACT));
	json_decref(report);
}

/* Every disk is there all the time, and so are the VMs. */
static void look(struct storm_thread *t)
{
	static const enum vmimg_kind kinds[] = {VMIMG_KIND_DISK, VMIMG_KIND_SNAPSHOT,
						VMIMG_KIND_REFPOINT, VMIMG_KIND_JOB};
	enum vmimg_kind kind = kinds[storm_pick(t, 4)];
	unsigned found = 0;
	char *json = NULL;
	json_t *list, *one;
	size_t i;

	if (storm_pick(t, 2))
		kind |= VMIMG_KIND_BRIEF;
	snprintf(t->doing, sizeof(t->doing), "list %d", (int)kind);
	if (!storm_ok(t, vmimg_list(storm_svc, kind, NULL, &t->err, &json)))
		storm_fail(t, "%s", t->err.message);
	list = json_loads(json, 0, NULL);
	vmimg_free(json);
	json_array_foreach (list, i, one) {
		const char *name = json_string_value(json_object_get(one, "disk"));

		for (unsigned d = 0; name && d < STORM_DISKS; d++)
			found += !strcmp(name, storm_disks[d]);
	}
	json_decref(list);
	if ((kind & ~(unsigned)VMIMG_KIND_BRIEF) == VMIMG_KIND_DISK && found != STORM_DISKS)
		storm_fail(t, "%u disks of %u are listed", found, STORM_DISKS);
	json = NULL;
	snprintf(t->doing, sizeof(t->doing), "tree");
	if (!storm_ok(t, vmimg_describe(storm_svc, VMIMG_KIND_TREE, NULL, &t->err, &json)))
		storm_fail(t, "%s", t->err.message);
	for (unsigned d = 0; d < STORM_DISKS; d++)
		if (!strstr(json, storm_disks[d]))
			storm_fail(t, "%s is not in the tree: %s", storm_disks[d], json);
	vmimg_free(json);
}

static void read_snapshot(struct storm_thread *t)
{
	char name[40];

	storm_some_name(t, '@', name);
	snprintf(t->doing, sizeof(t->doing), "read %s", name);
	t->calls++;
	t->done += storm_read_snapshot(t, storm_svc, name) > 0;
}

/* --- differences --- */

static bool is_within(const struct vmimg_changes *c, uint64_t offset)
{
	for (size_t i = 0; i < c->count; i++)
		if (offset >= c->changed_byte_offsets[i] &&
		    offset < c->changed_byte_offsets[i] + c->changed_byte_lengths[i])
			return true;
	return false;
}

/* P6: whatever differs is told. */
static void changes(struct storm_thread *t)
{
	unsigned d = (unsigned)storm_pick(t, STORM_DISKS);
	bool point = storm_pick(t, 3) == 0;
	struct vmimg_changes c = {0};
	char a[40], b[40], from[80], to[80];
	uint32_t was, is;

	storm_some_name(t, point ? '#' : '@', a);
	storm_some_name(t, '@', b);
	storm_text(t, storm_svc, point ? VMIMG_KIND_REFPOINT : VMIMG_KIND_SNAPSHOT, a,
		   point ? "refpoint_id" : "snapshot_id", from);
	storm_text(t, storm_svc, VMIMG_KIND_SNAPSHOT, b, "snapshot_id", to);
	snprintf(t->doing, sizeof(t->doing), "changes of %s from %s %.36s to %s %.36s",
		 storm_disks[d], a, from, b, to);
	if (!from[0] || !to[0] ||
	    !storm_ok(t, vmimg_get_virtual_disk_changes(storm_svc, storm_disks[d], from, to, 0,
							UINT64_MAX, &c, &t->err)))
		return;
	was = storm_known(from);
	is = storm_known(to);
	for (unsigned i = 0; was && is && i < STORM_BLOCKS; i++)
		if (storm_differs(was, is, d, i) && !is_within(&c, (uint64_t)i * STORM_BLOCK))
			storm_fail(t, "block %u differs between versions %u and %u, untold", i, was,
				   is);
	vmimg_changes_free(&c);
}

static void diff(struct storm_thread *t)
{
	char a[40], b[40], *json = NULL;
	json_t *doc;

	storm_some_name(t, storm_pick(t, 3) ? '@' : '#', a);
	storm_some_name(t, '@', b);
	snprintf(t->doing, sizeof(t->doing), "diff of %s and %s", a, b);
	if (!storm_ok(t, -(int64_t)vmimg_diff(storm_svc, a, storm_pick(t, 3) ? b : NULL, &t->err,
					      &json)))
		return;
	doc = json_loads(json, 0, NULL);
	if (json_array_size(json_object_get(doc, "disks")) != STORM_DISKS ||
	    json_array_size(json_object_get(doc, "gone")))
		storm_fail(t, "not of all disks: %s", json);
	json_decref(doc);
	vmimg_free(json);
}

/* --- the disks, and space --- */

static void grow(struct storm_thread *t)
{
	unsigned d = (unsigned)storm_pick(t, STORM_DISKS);
	json_t *doc = storm_document(t, storm_svc, VMIMG_KIND_DISK | VMIMG_KIND_BRIEF,
				     storm_disks[d]);
	uint64_t size = (uint64_t)json_integer_value(json_object_get(doc, "size"));

	if (!doc)
		storm_fail(t, "%s is not there: %s", storm_disks[d], t->err.message);
	json_decref(doc);
	if (size >= 4 * STORM_SIZE)
		return;
	snprintf(t->doing, sizeof(t->doing), "resize %s", storm_disks[d]);
	storm_ok(t, -(int64_t)vmimg_disk_resize(storm_svc, storm_disks[d], size + 16 * STORM_BLOCK,
						&t->err));
}

/* For a moment nothing is found by its name. */
static void rename_collection(struct storm_thread *t)
{
	snprintf(t->doing, sizeof(t->doing), "rename");
	if (!storm_ok(t, vmimg_rename_collection(storm_svc, "c", "x", &t->err)))
		return;
	while (vmimg_rename_collection(storm_svc, "x", "c", &t->err) != VMIMG_OK)
		usleep(1000); /* a snapshot of it is being created */
}

static void settle(struct storm_thread *t)
{
	struct vmimg_job *job = NULL;
	uint32_t code;

	snprintf(t->doing, sizeof(t->doing), "settle");
	code = vmimg_settle(storm_svc, NULL, storm_pick(t, 2) ? VMIMG_SETTLE_WHOLE : 0,
			    STORM_SECOND / 4, &job, &t->err);
	if (code != VMIMG_JOB_STARTED)
		storm_fail(t, "%u: %s", code, t->err.message);
	/* Whatever the others take away behind it: that its time is over is all that it may say. */
	if (!storm_job(t, job, NULL) && !strstr(t->err.message, "still being given back"))
		storm_fail(t, "%s", t->err.message);
}

void storm_operation(struct storm_thread *t)
{
	static const struct {
		unsigned weight;
		void (*run)(struct storm_thread *t);
	} table[] = {
		{16, create},     {10, destroy},     {4, convert},
		{4, hold},        {2, prune},        {6, revert},
		{5, verify},      {3, look},         {8, read_snapshot},
		{6, changes},     {4, diff},         {3, grow},
		{2, settle},      {8, storm_export}, {6, storm_increment},
		{4, storm_clone}, {2, storm_import}, {1, rename_collection},
	};
	unsigned sum = 0, at;

	for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++)
		sum += table[i].weight;
	at = (unsigned)storm_pick(t, sum);
	for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
		if (at < table[i].weight) {
			t->err.message[0] = 0;
			table[i].run(t);
			return;
		}
		at -= table[i].weight;
	}
}
