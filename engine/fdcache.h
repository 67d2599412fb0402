/* SPDX-License-Identifier: MIT */
/*
 * fdcache.h - descriptors of read-only files, of which the process keeps only as many open as it may
 * (ENG_OPEN_CACHED). io_posix.c and io_uring.c only; any thread may enter. Nothing here ever holds a
 * descriptor that was written through, so none with unsynced writes is closed (T16).
 */
#ifndef ENGINE_FDCACHE_H
#define ENGINE_FDCACHE_H

#include <stdbool.h>
#include <sys/types.h>

struct eng_cached;

/*
 * Takes over @fd, open for reading on the regular file @path, with the status flags (O_DIRECT) to set
 * when it is opened again. An error leaves @fd the caller's: -ENOMEM, or why @path leads nowhere.
 */
int eng_fdcache_add(int fd, const char *path, int status, struct eng_cached **ret);
void eng_fdcache_remove(struct eng_cached *file); /* nobody uses it */

/* The descriptor, open until the put; or why the file can't be opened again, and then no put. */
int eng_fdcache_get(struct eng_cached *file);
void eng_fdcache_put(struct eng_cached *file);

/* open(2); where the process or the system has no descriptor left, first closes idle ones of ours. */
int eng_fdcache_open(const char *path, int flags, mode_t mode);
/* How many may be open, those in use aside; 0: three quarters of RLIMIT_NOFILE, the default. */
void eng_fdcache_set_limit(unsigned limit);
unsigned eng_fdcache_open_count(void);
bool eng_fdcache_is_open(struct eng_cached *file);

#endif
