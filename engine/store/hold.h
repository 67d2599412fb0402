/* SPDX-License-Identifier: MIT */
/*
 * hold.h - what keeps a snapshot from being deleted: holds, tags that users put on it
 * (spec/space.md HD-*), and who reads it at the moment (RT-5). Any thread.
 */
#ifndef ENGINE_HOLD_H
#define ENGINE_HOLD_H

#include "engine/store/store.h"

/* -ENOENT: no such snapshot; -EEXIST: it has that tag already. Durable on return. */
int eng_store_hold(struct eng_store *store, const char *collection, const char *name,
		   const char *tag, struct fmt_error *err);
/* -ENOENT: no such snapshot, or it does not have that tag. */
int eng_store_release(struct eng_store *store, const char *collection, const char *name,
		      const char *tag, struct fmt_error *err);
/*
 * HD-2: -EBUSY with the tags in @err when @snap is held. Within the transaction that begins its
 * end, so that no hold comes in between.
 */
int eng_store_check_held(struct eng_catalog *cat, const struct cat_snapshot *snap,
			 struct fmt_error *err);

/* --- readers --- */
struct eng_reading {
	struct eng_reading *next;
	const struct eng_disk *disk; /* the attachment */
	struct fmt_uuid snapshot;
};

/* An attachment of a snapshot's disk begins: -ENOMEM; ends: nothing where it was none. */
int eng_store_reading_begin(struct eng_store *store, const struct eng_disk *disk,
			    const struct fmt_uuid *snapshot);
void eng_store_reading_end(struct eng_store *store, const struct eng_disk *disk);
/* The snapshot that @disk, an attachment, is one of; false: of none. */
bool eng_store_reading_of(const struct eng_disk *disk, struct fmt_uuid *snapshot);
/* Whether some disk of the snapshot is attached now. */
bool eng_store_is_read(struct eng_store *store, const struct fmt_uuid *snapshot);

#endif
