/* SPDX-License-Identifier: MIT */
/*
 * catalog.h - what the catalog's tests share: a catalog in a directory of its own, over an I/O object
 * that can be told to fail, and rows with every field set that follow from a number. One thread.
 */
#ifndef TESTS_UNIT_CATALOG_H
#define TESTS_UNIT_CATALOG_H

#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/catalog/catalog.h"
#include "engine/io/io_fault.h"
#include "engine/io/io_record.h"

static struct eng_io *posix, *io;
static struct eng_fault *fault;
static struct eng_catalog *cat;
static struct fmt_error err;
static char dir[300], db_path[320], log_path[330];

/* Ids that look random, as real ones do. */
static inline struct fmt_uuid id_of(unsigned kind, uint64_t n)
{
	uint64_t h = (kind * 1000003ull + n + 1) * 0x9e3779b97f4a7c15;
	struct fmt_uuid id;

	memcpy(id.b, &h, 8);
	h = (h ^ h >> 29) * 0xbf58476d1ce4e5b9;
	memcpy(id.b + 8, &h, 8);
	return id;
}

enum { VM = 1, DISK, LAYER, COLL, SNAP, JOB };

/* The same for an argument; the latest few stay valid. */
static inline const struct fmt_uuid *idp(unsigned kind, uint64_t n)
{
	static struct fmt_uuid ids[4];
	static unsigned next;
	struct fmt_uuid *id = &ids[next++ % 4];

	*id = id_of(kind, n);
	return id;
}

static inline void setup(void)
{
	const char *tmp = getenv("TMPDIR");

	snprintf(dir, sizeof(dir), "%s/vmimg-catalog-XXXXXX", tmp ? tmp : "/tmp");
	cr_assert(mkdtemp(dir), "no directory for the test");
	snprintf(db_path, sizeof(db_path), "%s/catalog.db", dir);
	snprintf(log_path, sizeof(log_path), "%s/catalog.db-wal", dir);
	cr_assert_eq(eng_io_posix_create(&posix), 0);
	cr_assert_eq(eng_fault_create(posix, &fault), 0);
	io = eng_fault_io(fault);
	cr_assert_eq(eng_catalog_open(io, db_path, true, &err, &cat), 0, "%s", err.text);
}

static inline void teardown(void)
{
	eng_catalog_close(cat);
	eng_fault_destroy(fault);
	eng_record_remove_tree(dir);
	eng_io_destroy(posix);
}

static inline int open_again(void)
{
	eng_catalog_close(cat);
	cat = NULL;
	return eng_catalog_open(io, db_path, false, &err, &cat);
}

static inline void begin(void)
{
	cr_assert_eq(eng_catalog_begin(cat), 0);
}

static inline void commit(void)
{
	int r = eng_catalog_commit(cat, &err);

	cr_assert_eq(r, 0, "commit: %d %s", r, err.text);
}

/* --- rows with every field set --- */

static inline struct cat_vm make_vm(unsigned n)
{
	struct cat_vm vm = {.id = id_of(VM, n), .created_ns = -5 + n};

	snprintf(vm.name, sizeof(vm.name), "vm%03u", n);
	snprintf(vm.guest_agent, sizeof(vm.guest_agent), "/run/ga-%u.sock", n);
	return vm;
}

static inline struct cat_disk make_disk(unsigned n, unsigned vm)
{
	struct cat_disk disk = {
		.id = id_of(DISK, n),
		.vm = id_of(VM, vm),
		.size = INT64_MAX - n,
		.block_bits = 12 + n % 5,
		.independent = n % 2,
		.position = n,
		.head = id_of(LAYER, n),
		.created_ns = INT64_MAX,
	};

	snprintf(disk.name, sizeof(disk.name), "d%u", n);
	snprintf(disk.vm_name, sizeof(disk.vm_name), "vm%03u", vm);
	return disk;
}

static inline struct cat_layer make_layer(uint64_t n, unsigned disk)
{
	return (struct cat_layer){
		.id = id_of(LAYER, n),
		.disk = id_of(DISK, disk),
		.kind = 2,
		.state = CAT_LAYER_ACTIVE,
		.created_ns = 77,
	};
}

static inline struct cat_collection make_collection(unsigned n)
{
	struct cat_collection coll = {.id = id_of(COLL, n), .created_ns = 3};

	snprintf(coll.name, sizeof(coll.name), "coll%u", n);
	return coll;
}

static inline struct cat_snapshot make_snapshot(unsigned n, unsigned coll)
{
	struct cat_snapshot snap = {
		.id = id_of(SNAP, n),
		.collection = id_of(COLL, coll),
		.state = CAT_SNAPSHOT_INTENT,
		.type = 2,
		.consistency = 1,
		.guest_backup_type = 255,
		.disks = 7,
		.skipped = UINT32_MAX,
		.created_ns = 1000 - (int)n,
		.cut_wall_ns = -1,
		.cut_ns = 1,
		.prepare_ns = 2,
		.drain_ns = 3,
		.harden_ns = 4,
		.total_ns = INT64_MAX,
		.max_write_latency_ns = 6,
		.freeze_ns = 7,
	};

	snprintf(snap.name, sizeof(snap.name), "s%u", n);
	snprintf(snap.collection_name, sizeof(snap.collection_name), "coll%u", coll);
	snprintf(snap.element_name, sizeof(snap.element_name), "before \"the\" update\n%u", n);
	return snap;
}

static inline struct cat_snapshot_disk make_snapshot_disk(unsigned snap, unsigned disk)
{
	struct cat_snapshot_disk row = {
		.snapshot = id_of(SNAP, snap),
		.disk = id_of(DISK, disk),
		.layer = id_of(LAYER, disk),
		.vm_name = "old-vm",
		.size = 4096,
		.index = 1000 - disk,
	};

	snprintf(row.disk_name, sizeof(row.disk_name), "old%u", disk);
	return row;
}

static inline struct cat_snapshot_guest make_snapshot_guest(unsigned snap, unsigned vm)
{
	struct cat_snapshot_guest row = {
		.snapshot = id_of(SNAP, snap),
		.vm = id_of(VM, vm),
		.vm_name = "old-vm",
		.index = 1000 - vm,
		.frozen = true,
		.frozen_ns = INT64_MAX,
		.filesystems = UINT32_MAX,
	};

	memset(row.error, 'e', sizeof(row.error) - 1);
	return row;
}

static inline struct cat_freeze make_freeze(unsigned vm)
{
	struct cat_freeze row = {.vm = id_of(VM, vm), .job = id_of(JOB, vm), .created_ns = 5};

	memset(row.socket, '/', sizeof(row.socket) - 1);
	return row;
}

static inline struct cat_job make_job(unsigned n)
{
	struct cat_job job = {
		.id = id_of(JOB, n),
		.state = 7,
		.type = 65535,
		.percent = 100,
		.error_code = 32768,
		.affected = id_of(SNAP, n),
		.submitted_ns = 100 - (int)n,
		.started_ns = 2,
		.changed_ns = 3,
		.ended_ns = 4,
		.cancellable = true,
	};

	snprintf(job.name, sizeof(job.name), "prod@s%u", n);
	memset(job.error_text, 'e', sizeof(job.error_text) - 1);
	memset(job.status_text, 's', sizeof(job.status_text) - 1);
	return job;
}

static inline void put_vm(unsigned n)
{
	struct cat_vm vm = make_vm(n);

	cr_assert_eq(eng_catalog_put_vm(cat, &vm), 0);
}

static inline void put_disk(unsigned n, unsigned vm)
{
	struct cat_disk disk = make_disk(n, vm);
	struct cat_layer layer = make_layer(n, n);

	cr_assert_eq(eng_catalog_put_disk(cat, &disk), 0);
	cr_assert_eq(eng_catalog_put_layer(cat, &layer), 0);
}

static inline void put_collection(unsigned n)
{
	struct cat_collection coll = make_collection(n);

	cr_assert_eq(eng_catalog_put_collection(cat, &coll), 0);
}

static inline void put_member(unsigned coll, unsigned vm)
{
	struct fmt_uuid c = id_of(COLL, coll), v = id_of(VM, vm);

	cr_assert_eq(eng_catalog_put_member(cat, &c, &v), 0);
}

/* A VM with a disk, in a collection with a snapshot of it. */
static inline void put_little_store(void)
{
	struct cat_snapshot_disk member = make_snapshot_disk(0, 0);
	struct cat_snapshot snap = make_snapshot(0, 0);
	struct fmt_uuid layer = id_of(LAYER, 0);

	begin();
	put_vm(0);
	put_disk(0, 0);
	put_collection(0);
	put_member(0, 0);
	cr_assert_eq(eng_catalog_put_snapshot(cat, &snap), 0);
	cr_assert_eq(eng_catalog_put_snapshot_disk(cat, &member), 0);
	cr_assert_eq(eng_catalog_set_layer_snapshot(cat, &layer, &snap.id), 0);
	commit();
}

static inline size_t count_vms(void)
{
	struct cat_vm *vms = NULL;
	size_t n = 0;

	cr_assert_eq(eng_catalog_list_vms(cat, &vms, &n), 0);
	free(vms);
	return n;
}

static inline void write_file(const char *path, const void *data, size_t len)
{
	struct eng_file *file;

	cr_assert_eq(eng_io_open(posix, path, ENG_OPEN_WRITE | ENG_OPEN_CREATE | ENG_OPEN_TRUNC,
				 &file),
		     0);
	cr_assert_eq(eng_io_pwrite(posix, file, data, len, 0), 0);
	eng_io_close(posix, file);
}

/* A whole file, to be freed. */
static inline uint8_t *read_file(const char *path, size_t *len)
{
	struct eng_file *file;
	struct eng_stat st;
	uint8_t *data;

	cr_assert_eq(eng_io_open(posix, path, 0, &file), 0, "%s", path);
	cr_assert_eq(eng_io_fstat(posix, file, &st), 0);
	data = malloc(st.size + 1);
	cr_assert_eq(eng_io_pread(posix, file, data, st.size, 0), (ssize_t)st.size);
	eng_io_close(posix, file);
	*len = st.size;
	return data;
}

#endif
