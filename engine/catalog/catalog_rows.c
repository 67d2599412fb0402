/* SPDX-License-Identifier: MIT */
/*
 * catalog_rows.c - the catalog's calls: puts, sets, removes, look-ups and lists, each one of the
 * statements of catalog_stmts.c. A failure inside a transaction is what its commit returns (CT-1).
 * Any thread; one at a time inside.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/catalog/catalog.h"
#include "engine/catalog/catalog_impl.h"

/* --- running statements; the lock is held --- */

static void finish(sqlite3_stmt *stmt)
{
	sqlite3_reset(stmt);
	sqlite3_clear_bindings(stmt);
}

/* Runs a statement of a transaction; its first failure is what commit will return (CT-1). */
int eng_catalog_run_locked(struct eng_catalog *cat, enum cat_stmt s, bool must_exist)
{
	sqlite3_stmt *stmt = cat->stmts[s];
	int r, code;

	code = sqlite3_step(stmt);
	r = eng_catalog_error(cat, code);
	if (r < 0)
		eng_catalog_txn_fail(cat, r, sqlite3_errmsg(cat->db));
	else if (must_exist && sqlite3_changes(cat->db) == 0)
		r = eng_catalog_txn_fail(cat, -ENOENT, "no such row");
	finish(stmt);
	return r;
}

/* Takes the lock inside a transaction that has not failed yet. */
int eng_catalog_enter_txn(struct eng_catalog *cat)
{
	int r = eng_catalog_enter(cat);

	if (r < 0)
		return r;
	assert(cat->in_txn);
	r = cat->txn_error;
	if (r < 0)
		eng_catalog_leave(cat);
	return r;
}

int eng_catalog_run_put(struct eng_catalog *cat, enum cat_stmt s, const void *row)
{
	int r = eng_catalog_enter_txn(cat);

	if (r < 0)
		return r;
	r = eng_catalog_bind_row(cat, s, row);
	if (r == 0)
		r = eng_catalog_run_locked(cat, s, false);
	finish(cat->stmts[s]);
	eng_catalog_leave(cat);
	return r;
}

/* Sets and removes: ?1 and ?2 are ids, ?3 a number; those which the statement has. */
static int change(struct eng_catalog *cat, enum cat_stmt s, const struct fmt_uuid *id,
		  const struct fmt_uuid *other, uint32_t value)
{
	sqlite3_stmt *stmt = cat->stmts[s];
	int r = eng_catalog_enter_txn(cat);

	if (r < 0)
		return r;
	sqlite3_bind_blob(stmt, 1, id->b, 16, SQLITE_STATIC);
	if (other)
		eng_catalog_bind_ref(stmt, 2, other);
	if (s == SET_LAYER_STATE)
		sqlite3_bind_int64(stmt, 3, value);
	cat->txn_removes |= s >= REMOVE_VM;
	r = eng_catalog_run_locked(cat, s,
				   s != MOVE_CHILDREN && s != MOVE_SNAPSHOTS &&
					   s != MOVE_REFPOINTS);
	eng_catalog_leave(cat);
	return r;
}

static void bind_key(sqlite3_stmt *stmt, const struct cat_key *key)
{
	if (key->id)
		sqlite3_bind_blob(stmt, 1, key->id->b, 16, SQLITE_STATIC);
	if (key->name)
		sqlite3_bind_text(stmt, 1, key->name, -1, SQLITE_STATIC);
	if (key->name2)
		sqlite3_bind_text(stmt, 2, key->name2, -1, SQLITE_STATIC);
}

int eng_catalog_run_remove(struct eng_catalog *cat, enum cat_stmt s, struct cat_key key)
{
	int r = eng_catalog_enter_txn(cat);

	if (r < 0)
		return r;
	bind_key(cat->stmts[s], &key);
	cat->txn_removes = true;
	r = eng_catalog_run_locked(cat, s, true);
	eng_catalog_leave(cat);
	return r;
}

int eng_catalog_run_list(struct eng_catalog *cat, enum cat_stmt s, struct cat_key key, void *ret,
			 size_t *count)
{
	size_t n = 0, room = 0, size = eng_catalog_row_size(s);
	sqlite3_stmt *stmt = cat->stmts[s];
	uint8_t *rows = NULL, *grown;
	int code, r = eng_catalog_enter(cat);

	if (r < 0)
		return r;
	bind_key(stmt, &key);
	while ((code = sqlite3_step(stmt)) == SQLITE_ROW) {
		if (n == room) {
			room = room ? room * 2 : 16;
			grown = reallocarray(rows, room, size);
			r = grown ? 0 : -ENOMEM;
			if (r < 0)
				goto out;
			rows = grown;
		}
		r = eng_catalog_read_row(cat, s, rows + n * size);
		if (r < 0)
			goto out;
		n++;
	}
	r = eng_catalog_error(cat, code);
	if (r < 0)
		goto out;
	memcpy(ret, &rows, sizeof(rows));
	*count = n;
	rows = NULL;
out:
	finish(stmt);
	eng_catalog_leave(cat);
	free(rows);
	return r;
}

int eng_catalog_run_get(struct eng_catalog *cat, enum cat_stmt s, struct cat_key key, void *ret)
{
	sqlite3_stmt *stmt = cat->stmts[s];
	void *row = malloc(eng_catalog_row_size(s));
	int code, r = -ENOMEM;

	if (!row)
		return r;
	r = eng_catalog_enter(cat);
	if (r < 0)
		goto out;
	bind_key(stmt, &key);
	code = sqlite3_step(stmt);
	if (code == SQLITE_ROW)
		r = eng_catalog_read_row(cat, s, row);
	else
		r = code == SQLITE_DONE ? -ENOENT : eng_catalog_error(cat, code);
	finish(stmt);
	eng_catalog_leave(cat);
	if (r == 0)
		memcpy(ret, row, eng_catalog_row_size(s));
out:
	free(row);
	return r;
}

/* --- the interface: puts --- */

int eng_catalog_put_vm(struct eng_catalog *cat, const struct cat_vm *vm)
{
	return eng_catalog_run_put(cat, PUT_VM, vm);
}

int eng_catalog_put_disk(struct eng_catalog *cat, const struct cat_disk *disk)
{
	return eng_catalog_run_put(cat, PUT_DISK, disk);
}

int eng_catalog_put_layer(struct eng_catalog *cat, const struct cat_layer *layer)
{
	return eng_catalog_run_put(cat, PUT_LAYER, layer);
}

int eng_catalog_put_collection(struct eng_catalog *cat, const struct cat_collection *coll)
{
	return eng_catalog_run_put(cat, PUT_COLLECTION, coll);
}

int eng_catalog_put_member(struct eng_catalog *cat, const struct fmt_uuid *coll,
			   const struct fmt_uuid *vm)
{
	struct cat_member member = {.collection = *coll, .vm = *vm};

	return eng_catalog_run_put(cat, PUT_MEMBER, &member);
}

int eng_catalog_put_snapshot(struct eng_catalog *cat, const struct cat_snapshot *snap)
{
	return eng_catalog_run_put(cat, PUT_SNAPSHOT, snap);
}

int eng_catalog_put_snapshot_disk(struct eng_catalog *cat, const struct cat_snapshot_disk *disk)
{
	return eng_catalog_run_put(cat, PUT_SNAPSHOT_DISK, disk);
}

int eng_catalog_put_snapshot_guest(struct eng_catalog *cat, const struct cat_snapshot_guest *guest)
{
	return eng_catalog_run_put(cat, PUT_SNAPSHOT_GUEST, guest);
}

int eng_catalog_put_freeze(struct eng_catalog *cat, const struct cat_freeze *freeze)
{
	return eng_catalog_run_put(cat, PUT_FREEZE, freeze);
}

int eng_catalog_put_job(struct eng_catalog *cat, const struct cat_job *job)
{
	return eng_catalog_run_put(cat, PUT_JOB, job);
}

/* --- sets and removes --- */

int eng_catalog_set_layer_state(struct eng_catalog *cat, const struct fmt_uuid *layer,
				uint32_t state)
{
	int r;

	if (state >= CAT_LAYER_PENDING && state <= CAT_LAYER_SEALED)
		return change(cat, SET_LAYER_STATE, layer, NULL, state);
	r = eng_catalog_enter_txn(cat);
	if (r < 0)
		return r;
	r = eng_catalog_txn_fail(cat, -EINVAL, "layers.state");
	eng_catalog_leave(cat);
	return r;
}

int eng_catalog_set_layer_snapshot(struct eng_catalog *cat, const struct fmt_uuid *layer,
				   const struct fmt_uuid *snapshot)
{
	return change(cat, SET_LAYER_SNAPSHOT, layer, snapshot, 0);
}

int eng_catalog_set_disk_head(struct eng_catalog *cat, const struct fmt_uuid *disk,
			      const struct fmt_uuid *layer)
{
	return change(cat, SET_DISK_HEAD, disk, layer, 0);
}

int eng_catalog_replace_layer(struct eng_catalog *cat, const struct fmt_uuid *old,
			      const struct fmt_uuid *with)
{
	int r = change(cat, MOVE_CHILDREN, old, with, 0);

	if (r == 0)
		r = change(cat, MOVE_SNAPSHOTS, old, with, 0);
	return r < 0 ? r : change(cat, MOVE_REFPOINTS, old, with, 0);
}

int eng_catalog_remove_vm(struct eng_catalog *cat, const struct fmt_uuid *id)
{
	return change(cat, REMOVE_VM, id, NULL, 0);
}

int eng_catalog_remove_disk(struct eng_catalog *cat, const struct fmt_uuid *id)
{
	return change(cat, REMOVE_DISK, id, NULL, 0);
}

int eng_catalog_remove_layer(struct eng_catalog *cat, const struct fmt_uuid *id)
{
	return change(cat, REMOVE_LAYER, id, NULL, 0);
}

int eng_catalog_remove_collection(struct eng_catalog *cat, const struct fmt_uuid *id)
{
	return change(cat, REMOVE_COLLECTION, id, NULL, 0);
}

int eng_catalog_remove_member(struct eng_catalog *cat, const struct fmt_uuid *coll,
			      const struct fmt_uuid *vm)
{
	return change(cat, REMOVE_MEMBER, coll, vm, 0);
}

int eng_catalog_remove_snapshot(struct eng_catalog *cat, const struct fmt_uuid *id)
{
	return change(cat, REMOVE_SNAPSHOT, id, NULL, 0);
}

int eng_catalog_remove_job(struct eng_catalog *cat, const struct fmt_uuid *id)
{
	return change(cat, REMOVE_JOB, id, NULL, 0);
}

int eng_catalog_remove_freeze(struct eng_catalog *cat, const struct fmt_uuid *vm,
			      const char *socket)
{
	sqlite3_stmt *stmt = cat->stmts[REMOVE_FREEZE];
	int r = eng_catalog_enter_txn(cat);

	if (r < 0)
		return r;
	sqlite3_bind_blob(stmt, 1, vm->b, 16, SQLITE_STATIC);
	sqlite3_bind_text(stmt, 2, socket, -1, SQLITE_STATIC);
	r = eng_catalog_run_locked(cat, REMOVE_FREEZE, false);
	eng_catalog_leave(cat);
	return r;
}

/* --- facts --- */

int eng_catalog_fact_get(struct eng_catalog *cat, const char *key, char value[CAT_TEXT_MAX])
{
	sqlite3_stmt *stmt = cat->stmts[FACT_GET];
	char text[CAT_TEXT_MAX] = "";
	int code, r = eng_catalog_enter(cat);

	if (r < 0)
		return r;
	bind_key(stmt, &(struct cat_key){.name = key});
	code = sqlite3_step(stmt);
	if (code == SQLITE_ROW)
		r = eng_catalog_read_text(stmt, text, sizeof(text));
	else
		r = code == SQLITE_DONE ? -ENOENT : eng_catalog_error(cat, code);
	finish(stmt);
	eng_catalog_leave(cat);
	if (r == 0)
		memcpy(value, text, sizeof(text));
	return r;
}

int eng_catalog_fact_set(struct eng_catalog *cat, const char *key, const char *value)
{
	int r, committed;
	bool alone;

	if (strlen(value) >= CAT_TEXT_MAX)
		return -EINVAL;
	r = eng_catalog_enter(cat);
	if (r < 0)
		return r;
	alone = !cat->in_txn;
	r = alone ? eng_catalog_begin(cat) : cat->txn_error;
	if (r < 0)
		goto out;
	bind_key(cat->stmts[FACT_SET], &(struct cat_key){.name = key, .name2 = value});
	r = eng_catalog_run_locked(cat, FACT_SET, false);
	if (alone) {
		committed = eng_catalog_commit(cat, NULL);
		r = r < 0 ? r : committed;
	}
out:
	eng_catalog_leave(cat);
	return r;
}

/* --- look-ups --- */

int eng_catalog_get_vm(struct eng_catalog *cat, const char *name, struct cat_vm *ret)
{
	return eng_catalog_run_get(cat, GET_VM, (struct cat_key){.name = name}, ret);
}

int eng_catalog_get_disk(struct eng_catalog *cat, const char *vm, const char *name,
			 struct cat_disk *ret)
{
	return eng_catalog_run_get(cat, GET_DISK, (struct cat_key){.name = vm, .name2 = name}, ret);
}

int eng_catalog_get_disk_id(struct eng_catalog *cat, const struct fmt_uuid *id,
			    struct cat_disk *ret)
{
	return eng_catalog_run_get(cat, GET_DISK_ID, (struct cat_key){.id = id}, ret);
}

int eng_catalog_get_layer(struct eng_catalog *cat, const struct fmt_uuid *id, struct cat_layer *ret)
{
	return eng_catalog_run_get(cat, GET_LAYER, (struct cat_key){.id = id}, ret);
}

int eng_catalog_get_collection(struct eng_catalog *cat, const char *name,
			       struct cat_collection *ret)
{
	return eng_catalog_run_get(cat, GET_COLLECTION, (struct cat_key){.name = name}, ret);
}

int eng_catalog_get_collection_id(struct eng_catalog *cat, const struct fmt_uuid *id,
				  struct cat_collection *ret)
{
	return eng_catalog_run_get(cat, GET_COLLECTION_ID, (struct cat_key){.id = id}, ret);
}

int eng_catalog_get_snapshot(struct eng_catalog *cat, const char *collection, const char *name,
			     struct cat_snapshot *ret)
{
	return eng_catalog_run_get(cat, GET_SNAPSHOT,
				   (struct cat_key){.name = collection, .name2 = name}, ret);
}

int eng_catalog_get_snapshot_id(struct eng_catalog *cat, const struct fmt_uuid *id,
				struct cat_snapshot *ret)
{
	return eng_catalog_run_get(cat, GET_SNAPSHOT_ID, (struct cat_key){.id = id}, ret);
}

int eng_catalog_get_job(struct eng_catalog *cat, const struct fmt_uuid *id, struct cat_job *ret)
{
	return eng_catalog_run_get(cat, GET_JOB, (struct cat_key){.id = id}, ret);
}

/* --- lists --- */

int eng_catalog_list_vms(struct eng_catalog *cat, struct cat_vm **ret, size_t *count)
{
	return eng_catalog_run_list(cat, LIST_VMS, (struct cat_key){0}, ret, count);
}

int eng_catalog_list_disks(struct eng_catalog *cat, const struct fmt_uuid *vm,
			   struct cat_disk **ret, size_t *count)
{
	return eng_catalog_run_list(cat, vm ? LIST_VM_DISKS : LIST_DISKS,
				    (struct cat_key){.id = vm}, ret, count);
}

int eng_catalog_list_layers(struct eng_catalog *cat, const struct fmt_uuid *disk,
			    struct cat_layer **ret, size_t *count)
{
	return eng_catalog_run_list(cat, disk ? LIST_DISK_LAYERS : LIST_LAYERS,
				    (struct cat_key){.id = disk}, ret, count);
}

int eng_catalog_list_children(struct eng_catalog *cat, const struct fmt_uuid *layer,
			      struct cat_layer **ret, size_t *count)
{
	return eng_catalog_run_list(cat, LIST_CHILDREN, (struct cat_key){.id = layer}, ret, count);
}

int eng_catalog_list_users(struct eng_catalog *cat, const struct fmt_uuid *layer,
			   struct cat_disk **ret, size_t *count)
{
	return eng_catalog_run_list(cat, LIST_USERS, (struct cat_key){.id = layer}, ret, count);
}

int eng_catalog_list_clones(struct eng_catalog *cat, const struct fmt_uuid *disk,
			    struct cat_disk **ret, size_t *count)
{
	return eng_catalog_run_list(cat, LIST_CLONES, (struct cat_key){.id = disk}, ret, count);
}

int eng_catalog_list_garbage(struct eng_catalog *cat, const struct fmt_uuid *disk,
			     struct cat_layer **ret, size_t *count)
{
	return eng_catalog_run_list(cat, LIST_GARBAGE, (struct cat_key){.id = disk}, ret, count);
}

int eng_catalog_list_collections(struct eng_catalog *cat, struct cat_collection **ret,
				 size_t *count)
{
	return eng_catalog_run_list(cat, LIST_COLLECTIONS, (struct cat_key){0}, ret, count);
}

int eng_catalog_list_members(struct eng_catalog *cat, const struct fmt_uuid *coll,
			     struct cat_vm **ret, size_t *count)
{
	return eng_catalog_run_list(cat, LIST_MEMBERS, (struct cat_key){.id = coll}, ret, count);
}

int eng_catalog_list_collection_disks(struct eng_catalog *cat, const struct fmt_uuid *coll,
				      struct cat_disk **ret, size_t *count)
{
	return eng_catalog_run_list(cat, LIST_COLLECTION_DISKS, (struct cat_key){.id = coll}, ret,
				    count);
}

int eng_catalog_list_snapshots(struct eng_catalog *cat, const struct fmt_uuid *coll,
			       struct cat_snapshot **ret, size_t *count)
{
	return eng_catalog_run_list(cat, coll ? LIST_COLLECTION_SNAPSHOTS : LIST_SNAPSHOTS,
				    (struct cat_key){.id = coll}, ret, count);
}

int eng_catalog_list_snapshot_disks(struct eng_catalog *cat, const struct fmt_uuid *snapshot,
				    struct cat_snapshot_disk **ret, size_t *count)
{
	return eng_catalog_run_list(cat, LIST_SNAPSHOT_DISKS, (struct cat_key){.id = snapshot}, ret,
				    count);
}

int eng_catalog_list_snapshot_guests(struct eng_catalog *cat, const struct fmt_uuid *snapshot,
				     struct cat_snapshot_guest **ret, size_t *count)
{
	return eng_catalog_run_list(cat, LIST_SNAPSHOT_GUESTS, (struct cat_key){.id = snapshot},
				    ret, count);
}

int eng_catalog_list_freezes(struct eng_catalog *cat, const struct fmt_uuid *vm,
			     struct cat_freeze **ret, size_t *count)
{
	return eng_catalog_run_list(cat, vm ? LIST_VM_FREEZES : LIST_FREEZES,
				    (struct cat_key){.id = vm}, ret, count);
}

int eng_catalog_list_jobs(struct eng_catalog *cat, struct cat_job **ret, size_t *count)
{
	return eng_catalog_run_list(cat, LIST_JOBS, (struct cat_key){0}, ret, count);
}

int eng_catalog_find_snapshot(struct eng_catalog *cat, const char *collection, const char *name,
			      struct fmt_error *err, struct cat_snapshot *ret)
{
	int r = eng_catalog_get_snapshot(cat, collection, name, ret);

	if (r == 0 && ret->state != CAT_SNAPSHOT_COMPLETE)
		r = -ENOENT;
	return r < 0 ? fmt_fail(err, r, "%s@%s: %s", collection, name,
				r == -ENOENT ? "no such snapshot" : strerror(-r))
		     : 0;
}

int eng_catalog_find_members(struct eng_catalog *cat, const char *collection, const char *name,
			     struct fmt_error *err, struct cat_snapshot *ret,
			     struct cat_snapshot_disk **rows, size_t *count)
{
	struct cat_snapshot snap;
	int r = eng_catalog_enter(cat);

	if (r < 0)
		return fmt_fail(err, r, "%s@%s: %s", collection, name, strerror(-r));
	r = eng_catalog_find_snapshot(cat, collection, name, err, &snap);
	if (r == 0) {
		r = eng_catalog_list_snapshot_disks(cat, &snap.id, rows, count);
		if (r < 0)
			fmt_fail(err, r, "%s@%s: cannot list its disks", collection, name);
	}
	eng_catalog_leave(cat);
	if (r == 0)
		*ret = snap;
	return r;
}

#define JOB_COMPLETED 7

void eng_catalog_complete_job(struct cat_job *job, int64_t now_ns)
{
	job->state = JOB_COMPLETED;
	job->percent = 100;
	job->cancellable = false;
	job->changed_ns = now_ns;
	job->ended_ns = now_ns;
	strcpy(job->status_text, "completed");
}

int eng_catalog_put_completed(struct eng_catalog *cat, const struct cat_job *job,
			      const struct fmt_uuid *affected, int64_t now_ns)
{
	struct cat_job row;

	if (!job || fmt_uuid_is_none(&job->id))
		return 0;
	row = *job;
	if (affected)
		row.affected = *affected;
	eng_catalog_complete_job(&row, now_ns);
	return eng_catalog_put_job(cat, &row);
}

/* CT-11: sorted by generation, each row must stand on the one before it. */
int eng_catalog_chain(struct eng_catalog *cat, const struct fmt_uuid *top, struct cat_layer **ret,
		      size_t *count)
{
	struct cat_layer *rows = NULL;
	size_t n = 0;
	int r = eng_catalog_run_list(cat, CHAIN, (struct cat_key){.id = top}, &rows, &n);

	if (r < 0)
		return r;
	r = -ENOENT;
	if (n == 0)
		goto out;
	r = -EUCLEAN;
	if (!fmt_uuid_is_none(&rows[0].parent) || !fmt_uuid_equal(&rows[n - 1].id, top))
		goto out;
	for (size_t i = 1; i < n; i++) {
		if (!fmt_uuid_equal(&rows[i].parent, &rows[i - 1].id) ||
		    rows[i].generation <= rows[i - 1].generation)
			goto out;
	}
	*ret = rows;
	*count = n;
	rows = NULL;
	r = 0;
out:
	free(rows);
	return r;
}
