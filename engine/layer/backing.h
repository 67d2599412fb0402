/* SPDX-License-Identifier: MIT */
/*
 * backing.h - finds the file that an image names as its base, without trusting the name: only in the
 * image's own directory and in allow-listed ones, never through a symbolic link (spec/qcow2.md,
 * Q2-30 on). Any thread.
 */
#ifndef ENGINE_BACKING_H
#define ENGINE_BACKING_H

#include <stddef.h>

#include "format/error.h"
#include "engine/io/io.h"

/*
 * @image: path of the image that holds the name (trusted: the caller's, or a result of this call).
 * @name: as stored in the image. @allowed: further directories, trusted; NULL with @nallowed 0.
 * Opens the file read-only; *@path (free()) is the name it was opened by, *@st its identity.
 * -EACCES: outside the directories; -ENOTSUP: a protocol or json: name; -ELOOP: a symbolic link;
 * -EINVAL: not a regular file; -ENOENT and the like.
 */
int eng_backing_open(struct eng_io *io, const char *image, const char *name,
		     const char *const *allowed, size_t nallowed, struct fmt_error *err,
		     struct eng_file **file, struct eng_stat *st, char **path);

#endif
