/* SPDX-License-Identifier: MIT */
/*
 * pattern.h - which block comes next, and what a verified block holds. A random pattern visits every
 * block of its region once a pass, in an order that is computed, not stored: a bijection of the next
 * power of two, applied again while it leads outside. One thread.
 */
#ifndef BENCH_PATTERN_H
#define BENCH_PATTERN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PATTERN_ROUNDS 3

struct pattern {
	uint64_t blocks; /* of the region, at least 1 */
	uint64_t next;   /* within the pass */
	uint64_t random; /* state of pattern_random() */
	uint64_t mask;   /* 2^n - 1 >= blocks - 1 */
	unsigned shift;
	bool shuffled, repeats;
	uint64_t factor[PATTERN_ROUNDS], term[PATTERN_ROUNDS];
};

/* @shuffled: random order; @repeats: and any block at any time. */
void pattern_init(struct pattern *p, uint64_t blocks, bool shuffled, bool repeats, uint64_t seed);
uint64_t pattern_next(struct pattern *p);
uint64_t pattern_random(struct pattern *p);

/* A block that tells where, when and by which run it was written, with a checksum over all of it. */
#define STAMP_MIN 512u
void stamp_write(void *buf, size_t len, uint64_t run, uint64_t offset, uint64_t generation);
/* @run 0: whichever wrote it. */
bool stamp_check(const void *buf, size_t len, uint64_t run, uint64_t offset, uint64_t generation);

#endif
