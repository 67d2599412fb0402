/* SPDX-License-Identifier: MIT */
/*
 * engine_overlay.h - a real overlay for tests of engine/: slots, log records and header in a file of
 * their own, and in memory what its disk must read as. For one program each: all of it is static.
 */
#ifndef TESTS_UNIT_ENGINE_OVERLAY_H
#define TESTS_UNIT_ENGINE_OVERLAY_H

#include <criterion/criterion.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/layer/index.h"

#define NOTHING (-2)
#define ZEROS   (-1)

static struct eng_io *io;
static char dir[256], path[300];
static struct eng_layer *layer;
static int64_t *model; /* of each block: NOTHING, ZEROS or its slot */
static uint64_t blocks;
static const uint8_t no_hash[16];

static inline void start(void)
{
	const char *tmp = getenv("TMPDIR");

	snprintf(dir, sizeof(dir), "%s/vmimg-seal-XXXXXX", tmp ? tmp : "/tmp");
	cr_assert_not_null(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/layer.vmo", dir);
	cr_assert_eq(eng_io_posix_create(&io), 0);
}

static inline void finish(void)
{
	eng_layer_put(layer);
	unlink(path);
	rmdir(dir);
	eng_io_destroy(io);
	free(model);
}

/* --- a layer to seal --- */

struct shape {
	uint32_t block_bits, slots;
	uint64_t blocks;
	bool direct, has_parent;
};

static inline void make_layer(struct shape shape)
{
	struct eng_layer_spec spec = {.path = path,
				      .block_bits = shape.block_bits,
				      .size = shape.blocks << shape.block_bits,
				      .initial_slots = shape.slots,
				      .direct = shape.direct};
	struct fmt_error err = {{0}};

	eng_io_random(io, &spec.layer, sizeof(spec.layer));
	if (shape.has_parent) {
		eng_io_random(io, &spec.parent, sizeof(spec.parent));
		spec.generation = 1;
	}
	cr_assert_eq(eng_layer_create(io, &spec, &err, &layer), 0, "%s", err.text);
	blocks = shape.blocks;
	model = realloc(model, blocks * sizeof(*model));
	for (uint64_t b = 0; b < blocks; b++)
		model[b] = NOTHING;
}

/* What slot @slot holds. */
static inline void fill(uint32_t slot, uint64_t *buf)
{
	for (size_t i = 0; i < (1u << layer->block_bits) / 8; i++)
		buf[i] = (slot + 1) * 0x9e3779b97f4a7c15ull + i;
}

static inline void put(const struct fmt_run *run)
{
	cr_assert_eq(eng_layer_add_pending(layer, run, 0), 0);
	for (uint32_t i = 0; i < run->count; i++)
		model[run->block + i] = run->kind == FMT_RUN_ZERO ? ZEROS : (int64_t)run->slot + i;
}

static inline void put_data(uint64_t block, uint32_t count)
{
	struct fmt_run run = {.block = block, .count = count, .slot = layer->next_slot};
	size_t bs = (size_t)1 << layer->block_bits;
	uint64_t *buf = aligned_alloc(4096, count * bs);

	for (uint32_t i = 0; i < count; i++)
		fill(run.slot + i, buf + i * bs / 8);
	cr_assert_eq(eng_io_pwrite(io, layer->file, buf, count * bs,
				   eng_layer_slot_offset(layer, run.slot)),
		     0);
	layer->next_slot += count;
	layer->dirty_gen++;
	free(buf);
	put(&run);
}

static inline void put_zeros(uint64_t block, uint32_t count)
{
	struct fmt_run run = {.block = block,
			      .count = count,
			      .slot = FMT_SLOT_NONE,
			      .kind = FMT_RUN_ZERO};

	put(&run);
}

/* The next log segment, of @len bytes, in the next slots. */
static inline void give_segment(uint32_t len)
{
	layer->log.next = eng_layer_slot_offset(layer, layer->next_slot);
	layer->log.next_len = len;
	layer->next_slot += len >> layer->block_bits;
}

static inline void record(void)
{
	cr_assert_eq(eng_layer_harden_sync(layer), 0);
}

static inline void edit_frozen(struct fmt_header *hdr, void *arg)
{
	(void)arg;
	hdr->state = FMT_STATE_FROZEN;
}

static inline void freeze(void)
{
	record();
	cr_assert_eq(eng_layer_update(layer, edit_frozen, NULL, NULL), 0);
	atomic_store(&layer->harden, ENG_HARDEN_DONE);
}

static inline void seal(void)
{
	struct fmt_error err = {{0}};
	int r = eng_layer_seal(layer, no_hash, 0, NULL, NULL, &err);

	cr_assert_eq(r, 0, "%d: %s", r, err.text);
	cr_assert(atomic_load(&layer->sealed));
}

static inline void reopen(void)
{
	struct eng_layer_open how = {.path = path, .kind = FMT_KIND_OVERLAY, .writable = true};
	struct fmt_error err = {{0}};

	eng_layer_put(layer);
	layer = NULL;
	cr_assert_eq(eng_layer_open(io, &how, &err, &layer), 0, "%s", err.text);
}

static inline void make_small_layer(void)
{
	make_layer((struct shape){.block_bits = 12, .slots = 400, .blocks = 2000});
	for (uint64_t i = 0; i < 100; i++) {
		put_data(i * 17 % 101 * 19, 1 + i % 3);
		if (i % 9 == 8)
			put_zeros(i * 13, 5);
		if (i % 20 == 19)
			record();
	}
	freeze();
}

/* --- comparing --- */

struct seen {
	uint64_t at, runs;
	struct eng_index *index;
	uint64_t *buf;
};

static inline void check_csum(struct seen *seen, uint32_t slot)
{
	uint64_t csum = 0;

	if (eng_index_csum(seen->index, slot, &csum) == -EAGAIN)
		cr_assert_eq(eng_index_load_csum(seen->index, slot, NULL), 0);
	cr_assert_eq(eng_index_csum(seen->index, slot, &csum), 0);
	fill(slot, seen->buf);
	cr_assert_eq(csum, fmt_block_csum(seen->buf, (size_t)1 << layer->block_bits),
		     "checksum of slot %u", slot);
}

static inline int compare_run(void *arg, const struct fmt_run *run)
{
	struct seen *seen = arg;

	seen->runs++;
	for (; seen->at < run->block; seen->at++)
		cr_assert_eq(model[seen->at], NOTHING, "block %lu was not found", seen->at);
	for (uint32_t i = 0; i < run->count; i++, seen->at++) {
		int64_t got = run->kind == FMT_RUN_ZERO ? ZEROS : (int64_t)run->slot + i;

		cr_assert_eq(got, model[seen->at], "block %lu is %ld, expected %ld", seen->at, got,
			     model[seen->at]);
		if (got >= 0)
			check_csum(seen, (uint32_t)got);
	}
	return 0;
}

/* The sealed layer says what the model says, and every checksum is right. Returns its runs. */
static inline uint64_t compare(void)
{
	struct seen seen = {.buf = malloc((size_t)1 << layer->block_bits)};
	struct fmt_error err = {{0}};

	cr_assert_eq(eng_layer_index(layer, &err, &seen.index), 0, "%s", err.text);
	cr_assert_eq(eng_index_each(seen.index, 0, UINT64_MAX, compare_run, &seen, &err), 0, "%s",
		     err.text);
	for (; seen.at < blocks; seen.at++)
		cr_assert_eq(model[seen.at], NOTHING, "block %lu was not found", seen.at);
	cr_expect_eq(seen.runs, layer->hdr.index_runs);
	for (int i = 0; i < 500; i++) {
		struct seen one = {.at = (uint64_t)rand() % blocks,
				   .index = seen.index,
				   .buf = seen.buf};
		int64_t want = model[one.at];

		cr_assert_eq(eng_index_each(one.index, one.at, 1, compare_run, &one, &err), 0, "%s",
			     err.text);
		cr_assert_eq(one.runs, want != NOTHING, "block %lu, looked up alone", one.at);
	}
	cr_expect_eq(eng_layer_verify(layer, &err), 0, "%s", err.text);
	free(seen.buf);
	return seen.runs;
}

#endif
