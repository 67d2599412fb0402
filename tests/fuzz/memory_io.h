/* SPDX-License-Identifier: MIT */
/*
 * memory_io.h - an eng_io over a few read-only files in memory, for tests that open thousands of
 * broken images: names are matched as they stand after a leading "./", every directory is the same
 * one. It counts reads and remembers the longest, so that a test can bound both. One thread.
 */
#ifndef TESTS_MEMORY_IO_H
#define TESTS_MEMORY_IO_H

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/io/io.h"

enum { MEMORY_FILES = 300 };

struct memory_file {
	const char *name;
	const uint8_t *bytes;
	size_t len;
	bool block; /* a block device */
};

struct memory_io {
	struct eng_io io;
	struct memory_file files[MEMORY_FILES];
	size_t nfiles;
	uint64_t reads;
	size_t longest; /* bytes asked for by one read */
};

/* What the engine holds; never the caller's memory, so that a leak or a use after close shows. */
struct eng_file {
	const struct memory_file *in;
	uint64_t ino;
};

static int memory_open(struct eng_io *io, const char *path, unsigned flags, struct eng_file **ret)
{
	struct memory_io *m = (struct memory_io *)io;

	if (flags & ENG_OPEN_WRITE)
		return -EROFS;
	if (!strncmp(path, "./", 2))
		path += 2;
	for (size_t i = 0; i < m->nfiles; i++) {
		if (!strcmp(m->files[i].name, path)) {
			struct eng_file *file = malloc(sizeof(*file));

			if (!file)
				return -ENOMEM;
			file->in = &m->files[i];
			file->ino = i + 2;
			*ret = file;
			return 0;
		}
	}
	return -ENOENT;
}

static void memory_close(struct eng_io *io, struct eng_file *file)
{
	(void)io;
	free(file);
}

static ssize_t memory_pread(struct eng_io *io, struct eng_file *file, void *buf, size_t len,
			    uint64_t offset)
{
	struct memory_io *m = (struct memory_io *)io;
	size_t have = offset < file->in->len ? file->in->len - (size_t)offset : 0;

	m->reads++;
	m->longest = len > m->longest ? len : m->longest;
	if (len > have)
		len = have;
	if (len)
		memcpy(buf, file->in->bytes + offset, len);
	return (ssize_t)len;
}

static int memory_fstat(struct eng_io *io, struct eng_file *file, struct eng_stat *ret)
{
	(void)io;
	*ret = (struct eng_stat){.size = file->in->len,
				 .ino = file->ino,
				 .dio_align = 1,
				 .mem_align = 1,
				 .is_block = file->in->block,
				 .is_regular = !file->in->block};
	return 0;
}

static int memory_stat(struct eng_io *io, const char *path, struct eng_stat *ret)
{
	(void)io;
	(void)path;
	*ret = (struct eng_stat){.ino = 1, .is_dir = true};
	return 0;
}

static int memory_next_data(struct eng_io *io, struct eng_file *file, uint64_t offset,
			    uint64_t *data, uint64_t *hole)
{
	(void)io;
	if (offset >= file->in->len)
		return -ENXIO;
	*data = offset;
	*hole = file->in->len;
	return 0;
}

static void memory_io_init(struct memory_io *m)
{
	static const struct eng_io_ops ops = {
		.open = memory_open,
		.close = memory_close,
		.pread = memory_pread,
		.fstat = memory_fstat,
		.stat = memory_stat,
		.next_data = memory_next_data,
	};

	memset(m, 0, sizeof(*m));
	m->io.ops = &ops;
}

/* Borrows all. */
static void memory_io_add(struct memory_io *m, const char *name, const void *bytes, size_t len)
{
	if (m->nfiles == MEMORY_FILES)
		abort();
	m->files[m->nfiles++] = (struct memory_file){.name = name, .bytes = bytes, .len = len};
}

#endif
