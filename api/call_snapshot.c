/* SPDX-License-Identifier: MIT */
/*
 * call_snapshot.c - the methods of snapshots and their jobs (CP-*, section 2 of spec/control.md). Any
 * thread; WaitJob and synchronous creates block.
 */
#include "api/call.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/describe.h"

#define WAIT_MAX_MS 60000u
#define NS_PER_MS   UINT64_C(1000000)

/* --- snapshots --- */

enum { COLLECTION, SETTINGS, TYPE, RESULT };

static const struct api_blame about_request[] = {
	{"collection", COLLECTION},
	{"settings:", SETTINGS},
	{"ConsistencyLevel", SETTINGS},
	{"SnapshotType", TYPE},
	{"new ", RESULT},
	{"snapshot ", RESULT},
	{NULL, 0},
};

static int64_t create_snapshot(struct api_call *call)
{
	char *settings = api_call_settings(call, SETTINGS);
	struct vmimg_job *job = NULL;
	struct vmimg_ref made;
	uint32_t code;

	if (!settings)
		return -ENOMEM;
	api_call_wanted(call, RESULT, &made);
	code = vmimg_create_snapshot(call->svc, api_call_text(call, COLLECTION), settings,
				     (uint16_t)api_call_number(call, TYPE), &made, &job,
				     &call->error);
	free(settings);
	return api_call_answer_job(call, code, job, about_request, "ResultingSnapshotCollection",
				   &made);
}

static int64_t destroy_snapshot(struct api_call *call)
{
	struct vmimg_job_info info = {0};
	json_t *kept = api_json_kept(call->svc, api_call_text(call, 0));
	struct vmimg_job *job = NULL;
	uint32_t code = vmimg_destroy_snapshot(call->svc, api_call_text(call, 0), &job,
					       &call->error);

	if (code)
		json_decref(kept);
	if (code == VMIMG_INVALID_PARAMETER)
		return api_call_blame(call, 0, code);
	if (code)
		return code;
	api_call_take_job(job, &info);
	call->result = json_pack("{s:i, s:s, s:o}", "ReturnValue", 0, "Job", info.instance_id,
				 "Kept", kept);
	return 0;
}

static int64_t check_snapshot(struct api_call *call)
{
	char *settings = api_call_settings(call, SETTINGS);
	struct vmimg_ref wanted;
	uint32_t code;

	if (!settings)
		return -ENOMEM;
	api_call_wanted(call, RESULT, &wanted);
	code = vmimg_check_snapshot(call->svc, api_call_text(call, COLLECTION), settings,
				    (uint16_t)api_call_number(call, TYPE), wanted.name,
				    &call->error);
	free(settings);
	if (code)
		return api_call_blame_words(call, code, about_request);
	call->result = json_pack("{s:i}", "ReturnValue", 0);
	return 0;
}

/* --- jobs --- */

/* Released by the caller. */
static int64_t get_job(struct api_call *call, struct vmimg_job **ret)
{
	int r = vmimg_job_get(call->svc, api_call_text(call, 0), &call->error, ret);

	return r == -EINVAL || r == -ENOENT ? api_call_blame(call, 0, r) : r;
}

static int64_t request_state_change(struct api_call *call)
{
	struct vmimg_job *job = NULL;
	int64_t code = get_job(call, &job);

	if (code)
		return code;
	code = vmimg_job_request_state_change(job, (uint16_t)api_call_number(call, 1),
					      api_call_number(call, 2) * NS_PER_MS, &call->error);
	vmimg_job_put(job);
	if (code != VMIMG_REQUEST_OK && code != VMIMG_REQUEST_TRANSITION_STARTED)
		return code;
	call->result = json_pack("{s:I}", "ReturnValue", (json_int_t)code);
	return 0;
}

/* The array of errors, or null. */
static int64_t get_errors(struct api_call *call, json_t **ret)
{
	struct vmimg_job *job = NULL;
	char *text = NULL;
	int64_t code = get_job(call, &job);

	if (code)
		return code;
	code = vmimg_job_get_error(job, &text);
	vmimg_job_put(job);
	if (code == 0) {
		*ret = json_loads(text, JSON_DECODE_ANY, NULL);
		code = *ret ? 0 : -ENOMEM;
	}
	vmimg_free(text);
	return code;
}

static int64_t get_error(struct api_call *call)
{
	json_t *errors = NULL;
	int64_t code = get_errors(call, &errors);

	if (code == 0)
		call->result = json_pack("{s:i, s:O}", "ReturnValue", 0, "Error",
					 json_is_array(errors) ? json_array_get(errors, 0)
							       : errors);
	json_decref(errors);
	return code;
}

static int64_t get_error_ex(struct api_call *call)
{
	json_t *errors = NULL;
	int64_t code = get_errors(call, &errors);

	if (code == 0)
		call->result = json_pack("{s:i, s:o}", "ReturnValue", 0, "Errors", errors);
	return code;
}

static int64_t set_job_rate(struct api_call *call)
{
	struct vmimg_job *job = NULL;
	int64_t code = get_job(call, &job);

	if (code)
		return code;
	code = vmimg_job_set_rate(job, api_call_number(call, 1), &call->error);
	vmimg_job_put(job);
	if (code)
		return api_call_blame(call, 0, code);
	return api_call_describe(call, VMIMG_KIND_JOB, api_call_text(call, 0));
}

/* --- folds --- */

static int64_t set_fold_rate(struct api_call *call)
{
	int r = vmimg_set_fold_rate(call->svc, api_call_number(call, 0), &call->error);

	if (r == 0)
		call->result = json_object();
	return r;
}

static int64_t settle(struct api_call *call)
{
	struct vmimg_job_info info = {0};
	struct vmimg_job *job = NULL;
	uint32_t code;

	code = vmimg_settle(call->svc, api_call_text(call, 0),
			    api_call_bool(call, 1) ? VMIMG_SETTLE_WHOLE : 0,
			    call->values[2] ? api_call_number(call, 2) * NS_PER_MS : UINT64_MAX,
			    &job, &call->error);
	if (code != VMIMG_JOB_STARTED)
		return code == VMIMG_INVALID_PARAMETER ? api_call_blame(call, 0, code) : code;
	vmimg_job_info(job, &info);
	vmimg_job_put(job);
	call->result = json_pack("{s:I, s:s}", "ReturnValue", (json_int_t)code, "Job",
				 info.instance_id);
	return 0;
}

static int64_t wait_job(struct api_call *call)
{
	struct vmimg_job *job = NULL;
	int64_t code = get_job(call, &job);

	if (code)
		return code;
	vmimg_job_wait(job, api_call_number(call, 1) * NS_PER_MS);
	vmimg_job_put(job);
	return api_call_describe(call, VMIMG_KIND_JOB, api_call_text(call, 0));
}

#define CREATE_PARAMS                                                                              \
	{                                                                                          \
		TEXT("Collection", true), SETTINGS_OF("SnapshotSettings"),                         \
			NUMBER("SnapshotType", true, UINT16_MAX),                                  \
			WANTED("ResultingSnapshotCollection"),                                     \
	}

const struct api_method api_snapshot_methods[] = {
	{"CreateSnapshot", create_snapshot, CREATE_PARAMS},
	{"CheckSnapshot", check_snapshot, CREATE_PARAMS},
	{"DestroySnapshot", destroy_snapshot, {TEXT("AffectedSnapshotCollection", true)}},
	{"RequestStateChange",
	 request_state_change,
	 {TEXT("Job", true), NUMBER("RequestedState", true, UINT16_MAX),
	  NUMBER("TimeoutPeriod", false, UINT32_MAX)}},
	{"GetError", get_error, {TEXT("Job", true)}},
	{"GetErrorEx", get_error_ex, {TEXT("Job", true)}},
	{"WaitJob", wait_job, {TEXT("Job", true), NUMBER("Timeout", false, WAIT_MAX_MS)}},
	{"SetJobRate", set_job_rate, {TEXT("Job", true), NUMBER("BytesPerSecond", true, INT64_MAX)}},
	{"SetFoldRate", set_fold_rate, {NUMBER("BytesPerSecond", true, INT64_MAX)}},
	{"Settle",
	 settle,
	 {TEXT("Name", false), BOOL("Whole"), NUMBER("Timeout", false, UINT32_MAX)}},
	{0},
};
