/* SPDX-License-Identifier: MIT */
/*
 * catalog_vfs.h - SQLite's files through the I/O seam, so that the catalog is recorded, replayed and
 * injected with errors like everything else. One VFS for each open catalog, under a name of its own.
 * No locks here: the catalog's lock serialises all calls, and the store's flock keeps other
 * processes out, so SQLite's file locks are no-ops and it must run with locking_mode=EXCLUSIVE.
 */
#ifndef ENGINE_CATALOG_VFS_H
#define ENGINE_CATALOG_VFS_H

#include <stdbool.h>

#include "engine/io/io.h"

struct eng_catalog_vfs;

/* Registers a VFS for the database file @path. @io is borrowed until destroy. */
int eng_catalog_vfs_create(struct eng_io *io, const char *path, struct eng_catalog_vfs **ret);
void eng_catalog_vfs_destroy(struct eng_catalog_vfs *vfs); /* its database closed; NULL is fine */

/* What to pass to sqlite3_open_v2(). Borrowed. */
const char *eng_catalog_vfs_name(const struct eng_catalog_vfs *vfs);

/*
 * Sets space aside in a file of its own, which the VFS gives up for the first write that meets a full
 * disk (CT-13). Best effort.
 */
void eng_catalog_vfs_keep_reserve(struct eng_catalog_vfs *vfs);
uint64_t eng_catalog_vfs_reserve(struct eng_catalog_vfs *vfs); /* bytes there are */

/* Negative errno of the latest failure; -EIO when there was none. */
int eng_catalog_vfs_errno(const struct eng_catalog_vfs *vfs);

/*
 * CT-9: did anything since the latest arm() go to the log that recovery could take for a commit?
 * Asked when a COMMIT has failed. It errs towards true.
 */
void eng_catalog_vfs_arm(struct eng_catalog_vfs *vfs);
bool eng_catalog_vfs_may_have_committed(const struct eng_catalog_vfs *vfs);

#endif
