/* SPDX-License-Identifier: MIT */
/*
 * usage.c - used, exclusive and shared bytes in documents (US-*). Counting reads indexes and logs,
 * so the counts are kept as long as no row of the catalog changes and no disk is attached or
 * detached, for a second and eight times what they took to make: heads in use grow without one. Any
 * thread.
 */
#include <errno.h>
#include <stdlib.h>

#include "api/describe.h"
#include "engine/space/usage.h"

#define KEEP_NS 1000000000u

/* The counts, with their lock taken; not taken on failure. */
static int usage_get(struct vmimg_service *svc, struct eng_usage **ret)
{
	/* Both only grow: together they do not come back to what they were. */
	uint64_t changes = eng_catalog_changes(svc->store->catalog) +
			   atomic_load(&svc->store->attachments);
	uint64_t now = eng_io_now_ns(svc->io);
	int r = 0;

	pthread_mutex_lock(&svc->usage_lock);
	if (svc->usage && (svc->usage_changes != changes ||
			   now - svc->usage_ns > KEEP_NS + 8 * svc->usage_spent_ns)) {
		eng_usage_destroy(svc->usage);
		svc->usage = NULL;
	}
	if (!svc->usage) {
		r = eng_usage_create(svc->store, &svc->usage);
		svc->usage_changes = changes;
		svc->usage_ns = now;
		svc->usage_spent_ns = 0;
	}
	svc->usage_taken_ns = now;
	if (r < 0)
		pthread_mutex_unlock(&svc->usage_lock);
	else
		*ret = svc->usage;
	return r;
}

static void usage_put(struct vmimg_service *svc)
{
	svc->usage_spent_ns += eng_io_now_ns(svc->io) - svc->usage_taken_ns;
	pthread_mutex_unlock(&svc->usage_lock);
}

void api_usage_forget(struct vmimg_service *svc)
{
	pthread_mutex_lock(&svc->usage_lock);
	eng_usage_destroy(svc->usage);
	svc->usage = NULL;
	pthread_mutex_unlock(&svc->usage_lock);
}

static void set_bytes(json_t *object, const char *key, uint64_t bytes)
{
	json_object_set_new(object, key, json_integer((json_int_t)bytes));
}

static int add_usage(struct vmimg_service *svc, const struct fmt_uuid *tops, size_t count,
		     json_t *object)
{
	struct eng_state_usage sum = {.exact = true}, one;
	struct eng_usage *usage = NULL;
	int r = usage_get(svc, &usage);

	if (r < 0)
		return r;
	for (size_t i = 0; r == 0 && i < count; i++) {
		r = eng_usage_state(usage, &tops[i], &one);
		if (r == -ENOENT) { /* it is going, or has just come */
			sum.exact = false;
			r = 0;
			continue;
		}
		sum.used += r == 0 ? one.used : 0;
		sum.exclusive += r == 0 ? one.exclusive : 0;
		sum.exact = sum.exact && r == 0 && one.exact;
	}
	usage_put(svc);
	if (r < 0)
		return r;
	set_bytes(object, "used", sum.used);
	set_bytes(object, "exclusive", sum.exclusive);
	set_bytes(object, "shared", sum.used - sum.exclusive);
	json_object_set_new(object, "exact", json_boolean(sum.exact));
	return 0;
}

static int add_snapshot_usage(struct vmimg_service *svc, const struct fmt_uuid *snapshot,
			      json_t *object)
{
	struct cat_snapshot_disk *rows = NULL;
	struct fmt_uuid *tops = NULL;
	size_t n = 0, count = 0;
	int r = eng_catalog_list_snapshot_disks(svc->store->catalog, snapshot, &rows, &n);

	if (r == 0)
		tops = calloc(n + 1, sizeof(*tops));
	if (r == 0 && !tops)
		r = -ENOMEM;
	for (size_t i = 0; r == 0 && i < n; i++)
		if (!rows[i].skipped)
			tops[count++] = rows[i].layer;
	if (r == 0)
		r = add_usage(svc, tops, count, object);
	free(tops);
	free(rows);
	return r;
}

static int add_layer_usage(struct vmimg_service *svc, const struct fmt_uuid *layer, json_t *object)
{
	struct eng_layer_usage one = {0};
	struct eng_usage *usage = NULL;
	int r = usage_get(svc, &usage);

	if (r < 0)
		return r;
	r = eng_usage_layer(usage, layer, &one);
	usage_put(svc);
	if (r < 0 && r != -ENOENT)
		return r;
	set_bytes(object, "data", one.data);
	set_bytes(object, "exclusive", one.exclusive);
	set_bytes(object, "shared", one.shared);
	set_bytes(object, "masked", one.masked);
	json_object_set_new(object, "exact", json_boolean(one.exact));
	return 0;
}

static int add_store_usage(struct vmimg_service *svc, json_t *object)
{
	struct eng_layer_usage sum = {.exact = true}, one;
	struct cat_layer *rows = NULL;
	struct eng_usage *usage = NULL;
	size_t n = 0;
	int r = eng_catalog_list_layers(svc->store->catalog, NULL, &rows, &n);

	if (r == 0)
		r = usage_get(svc, &usage);
	if (r < 0) {
		free(rows);
		return r;
	}
	for (size_t i = 0; i < n; i++) {
		if (eng_usage_layer(usage, &rows[i].id, &one) < 0) {
			sum.exact = false;
			continue;
		}
		sum.data += one.data;
		sum.exclusive += one.exclusive;
		sum.shared += one.shared;
		sum.masked += one.masked;
		sum.exact = sum.exact && one.exact;
	}
	usage_put(svc);
	free(rows);
	set_bytes(object, "data", sum.data);
	set_bytes(object, "exclusive", sum.exclusive);
	set_bytes(object, "shared", sum.shared);
	set_bytes(object, "masked", sum.masked);
	json_object_set_new(object, "exact", json_boolean(sum.exact));
	return 0;
}

/* --- into documents: DS-4, DS-6, DS-8, DS-10 --- */

/* The id at @key; false where there is none. */
static bool id_at(const json_t *object, const char *key, struct fmt_uuid *ret)
{
	const char *text = json_string_value(json_object_get(object, key));

	return text && fmt_uuid_parse(text, ret) == 0;
}

static int fill_disk(struct vmimg_service *svc, json_t *disk)
{
	struct fmt_uuid top;

	return add_usage(svc, &top, id_at(json_object_get(disk, "head"), "id", &top), disk);
}

static int fill_snapshot(struct vmimg_service *svc, json_t *snapshot)
{
	struct fmt_uuid id;
	json_t *member;
	size_t i;
	int r = 0;

	json_array_foreach (json_object_get(snapshot, "members"), i, member)
		if (r == 0)
			r = add_usage(svc, &id, id_at(member, "layer", &id), member);
	if (r == 0 && id_at(snapshot, "snapshot_id", &id))
		r = add_snapshot_usage(svc, &id, snapshot);
	return r;
}

static int fill_layers(struct vmimg_service *svc, json_t *layers)
{
	struct fmt_uuid id;
	json_t *layer;
	size_t i;
	int r = 0;

	json_array_foreach (layers, i, layer)
		if (r == 0 && id_at(layer, "layer", &id))
			r = add_layer_usage(svc, &id, layer);
	return r;
}

static int fill_tree(struct vmimg_service *svc, json_t *tree)
{
	json_t *outer, *inner, *chain;
	struct fmt_uuid top;
	size_t i, j;
	int r = 0;

	json_array_foreach (json_object_get(tree, "collections"), i, outer)
		json_array_foreach (json_object_get(outer, "snapshots"), j, inner)
			if (r == 0)
				r = fill_snapshot(svc, inner);
	json_array_foreach (json_object_get(tree, "vms"), i, outer) {
		json_array_foreach (json_object_get(outer, "disks"), j, inner) {
			chain = json_object_get(inner, "chain");
			if (r == 0)
				r = fill_layers(svc, chain);
			if (r == 0)
				r = fill_layers(svc, json_object_get(inner, "branches"));
			if (r == 0 &&
			    id_at(json_array_get(chain, json_array_size(chain) - 1), "layer", &top))
				r = add_usage(svc, &top, 1, inner);
		}
	}
	return r;
}

static int fill(struct vmimg_service *svc, enum vmimg_kind kind, json_t *doc)
{
	switch (kind) {
	case VMIMG_KIND_STORE: return add_store_usage(svc, doc);
	case VMIMG_KIND_DISK: return fill_disk(svc, doc);
	case VMIMG_KIND_SNAPSHOT: return fill_snapshot(svc, doc);
	case VMIMG_KIND_TREE: return fill_tree(svc, doc);
	default: return 0;
	}
}

int api_fill_usage(struct vmimg_service *svc, enum vmimg_kind kind, json_t *doc)
{
	json_t *one;
	size_t i;
	int r = 0;

	if (!json_is_array(doc))
		return fill(svc, kind, doc);
	json_array_foreach (doc, i, one)
		if (r == 0)
			r = fill(svc, kind, one);
	return r;
}
