/* SPDX-License-Identifier: MIT */
/*
 * qcow2_write.h - writes a disk's content, however it is read, into a new qcow2 image
 * (spec/qcow2.md, "Writing"): reads, compression and writes run on threads of their own, so all
 * processors compress.
 */
#ifndef ENGINE_QCOW2_WRITE_H
#define ENGINE_QCOW2_WRITE_H

#include "engine/image/source.h"
#include "engine/io/progress.h"

struct eng_qcow2_target {
	const char *path;           /* must not be there */
	const char *name;           /* for messages; NULL: @path */
	uint32_t cluster_bits;      /* 0: 16 */
	bool compress;              /* Q2W-7 */
	const char *backing;        /* bare file name, or NULL */
	const char *backing_format; /* with @backing */
};

/*
 * Makes target->path, durable; its directory is not synced. With a backing file, what @source calls a
 * hole is left to it; the image gets whole sectors. On failure, -ECANCELED included, the file is removed.
 * The progress gets source->size bytes done, its limit counts those read, *@read (or NULL) is these.
 */
int eng_qcow2_write(struct eng_io *io, const struct eng_qcow2_target *target,
		    const struct eng_source *source, struct eng_progress *progress,
		    struct fmt_error *err, uint64_t *read);

#endif
