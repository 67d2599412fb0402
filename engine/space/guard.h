/* SPDX-License-Identifier: MIT */
/*
 * guard.h - keeps space free on the store's file system for the guests that write (spec/space.md
 * SG-*): what takes much at once, a new snapshot or a fold, gives way. Any thread; one statfs and
 * one look-up each.
 */
#ifndef ENGINE_GUARD_H
#define ENGINE_GUARD_H

#include "engine/store/store.h"

#define ENG_GUARD_DEFAULT UINT64_MAX /* SG-1 */

enum eng_guard_state {
	ENG_GUARD_FINE,
	ENG_GUARD_WARNING, /* less than twice the reserve is free */
	ENG_GUARD_REACHED, /* less than the reserve is free */
};

struct eng_guard {
	uint64_t free, size; /* bytes of the file system */
	uint64_t reserve;    /* in force */
	bool is_default;
};

int eng_guard_look(struct eng_store *store, struct eng_guard *ret);
/* From state @was it goes back only a tenth of the threshold above it. */
enum eng_guard_state eng_guard_state(const struct eng_guard *guard, enum eng_guard_state was);
/* @reserve: bytes, or ENG_GUARD_DEFAULT. Durable. -EINVAL: beyond 2^62. */
int eng_guard_set_reserve(struct eng_store *store, uint64_t reserve, struct fmt_error *err);

/* SG-3: -ENOSPC: no snapshot now. Where the file system cannot tell there is no guard. */
int eng_guard_snapshot(struct eng_store *store, struct fmt_error *err);
/* SG-4: whether a fold may take @need bytes before it gives any back. Pure but for @guard. */
bool eng_guard_allows(const struct eng_guard *guard, uint64_t need);
/*
 * Of @n layers in a row, of @bytes each, those at *@first, *@count in number, were to be folded:
 * takes fewer where that is too much. -ENOSPC: none fit.
 */
int eng_guard_fold(struct eng_store *store, const uint64_t *bytes, size_t n, size_t *first,
		   size_t *count);
/*
 * The same for a fold of the *@count layers of @run into @base: counted with what they hold and the base's
 * file does not, where the bytes alone are too much, and then of the lowest half, quarter and so on of them.
 */
int eng_guard_fold_base(struct eng_store *store, const struct cat_layer *base,
			const struct cat_layer *run, const uint64_t *bytes, size_t *count);

#endif
