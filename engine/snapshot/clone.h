/* SPDX-License-Identifier: MIT */
/*
 * clone.h - a collection made from a snapshot: VMs and disks of their own, whose layers stand on the
 * snapshot's, in one transaction (spec/branch.md CL-*). Control threads.
 */
#ifndef ENGINE_CLONE_H
#define ENGINE_CLONE_H

#include "engine/store/store.h"

struct eng_clone {
	const char *collection, *name; /* the snapshot */
	const char *to;                /* the new collection; VMs are named TO-VM */
	struct cat_job job; /* committed with the clone: state, percent, times filled in */
};

struct eng_clone_result {
	struct fmt_uuid collection;
	uint32_t vms, disks;
	char (*skipped)[CAT_NS_MAX]; /* "VM/DISK" that the snapshot does not hold; free() */
	size_t skipped_count;
	uint64_t prepare_ns, commit_ns, total_ns;
};

/*
 * 0: made, durably, writable at once. -ENOENT: no such snapshot; -EEXIST: the collection, or a VM of that
 * name, is there; -EINVAL: a VM's name would be too long; -EBUSY: a disk of it is being cut or changed for
 * longer than we wait. Nothing was changed then.
 */
int eng_store_clone(struct eng_store *store, const struct eng_clone *how, struct fmt_error *err,
		    struct eng_clone_result *ret);

#endif
