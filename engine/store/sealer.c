/* SPDX-License-Identifier: MIT */
/*
 * sealer.c - hardened layers get their index and checksums, one at a time, behind everything else,
 * and the catalog's log is emptied there too.
 * A seal that fails is no loss: the layer goes on answering from its log, and the next open tries anew.
 */
#include <stdlib.h>
#include <string.h>

#include "engine/fold/fold.h"
#include "engine/layer/index.h"
#include "engine/store/store.h"

#define SEAL_RATE (64ull << 20) /* bytes a second */

struct seal_task {
	struct eng_task task;
	struct eng_store *store;
	struct fmt_uuid id;
	struct eng_layer *layer; /* the object in use, or NULL */
};

static bool stopping(void *arg)
{
	return eng_pool_stopping(arg);
}

/* The hash by which the child knows what is beneath it (SL-4, FD-2); zero: not known. */
static void parent_hash(struct eng_store *store, const struct fmt_uuid *parent,
			const struct fmt_uuid *named, uint8_t ret[16])
{
	struct eng_layer *layer;
	struct cat_layer row;
	const uint8_t *hash;

	memset(ret, 0, 16);
	if (fmt_uuid_is_none(parent) || eng_catalog_get_layer(store->catalog, parent, &row) < 0 ||
	    row.kind != FMT_KIND_OVERLAY || row.state != CAT_LAYER_SEALED ||
	    eng_store_open_layer(store, &row, false, NULL, &layer) < 0)
		return;
	hash = fmt_header_hash_for(&layer->hdr, named);
	if (hash)
		memcpy(ret, hash, 16);
	eng_layer_put(layer);
}

static void seal(struct seal_task *t)
{
	struct eng_store *store = t->store;
	uint64_t rate = store->options.seal_rate ? store->options.seal_rate : SEAL_RATE;
	struct eng_layer *layer = t->layer;
	struct cat_layer row;
	uint8_t hash[16];

	if (eng_catalog_get_layer(store->catalog, &t->id, &row) < 0 ||
	    row.state != CAT_LAYER_HARDENED || row.kind != FMT_KIND_OVERLAY)
		return;
	if (!layer && eng_store_open_layer(store, &row, true, NULL, &t->layer) < 0)
		return;
	layer = t->layer;
	/* Zeros on their way to slots that were never used must not land on the index. */
	while (atomic_load(&layer->spacing)) {
		if (eng_pool_stopping(store->pool))
			return;
		eng_io_sleep_ns(store->io, 1000000);
	}
	parent_hash(store, &row.parent, &layer->hdr.parent_id, hash);
	if (layer->hdr.state != FMT_STATE_SEALED &&
	    eng_layer_seal(layer, hash, rate, stopping, store->pool, NULL) < 0)
		return;
	if (eng_layer_settle_header(layer, NULL) < 0) /* LH-13: before the row says so */
		return;
	if (eng_catalog_begin(store->catalog) < 0)
		return;
	eng_catalog_set_layer_state(store->catalog, &t->id, CAT_LAYER_SEALED);
	if (eng_catalog_commit(store->catalog, NULL) == 0)
		eng_folder_want(store->folder, &row.disk);
}

static void task_seal(struct eng_task *task)
{
	struct seal_task *t = (struct seal_task *)((char *)task - offsetof(struct seal_task, task));

	if (!eng_pool_stopping(t->store->pool))
		seal(t);
	atomic_fetch_sub(&t->store->seals, 1);
	eng_layer_put(t->layer);
	free(t);
}

void eng_store_seal(struct eng_store *store, const struct fmt_uuid *id, struct eng_layer *layer)
{
	struct seal_task *t = calloc(1, sizeof(*t));

	if (!t)
		return; /* the next open tries again */
	t->task.run = task_seal;
	t->store = store;
	t->id = *id;
	t->layer = layer ? eng_layer_get(layer) : NULL;
	atomic_fetch_add(&store->seals, 1);
	eng_pool_submit(store->pool, ENG_POOL_IDLE, &t->task);
}

static void task_checkpoint(struct eng_task *task)
{
	struct eng_store *store = (struct eng_store *)((char *)task -
						       offsetof(struct eng_store, checkpoint_task));
	bool idle;

	pthread_mutex_lock(&store->lock);
	idle = !store->cuts;
	store->checkpoint_coming = false;
	pthread_mutex_unlock(&store->lock);
	if (idle)
		eng_catalog_checkpoint(store->catalog);
}

void eng_store_checkpoint(struct eng_store *store)
{
	bool coming;

	pthread_mutex_lock(&store->lock);
	coming = store->checkpoint_coming;
	store->checkpoint_coming = true;
	pthread_mutex_unlock(&store->lock);
	if (coming)
		return;
	store->checkpoint_task.run = task_checkpoint;
	eng_pool_submit(store->pool, ENG_POOL_IDLE, &store->checkpoint_task);
}

int eng_store_seal_rest(struct eng_store *store)
{
	struct cat_layer *rows = NULL;
	size_t n = 0;
	int r = eng_catalog_list_layers(store->catalog, NULL, &rows, &n);

	for (size_t i = 0; r == 0 && i < n; i++)
		if (rows[i].kind == FMT_KIND_OVERLAY && rows[i].state == CAT_LAYER_HARDENED)
			eng_store_seal(store, &rows[i].id, NULL);
	free(rows);
	return r;
}
