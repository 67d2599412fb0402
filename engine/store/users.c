/* SPDX-License-Identifier: MIT */
/*
 * users.c - see users.h. Claimed first and looked up again then: whoever adds a disk to them claims one of
 * these for it (a clone its origins), so that under the claim there are no others.
 */
#include "engine/store/users.h"

#include <errno.h>
#include <stdlib.h>

#include "engine/disk/swap.h"
#include "engine/fold/fold.h"

struct eng_users_swap {
	void (*done)(void *arg, int result);
	void *arg;
	_Atomic size_t left; /* disks that have not let go, and one for whoever posts */
	_Atomic int result;
	struct one {
		struct eng_swap swap;
		struct eng_users_swap *all;
	} one[];
};

static int list(struct eng_store *store, const struct fmt_uuid *layer, struct fmt_uuid **ret,
		size_t *count)
{
	struct cat_disk *rows = NULL;
	struct fmt_uuid *ids = NULL;
	size_t n = 0;
	int r = eng_catalog_list_users(store->catalog, layer, &rows, &n);

	if (r == 0 && !n)
		r = -ENOENT;
	if (r == 0)
		ids = calloc(n, sizeof(*ids));
	if (r == 0 && !ids)
		r = -ENOMEM;
	for (size_t i = 0; r == 0 && i < n; i++)
		ids[i] = rows[i].id;
	free(rows);
	if (r < 0)
		return r;
	*ret = ids;
	*count = n;
	return 0;
}

/* One change of a chain at a time, and none under a reader. Store's lock held. */
static bool is_free(const struct eng_entry *e)
{
	const struct eng_disk *disk = e->disk;

	return !e->readers && !e->in_cut &&
	       !(disk && (disk->read_only || atomic_load(&disk->swaps)));
}

static bool begin(struct eng_users *u)
{
	bool free_of_readers = true;

	pthread_mutex_lock(&u->store->lock);
	for (size_t i = 0; i < u->count; i++)
		free_of_readers = free_of_readers && is_free(u->entries[i]);
	for (size_t i = 0; i < u->count && free_of_readers; i++)
		u->entries[i]->folding = true;
	pthread_mutex_unlock(&u->store->lock);
	return free_of_readers;
}

static bool are_still(const struct eng_users *u, const struct fmt_uuid *layer)
{
	struct fmt_uuid *now = NULL;
	size_t n = 0;
	bool same = list(u->store, layer, &now, &n) == 0 && n == u->count;

	for (size_t i = 0; same && i < n; i++)
		same = fmt_uuid_equal(&now[i], &u->disks[i]);
	free(now);
	return same;
}

static void forget(struct eng_users *u)
{
	free(u->swap);
	free(u->entries);
	free(u->disks);
	*u = (struct eng_users){0};
}

int eng_users_claim(struct eng_store *store, const struct fmt_uuid *layer, struct eng_users *u)
{
	int r;

	*u = (struct eng_users){.store = store};
	r = list(store, layer, &u->disks, &u->count);
	if (r < 0)
		return r;
	u->entries = calloc(u->count, sizeof(struct eng_entry *));
	u->swap = calloc(1, sizeof(*u->swap) + u->count * sizeof(u->swap->one[0]));
	r = u->entries && u->swap ? eng_store_claim_all(store, u->disks, u->count, 0, u->entries)
				  : -ENOMEM;
	if (r == 0 && !(are_still(u, layer) && begin(u))) {
		eng_store_release_all(u->entries, u->count);
		r = -EBUSY;
	}
	if (r < 0)
		forget(u);
	return r;
}

bool eng_users_are_attached(const struct eng_users *u)
{
	for (size_t i = 0; i < u->count; i++)
		if (u->entries[i]->disk)
			return true;
	return false;
}

void eng_users_release(struct eng_users *u)
{
	if (!u->store)
		return;
	pthread_mutex_lock(&u->store->lock);
	for (size_t i = 0; i < u->count; i++)
		u->entries[i]->folding = false;
	pthread_cond_broadcast(&u->store->changed);
	pthread_mutex_unlock(&u->store->lock);
	eng_store_release_all(u->entries, u->count);
	forget(u);
}

/* --- held by others --- */

int eng_users_hold(struct eng_store *store, const struct fmt_uuid *disk, struct eng_entry **ret)
{
	struct eng_entry *e;

	pthread_mutex_lock(&store->lock);
	while ((e = eng_entry_get_locked(store, disk)) && e->folding)
		pthread_cond_wait(&store->changed, &store->lock);
	if (e)
		e->readers++;
	pthread_mutex_unlock(&store->lock);
	if (!e)
		return -ENOMEM;
	*ret = e;
	return 0;
}

void eng_users_let_go(struct eng_entry *entry)
{
	struct eng_store *store;

	if (!entry)
		return;
	store = entry->store;
	pthread_mutex_lock(&store->lock);
	entry->readers--;
	pthread_mutex_unlock(&store->lock);
	eng_folder_want(store->folder, &entry->id);
}

/* --- the swaps --- */

static void let_go(struct eng_users_swap *all, int result)
{
	int none = 0;

	if (result < 0)
		atomic_compare_exchange_strong(&all->result, &none, result);
	if (atomic_fetch_sub(&all->left, 1) != 1)
		return;
	all->done(all->arg, atomic_load(&all->result));
	free(all);
}

/* A disk's worker. */
static void swap_done(struct eng_swap *swap, int result)
{
	struct one *one = (struct one *)((char *)swap - offsetof(struct one, swap));

	let_go(one->all, result);
}

void eng_users_swap(struct eng_users *u, struct eng_layer *folded, const struct fmt_uuid *ids,
		    uint32_t count, void (*done)(void *arg, int result), void *arg)
{
	struct eng_users_swap *all = u->swap;

	u->swap = NULL; /* its own from here on */
	all->done = done;
	all->arg = arg;
	atomic_store(&all->left, 1);
	for (size_t i = 0; i < u->count; i++) {
		struct one *one = &all->one[i];

		if (!u->entries[i]->disk)
			continue;
		atomic_fetch_add(&all->left, 1);
		one->all = all;
		one->swap.folded = eng_layer_get(folded);
		one->swap.ids = ids;
		one->swap.count = count;
		one->swap.done = swap_done;
		eng_swap_post(u->entries[i]->disk, &one->swap);
	}
	let_go(all, 0);
}
