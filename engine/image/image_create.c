/* SPDX-License-Identifier: MIT */
/*
 * image_create.c - new images: raw ones, and overlays, alone or on a base (IM-2). A raw or qcow2 base
 * gets a sidecar beside it, which gives it the id that its overlays name, and records its length and
 * time: from then on it must not change. Any thread.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/image/image_impl.h"

static void new_id(struct eng_io *io, struct fmt_uuid *ret)
{
	uint8_t random[16];

	eng_io_random(io, random, sizeof(random));
	fmt_uuid_from_random(random, ret);
}

static int create_raw(struct eng_io *io, const char *path, uint64_t size, struct fmt_error *err)
{
	struct eng_file *file = NULL;
	int r = eng_io_open(io, path, ENG_OPEN_WRITE | ENG_OPEN_CREATE | ENG_OPEN_EXCL, &file);

	if (r < 0)
		return fmt_fail(err, r, "%s: %s", path, strerror(-r));
	r = eng_io_truncate(io, file, size);
	if (r == 0)
		r = eng_io_fdatasync(io, file);
	if (r == 0)
		r = eng_path_sync_dir(io, path);
	eng_io_close(io, file);
	if (r < 0)
		eng_io_unlink(io, path);
	return r < 0 ? fmt_fail(err, r, "%s: cannot make a file of %" PRIu64 " bytes: %s", path,
				size, strerror(-r))
		     : 0;
}

/* --- the base --- */

/* What stands under an overlay is durable first, its times too (SC-3). */
static int sync_base(struct eng_io *io, const char *base, struct eng_stat *st,
		     struct fmt_error *err)
{
	struct eng_file *file = NULL;
	int r = eng_io_open(io, base, 0, &file);

	if (r == 0)
		r = eng_io_fsync(io, file);
	if (r == 0)
		r = eng_io_fstat(io, file, st);
	eng_io_close(io, file);
	return r < 0 ? fmt_fail(err, r, "%s: %s", base, strerror(-r)) : 0;
}

/* Gives a raw or qcow2 file its sidecar. */
static int make_sidecar(struct eng_io *io, const char *base, uint32_t kind, uint64_t size,
			const struct eng_stat *st, struct fmt_error *err, struct fmt_header *ret)
{
	struct fmt_header hdr = {
		.kind = kind,
		.state = FMT_STATE_FROZEN,
		.block_bits = FMT_BLOCK_BITS_MIN,
		.seq = 1,
		.size = size,
		.created_ns = eng_io_wall_ns(io),
		.base_bytes = st->size,
		.base_mtime_ns = st->mtime_ns,
	};
	char *path;
	int r;

	new_id(io, &hdr.layer_id);
	new_id(io, &hdr.disk_id);
	eng_io_random(io, &hdr.salt, sizeof(hdr.salt));
	if (asprintf(&path, "%s%s", base, ENG_SIDECAR_SUFFIX) < 0)
		return -ENOMEM;
	r = eng_sidecar_create(io, path, &hdr, err);
	if (r == 0) {
		r = eng_path_sync_dir(io, path);
		if (r < 0) {
			eng_io_unlink(io, path);
			fmt_fail(err, r, "%s: cannot make it durable: %s", path, strerror(-r));
		}
	}
	free(path);
	if (r == 0)
		*ret = hdr;
	return r;
}

static int take_bare_base(struct eng_io *io, const char *base, uint32_t kind, uint64_t size,
			  struct fmt_error *err, struct fmt_header *ret)
{
	struct fmt_header hdr;
	struct eng_stat st;
	char *path = NULL;
	int r = sync_base(io, base, &st, err);

	if (r == 0)
		r = eng_sidecar_find(io, base, err, &hdr, &path);
	if (r == -ENOENT)
		return make_sidecar(io, base, kind, size, &st, err, ret);
	if (r == 0 && hdr.kind != kind)
		r = fmt_fail(err, -EUCLEAN, "%s: of kind %u, expected %u (SC-1)", path, hdr.kind,
			     kind);
	if (r == 0)
		r = eng_sidecar_check(io, base, &hdr, err);
	free(path);
	if (r == 0)
		*ret = hdr;
	return r;
}

static int check_size(const char *path, uint64_t size, uint64_t base_size, struct fmt_error *err)
{
	if (size == 0 || size % 512 || size > FMT_SIZE_MAX)
		return fmt_fail(err, -EINVAL,
				"%s: size %" PRIu64 ", expected a multiple of 512, at most %llu",
				path, size, (unsigned long long)FMT_SIZE_MAX);
	if (size < base_size)
		return fmt_fail(err, -EINVAL,
				"%s: size %" PRIu64 ", smaller than its base of %" PRIu64, path,
				size, base_size);
	return 0;
}

/* The header that the overlay @path of *@size bytes (0: the base's) on @base names as its parent's. */
static int take_base(struct eng_io *io, const char *path, const char *base, uint64_t *size,
		     struct fmt_error *err, struct fmt_header *ret)
{
	struct eng_finder *finder = NULL;
	struct eng_layer *layer = NULL;
	const char *format = NULL;
	uint64_t base_size;
	struct eng_stat st;
	int r = eng_image_probe(io, base, &format, err);

	if (r == 0)
		r = eng_finder_create(io, base, NULL, &finder);
	if (r == 0)
		r = eng_finder_open(finder, base, format, false, err, &layer);
	if (r < 0)
		goto out;
	base_size = (atomic_load(&layer->size) + 511) / 512 * 512;
	*size = *size ? *size : base_size;
	r = base_size ? check_size(path, *size, base_size, err)
		      : fmt_fail(err, -EINVAL, "%s: empty, no base", base);
	if (r < 0)
		goto out;
	if (layer->kind != FMT_KIND_OVERLAY) {
		r = take_bare_base(io, base, layer->kind, base_size, err, ret);
		goto out;
	}
	if (!fmt_uuid_is_none(&layer->hdr.store_id) && layer->hdr.state == FMT_STATE_ACTIVE)
		r = fmt_fail(err, -EBUSY, "%s: the head of a store's disk, not a base", base);
	if (r == 0)
		r = sync_base(io, base, &st, err);
	if (r == 0)
		*ret = layer->hdr;
out:
	eng_layer_put(layer);
	eng_finder_destroy(finder);
	return r;
}

/* --- the overlay --- */

static void set_parent_hash(struct fmt_header *hdr, void *arg)
{
	memcpy(hdr->parent_hash, arg, sizeof(hdr->parent_hash));
}

static int create_overlay(struct eng_io *io, const char *path, struct fmt_header *base,
			  uint64_t size, struct fmt_error *err)
{
	struct eng_layer_spec spec = {
		.path = path,
		.size = size,
		.block_bits = FMT_BLOCK_BITS_MIN,
	};
	struct eng_layer *layer = NULL;
	int r;

	new_id(io, &spec.layer);
	if (base) {
		spec.disk = base->disk_id;
		spec.parent = base->layer_id;
		spec.generation = base->generation + 1;
		if (base->kind == FMT_KIND_OVERLAY)
			spec.block_bits = base->block_bits;
	} else {
		new_id(io, &spec.disk);
	}
	r = eng_layer_create(io, &spec, err, &layer);
	if (r < 0)
		return r;
	if (base && base->state == FMT_STATE_SEALED) /* SL-4 */
		r = eng_layer_update(layer, set_parent_hash, base->seal_hash, err);
	eng_layer_put(layer);
	if (r == 0) {
		r = eng_path_sync_dir(io, path);
		if (r < 0)
			fmt_fail(err, r, "%s: cannot make it durable: %s", path, strerror(-r));
	}
	if (r < 0)
		eng_io_unlink(io, path);
	return r;
}

static int create_vmo(struct eng_io *io, const char *path, const char *base, uint64_t size,
		      struct fmt_error *err)
{
	struct fmt_header hdr;
	int r = base ? take_base(io, path, base, &size, err, &hdr) : check_size(path, size, 0, err);

	return r < 0 ? r : create_overlay(io, path, base ? &hdr : NULL, size, err);
}

int eng_image_create(struct eng_io *io, const char *path, const char *format, const char *base,
		     uint64_t size, struct fmt_error *err)
{
	struct eng_stat st;
	int r;

	if (eng_io_stat(io, path, &st) == 0) /* before a base gets a sidecar for nothing */
		return fmt_fail(err, -EEXIST, "%s: exists already", path);
	if (err)
		err->text[0] = 0;
	if (!strcmp(format, "vmo"))
		r = create_vmo(io, path, base, size, err);
	else if (strcmp(format, "raw"))
		r = fmt_fail(err, -EINVAL, "%s: format \"%s\", expected raw or vmo", path, format);
	else if (base)
		r = fmt_fail(err, -EINVAL, "%s: a raw image has no base", path);
	else if (size == 0 || size > FMT_SIZE_MAX)
		r = fmt_fail(err, -EINVAL, "%s: size %" PRIu64 ", expected 1 to %llu", path, size,
			     (unsigned long long)FMT_SIZE_MAX);
	else
		r = create_raw(io, path, size, err);
	if (r < 0 && err && !err->text[0])
		fmt_fail(err, r, "%s: cannot create: %s", path, strerror(-r));
	return r;
}
