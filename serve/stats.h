/* SPDX-License-Identifier: MIT */
/*
 * stats.h - what a disk has done for its clients. Written by its worker alone, read by any thread:
 * plain relaxed loads and stores, no locked instruction on the data path.
 */
#ifndef SERVE_STATS_H
#define SERVE_STATS_H

#include <stdatomic.h>
#include <stdint.h>

/* Buckets of powers of two: bucket i counts latencies below 2^i us, the last one all others. */
#define SRV_LATENCY_BUCKETS 26

enum srv_stat_op {
	SRV_STAT_READ,
	SRV_STAT_WRITE,
	SRV_STAT_FLUSH,
	SRV_STAT_ZERO, /* write zeroes and trim */
	SRV_STAT_OPS,
};

struct srv_stats {
	struct {
		_Atomic uint64_t requests, bytes, errors, total_ns;
		_Atomic uint64_t latency[SRV_LATENCY_BUCKETS];
	} op[SRV_STAT_OPS];
	_Atomic uint64_t
		snapshot_write_max_ns; /* longest write while a snapshot was being created */
	_Atomic uint64_t connections;  /* now */
};

extern _Atomic unsigned srv_snapshots_running; /* of this process */

uint64_t srv_now_ns(void); /* monotonic */
/* A request ended: @op is an enum vmimg_op. Its worker. */
void srv_stats_note(struct srv_stats *stats, uint8_t op, uint64_t bytes, uint64_t start_ns,
		    int32_t result);

#endif
