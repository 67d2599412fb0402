/* SPDX-License-Identifier: MIT */
/*
 * le.h - little-endian integers as they lie on disk. Each wraps a byte array: no padding, no
 * alignment, and no use without the accessor (spec/format.md, "Byte order").
 *
 * The bytes are moved by memcpy(): gcc 12 at -O2 loses stores of single bytes whose value comes
 * from a call (a vectorizer's fault; format_header's tests found it).
 */
#ifndef FORMAT_LE_H
#define FORMAT_LE_H

#include <endian.h>
#include <stdint.h>
#include <string.h>

typedef struct {
	uint8_t b[2];
} le16;
typedef struct {
	uint8_t b[4];
} le32;
typedef struct {
	uint8_t b[8];
} le64;

static inline uint16_t le16_get(le16 v)
{
	uint16_t n;

	memcpy(&n, v.b, sizeof(n));
	return le16toh(n);
}

static inline uint32_t le32_get(le32 v)
{
	uint32_t n;

	memcpy(&n, v.b, sizeof(n));
	return le32toh(n);
}

static inline uint64_t le64_get(le64 v)
{
	uint64_t n;

	memcpy(&n, v.b, sizeof(n));
	return le64toh(n);
}

static inline le16 le16_make(uint16_t v)
{
	le16 r;

	v = htole16(v);
	memcpy(r.b, &v, sizeof(v));
	return r;
}

static inline le32 le32_make(uint32_t v)
{
	le32 r;

	v = htole32(v);
	memcpy(r.b, &v, sizeof(v));
	return r;
}

static inline le64 le64_make(uint64_t v)
{
	le64 r;

	v = htole64(v);
	memcpy(r.b, &v, sizeof(v));
	return r;
}

#endif
