/* SPDX-License-Identifier: MIT */
/*
 * usage.h - who sees which bytes of a store (spec/space.md US-*): what every snapshot and disk
 * refers to, what it alone refers to and so would give back, and what others see as well.
 *
 * A look at the catalog as it was when it was made; families of layers are read when first asked for. One
 * thread at a time. Control threads: it reads files.
 */
#ifndef ENGINE_USAGE_H
#define ENGINE_USAGE_H

#include "engine/store/store.h"

struct eng_usage;

/* Bytes of data, in whole blocks; without headers, logs, indexes and space allocated ahead. */
struct eng_state_usage {
	uint64_t used;      /* what it refers to */
	uint64_t exclusive; /* of that, what nothing else does: gone with it */
	bool exact;         /* else a head in use was counted by its log (US-5) */
};

struct eng_layer_usage {
	uint64_t data;      /* what it holds: exclusive + shared + masked */
	uint64_t exclusive; /* seen by one snapshot or disk */
	uint64_t shared;    /* seen by several */
	uint64_t masked;    /* seen by none: comes back by the next fold */
	bool exact;
};

int eng_usage_create(struct eng_store *store, struct eng_usage **ret);
void eng_usage_destroy(struct eng_usage *usage); /* NULL is fine */

/* -ENOENT: not in the catalog then. */
int eng_usage_layer(struct eng_usage *usage, const struct fmt_uuid *layer,
		    struct eng_layer_usage *ret);
/* Of the snapshot or the disk that has @layer as its top. */
int eng_usage_state(struct eng_usage *usage, const struct fmt_uuid *layer,
		    struct eng_state_usage *ret);

#endif
