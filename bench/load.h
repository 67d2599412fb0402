/* SPDX-License-Identifier: MIT */
/*
 * load.h - one load loop for disks of a store, plain files and NBD exports, so that they can be compared:
 * the same code picks offsets, keeps requests in flight and counts; only the last step differs, a queue
 * of the library, an io_uring of the loop's own, or a connection. Behind `vmimg bench` and the programs in
 * this folder.
 * load_run() may be called from any thread, also several at a time.
 */
#ifndef BENCH_LOAD_H
#define BENCH_LOAD_H

#include "api/vmimg.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum load_rw {
	LOAD_READ,
	LOAD_WRITE,
	LOAD_RANDREAD,
	LOAD_RANDWRITE,
	LOAD_RANDRW, /* half reads, half writes */
};

struct load_options {
	enum load_rw rw;
	uint64_t bs;      /* bytes a request, multiple of 512; 0: 4096 */
	unsigned iodepth; /* requests in flight a job, 1..4096; 0: 32 */
	unsigned numjobs; /* threads a target, which they divide between them; 0: 1 */
	/* The load ends at whichever comes first; with neither, when each block was used once. */
	uint64_t runtime_ns; /* 0: no limit */
	uint64_t number_ios; /* a job; 0: no limit */
	unsigned fsync;      /* a flush after so many writes of a job; 0: none */
	bool norandommap;    /* random offsets may repeat before all have been used */
	bool verify;         /* what was written is read back, and checked, after the load */
	bool buffered;       /* raw files: through the page cache */
	uint64_t seed;       /* 0: another one each time */
	atomic_int *stop;    /* the load ends early when this is not 0; NULL: never */
	/* Called on the job's thread for every read and write of the load; NULL: not. */
	void (*trace)(void *arg, unsigned job, uint8_t op, uint64_t start_ns, uint64_t end_ns);
	void *trace_arg;
};

struct load_latency {
	uint64_t count, min, mean, p50, p99, p99_9, max; /* ns */
};

struct load_result {
	uint64_t ios, reads, writes; /* completed without error */
	uint64_t bytes;
	uint64_t flushes;
	uint64_t errors;             /* requests that failed, and blocks that did not verify */
	uint64_t verified;           /* blocks read back and right */
	uint64_t elapsed_ns;         /* first request to last completion, over all jobs */
	double iops, bandwidth;      /* a second; bytes a second */
	double cpu_us_per_io;        /* of the whole process, user and system */
	bool direct;                 /* every raw file was open with O_DIRECT */
	struct load_latency latency; /* of reads and writes */
	struct load_latency flush_latency;
};

/*
 * Runs the load on all @targets at once: "VM/DISK", "COLLECTION@SNAPSHOT/VM/DISK" (reads only),
 * "raw:FILE", or an NBD URI, of which each job has a connection of its own. @svc: the store of the disks;
 * NULL where no target is one. Returns 0, or a negative
 * errno when the load could not be started. A failed request ends its job; it is counted in
 * @ret->errors, with the first one's text in @err, and the call still returns 0.
 */
int load_run(struct vmimg_service *svc, const char *const *targets, unsigned count,
	     const struct load_options *options, struct vmimg_error *err, struct load_result *ret);

bool load_is_nbd(const char *target); /* an NBD URI */
uint64_t load_now_ns(void);           /* monotonic */

#endif
