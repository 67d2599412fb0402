/* SPDX-License-Identifier: MIT */
/*
 * life_pair.c - two operations at the same time in life.h, each on a thread of its own: beside the one that
 * is about to begin a snapshot is deleted, or a disk grows. They may meet on disks, on layers, even on the
 * snapshot; where one of them is refused for that, it has done nothing.
 */
#include "tests/sim/life.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static struct vmimg_error err;
static uint32_t result;

static bool is_one_of(uint32_t disk, uint32_t count, const uint32_t *disks)
{
	for (uint32_t i = 0; i < count; i++)
		if (disks[i] == disk)
			return true;
	return false;
}

void life_company(int snap, uint32_t disk_count, const uint32_t *disks)
{
	int other = life_some_snap(), disk = life_some_disk();

	world->op.also.kind = LIFE_NONE;
	if (!life_chance(3))
		return;
	if (life_chance(2)) {
		if (snap < 0 && life_chance(3) && world->snap[world->op.snap].there)
			other = (int)world->op
					.snap; /* the very one that is cloned or gone back to */
		if (other < 0 || other == snap || world->snap[other].held)
			return;
		world->op.also.snap = (uint32_t)other;
		world->op.also.kind = LIFE_DELETE;
	} else {
		if (disk < 0 || !life.disk[disk] || is_one_of((uint32_t)disk, disk_count, disks))
			return;
		world->op.also.disk = (uint32_t)disk;
		world->op.also.size = world->disk[disk].size +
				      (1 + life_pick(100)) * (uint64_t)LIFE_UNIT;
		if (world->op.also.size > world->size_max)
			return;
		world->op.also.kind = LIFE_RESIZE;
	}
	world->pairs++;
}

uint32_t life_company_call(void *arg)
{
	(void)arg;
	if (world->op.also.kind == LIFE_DELETE)
		result = vmimg_destroy_snapshot(life.svc,
						life_snap_name(&world->snap[world->op.also.snap]),
						NULL, &err);
	else
		result = (uint32_t)-vmimg_disk_resize(life.svc, life_disk_name(world->op.also.disk),
						      world->op.also.size, &err);
	return 0;
}

bool life_is_refused(uint32_t r)
{
	bool refused = world->op.also.kind != LIFE_NONE &&
		       (r == VMIMG_INVALID_STATE || r == VMIMG_INVALID_PARAMETER || r == EBUSY);

	world->refused += refused;
	return refused;
}

void life_company_end(void)
{
	enum life_kind kind = world->op.also.kind;
	bool refused;

	if (kind == LIFE_NONE)
		return;
	refused = kind == LIFE_DELETE ? result == VMIMG_INVALID_STATE : result == EBUSY;
	life_must(result == 0 || refused, "%s, and %s of %s at the same time: %u, %s", world->doing,
		  kind == LIFE_DELETE ? "deletion" : "growth",
		  kind == LIFE_DELETE ? life_snap_name(&world->snap[world->op.also.snap])
				      : life_disk_name(world->op.also.disk),
		  result, err.message);
	world->refused += refused;
	if (!refused && kind == LIFE_DELETE)
		life_snap_forget(&world->snap[world->op.also.snap]);
	else if (!refused)
		world->disk[world->op.also.disk].size = world->op.also.size;
	world->op.also.kind = LIFE_NONE;
}

/* Each of the two by itself has happened, or not. */
void life_recover_company(void)
{
	struct life_snap *snap = &world->snap[world->op.also.snap];
	struct life_disk *disk = &world->disk[world->op.also.disk];
	uint64_t size;

	if (world->op.also.kind == LIFE_DELETE && !life_snap_is_listed(snap))
		life_snap_forget(snap);
	if (world->op.also.kind == LIFE_RESIZE) {
		size = vmimg_disk_size(life.disk[world->op.also.disk]);
		life_must(size == disk->size || size == world->op.also.size,
			  "%s: size is %llu after a kill, expected %llu or %llu",
			  life_disk_name(world->op.also.disk), (unsigned long long)size,
			  (unsigned long long)disk->size, (unsigned long long)world->op.also.size);
		disk->size = size;
	}
	world->op.also.kind = LIFE_NONE;
}
