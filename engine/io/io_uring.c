/* SPDX-License-Identifier: MIT */
/*
 * io_uring.c - the ring: reads, writes and flushes of the thread that created it, and a wake from
 * any other thread. Invariants:
 *
 * - user_data of our requests is the op's address (bits 0..2 clear); UD_WAKE is the wake's poll;
 *   bit 0 set belongs to the embedder.
 * - SQEs of linked ops are adjacent and reach the kernel in one submit.
 * - An op completes exactly once, from eng_ring_wait(), after its whole transfer. While a short
 *   transfer of a linked op is continued, the ops linked behind it are held back with it.
 * - The held file (the store's lock) is registered, so the kernel keeps it open until the last
 *   request of a killed process has ended (T19).
 * - A cached file's descriptor is held from queueing to completion (P_FD). Without one the request
 *   goes to the kernel all the same, and ends there with those linked behind it.
 * - Only eng_ring_wake() touches anything from another thread: the flag and the eventfd.
 */
#define _GNU_SOURCE 1
#include "engine/io/io_posix.h"

#include <assert.h>
#include <errno.h>
#include <liburing.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define UD_FOREIGN 1u
#define UD_WAKE    2u

#define CHAIN_MAX      8u  /* linked ops in a row */
#define ENTRIES_MIN    16u /* at least CHAIN_MAX */
#define CQ_ENTRIES_MIN 4096u
#define CQE_BATCH      32u
#define PIECE_IOV_MAX  1024u /* UIO_MAXIOV */
#define PIECE_LEN_MAX  0x40000000u

/* eng_op.priv */
enum {
	P_DONE,    /* bytes moved; of a sync: what eng_file_sync_begin() said */
	P_LEN,     /* bytes in all */
	P_NEXT,    /* op linked behind this one (address) or 0 */
	P_LINKED,  /* the request in the kernel carries the link: P_NEXT's is there as well */
	P_RESTART, /* the op further ahead that is continued once P_NEXT's are all back, or 0 */
	P_FD,      /* the file's descriptor until the op is done, or why it has none (negative) */
};

struct uring {
	struct eng_ring ring;
	struct io_uring uring;
	struct eng_op *chain; /* the last op queued, when it links to the next one */
	unsigned in_flight;   /* our ops: queued and not done */
	int wake_fd;
	atomic_int event_fd; /* registered, tells of completions; -1: nobody asked */
	atomic_bool woken;   /* a wake is on its way; further ones need no system call */
	void (*foreign)(void *arg, uint64_t user_data, int32_t res, uint32_t flags);
	void *foreign_arg;
};

static struct uring *uring_of(struct eng_ring *ring)
{
	return (struct uring *)ring;
}

static struct eng_op *op_at(uint64_t addr)
{
	return (struct eng_op *)(uintptr_t)addr;
}

static int op_fd(const struct eng_op *op)
{
	return (int)op->priv[P_FD];
}

/* --- submission --- */

/* Makes room for @count SQEs that must not be split between two submits. */
static void uring_reserve(struct uring *u, unsigned count)
{
	int r;

	while (io_uring_sq_space_left(&u->uring) < count) {
		r = io_uring_submit(&u->uring);
		if (r >= 0)
			continue;
		/* Short of memory or of CQ space for now. Anything else is a bug of ours, and
		 * going on would drop a request that nobody would ever complete. */
		if (r != -EAGAIN && r != -EBUSY && r != -EINTR)
			abort();
		io_uring_get_events(&u->uring);
	}
}

/*
 * Prepares an SQE for what is left of @op, or for a first piece of it: the rest of a partly moved
 * iovec, or as much as one request takes. True when the piece is all that is left.
 */
static bool uring_prep_rw(struct io_uring_sqe *sqe, struct eng_op *op)
{
	uint64_t left = op->priv[P_LEN] - op->priv[P_DONE], skip = op->priv[P_DONE], len = 0;
	uint64_t offset = op->offset + op->priv[P_DONE];
	bool write = op->kind == ENG_OP_WRITE, all;
	const struct iovec *iov = op->iov;
	unsigned count = op->iovcnt;
	void *base = NULL;

	while (count > 1 && skip >= iov->iov_len) {
		skip -= iov->iov_len;
		iov++;
		count--;
	}
	if (count > 1 && skip == 0) {
		all = count <= PIECE_IOV_MAX && left <= PIECE_LEN_MAX;
		if (count > PIECE_IOV_MAX)
			count = PIECE_IOV_MAX;
		io_uring_prep_rw(write ? IORING_OP_WRITEV : IORING_OP_READV, sqe, op_fd(op), iov,
				 count, offset);
	} else {
		if (count > 0) {
			base = (char *)iov->iov_base + skip;
			len = iov->iov_len - skip;
		}
		if (len > PIECE_LEN_MAX)
			len = PIECE_LEN_MAX;
		all = len == left;
		io_uring_prep_rw(write ? IORING_OP_WRITE : IORING_OP_READ, sqe, op_fd(op), base,
				 (unsigned)len, offset);
	}
	if (write && op->dsync)
		sqe->rw_flags = RWF_DSYNC;
	return all;
}

/* Room must have been reserved. False when only a first piece of @op went into its request. */
static bool uring_prep(struct uring *u, struct eng_op *op)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&u->uring);
	bool all = true;

	assert(sqe);
	if (op->kind == ENG_OP_FDATASYNC)
		io_uring_prep_fsync(sqe, op_fd(op), IORING_FSYNC_DATASYNC);
	else
		all = uring_prep_rw(sqe, op);
	sqe->user_data = (uintptr_t)op;
	op->priv[P_LINKED] = op->link && all;
	if (op->priv[P_LINKED])
		sqe->flags |= IOSQE_IO_LINK;
	return all;
}

static void uring_queue(struct eng_ring *ring, struct eng_op *op)
{
	struct uring *u = uring_of(ring);
	unsigned i;
	bool all;
	int fd;

	fd = op->kind == ENG_OP_READ ? eng_file_get(op->file) : eng_file_get_writable(op->file);
	memset(op->priv, 0, sizeof(op->priv));
	op->priv[P_FD] = (uint64_t)fd;
	if (op->kind == ENG_OP_FDATASYNC && fd >= 0)
		op->priv[P_DONE] = eng_file_sync_begin(op->file);
	else if (op->kind == ENG_OP_WRITE && !op->dsync && fd >= 0)
		eng_file_change_begin(op->file);
	if (op->kind != ENG_OP_FDATASYNC)
		for (i = 0; i < op->iovcnt; i++)
			op->priv[P_LEN] += op->iov[i].iov_len;
	if (u->chain)
		u->chain->priv[P_NEXT] = (uintptr_t)op;
	else
		uring_reserve(u, op->link ? CHAIN_MAX : 1);
	all = uring_prep(u, op);
	/* A linked op fits one request, and a chain fits the room reserved for it: the callers'
	 * contract, checked because breaking it breaks the order of writes. */
	assert(!op->link || (all && io_uring_sq_space_left(&u->uring) > 0));
	(void)all;
	u->chain = op->link ? op : NULL;
	u->in_flight++;
}

static int uring_submit(struct eng_ring *ring)
{
	struct uring *u = uring_of(ring);
	int r;

	assert(!u->chain);
	if (!io_uring_sq_ready(&u->uring))
		return 0;
	r = io_uring_submit(&u->uring);
	/* What did not go in stays queued for the next submit or wait. */
	return r >= 0 || r == -EAGAIN || r == -EBUSY || r == -EINTR ? 0 : r;
}

/* --- completion --- */

/* The end of a cached file's use, told to the cache. A failed write pins it, durable or not (T16). */
static void uring_put(struct eng_op *op, bool ok)
{
	struct eng_cached *file = op->file->cached;

	if (op->kind == ENG_OP_FDATASYNC) {
		eng_file_sync_end(op->file, op->priv[P_DONE], ok);
		return;
	}
	if (op->kind == ENG_OP_WRITE && !op->dsync) {
		eng_file_change_end(op->file, ok);
		return;
	}
	if (op->kind == ENG_OP_WRITE && !ok)
		eng_fdcache_pin(file);
	eng_fdcache_put(file);
}

static void uring_finish(struct uring *u, struct eng_op *op, int64_t res)
{
	u->in_flight--;
	if (op->file->fd < 0) {
		if (op_fd(op) >= 0)
			uring_put(op, res >= 0);
		else if (res == -EBADF)
			res = op_fd(op);
	}
	op->res = res;
	op->done(op);
}

/* Sends the rest of @op and, once that is one piece, the ops that were held behind it. */
static void uring_restart(struct uring *u, struct eng_op *op)
{
	unsigned count = 1;
	struct eng_op *i;

	assert(!u->chain);
	for (i = op; i->link && i->priv[P_NEXT]; i = op_at(i->priv[P_NEXT]))
		count++;
	uring_reserve(u, count);
	for (i = op; i; i = i->link ? op_at(i->priv[P_NEXT]) : NULL) {
		i->priv[P_RESTART] = 0;
		if (!uring_prep(u, i))
			break;
	}
}

static void uring_wake_arm(struct uring *u)
{
	struct io_uring_sqe *sqe;

	uring_reserve(u, 1);
	sqe = io_uring_get_sqe(&u->uring);
	io_uring_prep_poll_multishot(sqe, u->wake_fd, POLLIN);
	sqe->user_data = UD_WAKE;
}

static void uring_on_wake(struct uring *u, uint32_t flags)
{
	/* Cleared before the caller looks at whatever it was woken for: a later wake makes a new
	 * completion. Exchange, not store: it must see what came before the wake it swallows. */
	atomic_exchange(&u->woken, false);
	if (flags & IORING_CQE_F_MORE)
		return;
	/* The kernel ended the poll. Submitted at once: the owner may poll the fd next. */
	uring_wake_arm(u);
	io_uring_submit(&u->uring);
}

/*
 * The rest of a short transfer. The kernel cancels what was linked behind one; those ops come back
 * first, one after the other, and then the whole chain starts again from here.
 */
static void uring_continue(struct uring *u, struct eng_op *op)
{
	if (op->priv[P_LINKED] && op->priv[P_NEXT])
		op_at(op->priv[P_NEXT])->priv[P_RESTART] = (uintptr_t)op;
	else
		uring_restart(u, op);
}

/* @res bytes of @op were moved, perhaps not all: is it over, and how? */
static bool uring_moved(struct eng_op *op, int32_t res, int64_t *ret)
{
	op->priv[P_DONE] += (uint32_t)res;
	*ret = (int64_t)op->priv[P_DONE];
	if (op->priv[P_DONE] == op->priv[P_LEN])
		return true;
	if (res == 0 && op->kind == ENG_OP_WRITE)
		*ret = -EIO;
	/* The end of the file; a direct read that ends off its granule is there, and could not be
	 * continued. */
	return res == 0 || op->priv[P_DONE] % op->file->dio_align != 0;
}

static void uring_on_op(struct uring *u, struct eng_op *op, int32_t res)
{
	struct eng_op *ahead = op_at(op->priv[P_RESTART]);
	int64_t outcome = res;
	bool over;

	if (ahead && op->priv[P_LINKED] && op->priv[P_NEXT]) {
		op_at(op->priv[P_NEXT])->priv[P_RESTART] = (uintptr_t)ahead;
		return;
	}
	if (ahead) {
		uring_restart(u, ahead);
		return;
	}
	if (op->kind == ENG_OP_FDATASYNC)
		over = true; /* never retried, whatever it says (T16) */
	else if (res < 0)
		over = res != -EINTR && res != -EAGAIN;
	else
		over = uring_moved(op, res, &outcome);
	if (over)
		uring_finish(u, op, outcome);
	else
		uring_continue(u, op);
}

/* Copies completions out before it calls anybody: a callback may queue, and queueing may enter. */
static int uring_reap(struct uring *u)
{
	struct io_uring_cqe *cqe, batch[CQE_BATCH];
	unsigned head, n, i;
	int handled = 0;

	do {
		n = 0;
		io_uring_for_each_cqe(&u->uring, head, cqe)
		{
			batch[n++] = *cqe;
			if (n == CQE_BATCH)
				break;
		}
		io_uring_cq_advance(&u->uring, n);
		for (i = 0; i < n; i++) {
			if (batch[i].user_data == UD_WAKE)
				uring_on_wake(u, batch[i].flags);
			else if (!(batch[i].user_data & UD_FOREIGN))
				uring_on_op(u, op_at(batch[i].user_data), batch[i].res);
			else if (u->foreign)
				u->foreign(u->foreign_arg, batch[i].user_data, batch[i].res,
					   batch[i].flags);
		}
		handled += (int)n;
	} while (n == CQE_BATCH);
	return handled;
}

/* At most one system call; none where there is nothing to send, to fetch or to wait for. */
static int uring_enter(struct uring *u, uint64_t timeout_ns)
{
	struct io_uring *uring = &u->uring;
	struct io_uring_cqe *cqe;
	struct __kernel_timespec ts;

	if (timeout_ns == 0 || io_uring_cq_ready(uring) > 0) {
		if (io_uring_sq_ready(uring) > 0)
			return io_uring_submit_and_get_events(uring);
		if (IO_URING_READ_ONCE(*uring->sq.kflags) &
		    (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW))
			return io_uring_get_events(uring);
		return 0;
	}
	if (timeout_ns == UINT64_MAX)
		return io_uring_submit_and_wait(uring, 1);
	ts.tv_sec = (long long)(timeout_ns / 1000000000u);
	ts.tv_nsec = (long long)(timeout_ns % 1000000000u);
	return io_uring_submit_and_wait_timeout(uring, &cqe, 1, &ts, NULL);
}

/* The event is taken back first: what comes after that tells anew, what came before is seen here. */
static void uring_settle_event(struct uring *u)
{
	eventfd_read(u->event_fd, &(eventfd_t){0});
	if (io_uring_cq_ready(&u->uring) ||
	    (IO_URING_READ_ONCE(*u->uring.sq.kflags) & IORING_SQ_TASKRUN))
		eventfd_write(u->event_fd, 1);
}

static int uring_wait(struct eng_ring *ring, uint64_t timeout_ns)
{
	struct uring *u = uring_of(ring);
	int r, handled;

	assert(!u->chain);
	r = uring_enter(u, timeout_ns);
	handled = uring_reap(u);
	if (u->event_fd >= 0)
		uring_settle_event(u);
	if (handled > 0 || r >= 0 || r == -ETIME || r == -EINTR || r == -EAGAIN || r == -EBUSY)
		return handled;
	return r;
}

/* --- the rest --- */

static void uring_wake(struct eng_ring *ring)
{
	struct uring *u = uring_of(ring);
	int event_fd;

	if (atomic_exchange(&u->woken, true))
		return;
	eventfd_write(u->wake_fd, 1);
	/* Not left to the kernel: from within another eventfd's wake it is not always signalled. */
	event_fd = atomic_load(&u->event_fd);
	if (event_fd >= 0)
		eventfd_write(event_fd, 1);
}

/*
 * Not the ring's own descriptor: with DEFER_TASKRUN the kernel does not wake who polls that, since
 * the completion is made only when the owner enters. A registered eventfd is signalled either way.
 */
static int uring_fd(struct eng_ring *ring)
{
	struct uring *u = uring_of(ring);
	int fd, r;

	if (u->event_fd >= 0)
		return u->event_fd;
	fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (fd < 0)
		return -errno;
	r = io_uring_register_eventfd(&u->uring, fd);
	if (r < 0) {
		close(fd);
		return r;
	}
	atomic_store(&u->event_fd, fd);
	uring_settle_event(u); /* there may be something to do already */
	return fd;
}

static struct io_uring *uring_native(struct eng_ring *ring)
{
	return &uring_of(ring)->uring;
}

static void uring_on_foreign(struct eng_ring *ring, void (*fn)(void *, uint64_t, int32_t, uint32_t),
			     void *arg)
{
	uring_of(ring)->foreign = fn;
	uring_of(ring)->foreign_arg = arg;
}

static void uring_destroy(struct eng_ring *ring)
{
	struct uring *u = uring_of(ring);

	assert(u->in_flight == 0);
	/* The kernel takes a ring apart in the background; the held lock must not wait for that,
	 * or closing a store and opening it again would fail. */
	io_uring_unregister_files(&u->uring);
	io_uring_queue_exit(&u->uring);
	if (u->event_fd >= 0)
		close(u->event_fd);
	close(u->wake_fd);
	free(u);
}

static const struct eng_ring_ops uring_ops = {
	.destroy = uring_destroy,
	.queue = uring_queue,
	.submit = uring_submit,
	.wait = uring_wait,
	.wake = uring_wake,
	.fd = uring_fd,
	.native = uring_native,
	.on_foreign = uring_on_foreign,
};

/* The best set of flags this kernel has. */
static int uring_init(struct io_uring *uring, unsigned entries)
{
	static const unsigned flags[] = {
		IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN |
			IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_SUBMIT_ALL, /* Linux 6.1 */
		IORING_SETUP_SUBMIT_ALL,                                     /* 5.18 */
		0,
	};
	struct io_uring_params params;
	int r = -EINVAL;
	size_t i;

	for (i = 0; i < sizeof(flags) / sizeof(flags[0]) && r == -EINVAL; i++) {
		memset(&params, 0, sizeof(params));
		params.flags = flags[i] | IORING_SETUP_CLAMP | IORING_SETUP_CQSIZE;
		params.cq_entries = entries > CQ_ENTRIES_MIN / 4 ? entries * 4 : CQ_ENTRIES_MIN;
		r = io_uring_queue_init_params(entries, uring, &params);
	}
	if (r < 0)
		return r;
	/* Timed waits in one call, and completions that are never dropped (5.11). */
	if (!(params.features & IORING_FEAT_EXT_ARG) || !(params.features & IORING_FEAT_NODROP)) {
		io_uring_queue_exit(uring);
		return -ENOSYS;
	}
	return 0;
}

static int uring_create(unsigned entries, struct eng_file *hold, struct eng_ring **ret)
{
	struct uring *u = calloc(1, sizeof(*u));
	int r;

	if (!u)
		return -ENOMEM;
	u->ring.ops = &uring_ops;
	atomic_init(&u->event_fd, -1);
	u->wake_fd = eventfd(0, EFD_CLOEXEC);
	if (u->wake_fd < 0) {
		r = -errno;
		goto out;
	}
	if (entries > 32768)
		entries = 32768;
	r = uring_init(&u->uring, entries > ENTRIES_MIN ? entries : ENTRIES_MIN);
	if (r < 0)
		goto out_fd;
	if (hold) {
		assert(hold->fd >= 0);
		r = io_uring_register_files(&u->uring, &hold->fd, 1);
		if (r < 0)
			goto out_ring;
	}
	uring_wake_arm(u);
	r = io_uring_submit(&u->uring);
	if (r < 0)
		goto out_ring;
	*ret = &u->ring;
	return 0;

out_ring:
	io_uring_queue_exit(&u->uring);
out_fd:
	close(u->wake_fd);
out:
	free(u);
	return r;
}

/* Two descriptors: cached files that are idle give way to them (IO-9). */
int eng_io_uring_create(struct eng_io *io, unsigned entries, struct eng_file *hold,
			struct eng_ring **ret)
{
	int r;

	(void)io;
	do {
		r = uring_create(entries, hold, ret);
	} while ((r == -EMFILE || r == -ENFILE) && eng_fdcache_close_idle());
	return r;
}
