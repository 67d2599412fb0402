/* SPDX-License-Identifier: MIT */
/* source.c - an image file as a source of bytes. Any thread: an image's calls are. */
#include "engine/source.h"

static int image_extent(void *arg, uint64_t offset, struct eng_extent *ret, struct fmt_error *err)
{
	return eng_image_extent(arg, offset, ret, err);
}

static int image_read(void *arg, void *buf, size_t len, uint64_t offset, struct fmt_error *err)
{
	return eng_image_read(arg, buf, len, offset, err);
}

struct eng_source eng_image_source(struct eng_image *image)
{
	return (struct eng_source){
		.size = eng_image_size(image),
		.extent = image_extent,
		.read = image_read,
		.arg = image,
	};
}
