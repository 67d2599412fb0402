/* SPDX-License-Identifier: MIT */
/*
 * engine_transfer.c - exports and imports with an error at each operation, a full disk among them, and
 * with a cancel at any time: what fails changes nothing and leaves nothing (spec/stream.md EX-2, IP-1).
 */
#include "tests/unit/engine_store.h"

#include <dirent.h>

#include "engine/transfer/export.h"
#include "engine/transfer/export_impl.h"
#include "engine/transfer/import.h"
#include "engine/transfer/verify.h"

#define SIZE (2u << 20)

static char out_dir[128];

/* Two disks, two snapshots: s1 and what changed since, s2. */
static void scene(void)
{
	begin(2, SIZE);
	attach(0, 0);
	attach(1, 0);
	must(do_write(0, 1, 0, 65536) == 0);
	must(do_write(1, 2, 1 << 20, 8192) == 0);
	must(snapshot("s1") == 0);
	must(do_write(0, 3, 4096, 8192) == 0);
	must(do_op(0, ENG_WRITE_ZEROES, 0, 32768, 4096) >= 0);
	must(snapshot("s2") == 0);
	detach(0);
	detach(1);
	snprintf(out_dir, sizeof(out_dir), "%s/out", root);
}

static int export(const char *name, const char *base, const char *to, bool compress,
		  struct eng_progress *progress)
{
	struct eng_export how = {
		.collection = "c",
		.snapshot = name,
		.base = base,
		.dir = to,
		.compress = compress,
		.progress = progress,
	};
	struct eng_export_result result;

	return eng_store_export(store, &how, &err, &result);
}

struct memory {
	uint8_t *p;
	size_t len, at;
};

static struct memory load(const char *to, const char *name)
{
	struct memory m = {0};
	char path[256];
	FILE *f;

	snprintf(path, sizeof(path), "%s/%s.vmstream", to, name);
	f = fopen(path, "rb");
	must(f != NULL);
	m.p = malloc(8u << 20);
	m.len = fread(m.p, 1, 8u << 20, f);
	fclose(f);
	return m;
}

static ssize_t memory_read(void *arg, void *buf, size_t len, struct fmt_error *why)
{
	struct memory *m = arg;
	size_t n = m->len - m->at < len ? m->len - m->at : len;

	(void)why;
	n = n < 10000 ? n : 10000;
	memcpy(buf, m->p + m->at, n);
	m->at += n;
	return (ssize_t)n;
}

static int import(struct memory *m, const char *as, struct eng_progress *progress)
{
	struct eng_stream_source source = {.read = memory_read, .arg = m, .name = "memory"};
	struct eng_import how = {.source = &source, .new_collection = as, .progress = progress};
	struct eng_import_result result;

	m->at = 0;
	return eng_store_import(store, &how, &err, &result);
}

static unsigned count_files(const char *path)
{
	DIR *d = opendir(path);
	unsigned n = 0;

	for (struct dirent *e; d && (e = readdir(d));)
		n += e->d_name[0] != '.';
	if (d)
		closedir(d);
	return n;
}

static bool is_there(const char *path)
{
	struct stat st;

	return lstat(path, &st) == 0;
}

/* P5 */
Test(engine_transfer, streams_hold_what_snapshots_hold)
{
	struct memory full, inc;

	scene();
	must(export("s1", NULL, out_dir, false, NULL) == 0);
	full = load(out_dir, "s1");
	must(export("s1", NULL, out_dir, false, NULL) == -EEXIST);
	strcat(out_dir, "2");
	must(export("s2", "s1", out_dir, true, NULL) == 0);
	inc = load(out_dir, "s2");
	cr_expect_lt(inc.len, full.len / 2, "only what changed is in an increment");
	must(import(&full, "x", NULL) == 0);
	attach(0, 0);
	must(eng_store_attach(store, queue[1], "x-a/d0", 0, &err, &disk[2]) == 0);
	must(disk_holds(disk[2], 1, 0, 65536));
	must(do_write(2, 9, 0, 4096) == 0);
	must(disk_holds(disk[2], 1, 4096, 65536 - 4096));
	must(holds(0, 1, 0, 4096));
	detach(2);
	detach(0);
	close_store();
	finish();
	free(full.p);
	free(inc.p);
}

/* An increment onto its base, here: the base's disks themselves went back to it. */
static void restore_scene(struct memory *full, struct memory *inc)
{
	scene();
	must(export("s1", NULL, out_dir, false, NULL) == 0);
	*full = load(out_dir, "s1");
	strcat(out_dir, "2");
	must(export("s2", "s1", out_dir, false, NULL) == 0);
	*inc = load(out_dir, "s2");
	close_store();
	must(eng_record_remove_tree(dir) == 0);
	must(eng_store_init(io, dir, &err) == 0);
	open_store();
}

static bool has(const char *name)
{
	struct cat_snapshot snap;

	return eng_catalog_get_snapshot(store->catalog, "c", name, &snap) == 0;
}

/* IP-4 */
Test(engine_transfer, increment_goes_onto_its_base_alone)
{
	struct memory full, inc;

	restore_scene(&full, &inc);
	cr_expect_eq(import(&inc, NULL, NULL), -ESTALE, "without its base: %s", err.text);
	must(import(&full, NULL, NULL) == 0);
	attach(0, 0);
	cr_expect_eq(import(&inc, NULL, NULL), -EBUSY, "attached: %s", err.text);
	must(do_write(0, 5, 0, 4096) == 0);
	detach(0);
	cr_expect_eq(import(&inc, NULL, NULL), -ESTALE, "written to: %s", err.text);
	cr_expect_not(has("s2"));
	must(snapshot("own") == 0);
	cr_expect_eq(import(&inc, NULL, NULL), -ESTALE, "another layer: %s", err.text);
	close_store();
	finish();
	free(full.p);
	free(inc.p);
}

/* IP-1, T15: each kind of operation fails once, from the first one on to where none is left to fail. */
static void import_with_faults(uint32_t op, int error)
{
	struct memory full, inc;
	unsigned files;
	int r = -1;

	restore_scene(&full, &inc);
	must(import(&full, NULL, NULL) == 0);
	files = count_files(store->layers_dir);
	for (uint64_t skip = 0; r < 0; skip++) {
		struct eng_fault_rule rule = {.ops = op,
					      .skip = skip,
					      .error = error,
					      .sticky = true};
		int rule_number;

		rule.path = "layers";
		rule_number = eng_fault_add(fault, &rule);
		must(rule_number >= 0);
		r = import(&inc, NULL, NULL);
		eng_fault_clear(fault);
		if (r < 0) {
			cr_expect_eq(r, error, "skip %llu: %s", (unsigned long long)skip, err.text);
			cr_expect_not(has("s2"), "half of it is there");
			cr_expect_eq(count_files(store->layers_dir), files,
				     "files are left after %llu", (unsigned long long)skip);
		} else {
			must(eng_fault_struck(fault, rule_number) <=
			     1); /* the last sync is best effort */
		}
		must(skip < 200);
	}
	must(has("s2"));
	must(view_holds("s2", 0, 3, 4096, 8192));
	must(view_holds("s2", 0, 0, 32768, 4096));
	must(view_holds("s2", 0, 1, 12288, 20480));
	must(view_holds("s1", 0, 1, 0, 65536));
	close_store();
	finish();
	free(full.p);
	free(inc.p);
}

static int export_files(const char *name, const char *base, const char *to,
			enum fmt_export_format format)
{
	struct eng_export how = {
		.collection = "c",
		.snapshot = name,
		.base = base,
		.dir = to,
		.format = format,
	};
	struct eng_export_result result;

	return eng_store_export(store, &how, &err, &result);
}

static int import_files(const char *from, struct eng_progress *progress)
{
	struct eng_import how = {.dir = from, .progress = progress};
	struct eng_import_result result;

	return eng_store_import(store, &how, &err, &result);
}

/* IP-7, IP-1: the same for image files, read and written; each error is told, and nothing is left. */
static void import_files_with_faults(uint32_t op, int error, const char *path)
{
	struct memory full;
	char images[160];
	unsigned files;
	int r = -1;

	scene();
	snprintf(images, sizeof(images), "%s-files", out_dir);
	must(export("s1", NULL, out_dir, false, NULL) == 0);
	full = load(out_dir, "s1");
	must(export_files("s2", "s1", images, FMT_EXPORT_QCOW2) == 0);
	close_store();
	must(eng_record_remove_tree(dir) == 0);
	must(eng_store_init(io, dir, &err) == 0);
	open_store();
	must(import(&full, NULL, NULL) == 0);
	files = count_files(store->layers_dir);
	for (uint64_t skip = 0; r < 0; skip++) {
		struct eng_fault_rule rule = {.ops = op, .skip = skip, .error = error, .path = path};

		must(eng_fault_add(fault, &rule) >= 0);
		r = import_files(images, NULL);
		eng_fault_clear(fault);
		if (r < 0) {
			cr_expect_eq(r, error, "skip %llu: %s", (unsigned long long)skip, err.text);
			cr_expect_not(has("s2"), "half of it is there");
			cr_expect_eq(count_files(store->layers_dir), files,
				     "files are left after %llu", (unsigned long long)skip);
		} else {
			must(skip > 0);
		}
		must(skip < 200);
	}
	must(view_holds("s2", 0, 3, 4096, 8192));
	must(view_holds("s2", 0, 0, 32768, 4096));
	must(view_holds("s2", 0, 1, 12288, 20480));
	must(view_holds("s2", 1, 2, 1 << 20, 8192));
	close_store();
	finish();
	free(full.p);
}

Test(engine_transfer, import_of_files_meets_a_full_disk)
{
	import_files_with_faults(ENG_FAULT_PWRITE | ENG_FAULT_ALLOCATE, -ENOSPC, "layers");
}

Test(engine_transfer, import_of_files_cannot_read_them)
{
	import_files_with_faults(ENG_FAULT_PREAD, -EIO, "-files");
}

/* XP-5 */
Test(engine_transfer, import_of_files_is_cancelled)
{
	struct eng_progress progress = {.cancel = false};
	unsigned files;

	scene();
	must(export_files("s1", NULL, out_dir, FMT_EXPORT_RAW) == 0);
	close_store();
	must(eng_record_remove_tree(dir) == 0);
	must(eng_store_init(io, dir, &err) == 0);
	open_store();
	files = count_files(store->layers_dir);
	must(eng_progress_cancel(&progress));
	cr_expect_eq(import_files(out_dir, &progress), -ECANCELED, "%s", err.text);
	cr_expect_eq(count_files(store->layers_dir), files);
	cr_expect_not(has("s1"));
	must(import_files(out_dir, NULL) == 0);
	must(view_holds("s1", 0, 1, 0, 65536));
	close_store();
	finish();
}

Test(engine_transfer, import_meets_a_full_disk)
{
	import_with_faults(ENG_FAULT_PWRITE | ENG_FAULT_ALLOCATE, -ENOSPC);
}

Test(engine_transfer, import_meets_failing_syncs)
{
	import_with_faults(ENG_FAULT_FDATASYNC | ENG_FAULT_SYNC_DIR, -EIO);
}

Test(engine_transfer, import_cannot_create)
{
	import_with_faults(ENG_FAULT_CREATE, -EMFILE);
}

/* EX-2 */
static void export_with_faults(uint32_t op, int error)
{
	char part[160];
	int r = -1;

	scene();
	snprintf(part, sizeof(part), "%s.part", out_dir);
	for (uint64_t skip = 0; r < 0; skip++) {
		struct eng_fault_rule rule = {.ops = op,
					      .skip = skip,
					      .error = error,
					      .path = "/out"};

		must(eng_fault_add(fault, &rule) >= 0);
		r = export("s1", NULL, out_dir, false, NULL);
		eng_fault_clear(fault);
		if (r < 0) {
			cr_expect_eq(r, error, "skip %llu: %s", (unsigned long long)skip, err.text);
			cr_expect_not(is_there(part), "a part is left");
			cr_expect_not(is_there(out_dir) && !(op & ENG_FAULT_SYNC_DIR),
				      "half of it has the name");
		}
		must(skip < 200);
		if (is_there(out_dir) && r < 0)
			must(eng_record_remove_tree(out_dir) == 0);
	}
	close_store();
	finish();
}

Test(engine_transfer, export_meets_a_full_disk)
{
	export_with_faults(ENG_FAULT_PWRITE, -ENOSPC);
}

Test(engine_transfer, export_cannot_be_made_durable)
{
	export_with_faults(ENG_FAULT_FDATASYNC | ENG_FAULT_SYNC_DIR | ENG_FAULT_RENAME |
				   ENG_FAULT_MKDIR,
			   -EIO);
}

/* P6: what cannot be read is not exported, and the disk and the offset are named. */
Test(engine_transfer, export_says_where_it_cannot_read)
{
	struct eng_fault_rule rule = {
		.ops = ENG_FAULT_RING_READ, /* of data */
		.error = -EIO,
		.path = "layers",
		.sticky = true,
	};

	scene();
	must(eng_fault_add(fault, &rule) >= 0);
	cr_expect_lt(export("s2", NULL, out_dir, false, NULL), 0);
	cr_expect_neq(strstr(err.text, "c@s2/a/d"), NULL, "%s", err.text);
	eng_fault_clear(fault);
	cr_expect_not(is_there(out_dir));
	close_store();
	finish();
}

/* XP-5 */
Test(engine_transfer, cancelled_ones_leave_nothing)
{
	struct eng_progress progress = {.cancel = true};
	struct memory full, inc;
	unsigned files;

	restore_scene(&full, &inc);
	must(import(&full, NULL, NULL) == 0);
	files = count_files(store->layers_dir);
	must(eng_progress_cancel(&progress));
	cr_expect_eq(import(&inc, NULL, &progress), -ECANCELED, "%s", err.text);
	cr_expect_eq(count_files(store->layers_dir), files);
	cr_expect_not(has("s2"));
	strcat(out_dir, "3");
	cr_expect_eq(export("s1", NULL, out_dir, false, &progress), -ECANCELED, "%s", err.text);
	cr_expect_not(is_there(out_dir));
	strcat(out_dir, ".part");
	cr_expect_not(is_there(out_dir));
	close_store();
	finish();
	free(full.p);
	free(inc.p);
}

static int lift_the_limit(void *arg, uint64_t done, uint64_t total)
{
	struct eng_progress *p = arg;

	(void)total;
	if (done)
		atomic_store(&p->rate, 0);
	return 0;
}

/* JB-15: a byte a second to begin with, whatever is written */
Test(engine_transfer, a_new_limit_holds_for_files_too)
{
	static const enum fmt_export_format formats[] = {FMT_EXPORT_RAW, FMT_EXPORT_QCOW2};

	scene();
	for (unsigned i = 0; i < 2; i++) {
		struct eng_progress progress = {
			.rate = 1,
			.watch = lift_the_limit,
			.watch_arg = &progress,
		};
		struct eng_export how = {
			.collection = "c",
			.snapshot = "s1",
			.format = formats[i],
			.dir = out_dir,
			.progress = &progress,
		};
		struct eng_export_result result;

		must(eng_store_export(store, &how, &err, &result) == 0);
		cr_expect_eq(atomic_load(&progress.done), atomic_load(&progress.total));
		strcat(out_dir, "x");
	}
	close_store();
	finish();
}

/* VF-1, VF-3: every damaged block is found, by disk and offset. */
Test(engine_transfer, verification_finds_every_damaged_block)
{
	struct eng_verify_report report;
	struct memory full, inc;
	struct cat_layer *rows = NULL;
	size_t n = 0;
	char *path;
	FILE *f;

	restore_scene(&full, &inc);
	must(import(&full, NULL, NULL) == 0);
	must(import(&inc, NULL, NULL) == 0);
	must(eng_store_verify_snapshot(store, "c", "s2", NULL, &err, &report) == 0);
	cr_expect_eq(report.damaged, 0);
	cr_expect_eq(report.unverified_bytes, 0);
	eng_verify_report_fini(&report);
	must(eng_catalog_list_layers(store->catalog, NULL, &rows, &n) == 0);
	for (size_t i = 0; i < n; i++) {
		if (!fmt_uuid_is_none(&rows[i].parent))
			continue;
		path = eng_store_layer_path(store, &rows[i].id, "vmo");
		f = fopen(path, "r+b");
		must(f != NULL);
		fseek(f, FMT_DATA_OFFSET + 100, SEEK_SET);
		fputc(0, f);
		fclose(f);
		free(path);
	}
	free(rows);
	must(eng_store_verify_snapshot(store, "c", "s2", NULL, &err, &report) == 0);
	cr_assert_eq(report.damaged, 2, "one block of each disk");
	cr_expect_str_eq(report.findings[0].disk, "a/d0");
	cr_expect_eq(report.findings[0].offset, 0);
	cr_expect_str_eq(report.findings[1].disk, "a/d1");
	cr_expect_eq(report.findings[1].offset, 1 << 20);
	eng_verify_report_fini(&report);
	close_store();
	finish();
	free(full.p);
	free(inc.p);
}
