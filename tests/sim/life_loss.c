/* SPDX-License-Identifier: MIT */
/*
 * life_loss.c - the death of the host in any step of a snapshot's life (P2, P4, P5): the life of
 * life.h, on small disks, runs on the recording I/O, catalog and all. At many moments the world is
 * copied; it tells all that may be left until the next request or operation begins. Then the log is
 * cut there at random events, what was not synced survives or not by chance, and the store that is
 * left is opened under another boot id: the operation under way has happened or not, whole; every
 * snapshot is there with its content, every other one is not; every sector of a head holds what was
 * flushed or something later; points still tell every change; an export that had its name is whole, and
 * restores in another store; the checker finds leaks at worst; and the store goes on.
 *
 * At other moments it is the process that dies: its successor reads what was never synced, recovers, and
 * goes on for a while; then the power fails, in the recovery or later, and takes what nobody has synced.
 *
 * Environment: VMIMG_TEST_SECONDS; REPLAYS for so many instead (10,000 from ten minutes on); SEED of
 * the first load. A load has background threads: a seed gives the same mix, not the same log.
 */
#include <criterion/criterion.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "engine/io/io_record_log.h"
#include "tests/lib/random.h"
#include "tests/sim/life.h"

#define LOAD_STEPS   600u
#define MARKS        300u
#define REPLAYS_LOAD 256u /* of one load */
#define WORKERS      2u
#define HANG         120 /* seconds for one replay */
#define DEATHS       16u /* of so many cuts one is no loss of power */
#define LIVES        20u /* steps of a successor */
#define LOSSES       4u  /* of power, in or after one death */

/* A copy of the world, good for cuts from @from to @to. */
struct mark {
	uint64_t from, to;
	void *copy;
};

struct cut {
	uint64_t index, seed;
	const struct mark *mark;
};

/* Shared with the test. */
struct told {
	_Atomic uint64_t replays, operations, restored, deaths;
	uint64_t counts[LIFE_COUNTS], punches; /* of the loads */
	char why[1700];
};

static struct told *told;
static struct eng_io *machine; /* beneath the recorder */
static struct eng_record *rec;
static char root[64], shm[96];
static struct mark marks[MARKS];
static size_t mark_count;
static bool mark_open;
static char was[300]; /* what was going on when the power failed */

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

/* --- the load --- */

/* Each operation is marked, and a request now and then. */
static void touched(bool operation)
{
	struct mark *m = &marks[mark_count];

	if (mark_open) {
		marks[mark_count - 1].to = eng_record_index(rec);
		mark_open = false;
	}
	if (mark_count == MARKS || (!operation && !life_chance(30)))
		return;
	m->copy = malloc(life_world_size());
	life_must(m->copy != NULL, "no memory for a copy of the world");
	life_world_copy(m->copy);
	m->from = eng_record_index(rec);
	m->to = m->from;
	mark_count++;
	mark_open = true;
}

static struct eng_io *new_machine(const char *memory)
{
	struct eng_io *io = NULL;

	if (mkdir(memory, 0700) < 0 && access(memory, W_OK) < 0)
		life_fail("%s: cannot be made", memory);
	life_must(eng_io_posix_create(&io) == 0 && eng_io_posix_set_shm_dir(io, memory) == 0,
		  "no machine");
	return io;
}

static void start_world(uint64_t seed)
{
	memset(world, 0, sizeof(*world));
	world->seed = seed;
	world->rng = seed;
	world->size_max = 1 << 20;
	world->loss = true;
	snprintf(world->dir, sizeof(world->dir), "%s", root);
	snprintf(world->store, sizeof(world->store), "%s/store", root);
}

static void run_load(uint64_t seed)
{
	machine = new_machine(shm);
	start_world(seed);
	life_make(machine);
	life_must(eng_record_create(machine, root, &rec) == 0, "no recorder");
	life_touched = touched;
	while (world->steps < LOAD_STEPS) {
		uint64_t until = world->steps + 200;

		life_open(eng_record_io(rec));
		life_attach_all();
		while (world->steps < until)
			life_step();
		life_quiet();
		life_close();
	}
	touched(false);
	life_touched = NULL;
	/* What the load left when nothing went wrong, by the same rules. */
	life_open(machine);
	life_attach_all();
	life_recover();
	life_close();
}

/* --- cuts --- */

struct hot { /* events around which things go wrong: syncs, names */
	uint64_t *event;
	size_t count;
};

static int by_value(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

static void find_hot(struct hot *hot)
{
	size_t room = rec->name_count * 2;

	for (size_t i = 0; i < rec->node_count; i++)
		room += rec->nodes[i]->sync_count * 2;
	hot->count = 0;
	hot->event = calloc(room + 1, sizeof(*hot->event));
	life_must(hot->event != NULL, "no memory");
	for (size_t i = 0; i < rec->node_count; i++)
		for (size_t j = 0; j < rec->nodes[i]->sync_count; j++) {
			hot->event[hot->count++] = rec->nodes[i]->syncs[j].submit;
			hot->event[hot->count++] = rec->nodes[i]->syncs[j].complete;
		}
	for (size_t i = rec->base_count; i < rec->name_count; i++) {
		hot->event[hot->count++] = rec->names[i].submit;
		hot->event[hot->count++] = rec->names[i].complete;
	}
	qsort(hot->event, hot->count, sizeof(*hot->event), by_value);
}

/* An event of the mark's, half of the time next to a hot one. */
static uint64_t pick_event(const struct mark *m, const struct hot *hot, uint64_t *rng)
{
	uint64_t x = test_random(rng), index = m->from + x % (m->to - m->from + 1);
	size_t lo = 0, hi = hot->count;

	if (x >> 60 & 1)
		return index;
	while (lo < hi) { /* the first at or behind it */
		size_t mid = (lo + hi) / 2;

		if (hot->event[mid] < index)
			lo = mid + 1;
		else
			hi = mid;
	}
	if (lo < hot->count && hot->event[lo] <= m->to)
		index = hot->event[lo] + (x >> 56 & 1);
	return index < m->to ? index : m->to;
}

static struct cut *pick_cuts(uint64_t *rng)
{
	struct cut *cuts = calloc(REPLAYS_LOAD, sizeof(*cuts));
	struct hot hot;

	life_must(cuts && mark_count, "no memory, or no marks");
	find_hot(&hot);
	for (size_t i = 0; i < REPLAYS_LOAD; i++) {
		cuts[i].mark = &marks[test_random(rng) % mark_count];
		cuts[i].index = pick_event(cuts[i].mark, &hot, rng);
		cuts[i].seed = test_random(rng);
	}
	free(hot.event);
	qsort(cuts, REPLAYS_LOAD, sizeof(*cuts), by_value); /* by index, which comes first */
	return cuts;
}

/* --- replays --- */

static void clear(const char *path)
{
	if (access(path, F_OK) == 0 && eng_record_remove_tree(path) < 0)
		life_fail("%s: cannot be removed", path);
}

/* Another boot of the machine: other id, empty shared memory. */
static struct eng_io *boot(const char *memory, uint64_t seed)
{
	uint8_t id[16] = {1};
	struct eng_io *io;

	clear(memory);
	io = new_machine(memory);
	memcpy(id + 8, &seed, sizeof(seed));
	eng_io_posix_set_boot_id(io, id);
	return io;
}

/* The store goes on: requests, and operations of all kinds. */
static void go_on(void)
{
	uint64_t until = world->steps + 30;

	while (world->steps < until)
		life_step();
	life_snapshot();
	life_quiet();
	life_check_lists();
	for (uint32_t i = 0; i < LIFE_DISKS; i++)
		if (world->disk[i].there)
			life_check_head(i, true);
}

/* The world as it was, for a tree to come in @dir; and the machine that boots there. */
static struct eng_io *go_back(const struct cut *cut, const char *dir)
{
	char memory[128];

	life_world_restore(cut->mark->copy);
	world->rng = cut->seed;
	snprintf(was, sizeof(was), "%s", world->op.kind ? world->doing : "requests");
	clear(dir);
	snprintf(memory, sizeof(memory), "%s-shm", dir);
	snprintf(world->dir, sizeof(world->dir), "%s", dir); /* exports, too */
	snprintf(world->store, sizeof(world->store), "%s/store", dir);
	return boot(memory, cut->seed);
}

static void replay(const struct cut *cut, const char *dir)
{
	struct eng_io *io = go_back(cut, dir);
	enum life_kind kind = world->op.kind;
	uint64_t before;

	life_must(eng_record_crash(rec, cut->index, cut->seed, dir) == 0, "no tree");
	world->died = true;
	if (life_chance(2))
		life_sound(io, false);
	world->died = false;
	life_open(io);
	life_attach_all();
	life_recover();
	for (uint32_t i = life_pick(3); i > 0; i--)
		life_diff();
	before = world->restored;
	if (world->backup.count && life_chance(3))
		life_restore();
	atomic_fetch_add(&told->restored, world->restored - before);
	if (life_chance(4))
		go_on();
	life_close();
	life_sound(io, false);
	snprintf(was, sizeof(was), "-");
	eng_io_destroy(io);
	atomic_fetch_add(&told->replays, 1);
	atomic_fetch_add(&told->operations, kind != LIFE_NONE);
}

/* --- deaths of a process --- */

/* The successor, on what the dead process left in memory and on the disk. */
static void succeed(const struct cut *cut, const char *dir)
{
	struct eng_io *io = go_back(cut, dir);
	uint64_t until;

	life_must(eng_record_kill(rec, cut->index, cut->seed, io, dir) == 0, "no tree");
	mark_count = 1;
	marks[0].copy = cut->mark->copy;
	marks[0].from = eng_record_index(rec);
	world->died = true;
	life_open(eng_record_io(rec));
	life_attach_all();
	marks[0].to = eng_record_index(rec); /* what the model does from here on is its own */
	life_recover();
	world->died = false;
	life_touched = touched;
	touched(true);
	for (until = world->steps + LIVES; world->steps < until;)
		life_step();
	life_quiet();
	life_close();
	touched(false);
	life_touched = NULL;
}

/* In a process of its own: the log has another end now. */
static void die(const struct cut *cut, const char *dir)
{
	struct mark mark = *cut->mark;
	struct cut first = {.index = cut->index, .seed = cut->seed, .mark = &mark}, next;
	uint64_t rng = cut->seed;
	char after[128], memory[136];
	struct hot hot;

	succeed(&first, dir);
	snprintf(after, sizeof(after), "%s-after", dir);
	find_hot(&hot);
	for (unsigned i = 0; i < LOSSES; i++) {
		next.mark = &marks[i % 2 ? test_random(&rng) % mark_count : 0];
		next.index = pick_event(next.mark, &hot, &rng);
		next.seed = test_random(&rng);
		alarm(HANG);
		replay(&next, after);
	}
	free(hot.event);
	clear(after);
	snprintf(memory, sizeof(memory), "%s-shm", after);
	clear(memory);
	atomic_fetch_add(&told->deaths, 1);
	_exit(0);
}

static void one_death(const struct cut *cut, const char *dir)
{
	int status;
	pid_t pid = fork();

	life_must(pid >= 0, "no process");
	if (pid == 0)
		die(cut, dir);
	life_must(waitpid(pid, &status, 0) == pid, "no child");
	life_must(WIFEXITED(status) && WEXITSTATUS(status) == 0,
		  "a successor ended with status %#x%s", status,
		  WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM ? ": it hung" : "");
}

/* Tells what is wrong, where life_fail() has left it, in memory that this process shares. */
static void tell(void)
{
	if (world->why[0] && !told->why[0])
		snprintf(told->why, sizeof(told->why), "%s%s (%s): %s", was,
			 *was ? ", power lost" : "", world->doing, world->why);
}

static void worker(const struct cut *cuts, size_t count, double end, unsigned number)
{
	struct life_world *own = mmap(NULL, sizeof(*own), PROT_READ | PROT_WRITE,
				      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char dir[96];

	life_must(own != MAP_FAILED, "no memory");
	world = own;
	snprintf(dir, sizeof(dir), "%s-tree%u", root, number);
	for (size_t i = 0; i < count && now() < end; i++) {
		alarm(HANG * (LOSSES + 1));
		if (i % DEATHS == 0)
			one_death(&cuts[i], dir);
		else
			replay(&cuts[i], dir);
	}
	alarm(0);
	clear(dir);
	snprintf(dir, sizeof(dir), "%s-tree%u-shm", root, number);
	clear(dir);
	_exit(0);
}

static void replay_all(double end, uint64_t *rng)
{
	struct cut *cuts = pick_cuts(rng);
	pid_t pid[WORKERS];
	int status;

	for (unsigned w = 0; w < WORKERS; w++) {
		size_t from = REPLAYS_LOAD * w / WORKERS, to = REPLAYS_LOAD * (w + 1) / WORKERS;

		pid[w] = fork();
		life_must(pid[w] >= 0, "no process");
		if (pid[w] == 0)
			worker(cuts + from, to - from, end, w);
	}
	for (unsigned w = 0; w < WORKERS; w++) {
		life_must(waitpid(pid[w], &status, 0) == pid[w], "no child");
		life_must(WIFEXITED(status) && WEXITSTATUS(status) == 0,
			  "a replay ended with status %#x%s", status,
			  WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM ? ": it hung" : "");
	}
	free(cuts);
}

/* A load and its replays, in a process of its own: what the checks find ends it. */
static void run_child(uint64_t seed, double end)
{
	uint64_t rng = seed ^ 0x10ad;

	world = mmap(NULL, sizeof(*world), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
		     0);
	if (world == MAP_FAILED)
		_exit(4);
	life_failed = tell;
	alarm(4 * HANG);
	run_load(seed);
	alarm(0);
	told->punches += world->punches;
	for (size_t i = 0; i < LIFE_COUNTS; i++)
		told->counts[i] += world->counts[i];
	replay_all(end, &rng);
	_exit(0);
}

static void one_load(uint64_t seed, double end)
{
	int status;
	pid_t pid;

	snprintf(root, sizeof(root), "/dev/shm/vmimg-loss-XXXXXX");
	cr_assert_not_null(mkdtemp(root));
	snprintf(shm, sizeof(shm), "%s-shm", root);
	fflush(NULL);
	pid = fork();
	cr_assert_geq(pid, 0);
	if (pid == 0)
		run_child(seed, end);
	cr_assert_eq(waitpid(pid, &status, 0), pid);
	cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0, "SEED=%llu: status %#x %s",
		  (unsigned long long)seed, status, told->why);
	cr_assert_eq(eng_record_remove_tree(root), 0);
	cr_assert_eq(eng_record_remove_tree(shm), 0);
}

/* P2, P4, P5, P6; T21, T22, T25-T30; DL-*, FO-*, AS-*, RP-* */
Test(sim_life_loss, a_power_loss_in_any_step_leaves_all_of_it_or_nothing, .timeout = 14400)
{
	const char *text = getenv("VMIMG_TEST_SECONDS"), *first = getenv("SEED");
	double start = now(), seconds = text ? strtod(text, NULL) : 20;
	uint64_t seed = first ? strtoull(first, NULL, 0) : (uint64_t)(now() * 1e6);
	uint64_t goal = getenv("REPLAYS") ? strtoull(getenv("REPLAYS"), NULL, 0)
			: seconds >= 600  ? 10000
					  : 0;
	unsigned loads = 0;

	told = mmap(NULL, sizeof(*told), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	cr_assert(told != MAP_FAILED);
	while (goal ? atomic_load(&told->replays) < goal : !loads || now() - start < seconds) {
		one_load(seed + loads, goal ? 1e18 : loads ? start + seconds : 1e18);
		loads++;
	}
	fprintf(stderr,
		"life_loss: SEED=%llu: %u loads, %llu replays, %llu of them in an operation, %llu "
		"exports restored, %llu deaths of a process before, %.1f s\n",
		(unsigned long long)seed, loads, (unsigned long long)atomic_load(&told->replays),
		(unsigned long long)atomic_load(&told->operations),
		(unsigned long long)atomic_load(&told->restored),
		(unsigned long long)atomic_load(&told->deaths), now() - start);
	fprintf(stderr, "life_loss: %llu punches in the loads\n",
		(unsigned long long)told->punches);
	for (size_t i = 0; i < life_op_count(); i++)
		fprintf(stderr, "life_loss: %s %llu\n", life_op_name(i),
			(unsigned long long)life_op_times(told->counts, i));
	cr_expect_gt(atomic_load(&told->operations), 0u);
	munmap(told, sizeof(*told));
}
