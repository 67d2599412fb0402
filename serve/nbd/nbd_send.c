/* SPDX-License-Identifier: MIT */
/*
 * nbd_send.c - the way of a connection's bytes out: the greeting's, then the replies in the order in
 * which they ended, as many as there are in one call. Tried at once, and given to the ring only when
 * the socket is full: a send that does not have to wait costs one system call and no turn of the loop.
 * Large replies go one a turn, so that the requests which a client sends for those it has got reach the
 * disk while the next ones are copied.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "serve/nbd/nbd_conn.h"

#define OUT_KEEP  (64u << 10)
#define IOV_NOW   256u
#define TURN_MAX  (64u << 10) /* bytes after which a turn sends no further reply */
#define IOV_RING  64u
#define TLS_AHEAD (256u << 10) /* TL-6 */

/* --- what there is --- */

static struct nbd_out *greeting_out(const struct nbd_conn *c)
{
	return c->greeting ? &c->greeting->hs.out : NULL;
}

static unsigned add(struct iovec *iov, unsigned n, void *base, size_t len, size_t *skip)
{
	if (*skip >= len) {
		*skip -= len;
		return n;
	}
	iov[n] = (struct iovec){(char *)base + *skip, len - *skip};
	*skip = 0;
	return n + 1;
}

/* The next bytes to go out. */
static unsigned gather(const struct nbd_conn *c, struct iovec *iov, unsigned max, size_t *total)
{
	const struct nbd_out *out = greeting_out(c);
	size_t skip = c->first_sent;
	unsigned n = 0, counted = 0;

	*total = 0;
	if (out && out->sent < out->len)
		iov[n++] = (struct iovec){out->bytes + out->sent, out->len - out->sent};
	for (struct nbd_req *r = c->replies; r && n + 2 <= max && *total < TURN_MAX; r = r->next) {
		n = add(iov, n, r->head, r->head_len, &skip);
		n = add(iov, n, r->buf, r->payload, &skip);
		for (; counted < n; counted++)
			*total += iov[counted].iov_len;
	}
	for (; counted < n; counted++)
		*total += iov[counted].iov_len;
	return n;
}

static size_t advance_greeting(struct nbd_conn *c, size_t len)
{
	struct nbd_out *out = greeting_out(c);
	size_t n;

	if (!out)
		return len;
	n = out->len - out->sent < len ? out->len - out->sent : len;
	out->sent += n;
	if (out->sent == out->len) {
		out->sent = out->len = 0;
		if (out->cap > OUT_KEEP) { /* a long list: no client keeps that */
			free(out->bytes);
			*out = (struct nbd_out){0};
		}
	}
	return len - n;
}

/* @len bytes of what gather() gave are gone. */
static void advance(struct nbd_conn *c, size_t len)
{
	len = advance_greeting(c, len) + c->first_sent;
	while (c->replies && len >= c->replies->head_len + (size_t)c->replies->payload) {
		struct nbd_req *r = c->replies;

		len -= r->head_len + (size_t)r->payload;
		c->replies = r->next;
		if (!c->replies)
			c->replies_tail = &c->replies;
		nbd_req_put(r);
	}
	c->first_sent = len;
}

bool nbd_send_idle(const struct nbd_conn *c)
{
	const struct nbd_out *out = greeting_out(c);
	size_t len = 0;

	if (c->tls)
		srv_tls_output(c->tls, &len);
	return !c->sending && !c->replies && !len && (!out || out->sent == out->len);
}

void nbd_send_drop(struct nbd_conn *c)
{
	while (c->replies) {
		struct nbd_req *r = c->replies;

		c->replies = r->next;
		nbd_req_put(r);
	}
	c->replies_tail = &c->replies;
	c->first_sent = 0;
}

/* --- TLS --- */

/* Encrypts as much as may be ahead of the socket, once the socket has taken what was there. */
static void encrypt(struct nbd_conn *c)
{
	struct iovec iov[IOV_RING];
	size_t total, pending, done = 0;
	unsigned n;

	srv_tls_output(c->tls, &pending);
	if (pending || c->securing)
		return;
	n = gather(c, iov, IOV_RING, &total);
	for (unsigned i = 0; i < n && done < TLS_AHEAD; i++) {
		size_t len = iov[i].iov_len < TLS_AHEAD - done ? iov[i].iov_len : TLS_AHEAD - done;

		if (srv_tls_write(c->tls, iov[i].iov_base, len) < 0) {
			nbd_conn_fail(c, srv_tls_why(c->tls));
			return;
		}
		done += len;
	}
	if (done)
		advance(c, done);
}

static unsigned tls_gather(struct nbd_conn *c, struct iovec *iov, size_t *total)
{
	encrypt(c);
	iov->iov_base = (void *)srv_tls_output(c->tls, total);
	iov->iov_len = *total;
	return *total ? 1 : 0;
}

/* --- the socket --- */

static unsigned next_bytes(struct nbd_conn *c, struct iovec *iov, unsigned max, size_t *total)
{
	return c->tls ? tls_gather(c, iov, total) : gather(c, iov, max, total);
}

static void sent(struct nbd_conn *c, size_t len)
{
	if (c->tls)
		srv_tls_sent(c->tls, len);
	else
		advance(c, len);
}

static void send_through_ring(struct nbd_conn *c)
{
	size_t total;
	struct io_uring_sqe *sqe;

	if (!c->iov)
		c->iov = malloc(IOV_RING * sizeof(struct iovec));
	if (!c->iov) {
		nbd_conn_fail(c, "out of memory");
		return;
	}
	c->msg = (struct msghdr){.msg_iov = c->iov};
	c->msg.msg_iovlen = next_bytes(c, c->iov, IOV_RING, &total);
	sqe = srv_worker_sqe(c->lane->worker, &c->send_op);
	io_uring_prep_sendmsg(sqe, c->fd, &c->msg, MSG_NOSIGNAL | MSG_WAITALL);
	c->sending = true;
}

void nbd_send_done(struct srv_op *op, int32_t result, uint32_t flags)
{
	struct nbd_conn *c = nbd_of(struct nbd_conn, send_op, op);

	(void)flags;
	c->sending = false;
	if (result >= 0)
		sent(c, (size_t)result);
	else if (result != -EINTR && result != -EAGAIN)
		nbd_conn_break(c);
	nbd_conn_kick(c);
}

void nbd_send_flush(struct nbd_conn *c)
{
	struct iovec iov[IOV_NOW];
	size_t total;

	while (!c->sending && !c->broken) {
		struct msghdr msg = {.msg_iov = iov};
		ssize_t n;

		msg.msg_iovlen = next_bytes(c, iov, IOV_NOW, &total);
		if (!total || c->broken)
			return;
		if (total >= TURN_MAX) /* the disk works while this is copied */
			vmimg_queue_submit(srv_worker_queue(c->lane->worker), NULL, 0);
		n = sendmsg(c->fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
		if (n >= 0)
			sent(c, (size_t)n);
		else if (errno != EAGAIN && errno != EINTR)
			nbd_conn_break(c); /* the client is gone */
		if (n < (ssize_t)total && !c->broken) {
			send_through_ring(c);
		} else if (total >= TURN_MAX && !nbd_send_idle(c)) {
			nbd_conn_kick(c);
			return;
		}
	}
}
