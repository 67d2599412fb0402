/* SPDX-License-Identifier: MIT */
/*
 * fdcache.h - descriptors of regular files, of which the process keeps only as many open as it may
 * (ENG_OPEN_CACHED). io_posix.c and io_uring.c only; any thread may enter. What a file is changed
 * through is closed only while every change is covered by a sync that succeeded (T16).
 */
#ifndef ENGINE_FDCACHE_H
#define ENGINE_FDCACHE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct eng_cached;

/*
 * Takes over @fd, open on the regular file @path, with the access mode and the status flags (O_DIRECT)
 * to open it with again. Unless @made by this open, a writable one may hold unsynced writes of a dead
 * process and stays open until its first sync. An error leaves @fd the caller's: -ENOMEM, or why @path
 * leads nowhere.
 */
int eng_fdcache_add(int fd, const char *path, int flags, bool made, struct eng_cached **ret);
void eng_fdcache_remove(struct eng_cached *file); /* nobody uses it */

/* The descriptor, open until the put; or why the file can't be opened again, and then no put. */
int eng_fdcache_get(struct eng_cached *file);
void eng_fdcache_put(struct eng_cached *file);
bool eng_fdcache_is_writable(const struct eng_cached *file);

/*
 * All between a get and its put. A change begins before the system call and ends after it; one that is
 * durable when complete needs neither. Whatever failed pins the file: it stays open until removed. A
 * sync covers what had ended when it began.
 */
void eng_fdcache_change_begin(struct eng_cached *file);
void eng_fdcache_change_end(struct eng_cached *file);
void eng_fdcache_pin(struct eng_cached *file);
uint64_t eng_fdcache_sync_begin(struct eng_cached *file);
void eng_fdcache_sync_end(struct eng_cached *file, uint64_t began); /* it succeeded */

/* open(2); where the process or the system has no descriptor left, first closes idle ones of ours. */
int eng_fdcache_open(const char *path, int flags, mode_t mode);
/* Closes an idle one, for what else needs a descriptor; false when there is none. */
bool eng_fdcache_close_idle(void);
/* How many may be open, those in use aside; 0: three quarters of RLIMIT_NOFILE, the default. */
void eng_fdcache_set_limit(unsigned limit);
unsigned eng_fdcache_open_count(void);
bool eng_fdcache_is_open(struct eng_cached *file);

#endif
