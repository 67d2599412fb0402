/* SPDX-License-Identifier: MIT */
/*
 * engine_guests.c - the coordinator and those who freeze guests for it (QU-7, QU-8): told once each, in
 * their order, whatever fails.
 */
#include "tests/unit/engine_store.h"

TestSuite(engine_guests, .timeout = 120);

static void end(unsigned disks)
{
	for (unsigned i = 0; i < disks; i++)
		detach(i);
	close_store();
	finish();
}

static struct {
	int freeze_result, settle_result;
	unsigned freezes, thaws, settles, puts;
	bool open_at_thaw;
	struct eng_snapshot *snap;
} calls;

static int on_freeze(void *arg, struct fmt_error *why)
{
	struct shot *s = arg;

	must(calls.freezes++ == 0 && !calls.thaws && eng_snapshot_is_open(s->snap));
	return calls.freeze_result < 0 ? fmt_fail(why, calls.freeze_result, "not frozen")
				       : calls.freeze_result;
}

static void on_thaw(void *arg)
{
	struct shot *s = arg;

	must(calls.freezes == 1 && calls.thaws++ == 0 && !calls.settles);
	calls.open_at_thaw = eng_snapshot_is_open(s->snap);
}

static int on_settle(void *arg, struct fmt_error *why, uint8_t *consistency, uint64_t *freeze_ns)
{
	(void)arg;
	must(calls.thaws == 1 && calls.settles++ == 0);
	*consistency = 1;
	*freeze_ns = 77;
	return calls.settle_result < 0 ? fmt_fail(why, calls.settle_result, "not held") : 0;
}

static void on_put(void *arg, struct eng_catalog *cat)
{
	(void)arg;
	(void)cat;
	must(calls.settles == 1);
	calls.puts++;
}

/* A snapshot "s" of collection "c" with guests that answer so. */
static int shoot(int freeze_result, int settle_result)
{
	struct shot s;
	struct eng_snapshot_guests guests = {&s, on_freeze, on_thaw, on_settle, on_put};
	int r;

	memset(&calls, 0, sizeof(calls));
	calls.freeze_result = freeze_result;
	calls.settle_result = settle_result;
	shot_guests = &guests;
	r = shot_check("c", "s", 10 * SECOND, &s);
	shot_guests = NULL;
	must(r == 0);
	shot_launch(&s);
	return shot_end(&s);
}

Test(engine_guests, guests_are_frozen_before_the_cut_and_thawed_once_right_after)
{
	struct cat_snapshot row;

	begin(2, 1 << 20);
	attach(0, 0);
	must(do_write(0, 1, 0, BLOCK) == 0);
	cr_assert_eq(shoot(0, 0), 0);
	cr_expect_eq(calls.thaws, 1);
	cr_expect(!calls.open_at_thaw, "the swap comes before");
	cr_expect_eq(calls.puts, 1);
	must(eng_catalog_get_snapshot(store->catalog, "c", "s", &row) == 0);
	cr_expect_eq(row.consistency, 1);
	cr_expect_eq(row.freeze_ns, 77);
	end(1);
}

Test(engine_guests, a_failed_freeze_is_thawed_and_cuts_nothing)
{
	struct cat_snapshot row;

	begin(1, 1 << 20);
	attach(0, 0);
	cr_expect_eq(shoot(-EIO, 0), -EIO);
	cr_expect_eq(calls.thaws, 1);
	cr_expect_eq(calls.settles, 0);
	cr_expect_eq(eng_catalog_get_snapshot(store->catalog, "c", "s", &row), -ENOENT);
	end(1);
}

/* QU-8, CU-20 */
Test(engine_guests, guests_that_were_not_held_make_no_snapshot_of_a_cut)
{
	struct cat_snapshot row;

	begin(1, 1 << 20);
	attach(0, 0);
	must(do_write(0, 1, 0, BLOCK) == 0);
	cr_expect_eq(shoot(0, -ETIMEDOUT), -ETIMEDOUT);
	cr_expect_eq(calls.thaws, 1);
	cr_expect_eq(calls.puts, 0);
	cr_expect_eq(eng_catalog_get_snapshot(store->catalog, "c", "s", &row), -ENOENT);
	must(do_write(0, 2, 0, BLOCK) == 0);
	cr_expect(holds(0, 2, 0, BLOCK));
	end(1);
}

/* T24: whatever fails, and wherever, no freeze is without its thaw. */
Test(engine_guests, every_freeze_has_its_thaw_whatever_fails)
{
	static const uint32_t ops[] = {ENG_FAULT_ANY_WRITE, ENG_FAULT_ANY_FDATASYNC};
	unsigned failed_frozen = 0;

	for (size_t o = 0; o < sizeof(ops) / sizeof(ops[0]); o++) {
		for (unsigned skip = 0; skip < 14; skip++) {
			struct eng_fault_rule rule = {.ops = ops[o], .error = -EIO, .skip = skip};
			int r;

			begin(1, 1 << 20);
			attach(0, 0);
			must(do_write(0, 1, 0, BLOCK) == 0 && snapshot("s0") == 0);
			must(do_write(0, 2, 0, BLOCK) == 0);
			eng_fault_add(fault, &rule);
			r = shoot(0, 0);
			eng_fault_clear(fault);
			cr_expect_eq(calls.freezes, calls.thaws, "ops %x, skip %u: %d", ops[o],
				     skip, r);
			failed_frozen += r < 0 && calls.freezes;
			eng_store_detach(disk[0]); /* perhaps poisoned, and the store too */
			for (int i = 0; i < 2; i++)
				must(eng_queue_destroy(queue[i]) == 0);
			eng_store_close(store);
			finish();
		}
	}
	cr_expect_geq(failed_frozen, 2, "%u, some must fail between the freeze and the commit",
		      failed_frozen);
}
