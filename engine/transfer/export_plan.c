/* SPDX-License-Identifier: MIT */
/*
 * export_plan.c - what an export will hold: the snapshot's rows as a manifest, its disks opened, and what
 * changed on each since the base (EX-1, EX-4). Everything is looked up before anything is written.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/diff/diff.h"
#include "engine/transfer/export_impl.h"
#include "engine/transfer/increment.h"

/* --- the snapshot as a manifest --- */

static uint32_t vm_index(struct fmt_manifest *m, const struct fmt_uuid *id, const char *name)
{
	for (uint32_t i = 0; i < m->vm_count; i++)
		if (fmt_uuid_equal(&m->vms[i].id, id))
			return i;
	m->vms[m->vm_count].id = *id;
	strcpy(m->vms[m->vm_count].name, name);
	return m->vm_count++;
}

static int add_disk(struct eng_export_plan *p, const struct cat_snapshot_disk *row,
		    struct fmt_error *err)
{
	struct fmt_manifest *m = &p->m;
	struct fmt_manifest_disk *d = &m->disks[m->disk_count];
	struct cat_disk disk;
	int r = eng_catalog_get_disk_id(p->store->catalog, &row->disk, &disk);

	if (r < 0)
		return fmt_fail(err, r, "%s/%s: the disk is not in the catalog any more",
				row->vm_name, row->disk_name);
	d->id = row->disk;
	d->vm = vm_index(m, &disk.vm, row->vm_name);
	strcpy(d->name, row->disk_name);
	d->size = row->size;
	d->block_bits = disk.block_bits;
	d->position = disk.position;
	d->full = true;
	p->disks[m->disk_count++].row = *row;
	return 0;
}

static int take_snapshot(struct eng_export_plan *p, struct fmt_error *err)
{
	struct fmt_manifest *m = &p->m;
	struct cat_snapshot_disk *rows = NULL;
	struct cat_snapshot snap;
	size_t n = 0;
	int r = eng_catalog_find_members(p->store->catalog, p->how->collection, p->how->snapshot,
					 err, &snap, &rows, &n);

	if (r < 0)
		return r;
	m->format = p->how->format;
	m->collection = snap.collection;
	m->snapshot = snap.id;
	strcpy(m->collection_name, snap.collection_name);
	strcpy(m->snapshot_name, snap.name);
	strcpy(m->element_name, snap.element_name);
	m->type = snap.type;
	m->consistency = snap.consistency;
	m->guest_backup_type = snap.guest_backup_type;
	m->created_ns = snap.created_ns;
	m->cut_wall_ns = snap.cut_wall_ns;
	m->skipped = snap.skipped;
	m->intent = p->how->intent ? p->how->intent : FMT_INTENT_PRESERVE_CHAIN;
	m->vms = calloc(n + 1, sizeof(*m->vms));
	m->disks = calloc(n + 1, sizeof(*m->disks));
	p->disks = calloc(n + 1, sizeof(*p->disks));
	if (!m->vms || !m->disks || !p->disks)
		r = -ENOMEM;
	else if (n > FMT_MANIFEST_COUNT_MAX)
		r = fmt_fail(err, -E2BIG, "%zu disks: more than an export can name", n);
	for (size_t i = 0; r == 0 && i < n; i++)
		if (!rows[i].skipped)
			r = add_disk(p, &rows[i], err);
	free(rows);
	if (r == 0 && !m->disk_count)
		r = fmt_fail(err, -EINVAL, "%s@%s: holds no disk", p->how->collection,
			     p->how->snapshot);
	return r < 0 ? r : fmt_manifest_state(&m->snapshot, m->disks, m->disk_count, m->state);
}

/* --- the base --- */

static int find_changes(struct eng_export_plan *p, const struct eng_increment_base *base,
			uint32_t i, struct fmt_error *err)
{
	struct fmt_manifest_disk *d = &p->m.disks[i];
	const struct eng_increment_disk *was = eng_increment_base_disk(base, &d->id);
	struct eng_state from = {0}, to = {.layer = *eng_view_layer(p->view, p->disks[i].view),
					   .size = d->size};
	struct cat_disk disk;
	int r;

	if (!was)
		return 0; /* MF-4: new since */
	if (fmt_uuid_is_none(&was->layer))
		return fmt_fail(err, -ESTALE,
				"%s: what changed since %s is not known any more; export in full",
				p->disks[i].name, base->row.name);
	from.layer = was->layer;
	from.size = was->size;
	from.extra = was->extra;
	r = eng_catalog_get_disk_id(p->store->catalog, &d->id, &disk);
	if (r == 0)
		r = eng_diff(p->store, &disk, &from, &to, err, &p->disks[i].changed);
	if (r == 0)
		d->full = false;
	return r;
}

/* With what is open: no fold moves it any more, and the snapshot may be deleted from here on (DL-5). */
static int compare_with_base(struct eng_export_plan *p, struct fmt_error *err)
{
	struct eng_increment_base base;
	int r = eng_increment_base_find(p->store, p->how->collection, p->how->base,
					p->how->base_is_refpoint, err, &base);

	if (r < 0)
		return r;
	if (fmt_uuid_equal(&base.row.id, &p->m.snapshot))
		r = fmt_fail(err, -EINVAL, "%s: the base is the snapshot itself", p->how->snapshot);
	for (uint32_t i = 0; r == 0 && i < p->m.disk_count; i++)
		r = find_changes(p, &base, i, err);
	p->m.has_base = true;
	p->m.base = base.row;
	eng_increment_base_fini(&base);
	return r;
}

/* --- all of it --- */

static int open_disks(struct eng_export_plan *p, struct fmt_error *err)
{
	const struct fmt_manifest *m = &p->m;
	int r = eng_view_open(p->store, err, &p->view);

	for (uint32_t i = 0; r == 0 && i < m->disk_count; i++) {
		struct eng_export_disk *d = &p->disks[i];

		snprintf(d->name, sizeof(d->name), "%s@%s/%s/%s", m->collection_name,
			 m->snapshot_name, m->vms[m->disks[i].vm].name, m->disks[i].name);
		r = eng_view_add_member(p->view, &d->row, d->name, err, &d->view);
	}
	return r;
}

static uint64_t count_bytes(const struct eng_export_plan *p)
{
	uint64_t total = 0;

	for (uint32_t i = 0; i < p->m.disk_count; i++) {
		const struct fmt_manifest_disk *d = &p->m.disks[i];

		total += d->full ? d->size
				 : eng_blocks_cardinality(p->disks[i].changed) << d->block_bits;
	}
	return total;
}

int eng_export_plan(struct eng_store *store, const struct eng_export *how,
		    struct eng_export_plan *plan, struct fmt_error *err)
{
	struct eng_export_plan p = {.store = store, .how = how};
	int r = 0;

	if (how->base && how->format == FMT_EXPORT_RAW)
		return fmt_fail(err, -EINVAL,
				"a raw file cannot say what is as in the base: qcow2 and stream "
				"can (EX-4)");
	r = take_snapshot(&p, err);
	if (r == 0)
		r = open_disks(&p, err);
	if (r == 0 && how->base)
		r = compare_with_base(&p, err);
	if (r < 0) {
		if (err && !err->text[0])
			fmt_fail(err, r, "%s@%s: cannot begin: %s", how->collection, how->snapshot,
				 strerror(-r));
		eng_export_plan_fini(&p);
		return r;
	}
	p.total = count_bytes(&p);
	*plan = p;
	return 0;
}

void eng_export_plan_fini(struct eng_export_plan *plan)
{
	eng_view_close(plan->view);
	for (uint32_t i = 0; plan->disks && i < plan->m.disk_count; i++)
		eng_blocks_destroy(plan->disks[i].changed);
	free(plan->disks);
	fmt_manifest_fini(&plan->m);
	memset(plan, 0, sizeof(*plan));
}
