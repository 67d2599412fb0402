/* SPDX-License-Identifier: MIT */
/*
 * view.h - disks of snapshots, opened to be read as a whole: exports and verification. A view has a
 * thread of its own that works on its disks as a queue does; what its snapshots held stays readable,
 * and their chains as they are, until it is closed (DL-5, FO-5).
 *
 * Any thread may read, many at once; opening, adding and closing are the owner's.
 */
#ifndef ENGINE_VIEW_H
#define ENGINE_VIEW_H

#include "engine/disk/queue.h"
#include "engine/store/store.h"

struct eng_view;

int eng_view_open(struct eng_store *store, struct fmt_error *err, struct eng_view **ret);
void eng_view_close(struct eng_view *view); /* NULL is fine */
/* Opens what a snapshot holds of a disk; @name is for messages, its number, counted from 0, in *@ret. */
int eng_view_add_member(struct eng_view *view, const struct cat_snapshot_disk *member,
			const char *name, struct fmt_error *err, uint32_t *ret);
/* Opens what @layer and all beneath it hold, as a reader of @disk; its number in *@ret. */
int eng_view_add_layer(struct eng_view *view, const struct fmt_uuid *disk,
		       const struct fmt_uuid *layer, struct fmt_error *err, uint32_t *ret);
uint64_t eng_view_size(const struct eng_view *view, uint32_t disk);
/* The topmost one that is read, which no fold takes away meanwhile; whatever has become of the snapshot. */
const struct fmt_uuid *eng_view_layer(const struct eng_view *view, uint32_t disk);

struct eng_view_piece {
	void *buf;
	size_t len;
	uint64_t offset;
};
/* All pieces at once, in flight together; inside the disk. */
int eng_view_read(struct eng_view *view, uint32_t disk, const struct eng_view_piece *pieces,
		  unsigned count, struct fmt_error *err);
/* Extents from @offset on, clipped to @length; their number, at least 1. */
int eng_view_extents(struct eng_view *view, uint32_t disk, uint64_t offset, uint64_t length,
		     struct eng_disk_extent *extents, unsigned max, struct fmt_error *err);

#endif
