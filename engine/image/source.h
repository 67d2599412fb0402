/* SPDX-License-Identifier: MIT */
/*
 * source.h - a disk's content as what copies and compares it sees it: an image file, or whatever else
 * can tell extents and be read.
 */
#ifndef ENGINE_SOURCE_H
#define ENGINE_SOURCE_H

#include "engine/image/image.h"

struct eng_source {
	uint64_t size; /* bytes */
	/*
	 * The state at @offset, and for how long (ret->start, length, state); neighbours may be alike.
	 * One thread at a time: the one that gave the source away.
	 */
	int (*extent)(void *arg, uint64_t offset, struct eng_extent *ret, struct fmt_error *err);
	/* The disk's content, holes and zeros too. Several threads at once. */
	int (*read)(void *arg, void *buf, size_t len, uint64_t offset, struct fmt_error *err);
	void *arg;
};

/* @image stays the caller's. */
struct eng_source eng_image_source(struct eng_image *image);

#endif
