/* SPDX-License-Identifier: MIT */
/*
 * life.c - the whole life of a store at random: all operations on snapshots, with writes in flight,
 * against a model (life.h) that keeps every snapshot's content. Folds go on beside everything.
 *
 * A store lives through STORE_STEPS steps (requests and operations), in many processes one after the
 * other: each opens it, goes on from where the model is, and ends by a clean close or by SIGKILL, at a
 * random moment or in the middle of an operation; the journals in shared memory outlive it. In the
 * end everything that keeps anything is deleted in a random order, and nothing may be left of it.
 *
 * Environment: VMIMG_TEST_SECONDS; STEPS for so many instead (a million from ten minutes on); SEED of the
 * first store. Background threads make two runs of a seed alike, not the same. A failure leaves the
 * store where its message says.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "engine/fold.h"
#include "engine/io_record.h"
#include "fsck/fsck.h"
#include "tests/lib/random.h"
#include "tests/sim/life.h"

#define STORE_STEPS 20000u
#define EPOCH_STEPS 600u /* at most, of one process */
#define HANG        240  /* seconds for one operation */

static struct vmimg_error err;

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

/* --- death --- */

static void *killer_main(void *arg)
{
	usleep((useconds_t)(uintptr_t)arg);
	kill(getpid(), SIGKILL);
	return NULL;
}

/* This process will not live longer than that. */
static void die_within(uint32_t us)
{
	pthread_t thread;

	if (world->may_die)
		return;
	world->may_die = true;
	life_must(pthread_create(&thread, NULL, killer_main, (void *)(uintptr_t)us) == 0,
		  "no thread");
	pthread_detach(thread);
}

/* --- opening and closing --- */

static void pick_options(struct vmimg_options *o)
{
	static const uint64_t bounds[] = {0, 0, 300, 3000};
	static const uint64_t rates[] = {0, UINT64_MAX, 4 << 20, UINT64_MAX};

	memset(o, 0, sizeof(*o));
	o->size = sizeof(*o);
	o->buffered = life_chance(2);
	o->standby = life_chance(2);
	o->map_bound = bounds[life_pick(4)];
	o->log_bound = life_chance(3) ? 600 << 10 : 0;
	o->map_memory = life_chance(3) ? 1 << 20 : 0;
	o->fold_rate = rates[life_pick(4)];
	o->seal_rate = UINT64_MAX;
}

/* The kernel may still be ending the last requests of the one that died. */
static void open_service(void)
{
	struct vmimg_options options;
	double end = now() + 60;
	int r;

	pick_options(&options);
	snprintf(world->doing, sizeof(world->doing), "open");
	while ((r = vmimg_open(world->store, &options, &err, &life.svc)) == -EBUSY && now() < end)
		usleep(1000);
	life_must(r == 0, "open: %d, %s", r, err.message);
	r = vmimg_queue_create(life.svc, 64, &err, &life.queue);
	life_must(r == 0, "queue: %d, %s", r, err.message);
}

static void close_service(void)
{
	int r;

	snprintf(world->doing, sizeof(world->doing), "close");
	for (uint32_t i = 0; i < LIFE_DISKS; i++)
		if (life.disk[i])
			life_detach(i);
	r = vmimg_queue_destroy(life.queue);
	life_must(r == 0, "destroy the queue: %d", r);
	r = vmimg_close(life.svc);
	life_must(r == 0, "close: %d", r);
}

static void init_slots(void)
{
	memset(&life, 0, sizeof(life));
	for (uint32_t i = 0; i < LIFE_WRITES; i++) {
		life.slot[i].buf = malloc(LIFE_WRITE * LIFE_UNIT);
		life.slot[i].iov = malloc(sizeof(*life.slot[i].iov));
		life_must(life.slot[i].buf && life.slot[i].iov, "no memory");
	}
}

/* --- making the store --- */

/* An image whose every sector is of one write, here and there. */
static void make_image(const char *path, uint64_t size, uint32_t state)
{
	uint32_t *unit = world->state[state].unit;
	uint8_t buf[LIFE_UNIT];
	FILE *f = fopen(path, "we");

	life_must(f != NULL, "%s: cannot be made", path);
	for (uint32_t i = 0; i < life_units(size); i++) {
		if (i % 64 == 0)
			world->number++;
		unit[i] = i / 64 % 3 ? world->number : 0;
		life_fill(buf, unit[i], (uint64_t)i * LIFE_UNIT, LIFE_UNIT);
		life_must(fwrite(buf, LIFE_UNIT, 1, f) == 1, "%s: cannot be written", path);
	}
	life_must(fclose(f) == 0, "%s: cannot be written", path);
}

static void make_disk(uint32_t i, const char *vm, const char *name, uint64_t size, uint32_t bits,
		      const char *from)
{
	struct life_disk *d = &world->disk[i];
	struct vmimg_disk_spec spec = {.size_of = sizeof(spec), .size = size, .block_bits = bits};
	char raw[160], qcow2[160];
	int r;

	*d = (struct life_disk){.size = size, .state = life_state_new()};
	snprintf(d->vm, sizeof(d->vm), "%s", vm);
	snprintf(d->name, sizeof(d->name), "%s", name);
	snprintf(raw, sizeof(raw), "%s/%s.raw", world->dir, name);
	snprintf(qcow2, sizeof(qcow2), "%s/%s.qcow2", world->dir, name);
	if (from) {
		struct vmimg_convert how = {.dst_format = "qcow2", .compressed = life_chance(2)};

		make_image(raw, size, d->state);
		spec.from = raw;
		spec.format = from;
		spec.in_place = life_chance(2);
		if (!strcmp(from, "qcow2")) {
			r = vmimg_image_convert(raw, qcow2, &how, &err);
			life_must(r == 0, "%s: %d, %s", qcow2, r, err.message);
			spec.from = qcow2;
		}
	}
	r = vmimg_disk_create(life.svc, life_disk_name(i), &spec, &err);
	life_must(r == 0, "make %s: %d, %s", life_disk_name(i), r, err.message);
	d->there = true;
}

static void make_store(void)
{
	static const char *const vms[] = {"a", "b"};
	int r = vmimg_store_init(world->store, &err);

	life_must(r == 0, "init: %d, %s", r, err.message);
	init_slots();
	open_service();
	life_must(!vmimg_define_collection(life.svc, "c", NULL, 0, NULL, &err), "%s", err.message);
	world->group[0].there = true;
	strcpy(world->group[0].name, "c");
	for (int i = 0; i < 2; i++) {
		life_must(!vmimg_vm_create(life.svc, vms[i], &err), "%s", err.message);
		life_must(!vmimg_add_member(life.svc, vms[i], "c", &err), "%s", err.message);
	}
	make_disk(0, "a", "d0", 17 << 20, 12, NULL);
	make_disk(1, "a", "d1", (1 << 20) + 5 * 512, 12 + life_pick(5), "raw");
	make_disk(2, "b", "d2", 3 << 20, 16, NULL);
	make_disk(3, "b", "d3", 2 << 20, 12, "qcow2");
	close_service();
}

/* --- steps --- */

enum { STEP_WRITE, STEP_FLUSH, STEP_HEAD, STEP_SNAP, STEP_TURN, STEP_OPS };

static const struct {
	const char *name;
	void (*run)(void);
	uint32_t weight;
} ops[] = {
	{"snapshot", life_snapshot, 30}, {"delete", life_delete, 24},    {"grow", life_resize, 4},
	{"folds", life_folds, 8},        {"reattach", life_reattach, 4},
};
#define OPS (sizeof(ops) / sizeof(ops[0]))

static void one_operation(void)
{
	uint32_t sum = 0, x;

	for (size_t i = 0; i < OPS; i++)
		sum += ops[i].weight;
	x = life_pick(sum);
	for (size_t i = 0; i < OPS; i++) {
		if (x < ops[i].weight) {
			if (life_chance(12))
				die_within(life_pick(6000));
			ops[i].run();
			world->counts[STEP_OPS + i]++;
			return;
		}
		x -= ops[i].weight;
	}
}

static void step(void)
{
	uint32_t what = life_pick(100);
	int i;

	world->doing[0] = 0;
	if (what < 64) {
		life_begin_write();
		world->counts[STEP_WRITE]++;
		return;
	}
	world->steps++;
	if (what < 70) {
		life_flush();
		world->counts[STEP_FLUSH]++;
	} else if (what < 80) {
		i = life_some_disk();
		if (i >= 0)
			life_check_head((uint32_t)i, false);
		world->counts[STEP_HEAD]++;
	} else if (what < 86) {
		i = life_some_snap();
		if (i >= 0)
			life_check_snap(&world->snap[i], false);
		world->counts[STEP_SNAP]++;
	} else if (what < 95) {
		life_turn(life_chance(16) ? 2000000 : 0);
		world->counts[STEP_TURN]++;
	} else {
		one_operation();
	}
}

/* --- the end of a store --- */

static void note_finding(void *arg, const struct fsck_finding *f)
{
	bool leaks_too = *(bool *)arg;

	if (f->severity == FSCK_CORRUPT || (leaks_too && f->severity == FSCK_LEAK))
		life_fail("check: %s: %s: %s", f->rule, f->where, f->message);
}

static void expect_sound(bool leaks_too)
{
	struct fsck_summary sum = {0};
	struct fmt_error why = {""};
	double end = now() + 60;
	struct eng_io *io;
	int r = eng_io_posix_create(&io);

	snprintf(world->doing, sizeof(world->doing), "check");
	life_must(r == 0, "no machine");
	while ((r = fsck_run(io, world->store, note_finding, &leaks_too, &why, &sum)) == -EBUSY &&
	       now() < end)
		usleep(1000);
	life_must(r == 0, "check: %d, %s", r, why.text);
	eng_io_destroy(io);
}

/* Layers of all disks that are no base. */
static uint32_t count_layers(uint32_t *most)
{
	struct eng_catalog *cat = life.svc->store->catalog;
	struct cat_disk *disks = NULL;
	uint32_t count = 0;
	size_t n = 0;

	*most = 0;
	life_must(eng_catalog_list_disks(cat, NULL, &disks, &n) == 0, "cannot list the disks");
	for (size_t i = 0; i < n; i++) {
		struct cat_layer *rows = NULL;
		size_t layers = 0;

		life_must(eng_catalog_list_layers(cat, &disks[i].id, &rows, &layers) == 0,
			  "cannot list the layers");
		free(rows);
		count += (uint32_t)layers;
		*most = layers > *most ? (uint32_t)layers : *most;
	}
	free(disks);
	return count;
}

/* Left in peace, a disk comes to its base, what was folded, and its head. */
static void wait_for_folds(void)
{
	double end = now() + 120;
	uint32_t most;

	snprintf(world->doing, sizeof(world->doing), "fold everything");
	eng_folder_set_rate(life.svc->store->folder, 0);
	while (count_layers(&most), most > 3) {
		life_must(now() < end, "folds have not come to an end: %u layers of a disk", most);
		life_turn(2000000);
	}
}

static void end_store(void)
{
	while (life_some_snap() >= 0)
		life_delete();
	life_quiet();
	wait_for_folds();
	for (uint32_t i = 0; i < LIFE_DISKS; i++)
		if (world->disk[i].there)
			life_check_head(i, true);
	close_service();
	expect_sound(true);
	open_service();
	life_attach_all();
	life_check_lists();
	for (uint32_t i = 0; i < LIFE_DISKS; i++)
		if (world->disk[i].there)
			life_check_head(i, true);
	close_service();
	world->ended = true;
}

/* --- one process --- */

static void live(void)
{
	uint64_t until = world->steps + life_pick(EPOCH_STEPS);
	bool last = world->steps >= world->goal;

	init_slots();
	world->may_die = false;
	if (!last && life_chance(10)) /* in the open and the recovery, too */
		die_within(life_pick(20000));
	if (life_chance(8))
		expect_sound(false);
	open_service();
	life_attach_all();
	if (world->died) {
		snprintf(world->doing, sizeof(world->doing), "recovery");
		life_recover();
	}
	world->died = false;
	if (!last && life_chance(2))
		die_within(life_pick(200000));
	if (last) {
		end_store();
		return;
	}
	while (world->steps < until) {
		alarm(HANG);
		step();
	}
	life_quiet();
	close_service();
	life_must(world->op.kind == LIFE_NONE, "an operation is left over");
}

/* False: @world->why says what is wrong. */
static bool run_process(void (*body)(void))
{
	int status;
	pid_t pid;

	fflush(NULL);
	pid = fork();
	cr_assert_geq(pid, 0);
	if (pid == 0) {
		alarm(HANG);
		body();
		_exit(0);
	}
	cr_assert_eq(waitpid(pid, &status, 0), pid);
	world->epoch++;
	if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
		return true;
	if (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL && world->may_die) {
		world->died = true;
		world->kills++;
		return true;
	}
	if (!world->why[0])
		snprintf(world->why, sizeof(world->why), "ended with status %#x%s", status,
			 WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM ? ": it hung" : "");
	return false;
}

/* --- stores --- */

static void start_world(uint64_t seed, uint64_t goal)
{
	const char *tmp = getenv("TMPDIR");

	memset(world, 0, sizeof(*world));
	world->seed = seed;
	world->rng = seed;
	world->goal = goal;
	/* Memory for speed; one store in four lies on a real file system, with direct I/O. */
	snprintf(world->dir, sizeof(world->dir), "%s/vmimg-life-XXXXXX",
		 seed % 4 || !tmp || strlen(tmp) > 60 ? "/dev/shm" : tmp);
	cr_assert_not_null(mkdtemp(world->dir));
	snprintf(world->store, sizeof(world->store), "%s/store", world->dir);
}

static void run_store(uint64_t seed, uint64_t goal)
{
	bool ok;

	start_world(seed, goal);
	ok = run_process(make_store);
	while (ok && !world->ended)
		ok = run_process(live);
	cr_assert(ok, "SEED=%llu, step %llu, process %u (%s): %s; kept in %s",
		  (unsigned long long)seed, (unsigned long long)world->steps, world->epoch,
		  world->doing, world->why, world->dir);
	cr_assert_eq(eng_record_remove_tree(world->dir), 0);
}

/* P4, P5, P6; T25-T30; DL-*, FO-* */
Test(sim_life, every_snapshot_keeps_its_content_whatever_happens, .timeout = 14400)
{
	const char *text = getenv("VMIMG_TEST_SECONDS"), *first = getenv("SEED");
	double start = now(), seconds = text ? strtod(text, NULL) : 10;
	uint64_t seed = first ? strtoull(first, NULL, 0) : (uint64_t)(now() * 1e6);
	uint64_t steps = 0, kills = 0, compared = 0, counts[32] = {0};
	uint64_t goal = getenv("STEPS")  ? strtoull(getenv("STEPS"), NULL, 0)
			: seconds >= 600 ? 1000000
					 : 0;
	unsigned stores = 0;

	world = mmap(NULL, sizeof(*world), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
		     0);
	cr_assert(world != MAP_FAILED);
	while (goal ? steps < goal : !stores || now() - start < seconds) {
		uint64_t most = goal ? goal - steps : 4000;

		run_store(seed + stores, most < STORE_STEPS ? most : STORE_STEPS);
		stores++;
		steps += world->steps;
		kills += world->kills;
		compared += world->compared;
		for (size_t i = 0; i < 32; i++)
			counts[i] += world->counts[i];
		fprintf(stderr, "life: %llu steps, %.0f s\n", (unsigned long long)steps,
			now() - start);
	}
	fprintf(stderr,
		"life: SEED=%llu: %u stores, %llu steps, %llu kills, %llu sectors compared, %.1f s\n",
		(unsigned long long)seed, stores, (unsigned long long)steps,
		(unsigned long long)kills, (unsigned long long)compared, now() - start);
	for (size_t i = 0; i < OPS; i++)
		fprintf(stderr, "life: %s %llu\n", ops[i].name,
			(unsigned long long)counts[STEP_OPS + i]);
	cr_expect_gt(kills, 0u);
	munmap(world, sizeof(*world));
}
