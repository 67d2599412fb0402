/* SPDX-License-Identifier: MIT */
/*
 * nbd_listen.c - the listening sockets: one accept each in the lobby's ring, again after every client.
 * Sockets are made and closed on the main thread, while none is armed.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "serve/nbd/nbd_conn.h"

static void arm(struct nbd_listener *l)
{
	struct nbd_lane *lobby = &l->nbd->lanes[0];
	struct io_uring_sqe *sqe;

	if (l->armed || atomic_load(&l->nbd->phase) != NBD_SERVING)
		return;
	sqe = srv_worker_sqe(lobby->worker, &l->op);
	l->op_data = sqe->user_data;
	io_uring_prep_accept(sqe, l->fd, NULL, NULL, SOCK_CLOEXEC);
	l->armed = true;
	l->paused = false;
}

static void take(struct nbd_listener *l, int fd)
{
	struct srv_server *server = l->nbd->server;

	if (atomic_fetch_add(&server->connections, 1) < server->options.max_connections) {
		atomic_fetch_add(&server->accepted, 1);
		nbd_conn_create(l->nbd, fd, l->tcp);
		return;
	}
	atomic_fetch_sub(&server->connections, 1); /* NB-40 */
	/* One line for each that doubles the number: a flood of clients is none of lines. */
	unsigned refused = (unsigned)atomic_fetch_add(&server->refused, 1) + 1;
	if ((refused & (refused - 1)) == 0)
		srv_log(SRV_WARNING, "nbd", "client refused: %u are connected (%u refused so far)",
			server->options.max_connections, refused);
	close(fd);
}

static void on_accept(struct srv_op *op, int32_t result, uint32_t flags)
{
	struct nbd_listener *l = nbd_of(struct nbd_listener, op, op);

	(void)flags;
	l->armed = false;
	if (result >= 0 && atomic_load(&l->nbd->phase) != NBD_SERVING) {
		close(result);
		return;
	}
	if (result >= 0) {
		take(l, result);
	} else if (result != -ECANCELED && result != -ECONNABORTED && result != -EINTR &&
		   result != -EAGAIN) {
		srv_log(SRV_ERROR, "nbd", "cannot accept a client: %s", strerror(-result));
		l->paused = true;
		nbd_lane_tick(&l->nbd->lanes[0]);
		return;
	}
	arm(l);
}

void nbd_listen_arm(struct srv_nbd *nbd)
{
	for (unsigned i = 0; i < nbd->nlisteners; i++)
		arm(&nbd->listeners[i]);
}

static void on_cancel(struct srv_op *op, int32_t result, uint32_t flags)
{
	(void)op;
	(void)result;
	(void)flags;
}

void nbd_listen_cancel(struct srv_nbd *nbd)
{
	static struct srv_op cancel = {.done = on_cancel};

	for (unsigned i = 0; i < nbd->nlisteners; i++)
		if (nbd->listeners[i].armed)
			io_uring_prep_cancel64(srv_worker_sqe(nbd->lanes[0].worker, &cancel),
					       nbd->listeners[i].op_data, 0);
}

void nbd_listen_close(struct srv_nbd *nbd)
{
	for (unsigned i = 0; i < nbd->nlisteners; i++) {
		if (nbd->listeners[i].path)
			unlink(nbd->listeners[i].path);
		close(nbd->listeners[i].fd);
	}
	nbd->nlisteners = 0;
}

static struct nbd_listener *add(struct srv_nbd *nbd, int fd, bool tcp)
{
	struct nbd_listener *l = &nbd->listeners[nbd->nlisteners++];

	*l = (struct nbd_listener){.op.done = on_accept, .nbd = nbd, .fd = fd, .tcp = tcp};
	return l;
}

static int listen_unix(struct srv_nbd *nbd, struct vmimg_error *err)
{
	const struct serve_options *o = &nbd->server->options;
	struct nbd_listener *l;
	bool passed;
	int fd;

	if (o->nbd_socket && !*o->nbd_socket)
		return 0;
	if (snprintf(nbd->socket_path, sizeof(nbd->socket_path), "%s%s",
		     o->nbd_socket ? o->nbd_socket : o->store,
		     o->nbd_socket ? "" : "/nbd.sock") >= (int)sizeof(nbd->socket_path))
		return srv_fail(err, -ENAMETOOLONG, "NBD: the socket's path is too long");
	fd = srv_listen_unix(nbd->socket_path, o->socket_mode, "nbd", err, &passed);
	if (fd < 0)
		return fd;
	l = add(nbd, fd, false);
	if (!passed)
		l->path = nbd->socket_path;
	return 0;
}

int nbd_listen(struct srv_nbd *nbd, struct vmimg_error *err)
{
	const char *tcp = nbd->server->options.nbd_tcp;
	int fds[NBD_LISTENERS - 1];
	int r = listen_unix(nbd, err);

	if (r == 0 && tcp)
		r = srv_listen_tcp(tcp, fds, NBD_LISTENERS - 1, err);
	for (int i = 0; i < r; i++)
		add(nbd, fds[i], true);
	return r < 0 ? r : 0;
}
