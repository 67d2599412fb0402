/* SPDX-License-Identifier: MIT */
/*
 * stream_in.c - reads a stream without seeking. The bytes are untrusted: a frame's counts are bounded
 * before its tail is read, its checksum is compared before anything it says is used, and its place is
 * checked against its disk and against what came before (ST-9).
 */
#include "engine/transfer/stream_in.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "format/layer.h"

#define BUF (1u << 20)

struct eng_stream_in {
	const struct eng_stream_source *source;
	struct fmt_stream head;
	struct fmt_manifest m;
	uint64_t salt;
	struct fmt_cursor cursor;
	struct fmt_digest *digest;
	uint64_t data_bytes, zero_bytes;
	uint64_t offset; /* of the next byte to be taken */
	uint8_t *buf;
	size_t from, to; /* what of it was not taken yet */
	bool ended;      /* END was read */
	bool held;       /* a frame's header was read that belongs to the next batch */
	uint8_t held_head[FMT_FRAME_HEADER];
};

/* --- bytes --- */

/* Up to @len bytes; fewer only at the end. */
static ssize_t get(struct eng_stream_in *in, void *to, size_t len, struct fmt_error *err)
{
	size_t got = 0;

	while (got < len) {
		size_t n = in->to - in->from;
		ssize_t r;

		if (n) {
			n = n < len - got ? n : len - got;
			memcpy((uint8_t *)to + got, in->buf + in->from, n);
			in->from += n;
			got += n;
			continue;
		}
		r = in->source->read(in->source->arg, in->buf, BUF, err);
		if (r < 0)
			return r;
		if (r == 0)
			break;
		in->from = 0;
		in->to = (size_t)r;
	}
	in->offset += got;
	return (ssize_t)got;
}

static int get_all(struct eng_stream_in *in, void *to, size_t len, struct fmt_error *err)
{
	ssize_t n = get(in, to, len, err);

	if (n < 0)
		return (int)n;
	if ((size_t)n < len)
		return fmt_fail(err, -ENODATA,
				"%s: ends at byte %" PRIu64 ", before its END frame: it is "
				"truncated (ST-9)",
				in->source->name, in->offset);
	return 0;
}

/* Says where. */
static int fail_at(const struct eng_stream_in *in, uint64_t at, int r, const char *why,
		   struct fmt_error *err)
{
	return fmt_fail(err, r, "%s: frame %" PRIu64 " at byte %" PRIu64 ": %s", in->source->name,
			in->cursor.seq, at, why);
}

/* --- head --- */

static int read_manifest(struct eng_stream_in *in, struct fmt_error *err)
{
	struct fmt_error why = {""};
	char *text = malloc(in->head.manifest_len);
	int r = text ? get_all(in, text, in->head.manifest_len, err)
		     : fmt_fail(err, -ENOMEM, "out of memory");

	if (r == 0 &&
	    fmt_stream_manifest_csum(text, in->head.manifest_len) != in->head.manifest_csum)
		r = fmt_fail(err, -EBADMSG, "%s: the manifest does not match its checksum (ST-2)",
			     in->source->name);
	if (r == 0) {
		fmt_digest_add(in->digest, text, in->head.manifest_len);
		r = fmt_manifest_decode(text, in->head.manifest_len, &in->m, &why);
		if (r < 0)
			fmt_fail(err, r, "%s: %s", in->source->name, why.text);
	}
	if (r == 0 && in->m.format != FMT_EXPORT_STREAM)
		r = fmt_fail(err, -EUCLEAN, "%s: the manifest is not a stream's (MF-1)",
			     in->source->name);
	free(text);
	return r;
}

static int read_head(struct eng_stream_in *in, struct fmt_error *err)
{
	struct fmt_error why = {""};
	uint8_t buf[FMT_STREAM_HEADER];
	int r = get_all(in, buf, sizeof(buf), err);

	if (r < 0)
		return r;
	r = fmt_stream_decode(buf, &in->head, &why);
	if (r < 0)
		return fmt_fail(err, r, "%s: %s", in->source->name, why.text);
	fmt_digest_add(in->digest, buf, sizeof(buf));
	in->salt = fmt_stream_salt(&in->head);
	return read_manifest(in, err);
}

int eng_stream_in_open(const struct eng_stream_source *source, struct fmt_error *err,
		       struct eng_stream_in **ret)
{
	struct eng_stream_in *in = calloc(1, sizeof(*in));
	int r = -ENOMEM;

	if (!in)
		return fmt_fail(err, r, "out of memory");
	in->source = source;
	in->buf = malloc(BUF);
	in->digest = fmt_digest_create();
	r = in->buf && in->digest ? read_head(in, err) : fmt_fail(err, r, "out of memory");
	if (r == 0)
		*ret = in;
	else
		eng_stream_in_close(in);
	return r;
}

void eng_stream_in_close(struct eng_stream_in *in)
{
	if (!in)
		return;
	fmt_manifest_fini(&in->m);
	fmt_digest_destroy(in->digest);
	free(in->buf);
	free(in);
}

const struct fmt_manifest *eng_stream_in_manifest(const struct eng_stream_in *in)
{
	return &in->m;
}

const struct fmt_stream *eng_stream_in_head(const struct eng_stream_in *in)
{
	return &in->head;
}

uint64_t eng_stream_in_offset(const struct eng_stream_in *in)
{
	return in->offset;
}

void eng_stream_in_totals(const struct eng_stream_in *in, struct fmt_cursor *cursor,
			  uint64_t *data_bytes, uint64_t *zero_bytes)
{
	*cursor = in->cursor;
	*data_bytes = in->data_bytes;
	*zero_bytes = in->zero_bytes;
}

struct fmt_digest *eng_stream_in_take_digest(struct eng_stream_in *in)
{
	struct fmt_digest *d = in->digest;

	in->digest = NULL;
	return d;
}

/* --- frames --- */

int eng_stream_batch_init(struct eng_stream_batch *batch)
{
	memset(batch, 0, sizeof(*batch));
	batch->bytes = malloc(ENG_BATCH_BYTES + FMT_FRAME_BYTES_MAX + FMT_FRAME_TAIL_MAX);
	return batch->bytes ? 0 : -ENOMEM;
}

void eng_stream_batch_fini(struct eng_stream_batch *batch)
{
	free(batch->bytes);
	batch->bytes = NULL;
}

/* ST-6, ST-9 */
static int check_end(struct eng_stream_in *in, const uint8_t *tail, uint64_t at,
		     struct fmt_error *err)
{
	struct fmt_stream_end end;
	uint8_t digest[16], more;
	ssize_t n;

	fmt_stream_end_decode(tail, &end);
	fmt_digest_get(in->digest, digest);
	if (end.frames != in->cursor.seq || end.data_bytes != in->data_bytes ||
	    end.zero_bytes != in->zero_bytes)
		return fail_at(in, at, -EUCLEAN, "the totals are not those of the frames (ST-6)",
			       err);
	if (memcmp(end.digest, digest, sizeof(digest)) != 0)
		return fail_at(in, at, -EBADMSG, "the digest is not the stream's (ST-6)", err);
	n = get(in, &more, 1, err);
	if (n < 0)
		return (int)n;
	return n ? fail_at(in, at, -EUCLEAN, "something follows END (ST-9)", err) : 0;
}

static int take_frame(struct eng_stream_in *in, struct eng_stream_batch *batch, const uint8_t *head,
		      const uint8_t *tail, const struct eng_batch_frame *b, struct fmt_error *err)
{
	const struct fmt_frame *f = &b->f;
	const struct fmt_manifest_disk *d;
	struct fmt_error why = {""};
	uint64_t bytes;
	int r = fmt_frame_check(head, in->salt, tail, &why);

	if (r < 0)
		return fail_at(in, b->at, r, why.text, err);
	if (f->type == FMT_FRAME_END)
		return f->seq == in->cursor.seq
			       ? check_end(in, tail, b->at, err)
			       : fail_at(in, b->at, -EUCLEAN, "END has another number (ST-7)", err);
	if (f->disk >= in->m.disk_count)
		return fail_at(in, b->at, -EUCLEAN, "no such disk (ST-4)", err);
	d = &in->m.disks[f->disk];
	if ((f->flags & FMT_FRAME_DEFLATE) && !(in->head.incompat & FMT_STREAM_DEFLATE))
		return fail_at(in, b->at, -EUCLEAN,
			       "compressed, and the header does not say so (ST-1)", err);
	r = fmt_cursor_take(&in->cursor, f, fmt_manifest_blocks(d), d->block_bits, &why);
	if (r < 0)
		return fail_at(in, b->at, r, why.text, err);
	fmt_digest_add(in->digest, head, FMT_FRAME_HEADER);
	fmt_digest_add(in->digest, tail, fmt_frame_tail(f));
	bytes = (uint64_t)f->count << d->block_bits;
	*(f->type == FMT_FRAME_DATA ? &in->data_bytes : &in->zero_bytes) += bytes;
	batch->data += f->type == FMT_FRAME_DATA ? bytes : 0;
	return 1;
}

static int read_frame_head(struct eng_stream_in *in, uint8_t head[FMT_FRAME_HEADER], uint64_t *at,
			   struct fmt_error *err)
{
	*at = in->offset - (in->held ? FMT_FRAME_HEADER : 0);
	if (!in->held)
		return get_all(in, head, FMT_FRAME_HEADER, err);
	memcpy(head, in->held_head, FMT_FRAME_HEADER);
	in->held = false;
	return 0;
}

/* 1: it is the batch's last frame; 0: it was END; 2: it is for the next batch. */
static int read_frame(struct eng_stream_in *in, struct eng_stream_batch *batch,
		      struct fmt_error *err)
{
	struct eng_batch_frame *b = &batch->frames[batch->count];
	uint8_t head[FMT_FRAME_HEADER];
	struct fmt_error why = {""};
	int r;

	r = read_frame_head(in, head, &b->at, err);
	if (r < 0)
		return r;
	r = fmt_frame_decode(head, &b->f, &why);
	if (r < 0)
		return fail_at(in, b->at, r, why.text, err);
	if (batch->count && b->f.disk != batch->frames[0].f.disk) {
		memcpy(in->held_head, head, sizeof(head));
		in->held = true;
		return 2;
	}
	b->tail = batch->len;
	b->payload = b->tail + fmt_frame_tail(&b->f);
	r = get_all(in, batch->bytes + b->tail, fmt_frame_tail(&b->f), err);
	if (r == 0)
		r = take_frame(in, batch, head, batch->bytes + b->tail, b, err);
	if (r <= 0)
		return r;
	r = get_all(in, batch->bytes + b->payload, b->f.length, err);
	if (r < 0)
		return r;
	batch->len = b->payload + b->f.length;
	batch->count++;
	return 1;
}

int eng_stream_in_next(struct eng_stream_in *in, struct eng_stream_batch *batch,
		       struct fmt_error *err)
{
	unsigned max = batch->max && batch->max < ENG_BATCH_FRAMES ? batch->max : ENG_BATCH_FRAMES;
	int r = !in->ended;

	batch->count = 0;
	batch->len = 0;
	batch->data = 0;
	while (r == 1 && batch->count < max && batch->len < ENG_BATCH_BYTES &&
	       batch->data < ENG_BATCH_BYTES)
		r = read_frame(in, batch, err);
	/* With END read, what came before it is given away first; then END is not read again. */
	if (r == 0)
		in->ended = true;
	return r < 0 ? r : batch->count ? 1 : 0;
}

int eng_stream_frame_open(const struct eng_stream_batch *batch, unsigned frame, uint32_t bits,
			  struct fmt_inflater *inflater, uint8_t *room, const char *name,
			  struct fmt_error *err, const uint8_t **ret)
{
	const struct eng_batch_frame *b = &batch->frames[frame];
	const struct fmt_frame *f = &b->f;
	const uint8_t *data = batch->bytes + b->payload;
	int r = 0;

	if (f->flags & FMT_FRAME_DEFLATE) {
		r = fmt_inflate(inflater, data, f->length, room, f->count << bits);
		if (r < 0)
			return fmt_fail(err, -EBADMSG,
					"%s: frame %" PRIu64 " at byte %" PRIu64
					": it cannot be inflated (ST-4)",
					name, f->seq, b->at);
		data = room;
	}
	for (uint32_t i = 0; i < f->count; i++)
		if (fmt_block_csum(data + ((size_t)i << bits), (size_t)1 << bits) !=
		    fmt_frame_csum(batch->bytes + b->tail, i))
			return fmt_fail(err, -EBADMSG,
					"%s: frame %" PRIu64 " at byte %" PRIu64 ": block %" PRIu64
					" of disk %" PRIu32 " does not match its checksum (ST-4)",
					name, f->seq, b->at, f->start + i, f->disk);
	*ret = data;
	return r;
}
