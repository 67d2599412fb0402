/* SPDX-License-Identifier: MIT */
/*
 * life_copy.c - collections made of a snapshot in life.h: clones (spec/branch.md CL-*), and snapshots
 * that were exported and imported under another name (spec/stream.md IP-*). They are written to, have
 * snapshots and copies of their own, and go again, disk by disk.
 */
#include "tests/sim/life.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct vmimg_error err;

static int free_group(void)
{
	for (uint32_t i = 0; i < LIFE_GROUPS; i++)
		if (!world->group[i].there && !world->group[i].name[0])
			return (int)i;
	return -1;
}

static uint32_t free_disks(void)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < LIFE_DISKS; i++)
		n += !world->disk[i].there && !world->disk[i].name[0];
	return n;
}

/* --- the copy in the model: drawn before the call, there or forgotten after it --- */

static void draw_disk(const struct life_member *m, uint32_t group)
{
	uint32_t i = (uint32_t)life_free_disk();
	struct life_disk *d = &world->disk[i];

	*d = (struct life_disk){.group = group,
				.size = m->size,
				.state = life_state_copy(m->state)};
	if (world->loss)
		d->durable = life_state_copy(m->state);
	snprintf(d->vm, sizeof(d->vm), "%.12s-%.26s", world->group[group].name, m->vm);
	snprintf(d->name, sizeof(d->name), "%s", m->name);
	world->op.copies[world->op.copy_count++] = i;
}

/* IP-1: of an import there is the snapshot, too. */
static void draw_imported(struct life_snap *made, const struct life_snap *snap, uint32_t group)
{
	memset(made, 0, sizeof(*made));
	made->group = group;
	made->type = snap->type;
	made->born = ++world->births;
	snprintf(made->name, sizeof(made->name), "%s", snap->name);
	for (uint32_t c = 0; c < world->op.copy_count; c++)
		life_draw_disk(made, world->op.copies[c]);
}

static bool draw_copy(const struct life_snap *snap, const char *what, bool import)
{
	int group = free_group(), kept = import ? life_free_snap() : 0;

	if (group < 0 || kept < 0 || free_disks() < snap->count)
		return false;
	for (uint32_t m = 0; m < snap->count; m++)
		if (strlen(snap->member[m].vm) > 24) /* a copy of a copy of a copy */
			return false;
	life_new_name(world->group[group].name, what);
	world->op.group = (uint32_t)group;
	world->op.snap = (uint32_t)(snap - world->snap);
	world->op.kept = import ? kept : -1;
	world->op.copy_count = 0;
	for (uint32_t m = 0; m < snap->count; m++)
		draw_disk(&snap->member[m], (uint32_t)group);
	if (import)
		draw_imported(&world->snap[kept], snap, (uint32_t)group);
	return true;
}

static void forget_disk(uint32_t i)
{
	struct life_disk *d = &world->disk[i];

	life_state_free(d->state);
	if (world->loss)
		life_state_free(d->durable);
	memset(d, 0, sizeof(*d));
}

static void settle_copy(bool made)
{
	struct life_group *group = &world->group[world->op.group];

	for (uint32_t c = 0; c < world->op.copy_count; c++) {
		if (made)
			world->disk[world->op.copies[c]].there = true;
		else
			forget_disk(world->op.copies[c]);
	}
	if (world->op.kept >= 0 && made)
		world->snap[world->op.kept].there = true;
	else if (world->op.kept >= 0)
		life_snap_forget(&world->snap[world->op.kept]);
	group->there = made;
	if (!made)
		group->name[0] = 0;
}

/* As after the call. */
void life_recover_copy(void)
{
	struct cat_collection row;
	bool made = eng_catalog_get_collection(life.svc->store->catalog,
					       world->group[world->op.group].name, &row) == 0;

	settle_copy(made);
	life_attach_all();
}

/* --- clones --- */

struct copy {
	char snapshot[2 * LIFE_NAME], to[LIFE_NAME], dir[160], settings[128];
};

static uint32_t call_clone(void *arg)
{
	const struct copy *a = arg;

	return vmimg_clone_snapshot(life.svc, a->snapshot, a->to, NULL, NULL, NULL, &err);
}

static void end_copy(uint32_t r)
{
	life_must(r == VMIMG_OK || life_is_refused(r), "%s: %u, %s", world->doing, r, err.message);
	settle_copy(r == VMIMG_OK);
	life_op_end();
	life_attach_all();
	for (uint32_t c = 0; c < world->op.copy_count; c++)
		life_check_head(world->op.copies[c], life_chance(3));
}

void life_clone(void)
{
	int i = life_some_snap();
	struct copy a;

	if (i < 0 || !draw_copy(&world->snap[i], "k", false))
		return;
	snprintf(a.snapshot, sizeof(a.snapshot), "%s", life_snap_name(&world->snap[i]));
	snprintf(a.to, sizeof(a.to), "%s", world->group[world->op.group].name);
	snprintf(world->doing, sizeof(world->doing), "clone %s to %s", a.snapshot, a.to);
	life_company(-1, 0, NULL);
	life_op_begin(LIFE_COPY);
	end_copy(life_beside(call_clone, &a, true));
}

/* --- out of the store and back --- */

static uint32_t call_export(void *arg)
{
	const struct copy *a = arg;

	return vmimg_export_snapshot(life.svc, a->snapshot, a->dir, a->settings, NULL, &err);
}

static uint32_t call_import(void *arg)
{
	const struct copy *a = arg;

	return vmimg_import_snapshot(life.svc, a->dir, a->settings, NULL, &err);
}

void life_import(void)
{
	const char *format = life_some_format(false);
	int i = life_some_snap();
	char part[170];
	struct copy a;
	uint32_t r;

	if (i < 0)
		return;
	snprintf(a.snapshot, sizeof(a.snapshot), "%s", life_snap_name(&world->snap[i]));
	snprintf(a.dir, sizeof(a.dir), "%s/export", world->dir);
	snprintf(part, sizeof(part), "%s.part", a.dir);
	life_clear(a.dir);
	life_clear(part); /* of a process that died */
	snprintf(a.settings, sizeof(a.settings),
		 "{\"Synchronous\": true, \"Format\": \"%s\", \"Compress\": %s}", format,
		 *format != 'r' && life_chance(2) ? "true" : "false");
	snprintf(world->doing, sizeof(world->doing), "export %s", a.snapshot);
	r = life_beside(call_export, &a, true);
	life_must(r == VMIMG_OK, "%s: %u, %s", world->doing, r, err.message);
	if (!draw_copy(&world->snap[i], "i", true))
		return;
	snprintf(a.settings, sizeof(a.settings), "{\"Synchronous\": true, \"Collection\": \"%s\"}",
		 world->group[world->op.group].name);
	snprintf(world->doing, sizeof(world->doing), "import %s as %s", a.snapshot,
		 world->group[world->op.group].name);
	life_op_begin(LIFE_COPY);
	end_copy(life_beside(call_import, &a, true));
}

/* --- a copy stands on its own --- */

static uint32_t call_flatten(void *arg)
{
	return vmimg_flatten(life.svc, arg, 0, VMIMG_FLATTEN_WAIT, NULL, &err);
}

/* Nobody's content changes, whenever it is cut short. */
void life_flatten(void)
{
	uint32_t g = 1 + life_pick(LIFE_GROUPS - 1), r;

	if (!world->group[g].there)
		return;
	snprintf(world->doing, sizeof(world->doing), "flatten %s", world->group[g].name);
	if (!life_chance(3)) {
		life_flatten_on(g);
		return;
	}
	r = life_beside(call_flatten, world->group[g].name, true);
	life_must(r == VMIMG_OK, "%s: %u, %s", world->doing, r, err.message);
}

/* --- a copy goes --- */

static uint32_t call_delete_disk(void *arg)
{
	return (uint32_t)-vmimg_disk_delete(life.svc, arg, &err);
}

/* False: another one stands on its layers (CL-5). */
static bool delete_disk(uint32_t i)
{
	char name[2 * LIFE_NAME];
	uint32_t r;

	snprintf(name, sizeof(name), "%s", life_disk_name(i));
	snprintf(world->doing, sizeof(world->doing), "delete disk %s", name);
	if (life.disk[i])
		life_detach(i);
	world->op.disk = i;
	life.job[LIFE_JOB_FLATTEN].excused = true;
	life_op_begin(LIFE_UNDISK);
	r = life_beside(call_delete_disk, name, true);
	life_must(r == 0 || r == EBUSY, "%s: %u, %s", world->doing, r, err.message);
	if (r == 0)
		forget_disk(i);
	life_op_end();
	if (r != 0)
		life_attach(i);
	return r == 0;
}

void life_recover_undisk(void)
{
	uint32_t i = world->op.disk;
	struct cat_disk row;

	if (eng_catalog_get_disk(life.svc->store->catalog, world->disk[i].vm, world->disk[i].name,
				 &row) < 0)
		forget_disk(i);
	else
		life_attach(i);
}

/* Its VMs, and the collection; a process that died may have begun with them. */
static void delete_group(uint32_t g)
{
	struct eng_catalog *cat = life.svc->store->catalog;
	struct cat_collection row;
	struct cat_vm *vms = NULL;
	uint32_t r = 0;
	size_t n = 0;

	snprintf(world->doing, sizeof(world->doing), "delete collection %s", world->group[g].name);
	world->op.group = g;
	life_op_begin(LIFE_UNGROUP);
	life_must(eng_catalog_get_collection(cat, world->group[g].name, &row) == 0 &&
			  eng_catalog_list_members(cat, &row.id, &vms, &n) == 0,
		  "%s is lost", world->group[g].name);
	for (size_t i = 0; r == 0 && i < n; i++) {
		r = vmimg_remove_member(life.svc, vms[i].name, world->group[g].name, &err);
		if (r == 0)
			r = (uint32_t)-vmimg_vm_delete(life.svc, vms[i].name, &err);
	}
	free(vms);
	if (r == 0)
		r = vmimg_destroy_collection(life.svc, world->group[g].name, &err);
	life_must(r == 0, "%s: %u, %s", world->doing, r, err.message);
	memset(&world->group[g], 0, sizeof(world->group[g]));
	life_op_end();
}

void life_recover_ungroup(void)
{
	struct cat_collection row;

	if (eng_catalog_get_collection(life.svc->store->catalog, world->group[world->op.group].name,
				       &row) < 0)
		memset(&world->group[world->op.group], 0, sizeof(world->group[0]));
}

static bool keeps_something(uint32_t g)
{
	for (uint32_t i = 0; i < LIFE_SNAPS; i++)
		if (world->snap[i].there && world->snap[i].group == g)
			return true;
	for (uint32_t i = 0; i < LIFE_POINTS; i++)
		if (world->point[i].there && world->point[i].group == g)
			return true;
	return false;
}

/* A part of it at least, if nothing else needs it. */
static void delete_copy(uint32_t g)
{
	if (!world->group[g].there || keeps_something(g))
		return;
	for (uint32_t i = 0; i < LIFE_DISKS; i++)
		if (world->disk[i].there && world->disk[i].group == g && !delete_disk(i))
			return;
	delete_group(g);
}

void life_uncopy(void)
{
	delete_copy(1 + life_pick(LIFE_GROUPS - 1));
}

/* Copies of copies go first. */
void life_uncopy_all(void)
{
	for (uint32_t round = 0; round < LIFE_GROUPS; round++)
		for (uint32_t g = 1; g < LIFE_GROUPS; g++)
			delete_copy(g);
	for (uint32_t g = 1; g < LIFE_GROUPS; g++)
		life_must(!world->group[g].there, "%s cannot be deleted", world->group[g].name);
}
