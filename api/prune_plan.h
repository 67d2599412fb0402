/* SPDX-License-Identifier: MIT */
/*
 * prune_plan.h - which snapshots retention keeps (RT-1..RT-5): a decision from times alone. It
 * knows no store, and changes nothing but its argument. Any thread. Private.
 */
#ifndef API_PRUNE_PLAN_H
#define API_PRUNE_PLAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum api_prune_rule {
	API_KEEP_LAST,
	API_KEEP_HOURLY,
	API_KEEP_DAILY,
	API_KEEP_WEEKLY,
	API_KEEP_MONTHLY,
	API_KEEP_YEARLY,
	API_KEEP_RULES,
};

#define API_PRUNE_MAX 1000000u /* RT-4 */

struct api_prune_rules {
	uint32_t keep[API_KEEP_RULES]; /* how many by each; 0: the rule is not used */
	bool automatic;                /* automatic snapshots are candidates, too */
};

struct api_prune_item {
	int64_t time_ns; /* wall clock, since 1970: of the cut */
	bool held, in_use, automatic;
	/* the decision */
	bool keep;
	uint32_t by[API_KEEP_RULES]; /* its number within each rule that keeps it, from 1; 0: none */
};

/* The rule's name, as it stands in options and reasons: "last", "hourly", ... */
const char *api_prune_rule_name(enum api_prune_rule rule);
/*
 * Decides over @count items in the order of their creation. Local time is localtime_r()'s. 0,
 * -ENOMEM, or -EOVERFLOW: a time that no calendar has.
 */
int api_prune_plan(const struct api_prune_rules *rules, struct api_prune_item *items, size_t count);

#endif
