/* SPDX-License-Identifier: MIT */
/*
 * refpoint.c - reference points against the layers that they refer to, and the sets that they have saved
 * (RP-*). One thread a check.
 */
#include "fsck/store.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "format/layer.h"

/* DF-8: what a set begins with; its checksum is over all that follows. */
struct set_head {
	uint8_t magic[8];
	le32 version;
	le32 chunks;
	le64 csum;
};

static bool set_is_whole(const void *set, size_t len)
{
	struct set_head head;

	if (len < sizeof(head))
		return false;
	memcpy(&head, set, sizeof(head));
	return !memcmp(head.magic, "VMIMGBLK", sizeof(head.magic)) && le32_get(head.version) == 1 &&
	       le64_get(head.csum) ==
		       fmt_block_csum((const uint8_t *)set + sizeof(head), len - sizeof(head));
}

static int check_disk(struct fsck_store *s, const struct cat_refpoint_disk *row)
{
	struct fsck_node *n = fsck_node_find(s, &row->layer);
	struct cat_refpoint_disk now;
	void *set = NULL;
	size_t len = 0;
	int r;

	if (fmt_uuid_is_none(&row->layer)) {
		fsck_found(s->f, PR_REFPOINT_LOST, "%s/%s", row->vm_name, row->disk_name);
		return 0;
	}
	if (!n)
		fsck_found(s->f, PR_REFPOINT_LAYER, "%s/%s: none in the catalog", row->vm_name,
			   row->disk_name);
	else if (n->state != CAT_LAYER_HARDENED && n->state != CAT_LAYER_SEALED)
		fsck_found(s->f, PR_REFPOINT_LAYER, "%s/%s: %s is not hardened", row->vm_name,
			   row->disk_name, n->name);
	if (n)
		fsck_reach(n); /* an end of a branch, until the next sweep (RP-13) */
	r = eng_catalog_get_refpoint_disk(s->cat, &row->refpoint, &row->disk, &now, &set, &len);
	if (r == 0 && set && !set_is_whole(set, len))
		fsck_found(s->f, PR_REFPOINT_SET, "%s/%s: %zu bytes", row->vm_name, row->disk_name,
			   len);
	free(set);
	return r;
}

int fsck_refpoints(struct fsck_store *s)
{
	struct cat_refpoint *points = NULL;
	size_t count = 0;
	int r = eng_catalog_list_refpoints(s->cat, NULL, &points, &count);

	for (size_t i = 0; r == 0 && i < count; i++) {
		struct cat_refpoint_disk *rows = NULL;
		size_t n = 0;

		fsck_at(s->f, "%s#%s", points[i].collection_name, points[i].name);
		r = eng_catalog_list_refpoint_disks(s->cat, &points[i].id, &rows, &n);
		if (r == 0 && n != points[i].disks)
			fsck_found(s->f, PR_REFPOINT_COUNT, "%zu, expected %" PRIu32, n,
				   points[i].disks);
		for (size_t j = 0; r == 0 && j < n; j++)
			r = check_disk(s, &rows[j]);
		free(rows);
	}
	free(points);
	return r;
}
