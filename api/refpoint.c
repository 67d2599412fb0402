/* SPDX-License-Identifier: MIT */
/*
 * refpoint.c - ConvertToReferencePoint, DestroyReferencePoint, RemoveAssociatedData, and what a
 * reference point says of itself (RP-20..RP-26). Short enough to be done by the caller's thread, with a
 * job all the same. CreateReferencePoint is a cut: snapshot.c. Any thread.
 */
#include "api/refpoint.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/describe.h"
#include "api/event.h"
#include "api/job.h"
#include "engine/snapshot/refpoint.h"

#define TRIES 8u /* of a name that we make */

static struct eng_catalog *catalog_of(const struct vmimg_service *svc)
{
	return svc->store->catalog;
}

/* RP-21: the one place where the two numberings of ConsistencyLevel meet. */
static enum vmimg_refpoint_consistency collection_consistency(enum vmimg_consistency level)
{
	switch (level) {
	case VMIMG_CONSISTENCY_APPLICATION: return VMIMG_REFPOINT_CONSISTENCY_APPLICATION;
	case VMIMG_CONSISTENCY_CRASH: return VMIMG_REFPOINT_CONSISTENCY_CRASH;
	default: return VMIMG_REFPOINT_CONSISTENCY_UNKNOWN;
	}
}

static void fill_ref(const struct cat_refpoint *point, struct vmimg_ref *ret)
{
	api_name_join(ret->name, point->collection_name, '#', point->name);
	fmt_uuid_format(&point->id, ret->id);
}

/* What every call of a named point begins with; 0 or the answer. */
static uint32_t check_point_name(struct vmimg_service *svc, const char *refpoint,
				 struct vmimg_error *err, char collection[CAT_NAME_MAX],
				 char name[CAT_NAME_MAX])
{
	uint32_t code = api_read_name(svc, "reference point", refpoint, '#', err, collection, name);

	return code ? code : api_check_writable(svc, refpoint, err);
}

/* --- ConvertToReferencePoint --- */

/* As the snapshot, where that is free, or the next number. */
static void default_name(struct vmimg_service *svc, const char *collection, const char *snapshot,
			 char ret[CAT_NAME_MAX])
{
	snprintf(ret, CAT_NAME_MAX, "%s", snapshot);
	for (unsigned n = 2; eng_catalog_get_refpoint(catalog_of(svc), collection, ret,
						      &(struct cat_refpoint){0}) == 0;
	     n++)
		snprintf(ret, CAT_NAME_MAX, "%.52s-%u", snapshot, n);
}

static uint32_t check_conversion(struct vmimg_service *svc, const char *snapshot,
				 const char *wanted, struct vmimg_error *err,
				 char collection[CAT_NAME_MAX], char name[CAT_NAME_MAX],
				 char point[CAT_NAME_MAX])
{
	uint32_t code = api_read_name(svc, "convert", snapshot, '@', err, collection, name);

	if (code == VMIMG_OK)
		code = api_wanted_name(wanted, '#', collection, err, point);
	if (code == VMIMG_OK)
		code = api_check_writable(svc, snapshot, err);
	if (code)
		return code;
	if (!point[0])
		default_name(svc, collection, name, point);
	return 0;
}

static uint32_t answer_conversion(struct vmimg_error *err, int r, bool marked,
				  const struct fmt_error *why, const char *snapshot)
{
	uint32_t code;
	size_t len;

	if (!marked && (r == -ENOENT || r == -EEXIST))
		return api_answer_why(err, VMIMG_INVALID_PARAMETER, r, why, snapshot);
	if (!marked && r == -EMEDIUMTYPE)
		return api_answer_why(err, VMIMG_INVALID_TYPE, r, why, snapshot);
	if (!marked && r == -EBUSY)
		return api_answer_why(err, VMIMG_INVALID_STATE, r, why, snapshot);
	code = api_answer_why(err, VMIMG_FAILED, r, why, snapshot);
	len = err && marked ? strlen(err->message) : 0;
	if (len)
		snprintf(err->message + len, sizeof(err->message) - len,
			 "; the reference point is made, and the snapshot goes when the store is "
			 "opened anew");
	return code;
}

static void tell_converted(struct vmimg_service *svc, const struct cat_refpoint *point,
			   const char *snapshot)
{
	char name[CAT_NS_MAX];

	if (!api_events_wanted(svc->events))
		return;
	api_name_join(name, point->collection_name, '#', point->name);
	api_event_change(svc, "refpoint", "created", name);
	api_event_post(svc->events, "snapshot",
		       json_pack("{s:s, s:s}", "change", "deleted", "snapshot", snapshot));
}

uint32_t vmimg_convert_to_reference_point(struct vmimg_service *svc, const char *snapshot,
					  struct vmimg_ref *result, struct vmimg_job **job,
					  struct vmimg_error *err)
{
	char collection[CAT_NAME_MAX], name[CAT_NAME_MAX], made[CAT_NS_MAX];
	bool marked = false, given = result && result->name[0];
	struct cat_refpoint point = {0};
	struct fmt_error why = {""};
	struct cat_job row;
	uint32_t code;
	int r;

	if (job)
		*job = NULL;
	code = check_conversion(svc, snapshot, result ? result->name : NULL, err, collection, name,
				point.name);
	if (code)
		return code;
	eng_store_new_id(svc->store, &point.id);
	point.created_ns = eng_io_wall_ns(svc->io);
	snprintf(point.element_name, sizeof(point.element_name), "%s", point.name);
	api_name_join(made, collection, '#', point.name);
	api_job_row(svc, VMIMG_JOB_TYPE_CONVERT_TO_REFPOINT, made, "converting", &row);
	row.affected = point.id;
	r = eng_refpoint_convert(svc->store, collection, name, &point, &row, &marked, &why);
	/* Two at once make the same name: it was free for both. */
	for (unsigned i = 0; r == -EEXIST && !marked && !given && i < TRIES; i++) {
		why.text[0] = 0;
		default_name(svc, collection, name, point.name);
		snprintf(point.element_name, sizeof(point.element_name), "%s", point.name);
		api_name_join(row.name, collection, '#', point.name);
		r = eng_refpoint_convert(svc->store, collection, name, &point, &row, &marked, &why);
	}
	if (r < 0)
		return answer_conversion(err, r, marked, &why, snapshot);
	tell_converted(svc, &point, snapshot);
	if (result)
		fill_ref(&point, result);
	api_job_hand_out(svc, &row, job);
	return VMIMG_OK;
}

/* --- DestroyReferencePoint, RemoveAssociatedData --- */

uint32_t vmimg_destroy_reference_point(struct vmimg_service *svc, const char *refpoint,
				       struct vmimg_job **job, struct vmimg_error *err)
{
	char collection[CAT_NAME_MAX], name[CAT_NAME_MAX];
	struct fmt_error why = {""};
	struct cat_job row;
	uint32_t code;
	int r;

	if (job)
		*job = NULL;
	code = check_point_name(svc, refpoint, err, collection, name);
	if (code)
		return code;
	api_job_row(svc, VMIMG_JOB_TYPE_DELETE_REFPOINT_COLLECTION, refpoint, "completed", &row);
	row.state = VMIMG_JOB_COMPLETED;
	row.percent = 100;
	row.ended_ns = row.started_ns;
	r = eng_refpoint_destroy(svc->store, collection, name, &row, &why);
	if (r < 0)
		return api_answer_why(err, r == -ENOENT ? VMIMG_INVALID_PARAMETER : VMIMG_FAILED, r,
				      &why, refpoint);
	api_event_change(svc, "refpoint", "deleted", refpoint);
	api_job_hand_out(svc, &row, job);
	return VMIMG_OK;
}

static uint32_t find_point(struct vmimg_service *svc, const char *refpoint, struct vmimg_error *err,
			   struct cat_refpoint *ret)
{
	char collection[CAT_NAME_MAX], name[CAT_NAME_MAX];
	uint32_t code = check_point_name(svc, refpoint, err, collection, name);
	int r;

	if (code)
		return code;
	r = eng_catalog_get_refpoint(catalog_of(svc), collection, name, ret);
	if (r == -ENOENT)
		return api_answer(err, VMIMG_INVALID_PARAMETER, "%s: no such reference point",
				  refpoint);
	return r < 0 ? api_answer_why(err, VMIMG_FAILED, r, &(struct fmt_error){""}, refpoint) : 0;
}

/* RP-24: only a point of a log has data, and there are none. */
uint32_t vmimg_remove_associated_data(struct vmimg_service *svc, const char *refpoint,
				      struct vmimg_job **job, struct vmimg_error *err)
{
	struct cat_refpoint point;
	uint32_t code;

	if (job)
		*job = NULL;
	code = find_point(svc, refpoint, err, &point);
	if (code)
		return code;
	return api_answer(err, VMIMG_INVALID_TYPE,
			  "%s: its ReferencePointType is %u (RCT), only one based on a log (1) has "
			  "associated data",
			  refpoint, point.type);
}

/* --- what it says --- */

static void fill_info(const struct cat_refpoint *point, struct vmimg_refpoint_info *ret)
{
	memset(ret, 0, sizeof(*ret));
	fill_ref(point, &ret->ref);
	snprintf(ret->element_name, sizeof(ret->element_name), "%s", point->element_name);
	ret->reference_point_type = (enum vmimg_refpoint_type)point->type;
	ret->consistency_level = collection_consistency((enum vmimg_consistency)point->consistency);
	fmt_uuid_format(&point->collection, ret->virtual_system_collection_id);
	ret->disks = point->disks;
	ret->created_ns = point->created_ns;
}

int vmimg_refpoint_info(struct vmimg_service *svc, const char *refpoint, struct vmimg_error *err,
			struct vmimg_refpoint_info *ret)
{
	char collection[CAT_NAME_MAX], name[CAT_NAME_MAX];
	struct cat_refpoint point;
	int r;

	if (!svc || !ret || api_name_split(refpoint, '#', collection, name) < 0)
		return api_fail(err, -EINVAL,
				"reference point: '%.140s' is no name, expected COLLECTION#NAME",
				refpoint ? refpoint : "");
	r = eng_catalog_get_refpoint(catalog_of(svc), collection, name, &point);
	if (r < 0)
		return api_fail(err, r, "%s: %s", refpoint,
				r == -ENOENT ? "no such reference point" : strerror(-r));
	fill_info(&point, ret);
	return 0;
}

/* Its disks of one VM, from @rows[*i] on: ids that belong together stand at the same place (RP-5). */
static json_t *member_document(const struct cat_refpoint *point,
			       const struct cat_refpoint_disk *rows, size_t n, size_t *i)
{
	const struct cat_refpoint_disk *first = &rows[*i];
	json_t *disks = json_array(), *ids = json_array();
	char text[2 * FMT_UUID_TEXT];

	for (; *i < n && fmt_uuid_equal(&rows[*i].vm, &first->vm); ++*i) {
		json_array_append_new(disks, api_json_id(&rows[*i].disk));
		json_array_append_new(ids, api_json_id(&rows[*i].rct));
	}
	fmt_uuid_format(&point->id, text);
	text[FMT_UUID_TEXT - 1] = '/';
	fmt_uuid_format(&first->vm, text + FMT_UUID_TEXT);
	return json_pack("{s:s, s:s, s:o, s:i, s:i, s:b, s:o, s:o}", "instance_id", text, "vm",
			 first->vm_name, "virtual_system_identifier", api_json_id(&first->vm),
			 "reference_point_type", point->type, "consistency_level",
			 point->consistency, "has_associated_data", 0, "virtual_disk_identifiers",
			 disks, "resilient_change_tracking_identifiers", ids);
}

static json_t *disk_document(const struct cat_refpoint_disk *row)
{
	return json_pack("{s:o, s:o, s:o, s:I, s:o, s:b, s:I}", "disk",
			 api_json_name(row->vm_name, '/', row->disk_name), "disk_id",
			 api_json_id(&row->disk), "rct_id", api_json_id(&row->rct), "size",
			 (json_int_t)row->size, "layer", api_json_id(&row->layer), "tracked",
			 !fmt_uuid_is_none(&row->layer), "saved", (json_int_t)row->saved_bytes);
}

static json_t *facts(const struct cat_refpoint *point)
{
	bool application = point->consistency == VMIMG_CONSISTENCY_APPLICATION;
	struct vmimg_refpoint_info info;

	fill_info(point, &info);
	return json_pack("{s:s, s:s, s:s, s:s, s:s, s:i, s:s, s:i, s:s, s:b, s:I, s:o, s:o, s:o, "
			 "s:o}",
			 "refpoint", info.ref.name, "refpoint_id", info.ref.id, "collection",
			 point->collection_name, "virtual_system_collection_id",
			 info.virtual_system_collection_id, "element_name", info.element_name,
			 "type", info.reference_point_type, "type_name", "rct", "consistency_level",
			 info.consistency_level, "consistency",
			 application ? "application" : "crash", "has_associated_log", 0, "disks",
			 (json_int_t)point->disks, "created", api_json_time(point->created_ns),
			 "cut_time", api_json_time(point->cut_wall_ns), "snapshot",
			 point->snapshot_name[0]
				 ? api_json_name(point->collection_name, '@', point->snapshot_name)
				 : json_null(),
			 "snapshot_id", api_json_id(&point->snapshot));
}

int api_refpoint_document(struct vmimg_service *svc, const void *row, json_t **ret)
{
	const struct cat_refpoint *point = row;
	struct cat_refpoint_disk *rows = NULL;
	json_t *doc, *members, *disks;
	bool tracked = true;
	size_t n = 0, i = 0;
	int r = eng_catalog_list_refpoint_disks(catalog_of(svc), &point->id, &rows, &n);

	if (r < 0)
		return r;
	doc = facts(point);
	members = json_array();
	disks = json_array();
	for (size_t j = 0; j < n; j++) {
		json_array_append_new(disks, disk_document(&rows[j]));
		tracked = tracked && !fmt_uuid_is_none(&rows[j].layer);
	}
	while (i < n)
		json_array_append_new(members, member_document(point, rows, n, &i));
	free(rows);
	json_object_set_new(doc, "tracked", json_boolean(tracked));
	json_object_set_new(doc, "virtual_systems", members);
	json_object_set_new(doc, "members", disks);
	*ret = doc;
	return doc ? 0 : -ENOMEM;
}

int api_refpoint_find(struct vmimg_service *svc, const char *name, json_t **ret)
{
	char coll[CAT_NAME_MAX], point[CAT_NAME_MAX];
	struct cat_refpoint row;
	int r = api_name_split(name, '#', coll, point);

	if (r == 0)
		r = eng_catalog_get_refpoint(catalog_of(svc), coll, point, &row);
	return r < 0 ? r : api_refpoint_document(svc, &row, ret);
}

int api_refpoint_list(struct vmimg_service *svc, const char *filter, json_t **ret)
{
	struct cat_refpoint *rows = NULL;
	struct cat_collection coll;
	size_t count = 0;
	int r = filter ? eng_catalog_get_collection(catalog_of(svc), filter, &coll) : 0;

	if (r == 0)
		r = eng_catalog_list_refpoints(catalog_of(svc), filter ? &coll.id : NULL, &rows,
					       &count);
	if (r == 0)
		r = api_json_rows(svc, rows, count, sizeof(*rows), api_refpoint_document, ret);
	free(rows);
	return r;
}
