/* SPDX-License-Identifier: MIT */
/*
 * fold_build.c - the merge of adjacent layers' indexes, and the copy of what survives it.
 *
 * First the indexes are merged in windows of blocks, newest layer last: that numbers the slots of the
 * result in order of blocks, and says for every slot of an input where it goes. Then each input is
 * read once, from front to back, and its survivors are written to their places. Checksums travel with
 * the blocks and are compared on the way (P6). The result gets a log like any other layer, and is
 * sealed with the checksums it was given.
 *
 * Memory: 4 bytes a slot of the inputs, 8 bytes a slot of the result, and one window.
 */
#include "engine/fold/fold_build.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "engine/fold/fold_merge.h"
#include "engine/fold/fold_move.h"
#include "engine/layer/gone.h"

#define BATCH (1u << 16) /* blocks moved at a time */

struct input {
	struct eng_layer *layer;
	uint32_t *goes; /* slot -> slot of the result, or FMT_SLOT_NONE */
	uint64_t slots;
};

struct fold {
	struct eng_fold_build *b;
	struct fmt_error *err;
	struct input *inputs;
	struct eng_fold_merge merge;
	uint32_t bits;
	struct fmt_run *runs; /* of the result */
	size_t nruns, cap;
	uint32_t slots;              /* of the result */
	uint64_t *csums;             /* of them */
	struct eng_fold_item *items; /* BATCH */
	struct eng_layer *result;
	struct eng_fold_move move;
};

static int no_memory(const struct fold *f)
{
	return fmt_fail(f->err, -ENOMEM, "no memory to fold %u layers", f->b->count);
}

static int check_stop(const struct fold *f)
{
	if (f->b->stop && f->b->stop(f->b->arg))
		return fmt_fail(f->err, -ECANCELED, "the fold was stopped");
	return 0;
}

/* --- the merge --- */

static int add_run(struct fold *f, uint64_t block, uint32_t slot, uint8_t kind)
{
	struct fmt_run *last = f->nruns ? &f->runs[f->nruns - 1] : NULL;

	if (last && last->kind == kind && last->block + last->count == block &&
	    last->count < FMT_RUN_COUNT_MAX &&
	    (kind == FMT_RUN_ZERO || last->slot + last->count == slot)) {
		last->count++;
		return 0;
	}
	if (f->nruns == f->cap) {
		size_t cap = f->cap ? f->cap * 2 : 1024;
		struct fmt_run *p = realloc(f->runs, cap * sizeof(*p));

		if (!p)
			return no_memory(f);
		f->runs = p;
		f->cap = cap;
	}
	f->runs[f->nruns++] =
		(struct fmt_run){.block = block, .slot = slot, .count = 1, .kind = kind};
	return 0;
}

/* FD-3: the newest of each block; zeros only where something beneath would show. */
static int take_window(struct fold *f)
{
	struct eng_fold_merge *m = &f->merge;
	bool over_nothing = fmt_uuid_is_none(&f->b->spec.parent);
	int r = 0;

	for (uint32_t i = 0; r == 0 && i < m->length; i++) {
		struct input *in;

		if (!m->owner[i])
			continue;
		if (m->slot[i] == ENG_FOLD_ZERO) {
			if (!over_nothing)
				r = add_run(f, m->first + i, FMT_SLOT_NONE, FMT_RUN_ZERO);
			continue;
		}
		in = &f->inputs[m->owner[i] - 1];
		if (m->slot[i] >= in->slots || in->goes[m->slot[i]] != FMT_SLOT_NONE)
			return fmt_fail(f->err, -EUCLEAN,
					"%s: slot %" PRIu32
					" is past the last one, or two blocks' (IX-5)",
					in->layer->path, m->slot[i]);
		if (f->slots == FMT_SLOT_NONE - 1)
			return fmt_fail(f->err, -EFBIG,
					"the folded layer would have too many slots");
		r = eng_gone_refuse(in->layer, m->first + i, m->slot[i], f->err);
		if (r < 0)
			return r;
		in->goes[m->slot[i]] = f->slots;
		r = add_run(f, m->first + i, f->slots++, FMT_RUN_DATA);
	}
	return r;
}

static int merge(struct fold *f)
{
	struct eng_fold_merge *m = &f->merge;
	uint64_t at = 0;
	int r;

	while ((r = eng_fold_merge_next(m, at)) > 0) {
		r = check_stop(f);
		if (r == 0)
			r = take_window(f);
		if (r < 0)
			break;
		at = m->first + m->length;
	}
	return r;
}

/* --- the copy --- */

/* What survives of an input, in the order in which it has it. */
static int move_input(struct fold *f, uint32_t i)
{
	const struct input *in = &f->inputs[i];
	uint32_t n = 0;
	int r = 0;

	for (uint64_t slot = 0; r == 0 && slot < in->slots; slot++) {
		if (in->goes[slot] == FMT_SLOT_NONE)
			continue;
		f->items[n++] = (struct eng_fold_item){in->goes[slot], (uint32_t)slot, i};
		if (n == BATCH) {
			r = eng_fold_move(&f->move, f->items, n);
			n = 0;
		}
	}
	return r == 0 ? eng_fold_move(&f->move, f->items, n) : r;
}

/* The blocks to their places, and their checksums with them. */
static int move_all(struct fold *f)
{
	struct eng_fold_build *b = f->b;
	int r;

	f->move = (struct eng_fold_move){
		.io = b->io,
		.hold = b->hold,
		.inputs = b->inputs,
		.indexes = f->merge.indexes,
		.count = b->count,
		.path = b->spec.path,
		.start = eng_layer_slot_offset(f->result, 0),
		.end = eng_layer_slot_offset(f->result, f->slots),
		.direct = b->spec.direct,
		.csums = f->csums,
		.stop = b->stop,
		.arg = b->arg,
		.progress = b->progress,
		.err = f->err,
	};
	r = eng_fold_move_init(&f->move);
	for (uint32_t i = 0; r == 0 && i < b->count; i++)
		r = move_input(f, i);
	if (r == 0)
		r = eng_fold_move_sync(&f->move);
	eng_fold_move_fini(&f->move);
	return r;
}

/* --- the result --- */

static void edit_frozen(struct fmt_header *hdr, void *arg)
{
	const struct fold *f = arg;
	const struct fmt_header *b = &f->b->boundary;

	hdr->state = FMT_STATE_FROZEN;
	hdr->log_seq = f->result->log.seq;
	hdr->snapshot_id = b->snapshot_id;
	hdr->snapshot_members = b->snapshot_members;
	hdr->snapshot_index = b->snapshot_index;
	hdr->incompat |= FMT_INCOMPAT_FOLDED;
	hdr->replaced_count = b->replaced_count;
	memcpy(hdr->replaced, b->replaced, sizeof(hdr->replaced));
}

/* Data durable, then the log that names it, then FROZEN, then the seal: as for any layer. */
static int finish(struct fold *f)
{
	struct eng_layer *layer = f->result;
	int r = move_all(f);

	layer->next_slot = f->slots;
	for (size_t i = 0; r == 0 && i < f->nruns; i++)
		r = eng_layer_add_pending(layer, &f->runs[i], 0);
	if (r == 0)
		r = eng_layer_harden_sync(layer);
	if (r == 0) {
		atomic_store(&layer->harden, ENG_HARDEN_DONE);
		r = eng_layer_update(layer, edit_frozen, f, f->err);
	}
	if (r == 0)
		r = eng_layer_seal_known(layer, f->b->parent_hash, f->csums, f->slots, f->b->stop,
					 f->b->arg, f->err);
	return r;
}

static int build_result(struct fold *f)
{
	struct eng_layer_spec spec = f->b->spec;
	int r;

	spec.initial_slots = f->slots;
	r = eng_layer_create(f->b->io, &spec, f->err, &f->result);
	return r == 0 ? finish(f) : r;
}

/* --- all of it --- */

static int open_input(struct fold *f, uint32_t i)
{
	struct input *in = &f->inputs[i];

	in->layer = f->b->inputs[i];
	in->slots = in->layer->hdr.slots;
	in->goes = malloc((in->slots + 1) * sizeof(*in->goes));
	if (!in->goes)
		return no_memory(f);
	memset(in->goes, 0xff, (in->slots + 1) * sizeof(*in->goes)); /* FMT_SLOT_NONE */
	return 0;
}

static int prepare(struct fold *f)
{
	struct eng_fold_build *b = f->b;
	int r = 0;

	f->bits = b->spec.block_bits;
	f->merge = (struct eng_fold_merge){
		.layers = b->inputs,
		.count = b->count,
		.blocks = (b->spec.size + (1ull << f->bits) - 1) >> f->bits,
		.err = f->err,
	};
	f->inputs = calloc(b->count, sizeof(*f->inputs));
	f->items = malloc(BATCH * sizeof(*f->items));
	if (!f->inputs || !f->items)
		return no_memory(f);
	r = eng_fold_merge_init(&f->merge);
	for (uint32_t i = 0; r == 0 && i < b->count; i++)
		r = open_input(f, i);
	return r;
}

static void clean_up(struct fold *f)
{
	for (uint32_t i = 0; f->inputs && i < f->b->count; i++)
		free(f->inputs[i].goes);
	eng_fold_merge_fini(&f->merge);
	free(f->inputs);
	free(f->runs);
	free(f->csums);
	free(f->items);
}

int eng_fold_build(struct eng_fold_build *b, struct fmt_error *err, struct eng_layer **ret)
{
	struct fold f = {.b = b, .err = err};
	int r = prepare(&f);

	if (r == 0)
		r = merge(&f);
	if (r == 0) {
		eng_progress_start(b->progress, (uint64_t)f.slots << f.bits);
		f.csums = calloc((size_t)f.slots + 1, sizeof(*f.csums));
		r = f.csums ? build_result(&f) : no_memory(&f);
	}
	clean_up(&f);
	if (r == 0) {
		*ret = f.result;
		return 0;
	}
	if (f.result)
		eng_io_unlink(b->io, f.result->path);
	eng_layer_put(f.result);
	if (err && !err->text[0])
		fmt_fail(err, r, "the fold failed: %s", strerror(-r));
	return r;
}
