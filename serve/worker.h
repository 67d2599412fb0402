/* SPDX-License-Identifier: MIT */
/*
 * worker.h - an event loop on a thread of its own: a vmimg_queue, its disks, and everything that uses
 * them (connections, virtqueues). One ring carries the disks' I/O and the sockets' alike, so a request
 * crosses no thread between its client's socket and its disk.
 *
 * W-1: all of a worker's objects are touched by its thread only; srv_worker_post() alone is for others.
 * W-2: nothing that runs here may block, but for attach and detach of a disk (export.c).
 * The lobby is a worker that has no disks: it accepts and negotiates, so that a hostile handshake
 * costs no disk anything.
 */
#ifndef SERVE_WORKER_H
#define SERVE_WORKER_H

#include <liburing.h>
#include <stdbool.h>
#include <stdint.h>

#include "api/vmimg.h"

struct srv_worker;

/* One ring operation of the server's own. Its owner keeps it until @done; multishot operations
 * call it while @flags has IORING_CQE_F_MORE. Aligned, since bit 0 of its address marks it. */
struct srv_op {
	void (*done)(struct srv_op *op, int32_t result, uint32_t flags);
} __attribute__((aligned(8)));

/* One request to a disk of this worker; the owner's until @done. */
struct srv_io {
	struct vmimg_request request; /* .user_data is the worker's */
	void (*done)(struct srv_io *io, int32_t result);
	struct srv_io *next; /* the worker's: waits for room in the queue */
};

/* Something to run on the worker's thread; the owner's again when it runs. */
struct srv_task {
	struct srv_task *next;
	void (*run)(struct srv_worker *worker, struct srv_task *task);
	bool queued; /* the worker's: deferred already */
};

/* @name: of the thread. Starts it. */
int srv_worker_create(struct vmimg_service *svc, const char *name, struct vmimg_error *err,
		      struct srv_worker **ret);
/* Everything on it has ended: no operation, request, task or disk is left. NULL is fine. */
void srv_worker_destroy(struct srv_worker *worker);

/* Any thread. */
void srv_worker_post(struct srv_worker *worker, struct srv_task *task);

/* --- the worker's thread --- */
/* A submission entry that completes through @op; the caller preps it at once. Never NULL. Goes out
 * with the loop's next turn. */
struct io_uring_sqe *srv_worker_sqe(struct srv_worker *worker, struct srv_op *op);
/* Starts a request, now or when the queue has room. */
void srv_worker_io(struct srv_worker *worker, struct srv_io *io);
/* Runs @task once after the completions of this turn: replies are gathered so. Again before: no-op. */
void srv_worker_defer(struct srv_worker *worker, struct srv_task *task);
struct vmimg_queue *srv_worker_queue(struct srv_worker *worker);
bool srv_worker_is_current(const struct srv_worker *worker); /* asserts; any thread */

#endif
