/* SPDX-License-Identifier: MIT */
/*
 * stream.h - the bytes of an exported snapshot: header, frames, digest (spec/stream.md ST-*). Pure
 * functions over bytes: no I/O, no locks, any thread. The manifest is manifest.h's.
 */
#ifndef FORMAT_STREAM_H
#define FORMAT_STREAM_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

#include "format/error.h"
#include "format/le.h"
#include "format/uuid.h"

#define FMT_STREAM_VERSION      1u
#define FMT_STREAM_HEADER       64u
#define FMT_STREAM_MANIFEST_MAX (16u << 20)
#define FMT_FRAME_HEADER        48u
#define FMT_FRAME_BLOCKS_MAX    256u
#define FMT_FRAME_BYTES_MAX     (1u << 20) /* of a frame's blocks */
#define FMT_FRAME_TAIL_MAX      (8u * FMT_FRAME_BLOCKS_MAX)
#define FMT_FRAME_END_TAIL      40u

enum {
	FMT_STREAM_DEFLATE = 1u << 0, /* incompat: frames may be compressed */
	FMT_STREAM_KNOWN = FMT_STREAM_DEFLATE,
};

struct fmt_stream_disk { /* the header, on the wire */
	uint8_t magic[8];
	le32 version;
	le32 manifest_len;
	le64 incompat;
	uint8_t stream_id[16];
	le64 manifest_csum;
	le64 reserved;
	le64 csum;
};
static_assert(sizeof(struct fmt_stream_disk) == FMT_STREAM_HEADER, "ST-1");
static_assert(offsetof(struct fmt_stream_disk, manifest_csum) == 0x28, "ST-1");

struct fmt_stream {
	uint32_t manifest_len;
	uint64_t incompat, manifest_csum;
	struct fmt_uuid id;
};

void fmt_stream_encode(const struct fmt_stream *s, uint8_t buf[FMT_STREAM_HEADER]);
/* -EINVAL no stream, -EBADMSG, -ENOTSUP, -EUCLEAN. */
int fmt_stream_decode(const uint8_t buf[FMT_STREAM_HEADER], struct fmt_stream *ret,
		      struct fmt_error *err);
uint64_t fmt_stream_manifest_csum(const void *text, size_t len);
/* What seeds the frames' checksums. */
uint64_t fmt_stream_salt(const struct fmt_stream *s);

enum fmt_frame_type {
	FMT_FRAME_DATA = 1,
	FMT_FRAME_ZERO = 2,
	FMT_FRAME_END = 3,
};
enum {
	FMT_FRAME_DEFLATE = 1u << 0,
};

struct fmt_frame_disk {
	uint8_t magic[4];
	uint8_t type, flags;
	le16 reserved0;
	le64 seq;
	le32 disk;
	le32 count;
	le64 start;
	le32 length;
	le32 reserved1;
	le64 csum;
};
static_assert(sizeof(struct fmt_frame_disk) == FMT_FRAME_HEADER, "ST-3");
static_assert(offsetof(struct fmt_frame_disk, csum) == 0x28, "ST-3");

struct fmt_frame {
	uint8_t type, flags;
	uint32_t disk, count, length;
	uint64_t seq, start;
};

/* Bytes of the tail; of a frame that fmt_frame_decode() accepted, FMT_FRAME_TAIL_MAX at most. */
uint32_t fmt_frame_tail(const struct fmt_frame *f);
void fmt_frame_encode(const struct fmt_frame *f, uint64_t salt, const uint8_t *tail,
		      uint8_t buf[FMT_FRAME_HEADER]);
/*
 * What can be said of the 48 bytes alone: magic, type, flags, and counts within their bounds, so that the
 * tail may be read. Nothing is to be believed before fmt_frame_check().
 */
int fmt_frame_decode(const uint8_t buf[FMT_FRAME_HEADER], struct fmt_frame *ret,
		     struct fmt_error *err);
/* -EBADMSG. */
int fmt_frame_check(const uint8_t buf[FMT_FRAME_HEADER], uint64_t salt, const uint8_t *tail,
		    struct fmt_error *err);

/* Where a reader is (ST-7). */
struct fmt_cursor {
	uint64_t seq;  /* of the next frame */
	uint32_t disk; /* of the last one */
	uint64_t next; /* first block that may come on it */
};
/* ST-4, ST-5, ST-7 against a disk of @blocks blocks of 1 << @block_bits bytes; moves the cursor.
 * -EUCLEAN. Not for END. */
int fmt_cursor_take(struct fmt_cursor *c, const struct fmt_frame *f, uint64_t blocks,
		    uint32_t block_bits, struct fmt_error *err);

static inline uint64_t fmt_frame_csum(const uint8_t *tail, uint32_t block)
{
	le64 v;

	memcpy(&v, tail + 8 * (size_t)block, sizeof(v));
	return le64_get(v);
}

static inline void fmt_frame_put_csum(uint8_t *tail, uint32_t block, uint64_t csum)
{
	le64 v = le64_make(csum);

	memcpy(tail + 8 * (size_t)block, &v, sizeof(v));
}

/* --- END --- */
struct fmt_stream_end {
	uint64_t frames, data_bytes, zero_bytes;
	uint8_t digest[16];
};
void fmt_stream_end_encode(const struct fmt_stream_end *end, uint8_t tail[FMT_FRAME_END_TAIL]);
void fmt_stream_end_decode(const uint8_t tail[FMT_FRAME_END_TAIL], struct fmt_stream_end *ret);

/* XXH3-128, streaming; of the whole stream (ST-6), and of states (MF-3). */
struct fmt_digest;
struct fmt_digest *fmt_digest_create(void); /* NULL: no memory */
void fmt_digest_destroy(struct fmt_digest *d);
void fmt_digest_add(struct fmt_digest *d, const void *bytes, size_t len);
void fmt_digest_get(const struct fmt_digest *d, uint8_t ret[16]); /* of what was added so far */

/* --- compression; one thread at a time each --- */
struct fmt_deflater;
struct fmt_deflater *fmt_deflater_create(void); /* NULL: no memory */
void fmt_deflater_destroy(struct fmt_deflater *d);
/* Bytes of the stream at @dst, which has room for @len; 0: it would not be shorter. */
uint32_t fmt_deflate(struct fmt_deflater *d, const void *src, uint32_t len, void *dst);
struct fmt_inflater;
struct fmt_inflater *fmt_inflater_create(void);
void fmt_inflater_destroy(struct fmt_inflater *i);
/* Exactly @dst_len bytes of a stream that takes all of @src: else -EUCLEAN. */
int fmt_inflate(struct fmt_inflater *i, const void *src, uint32_t src_len, void *dst,
		uint32_t dst_len);

#endif
