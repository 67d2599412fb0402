/* SPDX-License-Identifier: MIT */
/*
 * export.c - ExportSnapshot as a job (XP-*): arguments checked here, pipes opened before the call
 * returns, the rest is the engine's. Any thread.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/transfer.h"
#include "engine/transfer/export_impl.h"

struct work {
	struct api_transfer_settings s;
	char collection[CAT_NAME_MAX], name[CAT_NAME_MAX], base[CAT_NAME_MAX];
	bool base_is_refpoint;
	char *dir;
	bool to_pipe;
	struct api_pipe pipe;
};

static void work_free(void *arg)
{
	struct work *w = arg;

	if (w->to_pipe)
		api_pipe_close(&w->pipe);
	free(w->dir);
	free(w);
}

static json_t *report(const struct work *w, const struct eng_export_result *result)
{
	static const char *const formats[] = {"stream", "raw", "qcow2"};
	char id[FMT_UUID_TEXT], snapshot[CAT_NS_MAX];

	fmt_uuid_format(&result->snapshot, id);
	api_name_join(snapshot, w->collection, '@', w->name);
	return json_pack("{s:s, s:s, s:s*, s:s, s:s, s:i, s:I}", "snapshot", snapshot,
			 "snapshot_id", id, "base", w->s.base[0] ? w->s.base : NULL, "target",
			 w->dir, "format", formats[w->s.format], "disks", (int)result->disks,
			 "bytes", (json_int_t)result->bytes);
}

static int run(struct vmimg_service *svc, void *arg, struct eng_progress *progress,
	       struct fmt_error *err, struct fmt_uuid *affected)
{
	struct work *w = arg;
	struct eng_sink sink = {.write = api_pipe_write, .arg = &w->pipe, .name = w->dir};
	struct eng_export how = {
		.collection = w->collection,
		.snapshot = w->name,
		.base = w->base[0] ? w->base : NULL,
		.base_is_refpoint = w->base_is_refpoint,
		.format = w->s.format,
		.dir = w->dir,
		.sink = w->to_pipe ? &sink : NULL,
		.compress = w->s.compress,
		.resume = w->s.resume,
		.no_storage = !w->s.copy_storage,
		.intent = (uint16_t)w->s.intent,
		.progress = progress,
	};
	struct eng_export_result result;
	int r;

	w->pipe.progress = progress;
	r = eng_store_export(svc->store, &how, err, &result);
	if (r < 0)
		return r;
	*affected = result.snapshot;
	api_report_put(svc, progress->job, report(w, &result));
	return 0;
}

static uint32_t read_base(struct work *w, struct vmimg_error *err)
{
	char collection[CAT_NAME_MAX];

	if (!w->s.base[0])
		return VMIMG_OK;
	w->base_is_refpoint = strchr(w->s.base, '#') != NULL;
	if (api_name_split(w->s.base, w->base_is_refpoint ? '#' : '@', collection, w->base) < 0)
		return api_answer(err, VMIMG_INVALID_PARAMETER,
				  "settings: DifferentialBackupBase '%.140s' is no name, expected "
				  "COLLECTION@NAME or COLLECTION#NAME",
				  w->s.base);
	if (strcmp(collection, w->collection) != 0)
		return api_answer(err, VMIMG_INVALID_PARAMETER,
				  "settings: the base %s is of another collection than %s",
				  w->s.base, w->collection);
	return VMIMG_OK;
}

/* What a later failure would say of the arguments is said at once. */
static uint32_t check(struct vmimg_service *svc, struct work *w, struct vmimg_error *err)
{
	struct eng_catalog *cat = svc->store->catalog;
	struct cat_snapshot snap;
	struct cat_refpoint point;
	struct eng_stat st;
	int r = eng_catalog_find_snapshot(cat, w->collection, w->name, NULL, &snap);

	if (r < 0)
		return api_answer(err, VMIMG_INVALID_PARAMETER, "snapshot %s@%s: %s", w->collection,
				  w->name, r == -ENOENT ? "there is none" : strerror(-r));
	if (w->base[0]) {
		r = w->base_is_refpoint ? eng_catalog_get_refpoint(svc->store->catalog,
								   w->collection, w->base, &point)
					: eng_catalog_get_snapshot(svc->store->catalog,
								   w->collection, w->base, &snap);
		if (r < 0)
			return api_answer(err, VMIMG_INVALID_PARAMETER,
					  "settings: the base %s: there is none", w->s.base);
	}
	if (!w->to_pipe && eng_io_stat(svc->io, w->dir, &st) == 0)
		return api_answer(err, VMIMG_INVALID_PARAMETER, "directory: %s is there already",
				  w->dir);
	if (w->to_pipe && (w->s.format != FMT_EXPORT_STREAM || !w->s.copy_storage || w->s.resume))
		return api_answer(err, VMIMG_INVALID_PARAMETER,
				  "settings: a pipe takes a stream, from its start");
	if (w->s.compress && w->s.format == FMT_EXPORT_RAW)
		return api_answer(err, VMIMG_INVALID_PARAMETER,
				  "settings: raw files cannot be compressed (EX-4)");
	if (w->s.base[0] && w->s.format == FMT_EXPORT_RAW)
		return api_answer(err, VMIMG_INVALID_PARAMETER,
				  "settings: raw files cannot be incremental (EX-4)");
	return VMIMG_OK;
}

static uint32_t prepare(struct vmimg_service *svc, const char *snapshot, const char *directory,
			const char *settings, struct work *w, struct vmimg_error *err)
{
	struct fmt_error why = {""};
	uint32_t code;
	int r;

	code = api_read_name(svc, "export", snapshot, '@', err, w->collection, w->name);
	if (code)
		return code;
	if (!directory || directory[0] != '/')
		return api_answer(err, VMIMG_INVALID_PARAMETER,
				  "directory: '%.140s' is no absolute path",
				  directory ? directory : "");
	r = api_transfer_settings_read(settings, API_TRANSFER_EXPORT, &why, &w->s);
	if (r < 0)
		return api_answer_why(err, VMIMG_INVALID_PARAMETER, r, &why, "settings");
	w->dir = strdup(directory);
	if (!w->dir)
		return api_answer(err, VMIMG_FAILED, "out of memory");
	w->to_pipe = api_is_pipe(directory);
	w->pipe.fd = -1;
	code = read_base(w, err);
	if (code == VMIMG_OK)
		code = check(svc, w, err);
	if (code || !w->to_pipe)
		return code;
	r = api_pipe_open(w->dir, true, &why, &w->pipe);
	return r < 0 ? api_answer_why(err, VMIMG_INVALID_PARAMETER, r, &why, directory) : VMIMG_OK;
}

uint32_t vmimg_export_snapshot(struct vmimg_service *svc, const char *snapshot,
			       const char *directory, const char *settings, struct vmimg_job **job,
			       struct vmimg_error *err)
{
	struct api_work work = {
		.type = VMIMG_JOB_TYPE_EXPORT,
		.cancellable = true,
		.run = run,
		.destroy = work_free,
	};
	struct work *w;
	uint32_t code;

	w = api_work_alloc(svc, sizeof(*w), "export", job, err, &code);
	if (!w)
		return code;
	code = prepare(svc, snapshot, directory, settings, w, err);
	if (code) {
		work_free(w);
		return code;
	}
	snprintf(work.name, sizeof(work.name), "%s", snapshot);
	work.arg = w;
	work.rate = w->s.rate;
	return api_work_start(svc, &work, w->s.synchronous, job, err);
}
