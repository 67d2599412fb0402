/* SPDX-License-Identifier: MIT */
/*
 * problem.h - what a check can find: one table of problems, each with the rule it breaks and how bad that
 * is, and the way from the passes to whoever asked for the check. One thread a check.
 */
#ifndef FSCK_PROBLEM_H
#define FSCK_PROBLEM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "fsck/fsck.h"

enum fsck_problem {
	/* header slots */
	PR_HEADER_SHORT,
	PR_HEADER_TORN,
	PR_HEADER_OLD_TORN,
	PR_HEADER_PLACE,
	PR_HEADER_GEOMETRY,
	PR_HEADER_IDENTITY,
	PR_HEADER_BOUNDARY,
	PR_HEADER_SEAL,
	PR_HEADER_FOLDED,
	PR_HEADER_GONE,
	PR_HEADER_SEQ,
	PR_HEADER_CHANGED,
	PR_HEADER_UNKNOWN,
	PR_HEADER_RO_COMPAT,
	PR_HEADER_KIND,
	PR_HEADER_STATES,
	PR_JOURNAL_NAMED,
	/* map log */
	PR_LOG_SHORT,
	PR_LOG_RECORD,
	PR_LOG_RUN,
	PR_LOG_LINK,
	PR_LOG_JOURNAL_SEQ,
	PR_LOG_ONE_FLUSH,
	PR_LOG_DROPPED,
	PR_LOG_ROT,
	PR_LOG_TORN,
	PR_LOG_ENDS_EARLY,
	PR_LOG_ENDS_LATE,
	PR_SLOT_TWICE,
	PR_SLOT_IN_LOG,
	PR_SLOT_UNNAMED,
	PR_SLOT_TAIL,
	/* index, checksums, seal */
	PR_SEAL_BOUNDS,
	PR_SEAL_SLOTS,
	PR_PAGE_CSUM,
	PR_PAGE_SHAPE,
	PR_LEAF_ORDER,
	PR_INNER_KEYS,
	PR_INDEX_RUN,
	PR_INDEX_DIFFERS,
	PR_CSUM_PAGE,
	PR_CSUM_UNUSED,
	PR_DATA_CSUM,
	PR_SEAL_HASH,
	PR_SEAL_LEAK,
	PR_GONE_LIST,
	PR_GONE_UNNAMED,
	PR_GONE_MASK,
	/* bases */
	PR_BASE_MISSING,
	PR_BASE_KIND,
	PR_BASE_CHANGED,
	PR_BASE_MOVED,
	PR_BASE_SHARED,
	PR_BASE_UNFINISHED,
	PR_SIDECAR_SIZE,
	/* qcow2 */
	PR_QCOW2_HEADER,
	PR_QCOW2_UNKNOWN,
	PR_QCOW2_L1_TABLE,
	PR_QCOW2_L1_ENTRY,
	PR_QCOW2_L2_TABLE,
	PR_QCOW2_L2_SHARED,
	PR_QCOW2_L2_ENTRY,
	PR_QCOW2_DATA,
	/* catalog, files, chains */
	PR_CATALOG_MISSING,
	PR_CATALOG_DAMAGED,
	PR_CATALOG_ROWS,
	PR_FACTS,
	PR_UNCLEAN,
	PR_FILE_MISSING,
	PR_PENDING_MISSING,
	PR_FILE_ORPHAN,
	PR_ROW_PENDING,
	PR_ROW_UNREACHED,
	PR_ROW_IDENTITY,
	PR_ROW_PARENT,
	PR_ROW_GENERATION,
	PR_ROW_STATE,
	PR_ROW_BLOCK_BITS,
	PR_CHAIN_BROKEN,
	PR_PARENT_HASH,
	PR_HEAD_MISSING,
	PR_HEAD_BEHIND,
	PR_HEAD_STATE,
	PR_HEAD_FROZEN,
	PR_SIZE_SMALLER,
	PR_SIZE_LARGER,
	/* snapshots */
	PR_SNAPSHOT_UNFINISHED,
	PR_SNAPSHOT_COUNT,
	PR_SNAPSHOT_LAYER,
	PR_SNAPSHOT_BOUNDARY,
	PR_SNAPSHOT_SIZE,
	PR_SNAPSHOT_SOFT,
	PR_REFPOINT_COUNT,
	PR_REFPOINT_LAYER,
	PR_REFPOINT_SET,
	PR_REFPOINT_LOST,
	PR_BOUNDARY_STRAY,
	PR_BOUNDARY_UNKNOWN,
	PR_BOUNDARY_LEFT,
	PR_COUNT,
};

/* One check. Of its caller's thread. */
struct fsck {
	struct eng_io *io;
	void (*finding)(void *arg, const struct fsck_finding *f);
	void *arg;
	bool clean; /* a store whose last user closed it: nothing is left to be recovered */
	struct fsck_summary sum;
	int result; /* the worst reason why something was not checked, or 0 */
	struct fmt_error why;
	char where[256];         /* of the findings to come */
	uint32_t seen[PR_COUNT]; /* of each problem, at @where */
};

/* Where the next findings are. Says how many were not shown at the last place. */
void fsck_at(struct fsck *f, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* A finding; the problem's own words come first. */
void fsck_found(struct fsck *f, enum fsck_problem problem, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
/* The same, of @bytes that nothing uses. */
void fsck_leaked(struct fsck *f, enum fsck_problem problem, uint64_t bytes, const char *fmt, ...)
	__attribute__((format(printf, 4, 5)));
/* Something was not checked, because of @r, a negative errno, which it returns. */
int fsck_cannot(struct fsck *f, int r, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

#endif
