/* SPDX-License-Identifier: MIT */
/*
 * image.h - image files outside a store: a chain put together from files (parents found by id, in the
 * file's own directory or one that the caller names), read, written, copied (spec/api.md IM-*).
 *
 * An open image has a thread of its own that works on it as a queue does; any thread may call.
 */
#ifndef ENGINE_IMAGE_H
#define ENGINE_IMAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/io/io.h"
#include "engine/io/progress.h"
#include "engine/disk/queue.h"
#include "format/error.h"
#include "format/uuid.h"

struct eng_image;

struct eng_extent {
	uint64_t start, length; /* bytes */
	uint8_t state;          /* enum eng_extent_state (queue.h) */
	uint32_t depth;         /* layers below the top */
};

/* One file of a chain; strings live for the call. */
struct eng_image_info {
	const char *filename;
	const char *format;                      /* "raw", "qcow2", "vmo" */
	const char *backing;                     /* file name of the parent as found, or NULL */
	uint64_t virtual_size, allocated;        /* bytes */
	uint32_t block_size;                     /* vmo: block; qcow2: cluster; raw: 0 */
	struct fmt_uuid layer, parent, snapshot; /* vmo; none else */
	const char *state;                       /* vmo: "active", "frozen", "sealed"; else NULL */
	uint32_t depth;                          /* 0: the file itself */
};

/*
 * @format: "raw" or "vmo". @base: raw, qcow2 or vmo beneath a new vmo, or NULL. @size 0: its. A raw
 * or qcow2 base gets a sidecar, BASE.vmr, by which it is found, and must not change any more.
 */
int eng_image_create(struct eng_io *io, const char *path, const char *format, const char *base,
		     uint64_t size, struct fmt_error *err);
int eng_image_open(struct eng_io *io, const char *path, const char *base_dir, bool writable,
		   struct fmt_error *err, struct eng_image **ret);
int eng_image_close(struct eng_image *image); /* flushes; NULL is fine */
uint64_t eng_image_size(const struct eng_image *image);
int eng_image_read(struct eng_image *image, void *buf, size_t len, uint64_t offset,
		   struct fmt_error *err);
int eng_image_write(struct eng_image *image, const void *buf, size_t len, uint64_t offset,
		    struct fmt_error *err);
int eng_image_flush(struct eng_image *image, struct fmt_error *err);
int eng_image_extent(struct eng_image *image, uint64_t offset, struct eng_extent *ret,
		     struct fmt_error *err);
int eng_image_info(struct eng_io *io, const char *path, const char *base_dir, bool chain,
		   void (*each)(void *arg, const struct eng_image_info *info), void *arg,
		   struct fmt_error *err);

struct eng_convert {
	const char *src_format;       /* "raw", "qcow2", "vmo"; NULL: probed */
	const char *dst_format;       /* the same; NULL: raw */
	bool compress;                /* qcow2: deflated clusters */
	uint32_t cluster_bits;        /* qcow2: 9..21; 0: 16 */
	uint64_t rate_limit;          /* bytes a second, 0 none */
	eng_progress_watch *progress; /* or NULL, on the calling thread */
	void *arg;
};
/*
 * Copies @src to the new file @dst, skipping holes and zeros. It gets its name when it is whole and
 * durable, and nothing is left of it on failure (IM-8); a vmo is sealed, and so read-only.
 */
int eng_image_convert(struct eng_io *io, const char *src, const char *dst,
		      const struct eng_convert *how, struct fmt_error *err);
/* eng_image_open() of a known format; NULL: probed. */
int eng_image_open_as(struct eng_io *io, const char *path, const char *format, const char *base_dir,
		      bool writable, struct fmt_error *err, struct eng_image **ret);
/* "qcow2", "vmo" or "raw", from the first bytes. */
int eng_image_probe(struct eng_io *io, const char *path, const char **ret, struct fmt_error *err);

#endif
