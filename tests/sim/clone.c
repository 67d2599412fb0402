/* SPDX-License-Identifier: MIT */
/*
 * clone.c - a collection made from a snapshot: what it holds, what stays for it whatever goes, folds of
 * layers that several disks stand on, and what a failure and a power loss leave (CL-*, GB-*).
 */
#include "engine/snapshot/clone.h"
#include "engine/snapshot/flatten.h"
#include "engine/fold/fold.h"
#include "engine/store/garbage.h"
#include "engine/snapshot/revert.h"
#include "tests/sim/sound.h"

TestSuite(sim_clone, .timeout = 300);

#define SIZE (1u << 20)

static int clone_to(const char *collection, const char *name, const char *to)
{
	struct eng_clone how = {.collection = collection, .name = name, .to = to};
	struct eng_clone_result res;
	int r;

	memset(&err, 0, sizeof(err));
	r = eng_store_clone(store, &how, &err, &res);
	if (r == 0)
		free(res.skipped);
	return r;
}

/* Disk @path on queue @q as disk[@slot], for the helpers. */
static void attach_as(unsigned slot, const char *path, unsigned q)
{
	must(eng_store_attach(store, queue[q], path, 0, &err, &disk[slot]) == 0);
}

static void write_path(const char *path, uint64_t n, uint64_t offset, uint64_t len)
{
	attach_as(9, path, 0);
	must(do_write(9, n, offset, len) == 0);
	detach(9);
}

static bool path_holds(const char *path, uint64_t n, uint64_t offset, uint64_t len)
{
	bool same;

	attach_as(9, path, 0);
	same = holds(9, n, offset, len);
	detach(9);
	return same;
}

static bool there_is(const char *collection)
{
	struct cat_collection coll;

	return eng_catalog_get_collection(store->catalog, collection, &coll) == 0;
}

/* CL-1, CL-2: from a snapshot of disks in use; both sides go their own ways. */
Test(sim_clone, holds_what_the_snapshot_holds_and_is_written_at_once)
{
	begin(2, SIZE);
	attach(0, 0);
	attach(1, 1);
	must(do_write(0, 10, 0, 8 * BLOCK) == 0 && do_write(1, 11, 0, 8 * BLOCK) == 0);
	must(snapshot("s1") == 0);
	must(do_write(0, 20, 0, 4 * BLOCK) == 0);
	cr_assert_eq(clone_to("c", "s1", "n"), 0, "%s", err.text);
	attach_as(2, "n-a/d0", 0);
	attach_as(3, "n-a/d1", 1);
	cr_expect(holds(2, 10, 0, 8 * BLOCK));
	cr_expect(holds(3, 11, 0, 8 * BLOCK));
	must(do_write(2, 30, 2 * BLOCK, 512) == 0 && do_flush(2) == 0);
	cr_expect(holds(2, 10, 0, 2 * BLOCK));
	cr_expect(holds(2, 30, 2 * BLOCK, 512));
	cr_expect(holds(2, 10, 2 * BLOCK + 512, BLOCK));
	cr_expect(holds(0, 20, 0, 4 * BLOCK));
	cr_expect(view_holds("s1", 0, 10, 0, 8 * BLOCK));
	for (unsigned i = 0; i < 4; i++)
		detach(i);
	end();
}

Test(sim_clone, what_cannot_be_is_refused_and_changes_nothing)
{
	char longest[CAT_NAME_MAX];
	size_t layers;

	memset(longest, 'x', sizeof(longest) - 1);
	longest[sizeof(longest) - 1] = 0;
	begin(1, SIZE);
	must(snapshot("s1") == 0);
	layers = count_layers();
	cr_expect_eq(clone_to("c", "none", "n"), -ENOENT);
	cr_expect_eq(clone_to("c", "s1", "c"), -EEXIST);
	cr_expect_eq(clone_to("c", "s1", longest), -EINVAL);
	make_collection("other", "n-a");
	cr_expect_eq(clone_to("c", "s1", "n"), -EEXIST);
	cr_expect(strstr(err.text, "n-a") != NULL, "%s", err.text);
	cr_expect_eq(count_layers(), layers);
	cr_expect_not(there_is("n"));
	end();
}

/* GB-1, FO-9: nobody else asks for it; the origin's chain would stay as long as the clone made it */
Test(sim_clone, what_it_stood_on_is_folded_when_it_has_gone)
{
	begin(1, SIZE);
	close_store();
	options.no_folds = false;
	options.fold_rate = UINT64_MAX;
	open_store();
	write_path("a/d0", 10, 0, 8 * BLOCK);
	must(snapshot("s1") == 0);
	write_path("a/d0", 20, 8 * BLOCK, 8 * BLOCK);
	must(snapshot("s2") == 0);
	must(clone_to("c", "s1", "n") == 0);
	must(delete_snapshot("s1") == 0 && delete_snapshot("s2") == 0);
	turn_for(2 * SECOND);
	cr_expect_eq(count_layers(), 4); /* the base has two children */
	must(eng_store_delete_disk(store, "n-a", "d0", &err) == 0);
	turn_until(count_layers() == 2);
	cr_expect(path_holds("a/d0", 10, 0, 8 * BLOCK));
	cr_expect(path_holds("a/d0", 20, 8 * BLOCK, 8 * BLOCK));
	end();
}

/* CL-5, T25: whatever goes above and beside it. */
Test(sim_clone, keeps_what_it_stands_on_until_it_goes)
{
	size_t layers, files;

	begin(1, SIZE);
	write_path("a/d0", 10, 0, 8 * BLOCK);
	must(snapshot("s1") == 0);
	write_path("a/d0", 20, 8 * BLOCK, 8 * BLOCK);
	must(snapshot("s2") == 0);
	write_path("a/d0", 30, 0, 16 * BLOCK);
	layers = count_layers();
	files = count_files();
	must(clone_to("c", "s2", "n") == 0);
	write_path("n-a/d0", 40, 0, BLOCK);
	cr_expect_eq(eng_store_delete_disk(store, "a", "d0", &err), -EBUSY);
	must(delete_snapshot("s1") == 0 && delete_snapshot("s2") == 0);
	cr_expect_eq(eng_store_delete_disk(store, "a", "d0", &err), -EBUSY);
	cr_expect(strstr(err.text, "n-a/d0") != NULL, "%s", err.text);
	close_store();
	expect_sound();
	open_store();
	cr_expect(path_holds("n-a/d0", 40, 0, BLOCK));
	cr_expect(path_holds("n-a/d0", 10, BLOCK, 7 * BLOCK));
	cr_expect(path_holds("n-a/d0", 20, 8 * BLOCK, 8 * BLOCK));
	cr_expect_eq(count_layers(), layers + 1);
	must(eng_store_delete_disk(store, "n-a", "d0", &err) == 0);
	cr_expect_eq(count_layers(), layers);
	cr_expect_eq(count_files(), files);
	cr_expect(path_holds("a/d0", 30, 0, 16 * BLOCK));
	must(eng_store_delete_disk(store, "a", "d0", &err) == 0);
	cr_expect_eq(count_files(), 0);
	end();
}

/* GB-1: the origin was reverted past it: only the clone holds the branch, and takes it along. */
Test(sim_clone, takes_along_what_it_alone_held)
{
	struct eng_revert how = {.collection = "c", .name = "s1"};
	struct eng_revert_result res;
	size_t layers;

	begin(1, SIZE);
	write_path("a/d0", 10, 0, 8 * BLOCK);
	must(snapshot("s1") == 0);
	layers = count_layers();
	write_path("a/d0", 20, 0, 8 * BLOCK);
	must(snapshot("s2") == 0);
	must(clone_to("c", "s2", "n") == 0);
	must(eng_store_revert(store, &how, &err, &res) == 0);
	free(res.untouched);
	must(delete_snapshot("s2") == 0);
	cr_expect(path_holds("n-a/d0", 20, 0, 8 * BLOCK));
	cr_expect(path_holds("a/d0", 10, 0, 8 * BLOCK));
	must(eng_store_delete_disk(store, "n-a", "d0", &err) == 0);
	cr_expect_eq(count_layers(), layers, "s2's layer has gone with it");
	end();
}

static size_t chain_length(const char *vm)
{
	struct cat_layer *chain = NULL;
	struct cat_disk row;
	size_t n = 0;

	must(eng_catalog_get_disk(store->catalog, vm, "d0", &row) == 0);
	must(eng_catalog_chain(store->catalog, &row.head, &chain, &n) == 0);
	free(chain);
	return n;
}

/*
 * CL-4: layers under the origin and two clones, all three attached and read all the time, one of them
 * by nobody else; then nobody uses the inputs.
 */
Test(sim_clone, layers_of_several_disks_are_folded_under_all_of_them)
{
	begin_in("/dev/shm");
	options.no_folds = true;
	open_store();
	make_collection("c", "a");
	make_disk(0, SIZE, 0);
	for (unsigned i = 0; i < 6; i++) {
		char name[8];

		snprintf(name, sizeof(name), "s%u", i);
		write_path("a/d0", 10 + i, i * 4 * BLOCK, 8 * BLOCK);
		must(snapshot(name) == 0);
	}
	must(clone_to("c", "s5", "n") == 0 && clone_to("c", "s5", "m") == 0);
	for (unsigned i = 0; i < 5; i++) {
		char name[8];

		snprintf(name, sizeof(name), "s%u", i);
		must(delete_snapshot(name) == 0);
	}
	cr_expect_eq(chain_length("n-a"), 7);
	close_store();
	options.no_folds = false;
	open_store();
	eng_folder_set_rate(store->folder, 0);
	attach(0, 0);
	attach_as(1, "n-a/d0", 1);
	must(do_write(1, 50, 0, BLOCK) == 0);
	turn_until(chain_length("n-a") <= 3 && count_files() <= 5);
	for (unsigned i = 0; i < 5; i++) {
		cr_expect(holds(0, 10 + i, i * 4 * BLOCK, 4 * BLOCK), "write %u", i);
		cr_expect(holds(1, i ? 10 + i : 50, i * 4 * BLOCK, i ? 4 * BLOCK : BLOCK));
	}
	cr_expect(holds(1, 10, BLOCK, 3 * BLOCK));
	attach_as(2, "m-a/d0", 0);
	cr_expect(holds(2, 15, 5 * 4 * BLOCK, 8 * BLOCK));
	for (unsigned i = 0; i < 3; i++)
		detach(i);
	cr_expect_leq(chain_length("a"), 3, "base, the folded one, the head");
	end();
}

/* FO-5, CL-4: a reader of a clone's snapshot reads what the origin's fold would take away. */
Test(sim_clone, a_reader_of_one_holds_up_the_folds_of_all)
{
	struct eng_disk *view;
	struct cat_job none = {.state = 0};
	bool marked;
	size_t n;

	begin_in("/dev/shm");
	options.no_folds = false;
	open_store();
	eng_folder_set_rate(store->folder, 0);
	make_collection("c", "a");
	make_disk(0, SIZE, 0);
	for (unsigned i = 0; i < 3; i++) {
		char name[8];

		snprintf(name, sizeof(name), "s%u", i);
		write_path("a/d0", 10 + i, i * BLOCK, BLOCK);
		must(snapshot(name) == 0);
	}
	must(clone_to("c", "s2", "n") == 0);
	{
		struct shot s;

		must(shot_check("n", "t", 10 * SECOND, &s) == 0);
		shot_launch(&s);
		must(shot_end(&s) == 0);
	}
	must(eng_store_attach(store, queue[0], "n@t/n-a/d0", ENG_ATTACH_READ_ONLY, &err, &view) ==
	     0);
	n = chain_length("n-a");
	must(delete_snapshot("s0") == 0 && delete_snapshot("s1") == 0);
	turn_for(7 * SECOND);
	cr_expect_eq(chain_length("n-a"), n, "nothing is folded under the reader");
	cr_expect(disk_holds(view, 11, BLOCK, BLOCK));
	must(eng_store_detach(view) == 0);
	turn_until(chain_length("n-a") < n);
	must(eng_store_delete_snapshot(store, "n", "t", &none, &marked, &err) == 0);
	cr_expect(path_holds("n-a/d0", 12, 2 * BLOCK, BLOCK));
	cr_expect(path_holds("n-a/d0", 10, 0, BLOCK));
	end();
}

/* CL-3: each call that may fail, once: no clone, or a whole one. */
Test(sim_clone, a_failure_anywhere_leaves_all_of_it_or_nothing)
{
	bool done = false;

	for (uint64_t nth = 0; !done; nth++) {
		struct eng_fault_rule rule = {.ops = (1u << ENG_FAULT_OPS) - 1,
					      .skip = nth,
					      .error = -EIO};
		int r, id;

		begin(2, SIZE);
		write_path("a/d0", 10, 0, BLOCK);
		write_path("a/d1", 11, 0, BLOCK);
		must(snapshot("s1") == 0);
		id = eng_fault_add(fault, &rule);
		r = clone_to("c", "s1", "n");
		done = eng_fault_struck(fault, id) == 0;
		eng_fault_clear(fault);
		if (!eng_catalog_poisoned(store->catalog))
			cr_expect_eq(there_is("n"), r == 0, "call %llu", (unsigned long long)nth);
		close_store();
		open_store();
		if (there_is("n")) {
			cr_expect(path_holds("n-a/d0", 10, 0, BLOCK));
			cr_expect(path_holds("n-a/d1", 11, 0, BLOCK));
		}
		write_path("a/d0", 20, 0, BLOCK);
		close_store();
		finish();
	}
}

static void expect_clone_or_none(uint64_t index, void *arg)
{
	uint64_t done = *(const uint64_t *)arg;

	cr_expect(there_is("n") || index < done, "event %llu: gone", (unsigned long long)index);
	if (there_is("n")) {
		cr_expect(path_holds("n-a/d0", 10, 0, BLOCK));
		cr_expect(path_holds("n-a/d1", 11, 0, BLOCK));
		write_path("n-a/d0", 20, 0, BLOCK);
	}
	cr_expect(path_holds("a/d0", 10, 0, BLOCK));
	close_store();
	expect_sound();
	open_store();
}

/* P2 of a clone: at whichever event, over all disks. */
Test(sim_clone, power_may_fail_at_any_event)
{
	uint64_t first, done;

	begin(2, SIZE);
	record_from_here();
	write_path("a/d0", 10, 0, BLOCK);
	write_path("a/d1", 11, 0, BLOCK);
	must(snapshot("s1") == 0);
	first = eng_record_index(recording);
	must(clone_to("c", "s1", "n") == 0);
	done = eng_record_index(recording);
	close_store();
	lose_power(first, eng_record_index(recording), expect_clone_or_none, &done);
}

/* --- flatten --- */

struct flat {
	pthread_t thread;
	struct fmt_uuid disk;
	struct eng_progress progress;
	_Atomic bool done;
	int result;
	uint64_t copied;
	struct fmt_error why;
};

static void *flat_main(void *arg)
{
	struct flat *f = arg;

	f->result = eng_store_flatten(store, &f->disk, true, &f->progress, &f->why, &f->copied);
	atomic_store(&f->done, true);
	return NULL;
}

static void flat_start(struct flat *f, const char *vm)
{
	struct cat_disk row;

	memset(f, 0, sizeof(*f));
	must(eng_catalog_get_disk(store->catalog, vm, "d0", &row) == 0);
	f->disk = row.id;
	must(pthread_create(&f->thread, NULL, flat_main, f) == 0);
}

static int flat_end(struct flat *f)
{
	turn_until(atomic_load(&f->done));
	pthread_join(f->thread, NULL);
	return f->result;
}

static int flatten(const char *vm)
{
	struct flat f;

	flat_start(&f, vm);
	return flat_end(&f);
}

static bool stands_alone(const char *vm)
{
	struct cat_layer *chain = NULL;
	struct cat_disk row;
	bool alone = true;
	size_t n = 0;

	must(eng_catalog_get_disk(store->catalog, vm, "d0", &row) == 0);
	must(eng_catalog_chain(store->catalog, &row.head, &chain, &n) == 0);
	for (size_t i = 0; i < n; i++)
		alone = alone && fmt_uuid_equal(&chain[i].disk, &row.id);
	free(chain);
	return alone;
}

/* A disk of three snapshots, cloned from the last; the clone has written over some of it. */
static void make_clone(void)
{
	write_path("a/d0", 10, 0, 32 * BLOCK);
	must(snapshot("s1") == 0);
	write_path("a/d0", 20, 8 * BLOCK, 8 * BLOCK);
	must(snapshot("s2") == 0);
	attach(0, 0);
	must(do_op(0, ENG_DISCARD, 0, 4 * BLOCK, 2 * BLOCK) == 0);
	detach(0);
	must(snapshot("s3") == 0);
	must(clone_to("c", "s3", "n") == 0);
	write_path("n-a/d0", 30, 12 * BLOCK, 2 * BLOCK + 512);
	write_path("a/d0", 40, 0, 32 * BLOCK);
}

static bool clone_is_right(struct eng_disk *which)
{
	return disk_holds(which, 10, 0, 4 * BLOCK) && disk_holds(which, 0, 4 * BLOCK, 2 * BLOCK) &&
	       disk_holds(which, 10, 6 * BLOCK, 2 * BLOCK) &&
	       disk_holds(which, 20, 8 * BLOCK, 4 * BLOCK) &&
	       disk_holds(which, 30, 12 * BLOCK, 2 * BLOCK + 512) &&
	       disk_holds(which, 20, 14 * BLOCK + 512, 2 * BLOCK - 512) &&
	       disk_holds(which, 10, 16 * BLOCK, 16 * BLOCK) &&
	       disk_holds(which, 0, 32 * BLOCK, SIZE - 32 * BLOCK);
}

static void expect_clone(const char *path)
{
	attach_as(9, path, 0);
	cr_expect(clone_is_right(disk[9]), "%s", path);
	detach(9);
}

/* FT-1, FT-3: then origin and clone know nothing of each other. */
Test(sim_clone, a_flattened_clone_is_independent)
{
	begin(1, SIZE);
	make_clone();
	cr_assert_eq(flatten("n-a"), 0);
	cr_expect(stands_alone("n-a"));
	expect_clone("n-a/d0");
	cr_expect_eq(flatten("n-a"), 0, "once more does nothing");
	cr_expect(view_holds("s3", 0, 20, 8 * BLOCK, 8 * BLOCK));
	close_store();
	expect_sound();
	open_store();
	expect_clone("n-a/d0");
	must(delete_snapshot("s1") == 0 && delete_snapshot("s2") == 0 &&
	     delete_snapshot("s3") == 0);
	cr_expect_eq(eng_store_delete_disk(store, "a", "d0", &err), 0, "%s", err.text);
	expect_clone("n-a/d0");
	write_path("n-a/d0", 50, 0, SIZE);
	end();
}

/* FT-4: the origin's snapshot has gone already: what it held goes with the last who stood on it. */
Test(sim_clone, what_a_flattened_clone_stood_on_goes)
{
	struct eng_revert how = {.collection = "c", .name = "s1"};
	struct eng_revert_result res;
	size_t layers;

	begin(1, SIZE);
	make_clone();
	must(eng_store_revert(store, &how, &err, &res) == 0);
	free(res.untouched);
	must(delete_snapshot("s2") == 0 && delete_snapshot("s3") == 0);
	layers = count_layers();
	cr_assert_eq(flatten("n-a"), 0);
	cr_expect_eq(count_layers(), layers - 1, "two layers of the origin's less, a base more");
	expect_clone("n-a/d0");
	end();
}

/* FT-4: under its guest, and under a clone of the clone, with snapshots of both. */
Test(sim_clone, is_flattened_while_it_is_used)
{
	struct flat f;
	uint64_t n = 100;

	begin(1, SIZE);
	make_clone();
	{
		struct shot s;

		must(shot_check("n", "t", 10 * SECOND, &s) == 0);
		shot_launch(&s);
		must(shot_end(&s) == 0);
	}
	must(clone_to("n", "t", "m") == 0);
	attach_as(1, "n-a/d0", 0);
	attach_as(2, "m-n-a/d0", 1);
	cr_expect(clone_is_right(disk[1]) && clone_is_right(disk[2]));
	flat_start(&f, "n-a");
	while (!atomic_load(&f.done)) {
		must(do_write(1, ++n, 40 * BLOCK, BLOCK) == 0);
		cr_expect(holds(1, n, 40 * BLOCK, BLOCK));
		cr_expect(holds(2, 20, 8 * BLOCK, 4 * BLOCK));
		cr_expect(holds(1, 10, 16 * BLOCK, 16 * BLOCK));
	}
	cr_assert_eq(flat_end(&f), 0, "%s", f.why.text);
	cr_expect(stands_alone("n-a"));
	cr_expect(clone_is_right(disk[2]));
	must(do_op(1, ENG_DISCARD, 0, 40 * BLOCK, BLOCK) == 0);
	cr_expect(clone_is_right(disk[1]));
	/* Nothing is left of the origin that they could read. */
	must(delete_snapshot("s1") == 0 && delete_snapshot("s2") == 0 &&
	     delete_snapshot("s3") == 0);
	must(eng_store_delete_disk(store, "a", "d0", &err) == 0);
	cr_expect(clone_is_right(disk[1]) && clone_is_right(disk[2]));
	detach(1);
	detach(2);
	expect_clone("m-n-a/d0");
	end();
}

/* FT-6: the one that comes second finds it done. */
Test(sim_clone, two_flattens_of_one_disk_both_end_well)
{
	struct flat f, g;

	begin(1, SIZE);
	make_clone();
	flat_start(&f, "n-a");
	atomic_store(&f.progress.rate, 4096);
	turn_until(atomic_load(&f.progress.done) > 0 || atomic_load(&f.done));
	flat_start(&g, "n-a");
	turn_until(atomic_load(&g.progress.done) > 0 || atomic_load(&g.done));
	atomic_store(&f.progress.rate, 0);
	cr_expect_eq(flat_end(&f), 0, "%s", f.why.text);
	cr_expect_eq(flat_end(&g), 0, "%s", g.why.text);
	cr_expect(stands_alone("n-a"));
	expect_clone("n-a/d0");
	end();
}

/* FT-5 */
Test(sim_clone, a_flatten_that_is_cancelled_leaves_nothing)
{
	struct flat f;
	size_t files;

	begin(1, SIZE);
	make_clone();
	files = count_files();
	memset(&f, 0, sizeof(f));
	flat_start(&f, "n-a");
	atomic_store(&f.progress.rate, 4096);
	turn_until(atomic_load(&f.progress.done) > 0 || atomic_load(&f.done));
	if (eng_progress_cancel(&f.progress)) {
		cr_expect_eq(flat_end(&f), -ECANCELED);
		cr_expect_eq(count_files(), files);
		cr_expect_not(stands_alone("n-a"));
	} else {
		cr_expect_eq(flat_end(&f), 0);
	}
	expect_clone("n-a/d0");
	end();
}

/* FT-3: each call that may fail, once; the clone is right whatever came of it. */
Test(sim_clone, a_flatten_that_fails_anywhere_harms_nothing)
{
	bool done = false;

	for (uint64_t nth = 0; !done; nth += 1 + nth / 16) {
		struct eng_fault_rule rule = {.ops = (1u << ENG_FAULT_OPS) - 1,
					      .skip = nth,
					      .error = -EIO};
		int r, id;

		begin(1, SIZE);
		make_clone();
		id = eng_fault_add(fault, &rule);
		r = flatten("n-a");
		done = eng_fault_struck(fault, id) == 0;
		eng_fault_clear(fault);
		if (!eng_catalog_poisoned(store->catalog)) {
			cr_expect_eq(stands_alone("n-a"), r == 0);
			expect_clone("n-a/d0");
		}
		close_store();
		open_store();
		expect_clone("n-a/d0");
		close_store();
		finish();
	}
}

static void expect_flattened_or_not(uint64_t index, void *arg)
{
	uint64_t done = *(const uint64_t *)arg;

	cr_expect(stands_alone("n-a") || index < done, "event %llu: undone",
		  (unsigned long long)index);
	expect_clone("n-a/d0");
	cr_expect(view_holds("s3", 0, 20, 8 * BLOCK, 8 * BLOCK));
	close_store();
	expect_undamaged();
	open_store();
}

Test(sim_clone, power_may_fail_at_any_event_of_a_flatten)
{
	uint64_t first, done;

	begin(1, SIZE);
	record_from_here();
	make_clone();
	first = eng_record_index(recording);
	must(flatten("n-a") == 0);
	done = eng_record_index(recording);
	close_store();
	lose_power(first, eng_record_index(recording), expect_flattened_or_not, &done);
}
