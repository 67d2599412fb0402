/* SPDX-License-Identifier: MIT */
/*
 * verify.c - judges disks that were read back, against the state that the load wrote. Every block of the
 * load is whole and of a write that may be there; every other byte is as it was imported; and of each
 * chain of dependent writes the blocks of all disks together hold the first K writes exactly, as if the
 * last K+1 had never been. IMAGES and ORIGINALS are directories with a VM.DISK.img a disk. One thread.
 */
#include "examples/demo/demo.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

struct image {
	uint8_t *bytes;
	size_t size;
};

struct verdict {
	struct demo_plan plan;
	struct demo_state state;
	bool live;                           /* the disks at the end, not the snapshot */
	struct image images[DEMO_DISKS_MAX]; /* as read back */
	uint64_t chain_blocks[DEMO_DISKS_MAX][DEMO_CHAIN_BLOCKS]; /* numbers found */
};

/* --- files --- */

static int map_image(const char *dir, const char *disk, struct image *ret)
{
	char path[4096];
	struct stat st;
	void *bytes = MAP_FAILED;
	int fd, len;

	len = snprintf(path, sizeof(path), "%s/%s.img", dir, disk);
	if (len < 0 || (size_t)len >= sizeof(path))
		return fprintf(stderr, "load: %s: too long\n", dir), -1;
	*strrchr(path + strlen(dir) + 1, '/') = '.';
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd >= 0 && fstat(fd, &st) == 0)
		bytes = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
	if (bytes == MAP_FAILED)
		fprintf(stderr, "load: %s: %s\n", path, strerror(errno));
	if (fd >= 0)
		close(fd);
	if (bytes == MAP_FAILED)
		return -1;
	*ret = (struct image){.bytes = bytes, .size = (size_t)st.st_size};
	return 0;
}

static void unmap_image(struct image *image)
{
	if (image->bytes)
		munmap(image->bytes, image->size);
	image->bytes = NULL;
}

/* --- one disk --- */

/* Prints the first fault of a disk. */
static int fault(const char *disk, const char *what, uint64_t where, int64_t found, uint64_t low,
		 uint64_t high)
{
	printf("disk  %-10s FAILED  %s %" PRIu64, disk, what, where);
	if (found >= 0)
		printf(": write %" PRId64 ", expected %" PRIu64 " to %" PRIu64, found, low, high);
	putchar('\n');
	return -1;
}

static int check_block(struct verdict *v, unsigned d, uint32_t index)
{
	const struct demo_disk *disk = &v->plan.disks[d];
	const struct demo_bounds *bounds = &v->state.blocks[d][index];
	uint64_t low = v->live ? bounds->last : bounds->low;
	uint64_t high = v->live ? bounds->last : bounds->high;
	int64_t found;

	if (disk->offsets[index] + DEMO_BLOCK > v->images[d].size)
		return fault(disk->name, "the disk ends before block", index, -1, 0, 0);
	found = demo_block_number(v->images[d].bytes + disk->offsets[index], disk->name, index);
	if (found < 0)
		return fault(disk->name, "a torn or foreign block,", index, -1, 0, 0);
	if (index < DEMO_CHAIN_BLOCKS)
		v->chain_blocks[d][index] = (uint64_t)found;
	else if ((uint64_t)found < low || (uint64_t)found > high)
		return fault(disk->name, "block", index, found, low, high);
	return 0;
}

/* Everything outside the load's blocks: @mine[i] says that the image's block i is the load's. */
static int compare_rest(struct verdict *v, unsigned d, const struct image *original,
			const bool *mine)
{
	const struct image *image = &v->images[d];
	size_t len;

	for (size_t at = 0; at < image->size; at += len) {
		len = image->size - at < DEMO_BLOCK ? image->size - at : DEMO_BLOCK;
		if (!mine[at / DEMO_BLOCK] && memcmp(image->bytes + at, original->bytes + at, len))
			return fault(v->plan.disks[d].name, "not as imported at byte", at, -1, 0,
				     0);
	}
	return 0;
}

static int check_disk(struct verdict *v, unsigned d, const char *images, const char *originals)
{
	const struct demo_disk *disk = &v->plan.disks[d];
	struct image original = {0};
	bool *mine = NULL;
	int r = -1;

	if (map_image(images, disk->name, &v->images[d]) < 0 ||
	    map_image(originals, disk->name, &original) < 0)
		goto out;
	if (v->images[d].size != original.size) {
		r = fault(disk->name, "not of the imported size but", v->images[d].size, -1, 0, 0);
		goto out;
	}
	mine = calloc(original.size / DEMO_BLOCK + 1, sizeof(*mine));
	if (!mine)
		goto out;
	r = 0;
	for (uint32_t i = 0; i < disk->count && r == 0; i++) {
		r = check_block(v, d, i);
		if (r == 0)
			mine[disk->offsets[i] / DEMO_BLOCK] = true;
	}
	if (r == 0)
		r = compare_rest(v, d, &original, mine);
	if (r == 0)
		printf("disk  %-10s ok      %u blocks of the load, %zu others as imported\n",
		       disk->name, disk->count, original.size / DEMO_BLOCK - disk->count);
out:
	free(mine);
	unmap_image(&original);
	return r;
}

/* --- the chains, over all disks --- */

/* What the chain's blocks hold after its first @count writes and nothing more. */
static int check_chain_prefix(struct verdict *v, unsigned chain, uint64_t count)
{
	uint64_t expected[DEMO_DISKS_MAX][DEMO_CHAIN_SLOTS] = {{0}};
	uint64_t span = (uint64_t)v->plan.count * DEMO_CHAIN_SLOTS;
	uint32_t first = chain * DEMO_CHAIN_SLOTS;

	for (uint64_t n = count > span ? count - span + 1 : 1; n <= count; n++) {
		struct demo_place place = demo_chain_place(&v->plan, chain, n);

		expected[place.disk][place.block - first] = n;
	}
	for (unsigned d = 0; d < v->plan.count; d++) {
		for (uint32_t i = 0; i < DEMO_CHAIN_SLOTS; i++) {
			uint64_t found = v->chain_blocks[d][first + i];

			if (found == expected[d][i])
				continue;
			printf("chain %-10u FAILED  write %" PRIu64
			       " is there, yet %s holds write %" PRIu64 " where write %" PRIu64
			       " was\n",
			       chain, count, v->plan.disks[d].name, found, expected[d][i]);
			return -1;
		}
	}
	return 0;
}

static int check_chain(struct verdict *v, unsigned chain)
{
	const struct demo_bounds *bounds = &v->state.chains[chain];
	uint64_t low = v->live ? bounds->last : bounds->low;
	uint64_t high = v->live ? bounds->last : bounds->high;
	uint32_t first = chain * DEMO_CHAIN_SLOTS;
	uint64_t count = 0;

	for (unsigned d = 0; d < v->plan.count; d++)
		for (uint32_t i = first; i < first + DEMO_CHAIN_SLOTS; i++)
			if (v->chain_blocks[d][i] > count)
				count = v->chain_blocks[d][i];
	if (count < low || count > high) {
		printf("chain %-10u FAILED  ends at write %" PRIu64 ", expected %" PRIu64
		       " to %" PRIu64 "\n",
		       chain, count, low, high);
		return -1;
	}
	if (check_chain_prefix(v, chain, count) < 0)
		return -1;
	printf("chain %-10u ok      exactly the first %" PRIu64 " of %" PRIu64 " writes", chain,
	       count, bounds->last);
	if (!v->live)
		printf(" (%" PRIu64 " acknowledged before the call)", low);
	putchar('\n');
	return 0;
}

int demo_verify(const char *plan_path, const char *state_path, const char *what, const char *images,
		const char *originals)
{
	struct verdict *v = calloc(1, sizeof(*v));
	int r = -1;

	if (!v)
		return fprintf(stderr, "load: out of memory\n"), -1;
	v->live = !strcmp(what, "live");
	if (demo_plan_read(plan_path, &v->plan) < 0)
		goto out;
	if (demo_state_read(state_path, &v->plan, &v->state) < 0)
		goto out_plan;
	r = 0;
	for (unsigned d = 0; d < v->plan.count; d++)
		r |= check_disk(v, d, images, originals);
	for (unsigned c = 0; c < DEMO_CHAINS; c++)
		r |= check_chain(v, c);
	for (unsigned d = 0; d < v->plan.count; d++)
		unmap_image(&v->images[d]);
	demo_state_fini(&v->plan, &v->state);
out_plan:
	demo_plan_fini(&v->plan);
out:
	free(v);
	return r < 0 ? -1 : 0;
}
