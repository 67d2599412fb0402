/* SPDX-License-Identifier: MIT */
/*
 * backend.c - the two ends of a load. The file's ring is set up as the library sets up its queues (one
 * issuing thread, deferred task work), with nothing registered, and enters the kernel once a turn of the
 * loop: the best a plain program does.
 */
#include "bench/backend.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

int load_error(struct vmimg_error *err, int code, const char *format, ...)
{
	va_list ap;
	int n;

	if (!err)
		return code;
	err->code = code;
	va_start(ap, format);
	n = vsnprintf(err->message, sizeof(err->message), format, ap);
	va_end(ap);
	if (n >= 0 && (size_t)n < sizeof(err->message))
		snprintf(err->message + n, sizeof(err->message) - (size_t)n, ": %s",
			 strerror(-code));
	return code;
}

/* --- a disk --- */

static int disk_submit(struct backend *b, const struct vmimg_request *requests, unsigned count)
{
	return vmimg_queue_prepare(b->queue, requests, count);
}

static int disk_poll(struct backend *b, struct vmimg_completion *done, unsigned max,
		     uint64_t timeout_ns)
{
	return vmimg_queue_poll(b->queue, done, max, timeout_ns);
}

static int disk_close(struct backend *b)
{
	int r = b->attached ? vmimg_disk_detach(b->disk) : 0;
	int s = vmimg_queue_destroy(b->queue);

	return r < 0 ? r : s;
}

static const struct backend_ops disk_ops = {disk_submit, disk_poll, disk_close};

int backend_open_queue(struct backend *b, struct vmimg_service *svc, unsigned depth,
		       struct vmimg_error *err)
{
	struct vmimg_queue *queue = NULL;
	/* One more for a flush beside a full load. */
	int r = vmimg_queue_create(svc, depth < 4096 ? depth + 1 : depth, err, &queue);

	if (r >= 0)
		*b = (struct backend){.ops = &disk_ops, .queue = queue, .direct = true, .fd = -1};
	return r;
}

int backend_open_disk(struct backend *b, struct vmimg_service *svc, const char *disk,
		      unsigned depth, bool read_only, struct vmimg_error *err)
{
	struct backend opened;
	int r = backend_open_queue(&opened, svc, depth, err);

	if (r < 0)
		return r;
	r = vmimg_disk_attach(opened.queue, disk, read_only ? VMIMG_ATTACH_READ_ONLY : 0, err,
			      &opened.disk);
	if (r < 0) {
		vmimg_queue_destroy(opened.queue);
		return r;
	}
	opened.attached = true;
	opened.size = vmimg_disk_size(opened.disk);
	*b = opened;
	return 0;
}

/* --- a file --- */

static int file_submit(struct backend *b, const struct vmimg_request *requests, unsigned count)
{
	for (unsigned i = 0; i < count; i++) {
		const struct vmimg_request *q = &requests[i];
		struct io_uring_sqe *sqe = io_uring_get_sqe(&b->ring);

		if (!sqe) /* full: the next poll enters the kernel */
			return i ? (int)i : -EAGAIN;
		if (q->op == VMIMG_READ)
			io_uring_prep_read(sqe, b->fd, q->iov->iov_base, (unsigned)q->length,
					   q->offset);
		else if (q->op == VMIMG_WRITE)
			io_uring_prep_write(sqe, b->fd, q->iov->iov_base, (unsigned)q->length,
					    q->offset);
		else
			io_uring_prep_fsync(sqe, b->fd, IORING_FSYNC_DATASYNC);
		/* What a full transfer returns, so that the completion can tell a short one. */
		io_uring_sqe_set_data64(sqe, q->user_data << 32 | q->length);
	}
	return (int)count;
}

static int file_poll(struct backend *b, struct vmimg_completion *done, unsigned max,
		     uint64_t timeout_ns)
{
	struct io_uring_cqe *cqe;
	unsigned head, n = 0;
	int r = io_uring_submit_and_wait(&b->ring, timeout_ns ? 1 : 0);

	if (r < 0)
		return r == -EINTR ? 0 : r;
	io_uring_for_each_cqe(&b->ring, head, cqe)
	{
		uint32_t length = (uint32_t)cqe->user_data;

		if (n == max)
			break;
		done[n++] = (struct vmimg_completion){
			.user_data = cqe->user_data >> 32,
			.result = cqe->res < 0                   ? cqe->res
				  : (uint32_t)cqe->res == length ? 0
								 : -EIO,
		};
	}
	io_uring_cq_advance(&b->ring, n);
	return (int)n;
}

static int file_close(struct backend *b)
{
	io_uring_queue_exit(&b->ring);
	return close(b->fd) < 0 ? -errno : 0;
}

static const struct backend_ops file_ops = {file_submit, file_poll, file_close};

int backend_open_file(struct backend *b, const char *path, unsigned depth, bool read_only,
		      bool buffered, struct vmimg_error *err)
{
	struct backend opened = {.ops = &file_ops, .direct = !buffered};
	struct io_uring_params params = {
		.flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN,
	};
	int flags = (read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC;
	off_t size;
	int r;

	opened.fd = open(path, flags | (buffered ? 0 : O_DIRECT));
	if (opened.fd < 0 && errno == EINVAL && !buffered) {
		/* No direct I/O here. */
		opened.direct = false;
		opened.fd = open(path, flags);
	}
	if (opened.fd < 0)
		return load_error(err, -errno, "%s", path);
	size = lseek(opened.fd, 0, SEEK_END);
	if (size < 0) {
		r = load_error(err, -errno, "%s: its size", path);
		goto fail;
	}
	opened.size = (uint64_t)size;
	r = io_uring_queue_init_params(depth + 1, &opened.ring, &params);
	if (r == -EINVAL) {
		params = (struct io_uring_params){0};
		r = io_uring_queue_init_params(depth + 1, &opened.ring, &params);
	}
	if (r < 0) {
		load_error(err, r, "%s: io_uring", path);
		goto fail;
	}
	*b = opened;
	return 0;
fail:
	close(opened.fd);
	return r;
}
