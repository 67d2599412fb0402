/* SPDX-License-Identifier: MIT */
/*
 * fold_base.c - folds into the base (FO-10 to FO-14), one by one: the test's own thread folds,
 * when it wants to, so that every step of one is between two lines of a test.
 */
#include "engine/fold/fold_impl.h"
#include "tests/unit/engine_store.h"

#define SIZE   (2u << 20)
#define BLOCKS (SIZE / BLOCK)
#define GROWN  (SIZE + SIZE / 2 + 512) /* ends within a block */

#include "tests/sim/one_disk.h"

/* One look, as of a disk in peace. */
static int fold(void)
{
	struct fmt_error why;
	struct cat_disk row;
	bool later;
	int r;

	turn_until(swapped() && all_sealed()); /* nobody turns the disk's queue meanwhile */
	must(eng_catalog_get_disk(store->catalog, "a", "d0", &row) == 0);
	r = eng_fold_disk(&folder, &row.id, false, &why, &later);
	return r < 0 ? r : 0;
}

static void fold_all(void)
{
	size_t n;

	do {
		n = layers();
		must(fold() == 0);
		turn_until(swapped());
	} while (layers() < n);
}

static char base_file[300];

/* The base's row, and in base_file its raw file. */
static struct cat_layer base(void)
{
	struct cat_layer *rows, row;
	char text[FMT_UUID_TEXT];

	must(list_layers(&rows) > 0);
	row = rows[0];
	free(rows);
	must(row.kind == FMT_KIND_RAW);
	fmt_uuid_format(&row.id, text);
	snprintf(base_file, sizeof(base_file), "%s/layers/%s.raw", dir, text);
	return row;
}

static void begin_one(void)
{
	begin(1, SIZE);
	attach(0, 0);
	start();
}

static void end_one(void)
{
	detach(0);
	close_store();
	expect_sound("at the end");
	finish();
	stop();
}

/* FO-10, FO-12, FO-13: what snapshots held twice is given back, and nothing but base and head is left */
Test(sim_fold_base, in_the_end_there_are_the_base_and_the_head)
{
	char name[16];

	begin_one();
	put(0, BLOCKS);
	for (unsigned i = 0; i < 12; i++) {
		snprintf(name, sizeof(name), "s%u", i);
		take(name, NULL);
		put(i * 36, 120 - 4 * i);
		put_zeros(i * 40, 17);
		put(i * 7, 3);
	}
	expect_holds(disk[0], now, "before");
	for (unsigned i = 0; i < 12; i++) {
		snprintf(name, sizeof(name), "s%u", i * 5 % 12);
		drop(name);
		if (i % 3 == 0)
			must(fold() == 0);
	}
	fold_all();
	expect_holds(disk[0], now, "folded");
	cr_expect_eq(layers(), 2);
	take("last", NULL);
	drop("last");
	fold_all();
	cr_expect_eq(layers(), 2);
	cr_expect_leq(allocated(), SIZE + (4u << 20), "%lu", allocated()); /* an empty head's */
	expect_holds(disk[0], now, "and the last");
	detach(0);
	attach(0, 0);
	expect_holds(disk[0], now, "attached again");
	end_one();
}

/* FO-13: the topmost input's snapshot is the base's then, as the first one of a disk is */
Test(sim_fold_base, a_snapshot_on_top_becomes_the_bases)
{
	struct cat_layer row;

	begin_one();
	put(0, 300);
	take("s0", NULL);
	put(100, 50);
	take("s1", held[1]);
	put(110, 5);
	take("s2", held[2]);
	put(112, 1);
	drop("s0");
	fold_all();
	row = base();
	cr_expect_not(fmt_uuid_is_none(&row.snapshot));
	cr_expect_eq(layers(), 3);
	expect_view("s1", held[1], "s1, the base's");
	expect_view("s2", held[2], "s2");
	detach(0);
	close_store();
	expect_sound("with a snapshot of the base");
	open_store();
	attach(0, 0);
	folder.store = store;
	expect_view("s1", held[1], "s1, opened again");
	drop("s2"); /* not into the base: it is a snapshot's */
	fold_all();
	cr_expect_eq(layers(), 3);
	expect_view("s1", held[1], "s1, and s2 is gone");
	drop("s1");
	fold_all();
	cr_expect_eq(layers(), 2);
	expect_holds(disk[0], now, "all are gone");
	end_one();
}

/* FO-11: who reads a snapshot that was deleted stands beneath the topmost input */
Test(sim_fold_base, readers_of_what_was_deleted_are_waited_for)
{
	struct eng_disk *view;

	begin_one();
	put(0, 300);
	take("s0", NULL);
	put(0, 100);
	take("s1", held[1]);
	put(50, 100);
	take("s2", NULL);
	must(eng_store_attach(store, queue[1], "c@s1/a/d0", ENG_ATTACH_READ_ONLY, &err, &view) ==
	     0);
	drop("s1");
	drop("s0");
	drop("s2");
	cr_expect_eq(fold(), -EBUSY);
	expect_holds(view, held[1], "the view");
	cr_expect_eq(layers(), 4);
	must(eng_store_detach(view) == 0);
	fold_all();
	cr_expect_eq(layers(), 2);
	expect_holds(disk[0], now, "folded");
	end_one();
}

/* T25, FO-10: a base on which two stand, and one that is not the store's own, are left alone */
Test(sim_fold_base, a_base_with_two_children_is_left_alone)
{
	struct cat_layer *rows, other, row;
	bool fits;

	begin_one();
	put(0, 300);
	take("s0", NULL);
	put(100, 50);
	take("s1", NULL);
	drop("s0");
	turn_until(all_sealed());
	must(list_layers(&rows) == 3);
	must(eng_fold_base_fits(store, &rows[1], 1, &fits, &row) == 0);
	cr_expect(fits);
	cr_expect(fmt_uuid_equal(&row.id, &rows[0].id));
	other = rows[1];
	eng_store_new_id(store, &other.id);
	must(eng_catalog_begin(store->catalog) == 0);
	eng_catalog_put_layer(store->catalog, &other);
	must(eng_catalog_commit(store->catalog, &err) == 0);
	must(eng_fold_base_fits(store, &rows[1], 1, &fits, &row) == 0);
	cr_expect_not(fits, "two children");
	must(eng_catalog_begin(store->catalog) == 0);
	eng_catalog_remove_layer(store->catalog, &other.id);
	other = rows[0];
	snprintf(other.path, sizeof(other.path), "%s/somebodys.raw", root);
	eng_catalog_put_layer(store->catalog, &other);
	must(eng_catalog_commit(store->catalog, &err) == 0);
	must(eng_fold_base_fits(store, &rows[1], 1, &fits, &row) == 0);
	cr_expect_not(fits, "in place");
	must(eng_catalog_begin(store->catalog) == 0);
	eng_catalog_put_layer(store->catalog, &rows[0]);
	must(eng_catalog_commit(store->catalog, &err) == 0);
	free(rows);
	fold_all();
	cr_expect_eq(layers(), 2);
	end_one();
}

/* SW-1, FO-12: a base shorter than the disk grows, under the disk too, and beneath a region in use */
Test(sim_fold_base, a_base_grows_with_its_disk)
{
	begin_one();
	put(0, 300);
	take("s0", NULL);
	put(100, 50);
	detach(0);
	must(eng_store_resize_disk(store, "a", "d0", GROWN, &err) == 0);
	attach(0, 0);
	must(do_write(0, ++writes, SIZE + BLOCK, SIZE / 2 - BLOCK + 512) == 0);
	for (uint64_t at = SIZE + BLOCK; at < GROWN; at += BLOCK)
		now[at / BLOCK] = writes;
	take("s1", held[1]);
	expect_holds(disk[0], now, "before");
	drop("s0");
	fold_all();
	expect_holds(disk[0], now, "folded");
	expect_view("s1", held[1], "s1");
	drop("s1");
	detach(0);
	attach(0, 0);
	expect_holds(disk[0], now, "attached again");
	fold_all();
	end_one();
}

/* --- errors --- */

struct trouble {
	uint32_t ops;
	const char *path;
	int error;
	uint64_t skip;
};

/* FO-14, P6: whatever fails, the inputs answer, and the next fold ends it */
Test(sim_fold_base, an_error_anywhere_leaves_the_layers)
{
	static const struct trouble troubles[] = {
		{ENG_FAULT_RING_READ, ".vmo", -EIO, 0},  {ENG_FAULT_RING_READ, ".vmo", -EIO, 1},
		{ENG_FAULT_RING_WRITE, ".raw", -EIO, 0}, {ENG_FAULT_RING_WRITE, ".raw", -ENOSPC, 1},
		{ENG_FAULT_FDATASYNC, ".raw", -EIO, 0},  {ENG_FAULT_PUNCH, ".raw", -ENOSPC, 0},
		{ENG_FAULT_OPEN, ".raw", -EMFILE, 1},    {ENG_FAULT_OPEN, ".vmr", -EMFILE, 0},
		{ENG_FAULT_PWRITE, ".vmr", -EIO, 0},     {ENG_FAULT_FDATASYNC, ".vmr", -EIO, 0},
	};

	begin_one();
	put(0, BLOCKS);
	for (size_t i = 0; i < sizeof(troubles) / sizeof(*troubles); i++) {
		const struct trouble *t = &troubles[i];
		struct eng_fault_rule rule = {
			.ops = t->ops,
			.path = t->path,
			.error = t->error,
			.skip = t->skip,
		};
		char when[64];
		int number, r;

		snprintf(when, sizeof(when), "trouble %zu", i);
		put(0, 40);
		take("before", NULL);
		drop("before");
		fold_all();
		put(500, 1);
		take("s0", NULL);
		put(100 + 3 * (uint32_t)i, 50);
		put(300, 2);
		put_zeros(0, 40);
		take("s1", held[1]);
		put(120, 3);
		drop("s0");
		turn_until(all_sealed());
		number = eng_fault_add(fault, &rule);
		must(number >= 0);
		r = fold();
		cr_expect_lt(r, 0, "%s: nothing failed", when);
		cr_expect_eq(eng_fault_struck(fault, number), 1, "%s: did not strike", when);
		eng_fault_clear(fault);
		cr_expect_eq(layers(), 4, "%s", when);
		expect_holds(disk[0], now, when);
		expect_view("s1", held[1], when);
		detach(0);
		close_store();
		expect_sound(when);
		open_store();
		folder.store = store;
		attach(0, 0);
		expect_holds(disk[0], now, when);
		drop("s1");
		fold_all();
		cr_expect_eq(layers(), 2, "%s", when);
		expect_holds(disk[0], now, when);
	}
	end_one();
}

/* The fold's progress, cancelled when it is too late to stop the copy. */
static struct eng_progress watched;

static struct eng_progress *watch_begin(void *arg, const struct fmt_uuid *id, uint32_t n)
{
	(void)arg;
	(void)id;
	(void)n;
	return &watched;
}

static void watch_end(void *arg, struct eng_progress *progress, int r, const struct fmt_error *why)
{
	(void)arg;
	(void)progress;
	(void)why;
	cr_expect_eq(r, -ECANCELED);
}

static void cancel(void *arg)
{
	(void)arg;
	must(eng_progress_cancel(&watched));
}

/* T27, FO-13: the boundary is the topmost layer's alone again where there was no transaction */
Test(sim_fold_base, no_boundary_stays_without_a_transaction)
{
	struct eng_fault_rule rule = {
		.ops = ENG_FAULT_PWRITE,
		.path = ".vmr",
		.skip = 1, /* LH-13 */
		.strike = cancel,
	};
	struct eng_layer *layer;
	struct cat_layer row;

	begin_one();
	put(0, 300);
	take("s0", NULL);
	put(100, 50);
	take("s1", held[1]);
	drop("s0");
	turn_until(all_sealed());
	folder.watch = (struct eng_fold_watch){NULL, watch_begin, watch_end};
	must(eng_fault_add(fault, &rule) >= 0);
	cr_expect_eq(fold(), -ECANCELED);
	eng_fault_clear(fault);
	cr_expect_eq(layers(), 3);
	row = base();
	must(eng_store_open_layer(store, &row, false, &err, &layer) == 0);
	cr_expect(fmt_uuid_is_none(&layer->hdr.snapshot_id));
	cr_expect_gt(layer->hdr.replaced_count, 0u, "the header was not written at all");
	eng_layer_put(layer);
	expect_view("s1", held[1], "cancelled");
	detach(0);
	close_store();
	expect_sound("cancelled");
	open_store();
	attach(0, 0);
	start();
	memcpy(now, held[1], sizeof(now));
	fold_all();
	cr_expect_eq(layers(), 2);
	expect_view("s1", held[1], "folded");
	end_one();
}

struct unknown {
	bool into_base;
	uint32_t ops;
};

/* A process whose fold's COMMIT ends in an error, and which dies of something else then. */
static void die_of_commit(void *arg)
{
	const struct unknown *u = arg;
	struct eng_fault_rule rule = {.ops = u->ops, .path = "catalog.db-wal", .error = -EIO};
	int number;

	open_store();
	start_folder();
	number = eng_fault_add(fault, &rule);
	must(number >= 0);
	must(fold() < 0);
	must(eng_fault_struck(fault, number) == 1);
	must(eng_catalog_poisoned(store->catalog));
	_exit(7);
}

/*
 * T23: the transaction of a fold ends in an error, and its records may be there or not: whichever layers
 * the next open finds are whole. @into_base: of that kind; else into a new layer, beside a base that a
 * snapshot holds.
 */
static void try_unknown_outcome(bool into_base, uint32_t ops, bool committed)
{
	struct unknown u = {into_base, ops};
	char when[64];

	snprintf(when, sizeof(when), "%s, %s", into_base ? "into the base" : "into a new layer",
		 committed ? "not synced" : "not written");
	begin_one();
	put(0, 300);
	take("s0", held[0]);
	put(100, 50);
	take("s1", NULL);
	put(120, 50);
	take("s2", held[2]);
	put(7, 3);
	drop(into_base ? "s0" : "s1");
	if (into_base)
		drop("s1");
	turn_until(all_sealed());
	detach(0);
	close_store();
	must(in_process(die_of_commit, &u) == 7);
	open_after_death();
	start_folder();
	cr_expect_eq(layers(), committed ? (into_base ? 2 : 3) : 4, "%s", when);
	attach(0, 0);
	expect_holds(disk[0], now, when);
	expect_view("s2", held[2], when);
	if (!into_base)
		expect_view("s0", held[0], when);
	fold_all();
	expect_holds(disk[0], now, when);
	expect_view("s2", held[2], when);
	cr_expect_eq(layers(), into_base ? 2 : 3, "%s", when);
	end_one();
}

Test(sim_fold_base, a_commit_of_unknown_outcome_keeps_both)
{
	try_unknown_outcome(true, ENG_FAULT_PWRITE, false);
	try_unknown_outcome(true, ENG_FAULT_FDATASYNC, true);
	try_unknown_outcome(false, ENG_FAULT_PWRITE, false);
	try_unknown_outcome(false, ENG_FAULT_FDATASYNC, true);
}

/* FO-12: a sick block does not get where no checksum would tell */
Test(sim_fold_base, a_rotten_block_stays_where_it_is_found)
{
	struct cat_layer *rows;
	struct eng_layer *layer;
	uint8_t rot = 0x5a;
	int fd;

	begin_one();
	put(0, 300);
	take("s0", NULL);
	put(100, 50);
	take("s1", NULL);
	drop("s0");
	turn_until(all_sealed());
	must(list_layers(&rows) == 3);
	must(eng_store_open_layer(store, &rows[1], false, &err, &layer) == 0);
	fd = open(layer->path, O_WRONLY);
	must(fd >= 0);
	must(pwrite(fd, &rot, 1, (off_t)eng_layer_slot_offset(layer, 20) + 77) == 1);
	close(fd);
	eng_layer_put(layer);
	free(rows);
	cr_expect_eq(fold(), -EBADMSG);
	cr_expect_eq(layers(), 3);
	detach(0);
	close_store();
	finish();
	stop();
}

/* --- the death of the host --- */

static void expect_survived(uint64_t index, uint64_t seed, const char *dead)
{
	char when[96];

	snprintf(when, sizeof(when), "power lost at event %lu, seed %lu, %s", index, seed, dead);
	attach(0, 0);
	expect_holds(disk[0], now, when);
	expect_view("s1", held[1], when);
	folder.store = store;
	fold_all();
	cr_expect_leq(layers(), 3, "%s", when);
	expect_holds(disk[0], now, when);
	expect_view("s1", held[1], when);
	drop("s1");
	fold_all();
	cr_expect_eq(layers(), 2, "%s", when);
	expect_holds(disk[0], now, when);
	detach(0);
}

static void try_crash(struct eng_record *rec, uint64_t index, uint64_t seed)
{
	char store_dir[192], tree[160], when[64];
	struct eng_io *plain;

	/* The checker's opinion of what nobody has recovered. */
	snprintf(tree, sizeof(tree), "%s/unopened", root);
	must(eng_record_crash(rec, index, seed, tree) == 0);
	must(eng_io_posix_create(&plain) == 0);
	snprintf(when, sizeof(when), "power lost at event %lu, seed %lu", index, seed);
	{
		struct fsck_summary sum = {0};

		must(fsck_run(plain, tree, note_finding, when, &err, &sum) == 0);
	}
	eng_io_destroy(plain);
	must(eng_record_remove_tree(tree) == 0);
	enter_power_loss(rec, index, seed, store_dir);
	close_store();
	expect_sound(when); /* RV-11: and nothing is left of it */
	open_store();
	expect_survived(index, seed, "recovered");
	leave_power_loss(store_dir);
}

static struct eng_record *recorder;
static uint64_t committing; /* the event at which the catalog is about to be written */

static void note_commit(void *arg)
{
	(void)arg;
	committing = eng_record_index(recorder);
}

/* T26, T27, P4: every event of a fold into the base, from its first write to the last file's removal */
Test(sim_fold_base, power_may_fail_at_any_event, .timeout = 120)
{
	const char *given = getenv("VMIMG_TEST_SECONDS");
	double seconds = given ? strtod(given, NULL) : 12;
	struct eng_fault_rule commit_begins = {
		.ops = ENG_FAULT_PWRITE,
		.path = "catalog.db-wal",
		.strike = note_commit,
	};
	struct eng_fault *own_fault;
	struct eng_io *own_machine;
	struct eng_record *rec;
	uint64_t first, last, end, tried = 0;

	begin(1, SIZE);
	attach(0, 0);
	start();
	/* One before it, so that who stands on the base names a layer in its list (FD-5). */
	put(0, 300);
	take("y", NULL);
	put(200, 60);
	take("z", NULL);
	drop("y");
	drop("z");
	fold_all();
	cr_expect_eq(layers(), 2);
	put(20, 4);
	take("s0", NULL);
	detach(0);
	must(eng_store_resize_disk(store, "a", "d0", GROWN, &err) == 0);
	attach(0, 0);
	put(100, 50);
	put(BLOCKS + 3, 20);
	take("s1", held[1]);
	put_zeros(10, 60);
	put(310, 2);
	must(do_flush(0) == 0);
	turn_until(all_sealed());
	detach(0);
	close_store();
	eng_fault_destroy(fault);
	must(eng_record_create(machine, dir, &rec) == 0);
	use_io(eng_record_io(rec));
	open_store();
	folder.store = store;
	attach(0, 0);
	drop("s0");
	first = eng_record_index(rec);
	recorder = rec;
	must(eng_fault_add(fault, &commit_begins) >= 0);
	fold_all();
	eng_fault_clear(fault);
	must(committing > first);
	detach(0);
	close_store();
	last = eng_record_index(rec);
	own_fault = fault;
	own_machine = machine;
	end = eng_io_now_ns(machine) + (uint64_t)(seconds * 0.8 * (double)SECOND);
	/* After its end, in its commit, and then spread over all events, however few there is time for. */
	for (; tried < 4 || eng_io_now_ns(own_machine) < end; tried++) {
		uint64_t at = tried < 2 ? last
			      : tried < 4
				      ? committing
				      : first + tried * 0x9e3779b97f4a7c15ull % (last - first + 1);
		uint32_t saved[2 * BLOCKS];

		memcpy(saved, now, sizeof(now));
		try_crash(rec, at, tried * 7919 + at);
		memcpy(now, saved, sizeof(now));
	}
	fprintf(stderr, "fold_base: %lu of %lu events, %lu tries\n", last - first, last, tried);
	machine = own_machine;
	fault = own_fault;
	eng_fault_destroy(fault);
	eng_record_destroy(rec);
	fault = NULL;
	eng_io_destroy(machine);
	must(eng_record_remove_tree(root) == 0);
	stop();
}
