/* SPDX-License-Identifier: MIT */
/*
 * session.c - calls to the store: vmimg_call() in this process, or a line over the control socket and a
 * line back. What comes over the socket is taken as the server's word, but bounded. One thread.
 */
#include "cli/session.h"
#include "cli/options.h"
#include "cli/output.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define LINE_MAX_BYTES (UINT64_C(1) << 30)

struct cli_session {
	struct cli *cli;
	struct vmimg_service *svc; /* idle: opened here */
	int fd;                    /* served: the connection, else -1 */
	json_int_t id;             /* of the last request */
	char *buffer;              /* what has come; @used bytes, the first @taken dealt with */
	size_t room, used, taken;
};

/* --- the connection --- */

static_assert(CLI_SOCKET_MAX == sizeof(((struct sockaddr_un *)NULL)->sun_path), "an address");

int cli_socket_path(const char *path, char ret[static CLI_SOCKET_MAX], int *dir_fd)
{
	const char *slash = strrchr(path, '/');
	char *dir = NULL;
	int fd = -1;
	int r = 0;

	if (strlen(path) < CLI_SOCKET_MAX) {
		snprintf(ret, CLI_SOCKET_MAX, "%s", path);
	} else {
		dir = slash ? strndup(path, (size_t)(slash - path) + 1) : NULL;
		fd = dir ? open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC) : -1;
		if (fd < 0 || snprintf(ret, CLI_SOCKET_MAX, "/proc/self/fd/%d/%s", fd, slash + 1) >=
				      CLI_SOCKET_MAX)
			r = -ENOENT;
	}
	if (r < 0 && fd >= 0)
		close(fd);
	free(dir);
	if (r == 0)
		*dir_fd = fd;
	return r;
}

static int connect_to(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int dir_fd = -1;
	int fd = -1;
	int r = cli_socket_path(path, address.sun_path, &dir_fd);

	if (r == 0)
		fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (r == 0 && (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0))
		r = -errno;
	if (r < 0 && fd >= 0)
		close(fd);
	if (dir_fd >= 0)
		close(dir_fd);
	return r < 0 ? r : fd;
}

static int connect_to_server(const struct cli *cli)
{
	char *path = NULL;
	int fd;

	if (cli->control)
		return connect_to(cli->control);
	if (asprintf(&path, "%s/control.sock", cli->store) < 0)
		return -ENOMEM;
	fd = connect_to(path);
	free(path);
	return fd;
}

static int send_all(struct cli_session *s, const char *text, size_t len)
{
	while (len) {
		ssize_t n = send(s->fd, text, len, MSG_NOSIGNAL);

		if (n < 0 && errno != EINTR)
			return -errno;
		if (n > 0) {
			text += n;
			len -= (size_t)n;
		}
	}
	return 0;
}

/* Room for more at the end of the buffer. */
static int make_room(struct cli_session *s)
{
	size_t room = s->room ? 2 * s->room : 65536;
	char *buffer;

	if (s->taken) {
		memmove(s->buffer, s->buffer + s->taken, s->used - s->taken);
		s->used -= s->taken;
		s->taken = 0;
	}
	if (s->used < s->room)
		return 0;
	if (room > LINE_MAX_BYTES)
		return -EMSGSIZE;
	buffer = realloc(s->buffer, room);
	if (!buffer)
		return -ENOMEM;
	s->buffer = buffer;
	s->room = room;
	return 0;
}

/*
 * The next line, in the buffer until the next call. @interruptible: -EINTR once the command was
 * interrupted; a reply is waited for, since the call goes on in any case.
 */
static int read_line(struct cli_session *s, bool interruptible, const char **ret, size_t *len)
{
	size_t seen = s->taken;

	for (;;) {
		char *end = s->used > seen ? memchr(s->buffer + seen, '\n', s->used - seen) : NULL;
		ssize_t n;
		int r;

		if (end) {
			*ret = s->buffer + s->taken;
			*len = (size_t)(end - *ret);
			s->taken += *len + 1;
			return 0;
		}
		seen = s->used - s->taken;
		r = make_room(s);
		if (r < 0)
			return r;
		n = recv(s->fd, s->buffer + s->used, s->room - s->used, 0);
		if (n < 0 && errno != EINTR)
			return -errno;
		if (interruptible && cli_interrupted())
			return -EINTR;
		if (n == 0)
			return -ECONNRESET;
		s->used += n > 0 ? (size_t)n : 0;
	}
}

/* The reply to the request just sent: that of its id, or one without, when it could not be read. */
static int read_reply(struct cli_session *s, json_t **ret)
{
	for (;;) {
		const json_t *id;
		const char *line;
		json_t *reply;
		size_t len;
		int r = read_line(s, false, &line, &len);

		if (r < 0)
			return r;
		reply = json_loadb(line, len, 0, NULL);
		if (!json_is_object(reply)) {
			json_decref(reply);
			return -EPROTO;
		}
		id = json_object_get(reply, "id");
		if (!json_object_get(reply, "event") &&
		    (json_is_null(id) || json_integer_value(id) == s->id)) {
			*ret = reply;
			return 0;
		}
		json_decref(reply);
	}
}

json_t *cli_next_event(struct cli_session *s)
{
	const char *line;
	size_t len;
	int r = read_line(s, true, &line, &len);
	json_t *event = r == 0 ? json_loadb(line, len, 0, NULL) : NULL;

	if (r == -ECONNRESET)
		cli_error(s->cli, r, "the server of %s has ended", s->cli->store);
	else if (!event && r != -EINTR)
		cli_error(s->cli, r ? r : -EPROTO, "reading events of %s: %s", s->cli->store,
			  strerror(r ? -r : EPROTO));
	return event;
}

/* --- begin and end --- */

static int session_create(struct cli *cli, struct vmimg_service *svc, int fd,
			  struct cli_session **ret)
{
	struct cli_session *s = calloc(1, sizeof(*s));

	if (!s) {
		if (fd >= 0)
			close(fd);
		vmimg_close(svc);
		return -ENOMEM;
	}
	s->cli = cli;
	s->svc = svc;
	s->fd = fd;
	*ret = s;
	return 0;
}

int cli_begin_served(struct cli *cli, struct cli_session **ret)
{
	int fd = connect_to_server(cli);

	return fd < 0 ? -ENOENT : session_create(cli, NULL, fd, ret);
}

int cli_begin_quietly(struct cli *cli, const struct vmimg_options *options, struct vmimg_error *err,
		      struct cli_session **ret)
{
	struct vmimg_service *svc = NULL;
	struct cli_open_options o;
	uint64_t start = cli_now_ns();
	int r;

	cli_fill_options(cli, options, &o);
	do {
		r = vmimg_open(cli->store, &o.options, err, &svc);
		if (r == -EBUSY && cli_begin_served(cli, ret) == 0)
			return 0;
	} while (r == -EBUSY && cli_wait_for_lock(cli, start));
	return r < 0 ? r : session_create(cli, svc, -1, ret);
}

int cli_begin(struct cli *cli, const struct vmimg_options *options, struct cli_session **ret)
{
	struct vmimg_error err = {0};
	int r;

	if (!cli->store)
		cli_usage_error(cli, "no store: give --store=DIR or set VMIMG_STORE");
	r = cli_begin_quietly(cli, options, &err, ret);
	return r < 0 ? cli_fail(cli, r, &err) : CLI_OK;
}

int cli_end(struct cli *cli, struct cli_session *s, int status)
{
	if (!s)
		return status;
	if (s->fd >= 0)
		close(s->fd);
	status = cli_close(cli, s->svc, status);
	free(s->buffer);
	free(s);
	return status;
}

struct vmimg_service *cli_service(const struct cli_session *s)
{
	return s->svc;
}

/* --- calls --- */

static json_t *call_served(struct cli_session *s, char *request, json_t **reply)
{
	int sent, r;

	/* A server that turned us away has said why, and may have closed. */
	request[strlen(request)] = '\n';
	sent = send_all(s, request, strcspn(request, "\n") + 1);
	r = read_reply(s, reply);
	if (r == 0)
		return NULL;
	if (sent < 0 || r == -ECONNRESET)
		return cli_error_document(-ECONNRESET, "the server has closed the connection");
	return cli_error_document(r, strerror(-r));
}

static json_t *call_here(struct cli_session *s, const char *request, json_t **reply)
{
	char *text = NULL;
	int r = vmimg_call(s->svc, request, &text);

	if (r >= 0) {
		*reply = json_loads(text, 0, NULL);
		r = *reply ? 0 : -ENOMEM;
	}
	vmimg_free(text);
	return r < 0 ? cli_error_document(r, strerror(-r)) : NULL;
}

/* As one line, with room for its end; malloced. */
static char *request_text(struct cli_session *s, const char *method, json_t *params)
{
	json_t *request = json_pack("{s:I, s:s, s:o}", "id", ++s->id, "method", method, "params",
				    params);
	size_t len = request ? json_dumpb(request, NULL, 0, JSON_COMPACT) : 0;
	char *text = len ? calloc(1, len + 2) : NULL;

	if (text)
		json_dumpb(request, text, len, JSON_COMPACT);
	json_decref(request);
	return text;
}

json_t *cli_try(struct cli_session *s, const char *method, json_t *params, json_t **result)
{
	char *request = request_text(s, method, params);
	json_t *reply = NULL, *error, *got;

	/* Words of the command line may be no UTF-8, which JSON cannot carry. */
	if (!request)
		return cli_error_document(-EILSEQ, "an argument is no UTF-8");
	error = s->svc ? call_here(s, request, &reply) : call_served(s, request, &reply);
	if (!error)
		error = json_incref(json_object_get(reply, "error"));
	got = json_object_get(reply, "result");
	if (!error && !got)
		error = cli_error_document(-EPROTO, "the server's reply is none");
	if (!error && result)
		*result = json_incref(got);
	json_decref(reply);
	free(request);
	return error;
}

/* The reply as it came, malloced: the first line that is no event. */
static int reply_text(struct cli_session *s, char *request, char **ret)
{
	const char *line;
	size_t len;
	int r;

	if (s->svc) {
		r = vmimg_call(s->svc, request, ret);
		return r < 0 ? r : 0;
	}
	request[strlen(request)] = '\n';
	r = send_all(s, request, strcspn(request, "\n") + 1);
	do
		r = r == 0 ? read_line(s, false, &line, &len) : r;
	while (r == 0 && !strncmp(line, "{\"event\"", 8));
	if (r < 0)
		return r;
	*ret = strndup(line, len);
	return *ret ? 0 : -ENOMEM;
}

int cli_call_text(struct cli_session *s, const char *method, json_t *params, char **result)
{
	char *request = request_text(s, method, params), *reply = NULL, before[64];
	json_t *document = NULL, *error = NULL;
	size_t len, skip;
	int r = request ? reply_text(s, request, &reply) : -EILSEQ;

	skip = (size_t)snprintf(before, sizeof(before),
				"{\"id\":%" JSON_INTEGER_FORMAT ",\"result\":", s->id);
	len = reply ? strlen(reply) : 0;
	if (r == 0 && len > skip && !strncmp(reply, before, skip) && reply[len - 1] == '}') {
		memmove(reply, reply + skip, len - skip);
		reply[len - skip - 1] = 0;
		*result = reply;
		free(request);
		return CLI_OK;
	}
	if (r == 0) {
		document = json_loads(reply, 0, NULL);
		error = json_incref(json_object_get(document, "error"));
		r = -EPROTO;
	}
	if (!error)
		error = cli_error_document(r, strerror(-r));
	json_decref(document);
	vmimg_free(reply);
	free(request);
	return cli_fail_call(s->cli, error, NULL);
}

int cli_fail_call(struct cli *cli, json_t *error, json_t *more)
{
	const char *message = json_string_value(json_object_get(error, "message"));

	if (more)
		json_object_update(error, more);
	if (!cli->json) {
		fprintf(stderr, "vmimg: %s\n", message ? message : "unknown error");
	} else {
		json_t *document = json_pack("{s:O}", "error", error);

		json_dumpf(document, stderr, 0);
		fputc('\n', stderr);
		json_decref(document);
	}
	json_decref(more);
	json_decref(error);
	return CLI_FAILURE;
}

int cli_call(struct cli_session *s, const char *method, json_t *params, json_t **result)
{
	json_t *error = cli_try(s, method, params, result);

	return error ? cli_fail_call(s->cli, error, NULL) : CLI_OK;
}

/* --- list and show --- */

int cli_list(struct cli *cli, const char *kind, const char *filter,
	     const struct cli_column *columns)
{
	struct cli_session *s = NULL;
	json_t *rows = NULL;
	int status = cli_begin(cli, NULL, &s);

	if (status)
		return status;
	status = cli_call(s, "List", json_pack("{s:s, s:s*}", "Kind", kind, "Filter", filter),
			  &rows);
	return cli_end(cli, s, status ? status : cli_print_rows(cli, rows, columns));
}

int cli_show(struct cli *cli, const char *kind, const char *name)
{
	struct cli_session *s = NULL;
	json_t *document = NULL;
	int status = cli_begin(cli, NULL, &s);

	if (status)
		return status;
	status = cli_call(s, "Describe", json_pack("{s:s, s:s*}", "Kind", kind, "Name", name),
			  &document);
	return cli_end(cli, s, status ? status : cli_print(cli, document));
}

int cli_print_made(struct cli *cli, json_t *document)
{
	if (cli->json)
		return cli_print_json(cli, document);
	json_decref(document);
	return CLI_OK;
}

uint64_t cli_number(const json_t *document, const char *key)
{
	return (uint64_t)json_integer_value(json_object_get(document, key));
}

uint64_t cli_job_state(const json_t *job)
{
	return cli_number(job, "job_state");
}

char *cli_absolute_path(const char *path)
{
	char *here, *absolute = NULL;

	if (path[0] == '/' || !path[0])
		return strdup(path);
	here = getcwd(NULL, 0);
	if (here && asprintf(&absolute, "%s/%s", here, path) < 0)
		absolute = NULL;
	free(here);
	return absolute;
}
