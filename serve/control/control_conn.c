/* SPDX-License-Identifier: MIT */
/*
 * control_conn.c - one client of the control socket, on a thread of its own: lines in, replies and
 * events out, each bounded in size and time (CP-10..CP-18). What it sends is not trusted; what it does
 * holds up nobody else.
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/time.h>

#include "serve/control/control.h"

#define PATIENCE_S      30u  /* CP-13 */
#define IDLE_S          600u /* CP-13 */
#define EVENT_TIMEOUT_S 5u   /* CP-18 */
#define SECOND_NS       UINT64_C(1000000000)

static const char dropped_line[] = "{\"event\":\"dropped\"}\n";

int srv_conn_send(int fd, const char *text, size_t len, unsigned timeout_s)
{
	struct timeval patience = {.tv_sec = timeout_s};
	int flags = MSG_NOSIGNAL | (timeout_s ? 0 : MSG_DONTWAIT);

	if (timeout_s)
		setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
	while (len) {
		ssize_t n = send(fd, text, len, flags);

		if (n < 0 && errno != EINTR)
			return -errno;
		if (n > 0) {
			text += n;
			len -= (size_t)n;
		}
	}
	return 0;
}

/* --- events --- */

/* The library's thread: only queues. */
static void on_event(void *arg, const char *json)
{
	struct srv_conn *conn = arg;
	char *text = NULL;

	if (asprintf(&text, "%s\n", json) < 0)
		text = NULL;
	pthread_mutex_lock(&conn->control->lock);
	if (!text || conn->dropped || conn->nevents == SRV_CONTROL_EVENTS) {
		conn->dropped = true;
	} else {
		conn->events[(conn->first_event + conn->nevents++) % SRV_CONTROL_EVENTS] = text;
		text = NULL;
	}
	pthread_mutex_unlock(&conn->control->lock);
	free(text);
	eventfd_write(conn->wake, 1);
}

int srv_conn_subscribe(struct srv_conn *conn, struct vmimg_error *err)
{
	if (conn->subscription)
		return 0;
	return vmimg_subscribe(conn->control->server->svc, on_event, conn, err,
			       &conn->subscription);
}

/* The next event, the caller's; or NULL. */
static char *take_event(struct srv_conn *conn, bool *dropped)
{
	char *text = NULL;

	pthread_mutex_lock(&conn->control->lock);
	*dropped = conn->dropped;
	if (!conn->dropped && conn->nevents) {
		text = conn->events[conn->first_event % SRV_CONTROL_EVENTS];
		conn->first_event = (conn->first_event + 1) % SRV_CONTROL_EVENTS;
		conn->nevents--;
	}
	pthread_mutex_unlock(&conn->control->lock);
	return text;
}

/* 0, or negative: the connection has to end. */
static int send_events(struct srv_conn *conn)
{
	bool dropped = false;
	eventfd_t ignored;
	char *text;
	int r = 0;

	eventfd_read(conn->wake, &ignored);
	while (r == 0 && (text = take_event(conn, &dropped))) {
		r = srv_conn_send(conn->fd, text, strlen(text), EVENT_TIMEOUT_S);
		free(text);
	}
	if (r == 0 && dropped) {
		srv_conn_send(conn->fd, dropped_line, sizeof(dropped_line) - 1, EVENT_TIMEOUT_S);
		r = -ENOBUFS;
	}
	return r;
}

/* --- lines --- */

static int send_reply(struct srv_conn *conn, char *reply)
{
	size_t len = reply ? strlen(reply) : 0;
	int r = -ENOMEM;

	if (reply) {
		reply[len] = '\n'; /* its end is not needed any more */
		r = srv_conn_send(conn->fd, reply, len + 1, PATIENCE_S);
	}
	free(reply);
	return r;
}

static int refuse(struct srv_conn *conn, const char *message)
{
	char *text = srv_control_refusal(-EINVAL, message);
	int r = text ? srv_conn_send(conn->fd, text, strlen(text), PATIENCE_S) : -ENOMEM;

	free(text);
	return r;
}

/* One line of @len bytes, ended by a NUL in place of its line feed. */
static int handle_line(struct srv_conn *conn, const char *line, size_t len)
{
	if (strspn(line, " \t\r") == len)
		return 0;
	if (strlen(line) != len)
		return refuse(conn, "request: a NUL byte in the line");
	return send_reply(conn, srv_control_answer(conn, line));
}

static bool is_stopping(struct srv_conn *conn)
{
	bool stopping;

	pthread_mutex_lock(&conn->control->lock);
	stopping = conn->control->stopping;
	pthread_mutex_unlock(&conn->control->lock);
	return stopping;
}

/* All whole lines that are there, and the events between them. Negative: the end. */
static int handle_lines(struct srv_conn *conn)
{
	size_t done = 0;
	char *end;
	int r = 0;

	while (r == 0 && (end = memchr(conn->buffer + done, '\n', conn->used - done))) {
		if (is_stopping(conn)) /* CP-15 */
			return -ESHUTDOWN;
		*end = 0;
		r = handle_line(conn, conn->buffer + done, (size_t)(end - conn->buffer) - done);
		done = (size_t)(end - conn->buffer) + 1;
		if (r == 0)
			r = send_events(conn);
	}
	if (r < 0)
		return r;
	conn->used -= done;
	memmove(conn->buffer, conn->buffer + done, conn->used);
	if (done)
		conn->line_start_ns = srv_now_ns();
	if (conn->used > SRV_CONTROL_LINE_MAX) {
		refuse(conn, "request: longer than 65536 bytes");
		return -EMSGSIZE;
	}
	return 0;
}

static int receive(struct srv_conn *conn)
{
	ssize_t n = recv(conn->fd, conn->buffer + conn->used, SRV_CONTROL_LINE_MAX + 1 - conn->used,
			 MSG_DONTWAIT);

	if (n < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : -errno;
	if (n == 0)
		return -ECONNRESET;
	if (!conn->used)
		conn->line_start_ns = srv_now_ns();
	conn->used += (size_t)n;
	return handle_lines(conn);
}

/* Milliseconds until patience ends, at least 0; -1: never. */
static int time_left(struct srv_conn *conn, uint64_t since_ns)
{
	uint64_t limit = since_ns + IDLE_S * SECOND_NS, now = srv_now_ns();

	if (conn->used)
		limit = conn->line_start_ns + PATIENCE_S * SECOND_NS;
	else if (conn->subscription)
		return -1;
	return limit > now ? (int)((limit - now) / 1000000 + 1) : 0;
}

void *srv_conn_run(void *arg)
{
	struct srv_conn *conn = arg;
	uint64_t since_ns = srv_now_ns();
	int r = 0;

	pthread_setname_np(pthread_self(), "vmimg-client");
	while (r == 0) {
		struct pollfd fds[] = {{.fd = conn->fd, .events = POLLIN},
				       {.fd = conn->wake, .events = POLLIN}};
		int n = poll(fds, 2, time_left(conn, since_ns));

		if (n < 0 && errno != EINTR)
			r = -errno;
		else if (n == 0)
			r = -ETIMEDOUT;
		if (n > 0 && fds[1].revents)
			r = send_events(conn);
		if (n > 0 && r == 0 && fds[0].revents) {
			r = receive(conn);
			since_ns = srv_now_ns();
		}
	}
	shutdown(conn->fd, SHUT_RDWR);
	vmimg_unsubscribe(conn->subscription);
	srv_control_left(conn);
	return NULL;
}
