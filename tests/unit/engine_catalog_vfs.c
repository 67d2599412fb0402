/* SPDX-License-Identifier: MIT */
/*
 * engine_catalog_vfs.c - SQLite's files go through the I/O seam, with its errors in SQLite's words
 * and no promise that a disk might not keep. Rules CT-*: spec/catalog.md.
 */
#include "engine/catalog/catalog_vfs.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/io/io_fault.h"
#include "engine/io/io_record.h"

#define RW (SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE)

static struct eng_io *posix;
static struct eng_fault *fault;
static struct eng_catalog_vfs *vfs;
static sqlite3_vfs *base;
static sqlite3_file *file;
static char dir[300], path[320], log_path[330];

static void setup(void)
{
	const char *tmp = getenv("TMPDIR");

	snprintf(dir, sizeof(dir), "%s/vmimg-vfs-XXXXXX", tmp ? tmp : "/tmp");
	cr_assert(mkdtemp(dir), "no directory for the test");
	snprintf(path, sizeof(path), "%s/test.db", dir);
	snprintf(log_path, sizeof(log_path), "%s/test.db-wal", dir);
	cr_assert_eq(eng_io_posix_create(&posix), 0);
	cr_assert_eq(eng_fault_create(posix, &fault), 0);
	cr_assert_eq(eng_catalog_vfs_create(eng_fault_io(fault), path, &vfs), 0);
	base = sqlite3_vfs_find(eng_catalog_vfs_name(vfs));
	cr_assert(base);
	file = calloc(1, (size_t)base->szOsFile);
}

static void close_file(void)
{
	if (file->pMethods)
		file->pMethods->xClose(file);
	file->pMethods = NULL;
}

static void teardown(void)
{
	close_file();
	free(file);
	eng_catalog_vfs_destroy(vfs);
	eng_fault_destroy(fault);
	eng_record_remove_tree(dir);
	eng_io_destroy(posix);
}

TestSuite(engine_catalog_vfs, .init = setup, .fini = teardown, .timeout = 60);

static int open_file(const char *name, int flags)
{
	int got = 0;

	close_file();
	return base->xOpen(base, name, file, flags, &got);
}

static void fail(enum eng_fault_op op, int error)
{
	eng_fault_clear(fault);
	eng_fault_add(fault, &(struct eng_fault_rule){.ops = op, .error = error});
}

Test(engine_catalog_vfs, a_read_past_the_end_is_zero_filled_and_says_so)
{
	char buf[8] = "xxxxxxx";

	cr_assert_eq(open_file(path, RW | SQLITE_OPEN_MAIN_DB), SQLITE_OK);
	cr_assert_eq(file->pMethods->xWrite(file, "abcd", 4, 0), SQLITE_OK);
	cr_expect_eq(file->pMethods->xRead(file, buf, 4, 0), SQLITE_OK);
	cr_expect_eq(file->pMethods->xRead(file, buf, 8, 2), SQLITE_IOERR_SHORT_READ);
	cr_expect_eq(memcmp(buf, "cd\0\0\0\0\0\0", 8), 0);
	cr_expect_eq(file->pMethods->xRead(file, buf, 8, 100), SQLITE_IOERR_SHORT_READ);
	cr_expect_eq(memcmp(buf, "\0\0\0\0\0\0\0\0", 8), 0);
}

Test(engine_catalog_vfs, it_promises_nothing_that_a_disk_might_not_keep)
{
	sqlite3_int64 size = -1;
	int reserved = -1;

	cr_assert_eq(open_file(path, RW | SQLITE_OPEN_MAIN_DB), SQLITE_OK);
	cr_expect_eq(file->pMethods->iVersion, 1, "no shared memory, no mapping");
	cr_expect_eq(file->pMethods->xDeviceCharacteristics(file), 0);
	cr_expect_eq(file->pMethods->xSectorSize(file), 4096);
	cr_expect_eq(file->pMethods->xFileControl(file, SQLITE_FCNTL_PRAGMA, NULL),
		     SQLITE_NOTFOUND);
	cr_expect_eq(file->pMethods->xLock(file, SQLITE_LOCK_EXCLUSIVE), SQLITE_OK);
	cr_expect_eq(file->pMethods->xCheckReservedLock(file, &reserved), SQLITE_OK);
	cr_expect_eq(reserved, 0);
	cr_expect_eq(file->pMethods->xUnlock(file, SQLITE_LOCK_NONE), SQLITE_OK);
	cr_expect_eq(file->pMethods->xWrite(file, "abcd", 4, 1000), SQLITE_OK);
	cr_expect_eq(file->pMethods->xFileSize(file, &size), SQLITE_OK);
	cr_expect_eq(size, 1004);
	cr_expect_eq(file->pMethods->xTruncate(file, 10), SQLITE_OK);
	cr_expect_eq(file->pMethods->xFileSize(file, &size), SQLITE_OK);
	cr_expect_eq(size, 10);
}

Test(engine_catalog_vfs, errors_keep_their_errno)
{
	static const int full[] = {-ENOSPC, -EDQUOT, -EFBIG};
	const struct sqlite3_io_methods *m;
	sqlite3_int64 size;
	char buf[4];

	cr_expect_eq(eng_catalog_vfs_errno(vfs), -EIO, "before any");
	cr_assert_eq(open_file(path, RW | SQLITE_OPEN_MAIN_DB), SQLITE_OK);
	m = file->pMethods;
	for (size_t i = 0; i < 3; i++) {
		fail(ENG_FAULT_PWRITE, full[i]);
		cr_expect_eq(m->xWrite(file, "abcd", 4, 0), SQLITE_FULL);
		cr_expect_eq(eng_catalog_vfs_errno(vfs), full[i]);
	}
	fail(ENG_FAULT_PWRITE, -EROFS);
	cr_expect_eq(m->xWrite(file, "abcd", 4, 0), SQLITE_IOERR_WRITE);
	cr_expect_eq(eng_catalog_vfs_errno(vfs), -EROFS);
	cr_expect_eq(base->xGetLastError(base, 0, NULL), EROFS);
	fail(ENG_FAULT_PREAD, -EIO);
	cr_expect_eq(m->xRead(file, buf, 4, 0), SQLITE_IOERR_READ);
	fail(ENG_FAULT_FDATASYNC, -EIO);
	cr_expect_eq(m->xSync(file, SQLITE_SYNC_NORMAL), SQLITE_IOERR_FSYNC);
	/* No space at a sync is no plain full disk: what was written may be lost (CT-2). */
	fail(ENG_FAULT_FDATASYNC, -ENOSPC);
	cr_expect_eq(m->xSync(file, SQLITE_SYNC_NORMAL), SQLITE_IOERR_FSYNC);
	fail(ENG_FAULT_TRUNCATE, -EIO);
	cr_expect_eq(m->xTruncate(file, 0), SQLITE_IOERR_TRUNCATE);
	fail(ENG_FAULT_STAT, -EIO);
	cr_expect_eq(m->xFileSize(file, &size), SQLITE_IOERR_FSTAT);
	fail(ENG_FAULT_PREAD, -ENOMEM);
	cr_expect_eq(m->xRead(file, buf, 4, 0), SQLITE_NOMEM);
}

Test(engine_catalog_vfs, opening_reports_why_not)
{
	char other[340];

	cr_expect_eq(open_file(path, SQLITE_OPEN_READWRITE), SQLITE_CANTOPEN);
	cr_expect_eq(eng_catalog_vfs_errno(vfs), -ENOENT);
	cr_expect_null(file->pMethods);
	fail(ENG_FAULT_CREATE, -EACCES);
	cr_expect_eq(open_file(path, RW), SQLITE_CANTOPEN);
	cr_expect_eq(eng_catalog_vfs_errno(vfs), -EACCES);
	snprintf(other, sizeof(other), "%s/link", dir);
	cr_assert_eq(symlink("test.db", other), 0);
	eng_fault_clear(fault);
	cr_expect_eq(open_file(other, RW), SQLITE_CANTOPEN, "through a symbolic link");
	cr_expect_eq(eng_catalog_vfs_errno(vfs), -ELOOP);
}

/* CT-7 */
Test(engine_catalog_vfs, an_open_that_may_create_syncs_the_directory_even_of_an_old_file)
{
	int syncs = eng_fault_add(fault, &(struct eng_fault_rule){.ops = ENG_FAULT_SYNC_DIR,
								  .path = dir,
								  .sticky = true});

	cr_assert_eq(open_file(path, RW | SQLITE_OPEN_MAIN_DB), SQLITE_OK);
	cr_expect_eq(eng_fault_struck(fault, syncs), 1);
	cr_assert_eq(open_file(path, RW | SQLITE_OPEN_MAIN_DB), SQLITE_OK);
	cr_expect_eq(eng_fault_struck(fault, syncs), 2);
	cr_assert_eq(open_file(log_path, RW | SQLITE_OPEN_WAL), SQLITE_OK);
	cr_expect_eq(eng_fault_struck(fault, syncs), 3);
	fail(ENG_FAULT_SYNC_DIR, -EIO);
	cr_expect_eq(open_file(log_path, RW | SQLITE_OPEN_WAL), SQLITE_CANTOPEN);
	cr_expect_eq(eng_catalog_vfs_errno(vfs), -EIO);
}

/* CT-13 */
Test(engine_catalog_vfs, what_the_reserve_gives_up_on_a_full_disk_is_the_logs)
{
	uint8_t buf[4096] = {1};
	sqlite3_int64 size;

	eng_catalog_vfs_keep_reserve(vfs);
	cr_assert_eq(eng_catalog_vfs_reserve(vfs), 4u << 20);
	cr_assert_eq(open_file(path, RW | SQLITE_OPEN_MAIN_DB), SQLITE_OK);
	fail(ENG_FAULT_PWRITE, -ENOSPC);
	cr_expect_eq(file->pMethods->xWrite(file, buf, sizeof(buf), 0), SQLITE_OK);
	cr_expect_eq(file->pMethods->xFileSize(file, &size), SQLITE_OK);
	cr_expect_eq(size, sizeof(buf), "the database takes what it needs");
	eng_fault_clear(fault);

	eng_catalog_vfs_keep_reserve(vfs);
	cr_assert_eq(open_file(log_path, RW | SQLITE_OPEN_WAL), SQLITE_OK);
	fail(ENG_FAULT_PWRITE, -ENOSPC);
	cr_expect_eq(file->pMethods->xWrite(file, buf, sizeof(buf), 32 + 24), SQLITE_OK);
	cr_expect_eq(eng_catalog_vfs_reserve(vfs), 0);
	cr_expect_eq(file->pMethods->xFileSize(file, &size), SQLITE_OK);
	cr_expect_eq(size, 32 + 24 + (4 << 20), "the log takes all");

	/* A commit frame that finds no blocks takes them, too, before it is sent. */
	cr_expect_eq(file->pMethods->xTruncate(file, 0), SQLITE_OK);
	eng_fault_clear(fault);
	eng_catalog_vfs_keep_reserve(vfs);
	eng_catalog_vfs_arm(vfs);
	eng_fault_add(fault, &(struct eng_fault_rule){.ops = ENG_FAULT_ALLOCATE, .error = -ENOSPC});
	eng_fault_add(fault, &(struct eng_fault_rule){.ops = ENG_FAULT_ALLOCATE, .error = -ENOSPC});
	memset(buf, 1, sizeof(buf));
	cr_expect_eq(file->pMethods->xWrite(file, buf, 24, 32), SQLITE_OK);
	cr_expect_eq(eng_catalog_vfs_reserve(vfs), 0);
	cr_expect_eq(file->pMethods->xFileSize(file, &size), SQLITE_OK);
	cr_expect_eq(size, 32 + (4 << 20));
}

/* CT-8 */
Test(engine_catalog_vfs, an_existing_log_is_written_and_synced_before_it_is_read)
{
	enum { LEN = 200000 };
	uint8_t *data = malloc(LEN), *got = malloc(LEN);
	int writes, syncs;

	for (size_t i = 0; i < LEN; i++)
		data[i] = (uint8_t)(i * 31 >> 3);
	cr_assert_eq(open_file(log_path, RW | SQLITE_OPEN_WAL), SQLITE_OK);
	cr_assert_eq(file->pMethods->xWrite(file, data, LEN, 0), SQLITE_OK);
	writes = eng_fault_add(fault, &(struct eng_fault_rule){.ops = ENG_FAULT_PWRITE,
							       .path = "test.db-wal",
							       .sticky = true});
	syncs = eng_fault_add(fault, &(struct eng_fault_rule){.ops = ENG_FAULT_FDATASYNC,
							      .path = "test.db-wal",
							      .sticky = true});
	cr_assert_eq(open_file(log_path, RW | SQLITE_OPEN_WAL), SQLITE_OK);
	cr_expect_eq(eng_fault_struck(fault, writes), (LEN + 65535) / 65536);
	cr_expect_eq(eng_fault_struck(fault, syncs), 1);
	cr_assert_eq(file->pMethods->xRead(file, got, LEN, 0), SQLITE_OK);
	cr_expect_eq(memcmp(got, data, LEN), 0);
	fail(ENG_FAULT_FDATASYNC, -EIO);
	cr_expect_eq(open_file(log_path, RW | SQLITE_OPEN_WAL), SQLITE_CANTOPEN);
	fail(ENG_FAULT_PWRITE, -EIO);
	cr_expect_eq(open_file(log_path, RW | SQLITE_OPEN_WAL), SQLITE_CANTOPEN);
	fail(ENG_FAULT_PREAD, -EIO);
	cr_expect_eq(open_file(log_path, RW | SQLITE_OPEN_WAL), SQLITE_CANTOPEN);
	free(data);
	free(got);
}

/* CT-9 */
Test(engine_catalog_vfs, writes_that_recovery_could_take_for_a_commit_are_noticed)
{
	enum { FRAME = 24 + 4096, FIRST = 32 + 5 * FRAME };
	static const struct {
		int offset, len;
		uint8_t pages; /* the database's size in the frame header, not zero in a commit */
		bool may;
	} writes[] = {
		{0, 32, 1, false},            /* the log's header */
		{FIRST, 24, 0, false},        /* a frame's */
		{FIRST + 24, 4096, 1, false}, /* its page */
		{FIRST + 24, 100, 1, false},  /* parts of a page */
		{FIRST + 124, 3996, 1, false},
		{FIRST, 24, 1, true}, /* a commit frame's header */
		{32, 24, 1, true},    /* also the very first */
		{FIRST, 4, 0, true},  /* less than a header: can't tell */
		{FIRST + 8, 16, 0, true},
		{FIRST, FRAME, 0, true},     /* more than a header */
		{FIRST + 24, 4097, 0, true}, /* into the next frame */
		{0, 56, 0, true},
	};
	uint8_t buf[2 * FRAME];

	cr_assert_eq(open_file(log_path, RW | SQLITE_OPEN_WAL), SQLITE_OK);
	for (size_t i = 0; i < sizeof(writes) / sizeof(writes[0]); i++) {
		memset(buf, 0, sizeof(buf));
		buf[7] = writes[i].pages;
		eng_catalog_vfs_arm(vfs);
		cr_expect_not(eng_catalog_vfs_may_have_committed(vfs));
		cr_assert_eq(file->pMethods->xWrite(file, buf, writes[i].len, writes[i].offset),
			     SQLITE_OK);
		cr_expect_eq(eng_catalog_vfs_may_have_committed(vfs), writes[i].may, "%zu", i);
	}
	/* One that failed may have happened. */
	memset(buf, 1, sizeof(buf));
	eng_catalog_vfs_arm(vfs);
	fail(ENG_FAULT_PWRITE, -EIO);
	cr_assert_eq(file->pMethods->xWrite(file, buf, 24, FIRST), SQLITE_IOERR_WRITE);
	cr_expect(eng_catalog_vfs_may_have_committed(vfs));
	/* Only the log counts. */
	eng_fault_clear(fault);
	cr_assert_eq(open_file(path, RW | SQLITE_OPEN_MAIN_DB), SQLITE_OK);
	eng_catalog_vfs_arm(vfs);
	cr_assert_eq(file->pMethods->xWrite(file, buf, 24, FIRST), SQLITE_OK);
	cr_expect_not(eng_catalog_vfs_may_have_committed(vfs));
}

Test(engine_catalog_vfs, deleting_syncs_the_directory_when_asked)
{
	int syncs = eng_fault_add(fault, &(struct eng_fault_rule){.ops = ENG_FAULT_SYNC_DIR,
								  .path = dir,
								  .sticky = true});

	cr_expect_eq(base->xDelete(base, path, 1), SQLITE_IOERR_DELETE_NOENT);
	cr_assert_eq(open_file(path, RW | SQLITE_OPEN_MAIN_DB), SQLITE_OK);
	cr_expect_eq(base->xDelete(base, path, 0), SQLITE_OK);
	cr_expect_eq(eng_fault_struck(fault, syncs), 1, "by the open");
	cr_assert_eq(open_file(path, RW | SQLITE_OPEN_MAIN_DB), SQLITE_OK);
	cr_expect_eq(base->xDelete(base, path, 1), SQLITE_OK);
	cr_expect_eq(eng_fault_struck(fault, syncs), 3);
	cr_assert_eq(open_file(path, RW | SQLITE_OPEN_MAIN_DB), SQLITE_OK);
	fail(ENG_FAULT_UNLINK, -EIO);
	cr_expect_eq(base->xDelete(base, path, 1), SQLITE_IOERR_DELETE);
	fail(ENG_FAULT_SYNC_DIR, -EIO);
	cr_expect_eq(base->xDelete(base, path, 1), SQLITE_IOERR_DIR_FSYNC);
}

Test(engine_catalog_vfs, an_empty_file_counts_as_absent)
{
	int there = -1;

	cr_expect_eq(base->xAccess(base, path, SQLITE_ACCESS_EXISTS, &there), SQLITE_OK);
	cr_expect_eq(there, 0);
	cr_assert_eq(open_file(path, RW | SQLITE_OPEN_MAIN_DB), SQLITE_OK);
	cr_expect_eq(base->xAccess(base, path, SQLITE_ACCESS_EXISTS, &there), SQLITE_OK);
	cr_expect_eq(there, 0);
	cr_assert_eq(file->pMethods->xWrite(file, "x", 1, 0), SQLITE_OK);
	cr_expect_eq(base->xAccess(base, path, SQLITE_ACCESS_EXISTS, &there), SQLITE_OK);
	cr_expect_eq(there, 1);
	fail(ENG_FAULT_STAT, -EACCES);
	cr_expect_eq(base->xAccess(base, path, SQLITE_ACCESS_EXISTS, &there), SQLITE_IOERR_ACCESS);
}

Test(engine_catalog_vfs, paths_that_are_too_long_are_refused)
{
	struct eng_catalog_vfs *other = NULL;
	char name[8000], got[8000];

	memset(name, 'x', sizeof(name));
	name[sizeof(name) - 1] = '\0';
	cr_expect_eq(eng_catalog_vfs_create(posix, name, &other), -ENAMETOOLONG);
	cr_expect_null(other);
	cr_expect_eq(base->xFullPathname(base, name, 4000, got), SQLITE_CANTOPEN);
	cr_expect_eq(base->xFullPathname(base, path, 4000, got), SQLITE_OK);
	cr_expect_str_eq(got, path);
}

Test(engine_catalog_vfs, clock_and_randomness_are_the_ios)
{
	static const char zero[32];
	char buf[32] = "";
	double day = 0;

	cr_expect_eq(base->xRandomness(base, sizeof(buf), buf), sizeof(buf));
	cr_expect_neq(memcmp(buf, zero, sizeof(buf)), 0);
	cr_expect_eq(base->xCurrentTime(base, &day), SQLITE_OK);
	cr_expect_float_eq((day - 2440587.5) * 86400, (double)eng_io_wall_ns(posix) / 1e9, 2);
	cr_expect_eq(base->xSleep(base, 10), 10);
}

static void run(sqlite3 *db, const char *sql, int expected)
{
	int r = sqlite3_exec(db, sql, NULL, NULL, NULL);

	cr_assert_eq(r, expected, "%s: %s", sql, sqlite3_errmsg(db));
}

static int list_name(void *arg, const char *name)
{
	strcat(arg, name);
	strcat(arg, " ");
	return 0;
}

/* A statement that fails half-way in a transaction is undone from a journal, which spills to a file. */
Test(engine_catalog_vfs, temporary_files_work_and_leave_nothing)
{
	char names[1000] = "";
	int temps = eng_fault_add(fault, &(struct eng_fault_rule){.ops = ENG_FAULT_PWRITE,
								  .path = "test.db-temp",
								  .sticky = true});
	sqlite3 *db;

	cr_assert_eq(sqlite3_open_v2(path, &db, RW, base->zName), SQLITE_OK);
	run(db, "PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL;", SQLITE_OK);
	run(db, "CREATE TABLE t (a INTEGER UNIQUE, b)", SQLITE_OK);
	run(db,
	    "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 20000) "
	    "INSERT INTO t SELECT i * 10, zeroblob(100) FROM n; INSERT INTO t VALUES (200005, 1)",
	    SQLITE_OK);
	run(db, "BEGIN; DELETE FROM t WHERE a = 10;", SQLITE_OK);
	run(db, "UPDATE t SET a = a + 5", SQLITE_CONSTRAINT);
	run(db, "COMMIT", SQLITE_OK);
	run(db,
	    "CREATE TABLE u (n CHECK (n = 20000)); INSERT INTO u SELECT count(*) FROM t "
	    "WHERE a % 10 = 0 OR a = 200005",
	    SQLITE_OK);
	cr_expect_gt(eng_fault_struck(fault, temps), 10, "the test did not get that far");
	cr_assert_eq(eng_io_list(posix, dir, list_name, names), 0);
	cr_expect_null(strstr(names, "-temp"), "%s", names);
	sqlite3_close(db);
}

Test(engine_catalog_vfs, each_has_its_own_name_which_goes_with_it)
{
	struct eng_catalog_vfs *other;
	char name[64];

	cr_assert_eq(eng_catalog_vfs_create(posix, path, &other), 0);
	snprintf(name, sizeof(name), "%s", eng_catalog_vfs_name(other));
	cr_expect_str_neq(name, eng_catalog_vfs_name(vfs));
	cr_expect_neq(sqlite3_vfs_find(NULL), sqlite3_vfs_find(name), "not the default");
	eng_catalog_vfs_destroy(other);
	cr_expect_null(sqlite3_vfs_find(name));
	cr_expect_eq(sqlite3_vfs_find(eng_catalog_vfs_name(vfs)), base);
	eng_catalog_vfs_destroy(NULL);
}
