/* SPDX-License-Identifier: MIT */
/*
 * engine_catalog_hostile.c - the catalog believes nothing that a database file says: whatever is in
 * it, there is a right answer or an error in words. Rules CT-*: spec/catalog.md.
 */
#include <sqlite3.h>
#include <stdarg.h>

#include "tests/unit/catalog.h"

TestSuite(engine_catalog_hostile, .init = setup, .fini = teardown, .timeout = 120);

/* Changes the closed database behind the catalog's back, and opens it. */
__attribute__((format(printf, 1, 2))) static int tamper(const char *format, ...)
{
	char *sql, *message = NULL;
	sqlite3 *db;
	va_list args;
	int r;

	eng_catalog_close(cat);
	cat = NULL;
	va_start(args, format);
	cr_assert_neq(vasprintf(&sql, format, args), -1);
	va_end(args);
	cr_assert_eq(sqlite3_open(db_path, &db), SQLITE_OK);
	r = sqlite3_exec(db, sql, NULL, NULL, &message);
	cr_assert_eq(r, SQLITE_OK, "%s: %s", sql, message);
	sqlite3_close(db);
	free(sql);
	return eng_catalog_open(io, db_path, false, &err, &cat);
}

Test(engine_catalog_hostile, without_create_a_missing_or_empty_database_is_enoent)
{
	struct eng_file *file;
	struct eng_catalog *got;
	char path[400];

	snprintf(path, sizeof(path), "%s/other.db", dir);
	cr_expect_eq(eng_catalog_open(io, path, false, &err, &got), -ENOENT);
	cr_expect(strstr(err.text, "No such file"), "%s", err.text);
	cr_assert_eq(eng_io_open(posix, path, ENG_OPEN_WRITE | ENG_OPEN_CREATE, &file), 0);
	eng_io_close(posix, file);
	cr_expect_eq(eng_catalog_open(io, path, false, &err, &got), -ENOENT);
	cr_assert_eq(eng_catalog_open(io, path, true, &err, &got), 0, "%s", err.text);
	eng_catalog_close(got);
	cr_assert_eq(eng_catalog_open(io, path, true, &err, &got), 0, "%s", err.text);
	eng_catalog_close(got);
}

/* CT-3 */
Test(engine_catalog_hostile, a_newer_schema_is_enotsup_and_a_nonsensical_one_euclean)
{
	cr_assert_eq(tamper("UPDATE facts SET value = '4'"), -ENOTSUP);
	cr_expect(strstr(err.text, "version 4"), "%s", err.text);
	cr_expect_eq(tamper("CREATE TABLE more (x)"), -ENOTSUP, "the version is looked at first");
	cr_expect_eq(tamper("UPDATE facts SET value = '10000000000000000000000'"), -ENOTSUP);
	cr_expect_eq(tamper("UPDATE facts SET value = '1'"), -ENOTSUP, "never released");
	cr_expect_eq(tamper("UPDATE facts SET value = '2'"), -ENOTSUP, "never released");
	cr_expect_eq(tamper("UPDATE facts SET value = '0'"), -EUCLEAN);
	cr_expect_eq(tamper("UPDATE facts SET value = '3x'"), -EUCLEAN);
	cr_expect_eq(tamper("UPDATE facts SET value = ''"), -EUCLEAN);
	cr_expect_eq(tamper("DELETE FROM facts"), -EUCLEAN);
	cr_expect_eq(tamper("INSERT INTO facts VALUES ('schema_version', '3'); DROP TABLE more"),
		     0);
}

/* CT-4 */
Test(engine_catalog_hostile, tables_that_are_not_ours_are_euclean)
{
	cr_expect_eq(tamper("CREATE TRIGGER t AFTER INSERT ON vms BEGIN DELETE FROM jobs; END"),
		     -EUCLEAN);
	cr_expect_eq(tamper("DROP TRIGGER t; ALTER TABLE vms ADD COLUMN more INTEGER"), -EUCLEAN);
	cr_expect_eq(tamper("ALTER TABLE vms DROP COLUMN more"), 0, "%s", err.text);
	cr_expect_eq(tamper("ALTER TABLE jobs RENAME TO tasks; CREATE VIEW jobs AS SELECT * FROM "
			    "tasks"),
		     -EUCLEAN);
	cr_expect_eq(tamper("DROP VIEW jobs; DROP TABLE facts"), -EUCLEAN);
	cr_expect(strstr(err.text, "facts"), "%s", err.text);
}

Test(engine_catalog_hostile, garbage_is_euclean_in_words)
{
	uint8_t *good, garbage[8192];
	size_t len;

	put_little_store();
	eng_catalog_close(cat);
	cat = NULL;
	good = read_file(db_path, &len);
	for (size_t i = 0; i < sizeof(garbage); i++)
		garbage[i] = (uint8_t)(i * 7 + 1);
	write_file(db_path, garbage, sizeof(garbage));
	cr_expect_eq(eng_catalog_open(io, db_path, true, &err, &cat), -EUCLEAN);
	cr_expect(strstr(err.text, "not a database"), "%s", err.text);

	/* A header that is fine and a table of contents that is not. */
	memset(good + 100, 0xa5, 400);
	write_file(db_path, good, len);
	cr_expect_eq(eng_catalog_open(io, db_path, true, &err, &cat), -EUCLEAN);
	cr_expect(strstr(err.text, "malformed"), "%s", err.text);
	free(good);
}

/* CT-10 */
Test(engine_catalog_hostile, flipped_bytes_anywhere_never_do_harm)
{
	uint8_t *good, *bad;
	size_t len;

	put_little_store();
	begin();
	for (unsigned i = 1; i < 60; i++) {
		put_vm(i);
		put_disk(i, i);
	}
	commit();
	eng_catalog_close(cat);
	cat = NULL;
	good = read_file(db_path, &len);
	bad = malloc(len);
	for (unsigned round = 0; round < 150; round++) {
		struct fmt_uuid top = id_of(LAYER, 0), coll = id_of(COLL, 0);
		struct cat_layer *layers = NULL;
		struct cat_disk *disks = NULL;
		struct cat_vm *vms = NULL;
		uint64_t x = round * 0x9e3779b97f4a7c15 + 1;
		size_t n;

		memcpy(bad, good, len);
		for (int i = 0; i < 40; i++) {
			x = x * 6364136223846793005 + 1442695040888963407;
			bad[(x >> 20) % len] ^= (uint8_t)(1 << (x >> 17) % 8);
		}
		write_file(db_path, bad, len);
		write_file(log_path, "", 0);
		if (eng_catalog_open(io, db_path, false, &err, &cat) < 0)
			continue;
		/* Any result is fine as long as it is one; the sanitizers watch. */
		if (eng_catalog_list_vms(cat, &vms, &n) == 0)
			free(vms);
		if (eng_catalog_list_disks(cat, NULL, &disks, &n) == 0)
			free(disks);
		if (eng_catalog_list_collection_disks(cat, &coll, &disks, &n) == 0)
			free(disks);
		if (eng_catalog_list_layers(cat, NULL, &layers, &n) == 0)
			free(layers);
		if (eng_catalog_chain(cat, &top, &layers, &n) == 0)
			free(layers);
		eng_catalog_check(cat, &err);
		eng_catalog_close(cat);
		cat = NULL;
	}
	free(good);
	free(bad);
}

/* CT-10 */
Test(engine_catalog_hostile, values_in_the_database_are_checked)
{
	static const struct {
		const char *table, *column, *value;
	} bad[] = {
		{"vms", "name", "''"},
		{"vms", "name", "'a' || char(0) || 'b'"},
		{"vms", "name", "'a/b'"},
		{"vms", "name", "printf('%065d', 0)"},
		{"vms", "id", "x'00'"},
		{"vms", "id", "zeroblob(16)"},
		{"vms", "id", "zeroblob(1000000)"},
		{"disks", "size", "-1"},
		{"disks", "block_bits", "11"},
		{"disks", "block_bits", "4294967308"}, /* 12, were it cut to 32 bits */
		{"disks", "independent", "2"},
		{"disks", "head", "x'0011223344556677889900112233445566'"},
		{"layers", "kind", "4"},
		{"layers", "state", "0"},
		{"layers", "generation", "-9223372036854775808"},
		{"layers", "path", "printf('%04096d', 0)"},
		{"layers", "parent", "x''"},
		{"collections", "name", "'-'"},
		{"snapshots", "element_name", "printf('%0256d', 0)"},
		{"snapshots", "type", "65537"},
		{"snapshots", "state", "9"},
		{"snapshots", "total_ns", "-1"},
		{"snapshot_disks", "skipped", "-1"},
		{"snapshot_disks", "vm_name", "printf('%066d', 0)"},
		{"snapshot_disks", "position", "4294967296"},
		{"jobs", "name", "printf('%0130d', 0)"},
		{"jobs", "error_text", "printf('%0512d', 0)"},
		{"jobs", "percent", "101"},
		{"facts", "value", "printf('%0256d', 0)"},
	};
	struct cat_job job = make_job(0);
	uint8_t *good;
	size_t len;

	put_little_store();
	begin();
	cr_assert_eq(eng_catalog_put_job(cat, &job), 0);
	commit();
	cr_assert_eq(eng_catalog_fact_set(cat, "clean", "1"), 0);
	eng_catalog_close(cat);
	cat = NULL;
	good = read_file(db_path, &len);
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		struct fmt_uuid snap = id_of(SNAP, 0);
		char value[CAT_TEXT_MAX];
		void *rows = NULL;
		size_t n;
		int r;

		write_file(db_path, good, len);
		cr_assert_eq(tamper("UPDATE %s SET %s = %s%s", bad[i].table, bad[i].column,
				    bad[i].value,
				    strcmp(bad[i].table, "facts") ? "" : " WHERE key = 'clean'"),
			     0, "%zu: %s", i, err.text);
		if (!strcmp(bad[i].table, "vms"))
			r = eng_catalog_list_vms(cat, (void *)&rows, &n);
		else if (!strcmp(bad[i].table, "disks"))
			r = eng_catalog_list_disks(cat, NULL, (void *)&rows, &n);
		else if (!strcmp(bad[i].table, "layers"))
			r = eng_catalog_list_layers(cat, NULL, (void *)&rows, &n);
		else if (!strcmp(bad[i].table, "collections"))
			r = eng_catalog_list_collections(cat, (void *)&rows, &n);
		else if (!strcmp(bad[i].table, "snapshots"))
			r = eng_catalog_list_snapshots(cat, NULL, (void *)&rows, &n);
		else if (!strcmp(bad[i].table, "snapshot_disks"))
			r = eng_catalog_list_snapshot_disks(cat, &snap, (void *)&rows, &n);
		else if (!strcmp(bad[i].table, "jobs"))
			r = eng_catalog_list_jobs(cat, (void *)&rows, &n);
		else
			r = eng_catalog_fact_get(cat, "clean", value);
		cr_expect_eq(r, -EUCLEAN, "%s.%s = %s: %d", bad[i].table, bad[i].column,
			     bad[i].value, r);
		cr_expect_null(rows);
		eng_catalog_close(cat);
		cat = NULL;
	}
	free(good);
}

/* CT-11 */
Test(engine_catalog_hostile, a_broken_chain_is_euclean)
{
	struct cat_layer *chain = NULL;
	struct fmt_uuid top = id_of(LAYER, 3);
	size_t n;

	begin();
	put_vm(0);
	put_disk(0, 0);
	for (unsigned i = 1; i < 4; i++) {
		struct cat_layer layer = make_layer(i, 0);

		layer.parent = id_of(LAYER, i - 1);
		layer.generation = i;
		cr_assert_eq(eng_catalog_put_layer(cat, &layer), 0);
	}
	commit();
	cr_assert_eq(eng_catalog_chain(cat, &top, &chain, &n), 0);
	free(chain);
	cr_assert_eq(tamper("UPDATE layers SET generation = 2 WHERE generation = 3"), 0);
	cr_expect_eq(eng_catalog_chain(cat, &top, &chain, &n), -EUCLEAN, "two of a generation");
	cr_assert_eq(tamper("UPDATE layers SET parent = (SELECT id FROM layers ORDER BY rowid DESC "
			    "LIMIT 1) WHERE generation = 0"),
		     0);
	cr_expect_eq(eng_catalog_chain(cat, &top, &chain, &n), -EUCLEAN, "a loop");
	cr_expect_eq(eng_catalog_check(cat, &err), 0);
	cr_assert_eq(tamper("DELETE FROM layers WHERE generation = 0"), 0);
	cr_expect_eq(eng_catalog_chain(cat, &top, &chain, &n), -EUCLEAN, "a parent that is gone");
	cr_expect_eq(eng_catalog_check(cat, &err), -EUCLEAN);
}
