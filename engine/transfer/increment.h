/* SPDX-License-Identifier: MIT */
/*
 * increment.h - what an increment stands on: a snapshot or a reference point, its disks with what they
 * held, and the state that tells it from every other (spec/stream.md MF-3, MF-4). Any thread; reads the
 * catalog only.
 */
#ifndef ENGINE_INCREMENT_H
#define ENGINE_INCREMENT_H

#include "engine/diff/blocks.h"
#include "engine/store/store.h"
#include "format/manifest.h"

struct eng_increment_disk {
	struct fmt_uuid id;
	struct fmt_uuid layer; /* none: its tracking is lost */
	uint64_t size;
	struct eng_blocks *extra; /* counts as changed since; or NULL */
};

struct eng_increment_base {
	struct fmt_manifest_base row;
	struct fmt_uuid collection;
	struct eng_increment_disk *disks; /* in its order */
	size_t count;
};

/* By name: -ENOENT. */
int eng_increment_base_find(struct eng_store *store, const char *collection, const char *name,
			    bool refpoint, struct fmt_error *err, struct eng_increment_base *ret);
/*
 * The one that @wanted means: the snapshot of that id, a reference point of that id or made of that
 * snapshot. -ESTALE: there is none, or it has another state; the message says what was found.
 */
int eng_increment_base_match(struct eng_store *store, const struct fmt_manifest_base *wanted,
			     struct fmt_error *err, struct eng_increment_base *ret);
void eng_increment_base_fini(struct eng_increment_base *base);
const struct eng_increment_disk *eng_increment_base_disk(const struct eng_increment_base *base,
							 const struct fmt_uuid *id);

#endif
