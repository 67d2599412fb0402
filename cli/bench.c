/* SPDX-License-Identifier: MIT */
/*
 * bench.c - the verb bench: load on disks of the store, plain files or NBD exports, by the loop of
 * bench/load.c. The options and their meaning are fio's.
 */
#include "cli/options.h"
#include "cli/output.h"
#include "bench/load.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct {
	const char *name;
	enum load_rw rw;
} patterns[] = {
	{"randread", LOAD_RANDREAD}, {"randwrite", LOAD_RANDWRITE}, {"read", LOAD_READ},
	{"write", LOAD_WRITE},       {"randrw", LOAD_RANDRW},
};

static enum load_rw parse_rw(const char *name)
{
	size_t i = 0;

	while (strcmp(patterns[i].name, name) != 0)
		i++;
	return patterns[i].rw;
}

static json_t *latency_document(const struct load_latency *l)
{
	return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I}", "min", (json_int_t)l->min, "mean",
			 (json_int_t)l->mean, "p50", (json_int_t)l->p50, "p99", (json_int_t)l->p99,
			 "p99_9", (json_int_t)l->p99_9, "max", (json_int_t)l->max);
}

static json_t *result_document(const struct load_result *r, const char *rw, char *const *targets,
			       int count)
{
	json_t *names = json_array();
	json_t *document;

	for (int i = 0; i < count; i++)
		json_array_append_new(names, json_string(targets[i]));
	document = json_pack("{s:o, s:s, s:I, s:I, s:o, s:f, s:I, s:I, s:I, s:I, s:I, s:I, s:b}",
			     "targets", names, "rw", rw, "iops", (json_int_t)(r->iops + 0.5),
			     "bandwidth", (json_int_t)(r->bandwidth + 0.5), "latency_ns",
			     latency_document(&r->latency), "cpu_us_per_io",
			     (double)(uint64_t)(r->cpu_us_per_io * 1000 + 0.5) / 1000, "flushes",
			     (json_int_t)r->flushes, "errors", (json_int_t)r->errors, "ios",
			     (json_int_t)r->ios, "bytes", (json_int_t)r->bytes, "verified",
			     (json_int_t)r->verified, "elapsed_ns", (json_int_t)r->elapsed_ns,
			     "direct", r->direct);
	if (document && r->flush_latency.count)
		json_object_set_new(document, "flush_latency_ns",
				    latency_document(&r->flush_latency));
	return document;
}

static void print_latency(const char *title, const struct load_latency *l)
{
	char min[CLI_TEXT_MAX], p50[CLI_TEXT_MAX], p99[CLI_TEXT_MAX], p99_9[CLI_TEXT_MAX],
		max[CLI_TEXT_MAX];

	printf("%-10s min %s, p50 %s, p99 %s, p99.9 %s, max %s\n", title,
	       cli_duration_text(min, l->min), cli_duration_text(p50, l->p50),
	       cli_duration_text(p99, l->p99), cli_duration_text(p99_9, l->p99_9),
	       cli_duration_text(max, l->max));
}

static int print_result(struct cli *cli, const struct load_result *r, const char *rw,
			char *const *targets, int count)
{
	char bytes[CLI_TEXT_MAX], rate[CLI_TEXT_MAX], time[CLI_TEXT_MAX];

	if (cli->json)
		return cli_print_json(cli, result_document(r, rw, targets, count));
	printf("%s: %llu requests, %s in %s%s\n", rw, (unsigned long long)r->ios,
	       cli_size_text(bytes, r->bytes), cli_duration_text(time, r->elapsed_ns),
	       r->direct ? "" : ", buffered");
	printf("%-10s %.0f IOPS, %s/s, %.1f us of CPU each\n", "rate", r->iops,
	       cli_size_text(rate, (uint64_t)r->bandwidth), r->cpu_us_per_io);
	print_latency("latency", &r->latency);
	if (r->flushes)
		print_latency("flushes", &r->flush_latency);
	if (r->verified)
		printf("%-10s %llu blocks read back and right\n", "verified",
		       (unsigned long long)r->verified);
	if (r->errors)
		printf("%-10s %llu\n", "errors", (unsigned long long)r->errors);
	return cli_finish_output(cli);
}

/* Whether a target needs the store. */
static bool needs_store(char *const *targets, int count)
{
	bool any = false;

	for (int i = 0; i < count; i++)
		any |= strncmp(targets[i], "raw:", 4) != 0 && !load_is_nbd(targets[i]);
	return any;
}

static int run_load(struct cli *cli, const struct load_options *load, const char *rw,
		    char *const *targets, int count)
{
	struct vmimg_options open_options = {.size = sizeof(open_options),
					     .buffered = load->buffered};
	struct vmimg_service *svc = NULL;
	struct vmimg_error err = {0};
	struct load_result result;
	int status = CLI_OK;
	int r;

	if (needs_store(targets, count))
		status = cli_open(cli, &open_options, &svc);
	if (status)
		return status;
	r = load_run(svc, (const char *const *)targets, (unsigned)count, load, &err, &result);
	if (r < 0) {
		status = cli_fail(cli, r, &err);
	} else {
		status = print_result(cli, &result, rw, targets, count);
		if (result.errors)
			status = cli_fail(cli, err.code, &err);
	}
	if (!status && cli_interrupted())
		status = cli_error(cli, -EINTR, "interrupted");
	return svc ? cli_close(cli, svc, status) : status;
}

static int run_bench(struct cli *cli, int argc, char **argv)
{
	const char *rw = "randread", *direct = "1";
	uint64_t bs = 4096, iodepth = 32, numjobs = 1, runtime = 0, ios = 0, fsync = 0, seed = 0;
	struct load_options load = {.stop = cli_interrupt_flag()};
	const struct cli_option options[] = {
		{"rw", 0, CLI_CHOICE, &rw, "randread|randwrite|read|write|randrw",
		 "default: randread"},
		{"bs", 0, CLI_SIZE, &bs, "SIZE", "of a request (default: 4k)"},
		{"iodepth", 0, CLI_COUNT, &iodepth, "N", "requests in flight a job (default: 32)"},
		{"numjobs", 0, CLI_COUNT, &numjobs, "N",
		 "threads a target, which they divide (default: 1)"},
		{"runtime", 0, CLI_COUNT, &runtime, "SECONDS", "stop after so long"},
		{"number-ios", 0, CLI_COUNT, &ios, "N", "stop after so many requests a job"},
		{"norandommap", 0, CLI_FLAG, &load.norandommap, NULL,
		 "random offsets may repeat at once"},
		{"fsync", 0, CLI_COUNT, &fsync, "N", "a flush after every N writes"},
		{"verify", 0, CLI_FLAG, &load.verify, NULL, "read back and check what was written"},
		{"direct", 0, CLI_CHOICE, &direct, "0|1", "0: through the page cache (default: 1)"},
		{"seed", 0, CLI_COUNT, &seed, "N", "the same order of blocks each time"},
		{0},
	};
	int words = cli_parse(cli, options, argc, argv);

	if (!bs || bs % 512 || bs > 32 << 20)
		cli_usage_error(cli, "--bs: not a multiple of 512, or above 32M");
	if (!iodepth || iodepth > 4096)
		cli_usage_error(cli, "--iodepth: not from 1 to 4096");
	if (!numjobs || numjobs > 1024)
		cli_usage_error(cli, "--numjobs: not from 1 to 1024");
	if (runtime > 1000000000 || fsync > UINT32_MAX)
		cli_usage_error(cli, "--%s: too large", runtime > 1000000000 ? "runtime" : "fsync");
	load.rw = parse_rw(rw);
	load.bs = bs;
	load.iodepth = (unsigned)iodepth;
	load.numjobs = (unsigned)numjobs;
	load.runtime_ns = runtime * 1000000000;
	load.number_ios = ios;
	load.fsync = (unsigned)fsync;
	load.buffered = !strcmp(direct, "0");
	load.seed = seed;
	cli_catch_interrupts();
	return run_load(cli, &load, rw, argv, words);
}

const struct cli_verb cli_bench_verbs[] = {
	{"bench", "TARGET...",
	 "Put load on disks (VM/DISK), files (raw:FILE) or NBD URIs and measure", 1, 4096,
	 run_bench, 0},
	{0},
};
