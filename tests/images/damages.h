/* SPDX-License-Identifier: MIT */
/*
 * damages.h - the corpus of damaged overlays: each is a sound one, made by tests/unit/fsck_layer.c, with
 * one change, and the finding that must come of it. Small changes say more than large binaries. To add
 * one, add a line.
 */
#ifndef TESTS_IMAGES_DAMAGES_H
#define TESTS_IMAGES_DAMAGES_H

#include "format/layer.h"
#include "fsck/fsck.h"

/* The sound overlay that is damaged. */
enum image { ACTIVE, FROZEN, SEALED };

/* What of it: @number counts records and pages from 0. */
enum part {
	HEADER,     /* slot of the header that counts */
	OLD_HEADER, /* the other one */
	RECORD,     /* of the log; LAST: the last one that holds runs */
	LINK,       /* the first LINK */
	LOG_END,    /* behind the last record */
	LEAF,
	INNER,
	CSUMS,
	SLOT,
	FILE_END, /* grows or shrinks by @value */
};
#define LAST 0xffffu

/*
 * What is done with @value to the @bytes at @offset in it. The structure's own checksum is made good
 * again, but not after a FLIP, which xors as XOR does.
 */
enum act { SET, ADD, XOR, FLIP };

/* UNKNOWN: a note, and the check as a whole answers -ENOTSUP. */
enum verdict { NOTE = FSCK_NOTE, LEAK = FSCK_LEAK, BAD = FSCK_CORRUPT, UNKNOWN };

struct damage {
	const char *name;
	enum image image;
	enum part part;
	unsigned number, offset, bytes;
	enum act act;
	uint64_t value;
	enum verdict verdict;
	const char *rule;
};

#define AT(field)  offsetof(struct fmt_header_disk, field)
#define REC(field) offsetof(struct fmt_record_disk, field)
#define RUN(n, field)                                                                              \
	(sizeof(struct fmt_record_disk) + 16 * (n) + offsetof(struct fmt_run_disk, field))
#define PAGE(field)    offsetof(struct fmt_page_disk, field)
#define ENTRY(n, size) (PAGE(body) + (n) * (size))
#define LESS(n)        ((uint64_t) - (int64_t)(n))

/* clang-format off */
static const struct damage damages[] = {
	/* header slots */
	{"header-unknown-version", ACTIVE, HEADER, 0, AT(version), 4, SET, 2, UNKNOWN, "FB-1"},
	{"header-incompat-bit", ACTIVE, HEADER, 0, AT(incompat), 8, SET, 1ull << 40, UNKNOWN, "FB-1"},
	{"header-ro-compat-bit", ACTIVE, HEADER, 0, AT(ro_compat), 8, SET, 2, NOTE, "FB-1"},
	{"header-kind", ACTIVE, HEADER, 0, AT(kind), 4, SET, 9, BAD, "LH-6"},
	{"header-state-0", ACTIVE, HEADER, 0, AT(state), 4, SET, 0, BAD, "LH-6"},
	{"header-state-4", SEALED, HEADER, 0, AT(state), 4, SET, 4, BAD, "LH-6"},
	{"header-block-bits-11", ACTIVE, HEADER, 0, AT(block_bits), 4, SET, 11, BAD, "LH-6"},
	{"header-block-bits-63", ACTIVE, HEADER, 0, AT(block_bits), 4, SET, 63, BAD, "LH-6"},
	{"header-size-0", ACTIVE, HEADER, 0, AT(size), 8, SET, 0, BAD, "LH-6"},
	{"header-size-odd", ACTIVE, HEADER, 0, AT(size), 8, ADD, 1, BAD, "LH-6"},
	{"header-size-huge", ACTIVE, HEADER, 0, AT(size), 8, SET, 1ull << 60, BAD, "LH-6"},
	{"header-granule", ACTIVE, HEADER, 0, AT(log_granule), 4, SET, 768, BAD, "LH-6"},
	{"header-log0-empty", ACTIVE, HEADER, 0, AT(log0_len), 4, SET, 0, BAD, "LH-6"},
	{"header-log0-over-data", ACTIVE, HEADER, 0, AT(log0_len), 4, SET, 0x10000, BAD, "LH-6"},
	{"header-data-offset-odd", ACTIVE, HEADER, 0, AT(data_offset), 8, ADD, 512, BAD, "LH-6"},
	{"header-data-offset-far", ACTIVE, HEADER, 0, AT(data_offset), 8, SET, 1ull << 40, BAD, "LH-6"},
	{"header-too-many-segments", ACTIVE, HEADER, 0, AT(log_segments), 4, SET, 65537, BAD, "LH-6"},
	{"header-generation-of-orphan", ACTIVE, HEADER, 0, AT(generation), 8, SET, 3, BAD, "LH-7"},
	{"header-parent-of-generation-0", ACTIVE, HEADER, 0, AT(parent_id), 1, SET, 7, BAD, "LH-7"},
	{"header-hash-of-no-parent", ACTIVE, HEADER, 0, AT(parent_hash), 1, SET, 7, BAD, "LH-7"},
	{"header-boundary-without-snapshot", FROZEN, HEADER, 0, AT(snapshot_members), 4, SET, 1, BAD, "BD-1"},
	{"header-boundary-index", FROZEN, HEADER, 0, AT(snapshot_id), 1, SET, 1, BAD, "BD-1"},
	{"header-seal-unaligned", SEALED, HEADER, 0, AT(index_offset), 8, ADD, 8, BAD, "SL-2"},
	{"header-seal-in-slots", SEALED, HEADER, 0, AT(csum_offset), 8, SET, 0x10000, BAD, "SL-2"},
	{"header-seal-overlaps", SEALED, HEADER, 0, AT(csum_offset), 8, ADD, LESS(4096), BAD, "SL-2"},
	{"header-seal-runs", SEALED, HEADER, 0, AT(index_runs), 8, SET, 1ull << 50, BAD, "SL-2"},
	{"header-seal-slots", SEALED, HEADER, 0, AT(slots), 8, SET, 1ull << 40, BAD, "SL-2"},
	{"header-seal-past-file", SEALED, HEADER, 0, AT(csum_offset), 8, ADD, 1ull << 30, BAD, "SL-2"},
	{"header-seal-fewer-slots", SEALED, HEADER, 0, AT(slots), 8, ADD, LESS(100), BAD, "SL-2"},
	{"header-seal-hash", SEALED, HEADER, 0, AT(seal_hash), 1, XOR, 1, BAD, "SL-3"},
	{"header-older-lost", FROZEN, HEADER, 0, AT(seq), 8, ADD, 2, BAD, "LH-1"},
	{"header-in-wrong-slot", FROZEN, HEADER, 0, AT(seq), 8, ADD, 1, BAD, "LH-4"},
	{"header-salt-changed", FROZEN, OLD_HEADER, 0, AT(salt), 8, XOR, 1, BAD, "LH-11"},
	{"header-shrunk", FROZEN, OLD_HEADER, 0, AT(size), 8, ADD, 4096, BAD, "LH-11"},
	{"header-unsealed", FROZEN, OLD_HEADER, 0, AT(state), 4, SET, 3, BAD, "SL-2"},
	{"header-older-torn", FROZEN, OLD_HEADER, 0, AT(size), 1, FLIP, 1, NOTE, "LH-3"},
	{"header-names-journal", ACTIVE, HEADER, 0, AT(journal_nonce), 8, SET, 5, NOTE, "LH-10"},
	{"file-shorter-than-header", ACTIVE, FILE_END, 0, 0, 0, SET, 5000, BAD, "LH-1"},

	/* log */
	{"log-fewer-segments", FROZEN, HEADER, 0, AT(log_segments), 4, ADD, 9, BAD, "ML-7"},
	{"log-ends-early", FROZEN, HEADER, 0, AT(log_seq), 8, ADD, 1, BAD, "ML-7"},
	{"log-ends-late", FROZEN, HEADER, 0, AT(log_seq), 8, ADD, LESS(1), BAD, "ML-7"},
	{"log-rot-in-first-record", ACTIVE, RECORD, 0, RUN(0, block), 1, FLIP, 4, BAD, "ML-8"},
	{"log-rot-in-the-middle", ACTIVE, RECORD, 20, REC(journal_seq), 1, FLIP, 4, BAD, "ML-8"},
	{"log-rot-of-the-link", ACTIVE, LINK, 0, REC(link_offset), 1, FLIP, 16, BAD, "ML-8"},
	{"log-rot-of-the-link-when-frozen", FROZEN, LINK, 0, REC(magic), 1, FLIP, 16, BAD, "ML-8"},
	{"log-torn-tail", ACTIVE, RECORD, LAST, REC(len), 1, FLIP, 1, NOTE, "ML-8"},
	{"log-torn-tail-when-frozen", FROZEN, RECORD, LAST, REC(csum), 1, FLIP, 1, BAD, "ML-7"},
	{"log-bytes-behind-the-end", ACTIVE, LOG_END, 0, 700, 1, FLIP, 1, NOTE, "ML-8"},
	{"log-seq-skipped", ACTIVE, RECORD, 5, REC(seq), 8, ADD, 1, BAD, "ML-8"},
	{"log-seq-repeated", ACTIVE, RECORD, 5, REC(seq), 8, ADD, LESS(1), BAD, "ML-8"},
	{"log-journal-seq-falls", ACTIVE, RECORD, 5, REC(journal_seq), 8, SET, 99, BAD, "ML-2"},
	{"log-flags", ACTIVE, RECORD, 5, REC(flags), 4, SET, 4, BAD, "ML-5"},
	{"log-confirms-itself", ACTIVE, RECORD, 5, REC(confirmed_seq), 8, SET, 1000, BAD, "ML-5"},
	{"log-run-count", ACTIVE, RECORD, 5, REC(runs), 4, ADD, 1, BAD, "ML-5"},
	{"log-run-kind", ACTIVE, RECORD, 5, RUN(2, count_kind), 4, SET, 2u << 30 | 1, BAD, "ML-5"},
	{"log-run-empty", ACTIVE, RECORD, 5, RUN(2, count_kind), 4, SET, 0, BAD, "ML-5"},
	{"log-block-past-disk", ACTIVE, RECORD, 5, RUN(2, block), 8, SET, 1u << 20, BAD, "RU-2"},
	{"log-slot-past-file", ACTIVE, RECORD, 5, RUN(2, slot), 4, SET, 1u << 20, BAD, "RU-2"},
	{"log-slot-of-another-block", ACTIVE, RECORD, 5, RUN(2, slot), 4, ADD, LESS(20), BAD, "RU-4"},
	{"log-link-off-slots", ACTIVE, LINK, 0, REC(link_offset), 8, ADD, 512, BAD, "ML-6"},
	{"log-link-part-of-slot", ACTIVE, LINK, 0, REC(link_len), 4, ADD, 512, BAD, "ML-6"},
	{"log-link-past-file", ACTIVE, LINK, 0, REC(link_offset), 8, ADD, 1u << 30, BAD, "ML-6"},
	{"log-link-before-slots", ACTIVE, LINK, 0, REC(link_offset), 8, SET, 0x8000, BAD, "ML-6"},
	{"log-past-file", FROZEN, FILE_END, 0, 0, 0, SET, 0x6000, BAD, "ML-1"},

	/* index, checksums, data */
	{"index-leaf-rot", SEALED, LEAF, 1, ENTRY(3, 16), 1, FLIP, 8, BAD, "IX-1"},
	{"index-inner-rot", SEALED, INNER, 0, ENTRY(1, 8), 1, FLIP, 8, BAD, "IX-1"},
	{"index-leaf-type", SEALED, LEAF, 1, PAGE(type), 2, SET, 3, BAD, "IX-2"},
	{"index-leaf-level", SEALED, LEAF, 1, PAGE(level), 2, SET, 1, BAD, "IX-2"},
	{"index-leaf-not-full", SEALED, LEAF, 0, PAGE(count), 4, ADD, LESS(1), BAD, "IX-2"},
	{"index-leaf-order", SEALED, LEAF, 0, ENTRY(3, 16), 8, SET, 0, BAD, "IX-3"},
	{"index-leaf-overlaps-last", SEALED, LEAF, 1, ENTRY(0, 16), 8, SET, 1, BAD, "IX-3"},
	{"index-key", SEALED, INNER, 0, ENTRY(1, 8), 8, ADD, 1, BAD, "IX-4"},
	{"index-key-order", SEALED, INNER, 0, ENTRY(1, 8), 8, SET, 0, BAD, "IX-4"},
	{"index-slot", SEALED, LEAF, 1, ENTRY(3, 16) + 8, 4, ADD, 1, BAD, "IX-5"},
	{"index-zeros-for-data", SEALED, LEAF, 1, ENTRY(3, 16) + 8, 8, SET, 0x40000001ffffffff, BAD, "IX-5"},
	{"index-block", SEALED, LEAF, 2, ENTRY(3, 16), 8, ADD, 1, BAD, "IX-5"},
	{"index-slot-past-slots", SEALED, LEAF, 1, ENTRY(3, 16) + 8, 4, SET, 5000, BAD, "RU-2"},
	{"csum-page-rot", SEALED, CSUMS, 1, ENTRY(3, 8), 1, FLIP, 8, BAD, "CS-1"},
	{"csum-page-not-full", SEALED, CSUMS, 0, PAGE(count), 4, ADD, LESS(1), BAD, "CS-1"},
	{"csum-entry", SEALED, CSUMS, 0, ENTRY(3, 8), 8, XOR, 8, BAD, "CS-2"},
	{"csum-entry-breaks-hash", SEALED, CSUMS, 0, ENTRY(3, 8), 8, XOR, 8, BAD, "SL-3"},
	{"data-rot", SEALED, SLOT, 3, 1000, 1, FLIP, 1, BAD, "CS-2"},
	{"data-rot-in-last-slot", SEALED, SLOT, 580, 4095, 1, FLIP, 1, BAD, "CS-2"},
	{"space-behind-pages", SEALED, FILE_END, 0, 0, 0, ADD, 12288, LEAK, "SL-1"},
	{"pages-past-file", SEALED, FILE_END, 0, 0, 0, ADD, LESS(1), BAD, "SL-2"},
};
/* clang-format on */

#endif
