/* SPDX-License-Identifier: MIT */
/*
 * branch.h - new heads on a snapshot's layers: what a revert and a clone have in common (spec/branch.md).
 *
 * The snapshot's disks are claimed, so that no fold puts other layers in the place of the snapshot's;
 * an overlay for each is made, durable with its name; then the caller's one transaction makes heads of
 * them. A crash before it leaves files that no row names, which the next open removes.
 * One control thread a branch.
 */
#ifndef ENGINE_BRANCH_H
#define ENGINE_BRANCH_H

#include "engine/store/overlay.h"

struct eng_branch {
	struct eng_store *store;
	const char *collection, *name; /* the snapshot's; borrowed */
	struct cat_snapshot snap;
	/* Of the snapshot: those it holds, then those that it was made without. */
	struct cat_snapshot_disk *rows;
	size_t count, skipped;
	/* By those held; the members are the caller's to fill in, pending excepted. */
	struct fmt_uuid *disks;
	struct eng_entry **entries;
	struct eng_member *members;
	bool claimed;
	struct eng_batch *batch;
};

/* The snapshot and its disks. -ENOENT: no such snapshot. eng_branch_fini() in every case. */
int eng_branch_find(struct eng_branch *b, struct fmt_error *err);
/* Its disks are the caller's until fini, and the rows are as they stay. -EBUSY: not in ten seconds. */
int eng_branch_claim(struct eng_branch *b, struct fmt_error *err);
/* The members' new heads, durable with their names: each on member->parent. Sets up the batch. */
int eng_branch_create_overlays(struct eng_branch *b, struct fmt_error *err);

/* --- in the caller's transaction --- */
/* GB-3: the snapshot is there yet. */
int eng_branch_recheck(struct eng_branch *b, struct fmt_error *err);
/* The new layer, and the disk that it is the head of. */
void eng_branch_put_head(struct eng_branch *b, struct eng_member *m);

/* Nothing was committed: the overlays go. */
void eng_branch_undo(struct eng_branch *b);
void eng_branch_fini(struct eng_branch *b);

#endif
