/* SPDX-License-Identifier: MIT */
/*
 * destroy.c - DestroySnapshot (CSN-15): short enough to be done by the caller's thread, with a job all
 * the same, so that clients of the API family find what they look for. Any thread.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "api/destroy.h"
#include "api/event.h"

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

uint32_t api_destroy_snapshot(struct vmimg_service *svc, const char *snapshot,
			      const struct fmt_uuid *id, struct vmimg_job **job,
			      struct vmimg_error *err)
{
	char collection[CAT_NAME_MAX], name[CAT_NAME_MAX];
	struct fmt_error why = {""};
	struct cat_job row;
	bool marked = false;
	uint32_t code;
	int r;

	if (job)
		*job = NULL;
	code = api_read_name(svc, "delete", snapshot, '@', err, collection, name);
	if (code == VMIMG_OK)
		code = api_check_writable(svc, snapshot, err);
	if (code)
		return code;
	api_job_row(svc, VMIMG_JOB_TYPE_DELETE_SNAPSHOT, snapshot, "deleting", &row);
	r = id ? eng_store_delete_snapshot_id(svc->store, id, &row, &marked, &why)
	       : eng_store_delete_snapshot(svc->store, collection, name, &row, &marked, &why);
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
	api_job_hand_out(svc, &row, job);
	return VMIMG_OK;
}

uint32_t vmimg_destroy_snapshot(struct vmimg_service *svc, const char *snapshot,
				struct vmimg_job **job, struct vmimg_error *err)
{
	return api_destroy_snapshot(svc, snapshot, NULL, job, err);
}
