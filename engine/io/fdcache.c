/* SPDX-License-Identifier: MIT */
/*
 * fdcache.c - see fdcache.h. One cache for the process, as the limit is the process's. Invariants:
 *
 * - users counts the uses under way; CLOSED is added while there is no descriptor. A use is one atomic
 *   addition and one subtraction; only opening and closing take locks.
 * - Closing is the step of users from 0 to CLOSED under cache.lock: what is in use is never closed.
 *   What is found to be dirty or pinned then is given back before the lock is.
 * - changes counts the changes begun, and in its low bits those under way. A sync that began while none
 *   was, and succeeded, covers them all up to there: clean. Dirty is what has another count by now.
 * - Opening is done by one thread a file (its lock), within the limit, and only of the file that was
 *   opened first: device, inode and time of birth are the same, or -ESTALE. (An inode number alone is
 *   soon given to another file.)
 * - The open ones form a ring. A hand goes round and closes the first idle one that was not used since
 *   it last came by: nearly the least recently used, without a list to reorder at every use. One just
 *   opened has a round before it; files that are used once do not drive out those used often.
 */
#define _GNU_SOURCE 1
#include "engine/io/fdcache.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#define CLOSED (INT_MIN / 2)

#define UNDER_WAY (((uint64_t)1 << 24) - 1) /* the low bits of changes */
#define BEGUN     ((uint64_t)1 << 24)

struct identity {
	uint64_t ino;
	uint32_t major, minor;
	int64_t birth_s; /* 0 where the file system has none */
	uint32_t birth_ns;
};

struct eng_cached {
	atomic_int users;
	atomic_bool used; /* again, since it was opened or the hand last came by */
	atomic_bool pinned;
	int fd;    /* changes only while users is negative */
	int flags; /* the access mode and the status flags */
	atomic_uint_fast64_t changes, clean;
	char *path; /* absolute, without links */
	struct identity id;
	pthread_mutex_t lock;           /* held while it is opened */
	struct eng_cached *prev, *next; /* cache.lock; the open ones */
};

static struct {
	pthread_mutex_t lock;
	struct eng_cached *hand; /* NULL: none is open */
	unsigned open;           /* in the ring, or about to be */
	unsigned limit;          /* 0: a share of the process's */
} cache = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* --- the ring; cache.lock is held --- */

/* Behind the hand: the last that it comes to. */
static void ring_add(struct eng_cached *file)
{
	struct eng_cached *hand = cache.hand ? cache.hand : file;

	if (!cache.hand)
		file->prev = file;
	file->next = hand;
	file->prev = hand->prev;
	hand->prev->next = file;
	hand->prev = file;
	cache.hand = hand;
}

static void ring_remove(struct eng_cached *file)
{
	file->prev->next = file->next;
	file->next->prev = file->prev;
	if (cache.hand == file)
		cache.hand = file->next != file ? file->next : NULL;
	cache.open--;
}

/* T16: with a descriptor that has unsynced writes their error would be lost. */
static bool is_clean(struct eng_cached *file)
{
	return !atomic_load_explicit(&file->pinned, memory_order_relaxed) &&
	       atomic_load_explicit(&file->clean, memory_order_relaxed) ==
		       atomic_load_explicit(&file->changes, memory_order_relaxed);
}

/* From idle to closed. Looks again when nobody can use it: a whole use may have come in between. */
static bool claim(struct eng_cached *file)
{
	int idle = 0;

	if (!is_clean(file) ||
	    !atomic_compare_exchange_strong_explicit(&file->users, &idle, CLOSED,
						     memory_order_acq_rel, memory_order_relaxed))
		return false;
	if (is_clean(file))
		return true;
	atomic_fetch_sub_explicit(&file->users, CLOSED, memory_order_release);
	return false;
}

/* Takes the descriptor of an idle, clean file out of the ring, to be closed; -1 when there is none. */
static int ring_evict(void)
{
	/* Twice round: the first time may only clear the marks. */
	for (unsigned i = 0; cache.hand && i < 2 * cache.open; i++) {
		struct eng_cached *file = cache.hand;

		cache.hand = file->next;
		if (atomic_exchange_explicit(&file->used, false, memory_order_relaxed))
			continue;
		if (!claim(file))
			continue;
		ring_remove(file);
		return file->fd;
	}
	return -1;
}

/* --- room --- */

static unsigned limit_now(void)
{
	struct rlimit lim;

	if (cache.limit)
		return cache.limit;
	if (getrlimit(RLIMIT_NOFILE, &lim) < 0 || lim.rlim_cur > INT_MAX)
		return INT_MAX;
	return (unsigned)(lim.rlim_cur - lim.rlim_cur / 4);
}

/* Closes idle ones until @room more are within the limit, and counts those as open. */
static void make_room(unsigned room)
{
	unsigned limit;
	int fd;

	do {
		fd = -1;
		pthread_mutex_lock(&cache.lock);
		limit = limit_now();
		if (cache.open + room > limit)
			fd = ring_evict();
		if (fd < 0)
			cache.open += room; /* over the limit when all are in use */
		pthread_mutex_unlock(&cache.lock);
		if (fd >= 0)
			close(fd);
	} while (fd >= 0);
}

static void give_room_back(void)
{
	pthread_mutex_lock(&cache.lock);
	cache.open--;
	pthread_mutex_unlock(&cache.lock);
}

bool eng_fdcache_close_idle(void)
{
	int fd;

	pthread_mutex_lock(&cache.lock);
	fd = ring_evict();
	pthread_mutex_unlock(&cache.lock);
	if (fd >= 0)
		close(fd);
	return fd >= 0;
}

int eng_fdcache_open(const char *path, int flags, mode_t mode)
{
	int fd, error;

	do {
		fd = open(path, flags, mode);
		error = errno;
	} while (fd < 0 && (error == EMFILE || error == ENFILE) && eng_fdcache_close_idle());
	errno = error;
	return fd;
}

void eng_fdcache_set_limit(unsigned limit)
{
	pthread_mutex_lock(&cache.lock);
	cache.limit = limit;
	pthread_mutex_unlock(&cache.lock);
	make_room(0);
}

unsigned eng_fdcache_open_count(void)
{
	unsigned open;

	pthread_mutex_lock(&cache.lock);
	open = cache.open;
	pthread_mutex_unlock(&cache.lock);
	return open;
}

bool eng_fdcache_is_open(struct eng_cached *file)
{
	return atomic_load(&file->users) >= 0;
}

/* --- files --- */

static int identify(int fd, struct identity *ret)
{
	struct statx stx;

	if (statx(fd, "", AT_EMPTY_PATH, STATX_INO | STATX_BTIME, &stx) < 0)
		return -errno;
	*ret = (struct identity){
		.ino = stx.stx_ino,
		.major = stx.stx_dev_major,
		.minor = stx.stx_dev_minor,
	};
	if (stx.stx_mask & STATX_BTIME) {
		ret->birth_s = stx.stx_btime.tv_sec;
		ret->birth_ns = stx.stx_btime.tv_nsec;
	}
	return 0;
}

static bool same(const struct identity *a, const struct identity *b)
{
	return a->ino == b->ino && a->major == b->major && a->minor == b->minor &&
	       a->birth_s == b->birth_s && a->birth_ns == b->birth_ns;
}

int eng_fdcache_add(int fd, const char *path, int flags, bool made, struct eng_cached **ret)
{
	struct eng_cached *file = calloc(1, sizeof(*file));
	int r;

	if (!file)
		return -ENOMEM;
	/* The process may change its directory, and somebody a link on the way. */
	file->path = realpath(path, NULL);
	r = file->path ? identify(fd, &file->id) : -errno;
	if (r < 0) {
		free(file->path);
		free(file);
		return r;
	}
	file->fd = fd;
	file->flags = flags;
	atomic_init(&file->users, 0);
	atomic_init(&file->used, false);
	atomic_init(&file->pinned, false);
	atomic_init(&file->clean, 0);
	atomic_init(&file->changes, made || (flags & O_ACCMODE) == O_RDONLY ? 0 : BEGUN);
	pthread_mutex_init(&file->lock, NULL);
	make_room(1);
	pthread_mutex_lock(&cache.lock);
	ring_add(file);
	pthread_mutex_unlock(&cache.lock);
	*ret = file;
	return 0;
}

void eng_fdcache_remove(struct eng_cached *file)
{
	bool open;

	pthread_mutex_lock(&cache.lock);
	assert(atomic_load(&file->users) == 0 || atomic_load(&file->users) == CLOSED);
	open = atomic_load(&file->users) == 0;
	if (open)
		ring_remove(file);
	pthread_mutex_unlock(&cache.lock);
	if (open)
		close(file->fd);
	pthread_mutex_destroy(&file->lock);
	free(file->path);
	free(file);
}

/* The file opened first, or an error. O_NONBLOCK: what is there now may be a FIFO. */
static int open_same(const struct eng_cached *file)
{
	int mode = file->flags & O_ACCMODE;
	int fd = eng_fdcache_open(file->path, mode | O_CLOEXEC | O_NOCTTY | O_NOFOLLOW | O_NONBLOCK,
				  0);
	struct identity id;
	int r;

	if (fd < 0)
		return errno == ELOOP ? -ESTALE : -errno;
	r = identify(fd, &id);
	if (r == 0 && !same(&id, &file->id))
		r = -ESTALE;
	if (r == 0 && fcntl(fd, F_SETFL, file->flags & ~O_ACCMODE) < 0)
		r = -errno;
	if (r < 0)
		close(fd);
	return r < 0 ? r : fd;
}

/* Opens a closed file for one use: its descriptor; -EAGAIN when another thread was faster. */
static int reopen(struct eng_cached *file)
{
	int fd = -EAGAIN;
	bool open;

	pthread_mutex_lock(&file->lock);
	pthread_mutex_lock(&cache.lock); /* it may be claimed only to be given back */
	open = atomic_load_explicit(&file->users, memory_order_relaxed) >= 0;
	pthread_mutex_unlock(&cache.lock);
	if (open)
		goto out;
	make_room(1);
	fd = open_same(file);
	if (fd < 0) {
		give_room_back();
		goto out;
	}
	pthread_mutex_lock(&cache.lock);
	file->fd = fd;
	ring_add(file);
	/* Added, not stored: others may be about to see that it was closed. */
	atomic_fetch_add_explicit(&file->users, 1 - CLOSED, memory_order_release);
	pthread_mutex_unlock(&cache.lock);
out:
	pthread_mutex_unlock(&file->lock);
	return fd;
}

int eng_fdcache_get(struct eng_cached *file)
{
	int fd;

	do {
		if (atomic_fetch_add_explicit(&file->users, 1, memory_order_acquire) >= 0) {
			atomic_store_explicit(&file->used, true, memory_order_relaxed);
			return file->fd;
		}
		atomic_fetch_sub_explicit(&file->users, 1, memory_order_relaxed);
		fd = reopen(file);
	} while (fd == -EAGAIN);
	return fd;
}

void eng_fdcache_put(struct eng_cached *file)
{
	int users = atomic_fetch_sub_explicit(&file->users, 1, memory_order_release);

	assert(users > 0);
	(void)users;
}

bool eng_fdcache_is_writable(const struct eng_cached *file)
{
	return (file->flags & O_ACCMODE) != O_RDONLY;
}

/* --- changes; the put that follows publishes them to claim() --- */

void eng_fdcache_change_begin(struct eng_cached *file)
{
	atomic_fetch_add_explicit(&file->changes, BEGUN + 1, memory_order_relaxed);
}

void eng_fdcache_change_end(struct eng_cached *file)
{
	atomic_fetch_sub_explicit(&file->changes, 1, memory_order_release);
}

void eng_fdcache_pin(struct eng_cached *file)
{
	atomic_store_explicit(&file->pinned, true, memory_order_relaxed);
}

uint64_t eng_fdcache_sync_begin(struct eng_cached *file)
{
	return atomic_load_explicit(&file->changes, memory_order_acquire);
}

void eng_fdcache_sync_end(struct eng_cached *file, uint64_t began)
{
	/* An older sync that ends later only takes cleanness back. */
	if (!(began & UNDER_WAY))
		atomic_store_explicit(&file->clean, began, memory_order_relaxed);
}
