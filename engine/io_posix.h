/* SPDX-License-Identifier: MIT */
/*
 * io_posix.h - what io_posix.c (files) and io_uring.c (the ring) share: the open file. Nobody else
 * includes this.
 */
#ifndef ENGINE_IO_POSIX_H
#define ENGINE_IO_POSIX_H

#include "engine/io.h"

struct eng_file {
	int fd;
	uint32_t dio_align; /* 1 when buffered */
	uint32_t mem_align;
};

int eng_io_uring_create(struct eng_io *io, unsigned entries, struct eng_file *hold,
			struct eng_ring **ret);

#endif
