/* SPDX-License-Identifier: MIT */
/*
 * stage.h - what the programs of this folder need before they can measure: a store, a disk with a
 * collection of its own, a snapshot, the end of its seal, and requests on a queue of the caller's.
 *
 * For programs only: whatever fails ends the process with its reason. Every call is made on the main
 * thread, which is also the queue's.
 */
#ifndef BENCH_STAGE_H
#define BENCH_STAGE_H

#include "api/vmimg.h"
#include "bench/histogram.h"
#include "bench/pattern.h"

#include <jansson.h>

#define STAGE_DEPTH 32u /* requests in flight, at most */
#define STAGE_BLOCK 4096u

/* @err NULL: errno says why. */
__attribute__((noreturn)) void stage_die(const char *what, const struct vmimg_error *err);
unsigned stage_number(const char *text); /* from 1 */

/* Opens the store in @dir, which is made when it is not there. */
struct vmimg_service *stage_open(const char *dir);
void stage_close(struct vmimg_service *svc);
/*
 * Makes the disk "NAME/d" of @size bytes, and a collection NAME with it alone. A first snapshot is
 * taken at once, so that what is written from here on goes to overlays and not to the raw base.
 */
void stage_disk(struct vmimg_service *svc, const char *name, uint64_t size);
/* Takes NAME@sNUMBER; nothing of the caller's is in flight. */
void stage_snapshot(struct vmimg_service *svc, const char *name, unsigned number);
/* Waits until that snapshot's layers are sealed, serving @queue (NULL: there is none) meanwhile. */
void stage_await_seal(struct vmimg_service *svc, const char *name, unsigned number,
		      struct vmimg_queue *queue);

struct vmimg_queue *stage_queue(struct vmimg_service *svc);
struct vmimg_disk *stage_attach(struct vmimg_queue *queue, const char *name);
void stage_detach(struct vmimg_disk *disk);

/*
 * Reads or writes (@op) blocks in @order, @depth of them in flight, until @ios are sent or the clock
 * shows @deadline_ns; 0: no such limit. Adds each latency to @latency, and returns how many.
 */
uint64_t stage_run(struct vmimg_queue *queue, struct vmimg_disk *disk, enum vmimg_op op,
		   struct pattern *order, unsigned depth, uint64_t ios, uint64_t deadline_ns,
		   struct histogram *latency);

double stage_cpu_us(void);      /* of the process so far, user and system */
void stage_print(json_t *line); /* on standard output, one line; takes @line */

#endif
