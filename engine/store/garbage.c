/* SPDX-License-Identifier: MIT */
/*
 * garbage.c - see garbage.h. A layer without a child, a snapshot and a head goes, then what it stood on,
 * if nothing else does (T25). Rows first: a crash in between leaves files that no row names (RV-9).
 */
#include "engine/store/garbage.h"

#include <errno.h>
#include <stdlib.h>

#include "engine/fold/fold.h"
#include "engine/fold/fold_refpoints.h"

static int note(struct eng_garbage *g, const struct cat_layer *row)
{
	if (g->count == g->cap) {
		size_t cap = g->cap ? g->cap * 2 : 16;
		struct cat_layer *p = realloc(g->rows, cap * sizeof(*p));

		if (!p)
			return -ENOMEM;
		g->rows = p;
		g->cap = cap;
	}
	g->rows[g->count++] = *row;
	return 0;
}

/* @row has gone: whether what it stood on is there yet and another disk's (CL-2). */
static bool stood_on_other(struct eng_store *store, const struct cat_layer *row,
			   struct cat_layer *ret)
{
	return !fmt_uuid_is_none(&row->parent) &&
	       eng_catalog_get_layer(store->catalog, &row->parent, ret) == 0 &&
	       !fmt_uuid_equal(&ret->disk, &row->disk);
}

static int remove_ends(struct eng_store *store, const struct fmt_uuid *disk, struct eng_garbage *g,
		       size_t *removed)
{
	struct cat_layer *rows = NULL;
	size_t n = 0;
	int r = eng_catalog_list_garbage(store->catalog, disk, &rows, &n);

	for (size_t i = 0; r == 0 && i < n; i++) {
		r = note(g, &rows[i]);
		if (r == 0)
			r = eng_catalog_remove_layer(store->catalog, &rows[i].id);
	}
	free(rows);
	*removed = n;
	return r;
}

int eng_garbage_rows(struct eng_store *store, const struct fmt_uuid *disk, struct eng_garbage *g)
{
	size_t first = g->count, n = 1;
	struct cat_layer beneath;
	int r = 0;

	/* Branches' ends only; each round uncovers what they stood on. */
	while (r == 0 && n)
		r = remove_ends(store, disk, g, &n);
	for (size_t i = first, end = g->count; r == 0 && i < end; i++) {
		struct cat_layer row = g->rows[i];

		if (stood_on_other(store, &row, &beneath) &&
		    !eng_garbage_is_read(store, &beneath.disk))
			r = eng_garbage_rows(store, &beneath.disk, g);
	}
	return r;
}

bool eng_garbage_is_read(struct eng_store *store, const struct fmt_uuid *disk)
{
	struct eng_entry *e;
	bool is_read;

	pthread_mutex_lock(&store->lock);
	e = eng_entry_get_locked(store, disk);
	is_read = !e || e->readers || (e->disk && e->disk->read_only);
	pthread_mutex_unlock(&store->lock);
	return is_read;
}

void eng_garbage_files(struct eng_store *store, const struct eng_garbage *g)
{
	if (g->count)
		eng_store_remove_files(store, g->rows, g->count);
	for (size_t i = 0; i < g->count; i++)
		eng_folder_want(store->folder, &g->rows[i].disk);
}

void eng_garbage_fini(struct eng_garbage *g)
{
	free(g->rows);
	*g = (struct eng_garbage){0};
}

/*
 * Readers are asked for in the transaction: one that comes later looks its layers up behind it, and what a
 * flatten still uses has a reader before its own transaction (FT-4).
 */
static int sweep_claimed(struct eng_store *store, const struct fmt_uuid *disk)
{
	struct eng_garbage g = {0};
	int r = eng_catalog_begin(store->catalog);

	if (r < 0)
		return r;
	r = eng_garbage_is_read(store, disk) ? -EBUSY : eng_garbage_rows(store, disk, &g);
	if (r < 0)
		eng_catalog_rollback(store->catalog);
	else
		r = eng_catalog_commit(store->catalog, NULL);
	if (r == 0)
		eng_garbage_files(store, &g);
	eng_garbage_fini(&g);
	return r;
}

static int sweep_once(struct eng_store *store, const struct fmt_uuid *disk)
{
	struct eng_entry *entry;
	int r = eng_entry_claim(store, disk, 0, &entry);

	if (r < 0)
		return r;
	r = entry->in_cut ? -EBUSY : sweep_claimed(store, disk);
	eng_entry_release(entry);
	return r;
}

int eng_garbage_sweep(struct eng_store *store, const struct fmt_uuid *disk)
{
	size_t n = 1;
	int r = 0;

	/* Reference points keep nothing (RP-13); what an end stood on may be one when it has gone. */
	while (r == 0 && n) {
		struct cat_layer *rows = NULL;

		r = eng_refpoint_leave_ends(store, disk, NULL);
		if (r == 0)
			r = eng_catalog_list_garbage(store->catalog, disk, &rows, &n);
		free(rows);
		if (r == 0 && n)
			r = sweep_once(store, disk);
	}
	return r;
}
