/* SPDX-License-Identifier: MIT */
/*
 * histogram.h - latencies in log-linear buckets: 64 to a power of two, so a percentile is within 1.6 %,
 * in 30 KiB whatever the range. Not locked: one thread adds; the sum is made when all have ended.
 */
#ifndef BENCH_HISTOGRAM_H
#define BENCH_HISTOGRAM_H

#include "bench/load.h"

#define HISTOGRAM_BITS    6u
#define HISTOGRAM_BUCKETS ((64u - HISTOGRAM_BITS + 1u) << HISTOGRAM_BITS)

struct histogram {
	uint64_t count, sum, min, max;
	uint64_t buckets[HISTOGRAM_BUCKETS];
};

/* A zeroed histogram is an empty one. */
static inline void histogram_add(struct histogram *h, uint64_t ns)
{
	unsigned shift = ns >> HISTOGRAM_BITS ? 63u - HISTOGRAM_BITS - (unsigned)__builtin_clzll(ns)
					      : 0;

	/* Below 2^BITS the bucket is the value; above, each doubling adds 2^BITS buckets. */
	h->buckets[(shift << HISTOGRAM_BITS) + (ns >> shift)]++;
	if (!h->count || ns < h->min)
		h->min = ns;
	if (ns > h->max)
		h->max = ns;
	h->sum += ns;
	h->count++;
}

void histogram_merge(struct histogram *into, const struct histogram *from);
void histogram_latency(const struct histogram *h, struct load_latency *ret);

#endif
