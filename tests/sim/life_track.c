/* SPDX-License-Identifier: MIT */
/*
 * life_track.c - change tracking in life.h: what changed between two states is compared with what the
 * model says of both. It may name more than differs, never less (P6).
 */
#include "tests/sim/life.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/diff/diff.h"

struct ask {
	struct cat_disk disk;
	struct eng_state from, to;
	struct eng_blocks *changed;
	struct fmt_error why;
	int result;
};

static uint32_t call_diff(void *arg)
{
	struct ask *a = arg;

	a->result = eng_diff(life.svc->store, &a->disk, &a->from, &a->to, &a->why, &a->changed);
	return 0;
}

/* One of the disk's states, as the model and as the engine know it. */
struct side {
	struct eng_state state;
	struct eng_blocks *saved; /* of a point; or NULL */
	uint32_t model;
	uint64_t size;
	char name[2 * LIFE_NAME];
};

static void side_now(struct side *side, uint32_t disk)
{
	side->model = world->disk[disk].state;
	side->size = world->disk[disk].size;
	snprintf(side->name, sizeof(side->name), "now");
}

static void side_snap(struct side *side, const struct life_snap *snap, uint32_t m,
		      const struct fmt_uuid *disk)
{
	struct eng_catalog *cat = life.svc->store->catalog;
	struct cat_snapshot_disk *rows = NULL;
	struct cat_snapshot row;
	size_t n = 0;

	snprintf(side->name, sizeof(side->name), "%s", life_snap_name(snap));
	life_must(eng_catalog_get_snapshot(cat, world->group[snap->group].name, snap->name, &row) ==
				  0 &&
			  eng_catalog_list_snapshot_disks(cat, &row.id, &rows, &n) == 0,
		  "%s is lost", side->name);
	for (size_t i = 0; i < n; i++)
		if (fmt_uuid_equal(&rows[i].disk, disk))
			side->state.layer = rows[i].layer;
	free(rows);
	life_must(!fmt_uuid_is_none(&side->state.layer), "%s has no such disk", side->name);
	side->state.size = side->size = snap->member[m].size;
	side->model = snap->member[m].state;
}

static void side_point(struct side *side, const struct life_snap *point, uint32_t m,
		       const struct fmt_uuid *disk)
{
	struct eng_catalog *cat = life.svc->store->catalog;
	struct cat_refpoint_disk row;
	struct cat_refpoint at;
	struct fmt_error why = {""};
	void *set = NULL;
	size_t len = 0;

	snprintf(side->name, sizeof(side->name), "%s#%s", world->group[point->group].name,
		 point->name);
	life_must(eng_catalog_get_refpoint(cat, world->group[point->group].name, point->name,
					   &at) == 0 &&
			  eng_catalog_get_refpoint_disk(cat, &at.id, disk, &row, &set, &len) == 0,
		  "%s is lost", side->name);
	life_must(!fmt_uuid_is_none(&row.layer), "%s: tracking is lost", side->name);
	life_must(row.size == point->member[m].size, "%s: size is %llu, expected %llu", side->name,
		  (unsigned long long)row.size, (unsigned long long)point->member[m].size);
	if (set)
		life_must(eng_blocks_decode(set, len, &why, &side->saved) == 0, "%s: %s",
			  side->name, why.text);
	free(set);
	side->state.layer = row.layer;
	side->state.extra = side->saved;
	side->state.size = side->size = point->member[m].size;
	side->model = point->member[m].state;
}

static void pick_side(struct side *side, uint32_t disk, const struct fmt_uuid *id)
{
	int i = life_some_snap(), p = life_some_point();
	bool point = p >= 0 && life_chance(2);
	const struct life_snap *from = point ? &world->point[p] : i >= 0 ? &world->snap[i] : NULL;

	memset(side, 0, sizeof(*side));
	for (uint32_t m = 0; from && !life_chance(3) && m < from->count; m++) {
		if (from->member[m].disk != disk)
			continue;
		if (point)
			side_point(side, from, m, id);
		else
			side_snap(side, from, m, id);
		return;
	}
	side_now(side, disk);
}

static void expect_named(const struct ask *a, const struct side *from, const struct side *to)
{
	uint64_t longer = from->size > to->size ? from->size : to->size;
	const uint32_t *x = world->state[from->model].unit, *y = world->state[to->model].unit;
	uint32_t unit_bits = a->disk.block_bits - 9;

	for (uint32_t u = 0; u < life_units(longer); u++) {
		uint32_t was = u < life_units(from->size) ? x[u] : 0;
		uint32_t is = u < life_units(to->size) ? y[u] : 0;

		life_must(was == is || was == LIFE_UNKNOWN || is == LIFE_UNKNOWN ||
				  eng_blocks_has(a->changed, u >> unit_bits),
			  "%s: sector %u differs, write %u and write %u, and its block is not named",
			  world->doing, u, was, is);
	}
}

void life_diff(void)
{
	struct ask a = {.result = 0};
	struct side from = {.saved = NULL}, to = {.saved = NULL};
	int i = life_some_disk();

	if (i < 0)
		return;
	/* A fold may replace a layer between our look at the catalog and the call (then asked anew). */
	for (unsigned attempt = 0; attempt < 20 && (!attempt || a.result == -ENOENT); attempt++) {
		eng_blocks_destroy(from.saved);
		eng_blocks_destroy(to.saved);
		life_must(eng_catalog_get_disk(life.svc->store->catalog, world->disk[i].vm,
					       world->disk[i].name, &a.disk) == 0,
			  "%s is lost", life_disk_name((uint32_t)i));
		pick_side(&from, (uint32_t)i, &a.disk.id);
		pick_side(&to, (uint32_t)i, &a.disk.id);
		a.from = from.state;
		a.to = to.state;
		snprintf(world->doing, sizeof(world->doing), "diff of %s: %s to %s",
			 life_disk_name((uint32_t)i), from.name, to.name);
		life_quiet();
		a.why.text[0] = 0;
		life_beside(call_diff, &a, false);
	}
	life_must(a.result == 0, "%s: %d, %s", world->doing, a.result, a.why.text);
	expect_named(&a, &from, &to);
	eng_blocks_destroy(a.changed);
	eng_blocks_destroy(from.saved);
	eng_blocks_destroy(to.saved);
}
