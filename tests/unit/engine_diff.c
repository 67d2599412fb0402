/* SPDX-License-Identifier: MIT */
/*
 * engine_diff.c - what changed between two states of a disk, against what was written between them (DF-1
 * to DF-7): attached and detached, sealed and not, folded, after reopening and after the process's death.
 *
 * VMIMG_SEED takes back the seed that a failure prints; VMIMG_TEST_SECONDS: a quarter of it is spent.
 */
#include <time.h>

#include "engine/diff/baseline.h"
#include "engine/fold/fold.h"
#include "engine/snapshot/revert.h"
#include "tests/unit/engine_store.h"

#define SIZE   (12ull << 20)
#define BLOCKS (SIZE / BLOCK)
#define SNAPS  24u
#define NODES  1500u

/* What was written from one cut, or revert, to the next, on top of which other. The last one is now. */
struct node {
	unsigned parent; /* itself: none */
	uint8_t written[BLOCKS / 8];
};

static struct node *nodes;
static unsigned node_count, now;
static struct {
	char name[16];
	unsigned node;
} snaps[SNAPS];
static unsigned count;
static uint64_t seed, rng, next_n, made;

static uint64_t rnd(uint64_t below)
{
	rng = rng * 6364136223846793005ull + 1442695040888963407ull;
	return (rng >> 20) % below;
}

/* --- asking, on a thread of its own: the disk's worker is the test's --- */

struct asking {
	struct cat_disk disk;
	struct eng_state from, to;
	struct eng_blocks *set;
	struct fmt_error why;
	int result;
	_Atomic bool done;
};

static void *ask_main(void *arg)
{
	struct asking *a = arg;

	a->result = eng_diff(store, &a->disk, &a->from, &a->to, &a->why, &a->set);
	atomic_store(&a->done, true);
	return NULL;
}

static int run(struct asking *a)
{
	pthread_t thread;

	memset(&a->why, 0, sizeof(a->why));
	a->set = NULL;
	atomic_store(&a->done, false);
	must(pthread_create(&thread, NULL, ask_main, a) == 0);
	turn_until(atomic_load(&a->done));
	pthread_join(thread, NULL);
	if (a->result < 0)
		err = a->why;
	return a->result;
}

/* The state of snapshot @name of disk @d, now when it is NULL. */
static struct eng_state state_of(unsigned d, const char *name)
{
	struct eng_state ret = {.size = 0};
	struct cat_snapshot snap;
	struct cat_snapshot_disk *rows;
	char disk_name[8];
	size_t n;

	if (!name)
		return ret;
	snprintf(disk_name, sizeof(disk_name), "d%u", d);
	must(eng_catalog_get_snapshot(store->catalog, "c", name, &snap) == 0);
	must(eng_catalog_list_snapshot_disks(store->catalog, &snap.id, &rows, &n) == 0);
	for (size_t i = 0; i < n; i++)
		if (!strcmp(rows[i].disk_name, disk_name)) {
			ret.layer = rows[i].layer;
			ret.size = rows[i].size;
		}
	free(rows);
	return ret;
}

/* Asked again where a fold has moved a state between the look at the catalog and the call. */
static struct eng_blocks *diff_of(unsigned d, const char *from, const char *to)
{
	struct asking a = {.result = -ENOENT};
	char disk_name[8];

	snprintf(disk_name, sizeof(disk_name), "d%u", d);
	must(eng_catalog_get_disk(store->catalog, "a", disk_name, &a.disk) == 0);
	for (unsigned i = 0; i < 100 && a.result == -ENOENT; i++) {
		a.from = state_of(d, from);
		a.to = state_of(d, to);
		run(&a);
	}
	must(a.result == 0);
	return a.set;
}

/* --- one thing at a time --- */

TestSuite(engine_diff, .timeout = 900);

static void seal_all(void)
{
	struct cat_layer *rows;
	size_t n;
	bool sealed = false;

	while (!sealed) {
		turn_all();
		must(eng_catalog_list_layers(store->catalog, NULL, &rows, &n) == 0);
		sealed = true;
		for (size_t i = 0; i < n; i++)
			sealed = sealed && (rows[i].kind != FMT_KIND_OVERLAY ||
					    rows[i].state != CAT_LAYER_HARDENED);
		free(rows);
	}
}

struct expected {
	uint64_t first[8], count[8];
	unsigned n, at;
};

static int expect_next(void *arg, uint64_t first, uint64_t n)
{
	struct expected *e = arg;

	cr_assert_lt(e->at, e->n, "too many: %lu..", first);
	cr_expect_eq(first, e->first[e->at]);
	cr_expect_eq(n, e->count[e->at]);
	e->at++;
	return 0;
}

static void expect_blocks(struct eng_blocks *set, struct expected e)
{
	e.at = 0;
	cr_expect_eq(eng_blocks_each(set, 0, UINT64_MAX, expect_next, &e), 0);
	cr_expect_eq(e.at, e.n);
	eng_blocks_destroy(set);
}

/* DF-1, DF-3: from the worker's map, from the log, from the index: the same. */
Test(engine_diff, what_was_written_since_and_nothing_else)
{
	struct expected since = {.first = {3, 700}, .count = {2, 1}, .n = 2};
	struct expected later = {.first = {0, 2000}, .count = {1, 512}, .n = 2};
	struct expected both = {.first = {0, 3, 700, 2000}, .count = {1, 2, 1, 512}, .n = 4};

	begin(1, SIZE);
	attach(0, 0);
	must(do_write(0, 1, 0, 64 << 10) == 0);
	must(snapshot("s1") == 0);
	expect_blocks(diff_of(0, "s1", NULL), (struct expected){.n = 0});
	must(do_write(0, 2, 3 * BLOCK + 512, BLOCK) == 0);
	must(do_write(0, 3, 700 * BLOCK, BLOCK) == 0);
	expect_blocks(diff_of(0, "s1", NULL), since);
	must(snapshot("s2") == 0);
	must(do_op(0, ENG_DISCARD, 0, 2000 * BLOCK, 512 * BLOCK) == 0);
	must(do_write(0, 4, 0, 512) == 0);
	for (int i = 0; i < 3; i++) {
		expect_blocks(diff_of(0, "s1", "s2"), since);
		expect_blocks(diff_of(0, "s2", "s1"), since);
		expect_blocks(diff_of(0, "s2", NULL), later);
		expect_blocks(diff_of(0, "s1", NULL), both);
		expect_blocks(diff_of(0, NULL, "s1"), both);
		expect_blocks(diff_of(0, "s2", "s2"), (struct expected){.n = 0});
		if (i == 0)
			seal_all();
		else if (i == 1)
			detach(0);
	}
	close_store();
	open_store();
	expect_blocks(diff_of(0, "s1", NULL), both);
	close_store();
	finish();
}

/* DF-6 */
Test(engine_diff, what_only_the_longer_disk_has)
{
	struct expected tail = {.first = {BLOCKS + 5}, .count = {1}, .n = 1};

	begin(1, SIZE);
	attach(0, 0);
	must(do_write(0, 1, 0, BLOCK) == 0);
	must(snapshot("s1") == 0);
	detach(0);
	must(eng_store_resize_disk(store, "a", "d0", 2 * SIZE, &err) == 0);
	attach(0, 0);
	expect_blocks(diff_of(0, "s1", NULL), (struct expected){.n = 0});
	must(do_write(0, 2, SIZE + 5 * BLOCK, BLOCK) == 0);
	expect_blocks(diff_of(0, "s1", NULL), tail);
	detach(0);
	expect_blocks(diff_of(0, NULL, "s1"), tail);
	close_store();
	finish();
}

/* DF-5 */
Test(engine_diff, what_a_reference_point_saved_counts)
{
	struct asking a = {.result = 0};
	struct eng_blocks *extra;
	struct expected e = {.first = {9, 100}, .count = {1, 3}, .n = 2};

	begin(1, SIZE);
	attach(0, 0);
	must(do_write(0, 1, 0, BLOCK) == 0);
	must(snapshot("s1") == 0);
	must(do_write(0, 2, 9 * BLOCK, BLOCK) == 0);
	must(eng_blocks_create(&extra) == 0);
	must(eng_blocks_add_range(extra, 100, 3) == 0);
	a.from = state_of(0, "s1");
	a.from.extra = extra;
	must(eng_catalog_get_disk(store->catalog, "a", "d0", &a.disk) == 0);
	must(run(&a) == 0);
	expect_blocks(a.set, e);
	eng_blocks_destroy(extra);
	detach(0);
	close_store();
	finish();
}

/* DF-7: its worker would wait for itself; a layer that is gone is an error, not an empty answer. */
Test(engine_diff, an_error_where_nothing_can_be_told)
{
	struct eng_blocks *set = NULL;
	struct asking a = {.result = 0};

	begin(1, SIZE);
	attach(0, 0);
	must(snapshot("s1") == 0);
	must(eng_catalog_get_disk(store->catalog, "a", "d0", &a.disk) == 0);
	a.from = state_of(0, "s1");
	cr_expect_eq(eng_diff(store, &a.disk, &a.from, &a.to, &err, &set), -EDEADLK);
	eng_store_new_id(store, &a.from.layer);
	cr_expect_lt(run(&a), 0);
	cr_expect_null(a.set);
	detach(0);
	close_store();
	finish();
}

/* DF-7: after the process's death what was acknowledged counts, from the journal too. */
static void write_and_die(void *arg)
{
	(void)arg;
	open_store();
	attach(0, 0);
	must(do_write(0, 2, 5 * BLOCK, BLOCK) == 0);
	must(do_write(0, 3, 100 * BLOCK, 2 * BLOCK) == 0);
	must(snapshot("s2") == 0);
	must(do_write(0, 4, 300 * BLOCK, BLOCK) == 0);
	must(do_flush(0) == 0);
	must(do_op(0, ENG_WRITE_ZEROES, 0, 302 * BLOCK, BLOCK) == 0);
	die(NULL);
}

Test(engine_diff, after_the_death_of_the_process)
{
	struct expected both = {.first = {5, 100, 300, 302}, .count = {1, 2, 1, 1}, .n = 4};
	struct expected last = {.first = {300, 302}, .count = {1, 1}, .n = 2};

	begin(1, SIZE);
	attach(0, 0);
	must(do_write(0, 1, 0, SIZE) == 0);
	must(snapshot("s1") == 0);
	detach(0);
	close_store();
	must(in_process(write_and_die, NULL) == 7);
	open_after_death();
	expect_blocks(diff_of(0, "s1", NULL), both);
	expect_blocks(diff_of(0, "s2", NULL), last);
	attach(0, 0);
	expect_blocks(diff_of(0, "s1", NULL), both);
	detach(0);
	close_store();
	finish();
}

/* DF-7, P6: with an error at any place there is an error, or the answer. */
Test(engine_diff, an_error_anywhere_is_told)
{
	static const struct eng_fault_rule kinds[] = {
		{.ops = ENG_FAULT_OPEN, .error = -EMFILE},
		{.ops = ENG_FAULT_OPEN, .error = -ENOENT, .sticky = true},
		{.ops = ENG_FAULT_PREAD, .error = -EIO},
		{.ops = ENG_FAULT_PREAD, .shorten = true},
		{.ops = ENG_FAULT_PREAD, .shorten = true, .sticky = true},
		{.ops = ENG_FAULT_STAT, .error = -EIO},
	};
	struct expected all = {.first = {3, 700, 900}, .count = {2, 1, 1}, .n = 3};
	struct asking a = {.result = 0};
	unsigned failed = 0;

	begin(1, SIZE);
	attach(0, 0);
	must(snapshot("s1") == 0);
	must(do_write(0, 2, 3 * BLOCK, 2 * BLOCK) == 0);
	must(snapshot("s2") == 0);
	seal_all();
	must(do_write(0, 3, 700 * BLOCK, BLOCK) == 0);
	must(snapshot("s3") == 0);
	must(do_write(0, 4, 900 * BLOCK, BLOCK) == 0);
	detach(0);
	must(eng_catalog_get_disk(store->catalog, "a", "d0", &a.disk) == 0);
	a.from = state_of(0, "s1");
	for (size_t k = 0; k < sizeof(kinds) / sizeof(kinds[0]); k++) {
		bool struck = true;

		for (uint64_t skip = 0; struck && skip < 200; skip++) {
			struct eng_fault_rule rule = kinds[k];
			int number;

			rule.path = "layers/";
			rule.skip = skip;
			number = eng_fault_add(fault, &rule);
			must(number >= 0);
			run(&a);
			struck = eng_fault_struck(fault, number) > 0;
			eng_fault_clear(fault);
			failed += a.result < 0;
			if (a.result == 0)
				expect_blocks(a.set, all);
			else
				cr_expect(struck && !a.set && a.why.text[0], "%d", a.result);
		}
		cr_expect_not(struck, "kind %zu never ends", k);
	}
	cr_expect_gt(failed, 10u);
	must(run(&a) == 0);
	expect_blocks(a.set, all);
	close_store();
	finish();
}

/* --- at random --- */

static void mark(uint8_t *bits, uint64_t first, uint64_t n)
{
	for (uint64_t b = first; b < first + n; b++)
		bits[b / 8] |= (uint8_t)(1u << b % 8);
}

static void start_node(unsigned parent)
{
	must(node_count < NODES);
	memset(&nodes[node_count], 0, sizeof(nodes[0]));
	nodes[node_count].parent = parent;
	now = node_count++;
}

static void write_some(void)
{
	for (uint64_t i = rnd(30); i > 0; i--) {
		uint64_t unit = rnd(2) ? BLOCK : 512, length = (1 + rnd(rnd(10) ? 12 : 900)) * unit;
		uint64_t offset = rnd((SIZE - length) / unit) * unit;
		unsigned k = (unsigned)rnd(10);

		must((k < 7 ? do_write(0, ++next_n, offset, length)
			    : do_op(0, k == 7 ? ENG_DISCARD : ENG_WRITE_ZEROES, 0, offset,
				    length)) == 0);
		mark(nodes[now].written, offset / BLOCK,
		     (offset + length - 1) / BLOCK - offset / BLOCK + 1);
	}
}

static void take(void)
{
	if (count == SNAPS)
		return;
	snprintf(snaps[count].name, sizeof(snaps[0].name), "s%lu", ++made);
	must(snapshot(snaps[count].name) == 0);
	snaps[count++].node = now;
	start_node(now);
}

static void drop(void)
{
	struct cat_job none = {.type = 0};
	unsigned i = count ? (unsigned)rnd(count) : 0;
	bool marked;

	if (!count)
		return;
	must(eng_store_delete_snapshot(store, "c", snaps[i].name, &none, &marked, &err) == 0);
	snaps[i] = snaps[--count];
}

/* What every path between the two has in it: all that either stands on, but for what both do. */
static void expect_between(unsigned a, unsigned b, uint8_t *want)
{
	uint8_t seen[NODES] = {0};
	unsigned common;

	memset(want, 0, BLOCKS / 8);
	for (unsigned n = a;; n = nodes[n].parent) {
		seen[n] = 1;
		if (n == nodes[n].parent)
			break;
	}
	for (common = b; !seen[common]; common = nodes[common].parent)
		for (unsigned i = 0; i < BLOCKS / 8; i++)
			want[i] |= nodes[common].written[i];
	for (unsigned n = a; n != common; n = nodes[n].parent)
		for (unsigned i = 0; i < BLOCKS / 8; i++)
			want[i] |= nodes[n].written[i];
}

static int mark_found(void *arg, uint64_t first, uint64_t n)
{
	must(first + n <= BLOCKS);
	mark(arg, first, n);
	return 0;
}

static void fail_at(const uint8_t *found, const uint8_t *want, const char *what)
{
	for (uint64_t b = 0; b < BLOCKS; b++)
		cr_assert_eq(found[b / 8] >> b % 8 & 1, want[b / 8] >> b % 8 & 1,
			     "VMIMG_SEED=%lu: %s: block %lu: %d, expected %d", seed, what, b,
			     found[b / 8] >> b % 8 & 1, want[b / 8] >> b % 8 & 1);
}

/* Any two of the snapshots and now (count). */
static void compare(unsigned from, unsigned to)
{
	struct eng_blocks *set = diff_of(0, from == count ? NULL : snaps[from].name,
					 to == count ? NULL : snaps[to].name);
	uint8_t found[BLOCKS / 8] = {0}, want[BLOCKS / 8];

	expect_between(from == count ? now : snaps[from].node, to == count ? now : snaps[to].node,
		       want);
	must(eng_blocks_each(set, 0, UINT64_MAX, mark_found, found) == 0);
	if (memcmp(found, want, sizeof(want)) != 0)
		fail_at(found, want, "the difference");
	eng_blocks_destroy(set);
}

/* A baseline that is kept while the disk is attached, whatever is folded under it. */
static struct eng_baseline *base;
static unsigned base_node, exact, looks;

static void keep_baseline(void)
{
	const struct fmt_uuid head = {{0}};
	struct eng_state state;
	struct cat_disk row;
	unsigned i = (unsigned)rnd(count);
	int r = -ENOENT;

	eng_baseline_destroy(base);
	base = NULL;
	must(eng_catalog_get_disk(store->catalog, "a", "d0", &row) == 0);
	for (unsigned tries = 0; tries < 100 && r == -ENOENT; tries++) {
		state = state_of(0, snaps[i].name);
		r = eng_baseline_create(store, &row, &state, &head, &err, &base);
	}
	must(r == 0);
	eng_baseline_attach(base, disk[0]);
	base_node = snaps[i].node;
}

/* DF-14: never less than changed. */
static void look_through_baseline(void)
{
	uint8_t found[BLOCKS / 8] = {0}, want[BLOCKS / 8];
	uint64_t at = 0;

	while (at < SIZE) {
		struct eng_disk_extent *e = aligned(64 * sizeof(*e));
		struct ask *a = calloc(1, sizeof(*a));
		struct eng_request rq = {.disk = disk[0],
					 .op = ENG_EXTENTS,
					 .iovcnt = 1,
					 .offset = at,
					 .length = SIZE - at,
					 .user_data = (uintptr_t)a};
		int n;

		a->iov = (struct iovec){e, 64 * sizeof(*e)};
		rq.iov = &a->iov;
		must(eng_queue_submit(queue[0], &rq, 1) == 1);
		n = ask_end(a);
		must(n > 0);
		for (int i = 0; i < n; i++) {
			while (e[i].length) {
				bool changed;
				uint64_t len = eng_baseline_extent(base, disk[0], at, &e[i],
								   &changed);

				must(len > 0 && len <= e[i].length);
				if (changed)
					mark(found, at / BLOCK, len / BLOCK);
				at += len;
				e[i].length -= len;
			}
		}
		free(e);
	}
	expect_between(base_node, now, want);
	looks++;
	exact += !memcmp(found, want, sizeof(want));
	for (unsigned i = 0; i < sizeof(want); i++)
		want[i] &= (uint8_t)~found[i];
	for (unsigned i = 0; i < sizeof(want); i++)
		cr_assert_eq(want[i], 0, "VMIMG_SEED=%lu: changed, but not through a baseline: %u",
			     seed, i * 8);
}

/* DF-14: the base takes up what was written since a snapshot that is gone: nothing tells any more what. */
Test(engine_diff, a_border_that_was_folded_away)
{
	struct cat_job none = {.type = 0};
	bool marked;
	char name[16];

	nodes = calloc(NODES, sizeof(*nodes));
	begin_in("/dev/shm");
	options.no_folds = false;
	options.fold_rate = UINT64_MAX;
	open_store();
	make_collection("c", "a");
	make_disk(0, SIZE, 0);
	attach(0, 0);
	start_node(0);
	must(do_write(0, 1, 0, SIZE) == 0);
	take();
	keep_baseline();
	for (unsigned i = 2; i <= 12; i++) {
		must(do_write(0, i, i * BLOCK, BLOCK) == 0);
		mark(nodes[now].written, i, 1);
		take();
	}
	look_through_baseline();
	cr_expect_eq(exact, 1u);
	for (unsigned i = 1; i <= 11; i++) {
		snprintf(name, sizeof(name), "s%u", i);
		must(eng_store_delete_snapshot(store, "c", name, &none, &marked, &err) == 0);
	}
	turn_until(disk[0]->layers[0] == disk[0]->layers[1] && !atomic_load(&disk[0]->swaps));
	look_through_baseline();
	cr_expect_eq(exact, 1u, "all of it, since nobody knows");
	eng_baseline_destroy(base);
	base = NULL;
	detach(0);
	close_store();
	finish();
	free(nodes);
}

static void let_disk_go(void)
{
	eng_baseline_destroy(base);
	base = NULL;
	if (disk[0])
		detach(0);
}

static void go_back(void)
{
	unsigned i = (unsigned)rnd(count);
	struct eng_revert how = {.collection = "c", .name = snaps[i].name};
	struct eng_revert_result result;

	let_disk_go();
	must(eng_store_revert(store, &how, &err, &result) == 0);
	free(result.untouched);
	start_node(snaps[i].node);
}

static void step(void)
{
	unsigned k = (unsigned)rnd(24);

	if (k < 7) {
		if (!disk[0])
			attach(0, 0);
		write_some();
	} else if (k < 10) {
		take();
	} else if (k < 12) {
		drop();
	} else if (k == 12) {
		let_disk_go();
	} else if (k == 13) {
		let_disk_go();
		close_store();
		open_store();
	} else if (k == 14) {
		turn_for(20 * MS);
	} else if (k == 15 && count) {
		go_back();
	} else if (k == 16 && count && disk[0]) {
		keep_baseline();
	} else if (k < 20) {
		if (base)
			look_through_baseline();
	} else {
		compare((unsigned)rnd(count + 1), (unsigned)rnd(count + 1));
	}
}

/* DF-1 to DF-4 with folds (FO-5) and reverts: exact, whatever has become of the layers. */
Test(engine_diff, equals_what_was_written)
{
	const char *given = getenv("VMIMG_SEED"), *seconds = getenv("VMIMG_TEST_SECONDS");
	uint64_t end;

	seed = given ? strtoull(given, NULL, 10) : (uint64_t)time(NULL);
	rng = seed;
	nodes = calloc(NODES, sizeof(*nodes));
	begin_in("/dev/shm");
	options.no_folds = false;
	options.fold_rate = UINT64_MAX;
	options.map_memory = rnd(2); /* 1: regions of sealed layers are forgotten all the time */
	open_store();
	make_collection("c", "a");
	make_disk(0, SIZE, 0);
	attach(0, 0);
	start_node(0);
	end = eng_io_now_ns(machine) + (seconds ? strtoull(seconds, NULL, 10) : 20) * SECOND / 4;
	while (eng_io_now_ns(machine) < end && node_count + 2 < NODES)
		step();
	cr_expect(looks < 20 || exact > looks / 10, "%u of %u looks exact", exact, looks);
	let_disk_go();
	close_store();
	finish();
	free(nodes);
}
