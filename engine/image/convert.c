/* SPDX-License-Identifier: MIT */
/*
 * convert.c - copies an image into a new file, without its holes and zeros (IM-8). The new file is made
 * under another name and gets its own when it is whole and durable (Q2W-9), or is removed; so a death
 * in between never leaves a part of an image for a whole one. A vmo is sealed at the end. Any thread.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/image/image_impl.h"
#include "engine/layer/index.h"
#include "engine/io/line.h"
#include "engine/image/qcow2_write.h"

#define CHUNK (512u << 10) /* bytes read at once */
#define PIECE (64u << 10)  /* zeros are left out in this unit */

struct chunk {
	uint64_t at;
	size_t len;
	uint8_t *buf;
};

struct copy {
	struct eng_io *io;
	const struct eng_convert *how;
	char *path; /* of the new file until it is whole */
	struct eng_image *src, *dst;
	struct eng_source source;
	uint64_t size;
	struct eng_line *line;
	struct chunk *chunks; /* by slot of the line */
	unsigned slots;
	struct eng_pace pace;
	struct fmt_error *err;
};

/* --- the copy: the line's steps --- */

static bool is_zero(const uint8_t *p, size_t len)
{
	return p[0] == 0 && !memcmp(p, p + 1, len - 1);
}

static int read_chunk(void *arg, unsigned slot, struct fmt_error *err)
{
	struct copy *c = arg;
	struct chunk *k = &c->chunks[slot];

	return c->source.read(c->source.arg, k->buf, k->len, k->at, err);
}

/* Writes what is not zero. */
static int write_chunk(void *arg, unsigned slot, struct fmt_error *err)
{
	struct copy *c = arg;
	const struct chunk *k = &c->chunks[slot];
	size_t from = 0, next;
	int r = 0;

	for (size_t p = 0; p < k->len && r == 0; p = next) {
		next = PIECE - (k->at + p) % PIECE;
		next = k->len - p < next ? k->len : p + next;
		if (is_zero(k->buf + p, next - p)) {
			if (p > from)
				r = eng_image_write(c->dst, k->buf + from, p - from, k->at + from,
						    err);
			from = next;
		}
	}
	if (r == 0 && k->len > from)
		r = eng_image_write(c->dst, k->buf + from, k->len - from, k->at + from, err);
	return r;
}

/* A raw file is written in any order; a vmo in the disk's, which is how it is read best. */
static const struct eng_line_steps raw_steps = {.work = read_chunk, .finish = write_chunk};
static const struct eng_line_steps vmo_steps = {.work = read_chunk, .commit = write_chunk};

/* --- the copy: what is fed --- */

static int feed(struct copy *c, uint64_t at, size_t len)
{
	unsigned slot = 0;
	int r = eng_line_take(c->line, &slot);

	if (r < 0)
		return r;
	c->chunks[slot].at = at;
	c->chunks[slot].len = len;
	eng_line_feed(c->line);
	c->pace.moved += len;
	return eng_pace(&c->pace, at + len, c->err);
}

static int feed_extent(struct copy *c, const struct eng_extent *e)
{
	uint64_t at = e->start, end = e->start + e->length, step;
	int r = 0;

	if (e->state != ENG_EXTENT_DATA)
		return eng_pace(&c->pace, end, c->err);
	for (; r == 0 && at < end; at += step) {
		step = CHUNK - at % CHUNK;
		step = step < end - at ? step : end - at;
		r = feed(c, at, step);
	}
	return r;
}

static int feed_all(struct copy *c)
{
	struct eng_extent e;
	uint64_t at = 0;
	int r = eng_pace(&c->pace, 0, c->err);

	while (r == 0 && at < c->size) {
		r = c->source.extent(c->source.arg, at, &e, c->err);
		if (r == 0)
			r = feed_extent(c, &e);
		at += e.length;
	}
	return r;
}

static int make_chunks(struct copy *c)
{
	c->chunks = calloc(c->slots, sizeof(*c->chunks));
	for (unsigned i = 0; c->chunks && i < c->slots; i++) {
		c->chunks[i].buf = malloc(CHUNK);
		if (!c->chunks[i].buf)
			return -ENOMEM;
	}
	return c->chunks ? 0 : -ENOMEM;
}

static int copy_all(struct copy *c, const struct eng_line_steps *steps)
{
	unsigned threads = eng_line_threads(c->io);
	struct fmt_error why = {""};
	int r, ended;

	c->slots = ENG_LINE_SLOTS * threads;
	r = make_chunks(c);
	if (r == 0)
		r = eng_line_create(c->io, threads, c->slots, steps, c, &c->line);
	if (r < 0) {
		fmt_fail(c->err, r, "%s: cannot begin: %s", c->path, strerror(-r));
	} else {
		r = feed_all(c);
		ended = eng_line_end(c->line, &why);
		if (ended < 0 && r != -ECANCELED)
			r = fmt_fail(c->err, ended, "%s", why.text);
	}
	for (unsigned i = 0; c->chunks && i < c->slots; i++)
		free(c->chunks[i].buf);
	free(c->chunks);
	return r;
}

/* --- the new file --- */

static void freeze(struct fmt_header *hdr, void *arg)
{
	hdr->state = FMT_STATE_FROZEN;
	hdr->log_seq = *(const uint64_t *)arg;
}

static int ignore_run(void *arg, const struct fmt_run *run)
{
	(void)arg;
	(void)run;
	return 0;
}

static bool asks_to_stop(void *arg)
{
	struct copy *c = arg;

	return c->how->progress && c->how->progress(c->how->arg, c->size, c->size);
}

/* The whole disk is in one layer, flushed: nothing will be written to it any more. */
static int seal(struct copy *c)
{
	struct eng_layer_open how = {.path = c->path, .kind = FMT_KIND_OVERLAY, .writable = true};
	static const uint8_t no_parent[16];
	struct eng_layer *layer = NULL;
	int r = eng_layer_open(c->io, &how, c->err, &layer);

	if (r == 0)
		r = eng_log_replay(layer, ignore_run, NULL, c->err);
	if (r == 0)
		r = eng_layer_update(layer, freeze, &layer->log.seq, c->err);
	if (r == 0) {
		atomic_store(&layer->harden, ENG_HARDEN_DONE);
		r = eng_layer_seal(layer, no_parent, c->how->rate_limit, asks_to_stop, c, c->err);
	}
	eng_layer_put(layer);
	return r;
}

static int fill(struct copy *c, const char *format)
{
	int r = eng_image_open_as(c->io, c->path, format, NULL, true, c->err, &c->dst);

	if (r < 0)
		return r;
	r = copy_all(c, strcmp(format, "vmo") ? &raw_steps : &vmo_steps);
	if (r == 0)
		r = eng_image_flush(c->dst, c->err);
	eng_image_close(c->dst);
	return r == 0 && !strcmp(format, "vmo") ? seal(c) : r;
}

static int make(struct copy *c, const char *format)
{
	bool vmo = !strcmp(format, "vmo");
	int r = eng_image_create(c->io, c->path, format, NULL,
				 vmo ? (c->size + 511) / 512 * 512 : c->size, c->err);

	if (r < 0)
		return r;
	r = fill(c, format);
	if (r < 0)
		eng_io_unlink(c->io, c->path);
	return r;
}

/* --- qcow2 --- */

static int make_qcow2(struct copy *c)
{
	struct eng_qcow2_target target = {
		.path = c->path,
		.cluster_bits = c->how->cluster_bits,
		.compress = c->how->compress,
	};

	return eng_qcow2_write(c->io, &target, &c->source, &c->pace, c->err);
}

/* --- all of it --- */

/* Q2W-9: the file at c->path is whole and durable; now it gets its name. */
static int place(struct copy *c, const char *dst)
{
	int r = eng_io_rename_new(c->io, c->path, dst);

	if (r < 0) {
		eng_io_unlink(c->io, c->path);
		return fmt_fail(c->err, r, "%s: %s", dst, strerror(-r));
	}
	r = eng_path_sync_dir(c->io, dst);
	if (r < 0) {
		eng_io_unlink(c->io, dst);
		fmt_fail(c->err, r, "%s: cannot make its name durable: %s", dst, strerror(-r));
	}
	return r;
}

/* The name until then: nobody else's, so that two copies to one name do not meet before its end. */
static int begin(struct copy *c, const char *dst)
{
	struct eng_stat st;
	uint32_t random;

	if (eng_io_stat(c->io, dst, &st) == 0)
		return fmt_fail(c->err, -EEXIST, "%s: %s", dst, strerror(EEXIST));
	eng_io_random(c->io, &random, sizeof(random));
	if (asprintf(&c->path, "%s.%08" PRIx32 ".part", dst, random) < 0) {
		c->path = NULL;
		return fmt_fail(c->err, -ENOMEM, "%s: out of memory", dst);
	}
	return 0;
}

static int convert(struct copy *c, const char *dst, const char *format)
{
	int r = begin(c, dst);

	if (r == 0)
		r = strcmp(format, "qcow2") ? make(c, format) : make_qcow2(c);
	if (r == 0)
		r = place(c, dst);
	return r;
}

int eng_image_convert(struct eng_io *io, const char *src, const char *dst,
		      const struct eng_convert *how, struct fmt_error *err)
{
	struct copy c = {
		.io = io,
		.how = how,
		.pace = {.io = io,
			 .path = dst,
			 .rate = how->rate_limit,
			 .progress = how->progress,
			 .arg = how->arg},
		.err = err,
	};
	int r;

	if (err)
		err->text[0] = 0;
	r = eng_image_open_as(io, src, how->src_format, NULL, false, err, &c.src);
	if (r < 0)
		return r;
	c.source = eng_image_source(c.src);
	c.size = c.pace.total = c.source.size;
	r = convert(&c, dst, how->dst_format ? how->dst_format : "raw");
	if (r < 0 && err && !err->text[0])
		fmt_fail(err, r, "%s: cannot copy %s: %s", dst, src, strerror(-r));
	eng_image_close(c.src);
	free(c.path);
	return r;
}
