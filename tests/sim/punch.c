/* SPDX-License-Identifier: MIT */
/*
 * punch.c - holes in sealed overlays (PU-1 to PU-8), one by one: a look is the test's to begin, as of a
 * disk in use, so that no fold is due and every step of a punch is between two lines of it.
 */
#include "engine/fold/fold_impl.h"
#include "engine/fold/punch.h"
#include "engine/snapshot/revert.h"
#include "engine/store/garbage.h"
#include "engine/transfer/verify.h"
#include "tests/unit/engine_store.h"

#define SIZE    (8u << 20)
#define BLOCKS  (SIZE / BLOCK)
#define RUN     (16u << 10) /* the shortest that is punched; sixteen of them are worth it */
#define FIRST   300u        /* what the upper layer masks of the lower one */
#define MASKED  200u
#define SETTLED 1u /* syncs of the header that is there, before a list is written */

#include "tests/sim/one_disk.h"

/* --- a look, on a thread of its own, as a disk's worker has to turn for it --- */

struct look {
	pthread_t thread;
	bool patient;
	_Atomic bool done;
	int result;
	struct fmt_error why;
};

static void *look_main(void *arg)
{
	struct look *l = arg;
	struct cat_disk row;
	bool later;

	l->result = eng_catalog_get_disk(store->catalog, "a", "d0", &row);
	if (l->result == 0)
		l->result = eng_fold_disk(&folder, &row.id, l->patient, &l->why, &later);
	atomic_store(&l->done, true);
	return NULL;
}

static void look_start(struct look *l, bool patient)
{
	turn_until(swapped() && all_sealed());
	memset(l, 0, sizeof(*l));
	l->patient = patient;
	must(pthread_create(&l->thread, NULL, look_main, l) == 0);
}

static int look_end(struct look *l)
{
	turn_until(atomic_load(&l->done));
	pthread_join(l->thread, NULL);
	turn_until(swapped());
	return l->result;
}

static int look(bool patient)
{
	struct look l;

	look_start(&l, patient);
	return look_end(&l);
}

/* --- the scene: s0 | lower | s2 on the upper one | head --- */

/* The row of a layer of the disk, by its place. */
static struct cat_layer layer_at(size_t i)
{
	struct cat_layer *rows, row;

	must(list_layers(&rows) > i);
	row = rows[i];
	free(rows);
	return row;
}

static uint64_t bytes_at(size_t i)
{
	struct cat_layer row = layer_at(i);

	return eng_store_layer_bytes(store, &row);
}

static uint64_t gone_at(size_t i)
{
	struct cat_layer row = layer_at(i);
	struct eng_layer *layer;
	uint64_t slots;

	must(eng_store_open_layer(store, &row, false, &err, &layer) == 0);
	slots = layer->gone ? layer->gone->slots : 0;
	eng_layer_put(layer);
	return slots;
}

/* Up to where only the deletion of s1 is missing. */
static void make_layers(void)
{
	put(0, 40);
	take("s0", held[0]);
	put(0, BLOCKS);
	put_zeros(20, 10); /* their slots are no block's any more */
	take("s1", held[1]);
	put(FIRST, MASKED - 50);
	put_zeros(FIRST + MASKED - 50, 50);
	for (uint32_t i = 0; i < 20; i++) { /* too short, each of them */
		put(600 + 8 * i, 3);
		put(1000 + 2 * i, 1);
	}
	take("s2", held[2]);
	put(5, 1);
	must(do_flush(0) == 0);
}

static void begin_one(void)
{
	begin(1, SIZE);
	attach(0, 0);
	start();
	atomic_store(&folder.punch_run, RUN);
}

static void expect_all(const char *when)
{
	expect_holds(disk[0], now, when);
	expect_view("s0", held[0], when);
	expect_view("s2", held[2], when);
}

/* Folded, once more, and gone. */
static void fold_and_end(const char *when)
{
	cr_expect_eq(look(false), 1, "%s", when);
	cr_expect_eq(layers(), 3, "%s", when);
	expect_all(when);
	drop("s0");
	drop("s2");
	while (look(false) > 0)
		;
	expect_holds(disk[0], now, when);
	detach(0);
	close_store();
	expect_sound(when);
	finish();
	stop();
}

/* PU-1, PU-4, PU-7: runs that are long enough come back, no other slot does, and nobody sees it */
Test(sim_punch, masked_runs_are_given_back)
{
	uint64_t before, there;

	begin_one();
	make_layers();
	drop("s1");
	turn_until(all_sealed());
	before = bytes_at(1);
	cr_assert_eq(look(true), 1);
	there = bytes_at(1);
	cr_expect_eq(gone_at(1), MASKED);
	cr_expect_geq(before - there, MASKED * BLOCK - 2 * 4096, "%lu, %lu", before, there);
	cr_expect_leq(before - there, MASKED * BLOCK);
	cr_expect_eq(folder.stats.punches, 1u);
	cr_expect_eq(folder.stats.punched, MASKED * BLOCK);
	cr_expect_eq(layers(), 4);
	expect_all("punched");
	cr_expect_eq(look(true), 0, "again");
	cr_expect_eq(folder.stats.punches, 1u);
	detach(0);
	close_store();
	expect_sound("punched");
	open_store();
	folder.store = store;
	memset(folder.seen, 0, sizeof(folder.seen));
	attach(0, 0);
	expect_all("opened again");
	cr_expect_eq(look(true), 0, "opened again");
	fold_and_end("folded");
}

/* PU-4: a second list takes the place of the first, and has all of it */
Test(sim_punch, a_list_only_grows)
{
	begin_one();
	make_layers();
	drop("s1");
	cr_assert_eq(look(true), 1);
	put(700, 100);
	take("s3", NULL);
	put(0, 1);
	drop("s2");
	memcpy(held[2], held[0], sizeof(now)); /* s2 is another one from here on */
	cr_assert_eq(look(true), 1, "the two small ones are folded, or punched");
	while (look(true) > 0)
		;
	cr_expect_eq(gone_at(1), MASKED + 100);
	expect_holds(disk[0], now, "twice");
	detach(0);
	close_store();
	expect_sound("twice");
	open_store();
	folder.store = store;
	attach(0, 0);
	expect_holds(disk[0], now, "opened again");
	drop("s0");
	drop("s3");
	while (look(false) > 0)
		;
	cr_expect_eq(layers(), 2);
	expect_holds(disk[0], now, "folded");
	detach(0);
	close_store();
	expect_sound("at the end");
	finish();
	stop();
}

/* PU-6: whoever comes to what is gone gets an error, and never zeros */
Test(sim_punch, what_is_gone_cannot_be_read)
{
	uint8_t *buf = aligned(MASKED * BLOCK);
	struct eng_disk *view;
	struct cat_layer row;

	begin_one();
	make_layers();
	drop("s1");
	cr_assert_eq(look(true), 1);
	row = layer_at(1);
	must(eng_store_attach_layer(store, queue[1], &row.disk, &row.id, &err, &view) == 0);
	cr_expect_eq(read_into(view, buf, FIRST * BLOCK, BLOCK), -EUCLEAN);
	cr_expect_eq(read_into(view, buf, (FIRST + MASKED - 1) * BLOCK, 512), -EUCLEAN);
	cr_expect_eq(read_into(view, buf, (FIRST - 1) * BLOCK, 3 * BLOCK), -EUCLEAN);
	cr_expect(disk_holds(view, held[1][0], (FIRST - 1) * BLOCK, BLOCK));
	cr_expect(disk_holds(view, held[1][0], (FIRST + MASKED) * BLOCK, BLOCK));
	must(eng_store_detach(view) == 0);
	free(buf);
	fold_and_end("folded");
}

/* PU-6: a fold that would need what is gone is refused, and so is one without the layer on top */
Test(sim_punch, no_fold_ends_below_a_mask)
{
	struct fmt_error why = {""};
	struct eng_fold_build b = {0};
	struct eng_layer *in[2], *result;
	struct cat_layer row;
	struct eng_layer_spec spec;
	char path[256];

	begin_one();
	make_layers();
	drop("s1");
	cr_assert_eq(look(true), 1);
	row = layer_at(1);
	must(eng_store_open_layer(store, &row, false, &err, &in[0]) == 0);
	snprintf(path, sizeof(path), "%s/other.vmo", root);
	spec = (struct eng_layer_spec){.path = path,
				       .disk = row.disk,
				       .parent = in[0]->hdr.parent_id,
				       .generation = 1,
				       .size = SIZE,
				       .block_bits = 12};
	eng_store_new_id(store, &spec.layer);
	b = (struct eng_fold_build){.io = io, .inputs = in, .count = 1, .spec = spec};
	b.boundary.replaced_count = 1;
	b.boundary.replaced[0].id = row.id;
	cr_expect_eq(eng_fold_build(&b, &why, &result), -EUCLEAN);
	cr_expect_not_null(strstr(why.text, "block 300"), "%s", why.text);
	eng_layer_put(in[0]);
	fold_and_end("folded");
}

/* PU-6: three layers of which the two lower ones would be joined, were nothing gone of the second */
Test(sim_punch, a_fold_takes_the_mask_along)
{
	begin_one();
	put(0, 40);
	take("s0", held[0]);
	put(0, 192);
	take("a", NULL);
	put(256, 256);
	take("b", NULL);
	put(400, 100); /* masks what is worth a punch of b's layer, and is larger than the two */
	put(512, 1536);
	take("s2", held[2]);
	put(5, 1);
	drop("b");
	cr_assert_eq(look(true), 1);
	cr_expect_eq(folder.stats.punches, 1u);
	cr_expect_eq(gone_at(2), 100);
	cr_expect_eq(layers(), 5);
	drop("a");
	cr_assert_eq(look(true), 1);
	cr_expect_eq(folder.stats.folds, 1u);
	cr_expect_eq(layers(), 3, "%zu", layers());
	expect_all("joined");
	drop("s0");
	drop("s2");
	while (look(false) > 0)
		;
	expect_holds(disk[0], now, "folded");
	detach(0);
	close_store();
	expect_sound("at the end");
	finish();
	stop();
}

/* DL-5, FO-5, PU-5: a reader of what was deleted stands on the lower layer */
Test(sim_punch, readers_are_waited_for)
{
	struct eng_disk *view;

	begin_one();
	make_layers();
	must(eng_store_attach(store, queue[1], "c@s1/a/d0", ENG_ATTACH_READ_ONLY, &err, &view) ==
	     0);
	drop("s1");
	cr_expect_eq(look(true), 0);
	cr_expect_eq(folder.stats.punches, 0u);
	expect_holds(view, held[1], "the view");
	must(eng_store_detach(view) == 0);
	cr_expect_eq(look(true), 1);
	cr_expect_eq(folder.stats.punches, 1u);
	expect_all("punched");
	fold_and_end("folded");
}

/* PU-1, T25: neither what a snapshot holds, nor the topmost, nor what two stand on */
Test(sim_punch, nothing_is_taken_from_a_snapshot)
{
	begin_one();
	make_layers();
	cr_expect_eq(look(true), 0);
	cr_expect_eq(folder.stats.punches, 0u);
	expect_view("s1", held[1], "there");
	must(do_write(0, ++writes, FIRST * BLOCK, MASKED * BLOCK) == 0);
	for (uint32_t i = 0; i < MASKED; i++)
		now[FIRST + i] = writes;
	drop("s2"); /* its layer is masked by the head alone, which may lose it */
	cr_expect_eq(look(true), 0);
	cr_expect_eq(folder.stats.punches, 0u);
	expect_view("s1", held[1], "there");
	expect_holds(disk[0], now, "there");
	detach(0);
	close_store();
	expect_sound("at the end");
	finish();
	stop();
}

/* T26, PU-5: a read that looked before the mask was there ends before the hole is made */
Test(sim_punch, a_read_that_began_before_is_waited_for)
{
	struct look l;
	struct ask *reading;
	uint8_t want[BLOCK];
	int rule;

	begin_one();
	put(0, 40);
	take("s0", held[0]);
	put(0, BLOCKS);
	take("s1", held[1]);
	turn_until(all_sealed());
	rule = hold_add((struct hold_rule){.kind = ENG_OP_READ, .path = ".vmo", .mine = true});
	reading = ask(0, 0, ENG_READ, 0, 0, FIRST * BLOCK, BLOCK);
	turn_until(hold_held(rule) == 1);
	put(FIRST, MASKED);
	take("s2", held[2]);
	put(5, 1);
	drop("s1");
	look_start(&l, true);
	turn_for(100 * MS);
	cr_expect_not(atomic_load(&l.done));
	cr_expect_eq(folder.stats.punches, 0u);
	hold_release(rule);
	turn_until(reading->done);
	fill(want, held[1][FIRST], FIRST * BLOCK, BLOCK);
	cr_expect_eq(reading->result, 0, "%s", strerror(-reading->result));
	cr_expect(memcmp(reading->buf, want, BLOCK) == 0, "what it looked at");
	ask_end(reading);
	cr_expect_eq(look_end(&l), 1);
	cr_expect_eq(folder.stats.punches, 1u);
	expect_all("punched");
	fold_and_end("folded");
}

/* --- errors --- */

/* PU-4: whatever fails, everything is there, and another look goes on */
Test(sim_punch, an_error_anywhere_loses_nothing, .timeout = 120)
{
	static const uint32_t ops[] = {
		ENG_FAULT_OPEN, ENG_FAULT_PREAD, ENG_FAULT_PWRITE,   ENG_FAULT_FDATASYNC,
		ENG_FAULT_STAT, ENG_FAULT_PUNCH, ENG_FAULT_TRUNCATE, ENG_FAULT_NEXT_DATA,
	};
	unsigned struck = 0, tried = 0;

	for (size_t op = 0; op < sizeof(ops) / sizeof(*ops); op++) {
		for (uint64_t skip = 0, more = 1; more; skip++, tried++) {
			struct eng_fault_rule rule = {
				.ops = ops[op],
				.path = ".vmo",
				.skip = skip,
				.error = skip % 2 ? -EIO : -ENOSPC,
			};
			char when[64];
			int number;

			snprintf(when, sizeof(when), "operation %#x, number %lu", ops[op], skip);
			begin_one();
			make_layers();
			drop("s1");
			turn_until(all_sealed());
			number = eng_fault_add(fault, &rule);
			must(number >= 0);
			look(true);
			more = eng_fault_struck(fault, number);
			struck += more != 0;
			eng_fault_clear(fault);
			detach(0);
			close_store();
			expect_sound(when);
			open_store();
			folder.store = store;
			memset(folder.seen, 0, sizeof(folder.seen));
			attach(0, 0);
			expect_all(when);
			cr_expect_geq(look(true), 0, "%s", when);
			cr_expect_eq(gone_at(1), MASKED, "%s", when);
			if (tried % 4 == 0) {
				fold_and_end(when);
				continue;
			}
			expect_all(when);
			detach(0);
			close_store();
			finish();
			stop();
		}
	}
	fprintf(stderr, "punch: %u of %u tries with an error\n", struck, tried);
	cr_expect_gt(struck, 12u);
}

/* GO-1, GO-2: a list that is not what was written is refused with its layer, and nothing is guessed */
Test(sim_punch, a_damaged_list_is_refused)
{
	struct cat_layer row;
	struct eng_layer *layer;
	uint64_t offset;
	uint8_t was, now_is;
	char path[300];
	int fd;

	begin_one();
	make_layers();
	drop("s1");
	cr_assert_eq(look(true), 1);
	row = layer_at(1);
	must(eng_store_open_layer(store, &row, false, &err, &layer) == 0);
	offset = layer->hdr.gone_offset;
	snprintf(path, sizeof(path), "%s", layer->path);
	eng_layer_put(layer);
	detach(0);
	fd = open(path, O_RDWR);
	must(fd >= 0);
	for (unsigned at = 0; at < 40; at += 3) {
		must(pread(fd, &was, 1, (off_t)offset + at) == 1);
		now_is = was ^ 0x10;
		must(pwrite(fd, &now_is, 1, (off_t)offset + at) == 1);
		cr_expect_eq(eng_store_open_layer(store, &row, false, &err, &layer), -EBADMSG,
			     "byte %u", at);
		must(pwrite(fd, &was, 1, (off_t)offset + at) == 1);
	}
	must(ftruncate(fd, (off_t)offset + 100) == 0);
	cr_expect_eq(eng_store_open_layer(store, &row, false, &err, &layer), -EUCLEAN);
	close(fd);
	close_store();
	finish();
	stop();
}

/* --- the second opinion --- */

static char found[8][8]; /* rules of what is corrupt */
static unsigned nfound;

static void note_rule(void *arg, const struct fsck_finding *f)
{
	(void)arg;
	if (f->severity == FSCK_CORRUPT && nfound < 8)
		snprintf(found[nfound++], sizeof(found[0]), "%s", f->rule);
}

static bool has_found(const char *rule)
{
	for (unsigned i = 0; i < nfound; i++)
		if (!strcmp(found[i], rule))
			return true;
	return false;
}

static void edit_unbound(struct fmt_header *hdr, void *arg)
{
	(void)arg;
	memset(&hdr->snapshot_id, 0, sizeof(hdr->snapshot_id));
	hdr->snapshot_members = 0;
	hdr->snapshot_index = 0;
}

/* Of a snapshot that is there: so that a list can be written at all. */
static void lose_boundary(size_t at)
{
	struct cat_layer row = layer_at(at);
	struct eng_layer *layer;

	must(eng_store_open_layer(store, &row, true, &err, &layer) == 0);
	must(eng_layer_update(layer, edit_unbound, NULL, &err) == 0);
	eng_layer_put(layer);
}

static void write_list(size_t at, const struct fmt_gone *runs, uint32_t n)
{
	struct cat_layer row = layer_at(at);
	struct eng_gone_place place;
	struct eng_layer *layer;

	must(eng_store_open_layer(store, &row, true, &err, &layer) == 0);
	must(eng_gone_write(layer, runs, n, &err, &place) == 0);
	must(eng_gone_name(layer, &place, &err) == 0);
	eng_layer_put(layer);
}

/* PU-2, GO-3: the checker misses what no layer holds, and what is no block's */
Test(sim_punch, the_checker_knows_what_may_be_gone)
{
	static const struct {
		const char *what, *rule;
		struct fmt_gone runs[2];
		uint32_t count;
	} lists[] = {
		{"what is masked", NULL, {{FIRST, MASKED}}, 1},
		{"one block more", "PU-2", {{FIRST, MASKED}, {FIRST + MASKED + 1, 1}}, 2},
		{"no block's", "GO-3", {{22, 3}}, 1},
		{"of a snapshot", "PU-2", {{FIRST, MASKED}}, 1},
	};

	for (size_t i = 0; i < sizeof(lists) / sizeof(*lists); i++) {
		struct fsck_summary sum = {0};

		begin_one();
		make_layers();
		turn_until(all_sealed());
		if (i < 3)
			drop("s1");
		else
			lose_boundary(1);
		write_list(1, lists[i].runs, lists[i].count);
		detach(0);
		close_store();
		nfound = 0;
		must(fsck_run(machine, dir, note_rule, NULL, &err, &sum) == 0);
		/* The last one's boundary is not the snapshot's, either. */
		cr_expect(lists[i].rule ? has_found(lists[i].rule) && (nfound == 1 || i == 3)
					: nfound == 0,
			  "%s: %u findings, %s", lists[i].what, nfound, found[0]);
		finish();
		stop();
	}
}

static void remove_ends(void)
{
	struct eng_garbage gone = {0};
	struct cat_disk d;

	must(eng_catalog_get_disk(store->catalog, "a", "d0", &d) == 0);
	must(eng_refpoint_leave_ends(store, &d.id, &err) == 0);
	must(eng_catalog_begin(store->catalog) == 0);
	must(eng_garbage_rows(store, &d.id, &gone) == 0);
	must(eng_catalog_commit(store->catalog, &err) == 0);
	eng_garbage_files(store, &gone);
	eng_garbage_fini(&gone);
}

/* PU-2, RP-13: the mask goes first where nobody but a reference point needs the end of a branch. */
Test(sim_punch, an_end_that_only_a_point_refers_to_is_sound)
{
	struct eng_revert how = {.collection = "c", .name = "s0"};
	struct eng_revert_result done = {0};
	struct fsck_summary sum = {0};
	struct cat_layer upper;

	begin_one();
	make_layers();
	drop("s1");
	turn_until(all_sealed());
	cr_assert_eq(look(true), 1);
	detach(0);
	upper = layer_at(2);
	put_point(&upper.id);
	must(eng_store_revert(store, &how, &err, &done) == 0);
	free(done.untouched);
	drop("s2");
	remove_ends();
	cr_expect_eq(layers(), 3, "the mask has gone");
	cr_expect_eq(gone_at(1), MASKED);
	close_store();
	nfound = 0;
	must(fsck_run(machine, dir, note_rule, NULL, &err, &sum) == 0);
	cr_expect_eq(nfound, 0, "%s", found[0]);
	open_store();
	remove_ends();
	cr_expect_eq(layers(), 2);
	close_store();
	finish();
	stop();
}

/* --- the death of the host --- */

static void expect_survived(const char *when)
{
	attach(0, 0);
	expect_all(when);
	folder.store = store;
	memset(folder.seen, 0, sizeof(folder.seen));
	atomic_store(&folder.punch_run, RUN);
	cr_expect_geq(look(true), 0, "%s", when);
	cr_expect_geq(gone_at(1), MASKED, "%s", when);
	expect_all(when);
	while (look(false) > 0)
		;
	cr_expect_eq(layers(), 3, "%s", when);
	expect_all(when);
	detach(0);
}

static void try_crash(struct eng_record *rec, uint64_t index, uint64_t chance)
{
	char store_dir[192], tree[160], when[96];
	struct fsck_summary sum = {0};
	struct eng_io *plain;

	snprintf(tree, sizeof(tree), "%s/unopened", root);
	must(eng_record_crash(rec, index, chance, tree) == 0);
	must(eng_io_posix_create(&plain) == 0);
	snprintf(when, sizeof(when), "power lost at event %lu, seed %lu", index, chance);
	must(fsck_run(plain, tree, note_finding, when, &err, &sum) == 0);
	eng_io_destroy(plain);
	must(eng_record_remove_tree(tree) == 0);
	enter_power_loss(rec, index, chance, store_dir);
	expect_survived(when);
	leave_power_loss(store_dir);
}

enum course {
	ONCE,
	AGAIN,   /* the first look's header is not synced, and found by the second one */
	GROWING, /* that happens between a shorter list and a longer one */
};

static void punch_from(uint64_t bytes)
{
	atomic_store(&folder.punch_run, bytes);
	memset(folder.seen, 0, sizeof(folder.seen));
}

/* The header is written, so that the next look reads it, but the sync after @syncs others fails. */
static void look_without_a_sync(uint64_t syncs, uint64_t gone)
{
	struct eng_fault_rule fails = {.ops = ENG_FAULT_FDATASYNC,
				       .path = ".vmo",
				       .skip = syncs,
				       .error = -EIO};
	int number = eng_fault_add(fault, &fails);

	cr_assert_eq(look(true), -EIO);
	must(eng_fault_struck(fault, number) == 1);
	eng_fault_clear(fault);
	cr_assert_eq(gone_at(1), gone, "the header is not there to be read");
}

static struct eng_record *recorder;
static uint64_t hot; /* the event at which the last list is written, and not synced */

static void note_hot(void *arg)
{
	(void)arg;
	hot = eng_record_index(recorder);
}

static void run_course(enum course course)
{
	struct eng_fault_rule syncs = {
		.ops = ENG_FAULT_FDATASYNC,
		.path = ".vmo",
		.skip = SETTLED,
		.strike = note_hot,
	};

	if (course == AGAIN)
		look_without_a_sync(SETTLED + 1, MASKED);
	if (course == GROWING) {
		punch_from(12 * BLOCK);
		cr_assert_eq(look(true), 1);
		cr_assert_eq(gone_at(1), MASKED);
		punch_from(3 * BLOCK);
		look_without_a_sync(SETTLED + 1, MASKED + 60);
		punch_from(BLOCK);
	}
	must(eng_fault_add(fault, &syncs) >= 0);
	cr_assert_eq(look(true), 1);
	eng_fault_clear(fault);
	cr_assert_eq(gone_at(1), course == GROWING ? MASKED + 80 : MASKED);
}

/* Every event of a punch, from the deletion on. */
static void try_power_losses(enum course course, double seconds)
{
	struct eng_fault *own_fault;
	struct eng_io *own_machine;
	struct eng_record *rec;
	uint64_t first, last, end, tried = 0;

	begin_one();
	make_layers();
	detach(0);
	close_store();
	eng_fault_destroy(fault);
	must(eng_record_create(machine, dir, &rec) == 0);
	use_io(eng_record_io(rec));
	open_store();
	folder.store = store;
	attach(0, 0);
	drop("s1");
	turn_until(all_sealed());
	first = eng_record_index(rec);
	recorder = rec;
	run_course(course);
	detach(0);
	close_store();
	last = eng_record_index(rec);
	own_fault = fault;
	own_machine = machine;
	end = eng_io_now_ns(machine) + (uint64_t)(seconds * (double)SECOND);
	for (; tried < 4 || eng_io_now_ns(own_machine) < end; tried++) {
		uint64_t at = first + tried * 0x9e3779b97f4a7c15ull % (last - first + 1);

		try_crash(rec, tried == 0 ? last : tried % 2 ? hot : at, tried * 7919 + 1);
	}
	fprintf(stderr, "punch: %lu events, %lu tries\n", last - first, tried);
	machine = own_machine;
	fault = own_fault;
	eng_fault_destroy(fault);
	eng_record_destroy(rec);
	fault = NULL;
	eng_io_destroy(machine);
	must(eng_record_remove_tree(root) == 0);
	stop();
}

/* T26, P4, P6 */
Test(sim_punch, power_may_fail_at_any_event, .timeout = 1200)
{
	const char *given = getenv("VMIMG_TEST_SECONDS");
	double seconds = given ? strtod(given, NULL) : 12;

	try_power_losses(ONCE, seconds * 0.3);
	try_power_losses(AGAIN, seconds * 0.3);
	try_power_losses(GROWING, seconds * 0.3);
}
