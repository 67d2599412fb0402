/* SPDX-License-Identifier: MIT */
/*
 * plan.c - the plan, the state and the content of blocks (demo.h). A plan is lines "DISK OFFSET LENGTH",
 * the extents of each disk's file in the file's order. A state is lines "chain N LOW HIGH LAST" and
 * "block DISK INDEX LOW HIGH LAST", for what is not all 0. One thread.
 */
#include "examples/demo/demo.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define PLAN_BLOCKS_MAX (1u << 20) /* of one disk */

static struct demo_disk *find_disk(struct demo_plan *plan, const char *name)
{
	for (unsigned i = 0; i < plan->count; i++)
		if (!strcmp(plan->disks[i].name, name))
			return &plan->disks[i];
	return NULL;
}

static int add_extent(struct demo_plan *plan, const char *name, uint64_t offset, uint64_t length)
{
	struct demo_disk *disk = find_disk(plan, name);
	uint64_t blocks = length / DEMO_BLOCK;
	uint64_t *offsets;

	if (!disk && plan->count == DEMO_DISKS_MAX)
		return -1;
	if (!disk) {
		disk = &plan->disks[plan->count++];
		snprintf(disk->name, sizeof(disk->name), "%s", name);
	}
	if (offset % DEMO_BLOCK || length % DEMO_BLOCK || disk->count + blocks > PLAN_BLOCKS_MAX)
		return -1;
	offsets = realloc(disk->offsets, (disk->count + blocks) * sizeof(*offsets));
	if (!offsets)
		return -1;
	disk->offsets = offsets;
	for (uint64_t i = 0; i < blocks; i++)
		offsets[disk->count++] = offset + i * DEMO_BLOCK;
	return 0;
}

static bool same_vm(const char *a, const char *b)
{
	size_t len = strcspn(a, "/");

	return len == strcspn(b, "/") && !strncmp(a, b, len);
}

/* What the load relies on. */
static int check_plan(const struct demo_plan *plan, const char *path)
{
	for (unsigned i = 0; i < plan->count; i++) {
		const struct demo_disk *next = &plan->disks[(i + 1) % plan->count];

		if (same_vm(plan->disks[i].name, next->name))
			return fprintf(stderr, "load: %s: %s and %s are neighbours of one VM\n",
				       path, plan->disks[i].name, next->name),
			       -1;
		if (plan->disks[i].count < 2 * DEMO_CHAIN_BLOCKS)
			return fprintf(stderr, "load: %s: %s has %u blocks, expected at least %u\n",
				       path, plan->disks[i].name, plan->disks[i].count,
				       2 * DEMO_CHAIN_BLOCKS),
			       -1;
	}
	return 0;
}

int demo_plan_read(const char *path, struct demo_plan *ret)
{
	FILE *in = fopen(path, "re");
	struct demo_plan plan = {0};
	char name[DEMO_NAME_MAX];
	uint64_t offset, length;
	int fields, r = -1;

	if (!in)
		return fprintf(stderr, "load: %s: %s\n", path, strerror(errno)), -1;
	while ((fields = fscanf(in, "%129s %" SCNu64 " %" SCNu64, name, &offset, &length)) == 3)
		if (add_extent(&plan, name, offset, length) < 0)
			break;
	if (fields != EOF || ferror(in) || plan.count < 2)
		fprintf(stderr, "load: %s: not lines of DISK OFFSET LENGTH, blocks of %u bytes\n",
			path, DEMO_BLOCK);
	else
		r = check_plan(&plan, path);
	fclose(in);
	if (r == 0)
		*ret = plan;
	else
		demo_plan_fini(&plan);
	return r;
}

void demo_plan_fini(struct demo_plan *plan)
{
	for (unsigned i = 0; i < plan->count; i++)
		free(plan->disks[i].offsets);
	plan->count = 0;
}

/* --- state --- */

int demo_state_init(const struct demo_plan *plan, struct demo_state *ret)
{
	struct demo_state state = {0};

	for (unsigned i = 0; i < plan->count; i++) {
		state.blocks[i] = calloc(plan->disks[i].count, sizeof(*state.blocks[i]));
		if (!state.blocks[i]) {
			demo_state_fini(plan, &state);
			return fprintf(stderr, "load: out of memory\n"), -1;
		}
	}
	*ret = state;
	return 0;
}

void demo_state_fini(const struct demo_plan *plan, struct demo_state *state)
{
	for (unsigned i = 0; i < plan->count; i++) {
		free(state->blocks[i]);
		state->blocks[i] = NULL;
	}
}

static void write_bounds(FILE *out, const struct demo_bounds *b)
{
	fprintf(out, " %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", b->low, b->high, b->last);
}

int demo_state_write(const char *path, const struct demo_plan *plan, const struct demo_state *state)
{
	FILE *out = fopen(path, "we");
	bool failed;

	if (!out)
		return fprintf(stderr, "load: %s: %s\n", path, strerror(errno)), -1;
	for (unsigned i = 0; i < DEMO_CHAINS; i++) {
		fprintf(out, "chain - %u", i);
		write_bounds(out, &state->chains[i]);
	}
	for (unsigned d = 0; d < plan->count; d++) {
		for (uint32_t i = DEMO_CHAIN_BLOCKS; i < plan->disks[d].count; i++) {
			if (!state->blocks[d][i].high && !state->blocks[d][i].last)
				continue;
			fprintf(out, "block %s %u", plan->disks[d].name, i);
			write_bounds(out, &state->blocks[d][i]);
		}
	}
	failed = ferror(out);
	failed |= fclose(out) != 0;
	return failed ? (fprintf(stderr, "load: %s: %s\n", path, strerror(errno)), -1) : 0;
}

static struct demo_bounds *find_bounds(struct demo_plan *plan, struct demo_state *state,
				       const char *kind, const char *name, uint32_t index)
{
	struct demo_disk *disk = find_disk(plan, name);

	if (!strcmp(kind, "chain"))
		return index < DEMO_CHAINS ? &state->chains[index] : NULL;
	if (strcmp(kind, "block") != 0 || !disk || index >= disk->count)
		return NULL;
	return &state->blocks[disk - plan->disks][index];
}

int demo_state_read(const char *path, const struct demo_plan *plan, struct demo_state *ret)
{
	FILE *in = fopen(path, "re");
	struct demo_plan copy = *plan;
	char kind[8], name[DEMO_NAME_MAX];
	struct demo_bounds bounds, *to;
	struct demo_state state;
	uint32_t index;
	int fields;

	if (!in)
		return fprintf(stderr, "load: %s: %s\n", path, strerror(errno)), -1;
	if (demo_state_init(plan, &state) < 0) {
		fclose(in);
		return -1;
	}
	while ((fields = fscanf(in, "%7s %129s %u %" SCNu64 " %" SCNu64 " %" SCNu64, kind, name,
				&index, &bounds.low, &bounds.high, &bounds.last)) == 6) {
		to = find_bounds(&copy, &state, kind, name, index);
		if (!to)
			break;
		*to = bounds;
	}
	fclose(in);
	if (fields != EOF) {
		demo_state_fini(plan, &state);
		return fprintf(stderr, "load: %s: not a state of this plan\n", path), -1;
	}
	*ret = state;
	return 0;
}

/* --- blocks --- */

struct demo_place demo_chain_place(const struct demo_plan *plan, unsigned chain, uint64_t number)
{
	uint64_t step = number - 1;
	uint64_t slot = step / plan->count % DEMO_CHAIN_SLOTS;

	return (struct demo_place){
		.disk = (unsigned)((step + chain) % plan->count),
		.block = chain * DEMO_CHAIN_SLOTS + (uint32_t)slot,
	};
}

static uint64_t next_random(uint64_t *state)
{
	uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15); /* splitmix64 */

	z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
	return z ^ z >> 31;
}

void demo_block_fill(void *block, const char *disk, uint32_t index, uint64_t number)
{
	uint64_t seed = number << 32 ^ index;
	uint64_t words[DEMO_BLOCK / sizeof(uint64_t)] = {0};

	for (const char *c = disk; *c; c++)
		seed = (seed ^ (uint8_t)*c) * UINT64_C(0x100000001b3);
	memcpy(words, "vmimgdem", 8);
	words[1] = number;
	for (size_t i = 2; i < sizeof(words) / sizeof(words[0]); i++)
		words[i] = next_random(&seed);
	memcpy(block, words, sizeof(words));
}

int64_t demo_block_number(const void *block, const char *disk, uint32_t index)
{
	uint8_t expected[DEMO_BLOCK];
	uint64_t number;

	memcpy(&number, (const char *)block + 8, sizeof(number));
	if (number > INT64_MAX)
		return -1;
	demo_block_fill(expected, disk, index, number);
	return memcmp(block, expected, DEMO_BLOCK) ? -1 : (int64_t)number;
}
