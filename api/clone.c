/* SPDX-License-Identifier: MIT */
/*
 * clone.c - a collection made from a snapshot (CSN-17), by the caller's thread as ApplySnapshot is; and
 * who stands on whose layers, for documents (CL-5). Any thread.
 */
#include "engine/snapshot/clone.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/describe.h"
#include "api/event.h"
#include "api/job.h"

struct request {
	char collection[CAT_NAME_MAX], name[CAT_NAME_MAX];
	struct eng_clone how;
};

static uint32_t read_request(struct vmimg_service *svc, const char *snapshot, const char *to,
			     struct request *req, struct vmimg_error *err)
{
	uint32_t code;

	memset(req, 0, sizeof(*req));
	code = api_read_name(svc, "clone", snapshot, '@', err, req->collection, req->name);
	if (code == VMIMG_OK && !api_name_is_valid(to))
		code = api_answer(err, VMIMG_INVALID_PARAMETER,
				  "collection: '%.80s' is no name, expected COLLECTION",
				  to ? to : "");
	if (code == VMIMG_OK)
		code = api_check_writable(svc, snapshot, err);
	if (code)
		return code;
	req->how.collection = req->collection;
	req->how.name = req->name;
	req->how.to = to;
	api_job_row(svc, VMIMG_JOB_TYPE_CLONE, snapshot, "cloning", &req->how.job);
	return VMIMG_OK;
}

static uint32_t answer_of(int r)
{
	switch (r) {
	case -ENOENT:
	case -EEXIST:
	case -EINVAL: return VMIMG_INVALID_PARAMETER;
	case -EBUSY:
	case -ETIMEDOUT:
	case -ENOTRECOVERABLE: return VMIMG_INVALID_STATE;
	default: return VMIMG_FAILED;
	}
}

static json_t *result_document(const char *snapshot, const char *to,
			       const struct eng_clone_result *res)
{
	json_t *skipped = json_array();

	for (size_t i = 0; i < res->skipped_count; i++)
		json_array_append_new(skipped, json_string(res->skipped[i]));
	return json_pack("{s:s, s:s, s:o, s:i, s:i, s:o, s:I, s:I, s:I}", "snapshot", snapshot,
			 "collection", to, "collection_id", api_json_id(&res->collection), "vms",
			 (int)res->vms, "disks", (int)res->disks, "skipped", skipped, "prepare_ns",
			 (json_int_t)res->prepare_ns, "commit_ns", (json_int_t)res->commit_ns,
			 "total_ns", (json_int_t)res->total_ns);
}

/* As if each had been made by itself. */
static void tell(struct vmimg_service *svc, const struct eng_clone_result *res, const char *to)
{
	struct cat_disk *disks = NULL;
	struct cat_vm *vms = NULL;
	size_t n = 0, nvms = 0;
	char name[CAT_NS_MAX];

	if (!api_events_wanted(svc->events))
		return;
	api_event_change(svc, "collection", "created", to);
	eng_catalog_list_members(svc->store->catalog, &res->collection, &vms, &nvms);
	for (size_t i = 0; i < nvms; i++)
		api_event_change(svc, "vm", "created", vms[i].name);
	eng_catalog_list_collection_disks(svc->store->catalog, &res->collection, &disks, &n);
	for (size_t i = 0; i < n; i++) {
		api_name_join(name, disks[i].vm_name, '/', disks[i].name);
		api_event_change(svc, "disk", "created", name);
	}
	free(vms);
	free(disks);
}

uint32_t vmimg_clone_snapshot(struct vmimg_service *svc, const char *snapshot, const char *to,
			      struct vmimg_ref *result, char **json, struct vmimg_job **job,
			      struct vmimg_error *err)
{
	struct eng_clone_result res;
	struct fmt_error why = {""};
	struct request req;
	json_t *document;
	uint32_t code;
	int r;

	if (job)
		*job = NULL;
	code = read_request(svc, snapshot, to, &req, err);
	if (code)
		return code;
	r = eng_store_clone(svc->store, &req.how, &why, &res);
	if (r < 0)
		return api_answer_why(err, answer_of(r), r, &why, snapshot);
	document = result_document(snapshot, to, &res);
	free(res.skipped);
	tell(svc, &res, to);
	if (result) {
		fmt_uuid_format(&res.collection, result->id);
		snprintf(result->name, sizeof(result->name), "%s", to);
	}
	if (json)
		*json = json_dumps(document, JSON_COMPACT);
	json_decref(document);
	api_job_hand_out(svc, &req.how.job, job);
	return VMIMG_OK;
}

/* --- documents --- */

json_t *api_json_clones_on(struct vmimg_service *svc, const struct fmt_uuid *layer,
			   const struct fmt_uuid *disk)
{
	struct cat_layer *children = NULL;
	json_t *names = json_array();
	struct cat_disk clone;
	size_t n = 0;

	eng_catalog_list_children(svc->store->catalog, layer, &children, &n);
	for (size_t i = 0; i < n; i++)
		if (!fmt_uuid_equal(&children[i].disk, disk) &&
		    eng_catalog_get_disk_id(svc->store->catalog, &children[i].disk, &clone) == 0)
			json_array_append_new(names, api_json_name(clone.vm_name, '/', clone.name));
	free(children);
	return names;
}

json_t *api_json_clones_of(struct vmimg_service *svc, const struct fmt_uuid *disk)
{
	json_t *names = json_array();
	struct cat_disk *rows = NULL;
	size_t n = 0;

	eng_catalog_list_clones(svc->store->catalog, disk, &rows, &n);
	for (size_t i = 0; i < n; i++)
		json_array_append_new(names, api_json_name(rows[i].vm_name, '/', rows[i].name));
	free(rows);
	return names;
}

json_t *api_json_shared(struct vmimg_service *svc, const struct fmt_uuid *disk,
			const struct cat_layer *chain, size_t count)
{
	struct cat_disk origin;
	uint64_t allocated = 0;
	size_t n = 0;

	while (n < count && !fmt_uuid_equal(&chain[n].disk, disk))
		allocated += eng_store_layer_bytes(svc->store, &chain[n++]);
	if (!n || eng_catalog_get_disk_id(svc->store->catalog, &chain[n - 1].disk, &origin) < 0)
		return json_null();
	return json_pack("{s:o, s:I, s:I}", "disk", api_json_name(origin.vm_name, '/', origin.name),
			 "layers", (json_int_t)n, "allocated", (json_int_t)allocated);
}

/* What stays of a snapshot that is about to go, and for whom. */
json_t *api_json_kept(struct vmimg_service *svc, const char *snapshot)
{
	char collection[CAT_NAME_MAX], name[CAT_NAME_MAX];
	struct cat_snapshot_disk *rows = NULL;
	json_t *kept = json_array();
	struct cat_snapshot snap;
	size_t n = 0;

	if (api_name_split(snapshot, '@', collection, name) < 0 ||
	    eng_catalog_get_snapshot(svc->store->catalog, collection, name, &snap) < 0)
		return kept;
	eng_catalog_list_snapshot_disks(svc->store->catalog, &snap.id, &rows, &n);
	for (size_t i = 0; i < n; i++) {
		json_t *clones;

		if (rows[i].skipped)
			continue;
		clones = api_json_clones_on(svc, &rows[i].layer, &rows[i].disk);
		if (json_array_size(clones))
			json_array_append_new(kept, json_pack("{s:o, s:o, s:O}", "disk",
							      api_json_name(rows[i].vm_name, '/',
									    rows[i].disk_name),
							      "layer", api_json_id(&rows[i].layer),
							      "clones", clones));
		json_decref(clones);
	}
	free(rows);
	return kept;
}
