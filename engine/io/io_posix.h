/* SPDX-License-Identifier: MIT */
/*
 * io_posix.h - what io_posix.c (files) and io_uring.c (the ring) share: the open file. Nobody else
 * includes this.
 */
#ifndef ENGINE_IO_POSIX_H
#define ENGINE_IO_POSIX_H

#include <errno.h>

#include "engine/io/fdcache.h"
#include "engine/io/io.h"

struct eng_file {
	int fd; /* -1: a cached one; a lock, which no get brackets, says -EBADF */
	struct eng_cached *cached;
	uint32_t dio_align; /* 1 when buffered */
	uint32_t mem_align;
};

/* The descriptor for one use, to be put; or a negative errno. */
static inline int eng_file_get(struct eng_file *file)
{
	return file->fd >= 0 ? file->fd : eng_fdcache_get(file->cached);
}

static inline void eng_file_put(struct eng_file *file)
{
	if (file->fd < 0)
		eng_fdcache_put(file->cached);
}

/* The same for a change or a sync: -EBADF for a cached file that is open for reading only. */
static inline int eng_file_get_writable(struct eng_file *file)
{
	if (file->fd < 0 && !eng_fdcache_is_writable(file->cached))
		return -EBADF;
	return eng_file_get(file);
}

/* T16: brackets of a change and of a sync that have the descriptor; the end puts it. */
static inline void eng_file_change_begin(struct eng_file *file)
{
	if (file->fd < 0)
		eng_fdcache_change_begin(file->cached);
}

static inline void eng_file_change_end(struct eng_file *file, bool ok)
{
	if (file->fd >= 0)
		return;
	if (!ok)
		eng_fdcache_pin(file->cached);
	eng_fdcache_change_end(file->cached);
	eng_fdcache_put(file->cached);
}

static inline uint64_t eng_file_sync_begin(struct eng_file *file)
{
	return file->fd < 0 ? eng_fdcache_sync_begin(file->cached) : 0;
}

static inline void eng_file_sync_end(struct eng_file *file, uint64_t began, bool ok)
{
	if (file->fd >= 0)
		return;
	if (ok)
		eng_fdcache_sync_end(file->cached, began);
	else
		eng_fdcache_pin(file->cached);
	eng_fdcache_put(file->cached);
}

int eng_io_uring_create(struct eng_io *io, unsigned entries, struct eng_file *hold,
			struct eng_ring **ret);

#endif
