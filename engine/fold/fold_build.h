/* SPDX-License-Identifier: MIT */
/*
 * fold_build.h - makes one sealed overlay of adjacent ones (spec/lifecycle.md FO-*): the layer alone,
 * nothing of a catalog or of disks in use. One thread a build; the inputs are only read.
 */
#ifndef ENGINE_FOLD_BUILD_H
#define ENGINE_FOLD_BUILD_H

#include "engine/layer/layer.h"
#include "engine/io/progress.h"

struct eng_fold_build {
	struct eng_io *io;
	struct eng_file *hold;     /* the store's lock (T19), or NULL */
	struct eng_layer **inputs; /* sealed overlays, lowest first; borrowed */
	uint32_t count;
	struct eng_layer_spec spec; /* of the result; initial_slots is found out */
	struct fmt_header boundary; /* snapshot_id, _members, _index; replaced list */
	uint8_t parent_hash[16];    /* of the layer beneath, zero: none */
	bool (*stop)(void *arg);    /* asked often; true ends it with -ECANCELED */
	void *arg;
	/* Survivors are counted, what is read is limited; or NULL. */
	struct eng_progress *progress;
};

/*
 * Writes the result, durable but for its name in the directory, and SEALED. On failure no file is left.
 * -EBADMSG: a block of an input does not match its checksum; nothing rotten gets a new one.
 */
int eng_fold_build(struct eng_fold_build *build, struct fmt_error *err, struct eng_layer **ret);

#endif
