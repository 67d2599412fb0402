/* SPDX-License-Identifier: MIT */
/*
 * image_info.c - what an image and those beneath it are, from their headers alone. Any thread.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/image/image_impl.h"
#include "engine/layer/qcow2.h"

typedef void each_info(void *arg, const struct eng_image_info *info);

/* The file with the disk's bytes: of a base its own, not the sidecar. */
static const char *data_path(const struct eng_layer *layer)
{
	return layer->data_path ? layer->data_path : layer->path;
}

static const char *state_name(uint32_t state)
{
	return state == FMT_STATE_ACTIVE   ? "active"
	       : state == FMT_STATE_FROZEN ? "frozen"
					   : "sealed";
}

static void tell_qcow2(const struct eng_layer *layer, uint32_t depth, bool chain, each_info *each,
		       void *arg)
{
	uint32_t files = eng_qcow2_depth(layer->qcow2);
	struct eng_qcow2_info q, below;

	for (uint32_t i = 0; i < (chain ? files : 1); i++) {
		struct eng_image_info info = {.depth = depth + i};

		eng_qcow2_info(layer->qcow2, i, &q);
		info.filename = q.path;
		info.format = q.format;
		info.virtual_size = q.size;
		info.allocated = q.stat.allocated;
		info.block_size = q.cluster_size;
		if (i + 1 < files) {
			eng_qcow2_info(layer->qcow2, i + 1, &below);
			info.backing = below.path;
		}
		each(arg, &info);
	}
}

static int tell(struct eng_io *io, const struct eng_layer *layer, const struct eng_layer *parent,
		uint32_t depth, bool chain, each_info *each, void *arg, struct fmt_error *err)
{
	struct eng_image_info info = {
		.filename = data_path(layer),
		.format = "raw",
		.backing = parent ? data_path(parent) : NULL,
		.virtual_size = atomic_load(&layer->size),
		.depth = depth,
	};
	struct eng_stat st;
	int r;

	if (layer->kind == FMT_KIND_QCOW2) {
		tell_qcow2(layer, depth, chain, each, arg);
		return 0;
	}
	r = eng_io_stat(io, info.filename, &st);
	if (r < 0)
		return fmt_fail(err, r, "%s: %s", info.filename, strerror(-r));
	info.allocated = st.allocated;
	if (layer->kind == FMT_KIND_OVERLAY) {
		info.format = "vmo";
		info.block_size = 1u << layer->block_bits;
		info.layer = layer->hdr.layer_id;
		info.parent = layer->hdr.parent_id;
		info.snapshot = layer->hdr.snapshot_id;
		info.state = state_name(layer->hdr.state);
	}
	each(arg, &info);
	return 0;
}

/* Tells of @layer (taken) and, with @chain, of all beneath. */
static int tell_all(struct eng_finder *f, struct eng_io *io, struct eng_layer *layer, bool chain,
		    each_info *each, void *arg, struct fmt_error *err)
{
	int r = 0;

	for (uint32_t depth = 0; layer && r == 0; depth++) {
		struct eng_layer *parent = NULL;

		if (!fmt_uuid_is_none(&layer->hdr.parent_id)) {
			r = eng_finder_open_parent(f, layer, err, &parent);
			if (!chain) /* a missing parent is no obstacle to what the image is */
				r = 0;
		}
		if (r == 0)
			r = tell(io, layer, parent, depth, chain, each, arg, err);
		eng_layer_put(layer);
		layer = parent;
		if (!chain)
			break;
	}
	eng_layer_put(layer);
	return r;
}

int eng_image_info(struct eng_io *io, const char *path, const char *base_dir, bool chain,
		   void (*each)(void *arg, const struct eng_image_info *info), void *arg,
		   struct fmt_error *err)
{
	struct eng_finder *finder = NULL;
	struct eng_layer *layer = NULL;
	const char *format = NULL;
	int r;

	if (err)
		err->text[0] = 0;
	r = eng_image_probe(io, path, &format, err);
	if (r == 0)
		r = eng_finder_create(io, path, base_dir, &finder);
	if (r == 0)
		r = eng_finder_open(finder, path, format, false, err, &layer);
	if (r == 0)
		r = tell_all(finder, io, layer, chain, each, arg, err);
	if (r < 0 && err && !err->text[0])
		fmt_fail(err, r, "%s: %s", path, strerror(-r));
	eng_finder_destroy(finder);
	return r;
}
