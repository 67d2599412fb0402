/* SPDX-License-Identifier: MIT */
/*
 * stream.c - encodes and checks the header and the frames of a stream (ST-*). Nothing is believed
 * before its checksum has been compared, except the counts that say how long the checked bytes are:
 * those are bounded first. Pure, any thread.
 */
#include "format/stream.h"

#include <errno.h>
#include <inttypes.h>
#include <libdeflate.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

static const char stream_magic[8] = "VMIMGSTM";
static const char frame_magic[4] = "VMSF";

/* --- header --- */

void fmt_stream_encode(const struct fmt_stream *s, uint8_t buf[FMT_STREAM_HEADER])
{
	struct fmt_stream_disk d = {
		.version = le32_make(FMT_STREAM_VERSION),
		.manifest_len = le32_make(s->manifest_len),
		.incompat = le64_make(s->incompat),
		.manifest_csum = le64_make(s->manifest_csum),
	};

	assert(s->manifest_len >= 2 && s->manifest_len <= FMT_STREAM_MANIFEST_MAX);
	assert(!(s->incompat & ~(uint64_t)FMT_STREAM_KNOWN));
	memcpy(d.magic, stream_magic, sizeof(d.magic));
	memcpy(d.stream_id, s->id.b, sizeof(d.stream_id));
	d.csum = le64_make(XXH3_64bits(&d, offsetof(struct fmt_stream_disk, csum)));
	memcpy(buf, &d, sizeof(d));
}

int fmt_stream_decode(const uint8_t buf[FMT_STREAM_HEADER], struct fmt_stream *ret,
		      struct fmt_error *err)
{
	struct fmt_stream_disk d;
	struct fmt_stream s;

	memcpy(&d, buf, sizeof(d));
	if (memcmp(d.magic, stream_magic, sizeof(d.magic)) != 0)
		return fmt_fail(err, -EINVAL, "no vmimg stream: the magic is missing (ST-1)");
	if (le32_get(d.version) != FMT_STREAM_VERSION)
		return fmt_fail(err, -ENOTSUP, "stream version %" PRIu32 ", expected %u (ST-1)",
				le32_get(d.version), FMT_STREAM_VERSION);
	if (le64_get(d.csum) != XXH3_64bits(&d, offsetof(struct fmt_stream_disk, csum)))
		return fmt_fail(err, -EBADMSG,
				"the stream's header does not match its checksum "
				"(ST-1)");
	s.incompat = le64_get(d.incompat);
	s.manifest_len = le32_get(d.manifest_len);
	s.manifest_csum = le64_get(d.manifest_csum);
	memcpy(s.id.b, d.stream_id, sizeof(d.stream_id));
	if (s.incompat & ~(uint64_t)FMT_STREAM_KNOWN)
		return fmt_fail(err, -ENOTSUP, "unknown features %#" PRIx64 " (ST-1)",
				s.incompat & ~(uint64_t)FMT_STREAM_KNOWN);
	if (s.manifest_len < 2 || s.manifest_len > FMT_STREAM_MANIFEST_MAX)
		return fmt_fail(err, -EUCLEAN,
				"a manifest of %" PRIu32 " bytes, expected 2 to %u (ST-2)",
				s.manifest_len, FMT_STREAM_MANIFEST_MAX);
	if (fmt_uuid_is_none(&s.id) || le64_get(d.reserved))
		return fmt_fail(err, -EUCLEAN,
				"a stream without an id, or reserved bytes set "
				"(ST-1)");
	*ret = s;
	return 0;
}

uint64_t fmt_stream_manifest_csum(const void *text, size_t len)
{
	return XXH3_64bits(text, len);
}

uint64_t fmt_stream_salt(const struct fmt_stream *s)
{
	le64 v;

	memcpy(&v, s->id.b, sizeof(v));
	return le64_get(v);
}

/* --- frames --- */

uint32_t fmt_frame_tail(const struct fmt_frame *f)
{
	return f->type == FMT_FRAME_DATA  ? 8 * f->count
	       : f->type == FMT_FRAME_END ? FMT_FRAME_END_TAIL
					  : 0;
}

static uint64_t frame_csum(const uint8_t buf[FMT_FRAME_HEADER], uint64_t salt, const uint8_t *tail,
			   uint32_t tail_len)
{
	uint8_t all[FMT_FRAME_HEADER + FMT_FRAME_TAIL_MAX];

	memcpy(all, buf, FMT_FRAME_HEADER);
	memset(all + offsetof(struct fmt_frame_disk, csum), 0, sizeof(le64));
	if (tail_len)
		memcpy(all + FMT_FRAME_HEADER, tail, tail_len);
	return XXH3_64bits_withSeed(all, FMT_FRAME_HEADER + tail_len, salt);
}

static int check_fields(const struct fmt_frame *f, struct fmt_error *err)
{
	bool deflate = f->flags & FMT_FRAME_DEFLATE;

	if (f->type < FMT_FRAME_DATA || f->type > FMT_FRAME_END)
		return fmt_fail(err, -EUCLEAN, "frame of type %u (ST-3)", f->type);
	if (f->flags & ~(unsigned)FMT_FRAME_DEFLATE || (deflate && f->type != FMT_FRAME_DATA))
		return fmt_fail(err, -EUCLEAN, "frame with flags %#x (ST-4)", f->flags);
	if (f->type == FMT_FRAME_END)
		return f->disk || f->count || f->start || f->length
			       ? fmt_fail(err, -EUCLEAN, "an END frame that names blocks (ST-6)")
			       : 0;
	if (f->count == 0 || (f->type == FMT_FRAME_DATA && f->count > FMT_FRAME_BLOCKS_MAX))
		return fmt_fail(err, -EUCLEAN,
				"frame of %" PRIu32 " blocks, expected 1 to %u "
				"(ST-4)",
				f->count, FMT_FRAME_BLOCKS_MAX);
	if (f->type == FMT_FRAME_ZERO ? f->length != 0
				      : !f->length || f->length > FMT_FRAME_BYTES_MAX)
		return fmt_fail(err, -EUCLEAN, "frame with a payload of %" PRIu32 " bytes (ST-4)",
				f->length);
	return 0;
}

void fmt_frame_encode(const struct fmt_frame *f, uint64_t salt, const uint8_t *tail,
		      uint8_t buf[FMT_FRAME_HEADER])
{
	struct fmt_frame_disk d = {
		.type = f->type,
		.flags = f->flags,
		.seq = le64_make(f->seq),
		.disk = le32_make(f->disk),
		.count = le32_make(f->count),
		.start = le64_make(f->start),
		.length = le32_make(f->length),
	};

	assert(check_fields(f, NULL) == 0);
	memcpy(d.magic, frame_magic, sizeof(d.magic));
	memcpy(buf, &d, sizeof(d));
	d.csum = le64_make(frame_csum(buf, salt, tail, fmt_frame_tail(f)));
	memcpy(buf, &d, sizeof(d));
}

int fmt_frame_decode(const uint8_t buf[FMT_FRAME_HEADER], struct fmt_frame *ret,
		     struct fmt_error *err)
{
	struct fmt_frame_disk d;
	struct fmt_frame f;
	int r;

	memcpy(&d, buf, sizeof(d));
	if (memcmp(d.magic, frame_magic, sizeof(d.magic)) != 0)
		return fmt_fail(err, -EUCLEAN, "no frame: the magic is missing (ST-3)");
	f = (struct fmt_frame){
		.type = d.type,
		.flags = d.flags,
		.seq = le64_get(d.seq),
		.disk = le32_get(d.disk),
		.count = le32_get(d.count),
		.start = le64_get(d.start),
		.length = le32_get(d.length),
	};
	r = check_fields(&f, err);
	if (r < 0)
		return r;
	if (le16_get(d.reserved0) || le32_get(d.reserved1))
		return fmt_fail(err, -EUCLEAN, "a frame with reserved bytes set (ST-3)");
	*ret = f;
	return 0;
}

int fmt_frame_check(const uint8_t buf[FMT_FRAME_HEADER], uint64_t salt, const uint8_t *tail,
		    struct fmt_error *err)
{
	struct fmt_frame_disk d;
	struct fmt_frame f;
	int r = fmt_frame_decode(buf, &f, err);

	if (r < 0)
		return r;
	memcpy(&d, buf, sizeof(d));
	if (le64_get(d.csum) != frame_csum(buf, salt, tail, fmt_frame_tail(&f)))
		return fmt_fail(err, -EBADMSG, "the frame does not match its checksum (ST-3)");
	return 0;
}

int fmt_cursor_take(struct fmt_cursor *c, const struct fmt_frame *f, uint64_t blocks,
		    uint32_t block_bits, struct fmt_error *err)
{
	uint64_t from = f->disk == c->disk ? c->next : 0;
	uint64_t bytes = (uint64_t)f->count << block_bits;

	if (f->seq != c->seq)
		return fmt_fail(err, -EUCLEAN,
				"frame number %" PRIu64 ", expected %" PRIu64 " (ST-7)", f->seq,
				c->seq);
	if (f->disk < c->disk || f->start < from)
		return fmt_fail(err, -EUCLEAN,
				"block %" PRIu64 " of disk %" PRIu32 " behind block %" PRIu64
				" of disk %" PRIu32 " (ST-7)",
				f->start, f->disk, c->next, c->disk);
	if (f->start >= blocks || f->count > blocks - f->start)
		return fmt_fail(err, -EUCLEAN,
				"blocks %" PRIu64 " + %" PRIu32 " of a disk of %" PRIu64 " (ST-7)",
				f->start, f->count, blocks);
	if (f->type == FMT_FRAME_DATA &&
	    (bytes > FMT_FRAME_BYTES_MAX ||
	     (f->flags & FMT_FRAME_DEFLATE ? f->length >= bytes : f->length != bytes)))
		return fmt_fail(err, -EUCLEAN,
				"%" PRIu32 " bytes for %" PRIu32 " blocks of %u (ST-4)", f->length,
				f->count, 1u << block_bits);
	c->seq++;
	c->disk = f->disk;
	c->next = f->start + f->count;
	return 0;
}

/* --- END --- */

struct end_tail {
	le64 frames, data_bytes, zero_bytes;
	uint8_t digest[16];
};
static_assert(sizeof(struct end_tail) == FMT_FRAME_END_TAIL, "ST-6");

void fmt_stream_end_encode(const struct fmt_stream_end *end, uint8_t tail[FMT_FRAME_END_TAIL])
{
	struct end_tail t = {
		.frames = le64_make(end->frames),
		.data_bytes = le64_make(end->data_bytes),
		.zero_bytes = le64_make(end->zero_bytes),
	};

	memcpy(t.digest, end->digest, sizeof(t.digest));
	memcpy(tail, &t, sizeof(t));
}

void fmt_stream_end_decode(const uint8_t tail[FMT_FRAME_END_TAIL], struct fmt_stream_end *ret)
{
	struct end_tail t;

	memcpy(&t, tail, sizeof(t));
	ret->frames = le64_get(t.frames);
	ret->data_bytes = le64_get(t.data_bytes);
	ret->zero_bytes = le64_get(t.zero_bytes);
	memcpy(ret->digest, t.digest, sizeof(ret->digest));
}

struct fmt_digest {
	XXH3_state_t *state;
};

struct fmt_digest *fmt_digest_create(void)
{
	struct fmt_digest *d = malloc(sizeof(*d));

	if (!d)
		return NULL;
	d->state = XXH3_createState();
	if (d->state && XXH3_128bits_reset(d->state) == XXH_OK)
		return d;
	fmt_digest_destroy(d);
	return NULL;
}

void fmt_digest_destroy(struct fmt_digest *d)
{
	if (d)
		XXH3_freeState(d->state);
	free(d);
}

void fmt_digest_add(struct fmt_digest *d, const void *bytes, size_t len)
{
	if (len)
		XXH3_128bits_update(d->state, bytes, len);
}

void fmt_digest_get(const struct fmt_digest *d, uint8_t ret[16])
{
	XXH128_canonical_t canonical;

	XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(d->state));
	memcpy(ret, canonical.digest, 16);
}

/* --- compression --- */

struct fmt_deflater {
	struct libdeflate_compressor *c;
};

struct fmt_inflater {
	struct libdeflate_decompressor *d;
};

/* Level 1: of a stream that is a backup, speed counts more than the last percents. */
struct fmt_deflater *fmt_deflater_create(void)
{
	struct fmt_deflater *d = calloc(1, sizeof(*d));

	if (d)
		d->c = libdeflate_alloc_compressor(1);
	if (d && !d->c) {
		free(d);
		d = NULL;
	}
	return d;
}

void fmt_deflater_destroy(struct fmt_deflater *d)
{
	if (d)
		libdeflate_free_compressor(d->c);
	free(d);
}

uint32_t fmt_deflate(struct fmt_deflater *d, const void *src, uint32_t len, void *dst)
{
	return (uint32_t)libdeflate_deflate_compress(d->c, src, len, dst, len - 1);
}

struct fmt_inflater *fmt_inflater_create(void)
{
	struct fmt_inflater *i = calloc(1, sizeof(*i));

	if (i)
		i->d = libdeflate_alloc_decompressor();
	if (i && !i->d) {
		free(i);
		i = NULL;
	}
	return i;
}

void fmt_inflater_destroy(struct fmt_inflater *i)
{
	if (i)
		libdeflate_free_decompressor(i->d);
	free(i);
}

int fmt_inflate(struct fmt_inflater *i, const void *src, uint32_t src_len, void *dst,
		uint32_t dst_len)
{
	size_t in = 0, out = 0;
	enum libdeflate_result r = libdeflate_deflate_decompress_ex(i->d, src, src_len, dst,
								    dst_len, &in, &out);

	return r == LIBDEFLATE_SUCCESS && in == src_len && out == dst_len ? 0 : -EUCLEAN;
}
