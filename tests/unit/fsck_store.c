/* SPDX-License-Identifier: MIT */
/*
 * fsck_store.c - the checker on stores made by the engine: sound at every stage of their lives, and each
 * damage between catalog, files, chains and snapshots found with its rule.
 */
#include "tests/unit/fsck_made_store.h"

TestSuite(fsck_store, .init = start, .fini = finish);

/* --- sound stores --- */

/* CK-4 */
Test(fsck_store, a_store_is_sound_at_every_stage)
{
	assert_sound(io, store_dir);
	open_store();
	close_store();
	assert_sound(io, store_dir);
	open_store();
	make_vm();
	make_disk("d", NULL, false);
	make_disk("e", NULL, false);
	close_store();
	assert_sound(io, store_dir);
	cr_assert_eq(summary.disks, 2);
	cr_assert_eq(summary.layers, 2);
	for (unsigned i = 0; i < 4; i++) {
		char name[8];

		snprintf(name, sizeof(name), "s%u", i);
		open_store();
		attach();
		use(40);
		snapshot(name);
		if (i % 2)
			use(40);
		detach();
		close_store();
		assert_sound(io, store_dir);
		cr_assert_eq(summary.snapshots, i + 1);
		cr_assert_eq(summary.layers, 2 * (i + 2));
	}
}

/* RO-1 */
Test(fsck_store, a_store_is_sound_after_rolls)
{
	options.map_bound = 600;
	options.standby = true;
	open_store();
	make_vm();
	make_disk("d", NULL, false);
	make_disk("e", NULL, false);
	attach();
	snapshot("s");
	use(400);
	detach();
	close_store();
	assert_sound(io, store_dir);
	cr_assert_gt(summary.layers, 4, "%" PRIu64 " layers: no roll", summary.layers);
}

/* A process that is killed with everything in use. */
static void be_killed(unsigned snapshots)
{
	char name[8];
	pid_t child = fork();
	int status;

	cr_assert(child >= 0);
	if (child == 0) {
		open_store();
		if (snapshots == 0) {
			make_vm();
			make_disk("d", NULL, false);
			make_disk("e", NULL, false);
		}
		attach();
		for (unsigned i = 0; i < snapshots; i++) {
			use(30);
			snprintf(name, sizeof(name), "s%u", i);
			snapshot(name);
		}
		use(70);
		raise(SIGKILL);
	}
	cr_assert_eq(waitpid(child, &status, 0), child);
	cr_assert(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "status %#x", status);
	/* T19: the kernel keeps the lock until the dead one's last request is done. */
	for (unsigned i = 0; i < 1000 && check(io, store_dir) == -EBUSY; i++)
		usleep(10000);
}

/* CK-4 */
Test(fsck_store, what_a_killed_process_leaves_is_no_corruption)
{
	/* Made here, so that parent and child agree about the collection. */
	open_store();
	make_vm();
	make_disk("d", NULL, false);
	make_disk("e", NULL, false);
	close_store();
	be_killed(3);
	cr_assert_eq(check(io, store_dir), 0, "%s", check_error.text);
	cr_assert_eq(summary.corruptions, 0, "%s", all_findings());
	cr_assert(was_found("RV-2", FSCK_NOTE), "%s", all_findings());
	cr_assert(was_found("LH-10", FSCK_NOTE), "%s", all_findings());
	open_store();
	close_store();
	assert_sound(io, store_dir);
}

/* --- could not check --- */

/* CK-1 */
Test(fsck_store, a_store_in_use_is_not_checked)
{
	open_store();
	cr_assert_eq(check(io, store_dir), -EBUSY);
	cr_assert(check_error.text[0]);
	close_store();
	assert_sound(io, store_dir);
}

Test(fsck_store, what_is_no_store_is_not_checked)
{
	cr_assert_eq(check(io, dir), -ENOENT);
	cr_assert(check_error.text[0]);
	cr_assert_eq(check(io, "/nowhere/at/all"), -ENOENT);
	cr_assert_eq(check(io, "/dev/null"), -EINVAL);
}

/* --- catalog --- */

static void damage_file(const char *name, uint64_t offset)
{
	char path[400];
	uint8_t junk[64];

	memset(junk, 0xa5, sizeof(junk));
	snprintf(path, sizeof(path), "%s/%s", store_dir, name);
	file_write(path, junk, sizeof(junk), offset);
}

/* CT-4 */
Test(fsck_store, a_catalog_that_is_none_is_found_and_layers_are_checked_without_it)
{
	uint8_t was;

	make_store();
	file_read(layer_file(1), &was, 1, FMT_DATA_OFFSET);
	was ^= 1;
	file_write(layer_file(1), &was, 1, FMT_DATA_OFFSET);
	damage_file("catalog.db", 0);
	assert_found(io, store_dir, "CT-4", FSCK_CORRUPT);
	cr_assert(was_found("CS-2", FSCK_CORRUPT), "%s", all_findings());
	cr_assert_eq(summary.layers, 6);
}

/* CT-4 */
Test(fsck_store, a_missing_catalog_is_found)
{
	char path[300];

	make_store();
	snprintf(path, sizeof(path), "%s/catalog.db", store_dir);
	cr_assert_eq(unlink(path), 0);
	assert_found(io, store_dir, "CT-4", FSCK_CORRUPT);
}

/* CT-10: every page but the first, whose damage is CT-4. */
Test(fsck_store, damaged_pages_of_the_catalog_are_found)
{
	char path[300];
	uint64_t pages;

	make_store();
	snprintf(path, sizeof(path), "%s/catalog.db", store_dir);
	pages = file_size(path) / 4096;
	for (uint64_t i = 1; i < pages; i++) {
		uint8_t page[4096];

		file_read(path, page, sizeof(page), i * 4096);
		damage_file("catalog.db", i * 4096);
		cr_assert_eq(check(io, store_dir), 0, "page %" PRIu64 ": %s", i, check_error.text);
		cr_assert_gt(summary.corruptions, 0, "page %" PRIu64, i);
		file_write(path, page, sizeof(page), i * 4096);
	}
	assert_sound(io, store_dir);
}

/* CT-3 */
Test(fsck_store, a_catalog_of_no_store_is_found)
{
	struct eng_catalog *cat;

	make_store();
	cat = open_catalog();
	ok(eng_catalog_commit(cat, &err));
	ok(eng_catalog_fact_set(cat, "store_id", "mine"));
	eng_catalog_close(cat);
	assert_found(io, store_dir, "CT-3", FSCK_CORRUPT);
}

/* --- files and rows --- */

/* LH-2 */
Test(fsck_store, a_file_of_another_kind_is_found)
{
	char sidecar[400];

	make_store();
	snprintf(sidecar, sizeof(sidecar), "%s", layer_file(0));
	file_copy(sidecar, layer_file(1));
	assert_found(io, store_dir, "LH-2", FSCK_CORRUPT);
}

/* RV-9 */
Test(fsck_store, a_missing_file_is_found)
{
	make_store();
	cr_assert_eq(unlink(layer_file(1)), 0);
	assert_found(io, store_dir, "RV-9", FSCK_CORRUPT);
}

/* SC-6 */
Test(fsck_store, a_missing_base_is_found)
{
	make_store();
	cr_assert_eq(unlink(base_file()), 0);
	assert_found(io, store_dir, "SC-6", FSCK_CORRUPT);
}

/* RV-9 */
Test(fsck_store, files_that_no_row_names_are_leaks)
{
	static const char *const names[] = {"notes", "00000000-0000-4000-8000-000000000001.vmo",
					    "00000000-0000-4000-8000-000000000001.raw"};
	char path[600];

	make_store();
	for (size_t i = 0; i < 3; i++) {
		snprintf(path, sizeof(path), "%s/layers/%s", store_dir, names[i]);
		file_copy(layer_file(1), path);
		assert_found(io, store_dir, "RV-9", FSCK_LEAK);
		cr_assert_eq(summary.leaks, i + 1);
		cr_assert_geq(summary.leaked_bytes, 4096 * (i + 1));
	}
}

static void row_hardened(struct cat_layer *row)
{
	row->state = CAT_LAYER_HARDENED;
}

static void row_active(struct cat_layer *row)
{
	row->state = CAT_LAYER_ACTIVE;
}

static void row_generation(struct cat_layer *row)
{
	row->generation += 5;
}

static void row_orphan(struct cat_layer *row)
{
	memset(&row->parent, 0, sizeof(row->parent));
}

/* LH-12, CU-18 */
Test(fsck_store, rows_and_headers_that_disagree_about_the_state_are_found)
{
	make_store();
	edit_row(2, row_hardened);
	assert_found(io, store_dir, "LH-12", FSCK_CORRUPT);
	cr_assert(was_found("CU-18", FSCK_CORRUPT), "%s", all_findings());
	set_clean(false); /* a cut that failed may leave it so, with its pending layer on top */
	check(io, store_dir);
	cr_assert(was_found("CU-18", FSCK_NOTE), "%s", all_findings());
	set_clean(true);
	edit_row(2, row_active);
	assert_sound(io, store_dir);
	edit_row(1, row_active);
	assert_found(io, store_dir, "LH-12", FSCK_CORRUPT);
	cr_assert(was_found("CU-18", FSCK_CORRUPT), "%s", all_findings());
}

/* CT-11 */
Test(fsck_store, a_generation_that_is_not_the_headers_is_found)
{
	make_store();
	edit_row(2, row_generation);
	assert_found(io, store_dir, "CT-11", FSCK_CORRUPT);
}

/* CT-11: a parent that is no older. */
Test(fsck_store, a_chain_that_does_not_rise_is_found)
{
	make_store();
	edit_row(1, row_generation);
	assert_found(io, store_dir, "CT-11", FSCK_CORRUPT);
	cr_assert(was_said("the chain is broken"), "%s", all_findings());
}

/* BY-4 */
Test(fsck_store, a_parent_that_is_not_the_headers_is_found)
{
	make_store();
	edit_row(2, row_orphan);
	assert_found(io, store_dir, "BY-4", FSCK_CORRUPT);
}

/* --- headers --- */

static void header_store(struct fmt_header_disk *d)
{
	d->store_id[3] ^= 1;
}

static void header_disk(struct fmt_header_disk *d)
{
	d->disk_id[3] ^= 1;
}

static void header_layer(struct fmt_header_disk *d)
{
	d->layer_id[3] ^= 1;
}

static void header_nonce(struct fmt_header_disk *d)
{
	d->journal_nonce = le64_make(9);
}

static void header_frozen(struct fmt_header_disk *d)
{
	d->state = le32_make(FMT_STATE_FROZEN);
}

static void header_parent_hash(struct fmt_header_disk *d)
{
	d->parent_hash[3] ^= 1;
}

static void header_no_boundary(struct fmt_header_disk *d)
{
	memset(d->snapshot_id, 0, 16);
	d->snapshot_members = d->snapshot_index = le32_make(0);
}

static void header_other_boundary(struct fmt_header_disk *d)
{
	d->snapshot_id[3] ^= 1;
}

static void header_other_index(struct fmt_header_disk *d)
{
	d->snapshot_members = le32_make(7);
	d->snapshot_index = le32_make(6);
}

static void header_larger(struct fmt_header_disk *d)
{
	d->size = le64_make(2 * DISK_SIZE);
}

static void header_smaller(struct fmt_header_disk *d)
{
	d->size = le64_make(DISK_SIZE - 4096);
}

static void header_blocks(struct fmt_header_disk *d)
{
	d->block_bits = le32_make(13);
}

/* Edits the header of the @i-th layer and forgets the one before, so that only the catalog differs. */
static void edit_layer(size_t i, void (*edit)(struct fmt_header_disk *d))
{
	uint8_t zeros[FMT_PAGE] = {0};
	struct fmt_header h;

	edit_header(layer_file(i), edit);
	file_write(layer_file(i), zeros, sizeof(zeros),
		   FMT_PAGE - newest_header(layer_file(i), &h));
}

static const struct {
	const char *what;
	size_t layer; /* 0 base, 1 overlay of s2, 2 head */
	void (*edit)(struct fmt_header_disk *d);
	const char *rule;
	enum fsck_severity clean, unclean;
} header_damages[] = {
	{"another store's layer", 1, header_store, "LH-7", FSCK_CORRUPT, FSCK_CORRUPT},
	{"another disk's layer", 1, header_disk, "LH-7", FSCK_CORRUPT, FSCK_CORRUPT},
	{"another layer under its name", 1, header_layer, "LH-7", FSCK_CORRUPT, FSCK_CORRUPT},
	{"another disk's base", 0, header_disk, "LH-7", FSCK_CORRUPT, FSCK_CORRUPT},
	{"a journal's name", 2, header_nonce, "LH-10", FSCK_CORRUPT, FSCK_NOTE},
	{"a frozen head", 2, header_frozen, "LH-12", FSCK_CORRUPT, FSCK_NOTE},
	{"no boundary", 1, header_no_boundary, "BD-2", FSCK_CORRUPT, FSCK_CORRUPT},
	{"no boundary of a base", 0, header_no_boundary, "BD-2", FSCK_CORRUPT, FSCK_CORRUPT},
	{"another boundary", 1, header_other_boundary, "BD-3", FSCK_CORRUPT, FSCK_CORRUPT},
	{"another place", 1, header_other_index, "BD-2", FSCK_CORRUPT, FSCK_CORRUPT},
	{"a larger head", 2, header_larger, "AT-6", FSCK_NOTE, FSCK_NOTE},
	{"a smaller head", 2, header_smaller, "AT-6", FSCK_CORRUPT, FSCK_CORRUPT},
	{"a smaller base", 0, header_smaller, "AT-6", FSCK_CORRUPT, FSCK_CORRUPT},
	{"other blocks", 2, header_blocks, "LH-11", FSCK_CORRUPT, FSCK_CORRUPT},
};

/* CK-3, CK-4 */
Test(fsck_store, headers_that_are_not_what_the_catalog_says_are_found)
{
	for (size_t i = 0; i < sizeof(header_damages) / sizeof(*header_damages); i++) {
		uint8_t was[2 * FMT_PAGE];

		if (i == 0)
			make_store();
		file_read(layer_file(header_damages[i].layer), was, sizeof(was), 0);
		edit_layer(header_damages[i].layer, header_damages[i].edit);
		for (int clean = 1; clean >= 0; clean--) {
			enum fsck_severity as = clean ? header_damages[i].clean
						      : header_damages[i].unclean;

			set_clean(clean);
			cr_assert_eq(check(io, store_dir), 0);
			cr_assert(was_found(header_damages[i].rule, as), "%s, clean %d: %s",
				  header_damages[i].what, clean, all_findings());
			cr_assert_eq(summary.corruptions > 0, as == FSCK_CORRUPT, "%s: %s",
				     header_damages[i].what, all_findings());
		}
		set_clean(true);
		file_write(layer_file(header_damages[i].layer), was, sizeof(was), 0);
		assert_sound(io, store_dir);
	}
}

/* SL-4 */
Test(fsck_store, a_parent_with_another_hash_is_found)
{
	make_store();
	open_store();
	attach();
	use(20);
	snapshot("s3");
	detach();
	close_store();
	assert_sound(io, store_dir);
	edit_layer(2, header_parent_hash);
	assert_found(io, store_dir, "SL-4", FSCK_CORRUPT);
}

/* ML-8: in a store that was closed the last record cannot be torn. */
Test(fsck_store, a_damaged_last_record_is_found_in_a_closed_store)
{
	struct fmt_header h;
	struct fmt_record rec;
	uint8_t *log, one = 1;
	uint64_t at = 0, last = 0;

	make_store();
	newest_header(layer_file(2), &h);
	log = malloc(h.log0_len);
	file_read(layer_file(2), log, h.log0_len, FMT_LOG0_OFFSET);
	while (fmt_record_decode(log + at, h.log0_len - at, h.salt, &rec, NULL) == 0 && rec.runs) {
		last = at;
		at += (rec.len + h.log_granule - 1) / h.log_granule * h.log_granule;
	}
	free(log);
	cr_assert_gt(last, 0);
	file_write(layer_file(2), &one, 1, FMT_LOG0_OFFSET + last + 0x3f);
	assert_found(io, store_dir, "ML-8", FSCK_CORRUPT);
	set_clean(false);
	assert_found(io, store_dir, "ML-8", FSCK_NOTE);
}

/* --- disks --- */

/* CU-19 */
Test(fsck_store, a_head_that_is_not_the_top_is_found)
{
	make_store();
	set_head(1);
	assert_found(io, store_dir, "CU-19", FSCK_CORRUPT);
	set_head(2);
	assert_sound(io, store_dir);
}

/* CT-5 */
Test(fsck_store, a_head_of_another_disk_is_found)
{
	struct cat_disk d, e;
	struct eng_catalog *cat;

	make_store();
	cat = open_catalog();
	ok(eng_catalog_get_disk(cat, "a", "d", &d));
	ok(eng_catalog_get_disk(cat, "a", "e", &e));
	ok(eng_catalog_set_disk_head(cat, &d.id, &e.head));
	close_catalog(cat);
	assert_found(io, store_dir, "CT-5", FSCK_CORRUPT);
}

/* AT-6 */
Test(fsck_store, a_disk_larger_than_its_head_is_found)
{
	struct cat_disk d;
	struct eng_catalog *cat;

	make_store();
	cat = open_catalog();
	ok(eng_catalog_get_disk(cat, "a", "d", &d));
	d.size += 4096;
	ok(eng_catalog_put_disk(cat, &d));
	close_catalog(cat);
	assert_found(io, store_dir, "AT-6", FSCK_CORRUPT);
}
