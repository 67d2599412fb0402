/* SPDX-License-Identifier: MIT */
/*
 * layer.h - a layer's bytes: header slots, map log records, index and checksum pages
 * (spec/format.md). Pure functions over bytes: no I/O, no locks, any thread.
 */
#ifndef FORMAT_LAYER_H
#define FORMAT_LAYER_H

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "format/error.h"
#include "format/le.h"
#include "format/uuid.h"

#define FMT_PAGE             4096u /* header slot, index and checksum page */
#define FMT_HEADER_SLOTS     2u
#define FMT_LOG0_OFFSET      0x2000u  /* first log segment */
#define FMT_DATA_OFFSET      0x10000u /* slot 0, in every overlay this version makes */
#define FMT_BLOCK_BITS_MIN   12u
#define FMT_BLOCK_BITS_MAX   16u
#define FMT_SIZE_MAX         (1ull << 53) /* bytes of a disk */
#define FMT_DATA_OFFSET_MAX  (1ull << 32)
#define FMT_LOG_SEGMENTS_MAX 65536u       /* of a layer's log */
#define FMT_OFFSET_MAX       (1ull << 62) /* in a layer's file */
#define FMT_SLOT_NONE        UINT32_MAX
#define FMT_VERSION          1u

/* Feature bits this version knows. */
enum {
	FMT_INCOMPAT_ONE_FLUSH = 1u << 0, /* the log may hold one-flush records (ML-9) */
	FMT_INCOMPAT_FOLDED = 1u << 1,    /* the header lists the layers it stands for (FD-1) */
	FMT_INCOMPAT_GONE = 1u << 2, /* the header names a list of slots that are gone (GO-1) */
	FMT_INCOMPAT_KNOWN = FMT_INCOMPAT_ONE_FLUSH | FMT_INCOMPAT_FOLDED | FMT_INCOMPAT_GONE,
};

enum fmt_kind {
	FMT_KIND_OVERLAY = 1,
	FMT_KIND_RAW = 2,   /* sidecar of a raw base */
	FMT_KIND_QCOW2 = 3, /* sidecar of a qcow2 base */
};

/*
 * State of a layer. ACTIVE -> FROZEN -> SEALED; a raw base ends at FROZEN, a qcow2 base is never
 * anything else. FROZEN -> ACTIVE is recovery's alone (LH-12).
 */
enum fmt_state {
	FMT_STATE_ACTIVE = 1, /* may take writes; log replay decides what it holds */
	FMT_STATE_FROZEN = 2, /* hardened: log complete and durable, takes no writes */
	FMT_STATE_SEALED = 3, /* indexed and checksummed */
};

#define FMT_REPLACED_MAX 32u

/* A layer that a fold replaced and that headers of children still name (FD-1). */
struct fmt_replaced {
	struct fmt_uuid id;
	uint8_t hash[16]; /* its seal hash, or zero: it had none */
};
static_assert(sizeof(struct fmt_replaced) == 32, "FD-1");

/* Header slot, spec LH-1. On disk. */
struct fmt_header_disk {
	uint8_t magic[8];        /* 0x000 "VMIMGLYR" */
	le32 version;            /* 0x008 */
	le32 kind;               /* 0x00c enum fmt_kind */
	le64 seq;                /* 0x010 +1 per write; slot = seq % 2 */
	le64 incompat;           /* 0x018 */
	le64 ro_compat;          /* 0x020 */
	le64 compat;             /* 0x028 */
	uint8_t store_id[16];    /* 0x030 */
	uint8_t disk_id[16];     /* 0x040 */
	uint8_t layer_id[16];    /* 0x050 */
	uint8_t parent_id[16];   /* 0x060 none: a base, or an overlay over nothing */
	le64 generation;         /* 0x070 parent's + 1; a base has 0 */
	le64 size;               /* 0x078 bytes, multiple of 512 */
	le32 block_bits;         /* 0x080 12..16 */
	le32 state;              /* 0x084 enum fmt_state */
	le64 salt;               /* 0x088 random; seeds every other checksum of this layer */
	le64 created_ns;         /* 0x090 since 1970 */
	le64 data_offset;        /* 0x098 of slot 0 */
	le32 log0_len;           /* 0x0a0 bytes of log segment 0 */
	le32 log_granule;        /* 0x0a4 512..4096, power of two */
	le32 log_segments;       /* 0x0a8 segments known linked, at least (ML-7) */
	le32 reserved0;          /* 0x0ac */
	uint8_t boot_id[16];     /* 0x0b0 JN-2: journal of this boot, or none */
	le64 journal_nonce;      /* 0x0c0 */
	uint8_t snapshot_id[16]; /* 0x0c8 boundary: the snapshot that froze this layer, or none */
	le32 snapshot_members;   /* 0x0d8 disks in that snapshot */
	le32 snapshot_index;     /* 0x0dc this disk's place in it */
	le64 index_offset;       /* 0x0e0 SEALED: first leaf page */
	le64 index_runs;         /* 0x0e8 runs in the leaves */
	le64 csum_offset;        /* 0x0f0 first checksum page */
	le64 slots;              /* 0x0f8 slots in use when sealed = checksums */
	uint8_t seal_hash[16];   /* 0x100 XXH3-128 of index and checksum pages */
	uint8_t parent_hash[16]; /* 0x110 parent's seal hash, or zero: not known yet */
	le64 base_mtime_ns;      /* 0x120 RAW, QCOW2 when FROZEN: of the base file (T31) */
	le64 base_bytes;         /* 0x128 RAW, QCOW2: length of the base file */
	le64 log_seq; /* 0x130 seq of the log's last record at the freeze (ML-7); 0: never frozen */
	le32 replaced_count;                            /* 0x138 FOLDED: entries below */
	le32 reserved1;                                 /* 0x13c */
	struct fmt_replaced replaced[FMT_REPLACED_MAX]; /* 0x140 */
	le64 gone_offset;                               /* 0x540 GONE: first page of the list */
	le32 gone_runs;                                 /* 0x548 GONE: runs in it */
	le32 reserved2;                                 /* 0x54c */
	uint8_t gone_hash[16];                          /* 0x550 GONE: XXH3-128 of its pages */
	uint8_t reserved3[0xa98];
	le64 csum; /* 0xff8 XXH3-64 of bytes 0x000..0xff7 */
};
static_assert(sizeof(struct fmt_header_disk) == FMT_PAGE, "LH-1");
static_assert(offsetof(struct fmt_header_disk, salt) == 0x88, "LH-1");
static_assert(offsetof(struct fmt_header_disk, boot_id) == 0xb0, "LH-1");
static_assert(offsetof(struct fmt_header_disk, index_offset) == 0xe0, "LH-1");
static_assert(offsetof(struct fmt_header_disk, replaced) == 0x140, "LH-1");
static_assert(offsetof(struct fmt_header_disk, gone_offset) == 0x540, "LH-1");
static_assert(offsetof(struct fmt_header_disk, csum) == 0xff8, "LH-1");

/* The same, in memory. */
struct fmt_header {
	uint32_t kind, state, block_bits;
	uint64_t seq, incompat, ro_compat, compat;
	struct fmt_uuid store_id, disk_id, layer_id, parent_id;
	uint64_t generation, size, salt;
	int64_t created_ns;
	uint64_t data_offset;
	uint32_t log0_len, log_granule, log_segments;
	uint8_t boot_id[16];
	uint64_t journal_nonce;
	struct fmt_uuid snapshot_id;
	uint32_t snapshot_members, snapshot_index;
	uint64_t index_offset, index_runs, csum_offset, slots;
	uint8_t seal_hash[16], parent_hash[16];
	int64_t base_mtime_ns;
	uint64_t base_bytes;
	uint64_t log_seq;
	uint32_t replaced_count;
	struct fmt_replaced replaced[FMT_REPLACED_MAX];
	uint64_t gone_offset; /* GONE; else 0, as the next two */
	uint32_t gone_runs;
	uint8_t gone_hash[16];
};

/* Encodes into one 4096-byte slot; asserts what decode checks. */
void fmt_header_encode(const struct fmt_header *h, uint8_t slot[FMT_PAGE]);
/* -EBADMSG: checksum or magic; -ENOTSUP: version or unknown incompatible bit; -EUCLEAN: a rule. */
int fmt_header_decode(const uint8_t slot[FMT_PAGE], struct fmt_header *ret, struct fmt_error *err);
/*
 * The newest valid of the two slots (LH-4). A slot that decodes to -ENOTSUP or -EUCLEAN and is
 * newer than the other makes the pick fail with that code: it is not torn, it is not ours to
 * ignore.
 */
int fmt_header_pick(const uint8_t slots[2 * FMT_PAGE], struct fmt_header *ret,
		    struct fmt_error *err);

/*
 * Whether the layer of header @below may stand under a child that names @parent_id and, unless it is
 * zero, @parent_hash (SL-4, FD-2): 0, -ENOENT another layer, -EUCLEAN another content.
 */
int fmt_header_check_child(const struct fmt_header *below, const struct fmt_uuid *parent_id,
			   const uint8_t parent_hash[16]);
/* The seal hash by which that child knows its parent, zero where there is none; NULL: it has another
 * parent. Borrowed from @below. */
const uint8_t *fmt_header_hash_for(const struct fmt_header *below,
				   const struct fmt_uuid *parent_id);

/* --- runs: what the log and the index are made of --- */
enum fmt_run_kind {
	FMT_RUN_DATA = 0,
	FMT_RUN_ZERO = 1, /* reads as zeros; slot is FMT_SLOT_NONE */
};

struct fmt_run {
	uint64_t block; /* first block of the disk */
	uint32_t slot;  /* first slot; a DATA run takes count slots in a row */
	uint32_t count; /* blocks, 1..2^30-1 */
	uint8_t kind;
};

struct fmt_run_disk {
	le64 block;      /* 0x00 */
	le32 slot;       /* 0x08 */
	le32 count_kind; /* 0x0c bits 0..29 count, 30..31 kind */
};
static_assert(sizeof(struct fmt_run_disk) == 16, "ML-3");

#define FMT_RUN_COUNT_MAX ((1u << 30) - 1)

/* --- map log --- */
enum {
	FMT_REC_DURABLE_FIRST = 1u << 0, /* data was durable before the record (never verified) */
	FMT_REC_LINK = 1u << 1,          /* names the next segment; no runs */
};

struct fmt_record_disk {
	uint8_t magic[4];   /* 0x00 "VLOG" */
	le32 len;           /* 0x04 bytes, header to last checksum, without padding */
	le64 seq;           /* 0x08 1, 2, 3 ... */
	le64 journal_seq;   /* 0x10 last journal number this record and its predecessors cover */
	le64 confirmed_seq; /* 0x18 one-flush records up to this one are confirmed */
	le32 flags;         /* 0x20 */
	le32 runs;          /* 0x24 */
	le64 link_offset;   /* 0x28 LINK: file offset of the next segment */
	le32 link_len;      /* 0x30 LINK: its length in bytes */
	le32 reserved;      /* 0x34 */
	le64 csum;          /* 0x38 XXH3-64 seeded with the salt, over the record with csum zero */
};
static_assert(sizeof(struct fmt_record_disk) == 0x40, "ML-2");

struct fmt_record {
	uint64_t seq, journal_seq, confirmed_seq;
	uint32_t flags;
	uint32_t runs;
	uint64_t link_offset;
	uint32_t link_len;
	const uint8_t *run_bytes;  /* into the caller's buffer; fmt_record_run() decodes */
	const uint8_t *csum_bytes; /* one le64 a data block without DURABLE_FIRST, else NULL */
	uint32_t len;              /* bytes without padding */
};

#define FMT_RECORD_RUNS_MAX  16384u /* 256 KiB of runs: bounds a record */
#define FMT_RECORD_CSUMS_MAX 65536u /* 512 KiB of block checksums, likewise */
/* Bytes a record of @runs runs (and @csums block checksums) takes, without padding. */
uint32_t fmt_record_size(uint32_t runs, uint32_t csums);
/*
 * Encodes @rec with @runs (rec->runs of them) and, without DURABLE_FIRST, @csums into @buf of @cap
 * bytes, zero-padded to @granule. Returns the padded length or -ENOSPC.
 */
int64_t fmt_record_encode(const struct fmt_record *rec, const struct fmt_run *runs,
			  const uint64_t *csums, uint64_t salt, uint32_t granule, uint8_t *buf,
			  size_t cap);
/*
 * Decodes the record at the start of @buf (@len bytes to the end of the segment). -ENODATA: no
 * record here (no magic, or torn: bad checksum); -EUCLEAN: checksummed but against a rule.
 */
int fmt_record_decode(const uint8_t *buf, size_t len, uint64_t salt, struct fmt_record *ret,
		      struct fmt_error *err);
void fmt_record_run(const struct fmt_record *rec, uint32_t i, struct fmt_run *ret);
uint64_t fmt_record_csum(const struct fmt_record *rec, uint32_t i);
/*
 * Checks a run against the disk's and layer's bounds: block+count within blocks, kinds, no
 * overflow.
 */
int fmt_run_check(const struct fmt_run *run, uint64_t blocks, uint64_t slots,
		  struct fmt_error *err);

/* --- index and checksum pages (sealed layers) --- */
enum fmt_page_type {
	FMT_PAGE_LEAF = 1,  /* runs, sorted by block */
	FMT_PAGE_INNER = 2, /* first block of each child page */
	FMT_PAGE_CSUM = 3,  /* XXH3-64 of slots in slot order */
	FMT_PAGE_GONE = 4,  /* runs of slots whose data is gone, sorted */
};

struct fmt_page_disk {
	uint8_t magic[4]; /* 0x00 "VPAG" */
	le16 type;        /* 0x04 */
	le16 level;       /* 0x06 leaf 0, inner 1.. */
	le32 count;       /* 0x08 entries */
	le32 reserved;    /* 0x0c */
	le64 csum;        /* 0x10 XXH3-64 seeded with salt ^ file offset, page with csum zero */
	uint8_t body[FMT_PAGE - 0x18];
};
static_assert(sizeof(struct fmt_page_disk) == FMT_PAGE, "IX-1");

#define FMT_LEAF_RUNS        ((FMT_PAGE - 0x18) / 16) /* 254 */
#define FMT_INNER_KEYS       ((FMT_PAGE - 0x18) / 8)  /* 509 */
#define FMT_CSUM_SLOTS       ((FMT_PAGE - 0x18) / 8)  /* 509 */
#define FMT_INDEX_LEVELS_MAX 8

/*
 * Where the levels of the index of @runs runs lie: level 0 (leaves) first at index_offset, then
 * level 1, ... the last has one page, the root. A layer with no runs has one empty leaf. Returns
 * the number of levels, fills page counts and each level's first page number, or -EUCLEAN.
 */
struct fmt_index_shape {
	uint32_t levels;
	uint64_t pages[FMT_INDEX_LEVELS_MAX];
	uint64_t first[FMT_INDEX_LEVELS_MAX]; /* page number from index_offset */
	uint64_t total;                       /* pages */
};
int fmt_index_shape(uint64_t runs, struct fmt_index_shape *ret);
uint64_t fmt_csum_pages(uint64_t slots);
/* Bytes to keep in reserve for index and checksum pages of @slots slots, worst case (SP-2). */
uint64_t fmt_seal_reserve(uint64_t slots);

void fmt_leaf_encode(const struct fmt_run *runs, uint32_t count, uint64_t salt, uint64_t offset,
		     uint8_t page[FMT_PAGE]);
void fmt_inner_encode(const uint64_t *first_blocks, uint32_t count, uint32_t level, uint64_t salt,
		      uint64_t offset, uint8_t page[FMT_PAGE]);
void fmt_csum_encode(const uint64_t *csums, uint32_t count, uint64_t salt, uint64_t offset,
		     uint8_t page[FMT_PAGE]);
/*
 * Checks magic, type, level, count and checksum: -EBADMSG or -EUCLEAN. Then the getters may be
 * used.
 */
int fmt_page_check(const uint8_t page[FMT_PAGE], enum fmt_page_type type, uint32_t level,
		   uint64_t salt, uint64_t offset, uint32_t *count, struct fmt_error *err);
void fmt_leaf_run(const uint8_t page[FMT_PAGE], uint32_t i, struct fmt_run *ret);
uint64_t fmt_inner_key(const uint8_t page[FMT_PAGE], uint32_t i);
uint64_t fmt_csum_get(const uint8_t page[FMT_PAGE], uint32_t i);

/* --- the list of slots that are gone (T26) --- */
struct fmt_gone {
	uint32_t slot, count;
};

#define FMT_GONE_SLOTS    ((FMT_PAGE - 0x18) / 8) /* 509: runs on a page */
#define FMT_GONE_RUNS_MAX (128u * FMT_GONE_SLOTS) /* of a layer: 512 KiB of pages */

uint64_t fmt_gone_pages(uint32_t runs);
/* The pages between the first log segment and slot 0, which every overlay has: *@first, and how many. */
uint64_t fmt_gap_pages(const struct fmt_header *h, uint64_t *first);
/* Whether a list of @runs at @offset lies where one may: there, or behind the seal's pages (GO-1). */
bool fmt_gone_fits(const struct fmt_header *h, uint64_t offset, uint32_t runs);
/* Where a sealed layer's index and checksum pages end. */
uint64_t fmt_seal_end(const struct fmt_header *h);
void fmt_gone_encode(const struct fmt_gone *runs, uint32_t count, uint64_t salt, uint64_t offset,
		     uint8_t page[FMT_PAGE]);
void fmt_gone_run(const uint8_t page[FMT_PAGE], uint32_t i, struct fmt_gone *ret);
/*
 * Checks and decodes all pages of the list that @h names, from its offset on: -EBADMSG, -EUCLEAN. @runs
 * has room for h->gone_runs.
 */
int fmt_gone_decode(const struct fmt_header *h, const uint8_t *pages, struct fmt_gone *runs,
		    struct fmt_error *err);

/* Data checksum of one block (zero-padded past the disk's end by the caller). */
uint64_t fmt_block_csum(const void *block, size_t len);

/* Streaming seal hash over index pages then checksum pages. */
struct fmt_seal_hash;
struct fmt_seal_hash *fmt_seal_hash_create(void);
void fmt_seal_hash_destroy(struct fmt_seal_hash *h);
void fmt_seal_hash_add(struct fmt_seal_hash *h, const void *page, size_t len);
void fmt_seal_hash_end(struct fmt_seal_hash *h, uint8_t ret[16]);

#endif
