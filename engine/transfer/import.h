/* SPDX-License-Identifier: MIT */
/*
 * import.h - a snapshot into the store, from a stream or from the files of an export (spec/stream.md IP-*).
 * The calling thread reads it and waits for all of it; any thread but a queue's.
 */
#ifndef ENGINE_IMPORT_H
#define ENGINE_IMPORT_H

#include "engine/io/progress.h"
#include "engine/store/store.h"
#include "engine/transfer/stream_in.h"

struct eng_import {
	const struct eng_stream_source *source; /* or */
	const char *dir;                        /* raw or qcow2 files and manifest.json (IP-7) */
	const char *new_collection; /* of a full one: another name, and NAME-VM; NULL: as it was */
	uint16_t intent;            /* enum fmt_backup_intent; 0: as the stream says */
	struct eng_progress *progress;
};

struct eng_import_result {
	struct fmt_uuid snapshot;
	char collection[CAT_NAME_MAX], name[CAT_NAME_MAX];
	bool increment, merged; /* its base was deleted */
	uint32_t disks;
	uint64_t bytes;    /* of data */
	char warning[256]; /* IP-6; or "" */
};

/*
 * All or nothing. -ESTALE: the base is not here, or not what it was; -EEXIST: a name or the snapshot is
 * there already; -EBUSY; what eng_stream_in_*() find.
 */
int eng_store_import(struct eng_store *store, const struct eng_import *how, struct fmt_error *err,
		     struct eng_import_result *ret);

#endif
