/* SPDX-License-Identifier: MIT */
/*
 * engine_snapshot.c - the coordinator: who it waits for and who not (T7, T8), and what a step that
 * fails leaves (CU-20, CU-21, CU-22, T22, T23).
 */
#include "tests/unit/engine_store.h"

TestSuite(engine_snapshot, .timeout = 120);

static void end(unsigned disks)
{
	for (unsigned i = 0; i < disks; i++)
		detach(i);
	close_store();
	finish();
}

static size_t layer_rows(unsigned state)
{
	struct cat_layer *rows = NULL;
	size_t n = 0, found = 0;

	must(eng_catalog_list_layers(store->catalog, NULL, &rows, &n) == 0);
	for (size_t i = 0; i < n; i++)
		found += !state || rows[i].state == state;
	free(rows);
	return found;
}

static int count_file(void *arg, const char *name)
{
	(void)name;
	++*(unsigned *)arg;
	return 0;
}

static unsigned layer_files(void)
{
	unsigned n = 0;

	must(eng_io_list(machine, store->layers_dir, count_file, &n) == 0);
	return n;
}

/* What the headers of the disk's frozen layers say, past the engine: any boundary at all? */
static bool has_boundary(unsigned d)
{
	static const struct fmt_uuid none;
	struct cat_layer *rows = NULL;
	bool found = false;
	struct cat_disk row;
	char name[8];
	size_t n = 0;

	snprintf(name, sizeof(name), "d%u", d);
	must(eng_catalog_get_disk(store->catalog, "a", name, &row) == 0);
	must(eng_catalog_list_layers(store->catalog, &row.id, &rows, &n) == 0);
	for (size_t i = 0; i < n; i++) {
		uint8_t slots[FMT_HEADER_SLOTS * FMT_PAGE];
		struct eng_file *file;
		struct fmt_header hdr;
		char *path = eng_store_layer_path(store, &rows[i].id,
						  rows[i].kind == FMT_KIND_OVERLAY ? "vmo" : "vmr");

		must(eng_io_open(machine, path, 0, &file) == 0);
		must(eng_io_pread(machine, file, slots, sizeof(slots), 0) == sizeof(slots));
		must(fmt_header_pick(slots, &hdr, &err) == 0);
		found = found || !fmt_uuid_equal(&hdr.snapshot_id, &none);
		eng_io_close(machine, file);
		free(path);
	}
	free(rows);
	return found;
}

/* --- T7 --- */

Test(engine_snapshot, second_create_on_a_shared_disk_is_refused_at_once)
{
	struct shot first, second;
	uint64_t before;

	begin(1, 1 << 20);
	make_collection("other", "a");
	attach(0, 0);
	must(do_write(0, 1, 0, BLOCK) == 0);
	shot_start(&first, "s", ENG_SNAPSHOT_CUT);
	turn_until(atomic_load(&first.phase) == ENG_SNAPSHOT_CUT);
	before = eng_io_now_ns(machine);
	cr_expect_eq(shot_check("other", "t", 10 * SECOND, &second), -EBUSY);
	cr_expect_lt(eng_io_now_ns(machine) - before, SECOND);
	shot_go(&first);
	must(shot_end(&first) == 0);
	must(shot_check("other", "t", 10 * SECOND, &second) == 0);
	shot_launch(&second);
	cr_expect_eq(shot_end(&second), 0);
	end(1);
}

/* T7, CU-15, CU-18: what a failed job left undurable beneath is hardened before the next commit. */
Test(engine_snapshot, commit_hardens_what_an_earlier_cut_left_unhardened)
{
	struct eng_layer *left;
	struct ask *slow;
	struct shot s;
	int rule;

	begin(1, 1 << 20);
	attach(0, 0);
	must(do_write(0, 1, 0, BLOCK) == 0 && snapshot("s0") == 0);
	must(do_write(0, 2, 0, BLOCK) == 0);
	left = disk[0]->head;
	rule = hold_add((struct hold_rule){.kind = ENG_OP_WRITE, .path = ".vmo", .mine = true});
	slow = ask_write(0, 3, BLOCK, BLOCK);
	turn_until(hold_held(rule) == 1);
	must(shot_check("c", "late", 300 * MS, &s) == 0);
	shot_launch(&s);
	cr_expect_eq(shot_end(&s), -ETIMEDOUT, "CU-14: a write from before the cut never ends");
	hold_release(rule);
	must(ask_end(slow) == 0);
	cr_expect_eq(atomic_load(&left->harden), ENG_HARDEN_NONE);
	must(do_write(0, 4, 2 * BLOCK, BLOCK) == 0);
	must(snapshot("s1") == 0);
	cr_expect_eq(atomic_load(&left->harden), ENG_HARDEN_DONE);
	cr_expect_eq(logged(left, 1), 1);
	cr_expect(view_holds("s1", 0, 3, BLOCK, BLOCK));
	end(1);
}

/* --- T8 --- */

Test(engine_snapshot, queue_that_is_not_turned_costs_a_timeout_and_no_more)
{
	struct eng_layer *head;
	struct cat_snapshot row;
	struct ask *write;
	struct shot s;
	unsigned files;
	size_t rows;
	int rule;

	begin(2, 1 << 20);
	attach(0, 0);
	attach(1, 1);
	must(do_write(0, 1, 0, BLOCK) == 0 && snapshot("s0") == 0);
	must(do_write(0, 2, 0, BLOCK) == 0);
	head = disk[0]->head;
	rows = layer_rows(0);
	files = layer_files();
	rule = hold_add((struct hold_rule){.kind = ENG_OP_WRITE, .path = ".vmo", .mine = true});
	write = ask_write(0, 3, 0, BLOCK);
	turn_until(hold_held(rule) == 1);
	must(shot_check("c", "s", 200 * MS, &s) == 0);
	shot_launch(&s);
	while (!atomic_load(&s.done))
		turn(1, MS); /* the other one works on */
	cr_expect_eq(shot_end(&s), -ETIMEDOUT);
	cr_expect_eq(atomic_load(&s.phase), -1, "before the cut");
	cr_expect_null(atomic_load(&head->succ));
	cr_expect_eq(layer_rows(0), rows);
	cr_expect_eq(layer_files(), files);
	cr_expect_eq(eng_catalog_get_snapshot(store->catalog, "c", "s", &row), -ENOENT);
	hold_release(rule);
	must(ask_end(write) == 0);
	cr_expect_eq(disk[0]->head, head);
	must(snapshot("s") == 0);
	cr_expect(view_holds("s", 0, 3, 0, BLOCK));
	end(2);
}

/* T8, CU-9: nothing in flight, nobody to wait for. */
Test(engine_snapshot, idle_queue_need_not_be_turned)
{
	struct shot s;

	begin(1, 1 << 20);
	attach(0, 0);
	must(do_write(0, 1, 0, BLOCK) == 0);
	must(shot_check("c", "s", 20 * SECOND, &s) == 0);
	shot_launch(&s);
	for (unsigned i = 0; i < 10000 && !atomic_load(&s.done); i++)
		usleep(1000);
	cr_expect(atomic_load(&s.done));
	must(shot_end(&s) == 0);
	cr_expect(view_holds("s", 0, 1, 0, BLOCK));
	end(1);
}

/* T8, CU-14: a thread that stops turning after the cut: the job fails, the heads have moved. */
Test(engine_snapshot, drain_that_does_not_end_costs_a_timeout)
{
	struct cat_snapshot row;
	struct ask *write;
	struct shot s;
	int rule;

	begin(2, 1 << 20);
	attach(0, 0);
	attach(1, 1);
	must(do_write(0, 1, 0, BLOCK) == 0 && snapshot("s0") == 0);
	rule = hold_add((struct hold_rule){.kind = ENG_OP_WRITE, .path = ".vmo", .mine = true});
	write = ask_write(0, 2, 0, BLOCK);
	turn_until(hold_held(rule) == 1);
	must(shot_check("c", "s", 200 * MS, &s) == 0);
	shot_launch(&s);
	cr_expect_eq(shot_end(&s), -ETIMEDOUT);
	cr_expect_geq(atomic_load(&s.phase), ENG_SNAPSHOT_CUT);
	cr_expect_eq(eng_catalog_get_snapshot(store->catalog, "c", "s", &row), -ENOENT);
	hold_release(rule);
	must(ask_end(write) == 0);
	for (unsigned i = 0; i < 2; i++)
		must(do_write(i, 3, BLOCK, BLOCK) == 0 && do_flush(i) == 0);
	must(snapshot("s") == 0);
	cr_expect(view_holds("s", 0, 2, 0, BLOCK) && view_holds("s", 1, 3, BLOCK, BLOCK));
	for (unsigned i = 0; i < 2; i++) {
		detach(i);
		attach(i, i);
		cr_expect(holds(i, 3, BLOCK, BLOCK));
	}
	end(2);
}

/* --- a step that fails --- */

/* Two disks with raw heads (the first snapshot) or with overlays. */
static void begin_two(bool overlays)
{
	begin(2, 1 << 20);
	for (unsigned i = 0; i < 2; i++) {
		attach(i, i);
		must(do_write(i, 1, 0, 64 * 1024) == 0);
	}
	if (overlays)
		must(snapshot("base") == 0);
	for (unsigned i = 0; i < 2; i++)
		must(do_write(i, 2, 0, BLOCK) == 0);
}

/* Everything written is there, now and after the disks and the store were closed. */
static void expect_content(uint64_t n)
{
	for (unsigned round = 0; round < 3; round++) {
		for (unsigned i = 0; i < 2; i++) {
			cr_expect(holds(i, n, 0, BLOCK), "disk %u, round %u", i, round);
			cr_expect(holds(i, 1, BLOCK, 60 * 1024), "disk %u, round %u", i, round);
		}
		if (round == 2)
			break;
		detach(0);
		detach(1);
		if (round == 1) {
			close_store();
			open_store();
		}
		attach(0, 0);
		attach(1, 1);
	}
}

/* The matrix: each operation of the coordinator and the pool fails once, with and without overlays.
 * Whatever the outcome, it is one: a whole snapshot or none, and the disks go on. */
static bool try_fault(enum eng_fault_op op, uint64_t skip, bool overlays)
{
	struct eng_fault_rule rule = {.ops = op, .skip = skip, .error = -EIO};
	struct cat_snapshot row;
	bool there, poisoned;
	struct shot s;
	int n, r;

	begin_two(overlays);
	n = eng_fault_add(fault, &rule);
	r = shot_check("c", "s", 10 * SECOND, &s);
	if (r == 0) {
		shot_launch(&s);
		r = shot_end(&s);
	}
	eng_fault_clear(fault);
	poisoned = eng_catalog_poisoned(store->catalog);
	for (unsigned i = 0; i < 2 && !poisoned; i++)
		poisoned = atomic_load(&disk[i]->layers[disk[i]->nlayers - 1]->poisoned) ||
			   do_flush(i) < 0;
	if (!poisoned) {
		there = eng_catalog_get_snapshot(store->catalog, "c", "s", &row) == 0 &&
			row.state == CAT_SNAPSHOT_COMPLETE;
		cr_expect_eq(there, r == 0, "op %x, number %lu: %d", op, skip, r);
		cr_expect_eq(layer_rows(CAT_LAYER_PENDING), 0u, "op %x, number %lu", op, skip);
		for (unsigned i = 0; i < 2 && !there && !overlays; i++)
			cr_expect_not(has_boundary(i), "op %x, number %lu: disk %u", op, skip, i);
		for (unsigned i = 0; i < 2; i++)
			must(do_write(i, 3, 0, BLOCK) == 0);
		expect_content(3);
		if (there)
			cr_expect(view_holds("s", 0, 2, 0, BLOCK) &&
				  view_holds("s", 1, 2, 0, BLOCK));
		cr_expect_eq(snapshot("t"), 0, "op %x, number %lu", op, skip);
	}
	for (unsigned i = 0; i < 2; i++)
		eng_store_detach(disk[i]);
	close_store();
	if (poisoned) { /* the next open decides, and all goes on */
		open_store();
		there = eng_catalog_get_snapshot(store->catalog, "c", "s", &row) == 0;
		cr_expect(!there || row.state == CAT_SNAPSHOT_COMPLETE);
		for (unsigned i = 0; i < 2; i++) {
			cr_expect_eq(has_boundary(i), there || overlays, "op %x, number %lu", op,
				     skip);
			attach(i, i);
			cr_expect(holds(i, 2, 0, BLOCK));
			if (there)
				cr_expect(view_holds("s", i, 2, 0, BLOCK));
		}
		cr_expect_eq(snapshot("t"), 0);
		detach(0);
		detach(1);
		close_store();
	}
	there = eng_fault_struck(fault, n) != 0;
	finish();
	return there;
}

static void try_faults(bool overlays)
{
	static const enum eng_fault_op ops[] = {
		ENG_FAULT_OPEN,           ENG_FAULT_CREATE,      ENG_FAULT_PWRITE,
		ENG_FAULT_FDATASYNC,      ENG_FAULT_ALLOCATE,    ENG_FAULT_STAT,
		ENG_FAULT_SYNC_DIR,       ENG_FAULT_RING_CREATE, ENG_FAULT_RING_WRITE,
		ENG_FAULT_RING_FDATASYNC,
	};

	for (size_t i = 0; i < sizeof(ops) / sizeof(*ops); i++)
		for (uint64_t skip = 0; skip < 40 && try_fault(ops[i], skip, overlays); skip++)
			;
}

/* CU-20, CU-21, CU-22, T16, T22, T23 */
Test(engine_snapshot, any_operation_may_fail_over_raw_heads)
{
	try_faults(false);
}

/* CU-20, CU-21, CU-22, T16, T22, T23 */
Test(engine_snapshot, any_operation_may_fail_over_overlays)
{
	try_faults(true);
}

/* CU-20: hardening fails on one of two raw heads; the other one's header must stay right. */
Test(engine_snapshot, failed_cut_over_raw_heads_leaves_the_other_disk_whole)
{
	struct shot s;
	int rule;

	begin_two(false);
	rule = hold_add((struct hold_rule){.kind = ENG_OP_FDATASYNC,
					   .path = strrchr(disk[1]->head->data_path, '/'),
					   .most = 1});
	shot_start(&s, "s", -1);
	turn_until(hold_held(rule) == 1);
	hold_release_error(rule, -EIO);
	cr_expect_eq(shot_end(&s), -EIO);
	must(do_write(0, 3, 0, BLOCK) == 0 && do_flush(0) == 0);
	detach(0);
	attach(0, 0);
	cr_expect(holds(0, 3, 0, BLOCK) && holds(0, 1, BLOCK, BLOCK));
	cr_expect_eq(eng_store_detach(disk[1]), -ENOTRECOVERABLE);
	detach(0);
	close_store();
	open_store();
	attach(0, 0);
	attach(1, 1);
	cr_expect(holds(0, 3, 0, BLOCK) && holds(1, 2, 0, BLOCK));
	must(snapshot("t") == 0);
	end(2);
}

/* IB-3: frozen, never hardened by its job: the detach says what the base is. */
Test(engine_snapshot, cut_that_never_drained_leaves_a_raw_head_whole)
{
	struct ask *write;
	struct shot s;
	int rule;

	begin_two(false);
	rule = hold_add((struct hold_rule){.kind = ENG_OP_WRITE, .path = ".raw", .mine = true});
	write = ask_write(0, 3, 0, BLOCK);
	turn_until(hold_held(rule) == 1);
	must(shot_check("c", "s", 200 * MS, &s) == 0);
	shot_launch(&s);
	cr_expect_eq(shot_end(&s), -ETIMEDOUT);
	hold_release(rule);
	must(ask_end(write) == 0 && do_write(1, 3, 0, BLOCK) == 0);
	expect_content(3);
	must(snapshot("t") == 0);
	end(2);
}

/* CU-20, T22: a boundary was written for one member, the other's failed. */
Test(engine_snapshot, failed_boundary_is_cleared_in_all_members)
{
	struct cat_snapshot row;
	struct shot s;
	int rule;

	begin_two(false);
	rule = hold_add((struct hold_rule){.kind = ENG_OP_WRITE,
					   .path = strrchr(disk[1]->head->path, '/'),
					   .skip = 1, /* LH-13 */
					   .most = 1});
	shot_start(&s, "s", -1);
	turn_until(hold_held(rule) == 1);
	turn_for(20 * MS);
	cr_expect(has_boundary(0), "the first one is there");
	hold_release_error(rule, -EIO);
	cr_expect_eq(shot_end(&s), -EIO);
	cr_expect_not(has_boundary(0));
	cr_expect_not(has_boundary(1));
	cr_expect_eq(eng_catalog_get_snapshot(store->catalog, "c", "s", &row), -ENOENT);
	for (unsigned i = 0; i < 2; i++)
		must(do_write(i, 3, 0, BLOCK) == 0);
	expect_content(3);
	must(snapshot("s") == 0);
	end(2);
}

/* T23, CU-22 */
Test(engine_snapshot, failed_commit_poisons_the_catalog_and_the_next_open_decides)
{
	struct eng_fault_rule rule = {.ops = ENG_FAULT_ANY_FDATASYNC,
				      .path = "catalog.db-wal",
				      .sticky = true,
				      .error = -EIO};
	struct cat_snapshot row;
	struct shot s;
	bool there;

	begin_two(true);
	shot_start(&s, "s", ENG_SNAPSHOT_HARDENING);
	turn_until(atomic_load(&s.phase) == ENG_SNAPSHOT_HARDENING);
	must(eng_fault_add(fault, &rule) >= 0);
	shot_go(&s);
	cr_expect_eq(shot_end(&s), -ENOTRECOVERABLE);
	cr_expect(eng_catalog_poisoned(store->catalog));
	eng_fault_clear(fault);
	for (unsigned i = 0; i < 2; i++) {
		cr_expect_eq(do_write(i, 3, 4 * BLOCK, BLOCK), 0, "guests go on");
		cr_expect_eq(do_flush(i), 0);
		cr_expect(holds(i, 3, 4 * BLOCK, BLOCK));
		eng_store_detach(disk[i]);
	}
	close_store();
	open_store();
	there = eng_catalog_get_snapshot(store->catalog, "c", "s", &row) == 0;
	cr_expect(!there || row.state == CAT_SNAPSHOT_COMPLETE);
	for (unsigned i = 0; i < 2; i++) {
		attach(i, i);
		cr_expect(holds(i, 2, 0, BLOCK) && holds(i, 3, 4 * BLOCK, BLOCK));
		if (there)
			cr_expect(view_holds("s", i, 1, 4 * BLOCK, BLOCK));
	}
	must(snapshot("t") == 0);
	end(2);
}

/* JN-5: a create that would leave a write without a tag in the journal is refused, not the write. */
Test(engine_snapshot, layers_that_cannot_be_hardened_stop_creates_before_the_journal_is_full)
{
	struct ask *stuck;
	struct shot s;
	unsigned n = 0;
	int rule, r;

	begin(1, 1 << 20);
	attach(0, 0);
	must(snapshot("first") == 0);
	rule = hold_add((struct hold_rule){
		.kind = ENG_OP_WRITE, .path = ".vmo", .sync = HOLD_PLAIN, .mine = true, .most = 1});
	stuck = ask_write(0, 1, 0, BLOCK);
	turn_until(hold_held(rule) == 1);
	for (;; n++) {
		char name[16];

		cr_assert_lt(n, 200u, "never refused");
		snprintf(name, sizeof(name), "s%u", n);
		r = shot_check("c", name, 100 * MS, &s);
		if (r < 0)
			break;
		shot_launch(&s);
		cr_assert_eq(shot_end(&s), -ETIMEDOUT, "the write is still in flight");
		cr_assert_eq(do_write(0, 2 + n, (2 + n) * BLOCK, BLOCK), 0, "in layer %u",
			     disk[0]->nlayers);
	}
	sem_destroy(&s.go);
	cr_expect_eq(r, -EBUSY, "%s", s.why.text);
	cr_expect_eq(disk[0]->nlayers - 1, ENG_JOURNAL_LAYERS, "a tag each");
	hold_release(rule);
	must(ask_end(stuck) == 0);
	for (n = 0; (r = shot_check("c", "last", 10 * SECOND, &s)) == -EBUSY; n++) {
		cr_assert_lt(n, 100u, "nobody hardens them");
		turn_for(20 * MS);
	}
	cr_assert_eq(r, 0);
	shot_launch(&s);
	cr_expect_eq(shot_end(&s), 0, "%s", s.why.text);
	must(do_write(0, 1, BLOCK, BLOCK) == 0);
	cr_expect(view_holds("last", 0, 1, 0, BLOCK));
	for (unsigned i = 0; i < 14; i++)
		cr_expect(view_holds("last", 0, 2 + i, (2 + i) * BLOCK, BLOCK), "write %u", i);
	end(1);
}

/* CSN-14: a write that outlasts the snapshot counts with its age. */
Test(engine_snapshot, longest_write_counts_those_still_in_flight)
{
	struct ask *slow;
	struct shot s;
	int rule;

	begin(1, 1 << 20);
	attach(0, 0);
	must(do_write(0, 1, 0, BLOCK) == 0);
	shot_start(&s, "s", ENG_SNAPSHOT_CUT);
	turn_until(atomic_load(&s.phase) == ENG_SNAPSHOT_CUT);
	rule = hold_add((struct hold_rule){
		.kind = ENG_OP_WRITE, .path = ".vmo", .sync = HOLD_PLAIN, .mine = true, .most = 1});
	slow = ask_write(0, 2, 0, BLOCK); /* to the new head */
	turn_until(hold_held(rule) == 1);
	turn_for(40 * MS);
	must(do_write(0, 3, 2 * BLOCK, BLOCK) == 0); /* a fast one */
	shot_go(&s);
	must(shot_end(&s) == 0);
	cr_expect_geq(s.times.max_write_latency_ns, 40 * MS);
	cr_expect_lt(s.times.max_write_latency_ns, 10 * SECOND);
	hold_release(rule);
	must(ask_end(slow) == 0);
	must(snapshot("t") == 0);
	cr_expect_eq(atomic_load(&disk[0]->watch_since_ns), 0u);
	end(1);
}
