/* SPDX-License-Identifier: MIT */
/*
 * worker.c - the loop: completions, then what they deferred, then sleep in the one ring. A worker
 * starts and ends on its own thread, since the queue is that thread's.
 *
 * Other threads leave tasks in a lock-free inbox, as in the engine's queue, and wake the ring through
 * an eventfd that it always reads.
 */
#include "serve/worker.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "serve/server.h"

#define DEPTH     1024u /* requests in flight in one queue; the device is long saturated */
#define BATCH     64u
#define FOREIGN   1u
#define ERROR_NAP 10000 /* us: a ring that fails again and again must not eat the processor */

struct srv_worker {
	struct vmimg_service *svc;
	pthread_t thread;
	char name[16];
	_Atomic(struct srv_task *) inbox;
	int event_fd;

	/* the thread's */
	struct vmimg_queue *queue;
	struct io_uring *ring;
	struct srv_op event_op;
	uint64_t event_value;
	struct srv_io *waiting, **waiting_tail;
	struct srv_io
		*malformed; /* refused by the queue: end in the next turn, never within a call */
	struct srv_task *deferred, **deferred_tail;
	bool stop;
	struct srv_task stop_task;

	/* the start */
	sem_t started;
	int start_result;
	struct vmimg_error *start_error;
};

static void arm_event(struct srv_worker *w)
{
	struct io_uring_sqe *sqe = srv_worker_sqe(w, &w->event_op);

	io_uring_prep_read(sqe, w->event_fd, &w->event_value, sizeof(w->event_value), 0);
}

static void run_inbox(struct srv_worker *w)
{
	struct srv_task *task, *next, *fifo = NULL;

	for (task = atomic_exchange(&w->inbox, NULL); task; task = next) {
		next = task->next;
		task->next = fifo;
		fifo = task;
	}
	for (task = fifo; task; task = next) {
		next = task->next;
		task->run(w, task);
	}
}

static void on_event(struct srv_op *op, int32_t result, uint32_t flags)
{
	struct srv_worker *w = (struct srv_worker *)((char *)op -
						     offsetof(struct srv_worker, event_op));

	(void)result;
	(void)flags;
	run_inbox(w);
	if (!w->stop)
		arm_event(w);
}

void srv_worker_post(struct srv_worker *w, struct srv_task *task)
{
	struct srv_task *old = atomic_load(&w->inbox);

	do
		task->next = old;
	while (!atomic_compare_exchange_weak(&w->inbox, &old, task));
	if (!old)
		eventfd_write(w->event_fd, 1);
}

struct io_uring_sqe *srv_worker_sqe(struct srv_worker *w, struct srv_op *op)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(w->ring);

	while (!sqe) {
		vmimg_queue_submit(w->queue, NULL, 0);
		sqe = io_uring_get_sqe(w->ring);
	}
	/* The prep functions keep what liburing 2.3 and later call user data. */
	io_uring_sqe_set_data64(sqe, (uintptr_t)op | FOREIGN);
	return sqe;
}

/* --- requests --- */

/* Whether the queue took it, or never will. */
static bool start_io(struct srv_worker *w, struct srv_io *io)
{
	int n = vmimg_queue_prepare(w->queue, &io->request, 1);

	if (n == -EAGAIN)
		return false;
	if (n < 0) {
		io->next = w->malformed;
		w->malformed = io;
	}
	return true;
}

void srv_worker_io(struct srv_worker *w, struct srv_io *io)
{
	io->request.user_data = (uintptr_t)io;
	io->next = NULL;
	if (!w->waiting && start_io(w, io))
		return;
	*w->waiting_tail = io;
	w->waiting_tail = &io->next;
}

static void start_waiting(struct srv_worker *w)
{
	struct srv_io *io;

	while ((io = w->waiting)) {
		struct srv_io *next = io->next;

		if (!start_io(w, io))
			break;
		w->waiting = next;
	}
	if (!w->waiting)
		w->waiting_tail = &w->waiting;
}

static void end_malformed(struct srv_worker *w)
{
	struct srv_io *io;

	while ((io = w->malformed)) {
		w->malformed = io->next;
		io->done(io, -EINVAL);
	}
}

/* --- the loop --- */

void srv_worker_defer(struct srv_worker *w, struct srv_task *task)
{
	if (task->queued)
		return;
	task->queued = true;
	task->next = NULL;
	*w->deferred_tail = task;
	w->deferred_tail = &task->next;
}

static void run_deferred(struct srv_worker *w)
{
	struct srv_task *task = w->deferred, *next;

	w->deferred = NULL;
	w->deferred_tail = &w->deferred;
	for (; task; task = next) {
		next = task->next;
		task->queued = false;
		task->run(w, task);
	}
}

static void complete(const struct vmimg_completion *c)
{
	if (c->foreign) {
		struct srv_op *op = (struct srv_op *)(uintptr_t)(c->user_data & ~(uint64_t)FOREIGN);

		op->done(op, c->result, c->flags);
	} else {
		struct srv_io *io = (struct srv_io *)(uintptr_t)c->user_data;

		io->done(io, c->result);
	}
}

static void turn(struct srv_worker *w)
{
	struct vmimg_completion done[BATCH];
	bool busy = w->deferred || w->malformed;
	int n = vmimg_queue_poll(w->queue, done, BATCH, busy ? 0 : UINT64_MAX);

	if (n < 0) {
		srv_log(SRV_ERROR, w->name, "the ring fails: %s", strerror(-n));
		usleep(ERROR_NAP);
	}
	for (int i = 0; i < n; i++)
		complete(&done[i]);
	if (w->waiting)
		start_waiting(w);
	end_malformed(w);
	run_deferred(w);
}

static int start(struct srv_worker *w)
{
	int r = vmimg_queue_create(w->svc, DEPTH, w->start_error, &w->queue);

	if (r < 0)
		return r;
	w->ring = vmimg_queue_ring(w->queue);
	if (!w->ring)
		return srv_fail(w->start_error, -ENOSYS, "%s: no io_uring", w->name);
	arm_event(w);
	return 0;
}

static void *worker_main(void *arg)
{
	struct srv_worker *w = arg;
	int r = start(w);

	w->start_result = r;
	sem_post(&w->started);
	while (r == 0 && !w->stop)
		turn(w);
	r = vmimg_queue_destroy(w->queue);
	assert(r == 0); /* who stops a worker has ended all that used it */
	return NULL;
}

static void run_stop(struct srv_worker *w, struct srv_task *task)
{
	(void)task;
	w->stop = true;
}

static void worker_free(struct srv_worker *w)
{
	sem_destroy(&w->started);
	if (w->event_fd >= 0)
		close(w->event_fd);
	free(w);
}

int srv_worker_create(struct vmimg_service *svc, const char *name, struct vmimg_error *err,
		      struct srv_worker **ret)
{
	struct srv_worker *w = calloc(1, sizeof(*w));
	int r;

	if (!w)
		return srv_fail(err, -ENOMEM, "%s: out of memory", name);
	w->svc = svc;
	w->waiting_tail = &w->waiting;
	w->deferred_tail = &w->deferred;
	w->event_op.done = on_event;
	w->stop_task.run = run_stop;
	w->start_error = err;
	snprintf(w->name, sizeof(w->name), "%s", name);
	sem_init(&w->started, 0, 0);
	w->event_fd = eventfd(0, EFD_CLOEXEC);
	r = w->event_fd < 0 ? -errno : -pthread_create(&w->thread, NULL, worker_main, w);
	if (r < 0) {
		srv_fail(err, r, "%s: cannot start: %s", name, strerror(-r));
		worker_free(w);
		return r;
	}
	pthread_setname_np(w->thread, w->name);
	while (sem_wait(&w->started) < 0)
		;
	r = w->start_result;
	if (r < 0) {
		pthread_join(w->thread, NULL);
		worker_free(w);
		return r;
	}
	*ret = w;
	return 0;
}

void srv_worker_destroy(struct srv_worker *w)
{
	if (!w)
		return;
	srv_worker_post(w, &w->stop_task);
	pthread_join(w->thread, NULL);
	worker_free(w);
}

struct vmimg_queue *srv_worker_queue(struct srv_worker *w)
{
	return w->queue;
}

bool srv_worker_is_current(const struct srv_worker *w)
{
	return pthread_equal(w->thread, pthread_self());
}
