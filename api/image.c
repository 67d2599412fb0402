/* SPDX-License-Identifier: MIT */
/*
 * image.c - image files without a store (IM-*), each on an I/O object of its own. Any thread: the
 * engine's image works on a thread of its own.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "api/describe.h"
#include "engine/image/compare.h"
#include "engine/image/image.h"

static_assert((int)VMIMG_EXTENT_DATA == (int)ENG_EXTENT_DATA &&
		      (int)VMIMG_EXTENT_ZERO == (int)ENG_EXTENT_ZERO &&
		      (int)VMIMG_EXTENT_HOLE == (int)ENG_EXTENT_HOLE,
	      "extent states");

struct vmimg_image {
	struct eng_io *io;
	struct eng_image *eng;
	char *path;
};

static int check_path(const char *what, const char *path, struct vmimg_error *err)
{
	return path && *path ? 0 : api_fail(err, -EINVAL, "image: no %s given", what);
}

static int check_format(const char *format, bool optional, bool qcow2, struct vmimg_error *err)
{
	if (!format && optional)
		return 0;
	if (format && (!strcmp(format, "raw") || !strcmp(format, "vmo") ||
		       (qcow2 && !strcmp(format, "qcow2"))))
		return 0;
	return api_fail(err, -EINVAL, "image: format is '%.40s', expected raw%s or vmo",
			format ? format : "", qcow2 ? ", qcow2" : "");
}

int vmimg_image_create(const char *path, const char *format, const char *base, uint64_t size,
		       struct vmimg_error *err)
{
	struct fmt_error why = {""};
	struct eng_io *io = NULL;
	int r = check_path("path", path, err);

	if (r == 0)
		r = check_format(format, false, false, err);
	if (r < 0)
		return r;
	if (base && strcmp(format, "vmo"))
		return api_fail(err, -EINVAL, "%s: a base beneath format raw, expected vmo", path);
	if (size % 512 || size > FMT_SIZE_MAX || (!size && !base))
		return api_fail(err, -EINVAL,
				"%s: size is %llu, expected a multiple of 512 from 512 to 2^53",
				path, (unsigned long long)size);
	r = eng_io_posix_create(&io);
	if (r == 0)
		r = eng_image_create(io, path, format, base, size, &why);
	eng_io_destroy(io);
	return r < 0 ? api_fail_why(err, r, &why, path) : 0;
}

static void image_destroy(struct vmimg_image *image)
{
	if (!image)
		return;
	eng_io_destroy(image->io);
	free(image->path);
	free(image);
}

int vmimg_image_open(const char *path, const char *base_dir, bool writable, struct vmimg_error *err,
		     struct vmimg_image **ret)
{
	struct fmt_error why = {""};
	struct vmimg_image *image = NULL;
	int r = check_path("path", path, err);

	if (r == 0 && !ret)
		r = api_fail(err, -EINVAL, "image %s: no result given", path);
	if (r < 0)
		return r;
	image = calloc(1, sizeof(*image));
	if (image)
		image->path = strdup(path);
	r = image && image->path ? eng_io_posix_create(&image->io) : -ENOMEM;
	if (r == 0)
		r = eng_image_open(image->io, path, base_dir, writable, &why, &image->eng);
	if (r < 0) {
		api_fail_why(err, r, &why, path);
		goto out;
	}
	*ret = image;
	image = NULL;
out:
	image_destroy(image);
	return r;
}

int vmimg_image_close(struct vmimg_image *image)
{
	int r;

	if (!image)
		return 0;
	r = eng_image_close(image->eng);
	image_destroy(image);
	return r;
}

uint64_t vmimg_image_size(struct vmimg_image *image)
{
	return image ? eng_image_size(image->eng) : 0;
}

static int check_range(struct vmimg_image *image, const void *buf, size_t length, uint64_t offset,
		       struct vmimg_error *err)
{
	uint64_t size = vmimg_image_size(image);

	if (!image || (!buf && length))
		return api_fail(err, -EINVAL, "image: no %s given", image ? "buffer" : "image");
	if (offset > size || length > size - offset)
		return api_fail(err, -EINVAL, "%s: %zu bytes at %llu, expected within its %llu",
				image->path, length, (unsigned long long)offset,
				(unsigned long long)size);
	return 0;
}

int vmimg_image_read(struct vmimg_image *image, void *buf, size_t length, uint64_t offset,
		     struct vmimg_error *err)
{
	struct fmt_error why = {""};
	int r = check_range(image, buf, length, offset, err);

	if (r < 0 || !length)
		return r;
	r = eng_image_read(image->eng, buf, length, offset, &why);
	return r < 0 ? api_fail_why(err, r, &why, image->path) : 0;
}

int vmimg_image_write(struct vmimg_image *image, const void *buf, size_t length, uint64_t offset,
		      struct vmimg_error *err)
{
	struct fmt_error why = {""};
	int r = check_range(image, buf, length, offset, err);

	if (r < 0 || !length)
		return r;
	r = eng_image_write(image->eng, buf, length, offset, &why);
	return r < 0 ? api_fail_why(err, r, &why, image->path) : 0;
}

int vmimg_image_flush(struct vmimg_image *image, struct vmimg_error *err)
{
	struct fmt_error why = {""};
	int r;

	if (!image)
		return api_fail(err, -EINVAL, "image: no image given");
	r = eng_image_flush(image->eng, &why);
	return r < 0 ? api_fail_why(err, r, &why, image->path) : 0;
}

int vmimg_image_extent(struct vmimg_image *image, uint64_t offset, struct vmimg_extent *ret,
		       struct vmimg_error *err)
{
	struct fmt_error why = {""};
	struct eng_extent extent;
	int r;

	if (!image || !ret)
		return api_fail(err, -EINVAL, "image: no %s given", image ? "result" : "image");
	if (offset >= vmimg_image_size(image))
		return api_fail(err, -EINVAL, "%s: extent at %llu, expected below %llu",
				image->path, (unsigned long long)offset,
				(unsigned long long)vmimg_image_size(image));
	r = eng_image_extent(image->eng, offset, &extent, &why);
	if (r < 0)
		return api_fail_why(err, r, &why, image->path);
	*ret = (struct vmimg_extent){
		.start = extent.start,
		.length = extent.length,
		.state = extent.state,
		.depth = extent.depth,
	};
	return 0;
}

/* --- info --- */

static void add_info(void *arg, const struct eng_image_info *i)
{
	json_t *doc = json_pack("{s:o, s:s, s:I, s:I, s:I}", "filename", api_json_path(i->filename),
				"format", i->format, "virtual_size", (json_int_t)i->virtual_size,
				"allocated", (json_int_t)i->allocated, "depth",
				(json_int_t)i->depth);

	if (i->block_size)
		json_object_set_new(doc, strcmp(i->format, "qcow2") ? "block_size" : "cluster_size",
				    json_integer(i->block_size));
	if (i->backing)
		json_object_set_new(doc, "backing_filename", api_json_path(i->backing));
	if (i->state) {
		json_object_set_new(doc, "state", json_string(i->state));
		json_object_set_new(doc, "layer_id", api_json_id(&i->layer));
		json_object_set_new(doc, "parent_id", api_json_id(&i->parent));
		json_object_set_new(doc, "snapshot_id", api_json_id(&i->snapshot));
	}
	json_array_append_new(arg, doc);
}

int vmimg_image_info(const char *path, const char *base_dir, bool chain, struct vmimg_error *err,
		     char **json)
{
	json_t *images = json_array();
	struct fmt_error why = {""};
	struct eng_io *io = NULL;
	char *text = NULL;
	int r = check_path(json ? "path" : "result", json ? path : NULL, err);

	if (r < 0)
		goto out;
	r = eng_io_posix_create(&io);
	if (r == 0)
		r = eng_image_info(io, path, base_dir, chain, add_info, images, &why);
	if (r == 0) {
		text = json_dumps(chain ? images : json_array_get(images, 0), JSON_COMPACT);
		r = text ? 0 : -ENOMEM;
	}
	if (r < 0)
		api_fail_why(err, r, &why, path);
	else
		*json = text;
out:
	eng_io_destroy(io);
	json_decref(images);
	return r;
}

/* --- convert --- */

/* Of the new image: what @how asks for and its format can do. */
static int check_convert(const struct vmimg_convert *how, struct vmimg_error *err)
{
	bool qcow2 = how->dst_format && !strcmp(how->dst_format, "qcow2");
	uint32_t size = how->cluster_size;
	int r = check_format(how->src_format, true, true, err);

	if (r == 0)
		r = check_format(how->dst_format, true, true, err);
	if (r < 0)
		return r;
	if (!qcow2 && (how->compressed || size))
		return api_fail(err, -EINVAL, "image: %s of format %s, expected qcow2",
				size ? "a cluster size" : "compression",
				how->dst_format ? how->dst_format : "raw");
	if (size && (size < 512 || size > 2u << 20 || size & (size - 1)))
		return api_fail(err, -EINVAL,
				"image: clusters of %u bytes, expected a power of two from 512 to "
				"2097152",
				size);
	return 0;
}

int vmimg_image_convert(const char *src, const char *dst, const struct vmimg_convert *how,
			struct vmimg_error *err)
{
	static const struct vmimg_convert defaults;
	struct fmt_error why = {""};
	struct eng_io *io = NULL;
	struct eng_convert eng;
	int r = check_path("source", src, err);

	how = how ? how : &defaults;
	if (r == 0)
		r = check_path("destination", dst, err);
	if (r == 0)
		r = check_convert(how, err);
	if (r < 0)
		return r;
	eng = (struct eng_convert){
		.src_format = how->src_format,
		.dst_format = how->dst_format,
		.compress = how->compressed,
		.cluster_bits = how->cluster_size ? (uint32_t)__builtin_ctz(how->cluster_size) : 0,
		.rate_limit = how->rate_limit,
		.progress = how->progress,
		.arg = how->arg,
	};
	r = eng_io_posix_create(&io);
	if (r == 0)
		r = eng_image_convert(io, src, dst, &eng, &why);
	eng_io_destroy(io);
	return r < 0 ? api_fail_why(err, r, &why, src) : 0;
}

/* --- compare --- */

static int compare_images(struct eng_io *io, struct eng_image *a, struct eng_image *b,
			  const struct vmimg_compare *how, struct fmt_error *why,
			  struct vmimg_comparison *ret)
{
	struct eng_source source_a = eng_image_source(a), source_b = eng_image_source(b);
	struct eng_progress progress = {
		.rate = how->rate_limit,
		.watch = how->progress,
		.watch_arg = how->arg,
	};
	struct eng_comparison result = {.first_difference = UINT64_MAX};
	bool sizes = source_a.size == source_b.size;
	int r = 0;

	if (sizes || !how->strict)
		r = eng_compare(io, &source_a, &source_b, &progress, why, &result);
	if (r == 0)
		*ret = (struct vmimg_comparison){
			.same = result.same,
			.first_difference = result.first_difference,
			.size_a = source_a.size,
			.size_b = source_b.size,
		};
	return r;
}

int vmimg_image_compare(const char *a, const char *b, const struct vmimg_compare *how,
			struct vmimg_error *err, struct vmimg_comparison *ret)
{
	static const struct vmimg_compare defaults;
	struct eng_image *image_a = NULL, *image_b = NULL;
	struct fmt_error why = {""};
	struct eng_io *io = NULL;
	int r = check_path("first image", a, err);

	how = how ? how : &defaults;
	if (r == 0)
		r = check_path(ret ? "second image" : "result", ret ? b : NULL, err);
	if (r == 0)
		r = check_format(how->format_a, true, true, err);
	if (r == 0)
		r = check_format(how->format_b, true, true, err);
	if (r < 0)
		return r;
	r = eng_io_posix_create(&io);
	if (r == 0)
		r = eng_image_open_as(io, a, how->format_a, how->base_dir, false, &why, &image_a);
	if (r == 0)
		r = eng_image_open_as(io, b, how->format_b, how->base_dir, false, &why, &image_b);
	if (r == 0)
		r = compare_images(io, image_a, image_b, how, &why, ret);
	eng_image_close(image_a);
	eng_image_close(image_b);
	eng_io_destroy(io);
	return r < 0 ? api_fail_why(err, r, &why, a) : 0;
}
