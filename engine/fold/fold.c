/* SPDX-License-Identifier: MIT */
/*
 * fold.c - the thread that folds: which disks are to be looked at, and when, and what others ask of it:
 * to leave a disk, to pause, to go slower. The fold itself is fold_run.c's (FO-*).
 *
 * Only sealed layers are touched, so that guests' writes never run ahead of it.
 */
#include "engine/fold/fold.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "engine/fold/fold_impl.h"
#include "engine/snapshot/snapshot.h"
#include "engine/store/garbage.h"

#define FOLD_RATE   (64ull << 20)       /* bytes a second */
#define PEACE_NS    (5 * 1000000000ull) /* nothing new for so long: everything is folded */
#define RETRY_NS    (1 * 1000000000ull)
#define RETRIES_MAX 9u                 /* doublings of it */
#define OPENED_NS   (500 * 1000000ull) /* who opens a store for one command is gone by then */

/* --- the thread --- */

static uint64_t peace_ns(const struct eng_folder *folder)
{
	uint64_t ns = folder->store->options.fold_peace_ns;

	return ns ? ns : PEACE_NS;
}

static struct want *find_want_locked(struct eng_folder *folder, const struct fmt_uuid *disk)
{
	struct want *w = folder->wants;

	while (w && !fmt_uuid_equal(&w->disk, disk))
		w = w->next;
	return w;
}

/* What there is, or a new one that is due at once. NULL without memory: the next change asks again. */
static struct want *get_want_locked(struct eng_folder *folder, const struct fmt_uuid *disk)
{
	struct want *w = find_want_locked(folder, disk);

	if (w)
		return w;
	w = calloc(1, sizeof(*w));
	if (!w)
		return NULL;
	w->disk = *disk;
	w->since_ns = eng_io_now_ns(folder->store->io);
	w->next = folder->wants;
	folder->wants = w;
	return w;
}

/* Due at once, whatever became of it before; with @changed its time of peace begins anew, too. */
static void want(struct eng_folder *folder, const struct fmt_uuid *disk, bool changed)
{
	struct want *w;

	if (!folder)
		return;
	pthread_mutex_lock(&folder->lock);
	w = get_want_locked(folder, disk);
	if (w) {
		if (changed)
			w->since_ns = eng_io_now_ns(folder->store->io);
		w->not_before_ns = 0;
		w->looked = false;
		w->failures = 0;
		w->last_r = 0;
	}
	pthread_cond_broadcast(&folder->changed);
	pthread_mutex_unlock(&folder->lock);
}

void eng_folder_want(struct eng_folder *folder, const struct fmt_uuid *disk)
{
	want(folder, disk, true);
}

void eng_folder_try(struct eng_folder *folder, const struct fmt_uuid *disk)
{
	want(folder, disk, false);
}

/* The want that is due first, taken out; NULL after a wait. */
static struct want *take_want_locked(struct eng_folder *folder)
{
	uint64_t now = eng_io_now_ns(folder->store->io), first = UINT64_MAX;
	struct timespec ts;

	for (struct want **p = &folder->wants; *p && !folder->paused; p = &(*p)->next) {
		struct want *w = *p;

		if (w->not_before_ns <= now && !fmt_uuid_equal(&w->disk, &folder->leaving)) {
			*p = w->next;
			return w;
		}
		first = w->not_before_ns < first ? w->not_before_ns : first;
	}
	if (first == UINT64_MAX) {
		pthread_cond_wait(&folder->changed, &folder->lock);
		return NULL;
	}
	first = first > now ? first : now + RETRY_NS; /* due, but its disk is on its way out */
	ts.tv_sec = (time_t)(first / 1000000000u);
	ts.tv_nsec = (long)(first % 1000000000u);
	pthread_cond_timedwait(&folder->changed, &folder->lock, &ts);
	return NULL;
}

static uint64_t retry_ns(unsigned failures)
{
	return RETRY_NS << (failures > RETRIES_MAX ? RETRIES_MAX : failures - 1);
}

/* What is left of @w after a look that gave @r: a later one. A want that came meanwhile is newer. */
static void look_again_locked(struct eng_folder *folder, const struct want *w, int r,
			      const struct fmt_error *err)
{
	uint64_t now = eng_io_now_ns(folder->store->io);
	/* SG-4: for space it asks now and then. */
	bool failed = r < 0 && r != -ENOSPC && !atomic_load(&folder->cancel);
	uint64_t wait = r < 0   ? retry_ns(failed ? w->failures + 1 : 1)
			: r > 0 ? 0
				: peace_ns(folder);
	struct want *again = find_want_locked(folder, &w->disk);

	if (again)
		return;
	if (folder->paused)
		wait = 0; /* what paused it is what it waits for */
	again = get_want_locked(folder, &w->disk);
	if (!again)
		return;
	again->not_before_ns = now + wait;
	again->since_ns = w->since_ns;
	again->looked = r == 0;
	again->failures = failed ? w->failures + 1 : 0;
	again->last = *err;
	again->last_r = failed || r == -ENOSPC ? r : 0;
}

/*
 * FO-19, at a disk's own peace: who settles (since_ns 0) has done it once already. What keeps a head from
 * its roll keeps nothing else, and the next change asks again.
 */
static void mind_head(struct eng_folder *folder, const struct want *w, bool patient, bool *later)
{
	bool pays = false;

	if (!w->since_ns || eng_roll_pays(folder->store, &w->disk, &pays) < 0 || !pays)
		return;
	if (patient)
		*later = true;
	else
		eng_roll_disk(folder->store, &w->disk, false, NULL);
}

static void look_at(struct eng_folder *folder, const struct want *w)
{
	uint64_t now = eng_io_now_ns(folder->store->io);
	bool patient = now - w->since_ns < peace_ns(folder), later = false;
	struct fmt_error err = {""};
	int r = eng_garbage_sweep(folder->store, &w->disk);
	bool refused;

	if (r == 0)
		r = eng_fold_disk(folder, &w->disk, patient, &err, &later);
	if (r == 0)
		mind_head(folder, w, patient, &later);
	/* Somebody cancelled its job: it is not begun again until something changes (FO-15). */
	refused = r == -ECANCELED && !atomic_load(&folder->cancel);

	pthread_mutex_lock(&folder->lock);
	folder->stats.active = false;
	if (!folder->stop && !refused && (r != 0 || later))
		look_again_locked(folder, w, r, &err);
	pthread_cond_broadcast(&folder->changed);
	pthread_mutex_unlock(&folder->lock);
}

static void thread_main(void *arg)
{
	struct eng_folder *folder = arg;

	pthread_mutex_lock(&folder->lock);
	while (!folder->stop) {
		struct want *w = take_want_locked(folder);

		if (!w)
			continue;
		folder->stats.active = true;
		folder->stats.disk = w->disk;
		atomic_store(&folder->cancel, false);
		pthread_mutex_unlock(&folder->lock);
		look_at(folder, w);
		free(w);
		pthread_mutex_lock(&folder->lock);
	}
	pthread_mutex_unlock(&folder->lock);
}

/* --- from outside --- */

static void cancel_locked(struct eng_folder *folder)
{
	atomic_store(&folder->cancel, true);
	if (folder->progress)
		atomic_store(&folder->progress->cancel, true); /* it may be waiting */
}

void eng_folder_leave(struct eng_folder *folder, const struct fmt_uuid *disk)
{
	if (!folder)
		return;
	pthread_mutex_lock(&folder->lock);
	folder->leaving = *disk;
	while (folder->stats.active && fmt_uuid_equal(&folder->stats.disk, disk)) {
		cancel_locked(folder);
		pthread_cond_wait(&folder->changed, &folder->lock);
	}
	memset(&folder->leaving, 0, sizeof(folder->leaving));
	pthread_mutex_unlock(&folder->lock);
}

void eng_folder_pause(struct eng_folder *folder, bool pause)
{
	if (!folder)
		return;
	pthread_mutex_lock(&folder->lock);
	folder->paused = pause;
	while (pause && folder->stats.active) {
		cancel_locked(folder);
		pthread_cond_wait(&folder->changed, &folder->lock);
	}
	pthread_cond_broadcast(&folder->changed);
	pthread_mutex_unlock(&folder->lock);
}

void eng_folder_set_rate(struct eng_folder *folder, uint64_t rate)
{
	if (!folder)
		return;
	pthread_mutex_lock(&folder->lock);
	atomic_store(&folder->rate, rate == UINT64_MAX ? 0 : rate);
	if (folder->progress)
		atomic_store(&folder->progress->rate, atomic_load(&folder->rate));
	pthread_mutex_unlock(&folder->lock);
}

void eng_folder_set_punch_run(struct eng_folder *folder, uint64_t bytes)
{
	if (folder)
		atomic_store(&folder->punch_run, bytes);
}

uint64_t eng_folder_rate(struct eng_folder *folder)
{
	return folder ? atomic_load(&folder->rate) : 0;
}

void eng_folder_watch(struct eng_folder *folder, const struct eng_fold_watch *watch)
{
	if (!folder)
		return;
	eng_folder_pause(folder, true);
	folder->watch = *watch; /* the thread reads it when it folds, which it does not */
	eng_folder_pause(folder, false);
}

void eng_folder_stats(struct eng_folder *folder, struct eng_folder_stats *ret)
{
	memset(ret, 0, sizeof(*ret));
	if (!folder)
		return;
	pthread_mutex_lock(&folder->lock);
	*ret = folder->stats;
	ret->active = folder->progress != NULL;
	if (folder->progress) {
		ret->done = atomic_load(&folder->progress->done);
		ret->total = atomic_load(&folder->progress->total);
	}
	pthread_mutex_unlock(&folder->lock);
}

void eng_folder_rest(struct eng_folder *folder, const struct fmt_uuid *disk, bool whole,
		     struct eng_folder_rest *ret)
{
	struct want *w;

	memset(ret, 0, sizeof(*ret));
	if (!folder)
		return;
	pthread_mutex_lock(&folder->lock);
	w = find_want_locked(folder, disk);
	if (w && whole && w->since_ns) {
		w->since_ns = 0;
		w->not_before_ns = w->failures ? w->not_before_ns : 0;
		w->looked = false;
		pthread_cond_broadcast(&folder->changed);
	}
	ret->active = folder->stats.active && fmt_uuid_equal(&folder->stats.disk, disk);
	ret->removing = folder->swaps != 0;
	ret->pending = ret->active || folder->swaps || (w && !w->looked);
	if (ret->active && folder->progress && atomic_load(&folder->progress->total))
		ret->done = (double)atomic_load(&folder->progress->done) /
			    (double)atomic_load(&folder->progress->total);
	if (w && w->last_r < 0 && w->last_r != -EBUSY && w->last_r != -ESTALE) {
		ret->failed = w->last_r;
		ret->why = w->last;
	}
	pthread_mutex_unlock(&folder->lock);
}

int eng_folder_create(struct eng_store *store, struct eng_folder **ret)
{
	struct eng_folder *folder = calloc(1, sizeof(*folder));
	struct cat_disk *disks = NULL;
	pthread_condattr_t attr;
	size_t n = 0;
	int r = -ENOMEM;

	if (!folder)
		return r;
	folder->store = store;
	pthread_mutex_init(&folder->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&folder->changed, &attr);
	pthread_condattr_destroy(&attr);
	eng_folder_set_rate(folder,
			    store->options.fold_rate ? store->options.fold_rate : FOLD_RATE);
	r = eng_catalog_list_disks(store->catalog, NULL, &disks, &n);
	for (size_t i = 0; r == 0 && i < n; i++)
		eng_folder_want(folder, &disks[i].id);
	free(disks);
	for (struct want *w = folder->wants; w; w = w->next) /* the thread is still to come */
		w->not_before_ns = w->since_ns +
				   (OPENED_NS < peace_ns(folder) ? OPENED_NS : peace_ns(folder));
	*ret = folder; /* the thread finds it in the store */
	if (r == 0)
		r = eng_io_spawn(store->io, "vmimg-fold", thread_main, folder, &folder->thread);
	if (r < 0) {
		*ret = NULL;
		eng_folder_destroy(folder);
	}
	return r;
}

void eng_folder_stop(struct eng_folder *folder)
{
	if (!folder)
		return;
	pthread_mutex_lock(&folder->lock);
	folder->stop = true;
	cancel_locked(folder);
	pthread_cond_broadcast(&folder->changed);
	pthread_mutex_unlock(&folder->lock);
	if (folder->thread)
		eng_io_join(folder->store->io, folder->thread);
	folder->thread = NULL;
	pthread_mutex_lock(&folder->lock);
	while (folder->swaps) /* every disk is detached: their removals are the pool's */
		pthread_cond_wait(&folder->changed, &folder->lock);
	pthread_mutex_unlock(&folder->lock);
}

void eng_folder_sweep(struct eng_folder *folder)
{
	const struct want *w;

	if (!folder)
		return;
	/* The thread is no more: none goes, and seals and what is swept put new ones at the front. */
	pthread_mutex_lock(&folder->lock);
	w = folder->wants;
	pthread_mutex_unlock(&folder->lock);
	for (; w; w = w->next)
		eng_garbage_sweep(folder->store, &w->disk);
}

void eng_folder_destroy(struct eng_folder *folder)
{
	if (!folder)
		return;
	eng_folder_stop(folder);
	for (struct want *w = folder->wants, *next; w; w = next) {
		next = w->next;
		free(w);
	}
	pthread_cond_destroy(&folder->changed);
	pthread_mutex_destroy(&folder->lock);
	free(folder);
}
