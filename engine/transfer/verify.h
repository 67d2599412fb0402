/* SPDX-License-Identifier: MIT */
/*
 * verify.h - every block of a snapshot, or of a stream, read again and compared with its checksum
 * (spec/stream.md VF-*). The calling thread; any thread but a queue's.
 */
#ifndef ENGINE_VERIFY_H
#define ENGINE_VERIFY_H

#include "engine/io/progress.h"
#include "engine/store/store.h"
#include "engine/transfer/stream_in.h"

#define ENG_VERIFY_FINDINGS 1000u /* told; all are counted */

struct eng_verify_finding {
	char disk[2 * CAT_NAME_MAX]; /* "VM/DISK" */
	struct fmt_uuid layer;
	uint64_t offset; /* of the disk, bytes; UINT64_MAX: not of one block */
	char text[256];
};

struct eng_verify_report {
	uint64_t bytes, unverified_bytes; /* read and compared; read only */
	uint32_t disks, layers, unverified_layers;
	uint64_t damaged; /* findings */
	struct eng_verify_finding *findings;
	uint32_t count; /* of them here */
};
void eng_verify_report_fini(struct eng_verify_report *report);

/* 0 also with findings: report->damaged. -ENOENT, -ECANCELED. */
int eng_store_verify_snapshot(struct eng_store *store, const char *collection, const char *name,
			      struct eng_progress *progress, struct fmt_error *err,
			      struct eng_verify_report *ret);

/* What was found before the first thing that is wrong; ret->in is closed by the caller. */
struct eng_verify_stream {
	struct eng_stream_in *in; /* NULL: no header, or no manifest */
	uint64_t frames, bytes;
};
/* 0: whole and sound. -ECANCELED when @progress says so (not 0) or what is wrong. */
int eng_verify_stream(const struct eng_stream_source *source,
		      int (*progress)(void *arg, uint64_t done), void *arg, struct fmt_error *err,
		      struct eng_verify_stream *ret);

#endif
