/* SPDX-License-Identifier: MIT */
/*
 * uuid.h - the 16-byte ids of stores, disks, layers and snapshots. Random (version 4); all zero
 * means none.
 */
#ifndef FORMAT_UUID_H
#define FORMAT_UUID_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

struct fmt_uuid {
	uint8_t b[16];
};

#define FMT_UUID_TEXT 37 /* with the terminating zero */

static inline bool fmt_uuid_equal(const struct fmt_uuid *a, const struct fmt_uuid *b)
{
	return memcmp(a->b, b->b, 16) == 0;
}

static inline bool fmt_uuid_is_none(const struct fmt_uuid *a)
{
	static const struct fmt_uuid none;

	return fmt_uuid_equal(a, &none);
}

/* Makes 16 random bytes a version 4 id. */
void fmt_uuid_from_random(const uint8_t random[16], struct fmt_uuid *ret);
void fmt_uuid_format(const struct fmt_uuid *id, char text[FMT_UUID_TEXT]);
/* -EINVAL when @text is not the canonical 36 characters. */
int fmt_uuid_parse(const char *text, struct fmt_uuid *ret);

#endif
