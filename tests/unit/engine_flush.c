/* SPDX-License-Identifier: MIT */
/*
 * engine_flush.c - what an acknowledged flush or FUA covers: T9, T10, T11, T12, T16. Rounds are held
 * at their fdatasync or at their record; what is on disk is read past the engine.
 */
#include "tests/unit/engine_store.h"

TestSuite(engine_flush, .timeout = 120);

/* One disk whose head is an overlay, with everything so far durable. */
static struct eng_layer *begin_on_overlay(void)
{
	begin(1, 1 << 20);
	attach(0, 0);
	must(do_write(0, 1, 0, 64 * 1024) == 0);
	must(snapshot("s0") == 0);
	must(do_write(0, 2, 0, BLOCK) == 0 && do_flush(0) == 0);
	return disk[0]->head;
}

static void end(void)
{
	detach(0);
	close_store();
	finish();
}

static int hold_sync(void)
{
	return hold_add((struct hold_rule){
		.kind = ENG_OP_FDATASYNC, .path = ".vmo", .mine = true, .most = 1});
}

static int hold_record(void)
{
	return hold_add((struct hold_rule){
		.kind = ENG_OP_WRITE, .path = ".vmo", .sync = HOLD_DSYNC, .mine = true, .most = 1});
}

/* FL-1: acknowledged means: data synced, and the mapping in a record on disk. */
Test(engine_flush, flush_is_acknowledged_after_its_record)
{
	struct eng_layer *head = begin_on_overlay();
	struct ask *flush;
	int rule;

	must(do_write(0, 3, BLOCK, BLOCK) == 0);
	cr_expect_eq(logged(head, 1), 0);
	rule = hold_record();
	flush = ask_flush(0);
	turn_until(hold_held(rule) == 1);
	turn_for(10 * MS);
	cr_expect_not(flush->done);
	cr_expect_eq(logged(head, 1), 0);
	hold_release(rule);
	must(ask_end(flush) == 0);
	cr_expect_eq(logged(head, 1), 1);
	end();
}

/* FL-1: the record starts when the data is durable. */
Test(engine_flush, record_waits_for_the_data)
{
	struct eng_layer *head = begin_on_overlay();
	struct ask *flush;
	int sync, record;

	must(do_write(0, 3, BLOCK, BLOCK) == 0);
	sync = hold_sync();
	record = hold_record();
	flush = ask_flush(0);
	turn_until(hold_held(sync) == 1);
	turn_for(10 * MS);
	cr_expect_eq(hold_held(record), 0u);
	cr_expect_eq(logged(head, 1), 0);
	hold_release(sync);
	turn_until(hold_held(record) == 1);
	hold_release(record);
	must(ask_end(flush) == 0);
	end();
}

/* T9 */
Test(engine_flush, mapping_completed_during_the_sync_is_in_the_next_record)
{
	struct eng_layer *head = begin_on_overlay();
	struct ask *flush;
	int rule;

	must(do_write(0, 3, BLOCK, BLOCK) == 0);
	rule = hold_sync();
	flush = ask_flush(0);
	turn_until(hold_held(rule) == 1);
	must(do_write(0, 4, 8 * BLOCK, BLOCK) == 0);
	must(do_op(0, ENG_DISCARD, 0, 9 * BLOCK, BLOCK) == 0);
	hold_release(rule);
	must(ask_end(flush) == 0);
	cr_expect_eq(logged(head, 1), 1);
	cr_expect_eq(logged(head, 8), 0, "its data was not synced");
	cr_expect_eq(logged(head, 9), 0);
	must(do_flush(0) == 0);
	cr_expect_eq(logged(head, 8), 1);
	cr_expect_eq(logged(head, 9), 2);
	end();
}

/* T10 */
Test(engine_flush, second_flush_waits_for_the_record_on_its_way)
{
	struct eng_layer *head = begin_on_overlay();
	struct ask *first, *second, *fua;
	int rule;

	must(do_write(0, 3, BLOCK, BLOCK) == 0);
	rule = hold_record();
	first = ask_flush(0);
	turn_until(hold_held(rule) == 1);
	second = ask_flush(0);
	fua = ask(0, 0, ENG_WRITE, ENG_REQ_FUA, 4, BLOCK, 512);
	turn_for(20 * MS);
	cr_expect_not(first->done);
	cr_expect_not(second->done, "nothing to map, but the record is not durable");
	cr_expect_not(fua->done, "T11: its block has no durable record");
	cr_expect_eq(logged(head, 1), 0);
	hold_release(rule);
	must(ask_end(first) == 0 && ask_end(second) == 0 && ask_end(fua) == 0);
	cr_expect_eq(logged(head, 1), 1);
	end();
}

/* T10, FL-3: a flush shares no round whose fdatasync was submitted before it came. */
Test(engine_flush, flush_that_comes_during_the_sync_takes_the_next_round)
{
	struct eng_layer *head = begin_on_overlay();
	struct ask *first, *second;
	int one, two;

	must(do_write(0, 3, BLOCK, BLOCK) == 0);
	one = hold_sync();
	first = ask_flush(0);
	turn_until(hold_held(one) == 1);
	must(do_write(0, 4, 8 * BLOCK, BLOCK) == 0);
	second = ask_flush(0);
	two = hold_sync();
	hold_release(one);
	must(ask_end(first) == 0);
	turn_until(hold_held(two) == 1);
	turn_for(10 * MS);
	cr_expect_not(second->done);
	cr_expect_eq(logged(head, 8), 0);
	hold_release(two);
	must(ask_end(second) == 0);
	cr_expect_eq(logged(head, 8), 1);
	end();
}

/* T11 */
Test(engine_flush, fua_to_a_block_without_a_record_joins_a_round)
{
	struct eng_layer *head = begin_on_overlay();

	must(do_write(0, 3, BLOCK, BLOCK) == 0);
	cr_expect_eq(logged(head, 1), 0);
	must(ask_end(ask(0, 0, ENG_WRITE, ENG_REQ_FUA, 4, BLOCK, 512)) == 0);
	cr_expect_eq(logged(head, 1), 1, "acknowledged as durable without a record of its block");
	must(ask_end(ask(0, 0, ENG_WRITE, ENG_REQ_FUA, 5, 4 * BLOCK, BLOCK)) == 0);
	cr_expect_eq(logged(head, 4), 1, "a new block");
	must(do_op(0, ENG_WRITE_ZEROES, ENG_REQ_FUA, 5 * BLOCK, BLOCK) == 0);
	cr_expect_eq(logged(head, 5), 2, "zeroes");
	end();
}

/* FL-5: where everything is durable already, one durable write does. */
Test(engine_flush, fua_to_a_recorded_block_is_one_durable_write)
{
	int sync, lone;

	begin_on_overlay();
	sync = hold_sync();
	lone = hold_record();
	{
		struct ask *fua = ask(0, 0, ENG_WRITE, ENG_REQ_FUA, 3, 0, 512);

		turn_until(hold_held(lone) == 1);
		cr_expect_not(fua->done);
		hold_release(lone);
		must(ask_end(fua) == 0);
	}
	cr_expect_eq(hold_held(sync), 0u);
	hold_release(sync);
	cr_expect(holds(0, 3, 0, 512));
	end();
}

/* T12, FL-6: before the coordinator hardens; the flush claims. */
Test(engine_flush, flush_after_the_cut_hardens_the_frozen_layer)
{
	struct eng_layer *frozen = begin_on_overlay();
	struct shot s;

	must(do_write(0, 3, BLOCK, BLOCK) == 0);
	shot_start(&s, "s", ENG_SNAPSHOT_CUT);
	turn_until(atomic_load(&s.phase) == ENG_SNAPSHOT_CUT);
	cr_expect_eq(logged(frozen, 1), 0);
	must(do_flush(0) == 0);
	cr_expect_eq(logged(frozen, 1), 1, "written before the cut, flushed after it");
	cr_expect_eq(atomic_load(&frozen->harden), ENG_HARDEN_DONE);
	cr_expect_neq(disk[0]->head, frozen);
	shot_go(&s);
	must(shot_end(&s) == 0);
	cr_expect(view_holds("s", 0, 3, BLOCK, BLOCK));
	end();
}

/* T12: what is in the raw head of before the cut. */
Test(engine_flush, flush_after_the_cut_syncs_the_raw_head)
{
	struct eng_layer *frozen;
	struct ask *flush;
	struct shot s;
	int rule;

	begin(1, 1 << 20);
	attach(0, 0);
	frozen = disk[0]->head;
	must(do_write(0, 1, 0, BLOCK) == 0);
	shot_start(&s, "s", ENG_SNAPSHOT_CUT);
	turn_until(atomic_load(&s.phase) == ENG_SNAPSHOT_CUT);
	rule = hold_add((struct hold_rule){.kind = ENG_OP_FDATASYNC, .path = ".raw", .mine = true});
	flush = ask_flush(0);
	turn_until(hold_held(rule) == 1);
	turn_for(10 * MS);
	cr_expect_not(flush->done);
	hold_release(rule);
	must(ask_end(flush) == 0);
	cr_expect_eq(frozen->synced_gen, frozen->dirty_gen);
	shot_go(&s);
	must(shot_end(&s) == 0);
	end();
}

/* FL-7, I8: the coordinator was first; the flush waits for that layer. */
Test(engine_flush, flush_waits_for_the_coordinators_hardening)
{
	struct eng_layer *frozen = begin_on_overlay();
	struct ask *flush;
	struct shot s;
	int rule;

	must(do_write(0, 3, BLOCK, BLOCK) == 0);
	shot_start(&s, "s", ENG_SNAPSHOT_CUT);
	turn_until(atomic_load(&s.phase) == ENG_SNAPSHOT_CUT);
	rule = hold_add((struct hold_rule){.kind = ENG_OP_FDATASYNC,
					   .path = strrchr(frozen->path, '/'),
					   .most = 1});
	shot_go(&s);
	turn_until(hold_held(rule) == 1);
	flush = ask_flush(0);
	turn_for(20 * MS);
	cr_expect_not(flush->done);
	cr_expect_eq(atomic_load(&frozen->harden), ENG_HARDEN_BUSY);
	hold_release(rule);
	must(ask_end(flush) == 0 && shot_end(&s) == 0);
	cr_expect_eq(logged(frozen, 1), 1);
	end();
}

/* FL-7: its own write in flight in the frozen layer is not waited for by more than the drain. */
Test(engine_flush, flush_of_an_undrained_layer_covers_what_was_complete)
{
	struct eng_layer *frozen = begin_on_overlay();
	struct ask *late;
	struct shot s;
	int rule;

	must(do_write(0, 3, BLOCK, BLOCK) == 0);
	rule = hold_add((struct hold_rule){
		.kind = ENG_OP_WRITE, .path = ".vmo", .sync = HOLD_PLAIN, .mine = true});
	late = ask_write(0, 4, 8 * BLOCK, BLOCK);
	turn_until(hold_held(rule) == 1);
	shot_start(&s, "s", -1);
	turn_until(atomic_load(&s.phase) >= ENG_SNAPSHOT_CUT);
	must(do_flush(0) == 0);
	cr_expect_eq(logged(frozen, 1), 1);
	cr_expect_eq(logged(frozen, 8), 0);
	cr_expect_neq(atomic_load(&frozen->harden), ENG_HARDEN_DONE);
	hold_release(rule);
	must(ask_end(late) == 0 && shot_end(&s) == 0);
	cr_expect_eq(logged(frozen, 8), 1, "hardened with what came last");
	cr_expect(view_holds("s", 0, 4, 8 * BLOCK, BLOCK));
	end();
}

/* FL-6, I7: a round that began before the cut counts; the hardening waits for it. */
Test(engine_flush, hardening_waits_for_a_round_under_way)
{
	struct eng_layer *frozen = begin_on_overlay();
	struct ask *flush;
	struct shot s;
	int rule;

	must(do_write(0, 3, BLOCK, BLOCK) == 0);
	rule = hold_record();
	flush = ask_flush(0);
	turn_until(hold_held(rule) == 1);
	shot_start(&s, "s", -1);
	turn_until(atomic_load(&s.phase) >= ENG_SNAPSHOT_CUT);
	turn_for(20 * MS);
	cr_expect_eq(atomic_load(&s.phase), ENG_SNAPSHOT_CUT, "two writers of one log");
	hold_release(rule);
	must(ask_end(flush) == 0 && shot_end(&s) == 0);
	cr_expect_eq(logged(frozen, 1), 1);
	end();
}

/* --- T16: a failed sync reaches everybody above --- */

static void expect_poisoned(void)
{
	cr_expect_eq(do_flush(0), -ENOTRECOVERABLE);
	cr_expect_eq(do_write(0, 9, 8 * BLOCK, BLOCK), -ENOTRECOVERABLE);
	cr_expect_eq(do_op(0, ENG_DISCARD, 0, 8 * BLOCK, BLOCK), -ENOTRECOVERABLE);
	cr_expect_eq(ask_end(ask(0, 0, ENG_WRITE, ENG_REQ_FUA, 9, 0, 512)), -ENOTRECOVERABLE);
	cr_expect_eq(do_flush(0), -ENOTRECOVERABLE, "never tried again");
	cr_expect(holds(0, 1, 2 * BLOCK, BLOCK), "reads go on");
}

static void end_poisoned(void)
{
	struct shot s;

	if (shot_check("c", "x", SECOND, &s) != -ENOTRECOVERABLE) {
		cr_expect_fail("FL-9: a create was begun");
		eng_snapshot_destroy(s.snap);
	}
	cr_expect_eq(eng_store_detach(disk[0]), -ENOTRECOVERABLE);
	close_store();
	open_store();
	attach(0, 0);
	cr_expect(holds(0, 1, 2 * BLOCK, BLOCK));
	cr_expect_eq(do_flush(0), 0);
	cr_expect_eq(do_write(0, 9, 8 * BLOCK, BLOCK), 0);
	cr_expect_eq(snapshot("after"), 0);
	end();
}

/* T16, FL-9 */
Test(engine_flush, failed_sync_of_the_head_fails_all_that_follow)
{
	int rule;

	begin_on_overlay();
	must(do_write(0, 3, BLOCK, BLOCK) == 0);
	rule = hold_sync();
	{
		struct ask *flush = ask_flush(0);

		turn_until(hold_held(rule) == 1);
		hold_release_error(rule, -EIO);
		cr_expect_eq(ask_end(flush), -ENOTRECOVERABLE);
	}
	expect_poisoned();
	end_poisoned();
}

/* T16, FL-9 */
Test(engine_flush, failed_record_fails_all_that_follow)
{
	int rule;

	begin_on_overlay();
	must(do_write(0, 3, BLOCK, BLOCK) == 0);
	rule = hold_record();
	{
		struct ask *flush = ask_flush(0);

		turn_until(hold_held(rule) == 1);
		hold_release_error(rule, -EIO);
		cr_expect_eq(ask_end(flush), -ENOTRECOVERABLE);
	}
	expect_poisoned();
	end_poisoned();
}

/* T16: the coordinator consumed the error; every flush above the frozen layer must fail. */
Test(engine_flush, failed_hardening_fails_flushes_of_the_disk_above)
{
	struct eng_layer *frozen = begin_on_overlay();
	struct shot s;
	int rule;

	must(do_write(0, 3, BLOCK, BLOCK) == 0);
	rule = hold_add((struct hold_rule){.kind = ENG_OP_FDATASYNC,
					   .path = strrchr(frozen->path, '/'),
					   .most = 1});
	shot_start(&s, "s", -1);
	turn_until(hold_held(rule) == 1);
	must(do_write(0, 4, 4 * BLOCK, BLOCK) == 0); /* in the new head */
	hold_release_error(rule, -EIO);
	cr_expect_eq(shot_end(&s), -EIO);
	expect_poisoned();
	end_poisoned();
}

/* T16, CU-17: the pool's sync of a new log segment shares the descriptor with the guest's. */
Test(engine_flush, failed_sync_of_a_log_segment_fails_flushes)
{
	struct eng_layer *head = begin_on_overlay();
	struct eng_fault_rule rule = {.ops = ENG_FAULT_FDATASYNC,
				      .path = strrchr(head->path, '/'),
				      .sticky = true,
				      .error = -EIO};
	int r = 0;

	must(eng_fault_add(fault, &rule) >= 0);
	for (unsigned i = 0; i < 100 && r == 0; i++) {
		r = do_write(0, 3, (i * 2 + 20) * BLOCK, BLOCK);
		if (r == 0)
			r = do_flush(0);
	}
	cr_expect_eq(r, -ENOTRECOVERABLE);
	eng_fault_clear(fault);
	expect_poisoned();
	end_poisoned();
}

/* FL-9, I22: poison beneath is looked at last. */
Test(engine_flush, flush_sees_the_poison_that_came_while_it_synced)
{
	struct eng_layer *head = begin_on_overlay();
	struct ask *flush;
	int rule;

	must(do_write(0, 3, BLOCK, BLOCK) == 0);
	rule = hold_record();
	flush = ask_flush(0);
	turn_until(hold_held(rule) == 1);
	eng_layer_poison(head, -EIO); /* as a failed sync of the pool's does */
	hold_release(rule);
	cr_expect_eq(ask_end(flush), -ENOTRECOVERABLE);
	expect_poisoned();
	end_poisoned();
}

/* P3, I8: a flush that waits for the coordinator waits for its own layer, not for the group's. */
Test(engine_flush, flush_waits_for_the_hardening_of_its_own_disk_alone)
{
	struct ask *flush[3];
	char path[3][64];
	struct shot s;
	int rule[3];

	begin(3, 1 << 20);
	for (unsigned i = 0; i < 3; i++) {
		attach(i, 0);
		must(do_write(i, 1, 0, BLOCK) == 0);
		snprintf(path[i], sizeof(path[i]), "%s", strrchr(disk[i]->head->data_path, '/'));
		rule[i] = hold_add(
			(struct hold_rule){.kind = ENG_OP_FDATASYNC, .path = path[i], .most = 1});
	}
	shot_start(&s, "s", -1);
	for (unsigned i = 0; i < 3; i++)
		turn_until(hold_held(rule[i]) == 1);
	for (unsigned i = 0; i < 3; i++)
		flush[i] = ask_flush(i);
	turn_for(20 * MS);
	for (unsigned i = 3; i-- > 0;) { /* the last of the group first */
		cr_expect_not(flush[i]->done, "disk %u", i);
		hold_release(rule[i]);
		cr_expect_eq(ask_end(flush[i]), 0, "disk %u", i);
	}
	must(shot_end(&s) == 0);
	for (unsigned i = 0; i < 3; i++)
		detach(i);
	close_store();
	finish();
}
