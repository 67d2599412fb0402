/* SPDX-License-Identifier: MIT */
/* shrink.h - disks made smaller (spec/space.md RZ-*). Control threads. */
#ifndef ENGINE_SHRINK_H
#define ENGINE_SHRINK_H

#include "engine/store/store.h"

/*
 * Cuts the disk off at @size: what was beyond is gone from it, and reads as zeros when it grows
 * again; its snapshots keep theirs. -EBUSY: attached, or a snapshot is being created; -EINVAL: not
 * smaller, or no multiple of the disk's block size. *@marked: committed, but not finished: the next
 * open does that.
 */
int eng_store_shrink_disk(struct eng_store *store, const char *vm, const char *name, uint64_t size,
			  bool *marked, struct fmt_error *err);
/* At open, after the recovery: finishes one that was cut short (RZ-3). */
int eng_store_finish_shrink(struct eng_store *store, struct fmt_error *err);

#endif
