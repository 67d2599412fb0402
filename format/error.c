/* SPDX-License-Identifier: MIT */
/*
 * error.c - fills a caller-owned error text. Names that come from an image end up in messages, so
 * whatever could upset a terminal or a JSON writer is replaced by '?'. Pure, any thread.
 */
#include "format/error.h"

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

/* Bytes of the well-formed, printable UTF-8 character at @s, 0 when there is none (RFC 3629). */
static size_t character_len(const uint8_t *s)
{
	size_t len = s[0] < 0x80 ? 1 : s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : 4;

	if (s[0] < 0x20 || s[0] == 0x7f || (s[0] >= 0x80 && s[0] < 0xc2) || s[0] > 0xf4)
		return 0;
	for (size_t i = 1; i < len; i++) { /* the terminating NUL ends this, too */
		if ((s[i] & 0xc0) != 0x80)
			return 0;
	}
	if ((s[0] == 0xc2 && s[1] < 0xa0) || /* C1 control characters */
	    (s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xf0 && s[1] < 0x90) || /* overlong */
	    (s[0] == 0xed && s[1] > 0x9f) || (s[0] == 0xf4 && s[1] > 0x8f))   /* no character */
		return 0;
	return len;
}

int fmt_fail(struct fmt_error *err, int code, const char *fmt, ...)
{
	char text[sizeof(err->text)] = ""; /* the arguments may point into *err */
	va_list args;

	if (!err)
		return code;
	va_start(args, fmt);
	vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
	for (uint8_t *s = (uint8_t *)text; *s;) {
		size_t len = character_len(s);

		if (!len)
			*s = '?';
		s += len ? len : 1;
	}
	memcpy(err->text, text, sizeof(text));
	return code;
}
