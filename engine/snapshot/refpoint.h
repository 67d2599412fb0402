/* SPDX-License-Identifier: MIT */
/*
 * refpoint.h - reference points of a store: made of a recovery snapshot, or of a cut that leaves no
 * snapshot, and removed (spec/refpoint.md RP-*). Control threads. What folds do to them:
 * fold_refpoints.h.
 */
#ifndef ENGINE_REFPOINT_H
#define ENGINE_REFPOINT_H

#include "engine/snapshot/snapshot.h"

/*
 * ConvertToReferencePoint (RP-7): @point's id, name, element name and creation time are given, the rest is
 * the snapshot's. 0: the point is there and the snapshot is gone, durably. @job, when its id is not none,
 * is recorded as running with the point and as completed with the end. -ENOENT: no such snapshot;
 * -EMEDIUMTYPE: no recovery snapshot; -EEXIST: the point's name is taken; other errors: nothing was
 * changed, or (*@marked) the point is there, and the next open removes the rest of the snapshot.
 */
int eng_refpoint_convert(struct eng_store *store, const char *collection, const char *snapshot,
			 struct cat_refpoint *point, struct cat_job *job, bool *marked,
			 struct fmt_error *err);
/*
 * DestroyReferencePoint (RP-9): 0 when it is gone, durably, with @job (its id may be none) as it ended.
 * -ENOENT; other errors: nothing was changed.
 */
int eng_refpoint_destroy(struct eng_store *store, const char *collection, const char *name,
			 const struct cat_job *job, struct fmt_error *err);

/* --- cuts that make one (RP-8): spec->refpoint of snapshot.h --- */
/* -EEXIST: the name is taken. */
int eng_refpoint_check_name(struct eng_store *store, const struct eng_snapshot_spec *spec,
			    struct fmt_error *err);
struct eng_member;
/* The rows, in the transaction of the cut's commit. */
void eng_refpoint_put_cut(struct eng_store *store, const struct eng_snapshot_spec *spec,
			  int64_t cut_wall_ns, const struct eng_member *members, size_t count);

#endif
