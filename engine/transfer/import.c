/* SPDX-License-Identifier: MIT */
/*
 * import.c - a stream's blocks into layers, over an assembly line: the owner's thread reads batches of
 * frames, the line's threads inflate and compare them (any order), give them slots (in order) and write
 * them (any order). A disk's layer is finished before the next disk's begins. Nothing refers to any of
 * it before eng_import_commit().
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/transfer/import_impl.h"
#include "engine/io/line.h"

struct chunk {
	struct eng_stream_batch batch;
	struct fmt_inflater *inflater;
	uint8_t *data; /* of all DATA frames, one behind the other; ENG_BATCH_DATA */
	size_t len;
	uint64_t offset; /* in the layer's file */
	uint64_t csums[FMT_FRAME_BLOCKS_MAX];
};

struct reader {
	struct eng_import_run *run;
	struct eng_stream_in *in;
	struct eng_line *line;
	struct chunk *chunks; /* by slot */
	unsigned slots;
	struct chunk first; /* read before its disk is known */
	uint32_t disk;      /* being written */
	uint64_t pos;       /* blocks of it, for the progress */
	uint64_t bytes;
	struct fmt_error *err;
};

/* --- the line's steps --- */

static int work(void *arg, unsigned slot, struct fmt_error *err)
{
	struct reader *rd = arg;
	struct chunk *c = &rd->chunks[slot];
	uint32_t bits = rd->run->m->disks[rd->disk].block_bits;
	int r = 0;

	c->len = 0;
	for (unsigned i = 0; r == 0 && i < c->batch.count; i++) {
		const struct fmt_frame *f = &c->batch.frames[i].f;
		size_t bytes = (size_t)f->count << bits;
		const uint8_t *data;

		if (f->type != FMT_FRAME_DATA)
			continue;
		r = eng_stream_frame_open(&c->batch, i, bits, c->inflater, c->data + c->len,
					  rd->run->how->source->name, err, &data);
		if (r == 0 && data != c->data + c->len)
			memcpy(c->data + c->len, data, bytes);
		c->len += bytes;
	}
	return r;
}

/* Slots of a batch are one behind the other: one write. */
static int commit(void *arg, unsigned slot, struct fmt_error *err)
{
	struct reader *rd = arg;
	struct chunk *c = &rd->chunks[slot];
	struct eng_import_layer *l = rd->run->disks[rd->disk].writer;
	bool first = true;
	int r = 0;

	for (unsigned i = 0; r == 0 && i < c->batch.count; i++) {
		const struct eng_batch_frame *b = &c->batch.frames[i];
		uint64_t offset = 0;

		if (b->f.type != FMT_FRAME_DATA) {
			r = eng_import_layer_zero(l, b->f.start, b->f.count, err);
			continue;
		}
		for (uint32_t j = 0; j < b->f.count; j++)
			c->csums[j] = fmt_frame_csum(c->batch.bytes + b->tail, j);
		r = eng_import_layer_add(l, b->f.start, b->f.count, c->csums, err, &offset);
		if (first)
			c->offset = offset;
		first = false;
	}
	return r;
}

static int finish(void *arg, unsigned slot, struct fmt_error *err)
{
	struct reader *rd = arg;
	struct chunk *c = &rd->chunks[slot];

	return c->len ? eng_import_layer_write(rd->run->disks[rd->disk].writer, c->data, c->len,
					       c->offset, err)
		      : 0;
}

static const struct eng_line_steps steps = {.work = work, .commit = commit, .finish = finish};

/* --- a disk --- */

static bool asked_to_stop(void *arg)
{
	const struct reader *rd = arg;

	return eng_progress_stop(rd->run->how->progress);
}

static int begin_disk(struct reader *rd)
{
	struct eng_import_run *run = rd->run;
	const struct fmt_manifest_disk *d = &run->m->disks[rd->disk];
	struct eng_import_disk *to = &run->disks[rd->disk];
	struct eng_import_layer_spec spec = {
		.layer = to->layer,
		.disk = to->id,
		.parent = to->parent,
		.snapshot = run->snapshot,
		.generation = fmt_uuid_is_none(&to->parent) ? 0 : to->parent_generation + 1,
		.size = d->size > to->parent_size ? d->size : to->parent_size,
		.block_bits = d->block_bits,
		.members = run->m->disk_count,
		.index = rd->disk,
	};

	memcpy(spec.parent_hash, to->parent_hash, sizeof(spec.parent_hash));
	rd->pos = 0;
	return eng_import_layer_create(run->store, &spec, rd->err, &to->writer);
}

static int finish_disk(struct reader *rd)
{
	const struct fmt_manifest_disk *d = &rd->run->m->disks[rd->disk];
	struct eng_import_disk *to = &rd->run->disks[rd->disk];
	uint64_t bs = 1ull << d->block_bits, first = (d->size + bs - 1) / bs;
	uint64_t last = (to->parent_size + bs - 1) / bs;
	int r = 0;

	if (last > first) /* RZ-2: the disk was made smaller: what it gave up must not show again */
		r = eng_import_layer_zero(to->writer, first, last - first, rd->err);
	if (r == 0)
		r = eng_import_layer_finish(to->writer, asked_to_stop, rd, rd->err);
	to->written = r == 0;
	eng_import_layer_destroy(to->writer);
	to->writer = NULL;
	eng_progress_add(rd->run->how->progress,
			 d->size - (rd->pos << d->block_bits < d->size ? rd->pos << d->block_bits
								       : d->size));
	rd->disk++;
	return r;
}

/* What lies between the frames counts as done; what is in them is held back by the limit. */
static int pace(struct reader *rd, const struct eng_stream_batch *batch)
{
	uint32_t bits = rd->run->m->disks[rd->disk].block_bits;
	uint64_t end = rd->pos, bytes = batch->data;
	struct eng_progress *p = rd->run->how->progress;

	for (unsigned i = 0; i < batch->count; i++)
		end = batch->frames[i].f.start + batch->frames[i].f.count;
	rd->bytes += bytes;
	if ((end - rd->pos) << bits > bytes)
		eng_progress_add(p, ((end - rd->pos) << bits) - bytes);
	rd->pos = end;
	return eng_progress_pace(p, rd->run->store->io, bytes, rd->run->how->source->name, rd->err);
}

static void swap_batches(struct eng_stream_batch *a, struct eng_stream_batch *b)
{
	struct eng_stream_batch c = *a;

	*a = *b;
	*b = c;
}

/* The batch that was read first, and all that follow on the same disk. Sets *@more: one of another. */
static int feed_disk(struct reader *rd, bool *more)
{
	struct eng_stream_batch *next = &rd->first.batch;
	int r = 1;

	while (r > 0 && next->frames[0].f.disk == rd->disk) {
		unsigned slot;

		r = eng_line_take(rd->line, &slot);
		if (r)
			break;
		swap_batches(&rd->chunks[slot].batch, next);
		r = pace(rd, &rd->chunks[slot].batch);
		if (r < 0)
			break;
		eng_line_feed(rd->line);
		r = eng_stream_in_next(rd->in, next, rd->err);
	}
	*more = r > 0;
	return r < 0 ? r : 0;
}

static int write_disk(struct reader *rd, bool *more)
{
	unsigned threads = eng_line_threads(rd->run->store->io);
	struct fmt_error why = {""};
	int r = begin_disk(rd), ended;

	if (r < 0 || !*more || rd->first.batch.frames[0].f.disk != rd->disk)
		return r;
	r = eng_line_create(rd->run->store->io, threads, rd->slots, &steps, rd, &rd->line);
	if (r < 0)
		return fmt_fail(rd->err, r, "cannot begin: %s", strerror(-r));
	r = feed_disk(rd, more);
	ended = eng_line_end(rd->line, &why);
	if (ended < 0 && r != -ECANCELED)
		r = fmt_fail(rd->err, ended, "%s", why.text);
	return r;
}

/* --- all of it --- */

static int chunk_init(struct chunk *c)
{
	int r = eng_stream_batch_init(&c->batch);

	c->inflater = fmt_inflater_create();
	c->data = malloc(ENG_BATCH_DATA);
	return r < 0 || !c->inflater || !c->data ? -ENOMEM : 0;
}

static void chunk_fini(struct chunk *c)
{
	eng_stream_batch_fini(&c->batch);
	fmt_inflater_destroy(c->inflater);
	free(c->data);
}

static int make_chunks(struct reader *rd)
{
	int r = chunk_init(&rd->first);

	rd->slots = ENG_LINE_SLOTS * eng_line_threads(rd->run->store->io);
	rd->chunks = calloc(rd->slots, sizeof(*rd->chunks));
	if (!rd->chunks)
		r = -ENOMEM;
	for (unsigned i = 0; r == 0 && i < rd->slots; i++)
		r = chunk_init(&rd->chunks[i]);
	return r < 0 ? fmt_fail(rd->err, r, "out of memory") : 0;
}

static void free_chunks(struct reader *rd)
{
	chunk_fini(&rd->first);
	for (unsigned i = 0; rd->chunks && i < rd->slots; i++)
		chunk_fini(&rd->chunks[i]);
	free(rd->chunks);
}

static int read_all(struct reader *rd)
{
	bool more;
	int r = make_chunks(rd);

	if (r == 0)
		r = eng_stream_in_next(rd->in, &rd->first.batch, rd->err);
	if (r < 0)
		return r;
	more = r > 0;
	r = 0;
	while (r == 0 && rd->disk < rd->run->m->disk_count) {
		r = write_disk(rd, &more);
		if (r == 0)
			r = finish_disk(rd);
	}
	return r;
}

static uint64_t total_size(const struct fmt_manifest *m)
{
	uint64_t total = 0;

	for (uint32_t i = 0; i < m->disk_count; i++)
		total += m->disks[i].size;
	return total;
}

static void remove_files(struct eng_import_run *run)
{
	for (uint32_t i = 0; i < run->m->disk_count; i++) {
		struct eng_import_disk *d = &run->disks[i];
		char *path = d->written ? eng_store_layer_path(run->store, &d->layer, "vmo") : NULL;

		if (path)
			eng_io_unlink(run->store->io, path);
		if (d->head)
			eng_io_unlink(run->store->io, d->head_path);
		free(path);
	}
}

/* IP-5, IP-6: of the chain only the newest stays. */
static void merge(struct eng_import_run *run, struct eng_import_result *ret)
{
	struct fmt_error why = {""};
	struct cat_job none = {0};
	bool marked = false;
	uint16_t intent = run->how->intent ? run->how->intent : run->m->intent;

	if (!run->m->has_base || intent != FMT_INTENT_MERGE || run->base.row.refpoint)
		return;
	if (eng_store_delete_snapshot(run->store, run->collection.name, run->base.row.name, &none,
				      &marked, &why) < 0)
		snprintf(ret->warning, sizeof(ret->warning), "%s", why.text);
	else
		ret->merged = true;
}

static int import(struct reader *rd, struct eng_import_result *ret)
{
	struct eng_import_run *run = rd->run;
	bool unsure = false;
	int r = eng_import_plan(run);

	if (r < 0)
		return r;
	eng_progress_start(run->how->progress, total_size(run->m));
	r = read_all(rd);
	if (r == 0)
		r = eng_import_commit(run, &unsure);
	if (r < 0) {
		if (!unsure)
			remove_files(run);
		return r;
	}
	*ret = (struct eng_import_result){
		.snapshot = run->snapshot,
		.increment = run->m->has_base,
		.disks = run->m->disk_count,
		.bytes = rd->bytes,
	};
	strcpy(ret->collection, run->collection.name);
	strcpy(ret->name, run->m->snapshot_name);
	merge(run, ret);
	return 0;
}

int eng_store_import(struct eng_store *store, const struct eng_import *how, struct fmt_error *err,
		     struct eng_import_result *ret)
{
	struct eng_import_run run = {.store = store, .how = how, .err = err};
	struct reader rd = {.run = &run, .err = err};
	int r = eng_stream_in_open(how->source, err, &rd.in);

	if (r < 0)
		return r;
	run.m = eng_stream_in_manifest(rd.in);
	r = import(&rd, ret);
	if (r < 0 && err && !err->text[0])
		fmt_fail(err, r, "%s: cannot import: %s", how->source->name, strerror(-r));
	free_chunks(&rd);
	eng_import_plan_fini(&run);
	eng_stream_in_close(rd.in);
	return r;
}
