/* SPDX-License-Identifier: MIT */
/*
 * life_ops.c - operations of life.h. Each notes in world->op what it is about to do and to what, and
 * takes the note back when the model says what has come of it: after a death in between the next
 * process looks which of the two it was (life_recover()).
 */
#include "tests/sim/life.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/fold/fold.h"

static struct vmimg_error err;

/* --- snapshots --- */

/* A roll at its bound goes before a create (RO-3), and one that was cancelled is none. */
static bool may_fail(const struct vmimg_job_info *info, bool cancelled)
{
	return (cancelled && info->job_state == VMIMG_JOB_TERMINATED) ||
	       (info->job_state == VMIMG_JOB_EXCEPTION && info->error_code == VMIMG_V_IN_USE);
}

bool life_wait_for_job(struct vmimg_job *job, bool load, bool cancel)
{
	uint32_t turns = life_pick(8);
	struct vmimg_job_info info;

	for (uint32_t i = 0; vmimg_job_wait(job, 0) == -ETIMEDOUT; i++) {
		if (cancel && i == turns)
			vmimg_job_request_state_change(job, VMIMG_REQUEST_TERMINATE, 0, &err);
		if (load)
			life_begin_write();
		life_turn(200000);
	}
	vmimg_job_info(job, &info);
	life_must(info.job_state == VMIMG_JOB_COMPLETED || may_fail(&info, cancel),
		  "%s: job ended in state %u, error %u: %s", world->doing, info.job_state,
		  info.error_code, info.error_description);
	return info.job_state == VMIMG_JOB_COMPLETED;
}

void life_snapshot(void)
{
	int free = life_free_snap(), group = life_some_group();
	struct vmimg_job *job = NULL;
	struct vmimg_ref ref = {.name = ""};
	struct life_snap *snap;
	bool made, load = !life_chance(3);
	uint32_t r;

	if (free < 0 || group < 0)
		return;
	snap = &world->snap[free];
	if (!load)
		life_quiet();
	world->op.snap = (uint32_t)free;
	life_draw(snap, (uint32_t)group, "s");
	if (!snap->count)
		return; /* a copy that is on its way out */
	life_open_window();
	life_op_begin(LIFE_SNAPSHOT);
	snprintf(world->doing, sizeof(world->doing), "create %s", life_snap_name(snap));
	snprintf(ref.name, sizeof(ref.name), "%s", snap->name);
	r = vmimg_create_snapshot(life.svc, world->group[group].name, NULL, snap->type, &ref, &job,
				  &err);
	life_must(r == VMIMG_JOB_STARTED, "%s: %u, %s", world->doing, r, err.message);
	made = life_wait_for_job(job, load, life_chance(8));
	vmimg_job_put(job);
	world->op.window = false;
	life_quiet();
	if (made) {
		life_settle_window(snap);
		snap->there = true;
	} else {
		life_snap_forget(snap);
	}
	life_op_end();
}

static uint32_t call_destroy(void *arg)
{
	return vmimg_destroy_snapshot(life.svc, arg, NULL, &err);
}

static void delete_one(struct life_snap *snap, bool load)
{
	char name[2 * LIFE_NAME];
	uint32_t r;

	snprintf(name, sizeof(name), "%s", life_snap_name(snap));
	snprintf(world->doing, sizeof(world->doing), "delete %s", name);
	world->op.snap = (uint32_t)(snap - world->snap);
	life_company((int)world->op.snap, 0, NULL);
	life_op_begin(LIFE_DELETE);
	r = life_beside(call_destroy, name, load);
	life_must(r == (snap->held ? VMIMG_INVALID_STATE : VMIMG_OK) || life_is_refused(r),
		  "delete %s%s: %u, %s", name, snap->held ? ", which is held" : "", r, err.message);
	if (r == VMIMG_OK)
		life_snap_forget(snap);
	life_op_end();
}

void life_delete(void)
{
	int i = life_some_snap();

	if (i >= 0)
		delete_one(&world->snap[i], !life_chance(4));
}

/* --- sizes, attachments, folds --- */

struct resize {
	char disk[2 * LIFE_NAME];
	uint64_t size;
};

static uint32_t call_resize(void *arg)
{
	const struct resize *a = arg;

	return (uint32_t)-vmimg_disk_resize(life.svc, a->disk, a->size, &err);
}

void life_resize(void)
{
	int i = life_some_disk();
	struct resize a;
	uint32_t r;

	if (i < 0)
		return;
	a.size = world->disk[i].size + (1 + life_pick(400)) * LIFE_UNIT;
	if (a.size > world->size_max)
		return;
	snprintf(a.disk, sizeof(a.disk), "%s", life_disk_name((uint32_t)i));
	snprintf(world->doing, sizeof(world->doing), "grow %s to %llu", a.disk,
		 (unsigned long long)a.size);
	world->op.disk = (uint32_t)i;
	world->op.size = a.size;
	life_company(-1, 1, &world->op.disk);
	life_op_begin(LIFE_RESIZE);
	r = life_beside(call_resize, &a, true);
	life_must(r == 0 || life_is_refused(r), "grow %s to %llu: %u, %s", a.disk,
		  (unsigned long long)a.size, r, err.message);
	if (r == 0)
		world->disk[i].size = a.size;
	life_op_end();
}

static uint32_t call_shrink(void *arg)
{
	const struct resize *a = arg;

	return (uint32_t)-vmimg_disk_shrink(life.svc, a->disk, a->size, &err);
}

/* RZ: what lies beyond the end is gone, also when the disk grows again. */
static void cut_off(uint32_t disk, uint64_t size)
{
	struct life_disk *d = &world->disk[disk];

	for (uint32_t u = life_units(size); u < life_units(d->size); u++)
		world->state[d->state].unit[u] = 0;
	d->size = size;
	life_all_durable(disk);
}

/* A quarter of it at most, and never what is the user's own file. */
void life_shrink(void)
{
	int i = life_some_disk();
	struct cat_disk row;
	struct resize a;
	uint32_t r;

	if (i < 0 || !strcmp(world->disk[i].name, "d1") || world->disk[i].size < 80 * LIFE_WRITE)
		return;
	life_must(eng_catalog_get_disk(life.svc->store->catalog, world->disk[i].vm,
				       world->disk[i].name, &row) == 0,
		  "%s is lost", life_disk_name((uint32_t)i));
	a.size = world->disk[i].size - world->disk[i].size * life_pick(64) / 256;
	a.size = a.size >> row.block_bits << row.block_bits;
	if (a.size == world->disk[i].size || a.size < 4 * LIFE_WRITE * LIFE_UNIT)
		return;
	snprintf(a.disk, sizeof(a.disk), "%s", life_disk_name((uint32_t)i));
	snprintf(world->doing, sizeof(world->doing), "shrink %s to %llu", a.disk,
		 (unsigned long long)a.size);
	life_detach((uint32_t)i);
	world->op.disk = (uint32_t)i;
	world->op.size = a.size;
	life_company(-1, 1, &world->op.disk);
	life_op_begin(LIFE_RESIZE);
	r = life_beside(call_shrink, &a, true);
	life_must(r == 0 || life_is_refused(r), "%s: %u, %s", world->doing, r, err.message);
	if (r == 0)
		cut_off((uint32_t)i, a.size);
	life_op_end();
	life_attach((uint32_t)i);
	life_check_head((uint32_t)i, life_chance(4));
}

/* A fold may be slowed down, let go, or ended in the middle. */
void life_folds(void)
{
	static const uint64_t rates[] = {0, 1 << 20, 8 << 20, 64 << 20};
	struct eng_folder *folder = life.svc->store->folder;

	if (life_chance(3)) {
		eng_folder_pause(folder, true);
		eng_folder_pause(folder, false);
	} else {
		eng_folder_set_rate(folder, rates[life_pick(4)]);
	}
}

void life_reattach(void)
{
	int i = life_some_disk();

	if (i < 0)
		return;
	snprintf(world->doing, sizeof(world->doing), "detach %s", life_disk_name((uint32_t)i));
	life_detach((uint32_t)i);
	life_attach((uint32_t)i);
}

/* --- what is there --- */

bool life_snap_is_listed(const struct life_snap *snap)
{
	struct cat_snapshot row;

	return eng_catalog_get_snapshot(life.svc->store->catalog, world->group[snap->group].name,
					snap->name, &row) == 0 &&
	       row.state == CAT_SNAPSHOT_COMPLETE;
}

void life_check_lists(void)
{
	struct cat_snapshot *rows = NULL;
	uint32_t expected = 0;
	size_t n = 0;
	int r = eng_catalog_list_snapshots(life.svc->store->catalog, NULL, &rows, &n);

	life_must(r == 0, "cannot list the snapshots: %d", r);
	for (size_t i = 0; i < n; i++)
		life_must(rows[i].state == CAT_SNAPSHOT_COMPLETE, "%s@%s is in state %u",
			  rows[i].collection_name, rows[i].name, rows[i].state);
	free(rows);
	for (uint32_t i = 0; i < LIFE_SNAPS; i++) {
		const struct life_snap *snap = &world->snap[i];

		life_must(!snap->there || life_snap_is_listed(snap), "%s is lost",
			  life_snap_name(snap));
		expected += snap->there;
	}
	life_must(n == expected, "%zu snapshots, expected %u", n, expected);
	life_check_points();
}

/* --- after a death --- */

static void recover_snapshot(void)
{
	struct life_snap *snap = &world->snap[world->op.snap];

	if (life_snap_is_listed(snap)) {
		life_settle_window(snap);
		snap->there = true;
	} else {
		life_snap_forget(snap);
	}
}

static void recover_delete(void)
{
	struct life_snap *snap = &world->snap[world->op.snap];

	life_must(!snap->held || life_snap_is_listed(snap), "%s was held and is gone",
		  life_snap_name(snap));
	if (!life_snap_is_listed(snap))
		life_snap_forget(snap);
}

static void recover_resize(void)
{
	uint32_t i = world->op.disk;
	uint64_t size = vmimg_disk_size(life.disk[i]);

	life_must(size == world->disk[i].size || size == world->op.size,
		  "%s: size is %llu after a kill, expected %llu or %llu", life_disk_name(i),
		  (unsigned long long)size, (unsigned long long)world->disk[i].size,
		  (unsigned long long)world->op.size);
	if (size < world->disk[i].size)
		cut_off(i, size);
	world->disk[i].size = size;
}

void life_recover(void)
{
	switch (world->op.kind) {
	case LIFE_SNAPSHOT: recover_snapshot(); break;
	case LIFE_DELETE: recover_delete(); break;
	case LIFE_RESIZE: recover_resize(); break;
	case LIFE_HOLD: life_recover_hold(); break;
	case LIFE_PRUNE: life_recover_prune(); break;
	case LIFE_REVERT: life_recover_revert(); break;
	case LIFE_CONVERT: life_recover_convert(); break;
	case LIFE_POINT: life_recover_point(); break;
	case LIFE_UNPOINT: life_recover_unpoint(); break;
	case LIFE_COPY: life_recover_copy(); break;
	case LIFE_UNDISK: life_recover_undisk(); break;
	case LIFE_UNGROUP: life_recover_ungroup(); break;
	default: break;
	}
	life_recover_company();
	life_op_end();
	life_settle_writes();
	life_recover_backup();
	life_check_lists();
	for (uint32_t i = 0; i < LIFE_DISKS; i++)
		if (world->disk[i].there)
			life_check_head(i, true);
	for (uint32_t i = 0; i < LIFE_SNAPS; i++)
		if (world->snap[i].there && life_chance(4))
			life_check_snap(&world->snap[i], true);
}
