/* SPDX-License-Identifier: MIT */
/*
 * qcow2.c - decodes a qcow2 image's header, table entries and compressed clusters (spec/qcow2.md).
 * Every byte may be hostile: all is checked in a local before the caller's struct is written, no
 * count sizes anything before it is bounded, and bits that the format reserves must be zero. Pure
 * functions; any thread.
 */
#include "format/qcow2.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <zlib.h>

#define MAGIC       UINT32_C(0x514649fb) /* "QFI" 0xfb */
#define BIT(n)      (UINT64_C(1) << (n))
#define OFFSET_MASK UINT64_C(0x00fffffffffffe00) /* of L1 and L2 entries: bits 9..55 */
#define COPIED      BIT(63)                      /* matters to writers only */
#define COMPRESSED  BIT(62)
#define READS_ZERO  BIT(0)

#define KNOWN_INCOMPATIBLE                                                                         \
	(FMT_QCOW2_DIRTY | FMT_QCOW2_CORRUPT | FMT_QCOW2_EXTERNAL_DATA |                           \
	 FMT_QCOW2_COMPRESSION_TYPE | FMT_QCOW2_EXTENDED_L2)

/* Where the header's fields lie; qcow2 is big-endian. */
enum {
	AT_VERSION = 4,
	AT_BACKING_OFFSET = 8,
	AT_BACKING_LEN = 16,
	AT_CLUSTER_BITS = 20,
	AT_SIZE = 24,
	AT_CRYPT = 32,
	AT_L1_SIZE = 36,
	AT_L1_OFFSET = 40,
	AT_SNAPSHOTS = 60,
	/* version 3 */
	AT_INCOMPATIBLE = 72,
	AT_COMPATIBLE = 80,
	AT_AUTOCLEAR = 88,
	AT_REFCOUNT_ORDER = 96,
	AT_HEADER_LEN = 100,
	AT_COMPRESSION = 104,
	V3_MIN_HEADER = 104,
};

enum {
	EXT_END = 0,
	EXT_BACKING_FORMAT = 0xe2792aca,
	EXT_FEATURE_NAMES = 0x6803f857,
	EXT_DATA_FILE = 0x44415441,
	FEATURE_NAME_LEN = 48, /* type, bit, 46 bytes of name */
};

/* What the extensions say; points into the header's bytes. */
struct extensions {
	const uint8_t *backing_format, *names, *data_file;
	uint32_t backing_format_len, names_len, data_file_len;
};

static uint32_t be32(const uint8_t *p)
{
	return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static uint64_t be64(const uint8_t *p)
{
	return (uint64_t)be32(p) << 32 | be32(p + 4);
}

bool fmt_qcow2_is(const void *buf, size_t len)
{
	return len >= 4 && be32(buf) == MAGIC;
}

/* Q2-1, Q2-2, Q2-3 */
int fmt_qcow2_head_len(const void *buf, size_t len, struct fmt_error *err, uint32_t *ret)
{
	const uint8_t *b = buf;
	uint32_t version, bits;

	if (!fmt_qcow2_is(b, len))
		return fmt_fail(err, -EINVAL, "qcow2 header: the magic number is missing");
	if (len < FMT_QCOW2_MIN_HEADER)
		return fmt_fail(err, -EUCLEAN, "qcow2 header: %zu bytes, expected at least %d", len,
				FMT_QCOW2_MIN_HEADER);
	version = be32(b + AT_VERSION);
	if (version != 2 && version != 3)
		return fmt_fail(err, -ENOTSUP, "qcow2 header: version %" PRIu32 ", expected 2 or 3",
				version);
	bits = be32(b + AT_CLUSTER_BITS);
	if (bits < FMT_QCOW2_MIN_CLUSTER_BITS || bits > FMT_QCOW2_MAX_CLUSTER_BITS)
		return fmt_fail(err, -EUCLEAN,
				"qcow2 header: cluster_bits %" PRIu32 ", expected %d to %d", bits,
				FMT_QCOW2_MIN_CLUSTER_BITS, FMT_QCOW2_MAX_CLUSTER_BITS);
	*ret = UINT32_C(1) << bits;
	return 0;
}

/* Q2-6: extensions lie between the header and the backing file's name or the cluster's end. */
static int decode_extensions(const uint8_t *b, uint64_t pos, uint64_t end, struct fmt_error *err,
			     struct extensions *ret)
{
	struct extensions ext = {0};

	while (pos + 8 <= end) {
		uint32_t type = be32(b + pos), len = be32(b + pos + 4);

		if (type == EXT_END)
			break;
		pos += 8;
		if (len > end - pos)
			return fmt_fail(err, -EUCLEAN,
					"qcow2 header extension 0x%08" PRIx32 " at %" PRIu64
					": %" PRIu32 " bytes, room for %" PRIu64,
					type, pos - 8, len, end - pos);
		switch (type) {
		case EXT_BACKING_FORMAT:
			ext.backing_format = b + pos;
			ext.backing_format_len = len;
			break;
		case EXT_FEATURE_NAMES:
			ext.names = b + pos;
			ext.names_len = len;
			break;
		case EXT_DATA_FILE:
			ext.data_file = b + pos;
			ext.data_file_len = len;
			break;
		default: /* compatible by definition */ break;
		}
		pos += (uint64_t)(len + UINT64_C(7)) & ~UINT64_C(7);
	}
	*ret = ext;
	return 0;
}

/* Copies a name of @len bytes; -EUCLEAN when it has a NUL inside or no room in @size. */
static int copy_name(const char *what, const uint8_t *src, uint32_t len, struct fmt_error *err,
		     char *dst, size_t size)
{
	if (len >= size)
		return fmt_fail(err, -EUCLEAN, "qcow2 %s: %" PRIu32 " bytes, expected at most %zu",
				what, len, size - 1);
	if (memchr(src, 0, len))
		return fmt_fail(err, -EUCLEAN, "qcow2 %s: contains a NUL byte", what);
	memcpy(dst, src, len);
	dst[len] = '\0';
	return 0;
}

/* Q2-10: names the lowest unknown incompatible feature, in the image's own words if it has any. */
static int refuse_unknown(uint64_t unknown, const struct extensions *ext, struct fmt_error *err)
{
	int bit = __builtin_ctzll(unknown);
	char name[FEATURE_NAME_LEN - 1] = "no name recorded";

	for (uint32_t at = 0; at + FEATURE_NAME_LEN <= ext->names_len; at += FEATURE_NAME_LEN) {
		const uint8_t *entry = ext->names + at;

		if (entry[0] == 0 && entry[1] == bit) /* type 0: incompatible */
			snprintf(name, sizeof(name), "%.46s", (const char *)entry + 2);
	}
	return fmt_fail(err, -ENOTSUP, "qcow2 header: unknown incompatible feature, bit %d (%s)",
			bit, name);
}

/* Q2-7 to Q2-12: what we do not read is refused by name. */
static int check_features(const uint8_t *b, const struct fmt_qcow2 *hdr, uint32_t header_len,
			  const struct extensions *ext, struct fmt_error *err)
{
	uint32_t crypt = be32(b + AT_CRYPT);
	bool has_type = hdr->incompatible & FMT_QCOW2_COMPRESSION_TYPE;
	uint8_t type = header_len > AT_COMPRESSION ? b[AT_COMPRESSION] : 0;

	if (crypt)
		return fmt_fail(err, -ENOTSUP,
				"qcow2 header: encrypted image (%s, method %" PRIu32 ")",
				crypt == 1   ? "AES"
				: crypt == 2 ? "LUKS"
					     : "unknown",
				crypt);
	if (hdr->incompatible & ~KNOWN_INCOMPATIBLE)
		return refuse_unknown(hdr->incompatible & ~KNOWN_INCOMPATIBLE, ext, err);
	if (hdr->incompatible & FMT_QCOW2_EXTERNAL_DATA)
		return fmt_fail(err, -ENOTSUP, "qcow2 header: external data file \"%.*s\"",
				(int)(ext->data_file_len < 128 ? ext->data_file_len : 128),
				ext->data_file ? (const char *)ext->data_file : "");
	if (type > 1)
		return fmt_fail(err, -ENOTSUP, "qcow2 header: unknown compression type %d", type);
	if (type == 1)
		return fmt_fail(err, -ENOTSUP, "qcow2 header: zstd compression, expected zlib");
	if (has_type)
		return fmt_fail(err, -EUCLEAN,
				"qcow2 header: the compression type feature is set, "
				"but the type is zlib or missing");
	if (hdr->incompatible & FMT_QCOW2_CORRUPT)
		return fmt_fail(err, -EUCLEAN,
				"qcow2 header: marked corrupt by its last user; "
				"qemu-img check -r all may repair it");
	if (hdr->extended_l2 && hdr->cluster_bits < 14)
		return fmt_fail(err, -EUCLEAN,
				"qcow2 header: extended L2 entries with cluster_bits %" PRIu32
				", expected 14 or more",
				hdr->cluster_bits);
	return 0;
}

/* Q2-4: the part that version 2 has not; *@header_len is set for both. */
static int decode_v3(const uint8_t *b, size_t len, struct fmt_error *err, struct fmt_qcow2 *hdr,
		     uint32_t *header_len)
{
	*header_len = FMT_QCOW2_MIN_HEADER;
	if (hdr->version == 2)
		return 0;
	if (len < V3_MIN_HEADER)
		return fmt_fail(err, -EUCLEAN, "qcow2 header: %zu bytes, expected at least %d", len,
				V3_MIN_HEADER);
	*header_len = be32(b + AT_HEADER_LEN);
	if (*header_len < V3_MIN_HEADER || *header_len % 8 || *header_len > len)
		return fmt_fail(err, -EUCLEAN,
				"qcow2 header: header_length %" PRIu32
				", expected a multiple of 8 from %d to %zu",
				*header_len, V3_MIN_HEADER, len);
	if (be32(b + AT_REFCOUNT_ORDER) > 6)
		return fmt_fail(err, -EUCLEAN,
				"qcow2 header: refcount_order %" PRIu32 ", expected at most 6",
				be32(b + AT_REFCOUNT_ORDER));
	hdr->incompatible = be64(b + AT_INCOMPATIBLE);
	hdr->compatible = be64(b + AT_COMPATIBLE);
	hdr->autoclear = be64(b + AT_AUTOCLEAR);
	hdr->extended_l2 = hdr->incompatible & FMT_QCOW2_EXTENDED_L2;
	return 0;
}

/* Q2-13, Q2-14: the size, and an L1 table that is long enough for it and bounded. */
static int decode_l1(const uint8_t *b, struct fmt_error *err, struct fmt_qcow2 *hdr)
{
	uint32_t have = be32(b + AT_L1_SIZE);
	uint64_t span, need;

	hdr->l2_bits = hdr->cluster_bits - (hdr->extended_l2 ? 4 : 3);
	hdr->size = be64(b + AT_SIZE);
	if (hdr->size > INT64_MAX)
		return fmt_fail(err, -EUCLEAN,
				"qcow2 header: size %" PRIu64 ", expected at most %" PRId64,
				hdr->size, INT64_MAX);
	span = fmt_qcow2_l2_span(hdr);
	need = hdr->size / span + (hdr->size % span != 0);
	if (have > FMT_QCOW2_MAX_L1_ENTRIES || need > FMT_QCOW2_MAX_L1_ENTRIES)
		return fmt_fail(err, -EFBIG,
				"qcow2 header: L1 table of %" PRIu32 " entries, %" PRIu64
				" needed; the limit is %d",
				have, need, FMT_QCOW2_MAX_L1_ENTRIES);
	if (have < need)
		return fmt_fail(err, -EUCLEAN,
				"qcow2 header: L1 table of %" PRIu32
				" entries, the size needs %" PRIu64,
				have, need);
	hdr->l1_entries = (uint32_t)need;
	hdr->l1_offset = be64(b + AT_L1_OFFSET);
	if (need && (!hdr->l1_offset || (hdr->l1_offset & ((1 << hdr->cluster_bits) - 1)) ||
		     hdr->l1_offset > (uint64_t)INT64_MAX - need * 8))
		return fmt_fail(err, -EUCLEAN,
				"qcow2 header: L1 table at 0x%" PRIx64
				", expected a multiple of %d inside the file",
				hdr->l1_offset, 1 << hdr->cluster_bits);
	return 0;
}

int fmt_qcow2_decode(const void *buf, size_t len, struct fmt_error *err, struct fmt_qcow2 *ret)
{
	const uint8_t *b = buf;
	struct fmt_qcow2 hdr = {0};
	struct extensions ext = {0};
	uint32_t cluster, header_len = 0, name_len;
	uint64_t name, end;
	int r = fmt_qcow2_head_len(b, len, err, &cluster);

	if (r < 0)
		goto out;
	if (len > cluster)
		len = cluster;
	hdr.version = be32(b + AT_VERSION);
	hdr.cluster_bits = be32(b + AT_CLUSTER_BITS);
	hdr.snapshots = be32(b + AT_SNAPSHOTS);
	r = decode_v3(b, len, err, &hdr, &header_len);
	if (r < 0)
		goto out;
	name = be64(b + AT_BACKING_OFFSET); /* Q2-5 */
	name_len = name ? be32(b + AT_BACKING_LEN) : 0;
	if (name && (name < header_len || name > len || name_len > len - name)) {
		r = fmt_fail(err, -EUCLEAN,
			     "qcow2 backing file name: %" PRIu32 " bytes at %" PRIu64
			     ", expected inside %" PRIu32 " to %zu",
			     name_len, name, header_len, len);
		goto out;
	}
	end = name ? name : len;
	r = decode_extensions(b, header_len, end, err, &ext);
	if (r < 0)
		goto out;
	r = check_features(b, &hdr, header_len, &ext, err);
	if (r < 0)
		goto out;
	r = decode_l1(b, err, &hdr);
	if (r < 0)
		goto out;
	r = copy_name("backing file name", b + name, name_len, err, hdr.backing,
		      sizeof(hdr.backing));
	if (r < 0)
		goto out;
	if (ext.backing_format)
		r = copy_name("backing format", ext.backing_format, ext.backing_format_len, err,
			      hdr.backing_format, sizeof(hdr.backing_format));
	if (r < 0)
		goto out;
	*ret = hdr;
out:
	return r;
}

void fmt_qcow2_features(const struct fmt_qcow2 *hdr, char *buf, size_t len)
{
	const struct {
		uint64_t set;
		const char *name;
	} names[] = {
		{hdr->incompatible & FMT_QCOW2_DIRTY, "dirty"},
		{hdr->incompatible & FMT_QCOW2_EXTENDED_L2, "extended-l2"},
		{hdr->compatible & BIT(0), "lazy-refcounts"},
		{hdr->autoclear & BIT(0), "bitmaps"},
		{hdr->snapshots, "internal-snapshots"},
	};
	size_t used = 0;

	snprintf(buf, len, "none");
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		if (names[i].set && used < len)
			used += (size_t)snprintf(buf + used, len - used, "%s%s", used ? ", " : "",
						 names[i].name);
	}
}

uint64_t fmt_qcow2_l2_span(const struct fmt_qcow2 *hdr)
{
	return BIT(hdr->cluster_bits + hdr->l2_bits);
}

uint64_t fmt_qcow2_l1_place(const struct fmt_qcow2 *hdr, uint64_t offset)
{
	return hdr->l1_offset + offset / fmt_qcow2_l2_span(hdr) * 8;
}

uint64_t fmt_qcow2_l2_place(const struct fmt_qcow2 *hdr, uint64_t l2, uint64_t offset)
{
	uint64_t index = (offset >> hdr->cluster_bits) & (BIT(hdr->l2_bits) - 1);

	return l2 + index * (hdr->extended_l2 ? 16 : 8);
}

/* Q2-15, Q2-17: a host cluster's place, aligned, or 0. */
static int decode_place(const struct fmt_qcow2 *hdr, const char *what, uint64_t raw,
			uint64_t reserved, struct fmt_error *err, uint64_t *ret)
{
	uint64_t place = raw & OFFSET_MASK;

	if (raw & reserved)
		return fmt_fail(err, -EUCLEAN,
				"qcow2 %s entry 0x%016" PRIx64 ": reserved bits are set (0x%" PRIx64
				")",
				what, raw, raw & reserved);
	if (place & (BIT(hdr->cluster_bits) - 1))
		return fmt_fail(err, -EUCLEAN,
				"qcow2 %s entry 0x%016" PRIx64
				": the place is no multiple of the cluster size",
				what, raw);
	*ret = place;
	return 0;
}

int fmt_qcow2_l1_decode(const struct fmt_qcow2 *hdr, const uint8_t raw[8], struct fmt_error *err,
			uint64_t *l2)
{
	return decode_place(hdr, "L1", be64(raw), ~(OFFSET_MASK | COPIED), err, l2);
}

/* Q2-18: low bits: the first byte's place; above: how many more sectors the data touches. */
static int decode_compressed(const struct fmt_qcow2 *hdr, uint64_t raw, uint64_t bitmap,
			     struct fmt_error *err, struct fmt_qcow2_cluster *cluster)
{
	uint32_t offset_bits = 62 - (hdr->cluster_bits - 8);
	uint64_t sectors = ((raw & (COMPRESSED - 1)) >> offset_bits) + 1;

	if (raw & COPIED || bitmap)
		return fmt_fail(err, -EUCLEAN,
				"qcow2 L2 entry 0x%016" PRIx64 " of a compressed cluster"
				": %s",
				raw, bitmap ? "it has subclusters" : "it is marked copied");
	cluster->state = FMT_QCOW2_COMPRESSED;
	cluster->host = raw & (BIT(offset_bits) - 1);
	cluster->compressed_len = (uint32_t)(sectors * 512 - cluster->host % 512);
	return 0;
}

int fmt_qcow2_l2_decode(const struct fmt_qcow2 *hdr, const uint8_t raw[16], struct fmt_error *err,
			struct fmt_qcow2_cluster *ret)
{
	struct fmt_qcow2_cluster cluster = {0};
	uint64_t entry = be64(raw), bitmap = hdr->extended_l2 ? be64(raw + 8) : 0;
	uint64_t reserved = ~(OFFSET_MASK | COPIED | COMPRESSED);
	bool zero_flag = hdr->version == 3 && !hdr->extended_l2; /* Q2-16 */
	int r;

	if (entry & COMPRESSED) {
		r = decode_compressed(hdr, entry, bitmap, err, &cluster);
		goto out;
	}
	if (zero_flag)
		reserved &= ~READS_ZERO;
	r = decode_place(hdr, "L2", entry, reserved, err, &cluster.host);
	if (r < 0)
		goto out;
	if (hdr->extended_l2) { /* Q2-19 */
		cluster.allocated = (uint32_t)bitmap;
		cluster.zero = (uint32_t)(bitmap >> 32);
	} else if (zero_flag && entry & READS_ZERO) {
		cluster.zero = UINT32_MAX;
	} else if (cluster.host) {
		cluster.allocated = UINT32_MAX;
	}
	if (cluster.allocated & cluster.zero || (cluster.allocated && !cluster.host)) {
		r = fmt_fail(err, -EUCLEAN,
			     "qcow2 L2 entry 0x%016" PRIx64 " with subclusters 0x%016" PRIx64
			     ": allocated and zero, or allocated nowhere",
			     entry, bitmap);
		goto out;
	}
	cluster.state = cluster.allocated ? FMT_QCOW2_DATA
			: cluster.zero    ? FMT_QCOW2_ZERO
					  : FMT_QCOW2_UNALLOCATED;
out:
	if (r == 0)
		*ret = cluster;
	return r;
}

static enum fmt_qcow2_state subcluster_state(const struct fmt_qcow2_cluster *cluster, uint32_t i)
{
	return cluster->allocated >> i & 1 ? FMT_QCOW2_DATA
	       : cluster->zero >> i & 1    ? FMT_QCOW2_ZERO
					   : FMT_QCOW2_UNALLOCATED;
}

/* A standard cluster is one whose 32 parts are all alike. */
enum fmt_qcow2_state fmt_qcow2_cluster_at(const struct fmt_qcow2 *hdr,
					  const struct fmt_qcow2_cluster *cluster, uint64_t in,
					  uint64_t *len)
{
	uint32_t part_bits = hdr->cluster_bits - 5;
	uint32_t first = (uint32_t)(in >> part_bits), end = first + 1;
	enum fmt_qcow2_state state;

	if (cluster->state == FMT_QCOW2_COMPRESSED) {
		*len = BIT(hdr->cluster_bits) - in;
		return FMT_QCOW2_COMPRESSED;
	}
	state = subcluster_state(cluster, first);
	while (end < FMT_QCOW2_SUBCLUSTERS && subcluster_state(cluster, end) == state)
		end++;
	*len = ((uint64_t)end << part_bits) - in;
	return state;
}

int fmt_qcow2_inflate(const void *src, size_t src_len, void *dst, size_t dst_len)
{
	z_stream z = {.next_in = (void *)src,
		      .avail_in = (uInt)src_len,
		      .next_out = dst,
		      .avail_out = (uInt)dst_len};
	int r;

	if (src_len > UINT32_MAX || dst_len > UINT32_MAX)
		return -EINVAL;
	r = inflateInit2(&z, -12);
	if (r != Z_OK)
		return -ENOMEM;
	r = inflate(&z, Z_FINISH);
	inflateEnd(&z);
	if (r == Z_MEM_ERROR)
		return -ENOMEM;
	/* The stream's end may lie beyond the last sector that the entry names: a full cluster counts. */
	return (r == Z_STREAM_END || r == Z_BUF_ERROR) && z.avail_out == 0 ? 0 : -EUCLEAN;
}
