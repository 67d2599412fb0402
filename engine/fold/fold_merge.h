/* SPDX-License-Identifier: MIT */
/*
 * fold_merge.h - the indexes of adjacent sealed overlays laid over each other, window by window: which
 * of them holds a block newest, and in which slot (FD-3). One thread; the layers are only read.
 */
#ifndef ENGINE_FOLD_MERGE_H
#define ENGINE_FOLD_MERGE_H

#include "engine/layer/index.h"
#include "engine/layer/layer.h"

#define ENG_FOLD_WINDOW (1u << 18)    /* blocks merged at a time */
#define ENG_FOLD_ZERO   FMT_SLOT_NONE /* a block's slot: it reads as zeros */

struct eng_fold_merge {
	struct eng_layer **layers; /* lowest first; borrowed */
	uint32_t count;            /* below 65535 */
	uint64_t blocks;           /* of the disk */
	struct fmt_error *err;     /* or NULL */

	/* what eng_fold_merge_next() found */
	uint64_t first;  /* first block of the window */
	uint32_t length; /* blocks */
	uint16_t *owner; /* place in @layers + 1; 0: none holds the block */
	uint32_t *slot;  /* of an owned block */

	/* private */
	struct eng_index **indexes;
	uint32_t layer; /* whose runs are being entered */
	bool touched;
};

/* Opens the indexes. After a failure, too, eng_fold_merge_fini(). */
int eng_fold_merge_init(struct eng_fold_merge *m);
void eng_fold_merge_fini(struct eng_fold_merge *m);
/* Fills the window of the first block from @from on that any layer holds: 1; 0: there is none. */
int eng_fold_merge_next(struct eng_fold_merge *m, uint64_t from);

#endif
