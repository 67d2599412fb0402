/* SPDX-License-Identifier: MIT */
/*
 * api_prune_plan.c - which snapshots retention keeps (RT-1..RT-5): every rule alone and together,
 * periods of the calendar and their edges, zones with summer time, and random sets against a
 * second, slower way to decide.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "api/prune_plan.h"

#define MAX 64

static struct api_prune_item items[MAX];
static size_t count;

static void zone(const char *tz)
{
	setenv("TZ", tz, 1);
	tzset();
}

static void begin(void)
{
	zone("UTC");
	memset(items, 0, sizeof(items));
	count = 0;
}

TestSuite(api_prune_plan, .init = begin, .timeout = 60);

/* Seconds since 1970 of a time in the zone. */
static int64_t at(int year, int month, int day, int hour, int minute)
{
	struct tm tm = {.tm_year = year - 1900,
			.tm_mon = month - 1,
			.tm_mday = day,
			.tm_hour = hour,
			.tm_min = minute,
			.tm_isdst = -1};

	return (int64_t)mktime(&tm);
}

static struct api_prune_item *add(int64_t seconds)
{
	cr_assert_lt(count, MAX);
	items[count].time_ns = seconds * 1000000000;
	return &items[count++];
}

static void plan(struct api_prune_rules rules)
{
	cr_assert_eq(api_prune_plan(&rules, items, count), 0);
}

/* One character an item, in order of creation: k or -. */
static void expect(const char *kept)
{
	char is[MAX + 1] = "";

	for (size_t i = 0; i < count; i++)
		is[i] = items[i].keep ? 'k' : '-';
	cr_expect_str_eq(is, kept);
}

/* RT-2 */
Test(api_prune_plan, last_keeps_the_newest)
{
	for (int i = 0; i < 5; i++)
		add(1000 + i);
	plan((struct api_prune_rules){.keep = {[API_KEEP_LAST] = 2}});
	expect("---kk");
	cr_expect_eq(items[4].by[API_KEEP_LAST], 1);
	cr_expect_eq(items[3].by[API_KEEP_LAST], 2);
	cr_expect_eq(items[2].by[API_KEEP_LAST], 0);
	plan((struct api_prune_rules){.keep = {[API_KEEP_LAST] = 9}});
	expect("kkkkk");
}

Test(api_prune_plan, nothing_is_no_error)
{
	plan((struct api_prune_rules){.keep = {[API_KEEP_LAST] = 1}});
	add(5);
	plan((struct api_prune_rules){.keep = {0}});
	expect("-");
}

/* RT-2: the newest of each period, and periods without candidates do not count. */
Test(api_prune_plan, the_newest_of_each_period_stays)
{
	add(at(2026, 3, 1, 8, 0));
	add(at(2026, 3, 1, 23, 59));
	add(at(2026, 3, 2, 0, 0));
	add(at(2026, 3, 2, 0, 1));
	add(at(2026, 3, 9, 12, 0));
	plan((struct api_prune_rules){.keep = {[API_KEEP_DAILY] = 2}});
	expect("---kk");
	plan((struct api_prune_rules){.keep = {[API_KEEP_DAILY] = 3}});
	expect("-k-kk");
	plan((struct api_prune_rules){.keep = {[API_KEEP_HOURLY] = 9}});
	expect("kk-kk");
	plan((struct api_prune_rules){.keep = {[API_KEEP_MONTHLY] = 9}});
	expect("----k");
}

/* RT-2: rules do not share what they keep. */
Test(api_prune_plan, a_candidate_counts_in_every_rule)
{
	add(at(2026, 1, 5, 10, 0));
	add(at(2026, 1, 6, 10, 0));
	add(at(2026, 1, 7, 10, 0));
	plan((struct api_prune_rules){.keep = {[API_KEEP_LAST] = 1, [API_KEEP_DAILY] = 1}});
	expect("--k");
	cr_expect_eq(items[2].by[API_KEEP_LAST], 1);
	cr_expect_eq(items[2].by[API_KEEP_DAILY], 1);
	plan((struct api_prune_rules){.keep = {[API_KEEP_LAST] = 1, [API_KEEP_DAILY] = 2}});
	expect("-kk");
}

/* RT-3: an ISO week begins on Monday; its year is that of its Thursday. */
Test(api_prune_plan, weeks_are_those_of_iso_8601)
{
	add(at(2024, 12, 29, 12, 0)); /* Sunday, week 52 of 2024 */
	add(at(2024, 12, 30, 12, 0)); /* Monday, week 1 of 2025 */
	add(at(2025, 1, 5, 12, 0));   /* Sunday, week 1 of 2025 */
	add(at(2025, 1, 6, 12, 0));   /* Monday, week 2 */
	plan((struct api_prune_rules){.keep = {[API_KEEP_WEEKLY] = 9}});
	expect("k-kk");
	begin();
	add(at(2020, 12, 31, 12, 0)); /* Thursday, week 53 of 2020 */
	add(at(2021, 1, 3, 12, 0));   /* Sunday, week 53 of 2020 */
	add(at(2021, 1, 4, 12, 0));   /* Monday, week 1 */
	plan((struct api_prune_rules){.keep = {[API_KEEP_WEEKLY] = 9}});
	expect("-kk");
}

/* Every day of 28 years against strftime()'s %G and %V. */
Test(api_prune_plan, every_week_agrees_with_strftime)
{
	for (int64_t day = at(2000, 1, 1, 12, 0); day < at(2028, 1, 1, 12, 0); day += 86400) {
		char a[16], b[16];
		time_t one = (time_t)day, two = (time_t)(day + 86400);

		count = 0;
		memset(items, 0, 2 * sizeof(items[0]));
		strftime(a, sizeof(a), "%G-%V", gmtime(&one));
		strftime(b, sizeof(b), "%G-%V", gmtime(&two));
		add(day);
		add(day + 86400);
		plan((struct api_prune_rules){.keep = {[API_KEEP_WEEKLY] = 2}});
		cr_assert_eq(items[0].keep, strcmp(a, b) != 0, "%s, %s", a, b);
		cr_assert(items[1].keep);
	}
}

Test(api_prune_plan, months_and_years_are_the_calendar_s)
{
	add(at(2023, 12, 31, 23, 59));
	add(at(2024, 1, 1, 0, 0));
	add(at(2024, 1, 31, 23, 59));
	add(at(2024, 2, 1, 0, 0));
	add(at(2025, 2, 1, 0, 0)); /* another February */
	plan((struct api_prune_rules){.keep = {[API_KEEP_MONTHLY] = 9}});
	expect("k-kkk");
	plan((struct api_prune_rules){.keep = {[API_KEEP_YEARLY] = 9}});
	expect("k--kk");
	plan((struct api_prune_rules){.keep = {[API_KEEP_DAILY] = 9}});
	expect("kkkkk");
}

/* RT-3: one instant is another day elsewhere. */
Test(api_prune_plan, periods_are_of_the_local_zone)
{
	int64_t late = at(2026, 6, 1, 23, 30);

	add(late);
	add(late + 3600);
	plan((struct api_prune_rules){.keep = {[API_KEEP_DAILY] = 9}});
	expect("kk");
	zone("ABC-2"); /* 01:30 and 02:30 of the second */
	plan((struct api_prune_rules){.keep = {[API_KEEP_DAILY] = 9}});
	expect("-k");
}

/* RT-3: 02:30 comes twice on the day that summer time ends. */
Test(api_prune_plan, the_hour_that_comes_twice_is_two)
{
	int64_t first;

	zone("CET-1CEST,M3.5.0,M10.5.0/3");
	first = at(2025, 10, 26, 1, 30) + 3600; /* 02:30, summer time */
	add(first);
	add(first + 1200);
	add(first + 3600); /* 02:30 again */
	plan((struct api_prune_rules){.keep = {[API_KEEP_HOURLY] = 9}});
	expect("-kk");
	plan((struct api_prune_rules){.keep = {[API_KEEP_DAILY] = 9}});
	expect("--k");
}

/* RT-3 */
Test(api_prune_plan, of_one_instant_the_later_made_is_newer)
{
	add(1000);
	add(1000);
	plan((struct api_prune_rules){.keep = {[API_KEEP_LAST] = 1}});
	expect("-k");
}

/* RT-3: a clock that was set back: the time of the cut counts, not the order of creation. */
Test(api_prune_plan, times_out_of_order)
{
	add(at(2026, 1, 3, 0, 0));
	add(at(2026, 1, 1, 0, 0));
	add(at(2026, 1, 2, 0, 0));
	plan((struct api_prune_rules){.keep = {[API_KEEP_DAILY] = 2}});
	expect("k-k");
}

/* RT-5 */
Test(api_prune_plan, held_and_used_ones_stay_and_count)
{
	add(1000)->held = true;
	add(2000);
	add(3000)->in_use = true;
	add(4000);
	plan((struct api_prune_rules){.keep = {[API_KEEP_LAST] = 2}});
	expect("k-kk");
	cr_expect_eq(items[2].by[API_KEEP_LAST], 2, "it takes part in the rule");
	cr_expect_eq(items[0].by[API_KEEP_LAST], 0);
}

/* RT-1 */
Test(api_prune_plan, automatic_ones_only_when_asked)
{
	add(1000)->automatic = true;
	add(2000);
	add(3000)->automatic = true;
	plan((struct api_prune_rules){.keep = {[API_KEEP_LAST] = 1}});
	expect("kkk");
	cr_expect_eq(items[1].by[API_KEEP_LAST], 1, "they are no candidates");
	plan((struct api_prune_rules){.keep = {[API_KEEP_LAST] = 1}, .automatic = true});
	expect("--k");
}

Test(api_prune_plan, times_before_1970_and_beyond_any_calendar)
{
	add(-1);
	items[0].time_ns = -1; /* a nanosecond before 1970 */
	add(0);
	plan((struct api_prune_rules){.keep = {[API_KEEP_YEARLY] = 9}});
	expect("kk");
}

/* --- random sets, decided another way: for each item and rule, count the newer periods --- */

static bool is_newer(size_t a, size_t b)
{
	return items[a].time_ns != items[b].time_ns ? items[a].time_ns > items[b].time_ns : a > b;
}

static void key(size_t i, int rule, char ret[64])
{
	static const char *const formats[] = {"", "%F %H%z", "%F", "%G-%V", "%Y-%m", "%Y"};
	time_t seconds = (time_t)(items[i].time_ns / 1000000000);
	struct tm tm;

	localtime_r(&seconds, &tm);
	strftime(ret, 64, formats[rule], &tm);
	if (rule == API_KEEP_LAST)
		snprintf(ret, 64, "%zu", i);
}

/* Whether the rule keeps @i: the newest of its period, and fewer than @limit periods are newer. */
static bool keeps(size_t i, int rule, uint32_t limit)
{
	uint32_t newer = 0;
	char own[64], other[64], again[64];

	key(i, rule, own);
	for (size_t j = 0; j < count; j++) {
		bool newest = true;

		if (!is_newer(j, i))
			continue;
		key(j, rule, other);
		if (!strcmp(own, other))
			return false;
		for (size_t k = 0; k < count; k++) {
			key(k, rule, again);
			newest = newest && !(is_newer(k, j) && !strcmp(again, other));
		}
		newer += newest;
	}
	return newer < limit;
}

Test(api_prune_plan, random_sets_against_a_second_way_to_decide)
{
	static const int64_t spans[] = {7200, 86400 * 3, 86400 * 40, 86400 * 900};
	unsigned seed = 20260301;

	zone("CET-1CEST,M3.5.0,M10.5.0/3");
	for (int round = 0; round < 400; round++) {
		struct api_prune_rules rules = {.automatic = false};
		int64_t start = at(2024, 10, 20, 0, 0);

		count = 0;
		memset(items, 0, sizeof(items));
		for (int i = rand_r(&seed) % 24; i >= 0; i--)
			add(start + (int64_t)rand_r(&seed) % spans[round % 4]);
		for (int rule = 0; rule < API_KEEP_RULES; rule++)
			rules.keep[rule] = rand_r(&seed) % 3 ? 0 : (uint32_t)rand_r(&seed) % 6;
		plan(rules);
		for (size_t i = 0; i < count; i++) {
			bool keep = false;

			for (int rule = 0; rule < API_KEEP_RULES; rule++)
				keep = keep ||
				       (rules.keep[rule] && keeps(i, rule, rules.keep[rule]));
			cr_assert_eq(items[i].keep, keep, "round %d, item %zu of %zu", round, i,
				     count);
		}
	}
}
