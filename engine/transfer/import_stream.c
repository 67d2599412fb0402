/* SPDX-License-Identifier: MIT */
/*
 * import_stream.c - a stream's blocks into layers, over an assembly line: the owner's thread reads batches
 * of frames, the line's threads inflate and compare them (any order), give them slots (in order) and
 * write them (any order).
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/io/line.h"
#include "engine/transfer/import_impl.h"

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
	bool more;          /* there is one */
	uint32_t disk;      /* being written */
	uint64_t pos;       /* blocks of it, for the progress */
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

/* What lies between the frames counts as done; what is in them is held back by the limit. */
static int pace(struct reader *rd, const struct eng_stream_batch *batch)
{
	uint32_t bits = rd->run->m->disks[rd->disk].block_bits;
	uint64_t end = rd->pos, bytes = batch->data;
	struct eng_progress *p = rd->run->how->progress;

	for (unsigned i = 0; i < batch->count; i++)
		end = batch->frames[i].f.start + batch->frames[i].f.count;
	rd->run->bytes += bytes;
	if ((end - rd->pos) << bits > bytes)
		eng_progress_add(p, ((end - rd->pos) << bits) - bytes);
	rd->pos = end;
	rd->run->disks[rd->disk].told = end << bits;
	return eng_progress_pace(p, rd->run->store->io, bytes, rd->run->how->source->name, rd->err);
}

static void swap_batches(struct eng_stream_batch *a, struct eng_stream_batch *b)
{
	struct eng_stream_batch c = *a;

	*a = *b;
	*b = c;
}

/* The batch that was read first, and all that follow on the same disk. */
static int feed_disk(struct reader *rd)
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
	rd->more = r > 0;
	return r < 0 ? r : 0;
}

static int read_disk(void *arg, uint32_t disk)
{
	struct reader *rd = arg;
	unsigned threads = eng_line_threads(rd->run->store->io);
	struct fmt_error why = {""};
	int r, ended;

	rd->disk = disk;
	rd->pos = 0;
	if (!rd->more || rd->first.batch.frames[0].f.disk != disk)
		return 0;
	r = eng_line_create(rd->run->store->io, threads, rd->slots, &steps, rd, &rd->line);
	if (r < 0)
		return fmt_fail(rd->err, r, "cannot begin: %s", strerror(-r));
	r = feed_disk(rd);
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

static int begin(void *arg)
{
	struct reader *rd = arg;
	int r = make_chunks(rd);

	if (r == 0)
		r = eng_stream_in_next(rd->in, &rd->first.batch, rd->err);
	rd->more = r > 0;
	return r < 0 ? r : 0;
}

static void close_stream(void *arg)
{
	struct reader *rd = arg;

	free_chunks(rd);
	eng_stream_in_close(rd->in);
	free(rd);
}

static int open_stream(struct eng_import_run *run, void **ret)
{
	struct reader *rd = calloc(1, sizeof(*rd));
	int r;

	if (!rd)
		return fmt_fail(run->err, -ENOMEM, "out of memory");
	rd->run = run;
	rd->err = run->err;
	r = eng_stream_in_open(run->how->source, run->err, &rd->in);
	if (r < 0) {
		free(rd);
		return r;
	}
	run->m = eng_stream_in_manifest(rd->in);
	run->name = run->how->source->name;
	*ret = rd;
	return 0;
}

const struct eng_import_reader eng_import_streams = {
	.open = open_stream,
	.begin = begin,
	.disk = read_disk,
	.close = close_stream,
};
