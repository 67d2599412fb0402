/* SPDX-License-Identifier: MIT */
/*
 * source.c - an image file as a source of bytes. With overlays, the image's own thread looks them up;
 * one raw or qcow2 file is read by whoever asks, so that many threads read, and inflate, at once and no
 * request changes hands. Any thread.
 */
#include "engine/image/source.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "engine/disk/disk.h"
#include "engine/image/image_impl.h"
#include "engine/layer/qcow2.h"

/* --- one file --- */

static int base_extent(void *arg, uint64_t offset, struct eng_extent *ret, struct fmt_error *err)
{
	const struct eng_image *image = arg;
	const struct eng_layer *base = eng_image_base(image);
	uint64_t size = eng_image_size(image), end = eng_base_end(base);
	enum eng_extent_state state = ENG_EXTENT_HOLE;
	struct eng_extent e = {.start = offset, .length = size - offset};
	int r = 0;

	if (offset < end)
		r = eng_base_extent(base, end, offset, err, &e.length, &state, &e.depth);
	if (r < 0)
		return r;
	e.length = e.length < size - offset ? e.length : size - offset;
	e.state = (uint8_t)state;
	*ret = e;
	return 0;
}

static int read_raw(const struct eng_layer *base, void *buf, size_t len, uint64_t offset,
		    struct fmt_error *err)
{
	ssize_t n = eng_io_pread(base->io, base->file, buf, len, offset);

	if (n < 0)
		return fmt_fail(err, (int)n, "%s: cannot read %zu bytes at %" PRIu64 ": %s",
				base->data_path, len, offset, strerror((int)-n));
	if ((size_t)n < len)
		return fmt_fail(err, -EIO, "%s: ended at %" PRIu64 " while it was read",
				base->data_path, offset + (uint64_t)n);
	return 0;
}

static int base_read(void *arg, void *buf, size_t len, uint64_t offset, struct fmt_error *err)
{
	const struct eng_layer *base = eng_image_base(arg);
	uint64_t end = eng_base_end(base), have = offset < end ? end - offset : 0;

	have = have < len ? have : len;
	memset((uint8_t *)buf + have, 0, len - have);
	if (!have)
		return 0;
	return base->kind == FMT_KIND_QCOW2 ? eng_qcow2_read(base->qcow2, buf, have, offset, err)
					    : read_raw(base, buf, have, offset, err);
}

/* --- a chain --- */

static int chain_extent(void *arg, uint64_t offset, struct eng_extent *ret, struct fmt_error *err)
{
	return eng_image_extent(arg, offset, ret, err);
}

static int chain_read(void *arg, void *buf, size_t len, uint64_t offset, struct fmt_error *err)
{
	return eng_image_read(arg, buf, len, offset, err);
}

struct eng_source eng_image_source(struct eng_image *image)
{
	bool one = eng_image_base(image) != NULL;

	return (struct eng_source){
		.size = eng_image_size(image),
		.extent = one ? base_extent : chain_extent,
		.read = one ? base_read : chain_read,
		.arg = image,
	};
}
