/* SPDX-License-Identifier: MIT */
/*
 * refpoints.c - reference points against brute force: writes, snapshots, conversions, creates, reverts,
 * deletions, folds, reopening and the death of the process, in any order. A model keeps what the disk held
 * at each point; every block that differs from it now must be told as changed (P6, T29), and while
 * the disk has not been reverted exactly those that were written are. Prints its seed; SEED takes it
 * back. The model is in shared memory: a child that dies leaves it true.
 * tests/run: -j1
 */
#include <sys/mman.h>

#include "engine/snapshot/revert.h"
#include "fsck/fsck.h"
#include "tests/lib/random.h"
#include "tests/unit/engine_refpoint.h"

#define SIZE   (16u << 20)
#define BLOCKS (SIZE / BLOCK)
#define MARKS  12

enum kind {
	NONE,
	SNAPSHOT,
	POINT,
	UNKNOWN, /* a conversion that a death cut short: one of the two */
};

struct mark {
	enum kind kind;
	char name[16];
	uint32_t held[BLOCKS];
	uint32_t number; /* of the last write before it */
	bool reverted;   /* since: what was written is not all that has changed */
};

struct model {
	uint64_t seed;
	uint32_t now[BLOCKS], written[BLOCKS]; /* write that it holds; last one to touch it */
	uint32_t writes, names;
	uint32_t asked, converted, deaths, reverts;
	struct mark marks[MARKS];
};

static struct model *model;
static uint8_t found[BLOCKS];

static uint32_t pick(uint32_t below)
{
	return (uint32_t)(test_random(&model->seed) % below);
}

static struct mark *pick_mark(enum kind kind)
{
	uint32_t from = pick(MARKS);

	for (uint32_t i = 0; i < MARKS; i++)
		if (model->marks[(from + i) % MARKS].kind == kind)
			return &model->marks[(from + i) % MARKS];
	return NULL;
}

static void write_some(void)
{
	uint32_t n = 1 + pick(pick(8) ? 8 : 200), at = pick(4) ? pick(400) : pick(BLOCKS - 200);
	bool discard = pick(10) == 0;

	model->writes++;
	must((discard ? do_op(0, ENG_DISCARD, 0, (uint64_t)at * BLOCK, n * BLOCK)
		      : do_write(0, model->writes, (uint64_t)at * BLOCK, n * BLOCK)) == 0);
	for (uint32_t i = at; i < at + n; i++) {
		model->now[i] = discard ? 0 : model->writes;
		model->written[i] = model->writes;
	}
}

static void mark_now(enum kind kind)
{
	struct mark *m = pick_mark(NONE);

	if (!m)
		return;
	snprintf(m->name, sizeof(m->name), "m%u", model->names++);
	must(rp_cut(m->name, kind == POINT) == 0);
	memcpy(m->held, model->now, sizeof(m->held));
	m->number = model->writes;
	m->reverted = false;
	m->kind = kind;
}

static void convert_one(void)
{
	struct mark *m = pick_mark(SNAPSHOT);

	if (!m)
		return;
	must(rp_convert(m->name, m->name) == 0);
	m->kind = POINT;
	model->converted++;
}

static void delete_one(void)
{
	struct mark *m = pick_mark(pick(2) ? SNAPSHOT : POINT);

	if (!m)
		return;
	must((m->kind == POINT ? rp_destroy(m->name) : rp_delete_snapshot(m->name)) == 0);
	m->kind = NONE;
}

/* What a point says, up to now or to a snapshot made after it. */
static void ask_one(void)
{
	struct mark *m = pick_mark(POINT), *to = pick(3) ? NULL : pick_mark(SNAPSHOT);
	const uint32_t *holds = to ? to->held : model->now;
	uint32_t last = to ? to->number : model->writes;
	bool exact;

	if (!m)
		return;
	exact = !m->reverted && !(to && (to->reverted || to->number < m->number));
	must(rp_changes(m->name, to ? to->name : NULL, found, BLOCKS) == 0);
	model->asked++;
	for (uint32_t b = 0; b < BLOCKS; b++) {
		uint32_t at = model->written[b];

		if (!found[b] && holds[b] != m->held[b])
			cr_assert_fail("%s to %s: block %u differs and is not told", m->name,
				       to ? to->name : "now", b);
		if (exact && !to && found[b] != (at > m->number && at <= last))
			cr_assert_fail("%s: block %u is told %s, written by %u of %u", m->name, b,
				       found[b] ? "changed" : "unchanged", at, m->number);
	}
}

static void reopen(void)
{
	detach(0);
	close_store();
	open_store();
	attach(0, 0);
}

static void revert_one(void)
{
	struct mark *m = pick_mark(SNAPSHOT);
	struct eng_revert how = {.collection = "c"};
	struct eng_revert_result done = {0};

	if (!m)
		return;
	how.name = m->name;
	detach(0);
	must(eng_store_revert(store, &how, &err, &done) == 0);
	free(done.untouched);
	attach(0, 0);
	memcpy(model->now, m->held, sizeof(model->now));
	for (uint32_t i = 0; i < MARKS; i++)
		model->marks[i].reverted = true;
	model->reverts++;
}

static void step(void)
{
	uint32_t what = pick(100);

	if (what < 55)
		write_some();
	else if (what < 62)
		mark_now(SNAPSHOT);
	else if (what < 66)
		mark_now(POINT);
	else if (what < 71)
		convert_one();
	else if (what < 77)
		delete_one();
	else if (what < 92)
		ask_one();
	else if (what < 95)
		must(do_flush(0) == 0);
	else if (what < 97)
		turn_for(20 * MS);
	else if (what == 97)
		reopen();
	else if (what == 98 && pick(3) == 0)
		revert_one();
}

/* --- death --- */

static void *convert_late(void *arg)
{
	struct mark *m = arg;
	struct rp_call call = {.name = m->name, .snapshot = m->name};

	usleep(pick(3000));
	rp_run_convert(&call);
	return NULL;
}

/* A life of its own that ends in the middle of a conversion, or of nothing. */
static void live_and_die(void *arg)
{
	pthread_t thread;
	struct mark *m;

	(void)arg;
	open_store();
	attach(0, 0);
	for (uint32_t n = pick(40); n; n--)
		step();
	m = pick_mark(SNAPSHOT);
	if (m) {
		m->kind = UNKNOWN;
		must(pthread_create(&thread, NULL, convert_late, m) == 0);
	}
	turn_for(pick(6000) * 1000);
	_exit(7);
}

/* RP-7: exactly one of the two is there. */
static void find_out(struct mark *m)
{
	struct cat_refpoint point;
	struct cat_snapshot snap;
	bool is_point = eng_catalog_get_refpoint(store->catalog, "c", m->name, &point) == 0;
	bool is_snapshot = eng_catalog_get_snapshot(store->catalog, "c", m->name, &snap) == 0;

	cr_assert(is_point != is_snapshot, "%s: point %d, snapshot %d", m->name, is_point,
		  is_snapshot);
	m->kind = is_point ? POINT : SNAPSHOT;
}

static void die_once(void)
{
	detach(0);
	close_store();
	must(in_process(live_and_die, NULL) == 7);
	open_after_death();
	attach(0, 0);
	for (uint32_t i = 0; i < MARKS; i++)
		if (model->marks[i].kind == UNKNOWN)
			find_out(&model->marks[i]);
	model->deaths++;
}

/* --- all of it --- */

static void note_finding(void *arg, const struct fsck_finding *f)
{
	(void)arg;
	cr_expect_neq(f->severity, FSCK_CORRUPT, "%s: %s: %s", f->rule, f->where, f->message);
}

static void start_model(void)
{
	const char *given = getenv("SEED");

	model = mmap(NULL, sizeof(*model), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
		     0);
	must(model != MAP_FAILED);
	model->seed = given ? strtoull(given, NULL, 0) : eng_io_now_ns(machine);
	fprintf(stderr, "SEED=%llu\n", (unsigned long long)model->seed);
}

/* T29, P6; RP-1, RP-2, RP-7, RP-8, RP-11, RP-13 */
Test(sim_refpoints, every_point_tells_all_that_has_changed, .timeout = 600)
{
	const char *given = getenv("VMIMG_TEST_SECONDS");
	double seconds = given ? strtod(given, NULL) / 2 : 10;
	struct fsck_summary sum = {0};
	uint64_t end;

	begin_in("/dev/shm");
	options.no_folds = false;
	options.fold_rate = UINT64_MAX;
	open_store();
	make_collection("c", "a");
	make_disk(0, SIZE, 0);
	attach(0, 0);
	start_model();
	end = eng_io_now_ns(machine) + (uint64_t)(seconds * (double)SECOND);
	while (eng_io_now_ns(machine) < end)
		if (pick(400) == 0)
			die_once();
		else
			step();
	for (int i = 0; i < 40; i++)
		ask_one();
	fprintf(stderr,
		"%u writes, %u answers, %u conversions, %u deaths, %u reverts, %zu layers\n",
		model->writes, model->asked, model->converted, model->deaths, model->reverts,
		rp_layers());
	cr_expect_gt(model->asked, 0u);
	detach(0);
	close_store();
	must(fsck_run(machine, dir, note_finding, NULL, &err, &sum) == 0);
	finish();
	munmap(model, sizeof(*model));
}
