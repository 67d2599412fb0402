/* SPDX-License-Identifier: MIT */
/*
 * garbage.h - layers that nothing refers to any more (spec/branch.md GB-*): their rows in the
 * transaction that makes them so, their files after it.
 */
#ifndef ENGINE_GARBAGE_H
#define ENGINE_GARBAGE_H

#include "engine/store/store.h"

/* What one transaction has removed; zeros to begin with. */
struct eng_garbage {
	struct cat_layer *rows;
	size_t count, cap;
};

/*
 * Removes the rows of the disk's garbage, in the caller's transaction, and notes them. Not while a
 * snapshot of the disk is read (eng_garbage_is_read()).
 */
int eng_garbage_rows(struct eng_store *store, const struct fmt_uuid *disk, struct eng_garbage *g);
/* GB-2: somebody reads a snapshot of the disk, or what was its newest state at an attach. Any thread. */
bool eng_garbage_is_read(struct eng_store *store, const struct fmt_uuid *disk);
/* The transaction is durable: removes the files. */
void eng_garbage_files(struct eng_store *store, const struct eng_garbage *g);
void eng_garbage_fini(struct eng_garbage *g);

/* All of it for one disk, where nobody reads or has it: the folds' thread. */
int eng_garbage_sweep(struct eng_store *store, const struct fmt_uuid *disk);

#endif
