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

#include "engine/image/copy.h"
#include "engine/image/image_impl.h"
#include "engine/layer/index.h"
#include "engine/image/qcow2_write.h"

struct copy {
	struct eng_io *io;
	const struct eng_convert *how;
	const char *name;
	char *path; /* of the new file until it is whole */
	struct eng_image *src, *dst;
	struct eng_source source;
	struct eng_progress progress;
	struct fmt_error *err;
};

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
	return eng_progress_stop(arg);
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
		r = eng_layer_seal(layer, no_parent, c->how->rate_limit, asks_to_stop, &c->progress,
				   c->err);
	}
	eng_layer_put(layer);
	return r;
}

static int write_image(void *arg, const void *buf, size_t len, uint64_t offset,
		       struct fmt_error *err)
{
	return eng_image_write(arg, buf, len, offset, err);
}

/* A raw file is written in any order; a vmo in the disk's, which is how it is read best. */
static int fill(struct copy *c, const char *format)
{
	struct eng_copy how = {
		.io = c->io,
		.source = &c->source,
		.name = c->name,
		.write = write_image,
		.in_order = !strcmp(format, "vmo"),
		.progress = &c->progress,
	};
	int r = eng_image_open_as(c->io, c->path, format, NULL, true, c->err, &c->dst);

	if (r < 0)
		return r;
	how.arg = c->dst;
	r = eng_copy(&how, c->err);
	if (r == 0)
		r = eng_image_flush(c->dst, c->err);
	eng_image_close(c->dst);
	return r == 0 && how.in_order ? seal(c) : r;
}

static int make(struct copy *c, const char *format)
{
	bool vmo = !strcmp(format, "vmo");
	int r = eng_image_create(c->io, c->path, format, NULL,
				 vmo ? (c->source.size + 511) / 512 * 512 : c->source.size, c->err);

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
		.name = c->name,
		.cluster_bits = c->how->cluster_bits,
		.compress = c->how->compress,
	};

	return eng_qcow2_write(c->io, &target, &c->source, &c->progress, c->err, NULL);
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
		.name = dst,
		.progress = {.rate = how->rate_limit, .watch = how->progress, .watch_arg = how->arg},
		.err = err,
	};
	int r;

	if (err)
		err->text[0] = 0;
	r = eng_image_open_as(io, src, how->src_format, NULL, false, err, &c.src);
	if (r < 0)
		return r;
	c.source = eng_image_source(c.src);
	eng_progress_start(&c.progress, c.source.size);
	r = convert(&c, dst, how->dst_format ? how->dst_format : "raw");
	if (r < 0 && err && !err->text[0])
		fmt_fail(err, r, "%s: cannot copy %s: %s", dst, src, strerror(-r));
	eng_image_close(c.src);
	free(c.path);
	return r;
}
