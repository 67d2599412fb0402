/* SPDX-License-Identifier: MIT */
/* stats.c - one writer a struct, so that counting is a load and a store. */
#include "serve/stats.h"

#include <time.h>

#include "api/vmimg.h"

uint64_t srv_now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static void add(_Atomic uint64_t *counter, uint64_t n)
{
	atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + n,
			      memory_order_relaxed);
}

static unsigned bucket_of(uint64_t ns)
{
	uint64_t us = ns / 1000;
	unsigned i = us ? 64 - (unsigned)__builtin_clzll(us) : 0;

	return i < SRV_LATENCY_BUCKETS ? i : SRV_LATENCY_BUCKETS - 1;
}

static enum srv_stat_op stat_op(uint8_t op)
{
	switch (op) {
	case VMIMG_WRITE: return SRV_STAT_WRITE;
	case VMIMG_FLUSH: return SRV_STAT_FLUSH;
	case VMIMG_WRITE_ZEROES:
	case VMIMG_DISCARD: return SRV_STAT_ZERO;
	default: return SRV_STAT_READ;
	}
}

void srv_stats_note(struct srv_stats *stats, uint8_t op, uint64_t bytes, uint64_t start_ns,
		    int32_t result)
{
	enum srv_stat_op which = stat_op(op);
	uint64_t ns = srv_now_ns() - start_ns;

	add(&stats->op[which].requests, 1);
	add(&stats->op[which].total_ns, ns);
	add(&stats->op[which].latency[bucket_of(ns)], 1);
	if (result < 0)
		add(&stats->op[which].errors, 1);
	else
		add(&stats->op[which].bytes, bytes);
	/* The stall that a snapshot costs a guest is its longest write meanwhile. */
	if (which == SRV_STAT_WRITE &&
	    atomic_load_explicit(&srv_snapshots_running, memory_order_relaxed) &&
	    ns > atomic_load_explicit(&stats->snapshot_write_max_ns, memory_order_relaxed))
		atomic_store_explicit(&stats->snapshot_write_max_ns, ns, memory_order_relaxed);
}

_Atomic unsigned srv_snapshots_running;
