/* SPDX-License-Identifier: MIT */
/*
 * memory.c - what a disk's map takes: by the library's own count, and by how the process grew.
 *
 * Three disks: "full", every block of which is written in random order since the last snapshot;
 * "scattered", of 1 TiB with as many blocks written anywhere in it; "empty", of 1 TiB, attached and
 * nothing more. Growth counts anonymous and shared memory (the journal is shared). Prints a JSON line
 * for each.
 *
 *   memory DIR MIB
 */
#include "bench/stage.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TIB (UINT64_C(1) << 40)

static uint64_t resident(void)
{
	FILE *f = fopen("/proc/self/status", "re");
	uint64_t sum = 0;
	char line[256];

	if (!f)
		stage_die("/proc/self/status", NULL);
	while (fgets(line, sizeof(line), f))
		if (!strncmp(line, "RssAnon:", 8) || !strncmp(line, "RssShmem:", 9))
			sum += strtoull(strchr(line, ':') + 1, NULL, 10) << 10;
	fclose(f);
	return sum;
}

static void measure(struct vmimg_service *svc, struct vmimg_queue *queue, const char *name,
		    uint64_t size, uint64_t writes)
{
	uint64_t grown, map, head, map_empty, head_empty;
	struct histogram unused = {0};
	struct vmimg_disk *disk;
	struct pattern order;

	pattern_init(&order, size / STAGE_BLOCK, true, false, 1);
	stage_disk(svc, name, size);
	grown = resident();
	disk = stage_attach(queue, name);
	vmimg_disk_memory(disk, &map_empty, &head_empty);
	if (writes)
		stage_run(queue, disk, VMIMG_WRITE, &order, STAGE_DEPTH, writes, 0, &unused);
	vmimg_disk_memory(disk, &map, &head);
	grown = resident() > grown ? resident() - grown : 0;
	stage_print(json_pack("{s:s, s:s, s:I, s:I, s:I, s:I, s:I}", "row", "memory", "disk", name,
			      "size", (json_int_t)size, "blocks", (json_int_t)writes, "map_bytes",
			      (json_int_t)map, "map_bytes_empty", (json_int_t)map_empty,
			      "resident_growth", (json_int_t)grown));
	stage_detach(disk);
}

int main(int argc, char **argv)
{
	struct vmimg_service *svc;
	struct vmimg_queue *queue;
	uint64_t size;

	if (argc != 3) {
		fprintf(stderr, "usage: memory DIR MIB\n");
		return 2;
	}
	size = (uint64_t)stage_number(argv[2]) << 20;
	svc = stage_open(argv[1]);
	queue = stage_queue(svc);
	measure(svc, queue, "empty", TIB, 0);
	measure(svc, queue, "full", size, size / STAGE_BLOCK);
	measure(svc, queue, "scattered", TIB, size / STAGE_BLOCK);
	vmimg_queue_destroy(queue);
	stage_close(svc);
	return 0;
}
