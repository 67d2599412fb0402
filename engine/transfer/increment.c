/* SPDX-License-Identifier: MIT */
/*
 * increment.c - snapshots and reference points as what an increment stands on. A state is computed from
 * the catalog's rows, the same on the side that exports and on the one that imports (MF-3).
 */
#include "engine/transfer/increment.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void eng_increment_base_fini(struct eng_increment_base *base)
{
	for (size_t i = 0; i < base->count; i++)
		eng_blocks_destroy(base->disks[i].extra);
	free(base->disks);
	memset(base, 0, sizeof(*base));
}

const struct eng_increment_disk *eng_increment_base_disk(const struct eng_increment_base *base,
							 const struct fmt_uuid *id)
{
	for (size_t i = 0; i < base->count; i++)
		if (fmt_uuid_equal(&base->disks[i].id, id))
			return &base->disks[i];
	return NULL;
}

static int compute_state(struct eng_store *store, struct eng_increment_base *b)
{
	struct fmt_manifest_disk *disks = calloc(b->count + 1, sizeof(*disks));
	struct cat_disk disk;
	int r = disks ? 0 : -ENOMEM;

	for (size_t i = 0; r == 0 && i < b->count; i++) {
		r = eng_catalog_get_disk_id(store->catalog, &b->disks[i].id, &disk);
		if (r ==
		    -ENOENT) { /* deleted: no increment of it, and no state like the one it had */
			disk.block_bits = 0;
			r = 0;
		}
		disks[i].id = b->disks[i].id;
		disks[i].size = b->disks[i].size;
		disks[i].block_bits = disk.block_bits;
	}
	if (r == 0)
		r = fmt_manifest_state(&b->row.snapshot, disks, (uint32_t)b->count, b->row.state);
	free(disks);
	return r;
}

/* --- of a snapshot --- */

static int take_snapshot(struct eng_store *store, const struct cat_snapshot *snap,
			 struct eng_increment_base *b)
{
	struct cat_snapshot_disk *rows = NULL;
	size_t n = 0;
	int r = eng_catalog_list_snapshot_disks(store->catalog, &snap->id, &rows, &n);

	if (r == 0 && !n)
		r = -ENOENT; /* deleted since it was found */
	if (r < 0)
		return r;
	b->row.id = snap->id;
	b->row.snapshot = snap->id;
	strcpy(b->row.name, snap->name);
	b->collection = snap->collection;
	b->disks = calloc(n + 1, sizeof(*b->disks));
	for (size_t i = 0; b->disks && i < n; i++)
		if (!rows[i].skipped)
			b->disks[b->count++] = (struct eng_increment_disk){
				.id = rows[i].disk,
				.layer = rows[i].layer,
				.size = rows[i].size,
			};
	free(rows);
	return b->disks ? compute_state(store, b) : -ENOMEM;
}

/* --- of a reference point --- */

static int take_point_disk(struct eng_store *store, const struct cat_refpoint_disk *row,
			   struct eng_increment_disk *d, struct fmt_error *err)
{
	struct cat_refpoint_disk now;
	void *set = NULL;
	size_t bytes = 0;
	int r = eng_catalog_get_refpoint_disk(store->catalog, &row->refpoint, &row->disk, &now,
					      &set, &bytes);

	if (r < 0)
		return r;
	d->id = now.disk;
	d->layer = now.layer;
	d->size = now.size;
	if (set)
		r = eng_blocks_decode(set, bytes, err, &d->extra);
	free(set);
	return r;
}

static int take_point(struct eng_store *store, const struct cat_refpoint *point,
		      struct eng_increment_base *b, struct fmt_error *err)
{
	struct cat_refpoint_disk *rows = NULL;
	size_t n = 0;
	int r = eng_catalog_list_refpoint_disks(store->catalog, &point->id, &rows, &n);

	if (r == 0 && !n)
		r = -ENOENT; /* destroyed since it was found */
	if (r < 0)
		return r;
	b->row.refpoint = true;
	b->row.id = point->id;
	b->row.snapshot = fmt_uuid_is_none(&point->snapshot) ? point->id : point->snapshot;
	strcpy(b->row.name, point->name);
	b->collection = point->collection;
	b->disks = calloc(n + 1, sizeof(*b->disks));
	if (!b->disks)
		r = -ENOMEM;
	for (size_t i = 0; r == 0 && i < n; i++) {
		r = take_point_disk(store, &rows[i], &b->disks[i], err);
		b->count += r == 0;
	}
	free(rows);
	return r < 0 ? r : compute_state(store, b);
}

/* --- look-ups --- */

int eng_increment_base_find(struct eng_store *store, const char *collection, const char *name,
			    bool refpoint, struct fmt_error *err, struct eng_increment_base *ret)
{
	struct eng_increment_base b = {0};
	struct cat_refpoint point;
	struct cat_snapshot snap;
	int r;

	if (refpoint)
		r = eng_catalog_get_refpoint(store->catalog, collection, name, &point);
	else
		r = eng_catalog_find_snapshot(store->catalog, collection, name, NULL, &snap);
	if (r == 0)
		r = refpoint ? take_point(store, &point, &b, err) : take_snapshot(store, &snap, &b);
	if (r == 0) {
		*ret = b;
		return 0;
	}
	eng_increment_base_fini(&b);
	return r == -ENOENT || !err || !err->text[0]
		       ? fmt_fail(err, r, "base %s%c%s: %s", collection, refpoint ? '#' : '@', name,
				  r == -ENOENT ? "there is none" : strerror(-r))
		       : r;
}

static int find_point(struct eng_store *store, const struct fmt_manifest_base *wanted,
		      struct cat_refpoint *ret)
{
	struct cat_refpoint *rows = NULL;
	size_t n = 0;
	int r = eng_catalog_get_refpoint_id(store->catalog, &wanted->id, ret);

	if (r != -ENOENT)
		return r;
	r = eng_catalog_list_refpoints(store->catalog, NULL, &rows, &n);
	if (r < 0)
		return r;
	r = -ENOENT;
	for (size_t i = 0; r < 0 && i < n; i++)
		if (fmt_uuid_equal(&rows[i].snapshot, &wanted->snapshot)) {
			*ret = rows[i];
			r = 0;
		}
	free(rows);
	return r;
}

static void state_text(const uint8_t state[16], char ret[33])
{
	for (int i = 0; i < 16; i++)
		snprintf(ret + 2 * i, 3, "%02x", state[i]);
}

static int compare(const struct fmt_manifest_base *wanted, const struct fmt_manifest_base *found,
		   struct fmt_error *err)
{
	char a[33], b[33];

	if (memcmp(wanted->state, found->state, sizeof(wanted->state)) == 0)
		return 0;
	state_text(wanted->state, a);
	state_text(found->state, b);
	return fmt_fail(err, -ESTALE,
			"the increment's base %s is not what is here: expected the state %s, "
			"found %s (%s) (IP-4)",
			wanted->name, a, b, found->name);
}

int eng_increment_base_match(struct eng_store *store, const struct fmt_manifest_base *wanted,
			     struct fmt_error *err, struct eng_increment_base *ret)
{
	struct eng_increment_base b = {0};
	struct cat_refpoint point;
	struct cat_snapshot snap;
	char id[FMT_UUID_TEXT];
	int r = eng_catalog_get_snapshot_id(store->catalog, &wanted->snapshot, &snap);

	if (r == 0 && snap.state != CAT_SNAPSHOT_COMPLETE)
		r = -ENOENT;
	if (r == 0) {
		r = take_snapshot(store, &snap, &b);
	} else if (r == -ENOENT) {
		r = find_point(store, wanted, &point);
		if (r == 0)
			r = take_point(store, &point, &b, err);
	}
	if (r == -ENOENT) {
		fmt_uuid_format(&wanted->snapshot, id);
		r = fmt_fail(err, -ESTALE,
			     "the increment's base %s is not here: expected the snapshot %s or a "
			     "reference point made of it, found none (IP-4)",
			     wanted->name, id);
	}
	if (r == 0)
		r = compare(wanted, &b.row, err);
	if (r == 0)
		*ret = b;
	else
		eng_increment_base_fini(&b);
	return r;
}
