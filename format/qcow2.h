/* SPDX-License-Identifier: MIT */
/*
 * qcow2.h - the qcow2 image format (spec/qcow2.md): read, rules Q2-n: bytes in, checked structs out,
 * nothing trusted; and the pieces of a new image, rules Q2W-n. No I/O, no memory kept but a deflater's.
 * Any thread.
 */
#ifndef FORMAT_QCOW2_H
#define FORMAT_QCOW2_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "format/error.h"

enum {
	FMT_QCOW2_MIN_HEADER = 72, /* bytes; version 2 */
	FMT_QCOW2_MIN_CLUSTER_BITS = 9,
	FMT_QCOW2_MAX_CLUSTER_BITS = 21,
	FMT_QCOW2_MAX_BACKING = 1023,       /* bytes, without the NUL */
	FMT_QCOW2_MAX_L1_ENTRIES = 1 << 22, /* 32 MiB of table */
	FMT_QCOW2_SUBCLUSTERS = 32,         /* a cluster, with extended L2 entries */
};

/* Incompatible feature bits. */
#define FMT_QCOW2_DIRTY            (UINT64_C(1) << 0)
#define FMT_QCOW2_CORRUPT          (UINT64_C(1) << 1)
#define FMT_QCOW2_EXTERNAL_DATA    (UINT64_C(1) << 2)
#define FMT_QCOW2_COMPRESSION_TYPE (UINT64_C(1) << 3)
#define FMT_QCOW2_EXTENDED_L2      (UINT64_C(1) << 4)

/* A header that passed every check. */
struct fmt_qcow2 {
	uint32_t version;      /* 2 or 3 */
	uint32_t cluster_bits; /* 9..21 */
	uint32_t l2_bits;      /* an L2 table has 1 << l2_bits entries */
	uint32_t l1_entries;   /* what @size needs; the table in the file is no shorter */
	uint32_t snapshots;    /* internal ones, ignored */
	bool extended_l2;      /* L2 entries have 16 bytes, not 8 */
	uint64_t size;         /* bytes the guest sees */
	uint64_t l1_offset;    /* in the file */
	uint64_t incompatible, compatible, autoclear; /* 0 in version 2 */
	char backing[FMT_QCOW2_MAX_BACKING + 1];      /* file name as stored; "" without one */
	char backing_format[16];                      /* as stored; "" when not recorded */
};

/* What a guest range is. */
enum fmt_qcow2_state {
	FMT_QCOW2_UNALLOCATED, /* the backing file's, zeros without one */
	FMT_QCOW2_ZERO,
	FMT_QCOW2_DATA,
	FMT_QCOW2_COMPRESSED,
};

/* A decoded L2 entry. */
struct fmt_qcow2_cluster {
	enum fmt_qcow2_state state;
	uint64_t host;           /* DATA: the cluster; COMPRESSED: first byte; in the file */
	uint32_t compressed_len; /* COMPRESSED: at most that many bytes, to the end of a sector */
	uint32_t allocated;      /* extended L2: bit i for subcluster i; else all or none */
	uint32_t zero;           /* likewise; never both */
};

bool fmt_qcow2_is(const void *buf, size_t len); /* the magic */

/*
 * The file's first FMT_QCOW2_MIN_HEADER bytes -> how many bytes fmt_qcow2_decode() wants: the first
 * cluster, at most 2 MiB. -EINVAL: not qcow2; -ENOTSUP: an unknown version; -EUCLEAN.
 */
int fmt_qcow2_head_len(const void *buf, size_t len, struct fmt_error *err, uint32_t *ret);

/*
 * @buf: the file's first cluster, or less where the file ends earlier. -EINVAL, -EUCLEAN, -EFBIG for
 * an L1 table beyond FMT_QCOW2_MAX_L1_ENTRIES, and -ENOTSUP for encryption, external data
 * files, compression other than zlib and unknown incompatible features, each named in *@err.
 */
int fmt_qcow2_decode(const void *buf, size_t len, struct fmt_error *err, struct fmt_qcow2 *ret);

/* "dirty, extended-l2, ...": the features in use, "none" without any. Truncated to @len. */
void fmt_qcow2_features(const struct fmt_qcow2 *hdr, char *buf, size_t len);

/* Place of the L1 entry of guest @offset (below hdr->size), in the file. */
uint64_t fmt_qcow2_l1_place(const struct fmt_qcow2 *hdr, uint64_t offset);
/* Guest bytes that one L2 table maps; a power of two. */
uint64_t fmt_qcow2_l2_span(const struct fmt_qcow2 *hdr);
/* Raw bytes of an L1 entry -> the L2 table's place; 0: none. */
int fmt_qcow2_l1_decode(const struct fmt_qcow2 *hdr, const uint8_t raw[8], struct fmt_error *err,
			uint64_t *l2);
/* Place of the L2 entry of guest @offset in the table at @l2; 8 bytes, or 16 with extended L2. */
uint64_t fmt_qcow2_l2_place(const struct fmt_qcow2 *hdr, uint64_t l2, uint64_t offset);
/* Raw bytes of an L2 entry; the second half is looked at with extended L2 only. */
int fmt_qcow2_l2_decode(const struct fmt_qcow2 *hdr, const uint8_t raw[16], struct fmt_error *err,
			struct fmt_qcow2_cluster *ret);
/* The state at byte @in of the cluster, and for how many bytes it lasts inside the cluster. */
enum fmt_qcow2_state fmt_qcow2_cluster_at(const struct fmt_qcow2 *hdr,
					  const struct fmt_qcow2_cluster *cluster, uint64_t in,
					  uint64_t *len);

/*
 * Inflates one compressed cluster: raw deflate, window of 4 KiB, exactly @dst_len bytes out; what
 * follows the stream in @src is ignored. -EUCLEAN, -ENOMEM.
 */
int fmt_qcow2_inflate(const void *src, size_t src_len, void *dst, size_t dst_len);

/* --- a new image --- */

enum {
	FMT_QCOW2_CLUSTER_BITS = 16,             /* unless asked for otherwise */
	FMT_QCOW2_REFCOUNT_BYTES = 2,            /* Q2W-1 */
	FMT_QCOW2_MAX_REFCOUNT_TABLE = 8u << 20, /* bytes; QEMU's limit */
};

/* What the header of a new image says. */
struct fmt_qcow2_new {
	uint32_t cluster_bits;      /* 9..21 */
	uint64_t size;              /* bytes the guest sees, a multiple of 512 */
	const char *backing;        /* bare file name, or NULL */
	const char *backing_format; /* with @backing: "qcow2" or "raw" */
	uint32_t l1_entries;        /* fmt_qcow2_new_l1() */
	uint64_t l1_offset;         /* place */
	uint64_t refcount_offset;   /* place of the refcount table */
	uint32_t refcount_clusters; /* clusters it takes */
};

/* Q2W-1, Q2W-2, Q2W-4: what the caller chose. Fills new->l1_entries. -EINVAL, -EFBIG. */
int fmt_qcow2_new_check(struct fmt_qcow2_new *new, struct fmt_error *err);
/* The first cluster of the file: the header, the backing file's format and name, zeros. @new is checked. */
void fmt_qcow2_encode(const struct fmt_qcow2_new *new, void *cluster);

/* Q2W-5: entries of tables; places are multiples of the cluster size. */
void fmt_qcow2_put_l1(uint8_t raw[8], uint64_t l2);
void fmt_qcow2_put_data(uint8_t raw[8], uint64_t host);
void fmt_qcow2_put_zero(uint8_t raw[8]);
/* A stream of @len bytes, shorter than the cluster, at @host; -EFBIG: no entry reaches that far. */
int fmt_qcow2_put_compressed(uint8_t raw[8], uint32_t cluster_bits, uint64_t host, uint32_t len);
void fmt_qcow2_put_refcount_block(uint8_t raw[8], uint64_t place); /* of the refcount table */
/* Adds one. It never overflows: a stream has at least a 1032nd of a cluster's bytes. */
void fmt_qcow2_add_reference(uint8_t raw[FMT_QCOW2_REFCOUNT_BYTES]);

/* Q2W-7. One thread at a time each. */
struct fmt_qcow2_deflater;
struct fmt_qcow2_deflater *fmt_qcow2_deflater_create(void);    /* NULL: no memory */
void fmt_qcow2_deflater_destroy(struct fmt_qcow2_deflater *d); /* NULL is fine */
/* Bytes of the stream at @dst, which has @cluster bytes; 0: it would not be shorter than the cluster. */
uint32_t fmt_qcow2_deflate(struct fmt_qcow2_deflater *d, const void *src, uint32_t cluster,
			   void *dst);

#endif
