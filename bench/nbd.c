/* SPDX-License-Identifier: MIT */
/*
 * nbd.c - a load's third end: one connection to an NBD server, by libnbd's asynchronous calls. libnbd
 * sends a request as it is given and reads one reply a call, which must find something to read (else no
 * request is sent until the next reply): a poll(2) before each. A turn of the loop takes one reply. With
 * more, client and server, which has the other core, come to wait for each other in bursts: 64 KiB reads
 * lose a quarter with eight.
 *
 * Completions are told by libnbd's callback, on the job's thread, inside whichever call read them; they
 * are kept until the next poll. A connection that dies fails what was in flight the same way.
 */
#include "bench/backend.h"

#include <errno.h>
#include <libnbd.h>
#include <limits.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>

/* Of one request; its number is the request's user_data. */
struct conn_slot {
	struct connection *conn;
	uint64_t user_data;
};

struct connection {
	struct nbd_handle *handle;
	unsigned depth, in_flight;
	unsigned ready; /* completions not fetched yet */
	struct vmimg_completion *completed;
	struct conn_slot slots[];
};

static int on_completion(void *user_data, int *error)
{
	const struct conn_slot *slot = user_data;
	struct connection *conn = slot->conn;

	conn->in_flight--;
	conn->completed[conn->ready++] = (struct vmimg_completion){
		.user_data = slot->user_data,
		.result = -*error,
	};
	return 1; /* libnbd may forget it */
}

static int conn_code(void)
{
	int code = nbd_get_errno();

	return code ? -code : -EIO;
}

static int conn_submit(struct backend *b, const struct vmimg_request *requests, unsigned count)
{
	struct connection *conn = b->conn;

	for (unsigned i = 0; i < count; i++) {
		const struct vmimg_request *q = &requests[i];
		struct conn_slot *slot = &conn->slots[q->user_data];
		nbd_completion_callback done = {.callback = on_completion, .user_data = slot};
		uint32_t fua = q->flags & VMIMG_FUA ? LIBNBD_CMD_FLAG_FUA : 0;
		int64_t cookie;

		slot->user_data = q->user_data;
		conn->in_flight++;
		if (q->op == VMIMG_READ)
			cookie = nbd_aio_pread(conn->handle, q->iov->iov_base, q->length, q->offset,
					       done, 0);
		else if (q->op == VMIMG_WRITE)
			cookie = nbd_aio_pwrite(conn->handle, q->iov->iov_base, q->length,
						q->offset, done, fua);
		else
			cookie = nbd_aio_flush(conn->handle, done, 0);
		if (cookie < 0) { /* refused: the callback is not called */
			conn->in_flight--;
			return i ? (int)i : conn_code();
		}
	}
	return (int)count;
}

/* Waits until the connection can go on, and takes it one step further. */
static int conn_step(struct connection *conn, int timeout_ms)
{
	unsigned direction = nbd_aio_get_direction(conn->handle);
	struct pollfd p = {.fd = nbd_aio_get_fd(conn->handle)};
	int r;

	p.events = (short)((direction & LIBNBD_AIO_DIRECTION_READ ? POLLIN : 0) |
			   (direction & LIBNBD_AIO_DIRECTION_WRITE ? POLLOUT : 0));
	r = poll(&p, 1, timeout_ms);
	if (r <= 0)
		return r < 0 && errno != EINTR ? -errno : 0;
	/* A dead connection has told what was in flight: those completions come first. */
	if (p.revents & POLLOUT && nbd_aio_notify_write(conn->handle) < 0)
		return conn->ready ? 0 : conn_code();
	if (p.revents & (POLLIN | POLLHUP | POLLERR) && nbd_aio_notify_read(conn->handle) < 0)
		return conn->ready ? 0 : conn_code();
	return 0;
}

static int conn_poll(struct backend *b, struct vmimg_completion *done, unsigned max,
		     uint64_t timeout_ns)
{
	struct connection *conn = b->conn;
	int timeout_ms = timeout_ns > UINT64_C(1000000) * INT_MAX
				 ? -1
				 : (int)((timeout_ns + 999999) / 1000000);
	unsigned n;
	int r;

	while (!conn->ready) {
		r = conn_step(conn, timeout_ms);
		if (r < 0)
			return r;
		if (timeout_ms >= 0)
			break;
	}
	n = conn->ready < max ? conn->ready : max;
	for (unsigned i = 0; i < n; i++)
		done[i] = conn->completed[i];
	conn->ready -= n;
	for (unsigned i = 0; i < conn->ready; i++)
		conn->completed[i] = conn->completed[n + i];
	return (int)n;
}

static void conn_free(struct connection *conn)
{
	nbd_close(conn->handle);
	free(conn->completed);
	free(conn);
}

static int conn_close(struct backend *b)
{
	int r = nbd_shutdown(b->conn->handle, 0) < 0 ? conn_code() : 0;

	conn_free(b->conn);
	return r;
}

static const struct backend_ops conn_ops = {conn_submit, conn_poll, conn_close};

/* libnbd's own text says what and why. */
static int conn_fail(struct vmimg_error *err, const char *uri)
{
	const char *text = nbd_get_error();
	int code = conn_code();

	return load_error(err, code, "%s: %s", uri, text ? text : "NBD");
}

bool load_is_nbd(const char *target)
{
	static const char *const schemes[] = {"nbd:", "nbds:", "nbd+", "nbds+"};

	for (size_t i = 0; i < sizeof(schemes) / sizeof(*schemes); i++)
		if (!strncmp(target, schemes[i], strlen(schemes[i])))
			return true;
	return false;
}

int backend_open_nbd(struct backend *b, const char *uri, unsigned depth, bool writes,
		     struct vmimg_error *err)
{
	struct connection *conn = calloc(1, sizeof(*conn) + depth * sizeof(*conn->slots));
	int64_t size;
	int r;

	if (!conn)
		return load_error(err, -ENOMEM, "%s", uri);
	conn->depth = depth;
	conn->completed = calloc(depth, sizeof(*conn->completed));
	conn->handle = nbd_create();
	r = conn->completed && conn->handle ? 0 : load_error(err, -ENOMEM, "%s", uri);
	if (r < 0)
		goto fail;
	for (unsigned i = 0; i < depth; i++)
		conn->slots[i].conn = conn;
	/* The URI is the user's own: its certificates and keys may be read. */
	nbd_set_uri_allow_local_file(conn->handle, true);
	/* A reply fills its buffer or fails: clearing it first is half a memory copy a read. */
	nbd_set_pread_initialize(conn->handle, false);
	if (nbd_connect_uri(conn->handle, uri) < 0) {
		r = conn_fail(err, uri);
		goto fail;
	}
	size = nbd_get_size(conn->handle);
	if (size < 0) {
		r = conn_fail(err, uri);
		goto fail;
	}
	if (writes && nbd_is_read_only(conn->handle) > 0) {
		r = load_error(err, -EROFS, "%s: the export is only read", uri);
		goto fail;
	}
	*b = (struct backend){
		.ops = &conn_ops, .size = (uint64_t)size, .direct = true, .fd = -1, .conn = conn};
	return 0;
fail:
	conn_free(conn);
	return r;
}
