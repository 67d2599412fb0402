/* SPDX-License-Identifier: MIT */
/*
 * guard.c - see guard.h. The reserve is a fact of the catalog; what is free is asked each time.
 * There is no lock: who passes the guard together may take more than one of them was allowed.
 * Guests are never asked.
 */
#include "engine/space/guard.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/diff/diff.h"

#define FACT        "space_reserve"
#define DEFAULT_MAX (1ull << 30)
#define DEFAULT_DIV 20u /* of the file system */
#define RESERVE_MAX (1ull << 62)

static int read_fact(struct eng_store *store, uint64_t *ret)
{
	char value[CAT_TEXT_MAX], *end;
	int r = eng_catalog_fact_get(store->catalog, FACT, value);

	*ret = ENG_GUARD_DEFAULT;
	if (r < 0)
		return r == -ENOENT ? 0 : r;
	if (value[0] >= '0' && value[0] <= '9') { /* else nothing that we wrote */
		uint64_t bytes = strtoull(value, &end, 10);

		*ret = *end || bytes > RESERVE_MAX ? ENG_GUARD_DEFAULT : bytes;
	}
	return 0;
}

int eng_guard_look(struct eng_store *store, struct eng_guard *ret)
{
	struct eng_guard g;
	int r = eng_io_space(store->io, store->dir, &g.free, &g.size);

	if (r == 0)
		r = read_fact(store, &g.reserve);
	if (r < 0)
		return r;
	g.is_default = g.reserve == ENG_GUARD_DEFAULT;
	if (g.is_default)
		g.reserve = g.size / DEFAULT_DIV < DEFAULT_MAX ? g.size / DEFAULT_DIV : DEFAULT_MAX;
	*ret = g;
	return 0;
}

enum eng_guard_state eng_guard_state(const struct eng_guard *guard, enum eng_guard_state was)
{
	const uint64_t limits[] = {guard->reserve * 2, guard->reserve};
	enum eng_guard_state state = ENG_GUARD_FINE;

	for (unsigned i = 0; i < 2; i++)
		if (guard->free < limits[i] + (i < (unsigned)was ? limits[i] / 10 : 0))
			state = (enum eng_guard_state)(i + 1);
	return state;
}

int eng_guard_set_reserve(struct eng_store *store, uint64_t reserve, struct fmt_error *err)
{
	char value[32] = "default";
	int r;

	if (reserve != ENG_GUARD_DEFAULT && reserve > RESERVE_MAX)
		return fmt_fail(err, -EINVAL, "reserve: %" PRIu64 " bytes, expected at most 2^62",
				reserve);
	if (reserve != ENG_GUARD_DEFAULT)
		snprintf(value, sizeof(value), "%" PRIu64, reserve);
	r = eng_catalog_fact_set(store->catalog, FACT, value);
	return r < 0 ? fmt_fail(err, r, "reserve: cannot be recorded: %s", strerror(-r)) : 0;
}

int eng_guard_snapshot(struct eng_store *store, struct fmt_error *err)
{
	struct eng_guard g;

	if (eng_guard_look(store, &g) < 0 || g.free >= g.reserve)
		return 0;
	return fmt_fail(err, -ENOSPC,
			"%" PRIu64
			" bytes are free on the store's file system, below the reserve of "
			"%" PRIu64 " (SG-3): delete snapshots, or change the reserve",
			g.free, g.reserve);
}

bool eng_guard_allows(const struct eng_guard *guard, uint64_t need)
{
	return (need <= guard->free && guard->free - need >= guard->reserve) ||
	       need <= guard->free / 2;
}

int eng_guard_fold(struct eng_store *store, const uint64_t *bytes, size_t n, size_t *first,
		   size_t *count)
{
	uint64_t need = 0, least = UINT64_MAX;
	struct eng_guard g;
	size_t best = 0;

	if (eng_guard_look(store, &g) < 0)
		return 0;
	for (size_t i = *first; i < *first + *count; i++)
		need += bytes[i];
	if (eng_guard_allows(&g, need))
		return 0;
	for (size_t i = 0; i + 1 < n; i++) {
		if (bytes[i] + bytes[i + 1] >= least)
			continue;
		least = bytes[i] + bytes[i + 1];
		best = i;
	}
	if (!eng_guard_allows(&g, least))
		return -ENOSPC;
	*first = best;
	*count = 2;
	return 0;
}

/* Bytes of blocks that some layer of @run holds and the base's file does not. */
static int count_new(struct eng_store *store, const struct cat_layer *base,
		     const struct cat_layer *run, size_t count, uint64_t *ret)
{
	struct eng_blocks *there = NULL, *wanted = NULL;
	struct eng_layer *layer = NULL;
	uint32_t bits = 0;
	int r = eng_blocks_create(&there);

	if (r == 0)
		r = eng_blocks_create(&wanted);
	for (size_t i = 0; r == 0 && i <= count; i++) {
		r = eng_store_open_layer(store, i < count ? &run[i] : base, false, NULL, &layer);
		if (r == 0 && i == count && layer->block_bits != bits)
			r = -EOPNOTSUPP; /* other units */
		if (r == 0)
			r = eng_diff_add_layer(i < count ? wanted : there, layer, NULL);
		if (r == 0)
			bits = layer->block_bits;
		eng_layer_put(layer);
		layer = NULL;
	}
	if (r == 0) {
		eng_blocks_andnot(wanted, there);
		*ret = eng_blocks_cardinality(wanted) << bits;
	}
	eng_blocks_destroy(there);
	eng_blocks_destroy(wanted);
	return r;
}

int eng_guard_fold_base(struct eng_store *store, const struct cat_layer *base,
			const struct cat_layer *run, const uint64_t *bytes, size_t *count)
{
	uint64_t need = 0;
	struct eng_guard g;

	for (size_t i = 0; i < *count; i++)
		need += bytes[i];
	if (eng_guard_look(store, &g) < 0 || eng_guard_allows(&g, need))
		return 0;
	/* What is there is overwritten in place, and needs nothing. */
	for (size_t n = *count; n; n /= 2) {
		if (count_new(store, base, run, n, &need) < 0 || !eng_guard_allows(&g, need))
			continue;
		*count = n;
		return 0;
	}
	return -ENOSPC;
}
