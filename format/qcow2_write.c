/* SPDX-License-Identifier: MIT */
/*
 * qcow2_write.c - the pieces of a new qcow2 image as bytes: header, table entries, reference counts,
 * compressed clusters (spec/qcow2.md, "Writing"). Where they lie is the engine's business. Pure
 * functions, any thread; a deflater keeps zlib's memory between clusters.
 */
#include "format/qcow2.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#define BIT(n)     (UINT64_C(1) << (n))
#define COPIED     BIT(63)
#define COMPRESSED BIT(62)
#define READS_ZERO BIT(0)

enum {
	MAGIC = 0x514649fb,
	REFCOUNT_ORDER = 4, /* 16 bits */
	HEADER_LEN = 112,
	EXT_BACKING_FORMAT = 0xe2792aca,
	EXT_HEAD = 8,
	PLACE_BITS = 56, /* of L1 and L2 entries */
};

struct fmt_qcow2_deflater {
	z_stream z;
};

static void put16(uint8_t *p, uint16_t v)
{
	p[0] = (uint8_t)(v >> 8);
	p[1] = (uint8_t)v;
}

static void put32(uint8_t *p, uint32_t v)
{
	put16(p, (uint16_t)(v >> 16));
	put16(p + 2, (uint16_t)v);
}

static void put64(uint8_t *p, uint64_t v)
{
	put32(p, (uint32_t)(v >> 32));
	put32(p + 4, (uint32_t)v);
}

/* --- header --- */

/* Where the backing file's name begins: behind its format and the end of the extensions. */
static uint32_t name_place(const struct fmt_qcow2_new *new)
{
	return HEADER_LEN + EXT_HEAD + ((uint32_t)strlen(new->backing_format) + 7) / 8 * 8 +
	       EXT_HEAD;
}

/* Q2W-2: our own reader refuses what is no bare name (Q2-31), and so does anybody's good sense. */
static int check_backing(const struct fmt_qcow2_new *new, struct fmt_error *err)
{
	const char *name = new->backing, *format = new->backing_format;
	size_t len;

	if (!name)
		return 0;
	len = strlen(name);
	if (!len || strpbrk(name, "/:") || !strcmp(name, ".") || !strcmp(name, ".."))
		return fmt_fail(err, -EINVAL,
				"qcow2 backing file \"%.80s\": expected a bare file name (Q2W-2)",
				name);
	if (!format || (strcmp(format, "qcow2") && strcmp(format, "raw")))
		return fmt_fail(err, -EINVAL,
				"qcow2 backing format \"%.20s\": expected qcow2 or raw (Q2W-2)",
				format ? format : "");
	if (len > FMT_QCOW2_MAX_BACKING || name_place(new) + len > BIT(new->cluster_bits))
		return fmt_fail(err, -EINVAL,
				"qcow2 backing file name of %zu bytes: no room in the first cluster "
				"(Q2W-2)",
				len);
	return 0;
}

int fmt_qcow2_new_check(struct fmt_qcow2_new *new, struct fmt_error *err)
{
	uint64_t span, entries;
	int r;

	if (new->cluster_bits < FMT_QCOW2_MIN_CLUSTER_BITS ||
	    new->cluster_bits > FMT_QCOW2_MAX_CLUSTER_BITS)
		return fmt_fail(err, -EINVAL,
				"qcow2 clusters of 2^%" PRIu32 " bytes, expected 2^%d to 2^%d",
				new->cluster_bits, FMT_QCOW2_MIN_CLUSTER_BITS,
				FMT_QCOW2_MAX_CLUSTER_BITS);
	if (new->size % 512 || new->size > INT64_MAX)
		return fmt_fail(err, -EINVAL,
				"qcow2 image of %" PRIu64 " bytes, expected a multiple of 512",
				new->size);
	r = check_backing(new, err);
	if (r < 0)
		return r;
	span = BIT(2 * new->cluster_bits - 3);
	entries = new->size / span + (new->size % span != 0);
	/* Q2W-4: behind the header and the refcount block of region 0, all in that region. */
	if (entries > FMT_QCOW2_MAX_L1_ENTRIES ||
	    entries * 8 > BIT(2 * new->cluster_bits - 1) - BIT(new->cluster_bits + 1))
		return fmt_fail(err, -EFBIG,
				"qcow2 image of %" PRIu64 " bytes in clusters of %" PRIu64
				": the L1 table would have %" PRIu64
				" entries; larger clusters need fewer (Q2W-4)",
				new->size, BIT(new->cluster_bits), entries);
	new->l1_entries = (uint32_t)entries;
	return 0;
}

void fmt_qcow2_encode(const struct fmt_qcow2_new *new, void *cluster)
{
	uint8_t *b = cluster, *ext = b + HEADER_LEN;
	size_t len;

	memset(b, 0, BIT(new->cluster_bits));
	put32(b, MAGIC);
	put32(b + 4, 3);
	put32(b + 20, new->cluster_bits);
	put64(b + 24, new->size);
	put32(b + 36, new->l1_entries);
	put64(b + 40, new->l1_offset);
	put64(b + 48, new->refcount_offset);
	put32(b + 56, new->refcount_clusters);
	put32(b + 96, REFCOUNT_ORDER);
	put32(b + 100, HEADER_LEN);
	if (!new->backing)
		return;
	len = strlen(new->backing_format);
	put32(ext, EXT_BACKING_FORMAT);
	put32(ext + 4, (uint32_t)len);
	memcpy(ext + EXT_HEAD, new->backing_format, len);
	put64(b + 8, name_place(new));
	put32(b + 16, (uint32_t)strlen(new->backing));
	memcpy(b + name_place(new), new->backing, strlen(new->backing));
}

/* --- entries --- */

void fmt_qcow2_put_l1(uint8_t raw[8], uint64_t l2)
{
	assert(l2 && l2 < BIT(PLACE_BITS));
	put64(raw, l2 | COPIED);
}

void fmt_qcow2_put_data(uint8_t raw[8], uint64_t host)
{
	assert(host && host < BIT(PLACE_BITS) && host % 512 == 0);
	put64(raw, host | COPIED);
}

void fmt_qcow2_put_zero(uint8_t raw[8])
{
	put64(raw, READS_ZERO);
}

int fmt_qcow2_put_compressed(uint8_t raw[8], uint32_t cluster_bits, uint64_t host, uint32_t len)
{
	uint32_t offset_bits = 62 - (cluster_bits - 8);
	uint64_t more = (host + len - 1) / 512 - host / 512; /* sectors beyond the first */

	assert(len && len < BIT(cluster_bits));
	if (host >= BIT(offset_bits))
		return -EFBIG;
	put64(raw, COMPRESSED | more << offset_bits | host);
	return 0;
}

void fmt_qcow2_put_refcount_block(uint8_t raw[8], uint64_t place)
{
	put64(raw, place);
}

void fmt_qcow2_add_reference(uint8_t raw[FMT_QCOW2_REFCOUNT_BYTES])
{
	uint32_t count = (uint32_t)raw[0] << 8 | raw[1];

	assert(count < UINT16_MAX);
	put16(raw, (uint16_t)(count + 1));
}

/* --- compressed clusters --- */

struct fmt_qcow2_deflater *fmt_qcow2_deflater_create(void)
{
	struct fmt_qcow2_deflater *d = calloc(1, sizeof(*d));

	if (d && deflateInit2(&d->z, 6, Z_DEFLATED, -12, 9, Z_DEFAULT_STRATEGY) != Z_OK) {
		free(d);
		d = NULL;
	}
	return d;
}

void fmt_qcow2_deflater_destroy(struct fmt_qcow2_deflater *d)
{
	if (!d)
		return;
	deflateEnd(&d->z);
	free(d);
}

uint32_t fmt_qcow2_deflate(struct fmt_qcow2_deflater *d, const void *src, uint32_t cluster,
			   void *dst)
{
	z_stream *z = &d->z;

	deflateReset(z);
	deflateTune(z, 4, 8, 32, 16); /* a reset forgets it */
	z->next_in = (void *)src;
	z->avail_in = cluster;
	z->next_out = dst;
	z->avail_out = cluster - 1;
	return deflate(z, Z_FINISH) == Z_STREAM_END ? cluster - 1 - z->avail_out : 0;
}
