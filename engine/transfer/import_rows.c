/* SPDX-License-Identifier: MIT */
/*
 * import_rows.c - what an import becomes in the catalog: names and ids that are free, or the base that an
 * increment stands on, looked at before anything is written and once more, with the disks claimed, in
 * front of the one transaction (IP-1, IP-2, IP-4).
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/store/users.h"
#include "engine/transfer/import_impl.h"

#define HEAD_SLOTS 256u
#define CLAIM_NS   (10ull * 1000000000)

/* --- a full one --- */

static bool vm_id_is_free(struct eng_import_run *run, const struct fmt_uuid *id)
{
	struct cat_vm *rows = NULL;
	size_t n = 0;
	bool is_free = eng_catalog_list_vms(run->store->catalog, &rows, &n) == 0;

	for (size_t i = 0; i < n; i++)
		is_free = is_free && !fmt_uuid_equal(&rows[i].id, id);
	free(rows);
	return is_free;
}

static int name_vm(struct eng_import_run *run, const char *name, char ret[CAT_NAME_MAX])
{
	const char *prefix = run->how->new_collection;
	size_t len = strlen(name) + (prefix ? strlen(prefix) + 1 : 0);

	if (len >= CAT_NAME_MAX)
		return fmt_fail(run->err, -ENAMETOOLONG,
				"%s-%s: %zu bytes, a VM's name has 64 at most", prefix, name, len);
	strcpy(ret, prefix ? prefix : "");
	if (prefix)
		strcat(ret, "-");
	strcat(ret, name);
	return 0;
}

static int plan_new_vm(struct eng_import_run *run, uint32_t vm, struct cat_vm *ret)
{
	const struct fmt_manifest_vm *v = &run->m->vms[vm];
	struct cat_vm taken, row = {.created_ns = eng_io_wall_ns(run->store->io)};
	int r = name_vm(run, v->name, row.name);

	if (r < 0)
		return r;
	if (eng_catalog_get_vm(run->store->catalog, row.name, &taken) == 0)
		return fmt_fail(run->err, -EEXIST, "VM %s: there is one already (IP-2)", row.name);
	row.id = v->id;
	if (!vm_id_is_free(run, &v->id))
		eng_store_new_id(run->store, &row.id);
	*ret = row;
	return 0;
}

static int plan_new_collection(struct eng_import_run *run)
{
	struct eng_catalog *cat = run->store->catalog;
	const char *name = run->how->new_collection ? run->how->new_collection
						    : run->m->collection_name;
	struct cat_collection taken;
	struct cat_snapshot snap;

	if (eng_catalog_get_collection(cat, name, &taken) == 0)
		return fmt_fail(run->err, -EEXIST,
				"collection %s: there is one already; import under another name "
				"(IP-2)",
				name);
	run->new_collection = true;
	run->collection.id = run->m->collection;
	run->collection.created_ns = eng_io_wall_ns(run->store->io);
	strcpy(run->collection.name, name);
	if (eng_catalog_get_collection_id(cat, &run->m->collection, &taken) == 0)
		eng_store_new_id(run->store, &run->collection.id);
	run->snapshot = run->m->snapshot;
	if (eng_catalog_get_snapshot_id(cat, &run->m->snapshot, &snap) == 0)
		eng_store_new_id(run->store, &run->snapshot);
	return 0;
}

/* --- an increment --- */

/* So that no fold comes between one look at the base and the next. */
static int hold_chains(struct eng_import_run *run)
{
	struct cat_disk row;
	int r = 0;

	for (uint32_t i = 0; r == 0 && i < run->m->disk_count; i++)
		if (!run->m->disks[i].full &&
		    eng_catalog_get_disk_id(run->store->catalog, &run->m->disks[i].id, &row) == 0)
			r = eng_users_hold(run->store, &row.id, &run->disks[i].held);
	return r;
}

static void let_go(struct eng_import_run *run)
{
	for (uint32_t i = 0; run->disks && i < run->m->disk_count; i++) {
		eng_users_let_go(run->disks[i].held);
		run->disks[i].held = NULL;
	}
}

static int plan_onto_base(struct eng_import_run *run)
{
	struct eng_catalog *cat = run->store->catalog;
	struct cat_snapshot snap;
	int r;

	if (run->how->new_collection)
		return fmt_fail(run->err, -EINVAL,
				"an increment goes to its base's collection, not to a new one");
	r = eng_increment_base_match(run->store, &run->m->base, run->err, &run->base);
	if (r == 0)
		r = eng_catalog_get_collection_id(cat, &run->base.collection, &run->collection);
	if (r < 0)
		return r;
	run->snapshot = run->m->snapshot;
	if (eng_catalog_get_snapshot_id(cat, &run->m->snapshot, &snap) == 0 ||
	    eng_catalog_get_snapshot(cat, run->collection.name, run->m->snapshot_name, &snap) == 0)
		return fmt_fail(run->err, -EEXIST, "%s@%s: it is here already",
				run->collection.name, run->m->snapshot_name);
	return 0;
}

/* A VM that is here by its id, or one to be made; an earlier disk may have made it. */
static int plan_vm(struct eng_import_run *run, uint32_t i)
{
	struct eng_import_disk *d = &run->disks[i];
	uint32_t vm = run->m->disks[i].vm;
	struct cat_vm *rows = NULL;
	size_t n = 0;
	int r;

	for (uint32_t j = 0; j < i; j++)
		if (run->disks[j].new_disk && run->m->disks[j].vm == vm) {
			d->vm = run->disks[j].vm;
			return 0;
		}
	if (!run->new_collection) {
		r = eng_catalog_list_vms(run->store->catalog, &rows, &n);
		if (r < 0)
			return r;
		for (size_t j = 0; j < n; j++)
			if (fmt_uuid_equal(&rows[j].id, &run->m->vms[vm].id)) {
				d->vm = rows[j];
				free(rows);
				return 0;
			}
		free(rows);
	}
	r = plan_new_vm(run, vm, &d->vm);
	d->new_vm = r == 0;
	return r;
}

static int plan_new_disk(struct eng_import_run *run, uint32_t i)
{
	const struct fmt_manifest_disk *m = &run->m->disks[i];
	struct eng_import_disk *d = &run->disks[i];
	struct cat_disk taken;
	int r = plan_vm(run, i);

	if (r < 0)
		return r;
	d->new_disk = true;
	d->id = m->id;
	if (eng_catalog_get_disk_id(run->store->catalog, &m->id, &taken) == 0)
		eng_store_new_id(run->store, &d->id);
	if (eng_catalog_get_disk(run->store->catalog, d->vm.name, m->name, &taken) == 0)
		return fmt_fail(run->err, -EEXIST, "disk %s/%s: there is one already", d->vm.name,
				m->name);
	return 0;
}

static int stale(struct eng_import_run *run, const char *disk, const char *why)
{
	return fmt_fail(run->err, -ESTALE,
			"disk %s: expected nothing written since %s, found %s (IP-4)", disk,
			run->base.row.name, why);
}

static int count_run(void *arg, const struct fmt_run *run)
{
	(void)run;
	++*(uint64_t *)arg;
	return 0;
}

/* The head stands on the base's layer, and holds nothing. */
static int check_head(struct eng_import_run *run, const struct eng_import_disk *d, const char *name,
		      struct eng_layer **ret)
{
	struct eng_layer *layer = NULL;
	struct cat_layer row;
	uint64_t runs = 0;
	int r = eng_catalog_get_layer(run->store->catalog, &d->was.head, &row);

	if (r < 0)
		return fmt_fail(run->err, r, "disk %s: its head is not in the catalog", name);
	if (row.kind != FMT_KIND_OVERLAY || !fmt_uuid_equal(&row.parent, &d->parent))
		return stale(run, name, "other layers above it");
	r = eng_store_open_layer(run->store, &row, false, run->err, &layer);
	if (r == 0)
		r = eng_log_replay(layer, count_run, &runs, run->err);
	if (r == 0 && runs)
		r = stale(run, name, "writes in its head");
	if (r == 0) {
		*ret = layer;
		layer = NULL;
	}
	eng_layer_put(layer);
	return r;
}

/*
 * The layer that disk @i of the base is now. A point's may have come to hold more than the point stands for:
 * that is in its set (RP-11, RP-13).
 */
static int find_base(struct eng_import_run *run, uint32_t i, struct fmt_uuid *ret)
{
	const struct fmt_manifest_disk *m = &run->m->disks[i];
	const struct eng_increment_disk *b = eng_increment_base_disk(&run->base, &m->id);
	char name[2 * CAT_NAME_MAX];

	snprintf(name, sizeof(name), "%s/%s", run->m->vms[m->vm].name, m->name);
	if (!b || fmt_uuid_is_none(&b->layer))
		return fmt_fail(run->err, -ESTALE,
				"disk %s: expected it in the base %s, found none (IP-4)", name,
				run->base.row.name);
	if (eng_blocks_cardinality(b->extra))
		return stale(run, name, "later writes folded into it");
	*ret = b->layer;
	return 0;
}

/*
 * What the new layer names as its parent: what the head does. As long as that one stands there, no fold
 * forgets that id, however many there are until the import ends (FD-1).
 */
static int take_parent(struct eng_import_run *run, struct eng_import_disk *d,
		       const struct eng_layer *head)
{
	struct eng_layer *layer = NULL;
	struct cat_layer row;
	int r = eng_catalog_get_layer(run->store->catalog, &d->parent, &row);

	if (r == 0)
		r = eng_store_open_layer(run->store, &row, false, run->err, &layer);
	if (r < 0)
		return r;
	d->named = head->hdr.parent_id;
	memcpy(d->parent_hash, head->hdr.parent_hash, sizeof(d->parent_hash));
	d->parent_generation = row.generation;
	d->parent_size = layer->hdr.size;
	if (fmt_uuid_equal(&d->named, &row.id) && layer->hdr.state == FMT_STATE_SEALED)
		memcpy(d->parent_hash, layer->hdr.seal_hash, sizeof(d->parent_hash));
	eng_layer_put(layer);
	return 0;
}

static int plan_old_disk(struct eng_import_run *run, uint32_t i)
{
	const struct fmt_manifest_disk *m = &run->m->disks[i];
	struct eng_import_disk *d = &run->disks[i];
	struct eng_layer *head = NULL;
	char name[2 * CAT_NAME_MAX];
	int r = find_base(run, i, &d->parent);

	if (r < 0)
		return r;
	r = eng_catalog_get_disk_id(run->store->catalog, &m->id, &d->was);
	if (r < 0)
		return fmt_fail(run->err, -ESTALE, "disk %s/%s: it is gone (IP-4)",
				run->m->vms[m->vm].name, m->name);
	snprintf(name, sizeof(name), "%s/%s", d->was.vm_name, d->was.name);
	d->id = m->id;
	if (d->was.block_bits != m->block_bits)
		return fmt_fail(run->err, -ESTALE, "disk %s: blocks of %u bytes, expected %u", name,
				1u << d->was.block_bits, 1u << m->block_bits);
	r = check_head(run, d, name, &head);
	if (r == 0)
		r = take_parent(run, d, head);
	eng_layer_put(head);
	return r;
}

int eng_import_plan(struct eng_import_run *run)
{
	int r = 0;

	run->disks = calloc(run->m->disk_count, sizeof(*run->disks));
	if (!run->disks)
		return fmt_fail(run->err, -ENOMEM, "out of memory");
	if (run->m->has_base)
		r = hold_chains(run);
	if (r == 0)
		r = run->m->has_base ? plan_onto_base(run) : plan_new_collection(run);
	for (uint32_t i = 0; r == 0 && i < run->m->disk_count; i++) {
		eng_store_new_id(run->store, &run->disks[i].layer);
		r = run->m->disks[i].full ? plan_new_disk(run, i) : plan_old_disk(run, i);
	}
	let_go(run);
	return r;
}

void eng_import_plan_fini(struct eng_import_run *run)
{
	for (uint32_t i = 0; run->disks && i < run->m->disk_count; i++) {
		eng_import_layer_destroy(run->disks[i].writer);
		eng_layer_put(run->disks[i].head);
		free(run->disks[i].head_path);
	}
	free(run->disks);
	eng_increment_base_fini(&run->base);
}

/* --- heads --- */

static uint64_t layer_generation(const struct eng_import_disk *d)
{
	return fmt_uuid_is_none(&d->parent) ? 0 : d->parent_generation + 1;
}

static int make_head(struct eng_import_run *run, uint32_t i)
{
	struct eng_import_disk *d = &run->disks[i];
	struct eng_layer_spec spec = {
		.store = run->store->id,
		.disk = d->id,
		.parent = d->layer,
		.generation = layer_generation(d) + 1,
		.size = run->m->disks[i].size,
		.block_bits = run->m->disks[i].block_bits,
		.initial_slots = HEAD_SLOTS,
		.direct = run->store->direct,
	};

	eng_store_new_id(run->store, &spec.layer);
	d->head_path = eng_store_layer_path(run->store, &spec.layer, "vmo");
	spec.path = d->head_path;
	return d->head_path ? eng_layer_create(run->store->io, &spec, run->err, &d->head)
			    : fmt_fail(run->err, -ENOMEM, "out of memory");
}

/* --- the commit --- */

#define POSITION_MAX (1u << 20) /* taken over; there is room for others behind them */

/* @wanted, or behind the VM's other disks where one of them has it: its user may have made some. */
static int choose_position(struct eng_import_run *run, const struct fmt_uuid *vm, uint32_t wanted,
			   uint32_t *ret)
{
	struct cat_disk *rows = NULL;
	bool taken = wanted > POSITION_MAX;
	uint32_t last = 0;
	size_t n = 0;
	int r = eng_catalog_list_disks(run->store->catalog, vm, &rows, &n);

	for (size_t i = 0; r == 0 && i < n; i++) {
		taken = taken || rows[i].position == wanted;
		last = rows[i].position > last ? rows[i].position : last;
	}
	free(rows);
	if (r == 0)
		*ret = !taken ? wanted : n ? last + 1 : 0;
	return r;
}

static int put_disk(struct eng_import_run *run, uint32_t i)
{
	const struct fmt_manifest_disk *m = &run->m->disks[i];
	const struct eng_import_disk *d = &run->disks[i];
	struct cat_disk row = d->was;
	int r = 0;

	if (d->new_disk) {
		row.id = d->id;
		row.vm = d->vm.id;
		strcpy(row.name, m->name);
		row.block_bits = m->block_bits;
		r = choose_position(run, &row.vm, m->position, &row.position);
		row.created_ns = eng_io_wall_ns(run->store->io);
	}
	row.size = m->size;
	row.head = d->head->id;
	if (r == 0)
		eng_catalog_put_disk(run->store->catalog, &row);
	return r;
}

static void put_layers(struct eng_import_run *run, uint32_t i)
{
	const struct eng_import_disk *d = &run->disks[i];
	struct cat_layer row = {
		.id = d->layer,
		.disk = d->id,
		.parent = d->parent,
		.kind = FMT_KIND_OVERLAY,
		.state = CAT_LAYER_SEALED,
		.generation = layer_generation(d),
		.snapshot = run->snapshot,
		.created_ns = d->head->hdr.created_ns,
	};

	eng_catalog_put_layer(run->store->catalog, &row);
	row.id = d->head->id;
	row.parent = d->layer;
	row.state = CAT_LAYER_ACTIVE;
	row.generation++;
	memset(&row.snapshot, 0, sizeof(row.snapshot));
	eng_catalog_put_layer(run->store->catalog, &row);
}

static void put_snapshot(struct eng_import_run *run)
{
	const struct fmt_manifest *m = run->m;
	struct cat_snapshot row = {
		.id = run->snapshot,
		.collection = run->collection.id,
		.state = CAT_SNAPSHOT_COMPLETE,
		.type = m->type,
		.consistency = m->consistency,
		.guest_backup_type = m->guest_backup_type,
		.disks = m->disk_count,
		.created_ns = m->created_ns,
		.cut_wall_ns = m->cut_wall_ns,
	};

	strcpy(row.name, m->snapshot_name);
	strcpy(row.element_name, m->element_name);
	eng_catalog_put_snapshot(run->store->catalog, &row);
	for (uint32_t i = 0; i < m->disk_count; i++) {
		struct cat_snapshot_disk disk = {
			.snapshot = run->snapshot,
			.disk = run->disks[i].id,
			.layer = run->disks[i].layer,
			.size = m->disks[i].size,
			.index = i,
		};

		strcpy(disk.vm_name, run->disks[i].vm.name);
		strcpy(disk.disk_name, m->disks[i].name);
		if (!run->disks[i].new_disk) {
			strcpy(disk.vm_name, run->disks[i].was.vm_name);
			strcpy(disk.disk_name, run->disks[i].was.name);
		}
		eng_catalog_put_snapshot_disk(run->store->catalog, &disk);
	}
}

static int meanwhile(struct eng_import_run *run, const char *what, const char *name)
{
	return fmt_fail(run->err, -EEXIST, "%s %s: made since the import began (IP-2)", what, name);
}

/*
 * What was free when the import began still is, ids too: another import of the same snapshot may have taken
 * them, and rows put over its own would lose it.
 */
static int check_free(struct eng_import_run *run)
{
	const struct fmt_manifest *m = run->m;
	struct eng_catalog *cat = run->store->catalog;
	struct cat_collection collection;
	struct cat_snapshot snap;

	if (run->new_collection &&
	    (eng_catalog_get_collection(cat, run->collection.name, &collection) == 0 ||
	     eng_catalog_get_collection_id(cat, &run->collection.id, &collection) == 0))
		return meanwhile(run, "collection", collection.name);
	if (!run->new_collection &&
	    eng_catalog_get_collection_id(cat, &run->collection.id, &run->collection) < 0)
		return fmt_fail(run->err, -ESTALE, "collection %s: it is gone",
				run->collection.name);
	if (eng_catalog_get_snapshot_id(cat, &run->snapshot, &snap) == 0 ||
	    eng_catalog_get_snapshot(cat, run->collection.name, m->snapshot_name, &snap) == 0)
		return meanwhile(run, "snapshot", snap.name);
	return 0;
}

static int check_new_disk(struct eng_import_run *run, uint32_t i)
{
	const struct eng_import_disk *d = &run->disks[i];
	struct eng_catalog *cat = run->store->catalog;
	struct cat_disk disk;
	struct cat_vm vm;
	int r;

	/* CU-4: neither its VM nor the collection that this is to be a member of. */
	if (eng_store_vm_in_cut(run->store, &d->vm.id) ||
	    eng_store_collection_in_cut(run->store, &run->collection.id))
		return fmt_fail(run->err, -EBUSY, "%s: a snapshot is being created", d->vm.name);
	r = eng_catalog_get_vm(cat, d->vm.name, &vm);
	if (d->new_vm && (r == 0 || !vm_id_is_free(run, &d->vm.id)))
		return meanwhile(run, "VM", d->vm.name);
	if (!d->new_vm && r == 0 && !fmt_uuid_equal(&vm.id, &d->vm.id))
		return meanwhile(run, "VM", d->vm.name);
	if (eng_catalog_get_disk_id(cat, &d->id, &disk) == 0)
		return meanwhile(run, "disk", disk.name);
	if (r == 0 && eng_catalog_get_disk(cat, d->vm.name, run->m->disks[i].name, &disk) == 0)
		return meanwhile(run, "disk", disk.name);
	return 0;
}

static int put_rows(struct eng_import_run *run)
{
	struct eng_catalog *cat = run->store->catalog;
	struct eng_progress *p = run->how->progress;
	int r = eng_catalog_begin(cat);

	if (r < 0)
		return fmt_fail(run->err, r, "cannot begin in the catalog: %s", strerror(-r));
	r = check_free(run);
	for (uint32_t i = 0; r == 0 && i < run->m->disk_count; i++)
		if (run->disks[i].new_disk)
			r = check_new_disk(run, i);
	if (r < 0) {
		eng_catalog_rollback(cat);
		return r;
	}
	if (run->new_collection)
		eng_catalog_put_collection(cat, &run->collection);
	for (uint32_t i = 0; r == 0 && i < run->m->disk_count; i++) {
		const struct eng_import_disk *d = &run->disks[i];

		if (d->new_vm)
			eng_catalog_put_vm(cat, &d->vm);
		if (d->new_disk)
			eng_catalog_put_member(cat, &run->collection.id, &d->vm.id);
		r = put_disk(run, i);
		put_layers(run, i);
		if (!d->new_disk)
			eng_catalog_remove_layer(cat, &d->was.head);
	}
	if (r < 0) {
		eng_catalog_rollback(cat);
		return fmt_fail(run->err, r, "catalog: %s", strerror(-r));
	}
	put_snapshot(run);
	eng_catalog_put_completed(cat, eng_progress_job(p), &run->snapshot,
				  eng_io_wall_ns(run->store->io));
	return eng_catalog_commit(cat, run->err);
}

/* The base, where folds have left it. */
static int match_again(struct eng_import_run *run)
{
	struct eng_increment_base now;
	int r = run->m->has_base
			? eng_increment_base_match(run->store, &run->m->base, run->err, &now)
			: 0;

	if (r == 0 && run->m->has_base) {
		eng_increment_base_fini(&run->base);
		run->base = now;
	}
	return r;
}

/* What was looked at before the data was read, looked at again: nobody changes it any more. */
static int recheck(struct eng_import_run *run, uint32_t i)
{
	struct eng_import_disk *d = &run->disks[i];
	struct eng_layer *layer = NULL;
	char name[2 * CAT_NAME_MAX];
	struct fmt_uuid head = d->was.head;
	int r;

	snprintf(name, sizeof(name), "%s/%s", d->was.vm_name, d->was.name);
	if (d->entry->disk)
		return fmt_fail(run->err, -EBUSY,
				"disk %s: attached; an increment needs it at rest", name);
	if (d->entry->refused)
		return fmt_fail(run->err, -EBUSY, "disk %s: refused until the store is opened anew",
				name);
	r = eng_catalog_get_disk_id(run->store->catalog, &d->id, &d->was);
	if (r < 0)
		return fmt_fail(run->err, -ESTALE, "disk %s: it is gone", name);
	if (!fmt_uuid_equal(&head, &d->was.head))
		return stale(run, name, "another head");
	r = find_base(run, i, &d->parent);
	if (r == 0)
		r = check_head(run, d, name, &layer);
	eng_layer_put(layer);
	return r;
}

/* Whoever has one of them for a moment, a fold or a flatten, is waited for. */
static int claim_all(struct eng_import_run *run)
{
	struct eng_entry **entries = calloc(run->m->disk_count + 1, sizeof(struct eng_entry *));
	struct fmt_uuid *ids = calloc(run->m->disk_count + 1, sizeof(*ids));
	size_t n = 0;
	int r = entries && ids ? 0 : -ENOMEM;

	for (uint32_t i = 0; r == 0 && i < run->m->disk_count; i++)
		if (!run->disks[i].new_disk)
			ids[n++] = run->disks[i].id;
	if (r == 0)
		r = eng_store_claim_all(run->store, ids, n,
					eng_io_now_ns(run->store->io) + CLAIM_NS, entries);
	if (r < 0)
		fmt_fail(run->err, r, "the base's disks cannot be claimed: %s", strerror(-r));
	n = 0;
	for (uint32_t i = 0; r == 0 && i < run->m->disk_count; i++)
		if (!run->disks[i].new_disk)
			run->disks[i].entry = entries[n++];
	free(ids);
	free(entries);
	if (r == 0)
		r = match_again(run);
	for (uint32_t i = 0; r == 0 && i < run->m->disk_count; i++)
		if (!run->disks[i].new_disk)
			r = recheck(run, i);
	return r;
}

static void release_all(struct eng_import_run *run, bool committed)
{
	for (uint32_t i = 0; i < run->m->disk_count; i++) {
		struct eng_import_disk *d = &run->disks[i];

		if (!d->entry)
			continue;
		if (committed) {
			char *path = eng_store_layer_path(run->store, &d->was.head, "vmo");

			eng_entry_drop_standby(d->entry);
			eng_entry_set_tail(d->entry, NULL);
			if (path)
				eng_io_unlink(run->store->io, path);
			free(path);
		}
		eng_entry_release(d->entry);
		d->entry = NULL;
	}
	if (committed)
		eng_io_sync_dir(run->store->io, run->store->layers_dir);
}

int eng_import_commit(struct eng_import_run *run, bool *unsure)
{
	struct eng_progress *p = run->how->progress;
	int r = 0;

	for (uint32_t i = 0; r == 0 && i < run->m->disk_count; i++)
		r = make_head(run, i);
	if (r == 0) {
		r = eng_io_sync_dir(run->store->io, run->store->layers_dir);
		if (r < 0)
			fmt_fail(run->err, r, "cannot sync the layers' directory: %s",
				 strerror(-r));
	}
	if (r == 0)
		r = claim_all(run);
	if (r == 0 && p && !eng_progress_decide(p))
		r = fmt_fail(run->err, -ECANCELED, "cancelled");
	if (r == 0) {
		r = put_rows(run);
		*unsure = r < 0 && eng_catalog_poisoned(run->store->catalog);
	}
	release_all(run, r == 0);
	return r;
}
