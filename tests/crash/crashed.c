/* SPDX-License-Identifier: MIT */
/*
 * crashed.c - see crashed.h. Nothing asserts here: these checks run in processes that replay, whose
 * parent tells what they found.
 */
#include "tests/crash/crashed.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <xxhash.h>

#include "fsck/fsck.h"

bool crashed_blame(struct kase *k, const char *fmt, ...)
{
	size_t n = (size_t)snprintf(k->progress->why, sizeof(k->progress->why),
				    "SEED=%llu %s, power lost at event %llu of %llu%s: ",
				    (unsigned long long)k->r->seed,
				    k->r->tmpfs ? "tmpfs" : "direct", (unsigned long long)k->when,
				    (unsigned long long)k->r->events,
				    k->rec == k->r->rec ? "" : ", and again during the recovery");
	va_list args;

	va_start(args, fmt);
	vsnprintf(k->progress->why + n, sizeof(k->progress->why) - n, fmt, args);
	va_end(args);
	return false;
}

/* --- what a power loss left --- */

/* Another boot: other id, empty shared memory. */
struct eng_io *crashed_boot(struct kase *k)
{
	struct eng_io *io = NULL;
	uint8_t id[16];

	for (size_t i = 0; i < 16; i += 8) {
		uint64_t x = test_random(&k->rng);

		memcpy(id + i, &x, 8);
	}
	if (mkdir(k->shm, 0700) < 0 && errno != EEXIST)
		abort();
	if (eng_io_posix_create(&io) < 0 || eng_io_posix_set_shm_dir(io, k->shm) < 0)
		abort();
	eng_io_posix_set_boot_id(io, id);
	return io;
}

static bool before(const _Atomic uint64_t *what, uint64_t when)
{
	return atomic_load(what) && atomic_load(what) < when;
}

static bool snap_ended(const struct rig_snap *s, uint64_t when)
{
	return s->ended && s->ended < when;
}

/* The newest snapshot that must be there: its content is durable. */
static const struct whole *newest_whole(const struct kase *k)
{
	const struct whole *newest = NULL;

	for (unsigned i = 0; i < atomic_load(&k->r->log->snap_count); i++)
		if (k->r->snaps[i].there && snap_ended(&k->r->log->snaps[i], k->when))
			newest = &k->r->snaps[i];
	return newest;
}

static bool check_disks(struct kase *k, struct rig_view *view, uint64_t hash[RIG_DISKS])
{
	const struct whole *newest = newest_whole(k);
	struct fmt_error err = {{0}};
	char why[HIST_WHY] = "";
	bool ok = true;

	for (unsigned d = 0; ok && d < RIG_DISKS; d++) {
		uint8_t *data = malloc(rig_size(d));

		if (rig_view_read(view, rig_disk_name(d), data, rig_size(d), &err) < 0)
			ok = crashed_blame(k, "%s", err.text);
		else if (!hist_check_disk(k->r->ix, d, data, HIST_POWER, k->when,
					  newest ? newest->floor[d] : NULL, why))
			ok = crashed_blame(k, "%s: %s", rig_disk_name(d), why);
		hash[d] = ok ? XXH3_64bits(data, rig_size(d)) : 0;
		free(data);
	}
	return ok;
}

static bool check_whole(struct kase *k, struct rig_view *view, unsigned n)
{
	const struct rig_snap *s = &k->r->log->snaps[n];
	struct fmt_error err = {{0}};
	bool ok = true;

	for (unsigned d = 0; ok && d < RIG_DISKS; d++) {
		uint8_t *data;

		if (!rig_is_member(d))
			continue;
		data = malloc(rig_size(d));
		if (rig_view_read(view, rig_snap_disk(s->name, d), data, rig_size(d), &err) < 0)
			ok = crashed_blame(k, "snapshot %s: %s", s->name, err.text);
		else if (XXH3_64bits(data, rig_size(d)) != k->r->snaps[n].hash[d])
			ok = crashed_blame(k, "snapshot %s: %s is not what it was", s->name,
					   rig_disk_name(d));
		free(data);
	}
	return ok;
}

static bool check_job(struct kase *k, struct eng_catalog *cat, const struct rig_snap *s, bool there)
{
	struct cat_job job;

	if (eng_catalog_get_job(cat, &s->job, &job) < 0)
		return s->called >= k->when || !s->called ||
		       crashed_blame(k, "the job of %s is lost", s->name);
	if (!job.ended_ns || (job.state == 7) != there || (job.state != 7 && !job.error_text[0]))
		return crashed_blame(k, "the job of %s (%s) is in state %u, error %u \"%s\"",
				     s->name, there ? "there" : "not there", job.state,
				     job.error_code, job.error_text);
	return true;
}

/* Present or not as it must be; and its content, always where it was on the edge. */
static bool check_snapshot(struct kase *k, struct rig_view *view, unsigned n, bool there)
{
	const struct rig_snap *s = &k->r->log->snaps[n];
	bool done = atomic_load(&s->done) != 0, ended = snap_ended(s, k->when);
	bool deleting = before(&s->deleting, k->when);

	if (there && before(&s->deleted, k->when))
		return crashed_blame(k, "snapshot %s was deleted and is there", s->name);
	if (!there && ended && done && !deleting)
		return crashed_blame(k, "snapshot %s completed and is gone", s->name);
	if (there && (!done || !s->called || s->called >= k->when))
		return crashed_blame(k, "snapshot %s is there; it %s", s->name,
				     done ? "had not been called" : "failed");
	if (!check_job(k, view->store->catalog, s, there || deleting))
		return false;
	if (there && k->r->snaps[n].there && (!ended || test_random(&k->rng) % 4 == 0))
		return check_whole(k, view, n);
	return true;
}

static bool check_snapshots(struct kase *k, struct rig_view *view)
{
	struct cat_snapshot *rows = NULL;
	unsigned n = atomic_load(&k->r->log->snap_count), seen = 0;
	size_t count = 0;
	bool ok = true;

	if (eng_catalog_list_snapshots(view->store->catalog, NULL, &rows, &count) < 0)
		return crashed_blame(k, "cannot list the snapshots");
	for (size_t i = 0; ok && i < count; i++)
		if (rows[i].state != CAT_SNAPSHOT_COMPLETE)
			ok = crashed_blame(k, "snapshot %s is in state %u", rows[i].name,
					   rows[i].state);
	for (unsigned i = 0; ok && i < n; i++) {
		bool there = false;

		for (size_t j = 0; j < count; j++)
			there = there || !strcmp(rows[j].name, k->r->log->snaps[i].name);
		seen += there;
		ok = check_snapshot(k, view, i, there);
	}
	if (ok && seen != count)
		ok = crashed_blame(k, "%zu snapshots, only %u of them were made", count, seen);
	free(rows);
	return ok;
}

/* The short-lived disks: all or nothing too. */
static bool check_extras(struct kase *k, struct rig_view *view)
{
	struct rig_log *log = k->r->log;
	struct fmt_error err = {{0}};

	for (unsigned i = 0; i < atomic_load(&log->extra_count); i++) {
		struct rig_extra *e = &log->extras[i];
		uint8_t *data;
		struct cat_disk row;
		char name[32];
		int r = eng_catalog_get_disk(view->store->catalog, "x", e->name, &row);

		if (r < 0 && before(&e->made, k->when) && !before(&e->removing, k->when))
			return crashed_blame(k, "disk x/%s was made and is gone", e->name);
		if (r == 0 && (before(&e->removed, k->when) || !before(&e->making, k->when)))
			return crashed_blame(k, "disk x/%s is there and should not be", e->name);
		if (r < 0)
			continue;
		snprintf(name, sizeof(name), "x/%s", e->name);
		data = malloc(row.size);
		r = rig_view_read(view, name, data, row.size, &err);
		for (uint64_t j = 0; r == 0 && j < row.size; j++)
			if (data[j])
				r = -EIO;
		free(data);
		if (r < 0)
			return crashed_blame(k, "disk %s: %s", name,
					     err.text[0] ? err.text : "not zeros");
	}
	return true;
}

/* The store goes on: a write, a snapshot, a clean close, and the same content at the next open. */
static bool check_use(struct kase *k, struct eng_io *io, bool write, const uint64_t hash[RIG_DISKS])
{
	struct fmt_error err = {{0}};
	uint64_t again[RIG_DISKS];
	struct rig_view view;
	bool ok;

	if (rig_view_open(io, k->store, NULL, &view, &err) < 0)
		return crashed_blame(k, "second open: %s", err.text);
	ok = check_disks(k, &view, again);
	for (unsigned d = 0; ok && d < RIG_DISKS; d++)
		if (again[d] != hash[d])
			ok = crashed_blame(k, "%s: other content at the second open",
					   rig_disk_name(d));
	if (ok && write && rig_view_use(&view, &err) < 0)
		ok = crashed_blame(k, "use after recovery: %s", err.text);
	if (ok && rig_view_close(&view) < 0)
		ok = crashed_blame(k, "close after the second open");
	if (!ok || !write)
		return ok;
	if (rig_view_open(io, k->store, NULL, &view, &err) < 0)
		return crashed_blame(k, "third open: %s", err.text);
	for (unsigned i = 0; ok && i < atomic_load(&k->r->log->snap_count); i++)
		if (k->r->snaps[i].there && snap_ended(&k->r->log->snaps[i], k->when) &&
		    test_random(&k->rng) % 8 == 0)
			ok = check_whole(k, &view, i);
	if (ok && rig_view_close(&view) < 0)
		ok = crashed_blame(k, "close after the third open");
	return ok;
}

static void note_finding(void *arg, const struct fsck_finding *f)
{
	char *text = arg;

	if (f->severity == FSCK_CORRUPT && !text[0])
		snprintf(text, 512, "%s: %s: %s", f->rule, f->where, f->message);
}

/* The second opinion finds nothing but leaks and what the next open settles. */
static bool check_sound(struct kase *k, struct eng_io *io, const char *when)
{
	struct fsck_summary sum = {0};
	struct fmt_error err = {{0}};
	char first[512] = "";
	int r = fsck_run(io, k->store, note_finding, first, &err, &sum);

	if (r < 0)
		return crashed_blame(k, "check %s: %d, %s", when, r, err.text);
	if (sum.corruptions)
		return crashed_blame(k, "check %s finds %llu corruptions; %s", when,
				     (unsigned long long)sum.corruptions, first);
	return true;
}

bool crashed_check(struct kase *k)
{
	struct eng_io *io = crashed_boot(k);
	struct fmt_error err = {{0}};
	uint64_t hash[RIG_DISKS] = {0}, x = test_random(&k->rng);
	struct eng_store_options options = {.buffered = x & 1, .standby = x >> 1 & 1};
	struct rig_view view;
	bool ok;

	atomic_fetch_add(&k->progress->opens, 1);
	/* The check moves the catalog's log into place: not before every recovery. */
	if (x >> 16 & 1 && !check_sound(k, io, "before the recovery"))
		return false;
	if (rig_view_open(io, k->store, &options, &view, &err) < 0) {
		ok = crashed_blame(k, "open: %s", err.text);
		goto out;
	}
	ok = check_disks(k, &view, hash) && check_snapshots(k, &view) && check_extras(k, &view);
	if (ok && rig_view_close(&view) < 0)
		ok = crashed_blame(k, "close");
	if (ok && (x >> 8 & 3) == 0)
		ok = check_use(k, io, x >> 10 & 1, hash);
	if (ok)
		ok = check_sound(k, io, "after it");
out:
	if (ok) /* else the store's threads go on until the process ends */
		eng_io_destroy(io);
	return ok;
}

/* --- keeping a case, and coming back to it --- */

struct case_file {
	uint64_t seed, when, events;
	uint8_t tmpfs, again, unused[6];
	struct {
		uint64_t hash[RIG_DISKS];
		uint64_t there;
	} snaps[RIG_SNAPS];
};

void crashed_keep(struct kase *k, const char *dir)
{
	struct case_file f = {
		.seed = k->r->seed,
		.when = k->when,
		.events = k->r->events,
		.tmpfs = k->r->tmpfs,
		.again = k->rec != k->r->rec,
	};
	char *kept = k->progress->kept, path[160];
	FILE *out;

	snprintf(kept, sizeof(k->progress->kept), "%s/powerloss-%llu-%llu", dir,
		 (unsigned long long)f.seed, (unsigned long long)f.when);
	for (unsigned i = 0; i < RIG_SNAPS; i++) {
		memcpy(f.snaps[i].hash, k->r->snaps[i].hash, sizeof(f.snaps[i].hash));
		f.snaps[i].there = k->r->snaps[i].there;
	}
	eng_record_remove_tree(kept);
	if (eng_record_crash(k->rec, k->at.index, k->at.seed, kept) < 0)
		return;
	snprintf(path, sizeof(path), "%s/case", kept);
	out = fopen(path, "we");
	if (!out)
		return;
	fwrite(&f, sizeof(f), 1, out);
	fwrite(k->r->log, rig_log_size(CRASHED_OPS), 1, out);
	fclose(out);
}

/* Without the snapshots' floors: the disks' checks know less than at first. */
struct recording *crashed_load(const char *dir, uint64_t *when)
{
	struct recording *r = calloc(1, sizeof(*r));
	struct rig_log *log = malloc(rig_log_size(CRASHED_OPS));
	struct case_file f;
	char path[160];
	FILE *in;

	snprintf(path, sizeof(path), "%s/case", dir);
	in = fopen(path, "re");
	if (!r || !log || !in || fread(&f, sizeof(f), 1, in) != 1 ||
	    fread(log, rig_log_size(CRASHED_OPS), 1, in) != 1) {
		if (in)
			fclose(in);
		free(log);
		free(r);
		return NULL;
	}
	fclose(in);
	r->log = log;
	r->seed = f.seed;
	r->events = f.events;
	r->tmpfs = f.tmpfs;
	log->history.ops = log->ops;
	log->history.tick = NULL;
	for (unsigned i = 0; i < RIG_SNAPS; i++) {
		memcpy(r->snaps[i].hash, f.snaps[i].hash, sizeof(f.snaps[i].hash));
		r->snaps[i].there = f.snaps[i].there;
	}
	r->ix = hist_index_create(&log->history, NULL);
	*when = f.when;
	return r;
}
