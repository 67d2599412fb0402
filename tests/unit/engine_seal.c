/* SPDX-License-Identifier: MIT */
/*
 * engine_seal.c - sealing a real overlay and comparing what its index and checksums say with what was
 * written: order of durability, every way to be stopped, what may not be sealed.
 */
#include <criterion/criterion.h>

#include <errno.h>
#include <sys/stat.h>

#include "tests/unit/engine_overlay.h"

TestSuite(engine_seal, .init = start, .fini = finish, .timeout = 120);

static int replay_run(void *arg, const struct fmt_run *run)
{
	int64_t *got = arg;

	for (uint32_t i = 0; i < run->count; i++)
		got[run->block + i] = run->kind == FMT_RUN_ZERO ? ZEROS : (int64_t)run->slot + i;
	return 0;
}

/* Opened anew, the layer is not sealed and its log and data say what the model says. */
static void compare_unsealed(void)
{
	int64_t *got = malloc(blocks * sizeof(*got));
	size_t bs = (size_t)1 << layer->block_bits;
	uint64_t *want = malloc(bs), *data = malloc(bs);
	struct fmt_error err = {{0}};

	reopen();
	cr_assert_not(atomic_load(&layer->sealed));
	for (uint64_t b = 0; b < blocks; b++)
		got[b] = NOTHING;
	cr_assert_eq(eng_log_replay(layer, replay_run, got, &err), 0, "%s", err.text);
	cr_assert_eq(memcmp(got, model, blocks * sizeof(*got)), 0);
	for (uint64_t b = 0; b < blocks; b++) {
		if (model[b] < 0)
			continue;
		fill((uint32_t)model[b], want);
		cr_assert_eq(eng_io_pread(io, layer->file, data, bs,
					  eng_layer_slot_offset(layer, (uint32_t)model[b])),
			     (ssize_t)bs);
		cr_assert_eq(memcmp(data, want, bs), 0, "data of block %lu", b);
	}
	free(got);
	free(want);
	free(data);
}

/* --- what the index holds --- */

Test(engine_seal, every_block_of_the_log_is_found_and_none_is_invented)
{
	make_small_layer();
	seal();
	cr_expect_gt(compare(), 50);
	reopen();
	cr_expect(atomic_load(&layer->sealed), "also after a new open");
	compare();
}

/* RU-3, IX-5 */
Test(engine_seal, the_later_record_wins)
{
	srand(11);
	for (int round = 0; round < 6; round++) {
		make_layer((struct shape){.block_bits = 12, .slots = 8000, .blocks = 600});
		give_segment(1 << 20);
		for (int i = 0; i < 400; i++) {
			uint64_t block = (uint64_t)rand() % blocks;
			uint32_t count = 1 + (uint32_t)rand() % 30;

			if (count > blocks - block)
				count = (uint32_t)(blocks - block);
			if (rand() % 3)
				put_data(block, count);
			else
				put_zeros(block, count);
			if (rand() % 20 == 0)
				record();
		}
		freeze();
		seal();
		compare();
		eng_layer_put(layer);
		layer = NULL;
		unlink(path);
	}
}

Test(engine_seal, a_long_run_under_many_short_ones_shows_between_them)
{
	make_layer((struct shape){.block_bits = 12, .slots = 300, .blocks = 1000});
	put_data(100, 100);
	record();
	for (uint64_t b = 105; b < 195; b += 10)
		put_data(b, 2);
	put_zeros(150, 3);
	freeze();
	seal();
	/* Nine short runs, and the zeros, each with some of the long one before and after. */
	cr_expect_eq(compare(), 21);
}

Test(engine_seal, neighbours_become_one_run)
{
	make_layer((struct shape){.block_bits = 12, .slots = 300, .blocks = 1000});
	give_segment(128 << 10);
	for (uint64_t b = 0; b < 64; b++) {
		put_data(500 + b, 1);
		record();
		put_zeros(100 + b, 1);
		record();
	}
	for (uint64_t b = 64; b-- > 0;) /* block order and slot order differ: cannot be joined */
		put_data(700 + b, 1);
	freeze();
	seal();
	cr_expect_eq(compare(), 2 + 64);
}

Test(engine_seal, zeros_alone_need_no_slots)
{
	make_layer((struct shape){.block_bits = 12, .slots = 10, .blocks = 100000});
	put_zeros(0, 50000);
	put_zeros(60000, 40000);
	freeze();
	seal();
	cr_expect_eq(compare(), 2);
	cr_expect_eq(layer->hdr.slots, 0);
	cr_expect_eq(layer->hdr.index_offset, FMT_DATA_OFFSET);
}

Test(engine_seal, an_untouched_layer_is_sealed_too)
{
	make_layer((struct shape){.block_bits = 12, .slots = 10, .blocks = 100});
	freeze();
	seal();
	cr_expect_eq(compare(), 0);
}

/* IX-2: 200,000 runs, three levels; the log lies in a segment among the slots. */
Test(engine_seal, a_large_index_has_levels)
{
	make_layer((struct shape){.block_bits = 12, .slots = 4000, .blocks = 1000000});
	give_segment(4 << 20);
	for (uint64_t i = 0; i < 200000; i++) {
		uint64_t block = i * 7919 % 333333 * 3;

		if (i % 100)
			put_zeros(block, 1);
		else
			put_data(block, 1);
	}
	freeze();
	seal();
	cr_expect_eq(compare(), 200000);
}

/* CS-2, in blocks of every size, by direct I/O where there is any. */
Test(engine_seal, every_block_size_is_sealed)
{
	for (uint32_t bits = FMT_BLOCK_BITS_MIN; bits <= FMT_BLOCK_BITS_MAX; bits++) {
		make_layer((struct shape){
			.block_bits = bits, .slots = 100, .blocks = 300, .direct = true});
		for (uint64_t i = 0; i < 40; i++)
			put_data(299 - i * 7, 1 + i % 2 * (i > 0));
		freeze();
		seal();
		compare();
		eng_layer_put(layer);
		layer = NULL;
		unlink(path);
	}
}

/* --- a machine that notes or refuses what the seal asks for --- */

enum { WRITE, SYNC, CUT, ALLOCATE };

struct event {
	int what;
	uint64_t offset, len;
};

static const struct eng_io_ops *real;
static struct eng_io_ops odd;
static struct event events[1000];
static unsigned event_count;
static int refuse_what = -1, refuse_error;
static uint64_t clock_ns, slept_ns;

static int note(int what, uint64_t offset, uint64_t len)
{
	cr_assert_lt(event_count, 1000);
	events[event_count++] = (struct event){what, offset, len};
	return what == refuse_what ? refuse_error : 0;
}

static int odd_pwrite(struct eng_io *self, struct eng_file *file, const void *buf, size_t len,
		      uint64_t offset)
{
	int r = note(WRITE, offset, len);

	return r < 0 ? r : real->pwrite(self, file, buf, len, offset);
}

static int odd_fdatasync(struct eng_io *self, struct eng_file *file)
{
	int r = note(SYNC, 0, 0);

	return r < 0 ? r : real->fdatasync(self, file);
}

static int odd_truncate(struct eng_io *self, struct eng_file *file, uint64_t size)
{
	int r = note(CUT, size, 0);

	return r < 0 ? r : real->truncate(self, file, size);
}

static int odd_allocate(struct eng_io *self, struct eng_file *file, uint64_t offset, uint64_t len)
{
	int r = note(ALLOCATE, offset, len);

	return r < 0 ? r : real->allocate(self, file, offset, len);
}

static uint64_t odd_now_ns(struct eng_io *self)
{
	(void)self;
	return clock_ns;
}

static void odd_sleep_ns(struct eng_io *self, uint64_t ns)
{
	(void)self;
	clock_ns += ns;
	slept_ns += ns;
}

static void go_odd(void)
{
	real = io->ops;
	odd = *real;
	odd.pwrite = odd_pwrite;
	odd.fdatasync = odd_fdatasync;
	odd.truncate = odd_truncate;
	odd.allocate = odd_allocate;
	odd.now_ns = odd_now_ns;
	odd.sleep_ns = odd_sleep_ns;
	io->ops = &odd;
}

/* --- order and place --- */

/* SL-1: pages, sync, header, sync, and only then the space goes. Nothing in use is written to. */
Test(engine_seal, pages_are_durable_before_the_header_and_the_cut_comes_last)
{
	unsigned i = 0;
	uint64_t at;

	make_small_layer();
	go_odd();
	seal();
	at = layer->hdr.index_offset;
	cr_assert_geq(at, eng_layer_slot_offset(layer, layer->next_slot));
	cr_expect_eq(events[i].what, ALLOCATE);
	cr_expect_eq(events[i++].offset, at);
	for (; events[i].what == WRITE; i++) {
		cr_assert_eq(events[i].offset, at, "one page after the other");
		at += events[i].len;
	}
	cr_expect_eq(at, layer->hdr.csum_offset + fmt_csum_pages(layer->hdr.slots) * FMT_PAGE);
	cr_expect_eq(events[i++].what, SYNC);
	cr_expect_eq(events[i].what, WRITE);
	cr_expect_lt(events[i].offset, FMT_LOG0_OFFSET, "the header");
	cr_expect_eq(events[i++].len, FMT_PAGE);
	cr_expect_eq(events[i++].what, SYNC);
	cr_expect_eq(events[i].what, CUT);
	cr_expect_eq(events[i++].offset, at);
	cr_expect_eq(i, event_count);
}

Test(engine_seal, space_behind_the_pages_is_given_back)
{
	struct stat before, after;

	make_small_layer();
	cr_assert_eq(stat(path, &before), 0);
	seal();
	cr_assert_eq(stat(path, &after), 0);
	cr_expect_lt(after.st_size, before.st_size);
	cr_expect_eq((uint64_t)after.st_size,
		     layer->hdr.csum_offset + fmt_csum_pages(layer->hdr.slots) * FMT_PAGE);
}

/* A failed cut leaks space, nothing else. */
Test(engine_seal, a_cut_that_fails_is_no_failure)
{
	make_small_layer();
	go_odd();
	refuse_what = CUT;
	refuse_error = -EIO;
	seal();
	io->ops = real;
	reopen();
	compare();
}

/* --- what stops it leaves the layer as it was --- */

static void *read_head(void)
{
	size_t len = FMT_DATA_OFFSET;
	void *buf = aligned_alloc(4096, len);

	cr_assert_eq(eng_io_pread(io, layer->file, buf, len, 0), (ssize_t)len);
	return buf;
}

static void expect_unchanged(const void *head)
{
	void *now = read_head();

	cr_expect_not(atomic_load(&layer->sealed));
	cr_expect_eq(layer->hdr.state, FMT_STATE_FROZEN);
	cr_expect_eq(memcmp(head, now, FMT_DATA_OFFSET), 0, "headers and log");
	free(now);
}

static int stop_after;

static bool stop_later(void *arg)
{
	++*(int *)arg;
	return stop_after-- <= 0;
}

/* SL-1: at every point where it may be stopped; the last one is after the pages are durable. */
Test(engine_seal, a_stopped_seal_changes_nothing)
{
	int calls = 0, points;
	void *head;

	make_small_layer();
	head = read_head();
	for (points = 0;; points++) {
		int r;

		calls = 0;
		stop_after = points;
		r = eng_layer_seal(layer, no_hash, 0, stop_later, &calls, NULL);
		if (r == 0)
			break;
		cr_assert_eq(r, -ECANCELED);
		expect_unchanged(head);
	}
	cr_expect_gt(points, 3);
	compare();
	free(head);
}

/* SL-1: the process dies between the pages and the header. */
Test(engine_seal, a_crash_before_the_header_leaves_a_readable_unsealed_layer)
{
	int calls = 0;

	make_small_layer();
	stop_after = 1000;
	cr_assert_eq(eng_layer_seal(layer, no_hash, 0, stop_later, &calls, NULL), 0);
	eng_layer_put(layer);
	layer = NULL;
	unlink(path);

	make_small_layer();
	stop_after = calls - 1;
	go_odd();
	cr_assert_eq(eng_layer_seal(layer, no_hash, 0, stop_later, &calls, NULL), -ECANCELED);
	cr_expect_eq(events[event_count - 1].what, SYNC, "all was ready");
	io->ops = real;
	compare_unsealed();
	seal(); /* over the pages that the first try left */
	compare();
}

/* SP-3, T16: every call that may fail, fails. */
Test(engine_seal, an_error_leaves_the_layer_hardened)
{
	static const struct {
		int what, error;
	} cases[] = {
		{ALLOCATE, -ENOSPC},
		{WRITE, -EIO},
		{WRITE, -ENOSPC},
		{SYNC, -EIO},
	};
	struct fmt_error err;
	void *head;

	make_small_layer();
	head = read_head();
	go_odd();
	for (unsigned i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		memset(&err, 0, sizeof(err));
		refuse_what = cases[i].what;
		refuse_error = cases[i].error;
		cr_expect_eq(eng_layer_seal(layer, no_hash, 0, NULL, NULL, &err), cases[i].error);
		cr_expect_neq(err.text[0], 0);
		expect_unchanged(head);
	}
	/* No allocation in this file system: the writes find their space, or not. */
	refuse_what = ALLOCATE;
	refuse_error = -EOPNOTSUPP;
	seal();
	compare();
	io->ops = real;
	free(head);
}

Test(engine_seal, what_may_not_be_sealed_is_refused)
{
	struct eng_layer_open how = {.path = path, .kind = FMT_KIND_OVERLAY};
	static const uint8_t some_hash[16] = {1};
	struct eng_layer *reader = NULL;
	void *head;

	make_layer((struct shape){.block_bits = 12, .slots = 40, .blocks = 100});
	put_data(3, 4);
	record();
	cr_expect_eq(eng_layer_seal(layer, no_hash, 0, NULL, NULL, NULL), -EBUSY, "takes writes");
	atomic_store(&layer->harden, ENG_HARDEN_DONE);
	cr_expect_eq(eng_layer_seal(layer, no_hash, 0, NULL, NULL, NULL), -EBUSY, "not FROZEN");
	freeze();
	head = read_head();
	cr_expect_eq(eng_layer_seal(layer, some_hash, 0, NULL, NULL, NULL), -EINVAL, "no parent");
	cr_assert_eq(eng_layer_open(io, &how, NULL, &reader), 0);
	cr_expect_eq(eng_layer_seal(reader, no_hash, 0, NULL, NULL, NULL), -EROFS);
	eng_layer_put(reader);
	cr_expect_eq(eng_layer_verify(layer, NULL), -EINVAL, "not sealed yet");
	eng_layer_poison(layer, -EIO);
	cr_expect_eq(eng_layer_seal(layer, no_hash, 0, NULL, NULL, NULL), -ENOTRECOVERABLE);
	expect_unchanged(head);
	free(head);
}

Test(engine_seal, sealing_again_changes_nothing)
{
	uint64_t seq;

	make_small_layer();
	seal();
	seq = layer->hdr.seq;
	seal();
	cr_expect_eq(layer->hdr.seq, seq);
}

/* CU-23: what looks like a torn tail would put the pages over live slots. */
Test(engine_seal, a_log_that_lost_its_end_is_not_sealed)
{
	static const uint8_t zeros[512];
	uint64_t last;

	make_layer((struct shape){.block_bits = 12, .slots = 40, .blocks = 100});
	put_data(3, 4);
	record();
	last = layer->log.offset;
	put_data(9, 4);
	freeze();
	cr_assert_eq(eng_io_pwrite(io, layer->file, zeros, sizeof(zeros), last), 0);
	cr_expect_eq(eng_layer_seal(layer, no_hash, 0, NULL, NULL, NULL), -EUCLEAN);
	cr_expect_not(atomic_load(&layer->sealed));
}

/* RU-4, T17 */
Test(engine_seal, a_slot_of_two_blocks_breaks_the_spec)
{
	struct fmt_error err = {{0}};

	make_layer((struct shape){.block_bits = 12, .slots = 40, .blocks = 100});
	put_data(3, 4);
	put(&(struct fmt_run){.block = 50, .slot = layer->next_slot - 1, .count = 1});
	freeze();
	cr_expect_eq(eng_layer_seal(layer, no_hash, 0, NULL, NULL, &err), -EUCLEAN);
	cr_expect_not_null(strstr(err.text, "another block"), "%s", err.text);
	cr_expect_not(atomic_load(&layer->sealed));
}

/* SL-4 */
Test(engine_seal, the_parents_hash_is_kept)
{
	static const uint8_t parent[16] = "parent's hash..";

	make_layer(
		(struct shape){.block_bits = 12, .slots = 40, .blocks = 100, .has_parent = true});
	put_data(3, 4);
	freeze();
	cr_assert_eq(eng_layer_seal(layer, parent, 0, NULL, NULL, NULL), 0);
	reopen();
	cr_expect_eq(memcmp(layer->hdr.parent_hash, parent, 16), 0);
	cr_expect_neq(memcmp(layer->hdr.seal_hash, no_hash, 16), 0);
	compare();
}

/* The sealer's replay must not move the log and slots of the layer in use. */
Test(engine_seal, the_workers_part_of_the_layer_is_not_touched)
{
	struct eng_log log;
	uint32_t next_slot;

	make_small_layer();
	layer->next_slot += 5; /* given out, never mapped */
	log = layer->log;
	next_slot = layer->next_slot;
	seal();
	cr_expect_eq(memcmp(&log, &layer->log, sizeof(log)), 0);
	cr_expect_eq(layer->next_slot, next_slot);
}

/* CU-23 */
Test(engine_seal, the_rate_is_kept)
{
	uint64_t want_ns;

	make_small_layer();
	want_ns = (uint64_t)layer->next_slot * 4096 * 1000;
	go_odd();
	cr_assert_eq(eng_layer_seal(layer, no_hash, 1000000, NULL, NULL, NULL), 0);
	io->ops = real;
	/* Slots whose block was written or zeroed again are not read. */
	cr_expect_gt(slept_ns, want_ns / 2);
	cr_expect_leq(slept_ns, want_ns);
}
