/* SPDX-License-Identifier: MIT */
/*
 * flatten.h - a clone made independent: what it has on other disks' layers is copied into a base of its
 * own (spec/branch.md FT-*). The calling thread waits for all of it; any thread but a queue's.
 */
#ifndef ENGINE_FLATTEN_H
#define ENGINE_FLATTEN_H

#include "engine/io/progress.h"
#include "engine/store/store.h"

/* Bytes of the disk that a flatten looks at, for the progress of several; 0: it stands on no other's. */
int eng_store_flatten_bytes(struct eng_store *store, const struct fmt_uuid *disk, uint64_t *ret);
/*
 * 0: nothing of the disk's chain is another disk's any more, durably, and its worker uses none of that;
 * also where it was so before. *@copied: bytes of data copied. @last: the work that @progress is of ends
 * with it (eng_progress_decide()). -ECANCELED: nothing was changed; -EBUSY: attached read-only.
 */
int eng_store_flatten(struct eng_store *store, const struct fmt_uuid *disk, bool last,
		      struct eng_progress *progress, struct fmt_error *err, uint64_t *copied);

#endif
