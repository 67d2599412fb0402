/* SPDX-License-Identifier: MIT */
/*
 * revert.c - a collection back to a snapshot, all of it or nothing, undone by another revert; who
 * may ask and when; what nothing refers to goes; what a failure and a power loss leave (AS-*, GB-*).
 */
#include "engine/fold/fold.h"
#include "engine/store/garbage.h"
#include "engine/snapshot/revert.h"
#include "tests/sim/sound.h"

TestSuite(sim_revert, .timeout = 300);

#define SIZE (1u << 20)

static int revert_as(const char *name, const char *kept)
{
	struct eng_revert how = {.collection = "c", .name = name, .keep = kept != NULL};
	struct eng_revert_result res;
	int r;

	eng_store_new_id(store, &how.kept_id);
	snprintf(how.kept_name, sizeof(how.kept_name), "%s", kept ? kept : "");
	memset(&err, 0, sizeof(err));
	r = eng_store_revert(store, &how, &err, &res);
	if (r == 0)
		free(res.untouched);
	return r;
}

/* Writes all disks of @n to every one; attached for it alone. */
static void write_all(unsigned disks, uint64_t n)
{
	for (unsigned i = 0; i < disks; i++) {
		attach(i, 0);
		must(do_write(i, n + i, 0, 8 * BLOCK) == 0);
		must(do_write(i, n + i, (uint64_t)(16 + n % 64) * BLOCK, BLOCK) == 0);
		detach(i);
	}
}

/* Which of two states all disks have: @a or @b; a mix of both fails. */
static uint64_t state_of_all(unsigned disks, uint64_t a, uint64_t b)
{
	unsigned of_a = 0, of_b = 0;

	for (unsigned i = 0; i < disks; i++) {
		attach(i, 0);
		if (holds(i, a + i, 0, 8 * BLOCK))
			of_a++;
		else if (holds(i, b + i, 0, 8 * BLOCK))
			of_b++;
		detach(i);
	}
	cr_assert(of_a == disks || of_b == disks, "%u of one state and %u of the other", of_a,
		  of_b);
	return of_a == disks ? a : b;
}

static bool there_is(const char *name)
{
	struct cat_snapshot snap;

	return eng_catalog_get_snapshot(store->catalog, "c", name, &snap) == 0;
}

/* AS-3, AS-4: T25's other half: the branch that was left reads what it held. */
Test(sim_revert, goes_back_and_is_undone_by_another_revert)
{
	begin(2, SIZE);
	write_all(2, 10);
	must(snapshot("s1") == 0);
	write_all(2, 20);
	must(snapshot("s2") == 0);
	write_all(2, 30);
	cr_assert_eq(revert_as("s1", "k1"), 0, "%s", err.text);
	state_of_all(2, 10, 10);
	write_all(2, 40);
	cr_assert_eq(revert_as("k1", "k2"), 0, "%s", err.text);
	state_of_all(2, 30, 30);
	for (unsigned i = 0; i < 2; i++) {
		cr_expect(view_holds("s1", i, 10 + i, 0, 8 * BLOCK));
		cr_expect(view_holds("s2", i, 20 + i, 0, 8 * BLOCK));
		cr_expect(view_holds("k1", i, 30 + i, 0, 8 * BLOCK));
		cr_expect(view_holds("k2", i, 40 + i, 0, 8 * BLOCK));
		cr_expect(view_holds("k2", i, 0, (16 + 30) * BLOCK, BLOCK), "of the other branch");
	}
	close_store();
	expect_sound();
	open_store();
	state_of_all(2, 30, 30);
	end();
}

/* AS-3: where a choice is left, the newest generation is the head. */
Test(sim_revert, a_new_head_is_newer_than_all_of_its_disk)
{
	struct cat_layer *rows = NULL;
	struct cat_disk row;
	size_t n = 0;

	begin(1, SIZE);
	must(snapshot("s1") == 0 && snapshot("s2") == 0 && snapshot("s3") == 0);
	cr_assert_eq(revert_as("s1", "k"), 0);
	must(eng_catalog_get_disk(store->catalog, "a", "d0", &row) == 0);
	must(eng_catalog_list_layers(store->catalog, &row.id, &rows, &n) == 0);
	cr_assert_eq(n, 5);
	cr_expect(fmt_uuid_equal(&rows[n - 1].id, &row.head));
	cr_expect_gt(rows[n - 1].generation, rows[n - 2].generation);
	free(rows);
	end();
}

/* AS-1 */
Test(sim_revert, sizes_go_back_and_new_disks_stay)
{
	struct cat_disk row;

	begin(1, SIZE);
	write_all(1, 10);
	must(snapshot("s1") == 0);
	must(eng_store_resize_disk(store, "a", "d0", 2 * SIZE, &err) == 0);
	attach(0, 0);
	must(do_write(0, 5, SIZE, SIZE) == 0);
	detach(0);
	make_disk(1, SIZE, 0);
	attach(1, 0);
	must(do_write(1, 7, 0, BLOCK) == 0);
	detach(1);
	cr_assert_eq(revert_as("s1", "k"), 0, "%s", err.text);
	must(eng_catalog_get_disk(store->catalog, "a", "d0", &row) == 0);
	cr_expect_eq(row.size, SIZE);
	attach(1, 0);
	cr_expect(holds(1, 7, 0, BLOCK));
	detach(1);
	must(eng_store_resize_disk(store, "a", "d0", 2 * SIZE, &err) == 0);
	attach(0, 0);
	cr_expect(holds(0, 0, SIZE, SIZE), "zeros, not what the other branch has there");
	detach(0);
	cr_assert_eq(revert_as("k", NULL), 0, "%s", err.text);
	attach(0, 0);
	cr_expect(holds(0, 5, SIZE, SIZE));
	detach(0);
	end();
}

/* AS-2: naming it. */
Test(sim_revert, is_refused_while_a_disk_is_attached)
{
	begin(2, SIZE);
	write_all(2, 10);
	must(snapshot("s1") == 0);
	write_all(2, 20);
	attach(1, 0);
	cr_expect_eq(revert_as("s1", "k"), -EBUSY);
	cr_expect(strstr(err.text, "a/d1") != NULL, "%s", err.text);
	cr_expect(holds(1, 21, 0, 8 * BLOCK));
	cr_expect_not(there_is("k"));
	detach(1);
	state_of_all(2, 20, 20);
	cr_expect_eq(revert_as("none", "k"), -ENOENT);
	cr_expect_eq(revert_as("s1", "s1"), -EEXIST);
	state_of_all(2, 20, 20);
	end();
}

/* CU-4: a create has its disks to itself. */
Test(sim_revert, is_refused_while_a_snapshot_is_made)
{
	struct shot s;

	begin(1, SIZE);
	must(snapshot("s1") == 0);
	shot_start(&s, "s2", ENG_SNAPSHOT_CUT);
	turn_until(atomic_load(&s.phase) == ENG_SNAPSHOT_CUT);
	cr_expect_eq(revert_as("s1", "k"), -EBUSY);
	shot_go(&s);
	cr_assert_eq(shot_end(&s), 0);
	cr_expect_eq(revert_as("s1", "k"), 0, "%s", err.text);
	end();
}

/* AS-1 */
Test(sim_revert, a_disk_whose_vm_has_left_the_collection_is_named)
{
	struct cat_collection coll;
	struct cat_vm vm;

	begin(1, SIZE);
	write_all(1, 10);
	must(snapshot("s1") == 0);
	write_all(1, 20);
	must(eng_catalog_get_collection(store->catalog, "c", &coll) == 0);
	must(eng_catalog_get_vm(store->catalog, "a", &vm) == 0);
	must(eng_catalog_begin(store->catalog) == 0);
	eng_catalog_remove_member(store->catalog, &coll.id, &vm.id);
	must(eng_catalog_commit(store->catalog, &err) == 0);
	cr_expect_eq(revert_as("s1", "k"), -EXDEV);
	cr_expect(strstr(err.text, "a/d0") != NULL, "%s", err.text);
	state_of_all(1, 20, 20);
	end();
}

/* GB-2: rows in the transaction, files after it; nothing that a snapshot needs. */
Test(sim_revert, without_keeping_what_only_the_left_state_held_goes)
{
	size_t layers, files;

	begin(2, SIZE);
	write_all(2, 10);
	must(snapshot("s1") == 0);
	layers = count_layers();
	files = count_files();
	write_all(2, 20);
	must(snapshot("s2") == 0);
	write_all(2, 30);
	must(revert_as("s1", NULL) == 0);
	cr_expect_eq(count_layers(), layers + 2, "s2's layers and one head a disk");
	must(delete_snapshot("s2") == 0);
	cr_expect_eq(count_layers(), layers, "a branch's end goes with its snapshot");
	cr_expect_eq(count_files(), files);
	state_of_all(2, 10, 10);
	end();
}

/* A layer that a branch stands on stays when its snapshot goes, with all beneath it (DL-6). */
Test(sim_revert, a_deleted_snapshot_leaves_what_a_branch_stands_on)
{
	begin(1, SIZE);
	write_all(1, 10);
	must(snapshot("s1") == 0);
	write_all(1, 20);
	must(snapshot("s2") == 0);
	write_all(1, 30);
	must(revert_as("s1", "k") == 0);
	write_all(1, 40);
	must(delete_snapshot("s1") == 0 && delete_snapshot("s2") == 0);
	state_of_all(1, 40, 40);
	cr_expect(view_holds("k", 0, 30, 0, 8 * BLOCK));
	cr_expect(view_holds("k", 0, 20, (16 + 20) * BLOCK, BLOCK));
	must(revert_as("k", NULL) == 0);
	state_of_all(1, 30, 30);
	must(delete_snapshot("k") == 0);
	state_of_all(1, 30, 30);
	end();
}

/* GB-2, DL-5 */
Test(sim_revert, a_reader_keeps_the_branch_it_reads)
{
	struct eng_disk *view;
	struct cat_disk row;

	begin(1, SIZE);
	must(snapshot("s1") == 0);
	write_all(1, 20);
	must(snapshot("s2") == 0);
	must(revert_as("s1", NULL) == 0);
	must(eng_store_attach(store, queue[0], "c@s2/a/d0", ENG_ATTACH_READ_ONLY, &err, &view) ==
	     0);
	must(delete_snapshot("s2") == 0);
	cr_expect(disk_holds(view, 20, 0, 8 * BLOCK));
	must(eng_catalog_get_disk(store->catalog, "a", "d0", &row) == 0);
	cr_expect_eq(eng_garbage_sweep(store, &row.id), -EBUSY);
	cr_expect_eq(count_layers(), 3);
	must(eng_store_detach(view) == 0);
	cr_expect_eq(eng_garbage_sweep(store, &row.id), 0);
	cr_expect_eq(count_layers(), 2);
	end();
}

/* GB-2: the reader leaves, and before the folds' thread comes by the store is closed. */
Test(sim_revert, what_a_reader_kept_goes_with_the_close)
{
	struct eng_disk *view;

	begin(1, SIZE);
	must(snapshot("s1") == 0);
	write_all(1, 20);
	must(snapshot("s2") == 0);
	must(revert_as("s1", NULL) == 0);
	close_store();
	options.no_folds = false;
	open_store();
	eng_folder_pause(store->folder, true);
	must(eng_store_attach(store, queue[0], "c@s2/a/d0", ENG_ATTACH_READ_ONLY, &err, &view) ==
	     0);
	must(delete_snapshot("s2") == 0);
	cr_expect_eq(count_layers(), 3);
	must(eng_store_detach(view) == 0);
	end();
}

/* AS-6: each call that may fail, once: the old state goes on and can be written, or the new one is whole. */
Test(sim_revert, a_failure_anywhere_leaves_one_of_the_two_states)
{
	bool done = false;

	for (uint64_t nth = 0; !done; nth++) {
		struct eng_fault_rule rule = {.ops = (1u << ENG_FAULT_OPS) - 1,
					      .skip = nth,
					      .error = -EIO};
		int r, id;

		begin(2, SIZE);
		write_all(2, 10);
		must(snapshot("s1") == 0);
		write_all(2, 20);
		id = eng_fault_add(fault, &rule);
		r = revert_as("s1", "k");
		done = eng_fault_struck(fault, id) == 0;
		eng_fault_clear(fault);
		if (r == 0) {
			state_of_all(2, 10, 10);
		} else if (!eng_catalog_poisoned(store->catalog)) {
			cr_expect_not(there_is("k"), "call %llu", (unsigned long long)nth);
			state_of_all(2, 20, 20);
			write_all(2, 20);
		}
		close_store();
		expect_undamaged();
		open_store();
		cr_expect_eq(there_is("k"), state_of_all(2, 10, 20) == 10, "call %llu",
			     (unsigned long long)nth);
		write_all(2, 50);
		close_store();
		finish();
	}
}

struct loss {
	bool keep;
	uint64_t done;
};

static void expect_reverted_or_not(uint64_t index, void *arg)
{
	const struct loss *loss = arg;
	uint64_t state = state_of_all(2, 10, 20);

	cr_expect(index < loss->done || state == 10, "event %llu: undone",
		  (unsigned long long)index);
	if (loss->keep)
		cr_expect_eq(there_is("k"), state == 10, "event %llu", (unsigned long long)index);
	for (unsigned i = 0; i < 2; i++) {
		cr_expect(view_holds("s1", i, 10 + i, 0, 8 * BLOCK));
		if (loss->keep && state == 10)
			cr_expect(view_holds("k", i, 20 + i, 0, 8 * BLOCK));
	}
	write_all(2, 50);
	close_store();
	expect_sound();
	open_store();
}

/* P2 of a revert: at whichever event, over all disks; undone by what it kept. */
static void lose_power_at_each(bool keep)
{
	struct loss loss = {.keep = keep};
	uint64_t first;

	begin(2, SIZE);
	record_from_here();
	write_all(2, 10);
	must(snapshot("s1") == 0);
	write_all(2, 20);
	first = eng_record_index(recording);
	must(revert_as("s1", keep ? "k" : NULL) == 0);
	loss.done = eng_record_index(recording);
	close_store();
	lose_power(first, eng_record_index(recording), expect_reverted_or_not, &loss);
}

Test(sim_revert, power_may_fail_at_any_event)
{
	lose_power_at_each(true);
}

Test(sim_revert, power_may_fail_at_any_event_of_one_that_keeps_nothing)
{
	lose_power_at_each(false);
}
