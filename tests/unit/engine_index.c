/* SPDX-License-Identifier: MIT */
/*
 * engine_index.c - look-ups in a sealed layer's index. The files are built here with format/ alone, by
 * other code than the seal's: two readings of the same rules.
 */
#include <criterion/criterion.h>

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/layer/index.h"

#define SALT    0x5a17f00d12345678ull
#define NOTHING (-2)
#define ZEROS   (-1)

static struct eng_io *io;
static char dir[256], path[300];
static struct fmt_header hdr;
static struct fmt_run *runs;
static uint64_t run_count;
static int64_t *model; /* of each block: NOTHING, ZEROS or its slot */
static uint64_t blocks;

static void start(void)
{
	const char *tmp = getenv("TMPDIR");

	snprintf(dir, sizeof(dir), "%s/vmimg-index-XXXXXX", tmp ? tmp : "/tmp");
	cr_assert_not_null(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/layer.vmo", dir);
	cr_assert_eq(eng_io_posix_create(&io), 0);
}

static void finish(void)
{
	unlink(path);
	rmdir(dir);
	eng_io_destroy(io);
	free(runs);
	free(model);
	runs = NULL;
	model = NULL;
	run_count = 0;
}

TestSuite(engine_index, .init = start, .fini = finish, .timeout = 120);

static uint64_t csum_of(uint64_t slot)
{
	return slot * 0x9e3779b97f4a7c15ull + 1;
}

static void put_page(FILE *f, uint64_t offset, const uint8_t *page)
{
	cr_assert_eq(fseeko(f, (off_t)offset, SEEK_SET), 0);
	cr_assert_eq(fwrite(page, FMT_PAGE, 1, f), 1);
}

static void get_page(uint64_t offset, uint8_t *page)
{
	FILE *f = fopen(path, "r");

	cr_assert_not_null(f);
	cr_assert_eq(fseeko(f, (off_t)offset, SEEK_SET), 0);
	cr_assert_eq(fread(page, FMT_PAGE, 1, f), 1);
	fclose(f);
}

static void set_page(uint64_t offset, const uint8_t *page)
{
	FILE *f = fopen(path, "r+");

	cr_assert_not_null(f);
	put_page(f, offset, page);
	fclose(f);
}

/* Writes the pages of @runs; the slots before them stay a hole. */
static void write_tree(uint64_t slots)
{
	struct fmt_index_shape shape;
	uint64_t *below, *keys;
	uint8_t page[FMT_PAGE];
	FILE *f = fopen(path, "w");

	cr_assert_not_null(f);
	cr_assert_eq(fmt_index_shape(run_count, &shape), 0);
	hdr = (struct fmt_header){.kind = FMT_KIND_OVERLAY,
				  .state = FMT_STATE_SEALED,
				  .block_bits = 12,
				  .size = blocks << 12,
				  .salt = SALT,
				  .data_offset = FMT_DATA_OFFSET,
				  .slots = slots,
				  .index_runs = run_count};
	hdr.index_offset = hdr.data_offset + (slots << 12);
	hdr.csum_offset = hdr.index_offset + shape.total * FMT_PAGE;
	below = calloc(shape.pages[0], 8);
	for (uint64_t i = 0; i < shape.pages[0]; i++) {
		uint64_t at = i * FMT_LEAF_RUNS, n = run_count - at;
		uint64_t offset = hdr.index_offset + i * FMT_PAGE;

		n = n < FMT_LEAF_RUNS ? n : FMT_LEAF_RUNS;
		below[i] = n ? runs[at].block : 0;
		fmt_leaf_encode(runs + at, (uint32_t)n, SALT, offset, page);
		put_page(f, offset, page);
	}
	for (uint32_t level = 1; level < shape.levels; level++) {
		keys = calloc(shape.pages[level], 8);
		for (uint64_t i = 0; i < shape.pages[level]; i++) {
			uint64_t at = i * FMT_INNER_KEYS, n = shape.pages[level - 1] - at;
			uint64_t offset = hdr.index_offset + (shape.first[level] + i) * FMT_PAGE;

			n = n < FMT_INNER_KEYS ? n : FMT_INNER_KEYS;
			keys[i] = below[at];
			fmt_inner_encode(below + at, (uint32_t)n, level, SALT, offset, page);
			put_page(f, offset, page);
		}
		free(below);
		below = keys;
	}
	free(below);
	for (uint64_t i = 0; i < fmt_csum_pages(slots); i++) {
		uint64_t at = i * FMT_CSUM_SLOTS, n = slots - at, csums[FMT_CSUM_SLOTS];

		n = n < FMT_CSUM_SLOTS ? n : FMT_CSUM_SLOTS;
		for (uint64_t j = 0; j < n; j++)
			csums[j] = csum_of(at + j);
		fmt_csum_encode(csums, (uint32_t)n, SALT, hdr.csum_offset + i * FMT_PAGE, page);
		put_page(f, hdr.csum_offset + i * FMT_PAGE, page);
	}
	fclose(f);
}

/* @count runs with gaps of 0..2 blocks, lengths 1..3, slots scattered, every fourth one zeros. */
static uint64_t make_runs(uint64_t count)
{
	uint64_t block = 5, slots = 0;

	srand(7);
	run_count = count;
	runs = calloc(count + 1, sizeof(*runs));
	for (uint64_t i = 0; i < count; i++) {
		bool zero = i % 4 == 3;

		block += (uint64_t)rand() % 3;
		runs[i] = (struct fmt_run){.block = block,
					   .count = 1 + (uint32_t)rand() % 3,
					   .kind = zero ? FMT_RUN_ZERO : FMT_RUN_DATA};
		runs[i].slot = zero ? FMT_SLOT_NONE : (uint32_t)slots;
		block += runs[i].count;
		slots += zero ? 0 : runs[i].count + 1; /* one in between: nothing to join */
	}
	blocks = block + 7;
	model = malloc(blocks * sizeof(*model));
	for (uint64_t b = 0; b < blocks; b++)
		model[b] = NOTHING;
	for (uint64_t i = 0; i < count; i++) {
		for (uint32_t j = 0; j < runs[i].count; j++)
			model[runs[i].block + j] = runs[i].kind == FMT_RUN_ZERO
							   ? ZEROS
							   : (int64_t)runs[i].slot + j;
	}
	return slots;
}

static struct eng_index *open_index(void)
{
	struct eng_index *index = NULL;
	struct fmt_error err = {{0}};

	cr_assert_eq(eng_index_open(io, path, &hdr, &err, &index), 0, "%s", err.text);
	return index;
}

struct seen {
	uint64_t first, end, at; /* blocks before at have been compared */
};

static int compare_run(void *arg, const struct fmt_run *run)
{
	struct seen *seen = arg;

	cr_assert(run->count && run->block >= seen->at && run->block + run->count <= seen->end,
		  "run %lu+%u outside %lu..%lu", run->block, run->count, seen->at, seen->end);
	for (; seen->at < run->block; seen->at++)
		cr_assert_eq(model[seen->at], NOTHING, "block %lu was not found", seen->at);
	for (uint32_t i = 0; i < run->count; i++, seen->at++) {
		int64_t got = run->kind == FMT_RUN_ZERO ? ZEROS : (int64_t)run->slot + i;

		cr_assert_eq(model[seen->at], got, "block %lu is %ld, expected %ld", seen->at, got,
			     model[seen->at]);
	}
	return 0;
}

static void compare(struct eng_index *index, uint64_t first, uint64_t count)
{
	struct seen seen = {.first = first, .end = first + count, .at = first};
	struct fmt_error err = {{0}};

	cr_assert_eq(eng_index_each(index, first, count, compare_run, &seen, &err), 0, "%s",
		     err.text);
	for (; seen.at < seen.end && seen.at < blocks; seen.at++)
		cr_assert_eq(model[seen.at], NOTHING, "block %lu was not found", seen.at);
}

static int look_up(struct eng_index *index, uint64_t block)
{
	struct seen seen = {.first = block, .end = block + 1, .at = block};

	return eng_index_each(index, block, 1, compare_run, &seen, NULL);
}

/* IX-2: 200,000 runs, three levels. */
Test(engine_index, every_block_is_found_and_none_is_invented)
{
	static const uint64_t sizes[] = {1,
					 2,
					 FMT_LEAF_RUNS,
					 FMT_LEAF_RUNS + 1,
					 1000,
					 FMT_LEAF_RUNS * FMT_INNER_KEYS,
					 FMT_LEAF_RUNS * FMT_INNER_KEYS + 1,
					 200000};
	struct eng_index *index;

	for (unsigned i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
		write_tree(make_runs(sizes[i]));
		index = open_index();
		compare(index, 0, blocks);
		for (int n = 0; n < 2000; n++) {
			uint64_t first = (uint64_t)rand() % blocks;

			compare(index, first, 1 + (uint64_t)rand() % (n % 10 ? 8 : 3000));
		}
		cr_expect_leq(eng_index_memory(index), 256 * 1024 + run_count, "memory is bounded");
		eng_index_close(index);
		free(runs);
		free(model);
	}
	runs = NULL;
	model = NULL;
}

static int count_runs(void *arg, const struct fmt_run *run)
{
	(void)run;
	++*(int *)arg;
	return 0;
}

/* More inner pages than stay in memory: they take each other's place, never each other's part. */
Test(engine_index, inner_pages_that_share_a_place_are_told_apart)
{
	uint64_t count = 20ull * FMT_INNER_KEYS * FMT_LEAF_RUNS;
	struct eng_index *index;

	run_count = count;
	runs = calloc(count, sizeof(*runs));
	for (uint64_t i = 0; i < count; i++)
		runs[i] = (struct fmt_run){.block = 2 * i + 1,
					   .count = 1,
					   .slot = FMT_SLOT_NONE,
					   .kind = FMT_RUN_ZERO};
	blocks = 2 * count + 1;
	write_tree(0);
	index = open_index();
	for (int n = 0; n < 4000; n++) {
		uint64_t block = ((uint64_t)rand() << 10 ^ (uint64_t)rand()) % blocks;
		int found = 0;

		cr_assert_eq(eng_index_each(index, block, 1, count_runs, &found, NULL), 0);
		cr_assert_eq(found, block % 2, "block %lu", block);
	}
	cr_expect_leq(eng_index_memory(index), 17 * FMT_PAGE, "a bounded number is kept");
	eng_index_close(index);
}

static int note_runs(void *arg, const struct fmt_run *run)
{
	struct fmt_run **next = arg;

	*(*next)++ = *run;
	return 0;
}

/* IX-3 */
Test(engine_index, runs_are_clipped_at_both_ends)
{
	struct fmt_run got[4], *next = got;
	struct eng_index *index;

	run_count = 2;
	runs = calloc(2, sizeof(*runs));
	runs[0] = (struct fmt_run){.block = 10, .count = 10, .slot = 40, .kind = FMT_RUN_DATA};
	runs[1] = (struct fmt_run){.block = 30,
				   .count = 10,
				   .slot = FMT_SLOT_NONE,
				   .kind = FMT_RUN_ZERO};
	blocks = 50;
	write_tree(60);
	index = open_index();
	cr_assert_eq(eng_index_each(index, 13, 20, note_runs, &next, NULL), 0);
	cr_assert_eq(next - got, 2);
	cr_expect_eq(got[0].block, 13);
	cr_expect_eq(got[0].count, 7);
	cr_expect_eq(got[0].slot, 43);
	cr_expect_eq(got[1].block, 30);
	cr_expect_eq(got[1].count, 3);
	cr_expect_eq(got[1].slot, FMT_SLOT_NONE);
	next = got;
	cr_assert_eq(eng_index_each(index, 15, 2, note_runs, &next, NULL), 0);
	cr_assert_eq(next - got, 1, "both ends in one run");
	cr_expect(got[0].block == 15 && got[0].count == 2 && got[0].slot == 45);
	next = got;
	cr_assert_eq(eng_index_each(index, 20, 10, note_runs, &next, NULL), 0);
	cr_assert_eq(eng_index_each(index, 40, UINT64_MAX, note_runs, &next, NULL), 0);
	cr_assert_eq(eng_index_each(index, UINT64_MAX, UINT64_MAX, note_runs, &next, NULL), 0);
	cr_assert_eq(eng_index_each(index, 10, 0, note_runs, &next, NULL), 0);
	cr_assert_eq(next - got, 0, "what only touches is not in it");
	eng_index_close(index);
}

static int stop_at_second(void *arg, const struct fmt_run *run)
{
	(void)run;
	return ++*(int *)arg == 2 ? -EINTR : 0;
}

Test(engine_index, the_callers_answer_ends_the_walk)
{
	struct eng_index *index;
	int calls = 0;

	write_tree(make_runs(600));
	index = open_index();
	cr_expect_eq(eng_index_each(index, 0, blocks, stop_at_second, &calls, NULL), -EINTR);
	cr_expect_eq(calls, 2);
	eng_index_close(index);
}

Test(engine_index, an_empty_layer_has_nothing)
{
	struct eng_index *index;

	blocks = 100;
	runs = calloc(1, sizeof(*runs));
	write_tree(0);
	index = open_index();
	cr_expect_eq(eng_index_each(index, 0, 100, compare_run, NULL, NULL), 0);
	eng_index_close(index);
}

/* P6, IX-1: any damaged byte of any level is noticed by the look-ups that meet it. */
Test(engine_index, a_damaged_page_is_an_error)
{
	struct fmt_index_shape shape;
	uint8_t page[FMT_PAGE], bad[FMT_PAGE];

	write_tree(make_runs(200000));
	cr_assert_eq(fmt_index_shape(run_count, &shape), 0);
	cr_assert_eq(shape.levels, 3);
	for (uint32_t level = 0; level < shape.levels; level++) {
		uint64_t offset = hdr.index_offset + shape.first[level] * FMT_PAGE;
		struct eng_index *index;

		get_page(offset, page);
		for (unsigned at = 0; at < FMT_PAGE; at += 409) {
			memcpy(bad, page, FMT_PAGE);
			bad[at] ^= 0x40;
			set_page(offset, bad);
			index = open_index();
			cr_expect_eq(look_up(index, runs[0].block), -EBADMSG, "level %u, byte %u",
				     level, at);
			if (level == 0) /* the others are as good as before */
				compare(index, runs[FMT_LEAF_RUNS].block, 5000);
			eng_index_close(index);
		}
		set_page(offset, page);
	}
}

/* IX-1: the checksum holds the page's place. */
Test(engine_index, a_page_in_another_ones_place_is_an_error)
{
	struct eng_index *index;
	uint8_t page[FMT_PAGE];

	write_tree(make_runs(1000));
	get_page(hdr.index_offset + FMT_PAGE, page);
	set_page(hdr.index_offset, page);
	index = open_index();
	cr_expect_eq(look_up(index, runs[0].block), -EBADMSG);
	eng_index_close(index);
}

/* IX-2, IX-4, RU-1: checksums are right, the content is against a rule. */
Test(engine_index, well_made_lies_break_the_spec)
{
	uint64_t slots = make_runs(600);
	struct eng_index *index;
	uint8_t page[FMT_PAGE];

	write_tree(slots); /* a leaf with one run less than its place says */
	fmt_leaf_encode(runs, FMT_LEAF_RUNS - 1, SALT, hdr.index_offset, page);
	set_page(hdr.index_offset, page);
	index = open_index();
	cr_expect_eq(look_up(index, runs[0].block), -EUCLEAN);
	eng_index_close(index);

	write_tree(slots); /* a leaf that does not start with its parent's key */
	fmt_leaf_encode(runs + 1, FMT_LEAF_RUNS, SALT, hdr.index_offset, page);
	set_page(hdr.index_offset, page);
	index = open_index();
	cr_expect_eq(look_up(index, runs[0].block), -EUCLEAN);
	eng_index_close(index);

	write_tree(slots); /* a second leaf that starts inside the first */
	fmt_leaf_encode(runs + FMT_LEAF_RUNS - 1, FMT_LEAF_RUNS, SALT, hdr.index_offset + FMT_PAGE,
			page);
	set_page(hdr.index_offset + FMT_PAGE, page);
	index = open_index();
	cr_expect_eq(eng_index_each(index, 0, blocks, stop_at_second, &(int){100}, NULL), -EUCLEAN);
	eng_index_close(index);

	write_tree(slots); /* slots that the layer does not have */
	hdr.slots = 10;
	index = open_index();
	cr_expect_eq(eng_index_each(index, 0, blocks, stop_at_second, &(int){100}, NULL), -EUCLEAN);
	eng_index_close(index);
}

/* SL-2 */
Test(engine_index, a_header_that_lies_is_refused)
{
	struct eng_index *index = NULL;
	struct fmt_header bad;

	write_tree(make_runs(1000));
	bad = hdr;
	bad.state = FMT_STATE_FROZEN;
	cr_expect_eq(eng_index_open(io, path, &bad, NULL, &index), -EINVAL);
	bad = hdr;
	bad.index_runs *= 10;
	cr_expect_eq(eng_index_open(io, path, &bad, NULL, &index), -EUCLEAN);
	bad = hdr;
	bad.slots += FMT_CSUM_SLOTS;
	cr_expect_eq(eng_index_open(io, path, &bad, NULL, &index), -EUCLEAN);
	bad = hdr;
	bad.csum_offset += 1ull << 40;
	cr_expect_eq(eng_index_open(io, path, &bad, NULL, &index), -EUCLEAN);
	cr_expect_null(index);
	cr_assert_eq(truncate(path, (off_t)hdr.csum_offset), 0);
	cr_expect_eq(eng_index_open(io, path, &hdr, NULL, &index), -EUCLEAN);
	unlink(path);
	cr_expect_eq(eng_index_open(io, path, &hdr, NULL, &index), -ENOENT);
}

/* CS-1 */
Test(engine_index, checksums_come_after_their_page_was_loaded)
{
	uint64_t slots = make_runs(2000), csum;
	struct eng_index *index;
	size_t before;

	write_tree(slots);
	index = open_index();
	before = eng_index_memory(index);
	for (uint32_t slot = 0; slot < slots; slot++) {
		int r = eng_index_csum(index, slot, &csum);

		cr_assert_eq(r, slot % FMT_CSUM_SLOTS ? 0 : -EAGAIN, "slot %u", slot);
		if (r == -EAGAIN) {
			cr_assert_eq(eng_index_load_csum(index, slot, NULL), 0);
			cr_assert_eq(eng_index_csum(index, slot, &csum), 0);
		}
		cr_assert_eq(csum, csum_of(slot));
	}
	cr_expect_eq(eng_index_memory(index) - before, slots * 8);
	cr_expect_eq(eng_index_load_csum(index, 0, NULL), 0);
	cr_expect_eq(eng_index_memory(index) - before, slots * 8, "loaded once");
	cr_expect_eq(eng_index_csum(index, (uint32_t)slots, &csum), -EUCLEAN);
	cr_expect_eq(eng_index_load_csum(index, (uint32_t)slots, NULL), -EUCLEAN);
	eng_index_close(index);
}

/* P6 */
Test(engine_index, a_damaged_checksum_page_is_an_error)
{
	uint8_t page[FMT_PAGE];
	struct eng_index *index;
	uint64_t csum;

	write_tree(make_runs(2000));
	get_page(hdr.csum_offset, page);
	page[100] ^= 1;
	set_page(hdr.csum_offset, page);
	index = open_index();
	cr_expect_eq(eng_index_load_csum(index, 3, NULL), -EBADMSG);
	cr_expect_eq(eng_index_csum(index, 3, &csum), -EAGAIN, "nothing was kept");
	cr_expect_eq(eng_index_load_csum(index, FMT_CSUM_SLOTS, NULL), 0);
	eng_index_close(index);
}

struct reader {
	pthread_t thread;
	struct eng_layer *layer;
	struct eng_index *index;
	unsigned seed;
	uint64_t slots;
	int bad;
};

static int count_bad(void *arg, const struct fmt_run *run)
{
	struct reader *rd = arg;

	for (uint32_t i = 0; i < run->count; i++) {
		int64_t got = run->kind == FMT_RUN_ZERO ? ZEROS : (int64_t)run->slot + i;

		rd->bad += model[run->block + i] != got;
	}
	return 0;
}

static void *read_at_random(void *arg)
{
	struct reader *rd = arg;

	if (eng_layer_index(rd->layer, NULL, &rd->index) < 0) {
		rd->bad = 1;
		return NULL;
	}
	for (int i = 0; i < 3000; i++) {
		uint32_t slot = (uint32_t)((uint64_t)rand_r(&rd->seed) % rd->slots);
		uint64_t csum = 0, first = (uint64_t)rand_r(&rd->seed) % blocks;

		rd->bad += eng_index_each(rd->index, first, 5, count_bad, rd, NULL) != 0;
		if (eng_index_csum(rd->index, slot, &csum) == -EAGAIN)
			rd->bad += eng_index_load_csum(rd->index, slot, NULL) != 0;
		rd->bad += eng_index_csum(rd->index, slot, &csum) != 0 || csum != csum_of(slot);
	}
	return NULL;
}

Test(engine_index, threads_share_one_index)
{
	struct reader readers[4];
	struct eng_layer layer = {.io = io, .path = path};
	uint64_t slots = make_runs(150000);

	write_tree(slots);
	layer.hdr = hdr;
	pthread_mutex_init(&layer.meta_lock, NULL);
	for (unsigned i = 0; i < 4; i++) {
		readers[i] = (struct reader){.layer = &layer, .seed = i, .slots = slots};
		cr_assert_eq(pthread_create(&readers[i].thread, NULL, read_at_random, &readers[i]),
			     0);
	}
	for (unsigned i = 0; i < 4; i++) {
		pthread_join(readers[i].thread, NULL);
		cr_expect_eq(readers[i].bad, 0);
		cr_expect_eq(readers[i].index, layer.index);
	}
	eng_index_close(layer.index);
	pthread_mutex_destroy(&layer.meta_lock);
}
