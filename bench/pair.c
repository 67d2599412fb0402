/* SPDX-License-Identifier: MIT */
/*
 * pair.c - one disk against a raw file on the same file system, by turns.
 *
 * The raw file is allocated and written whole before anything is measured. "First writes" go to an
 * overlay that a snapshot has just made, each block at most once, and begin when the layer below has
 * been sealed, so that sealing does not share the disk with them. "Full head" means that every block
 * was written, in random order, since the last snapshot. Prints a JSON line for every run.
 *
 *   pair LABEL DIR MIB ROUNDS SECONDS all|first
 */
#include "bench/stage.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define NAME "pair"

static const struct row {
	const char *name;
	enum load_rw rw;
	unsigned iodepth, fsync;
	bool fresh; /* into an overlay made for the run; else a full head */
} rows[] = {
	{"first_write_qd32", LOAD_RANDWRITE, 32, 0, true},
	{"first_write_qd1", LOAD_RANDWRITE, 1, 0, true},
	{"first_write_flush_qd1", LOAD_RANDWRITE, 1, 1, true},
	{"overwrite_qd1", LOAD_RANDWRITE, 1, 0, false},
	{"overwrite_qd32", LOAD_RANDWRITE, 32, 0, false},
	{"read_qd1", LOAD_RANDREAD, 1, 0, false},
	{"read_qd32", LOAD_RANDREAD, 32, 0, false},
};

static struct vmimg_service *svc;
static const char *label;
static char raw[4096];
static uint64_t size;
static unsigned snapshots; /* taken, beside the first */

static void load(const char *target, const struct load_options *options, struct load_result *ret)
{
	struct vmimg_error err = {0};

	if (load_run(svc, &target, 1, options, &err, ret) < 0 || ret->errors)
		stage_die(target, &err);
}

/* Every block once. */
static void pass(const char *target, enum load_rw rw, uint64_t bs)
{
	struct load_options o = {.rw = rw, .bs = bs, .iodepth = bs > STAGE_BLOCK ? 8 : 32};
	struct load_result done;

	load(target, &o, &done);
}

static void make_raw(const char *dir)
{
	int fd, r;

	snprintf(raw, sizeof(raw), "raw:%s/raw.img", dir);
	fd = open(raw + 4, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0)
		stage_die(raw, NULL);
	r = posix_fallocate(fd, 0, (off_t)size);
	errno = r;
	if (r)
		stage_die(raw, NULL);
	pass(raw, LOAD_WRITE, 1 << 20);
	if (fsync(fd) < 0 || close(fd) < 0)
		stage_die(raw, NULL);
}

static void fresh_overlay(void)
{
	stage_snapshot(svc, NAME, ++snapshots);
	stage_await_seal(svc, NAME, snapshots, NULL);
}

static void measure(const struct row *row, bool ours, unsigned round, uint64_t runtime_ns)
{
	struct load_options o = {
		.rw = row->rw,
		.iodepth = row->iodepth,
		.fsync = row->fsync,
		.runtime_ns = runtime_ns,
		.number_ios = row->fresh ? size / STAGE_BLOCK : 0,
	};
	struct load_result done;

	if (ours && row->fresh)
		fresh_overlay();
	load(ours ? NAME "/d" : raw, &o, &done);
	if (!round)
		return;
	stage_print(json_pack("{s:s, s:s, s:s, s:i, s:f, s:I, s:I, s:I, s:f, s:f, s:b}", "row",
			      row->name, "label", label, "side", ours ? "vmimg" : "raw", "round",
			      (int)round, "iops", done.iops, "ios", (json_int_t)done.ios, "p50_ns",
			      (json_int_t)done.latency.p50, "p99_ns", (json_int_t)done.latency.p99,
			      "each_ns",
			      (double)done.elapsed_ns / (double)(done.ios ? done.ios : 1), "cpu_us",
			      done.cpu_us_per_io, "direct", done.direct));
}

/* What was not touched for a while reads slowly at first: both are read whole before they compete. */
static void fill_head(void)
{
	fresh_overlay();
	pass(NAME "/d", LOAD_RANDWRITE, STAGE_BLOCK);
	pass(NAME "/d", LOAD_READ, 1 << 20);
	pass(raw, LOAD_READ, 1 << 20);
}

int main(int argc, char **argv)
{
	unsigned rounds, seconds, first_only;
	char store[4096];
	bool full = false;

	if (argc != 7) {
		fprintf(stderr, "usage: pair LABEL DIR MIB ROUNDS SECONDS all|first\n");
		return 2;
	}
	label = argv[1];
	size = (uint64_t)stage_number(argv[3]) << 20;
	rounds = stage_number(argv[4]);
	seconds = stage_number(argv[5]);
	first_only = !strcmp(argv[6], "first");
	make_raw(argv[2]);
	snprintf(store, sizeof(store), "%s/store", argv[2]);
	svc = stage_open(store);
	stage_disk(svc, NAME, size);
	for (size_t i = 0; i < (first_only ? 1 : sizeof(rows) / sizeof(*rows)); i++) {
		if (!rows[i].fresh && !full)
			fill_head();
		full = !rows[i].fresh;
		/* Round 0 warms up; where each round costs an overlay there is none. */
		for (unsigned round = rows[i].fresh; round <= rounds; round++) {
			uint64_t runtime = (round ? seconds : 1) * UINT64_C(1000000000);

			measure(&rows[i], true, round, runtime);
			measure(&rows[i], false, round, runtime);
		}
	}
	stage_close(svc);
	return 0;
}
