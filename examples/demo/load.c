/* SPDX-License-Identifier: MIT */
/*
 * load.c - the demo's load program: makes the files that the load will write, finds their extents, runs
 * the load with a snapshot in its middle (run.c), and judges what is read back (verify.c). Uses the
 * public API only. examples/demo/demo.sh calls it.
 */
#include "examples/demo/demo.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/fiemap.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define FIEMAP_STEP 64u /* extents asked for at once */

/* A file of @mib MiB: @disk's blocks before any write. */
static int fill(const char *path, const char *disk, const char *mib)
{
	uint64_t blocks = strtoull(mib, NULL, 10) * ((1u << 20) / DEMO_BLOCK);
	FILE *out = fopen(path, "we");
	uint8_t block[DEMO_BLOCK];
	int r = 0;

	if (!out)
		return fprintf(stderr, "load: %s: %s\n", path, strerror(errno)), -1;
	for (uint32_t i = 0; i < blocks && r == 0; i++) {
		demo_block_fill(block, disk, i, 0);
		r = fwrite(block, sizeof(block), 1, out) == 1 ? 0 : -1;
	}
	if (fclose(out) != 0 || r < 0)
		return fprintf(stderr, "load: %s: %s\n", path, strerror(errno)), -1;
	return 0;
}

/* --- extents --- */

/* Only extents that a write may go into behind the file system's back, one after another. */
static int print_extent(const struct fiemap_extent *e, uint64_t logical)
{
	const uint32_t bad = FIEMAP_EXTENT_UNKNOWN | FIEMAP_EXTENT_DELALLOC |
			     FIEMAP_EXTENT_ENCODED | FIEMAP_EXTENT_NOT_ALIGNED |
			     FIEMAP_EXTENT_UNWRITTEN | FIEMAP_EXTENT_SHARED;

	if (e->fe_logical != logical || e->fe_flags & bad)
		return -1;
	printf("%" PRIu64 " %" PRIu64 "\n", (uint64_t)e->fe_physical, (uint64_t)e->fe_length);
	return 0;
}

static int walk_extents(int fd, struct fiemap *map)
{
	uint64_t logical = 0;

	for (;;) {
		memset(map, 0, sizeof(*map));
		map->fm_start = logical;
		map->fm_length = FIEMAP_MAX_OFFSET - logical;
		map->fm_flags = FIEMAP_FLAG_SYNC;
		map->fm_extent_count = FIEMAP_STEP;
		if (ioctl(fd, FS_IOC_FIEMAP, map) < 0)
			return -errno;
		if (!map->fm_mapped_extents)
			return -ENODATA;
		for (uint32_t i = 0; i < map->fm_mapped_extents; i++) {
			if (print_extent(&map->fm_extents[i], logical) < 0)
				return -ENOTSUP;
			logical += map->fm_extents[i].fe_length;
			if (map->fm_extents[i].fe_flags & FIEMAP_EXTENT_LAST)
				return 0;
		}
	}
}

/* Lines "OFFSET LENGTH": where the file lies on its file system's device. */
static int extents(const char *path)
{
	struct fiemap *map = malloc(sizeof(*map) + FIEMAP_STEP * sizeof(map->fm_extents[0]));
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	int r = -ENOMEM;

	if (map && fd >= 0)
		r = walk_extents(fd, map);
	else if (map)
		r = -errno;
	if (fd >= 0)
		close(fd);
	free(map);
	if (r < 0)
		return fprintf(stderr, "load: %s: FIEMAP: %s\n", path, strerror(-r)), -1;
	return fflush(stdout) == 0 ? 0 : -1;
}

/* --- the command line --- */

static int usage(void)
{
	fputs("usage: load fill FILE VM/DISK MIB\n"
	      "       load extents FILE\n"
	      "       load run STORE COLLECTION@SNAPSHOT PLAN STATE SECONDS\n"
	      "       load verify PLAN STATE snapshot|live IMAGES ORIGINALS\n",
	      stderr);
	return 2;
}

int main(int argc, char **argv)
{
	const char *verb = argc > 1 ? argv[1] : "";

	if (!strcmp(verb, "fill") && argc == 5)
		return fill(argv[2], argv[3], argv[4]) < 0;
	if (!strcmp(verb, "extents") && argc == 3)
		return extents(argv[2]) < 0;
	if (!strcmp(verb, "run") && argc == 7)
		return demo_run(argv[2], argv[3], argv[4], argv[5],
				(unsigned)strtoul(argv[6], NULL, 10)) < 0;
	if (!strcmp(verb, "verify") && argc == 7)
		return demo_verify(argv[2], argv[3], argv[4], argv[5], argv[6]) < 0;
	return usage();
}
