/* SPDX-License-Identifier: MIT */
/*
 * io_posix.h - what io_posix.c (files) and io_uring.c (the ring) share: the open file. Nobody else
 * includes this.
 */
#ifndef ENGINE_IO_POSIX_H
#define ENGINE_IO_POSIX_H

#include "engine/fdcache.h"
#include "engine/io.h"

struct eng_file {
	int fd; /* -1: a cached one, and calls that are not bracketed by get and put say -EBADF */
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

int eng_io_uring_create(struct eng_io *io, unsigned entries, struct eng_file *hold,
			struct eng_ring **ret);

#endif
