/* SPDX-License-Identifier: MIT */
/*
 * export_stream.c - a snapshot's blocks as frames of a stream (ST-*, EX-4, EX-7), over an assembly line:
 * the owner's thread walks disks, changes and extents and feeds chunks; the line's threads read,
 * checksum and compress a chunk (any order); numbering, the digest and the write are one at a time, in
 * order. A chunk belongs to one thread at a time.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "engine/transfer/export_impl.h"
#include "engine/io/line.h"
#include "format/layer.h"
#include "format/zero.h"

#define CHUNK     (512u << 10) /* bytes of blocks */
#define BLOCKS    (CHUNK >> FMT_BLOCK_BITS_MIN)
#define LONG      (1u << 20) /* bytes of a change that may hold runs of zeros worth a look */
#define EXTENTS   2048u
#define MEM_ALIGN 4096u
#define OUT_LEN   (CHUNK + BLOCKS * (FMT_FRAME_HEADER + 8u))

struct chunk {
	uint32_t disk;
	uint64_t zero_start, zero_count; /* ZERO alone, when the count is not 0 */
	struct eng_view_piece pieces[BLOCKS];
	uint64_t starts[BLOCKS]; /* blocks */
	unsigned count;
	size_t bytes;
	uint8_t *data; /* CHUNK */
	uint8_t *out;  /* OUT_LEN: frames, their headers to be filled in */
	size_t out_len;
	struct fmt_frame frames[BLOCKS];
	size_t places[BLOCKS]; /* in out */
	unsigned nframes;
	struct fmt_deflater *deflater;
};

struct writer {
	struct eng_export_plan *plan;
	const struct eng_sink *sink;
	struct eng_line *line;
	struct chunk *chunks; /* by slot */
	unsigned slots;
	struct chunk *open; /* being filled; taken from the line */
	uint64_t salt;
	struct fmt_error *err;
	/* where the walk is */
	uint32_t disk;
	uint64_t pos;             /* blocks before it are dealt with */
	struct fmt_cursor resume; /* blocks before it are in the stream already */
	/* of who commits */
	struct fmt_digest *digest;
	uint64_t seq, data_bytes, zero_bytes;
};

/* --- the line's steps --- */

static void add_frame(struct chunk *c, const struct fmt_frame *f)
{
	c->frames[c->nframes] = *f;
	c->places[c->nframes++] = c->out_len;
	c->out_len += FMT_FRAME_HEADER + fmt_frame_tail(f);
}

static void pack_data(struct chunk *c, uint64_t start, uint32_t count, uint32_t bits,
		      const uint8_t *data)
{
	struct fmt_frame f = {
		.type = FMT_FRAME_DATA,
		.disk = c->disk,
		.start = start,
		.count = count,
		.length = count << bits,
	};
	uint8_t *tail = c->out + c->out_len + FMT_FRAME_HEADER, *payload;
	uint32_t packed = 0;

	for (uint32_t i = 0; i < count; i++)
		fmt_frame_put_csum(tail, i,
				   fmt_block_csum(data + ((size_t)i << bits), (size_t)1 << bits));
	payload = tail + fmt_frame_tail(&f);
	if (c->deflater)
		packed = fmt_deflate(c->deflater, data, f.length, payload);
	if (packed) {
		f.flags = FMT_FRAME_DEFLATE;
		f.length = packed;
	} else {
		memcpy(payload, data, f.length);
	}
	add_frame(c, &f);
	c->out_len += f.length;
}

/* Runs of the same kind; ST-8: zeros of a full disk are in no frame. */
static void pack_piece(struct writer *w, struct chunk *c, unsigned i)
{
	const struct fmt_manifest_disk *d = &w->plan->m.disks[c->disk];
	uint32_t bits = d->block_bits, count;
	const uint8_t *data = c->pieces[i].buf;
	uint32_t blocks = (uint32_t)((c->pieces[i].len + (1u << bits) - 1) >> bits);

	for (uint32_t at = 0; at < blocks; at += count) {
		bool zero = fmt_is_zero(data + ((size_t)at << bits), (size_t)1 << bits);

		for (count = 1; at + count < blocks; count++)
			if (fmt_is_zero(data + ((size_t)(at + count) << bits), (size_t)1 << bits) !=
			    zero)
				break;
		if (!zero)
			pack_data(c, c->starts[i] + at, count, bits, data + ((size_t)at << bits));
		else if (!d->full)
			add_frame(c, &(struct fmt_frame){.type = FMT_FRAME_ZERO,
							 .disk = c->disk,
							 .start = c->starts[i] + at,
							 .count = count});
	}
}

static int work(void *arg, unsigned slot, struct fmt_error *err)
{
	struct writer *w = arg;
	struct chunk *c = &w->chunks[slot];
	uint32_t block = 1u << w->plan->m.disks[c->disk].block_bits;
	int r;

	c->out_len = 0;
	c->nframes = 0;
	if (c->zero_count) {
		add_frame(c, &(struct fmt_frame){.type = FMT_FRAME_ZERO,
						 .disk = c->disk,
						 .start = c->zero_start,
						 .count = (uint32_t)c->zero_count});
		return 0;
	}
	/* The disk may end inside of its last block. */
	for (unsigned i = 0; i < c->count; i++)
		if (c->pieces[i].len % block)
			memset((uint8_t *)c->pieces[i].buf + c->pieces[i].len, 0,
			       block - c->pieces[i].len % block);
	r = eng_view_read(w->plan->view, w->plan->disks[c->disk].view, c->pieces, c->count, err);
	for (unsigned i = 0; r == 0 && i < c->count; i++)
		pack_piece(w, c, i);
	return r;
}

static int commit(void *arg, unsigned slot, struct fmt_error *err)
{
	struct writer *w = arg;
	struct chunk *c = &w->chunks[slot];
	uint32_t bits = w->plan->m.disks[c->disk].block_bits;

	for (unsigned i = 0; i < c->nframes; i++) {
		struct fmt_frame *f = &c->frames[i];
		uint8_t *head = c->out + c->places[i];
		uint64_t bytes = (uint64_t)f->count << bits;

		f->seq = w->seq++;
		fmt_frame_encode(f, w->salt, head + FMT_FRAME_HEADER, head);
		fmt_digest_add(w->digest, head, FMT_FRAME_HEADER + fmt_frame_tail(f));
		*(f->type == FMT_FRAME_DATA ? &w->data_bytes : &w->zero_bytes) += bytes;
	}
	return c->out_len ? w->sink->write(w->sink->arg, c->out, c->out_len, err) : 0;
}

static const struct eng_line_steps steps = {.work = work, .commit = commit};

/* --- what is fed --- */

static int feed_open(struct writer *w)
{
	uint64_t bytes;
	struct chunk *c = w->open;

	if (!c)
		return 0;
	bytes = c->zero_count ? 0 : c->bytes;
	w->open = NULL;
	eng_line_feed(w->line);
	return eng_progress_pace(w->plan->how->progress, w->plan->store->io, bytes, w->sink->name,
				 w->err);
}

static int take(struct writer *w)
{
	unsigned slot;
	int r = eng_line_take(w->line, &slot);

	if (r)
		return r;
	w->open = &w->chunks[slot];
	w->open->disk = w->disk;
	w->open->zero_count = 0;
	w->open->count = 0;
	w->open->bytes = 0;
	return 0;
}

/* As many of the blocks as the open chunk takes; *@count what it took. */
static void add_blocks(struct writer *w, uint64_t start, uint64_t *count)
{
	const struct fmt_manifest_disk *d = &w->plan->m.disks[w->disk];
	struct chunk *c = w->open;
	uint64_t room = (CHUNK - c->bytes) >> d->block_bits;
	uint64_t n = *count < room ? *count : room, offset = start << d->block_bits;
	size_t bytes = (size_t)n << d->block_bits;
	struct eng_view_piece *last = c->count ? &c->pieces[c->count - 1] : NULL;

	*count = n;
	if (!last || last->offset + last->len != offset) {
		last = &c->pieces[c->count];
		*last = (struct eng_view_piece){.buf = c->data + c->bytes, .offset = offset};
		c->starts[c->count++] = start;
	}
	last->len += bytes;
	if (last->offset + last->len > d->size)
		last->len = (size_t)(d->size - last->offset);
	c->bytes += bytes;
}

static int feed_data(struct writer *w, uint64_t end)
{
	int r = 0;

	while (r == 0 && w->pos < end) {
		uint64_t n = end - w->pos;

		if (!w->open)
			r = take(w);
		if (r)
			break;
		add_blocks(w, w->pos, &n);
		w->pos += n;
		if (!n || w->open->bytes == CHUNK)
			r = feed_open(w);
	}
	return r;
}

static int feed_zeros(struct writer *w, uint64_t end)
{
	int r = feed_open(w);

	while (r == 0 && w->pos < end) {
		uint64_t n = end - w->pos < UINT32_MAX ? end - w->pos : UINT32_MAX;

		r = take(w);
		if (r)
			break;
		w->open->zero_start = w->pos;
		w->open->zero_count = n;
		w->pos += n;
		r = feed_open(w);
	}
	return r;
}

/*
 * Bytes from @from to @to read as zeros. Blocks that lie in it whole: of a full disk they are in no
 * frame. What is left of others is read.
 */
static int feed_nothing(struct writer *w, uint64_t from, uint64_t to)
{
	const struct fmt_manifest_disk *d = &w->plan->m.disks[w->disk];
	uint64_t block = 1ull << d->block_bits;
	uint64_t first = (from + block - 1) >> d->block_bits;
	uint64_t end = to == d->size ? fmt_manifest_blocks(d) : to >> d->block_bits;
	int r;

	if (first < w->pos)
		first = w->pos;
	if (end <= first)
		return 0;
	r = feed_data(w, first);
	if (r)
		return r;
	eng_progress_add(w->plan->how->progress, (end - first) << d->block_bits);
	if (!d->full)
		return feed_zeros(w, end);
	w->pos = end;
	return 0;
}

/* By extents, from the block w->pos on. */
static int feed_extents(struct writer *w, uint64_t end)
{
	const struct fmt_manifest_disk *d = &w->plan->m.disks[w->disk];
	struct eng_disk_extent *e = malloc(EXTENTS * sizeof(*e));
	uint64_t at = w->pos << d->block_bits, stop = end << d->block_bits;
	int r = e ? 0 : fmt_fail(w->err, -ENOMEM, "out of memory"), n;

	stop = stop < d->size ? stop : d->size;
	while (r == 0 && at < stop) {
		n = eng_view_extents(w->plan->view, w->plan->disks[w->disk].view, at, stop - at, e,
				     EXTENTS, w->err);
		r = n < 0 ? n : 0;
		for (int i = 0; r == 0 && i < n; i++) {
			uint64_t next = at + e[i].length, last;

			last = (next + (1ull << d->block_bits) - 1) >> d->block_bits;
			r = e[i].state == ENG_EXTENT_DATA ? feed_data(w, last)
							  : feed_nothing(w, at, next);
			at = next;
		}
	}
	free(e);
	return r ? r : feed_data(w, end);
}

static int feed_change(void *arg, uint64_t first, uint64_t count)
{
	struct writer *w = arg;
	uint32_t bits = w->plan->m.disks[w->disk].block_bits;

	w->pos = first;
	return count << bits >= LONG ? feed_extents(w, first + count) : feed_data(w, first + count);
}

static int feed_disk(struct writer *w)
{
	const struct fmt_manifest_disk *d = &w->plan->m.disks[w->disk];
	uint64_t blocks = fmt_manifest_blocks(d), from = 0;
	int r;

	if (w->disk < w->resume.disk)
		from = blocks;
	else if (w->disk == w->resume.disk)
		from = w->resume.next;
	w->pos = from;
	if (d->full)
		r = from < blocks ? feed_extents(w, blocks) : 0;
	else
		r = eng_blocks_each(w->plan->disks[w->disk].changed, from, blocks - from,
				    feed_change, w);
	return r ? r : feed_open(w);
}

/* --- all of it --- */

static int make_chunks(struct writer *w)
{
	w->chunks = calloc(w->slots, sizeof(*w->chunks));
	for (unsigned i = 0; w->chunks && i < w->slots; i++) {
		struct chunk *c = &w->chunks[i];

		c->data = aligned_alloc(MEM_ALIGN, CHUNK);
		c->out = malloc(OUT_LEN);
		if (w->plan->how->compress)
			c->deflater = fmt_deflater_create();
		if (!c->data || !c->out || (w->plan->how->compress && !c->deflater))
			return -ENOMEM;
	}
	return w->chunks ? 0 : -ENOMEM;
}

static void free_chunks(struct writer *w)
{
	for (unsigned i = 0; w->chunks && i < w->slots; i++) {
		free(w->chunks[i].data);
		free(w->chunks[i].out);
		fmt_deflater_destroy(w->chunks[i].deflater);
	}
	free(w->chunks);
}

static int write_head(struct writer *w, const struct fmt_stream *head, const char *manifest)
{
	uint8_t buf[FMT_STREAM_HEADER];
	int r;

	fmt_stream_encode(head, buf);
	fmt_digest_add(w->digest, buf, sizeof(buf));
	fmt_digest_add(w->digest, manifest, head->manifest_len);
	r = w->sink->write(w->sink->arg, buf, sizeof(buf), w->err);
	if (r == 0)
		r = w->sink->write(w->sink->arg, manifest, head->manifest_len, w->err);
	return r;
}

static int write_end(struct writer *w)
{
	struct fmt_stream_end end = {
		.frames = w->seq,
		.data_bytes = w->data_bytes,
		.zero_bytes = w->zero_bytes,
	};
	struct fmt_frame f = {.type = FMT_FRAME_END, .seq = w->seq};
	uint8_t buf[FMT_FRAME_HEADER + FMT_FRAME_END_TAIL];

	fmt_digest_get(w->digest, end.digest);
	fmt_stream_end_encode(&end, buf + FMT_FRAME_HEADER);
	fmt_frame_encode(&f, w->salt, buf + FMT_FRAME_HEADER, buf);
	return w->sink->write(w->sink->arg, buf, sizeof(buf), w->err);
}

static int write_disks(struct writer *w)
{
	unsigned threads = eng_line_threads(w->plan->store->io);
	struct fmt_error why = {""};
	int r, ended;

	w->slots = ENG_LINE_SLOTS * threads;
	r = make_chunks(w);
	if (r == 0)
		r = eng_line_create(w->plan->store->io, threads, w->slots, &steps, w, &w->line);
	if (r < 0)
		return fmt_fail(w->err, r, "%s: cannot begin: %s", w->sink->name, strerror(-r));
	for (; r == 0 && w->disk < w->plan->m.disk_count; w->disk++)
		r = feed_disk(w);
	ended = eng_line_end(w->line, &why);
	if (ended < 0 && r != -ECANCELED)
		r = fmt_fail(w->err, ended, "%s", why.text);
	return r;
}

static int begin(struct writer *w, struct eng_export_resume *resume)
{
	struct fmt_stream head = {.incompat = w->plan->how->compress ? FMT_STREAM_DEFLATE : 0};
	uint8_t random[16];
	char *manifest = NULL;
	size_t len = 0;
	int r;

	if (resume && resume->active) {
		w->salt = fmt_stream_salt(&resume->head);
		w->resume = resume->cursor;
		w->seq = resume->cursor.seq;
		w->data_bytes = resume->data_bytes;
		w->zero_bytes = resume->zero_bytes;
		w->digest = resume->digest;
		resume->digest = NULL;
		return 0;
	}
	w->digest = fmt_digest_create();
	if (!w->digest)
		return fmt_fail(w->err, -ENOMEM, "out of memory");
	r = fmt_manifest_encode(&w->plan->m, &manifest, &len);
	if (r < 0)
		return fmt_fail(w->err, r, "the manifest cannot be made: %s", strerror(-r));
	eng_io_random(w->plan->store->io, random, sizeof(random));
	fmt_uuid_from_random(random, &head.id);
	head.manifest_len = (uint32_t)len;
	head.manifest_csum = fmt_stream_manifest_csum(manifest, len);
	w->salt = fmt_stream_salt(&head);
	r = write_head(w, &head, manifest);
	free(manifest);
	return r;
}

int eng_export_stream(struct eng_export_plan *plan, const struct eng_sink *sink,
		      struct eng_export_resume *resume, struct fmt_error *err)
{
	struct writer w = {.plan = plan, .sink = sink, .err = err};
	int r = begin(&w, resume);

	if (r == 0)
		r = write_disks(&w);
	if (r == 0)
		r = write_end(&w);
	plan->written = w.data_bytes;
	free_chunks(&w);
	fmt_digest_destroy(w.digest);
	return r;
}
