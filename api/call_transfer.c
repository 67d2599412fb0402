/* SPDX-License-Identifier: MIT */
/*
 * call_transfer.c - the methods of exports, imports and what they leave (CP-*, section 2 of
 * spec/control.md). Any thread; with Synchronous they block.
 */
#include "api/call.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define NAME_BYTES 1024u
#define PATH_BYTES 4095u

/* Malloced; "" when none are given, NULL when memory is short. */
static char *settings_text(const struct api_call *call, unsigned index)
{
	const json_t *settings = call->values[index];

	if (json_is_object(settings))
		return json_dumps(settings, JSON_COMPACT);
	return strdup(settings ? json_string_value(settings) : "");
}

/* A started job, or one that has ended; takes @job. */
static int64_t answer_job(struct api_call *call, uint32_t code, struct vmimg_job *job,
			  const struct api_blame *about)
{
	struct vmimg_job_info info = {0};

	if (job)
		vmimg_job_info(job, &info);
	vmimg_job_put(job);
	if (code != VMIMG_OK && code != VMIMG_JOB_STARTED) {
		strcpy(call->job, info.instance_id);
		return api_call_blame_words(call, code, about);
	}
	call->result = json_pack("{s:I, s:s, s:i, s:i, s:i}", "ReturnValue", (json_int_t)code,
				 "Job", info.instance_id, "JobState", info.job_state,
				 "PercentComplete", info.percent_complete, "ErrorCode",
				 info.error_code);
	return 0;
}

static int64_t export_snapshot(struct api_call *call)
{
	static const struct api_blame about[] = {{"snapshot", 0},
						 {"directory", 1},
						 {"settings", 2},
						 {NULL, 0}};
	char *settings = settings_text(call, 2);
	struct vmimg_job *job = NULL;
	uint32_t code;

	if (!settings)
		return -ENOMEM;
	code = vmimg_export_snapshot(call->svc, api_call_text(call, 0), api_call_text(call, 1),
				     settings, &job, &call->error);
	free(settings);
	return answer_job(call, code, job, about);
}

static int64_t export_reference_point(struct api_call *call)
{
	static const struct api_blame about[] = {{"refpoint", 0},
						 {"directory", 1},
						 {"settings", 2},
						 {NULL, 0}};
	char *settings = settings_text(call, 2);
	struct vmimg_job *job = NULL;
	uint32_t code;

	if (!settings)
		return -ENOMEM;
	code = vmimg_export_reference_point(call->svc, api_call_text(call, 0),
					    api_call_text(call, 1), settings, &job, &call->error);
	free(settings);
	return answer_job(call, code, job, about);
}

/* What takes a name, settings and a job. */
static int64_t start(struct api_call *call, const struct api_blame *about,
		     uint32_t (*what)(struct vmimg_service *, const char *, const char *,
				      struct vmimg_job **, struct vmimg_error *))
{
	char *settings = settings_text(call, 1);
	struct vmimg_job *job = NULL;
	uint32_t code;

	if (!settings)
		return -ENOMEM;
	code = what(call->svc, api_call_text(call, 0), settings, &job, &call->error);
	free(settings);
	return answer_job(call, code, job, about);
}

static int64_t import_snapshot(struct api_call *call)
{
	static const struct api_blame about[] = {{"source", 0}, {"settings", 1}, {NULL, 0}};

	return start(call, about, vmimg_import_snapshot);
}

static int64_t verify_snapshot(struct api_call *call)
{
	static const struct api_blame about[] = {{"snapshot", 0}, {"settings", 1}, {NULL, 0}};

	return start(call, about, vmimg_verify_snapshot);
}

static int64_t job_report(struct api_call *call)
{
	int r = vmimg_job_report(call->svc, api_call_text(call, 0), &call->error, &call->text);

	return r < 0 ? api_call_blame(call, 0, r) : 0;
}

#define TEXT(param, bytes)                                                                         \
	{                                                                                          \
		.name = (param), .type = API_TEXT, .required = true, .max = (bytes)                \
	}
#define SETTINGS(param)                                                                            \
	{                                                                                          \
		.name = (param), .type = API_SETTINGS                                              \
	}

const struct api_method api_transfer_methods[] = {
	{"ExportSnapshot",
	 export_snapshot,
	 {TEXT("SnapshotCollection", NAME_BYTES), TEXT("ExportDirectory", PATH_BYTES),
	  SETTINGS("ExportSettingData")}},
	{"ExportReferencePoint",
	 export_reference_point,
	 {TEXT("ReferencePointCollection", NAME_BYTES), TEXT("ExportDirectory", PATH_BYTES),
	  SETTINGS("ExportSettingData")}},
	{"ImportSnapshot",
	 import_snapshot,
	 {TEXT("ImportSource", PATH_BYTES), SETTINGS("ImportSettingData")}},
	{"VerifySnapshot",
	 verify_snapshot,
	 {TEXT("SnapshotCollection", NAME_BYTES), SETTINGS("VerifySettingData")}},
	{"JobReport", job_report, {TEXT("Job", NAME_BYTES)}},
	{0},
};
