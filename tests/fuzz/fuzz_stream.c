/* SPDX-License-Identifier: MIT */
/*
 * fuzz_stream.c - any bytes as a stream, read as an import reads it: header, manifest, frames, blocks. The
 * first byte says whether checksums are put right before, so that what lies behind them is reached: of
 * the header, the manifest, each frame, and of blocks that are not compressed. The seeds in corpus/ were
 * made by vmimg snapshot export. Invariants:
 * - no crash, no undefined behaviour, no leak; bounded memory and time
 * - frames ascend, stay on their disks and in their numbers; payloads have their blocks' length
 * - what is refused has a text; what is taken as a whole is taken again
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/transfer/stream_in.h"
#include "format/layer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static void check(bool ok, const char *what)
{
	if (!ok) {
		fprintf(stderr, "violated: %s\n", what);
		abort();
	}
}

struct bytes {
	const uint8_t *p;
	size_t len, at;
};

static ssize_t read_bytes(void *arg, void *buf, size_t len, struct fmt_error *err)
{
	struct bytes *b = arg;
	size_t n = b->len - b->at;

	(void)err;
	n = n < len ? n : len;
	n = n < 4099 ? n : 4099; /* pieces, as of a pipe */
	memcpy(buf, b->p + b->at, n);
	b->at += n;
	return (ssize_t)n;
}

/* --- checksums put right --- */

static size_t fix_frame(uint8_t *p, size_t len, uint64_t salt)
{
	struct fmt_frame f;
	size_t tail, size;

	if (len < FMT_FRAME_HEADER || fmt_frame_decode(p, &f, NULL) < 0)
		return 0;
	tail = fmt_frame_tail(&f);
	size = FMT_FRAME_HEADER + tail + f.length;
	if (len < size)
		return 0;
	for (uint32_t i = 0; f.type == FMT_FRAME_DATA && !f.flags && i < f.count; i++)
		if (f.length == (uint64_t)f.count << 12)
			fmt_frame_put_csum(p + FMT_FRAME_HEADER, i,
					   fmt_block_csum(p + FMT_FRAME_HEADER + tail +
								  ((size_t)i << 12),
							  4096));
	fmt_frame_encode(&f, salt, p + FMT_FRAME_HEADER, p);
	return size;
}

static void fix(uint8_t *p, size_t len)
{
	struct fmt_stream s = {.incompat = FMT_STREAM_DEFLATE};
	size_t at, size;
	le32 manifest;

	if (len < FMT_STREAM_HEADER)
		return;
	memcpy(&manifest, p + 0x0c, sizeof(manifest));
	s.manifest_len = le32_get(manifest);
	if (s.manifest_len < 2 || s.manifest_len > len - FMT_STREAM_HEADER)
		return;
	memcpy(s.id.b, p + 0x18, sizeof(s.id.b));
	s.id.b[0] |= 1;
	s.manifest_csum = fmt_stream_manifest_csum(p + FMT_STREAM_HEADER, s.manifest_len);
	fmt_stream_encode(&s, p);
	for (at = FMT_STREAM_HEADER + s.manifest_len;
	     (size = fix_frame(p + at, len - at, fmt_stream_salt(&s))) > 0; at += size)
		;
}

/* --- reading --- */

struct place {
	uint32_t disk;
	uint64_t next, seq;
};

static void check_frame(const struct fmt_manifest *m, const struct fmt_frame *f, struct place *at)
{
	check(f->seq == at->seq, "frames are numbered");
	check(f->disk < m->disk_count, "a frame's disk is there");
	check(f->disk > at->disk || (f->disk == at->disk && f->start >= at->next), "frames ascend");
	check(f->count && f->start + f->count > f->start &&
		      f->start + f->count <= fmt_manifest_blocks(&m->disks[f->disk]),
	      "a frame is inside its disk");
	at->disk = f->disk;
	at->next = f->start + f->count;
	at->seq++;
}

/* 0: whole. */
static int read_stream(const uint8_t *data, size_t len)
{
	static uint8_t room[FMT_FRAME_BYTES_MAX];
	struct bytes b = {.p = data, .len = len};
	struct eng_stream_source source = {.read = read_bytes, .arg = &b, .name = "stream"};
	struct fmt_inflater *inflater = fmt_inflater_create();
	struct fmt_error err = {""};
	struct eng_stream_batch batch;
	struct eng_stream_in *in = NULL;
	struct place at = {0};
	int r = eng_stream_batch_init(&batch);

	if (r == 0)
		r = eng_stream_in_open(&source, &err, &in);
	while (r == 0) {
		r = eng_stream_in_next(in, &batch, &err);
		if (r <= 0)
			break;
		r = 0;
		for (unsigned i = 0; r == 0 && i < batch.count; i++) {
			const struct fmt_manifest *m = eng_stream_in_manifest(in);
			const struct fmt_frame *f = &batch.frames[i].f;
			const uint8_t *blocks;

			check_frame(m, f, &at);
			if (f->type == FMT_FRAME_DATA)
				r = eng_stream_frame_open(&batch, i, m->disks[f->disk].block_bits,
							  inflater, room, "stream", &err, &blocks);
		}
	}
	check(r >= 0 || err.text[0], "a refusal has a text");
	eng_stream_in_close(in);
	eng_stream_batch_fini(&batch);
	fmt_inflater_destroy(inflater);
	return r;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	uint8_t *copy;
	int r;

	if (!len)
		return 0;
	copy = malloc(len);
	if (!copy)
		return 0;
	memcpy(copy, data + 1, len - 1);
	if (data[0] & 1)
		fix(copy, len - 1);
	r = read_stream(copy, len - 1);
	if (r == 0)
		check(read_stream(copy, len - 1) == 0, "a whole stream is whole again");
	free(copy);
	return 0;
}
