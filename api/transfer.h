/* SPDX-License-Identifier: MIT */
/*
 * transfer.h - what exports, imports and verifications share: their settings, pipes and files as ends of
 * a stream, and the reports that their jobs leave (spec/stream.md XP-*). Private.
 */
#ifndef API_TRANSFER_H
#define API_TRANSFER_H

#include <jansson.h>

#include "api/work.h"
#include "engine/transfer/export.h"
#include "engine/transfer/stream_in.h"

enum api_transfer_kind {
	API_TRANSFER_EXPORT = 1 << 0,
	API_TRANSFER_IMPORT = 1 << 1,
	API_TRANSFER_VERIFY = 1 << 2,
	API_TRANSFER_REFPOINT = 1 << 3,
};

struct api_transfer_settings {
	bool copy_storage, compress, resume, synchronous;
	uint64_t intent, rate;
	enum fmt_export_format format;
	char base[CAT_NS_MAX]; /* "": none */
	char collection[CAT_NAME_MAX];
};

/* @json: NULL or "": the defaults. -EINVAL, also for a setting of another @kind. */
int api_transfer_settings_read(const char *json, enum api_transfer_kind kind, struct fmt_error *err,
			       struct api_transfer_settings *ret);

/* --- ends of streams --- */
/* Whether @path is a FIFO, or a pipe by /proc/self/fd. */
bool api_is_pipe(const char *path);

/* A FIFO's end; it gives up when @progress is cancelled. */
struct api_pipe {
	int fd;
	const char *name; /* borrowed */
	struct eng_progress *progress;
};
/* -ENXIO: nobody reads it. */
int api_pipe_open(const char *path, bool write, struct fmt_error *err, struct api_pipe *ret);
void api_pipe_close(struct api_pipe *pipe);
int api_pipe_write(void *arg, const void *bytes, size_t len, struct fmt_error *err);
ssize_t api_pipe_read(void *arg, void *buf, size_t len, struct fmt_error *err);

/* Whether @path is a directory that an export as raw or qcow2 has made (IP-7). */
bool api_is_image_export(struct eng_io *io, const char *path);

/* Something to read a stream from: a pipe, a file, or the one stream of a directory. */
struct api_stream_file {
	struct eng_io *io;
	struct eng_file *file; /* or */
	struct api_pipe pipe;
	bool is_pipe;
	uint64_t offset;
	char *path;
};
int api_stream_file_open(struct eng_io *io, const char *path, struct fmt_error *err,
			 struct api_stream_file *ret);
void api_stream_file_close(struct api_stream_file *f);
ssize_t api_stream_file_read(void *arg, void *buf, size_t len, struct fmt_error *err);

/* --- reports (report.c) --- */
/* What the job came to, kept for a while (XP-6). Takes @report. */
void api_report_put(struct vmimg_service *svc, const struct cat_job *job, json_t *report);
void api_reports_free(struct vmimg_service *svc);

#endif
