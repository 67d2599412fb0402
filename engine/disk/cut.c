/* SPDX-License-Identifier: MIT */
/*
 * cut.c - moves every head of a collection at one instant (P1).
 *
 * CU-1: pending overlays are durable and attached before the word moves. CU-2: nothing here waits
 * for guest I/O except eng_cut_drain(), after the cut. CU-3: sequentially consistent operations on word
 * and inflight are what the argument in spec/snapshot.md rests on; do not weaken them.
 */
#include "engine/disk/cut.h"

#include <errno.h>
#include <stdlib.h>
#include <time.h>

int eng_cut_create(struct eng_cut **ret)
{
	struct eng_cut *cut = calloc(1, sizeof(*cut));
	pthread_condattr_t attr;

	if (!cut)
		return -ENOMEM;
	atomic_store(&cut->word, ENG_CUT_PREPARED);
	atomic_store(&cut->refs, 1);
	pthread_mutex_init(&cut->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&cut->drained, &attr);
	pthread_condattr_destroy(&attr);
	*ret = cut;
	return 0;
}

struct eng_cut *eng_cut_get(struct eng_cut *cut)
{
	atomic_fetch_add(&cut->refs, 1);
	return cut;
}

void eng_cut_put(struct eng_cut *cut)
{
	if (!cut || atomic_fetch_sub(&cut->refs, 1) != 1)
		return;
	pthread_cond_destroy(&cut->drained);
	pthread_mutex_destroy(&cut->lock);
	free(cut);
}

static bool decide(struct eng_cut *cut, int to)
{
	int from = ENG_CUT_PREPARED;

	return atomic_compare_exchange_strong(&cut->word, &from, to);
}

bool eng_cut_fire(struct eng_cut *cut)
{
	return decide(cut, ENG_CUT_FIRED);
}

bool eng_cut_abandon(struct eng_cut *cut)
{
	return decide(cut, ENG_CUT_ABANDONED);
}

int eng_cut_attach(struct eng_cut *cut, struct eng_layer *tail, struct eng_layer *pending)
{
	struct eng_succ *none = NULL, *succ = calloc(1, sizeof(*succ));

	if (!succ)
		return -ENOMEM;
	succ->layer = eng_layer_get(pending);
	succ->cut = eng_cut_get(cut);
	if (!atomic_compare_exchange_strong(&tail->succ, &none, succ)) {
		eng_succ_destroy(succ);
		return -EBUSY;
	}
	return 0;
}

void eng_cut_detach(struct eng_layer *tail)
{
	struct eng_succ *succ = atomic_exchange(&tail->succ, NULL);

	if (!succ)
		return;
	assert(atomic_load(&succ->cut->word) == ENG_CUT_ABANDONED);
	pthread_mutex_lock(&tail->meta_lock);
	succ->older = tail->abandoned;
	tail->abandoned = succ;
	pthread_mutex_unlock(&tail->meta_lock);
}

void eng_succ_destroy(struct eng_succ *succ)
{
	if (!succ)
		return;
	eng_layer_put(succ->layer);
	eng_cut_put(succ->cut);
	free(succ);
}

static struct eng_succ *fired(struct eng_layer *layer)
{
	struct eng_succ *succ = atomic_load(&layer->succ);

	return succ && atomic_load(&succ->cut->word) == ENG_CUT_FIRED ? succ : NULL;
}

struct eng_layer *eng_layer_newest(struct eng_layer *layer)
{
	for (struct eng_succ *s; (s = fired(layer));)
		layer = s->layer;
	return layer;
}

struct eng_cut *eng_layer_fired(struct eng_layer *layer)
{
	struct eng_succ *s = fired(layer);

	return s ? s->cut : NULL;
}

bool eng_layer_enter(struct eng_layer *layer)
{
	atomic_fetch_add(&layer->inflight, 1);
	if (!fired(layer))
		return true;
	eng_layer_leave(layer);
	return false;
}

void eng_layer_leave(struct eng_layer *layer)
{
	struct eng_succ *s;

	if (atomic_fetch_sub(&layer->inflight, 1) != 1)
		return;
	s = fired(layer);
	if (!s)
		return;
	pthread_mutex_lock(&s->cut->lock);
	pthread_cond_broadcast(&s->cut->drained);
	pthread_mutex_unlock(&s->cut->lock);
}

int eng_cut_drain(struct eng_cut *cut, struct eng_layer *layer, uint64_t deadline_ns)
{
	struct timespec ts = {
		.tv_sec = (time_t)(deadline_ns / 1000000000u),
		.tv_nsec = (long)(deadline_ns % 1000000000u),
	};
	int r = 0;

	assert(atomic_load(&cut->word) == ENG_CUT_FIRED);
	if (atomic_load(&layer->inflight) == 0)
		return 0;
	pthread_mutex_lock(&cut->lock);
	while (r == 0 && atomic_load(&layer->inflight) != 0)
		r = pthread_cond_timedwait(&cut->drained, &cut->lock, &ts);
	pthread_mutex_unlock(&cut->lock);
	return atomic_load(&layer->inflight) == 0 ? 0 : -r;
}
