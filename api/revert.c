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
#include "api/settings.h"

#define TRIES 8u /* of a name that we make */

struct request {
	char collection[CAT_NAME_MAX], name[CAT_NAME_MAX];
	struct eng_revert how;
	bool named; /* the kept state, by the caller */
};

static int read_setting(void *arg, const char *name, const json_t *value, struct fmt_error *err)
{
	struct request *req = arg;

	if (!strcmp(name, "KeepState") && json_is_boolean(value)) {
		req->how.keep = json_is_true(value);
		return 0;
	}
	if (!strcmp(name, "KeptName") && json_is_string(value)) {
		const char *text = json_string_value(value);

		if (!*text)
			return 0;
		if (!api_name_is_valid(text))
			return fmt_fail(err, -EINVAL,
					"settings: KeptName '%.80s' is no name, expected NAME",
					text);
		strcpy(req->how.kept_name, text);
		return 0;
	}
	return fmt_fail(err, -EINVAL,
			"settings: '%.64s' is unknown or of another type; expected KeepState "
			"(true or false), KeptName (a string)",
			name);
}

static uint32_t read_request(struct vmimg_service *svc, const char *snapshot, const char *settings,
			     struct request *req, struct vmimg_error *err)
{
	struct fmt_error why = {""};
	struct cat_snapshot taken;
	uint32_t code;
	int r;

	memset(req, 0, sizeof(*req));
	code = api_read_name(svc, "revert", snapshot, '@', err, req->collection, req->name);
	if (code)
		return code;
	req->how.keep = true;
	r = api_settings_each(settings, read_setting, req, &why);
	if (r < 0)
		return api_answer_why(err, VMIMG_INVALID_PARAMETER, r, &why, "settings");
	code = api_check_writable(svc, snapshot, err);
	if (code)
		return code;
	req->how.collection = req->collection;
	req->how.name = req->name;
	if (req->how.kept_name[0] && eng_catalog_get_snapshot(svc->store->catalog, req->collection,
							      req->how.kept_name, &taken) == 0)
		return api_answer(err, VMIMG_INVALID_PARAMETER, "snapshot %s@%s: exists already",
				  req->collection, req->how.kept_name);
	eng_store_new_id(svc->store, &req->how.kept_id);
	req->named = req->how.kept_name[0];
	if (!req->named)
		api_name_by_time(svc, req->collection, "auto", req->how.kept_name);
	api_job_row(svc, VMIMG_JOB_TYPE_APPLY_SNAPSHOT, snapshot, "reverting", &req->how.job);
	return VMIMG_OK;
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
	/* Two at once make the same name: it was free for both. */
	for (unsigned i = 0; r == -EEXIST && !req.named && i < TRIES; i++) {
		why.text[0] = 0;
		api_name_by_time(svc, req.collection, "auto", req.how.kept_name);
		r = eng_store_revert(svc->store, &req.how, &why, &res);
	}
	if (r < 0)
		return api_answer_why(err, answer_of(r), r, &why, snapshot);
	document = result_document(snapshot, &req, &res);
	free(res.untouched);
	tell(svc, snapshot, &req);
	if (json)
		*json = json_dumps(document, JSON_COMPACT);
	json_decref(document);
	api_job_hand_out(svc, &req.how.job, job);
	return VMIMG_OK;
}
