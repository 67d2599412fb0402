/* SPDX-License-Identifier: MIT */
/*
 * backend.h - where the load goes: a disk through the library's queue, a file through a plain io_uring,
 * or an NBD server through libnbd. All take and give the library's own request and completion structs,
 * so the loop is the same. Every call is made on the job's thread.
 */
#ifndef BENCH_BACKEND_H
#define BENCH_BACKEND_H

#include "bench/load.h"

#include <liburing.h>

struct backend;

struct backend_ops {
	/* Takes up to @count requests in order; how many, or a negative errno. */
	int (*submit)(struct backend *b, const struct vmimg_request *requests, unsigned count);
	/* Waits for at least one completion; 0 only after @timeout_ns, where the backend has that. */
	int (*poll)(struct backend *b, struct vmimg_completion *done, unsigned max,
		    uint64_t timeout_ns);
	/* Nothing is in flight. 0, or what making all durable failed with. */
	int (*close)(struct backend *b);
};

struct backend {
	const struct backend_ops *ops;
	uint64_t size; /* bytes */
	bool direct;
	/* the library */
	struct vmimg_queue *queue;
	struct vmimg_disk *disk; /* a borrowed one has no owner here */
	bool attached;
	/* a file */
	int fd;
	struct io_uring ring;
	struct connection *conn; /* a connection */
};

/* The first job of a disk: attaches it. @disk: "VM/DISK" or a snapshot's disk (read-only). */
int backend_open_disk(struct backend *b, struct vmimg_service *svc, const char *disk,
		      unsigned depth, bool read_only, struct vmimg_error *err);
/* The other jobs of a disk: a queue alone; the disk is set later, and requests are forwarded to it. */
int backend_open_queue(struct backend *b, struct vmimg_service *svc, unsigned depth,
		       struct vmimg_error *err);
int backend_open_file(struct backend *b, const char *path, unsigned depth, bool read_only,
		      bool buffered, struct vmimg_error *err);
/* A connection of the job's own; @depth counts flushes too, and user_data is below it. */
int backend_open_nbd(struct backend *b, const char *uri, unsigned depth, bool writes,
		     struct vmimg_error *err);

/* Fills @err with what failed and the errno's text; returns @code. */
__attribute__((format(printf, 3, 4))) int load_error(struct vmimg_error *err, int code,
						     const char *format, ...);

#endif
