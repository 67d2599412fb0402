/* SPDX-License-Identifier: MIT */
/*
 * one_disk.h - a store with one disk, a model of what it holds, and a folder without a thread: the test
 * folds when it wants to, so that every step of a fold is between two lines of it. SIZE and BLOCKS are
 * the includer's. All of it is static: one program, one store at a time.
 */
#ifndef TESTS_SIM_ONE_DISK_H
#define TESTS_SIM_ONE_DISK_H

#include "engine/fold/fold_impl.h"
#include "fsck/fsck.h"
#include "tests/unit/engine_store.h"

static struct eng_folder folder;
static uint32_t now[2 * BLOCKS], held[4][2 * BLOCKS]; /* writes, by block */
static uint32_t writes;

static inline void start_folder(void)
{
	folder = (struct eng_folder){.store = store};
	pthread_mutex_init(&folder.lock, NULL);
	pthread_cond_init(&folder.changed, NULL);
}

static inline void start(void)
{
	memset(now, 0, sizeof(now));
	writes = 0;
	start_folder();
}

static inline void stop(void)
{
	pthread_cond_destroy(&folder.changed);
	pthread_mutex_destroy(&folder.lock);
}

static inline void put(uint32_t block, uint32_t count)
{
	must(do_write(0, ++writes, (uint64_t)block * BLOCK, (uint64_t)count * BLOCK) == 0);
	for (uint32_t i = 0; i < count; i++)
		now[block + i] = writes;
}

static inline void put_zeros(uint32_t block, uint32_t count)
{
	must(do_op(0, ENG_DISCARD, 0, (uint64_t)block * BLOCK, (uint64_t)count * BLOCK) == 0);
	memset(&now[block], 0, count * sizeof(now[0]));
}

static inline void expect_holds(struct eng_disk *which, const uint32_t *want, const char *when)
{
	uint64_t size = atomic_load(&which->size);
	uint8_t *got = aligned(size), *block = aligned(BLOCK);
	int r = read_into(which, got, 0, size);

	cr_assert_eq(r, 0, "%s: %s", when, strerror(-r));
	for (uint64_t at = 0; at < size; at += BLOCK) {
		uint64_t len = size - at < BLOCK ? size - at : BLOCK;

		fill(block, want[at / BLOCK], at, len);
		cr_assert(!memcmp(block, got + at, len), "%s: block %lu is not write %u", when,
			  at / BLOCK, want[at / BLOCK]);
	}
	free(got);
	free(block);
}

static inline void expect_view(const char *name, const uint32_t *want, const char *when)
{
	struct eng_disk *view;
	char path[64];

	snprintf(path, sizeof(path), "c@%s/a/d0", name);
	must(eng_store_attach(store, queue[1], path, ENG_ATTACH_READ_ONLY, &err, &view) == 0);
	expect_holds(view, want, when);
	must(eng_store_detach(view) == 0);
}

static inline size_t list_layers(struct cat_layer **ret)
{
	struct cat_disk row;
	size_t n;

	must(eng_catalog_get_disk(store->catalog, "a", "d0", &row) == 0);
	must(eng_catalog_list_layers(store->catalog, &row.id, ret, &n) == 0);
	return n;
}

static inline size_t layers(void)
{
	struct cat_layer *rows;
	size_t n = list_layers(&rows);

	free(rows);
	return n;
}

static inline bool all_sealed(void)
{
	struct cat_layer *rows;
	size_t n = list_layers(&rows);
	bool sealed = true;

	for (size_t i = 0; i < n; i++)
		sealed = sealed &&
			 (rows[i].kind != FMT_KIND_OVERLAY || rows[i].state == CAT_LAYER_SEALED ||
			  rows[i].state == CAT_LAYER_ACTIVE);
	free(rows);
	return sealed;
}

static inline void take(const char *name, uint32_t *held_by)
{
	must(snapshot(name) == 0);
	if (held_by)
		memcpy(held_by, now, sizeof(now));
}

static inline void drop(const char *name)
{
	struct cat_job none = {.state = 0};
	bool marked;

	must(eng_store_delete_snapshot(store, "c", name, &none, &marked, &err) == 0);
}

static inline bool swapped(void)
{
	bool none;

	pthread_mutex_lock(&folder.lock);
	none = !folder.swaps;
	pthread_mutex_unlock(&folder.lock);
	return none;
}

static inline uint64_t allocated(void)
{
	struct cat_layer *rows;
	size_t n = list_layers(&rows);
	uint64_t sum = 0;

	for (size_t i = 0; i < n; i++)
		sum += eng_store_layer_bytes(store, &rows[i]);
	free(rows);
	return sum;
}

static inline void note_finding(void *arg, const struct fsck_finding *f)
{
	cr_expect_neq(f->severity, FSCK_CORRUPT, "%s: %s: %s: %s", (const char *)arg, f->rule,
		      f->where, f->message);
}

static inline void expect_sound(const char *when)
{
	struct fsck_summary sum = {0};

	must(fsck_run(machine, dir, note_finding, (void *)when, &err, &sum) == 0);
}

/* A reference point "p" of that layer of the disk. */
static inline void put_point(const struct fmt_uuid *layer)
{
	struct cat_refpoint point = {.name = "p", .type = 2, .consistency = 2, .disks = 1};
	struct cat_refpoint_disk row = {.vm_name = "a", .disk_name = "d0", .size = SIZE};
	struct cat_collection coll;
	struct cat_disk d;

	must(eng_catalog_get_collection(store->catalog, "c", &coll) == 0);
	must(eng_catalog_get_disk(store->catalog, "a", "d0", &d) == 0);
	eng_store_new_id(store, &point.id);
	point.collection = coll.id;
	row.refpoint = row.rct = point.id;
	row.disk = d.id;
	row.vm = d.vm;
	row.layer = *layer;
	must(eng_catalog_begin(store->catalog) == 0);
	eng_catalog_put_refpoint(store->catalog, &point);
	eng_catalog_put_refpoint_disk(store->catalog, &row);
	must(eng_catalog_commit(store->catalog, &err) == 0);
}

#endif
