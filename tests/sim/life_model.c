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
void (*life_touched)(bool operation);
void (*life_failed)(void);

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
	if (life_failed)
		life_failed();
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

static int some_of(const struct life_snap *those, uint32_t count)
{
	uint32_t start = life_pick(count);

	for (uint32_t i = 0; i < count; i++)
		if (those[(start + i) % count].there)
			return (int)((start + i) % count);
	return -1;
}

static int free_of(const struct life_snap *those, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++)
		if (!those[i].there && !those[i].count)
			return (int)i;
	return -1;
}

int life_some_snap(void)
{
	return some_of(world->snap, LIFE_SNAPS);
}

int life_free_snap(void)
{
	return free_of(world->snap, LIFE_SNAPS);
}

int life_some_point(void)
{
	return some_of(world->point, LIFE_POINTS);
}

int life_free_point(void)
{
	return free_of(world->point, LIFE_POINTS);
}

int life_some_group(void)
{
	uint32_t start = life_pick(LIFE_GROUPS);

	for (uint32_t i = 0; i < LIFE_GROUPS; i++)
		if (world->group[(start + i) % LIFE_GROUPS].there)
			return (int)((start + i) % LIFE_GROUPS);
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

void life_op_begin(enum life_kind kind)
{
	world->op.kind = kind;
	if (life_touched)
		life_touched(true);
}

void life_op_end(void)
{
	life_company_end();
	world->op.kind = LIFE_NONE;
	world->op.window = false;
	world->op.window_count = 0;
}

void life_draw_disk(struct life_snap *snap, uint32_t disk)
{
	const struct life_disk *d = &world->disk[disk];
	struct life_member *m = &snap->member[snap->count];

	life_must(snap->count < LIFE_MEMBERS, "too many members");
	snprintf(m->vm, sizeof(m->vm), "%s", d->vm);
	snprintf(m->name, sizeof(m->name), "%s", d->name);
	m->disk = disk;
	m->size = d->size;
	m->state = life_state_copy(d->state);
	snap->count++;
}

void life_draw(struct life_snap *snap, uint32_t group, const char *what)
{
	memset(snap, 0, sizeof(*snap));
	snap->group = group;
	snap->born = ++world->births;
	life_new_name(snap->name, what);
	snap->type = life_chance(2) ? VMIMG_SNAPSHOT_RECOVERY : VMIMG_SNAPSHOT_STANDARD;
	for (uint32_t i = 0; i < LIFE_DISKS; i++)
		if (world->disk[i].there && world->disk[i].group == group)
			life_draw_disk(snap, i);
}

void life_open_window(void)
{
	struct life_op *op = &world->op;

	op->window_count = 0;
	for (uint32_t i = 0; i < LIFE_WRITES; i++)
		if (world->write[i].busy)
			op->windows[op->window_count++] = world->write[i];
	op->window = true;
}

/* --- what a power loss leaves --- */

void life_all_durable(uint32_t disk)
{
	struct life_disk *d = &world->disk[disk];
	uint32_t kept = 0;

	if (!world->loss)
		return;
	memcpy(world->state[d->durable].unit, world->state[d->state].unit,
	       sizeof(world->state[d->state].unit));
	for (uint32_t i = 0; i < world->loose_count; i++)
		if (world->loose[i].disk != disk)
			world->loose[kept++] = world->loose[i];
	world->loose_count = kept;
}

/* --- copies of the world: of the states only what is used of them --- */

static size_t state_size(void)
{
	return sizeof(uint32_t) * life_units(world->size_max);
}

size_t life_world_size(void)
{
	size_t size = offsetof(struct life_world, state) + LIFE_STATES;

	for (uint32_t i = 0; i < LIFE_STATES; i++)
		size += world->state[i].used ? state_size() : 0;
	return size;
}

void life_world_copy(void *to)
{
	uint8_t *p = to;

	memcpy(p, world, offsetof(struct life_world, state));
	p += offsetof(struct life_world, state);
	for (uint32_t i = 0; i < LIFE_STATES; i++) {
		*p++ = world->state[i].used;
		if (!world->state[i].used)
			continue;
		memcpy(p, world->state[i].unit, state_size());
		p += state_size();
	}
}

void life_world_restore(const void *from)
{
	const uint8_t *p = from;

	memcpy(world, p, offsetof(struct life_world, state));
	p += offsetof(struct life_world, state);
	for (uint32_t i = 0; i < LIFE_STATES; i++) {
		world->state[i].used = *p++;
		if (!world->state[i].used)
			continue;
		memset(world->state[i].unit, 0, sizeof(world->state[i].unit));
		memcpy(world->state[i].unit, p, state_size());
		p += state_size();
	}
}
