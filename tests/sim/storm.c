/* SPDX-License-Identifier: MIT */
/*
 * storm.c - conflicting operations on one service, from several threads at once: create, delete, convert,
 * hold, prune, revert, clone, flatten, export, import, verify, compare, grow, rename, list, on a handful of
 * names that are given again and again, with folds behind them, the disks attached in every other round.
 * Each ends with an error that says why, or right: what it made is compared bit by bit (storm.h). After each
 * storm everything that is there is read; in the end the store is checked. Whoever reads or writes a file
 * takes a nap now and then, so that the others come in between.
 *
 * Environment: VMIMG_TEST_SECONDS; SEED; STORM_THREADS; STORM_ERRORS: prints every refusal.
 */
#include "tests/sim/storm.h"

#include <criterion/criterion.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "api/service.h"
#include "engine/io/io_fault.h"
#include "tests/lib/random.h"

#define THREADS_MAX 16u
#define STORM_S     1.5 /* of one */

static struct eng_io *posix;
static struct eng_fault *fault;
static struct storm_thread threads[THREADS_MAX + 1]; /* the last: the test's own */
static unsigned nthreads = 5;
static _Atomic bool calm, attached;

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

/* --- between storms --- */

static void ok(struct storm_thread *t, int64_t code)
{
	if (code != 0)
		storm_fail(t, "%lld: %s", (long long)code, t->err.message);
}

static void open_store(struct storm_thread *t)
{
	const struct vmimg_options options = {
		.size = sizeof(options),
		.buffered = 1,
		.fold_rate = UINT64_MAX,
		.standby = (uint32_t)storm_pick(t, 2),
	};
	char dir[300];

	snprintf(dir, sizeof(dir), "%s/store", storm_dir);
	snprintf(t->doing, sizeof(t->doing), "open");
	ok(t, api_open(eng_fault_io(fault), dir, &options, &t->err, &storm_svc));
}

static void make_store(struct storm_thread *t)
{
	const struct vmimg_disk_spec spec = {.size_of = sizeof(spec), .size = STORM_SIZE};
	char dir[300];

	snprintf(dir, sizeof(dir), "%s/store", storm_dir);
	snprintf(t->doing, sizeof(t->doing), "make the store");
	ok(t, vmimg_store_init(dir, &t->err));
	open_store(t);
	ok(t, vmimg_define_collection(storm_svc, "c", NULL, 0, NULL, &t->err));
	ok(t, vmimg_vm_create(storm_svc, "a", &t->err));
	ok(t, vmimg_vm_create(storm_svc, "b", &t->err));
	for (unsigned d = 0; d < STORM_DISKS; d++)
		ok(t, vmimg_disk_create(storm_svc, storm_disks[d], &spec, &t->err));
	ok(t, vmimg_add_member(storm_svc, "a", "c", &t->err));
	ok(t, vmimg_add_member(storm_svc, "b", "c", &t->err));
}

/* The disks hold @was and are to hold @version. */
static void write_version(struct storm_thread *t, uint32_t was, uint32_t version)
{
	uint8_t *buf = aligned_alloc(STORM_BLOCK, STORM_BLOCK);
	struct vmimg_queue *queue;

	snprintf(t->doing, sizeof(t->doing), "write version %u over %u", version, was);
	ok(t, vmimg_queue_create(storm_svc, 16, &t->err, &queue));
	for (unsigned d = 0; d < STORM_DISKS; d++) {
		struct vmimg_disk *disk = NULL;

		ok(t, vmimg_disk_attach(queue, storm_disks[d], 0, &t->err, &disk));
		for (unsigned b = 0; b < STORM_BLOCKS; b++) {
			if (was && !storm_differs(was, version, d, b))
				continue;
			storm_block(version, d, b, buf);
			ok(t, storm_transfer(t, queue, disk, VMIMG_WRITE, buf, STORM_BLOCK,
					     (uint64_t)b * STORM_BLOCK));
		}
		ok(t, vmimg_disk_detach(disk));
	}
	ok(t, vmimg_queue_destroy(queue));
	free(buf);
}

/* Every snapshot is whole, and what it was; the names that have been made are among them. */
static void check_snapshots(struct storm_thread *t)
{
	char *json = NULL;
	json_t *list, *one;
	size_t i;

	snprintf(t->doing, sizeof(t->doing), "check");
	ok(t, vmimg_list(storm_svc, VMIMG_KIND_SNAPSHOT, NULL, &t->err, &json));
	list = json_loads(json, 0, NULL);
	vmimg_free(json);
	json_array_foreach (list, i, one) {
		const char *name = json_string_value(json_object_get(one, "snapshot"));

		snprintf(t->doing, sizeof(t->doing), "check %s", name);
		if (!storm_read_snapshot(t, storm_svc, name))
			storm_fail(t, "cannot be read: %s", t->err.message);
		/* The disks are four; names are not used up. */
		if (i >= 8) {
			vmimg_release_snapshot(storm_svc, name, "tag", NULL);
			ok(t, vmimg_destroy_snapshot(storm_svc, name, NULL, &t->err));
		}
	}
	json_decref(list);
}

/* --- the storm --- */

static void *storm_main(void *arg)
{
	struct storm_thread *t = arg;

	while (!atomic_load(&calm))
		storm_operation(t);
	return NULL;
}

/* A guest beside them: its disks are attached, and it writes what is there already. */
static void *guest_main(void *arg)
{
	struct storm_thread *t = arg;
	uint32_t version = storm_version_newest();
	uint8_t *buf = aligned_alloc(STORM_BLOCK, STORM_BLOCK);
	struct vmimg_disk *disks[STORM_DISKS];
	struct vmimg_completion done;
	struct vmimg_queue *queue;

	snprintf(t->doing, sizeof(t->doing), "be a guest");
	ok(t, vmimg_queue_create(storm_svc, 16, &t->err, &queue));
	for (unsigned d = 0; d < STORM_DISKS; d++)
		ok(t, vmimg_disk_attach(queue, storm_disks[d], 0, &t->err, &disks[d]));
	atomic_store(&attached, true);
	while (!atomic_load(&calm)) {
		unsigned d = (unsigned)storm_pick(t, STORM_DISKS);
		unsigned b = (unsigned)storm_pick(t, STORM_BLOCKS);

		storm_block(version, d, b, buf);
		ok(t, storm_transfer(t, queue, disks[d], VMIMG_WRITE, buf, STORM_BLOCK,
				     (uint64_t)b * STORM_BLOCK));
		if (storm_pick(t, 8) == 0)
			ok(t, storm_transfer(t, queue, disks[d], VMIMG_FLUSH, NULL, 0, 0));
		vmimg_queue_poll(queue, &done, 1, 2000000);
	}
	for (unsigned d = 0; d < STORM_DISKS; d++)
		ok(t, vmimg_disk_detach(disks[d]));
	ok(t, vmimg_queue_destroy(queue));
	free(buf);
	return NULL;
}

static void blow(struct storm_thread *own, bool guest)
{
	pthread_t ids[THREADS_MAX], id;

	atomic_store(&calm, false);
	atomic_store(&attached, false);
	/* Before the others: they would go back to another version than it writes. */
	if (guest)
		pthread_create(&id, NULL, guest_main, own);
	while (guest && !atomic_load(&attached))
		usleep(1000);
	for (unsigned i = 0; i < nthreads; i++)
		pthread_create(&ids[i], NULL, storm_main, &threads[i]);
	usleep((useconds_t)(STORM_S * 1e6));
	atomic_store(&calm, true);
	for (unsigned i = 0; i < nthreads; i++)
		pthread_join(ids[i], NULL);
	if (guest)
		pthread_join(id, NULL);
}

static void check_store(struct storm_thread *t)
{
	char dir[300], *json = NULL;

	snprintf(t->doing, sizeof(t->doing), "close");
	ok(t, vmimg_close(storm_svc));
	snprintf(dir, sizeof(dir), "%s/store", storm_dir);
	if (vmimg_check(dir, &t->err, &json) != VMIMG_CHECK_SOUND)
		storm_fail(t, "the store is not sound: %s", json);
	vmimg_free(json);
}

/* Any thread. */
static void nap(void *arg)
{
	static _Atomic uint64_t count;
	uint64_t random = storm_seed + atomic_fetch_add(&count, 1);

	(void)arg;
	random = test_random(&random);
	if (random % 64 == 0)
		usleep((useconds_t)(random >> 8) % 20000);
}

static void set_up(void)
{
	const struct eng_fault_rule naps = {
		.ops = (1u << ENG_FAULT_OPS) - 1,
		.sticky = true,
		.strike = nap,
	};
	const char *tmp = getenv("TMPDIR"), *text = getenv("SEED"), *n = getenv("STORM_THREADS");

	storm_seed = text ? strtoull(text, NULL, 0) : (uint64_t)time(NULL);
	if (n)
		nthreads = (unsigned)atoi(n) % (THREADS_MAX + 1);
	snprintf(storm_dir, sizeof(storm_dir), "%s/vmimg-storm-XXXXXX", tmp ? tmp : "/dev/shm");
	cr_assert_not_null(mkdtemp(storm_dir));
	cr_assert_eq(eng_io_posix_create(&posix), 0);
	cr_assert_eq(eng_fault_create(posix, &fault), 0);
	cr_assert_geq(eng_fault_add(fault, &naps), 0);
	for (unsigned i = 0; i <= THREADS_MAX; i++) {
		threads[i].number = i;
		threads[i].random = storm_seed * 1000 + i;
		snprintf(threads[i].dir, sizeof(threads[i].dir), "%.200s/out%u", storm_dir, i);
		snprintf(threads[i].other_dir, sizeof(threads[i].other_dir), "%.200s/other%u",
			 storm_dir, i);
	}
}

Test(storm, whoever_conflicts_is_refused_or_right, .timeout = 40000)
{
	const char *text = getenv("VMIMG_TEST_SECONDS");
	struct storm_thread *t = &threads[THREADS_MAX];
	uint64_t calls = 0, done = 0;
	double end;
	unsigned round = 0;

	set_up();
	end = now() + (text ? atof(text) : 10) - 3;
	make_store(t);
	write_version(t, 0, storm_version_make(&t->random));
	do {
		uint32_t was;

		blow(t, round % 2);
		check_snapshots(t);
		snprintf(t->doing, sizeof(t->doing), "read the heads");
		was = storm_read(t, storm_svc, "");
		if (!was)
			storm_fail(t, "%s", t->err.message);
		write_version(t, was, storm_version_make(&t->random));
		if (++round % 8 == 0) {
			check_store(t);
			open_store(t);
		}
	} while (now() < end && storm_version_newest() + 1 < STORM_VERSIONS);
	check_snapshots(t);
	check_store(t);
	for (unsigned i = 0; i < nthreads; i++) {
		calls += threads[i].calls;
		done += threads[i].done;
	}
	fprintf(stderr, "storm: %u storms, %llu calls, %llu of them done, SEED=%llu\n", round,
		(unsigned long long)calls, (unsigned long long)done,
		(unsigned long long)storm_seed);
	cr_expect_gt(done, calls / 10);
	eng_fault_destroy(fault);
	eng_io_destroy(posix);
	storm_remove_tree(storm_dir);
}
