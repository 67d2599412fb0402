/* SPDX-License-Identifier: MIT */
/*
 * qcow2_write.c - a disk's content into a new qcow2 image, over an assembly line: the caller's thread
 * walks the extents and feeds chunks; the line's threads read a chunk and compress it (any order), lay
 * it out (in the guest's order: Q2W-8) and write it (any order). A chunk belongs to one thread at a
 * time; the file's layout to whoever commits.
 */
#include "engine/image/qcow2_write.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/io/line.h"
#include "engine/image/qcow2_file.h"
#include "format/zero.h"

#define CHUNK     (512u << 10) /* bytes; a cluster, where that is more */
#define COARSE    (128u << 10) /* data shorter than that is not told from what follows it */
#define MEM_ALIGN 4096u

enum kind {
	NOTHING, /* unallocated */
	ZERO,
	DATA,
	PACKED,
};

struct piece {
	enum kind kind;
	uint32_t len;  /* PACKED */
	uint32_t from; /* PACKED: offset in chunk.packed */
	uint64_t host;
};

struct chunk {
	uint64_t first, count; /* guest clusters */
	bool zero;             /* all of them; nothing is read, count is not bounded */
	uint8_t *data;         /* of all clusters */
	uint8_t *packed;       /* streams, one behind the other; with compression */
	struct fmt_qcow2_deflater *deflater;
	struct piece *pieces; /* by cluster */
};

struct writer {
	struct eng_io *io;
	const struct eng_source *source;
	struct eng_progress *progress;
	uint64_t read; /* bytes of the disk */
	struct eng_qcow2_file *file;
	struct eng_line *line;
	const char *name;
	uint32_t cluster;  /* bytes */
	uint64_t clusters; /* of the disk */
	uint64_t chunk;    /* clusters */
	bool compress, backing;
	struct chunk *chunks;
	unsigned slots;
};

/* --- the line's steps --- */

/* Q2W-6, Q2W-7 */
static void prepare_cluster(struct writer *w, struct chunk *c, uint64_t i, uint32_t *packed)
{
	const uint8_t *data = c->data + i * w->cluster;
	struct piece *p = &c->pieces[i];

	*p = (struct piece){.kind = DATA, .from = *packed};
	if (fmt_is_zero(data, w->cluster)) {
		p->kind = w->backing ? ZERO : NOTHING;
		return;
	}
	if (w->compress)
		p->len = fmt_qcow2_deflate(c->deflater, data, w->cluster, c->packed + *packed);
	if (p->len) {
		p->kind = PACKED;
		*packed += p->len;
	}
}

static int read_chunk(void *arg, unsigned slot, struct fmt_error *err)
{
	struct writer *w = arg;
	struct chunk *c = &w->chunks[slot];
	uint64_t start = c->first * w->cluster, len = c->count * w->cluster;
	uint64_t left = w->source->size - start;
	uint32_t packed = 0;
	int r;

	if (c->zero)
		return 0;
	if (left < len)
		memset(c->data + left, 0, len - left);
	r = w->source->read(w->source->arg, c->data, left < len ? left : len, start, err);
	for (uint64_t i = 0; r == 0 && i < c->count; i++)
		prepare_cluster(w, c, i, &packed);
	return r;
}

static int lay_out_zeros(struct writer *w, const struct chunk *c, struct fmt_error *err)
{
	int r = 0;

	for (uint64_t i = 0; r == 0 && i < c->count; i++)
		r = eng_qcow2_file_zero(w->file, c->first + i, err);
	return r;
}

static int lay_out(void *arg, unsigned slot, struct fmt_error *err)
{
	struct writer *w = arg;
	struct chunk *c = &w->chunks[slot];
	int r = 0;

	if (c->zero)
		return lay_out_zeros(w, c, err);
	for (uint64_t i = 0; r == 0 && i < c->count; i++) {
		struct piece *p = &c->pieces[i];
		uint64_t cluster = c->first + i;

		if (p->kind == DATA)
			r = eng_qcow2_file_data(w->file, cluster, err, &p->host);
		else if (p->kind == PACKED)
			r = eng_qcow2_file_compressed(w->file, cluster, p->len, err, &p->host);
		else if (p->kind == ZERO)
			r = eng_qcow2_file_zero(w->file, cluster, err);
	}
	return r;
}

/* What lies together in memory and in the file is one write. */
static int write_chunk(void *arg, unsigned slot, struct fmt_error *err)
{
	struct writer *w = arg;
	struct chunk *c = &w->chunks[slot];
	const uint8_t *from = NULL;
	uint64_t host = 0;
	size_t len = 0;
	int r = 0;

	if (c->zero)
		return 0;
	for (uint64_t i = 0; r == 0 && i < c->count; i++) {
		const struct piece *p = &c->pieces[i];
		const uint8_t *at = p->kind == DATA ? c->data + i * w->cluster : NULL;
		uint32_t n = p->kind == DATA ? w->cluster : p->len;

		if (p->kind == PACKED)
			at = c->packed + p->from;
		if (!at)
			continue;
		if (len && at == from + len && p->host == host + len) {
			len += n;
			continue;
		}
		if (len)
			r = eng_qcow2_file_write(w->file, from, len, host, err);
		from = at;
		host = p->host;
		len = n;
	}
	if (r == 0 && len)
		r = eng_qcow2_file_write(w->file, from, len, host, err);
	return r;
}

static const struct eng_line_steps steps = {
	.work = read_chunk,
	.commit = lay_out,
	.finish = write_chunk,
};

/* --- what is fed --- */

static int feed(struct writer *w, uint64_t first, uint64_t count, bool zero)
{
	unsigned slot = 0;
	int r = eng_line_take(w->line, &slot);

	if (r)
		return r;
	w->chunks[slot].first = first;
	w->chunks[slot].count = count;
	w->chunks[slot].zero = zero;
	eng_line_feed(w->line);
	return 0;
}

/* Of @count clusters, in bytes of the disk: the last one may go beyond its end. */
static uint64_t bytes_of(const struct writer *w, uint64_t first, uint64_t count)
{
	uint64_t start = first * w->cluster, rest = w->source->size - start;

	return count * w->cluster < rest ? count * w->cluster : rest;
}

static int feed_data(struct writer *w, uint64_t first, uint64_t end, struct fmt_error *err)
{
	uint64_t count, bytes;
	int r = 0;

	for (; r == 0 && first < end; first += count) {
		count = w->chunk - first % w->chunk;
		count = end - first < count ? end - first : count;
		bytes = bytes_of(w, first, count);
		r = feed(w, first, count, false);
		if (r == 0)
			r = eng_progress_pace(w->progress, w->io, bytes, w->name, err);
		w->read += bytes;
	}
	return r;
}

/*
 * What the clusters from @first on are, and where the first one of another kind is. A cluster is what
 * the source says only if all of it is; otherwise it is read, and what is found there counts.
 */
static int classify(struct writer *w, uint64_t first, struct fmt_error *err, uint64_t *end,
		    uint8_t *state)
{
	uint64_t start = first * w->cluster, stop, coarse;
	struct eng_extent e;
	int r = w->source->extent(w->source->arg, start, &e, err);

	if (r < 0)
		return r;
	stop = e.start + e.length;
	*state = e.state;
	*end = stop < w->source->size ? stop / w->cluster : w->clusters;
	if (e.state != ENG_EXTENT_DATA && *end > first)
		return 0;
	*state = ENG_EXTENT_DATA;
	*end = (stop + w->cluster - 1) / w->cluster;
	coarse = (start / COARSE + 1) * COARSE / w->cluster;
	if (!w->backing && *end < coarse) /* with one, more would be more to keep */
		*end = coarse;
	*end = *end < w->clusters ? *end : w->clusters;
	return 0;
}

static int feed_all(struct writer *w, struct fmt_error *err)
{
	uint64_t at = 0, end = 0;
	uint8_t state;
	int r = eng_progress_pass(w->progress, w->io, 0, w->name, err);

	for (; r == 0 && at < w->clusters; at = end) {
		r = classify(w, at, err, &end, &state);
		if (r < 0)
			break;
		if (state == ENG_EXTENT_DATA) {
			r = feed_data(w, at, end, err);
			continue;
		}
		if (state == ENG_EXTENT_ZERO && w->backing)
			r = feed(w, at, end - at, true);
		if (r == 0)
			r = eng_progress_pass(w->progress, w->io, bytes_of(w, at, end - at),
					      w->name, err);
	}
	return r;
}

/* --- memory --- */

static int make_chunks(struct writer *w)
{
	size_t bytes = w->chunk * w->cluster,
	       room = (bytes + MEM_ALIGN - 1) / MEM_ALIGN * MEM_ALIGN;

	w->chunks = calloc(w->slots, sizeof(*w->chunks));
	for (unsigned i = 0; w->chunks && i < w->slots; i++) {
		struct chunk *c = &w->chunks[i];

		c->data = aligned_alloc(MEM_ALIGN, room);
		c->pieces = calloc(w->chunk, sizeof(*c->pieces));
		if (w->compress) {
			c->packed = malloc(bytes);
			c->deflater = fmt_qcow2_deflater_create();
		}
		if (!c->data || !c->pieces || (w->compress && (!c->packed || !c->deflater)))
			return -ENOMEM;
	}
	return w->chunks ? 0 : -ENOMEM;
}

static void free_chunks(struct writer *w)
{
	for (unsigned i = 0; w->chunks && i < w->slots; i++) {
		struct chunk *c = &w->chunks[i];

		free(c->data);
		free(c->pieces);
		free(c->packed);
		fmt_qcow2_deflater_destroy(c->deflater);
	}
	free(w->chunks);
}

/* --- all of it --- */

static int fill(struct writer *w, struct fmt_error *err)
{
	struct fmt_error why = {""};
	int fed, r;

	fed = feed_all(w, err);
	r = eng_line_end(w->line, &why);
	if (r < 0 && fed != -ECANCELED) /* a feeder that was stopped says no more than that */
		return fmt_fail(err, r, "%s", why.text);
	return fed < 0 ? fed : eng_qcow2_file_finish(w->file, err);
}

int eng_qcow2_write(struct eng_io *io, const struct eng_qcow2_target *target,
		    const struct eng_source *source, struct eng_progress *progress,
		    struct fmt_error *err, uint64_t *read)
{
	unsigned threads = eng_line_threads(io);
	struct fmt_qcow2_new new = {
		.cluster_bits = target->cluster_bits ? target->cluster_bits
						     : FMT_QCOW2_CLUSTER_BITS,
		.size = (source->size + 511) / 512 * 512,
		.backing = target->backing,
		.backing_format = target->backing_format,
	};
	struct writer w = {
		.io = io,
		.source = source,
		.progress = progress,
		.name = target->name ? target->name : target->path,
		.compress = target->compress,
		.backing = target->backing,
		.slots = ENG_LINE_SLOTS * threads,
	};
	int r = fmt_qcow2_new_check(&new, err);

	if (r < 0)
		return r;
	w.cluster = UINT32_C(1) << new.cluster_bits;
	w.clusters = (source->size + w.cluster - 1) / w.cluster;
	w.chunk = CHUNK > w.cluster ? CHUNK / w.cluster : 1;
	r = eng_qcow2_file_create(io, target->path, &new, w.compress, err, &w.file);
	if (r < 0)
		return r;
	r = make_chunks(&w);
	if (r == 0)
		r = eng_line_create(io, threads, w.slots, &steps, &w, &w.line);
	if (r < 0)
		fmt_fail(err, r, "%s: cannot begin: %s", w.name, strerror(-r));
	else
		r = fill(&w, err);
	free_chunks(&w);
	eng_qcow2_file_close(w.file);
	if (r < 0)
		eng_io_unlink(io, target->path);
	else if (read)
		*read = w.read;
	return r;
}
