/* SPDX-License-Identifier: MIT */
/*
 * snapshot.h - the coordinator of a cut: prepare, cut, drain, harden, commit (spec/snapshot.md).
 *
 * One thread runs a cut from eng_snapshot_prepare() to its end; eng_snapshot_cancel() may be called by
 * any other until the cut is decided.
 */
#ifndef ENGINE_SNAPSHOT_H
#define ENGINE_SNAPSHOT_H

#include "engine/store/store.h"

struct eng_snapshot;

/*
 * Guests that are frozen for the cut (spec/quiesce.md): told on the cut's own thread. @freeze is
 * called between prepare and the swap: 0 go on, 1 go on but nobody is held up, or an error that
 * ends the cut. @thaw follows it exactly once, whatever it returned, right after the swap or as soon
 * as there will be none; it does not wait. @settle, after a swap and before the commit: what the
 * snapshot is to say, or an error that ends it. @put, inside of the transaction of the commit.
 */
struct eng_snapshot_guests {
	void *arg;
	int (*freeze)(void *arg, struct fmt_error *err);
	void (*thaw)(void *arg);
	int (*settle)(void *arg, struct fmt_error *err, uint8_t *consistency, uint64_t *freeze_ns);
	void (*put)(void *arg, struct eng_catalog *catalog);
};

struct eng_snapshot_spec {
	struct cat_collection collection;
	struct fmt_uuid id; /* of the snapshot to be */
	char name[CAT_NAME_MAX];
	char element_name[CAT_TEXT_MAX];
	uint16_t type;
	uint8_t consistency, guest_backup_type;
	bool refpoint; /* the commit makes a reference point of that id and name, no snapshot */
	bool ignore_independent;                  /* skip independent disks instead of failing */
	uint64_t timeout_ns;                      /* from the start to the cut */
	uint64_t max_stall_ns;                    /* freeze plus cut; 0: no bound */
	const struct eng_snapshot_guests *guests; /* borrowed; NULL: none is frozen */
	struct cat_job job; /* committed with the snapshot: state, percent, times filled in */
};

struct eng_snapshot_times {
	uint64_t prepare_ns, cut_ns, drain_ns, harden_ns, commit_ns, total_ns;
	uint64_t max_write_latency_ns, freeze_ns;
	int64_t cut_wall_ns;
	uint32_t disks, skipped;
};

enum eng_snapshot_phase {
	ENG_SNAPSHOT_PREPARING = 0,
	ENG_SNAPSHOT_CUT = 1, /* decided: no cancel any more */
	ENG_SNAPSHOT_HARDENING = 2,
	ENG_SNAPSHOT_COMMITTED = 3,
	ENG_SNAPSHOT_FREEZING = 4, /* between prepare and the cut, where guests are frozen */
};

/*
 * Checks and claims: 0 and every member disk is busy until eng_snapshot_destroy(). -EBUSY: another
 * cut on a member; -ENODATA: no disk to snapshot; -EPERM: an independent disk; -EEXIST: name taken;
 * others: a disk that cannot be used. Nothing was changed. Does not wait.
 */
int eng_snapshot_check(struct eng_store *store, const struct eng_snapshot_spec *spec,
		       struct fmt_error *err, struct eng_snapshot **ret);
/*
 * Does it. 0: committed and durable. -ECANCELED, -ETIMEDOUT: ended before the cut, no effect. Other
 * errors: no snapshot; after the cut the overlays stay members of their chains. @phase is told as it
 * changes, on this thread.
 */
int eng_snapshot_run(struct eng_snapshot *snap, void (*phase)(void *arg, int phase), void *arg,
		     struct fmt_error *err, struct eng_snapshot_times *ret);
/* Any thread: true when the cut will not happen; false when it was decided already. */
bool eng_snapshot_cancel(struct eng_snapshot *snap);
/* Any thread: whether the cut may still happen: neither fired nor given up (cancel, RO-3). */
bool eng_snapshot_is_open(struct eng_snapshot *snap);
void eng_snapshot_destroy(struct eng_snapshot *snap); /* releases the disks; NULL is fine */

/*
 * The same for one disk without a snapshot (a roll, T6). The entry is busy by the caller. 0, or
 * -EBUSY and the like with no effect.
 */
int eng_roll_run(struct eng_entry *entry, struct fmt_error *err);
/*
 * FO-19: whether the head hides so much of the layer beneath it, which a fold could join it with, that a
 * roll pays. A look, true of a moment ago.
 */
int eng_roll_pays(struct eng_store *store, const struct fmt_uuid *disk, bool *ret);
/*
 * Rolls it where that pays, with @whole where the head holds anything at all: 1 when it did. -EBUSY: a cut
 * or the like has the disk. Any thread but the disk's worker and, with @whole, the folds'.
 */
int eng_roll_disk(struct eng_store *store, const struct fmt_uuid *disk, bool whole,
		  struct fmt_error *err);

#endif
