/* SPDX-License-Identifier: MIT */
/*
 * uuid.c - ids as text and back: 8-4-4-4-12 hexadecimal digits, written in lower case, read in
 * either. Pure functions, any thread.
 */
#include "format/uuid.h"

#include <errno.h>

static bool is_dash(unsigned i)
{
	return i == 8 || i == 13 || i == 18 || i == 23;
}

static int hex_value(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	if (c >= 'A' && c <= 'F')
		return c - 'A' + 10;
	return -1;
}

void fmt_uuid_from_random(const uint8_t random[16], struct fmt_uuid *ret)
{
	memcpy(ret->b, random, 16);
	ret->b[6] = (ret->b[6] & 0x0f) | 0x40; /* version 4 */
	ret->b[8] = (ret->b[8] & 0x3f) | 0x80; /* RFC 4122 variant */
}

void fmt_uuid_format(const struct fmt_uuid *id, char text[FMT_UUID_TEXT])
{
	static const char digits[] = "0123456789abcdef";
	unsigned i = 0;

	for (unsigned byte = 0; byte < 16; byte++) {
		if (is_dash(i))
			text[i++] = '-';
		text[i++] = digits[id->b[byte] >> 4];
		text[i++] = digits[id->b[byte] & 15];
	}
	text[i] = '\0';
}

int fmt_uuid_parse(const char *text, struct fmt_uuid *ret)
{
	struct fmt_uuid id;
	unsigned i = 0;

	if (strnlen(text, FMT_UUID_TEXT) != FMT_UUID_TEXT - 1)
		return -EINVAL;
	for (unsigned byte = 0; byte < 16; byte++) {
		int high, low;

		if (is_dash(i) && text[i++] != '-')
			return -EINVAL;
		high = hex_value(text[i++]);
		low = hex_value(text[i++]);
		if (high < 0 || low < 0)
			return -EINVAL;
		id.b[byte] = (uint8_t)(high << 4 | low);
	}
	*ret = id;
	return 0;
}
