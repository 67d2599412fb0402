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
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "engine/io/io_record.h"
#include "tests/lib/random.h"
#include "tests/sim/life.h"

#define STORE_STEPS 20000u
#define EPOCH_STEPS 600u /* at most, of one process */
#define HANG        240  /* seconds for one operation */

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

/* --- one process --- */

static void make_store(void)
{
	life_make(NULL);
}

static void check_all_heads(void)
{
	for (uint32_t i = 0; i < LIFE_DISKS; i++)
		if (world->disk[i].there)
			life_check_head(i, true);
}

/* Nothing may be left of what is deleted, in files, rows and blocks. */
static void end_store(void)
{
	life_let_go();
	check_all_heads();
	life_close();
	life_sound(NULL, true);
	life_open(NULL);
	life_attach_all();
	life_check_lists();
	check_all_heads();
	life_close();
	world->ended = true;
}

static void live(void)
{
	uint64_t until = world->steps + life_pick(EPOCH_STEPS);
	bool last = world->steps >= world->goal;

	world->may_die = false;
	if (!last && life_chance(10)) /* in the open and the recovery, too */
		life_die_within(life_pick(20000));
	if (life_chance(8))
		life_sound(NULL, false);
	life_open(NULL);
	life_attach_all();
	if (world->died) {
		snprintf(world->doing, sizeof(world->doing), "recovery");
		life_recover();
	}
	world->died = false;
	if (!last && life_chance(2))
		life_die_within(life_pick(200000));
	if (last) {
		end_store();
		return;
	}
	while (world->steps < until) {
		alarm(HANG);
		life_step();
	}
	life_quiet();
	life_close();
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
	world->size_max = LIFE_SIZE_MAX;
	world->mortal = true;
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

/* Of all stores. */
struct sum {
	uint64_t steps, kills, epochs, compared, exported, resumed, restored, cancelled, pairs,
		refused, folds, punches, counts[LIFE_COUNTS];
};

static void add(struct sum *sum)
{
	sum->steps += world->steps;
	sum->kills += world->kills;
	sum->epochs += world->epoch;
	sum->compared += world->compared;
	sum->exported += world->exported;
	sum->resumed += world->resumed;
	sum->restored += world->restored;
	sum->cancelled += world->cancelled;
	sum->pairs += world->pairs;
	sum->refused += world->refused;
	sum->folds += world->folds;
	sum->punches += world->punches;
	for (size_t i = 0; i < LIFE_COUNTS; i++)
		sum->counts[i] += world->counts[i];
}

/* P4, P5, P6; T25-T30; DL-*, FO-*, EX-*, IP-*, FT-* */
Test(sim_life, every_snapshot_keeps_its_content_whatever_happens, .timeout = 14400)
{
	const char *text = getenv("VMIMG_TEST_SECONDS"), *first = getenv("SEED");
	double start = now(), seconds = text ? strtod(text, NULL) : 10;
	uint64_t seed = first ? strtoull(first, NULL, 0) : (uint64_t)(now() * 1e6);
	struct sum sum = {0};
	uint64_t goal = getenv("STEPS")  ? strtoull(getenv("STEPS"), NULL, 0)
			: seconds >= 600 ? 1000000
					 : 0;
	unsigned stores = 0;

	world = mmap(NULL, sizeof(*world), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
		     0);
	cr_assert(world != MAP_FAILED);
	while (goal ? sum.steps < goal : !stores || now() - start < seconds) {
		uint64_t most = goal ? goal - sum.steps : 4000;

		run_store(seed + stores, most < STORE_STEPS ? most : STORE_STEPS);
		stores++;
		add(&sum);
		fprintf(stderr, "life: %llu steps, %llu kills, %.0f s\n",
			(unsigned long long)sum.steps, (unsigned long long)sum.kills,
			now() - start);
	}
	fprintf(stderr,
		"life: SEED=%llu: %u stores, %llu steps, %llu kills, %llu reopens, %llu sectors "
		"compared, %.1f s\n",
		(unsigned long long)seed, stores, (unsigned long long)sum.steps,
		(unsigned long long)sum.kills, (unsigned long long)sum.epochs,
		(unsigned long long)sum.compared, now() - start);
	fprintf(stderr,
		"life: %llu exports, %llu gone on with, %llu restored; %llu jobs cancelled; %llu "
		"pairs, %llu refused\n",
		(unsigned long long)sum.exported, (unsigned long long)sum.resumed,
		(unsigned long long)sum.restored, (unsigned long long)sum.cancelled,
		(unsigned long long)sum.pairs, (unsigned long long)sum.refused);
	fprintf(stderr, "life: %llu folds, %llu punches\n", (unsigned long long)sum.folds,
		(unsigned long long)sum.punches);
	for (size_t i = 0; i < life_op_count(); i++)
		fprintf(stderr, "life: %s %llu\n", life_op_name(i),
			(unsigned long long)life_op_times(sum.counts, i));
	cr_expect_gt(sum.kills, 0u);
	if (sum.steps >= 20000) /* one in some hundred steps */
		cr_expect_gt(sum.punches, 0u);
	munmap(world, sizeof(*world));
}
