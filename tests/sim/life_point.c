/* SPDX-License-Identifier: MIT */
/*
 * life_point.c - reference points in life.h (spec/refpoint.md RP-*): made of snapshots and of cuts, and
 * destroyed. What has changed since one is life_track.c's to ask.
 */
#include "tests/sim/life.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct vmimg_error err;

static const char *point_name(const struct life_snap *point)
{
	static char name[2 * LIFE_NAME];

	snprintf(name, sizeof(name), "%s#%s", world->group[point->group].name, point->name);
	return name;
}

static bool point_is_listed(const struct life_snap *point)
{
	struct cat_refpoint row;

	return eng_catalog_get_refpoint(life.svc->store->catalog, world->group[point->group].name,
					point->name, &row) == 0;
}

void life_check_points(void)
{
	struct cat_refpoint *rows = NULL;
	uint32_t expected = 0;
	size_t n = 0;
	int r = eng_catalog_list_refpoints(life.svc->store->catalog, NULL, &rows, &n);

	life_must(r == 0, "cannot list the reference points: %d", r);
	free(rows);
	for (uint32_t i = 0; i < LIFE_POINTS; i++) {
		expected += world->point[i].there;
		life_must(!world->point[i].there || point_is_listed(&world->point[i]), "%s is lost",
			  point_name(&world->point[i]));
	}
	life_must(n == expected, "%zu reference points, expected %u", n, expected);
}

struct convert {
	char snapshot[2 * LIFE_NAME], point[LIFE_NAME];
};

static uint32_t call_convert(void *arg)
{
	const struct convert *a = arg;
	struct vmimg_ref ref = {.name = ""};

	snprintf(ref.name, sizeof(ref.name), "%s", a->point);
	return vmimg_convert_to_reference_point(life.svc, a->snapshot, &ref, NULL, &err);
}

/* The snapshot's content goes on as the point's. */
static void become_point(struct life_snap *snap, struct life_snap *point)
{
	char name[LIFE_NAME];

	snprintf(name, sizeof(name), "%s", point->name);
	*point = *snap;
	snprintf(point->name, sizeof(point->name), "%s", name);
	point->held = false;
	point->there = true;
	snap->there = false;
	snap->count = 0;
}

void life_convert(void)
{
	int i = life_some_snap(), p = life_free_point();
	struct life_snap *snap, *point;
	uint32_t r, expected;
	struct convert a;

	if (i < 0 || p < 0)
		return;
	snap = &world->snap[i];
	point = &world->point[p];
	memset(point, 0, sizeof(*point));
	life_new_name(point->name, "p");
	point->group = snap->group;
	snprintf(a.snapshot, sizeof(a.snapshot), "%s", life_snap_name(snap));
	snprintf(a.point, sizeof(a.point), "%s", point->name);
	snprintf(world->doing, sizeof(world->doing), "convert %s to %s", a.snapshot, a.point);
	expected = snap->type != VMIMG_SNAPSHOT_RECOVERY ? VMIMG_INVALID_TYPE
		   : snap->held                          ? VMIMG_INVALID_STATE
							 : VMIMG_OK;
	world->op.snap = (uint32_t)i;
	world->op.point = (uint32_t)p;
	life_company(i, 0, NULL);
	life_op_begin(LIFE_CONVERT);
	r = life_beside(call_convert, &a, true);
	life_must(r == expected || life_is_refused(r), "%s: %u, expected %u; %s", world->doing, r,
		  expected, err.message);
	if (r == VMIMG_OK)
		become_point(snap, point);
	life_op_end();
}

/* All or nothing: never both, never neither. */
void life_recover_convert(void)
{
	struct life_snap *snap = &world->snap[world->op.snap];
	struct life_snap *point = &world->point[world->op.point];
	bool made = point_is_listed(point), kept = life_snap_is_listed(snap);

	life_must(made != kept, "a conversion of %s was cut short: %s", life_snap_name(snap),
		  made ? "both are there" : "neither is there");
	if (made)
		become_point(snap, point);
}

/* Units that were being written during the cut: nobody can tell what the point stands for there. */
static void forget_window(struct life_snap *point)
{
	for (uint32_t i = 0; i < world->op.window_count; i++) {
		const struct life_write *w = &world->op.windows[i];

		for (uint32_t m = 0; m < point->count; m++)
			for (uint32_t u = 0; w->disk == point->member[m].disk && u < w->count; u++)
				world->state[point->member[m].state].unit[w->at + u] = LIFE_UNKNOWN;
	}
}

void life_point(void)
{
	int p = life_free_point(), group = life_some_group();
	struct vmimg_ref ref = {.name = ""};
	struct vmimg_job *job = NULL;
	struct life_snap *point;
	bool made, load = life_chance(2);
	uint32_t r;

	if (p < 0 || group < 0)
		return;
	point = &world->point[p];
	if (!load)
		life_quiet();
	life_draw(point, (uint32_t)group, "p");
	if (!point->count)
		return; /* a copy that is on its way out */
	life_open_window();
	world->op.point = (uint32_t)p;
	life_op_begin(LIFE_POINT);
	snprintf(world->doing, sizeof(world->doing), "create %s", point_name(point));
	snprintf(ref.name, sizeof(ref.name), "%s", point->name);
	r = vmimg_create_reference_point(life.svc, world->group[group].name, NULL,
					 VMIMG_REFPOINT_RCT, &ref, &job, &err);
	life_must(r == VMIMG_JOB_STARTED, "%s: %u, %s", world->doing, r, err.message);
	made = life_wait_for_job(job, load, life_chance(8));
	vmimg_job_put(job);
	world->op.window = false;
	life_quiet();
	if (made) {
		forget_window(point);
		point->there = true;
	} else {
		life_snap_forget(point);
	}
	life_op_end();
}

void life_recover_point(void)
{
	struct life_snap *point = &world->point[world->op.point];

	if (point_is_listed(point)) {
		forget_window(point);
		point->there = true;
	} else {
		life_snap_forget(point);
	}
}

static uint32_t call_unpoint(void *arg)
{
	return vmimg_destroy_reference_point(life.svc, arg, NULL, &err);
}

void life_unpoint(void)
{
	int p = life_some_point();
	char name[2 * LIFE_NAME];
	uint32_t r;

	if (p < 0)
		return;
	snprintf(name, sizeof(name), "%s", point_name(&world->point[p]));
	snprintf(world->doing, sizeof(world->doing), "destroy %s", name);
	world->op.point = (uint32_t)p;
	life_company(-1, 0, NULL);
	life_op_begin(LIFE_UNPOINT);
	r = life_beside(call_unpoint, name, true);
	life_must(r == VMIMG_OK, "%s: %u, %s", world->doing, r, err.message);
	life_snap_forget(&world->point[p]);
	life_op_end();
}

void life_recover_unpoint(void)
{
	struct life_snap *point = &world->point[world->op.point];

	if (!point_is_listed(point))
		life_snap_forget(point);
}
