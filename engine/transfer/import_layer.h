/* SPDX-License-Identifier: MIT */
/*
 * import_layer.h - the layer that a disk of an imported snapshot becomes: blocks appended in order, with
 * checksums that are known, frozen by the snapshot and sealed (spec/stream.md IP-3). Control threads;
 * writes of data may come from several at once.
 */
#ifndef ENGINE_IMPORT_LAYER_H
#define ENGINE_IMPORT_LAYER_H

#include "engine/layer/layer.h"
#include "engine/store/store.h"

struct eng_import_layer;

struct eng_import_layer_spec {
	struct fmt_uuid layer, disk, parent, snapshot;
	uint8_t parent_hash[16]; /* or zero */
	uint64_t generation, size;
	uint32_t block_bits;
	uint32_t members, index; /* of the snapshot */
};

int eng_import_layer_create(struct eng_store *store, const struct eng_import_layer_spec *spec,
			    struct fmt_error *err, struct eng_import_layer **ret);
/* Closes it; without eng_import_layer_finish() the file is removed. NULL is fine. */
void eng_import_layer_destroy(struct eng_import_layer *l);
/* Gives @count blocks from @block the next slots: *@offset is where the data goes. In order. */
int eng_import_layer_add(struct eng_import_layer *l, uint64_t block, uint32_t count,
			 const uint64_t *csums, struct fmt_error *err, uint64_t *offset);
/* These read as zeros, whatever lies beneath. */
int eng_import_layer_zero(struct eng_import_layer *l, uint64_t block, uint64_t count,
			  struct fmt_error *err);
int eng_import_layer_write(struct eng_import_layer *l, const void *data, size_t len,
			   uint64_t offset, struct fmt_error *err);
/* All writes have ended: durable, frozen, sealed; not its name. */
int eng_import_layer_finish(struct eng_import_layer *l, bool (*stop)(void *arg), void *arg,
			    struct fmt_error *err);
const char *eng_import_layer_path(const struct eng_import_layer *l);

#endif
