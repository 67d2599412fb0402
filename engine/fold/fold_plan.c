/* SPDX-License-Identifier: MIT */
/*
 * fold_plan.c - which layers of a run are worth folding now. Pure.
 *
 * A fold rewrites all that it joins. A large layer is joined with small ones only when they have come to
 * a quarter of it, or are many, so that each byte is rewritten a bounded number of times however many
 * snapshots come and go; a disk that has been left in peace is folded whole. What goes into the base is
 * written once more and never again, so there it need only be worth a commit.
 */
#include "engine/fold/fold.h"

#define MANY 8u            /* layers: more are folded whatever they hold */
#define MUCH (64ull << 20) /* bytes that go into the base at once */

static bool pays(const uint64_t *bytes, size_t n)
{
	uint64_t sum = 0, largest = 0;

	for (size_t i = 0; i < n; i++) {
		sum += bytes[i];
		largest = bytes[i] > largest ? bytes[i] : largest;
	}
	return n > MANY || sum - largest >= largest / 4;
}

static size_t largest_of(const uint64_t *bytes, size_t n)
{
	size_t at = 0;

	for (size_t i = 1; i < n; i++)
		at = bytes[i] > bytes[at] ? i : at;
	return at;
}

bool eng_fold_pick(const uint64_t *bytes, size_t n, bool patient, size_t *first, size_t *count)
{
	size_t from = 0;

	if (n > ENG_FOLD_MAX)
		n = ENG_FOLD_MAX;
	/* Leaves out the largest, and what lies on its shorter side, until it pays. */
	while (n >= 2) {
		size_t at;

		if (!patient || pays(bytes + from, n)) {
			*first = from;
			*count = n;
			return true;
		}
		at = largest_of(bytes + from, n);
		if (at >= n - 1 - at) {
			n = at;
		} else {
			from += at + 1;
			n -= at + 1;
		}
	}
	return false;
}

bool eng_fold_pick_base(const uint64_t *bytes, size_t n, bool patient)
{
	uint64_t sum = 0;

	for (size_t i = 0; i < n; i++)
		sum += bytes[i];
	return !patient || n > MANY || sum >= MUCH;
}
