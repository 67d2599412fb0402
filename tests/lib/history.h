/* SPDX-License-Identifier: MIT */
/*
 * history.h - what a load did to its disks, and from it what a disk or a snapshot may hold after a
 * crash (P1, P2, P4).
 *
 * Every eight bytes that a write puts down say which disk, which place and which write they are of, so
 * a wrong sector tells where it came from. Operations of one disk stand in the order in which its
 * queue took them; the engine applies overlapping ones in that order, so the content of a sector is
 * one of a list of versions: what it was before, or what it was after one of the operations on it.
 *
 * The history may lie in memory that outlives the process (kill9): an operation counts once its
 * @issued is set, which comes last, before it is submitted. hist_add() and hist_tick() may be called
 * from any thread, the rest when the load has ended.
 */
#ifndef TESTS_LIB_HISTORY_H
#define TESTS_LIB_HISTORY_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define HIST_SECTOR 512u
#define HIST_DISKS  8u
#define HIST_NEVER  UINT64_MAX

enum hist_kind {
	HIST_WRITE,
	HIST_ZERO,
	HIST_FLUSH, /* also a detach: everything acknowledged before it is durable after it */
};

struct hist_op {
	uint64_t offset;
	uint32_t length;
	uint8_t kind, disk;
	bool fua;
	_Atomic uint64_t issued; /* when; 0: not yet */
	_Atomic uint64_t acked;  /* when; 0: not yet */
	_Atomic bool failed;     /* ended with an error: each of its sectors may be in or out */
};

struct history {
	unsigned disks;
	uint64_t size[HIST_DISKS];
	uint64_t first_id; /* of ops[0]; ids are never used twice, and never 0 */
	_Atomic size_t count;
	size_t room;
	_Atomic uint64_t clock;
	uint64_t (*tick)(void *arg); /* NULL: clock counts */
	void *tick_arg;
	struct hist_op *ops;
};

uint64_t hist_tick(struct history *h);
/* Notes an operation that is about to be submitted; NULL when there is no room left. */
struct hist_op *hist_add(struct history *h, struct hist_op what);
void hist_ack(struct history *h, struct hist_op *op);
void hist_fail(struct hist_op *op);
uint64_t hist_id(const struct history *h, const struct hist_op *op);
/* The bytes that write @id puts at @offset. */
void hist_fill(void *buf, unsigned disk, uint64_t id, uint64_t offset, size_t len);

/* The versions of every sector. */
struct hist_index;

/* @base: each disk's content before the history; NULL: zeros. NULL is fine to destroy. */
struct hist_index *hist_index_create(const struct history *h, uint8_t *const base[HIST_DISKS]);
void hist_index_destroy(struct hist_index *ix);
size_t hist_sectors(const struct hist_index *ix, unsigned disk);

enum hist_crash {
	HIST_KILLED, /* what was acknowledged survives */
	HIST_POWER,  /* what was flushed survives */
};

#define HIST_WHY 512u

/*
 * P4: whether @data may be what @disk holds after a crash at @when. @floor: versions that must be
 * there for another reason, a sector each, or NULL. False: @why says where and what.
 */
bool hist_check_disk(const struct hist_index *ix, unsigned disk, const uint8_t *data,
		     enum hist_crash crash, uint64_t when, const uint32_t *floor, char *why);

/*
 * P1: whether @data may be one instant of the disks (those that are not NULL), between @called and
 * @done (HIST_NEVER: not known). @floor: filled with the versions that it surely holds, by disk and
 * sector, where not NULL.
 */
bool hist_check_cut(const struct hist_index *ix, uint8_t *const data[HIST_DISKS], uint64_t called,
		    uint64_t done, uint32_t *const floor[HIST_DISKS], char *why);

#endif
