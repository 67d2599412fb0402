/* SPDX-License-Identifier: MIT */
/*
 * delete.c - DestroySnapshot (DL-*, T27): the mark in the catalog, then the boundaries, then the row.
 *
 * Copies nothing: what only the deleted snapshot held is given back behind it, by the fold of layers
 * that nothing tells apart any more. The mark is the commit point: from it on the snapshot is gone for
 * everybody, and whoever finds it (this thread, or the next open, RV-7) goes on to the end. The
 * boundaries go before the row, so that no rebuild brings the snapshot back.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/fold/fold.h"
#include "engine/store/garbage.h"
#include "engine/store/hold.h"
#include "engine/store/overlay.h"
#include "engine/store/store.h"

#define GROUP 64u /* members whose layers are open at a time */

/* Which one: by its names, or, where @id is not NULL, by that alone. */
struct which {
	const char *collection, *name;
	const struct fmt_uuid *id;
};

static int find(struct eng_catalog *cat, const struct which *w, struct cat_snapshot *ret,
		struct fmt_error *err)
{
	int r;

	if (!w->id)
		return eng_catalog_find_snapshot(cat, w->collection, w->name, err, ret);
	r = eng_catalog_get_snapshot_id(cat, w->id, ret);
	if (r == 0 && ret->state != CAT_SNAPSHOT_COMPLETE)
		r = -ENOENT;
	return r == -ENOENT ? fmt_fail(err, r, "the snapshot is gone") : r;
}

static int mark(struct eng_store *store, const struct which *w, const struct cat_job *job,
		struct cat_snapshot *ret, struct fmt_error *err)
{
	struct eng_catalog *cat = store->catalog;
	int r = eng_catalog_begin(cat);

	if (r < 0)
		return r;
	r = find(cat, w, ret, err);
	if (r == 0)
		r = eng_store_check_held(cat, ret, err); /* HD-2 */
	if (r < 0) {
		eng_catalog_rollback(cat);
		return r;
	}
	ret->state = CAT_SNAPSHOT_DELETING;
	eng_catalog_put_snapshot(cat, ret);
	if (!fmt_uuid_is_none(&job->id))
		eng_catalog_put_job(cat, job);
	return eng_catalog_commit(cat, err);
}

static void clear_boundary(struct fmt_header *hdr, void *arg)
{
	if (!fmt_uuid_equal(&hdr->snapshot_id, arg))
		return;
	memset(&hdr->snapshot_id, 0, sizeof(hdr->snapshot_id));
	hdr->snapshot_members = 0;
	hdr->snapshot_index = 0;
}

/* The member's layer now: a fold may have put another one in its place, with the boundary. */
static int find_layer(struct eng_store *store, const struct cat_snapshot *snap,
		      const struct cat_snapshot_disk *member, struct cat_layer *ret)
{
	struct cat_snapshot_disk *rows = NULL;
	size_t n = 0;
	int r = eng_catalog_get_layer(store->catalog, &member->layer, ret);

	if (r != -ENOENT)
		return r;
	r = eng_catalog_list_snapshot_disks(store->catalog, &snap->id, &rows, &n);
	if (r < 0)
		return r;
	r = -ENOENT;
	for (size_t i = 0; i < n; i++)
		if (fmt_uuid_equal(&rows[i].disk, &member->disk))
			r = eng_catalog_get_layer(store->catalog, &rows[i].layer, ret);
	free(rows);
	return r;
}

/* @ahead: the layer as it was opened before the claim, or NULL. */
static int unbind(struct eng_store *store, const struct cat_snapshot *snap,
		  const struct cat_snapshot_disk *member, struct eng_layer *ahead,
		  struct fmt_error *err)
{
	struct fmt_uuid id = snap->id;
	struct eng_layer *layer = NULL;
	struct cat_layer row;
	int r = find_layer(store, snap, member, &row);

	if (r == 0 && ahead && fmt_uuid_equal(&row.id, &ahead->id))
		layer = eng_layer_get(ahead);
	else if (r == 0)
		r = eng_store_open_layer(store, &row, true, err, &layer);
	if (r == 0)
		r = eng_layer_update(layer, clear_boundary, &id, err);
	eng_layer_put(layer);
	return r;
}

/*
 * The group's headers are settled at once (LH-13), which would be half of what a deletion costs. Nothing
 * depends on it: what does not come about here is done, and told, where the header is changed.
 */
static void settle_ahead(struct eng_store *store, const struct cat_snapshot *snap,
			 const struct cat_snapshot_disk *members, size_t n,
			 struct eng_layer *ahead[GROUP])
{
	struct eng_layer *open[GROUP];
	struct eng_batch *batch = NULL;
	struct cat_layer row;
	size_t count = 0;

	for (size_t i = 0; i < n; i++)
		if (!members[i].skipped && find_layer(store, snap, &members[i], &row) == 0 &&
		    eng_store_open_layer(store, &row, true, NULL, &ahead[i]) == 0)
			open[count++] = ahead[i];
	if (count > 1 && eng_batch_create(store, &batch) == 0)
		(void)eng_batch_settle(batch, open, count);
	eng_batch_destroy(batch);
}

static int unbind_group(struct eng_store *store, const struct cat_snapshot *snap,
			const struct cat_snapshot_disk *members, size_t n, struct fmt_error *err)
{
	struct eng_layer *ahead[GROUP] = {NULL};
	int r = 0;

	settle_ahead(store, snap, members, n, ahead);
	for (size_t i = 0; r == 0 && i < n; i++) {
		struct eng_entry *entry;

		if (members[i].skipped)
			continue;
		/* Not while a fold of the disk commits: it carries the boundary on (FO-6). */
		r = eng_entry_claim(store, &members[i].disk,
				    eng_io_now_ns(store->io) + 10 * 1000000000ull, &entry);
		if (r < 0) {
			fmt_fail(err, r, "%s/%s: busy", members[i].vm_name, members[i].disk_name);
			break;
		}
		r = unbind(store, snap, &members[i], ahead[i], err);
		eng_entry_release(entry);
	}
	for (size_t i = 0; i < n; i++)
		eng_layer_put(ahead[i]);
	return r;
}

static int unbind_all(struct eng_store *store, const struct cat_snapshot *snap,
		      const struct cat_snapshot_disk *members, size_t n, struct fmt_error *err)
{
	int r = 0;

	for (size_t i = 0; r == 0 && i < n; i += GROUP)
		r = unbind_group(store, snap, members + i, n - i < GROUP ? n - i : GROUP, err);
	return r;
}

/* GB-2: a branch's end that only this snapshot held goes with it, unless somebody reads it. */
static int remove_garbage(struct eng_store *store, const struct cat_snapshot_disk *members,
			  size_t n, struct eng_garbage *garbage)
{
	int r = 0;

	for (size_t i = 0; r == 0 && i < n; i++)
		if (!members[i].skipped && !eng_garbage_is_read(store, &members[i].disk))
			r = eng_garbage_rows(store, &members[i].disk, garbage);
	return r;
}

static int finish(struct eng_store *store, const struct cat_snapshot *snap,
		  const struct cat_snapshot_disk *members, size_t n, struct cat_job *job,
		  struct eng_garbage *garbage, struct fmt_error *err)
{
	struct eng_catalog *cat = store->catalog;
	int r = eng_catalog_begin(cat);

	if (r < 0)
		return r;
	eng_catalog_remove_snapshot(cat, &snap->id);
	r = remove_garbage(store, members, n, garbage);
	if (r < 0) {
		eng_catalog_rollback(cat);
		return r;
	}
	if (!fmt_uuid_is_none(&job->id)) {
		eng_catalog_complete_job(job, eng_io_wall_ns(store->io));
		eng_catalog_put_job(cat, job);
	}
	return eng_catalog_commit(cat, err);
}

int eng_store_end_deletion(struct eng_store *store, const struct cat_snapshot *snap,
			   struct cat_job *job, struct fmt_error *err)
{
	struct cat_snapshot_disk *members = NULL;
	struct eng_garbage garbage = {0};
	size_t n = 0;
	int r = eng_catalog_list_snapshot_disks(store->catalog, &snap->id, &members, &n);

	if (r == 0)
		r = unbind_all(store, snap, members, n, err);
	if (r == 0)
		r = finish(store, snap, members, n, job, &garbage, err);
	if (r == 0)
		eng_garbage_files(store, &garbage);
	eng_garbage_fini(&garbage);
	for (size_t i = 0; r == 0 && i < n; i++)
		eng_folder_want(store->folder, &members[i].disk);
	free(members);
	return r;
}

static int run(struct eng_store *store, const struct which *w, struct cat_job *job, bool *marked,
	       struct fmt_error *err)
{
	struct cat_snapshot snap;
	int r = mark(store, w, job, &snap, err);

	*marked = r == 0;
	return r == 0 ? eng_store_end_deletion(store, &snap, job, err) : r;
}

int eng_store_delete_snapshot(struct eng_store *store, const char *collection, const char *name,
			      struct cat_job *job, bool *marked, struct fmt_error *err)
{
	const struct which w = {.collection = collection, .name = name};
	int r = run(store, &w, job, marked, err);

	if (r < 0 && err && !err->text[0])
		fmt_fail(err, r, "%s@%s: cannot delete: %s", collection, name, strerror(-r));
	return r;
}

int eng_store_delete_snapshot_id(struct eng_store *store, const struct fmt_uuid *id,
				 struct cat_job *job, bool *marked, struct fmt_error *err)
{
	const struct which w = {.id = id};
	int r = run(store, &w, job, marked, err);

	if (r < 0 && err && !err->text[0])
		fmt_fail(err, r, "cannot delete: %s", strerror(-r));
	return r;
}
