/* SPDX-License-Identifier: MIT */
/*
 * prune_plan.c - see prune_plan.h. Each rule walks the candidates once, from the newest to the
 * oldest, and keeps the first of each period (RT-2): a candidate of another period than the one
 * before it is the first of its own, since they are in order of time.
 */
#include "api/prune_plan.h"

#include <errno.h>
#include <stdlib.h>
#include <time.h>

/* What names a period within its rule (RT-3). */
struct period {
	int year, unit, hour;
	long offset; /* to UTC: the hour repeated in autumn is two */
};

struct ordered {
	struct api_prune_item *item;
	size_t place; /* in order of creation */
	struct tm tm; /* local */
};

const char *api_prune_rule_name(enum api_prune_rule rule)
{
	static const char *const names[] = {"last",   "hourly",  "daily",
					    "weekly", "monthly", "yearly"};

	return names[rule];
}

/* Newest first; of one instant the later made. */
static int compare(const void *a, const void *b)
{
	const struct ordered *x = a, *y = b;

	if (x->item->time_ns != y->item->time_ns)
		return x->item->time_ns < y->item->time_ns ? 1 : -1;
	return x->place < y->place ? 1 : -1;
}

/* Weeks of ISO 8601 begin on Monday and belong to the year that has their Thursday. */
static struct period iso_week(const struct tm *tm)
{
	int thursday = tm->tm_yday + 3 - (tm->tm_wday + 6) % 7, year = tm->tm_year + 1900;
	int before = year - 1;
	bool leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
	bool leap_before = before % 4 == 0 && (before % 100 != 0 || before % 400 == 0);

	if (thursday < 0) {
		thursday += 365 + leap_before;
		year--;
	} else if (thursday >= 365 + leap) {
		thursday -= 365 + leap;
		year++;
	}
	return (struct period){.year = year, .unit = thursday / 7};
}

static struct period period_of(enum api_prune_rule rule, const struct tm *tm)
{
	switch (rule) {
	case API_KEEP_HOURLY:
		return (struct period){tm->tm_year, tm->tm_yday, tm->tm_hour, tm->tm_gmtoff};
	case API_KEEP_DAILY: return (struct period){.year = tm->tm_year, .unit = tm->tm_yday};
	case API_KEEP_WEEKLY: return iso_week(tm);
	case API_KEEP_MONTHLY: return (struct period){.year = tm->tm_year, .unit = tm->tm_mon};
	default: return (struct period){.year = tm->tm_year};
	}
}

static bool is_same(const struct period *a, const struct period *b)
{
	return a->year == b->year && a->unit == b->unit && a->hour == b->hour &&
	       a->offset == b->offset;
}

static void apply(enum api_prune_rule rule, uint32_t limit, struct ordered *order, size_t count)
{
	struct period last = {0}, now;
	uint32_t kept = 0;

	for (size_t i = 0; i < count && kept < limit; i++) {
		now = period_of(rule, &order[i].tm);
		if (rule != API_KEEP_LAST && kept && is_same(&now, &last))
			continue;
		last = now;
		order[i].item->by[rule] = ++kept;
		order[i].item->keep = true;
	}
}

static int order_candidates(const struct api_prune_rules *rules, struct api_prune_item *items,
			    size_t count, struct ordered *order, size_t *ret)
{
	size_t n = 0;

	for (size_t i = 0; i < count; i++) {
		int64_t s = items[i].time_ns / 1000000000, rest = items[i].time_ns % 1000000000;
		time_t seconds = (time_t)(s - (rest < 0));

		if (items[i].automatic && !rules->automatic)
			continue;
		order[n] = (struct ordered){.item = &items[i], .place = i};
		if (!localtime_r(&seconds, &order[n].tm))
			return -EOVERFLOW;
		n++;
	}
	qsort(order, n, sizeof(*order), compare);
	*ret = n;
	return 0;
}

int api_prune_plan(const struct api_prune_rules *rules, struct api_prune_item *items, size_t count)
{
	struct ordered *order = calloc(count + 1, sizeof(*order));
	size_t n = 0;
	int r;

	if (!order)
		return -ENOMEM;
	tzset(); /* localtime_r() need not */
	r = order_candidates(rules, items, count, order, &n);
	if (r < 0)
		goto out;
	for (size_t i = 0; i < count; i++) {
		/* RT-1, RT-5 */
		items[i].keep = items[i].held || items[i].in_use ||
				(items[i].automatic && !rules->automatic);
		for (int rule = 0; rule < API_KEEP_RULES; rule++)
			items[i].by[rule] = 0;
	}
	for (int rule = 0; rule < API_KEEP_RULES; rule++)
		apply((enum api_prune_rule)rule, rules->keep[rule], order, n);
out:
	free(order);
	return r;
}
