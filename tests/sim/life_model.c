/* SPDX-License-Identifier: MIT */
/* life_model.c - the model of life.h: contents, names, and what is known of both. */
#include "tests/sim/life.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/lib/random.h"

struct life_world *world;
struct life life;

uint32_t life_pick(uint32_t below)
{
	return below ? (uint32_t)(test_random(&world->rng) % below) : 0;
}

bool life_chance(uint32_t one_in)
{
	return life_pick(one_in) == 0;
}

void life_fail(const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	vsnprintf(world->why, sizeof(world->why), fmt, args);
	va_end(args);
	_exit(3);
}

void life_fill(void *buf, uint32_t number, uint64_t offset, size_t len)
{
	uint64_t *words = buf;

	for (size_t i = 0; i < len / 8; i++)
		words[i] = number ? (uint64_t)number << 32 | (offset / 8 + i) : 0;
}

/* --- contents --- */

uint32_t life_units(uint64_t size)
{
	return (uint32_t)(size / LIFE_UNIT);
}

uint32_t life_state_new(void)
{
	for (uint32_t i = 0; i < LIFE_STATES; i++) {
		struct life_state *s = &world->state[i];

		if (s->used)
			continue;
		memset(s->unit, 0, sizeof(s->unit));
		s->used = true;
		return i;
	}
	life_fail("the model has no room for another state");
}

uint32_t life_state_copy(uint32_t state)
{
	uint32_t copy = life_state_new();

	memcpy(world->state[copy].unit, world->state[state].unit, sizeof(world->state[copy].unit));
	return copy;
}

void life_state_free(uint32_t state)
{
	world->state[state].used = false;
}

/* --- what is there --- */

int life_some_disk(void)
{
	uint32_t start = life_pick(LIFE_DISKS);

	for (uint32_t i = 0; i < LIFE_DISKS; i++)
		if (world->disk[(start + i) % LIFE_DISKS].there)
			return (int)((start + i) % LIFE_DISKS);
	return -1;
}

int life_some_snap(void)
{
	uint32_t start = life_pick(LIFE_SNAPS);

	for (uint32_t i = 0; i < LIFE_SNAPS; i++)
		if (world->snap[(start + i) % LIFE_SNAPS].there)
			return (int)((start + i) % LIFE_SNAPS);
	return -1;
}

int life_some_group(void)
{
	uint32_t start = life_pick(LIFE_GROUPS);

	for (uint32_t i = 0; i < LIFE_GROUPS; i++)
		if (world->group[(start + i) % LIFE_GROUPS].there)
			return (int)((start + i) % LIFE_GROUPS);
	return -1;
}

int life_free_snap(void)
{
	for (uint32_t i = 0; i < LIFE_SNAPS; i++)
		if (!world->snap[i].there && !world->snap[i].count)
			return (int)i;
	return -1;
}

int life_free_disk(void)
{
	for (uint32_t i = 0; i < LIFE_DISKS; i++)
		if (!world->disk[i].there && !world->disk[i].name[0])
			return (int)i;
	return -1;
}

void life_new_name(char name[LIFE_NAME], const char *what)
{
	snprintf(name, LIFE_NAME, "%s%u", what, ++world->names);
}

const char *life_disk_name(uint32_t disk)
{
	static char name[4][2 * LIFE_NAME];
	static unsigned next;
	char *p = name[next++ % 4];

	snprintf(p, sizeof(name[0]), "%s/%s", world->disk[disk].vm, world->disk[disk].name);
	return p;
}

const char *life_snap_name(const struct life_snap *snap)
{
	static char name[4][2 * LIFE_NAME];
	static unsigned next;
	char *p = name[next++ % 4];

	snprintf(p, sizeof(name[0]), "%s@%s", world->group[snap->group].name, snap->name);
	return p;
}

const char *life_member_name(const struct life_snap *snap, uint32_t member)
{
	static char name[4 * LIFE_NAME];

	snprintf(name, sizeof(name), "%s@%s/%s/%s", world->group[snap->group].name, snap->name,
		 snap->member[member].vm, snap->member[member].name);
	return name;
}

void life_snap_forget(struct life_snap *snap)
{
	snap->there = false;
	for (uint32_t i = 0; i < snap->count; i++)
		life_state_free(snap->member[i].state);
	snap->count = 0;
}

void life_op_end(void)
{
	world->op.kind = LIFE_NONE;
	world->op.window = false;
	world->op.window_count = 0;
}
