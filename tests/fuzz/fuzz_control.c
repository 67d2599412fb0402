/* SPDX-License-Identifier: MIT */
/*
 * fuzz_control.c - any bytes as what a client of the control socket sends: a real socket, a real store
 * on tmpfs, the server's own threads. Invariants:
 * - no crash, no undefined behaviour, no hang: the connection ends once the client has said all
 * - every line that comes back is one JSON object: an event, or an id and either a result or an error
 *   with a code and a message (CP-2, CP-3)
 * - nothing is leaked, as seen whenever the store is closed: at other times threads are at work
 * - as many replies as lines, but for empty ones and those after a line that is too long
 */
#include <errno.h>
#include <ftw.h>
#include <jansson.h>
#include <sanitizer/lsan_interface.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "serve/control/control.h"

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

#define RENEW_AFTER 300u /* results: a store that has grown answers slowly */

static char scratch[64], store[80], path[96];
static struct srv_server server;
static unsigned results;

static void check(bool ok, const char *what, const char *detail)
{
	if (!ok) {
		fprintf(stderr, "violated: %s: %s\n", what, detail);
		abort();
	}
}

static int remove_entry(const char *name, const struct stat *st, int type, struct FTW *ftw)
{
	(void)st;
	(void)type;
	(void)ftw;
	return remove(name);
}

static void stop(void)
{
	srv_control_stop(server.control);
	srv_exports_destroy(server.exports);
	check(vmimg_close(server.svc) == 0, "the service closes", "");
	nftw(scratch, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
	server.svc = NULL;
	check(__lsan_do_recoverable_leak_check() == 0, "nothing is leaked", scratch);
}

static void start(void)
{
	struct vmimg_error err = {0};

	snprintf(scratch, sizeof(scratch), "/dev/shm/vmimg-fuzz-XXXXXX");
	check(mkdtemp(scratch) != NULL, "a directory", scratch);
	snprintf(store, sizeof(store), "%s/store", scratch);
	snprintf(path, sizeof(path), "%s/control.sock", scratch);
	check(vmimg_store_init(store, &err) == 0, "a store", err.message);
	server = (struct srv_server){.options = {.store = store,
						 .control_socket = path,
						 .socket_mode = 0600,
						 .drain_timeout_s = 5}};
	check(vmimg_open(store, NULL, &err, &server.svc) == 0, "a service", err.message);
	check(srv_exports_create(&server, &server.exports) == 0, "exports", "");
	check(srv_control_start(&server, &err, &server.control) == 0, "a socket", err.message);
	results = 0;
}

/* The fuzzer's own look at leaks, after each input, takes what threads hold on their way for one. */
int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	static char flag[] = "-detect_leaks=0";
	char **args = calloc((size_t)*argc + 2, sizeof(*args));

	if (!args)
		return 0;
	memcpy(args, *argv, (size_t)*argc * sizeof(*args));
	args[(*argc)++] = flag;
	*argv = args;
	return 0;
}

static void check_line(const char *line, size_t len)
{
	json_t *reply = json_loadb(line, len, 0, NULL), *error;

	check(json_is_object(reply), "a line is an object", line);
	if (!json_object_get(reply, "event")) {
		error = json_object_get(reply, "error");
		check(json_object_size(reply) == 2 && json_object_get(reply, "id"),
		      "a reply has an id", line);
		check((error != NULL) != (json_object_get(reply, "result") != NULL),
		      "a reply has a result or an error", line);
		if (error)
			check(json_string_length(json_object_get(error, "message")) > 0 &&
				      json_object_get(error, "code"),
			      "an error has a code and a message", line);
		results += !error;
	}
	json_decref(reply);
}

/* How many replies the lines of the input ask for. */
static size_t count_lines(const uint8_t *data, size_t len)
{
	size_t n = 0;

	while (len) {
		const uint8_t *end = memchr(data, '\n', len);
		size_t line = end ? (size_t)(end - data) : len;
		size_t blank = 0;

		while (blank < line && memchr(" \t\r", data[blank], 3))
			blank++;
		if (line > SRV_CONTROL_LINE_MAX)
			return n + 1; /* and the end */
		n += end && blank < line;
		data += line + (end != NULL);
		len -= line + (end != NULL);
	}
	return n;
}

/* Sends it all and takes what comes, at the same time: neither end may wait for the other. */
static char *exchange(int fd, const uint8_t *data, size_t len, size_t *used)
{
	size_t room = 1 << 16;
	char *got = malloc(room);

	*used = 0;
	for (;;) {
		ssize_t n = len ? send(fd, data, len, MSG_DONTWAIT | MSG_NOSIGNAL) : 0;

		if (n > 0) {
			data += n;
			len -= (size_t)n;
		}
		if (!len)
			shutdown(fd, SHUT_WR);
		if (*used + 4096 > room)
			got = realloc(got, room *= 2);
		n = recv(fd, got + *used, 4096, len ? MSG_DONTWAIT : 0);
		if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
			return got;
		*used += n > 0 ? (size_t)n : 0;
	}
}

/* Until the server has let go of the client: what it still holds would look like a leak. */
static void settle(void)
{
	bool busy = true;

	while (busy) {
		pthread_mutex_lock(&server.control->lock);
		busy = server.control->conns || server.control->ended;
		pthread_mutex_unlock(&server.control->lock);
		if (busy)
			usleep(20);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	size_t used, expected, events = 0, lines = 0;
	char *got, *at, *end, counts[512];
	const char *last = "";
	int fd;

	if (!server.svc) {
		start();
		atexit(stop);
	}
	snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	check(connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0, "the server listens",
	      path);
	got = exchange(fd, data, len, &used);
	close(fd);
	settle();
	for (at = got; (end = memchr(at, '\n', used - (size_t)(at - got))); at = end + 1) {
		*end = 0;
		check_line(at, (size_t)(end - at));
		events += !strncmp(at, "{\"event\"", 8) || strstr(at, ",\"event\":") != NULL;
		lines++;
		last = at;
	}
	check(at == got + used, "lines are whole", got);
	expected = count_lines(data, len);
	snprintf(counts, sizeof(counts),
		 "%zu lines, %zu of them events, %zu asked for; the last: %.300s", lines, events,
		 expected, last);
	check(lines - events <= expected && (events || lines == expected), "a reply a line",
	      counts);
	free(got);
	if (results > RENEW_AFTER) {
		stop();
		start();
	}
	return 0;
}
