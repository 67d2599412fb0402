/* SPDX-License-Identifier: MIT */
/*
 * nbd_conn.c - a connection's life, and the way of its bytes in. Whoever uses the bytes (nbd_greet.c,
 * then nbd_serve.c) is @consume; it looks at what is there and says whether more would help. The next
 * receive goes to the read buffer or, while a write's payload arrives, straight into its buffer.
 *
 * Everything that ends something kicks the connection; its turn task then flushes, goes on with what
 * was blocked, and frees the connection when nothing is left: there alone (NC-2).
 */
#include <assert.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "serve/nbd/nbd_conn.h"

#define LINGER_NS UINT64_C(500000000) /* NB-50 */

static void run_turn(struct srv_worker *worker, struct srv_task *task);
static void on_received(struct srv_op *op, int32_t result, uint32_t flags);

/* --- lanes --- */

void nbd_conn_enter(struct nbd_conn *c, struct nbd_lane *lane)
{
	c->lane = lane;
	c->next = lane->conns;
	c->link = &lane->conns;
	if (c->next)
		c->next->link = &c->next;
	lane->conns = c;
	nbd_lane_tick(lane);
}

void nbd_conn_leave(struct nbd_conn *c)
{
	assert(!c->receiving && !c->sending && !c->turn.queued); /* NC-1, NC-2 */
	*c->link = c->next;
	if (c->next)
		c->next->link = c->link;
	c->link = NULL;
}

/* --- birth and death --- */

static void name_peer(struct nbd_conn *c, uint64_t id)
{
	struct ucred cred;
	socklen_t len = sizeof(cred);

	if (c->tcp)
		snprintf(c->name, sizeof(c->name), "nbd client %llu (TCP)", (unsigned long long)id);
	else if (getsockopt(c->fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) == 0)
		snprintf(c->name, sizeof(c->name), "nbd client %llu (pid %d, uid %u)",
			 (unsigned long long)id, (int)cred.pid, (unsigned)cred.uid);
	else
		snprintf(c->name, sizeof(c->name), "nbd client %llu", (unsigned long long)id);
}

/* A dead host is noticed in some minutes; small replies do not wait for company. */
static void set_up_tcp(int fd)
{
	int one = 1, idle = 60, interval = 15, count = 4;

	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one));
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof(idle));
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof(interval));
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof(count));
}

static void conn_free(struct nbd_conn *c)
{
	struct srv_nbd *nbd = c->nbd;

	nbd_conn_leave(c);
	nbd_status_fini(c);
	if (c->export) {
		atomic_fetch_sub(&c->export->stats.connections, 1);
		srv_export_put(c->export);
	}
	srv_tls_session_destroy(c->tls);
	nbd_greeting_destroy(c->greeting);
	close(c->fd);
	free(c->iov);
	free(c->in);
	free(c);
	atomic_fetch_sub(&nbd->server->connections, 1);
	pthread_mutex_lock(&nbd->lock);
	if (atomic_fetch_sub(&nbd->live, 1) == 1)
		pthread_cond_signal(&nbd->ended);
	pthread_mutex_unlock(&nbd->lock);
}

void nbd_conn_create(struct srv_nbd *nbd, int fd, bool tcp)
{
	struct nbd_conn *c = calloc(1, sizeof(*c));
	int r = -ENOMEM;

	atomic_fetch_add(&nbd->live, 1);
	if (c) {
		c->nbd = nbd;
		c->fd = fd;
		c->tcp = tcp;
		c->replies_tail = &c->replies;
		c->turn.run = run_turn;
		c->recv_op.done = on_received;
		c->send_op.done = nbd_send_done;
		c->in = malloc(NBD_IN_CAP);
		name_peer(c, ++nbd->ids);
		if (tcp)
			set_up_tcp(fd);
		c->deadline_ns = srv_now_ns() +
				 nbd->server->options.handshake_timeout_s * UINT64_C(1000000000);
		nbd_conn_enter(c, &nbd->lanes[0]);
		r = c->in ? nbd_greet_start(c) : -ENOMEM;
		if (r < 0)
			nbd_conn_fail(c, "out of memory");
		else
			srv_log(SRV_DEBUG, c->name, "connected");
		nbd_conn_kick(c);
		return;
	}
	srv_log(SRV_ERROR, "nbd", "client refused: out of memory");
	close(fd);
	atomic_fetch_sub(&nbd->server->connections, 1);
	atomic_fetch_sub(&nbd->live, 1);
}

/* --- the end --- */

void nbd_conn_break(struct nbd_conn *c)
{
	if (!c->broken) {
		c->broken = true;
		c->ended = true;
		shutdown(c->fd, SHUT_RDWR); /* ends what is in the ring */
	}
	nbd_conn_kick(c);
}

void nbd_conn_fail(struct nbd_conn *c, const char *why)
{
	if (!c->broken)
		srv_log(SRV_WARNING, c->name, "%s%sclosed: %s", c->export ? c->export->name : "",
			c->export ? ": " : "", why);
	nbd_conn_break(c);
}

static bool consume_nothing(struct nbd_conn *c)
{
	c->in_at = c->in_len;
	return true;
}

static void linger(struct nbd_conn *c)
{
	c->lingering = true;
	c->linger_ns = srv_now_ns();
	shutdown(c->fd, SHUT_WR);
	nbd_conn_pump(c);
}

void nbd_conn_drain(struct nbd_conn *c, enum nbd_phase phase)
{
	if (!c->draining && c->filling)
		shutdown(c->fd, SHUT_RD); /* what was begun and not received is not waited for */
	c->draining = true;
	c->consume = consume_nothing;
	if (phase == NBD_CUT || !c->export ||
	    (c->lingering && srv_now_ns() - c->linger_ns > LINGER_NS))
		nbd_conn_break(c);
	nbd_conn_kick(c);
}

/* --- bytes in --- */

static void receive(struct nbd_conn *c, void *to, size_t room)
{
	/* A payload's rest in one completion, however many pieces it comes in. */
	int flags = c->filling && !c->tls ? MSG_WAITALL : 0;

	io_uring_prep_recv(srv_worker_sqe(c->lane->worker, &c->recv_op), c->fd, to, room, flags);
	c->receiving = true;
}

static void *next_room(struct nbd_conn *c, size_t *room)
{
	if (c->filling) {
		*room = c->filling->wire.length - c->filled;
		return c->filling->buf + c->filled;
	}
	c->in_len -= c->in_at;
	if (c->in_len && c->in_at)
		memmove(c->in, c->in + c->in_at, c->in_len);
	c->in_at = 0;
	*room = NBD_IN_CAP - c->in_len;
	return c->in + c->in_len;
}

static void got(struct nbd_conn *c, size_t len)
{
	if (!c->filling) {
		c->in_len += (uint32_t)len;
		return;
	}
	c->filled += (uint32_t)len;
	if (c->filled == c->filling->wire.length)
		nbd_serve_filled(c);
}

/* What TLS has for us: false when there is nothing more. */
static bool decrypt(struct nbd_conn *c)
{
	size_t room;
	void *to = next_room(c, &room);
	int n = srv_tls_read(c->tls, to, room);

	if (n > 0) {
		got(c, (size_t)n);
		return true;
	}
	if (n == 0)
		c->ended = true;
	else if (n != -EAGAIN)
		nbd_conn_fail(c, srv_tls_why(c->tls));
	return false;
}

void nbd_conn_pump(struct nbd_conn *c)
{
	size_t room;
	void *to;

	do {
		if (c->receiving || c->ended || !c->consume(c) || c->ended)
			return;
	} while (c->tls && !c->securing && decrypt(c));
	if (c->ended)
		return;
	to = c->tls ? srv_tls_input(c->tls, &room) : next_room(c, &room);
	receive(c, to, room);
}

static void on_received(struct srv_op *op, int32_t result, uint32_t flags)
{
	struct nbd_conn *c = nbd_of(struct nbd_conn, recv_op, op);

	(void)flags;
	c->receiving = false;
	if (result > 0 && !c->broken) {
		if (c->tls)
			srv_tls_received(c->tls, (size_t)result);
		else
			got(c, (size_t)result);
		nbd_conn_pump(c);
	} else if (result == -EINTR || result == -EAGAIN) {
		nbd_conn_pump(c);
	} else {
		c->ended = true; /* NB-37 */
		if (result < 0)
			nbd_conn_break(c);
	}
	/* Requests kick when they have ended; all else that may have happened is looked at now. */
	if (c->ended || c->tls || c->greeting)
		nbd_conn_kick(c);
}

/* --- its turn --- */

void nbd_conn_kick(struct nbd_conn *c)
{
	srv_worker_defer(c->lane->worker, &c->turn);
}

/* A payload that will never be whole. */
static void drop_filling(struct nbd_conn *c)
{
	struct nbd_req *req = c->filling, *refused = c->refused;

	c->refused = NULL;
	if (refused)
		nbd_req_put(refused);
	if (!req || c->receiving)
		return;
	c->filling = NULL;
	nbd_req_put(req);
}

static void run_turn(struct srv_worker *worker, struct srv_task *task)
{
	struct nbd_conn *c = nbd_of(struct nbd_conn, turn, task);

	(void)worker;
	if (c->blocked && !c->broken) {
		c->blocked = false;
		nbd_conn_pump(c);
	}
	nbd_send_flush(c);
	if (c->ended || c->draining)
		drop_filling(c);
	if (c->broken) {
		if (!c->sending)
			nbd_send_drop(c);
		if (!c->requests && !c->sending && !c->receiving && !c->turn.queued)
			conn_free(c);
		return;
	}
	if (!nbd_send_idle(c) || c->requests)
		return;
	if (c->ended && c->tls && !c->parted) {
		c->parted = true;
		srv_tls_bye(c->tls);
		nbd_conn_kick(c);
	} else if (c->ended) {
		nbd_conn_break(c); /* and once more, to be freed */
	} else if (c->greeting) {
		if (!c->turn.queued)
			nbd_greet_act(c);
	} else if (c->draining && !c->lingering) {
		linger(c);
	}
}
