/* SPDX-License-Identifier: MIT */
/*
 * export.h - a snapshot out of the store, full or against a base, as image files or as a stream
 * (spec/stream.md EX-*). The calling thread waits for all of it; any thread but a queue's.
 */
#ifndef ENGINE_EXPORT_H
#define ENGINE_EXPORT_H

#include "engine/io/progress.h"
#include "engine/store/store.h"
#include "format/manifest.h"

struct eng_sink;

struct eng_export {
	const char *collection, *snapshot;
	const char *
		base; /* name of a snapshot, or of a reference point, of the collection; NULL: full */
	bool base_is_refpoint;
	enum fmt_export_format format;
	const char *dir; /* to be made (EX-2); NULL: @sink */
	const struct eng_sink *sink;
	bool compress;
	bool resume;                   /* EX-6 */
	bool no_storage;               /* the manifest alone */
	uint16_t intent;               /* enum fmt_backup_intent */
	struct eng_progress *progress; /* or NULL */
};

/* What it came to. */
struct eng_export_result {
	struct fmt_uuid snapshot;
	uint32_t disks;
	uint64_t bytes; /* of data, as the disks have it */
};

/*
 * -EEXIST: the directory is there; -ENOENT: no such snapshot or base; -EINVAL: raw against a base. Nothing
 * is left under the final name but on success.
 */
int eng_store_export(struct eng_store *store, const struct eng_export *how, struct fmt_error *err,
		     struct eng_export_result *ret);

#endif
