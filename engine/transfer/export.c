/* SPDX-License-Identifier: MIT */
/*
 * export.c - an export from its plan to its final name (EX-2): everything is made in DIR.part, which gets
 * the name DIR when all of it is durable. One thread, the caller's.
 */
#include "engine/transfer/export.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/transfer/export_impl.h"
#include "engine/image/image_impl.h"
#include "engine/transfer/stream_in.h"

#define LOCK ".lock" /* in DIR.part */

struct out {
	struct eng_export_plan plan;
	struct eng_io *io;
	char *dir, *part;      /* final and until then */
	struct eng_file *lock; /* DIR.part's: one export at a time makes it */
	struct eng_file *file;
	uint64_t offset; /* in it */
	char *file_path;
	struct fmt_error *err;
};

/* --- paths: of validated names only (MF-2) --- */

static char *path_in(const char *dir, const char *a, const char *b, const char *suffix)
{
	char *path = NULL;

	if (asprintf(&path, "%s/%s%s%s%s", dir, a, b ? "/" : "", b ? b : "", suffix) < 0)
		return NULL;
	return path;
}

static char *stream_path(const struct out *o)
{
	return path_in(o->part, o->plan.m.snapshot_name, NULL, ".vmstream");
}

static char *image_path(const struct out *o, uint32_t i)
{
	const struct fmt_manifest *m = &o->plan.m;

	return path_in(o->part, m->vms[m->disks[i].vm].name, m->disks[i].name,
		       m->format == FMT_EXPORT_RAW ? ".raw" : ".qcow2");
}

static int no_memory(struct fmt_error *err)
{
	return fmt_fail(err, -ENOMEM, "out of memory");
}

static int remove_path(const struct out *o, char *path)
{
	int r = path ? eng_io_unlink(o->io, path) : -ENOMEM;

	free(path);
	return r == -ENOENT ? 0 : r;
}

/* What an export of this plan may have made, and nothing else. */
static void remove_files(const struct out *o)
{
	const struct fmt_manifest *m = &o->plan.m;

	remove_path(o, path_in(o->part, "manifest.json", NULL, ""));
	remove_path(o, stream_path(o));
	for (uint32_t i = 0; i < m->disk_count; i++)
		remove_path(o, image_path(o, i));
	for (uint32_t i = 0; i < m->vm_count; i++)
		remove_path(o, path_in(o->part, m->vms[i].name, NULL, ""));
}

static void remove_part(const struct out *o)
{
	remove_files(o);
	remove_path(o, path_in(o->part, LOCK, NULL, ""));
	remove_path(o, strdup(o->part));
}

/* --- files --- */

static int write_manifest(struct out *o)
{
	char *path = path_in(o->part, "manifest.json", NULL, ""), *text = NULL;
	struct eng_file *file = NULL;
	size_t len = 0;
	int r = path ? fmt_manifest_encode(&o->plan.m, &text, &len) : -ENOMEM;

	if (r == 0)
		r = eng_io_open(o->io, path, ENG_OPEN_WRITE | ENG_OPEN_CREATE | ENG_OPEN_EXCL,
				&file);
	if (r == 0)
		r = eng_io_pwrite(o->io, file, text, len, 0);
	if (r == 0)
		r = eng_io_fdatasync(o->io, file);
	if (r < 0)
		fmt_fail(o->err, r, "%s: %s", path ? path : o->part, strerror(-r));
	eng_io_close(o->io, file);
	free(path);
	free(text);
	return r;
}

static int make_dir(struct out *o, const char *path)
{
	int r = path ? eng_io_mkdir(o->io, path) : -ENOMEM;

	return r < 0 ? fmt_fail(o->err, r, "%s: cannot make the directory: %s",
				path ? path : o->part, strerror(-r))
		     : 0;
}

static int sync_dir(struct out *o, const char *path)
{
	int r = path ? eng_io_sync_dir(o->io, path) : -ENOMEM;

	return r < 0 ? fmt_fail(o->err, r, "%s: cannot sync the directory: %s",
				path ? path : o->part, strerror(-r))
		     : 0;
}

static int write_images(struct out *o)
{
	const struct fmt_manifest *m = &o->plan.m;
	int r = 0;

	for (uint32_t i = 0; r == 0 && i < m->vm_count; i++) {
		char *path = path_in(o->part, m->vms[i].name, NULL, "");

		r = make_dir(o, path);
		free(path);
	}
	for (uint32_t i = 0; r == 0 && i < m->disk_count; i++) {
		char *path = image_path(o, i);

		r = path ? eng_export_image(&o->plan, i, path, o->err) : no_memory(o->err);
		free(path);
	}
	for (uint32_t i = 0; r == 0 && i < m->vm_count; i++) {
		char *path = path_in(o->part, m->vms[i].name, NULL, "");

		r = sync_dir(o, path);
		free(path);
	}
	return r;
}

/* --- the stream's file --- */

static int file_write(void *arg, const void *bytes, size_t len, struct fmt_error *err)
{
	struct out *o = arg;
	int r = eng_io_pwrite(o->io, o->file, bytes, len, o->offset);

	if (r < 0)
		return fmt_fail(err, r, "%s: cannot write %zu bytes at %" PRIu64 ": %s",
				o->file_path, len, o->offset, strerror(-r));
	o->offset += len;
	return 0;
}

static ssize_t file_read(void *arg, void *buf, size_t len, struct fmt_error *err)
{
	struct out *o = arg;
	ssize_t n = eng_io_pread(o->io, o->file, buf, len, o->offset);

	if (n < 0)
		return fmt_fail(err, (int)n, "%s: cannot read: %s", o->file_path,
				strerror((int)-n));
	o->offset += (uint64_t)n;
	return n;
}

/* How many frames are whole, from the first one on; *@ended: END, too. */
static int count_frames(struct out *o, struct eng_stream_in *in, uint64_t *frames, bool *ended)
{
	struct eng_stream_batch batch;
	struct fmt_inflater *inflater = fmt_inflater_create();
	uint8_t *room = malloc(FMT_FRAME_BYTES_MAX);
	const uint8_t *data;
	int r = eng_stream_batch_init(&batch);

	batch.max = 1;
	if (r == 0)
		r = inflater && room ? 1 : -ENOMEM;
	if (r < 0)
		goto out;
	*frames = 0;
	while (r > 0) {
		const struct fmt_frame *f = &batch.frames[0].f;

		r = eng_stream_in_next(in, &batch, NULL);
		if (r > 0 && f->type == FMT_FRAME_DATA &&
		    eng_stream_frame_open(&batch, 0, o->plan.m.disks[f->disk].block_bits, inflater,
					  room, o->file_path, NULL, &data) < 0)
			break;
		*frames += r > 0;
	}
	*ended = r == 0;
	r = 0;
out:
	eng_stream_batch_fini(&batch);
	fmt_inflater_destroy(inflater);
	free(room);
	return r;
}

/* Reads @frames of them again: where they end, and what they come to. */
static int pass_frames(struct out *o, struct eng_stream_in *in, uint64_t frames,
		       struct eng_export_resume *ret)
{
	struct eng_stream_batch batch;
	int r = eng_stream_batch_init(&batch);

	batch.max = 1;
	for (uint64_t i = 0; r == 0 && i < frames; i++) {
		r = eng_stream_in_next(in, &batch, o->err);
		r = r > 0 ? 0 : r < 0 ? r : -EUCLEAN;
	}
	eng_stream_batch_fini(&batch);
	if (r < 0)
		return r;
	eng_stream_in_totals(in, &ret->cursor, &ret->data_bytes, &ret->zero_bytes);
	ret->head = *eng_stream_in_head(in);
	ret->digest = eng_stream_in_take_digest(in);
	ret->active = true;
	o->offset = eng_stream_in_offset(in);
	return 0;
}

/* The same manifest, byte for byte, and what the header says of the frames (EX-6). */
static bool is_same(const struct out *o, const struct eng_stream_in *in)
{
	const struct fmt_stream *head = eng_stream_in_head(in);
	char *text = NULL;
	size_t len = 0;
	bool same = fmt_manifest_encode(&o->plan.m, &text, &len) == 0 &&
		    len == head->manifest_len &&
		    fmt_stream_manifest_csum(text, len) == head->manifest_csum &&
		    o->plan.how->compress == !!(head->incompat & FMT_STREAM_DEFLATE);

	free(text);
	return same;
}

/* EX-6. Nothing usable: from the start. */
static int find_resume(struct out *o, struct eng_export_resume *ret, bool *complete)
{
	struct eng_stream_source source = {.read = file_read, .arg = o, .name = o->file_path};
	struct eng_stream_in *in = NULL;
	uint64_t frames = 0;
	int r;

	o->offset = 0;
	if (eng_stream_in_open(&source, NULL, &in) < 0 || !is_same(o, in)) {
		eng_stream_in_close(in);
		o->offset = 0;
		return eng_io_truncate(o->io, o->file, 0);
	}
	r = count_frames(o, in, &frames, complete);
	eng_stream_in_close(in);
	in = NULL;
	if (r < 0 || *complete)
		return r;
	o->offset = 0;
	r = eng_stream_in_open(&source, o->err, &in);
	if (r == 0)
		r = pass_frames(o, in, frames, ret);
	eng_stream_in_close(in);
	return r < 0 ? r : eng_io_truncate(o->io, o->file, o->offset);
}

static int write_stream(struct out *o)
{
	const struct eng_sink sink = {.write = file_write, .arg = o, .name = o->file_path};
	struct eng_export_resume resume = {0};
	unsigned flags = ENG_OPEN_WRITE | ENG_OPEN_CREATE | ENG_OPEN_NOFOLLOW;
	bool complete = false;
	int r = eng_io_open(o->io, o->file_path,
			    o->plan.how->resume ? flags : flags | ENG_OPEN_EXCL, &o->file);

	if (r < 0)
		return fmt_fail(o->err, r, "%s: %s", o->file_path, strerror(-r));
	if (o->plan.how->resume)
		r = find_resume(o, &resume, &complete);
	if (r == 0 && !complete)
		r = eng_export_stream(&o->plan, &sink, &resume, o->err);
	if (r == 0) {
		r = eng_io_fdatasync(o->io, o->file);
		if (r < 0)
			fmt_fail(o->err, r, "%s: cannot sync: %s", o->file_path, strerror(-r));
	}
	eng_io_close(o->io, o->file);
	fmt_digest_destroy(resume.digest);
	return r;
}

/* --- all of it --- */

static int fill(struct out *o)
{
	const struct eng_export *how = o->plan.how;
	int r = 0;

	if (how->format == FMT_EXPORT_STREAM && !how->no_storage) {
		o->file_path = stream_path(o);
		return o->file_path ? write_stream(o) : no_memory(o->err);
	}
	if (!how->no_storage)
		r = write_images(o);
	return r < 0 ? r : write_manifest(o);
}

/* Another export to the same name must not lose its files to this one, nor give ours its name. */
static int take_lock(struct out *o)
{
	char *path = path_in(o->part, LOCK, NULL, "");
	int r = path ? eng_io_open(o->io, path,
				   ENG_OPEN_WRITE | ENG_OPEN_CREATE | ENG_OPEN_NOFOLLOW, &o->lock)
		     : -ENOMEM;

	if (r == 0)
		r = eng_io_lock(o->io, o->lock);
	free(path);
	if (r == -EWOULDBLOCK)
		return fmt_fail(o->err, -EBUSY, "%s: another export is making it", o->part);
	return r < 0 ? fmt_fail(o->err, r, "%s: cannot lock it: %s", o->part, strerror(-r)) : 0;
}

/* Nothing gets the final name that this export has not made. */
static int check_name(void *arg, const char *name)
{
	const struct out *o = arg;
	size_t len = strlen(o->plan.m.snapshot_name);

	if (!strcmp(name, LOCK) ||
	    (!strncmp(name, o->plan.m.snapshot_name, len) && !strcmp(name + len, ".vmstream")))
		return 0;
	return fmt_fail(o->err, -ENOTEMPTY,
			"%s: holds '%.64s', which is not this export's: remove it", o->part, name);
}

static int begin_dir(struct out *o)
{
	struct eng_stat st;
	int r;

	if (eng_io_stat(o->io, o->dir, &st) == 0)
		return fmt_fail(o->err, -EEXIST, "%s: %s", o->dir, strerror(EEXIST));
	r = eng_io_mkdir(o->io, o->part);
	if (r < 0 && r != -EEXIST)
		return fmt_fail(o->err, r, "%s: cannot make the directory: %s", o->part,
				strerror(-r));
	r = take_lock(o);
	/* What an interrupted one has left. */
	if (r == 0 && !(o->plan.how->resume && o->plan.how->format == FMT_EXPORT_STREAM))
		remove_files(o);
	if (r == 0)
		r = eng_io_list(o->io, o->part, check_name, o);
	if (r < 0 && r != -EBUSY)
		remove_path(o, path_in(o->part, LOCK, NULL, ""));
	if (r < 0)
		remove_path(o, strdup(o->part)); /* when it is empty */
	return r;
}

static int place_dir(struct out *o)
{
	int r = sync_dir(o, o->part);

	if (r == 0 && o->plan.how->progress && !eng_progress_decide(o->plan.how->progress))
		r = fmt_fail(o->err, -ECANCELED, "%s: cancelled", o->dir);
	if (r < 0)
		return r;
	r = eng_io_rename_new(o->io, o->part, o->dir);
	if (r < 0)
		return fmt_fail(o->err, r, "%s: %s", o->dir, strerror(-r));
	remove_path(o, path_in(o->dir, LOCK, NULL, "")); /* only now: who waits for it sees DIR */
	r = eng_path_sync_dir(o->io, o->dir);
	return r < 0 ? fmt_fail(o->err, r, "%s: its name may not be durable: %s", o->dir,
				strerror(-r))
		     : 0;
}

static int export_to_dir(struct out *o)
{
	size_t len = strlen(o->plan.how->dir);
	bool placed = false;
	int r;

	while (len > 1 && o->plan.how->dir[len - 1] == '/')
		len--;
	o->dir = strndup(o->plan.how->dir, len);
	if (!o->dir || asprintf(&o->part, "%s.part", o->dir) < 0)
		return no_memory(o->err);
	r = begin_dir(o);
	if (r < 0) {
		eng_io_close(o->io, o->lock);
		return r;
	}
	r = fill(o);
	if (r == 0) {
		r = place_dir(o);
		placed = r == 0;
	}
	if (!placed && !o->plan.how->resume)
		remove_part(o);
	eng_io_close(o->io, o->lock);
	return r;
}

int eng_store_export(struct eng_store *store, const struct eng_export *how, struct fmt_error *err,
		     struct eng_export_result *ret)
{
	struct out o = {.io = store->io, .err = err};
	int r = eng_export_plan(store, how, &o.plan, err);

	if (r < 0)
		return r;
	eng_progress_start(how->progress, o.plan.total);
	r = how->sink ? eng_export_stream(&o.plan, how->sink, NULL, err) : export_to_dir(&o);
	if (r == 0)
		*ret = (struct eng_export_result){
			.snapshot = o.plan.m.snapshot,
			.disks = o.plan.m.disk_count,
			.bytes = o.plan.written,
		};
	if (r < 0 && err && !err->text[0])
		fmt_fail(err, r, "%s@%s: cannot export: %s", how->collection, how->snapshot,
			 strerror(-r));
	free(o.dir);
	free(o.part);
	free(o.file_path);
	eng_export_plan_fini(&o.plan);
	return r;
}
