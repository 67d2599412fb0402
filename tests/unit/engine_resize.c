/* SPDX-License-Identifier: MIT */
/*
 * engine_resize.c - an attached disk grows under its requests; who may ask and when; what the death of the
 * process or of the host leaves of it (AT-6).
 */
#include "tests/unit/engine_store.h"

TestSuite(engine_resize, .timeout = 300);

#define OLD (1u << 20)
#define NEW ((3u << 20) + 512 * 8)

/* A resize on a thread of its own, for the test's turns the queues. */
struct growth {
	pthread_t thread;
	uint64_t size;
	_Atomic bool done;
	int result;
	struct fmt_error why;
};

static void *grow_main(void *arg)
{
	struct growth *g = arg;

	g->result = eng_store_resize_disk(store, "a", "d0", g->size, &g->why);
	atomic_store(&g->done, true);
	return NULL;
}

static void grow_start(struct growth *g, uint64_t size)
{
	memset(g, 0, sizeof(*g));
	g->size = size;
	must(pthread_create(&g->thread, NULL, grow_main, g) == 0);
}

static int grow_end(struct growth *g)
{
	turn_until(atomic_load(&g->done));
	pthread_join(g->thread, NULL);
	return g->result;
}

static int grow(uint64_t size)
{
	struct growth g;

	grow_start(&g, size);
	return grow_end(&g);
}

static uint64_t row_size(void)
{
	struct cat_disk row;

	must(eng_catalog_get_disk(store->catalog, "a", "d0", &row) == 0);
	return row.size;
}

static void end(void)
{
	detach(0);
	close_store();
	finish();
}

static void expect_grows(void)
{
	must(do_write(0, 1, 0, OLD) == 0);
	cr_expect_eq(do_write(0, 2, OLD, BLOCK), -EINVAL);
	cr_assert_eq(grow(NEW), 0);
	cr_expect_eq(disk[0]->size, NEW);
	cr_expect_eq(row_size(), NEW);
	cr_expect(holds(0, 1, 0, OLD));
	cr_expect(holds(0, 0, OLD, NEW - OLD), "zeros behind the old end");
	cr_expect_eq(do_write(0, 3, OLD - 512, NEW - OLD + 512), 0);
	cr_expect_eq(do_write(0, 4, NEW, 512), -EINVAL);
	cr_expect_eq(do_op(0, ENG_DISCARD, 0, NEW - BLOCK, BLOCK), 0);
	cr_expect(holds(0, 3, OLD - 512, NEW - OLD + 512 - BLOCK));
	cr_expect(holds(0, 0, NEW - BLOCK, BLOCK));
	detach(0);
	attach(0, 0);
	cr_expect_eq(disk[0]->size, NEW);
	cr_expect(holds(0, 3, OLD - 512, NEW - OLD + 512 - BLOCK));
}

Test(engine_resize, a_raw_head_grows_while_attached)
{
	begin(1, OLD);
	attach(0, 0);
	expect_grows();
	end();
}

Test(engine_resize, an_overlay_grows_while_attached)
{
	begin(1, OLD);
	attach(0, 0);
	must(do_write(0, 9, 0, 4 * BLOCK) == 0 && snapshot("before") == 0);
	expect_grows();
	must(snapshot("after") == 0 && do_write(0, 7, 0, BLOCK) == 0);
	cr_expect_eq(grow(2 * NEW), 0);
	cr_expect(holds(0, 0, NEW, NEW));
	cr_expect(view_holds("before", 0, 9, 0, 4 * BLOCK));
	cr_expect(view_holds("after", 0, 3, OLD - 512, NEW - OLD + 512 - BLOCK));
	end();
}

/* A disk whose last block, and last region of the map, are not whole. */
Test(engine_resize, an_end_inside_a_block_becomes_the_middle_of_it)
{
	uint64_t size = (16ull << 20) + 3 * 512;

	begin(1, size);
	attach(0, 0);
	must(snapshot("s") == 0 && do_write(0, 1, 0, size) == 0);
	must(do_op(0, ENG_WRITE_ZEROES, 0, size - 512, 512) == 0);
	for (unsigned i = 0; i < 40; i++, size += 512) {
		cr_assert_eq(grow(size + 512), 0);
		cr_assert(holds(0, 0, size, 512), "after step %u", i);
		cr_assert_eq(do_write(0, 2, size, 512), 0);
	}
	cr_assert_eq(grow(1ull << 40), 0);
	cr_expect(holds(0, 1, 0, (16 << 20) + 2 * 512));
	cr_expect(holds(0, 0, (16 << 20) + 2 * 512, 512));
	cr_expect(holds(0, 2, (16 << 20) + 3 * 512, 40 * 512));
	cr_expect_eq(do_write(0, 3, (1ull << 40) - BLOCK, BLOCK), 0);
	cr_expect(holds(0, 3, (1ull << 40) - BLOCK, BLOCK));
	end();
}

/* AT-6, CU-4: who may, and when. */
Test(engine_resize, what_cannot_be_is_refused_and_changes_nothing)
{
	struct shot s;

	begin(1, OLD);
	attach(0, 0);
	cr_expect_eq(eng_store_resize_disk(store, "a", "d0", NEW, &err), -EDEADLK);
	cr_expect_eq(grow(OLD - 512), -EINVAL);
	cr_expect_eq(grow(OLD + 1), -EINVAL);
	cr_expect_eq(grow(OLD), 0, "to its own size");
	shot_start(&s, "s", ENG_SNAPSHOT_CUT);
	turn_until(atomic_load(&s.phase) == ENG_SNAPSHOT_CUT);
	cr_expect_eq(grow(NEW), -EBUSY, "in a cut");
	shot_go(&s);
	must(shot_end(&s) == 0);
	cr_expect_eq(disk[0]->size, OLD);
	cr_expect_eq(row_size(), OLD);
	detach(0);
	must(eng_store_attach(store, queue[0], "a/d0", ENG_ATTACH_READ_ONLY, &err, &disk[0]) == 0);
	cr_expect_eq(grow(NEW), -EBUSY, "attached read-only");
	must(eng_store_detach(disk[0]) == 0);
	cr_expect_eq(eng_store_resize_disk(store, "a", "d0", NEW, &err), 0, "not attached: %s",
		     err.text);
	attach(0, 0);
	cr_expect_eq(disk[0]->size, NEW);
	end();
}

/* AT-6: a worker that does not turn sees it later; until then nobody passes the old end. */
Test(engine_resize, requests_before_the_switch_see_the_old_size)
{
	struct growth g;

	begin(1, OLD);
	attach(0, 0);
	must(snapshot("s") == 0);
	grow_start(&g, NEW);
	while (row_size() == OLD)
		usleep(1000);
	cr_expect_eq(disk[0]->size, OLD, "not before its turn");
	cr_expect_not(atomic_load(&g.done));
	cr_expect_eq(grow_end(&g), 0);
	cr_expect_eq(disk[0]->size, NEW);
	end();
}

/* SB-1 */
Test(engine_resize, a_standby_of_the_old_size_is_not_used)
{
	begin_in("/dev/shm");
	options.standby = true;
	open_store();
	make_collection("c", "a");
	make_disk(0, OLD, 0);
	attach(0, 0);
	must(do_write(0, 1, 0, OLD) == 0 && snapshot("s1") == 0);
	for (unsigned i = 0; i < 5; i++) {
		uint64_t size = OLD + (i + 1) * (uint64_t)BLOCK;

		cr_assert_eq(grow(size), 0);
		if (i % 2)
			turn_for(20 * MS); /* another standby is made, or not yet */
		must(snapshot(i == 0   ? "a"
			      : i == 1 ? "b"
			      : i == 2 ? "c"
			      : i == 3 ? "d"
				       : "e") == 0);
		cr_expect_eq(do_write(0, i, size - BLOCK, BLOCK), 0);
		cr_expect_eq(atomic_load(&disk[0]->head->size), size);
		cr_expect(holds(0, 1, 0, OLD));
	}
	end();
}

/* AT-6 with everything else: writes over the whole disk, cuts, one resize after another. */
Test(engine_resize, a_disk_grows_under_load)
{
	struct ask *asks[16];
	uint64_t size = OLD, n = 1, last[256] = {0};
	struct growth g;

	begin(1, OLD);
	attach(0, 0);
	for (unsigned round = 0; round < 12; round++) {
		uint64_t more = size + (round % 3 ? 5 * BLOCK : 64 * BLOCK);

		grow_start(&g, more);
		while (!atomic_load(&g.done)) {
			for (unsigned i = 0; i < 16; i++) {
				uint64_t b = (n * 7919 + i) % 256;

				last[b] = ++n;
				asks[i] = ask_write(0, n, b * BLOCK, BLOCK);
			}
			for (unsigned i = 0; i < 16; i++)
				cr_assert_eq(ask_end(asks[i]), 0);
		}
		cr_assert_eq(grow_end(&g), 0, "%s", g.why.text);
		cr_assert_eq(do_write(0, 1, size, more - size), 0);
		size = more;
		if (round % 4 == 3) {
			char name[8];

			snprintf(name, sizeof(name), "s%u", round);
			must(snapshot(name) == 0);
		}
	}
	for (uint64_t b = 0; b < 256; b++)
		cr_assert(holds(0, last[b], b * BLOCK, last[b] ? BLOCK : 0), "block %lu", b);
	cr_expect(holds(0, 1, OLD, size - OLD));
	end();
}

/* AT-6: a failure before the commit leaves the old size. */
Test(engine_resize, a_failed_resize_leaves_the_old_size)
{
	static const struct eng_fault_rule rules[] = {
		{.ops = ENG_FAULT_TRUNCATE, .path = ".raw", .error = -ENOSPC},
		{.ops = ENG_FAULT_PWRITE, .path = ".vmr", .error = -EIO},
		{.ops = ENG_FAULT_FDATASYNC, .path = ".vmr", .error = -EIO},
	};

	begin(1, OLD);
	attach(0, 0);
	must(do_write(0, 1, 0, OLD) == 0);
	for (unsigned i = 0; i < 3; i++) {
		eng_fault_add(fault, &rules[i]);
		cr_expect_eq(grow(NEW), rules[i].error, "rule %u", i);
		eng_fault_clear(fault);
		cr_expect_eq(disk[0]->size, OLD);
		cr_expect_eq(row_size(), OLD);
		cr_expect_eq(do_write(0, 2, OLD, 512), -EINVAL);
		cr_expect_eq(do_flush(0), 0);
	}
	cr_expect_eq(grow(NEW), 0);
	cr_expect(holds(0, 1, 0, OLD) && holds(0, 0, OLD, NEW - OLD));
	end();
}

/* CU-17, T16: a sync of the resize that fails is the head's failure. */
Test(engine_resize, a_failed_sync_poisons_the_head)
{
	begin(1, OLD);
	attach(0, 0);
	must(do_write(0, 1, 0, OLD) == 0);
	eng_fault_add(fault, &(struct eng_fault_rule){.ops = ENG_FAULT_FDATASYNC,
						      .path = ".raw",
						      .error = -EIO});
	cr_expect_eq(grow(NEW), -EIO);
	eng_fault_clear(fault);
	cr_expect_eq(do_flush(0), -ENOTRECOVERABLE);
	cr_expect_eq(grow(NEW), -ENOTRECOVERABLE);
	cr_expect_eq(eng_store_detach(disk[0]), -ENOTRECOVERABLE);
	close_store();
	finish();
}

/* AT-6 */
Test(engine_resize, a_head_smaller_than_its_disk_is_refused)
{
	struct cat_disk row;

	begin(1, OLD);
	for (unsigned i = 0; i < 2; i++) { /* a raw head, an overlay */
		must(eng_catalog_get_disk(store->catalog, "a", "d0", &row) == 0);
		for (unsigned more = 1; more < 2; more--) {
			row.size = OLD + more * 512;
			must(eng_catalog_begin(store->catalog) == 0);
			eng_catalog_put_disk(store->catalog, &row);
			must(eng_catalog_commit(store->catalog, &err) == 0);
			cr_expect_eq(eng_store_attach(store, queue[0], "a/d0", 0, &err, &disk[0]),
				     more ? -EUCLEAN : 0);
		}
		if (i == 0) {
			must(snapshot("s") == 0);
			detach(0);
		}
	}
	end();
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

static void make_grown(bool overlay)
{
	attach(0, 0);
	must(do_write(0, 1, 0, OLD) == 0);
	if (overlay)
		must(snapshot("s") == 0 && do_write(0, 2, 0, 4 * BLOCK) == 0);
	must(do_flush(0) == 0);
}

/* How far it came: not yet, resized, resized and written behind the old end and flushed. */
enum told { TOLD_NOTHING, TOLD_GROWN, TOLD_FLUSHED };

static void expect_after(bool overlay, enum told told, const char *what, uint64_t at)
{
	uint64_t size = row_size();

	cr_assert(size == NEW || (size == OLD && !told), "%s %lu: size %lu", what, at, size);
	attach(0, 0);
	cr_assert_eq(disk[0]->size, size);
	cr_assert(holds(0, overlay ? 2 : 1, 0, 4 * BLOCK), "%s %lu", what, at);
	cr_assert(holds(0, 1, 4 * BLOCK, OLD - 5 * BLOCK), "%s %lu", what, at);
	if (told == TOLD_FLUSHED)
		cr_assert(holds(0, 3, NEW - BLOCK, BLOCK), "%s %lu", what, at);
	must(do_write(0, 5, size - BLOCK, BLOCK) == 0); /* the head agrees with the catalog */
	detach(0);
	attach(0, 0);
	cr_assert(holds(0, 5, size - BLOCK, BLOCK), "%s %lu", what, at);
	cr_assert_eq(grow(2 * NEW), 0, "%s %lu: %s", what, at, err.text);
	cr_assert(holds(0, 0, OLD, NEW - BLOCK - OLD), "%s %lu: zeros behind the end", what, at);
	cr_assert_eq(do_write(0, 4, 2 * NEW - BLOCK, BLOCK), 0);
	must(snapshot("after") == 0);
	cr_assert(view_holds("after", 0, 4, 2 * NEW - BLOCK, BLOCK), "%s %lu", what, at);
	detach(0);
}

static void grow_and_die(void *arg)
{
	const struct death *death = arg;
	struct eng_fault_rule rule = {.ops = ENG_FAULT_TRUNCATE | ENG_FAULT_ANY_WRITE |
					     ENG_FAULT_ANY_FDATASYNC,
				      .skip = death->skip,
				      .error = -EIO,
				      .strike = die_now};

	open_store();
	make_grown(death->overlay);
	must(eng_fault_add(fault, &rule) >= 0);
	must(grow(NEW) == 0);
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
		status = in_process(grow_and_die, &death);
		cr_assert(status == 7 || status == 0, "death %lu: status %d", death.skip, status);
		deaths += status == 7;
		open_after_death();
		cr_expect(status == 7 || row_size() == NEW);
		expect_after(overlay, TOLD_NOTHING, "death", death.skip);
		close_store();
		finish();
	}
	cr_expect_geq(deaths, 4u);
}

Test(engine_resize, the_process_may_die_at_any_operation_of_a_raw_heads_resize)
{
	die_at_each(false);
}

Test(engine_resize, the_process_may_die_at_any_operation_of_an_overlays_resize)
{
	die_at_each(true);
}

struct loss {
	bool overlay;
	uint64_t grown, flushed;
};

static void expect_after_loss(uint64_t index, void *arg)
{
	const struct loss *loss = arg;

	expect_after(loss->overlay,
		     index >= loss->flushed ? TOLD_FLUSHED
		     : index >= loss->grown ? TOLD_GROWN
					    : TOLD_NOTHING,
		     "power lost at event", index);
}

static void lose_power_at_each(bool overlay)
{
	struct loss loss = {.overlay = overlay};
	uint64_t first;

	begin(1, OLD);
	record_from_here();
	make_grown(overlay);
	first = eng_record_index(recording);
	must(grow(NEW) == 0);
	loss.grown = eng_record_index(recording);
	must(do_write(0, 3, NEW - BLOCK, BLOCK) == 0 && do_flush(0) == 0);
	loss.flushed = eng_record_index(recording);
	detach(0);
	close_store();
	lose_power(first, eng_record_index(recording), expect_after_loss, &loss);
}

Test(engine_resize, power_may_fail_at_any_event_of_a_raw_heads_resize)
{
	lose_power_at_each(false);
}

Test(engine_resize, power_may_fail_at_any_event_of_an_overlays_resize)
{
	lose_power_at_each(true);
}
