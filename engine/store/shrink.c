/* SPDX-License-Identifier: MIT */
/*
 * shrink.c - a disk made smaller, while nobody has it attached (RZ-*).
 *
 * One transaction says the new size and, as the fact "shrink", what is to be cut off: the commit
 * point. Then the head loses it, durably: an overlay gets ranges of zeros, which mask what layers
 * beneath hold as long as there are any, through folds, cuts and a later grow; a raw file is made
 * shorter. Then the fact goes. In between nobody else has the disk: its shape lock is held, and an
 * open finishes before it lets anybody in. Doing it twice is doing it once. Control threads.
 */
#include "engine/store/shrink.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FACT     "shrink"
#define CLAIM_NS (10ull * 1000000000)

/* --- the head loses what is beyond the disk's size: @row.size to @end --- */

static int ignore_run(void *arg, const struct fmt_run *run)
{
	(void)arg;
	(void)run;
	return 0;
}

static int cut_overlay(struct eng_layer *layer, uint64_t size, uint64_t end, struct fmt_error *err)
{
	uint64_t bs = 1ull << layer->block_bits, last = (end + bs - 1) >> layer->block_bits;
	struct fmt_run run = {
		.block = size >> layer->block_bits,
		.slot = FMT_SLOT_NONE,
		.kind = FMT_RUN_ZERO,
	};
	int r = eng_log_replay(layer, ignore_run, NULL, err);

	for (; r == 0 && run.block < last; run.block += run.count) {
		uint64_t left = last - run.block;

		run.count = left < FMT_RUN_COUNT_MAX ? (uint32_t)left : FMT_RUN_COUNT_MAX;
		r = eng_layer_add_pending(layer, &run, layer->log.journal_seq);
	}
	return r < 0 ? r : eng_layer_harden_sync(layer);
}

static int cut_file(struct eng_layer *layer, uint64_t size)
{
	struct eng_file *file = NULL;
	struct eng_stat st;
	int r = eng_io_open(layer->io, layer->data_path, ENG_OPEN_WRITE, &file);

	if (r == 0)
		r = eng_io_fstat(layer->io, file, &st);
	if (r == 0 && st.size > size)
		r = eng_io_truncate(layer->io, file, size);
	if (r == 0)
		r = eng_io_fdatasync(layer->io, file);
	eng_io_close(layer->io, file);
	return r;
}

static int cut_head(struct eng_store *store, const struct cat_disk *row, uint64_t end,
		    struct fmt_error *err)
{
	struct eng_layer *layer = NULL;
	struct cat_layer head;
	int r = eng_catalog_get_layer(store->catalog, &row->head, &head);

	if (r == 0)
		r = eng_store_open_layer(store, &head, true, err, &layer);
	if (r == 0)
		r = layer->kind == FMT_KIND_OVERLAY ? cut_overlay(layer, row->size, end, err)
						    : cut_file(layer, row->size);
	eng_layer_put(layer);
	return r;
}

/* --- the mark --- */

static int read_mark(struct eng_store *store, struct fmt_uuid *disk, uint64_t *end)
{
	char value[CAT_TEXT_MAX], *stop;
	int r = eng_catalog_fact_get(store->catalog, FACT, value);

	if (r < 0 || !value[0])
		return r < 0 ? r : -ENOENT;
	if (strlen(value) < FMT_UUID_TEXT || value[FMT_UUID_TEXT - 1] != ' ')
		return -EUCLEAN;
	value[FMT_UUID_TEXT - 1] = 0;
	*end = strtoull(value + FMT_UUID_TEXT, &stop, 10);
	if (*stop || *end > FMT_SIZE_MAX)
		return -EUCLEAN;
	return fmt_uuid_parse(value, disk) < 0 ? -EUCLEAN : 0;
}

/* RZ-3: the commit point. One at a time in a store. */
static int commit_mark(struct eng_store *store, struct cat_disk *row, uint64_t size,
		       struct fmt_error *err)
{
	char id[FMT_UUID_TEXT], value[CAT_TEXT_MAX];
	struct fmt_uuid other;
	uint64_t end;
	int r = eng_catalog_begin(store->catalog);

	if (r < 0)
		return r;
	r = read_mark(store, &other, &end);
	if (r != -ENOENT) {
		eng_catalog_rollback(store->catalog);
		return r < 0 ? r
			     : fmt_fail(err, -EBUSY,
					"another disk is being made smaller, or waits for the next "
					"open to end that");
	}
	fmt_uuid_format(&row->id, id);
	snprintf(value, sizeof(value), "%s %" PRIu64, id, row->size);
	row->size = size;
	eng_catalog_put_disk(store->catalog, row);
	eng_catalog_fact_set(store->catalog, FACT, value);
	return eng_catalog_commit(store->catalog, err);
}

/* --- at open --- */

static int refuse(struct eng_store *store, const struct fmt_uuid *disk)
{
	struct eng_entry *e;

	pthread_mutex_lock(&store->lock);
	e = eng_entry_get_locked(store, disk);
	if (e)
		e->refused = true;
	pthread_mutex_unlock(&store->lock);
	return e ? 0 : -ENOMEM;
}

static bool is_refused(struct eng_store *store, const struct fmt_uuid *disk)
{
	struct eng_entry *e;
	bool refused;

	pthread_mutex_lock(&store->lock);
	e = eng_entry_get_locked(store, disk);
	refused = !e || e->refused;
	pthread_mutex_unlock(&store->lock);
	return refused;
}

int eng_store_finish_shrink(struct eng_store *store, struct fmt_error *err)
{
	struct fmt_uuid disk;
	struct cat_disk row;
	uint64_t end = 0;
	int r = read_mark(store, &disk, &end);

	if (r < 0)
		return r == -ENOENT ? 0
				    : fmt_fail(err, r, "the fact '" FACT "' cannot be read: %s",
					       strerror(-r));
	r = eng_catalog_get_disk_id(store->catalog, &disk, &row);
	if (r == 0) {
		/* RV-10: what goes wrong is this disk's alone. */
		if (is_refused(store, &disk) || cut_head(store, &row, end, NULL) < 0)
			return refuse(store, &disk);
	} else if (r != -ENOENT) {
		return r;
	}
	return eng_catalog_fact_set(store->catalog, FACT, "");
}

/* --- the call --- */

static int check(struct eng_entry *entry, const struct cat_disk *row, uint64_t size,
		 struct fmt_error *err)
{
	uint32_t block = 1u << row->block_bits;
	bool attached, in_cut;

	pthread_mutex_lock(&entry->store->lock);
	attached = entry->disk != NULL;
	in_cut = entry->in_cut;
	pthread_mutex_unlock(&entry->store->lock);
	if (attached || in_cut)
		return fmt_fail(err, -EBUSY, "%s/%s: %s; it can be made smaller afterwards",
				row->vm_name, row->name,
				attached ? "attached" : "a snapshot is being created");
	if (entry->refused)
		return fmt_fail(err, -ENOTRECOVERABLE,
				"%s/%s: recovery refused it, or it was not detached cleanly",
				row->vm_name, row->name);
	if (size >= row->size)
		return fmt_fail(err, -EINVAL, "%s/%s: %" PRIu64 " bytes are not less than %" PRIu64,
				row->vm_name, row->name, size, row->size);
	if (size % block)
		return fmt_fail(err, -EINVAL,
				"%s/%s: %" PRIu64 " bytes; it can be cut off at a multiple of %u",
				row->vm_name, row->name, size, block);
	return 0;
}

static int shrink_claimed(struct eng_entry *entry, struct cat_disk *row, uint64_t size,
			  bool *marked, struct fmt_error *err)
{
	struct eng_store *store = entry->store;
	uint64_t end;
	int r = eng_catalog_get_disk_id(store->catalog, &row->id, row);

	if (r == 0)
		r = check(entry, row, size, err);
	if (r < 0)
		return r;
	end = row->size;
	eng_entry_drop_standby(entry); /* SB-1: of the old size */
	eng_entry_set_tail(entry, NULL);
	r = commit_mark(store, row, size, err);
	if (r < 0)
		return r;
	*marked = true;
	r = cut_head(store, row, end, err);
	if (r == 0)
		r = eng_catalog_fact_set(store->catalog, FACT, "");
	if (r < 0)
		refuse(store, &row->id);
	return r;
}

int eng_store_shrink_disk(struct eng_store *store, const char *vm, const char *name, uint64_t size,
			  bool *marked, struct fmt_error *err)
{
	struct eng_entry *entry = NULL;
	struct cat_disk row;
	int r = eng_store_check_size(size, err);

	*marked = false;
	if (r < 0)
		return r;
	r = eng_catalog_get_disk(store->catalog, vm, name, &row);
	if (r < 0)
		return fmt_fail(err, r, "%s/%s: no such disk", vm, name);
	r = eng_entry_claim(store, &row.id, eng_io_now_ns(store->io) + CLAIM_NS, &entry);
	if (r < 0)
		return fmt_fail(err, r, "%s/%s: in use", vm, name);
	r = shrink_claimed(entry, &row, size, marked, err);
	eng_entry_release(entry);
	if (r < 0 && err && !err->text[0])
		fmt_fail(err, r, "%s/%s: cannot be made smaller: %s", vm, name, strerror(-r));
	return r;
}
