/* SPDX-License-Identifier: MIT */
/*
 * scene.h - a store's life in steps, with one fault in it, and what must hold during and after it: a
 * case of the fault matrix (matrix.c). It runs in a process of its own and ends that.
 */
#ifndef TESTS_FAULT_SCENE_H
#define TESTS_FAULT_SCENE_H

#include "engine/io/io_fault.h"
#include "tests/lib/history.h"

#define SCENE_OPS   4096
#define SCENE_SNAPS 4
#define SCENE_HANG  30 /* seconds for one case */

enum step {
	STEP_OPEN,
	STEP_MAKE,
	STEP_ATTACH,
	STEP_WRITE, /* to raw heads */
	STEP_FLUSH,
	STEP_SNAPSHOT,
	STEP_OVERLAY, /* writes, zeroes, FUA and flushes to overlays */
	STEP_ROLL,
	STEP_AGAIN, /* a snapshot of overlays */
	STEP_SEAL,
	STEP_DETACH,
	STEP_CLOSE,
	STEP_RECOVER, /* the open after a death */
	STEPS,
};

struct fault {
	unsigned step, op; /* enum step; enum eng_fault_op */
	int error;
	bool sticky;
	uint64_t nth;
};

struct scene_snap {
	char name[16];
	uint64_t called, done; /* done: 0 when it failed */
	bool unknown;          /* the commit's outcome is */
};

/* Shared with the parent, and between a dead owner of the store and its heir. */
struct scene_shared {
	uint64_t counts[STEPS][ENG_FAULT_OPS]; /* of a run without faults */
	uint64_t struck;
	bool made, made_unknown; /* the disk of STEP_MAKE */
	char why[1024];
	struct scene_snap snaps[SCENE_SNAPS];
	unsigned snap_count;
	struct history history;
	struct hist_op ops[SCENE_OPS];
};

/*
 * Lives through it in the calling process, in the empty directory @dir, and ends it: 0 when all is well,
 * else @sh->why says what is not. @fault NULL: counts operations. @recovery: the open after a death
 * instead of a life from the first open to the close.
 */
__attribute__((noreturn)) void scene_run(struct scene_shared *sh, const struct fault *fault,
					 const char *dir, bool recovery);

#endif
