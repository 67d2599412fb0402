/* SPDX-License-Identifier: MIT */
/*
 * overlay.h - the coordinator's work on many layers at once, over a ring of its own: overlays created
 * and made durable, frozen layers hardened, boundaries recorded. One thread a batch.
 */
#ifndef ENGINE_OVERLAY_H
#define ENGINE_OVERLAY_H

#include "engine/store/store.h"

struct eng_batch;

int eng_batch_create(struct eng_store *store, struct eng_batch **ret);
void eng_batch_destroy(struct eng_batch *batch); /* NULL is fine */

/* One disk of a cut. */
struct eng_member {
	struct cat_disk disk;
	struct eng_entry *entry;
	struct eng_layer *tail;    /* frozen by the cut; a reference */
	struct eng_layer *pending; /* its successor; a reference */
	bool from_standby;
	bool attached;  /* pending hangs under tail */
	bool bounded;   /* the boundary may have been written */
	bool settled;   /* FROZEN without a boundary, durably (eng_batch_unbound()) */
	uint32_t index; /* place among the snapshot's disks */
	bool branch;    /* pending stands on @parent, not on tail, and is made anew (AS-3, CL-2) */
	struct fmt_uuid parent;
	uint64_t generation; /* of the branch */
};

/*
 * The member's row and its chain's end (member.c): its entry is busy by the caller, so that neither
 * changes. -ENOTRECOVERABLE poisoned; -EBUSY too many layers that are not durable (JN-5).
 */
int eng_member_open(struct eng_store *store, struct eng_member *m, bool for_snapshot,
		    struct fmt_error *err);

/* Creates (or takes the standby of) every member's pending overlay, durable with its name. */
int eng_batch_create_overlays(struct eng_batch *batch, struct eng_member *members, size_t count,
			      struct fmt_error *err);
/* Makes every frozen, drained layer durable; claims each just before its own I/O (CU-15). */
int eng_batch_harden(struct eng_batch *batch, struct eng_member *members, size_t count,
		     uint64_t deadline_ns, struct fmt_error *err);
/* FROZEN, and the boundary of @snapshot in every member's header (none: a roll). */
int eng_batch_bound(struct eng_batch *batch, struct eng_member *members, size_t count,
		    const struct fmt_uuid *snapshot, struct fmt_error *err);
/* T22: every hardened member FROZEN and without a boundary: their successors are members. */
int eng_batch_unbound(struct eng_batch *batch, struct eng_member *members, size_t count);

/* Makes the headers that the layers' files show durable (LH-13), all at once; open for writing. */
int eng_batch_settle(struct eng_batch *batch, struct eng_layer *const *layers, size_t count);

#endif
