/* SPDX-License-Identifier: MIT */
/*
 * baseline.c - see baseline.h. A layer's ordinal in an attachment never changes, but a fold may put one
 * layer in the place of both sides of the border at @ordinal: then nothing tells any more what was
 * written before it and what after, and everything counts as changed (P6).
 */
#include "engine/diff/baseline.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/store/users.h"

struct eng_baseline {
	struct eng_store *store;
	struct eng_entry *held;   /* with one reader more, until it is attached; or NULL */
	struct fmt_uuid common;   /* last layer under both */
	struct eng_blocks *aside; /* what the baseline's own branch holds */
	uint64_t size;            /* of the disk then, in bytes */
	uint32_t bits;
	bool everything; /* counts as changed */
	uint32_t ordinal;
};

static void let_go(struct eng_baseline *base)
{
	eng_users_let_go(base->held);
	base->held = NULL;
}

void eng_baseline_destroy(struct eng_baseline *base)
{
	if (!base)
		return;
	let_go(base);
	eng_blocks_destroy(base->aside);
	free(base);
}

int eng_baseline_create(struct eng_store *store, const struct cat_disk *disk,
			const struct eng_state *state, const struct fmt_uuid *top,
			struct fmt_error *err, struct eng_baseline **ret)
{
	struct eng_baseline *base = calloc(1, sizeof(*base));
	int r = base ? 0 : -ENOMEM;

	if (r < 0)
		return fmt_fail(err, r, "no memory for a baseline");
	base->store = store;
	base->bits = disk->block_bits;
	base->size = state->size;
	r = eng_users_hold(base->store, &disk->id, &base->held);
	if (r == 0)
		r = eng_diff_aside(store, disk, state, top, err, &base->common, &base->aside);
	base->everything = fmt_uuid_is_none(&base->common);
	if (r < 0) {
		eng_baseline_destroy(base);
		return r;
	}
	*ret = base;
	return 0;
}

void eng_baseline_attach(struct eng_baseline *base, struct eng_disk *disk)
{
	uint32_t i = disk->nlayers;

	/* The newest of the ordinals that it stands at: whatever is above was written later. */
	while (i > 0 && !fmt_uuid_equal(&disk->layers[i - 1]->id, &base->common))
		i--;
	base->everything = base->everything || i == 0;
	base->ordinal = i ? i - 1 : 0;
	let_go(base);
}

/* Whether something stands on both sides of the border. */
static bool is_border_gone(const struct eng_baseline *base, const struct eng_disk *disk)
{
	return base->ordinal + 1 < disk->nlayers &&
	       disk->layers[base->ordinal] == disk->layers[base->ordinal + 1];
}

struct first {
	uint64_t first, count;
};

static int take_first(void *arg, uint64_t first, uint64_t count)
{
	*(struct first *)arg = (struct first){first, count};
	return 1;
}

uint64_t eng_baseline_extent(const struct eng_baseline *base, struct eng_disk *disk,
			     uint64_t offset, const struct eng_disk_extent *extent, bool *changed)
{
	uint64_t end = offset + extent->length, block = offset >> base->bits, border;
	uint64_t shorter = base->size >> base->bits << base->bits;
	struct first found = {UINT64_MAX, 0};

	*changed = true;
	if (base->everything || extent->layer > base->ordinal || is_border_gone(base, disk))
		return extent->length;
	/* DF-6: what it did not have yet, or not any more, and something holds. */
	if (base->size && end > shorter && extent->state != ENG_EXTENT_HOLE) {
		if (offset >= shorter)
			return extent->length;
		end = shorter;
	}
	if (base->aside)
		eng_blocks_each(base->aside, block, ((end - 1) >> base->bits) + 1 - block,
				take_first, &found);
	*changed = found.first == block;
	border = *changed                    ? (block + found.count) << base->bits
		 : found.first != UINT64_MAX ? found.first << base->bits
					     : end;
	return (border < end ? border : end) - offset;
}
