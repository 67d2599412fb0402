/* SPDX-License-Identifier: MIT */
/*
 * store.h - an open store: its lock, catalog, disks in use, and everything done to them that is not
 * block I/O (spec/snapshot.md).
 *
 * S-1: at most one process has a store open (T19). S-2: a disk is busy from a cut's intent to its end,
 * and while it is attached, detached, resized or deleted (T6): who finds it busy waits or gives up.
 * Control threads; block I/O never takes the store's lock.
 */
#ifndef ENGINE_STORE_H
#define ENGINE_STORE_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "engine/catalog/catalog.h"
#include "engine/disk/disk.h"
#include "engine/io/io.h"
#include "engine/io/pool.h"

struct eng_folder;
struct eng_reading;
struct eng_snapshot;

struct eng_store_options {
	bool buffered;
	unsigned threads;
	bool standby;
	uint64_t log_bound, map_bound, map_memory, seal_rate; /* 0: defaults */
	uint64_t fold_rate;           /* 0: default; UINT64_MAX: unlimited */
	uint64_t fold_peace_ns;       /* nothing new for so long: folded whole; 0: default */
	bool no_folds;                /* chains stay as long as they are */
	const char *const *base_dirs; /* borrowed; NULL-ended, or NULL */
};

/* A disk as the control side knows it. Guarded by the store's lock; @busy is a lock of its own. */
struct eng_entry {
	struct eng_entry *next;
	struct eng_store *store;
	struct fmt_uuid id;
	struct eng_layer *tail;     /* newest member of the chain, opened when first needed */
	struct eng_layer *standby;  /* overlay made ahead for @tail, durable; or NULL */
	struct eng_file *base_lock; /* lock: keeps others off its base in place (IB-2); or NULL */
	/* Frozen beneath @tail by cuts that failed before they hardened it, oldest first (CU-15). */
	struct eng_layer **unhardened;
	uint32_t unhardened_count;
	struct eng_disk *disk; /* attached read-write, or NULL */
	bool busy;
	bool in_cut;        /* a create has it, or waits for it */
	bool refused;       /* detached uncleanly, or recovery failed: reopen the store */
	unsigned readers;   /* attachments of this disk's snapshots */
	bool folding;       /* lock: its chain is changing; who wants to read one waits */
	bool wants_standby; /* lock */
	bool poison_told;   /* lock */
};

struct eng_store {
	struct eng_io *io;
	char *dir, *layers_dir;
	struct fmt_uuid id;
	struct eng_file *lock_file;
	struct eng_catalog *catalog;
	struct eng_pool *pool;
	struct eng_folder *folder;
	struct eng_store_options options;
	char **base_dirs;
	size_t base_dirs_count;
	bool direct;

	pthread_mutex_t lock;
	pthread_cond_t changed; /* some entry is not busy any more */
	struct eng_entry *entries;
	struct eng_task checkpoint_task, standby_task;
	bool standby_coming;    /* lock */
	bool checkpoint_coming; /* lock */
	_Atomic unsigned seals; /* queued and under way */
	_Atomic bool unsettled; /* a cut's rows could not be taken back: the next open recovers */
	_Atomic uint64_t attachments; /* grows with every attach and detach of a disk */
	struct eng_reading *readings; /* lock: attached snapshots' disks (hold.c) */
	struct eng_snapshot *cuts;    /* creates from their check to their end (CU-4) */
	uint64_t journal_key;         /* of this directory: a copied store has another */
};

/* Membership is locked from a create's check to its end (T6, CU-4). */
bool eng_store_vm_in_cut(struct eng_store *store, const struct fmt_uuid *vm);
bool eng_store_collection_in_cut(struct eng_store *store, const struct fmt_uuid *collection);
/* The name that a disk's journal has in shared memory: a copy of the store gets another (JN-2). */
struct fmt_uuid eng_store_journal_id(const struct eng_store *store, const struct fmt_uuid *disk);

int eng_store_init(struct eng_io *io, const char *dir, struct fmt_error *err);
/* Takes the lock, recovers (recover.c), starts the background. -EBUSY: in use. Takes nothing. */
int eng_store_open(struct eng_io *io, const char *dir, const struct eng_store_options *options,
		   struct fmt_error *err, struct eng_store **ret);
/* -EBUSY while something is attached. Waits for the background. NULL is fine. */
int eng_store_close(struct eng_store *store);

/* --- names and paths --- */
/* layers/<id>.<suffix>; free(). */
char *eng_store_layer_path(const struct eng_store *store, const struct fmt_uuid *layer,
			   const char *suffix);
void eng_store_new_id(struct eng_store *store, struct fmt_uuid *ret);
/* Opens a layer that the catalog knows. */
int eng_store_open_layer(struct eng_store *store, const struct cat_layer *row, bool writable,
			 struct fmt_error *err, struct eng_layer **ret);

/* --- entries --- */
/* Finds or makes the entry of a disk. Never NULL but for -ENOMEM. Store's lock held. */
struct eng_entry *eng_entry_get_locked(struct eng_store *store, const struct fmt_uuid *disk);
/* Whether this thread is the worker of the disk, attached for writing: it would wait for itself. */
bool eng_entry_is_mine(struct eng_store *store, const struct fmt_uuid *disk);
/* Makes the disk busy: waits until @deadline_ns (monotonic), -EBUSY then; 0: does not wait. */
int eng_entry_claim(struct eng_store *store, const struct fmt_uuid *disk, uint64_t deadline_ns,
		    struct eng_entry **ret);
void eng_entry_release(struct eng_entry *entry);
/* Several disks, all of them or none (claim.c); no disk twice. As above. */
int eng_store_claim_all(struct eng_store *store, const struct fmt_uuid *disks, size_t count,
			uint64_t deadline_ns, struct eng_entry **ret);
void eng_store_release_all(struct eng_entry *const *entries, size_t count);
/* The newest member layer, opened if need be. The entry is busy by the caller. Borrowed. */
int eng_entry_tail(struct eng_entry *entry, const struct cat_disk *row, struct fmt_error *err,
		   struct eng_layer **ret);
void eng_entry_set_tail(struct eng_entry *entry, struct eng_layer *layer); /* takes a reference */
void eng_entry_set_disk(struct eng_entry *entry, struct eng_disk *disk);   /* attached, or NULL */
/* Notes a frozen layer that no create may pass over before it is hardened; forgets those that are. */
int eng_entry_keep_unhardened(struct eng_entry *entry, struct eng_layer *layer);
void eng_entry_forget_hardened(struct eng_entry *entry);

/* Up to @max attached disks that a failed flush has poisoned, each told once. Any thread. */
size_t eng_store_poisoned(struct eng_store *store, struct fmt_uuid *disks, size_t max);

/* --- attach (attach.c) --- */
enum {
	ENG_ATTACH_READ_ONLY = 1 << 0,
};
/* @name: VM/DISK or COLLECTION@SNAPSHOT/VM/DISK. On the queue's thread. */
int eng_store_attach(struct eng_store *store, struct eng_queue *queue, const char *name,
		     unsigned flags, struct fmt_error *err, struct eng_disk **ret);
/* What a snapshot holds of a disk, by the two ids in @member; -ENOENT when the snapshot is gone. */
int eng_store_attach_member(struct eng_store *store, struct eng_queue *queue,
			    const struct cat_snapshot_disk *member, struct fmt_error *err,
			    struct eng_disk **ret);
/* What @layer and all beneath it hold, read-only and of the layer's size; as a reader of @disk, in whose
 * chain it is (FO-5). */
int eng_store_attach_layer(struct eng_store *store, struct eng_queue *queue,
			   const struct fmt_uuid *disk, const struct fmt_uuid *layer,
			   struct fmt_error *err, struct eng_disk **ret);
int eng_store_detach(struct eng_disk *disk);
/* The ordinal of the layer of @disk that the snapshot froze; -ENOENT. The worker; reads the catalog. */
int eng_store_frozen_layer(struct eng_disk *disk, const char *collection, const char *snapshot,
			   struct fmt_error *err, uint32_t *ret);

/* --- disks (disks.c; resize.c): create, import, resize, delete --- */
struct eng_disk_make {
	const char *vm, *name;
	uint64_t size;             /* 0 with @from: the image's */
	const char *from, *format; /* image to import; "raw", "qcow2", NULL: probed */
	bool in_place, independent;
	uint32_t block_bits; /* 0: 12 */
};
int eng_store_make_disk(struct eng_store *store, const struct eng_disk_make *make,
			struct fmt_error *err);
int eng_store_check_size(uint64_t size, struct fmt_error *err); /* of a disk, in bytes */
/* AT-6. An attached disk grows as it is: its queue's thread must turn. -EDEADLK on that thread. */
int eng_store_resize_disk(struct eng_store *store, const char *vm, const char *name, uint64_t size,
			  struct fmt_error *err);
int eng_store_delete_disk(struct eng_store *store, const char *vm, const char *name,
			  struct fmt_error *err);
/* The store's own files of layers that no row names any more; a base in place stays. */
void eng_store_remove_files(struct eng_store *store, const struct cat_layer *layers, size_t n);
/* Allocated bytes of a layer's files, for listings. */
uint64_t eng_store_layer_bytes(struct eng_store *store, const struct cat_layer *row);

/* --- recovery at open (recover.c, RV-*) --- */
int eng_store_recover(struct eng_store *store, struct fmt_error *err);

/* --- sealing (sealer.c) --- */
/* Queues a hardened layer; @layer (its object in use, reference taken) may be NULL. */
void eng_store_seal(struct eng_store *store, const struct fmt_uuid *id, struct eng_layer *layer);
/* Queues every hardened layer that is not sealed. */
int eng_store_seal_rest(struct eng_store *store);

/* Empties the catalog's log in the background, when a cut has just ended. */
void eng_store_checkpoint(struct eng_store *store);

/* --- snapshots deleted (delete.c) --- */
/*
 * DestroySnapshot: 0 when the snapshot is gone, durably. @job, when its id is not none, is recorded as
 * running with the deletion's mark and as completed with its end. -ENOENT: no such snapshot; other
 * errors: nothing was changed, or (*@marked) the next open finishes it.
 */
int eng_store_delete_snapshot(struct eng_store *store, const char *collection, const char *name,
			      struct cat_job *job, bool *marked, struct fmt_error *err);

/*
 * The same of that one, whatever it is called and whatever has come to be called so: for who has looked at it
 * before and decided. -ENOENT: it is gone.
 */
int eng_store_delete_snapshot_id(struct eng_store *store, const struct fmt_uuid *id,
				 struct cat_job *job, bool *marked, struct fmt_error *err);

/* What follows a mark, DELETING in the catalog: boundaries, row, @job's end, folds (DL-2, DL-3). */
int eng_store_end_deletion(struct eng_store *store, const struct cat_snapshot *snap,
			   struct cat_job *job, struct fmt_error *err);

/* --- rolls and standbys (roll.c, standby.c) --- */
extern const struct eng_disk_ops eng_store_disk_ops;
/* Makes a standby for the entry in the background, where the options ask for them (standby.c). */
void eng_store_want_standby(struct eng_entry *entry);
/* Removes the entry's standby with its file. The entry is busy or the store closing. */
void eng_entry_drop_standby(struct eng_entry *entry);

#endif
