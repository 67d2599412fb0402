/* SPDX-License-Identifier: MIT */
/*
 * stall.c - how long writes take while something happens: a writer with one 4 KiB random write in flight
 * on every target, until standard input ends. Each line read there is a window of the monotonic clock,
 * "START END" in ns; at the end it prints a JSON line with the longest write that was under way in each, and
 * the 99th of a hundred of them.
 *
 * Each writer's log is its thread's until the load has ended; then the main thread reads all.
 *
 *   stall TARGET...      prints "ready" once every writer writes
 */
#include "bench/stage.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define TARGETS_MAX 64
#define WINDOWS_MAX 4096

struct window {
	uint64_t start, end;
};

struct writer {
	struct window *log; /* writes: start and end */
	size_t count, room;
	atomic_bool writes;
};

static struct writer writers[TARGETS_MAX];
static const char *const *targets;
static unsigned target_count;
static atomic_int stop;
static struct load_result result;

static void note(void *arg, unsigned job, uint8_t op, uint64_t start, uint64_t end)
{
	struct writer *w = &writers[job];

	(void)arg;
	(void)op;
	if (w->count == w->room) {
		size_t room = w->room ? 2 * w->room : 1 << 16;
		struct window *log = realloc(w->log, room * sizeof(*log));

		if (!log)
			stage_die("memory", NULL);
		w->log = log;
		w->room = room;
	}
	w->log[w->count++] = (struct window){start, end};
	atomic_store_explicit(&w->writes, true, memory_order_relaxed);
}

static void *run_load(void *arg)
{
	struct load_options o = {
		.rw = LOAD_RANDWRITE,
		.iodepth = 1,
		.runtime_ns = UINT64_C(3600) * 1000000000,
		.norandommap = true,
		.stop = &stop,
		.trace = note,
	};
	struct vmimg_error err = {0};

	(void)arg;
	if (load_run(NULL, targets, target_count, &o, &err, &result) < 0 || result.errors)
		stage_die("load", &err);
	return NULL;
}

static int by_length(const void *a, const void *b)
{
	const uint64_t *x = a, *y = b;

	return *x < *y ? -1 : *x > *y;
}

/* Of the writes that were under way in a window: the longest, and the 99th of a hundred. */
static void look(struct window in, uint64_t *longest, uint64_t *p99)
{
	size_t n = 0, room = 1;
	uint64_t *lengths;

	for (unsigned t = 0; t < target_count; t++)
		room += writers[t].count;
	lengths = malloc(room * sizeof(*lengths));
	if (!lengths)
		stage_die("memory", NULL);
	lengths[0] = 0;
	for (unsigned t = 0; t < target_count; t++)
		for (size_t i = 0; i < writers[t].count; i++) {
			const struct window *w = &writers[t].log[i];

			if (w->end >= in.start && w->start <= in.end)
				lengths[n++] = w->end - w->start;
		}
	qsort(lengths, n, sizeof(*lengths), by_length);
	*longest = n ? lengths[n - 1] : 0;
	*p99 = n ? lengths[(n - 1) * 99 / 100] : 0;
	free(lengths);
}

static unsigned read_windows(struct window *windows)
{
	char line[256];
	unsigned n = 0;

	while (n < WINDOWS_MAX && fgets(line, sizeof(line), stdin)) {
		char *end;

		windows[n].start = strtoull(line, &end, 10);
		windows[n].end = strtoull(end, NULL, 10);
		if (windows[n].start >= windows[n].end)
			stage_die("a window is not START END", NULL);
		n++;
	}
	return n;
}

int main(int argc, char **argv)
{
	static struct window windows[WINDOWS_MAX];
	json_t *list = json_array(), *p99s = json_array();
	pthread_t thread;
	unsigned n;

	if (argc < 2 || argc > TARGETS_MAX + 1) {
		fprintf(stderr, "usage: stall TARGET...\n");
		return 2;
	}
	targets = (const char *const *)argv + 1;
	target_count = (unsigned)argc - 1;
	pthread_create(&thread, NULL, run_load, NULL);
	for (unsigned t = 0; t < target_count; t++)
		while (!atomic_load(&writers[t].writes))
			usleep(1000);
	puts("ready");
	fflush(stdout);
	n = read_windows(windows);
	atomic_store(&stop, 1);
	pthread_join(thread, NULL);
	for (unsigned i = 0; i < n; i++) {
		uint64_t longest, p99;

		look(windows[i], &longest, &p99);
		json_array_append_new(list, json_integer((json_int_t)longest));
		json_array_append_new(p99s, json_integer((json_int_t)p99));
	}
	stage_print(json_pack("{s:I, s:I, s:I, s:o, s:o}", "writes", (json_int_t)result.writes,
			      "p50_ns", (json_int_t)result.latency.p50, "p99_ns",
			      (json_int_t)result.latency.p99, "longest_ns", list, "window_p99_ns",
			      p99s));
	return 0;
}
