/* SPDX-License-Identifier: MIT */
/*
 * life.h - a store's whole life at random against a model that keeps what every disk and every
 * snapshot holds, sector by sector (life.c tells the rules of the game).
 *
 * The world (the model, what is under way, the random numbers) lies in memory that is shared with
 * the parent and outlives each process that works on the store: those are killed, and the next one
 * finds out from the world what may and what must be there. Everything is called by the one thread that
 * owns the queue; calls of the library that wait for that thread run beside it (life_beside()).
 *
 * What is wrong is said once, by life_fail(), which ends the process.
 */
#ifndef TESTS_SIM_LIFE_H
#define TESTS_SIM_LIFE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "api/service.h"

#define LIFE_UNIT     512u
#define LIFE_SIZE_MAX (20u << 20) /* bytes of a disk: two regions of its map */
#define LIFE_UNITS    (LIFE_SIZE_MAX / LIFE_UNIT)
#define LIFE_GROUPS   4u /* collections */
#define LIFE_DISKS    16u
#define LIFE_SNAPS    16u
#define LIFE_POINTS   6u /* reference points */
#define LIFE_MEMBERS  8u
#define LIFE_WRITES   4u   /* in flight */
#define LIFE_WRITE    128u /* units, at most */
#define LIFE_STATES   320u
#define LIFE_WINDOW   2048u
#define LIFE_LOOSE    512u
#define LIFE_COUNTS   40u
#define LIFE_NAME     40u
#define LIFE_LINKS    5u         /* exports of a chain */
#define LIFE_UNKNOWN  UINT32_MAX /* a unit of a reference point: it was being written */

/* What a disk or a member of a snapshot holds: the number of the write for each unit; 0: zeros. */
struct life_state {
	bool used;
	uint32_t unit[LIFE_UNITS];
};

struct life_disk {
	bool there;
	char vm[LIFE_NAME], name[LIFE_NAME];
	uint32_t group;
	uint64_t size;
	uint32_t state;
	uint32_t durable; /* what a power loss leaves at least; loss only */
};

struct life_member {
	char vm[LIFE_NAME], name[LIFE_NAME]; /* as they were */
	uint32_t disk;
	uint64_t size;
	uint32_t state;
};

struct life_snap {
	bool there;
	uint32_t group;
	uint16_t type;
	bool held, automatic;
	uint32_t born; /* order of the cuts */
	char name[LIFE_NAME];
	uint32_t count;
	struct life_member member[LIFE_MEMBERS];
};

struct life_group {
	bool there;
	char name[LIFE_NAME];
};

/* A write whose outcome is not known yet. */
struct life_write {
	bool busy, flushing;
	uint32_t disk, at, count, number;
};

/* The one operation under way, with what is needed to find out how far it came. */
enum life_kind {
	LIFE_NONE,
	LIFE_SNAPSHOT, /* snap */
	LIFE_DELETE,   /* snap */
	LIFE_RESIZE,   /* disk, size */
	LIFE_HOLD,     /* snap: to be held, or let go of */
	LIFE_PRUNE,    /* group, keep */
	LIFE_REVERT,   /* snap; kept: of what was left, or -1 */
	LIFE_CONVERT,  /* snap, point */
	LIFE_POINT,    /* point */
	LIFE_UNPOINT,  /* point */
	LIFE_COPY,     /* snap, group, copies; kept: the snapshot of an import, or -1 */
	LIFE_UNDISK,   /* disk */
	LIFE_UNGROUP,  /* group */
	LIFE_KINDS,
};

struct life_op {
	enum life_kind kind;
	struct { /* another one at the same time: LIFE_NONE, LIFE_DELETE or a grow */
		enum life_kind kind;
		uint32_t snap, disk;
		uint64_t size;
	} also;
	uint32_t snap, disk, group, keep, point;
	int kept;
	uint32_t copy_count, copies[LIFE_MEMBERS]; /* disks */
	uint64_t size;
	char name[LIFE_NAME];
	/* The writes that were under way at some time of it: in or out of what it captures. */
	bool window;
	uint32_t window_count;
	struct life_write windows[LIFE_WINDOW];
};

/* One export of a chain: a full one, or an increment against the one before. */
struct life_link {
	struct life_snap snap;                           /* what it has to hold */
	char base[2 * LIFE_NAME], collection[LIFE_NAME]; /* the names then */
	char format[8];                                  /* "stream", "raw", "qcow2" */
	bool merge, compress, resume;
	bool there; /* in the second store, and not merged away */
};

/*
 * Exports that build on each other, kept beside the store until they are imported into a second one. While
 * @pending the export of link[count] is under way; with @again it was cut short, and may be gone on with.
 */
struct life_backup {
	uint32_t number, count, imported;
	bool pending, again;
	bool store, importing; /* the second store is there; link[imported] is being imported */
	struct life_link link[LIFE_LINKS];
};

struct life_world {
	uint64_t seed, rng;
	char dir[96], store[112];
	uint64_t steps, goal; /* of this store */
	uint64_t all;         /* of all stores */
	uint32_t epoch, kills, number, names, births;
	uint64_t counts[LIFE_COUNTS]; /* of steps of each kind */
	uint64_t compared;            /* units */
	uint64_t folds, punches;      /* in processes that closed the store */
	uint64_t size_max;            /* of a disk */
	bool mortal;                  /* processes kill themselves now and then */
	bool loss;                    /* it is the host that dies: what was not flushed may go */
	bool may_die;                 /* the process has set out to kill itself */
	bool died;                    /* the last process did */
	bool ended;                   /* the store's life is over */
	char doing[300], why[1024];
	struct life_group group[LIFE_GROUPS];
	struct life_disk disk[LIFE_DISKS];
	struct life_snap snap[LIFE_SNAPS];
	struct life_snap point[LIFE_POINTS]; /* what it would hold, were it a snapshot */
	struct life_write write[LIFE_WRITES];
	uint32_t loose_count;
	struct life_write loose[LIFE_LOOSE]; /* acknowledged, not flushed; oldest first; loss only */
	struct life_op op;
	struct life_backup backup;
	uint64_t exported, resumed,
		restored;        /* links; cut short and gone on with; in second stores */
	uint64_t cancelled;      /* jobs */
	uint64_t pairs, refused; /* operations at the same time; one of two */
	struct life_state state[LIFE_STATES]; /* last: see life_world_copy() */
};

/* Jobs that go on while other steps are taken, one of a kind. */
enum life_job_kind {
	LIFE_JOB_EXPORT,
	LIFE_JOB_VERIFY,
	LIFE_JOB_FLATTEN,
	LIFE_JOB_SETTLE,
	LIFE_JOBS
};

/* This process's hands on the store. */
struct life {
	struct vmimg_service *svc;
	struct vmimg_queue *queue;
	struct vmimg_disk *disk[LIFE_DISKS]; /* attached, or NULL */
	struct life_slot {
		struct life_write *write; /* NULL: free */
		uint8_t *buf;
		struct iovec *iov;
	} slot[LIFE_WRITES];
	struct life_job {
		struct vmimg_job *job; /* or NULL */
		bool cancelled;
		bool excused;  /* something has gone that it needs: it may fail */
		uint32_t born; /* of the snapshot it reads */
		uint32_t group;
	} job[LIFE_JOBS];
};

extern struct life_world *world;
extern struct life life;
/*
 * Told when a request or an operation has been noted in the world and before it begins; or NULL. The world
 * as it is at a call tells all that a death may leave until the next.
 */
extern void (*life_touched)(bool operation);
extern void (*life_failed)(
	void); /* told when world->why has been written, before the end; or NULL */

/* --- the model (life_model.c) --- */
uint32_t life_pick(uint32_t below);
bool life_chance(uint32_t one_in);
__attribute__((noreturn, format(printf, 1, 2))) void life_fail(const char *fmt, ...);
/* Ends the process unless @cond. */
#define life_must(cond, ...)                                                                       \
	do {                                                                                       \
		if (!(cond))                                                                       \
			life_fail(__VA_ARGS__);                                                    \
	} while (0)
/* What write @number puts at @offset. */
void life_fill(void *buf, uint32_t number, uint64_t offset, size_t len);
uint32_t life_state_new(void);            /* zeros */
uint32_t life_state_copy(uint32_t state); /* another one with the same content */
void life_state_free(uint32_t state);
uint32_t life_units(uint64_t size);
/* A random disk, snapshot or collection that is there; -1: none. */
int life_some_disk(void);
int life_some_snap(void);
int life_some_group(void);
int life_free_snap(void);
int life_some_point(void);
int life_free_point(void);
int life_free_disk(void);
void life_new_name(char name[LIFE_NAME], const char *what);
const char *life_disk_name(uint32_t disk);                /* "vm/disk" */
const char *life_snap_name(const struct life_snap *snap); /* "collection@snapshot" */
const char *life_member_name(const struct life_snap *snap, uint32_t member);
void life_snap_forget(struct life_snap *snap);
/* What a snapshot, or a point, of @group would hold now; its name begins with @what. */
void life_draw(struct life_snap *snap, uint32_t group, const char *what);
/* Notes one member more: what the disk holds now. */
void life_draw_disk(struct life_snap *snap, uint32_t disk);
/* Writes from now on may or may not be in what is captured. */
void life_open_window(void);
/* The op is about to begin: world->op says what of. */
void life_op_begin(enum life_kind kind);
/* The op ended, whatever came of it. */
void life_op_end(void);
/* What the disk holds is durable. */
void life_all_durable(uint32_t disk);
/* Bytes of a copy of the world; the copy, and the world of it. */
size_t life_world_size(void);
void life_world_copy(void *to);
void life_world_restore(const void *from);

/* --- the store (life_store.c) --- */
/* @machine: NULL, or what the service is to run on. Waits for the last requests of one that died. */
void life_open(struct eng_io *machine);
void life_close(void);
/* The first store: two VMs with disks of all kinds, a collection. */
void life_make(struct eng_io *machine);
/* The checker finds no corruption, with @leaks_too no leak either. @machine: NULL or as above. */
void life_sound(struct eng_io *machine, bool leaks_too);
/* Everything that keeps anything goes, in any order; the disks come to two layers and a base each. */
void life_let_go(void);

/* --- steps (life_step.c) --- */
void life_step(void);
/* This process will not live longer than that. */
void life_die_within(uint32_t us);
size_t life_op_count(void);
const char *life_op_name(size_t op);
uint64_t life_op_times(const uint64_t counts[LIFE_COUNTS], size_t op);

/* --- requests (life_io.c) --- */
void life_attach(uint32_t disk);
void life_attach_all(void);
void life_detach(uint32_t disk);
/* Begins a write of some kind somewhere; does nothing when too many are under way. */
void life_begin_write(void);
void life_flush(void);
/* Takes completions, waiting for up to @timeout_ns. */
void life_turn(uint64_t timeout_ns);
/* Until nothing is in flight. */
void life_quiet(void);
/* One request, waited for; others may complete meanwhile. */
int life_request(struct vmimg_disk *disk, uint8_t op, void *buf, uint64_t offset, uint64_t len);
/* Expects what @state says in [@at, @at + @count) units, leaving out what is being written. */
void life_expect(struct vmimg_disk *disk, const char *where, uint32_t state, uint32_t at,
		 uint32_t count);
/* The same of the whole, and of the size. */
void life_expect_all(struct vmimg_disk *disk, const char *where, uint32_t state, uint64_t size);
/* Some of a head, some of a snapshot, or all of it. */
void life_check_head(uint32_t disk, bool whole);
void life_check_snap(const struct life_snap *snap, bool whole);
/* The last writes of a process that died: found out by looking. */
void life_settle_writes(void);
/* What a snapshot taken meanwhile holds of the window's writes: found out by looking, and noted. */
void life_settle_window(struct life_snap *snap);

/* Runs @call on a thread of its own; the queue is turned meanwhile, with @load written to. */
uint32_t life_beside(uint32_t (*call)(void *arg), void *arg, bool load);

/* --- operations (life_ops.c) --- */
void life_snapshot(void);
void life_delete(void);
void life_resize(void);
void life_shrink(void);
void life_folds(void);
void life_reattach(void);
/* Another operation, beside the one that is about to begin: not of this snapshot, not of these disks. */
void life_company(int snap, uint32_t disk_count, const uint32_t *disks);
uint32_t life_company_call(void *arg);
/* After the end of both, what came of it; after a death. */
void life_company_end(void);
void life_recover_company(void);
/* It has company, and was refused for that. */
bool life_is_refused(uint32_t r);
/* Until the job has ended, which it must do well unless it was cancelled or a roll went first. */
bool life_wait_for_job(struct vmimg_job *job, bool load, bool cancel);
/* --- change tracking (life_track.c) --- */
void life_diff(void);
void life_convert(void);
void life_point(void);
void life_unpoint(void);
void life_recover_convert(void);
void life_recover_point(void);
void life_recover_unpoint(void);
void life_check_points(void);

/* --- copies (life_copy.c) --- */
void life_clone(void);
void life_import(void);
void life_flatten(void);
void life_uncopy(void);
void life_uncopy_all(void);
void life_recover_copy(void);
void life_recover_undisk(void);
void life_recover_ungroup(void);

/* --- jobs that go on (life_job.c) --- */
void life_verify(void);
void life_settle(void);
void life_flatten_on(uint32_t group);
/* A job, one of these or a fold's, is cancelled or gets another rate. */
void life_meddle(void);
/* Looks which have ended. */
void life_jobs_turn(void);
/* Some are cancelled, the others are waited for; with @leave the close that follows does that. */
void life_jobs_end(bool leave);
/* Begins to look after it. */
void life_job_begin(enum life_job_kind kind, struct vmimg_job *job, const struct life_snap *snap,
		    uint32_t group);
/* A job may read the snapshot. */
bool life_job_reads(const struct life_snap *snap);

/* --- chains of exports (life_backup.c), and what becomes of them (life_restore.c) --- */
void life_backup(void);
/* Nothing is under way, and the chain has been restored. */
void life_backup_finish(void);
/* The job of the export under way has ended. */
void life_backup_ended(bool done);
/* After a death, or the close of a store with an export under way. */
void life_recover_backup(void);
void life_link_dir(uint32_t link, char dir[160]);
/* The chain is no more. */
void life_backup_drop(void);
void life_clear(const char *path);
/* What the chain's exports come to in another store. */
void life_restore(void);
/* Files of disks. */
void life_files(void);
/* Any that there is; of an increment, that can be one. */
const char *life_some_format(bool increment);

/* --- branches (life_branch.c) --- */
void life_revert(void);
void life_recover_revert(void);

/* --- keeping and letting go (life_keep.c) --- */
void life_hold(void);
void life_release(struct life_snap *snap);
void life_prune(void);
void life_recover_hold(void);
void life_recover_prune(void);

/* --- after a death (life_ops.c) --- */
bool life_snap_is_listed(const struct life_snap *snap);
/* What the store must be like after the death of a process. */
void life_recover(void);
/* The lists agree with the model. */
void life_check_lists(void);

#endif
