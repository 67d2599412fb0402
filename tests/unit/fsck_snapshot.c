/* SPDX-License-Identifier: MIT */
/*
 * fsck_snapshot.c - the checker on snapshots, whole and unfinished ones, and on layers that no chain holds.
 */
#include "tests/unit/fsck_made_store.h"

TestSuite(fsck_snapshot, .init = start, .fini = finish);

static void add_pending(bool with_file)
{
	struct cat_disk disk;
	size_t count = 0;
	struct cat_layer *rows = layers_of_d(&disk, &count), row = {0};
	struct eng_catalog *cat;

	open_store();
	eng_store_new_id(store, &row.id);
	if (with_file) {
		struct eng_layer_spec spec = {.store = store->id,
					      .disk = disk.id,
					      .layer = row.id,
					      .parent = rows[2].id,
					      .generation = 3,
					      .size = DISK_SIZE,
					      .block_bits = 12,
					      .initial_slots = 16};
		struct eng_layer *made;
		char *path = eng_store_layer_path(store, &row.id, "vmo");

		spec.path = path;
		ok(eng_layer_create(io, &spec, &err, &made));
		eng_layer_put(made);
		free(path);
	}
	close_store();
	row.disk = disk.id;
	row.parent = rows[2].id;
	row.kind = FMT_KIND_OVERLAY;
	row.state = CAT_LAYER_PENDING;
	row.generation = 3;
	row.created_ns = 1;
	cat = open_catalog();
	ok(eng_catalog_put_layer(cat, &row));
	close_catalog(cat);
	free(rows);
}

/* RV-4 */
Test(fsck_snapshot, a_pending_layer_is_left_to_recovery)
{
	make_store();
	add_pending(true);
	assert_found(io, store_dir, "RV-4", FSCK_LEAK);
	set_clean(false);
	assert_found(io, store_dir, "RV-4", FSCK_NOTE);
	open_store();
	close_store();
	assert_sound(io, store_dir);
}

/* RV-4 */
Test(fsck_snapshot, a_pending_layer_without_a_file_is_left_to_recovery)
{
	make_store();
	add_pending(false);
	assert_found(io, store_dir, "RV-4", FSCK_LEAK);
	cr_assert(was_said("has no file"), "%s", all_findings());
	set_clean(false);
	assert_found(io, store_dir, "RV-4", FSCK_NOTE);
	open_store();
	close_store();
	assert_sound(io, store_dir);
}

static void edit_snapshot(void (*edit)(struct cat_snapshot *snap))
{
	struct eng_catalog *cat = open_catalog();
	struct cat_snapshot snap;

	ok(eng_catalog_get_snapshot(cat, "c", "s2", &snap));
	edit(&snap);
	ok(eng_catalog_put_snapshot(cat, &snap));
	close_catalog(cat);
}

static void snapshot_intent(struct cat_snapshot *snap)
{
	snap->state = CAT_SNAPSHOT_INTENT;
}

static void snapshot_deleting(struct cat_snapshot *snap)
{
	snap->state = CAT_SNAPSHOT_DELETING;
}

static void snapshot_count(struct cat_snapshot *snap)
{
	snap->disks++;
}

static void snapshot_skipped(struct cat_snapshot *snap)
{
	snap->skipped++;
}

/* RV-7 */
Test(fsck_snapshot, snapshots_that_are_none_are_left_to_recovery)
{
	make_store();
	edit_snapshot(snapshot_intent);
	assert_found(io, store_dir, "RV-7", FSCK_LEAK);
	edit_snapshot(snapshot_deleting);
	assert_found(io, store_dir, "RV-7", FSCK_LEAK);
	set_clean(false);
	assert_found(io, store_dir, "RV-7", FSCK_NOTE);
	open_store();
	close_store();
	assert_sound(io, store_dir);
	cr_assert_eq(summary.snapshots, 1);
}

static void row_of_no_snapshot(struct cat_layer *row)
{
	memset(&row->snapshot, 0, sizeof(row->snapshot));
}

/* BD-3, T22: recovery clears it before the layer is written. */
Test(fsck_snapshot, a_boundary_of_an_intent_is_left_to_recovery)
{
	make_store();
	edit_snapshot(snapshot_intent);
	edit_row(1, row_of_no_snapshot);
	assert_found(io, store_dir, "BD-3", FSCK_CORRUPT);
	set_clean(false);
	assert_found(io, store_dir, "BD-3", FSCK_NOTE);
	open_store();
	close_store();
	assert_sound(io, store_dir);
}

/* BD-3, T22: its row is gone, its boundaries are not. */
Test(fsck_snapshot, boundaries_of_a_snapshot_that_is_gone_are_found)
{
	struct eng_catalog *cat;
	struct cat_snapshot snap;

	make_store();
	cat = open_catalog();
	ok(eng_catalog_get_snapshot(cat, "c", "s2", &snap));
	ok(eng_catalog_remove_snapshot(cat, &snap.id));
	close_catalog(cat);
	assert_found(io, store_dir, "BD-3", FSCK_CORRUPT);
	set_clean(false);
	assert_found(io, store_dir, "BD-3", FSCK_CORRUPT);
}

/* CU-18 */
Test(fsck_snapshot, a_snapshot_with_disks_missing_is_found)
{
	make_store();
	edit_snapshot(snapshot_skipped);
	assert_found(io, store_dir, "CU-18", FSCK_CORRUPT);
}

/* BD-2 */
Test(fsck_snapshot, a_snapshot_of_more_members_than_boundaries_say_is_found)
{
	make_store();
	edit_snapshot(snapshot_count);
	assert_found(io, store_dir, "BD-2", FSCK_CORRUPT);
	cr_assert(was_found("CU-18", FSCK_CORRUPT), "%s", all_findings());
}

/* CU-18 */
Test(fsck_snapshot, a_snapshot_on_another_layer_is_found)
{
	struct cat_snapshot_disk *members = NULL;
	struct cat_disk disk;
	struct cat_snapshot snap;
	size_t count = 0, n = 0;
	struct cat_layer *rows;
	struct eng_catalog *cat;

	make_store();
	rows = layers_of_d(&disk, &count);
	cat = open_catalog();
	ok(eng_catalog_get_snapshot(cat, "c", "s2", &snap));
	ok(eng_catalog_list_snapshot_disks(cat, &snap.id, &members, &n));
	for (size_t i = 0; i < n; i++) {
		if (!fmt_uuid_equal(&members[i].disk, &disk.id))
			continue;
		members[i].layer = rows[2].id;
		ok(eng_catalog_put_snapshot_disk(cat, &members[i]));
	}
	close_catalog(cat);
	assert_found(io, store_dir, "CU-18", FSCK_CORRUPT);
	cr_assert(was_said("no layer of its own"), "%s", all_findings());
	cr_assert(was_found("BD-2", FSCK_CORRUPT), "%s", all_findings());
	free(members);
	free(rows);
}

static void row_orphan(struct cat_layer *row)
{
	memset(&row->parent, 0, sizeof(row->parent));
}

/* RV-9 */
Test(fsck_snapshot, layers_that_nothing_stands_on_are_leaks)
{
	make_store();
	set_head(1);
	edit_row(2, row_orphan);
	cr_assert_eq(check(io, store_dir), 0);
	cr_assert(was_found("RV-9", FSCK_LEAK), "%s", all_findings());
}
