/* SPDX-License-Identifier: MIT */
/*
 * gone.h - the slots of a sealed layer whose data was given back, since every block in them is held by
 * the one layer that stands on it (spec/format.md GO-*, spec/lifecycle.md PU-*). The list is read when the
 * layer is opened and belongs to it from then on, unchanged: any thread.
 */
#ifndef ENGINE_GONE_H
#define ENGINE_GONE_H

#include "engine/layer/layer.h"

struct eng_gone {
	uint32_t count;
	uint64_t slots; /* in all runs */
	struct fmt_gone run[];
};

/* The list that @hdr names, checked; free(). NULL: it names none. */
int eng_gone_read(struct eng_io *io, struct eng_file *file, const char *path,
		  const struct fmt_header *hdr, struct fmt_error *err, struct eng_gone **ret);

/* Of @count slots from @slot on, how many are alike: *@gone, or all there. @list NULL: none is gone. */
uint32_t eng_gone_span(const struct eng_gone *list, uint32_t slot, uint32_t count, bool *gone);
/* Whether any of them is gone. */
bool eng_gone_any(const struct eng_gone *list, uint32_t slot, uint32_t count);
/* For who chose that block of the layer to be read: -EUCLEAN where it is gone (PU-6). */
int eng_gone_refuse(const struct eng_layer *layer, uint64_t block, uint32_t slot,
		    struct fmt_error *err);

/* --- changing it (PU-4); nothing refers to what the first step wrote before the second --- */
/* Runs of a list for which no space has to be found, on a file system that is full, too. */
uint32_t eng_gone_room(const struct eng_layer *layer);
struct eng_gone_place {
	uint64_t offset;
	uint32_t runs;
	uint8_t hash[16];
};
/*
 * Writes a list where nothing is, durably. The layer is open for writing, and holds no snapshot. On
 * failure the layer is what it was.
 */
int eng_gone_write(struct eng_layer *layer, const struct fmt_gone *runs, uint32_t count,
		   struct fmt_error *err, struct eng_gone_place *ret);
/* The header names it instead of the one before, whose space is given back. Durable. */
int eng_gone_name(struct eng_layer *layer, const struct eng_gone_place *place,
		  struct fmt_error *err);
/* It will not be named. */
void eng_gone_drop(struct eng_layer *layer, const struct eng_gone_place *place);

#endif
