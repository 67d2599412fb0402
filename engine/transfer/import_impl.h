/* SPDX-License-Identifier: MIT */
/*
 * import_impl.h - what the files of an import share: what becomes of each disk (import_rows.c, catalog),
 * and the readers from which its blocks come (import_stream.c, import_files.c). Private to them.
 */
#ifndef ENGINE_IMPORT_IMPL_H
#define ENGINE_IMPORT_IMPL_H

#include "engine/transfer/import.h"
#include "engine/transfer/import_layer.h"
#include "engine/transfer/increment.h"

struct eng_import_disk {
	struct fmt_uuid id; /* the manifest's, or a new one */
	struct cat_vm vm;   /* where it goes */
	bool new_vm;        /* the first disk of a VM that is to be made */
	bool new_disk;
	struct cat_disk was;    /* not new: its row when the import began */
	struct fmt_uuid layer;  /* the snapshot's */
	struct fmt_uuid parent; /* in the catalog; a fold may give it another id meanwhile */
	struct fmt_uuid named;  /* in the layer's header */
	uint64_t parent_generation;
	uint64_t parent_size; /* of its layer, bytes; 0: none */
	uint8_t parent_hash[16];
	struct eng_import_layer *writer; /* while it is being written */
	bool written;
	uint64_t told;          /* bytes that the progress knows of */
	struct eng_layer *head; /* the new one */
	char *head_path;
	struct eng_entry *held;  /* while it is planned: its chain stays as it is */
	struct eng_entry *entry; /* claimed */
};

struct eng_import_run {
	struct eng_store *store;
	const struct eng_import *how;
	const struct fmt_manifest *m;   /* the reader's, as @name is */
	const char *name;               /* of what is imported, for messages */
	uint64_t bytes;                 /* of data */
	struct eng_increment_base base; /* of an increment */
	struct cat_collection collection;
	bool new_collection;
	struct fmt_uuid snapshot;
	struct eng_import_disk *disks; /* as the manifest's */
	struct fmt_error *err;
};

/* What is imported. The owner's thread calls. */
struct eng_import_reader {
	int (*open)(struct eng_import_run *run, void **arg); /* sets run->m and run->name */
	int (*begin)(void *arg);                             /* the import is possible; or NULL */
	/* All blocks of disk @i into its writer; disks come in their order. */
	int (*disk)(void *arg, uint32_t i);
	void (*close)(void *arg);
};
extern const struct eng_import_reader eng_import_streams, eng_import_files;

/* Names, ids and the base: what the import will be, or why it cannot be. */
int eng_import_plan(struct eng_import_run *run);
/* New heads, durable; then the one transaction. *@unsure: its outcome is not known (T23). */
int eng_import_commit(struct eng_import_run *run, bool *unsure);
void eng_import_plan_fini(struct eng_import_run *run);

#endif
