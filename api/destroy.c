/* SPDX-License-Identifier: MIT */
/*
 * destroy.c - DestroySnapshot (CSN-15): short enough to be done by the caller's thread, with a job all
 * the same, so that clients of the API family find what they look for. Any thread.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "api/event.h"
#include "api/job.h"

static void fill_job(struct vmimg_service *svc, const char *snapshot, struct cat_job *ret)
{
	memset(ret, 0, sizeof(*ret));
	eng_store_new_id(svc->store, &ret->id);
	ret->state = VMIMG_JOB_RUNNING;
	ret->type = VMIMG_JOB_TYPE_DELETE_SNAPSHOT;
	snprintf(ret->name, sizeof(ret->name), "%s", snapshot);
	snprintf(ret->status_text, sizeof(ret->status_text), "deleting");
	ret->submitted_ns = eng_io_wall_ns(svc->io);
	ret->started_ns = ret->submitted_ns;
	ret->changed_ns = ret->submitted_ns;
}

/* The mark is there and the rest is not: the next open goes on (DL-1), and ends the job (JB-9). */
static uint32_t fail_marked(struct vmimg_error *err, int r, const struct fmt_error *why,
			    const char *snapshot)
{
	uint32_t code = api_answer_why(err, VMIMG_FAILED, r, why, snapshot);
	size_t len = err ? strlen(err->message) : 0;

	if (err)
		snprintf(err->message + len, sizeof(err->message) - len,
			 "; the deletion goes on when the store is opened anew");
	return code;
}

uint32_t vmimg_destroy_snapshot(struct vmimg_service *svc, const char *snapshot,
				struct vmimg_job **job, struct vmimg_error *err)
{
	char collection[CAT_NAME_MAX], name[CAT_NAME_MAX], id[FMT_UUID_TEXT];
	struct fmt_error why = {""};
	struct cat_job row;
	bool marked = false;
	int r;

	if (job)
		*job = NULL;
	if (!svc)
		return api_answer(err, VMIMG_INVALID_PARAMETER, "delete: no service given");
	if (api_name_split(snapshot, '@', collection, name) < 0)
		return api_answer(err, VMIMG_INVALID_PARAMETER,
				  "snapshot: '%.140s' is no name, expected COLLECTION@NAME",
				  snapshot ? snapshot : "");
	if (eng_catalog_poisoned(svc->store->catalog))
		return api_answer(err, VMIMG_INVALID_STATE,
				  "%s: the catalog is poisoned by an I/O error; reopen the store",
				  snapshot);
	fill_job(svc, snapshot, &row);
	r = eng_store_delete_snapshot(svc->store, collection, name, &row, &marked, &why);
	if (r < 0 && marked)
		return fail_marked(err, r, &why, snapshot);
	if (r < 0)
		return api_answer_why(err,
				      r == -ENOENT  ? VMIMG_INVALID_PARAMETER
				      : r == -EBUSY ? VMIMG_INVALID_STATE
						    : VMIMG_FAILED,
				      r, &why, snapshot);
	if (api_events_wanted(svc->events))
		api_event_post(svc->events, "snapshot",
			       json_pack("{s:s, s:s}", "change", "deleted", "snapshot", snapshot));
	if (job) {
		fmt_uuid_format(&row.id, id);
		vmimg_job_get(svc, id, NULL, job);
	}
	return VMIMG_OK;
}
