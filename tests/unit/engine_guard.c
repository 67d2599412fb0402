/* SPDX-License-Identifier: MIT */
/* engine_guard.c - what the reserve of free space lets pass (SG-1, SG-4, SG-5). */
#include "engine/space/guard.h"
#include "tests/unit/engine_store.h"

TestSuite(engine_guard, .timeout = 60);

#define MIB (1ull << 20)

/* SG-4: up to the reserve, and below it half of what is free. */
Test(engine_guard, a_fold_leaves_the_reserve_or_half_of_what_is_free)
{
	struct eng_guard g = {.free = 100 * MIB, .size = 1000 * MIB, .reserve = 40 * MIB};

	cr_expect(eng_guard_allows(&g, 0));
	cr_expect(eng_guard_allows(&g, 60 * MIB));
	cr_expect_not(eng_guard_allows(&g, 60 * MIB + 1));
	cr_expect_not(eng_guard_allows(&g, 101 * MIB));
	cr_expect_not(eng_guard_allows(&g, UINT64_MAX));
	g.free = 30 * MIB;
	cr_expect(eng_guard_allows(&g, 15 * MIB));
	cr_expect_not(eng_guard_allows(&g, 15 * MIB + 1));
	g.free = 0;
	cr_expect(eng_guard_allows(&g, 0));
	cr_expect_not(eng_guard_allows(&g, 1));
	g.free = 100 * MIB;
	g.reserve = 0;
	cr_expect(eng_guard_allows(&g, 100 * MIB));
	cr_expect_not(eng_guard_allows(&g, 100 * MIB + 1));
}

/* SG-5: down at once, up with a tenth more. */
Test(engine_guard, states_have_a_margin_on_the_way_back)
{
	struct eng_guard g = {.free = 200 * MIB, .size = 1000 * MIB, .reserve = 100 * MIB};

	cr_expect_eq(eng_guard_state(&g, ENG_GUARD_FINE), ENG_GUARD_FINE);
	g.free--;
	cr_expect_eq(eng_guard_state(&g, ENG_GUARD_FINE), ENG_GUARD_WARNING);
	g.free = 219 * MIB;
	cr_expect_eq(eng_guard_state(&g, ENG_GUARD_WARNING), ENG_GUARD_WARNING);
	cr_expect_eq(eng_guard_state(&g, ENG_GUARD_FINE), ENG_GUARD_FINE);
	g.free = 220 * MIB;
	cr_expect_eq(eng_guard_state(&g, ENG_GUARD_WARNING), ENG_GUARD_FINE);
	g.free = 100 * MIB - 1;
	cr_expect_eq(eng_guard_state(&g, ENG_GUARD_FINE), ENG_GUARD_REACHED);
	g.free = 109 * MIB;
	cr_expect_eq(eng_guard_state(&g, ENG_GUARD_REACHED), ENG_GUARD_REACHED);
	g.free = 110 * MIB;
	cr_expect_eq(eng_guard_state(&g, ENG_GUARD_REACHED), ENG_GUARD_WARNING);
	g.reserve = 0;
	g.free = 0;
	cr_expect_eq(eng_guard_state(&g, ENG_GUARD_REACHED), ENG_GUARD_FINE, "no guard");
}

/* SG-4: where all is too much, the two that are smallest together; where they are, none. */
Test(engine_guard, a_fold_that_is_too_large_becomes_smaller)
{
	const uint64_t bytes[] = {1ull << 50, 3 * MIB, 2 * MIB, 5 * MIB, 1ull << 50};
	size_t first = 0, count = 5;
	struct eng_guard g;

	begin(1, 64 * BLOCK);
	must(eng_guard_look(store, &g) == 0);
	must(eng_guard_set_reserve(store, 0, &err) == 0);
	cr_expect_eq(eng_guard_fold(store, bytes, 5, &first, &count), 0);
	cr_expect_eq(first, 1);
	cr_expect_eq(count, 2);
	first = 1;
	count = 3;
	cr_expect_eq(eng_guard_fold(store, bytes, 5, &first, &count), 0);
	cr_expect_eq(first, 1);
	cr_expect_eq(count, 3, "what fits is left as it is");
	first = 0;
	count = 2;
	cr_expect_eq(eng_guard_fold(store, (const uint64_t[]){1ull << 50, 1ull << 50}, 2, &first,
				    &count),
		     -ENOSPC);
	close_store();
	finish();
}

/* SG-1 */
Test(engine_guard, a_fact_that_is_none_of_ours_is_the_default)
{
	static const char *const facts[] = {"", "default", "-1", "12x", "99999999999999999999",
					    "x"};
	struct eng_guard g;

	begin(1, 64 * BLOCK);
	for (size_t i = 0; i < sizeof(facts) / sizeof(facts[0]); i++) {
		must(eng_catalog_fact_set(store->catalog, "space_reserve", facts[i]) == 0);
		must(eng_guard_look(store, &g) == 0);
		cr_expect(g.is_default, "'%s'", facts[i]);
		cr_expect_leq(g.reserve, 1024 * MIB);
	}
	must(eng_guard_set_reserve(store, 12345, &err) == 0);
	must(eng_guard_look(store, &g) == 0);
	cr_expect(!g.is_default && g.reserve == 12345);
	cr_expect_eq(eng_guard_set_reserve(store, 1ull << 63, &err), -EINVAL);
	must(eng_guard_set_reserve(store, ENG_GUARD_DEFAULT, &err) == 0);
	must(eng_guard_look(store, &g) == 0);
	cr_expect(g.is_default);
	close_store();
	finish();
}
