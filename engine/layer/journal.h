/* SPDX-License-Identifier: MIT */
/*
 * journal.h - what a disk's worker has published but not yet logged, in shared memory: it survives
 * the death of the process, not of the host (T20; spec/snapshot.md JN-1..JN-9).
 *
 * JN-1: order is data, journal, publish, acknowledge. JN-4: every entry has a number, rising by one
 * over the disk's life; replay applies only entries above the number the layer's log covers. One
 * journal an attached disk; it serves up to ENG_JOURNAL_LAYERS layers of it that are not hardened.
 * The worker appends; eng_journal_drop() is the worker's too. Opening is recovery's.
 */
#ifndef ENGINE_JOURNAL_H
#define ENGINE_JOURNAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/io/io.h"
#include "format/layer.h"

#define ENG_JOURNAL_LAYERS  16u
#define ENG_JOURNAL_ENTRIES 8192u /* of 24 bytes: 192 KiB a disk */

struct eng_journal;

/*
 * Creates an empty journal for @disk with a fresh nonce; an old one of that name is replaced: no
 * header may still depend on it. Numbers start above @after, the highest one that the logs of the
 * disk's layers cover (JN-4): lower numbers would be skipped by the replay.
 */
int eng_journal_create(struct eng_io *io, const struct fmt_uuid *store, const struct fmt_uuid *disk,
		       uint64_t after, struct eng_journal **ret);
/* -ENOENT: none. -EPERM: another owner. -EUCLEAN: not a journal of this store, disk and boot. */
int eng_journal_open(struct eng_io *io, const struct fmt_uuid *store, const struct fmt_uuid *disk,
		     struct eng_journal **ret);
void eng_journal_close(struct eng_journal *j); /* keeps the shared memory; NULL is fine */
void eng_journal_remove(struct eng_io *io, const struct fmt_uuid *disk);

uint64_t eng_journal_nonce(const struct eng_journal *j);

/*
 * Gives @layer (file @dev, @ino) a tag; the tag names it in entries. -ENOSPC: all in use. Any
 * thread.
 */
int eng_journal_add_layer(struct eng_journal *j, const struct fmt_uuid *layer, uint64_t dev,
			  uint64_t ino, uint32_t *tag);
/* The layer is hardened (or gone): its entries no longer count and the tag is free. Any thread. */
void eng_journal_drop_layer(struct eng_journal *j, uint32_t tag);
/* -ENOENT when the layer has no tag; -EUCLEAN when dev or ino differ. */
int eng_journal_find_layer(const struct eng_journal *j, const struct fmt_uuid *layer, uint64_t dev,
			   uint64_t ino, uint32_t *tag);

/* Entries that can still be appended. */
uint32_t eng_journal_room(const struct eng_journal *j);
/* Appends; -ENOSPC when full. The entry is whole or absent whenever the process dies. */
int eng_journal_append(struct eng_journal *j, uint32_t tag, const struct fmt_run *run,
		       uint64_t *number);
uint64_t eng_journal_last(const struct eng_journal *j); /* number of the newest entry, or @after */
/* Frees all entries up to @number: the logs of all their layers cover them. */
void eng_journal_drop(struct eng_journal *j, uint64_t number);
/*
 * Replays the entries of @tag with a number above @after, oldest first; a non-zero value of @each
 * stops and is returned. -EUCLEAN: an entry is not one. Runs are within fmt_run_check()'s shape,
 * not yet within the disk's and layer's bounds.
 */
int eng_journal_each(const struct eng_journal *j, uint32_t tag, uint64_t after,
		     int (*each)(void *arg, uint64_t number, const struct fmt_run *run), void *arg);

#endif
