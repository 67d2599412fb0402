/* SPDX-License-Identifier: MIT */
/*
 * engine_cut.c - the word, the successors, and who counts where: T1, T2, T3, T4, P1. The steps of the
 * guest's and of the coordinator's thread are forced.
 */
#include "tests/unit/engine_store.h"

TestSuite(engine_cut, .timeout = 120);

/* --- the word and the chain alone --- */

static struct eng_layer *bare_layer(void)
{
	struct eng_layer *layer = calloc(1, sizeof(*layer));

	atomic_store(&layer->refs, 1);
	pthread_mutex_init(&layer->meta_lock, NULL);
	layer->io = machine;
	return layer;
}

/* T1 */
Test(engine_cut, word_is_decided_once)
{
	struct eng_cut *a, *b;

	cr_assert_eq(eng_cut_create(&a), 0);
	cr_assert_eq(eng_cut_create(&b), 0);
	cr_expect(eng_cut_fire(a));
	cr_expect_not(eng_cut_abandon(a));
	cr_expect_not(eng_cut_fire(a));
	cr_expect_eq(atomic_load(&b->word), ENG_CUT_PREPARED, "another cut has another word");
	cr_expect(eng_cut_abandon(b));
	cr_expect_not(eng_cut_fire(b));
	cr_expect_not(eng_cut_abandon(b));
	eng_cut_put(a);
	eng_cut_put(b);
}

static pthread_barrier_t at_once;

static void *abandon_at_once(void *arg)
{
	pthread_barrier_wait(&at_once);
	return (void *)(uintptr_t)eng_cut_abandon(arg);
}

/* T1, I5 */
Test(engine_cut, fire_and_abandon_have_one_winner)
{
	pthread_barrier_init(&at_once, NULL, 2);
	for (unsigned i = 0; i < 2000; i++) {
		struct eng_cut *cut;
		pthread_t thread;
		void *abandoned;
		bool was_fired;

		cr_assert_eq(eng_cut_create(&cut), 0);
		cr_assert_eq(pthread_create(&thread, NULL, abandon_at_once, cut), 0);
		pthread_barrier_wait(&at_once);
		was_fired = eng_cut_fire(cut);
		pthread_join(thread, &abandoned);
		cr_assert_neq(was_fired, abandoned != NULL);
		cr_assert_eq(atomic_load(&cut->word),
			     was_fired ? ENG_CUT_FIRED : ENG_CUT_ABANDONED);
		eng_cut_put(cut);
	}
}

/* CH-1, CH-2, CH-3, CH-4 */
Test(engine_cut, successor_counts_when_fired_and_not_before)
{
	struct eng_layer *a = bare_layer(), *b = bare_layer(), *c = bare_layer();
	struct eng_cut *first, *second, *third;

	cr_assert_eq(eng_cut_create(&first), 0);
	cr_assert_eq(eng_cut_create(&second), 0);
	cr_assert_eq(eng_cut_create(&third), 0);
	cr_assert_eq(eng_cut_attach(first, a, b), 0);
	cr_expect_eq(eng_cut_attach(second, a, c), -EBUSY, "one unfired successor a disk");
	cr_expect_eq(eng_layer_newest(a), a);
	cr_expect(eng_layer_enter(a));
	eng_layer_leave(a);
	cr_assert(eng_cut_abandon(first));
	cr_expect_eq(eng_layer_newest(a), a);
	eng_cut_detach(a);
	cr_assert_eq(eng_cut_attach(second, a, b), 0, "the abandoned one is out of the way");
	cr_assert_eq(eng_cut_attach(third, b, c), 0);
	cr_assert(eng_cut_fire(third));
	cr_expect_eq(eng_layer_newest(a), a, "a fired cut above an unfired one");
	cr_assert(eng_cut_fire(second));
	cr_expect_eq(eng_layer_newest(a), c);
	cr_expect_eq(eng_layer_fired(a), second);
	cr_expect_null(eng_layer_fired(c));
	cr_expect_not(eng_layer_enter(a));
	cr_expect_eq(atomic_load(&a->inflight), 0u, "a look that moves on leaves no count");
	eng_layer_put(a);
	eng_layer_put(b);
	eng_layer_put(c);
	eng_cut_put(first);
	eng_cut_put(second);
	eng_cut_put(third);
}

static void *leave_later(void *arg)
{
	usleep(30000);
	eng_layer_leave(arg);
	return NULL;
}

/* CH-5, CU-14 */
Test(engine_cut, drain_waits_for_the_last_in_flight_or_its_deadline)
{
	struct eng_layer *a, *b;
	struct eng_cut *cut;
	pthread_t thread;

	cr_assert_eq(eng_io_posix_create(&machine), 0);
	a = bare_layer();
	b = bare_layer();
	cr_assert_eq(eng_cut_create(&cut), 0);
	cr_assert(eng_layer_enter(a));
	cr_assert_eq(eng_cut_attach(cut, a, b), 0);
	cr_assert(eng_cut_fire(cut));
	cr_expect_eq(eng_cut_drain(cut, a, eng_io_now_ns(machine) + 20 * MS), -ETIMEDOUT);
	cr_assert_eq(pthread_create(&thread, NULL, leave_later, a), 0);
	cr_expect_eq(eng_cut_drain(cut, a, eng_io_now_ns(machine) + 20 * SECOND), 0);
	pthread_join(thread, NULL);
	cr_expect_eq(eng_cut_drain(cut, a, 0), 0, "drained: no deadline matters");
	eng_layer_put(a);
	eng_layer_put(b);
	eng_cut_put(cut);
	eng_io_destroy(machine);
}

/* --- a store: what a write sees --- */

/* P1: what is issued after the swap is in no layer that the cut froze, on whatever queue. */
Test(engine_cut, nothing_issued_after_the_swap_is_in_the_snapshot)
{
	struct shot s;

	begin(2, 1 << 20);
	attach(0, 0);
	attach(1, 1);
	must(do_write(0, 1, 0, BLOCK) == 0 && do_write(1, 1, 0, BLOCK) == 0);
	shot_start(&s, "s", ENG_SNAPSHOT_CUT);
	while (atomic_load(&s.phase) < ENG_SNAPSHOT_CUT)
		usleep(1000); /* no queue is turned between the swap and the writes */
	must(do_write(0, 2, 0, BLOCK) == 0);
	must(do_write(1, 2, 0, BLOCK) == 0);
	shot_go(&s);
	must(shot_end(&s) == 0);
	for (unsigned i = 0; i < 2; i++) {
		cr_expect(holds(i, 2, 0, BLOCK));
		cr_expect(view_holds("s", i, 1, 0, BLOCK), "disk %u", i);
	}
	detach(0);
	detach(1);
	close_store();
	finish();
}

static uint64_t number_in(const char *snapshot_name, unsigned d)
{
	uint8_t *buf = aligned(512), want[512];
	struct eng_disk *view;
	uint64_t n = 0;
	char path[32];

	snprintf(path, sizeof(path), "c@%s/a/d%u", snapshot_name, d);
	must(eng_store_attach(store, queue[0], path, ENG_ATTACH_READ_ONLY, &err, &view) == 0);
	must(read_into(view, buf, 0, 512) == 0);
	for (fill(want, n, 0, 512); n < 1000000 && memcmp(buf, want, 512);)
		fill(want, ++n, 0, 512);
	must(eng_store_detach(view) == 0);
	free(buf);
	return n;
}

/* P1: write n + 1 goes to the other disk when write n was acknowledged; no snapshot has a gap. */
Test(engine_cut, no_write_is_in_a_snapshot_without_the_one_before)
{
	uint64_t n = 1;
	char name[8];

	begin(2, 1 << 20);
	attach(0, 0);
	attach(1, 1);
	for (unsigned i = 0; i < 8; i++) {
		struct shot s;

		snprintf(name, sizeof(name), "s%u", i);
		shot_start(&s, name, -1);
		for (; !atomic_load(&s.done); n++)
			must(do_write(n % 2, n, 0, 512) == 0);
		must(shot_end(&s) == 0);
	}
	for (unsigned i = 0; i < 8; i++) {
		uint64_t even, odd;

		snprintf(name, sizeof(name), "s%u", i);
		even = number_in(name, 0);
		odd = number_in(name, 1);
		cr_expect(even == odd + 1 || odd == even + 1 || (even == 0 && odd == 0),
			  "snapshot %u: write %lu on one disk, %lu on the other", i, even, odd);
	}
	detach(0);
	detach(1);
	close_store();
	finish();
}

/* T2, I19 */
Test(engine_cut, forwarded_write_is_counted_where_it_is_taken)
{
	struct ask *late;

	begin(1, 1 << 20);
	attach(0, 0);
	must(do_write(0, 1, 0, BLOCK) == 0);
	late = ask(1, 0, ENG_WRITE, 0, 2, 0,
		   BLOCK); /* on its way to queue 0, which is not turned */
	{
		struct shot s;

		shot_start(&s, "s", -1);
		for (unsigned i = 0; i < 10000 && !atomic_load(&s.done); i++)
			usleep(1000);
		must(shot_end(&s) == 0);
	}
	cr_expect_not(late->done);
	must(ask_end(late) == 0);
	cr_expect(holds(0, 2, 0, BLOCK));
	cr_expect(view_holds("s", 0, 1, 0, BLOCK), "a write of after the cut is in the snapshot");
	detach(0);
	close_store();
	finish();
}

/* An overlay as head of disk 0, so that cuts meet a map and a log. */
static void begin_on_overlay(void)
{
	begin(1, 1 << 20);
	attach(0, 0);
	must(do_write(0, 1, 0, 64 * 1024) == 0);
	must(snapshot("s0") == 0);
}

/* T3, RL-5 */
Test(engine_cut, write_that_waits_for_a_lock_keeps_its_layer)
{
	struct ask *first, *second, *third;
	struct shot s;
	int rule;

	begin_on_overlay();
	rule = hold_add((struct hold_rule){.kind = ENG_OP_WRITE, .path = ".vmo", .mine = true});
	first = ask_write(0, 2, 0, BLOCK);
	second = ask_write(0, 3, 0, BLOCK);
	turn_until(hold_held(rule) == 1);
	shot_start(&s, "s", -1);
	turn_until(atomic_load(&s.phase) >= ENG_SNAPSHOT_CUT);
	third = ask_write(0, 4, 0, BLOCK);
	turn_for(20 * MS);
	cr_expect(!first->done && !second->done && !third->done);
	cr_expect_not(atomic_load(&s.done), "the cut waits for what it froze");
	hold_release(rule);
	must(shot_end(&s) == 0);
	must(ask_end(first) == 0 && ask_end(second) == 0 && ask_end(third) == 0);
	cr_expect(view_holds("s", 0, 3, 0, BLOCK), "dequeued before the cut, granted after it");
	cr_expect(holds(0, 4, 0, BLOCK));
	detach(0);
	close_store();
	finish();
}

/* T3: the edge that a partial write reads first is read across the cut. */
Test(engine_cut, write_that_reads_its_edges_keeps_its_layer)
{
	struct ask *write;
	struct shot s;
	int rule;

	begin_on_overlay();
	rule = hold_add((struct hold_rule){.kind = ENG_OP_READ, .mine = true});
	write = ask_write(0, 2, 512, 512);
	turn_until(hold_held(rule) == 1);
	shot_start(&s, "s", -1);
	turn_until(atomic_load(&s.phase) >= ENG_SNAPSHOT_CUT);
	hold_release(rule);
	must(shot_end(&s) == 0 && ask_end(write) == 0);
	cr_expect(view_holds("s", 0, 2, 512, 512));
	cr_expect(view_holds("s", 0, 1, 0, 512) && view_holds("s", 0, 1, 1024, 3072));
	detach(0);
	close_store();
	finish();
}

/* T3, JN-6: a write in pieces is one write. */
Test(engine_cut, write_in_pieces_is_wholly_in_or_out)
{
	uint64_t len = 24 << 20;
	struct ask *write;
	struct shot s;
	int rule;

	begin(1, len);
	attach(0, 0);
	must(do_write(0, 1, 0, BLOCK) == 0);
	must(snapshot("s0") == 0);
	rule = hold_add((struct hold_rule){.kind = ENG_OP_WRITE, .path = ".vmo", .mine = true});
	write = ask_write(0, 2, 0, len);
	turn_until(hold_held(rule) >= 1);
	shot_start(&s, "s", -1);
	turn_until(atomic_load(&s.phase) >= ENG_SNAPSHOT_CUT);
	hold_release(rule);
	must(shot_end(&s) == 0 && ask_end(write) == 0);
	for (uint64_t at = 0; at < len; at += 1 << 20)
		cr_expect(view_holds("s", 0, 2, at, 1 << 20), "at %lu", at);
	detach(0);
	close_store();
	finish();
}

/* T4, RL-3, I11: the second one's read-modify-write sees the first. */
Test(engine_cut, sectors_of_one_absent_block_across_the_cut_both_stay)
{
	struct ask *before, *after;
	struct shot s;
	int rule;

	begin_on_overlay();
	rule = hold_add(
		(struct hold_rule){.kind = ENG_OP_WRITE, .path = ".vmo", .mine = true, .most = 1});
	before = ask_write(0, 2, 0, 512);
	turn_until(hold_held(rule) == 1);
	shot_start(&s, "s", -1);
	turn_until(atomic_load(&s.phase) >= ENG_SNAPSHOT_CUT);
	after = ask_write(0, 3, 512, 512);
	turn_for(20 * MS);
	cr_expect_not(after->done);
	hold_release(rule);
	must(shot_end(&s) == 0 && ask_end(before) == 0 && ask_end(after) == 0);
	cr_expect(holds(0, 2, 0, 512), "the sector of before the cut");
	cr_expect(holds(0, 3, 512, 512), "the sector of after the cut");
	cr_expect(holds(0, 1, 1024, 3072));
	cr_expect(view_holds("s", 0, 2, 0, 512));
	cr_expect(view_holds("s", 0, 1, 512, 3584));
	detach(0);
	close_store();
	finish();
}

/* T4, T5, I11: whole blocks lock, too; the late completion replaces nothing newer. */
Test(engine_cut, late_completion_in_the_frozen_layer_replaces_nothing_newer)
{
	struct ask *before, *after;
	struct shot s;
	int rule;

	begin_on_overlay();
	rule = hold_add(
		(struct hold_rule){.kind = ENG_OP_WRITE, .path = ".vmo", .mine = true, .most = 1});
	before = ask_write(0, 2, 0, BLOCK);
	turn_until(hold_held(rule) == 1);
	shot_start(&s, "s", -1);
	turn_until(atomic_load(&s.phase) >= ENG_SNAPSHOT_CUT);
	after = ask_write(0, 3, 0, BLOCK);
	turn_for(20 * MS);
	hold_release(rule);
	must(shot_end(&s) == 0 && ask_end(before) == 0 && ask_end(after) == 0);
	cr_expect(holds(0, 3, 0, BLOCK));
	cr_expect(view_holds("s", 0, 2, 0, BLOCK));
	detach(0);
	attach(0, 0);
	cr_expect(holds(0, 3, 0, BLOCK));
	detach(0);
	close_store();
	finish();
}

/* T4: writes of a raw head lock, too: base for the read-modify-write of after the cut. */
Test(engine_cut, write_in_flight_to_a_raw_head_is_seen_by_the_first_overlay)
{
	struct ask *before, *after;
	struct shot s;
	int rule;

	begin(1, 1 << 20);
	attach(0, 0);
	must(do_write(0, 1, 0, BLOCK) == 0);
	rule = hold_add((struct hold_rule){.kind = ENG_OP_WRITE, .path = ".raw", .mine = true});
	before = ask_write(0, 2, 0, 512);
	turn_until(hold_held(rule) == 1);
	shot_start(&s, "s", -1);
	turn_until(atomic_load(&s.phase) >= ENG_SNAPSHOT_CUT);
	after = ask_write(0, 3, 512, 512);
	turn_for(20 * MS);
	hold_release(rule);
	must(shot_end(&s) == 0 && ask_end(before) == 0 && ask_end(after) == 0);
	cr_expect(holds(0, 2, 0, 512));
	cr_expect(holds(0, 3, 512, 512));
	cr_expect(view_holds("s", 0, 1, 512, 512));
	detach(0);
	close_store();
	finish();
}

/* RL-1: from its first block to its last, partial ones too. */
Test(engine_cut, write_across_a_border_locks_both_blocks)
{
	struct ask *first, *second;
	int rule;

	begin_on_overlay();
	rule = hold_add((struct hold_rule){.kind = ENG_OP_WRITE, .path = ".vmo", .mine = true});
	first = ask_write(0, 2, BLOCK - 512, 1024);
	turn_until(hold_held(rule) >= 1);
	second = ask_write(0, 3, BLOCK + 512, 512);
	turn_for(10 * MS);
	hold_release(rule);
	must(ask_end(first) == 0 && ask_end(second) == 0);
	cr_expect(holds(0, 2, BLOCK - 512, 1024));
	cr_expect(holds(0, 3, BLOCK + 512, 512));
	cr_expect(holds(0, 1, BLOCK + 1024, 3072));
	detach(0);
	close_store();
	finish();
}

/* I4, I6, CU-21 */
Test(engine_cut, cancelled_cut_leaves_no_trace)
{
	struct eng_layer *head;
	struct cat_snapshot row;
	struct shot s;

	begin_on_overlay();
	must(do_write(0, 1, 0, BLOCK) == 0);
	head = disk[0]->head;
	must(shot_check("c", "s", SECOND, &s) == 0);
	cr_expect(eng_snapshot_cancel(s.snap));
	shot_launch(&s);
	cr_expect_eq(shot_end(&s), -ECANCELED);
	cr_expect_null(atomic_load(&head->succ));
	cr_expect_eq(eng_catalog_get_snapshot(store->catalog, "c", "s", &row), -ENOENT);
	must(do_write(0, 2, 0, BLOCK) == 0);
	cr_expect_eq(disk[0]->head, head);
	must(snapshot("s") == 0);
	cr_expect(view_holds("s", 0, 2, 0, BLOCK));
	detach(0);
	close_store();
	finish();
}
