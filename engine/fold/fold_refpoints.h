/* SPDX-License-Identifier: MIT */
/*
 * fold_refpoints.h - reference points whose layers go: the blocks that their sets must keep, made before
 * anything is locked, and put in the very transaction that removes the layers (T29; spec/refpoint.md
 * RP-11..RP-18). One thread a move.
 */
#ifndef ENGINE_FOLD_REFPOINTS_H
#define ENGINE_FOLD_REFPOINTS_H

#include "engine/diff/blocks.h"
#include "engine/store/store.h"

#define ENG_REFPOINT_SET_MAX  (16u << 20) /* bytes of one saved set (RP-17) */
#define ENG_REFPOINT_FOLD_MAX (64u << 20) /* bytes of all sets of one move (RP-18) */

struct eng_refpoint_moves;

/*
 * For a run of sealed overlays that becomes one layer, lowest first: makes the sets of the points at all
 * but the topmost. Points at the topmost keep theirs: eng_catalog_replace_layer() moves them. @beneath: the
 * layer under the run, where the run becomes part of that one; else NULL.
 */
int eng_refpoint_moves_prepare(struct eng_store *store, const struct fmt_uuid *beneath,
			       struct eng_layer *const *inputs, size_t count, struct fmt_error *err,
			       struct eng_refpoint_moves **ret);
/*
 * In the transaction that removes the layers, before eng_catalog_replace_layer(): the points become
 * @result's, which may be the layer beneath. -ESTALE: there is one that was not there at the
 * preparation; the caller rolls back.
 */
int eng_refpoint_moves_put(struct eng_catalog *cat, const struct eng_refpoint_moves *moves,
			   const struct fmt_uuid *result);
void eng_refpoint_moves_destroy(struct eng_refpoint_moves *moves); /* NULL is fine */

/*
 * RP-13: points at ends of branches of the disk, which no snapshot, head or child needs, go to the layers
 * beneath, end by end, each a transaction of its own; nothing then refers to those ends. Ends that are
 * not sealed stay for the next time.
 */
int eng_refpoint_leave_ends(struct eng_store *store, const struct fmt_uuid *disk,
			    struct fmt_error *err);

/*
 * A disk of a point as of now: its row, and its saved set, NULL for none; eng_blocks_destroy(). -ENOENT;
 * -ENODATA: tracking is lost (RP-15), which no caller may take for "no changes".
 */
int eng_refpoint_state(struct eng_store *store, const struct fmt_uuid *refpoint,
		       const struct fmt_uuid *disk, struct fmt_error *err,
		       struct cat_refpoint_disk *ret, struct eng_blocks **saved);
/*
 * For who has used what eng_refpoint_state() said, and held the chain meanwhile: 0, or -ENOENT: a fold came
 * between, ask anew. One into the base leaves a point's layer as it is and shows in the set alone, which
 * only grows (RP-11).
 */
int eng_refpoint_unmoved(struct eng_store *store, const struct fmt_uuid *refpoint,
			 const struct fmt_uuid *disk, const struct fmt_uuid *layer,
			 const struct eng_blocks *saved);

#endif
