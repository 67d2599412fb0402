/* SPDX-License-Identifier: MIT */
/* histogram.c - sums and percentiles of latencies. */
#include "bench/histogram.h"

void histogram_merge(struct histogram *into, const struct histogram *from)
{
	if (!from->count)
		return;
	if (!into->count || from->min < into->min)
		into->min = from->min;
	if (from->max > into->max)
		into->max = from->max;
	into->count += from->count;
	into->sum += from->sum;
	for (unsigned i = 0; i < HISTOGRAM_BUCKETS; i++)
		into->buckets[i] += from->buckets[i];
}

/* The largest value that falls into bucket @i. */
static uint64_t bucket_end(unsigned i)
{
	unsigned shift = i >> HISTOGRAM_BITS;

	if (shift)
		shift--;
	return (((uint64_t)i - ((uint64_t)shift << HISTOGRAM_BITS) + 1) << shift) - 1;
}

/* The smallest bucket end that at least @per_mille of the values do not exceed. */
static uint64_t percentile(const struct histogram *h, uint64_t per_mille)
{
	uint64_t rank = (h->count * per_mille + 999) / 1000;
	uint64_t seen = 0;
	uint64_t end;

	for (unsigned i = 0; i < HISTOGRAM_BUCKETS; i++) {
		seen += h->buckets[i];
		if (seen < rank)
			continue;
		end = bucket_end(i);
		return end < h->max ? end : h->max;
	}
	return h->max;
}

void histogram_latency(const struct histogram *h, struct load_latency *ret)
{
	*ret = (struct load_latency){0};
	if (!h->count)
		return;
	ret->count = h->count;
	ret->min = h->min;
	ret->mean = h->sum / h->count;
	ret->p50 = percentile(h, 500);
	ret->p99 = percentile(h, 990);
	ret->p99_9 = percentile(h, 999);
	ret->max = h->max;
}
