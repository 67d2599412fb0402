/* SPDX-License-Identifier: MIT */
/* rangelock.c - the list of block ranges with writes on them. See rangelock.h. */
#include "engine/rangelock.h"

#include <assert.h>

static bool overlaps(const struct eng_rangelock *a, const struct eng_rangelock *b)
{
	return a->first <= b->last && b->first <= a->last;
}

bool eng_rangelock_lock(struct eng_rangelocks *locks, struct eng_rangelock *lock, uint64_t first,
			uint64_t last)
{
	assert(first <= last);
	*lock = (struct eng_rangelock){.first = first, .last = last, .prev = locks->tail};
	for (struct eng_rangelock *l = locks->head; l; l = l->next)
		lock->blockers += overlaps(l, lock);
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
	if (lock->prev)
		lock->prev->next = lock->next;
	else
		locks->head = lock->next;
	if (lock->next)
		lock->next->prev = lock->prev;
	else
		locks->tail = lock->prev;
	/* Collected first: a granted write may end, and unlock, before the call returns. */
	for (struct eng_rangelock *l = lock->next; l; l = l->next) {
		if (!overlaps(l, lock))
			continue;
		assert(l->blockers > 0);
		if (--l->blockers == 0) {
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
