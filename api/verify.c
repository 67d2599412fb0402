/* SPDX-License-Identifier: MIT */
/*
 * verify.c - VerifySnapshot as a job, and streams verified without a store (VF-*). A job that finds damage
 * fails, and its report says all of it. Any thread.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/transfer.h"
#include "engine/transfer/verify.h"

struct work {
	struct api_transfer_settings s;
	char collection[CAT_NAME_MAX], name[CAT_NAME_MAX];
};

static json_t *findings(const struct eng_verify_report *rep)
{
	json_t *array = json_array();

	for (uint32_t i = 0; i < rep->count; i++) {
		const struct eng_verify_finding *f = &rep->findings[i];
		char layer[FMT_UUID_TEXT];
		json_t *o;

		fmt_uuid_format(&f->layer, layer);
		o = json_pack("{s:s, s:s, s:s}", "disk", f->disk, "layer", layer, "message",
			      f->text);
		if (f->offset != UINT64_MAX)
			json_object_set_new(o, "offset", json_integer((json_int_t)f->offset));
		json_array_append_new(array, o);
	}
	return array;
}

static json_t *report(const struct work *w, const struct eng_verify_report *rep)
{
	char snapshot[CAT_NS_MAX];

	api_name_join(snapshot, w->collection, '@', w->name);
	return json_pack("{s:s, s:b, s:i, s:i, s:i, s:I, s:I, s:I, s:o}", "snapshot", snapshot,
			 "sound", rep->damaged == 0, "disks", (int)rep->disks, "layers",
			 (int)rep->layers, "unverified_layers", (int)rep->unverified_layers,
			 "bytes", (json_int_t)rep->bytes, "unverified_bytes",
			 (json_int_t)rep->unverified_bytes, "damaged", (json_int_t)rep->damaged,
			 "findings", findings(rep));
}

static int run(struct vmimg_service *svc, void *arg, struct eng_progress *progress,
	       struct fmt_error *err, struct fmt_uuid *affected)
{
	struct work *w = arg;
	struct eng_verify_report rep;
	int r = eng_store_verify_snapshot(svc->store, w->collection, w->name, progress, err, &rep);

	(void)affected;
	if (r < 0)
		return r;
	api_report_put(svc, progress->job, report(w, &rep));
	if (rep.damaged) {
		const struct eng_verify_finding *f = &rep.findings[0];
		char at[48] = "";

		if (f->offset != UINT64_MAX)
			snprintf(at, sizeof(at), " at offset %" PRIu64, f->offset);
		r = fmt_fail(err, -EBADMSG, "%" PRIu64 " damaged; the first: %s%s: %s", rep.damaged,
			     f->disk, at, f->text);
	}
	eng_verify_report_fini(&rep);
	return r;
}

uint32_t vmimg_verify_snapshot(struct vmimg_service *svc, const char *snapshot,
			       const char *settings, struct vmimg_job **job,
			       struct vmimg_error *err)
{
	struct api_work work = {
		.type = VMIMG_JOB_TYPE_VERIFY,
		.cancellable = true,
		.run = run,
		.destroy = free,
	};
	struct fmt_error why = {""};
	struct cat_snapshot snap;
	struct work *w;
	uint32_t code = VMIMG_OK;
	int r;

	w = api_work_alloc(svc, sizeof(*w), "verify", job, err, &code);
	if (!w)
		return code;
	r = api_transfer_settings_read(settings, API_TRANSFER_VERIFY, &why, &w->s);
	if (r < 0)
		code = api_answer_why(err, VMIMG_INVALID_PARAMETER, r, &why, "settings");
	else if (api_name_split(snapshot, '@', w->collection, w->name) < 0)
		code = api_answer(err, VMIMG_INVALID_PARAMETER,
				  "snapshot: '%.140s' is no name, expected COLLECTION@NAME",
				  snapshot ? snapshot : "");
	else if ((r = eng_catalog_find_snapshot(svc->store->catalog, w->collection, w->name, NULL,
						&snap)) < 0)
		code = api_answer(err, VMIMG_INVALID_PARAMETER, "snapshot %s: %s", snapshot,
				  r == -ENOENT ? "there is none" : strerror(-r));
	if (code) {
		free(w);
		return code;
	}
	snprintf(work.name, sizeof(work.name), "%s", snapshot);
	work.arg = w;
	work.rate = w->s.rate;
	return api_work_start(svc, &work, w->s.synchronous, job, err);
}

/* --- streams --- */

struct watch {
	const struct vmimg_verify *how;
	uint64_t size; /* of the file; 0: not known */
};

static int on_progress(void *arg, uint64_t done)
{
	const struct watch *w = arg;

	return w->how && w->how->progress ? w->how->progress(w->how->arg, done, w->size) : 0;
}

static json_t *stream_report(const struct eng_verify_stream *v, const char *path, int r,
			     const struct fmt_error *why)
{
	json_t *doc = json_pack("{s:s, s:b, s:I, s:I}", "source", path, "sound", r == 0, "frames",
				(json_int_t)v->frames, "bytes", (json_int_t)v->bytes);
	char id[FMT_UUID_TEXT], name[CAT_NS_MAX];

	if (v->in) {
		const struct fmt_manifest *m = eng_stream_in_manifest(v->in);

		fmt_uuid_format(&m->snapshot, id);
		api_name_join(name, m->collection_name, '@', m->snapshot_name);
		json_object_update_new(doc, json_pack("{s:s, s:s, s:s*, s:i}", "snapshot", name,
						      "snapshot_id", id, "base",
						      m->has_base ? m->base.name : NULL, "disks",
						      (int)m->disk_count));
	}
	json_object_set_new(doc, "damaged", json_integer(r < 0));
	json_object_set_new(doc, "findings",
			    r < 0 ? json_pack("[{s:s, s:I}]", "message", why->text, "stream_offset",
					      (json_int_t)(v->in ? eng_stream_in_offset(v->in) : 0))
				  : json_array());
	return doc;
}

int vmimg_verify_stream(const char *source, const struct vmimg_verify *how, struct vmimg_error *err,
			char **json)
{
	struct eng_verify_stream v = {.in = NULL};
	struct fmt_error why = {""};
	struct api_stream_file file;
	struct watch watch = {.how = how};
	struct eng_io *io = NULL;
	struct eng_stat st;
	char *text = NULL;
	json_t *doc;
	int r;

	if (!source)
		return api_fail(err, -EINVAL, "source: none given");
	r = eng_io_posix_create(&io);
	if (r == 0)
		r = api_stream_file_open(io, source, &why, &file);
	if (r < 0) {
		eng_io_destroy(io);
		return api_fail_why(err, r, &why, source);
	}
	if (!file.is_pipe && eng_io_fstat(io, file.file, &st) == 0)
		watch.size = st.size;
	r = eng_verify_stream(&(struct eng_stream_source){.read = api_stream_file_read,
							  .arg = &file,
							  .name = file.path},
			      on_progress, &watch, &why, &v);
	doc = stream_report(&v, file.path, r, &why);
	text = doc && json ? json_dumps(doc, JSON_COMPACT) : NULL;
	json_decref(doc);
	eng_stream_in_close(v.in);
	api_stream_file_close(&file);
	eng_io_destroy(io);
	if (json)
		*json = text;
	return r < 0 ? api_fail_why(err, r, &why, source) : 0;
}
