/* SPDX-License-Identifier: MIT */
/*
 * rig.h - a store under load for the crash tests: two queues on two threads that keep many requests
 * of all kinds in flight on all disks, a third thread that makes snapshots and short-lived disks, and
 * what all of them were told, in a log that may outlive the process.
 *
 * VMs a and b with their disks are in the collection c; b/ind is independent, VM x is in no
 * collection. Nothing here asserts: a thread that meets an error it should not meet notes it in the
 * log and stops everybody.
 */
#ifndef TESTS_CRASH_RIG_H
#define TESTS_CRASH_RIG_H

#include <pthread.h>

#include "engine/snapshot/snapshot.h"
#include "tests/lib/history.h"
#include "tests/lib/random.h"

#define RIG_DISKS  5u
#define RIG_SNAPS  256u
#define RIG_EXTRAS 64u

struct rig_snap {
	char name[24];
	struct fmt_uuid id, job;
	uint64_t called;
	_Atomic uint64_t done; /* completed, and its job says so; 0: not */
	_Atomic bool failed;
	uint64_t ended;                     /* when the run had returned */
	_Atomic uint64_t deleting, deleted; /* 0: not reached */
};

/* A disk of VM x that came and went: each instant 0 when it was not reached. */
struct rig_extra {
	char name[24];
	_Atomic uint64_t making, made, removing, removed;
};

struct rig_log {
	struct history history;
	_Atomic unsigned snap_count, extra_count;
	struct rig_snap snaps[RIG_SNAPS];
	struct rig_extra extras[RIG_EXTRAS];
	_Atomic bool overlaid; /* the members have overlays: a snapshot was made */
	_Atomic bool failed;
	char why[1024];
	struct hist_op ops[]; /* history.room */
};

struct rig {
	struct eng_io *io;
	const char *dir;
	struct eng_store_options options;
	struct rig_log *log;
	uint64_t seed;
	size_t ops;        /* until so many are in the history */
	unsigned pause_us; /* between snapshots, at most */
	unsigned depth;    /* in flight, a queue */
	unsigned extras;   /* of 256 turns of the snapshot thread, make or remove a disk */
	unsigned deletes;  /* of 256 turns of the snapshot thread, delete a snapshot */
	unsigned flushes;  /* of 256 requests */
	unsigned fuas;     /* of 256 writes */
	unsigned detaches; /* of 4096 requests, detach and attach a disk instead */
	unsigned files;    /* descriptors that the cache may keep open, 0: many */
	bool die;          /* in the end, as a process: no detach, no close */
	/* What the recorder tears is bytes where a page cache has sectors: whole sectors only, */
	bool sectors;         /* ... of all requests */
	bool sectors_punched; /* ... of zeroes on disks that may have a raw head */
	struct eng_store *store;
	_Atomic bool stop;
	_Atomic unsigned running; /* workers */
	pthread_mutex_t lock;
	struct eng_snapshot *current; /* lock: to be cancelled */
};

size_t rig_log_size(size_t ops);
/* Empties the log for a load with @first_id; the sizes are rig_size()'s. */
void rig_log_reset(struct rig_log *log, size_t ops, uint64_t first_id);
const char *rig_disk_name(unsigned disk);
uint64_t rig_size(unsigned disk);
bool rig_is_member(unsigned disk);

/* A new store in @dir with its VMs, disks and collection. @error: why not. */
int rig_make_store(struct eng_io *io, const char *dir, uint64_t seed, struct fmt_error *err);

/*
 * Opens the store, runs the load until the history holds rig->ops, detaches and closes. False: the
 * log says why.
 */
bool rig_run(struct rig *rig);

/* --- looking at a store --- */
struct rig_view {
	struct eng_io *io;
	struct eng_store *store;
	struct eng_queue *queue;
};

/* Opens (waiting up to ten seconds while it is in use), and makes a queue. */
int rig_view_open(struct eng_io *io, const char *dir, const struct eng_store_options *options,
		  struct rig_view *view, struct fmt_error *err);
int rig_view_close(struct rig_view *view);
/* Reads the whole of a disk ("a/d0") or of a snapshot's ("c@s1/a/d0"). @data: @size bytes. */
int rig_view_read(struct rig_view *view, const char *name, uint8_t *data, uint64_t size,
		  struct fmt_error *err);
/* Writes a sector's worth somewhere on every disk, takes a snapshot and checks both. */
int rig_view_use(struct rig_view *view, struct fmt_error *err);
/* Name of a snapshot's disk, valid until the next call. */
const char *rig_snap_disk(const char *snapshot, unsigned disk);

#endif
