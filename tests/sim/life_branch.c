/* SPDX-License-Identifier: MIT */
/* life_branch.c - reverts in life.h (spec/branch.md AS-*). */
#include "tests/sim/life.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct vmimg_error err;

struct revert {
	char snapshot[2 * LIFE_NAME], settings[128];
};

static uint32_t call_apply(void *arg)
{
	const struct revert *a = arg;

	return vmimg_apply_snapshot(life.svc, a->snapshot, a->settings, NULL, NULL, &err);
}

static bool all_there(const struct life_snap *snap)
{
	for (uint32_t m = 0; m < snap->count; m++)
		if (!world->disk[snap->member[m].disk].there)
			return false;
	return true;
}

/* The disks hold what the snapshot does. */
static void go_back(const struct life_snap *snap)
{
	for (uint32_t m = 0; m < snap->count; m++) {
		struct life_disk *d = &world->disk[snap->member[m].disk];

		life_state_free(d->state);
		d->state = life_state_copy(snap->member[m].state);
		d->size = snap->member[m].size;
		life_all_durable(snap->member[m].disk);
	}
}

/* AS-4: of the disks that go back. */
static void draw_kept(struct life_snap *kept, const struct life_snap *snap)
{
	memset(kept, 0, sizeof(*kept));
	kept->group = snap->group;
	kept->type = VMIMG_SNAPSHOT_STANDARD;
	kept->automatic = true;
	kept->born = ++world->births;
	life_new_name(kept->name, "auto");
	for (uint32_t m = 0; m < snap->count; m++)
		life_draw_disk(kept, snap->member[m].disk);
}

/* AS-2: with one of its disks attached nothing happens. */
static void refuse(const struct life_snap *snap, struct revert *a)
{
	uint32_t r = life_beside(call_apply, a, true);

	life_must(r == VMIMG_INVALID_STATE, "%s with %s attached: %u, expected 5", world->doing,
		  life_disk_name(snap->member[0].disk), r);
}

/* The disks that go back are left alone, the snapshot is not. */
static void begin_with_company(const struct life_snap *snap)
{
	uint32_t disks[LIFE_MEMBERS];

	for (uint32_t m = 0; m < snap->count; m++)
		disks[m] = snap->member[m].disk;
	life_company(-1, snap->count, disks);
	life.job[LIFE_JOB_FLATTEN].excused = true;
	life_op_begin(LIFE_REVERT);
}

void life_revert(void)
{
	int i = life_some_snap(), kept = life_chance(4) ? -1 : life_free_snap();
	struct life_snap *snap;
	struct revert a;
	uint32_t r;

	if (i < 0 || !all_there(&world->snap[i]))
		return;
	snap = &world->snap[i];
	life_quiet();
	snprintf(a.snapshot, sizeof(a.snapshot), "%s", life_snap_name(snap));
	snprintf(world->doing, sizeof(world->doing), "revert to %s", a.snapshot);
	snprintf(a.settings, sizeof(a.settings), "{\"KeepState\": false}");
	if (life_chance(6))
		refuse(snap, &a);
	life_quiet();
	for (uint32_t m = 0; m < snap->count; m++)
		if (life.disk[snap->member[m].disk])
			life_detach(snap->member[m].disk);
	if (kept >= 0) {
		draw_kept(&world->snap[kept], snap);
		snprintf(a.settings, sizeof(a.settings), "{\"KeptName\": \"%s\"}",
			 world->snap[kept].name);
	}
	world->op.snap = (uint32_t)i;
	world->op.kept = kept;
	begin_with_company(snap);
	r = life_beside(call_apply, &a, true);
	life_must(r == VMIMG_OK || life_is_refused(r) ||
			  (r == VMIMG_INVALID_STATE && life.job[LIFE_JOB_FLATTEN].job),
		  "%s: %u, %s", world->doing, r, err.message);
	if (r == VMIMG_OK)
		go_back(snap);
	if (kept >= 0 && r == VMIMG_OK)
		world->snap[kept].there = true;
	else if (kept >= 0)
		life_snap_forget(&world->snap[kept]);
	life_op_end();
	life_attach_all();
	for (uint32_t m = 0; m < snap->count; m++)
		life_check_head(snap->member[m].disk, life_chance(4));
}

/* Whether the first disk that tells has gone back; the others must be as it is. */
static bool has_gone_back(const struct life_snap *snap)
{
	uint8_t buf[LIFE_UNIT], want[LIFE_UNIT];

	for (uint32_t m = 0; m < snap->count; m++) {
		const struct life_member *member = &snap->member[m];
		const struct life_disk *d = &world->disk[member->disk];

		if (vmimg_disk_size(life.disk[member->disk]) != d->size)
			return true;
		for (uint32_t u = 0; u < life_units(member->size); u++) {
			uint32_t back = world->state[member->state].unit[u];

			if (back == world->state[d->state].unit[u])
				continue;
			life_must(life_request(life.disk[member->disk], VMIMG_READ, buf,
					       (uint64_t)u * LIFE_UNIT, LIFE_UNIT) == 0,
				  "%s: read", life_disk_name(member->disk));
			life_fill(want, back, (uint64_t)u * LIFE_UNIT, LIFE_UNIT);
			return !memcmp(buf, want, LIFE_UNIT);
		}
	}
	return false;
}

void life_recover_revert(void)
{
	struct life_snap *kept = world->op.kept < 0 ? NULL : &world->snap[world->op.kept];
	const struct life_snap *snap = &world->snap[world->op.snap];
	bool back = kept ? life_snap_is_listed(kept) : has_gone_back(snap);

	if (back)
		go_back(snap);
	if (kept && back)
		kept->there = true;
	else if (kept)
		life_snap_forget(kept);
}
