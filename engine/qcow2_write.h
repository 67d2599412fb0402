/* SPDX-License-Identifier: MIT */
/*
 * qcow2_write.h - writes a disk's content, however it is read, into a new qcow2 image
 * (spec/qcow2.md, "Writing"): reads, compression and writes run on threads of their own, so all
 * processors compress.
 */
#ifndef ENGINE_QCOW2_WRITE_H
#define ENGINE_QCOW2_WRITE_H

#include "engine/image.h"
#include "engine/pace.h"

/* What is copied. */
struct eng_qcow2_source {
	uint64_t size; /* bytes; the image gets whole sectors */
	/*
	 * The state at @offset, and for how long (ret->start, length, state). With a backing file,
	 * HOLE is what the image leaves to it. The thread that called eng_qcow2_write().
	 */
	int (*extent)(void *arg, uint64_t offset, struct eng_extent *ret, struct fmt_error *err);
	/* The disk's content, holes and zeros too. Several threads at once. */
	int (*read)(void *arg, void *buf, size_t len, uint64_t offset, struct fmt_error *err);
	void *arg;
};

struct eng_qcow2_target {
	const char *path;           /* must not be there */
	uint32_t cluster_bits;      /* 0: 16 */
	bool compress;              /* Q2W-7 */
	const char *backing;        /* bare file name, or NULL */
	const char *backing_format; /* with @backing */
};

/*
 * Makes target->path, durable; its directory is not synced. @pace counts the bytes read; its total is
 * source->size. On failure, -ECANCELED included, the file is removed.
 */
int eng_qcow2_write(struct eng_io *io, const struct eng_qcow2_target *target,
		    const struct eng_qcow2_source *source, struct eng_pace *pace,
		    struct fmt_error *err);

#endif
