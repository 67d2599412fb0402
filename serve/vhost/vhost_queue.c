/* SPDX-License-Identifier: MIT */
/*
 * vhost_queue.c - the virtqueues of a device and their events. A kick is a poll of its eventfd that
 * stays in the ring (multishot; the counter is never read while the queue runs), a call is an eight-byte
 * write that goes out with the turn's other operations: neither costs a system call of its own. The
 * device's worker.
 *
 * An event's descriptor is closed when the last operation that names it has ended: the number must not
 * come to mean another file while an entry of the ring still holds it.
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "serve/vhost/vhost.h"

#define TURN_BUDGET 128u /* chains taken in one turn: the worker has other disks */

#define event_of(ptr, member)                                                                      \
	((struct srv_vhost_event *)((char *)(ptr)-offsetof(struct srv_vhost_event, member)))

/* --- events --- */

/* VU-42: only an eventfd's write never waits for a reader that does not come. */
static bool is_eventfd(int fd)
{
	static const char expected[] = "anon_inode:[eventfd]";
	char path[40], target[64];
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	n = readlink(path, target, sizeof(target));
	return n == sizeof(expected) - 1 && !memcmp(target, expected, sizeof(expected) - 1);
}

static void event_free(struct srv_vhost_event *e)
{
	close(e->fd);
	free(e);
}

static void event_op_ended(struct srv_vhost_event *e)
{
	struct srv_vhost_device *device = e->device;

	e->ops--;
	if (e->dropped && !e->ops)
		event_free(e);
	srv_vhost_device_op_ended(device);
}

static void event_op_starts(struct srv_vhost_event *e)
{
	e->ops++;
	e->device->ops++;
}

int srv_vhost_event_create(struct srv_vhost_device *device, unsigned queue, int fd,
			   struct srv_vhost_event **ret)
{
	struct srv_vhost_event *e;

	if (!is_eventfd(fd))
		return -EINVAL;
	e = calloc(1, sizeof(*e));
	if (!e)
		return -ENOMEM;
	e->device = device;
	e->queue = queue;
	e->fd = fd;
	e->one = 1;
	*ret = e;
	return 0;
}

static void on_cancelled(struct srv_op *op, int32_t result, uint32_t flags)
{
	(void)result;
	(void)flags;
	event_op_ended(event_of(op, cancel));
}

void srv_vhost_event_drop(struct srv_vhost_event *e)
{
	struct io_uring_sqe *sqe;

	if (!e)
		return;
	e->dropped = true;
	if (!e->ops) {
		event_free(e);
		return;
	}
	e->cancel.done = on_cancelled;
	event_op_starts(e);
	sqe = srv_worker_sqe(e->device->worker, &e->cancel);
	/* The operation's user data, as the worker marks it; a poll or a write. */
	io_uring_prep_cancel64(sqe, (uint64_t)(uintptr_t)&e->op | 1, 0);
}

static void on_kick(struct srv_op *op, int32_t result, uint32_t flags)
{
	struct srv_vhost_event *e = event_of(op, op);

	if (!e->dropped) {
		e->device->queues[e->queue]->kicked = true;
		srv_vhost_device_wake(e->device);
	}
	if (flags & IORING_CQE_F_MORE)
		return;
	/* Ended without being asked to: the completion queue was full, or the kernel has no memory. */
	if (!e->dropped && result >= 0) {
		srv_vhost_event_poll(e);
	} else if (!e->dropped) {
		srv_log(SRV_ERROR, e->device->export->name, "vhost-user: queue %u: no kicks: %s",
			e->queue, strerror(-result));
		srv_vhost_device_stop(e->device);
	}
	event_op_ended(e);
}

void srv_vhost_event_poll(struct srv_vhost_event *e)
{
	struct io_uring_sqe *sqe;

	e->op.done = on_kick;
	event_op_starts(e);
	sqe = srv_worker_sqe(e->device->worker, &e->op);
	io_uring_prep_poll_multishot(sqe, e->fd, POLLIN);
}

static void on_called(struct srv_op *op, int32_t result, uint32_t flags)
{
	struct srv_vhost_event *e = event_of(op, op);

	(void)result; /* -EAGAIN: the counter is full, so the call is seen */
	(void)flags;
	e->writing = false;
	if (e->again && !e->dropped)
		srv_vhost_event_signal(e);
	event_op_ended(e);
}

void srv_vhost_event_signal(struct srv_vhost_event *e)
{
	struct io_uring_sqe *sqe;

	e->again = e->writing;
	if (e->writing)
		return;
	e->writing = true;
	e->op.done = on_called;
	event_op_starts(e);
	sqe = srv_worker_sqe(e->device->worker, &e->op);
	io_uring_prep_write(sqe, e->fd, &e->one, sizeof(e->one), 0);
}

/* Takes the kicks that were polled for and never read: the next one to poll finds new ones only. */
static void event_consume(const struct srv_vhost_event *e)
{
	uint64_t value;
	struct iovec iov = {&value, sizeof(value)};
	ssize_t n = preadv2(e->fd, &iov, 1, -1, RWF_NOWAIT);

	(void)n;
}

/* --- life of a queue --- */

struct srv_vhost_queue *srv_vhost_queue_get(struct srv_vhost_device *device, uint32_t index)
{
	struct srv_vhost_queue *q;

	if (index >= VHOST_QUEUES_MAX)
		return NULL;
	q = device->queues[index];
	if (!q) {
		q = calloc(1, sizeof(*q));
		device->queues[index] = q;
		if (q && device->nqueues <= index)
			device->nqueues = index + 1;
	}
	return q;
}

/* VU-41. In flight with the last back-end: carried out again before anything new (VU-72). */
int srv_vhost_queue_start(struct srv_vhost_device *device, unsigned index, struct vmimg_error *err)
{
	struct srv_vhost_queue *q = device->queues[index];
	struct srv_vhost_ring *ring = &q->ring;
	int r = -EINVAL;

	if (q->started || !q->kick || !q->addressed || !ring->num || !device->memory)
		return 0; /* a later message completes it */
	if (device->inflight.base && index < device->inflight.queues &&
	    ring->num > device->inflight.queue_size)
		return srv_fail(err, r, "queue %u: %u entries, %u tracked", index, ring->num,
				device->inflight.queue_size);
	if (srv_vhost_ring_place(ring, device->memory, &q->addr) < 0)
		return srv_fail(err, r, "queue %u: not in memory, or misaligned", index);
	ring->event_idx = device->features >> VIRTIO_RING_F_EVENT_IDX & 1;
	ring->indirect = device->features >> VIRTIO_RING_F_INDIRECT_DESC & 1;
	ring->fault = NULL;
	ring->told = false;
	ring->nbatch = 0;
	memset(ring->busy, 0, ring->num);
	ring->next_used = ring->published = srv_vhost_ring_used_idx(ring);
	ring->inflight = srv_vhost_inflight_queue(&device->inflight, index, ring->num);
	ring->nresume = 0;
	if (ring->inflight) {
		ring->nresume = srv_vhost_inflight_resume(ring->inflight, ring->num,
							  ring->published, ring->resume,
							  &ring->counter);
		ring->next_avail = (uint16_t)(ring->published + ring->nresume);
	}
	q->started = true;
	q->kicked = true; /* the ring is looked at without waiting for a kick */
	srv_vhost_event_poll(q->kick);
	srv_vhost_device_wake(device);
	return 0;
}

void srv_vhost_queue_stop(struct srv_vhost_queue *q)
{
	if (q->kick) {
		event_consume(q->kick);
		srv_vhost_event_drop(q->kick);
	}
	q->kick = NULL;
	q->started = false;
	q->kicked = false;
}

void srv_vhost_queue_destroy(struct srv_vhost_queue *q)
{
	if (!q)
		return;
	srv_vhost_ring_fini(&q->ring);
	free(q);
}

/* --- a turn --- */

/* VU-50: this device takes nothing more until all of its queues have been stopped. */
static void broke(struct srv_vhost_device *device, unsigned index)
{
	struct srv_vhost_queue *q = device->queues[index];

	device->broken = q->ring.fault;
	srv_log(SRV_WARNING, device->export->name, "vhost-user: queue %u is broken: %s", index,
		q->ring.fault);
	if (q->err)
		srv_vhost_event_signal(q->err);
}

static bool has_room(const struct srv_vhost_device *device)
{
	return device->inflight_ios < VHOST_DEPTH &&
	       device->inflight_bytes < device->server->options.max_inflight;
}

static int resume(struct srv_vhost_device *device, unsigned index)
{
	struct srv_vhost_ring *ring = &device->queues[index]->ring;
	int r = 0;

	for (unsigned i = 0; i < ring->nresume && r == 0; i++) {
		ring->busy[ring->resume[i]] = 1;
		r = srv_vhost_blk_start(device, index, ring->resume[i], device->chain);
	}
	ring->nresume = 0;
	return r;
}

static void take(struct srv_vhost_device *device, unsigned index, unsigned *budget)
{
	struct srv_vhost_queue *q = device->queues[index];
	struct srv_vhost_ring *ring = &q->ring;
	uint16_t head;
	int r = ring->nresume ? resume(device, index) : 0;

	srv_vhost_ring_hush(ring);
	while (r == 0 && *budget && has_room(device)) {
		r = srv_vhost_ring_next(ring, &head);
		if (r == 0 && !srv_vhost_ring_listen(ring)) {
			q->kicked = false;
			break;
		}
		if (r == 1) {
			(*budget)--;
			r = srv_vhost_ring_take(ring, head);
			if (r == 0)
				r = srv_vhost_blk_start(device, index, head, device->chain);
		}
	}
	if (r < 0)
		broke(device, index);
}

static void publish(struct srv_vhost_queue *q)
{
	if (q->ring.fault || !q->ring.nbatch)
		return;
	q->kicked = true; /* the driver's answer may be there already */
	if (srv_vhost_ring_publish(&q->ring) && q->call)
		srv_vhost_event_signal(q->call);
}

/* Calls go first into the ring: the guest runs while the disks' operations are being submitted. */
void srv_vhost_queues_turn(struct srv_vhost_device *device)
{
	unsigned budget = TURN_BUDGET, first;

	for (unsigned i = 0; i < device->nqueues; i++)
		if (device->queues[i] && device->queues[i]->started)
			publish(device->queues[i]);
	if (device->paused || device->closing)
		return;
	first = device->first_queue++;
	for (unsigned k = 0; k < device->nqueues && !device->broken; k++) {
		unsigned i = (first + k) % device->nqueues; /* none is always the last */
		struct srv_vhost_queue *q = device->queues[i];

		if (q && q->started && !q->stopping && q->kicked &&
		    (q->enabled || !(device->features >> VHOST_F_PROTOCOL_FEATURES & 1)))
			take(device, i, &budget);
	}
	if (!budget)
		srv_vhost_device_wake(device);
}
