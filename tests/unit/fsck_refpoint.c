/* SPDX-License-Identifier: MIT */
/*
 * fsck_refpoint.c - what a check says of reference points: nothing of sound ones, on a branch that goes too,
 * and the rule of each that is not (RP-*).
 */
#include "engine/snapshot/revert.h"
#include "fsck/fsck.h"
#include "tests/unit/engine_refpoint.h"

#define SIZE (8u << 20)

TestSuite(fsck_refpoint, .timeout = 60);

struct seen {
	char rules[256];
	unsigned corrupt, leaks;
};

static void note(void *arg, const struct fsck_finding *f)
{
	struct seen *seen = arg;
	size_t len = strlen(seen->rules);

	snprintf(seen->rules + len, sizeof(seen->rules) - len, "%s ", f->rule);
	seen->corrupt += f->severity == FSCK_CORRUPT;
	seen->leaks += f->severity == FSCK_LEAK;
}

static struct seen check(void)
{
	struct fsck_summary sum = {0};
	struct seen seen = {.rules = ""};

	must(fsck_run(machine, dir, note, &seen, &err, &sum) == 0);
	return seen;
}

/* Point p1 of disk d0, whose layer is the base, with that state. */
static void set_state(const struct fmt_uuid *layer, const void *set, size_t len)
{
	struct cat_refpoint_disk *rows = NULL;
	struct cat_refpoint point;
	size_t n = 0;

	open_store();
	must(eng_catalog_get_refpoint(store->catalog, "c", "p1", &point) == 0);
	must(eng_catalog_list_refpoint_disks(store->catalog, &point.id, &rows, &n) == 0 && n == 1);
	must(eng_catalog_begin(store->catalog) == 0);
	must(eng_catalog_set_refpoint_state(store->catalog, &point.id, &rows->disk,
					    layer ? layer : &rows->layer, set, len) == 0);
	must(eng_catalog_commit(store->catalog, &err) == 0);
	free(rows);
	close_store();
}

static void make_store(void)
{
	begin(1, SIZE);
	attach(0, 0);
	must(do_write(0, 1, 0, BLOCK) == 0);
	must(rp_cut("p1", true) == 0);
	must(do_write(0, 2, BLOCK, BLOCK) == 0);
	detach(0);
	close_store();
}

/* RP-13: an end that points hold is no leak. */
Test(fsck_refpoint, sound_points_are_not_mentioned)
{
	struct eng_revert how = {.collection = "c", .name = "s1"};
	struct eng_revert_result done = {0};
	struct seen seen;

	begin(1, SIZE);
	attach(0, 0);
	must(rp_cut("s1", false) == 0);
	must(do_write(0, 1, 0, BLOCK) == 0);
	must(rp_cut("p1", true) == 0);
	turn_until(rp_is_sealed());
	detach(0);
	must(eng_store_revert(store, &how, &err, &done) == 0);
	free(done.untouched);
	close_store();
	seen = check();
	cr_expect_eq(seen.corrupt + seen.leaks, 0, "%s", seen.rules);
	finish();
}

/* RP-16 */
Test(fsck_refpoint, a_damaged_set_is_corruption)
{
	struct eng_blocks *set = NULL;
	void *bytes = NULL;
	struct seen seen;
	size_t len = 0;

	make_store();
	must(eng_blocks_create(&set) == 0 && eng_blocks_add_range(set, 5, 100) == 0);
	must(eng_blocks_encode(set, &bytes, &len) == 0);
	eng_blocks_destroy(set);
	set_state(NULL, bytes, len);
	seen = check();
	cr_expect_eq(seen.corrupt, 0, "%s", seen.rules);
	((uint8_t *)bytes)[len - 1] ^= 1;
	set_state(NULL, bytes, len);
	seen = check();
	cr_expect(seen.corrupt == 1 && strstr(seen.rules, "RP-16"), "%s", seen.rules);
	set_state(NULL, "short", 5);
	seen = check();
	cr_expect(seen.corrupt == 1 && strstr(seen.rules, "RP-16"), "%s", seen.rules);
	free(bytes);
	finish();
}

/* RP-4, RP-15, RP-1 */
Test(fsck_refpoint, a_layer_that_can_still_change_and_one_that_is_lost)
{
	static const struct fmt_uuid none;
	struct cat_refpoint point;
	struct cat_disk row;
	struct seen seen;

	make_store();
	open_store();
	must(eng_catalog_get_disk(store->catalog, "a", "d0", &row) == 0);
	close_store();
	set_state(&row.head, NULL, 0);
	seen = check();
	cr_expect(seen.corrupt == 1 && strstr(seen.rules, "RP-4"), "%s", seen.rules);
	set_state(&none, NULL, 0);
	seen = check();
	cr_expect(seen.corrupt == 0 && strstr(seen.rules, "RP-15"), "%s", seen.rules);
	open_store();
	must(eng_catalog_get_refpoint(store->catalog, "c", "p1", &point) == 0);
	point.disks = 2;
	must(eng_catalog_begin(store->catalog) == 0);
	must(eng_catalog_put_refpoint(store->catalog, &point) == 0);
	must(eng_catalog_commit(store->catalog, &err) == 0);
	close_store();
	seen = check();
	cr_expect(seen.corrupt == 1 && strstr(seen.rules, "RP-1 "), "%s", seen.rules);
	finish();
}
