/* SPDX-License-Identifier: MIT */
/*
 * layer.h - one layer under check: what its header says, the runs of its log, the map they make. The
 * passes hand it on: header.c, log.c, map.c, seal.c. Each reports what it finds; its result only says
 * whether the next one has something to stand on. One thread a check.
 */
#ifndef FSCK_LAYER_H
#define FSCK_LAYER_H

#include "format/layer.h"
#include "fsck/problem.h"

#define FSCK_BUF (1u << 20) /* read at once, longer than any record */

struct fsck_run {
	uint64_t block;
	uint32_t slot, count;
	uint8_t kind;
	bool dropped; /* names its slots, but the map does not have it (ML-9) */
};

struct fsck_runs {
	struct fsck_run *run;
	size_t count, cap;
};

struct fsck_segment {
	uint64_t slot, end; /* slots; the first segment lies before them and is not here */
};

struct fsck_layer {
	struct fsck *f;
	const char *path;
	struct eng_file *file;
	struct eng_stat st;
	struct fmt_header hdr;
	uint8_t *buf;                  /* FSCK_BUF bytes, whoever reads */
	uint64_t blocks;               /* of the disk */
	uint64_t file_slots;           /* whole slots in the file, at most FMT_SLOT_NONE */
	struct fsck_runs log;          /* all runs of the log, in its order */
	struct fsck_segment *segments; /* by slot */
	size_t segment_count, segment_cap;
	uint64_t log_slots;    /* behind the last slot that a run or segment names */
	bool log_sound;        /* the whole log was read */
	struct fsck_runs map;  /* of the log: by block, none overlapping another */
	struct fmt_gone *gone; /* slots that are gone (GO-2); as many as the header says, or NULL */
};

/*
 * Checks the layer in the file @path, all of it. @kind: enum fmt_kind expected, 0: any. 0 with its
 * header in *@ret, -ENOENT without a report when there is no file, another error when the header could
 * not be had; why is reported.
 */
int fsck_layer(struct fsck *f, const char *path, uint32_t kind, struct fmt_header *ret);

/* Reads all @len bytes. 0; -ENODATA: the file ends before; other errors are reported. */
int fsck_read(struct fsck_layer *l, void *buf, size_t len, uint64_t offset);
/* Appends; -ENOMEM is reported. */
int fsck_runs_add(struct fsck *f, struct fsck_runs *runs, const struct fsck_run *run);
/* The runs of data in @runs, sorted by slot. -ENOMEM is reported; free(ret->run) in any case. */
int fsck_runs_by_slot(struct fsck *f, const struct fsck_runs *runs, struct fsck_runs *ret);

/* header.c: both slots, and which counts (LH-*). 0, or negative: no header. */
int fsck_header(struct fsck *f, const uint8_t slots[2 * FMT_PAGE], struct fmt_header *ret);
/* log.c: the log from its first record to its end (ML-*). 0, or negative: not all of it. */
int fsck_log(struct fsck_layer *l);
/* map.c: who owns which slot (RU-4), then the map that the log makes (RU-3). 0 or -ENOMEM. */
int fsck_map(struct fsck_layer *l);
/* gone.c: reads the list of slots that are gone. What is wrong with it is reported. */
void fsck_gone_load(struct fsck_layer *l);
bool fsck_is_gone(const struct fsck_layer *l, uint64_t slot);
/* That each of them is named by one of @used, which are sorted by slot. */
void fsck_gone_named(const struct fsck_layer *l, const struct fsck_runs *used);
/* seal.c: index, checksums, data and seal hash of a sealed layer (IX-*, CS-*, SL-*). */
void fsck_seal(struct fsck_layer *l);

#endif
