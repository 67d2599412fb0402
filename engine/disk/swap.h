/* SPDX-License-Identifier: MIT */
/*
 * swap.h - a folded layer takes the place of the layers that it was made of, under a disk in use.
 *
 * SW-1: the folded layer stands at every ordinal of its inputs, so that entries of newer layers keep
 * their meaning. SW-2: regions of the map go over one after the other: those below the cursor name slots
 * of the folded layer, those above it slots of the inputs. SW-3: the inputs are let go when every request
 * that began before the last region went over has ended. SW-4: a layer that was only opened anew takes
 * its own place: no region changes, and what is left is SW-3.
 */
#ifndef ENGINE_SWAP_H
#define ENGINE_SWAP_H

#include "engine/disk/disk.h"

struct eng_swap {
	struct eng_layer *folded;   /* a reference, taken over */
	const struct fmt_uuid *ids; /* of its inputs, lowest first; stay until @done */
	uint32_t count;
	/*
	 * On the worker: 0: the disk uses none of the inputs any more; an error: nothing was changed, and
	 * it may use them until it is detached.
	 */
	void (*done)(struct eng_swap *swap, int result);

	/* the worker's */
	struct eng_disk *disk;
	struct eng_msg msg;
	struct eng_task task;
	uint32_t lo;
	struct eng_layer **old;
	uint64_t cursor, regions;
	struct eng_layer **stale; /* sealed by others since they were opened */
	uint32_t nstale;
	bool draining;
	unsigned drained_epoch;
	int result;
};

/* Any thread; the caller keeps the disk attached until the message is posted. */
void eng_swap_post(struct eng_disk *disk, struct eng_swap *swap);

/* --- the worker --- */
void eng_swap_look(struct eng_disk *disk); /* a request has ended */

static inline bool eng_swap_is_old(const struct eng_disk *disk, uint64_t region)
{
	return disk->swap && region >= disk->swap->cursor;
}

/* The layer behind @ordinal in the map's entries of that region. */
static inline struct eng_layer *eng_swap_layer(const struct eng_disk *disk, uint32_t ordinal,
					       uint64_t region)
{
	const struct eng_swap *s = disk->swap;

	if (s && eng_swap_is_old(disk, region) && ordinal >= s->lo && ordinal - s->lo < s->count)
		return s->old[ordinal - s->lo];
	return disk->layers[ordinal];
}

/* Which layout that region's entries are of. */
static inline uint32_t eng_swap_layout(const struct eng_disk *disk, uint64_t region)
{
	return disk->layout - (eng_swap_is_old(disk, region) ? 1 : 0);
}

#endif
