/* SPDX-License-Identifier: MIT */
/*
 * chain.c - random reads through chains of different depths, by turns.
 *
 * Makes a disk for each depth N: its blocks, in random order, are dealt evenly to N layers, a snapshot
 * after each, so that neighbours lie in different layers and the head is empty. When all layers are
 * sealed the store is closed and opened again: the maps are then built from what is on disk. Every
 * block of every disk is read once ("warm"), then the disks take turns. Prints a JSON line for every
 * run, and one for each disk's opening.
 *
 *   chain DIR MIB ROUNDS SECONDS DEPTH...
 */
#include "bench/stage.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SECOND UINT64_C(1000000000)

struct chain {
	unsigned depth;
	char name[16];
	struct vmimg_disk *disk;
	struct pattern order;
};

static uint64_t blocks;

static struct pattern shuffled(uint64_t seed)
{
	struct pattern order;

	pattern_init(&order, blocks, true, false, seed);
	return order;
}

static void build(struct vmimg_service *svc, struct vmimg_queue *queue, struct chain *c)
{
	struct pattern order = shuffled(c->depth);
	struct histogram unused = {0};

	stage_disk(svc, c->name, blocks * STAGE_BLOCK);
	c->disk = stage_attach(queue, c->name);
	for (uint64_t i = 0; i < c->depth; i++) {
		uint64_t count = blocks * (i + 1) / c->depth - blocks * i / c->depth;

		stage_run(queue, c->disk, VMIMG_WRITE, &order, STAGE_DEPTH, count, 0, &unused);
		stage_snapshot(svc, c->name, (unsigned)i + 1);
	}
	for (unsigned i = 1; i <= c->depth; i++)
		stage_await_seal(svc, c->name, i, queue);
	stage_detach(c->disk);
}

static void warm_up(struct vmimg_queue *queue, struct chain *c)
{
	struct histogram unused = {0};
	uint64_t start = load_now_ns(), attached, map, head;

	c->order = shuffled(start);
	c->disk = stage_attach(queue, c->name);
	attached = load_now_ns();
	stage_run(queue, c->disk, VMIMG_READ, &c->order, STAGE_DEPTH, blocks, 0, &unused);
	vmimg_disk_memory(c->disk, &map, &head);
	stage_print(json_pack("{s:s, s:i, s:I, s:I, s:I}", "row", "chain_open", "depth",
			      (int)c->depth, "attach_ns", (json_int_t)(attached - start),
			      "first_pass_ns", (json_int_t)(load_now_ns() - attached), "map_bytes",
			      (json_int_t)map));
}

static void measure(struct vmimg_queue *queue, struct chain *c, unsigned iodepth, unsigned round,
		    unsigned seconds)
{
	struct histogram latency = {0};
	struct load_latency summary;
	double cpu = stage_cpu_us();
	uint64_t start = load_now_ns();
	uint64_t ios = stage_run(queue, c->disk, VMIMG_READ, &c->order, iodepth, 0,
				 start + seconds * SECOND, &latency);
	double elapsed = (double)(load_now_ns() - start);

	cpu = stage_cpu_us() - cpu;
	histogram_latency(&latency, &summary);
	stage_print(json_pack("{s:s, s:i, s:i, s:i, s:f, s:I, s:I, s:f}", "row", "chain", "depth",
			      (int)c->depth, "iodepth", (int)iodepth, "round", (int)round, "iops",
			      (double)ios * 1e9 / elapsed, "p50_ns", (json_int_t)summary.p50,
			      "p99_ns", (json_int_t)summary.p99, "cpu_us", cpu / (double)ios));
}

int main(int argc, char **argv)
{
	static const unsigned iodepths[] = {1, STAGE_DEPTH};
	unsigned rounds, seconds, count;
	struct vmimg_service *svc;
	struct vmimg_queue *queue;
	struct chain *chains;

	if (argc < 6) {
		fprintf(stderr, "usage: chain DIR MIB ROUNDS SECONDS DEPTH...\n");
		return 2;
	}
	blocks = ((uint64_t)stage_number(argv[2]) << 20) / STAGE_BLOCK;
	rounds = stage_number(argv[3]);
	seconds = stage_number(argv[4]);
	count = (unsigned)argc - 5;
	chains = calloc(count, sizeof(*chains));
	svc = stage_open(argv[1]);
	queue = stage_queue(svc);
	for (unsigned i = 0; i < count; i++) {
		chains[i].depth = stage_number(argv[5 + i]);
		snprintf(chains[i].name, sizeof(chains[i].name), "c%u", chains[i].depth);
		build(svc, queue, &chains[i]);
	}
	vmimg_queue_destroy(queue);
	stage_close(svc);

	svc = stage_open(argv[1]);
	queue = stage_queue(svc);
	for (unsigned i = 0; i < count; i++)
		warm_up(queue, &chains[i]);
	for (unsigned d = 0; d < sizeof(iodepths) / sizeof(*iodepths); d++)
		for (unsigned round = 1; round <= rounds; round++)
			for (unsigned i = 0; i < count; i++)
				measure(queue, &chains[i], iodepths[d], round, seconds);
	for (unsigned i = 0; i < count; i++)
		stage_detach(chains[i].disk);
	vmimg_queue_destroy(queue);
	stage_close(svc);
	free(chains);
	return 0;
}
