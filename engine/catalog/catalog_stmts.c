/* SPDX-License-Identifier: MIT */
/*
 * catalog_stmts.c - the catalog's rows as columns, and its statements. Each kind of row is described
 * once, in a table of columns; the SQL and the checks follow from it: the same checks for what
 * callers put (-EINVAL) and for what the database holds (CT-10, -EUCLEAN). All statements are
 * prepared at open. Entered with the catalog's lock held.
 */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "engine/catalog/catalog_impl.h"
#include "format/layer.h"

enum col_type {
	COL_ID,   /* struct fmt_uuid, 16 bytes */
	COL_REF,  /* the same; none is NULL */
	COL_NAME, /* char[], [A-Za-z0-9][A-Za-z0-9._-]{0,63} */
	COL_TEXT, /* char[], any text that fits */
	COL_UINT, /* unsigned of any width, or bool: min..max */
	COL_INT,  /* int64_t */
	COL_BITS, /* uint64_t, all values, kept as the int64_t of the same bits */
};

struct col {
	const char *name;
	const char *expr; /* derived in queries, never put; NULL for a stored column */
	enum col_type type;
	size_t offset, size; /* in the row's struct */
	uint64_t min, max;
};

struct table {
	const char *name;
	size_t key_count; /* the first columns are the key */
	const struct col *cols;
	size_t col_count, row_size;
};

#define COL(name, expr, type, row, field, min, max)                                                \
	{                                                                                          \
		name, expr, type, offsetof(struct row, field),                                     \
			sizeof(((struct row *)NULL)->field), min, max                              \
	}
#define ID(row, field)             COL(#field, NULL, COL_ID, row, field, 0, 0)
#define REF(row, field)            COL(#field, NULL, COL_REF, row, field, 0, 0)
#define NAME(row, field)           COL(#field, NULL, COL_NAME, row, field, 0, 0)
#define TEXT(row, field)           COL(#field, NULL, COL_TEXT, row, field, 0, 0)
#define INT(row, field)            COL(#field, NULL, COL_INT, row, field, 0, 0)
#define BITS(row, field)           COL(#field, NULL, COL_BITS, row, field, 0, 0)
#define BOOL(row, field)           COL(#field, NULL, COL_UINT, row, field, 0, 1)
#define UINT(row, field, min, max) COL(#field, NULL, COL_UINT, row, field, min, max)
#define TABLE(name, keys, cols, row)                                                               \
	{                                                                                          \
		name, keys, cols, sizeof(cols) / sizeof((cols)[0]), sizeof(struct row)             \
	}

static const struct col vm_cols[] = {
	ID(cat_vm, id),
	NAME(cat_vm, name),
	TEXT(cat_vm, guest_agent),
	INT(cat_vm, created_ns),
};
static const struct table vms = TABLE("vms", 1, vm_cols, cat_vm);

static const struct col freeze_cols[] = {
	ID(cat_freeze, vm),
	TEXT(cat_freeze, socket),
	ID(cat_freeze, job),
	INT(cat_freeze, created_ns),
	COL("vm_name", "(SELECT name FROM vms WHERE id = t.vm)", COL_NAME, cat_freeze, vm_name, 0,
	    0),
};
static const struct table freezes = TABLE("freezes", 2, freeze_cols, cat_freeze);

static const struct col disk_cols[] = {
	ID(cat_disk, id),
	ID(cat_disk, vm),
	NAME(cat_disk, name),
	UINT(cat_disk, size, 0, INT64_MAX),
	UINT(cat_disk, block_bits, 12, 16),
	BOOL(cat_disk, independent),
	UINT(cat_disk, position, 0, UINT32_MAX),
	REF(cat_disk, head),
	INT(cat_disk, created_ns),
	COL("vm_name", "(SELECT name FROM vms WHERE id = t.vm)", COL_NAME, cat_disk, vm_name, 0, 0),
};
static const struct table disks = TABLE("disks", 1, disk_cols, cat_disk);

static const struct col layer_cols[] = {
	ID(cat_layer, id),
	ID(cat_layer, disk),
	REF(cat_layer, parent),
	UINT(cat_layer, kind, FMT_KIND_OVERLAY, FMT_KIND_QCOW2),
	UINT(cat_layer, state, CAT_LAYER_PENDING, CAT_LAYER_SEALED),
	UINT(cat_layer, generation, 0, INT64_MAX),
	REF(cat_layer, snapshot),
	TEXT(cat_layer, path),
	BITS(cat_layer, base_dev),
	BITS(cat_layer, base_ino),
	INT(cat_layer, created_ns),
};
static const struct table layers = TABLE("layers", 1, layer_cols, cat_layer);

static const struct col collection_cols[] = {
	ID(cat_collection, id),
	NAME(cat_collection, name),
	INT(cat_collection, created_ns),
	COL("members", "(SELECT count(*) FROM members WHERE collection = t.id)", COL_UINT,
	    cat_collection, members, 0, UINT32_MAX),
};
static const struct table collections = TABLE("collections", 1, collection_cols, cat_collection);

static const struct col member_cols[] = {ID(cat_member, collection), ID(cat_member, vm)};
static const struct table members = TABLE("members", 2, member_cols, cat_member);

static const struct col snapshot_cols[] = {
	ID(cat_snapshot, id),
	ID(cat_snapshot, collection),
	NAME(cat_snapshot, name),
	TEXT(cat_snapshot, element_name),
	UINT(cat_snapshot, state, CAT_SNAPSHOT_INTENT, CAT_SNAPSHOT_DELETING),
	UINT(cat_snapshot, type, 1, 2),
	UINT(cat_snapshot, consistency, 1, 2),
	UINT(cat_snapshot, guest_backup_type, 0, UINT8_MAX),
	UINT(cat_snapshot, disks, 0, UINT32_MAX),
	UINT(cat_snapshot, skipped, 0, UINT32_MAX),
	BOOL(cat_snapshot, automatic),
	INT(cat_snapshot, created_ns),
	INT(cat_snapshot, cut_wall_ns),
	UINT(cat_snapshot, cut_ns, 0, INT64_MAX),
	UINT(cat_snapshot, prepare_ns, 0, INT64_MAX),
	UINT(cat_snapshot, drain_ns, 0, INT64_MAX),
	UINT(cat_snapshot, harden_ns, 0, INT64_MAX),
	UINT(cat_snapshot, total_ns, 0, INT64_MAX),
	UINT(cat_snapshot, max_write_latency_ns, 0, INT64_MAX),
	UINT(cat_snapshot, freeze_ns, 0, INT64_MAX),
	COL("collection_name", "(SELECT name FROM collections WHERE id = t.collection)", COL_NAME,
	    cat_snapshot, collection_name, 0, 0),
};
static const struct table snapshots = TABLE("snapshots", 1, snapshot_cols, cat_snapshot);

static const struct col snapshot_disk_cols[] = {
	ID(cat_snapshot_disk, snapshot),
	ID(cat_snapshot_disk, disk),
	REF(cat_snapshot_disk, layer),
	NAME(cat_snapshot_disk, vm_name),
	NAME(cat_snapshot_disk, disk_name),
	UINT(cat_snapshot_disk, size, 0, INT64_MAX),
	COL("position", NULL, COL_UINT, cat_snapshot_disk, index, 0, UINT32_MAX),
	BOOL(cat_snapshot_disk, skipped),
};
static const struct table snapshot_disks = TABLE("snapshot_disks", 2, snapshot_disk_cols,
						 cat_snapshot_disk);

static const struct col snapshot_guest_cols[] = {
	ID(cat_snapshot_guest, snapshot),
	ID(cat_snapshot_guest, vm),
	NAME(cat_snapshot_guest, vm_name),
	COL("position", NULL, COL_UINT, cat_snapshot_guest, index, 0, UINT32_MAX),
	BOOL(cat_snapshot_guest, frozen),
	UINT(cat_snapshot_guest, frozen_ns, 0, INT64_MAX),
	UINT(cat_snapshot_guest, filesystems, 0, UINT32_MAX),
	TEXT(cat_snapshot_guest, error),
};
static const struct table snapshot_guests = TABLE("snapshot_guests", 2, snapshot_guest_cols,
						  cat_snapshot_guest);

static const struct col refpoint_cols[] = {
	ID(cat_refpoint, id),
	ID(cat_refpoint, collection),
	NAME(cat_refpoint, name),
	TEXT(cat_refpoint, element_name),
	UINT(cat_refpoint, type, 2, 2),
	UINT(cat_refpoint, consistency, 1, 2),
	UINT(cat_refpoint, disks, 0, UINT32_MAX),
	REF(cat_refpoint, snapshot),
	TEXT(cat_refpoint, snapshot_name),
	INT(cat_refpoint, created_ns),
	INT(cat_refpoint, cut_wall_ns),
	COL("collection_name", "(SELECT name FROM collections WHERE id = t.collection)", COL_NAME,
	    cat_refpoint, collection_name, 0, 0),
};
static const struct table refpoints = TABLE("refpoints", 1, refpoint_cols, cat_refpoint);

/* The set itself, "changed", has calls of its own (catalog_refpoints.c). */
static const struct col refpoint_disk_cols[] = {
	ID(cat_refpoint_disk, refpoint),
	ID(cat_refpoint_disk, disk),
	REF(cat_refpoint_disk, layer),
	ID(cat_refpoint_disk, rct),
	ID(cat_refpoint_disk, vm),
	NAME(cat_refpoint_disk, vm_name),
	NAME(cat_refpoint_disk, disk_name),
	UINT(cat_refpoint_disk, size, 0, INT64_MAX),
	COL("position", NULL, COL_UINT, cat_refpoint_disk, index, 0, UINT32_MAX),
	COL("saved_bytes", "ifnull(length(t.changed), 0)", COL_UINT, cat_refpoint_disk, saved_bytes,
	    0, INT64_MAX),
};
static const struct table refpoint_disks = TABLE("refpoint_disks", 2, refpoint_disk_cols,
						 cat_refpoint_disk);

static const struct col job_cols[] = {
	ID(cat_job, id),
	UINT(cat_job, state, 0, UINT16_MAX),
	UINT(cat_job, type, 0, UINT16_MAX),
	UINT(cat_job, percent, 0, 100),
	UINT(cat_job, error_code, 0, UINT16_MAX),
	TEXT(cat_job, name),
	TEXT(cat_job, error_text),
	TEXT(cat_job, status_text),
	REF(cat_job, affected),
	INT(cat_job, submitted_ns),
	INT(cat_job, started_ns),
	INT(cat_job, changed_ns),
	INT(cat_job, ended_ns),
	BOOL(cat_job, cancellable),
	BOOL(cat_job, delete_on_completion),
};
static const struct table jobs = TABLE("jobs", 1, job_cols, cat_job);

static const struct col hold_cols[] = {
	ID(cat_hold, snapshot),
	NAME(cat_hold, tag),
	INT(cat_hold, created_ns),
};
static const struct table holds = TABLE("holds", 2, hold_cols, cat_hold);

/* --- statements --- */

/* With a table and no text: a put. With both: a query, after "SELECT columns FROM table t". */
static const struct {
	const struct table *table;
	const char *text;
} stmts[STMT_COUNT] = {
	[PUT_VM] = {&vms, NULL},
	[PUT_DISK] = {&disks, NULL},
	[PUT_LAYER] = {&layers, NULL},
	[PUT_COLLECTION] = {&collections, NULL},
	[PUT_MEMBER] = {&members, NULL},
	[PUT_SNAPSHOT] = {&snapshots, NULL},
	[PUT_SNAPSHOT_DISK] = {&snapshot_disks, NULL},
	[PUT_SNAPSHOT_GUEST] = {&snapshot_guests, NULL},
	[PUT_FREEZE] = {&freezes, NULL},
	[PUT_REFPOINT] = {&refpoints, NULL},
	[PUT_REFPOINT_DISK] = {&refpoint_disks, NULL},
	[PUT_JOB] = {&jobs, NULL},
	[PUT_HOLD] = {&holds, NULL},

	[GET_VM] = {&vms, "WHERE t.name = ?1"},
	[GET_DISK] = {&disks, "WHERE t.vm = (SELECT id FROM vms WHERE name = ?1) AND t.name = ?2"},
	[GET_DISK_ID] = {&disks, "WHERE t.id = ?1"},
	[GET_LAYER] = {&layers, "WHERE t.id = ?1"},
	[GET_COLLECTION] = {&collections, "WHERE t.name = ?1"},
	[GET_COLLECTION_ID] = {&collections, "WHERE t.id = ?1"},
	[GET_SNAPSHOT] = {&snapshots, "WHERE t.collection = (SELECT id FROM collections "
				      "WHERE name = ?1) AND t.name = ?2"},
	[GET_SNAPSHOT_ID] = {&snapshots, "WHERE t.id = ?1"},
	[GET_REFPOINT] = {&refpoints, "WHERE t.collection = (SELECT id FROM collections "
				      "WHERE name = ?1) AND t.name = ?2"},
	[GET_REFPOINT_ID] = {&refpoints, "WHERE t.id = ?1"},
	[GET_REFPOINT_RCT] = {&refpoint_disks, "WHERE t.rct = ?1"},
	[GET_JOB] = {&jobs, "WHERE t.id = ?1"},

	[LIST_VMS] = {&vms, "ORDER BY t.name"},
	[LIST_DISKS] = {&disks, "JOIN vms v ON v.id = t.vm ORDER BY v.name, t.position, t.name"},
	[LIST_VM_DISKS] = {&disks, "WHERE t.vm = ?1 ORDER BY t.position, t.name"},
	[LIST_LAYERS] = {&layers, "ORDER BY t.disk, t.generation, t.rowid"},
	[LIST_DISK_LAYERS] = {&layers, "WHERE t.disk = ?1 ORDER BY t.generation, t.rowid"},
	/* GB-1: whatever may refer to a layer is asked here. */
	[LIST_GARBAGE] = {&layers,
			  "WHERE t.disk = ?1 AND t.state >= 3 "
			  "AND NOT EXISTS (SELECT 1 FROM layers WHERE parent = t.id) "
			  "AND NOT EXISTS (SELECT 1 FROM snapshot_disks WHERE layer = t.id) "
			  "AND NOT EXISTS (SELECT 1 FROM refpoint_disks WHERE layer = t.id) "
			  "AND NOT EXISTS (SELECT 1 FROM disks WHERE head = t.id) "
			  "ORDER BY t.generation DESC, t.rowid"},
	[LIST_USERS] = {&disks, "WHERE t.id IN (WITH RECURSIVE down (id, disk) AS ("
				"SELECT id, disk FROM layers WHERE id = ?1 UNION "
				"SELECT l.id, l.disk FROM down CROSS JOIN layers l ON "
				"l.parent = down.id) SELECT disk FROM down) ORDER BY t.id"},
	[LIST_CLONES] = {&disks, "JOIN vms v ON v.id = t.vm WHERE t.id IN (SELECT l.disk FROM "
				 "layers p JOIN layers l ON l.parent = p.id "
				 "WHERE p.disk = ?1 AND l.disk <> ?1) ORDER BY v.name, t.name"},
	[LIST_CHILDREN] = {&layers, "WHERE t.parent = ?1 ORDER BY t.generation, t.rowid"},
	[LIST_COLLECTIONS] = {&collections, "ORDER BY t.name"},
	[LIST_MEMBERS] = {&vms, "JOIN members m ON m.vm = t.id WHERE m.collection = ?1 "
				"ORDER BY t.name"},
	[LIST_COLLECTION_DISKS] = {&disks,
				   "JOIN members m ON m.vm = t.vm JOIN vms v ON v.id = t.vm "
				   "WHERE m.collection = ?1 "
				   "ORDER BY v.name, t.position, t.name"},
	[LIST_SNAPSHOTS] = {&snapshots, "ORDER BY t.created_ns, t.rowid"},
	[LIST_COLLECTION_SNAPSHOTS] = {&snapshots, "WHERE t.collection = ?1 "
						   "ORDER BY t.created_ns, t.rowid"},
	[LIST_SNAPSHOT_DISKS] = {&snapshot_disks,
				 "WHERE t.snapshot = ?1 ORDER BY t.position, t.disk"},
	[LIST_SNAPSHOT_GUESTS] = {&snapshot_guests,
				  "WHERE t.snapshot = ?1 ORDER BY t.position, t.vm"},
	[LIST_REFPOINTS] = {&refpoints, "ORDER BY t.created_ns, t.rowid"},
	[LIST_COLLECTION_REFPOINTS] = {&refpoints, "WHERE t.collection = ?1 "
						   "ORDER BY t.created_ns, t.rowid"},
	[LIST_REFPOINT_DISKS] = {&refpoint_disks,
				 "WHERE t.refpoint = ?1 ORDER BY t.position, t.disk"},
	[LIST_LAYER_REFPOINTS] = {&refpoint_disks,
				  "WHERE t.layer = ?1 ORDER BY t.refpoint, t.disk"},
	[LIST_REFPOINT_ENDS] = {&layers,
				"WHERE t.disk = ?1 AND t.state = 4 AND t.kind = 1 "
				"AND t.parent IS NOT NULL "
				"AND EXISTS (SELECT 1 FROM refpoint_disks WHERE layer = t.id) "
				"AND NOT EXISTS (SELECT 1 FROM layers WHERE parent = t.id) "
				"AND NOT EXISTS (SELECT 1 FROM snapshot_disks WHERE layer = t.id) "
				"AND NOT EXISTS (SELECT 1 FROM disks WHERE head = t.id) "
				"ORDER BY t.generation DESC, t.rowid"},
	[LIST_FREEZES] = {&freezes, "ORDER BY t.vm, t.socket"},
	[LIST_VM_FREEZES] = {&freezes, "WHERE t.vm = ?1 ORDER BY t.socket"},
	[LIST_JOBS] = {&jobs, "ORDER BY t.submitted_ns, t.rowid"},
	[LIST_HOLDS] = {&holds, "ORDER BY t.snapshot, t.tag"},
	[LIST_SNAPSHOT_HOLDS] = {&holds, "WHERE t.snapshot = ?1 ORDER BY t.tag"},
	/* UNION drops what has been seen, so that a loop of parents ends. */
	[CHAIN] = {&layers,
		   "WHERE t.id IN (WITH RECURSIVE up (id, parent) AS ("
		   "SELECT id, parent FROM layers WHERE id = ?1 UNION "
		   "SELECT l.id, l.parent FROM up CROSS JOIN layers l ON l.id = up.parent) "
		   "SELECT id FROM up) ORDER BY t.generation"},

	[SET_LAYER_STATE] = {NULL, "UPDATE layers SET state = ?3 WHERE id = ?1"},
	[SET_LAYER_SNAPSHOT] = {NULL, "UPDATE layers SET snapshot = ?2 WHERE id = ?1"},
	[SET_DISK_HEAD] = {NULL, "UPDATE disks SET head = ?2 WHERE id = ?1"},
	[MOVE_CHILDREN] = {NULL, "UPDATE layers SET parent = ?2 WHERE parent = ?1"},
	[MOVE_SNAPSHOTS] = {NULL, "UPDATE snapshot_disks SET layer = ?2 WHERE layer = ?1"},
	[MOVE_REFPOINTS] = {NULL, "UPDATE refpoint_disks SET layer = ?2 WHERE layer = ?1"},
	[SET_REFPOINT_STATE] = {NULL, "UPDATE refpoint_disks SET layer = ?3, changed = ?4 "
				      "WHERE refpoint = ?1 AND disk = ?2"},
	[LOSE_DISK_REFPOINTS] = {NULL, "UPDATE refpoint_disks SET layer = NULL, changed = NULL "
				       "WHERE disk = ?1"},
	[GET_REFPOINT_SET] = {NULL, "SELECT changed FROM refpoint_disks "
				    "WHERE refpoint = ?1 AND disk = ?2"},
	[REMOVE_VM] = {NULL, "DELETE FROM vms WHERE id = ?1"},
	[REMOVE_DISK] = {NULL, "DELETE FROM disks WHERE id = ?1"},
	[REMOVE_LAYER] = {NULL, "DELETE FROM layers WHERE id = ?1"},
	[REMOVE_COLLECTION] = {NULL, "DELETE FROM collections WHERE id = ?1"},
	[REMOVE_MEMBER] = {NULL, "DELETE FROM members WHERE collection = ?1 AND vm = ?2"},
	[REMOVE_SNAPSHOT] = {NULL, "DELETE FROM snapshots WHERE id = ?1"},
	[REMOVE_REFPOINT] = {NULL, "DELETE FROM refpoints WHERE id = ?1"},
	[REMOVE_JOB] = {NULL, "DELETE FROM jobs WHERE id = ?1"},
	[REMOVE_FREEZE] = {NULL, "DELETE FROM freezes WHERE vm = ?1 AND socket = ?2"},
	[REMOVE_HOLD] = {NULL, "DELETE FROM holds WHERE snapshot = ?1 AND tag = ?2"},

	[FACT_GET] = {NULL, "SELECT value FROM facts WHERE key = ?1"},
	[FACT_SET] = {NULL, "INSERT INTO facts (key, value) VALUES (?1, ?2) "
			    "ON CONFLICT (key) DO UPDATE SET value = excluded.value"},
};

/* Stored columns from @first up to @end, each as @format says, which may name it twice. */
static void build_names(sqlite3_str *sql, const struct table *table, size_t first, size_t end,
			const char *format)
{
	for (size_t i = first; i < end && !table->cols[i].expr; i++) {
		sqlite3_str_appendall(sql, i > first ? ", " : "");
		sqlite3_str_appendf(sql, format, table->cols[i].name, table->cols[i].name);
	}
}

static void build_put(sqlite3_str *sql, const struct table *table)
{
	bool only_key = table->key_count == table->col_count;

	sqlite3_str_appendf(sql, "INSERT INTO %s (", table->name);
	build_names(sql, table, 0, table->col_count, "%s");
	sqlite3_str_appendall(sql, ") VALUES (");
	build_names(sql, table, 0, table->col_count, "?");
	sqlite3_str_appendall(sql, ") ON CONFLICT (");
	build_names(sql, table, 0, table->key_count, "%s");
	sqlite3_str_appendall(sql, only_key ? ") DO NOTHING" : ") DO UPDATE SET ");
	build_names(sql, table, table->key_count, table->col_count, "%s = excluded.%s");
}

static void build_query(sqlite3_str *sql, const struct table *table, const char *tail)
{
	sqlite3_str_appendf(sql, "SELECT ");
	for (size_t i = 0; i < table->col_count; i++)
		sqlite3_str_appendf(sql, "%s%s%s", i ? ", " : "", table->cols[i].expr ? "" : "t.",
				    table->cols[i].expr ? table->cols[i].expr
							: table->cols[i].name);
	sqlite3_str_appendf(sql, " FROM %s t %s", table->name, tail);
}

static int prepare_one(struct eng_catalog *cat, enum cat_stmt s)
{
	sqlite3_str *str = sqlite3_str_new(cat->db);
	int code = SQLITE_NOMEM;
	char *sql;

	if (!stmts[s].text)
		build_put(str, stmts[s].table);
	else if (stmts[s].table)
		build_query(str, stmts[s].table, stmts[s].text);
	else
		sqlite3_str_appendall(str, stmts[s].text);
	sql = sqlite3_str_finish(str);
	if (sql)
		code = sqlite3_prepare_v3(cat->db, sql, -1, SQLITE_PREPARE_PERSISTENT,
					  &cat->stmts[s], NULL);
	sqlite3_free(sql);
	return eng_catalog_error(cat, code);
}

int eng_catalog_prepare(struct eng_catalog *cat, struct fmt_error *err)
{
	int r = 0;

	cat->stmts = calloc(STMT_COUNT, sizeof(*cat->stmts));
	if (!cat->stmts)
		return fmt_fail(err, -ENOMEM, "catalog: no memory for its statements");
	for (int s = 0; s < STMT_COUNT && r == 0; s++)
		r = prepare_one(cat, (enum cat_stmt)s);
	return r < 0 ? fmt_fail(err, r, "catalog: %s", sqlite3_errmsg(cat->db)) : 0;
}

void eng_catalog_finalize(struct eng_catalog *cat)
{
	for (int s = 0; cat->stmts && s < STMT_COUNT; s++)
		sqlite3_finalize(cat->stmts[s]);
	free(cat->stmts);
	cat->stmts = NULL;
}

/* --- columns --- */

static bool is_name(const char *s, size_t len)
{
	for (size_t i = 0; i < len; i++) {
		bool alnum = (s[i] >= 'a' && s[i] <= 'z') || (s[i] >= 'A' && s[i] <= 'Z') ||
			     (s[i] >= '0' && s[i] <= '9');

		if (!alnum && (i == 0 || (s[i] != '.' && s[i] != '_' && s[i] != '-')))
			return false;
	}
	return len > 0 && len < CAT_NAME_MAX;
}

static uint64_t load_uint(const uint8_t *at, size_t size)
{
	uint8_t u8;
	uint16_t u16;
	uint32_t u32;
	uint64_t u64;

	switch (size) {
	case 1: memcpy(&u8, at, size); return u8;
	case 2: memcpy(&u16, at, size); return u16;
	case 4: memcpy(&u32, at, size); return u32;
	default:
		assert(size == 8);
		memcpy(&u64, at, size);
		return u64;
	}
}

static void store_uint(uint8_t *at, size_t size, uint64_t value)
{
	uint8_t u8 = (uint8_t)value;
	uint16_t u16 = (uint16_t)value;
	uint32_t u32 = (uint32_t)value;

	memcpy(at,
	       size == 1   ? (void *)&u8
	       : size == 2 ? (void *)&u16
	       : size == 4 ? (void *)&u32
			   : (void *)&value,
	       size);
}

void eng_catalog_bind_ref(sqlite3_stmt *stmt, int i, const struct fmt_uuid *id)
{
	if (fmt_uuid_is_none(id))
		sqlite3_bind_null(stmt, i);
	else
		sqlite3_bind_blob(stmt, i, id->b, 16, SQLITE_STATIC);
}

/* 0 or -EINVAL. What is bound stays the caller's: statements are run and cleared before we return. */
static int bind_col(sqlite3_stmt *stmt, int i, const struct col *col, const uint8_t *at)
{
	const struct fmt_uuid *id = (const void *)at;
	const char *text = (const char *)at;
	uint64_t value;
	size_t len;

	switch (col->type) {
	case COL_ID:
		if (fmt_uuid_is_none(id))
			return -EINVAL;
		/* fall through */
	case COL_REF: eng_catalog_bind_ref(stmt, i, id); return 0;
	case COL_NAME:
	case COL_TEXT:
		len = strnlen(text, col->size);
		if (len == col->size || (col->type == COL_NAME && !is_name(text, len)))
			return -EINVAL;
		sqlite3_bind_text(stmt, i, text, (int)len, SQLITE_STATIC);
		return 0;
	case COL_UINT:
		value = load_uint(at, col->size);
		if (value < col->min || value > col->max)
			return -EINVAL;
		sqlite3_bind_int64(stmt, i, (int64_t)value);
		return 0;
	default: sqlite3_bind_int64(stmt, i, (int64_t)load_uint(at, col->size)); return 0;
	}
}

/* CT-10: nothing in a database is taken on trust; -EUCLEAN. */
static int read_col(sqlite3_stmt *stmt, int i, const struct col *col, uint8_t *at)
{
	int type = sqlite3_column_type(stmt, i);
	const char *text;
	int64_t value;
	size_t len;

	switch (col->type) {
	case COL_REF:
		if (type == SQLITE_NULL)
			return 0; /* the row was zeroed */
				  /* fall through */
	case COL_ID:
		if (type != SQLITE_BLOB || sqlite3_column_bytes(stmt, i) != 16)
			return -EUCLEAN;
		memcpy(at, sqlite3_column_blob(stmt, i), 16);
		return fmt_uuid_is_none((const void *)at) ? -EUCLEAN : 0;
	case COL_NAME:
	case COL_TEXT:
		text = type == SQLITE_TEXT ? (const char *)sqlite3_column_text(stmt, i) : NULL;
		len = (size_t)sqlite3_column_bytes(stmt, i);
		if (!text || len >= col->size || memchr(text, '\0', len) ||
		    (col->type == COL_NAME && !is_name(text, len)))
			return -EUCLEAN;
		memcpy(at, text, len);
		return 0;
	default:
		value = sqlite3_column_int64(stmt, i);
		if (type != SQLITE_INTEGER)
			return -EUCLEAN;
		if (col->type == COL_UINT &&
		    (value < 0 || (uint64_t)value < col->min || (uint64_t)value > col->max))
			return -EUCLEAN;
		store_uint(at, col->size, (uint64_t)value);
		return 0;
	}
}

int eng_catalog_bind_row(struct eng_catalog *cat, enum cat_stmt s, const void *row)
{
	const struct table *table = stmts[s].table;
	char what[128];
	int r;

	for (size_t i = 0; i < table->col_count && !table->cols[i].expr; i++) {
		const struct col *col = &table->cols[i];

		r = bind_col(cat->stmts[s], (int)i + 1, col, (const uint8_t *)row + col->offset);
		if (r < 0) {
			snprintf(what, sizeof(what), "%s.%s", table->name, col->name);
			return eng_catalog_txn_fail(cat, r, what);
		}
	}
	return 0;
}

size_t eng_catalog_row_size(enum cat_stmt s)
{
	return stmts[s].table->row_size;
}

int eng_catalog_read_row(struct eng_catalog *cat, enum cat_stmt s, void *row)
{
	const struct table *table = stmts[s].table;
	int r = 0;

	memset(row, 0, table->row_size);
	for (size_t i = 0; i < table->col_count && r == 0; i++)
		r = read_col(cat->stmts[s], (int)i, &table->cols[i],
			     (uint8_t *)row + table->cols[i].offset);
	return r;
}

int eng_catalog_read_text(sqlite3_stmt *stmt, char *ret, size_t size)
{
	const struct col col = {"text", NULL, COL_TEXT, 0, size, 0, 0};

	memset(ret, 0, size);
	return read_col(stmt, 0, &col, (uint8_t *)ret);
}
