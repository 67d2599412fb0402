/* SPDX-License-Identifier: MIT */
/*
 * pool.h - a few background threads for work that must never run on a disk's worker: extending files,
 * log segments, building map regions from sealed indexes, reading qcow2 bases, rolls, seals.
 *
 * Three classes: URGENT (a guest request waits), NORMAL (ahead of need), IDLE (seals: at most one runs
 * at a time). FIFO within a class. With more than one thread, one is always free for URGENT; so that
 * NORMAL work does not wait for a seal either, have three or more. Any thread may submit.
 */
#ifndef ENGINE_POOL_H
#define ENGINE_POOL_H

#include "engine/io/io.h"

struct eng_pool;

enum eng_pool_class {
	ENG_POOL_URGENT = 0,
	ENG_POOL_NORMAL = 1,
	ENG_POOL_IDLE = 2,
};

/* Embedded in its owner; the owner keeps it until @run returned. */
struct eng_task {
	void (*run)(struct eng_task *task);
	struct eng_task *next; /* the pool's */
};

int eng_pool_create(struct eng_io *io, unsigned threads, struct eng_pool **ret);
/* Finishes what is queued, then ends the threads. NULL is fine. */
void eng_pool_destroy(struct eng_pool *pool);
void eng_pool_submit(struct eng_pool *pool, enum eng_pool_class class, struct eng_task *task);
/* Waits until nothing is queued or running. */
void eng_pool_drain(struct eng_pool *pool);
/* True from the start of eng_pool_destroy(): long IDLE work should stop early. */
bool eng_pool_stopping(struct eng_pool *pool);

#endif
