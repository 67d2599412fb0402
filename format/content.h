/* SPDX-License-Identifier: MIT */
/*
 * content.h - a checksum of what a disk's image file holds, by which one is known again that has changed
 * since it was written (spec/stream.md MF-5). Parts may be added in any order, and by several threads into
 * sums of their own. Pure, any thread.
 */
#ifndef FORMAT_CONTENT_H
#define FORMAT_CONTENT_H

#include <stddef.h>
#include <stdint.h>

#define FMT_SECTOR 512u

struct fmt_content {
	uint64_t lo, hi;
};

/* @offset and @len are multiples of FMT_SECTOR; no sector may be added twice. */
void fmt_content_add(struct fmt_content *c, const void *bytes, size_t len, uint64_t offset);
void fmt_content_get(const struct fmt_content *c, uint8_t ret[16]);

#endif
