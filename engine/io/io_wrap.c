/* SPDX-License-Identifier: MIT */
/*
 * io_wrap.c - a ring around another one, with a hook before and after every operation. The ring's
 * owner only, except wake.
 *
 * Linked operations are sent one after the other, the next when the one in front has come back and
 * succeeded: the hooks see the order that a link promises. The kernel's own links are io_uring.c's
 * business and tested there. Memory that runs out aborts: wrapped rings are for tests, and one
 * operation more or less than asked for would prove nothing.
 */
#include "engine/io/io_wrap.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

struct eng_wrap_list {
	struct eng_wrap_op *first, **last;
};

struct eng_wrap_ring {
	struct eng_ring ring;
	struct eng_ring *inner;
	const struct eng_wrap_hooks *hooks;
	void *arg;
	struct eng_wrap_list queued; /* not started */
	struct eng_wrap_list failed; /* by the start hook; to be completed by the next wait */
	struct eng_wrap_op *chain;   /* the last one queued, when it links to the next */
	bool sent;                   /* something was queued below since the last submit */
};

static struct eng_wrap_ring *wrap_of(struct eng_ring *ring)
{
	return (struct eng_wrap_ring *)ring;
}

static void wrap_list_init(struct eng_wrap_list *list)
{
	list->first = NULL;
	list->last = &list->first;
}

static void wrap_list_add(struct eng_wrap_list *list, struct eng_wrap_op *op)
{
	op->next = NULL;
	*list->last = op;
	list->last = &op->next;
}

static struct eng_wrap_op *wrap_list_take_all(struct eng_wrap_list *list)
{
	struct eng_wrap_op *first = list->first;

	wrap_list_init(list);
	return first;
}

static void wrap_start(struct eng_wrap_op *op)
{
	struct eng_wrap_ring *wr = op->ring;
	int r = wr->hooks->start(wr->arg, op);

	if (r < 0) {
		op->op.res = r;
		wrap_list_add(&wr->failed, op);
	} else {
		eng_ring_queue(wr->inner, &op->op);
		wr->sent = true;
	}
}

static bool wrap_succeeded(const struct eng_wrap_op *op)
{
	int64_t len = 0;
	unsigned i;

	for (i = 0; op->outer->kind != ENG_OP_FDATASYNC && i < op->outer->iovcnt; i++)
		len += (int64_t)op->outer->iov[i].iov_len;
	return op->op.res == len;
}

static void wrap_finish(struct eng_wrap_op *op, int64_t res)
{
	struct eng_op *outer = op->outer;

	free(op);
	outer->res = res;
	outer->done(outer);
}

static void wrap_done(struct eng_op *inner)
{
	struct eng_wrap_op *op = (struct eng_wrap_op *)inner, *linked = op->linked, *next;
	bool ok;

	op->ring->hooks->done(op->ring->arg, op);
	ok = wrap_succeeded(op);
	if (linked && ok)
		wrap_start(linked);
	wrap_finish(op, op->op.res);
	for (; linked && !ok; linked = next) {
		next = linked->linked;
		wrap_finish(linked, -ECANCELED);
	}
}

static void wrap_queue(struct eng_ring *ring, struct eng_op *outer)
{
	struct eng_wrap_ring *wr = wrap_of(ring);
	struct eng_wrap_op *op = calloc(1, sizeof(*op));

	if (!op)
		abort();
	op->op = (struct eng_op){
		.kind = outer->kind,
		.dsync = outer->dsync,
		.offset = outer->offset,
		.file = eng_wrap_inner(outer->file),
		.iov = outer->iov,
		.iovcnt = outer->iovcnt,
		.done = wrap_done,
	};
	op->outer = outer;
	op->ring = wr;
	if (wr->chain)
		wr->chain->linked = op;
	else
		wrap_list_add(&wr->queued, op);
	wr->chain = outer->link ? op : NULL;
}

static void wrap_start_queued(struct eng_wrap_ring *wr)
{
	struct eng_wrap_op *op = wrap_list_take_all(&wr->queued), *next;

	assert(!wr->chain);
	for (; op; op = next) {
		next = op->next;
		wrap_start(op);
	}
}

static int wrap_submit(struct eng_ring *ring)
{
	struct eng_wrap_ring *wr = wrap_of(ring);

	wrap_start_queued(wr);
	wr->sent = false;
	if (wr->failed.first)
		eng_ring_wake(wr->inner); /* the fd says that there is something to do */
	return eng_ring_submit(wr->inner);
}

static int wrap_wait(struct eng_ring *ring, uint64_t timeout_ns)
{
	struct eng_wrap_ring *wr = wrap_of(ring);
	struct eng_wrap_op *op, *next;
	int handled, failed = 0;

	wrap_start_queued(wr);
	wr->sent = false;
	handled = eng_ring_wait(wr->inner, wr->failed.first ? 0 : timeout_ns);
	while ((op = wrap_list_take_all(&wr->failed)) != NULL) {
		for (; op; op = next, failed++) {
			next = op->next;
			wrap_done(&op->op);
		}
	}
	/* A linked op must not stay behind when the owner goes on to poll the fd. */
	if (wr->sent)
		eng_ring_submit(wr->inner);
	return handled < 0 && !failed ? handled : (handled > 0 ? handled : 0) + failed;
}

static void wrap_destroy(struct eng_ring *ring)
{
	struct eng_wrap_ring *wr = wrap_of(ring);

	assert(!wr->queued.first && !wr->failed.first);
	eng_ring_destroy(wr->inner);
	free(wr);
}

static void wrap_wake(struct eng_ring *ring)
{
	eng_ring_wake(wrap_of(ring)->inner);
}

static int wrap_fd(struct eng_ring *ring)
{
	return eng_ring_fd(wrap_of(ring)->inner);
}

static struct io_uring *wrap_native(struct eng_ring *ring)
{
	return eng_ring_native(wrap_of(ring)->inner);
}

static void wrap_on_foreign(struct eng_ring *ring, void (*fn)(void *, uint64_t, int32_t, uint32_t),
			    void *arg)
{
	eng_ring_on_foreign(wrap_of(ring)->inner, fn, arg);
}

static const struct eng_ring_ops wrap_ops = {
	.destroy = wrap_destroy,
	.queue = wrap_queue,
	.submit = wrap_submit,
	.wait = wrap_wait,
	.wake = wrap_wake,
	.fd = wrap_fd,
	.native = wrap_native,
	.on_foreign = wrap_on_foreign,
};

int eng_wrap_ring_create(struct eng_io *inner, unsigned entries, struct eng_file *hold,
			 const struct eng_wrap_hooks *hooks, void *arg, struct eng_ring **ret)
{
	struct eng_wrap_ring *wr = calloc(1, sizeof(*wr));
	int r;

	if (!wr)
		return -ENOMEM;
	wr->ring.ops = &wrap_ops;
	wr->hooks = hooks;
	wr->arg = arg;
	wrap_list_init(&wr->queued);
	wrap_list_init(&wr->failed);
	r = eng_ring_create(inner, entries, eng_wrap_inner(hold), &wr->inner);
	if (r < 0)
		free(wr);
	else
		*ret = &wr->ring;
	return r;
}
