/* SPDX-License-Identifier: MIT */
/*
 * revert.h - ApplySnapshot: every disk of a collection back to a snapshot, in one transaction
 * (spec/branch.md AS-*). Control threads.
 */
#ifndef ENGINE_REVERT_H
#define ENGINE_REVERT_H

#include "engine/store/store.h"

struct eng_revert {
	const char *collection, *name; /* the snapshot */
	bool keep;                     /* the state that is left, as a snapshot (AS-4) */
	struct fmt_uuid kept_id;       /* of that one */
	char kept_name[CAT_NAME_MAX];
	struct cat_job job; /* committed with the revert: state, percent, times filled in */
};

struct eng_revert_result {
	uint32_t disks, removed; /* reverted; layers that went */
	/* Disks of the collection that the snapshot does not hold, "VM/DISK" (AS-1); free(). */
	char (*untouched)[CAT_NS_MAX];
	size_t untouched_count;
	uint64_t prepare_ns, commit_ns, total_ns;
};

/*
 * 0: done, durably. -ENOENT: no such snapshot; -EBUSY: a disk is attached, being cut, or changing;
 * -EXDEV: a disk is of no VM of the collection any more; -EEXIST: the name of the kept state is taken;
 * -ENOTRECOVERABLE: a disk that is refused or poisoned. Nothing was changed then. With a poisoned
 * catalog the next open decides.
 */
int eng_store_revert(struct eng_store *store, const struct eng_revert *how, struct fmt_error *err,
		     struct eng_revert_result *ret);

#endif
