/* SPDX-License-Identifier: MIT */
/*
 * diff.h - which blocks of a disk two of its states may differ in (spec/lifecycle.md 3, DF-*).
 *
 * The map is the change tracking: two states differ at most in what the layers hold that are under one
 * of them and not under the other, whichever is older and however they branched. Never fewer blocks than
 * differ; more only where nothing better is known.
 */
#ifndef ENGINE_DIFF_H
#define ENGINE_DIFF_H

#include "engine/diff/blocks.h"
#include "engine/store/store.h"

/* A state of a disk: what @layer holds at its top, but for the blocks of @extra. */
struct eng_state {
	struct fmt_uuid layer; /* none: now, what the disk's head holds */
	uint64_t size;         /* bytes of the disk then; 0: as the layer or the disk says */
	const struct eng_blocks *extra; /* count as changed since (DF-5), borrowed; or NULL */
};

/*
 * The blocks, of 1 << disk->block_bits bytes, in which @from and @to may differ: also in one that only the
 * longer of them has, when it holds something. For now as @from or @to: with every write that was
 * acknowledged before the call. Any thread but the one that works on the disk: -EDEADLK. Waits for a
 * cut of the disk to end (-EBUSY after a while), and holds nothing up but for moments. *@ret is the
 * caller's.
 */
int eng_diff(struct eng_store *store, const struct cat_disk *disk, const struct eng_state *from,
	     const struct eng_state *to, struct fmt_error *err, struct eng_blocks **ret);

/*
 * What only @state's own branch holds, against the chain under @top (none: the disk's head), with its
 * extra blocks; and the last layer under both, or none. @state is not now. Any thread; waits for nobody.
 */
int eng_diff_aside(struct eng_store *store, const struct cat_disk *disk,
		   const struct eng_state *state, const struct fmt_uuid *top, struct fmt_error *err,
		   struct fmt_uuid *common, struct eng_blocks **ret);

/* Adds what a layer that takes no more writes, open as @layer, holds of its own. For folds (T29). */
int eng_diff_add_layer(struct eng_blocks *set, struct eng_layer *layer, struct fmt_error *err);

#endif
