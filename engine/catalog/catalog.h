/* SPDX-License-Identifier: MIT */
/*
 * catalog.h - what a store knows: VMs, disks, layers, collections, snapshots, jobs. A small
 * interface, so that a replicated catalog can stand behind it later; catalog.c keeps it in SQLite.
 *
 * CT-1: one group change is one transaction (T23). CT-2: an I/O error in a COMMIT poisons the
 * catalog: that commit and every later call give -ENOTRECOVERABLE, and the next open decides the
 * outcome. The other rules: spec/catalog.md.
 * Any thread: calls are serialised inside. Row structs are filled copies, owned by the caller.
 */
#ifndef ENGINE_CATALOG_H
#define ENGINE_CATALOG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/io/io.h"
#include "format/error.h"
#include "format/uuid.h"

#define CAT_NAME_MAX   65 /* [A-Za-z0-9][A-Za-z0-9._-]{0,63} and the zero */
#define CAT_PATH_MAX   4096
#define CAT_TEXT_MAX   256
#define CAT_SOCKET_MAX 108                /* of a Unix socket's path, and the zero */
#define CAT_NS_MAX     (2 * CAT_NAME_MAX) /* "COLLECTION@SNAPSHOT" and the like */

struct eng_catalog;

struct cat_vm {
	struct fmt_uuid id;
	char name[CAT_NAME_MAX];
	char guest_agent[CAT_SOCKET_MAX]; /* its socket, absolute; or "" */
	int64_t created_ns;
};

struct cat_disk {
	struct fmt_uuid id, vm;
	char name[CAT_NAME_MAX], vm_name[CAT_NAME_MAX]; /* the VM's name is ignored by put */
	uint64_t size;                                  /* bytes */
	uint32_t block_bits;
	bool independent;     /* not snapshottable */
	uint32_t position;    /* stable place within the VM */
	struct fmt_uuid head; /* newest member layer of the chain */
	int64_t created_ns;
};

/* PENDING: recorded by an intent, no member of a chain yet. ACTIVE: takes writes or might have.
 * PENDING -> ACTIVE -> HARDENED -> SEALED; PENDING -> (row removed). */
enum cat_layer_state {
	CAT_LAYER_PENDING = 1,
	CAT_LAYER_ACTIVE = 2,
	CAT_LAYER_HARDENED = 3,
	CAT_LAYER_SEALED = 4,
};

struct cat_layer {
	struct fmt_uuid id, disk, parent; /* parent none: the chain's base */
	uint32_t kind;                    /* enum fmt_kind */
	uint32_t state;                   /* enum cat_layer_state */
	uint64_t generation;
	struct fmt_uuid snapshot;    /* the snapshot (or intent) that froze it, or none */
	char path[CAT_PATH_MAX];     /* in-place base: absolute path; else "" (layers/<id>.*) */
	uint64_t base_dev, base_ino; /* in-place base: claimed exclusively (T31) */
	int64_t created_ns;
};

struct cat_collection {
	struct fmt_uuid id;
	char name[CAT_NAME_MAX];
	int64_t created_ns;
	uint32_t members; /* counted; ignored by put */
};

enum cat_snapshot_state {
	CAT_SNAPSHOT_INTENT = 1, /* being created: not visible to users */
	CAT_SNAPSHOT_COMPLETE = 2,
	CAT_SNAPSHOT_DELETING = 3,
};

struct cat_snapshot {
	struct fmt_uuid id, collection;
	char name[CAT_NAME_MAX], collection_name[CAT_NAME_MAX]; /* the latter ignored by put */
	char element_name[CAT_TEXT_MAX];
	uint32_t state;      /* enum cat_snapshot_state */
	uint16_t type;       /* 1 standard, 2 recovery */
	uint8_t consistency; /* 1 application, 2 crash */
	uint8_t guest_backup_type;
	uint32_t disks, skipped; /* members; independent disks left out */
	bool automatic;          /* kept by a revert (AS-4) */
	int64_t created_ns, cut_wall_ns;
	uint64_t cut_ns, prepare_ns, drain_ns, harden_ns, total_ns, max_write_latency_ns;
	uint64_t freeze_ns;
};

/* A disk of a snapshot: the layer that the cut froze is its top. */
struct cat_snapshot_disk {
	struct fmt_uuid snapshot, disk, layer;
	char vm_name[CAT_NAME_MAX], disk_name[CAT_NAME_MAX]; /* at the time of the cut */
	uint64_t size;
	uint32_t index; /* stable place in the snapshot */
	bool skipped;   /* independent: listed, holds nothing */
};

/* A change-tracking mark of a collection's disks (spec/refpoint.md RP-*). */
struct cat_refpoint {
	struct fmt_uuid id, collection;
	char name[CAT_NAME_MAX], collection_name[CAT_NAME_MAX]; /* the latter ignored by put */
	char element_name[CAT_TEXT_MAX];
	uint16_t type;       /* 2 RCT; others are not kept */
	uint8_t consistency; /* as a snapshot's: 1 application, 2 crash */
	uint32_t disks;
	struct fmt_uuid snapshot;         /* it was converted from, which is gone; or none */
	char snapshot_name[CAT_NAME_MAX]; /* its name then; or "" */
	int64_t created_ns, cut_wall_ns;
};

/*
 * A disk of a reference point: what @layer held at its top, with the blocks of the saved set counting
 * as changed since (eng_catalog_get_refpoint_disk()).
 */
struct cat_refpoint_disk {
	struct fmt_uuid refpoint, disk;
	struct fmt_uuid layer;                               /* none: tracking is lost */
	struct fmt_uuid rct;                                 /* unique in the store */
	struct fmt_uuid vm;                                  /* at the time of the cut */
	char vm_name[CAT_NAME_MAX], disk_name[CAT_NAME_MAX]; /* the same */
	uint64_t size;                                       /* the same; bytes */
	uint32_t index;                                      /* stable place in the point */
	uint64_t saved_bytes;                                /* of its set; ignored by put */
};

/* A guest of a snapshot with application consistency (QU-3). */
struct cat_snapshot_guest {
	struct fmt_uuid snapshot, vm;
	char vm_name[CAT_NAME_MAX]; /* at the time of the cut */
	uint32_t index;             /* stable place in the snapshot */
	bool frozen;                /* held over the cut */
	uint64_t frozen_ns;
	uint32_t filesystems;
	char error[CAT_TEXT_MAX]; /* or "" */
};

/* A guest agent that may be frozen by us (QU-4). */
struct cat_freeze {
	struct fmt_uuid vm;
	char socket[CAT_SOCKET_MAX];
	struct fmt_uuid job;
	int64_t created_ns;
	char vm_name[CAT_NAME_MAX]; /* ignored by put */
};

struct cat_job {
	struct fmt_uuid id;
	uint16_t state, type, percent, error_code;
	char name[CAT_NS_MAX], error_text[512], status_text[CAT_TEXT_MAX];
	struct fmt_uuid affected;                               /* the created element, or none */
	int64_t submitted_ns, started_ns, changed_ns, ended_ns; /* wall clock; 0 not yet */
	bool cancellable, delete_on_completion;
};

/* Keeps a snapshot from being deleted (HD-1). */
struct cat_hold {
	struct fmt_uuid snapshot;
	char tag[CAT_NAME_MAX]; /* unique within the snapshot */
	int64_t created_ns;
};

/*
 * @path: the database file. Creates the schema when the file is new and @create; else -ENOENT.
 * -EUCLEAN: no catalog, or a damaged one; -ENOTSUP: of a newer version.
 */
int eng_catalog_open(struct eng_io *io, const char *path, bool create, struct fmt_error *err,
		     struct eng_catalog **ret);
void eng_catalog_close(struct eng_catalog *cat); /* NULL is fine */
/* Keeps space aside that a full disk leaves to the catalog (CT-13); best effort, may be repeated. */
void eng_catalog_keep_reserve(struct eng_catalog *cat);
uint64_t eng_catalog_reserve(struct eng_catalog *cat); /* bytes kept aside now */
bool eng_catalog_poisoned(struct eng_catalog *cat);
/* Grows with every row that is changed: who keeps what follows from the rows sees whether it still does. */
uint64_t eng_catalog_changes(struct eng_catalog *cat);
/* The whole database's structure and references, for checkers: 0, or -EUCLEAN and the first finding. */
int eng_catalog_check(struct eng_catalog *cat, struct fmt_error *err);
/*
 * Moves what was committed from the log to the database file. Not in a transaction; callers of other
 * threads wait meanwhile. For the background, when no snapshot is being made: commits do it
 * themselves only when the log has grown past 32 MiB. An error changes nothing (CT-6).
 */
int eng_catalog_checkpoint(struct eng_catalog *cat);

/* Store-wide facts ("store_id", "store_version", "clean"): -ENOENT when absent. */
int eng_catalog_fact_get(struct eng_catalog *cat, const char *key, char value[CAT_TEXT_MAX]);
int eng_catalog_fact_set(struct eng_catalog *cat, const char *key, const char *value);

/*
 * A transaction: begin, puts and removes, commit. Between begin and commit/rollback the calling
 * thread holds the catalog: other threads' calls wait. The first put, set or remove that fails makes
 * the later ones and commit fail with its error; commit then rolls back. After a commit that failed
 * there is nothing to roll back, and rollback without a transaction does nothing.
 * Commit: -ENOTRECOVERABLE: poisoned, outcome unknown; any other error: nothing was changed.
 */
int eng_catalog_begin(struct eng_catalog *cat);
int eng_catalog_commit(struct eng_catalog *cat, struct fmt_error *err);
void eng_catalog_rollback(struct eng_catalog *cat);

/*
 * Inside a transaction only. put inserts or replaces by id; a taken name or base file gives -EEXIST,
 * a value out of its range -EINVAL. References are checked at commit (CT-5), so that rows may be put
 * and removed in any order: it gives -EBUSY when a row was removed that others refer to, -ENOENT
 * when one was put that refers to none. set and remove of a row that is not there: -ENOENT.
 */
int eng_catalog_put_vm(struct eng_catalog *cat, const struct cat_vm *vm);
int eng_catalog_put_disk(struct eng_catalog *cat, const struct cat_disk *disk);
int eng_catalog_put_layer(struct eng_catalog *cat, const struct cat_layer *layer);
int eng_catalog_put_collection(struct eng_catalog *cat, const struct cat_collection *coll);
int eng_catalog_put_member(struct eng_catalog *cat, const struct fmt_uuid *coll,
			   const struct fmt_uuid *vm);
int eng_catalog_put_snapshot(struct eng_catalog *cat, const struct cat_snapshot *snap);
int eng_catalog_put_snapshot_disk(struct eng_catalog *cat, const struct cat_snapshot_disk *disk);
int eng_catalog_put_snapshot_guest(struct eng_catalog *cat, const struct cat_snapshot_guest *guest);
int eng_catalog_put_freeze(struct eng_catalog *cat, const struct cat_freeze *freeze);
int eng_catalog_put_job(struct eng_catalog *cat, const struct cat_job *job);
/*
 * The last row of @job, as it was when it began: Completed, with what it made or changed. In the
 * transaction that is the commit point of its work, so that no crash leaves the one without the other.
 * @job NULL or without an id: nothing. @affected NULL: as @job has it.
 */
int eng_catalog_put_completed(struct eng_catalog *cat, const struct cat_job *job,
			      const struct fmt_uuid *affected, int64_t now_ns);
/* Makes @job that row. */
void eng_catalog_complete_job(struct cat_job *job, int64_t now_ns);
int eng_catalog_put_refpoint(struct eng_catalog *cat, const struct cat_refpoint *point);
/* Leaves the saved set as it is; a new row has none. */
int eng_catalog_put_refpoint_disk(struct eng_catalog *cat, const struct cat_refpoint_disk *disk);
/* Of one disk of a point: its layer (none: lost) and its saved set; @set is borrowed, NULL: none. */
int eng_catalog_set_refpoint_state(struct eng_catalog *cat, const struct fmt_uuid *refpoint,
				   const struct fmt_uuid *disk, const struct fmt_uuid *layer,
				   const void *set, size_t set_bytes);
/* The disk goes: every point of it has lost it. */
int eng_catalog_lose_refpoints(struct eng_catalog *cat, const struct fmt_uuid *disk);
int eng_catalog_remove_refpoint(struct eng_catalog *cat, const struct fmt_uuid *id);
int eng_catalog_set_layer_state(struct eng_catalog *cat, const struct fmt_uuid *layer,
				uint32_t state);
int eng_catalog_set_layer_snapshot(struct eng_catalog *cat, const struct fmt_uuid *layer,
				   const struct fmt_uuid *snapshot);
int eng_catalog_set_disk_head(struct eng_catalog *cat, const struct fmt_uuid *disk,
			      const struct fmt_uuid *layer);
/* The children, snapshots and reference points of @old become those of @with, which holds the same at its
 * top; neither row is removed. */
int eng_catalog_replace_layer(struct eng_catalog *cat, const struct fmt_uuid *old,
			      const struct fmt_uuid *with);
int eng_catalog_remove_vm(struct eng_catalog *cat, const struct fmt_uuid *id);
int eng_catalog_remove_disk(struct eng_catalog *cat, const struct fmt_uuid *id);
int eng_catalog_remove_layer(struct eng_catalog *cat, const struct fmt_uuid *id);
/* The VMs' membership goes with it, the VMs stay; with snapshots -EBUSY. */
int eng_catalog_remove_collection(struct eng_catalog *cat, const struct fmt_uuid *id);
int eng_catalog_remove_member(struct eng_catalog *cat, const struct fmt_uuid *coll,
			      const struct fmt_uuid *vm);
/* Its disks and guests go with it, and layers that name it name none; with holds -EBUSY. */
int eng_catalog_remove_snapshot(struct eng_catalog *cat, const struct fmt_uuid *id);
int eng_catalog_remove_job(struct eng_catalog *cat, const struct fmt_uuid *id);
/* 0 also where there is none: who confirms a thaw may come second. */
int eng_catalog_remove_freeze(struct eng_catalog *cat, const struct fmt_uuid *vm,
			      const char *socket);
/* --- catalog_holds.c --- */
int eng_catalog_put_hold(struct eng_catalog *cat, const struct cat_hold *hold);
int eng_catalog_remove_hold(struct eng_catalog *cat, const struct fmt_uuid *snapshot,
			    const char *tag);
/* Of one snapshot by tag, or all by snapshot and tag. */
int eng_catalog_list_holds(struct eng_catalog *cat, const struct fmt_uuid *snapshot,
			   struct cat_hold **ret, size_t *count);

/* Look-ups: 0 or -ENOENT. By name where names are unique. Outside or inside a transaction. */
int eng_catalog_get_vm(struct eng_catalog *cat, const char *name, struct cat_vm *ret);
int eng_catalog_get_disk(struct eng_catalog *cat, const char *vm, const char *name,
			 struct cat_disk *ret);
int eng_catalog_get_disk_id(struct eng_catalog *cat, const struct fmt_uuid *id,
			    struct cat_disk *ret);
int eng_catalog_get_layer(struct eng_catalog *cat, const struct fmt_uuid *id,
			  struct cat_layer *ret);
int eng_catalog_get_collection(struct eng_catalog *cat, const char *name,
			       struct cat_collection *ret);
int eng_catalog_get_collection_id(struct eng_catalog *cat, const struct fmt_uuid *id,
				  struct cat_collection *ret);
int eng_catalog_get_snapshot(struct eng_catalog *cat, const char *collection, const char *name,
			     struct cat_snapshot *ret);
int eng_catalog_get_snapshot_id(struct eng_catalog *cat, const struct fmt_uuid *id,
				struct cat_snapshot *ret);
int eng_catalog_get_job(struct eng_catalog *cat, const struct fmt_uuid *id, struct cat_job *ret);
/* One that users see: -ENOENT also while it is being created or deleted; @err (or NULL) says of whom. */
int eng_catalog_find_snapshot(struct eng_catalog *cat, const char *collection, const char *name,
			      struct fmt_error *err, struct cat_snapshot *ret);
/* The same, and the rows of its disks, by one look: no deletion comes between. free() them. */
int eng_catalog_find_members(struct eng_catalog *cat, const char *collection, const char *name,
			     struct fmt_error *err, struct cat_snapshot *ret,
			     struct cat_snapshot_disk **rows, size_t *count);

int eng_catalog_get_refpoint(struct eng_catalog *cat, const char *collection, const char *name,
			     struct cat_refpoint *ret);
int eng_catalog_get_refpoint_id(struct eng_catalog *cat, const struct fmt_uuid *id,
				struct cat_refpoint *ret);
/* By its id of change tracking. */
int eng_catalog_get_refpoint_rct(struct eng_catalog *cat, const struct fmt_uuid *rct,
				 struct cat_refpoint_disk *ret);
/* Row and saved set as of one instant. *@set: malloced, NULL when nothing is saved. */
int eng_catalog_get_refpoint_disk(struct eng_catalog *cat, const struct fmt_uuid *refpoint,
				  const struct fmt_uuid *disk, struct cat_refpoint_disk *ret,
				  void **set, size_t *set_bytes);

/*
 * Lists: an array the caller frees with free(), *@count rows; NULL filters mean all. Ordered: VMs,
 * collections by name; disks by VM name and position; layers of a disk by generation (all: by disk);
 * snapshots by creation; snapshot disks and guests by index; jobs by submission.
 */
int eng_catalog_list_vms(struct eng_catalog *cat, struct cat_vm **ret, size_t *count);
int eng_catalog_list_disks(struct eng_catalog *cat, const struct fmt_uuid *vm,
			   struct cat_disk **ret, size_t *count);
int eng_catalog_list_layers(struct eng_catalog *cat, const struct fmt_uuid *disk,
			    struct cat_layer **ret, size_t *count);
/* Layers whose parent it is, of whatever disk. */
int eng_catalog_list_children(struct eng_catalog *cat, const struct fmt_uuid *layer,
			      struct cat_layer **ret, size_t *count);
/* The disk's hardened layers that nothing refers to: no layer, snapshot or head (GB-1). Newest first. */
int eng_catalog_list_garbage(struct eng_catalog *cat, const struct fmt_uuid *disk,
			     struct cat_layer **ret, size_t *count);
/* Disks with a layer that stands on @layer, or is it: its own, and clones. By id. */
int eng_catalog_list_users(struct eng_catalog *cat, const struct fmt_uuid *layer,
			   struct cat_disk **ret, size_t *count);
/* Other disks with a layer whose parent is one of the disk's. By name. */
int eng_catalog_list_clones(struct eng_catalog *cat, const struct fmt_uuid *disk,
			    struct cat_disk **ret, size_t *count);
int eng_catalog_list_collections(struct eng_catalog *cat, struct cat_collection **ret,
				 size_t *count);
int eng_catalog_list_members(struct eng_catalog *cat, const struct fmt_uuid *coll,
			     struct cat_vm **ret, size_t *count);
/* Disks of every VM of the collection, in a stable order: VM name, position. */
int eng_catalog_list_collection_disks(struct eng_catalog *cat, const struct fmt_uuid *coll,
				      struct cat_disk **ret, size_t *count);
/* Every state, INTENT and DELETING too: the caller filters. */
int eng_catalog_list_snapshots(struct eng_catalog *cat, const struct fmt_uuid *coll,
			       struct cat_snapshot **ret, size_t *count);
int eng_catalog_list_snapshot_disks(struct eng_catalog *cat, const struct fmt_uuid *snapshot,
				    struct cat_snapshot_disk **ret, size_t *count);
int eng_catalog_list_snapshot_guests(struct eng_catalog *cat, const struct fmt_uuid *snapshot,
				     struct cat_snapshot_guest **ret, size_t *count);
/* Of one collection, or all: by creation. */
int eng_catalog_list_refpoints(struct eng_catalog *cat, const struct fmt_uuid *coll,
			       struct cat_refpoint **ret, size_t *count);
int eng_catalog_list_refpoint_disks(struct eng_catalog *cat, const struct fmt_uuid *refpoint,
				    struct cat_refpoint_disk **ret, size_t *count);
/* Disks of points that refer to that layer. */
int eng_catalog_list_layer_refpoints(struct eng_catalog *cat, const struct fmt_uuid *layer,
				     struct cat_refpoint_disk **ret, size_t *count);
/* Sealed overlays of the disk to which nothing refers but points: the newest first. */
int eng_catalog_list_refpoint_ends(struct eng_catalog *cat, const struct fmt_uuid *disk,
				   struct cat_layer **ret, size_t *count);
/* Of one VM, or all: by VM and socket. */
int eng_catalog_list_freezes(struct eng_catalog *cat, const struct fmt_uuid *vm,
			     struct cat_freeze **ret, size_t *count);
int eng_catalog_list_jobs(struct eng_catalog *cat, struct cat_job **ret, size_t *count);

/* The chain under @top, base first: parents followed by id. -ENOENT without @top; -EUCLEAN on a loop,
 * a missing parent, or generations that do not grow. */
int eng_catalog_chain(struct eng_catalog *cat, const struct fmt_uuid *top, struct cat_layer **ret,
		      size_t *count);

#endif
