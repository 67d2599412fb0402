/* SPDX-License-Identifier: MIT */
/*
 * successor.c - a process dies at any event of an operation, the next one finds what was written and
 * never synced, recovers, and then the power fails: in the recovery, at its end, after a clean close.
 * What the successor took from what it read must not go with it (LH-13, IO-6, T22, T27, RV-*): the checker
 * finds nothing, every snapshot that is there is whole, none has left a boundary, the heads hold what was
 * flushed. Two disks; the store lies in memory. With VMIMG_TEST_SECONDS of 60 on at each event, else at
 * some of them.
 */
#include "tests/sim/sound.h"

TestSuite(sim_successor, .timeout = 600);

#define DISKS  2u
#define LOSSES 4u
#define SIZE   (1 << 20)

/* Snapshots that the operation leaves alone. */
static bool keeps_base, keeps_s;

/* Block 0 holds 3 in "s" and in the heads, 2 in "base"; block 1 holds 4 in the heads, flushed. */
static void make_chains(void)
{
	begin(DISKS, SIZE);
	for (unsigned i = 0; i < DISKS; i++)
		attach(i, i);
	for (unsigned i = 0; i < DISKS; i++)
		must(do_write(i, 2, 0, 2 * BLOCK) == 0);
	must(snapshot("base") == 0);
	for (unsigned i = 0; i < DISKS; i++)
		must(do_write(i, 3, 0, BLOCK) == 0);
	must(snapshot("s") == 0);
	for (unsigned i = 0; i < DISKS; i++) {
		must(do_write(i, 4, BLOCK, BLOCK) == 0);
		detach(i);
	}
	record_from_here();
}

static bool is_there(const char *name)
{
	struct cat_snapshot row;
	int r = eng_catalog_get_snapshot(store->catalog, "c", name, &row);

	must(r == 0 || r == -ENOENT);
	must(r == -ENOENT || row.state == CAT_SNAPSHOT_COMPLETE);
	return r == 0;
}

static void expect_view(const char *name, unsigned i, uint64_t first, uint64_t second)
{
	must(view_holds(name, i, first, 0, BLOCK));
	must(view_holds(name, i, second, BLOCK, BLOCK));
}

/* The whole of it, with "new" made in the operation, or without; and the store goes on. */
static void expect_whole(void)
{
	must(!keeps_base || is_there("base"));
	must(!keeps_s || is_there("s"));
	for (unsigned i = 0; i < DISKS; i++)
		attach(i, i);
	for (unsigned i = 0; i < DISKS; i++) {
		must(holds(i, 3, 0, BLOCK) && holds(i, 4, BLOCK, BLOCK));
		if (is_there("base"))
			expect_view("base", i, 2, 2);
		if (is_there("s"))
			expect_view("s", i, 3, 2);
		if (is_there("new"))
			expect_view("new", i, 3, 4);
	}
	must(snapshot("after") == 0);
	for (unsigned i = 0; i < DISKS; i++) {
		expect_view("after", i, 3, 4);
		detach(i);
	}
}

/* --- dying and losing power --- */

static void note_damage(void *arg, const struct fsck_finding *f)
{
	if (f->severity == FSCK_CORRUPT)
		fprintf(stderr, "%s: %s: %s: %s\n", (const char *)arg, f->rule, f->where,
			f->message);
}

/* In a child, which must() ends. */
static void check(const char *when)
{
	struct fsck_summary sum = {0};

	must(fsck_run(machine, dir, note_damage, (void *)(uintptr_t)when, &err, &sum) == 0);
	must(sum.corruptions == 0);
}

struct end {
	uint64_t index; /* of the process */
	uint64_t seed;
};

/* A machine that has just booted, on which the store lies in @tree below the root. */
static void boot(const char *tree, const char *memory, uint64_t number)
{
	char path[160];
	uint8_t id[16];

	memset(id, (int)(1 + number % 200), sizeof(id));
	snprintf(path, sizeof(path), "%s/%s", root, memory);
	must(mkdir(path, 0700) == 0);
	must(eng_io_posix_create(&machine) == 0);
	must(eng_io_posix_set_shm_dir(machine, path) == 0);
	eng_io_posix_set_boot_id(machine, id);
	snprintf(dir, sizeof(dir), "%s/%s", root, tree);
}

static void clear(const char *name)
{
	char path[160];

	snprintf(path, sizeof(path), "%s/%s", root, name);
	must(eng_record_remove_tree(path) == 0);
}

static void lose_power_at(uint64_t index, uint64_t seed)
{
	char tree[160];

	snprintf(tree, sizeof(tree), "%s/lost", root);
	must(eng_record_crash(recording, index, seed, tree) == 0);
	boot("lost", "lost-memory", index);
	use_io(NULL);
	check("after the loss");
	open_store();
	expect_whole();
	close_store();
	check("after the recovery");
	eng_fault_destroy(fault);
	eng_io_destroy(machine);
	clear("lost");
	clear("lost-memory");
}

/* The successor; then the power fails in what it did. */
static void succeed(void *arg)
{
	const struct end *end = arg;
	char tree[160];
	uint64_t from, opened, closed, at;

	boot("next", "next-memory", end->index);
	snprintf(tree, sizeof(tree), "%s/next", root);
	must(eng_record_kill(recording, end->index, end->seed, machine, tree) == 0);
	use_io(eng_record_io(recording));
	from = eng_record_index(recording);
	open_store();
	opened = eng_record_index(recording);
	close_store();
	closed = eng_record_index(recording);
	for (uint64_t i = 0; i < LOSSES; i++) {
		at = i == 0 ? opened : i == 1 ? closed : from + i * 7919 % (closed - from + 1);
		lose_power_at(at, end->seed * LOSSES + i);
	}
}

/* Dies at events from @first on, at every @step-th where there is little time. */
static void die_everywhere(uint64_t first, uint64_t step)
{
	const char *given = getenv("VMIMG_TEST_SECONDS");
	uint64_t last = eng_record_index(recording), deaths = 0;

	if (given && strtod(given, NULL) >= 60)
		step = 1;
	options.no_folds = true;
	for (uint64_t index = first; index <= last; index += step, deaths++) {
		struct end end = {index, index * 31};
		int status = in_process(succeed, &end);

		cr_assert_eq(status, 0, "dead at event %lu of %lu: status %d", index - first,
			     last - first, status);
		clear("next");
		clear("next-memory");
	}
	fprintf(stderr, "successor: %lu deaths, %lu losses of power\n", deaths, deaths * LOSSES);
	record_end();
}

/* T27, RV-7, LH-13 */
Test(sim_successor, of_a_deletion)
{
	uint64_t first;

	make_chains();
	keeps_base = true;
	first = eng_record_index(recording);
	must(delete_snapshot("s") == 0);
	close_store();
	die_everywhere(first, 1);
}

/* T22, RV-4, RV-5, LH-13 */
Test(sim_successor, of_a_snapshot)
{
	uint64_t first;

	make_chains();
	keeps_base = keeps_s = true;
	first = eng_record_index(recording);
	for (unsigned i = 0; i < DISKS; i++)
		attach(i, i);
	must(snapshot("new") == 0);
	for (unsigned i = 0; i < DISKS; i++)
		detach(i);
	close_store();
	die_everywhere(first, 2);
}

/* FO-13, SL-1, LH-13: all that a deletion leaves is folded, into the base too, and sealed. */
Test(sim_successor, of_a_fold)
{
	uint64_t first;

	make_chains();
	must(delete_snapshot("s") == 0);
	close_store();
	options.no_folds = false;
	options.fold_peace_ns = MS;
	first = eng_record_index(recording);
	open_store();
	must(delete_snapshot("base") == 0);
	turn_until(count_layers() == 2 * DISKS);
	turn_for(20 * MS);
	close_store();
	die_everywhere(first, 4);
}
