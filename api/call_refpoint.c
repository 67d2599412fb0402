/* SPDX-License-Identifier: MIT */
/*
 * call_refpoint.c - the methods of Msvm_CollectionReferencePointService, and the conversion (CP-*, section
 * 2 of spec/control.md). Any thread; synchronous creates block.
 */
#include "api/call.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NAME_BYTES 1024u

static json_t *ref_document(const struct vmimg_ref *ref)
{
	return ref->id[0] ? json_pack("{s:s, s:s}", "Name", ref->name, "Id", ref->id) : json_null();
}

static void wanted_name(const struct api_call *call, unsigned index, struct vmimg_ref *ret)
{
	const char *name = api_call_text(call, index);

	memset(ret, 0, sizeof(*ret));
	if (name)
		snprintf(ret->name, sizeof(ret->name), "%s", name);
}

/* Takes @job. */
static void fill_info(struct vmimg_job *job, struct vmimg_job_info *ret)
{
	memset(ret, 0, sizeof(*ret));
	if (job)
		vmimg_job_info(job, ret);
	vmimg_job_put(job);
}

static int64_t convert(struct api_call *call)
{
	static const struct api_blame about[] = {{"result:", 1},
						 {": the name is taken", 1},
						 {"", 0},
						 {NULL, 0}};
	struct vmimg_job_info info;
	struct vmimg_job *job = NULL;
	struct vmimg_ref made;
	uint32_t code;

	wanted_name(call, 1, &made);
	code = vmimg_convert_to_reference_point(call->svc, api_call_text(call, 0), &made, &job,
						&call->error);
	if (code == VMIMG_INVALID_PARAMETER)
		return api_call_blame_words(call, code, about);
	if (code)
		return code;
	fill_info(job, &info);
	call->result = json_pack("{s:i, s:o, s:s}", "ReturnValue", 0,
				 "ResultingReferencePointCollection", ref_document(&made), "Job",
				 info.instance_id);
	return 0;
}

enum { COLLECTION, SETTINGS, TYPE, RESULT };

static int64_t create(struct api_call *call)
{
	static const struct api_blame about[] = {
		{"collection", COLLECTION},
		{"settings:", SETTINGS},
		{"ConsistencyLevel", SETTINGS},
		{"ReferencePointType", TYPE},
		{"result:", RESULT},
		{"reference point ", RESULT},
		{NULL, 0},
	};
	char *settings = api_call_settings(call, SETTINGS);
	struct vmimg_job_info info;
	struct vmimg_job *job = NULL;
	struct vmimg_ref made;
	uint32_t code;

	if (!settings)
		return -ENOMEM;
	wanted_name(call, RESULT, &made);
	code = vmimg_create_reference_point(call->svc, api_call_text(call, COLLECTION), settings,
					    (uint16_t)api_call_number(call, TYPE), &made, &job,
					    &call->error);
	free(settings);
	fill_info(job, &info);
	if (code != VMIMG_OK && code != VMIMG_JOB_STARTED) {
		snprintf(call->job, sizeof(call->job), "%s", info.instance_id);
		return api_call_blame_words(call, code, about);
	}
	call->result = json_pack("{s:I, s:o, s:s, s:i, s:i, s:i}", "ReturnValue", (json_int_t)code,
				 "ResultingReferencePointCollection", ref_document(&made), "Job",
				 info.instance_id, "JobState", info.job_state, "PercentComplete",
				 info.percent_complete, "ErrorCode", info.error_code);
	return 0;
}

static int64_t on_point(struct api_call *call,
			uint32_t (*run)(struct vmimg_service *svc, const char *refpoint,
					struct vmimg_job **job, struct vmimg_error *err))
{
	struct vmimg_job_info info;
	struct vmimg_job *job = NULL;
	uint32_t code = run(call->svc, api_call_text(call, 0), &job, &call->error);

	if (code == VMIMG_INVALID_PARAMETER)
		return api_call_blame(call, 0, code);
	if (code)
		return code;
	fill_info(job, &info);
	call->result = json_pack("{s:i, s:s}", "ReturnValue", 0, "Job", info.instance_id);
	return 0;
}

static int64_t destroy(struct api_call *call)
{
	return on_point(call, vmimg_destroy_reference_point);
}

static int64_t remove_data(struct api_call *call)
{
	return on_point(call, vmimg_remove_associated_data);
}

#define TEXT(param, is_required)                                                                   \
	{                                                                                          \
		.name = (param), .type = API_TEXT, .required = (is_required), .max = NAME_BYTES    \
	}
#define RESULT_PARAM                                                                               \
	{                                                                                          \
		.name = "ResultingReferencePointCollection", .type = API_TEXT,                     \
		.max = sizeof(((struct vmimg_ref *)NULL)->name) - 1                                \
	}

const struct api_method api_refpoint_methods[] = {
	{"ConvertToReferencePoint",
	 convert,
	 {TEXT("AffectedSnapshotCollection", true), RESULT_PARAM}},
	{"CreateReferencePoint",
	 create,
	 {TEXT("Collection", true),
	  {.name = "ReferencePointSettings", .type = API_SETTINGS},
	  {.name = "ReferencePointType", .type = API_NUMBER, .required = true, .max = UINT16_MAX},
	  RESULT_PARAM}},
	{"DestroyReferencePoint", destroy, {TEXT("AffectedReferencePointCollection", true)}},
	{"RemoveAssociatedData", remove_data, {TEXT("AffectedReferencePointCollection", true)}},
	{0},
};
