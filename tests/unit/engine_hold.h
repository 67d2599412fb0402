/* SPDX-License-Identifier: MIT */
/*
 * engine_hold.h - an eng_io whose ring operations can be held back, so that a test forces the
 * interleaving it is about: "the record is on its way, now a second flush comes".
 *
 * hold_install() replaces open, close and ring_create in the table of an existing eng_io. An
 * operation that a rule matches is not started (or, with .after, carried out and not told) until
 * hold_release(). Links are kept: an operation starts when the one in front has succeeded. One
 * eng_io a program; rules may be added and released from any thread.
 */
#ifndef TESTS_UNIT_ENGINE_HOLD_H
#define TESTS_UNIT_ENGINE_HOLD_H

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "engine/io/io.h"

enum hold_dsync { HOLD_BOTH = 0, HOLD_PLAIN = 1, HOLD_DSYNC = 2 };

struct hold_rule {
	enum eng_op_kind kind;
	const char *path;     /* part of the path; NULL: any. Not copied. */
	enum hold_dsync sync; /* of writes */
	bool mine;            /* only of rings made by the thread that adds the rule */
	bool after;           /* carried out at once, told when released */
	unsigned skip, most;  /* let so many pass; hold so many at most, 0: all */
};

struct hold_op {
	struct eng_op op;
	struct eng_op *outer;
	struct hold_ring *ring;
	struct hold_op *next, *linked;
	int rule, error;
	bool ready, carried_out;
};

struct hold_ring {
	struct eng_ring ring;
	struct eng_ring *inner;
	pthread_t owner;
	struct hold_op *first, **last; /* queued, not started */
	struct hold_op *chain;         /* the last one, when it links to the next */
};

struct hold_file {
	struct hold_file *next;
	struct eng_file *file;
	char *path;
};

static struct {
	pthread_mutex_t lock;
	const struct eng_io_ops *inner;
	struct eng_io_ops ops;
	struct {
		struct hold_rule want;
		pthread_t thread;
		bool ended;
		unsigned matched, held;
		uint64_t offset, len; /* of the newest one held */
	} rules[64];
	int count;
	struct hold_op *held;
	struct hold_file *files;
	unsigned rings, rings_without_hold; /* made so far; without a file to keep (T19) */
} hold = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* --- rules --- */

static inline int hold_add(struct hold_rule rule)
{
	int i;

	pthread_mutex_lock(&hold.lock);
	i = hold.count++;
	if (i >= 64)
		abort();
	memset(&hold.rules[i], 0, sizeof(hold.rules[i]));
	hold.rules[i].want = rule;
	hold.rules[i].thread = pthread_self();
	pthread_mutex_unlock(&hold.lock);
	return i;
}

static inline unsigned hold_held(int rule)
{
	unsigned n;

	pthread_mutex_lock(&hold.lock);
	n = hold.rules[rule].held;
	pthread_mutex_unlock(&hold.lock);
	return n;
}

/* Ends the rule; what it holds goes on, or, with @error, ends with that. */
static inline void hold_release_error(int rule, int error)
{
	pthread_mutex_lock(&hold.lock);
	hold.rules[rule].ended = true;
	hold.rules[rule].held = 0;
	for (struct hold_op *op = hold.held; op; op = op->next)
		if (op->rule == rule && !op->ready) {
			op->ready = true;
			op->error = error;
			eng_ring_wake(op->ring->inner);
		}
	pthread_mutex_unlock(&hold.lock);
}

static inline void hold_release(int rule)
{
	hold_release_error(rule, 0);
}

static inline bool hold_matches(int i, const struct hold_op *op)
{
	const struct hold_rule *w = &hold.rules[i].want;
	struct hold_file *f = hold.files;

	if (hold.rules[i].ended || op->op.kind != w->kind || w->after != op->carried_out)
		return false;
	if (w->kind == ENG_OP_WRITE && w->sync && op->op.dsync != (w->sync == HOLD_DSYNC))
		return false;
	if (w->mine && !pthread_equal(op->ring->owner, hold.rules[i].thread))
		return false;
	while (f && f->file != op->op.file)
		f = f->next;
	if (w->path && (!f || !strstr(f->path, w->path)))
		return false;
	hold.rules[i].matched++;
	if (hold.rules[i].matched <= w->skip)
		return false;
	return !w->most || hold.rules[i].matched <= w->skip + w->most;
}

/* True: @op stays here until its rule is released. */
static inline bool hold_keep(struct hold_op *op)
{
	bool keep = false;

	pthread_mutex_lock(&hold.lock);
	for (int i = 0; i < hold.count && !keep; i++) {
		struct hold_op **p = &hold.held;

		if (!hold_matches(i, op))
			continue;
		keep = true;
		op->rule = i;
		op->ready = false;
		op->next = NULL;
		while (*p)
			p = &(*p)->next;
		*p = op;
		hold.rules[i].held++;
		hold.rules[i].offset = op->op.offset;
		hold.rules[i].len = 0;
		for (unsigned j = 0; j < op->op.iovcnt; j++)
			hold.rules[i].len += op->op.iov[j].iov_len;
	}
	pthread_mutex_unlock(&hold.lock);
	return keep;
}

/* --- the ring --- */

static inline void hold_start(struct hold_op *op)
{
	if (!hold_keep(op))
		eng_ring_queue(op->ring->inner, &op->op);
}

static inline void hold_finish(struct hold_op *op, int64_t res)
{
	struct eng_op *outer = op->outer;
	struct hold_op *linked = op->linked, *next;
	int64_t want = 0;

	for (unsigned i = 0; op->op.kind != ENG_OP_FDATASYNC && i < op->op.iovcnt; i++)
		want += (int64_t)op->op.iov[i].iov_len;
	if (linked && res == want) {
		hold_start(linked);
		linked = NULL;
	}
	free(op);
	outer->res = res;
	outer->done(outer);
	for (; linked; linked = next) {
		next = linked->linked;
		outer = linked->outer;
		free(linked);
		outer->res = -ECANCELED;
		outer->done(outer);
	}
}

static inline void hold_done(struct eng_op *inner)
{
	struct hold_op *op = (struct hold_op *)inner;

	op->carried_out = true;
	if (!hold_keep(op))
		hold_finish(op, op->op.res);
}

static inline void hold_queue(struct eng_ring *ring, struct eng_op *outer)
{
	struct hold_ring *hr = (struct hold_ring *)ring;
	struct hold_op *op = calloc(1, sizeof(*op));

	if (!op)
		abort();
	op->op = *outer;
	memset(op->op.priv, 0, sizeof(op->op.priv));
	op->op.link = false;
	op->op.done = hold_done;
	op->outer = outer;
	op->ring = hr;
	if (hr->chain) {
		hr->chain->linked = op;
	} else {
		*hr->last = op;
		hr->last = &op->next;
	}
	hr->chain = outer->link ? op : NULL;
}

static inline void hold_start_queued(struct hold_ring *hr)
{
	struct hold_op *op = hr->first, *next;

	hr->first = NULL;
	hr->last = &hr->first;
	for (; op; op = next) {
		next = op->next;
		op->next = NULL;
		hold_start(op);
	}
}

/* What was released goes on; returns how many ended by that. */
static inline int hold_take_ready(struct hold_ring *hr)
{
	struct hold_op *ready = NULL, **tail = &ready, *next;
	int n = 0;

	pthread_mutex_lock(&hold.lock);
	for (struct hold_op **p = &hold.held; *p;) {
		struct hold_op *op = *p;

		if (op->ring != hr || !op->ready) {
			p = &op->next;
			continue;
		}
		*p = op->next;
		op->next = NULL;
		*tail = op;
		tail = &op->next;
	}
	pthread_mutex_unlock(&hold.lock);
	for (; ready; ready = next) {
		next = ready->next;
		ready->next = NULL;
		n++;
		if (ready->error)
			hold_finish(ready, ready->error);
		else if (ready->carried_out)
			hold_finish(ready, ready->op.res);
		else
			eng_ring_queue(hr->inner, &ready->op);
	}
	return n;
}

static inline int hold_submit(struct eng_ring *ring)
{
	struct hold_ring *hr = (struct hold_ring *)ring;

	hold_start_queued(hr);
	return eng_ring_submit(hr->inner);
}

static inline int hold_wait(struct eng_ring *ring, uint64_t timeout_ns)
{
	struct hold_ring *hr = (struct hold_ring *)ring;
	int n, r;

	hold_start_queued(hr);
	n = hold_take_ready(hr);
	r = eng_ring_wait(hr->inner, n ? 0 : timeout_ns);
	hold_start_queued(hr);
	eng_ring_submit(hr->inner);
	return r < 0 && !n ? r : (r > 0 ? r : 0) + n;
}

static inline void hold_ring_destroy(struct eng_ring *ring)
{
	eng_ring_destroy(((struct hold_ring *)ring)->inner);
	free(ring);
}

static inline void hold_wake(struct eng_ring *ring)
{
	eng_ring_wake(((struct hold_ring *)ring)->inner);
}

static inline int hold_fd(struct eng_ring *ring)
{
	return eng_ring_fd(((struct hold_ring *)ring)->inner);
}

static inline struct io_uring *hold_native(struct eng_ring *ring)
{
	return eng_ring_native(((struct hold_ring *)ring)->inner);
}

static inline void hold_on_foreign(struct eng_ring *ring,
				   void (*fn)(void *, uint64_t, int32_t, uint32_t), void *arg)
{
	eng_ring_on_foreign(((struct hold_ring *)ring)->inner, fn, arg);
}

static const struct eng_ring_ops hold_ring_ops = {
	.destroy = hold_ring_destroy,
	.queue = hold_queue,
	.submit = hold_submit,
	.wait = hold_wait,
	.wake = hold_wake,
	.fd = hold_fd,
	.native = hold_native,
	.on_foreign = hold_on_foreign,
};

/* --- the table --- */

static inline int hold_ring_create(struct eng_io *io, unsigned entries, struct eng_file *file,
				   struct eng_ring **ret)
{
	struct hold_ring *hr = calloc(1, sizeof(*hr));
	int r;

	if (!hr)
		return -ENOMEM;
	r = hold.inner->ring_create(io, entries, file, &hr->inner);
	if (r < 0) {
		free(hr);
		return r;
	}
	hr->ring.ops = &hold_ring_ops;
	hr->owner = pthread_self();
	hr->last = &hr->first;
	pthread_mutex_lock(&hold.lock);
	hold.rings++;
	hold.rings_without_hold += !file;
	pthread_mutex_unlock(&hold.lock);
	*ret = &hr->ring;
	return 0;
}

static inline int hold_open(struct eng_io *io, const char *path, unsigned flags,
			    struct eng_file **ret)
{
	struct hold_file *f = calloc(1, sizeof(*f));
	int r = hold.inner->open(io, path, flags, ret);

	if (r < 0 || !f || !(f->path = strdup(path))) {
		free(f);
		return r;
	}
	f->file = *ret;
	pthread_mutex_lock(&hold.lock);
	f->next = hold.files;
	hold.files = f;
	pthread_mutex_unlock(&hold.lock);
	return 0;
}

static inline void hold_close(struct eng_io *io, struct eng_file *file)
{
	struct hold_file *f;

	pthread_mutex_lock(&hold.lock);
	for (struct hold_file **p = &hold.files; (f = *p); p = &f->next)
		if (f->file == file) {
			*p = f->next;
			free(f->path);
			free(f);
			break;
		}
	pthread_mutex_unlock(&hold.lock);
	hold.inner->close(io, file);
}

/* Forgets rules and files, before the next eng_io; nothing is held. */
static inline void hold_reset(void)
{
	for (struct hold_file *f = hold.files, *next; f; f = next) {
		next = f->next;
		free(f->path);
		free(f);
	}
	hold.files = NULL;
	hold.count = 0;
	hold.rings = 0;
	hold.rings_without_hold = 0;
}

static inline void hold_install(struct eng_io *io)
{
	hold_reset();
	hold.inner = io->ops;
	hold.ops = *io->ops;
	hold.ops.open = hold_open;
	hold.ops.close = hold_close;
	hold.ops.ring_create = hold_ring_create;
	io->ops = &hold.ops;
}

#endif
