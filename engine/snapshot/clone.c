/* SPDX-License-Identifier: MIT */
/*
 * clone.c - see clone.h (CL-*).
 *
 * The origins are claimed, so that no fold puts other layers in the place of the snapshot's meanwhile;
 * they may be attached, and their guests notice nothing. Overlays first, durable with their names, then
 * one transaction: a crash before it leaves files without a row, after it the clone.
 */
#include "engine/snapshot/clone.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/store/overlay.h"

#define CLAIM_NS (10ull * 1000000000)

struct clone {
	struct eng_store *store;
	const struct eng_clone *how;
	struct cat_snapshot snap;
	struct cat_snapshot_disk *rows; /* of it, those skipped left out */
	size_t count;
	struct fmt_uuid *origins;
	struct eng_entry **entries;
	bool claimed;
	struct eng_member *members; /* the new disks, and their heads */
	struct cat_vm *vms;
	size_t vm_count;
	struct cat_collection collection;
	struct eng_batch *batch;
};

/* --- what --- */

static int find_snapshot(struct clone *c, struct cat_snapshot *ret, struct fmt_error *err)
{
	const struct eng_clone *how = c->how;
	int r = eng_catalog_get_snapshot(c->store->catalog, how->collection, how->name, ret);

	if (r == 0 && ret->state != CAT_SNAPSHOT_COMPLETE)
		r = -ENOENT;
	return r < 0 ? fmt_fail(err, r, "%s@%s: %s", how->collection, how->name,
				r == -ENOENT ? "no such snapshot" : strerror(-r))
		     : 0;
}

/* Those skipped are told in @res, when it is not NULL. */
static int load_rows(struct clone *c, struct eng_clone_result *res)
{
	struct cat_snapshot_disk *rows = NULL;
	size_t n = 0, held = 0;
	int r = eng_catalog_list_snapshot_disks(c->store->catalog, &c->snap.id, &rows, &n);

	if (r < 0)
		return r;
	if (res)
		res->skipped = calloc(n + 1, sizeof(*res->skipped));
	if (res && !res->skipped) {
		free(rows);
		return -ENOMEM;
	}
	for (size_t i = 0; i < n; i++) {
		if (!rows[i].skipped)
			rows[held++] = rows[i];
		else if (res)
			snprintf(res->skipped[res->skipped_count++], CAT_NS_MAX, "%s/%s",
				 rows[i].vm_name, rows[i].disk_name);
	}
	free(c->rows);
	c->rows = rows;
	if (c->claimed && held != c->count)
		return -ENOENT;
	c->count = held;
	return 0;
}

static struct cat_vm *find_vm(struct clone *c, const char *name)
{
	for (size_t i = 0; i < c->vm_count; i++)
		if (!strcmp(c->vms[i].name, name))
			return &c->vms[i];
	return NULL;
}

/* The new VM for the one that had that name at the cut. */
static int make_vm(struct clone *c, const char *origin, struct cat_vm **ret, struct fmt_error *err)
{
	char name[2 * CAT_NAME_MAX];
	struct cat_vm *vm, taken;
	int r;

	snprintf(name, sizeof(name), "%s-%s", c->how->to, origin);
	*ret = find_vm(c, name);
	if (*ret)
		return 0;
	if (strlen(name) >= CAT_NAME_MAX)
		return fmt_fail(err, -EINVAL, "vm %s: a name of %zu bytes, at most %d fit", name,
				strlen(name), CAT_NAME_MAX - 1);
	r = eng_catalog_get_vm(c->store->catalog, name, &taken);
	if (r == 0)
		return fmt_fail(err, -EEXIST, "vm %s: exists already", name);
	if (r != -ENOENT)
		return r;
	vm = &c->vms[c->vm_count++];
	eng_store_new_id(c->store, &vm->id);
	strcpy(vm->name, name);
	vm->created_ns = c->collection.created_ns;
	*ret = vm;
	return 0;
}

static int make_collection(struct clone *c, struct fmt_error *err)
{
	struct cat_collection taken;
	int r = eng_catalog_get_collection(c->store->catalog, c->how->to, &taken);

	if (r == 0)
		return fmt_fail(err, -EEXIST, "collection %s: exists already", c->how->to);
	if (r != -ENOENT)
		return r;
	eng_store_new_id(c->store, &c->collection.id);
	snprintf(c->collection.name, sizeof(c->collection.name), "%s", c->how->to);
	c->collection.created_ns = eng_io_wall_ns(c->store->io);
	return 0;
}

/* CL-1, CL-2: a new disk, and the layer that its head is to stand on. */
static int make_member(struct clone *c, size_t i, struct fmt_error *err)
{
	const struct cat_snapshot_disk *row = &c->rows[i];
	struct eng_member *m = &c->members[i];
	struct cat_layer layer;
	struct cat_disk origin;
	struct cat_vm *vm;
	int r = make_vm(c, row->vm_name, &vm, err);

	if (r == 0)
		r = eng_catalog_get_layer(c->store->catalog, &row->layer, &layer);
	if (r == 0)
		r = eng_catalog_get_disk_id(c->store->catalog, &row->disk, &origin);
	if (r < 0)
		return r;
	eng_store_new_id(c->store, &m->disk.id);
	m->disk.vm = vm->id;
	strcpy(m->disk.name, row->disk_name);
	strcpy(m->disk.vm_name, vm->name);
	m->disk.size = row->size;
	m->disk.block_bits = origin.block_bits;
	m->disk.position = row->index;
	m->disk.created_ns = c->collection.created_ns;
	m->index = (uint32_t)i;
	m->branch = true;
	m->parent = layer.id;
	m->generation = layer.generation + 1;
	return 0;
}

static int check(struct clone *c, struct fmt_error *err, struct eng_clone_result *res)
{
	struct eng_store *store = c->store;
	int r = find_snapshot(c, &c->snap, err);

	if (r == 0)
		r = make_collection(c, err);
	if (r == 0)
		r = load_rows(c, res);
	if (r < 0)
		return r;
	c->origins = calloc(c->count + 1, sizeof(*c->origins));
	c->entries = calloc(c->count + 1, sizeof(struct eng_entry *));
	c->members = calloc(c->count + 1, sizeof(*c->members));
	c->vms = calloc(c->count + 1, sizeof(*c->vms));
	if (!c->origins || !c->entries || !c->members || !c->vms)
		return -ENOMEM;
	for (size_t i = 0; i < c->count; i++)
		c->origins[i] = c->rows[i].disk;
	r = eng_store_claim_all(store, c->origins, c->count, eng_io_now_ns(store->io) + CLAIM_NS,
				c->entries);
	if (r < 0)
		return fmt_fail(err, r,
				"a disk of it is busy with a snapshot, an attach or a fold");
	c->claimed = true;
	r = load_rows(c, NULL); /* a fold may have put other layers in their place until here */
	for (size_t i = 0; r == 0 && i < c->count; i++)
		r = make_member(c, i, err);
	return r;
}

/* --- the transaction --- */

static void put_disk(struct clone *c, struct eng_member *m)
{
	struct cat_layer row = {
		.id = m->pending->id,
		.disk = m->disk.id,
		.parent = m->parent,
		.kind = FMT_KIND_OVERLAY,
		.state = CAT_LAYER_ACTIVE,
		.generation = m->generation,
		.created_ns = m->pending->hdr.created_ns,
	};

	m->disk.head = row.id;
	eng_catalog_put_disk(c->store->catalog, &m->disk);
	eng_catalog_put_layer(c->store->catalog, &row);
}

static void put_job(struct clone *c, int64_t now)
{
	struct cat_job job = c->how->job;

	if (fmt_uuid_is_none(&job.id))
		return;
	job.state = 7;
	job.percent = 100;
	job.affected = c->collection.id;
	job.changed_ns = now;
	job.ended_ns = now;
	strcpy(job.status_text, "completed");
	eng_catalog_put_job(c->store->catalog, &job);
}

/* CL-3: the commit point. */
static int commit(struct clone *c, struct fmt_error *err)
{
	struct eng_catalog *cat = c->store->catalog;
	struct cat_snapshot snap;
	int r = eng_catalog_begin(cat);

	if (r < 0)
		return fmt_fail(err, r, "cannot begin in the catalog: %s", strerror(-r));
	r = find_snapshot(c, &snap, err); /* GB-3 */
	if (r < 0) {
		eng_catalog_rollback(cat);
		return r;
	}
	eng_catalog_put_collection(cat, &c->collection);
	for (size_t i = 0; i < c->vm_count; i++) {
		eng_catalog_put_vm(cat, &c->vms[i]);
		eng_catalog_put_member(cat, &c->collection.id, &c->vms[i].id);
	}
	for (size_t i = 0; i < c->count; i++)
		put_disk(c, &c->members[i]);
	put_job(c, eng_io_wall_ns(c->store->io));
	return eng_catalog_commit(cat, err);
}

/* --- all of it --- */

static int prepare(struct clone *c, struct fmt_error *err)
{
	int r = eng_batch_create(c->store, &c->batch);

	if (r < 0)
		return fmt_fail(err, r, "cannot set up a ring: %s", strerror(-r));
	return eng_batch_create_overlays(c->batch, c->members, c->count, err);
}

static void undo(struct clone *c)
{
	for (size_t i = 0; c->members && i < c->count; i++)
		if (c->members[i].pending)
			eng_io_unlink(c->store->io, c->members[i].pending->path);
}

static void fini(struct clone *c)
{
	for (size_t i = 0; c->members && i < c->count; i++)
		eng_layer_put(c->members[i].pending);
	if (c->claimed)
		eng_store_release_all(c->entries, c->count);
	eng_batch_destroy(c->batch);
	free(c->members);
	free(c->entries);
	free(c->origins);
	free(c->vms);
	free(c->rows);
}

int eng_store_clone(struct eng_store *store, const struct eng_clone *how, struct fmt_error *err,
		    struct eng_clone_result *ret)
{
	struct clone c = {.store = store, .how = how};
	struct eng_clone_result res = {0};
	uint64_t start = eng_io_now_ns(store->io), prepared = start;
	int r = check(&c, err, &res);

	if (r == 0) {
		r = prepare(&c, err);
		prepared = eng_io_now_ns(store->io);
		if (r == 0)
			r = commit(&c, err);
		if (r < 0 && !eng_catalog_poisoned(store->catalog)) /* T23: the next open decides */
			undo(&c);
	}
	res.collection = c.collection.id;
	res.vms = (uint32_t)c.vm_count;
	res.disks = (uint32_t)c.count;
	res.prepare_ns = prepared - start;
	res.total_ns = eng_io_now_ns(store->io) - start;
	res.commit_ns = res.total_ns - res.prepare_ns;
	fini(&c);
	if (r < 0) {
		free(res.skipped);
		return err && err->text[0] ? r
					   : fmt_fail(err, r, "%s@%s: cannot clone: %s",
						      how->collection, how->name, strerror(-r));
	}
	*ret = res;
	return 0;
}
