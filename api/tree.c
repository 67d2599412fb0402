/* SPDX-License-Identifier: MIT */
/* tree.c - the documents of the whole store: its counts (DS-4) and its tree (DS-10). Any thread. */
#include <errno.h>
#include <stdlib.h>

#include "api/describe.h"
#include "engine/fold/fold.h"

static struct eng_catalog *catalog_of(const struct vmimg_service *svc)
{
	return svc->store->catalog;
}

/* --- STORE --- */

struct counts {
	size_t vms, disks, collections, snapshots, layers;
	uint64_t allocated;
};

static int count_snapshots(struct vmimg_service *svc, size_t *ret)
{
	struct cat_snapshot *rows = NULL;
	size_t count = 0;
	int r = eng_catalog_list_snapshots(catalog_of(svc), NULL, &rows, &count);

	for (size_t i = 0; i < count; i++)
		*ret += rows[i].state == CAT_SNAPSHOT_COMPLETE;
	free(rows);
	return r;
}

static int count_layers(struct vmimg_service *svc, struct counts *ret)
{
	struct cat_layer *rows = NULL;
	int r = eng_catalog_list_layers(catalog_of(svc), NULL, &rows, &ret->layers);

	for (size_t i = 0; r == 0 && i < ret->layers; i++)
		ret->allocated += eng_store_layer_bytes(svc->store, &rows[i]);
	free(rows);
	return r;
}

static int count_all(struct vmimg_service *svc, struct counts *ret)
{
	struct cat_collection *collections = NULL;
	struct cat_disk *disks = NULL;
	struct cat_vm *vms = NULL;
	int r = eng_catalog_list_vms(catalog_of(svc), &vms, &ret->vms);

	if (r == 0)
		r = eng_catalog_list_disks(catalog_of(svc), NULL, &disks, &ret->disks);
	if (r == 0)
		r = eng_catalog_list_collections(catalog_of(svc), &collections, &ret->collections);
	if (r == 0)
		r = count_snapshots(svc, &ret->snapshots);
	if (r == 0)
		r = count_layers(svc, ret);
	free(collections);
	free(disks);
	free(vms);
	return r;
}

/* What comes back of deleted snapshots: under way, and since the open. */
static void add_folds(struct vmimg_service *svc, json_t *doc)
{
	struct eng_folder_stats stats;
	json_t *now = json_null();

	eng_folder_stats(svc->store->folder, &stats);
	if (stats.active)
		now = json_pack("{s:I, s:I, s:I}", "layers", (json_int_t)stats.layers, "done",
				(json_int_t)stats.done, "total", (json_int_t)stats.total);
	json_object_set_new(doc, "folding", now);
	json_object_set_new(doc, "folds", json_integer((json_int_t)stats.folds));
	json_object_set_new(doc, "folded_bytes", json_integer((json_int_t)stats.bytes));
}

int api_store_document(struct vmimg_service *svc, json_t **ret)
{
	struct counts n = {0};
	char version[CAT_TEXT_MAX];
	int r = eng_catalog_fact_get(catalog_of(svc), "store_version", version);

	if (r == 0)
		r = count_all(svc, &n);
	if (r < 0)
		return r;
	*ret = json_pack("{s:o, s:o, s:s, s:I, s:I, s:I, s:I, s:I, s:I}", "store",
			 api_json_path(svc->store->dir), "id", api_json_id(&svc->store->id),
			 "version", version, "vms", (json_int_t)n.vms, "disks", (json_int_t)n.disks,
			 "collections", (json_int_t)n.collections, "snapshots",
			 (json_int_t)n.snapshots, "layers", (json_int_t)n.layers, "allocated",
			 (json_int_t)n.allocated);
	add_folds(svc, *ret);
	r = api_add_space(svc, *ret);
	if (r < 0)
		json_decref(*ret);
	return r;
}

/* --- TREE --- */

static int tree_snapshot(struct vmimg_service *svc, const void *row, json_t **ret)
{
	const struct cat_snapshot *snap = row;

	(void)svc;
	if (snap->state != CAT_SNAPSHOT_COMPLETE)
		return -ENOENT;
	*ret = json_pack("{s:o, s:o, s:o, s:s, s:I}", "snapshot",
			 api_json_name(snap->collection_name, '@', snap->name), "snapshot_id",
			 api_json_id(&snap->id), "created", api_json_time(snap->created_ns),
			 "type_name",
			 snap->type == VMIMG_SNAPSHOT_RECOVERY ? "recovery" : "standard", "disks",
			 (json_int_t)snap->disks);
	return 0;
}

static int tree_refpoint(struct vmimg_service *svc, const void *row, json_t **ret)
{
	const struct cat_refpoint *point = row;

	(void)svc;
	*ret = json_pack("{s:o, s:o, s:I}", "refpoint",
			 api_json_name(point->collection_name, '#', point->name), "created",
			 api_json_time(point->created_ns), "disks", (json_int_t)point->disks);
	return 0;
}

static int tree_refpoints(struct vmimg_service *svc, const struct fmt_uuid *collection,
			  json_t **ret)
{
	struct cat_refpoint *points = NULL;
	size_t count = 0;
	int r = eng_catalog_list_refpoints(catalog_of(svc), collection, &points, &count);

	if (r == 0)
		r = api_json_rows(svc, points, count, sizeof(*points), tree_refpoint, ret);
	free(points);
	return r;
}

static int tree_collection(struct vmimg_service *svc, const void *row, json_t **ret)
{
	const struct cat_collection *coll = row;
	json_t *members = NULL, *snapshots = NULL, *points = NULL;
	struct cat_snapshot *snaps = NULL;
	size_t count = 0;
	int r = eng_catalog_list_snapshots(catalog_of(svc), &coll->id, &snaps, &count);

	if (r == 0)
		r = api_json_members(svc, &coll->id, &members);
	if (r == 0)
		r = api_json_rows(svc, snaps, count, sizeof(*snaps), tree_snapshot, &snapshots);
	if (r == 0)
		r = tree_refpoints(svc, &coll->id, &points);
	free(snaps);
	if (r < 0) {
		json_decref(members);
		json_decref(snapshots);
		return r;
	}
	*ret = json_pack("{s:s, s:o, s:o, s:o}", "collection", coll->name, "members", members,
			 "snapshots", snapshots, "refpoints", points);
	return 0;
}

/* Whose it is: of a clone's chain the lower ones are another disk's. */
static json_t *layer_disk(struct vmimg_service *svc, const struct cat_layer *layer)
{
	struct cat_disk disk;

	if (eng_catalog_get_disk_id(catalog_of(svc), &layer->disk, &disk) < 0)
		return json_null();
	return api_json_name(disk.vm_name, '/', disk.name);
}

static int tree_layer(struct vmimg_service *svc, const void *row, json_t **ret)
{
	static const char *const states[] = {"", "pending", "active", "hardened", "sealed"};
	const struct cat_layer *layer = row;
	json_t *name = json_null();
	struct cat_snapshot snap;

	if (!fmt_uuid_is_none(&layer->snapshot) &&
	    eng_catalog_get_snapshot_id(catalog_of(svc), &layer->snapshot, &snap) == 0 &&
	    snap.state == CAT_SNAPSHOT_COMPLETE)
		name = api_json_name(snap.collection_name, '@', snap.name);
	*ret = json_pack("{s:o, s:o, s:s, s:s, s:I, s:o, s:I, s:o, s:o}", "layer",
			 api_json_id(&layer->id), "parent",
			 fmt_uuid_is_none(&layer->parent) ? json_null()
							  : api_json_id(&layer->parent),
			 "kind", api_kind_name(layer->kind), "state",
			 states[layer->state <= 4 ? layer->state : 0], "allocated",
			 (json_int_t)eng_store_layer_bytes(svc->store, layer), "snapshot", name,
			 "generation", (json_int_t)layer->generation, "disk",
			 layer_disk(svc, layer), "clones",
			 api_json_clones_on(svc, &layer->id, &layer->disk));
	return 0;
}

/* The disk's layers that its head does not stand on: kept by snapshots of states it has left (US-7). */
static int tree_branches(struct vmimg_service *svc, const struct cat_disk *disk,
			 const struct cat_layer *chain, size_t count, json_t **ret)
{
	struct cat_layer *all = NULL;
	size_t n = 0, left = 0;
	int r = eng_catalog_list_layers(catalog_of(svc), &disk->id, &all, &n);

	for (size_t i = 0; r == 0 && i < n; i++) {
		bool beneath = all[i].state == CAT_LAYER_PENDING;

		for (size_t j = 0; j < count; j++)
			beneath = beneath || fmt_uuid_equal(&all[i].id, &chain[j].id);
		if (!beneath)
			all[left++] = all[i];
	}
	if (r == 0)
		r = api_json_rows(svc, all, left, sizeof(*all), tree_layer, ret);
	free(all);
	return r;
}

static int tree_disk(struct vmimg_service *svc, const void *row, json_t **ret)
{
	struct cat_disk now = *(const struct cat_disk *)row;
	const struct cat_disk *disk = &now;
	json_t *chain = NULL, *branches = NULL;
	struct cat_layer *layers = NULL;
	size_t count = 0;
	int r = api_disk_chain(svc, &now, &layers, &count);

	if (r == 0)
		r = api_json_rows(svc, layers, count, sizeof(*layers), tree_layer, &chain);
	if (r == 0)
		r = tree_branches(svc, disk, layers, count, &branches);
	free(layers);
	if (r < 0) {
		json_decref(chain);
		return r;
	}
	*ret = json_pack("{s:o, s:I, s:b, s:o, s:o}", "disk",
			 api_json_name(disk->vm_name, '/', disk->name), "size",
			 (json_int_t)disk->size, "independent", (int)disk->independent, "chain",
			 chain, "branches", branches);
	return 0;
}

static int tree_vm(struct vmimg_service *svc, const void *row, json_t **ret)
{
	const struct cat_vm *vm = row;
	struct cat_disk *rows = NULL;
	json_t *disks = NULL;
	size_t count = 0;
	int r = eng_catalog_list_disks(catalog_of(svc), &vm->id, &rows, &count);

	if (r == 0)
		r = api_json_rows(svc, rows, count, sizeof(*rows), tree_disk, &disks);
	free(rows);
	if (r == 0)
		*ret = json_pack("{s:s, s:o}", "vm", vm->name, "disks", disks);
	return r;
}

int api_tree_document(struct vmimg_service *svc, json_t **ret)
{
	struct cat_collection *collections = NULL;
	json_t *first = NULL, *second = NULL;
	struct cat_vm *vms = NULL;
	size_t ncollections = 0, nvms = 0;
	int r = eng_catalog_list_collections(catalog_of(svc), &collections, &ncollections);

	if (r == 0)
		r = eng_catalog_list_vms(catalog_of(svc), &vms, &nvms);
	if (r == 0)
		r = api_json_rows(svc, collections, ncollections, sizeof(*collections),
				  tree_collection, &first);
	if (r == 0)
		r = api_json_rows(svc, vms, nvms, sizeof(*vms), tree_vm, &second);
	free(collections);
	free(vms);
	if (r < 0) {
		json_decref(first);
		return r;
	}
	*ret = json_pack("{s:o, s:o, s:o, s:o}", "store", api_json_path(svc->store->dir),
			 "store_id", api_json_id(&svc->store->id), "collections", first, "vms",
			 second);
	return 0;
}
