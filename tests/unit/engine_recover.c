/* SPDX-License-Identifier: MIT */
/*
 * engine_recover.c - what an open finds after the death of the process or of the host: T20, T21, T22,
 * T23, RV-*. The process dies by _exit at a chosen operation, in a child; the host by the recorder.
 */
#include <sys/mman.h>

#include "tests/unit/engine_store.h"

TestSuite(engine_recover, .timeout = 240);

/* What the dead told us. */
static struct told {
	_Atomic bool flushed, taken, late[2], late_flushed[2];
} * told;

static void begin_recover(unsigned disks)
{
	begin(disks, 1 << 20);
	told = mmap(NULL, sizeof(*told), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	must(told != MAP_FAILED);
}

static void end(unsigned disks)
{
	for (unsigned i = 0; i < disks; i++)
		detach(i);
	close_store();
	finish();
}

static void attach_all(unsigned disks)
{
	for (unsigned i = 0; i < disks; i++)
		attach(i, i % 2);
}

/* Every disk with an overlay as head: blocks 0..15 hold 1, in the base; then block 0 holds 2. */
static void make_overlays(unsigned disks)
{
	attach_all(disks);
	for (unsigned i = 0; i < disks; i++)
		must(do_write(i, 1, 0, 16 * BLOCK) == 0);
	must(snapshot("base") == 0);
	for (unsigned i = 0; i < disks; i++) {
		must(do_write(i, 2, 0, BLOCK) == 0);
		detach(i);
	}
	close_store();
}

/* --- T20 --- */

static void write_all_kinds(void *arg)
{
	(void)arg;
	open_store();
	attach(0, 0);
	must(do_write(0, 3, 0, 8 * BLOCK) == 0 && do_flush(0) == 0);
	must(do_op(0, ENG_DISCARD, 0, BLOCK, BLOCK) == 0);
	must(do_write(0, 4, 2 * BLOCK, 512) == 0);
	must(do_write(0, 5, 9 * BLOCK, BLOCK) == 0);
	must(do_op(0, ENG_WRITE_ZEROES, 0, 9 * BLOCK, BLOCK) == 0);
	must(do_write(0, 6, 9 * BLOCK + 512, 512) == 0);
	must(do_op(0, ENG_DISCARD, 0, 10 * BLOCK, 2 * BLOCK) == 0);
	must(snapshot("s") == 0);
	must(do_write(0, 7, 12 * BLOCK, BLOCK) == 0);
	must(do_op(0, ENG_DISCARD, 0, 3 * BLOCK, BLOCK) == 0);
}

/* T20, JN-1 */
Test(engine_recover, what_was_acknowledged_survives_the_process)
{
	begin_recover(1);
	make_overlays(1);
	must(in_process(write_all_kinds, NULL) == 0);
	open_after_death();
	attach(0, 0);
	cr_expect(holds(0, 3, 0, BLOCK));
	cr_expect(holds(0, 0, BLOCK, BLOCK), "discarded after the flush");
	cr_expect(holds(0, 4, 2 * BLOCK, 512) && holds(0, 3, 2 * BLOCK + 512, BLOCK - 512));
	cr_expect(holds(0, 0, 3 * BLOCK, BLOCK), "discarded after the cut");
	cr_expect(holds(0, 3, 4 * BLOCK, 4 * BLOCK));
	cr_expect(holds(0, 0, 9 * BLOCK, 512) && holds(0, 6, 9 * BLOCK + 512, 512));
	cr_expect(holds(0, 0, 10 * BLOCK, 2 * BLOCK));
	cr_expect(holds(0, 7, 12 * BLOCK, BLOCK));
	cr_expect(view_holds("s", 0, 3, 3 * BLOCK, BLOCK));
	cr_expect(view_holds("s", 0, 1, 12 * BLOCK, BLOCK));
	cr_expect(view_holds("s", 0, 0, 10 * BLOCK, 2 * BLOCK));
	end(1);
}

static void write_many(void *arg)
{
	(void)arg;
	open_store();
	attach(0, 0);
	for (unsigned i = 0; i < 20000; i++)
		must(do_op(0, ENG_DISCARD, 0, (i % 200 + 20) * BLOCK, BLOCK) == 0);
	for (unsigned i = 0; i < 200; i += 2)
		must(do_write(0, 100 + i, (i + 20) * BLOCK, BLOCK) == 0);
}

/* T20, JN-6: the journal is emptied before it is full, and only of what records cover. */
Test(engine_recover, more_changes_than_the_journal_holds_survive_the_process)
{
	begin_recover(1);
	make_overlays(1);
	must(in_process(write_many, NULL) == 0);
	open_after_death();
	attach(0, 0);
	for (unsigned i = 0; i < 200; i++)
		cr_expect(holds(0, i % 2 ? 0 : 100 + i, (i + 20) * BLOCK, BLOCK), "block %u", i);
	end(1);
}

/* JN-4: numbers go on over attachments; a new journal's entries are not taken for covered ones. */
static void write_twice_attached(void *arg)
{
	(void)arg;
	open_store();
	for (unsigned i = 0; i < 3; i++) {
		attach(0, 0);
		for (unsigned j = 0; j < 50; j++)
			must(do_write(0, 10 + i, (20 + j) * BLOCK, BLOCK) == 0);
		must(do_flush(0) == 0);
		if (i < 2)
			detach(0);
	}
	must(do_op(0, ENG_DISCARD, 0, 20 * BLOCK, BLOCK) == 0);
	must(do_write(0, 13, 100 * BLOCK, BLOCK) == 0);
}

Test(engine_recover, journal_of_a_later_attachment_is_replayed)
{
	begin_recover(1);
	make_overlays(1);
	must(in_process(write_twice_attached, NULL) == 0);
	open_after_death();
	attach(0, 0);
	cr_expect(holds(0, 0, 20 * BLOCK, BLOCK));
	cr_expect(holds(0, 12, 21 * BLOCK, 49 * BLOCK));
	cr_expect(holds(0, 13, 100 * BLOCK, BLOCK));
	end(1);
}

static void write_and_die(void *arg)
{
	(void)arg;
	open_store();
	attach_all(2);
	for (unsigned i = 0; i < 2; i++)
		must(do_write(i, 3, 0, BLOCK) == 0);
}

static int unlink_journal(void *arg, const char *name)
{
	char path[256];

	(void)arg;
	snprintf(path, sizeof(path), "%s/%s", shm_dir, name);
	return unlink(path) == 0 ? 1 : -errno;
}

/* JN-2, RV-10 */
Test(engine_recover, journal_that_is_gone_refuses_its_disk_alone)
{
	unsigned refused = 0;

	begin_recover(2);
	make_overlays(2);
	must(in_process(write_and_die, NULL) == 0);
	cr_assert_eq(eng_io_list(machine, shm_dir, unlink_journal, NULL), 1);
	open_after_death();
	for (unsigned i = 0; i < 2; i++) {
		char name[8];
		int r;

		snprintf(name, sizeof(name), "a/d%u", i);
		r = eng_store_attach(store, queue[0], name, 0, &err, &disk[i]);
		refused += r < 0;
		if (r < 0)
			continue;
		cr_expect(holds(i, 3, 0, BLOCK));
		cr_expect_eq(do_write(i, 4, 0, BLOCK), 0);
		detach(i);
	}
	cr_expect_eq(refused, 1u, "%u disks refused", refused);
	close_store();
	finish();
}

/* --- T21 --- */

static struct fmt_uuid add_pending(const struct cat_disk *row, const struct fmt_uuid *parent,
				   uint64_t generation, bool with_data)
{
	struct eng_layer_spec spec = {.store = store->id,
				      .disk = row->id,
				      .parent = *parent,
				      .generation = generation,
				      .size = row->size,
				      .block_bits = row->block_bits,
				      .initial_slots = 256};
	struct cat_layer layer = {.disk = row->id,
				  .parent = *parent,
				  .kind = FMT_KIND_OVERLAY,
				  .state = CAT_LAYER_PENDING,
				  .generation = generation,
				  .created_ns = 1};
	struct fmt_run run = {.block = 3, .count = 1};
	struct eng_layer *made;
	void *buf = aligned(BLOCK);
	char *path;

	eng_store_new_id(store, &spec.layer);
	layer.id = spec.layer;
	path = eng_store_layer_path(store, &spec.layer, "vmo");
	spec.path = path;
	must(eng_layer_create(io, &spec, &err, &made) == 0);
	if (with_data) {
		fill(buf, 8, 3 * BLOCK, BLOCK);
		must(eng_io_pwrite(io, made->file, buf, BLOCK, made->data_offset) == 0);
		made->dirty_gen++;
		must(eng_layer_add_pending(made, &run, 0) == 0);
		must(eng_layer_harden_sync(made) == 0);
	}
	must(eng_io_sync_dir(io, store->layers_dir) == 0);
	must(eng_catalog_begin(store->catalog) == 0);
	eng_catalog_put_layer(store->catalog, &layer);
	must(eng_catalog_commit(store->catalog, &err) == 0);
	eng_layer_put(made);
	free(path);
	free(buf);
	return layer.id;
}

static void add_chain(void *arg)
{
	struct fmt_uuid *ids = arg;
	struct cat_disk row;
	struct cat_layer head;

	open_store();
	must(eng_catalog_get_disk(store->catalog, "a", "d0", &row) == 0);
	must(eng_catalog_get_layer(store->catalog, &row.head, &head) == 0);
	ids[0] = add_pending(&row, &row.head, head.generation + 1, false);
	ids[1] = add_pending(&row, &ids[0], head.generation + 2, true);
	ids[2] = add_pending(&row, &ids[1], head.generation + 3, false);
}

static uint32_t state_of(const struct fmt_uuid *id)
{
	struct cat_layer row;

	return eng_catalog_get_layer(store->catalog, id, &row) == 0 ? row.state : 0;
}

/* T21, RV-4 */
Test(engine_recover, overlays_that_hold_anything_or_stand_beneath_are_kept)
{
	struct fmt_uuid *ids = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
				    -1, 0);
	char *path;

	begin_recover(1);
	make_overlays(1);
	must(in_process(add_chain, ids) == 0);
	open_after_death();
	cr_expect_geq(state_of(&ids[0]), CAT_LAYER_HARDENED, "empty, but another one stands on it");
	cr_expect_eq(state_of(&ids[1]), CAT_LAYER_ACTIVE, "the new head");
	cr_expect_eq(state_of(&ids[2]), 0u, "holds nothing");
	path = eng_store_layer_path(store, &ids[2], "vmo");
	cr_expect_eq(access(path, F_OK), -1);
	free(path);
	attach(0, 0);
	cr_expect(holds(0, 8, 3 * BLOCK, BLOCK));
	cr_expect(holds(0, 2, 0, BLOCK));
	must(do_write(0, 9, 5 * BLOCK, BLOCK) == 0 && snapshot("s") == 0);
	end(1);
}

/* --- a snapshot, and what survives its parts --- */

static void die_now(void *arg)
{
	(void)arg;
	_exit(7);
}

struct death {
	uint32_t ops;
	const char *path;
	uint64_t skip;
	int phase; /* from which on: -1 from the start */
};

static void add_death(const struct death *death)
{
	struct eng_fault_rule rule = {.ops = death->ops,
				      .path = death->path,
				      .skip = death->skip,
				      .error = -EIO,
				      .strike = die_now};

	must(eng_fault_add(fault, &rule) >= 0);
}

/*
 * Blocks: 0 is written (3) and flushed before the create, 4 is written (6) and not flushed; 8 is
 * written (4) when the cut has fired, and flushed. d0 and d1 are on different queues.
 */
static void snapshot_and_die(void *arg)
{
	const struct death *death = arg;
	struct shot s;

	attach_all(2);
	for (unsigned i = 0; i < 2; i++)
		must(do_write(i, 3, 0, BLOCK) == 0 && do_flush(i) == 0 &&
		     do_write(i, 6, 4 * BLOCK, BLOCK) == 0);
	atomic_store(&told->flushed, true);
	if (death && death->phase < 0)
		add_death(death);
	shot_start(&s, "s", ENG_SNAPSHOT_CUT);
	turn_until(atomic_load(&s.phase) == ENG_SNAPSHOT_CUT);
	if (death && death->phase == ENG_SNAPSHOT_CUT)
		add_death(death);
	for (unsigned i = 0; i < 2; i++) {
		must(do_write(i, 4, 8 * BLOCK, BLOCK) == 0);
		atomic_store(&told->late[i], true);
	}
	shot_go(&s);
	must(shot_end(&s) == 0);
	atomic_store(&told->taken, true);
	must(do_flush(0) == 0);
	atomic_store(&told->late_flushed[0], true);
	must(do_flush(1) == 0);
	atomic_store(&told->late_flushed[1], true);
}

static void open_snapshot_and_die(void *arg)
{
	open_store();
	snapshot_and_die(arg);
}

static bool boundaries(unsigned d, const struct fmt_uuid *id)
{
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
		static const struct fmt_uuid none;
		struct eng_file *file;
		struct fmt_header hdr;
		char *path = eng_store_layer_path(store, &rows[i].id,
						  rows[i].kind == FMT_KIND_OVERLAY ? "vmo" : "vmr");

		must(eng_io_open(machine, path, 0, &file) == 0);
		must(eng_io_pread(machine, file, slots, sizeof(slots), 0) == sizeof(slots));
		must(fmt_header_pick(slots, &hdr, &err) == 0);
		found = found || (!fmt_uuid_equal(&hdr.snapshot_id, &none) &&
				  !fmt_uuid_equal(&hdr.snapshot_id, id));
		eng_io_close(machine, file);
		free(path);
	}
	free(rows);
	return found;
}

/* P2, P4: all or nothing, and what was told. @power: only what was flushed counts. */
static void expect_recovered(bool power, const char *what, uint64_t at)
{
	struct cat_snapshot *rows = NULL, base = {.state = 0};
	bool there = false;
	size_t n = 0;

	must(eng_catalog_list_snapshots(store->catalog, NULL, &rows, &n) == 0);
	for (size_t i = 0; i < n; i++) {
		cr_expect_eq(rows[i].state, CAT_SNAPSHOT_COMPLETE, "%s %lu", what, at);
		there = there || !strcmp(rows[i].name, "s");
	}
	free(rows);
	must(eng_catalog_get_snapshot(store->catalog, "c", "base", &base) == 0);
	cr_expect(there || !atomic_load(&told->taken), "%s %lu: completed and gone", what, at);
	for (unsigned i = 0; i < 2; i++) {
		attach(i, i);
		cr_expect(!atomic_load(&told->flushed) || holds(i, 3, 0, BLOCK), "%s %lu", what,
			  at);
		cr_expect(holds(i, 1, BLOCK, 3 * BLOCK), "%s %lu", what, at);
		cr_expect(holds(i, 6, 4 * BLOCK, BLOCK) ||
				  (power && !there && holds(i, 1, 4 * BLOCK, BLOCK)),
			  "%s %lu", what, at);
		if (power ? atomic_load(&told->late_flushed[i]) : atomic_load(&told->late[i]))
			cr_expect(holds(i, 4, 8 * BLOCK, BLOCK), "%s %lu", what, at);
		else
			cr_expect(holds(i, 4, 8 * BLOCK, BLOCK) || holds(i, 1, 8 * BLOCK, BLOCK),
				  "%s %lu", what, at);
		if (there) {
			cr_expect(view_holds("s", i, 3, 0, BLOCK), "%s %lu", what, at);
			cr_expect(view_holds("s", i, 1, BLOCK, 3 * BLOCK), "%s %lu", what, at);
			cr_expect(view_holds("s", i, 6, 4 * BLOCK, BLOCK), "%s %lu", what, at);
			cr_expect(view_holds("s", i, 1, 5 * BLOCK, 11 * BLOCK), "%s %lu", what, at);
		} else {
			cr_expect_not(boundaries(i, &base.id), "%s %lu: disk %u (T22)", what, at,
				      i);
		}
		cr_expect(view_holds("base", i, 1, 0, 16 * BLOCK), "%s %lu", what, at);
		must(do_write(i, 5, 3 * BLOCK, BLOCK) == 0 && do_flush(i) == 0);
	}
	cr_expect_eq(snapshot("after"), 0, "%s %lu", what, at);
	cr_expect(view_holds("after", 0, 5, 3 * BLOCK, BLOCK), "%s %lu", what, at);
	detach(0);
	detach(1);
}

#define DEADLY                                                                                     \
	(ENG_FAULT_CREATE | ENG_FAULT_ANY_WRITE | ENG_FAULT_ANY_FDATASYNC | ENG_FAULT_SYNC_DIR |   \
	 ENG_FAULT_UNLINK | ENG_FAULT_ALLOCATE | ENG_FAULT_TRUNCATE | ENG_FAULT_SHM_UNLINK)

/* P2, P4, RV-*: section 6, row by row. */
Test(engine_recover, process_may_die_at_any_operation_of_a_snapshot)
{
	struct death death = {.ops = DEADLY, .phase = -1};
	uint64_t deaths = 0;

	for (int status = 7; status == 7 && death.skip < 400; death.skip++) {
		begin_recover(2);
		make_overlays(2);
		status = in_process(open_snapshot_and_die, &death);
		cr_assert(status == 7 || status == 0, "death %lu: status %d", death.skip, status);
		deaths += status == 7;
		open_after_death();
		expect_recovered(false, "death", death.skip);
		close_store();
		finish();
	}
	cr_expect_geq(deaths, 15u);
}

/* T22: everything is bounded, the commit is on its way. */
Test(engine_recover, boundaries_without_a_commit_are_cleared)
{
	struct death death = {.ops = ENG_FAULT_ANY_WRITE,
			      .path = "catalog.db-wal",
			      .phase = ENG_SNAPSHOT_CUT};
	struct cat_snapshot row;

	begin_recover(2);
	make_overlays(2);
	must(in_process(open_snapshot_and_die, &death) == 7);
	open_after_death();
	cr_expect_eq(eng_catalog_get_snapshot(store->catalog, "c", "s", &row), -ENOENT);
	expect_recovered(false, "commit", 0);
	close_store();
	finish();
}

static void recover_and_die(void *arg)
{
	add_death(arg);
	open_after_death();
}

/* RV-8: a second recovery after a crash of the first decides the same. */
Test(engine_recover, recovery_may_die_at_any_operation_too)
{
	struct death first = {.ops = ENG_FAULT_ANY_WRITE,
			      .path = "catalog.db-wal",
			      .phase = ENG_SNAPSHOT_CUT};
	struct death second = {.ops = DEADLY, .phase = -1};
	uint64_t deaths = 0;

	for (int status = 7; status == 7 && second.skip < 400; second.skip++) {
		begin_recover(2);
		make_overlays(2);
		must(in_process(open_snapshot_and_die, &first) == 7);
		status = in_process(recover_and_die, &second);
		cr_assert(status == 7 || status == 0, "death %lu: %d", second.skip, status);
		deaths += status == 7;
		open_after_death();
		expect_recovered(false, "recovery's death", second.skip);
		close_store();
		finish();
	}
	cr_expect_geq(deaths, 10u);
}

/* --- the host --- */

enum { MARK_FLUSHED = 1, MARK_TAKEN, MARK_LATE_FLUSHED };

static void tell_marks(struct eng_record *rec, uint64_t index)
{
	struct eng_record_mark mark;

	memset(told, 0, sizeof(*told));
	for (size_t i = 0; eng_record_get_mark(rec, i, &mark); i++) {
		if (mark.index >= index)
			continue;
		if (mark.kind == MARK_FLUSHED)
			atomic_store(&told->flushed, true);
		if (mark.kind == MARK_TAKEN)
			atomic_store(&told->taken, true);
		if (mark.kind == MARK_LATE_FLUSHED)
			atomic_store(&told->late_flushed[mark.a], true);
	}
}

static uint64_t record_snapshot(struct eng_record *rec, uint64_t *first)
{
	struct shot s;

	open_store();
	attach_all(2);
	for (unsigned i = 0; i < 2; i++)
		must(do_write(i, 3, 0, BLOCK) == 0 && do_flush(i) == 0 &&
		     do_write(i, 6, 4 * BLOCK, BLOCK) == 0);
	*first = eng_record_mark(rec, MARK_FLUSHED, 0, 0) + 1;
	shot_start(&s, "s", ENG_SNAPSHOT_CUT);
	turn_until(atomic_load(&s.phase) == ENG_SNAPSHOT_CUT);
	must(do_write(0, 4, 8 * BLOCK, BLOCK) == 0 && do_write(1, 4, 8 * BLOCK, BLOCK) == 0);
	must(do_flush(0) == 0); /* hardens its frozen layer before the coordinator does */
	eng_record_mark(rec, MARK_LATE_FLUSHED, 0, 0);
	shot_go(&s);
	must(shot_end(&s) == 0);
	eng_record_mark(rec, MARK_TAKEN, 0, 0);
	must(do_flush(1) == 0);
	eng_record_mark(rec, MARK_LATE_FLUSHED, 1, 0);
	detach(0);
	detach(1);
	close_store();
	return eng_record_index(rec);
}

static void try_power_loss(struct eng_record *rec, uint64_t index, uint64_t seed)
{
	char store_dir[192];

	tell_marks(rec, index);
	enter_power_loss(rec, index, seed, store_dir);
	expect_recovered(true, "power lost at event", index);
	leave_power_loss(store_dir);
}

/* P2, P4, T9..T12, T21, T22: every event of a snapshot under writes and flushes. */
Test(engine_recover, power_may_fail_at_any_event_of_a_snapshot)
{
	struct eng_fault *own_fault;
	struct eng_io *own_machine;
	struct eng_record *rec;
	uint64_t first, last;

	begin_recover(2);
	make_overlays(2);
	eng_fault_destroy(fault);
	must(eng_record_create(machine, dir, &rec) == 0);
	use_io(eng_record_io(rec));
	last = record_snapshot(rec, &first);
	own_machine = machine;
	own_fault = fault;
	cr_assert_gt(last, first + 50);
	for (uint64_t index = first; index <= last; index += 2)
		try_power_loss(rec, index, index * 3);
	machine = own_machine;
	fault = own_fault;
	eng_fault_destroy(fault);
	eng_record_destroy(rec);
	eng_io_destroy(machine);
	must(eng_record_remove_tree(root) == 0);
}

static void *abandoned[3]; /* so that it is no leak */

/* The process is gone, the recorder is not: nothing is told, and no ring keeps the lock. */
static void abandon_store(void)
{
	for (int i = 0; i < 2; i++) {
		eng_ring_destroy(eng_queue_ring(queue[i]));
		abandoned[i] = queue[i];
	}
	eng_io_close(io, store->lock_file);
	abandoned[2] = store;
	store = NULL;
}

/* Writes, the death of the process, recovery; then the host's death at once. */
static void lose_power_after_recovery(bool raw)
{
	struct eng_fault *own_fault;
	struct eng_io *own_machine;
	struct eng_queue *own_queue[2];
	struct eng_store *own_store;
	struct eng_record *rec;
	uint64_t index;

	begin_recover(2);
	if (raw)
		close_store();
	else
		make_overlays(2);
	eng_fault_destroy(fault);
	must(eng_record_create(machine, dir, &rec) == 0);
	use_io(eng_record_io(rec));
	open_store();
	attach_all(2);
	for (unsigned i = 0; i < 2; i++) {
		must(do_write(i, 3, 0, 2 * BLOCK) == 0 && do_flush(i) == 0);
		must(do_write(i, 4, 0, BLOCK) == 0); /* in place: no journal, no record */
		if (raw || i == 1)
			continue;
		must(do_write(i, 5, 20 * BLOCK, BLOCK) == 0);
		must(do_op(i, ENG_DISCARD, 0, BLOCK, BLOCK) == 0);
	}
	abandon_store();
	open_store();
	index = eng_record_index(rec);
	own_machine = machine;
	own_fault = fault;
	own_store = store;
	memcpy(own_queue, queue, sizeof(queue));
	for (uint64_t seed = 0; seed < 12; seed++) {
		char store_dir[192];

		enter_power_loss(rec, index, seed, store_dir);
		for (unsigned i = 0; i < 2; i++) {
			attach(i, i);
			cr_expect(holds(i, 4, 0, BLOCK), "seed %lu", seed);
			cr_expect(holds(i, raw || i ? 3 : 0, BLOCK, BLOCK), "seed %lu", seed);
			cr_expect(holds(i, raw || i ? 0 : 5, 20 * BLOCK, BLOCK), "seed %lu", seed);
			detach(i);
		}
		leave_power_loss(store_dir);
	}
	machine = own_machine;
	fault = own_fault;
	io = eng_fault_io(fault);
	store = own_store;
	memcpy(queue, own_queue, sizeof(queue));
	close_store();
	eng_fault_destroy(fault);
	eng_record_destroy(rec);
	eng_io_destroy(machine);
	must(eng_record_remove_tree(root) == 0);
}

/* RV-3: what recovery found in a journal or a page cache is durable when the store is open again. */
Test(engine_recover, what_a_recovery_found_survives_the_host_from_then_on)
{
	lose_power_after_recovery(false);
}

/* RV-5 */
Test(engine_recover, what_a_recovery_found_in_a_raw_head_survives_the_host)
{
	lose_power_after_recovery(true);
}

/* --- files without a row --- */

static char *orphan_path(const char *digits, const char *suffix)
{
	static char path[4][320];
	static unsigned next;
	char *p = path[next++ % 4];

	snprintf(p, sizeof(path[0]), "%s/layers/%s-0000-4000-8000-000000000000%s", dir, digits,
		 suffix);
	return p;
}

/* A base with its sidecar, of the store @owner. */
static void leave_base(const char *digits, const struct fmt_uuid *owner, bool sidecar)
{
	struct fmt_header hdr = {
		.kind = FMT_KIND_RAW,
		.state = FMT_STATE_FROZEN,
		.block_bits = 12,
		.size = 1 << 20,
		.base_bytes = 0,
		.store_id = *owner,
	};
	struct eng_file *file;

	must(eng_io_open(machine, orphan_path(digits, ".raw"), ENG_OPEN_WRITE | ENG_OPEN_CREATE,
			 &file) == 0);
	eng_io_close(machine, file);
	hdr.layer_id = *owner; /* any */
	if (sidecar)
		must(eng_sidecar_create(machine, orphan_path(digits, ".vmr"), &hdr, NULL) == 0);
}

static bool is_there(const char *digits, const char *suffix)
{
	struct eng_stat st;

	return eng_io_stat(machine, orphan_path(digits, suffix), &st) == 0;
}

static void die_open(void *arg)
{
	(void)arg;
	open_store();
}

/* RV-9: a base whose making was cut off goes, with its sidecar; another store's stays, and a row's. */
Test(engine_recover, bases_that_no_row_names_go)
{
	struct fmt_uuid ours, another;

	begin_recover(1);
	ours = store->id;
	eng_store_new_id(store, &another);
	close_store();
	leave_base("11111111", &ours, false);
	leave_base("22222222", &ours, true);
	leave_base("33333333", &another, true);
	must(in_process(die_open, NULL) == 0);
	open_after_death();
	cr_expect(!is_there("11111111", ".raw"), "it has no sidecar: it was never finished");
	cr_expect(!is_there("22222222", ".raw") && !is_there("22222222", ".vmr"));
	cr_expect(is_there("33333333", ".raw") && is_there("33333333", ".vmr"), "not ours");
	attach(0, 0);
	cr_expect(do_write(0, 1, 0, BLOCK) == 0 && holds(0, 1, 0, BLOCK),
		  "the disk's own is there");
	end(1);
}
