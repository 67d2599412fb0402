/* SPDX-License-Identifier: MIT */
/*
 * export_refpoint.c - ExportReferencePoint as a job (XP-9): a point holds no data, so what leaves the store
 * is what it says: itself with its disks and ids, and what has changed since another point. Any thread.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/refpoint.h"
#include "api/transfer.h"
#include "engine/image/image_impl.h"

struct work {
	struct api_transfer_settings s;
	char name[CAT_NS_MAX];
	char *dir;
};

static void work_free(void *arg)
{
	struct work *w = arg;

	free(w->dir);
	free(w);
}

/* --- the document --- */

/* The names have been looked up twice: for the point, and for what changed. */
static int check_still(struct vmimg_service *svc, const struct work *w, json_t *point,
		       struct fmt_error *err)
{
	json_t *now = NULL;
	int r = api_refpoint_find(svc, w->name, &now);

	if (r == 0 &&
	    !json_equal(json_object_get(point, "refpoint_id"), json_object_get(now, "refpoint_id")))
		r = -ENOENT;
	json_decref(now);
	return r < 0 ? fmt_fail(err, r, "%s: destroyed meanwhile", w->name) : 0;
}

static int make_document(struct vmimg_service *svc, const struct work *w, struct fmt_error *err,
			 char **ret)
{
	json_t *point = NULL, *changes = NULL, *document;
	struct vmimg_error why = {0};
	char *text = NULL;
	int r = api_refpoint_find(svc, w->name, &point);

	if (r < 0)
		return fmt_fail(err, r, "%s: %s", w->name, strerror(-r));
	if (w->s.base[0]) {
		r = vmimg_diff(svc, w->s.base, w->name, &why, &text);
		if (r < 0)
			fmt_fail(err, r, "%s", why.message);
		changes = r == 0 ? json_loads(text, 0, NULL) : NULL;
		vmimg_free(text);
		if (r == 0 && !changes)
			r = -ENOMEM;
		if (r == 0)
			r = check_still(svc, w, point, err);
	}
	document = json_pack("{s:s, s:i, s:o, s:o}", "format", "refpoint", "version", 1, "refpoint",
			     point, "changes", changes ? changes : json_null());
	if (r == 0) {
		*ret = json_dumps(document, JSON_COMPACT);
		r = *ret ? 0 : -ENOMEM;
	}
	json_decref(document);
	return r;
}

/* --- the directory: as an export of a snapshot makes it (EX-2) --- */

struct out {
	char *dir, *part, *path, *lock_path; /* its file, and what keeps others off @part */
	struct eng_file *lock;
};

static void out_fini(struct vmimg_service *svc, struct out *o)
{
	eng_io_close(svc->io, o->lock);
	free(o->part);
	free(o->path);
	free(o->lock_path);
}

static int out_init(struct out *o, char *dir)
{
	*o = (struct out){.dir = dir};
	if (asprintf(&o->part, "%s.part", dir) < 0)
		o->part = NULL;
	if (o->part && asprintf(&o->path, "%s/refpoint.json", o->part) < 0)
		o->path = NULL;
	if (o->part && asprintf(&o->lock_path, "%s/.lock", o->part) < 0)
		o->lock_path = NULL;
	return o->path && o->lock_path ? 0 : -ENOMEM;
}

static int write_file(struct vmimg_service *svc, const char *path, const char *text)
{
	unsigned flags = ENG_OPEN_WRITE | ENG_OPEN_CREATE | ENG_OPEN_TRUNC | ENG_OPEN_NOFOLLOW;
	struct eng_file *file = NULL;
	int r = eng_io_open(svc->io, path, flags, &file);

	if (r == 0)
		r = eng_io_pwrite(svc->io, file, text, strlen(text), 0);
	if (r == 0)
		r = eng_io_fdatasync(svc->io, file);
	eng_io_close(svc->io, file);
	return r;
}

/* What another export to the same name has written must not get it as ours, nor go with ours. */
static int take_part(struct vmimg_service *svc, struct out *o)
{
	int r = eng_io_mkdir(svc->io, o->part);

	if (r == 0 || r == -EEXIST)
		r = eng_io_open(svc->io, o->lock_path,
				ENG_OPEN_WRITE | ENG_OPEN_CREATE | ENG_OPEN_NOFOLLOW, &o->lock);
	if (r == 0)
		r = eng_io_lock(svc->io, o->lock);
	return r == -EWOULDBLOCK ? -EBUSY : r;
}

static int fill_part(struct vmimg_service *svc, struct out *o, const char *text)
{
	int r = write_file(svc, o->path, text);

	if (r == 0)
		r = eng_io_sync_dir(svc->io, o->part);
	if (r == 0)
		r = eng_io_rename_new(svc->io, o->part, o->dir);
	if (r < 0) {
		eng_io_unlink(svc->io, o->path);
		eng_io_unlink(svc->io, o->lock_path);
		eng_io_unlink(svc->io, o->part);
	}
	return r;
}

/* Only now: whoever waits for it sees DIR. */
static int drop_lock(struct vmimg_service *svc, const struct out *o)
{
	char *path = NULL;
	int r;

	if (asprintf(&path, "%s/.lock", o->dir) < 0)
		return -ENOMEM;
	r = eng_io_unlink(svc->io, path);
	free(path);
	return r < 0 ? r : eng_path_sync_dir(svc->io, o->dir);
}

static int write_dir(struct vmimg_service *svc, char *dir, const char *text, struct fmt_error *err)
{
	struct out o;
	int r = out_init(&o, dir);

	if (r == 0)
		r = take_part(svc, &o);
	if (r == -EBUSY)
		fmt_fail(err, r, "%s: another export is making it", o.part);
	if (r == 0)
		r = fill_part(svc, &o, text);
	if (r == 0)
		r = drop_lock(svc, &o);
	out_fini(svc, &o);
	return r < 0 && r != -EBUSY ? fmt_fail(err, r, "%s: %s", dir, strerror(-r)) : r;
}

static int run(struct vmimg_service *svc, void *arg, struct eng_progress *progress,
	       struct fmt_error *err, struct fmt_uuid *affected)
{
	struct work *w = arg;
	char *text = NULL;
	int r = make_document(svc, w, err, &text);

	(void)affected;
	if (r == 0 && !eng_progress_decide(progress))
		r = fmt_fail(err, -ECANCELED, "%s: cancelled", w->name);
	if (r == 0)
		r = write_dir(svc, w->dir, text, err);
	free(text);
	if (r == 0)
		api_report_put(svc, progress->job,
			       json_pack("{s:s, s:s*, s:s}", "refpoint", w->name, "base",
					 w->s.base[0] ? w->s.base : NULL, "target", w->dir));
	return r;
}

static uint32_t prepare(struct vmimg_service *svc, const char *refpoint, const char *directory,
			const char *settings, struct work *w, struct vmimg_error *err)
{
	char collection[CAT_NAME_MAX], name[CAT_NAME_MAX], of[CAT_NAME_MAX], base[CAT_NAME_MAX];
	struct fmt_error why = {""};
	struct cat_refpoint point;
	struct eng_stat st;
	int r;

	if (api_name_split(refpoint, '#', collection, name) < 0 ||
	    eng_catalog_get_refpoint(svc->store->catalog, collection, name, &point) < 0)
		return api_answer(err, VMIMG_INVALID_PARAMETER, "refpoint: '%.140s': there is none",
				  refpoint ? refpoint : "");
	if (!directory || directory[0] != '/')
		return api_answer(err, VMIMG_INVALID_PARAMETER,
				  "directory: '%.140s' is no absolute path",
				  directory ? directory : "");
	if (eng_io_stat(svc->io, directory, &st) == 0)
		return api_answer(err, VMIMG_INVALID_PARAMETER, "directory: %s is there already",
				  directory);
	r = api_transfer_settings_read(settings, API_TRANSFER_REFPOINT, &why, &w->s);
	if (r < 0)
		return api_answer_why(err, VMIMG_INVALID_PARAMETER, r, &why, "settings");
	if (w->s.base[0] &&
	    (api_name_split(w->s.base, '#', of, base) < 0 || strcmp(of, collection) != 0 ||
	     eng_catalog_get_refpoint(svc->store->catalog, of, base, &point) < 0))
		return api_answer(err, VMIMG_INVALID_PARAMETER,
				  "settings: the base %s: there is none in %s", w->s.base,
				  collection);
	api_name_join(w->name, collection, '#', name);
	w->dir = strdup(directory);
	return w->dir ? VMIMG_OK : api_answer(err, VMIMG_FAILED, "out of memory");
}

uint32_t vmimg_export_reference_point(struct vmimg_service *svc, const char *refpoint,
				      const char *directory, const char *settings,
				      struct vmimg_job **job, struct vmimg_error *err)
{
	struct api_work work = {
		.type = VMIMG_JOB_TYPE_EXPORT_REFPOINT_COLLECTION,
		.cancellable = true,
		.run = run,
		.destroy = work_free,
	};
	struct work *w;
	uint32_t code;

	w = api_work_alloc(svc, sizeof(*w), "export", job, err, &code);
	if (!w)
		return code;
	code = prepare(svc, refpoint, directory, settings, w, err);
	if (code) {
		work_free(w);
		return code;
	}
	memcpy(work.name, w->name, sizeof(work.name));
	work.arg = w;
	return api_work_start(svc, &work, w->s.synchronous, job, err);
}
