/* SPDX-License-Identifier: MIT */
/*
 * catalog_refpoints.c - the catalog's calls for reference points (RP-*). Their saved sets are blobs
 * beside the rows, so that a set changes in the very transaction that moves its point (T29). Any
 * thread; one at a time inside.
 */
#include <errno.h>
#include <stdlib.h>

#include "engine/catalog/catalog_impl.h"

/* --- inside a transaction --- */

int eng_catalog_put_refpoint(struct eng_catalog *cat, const struct cat_refpoint *point)
{
	return eng_catalog_run_put(cat, PUT_REFPOINT, point);
}

int eng_catalog_put_refpoint_disk(struct eng_catalog *cat, const struct cat_refpoint_disk *disk)
{
	return eng_catalog_run_put(cat, PUT_REFPOINT_DISK, disk);
}

int eng_catalog_set_refpoint_state(struct eng_catalog *cat, const struct fmt_uuid *refpoint,
				   const struct fmt_uuid *disk, const struct fmt_uuid *layer,
				   const void *set, size_t set_bytes)
{
	sqlite3_stmt *stmt = cat->stmts[SET_REFPOINT_STATE];
	int r = eng_catalog_enter_txn(cat);

	if (r < 0)
		return r;
	sqlite3_bind_blob(stmt, 1, refpoint->b, 16, SQLITE_STATIC);
	sqlite3_bind_blob(stmt, 2, disk->b, 16, SQLITE_STATIC);
	eng_catalog_bind_ref(stmt, 3, layer);
	if (set)
		sqlite3_bind_blob64(stmt, 4, set, set_bytes, SQLITE_STATIC);
	r = eng_catalog_run_locked(cat, SET_REFPOINT_STATE, true);
	eng_catalog_leave(cat);
	return r;
}

int eng_catalog_lose_refpoints(struct eng_catalog *cat, const struct fmt_uuid *disk)
{
	int r = eng_catalog_enter_txn(cat);

	if (r < 0)
		return r;
	sqlite3_bind_blob(cat->stmts[LOSE_DISK_REFPOINTS], 1, disk->b, 16, SQLITE_STATIC);
	r = eng_catalog_run_locked(cat, LOSE_DISK_REFPOINTS, false);
	eng_catalog_leave(cat);
	return r;
}

int eng_catalog_remove_refpoint(struct eng_catalog *cat, const struct fmt_uuid *id)
{
	return eng_catalog_run_remove(cat, REMOVE_REFPOINT, (struct cat_key){.id = id});
}

/* --- look-ups --- */

int eng_catalog_get_refpoint(struct eng_catalog *cat, const char *collection, const char *name,
			     struct cat_refpoint *ret)
{
	return eng_catalog_run_get(cat, GET_REFPOINT,
				   (struct cat_key){.name = collection, .name2 = name}, ret);
}

int eng_catalog_get_refpoint_id(struct eng_catalog *cat, const struct fmt_uuid *id,
				struct cat_refpoint *ret)
{
	return eng_catalog_run_get(cat, GET_REFPOINT_ID, (struct cat_key){.id = id}, ret);
}

int eng_catalog_get_refpoint_rct(struct eng_catalog *cat, const struct fmt_uuid *rct,
				 struct cat_refpoint_disk *ret)
{
	return eng_catalog_run_get(cat, GET_REFPOINT_RCT, (struct cat_key){.id = rct}, ret);
}

static int find_disk(struct eng_catalog *cat, const struct fmt_uuid *refpoint,
		     const struct fmt_uuid *disk, struct cat_refpoint_disk *ret)
{
	struct cat_refpoint_disk *rows = NULL;
	size_t n = 0;
	int r = eng_catalog_list_refpoint_disks(cat, refpoint, &rows, &n);

	if (r < 0)
		return r;
	r = -ENOENT;
	for (size_t i = 0; i < n; i++)
		if (fmt_uuid_equal(&rows[i].disk, disk)) {
			*ret = rows[i];
			r = 0;
		}
	free(rows);
	return r;
}

/* The lock is held. */
static int read_set(struct eng_catalog *cat, const struct fmt_uuid *refpoint,
		    const struct fmt_uuid *disk, void **set, size_t *set_bytes)
{
	sqlite3_stmt *stmt = cat->stmts[GET_REFPOINT_SET];
	void *copy = NULL;
	size_t len = 0;
	int code, type, r;

	sqlite3_bind_blob(stmt, 1, refpoint->b, 16, SQLITE_STATIC);
	sqlite3_bind_blob(stmt, 2, disk->b, 16, SQLITE_STATIC);
	code = sqlite3_step(stmt);
	r = code == SQLITE_DONE ? -ENOENT : eng_catalog_error(cat, code);
	if (r < 0)
		goto out;
	type = sqlite3_column_type(stmt, 0);
	if (type != SQLITE_BLOB && type != SQLITE_NULL) { /* CT-10 */
		r = -EUCLEAN;
		goto out;
	}
	if (type == SQLITE_BLOB) {
		const void *blob = sqlite3_column_blob(stmt, 0);

		len = (size_t)sqlite3_column_bytes(stmt, 0);
		copy = malloc(len ? len : 1);
		r = copy && (blob || !len) ? 0 : -ENOMEM;
		if (r == 0 && len)
			memcpy(copy, blob, len);
	}
	if (r == 0) {
		*set = copy;
		*set_bytes = len;
		copy = NULL;
	}
out:
	free(copy);
	sqlite3_reset(stmt);
	sqlite3_clear_bindings(stmt);
	return r;
}

int eng_catalog_get_refpoint_disk(struct eng_catalog *cat, const struct fmt_uuid *refpoint,
				  const struct fmt_uuid *disk, struct cat_refpoint_disk *ret,
				  void **set, size_t *set_bytes)
{
	struct cat_refpoint_disk row;
	int r = eng_catalog_enter(cat); /* held over both: no fold commits in between */

	if (r < 0)
		return r;
	r = find_disk(cat, refpoint, disk, &row);
	if (r == 0)
		r = read_set(cat, refpoint, disk, set, set_bytes);
	if (r == 0)
		*ret = row;
	eng_catalog_leave(cat);
	return r;
}

/* --- lists --- */

int eng_catalog_list_refpoints(struct eng_catalog *cat, const struct fmt_uuid *coll,
			       struct cat_refpoint **ret, size_t *count)
{
	return eng_catalog_run_list(cat, coll ? LIST_COLLECTION_REFPOINTS : LIST_REFPOINTS,
				    (struct cat_key){.id = coll}, ret, count);
}

int eng_catalog_list_refpoint_disks(struct eng_catalog *cat, const struct fmt_uuid *refpoint,
				    struct cat_refpoint_disk **ret, size_t *count)
{
	return eng_catalog_run_list(cat, LIST_REFPOINT_DISKS, (struct cat_key){.id = refpoint}, ret,
				    count);
}

int eng_catalog_list_layer_refpoints(struct eng_catalog *cat, const struct fmt_uuid *layer,
				     struct cat_refpoint_disk **ret, size_t *count)
{
	return eng_catalog_run_list(cat, LIST_LAYER_REFPOINTS, (struct cat_key){.id = layer}, ret,
				    count);
}

int eng_catalog_list_refpoint_ends(struct eng_catalog *cat, const struct fmt_uuid *disk,
				   struct cat_layer **ret, size_t *count)
{
	return eng_catalog_run_list(cat, LIST_REFPOINT_ENDS, (struct cat_key){.id = disk}, ret,
				    count);
}
