/* SPDX-License-Identifier: MIT */
/*
 * revert.c - ApplySnapshot (CSN-16): short enough to be done by the caller's thread, with a job all the
 * same, so that clients of the API family find what they look for. Any thread.
 */
#include "engine/snapshot/revert.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/describe.h"
#include "api/event.h"
#include "api/job.h"

#define SETTINGS_MAX (64u << 10)

struct request {
	char collection[CAT_NAME_MAX], name[CAT_NAME_MAX];
	struct eng_revert how;
};

static uint32_t read_setting(const char *name, const json_t *value, struct request *req,
			     struct vmimg_error *err)
{
	if (!strcmp(name, "KeepState") && json_is_boolean(value)) {
		req->how.keep = json_is_true(value);
		return 0;
	}
	if (!strcmp(name, "KeptName") && json_is_string(value)) {
		const char *text = json_string_value(value);

		if (!*text)
			return 0;
		if (!api_name_is_valid(text))
			return api_answer(err, VMIMG_INVALID_PARAMETER,
					  "settings: KeptName '%.80s' is no name", text);
		strcpy(req->how.kept_name, text);
		return 0;
	}
	return api_answer(err, VMIMG_INVALID_PARAMETER,
			  "settings: '%.64s' is unknown or of another type; expected KeepState "
			  "(true or false), KeptName (a string)",
			  name);
}

static uint32_t read_settings(const char *text, struct request *req, struct vmimg_error *err)
{
	size_t len = text ? strnlen(text, SETTINGS_MAX + 1) : 0;
	json_t *object, *value;
	json_error_t why;
	const char *name;
	uint32_t code = 0;

	if (!len)
		return 0;
	if (len > SETTINGS_MAX)
		return api_answer(err, VMIMG_INVALID_PARAMETER, "settings: longer than %u bytes",
				  SETTINGS_MAX);
	object = json_loadb(text, len, JSON_REJECT_DUPLICATES, &why);
	if (!json_is_object(object))
		code = api_answer(err, VMIMG_INVALID_PARAMETER, "settings: no JSON object");
	json_object_foreach (object, name, value) {
		if (code == 0)
			code = read_setting(name, value, req, err);
	}
	json_decref(object);
	return code;
}

static uint32_t read_request(struct vmimg_service *svc, const char *snapshot, const char *settings,
			     struct request *req, struct vmimg_error *err)
{
	struct cat_job *job = &req->how.job;
	uint32_t code;

	memset(req, 0, sizeof(*req));
	if (!svc)
		return api_answer(err, VMIMG_INVALID_PARAMETER, "revert: no service given");
	if (api_name_split(snapshot, '@', req->collection, req->name) < 0)
		return api_answer(err, VMIMG_INVALID_PARAMETER,
				  "snapshot: '%.140s' is no name, expected COLLECTION@NAME",
				  snapshot ? snapshot : "");
	req->how.keep = true;
	code = read_settings(settings, req, err);
	if (code)
		return code;
	if (eng_catalog_poisoned(svc->store->catalog))
		return api_answer(err, VMIMG_INVALID_STATE,
				  "%s: the catalog is poisoned by an I/O error; reopen the store",
				  snapshot);
	req->how.collection = req->collection;
	req->how.name = req->name;
	eng_store_new_id(svc->store, &req->how.kept_id);
	if (!req->how.kept_name[0])
		api_name_by_time(svc, req->collection, "auto", req->how.kept_name);
	eng_store_new_id(svc->store, &job->id);
	job->type = VMIMG_JOB_TYPE_APPLY_SNAPSHOT;
	snprintf(job->name, sizeof(job->name), "%s", snapshot);
	job->submitted_ns = eng_io_wall_ns(svc->io);
	job->started_ns = job->submitted_ns;
	return 0;
}

static uint32_t answer_of(int r)
{
	switch (r) {
	case -ENOENT:
	case -EEXIST: return VMIMG_INVALID_PARAMETER;
	case -EBUSY:
	case -EXDEV:
	case -ETIMEDOUT:
	case -ENOTRECOVERABLE: return VMIMG_INVALID_STATE;
	default: return VMIMG_FAILED;
	}
}

static json_t *result_document(const char *snapshot, const struct request *req,
			       const struct eng_revert_result *res)
{
	const struct eng_revert *how = &req->how;
	json_t *untouched = json_array();

	for (size_t i = 0; i < res->untouched_count; i++)
		json_array_append_new(untouched, json_string(res->untouched[i]));
	return json_pack("{s:s, s:o, s:o, s:i, s:o, s:i, s:I, s:I, s:I}", "snapshot", snapshot,
			 "kept",
			 how->keep ? api_json_name(req->collection, '@', how->kept_name)
				   : json_null(),
			 "kept_id", how->keep ? api_json_id(&how->kept_id) : json_null(), "disks",
			 (int)res->disks, "untouched", untouched, "removed_layers",
			 (int)res->removed, "prepare_ns", (json_int_t)res->prepare_ns, "commit_ns",
			 (json_int_t)res->commit_ns, "total_ns", (json_int_t)res->total_ns);
}

static void tell(struct vmimg_service *svc, const char *snapshot, const struct request *req)
{
	if (!api_events_wanted(svc->events))
		return;
	if (req->how.keep)
		api_event_post(svc->events, "snapshot",
			       json_pack("{s:s, s:o, s:o}", "change", "created", "snapshot",
					 api_json_name(req->collection, '@', req->how.kept_name),
					 "snapshot_id", api_json_id(&req->how.kept_id)));
	api_event_post(svc->events, "snapshot",
		       json_pack("{s:s, s:s}", "change", "reverted", "snapshot", snapshot));
}

uint32_t vmimg_apply_snapshot(struct vmimg_service *svc, const char *snapshot, const char *settings,
			      char **json, struct vmimg_job **job, struct vmimg_error *err)
{
	struct eng_revert_result res;
	struct fmt_error why = {""};
	char id[FMT_UUID_TEXT];
	struct request req;
	json_t *document;
	uint32_t code;
	int r;

	if (job)
		*job = NULL;
	code = read_request(svc, snapshot, settings, &req, err);
	if (code)
		return code;
	r = eng_store_revert(svc->store, &req.how, &why, &res);
	if (r < 0)
		return api_answer_why(err, answer_of(r), r, &why, snapshot);
	document = result_document(snapshot, &req, &res);
	free(res.untouched);
	tell(svc, snapshot, &req);
	if (json)
		*json = json_dumps(document, JSON_COMPACT);
	json_decref(document);
	if (job) {
		fmt_uuid_format(&req.how.job.id, id);
		vmimg_job_get(svc, id, NULL, job);
	}
	return VMIMG_OK;
}
