/* SPDX-License-Identifier: MIT */
/* engine_roll.c - a disk's own cuts: T6, RO-*, and T7 where a create meets one. */
#include "tests/unit/engine_store.h"

TestSuite(engine_roll, .timeout = 120);

static struct cat_layer *chain_of(unsigned d, size_t *n)
{
	struct cat_layer *rows = NULL;
	struct cat_disk row;
	char name[8];

	snprintf(name, sizeof(name), "d%u", d);
	must(eng_catalog_get_disk(store->catalog, "a", name, &row) == 0);
	must(eng_catalog_chain(store->catalog, &row.head, &rows, n) == 0);
	return rows;
}

static size_t depth_of(unsigned d)
{
	size_t n = 0;

	free(chain_of(d, &n));
	return n;
}

/* The rows of the disk are one chain, and memory agrees with it. */
static void expect_one_chain(unsigned d)
{
	struct cat_layer *chain, *rows = NULL;
	size_t n = 0, all = 0;

	turn_until(!disk[d]->rolling && !disk[d]->background);
	must(do_write(d, 1, 4000 * BLOCK, 512) == 0);
	turn_until(!disk[d]->rolling && !disk[d]->background);
	chain = chain_of(d, &n);
	must(eng_catalog_list_layers(store->catalog, &disk[d]->id, &rows, &all) == 0);
	cr_expect_eq(all, n, "%zu layers, %zu of them in the chain", all, n);
	eng_disk_promote(disk[d]);
	cr_assert_eq(disk[d]->nlayers, n);
	for (size_t i = 0; i < n; i++) {
		cr_expect(fmt_uuid_equal(&disk[d]->layers[i]->id, &chain[i].id), "layer %zu", i);
		if (i)
			cr_expect(fmt_uuid_equal(&disk[d]->layers[i]->hdr.parent_id,
						 &chain[i - 1].id));
	}
	free(chain);
	free(rows);
}

static void begin_bounded(unsigned disks, uint64_t bound)
{
	begin(disks, 16 << 20);
	close_store();
	options.map_bound = bound;
	open_store();
	for (unsigned i = 0; i < disks; i++) {
		attach(i, i % 2);
		must(do_write(i, 1, 0, 16 * BLOCK) == 0);
	}
	must(snapshot("s0") == 0);
}

static void expect_written(unsigned d, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		cr_expect(holds(d, 10 + i, 2ull * i * BLOCK, BLOCK), "block %u", 2 * i);
}

static void end(unsigned disks)
{
	for (unsigned i = 0; i < disks; i++)
		detach(i);
	close_store();
	finish();
}

/* RO-1, RO-5 */
Test(engine_roll, disk_rolls_when_its_map_passes_half_the_bound)
{
	begin_bounded(1, 200);
	for (unsigned i = 0; i < 1000; i++) {
		must(do_write(0, 10 + i, 2ull * i * BLOCK, BLOCK) == 0);
		if (i % 100 == 99)
			turn_until(!disk[0]->rolling);
	}
	cr_expect_geq(depth_of(0), 5u);
	expect_one_chain(0);
	must(do_flush(0) == 0);
	expect_written(0, 1000);
	must(snapshot("s1") == 0);
	detach(0);
	close_store();
	open_store();
	attach(0, 0);
	expect_written(0, 1000);
	cr_expect(view_holds("s1", 0, 10 + 999, 1998 * BLOCK, BLOCK));
	end(1);
}

/* RO-1: by its log, too. */
Test(engine_roll, disk_rolls_when_its_log_passes_half_the_bound)
{
	begin(1, 16 << 20);
	close_store();
	options.log_bound = 600 << 10;
	open_store();
	attach(0, 0);
	must(do_write(0, 1, 0, BLOCK) == 0 && snapshot("s0") == 0);
	for (unsigned i = 0; i < 1500; i++)
		must(do_write(0, 10 + i, 2ull * i * BLOCK, BLOCK) == 0 && do_flush(0) == 0);
	cr_expect_geq(depth_of(0), 3u);
	expect_written(0, 1500);
	expect_one_chain(0);
	end(1);
}

/* T6, RO-3: at the whole bound the prepared cut gives way, and nothing slips beneath it. */
Test(engine_roll, prepared_cut_gives_way_at_the_bound)
{
	struct cat_snapshot row;
	struct ask *stuck;
	size_t before;
	struct shot s;
	unsigned i;
	int rule;

	begin_bounded(2, 200);
	must(do_write(0, 2, 0, BLOCK) == 0 && do_write(1, 2, 0, BLOCK) == 0);
	before = depth_of(1);
	/* Disk 0's queue is not turned: the cut stays prepared while disk 1 writes on. */
	rule = hold_add((struct hold_rule){.kind = ENG_OP_WRITE,
					   .path = strrchr(disk[0]->head->path, '/'),
					   .mine = true});
	stuck = ask_write(0, 3, 0, BLOCK);
	turn_until(hold_held(rule) == 1);
	must(shot_check("c", "s", 20 * SECOND, &s) == 0);
	shot_launch(&s);
	for (i = 0; !atomic_load(&disk[1]->head->succ); i++)
		usleep(1000);
	for (i = 0; i < 1000 && !atomic_load(&s.done); i++) {
		struct ask *a = ask_write(1, 10 + i, 2ull * i * BLOCK, BLOCK);

		while (!a->done)
			turn(1, MS);
		must(ask_end(a) == 0);
		if (i > 150)
			usleep(1000);
	}
	cr_expect_eq(shot_end(&s), -ECANCELED);
	cr_expect_geq(i, 90u, "not before the bound");
	cr_expect_eq(atomic_load(&s.phase), -1);
	cr_expect_eq(eng_catalog_get_snapshot(store->catalog, "c", "s", &row), -ENOENT);
	hold_release(rule);
	must(ask_end(stuck) == 0);
	for (unsigned j = 0; j < 20; j++) { /* what was put off */
		must(do_write(1, 10 + i, 2ull * i * BLOCK, BLOCK) == 0);
		turn_until(!disk[1]->rolling && !disk[1]->background);
		i++;
	}
	cr_expect_gt(depth_of(1), before, "the roll comes now");
	expect_one_chain(0);
	expect_one_chain(1);
	must(snapshot("s") == 0);
	expect_written(1, i);
	detach(1);
	attach(1, 1);
	expect_written(1, i);
	end(2);
}

static sem_t roll_may_go;
static _Atomic bool roll_waits;

static void wait_in_roll(void *arg)
{
	(void)arg;
	atomic_store(&roll_waits, true);
	while (sem_wait(&roll_may_go) < 0)
		;
}

/* T7, RO-2: a create that meets a roll waits for its end, and commits over a hardened layer. */
Test(engine_roll, create_waits_for_a_roll)
{
	struct eng_fault_rule rule = {.ops = ENG_FAULT_SYNC_DIR, .strike = wait_in_roll};
	unsigned i = 0;
	struct shot s;

	begin_bounded(1, 200);
	sem_init(&roll_may_go, 0, 0);
	must(eng_fault_add(fault, &rule) >= 0);
	while (!atomic_load(&roll_waits)) {
		must(do_write(0, 10 + i, 2ull * i * BLOCK, BLOCK) == 0);
		i++;
		cr_assert_lt(i, 5000u);
		if (i > 150)
			usleep(1000); /* a busy machine: the pool's turn */
	}
	must(shot_check("c", "s", 20 * SECOND, &s) == 0);
	shot_launch(&s);
	turn_for(50 * MS);
	cr_expect_not(atomic_load(&s.done));
	cr_expect_eq(atomic_load(&s.phase), -1);
	eng_fault_clear(fault);
	sem_post(&roll_may_go);
	must(shot_end(&s) == 0);
	for (uint32_t j = 0; j + 1 < disk[0]->nlayers; j++)
		cr_expect_eq(atomic_load(&disk[0]->layers[j]->harden), ENG_HARDEN_DONE);
	expect_one_chain(0);
	cr_expect(view_holds("s", 0, 10 + i - 1, 2ull * (i - 1) * BLOCK, BLOCK));
	end(1);
}

/* RO-4: a roll that cannot be made fails no write. */
Test(engine_roll, failed_roll_fails_no_write)
{
	struct eng_fault_rule rule = {.ops = ENG_FAULT_CREATE,
				      .path = ".vmo",
				      .sticky = true,
				      .error = -ENOSPC};

	begin_bounded(1, 200);
	must(eng_fault_add(fault, &rule) >= 0);
	for (unsigned i = 0; i < 600; i++)
		must(do_write(0, 10 + i, 2ull * i * BLOCK, BLOCK) == 0);
	turn_until(!disk[0]->rolling && !disk[0]->background);
	must(do_flush(0) == 0);
	cr_expect_eq(depth_of(0), 2u);
	eng_fault_clear(fault);
	for (unsigned i = 600; i < 700; i++)
		must(do_write(0, 10 + i, 2ull * i * BLOCK, BLOCK) == 0);
	turn_until(depth_of(0) > 2u);
	expect_written(0, 700);
	end(1);
}
