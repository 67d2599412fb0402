/* SPDX-License-Identifier: MIT */
/*
 * hold.c - holds on snapshots (HD-*): arguments checked here, the rest is the store's. Any thread.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "api/describe.h"
#include "api/event.h"
#include "engine/store/hold.h"

static uint32_t split_arguments(const struct vmimg_service *svc, const char *snapshot,
				const char *tag, struct vmimg_error *err,
				char collection[CAT_NAME_MAX], char name[CAT_NAME_MAX])
{
	uint32_t code = api_read_name(svc, "hold", snapshot, '@', err, collection, name);

	if (code)
		return code;
	if (!api_name_is_valid(tag))
		return api_answer(err, VMIMG_INVALID_PARAMETER,
				  "tag: '%.80s' is no name, expected 1 to 64 of A-Z a-z 0-9 . _ -",
				  tag ? tag : "");
	return VMIMG_OK;
}

static uint32_t answer_change(struct vmimg_service *svc, int r, const struct fmt_error *why,
			      const char *change, const char *snapshot, struct vmimg_error *err)
{
	if (r < 0)
		return api_answer_why(err,
				      r == -ENOENT || r == -EEXIST ? VMIMG_INVALID_PARAMETER
				      : r == -ENOTRECOVERABLE      ? VMIMG_INVALID_STATE
								   : VMIMG_FAILED,
				      r, why, snapshot);
	if (api_events_wanted(svc->events))
		api_event_post(svc->events, "snapshot",
			       json_pack("{s:s, s:s}", "change", change, "snapshot", snapshot));
	return VMIMG_OK;
}

uint32_t vmimg_hold_snapshot(struct vmimg_service *svc, const char *snapshot, const char *tag,
			     struct vmimg_error *err)
{
	char collection[CAT_NAME_MAX], name[CAT_NAME_MAX];
	struct fmt_error why = {""};
	uint32_t code = split_arguments(svc, snapshot, tag, err, collection, name);

	if (code)
		return code;
	return answer_change(svc, eng_store_hold(svc->store, collection, name, tag, &why), &why,
			     "held", snapshot, err);
}

uint32_t vmimg_release_snapshot(struct vmimg_service *svc, const char *snapshot, const char *tag,
				struct vmimg_error *err)
{
	char collection[CAT_NAME_MAX], name[CAT_NAME_MAX];
	struct fmt_error why = {""};
	uint32_t code = split_arguments(svc, snapshot, tag, err, collection, name);

	if (code)
		return code;
	return answer_change(svc, eng_store_release(svc->store, collection, name, tag, &why), &why,
			     "released", snapshot, err);
}

int api_json_holds(struct vmimg_service *svc, const struct fmt_uuid *snapshot, json_t **ret)
{
	struct cat_hold *holds = NULL;
	json_t *array;
	size_t n = 0;
	int r = eng_catalog_list_holds(svc->store->catalog, snapshot, &holds, &n);

	if (r < 0)
		return r;
	array = json_array();
	for (size_t i = 0; i < n; i++)
		json_array_append_new(array, json_pack("{s:s, s:o}", "tag", holds[i].tag, "created",
						       api_json_time(holds[i].created_ns)));
	free(holds);
	*ret = array;
	return array ? 0 : -ENOMEM;
}
