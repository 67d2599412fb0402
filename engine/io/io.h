/* SPDX-License-Identifier: MIT */
/*
 * io.h - the one seam through which the engine touches the world: files, directories, the ring,
 * shared memory, the clock, randomness and threads (spec/snapshot.md, "The I/O interface").
 *
 * Implementations: io_posix.c (files) with io_uring.c (the ring); io_record.c wraps either and logs
 * every write, flush and directory operation, so that any power loss can be replayed; io_fault.c
 * wraps either and injects errors. Nothing else in engine/ calls the kernel for I/O, time or threads.
 *
 * Every call returns 0 (or a count) or a negative errno. The synchronous calls may be made from any
 * thread; a file may be used by many threads at once. A ring belongs to the thread that created it,
 * except eng_ring_wake().
 */
#ifndef ENGINE_IO_H
#define ENGINE_IO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

struct eng_io;
struct eng_file;
struct eng_ring;
struct eng_thread;
struct io_uring;

/* Open flags of eng_io_open(). Without ENG_OPEN_WRITE the file is opened read-only. */
enum {
	ENG_OPEN_WRITE = 1 << 0,
	ENG_OPEN_CREATE = 1 << 1, /* create, mode 0600 */
	ENG_OPEN_EXCL = 1 << 2,   /* with CREATE: -EEXIST where the name is taken */
	ENG_OPEN_DIRECT = 1 << 3, /* O_DIRECT; falls back to buffered where there is none */
	ENG_OPEN_NOFOLLOW = 1 << 4,
	ENG_OPEN_TRUNC = 1 << 5,
	/*
	 * For files of which there may be more than the process may have open (-EINVAL with TRUNC,
	 * and with CREATE or EXCL but without WRITE; what is not a regular file is opened as without
	 * it). The descriptor is closed when many are open and nobody uses this one, and opened again
	 * by its path at the next use, where a failure is that request's alone: -ESTALE when another
	 * file is there, -ENOENT, -EMFILE. So it can't be locked: -EBADF, as for a write or a sync
	 * without WRITE. One that was changed is closed only when a sync that began after the last
	 * change, dsync writes aside, has succeeded; never when a write or a sync has failed (T16).
	 */
	ENG_OPEN_CACHED = 1 << 6,
};

struct eng_stat {
	uint64_t size;      /* bytes */
	uint64_t allocated; /* bytes */
	uint64_t dev, ino;
	int64_t mtime_ns, ctime_ns;
	uint32_t dio_align; /* direct I/O: offset and length granule in bytes; 1 when buffered */
	uint32_t mem_align; /* direct I/O: buffer alignment in bytes; 1 when buffered */
	bool is_dir, is_regular, is_block;
};

/* Ring operations. The op is caller-owned and must stay put until @done has been called. */
enum eng_op_kind {
	ENG_OP_READ,
	ENG_OP_WRITE,
	ENG_OP_FDATASYNC,
};

struct eng_op {
	uint8_t kind; /* enum eng_op_kind */
	bool dsync;   /* WRITE: durable when complete (RWF_DSYNC) */
	/* The op queued next starts only when this one succeeded in full, else it ends with
	 * -ECANCELED; both must be queued before the next submit. At most seven in a row, each of
	 * at most 1024 pieces and 1 GiB. */
	bool link;
	struct eng_file *file;
	uint64_t offset;
	const struct iovec *iov; /* borrowed until done */
	unsigned iovcnt;
	/* Bytes moved or negative errno. Short transfers are continued by the ring: a short count
	 * is seen only on a READ at the end of the file. */
	int64_t res;
	void (*done)(struct eng_op *op);
	uint64_t priv[6]; /* the ring's; zero before the first use */
};

/* --- files and directories (synchronous, any thread) --- */
int eng_io_open(struct eng_io *io, const char *path, unsigned flags, struct eng_file **ret);
void eng_io_close(struct eng_io *io, struct eng_file *file); /* NULL is fine */
/* Full transfers: pread returns bytes read (short only at end of file), pwrite 0. */
ssize_t eng_io_pread(struct eng_io *io, struct eng_file *file, void *buf, size_t len,
		     uint64_t offset);
int eng_io_pwrite(struct eng_io *io, struct eng_file *file, const void *buf, size_t len,
		  uint64_t offset);
int eng_io_fdatasync(struct eng_io *io, struct eng_file *file);
/* The times too: a frozen base that is not ours is known by its modification time (IB-3). */
int eng_io_fsync(struct eng_io *io, struct eng_file *file);
int eng_io_truncate(struct eng_io *io, struct eng_file *file, uint64_t size);
/* Allocate [offset, offset+len), extending the size when needed; existing data is kept. */
int eng_io_allocate(struct eng_io *io, struct eng_file *file, uint64_t offset, uint64_t len);
/* Give the range back; it reads as zeros afterwards. */
int eng_io_punch(struct eng_io *io, struct eng_file *file, uint64_t offset, uint64_t len);
int eng_io_fstat(struct eng_io *io, struct eng_file *file, struct eng_stat *ret);
int eng_io_stat(struct eng_io *io, const char *path, struct eng_stat *ret);
/* Bytes of the file system that holds @path: those a process like this one may still use, and all. */
int eng_io_space(struct eng_io *io, const char *path, uint64_t *free_bytes, uint64_t *all_bytes);
/* Next data at or after @offset: -ENXIO when there is none. lseek(SEEK_DATA/SEEK_HOLE) semantics. */
int eng_io_next_data(struct eng_io *io, struct eng_file *file, uint64_t offset, uint64_t *data,
		     uint64_t *hole);
/* Exclusive, non-blocking flock: -EWOULDBLOCK when another open file holds it. */
int eng_io_lock(struct eng_io *io, struct eng_file *file);
int eng_io_mkdir(struct eng_io *io, const char *path); /* mode 0700 */
int eng_io_rename(struct eng_io *io, const char *from, const char *to);
/* The same, but never over another file: -EEXIST where @to is there. */
int eng_io_rename_new(struct eng_io *io, const char *from, const char *to);
int eng_io_unlink(struct eng_io *io, const char *path); /* an empty directory too */
int eng_io_sync_dir(struct eng_io *io, const char *path);
/* Calls @each for every name but . and ..; stops with its value when that is not 0. */
int eng_io_list(struct eng_io *io, const char *path, int (*each)(void *arg, const char *name),
		void *arg);

/* --- shared memory that outlives the process but not the host (journal, T20) --- */
/* Creates (mode 0600, all space allocated) or opens (owner checked: -EPERM) a mapping. */
int eng_io_shm_create(struct eng_io *io, const char *name, size_t len, void **ret);
int eng_io_shm_open(struct eng_io *io, const char *name, size_t *len, void **ret);
void eng_io_shm_unmap(struct eng_io *io, void *map, size_t len);
int eng_io_shm_unlink(struct eng_io *io, const char *name);

/* --- clock, randomness, host --- */
uint64_t eng_io_now_ns(struct eng_io *io); /* monotonic */
int64_t eng_io_wall_ns(struct eng_io *io); /* since 1970, UTC */
void eng_io_random(struct eng_io *io, void *buf, size_t len);
void eng_io_boot_id(struct eng_io *io, uint8_t id[16]);
void eng_io_sleep_ns(struct eng_io *io, uint64_t ns);

/* --- threads --- */
int eng_io_spawn(struct eng_io *io, const char *name, void (*fn)(void *arg), void *arg,
		 struct eng_thread **ret);
void eng_io_join(struct eng_io *io, struct eng_thread *thread);

/* --- the ring --- */
/*
 * @hold: a file the ring keeps open in the kernel until its last request is done (the store's lock,
 * T19), or NULL.
 */
int eng_ring_create(struct eng_io *io, unsigned entries, struct eng_file *hold,
		    struct eng_ring **ret);
void eng_ring_destroy(struct eng_ring *ring); /* nothing in flight; NULL is fine */
/* Queues; nothing starts before the next submit or wait. -EAGAIN is never returned: a full
 * submission queue is submitted. */
void eng_ring_queue(struct eng_ring *ring, struct eng_op *op);
int eng_ring_submit(struct eng_ring *ring);
/*
 * Submits what is queued, waits until at least one completion or wake arrived or @timeout_ns passed
 * (0: do not wait; UINT64_MAX: for ever), then calls @done of every completed op. Returns the number
 * of completions handled.
 */
int eng_ring_wait(struct eng_ring *ring, uint64_t timeout_ns);
/* Any thread: makes the ring's owner return from eng_ring_wait() and its fd readable. */
void eng_ring_wake(struct eng_ring *ring);
/* Becomes readable when eng_ring_wait() has something to do. */
int eng_ring_fd(struct eng_ring *ring);
/* The native ring, for the embedder's own operations; NULL where there is none. Completions whose
 * user_data has bit 0 set are handed to the foreign handler. */
struct io_uring *eng_ring_native(struct eng_ring *ring);
void eng_ring_on_foreign(struct eng_ring *ring,
			 void (*fn)(void *arg, uint64_t user_data, int32_t res, uint32_t flags),
			 void *arg);

/* --- the implementation table --- */
struct eng_io_ops {
	int (*open)(struct eng_io *, const char *, unsigned, struct eng_file **);
	void (*close)(struct eng_io *, struct eng_file *);
	ssize_t (*pread)(struct eng_io *, struct eng_file *, void *, size_t, uint64_t);
	int (*pwrite)(struct eng_io *, struct eng_file *, const void *, size_t, uint64_t);
	int (*fdatasync)(struct eng_io *, struct eng_file *);
	int (*fsync)(struct eng_io *, struct eng_file *);
	int (*truncate)(struct eng_io *, struct eng_file *, uint64_t);
	int (*allocate)(struct eng_io *, struct eng_file *, uint64_t, uint64_t);
	int (*punch)(struct eng_io *, struct eng_file *, uint64_t, uint64_t);
	int (*fstat)(struct eng_io *, struct eng_file *, struct eng_stat *);
	int (*stat)(struct eng_io *, const char *, struct eng_stat *);
	int (*space)(struct eng_io *, const char *, uint64_t *, uint64_t *);
	int (*next_data)(struct eng_io *, struct eng_file *, uint64_t, uint64_t *, uint64_t *);
	int (*lock)(struct eng_io *, struct eng_file *);
	int (*mkdir)(struct eng_io *, const char *);
	int (*rename)(struct eng_io *, const char *, const char *, bool replace);
	int (*unlink)(struct eng_io *, const char *);
	int (*sync_dir)(struct eng_io *, const char *);
	int (*list)(struct eng_io *, const char *, int (*)(void *, const char *), void *);
	int (*shm_create)(struct eng_io *, const char *, size_t, void **);
	int (*shm_open)(struct eng_io *, const char *, size_t *, void **);
	void (*shm_unmap)(struct eng_io *, void *, size_t);
	int (*shm_unlink)(struct eng_io *, const char *);
	uint64_t (*now_ns)(struct eng_io *);
	int64_t (*wall_ns)(struct eng_io *);
	void (*random)(struct eng_io *, void *, size_t);
	void (*boot_id)(struct eng_io *, uint8_t[16]);
	void (*sleep_ns)(struct eng_io *, uint64_t);
	int (*spawn)(struct eng_io *, const char *, void (*)(void *), void *, struct eng_thread **);
	void (*join)(struct eng_io *, struct eng_thread *);
	int (*ring_create)(struct eng_io *, unsigned, struct eng_file *, struct eng_ring **);
	void (*destroy)(struct eng_io *);
};

struct eng_ring_ops {
	void (*destroy)(struct eng_ring *);
	void (*queue)(struct eng_ring *, struct eng_op *);
	int (*submit)(struct eng_ring *);
	int (*wait)(struct eng_ring *, uint64_t);
	void (*wake)(struct eng_ring *);
	int (*fd)(struct eng_ring *);
	struct io_uring *(*native)(struct eng_ring *);
	void (*on_foreign)(struct eng_ring *, void (*)(void *, uint64_t, int32_t, uint32_t),
			   void *);
};

/* First member of every implementation's object. */
struct eng_io {
	const struct eng_io_ops *ops;
};

struct eng_ring {
	const struct eng_ring_ops *ops;
};

/* The machine itself: files, io_uring, /dev/shm, the clock. */
int eng_io_posix_create(struct eng_io **ret);
/* What tests need to play another boot of the machine: its id, and its own (empty) shared memory
 * (default /dev/shm). Only for an object of eng_io_posix_create(), before its first use. */
void eng_io_posix_set_boot_id(struct eng_io *io, const uint8_t id[16]);
int eng_io_posix_set_shm_dir(struct eng_io *io, const char *dir);
/* How many ENG_OPEN_CACHED files the process keeps open, those in use aside; 0: three quarters of
 * RLIMIT_NOFILE, the default. Any time, any thread. */
void eng_io_posix_set_fd_limit(unsigned limit);
void eng_io_destroy(struct eng_io *io); /* NULL is fine */

#endif
