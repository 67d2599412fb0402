/* SPDX-License-Identifier: MIT */
/*
 * engine_import.c - increments whose base is folded: before they come, while they come, and so that it is no
 * base any more (spec/stream.md IP-4).
 */
#include "tests/unit/engine_refpoint.h"

#include "engine/transfer/export.h"
#include "engine/transfer/import.h"

#define SIZE  (2u << 20)
#define SNAPS 5 /* s0 to s4: s0 has the first write, s1 the first two ... */

struct stream {
	uint8_t *p;
	size_t len, at;
	void (*hook)(void); /* called once, when half of it has been read */
};

static struct stream streams[SNAPS];

static uint64_t place(unsigned n)
{
	return n * 100000ull / 4096 * 4096;
}

static void name_of(unsigned n, char ret[8])
{
	snprintf(ret, 8, "s%u", n);
}

static void export(unsigned n)
{
	char name[8], base[8], to[160], path[256];
	struct eng_export how = {.collection = "c", .snapshot = name, .dir = to};
	struct eng_export_result result;
	struct stream *s = &streams[n];
	FILE *f;

	name_of(n, name);
	snprintf(to, sizeof(to), "%s/out-%s", root, name);
	if (n) {
		name_of(n - 1, base);
		how.base = base;
	}
	must(eng_store_export(store, &how, &err, &result) == 0);
	snprintf(path, sizeof(path), "%s/%s.vmstream", to, name);
	f = fopen(path, "rb");
	must(f != NULL);
	s->p = malloc(SIZE);
	s->len = fread(s->p, 1, SIZE, f);
	fclose(f);
}

/* Streams of all snapshots, and a new store that folds. */
static void scene(void)
{
	begin(1, SIZE);
	attach(0, 0);
	for (unsigned n = 0; n < SNAPS; n++) {
		char name[8];

		name_of(n, name);
		must(do_write(0, n + 1, place(n), 65536) == 0);
		must(rp_cut(name, false) == 0);
	}
	detach(0);
	for (unsigned n = 0; n < SNAPS; n++)
		export(n);
	close_store();
	must(eng_record_remove_tree(dir) == 0);
	must(eng_store_init(io, dir, &err) == 0);
	options.no_folds = false;
	options.fold_rate = UINT64_MAX;
	open_store();
}

static ssize_t read_stream(void *arg, void *buf, size_t len, struct fmt_error *why)
{
	struct stream *s = arg;
	size_t n = s->len - s->at < len ? s->len - s->at : len;

	(void)why;
	n = n < 4000 ? n : 4000;
	if (s->hook && s->at > s->len / 2) {
		s->hook();
		s->hook = NULL;
	}
	memcpy(buf, s->p + s->at, n);
	s->at += n;
	return (ssize_t)n;
}

static int import_as(unsigned n, void (*hook)(void), const char *collection)
{
	struct stream s = streams[n];
	struct eng_stream_source source = {.read = read_stream, .arg = &s, .name = "memory"};
	struct eng_import how = {.source = &source, .new_collection = collection};
	struct eng_import_result result;

	s.hook = hook;
	memset(&err, 0, sizeof(err));
	return eng_store_import(store, &how, &err, &result);
}

static int import(unsigned n, void (*hook)(void))
{
	return import_as(n, hook, NULL);
}

static void drop(unsigned n)
{
	size_t layers = rp_layers();
	struct cat_job none = {.type = 0};
	bool marked = false;
	char name[8];

	name_of(n, name);
	must(eng_store_delete_snapshot(store, "c", name, &none, &marked, &err) == 0);
	must(eng_store_settle(store, NULL, 0, true, UINT64_MAX, NULL, &err) == 0);
	must(rp_layers() == layers - 1);
}

static void drop_two(void)
{
	drop(1);
	drop(0);
}

static void import_another(void)
{
	must(import_as(0, NULL, "other") == 0);
}

static void expect_all(const char *name, unsigned writes)
{
	for (unsigned n = 0; n < writes; n++)
		cr_expect(view_holds(name, 0, n + 1, place(n), 65536), "%s: write %u", name, n);
}

static void end(void)
{
	for (unsigned n = 0; n < SNAPS; n++)
		free(streams[n].p);
	close_store();
	finish();
}

/* IP-4, FD-1: folds give the base's layer other ids, one after the other, while the increment is read. */
Test(engine_import, base_is_folded_meanwhile)
{
	scene();
	for (unsigned n = 0; n < 4; n++)
		cr_assert_eq(import(n, NULL), 0, "%s", err.text);
	drop(2);
	cr_assert_eq(import(4, drop_two), 0, "%s", err.text);
	cr_expect_eq(rp_layers(), 3, "the base, the increment and the head");
	expect_all("s4", SNAPS);
	expect_all("s3", SNAPS - 1);
	close_store();
	open_store();
	expect_all("s4", SNAPS);
	drop(3);
	expect_all("s4", SNAPS);
	attach(0, 0);
	must(holds(0, 1, 0, 65536));
	detach(0);
	end();
}

/* IP-4, RP-11: a point stays, and what its layer holds is something else. */
Test(engine_import, point_with_later_writes_folded_in_is_no_base)
{
	scene();
	must(import(0, NULL) == 0);
	must(rp_convert("s0", "p") == 0);
	attach(0, 0);
	must(do_write(0, 77, 1 << 20, 65536) == 0);
	must(rp_cut("x", false) == 0);
	turn_until(rp_is_sealed());
	detach(0);
	must(rp_delete_snapshot("x") == 0);
	must(eng_store_settle(store, NULL, 0, true, UINT64_MAX, NULL, &err) == 0);
	must(rp_layers() == 2);
	cr_expect_eq(import(1, NULL), -ESTALE);
	cr_expect(strstr(err.text, "folded") != NULL, "%s", err.text);
	end();
}

/* IP-2: ids that were free when it began are another import's by now, which loses nothing to it. */
Test(engine_import, two_at_once_of_one_snapshot)
{
	size_t layers;
	struct cat_collection row;

	scene();
	layers = rp_layers();
	cr_expect_eq(import(0, import_another), -EEXIST, "%s", err.text);
	cr_expect(strstr(err.text, "since the import began") != NULL, "%s", err.text);
	cr_expect_eq(eng_catalog_get_collection(store->catalog, "other", &row), 0);
	cr_expect_eq(eng_catalog_get_collection(store->catalog, "c", &row), -ENOENT);
	cr_expect_eq(rp_layers(), layers + 2);
	must(eng_store_attach(store, queue[0], "other-a/d0", 0, &err, &disk[0]) == 0);
	must(holds(0, 1, 0, 65536));
	detach(0);
	cr_expect_eq(import(0, NULL), 0, "%s", err.text);
	end();
}

/* A point whose layer holds what it stands for is as good as its snapshot. */
Test(engine_import, point_is_a_base)
{
	scene();
	must(import(0, NULL) == 0);
	must(rp_convert("s0", "p") == 0);
	cr_assert_eq(import(1, NULL), 0, "%s", err.text);
	expect_all("s1", 2);
	end();
}
