/* SPDX-License-Identifier: MIT */
/*
 * import.c - an import from its plan to its transaction: each disk's layer is filled by the reader of what
 * is imported and finished before the next disk's begins. Nothing refers to any of it before
 * eng_import_commit().
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/transfer/import_impl.h"

/* --- a disk --- */

static bool asked_to_stop(void *arg)
{
	const struct eng_import_run *run = arg;

	return eng_progress_stop(run->how->progress);
}

static int begin_disk(struct eng_import_run *run, uint32_t i)
{
	const struct fmt_manifest_disk *d = &run->m->disks[i];
	struct eng_import_disk *to = &run->disks[i];
	struct eng_import_layer_spec spec = {
		.layer = to->layer,
		.disk = to->id,
		.parent = to->named,
		.snapshot = run->snapshot,
		.generation = fmt_uuid_is_none(&to->parent) ? 0 : to->parent_generation + 1,
		.size = d->size > to->parent_size ? d->size : to->parent_size,
		.block_bits = d->block_bits,
		.members = run->m->disk_count,
		.index = i,
	};

	memcpy(spec.parent_hash, to->parent_hash, sizeof(spec.parent_hash));
	return eng_import_layer_create(run->store, &spec, run->err, &to->writer);
}

static int finish_disk(struct eng_import_run *run, uint32_t i)
{
	const struct fmt_manifest_disk *d = &run->m->disks[i];
	struct eng_import_disk *to = &run->disks[i];
	uint64_t bs = 1ull << d->block_bits, first = (d->size + bs - 1) / bs;
	uint64_t last = (to->parent_size + bs - 1) / bs;
	int r = 0;

	if (last > first) /* RZ-2: the disk was made smaller: what it gave up must not show again */
		r = eng_import_layer_zero(to->writer, first, last - first, run->err);
	if (r == 0)
		r = eng_import_layer_finish(to->writer, asked_to_stop, run, run->err);
	to->written = r == 0;
	eng_import_layer_destroy(to->writer);
	to->writer = NULL;
	if (to->told < d->size)
		eng_progress_add(run->how->progress, d->size - to->told);
	return r;
}

/* --- all of it --- */

static int read_all(struct eng_import_run *run, const struct eng_import_reader *reader, void *arg)
{
	int r = reader->begin ? reader->begin(arg) : 0;

	for (uint32_t i = 0; r == 0 && i < run->m->disk_count; i++) {
		r = begin_disk(run, i);
		if (r == 0)
			r = reader->disk(arg, i);
		if (r == 0)
			r = finish_disk(run, i);
	}
	return r;
}

static uint64_t total_size(const struct fmt_manifest *m)
{
	uint64_t total = 0;

	for (uint32_t i = 0; i < m->disk_count; i++)
		total += m->disks[i].size;
	return total;
}

static void remove_files(struct eng_import_run *run)
{
	for (uint32_t i = 0; i < run->m->disk_count; i++) {
		struct eng_import_disk *d = &run->disks[i];
		char *path = d->written ? eng_store_layer_path(run->store, &d->layer, "vmo") : NULL;

		if (path)
			eng_io_unlink(run->store->io, path);
		if (d->head)
			eng_io_unlink(run->store->io, d->head_path);
		free(path);
	}
}

/* IP-5, IP-6: of the chain only the newest stays. */
static void merge(struct eng_import_run *run, struct eng_import_result *ret)
{
	struct fmt_error why = {""};
	struct cat_job none = {0};
	bool marked = false;
	uint16_t intent = run->how->intent ? run->how->intent : run->m->intent;

	if (!run->m->has_base || intent != FMT_INTENT_MERGE || run->base.row.refpoint)
		return;
	if (eng_store_delete_snapshot_id(run->store, &run->base.row.id, &none, &marked, &why) < 0)
		snprintf(ret->warning, sizeof(ret->warning), "%.100s: %.140s", run->base.row.name,
			 why.text);
	else
		ret->merged = true;
}

static int import(struct eng_import_run *run, const struct eng_import_reader *reader, void *arg,
		  struct eng_import_result *ret)
{
	bool unsure = false;
	int r = eng_import_plan(run);

	if (r < 0)
		return r;
	eng_progress_start(run->how->progress, total_size(run->m));
	r = read_all(run, reader, arg);
	if (r == 0)
		r = eng_import_commit(run, &unsure);
	if (r < 0) {
		if (!unsure)
			remove_files(run);
		return r;
	}
	*ret = (struct eng_import_result){
		.snapshot = run->snapshot,
		.increment = run->m->has_base,
		.disks = run->m->disk_count,
		.bytes = run->bytes,
	};
	strcpy(ret->collection, run->collection.name);
	strcpy(ret->name, run->m->snapshot_name);
	merge(run, ret);
	return 0;
}

int eng_store_import(struct eng_store *store, const struct eng_import *how, struct fmt_error *err,
		     struct eng_import_result *ret)
{
	const struct eng_import_reader *reader = how->dir ? &eng_import_files : &eng_import_streams;
	struct eng_import_run run = {.store = store, .how = how, .err = err};
	void *arg = NULL;
	int r = reader->open(&run, &arg);

	if (r < 0)
		return r;
	r = import(&run, reader, arg, ret);
	if (r < 0 && err && !err->text[0])
		fmt_fail(err, r, "%s: cannot import: %s", run.name, strerror(-r));
	eng_import_plan_fini(&run);
	reader->close(arg);
	return r;
}
