/* SPDX-License-Identifier: MIT */
/*
 * standby.c - overlays made ahead of the next cut, so that it creates no file (SB-*).
 *
 * One background task makes them for all disks that want one, some at a time: each batch shares its
 * syncs, and no disk is busy for longer than a batch. On the pool; any control thread may ask.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/store/overlay.h"

#define TOGETHER 32u

/* Claims up to TOGETHER disks that want a standby and are not busy just now. */
static size_t claim_some(struct eng_store *store, struct eng_member *members)
{
	size_t n = 0;

	pthread_mutex_lock(&store->lock);
	for (struct eng_entry *e = store->entries; e && n < TOGETHER; e = e->next) {
		if (!e->wants_standby || e->busy)
			continue;
		e->wants_standby = false;
		if (e->standby || !e->disk || !e->tail)
			continue;
		e->busy = true;
		members[n++].entry = e;
	}
	if (!n)
		store->standby_coming = false;
	pthread_mutex_unlock(&store->lock);
	return n;
}

static int make(struct eng_store *store, struct eng_member *members, size_t count)
{
	struct eng_batch *batch = NULL;
	int r = eng_batch_create(store, &batch);

	for (size_t i = 0; i < count && r == 0; i++) {
		members[i].tail = eng_layer_get(eng_layer_newest(members[i].entry->tail));
		r = eng_catalog_get_disk_id(store->catalog, &members[i].entry->id,
					    &members[i].disk);
	}
	if (r == 0)
		r = eng_batch_create_overlays(batch, members, count, NULL);
	for (size_t i = 0; i < count; i++) {
		if (r == 0)
			members[i].entry->standby = eng_layer_get(members[i].pending);
		else if (members[i].pending)
			eng_io_unlink(store->io, members[i].pending->path);
		eng_layer_put(members[i].pending);
		eng_layer_put(members[i].tail);
	}
	eng_batch_destroy(batch);
	return r;
}

/* A failure (a full disk, say) is no loss: the next cut makes its overlays itself. */
static void task_standby(struct eng_task *task)
{
	struct eng_store *store = (struct eng_store *)((char *)task -
						       offsetof(struct eng_store, standby_task));
	struct eng_member members[TOGETHER];
	size_t n;

	for (;;) {
		memset(members, 0, sizeof(members));
		n = eng_pool_stopping(store->pool) ? 0 : claim_some(store, members);
		if (!n)
			break;
		make(store, members, n);
		for (size_t i = 0; i < n; i++)
			eng_entry_release(members[i].entry);
	}
}

void eng_store_want_standby(struct eng_entry *entry)
{
	struct eng_store *store = entry->store;
	bool submit = false;

	if (!store->options.standby)
		return;
	pthread_mutex_lock(&store->lock);
	entry->wants_standby = true;
	submit = !store->standby_coming;
	store->standby_coming = true;
	pthread_mutex_unlock(&store->lock);
	if (!submit)
		return;
	store->standby_task.run = task_standby;
	eng_pool_submit(store->pool, ENG_POOL_NORMAL, &store->standby_task);
}

void eng_entry_drop_standby(struct eng_entry *entry)
{
	struct eng_layer *layer = entry->standby;

	if (!layer)
		return;
	entry->standby = NULL;
	eng_io_unlink(layer->io, layer->path);
	eng_layer_put(layer);
}
