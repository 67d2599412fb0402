/* SPDX-License-Identifier: MIT */
/*
 * storm.h - several threads that issue conflicting operations on one service at once (storm.c): the model,
 * and what is asked of a success.
 *
 * The disks of the collection change together, between the storms, from one version to the next; what a
 * version holds of each disk is known. While a storm blows no guest writes anything new, so that whatever is
 * made then, of whatever snapshot, must hold one version, the same on all disks; and what has an id holds
 * that version for ever.
 */
#ifndef TESTS_SIM_STORM_H
#define TESTS_SIM_STORM_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "api/vmimg.h"

#define STORM_DISKS    4u
#define STORM_BLOCK    4096u
#define STORM_BLOCKS   64u
#define STORM_SIZE     (STORM_BLOCKS * STORM_BLOCK) /* at first; disks grow */
#define STORM_VERSIONS 4096u
#define STORM_NAMES    5u
#define STORM_SECOND   1000000000ull

extern struct vmimg_service *storm_svc;
extern char storm_dir[256];
extern uint64_t storm_seed;
extern const char *const storm_disks[STORM_DISKS]; /* "VM/DISK" */

/* One thread's own. */
struct storm_thread {
	unsigned number;
	uint64_t random;
	struct vmimg_error err; /* of the last call */
	char doing[300];
	uint64_t calls, done;
	char dir[300], other_dir[300]; /* for exports; of a second store */
	struct vmimg_service *other;   /* that store */
};

/* Says what the thread does, the store's place and the seed, and ends the process. */
void storm_fail(const struct storm_thread *t, const char *format, ...)
	__attribute__((format(printf, 2, 3), noreturn));
uint64_t storm_pick(struct storm_thread *t, uint64_t n); /* below @n */
json_t *storm_document(struct storm_thread *t, struct vmimg_service *svc, enum vmimg_kind kind,
		       const char *name); /* NULL: there is none */
/* The string at @key of an element, "" where it is none. */
void storm_text(struct storm_thread *t, struct vmimg_service *svc, enum vmimg_kind kind,
		const char *name, const char *key, char ret[80]);

/* --- versions (storm_model.c) --- */
/* A new version, of some blocks more; what it holds of a block. */
uint32_t storm_version_make(uint64_t *random);
uint32_t storm_version_newest(void);
void storm_block(uint32_t version, unsigned disk, unsigned block, uint8_t buf[STORM_BLOCK]);
bool storm_differs(uint32_t a, uint32_t b, unsigned disk, unsigned block);
/* The version that @data, all of a disk, is; 0: none. */
uint32_t storm_version_of(unsigned disk, const uint8_t *data, uint64_t size);
/* The element of this id is that version: fails when it has been another one. */
void storm_note(struct storm_thread *t, const char *id, uint32_t version);
uint32_t storm_known(const char *id); /* 0: not known */

/* --- what is there (storm_read.c) --- */
/* One request, waited for. */
int32_t storm_transfer(struct storm_thread *t, struct vmimg_queue *queue, struct vmimg_disk *disk,
		       uint8_t op, void *buf, size_t len, uint64_t offset);
/* The version that @disk, attached as number @d of storm_disks or a copy of it, holds. */
uint32_t storm_read_one(struct storm_thread *t, struct vmimg_queue *queue, struct vmimg_disk *disk,
			unsigned d);
/*
 * The version that the four disks hold, @before in front of each name ("c@s/", "t-" or ""), read on a queue
 * of the thread's own. 0: one could not be attached, @t->err says why. Fails where one holds none, or they
 * not the same; of a snapshot UINT32_MAX then: its name may have come to mean another one.
 */
uint32_t storm_read(struct storm_thread *t, struct vmimg_service *svc, const char *before);
/* A snapshot "C@S" whose id does not change meanwhile, noted; 0: it is not there any more. */
uint32_t storm_read_snapshot(struct storm_thread *t, struct vmimg_service *svc, const char *name);

/* --- the operations (storm_ops.c, storm_copy.c): one, chosen at random --- */
void storm_operation(struct storm_thread *t);
void storm_export(struct storm_thread *t);
void storm_increment(struct storm_thread *t);
void storm_clone(struct storm_thread *t);
void storm_import(struct storm_thread *t);
/* A snapshot's name of the pool. */
void storm_some_name(struct storm_thread *t, char sep, char ret[40]);
/* Counts; an error must say why, and must not be one that tells of damage. */
bool storm_ok(struct storm_thread *t, int64_t code);
/* Waits for the job, releases it; whether it is Completed. Its report, json_decref(), or NULL. */
bool storm_job(struct storm_thread *t, struct vmimg_job *job, json_t **report);
void storm_remove_tree(const char *path);

#endif
