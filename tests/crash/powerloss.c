/* SPDX-License-Identifier: MIT */
/*
 * powerloss.c - the death of the host (P2, P4, P1). A load runs on the recording I/O, catalog and all;
 * then the log is cut at many of its events, what was not flushed by then survives or not by chance,
 * and the store that is left is opened under another boot id: every snapshot whose job had completed
 * is there, whole and unchanged, no half one is; every sector holds what the last flush covered or
 * something written later; the store goes on working. Part of the recoveries are recorded and cut too,
 * those after the death of the process alone as well, when what it never synced can still be read; and in
 * some loads the process dies and recovers before the power fails.
 *
 * Environment: VMIMG_TEST_SECONDS; SEED of the first load; CASE: the directory that a failure left,
 * to check that one case again. A load runs on several threads, so that a seed gives the same mix but
 * not the same log: hence the directory.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <xxhash.h>

#include "engine/io/io_record_log.h"
#include "tests/crash/crashed.h"

#define REPLAYS     300 /* of one load */
#define WORKERS     2   /* processes that replay */
#define REPLAYS_MIN 200 /* of the whole test */
#define HANG        120 /* seconds for one replay */

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

/* --- the load --- */

static uint64_t tick(void *arg)
{
	return eng_record_mark(arg, 0, 0, 0) + 1;
}

static const char *tmp_dir(void)
{
	const char *tmp = getenv("TMPDIR");

	return tmp && strlen(tmp) < 64 ? tmp : "/tmp";
}

static void pick_load(struct rig *rig, uint64_t *rng)
{
	static const uint64_t bounds[] = {0, 120, 600, 2000};
	static const unsigned fuas[] = {0, 4, 25, 60}, deletes[] = {0, 40, 110, 40};
	uint64_t x = test_random(rng);

	rig->options = (struct eng_store_options){
		.buffered = x >> 12 & 1,
		.standby = x & 1,
		.map_bound = bounds[x >> 1 & 3],
		.log_bound = x >> 3 & 1 ? 600 << 10 : 0,
	};
	rig->seed = test_random(rng);
	rig->depth = 8 + (unsigned)(x >> 4 & 7);
	rig->pause_us = 2000;
	rig->options.fold_rate = UINT64_MAX;
	rig->options.fold_peace_ns = x >> 22 & 1 ? 10000000 : 0;
	rig->extras = 40;
	rig->deletes = deletes[x >> 20 & 3];
	rig->die = x >> 13 & 3;
	rig->files = x >> 18 & 1 ? 4 : 0;
	rig->fuas = fuas[x >> 16 & 3];
	rig->flushes = (unsigned)(x >> 7 & 31) + 4;
	rig->detaches = 16;
}

static void run_load(struct recording *r)
{
	struct rig rig = {0};
	uint64_t rng = r->seed;
	struct fmt_error err = {{0}};

	cr_assert_eq(rig_make_store(r->io, r->store, test_random(&rng), &err), 0, "%s", err.text);
	cr_assert_eq(eng_record_create(r->io, r->root, &r->rec), 0);
	rig_log_reset(r->log, CRASHED_OPS, 1);
	r->log->history.tick = tick;
	r->log->history.tick_arg = r->rec;
	for (size_t part = 1; part <= 3; part++) {
		pick_load(&rig, &rng);
		rig.io = eng_record_io(r->rec);
		rig.dir = r->store;
		rig.log = r->log;
		rig.ops = part * CRASHED_OPS / 3;
		rig.die = rig.die && part < 3;
		/* The recorder knows bytes, a page cache writes sectors. */
		rig.sectors = r->tmpfs || rig.options.buffered;
		rig.sectors_punched = true;
		cr_assert(rig_run(&rig), "SEED=%llu: %s", (unsigned long long)r->seed, r->log->why);
	}
	r->events = eng_record_index(r->rec);
}

/* What the disks and snapshots hold when nothing went wrong, checked by the same rules. */
static void look_at_snapshot(struct recording *r, struct rig_view *view, unsigned n)
{
	const struct rig_snap *s = &r->log->snaps[n];
	struct whole *w = &r->snaps[n];
	uint8_t *data[HIST_DISKS] = {0};
	struct fmt_error err = {{0}};
	char why[HIST_WHY] = "";

	w->there = true;
	for (unsigned d = 0; d < RIG_DISKS; d++) {
		if (!rig_is_member(d))
			continue;
		data[d] = malloc(rig_size(d));
		w->floor[d] = calloc(hist_sectors(r->ix, d), sizeof(uint32_t));
		cr_assert_eq(rig_view_read(view, rig_snap_disk(s->name, d), data[d], rig_size(d),
					   &err),
			     0, "SEED=%llu: %s", (unsigned long long)r->seed, err.text);
		w->hash[d] = XXH3_64bits(data[d], rig_size(d));
	}
	cr_assert(hist_check_cut(r->ix, data, s->called, atomic_load(&s->done), w->floor, why),
		  "SEED=%llu, no power lost: snapshot %s: %s", (unsigned long long)r->seed, s->name,
		  why);
	for (unsigned d = 0; d < RIG_DISKS; d++)
		free(data[d]);
}

static void look_at_end(struct recording *r)
{
	struct fmt_error err = {{0}};
	struct rig_view view;
	char why[HIST_WHY] = "";

	r->ix = hist_index_create(&r->log->history, NULL);
	cr_assert_eq(rig_view_open(r->io, r->store, NULL, &view, &err), 0, "%s", err.text);
	for (unsigned d = 0; d < RIG_DISKS; d++) {
		uint8_t *data = malloc(rig_size(d));

		cr_assert_eq(rig_view_read(&view, rig_disk_name(d), data, rig_size(d), &err), 0,
			     "%s", err.text);
		cr_assert(hist_check_disk(r->ix, d, data, HIST_KILLED, HIST_NEVER, NULL, why),
			  "SEED=%llu, no power lost: %s: %s", (unsigned long long)r->seed,
			  rig_disk_name(d), why);
		free(data);
	}
	for (unsigned i = 0; i < atomic_load(&r->log->snap_count); i++)
		if (atomic_load(&r->log->snaps[i].done) && !atomic_load(&r->log->snaps[i].deleting))
			look_at_snapshot(r, &view, i);
	cr_assert_eq(rig_view_close(&view), 0);
}

/* Syncs (of the catalog's commits too) and changes of names: most can go wrong next to these. */
static void find_hot(struct recording *r)
{
	size_t room = r->rec->name_count * 2;

	for (size_t i = 0; i < r->rec->node_count; i++)
		room += r->rec->nodes[i]->sync_count * 2;
	r->hot = calloc(room + 1, sizeof(*r->hot));
	for (size_t i = 0; i < r->rec->node_count; i++)
		for (size_t j = 0; j < r->rec->nodes[i]->sync_count; j++) {
			r->hot[r->hot_count++] = r->rec->nodes[i]->syncs[j].submit;
			r->hot[r->hot_count++] = r->rec->nodes[i]->syncs[j].complete;
		}
	for (size_t i = r->rec->base_count; i < r->rec->name_count; i++) {
		r->hot[r->hot_count++] = r->rec->names[i].submit;
		r->hot[r->hot_count++] = r->rec->names[i].complete;
	}
}

static struct recording *recording_create(uint64_t seed)
{
	struct recording *r = calloc(1, sizeof(*r));

	r->seed = seed;
	r->tmpfs = seed & 1;
	snprintf(r->root, sizeof(r->root), "%s/vmimg-powerloss-XXXXXX",
		 r->tmpfs ? "/dev/shm" : tmp_dir());
	cr_assert_not_null(mkdtemp(r->root));
	snprintf(r->store, sizeof(r->store), "%s/store", r->root);
	snprintf(r->shm, sizeof(r->shm), "/dev/shm/vmimg-powerloss-XXXXXX");
	cr_assert_not_null(mkdtemp(r->shm));
	cr_assert_eq(eng_io_posix_create(&r->io), 0);
	cr_assert_eq(eng_io_posix_set_shm_dir(r->io, r->shm), 0);
	r->log = malloc(rig_log_size(CRASHED_OPS));
	run_load(r);
	look_at_end(r);
	find_hot(r);
	return r;
}

static void recording_destroy(struct recording *r)
{
	for (unsigned i = 0; i < RIG_SNAPS; i++)
		for (unsigned d = 0; d < RIG_DISKS; d++)
			free(r->snaps[i].floor[d]);
	hist_index_destroy(r->ix);
	eng_record_destroy(r->rec);
	eng_io_destroy(r->io);
	if (r->root[0])
		cr_expect_eq(eng_record_remove_tree(r->root), 0);
	if (r->shm[0])
		cr_expect_eq(eng_record_remove_tree(r->shm), 0);
	free(r->log);
	free(r->hot);
	free(r);
}

/* --- replays --- */

static void clear(const char *path)
{
	if (access(path, F_OK) == 0 && eng_record_remove_tree(path) < 0)
		abort();
}

/* The recovery runs on k->rec, and the power fails in it. */
static bool crash_recovery(struct kase *k)
{
	uint64_t from = eng_record_index(k->rec);
	struct fmt_error err = {{0}};
	char dir[96], store[112];
	struct rig_view view;
	bool ok = false;

	if (rig_view_open(eng_record_io(k->rec), k->store, NULL, &view, &err) < 0)
		crashed_blame(k, "open: %s", err.text);
	else if (rig_view_close(&view) < 0)
		crashed_blame(k, "close");
	else
		ok = true;
	memcpy(dir, k->dir, sizeof(dir));
	memcpy(store, k->store, sizeof(store));
	k->at.index = from + test_random(&k->rng) % (eng_record_index(k->rec) - from + 1);
	k->at.seed = test_random(&k->rng);
	snprintf(k->dir + strlen(k->dir), 4, "-2");
	snprintf(k->store, sizeof(k->store), "%s/store", k->dir);
	clear(k->dir);
	if (ok && eng_record_crash(k->rec, k->at.index, k->at.seed, k->dir) < 0)
		ok = crashed_blame(k, "cannot write the tree");
	clear(k->shm);
	if (ok && !crashed_check(k))
		ok = false;
	if (!ok)
		crashed_keep(k, tmp_dir());
	clear(k->dir);
	memcpy(k->dir, dir, sizeof(dir));
	memcpy(k->store, store, sizeof(store));
	atomic_fetch_add(&k->progress->recoveries, 1);
	return ok;
}

/* After a power loss, on a recorder of its own: what that one left is durable. */
static bool crash_again(struct kase *k)
{
	struct eng_record *first = k->rec;
	struct eng_io *io = crashed_boot(k);
	struct cut at = k->at;
	bool ok;

	if (eng_record_create(io, k->dir, &k->rec) < 0)
		abort();
	ok = crash_recovery(k);
	eng_record_destroy(k->rec);
	eng_io_destroy(io);
	k->rec = first;
	k->at = at;
	return ok;
}

/* After the death of the process alone; in one of its own, since the log has another end then. */
static bool crash_after_death(struct kase *k)
{
	int status;
	pid_t pid = fork();

	if (pid < 0)
		abort();
	if (pid == 0) {
		if (eng_record_kill(k->rec, k->at.index, k->at.seed, crashed_boot(k), k->dir) < 0)
			abort();
		_exit(!crash_recovery(k));
	}
	if (waitpid(pid, &status, 0) != pid)
		abort();
	return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static bool replay(struct kase *k)
{
	uint64_t how = test_random(&k->rng) % 5;
	bool ok;

	clear(k->dir);
	clear(k->shm);
	if (how == 0)
		return crash_after_death(k);
	if (eng_record_crash(k->rec, k->at.index, k->at.seed, k->dir) < 0)
		return crashed_blame(k, "cannot write the tree");
	if (how == 1)
		return crash_again(k);
	ok = crashed_check(k);
	if (!ok)
		crashed_keep(k, tmp_dir());
	return ok;
}

static void worker(const struct recording *r, struct progress *progress, const char *dir,
		   unsigned number, const struct cut *cuts, size_t count, double end)
{
	struct kase k = {.r = r, .rec = r->rec, .progress = progress};

	for (size_t i = 0; i < count && now() < end; i++) {
		snprintf(k.dir, sizeof(k.dir), "%s/tree%u", dir, number);
		snprintf(k.store, sizeof(k.store), "%s/store", k.dir);
		snprintf(k.shm, sizeof(k.shm), "%s/shm%u", dir, number);
		k.at = cuts[i];
		k.when = cuts[i].index;
		k.rng = cuts[i].seed;
		atomic_store(&progress->index, k.at.index);
		atomic_store(&progress->seed, k.at.seed);
		alarm(HANG);
		if (!replay(&k))
			_exit(1);
		atomic_fetch_add(&progress->replays, 1);
	}
	_exit(0);
}

static int by_index(const void *a, const void *b)
{
	uint64_t x = ((const struct cut *)a)->index, y = ((const struct cut *)b)->index;

	return x < y ? -1 : x > y;
}

static struct cut *pick_cuts(const struct recording *r, uint64_t *rng)
{
	struct cut *cuts = calloc(REPLAYS, sizeof(*cuts));

	for (size_t i = 0; i < REPLAYS; i++) {
		uint64_t x = test_random(rng);

		cuts[i].index = x % 3 && r->hot_count
					? r->hot[test_random(rng) % r->hot_count] + (x >> 8) % 3
					: test_random(rng) % (r->events + 1);
		if (cuts[i].index > r->events)
			cuts[i].index = r->events;
		cuts[i].seed = test_random(rng);
	}
	qsort(cuts, REPLAYS, sizeof(*cuts), by_index);
	return cuts;
}

/* Each worker goes forward through its part of the log; every cut is a process's whole state. */
static void replay_all(const struct recording *r, struct progress *progress, double end,
		       uint64_t *rng)
{
	struct cut *cuts = pick_cuts(r, rng);
	char dir[64] = "/dev/shm/vmimg-replay-XXXXXX";
	pid_t pid[WORKERS];
	int status[WORKERS];

	cr_assert_not_null(mkdtemp(dir));
	for (unsigned w = 0; w < WORKERS; w++) {
		size_t from = REPLAYS * w / WORKERS, to = REPLAYS * (w + 1) / WORKERS;

		pid[w] = fork();
		cr_assert_geq(pid[w], 0);
		if (pid[w] == 0)
			worker(r, &progress[w], dir, w, cuts + from, to - from, end);
	}
	for (unsigned w = 0; w < WORKERS; w++)
		cr_assert_eq(waitpid(pid[w], &status[w], 0), pid[w]);
	eng_record_remove_tree(dir);
	free(cuts);
	for (unsigned w = 0; w < WORKERS; w++)
		cr_assert(WIFEXITED(status[w]) && WEXITSTATUS(status[w]) == 0,
			  "%s; status %#x at event %llu (seed %#llx); kept in %s", progress[w].why,
			  status[w], (unsigned long long)atomic_load(&progress[w].index),
			  (unsigned long long)atomic_load(&progress[w].seed), progress[w].kept);
}

/* A case as it was kept. */
static void check_case(const char *dir)
{
	char copy[64] = "/dev/shm/vmimg-case-XXXXXX", command[256];
	struct progress *progress = calloc(1, sizeof(*progress));
	struct kase k = {.progress = progress};
	struct recording *r;

	cr_assert_not_null(mkdtemp(copy));
	snprintf(command, sizeof(command), "cp -a '%s/store' '%s/store'", dir, copy);
	cr_assert_eq(system(command), 0);
	r = crashed_load(dir, &k.when);
	cr_assert_not_null(r, "no case in %s", dir);
	k.r = r;
	k.rng = k.when;
	snprintf(k.dir, sizeof(k.dir), "%s", copy);
	snprintf(k.store, sizeof(k.store), "%s/store", copy);
	snprintf(k.shm, sizeof(k.shm), "%s/shm", copy);
	cr_assert(crashed_check(&k), "%s", progress->why);
	recording_destroy(r);
	cr_assert_eq(eng_record_remove_tree(copy), 0);
	free(progress);
}

/* P2, P4, P1; T9-T13, T17, T18, T21, T22 */
Test(crash_powerloss, what_was_flushed_and_what_completed_survives)
{
	const char *text = getenv("VMIMG_TEST_SECONDS"), *first = getenv("SEED");
	double start = now(), end = start + (text ? atof(text) : 60);
	uint64_t seed = first ? strtoull(first, NULL, 0) : (uint64_t)(now() * 1e6), rng = seed;
	struct progress *progress = mmap(NULL, WORKERS * sizeof(*progress), PROT_READ | PROT_WRITE,
					 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	uint64_t replays = 0, recoveries = 0, opens = 0, snapshots = 0;
	unsigned loads = 0;

	if (getenv("CASE")) {
		check_case(getenv("CASE"));
		return;
	}
	cr_assert(progress != MAP_FAILED);
	while (loads < 2 || now() < end || replays < REPLAYS_MIN) {
		struct recording *r;

		r = recording_create(seed + loads);
		fprintf(stderr, "powerloss: SEED=%llu: %zu requests, %u snapshots, %llu events\n",
			(unsigned long long)(seed + loads), atomic_load(&r->log->history.count),
			atomic_load(&r->log->snap_count), (unsigned long long)r->events);
		loads++;
		/* Both kinds of load get their share of a short run. */
		replay_all(r, progress, loads == 1 ? now() + (end - now()) / 2 : end + 2, &rng);
		for (unsigned i = 0; i < RIG_SNAPS; i++)
			snapshots += r->snaps[i].there;
		recording_destroy(r);
		replays = recoveries = opens = 0;
		for (unsigned w = 0; w < WORKERS; w++) {
			replays += atomic_load(&progress[w].replays);
			recoveries += atomic_load(&progress[w].recoveries);
			opens += atomic_load(&progress[w].opens);
		}
	}
	fprintf(stderr,
		"powerloss: %u loads with %llu snapshots, %llu replays, of these %llu in the recovery "
		"from another power loss or a death, in %.1f s\n",
		loads, (unsigned long long)snapshots, (unsigned long long)replays,
		(unsigned long long)recoveries, now() - start);
	cr_expect_gt(snapshots, 0);
	munmap(progress, WORKERS * sizeof(*progress));
}
