/* SPDX-License-Identifier: MIT */
/*
 * fold_move.h - moves blocks of sealed overlays to their places in one file: what both kinds of folds
 * spend their time with. Several reads and writes are under way at once, past the page cache where the
 * files allow it. One thread, which owns the ring; the overlays are only read.
 */
#ifndef ENGINE_FOLD_MOVE_H
#define ENGINE_FOLD_MOVE_H

#include "engine/layer/index.h"
#include "engine/layer/layer.h"
#include "engine/io/progress.h"

/* A block to be moved. */
struct eng_fold_item {
	uint64_t to; /* place in the file, in blocks from @start */
	uint32_t slot, input;
};

struct fold_unit;

struct eng_fold_move {
	struct eng_io *io;
	struct eng_file *hold;      /* T19: the store's lock; NULL: none */
	struct eng_layer **inputs;  /* sealed overlays; borrowed, as all that follows */
	struct eng_index **indexes; /* theirs */
	uint32_t count;
	const char *path;        /* of the file, which exists */
	uint64_t start;          /* offset of place 0 */
	uint64_t end;            /* no byte is written from this offset on */
	bool direct;             /* where the file system has it, and @end allows it */
	uint64_t *csums;         /* by place: filled in where it is not NULL */
	bool (*stop)(void *arg); /* asked often; true ends it with -ECANCELED */
	void *arg;
	struct eng_progress *progress; /* or NULL: moved bytes count, read ones are limited */
	struct fmt_error *err;         /* or NULL */

	struct eng_file *out; /* the file, for other writes in between */

	/* private */
	struct eng_ring *ring;
	struct eng_file **files;
	struct fold_unit *units;
	uint32_t bits;
	unsigned writing;  /* writes under way */
	uint64_t unsynced; /* bytes, where they are not direct */
	uint64_t owed;     /* bytes that small writes count for beyond their length */
	int result;        /* the first error */
};

/* Opens the files and the ring. After a failure, too, eng_fold_move_fini(). */
int eng_fold_move_init(struct eng_fold_move *m);
void eng_fold_move_fini(struct eng_fold_move *m);
/*
 * Moves the items, which are sorted by input and slot: all are written when it returns 0, and nothing is
 * under way whatever it returns. -EBADMSG: a block does not match its checksum, and was not written (P6).
 */
int eng_fold_move(struct eng_fold_move *m, const struct eng_fold_item *items, uint32_t count);
int eng_fold_move_sync(struct eng_fold_move *m); /* makes it durable */

#endif
