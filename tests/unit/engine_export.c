/* SPDX-License-Identifier: MIT */
/*
 * engine_export.c - a snapshot that is deleted while somebody begins to read it, or its base: at every
 * operation on a layer's file in turn. It is refused then, or all of it is read (DL-5, EX-4, VF-*).
 */
#include "tests/unit/engine_refpoint.h"

#include <time.h>

#include "engine/transfer/export.h"
#include "engine/transfer/import.h"
#include "engine/transfer/verify.h"

#define SIZE   (1u << 20)
#define CHANGE (49u << 12) /* bytes: of every write */

/* --- who deletes it --- */

struct deleter {
	const char *name;
	pthread_t thread;
	_Atomic bool done;
	bool started;
	int result;
};

static struct deleter deleter;

static void *delete_main(void *arg)
{
	struct deleter *d = arg;
	struct cat_job none = {.type = 0};
	struct fmt_error why;
	bool marked;

	d->result = eng_store_delete_snapshot(store, "c", d->name, &none, &marked, &why);
	atomic_store(&d->done, true);
	return NULL;
}

/* What it waits for may be held by the operation that is struck. */
static void strike(void *arg)
{
	struct deleter *d = arg;

	must(pthread_create(&d->thread, NULL, delete_main, d) == 0);
	d->started = true;
	for (unsigned i = 0; i < 200 && !atomic_load(&d->done); i++)
		nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
}

/* Deletes snapshot @name at the layers' operation number @at from here on. */
static void arm(const char *name, uint64_t at)
{
	struct eng_fault_rule rule = {
		.ops = ENG_FAULT_OPEN | ENG_FAULT_PREAD | ENG_FAULT_RING_READ,
		.path = ".vmo",
		.skip = at,
		.strike = strike,
		.arg = &deleter,
	};

	memset(&deleter, 0, sizeof(deleter));
	deleter.name = name;
	must(eng_fault_add(fault, &rule) >= 0);
}

/* False: there are not as many operations. */
static bool disarm(void)
{
	eng_fault_clear(fault);
	if (!deleter.started)
		return false;
	pthread_join(deleter.thread, NULL);
	must(deleter.result == 0);
	return true;
}

/* --- two snapshots of two disks --- */

static void write_both(unsigned n)
{
	for (unsigned i = 0; i < 2; i++)
		must(do_write(i, 10 * n + i, n * CHANGE, CHANGE) == 0);
}

static void scene(void)
{
	begin(2, SIZE);
	for (unsigned i = 0; i < 2; i++)
		attach(i, 0);
	write_both(0);
	must(rp_cut("s0", false) == 0);
	write_both(1);
	must(rp_cut("s1", false) == 0);
	write_both(2);
	for (unsigned i = 0; i < 2; i++)
		detach(i);
	close_store();
	options.no_folds = false;
	options.fold_rate = UINT64_MAX;
	open_store();
}

static void end(void)
{
	close_store();
	finish();
}

static int export(const char *name, const char *base, char to[160])
{
	struct eng_export how = {
		.collection = "c",
		.snapshot = name,
		.base = base,
		.format = FMT_EXPORT_QCOW2,
		.dir = to,
	};
	struct eng_export_result result;

	snprintf(to, 160, "%s/out-%s", root, name);
	memset(&err, 0, sizeof(err));
	return eng_store_export(store, &how, &err, &result);
}

static void import(const char *from)
{
	struct eng_import how = {.dir = from};
	struct eng_import_result result;

	memset(&err, 0, sizeof(err));
	cr_assert_eq(eng_store_import(store, &how, &err, &result), 0, "%s", err.text);
}

/* The increment from s0 to s1, while @victim is deleted. False: @at is beyond its end. */
static bool export_against(const char *victim, uint64_t at)
{
	char full[160], increment[160];
	bool struck;
	int r;

	scene();
	must(export("s0", NULL, full) == 0);
	close_store();
	open_store();
	arm(victim, at);
	r = export("s1", "s0", increment);
	struck = disarm();
	cr_expect(r == 0 || r == -ENOENT || r == -ESTALE, "%s at %lu: %d, %s", victim, at, r,
		  err.text);
	cr_expect(r == 0 || err.text[0]);
	close_store();
	must(eng_record_remove_tree(dir) == 0);
	must(eng_store_init(io, dir, &err) == 0);
	open_store();
	if (r == 0) {
		import(full);
		import(increment);
		for (unsigned i = 0; i < 2; i++) {
			cr_expect(view_holds("s1", i, i, 0, CHANGE), "%s at %lu", victim, at);
			cr_expect(view_holds("s1", i, 10 + i, CHANGE, CHANGE));
		}
	}
	end();
	return struck;
}

static bool verify(uint64_t at)
{
	struct eng_verify_report report;
	bool struck;
	int r;

	scene();
	arm("s1", at);
	memset(&err, 0, sizeof(err));
	r = eng_store_verify_snapshot(store, "c", "s1", NULL, &err, &report);
	struck = disarm();
	cr_expect(r == 0 || (r == -ENOENT && err.text[0]), "at %lu: %d, %s", at, r, err.text);
	if (r == 0) {
		cr_expect_eq(report.disks, 2);
		cr_expect_eq(report.damaged, 0);
		cr_expect_eq(report.bytes + report.unverified_bytes, 4 * CHANGE, "at %lu", at);
		eng_verify_report_fini(&report);
	}
	end();
	return struck;
}

/* --- tests --- */

/* DL-5, EX-4: it exports what it was, or nothing. */
Test(engine_export, snapshot_is_deleted_meanwhile, .timeout = 120)
{
	uint64_t at = 0;

	while (export_against("s1", at))
		at++;
	cr_expect_gt(at, 8u);
}

/* MF-4: no disk becomes a full one because its base has gone. */
Test(engine_export, base_is_deleted_meanwhile, .timeout = 120)
{
	uint64_t at = 0;

	while (export_against("s0", at))
		at++;
	cr_expect_gt(at, 8u);
}

/* What cannot be read any more is not sound. */
Test(engine_export, verified_snapshot_is_deleted_meanwhile, .timeout = 120)
{
	uint64_t at = 0;

	while (verify(at))
		at++;
	cr_expect_gt(at, 8u);
}
