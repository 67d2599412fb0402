/* SPDX-License-Identifier: MIT */
/*
 * queue.h - a worker: one thread's ring, its requests, and the messages that other threads send it.
 *
 * a queue, and every disk attached to it, is touched only by the thread that created it; other
 * threads reach it through eng_queue_post(). Q-2: every request taken completes exactly once.
 */
#ifndef ENGINE_QUEUE_H
#define ENGINE_QUEUE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "engine/io/io.h"

struct eng_disk;
struct eng_queue;
struct eng_req;

/* A message: runs on the queue's thread. Embedded in its owner. */
struct eng_msg {
	struct eng_msg *next;
	void (*run)(struct eng_msg *msg);
};

/* Numbers as in the public header. */
enum eng_req_op {
	ENG_READ = 0,
	ENG_WRITE = 1,
	ENG_FLUSH = 2,
	ENG_WRITE_ZEROES = 3,
	ENG_DISCARD = 4,
	ENG_EXTENTS = 5,
};
#define ENG_REQ_FUA 1u

enum eng_extent_state {
	ENG_EXTENT_DATA = 1,
	ENG_EXTENT_ZERO = 2, /* reads as zeros, and a layer says so */
	ENG_EXTENT_HOLE = 3, /* reads as zeros: nothing in any layer */
};

/* What EXTENTS writes to iov[0], an array of them: see the public header. */
struct eng_disk_extent {
	uint64_t length; /* bytes */
	uint32_t state;  /* enum eng_extent_state */
	uint32_t layer;  /* ordinal */
};

struct eng_request { /* what is asked for; copied */
	struct eng_disk *disk;
	uint8_t op, flags;
	uint32_t iovcnt;
	const struct iovec *iov;
	uint64_t offset, length;
	uint64_t user_data;
};

struct eng_completion {
	uint64_t user_data;
	int32_t result;
	uint32_t flags;
	bool foreign;
};

/* @hold: see eng_ring_create(). @depth: requests in flight. */
int eng_queue_create(struct eng_io *io, unsigned depth, struct eng_file *hold,
		     struct eng_queue **ret);
int eng_queue_destroy(struct eng_queue *q); /* -EBUSY; NULL is fine */
struct eng_io *eng_queue_io(struct eng_queue *q);
struct eng_ring *eng_queue_ring(struct eng_queue *q);
int eng_queue_fd(struct eng_queue *q);
/* Any thread. The queue must outlive the message: whoever posts holds a disk of it attached, or a
 * request of it in flight. */
void eng_queue_post(struct eng_queue *q, struct eng_msg *msg);
bool eng_queue_is_mine(struct eng_queue *q);      /* the calling thread's; any thread */
unsigned eng_queue_inflight(struct eng_queue *q); /* requests taken, not completed; any thread */
void eng_queue_attached(struct eng_queue *q, int delta); /* counts disks */

/* Takes requests without entering the kernel: the next submit, poll or turn starts their I/O. */
int eng_queue_take(struct eng_queue *q, const struct eng_request *reqs, unsigned count);
int eng_queue_submit(struct eng_queue *q, const struct eng_request *reqs, unsigned count);
int eng_queue_poll(struct eng_queue *q, struct eng_completion *completions, unsigned max,
		   uint64_t timeout_ns);
/* One turn of the loop without taking completions: messages and the ring. Returns events handled. */
int eng_queue_turn(struct eng_queue *q, uint64_t timeout_ns);

#endif
