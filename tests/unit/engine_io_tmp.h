/* SPDX-License-Identifier: MIT */
/* engine_io_tmp.h - what the tests of the I/O seam share: a directory of their own, whole files. */
#ifndef TESTS_UNIT_ENGINE_IO_TMP_H
#define TESTS_UNIT_ENGINE_IO_TMP_H

#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/io/io.h"
#include "engine/io/io_record.h"

#define FRESH (ENG_OPEN_WRITE | ENG_OPEN_CREATE | ENG_OPEN_EXCL)

struct tmp {
	char dir[64];
	struct eng_io *io;
	char *paths[8];
	unsigned next;
};

static inline void tmp_init(struct tmp *tmp, const char *where)
{
	memset(tmp, 0, sizeof(*tmp));
	snprintf(tmp->dir, sizeof(tmp->dir), "%s/vmimg-io-XXXXXX", where);
	cr_assert(mkdtemp(tmp->dir) != NULL);
	cr_assert_eq(eng_io_posix_create(&tmp->io), 0);
}

static inline void tmp_fini(struct tmp *tmp)
{
	unsigned i;

	for (i = 0; i < 8; i++)
		free(tmp->paths[i]);
	eng_io_destroy(tmp->io);
	cr_assert_eq(eng_record_remove_tree(tmp->dir), 0);
}

/* A path in the directory; valid for the next seven calls. */
static inline const char *tmp_path(struct tmp *tmp, const char *name)
{
	char **path = &tmp->paths[tmp->next++ % 8];

	free(*path);
	cr_assert_gt(asprintf(path, "%s/%s", tmp->dir, name), 0);
	return *path;
}

static inline struct eng_file *tmp_open(struct tmp *tmp, struct eng_io *io, const char *name,
					unsigned flags)
{
	struct eng_file *file = NULL;

	cr_assert_eq(eng_io_open(io, tmp_path(tmp, name), flags, &file), 0, "open %s", name);
	return file;
}

/* Reads a whole file past any wrapper; -1 when there is none. */
static inline long tmp_read(const char *path, char *buf, size_t room)
{
	FILE *f = fopen(path, "re");
	size_t n;

	if (!f)
		return -1;
	n = fread(buf, 1, room, f);
	fclose(f);
	return (long)n;
}

#endif
