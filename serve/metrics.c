/* SPDX-License-Identifier: MIT */
/*
 * metrics.c - the counters as one JSON document, and the same as Prometheus' text. A disk: requests,
 * bytes, errors, a histogram of latencies, the longest write while a snapshot was made; the store:
 * connections, jobs, space. Any thread; the counters of one disk are not read at one instant.
 */
#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>

#include "serve/server.h"

static const char *const op_names[SRV_STAT_OPS] = {"read", "write", "flush", "zero"};

/* --- JSON --- */

static json_t *number(const _Atomic uint64_t *counter)
{
	return json_integer((json_int_t)atomic_load_explicit(counter, memory_order_relaxed));
}

static json_t *op_document(const struct srv_stats *stats, unsigned op)
{
	json_t *latency = json_array();

	for (unsigned i = 0; i < SRV_LATENCY_BUCKETS; i++)
		json_array_append_new(latency, number(&stats->op[op].latency[i]));
	return json_pack("{s:o, s:o, s:o, s:o, s:o}", "requests", number(&stats->op[op].requests),
			 "bytes", number(&stats->op[op].bytes), "errors",
			 number(&stats->op[op].errors), "total_ns", number(&stats->op[op].total_ns),
			 "latency_log2_us", latency);
}

static void add_export(void *arg, const struct srv_export *export, unsigned users)
{
	json_t *list = arg;
	json_t *one = json_pack("{s:s, s:b, s:I, s:i, s:o, s:o}", "export", export->name,
				"read_only", export->read_only, "size",
				(json_int_t)atomic_load(&export->size), "users", (int)users,
				"connections", number(&export->stats.connections),
				"snapshot_write_max_ns",
				number(&export->stats.snapshot_write_max_ns));

	for (unsigned op = 0; op < SRV_STAT_OPS; op++)
		json_object_set_new(one, op_names[op], op_document(&export->stats, op));
	json_array_append_new(list, one);
}

/* Jobs by state: {"running": N, "completed": N, "failed": N}. */
static json_t *jobs_document(struct srv_server *s)
{
	json_int_t running = 0, completed = 0, failed = 0;
	char *text = NULL;
	json_t *jobs, *job;
	size_t i;

	if (vmimg_list(s->svc, VMIMG_KIND_JOB, NULL, NULL, &text) < 0)
		return json_null();
	jobs = json_loads(text, 0, NULL);
	vmimg_free(text);
	json_array_foreach (jobs, i, job) {
		json_int_t state = json_integer_value(json_object_get(job, "job_state"));

		running += state < VMIMG_JOB_COMPLETED;
		completed += state == VMIMG_JOB_COMPLETED;
		failed += state > VMIMG_JOB_COMPLETED;
	}
	json_decref(jobs);
	return json_pack("{s:I, s:I, s:I}", "running", running, "completed", completed, "failed",
			 failed);
}

static json_t *store_document(struct srv_server *s)
{
	struct statvfs fs;
	char *text = NULL;
	json_t *store;

	if (vmimg_describe(s->svc, VMIMG_KIND_BRIEF | VMIMG_KIND_STORE, NULL, NULL, &text) < 0)
		return json_null();
	store = json_loads(text, 0, NULL);
	vmimg_free(text);
	if (store && statvfs(s->options.store, &fs) == 0) {
		json_object_set_new(store, "fs_bytes",
				    json_integer((json_int_t)(fs.f_blocks * fs.f_frsize)));
		json_object_set_new(store, "fs_free_bytes",
				    json_integer((json_int_t)(fs.f_bavail * fs.f_frsize)));
	}
	return store ? store : json_null();
}

static json_t *document(struct srv_server *s)
{
	json_t *exports = json_array();

	srv_exports_each(s->exports, add_export, exports);
	return json_pack("{s:i, s:I, s:I, s:o, s:o, s:I, s:o, s:o, s:o}", "version", 1, "uptime_ns",
			 (json_int_t)(srv_now_ns() - s->start_ns), "connections",
			 (json_int_t)atomic_load(&s->connections), "accepted", number(&s->accepted),
			 "refused", number(&s->refused), "inflight_bytes",
			 (json_int_t)atomic_load(&s->inflight_bytes), "store", store_document(s),
			 "jobs", jobs_document(s), "exports", exports);
}

char *srv_metrics_json(struct srv_server *s)
{
	json_t *doc = document(s);
	char *text = doc ? json_dumps(doc, JSON_COMPACT) : NULL;

	json_decref(doc);
	return text;
}

/* --- Prometheus --- */

static void family(FILE *out, const char *name, const char *type, const char *help)
{
	fprintf(out, "# HELP vmimg_%s %s\n# TYPE vmimg_%s %s\n", name, help, name, type);
}

static long long value_of(const json_t *object, const char *key)
{
	return json_integer_value(json_object_get(object, key));
}

static void gauge(FILE *out, const char *name, const char *type, const char *help, long long value)
{
	family(out, name, type, help);
	fprintf(out, "vmimg_%s %lld\n", name, value);
}

/* Names hold nothing that a label would have to escape (RC-6). */
static void print_ops(FILE *out, const json_t *exports, const char *name, const char *key,
		      const char *help)
{
	const json_t *export;
	size_t i;

	family(out, name, "counter", help);
	json_array_foreach (exports, i, export)
		for (unsigned op = 0; op < SRV_STAT_OPS; op++)
			fprintf(out, "vmimg_%s{disk=\"%s\",op=\"%s\"} %lld\n", name,
				json_string_value(json_object_get(export, "export")), op_names[op],
				value_of(json_object_get(export, op_names[op]), key));
}

static void print_histogram(FILE *out, const json_t *export, unsigned op)
{
	const char *disk = json_string_value(json_object_get(export, "export"));
	const json_t *stats = json_object_get(export, op_names[op]);
	const json_t *buckets = json_object_get(stats, "latency_log2_us");
	long long sum = 0;

	for (unsigned i = 0; i + 1 < SRV_LATENCY_BUCKETS; i++) {
		sum += json_integer_value(json_array_get(buckets, i));
		fprintf(out,
			"vmimg_disk_latency_seconds_bucket{disk=\"%s\",op=\"%s\",le=\"%g\"} %lld\n",
			disk, op_names[op], (double)(UINT64_C(1) << i) / 1e6, sum);
	}
	sum += json_integer_value(json_array_get(buckets, SRV_LATENCY_BUCKETS - 1));
	fprintf(out,
		"vmimg_disk_latency_seconds_bucket{disk=\"%s\",op=\"%s\",le=\"+Inf\"} %lld\n"
		"vmimg_disk_latency_seconds_sum{disk=\"%s\",op=\"%s\"} %g\n"
		"vmimg_disk_latency_seconds_count{disk=\"%s\",op=\"%s\"} %lld\n",
		disk, op_names[op], sum, disk, op_names[op],
		(double)value_of(stats, "total_ns") / 1e9, disk, op_names[op], sum);
}

static void print_exports(FILE *out, const json_t *exports)
{
	const json_t *export;
	size_t i;

	print_ops(out, exports, "disk_requests_total", "requests", "Requests ended");
	print_ops(out, exports, "disk_bytes_total", "bytes", "Bytes of requests that succeeded");
	print_ops(out, exports, "disk_errors_total", "errors", "Requests that failed");
	family(out, "disk_latency_seconds", "histogram", "From a request's receipt to its end");
	json_array_foreach (exports, i, export)
		for (unsigned op = 0; op < SRV_STAT_OPS; op++)
			print_histogram(out, export, op);
	family(out, "disk_snapshot_write_max_seconds", "gauge",
	       "Longest write while a snapshot was being created");
	json_array_foreach (exports, i, export)
		fprintf(out, "vmimg_disk_snapshot_write_max_seconds{disk=\"%s\"} %g\n",
			json_string_value(json_object_get(export, "export")),
			(double)value_of(export, "snapshot_write_max_ns") / 1e9);
}

char *srv_metrics_prometheus(struct srv_server *s)
{
	json_t *doc = document(s), *store = json_object_get(doc, "store"),
	       *jobs = json_object_get(doc, "jobs");
	char *text = NULL;
	size_t size = 0;
	FILE *out = doc ? open_memstream(&text, &size) : NULL;

	if (out) {
		gauge(out, "uptime_seconds", "gauge", "Since the start",
		      value_of(doc, "uptime_ns") / 1000000000);
		gauge(out, "connections", "gauge", "Clients now", value_of(doc, "connections"));
		gauge(out, "accepted_total", "counter", "Clients accepted",
		      value_of(doc, "accepted"));
		gauge(out, "refused_total", "counter", "Clients refused", value_of(doc, "refused"));
		gauge(out, "inflight_bytes", "gauge", "Payload in work",
		      value_of(doc, "inflight_bytes"));
		gauge(out, "store_allocated_bytes", "gauge", "Space of all layers",
		      value_of(store, "allocated"));
		gauge(out, "store_fs_free_bytes", "gauge", "Free space of the store's file system",
		      value_of(store, "fs_free_bytes"));
		gauge(out, "snapshots", "gauge", "Snapshots kept", value_of(store, "snapshots"));
		gauge(out, "jobs_running", "gauge", "Jobs running", value_of(jobs, "running"));
		gauge(out, "jobs_failed", "gauge", "Ended jobs still listed that failed",
		      value_of(jobs, "failed"));
		print_exports(out, json_object_get(doc, "exports"));
		fclose(out);
	}
	json_decref(doc);
	return text;
}
