/* SPDX-License-Identifier: MIT */
/*
 * rangelock.h - FIFO locks over ranges of blocks (T4, spec/snapshot.md RL-*).
 *
 * Every write takes one from its dequeue to its publication, whichever layer it goes to. A lock waits
 * for every earlier lock that overlaps it, held or waiting: locks on one block are granted in cut order.
 * The list is as long as the writes in flight, so a scan beats any tree; counts by place save it where
 * nothing can overlap. The disk's worker only.
 */
#ifndef ENGINE_RANGELOCK_H
#define ENGINE_RANGELOCK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct eng_rangelock {
	uint64_t first, last; /* blocks, inclusive */
	unsigned blockers;    /* earlier overlapping locks still there */
	struct eng_rangelock *prev, *next;
	struct eng_rangelock *granted_next;
};

#define ENG_RANGELOCK_CELLS 256u

struct eng_rangelocks {
	struct eng_rangelock *head, *tail;
	unsigned waiting; /* locks with blockers */
	unsigned wide;    /* locks of too many blocks to be counted by place */
	uint32_t cells[ENG_RANGELOCK_CELLS];
};

/* True when granted at once; else @granted of a later unlock will name it. */
bool eng_rangelock_lock(struct eng_rangelocks *locks, struct eng_rangelock *lock, uint64_t first,
			uint64_t last);
/* Releases; then calls @granted for every lock that has no blockers left, in order. @granted may
 * unlock what it is given, and lock anew. */
void eng_rangelock_unlock(struct eng_rangelocks *locks, struct eng_rangelock *lock,
			  void (*granted)(struct eng_rangelock *lock));

#endif
