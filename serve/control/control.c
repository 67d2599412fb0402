/* SPDX-License-Identifier: MIT */
/*
 * control.c - the control socket: accepts whoever may (CP-9, CP-12), keeps the list of connections,
 * and ends it all. The acceptor's thread also joins the threads of
 * connections that have ended.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "serve/control/control.h"

#define ACCEPT_PAUSE_MS 100 /* when descriptors or memory are short */

static void wake(int fd)
{
	eventfd_write(fd, 1);
}

/* --- connections --- */

static void conn_destroy(struct srv_conn *conn)
{
	if (!conn)
		return;
	for (; conn->nevents; conn->nevents--)
		free(conn->events[conn->first_event++ % SRV_CONTROL_EVENTS]);
	if (conn->wake >= 0)
		close(conn->wake);
	if (conn->fd >= 0)
		close(conn->fd);
	free(conn->buffer);
	free(conn);
}

void srv_control_left(struct srv_conn *conn)
{
	struct srv_control *control = conn->control;
	struct srv_conn **at = &control->conns;

	pthread_mutex_lock(&control->lock);
	while (*at != conn)
		at = &(*at)->next;
	*at = conn->next;
	conn->next = control->ended;
	control->ended = conn;
	control->nconns--;
	pthread_cond_broadcast(&control->left);
	wake(control->wake);
	pthread_mutex_unlock(&control->lock);
}

/* Each stays in the list until it is gone. The only thread that takes from it. */
static void join_ended(struct srv_control *control)
{
	struct srv_conn *conn, **at;

	pthread_mutex_lock(&control->lock);
	while ((conn = control->ended)) {
		pthread_mutex_unlock(&control->lock);
		pthread_join(conn->thread, NULL);
		pthread_mutex_lock(&control->lock);
		for (at = &control->ended; *at != conn; at = &(*at)->next)
			;
		*at = conn->next;
		conn_destroy(conn);
	}
	pthread_mutex_unlock(&control->lock);
}

/* CP-9: 0, or -EACCES. */
static int check_peer(int fd)
{
	struct ucred peer;
	socklen_t len = sizeof(peer);

	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) < 0)
		return -EACCES;
	if (peer.uid == geteuid() || peer.uid == 0)
		return 0;
	srv_log(SRV_WARNING, "control", "refused user %u (process %d)", (unsigned)peer.uid,
		(int)peer.pid);
	return -EACCES;
}

static void turn_away(int fd, int code, const char *message)
{
	char *text = srv_control_refusal(code, message);

	if (text)
		srv_conn_send(fd, text, strlen(text), 0);
	free(text);
	close(fd);
}

/* Takes @fd when it succeeds. */
static int start_conn(struct srv_control *control, int fd)
{
	struct srv_conn *conn = calloc(1, sizeof(*conn));
	int r = -ENOMEM;

	if (!conn)
		return r;
	conn->control = control;
	conn->fd = -1;
	conn->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	conn->buffer = malloc(SRV_CONTROL_LINE_MAX + 2);
	if (conn->wake < 0 || !conn->buffer)
		goto out;
	conn->fd = fd;
	pthread_mutex_lock(&control->lock);
	r = -pthread_create(&conn->thread, NULL, srv_conn_run, conn);
	if (r == 0) {
		conn->next = control->conns;
		control->conns = conn;
		control->nconns++;
		conn = NULL; /* its thread's, and the list's */
	} else {
		conn->fd = -1;
	}
	pthread_mutex_unlock(&control->lock);
out:
	conn_destroy(conn);
	return r;
}

static void accept_one(struct srv_control *control)
{
	int fd = accept4(control->fd, NULL, NULL, SOCK_CLOEXEC), r;
	bool full;

	if (fd < 0) {
		if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS)
			poll(&(struct pollfd){.fd = control->wake, .events = POLLIN}, 1,
			     ACCEPT_PAUSE_MS);
		return;
	}
	pthread_mutex_lock(&control->lock);
	full = control->nconns >= SRV_CONTROL_CONNECTIONS;
	pthread_mutex_unlock(&control->lock);
	r = check_peer(fd);
	if (r < 0) {
		turn_away(fd, r, "only the server's user and root may use this socket");
	} else if (full) {
		turn_away(fd, -EBUSY, "64 connections are the most");
	} else {
		r = start_conn(control, fd);
		if (r < 0)
			turn_away(fd, r, "the server has no resources left");
	}
}

static void *run_acceptor(void *arg)
{
	struct srv_control *control = arg;
	struct pollfd fds[] = {{.fd = control->wake, .events = POLLIN},
			       {.fd = control->fd, .events = POLLIN}};
	eventfd_t ignored;
	bool stopping = false;

	pthread_setname_np(pthread_self(), "vmimg-control");
	while (!stopping) {
		if (poll(fds, 2, -1) < 0 && errno != EINTR)
			break;
		eventfd_read(control->wake, &ignored);
		join_ended(control);
		pthread_mutex_lock(&control->lock);
		stopping = control->stopping;
		pthread_mutex_unlock(&control->lock);
		if (!stopping && (fds[1].revents & POLLIN))
			accept_one(control);
	}
	return NULL;
}

/* --- start and stop --- */

static void control_destroy(struct srv_control *control)
{
	if (!control)
		return;
	if (control->fd >= 0)
		close(control->fd);
	if (control->fd >= 0 && !control->passed)
		unlink(control->path);
	if (control->wake >= 0)
		close(control->wake);
	pthread_cond_destroy(&control->left);
	pthread_mutex_destroy(&control->lock);
	free(control->path);
	free(control);
}

static char *socket_path(const struct srv_server *server)
{
	const char *given = server->options.control_socket;
	char *path = NULL;

	if (given)
		return strdup(given);
	if (asprintf(&path, "%s/control.sock", server->options.store) < 0)
		return NULL;
	return path;
}

static struct srv_control *control_create(struct srv_server *server)
{
	struct srv_control *control = calloc(1, sizeof(*control));
	pthread_condattr_t attr;

	if (!control)
		return NULL;
	control->server = server;
	control->fd = -1;
	control->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	control->path = socket_path(server);
	pthread_mutex_init(&control->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&control->left, &attr);
	pthread_condattr_destroy(&attr);
	if (control->path && control->wake >= 0)
		return control;
	control_destroy(control);
	return NULL;
}

int srv_control_start(struct srv_server *server, struct vmimg_error *err, struct srv_control **ret)
{
	struct srv_control *control;
	int r;

	if (server->options.control_socket && !*server->options.control_socket)
		return 0;
	control = control_create(server);
	if (!control)
		return srv_fail(err, -ENOMEM, "control: out of memory or descriptors");
	r = srv_listen_unix(control->path, server->options.socket_mode, "control", err,
			    &control->passed);
	if (r < 0)
		goto out;
	control->fd = r;
	fcntl(control->fd, F_SETFL, fcntl(control->fd, F_GETFL) | O_NONBLOCK);
	r = -pthread_create(&control->acceptor, NULL, run_acceptor, control);
	if (r < 0) {
		srv_fail(err, r, "control: cannot start a thread: %s", strerror(-r));
		goto out;
	}
	*ret = control;
	control = NULL;
out:
	control_destroy(control);
	return r;
}

/* Whether all connections have ended by @deadline. */
static bool wait_until_left(struct srv_control *control, const struct timespec *deadline)
{
	int r = 0;

	pthread_mutex_lock(&control->lock);
	while (control->nconns && r == 0)
		r = deadline ? pthread_cond_timedwait(&control->left, &control->lock, deadline)
			     : pthread_cond_wait(&control->left, &control->lock);
	pthread_mutex_unlock(&control->lock);
	return r == 0;
}

static void shut_connections(struct srv_control *control, int how)
{
	pthread_mutex_lock(&control->lock);
	for (struct srv_conn *conn = control->conns; conn; conn = conn->next)
		shutdown(conn->fd, how);
	pthread_mutex_unlock(&control->lock);
}

/* CP-15: calls that run end and are answered; whoever does not take the answer is cut off. */
void srv_control_stop(struct srv_control *control)
{
	struct timespec deadline;

	if (!control)
		return;
	clock_gettime(CLOCK_MONOTONIC, &deadline);
	deadline.tv_sec += control->server->options.drain_timeout_s;
	pthread_mutex_lock(&control->lock);
	control->stopping = true;
	pthread_mutex_unlock(&control->lock);
	wake(control->wake);
	pthread_join(control->acceptor, NULL);
	shut_connections(control, SHUT_RD);
	if (!wait_until_left(control, &deadline)) {
		shut_connections(control, SHUT_RDWR);
		wait_until_left(control, NULL);
	}
	join_ended(control);
	control_destroy(control);
}
