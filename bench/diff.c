/* SPDX-License-Identifier: MIT */
/*
 * diff.c - how long it takes to tell what changed of a disk of 1 TiB, of which BLOCKS blocks anywhere were
 * written between two snapshots: all of them in one layer; as many over sixteen; and as many since the last
 * snapshot, in the map of an attached disk whose thread does nothing else.
 *
 * Prints a JSON line for each, with the best and the median of the calls; the first of them, which reads the
 * indexes, by itself.
 *
 *   diff DIR BLOCKS
 */
#include "bench/stage.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TIB    (UINT64_C(1) << 40)
#define CALLS  11u
#define LAYERS 16u

struct asking {
	struct vmimg_service *svc;
	char disk[2 * VMIMG_NAME_MAX], from[2 * VMIMG_NAME_MAX], to[2 * VMIMG_NAME_MAX];
	uint64_t ns[CALLS], ranges, bytes;
	atomic_bool done;
};

static void *ask(void *arg)
{
	struct asking *a = arg;
	struct vmimg_changes changes;
	struct vmimg_error err;

	for (unsigned i = 0; i < CALLS; i++) {
		uint64_t start = load_now_ns();

		if (vmimg_get_virtual_disk_changes(a->svc, a->disk, a->from, a->to, 0, TIB,
						   &changes, &err))
			stage_die(a->disk, &err);
		a->ns[i] = load_now_ns() - start;
		a->ranges = changes.count;
		a->bytes = 0;
		for (size_t j = 0; j < changes.count; j++)
			a->bytes += changes.changed_byte_lengths[j];
		vmimg_changes_free(&changes);
	}
	atomic_store(&a->done, true);
	return NULL;
}

static int by_value(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

static void print(struct asking *a, const char *what)
{
	uint64_t first = a->ns[0], median;

	qsort(a->ns + 1, CALLS - 1, sizeof(a->ns[0]), by_value);
	median = a->ns[CALLS / 2 + 1];
	stage_print(json_pack("{s:s, s:s, s:I, s:I, s:f, s:f, s:f}", "row", "diff", "of", what,
			      "ranges", (json_int_t)a->ranges, "bytes", (json_int_t)a->bytes,
			      "first_ms", (double)first / 1e6, "best_ms", (double)a->ns[1] / 1e6,
			      "median_ms", (double)median / 1e6));
}

/* Asks on a thread of its own: the disk's is the caller's, and turns meanwhile. */
static void measure(struct vmimg_service *svc, struct vmimg_queue *queue, const char *name,
		    unsigned from, unsigned to, const char *what)
{
	struct asking a = {.svc = svc};
	struct vmimg_completion none;
	pthread_t thread;

	snprintf(a.disk, sizeof(a.disk), "%s/d", name);
	snprintf(a.from, sizeof(a.from), "%s@s%u", name, from);
	if (to)
		snprintf(a.to, sizeof(a.to), "%s@s%u", name, to);
	errno = pthread_create(&thread, NULL, ask, &a);
	if (errno)
		stage_die("a thread", NULL);
	while (!atomic_load(&a.done))
		vmimg_queue_poll(queue, &none, 1, 1000000);
	pthread_join(thread, NULL);
	print(&a, what);
}

int main(int argc, char **argv)
{
	struct vmimg_options options = {.size = sizeof(options), .seal_rate = UINT64_C(1) << 40};
	struct vmimg_service *svc;
	struct histogram unused = {0};
	struct vmimg_queue *queue;
	struct vmimg_disk *disk;
	struct vmimg_error err;
	struct pattern order;
	uint64_t blocks;

	if (argc != 3) {
		fprintf(stderr, "usage: diff DIR BLOCKS\n");
		return 2;
	}
	blocks = stage_number(argv[2]);
	if (vmimg_store_init(argv[1], &err) < 0 || vmimg_open(argv[1], &options, &err, &svc) < 0)
		stage_die(argv[1], &err);
	queue = stage_queue(svc);
	stage_disk(svc, "big", TIB);
	disk = stage_attach(queue, "big");
	pattern_init(&order, TIB / STAGE_BLOCK, true, false, 1);
	stage_run(queue, disk, VMIMG_WRITE, &order, STAGE_DEPTH, blocks, 0, &unused);
	measure(svc, queue, "big", 0, 0, "the head, of an attached disk");
	stage_detach(disk);
	stage_snapshot(svc, "big", 1);
	for (unsigned i = 0; i < LAYERS; i++) {
		disk = stage_attach(queue, "big");
		stage_run(queue, disk, VMIMG_WRITE, &order, STAGE_DEPTH, blocks / LAYERS, 0,
			  &unused);
		stage_detach(disk);
		stage_snapshot(svc, "big", i + 2);
	}
	for (unsigned i = 1; i <= LAYERS + 1; i++)
		stage_await_seal(svc, "big", i, queue);
	measure(svc, queue, "big", 0, 1, "two snapshots, one layer");
	measure(svc, queue, "big", 1, LAYERS + 1, "two snapshots, sixteen layers");
	vmimg_queue_destroy(queue);
	stage_close(svc);
	return 0;
}
