/* SPDX-License-Identifier: MIT */
/*
 * catalog.c - the catalog's database: schema, opening, transactions, checkpoints. Rules CT-* are in
 * spec/catalog.md. What has been committed is durable; what a COMMIT that failed has done is either
 * known (nothing) or the catalog is poisoned (CT-2, T23). Any thread; one at a time inside.
 */
#include "engine/catalog/catalog.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/catalog/catalog_impl.h"

#define SCHEMA_VERSION "3"
/* A log of more frames is checkpointed by the commit that finds it so; 32 MiB. */
#define LOG_FRAMES_MAX 8192

#define DEFERRED " DEFERRABLE INITIALLY DEFERRED"

/* CT-4: the database holds these objects, word for word, and no others. */
static const char *const schema[] = {
	"CREATE TABLE facts (key TEXT NOT NULL PRIMARY KEY, value TEXT NOT NULL) "
	"STRICT, WITHOUT ROWID",

	"CREATE TABLE vms (id BLOB NOT NULL PRIMARY KEY, name TEXT NOT NULL UNIQUE, "
	"guest_agent TEXT NOT NULL, created_ns INTEGER NOT NULL) STRICT",

	"CREATE TABLE freezes (vm BLOB NOT NULL REFERENCES vms ON DELETE CASCADE" DEFERRED
	", socket TEXT NOT NULL, job BLOB NOT NULL, created_ns INTEGER NOT NULL, "
	"PRIMARY KEY (vm, socket)) STRICT, WITHOUT ROWID",

	"CREATE TABLE disks (id BLOB NOT NULL PRIMARY KEY, "
	"vm BLOB NOT NULL REFERENCES vms" DEFERRED ", name TEXT NOT NULL, size INTEGER NOT NULL, "
	"block_bits INTEGER NOT NULL, independent INTEGER NOT NULL, position INTEGER NOT NULL, "
	"head BLOB REFERENCES layers" DEFERRED ", created_ns INTEGER NOT NULL, "
	"UNIQUE (vm, name)) STRICT",
	"CREATE INDEX disks_head ON disks (head)",

	"CREATE TABLE layers (id BLOB NOT NULL PRIMARY KEY, "
	"disk BLOB NOT NULL REFERENCES disks" DEFERRED ", parent BLOB REFERENCES layers" DEFERRED
	", "
	"kind INTEGER NOT NULL, state INTEGER NOT NULL, generation INTEGER NOT NULL, "
	"snapshot BLOB REFERENCES snapshots ON DELETE SET NULL" DEFERRED ", path TEXT NOT NULL, "
	"base_dev INTEGER NOT NULL, base_ino INTEGER NOT NULL, created_ns INTEGER NOT NULL) STRICT",
	"CREATE INDEX layers_disk ON layers (disk, generation)",
	"CREATE INDEX layers_parent ON layers (parent)",
	"CREATE INDEX layers_snapshot ON layers (snapshot) WHERE snapshot IS NOT NULL",
	"CREATE UNIQUE INDEX layers_base ON layers (base_dev, base_ino) WHERE path <> ''", /* T31 */

	"CREATE TABLE collections (id BLOB NOT NULL PRIMARY KEY, name TEXT NOT NULL UNIQUE, "
	"created_ns INTEGER NOT NULL) STRICT",

	"CREATE TABLE members (collection BLOB NOT NULL REFERENCES collections "
	"ON DELETE CASCADE" DEFERRED ", vm BLOB NOT NULL REFERENCES vms" DEFERRED ", "
	"PRIMARY KEY (collection, vm)) STRICT, WITHOUT ROWID",
	"CREATE INDEX members_vm ON members (vm)",

	"CREATE TABLE snapshots (id BLOB NOT NULL PRIMARY KEY, "
	"collection BLOB NOT NULL REFERENCES collections" DEFERRED ", name TEXT NOT NULL, "
	"element_name TEXT NOT NULL, state INTEGER NOT NULL, type INTEGER NOT NULL, "
	"consistency INTEGER NOT NULL, guest_backup_type INTEGER NOT NULL, "
	"disks INTEGER NOT NULL, skipped INTEGER NOT NULL, automatic INTEGER NOT NULL, "
	"created_ns INTEGER NOT NULL, cut_wall_ns INTEGER NOT NULL, cut_ns INTEGER NOT NULL, "
	"prepare_ns INTEGER NOT NULL, "
	"drain_ns INTEGER NOT NULL, harden_ns INTEGER NOT NULL, total_ns INTEGER NOT NULL, "
	"max_write_latency_ns INTEGER NOT NULL, freeze_ns INTEGER NOT NULL, "
	"UNIQUE (collection, name)) STRICT",

	"CREATE TABLE snapshot_disks (snapshot BLOB NOT NULL REFERENCES snapshots "
	"ON DELETE CASCADE" DEFERRED ", disk BLOB NOT NULL, layer BLOB REFERENCES layers" DEFERRED
	", "
	"vm_name TEXT NOT NULL, disk_name TEXT NOT NULL, size INTEGER NOT NULL, "
	"position INTEGER NOT NULL, skipped INTEGER NOT NULL, PRIMARY KEY (snapshot, disk)) "
	"STRICT, WITHOUT ROWID",
	"CREATE INDEX snapshot_disks_layer ON snapshot_disks (layer)",

	"CREATE TABLE snapshot_guests (snapshot BLOB NOT NULL REFERENCES snapshots "
	"ON DELETE CASCADE" DEFERRED ", vm BLOB NOT NULL, vm_name TEXT NOT NULL, "
	"position INTEGER NOT NULL, frozen INTEGER NOT NULL, frozen_ns INTEGER NOT NULL, "
	"filesystems INTEGER NOT NULL, error TEXT NOT NULL, PRIMARY KEY (snapshot, vm)) "
	"STRICT, WITHOUT ROWID",

	"CREATE TABLE refpoints (id BLOB NOT NULL PRIMARY KEY, "
	"collection BLOB NOT NULL REFERENCES collections" DEFERRED ", name TEXT NOT NULL, "
	"element_name TEXT NOT NULL, type INTEGER NOT NULL, consistency INTEGER NOT NULL, "
	"disks INTEGER NOT NULL, snapshot BLOB, snapshot_name TEXT NOT NULL, "
	"created_ns INTEGER NOT NULL, cut_wall_ns INTEGER NOT NULL, "
	"UNIQUE (collection, name)) STRICT",

	/* With row ids: sets may be large (RP-17). A layer that goes must be let go of first (T29). */
	"CREATE TABLE refpoint_disks (refpoint BLOB NOT NULL REFERENCES refpoints "
	"ON DELETE CASCADE" DEFERRED ", disk BLOB NOT NULL, layer BLOB REFERENCES layers" DEFERRED
	", "
	"rct BLOB NOT NULL UNIQUE, vm BLOB NOT NULL, vm_name TEXT NOT NULL, "
	"disk_name TEXT NOT NULL, size INTEGER NOT NULL, position INTEGER NOT NULL, changed BLOB, "
	"PRIMARY KEY (refpoint, disk)) STRICT",
	"CREATE INDEX refpoint_disks_layer ON refpoint_disks (layer)",
	"CREATE INDEX refpoint_disks_disk ON refpoint_disks (disk)",

	"CREATE TABLE jobs (id BLOB NOT NULL PRIMARY KEY, state INTEGER NOT NULL, "
	"type INTEGER NOT NULL, percent INTEGER NOT NULL, error_code INTEGER NOT NULL, "
	"name TEXT NOT NULL, error_text TEXT NOT NULL, status_text TEXT NOT NULL, affected BLOB, "
	"submitted_ns INTEGER NOT NULL, started_ns INTEGER NOT NULL, changed_ns INTEGER NOT NULL, "
	"ended_ns INTEGER NOT NULL, cancellable INTEGER NOT NULL, "
	"delete_on_completion INTEGER NOT NULL) STRICT",

	/* No cascade: a held snapshot cannot be removed by mistake either (HD-2). */
	"CREATE TABLE holds (snapshot BLOB NOT NULL REFERENCES snapshots" DEFERRED
	", tag TEXT NOT NULL, created_ns INTEGER NOT NULL, PRIMARY KEY (snapshot, tag)) "
	"STRICT, WITHOUT ROWID",
};

#define SCHEMA_COUNT (sizeof(schema) / sizeof(schema[0]))

/* --- lock and errors --- */

int eng_catalog_enter(struct eng_catalog *cat)
{
	pthread_mutex_lock(&cat->lock);
	if (!atomic_load(&cat->poisoned))
		return 0;
	pthread_mutex_unlock(&cat->lock);
	return -ENOTRECOVERABLE;
}

void eng_catalog_leave(struct eng_catalog *cat)
{
	pthread_mutex_unlock(&cat->lock);
}

bool eng_catalog_poisoned(struct eng_catalog *cat)
{
	return atomic_load(&cat->poisoned);
}

int eng_catalog_error(struct eng_catalog *cat, int code)
{
	if (code == SQLITE_CONSTRAINT_FOREIGNKEY)
		return cat->txn_removes ? -EBUSY : -ENOENT; /* CT-5 */
	if (code == SQLITE_CONSTRAINT_UNIQUE || code == SQLITE_CONSTRAINT_PRIMARYKEY)
		return -EEXIST;
	switch (code & 0xff) {
	case SQLITE_OK:
	case SQLITE_ROW:
	case SQLITE_DONE: return 0;
	case SQLITE_CONSTRAINT:
	case SQLITE_TOOBIG: return -EINVAL;
	case SQLITE_NOMEM: return -ENOMEM;
	case SQLITE_FULL: return -ENOSPC;
	case SQLITE_IOERR:
	case SQLITE_CANTOPEN: return eng_catalog_vfs_errno(cat->vfs);
	case SQLITE_CORRUPT:
	case SQLITE_NOTADB:
	case SQLITE_ERROR: /* our statements are right: the tables are not ours */ return -EUCLEAN;
	default: return -EIO;
	}
}

uint64_t eng_catalog_changes(struct eng_catalog *cat)
{
	uint64_t changes;

	pthread_mutex_lock(&cat->lock);
	changes = (uint64_t)sqlite3_total_changes64(cat->db);
	pthread_mutex_unlock(&cat->lock);
	return changes;
}

static int catalog_fail(struct eng_catalog *cat, int code, struct fmt_error *err)
{
	int r = eng_catalog_error(cat, code);

	return fmt_fail(err, r, "catalog: %s (%s)", sqlite3_errmsg(cat->db), strerror(-r));
}

static int catalog_exec(struct eng_catalog *cat, const char *sql, struct fmt_error *err)
{
	int code = sqlite3_exec(cat->db, sql, NULL, NULL, NULL);

	return code == SQLITE_OK ? 0 : catalog_fail(cat, code, err);
}

/* --- transactions --- */

int eng_catalog_begin(struct eng_catalog *cat)
{
	int r = eng_catalog_enter(cat);

	if (r < 0)
		return r;
	assert(!cat->in_txn);
	r = catalog_exec(cat, "BEGIN IMMEDIATE", NULL);
	if (r < 0) {
		eng_catalog_leave(cat);
		return r;
	}
	cat->in_txn = true;
	cat->txn_removes = false;
	cat->txn_error = 0;
	return 0; /* the lock stays taken */
}

int eng_catalog_txn_fail(struct eng_catalog *cat, int r, const char *what)
{
	if (r < 0 && !cat->txn_error)
		cat->txn_error = fmt_fail(&cat->txn_text, r, "catalog: %s (%s)", what,
					  strerror(-r));
	return r;
}

/* Some errors have rolled back already. Nothing is written: changes are in memory up to COMMIT. */
static void catalog_end(struct eng_catalog *cat)
{
	if (!sqlite3_get_autocommit(cat->db))
		sqlite3_exec(cat->db, "ROLLBACK", NULL, NULL, NULL);
	cat->in_txn = false;
	eng_catalog_leave(cat); /* what begin took */
}

/*
 * CT-2, CT-9: a COMMIT that met an I/O error may be durable, or become so; only recovery can tell.
 * A full disk (or memory) is another matter as long as no commit frame was sent: then the frames
 * written count for nothing, and the next transaction writes over them.
 */
static int catalog_commit_failed(struct eng_catalog *cat, int code, struct fmt_error *err)
{
	int primary = code & 0xff;

	if (primary == SQLITE_CONSTRAINT) /* CT-5: before anything is written */
		return catalog_fail(cat, code, err);
	if (primary != SQLITE_IOERR && !eng_catalog_vfs_may_have_committed(cat->vfs))
		return catalog_fail(cat, code, err);
	atomic_store(&cat->poisoned, true);
	return fmt_fail(err, -ENOTRECOVERABLE,
			"catalog: COMMIT failed with %s (%s): its outcome is unknown until the "
			"store is opened again",
			sqlite3_errmsg(cat->db), strerror(-eng_catalog_error(cat, code)));
}

static int catalog_checkpoint(struct eng_catalog *cat, int mode)
{
	int code = sqlite3_wal_checkpoint_v2(cat->db, NULL, mode, NULL, NULL);

	if (code == SQLITE_OK)
		cat->log_frames = 0;
	return eng_catalog_error(cat, code);
}

int eng_catalog_commit(struct eng_catalog *cat, struct fmt_error *err)
{
	int code, r = eng_catalog_enter(cat);

	if (r < 0)
		return r;
	assert(cat->in_txn);
	if (cat->txn_error) {
		r = fmt_fail(err, cat->txn_error, "%s", cat->txn_text.text);
		goto out;
	}
	eng_catalog_vfs_arm(cat->vfs);
	code = sqlite3_exec(cat->db, "COMMIT", NULL, NULL, NULL);
	if (code != SQLITE_OK) {
		r = catalog_commit_failed(cat, code, err);
		goto out;
	}
	cat->changed = true;
	/* The transaction is durable whatever this does: an error comes back in the next one. */
	if (cat->log_frames > LOG_FRAMES_MAX)
		catalog_checkpoint(cat, SQLITE_CHECKPOINT_PASSIVE);
out:
	catalog_end(cat);
	eng_catalog_leave(cat);
	return r;
}

void eng_catalog_rollback(struct eng_catalog *cat)
{
	pthread_mutex_lock(&cat->lock);
	if (cat->in_txn)
		catalog_end(cat);
	pthread_mutex_unlock(&cat->lock);
}

int eng_catalog_checkpoint(struct eng_catalog *cat)
{
	int r = eng_catalog_enter(cat);

	if (r < 0)
		return r;
	assert(!cat->in_txn);
	r = catalog_checkpoint(cat, SQLITE_CHECKPOINT_PASSIVE);
	eng_catalog_leave(cat);
	return r;
}

static int on_log_grown(void *arg, sqlite3 *db, const char *name, int frames)
{
	struct eng_catalog *cat = arg;

	(void)db;
	(void)name;
	cat->log_frames = frames;
	return SQLITE_OK;
}

/* --- checks --- */

/* Calls @each with the first column, as text, of every row of @sql. */
static int catalog_each(struct eng_catalog *cat, const char *sql, struct fmt_error *err,
			int (*each)(void *arg, const char *text), void *arg)
{
	sqlite3_stmt *stmt = NULL;
	const char *text;
	int code, r = 0;

	code = sqlite3_prepare_v2(cat->db, sql, -1, &stmt, NULL);
	while (code == SQLITE_OK || code == SQLITE_ROW) {
		code = sqlite3_step(stmt);
		if (code != SQLITE_ROW)
			break;
		text = (const char *)sqlite3_column_text(stmt, 0);
		r = each(arg, text ? text : "");
		if (r < 0)
			break;
	}
	if (r == 0 && code != SQLITE_DONE)
		r = catalog_fail(cat, code, err);
	sqlite3_finalize(stmt);
	return r;
}

static int copy_text(void *arg, const char *text)
{
	struct fmt_error *copy = arg;

	return fmt_fail(copy, 0, "%s", text);
}

static int count_object(void *arg, const char *sql)
{
	size_t *counts = arg; /* objects, and those of them that are ours */

	counts[0]++;
	for (size_t i = 0; i < SCHEMA_COUNT; i++)
		counts[1] += strcmp(sql, schema[i]) == 0;
	return 0;
}

static int count_row(void *arg, const char *text)
{
	(void)text;
	++*(size_t *)arg;
	return 0;
}

int eng_catalog_check(struct eng_catalog *cat, struct fmt_error *err)
{
	struct fmt_error text = {""};
	size_t dangling = 0;
	int r = eng_catalog_enter(cat);

	if (r < 0)
		return r;
	r = catalog_each(cat, "PRAGMA integrity_check(1)", err, copy_text, &text);
	if (r == 0 && strcmp(text.text, "ok") != 0)
		r = fmt_fail(err, -EUCLEAN, "catalog: %s", text.text);
	if (r < 0)
		goto out;
	r = catalog_each(cat, "PRAGMA foreign_key_check", err, count_row, &dangling);
	if (r == 0 && dangling)
		r = fmt_fail(err, -EUCLEAN, "catalog: %zu rows refer to rows that are not there",
			     dangling);
out:
	eng_catalog_leave(cat);
	return r;
}

/* --- opening --- */

static int catalog_create_schema(struct eng_catalog *cat, struct fmt_error *err)
{
	int r = catalog_exec(cat, "BEGIN IMMEDIATE", err);

	for (size_t i = 0; i < SCHEMA_COUNT && r == 0; i++)
		r = catalog_exec(cat, schema[i], err);
	if (r == 0)
		r = catalog_exec(cat,
				 "INSERT INTO facts VALUES ('schema_version', '" SCHEMA_VERSION
				 "')",
				 err);
	if (r == 0)
		r = catalog_exec(cat, "COMMIT", err);
	cat->changed = r == 0;
	return r; /* what was not committed is forgotten when the database is closed */
}

static bool is_newer_version(const char *text)
{
	size_t len = strspn(text, "0123456789");
	size_t ours = strlen(SCHEMA_VERSION);

	if (len == 0 || text[len] || text[0] == '0')
		return false;
	return len > ours || (len == ours && strcmp(text, SCHEMA_VERSION) > 0);
}

static int catalog_check_schema(struct eng_catalog *cat, bool create, struct fmt_error *err)
{
	static const char objects[] =
		"SELECT sql FROM sqlite_schema WHERE substr(name, 1, 7) <> 'sqlite_'";
	struct fmt_error version = {""};
	size_t counts[2] = {0, 0};
	int r;

	r = catalog_each(cat, objects, err, count_object, counts);
	if (r < 0)
		return r;
	if (counts[0] == 0) /* new, or its making was cut short */
		return create ? catalog_create_schema(cat, err)
			      : fmt_fail(err, -ENOENT, "catalog: the database is empty");
	/* CT-3: the version first; this table is the same in all versions. */
	r = catalog_each(cat, "SELECT value FROM facts WHERE key = 'schema_version'", err,
			 copy_text, &version);
	if (r < 0)
		return r;
	if (strcmp(version.text, "1") == 0 || strcmp(version.text, "2") == 0)
		return fmt_fail(
			err, -ENOTSUP,
			"catalog: schema version %s is of a program that was never released; "
			"this one knows " SCHEMA_VERSION,
			version.text);
	if (is_newer_version(version.text))
		return fmt_fail(err, -ENOTSUP,
				"catalog: schema version %s, this program knows " SCHEMA_VERSION,
				version.text);
	if (strcmp(version.text, SCHEMA_VERSION) != 0)
		return fmt_fail(err, -EUCLEAN,
				"catalog: schema version '%s', expected " SCHEMA_VERSION,
				version.text);
	if (counts[0] != SCHEMA_COUNT || counts[1] != SCHEMA_COUNT) /* CT-4 */
		return fmt_fail(err, -EUCLEAN,
				"catalog: %zu of %zu tables and indexes are as they "
				"should be, expected %zu",
				counts[1], counts[0], SCHEMA_COUNT);
	return 0;
}

static int catalog_configure(struct eng_catalog *cat, struct fmt_error *err)
{
	/* CT-12. Exclusive first: with it the log's index is kept in our memory, not in a shared file. */
	static const char pragmas[] =
		"PRAGMA locking_mode = EXCLUSIVE;"
		"PRAGMA page_size = 4096;"
		"PRAGMA trusted_schema = OFF;"
		"PRAGMA cell_size_check = ON;"
		"PRAGMA foreign_keys = ON;"
		"PRAGMA temp_store = MEMORY;"
		"PRAGMA secure_delete = OFF;"
		"PRAGMA cache_size = -16384;"
		"PRAGMA cache_spill = OFF;" /* CT-9: only COMMIT writes to the log */
		"PRAGMA synchronous = FULL;";
	struct fmt_error mode = {""};
	int r;

	sqlite3_extended_result_codes(cat->db, 1);
	sqlite3_db_config(cat->db, SQLITE_DBCONFIG_DEFENSIVE, 1, NULL);
	/* CT-2: close does it itself, and not when poisoned: the next open is to find all. */
	sqlite3_db_config(cat->db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, NULL);
	r = catalog_exec(cat, pragmas, err);
	if (r == 0)
		r = catalog_each(cat, "PRAGMA journal_mode = WAL", err, copy_text, &mode);
	if (r == 0 && strcmp(mode.text, "wal") != 0)
		r = fmt_fail(err, -EUCLEAN, "catalog: journal mode '%s', expected 'wal'",
			     mode.text);
	/* After the mode, which sets its own; this also turns SQLite's automatic checkpoint off. */
	sqlite3_wal_hook(cat->db, on_log_grown, cat);
	return r;
}

static int catalog_create(struct eng_io *io, const char *path, struct eng_catalog **ret)
{
	struct eng_catalog *cat = calloc(1, sizeof(*cat));
	pthread_mutexattr_t attr;
	int r;

	if (!cat)
		return -ENOMEM;
	r = eng_catalog_vfs_create(io, path, &cat->vfs);
	if (r < 0) {
		free(cat);
		return r;
	}
	pthread_mutexattr_init(&attr);
	pthread_mutexattr_settype(&attr, PTHREAD_MUTEX_RECURSIVE);
	pthread_mutex_init(&cat->lock, &attr);
	pthread_mutexattr_destroy(&attr);
	*ret = cat;
	return 0;
}

int eng_catalog_open(struct eng_io *io, const char *path, bool create, struct fmt_error *err,
		     struct eng_catalog **ret)
{
	int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_PRIVATECACHE;
	struct eng_catalog *cat = NULL;
	int code, r = catalog_create(io, path, &cat);

	if (r < 0)
		return fmt_fail(err, r, "catalog: %s", strerror(-r));
	flags |= create ? SQLITE_OPEN_CREATE : 0;
	code = sqlite3_open_v2(path, &cat->db, flags, eng_catalog_vfs_name(cat->vfs));
	r = code == SQLITE_OK ? 0 : catalog_fail(cat, code, err);
	if (r == 0)
		r = catalog_configure(cat, err);
	if (r == 0)
		r = catalog_check_schema(cat, create, err);
	if (r == 0)
		r = eng_catalog_prepare(cat, err);
	if (r < 0)
		goto out;
	*ret = cat;
	cat = NULL;
out:
	eng_catalog_close(cat);
	return r;
}

void eng_catalog_keep_reserve(struct eng_catalog *cat)
{
	cat->reserved = true;
	eng_catalog_vfs_keep_reserve(cat->vfs);
}

uint64_t eng_catalog_reserve(struct eng_catalog *cat)
{
	return eng_catalog_vfs_reserve(cat->vfs);
}

/*
 * CT-6, CT-13: the log is emptied, unless it has all that is kept aside: on a full disk others would take its
 * blocks, and the next open would find none to write to.
 */
static void catalog_clear_log(struct eng_catalog *cat)
{
	if (cat->reserved && eng_catalog_reserve(cat) == 0) {
		catalog_checkpoint(cat, SQLITE_CHECKPOINT_PASSIVE);
		eng_catalog_vfs_keep_reserve(cat->vfs);
		if (eng_catalog_reserve(cat) == 0)
			return;
	}
	catalog_checkpoint(cat, SQLITE_CHECKPOINT_TRUNCATE);
}

void eng_catalog_close(struct eng_catalog *cat)
{
	if (!cat)
		return;
	assert(!cat->in_txn);
	eng_catalog_finalize(cat);
	/* A catalog that was only looked at is left as it was. */
	if (cat->changed && !cat->poisoned)
		catalog_clear_log(cat);
	sqlite3_close(cat->db);
	eng_catalog_vfs_destroy(cat->vfs);
	pthread_mutex_destroy(&cat->lock);
	free(cat);
}
