/* SPDX-License-Identifier: MIT */
/*
 * export_impl.h - what the files of an export share: what is exported (export_plan.c), and the writers of
 * streams (export_stream.c) and of image files (export_files.c). Private to them.
 */
#ifndef ENGINE_EXPORT_IMPL_H
#define ENGINE_EXPORT_IMPL_H

#include "engine/diff/blocks.h"
#include "engine/transfer/export.h"
#include "engine/store/view.h"
#include "format/manifest.h"
#include "format/stream.h"

struct eng_export_disk {
	struct cat_snapshot_disk row; /* the layer as it was before it was opened */
	uint32_t view;                /* its number in the view */
	struct eng_blocks *changed;   /* against the base; NULL: the disk is full */
	char name[4 * CAT_NAME_MAX];
};

struct eng_export_plan {
	struct eng_store *store;
	const struct eng_export *how;
	struct fmt_manifest m;
	struct eng_view *view;
	struct eng_export_disk *disks; /* as the manifest's */
	uint64_t total;                /* bytes to look at */
	uint64_t written;              /* bytes of data in what was made */
};

/* Checks and opens everything, and reads nothing. */
int eng_export_plan(struct eng_store *store, const struct eng_export *how,
		    struct eng_export_plan *plan, struct fmt_error *err);
void eng_export_plan_fini(struct eng_export_plan *plan);

/* Where a stream goes. Calls come one after the other, on any thread. */
struct eng_sink {
	int (*write)(void *arg, const void *bytes, size_t len, struct fmt_error *err);
	void *arg;
	const char *name; /* for messages */
};

/* Where an interrupted one goes on (EX-6). */
struct eng_export_resume {
	bool active;
	struct fmt_cursor cursor;
	struct fmt_stream head;
	uint64_t data_bytes, zero_bytes;
	struct fmt_digest *digest; /* of what is there; taken */
};

/* The whole stream, to END; nothing is synced. */
int eng_export_stream(struct eng_export_plan *plan, const struct eng_sink *sink,
		      struct eng_export_resume *resume, struct fmt_error *err);
/* One disk as a new image file at @path, durable but for its name. */
int eng_export_image(struct eng_export_plan *plan, uint32_t disk, const char *path,
		     struct fmt_error *err);

#endif
