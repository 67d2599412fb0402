/* SPDX-License-Identifier: MIT */
/*
 * revert.c - see revert.h (AS-*).
 *
 * No disk is attached, so that nothing moves under it: overlays on the snapshot's layers are made and
 * durable, the left heads hardened and frozen, then one transaction changes all heads. A crash before it
 * leaves the old heads, which recovery makes heads again, and files without a row; after it the new ones.
 */
#include "engine/snapshot/revert.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/fold/fold.h"
#include "engine/store/garbage.h"
#include "engine/store/overlay.h"

#define CLAIM_NS  (10ull * 1000000000)
#define HARDEN_NS (10ull * 1000000000)

struct revert {
	struct eng_store *store;
	const struct eng_revert *how;
	struct cat_snapshot snap;
	struct cat_snapshot_disk *rows; /* of it, those skipped left out */
	size_t count;
	struct fmt_uuid *disks;
	uint64_t *left_sizes;
	struct eng_entry **entries;
	bool claimed, bounded;
	struct eng_member *members;
	struct eng_batch *batch;
	struct eng_garbage garbage;
};

/* --- what and whether --- */

static int find_snapshot(struct revert *rv, struct cat_snapshot *ret, struct fmt_error *err)
{
	const struct eng_revert *how = rv->how;
	int r = eng_catalog_get_snapshot(rv->store->catalog, how->collection, how->name, ret);

	if (r == 0 && ret->state != CAT_SNAPSHOT_COMPLETE)
		r = -ENOENT;
	return r < 0 ? fmt_fail(err, r, "%s@%s: %s", how->collection, how->name,
				r == -ENOENT ? "no such snapshot" : strerror(-r))
		     : 0;
}

/* Folds may put other layers in the place of the snapshot's until its disks are claimed. */
static int load_rows(struct revert *rv)
{
	struct cat_snapshot_disk *rows = NULL;
	size_t n = 0, kept = 0;
	int r = eng_catalog_list_snapshot_disks(rv->store->catalog, &rv->snap.id, &rows, &n);

	if (r < 0)
		return r;
	for (size_t i = 0; i < n; i++)
		if (!rows[i].skipped)
			rows[kept++] = rows[i];
	free(rv->rows);
	rv->rows = rows;
	if (rv->claimed && kept != rv->count)
		return -ENOENT;
	rv->count = kept;
	return 0;
}

static int find_disks(struct revert *rv)
{
	int r = load_rows(rv);

	rv->disks = calloc(rv->count + 1, sizeof(*rv->disks));
	rv->left_sizes = calloc(rv->count + 1, sizeof(*rv->left_sizes));
	rv->entries = calloc(rv->count + 1, sizeof(struct eng_entry *));
	rv->members = calloc(rv->count + 1, sizeof(*rv->members));
	if (r == 0 && (!rv->disks || !rv->left_sizes || !rv->entries || !rv->members))
		r = -ENOMEM;
	for (size_t i = 0; r == 0 && i < rv->count; i++)
		rv->disks[i] = rv->rows[i].disk;
	return r;
}

static const struct cat_snapshot_disk *find_row(const struct revert *rv,
						const struct fmt_uuid *disk)
{
	for (size_t i = 0; i < rv->count; i++)
		if (fmt_uuid_equal(&rv->rows[i].disk, disk))
			return &rv->rows[i];
	return NULL;
}

/* AS-1: all of the snapshot's disks are the collection's, and who of these is none of the snapshot's. */
static int match(struct revert *rv, struct fmt_error *err, struct eng_revert_result *res)
{
	struct cat_disk *disks = NULL;
	size_t n = 0, held = 0;
	int r = eng_catalog_list_collection_disks(rv->store->catalog, &rv->snap.collection, &disks,
						  &n);

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
	for (size_t i = 0; r == 0 && held < rv->count && i < rv->count; i++) {
		bool there = false;

		for (size_t j = 0; j < n; j++)
			there = there || fmt_uuid_equal(&disks[j].id, &rv->rows[i].disk);
		if (!there)
			r = fmt_fail(err, -EXDEV, "%s/%s: not of a VM of the collection any more",
				     rv->rows[i].vm_name, rv->rows[i].disk_name);
	}
	free(disks);
	return r;
}

/* AS-2, before anybody waits: a create has them from its check on (CU-4). */
static int check_cuts(struct revert *rv, struct fmt_error *err)
{
	int r = 0;

	pthread_mutex_lock(&rv->store->lock);
	for (size_t i = 0; r == 0 && i < rv->count; i++) {
		struct eng_entry *e = eng_entry_get_locked(rv->store, &rv->disks[i]);

		if (!e)
			r = -ENOMEM;
		else if (e->disk)
			r = fmt_fail(err, -EBUSY, "%s/%s: attached; detach it first",
				     rv->rows[i].vm_name, rv->rows[i].disk_name);
		else if (e->in_cut)
			r = fmt_fail(err, -EBUSY, "%s/%s: a snapshot of it is being created",
				     rv->rows[i].vm_name, rv->rows[i].disk_name);
	}
	pthread_mutex_unlock(&rv->store->lock);
	return r;
}

/* Of the disk nothing but its head may take writes: recovery would choose among more (AS-3). */
static int check_settled(struct revert *rv, const struct eng_member *m, uint64_t *newest,
			 struct fmt_error *err)
{
	struct cat_layer *rows = NULL;
	size_t n = 0;
	int r = eng_catalog_list_layers(rv->store->catalog, &m->disk.id, &rows, &n);

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
	struct eng_member *m = &rv->members[i];
	uint64_t newest = 0;
	int r;

	m->entry = rv->entries[i];
	m->disk.id = rv->disks[i];
	m->index = (uint32_t)i;
	if (m->entry->disk)
		return fmt_fail(err, -EBUSY, "%s/%s: attached; detach it first",
				rv->rows[i].vm_name, rv->rows[i].disk_name);
	r = eng_member_open(rv->store, m, true, err);
	if (r == 0)
		r = check_settled(rv, m, &newest, err);
	if (r == 0 && !fmt_uuid_equal(&m->disk.head, &m->tail->id))
		r = fmt_fail(err, -EBUSY, "%s/%s: its head is not settled; open the store anew",
			     m->disk.vm_name, m->disk.name);
	if (r < 0)
		return r;
	m->branch = true;
	m->parent = rv->rows[i].layer;
	m->generation = newest + 1;
	rv->left_sizes[i] = m->disk.size;
	m->disk.size = rv->rows[i].size;
	return 0;
}

static int check(struct revert *rv, struct fmt_error *err, struct eng_revert_result *res)
{
	struct eng_store *store = rv->store;
	int r = find_snapshot(rv, &rv->snap, err);

	if (r == 0)
		r = find_disks(rv);
	if (r == 0)
		r = match(rv, err, res);
	if (r == 0)
		r = check_cuts(rv, err);
	if (r < 0)
		return r;
	r = eng_store_claim_all(store, rv->disks, rv->count, eng_io_now_ns(store->io) + CLAIM_NS,
				rv->entries);
	if (r < 0)
		return fmt_fail(err, r,
				"a disk of it is busy with a snapshot, an attach or a fold");
	rv->claimed = true;
	r = load_rows(rv);
	for (size_t i = 0; r == 0 && i < rv->count; i++)
		r = open_member(rv, i, err);
	return r;
}

/* --- the transaction --- */

static void kept_row(const struct revert *rv, int64_t now, struct cat_snapshot *row)
{
	*row = (struct cat_snapshot){
		.id = rv->how->kept_id,
		.collection = rv->snap.collection,
		.state = CAT_SNAPSHOT_COMPLETE,
		.type = 1,
		.consistency = 2,
		.disks = (uint32_t)rv->count,
		.automatic = true,
		.created_ns = now,
		.cut_wall_ns = now,
	};
	strcpy(row->name, rv->how->kept_name);
	snprintf(row->element_name, sizeof(row->element_name), "before the revert to %s",
		 rv->snap.name);
}

static void put_kept_disk(struct revert *rv, size_t i)
{
	const struct eng_member *m = &rv->members[i];
	struct cat_snapshot_disk row = {
		.snapshot = rv->how->kept_id,
		.disk = m->disk.id,
		.layer = m->tail->id,
		.size = rv->left_sizes[i],
		.index = m->index,
	};

	strcpy(row.vm_name, m->disk.vm_name);
	strcpy(row.disk_name, m->disk.name);
	eng_catalog_put_snapshot_disk(rv->store->catalog, &row);
	eng_catalog_set_layer_snapshot(rv->store->catalog, &m->tail->id, &rv->how->kept_id);
}

static void put_branch(struct revert *rv, struct eng_member *m)
{
	struct eng_catalog *cat = rv->store->catalog;
	struct cat_layer row = {
		.id = m->pending->id,
		.disk = m->disk.id,
		.parent = m->parent,
		.kind = FMT_KIND_OVERLAY,
		.state = CAT_LAYER_ACTIVE,
		.generation = m->generation,
		.created_ns = m->pending->hdr.created_ns,
	};

	eng_catalog_set_layer_state(cat, &m->tail->id, CAT_LAYER_HARDENED);
	eng_catalog_put_layer(cat, &row);
	m->disk.head = row.id;
	eng_catalog_put_disk(cat, &m->disk);
}

static void put_job(struct revert *rv, int64_t now)
{
	struct cat_job job = rv->how->job;

	if (fmt_uuid_is_none(&job.id))
		return;
	job.state = 7;
	job.percent = 100;
	job.affected = rv->how->keep ? rv->how->kept_id : rv->snap.id;
	job.changed_ns = now;
	job.ended_ns = now;
	strcpy(job.status_text, "completed");
	eng_catalog_put_job(rv->store->catalog, &job);
}

/* GB-2: where a snapshot of the disk is read, what it may stand on stays until that has ended. */
static int put_garbage(struct revert *rv)
{
	int r = 0;

	for (size_t i = 0; r == 0 && i < rv->count; i++)
		if (!eng_garbage_is_read(rv->store, &rv->disks[i]))
			r = eng_garbage_rows(rv->store, &rv->disks[i], &rv->garbage);
	return r;
}

/* AS-5: the commit point. */
static int commit(struct revert *rv, struct fmt_error *err)
{
	struct eng_catalog *cat = rv->store->catalog;
	int64_t now = eng_io_wall_ns(rv->store->io);
	struct cat_snapshot row;
	int r = eng_catalog_begin(cat);

	if (r < 0)
		return fmt_fail(err, r, "cannot begin in the catalog: %s", strerror(-r));
	r = find_snapshot(rv, &row, err); /* GB-3 */
	if (r == 0 && rv->how->keep) {
		kept_row(rv, now, &row);
		eng_catalog_put_snapshot(cat, &row);
	}
	for (size_t i = 0; r == 0 && i < rv->count; i++) {
		if (rv->how->keep)
			put_kept_disk(rv, i);
		put_branch(rv, &rv->members[i]);
	}
	put_job(rv, now);
	if (r == 0 && !rv->how->keep)
		r = put_garbage(rv);
	if (r < 0) {
		eng_catalog_rollback(cat);
		return r;
	}
	return eng_catalog_commit(cat, err);
}

/* --- all of it --- */

static int prepare(struct revert *rv, struct fmt_error *err)
{
	static const struct fmt_uuid none;
	uint64_t deadline = eng_io_now_ns(rv->store->io) + HARDEN_NS;
	int r = eng_batch_create(rv->store, &rv->batch);

	if (r < 0)
		return fmt_fail(err, r, "cannot set up a ring: %s", strerror(-r));
	r = eng_batch_create_overlays(rv->batch, rv->members, rv->count, err);
	if (r == 0)
		r = eng_batch_harden(rv->batch, rv->members, rv->count, deadline, err);
	if (r < 0)
		return r;
	rv->bounded = true;
	return eng_batch_bound(rv->batch, rv->members, rv->count,
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
	struct eng_store *store = rv->store;

	for (size_t i = 0; i < rv->count; i++) {
		struct eng_member *m = &rv->members[i];

		if (rv->bounded && eng_layer_update(m->tail, make_head, NULL, NULL) < 0) {
			m->entry->refused = true;
			atomic_store(&store->unsettled, true);
		}
		if (m->entry)
			eng_entry_set_tail(m->entry, NULL); /* opened anew: it was frozen */
		if (m->pending)
			eng_io_unlink(store->io, m->pending->path);
	}
}

static void finish(struct revert *rv)
{
	for (size_t i = 0; i < rv->count; i++) {
		struct eng_member *m = &rv->members[i];

		if (rv->how->keep)
			eng_store_seal(rv->store, &m->tail->id, m->tail);
		eng_entry_set_tail(m->entry, NULL); /* the next one opens the new head */
	}
	eng_store_checkpoint(rv->store);
}

static void fini(struct revert *rv)
{
	for (size_t i = 0; rv->members && i < rv->count; i++) {
		eng_layer_put(rv->members[i].tail);
		eng_layer_put(rv->members[i].pending);
	}
	if (rv->claimed)
		eng_store_release_all(rv->entries, rv->count);
	eng_batch_destroy(rv->batch);
	eng_garbage_fini(&rv->garbage);
	free(rv->members);
	free(rv->entries);
	free(rv->left_sizes);
	free(rv->disks);
	free(rv->rows);
}

int eng_store_revert(struct eng_store *store, const struct eng_revert *how, struct fmt_error *err,
		     struct eng_revert_result *ret)
{
	struct revert rv = {.store = store, .how = how};
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
	res.disks = (uint32_t)rv.count;
	res.removed = (uint32_t)rv.garbage.count;
	res.prepare_ns = prepared - start;
	res.total_ns = eng_io_now_ns(store->io) - start;
	res.commit_ns = res.total_ns - res.prepare_ns;
	for (size_t i = 0; r == 0 && i < rv.count; i++)
		eng_folder_want(store->folder, &rv.disks[i]);
	fini(&rv);
	if (r < 0) {
		free(res.untouched);
		return err && err->text[0] ? r
					   : fmt_fail(err, r, "%s@%s: cannot revert: %s",
						      how->collection, how->name, strerror(-r));
	}
	*ret = res;
	return 0;
}
