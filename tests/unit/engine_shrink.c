/* SPDX-License-Identifier: MIT */
/*
 * engine_shrink.c - a disk made smaller is so or not, whatever fails or dies (RZ-2, RZ-3): errors,
 * death at any operation, power lost at any event; and what was cut off never shows again.
 */
#include "engine/store/shrink.h"
#include "tests/unit/engine_store.h"

TestSuite(engine_shrink, .timeout = 300);

#define OLD (64u * BLOCK)
#define NEW (20u * BLOCK)

static int shrink(uint64_t size, bool *marked)
{
	memset(&err, 0, sizeof(err));
	return eng_store_shrink_disk(store, "a", "d0", size, marked, &err);
}

static uint64_t row_size(void)
{
	struct cat_disk row;

	must(eng_catalog_get_disk(store->catalog, "a", "d0", &row) == 0);
	return row.size;
}

/* The disk's content is write 1, and of an overlay, write 2 in its first and its last blocks. */
static void make_content(bool overlay)
{
	attach(0, 0);
	must(do_write(0, 1, 0, OLD) == 0);
	if (overlay) {
		must(snapshot("s") == 0 && do_write(0, 2, 0, 4 * BLOCK) == 0);
		must(do_write(0, 2, OLD - BLOCK, BLOCK) == 0);
	}
	detach(0);
}

/* All of it or nothing of it; and if it was done, zeros ever after. */
static void expect_after(bool overlay, bool told, const char *what, uint64_t at)
{
	uint64_t size = row_size();

	cr_assert(size == NEW || (size == OLD && !told), "%s %lu: size %lu", what, at, size);
	attach(0, 0);
	cr_assert_eq(disk[0]->size, size);
	cr_assert(holds(0, overlay ? 2 : 1, 0, 4 * BLOCK), "%s %lu", what, at);
	cr_assert(holds(0, 1, 4 * BLOCK, NEW - 4 * BLOCK), "%s %lu", what, at);
	if (size == OLD) {
		cr_assert(holds(0, 1, NEW, OLD - NEW - BLOCK), "%s %lu: it was not done", what, at);
		cr_assert(holds(0, overlay ? 2 : 1, OLD - BLOCK, BLOCK), "%s %lu", what, at);
	}
	detach(0);
	if (size == OLD)
		return;
	must(eng_store_resize_disk(store, "a", "d0", OLD + BLOCK, &err) == 0);
	attach(0, 0);
	cr_assert(holds(0, 0, NEW, OLD + BLOCK - NEW), "%s %lu: it shows again", what, at);
	must(do_write(0, 5, OLD, BLOCK) == 0);
	must(snapshot("after") == 0);
	cr_assert(view_holds("after", 0, 0, NEW, OLD - NEW), "%s %lu", what, at);
	cr_assert(view_holds("after", 0, 5, OLD, BLOCK), "%s %lu", what, at);
	if (overlay)
		cr_assert(view_holds("s", 0, 1, 0, OLD), "%s %lu: the snapshot", what, at);
	detach(0);
}

/*
 * RZ-3: before the commit nothing happened; after it the disk waits for the next open, and so do
 * others.
 */
Test(engine_shrink, an_error_leaves_all_or_nothing)
{
	static const struct eng_fault_rule rules[] = {
		{.ops = ENG_FAULT_PWRITE, .path = "catalog.db", .error = -ENOSPC, .sticky = true},
		{.ops = ENG_FAULT_PWRITE, .path = ".vmo", .error = -EIO},
		{.ops = ENG_FAULT_FDATASYNC, .path = ".vmo", .error = -EIO},
		{.ops = ENG_FAULT_TRUNCATE, .path = ".raw", .error = -EIO},
		{.ops = ENG_FAULT_FDATASYNC, .path = ".raw", .error = -EIO},
	};

	for (unsigned i = 0; i < 5; i++) {
		bool overlay = i < 3, marked = false;

		begin(2, OLD);
		make_content(overlay);
		eng_fault_add(fault, &rules[i]);
		cr_expect_lt(shrink(NEW, &marked), 0, "rule %u", i);
		eng_fault_clear(fault);
		cr_expect_eq(marked, i > 0, "rule %u", i);
		if (marked) {
			bool again = false;

			cr_expect_eq(eng_store_attach(store, queue[0], "a/d0", 0, &err, &disk[0]),
				     -ENOTRECOVERABLE, "rule %u", i);
			cr_expect_eq(eng_store_shrink_disk(store, "a", "d1", NEW, &again, &err),
				     -EBUSY);
			close_store();
			open_store();
		}
		expect_after(overlay, marked, "rule", i);
		close_store();
		finish();
	}
}

/* RV-10: what cannot be finished at open is that disk's alone; a later open tries again. */
Test(engine_shrink, an_open_that_cannot_finish_refuses_the_disk)
{
	bool marked = false;

	begin(2, OLD);
	make_content(false);
	eng_fault_add(fault, &(struct eng_fault_rule){.ops = ENG_FAULT_TRUNCATE,
						      .path = ".raw",
						      .error = -EIO,
						      .sticky = true});
	cr_expect_eq(shrink(NEW, &marked), -EIO);
	close_store();
	open_store();
	cr_expect_eq(eng_store_attach(store, queue[0], "a/d0", 0, &err, &disk[0]),
		     -ENOTRECOVERABLE);
	attach(1, 0);
	detach(1);
	eng_fault_clear(fault);
	close_store();
	open_store();
	expect_after(false, true, "open", 2);
	close_store();
	finish();
}

/* --- growing again while attached --- */

struct growth {
	uint64_t size;
	_Atomic bool done;
	int result;
};

static void *grow_main(void *arg)
{
	struct growth *g = arg;
	struct fmt_error why = {""};

	g->result = eng_store_resize_disk(store, "a", "d0", g->size, &why);
	atomic_store(&g->done, true);
	return NULL;
}

static int grow(uint64_t size)
{
	struct growth g = {.size = size};
	pthread_t thread;

	must(pthread_create(&thread, NULL, grow_main, &g) == 0);
	turn_until(atomic_load(&g.done));
	pthread_join(thread, NULL);
	return g.result;
}

/* RZ-2: the head's zeros are known to the worker before there is a disk around them. */
Test(engine_shrink, a_live_grow_shows_zeros)
{
	bool marked;

	begin(1, OLD);
	make_content(true);
	must(shrink(NEW, &marked) == 0);
	attach(0, 0);
	cr_assert(holds(0, 1, NEW - BLOCK, BLOCK));
	cr_expect_eq(grow(NEW + 4 * BLOCK), 0, "%s", err.text);
	cr_assert(holds(0, 0, NEW, 4 * BLOCK));
	must(snapshot("t") == 0);
	cr_expect_eq(grow(OLD + 4 * BLOCK), 0, "%s", err.text);
	cr_assert(holds(0, 0, NEW, OLD + 4 * BLOCK - NEW));
	must(do_write(0, 7, OLD - BLOCK, 5 * BLOCK) == 0);
	cr_assert(holds(0, 7, OLD - BLOCK, 5 * BLOCK));
	cr_assert(holds(0, 0, NEW, OLD - BLOCK - NEW));
	cr_assert(view_holds("s", 0, 1, 0, OLD));
	cr_assert(view_holds("t", 0, 0, NEW, 4 * BLOCK));
	detach(0);
	close_store();
	finish();
}

/* --- deaths --- */

static void die_now(void *arg)
{
	(void)arg;
	_exit(7);
}

struct death {
	uint64_t skip;
	bool overlay;
};

static void shrink_and_die(void *arg)
{
	const struct death *death = arg;
	struct eng_fault_rule rule = {.ops = ENG_FAULT_TRUNCATE | ENG_FAULT_ANY_WRITE |
					     ENG_FAULT_ANY_FDATASYNC,
				      .skip = death->skip,
				      .error = -EIO,
				      .strike = die_now};
	bool marked;

	open_store();
	make_content(death->overlay);
	must(eng_fault_add(fault, &rule) >= 0);
	must(shrink(NEW, &marked) == 0);
	_exit(0);
}

static void die_at_each(bool overlay)
{
	struct death death = {.overlay = overlay};
	uint64_t deaths = 0;

	for (int status = 7; status == 7 && death.skip < 100; death.skip++) {
		begin_in("/dev/shm");
		open_store();
		make_collection("c", "a");
		make_disk(0, OLD, 0);
		close_store();
		status = in_process(shrink_and_die, &death);
		cr_assert(status == 7 || status == 0, "death %lu: status %d", death.skip, status);
		deaths += status == 7;
		open_after_death();
		expect_after(overlay, status == 0, "death", death.skip);
		close_store();
		finish();
	}
	cr_expect_geq(deaths, 4u);
}

Test(engine_shrink, the_process_may_die_at_any_operation_with_a_raw_head)
{
	die_at_each(false);
}

Test(engine_shrink, the_process_may_die_at_any_operation_with_an_overlay)
{
	die_at_each(true);
}

struct loss {
	bool overlay;
	uint64_t done;
};

static void expect_after_loss(uint64_t index, void *arg)
{
	const struct loss *loss = arg;

	expect_after(loss->overlay, index >= loss->done, "power lost at event", index);
}

static void lose_power_at_each(bool overlay)
{
	struct loss loss = {.overlay = overlay};
	uint64_t first;
	bool marked;

	begin(1, OLD);
	record_from_here();
	make_content(overlay);
	first = eng_record_index(recording);
	must(shrink(NEW, &marked) == 0);
	loss.done = eng_record_index(recording);
	close_store();
	lose_power(first, eng_record_index(recording), expect_after_loss, &loss);
}

Test(engine_shrink, power_may_fail_at_any_event_with_a_raw_head)
{
	lose_power_at_each(false);
}

Test(engine_shrink, power_may_fail_at_any_event_with_an_overlay)
{
	lose_power_at_each(true);
}
