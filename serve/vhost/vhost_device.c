/* SPDX-License-Identifier: MIT */
/*
 * vhost_device.c - a connected front-end: its socket, its messages one after another, its turns, its
 * end. The next message is read when the last one has been answered, so that a front-end that only
 * talks costs no memory. The export's worker.
 *
 * End (VU-6): closing -> (nothing in flight) torn: events dropped, sockets shut down -> (no operation
 * under way) freed. Every completion wakes the turn, and the turn alone goes on to the next step.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "serve/vhost/vhost.h"

#define device_of(ptr, member)                                                                     \
	((struct srv_vhost_device *)((char *)(ptr)-offsetof(struct srv_vhost_device, member)))

static void receive(struct srv_vhost_device *device);

void srv_vhost_device_wake(struct srv_vhost_device *device)
{
	srv_worker_defer(device->worker, &device->turn);
}

void srv_vhost_device_op_ended(struct srv_vhost_device *device)
{
	device->ops--;
	if (device->closing)
		srv_vhost_device_wake(device);
}

void srv_vhost_device_stop(struct srv_vhost_device *device)
{
	device->closing = true;
	srv_vhost_device_wake(device);
}

static void fail(struct srv_vhost_device *device, const char *what, int code)
{
	if (!device->closing)
		srv_log(SRV_WARNING, device->export->name, "vhost-user: %s%s%s", what,
			code < 0 ? ": " : "", code < 0 ? strerror(-code) : "");
	srv_vhost_device_stop(device);
}

static void close_fds(struct srv_vhost_message *m)
{
	for (unsigned i = 0; i < m->nfds; i++)
		if (m->fds[i] >= 0)
			close(m->fds[i]);
	m->nfds = 0;
}

/* --- answers --- */

static void next_message(struct srv_vhost_device *device)
{
	close_fds(&device->in);
	device->received = 0;
	if (!device->closing)
		receive(device);
}

static void send_rest(struct srv_vhost_device *device);

static void on_sent(struct srv_op *op, int32_t result, uint32_t flags)
{
	struct srv_vhost_device *device = device_of(op, socket_op);

	(void)flags;
	if (result <= 0) {
		fail(device, "cannot answer", result);
	} else {
		if (device->out_fd >= 0)
			close(device->out_fd);
		device->out_fd = -1;
		device->sent += (size_t)result;
		if (device->sent < sizeof(device->out.header) + device->out.header.size)
			send_rest(device);
		else
			next_message(device);
	}
	srv_vhost_device_op_ended(device);
}

static void send_rest(struct srv_vhost_device *device)
{
	struct io_uring_sqe *sqe;

	device->iov = (struct iovec){
		(char *)&device->out + device->sent,
		sizeof(device->out.header) + device->out.header.size - device->sent,
	};
	device->msg = (struct msghdr){.msg_iov = &device->iov, .msg_iovlen = 1};
	if (device->out_fd >= 0) {
		struct cmsghdr *c;

		device->msg.msg_control = device->control;
		device->msg.msg_controllen = CMSG_SPACE(sizeof(int));
		c = CMSG_FIRSTHDR(&device->msg);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(c), &device->out_fd, sizeof(int));
	}
	device->socket_op.done = on_sent;
	device->ops++;
	sqe = srv_worker_sqe(device->worker, &device->socket_op);
	io_uring_prep_sendmsg(sqe, device->fd, &device->msg, MSG_NOSIGNAL);
}

static void reply(struct srv_vhost_device *device)
{
	device->out.header.request = device->in.header.request;
	device->out.header.flags = VHOST_FLAG_VERSION | VHOST_FLAG_REPLY;
	device->sent = 0;
	send_rest(device);
}

/* VU-12 */
static void message_ended(struct srv_vhost_device *device, int r, const struct vmimg_error *err)
{
	bool ack = device->in.header.flags & VHOST_FLAG_NEED_REPLY &&
		   srv_vhost_negotiated(device, VHOST_PROTOCOL_REPLY_ACK) &&
		   !srv_vhost_has_reply(device->in.header.request);
	uint64_t value = r < 0 || r == VHOST_NO;

	if (r < 0)
		srv_log(SRV_WARNING, device->export->name, "vhost-user: message %u refused: %s",
			device->in.header.request, err->message);
	if (r == VHOST_REPLY) {
		reply(device);
	} else if (ack) {
		memcpy(device->out.payload, &value, sizeof(value));
		device->out.header.size = sizeof(value);
		reply(device);
	} else if (r < 0) {
		srv_vhost_device_stop(device);
	} else {
		next_message(device);
	}
}

/* --- messages in --- */

static bool take_fds(struct srv_vhost_device *device)
{
	struct srv_vhost_message *m = &device->in;
	bool fits = !(device->msg.msg_flags & MSG_CTRUNC);

	for (struct cmsghdr *c = CMSG_FIRSTHDR(&device->msg); c; c = CMSG_NXTHDR(&device->msg, c)) {
		size_t n;

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (size_t i = 0; i < n; i++) {
			int fd;

			memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
			if (m->nfds < VHOST_FDS_MAX) {
				m->fds[m->nfds++] = fd;
			} else {
				close(fd);
				fits = false;
			}
		}
	}
	return fits;
}

/* VU-10 */
static const char *check_header(const struct vhost_header *h)
{
	if ((h->flags & VHOST_FLAG_VERSION_MASK) != VHOST_FLAG_VERSION)
		return "a message of another version";
	if (h->flags & VHOST_FLAG_REPLY)
		return "a reply to nothing";
	if (h->size > sizeof(union vhost_payload))
		return "a message too long";
	return NULL;
}

static void on_received(struct srv_op *op, int32_t result, uint32_t flags)
{
	struct srv_vhost_device *device = device_of(op, socket_op);
	const struct vhost_header *h = &device->in.header;
	const char *wrong = NULL;

	(void)flags;
	if (result <= 0) {
		/* Between two messages an end is a good-bye. */
		if (device->received || (result < 0 && result != -ECONNRESET))
			fail(device, "the connection ended within a message", result);
		srv_vhost_device_stop(device);
		goto out;
	}
	device->received += (size_t)result;
	if (!take_fds(device))
		wrong = "too many descriptors";
	else if (device->received >= sizeof(*h))
		wrong = check_header(h);
	if (wrong) {
		fail(device, wrong, 0);
	} else if (device->received < sizeof(*h) || device->received < sizeof(*h) + h->size) {
		receive(device);
	} else if (!device->closing) {
		struct vmimg_error err = {0};
		int r = srv_vhost_message(device, &err);

		if (r != VHOST_LATER)
			message_ended(device, r, &err);
		else
			srv_vhost_device_wake(device);
	}
out:
	srv_vhost_device_op_ended(device);
}

static void receive(struct srv_vhost_device *device)
{
	struct srv_vhost_message *m = &device->in;
	size_t head = sizeof(m->header), got = device->received;
	struct io_uring_sqe *sqe;

	device->iov = got < head ? (struct iovec){(char *)&m->header + got, head - got}
				 : (struct iovec){m->payload.bytes + (got - head),
						  m->header.size - (got - head)};
	device->msg = (struct msghdr){
		.msg_iov = &device->iov,
		.msg_iovlen = 1,
		.msg_control = device->control,
		.msg_controllen = sizeof(device->control),
	};
	device->socket_op.done = on_received;
	device->ops++;
	sqe = srv_worker_sqe(device->worker, &device->socket_op);
	io_uring_prep_recvmsg(sqe, device->fd, &device->msg, MSG_CMSG_CLOEXEC);
}

/* --- the size of the disk (VU-68) --- */

static void send_config_change(struct srv_vhost_device *device);

static void on_backend_sent(struct srv_op *op, int32_t result, uint32_t flags)
{
	struct srv_vhost_device *device = device_of(op, backend_op);

	(void)flags;
	device->backend_busy = false;
	if (device->backend_again && result > 0 && !device->closing)
		send_config_change(device);
	srv_vhost_device_op_ended(device);
}

static void send_config_change(struct srv_vhost_device *device)
{
	struct io_uring_sqe *sqe;

	if (device->backend_fd < 0 || device->closing ||
	    !srv_vhost_negotiated(device, VHOST_PROTOCOL_CONFIG))
		return;
	device->backend_again = device->backend_busy;
	if (device->backend_busy)
		return;
	device->backend_busy = true;
	device->backend_message = (struct vhost_header){
		.request = VHOST_BACKEND_CONFIG_CHANGE,
		.flags = VHOST_FLAG_VERSION,
	};
	device->backend_op.done = on_backend_sent;
	device->ops++;
	sqe = srv_worker_sqe(device->worker, &device->backend_op);
	io_uring_prep_send(sqe, device->backend_fd, &device->backend_message,
			   sizeof(device->backend_message), MSG_NOSIGNAL | MSG_WAITALL);
}

static void on_resized(struct srv_watcher *watcher)
{
	send_config_change(device_of(watcher, watcher));
}

static void unwatch(struct srv_vhost_device *device)
{
	struct srv_watcher **p = &device->export->watchers;

	while (*p && *p != &device->watcher)
		p = &(*p)->next;
	if (*p)
		*p = device->watcher.next;
}

/* --- turns, and the end --- */

static void tear_down(struct srv_vhost_device *device)
{
	device->torn = true;
	unwatch(device);
	for (unsigned i = 0; i < device->nqueues; i++) {
		struct srv_vhost_queue *q = device->queues[i];

		if (!q)
			continue;
		srv_vhost_queue_stop(q);
		srv_vhost_event_drop(q->call);
		srv_vhost_event_drop(q->err);
		q->call = q->err = NULL;
	}
	shutdown(device->fd, SHUT_RDWR);
	if (device->backend_fd >= 0)
		shutdown(device->backend_fd, SHUT_RDWR);
}

static void device_free(struct srv_vhost_device *device)
{
	struct srv_vhost_io *io, *next;

	for (unsigned i = 0; i < device->nqueues; i++)
		srv_vhost_queue_destroy(device->queues[i]);
	for (io = device->free_ios; io; io = next) {
		next = io->next;
		free(io);
	}
	if (device->memory)
		srv_vhost_memory_clear(device->memory);
	if (device->wait_memory)
		srv_vhost_memory_clear(device->wait_memory);
	srv_vhost_inflight_close(&device->inflight);
	close_fds(&device->in);
	if (device->out_fd >= 0)
		close(device->out_fd);
	if (device->backend_fd >= 0)
		close(device->backend_fd);
	if (device->fd >= 0)
		close(device->fd);
	free(device->memory);
	free(device->wait_memory);
	free(device->chain);
	free(device);
}

static void end(struct srv_vhost_device *device)
{
	struct srv_export *export = device->export;
	void (*ended)(void *owner) = device->ended;
	void *owner = device->owner;

	atomic_fetch_sub_explicit(&export->stats.connections, 1, memory_order_relaxed);
	device_free(device);
	srv_export_put(export);
	ended(owner);
}

/* VU-34 */
static void check_memory(struct srv_vhost_device *device)
{
	if ((device->memory && atomic_load_explicit(&device->memory->lost, memory_order_relaxed)) ||
	    atomic_load_explicit(&device->inflight.lost, memory_order_relaxed))
		fail(device, "the front-end took its memory away", 0);
}

static void run_turn(struct srv_worker *worker, struct srv_task *task)
{
	struct srv_vhost_device *device = device_of(task, turn);

	(void)worker;
	device->now_ns = srv_now_ns();
	if (!device->torn)
		srv_vhost_queues_turn(device);
	if (!device->closing)
		check_memory(device);
	if (device->wait && !device->closing) {
		struct vmimg_error err = {0};
		int r = device->wait(device, &err);

		if (r != VHOST_LATER) {
			device->wait = NULL;
			message_ended(device, r, &err);
		}
	}
	if (device->closing && !device->torn && !device->inflight_ios)
		tear_down(device);
	if (device->torn && !device->ops && !device->turn.queued)
		end(device);
}

int srv_vhost_device_start(const struct srv_server *server, struct srv_export *export, int fd,
			   void (*ended)(void *owner), void *owner, struct srv_vhost_device **ret)
{
	struct srv_vhost_device *device = calloc(1, sizeof(*device));

	if (!device)
		return -ENOMEM;
	device->fd = device->out_fd = device->backend_fd = -1;
	device->chain = malloc(sizeof(*device->chain));
	if (!device->chain) {
		device_free(device);
		return -ENOMEM;
	}
	device->server = server;
	device->worker = export->worker;
	device->export = export;
	device->ended = ended;
	device->owner = owner;
	device->fd = fd;
	device->turn.run = run_turn;
	device->watcher.resized = on_resized;
	device->watcher.next = export->watchers;
	export->watchers = &device->watcher;
	atomic_fetch_add_explicit(&export->stats.connections, 1, memory_order_relaxed);
	*ret = device;
	receive(device);
	return 0;
}
