/* SPDX-License-Identifier: MIT */
/*
 * queue.c - the worker's loop: requests in, messages and ring completions through, completions out.
 *
 * The inbox is a lock-free stack that its owner takes whole and reverses; only the post that finds it
 * empty wakes the ring, so a burst of messages costs one wake. A request for a disk of another queue
 * travels there as a message and comes back as one.
 */
#include "engine/disk/queue.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdalign.h>
#include <stdlib.h>
#include <string.h>

#include "engine/disk/disk.h"
#include "engine/disk/part.h"

struct eng_queue {
	struct eng_io *io;
	struct eng_ring *ring;
	_Atomic(struct eng_msg *) inbox;
	_Atomic unsigned posting; /* posts between push and wake */
	pthread_t owner;
	unsigned depth;
	struct eng_req *reqs, *free;
	_Atomic unsigned inflight;
	struct eng_req *ended, **ended_tail;
	struct eng_completion *foreign; /* the caller's own operations, completed */
	unsigned foreign_count, foreign_cap;
	int foreign_error;
	bool fd_used; /* the owner may sleep on the fd */
	bool polling; /* what ends now is returned at once */
	unsigned disks;
	struct eng_part *parts; /* free ones */
};

/* A completion waits for the next poll: the owner must not sleep on the fd before it. */
static void tell_owner(struct eng_queue *q)
{
	if (q->fd_used && !q->polling)
		eng_ring_wake(q->ring);
}

static void on_foreign(void *arg, uint64_t user_data, int32_t res, uint32_t flags)
{
	struct eng_queue *q = arg;

	if (q->foreign_count == q->foreign_cap) {
		unsigned cap = q->foreign_cap ? q->foreign_cap * 2 : 64;
		struct eng_completion *p = realloc(q->foreign, cap * sizeof(*p));

		if (!p) {
			q->foreign_error = -ENOMEM;
			return;
		}
		q->foreign = p;
		q->foreign_cap = cap;
	}
	q->foreign[q->foreign_count++] = (struct eng_completion){
		.user_data = user_data,
		.result = res,
		.flags = flags,
		.foreign = true,
	};
	tell_owner(q);
}

int eng_queue_create(struct eng_io *io, unsigned depth, struct eng_file *hold,
		     struct eng_queue **ret)
{
	struct eng_queue *q = calloc(1, sizeof(*q));
	int r = -ENOMEM;

	if (!q)
		return r;
	q->io = io;
	q->owner = pthread_self();
	q->depth = depth;
	q->ended_tail = &q->ended;
	q->reqs = calloc(depth, sizeof(*q->reqs));
	if (!q->reqs)
		goto fail;
	for (unsigned i = depth; i-- > 0;) {
		q->reqs[i].next = q->free;
		q->free = &q->reqs[i];
	}
	r = eng_ring_create(io, depth < 32 ? 64 : depth * 2, hold, &q->ring);
	if (r < 0)
		goto fail;
	eng_ring_on_foreign(q->ring, on_foreign, q);
	*ret = q;
	return 0;
fail:
	free(q->reqs);
	free(q);
	return r;
}

int eng_queue_destroy(struct eng_queue *q)
{
	if (!q)
		return 0;
	if (q->disks || atomic_load(&q->inflight) || q->ended)
		return -EBUSY;
	while (atomic_load(&q->posting))
		eng_io_sleep_ns(q->io, 1000);
	eng_ring_destroy(q->ring);
	for (struct eng_part *p = q->parts, *next; p; p = next) {
		next = p->next;
		free(p);
	}
	free(q->foreign);
	free(q->reqs);
	free(q);
	return 0;
}

struct eng_io *eng_queue_io(struct eng_queue *q)
{
	return q->io;
}

struct eng_ring *eng_queue_ring(struct eng_queue *q)
{
	return q->ring;
}

int eng_queue_fd(struct eng_queue *q)
{
	q->fd_used = true;
	return eng_ring_fd(q->ring);
}

bool eng_queue_is_mine(struct eng_queue *q)
{
	return pthread_equal(q->owner, pthread_self());
}

unsigned eng_queue_inflight(struct eng_queue *q)
{
	return atomic_load(&q->inflight);
}

void eng_queue_attached(struct eng_queue *q, int delta)
{
	q->disks += (unsigned)delta;
}

/* --- parts: ring operations with room for their vectors --- */

struct eng_part *eng_part_get(struct eng_queue *q)
{
	struct eng_part *part = q->parts;

	if (part)
		q->parts = part->next;
	else
		part = malloc(sizeof(*part));
	if (part)
		memset(part, 0, offsetof(struct eng_part, iov_inline));
	return part;
}

void eng_part_put(struct eng_queue *q, struct eng_part *part)
{
	if (part->iov != part->iov_inline)
		free(part->iov);
	free(part->bounce);
	part->next = q->parts;
	q->parts = part;
}

/* --- messages --- */

void eng_queue_post(struct eng_queue *q, struct eng_msg *msg)
{
	struct eng_msg *old = atomic_load(&q->inbox);

	/* The message may run, and the queue be on its way out, before the wake below. */
	atomic_fetch_add(&q->posting, 1);
	do
		msg->next = old;
	while (!atomic_compare_exchange_weak(&q->inbox, &old, msg));
	if (!old)
		eng_ring_wake(q->ring);
	atomic_fetch_sub(&q->posting, 1);
}

static int run_messages(struct eng_queue *q)
{
	struct eng_msg *msg, *next, *fifo = NULL;
	int n = 0;

	if (!atomic_load_explicit(&q->inbox, memory_order_relaxed))
		return 0;
	for (msg = atomic_exchange(&q->inbox, NULL); msg; msg = next) {
		next = msg->next;
		msg->next = fifo;
		fifo = msg;
	}
	for (msg = fifo; msg; msg = next) {
		next = msg->next;
		msg->run(msg);
		n++;
	}
	return n;
}

/* --- requests --- */

static void req_ended(struct eng_req *req)
{
	struct eng_queue *q = req->origin;

	req->next = NULL;
	*q->ended_tail = req;
	q->ended_tail = &req->next;
	tell_owner(q);
}

static void msg_ended(struct eng_msg *msg)
{
	req_ended((struct eng_req *)((char *)msg - offsetof(struct eng_req, msg)));
}

static void req_done(struct eng_req *req)
{
	if (req->origin == req->disk->queue) {
		req_ended(req);
		return;
	}
	req->msg.run = msg_ended;
	eng_queue_post(req->origin, &req->msg);
}

static void msg_start(struct eng_msg *msg)
{
	struct eng_req *req = (struct eng_req *)((char *)msg - offsetof(struct eng_req, msg));

	atomic_fetch_sub(&req->disk->forwarded, 1);
	eng_disk_start(req);
}

static bool well_formed(const struct eng_request *rq)
{
	size_t sum = 0;

	if (!rq->disk || rq->op > ENG_EXTENTS || rq->flags & ~ENG_REQ_FUA)
		return false;
	if (rq->op == ENG_EXTENTS) /* BQ-17 */
		return rq->length && rq->iovcnt == 1 && rq->iov &&
		       rq->iov->iov_len >= sizeof(struct eng_disk_extent) &&
		       (uintptr_t)rq->iov->iov_base % alignof(struct eng_disk_extent) == 0;
	if (rq->op == ENG_FLUSH)
		return rq->length == 0;
	if (rq->op != ENG_READ && rq->op != ENG_WRITE)
		return true;
	if (rq->iovcnt == 0 || rq->iovcnt > 1024 || !rq->iov)
		return false;
	for (uint32_t i = 0; i < rq->iovcnt; i++)
		if (__builtin_add_overflow(sum, rq->iov[i].iov_len, &sum))
			return false;
	return sum == rq->length;
}

int eng_queue_take(struct eng_queue *q, const struct eng_request *reqs, unsigned count)
{
	unsigned n;

	for (n = 0; n < count; n++) {
		const struct eng_request *rq = &reqs[n];
		struct eng_req *req = q->free;

		if (!well_formed(rq))
			return n ? (int)n : -EINVAL;
		if (!req)
			break;
		q->free = req->next;
		memset(req, 0, offsetof(struct eng_req, wiov_inline));
		req->disk = rq->disk;
		req->op = rq->op;
		req->flags = rq->flags;
		req->iovcnt = rq->iovcnt;
		req->iov = rq->iov;
		req->offset = rq->offset;
		req->length = rq->length;
		req->user_data = rq->user_data;
		req->origin = q;
		req->done = req_done;
		atomic_fetch_add(&q->inflight, 1);
		if (rq->disk->queue == q) {
			eng_disk_start(req);
		} else {
			req->msg.run = msg_start;
			atomic_fetch_add(&rq->disk->forwarded, 1);
			eng_queue_post(rq->disk->queue, &req->msg);
		}
	}
	return !n && count ? -EAGAIN : (int)n;
}

int eng_queue_submit(struct eng_queue *q, const struct eng_request *reqs, unsigned count)
{
	int n = eng_queue_take(q, reqs, count);

	eng_ring_submit(q->ring);
	return n;
}

int eng_queue_turn(struct eng_queue *q, uint64_t timeout_ns)
{
	int n = run_messages(q);
	int r = eng_ring_wait(q->ring, n || q->ended ? 0 : timeout_ns);

	if (r < 0)
		return r;
	n += r + run_messages(q);
	/* What the messages queued must be on its way before the caller sleeps on the fd. */
	eng_ring_submit(q->ring);
	return n;
}

static unsigned take_completions(struct eng_queue *q, struct eng_completion *out, unsigned max)
{
	unsigned n = 0;

	while (n < max && q->ended) {
		struct eng_req *req = q->ended;

		q->ended = req->next;
		if (!q->ended)
			q->ended_tail = &q->ended;
		out[n++] = (struct eng_completion){
			.user_data = req->user_data,
			.result = req->result,
		};
		req->next = q->free;
		q->free = req;
		atomic_fetch_sub(&q->inflight, 1);
	}
	if (n < max && q->foreign_count) {
		unsigned take = max - n < q->foreign_count ? max - n : q->foreign_count;

		memcpy(out + n, q->foreign, take * sizeof(*out));
		memmove(q->foreign, q->foreign + take,
			(q->foreign_count - take) * sizeof(*q->foreign));
		q->foreign_count -= take;
		n += take;
	}
	return n;
}

static int poll_queue(struct eng_queue *q, struct eng_completion *completions, unsigned max,
		      uint64_t timeout_ns)
{
	uint64_t now = timeout_ns && timeout_ns != UINT64_MAX ? eng_io_now_ns(q->io) : 0;
	uint64_t end = now + timeout_ns, left = timeout_ns;

	for (;;) {
		unsigned n;
		int r = eng_queue_turn(q, q->ended || q->foreign_count ? 0 : left);

		if (r < 0 && r != -EINTR)
			return r;
		n = take_completions(q, completions, max);
		if (n || timeout_ns == 0)
			return (int)n;
		if (q->foreign_error)
			return q->foreign_error;
		if (timeout_ns == UINT64_MAX)
			continue;
		now = eng_io_now_ns(q->io);
		if (now >= end)
			return 0;
		left = end - now;
	}
}

int eng_queue_poll(struct eng_queue *q, struct eng_completion *completions, unsigned max,
		   uint64_t timeout_ns)
{
	int n;

	q->polling = true;
	n = poll_queue(q, completions, max, timeout_ns);
	q->polling = false;
	if (q->ended || q->foreign_count) /* more than @max */
		tell_owner(q);
	return n;
}
