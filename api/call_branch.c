/* SPDX-License-Identifier: MIT */
/*
 * call_branch.c - the methods that make branches: revert, clone, flatten (CP-*, section 2 of
 * spec/control.md). Any thread.
 */
#include "api/call.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What the library said, with the job's state beside it; takes @text. */
static int64_t give(struct api_call *call, char *text, struct vmimg_job *job)
{
	json_t *said = text ? json_loads(text, 0, NULL) : NULL;
	struct vmimg_job_info info;

	api_call_take_job(job, &info);
	vmimg_free(text);
	if (!said)
		return -ENOMEM;
	call->result = json_pack("{s:i, s:s, s:i, s:o}", "ReturnValue", 0, "Job", info.instance_id,
				 "JobState", info.job_state, "Result", said);
	return 0;
}

static const struct api_blame about_apply[] = {
	{"settings:", 1},
	{"snapshot:", 0},
	{NULL, 0},
};

static int64_t apply_snapshot(struct api_call *call)
{
	char *settings = api_call_settings(call, 1), *text = NULL;
	struct vmimg_job *job = NULL;
	uint32_t code;

	if (!settings)
		return -ENOMEM;
	code = vmimg_apply_snapshot(call->svc, api_call_text(call, 0), settings, &text, &job,
				    &call->error);
	free(settings);
	if (code == VMIMG_INVALID_PARAMETER)
		return api_call_blame_words(call, code, about_apply);
	return code ? code : give(call, text, job);
}

static const struct api_blame about_clone[] = {
	{"snapshot:", 0},
	{"collection", 1},
	{"vm ", 1},
	{NULL, 0},
};

static int64_t clone_snapshot(struct api_call *call)
{
	struct vmimg_job *job = NULL;
	char *text = NULL;
	uint32_t code = vmimg_clone_snapshot(call->svc, api_call_text(call, 0),
					     api_call_text(call, 1), NULL, &text, &job,
					     &call->error);

	if (code == VMIMG_INVALID_PARAMETER)
		return api_call_blame_words(call, code, about_clone);
	return code ? code : give(call, text, job);
}

static int64_t flatten(struct api_call *call)
{
	struct vmimg_job_info info;
	struct vmimg_job *job = NULL;
	uint32_t code = vmimg_flatten(call->svc, api_call_text(call, 0), api_call_number(call, 1),
				      api_call_bool(call, 2) ? VMIMG_FLATTEN_WAIT : 0, &job,
				      &call->error);

	api_call_take_job(job, &info);
	if (code == VMIMG_INVALID_PARAMETER)
		return api_call_blame(call, 0, code);
	if (code != VMIMG_OK && code != VMIMG_JOB_STARTED) {
		snprintf(call->job, sizeof(call->job), "%s", info.instance_id);
		return code;
	}
	call->result = json_pack("{s:I, s:s, s:i}", "ReturnValue", (json_int_t)code, "Job",
				 info.instance_id, "JobState", info.job_state);
	return 0;
}

const struct api_method api_branch_methods[] = {
	{"ApplySnapshot",
	 apply_snapshot,
	 {TEXT("SnapshotCollection", true), SETTINGS_OF("ApplySettings")}},
	{"CloneSnapshot",
	 clone_snapshot,
	 {TEXT("SnapshotCollection", true), TEXT("NewCollection", true)}},
	{"Flatten",
	 flatten,
	 {TEXT("Name", true),
	  {.name = "BytesPerSecond", .type = API_NUMBER, .max = INT64_MAX},
	  {.name = "Synchronous", .type = API_BOOL}}},
	{0},
};
