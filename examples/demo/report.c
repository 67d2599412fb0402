/* SPDX-License-Identifier: MIT */
/* report.c - latencies as they are measured, and how the demo prints them (report.h). */
#include "examples/demo/report.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- samples --- */

int samples_add(struct samples *s, uint64_t ns)
{
	if (s->count == s->room) {
		size_t room = s->room ? 2 * s->room : 4096;
		uint64_t *more = realloc(s->ns, room * sizeof(*more));

		if (!more)
			return -1;
		s->ns = more;
		s->room = room;
	}
	s->ns[s->count++] = ns;
	return 0;
}

int samples_append(struct samples *s, const struct samples *from)
{
	for (size_t i = 0; i < from->count; i++)
		if (samples_add(s, from->ns[i]) < 0)
			return -1;
	return 0;
}

void samples_fini(struct samples *s)
{
	free(s->ns);
	memset(s, 0, sizeof(*s));
}

static int compare_ns(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

/* --- what is printed --- */

const char *report_duration(char buf[static REPORT_TEXT_MAX], uint64_t ns)
{
	if (ns < 1000)
		snprintf(buf, REPORT_TEXT_MAX, "%u ns", (unsigned)ns);
	else if (ns < 1000000)
		snprintf(buf, REPORT_TEXT_MAX, "%.1f us", (double)ns / 1e3);
	else if (ns < 1000000000)
		snprintf(buf, REPORT_TEXT_MAX, "%.1f ms", (double)ns / 1e6);
	else
		snprintf(buf, REPORT_TEXT_MAX, "%.2f s", (double)ns / 1e9);
	return buf;
}

static void print_row(const char *kind, const char *window, struct samples *s, uint64_t length_ns)
{
	char p50[REPORT_TEXT_MAX], p99[REPORT_TEXT_MAX], max[REPORT_TEXT_MAX];
	double seconds = (double)length_ns / 1e9;

	printf("%-24s %-7s ", kind, window);
	if (!s->count) {
		puts("       none");
		return;
	}
	qsort(s->ns, s->count, sizeof(*s->ns), compare_ns);
	printf("%9zu %8.0f %10s %10s %10s\n", s->count,
	       seconds > 0 ? (double)s->count / seconds : 0,
	       report_duration(p50, s->ns[s->count / 2]),
	       report_duration(p99, s->ns[s->count - 1 - s->count / 100]),
	       report_duration(max, s->ns[s->count - 1]));
}

void report_latency(struct samples all[REPORT_KINDS][REPORT_WINDOWS],
		    const uint64_t lengths_ns[REPORT_WINDOWS])
{
	static const char *const kinds[] = {"random 4 KiB writes", "dependent 4 KiB writes",
					    "flushes"};
	static const char *const windows[] = {"before", "during", "after"};

	printf("%-24s %-7s %9s %8s %10s %10s %10s\n", "latency", "", "requests", "a second", "p50",
	       "p99", "max");
	for (int k = 0; k < REPORT_KINDS; k++)
		for (int w = 0; w < REPORT_WINDOWS; w++)
			print_row(w ? "" : kinds[k], windows[w], &all[k][w], lengths_ns[w]);
}

static void print_time(const json_t *snapshot, const char *title, const char *key, const char *what)
{
	char buf[REPORT_TEXT_MAX];
	json_t *value = json_object_get(snapshot, key);

	if (json_is_integer(value))
		printf("%-10s %10s   %s\n", title,
		       report_duration(buf, (uint64_t)json_integer_value(value)), what);
}

void report_snapshot(const json_t *snapshot, uint64_t call_ns)
{
	char buf[REPORT_TEXT_MAX];

	printf("%-10s %10s   vmimg_create_snapshot() returned 4096: job started\n", "call",
	       report_duration(buf, call_ns));
	print_time(snapshot, "prepare", "prepare_ns", "an overlay for each disk, made and durable");
	print_time(snapshot, "cut", "cut_ns", "every disk's head changed, at one instant");
	print_time(snapshot, "drain", "drain_ns", "the writes in flight ended");
	print_time(snapshot, "harden", "harden_ns", "the frozen layers made durable");
	print_time(snapshot, "total", "total_ns", "the whole job, commit included");
	print_time(snapshot, "stall", "max_write_latency_ns", "the longest write meanwhile");
}

unsigned report_sealed(const json_t *snapshot, unsigned *total)
{
	const json_t *members = json_object_get(snapshot, "members");
	unsigned sealed = 0;
	json_t *member;
	size_t i;

	json_array_foreach (members, i, member)
		sealed += json_is_true(json_object_get(member, "sealed"));
	*total = (unsigned)json_array_size(members);
	return sealed;
}
