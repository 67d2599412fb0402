/* SPDX-License-Identifier: MIT */
/*
 * engine_refpoint.c - reference points: made of snapshots and of cuts, moved by folds without losing what
 * they have to tell (T29), and whole or not there after the loss of power at any event. Rules RP-*:
 * spec/refpoint.md.
 */
#include "engine/snapshot/revert.h"
#include "tests/unit/engine_refpoint.h"

#define SIZE   (16ull << 20)
#define BLOCKS (SIZE / BLOCK)

static uint8_t found[BLOCKS];

TestSuite(engine_refpoint, .timeout = 120);

static void put(uint64_t n, uint64_t block, uint64_t count)
{
	must(do_write(0, n, block * BLOCK, count * BLOCK) == 0);
}

/* Changed since @point: what writes @from to @to wrote, and nothing else. Write n: block 10 * n, 3. */
static void expect_writes(const char *point, const char *until, uint64_t from, uint64_t to,
			  bool exact)
{
	int r = rp_changes(point, until, found, BLOCKS);

	cr_assert_eq(r, 0, "%s: %s", point, err.text);
	for (uint64_t b = 0; b < BLOCKS; b++) {
		uint64_t n = b / 10;
		bool want = b % 10 < 3 && n >= from && n <= to;

		cr_expect(found[b] >= want, "%s: block %lu has changed", point, b);
		cr_expect(!exact || found[b] == want, "%s: block %lu has not changed", point, b);
	}
}

static void write_nth(uint64_t n)
{
	put(n, 10 * n, 3);
}

static bool has_snapshot(const char *name)
{
	struct cat_snapshot row;

	return eng_catalog_get_snapshot(store->catalog, "c", name, &row) == 0;
}

static bool has_point(const char *name)
{
	struct cat_refpoint row;

	return eng_catalog_get_refpoint(store->catalog, "c", name, &row) == 0;
}

/* --- made --- */

/* RP-1, RP-2, RP-7: one goes, the other comes, and changes are counted from the snapshot's cut. */
Test(engine_refpoint, a_recovery_snapshot_becomes_a_point)
{
	struct cat_refpoint point;
	struct cat_snapshot snap;

	begin(2, SIZE);
	attach(0, 0);
	write_nth(1);
	must(rp_cut("s1", false) == 0);
	must(eng_catalog_get_snapshot(store->catalog, "c", "s1", &snap) == 0);
	write_nth(2);
	must(rp_convert("s1", "p1") == 0);
	cr_expect(!has_snapshot("s1"));
	must(eng_catalog_get_refpoint(store->catalog, "c", "p1", &point) == 0);
	cr_expect(point.disks == 2 && fmt_uuid_equal(&point.snapshot, &snap.id));
	cr_expect_eq(point.cut_wall_ns, snap.cut_wall_ns);
	write_nth(3);
	expect_writes("p1", NULL, 2, 3, true);
	must(rp_cut("s2", false) == 0);
	write_nth(4);
	expect_writes("p1", "s2", 2, 3, true);
	expect_writes("p1", NULL, 2, 4, true);
	detach(0);
	close_store();
	open_store();
	expect_writes("p1", NULL, 2, 4, true);
	must(rp_destroy("p1") == 0);
	cr_expect_eq(rp_destroy("p1"), -ENOENT);
	close_store();
	finish();
}

/* RP-8 */
Test(engine_refpoint, a_cut_may_leave_a_point_and_no_snapshot)
{
	struct cat_refpoint_disk *rows = NULL;
	struct cat_refpoint point;
	size_t n = 0;

	begin(2, SIZE);
	attach(0, 0);
	write_nth(1);
	must(rp_cut("p1", true) == 0);
	write_nth(2);
	cr_expect(!has_snapshot("p1"));
	must(eng_catalog_get_refpoint(store->catalog, "c", "p1", &point) == 0);
	must(eng_catalog_list_refpoint_disks(store->catalog, &point.id, &rows, &n) == 0);
	cr_assert_eq(n, 2);
	cr_expect_str_eq(rows[0].disk_name, "d0");
	cr_expect_str_eq(rows[1].disk_name, "d1");
	cr_expect(!fmt_uuid_equal(&rows[0].rct, &rows[1].rct), "RP-5");
	free(rows);
	expect_writes("p1", NULL, 2, 2, true);
	cr_expect_eq(rp_cut("p1", true), -EEXIST);
	must(rp_cut("p1", false) == 0); /* RP-20: a snapshot may have the name */
	detach(0);
	close_store();
	finish();
}

/* RP-7: what is refused has changed nothing. */
Test(engine_refpoint, only_a_recovery_snapshot_and_a_free_name)
{
	begin(1, SIZE);
	must(snapshot("standard") == 0);
	must(rp_cut("s1", false) == 0);
	must(rp_cut("s2", false) == 0);
	cr_expect_eq(rp_convert("standard", "p"), -EMEDIUMTYPE);
	cr_expect_eq(rp_convert("none", "p"), -ENOENT);
	must(rp_convert("s1", "p") == 0);
	cr_expect_eq(rp_convert("s2", "p"), -EEXIST);
	cr_expect(has_snapshot("standard") && has_snapshot("s2") && !has_snapshot("s1"));
	close_store();
	finish();
}

/* RP-10, RP-15 */
Test(engine_refpoint, a_deleted_disk_is_lost_to_its_points)
{
	struct eng_blocks *saved = NULL;
	struct cat_refpoint_disk row;
	struct cat_refpoint point;
	struct cat_disk gone;

	begin(2, SIZE);
	must(rp_cut("p1", true) == 0);
	must(eng_catalog_get_disk(store->catalog, "a", "d1", &gone) == 0);
	must(eng_store_delete_disk(store, "a", "d1", &err) == 0);
	must(eng_catalog_get_refpoint(store->catalog, "c", "p1", &point) == 0);
	cr_expect_eq(eng_refpoint_state(store, &point.id, &gone.id, &err, &row, &saved), -ENODATA);
	expect_writes("p1", NULL, 1, 0, true);
	close_store();
	finish();
}

/* --- folds --- */

/* Points at each of five layers, which then fold into one. The points are p1 to p5. */
static void make_points(void)
{
	char s[8], p[8];

	for (uint64_t i = 1; i <= 5; i++) {
		write_nth(i);
		snprintf(s, sizeof(s), "s%lu", i);
		snprintf(p, sizeof(p), "p%lu", i);
		if (i % 2) {
			must(rp_cut(p, true) == 0);
		} else {
			must(rp_cut(s, false) == 0);
			must(rp_convert(s, p) == 0);
		}
	}
	write_nth(6);
}

static void expect_points(bool exact)
{
	char p[8];

	for (uint64_t i = 1; i <= 5; i++) {
		snprintf(p, sizeof(p), "p%lu", i);
		expect_writes(p, NULL, i + 1, 6, exact);
	}
}

static void open_folding(void)
{
	options.no_folds = false;
	options.fold_rate = UINT64_MAX;
	open_store();
}

/* T29, RP-11, RP-3: a point holds up no fold, and has as much to say after it. */
Test(engine_refpoint, a_fold_leaves_points_as_they_were)
{
	begin(1, SIZE);
	attach(0, 0);
	make_points();
	turn_until(rp_is_sealed());
	detach(0);
	close_store();
	open_folding();
	attach(0, 0);
	turn_until(rp_layers() == 2); /* what was five, and the head */
	expect_points(true);
	write_nth(7);
	expect_writes("p2", NULL, 3, 7, true);
	detach(0);
	close_store();
	options.no_folds = true;
	open_store();
	expect_writes("p2", NULL, 3, 7, true);
	close_store();
	finish();
}

/* RP-14, RP-15: what cannot be read says nothing, and never "no changes". */
Test(engine_refpoint, a_set_that_rots_loses_the_point_at_its_next_move)
{
	struct eng_blocks *saved = NULL;
	struct cat_refpoint_disk row, *rows = NULL;
	struct cat_refpoint point;
	size_t n = 0;

	begin(1, SIZE);
	attach(0, 0);
	make_points();
	turn_until(rp_is_sealed());
	detach(0);
	must(eng_catalog_get_refpoint(store->catalog, "c", "p2", &point) == 0);
	must(eng_catalog_list_refpoint_disks(store->catalog, &point.id, &rows, &n) == 0 && n == 1);
	must(eng_catalog_begin(store->catalog) == 0);
	must(eng_catalog_set_refpoint_state(store->catalog, &point.id, &rows->disk, &rows->layer,
					    "rotten", 6) == 0);
	must(eng_catalog_commit(store->catalog, &err) == 0);
	cr_expect_eq(eng_refpoint_state(store, &point.id, &rows->disk, &err, &row, &saved),
		     -ENODATA);
	close_store();
	open_folding();
	turn_until(rp_layers() == 2);
	cr_expect_eq(eng_refpoint_state(store, &point.id, &rows->disk, &err, &row, &saved),
		     -ENODATA);
	cr_expect_null(saved);
	expect_writes("p1", NULL, 2, 6, true);
	expect_writes("p3", NULL, 4, 6, true);
	free(rows);
	close_store();
	finish();
}

/* RP-11, CT-9: a fold whose commit fails has moved nothing; tried again, it moves all. */
Test(engine_refpoint, a_fold_that_fails_leaves_points_where_they_were)
{
	int rule;

	begin_in("/dev/shm");
	open_folding();
	eng_folder_pause(store->folder, true);
	make_collection("c", "a");
	make_disk(0, SIZE, 0);
	attach(0, 0);
	make_points();
	turn_until(rp_is_sealed());
	rule = eng_fault_add(fault, &(struct eng_fault_rule){.ops = ENG_FAULT_PWRITE,
							     .path = "catalog.db-wal",
							     .error = -ENOSPC,
							     .sticky = true});
	eng_folder_pause(store->folder, false);
	turn_until(eng_fault_struck(fault, rule) > 0);
	cr_expect_eq(rp_layers(), 6u);
	expect_points(true);
	eng_fault_clear(fault);
	turn_until(rp_layers() == 2);
	expect_points(true);
	detach(0);
	close_store();
	finish();
}

/* --- branches --- */

static void revert_to(const char *name)
{
	struct eng_revert how = {.collection = "c", .name = name};
	struct eng_revert_result done = {0};

	must(eng_store_revert(store, &how, &err, &done) == 0);
	free(done.untouched);
}

/* RP-2, RP-13: what lies on the branch that was left has changed, too; and the branch goes. */
Test(engine_refpoint, a_point_on_a_branch_that_goes_still_tells)
{
	begin(1, SIZE);
	attach(0, 0);
	write_nth(1);
	must(rp_cut("s1", false) == 0);
	write_nth(2);
	must(rp_cut("p2", true) == 0);
	write_nth(3);
	must(rp_cut("p3", true) == 0);
	write_nth(9);
	turn_until(rp_is_sealed());
	detach(0);
	revert_to("s1");
	attach(0, 0);
	write_nth(4);
	cr_expect_geq(rp_layers(), 4u, "points keep the branch's layers");
	expect_writes("p2", NULL, 2, 2, false);
	expect_writes("p2", NULL, 4, 4, false);
	expect_writes("p3", NULL, 2, 4, true);
	detach(0);
	close_store();
	open_folding();
	attach(0, 0);
	turn_until(rp_layers() == 2); /* what s1 froze, and the head */
	expect_writes("p2", NULL, 2, 2, false);
	expect_writes("p2", NULL, 4, 4, false);
	expect_writes("p3", NULL, 2, 4, true);
	write_nth(5);
	expect_writes("p3", NULL, 2, 5, true);
	detach(0);
	close_store();
	finish();
}

/* --- bounds --- */

/* RP-17: a set that is too large says more, and is not too large any more. */
Test(engine_refpoint, a_set_has_a_bound_and_says_more_beyond_it)
{
	const uint64_t pieces = 2200; /* of 65,536 blocks, of which each twelfth: 8 KiB a piece */
	struct cat_refpoint_disk row, *rows = NULL;
	struct eng_blocks *big = NULL, *saved = NULL;
	struct eng_blocks_adder adder;
	struct cat_refpoint point;
	void *bytes = NULL;
	size_t len = 0, n = 0;

	begin(1, SIZE);
	attach(0, 0);
	make_points();
	turn_until(rp_is_sealed());
	detach(0);
	must(eng_blocks_create(&big) == 0);
	eng_blocks_adder_init(&adder, big);
	for (uint64_t b = 0; b < pieces << 16; b += 12)
		must(eng_blocks_adder_add(&adder, b, 1) == 0);
	must(eng_blocks_adder_end(&adder) == 0);
	must(eng_blocks_encode(big, &bytes, &len) == 0);
	cr_assert_gt(len, ENG_REFPOINT_SET_MAX);
	must(eng_catalog_get_refpoint(store->catalog, "c", "p3", &point) == 0);
	must(eng_catalog_list_refpoint_disks(store->catalog, &point.id, &rows, &n) == 0 && n == 1);
	must(eng_catalog_begin(store->catalog) == 0);
	must(eng_catalog_set_refpoint_state(store->catalog, &point.id, &rows->disk, &rows->layer,
					    bytes, len) == 0);
	must(eng_catalog_commit(store->catalog, &err) == 0);
	close_store();
	open_folding();
	turn_until(rp_layers() == 2);
	must(eng_refpoint_state(store, &point.id, &rows->disk, &err, &row, &saved) == 0);
	cr_expect_leq(row.saved_bytes, ENG_REFPOINT_SET_MAX);
	for (uint64_t b = 0; b < pieces << 16; b += 12 << 10)
		cr_expect(eng_blocks_has(saved, b), "block %lu", b);
	cr_expect_leq(eng_blocks_cardinality(saved), pieces << 16, "nothing beyond its end");
	expect_writes("p2", NULL, 3, 6, true);
	eng_blocks_destroy(saved);
	eng_blocks_destroy(big);
	free(bytes);
	free(rows);
	close_store();
	finish();
}

/* --- the loss of power --- */

struct events {
	uint64_t done; /* from here on it has to be there */
};

static unsigned boundaries(void)
{
	struct cat_layer *rows = NULL;
	unsigned bound = 0;
	size_t n = 0;

	must(eng_catalog_list_layers(store->catalog, NULL, &rows, &n) == 0);
	for (size_t i = 0; i < n; i++) {
		struct eng_layer *layer = NULL;

		must(eng_store_open_layer(store, &rows[i], false, &err, &layer) == 0);
		bound += !fmt_uuid_is_none(&layer->hdr.snapshot_id);
		eng_layer_put(layer);
	}
	free(rows);
	return bound;
}

static void expect_one_of_both(uint64_t index, void *arg)
{
	struct events *e = arg;
	bool point = has_point("p1"), snap = has_snapshot("s1");
	struct cat_job job;

	cr_assert(point != snap, "event %lu: point %d, snapshot %d", index, point, snap);
	cr_assert(point || index < e->done, "event %lu: the point is gone", index);
	if (point) {
		expect_writes("p1", NULL, 2, 2, true);
		cr_expect_eq(boundaries(), 0, "event %lu (T27)", index);
		cr_assert_eq(eng_catalog_get_job(store->catalog, &rp_job.id, &job), 0);
		cr_expect(job.state == 7 && job.percent == 100 && job.ended_ns, "event %lu", index);
	} else {
		cr_expect_eq(boundaries(), 2);
		cr_expect_eq(eng_catalog_get_job(store->catalog, &rp_job.id, &job), -ENOENT);
	}
}

/* RP-7, P5, JB-9: at each event there is either the snapshot, whole, or the point. */
Test(engine_refpoint, power_may_fail_at_any_event_of_a_conversion)
{
	struct events e;
	uint64_t first;

	begin(2, SIZE);
	record_from_here();
	attach(0, 0);
	write_nth(1);
	must(rp_cut("s1", false) == 0);
	write_nth(2);
	must(do_flush(0) == 0);
	first = eng_record_index(recording);
	rp_job = (struct cat_job){.state = 4, .type = 200, .submitted_ns = 1};
	eng_store_new_id(store, &rp_job.id);
	must(rp_convert("s1", "p1") == 0);
	e.done = eng_record_index(recording);
	detach(0);
	close_store();
	lose_power(first, eng_record_index(recording), expect_one_of_both, &e);
}

static void expect_point_or_none(uint64_t index, void *arg)
{
	struct events *e = arg;

	cr_assert(has_point("p1") || index < e->done, "event %lu: the point is gone", index);
	if (has_point("p1"))
		expect_writes("p1", NULL, 2, 1, true);
	cr_expect_eq(boundaries(), 0);
}

/* RP-8 */
Test(engine_refpoint, power_may_fail_at_any_event_of_a_create)
{
	struct events e;
	uint64_t first, last;

	begin(2, SIZE);
	record_from_here();
	attach(0, 0);
	write_nth(1);
	must(do_flush(0) == 0);
	first = eng_record_index(recording);
	must(rp_cut("p1", true) == 0);
	last = eng_record_index(recording);
	e.done = last;
	detach(0);
	close_store();
	lose_power(first, last, expect_point_or_none, &e);
}

static void expect_all_points(uint64_t index, void *arg)
{
	(void)index;
	(void)arg;
	expect_points(true);
}

/* T29: at each event of the folds the points have all that they had to say. */
Test(engine_refpoint, power_may_fail_at_any_event_of_a_fold)
{
	uint64_t first, last;

	begin(1, SIZE);
	attach(0, 0);
	make_points();
	must(do_flush(0) == 0);
	turn_until(rp_is_sealed());
	detach(0);
	options.no_folds = false;
	options.fold_rate = UINT64_MAX;
	record_from_here();
	first = 0;
	turn_until(rp_layers() == 2);
	close_store();
	last = eng_record_index(recording);
	lose_power(first, last, expect_all_points, NULL);
}
