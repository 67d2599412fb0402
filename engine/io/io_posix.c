/* SPDX-License-Identifier: MIT */
/*
 * io_posix.c - the machine itself: files, directories, shared memory, clock and threads by plain
 * system calls; the ring is io_uring.c's. An open file never changes after open, but for the
 * descriptor of a cached one, which is fdcache.c's; so every call may come from any thread. Nothing
 * is retried but EINTR, short transfers and opens without a descriptor left.
 */
#define _GNU_SOURCE 1
#include "engine/io/io_posix.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

/* Granule that every direct-I/O device and file system accepts; used where statx tells none. */
#define DIO_ALIGN_SAFE 4096u

struct posix_io {
	struct eng_io io;
	uint8_t boot_id[16];
	char *shm_dir;
};

struct eng_thread {
	pthread_t id;
	void (*fn)(void *arg);
	void *arg;
	char name[16]; /* the kernel's limit */
};

static struct posix_io *posix_of(struct eng_io *io)
{
	return (struct posix_io *)io;
}

/* --- files --- */

/*
 * Turn direct I/O on where the file has it, and leave the file buffered where not. Set after the
 * open rather than in it, because open(O_CREAT | O_EXCL | O_DIRECT) may fail and leave the new file
 * behind. Always called: it also clears O_NONBLOCK, which the open needed (a FIFO must not block).
 */
static int posix_set_direct(struct eng_file *file, bool want)
{
	struct statx stx;
	struct statfs fs;

	file->dio_align = 1;
	file->mem_align = 1;
	/* tmpfs takes O_DIRECT and ignores it. */
	if (want && fstatfs(file->fd, &fs) == 0 && fs.f_type == TMPFS_MAGIC)
		want = false;
	if (!want || fcntl(file->fd, F_SETFL, O_DIRECT) < 0)
		return fcntl(file->fd, F_SETFL, 0) < 0 ? -errno : 0;
	file->dio_align = DIO_ALIGN_SAFE;
	file->mem_align = DIO_ALIGN_SAFE;
#ifdef STATX_DIOALIGN
	if (statx(file->fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &stx) == 0 &&
	    (stx.stx_mask & STATX_DIOALIGN)) {
		if (stx.stx_dio_offset_align == 0) {
			file->dio_align = 1;
			file->mem_align = 1;
			return fcntl(file->fd, F_SETFL, 0) < 0 ? -errno : 0;
		}
		file->dio_align = stx.stx_dio_offset_align;
		file->mem_align = stx.stx_dio_mem_align;
	}
#else
	(void)stx;
#endif
	return 0;
}

/* A file that cannot be found again by its path keeps its descriptor. */
static int posix_cache(struct eng_file *file, const char *path, unsigned flags)
{
	int how = (flags & ENG_OPEN_WRITE ? O_RDWR : O_RDONLY) |
		  (file->dio_align > 1 ? O_DIRECT : 0);
	int r = eng_fdcache_add(file->fd, path, how, flags & ENG_OPEN_EXCL, &file->cached);

	if (r == 0)
		file->fd = -1;
	return r == -ENOMEM ? r : 0;
}

static int posix_open(struct eng_io *io, const char *path, unsigned flags, struct eng_file **ret)
{
	const unsigned change = ENG_OPEN_CREATE | ENG_OPEN_EXCL | ENG_OPEN_TRUNC;
	int oflags = O_CLOEXEC | O_NOCTTY | O_NONBLOCK;
	struct eng_file *file = NULL;
	struct stat st;
	int fd, r;

	(void)io;
	if ((flags & ENG_OPEN_CACHED) &&
	    (flags & (flags & ENG_OPEN_WRITE ? (unsigned)ENG_OPEN_TRUNC : change)))
		return -EINVAL;
	oflags |= flags & ENG_OPEN_WRITE ? O_RDWR : O_RDONLY;
	oflags |= flags & ENG_OPEN_CREATE ? O_CREAT : 0;
	oflags |= flags & ENG_OPEN_EXCL ? O_EXCL : 0;
	oflags |= flags & ENG_OPEN_NOFOLLOW ? O_NOFOLLOW : 0;
	oflags |= flags & ENG_OPEN_TRUNC ? O_TRUNC : 0;
	fd = eng_fdcache_open(path, oflags, 0600);
	if (fd < 0)
		return -errno;
	r = fstat(fd, &st) < 0 ? -errno : 0;
	if (r < 0)
		goto out;
	r = S_ISDIR(st.st_mode) ? -EISDIR : -EINVAL;
	if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
		goto out;
	r = -ENOMEM;
	file = malloc(sizeof(*file));
	if (!file)
		goto out;
	file->fd = fd;
	r = posix_set_direct(file, flags & ENG_OPEN_DIRECT);
	if (r == 0 && (flags & ENG_OPEN_CACHED) && S_ISREG(st.st_mode))
		r = posix_cache(file, path, flags);
	if (r < 0)
		goto out;
	*ret = file;
	file = NULL;
	fd = -1;
out:
	free(file);
	if (fd >= 0)
		close(fd);
	return r;
}

static void posix_close(struct eng_io *io, struct eng_file *file)
{
	(void)io;
	if (file->fd >= 0)
		close(file->fd);
	else
		eng_fdcache_remove(file->cached);
	free(file);
}

static ssize_t posix_pread(struct eng_io *io, struct eng_file *file, void *buf, size_t len,
			   uint64_t offset)
{
	int fd = eng_file_get(file), r = fd < 0 ? fd : 0;
	size_t done = 0;
	ssize_t n;

	(void)io;
	while (r == 0 && done < len) {
		n = pread(fd, (char *)buf + done, len - done, (off_t)(offset + done));
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			r = -errno;
		else
			done += (size_t)n;
		/* A direct read ends off its granule only at the end of the file, and could not
		 * be continued from there. */
		if (n == 0 || done % file->dio_align)
			break;
	}
	if (fd >= 0)
		eng_file_put(file);
	return r < 0 ? r : (ssize_t)done;
}

static int posix_pwrite(struct eng_io *io, struct eng_file *file, const void *buf, size_t len,
			uint64_t offset)
{
	int fd = eng_file_get_writable(file), r = 0;
	size_t done = 0;
	ssize_t n;

	(void)io;
	if (fd < 0)
		return fd;
	eng_file_change_begin(file);
	while (r == 0 && done < len) {
		n = pwrite(fd, (const char *)buf + done, len - done, (off_t)(offset + done));
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			r = n < 0 ? -errno : -EIO;
		else
			done += (size_t)n;
	}
	eng_file_change_end(file, r == 0);
	return r;
}

/* Never retried, EINTR included: a second sync may report success for pages the first one lost (T16). */
static int posix_sync(struct eng_file *file, int (*sync)(int fd))
{
	int fd = eng_file_get_writable(file), r;
	uint64_t began;

	if (fd < 0)
		return fd;
	began = eng_file_sync_begin(file);
	r = sync(fd) < 0 ? -errno : 0;
	eng_file_sync_end(file, began, r == 0);
	return r;
}

static int posix_fdatasync(struct eng_io *io, struct eng_file *file)
{
	(void)io;
	return posix_sync(file, fdatasync);
}

static int posix_fsync(struct eng_io *io, struct eng_file *file)
{
	(void)io;
	return posix_sync(file, fsync);
}

/*
 * Changes the size or the space. Of an empty file that is no change to be synced: no page of it is in
 * memory whose writing could fail later. So a new overlay that nobody writes to is clean.
 */
static int posix_resize(struct eng_file *file, int (*resize)(int, int, off_t, off_t), int mode,
			uint64_t offset, uint64_t len)
{
	int fd = eng_file_get_writable(file), r;
	struct stat st;
	bool empty;

	if (fd < 0)
		return fd;
	empty = fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_size == 0;
	if (!empty)
		eng_file_change_begin(file);
	do {
		r = resize(fd, mode, (off_t)offset, (off_t)len) < 0 ? -errno : 0;
	} while (r == -EINTR);
	if (!empty)
		eng_file_change_end(file, r == 0 || r == -EOPNOTSUPP);
	else
		eng_file_put(file);
	return r;
}

static int resize_to(int fd, int mode, off_t offset, off_t len)
{
	(void)mode;
	(void)offset;
	return ftruncate(fd, len);
}

static int posix_truncate(struct eng_io *io, struct eng_file *file, uint64_t size)
{
	(void)io;
	return posix_resize(file, resize_to, 0, 0, size);
}

static int posix_allocate(struct eng_io *io, struct eng_file *file, uint64_t offset, uint64_t len)
{
	(void)io;
	return posix_resize(file, fallocate, 0, offset, len);
}

static int posix_punch(struct eng_io *io, struct eng_file *file, uint64_t offset, uint64_t len)
{
	(void)io;
	return posix_resize(file, fallocate, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset,
			    len);
}

static int posix_stat_fill(int fd, const struct stat *st, struct eng_stat *ret)
{
	off_t size = st->st_size;

	if (S_ISBLK(st->st_mode)) {
		size = lseek(fd, 0, SEEK_END);
		if (size < 0)
			return -errno;
	}
	*ret = (struct eng_stat){
		.size = (uint64_t)size,
		.allocated = (uint64_t)st->st_blocks * 512,
		.dev = st->st_dev,
		.ino = st->st_ino,
		.mtime_ns = st->st_mtim.tv_sec * 1000000000ll + st->st_mtim.tv_nsec,
		.ctime_ns = st->st_ctim.tv_sec * 1000000000ll + st->st_ctim.tv_nsec,
		.dio_align = 1,
		.mem_align = 1,
		.is_dir = S_ISDIR(st->st_mode),
		.is_regular = S_ISREG(st->st_mode),
		.is_block = S_ISBLK(st->st_mode),
	};
	return 0;
}

static int posix_fstat(struct eng_io *io, struct eng_file *file, struct eng_stat *ret)
{
	int fd = eng_file_get(file), r;
	struct stat st;

	(void)io;
	if (fd < 0)
		return fd;
	r = fstat(fd, &st) < 0 ? -errno : posix_stat_fill(fd, &st, ret);
	eng_file_put(file);
	if (r == 0) {
		ret->dio_align = file->dio_align;
		ret->mem_align = file->mem_align;
	}
	return r;
}

static int posix_space(struct eng_io *io, const char *path, uint64_t *free_bytes,
		       uint64_t *all_bytes)
{
	struct statvfs st;

	(void)io;
	if (statvfs(path, &st) < 0)
		return -errno;
	*free_bytes = (uint64_t)st.f_bavail * st.f_frsize;
	*all_bytes = (uint64_t)st.f_blocks * st.f_frsize;
	return 0;
}

static int posix_stat(struct eng_io *io, const char *path, struct eng_stat *ret)
{
	struct stat st;
	int fd = -1, r;

	(void)io;
	if (stat(path, &st) < 0)
		return -errno;
	if (S_ISBLK(st.st_mode)) {
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0)
			return -errno;
	}
	r = posix_stat_fill(fd, &st, ret);
	if (fd >= 0)
		close(fd);
	return r;
}

static int posix_next_data(struct eng_io *io, struct eng_file *file, uint64_t offset,
			   uint64_t *data, uint64_t *hole)
{
	int fd = eng_file_get(file), r = 0;
	off_t from, to = -1;

	(void)io;
	if (fd < 0)
		return fd;
	from = lseek(fd, (off_t)offset, SEEK_DATA);
	if (from >= 0)
		to = lseek(fd, from, SEEK_HOLE);
	if (to < 0)
		r = -errno;
	eng_file_put(file);
	if (r < 0)
		return r;
	*data = (uint64_t)from;
	*hole = (uint64_t)to;
	return 0;
}

static int posix_lock(struct eng_io *io, struct eng_file *file)
{
	(void)io;
	return flock(file->fd, LOCK_EX | LOCK_NB) < 0 ? -errno : 0;
}

/* --- directories --- */

static int posix_mkdir(struct eng_io *io, const char *path)
{
	(void)io;
	return mkdir(path, 0700) < 0 ? -errno : 0;
}

/* A second name, then the first one goes: for file systems that know no RENAME_NOREPLACE. */
static int posix_relink(const char *from, const char *to)
{
	if (link(from, to) < 0)
		return -errno;
	return unlink(from) < 0 ? -errno : 0;
}

static int posix_rename(struct eng_io *io, const char *from, const char *to, bool replace)
{
	int r;

	(void)io;
	r = renameat2(AT_FDCWD, from, AT_FDCWD, to, replace ? 0 : RENAME_NOREPLACE) < 0 ? -errno
											: 0;
	return r == -EINVAL && !replace ? posix_relink(from, to) : r;
}

static int posix_unlink(struct eng_io *io, const char *path)
{
	(void)io;
	if (unlink(path) == 0 || (errno == EISDIR && rmdir(path) == 0))
		return 0;
	return -errno;
}

static int posix_sync_dir(struct eng_io *io, const char *path)
{
	int fd = eng_fdcache_open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
	int r = 0;

	(void)io;
	if (fd < 0)
		return -errno;
	if (fsync(fd) < 0)
		r = -errno;
	close(fd);
	return r;
}

static int posix_list(struct eng_io *io, const char *path, int (*each)(void *, const char *),
		      void *arg)
{
	DIR *dir = opendir(path);
	struct dirent *ent;
	int r = 0;

	(void)io;
	if (!dir)
		return -errno;
	while (r == 0) {
		errno = 0;
		ent = readdir(dir);
		if (!ent) {
			r = -errno;
			break;
		}
		if (strcmp(ent->d_name, ".") != 0 && strcmp(ent->d_name, "..") != 0)
			r = each(arg, ent->d_name);
	}
	closedir(dir);
	return r;
}

/* --- shared memory --- */

static int posix_shm_path(struct eng_io *io, const char *name, char **ret)
{
	if (!*name || *name == '.' || strchr(name, '/'))
		return -EINVAL;
	return asprintf(ret, "%s/%s", posix_of(io)->shm_dir, name) < 0 ? -ENOMEM : 0;
}

static int posix_shm_map(int fd, size_t len, void **ret)
{
	void *map = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	if (map == MAP_FAILED)
		return -errno;
	*ret = map;
	return 0;
}

/* All pages are allocated here, so that a store into the mapping can't meet a full tmpfs (T20). */
static int posix_shm_create(struct eng_io *io, const char *name, size_t len, void **ret)
{
	char *path = NULL;
	int fd = -1, r;

	if (len == 0)
		return -EINVAL;
	r = posix_shm_path(io, name, &path);
	if (r < 0)
		return r;
	fd = eng_fdcache_open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0) {
		r = -errno;
		goto out;
	}
	r = -posix_fallocate(fd, 0, (off_t)len);
	if (r == 0)
		r = posix_shm_map(fd, len, ret);
	if (r < 0)
		unlink(path);
out:
	if (fd >= 0)
		close(fd);
	free(path);
	return r;
}

static int posix_shm_open(struct eng_io *io, const char *name, size_t *len, void **ret)
{
	char *path = NULL;
	struct stat st;
	int fd = -1, r;

	r = posix_shm_path(io, name, &path);
	if (r < 0)
		return r;
	fd = eng_fdcache_open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0);
	if (fd < 0 || fstat(fd, &st) < 0) {
		r = -errno;
		goto out;
	}
	r = -EPERM; /* someone else's, or open to someone else (T20) */
	if (!S_ISREG(st.st_mode) || st.st_uid != geteuid() || (st.st_mode & 077))
		goto out;
	r = -EUCLEAN;
	if (st.st_size <= 0)
		goto out;
	r = posix_shm_map(fd, (size_t)st.st_size, ret);
	if (r == 0)
		*len = (size_t)st.st_size;
out:
	if (fd >= 0)
		close(fd);
	free(path);
	return r;
}

static void posix_shm_unmap(struct eng_io *io, void *map, size_t len)
{
	(void)io;
	munmap(map, len);
}

static int posix_shm_unlink(struct eng_io *io, const char *name)
{
	char *path = NULL;
	int r = posix_shm_path(io, name, &path);

	if (r < 0)
		return r;
	r = unlink(path) < 0 ? -errno : 0;
	free(path);
	return r;
}

/* --- clock, randomness, host --- */

static int64_t posix_clock_ns(clockid_t clock)
{
	struct timespec ts;

	clock_gettime(clock, &ts);
	return ts.tv_sec * 1000000000ll + ts.tv_nsec;
}

static uint64_t posix_now_ns(struct eng_io *io)
{
	(void)io;
	return (uint64_t)posix_clock_ns(CLOCK_MONOTONIC);
}

static int64_t posix_wall_ns(struct eng_io *io)
{
	(void)io;
	return posix_clock_ns(CLOCK_REALTIME);
}

static void posix_random(struct eng_io *io, void *buf, size_t len)
{
	size_t done = 0;
	ssize_t n;

	(void)io;
	while (done < len) {
		n = getrandom((char *)buf + done, len - done, 0);
		/* Ids come from here: a guess in place of randomness would be worse than a stop. */
		if (n < 0 && errno != EINTR)
			abort();
		if (n > 0)
			done += (size_t)n;
	}
}

static void posix_boot_id(struct eng_io *io, uint8_t id[16])
{
	memcpy(id, posix_of(io)->boot_id, 16);
}

static void posix_sleep_ns(struct eng_io *io, uint64_t ns)
{
	struct timespec ts = {
		.tv_sec = (time_t)(ns / 1000000000u),
		.tv_nsec = (long)(ns % 1000000000u),
	};

	(void)io;
	while (clock_nanosleep(CLOCK_MONOTONIC, 0, &ts, &ts) == EINTR)
		;
}

static int posix_read_boot_id(uint8_t id[16])
{
	FILE *f = fopen("/proc/sys/kernel/random/boot_id", "re");
	unsigned byte;
	int i, r = 0;

	if (!f)
		return -errno;
	for (i = 0; i < 16 && r == 0; i++) {
		if (fscanf(f, i == 4 || i == 6 || i == 8 || i == 10 ? "-%2x" : "%2x", &byte) != 1)
			r = -EIO;
		else
			id[i] = (uint8_t)byte;
	}
	fclose(f);
	return r;
}

/* --- threads --- */

static void *posix_thread_main(void *arg)
{
	struct eng_thread *thread = arg;

	pthread_setname_np(pthread_self(), thread->name);
	thread->fn(thread->arg);
	return NULL;
}

/* Signals are blocked in the new thread: the embedder's handlers run on the embedder's threads. */
static int posix_spawn(struct eng_io *io, const char *name, void (*fn)(void *), void *arg,
		       struct eng_thread **ret)
{
	struct eng_thread *thread = calloc(1, sizeof(*thread));
	sigset_t all, old;
	int r;

	(void)io;
	if (!thread)
		return -ENOMEM;
	thread->fn = fn;
	thread->arg = arg;
	snprintf(thread->name, sizeof(thread->name), "%s", name);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	r = -pthread_create(&thread->id, NULL, posix_thread_main, thread);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (r < 0)
		free(thread);
	else
		*ret = thread;
	return r;
}

static void posix_join(struct eng_io *io, struct eng_thread *thread)
{
	int r = pthread_join(thread->id, NULL);

	(void)io;
	assert(r == 0);
	(void)r;
	free(thread);
}

/* --- the object --- */

static void posix_destroy(struct eng_io *io)
{
	free(posix_of(io)->shm_dir);
	free(io);
}

static const struct eng_io_ops posix_ops = {
	.open = posix_open,
	.close = posix_close,
	.pread = posix_pread,
	.pwrite = posix_pwrite,
	.fdatasync = posix_fdatasync,
	.fsync = posix_fsync,
	.truncate = posix_truncate,
	.allocate = posix_allocate,
	.punch = posix_punch,
	.fstat = posix_fstat,
	.stat = posix_stat,
	.space = posix_space,
	.next_data = posix_next_data,
	.lock = posix_lock,
	.mkdir = posix_mkdir,
	.rename = posix_rename,
	.unlink = posix_unlink,
	.sync_dir = posix_sync_dir,
	.list = posix_list,
	.shm_create = posix_shm_create,
	.shm_open = posix_shm_open,
	.shm_unmap = posix_shm_unmap,
	.shm_unlink = posix_shm_unlink,
	.now_ns = posix_now_ns,
	.wall_ns = posix_wall_ns,
	.random = posix_random,
	.boot_id = posix_boot_id,
	.sleep_ns = posix_sleep_ns,
	.spawn = posix_spawn,
	.join = posix_join,
	.ring_create = eng_io_uring_create,
	.destroy = posix_destroy,
};

int eng_io_posix_create(struct eng_io **ret)
{
	struct posix_io *px = calloc(1, sizeof(*px));
	struct rlimit lim;
	int r = -ENOMEM;

	if (!px)
		return r;
	px->io.ops = &posix_ops;
	px->shm_dir = strdup("/dev/shm");
	if (!px->shm_dir)
		goto out;
	r = posix_read_boot_id(px->boot_id);
	if (r < 0)
		goto out;
	/* A store may have more layers than the default limit allows open files. Best effort. */
	if (getrlimit(RLIMIT_NOFILE, &lim) == 0 && lim.rlim_cur < lim.rlim_max) {
		lim.rlim_cur = lim.rlim_max;
		setrlimit(RLIMIT_NOFILE, &lim);
	}
	*ret = &px->io;
	px = NULL;
out:
	if (px)
		posix_destroy(&px->io);
	return r;
}

void eng_io_posix_set_fd_limit(unsigned limit)
{
	eng_fdcache_set_limit(limit);
}

void eng_io_posix_set_boot_id(struct eng_io *io, const uint8_t id[16])
{
	assert(io->ops == &posix_ops);
	memcpy(posix_of(io)->boot_id, id, 16);
}

int eng_io_posix_set_shm_dir(struct eng_io *io, const char *dir)
{
	char *copy = strdup(dir);

	assert(io->ops == &posix_ops);
	if (!copy)
		return -ENOMEM;
	free(posix_of(io)->shm_dir);
	posix_of(io)->shm_dir = copy;
	return 0;
}
