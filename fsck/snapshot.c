/* SPDX-License-Identifier: MIT */
/*
 * snapshot.c - snapshots against the layers that they froze, and the boundaries that layers' headers
 * hold against the snapshots (BD-*, CU-18, RV-7). One thread a check.
 */
#include "fsck/store.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

/* BD-2: what the header says of the snapshot that froze the layer. */
static void check_boundary(struct fsck_store *s, const struct cat_snapshot *snap,
			   const struct cat_snapshot_disk *row, const struct fsck_node *n)
{
	const struct fmt_header *h = &n->hdr;

	if (h->state == FMT_STATE_ACTIVE)
		fsck_found(s->f, PR_SNAPSHOT_BOUNDARY, "%s is not frozen", n->name);
	else if (fmt_uuid_is_none(&h->snapshot_id))
		fsck_found(s->f, PR_SNAPSHOT_BOUNDARY, "%s has none", n->name);
	else if (!fmt_uuid_equal(&h->snapshot_id, &snap->id))
		fsck_found(s->f, PR_SNAPSHOT_BOUNDARY, "%s has another snapshot's", n->name);
	else if (h->snapshot_members != snap->disks || h->snapshot_index != row->index)
		fsck_found(s->f, PR_SNAPSHOT_BOUNDARY,
			   "%s is disk %" PRIu32 " of %" PRIu32 ", expected %" PRIu32
			   " of %" PRIu32,
			   n->name, h->snapshot_index, h->snapshot_members, row->index,
			   snap->disks);
	if (h->size < row->size)
		fsck_found(s->f, PR_SNAPSHOT_SIZE,
			   "%s has %" PRIu64 " bytes, the snapshot %" PRIu64, n->name, h->size,
			   row->size);
}

/* CU-18: no layer of a snapshot, and none beneath, can still change or be lost. */
static void check_member(struct fsck_store *s, const struct cat_snapshot *snap,
			 const struct cat_snapshot_disk *row)
{
	struct fsck_node *n = fsck_node_find(s, &row->layer);

	if (!n || !fmt_uuid_equal(&n->disk, &row->disk)) {
		fsck_found(s->f, PR_SNAPSHOT_LAYER, "%s/%s: %s", row->vm_name, row->disk_name,
			   n ? n->name : "none in the catalog");
		return;
	}
	if (!fmt_uuid_equal(&n->snapshot, &snap->id))
		fsck_found(s->f, PR_SNAPSHOT_LAYER, "%s/%s: in the catalog %s is not of it",
			   row->vm_name, row->disk_name, n->name);
	if (n->has_header)
		check_boundary(s, snap, row, n);
	for (const struct fsck_node *up = n; up; up = up->up)
		if (up->state != CAT_LAYER_HARDENED && up->state != CAT_LAYER_SEALED)
			fsck_found(s->f, PR_SNAPSHOT_SOFT, "%s", up->name);
	fsck_reach(n);
}

static int check_disks(struct fsck_store *s, const struct cat_snapshot *snap)
{
	struct cat_snapshot_disk *rows = NULL;
	size_t count = 0, skipped = 0;
	int r = eng_catalog_list_snapshot_disks(s->cat, &snap->id, &rows, &count);

	for (size_t i = 0; r == 0 && i < count; i++) {
		if (rows[i].skipped)
			skipped++;
		else
			check_member(s, snap, &rows[i]);
	}
	if (r == 0 && (count - skipped != snap->disks || skipped != snap->skipped))
		fsck_found(s->f, PR_SNAPSHOT_COUNT,
			   "%zu disks and %zu skipped, expected %" PRIu32 " and %" PRIu32,
			   count - skipped, skipped, snap->disks, snap->skipped);
	free(rows);
	return r;
}

/* The state of the snapshot @id: enum cat_snapshot_state, 0: there is none. */
static uint32_t state_of(const struct cat_snapshot *snaps, size_t count, const struct fmt_uuid *id)
{
	for (size_t i = 0; i < count; i++)
		if (fmt_uuid_equal(&snaps[i].id, id))
			return snaps[i].state;
	return 0;
}

/* RV-11: a layer that its header says it stands for is still there. */
static bool is_uncommitted(const struct fsck_store *s, const struct fsck_node *n)
{
	for (uint32_t i = 0; n->kind == FMT_KIND_RAW && i < n->hdr.replaced_count; i++)
		if (fsck_node_find(s, &n->hdr.replaced[i].id))
			return true;
	return false;
}

/* BD-3, BD-4: a rebuild must not find a snapshot that never was, or is no more (T22, T27). */
static void check_stray(const struct fsck_store *s, const struct fsck_node *n,
			const struct cat_snapshot *snaps, size_t count)
{
	char id[FMT_UUID_TEXT];
	uint32_t state;

	if (!n->has_header || fmt_uuid_is_none(&n->hdr.snapshot_id))
		return;
	/* The row of a complete one names the layer, or the snapshot's own check has said so. */
	if (fmt_uuid_equal(&n->hdr.snapshot_id, &n->snapshot))
		return;
	state = state_of(snaps, count, &n->hdr.snapshot_id);
	fmt_uuid_format(&n->hdr.snapshot_id, id);
	fsck_at(s->f, "%s", n->name);
	if (is_uncommitted(s, n))
		fsck_found(s->f, PR_BASE_UNFINISHED, "its header has the boundary of %s", id);
	else if (state == CAT_SNAPSHOT_COMPLETE)
		fsck_found(s->f, PR_SNAPSHOT_BOUNDARY, "the catalog says it is not of snapshot %s",
			   id);
	else if (state == 0 &&
		 n->state == CAT_LAYER_ACTIVE) /* AS-5, RV-7: the next open clears it */
		fsck_found(s->f, PR_BOUNDARY_LEFT, "%s", id);
	else if (state == 0)
		fsck_found(s->f, PR_BOUNDARY_UNKNOWN, "%s", id);
	else
		fsck_found(s->f, PR_BOUNDARY_STRAY, "%s", id);
}

int fsck_snapshots(struct fsck_store *s)
{
	struct cat_snapshot *snaps = NULL;
	size_t count = 0;
	int r = eng_catalog_list_snapshots(s->cat, NULL, &snaps, &count);

	for (size_t i = 0; r == 0 && i < count; i++) {
		s->f->sum.snapshots++;
		fsck_at(s->f, "%s@%s", snaps[i].collection_name, snaps[i].name);
		if (snaps[i].state == CAT_SNAPSHOT_COMPLETE)
			r = check_disks(s, &snaps[i]);
		else
			fsck_found(s->f, PR_SNAPSHOT_UNFINISHED, "%s",
				   snaps[i].state == CAT_SNAPSHOT_INTENT ? "an intent"
									 : "being deleted");
	}
	for (size_t i = 0; r == 0 && i < s->count; i++)
		check_stray(s, &s->nodes[i], snaps, count);
	free(snaps);
	return r;
}
