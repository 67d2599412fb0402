/* SPDX-License-Identifier: MIT */
/*
 * kill9.c - the death of the process (P4, P1, P2; T19, T20). A child opens the store and loads it,
 * with snapshots under way, and writes what it was told into memory that it shares with us; we kill it
 * at a random moment (in flight, in its open and recovery, in its close), open the store at once
 * and compare: nothing acknowledged is lost, snapshots whose job completed are whole and consistent,
 * no other ones are there. Then the next round goes on with the same store.
 *
 * Environment: VMIMG_TEST_SECONDS (shared by the tests of this file), SEED for one other than the
 * clock's.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <xxhash.h>

#include "engine/io/io_record.h"
#include "engine/store/overlay.h"
#include "fsck/fsck.h"
#include "tests/crash/rig.h"

#define TESTS        2
#define ROUNDS_MIN   50
#define STORE_ROUNDS 25 /* then a new store: every snapshot keeps a megabyte a disk */
#define OPS          20000
#define KNOWN_MAX    (STORE_ROUNDS * RIG_SNAPS)

/* A snapshot that was found whole: it never changes again. */
struct known {
	char name[24];
	uint64_t hash[RIG_DISKS];
};

struct bed {
	uint64_t seed, rng;
	bool buffered;
	struct eng_io *io;
	char dir[64], store[80], shm[64];
	struct rig_log *log;
	struct eng_store_options options;
	uint8_t *base[HIST_DISKS], *now[HIST_DISKS]; /* before the round, and found after it */
	struct known *known;
	unsigned known_count;
	uint64_t next_id;
	unsigned round, acked, snapshots, killed_early, busy;
};

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static double seconds(void)
{
	const char *text = getenv("VMIMG_TEST_SECONDS");

	return (text ? atof(text) : 60) / TESTS;
}

/* --- the child --- */

static void child(struct bed *bed, uint64_t seed, bool load)
{
	struct fmt_error err = {{0}};
	struct eng_store *store;
	struct rig rig = {
		.io = bed->io,
		.dir = bed->store,
		.options = bed->options,
		.log = bed->log,
		.seed = seed,
		.depth = 8 + (unsigned)(seed % 9),
		.pause_us = 12000,
		.extras = 0,
		.deletes = seed >> 25 & 1 ? 60 : 0,
		.flushes = (unsigned)(seed >> 8 & 31),
		.fuas = (unsigned)(seed >> 16 & 31),
		.files = seed >> 24 & 1 ? 4 : 0,
		.detaches = 8,
	};

	rig.options.fold_rate = UINT64_MAX;
	rig.options.fold_peace_ns = seed >> 26 & 1 ? 10000000 : 0;
	if (!load) { /* only the recovery, which is killed too */
		if (eng_store_open(bed->io, bed->store, &bed->options, &err, &store) == 0)
			eng_store_close(store);
		_exit(0);
	}
	for (unsigned i = 1;; i++) { /* opens and closes on the way */
		rig.ops = (size_t)(i * (200 + test_random(&seed) % 2000));
		if (rig.ops > OPS)
			rig.ops = OPS;
		rig.seed = test_random(&seed);
		if (!rig_run(&rig))
			_exit(1);
		if (rig.ops == OPS)
			_exit(0);
	}
}

/* Runs a child and kills it; its last requests may still be under way when this returns. */
static pid_t run_child(struct bed *bed, bool load)
{
	uint64_t seed = test_random(&bed->rng), x = test_random(&bed->rng);
	unsigned us = x % 8 == 0 ? (unsigned)(x >> 8) % 8000 : (unsigned)(x >> 8) % 250000;
	pid_t pid = fork();

	cr_assert_geq(pid, 0);
	if (pid == 0)
		child(bed, seed, load);
	usleep(load ? us : us % 12000);
	kill(pid, SIGKILL);
	return pid;
}

static void wait_child(struct bed *bed, pid_t pid)
{
	int status;

	cr_assert_eq(waitpid(pid, &status, 0), pid);
	if (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL)
		return;
	cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0,
		  "seed %llu round %u: the child ended with status %#x before it was killed: %s",
		  (unsigned long long)bed->seed, bed->round, status, bed->log->why);
}

/* --- the checks --- */

#define CHECK(bed, cond, ...)                                                                      \
	do {                                                                                       \
		char text_[1024];                                                                  \
		if (!(cond)) {                                                                     \
			snprintf(text_, sizeof(text_), __VA_ARGS__);                               \
			cr_assert(false, "SEED=%llu round %u (%s, %s): %s",                        \
				  (unsigned long long)(bed)->seed, (bed)->round, #cond,            \
				  (bed)->store, text_);                                            \
		}                                                                                  \
	} while (0)

static void check_disks(struct bed *bed, struct rig_view *view, const struct hist_index *ix)
{
	struct fmt_error err = {{0}};
	char why[HIST_WHY] = "";

	for (unsigned d = 0; d < RIG_DISKS; d++) {
		int r = rig_view_read(view, rig_disk_name(d), bed->now[d], rig_size(d), &err);

		CHECK(bed, r == 0, "%s: %d, %s", rig_disk_name(d), r, err.text);
		CHECK(bed, hist_check_disk(ix, d, bed->now[d], HIST_KILLED, HIST_NEVER, NULL, why),
		      "%s: %s", rig_disk_name(d), why);
	}
}

static void read_snapshot(struct bed *bed, struct rig_view *view, const char *name,
			  uint8_t *data[HIST_DISKS])
{
	struct fmt_error err = {{0}};

	for (unsigned d = 0; d < RIG_DISKS; d++) {
		int r;

		data[d] = rig_is_member(d) ? malloc(rig_size(d)) : NULL;
		if (!data[d])
			continue;
		r = rig_view_read(view, rig_snap_disk(name, d), data[d], rig_size(d), &err);
		CHECK(bed, r == 0, "%s of %s: %d, %s", rig_disk_name(d), name, r, err.text);
	}
}

static void check_new(struct bed *bed, struct rig_view *view, const struct hist_index *ix,
		      const struct rig_snap *s)
{
	struct known *k = &bed->known[bed->known_count++];
	uint8_t *data[HIST_DISKS] = {0};
	uint64_t done = atomic_load(&s->done);
	char why[HIST_WHY] = "";

	CHECK(bed, bed->known_count <= KNOWN_MAX, "too many snapshots");
	read_snapshot(bed, view, s->name, data);
	CHECK(bed, hist_check_cut(ix, data, s->called, done ? done : HIST_NEVER, NULL, why),
	      "snapshot %s: %s", s->name, why);
	snprintf(k->name, sizeof(k->name), "%s", s->name);
	for (unsigned d = 0; d < RIG_DISKS; d++)
		k->hash[d] = data[d] ? XXH3_64bits(data[d], rig_size(d)) : 0;
	for (unsigned d = 0; d < RIG_DISKS; d++)
		free(data[d]);
	bed->snapshots++;
}

static void check_known(struct bed *bed, struct rig_view *view, const struct known *k)
{
	uint8_t *data[HIST_DISKS] = {0};

	read_snapshot(bed, view, k->name, data);
	for (unsigned d = 0; d < RIG_DISKS; d++) {
		CHECK(bed, !data[d] || XXH3_64bits(data[d], rig_size(d)) == k->hash[d],
		      "snapshot %s: %s has changed since it was made", k->name, rig_disk_name(d));
		free(data[d]);
	}
}

static bool is_known(const struct bed *bed, const char *name)
{
	for (unsigned i = 0; i < bed->known_count; i++)
		if (!strcmp(bed->known[i].name, name))
			return true;
	return false;
}

/* P2: the completed ones are there, the failed ones are not, and nothing else is. */
static void check_snapshots(struct bed *bed, struct rig_view *view, const struct hist_index *ix)
{
	struct eng_catalog *cat = view->store->catalog;
	unsigned n = atomic_load(&bed->log->snap_count), old = bed->known_count, seen = 0;
	struct cat_snapshot *rows = NULL;
	struct cat_job job;
	size_t count = 0;

	CHECK(bed, eng_catalog_list_snapshots(cat, NULL, &rows, &count) == 0, "listing");
	for (size_t i = 0; i < count; i++)
		CHECK(bed, rows[i].state == CAT_SNAPSHOT_COMPLETE,
		      "%s is in state %u after recovery", rows[i].name, rows[i].state);
	for (unsigned i = 0; i < n; i++) {
		const struct rig_snap *s = &bed->log->snaps[i];
		bool there = false;

		for (size_t j = 0; j < count; j++)
			there = there || !strcmp(rows[j].name, s->name);
		seen += there;
		CHECK(bed, there || !atomic_load(&s->done) || atomic_load(&s->deleting),
		      "%s completed and is gone", s->name);
		CHECK(bed, !there || !atomic_load(&s->deleted), "%s was deleted and is there",
		      s->name);
		CHECK(bed, !there || !atomic_load(&s->failed), "%s failed and is there", s->name);
		if (eng_catalog_get_job(cat, &s->job, &job) == 0)
			CHECK(bed,
			      job.state == (there || atomic_load(&s->deleting) ? 7
					    : atomic_load(&s->failed)          ? job.state
									       : 10) &&
				      job.ended_ns && (job.state == 7 || job.error_text[0]),
			      "job of %s (%s) is in state %u, error %u \"%s\"", s->name,
			      there ? "there" : "not there", job.state, job.error_code,
			      job.error_text);
		if (there)
			check_new(bed, view, ix, s);
	}
	for (size_t i = 0; i < count; i++)
		CHECK(bed, is_known(bed, rows[i].name), "snapshot %s: nobody made it",
		      rows[i].name);
	CHECK(bed, count == old + seen, "%zu snapshots, expected %u of before and %u of now", count,
	      old, seen);
	for (unsigned i = 0; old && i < 2; i++)
		check_known(bed, view, &bed->known[test_random(&bed->rng) % old]);
	free(rows);
}

static void note_finding(void *arg, const struct fsck_finding *f)
{
	char *text = arg;

	if (f->severity == FSCK_CORRUPT && !text[0])
		snprintf(text, 512, "%s: %s: %s", f->rule, f->where, f->message);
}

static void check_sound(struct bed *bed)
{
	struct fsck_summary sum = {0};
	struct fmt_error err = {{0}};
	char first[512] = "";
	int r = fsck_run(bed->io, bed->store, note_finding, first, &err, &sum);

	CHECK(bed, r == 0 && !sum.corruptions, "check: %d %s, %llu corruptions, %s", r, err.text,
	      (unsigned long long)sum.corruptions, first);
}

static void swap_base(struct bed *bed)
{
	for (unsigned d = 0; d < RIG_DISKS; d++) {
		uint8_t *p = bed->base[d];

		bed->base[d] = bed->now[d];
		bed->now[d] = p;
	}
}

/* --- rounds --- */

static void new_store(struct bed *bed)
{
	struct fmt_error err = {{0}};
	uint64_t x = test_random(&bed->rng);

	if (bed->round)
		cr_assert_eq(eng_record_remove_tree(bed->store), 0);
	CHECK(bed, rig_make_store(bed->io, bed->store, x, &err) == 0, "making the store: %s",
	      err.text);
	for (unsigned d = 0; d < RIG_DISKS; d++)
		memset(bed->base[d], 0, rig_size(d));
	bed->known_count = 0;
}

static void pick_options(struct bed *bed)
{
	static const uint64_t bounds[] = {0, 120, 600, 2000};
	uint64_t x = test_random(&bed->rng);

	bed->options = (struct eng_store_options){
		.buffered = bed->buffered,
		.standby = x & 1,
		.map_bound = bounds[x >> 1 & 3],
		.log_bound = x >> 3 & 1 ? 600 << 10 : 0,
	};
}

static void one_round(struct bed *bed)
{
	struct fmt_error err = {{0}};
	struct hist_index *ix;
	struct rig_view view;
	pid_t pid[2];
	int n = 0, r;

	rig_log_reset(bed->log, OPS, bed->next_id);
	pick_options(bed);
	pid[n++] = run_child(bed, true);
	/* One time in four the recovery dies too. */
	if (test_random(&bed->rng) % 4 == 0)
		pid[n++] = run_child(bed, false);
	r = rig_view_open(bed->io, bed->store, &bed->options, &view, &err);
	while (n-- > 0)
		wait_child(bed, pid[n]);
	CHECK(bed, r == 0, "open after the kill: %d, %s", r, err.text);
	ix = hist_index_create(&bed->log->history, bed->base);
	check_disks(bed, &view, ix);
	check_snapshots(bed, &view, ix);
	hist_index_destroy(ix);
	r = rig_view_close(&view);
	CHECK(bed, r == 0, "close: %d", r);
	if (test_random(&bed->rng) % 4 == 0)
		check_sound(bed);
	/* Names of snapshots hold the first id, so that it changes even where nothing was written. */
	bed->next_id += atomic_load(&bed->log->history.count) + 1;
	bed->acked += (unsigned)atomic_load(&bed->log->history.count);
	bed->killed_early += atomic_load(&bed->log->history.count) == 0;
	swap_base(bed);
}

static void bed_init(struct bed *bed, bool buffered)
{
	const char *tmp = getenv("TMPDIR"), *seed = getenv("SEED");

	memset(bed, 0, sizeof(*bed));
	bed->seed = seed ? strtoull(seed, NULL, 0) : (uint64_t)(now() * 1e6);
	bed->rng = bed->seed;
	bed->buffered = buffered;
	bed->next_id = 1;
	snprintf(bed->dir, sizeof(bed->dir), "%s/vmimg-kill9-XXXXXX",
		 tmp && strlen(tmp) < 40 ? tmp : "/tmp");
	cr_assert_not_null(mkdtemp(bed->dir));
	snprintf(bed->store, sizeof(bed->store), "%s/store", bed->dir);
	snprintf(bed->shm, sizeof(bed->shm), "/dev/shm/vmimg-kill9-XXXXXX");
	cr_assert_not_null(mkdtemp(bed->shm));
	cr_assert_eq(eng_io_posix_create(&bed->io), 0);
	cr_assert_eq(eng_io_posix_set_shm_dir(bed->io, bed->shm), 0);
	bed->log = mmap(NULL, rig_log_size(OPS), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
			-1, 0);
	cr_assert(bed->log != MAP_FAILED);
	bed->known = calloc(KNOWN_MAX, sizeof(*bed->known));
	for (unsigned d = 0; d < RIG_DISKS; d++) {
		bed->base[d] = calloc(1, rig_size(d));
		bed->now[d] = calloc(1, rig_size(d));
	}
}

static void bed_fini(struct bed *bed)
{
	cr_expect_eq(eng_record_remove_tree(bed->dir), 0);
	cr_expect_eq(eng_record_remove_tree(bed->shm), 0);
	munmap(bed->log, rig_log_size(OPS));
	for (unsigned d = 0; d < RIG_DISKS; d++) {
		free(bed->base[d]);
		free(bed->now[d]);
	}
	free(bed->known);
	eng_io_destroy(bed->io);
}

static void run(bool buffered)
{
	double start = now(), budget = seconds();
	struct bed bed;

	bed_init(&bed, buffered);
	fprintf(stderr, "kill9 %s: SEED=%llu\n", buffered ? "buffered" : "direct",
		(unsigned long long)bed.seed);
	for (; bed.round < ROUNDS_MIN || now() - start < budget; bed.round++) {
		if (bed.round % STORE_ROUNDS == 0)
			new_store(&bed);
		one_round(&bed);
	}
	fprintf(stderr,
		"kill9 %s: %u rounds in %.1f s, %u requests, %u snapshots, %u killed before the first "
		"request\n",
		buffered ? "buffered" : "direct", bed.round, now() - start, bed.acked,
		bed.snapshots, bed.killed_early);
	cr_expect_gt(bed.acked, 1000, "the load did next to nothing");
	cr_expect_gt(bed.snapshots, 0, "no snapshot was made");
	bed_fini(&bed);
}

/* T19, T20, P4, P1, P2 */
Test(crash_kill9, nothing_acknowledged_is_lost_with_direct_io)
{
	run(false);
}

/* T19, T20, P4, P1, P2 */
Test(crash_kill9, nothing_acknowledged_is_lost_through_the_page_cache)
{
	run(true);
}

static int try_lock(struct eng_io *io, const char *store)
{
	struct eng_file *file;
	char path[112];
	int r;

	snprintf(path, sizeof(path), "%s/lock", store);
	r = eng_io_open(io, path, ENG_OPEN_WRITE, &file);
	cr_assert_eq(r, 0);
	r = eng_io_lock(io, file);
	eng_io_close(io, file);
	return r;
}

/* The kernel lets go of a ring's files some time after its end. */
static int lock_in_the_end(struct eng_io *io, const char *store)
{
	double end = now() + 10;
	int r;

	while ((r = try_lock(io, store)) < 0 && now() < end)
		usleep(1000);
	return r;
}

/* T19, IO-7: when a process dies its descriptors go first, its requests may go on for a while */
Test(crash_kill9, the_lock_outlives_its_descriptor_in_every_ring)
{
	struct fmt_error err = {{0}};
	struct eng_store *store;
	struct eng_queue *queue;
	struct eng_batch *batch;
	struct bed bed;

	bed_init(&bed, false);
	cr_assert_eq(rig_make_store(bed.io, bed.store, 0, &err), 0, "%s", err.text);
	for (int i = 0; i < 2; i++) {
		cr_assert_eq(eng_store_open(bed.io, bed.store, NULL, &err, &store), 0, "%s",
			     err.text);
		if (i == 0)
			cr_assert_eq(eng_queue_create(bed.io, 8, store->lock_file, &queue), 0);
		else
			cr_assert_eq(eng_batch_create(store, &batch), 0);
		eng_io_close(bed.io, store->lock_file);
		store->lock_file = NULL;
		cr_expect_eq(try_lock(bed.io, bed.store), -EWOULDBLOCK, "%s",
			     i ? "a coordinator's ring" : "a queue's ring");
		if (i == 0)
			cr_assert_eq(eng_queue_destroy(queue), 0);
		else
			eng_batch_destroy(batch);
		cr_expect_eq(lock_in_the_end(bed.io, bed.store), 0);
		cr_assert_eq(eng_store_close(store), 0);
	}
	bed_fini(&bed);
}
