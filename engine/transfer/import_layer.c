/* SPDX-License-Identifier: MIT */
/*
 * import_layer.c - one layer written from front to back. Space is allocated ahead, so that a full disk is
 * met before the data is; the map is logged and the index written at the end, as for any layer.
 *
 * Memory: 8 bytes a block for checksums, up to CSUMS_MAX of them; a larger layer is read again by its
 * seal instead.
 */
#include "engine/transfer/import_layer.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/layer/index.h"

#define AHEAD     (64u << 20) /* bytes allocated at once */
#define CSUMS_MAX (64u << 20) /* 512 MiB of them: 256 GiB of 4 KiB blocks */

struct eng_import_layer {
	struct eng_store *store;
	struct eng_import_layer_spec spec;
	char *path;
	struct eng_layer *layer;
	struct eng_file *out;  /* its own descriptor, buffered */
	uint64_t slots, ready; /* given out; with space */
	uint64_t *csums;
	size_t cap;
	bool forgotten; /* more checksums than are kept */
	bool finished;
};

int eng_import_layer_create(struct eng_store *store, const struct eng_import_layer_spec *spec,
			    struct fmt_error *err, struct eng_import_layer **ret)
{
	struct eng_import_layer *l = calloc(1, sizeof(*l));
	struct eng_layer_spec how = {
		.store = store->id,
		.disk = spec->disk,
		.layer = spec->layer,
		.parent = spec->parent,
		.generation = spec->generation,
		.size = spec->size,
		.block_bits = spec->block_bits,
		.direct = store->direct,
	};
	int r = -ENOMEM;

	if (!l)
		return fmt_fail(err, r, "out of memory");
	l->store = store;
	l->spec = *spec;
	l->path = eng_store_layer_path(store, &spec->layer, "vmo");
	how.path = l->path;
	if (l->path)
		r = eng_layer_create(store->io, &how, err, &l->layer);
	if (r == 0) {
		r = eng_io_open(store->io, l->path, ENG_OPEN_WRITE | ENG_OPEN_NOFOLLOW, &l->out);
		if (r < 0)
			fmt_fail(err, r, "%s: %s", l->path, strerror(-r));
	}
	if (r == 0)
		*ret = l;
	else
		eng_import_layer_destroy(l);
	return r;
}

void eng_import_layer_destroy(struct eng_import_layer *l)
{
	if (!l)
		return;
	eng_io_close(l->store->io, l->out);
	if (l->layer && !l->finished)
		eng_io_unlink(l->store->io, l->path);
	eng_layer_put(l->layer);
	free(l->path);
	free(l->csums);
	free(l);
}

const char *eng_import_layer_path(const struct eng_import_layer *l)
{
	return l->path;
}

static int make_space(struct eng_import_layer *l, uint32_t count, struct fmt_error *err)
{
	uint64_t more = AHEAD >> l->spec.block_bits;
	int r = 0;

	if (l->slots + count >= FMT_SLOT_NONE)
		return fmt_fail(err, -EFBIG, "%s: more blocks than a layer can hold", l->path);
	while (r == 0 && l->ready < l->slots + count) {
		r = eng_io_allocate(l->store->io, l->out,
				    l->layer->data_offset + (l->ready << l->spec.block_bits),
				    more << l->spec.block_bits);
		if (r == -EOPNOTSUPP)
			r = 0;
		l->ready += r == 0 ? more : 0;
	}
	return r < 0 ? fmt_fail(err, r, "%s: no space for the data: %s", l->path, strerror(-r)) : 0;
}

static int keep_csums(struct eng_import_layer *l, const uint64_t *csums, uint32_t count)
{
	if (l->forgotten)
		return 0;
	if (l->slots + count > CSUMS_MAX) {
		free(l->csums);
		l->csums = NULL;
		l->cap = 0;
		l->forgotten = true;
		return 0;
	}
	if (l->slots + count > l->cap) {
		size_t cap = l->cap ? 2 * l->cap : 4096;
		uint64_t *p = realloc(l->csums, cap * sizeof(*p));

		if (!p)
			return -ENOMEM;
		l->csums = p;
		l->cap = cap;
	}
	memcpy(l->csums + l->slots, csums, count * sizeof(*csums));
	return 0;
}

int eng_import_layer_add(struct eng_import_layer *l, uint64_t block, uint32_t count,
			 const uint64_t *csums, struct fmt_error *err, uint64_t *offset)
{
	struct fmt_run run = {.block = block, .count = count, .kind = FMT_RUN_DATA};
	int r = make_space(l, count, err);

	if (r < 0)
		return r;
	r = keep_csums(l, csums, count);
	run.slot = (uint32_t)l->slots;
	if (r == 0)
		r = eng_layer_add_pending(l->layer, &run, 0);
	if (r < 0)
		return fmt_fail(err, r, "%s: out of memory", l->path);
	*offset = eng_layer_slot_offset(l->layer, run.slot);
	l->slots += count;
	return 0;
}

int eng_import_layer_zero(struct eng_import_layer *l, uint64_t block, uint64_t count,
			  struct fmt_error *err)
{
	int r = 0;

	if (fmt_uuid_is_none(&l->spec.parent)) /* FD-3: nothing would show */
		return 0;
	while (r == 0 && count) {
		uint32_t n = count < FMT_RUN_COUNT_MAX ? (uint32_t)count : FMT_RUN_COUNT_MAX;
		struct fmt_run run = {
			.block = block,
			.slot = FMT_SLOT_NONE,
			.count = n,
			.kind = FMT_RUN_ZERO,
		};

		r = eng_layer_add_pending(l->layer, &run, 0);
		block += n;
		count -= n;
	}
	return r < 0 ? fmt_fail(err, r, "%s: out of memory", l->path) : 0;
}

int eng_import_layer_write(struct eng_import_layer *l, const void *data, size_t len,
			   uint64_t offset, struct fmt_error *err)
{
	int r = eng_io_pwrite(l->store->io, l->out, data, len, offset);

	return r < 0 ? fmt_fail(err, r, "%s: cannot write %zu bytes: %s", l->path, len,
				strerror(-r))
		     : 0;
}

static void edit_frozen(struct fmt_header *hdr, void *arg)
{
	const struct eng_import_layer *l = arg;

	hdr->state = FMT_STATE_FROZEN;
	hdr->log_seq = l->layer->log.seq;
	hdr->snapshot_id = l->spec.snapshot;
	hdr->snapshot_members = l->spec.members;
	hdr->snapshot_index = l->spec.index;
}

/* Data durable, then the log that names it, then FROZEN, then the seal: as for any layer. */
int eng_import_layer_finish(struct eng_import_layer *l, bool (*stop)(void *arg), void *arg,
			    struct fmt_error *err)
{
	struct eng_layer *layer = l->layer;
	int r = eng_io_fdatasync(l->store->io, l->out);

	layer->next_slot = (uint32_t)l->slots;
	if (layer->slots_ready < layer->next_slot)
		layer->slots_ready = layer->next_slot;
	if (r == 0)
		r = eng_layer_harden_sync(layer);
	if (r < 0)
		return fmt_fail(err, r, "%s: cannot make it durable: %s", l->path, strerror(-r));
	atomic_store(&layer->harden, ENG_HARDEN_DONE);
	r = eng_layer_update(layer, edit_frozen, l, err);
	if (r == 0 && l->forgotten)
		r = eng_layer_seal(layer, l->spec.parent_hash, 0, stop, arg, err);
	else if (r == 0)
		r = eng_layer_seal_known(layer, l->spec.parent_hash, l->csums, l->slots, stop, arg,
					 err);
	l->finished = r == 0;
	return r;
}
