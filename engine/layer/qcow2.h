/* SPDX-License-Identifier: MIT */
/*
 * qcow2.h - a qcow2 image with its backing chain, read in place and never written (spec/qcow2.md).
 *
 * After eng_qcow2_open() every call may be made from any thread, by several at once; memory is
 * bounded (about 1 MiB of tables, and four inflated clusters, for the whole chain). The files must
 * not change while they are open.
 */
#ifndef ENGINE_QCOW2_H
#define ENGINE_QCOW2_H

#include <stddef.h>
#include <stdint.h>

#include "format/error.h"
#include "engine/io/io.h"

struct eng_qcow2;

enum { ENG_QCOW2_MAX_DEPTH = 256 }; /* files in a chain, the image included */

enum eng_qcow2_state {
	ENG_QCOW2_DATA,
	ENG_QCOW2_ZERO, /* reads as zeros, and some file of the chain says so */
	ENG_QCOW2_HOLE, /* reads as zeros: no file of the chain holds anything */
};

/* One file of the chain; the strings live as long as the image is open. */
struct eng_qcow2_info {
	const char *path;           /* as opened */
	const char *format;         /* "qcow2" or "raw" */
	const char *backing;        /* name as stored, "" without one */
	const char *backing_format; /* as stored, "" when not recorded */
	uint64_t size;              /* bytes the guest sees */
	uint32_t version;           /* 2 or 3; 0 for raw */
	uint32_t cluster_size;      /* bytes; 0 for raw */
	uint32_t snapshots;         /* internal ones, ignored */
	struct eng_stat stat;       /* when it was opened */
	char features[128];         /* "dirty, extended-l2", "none" */
};

/*
 * Opens @path and its backing files (qcow2 or raw), which must lie in the directory of the image
 * that names them or in one of @allowed_dirs, or below (NULL with @ndirs 0). *@err (NULL is fine)
 * is filled on failure. -EINVAL: @path is not qcow2; -EUCLEAN: broken or truncated; -ENOTSUP: a
 * feature we refuse, named; -EACCES: a backing file outside; -ELOOP: a loop; -E2BIG: too deep.
 */
int eng_qcow2_open(struct eng_io *io, const char *path, const char *const *allowed_dirs,
		   size_t ndirs, struct fmt_error *err, struct eng_qcow2 **ret);
/*
 * @path, which is no symbolic link, and none of its backing files: what it leaves to them is a HOLE, and
 * reads as zeros.
 */
int eng_qcow2_open_alone(struct eng_io *io, const char *path, struct fmt_error *err,
			 struct eng_qcow2 **ret);
void eng_qcow2_close(struct eng_qcow2 *q); /* NULL is fine */

uint64_t eng_qcow2_size(const struct eng_qcow2 *q); /* bytes */
uint32_t eng_qcow2_depth(
	const struct eng_qcow2 *q); /* files in the chain, 1 without a backing file */
/* @depth: 0 the image itself, 1 its backing file, ...; below eng_qcow2_depth(). */
void eng_qcow2_info(const struct eng_qcow2 *q, uint32_t depth, struct eng_qcow2_info *ret);

/* Any range inside the image: -EINVAL outside. 0, or a negative errno with @buf in any state. */
int eng_qcow2_read(struct eng_qcow2 *q, void *buf, size_t len, uint64_t offset,
		   struct fmt_error *err);

/*
 * The state at @offset (below the size) and a *@len, at least 1, for which it holds; the range that
 * follows may be in the same state. *@depth (NULL is fine): the file that decided, 0 the image itself;
 * for a HOLE the lowest.
 */
int eng_qcow2_extent(struct eng_qcow2 *q, uint64_t offset, struct fmt_error *err, uint64_t *len,
		     enum eng_qcow2_state *state, uint32_t *depth);

#endif
