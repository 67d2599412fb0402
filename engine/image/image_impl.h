/* SPDX-License-Identifier: MIT */
/*
 * image_impl.h - shared by image*.c and convert.c: image files found, probed and opened as layers.
 * Synchronous calls; any thread, an object by one at a time.
 */
#ifndef ENGINE_IMAGE_IMPL_H
#define ENGINE_IMAGE_IMPL_H

#include "engine/image/image.h"
#include "engine/layer/layer.h"

#define ENG_SIDECAR_SUFFIX ".vmr"

/* The directory that holds @path ("." when it names none); free(). */
char *eng_path_dir(const char *path);
/* Makes the name @path durable. */
int eng_path_sync_dir(struct eng_io *io, const char *path);

/*
 * The sidecar of the raw or qcow2 file @base: "BASE.vmr", or as a store names it "X.vmr" of "X.raw". 0
 * with its header and *@path (free()); -ENOENT: it has none.
 */
int eng_sidecar_find(struct eng_io *io, const char *base, struct fmt_error *err,
		     struct fmt_header *hdr, char **path);
/* SC-3: @base still is the file that its FROZEN sidecar describes, by length and time. */
int eng_sidecar_check(struct eng_io *io, const char *base, const struct fmt_header *hdr,
		      struct fmt_error *err);

/* Where parents are looked for: the directory of @path, then @base_dir (NULL: none). */
struct eng_finder;
int eng_finder_create(struct eng_io *io, const char *path, const char *base_dir,
		      struct eng_finder **ret);
void eng_finder_destroy(struct eng_finder *f); /* NULL is fine */

/* Opens @path itself, as @format ("raw", "qcow2", "vmo"). */
int eng_finder_open(struct eng_finder *f, const char *path, const char *format, bool writable,
		    struct fmt_error *err, struct eng_layer **ret);
/* Opens the parent of @child, which has one, for reading: -ENOENT names who misses whom. */
int eng_finder_open_parent(struct eng_finder *f, const struct eng_layer *child,
			   struct fmt_error *err, struct eng_layer **ret);
/* All layers under @path, itself included, base first; free() the array, put the layers. */
int eng_finder_open_chain(struct eng_finder *f, const char *path, const char *format, bool writable,
			  struct fmt_error *err, struct eng_layer ***layers, uint32_t *count);

/*
 * The one file that a read-only image is, raw or qcow2, with nothing above: any thread may read it, as
 * long as the image is open. NULL: there are overlays, or it may change.
 */
const struct eng_layer *eng_image_base(const struct eng_image *image);

#endif
