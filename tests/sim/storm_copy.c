/* SPDX-License-Identifier: MIT */
/*
 * storm_copy.c - what leaves the store in a storm: exports, in full and against a base, which are imported
 * into another store and read there; clones; and imports beside what is there.
 */
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/sim/storm.h"

static int remove_entry(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	(void)st;
	(void)type;
	(void)ftw;
	return remove(path);
}

void storm_remove_tree(const char *path)
{
	nftw(path, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

/* --- the thread's other store --- */

static void open_other(struct storm_thread *t)
{
	const struct vmimg_options options = {.size = sizeof(options),
					      .buffered = 1,
					      .background_threads = 1};

	if (t->other)
		return;
	if (vmimg_store_init(t->other_dir, &t->err) < 0 ||
	    vmimg_open(t->other_dir, &options, &t->err, &t->other) < 0)
		storm_fail(t, "the other store: %s", t->err.message);
}

static void close_other(struct storm_thread *t)
{
	if (t->other && vmimg_close(t->other) < 0)
		storm_fail(t, "the other store does not close");
	t->other = NULL;
	storm_remove_tree(t->other_dir);
}

static void restore(struct storm_thread *t, const char *dir)
{
	if (vmimg_import_snapshot(t->other, dir, "{\"Synchronous\": true}", NULL, &t->err) !=
	    VMIMG_OK)
		storm_fail(t, "what was exported is not imported: %s", t->err.message);
}

/* Nobody else uses that store. */
static uint32_t read_other(struct storm_thread *t, const char *name)
{
	char before[48];
	uint32_t version;

	snprintf(before, sizeof(before), "%s/", name);
	version = storm_read(t, t->other, before);
	if (!version || version == UINT32_MAX)
		storm_fail(t, "what was exported %s",
			   version ? "holds more than one version" : t->err.message);
	return version;
}

static bool is_there(struct storm_thread *t, const char *name)
{
	char id[80];

	storm_text(t, t->other, VMIMG_KIND_SNAPSHOT, name, "snapshot_id", id);
	return id[0] != 0;
}

/* --- exports --- */

static uint32_t version_of_file(struct storm_thread *t, const char *dir, unsigned disk)
{
	uint8_t *buf = calloc(1, 8 * STORM_SIZE);
	uint32_t version;
	char path[400];
	size_t n;
	FILE *f;

	snprintf(path, sizeof(path), "%s/%s.raw", dir, storm_disks[disk]);
	f = fopen(path, "re");
	if (!f || !buf)
		storm_fail(t, "%s is not there", path);
	n = fread(buf, 1, 8 * STORM_SIZE, f);
	fclose(f);
	version = n < STORM_SIZE ? 0 : storm_version_of(disk, buf, n);
	if (!version)
		storm_fail(t, "%s holds no version", path);
	free(buf);
	return version;
}

static uint32_t version_of_files(struct storm_thread *t, const char *dir)
{
	uint32_t version = version_of_file(t, dir, 0);

	for (unsigned d = 1; d < STORM_DISKS; d++)
		if (version_of_file(t, dir, d) != version)
			storm_fail(t, "%s holds version %u, the first disk %u", storm_disks[d],
				   version_of_file(t, dir, d), version);
	return version;
}

/* Its report, or NULL; nothing is left where it failed. */
static json_t *export(struct storm_thread *t, const char *name, const char *base,
		      const char *format, const char *dir)
{
	struct vmimg_job *job = NULL;
	json_t *report = NULL;
	char settings[200];
	struct stat st;
	uint32_t code;

	snprintf(settings, sizeof(settings), "{\"Format\": \"%s\"%s%s%s}", format,
		 base ? ", \"DifferentialBackupBase\": \"" : "", base ? base : "",
		 base ? "\"" : "");
	snprintf(t->doing, sizeof(t->doing), "export %s of %s against %s to %s", format, name,
		 base ? base : "nothing", dir);
	storm_remove_tree(dir);
	code = vmimg_export_snapshot(storm_svc, name, dir, settings, &job, &t->err);
	if (code != VMIMG_JOB_STARTED) {
		storm_ok(t, code);
		return NULL;
	}
	if (storm_pick(t, 12) == 0)
		vmimg_job_request_state_change(job, VMIMG_REQUEST_TERMINATE, 0, NULL);
	if (!storm_job(t, job, &report)) {
		if (stat(dir, &st) == 0)
			storm_fail(t, "failed, and its directory is there");
		return NULL;
	}
	if (!report || stat(dir, &st) < 0)
		storm_fail(t, "done, without %s", report ? "its directory" : "a report");
	return report;
}

static const char *id_of(const json_t *report)
{
	return json_string_value(json_object_get(report, "snapshot_id"));
}

void storm_export(struct storm_thread *t)
{
	static const char *const formats[] = {"raw", "stream", "qcow2"};
	const char *format = formats[storm_pick(t, 3)];
	uint32_t version;
	json_t *report;
	char name[40];

	storm_some_name(t, '@', name);
	report = export(t, name, NULL, format, t->dir);
	if (!report)
		return;
	if (format[0] == 'r') {
		version = version_of_files(t, t->dir);
	} else {
		open_other(t);
		restore(t, t->dir);
		version = read_other(t, name);
		close_other(t);
	}
	storm_note(t, id_of(report), version);
	json_decref(report);
	storm_remove_tree(t->dir);
}

/* @dir's increment onto @full's snapshot, where that is still the one which has the base's name. */
static void restore_increment(struct storm_thread *t, const json_t *full, const char *base,
			      const char *dir, bool same)
{
	int64_t code;

	open_other(t);
	restore(t, t->dir);
	storm_note(t, id_of(full), read_other(t, base));
	code = vmimg_import_snapshot(t->other, dir, "{\"Synchronous\": true}", NULL, &t->err);
	if (code != VMIMG_OK && (same || !t->err.message[0]))
		storm_fail(t, "the increment is not imported: %s", t->err.message);
}

void storm_increment(struct storm_thread *t)
{
	const char *format = storm_pick(t, 2) ? "stream" : "qcow2";
	char name[40], base[40], dir[320], now[80];
	json_t *full, *increment;

	storm_some_name(t, '@', base);
	storm_some_name(t, '@', name);
	snprintf(dir, sizeof(dir), "%s-inc", t->dir);
	full = export(t, base, NULL, storm_pick(t, 2) ? "stream" : "qcow2", t->dir);
	if (!full)
		return;
	increment = export(t, name, base, format, dir);
	if (increment) {
		storm_text(t, storm_svc, VMIMG_KIND_SNAPSHOT, base, "snapshot_id", now);
		restore_increment(t, full, base, dir, !strcmp(now, id_of(full)));
		if (is_there(t, name))
			storm_note(t, id_of(increment), read_other(t, name));
		close_other(t);
		storm_remove_tree(dir);
	}
	json_decref(increment);
	json_decref(full);
	storm_remove_tree(t->dir);
}

/* --- collections beside --- */

/* All that @prefix-VM/DISK, and the collection @prefix, are. */
static void remove_collection(struct storm_thread *t, const char *prefix, const char *snapshot)
{
	char name[100], vm[100];
	int64_t code;

	snprintf(t->doing, sizeof(t->doing), "remove collection %s", prefix);
	snprintf(name, sizeof(name), "%s@%s", prefix, snapshot);
	code = *snapshot ? vmimg_destroy_snapshot(storm_svc, name, NULL, &t->err) : 0;
	for (unsigned d = 0; code == 0 && d < STORM_DISKS; d++) {
		snprintf(name, sizeof(name), "%s-%s", prefix, storm_disks[d]);
		while ((code = vmimg_disk_delete(storm_svc, name, &t->err)) == -16)
			usleep(2000); /* a fold, or a reader that lets go */
		if (code == 0 && d % 2) {
			snprintf(vm, sizeof(vm), "%.*s", (int)(strchr(name, '/') - name), name);
			code = vmimg_remove_member(storm_svc, vm, prefix, &t->err);
			if (code == 0)
				code = vmimg_vm_delete(storm_svc, vm, &t->err);
		}
	}
	if (code == 0)
		code = vmimg_destroy_collection(storm_svc, prefix, &t->err);
	if (code != 0)
		storm_fail(t, "%lld: %s", (long long)code, t->err.message);
}

/* Its disks attached: what they read is the same all the time, whatever the origins' snapshots come to. */
static void flatten_attached(struct storm_thread *t, const char *to, const char *before,
			     uint32_t version)
{
	struct vmimg_disk *disks[STORM_DISKS];
	struct vmimg_queue *queue = NULL;
	struct vmimg_job *job = NULL;
	unsigned d = 0;
	char name[60];

	if (vmimg_queue_create(storm_svc, 16, &t->err, &queue) < 0)
		storm_fail(t, "no queue: %s", t->err.message);
	for (; d < STORM_DISKS; d++) {
		snprintf(name, sizeof(name), "%s%s", before, storm_disks[d]);
		if (vmimg_disk_attach(queue, name, 0, &t->err, &disks[d]) < 0)
			storm_fail(t, "%s cannot be attached: %s", name, t->err.message);
	}
	if (vmimg_flatten(storm_svc, to, 0, 0, &job, &t->err) != VMIMG_JOB_STARTED)
		storm_fail(t, "%s", t->err.message);
	do {
		d = (unsigned)storm_pick(t, STORM_DISKS);
		if (storm_read_one(t, queue, disks[d], d) != version)
			storm_fail(t, "%s holds another version than %u", storm_disks[d], version);
	} while (vmimg_job_wait(job, 0) < 0);
	if (!storm_job(t, job, NULL))
		storm_fail(t, "%s", t->err.message);
	for (d = 0; d < STORM_DISKS; d++)
		if (storm_read_one(t, queue, disks[d], d) != version ||
		    vmimg_disk_detach(disks[d]) < 0)
			storm_fail(t, "%s, flattened and attached, is not version %u",
				   storm_disks[d], version);
	vmimg_queue_destroy(queue);
}

static void flatten(struct storm_thread *t, const char *to, const char *before, uint32_t version)
{
	struct vmimg_job *job = NULL;
	uint32_t code;

	snprintf(t->doing, sizeof(t->doing), "flatten %s", to);
	if (storm_pick(t, 2)) {
		flatten_attached(t, to, before, version);
	} else {
		code = vmimg_flatten(storm_svc, to, 0, 0, &job, &t->err);
		if (code != VMIMG_JOB_STARTED || !storm_job(t, job, NULL))
			storm_fail(t, "%u: %s", code, t->err.message);
	}
	if (storm_read(t, storm_svc, before) != version)
		storm_fail(t, "the flattened clone holds another version than %u", version);
}

/* The one that a clone is of is what it holds; one that was made anew meanwhile would be another. */
void storm_clone(struct storm_thread *t)
{
	char name[40], to[20], before[24], from[80], now[80];
	struct vmimg_job *job = NULL;
	uint32_t version;

	storm_some_name(t, '@', name);
	storm_text(t, storm_svc, VMIMG_KIND_SNAPSHOT, name, "snapshot_id", from);
	snprintf(to, sizeof(to), "k%u", t->number);
	snprintf(before, sizeof(before), "k%u-", t->number);
	snprintf(t->doing, sizeof(t->doing), "clone %s as %s", name, to);
	if (!storm_ok(t, vmimg_clone_snapshot(storm_svc, name, to, NULL, NULL, &job, &t->err)))
		return;
	storm_job(t, job, NULL);
	storm_text(t, storm_svc, VMIMG_KIND_SNAPSHOT, name, "snapshot_id", now);
	version = storm_read(t, storm_svc, before);
	if (!version)
		storm_fail(t, "the clone cannot be read: %s", t->err.message);
	if (from[0] && !strcmp(from, now))
		storm_note(t, from, version);
	if (storm_pick(t, 2))
		flatten(t, to, before, version);
	remove_collection(t, to, "");
}

void storm_import(struct storm_thread *t)
{
	char name[40], to[20], settings[80], before[24];
	uint32_t version;
	json_t *report;

	storm_some_name(t, '@', name);
	report = export(t, name, NULL, "stream", t->dir);
	if (!report)
		return;
	snprintf(to, sizeof(to), "i%u", t->number);
	snprintf(before, sizeof(before), "i%u-", t->number);
	snprintf(settings, sizeof(settings), "{\"Synchronous\": true, \"Collection\": \"%s\"}", to);
	snprintf(t->doing, sizeof(t->doing), "import %s as %s", name, to);
	if (storm_ok(t, vmimg_import_snapshot(storm_svc, t->dir, settings, NULL, &t->err))) {
		version = storm_read(t, storm_svc, before);
		if (!version)
			storm_fail(t, "what was imported cannot be read: %s", t->err.message);
		storm_note(t, id_of(report), version);
		remove_collection(t, to, name + 2);
	}
	json_decref(report);
	storm_remove_tree(t->dir);
}
