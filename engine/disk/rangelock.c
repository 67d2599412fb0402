/* SPDX-License-Identifier: MIT */
/* rangelock.c - the list of block ranges with writes on them. See rangelock.h. */
#include "engine/disk/rangelock.h"

#include <assert.h>

static bool overlaps(const struct eng_rangelock *a, const struct eng_rangelock *b)
{
	return a->first <= b->last && b->first <= a->last;
}

/* Blocks share a cell by 32, and cells a count by their hash. */
#define CELL_BITS 5u

static uint32_t *cell_of(struct eng_rangelocks *locks, uint64_t block)
{
	return &locks->cells[(block >> CELL_BITS) * 0x9e3779b97f4a7c15ull >> 56];
}

static bool is_wide(const struct eng_rangelock *lock)
{
	return (lock->last >> CELL_BITS) - (lock->first >> CELL_BITS) > 1;
}

/* False: no lock there is overlaps @lock. */
static bool may_overlap(struct eng_rangelocks *locks, const struct eng_rangelock *lock)
{
	return locks->wide || is_wide(lock) || *cell_of(locks, lock->first) ||
	       *cell_of(locks, lock->last);
}

static void count(struct eng_rangelocks *locks, const struct eng_rangelock *lock, int delta)
{
	if (is_wide(lock)) {
		locks->wide += (unsigned)delta;
		return;
	}
	*cell_of(locks, lock->first) += (uint32_t)delta;
	*cell_of(locks, lock->last) += (uint32_t)delta;
}

bool eng_rangelock_lock(struct eng_rangelocks *locks, struct eng_rangelock *lock, uint64_t first,
			uint64_t last)
{
	assert(first <= last);
	*lock = (struct eng_rangelock){.first = first, .last = last, .prev = locks->tail};
	for (struct eng_rangelock *l = may_overlap(locks, lock) ? locks->head : NULL; l;
	     l = l->next)
		lock->blockers += overlaps(l, lock);
	count(locks, lock, 1);
	locks->waiting += lock->blockers != 0;
	if (locks->tail)
		locks->tail->next = lock;
	else
		locks->head = lock;
	locks->tail = lock;
	return lock->blockers == 0;
}

void eng_rangelock_unlock(struct eng_rangelocks *locks, struct eng_rangelock *lock,
			  void (*granted)(struct eng_rangelock *lock))
{
	struct eng_rangelock *ready = NULL, **tail = &ready;

	assert(lock->blockers == 0);
	count(locks, lock, -1);
	if (lock->prev)
		lock->prev->next = lock->next;
	else
		locks->head = lock->next;
	if (lock->next)
		lock->next->prev = lock->prev;
	else
		locks->tail = lock->prev;
	/* Collected first: a granted write may end, and unlock, before the call returns. */
	for (struct eng_rangelock *l = locks->waiting ? lock->next : NULL; l; l = l->next) {
		if (!overlaps(l, lock))
			continue;
		assert(l->blockers > 0);
		if (--l->blockers == 0) {
			locks->waiting--;
			*tail = l;
			tail = &l->granted_next;
		}
	}
	while (ready) {
		struct eng_rangelock *l = ready;

		ready = l->granted_next;
		l->granted_next = NULL;
		granted(l);
	}
}
