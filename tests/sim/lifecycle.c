/* SPDX-License-Identifier: MIT */
/*
 * lifecycle.c - snapshots deleted and chains folded, in any order, under I/O: against a model that
 * keeps what every snapshot holds, block by block. Prints its seed; SEED takes it back.
 * tests/run: -j1
 */
#include "engine/fold/fold.h"
#include "fsck/fsck.h"
#include "tests/lib/random.h"
#include "tests/unit/engine_store.h"

#include <dirent.h>

#define SIZE   (32u << 20) /* two regions */
#define BLOCKS (SIZE / BLOCK)
#define SHOTS  24

struct model {
	uint32_t now[BLOCKS];
	struct {
		char name[16];
		bool there;
		uint32_t held[BLOCKS];
	} shot[SHOTS];
	uint32_t writes, shots;
};

static struct model *model;
static uint64_t seed;

static uint32_t pick(uint32_t below)
{
	return (uint32_t)(test_random(&seed) % below);
}

static void take_seed(void)
{
	const char *given = getenv("SEED");

	seed = given ? strtoull(given, NULL, 0) : eng_io_now_ns(machine);
	fprintf(stderr, "SEED=%llu\n", (unsigned long long)seed);
}

static uint64_t punches;

static void use_folder(void)
{
	eng_folder_set_rate(store->folder, 0);
	eng_folder_set_punch_run(store->folder, 2 * BLOCK);
}

static void note_punches(void)
{
	struct eng_folder_stats stats;

	eng_folder_stats(store->folder, &stats);
	punches += stats.punches;
}

static void start_model(void)
{
	model = calloc(1, sizeof(*model));
	must(model != NULL);
	use_folder();
}

static void write_some(void)
{
	uint32_t n = 1 + pick(16), at = pick(8) ? pick(600) : pick(BLOCKS - 16);

	if (pick(8) == 0) {
		must(do_op(0, ENG_DISCARD, 0, (uint64_t)at * BLOCK, n * BLOCK) == 0);
		memset(&model->now[at], 0, n * sizeof(model->now[0]));
		return;
	}
	model->writes++;
	must(do_write(0, model->writes, (uint64_t)at * BLOCK, n * BLOCK) == 0);
	for (uint32_t i = 0; i < n; i++)
		model->now[at + i] = model->writes;
}

static void compare(struct eng_disk *which, const uint32_t *want, uint32_t from, uint32_t count)
{
	uint8_t *buf = aligned((size_t)count * BLOCK), *block = aligned(BLOCK);
	int r;

	r = read_into(which, buf, (uint64_t)from * BLOCK, (uint64_t)count * BLOCK);
	cr_assert_eq(r, 0, "block %u: %s", from, strerror(-r));
	for (uint32_t i = 0; i < count; i++) {
		fill(block, want[from + i], (uint64_t)(from + i) * BLOCK, BLOCK);
		cr_assert(!memcmp(block, buf + (size_t)i * BLOCK, BLOCK),
			  "block %u is not write %u", from + i, want[from + i]);
	}
	free(buf);
	free(block);
}

static void check_head(void)
{
	uint32_t from = pick(4) ? pick(600) : pick(BLOCKS - 64);

	compare(disk[0], model->now, from, 64);
}

static void check_shot(uint32_t i, uint32_t from, uint32_t count)
{
	struct eng_disk *view;
	char path[64];

	snprintf(path, sizeof(path), "c@%s/a/d0", model->shot[i].name);
	must(eng_store_attach(store, queue[1], path, ENG_ATTACH_READ_ONLY, &err, &view) == 0);
	compare(view, model->shot[i].held, from, count);
	must(eng_store_detach(view) == 0);
}

static void take_shot(void)
{
	uint32_t i = pick(SHOTS);

	if (model->shot[i].there)
		return;
	snprintf(model->shot[i].name, sizeof(model->shot[i].name), "s%u", model->shots++);
	must(snapshot(model->shot[i].name) == 0);
	memcpy(model->shot[i].held, model->now, sizeof(model->now));
	model->shot[i].there = true;
}

struct deletion {
	pthread_t thread;
	const char *name;
	_Atomic bool done;
	int result;
};

static void *deletion_main(void *arg)
{
	struct deletion *d = arg;
	struct cat_job none = {.state = 0};
	bool marked;

	d->result = eng_store_delete_snapshot(store, "c", d->name, &none, &marked, &err);
	atomic_store(&d->done, true);
	return NULL;
}

static void delete_shot(uint32_t i)
{
	struct deletion d = {.name = model->shot[i].name};

	must(pthread_create(&d.thread, NULL, deletion_main, &d) == 0);
	turn_until(atomic_load(&d.done));
	pthread_join(d.thread, NULL);
	must(d.result == 0);
	model->shot[i].there = false;
}

static void note_finding(void *arg, const struct fsck_finding *f)
{
	(void)arg;
	cr_expect_neq(f->severity, FSCK_CORRUPT, "%s: %s: %s", f->rule, f->where, f->message);
}

static void expect_sound(void)
{
	struct fsck_summary sum = {0};

	must(fsck_run(machine, dir, note_finding, NULL, &err, &sum) == 0);
	cr_expect_eq(sum.corruptions, 0u);
}

static void reopen(bool look)
{
	note_punches();
	detach(0);
	close_store();
	if (look)
		expect_sound();
	open_store();
	use_folder();
	attach(0, 0);
}

static unsigned count_files(void)
{
	char path[256];
	struct dirent *e;
	unsigned n = 0;
	DIR *d;

	snprintf(path, sizeof(path), "%s/layers", dir);
	d = opendir(path);
	must(d != NULL);
	while ((e = readdir(d)))
		n += strstr(e->d_name, ".vmo") != NULL;
	closedir(d);
	return n;
}

static void step(void)
{
	uint32_t what = pick(100), i = pick(SHOTS);

	if (what < 60)
		write_some();
	else if (what < 66)
		must(do_flush(0) == 0);
	else if (what < 76)
		check_head();
	else if (what < 84)
		take_shot();
	else if (what < 91 && model->shot[i].there)
		delete_shot(i);
	else if (what < 97 && model->shot[i].there)
		check_shot(i, pick(600), 64);
	else if (what == 99 && pick(6) == 0)
		reopen(pick(2));
	else
		turn_for(2 * MS);
}

/* T25, T27, T28, P4, P6; FO-1..FO-6, DL-1..DL-4 */
Test(sim_lifecycle, every_snapshot_keeps_its_content_whatever_is_deleted, .timeout = 240)
{
	const char *given = getenv("VMIMG_TEST_SECONDS");
	double seconds = given ? strtod(given, NULL) : 10;
	uint64_t end;

	begin_in("/dev/shm");
	options.no_folds = false;
	take_seed();
	options.fold_peace_ns = pick(2) ? 20 * MS : 0;
	open_store();
	make_collection("c", "a");
	make_disk(0, SIZE, 0);
	attach(0, 0);
	start_model();
	end = eng_io_now_ns(machine) + (uint64_t)(seconds * (double)SECOND);
	while (eng_io_now_ns(machine) < end)
		step();
	for (uint32_t i = 0; i < SHOTS; i++)
		if (model->shot[i].there)
			check_shot(i, 0, 2048);
	for (uint32_t i = 0; i < SHOTS; i++)
		if (model->shot[i].there)
			delete_shot(i);
	compare(disk[0], model->now, 0, BLOCKS);
	/* Left in peace, everything is folded: into the base, and there is the head. */
	turn_until(count_files() <= 1);
	compare(disk[0], model->now, 0, BLOCKS);
	reopen(true);
	compare(disk[0], model->now, 0, BLOCKS);
	note_punches();
	detach(0);
	close_store();
	expect_sound();
	finish();
	fprintf(stderr, "lifecycle: %lu punches\n", punches);
	if (seconds >= 60) /* two in a second of a quiet machine */
		cr_expect_gt(punches, 0u);
}

Test(sim_lifecycle, the_largest_is_left_until_it_pays)
{
	const uint64_t big_below[] = {1000, 10, 10}, big_above[] = {10, 10, 1000},
		       enough[] = {1000, 200, 60}, between[] = {10, 1000, 10};
	size_t first = 9, count = 9;

	cr_expect(eng_fold_pick(big_below, 3, true, &first, &count));
	cr_expect_eq(first, 1);
	cr_expect_eq(count, 2);
	cr_expect(eng_fold_pick(big_above, 3, true, &first, &count));
	cr_expect_eq(first, 0);
	cr_expect_eq(count, 2);
	cr_expect(eng_fold_pick(enough, 3, true, &first, &count));
	cr_expect_eq(count, 3);
	cr_expect_not(eng_fold_pick(between, 3, true, &first, &count));
	cr_expect(eng_fold_pick(between, 3, false, &first, &count));
	cr_expect_eq(count, 3);
	cr_expect_not(eng_fold_pick(enough, 1, false, &first, &count));
}
