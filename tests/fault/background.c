/* SPDX-License-Identifier: MIT */
/*
 * background.c - what the background does at the wrong moment. One call of the I/O seam is held up
 * while the rest of the store goes on, which no speed of a disk would do reliably.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/io/io_fault.h"
#include "engine/io/io_record.h"
#include "engine/snapshot/snapshot.h"
#include "fsck/fsck.h"

#define SIZE   (4ull << 20)
#define SECOND 1000000000ull

static struct {
	_Atomic bool armed, reached, released;
} gate;

/* The first one to come waits. */
static void hold_up(void *arg)
{
	(void)arg;
	if (!atomic_exchange(&gate.armed, false))
		return;
	atomic_store(&gate.reached, true);
	while (!atomic_load(&gate.released))
		usleep(1000);
}

static char dir[] = "/dev/shm/vmimg-background-XXXXXX", store_dir[64];
static struct eng_io *plain, *io;
static struct eng_fault *faults;
static struct eng_store *store;
static struct eng_queue *queue;
static struct eng_disk *disk;
static uint8_t content[SIZE];

static void setup(void)
{
	cr_assert_not_null(mkdtemp(dir));
	snprintf(store_dir, sizeof(store_dir), "%s/store", dir);
	cr_assert_eq(eng_io_posix_create(&plain), 0);
	cr_assert_eq(eng_io_posix_set_shm_dir(plain, dir), 0);
	cr_assert_eq(eng_fault_create(plain, &faults), 0);
	io = eng_fault_io(faults);
}

static void teardown(void)
{
	eng_fault_destroy(faults);
	eng_io_destroy(plain);
	cr_expect_eq(eng_record_remove_tree(dir), 0);
}

TestSuite(fault_background, .init = setup, .fini = teardown, .timeout = 120);

static void make_store(void)
{
	struct eng_disk_make make = {.vm = "a", .name = "d", .size = SIZE};
	struct cat_collection c = {.name = "c"};
	struct cat_vm vm = {.name = "a"};
	struct fmt_error err = {{0}};

	cr_assert_eq(eng_store_init(io, store_dir, &err), 0, "%s", err.text);
	cr_assert_eq(eng_store_open(io, store_dir, NULL, &err, &store), 0, "%s", err.text);
	eng_store_new_id(store, &c.id);
	eng_store_new_id(store, &vm.id);
	cr_assert_eq(eng_catalog_begin(store->catalog), 0);
	eng_catalog_put_collection(store->catalog, &c);
	eng_catalog_put_vm(store->catalog, &vm);
	eng_catalog_put_member(store->catalog, &c.id, &vm.id);
	cr_assert_eq(eng_catalog_commit(store->catalog, &err), 0, "%s", err.text);
	cr_assert_eq(eng_store_make_disk(store, &make, &err), 0, "%s", err.text);
	cr_assert_eq(eng_queue_create(io, 8, store->lock_file, &queue), 0);
	cr_assert_eq(eng_store_attach(store, queue, "a/d", 0, &err, &disk), 0, "%s", err.text);
}

static int request(struct eng_disk *to, uint8_t op, void *buf, uint64_t offset, uint64_t len)
{
	struct iovec iov = {buf, len};
	struct eng_request rq = {
		.disk = to,
		.op = op,
		.iovcnt = 1,
		.iov = &iov,
		.offset = offset,
		.length = len,
	};
	struct eng_completion c;

	cr_assert_eq(eng_queue_submit(queue, &rq, 1), 1);
	cr_assert_eq(eng_queue_poll(queue, &c, 1, 20 * SECOND), 1);
	return c.result;
}

static void write_and_flush(unsigned block)
{
	uint8_t *at = content + block * 4096ull;

	memset(at, (int)(block % 255) + 1, 4096);
	cr_assert_eq(request(disk, ENG_WRITE, at, block * 4096ull, 4096), 0);
	cr_assert_eq(request(disk, ENG_FLUSH, NULL, 0, 0), 0);
}

/* Returns the layer that it froze. */
static struct fmt_uuid snapshot(const char *name)
{
	struct eng_snapshot_spec spec = {.type = 1, .consistency = 2, .timeout_ns = 20 * SECOND};
	struct fmt_uuid frozen = disk->head->id;
	struct eng_snapshot_times times;
	struct fmt_error err = {{0}};
	struct eng_snapshot *snap;

	cr_assert_eq(eng_catalog_get_collection(store->catalog, "c", &spec.collection), 0);
	eng_store_new_id(store, &spec.id);
	snprintf(spec.name, sizeof(spec.name), "%s", name);
	cr_assert_eq(eng_snapshot_check(store, &spec, &err, &snap), 0, "%s", err.text);
	cr_assert_eq(eng_snapshot_run(snap, NULL, NULL, &err, &times), 0, "%s", err.text);
	eng_snapshot_destroy(snap);
	return frozen;
}

static bool sealed_within(const struct fmt_uuid *layer, unsigned ms)
{
	struct cat_layer row;

	for (; ms; ms--) {
		cr_assert_eq(eng_catalog_get_layer(store->catalog, layer, &row), 0);
		if (row.state == CAT_LAYER_SEALED)
			return true;
		usleep(1000);
	}
	return false;
}

static void check_snapshot(const char *name)
{
	static uint8_t found[SIZE];
	struct fmt_error err = {{0}};
	struct eng_disk *view;

	cr_assert_eq(eng_store_attach(store, queue, name, ENG_ATTACH_READ_ONLY, &err, &view), 0,
		     "%s", err.text);
	cr_assert_eq(request(view, ENG_READ, found, 0, SIZE), 0, "%s cannot be read", name);
	cr_expect_arr_eq(found, content, SIZE);
	cr_assert_eq(eng_store_detach(view), 0);
}

static void note_finding(void *arg, const struct fsck_finding *f)
{
	(void)arg;
	if (f->severity == FSCK_CORRUPT)
		cr_expect(false, "%s: %s: %s", f->rule, f->where, f->message);
}

/* SL-1, CU-23: the index goes behind the last mapped slot, where zeros may still be on their way */
Test(fault_background, seal_waits_for_space_that_is_being_filled)
{
	struct eng_fault_rule rule = {
		.ops = ENG_FAULT_PWRITE,
		.path = ".vmo",
		.sticky = true,
		.strike = hold_up,
	};
	struct fsck_summary sum = {0};
	struct fmt_error err = {{0}};
	struct fmt_uuid frozen;

	make_store();
	snapshot("s1");
	write_and_flush(0);
	atomic_store(&gate.armed, true);
	cr_assert_geq(eng_fault_add(faults, &rule), 0);
	/* A disk that flushes often has slots and log segments filled with zeros ahead of it. */
	for (unsigned i = 1; i < 200 && !atomic_load(&gate.reached); i++)
		write_and_flush(i);
	cr_assert(atomic_load(&gate.reached), "nothing was filled");
	frozen = snapshot("s2");
	cr_expect(!sealed_within(&frozen, 300), "sealed, and the zeros are still to come");
	atomic_store(&gate.released, true);
	cr_expect(sealed_within(&frozen, 20000), "not sealed when the zeros are there");
	check_snapshot("c@s2/a/d");
	cr_assert_eq(eng_store_detach(disk), 0);
	cr_assert_eq(eng_queue_destroy(queue), 0);
	cr_assert_eq(eng_store_close(store), 0);
	cr_assert_eq(fsck_run(plain, store_dir, note_finding, NULL, &err, &sum), 0, "%s", err.text);
	cr_expect_eq(sum.corruptions, 0u);
}
