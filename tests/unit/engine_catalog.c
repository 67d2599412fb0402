/* SPDX-License-Identifier: MIT */
/*
 * engine_catalog.c - the catalog gives back the rows that were put, in order, keeps names unique and
 * references whole, and runs transactions. Rules CT-*: spec/catalog.md. Errors and power loss:
 * engine_catalog_crash.c; databases that are not as they should be: engine_catalog_hostile.c.
 */
#include "engine/catalog/catalog.h"

#include <pthread.h>
#include <stdatomic.h>

#include "tests/unit/catalog.h"

TestSuite(engine_catalog, .init = setup, .fini = teardown, .timeout = 120);

/* --- rows --- */

/* CT-10 */
Test(engine_catalog, every_row_comes_back_as_it_was_put)
{
	struct cat_vm vm = make_vm(0), got_vm;
	struct cat_disk disk = make_disk(1, 0), got_disk;
	struct cat_layer layer = make_layer(1, 1), got_layer;
	struct cat_collection coll = make_collection(0), got_coll;
	struct cat_snapshot snap = make_snapshot(0, 0), got_snap;
	struct cat_snapshot_disk member = make_snapshot_disk(0, 1), *members;
	struct cat_snapshot_guest guest = make_snapshot_guest(0, 0), *guests;
	struct cat_freeze freeze = make_freeze(0), *freezes;
	struct cat_job job = make_job(0), got_job;
	size_t n;

	layer.parent = id_of(LAYER, 2);
	layer.generation = INT64_MAX;
	layer.snapshot = snap.id;
	layer.state = CAT_LAYER_SEALED;
	layer.base_dev = UINT64_MAX;
	layer.base_ino = 1ull << 63;
	memset(layer.path, '/', sizeof(layer.path) - 1);
	member.layer = (struct fmt_uuid){{0}};
	member.skipped = true;
	memset(vm.name, 'v', sizeof(vm.name) - 1);
	memset(vm.guest_agent, '/', sizeof(vm.guest_agent) - 1);
	memcpy(freeze.vm_name, vm.name, sizeof(vm.name));
	memcpy(disk.vm_name, vm.name, sizeof(vm.name));
	coll.members = 1;

	begin();
	put_disk(2, 0);
	cr_assert_eq(eng_catalog_put_vm(cat, &vm), 0);
	cr_assert_eq(eng_catalog_put_disk(cat, &disk), 0);
	cr_assert_eq(eng_catalog_put_layer(cat, &layer), 0);
	cr_assert_eq(eng_catalog_put_collection(cat, &coll), 0);
	cr_assert_eq(eng_catalog_put_member(cat, &coll.id, &vm.id), 0);
	cr_assert_eq(eng_catalog_put_snapshot(cat, &snap), 0);
	cr_assert_eq(eng_catalog_put_snapshot_disk(cat, &member), 0);
	cr_assert_eq(eng_catalog_put_snapshot_guest(cat, &guest), 0);
	cr_assert_eq(eng_catalog_put_freeze(cat, &freeze), 0);
	cr_assert_eq(eng_catalog_put_job(cat, &job), 0);
	commit();
	cr_assert_eq(open_again(), 0, "%s", err.text);

	cr_assert_eq(eng_catalog_get_vm(cat, vm.name, &got_vm), 0);
	cr_expect_eq(memcmp(&got_vm, &vm, sizeof(vm)), 0);
	cr_assert_eq(eng_catalog_get_disk(cat, vm.name, "d1", &got_disk), 0);
	cr_expect_eq(memcmp(&got_disk, &disk, sizeof(disk)), 0);
	cr_assert_eq(eng_catalog_get_disk_id(cat, &disk.id, &got_disk), 0);
	cr_expect_eq(memcmp(&got_disk, &disk, sizeof(disk)), 0);
	cr_assert_eq(eng_catalog_get_layer(cat, &layer.id, &got_layer), 0);
	cr_expect_eq(memcmp(&got_layer, &layer, sizeof(layer)), 0);
	cr_assert_eq(eng_catalog_get_collection(cat, coll.name, &got_coll), 0);
	cr_expect_eq(memcmp(&got_coll, &coll, sizeof(coll)), 0);
	cr_assert_eq(eng_catalog_get_collection_id(cat, &coll.id, &got_coll), 0);
	cr_expect_eq(memcmp(&got_coll, &coll, sizeof(coll)), 0);
	cr_assert_eq(eng_catalog_get_snapshot(cat, coll.name, snap.name, &got_snap), 0);
	cr_expect_eq(memcmp(&got_snap, &snap, sizeof(snap)), 0);
	cr_assert_eq(eng_catalog_get_snapshot_id(cat, &snap.id, &got_snap), 0);
	cr_expect_eq(memcmp(&got_snap, &snap, sizeof(snap)), 0);
	cr_assert_eq(eng_catalog_get_job(cat, &job.id, &got_job), 0);
	cr_expect_eq(memcmp(&got_job, &job, sizeof(job)), 0);
	cr_assert_eq(eng_catalog_list_snapshot_disks(cat, &snap.id, &members, &n), 0);
	cr_assert_eq(n, 1);
	cr_expect_eq(memcmp(members, &member, sizeof(member)), 0);
	free(members);
	cr_assert_eq(eng_catalog_list_snapshot_guests(cat, &snap.id, &guests, &n), 0);
	cr_assert_eq(n, 1);
	cr_expect_eq(memcmp(guests, &guest, sizeof(guest)), 0);
	free(guests);
	cr_assert_eq(eng_catalog_list_freezes(cat, &vm.id, &freezes, &n), 0);
	cr_assert_eq(n, 1);
	cr_expect_eq(memcmp(freezes, &freeze, sizeof(freeze)), 0);
	free(freezes);
}

/* CT-5: a VM's freezes and a snapshot's guests go with it. QU-4: one freeze by its socket. */
Test(engine_catalog, freezes_and_guests_go_with_what_they_are_of)
{
	struct cat_freeze a = make_freeze(0), b = make_freeze(0), *rows;
	struct cat_snapshot_guest guest = make_snapshot_guest(0, 0), *guests;
	struct cat_snapshot snap = make_snapshot(0, 0);
	size_t n;

	strcpy(a.socket, "/a");
	strcpy(b.socket, "/b");
	begin();
	put_vm(0);
	put_collection(0);
	cr_assert_eq(eng_catalog_put_freeze(cat, &a), 0);
	cr_assert_eq(eng_catalog_put_freeze(cat, &b), 0);
	cr_assert_eq(eng_catalog_put_snapshot(cat, &snap), 0);
	cr_assert_eq(eng_catalog_put_snapshot_guest(cat, &guest), 0);
	commit();
	begin();
	cr_assert_eq(eng_catalog_remove_freeze(cat, &a.vm, "/a"), 0);
	cr_assert_eq(eng_catalog_remove_freeze(cat, &a.vm, "/a"), 0, "there is none any more");
	cr_assert_eq(eng_catalog_remove_snapshot(cat, &snap.id), 0);
	commit();
	cr_assert_eq(eng_catalog_list_snapshot_guests(cat, &snap.id, &guests, &n), 0);
	cr_expect_eq(n, 0);
	free(guests);
	cr_assert_eq(eng_catalog_list_freezes(cat, NULL, &rows, &n), 0);
	cr_assert_eq(n, 1);
	cr_expect_str_eq(rows->socket, "/b");
	free(rows);
	begin();
	cr_assert_eq(eng_catalog_remove_vm(cat, &a.vm), 0);
	commit();
	cr_assert_eq(eng_catalog_list_freezes(cat, NULL, &rows, &n), 0);
	cr_expect_eq(n, 0);
	free(rows);
}

Test(engine_catalog, a_row_that_is_not_there_is_enoent_and_the_result_untouched)
{
	struct fmt_uuid id = id_of(JOB, 9);
	struct cat_vm vm = {.name = "mine"};
	struct cat_disk disk;
	struct cat_layer layer, *chain;
	struct cat_collection coll;
	struct cat_snapshot snap;
	struct cat_job job;
	size_t n;

	cr_expect_eq(eng_catalog_get_vm(cat, "vm", &vm), -ENOENT);
	cr_expect_str_eq(vm.name, "mine");
	cr_expect_eq(eng_catalog_get_disk(cat, "vm", "d", &disk), -ENOENT);
	cr_expect_eq(eng_catalog_get_disk_id(cat, &id, &disk), -ENOENT);
	cr_expect_eq(eng_catalog_get_layer(cat, &id, &layer), -ENOENT);
	cr_expect_eq(eng_catalog_get_collection(cat, "c", &coll), -ENOENT);
	cr_expect_eq(eng_catalog_get_collection_id(cat, &id, &coll), -ENOENT);
	cr_expect_eq(eng_catalog_get_snapshot(cat, "c", "s", &snap), -ENOENT);
	cr_expect_eq(eng_catalog_get_snapshot_id(cat, &id, &snap), -ENOENT);
	cr_expect_eq(eng_catalog_get_job(cat, &id, &job), -ENOENT);
	cr_expect_eq(eng_catalog_chain(cat, &id, &chain, &n), -ENOENT);
}

Test(engine_catalog, a_put_replaces_by_id_and_keeps_what_refers_to_the_row)
{
	struct cat_snapshot snap = make_snapshot(0, 0), got;
	struct cat_collection coll = make_collection(0);
	struct cat_vm vm = make_vm(0), *vms;
	struct fmt_uuid head = id_of(LAYER, 0), none = {{0}};
	struct cat_snapshot_disk *members;
	struct cat_layer layer;
	struct cat_disk disk;
	size_t n;

	put_little_store();
	begin();
	strcpy(vm.name, "renamed");
	cr_assert_eq(eng_catalog_put_vm(cat, &vm), 0);
	cr_assert_eq(eng_catalog_put_collection(cat, &coll), 0);
	cr_assert_eq(eng_catalog_put_member(cat, &coll.id, &vm.id), 0);
	snap.state = CAT_SNAPSHOT_COMPLETE;
	cr_assert_eq(eng_catalog_put_snapshot(cat, &snap), 0);
	cr_assert_eq(eng_catalog_set_layer_state(cat, &head, CAT_LAYER_HARDENED), 0);
	cr_assert_eq(eng_catalog_set_layer_snapshot(cat, &head, &none), 0);
	cr_assert_eq(eng_catalog_set_disk_head(cat, idp(DISK, 0), &none), 0);
	commit();

	cr_expect_eq(eng_catalog_get_disk(cat, "renamed", "d0", &disk), 0);
	cr_expect(fmt_uuid_is_none(&disk.head));
	cr_assert_eq(eng_catalog_get_layer(cat, &head, &layer), 0);
	cr_expect_eq(layer.state, CAT_LAYER_HARDENED);
	cr_expect(fmt_uuid_is_none(&layer.snapshot));
	cr_assert_eq(eng_catalog_list_members(cat, &coll.id, &vms, &n), 0);
	cr_assert_eq(n, 1);
	cr_expect_str_eq(vms->name, "renamed");
	free(vms);
	cr_expect_eq(eng_catalog_get_snapshot(cat, "coll0", "s0", &got), 0);
	cr_expect_eq(got.state, CAT_SNAPSHOT_COMPLETE);
	cr_assert_eq(eng_catalog_list_snapshot_disks(cat, &snap.id, &members, &n), 0);
	cr_expect_eq(n, 1);
	free(members);
}

/* The transaction fails as a whole with -EEXIST, whatever else it does. */
#define EXPECT_TAKEN(call)                                                                         \
	do {                                                                                       \
		begin();                                                                           \
		put_vm(50);                                                                        \
		cr_expect_eq(call, -EEXIST);                                                       \
		put_again = make_vm(51);                                                           \
		cr_expect_eq(eng_catalog_put_vm(cat, &put_again), -EEXIST);                        \
		cr_expect_eq(eng_catalog_commit(cat, &err), -EEXIST);                              \
		cr_expect(strstr(err.text, "UNIQUE"), "%s", err.text);                             \
		cr_expect_eq(count_vms(), 2);                                                      \
	} while (0)

/* CT-1, T31 */
Test(engine_catalog, taken_names_and_base_files_are_eexist_and_nothing_changes)
{
	struct cat_vm vm = make_vm(9), put_again;
	struct cat_disk disk = make_disk(9, 0);
	struct cat_layer layer = make_layer(5, 0), other = make_layer(9, 0);
	struct cat_collection coll = make_collection(9);
	struct cat_snapshot snap = make_snapshot(9, 0);

	put_little_store();
	begin();
	put_vm(1);
	put_collection(1);
	strcpy(layer.path, "/srv/a.img");
	layer.base_dev = 8;
	layer.base_ino = 42;
	cr_assert_eq(eng_catalog_put_layer(cat, &layer), 0);
	commit();

	strcpy(vm.name, "vm000");
	EXPECT_TAKEN(eng_catalog_put_vm(cat, &vm));
	strcpy(disk.name, "d0");
	EXPECT_TAKEN(eng_catalog_put_disk(cat, &disk));
	strcpy(coll.name, "coll0");
	EXPECT_TAKEN(eng_catalog_put_collection(cat, &coll));
	strcpy(snap.name, "s0");
	EXPECT_TAKEN(eng_catalog_put_snapshot(cat, &snap));
	strcpy(other.path, "/srv/hard-link-to-a.img");
	other.base_dev = 8;
	other.base_ino = 42;
	EXPECT_TAKEN(eng_catalog_put_layer(cat, &other));

	/* The same elsewhere is no conflict. */
	begin();
	disk.vm = id_of(VM, 1);
	disk.head = (struct fmt_uuid){{0}};
	cr_expect_eq(eng_catalog_put_disk(cat, &disk), 0);
	snap.collection = id_of(COLL, 1);
	cr_expect_eq(eng_catalog_put_snapshot(cat, &snap), 0);
	other.path[0] = '\0'; /* not in place: the numbers claim nothing */
	cr_expect_eq(eng_catalog_put_layer(cat, &other), 0);
	commit();
}

#define EXPECT_INVALID(row, field, value, call)                                                    \
	do {                                                                                       \
		__typeof__(row) bad_ = row, *bad = &bad_;                                          \
		bad->field = value;                                                                \
		begin();                                                                           \
		cr_expect_eq(call, -EINVAL, #row "." #field);                                      \
		cr_expect_eq(eng_catalog_commit(cat, &err), -EINVAL);                              \
		cr_expect(strstr(err.text, #field), "%s", err.text);                               \
	} while (0)

/* CT-10 */
Test(engine_catalog, values_out_of_range_are_einval)
{
	static const char *const names[] = {"", ".x", "-x", "a b", "a/b", "\xc3\xa4", "x\n"};
	struct cat_disk disk = make_disk(0, 0);
	struct cat_layer layer = make_layer(0, 0);
	struct cat_snapshot snap = make_snapshot(0, 0);
	struct cat_job job = make_job(0);
	struct cat_vm vm = make_vm(0);

	put_little_store();
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		strcpy(vm.name, names[i]);
		begin();
		cr_expect_eq(eng_catalog_put_vm(cat, &vm), -EINVAL, "'%s'", names[i]);
		eng_catalog_rollback(cat);
	}
	memset(vm.name, 'x', sizeof(vm.name)); /* without its end */
	begin();
	cr_expect_eq(eng_catalog_put_vm(cat, &vm), -EINVAL);
	eng_catalog_rollback(cat);
	EXPECT_INVALID(disk, id, (struct fmt_uuid){{0}}, eng_catalog_put_disk(cat, bad));
	EXPECT_INVALID(disk, size, 1ull << 63, eng_catalog_put_disk(cat, bad));
	EXPECT_INVALID(disk, block_bits, 11, eng_catalog_put_disk(cat, bad));
	EXPECT_INVALID(disk, block_bits, 17, eng_catalog_put_disk(cat, bad));
	EXPECT_INVALID(layer, kind, 0, eng_catalog_put_layer(cat, bad));
	EXPECT_INVALID(layer, kind, 4, eng_catalog_put_layer(cat, bad));
	EXPECT_INVALID(layer, state, 0, eng_catalog_put_layer(cat, bad));
	EXPECT_INVALID(layer, state, 5, eng_catalog_put_layer(cat, bad));
	EXPECT_INVALID(snap, state, 4, eng_catalog_put_snapshot(cat, bad));
	EXPECT_INVALID(snap, type, 3, eng_catalog_put_snapshot(cat, bad));
	EXPECT_INVALID(snap, consistency, 0, eng_catalog_put_snapshot(cat, bad));
	EXPECT_INVALID(job, percent, 101, eng_catalog_put_job(cat, bad));
	EXPECT_INVALID(layer, state, 5, eng_catalog_set_layer_state(cat, &bad->id, bad->state));
	cr_expect_eq(count_vms(), 1);
}

/* --- order --- */

Test(engine_catalog, lists_are_in_order)
{
	struct fmt_uuid coll = id_of(COLL, 0), disk0 = id_of(DISK, 0);
	struct cat_collection *colls;
	struct cat_snapshot *snaps;
	struct cat_snapshot_disk *members;
	struct cat_layer *layers;
	struct cat_disk *disks;
	struct cat_job *jobs;
	struct cat_vm *vms;
	size_t n;

	begin();
	for (unsigned i = 5; i-- > 0;) {
		struct cat_snapshot snap = make_snapshot(i, i % 2);
		struct cat_layer layer = make_layer(100 + i, 0);
		struct cat_job job = make_job(i);

		put_vm(i);
		put_collection(i);
		put_member(0, i);
		for (unsigned d = 0; d < 3; d++)
			put_disk(i + 5 * d, i); /* position d follows from the number */
		layer.generation = i + 1;
		layer.parent = id_of(LAYER, i ? 100 + i - 1 : 0);
		cr_assert_eq(eng_catalog_put_layer(cat, &layer), 0);
		cr_assert_eq(eng_catalog_put_snapshot(cat, &snap), 0);
		cr_assert_eq(eng_catalog_put_job(cat, &job), 0);
	}
	for (unsigned i = 0; i < 5; i++) {
		struct cat_snapshot_disk member = make_snapshot_disk(0, i);

		cr_assert_eq(eng_catalog_put_snapshot_disk(cat, &member), 0);
	}
	commit();

	cr_assert_eq(eng_catalog_list_vms(cat, &vms, &n), 0);
	cr_assert_eq(n, 5);
	cr_assert_eq(eng_catalog_list_collections(cat, &colls, &n), 0);
	cr_assert_eq(n, 5);
	cr_expect_eq(colls[0].members, 5);
	cr_expect_eq(colls[1].members, 0);
	cr_assert_eq(eng_catalog_list_snapshots(cat, NULL, &snaps, &n), 0);
	cr_assert_eq(n, 5);
	cr_assert_eq(eng_catalog_list_jobs(cat, &jobs, &n), 0);
	cr_assert_eq(n, 5);
	cr_assert_eq(eng_catalog_list_snapshot_disks(cat, &snaps[4].id, &members, &n), 0);
	cr_assert_eq(n, 5);
	for (size_t i = 1; i < 5; i++) {
		cr_expect_lt(strcmp(vms[i - 1].name, vms[i].name), 0);
		cr_expect_lt(strcmp(colls[i - 1].name, colls[i].name), 0);
		cr_expect_lt(snaps[i - 1].created_ns, snaps[i].created_ns);
		cr_expect_lt(jobs[i - 1].submitted_ns, jobs[i].submitted_ns);
		cr_expect_lt(members[i - 1].index, members[i].index);
	}
	free(vms);
	free(snaps);
	cr_assert_eq(eng_catalog_list_members(cat, &coll, &vms, &n), 0);
	cr_assert_eq(n, 5);
	cr_expect_str_eq(vms[0].name, "vm000");
	cr_assert_eq(eng_catalog_list_snapshots(cat, &coll, &snaps, &n), 0);
	cr_expect_eq(n, 3);
	free(vms);
	free(snaps);
	free(colls);
	free(jobs);
	free(members);

	cr_assert_eq(eng_catalog_list_disks(cat, NULL, &disks, &n), 0);
	cr_assert_eq(n, 15);
	for (size_t i = 0; i < n; i++)
		cr_expect_eq(disks[i].position, i / 3 + 5 * (i % 3), "%zu", i);
	free(disks);
	cr_assert_eq(eng_catalog_list_collection_disks(cat, &coll, &disks, &n), 0);
	cr_assert_eq(n, 15);
	for (size_t i = 0; i < n; i++)
		cr_expect_eq(disks[i].position, i / 3 + 5 * (i % 3), "%zu", i);
	free(disks);
	cr_assert_eq(eng_catalog_list_disks(cat, idp(VM, 2), &disks, &n), 0);
	cr_assert_eq(n, 3);
	cr_expect_str_eq(disks[1].name, "d7");
	free(disks);
	cr_assert_eq(eng_catalog_list_layers(cat, &disk0, &layers, &n), 0);
	cr_assert_eq(n, 6);
	for (size_t i = 0; i < n; i++)
		cr_expect_eq(layers[i].generation, i);
	free(layers);
	cr_assert_eq(eng_catalog_list_layers(cat, NULL, &layers, &n), 0);
	cr_assert_eq(n, 20);
	for (size_t i = 1; i < n; i++)
		cr_expect(!fmt_uuid_equal(&layers[i - 1].disk, &layers[i].disk) ||
			  layers[i - 1].generation < layers[i].generation);
	free(layers);
	cr_assert_eq(eng_catalog_list_layers(cat, &coll, &layers, &n), 0);
	cr_expect_eq(n, 0);
	free(layers);
}

/* --- references --- */

#define EXPECT_BUSY(call)                                                                          \
	do {                                                                                       \
		int put_, commit_;                                                                 \
		begin();                                                                           \
		put_ = call;                                                                       \
		commit_ = eng_catalog_commit(cat, &err);                                           \
		cr_expect(put_ == 0 || put_ == -EBUSY, #call);                                     \
		cr_expect_eq(commit_, -EBUSY, #call ": %d", commit_);                              \
		cr_expect_neq(err.text[0], '\0');                                                  \
	} while (0)

/* CT-5 */
Test(engine_catalog, removing_what_others_refer_to_is_ebusy_and_changes_nothing)
{
	struct fmt_uuid vm = id_of(VM, 0), disk = id_of(DISK, 0), base = id_of(LAYER, 0),
			top = id_of(LAYER, 100), coll = id_of(COLL, 0), snap = id_of(SNAP, 0);
	struct cat_layer layer = make_layer(100, 0);
	struct cat_layer *layers;
	struct cat_disk got;
	size_t n;

	put_little_store();
	begin();
	layer.parent = base;
	layer.generation = 1;
	cr_assert_eq(eng_catalog_put_layer(cat, &layer), 0);
	commit();
	EXPECT_BUSY(eng_catalog_remove_vm(cat, &vm));
	EXPECT_BUSY(eng_catalog_remove_disk(cat, &disk));
	EXPECT_BUSY(eng_catalog_remove_layer(cat, &base));
	EXPECT_BUSY(eng_catalog_remove_collection(cat, &coll));
	cr_expect_eq(eng_catalog_get_disk(cat, "vm000", "d0", &got), 0);
	cr_assert_eq(eng_catalog_list_layers(cat, &disk, &layers, &n), 0);
	cr_expect_eq(n, 2);
	free(layers);

	/* One reference after the other: parent, head, snapshot. */
	begin();
	cr_expect_eq(eng_catalog_remove_layer(cat, &top), 0);
	commit();
	EXPECT_BUSY(eng_catalog_remove_layer(cat, &base));
	begin();
	cr_expect_eq(eng_catalog_set_disk_head(cat, &disk, &(struct fmt_uuid){{0}}), 0);
	commit();
	EXPECT_BUSY(eng_catalog_remove_layer(cat, &base));
	begin();
	cr_expect_eq(eng_catalog_remove_snapshot(cat, &snap), 0);
	commit();
	/* All at once, the referred first. */
	begin();
	cr_expect_eq(eng_catalog_remove_vm(cat, &vm), 0);
	cr_expect_eq(eng_catalog_remove_disk(cat, &disk), 0);
	cr_expect_eq(eng_catalog_remove_layer(cat, &base), 0);
	cr_expect_eq(eng_catalog_remove_collection(cat, &coll), 0);
	commit();
	cr_expect_eq(count_vms(), 0);
	cr_expect_eq(eng_catalog_check(cat, &err), 0, "%s", err.text);
}

/* CT-5 */
Test(engine_catalog, a_reference_to_nothing_is_enoent_and_changes_nothing)
{
	struct cat_snapshot_disk member = make_snapshot_disk(0, 1);
	struct cat_snapshot snap = make_snapshot(1, 9);
	struct cat_disk disk = make_disk(1, 9);
	struct cat_layer layer = make_layer(1, 9);

	put_little_store();
	for (int i = 0; i < 7; i++) {
		begin();
		put_vm(50);
		if (i == 0)
			cr_expect_eq(eng_catalog_put_disk(cat, &disk), 0);
		else if (i == 1)
			cr_expect_eq(eng_catalog_put_layer(cat, &layer), 0);
		else if (i == 2)
			cr_expect_eq(eng_catalog_put_snapshot(cat, &snap), 0);
		else if (i == 3)
			cr_expect_eq(eng_catalog_put_snapshot_disk(cat, &member), 0);
		else if (i == 4)
			put_member(9, 0);
		else if (i == 5)
			put_member(0, 9);
		else
			cr_expect_eq(eng_catalog_set_disk_head(cat, idp(DISK, 0), &layer.id), 0);
		cr_expect_eq(eng_catalog_commit(cat, &err), -ENOENT, "%d", i);
		cr_expect_eq(count_vms(), 1);
	}
}

/* CT-5 */
Test(engine_catalog, what_belongs_to_a_row_goes_with_it)
{
	struct fmt_uuid coll = id_of(COLL, 0), snap = id_of(SNAP, 0), layer = id_of(LAYER, 0);
	struct cat_snapshot_disk *members;
	struct cat_layer got;
	struct cat_vm *vms;
	size_t n;

	put_little_store();
	cr_assert_eq(eng_catalog_get_layer(cat, &layer, &got), 0);
	cr_expect(fmt_uuid_equal(&got.snapshot, &snap));
	begin();
	cr_expect_eq(eng_catalog_remove_snapshot(cat, &snap), 0);
	commit();
	cr_assert_eq(eng_catalog_list_snapshot_disks(cat, &snap, &members, &n), 0);
	cr_expect_eq(n, 0);
	free(members);
	cr_assert_eq(eng_catalog_get_layer(cat, &layer, &got), 0);
	cr_expect(fmt_uuid_is_none(&got.snapshot));
	begin();
	cr_expect_eq(eng_catalog_remove_collection(cat, &coll), 0);
	commit();
	cr_assert_eq(eng_catalog_list_members(cat, &coll, &vms, &n), 0);
	cr_expect_eq(n, 0);
	free(vms);
	cr_expect_eq(count_vms(), 1);
}

Test(engine_catalog, changing_a_row_that_is_not_there_is_enoent)
{
	struct fmt_uuid id = id_of(JOB, 9), none = {{0}};

	for (int i = 0; i < 10; i++) {
		int r = 0;

		begin();
		put_vm(1);
		switch (i) {
		case 0: r = eng_catalog_remove_vm(cat, &id); break;
		case 1: r = eng_catalog_remove_disk(cat, &id); break;
		case 2: r = eng_catalog_remove_layer(cat, &id); break;
		case 3: r = eng_catalog_remove_collection(cat, &id); break;
		case 4: r = eng_catalog_remove_member(cat, &id, &id); break;
		case 5: r = eng_catalog_remove_snapshot(cat, &id); break;
		case 6: r = eng_catalog_remove_job(cat, &id); break;
		case 7: r = eng_catalog_set_layer_state(cat, &id, CAT_LAYER_SEALED); break;
		case 8: r = eng_catalog_set_layer_snapshot(cat, &id, &none); break;
		default: r = eng_catalog_set_disk_head(cat, &id, &none); break;
		}
		cr_expect_eq(r, -ENOENT, "%d", i);
		cr_expect_eq(eng_catalog_commit(cat, &err), -ENOENT);
		cr_expect_eq(count_vms(), 0);
	}
	put_little_store();
	begin();
	cr_expect_eq(eng_catalog_remove_member(cat, idp(COLL, 0), idp(VM, 0)), 0);
	commit();
}

/* --- chains --- */

/* CT-11 */
Test(engine_catalog, a_chain_of_10000_layers_is_base_first_and_fast)
{
	enum { DEPTH = 10000 };
	struct fmt_uuid top = id_of(LAYER, DEPTH - 1);
	struct cat_layer *chain;
	uint64_t start;
	size_t n;

	begin();
	put_vm(0);
	put_disk(0, 0);
	for (unsigned i = 1; i < DEPTH; i++) {
		struct cat_layer layer = make_layer(i, 0);

		layer.parent = id_of(LAYER, i - 1);
		layer.generation = i;
		layer.kind = 1;
		cr_assert_eq(eng_catalog_put_layer(cat, &layer), 0);
	}
	commit();
	start = eng_io_now_ns(posix);
	cr_assert_eq(eng_catalog_chain(cat, &top, &chain, &n), 0);
	cr_log_info("a chain of %d: %.1f ms", DEPTH, (double)(eng_io_now_ns(posix) - start) / 1e6);
	cr_expect_lt(eng_io_now_ns(posix) - start, 5000000000ull);
	cr_assert_eq(n, DEPTH);
	for (size_t i = 0; i < n; i++)
		cr_assert_eq(chain[i].generation, i);
	free(chain);
	cr_assert_eq(eng_catalog_chain(cat, idp(LAYER, 4), &chain, &n), 0);
	cr_expect_eq(n, 5);
	free(chain);
}

/* --- transactions --- */

static int find_shm(void *arg, const char *name)
{
	(void)arg;
	return strstr(name, "-shm") || strstr(name, "-journal") ? -EEXIST : 0;
}

/* CT-12 */
Test(engine_catalog, the_database_and_its_log_are_the_only_files)
{
	put_little_store();
	cr_expect_eq(eng_io_list(posix, dir, find_shm, NULL), 0);
	cr_assert_eq(open_again(), 0);
	cr_expect_eq(count_vms(), 1);
	cr_expect_eq(eng_io_list(posix, dir, find_shm, NULL), 0);
}

/* CT-1 */
Test(engine_catalog, rollback_forgets_all_and_without_a_transaction_does_nothing)
{
	struct cat_vm vm;

	begin();
	put_vm(0);
	put_collection(0);
	cr_expect_eq(eng_catalog_get_vm(cat, "vm000", &vm), 0, "seen inside");
	eng_catalog_rollback(cat);
	cr_expect_eq(count_vms(), 0);
	eng_catalog_rollback(cat);
	begin();
	put_vm(0);
	commit();
	eng_catalog_rollback(cat);
	cr_expect_eq(count_vms(), 1);
}

/* CT-1 */
Test(engine_catalog, facts_are_set_alone_or_in_a_transaction)
{
	char value[CAT_TEXT_MAX], longest[CAT_TEXT_MAX + 1];

	cr_expect_eq(eng_catalog_fact_get(cat, "clean", value), -ENOENT);
	cr_expect_eq(eng_catalog_fact_set(cat, "clean", "no"), 0);
	begin();
	cr_expect_eq(eng_catalog_fact_set(cat, "clean", "yes"), 0);
	cr_expect_eq(eng_catalog_fact_get(cat, "clean", value), 0);
	cr_expect_str_eq(value, "yes");
	eng_catalog_rollback(cat);
	memset(longest, 'x', sizeof(longest));
	longest[CAT_TEXT_MAX] = '\0';
	cr_expect_eq(eng_catalog_fact_set(cat, "store_id", longest), -EINVAL);
	longest[CAT_TEXT_MAX - 1] = '\0';
	cr_expect_eq(eng_catalog_fact_set(cat, "store_id", longest), 0);
	cr_assert_eq(open_again(), 0);
	cr_expect_eq(eng_catalog_fact_get(cat, "clean", value), 0);
	cr_expect_str_eq(value, "no");
	cr_expect_eq(eng_catalog_fact_get(cat, "store_id", value), 0);
	cr_expect_str_eq(value, longest);
}

static atomic_int looked;

static void *look(void *arg)
{
	struct cat_vm vm;

	(void)arg;
	cr_expect_eq(eng_catalog_get_vm(cat, "vm000", &vm), 0, "sees the commit");
	cr_expect_eq(eng_catalog_get_vm(cat, "vm001", &vm), 0, "all of it");
	atomic_store(&looked, 1);
	return NULL;
}

/* CT-1 */
Test(engine_catalog, other_threads_wait_for_the_transaction)
{
	pthread_t thread;

	begin();
	put_vm(0);
	cr_assert_eq(pthread_create(&thread, NULL, look, NULL), 0);
	usleep(50000);
	cr_expect_eq(atomic_load(&looked), 0);
	put_vm(1);
	commit();
	pthread_join(thread, NULL);
	cr_expect_eq(atomic_load(&looked), 1);
}

/* --- speed; reported, bounded only against stupidity --- */

Test(engine_catalog, an_intent_of_1000_disks_is_one_quick_transaction)
{
	struct cat_snapshot snap = make_snapshot(0, 0);
	uint64_t start, end, best = UINT64_MAX;

	begin();
	put_vm(0);
	put_collection(0);
	for (unsigned i = 0; i < 1000; i++)
		put_disk(i, 0);
	commit();
	for (unsigned round = 0; round < 5; round++) {
		int syncs = eng_fault_add(fault,
					  &(struct eng_fault_rule){.ops = ENG_FAULT_FDATASYNC,
								   .sticky = true});

		start = eng_io_now_ns(posix);
		begin();
		snap = make_snapshot(round, 0);
		cr_assert_eq(eng_catalog_put_snapshot(cat, &snap), 0);
		for (unsigned i = 0; i < 1000; i++) {
			struct cat_layer layer = make_layer(1000 * (round + 1) + i, i);
			struct cat_snapshot_disk member = make_snapshot_disk(round, i);

			layer.parent = id_of(LAYER, 1000 * round + i);
			layer.generation = round + 1;
			cr_assert_eq(eng_catalog_put_layer(cat, &layer), 0);
			cr_assert_eq(eng_catalog_put_snapshot_disk(cat, &member), 0);
		}
		commit();
		end = eng_io_now_ns(posix) - start;
		best = end < best ? end : best;
		cr_expect_eq(eng_fault_struck(fault, syncs), 1, "one sync");
		eng_fault_clear(fault);
	}
	cr_log_info("intent of 1,000 disks: %.1f ms", (double)best / 1e6);
	cr_expect_lt(best, 1000000000ull);
}
