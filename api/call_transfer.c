/* SPDX-License-Identifier: MIT */
/*
 * call_transfer.c - the methods of exports, imports and what they leave (CP-*, section 2 of
 * spec/control.md). Any thread; with Synchronous they block.
 */
#include "api/call.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static int64_t export_snapshot(struct api_call *call)
{
	static const struct api_blame about[] = {{"snapshot", 0},
						 {"directory", 1},
						 {"settings", 2},
						 {NULL, 0}};
	char *settings = api_call_settings(call, 2);
	struct vmimg_job *job = NULL;
	uint32_t code;

	if (!settings)
		return -ENOMEM;
	code = vmimg_export_snapshot(call->svc, api_call_text(call, 0), api_call_text(call, 1),
				     settings, &job, &call->error);
	free(settings);
	return api_call_answer_job(call, code, job, about, NULL, NULL);
}

static int64_t export_reference_point(struct api_call *call)
{
	static const struct api_blame about[] = {{"refpoint", 0},
						 {"directory", 1},
						 {"settings", 2},
						 {NULL, 0}};
	char *settings = api_call_settings(call, 2);
	struct vmimg_job *job = NULL;
	uint32_t code;

	if (!settings)
		return -ENOMEM;
	code = vmimg_export_reference_point(call->svc, api_call_text(call, 0),
					    api_call_text(call, 1), settings, &job, &call->error);
	free(settings);
	return api_call_answer_job(call, code, job, about, NULL, NULL);
}

/* What takes a name, settings and a job. */
static int64_t start(struct api_call *call, const struct api_blame *about,
		     uint32_t (*what)(struct vmimg_service *, const char *, const char *,
				      struct vmimg_job **, struct vmimg_error *))
{
	char *settings = api_call_settings(call, 1);
	struct vmimg_job *job = NULL;
	uint32_t code;

	if (!settings)
		return -ENOMEM;
	code = what(call->svc, api_call_text(call, 0), settings, &job, &call->error);
	free(settings);
	return api_call_answer_job(call, code, job, about, NULL, NULL);
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

const struct api_method api_transfer_methods[] = {
	{"ExportSnapshot",
	 export_snapshot,
	 {TEXT("SnapshotCollection", true), PATH("ExportDirectory", true),
	  SETTINGS_OF("ExportSettingData")}},
	{"ExportReferencePoint",
	 export_reference_point,
	 {TEXT("ReferencePointCollection", true), PATH("ExportDirectory", true),
	  SETTINGS_OF("ExportSettingData")}},
	{"ImportSnapshot",
	 import_snapshot,
	 {PATH("ImportSource", true), SETTINGS_OF("ImportSettingData")}},
	{"VerifySnapshot",
	 verify_snapshot,
	 {TEXT("SnapshotCollection", true), SETTINGS_OF("VerifySettingData")}},
	{"JobReport", job_report, {TEXT("Job", true)}},
	{0},
};
