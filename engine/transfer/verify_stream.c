/* SPDX-License-Identifier: MIT */
/*
 * verify_stream.c - a stream read from its first byte to its last, every block compared (VF-2). One
 * thread, the caller's.
 */
#include <errno.h>
#include <stdlib.h>

#include "engine/transfer/verify.h"

static int check_batch(const struct eng_stream_batch *batch, const struct fmt_manifest *m,
		       struct fmt_inflater *inflater, uint8_t *room, const char *name,
		       struct fmt_error *err)
{
	const uint8_t *data;
	int r = 0;

	for (unsigned i = 0; r == 0 && i < batch->count; i++) {
		const struct fmt_frame *f = &batch->frames[i].f;

		if (f->type == FMT_FRAME_DATA)
			r = eng_stream_frame_open(batch, i, m->disks[f->disk].block_bits, inflater,
						  room, name, err, &data);
	}
	return r;
}

int eng_verify_stream(const struct eng_stream_source *source,
		      int (*progress)(void *arg, uint64_t done), void *arg, struct fmt_error *err,
		      struct eng_verify_stream *ret)
{
	struct fmt_inflater *inflater = fmt_inflater_create();
	uint8_t *room = malloc(FMT_FRAME_BYTES_MAX);
	struct eng_stream_batch batch;
	struct fmt_cursor cursor;
	uint64_t zeros;
	int r = eng_stream_batch_init(&batch);

	*ret = (struct eng_verify_stream){.in = NULL};
	if (r < 0 || !inflater || !room)
		r = fmt_fail(err, -ENOMEM, "out of memory");
	if (r == 0)
		r = eng_stream_in_open(source, err, &ret->in);
	while (r == 0) {
		r = eng_stream_in_next(ret->in, &batch, err);
		if (r <= 0)
			break;
		r = check_batch(&batch, eng_stream_in_manifest(ret->in), inflater, room,
				source->name, err);
		if (r < 0)
			break;
		eng_stream_in_totals(ret->in, &cursor, &ret->bytes, &zeros);
		ret->frames = cursor.seq;
		if (progress && progress(arg, eng_stream_in_offset(ret->in)))
			r = fmt_fail(err, -ECANCELED, "%s: cancelled", source->name);
	}
	eng_stream_batch_fini(&batch);
	fmt_inflater_destroy(inflater);
	free(room);
	return r;
}
