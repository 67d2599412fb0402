/* SPDX-License-Identifier: MIT */
/*
 * describe.c - what is there, as JSON documents (DS-*). Read from the catalog in several steps
 * without a transaction, so that a long listing holds up nobody's commit: what goes meanwhile is
 * left out. Any thread.
 */
#include "api/describe.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "api/job.h"
#include "api/refpoint.h"

/* --- values --- */

json_t *api_json_id(const struct fmt_uuid *id)
{
	char text[FMT_UUID_TEXT];

	if (fmt_uuid_is_none(id))
		return json_null();
	fmt_uuid_format(id, text);
	return json_string(text);
}

/* ISO 8601, UTC, microseconds; null for never. */
json_t *api_json_time(int64_t ns)
{
	time_t s = (time_t)(ns / 1000000000);
	char date[32], text[48];
	struct tm tm;

	if (ns <= 0 || !gmtime_r(&s, &tm))
		return json_null();
	strftime(date, sizeof(date), "%Y-%m-%dT%H:%M:%S", &tm);
	snprintf(text, sizeof(text), "%s.%06dZ", date, (int)(ns % 1000000000 / 1000));
	return json_string(text);
}

json_t *api_json_path(const char *path)
{
	json_t *text = json_string(path);
	char *ascii;

	if (text || !(ascii = strdup(path)))
		return text;
	for (char *c = ascii; *c; c++)
		if (*c & 0x80)
			*c = '?';
	text = json_string(ascii);
	free(ascii);
	return text;
}

json_t *api_json_name(const char *left, char sep, const char *right)
{
	char text[CAT_NS_MAX];

	api_name_join(text, left, sep, right);
	return json_string(text);
}

const char *api_kind_name(uint32_t kind)
{
	return kind == FMT_KIND_OVERLAY ? "overlay" : kind == FMT_KIND_RAW ? "raw" : "qcow2";
}

/* --- VM --- */

static int vm_document(struct vmimg_service *svc, const void *row, json_t **ret)
{
	const struct cat_vm *vm = row;
	struct cat_disk *disks = NULL;
	struct cat_freeze *freezes = NULL;
	json_t *names;
	size_t count = 0, frozen = 0;
	int r = eng_catalog_list_freezes(svc->store->catalog, &vm->id, &freezes, &frozen);

	free(freezes);
	if (r == 0)
		r = eng_catalog_list_disks(svc->store->catalog, &vm->id, &disks, &count);
	if (r < 0)
		return r;
	names = json_array();
	for (size_t i = 0; i < count; i++)
		json_array_append_new(names, json_string(disks[i].name));
	free(disks);
	*ret = json_pack("{s:s, s:o, s:o, s:o, s:o, s:b}", "name", vm->name, "id",
			 api_json_id(&vm->id), "created", api_json_time(vm->created_ns), "disks",
			 names, "guest_agent",
			 vm->guest_agent[0] ? api_json_path(vm->guest_agent) : json_null(),
			 "thaw_pending", frozen > 0);
	return 0;
}

/* --- DISK --- */

static bool is_attached(struct eng_store *store, const struct fmt_uuid *disk)
{
	bool attached = false;

	pthread_mutex_lock(&store->lock);
	for (const struct eng_entry *e = store->entries; e; e = e->next)
		if (fmt_uuid_equal(&e->id, disk))
			attached = e->disk != NULL;
	pthread_mutex_unlock(&store->lock);
	return attached;
}

#define LOOKS 20u /* at a head that changes */

int api_disk_chain(struct vmimg_service *svc, struct cat_disk *disk, struct cat_layer **ret,
		   size_t *count)
{
	struct eng_catalog *cat = svc->store->catalog;
	int r = eng_catalog_chain(cat, &disk->head, ret, count);

	for (unsigned i = 0; r == -ENOENT && i < LOOKS; i++) {
		r = eng_catalog_get_disk_id(cat, &disk->id, disk);
		if (r == -ENOENT)
			break;
		if (r == 0)
			r = eng_catalog_chain(cat, &disk->head, ret, count);
	}
	return r;
}

static int disk_document(struct vmimg_service *svc, const void *row, json_t **ret)
{
	struct cat_disk now = *(const struct cat_disk *)row;
	const struct cat_disk *disk = &now;
	struct cat_layer *chain = NULL;
	uint64_t allocated = 0;
	size_t count = 0;
	json_t *head, *shared;
	int r = api_disk_chain(svc, &now, &chain, &count);

	if (r < 0)
		return r;
	for (size_t i = 0; i < count; i++)
		allocated += eng_store_layer_bytes(svc->store, &chain[i]);
	head = json_pack("{s:o, s:s}", "id", api_json_id(&disk->head), "kind",
			 api_kind_name(chain[count - 1].kind));
	shared = api_json_shared(svc, &disk->id, chain, count);
	free(chain);
	*ret = json_pack("{s:o, s:s, s:s, s:o, s:I, s:I, s:b, s:b, s:I, s:o, s:I, s:o, s:o, s:o}",
			 "disk", api_json_name(disk->vm_name, '/', disk->name), "vm", disk->vm_name,
			 "name", disk->name, "id", api_json_id(&disk->id), "size",
			 (json_int_t)disk->size, "block_size", (json_int_t)1 << disk->block_bits,
			 "independent", (int)disk->independent, "attached",
			 (int)is_attached(svc->store, &disk->id), "layers", (json_int_t)count,
			 "head", head, "allocated", (json_int_t)allocated, "created",
			 api_json_time(disk->created_ns), "origin", shared, "clones",
			 api_json_clones_of(svc, &disk->id));
	return 0;
}

/* --- COLLECTION --- */

int api_json_members(struct vmimg_service *svc, const struct fmt_uuid *collection, json_t **ret)
{
	struct cat_vm *vms = NULL;
	json_t *names;
	size_t count = 0;
	int r = eng_catalog_list_members(svc->store->catalog, collection, &vms, &count);

	if (r < 0)
		return r;
	names = json_array();
	for (size_t i = 0; i < count; i++)
		json_array_append_new(names, json_string(vms[i].name));
	free(vms);
	*ret = names;
	return 0;
}

static int collection_document(struct vmimg_service *svc, const void *row, json_t **ret)
{
	const struct cat_collection *coll = row;
	struct cat_snapshot *snaps = NULL;
	struct cat_disk *disks = NULL;
	size_t ndisks = 0, nsnaps = 0, complete = 0;
	json_t *members = NULL;
	int r;

	r = eng_catalog_list_collection_disks(svc->store->catalog, &coll->id, &disks, &ndisks);
	if (r == 0)
		r = eng_catalog_list_snapshots(svc->store->catalog, &coll->id, &snaps, &nsnaps);
	if (r == 0)
		r = api_json_members(svc, &coll->id, &members);
	for (size_t i = 0; i < nsnaps; i++)
		complete += snaps[i].state == CAT_SNAPSHOT_COMPLETE;
	free(disks);
	free(snaps);
	if (r < 0)
		return r;
	*ret = json_pack("{s:s, s:o, s:o, s:o, s:I, s:I}", "collection", coll->name, "id",
			 api_json_id(&coll->id), "created", api_json_time(coll->created_ns),
			 "members", members, "disks", (json_int_t)ndisks, "snapshots",
			 (json_int_t)complete);
	return 0;
}

/* --- SNAPSHOT --- */

static json_t *snapshot_member(struct vmimg_service *svc, const struct cat_snapshot_disk *row)
{
	struct cat_layer layer;
	uint64_t allocated = 0;
	bool sealed = false;

	if (!row->skipped && eng_catalog_get_layer(svc->store->catalog, &row->layer, &layer) == 0) {
		allocated = eng_store_layer_bytes(svc->store, &layer);
		sealed = layer.state == CAT_LAYER_SEALED;
	}
	return json_pack("{s:o, s:o, s:o, s:I, s:I, s:b, s:b}", "disk",
			 api_json_name(row->vm_name, '/', row->disk_name), "clones",
			 row->skipped ? json_array()
				      : api_json_clones_on(svc, &row->layer, &row->disk),
			 "layer", row->skipped ? json_null() : api_json_id(&row->layer), "size",
			 (json_int_t)row->size, "allocated", (json_int_t)allocated, "sealed",
			 (int)sealed, "skipped", (int)row->skipped);
}

static json_t *snapshot_facts(const struct cat_snapshot *snap)
{
	json_t *doc = json_pack("{s:o, s:o, s:s, s:s, s:i, s:s, s:i, s:i, s:o, s:s, s:I, s:I}",
				"snapshot", api_json_name(snap->collection_name, '@', snap->name),
				"snapshot_id", api_json_id(&snap->id), "collection",
				snap->collection_name, "element_name", snap->element_name, "type",
				snap->type, "type_name",
				snap->type == VMIMG_SNAPSHOT_RECOVERY ? "recovery" : "standard",
				"consistency", snap->consistency, "guest_backup_type",
				snap->guest_backup_type, "created", api_json_time(snap->created_ns),
				"state", "complete", "disks", (json_int_t)snap->disks, "skipped",
				(json_int_t)snap->skipped);
	json_t *times = json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "cut_ns",
				  (json_int_t)snap->cut_ns, "prepare_ns",
				  (json_int_t)snap->prepare_ns, "drain_ns",
				  (json_int_t)snap->drain_ns, "harden_ns",
				  (json_int_t)snap->harden_ns, "total_ns",
				  (json_int_t)snap->total_ns, "max_write_latency_ns",
				  (json_int_t)snap->max_write_latency_ns, "freeze_ns",
				  (json_int_t)snap->freeze_ns);

	json_object_set_new(doc, "automatic", json_boolean(snap->automatic));
	json_object_set_new(doc, "cut_time", api_json_time(snap->cut_wall_ns));
	json_object_update(doc, times);
	json_decref(times);
	return doc;
}

/* QU-3 */
static json_t *snapshot_guest(const struct cat_snapshot_guest *row)
{
	return json_pack("{s:s, s:b, s:I, s:I, s:o}", "vm", row->vm_name, "frozen",
			 (int)row->frozen, "frozen_ns", (json_int_t)row->frozen_ns, "filesystems",
			 (json_int_t)row->filesystems, "error",
			 row->error[0] ? api_json_path(row->error) : json_null());
}

static int snapshot_document(struct vmimg_service *svc, const void *row, json_t **ret)
{
	const struct cat_snapshot *snap = row;
	struct cat_snapshot_disk *disks = NULL;
	struct cat_snapshot_guest *guests = NULL;
	json_t *doc, *members, *frozen, *holds = NULL;
	size_t count = 0, nguests = 0;
	int r;

	if (snap->state != CAT_SNAPSHOT_COMPLETE)
		return -ENOENT;
	r = eng_catalog_list_snapshot_guests(svc->store->catalog, &snap->id, &guests, &nguests);
	if (r < 0)
		return r;
	frozen = json_array();
	for (size_t i = 0; i < nguests; i++)
		json_array_append_new(frozen, snapshot_guest(&guests[i]));
	free(guests);
	r = eng_catalog_list_snapshot_disks(svc->store->catalog, &snap->id, &disks, &count);
	if (r == 0)
		r = api_json_holds(svc, &snap->id, &holds);
	if (r < 0) {
		json_decref(frozen);
		free(disks);
		return r;
	}
	members = json_array();
	for (size_t i = 0; i < count; i++)
		json_array_append_new(members, snapshot_member(svc, &disks[i]));
	free(disks);
	doc = snapshot_facts(snap);
	json_object_set_new(doc, "guests", frozen);
	json_object_set_new(doc, "members", members);
	json_object_set_new(doc, "holds", holds);
	*ret = doc;
	return 0;
}

/* --- JOB --- */

json_t *api_job_json(const struct vmimg_job_info *i)
{
	json_t *affected = json_null(), *effects = json_array(), *remaining;

	if (i->element_effect) {
		affected = json_pack("{s:s, s:s}", "name", i->affected.name, "id", i->affected.id);
		json_array_append_new(effects, json_integer(i->element_effect));
	}
	remaining = i->remaining_ns == UINT64_MAX ? json_null()
						  : json_integer((json_int_t)i->remaining_ns);
	return json_pack(
		"{s:s, s:s, s:i, s:i, s:i, s:i, s:s, s:s, s:b, s:o, s:o, s:o, s:I, s:I, s:o, s:o, "
		"s:I, s:I, s:I, s:o, s:I}",
		"instance_id", i->instance_id, "name", i->name, "job_state", i->job_state,
		"job_type", i->job_type, "percent_complete", i->percent_complete, "error_code",
		i->error_code, "error_description", i->error_description, "job_status",
		i->job_status, "cancellable", (int)i->cancellable, "time_submitted",
		api_json_time(i->time_submitted_ns), "start_time", api_json_time(i->start_time_ns),
		"time_of_last_state_change", api_json_time(i->time_of_last_state_change_ns),
		"elapsed_time", (json_int_t)i->elapsed_ns, "time_before_removal",
		(json_int_t)i->time_before_removal_ns, "affected_element", affected,
		"element_effects", effects, "bytes_done", (json_int_t)i->bytes_done, "bytes_total",
		(json_int_t)i->bytes_total, "bytes_per_second", (json_int_t)i->bytes_per_second,
		"remaining_time", remaining, "rate_limit", (json_int_t)i->rate_limit);
}

static int job_document(struct vmimg_service *svc, const void *row, json_t **ret)
{
	struct vmimg_job_info info;

	api_job_row_info(svc, row, &info);
	*ret = api_job_json(&info);
	return 0;
}

/* --- lists: rows of one size, a document each --- */

typedef int (*document_fn)(struct vmimg_service *svc, const void *row, json_t **ret);

int api_json_rows(struct vmimg_service *svc, const void *rows, size_t count, size_t size,
		  document_fn fn, json_t **ret)
{
	json_t *array = json_array(), *doc;

	for (size_t i = 0; i < count; i++) {
		int r = fn(svc, (const char *)rows + i * size, &doc);

		if (r == -ENOENT) /* gone meanwhile, or not to be shown */
			continue;
		if (r == 0 && json_array_append_new(array, doc) < 0)
			r = -ENOMEM;
		if (r < 0) {
			json_decref(array);
			return r;
		}
	}
	*ret = array;
	return array ? 0 : -ENOMEM;
}

static int list_vms(struct vmimg_service *svc, const char *filter, json_t **ret)
{
	struct cat_vm *rows = NULL;
	size_t count = 0;
	int r = filter ? -EINVAL : eng_catalog_list_vms(svc->store->catalog, &rows, &count);

	if (r == 0)
		r = api_json_rows(svc, rows, count, sizeof(*rows), vm_document, ret);
	free(rows);
	return r;
}

static int list_disks(struct vmimg_service *svc, const char *filter, json_t **ret)
{
	struct cat_disk *rows = NULL;
	struct cat_vm vm;
	size_t count = 0;
	int r = filter ? eng_catalog_get_vm(svc->store->catalog, filter, &vm) : 0;

	if (r == 0)
		r = eng_catalog_list_disks(svc->store->catalog, filter ? &vm.id : NULL, &rows,
					   &count);
	if (r == 0)
		r = api_json_rows(svc, rows, count, sizeof(*rows), disk_document, ret);
	free(rows);
	return r;
}

static int list_collections(struct vmimg_service *svc, const char *filter, json_t **ret)
{
	struct cat_collection *rows = NULL;
	size_t count = 0;
	int r = filter ? -EINVAL : eng_catalog_list_collections(svc->store->catalog, &rows, &count);

	if (r == 0)
		r = api_json_rows(svc, rows, count, sizeof(*rows), collection_document, ret);
	free(rows);
	return r;
}

static int list_snapshots(struct vmimg_service *svc, const char *filter, json_t **ret)
{
	struct cat_snapshot *rows = NULL;
	struct cat_collection coll;
	size_t count = 0;
	int r = filter ? eng_catalog_get_collection(svc->store->catalog, filter, &coll) : 0;

	if (r == 0)
		r = eng_catalog_list_snapshots(svc->store->catalog, filter ? &coll.id : NULL, &rows,
					       &count);
	if (r == 0)
		r = api_json_rows(svc, rows, count, sizeof(*rows), snapshot_document, ret);
	free(rows);
	return r;
}

static int list_jobs(struct vmimg_service *svc, const char *filter, json_t **ret)
{
	struct cat_job *rows = NULL;
	size_t count = 0;
	int r = filter ? -EINVAL : eng_catalog_list_jobs(svc->store->catalog, &rows, &count);

	if (r == 0)
		r = api_json_rows(svc, rows, count, sizeof(*rows), job_document, ret);
	free(rows);
	return r;
}

/* --- one element --- */

static int find_vm(struct vmimg_service *svc, const char *name, json_t **ret)
{
	struct cat_vm row;
	int r = api_name_is_valid(name) ? eng_catalog_get_vm(svc->store->catalog, name, &row)
					: -EINVAL;

	return r < 0 ? r : vm_document(svc, &row, ret);
}

static int find_disk(struct vmimg_service *svc, const char *name, json_t **ret)
{
	char vm[CAT_NAME_MAX], disk[CAT_NAME_MAX];
	struct cat_disk row;
	int r = api_name_split(name, '/', vm, disk);

	if (r == 0)
		r = eng_catalog_get_disk(svc->store->catalog, vm, disk, &row);
	return r < 0 ? r : disk_document(svc, &row, ret);
}

static int find_collection(struct vmimg_service *svc, const char *name, json_t **ret)
{
	struct cat_collection row;
	int r = api_name_is_valid(name)
			? eng_catalog_get_collection(svc->store->catalog, name, &row)
			: -EINVAL;

	return r < 0 ? r : collection_document(svc, &row, ret);
}

static int find_snapshot(struct vmimg_service *svc, const char *name, json_t **ret)
{
	char coll[CAT_NAME_MAX], snap[CAT_NAME_MAX];
	struct cat_snapshot row;
	int r = api_name_split(name, '@', coll, snap);

	if (r == 0)
		r = eng_catalog_get_snapshot(svc->store->catalog, coll, snap, &row);
	return r < 0 ? r : snapshot_document(svc, &row, ret);
}

static int find_job(struct vmimg_service *svc, const char *name, json_t **ret)
{
	struct fmt_uuid id;
	struct cat_job row;
	int r = name ? fmt_uuid_parse(name, &id) : -EINVAL;

	if (r == 0)
		r = eng_catalog_get_job(svc->store->catalog, &id, &row);
	return r < 0 ? r : job_document(svc, &row, ret);
}

static int find_store(struct vmimg_service *svc, const char *name, json_t **ret)
{
	return name ? -EINVAL : api_store_document(svc, ret);
}

static int find_tree(struct vmimg_service *svc, const char *name, json_t **ret)
{
	return name ? -EINVAL : api_tree_document(svc, ret);
}

/* --- the calls --- */

static const struct kind {
	const char *name, *form;
	const char *within; /* what a list of them is limited to */
	int (*find)(struct vmimg_service *svc, const char *name, json_t **ret);
	int (*list)(struct vmimg_service *svc, const char *filter, json_t **ret);
	bool counted; /* has counts of space */
} kinds[] = {
	[VMIMG_KIND_STORE] = {"store", "none", NULL, find_store, NULL, true},
	[VMIMG_KIND_VM] = {"vm", "VM", NULL, find_vm, list_vms, false},
	[VMIMG_KIND_DISK] = {"disk", "VM/DISK", "vm", find_disk, list_disks, true},
	[VMIMG_KIND_COLLECTION] = {"collection", "COLLECTION", NULL, find_collection,
				   list_collections, false},
	[VMIMG_KIND_SNAPSHOT] = {"snapshot", "COLLECTION@NAME", "collection", find_snapshot,
				 list_snapshots, true},
	[VMIMG_KIND_JOB] = {"job", "an id", NULL, find_job, list_jobs, false},
	[VMIMG_KIND_TREE] = {"tree", "none", NULL, find_tree, NULL, true},
	[VMIMG_KIND_REFPOINT] = {"reference point", "COLLECTION#NAME", "collection",
				 api_refpoint_find, api_refpoint_list, false},
};

static int check_arguments(const struct vmimg_service *svc, enum vmimg_kind kind,
			   struct vmimg_error *err, char *const *json)
{
	if (!svc || !json)
		return api_fail(err, -EINVAL, "describe: no %s given", svc ? "result" : "service");
	if ((unsigned)kind >= sizeof(kinds) / sizeof(kinds[0]))
		return api_fail(err, -EINVAL, "describe: kind is %u, expected 0..%zu",
				(unsigned)kind, sizeof(kinds) / sizeof(kinds[0]) - 1);
	return 0;
}

#define TRIES_NS 250000000u /* in all: a large store counts once */

/* The one of that name, or with @list all of them, as an array. */
static int find(struct vmimg_service *svc, enum vmimg_kind kind, bool list, const char *name,
		json_t **ret)
{
	json_t *one = NULL;
	int r;

	if (list && kinds[kind].list)
		return kinds[kind].list(svc, name, ret);
	r = kinds[kind].find(svc, name, &one);
	if (r == 0)
		*ret = list ? json_pack("[o]", one) : one;
	return r;
}

/*
 * The same with the counts of space (US-9). A fold that commits in between takes away layers that are in the
 * document, or were to be counted: then both are done anew (US-8).
 */
static int find_counted(struct vmimg_service *svc, enum vmimg_kind kind, bool list,
			const char *name, json_t **ret)
{
	uint64_t end = eng_io_now_ns(svc->io) + TRIES_NS, before;
	json_t *doc = NULL;
	int r;

	do {
		json_decref(doc);
		doc = NULL;
		before = eng_catalog_changes(svc->store->catalog);
		r = find(svc, kind, list, name, &doc);
		if (r == 0)
			r = api_fill_usage(svc, kind, doc);
	} while (r == 0 && eng_catalog_changes(svc->store->catalog) != before &&
		 eng_io_now_ns(svc->io) < end);
	if (r < 0)
		json_decref(doc);
	else
		*ret = doc;
	return r;
}

static int give(struct vmimg_service *svc, enum vmimg_kind kind, bool list, bool brief,
		const char *name, struct vmimg_error *err, char **json)
{
	const char *what = kinds[kind].name;
	static const struct fmt_error none;
	json_t *doc = NULL;
	char *text = NULL;
	int r = brief || !kinds[kind].counted ? find(svc, kind, list, name, &doc)
					      : find_counted(svc, kind, list, name, &doc);

	if (!name)
		name = "";
	if (r == 0) {
		text = json_dumps(doc, JSON_COMPACT);
		r = text ? 0 : -ENOMEM;
	}
	json_decref(doc);
	if (r == -ENOENT)
		return api_fail(err, r, "%s %.140s: there is none of this name",
				list && kinds[kind].within ? kinds[kind].within : what, name);
	if (r == -EINVAL)
		return api_fail(err, r, "%s: '%.140s' is no name, expected %s", what, name,
				kinds[kind].form);
	if (r < 0)
		return api_fail_why(err, r, &none, what);
	*json = text;
	return 0;
}

int vmimg_describe(struct vmimg_service *svc, enum vmimg_kind kind, const char *name,
		   struct vmimg_error *err, char **json)
{
	bool brief = (unsigned)kind & VMIMG_KIND_BRIEF;
	int r;

	kind = (enum vmimg_kind)((unsigned)kind & ~(unsigned)VMIMG_KIND_BRIEF);
	r = check_arguments(svc, kind, err, json);
	return r < 0 ? r : give(svc, kind, false, brief, name, err, json);
}

int vmimg_list(struct vmimg_service *svc, enum vmimg_kind kind, const char *filter,
	       struct vmimg_error *err, char **json)
{
	bool brief = (unsigned)kind & VMIMG_KIND_BRIEF;
	int r;

	kind = (enum vmimg_kind)((unsigned)kind & ~(unsigned)VMIMG_KIND_BRIEF);
	r = check_arguments(svc, kind, err, json);
	if (r < 0)
		return r;
	if (filter && !*filter)
		filter = NULL;
	return give(svc, kind, true, brief, filter, err, json);
}
