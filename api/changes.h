/* SPDX-License-Identifier: MIT */
/*
 * changes.h - points in a collection's life by their names and ids, and the states of disks at them: what
 * changes.c and diff.c share. Private.
 */
#ifndef API_CHANGES_H
#define API_CHANGES_H

#include "api/service.h"
#include "engine/diff/diff.h"

struct api_point {
	enum { API_POINT_NOW, API_POINT_SNAPSHOT, API_POINT_REFPOINT } kind;
	struct fmt_uuid id, collection;
	struct fmt_uuid only; /* named by the RCT id of this disk; or none */
	char name[CAT_NS_MAX];
};

/* @name: COLLECTION@NAME, COLLECTION#NAME or an id. -ENOENT: there is none; -EINVAL: it is no name. */
int api_point_find(struct vmimg_service *svc, const char *name, struct api_point *ret);

/* Which of a point's disks there are, in their stable order. */
struct api_point_disk {
	struct fmt_uuid disk;
	char name[CAT_NS_MAX]; /* VM/DISK, as it was then */
	uint64_t size;
	bool lost; /* a reference point's that tracks nothing any more */
};
/* *@ret: free(). Now: the members of @collection. Disks that a snapshot left out are not among them. */
int api_point_disks(struct vmimg_service *svc, const struct api_point *point,
		    const struct fmt_uuid *collection, struct api_point_disk **ret, size_t *count);

/* "VM/DISK", or "COLLECTION@NAME/VM/DISK": which disk, and where in its life. 0, or 32773, 32779, ... */
uint32_t api_point_path(struct vmimg_service *svc, const char *path, struct vmimg_error *err,
			struct fmt_uuid *disk, struct api_point *point);

struct api_state {
	struct eng_state eng;
	struct eng_blocks *extra; /* ours */
};
/* A disk's state at a point. -ENOENT: it has no such disk; -ENOTRECOVERABLE: its tracking is lost. */
int api_point_state(struct vmimg_service *svc, const struct api_point *point,
		    const struct fmt_uuid *disk, struct fmt_error *err, struct api_state *ret);
/* Once the disk's chain was held or read: 0 when @was is still its state there; -ENOENT: ask anew. */
int api_point_unmoved(struct vmimg_service *svc, const struct api_point *point,
		      const struct fmt_uuid *disk, const struct api_state *was);

/*
 * eng_diff() of a disk between two points; *@size is the disk's at @to. -ENOENT: a point has no such disk;
 * -ENOTRECOVERABLE and others: it cannot be told.
 */
int api_point_diff(struct vmimg_service *svc, const struct fmt_uuid *disk,
		   const struct api_point *from, const struct api_point *to, struct fmt_error *err,
		   struct cat_disk *row, uint64_t *size, struct eng_blocks **ret);

#endif
