/* SPDX-License-Identifier: MIT */
/* zero.h - whether bytes are all zero, at memcmp's speed. Pure, any thread. */
#ifndef FORMAT_ZERO_H
#define FORMAT_ZERO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

static inline bool fmt_is_zero(const void *bytes, size_t len)
{
	const uint8_t *p = bytes;

	return !len || (p[0] == 0 && !memcmp(p, p + 1, len - 1));
}

#endif
