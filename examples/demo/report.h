/* SPDX-License-Identifier: MIT */
/* report.h - latencies as they are measured, and how the demo prints them. */
#ifndef DEMO_REPORT_H
#define DEMO_REPORT_H

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

enum report_kind { REPORT_WRITE, REPORT_DEPENDENT, REPORT_FLUSH, REPORT_KINDS };
enum report_window { REPORT_BEFORE, REPORT_DURING, REPORT_AFTER, REPORT_WINDOWS };

/* Latencies of one kind in one window, ns. One thread's until the end, then added up. */
struct samples {
	uint64_t *ns;
	size_t count, room;
};

/* Both return 0, or -1 when out of memory. */
int samples_add(struct samples *s, uint64_t ns);
int samples_append(struct samples *s, const struct samples *from);
void samples_fini(struct samples *s);

/* @lengths_ns: how long each window was. Sorts the samples. */
void report_latency(struct samples all[REPORT_KINDS][REPORT_WINDOWS],
		    const uint64_t lengths_ns[REPORT_WINDOWS]);
/* @snapshot: vmimg_describe()'s document. */
void report_snapshot(const json_t *snapshot, uint64_t call_ns);
/* Layers of @snapshot that are sealed; *@total: all of them. */
unsigned report_sealed(const json_t *snapshot, unsigned *total);

#define REPORT_TEXT_MAX 24
const char *report_duration(char buf[static REPORT_TEXT_MAX], uint64_t ns);

#endif
