/* SPDX-License-Identifier: MIT */
/*
 * export.h - the disks in use: each attached once, to one worker, however many clients it has and
 * whatever protocol they speak. Attached at its first use; flushed and detached some seconds after its
 * last, or when somebody needs it detached.
 *
 * an export's worker never changes while it is attached. X-2: the table is under a lock; of an
 * export, all but the fields marked otherwise is its worker's. X-3: a name means the snapshot that has it
 * when somebody asks for it, whatever was attached by that name before (NB-1).
 */
#ifndef SERVE_EXPORT_H
#define SERVE_EXPORT_H

#include <stdatomic.h>

#include "serve/stats.h"
#include "serve/worker.h"

#define SRV_EXPORT_NAME_MAX (4 * (VMIMG_NAME_MAX + 1)) /* "COLLECTION@NAME/VM/DISK" and its end */

struct srv_server;
struct srv_exports;

/* Told of changes of an export, on its worker's thread. */
struct srv_watcher {
	struct srv_watcher *next;
	void (*resized)(struct srv_watcher *watcher);
};

struct srv_export {
	char name[SRV_EXPORT_NAME_MAX]; /* immutable, as are the next four */
	bool read_only;
	uint32_t block_size; /* bytes: requests of this size and alignment cost least */
	struct srv_worker *worker;
	struct srv_exports *table;
	_Atomic uint64_t size;  /* bytes; grows; any thread */
	struct srv_stats stats; /* any thread may read */
	struct vmimg_disk *disk;
	char snapshot[37]; /* its id, once attached; "" of a disk. The table's lock */
	struct srv_watcher *watchers;
	/* export.c's, under the table's lock */
	struct srv_export *next;
	unsigned refs;
	int state;
	bool stale; /* another snapshot has its name by now: only who uses it knows it */
	bool flushing, resizing;
	uint64_t idle_ns; /* since when nobody uses it */
	struct srv_want *wants;
	struct srv_task task, resize_task;
	struct srv_io flush;
};

/* Somebody wants an export. The caller's until @done, which runs on the export's worker; on failure
 * (-ENOENT, -EBUSY, ...; @error says more) on some worker. */
struct srv_want {
	struct srv_want *next;
	void (*done)(struct srv_want *want, int result, struct srv_export *export);
	char name[SRV_EXPORT_NAME_MAX];
	struct vmimg_error error;
	struct srv_export *export; /* this and what follows are export.c's */
	char snapshot[37];
	int result;
	struct srv_task task;
};

int srv_exports_create(struct srv_server *server, struct srv_exports **ret);
/* Nothing is in use; all are detached. NULL is fine. */
void srv_exports_destroy(struct srv_exports *exports);

/* Any thread. Each success holds a reference. */
void srv_export_want(struct srv_exports *exports, struct srv_want *want);
/* The export's worker. */
void srv_export_put(struct srv_export *export);

/* Any thread that is no worker, so that it may wait. Detaches the exports without users whose name
 * is @prefix or starts with "@prefix/" (NULL: all); -EBUSY when one has users. */
int srv_exports_release(struct srv_exports *exports, const char *prefix);
/* Any thread: the disk's size has changed; watchers are told. */
void srv_exports_resized(struct srv_exports *exports, const char *name);
/* The main thread, every second or so: lets go of what nobody has used for some seconds. */
void srv_exports_tick(struct srv_exports *exports);
/* Any thread; @each under the table's lock: fields that any thread may read only. */
void srv_exports_each(struct srv_exports *exports,
		      void (*each)(void *arg, const struct srv_export *export, unsigned users),
		      void *arg);

#endif
