/* SPDX-License-Identifier: MIT */
/*
 * error.h - what went wrong, in words. The struct is the caller's; libraries fill it and never
 * print. A message says what, where, what was found and what was expected. Pure, any thread.
 */
#ifndef FORMAT_ERROR_H
#define FORMAT_ERROR_H

struct fmt_error {
	char text[256]; /* valid UTF-8 without control characters, NUL-terminated */
};

/* Fills *@err (NULL is fine) and returns @code, a negative errno: `return fmt_fail(err, -EUCLEAN, ...)`. */
int fmt_fail(struct fmt_error *err, int code, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

#endif
