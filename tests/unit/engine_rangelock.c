/* SPDX-License-Identifier: MIT */
/* engine_rangelock.c - FIFO locks over ranges of blocks: who waits for whom (RL-1..RL-3, T4). */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "engine/disk/rangelock.h"

static struct eng_rangelocks locks;
static struct eng_rangelock *order[256];
static unsigned granted_count;

static void note(struct eng_rangelock *lock)
{
	order[granted_count++] = lock;
}

static void begin(void)
{
	memset(&locks, 0, sizeof(locks));
	granted_count = 0;
}

TestSuite(engine_rangelock, .init = begin, .timeout = 60);

/* RL-1 */
Test(engine_rangelock, ranges_apart_are_granted_at_once)
{
	struct eng_rangelock a, b, c;

	cr_expect(eng_rangelock_lock(&locks, &a, 0, 9));
	cr_expect(eng_rangelock_lock(&locks, &b, 10, 10));
	cr_expect(eng_rangelock_lock(&locks, &c, 11, UINT64_MAX));
	eng_rangelock_unlock(&locks, &b, note);
	eng_rangelock_unlock(&locks, &a, note);
	eng_rangelock_unlock(&locks, &c, note);
	cr_expect_eq(granted_count, 0u);
	cr_expect_null(locks.head);
	cr_expect_null(locks.tail);
}

/* RL-1: first and last block count. */
Test(engine_rangelock, one_shared_block_is_enough_to_wait)
{
	struct eng_rangelock a, below, above, inside, around;

	cr_expect(eng_rangelock_lock(&locks, &a, 10, 20));
	cr_expect_not(eng_rangelock_lock(&locks, &below, 5, 10));
	cr_expect_not(eng_rangelock_lock(&locks, &above, 20, 25));
	cr_expect_not(eng_rangelock_lock(&locks, &inside, 15, 15));
	cr_expect_not(eng_rangelock_lock(&locks, &around, 0, 100));
	eng_rangelock_unlock(&locks, &a, note);
	cr_assert_eq(granted_count, 3u);
	cr_expect_eq(order[0], &below);
	cr_expect_eq(order[1], &above);
	cr_expect_eq(order[2], &inside);
	eng_rangelock_unlock(&locks, &inside, note);
	eng_rangelock_unlock(&locks, &above, note);
	cr_expect_eq(granted_count, 3u, "the last one waits for all before it");
	eng_rangelock_unlock(&locks, &below, note);
	cr_assert_eq(granted_count, 4u);
	cr_expect_eq(order[3], &around);
	eng_rangelock_unlock(&locks, &around, note);
}

/* RL-2 */
Test(engine_rangelock, waiter_holds_up_those_behind_it)
{
	struct eng_rangelock held, waits, behind;

	cr_expect(eng_rangelock_lock(&locks, &held, 0, 0));
	cr_expect_not(eng_rangelock_lock(&locks, &waits, 0, 1));
	/* Nothing that it overlaps is granted, yet it must not overtake. */
	cr_expect_not(eng_rangelock_lock(&locks, &behind, 1, 1));
	eng_rangelock_unlock(&locks, &held, note);
	cr_assert_eq(granted_count, 1u);
	cr_expect_eq(order[0], &waits);
	eng_rangelock_unlock(&locks, &waits, note);
	cr_assert_eq(granted_count, 2u);
	cr_expect_eq(order[1], &behind);
	eng_rangelock_unlock(&locks, &behind, note);
}

static struct eng_rangelock again[2];

static void unlock_and_lock_anew(struct eng_rangelock *lock)
{
	note(lock);
	eng_rangelock_unlock(&locks, lock, note);
	if (lock == &again[0])
		cr_expect_not(eng_rangelock_lock(&locks, lock, 0, 9), "behind the other waiter");
}

/* A write may end, and the next one come, while the locks are being granted. */
Test(engine_rangelock, granted_may_unlock_and_lock_anew)
{
	struct eng_rangelock held;

	cr_expect(eng_rangelock_lock(&locks, &held, 0, 9));
	cr_expect_not(eng_rangelock_lock(&locks, &again[0], 0, 4));
	cr_expect_not(eng_rangelock_lock(&locks, &again[1], 5, 9));
	eng_rangelock_unlock(&locks, &held, unlock_and_lock_anew);
	cr_assert_eq(granted_count, 3u);
	cr_expect_eq(order[0], &again[0]);
	cr_expect_eq(order[1], &again[1]);
	cr_expect_eq(order[2], &again[0]);
	eng_rangelock_unlock(&locks, &again[0], note);
	cr_expect_null(locks.head);
}

struct model_lock {
	struct eng_rangelock lock;
	uint64_t first, last;
	bool here, granted;
};

#define LOCKS 24
static struct model_lock model[LOCKS];
static unsigned line[LOCKS], line_len; /* in order of arrival */

static void model_granted(struct eng_rangelock *lock)
{
	struct model_lock *m = (struct model_lock *)lock;

	cr_assert(m->here && !m->granted);
	m->granted = true;
}

static void check_line(void)
{
	for (unsigned i = 0; i < line_len; i++) {
		bool blocked = false;

		for (unsigned j = 0; j < i; j++)
			blocked |= model[line[j]].first <= model[line[i]].last &&
				   model[line[i]].first <= model[line[j]].last;
		cr_assert_eq(model[line[i]].granted, !blocked, "place %u of %u", i, line_len);
	}
}

/* RL-1, RL-2: granted is who overlaps nobody in front, at every moment. */
Test(engine_rangelock, random_locks_are_granted_in_order_of_arrival)
{
	/* Near each other; apart, within a cell or two; some over many cells; in the end none. */
	static const unsigned places[] = {40, 3000, 3000, 1}, lengths[] = {6, 40, 300, 1};

	srand(7);
	for (unsigned step = 0; step < 80000; step++) {
		struct model_lock *m = &model[rand() % LOCKS];
		unsigned i = 0, phase = step / 20000;

		if (!m->here) {
			if (phase == 3)
				continue;
			m->first = (uint64_t)rand() % places[phase];
			m->last = m->first + (uint64_t)rand() % lengths[phase];
			m->here = true;
			line[line_len++] = (unsigned)(m - model);
			m->granted = eng_rangelock_lock(&locks, &m->lock, m->first, m->last);
		} else if (m->granted) {
			while (line[i] != (unsigned)(m - model))
				i++;
			memmove(line + i, line + i + 1, (--line_len - i) * sizeof(*line));
			m->here = false;
			m->granted = false;
			eng_rangelock_unlock(&locks, &m->lock, model_granted);
		}
		check_line();
	}
	cr_expect_eq(line_len, 0u);
	cr_expect_null(locks.head);
	cr_expect(locks.waiting == 0 && locks.wide == 0);
	for (unsigned i = 0; i < ENG_RANGELOCK_CELLS; i++)
		cr_expect_eq(locks.cells[i], 0u, "cell %u", i);
}
