/* SPDX-License-Identifier: MIT */
/*
 * import.c - ImportSnapshot as a job (XP-*): a stream is opened before the call returns, the rest is the
 * engine's. Any thread.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/event.h"
#include "api/transfer.h"
#include "engine/transfer/import.h"

struct work {
	struct api_transfer_settings s;
	struct api_stream_file file; /* or */
	char *dir;                   /* of image files */
};

static void work_free(void *arg)
{
	struct work *w = arg;

	if (!w->dir)
		api_stream_file_close(&w->file);
	free(w->dir);
	free(w);
}

static json_t *report(const struct work *w, const struct eng_import_result *result)
{
	char id[FMT_UUID_TEXT], snapshot[CAT_NS_MAX];

	fmt_uuid_format(&result->snapshot, id);
	api_name_join(snapshot, result->collection, '@', result->name);
	return json_pack("{s:s, s:s, s:s, s:b, s:b, s:i, s:I, s:s*}", "snapshot", snapshot,
			 "snapshot_id", id, "source", w->dir ? w->dir : w->file.path, "increment",
			 result->increment, "merged", result->merged, "disks", (int)result->disks,
			 "bytes", (json_int_t)result->bytes, "warning",
			 result->warning[0] ? result->warning : NULL);
}

static int run(struct vmimg_service *svc, void *arg, struct eng_progress *progress,
	       struct fmt_error *err, struct fmt_uuid *affected)
{
	struct work *w = arg;
	struct eng_stream_source source = {
		.read = api_stream_file_read,
		.arg = &w->file,
		.name = w->file.path,
	};
	struct eng_import how = {
		.source = &source,
		.dir = w->dir,
		.new_collection = w->s.collection[0] ? w->s.collection : NULL,
		.intent = (uint16_t)w->s.intent,
		.progress = progress,
	};
	struct eng_import_result result;
	int r;

	w->file.pipe.progress = progress;
	r = eng_store_import(svc->store, &how, err, &result);
	if (r < 0)
		return r;
	*affected = result.snapshot;
	api_report_put(svc, progress->job, report(w, &result));
	return 0;
}

static void tell(struct vmimg_service *svc, const struct cat_job *row)
{
	struct cat_snapshot snap;
	char name[CAT_NS_MAX];

	if (row->state != VMIMG_JOB_COMPLETED || !api_events_wanted(svc->events) ||
	    eng_catalog_get_snapshot_id(svc->store->catalog, &row->affected, &snap) < 0)
		return;
	api_name_join(name, snap.collection_name, '@', snap.name);
	api_event_post(svc->events, "snapshot",
		       json_pack("{s:s, s:s}", "change", "imported", "snapshot", name));
}

static uint32_t prepare(struct vmimg_service *svc, const char *source, const char *settings,
			struct work *w, struct vmimg_error *err)
{
	struct fmt_error why = {""};
	int r = api_transfer_settings_read(settings, API_TRANSFER_IMPORT, &why, &w->s);

	w->file.pipe.fd = -1;
	if (r < 0)
		return api_answer_why(err, VMIMG_INVALID_PARAMETER, r, &why, "settings");
	if (!source || source[0] != '/')
		return api_answer(err, VMIMG_INVALID_PARAMETER,
				  "source: '%.140s' is no absolute path", source ? source : "");
	if (w->s.collection[0] && !api_name_is_valid(w->s.collection))
		return api_answer(err, VMIMG_INVALID_PARAMETER,
				  "settings: Collection '%.80s' is no name, expected COLLECTION",
				  w->s.collection);
	if (api_is_image_export(svc->io, source)) {
		w->dir = strdup(source);
		return w->dir ? VMIMG_OK : api_answer(err, VMIMG_FAILED, "out of memory");
	}
	r = api_stream_file_open(svc->io, source, &why, &w->file);
	return r < 0 ? api_answer_why(err, VMIMG_INVALID_PARAMETER, r, &why, source) : VMIMG_OK;
}

uint32_t vmimg_import_snapshot(struct vmimg_service *svc, const char *source, const char *settings,
			       struct vmimg_job **job, struct vmimg_error *err)
{
	struct api_work work = {
		.type = VMIMG_JOB_TYPE_IMPORT,
		.cancellable = true,
		.run = run,
		.destroy = work_free,
		.tell = tell,
	};
	const char *base;
	struct work *w;
	uint32_t code;

	w = api_work_alloc(svc, sizeof(*w), "import", job, err, &code);
	if (!w)
		return code;
	code = prepare(svc, source, settings, w, err);
	if (code) {
		free(w);
		return code;
	}
	base = strrchr(source, '/');
	snprintf(work.name, sizeof(work.name), "%.120s", base && base[1] ? base + 1 : "import");
	work.arg = w;
	work.rate = w->s.rate;
	return api_work_start(svc, &work, w->s.synchronous, job, err);
}
