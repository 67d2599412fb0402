/* SPDX-License-Identifier: MIT */
/*
 * problem.c - the table of problems, and reporting them. A problem has two severities: in a store that
 * was closed cleanly, where nothing may be left over, and elsewhere, where the next open recovers
 * (CK-4). One thread a check.
 */
#include "fsck/problem.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define SHOWN_MAX 16u /* findings of one problem at one place */

enum { N = FSCK_NOTE, L = FSCK_LEAK, C = FSCK_CORRUPT };

static const struct {
	const char *rule;
	uint8_t clean, unclean;
	const char *text;
} problems[PR_COUNT] = {
	[PR_HEADER_SHORT] = {"LH-1", C, C, "the file ends inside its header slots"},
	[PR_HEADER_TORN] = {"LH-4", C, C, "no header slot is valid"},
	[PR_HEADER_OLD_TORN] = {"LH-3", N, N, "one header slot is torn; the other one counts"},
	[PR_HEADER_PLACE] = {"LH-4", C, C, "a header is in the wrong slot"},
	[PR_HEADER_GEOMETRY] = {"LH-6", C, C, "the header's geometry is broken"},
	[PR_HEADER_IDENTITY] = {"LH-7", C, C, "the header's identity is broken"},
	[PR_HEADER_BOUNDARY] = {"BD-1", C, C, "the header's boundary is broken"},
	[PR_HEADER_FOLDED] = {"FD-1", C, C, "the header's list of replaced layers is broken"},
	[PR_HEADER_GONE] = {"GO-1", C, C, "the header's list of gone slots is broken"},
	[PR_HEADER_SEAL] = {"SL-2", C, C, "the header's seal is broken"},
	[PR_HEADER_SEQ] = {"LH-1", C, C, "the header slots do not follow each other"},
	[PR_HEADER_CHANGED] = {"LH-11", C, C, "a header changed what never changes"},
	[PR_HEADER_UNKNOWN] = {"FB-1", N, N, "the layer needs another version of this program"},
	[PR_HEADER_RO_COMPAT] = {"FB-1", N, N, "features that allow reading only"},
	[PR_HEADER_KIND] = {"LH-2", C, C, "the file is not of the kind expected"},
	[PR_HEADER_STATES] = {"LH-12", C, C, "no change of state leads from the older header here"},
	[PR_JOURNAL_NAMED] = {"LH-10", C, N, "the header names a journal"},
	[PR_LOG_SHORT] = {"ML-1", C, C, "the file ends inside its log"},
	[PR_LOG_RECORD] = {"ML-5", C, C, "a log record breaks a rule"},
	[PR_LOG_RUN] = {"RU-2", C, C, "a log record names what is not there"},
	[PR_LOG_LINK] = {"ML-6", C, C, "a log segment is not where one may be"},
	[PR_LOG_JOURNAL_SEQ] = {"ML-2", C, C, "the log's journal number falls"},
	[PR_LOG_ONE_FLUSH] = {"ML-9", C, C, "one-flush record without the feature bit ONE_FLUSH"},
	[PR_LOG_DROPPED] = {"ML-9b", N, N, "blocks of the last record were not durable with it"},
	[PR_LOG_ROT] = {"ML-8", C, C, "the log is damaged before its end"},
	[PR_LOG_TORN] = {"ML-8", C, N,
			 "the log's end is not zeros: a torn record, or a damaged one"},
	[PR_LOG_ENDS_EARLY] = {"ML-7", C, C, "the log has lost records"},
	[PR_LOG_ENDS_LATE] = {"ML-7", C, C, "the log goes on after the freeze"},
	[PR_SLOT_TWICE] = {"RU-4", C, C, "a slot is named for two blocks"},
	[PR_SLOT_IN_LOG] = {"RU-4", C, C, "a slot of a log segment is named for a block"},
	[PR_SLOT_UNNAMED] = {"SP-5", N, N, "slots that nothing names"},
	[PR_SLOT_TAIL] = {"SP-4", C, C, "bytes past the disk's end are not zeros"},
	[PR_SEAL_BOUNDS] = {"SL-2", C, C, "index or checksums are past the file's end"},
	[PR_SEAL_SLOTS] = {"SL-2", C, C, "the log uses more slots than were sealed"},
	[PR_PAGE_CSUM] = {"IX-1", C, C, "an index page is damaged"},
	[PR_PAGE_SHAPE] = {"IX-2", C, C, "an index page is not the one expected"},
	[PR_LEAF_ORDER] = {"IX-3", C, C, "an index leaf breaks a rule"},
	[PR_INNER_KEYS] = {"IX-4", C, C, "an inner index page breaks a rule"},
	[PR_INDEX_RUN] = {"RU-2", C, C, "the index names what is not there"},
	[PR_INDEX_DIFFERS] = {"IX-5", C, C, "the index does not say what the log says"},
	[PR_CSUM_PAGE] = {"CS-1", C, C, "a checksum page is damaged"},
	[PR_CSUM_UNUSED] = {"CS-3", N, N, "checksums of slots that nothing names"},
	[PR_DATA_CSUM] = {"CS-2", C, C, "data is damaged"},
	[PR_SEAL_HASH] = {"SL-3", C, C, "index and checksums do not match the seal hash"},
	[PR_SEAL_LEAK] = {"SL-1", L, L, "space behind a sealed layer's pages"},
	[PR_GONE_LIST] = {"GO-2", C, C, "the list of gone slots is damaged"},
	[PR_GONE_UNNAMED] = {"GO-3", C, C, "slots are gone that hold no block"},
	[PR_GONE_MASK] = {"PU-2", C, C, "what is gone is held by nothing above"},
	[PR_BASE_MISSING] = {"SC-6", C, C, "the base's file is missing"},
	[PR_BASE_KIND] = {"SC-1", C, C, "the base's file is not of its kind"},
	[PR_BASE_CHANGED] = {"SC-3", C, C, "a frozen base was changed behind our back"},
	[PR_BASE_MOVED] = {"IB-2", N, N, "the file is not the one that was claimed"},
	[PR_BASE_SHARED] = {"T31", C, C, "two disks claim one file"},
	[PR_BASE_UNFINISHED] = {"RV-11", C, N, "a fold into the base that did not commit"},
	[PR_SIDECAR_SIZE] = {"SC-1", L, L, "the sidecar is longer than two header slots"},
	[PR_QCOW2_HEADER] = {"Q2-3", C, C, "the qcow2 header breaks a rule"},
	[PR_QCOW2_UNKNOWN] = {"Q2-10", N, N, "the image needs what this version does not read"},
	[PR_QCOW2_L1_TABLE] = {"Q2-14", C, C, "the L1 table is past the file's end"},
	[PR_QCOW2_L1_ENTRY] = {"Q2-15", C, C, "an L1 entry breaks a rule"},
	[PR_QCOW2_L2_TABLE] = {"Q2-15", C, C, "an L2 table is past the file's end"},
	[PR_QCOW2_L2_SHARED] = {"Q2-15", N, N, "two L1 entries name one L2 table"},
	[PR_QCOW2_L2_ENTRY] = {"Q2-17", C, C, "an L2 entry breaks a rule"},
	[PR_QCOW2_DATA] = {"Q2-22", C, C, "data is past the file's end"},
	[PR_CATALOG_MISSING] = {"CT-4", C, C, "the catalog is missing"},
	[PR_CATALOG_DAMAGED] = {"CT-4", C, C, "the catalog cannot be used"},
	[PR_CATALOG_ROWS] = {"CT-10", C, C, "the catalog is damaged"},
	[PR_FACTS] = {"CT-3", C, C, "the catalog does not say which store it is of"},
	[PR_UNCLEAN] = {"RV-2", N, N, "the store was not closed"},
	[PR_FILE_MISSING] = {"RV-9", C, C, "a layer's file is missing"},
	[PR_PENDING_MISSING] = {"RV-4", L, N, "a pending layer has no file"},
	[PR_FILE_ORPHAN] = {"RV-9", L, L, "a file that no row names"},
	[PR_ROW_PENDING] = {"RV-4", L, N, "a pending layer of a cut that ended"},
	[PR_ROW_UNREACHED] = {"RV-9", L, L, "a layer that no disk and no snapshot stands on"},
	[PR_ROW_IDENTITY] = {"LH-7", C, C, "the header is of another layer than the catalog says"},
	[PR_ROW_PARENT] = {"BY-4", C, C, "header and catalog disagree about the parent"},
	[PR_ROW_GENERATION] = {"CT-11", C, C, "header and catalog disagree about the generation"},
	[PR_ROW_STATE] = {"LH-12", C, C, "header and catalog disagree about the state"},
	[PR_ROW_BLOCK_BITS] = {"LH-11", C, C, "the block size is not the disk's"},
	[PR_CHAIN_BROKEN] = {"CT-11", C, C, "the chain is broken"},
	[PR_PARENT_HASH] = {"SL-4", C, C, "the parent is not the layer that this one was made on"},
	[PR_HEAD_MISSING] = {"CT-5", C, C, "the disk has no head"},
	[PR_HEAD_BEHIND] = {"CU-19", C, C, "the disk's head is not the top of its chain"},
	[PR_HEAD_STATE] = {"CU-18", C, N, "the disk's head is not active in the catalog"},
	[PR_HEAD_FROZEN] = {"LH-12", C, N, "the disk's head is frozen"},
	[PR_SIZE_SMALLER] = {"AT-6", C, C, "the layer is smaller than its disk"},
	[PR_SIZE_LARGER] = {"AT-6", N, N, "a resize did not commit, or the disk was made smaller"},
	[PR_SNAPSHOT_UNFINISHED] = {"RV-7", L, N, "what is left of a snapshot that is none"},
	[PR_SNAPSHOT_COUNT] = {"CU-18", C, C, "the snapshot does not have the disks it says"},
	[PR_SNAPSHOT_LAYER] = {"CU-18", C, C, "a disk of the snapshot has no layer of its own"},
	[PR_SNAPSHOT_BOUNDARY] = {"BD-2", C, C, "a layer's boundary is not the snapshot's"},
	[PR_SNAPSHOT_SIZE] = {"AT-6", C, C, "the layer is smaller than the snapshot's disk"},
	[PR_SNAPSHOT_SOFT] = {"CU-18", C, C, "a layer beneath the snapshot is not hardened"},
	[PR_REFPOINT_COUNT] = {"RP-1", C, C, "the point does not have the disks it says"},
	[PR_REFPOINT_LAYER] = {"RP-4", C, C, "the layer of a point's disk"},
	[PR_REFPOINT_SET] = {"RP-16", C, C, "a saved set is damaged: changes cannot be told"},
	[PR_REFPOINT_LOST] = {"RP-15", N, N, "change tracking of a disk is lost"},
	[PR_BOUNDARY_STRAY] = {"BD-3", C, N, "a boundary of a snapshot that is none"},
	[PR_BOUNDARY_UNKNOWN] = {"BD-3", C, C,
				 "a boundary of a snapshot that the catalog never knew"},
	[PR_BOUNDARY_LEFT] = {"BD-3", C, N, "a boundary that a revert left which did not commit"},
};

/* "N more" of what was not shown at the place that is left. */
static void say_rest(struct fsck *f)
{
	for (unsigned i = 0; i < PR_COUNT; i++) {
		char text[128];
		struct fsck_finding rest = {
			.rule = problems[i].rule,
			.severity = f->clean ? problems[i].clean : problems[i].unclean,
			.where = f->where,
			.message = text,
		};

		if (f->seen[i] <= SHOWN_MAX)
			continue;
		snprintf(text, sizeof(text), "%s: %" PRIu32 " more of these", problems[i].text,
			 f->seen[i] - SHOWN_MAX);
		f->finding(f->arg, &rest);
	}
}

void fsck_at(struct fsck *f, const char *fmt, ...)
{
	va_list ap;

	say_rest(f);
	memset(f->seen, 0, sizeof(f->seen));
	va_start(ap, fmt);
	vsnprintf(f->where, sizeof(f->where), fmt, ap);
	va_end(ap);
}

static void report(struct fsck *f, enum fsck_problem problem, uint64_t bytes, const char *fmt,
		   va_list ap)
{
	bool settled = !f->clean && problems[problem].unclean < problems[problem].clean;
	struct fsck_finding found = {
		.rule = problems[problem].rule,
		.severity = f->clean ? problems[problem].clean : problems[problem].unclean,
		.where = f->where,
		.leaked_bytes = bytes,
	};
	char details[384], text[512];

	if (found.severity == FSCK_CORRUPT)
		f->sum.corruptions++;
	if (found.severity == FSCK_LEAK) {
		f->sum.leaks++;
		f->sum.leaked_bytes += bytes;
	}
	if (f->seen[problem]++ >= SHOWN_MAX)
		return;
	vsnprintf(details, sizeof(details), fmt, ap);
	snprintf(text, sizeof(text), "%s: %s%s", problems[problem].text, details,
		 settled ? " (the next open settles it)" : "");
	found.message = text;
	f->finding(f->arg, &found);
}

void fsck_found(struct fsck *f, enum fsck_problem problem, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	report(f, problem, 0, fmt, ap);
	va_end(ap);
}

void fsck_leaked(struct fsck *f, enum fsck_problem problem, uint64_t bytes, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	report(f, problem, bytes, fmt, ap);
	va_end(ap);
}

int fsck_cannot(struct fsck *f, int r, const char *fmt, ...)
{
	bool worse = f->result == 0 || (r == -ENOTSUP && f->result != -ENOTSUP); /* CK-2 */
	char text[256];
	va_list ap;

	if (!worse)
		return r;
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	f->result = fmt_fail(&f->why, r, "%s", text);
	return r;
}
