/* SPDX-License-Identifier: MIT */
/*
 * demo.h - what the parts of the demo's load program share. Inside each disk's file system lies one
 * large file; the plan says where its blocks are on the disk, and the load writes nowhere else, so the
 * file systems stay sound. A block says which disk and block it is and the number of the write that made
 * it, 0 for its first content; the bytes after that follow from the three, so a torn or misplaced block
 * is seen. Blocks below DEMO_CHAIN_BLOCKS belong to the chains of dependent writes, the others to the
 * random load.
 */
#ifndef DEMO_H
#define DEMO_H

#include <stdint.h>
#include <stdio.h>

#define DEMO_BLOCK        4096u
#define DEMO_DISKS_MAX    64u
#define DEMO_CHAINS       4u
#define DEMO_CHAIN_SLOTS  64u /* blocks of each disk that a chain uses in turn */
#define DEMO_CHAIN_BLOCKS (DEMO_CHAINS * DEMO_CHAIN_SLOTS)
#define DEMO_NAME_MAX     130u

struct demo_disk {
	char name[DEMO_NAME_MAX]; /* VM/DISK */
	uint32_t count;           /* of blocks */
	uint64_t *offsets;        /* of each block on the disk, bytes */
};

/* The disks in the order in which a chain visits them: neighbours belong to different VMs. */
struct demo_plan {
	unsigned count;
	struct demo_disk disks[DEMO_DISKS_MAX];
};

/* Which write a block, or a chain, may hold in the snapshot, and holds at the end. */
struct demo_bounds {
	uint64_t low;  /* the last one acknowledged before CreateSnapshot was called */
	uint64_t high; /* the last one issued before it was seen to have completed */
	uint64_t last; /* the last one acknowledged at all */
};

struct demo_state {
	struct demo_bounds chains[DEMO_CHAINS];
	struct demo_bounds *blocks[DEMO_DISKS_MAX]; /* of each block; those of chains unused */
};

/* Where write @number (1...) of @chain goes. */
struct demo_place {
	unsigned disk;
	uint32_t block;
};

/* All return 0, or -1 with the reason on standard error. */
int demo_plan_read(const char *path, struct demo_plan *ret);
void demo_plan_fini(struct demo_plan *plan);
int demo_state_init(const struct demo_plan *plan, struct demo_state *ret);
int demo_state_read(const char *path, const struct demo_plan *plan, struct demo_state *ret);
int demo_state_write(const char *path, const struct demo_plan *plan,
		     const struct demo_state *state);
void demo_state_fini(const struct demo_plan *plan, struct demo_state *state);

struct demo_place demo_chain_place(const struct demo_plan *plan, unsigned chain, uint64_t number);
void demo_block_fill(void *block, const char *disk, uint32_t index, uint64_t number);
/* The number in a block that is @disk's @index, whole and right; -1 when it is not. */
int64_t demo_block_number(const void *block, const char *disk, uint32_t index);

/* The program's verbs that have a file of their own. */
int demo_run(const char *store, const char *snapshot, const char *plan_path, const char *state_path,
	     unsigned seconds);
int demo_verify(const char *plan_path, const char *state_path, const char *what, const char *images,
		const char *originals);

#endif
