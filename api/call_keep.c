/* SPDX-License-Identifier: MIT */
/*
 * call_keep.c - the methods of what keeps snapshots and of space: holds, retention (CP-*, section 2
 * of spec/control.md). Any thread; PruneSnapshots takes as long as its deletions.
 */
#include "api/call.h"

#include <errno.h>
#include <string.h>

static int64_t answer_zero(struct api_call *call, int64_t code)
{
	if (code)
		return code;
	call->result = json_pack("{s:i}", "ReturnValue", 0);
	return 0;
}

/* --- holds --- */

static const struct api_blame about_hold[] = {{"tag", 1}, {"snapshot", 0}, {NULL, 0}};

static int64_t hold_snapshot(struct api_call *call)
{
	int64_t code = vmimg_hold_snapshot(call->svc, api_call_text(call, 0),
					   api_call_text(call, 1), &call->error);

	return answer_zero(call, api_call_blame_words(call, code, about_hold));
}

static int64_t release_snapshot(struct api_call *call)
{
	int64_t code = vmimg_release_snapshot(call->svc, api_call_text(call, 0),
					      api_call_text(call, 1), &call->error);

	return answer_zero(call, api_call_blame_words(call, code, about_hold));
}

/* --- retention --- */

static int64_t prune_snapshots(struct api_call *call)
{
	static const struct api_blame about[] = {{"collection", 0},  {"keep last", 1},
						 {"keep hourly", 2}, {"keep daily", 3},
						 {"keep weekly", 4}, {"keep monthly", 5},
						 {"keep yearly", 6}, {NULL, 0}};
	const struct vmimg_prune how = {
		.size_of = sizeof(how),
		.keep_last = (uint32_t)api_call_number(call, 1),
		.keep_hourly = (uint32_t)api_call_number(call, 2),
		.keep_daily = (uint32_t)api_call_number(call, 3),
		.keep_weekly = (uint32_t)api_call_number(call, 4),
		.keep_monthly = (uint32_t)api_call_number(call, 5),
		.keep_yearly = (uint32_t)api_call_number(call, 6),
		.automatic = api_call_bool(call, 7),
		.dry_run = api_call_bool(call, 8),
	};
	int64_t code = vmimg_prune_snapshots(call->svc, api_call_text(call, 0), &how, &call->error,
					     &call->text);

	return api_call_blame_words(call, code, about);
}

/* --- space --- */

static int64_t set_space_reserve(struct api_call *call)
{
	uint64_t bytes = call->values[0] ? api_call_number(call, 0) : UINT64_MAX;
	int64_t code = vmimg_set_space_reserve(call->svc, bytes, &call->error);

	if (code)
		return code == -EINVAL ? api_call_blame(call, 0, code) : code;
	return api_call_describe(call, VMIMG_KIND_STORE, NULL);
}

const struct api_method api_keep_methods[] = {
	{"HoldSnapshot",
	 hold_snapshot,
	 {TEXT("AffectedSnapshotCollection", true), TEXT("Tag", true)}},
	{"ReleaseSnapshot",
	 release_snapshot,
	 {TEXT("AffectedSnapshotCollection", true), TEXT("Tag", true)}},
	{"PruneSnapshots",
	 prune_snapshots,
	 {TEXT("Collection", true), NUMBER("KeepLast", false, UINT32_MAX),
	  NUMBER("KeepHourly", false, UINT32_MAX), NUMBER("KeepDaily", false, UINT32_MAX),
	  NUMBER("KeepWeekly", false, UINT32_MAX), NUMBER("KeepMonthly", false, UINT32_MAX),
	  NUMBER("KeepYearly", false, UINT32_MAX), BOOL("Automatic"), BOOL("DryRun")}},
	{"SetSpaceReserve", set_space_reserve, {NUMBER("Bytes", false, INT64_MAX)}},
	{0},
};
