/* SPDX-License-Identifier: MIT */
/*
 * engine_catalog_crash.c - all of a transaction or nothing of it, at any I/O error and at any power
 * loss; the catalog says which when it knows, and is poisoned when it does not. Rules CT-*:
 * spec/catalog.md.
 */
#include "tests/unit/catalog.h"

enum { DISKS = 20 };

TestSuite(engine_catalog_crash, .init = setup, .fini = teardown, .timeout = 120);

/* One group change: a snapshot of DISKS disks; all of its rows or none. */
static void put_group(unsigned n)
{
	struct cat_snapshot snap = make_snapshot(n, 0);

	cr_assert_eq(eng_catalog_put_snapshot(cat, &snap), 0);
	for (unsigned i = 0; i < DISKS; i++) {
		struct cat_layer layer = make_layer(1000 + n * DISKS + i, i);
		struct cat_snapshot_disk member = make_snapshot_disk(n, i);

		cr_assert_eq(eng_catalog_put_layer(cat, &layer), 0);
		cr_assert_eq(eng_catalog_put_snapshot_disk(cat, &member), 0);
	}
}

static void put_group_store(void)
{
	begin();
	put_vm(0);
	put_collection(0);
	for (unsigned i = 0; i < DISKS; i++)
		put_disk(i, 0);
	commit();
}

/* The number of groups, which are whole and 0, 1, 2, ...; or a negative number. */
static int count_groups(struct eng_catalog *c)
{
	struct cat_snapshot_disk *members;
	struct cat_snapshot *snaps;
	struct cat_layer *layers;
	size_t snap_count, layer_count, n;
	int r;

	if (eng_catalog_list_snapshots(c, NULL, &snaps, &snap_count) < 0)
		return -1;
	r = (int)snap_count;
	for (size_t i = 0; i < snap_count; i++) {
		struct fmt_uuid id = id_of(SNAP, i);

		if (eng_catalog_list_snapshot_disks(c, &id, &members, &n) < 0)
			return -2;
		free(members);
		if (n != DISKS)
			r = -3;
	}
	free(snaps);
	if (eng_catalog_list_layers(c, NULL, &layers, &layer_count) < 0)
		return -4;
	free(layers);
	if (r > 0 && layer_count != DISKS * (snap_count + 1))
		r = -5;
	return eng_catalog_check(c, &err) < 0 ? -6 : r;
}

/* CT-6 */
Test(engine_catalog_crash, an_untouched_catalog_is_left_as_it_was_and_a_closed_one_has_an_empty_log)
{
	uint8_t *before, *after;
	size_t len, after_len;
	char copy[400];

	put_group_store();
	before = read_file(log_path, &len);
	cr_assert_gt(len, 4096);
	snprintf(copy, sizeof(copy), "%s/copy.db-wal", dir);
	write_file(copy, before, len);
	free(before);
	before = read_file(db_path, &len);
	snprintf(copy, sizeof(copy), "%s/copy.db", dir);
	write_file(copy, before, len);
	free(before);
	eng_catalog_close(cat);
	cat = NULL;
	free(read_file(log_path, &len));
	cr_expect_eq(len, 0);

	/* The copy is what a crash would have left: looking at it changes nothing. */
	snprintf(db_path, sizeof(db_path), "%s/copy.db", dir);
	snprintf(log_path, sizeof(log_path), "%s/copy.db-wal", dir);
	before = read_file(log_path, &len);
	cr_assert_eq(eng_catalog_open(io, db_path, false, &err, &cat), 0, "%s", err.text);
	cr_expect_eq(count_groups(cat), 0);
	cr_expect_eq(count_vms(), 1);
	eng_catalog_close(cat);
	cat = NULL;
	after = read_file(log_path, &after_len);
	cr_assert_eq(after_len, len);
	cr_expect_eq(memcmp(after, before, len), 0);
	free(before);
	free(after);
}

/* Without the room that is allocated ahead of its frames (CT-9), which is zeros. */
static size_t used_log(void)
{
	size_t len, end = 32;
	uint8_t *log = read_file(log_path, &len);

	while (end + 4120 <= len && memcmp(log + end, "\0\0\0", 4) != 0)
		end += 4120;
	free(log);
	return end;
}

/* CT-1 */
Test(engine_catalog_crash, a_log_cut_anywhere_gives_whole_transactions)
{
	size_t log_len, db_len, ends[6];
	uint8_t *db, *log;

	put_group_store();
	for (unsigned i = 0; i < 5; i++) {
		ends[i] = used_log();
		begin();
		put_group(i);
		commit();
	}
	db = read_file(db_path, &db_len);
	log = read_file(log_path, &log_len);
	ends[5] = log_len = used_log();
	eng_catalog_close(cat);
	cat = NULL;
	for (size_t cut = ends[0]; cut <= log_len; cut += cut % 4120 == 32 ? 2001 : 2119) {
		int groups, expected = 0;

		while (expected < 5 && ends[expected + 1] - 4120 <= cut)
			expected++; /* the last frame of each is its commit frame once more */
		write_file(db_path, db, db_len);
		write_file(log_path, log, cut);
		cr_assert_eq(eng_catalog_open(io, db_path, false, &err, &cat), 0, "%s", err.text);
		groups = count_groups(cat);
		cr_expect_eq(groups, expected, "cut at %zu: %d of %d", cut, groups, expected);
		eng_catalog_close(cat);
		cat = NULL;
	}
	free(db);
	free(log);
}

/* CT-2, T23 */
Test(engine_catalog_crash, a_failed_sync_of_a_commit_poisons_and_the_next_open_decides)
{
	struct fmt_uuid id = id_of(VM, 0);
	struct cat_vm vm = make_vm(1), *vms;
	char value[CAT_TEXT_MAX];
	size_t n;

	put_group_store();
	eng_fault_add(fault, &(struct eng_fault_rule){.ops = ENG_FAULT_FDATASYNC,
						      .path = "catalog.db-wal",
						      .error = -EIO});
	begin();
	put_group(0);
	cr_assert_eq(eng_catalog_commit(cat, &err), -ENOTRECOVERABLE);
	cr_expect(strstr(err.text, "Input/output error"), "%s", err.text);
	cr_expect(eng_catalog_poisoned(cat));
	cr_expect_eq(eng_catalog_begin(cat), -ENOTRECOVERABLE);
	cr_expect_eq(eng_catalog_put_vm(cat, &vm), -ENOTRECOVERABLE);
	cr_expect_eq(eng_catalog_remove_vm(cat, &id), -ENOTRECOVERABLE);
	cr_expect_eq(eng_catalog_commit(cat, &err), -ENOTRECOVERABLE);
	cr_expect_eq(eng_catalog_get_vm(cat, "vm000", &vm), -ENOTRECOVERABLE);
	cr_expect_eq(eng_catalog_list_vms(cat, &vms, &n), -ENOTRECOVERABLE);
	cr_expect_eq(eng_catalog_fact_get(cat, "x", value), -ENOTRECOVERABLE);
	cr_expect_eq(eng_catalog_fact_set(cat, "x", "y"), -ENOTRECOVERABLE);
	cr_expect_eq(eng_catalog_checkpoint(cat), -ENOTRECOVERABLE);
	cr_expect_eq(eng_catalog_check(cat, &err), -ENOTRECOVERABLE);
	eng_catalog_rollback(cat);

	cr_assert_eq(open_again(), 0, "%s", err.text);
	cr_expect_not(eng_catalog_poisoned(cat));
	cr_expect_eq(count_groups(cat), 1, "its commit frame can be read");
}

static void restore(const uint8_t *db, size_t db_len, const uint8_t *log, size_t log_len)
{
	eng_catalog_close(cat);
	cat = NULL;
	write_file(db_path, db, db_len);
	write_file(log_path, log, log_len);
	cr_assert_eq(eng_catalog_open(io, db_path, false, &err, &cat), 0, "%s", err.text);
}

/* Every operation of a group's commit fails, one after the other. Counts how it ended. */
static void fail_commits(const struct eng_fault_rule *rule, unsigned ended[3])
{
	struct eng_fault_rule now = *rule;
	size_t db_len, log_len;
	uint8_t *db, *log;
	int r = -1;

	db = read_file(db_path, &db_len);
	log = read_file(log_path, &log_len);
	now.path = "catalog.db";
	for (; r != 0; now.skip++) {
		restore(db, db_len, log, log_len);
		begin();
		put_group(0);
		eng_fault_add(fault, &now);
		r = eng_catalog_commit(cat, &err);
		eng_fault_clear(fault);
		ended[r == 0 ? 0 : r == -ENOTRECOVERABLE ? 2 : 1]++;
		if (r == 0)
			break;
		cr_assert_eq(eng_catalog_poisoned(cat), r == -ENOTRECOVERABLE);
		if (r == -ENOTRECOVERABLE) { /* all of it or nothing */
			cr_assert_eq(open_again(), 0, "%s", err.text);
			r = count_groups(cat);
			cr_assert(r == 0 || r == 1, "%d", r);
			r = -ENOTRECOVERABLE;
			continue;
		}
		cr_assert_eq(r, rule->error);
		cr_assert_eq(count_groups(cat), 0);
		if (now.skip % 2) { /* the next one overwrites what that one had written */
			begin();
			put_group(0);
			commit();
		}
		cr_assert_eq(open_again(), 0, "%s", err.text);
		cr_assert_eq(count_groups(cat), now.skip % 2, "not committed, and came back");
	}
	restore(db, db_len, log, log_len);
	free(db);
	free(log);
}

/* CT-2, T23 */
Test(engine_catalog_crash, an_io_error_anywhere_in_a_commit_leaves_all_or_nothing_and_poisons)
{
	unsigned ended[3] = {0};

	put_group_store();
	fail_commits(&(struct eng_fault_rule){.ops = ENG_FAULT_PWRITE, .error = -EIO}, ended);
	fail_commits(&(struct eng_fault_rule){.ops = ENG_FAULT_PWRITE,
					      .error = -EIO,
					      .sticky = true,
					      .shorten = true, /* written, and failed */
					      .short_len = 4096},
		     ended);
	fail_commits(&(struct eng_fault_rule){.ops = ENG_FAULT_FDATASYNC, .error = -EIO}, ended);
	cr_expect_eq(ended[0], 3);
	cr_expect_eq(ended[1], 0);
	cr_expect_gt(ended[2], 20);
}

/* CT-9 */
Test(engine_catalog_crash, a_full_disk_before_the_commit_frame_is_a_plain_failure)
{
	unsigned ended[3] = {0};

	put_group_store();
	fail_commits(&(struct eng_fault_rule){.ops = ENG_FAULT_PWRITE,
					      .error = -ENOSPC,
					      .sticky = true},
		     ended);
	fail_commits(&(struct eng_fault_rule){.ops = ENG_FAULT_PWRITE,
					      .error = -ENOSPC,
					      .shorten = true, /* written, and failed */
					      .short_len = 4096},
		     ended);
	cr_expect_eq(ended[0], 2);
	cr_expect_gt(ended[1], 20, "most writes come before the commit frame");
	/* The commit frame and its copy: header, page, page across the sector's end. */
	cr_expect_geq(ended[2], 2 * 4);
	cr_expect_leq(ended[2], 2 * 6);
}

/* CT-9 */
Test(engine_catalog_crash, a_disk_without_room_for_a_commit_frame_is_found_full_before_it_is_sent)
{
	put_group_store();
	cr_assert_eq(truncate(log_path, (off_t)used_log()), 0);
	cr_assert_eq(open_again(), 0, "%s", err.text);
	eng_fault_add(fault, &(struct eng_fault_rule){.ops = ENG_FAULT_ALLOCATE,
						      .path = "catalog.db-wal",
						      .sticky = true,
						      .error = -ENOSPC});
	begin();
	put_group(0);
	cr_expect_eq(eng_catalog_commit(cat, &err), -ENOSPC, "%s", err.text);
	cr_expect_not(eng_catalog_poisoned(cat));
	cr_expect_eq(count_groups(cat), 0);
	eng_fault_clear(fault);
	begin();
	put_group(0);
	commit();
	cr_assert_eq(open_again(), 0, "%s", err.text);
	cr_expect_eq(count_groups(cat), 1);
}

/* CT-9 */
Test(engine_catalog_crash, where_nothing_can_be_allocated_writing_tells)
{
	put_group_store();
	eng_fault_add(fault, &(struct eng_fault_rule){.ops = ENG_FAULT_ALLOCATE,
						      .path = "catalog.db-wal",
						      .sticky = true,
						      .error = -EOPNOTSUPP});
	begin();
	put_group(0);
	commit();
	cr_expect_eq(count_groups(cat), 1);
}

/* CT-2 */
Test(engine_catalog_crash, an_error_before_the_commit_does_not_poison)
{
	struct cat_vm vm;
	int r;

	put_group_store();
	cr_assert_eq(open_again(), 0); /* nothing cached */
	eng_fault_add(fault, &(struct eng_fault_rule){.ops = ENG_FAULT_PREAD,
						      .path = "catalog.db",
						      .sticky = true,
						      .error = -EIO});
	r = eng_catalog_get_vm(cat, "vm000", &vm);
	cr_expect_eq(r, -EIO, "%d", r);
	r = eng_catalog_begin(cat);
	if (r == 0) {
		vm = make_vm(7);
		cr_expect_eq(eng_catalog_put_vm(cat, &vm), -EIO);
		cr_expect_eq(eng_catalog_commit(cat, &err), -EIO);
	}
	eng_fault_clear(fault);
	cr_expect_not(eng_catalog_poisoned(cat));
	begin();
	put_group(0);
	commit();
	cr_expect_eq(count_groups(cat), 1);
}

/* CT-6 */
Test(engine_catalog_crash, a_failed_checkpoint_loses_nothing_and_can_be_repeated)
{
	static const uint32_t ops[] = {ENG_FAULT_PWRITE, ENG_FAULT_FDATASYNC};
	unsigned groups = 0;

	put_group_store();
	for (int i = 0; i < 2; i++) {
		for (uint64_t skip = 0; skip < 3; skip++) {
			begin();
			put_group(groups++);
			commit();
			eng_fault_add(fault, &(struct eng_fault_rule){.ops = ops[i],
								      .path = "catalog.db",
								      .skip = i ? skip % 2 : skip,
								      .error = -EIO});
			cr_expect_eq(eng_catalog_checkpoint(cat), -EIO);
			eng_fault_clear(fault);
			cr_expect_not(eng_catalog_poisoned(cat));
			cr_expect_eq((unsigned)count_groups(cat), (unsigned)groups);
			if (skip == 1)
				cr_expect_eq(eng_catalog_checkpoint(cat), 0);
			if (skip == 2)
				cr_assert_eq(open_again(), 0);
			cr_expect_eq((unsigned)count_groups(cat), (unsigned)groups);
		}
	}
}

/* CT-6 */
Test(engine_catalog_crash, the_log_is_checkpointed_when_asked_or_too_long_and_not_otherwise)
{
	int to_log, to_db;

	/* Rules that only count. Of those that match, the oldest does. */
	to_log = eng_fault_add(fault, &(struct eng_fault_rule){.ops = ENG_FAULT_PWRITE,
							       .path = "catalog.db-wal",
							       .sticky = true});
	to_db = eng_fault_add(fault, &(struct eng_fault_rule){.ops = ENG_FAULT_PWRITE,
							      .path = "catalog.db",
							      .sticky = true});
	put_group_store();
	for (unsigned i = 0; i < 100; i++) {
		begin();
		put_group(i);
		commit();
	}
	cr_expect_gt(eng_fault_struck(fault, to_log), 2000, "SQLite's own limit is 1,000 frames");
	cr_expect_eq(eng_fault_struck(fault, to_db), 0);
	cr_expect_eq(eng_catalog_checkpoint(cat), 0);
	cr_expect_gt(eng_fault_struck(fault, to_db), 0);
	eng_fault_clear(fault);

	to_log = eng_fault_add(fault, &(struct eng_fault_rule){.ops = ENG_FAULT_PWRITE,
							       .path = "catalog.db-wal",
							       .sticky = true});
	to_db = eng_fault_add(fault, &(struct eng_fault_rule){.ops = ENG_FAULT_PWRITE,
							      .path = "catalog.db",
							      .sticky = true});
	begin();
	for (unsigned i = 0; i < 8300; i++) { /* a page each, all in one transaction */
		struct cat_layer layer = make_layer(1000000 + i, 0);

		memset(layer.path, 'p', 4000);
		layer.base_dev = 1;
		layer.base_ino = i;
		cr_assert_eq(eng_catalog_put_layer(cat, &layer), 0);
	}
	cr_expect_eq(eng_fault_struck(fault, to_log), 0, "nothing is written before COMMIT (CT-9)");
	commit();
	cr_expect_gt(eng_fault_struck(fault, to_log), 8000);
	cr_expect_gt(eng_fault_struck(fault, to_db), 8000);
	cr_expect_eq(eng_catalog_check(cat, &err), 0, "%s", err.text);
}

/* --- power loss --- */

/* At any power loss: whole transactions, and every one whose commit had returned. CT-1, CT-7, P2 */
Test(engine_catalog_crash, power_loss_keeps_what_was_committed_and_whole_transactions)
{
	char root[400], to[400], path[500];
	uint64_t end, step, seed = 1;
	struct eng_record *rec;

	eng_catalog_close(cat);
	cat = NULL;
	snprintf(root, sizeof(root), "%s/root", dir);
	snprintf(to, sizeof(to), "%s/after", dir);
	cr_assert_eq(eng_io_mkdir(posix, root), 0);
	cr_assert_eq(eng_record_create(posix, root, &rec), 0);
	snprintf(path, sizeof(path), "%s/catalog.db", root);
	cr_assert_eq(eng_catalog_open(eng_record_io(rec), path, true, &err, &cat), 0);
	eng_record_mark(rec, 1, 0, 0);
	put_group_store();
	eng_record_mark(rec, 1, 1, 0);
	for (unsigned i = 0; i < 8; i++) {
		begin();
		put_group(i);
		commit();
		eng_record_mark(rec, 1, 2 + i, 0);
		if (i % 3 == 2)
			cr_assert_eq(eng_catalog_checkpoint(cat), 0);
		if (i == 4) { /* and a close and another open */
			eng_catalog_close(cat);
			cr_assert_eq(eng_catalog_open(eng_record_io(rec), path, false, &err, &cat),
				     0);
		}
	}
	eng_catalog_close(cat);
	cat = NULL;
	end = eng_record_index(rec);
	step = end / 250 + 1;
	snprintf(path, sizeof(path), "%s/catalog.db", to);
	for (uint64_t x = 0; x <= end; x += step, seed++) {
		struct eng_record_mark mark;
		int acked = -1, groups, r;

		for (size_t i = 0; eng_record_get_mark(rec, i, &mark) && mark.index < x; i++)
			acked = (int)mark.a;
		cr_assert_eq(eng_record_crash(rec, x, seed, to), 0);
		r = eng_catalog_open(posix, path, acked < 0, &err, &cat);
		cr_assert_eq(r, 0, "crash at %lu, seed %lu: %d %s", x, seed, r, err.text);
		groups = count_groups(cat);
		cr_assert(groups >= (acked > 1 ? acked - 1 : 0) &&
				  groups <= (acked > 1 ? acked : 1),
			  "crash at %lu, seed %lu: %d groups, %d acknowledged", x, seed, groups,
			  acked - 1);
		cr_assert(acked < 1 || count_vms() == 1);
		eng_catalog_close(cat);
		cat = NULL;
		cr_assert_eq(eng_record_remove_tree(to), 0);
	}
	eng_record_destroy(rec);
}

/*
 * A commit whose fdatasync failed is in the page cache and not on the disk. The next open finds it
 * and says it is there; then it has to stay there. CT-8, T23
 */
Test(engine_catalog_crash, what_an_open_decides_survives_a_power_loss_after_it)
{
	char root[400], to[400], path[500];
	struct eng_record *rec;
	uint64_t opened;
	int found;

	eng_catalog_close(cat);
	cat = NULL;
	snprintf(root, sizeof(root), "%s/root", dir);
	snprintf(to, sizeof(to), "%s/after", dir);
	cr_assert_eq(eng_io_mkdir(posix, root), 0);
	cr_assert_eq(eng_record_create(io, root, &rec), 0); /* over the faults: it sees them */
	snprintf(path, sizeof(path), "%s/catalog.db", root);
	cr_assert_eq(eng_catalog_open(eng_record_io(rec), path, true, &err, &cat), 0);
	put_group_store();
	eng_fault_add(fault, &(struct eng_fault_rule){.ops = ENG_FAULT_FDATASYNC,
						      .path = "catalog.db-wal",
						      .error = -EIO});
	begin();
	put_group(0);
	cr_assert_eq(eng_catalog_commit(cat, &err), -ENOTRECOVERABLE);
	eng_catalog_close(cat);
	cr_assert_eq(eng_catalog_open(eng_record_io(rec), path, false, &err, &cat), 0);
	found = count_groups(cat);
	cr_assert_eq(found, 1);
	opened = eng_record_index(rec);
	eng_catalog_close(cat);
	snprintf(path, sizeof(path), "%s/catalog.db", to);
	for (uint64_t seed = 1; seed < 20; seed++) {
		cr_assert_eq(eng_record_crash(rec, opened, seed, to), 0);
		cr_assert_eq(eng_catalog_open(posix, path, false, &err, &cat), 0, "%s", err.text);
		cr_expect_eq(count_groups(cat), found, "seed %lu", seed);
		eng_catalog_close(cat);
		cr_assert_eq(eng_record_remove_tree(to), 0);
	}
	cat = NULL;
	eng_record_destroy(rec);
}
