/* SPDX-License-Identifier: MIT */
/*
 * catalog_impl.h - what catalog.c (database, transactions), catalog_stmts.c (columns, statements) and
 * catalog_rows.c (calls) share; for these only. All fields below @lock are guarded by it. The lock
 * is recursive: a transaction holds it from begin to commit or rollback, and each call inside takes
 * it once more.
 */
#ifndef ENGINE_CATALOG_IMPL_H
#define ENGINE_CATALOG_IMPL_H

#include <pthread.h>
#include <sqlite3.h>
#include <stdatomic.h>

#include "engine/catalog/catalog.h"
#include "engine/catalog/catalog_vfs.h"

struct eng_catalog {
	struct eng_catalog_vfs *vfs;
	sqlite3 *db;
	atomic_bool poisoned; /* CT-2; never cleared */
	pthread_mutex_t lock;
	sqlite3_stmt **stmts; /* catalog_rows.c's, all prepared at open */
	bool in_txn;          /* by the lock's holder */
	bool txn_removes;     /* the transaction removed a row (CT-5) */
	int txn_error;        /* its first failure */
	struct fmt_error txn_text;
	bool changed;   /* something was committed since open */
	bool reserved;  /* CT-13: space is kept aside for it */
	int log_frames; /* committed and not checkpointed, as far as known */
};

/* Takes the lock; -ENOTRECOVERABLE, and not taken, when poisoned. */
int eng_catalog_enter(struct eng_catalog *cat);
void eng_catalog_leave(struct eng_catalog *cat);

/* SQLite's code as a negative errno. */
int eng_catalog_error(struct eng_catalog *cat, int code);

/* Remembers the first failure of the transaction; returns @r. */
int eng_catalog_txn_fail(struct eng_catalog *cat, int r, const char *what);

/* --- catalog_stmts.c: the lock is held --- */

enum cat_stmt {
	PUT_VM,
	PUT_DISK,
	PUT_LAYER,
	PUT_COLLECTION,
	PUT_MEMBER,
	PUT_SNAPSHOT,
	PUT_SNAPSHOT_DISK,
	PUT_SNAPSHOT_GUEST,
	PUT_FREEZE,
	PUT_REFPOINT,
	PUT_REFPOINT_DISK,
	PUT_JOB,
	PUT_HOLD,
	GET_VM,
	GET_DISK,
	GET_DISK_ID,
	GET_LAYER,
	GET_COLLECTION,
	GET_COLLECTION_ID,
	GET_SNAPSHOT,
	GET_SNAPSHOT_ID,
	GET_REFPOINT,
	GET_REFPOINT_ID,
	GET_REFPOINT_RCT,
	GET_JOB,
	LIST_VMS,
	LIST_DISKS,
	LIST_VM_DISKS,
	LIST_LAYERS,
	LIST_DISK_LAYERS,
	LIST_GARBAGE,
	LIST_CLONES,
	LIST_USERS,
	LIST_CHILDREN,
	LIST_COLLECTIONS,
	LIST_MEMBERS,
	LIST_COLLECTION_DISKS,
	LIST_SNAPSHOTS,
	LIST_COLLECTION_SNAPSHOTS,
	LIST_SNAPSHOT_DISKS,
	LIST_SNAPSHOT_GUESTS,
	LIST_REFPOINTS,
	LIST_COLLECTION_REFPOINTS,
	LIST_REFPOINT_DISKS,
	LIST_LAYER_REFPOINTS,
	LIST_REFPOINT_ENDS,
	LIST_FREEZES,
	LIST_VM_FREEZES,
	LIST_JOBS,
	LIST_HOLDS,
	LIST_SNAPSHOT_HOLDS,
	CHAIN,
	SET_LAYER_STATE,
	SET_LAYER_SNAPSHOT,
	SET_DISK_HEAD,
	MOVE_CHILDREN,
	MOVE_SNAPSHOTS,
	MOVE_REFPOINTS,
	SET_REFPOINT_STATE,
	LOSE_DISK_REFPOINTS,
	GET_REFPOINT_SET,
	REMOVE_VM,
	REMOVE_DISK,
	REMOVE_LAYER,
	REMOVE_COLLECTION,
	REMOVE_MEMBER,
	REMOVE_SNAPSHOT,
	REMOVE_REFPOINT,
	REMOVE_JOB,
	REMOVE_FREEZE,
	REMOVE_HOLD,
	FACT_GET,
	FACT_SET,
	STMT_COUNT
};

struct cat_member {
	struct fmt_uuid collection, vm;
};

int eng_catalog_prepare(struct eng_catalog *cat, struct fmt_error *err);
void eng_catalog_finalize(struct eng_catalog *cat);

/* Binds all columns of a PUT_*: 0, or -EINVAL, which also fails the transaction. @row is borrowed
 * until the statement is reset. */
int eng_catalog_bind_row(struct eng_catalog *cat, enum cat_stmt s, const void *row);
void eng_catalog_bind_ref(sqlite3_stmt *stmt, int i, const struct fmt_uuid *id); /* or NULL */

/* Of a GET_*, LIST_* or CHAIN: the struct's size; the current row into it: 0 or -EUCLEAN. */
size_t eng_catalog_row_size(enum cat_stmt s);
int eng_catalog_read_row(struct eng_catalog *cat, enum cat_stmt s, void *row);
/* The first column, zero-filled to @size: 0 or -EUCLEAN. */
int eng_catalog_read_text(sqlite3_stmt *stmt, char *ret, size_t size);

/* --- catalog_rows.c: statements run, for the files with the calls; they take the lock --- */

/* What a query looks for: an id as ?1 or a name as ?1, and a (second) name as ?2. */
struct cat_key {
	const struct fmt_uuid *id;
	const char *name, *name2;
};

/* In a transaction; the first failure is what its commit returns (CT-1). */
int eng_catalog_run_put(struct eng_catalog *cat, enum cat_stmt s, const void *row);
/* The same; -ENOENT where there was no such row. */
int eng_catalog_run_remove(struct eng_catalog *cat, enum cat_stmt s, struct cat_key key);
/* One row into @ret: 0 or -ENOENT. */
int eng_catalog_run_get(struct eng_catalog *cat, enum cat_stmt s, struct cat_key key, void *ret);
/* @ret: where the pointer to the rows goes, which the caller frees. */
int eng_catalog_run_list(struct eng_catalog *cat, enum cat_stmt s, struct cat_key key, void *ret,
			 size_t *count);

/* Takes the lock inside a transaction that has not failed yet, else gives its first failure. */
int eng_catalog_enter_txn(struct eng_catalog *cat);
/* Runs a bound statement of a transaction and unbinds it; the lock is held. -ENOENT, failing the
 * transaction, when no row was changed and one must be. */
int eng_catalog_run_locked(struct eng_catalog *cat, enum cat_stmt s, bool must_exist);

#endif
