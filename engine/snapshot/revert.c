/* SPDX-License-Identifier: MIT */
/*
 * revert.c - see revert.h (AS-*).
 *
 * The disks branch off to the snapshot's layers (branch.h). None is attached, so that nothing moves
 * under it; the heads that are left are hardened and frozen before the transaction. A crash before it
 * leaves them frozen, and recovery makes them heads again; after it the new ones are.
 */
#include "engine/snapshot/revert.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/fold/fold.h"
#include "engine/snapshot/branch.h"
#include "engine/store/garbage.h"

#define HARDEN_NS (10ull * 1000000000)

struct revert {
	const struct eng_revert *how;
	struct eng_branch b;  /* its members: the disks, their tails the heads that are left */
	uint64_t *left_sizes; /* by member */
	bool bounded;
	struct eng_garbage garbage;
};

/* --- what and whether --- */

static const struct cat_snapshot_disk *find_row(const struct revert *rv,
						const struct fmt_uuid *disk)
{
	for (size_t i = 0; i < rv->b.count; i++)
		if (fmt_uuid_equal(&rv->b.rows[i].disk, disk))
			return &rv->b.rows[i];
	return NULL;
}

/* AS-1: all of the snapshot's disks are the collection's, and who of these is none of the snapshot's. */
static int match(struct revert *rv, struct fmt_error *err, struct eng_revert_result *res)
{
	struct cat_disk *disks = NULL;
	size_t n = 0, held = 0;
	int r = eng_catalog_list_collection_disks(rv->b.store->catalog, &rv->b.snap.collection,
						  &disks, &n);

	if (r == 0)
		res->untouched = calloc(n + 1, sizeof(*res->untouched));
	if (r == 0 && !res->untouched)
		r = -ENOMEM;
	for (size_t i = 0; r == 0 && i < n; i++) {
		if (find_row(rv, &disks[i].id))
			held++;
		else
			snprintf(res->untouched[res->untouched_count++], CAT_NS_MAX, "%s/%s",
				 disks[i].vm_name, disks[i].name);
	}
	for (size_t i = 0; r == 0 && held < rv->b.count && i < rv->b.count; i++) {
		bool there = false;

		for (size_t j = 0; j < n; j++)
			there = there || fmt_uuid_equal(&disks[j].id, &rv->b.rows[i].disk);
		if (!there)
			r = fmt_fail(err, -EXDEV, "%s/%s: not of a VM of the collection any more",
				     rv->b.rows[i].vm_name, rv->b.rows[i].disk_name);
	}
	free(disks);
	return r;
}

/* AS-2, before anybody waits: a create has them from its check on (CU-4). */
static int check_cuts(struct revert *rv, struct fmt_error *err)
{
	int r = 0;

	pthread_mutex_lock(&rv->b.store->lock);
	for (size_t i = 0; r == 0 && i < rv->b.count; i++) {
		struct eng_entry *e = eng_entry_get_locked(rv->b.store, &rv->b.disks[i]);

		if (!e)
			r = -ENOMEM;
		else if (e->disk)
			r = fmt_fail(err, -EBUSY, "%s/%s: attached; detach it first",
				     rv->b.rows[i].vm_name, rv->b.rows[i].disk_name);
		else if (e->in_cut)
			r = fmt_fail(err, -EBUSY, "%s/%s: a snapshot of it is being created",
				     rv->b.rows[i].vm_name, rv->b.rows[i].disk_name);
	}
	pthread_mutex_unlock(&rv->b.store->lock);
	return r;
}

/* Of the disk nothing but its head may take writes: recovery would choose among more (AS-3). */
static int check_settled(struct revert *rv, const struct eng_member *m, uint64_t *newest,
			 struct fmt_error *err)
{
	struct cat_layer *rows = NULL;
	size_t n = 0;
	int r = eng_catalog_list_layers(rv->b.store->catalog, &m->disk.id, &rows, &n);

	*newest = 0;
	for (size_t i = 0; r == 0 && i < n; i++) {
		*newest = rows[i].generation > *newest ? rows[i].generation : *newest;
		if ((rows[i].state == CAT_LAYER_ACTIVE || rows[i].state == CAT_LAYER_PENDING) &&
		    !fmt_uuid_equal(&rows[i].id, &m->tail->id))
			r = fmt_fail(err, -EBUSY,
				     "%s/%s: a failed snapshot left a layer of it unsettled; "
				     "attach it once, or open the store anew",
				     m->disk.vm_name, m->disk.name);
	}
	free(rows);
	return r;
}

static int open_member(struct revert *rv, size_t i, struct fmt_error *err)
{
	struct eng_member *m = &rv->b.members[i];
	uint64_t newest = 0;
	int r;

	m->entry = rv->b.entries[i];
	m->disk.id = rv->b.disks[i];
	m->index = (uint32_t)i;
	if (m->entry->disk)
		return fmt_fail(err, -EBUSY, "%s/%s: attached; detach it first",
				rv->b.rows[i].vm_name, rv->b.rows[i].disk_name);
	r = eng_member_open(rv->b.store, m, true, err);
	if (r == 0)
		r = check_settled(rv, m, &newest, err);
	if (r == 0 && !fmt_uuid_equal(&m->disk.head, &m->tail->id))
		r = fmt_fail(err, -EBUSY, "%s/%s: its head is not settled; open the store anew",
			     m->disk.vm_name, m->disk.name);
	if (r < 0)
		return r;
	m->branch = true;
	m->parent = rv->b.rows[i].layer;
	m->generation = newest + 1;
	rv->left_sizes[i] = m->disk.size;
	m->disk.size = rv->b.rows[i].size;
	return 0;
}

static int check(struct revert *rv, struct fmt_error *err, struct eng_revert_result *res)
{
	int r = eng_branch_find(&rv->b, err);

	if (r == 0)
		r = match(rv, err, res);
	if (r == 0)
		r = check_cuts(rv, err);
	if (r == 0)
		r = eng_branch_claim(&rv->b, err);
	if (r < 0)
		return r;
	rv->left_sizes = calloc(rv->b.count + 1, sizeof(*rv->left_sizes));
	if (!rv->left_sizes)
		return -ENOMEM;
	for (size_t i = 0; r == 0 && i < rv->b.count; i++)
		r = open_member(rv, i, err);
	return r;
}

/* --- the transaction --- */

static void kept_row(const struct revert *rv, int64_t now, struct cat_snapshot *row)
{
	*row = (struct cat_snapshot){
		.id = rv->how->kept_id,
		.collection = rv->b.snap.collection,
		.state = CAT_SNAPSHOT_COMPLETE,
		.type = 1,
		.consistency = 2,
		.disks = (uint32_t)rv->b.count,
		.automatic = true,
		.created_ns = now,
		.cut_wall_ns = now,
	};
	strcpy(row->name, rv->how->kept_name);
	snprintf(row->element_name, sizeof(row->element_name), "before the revert to %s",
		 rv->b.snap.name);
}

static void put_kept_disk(struct revert *rv, size_t i)
{
	const struct eng_member *m = &rv->b.members[i];
	struct cat_snapshot_disk row = {
		.snapshot = rv->how->kept_id,
		.disk = m->disk.id,
		.layer = m->tail->id,
		.size = rv->left_sizes[i],
		.index = m->index,
	};

	strcpy(row.vm_name, m->disk.vm_name);
	strcpy(row.disk_name, m->disk.name);
	eng_catalog_put_snapshot_disk(rv->b.store->catalog, &row);
	eng_catalog_set_layer_snapshot(rv->b.store->catalog, &m->tail->id, &rv->how->kept_id);
}

/* GB-2: where a snapshot of the disk is read, what it may stand on stays until that has ended. */
static int put_garbage(struct revert *rv)
{
	int r = 0;

	for (size_t i = 0; r == 0 && i < rv->b.count; i++)
		if (!eng_garbage_is_read(rv->b.store, &rv->b.disks[i]))
			r = eng_garbage_rows(rv->b.store, &rv->b.disks[i], &rv->garbage);
	return r;
}

/* AS-5: the commit point. */
static int commit(struct revert *rv, struct fmt_error *err)
{
	struct eng_catalog *cat = rv->b.store->catalog;
	int64_t now = eng_io_wall_ns(rv->b.store->io);
	struct cat_snapshot row;
	int r = eng_catalog_begin(cat);

	if (r < 0)
		return fmt_fail(err, r, "cannot begin in the catalog: %s", strerror(-r));
	r = eng_branch_recheck(&rv->b, err);
	if (r == 0 && rv->how->keep) {
		kept_row(rv, now, &row);
		eng_catalog_put_snapshot(cat, &row);
	}
	for (size_t i = 0; r == 0 && i < rv->b.count; i++) {
		if (rv->how->keep)
			put_kept_disk(rv, i);
		eng_catalog_set_layer_state(cat, &rv->b.members[i].tail->id, CAT_LAYER_HARDENED);
		eng_branch_put_head(&rv->b, &rv->b.members[i]);
	}
	eng_catalog_put_completed(cat, &rv->how->job,
				  rv->how->keep ? &rv->how->kept_id : &rv->b.snap.id, now);
	if (r == 0 && !rv->how->keep)
		r = put_garbage(rv);
	if (r < 0) {
		eng_catalog_rollback(cat);
		return r;
	}
	r = eng_catalog_commit(cat, err);
	return r == -EEXIST ? fmt_fail(err, r, "%s@%s: the name is taken", rv->b.collection,
				       rv->how->kept_name)
			    : r;
}

/* --- all of it --- */

static int prepare(struct revert *rv, struct fmt_error *err)
{
	static const struct fmt_uuid none;
	uint64_t deadline = eng_io_now_ns(rv->b.store->io) + HARDEN_NS;
	int r = eng_branch_create_overlays(&rv->b, err);

	if (r == 0)
		r = eng_batch_harden(rv->b.batch, rv->b.members, rv->b.count, deadline, err);
	if (r < 0)
		return r;
	rv->bounded = true;
	return eng_batch_bound(rv->b.batch, rv->b.members, rv->b.count,
			       rv->how->keep ? &rv->how->kept_id : &none, err);
}

static void make_head(struct fmt_header *hdr, void *arg)
{
	(void)arg;
	hdr->state = FMT_STATE_ACTIVE;
	memset(&hdr->snapshot_id, 0, sizeof(hdr->snapshot_id));
	hdr->snapshot_members = 0;
	hdr->snapshot_index = 0;
}

/* AS-6 */
static void undo(struct revert *rv)
{
	struct eng_store *store = rv->b.store;

	for (size_t i = 0; i < rv->b.count; i++) {
		struct eng_member *m = &rv->b.members[i];

		if (rv->bounded && eng_layer_update(m->tail, make_head, NULL, NULL) < 0) {
			m->entry->refused = true;
			atomic_store(&store->unsettled, true);
		}
		if (m->entry)
			eng_entry_set_tail(m->entry, NULL); /* opened anew: it was frozen */
	}
	eng_branch_undo(&rv->b);
}

static void finish(struct revert *rv)
{
	for (size_t i = 0; i < rv->b.count; i++) {
		struct eng_member *m = &rv->b.members[i];

		if (rv->how->keep)
			eng_store_seal(rv->b.store, &m->tail->id, m->tail);
		eng_entry_set_tail(m->entry, NULL); /* the next one opens the new head */
	}
	eng_store_checkpoint(rv->b.store);
}

int eng_store_revert(struct eng_store *store, const struct eng_revert *how, struct fmt_error *err,
		     struct eng_revert_result *ret)
{
	struct revert rv = {
		.how = how,
		.b = {.store = store, .collection = how->collection, .name = how->name},
	};
	struct eng_revert_result res = {0};
	uint64_t start = eng_io_now_ns(store->io), prepared = start;
	int r = check(&rv, err, &res);

	if (r == 0) {
		r = prepare(&rv, err);
		prepared = eng_io_now_ns(store->io);
		if (r == 0)
			r = commit(&rv, err);
		if (r == 0)
			finish(&rv);
		else if (!eng_catalog_poisoned(store->catalog)) /* T23: the next open decides */
			undo(&rv);
	}
	if (r == 0)
		eng_garbage_files(store, &rv.garbage);
	res.disks = (uint32_t)rv.b.count;
	res.removed = (uint32_t)rv.garbage.count;
	res.prepare_ns = prepared - start;
	res.total_ns = eng_io_now_ns(store->io) - start;
	res.commit_ns = res.total_ns - res.prepare_ns;
	for (size_t i = 0; r == 0 && i < rv.b.count; i++)
		eng_folder_want(store->folder, &rv.b.disks[i]);
	eng_branch_fini(&rv.b);
	eng_garbage_fini(&rv.garbage);
	free(rv.left_sizes);
	if (r < 0) {
		free(res.untouched);
		return err && err->text[0] ? r
					   : fmt_fail(err, r, "%s@%s: cannot revert: %s",
						      how->collection, how->name, strerror(-r));
	}
	*ret = res;
	return 0;
}
