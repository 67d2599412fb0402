/* SPDX-License-Identifier: MIT */
/* diff_merge.c - see diff_merge.h: rows are merged two by two, from one array into another and back. */
#include "engine/diff/diff_merge.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

int eng_merge_init(struct eng_merge *merge, size_t runs)
{
	*merge = (struct eng_merge){.cap = runs ? runs : 1};
	merge->runs = malloc(merge->cap * sizeof(*merge->runs));
	return merge->runs ? 0 : -ENOMEM;
}

void eng_merge_fini(struct eng_merge *merge)
{
	free(merge->runs);
	free(merge->ends);
	*merge = (struct eng_merge){.cap = 0};
}

int eng_merge_add(struct eng_merge *merge, uint64_t first, uint64_t count)
{
	if (merge->used == merge->cap) {
		size_t cap = 2 * merge->cap;
		struct eng_merge_run *p = realloc(merge->runs, cap * sizeof(*p));

		if (!p)
			return -ENOMEM;
		merge->runs = p;
		merge->cap = cap;
	}
	merge->runs[merge->used++] = (struct eng_merge_run){first, count};
	return 0;
}

int eng_merge_end_row(struct eng_merge *merge)
{
	if (merge->count == merge->ends_cap) {
		size_t cap = merge->ends_cap ? 2 * merge->ends_cap : 16;
		size_t *p = realloc(merge->ends, cap * sizeof(*p));

		if (!p)
			return -ENOMEM;
		merge->ends = p;
		merge->ends_cap = cap;
	}
	merge->ends[merge->count++] = merge->used;
	return 0;
}

/* [from, mid) and [mid, end) of @in to the same places of @out. */
static void merge_two(const struct eng_merge_run *in, struct eng_merge_run *out, size_t from,
		      size_t mid, size_t end)
{
	size_t a = from, b = mid, to = from;

	while (a < mid && b < end) {
		bool second = in[b].first < in[a].first; /* no branch on what is random */

		out[to++] = in[second ? b : a];
		b += second;
		a += !second;
	}
	memcpy(out + to, in + a, (mid - a) * sizeof(*out));
	to += mid - a;
	memcpy(out + to, in + b, (end - b) * sizeof(*out));
}

/* One round: half as many rows, in the other array. */
static void merge_round(struct eng_merge *merge, struct eng_merge_run *out)
{
	size_t from = 0, rows = 0;

	for (size_t i = 0; i < merge->count; i += 2) {
		size_t mid = merge->ends[i], last = i + 1 < merge->count ? i + 1 : i;

		merge_two(merge->runs, out, from, mid, merge->ends[last]);
		from = merge->ends[last];
		merge->ends[rows++] = from;
	}
	merge->count = rows;
}

int eng_merge_finish(struct eng_merge *merge, struct eng_blocks *set)
{
	struct eng_merge_run *other = NULL, *swap;
	struct eng_blocks_adder adder;
	int r = 0;

	if (merge->count > 1) {
		other = malloc(merge->used * sizeof(*other));
		if (!other && merge->used)
			return -ENOMEM;
	}
	while (merge->count > 1) {
		merge_round(merge, other);
		swap = merge->runs;
		merge->runs = other;
		other = swap;
	}
	free(other);
	merge->cap = merge->used;
	eng_blocks_adder_init(&adder, set);
	for (size_t i = 0; r == 0 && i < merge->used; i++)
		r = eng_blocks_adder_add(&adder, merge->runs[i].first, merge->runs[i].count);
	return r == 0 ? eng_blocks_adder_end(&adder) : r;
}
