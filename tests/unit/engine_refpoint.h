/* SPDX-License-Identifier: MIT */
/*
 * engine_refpoint.h - reference points in tests of the engine: made, and asked what has changed since,
 * on threads of their own where the disk's worker, the test itself, has to turn meanwhile.
 */
#ifndef TESTS_UNIT_ENGINE_REFPOINT_H
#define TESTS_UNIT_ENGINE_REFPOINT_H

#include "engine/diff/diff.h"
#include "engine/fold/fold.h"
#include "engine/fold/fold_refpoints.h"
#include "engine/snapshot/refpoint.h"
#include "tests/unit/engine_store.h"

struct rp_call {
	pthread_t thread;
	_Atomic bool done;
	int (*run)(struct rp_call *call);
	const char *name, *snapshot;
	struct cat_disk disk;
	struct eng_blocks *set;
	struct fmt_error why;
	bool marked;
	int result;
};

static inline void *rp_main(void *arg)
{
	struct rp_call *call = arg;

	call->result = call->run(call);
	atomic_store(&call->done, true);
	return NULL;
}

static inline int rp_call(struct rp_call *call)
{
	atomic_store(&call->done, false);
	must(pthread_create(&call->thread, NULL, rp_main, call) == 0);
	turn_until(atomic_load(&call->done));
	pthread_join(call->thread, NULL);
	if (call->result < 0)
		err = call->why;
	return call->result;
}

/* --- making --- */

/* A recovery snapshot, or with @refpoint a point, of collection "c". */
static inline int rp_cut(const char *name, bool refpoint)
{
	struct eng_snapshot_spec spec = {
		.type = 2,
		.consistency = 2,
		.timeout_ns = 10 * SECOND,
		.refpoint = refpoint,
	};
	struct shot s = {.stop_at = -1};
	int r;

	must(eng_catalog_get_collection(store->catalog, "c", &spec.collection) == 0);
	eng_store_new_id(store, &spec.id);
	snprintf(spec.name, sizeof(spec.name), "%s", name);
	atomic_store(&s.phase, -1);
	sem_init(&s.go, 0, 0);
	r = eng_snapshot_check(store, &spec, &s.why, &s.snap);
	if (r < 0)
		return r;
	shot_launch(&s);
	return shot_end(&s);
}

static struct cat_job rp_job; /* of the next conversions; its id none: they have no job */

static inline int rp_run_convert(struct rp_call *call)
{
	struct cat_refpoint point = {.created_ns = 1};
	struct cat_job job = rp_job;

	eng_store_new_id(store, &point.id);
	snprintf(point.name, sizeof(point.name), "%s", call->name);
	return eng_refpoint_convert(store, "c", call->snapshot, &point, &job, &call->marked,
				    &call->why);
}

static inline int rp_convert(const char *snapshot_name, const char *name)
{
	struct rp_call call = {
		.run = rp_run_convert,
		.name = name,
		.snapshot = snapshot_name,
	};

	return rp_call(&call);
}

static inline int rp_destroy(const char *name)
{
	struct cat_job none = {.type = 0};

	return eng_refpoint_destroy(store, "c", name, &none, &err);
}

static inline int rp_run_delete(struct rp_call *call)
{
	struct cat_job none = {.type = 0};

	return eng_store_delete_snapshot(store, "c", call->name, &none, &call->marked, &call->why);
}

static inline int rp_delete_snapshot(const char *name)
{
	struct rp_call call = {.run = rp_run_delete, .name = name};

	return rp_call(&call);
}

/* --- asking --- */

/* From the point to now, or to @call->snapshot. A fold may come between the two look-ups. */
static inline int rp_run_changes(struct rp_call *call)
{
	struct eng_state from = {0}, to = {0};
	struct cat_refpoint_disk row;
	struct eng_blocks *saved = NULL;
	struct cat_refpoint point;
	int r = eng_catalog_get_refpoint(store->catalog, "c", call->name, &point);

	if (r == 0)
		r = eng_refpoint_state(store, &point.id, &call->disk.id, &call->why, &row, &saved);
	if (r < 0)
		return r;
	from.layer = row.layer;
	from.size = row.size;
	from.extra = saved;
	if (call->snapshot) {
		struct cat_snapshot_disk *rows = NULL;
		struct cat_snapshot snap;
		size_t n = 0;

		must(eng_catalog_get_snapshot(store->catalog, "c", call->snapshot, &snap) == 0);
		must(eng_catalog_list_snapshot_disks(store->catalog, &snap.id, &rows, &n) == 0);
		for (size_t i = 0; i < n; i++)
			if (fmt_uuid_equal(&rows[i].disk, &call->disk.id)) {
				to.layer = rows[i].layer;
				to.size = rows[i].size;
			}
		free(rows);
	}
	r = eng_diff(store, &call->disk, &from, &to, &call->why, &call->set);
	if (r == 0) {
		r = eng_refpoint_unmoved(store, &point.id, &call->disk.id, &from.layer, saved);
		if (r < 0)
			eng_blocks_destroy(call->set);
	}
	eng_blocks_destroy(saved);
	return r;
}

/* What has changed of disk "a/d0" since point @name: @map, a byte a block, is set to 1 where it has. */
static inline int rp_note(void *arg, uint64_t first, uint64_t count)
{
	memset((uint8_t *)arg + first, 1, count);
	return 0;
}

static inline int rp_changes(const char *name, const char *to, uint8_t *map, uint64_t blocks)
{
	struct rp_call call = {.run = rp_run_changes, .name = name, .snapshot = to};
	int r = -ENOENT;

	must(eng_catalog_get_disk(store->catalog, "a", "d0", &call.disk) == 0);
	for (int i = 0; i < 100 && r == -ENOENT; i++)
		r = rp_call(&call);
	if (r < 0)
		return r;
	memset(map, 0, blocks);
	must(eng_blocks_each(call.set, 0, blocks, rp_note, map) == 0);
	eng_blocks_destroy(call.set);
	return 0;
}

/* --- the store's layers --- */

static inline size_t rp_layers(void)
{
	struct cat_layer *rows = NULL;
	size_t n = 0;

	must(eng_catalog_list_layers(store->catalog, NULL, &rows, &n) == 0);
	free(rows);
	return n;
}

static inline bool rp_is_sealed(void)
{
	struct cat_layer *rows = NULL;
	bool sealed = true;
	size_t n = 0;

	must(eng_catalog_list_layers(store->catalog, NULL, &rows, &n) == 0);
	for (size_t i = 0; i < n; i++)
		sealed = sealed &&
			 (rows[i].kind != FMT_KIND_OVERLAY || rows[i].state != CAT_LAYER_HARDENED);
	free(rows);
	return sealed;
}

#endif
