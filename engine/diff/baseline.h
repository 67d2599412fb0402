/* SPDX-License-Identifier: MIT */
/*
 * baseline.h - a state of a disk, as block status compares an attachment with it (spec/lifecycle.md DF-14):
 * what is held by a layer above the last one that both stand on has changed, and so has what only the
 * baseline's own branch holds, which is a set.
 *
 * Made by any thread, which reads files; put on the disk by its worker, whose it is from then on. Until
 * then no fold of the disk commits (FO-5): layers that are named here stay what they are.
 */
#ifndef ENGINE_BASELINE_H
#define ENGINE_BASELINE_H

#include "engine/diff/diff.h"

struct eng_baseline;

/* @state against the chain under @top, none: the disk's head. -ENOENT and others: cannot be told. */
int eng_baseline_create(struct eng_store *store, const struct cat_disk *disk,
			const struct eng_state *state, const struct fmt_uuid *top,
			struct fmt_error *err, struct eng_baseline **ret);
void eng_baseline_destroy(struct eng_baseline *base); /* NULL is fine */

/* The worker: from here on it compares with @disk, an attachment of what @top named. */
void eng_baseline_attach(struct eng_baseline *base, struct eng_disk *disk);
/*
 * The worker: for how many bytes from @offset on, @extent->length at most, the extent there is of one kind:
 * *@changed.
 */
uint64_t eng_baseline_extent(const struct eng_baseline *base, struct eng_disk *disk,
			     uint64_t offset, const struct eng_disk_extent *extent, bool *changed);

#endif
