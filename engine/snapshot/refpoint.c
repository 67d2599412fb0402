/* SPDX-License-Identifier: MIT */
/*
 * refpoint.c - see refpoint.h. A point is rows of the catalog and nothing else (RP-3), so each step is
 * one transaction; what follows a conversion is the deletion of its snapshot (DL-2, DL-3), which the
 * next open goes on with.
 */
#include "engine/snapshot/refpoint.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/store/hold.h"
#include "engine/store/overlay.h"

#define TYPE_RCT      2
#define TYPE_RECOVERY 2

/* --- conversion --- */

static int put_member(struct eng_store *store, const struct cat_refpoint *point,
		      const struct cat_snapshot_disk *member)
{
	struct cat_refpoint_disk row = {
		.refpoint = point->id,
		.disk = member->disk,
		.layer = member->layer,
		.size = member->size,
		.index = member->index,
	};
	struct cat_disk disk;
	int r = eng_catalog_get_disk_id(store->catalog, &member->disk, &disk);

	if (r < 0)
		return r; /* a snapshot's disk cannot be deleted */
	row.vm = disk.vm;
	eng_store_new_id(store, &row.rct);
	strcpy(row.vm_name, member->vm_name);
	strcpy(row.disk_name, member->disk_name);
	return eng_catalog_put_refpoint_disk(store->catalog, &row);
}

static int put_members(struct eng_store *store, const struct cat_refpoint *point,
		       const struct fmt_uuid *snapshot)
{
	struct cat_snapshot_disk *members = NULL;
	size_t n = 0;
	int r = eng_catalog_list_snapshot_disks(store->catalog, snapshot, &members, &n);

	for (size_t i = 0; r == 0 && i < n; i++)
		if (!members[i].skipped) /* RP-6 */
			r = put_member(store, point, &members[i]);
	free(members);
	return r;
}

/* Inside the transaction. */
static int check_convertible(struct eng_store *store, const char *collection, const char *name,
			     const struct cat_refpoint *point, struct fmt_error *err,
			     struct cat_snapshot *ret)
{
	struct eng_catalog *cat = store->catalog;
	int r = eng_catalog_find_snapshot(cat, collection, name, err, ret);

	if (r < 0)
		return r;
	if (ret->type != TYPE_RECOVERY)
		return fmt_fail(err, -EMEDIUMTYPE,
				"%s@%s: its SnapshotType is %u (Standard), only a recovery "
				"snapshot (2) becomes a reference point",
				collection, name, ret->type);
	r = eng_store_check_held(cat, ret, err); /* HD-2 */
	if (r < 0)
		return r;
	r = eng_catalog_get_refpoint(cat, collection, point->name, &(struct cat_refpoint){0});
	if (r == 0)
		return fmt_fail(err, -EEXIST, "%s#%s: the name is taken", collection, point->name);
	return r == -ENOENT ? 0 : fmt_fail(err, r, "cannot read the catalog");
}

/* RP-7: the commit point. */
static int mark(struct eng_store *store, const char *collection, const char *name,
		struct cat_refpoint *point, const struct cat_job *job, struct fmt_error *err,
		struct cat_snapshot *snap)
{
	struct eng_catalog *cat = store->catalog;
	int r = eng_catalog_begin(cat);

	if (r < 0)
		return r;
	r = check_convertible(store, collection, name, point, err, snap);
	if (r == 0) {
		point->collection = snap->collection;
		strcpy(point->collection_name, snap->collection_name);
		point->type = TYPE_RCT;
		point->consistency = snap->consistency;
		point->disks = snap->disks;
		point->snapshot = snap->id;
		strcpy(point->snapshot_name, snap->name);
		point->cut_wall_ns = snap->cut_wall_ns;
		eng_catalog_put_refpoint(cat, point);
		r = put_members(store, point, &snap->id);
	}
	if (r < 0) {
		eng_catalog_rollback(cat);
		return r;
	}
	snap->state = CAT_SNAPSHOT_DELETING;
	eng_catalog_put_snapshot(cat, snap);
	if (!fmt_uuid_is_none(&job->id))
		eng_catalog_put_job(cat, job);
	return eng_catalog_commit(cat, err);
}

int eng_refpoint_convert(struct eng_store *store, const char *collection, const char *snapshot,
			 struct cat_refpoint *point, struct cat_job *job, bool *marked,
			 struct fmt_error *err)
{
	struct cat_snapshot snap;
	int r = mark(store, collection, snapshot, point, job, err, &snap);

	*marked = r == 0;
	if (r == 0)
		r = eng_store_end_deletion(store, &snap, job, err);
	if (r < 0 && err && !err->text[0])
		fmt_fail(err, r, "%s@%s: cannot convert: %s", collection, snapshot, strerror(-r));
	return r;
}

/* --- destruction --- */

int eng_refpoint_destroy(struct eng_store *store, const char *collection, const char *name,
			 const struct cat_job *job, struct fmt_error *err)
{
	struct eng_catalog *cat = store->catalog;
	struct cat_refpoint point;
	int r = eng_catalog_begin(cat);

	if (r < 0)
		return fmt_fail(err, r, "cannot begin in the catalog: %s", strerror(-r));
	r = eng_catalog_get_refpoint(cat, collection, name, &point);
	if (r < 0) {
		eng_catalog_rollback(cat);
		return fmt_fail(err, r, "%s#%s: %s", collection, name,
				r == -ENOENT ? "no such reference point" : strerror(-r));
	}
	eng_catalog_remove_refpoint(cat, &point.id);
	if (!fmt_uuid_is_none(&job->id))
		eng_catalog_put_job(cat, job);
	return eng_catalog_commit(cat, err);
}

/* --- of a cut --- */

int eng_refpoint_check_name(struct eng_store *store, const struct eng_snapshot_spec *spec,
			    struct fmt_error *err)
{
	struct cat_refpoint row;
	int r = eng_catalog_get_refpoint(store->catalog, spec->collection.name, spec->name, &row);

	if (r == 0)
		return fmt_fail(err, -EEXIST, "%s#%s: the name is taken", spec->collection.name,
				spec->name);
	return r == -ENOENT ? 0 : fmt_fail(err, r, "cannot read the catalog");
}

void eng_refpoint_put_cut(struct eng_store *store, const struct eng_snapshot_spec *spec,
			  int64_t cut_wall_ns, const struct eng_member *members, size_t count)
{
	struct eng_catalog *cat = store->catalog;
	struct cat_refpoint point = {
		.id = spec->id,
		.collection = spec->collection.id,
		.type = TYPE_RCT,
		.consistency = spec->consistency,
		.disks = (uint32_t)count,
		.created_ns = eng_io_wall_ns(store->io),
		.cut_wall_ns = cut_wall_ns,
	};

	strcpy(point.name, spec->name);
	strcpy(point.element_name, spec->element_name);
	eng_catalog_put_refpoint(cat, &point);
	for (size_t i = 0; i < count; i++) {
		const struct eng_member *m = &members[i];
		struct cat_refpoint_disk row = {
			.refpoint = spec->id,
			.disk = m->disk.id,
			.layer = m->tail->id,
			.vm = m->disk.vm,
			.size = m->disk.size,
			.index = m->index,
		};

		eng_store_new_id(store, &row.rct);
		strcpy(row.vm_name, m->disk.vm_name);
		strcpy(row.disk_name, m->disk.name);
		eng_catalog_put_refpoint_disk(cat, &row);
	}
}
