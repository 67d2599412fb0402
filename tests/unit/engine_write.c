/* SPDX-License-Identifier: MIT */
/*
 * engine_write.c - where a write's bytes go and what it needs before: T5 (the region built late), T15,
 * T17, T18, and that a write which must wait for space, log or journal is always woken.
 */
#include "tests/unit/engine_store.h"

TestSuite(engine_write, .timeout = 120);

static struct eng_layer *begin_on_overlay(uint64_t size)
{
	begin(1, size);
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

static void end_reopened(void)
{
	detach(0);
	close_store();
	open_store();
	attach(0, 0);
}

/* T18, RL-6 */
Test(engine_write, only_the_guests_sectors_of_an_own_block_are_written)
{
	struct ask *write;
	int rule;

	begin_on_overlay(1 << 20);
	rule = hold_add((struct hold_rule){.kind = ENG_OP_WRITE, .path = ".vmo", .mine = true});
	write = ask_write(0, 3, 1024, 512);
	turn_until(hold_held(rule) == 1);
	cr_expect_eq(hold.rules[rule].len, 512u);
	cr_expect_eq(hold.rules[rule].offset % BLOCK, 1024u);
	hold_release(rule);
	must(ask_end(write) == 0);
	cr_expect(holds(0, 2, 0, 1024) && holds(0, 3, 1024, 512) && holds(0, 2, 1536, 2560));
	rule = hold_add((struct hold_rule){.kind = ENG_OP_WRITE, .path = ".vmo", .mine = true});
	write = ask_write(0, 4, BLOCK + 512, 512);
	turn_until(hold_held(rule) == 1);
	cr_expect_eq(hold.rules[rule].len, BLOCK, "absent here: the whole block");
	hold_release(rule);
	must(ask_end(write) == 0);
	cr_expect(holds(0, 1, BLOCK, 512) && holds(0, 4, BLOCK + 512, 512));
	end();
}

/* T17 */
Test(engine_write, discarded_block_keeps_its_slot)
{
	struct eng_layer *head = begin_on_overlay(1 << 20);
	uint32_t slot, next;

	must(do_write(0, 3, 5 * BLOCK, BLOCK) == 0 && do_flush(0) == 0);
	slot = eng_map_get(disk[0]->map, 5).slot;
	next = head->next_slot;
	must(do_op(0, ENG_DISCARD, 0, 5 * BLOCK, BLOCK) == 0);
	cr_expect_eq(eng_map_get(disk[0]->map, 5).state, ENG_MAP_ZERO);
	must(do_write(0, 4, 6 * BLOCK, BLOCK) == 0);
	cr_expect_neq(eng_map_get(disk[0]->map, 6).slot, slot, "not given to another block");
	must(do_write(0, 5, 5 * BLOCK, BLOCK) == 0);
	cr_expect_eq(eng_map_get(disk[0]->map, 5).slot, slot);
	cr_expect_eq(head->next_slot, next + 1);
	cr_expect(holds(0, 5, 5 * BLOCK, BLOCK) && holds(0, 4, 6 * BLOCK, BLOCK));
	end();
}

/* T17: state zero counts as absent. */
Test(engine_write, partial_write_to_a_discarded_block_finds_zeros)
{
	begin_on_overlay(1 << 20);
	must(do_op(0, ENG_DISCARD, 0, 0, BLOCK) == 0);
	must(do_write(0, 3, 512, 512) == 0);
	cr_expect(holds(0, 0, 0, 512) && holds(0, 3, 512, 512) && holds(0, 0, 1024, 3072));
	must(do_op(0, ENG_WRITE_ZEROES, 0, BLOCK + 100, 2 * BLOCK) == 0);
	cr_expect(holds(0, 1, BLOCK, 100) && holds(0, 0, BLOCK + 100, 2 * BLOCK));
	cr_expect(holds(0, 1, 3 * BLOCK + 100, BLOCK - 100));
	end_reopened();
	cr_expect(holds(0, 0, 0, 512) && holds(0, 3, 512, 512) && holds(0, 0, 1024, 3072));
	cr_expect(holds(0, 1, BLOCK, 100) && holds(0, 0, BLOCK + 100, 2 * BLOCK));
	end();
}

/* --- T5: a region built late --- */

static sem_t build_may_go;
static _Atomic bool build_waits;

static void wait_for_build(void *arg)
{
	(void)arg;
	atomic_store(&build_waits, true);
	while (sem_wait(&build_may_go) < 0)
		;
}

static bool is_sealed(void)
{
	struct cat_layer *rows = NULL;
	bool sealed = false;
	size_t n = 0;

	must(eng_catalog_list_layers(store->catalog, NULL, &rows, &n) == 0);
	for (size_t i = 0; i < n; i++)
		sealed = sealed || rows[i].state == CAT_LAYER_SEALED;
	free(rows);
	return sealed;
}

/* T5, M1, I13 */
Test(engine_write, region_built_late_replaces_nothing_newer)
{
	struct eng_fault_rule rule = {.ops = ENG_FAULT_PREAD,
				      .path = ".vmo",
				      .strike = wait_for_build};
	struct ask *read, *partial;

	begin_on_overlay(1 << 20);
	must(snapshot("s1") == 0);
	turn_until(is_sealed());
	end_reopened(); /* the sealed layer answers by its index from here on */
	cr_assert_geq(disk[0]->indexed, 2u);
	sem_init(&build_may_go, 0, 0);
	must(eng_fault_add(fault, &rule) >= 0);
	read = ask(0, 0, ENG_READ, 0, 0, 0, BLOCK);
	turn_until(atomic_load(&build_waits));
	must(do_write(0, 7, 0, BLOCK) == 0);
	must(do_op(0, ENG_DISCARD, 0, BLOCK, BLOCK) == 0);
	partial = ask_write(0, 8, 2 * BLOCK, 512); /* needs the old content */
	turn_for(10 * MS);
	cr_expect(!read->done && !partial->done);
	eng_fault_clear(fault);
	sem_post(&build_may_go);
	must(ask_end(read) == 0 && ask_end(partial) == 0);
	cr_expect(holds(0, 7, 0, BLOCK), "the build replaced a newer entry");
	cr_expect(holds(0, 0, BLOCK, BLOCK));
	cr_expect(holds(0, 8, 2 * BLOCK, 512) && holds(0, 1, 2 * BLOCK + 512, BLOCK - 512));
	cr_expect(view_holds("s1", 0, 2, 0, BLOCK) && view_holds("s1", 0, 1, BLOCK, BLOCK));
	end();
}

/* --- writes that wait --- */

/* T15, JN-6: many mappings in one write, more than a log segment takes one by one. */
Test(engine_write, write_over_a_fragmented_area_ends)
{
	begin_on_overlay(16 << 20);
	for (unsigned i = 0; i < 2000; i += 2)
		must(do_write(0, 3, i * BLOCK, BLOCK) == 0);
	must(do_flush(0) == 0);
	must(do_write(0, 4, 0, 2000 * BLOCK) == 0);
	must(do_flush(0) == 0);
	cr_expect(holds(0, 4, 0, 2000 * BLOCK));
	end_reopened();
	cr_expect(holds(0, 4, 0, 2000 * BLOCK));
	end();
}

/* T15, JN-6: many such writes at once wait for one another, and none for ever. */
Test(engine_write, many_fragmented_writes_at_once_all_end)
{
	struct ask *writes[12];

	begin_on_overlay(96 << 20);
	for (unsigned i = 0; i < 12 * 2000; i += 2)
		must(do_write(0, 3, i * BLOCK, BLOCK) == 0);
	must(do_flush(0) == 0);
	for (unsigned i = 0; i < 12; i++)
		writes[i] = ask_write(0, 4, (uint64_t)i * 2000 * BLOCK, 2000 * BLOCK);
	for (unsigned i = 0; i < 12; i++)
		must(ask_end(writes[i]) == 0);
	cr_expect(holds(0, 4, 0, 2000 * BLOCK) && holds(0, 4, 22000ull * BLOCK, 2000 * BLOCK));
	end();
}

/* T15 */
Test(engine_write, full_disk_fails_writes_and_no_flush)
{
	struct eng_fault_rule rule = {.ops = ENG_FAULT_ALLOCATE,
				      .path = ".vmo",
				      .sticky = true,
				      .error = -ENOSPC};
	uint64_t written = 0;
	int r = 0;

	begin_on_overlay(64 << 20);
	must(eng_fault_add(fault, &rule) >= 0);
	while (r == 0 && written < 15000) {
		r = do_write(0, 3, (written * 2 % 16000 + written * 2 / 16000) * BLOCK, 512);
		written += r == 0;
		cr_assert_eq(do_flush(0), 0, "after %lu writes", written);
	}
	cr_expect_eq(r, -ENOSPC, "after %lu writes", written);
	cr_expect_eq(do_flush(0), 0);
	/* Mappings without data use up the log: in the end they are refused, no flush ever is. */
	for (unsigned i = 0; i < 1500; i++) {
		r = do_op(0, ENG_DISCARD, 0, (16200 + i % 100) * BLOCK, BLOCK);
		cr_assert(r == 0 || r == -ENOSPC);
		cr_assert_eq(do_flush(0), 0, "after %u discards", i);
	}
	cr_expect_eq(r, -ENOSPC);
	cr_expect_eq(do_write(0, 4, 0, BLOCK), 0, "in place needs nothing");
	cr_expect_eq(ask_end(ask(0, 0, ENG_WRITE, ENG_REQ_FUA, 5, 0, 512)), 0);
	cr_expect_eq(do_flush(0), 0);
	eng_fault_clear(fault);
	cr_expect_eq(do_write(0, 6, 16100 * BLOCK, BLOCK), 0, "there is space again");
	end_reopened();
	for (uint64_t i = 1; i < written; i += 7)
		cr_expect(holds(0, 3, (i * 2 % 16000 + i * 2 / 16000) * BLOCK, 512), "write %lu",
			  i);
	cr_expect(holds(0, 6, 16100 * BLOCK, BLOCK));
	must(snapshot("s") == 0);
	turn_until(is_sealed());
	end();
}

/* T15, FL-8: a log of many segments, each record flushed alone. */
Test(engine_write, log_of_many_segments_is_replayed)
{
	struct eng_layer *head = begin_on_overlay(64 << 20);
	unsigned n = 1500;

	for (unsigned i = 0; i < n; i++)
		must(do_write(0, 3 + i, 2ull * i * BLOCK, BLOCK) == 0 && do_flush(0) == 0);
	cr_expect_geq(head->log.segments, 3u);
	end_reopened();
	for (unsigned i = 0; i < n; i++)
		cr_expect(holds(0, 3 + i, 2ull * i * BLOCK, BLOCK), "block %u", 2 * i);
	must(do_write(0, 2, BLOCK, BLOCK) == 0 && do_flush(0) == 0);
	must(snapshot("s") == 0);
	cr_expect(view_holds("s", 0, 3 + 100, 200 * BLOCK, BLOCK));
	end();
}

/* An error of one part of a request is the request's; nothing of it is published. */
Test(engine_write, failed_write_is_not_published)
{
	struct ask *write;
	int rule;

	begin_on_overlay(1 << 20);
	rule = hold_add((struct hold_rule){.kind = ENG_OP_WRITE, .path = ".vmo", .mine = true});
	write = ask_write(0, 3, 4 * BLOCK, 2 * BLOCK);
	turn_until(hold_held(rule) == 1);
	hold_release_error(rule, -EIO);
	cr_expect_eq(ask_end(write), -EIO);
	cr_expect(holds(0, 1, 4 * BLOCK, 2 * BLOCK));
	must(do_write(0, 4, 4 * BLOCK, BLOCK) == 0);
	cr_expect_eq(do_flush(0), 0);
	end_reopened();
	cr_expect(holds(0, 4, 4 * BLOCK, BLOCK) && holds(0, 1, 5 * BLOCK, BLOCK));
	end();
}
