/* SPDX-License-Identifier: MIT */
/*
 * clone.c - see clone.h (CL-*).
 *
 * New disks branch off the snapshot's (branch.h). These may be attached, and their guests notice
 * nothing: they are claimed only.
 */
#include "engine/snapshot/clone.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/snapshot/branch.h"

struct clone {
	const struct eng_clone *how;
	struct eng_branch b; /* its members: the new disks */
	struct cat_vm *vms;
	size_t vm_count;
	struct cat_collection collection;
};

/* --- what --- */

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
	r = eng_catalog_get_vm(c->b.store->catalog, name, &taken);
	if (r == 0)
		return fmt_fail(err, -EEXIST, "vm %s: exists already", name);
	if (r != -ENOENT)
		return r;
	vm = &c->vms[c->vm_count++];
	eng_store_new_id(c->b.store, &vm->id);
	strcpy(vm->name, name);
	vm->created_ns = c->collection.created_ns;
	*ret = vm;
	return 0;
}

static int make_collection(struct clone *c, struct fmt_error *err)
{
	struct cat_collection taken;
	int r = eng_catalog_get_collection(c->b.store->catalog, c->how->to, &taken);

	if (r == 0)
		return fmt_fail(err, -EEXIST, "collection %s: exists already", c->how->to);
	if (r != -ENOENT)
		return r;
	eng_store_new_id(c->b.store, &c->collection.id);
	snprintf(c->collection.name, sizeof(c->collection.name), "%s", c->how->to);
	c->collection.created_ns = eng_io_wall_ns(c->b.store->io);
	return 0;
}

/* CL-1, CL-2: a new disk, and the layer that its head is to stand on. */
static int make_member(struct clone *c, size_t i, struct fmt_error *err)
{
	const struct cat_snapshot_disk *row = &c->b.rows[i];
	struct eng_member *m = &c->b.members[i];
	struct cat_layer layer;
	struct cat_disk origin;
	struct cat_vm *vm;
	int r = make_vm(c, row->vm_name, &vm, err);

	if (r == 0)
		r = eng_catalog_get_layer(c->b.store->catalog, &row->layer, &layer);
	if (r == 0)
		r = eng_catalog_get_disk_id(c->b.store->catalog, &row->disk, &origin);
	if (r < 0)
		return r;
	eng_store_new_id(c->b.store, &m->disk.id);
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

static int list_skipped(const struct eng_branch *b, struct eng_clone_result *res)
{
	const struct cat_snapshot_disk *rows = &b->rows[b->count];

	res->skipped = calloc(b->skipped + 1, sizeof(*res->skipped));
	if (!res->skipped)
		return -ENOMEM;
	for (; res->skipped_count < b->skipped; res->skipped_count++)
		snprintf(res->skipped[res->skipped_count], CAT_NS_MAX, "%s/%s",
			 rows[res->skipped_count].vm_name, rows[res->skipped_count].disk_name);
	return 0;
}

static int check(struct clone *c, struct fmt_error *err, struct eng_clone_result *res)
{
	int r = eng_branch_find(&c->b, err);

	if (r == 0)
		r = make_collection(c, err);
	if (r == 0)
		r = list_skipped(&c->b, res);
	if (r == 0)
		r = eng_branch_claim(&c->b, err);
	if (r < 0)
		return r;
	c->vms = calloc(c->b.count + 1, sizeof(*c->vms));
	if (!c->vms)
		return -ENOMEM;
	for (size_t i = 0; r == 0 && i < c->b.count; i++)
		r = make_member(c, i, err);
	return r;
}

/* --- the transaction --- */

/* CL-3: the commit point. */
static int commit(struct clone *c, struct fmt_error *err)
{
	struct eng_catalog *cat = c->b.store->catalog;
	int r = eng_catalog_begin(cat);

	if (r < 0)
		return fmt_fail(err, r, "cannot begin in the catalog: %s", strerror(-r));
	r = eng_branch_recheck(&c->b, err);
	if (r < 0) {
		eng_catalog_rollback(cat);
		return r;
	}
	eng_catalog_put_collection(cat, &c->collection);
	for (size_t i = 0; i < c->vm_count; i++) {
		eng_catalog_put_vm(cat, &c->vms[i]);
		eng_catalog_put_member(cat, &c->collection.id, &c->vms[i].id);
	}
	for (size_t i = 0; i < c->b.count; i++)
		eng_branch_put_head(&c->b, &c->b.members[i]);
	eng_catalog_put_completed(cat, &c->how->job, &c->collection.id,
				  eng_io_wall_ns(c->b.store->io));
	return eng_catalog_commit(cat, err);
}

/* --- all of it --- */

int eng_store_clone(struct eng_store *store, const struct eng_clone *how, struct fmt_error *err,
		    struct eng_clone_result *ret)
{
	struct clone c = {
		.how = how,
		.b = {.store = store, .collection = how->collection, .name = how->name},
	};
	struct eng_clone_result res = {0};
	uint64_t start = eng_io_now_ns(store->io), prepared = start;
	int r = check(&c, err, &res);

	if (r == 0) {
		r = eng_branch_create_overlays(&c.b, err);
		prepared = eng_io_now_ns(store->io);
		if (r == 0)
			r = commit(&c, err);
		if (r < 0 && !eng_catalog_poisoned(store->catalog)) /* T23: the next open decides */
			eng_branch_undo(&c.b);
	}
	res.collection = c.collection.id;
	res.vms = (uint32_t)c.vm_count;
	res.disks = (uint32_t)c.b.count;
	res.prepare_ns = prepared - start;
	res.total_ns = eng_io_now_ns(store->io) - start;
	res.commit_ns = res.total_ns - res.prepare_ns;
	eng_branch_fini(&c.b);
	free(c.vms);
	if (r < 0) {
		free(res.skipped);
		return err && err->text[0] ? r
					   : fmt_fail(err, r, "%s@%s: cannot clone: %s",
						      how->collection, how->name, strerror(-r));
	}
	*ret = res;
	return 0;
}
