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

static int64_t convert(struct api_call *call)
{
	static const struct api_blame about[] = {{"new ", 1},
						 {": the name is taken", 1},
						 {"", 0},
						 {NULL, 0}};
	struct vmimg_job_info info;
	struct vmimg_job *job = NULL;
	struct vmimg_ref made;
	uint32_t code;

	api_call_wanted(call, 1, &made);
	code = vmimg_convert_to_reference_point(call->svc, api_call_text(call, 0), &made, &job,
						&call->error);
	if (code == VMIMG_INVALID_PARAMETER)
		return api_call_blame_words(call, code, about);
	if (code)
		return code;
	api_call_take_job(job, &info);
	call->result = json_pack("{s:i, s:o, s:s}", "ReturnValue", 0,
				 "ResultingReferencePointCollection", api_call_ref(&made), "Job",
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
		{"new ", RESULT},
		{"reference point ", RESULT},
		{NULL, 0},
	};
	char *settings = api_call_settings(call, SETTINGS);
	struct vmimg_job *job = NULL;
	struct vmimg_ref made;
	uint32_t code;

	if (!settings)
		return -ENOMEM;
	api_call_wanted(call, RESULT, &made);
	code = vmimg_create_reference_point(call->svc, api_call_text(call, COLLECTION), settings,
					    (uint16_t)api_call_number(call, TYPE), &made, &job,
					    &call->error);
	free(settings);
	return api_call_answer_job(call, code, job, about, "ResultingReferencePointCollection",
				   &made);
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
	api_call_take_job(job, &info);
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

const struct api_method api_refpoint_methods[] = {
	{"ConvertToReferencePoint",
	 convert,
	 {TEXT("AffectedSnapshotCollection", true), WANTED("ResultingReferencePointCollection")}},
	{"CreateReferencePoint",
	 create,
	 {TEXT("Collection", true), SETTINGS_OF("ReferencePointSettings"),
	  NUMBER("ReferencePointType", true, UINT16_MAX),
	  WANTED("ResultingReferencePointCollection")}},
	{"DestroyReferencePoint", destroy, {TEXT("AffectedReferencePointCollection", true)}},
	{"RemoveAssociatedData", remove_data, {TEXT("AffectedReferencePointCollection", true)}},
	{0},
};
