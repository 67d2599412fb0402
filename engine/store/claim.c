/* SPDX-License-Identifier: MIT */
/*
 * claim.c - many disks made busy at once (S-2), for what changes the chains of several. All of them in
 * one step or none, so that two who want some of the same never wait for each other. Control threads.
 */
#include <errno.h>
#include <time.h>

#include "engine/store/store.h"

/* All entries are there and none is busy. Store's lock held. */
static int find_locked(struct eng_store *store, const struct fmt_uuid *disks, size_t count,
		       struct eng_entry **ret)
{
	for (size_t i = 0; i < count; i++) {
		ret[i] = eng_entry_get_locked(store, &disks[i]);
		if (!ret[i])
			return ENOMEM;
		if (ret[i]->busy)
			return EBUSY;
	}
	return 0;
}

int eng_store_claim_all(struct eng_store *store, const struct fmt_uuid *disks, size_t count,
			uint64_t deadline_ns, struct eng_entry **ret)
{
	struct timespec ts = {
		.tv_sec = (time_t)(deadline_ns / 1000000000u),
		.tv_nsec = (long)(deadline_ns % 1000000000u),
	};
	int r, waited = 0;

	pthread_mutex_lock(&store->lock);
	r = find_locked(store, disks, count, ret);
	while (r == EBUSY && deadline_ns && waited != ETIMEDOUT) {
		waited = pthread_cond_timedwait(&store->changed, &store->lock, &ts);
		r = find_locked(store, disks, count, ret);
	}
	for (size_t i = 0; r == 0 && i < count; i++)
		ret[i]->busy = true;
	pthread_mutex_unlock(&store->lock);
	return -r;
}

void eng_store_release_all(struct eng_entry *const *entries, size_t count)
{
	for (size_t i = 0; i < count; i++)
		eng_entry_release(entries[i]);
}
