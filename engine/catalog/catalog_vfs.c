/* SPDX-License-Identifier: MIT */
/*
 * catalog_vfs.c - the SQLite VFS over eng_io. What a database or log file is found to hold when it
 * is opened is durable before SQLite reads it (CT-7, CT-8), and no promise is made that a disk does
 * not keep: no atomic writes, no power-safe overwrite. Entered with the catalog's lock held.
 */
#include "engine/catalog/catalog_vfs.h"

#include <assert.h>
#include <errno.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define VFS_SECTOR   4096
#define VFS_RESERVE  (4u << 20) /* bytes kept for the catalog on a full disk */
#define VFS_PATH_MAX 4224       /* the database's path and SQLite's suffixes */
#define SETTLE_CHUNK 65536u

/* SQLite's log ("WAL"): a header, then frames of a frame header and a page. File format 3.x, 4.1. */
#define WAL_HEADER       32
#define WAL_FRAME_HEADER 24
#define WAL_COMMIT_SIZE  4 /* offset in a frame header: not zero in a transaction's last frame */
#define WAL_FRAME        (WAL_FRAME_HEADER + 4096)
#define LOG_ROOM         65536u /* that the log is allocated ahead, where there is so much */

struct eng_catalog_vfs {
	sqlite3_vfs base; /* pAppData points back here */
	struct eng_io *io;
	char *temp_path, *reserve_path;
	char name[32];
	int error; /* latest failure, negative errno */
	bool may_have_committed;
};

struct vfs_file {
	sqlite3_file base;
	struct eng_catalog_vfs *vfs;
	struct eng_file *file;
	uint64_t end; /* of the log: where its blocks end */
	bool is_log;
};

static struct eng_catalog_vfs *vfs_of(sqlite3_vfs *base)
{
	return base->pAppData;
}

static struct vfs_file *file_of(sqlite3_file *base)
{
	return (struct vfs_file *)base;
}

/* Keeps errno for the catalog and gives SQLite its own code. */
static int vfs_fail(struct eng_catalog_vfs *vfs, int error, int code)
{
	vfs->error = error;
	return error == -ENOMEM ? SQLITE_NOMEM : code;
}

static int vfs_sync_parent(struct eng_catalog_vfs *vfs, const char *path)
{
	const char *slash = strrchr(path, '/');
	char dir[VFS_PATH_MAX];

	if (!slash)
		return eng_io_sync_dir(vfs->io, ".");
	if (slash == path)
		return eng_io_sync_dir(vfs->io, "/");
	snprintf(dir, sizeof(dir), "%.*s", (int)(slash - path), path);
	return eng_io_sync_dir(vfs->io, dir);
}

/* --- files --- */

static int file_close(sqlite3_file *base)
{
	struct vfs_file *f = file_of(base);

	eng_io_close(f->vfs->io, f->file);
	return SQLITE_OK;
}

static int file_read(sqlite3_file *base, void *buf, int len, sqlite3_int64 offset)
{
	struct vfs_file *f = file_of(base);
	ssize_t n = eng_io_pread(f->vfs->io, f->file, buf, (size_t)len, (uint64_t)offset);

	if (n < 0)
		return vfs_fail(f->vfs, (int)n, SQLITE_IOERR_READ);
	if (n == len)
		return SQLITE_OK;
	memset((char *)buf + n, 0, (size_t)(len - n));
	return SQLITE_IOERR_SHORT_READ;
}

/*
 * CT-9: frames count only when a commit frame follows them, so that a write which is neither a
 * commit frame's header nor anything after it can't have committed. A write of another shape than
 * SQLite's (header, frame header, page) is taken for one that can.
 */
static bool log_write_may_commit(const uint8_t *buf, uint64_t len, uint64_t offset)
{
	static const uint8_t none[4];
	uint64_t in_frame;

	if (offset < WAL_HEADER)
		return offset + len > WAL_HEADER;
	in_frame = (offset - WAL_HEADER) % WAL_FRAME;
	if (in_frame == 0 && len == WAL_FRAME_HEADER)
		return memcmp(buf + WAL_COMMIT_SIZE, none, sizeof(none)) != 0;
	return in_frame < WAL_FRAME_HEADER || in_frame + len > WAL_FRAME;
}

static bool is_full(int r)
{
	return r == -ENOSPC || r == -EDQUOT || r == -EFBIG;
}

static int allocate(struct vfs_file *f, uint64_t offset, uint64_t len)
{
	int r = eng_io_allocate(f->vfs->io, f->file, offset, len);

	if (r == 0 && f->end < offset + len)
		f->end = offset + len;
	return r;
}

/*
 * CT-13: what the reserve gives up becomes the log's own at once, from @offset on. Left free it would be
 * gone with the next writes of the guests that fill the disk, and the store could not even be opened.
 */
static bool take_reserve(struct vfs_file *f, uint64_t offset)
{
	if (eng_io_unlink(f->vfs->io, f->vfs->reserve_path) < 0)
		return false;
	for (uint64_t len = VFS_RESERVE; f->is_log && len >= LOG_ROOM; len /= 2)
		if (!is_full(allocate(f, offset, len)))
			break;
	return true;
}

/*
 * CT-9: a commit frame finds its blocks allocated, its copy that fills the last sector too: a disk that
 * has none left is seen before any of it is sent. Where nothing can be allocated, writing tells.
 */
static int make_room(struct vfs_file *f, uint64_t offset)
{
	uint64_t need = 2 * WAL_FRAME;
	int r;

	if (offset + need <= f->end)
		return 0;
	r = allocate(f, offset, LOG_ROOM);
	if (is_full(r))
		r = allocate(f, offset, need);
	if (is_full(r) && take_reserve(f, offset))
		r = offset + need <= f->end ? 0 : allocate(f, offset, need);
	return is_full(r) ? r : 0;
}

static int file_write(sqlite3_file *base, const void *buf, int len, sqlite3_int64 offset)
{
	struct vfs_file *f = file_of(base);
	uint64_t end = (uint64_t)offset + (uint64_t)len;
	int r = 0;

	if (f->is_log && log_write_may_commit(buf, (uint64_t)len, (uint64_t)offset)) {
		if (!f->vfs->may_have_committed)
			r = make_room(f, (uint64_t)offset);
		if (r < 0)
			return vfs_fail(f->vfs, r, SQLITE_FULL);
		/* Before the write: one that fails may have happened all the same. */
		f->vfs->may_have_committed = true;
	}
	r = eng_io_pwrite(f->vfs->io, f->file, buf, (size_t)len, (uint64_t)offset);
	if (r == -ENOSPC && take_reserve(f, (uint64_t)offset))
		r = eng_io_pwrite(f->vfs->io, f->file, buf, (size_t)len, (uint64_t)offset);
	if (is_full(r))
		return vfs_fail(f->vfs, r, SQLITE_FULL);
	if (r == 0 && f->end < end)
		f->end = end;
	return r < 0 ? vfs_fail(f->vfs, r, SQLITE_IOERR_WRITE) : SQLITE_OK;
}

static int file_truncate(sqlite3_file *base, sqlite3_int64 size)
{
	struct vfs_file *f = file_of(base);
	int r = eng_io_truncate(f->vfs->io, f->file, (uint64_t)size);

	f->end = (uint64_t)size; /* also when it failed: allocating again does no harm */
	return r < 0 ? vfs_fail(f->vfs, r, SQLITE_IOERR_TRUNCATE) : SQLITE_OK;
}

static int file_sync(sqlite3_file *base, int flags)
{
	struct vfs_file *f = file_of(base);
	int r = eng_io_fdatasync(f->vfs->io, f->file);

	(void)flags;
	return r < 0 ? vfs_fail(f->vfs, r, SQLITE_IOERR_FSYNC) : SQLITE_OK;
}

static int file_size(sqlite3_file *base, sqlite3_int64 *ret)
{
	struct vfs_file *f = file_of(base);
	struct eng_stat st;
	int r = eng_io_fstat(f->vfs->io, f->file, &st);

	if (r < 0)
		return vfs_fail(f->vfs, r, SQLITE_IOERR_FSTAT);
	*ret = (sqlite3_int64)st.size;
	return SQLITE_OK;
}

static int file_lock(sqlite3_file *base, int level)
{
	(void)base;
	(void)level;
	return SQLITE_OK;
}

static int file_check_reserved(sqlite3_file *base, int *ret)
{
	(void)base;
	*ret = 0;
	return SQLITE_OK;
}

static int file_control(sqlite3_file *base, int op, void *arg)
{
	(void)base;
	(void)op;
	(void)arg;
	return SQLITE_NOTFOUND;
}

static int file_sector_size(sqlite3_file *base)
{
	(void)base;
	return VFS_SECTOR;
}

static int file_characteristics(sqlite3_file *base)
{
	(void)base;
	return 0;
}

/* Version 1: no shared memory and no mapping. */
static const sqlite3_io_methods file_methods = {
	.iVersion = 1,
	.xClose = file_close,
	.xRead = file_read,
	.xWrite = file_write,
	.xTruncate = file_truncate,
	.xSync = file_sync,
	.xFileSize = file_size,
	.xLock = file_lock,
	.xUnlock = file_lock,
	.xCheckReservedLock = file_check_reserved,
	.xFileControl = file_control,
	.xSectorSize = file_sector_size,
	.xDeviceCharacteristics = file_characteristics,
};

/* --- opening --- */

/*
 * CT-8: writes what the file reads as back to it and syncs. A log found at open may hold a commit
 * that was never synced, because the process died before its fdatasync or because that failed; after
 * a failure the page cache shows what the disk does not hold, and another fdatasync would not
 * notice. Recovery acts on what the log says, so that what it says is made durable first.
 */
static int vfs_settle(struct eng_catalog_vfs *vfs, struct eng_file *file, uint64_t *end)
{
	uint8_t *buf = NULL;
	uint64_t offset = 0;
	struct eng_stat st;
	ssize_t n;
	int r = eng_io_fstat(vfs->io, file, &st);

	if (r < 0 || st.size == 0)
		goto out;
	r = -ENOMEM;
	buf = malloc(SETTLE_CHUNK);
	if (!buf)
		goto out;
	for (; offset < st.size; offset += (uint64_t)n) {
		n = eng_io_pread(vfs->io, file, buf, SETTLE_CHUNK, offset);
		r = n > 0   ? eng_io_pwrite(vfs->io, file, buf, (size_t)n, offset)
		    : n < 0 ? (int)n
			    : -EIO;
		if (r < 0)
			goto out;
	}
	r = eng_io_fdatasync(vfs->io, file);
	*end = st.size;
out:
	free(buf);
	return r;
}

/* SQLite's spilled statement journals: nothing that has to survive, so gone from the start. */
static int vfs_open_temp(struct eng_catalog_vfs *vfs, struct eng_file **ret)
{
	int r = eng_io_open(vfs->io, vfs->temp_path,
			    ENG_OPEN_WRITE | ENG_OPEN_CREATE | ENG_OPEN_TRUNC | ENG_OPEN_NOFOLLOW,
			    ret);

	if (r == 0)
		eng_io_unlink(vfs->io, vfs->temp_path);
	return r;
}

static int vfs_open(sqlite3_vfs *base, const char *name, sqlite3_file *file, int flags,
		    int *ret_flags)
{
	struct eng_catalog_vfs *vfs = vfs_of(base);
	struct vfs_file *f = file_of(file);
	unsigned how = ENG_OPEN_NOFOLLOW;
	struct eng_file *opened = NULL;
	int r;

	*f = (struct vfs_file){.vfs = vfs, .is_log = flags & SQLITE_OPEN_WAL};
	how |= flags & SQLITE_OPEN_READWRITE ? ENG_OPEN_WRITE : 0;
	how |= flags & SQLITE_OPEN_CREATE ? ENG_OPEN_CREATE : 0;
	how |= flags & SQLITE_OPEN_EXCLUSIVE ? ENG_OPEN_EXCL : 0;
	r = name ? eng_io_open(vfs->io, name, how, &opened) : vfs_open_temp(vfs, &opened);
	if (r < 0)
		goto out;
	/* CT-7: also when the file was there, since who made it may have died before this. */
	if (name && (flags & SQLITE_OPEN_CREATE))
		r = vfs_sync_parent(vfs, name);
	if (r == 0 && f->is_log)
		r = vfs_settle(vfs, opened, &f->end);
	if (r < 0)
		goto out;
	f->file = opened;
	f->base.pMethods = &file_methods;
	opened = NULL;
	if (ret_flags)
		*ret_flags = flags;
out:
	eng_io_close(vfs->io, opened);
	return r < 0 ? vfs_fail(vfs, r, SQLITE_CANTOPEN) : SQLITE_OK;
}

/* --- names, clock, randomness --- */

static int vfs_delete(sqlite3_vfs *base, const char *name, int sync_dir)
{
	struct eng_catalog_vfs *vfs = vfs_of(base);
	int r = eng_io_unlink(vfs->io, name);

	if (r == -ENOENT)
		return SQLITE_IOERR_DELETE_NOENT;
	if (r < 0)
		return vfs_fail(vfs, r, SQLITE_IOERR_DELETE);
	r = sync_dir ? vfs_sync_parent(vfs, name) : 0;
	return r < 0 ? vfs_fail(vfs, r, SQLITE_IOERR_DIR_FSYNC) : SQLITE_OK;
}

/* An empty file counts as absent, as in SQLite's own VFS: an empty log or journal says nothing. */
static int vfs_access(sqlite3_vfs *base, const char *name, int flags, int *ret)
{
	struct eng_catalog_vfs *vfs = vfs_of(base);
	struct eng_stat st;
	int r = eng_io_stat(vfs->io, name, &st);

	(void)flags;
	if (r < 0 && r != -ENOENT)
		return vfs_fail(vfs, r, SQLITE_IOERR_ACCESS);
	*ret = r == 0 && st.size > 0;
	return SQLITE_OK;
}

/* Names are used as the store gives them: all files are opened with the database, and stay open. */
static int vfs_full_path(sqlite3_vfs *base, const char *name, int size, char *ret)
{
	int len = snprintf(ret, (size_t)size, "%s", name);

	return len < 0 || len >= size ? vfs_fail(vfs_of(base), -ENAMETOOLONG, SQLITE_CANTOPEN)
				      : SQLITE_OK;
}

static int vfs_randomness(sqlite3_vfs *base, int len, char *ret)
{
	eng_io_random(vfs_of(base)->io, ret, (size_t)len);
	return len;
}

static int vfs_sleep(sqlite3_vfs *base, int us)
{
	eng_io_sleep_ns(vfs_of(base)->io, (uint64_t)us * 1000);
	return us;
}

static int vfs_time(sqlite3_vfs *base, double *ret)
{
	/* As a Julian day: 2440587.5 is 1970. */
	*ret = 2440587.5 + (double)eng_io_wall_ns(vfs_of(base)->io) / 86400e9;
	return SQLITE_OK;
}

static int vfs_last_error(sqlite3_vfs *base, int len, char *ret)
{
	if (len > 0)
		*ret = '\0';
	return -vfs_of(base)->error;
}

int eng_catalog_vfs_create(struct eng_io *io, const char *path, struct eng_catalog_vfs **ret)
{
	struct eng_catalog_vfs *vfs = NULL;
	int r = -ENAMETOOLONG;

	if (strlen(path) + 64 > VFS_PATH_MAX)
		goto out;
	r = -ENOMEM;
	vfs = calloc(1, sizeof(*vfs));
	if (!vfs || asprintf(&vfs->temp_path, "%s-temp", path) < 0 ||
	    asprintf(&vfs->reserve_path, "%s.reserve", path) < 0)
		goto out;
	vfs->io = io;
	snprintf(vfs->name, sizeof(vfs->name), "vmimg-%p", (void *)vfs);
	vfs->base = (sqlite3_vfs){
		.iVersion = 1,
		.szOsFile = sizeof(struct vfs_file),
		.mxPathname = VFS_PATH_MAX,
		.zName = vfs->name,
		.pAppData = vfs,
		.xOpen = vfs_open,
		.xDelete = vfs_delete,
		.xAccess = vfs_access,
		.xFullPathname = vfs_full_path,
		.xRandomness = vfs_randomness,
		.xSleep = vfs_sleep,
		.xCurrentTime = vfs_time,
		.xGetLastError = vfs_last_error,
	};
	if (sqlite3_vfs_register(&vfs->base, 0) != SQLITE_OK)
		goto out;
	*ret = vfs;
	return 0;
out:
	free(vfs);
	return r;
}

/* CT-13: made again whenever there is room; without it a full disk is the catalog's too. */
void eng_catalog_vfs_keep_reserve(struct eng_catalog_vfs *vfs)
{
	struct eng_file *file = NULL;
	struct eng_stat st;

	if (eng_io_stat(vfs->io, vfs->reserve_path, &st) == 0 && st.size >= VFS_RESERVE)
		return;
	if (eng_io_open(vfs->io, vfs->reserve_path, ENG_OPEN_WRITE | ENG_OPEN_CREATE, &file) < 0)
		return;
	if (eng_io_allocate(vfs->io, file, 0, VFS_RESERVE) < 0)
		eng_io_unlink(vfs->io, vfs->reserve_path);
	eng_io_close(vfs->io, file);
}

uint64_t eng_catalog_vfs_reserve(struct eng_catalog_vfs *vfs)
{
	struct eng_stat st;

	return eng_io_stat(vfs->io, vfs->reserve_path, &st) == 0 ? st.size : 0;
}

void eng_catalog_vfs_destroy(struct eng_catalog_vfs *vfs)
{
	if (!vfs)
		return;
	sqlite3_vfs_unregister(&vfs->base);
	free(vfs->temp_path);
	free(vfs->reserve_path);
	free(vfs);
}

const char *eng_catalog_vfs_name(const struct eng_catalog_vfs *vfs)
{
	return vfs->name;
}

int eng_catalog_vfs_errno(const struct eng_catalog_vfs *vfs)
{
	return vfs->error < 0 ? vfs->error : -EIO;
}

void eng_catalog_vfs_arm(struct eng_catalog_vfs *vfs)
{
	vfs->may_have_committed = false;
}

bool eng_catalog_vfs_may_have_committed(const struct eng_catalog_vfs *vfs)
{
	return vfs->may_have_committed;
}
