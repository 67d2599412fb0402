/* SPDX-License-Identifier: MIT */
/*
 * crashed.h - a store that a power loss has left, and what may be in it: the checks of powerloss.c, and
 * keeping a case that failed them. The load's part of everything is read-only here; a kase belongs to
 * one process.
 */
#ifndef TESTS_CRASH_CRASHED_H
#define TESTS_CRASH_CRASHED_H

#include "engine/io/io_record.h"
#include "tests/crash/rig.h"

#define CRASHED_OPS 4000 /* requests of a load */

/* A snapshot as it was when the load had ended. */
struct whole {
	uint64_t hash[RIG_DISKS];
	uint32_t *floor[HIST_DISKS]; /* versions that it holds, a sector each */
	bool there;
};

struct recording {
	uint64_t seed;
	bool tmpfs;
	char root[96], store[112], shm[64];
	struct eng_io *io;
	struct eng_record *rec;
	struct rig_log *log;
	struct hist_index *ix;
	struct whole snaps[RIG_SNAPS];
	uint64_t *hot; /* events around which things go wrong */
	size_t hot_count;
	uint64_t events;
};

struct cut { /* of a recorder's log */
	uint64_t index, seed;
};

/* Shared with the parent. */
struct progress {
	_Atomic uint64_t index, seed, replays, recoveries, opens;
	char why[1600], kept[128];
};

/* A tree that a power loss left, and what may be in it. */
struct kase {
	const struct recording *r;
	struct eng_record *rec; /* whose log was cut: the load's, or a recovery's */
	struct cut at;          /* in that log */
	uint64_t when;          /* in the load's */
	uint64_t rng;
	char dir[96], store[112], shm[112];
	struct progress *progress;
};

/* Says in k->progress what is wrong with the tree; false. */
__attribute__((format(printf, 2, 3))) bool crashed_blame(struct kase *k, const char *fmt, ...);
/* Another boot of the machine: other id, empty shared memory. */
struct eng_io *crashed_boot(struct kase *k);
/* Recovers the store at k->store, checks it by all the rules, and uses it. */
bool crashed_check(struct kase *k);

/* Keeps the tree of the kase, as the power loss left it, with the history, below @dir. */
void crashed_keep(struct kase *k, const char *dir);
/* What was kept in @dir: a recording without its recorder; *@when: as in the kase. NULL: nothing. */
struct recording *crashed_load(const char *dir, uint64_t *when);

#endif
