/* SPDX-License-Identifier: MIT */
/*
 * call_diff.c - the methods that tell what changed (DF-9 to DF-13; section 2 of spec/control.md). Any
 * thread that works on no disk.
 */
#include "api/call.h"

#include <errno.h>

static int64_t get_virtual_disk_changes(struct api_call *call)
{
	static const struct api_blame about[] = {
		{"path:", 0}, {"limit:", 1}, {"target:", 2}, {"offset:", 3}, {NULL, 0}};
	struct vmimg_changes changes;
	json_t *offsets, *lengths;
	uint32_t code = vmimg_get_virtual_disk_changes(
		call->svc, api_call_text(call, 0), api_call_text(call, 1), api_call_text(call, 2),
		api_call_number(call, 3), api_call_number(call, 4), &changes, &call->error);

	if (code)
		return api_call_blame_words(call, code, about);
	offsets = json_array();
	lengths = json_array();
	for (size_t i = 0; i < changes.count; i++) {
		json_array_append_new(offsets,
				      json_integer((json_int_t)changes.changed_byte_offsets[i]));
		json_array_append_new(lengths,
				      json_integer((json_int_t)changes.changed_byte_lengths[i]));
	}
	call->result = json_pack("{s:i, s:I, s:o, s:o, s:n}", "ReturnValue", 0,
				 "ProcessedByteLength", (json_int_t)changes.processed_byte_length,
				 "ChangedByteOffsets", offsets, "ChangedByteLengths", lengths,
				 "Job");
	vmimg_changes_free(&changes);
	return call->result ? 0 : -ENOMEM;
}

static int64_t diff_collection(struct api_call *call)
{
	static const struct api_blame about[] = {{"from:", 0}, {"to:", 1}, {NULL, 0}};
	int r = vmimg_diff(call->svc, api_call_text(call, 0), api_call_text(call, 1), &call->error,
			   &call->text);

	return api_call_blame_words(call, r, about);
}

const struct api_method api_diff_methods[] = {
	{"GetVirtualDiskChanges",
	 get_virtual_disk_changes,
	 {TEXT("Path", true), TEXT("LimitId", true), TEXT("TargetSnapshotId", false),
	  NUMBER("ByteOffset", true, INT64_MAX), NUMBER("ByteLength", true, INT64_MAX)}},
	{"GetCollectionChanges", diff_collection, {TEXT("From", true), TEXT("To", false)}},
	{NULL, NULL, {{0}}},
};
