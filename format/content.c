/* SPDX-License-Identifier: MIT */
/*
 * content.c - the sum of the sectors' hashes, each bound to its place (MF-5). Sectors of zeros count for
 * nothing, so that a hole is what zeros are. Pure, any thread.
 */
#include "format/content.h"

#include <assert.h>
#include <string.h>
#include <xxhash.h>

#include "format/le.h"

struct place {
	le64 sector, hash;
};

void fmt_content_add(struct fmt_content *c, const void *bytes, size_t len, uint64_t offset)
{
	static const uint8_t zeros[FMT_SECTOR];
	const uint8_t *p = bytes;

	assert(len % FMT_SECTOR == 0 && offset % FMT_SECTOR == 0);
	for (size_t at = 0; at < len; at += FMT_SECTOR) {
		struct place place;
		XXH128_hash_t h;

		if (!memcmp(p + at, zeros, FMT_SECTOR))
			continue;
		place.sector = le64_make((offset + at) / FMT_SECTOR);
		place.hash = le64_make(XXH3_64bits(p + at, FMT_SECTOR));
		h = XXH3_128bits(&place, sizeof(place));
		c->lo += h.low64;
		c->hi += h.high64;
	}
}

void fmt_content_get(const struct fmt_content *c, uint8_t ret[16])
{
	le64 lo = le64_make(c->lo), hi = le64_make(c->hi);

	memcpy(ret, &lo, sizeof(lo));
	memcpy(ret + sizeof(lo), &hi, sizeof(hi));
}
