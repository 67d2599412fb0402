/* SPDX-License-Identifier: MIT */
/* life_keep.c - holds and pruning in life.h (spec/space.md HD-*, RT-*). */
#include "tests/sim/life.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TAG "kept"

static struct vmimg_error err;

/* --- holds --- */

static void set_hold(struct life_snap *snap, bool hold)
{
	char name[2 * LIFE_NAME];
	uint32_t r;

	snprintf(name, sizeof(name), "%s", life_snap_name(snap));
	snprintf(world->doing, sizeof(world->doing), "%s %s", hold ? "hold" : "release", name);
	world->op.snap = (uint32_t)(snap - world->snap);
	life_op_begin(LIFE_HOLD);
	r = hold ? vmimg_hold_snapshot(life.svc, name, TAG, &err)
		 : vmimg_release_snapshot(life.svc, name, TAG, &err);
	life_must(r == VMIMG_OK, "%s: %u, %s", world->doing, r, err.message);
	snap->held = hold;
	life_op_end();
}

void life_release(struct life_snap *snap)
{
	set_hold(snap, false);
}

/* Most are let go of soon, so that some can be deleted. */
void life_hold(void)
{
	int i = life_some_snap();

	if (i >= 0)
		set_hold(&world->snap[i], !world->snap[i].held);
}

/* Held or not: asking again tells which, and changes nothing. */
void life_recover_hold(void)
{
	struct life_snap *snap = &world->snap[world->op.snap];
	uint32_t r = vmimg_hold_snapshot(life.svc, life_snap_name(snap), TAG, &err);

	life_must(r == VMIMG_OK || r == VMIMG_INVALID_PARAMETER, "hold %s after a kill: %u, %s",
		  life_snap_name(snap), r, err.message);
	snap->held = true;
}

/* --- pruning --- */

static bool is_candidate(const struct life_snap *snap)
{
	return snap->there && snap->group == world->op.group;
}

/* One of the newest, or held. */
static bool must_stay(const struct life_snap *snap)
{
	uint32_t newer = 0;

	for (uint32_t i = 0; i < LIFE_SNAPS; i++)
		newer += is_candidate(&world->snap[i]) && world->snap[i].born > snap->born;
	return snap->held || newer < world->op.keep;
}

/* Which go; decided before any is forgotten. */
static void plan(bool goes[LIFE_SNAPS])
{
	for (uint32_t i = 0; i < LIFE_SNAPS; i++)
		goes[i] = is_candidate(&world->snap[i]) && !must_stay(&world->snap[i]);
}

static uint32_t call_prune(void *arg)
{
	struct vmimg_prune how = {.size_of = sizeof(how),
				  .keep_last = world->op.keep,
				  .automatic = true};
	uint32_t r;
	char *json = NULL;

	r = vmimg_prune_snapshots(life.svc, arg, &how, &err, &json);
	vmimg_free(json);
	return r;
}

void life_prune(void)
{
	bool goes[LIFE_SNAPS];
	int group = life_some_group();
	uint32_t r;

	if (group < 0)
		return;
	world->op.group = (uint32_t)group;
	world->op.keep = 2 + life_pick(LIFE_SNAPS);
	snprintf(world->doing, sizeof(world->doing), "prune %s to %u", world->group[group].name,
		 world->op.keep);
	plan(goes);
	life_op_begin(LIFE_PRUNE);
	r = life_beside(call_prune, world->group[group].name, true);
	life_must(r == VMIMG_OK, "%s: %u, %s", world->doing, r, err.message);
	for (uint32_t i = 0; i < LIFE_SNAPS; i++)
		if (goes[i] &&
		    !(life_job_reads(&world->snap[i]) && life_snap_is_listed(&world->snap[i])))
			life_snap_forget(&world->snap[i]);
	life_op_end();
	life_check_lists();
}

void life_recover_prune(void)
{
	bool goes[LIFE_SNAPS];

	plan(goes);
	for (uint32_t i = 0; i < LIFE_SNAPS; i++)
		if (goes[i] && !life_snap_is_listed(&world->snap[i]))
			life_snap_forget(&world->snap[i]);
}
