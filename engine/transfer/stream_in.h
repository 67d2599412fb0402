/* SPDX-License-Identifier: MIT */
/*
 * stream_in.h - a stream read from front to back, everything in it checked (spec/stream.md ST-9): import,
 * verification, and where an interrupted export goes on.
 *
 * One thread reads; batches it has given away may be opened by others.
 */
#ifndef ENGINE_STREAM_IN_H
#define ENGINE_STREAM_IN_H

#include <sys/types.h>

#include "engine/io/io.h"
#include "format/manifest.h"
#include "format/stream.h"

/* Where the bytes come from: read() gives up to @len, 0 at the end, or a negative errno. */
struct eng_stream_source {
	ssize_t (*read)(void *arg, void *buf, size_t len, struct fmt_error *err);
	void *arg;
	const char *name; /* for messages */
};

#define ENG_BATCH_FRAMES 256u
#define ENG_BATCH_BYTES  (512u << 10)                            /* no more frames behind that */
#define ENG_BATCH_DATA   (ENG_BATCH_BYTES + FMT_FRAME_BYTES_MAX) /* of blocks, at most */

struct eng_batch_frame {
	struct fmt_frame f;
	uint64_t at; /* in the stream, for messages */
	size_t tail, payload;
};

/* Some frames in a row, of one disk; none of them END. */
struct eng_stream_batch {
	struct eng_batch_frame frames[ENG_BATCH_FRAMES];
	unsigned count, max; /* @max: the reader's to set; 0: as many as there is room for */
	uint8_t *bytes;      /* tails and payloads */
	size_t len;
	uint64_t data; /* bytes of the blocks */
};
int eng_stream_batch_init(struct eng_stream_batch *batch); /* -ENOMEM */
void eng_stream_batch_fini(struct eng_stream_batch *batch);

struct eng_stream_in;

/* Reads header and manifest. @source stays the caller's. */
int eng_stream_in_open(const struct eng_stream_source *source, struct fmt_error *err,
		       struct eng_stream_in **ret);
void eng_stream_in_close(struct eng_stream_in *in); /* NULL is fine */
const struct fmt_manifest *eng_stream_in_manifest(const struct eng_stream_in *in);
const struct fmt_stream *eng_stream_in_head(const struct eng_stream_in *in);
/* 1: the next frames are in @batch, their payloads not looked at yet; 0: END, and nothing behind it. */
int eng_stream_in_next(struct eng_stream_in *in, struct eng_stream_batch *batch,
		       struct fmt_error *err);
/* Where it is: behind the frames given away. */
uint64_t eng_stream_in_offset(const struct eng_stream_in *in);
void eng_stream_in_totals(const struct eng_stream_in *in, struct fmt_cursor *cursor,
			  uint64_t *data_bytes, uint64_t *zero_bytes);
/* Of what was read so far; the caller's. NULL: no memory. */
struct fmt_digest *eng_stream_in_take_digest(struct eng_stream_in *in);

/*
 * The blocks of a DATA frame, inflated where needed into @room (f.count << @bits bytes), compared with
 * their checksums. *@ret lies in @room or in the batch.
 */
int eng_stream_frame_open(const struct eng_stream_batch *batch, unsigned frame, uint32_t bits,
			  struct fmt_inflater *inflater, uint8_t *room, const char *name,
			  struct fmt_error *err, const uint8_t **ret);

#endif
