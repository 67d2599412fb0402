/* SPDX-License-Identifier: MIT */
/*
 * transfer.c - settings of exports, imports and verifications, and the ends of their streams. A pipe is
 * waited for a tenth of a second at a time, so that a cancel is seen however long nobody moves a byte.
 */
#include "api/transfer.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "api/settings.h"

#define POLL_MS    100
#define PIPE_BYTES (1 << 20) /* asked for; the system may give less */

/* --- settings --- */

enum type { NUMBER, BOOLEAN, TEXT };

static const struct setting {
	const char *name;
	enum type type;
	unsigned kinds;
	size_t offset;
	uint64_t min, max; /* of the number; bytes of the text */
} settings[] = {
#define AT(field) offsetof(struct api_transfer_settings, field)
	{"CopyVmStorage", BOOLEAN, API_TRANSFER_EXPORT, AT(copy_storage), 0, 0},
	{"DifferentialBackupBase", TEXT, API_TRANSFER_EXPORT, AT(base), 0, CAT_NS_MAX - 1},
	{"BaseReferencePointCollection", TEXT, API_TRANSFER_REFPOINT, AT(base), 0, CAT_NS_MAX - 1},
	{"BackupIntent", NUMBER, API_TRANSFER_EXPORT | API_TRANSFER_IMPORT, AT(intent), 1, 2},
	{"Format", TEXT, API_TRANSFER_EXPORT, 0, 0, 16},
	{"Compress", BOOLEAN, API_TRANSFER_EXPORT, AT(compress), 0, 0},
	{"Resume", BOOLEAN, API_TRANSFER_EXPORT, AT(resume), 0, 0},
	{"Collection", TEXT, API_TRANSFER_IMPORT, AT(collection), 0, CAT_NAME_MAX - 1},
	{"RateLimit", NUMBER, API_TRANSFER_EXPORT | API_TRANSFER_IMPORT | API_TRANSFER_VERIFY,
	 AT(rate), 0, INT64_MAX},
	{"Synchronous", BOOLEAN,
	 API_TRANSFER_EXPORT | API_TRANSFER_IMPORT | API_TRANSFER_VERIFY | API_TRANSFER_REFPOINT,
	 AT(synchronous), 0, 0},
#undef AT
};

static int read_format(const json_t *value, struct fmt_error *err,
		       struct api_transfer_settings *ret)
{
	static const char *const names[] = {"stream", "raw", "qcow2"};

	for (int i = 0; i < 3; i++)
		if (!strcmp(json_string_value(value), names[i])) {
			ret->format = (enum fmt_export_format)i;
			return 0;
		}
	return fmt_fail(err, -EINVAL, "settings: Format is '%.32s', expected stream, raw or qcow2",
			json_string_value(value));
}

static int read_value(const struct setting *s, const json_t *value, struct fmt_error *err,
		      struct api_transfer_settings *ret)
{
	void *field = (char *)ret + s->offset;
	json_int_t n = json_integer_value(value);

	switch (s->type) {
	case BOOLEAN:
		if (!json_is_boolean(value))
			break;
		*(bool *)field = json_is_true(value);
		return 0;
	case NUMBER:
		if (!json_is_integer(value) || n < (json_int_t)s->min || n > (json_int_t)s->max)
			break;
		*(uint64_t *)field = (uint64_t)n;
		return 0;
	case TEXT:
		if (!json_is_string(value) || json_string_length(value) > s->max)
			break;
		if (!s->offset && !strcmp(s->name, "Format"))
			return read_format(value, err, ret);
		memcpy(field, json_string_value(value), json_string_length(value) + 1);
		return 0;
	}
	return fmt_fail(err, -EINVAL, "settings: %s has a wrong type, or is out of its range",
			s->name);
}

struct reading {
	struct api_transfer_settings s;
	enum api_transfer_kind kind;
};

static int read_setting(void *arg, const char *name, const json_t *value, struct fmt_error *err)
{
	struct reading *rd = arg;

	for (size_t i = 0; i < sizeof(settings) / sizeof(settings[0]); i++)
		if (!strcmp(settings[i].name, name) && (settings[i].kinds & (unsigned)rd->kind))
			return read_value(&settings[i], value, err, &rd->s);
	return fmt_fail(err, -EINVAL, "settings: '%.64s' is unknown", name);
}

int api_transfer_settings_read(const char *json, enum api_transfer_kind kind, struct fmt_error *err,
			       struct api_transfer_settings *ret)
{
	struct reading rd = {.s = {.copy_storage = true}, .kind = kind};
	int r = api_settings_each(json, read_setting, &rd, err);

	if (r == 0)
		*ret = rd.s;
	return r;
}

/* --- pipes --- */

bool api_is_pipe(const char *path)
{
	struct stat st;

	return path && stat(path, &st) == 0 && S_ISFIFO(st.st_mode);
}

int api_pipe_open(const char *path, bool write, struct fmt_error *err, struct api_pipe *ret)
{
	int fd = open(path, (write ? O_WRONLY : O_RDONLY) | O_NONBLOCK | O_CLOEXEC), r;
	struct stat st;

	if (fd < 0)
		return fmt_fail(err, -errno, "%s: cannot open the pipe: %s", path, strerror(errno));
	if (fstat(fd, &st) < 0 || !S_ISFIFO(st.st_mode)) {
		close(fd);
		return fmt_fail(err, -EINVAL, "%s: no pipe", path);
	}
	r = fcntl(fd, F_SETPIPE_SZ, PIPE_BYTES);
	(void)r; /* it only goes slower */
	*ret = (struct api_pipe){.fd = fd, .name = path};
	return 0;
}

void api_pipe_close(struct api_pipe *pipe)
{
	if (pipe->fd >= 0)
		close(pipe->fd);
	pipe->fd = -1;
}

static int wait_for(const struct api_pipe *pipe, short events, struct fmt_error *err)
{
	struct pollfd p = {.fd = pipe->fd, .events = events};
	int n;

	do {
		if (eng_progress_stop(pipe->progress))
			return fmt_fail(err, -ECANCELED, "%s: cancelled", pipe->name);
		n = poll(&p, 1, POLL_MS);
	} while (n == 0 || (n < 0 && errno == EINTR));
	return n < 0 ? fmt_fail(err, -errno, "%s: %s", pipe->name, strerror(errno)) : 0;
}

int api_pipe_write(void *arg, const void *bytes, size_t len, struct fmt_error *err)
{
	const struct api_pipe *pipe = arg;
	const char *p = bytes;
	int r = 0;

	while (r == 0 && len) {
		ssize_t n = write(pipe->fd, p, len);

		if (n > 0) {
			p += n;
			len -= (size_t)n;
		} else if (n < 0 && errno == EAGAIN) {
			r = wait_for(pipe, POLLOUT, err);
		} else if (n < 0 && errno != EINTR) {
			r = fmt_fail(err, -errno, "%s: cannot write: %s", pipe->name,
				     strerror(errno));
		}
	}
	return r;
}

ssize_t api_pipe_read(void *arg, void *buf, size_t len, struct fmt_error *err)
{
	const struct api_pipe *pipe = arg;
	int r;

	for (;;) {
		ssize_t n = read(pipe->fd, buf, len);

		if (n >= 0)
			return n;
		if (errno == EINTR)
			continue;
		if (errno != EAGAIN)
			return fmt_fail(err, -errno, "%s: cannot read: %s", pipe->name,
					strerror(errno));
		r = wait_for(pipe, POLLIN, err);
		if (r < 0)
			return r;
	}
}

/* --- files --- */

struct search {
	char name[256];
	unsigned found;
	bool manifest; /* there is one */
};

static int note_stream(void *arg, const char *name)
{
	static const char suffix[] = ".vmstream";
	struct search *s = arg;
	size_t len = strlen(name);

	s->manifest |= !strcmp(name, "manifest.json");
	if (len >= sizeof(suffix) && len < sizeof(s->name) &&
	    !strcmp(name + len - (sizeof(suffix) - 1), suffix)) {
		strcpy(s->name, name);
		s->found++;
	}
	return 0;
}

static int find_stream(struct eng_io *io, const char *dir, struct fmt_error *err, char **ret)
{
	struct search s = {.found = 0};
	int r = eng_io_list(io, dir, note_stream, &s);

	if (r < 0)
		return fmt_fail(err, r, "%s: %s", dir, strerror(-r));
	if (!s.found && s.manifest)
		return fmt_fail(err, -EINVAL,
				"%s: no stream in it; raw and qcow2 files are compared when they "
				"are imported",
				dir);
	if (s.found != 1)
		return fmt_fail(err, -EINVAL, "%s: %u files *.vmstream, expected one%s", dir,
				s.found, s.found ? "" : ", or manifest.json");
	if (asprintf(ret, "%s/%s", dir, s.name) < 0) {
		*ret = NULL;
		return fmt_fail(err, -ENOMEM, "out of memory");
	}
	return 0;
}

bool api_is_image_export(struct eng_io *io, const char *path)
{
	struct search s = {.found = 0};

	return !api_is_pipe(path) && eng_io_list(io, path, note_stream, &s) == 0 && !s.found &&
	       s.manifest;
}

int api_stream_file_open(struct eng_io *io, const char *path, struct fmt_error *err,
			 struct api_stream_file *ret)
{
	struct api_stream_file f = {.io = io, .pipe.fd = -1};
	struct eng_stat st;
	int r;

	if (api_is_pipe(path)) {
		f.path = strdup(path);
		r = f.path ? api_pipe_open(path, false, err, &f.pipe) : -ENOMEM;
		f.pipe.name = f.path;
		f.is_pipe = true;
	} else {
		r = eng_io_stat(io, path, &st);
		if (r < 0)
			fmt_fail(err, r, "%s: %s", path, strerror(-r));
		else if (st.is_dir)
			r = find_stream(io, path, err, &f.path);
		else
			r = (f.path = strdup(path)) ? 0 : -ENOMEM;
		if (r == 0) {
			r = eng_io_open(io, f.path, 0, &f.file);
			if (r < 0)
				fmt_fail(err, r, "%s: %s", f.path, strerror(-r));
		}
	}
	if (r == 0)
		*ret = f;
	else
		free(f.path);
	return r;
}

void api_stream_file_close(struct api_stream_file *f)
{
	if (f->is_pipe)
		api_pipe_close(&f->pipe);
	else
		eng_io_close(f->io, f->file);
	free(f->path);
}

ssize_t api_stream_file_read(void *arg, void *buf, size_t len, struct fmt_error *err)
{
	struct api_stream_file *f = arg;
	ssize_t n;

	if (f->is_pipe)
		return api_pipe_read(&f->pipe, buf, len, err);
	n = eng_io_pread(f->io, f->file, buf, len, f->offset);
	if (n < 0)
		return fmt_fail(err, (int)n, "%s: cannot read: %s", f->path, strerror((int)-n));
	f->offset += (uint64_t)n;
	return n;
}
