/* SPDX-License-Identifier: MIT */
/*
 * changes.c - GetVirtualDiskChanges, and the states of disks behind names and ids (DF-9 to DF-12). What a
 * name stands for is looked up anew where a fold has moved it meanwhile. Any thread.
 */
#include "api/changes.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/fold/fold_refpoints.h"

#define TRIES 20u /* of a look at a state that a fold moves */

static struct eng_catalog *catalog_of(const struct vmimg_service *svc)
{
	return svc->store->catalog;
}

/* --- points --- */

static void take_snapshot(const struct cat_snapshot *row, struct api_point *ret)
{
	*ret = (struct api_point){
		.kind = API_POINT_SNAPSHOT,
		.id = row->id,
		.collection = row->collection,
	};
	api_name_join(ret->name, row->collection_name, '@', row->name);
}

static void take_refpoint(const struct cat_refpoint *row, struct api_point *ret)
{
	*ret = (struct api_point){
		.kind = API_POINT_REFPOINT,
		.id = row->id,
		.collection = row->collection,
	};
	api_name_join(ret->name, row->collection_name, '#', row->name);
}

static int find_by_name(struct vmimg_service *svc, const char *collection, char sep,
			const char *name, struct api_point *ret)
{
	struct cat_snapshot snapshot;
	struct cat_refpoint refpoint;
	int r;

	if (sep == '#') {
		r = eng_catalog_get_refpoint(catalog_of(svc), collection, name, &refpoint);
		if (r == 0)
			take_refpoint(&refpoint, ret);
		return r;
	}
	r = eng_catalog_find_snapshot(catalog_of(svc), collection, name, NULL, &snapshot);
	if (r == 0)
		take_snapshot(&snapshot, ret);
	return r;
}

static int find_by_id(struct vmimg_service *svc, const struct fmt_uuid *id, struct api_point *ret)
{
	struct cat_refpoint_disk disk;
	struct cat_snapshot snapshot;
	struct cat_refpoint refpoint;
	int r = eng_catalog_get_snapshot_id(catalog_of(svc), id, &snapshot);

	if (r == 0 && snapshot.state == CAT_SNAPSHOT_COMPLETE) {
		take_snapshot(&snapshot, ret);
		return 0;
	}
	if (r == 0 || r == -ENOENT)
		r = eng_catalog_get_refpoint_id(catalog_of(svc), id, &refpoint);
	if (r == 0) {
		take_refpoint(&refpoint, ret);
		return 0;
	}
	if (r == -ENOENT)
		r = eng_catalog_get_refpoint_rct(catalog_of(svc), id, &disk);
	if (r == 0)
		r = eng_catalog_get_refpoint_id(catalog_of(svc), &disk.refpoint, &refpoint);
	if (r < 0)
		return r;
	take_refpoint(&refpoint, ret);
	ret->only = disk.disk;
	return 0;
}

int api_point_find(struct vmimg_service *svc, const char *name, struct api_point *ret)
{
	char collection[CAT_NAME_MAX], own[CAT_NAME_MAX];
	struct fmt_uuid id;

	if (api_name_split(name, '@', collection, own) == 0)
		return find_by_name(svc, collection, '@', own, ret);
	if (api_name_split(name, '#', collection, own) == 0)
		return find_by_name(svc, collection, '#', own, ret);
	if (fmt_uuid_parse(name, &id) == 0 && !fmt_uuid_is_none(&id))
		return find_by_id(svc, &id, ret);
	return -EINVAL;
}

/* --- a point's disks --- */

static void put_disk(struct api_point_disk *to, const struct fmt_uuid *disk, const char *vm,
		     const char *name, uint64_t size, bool lost)
{
	to->disk = *disk;
	to->size = size;
	to->lost = lost;
	api_name_join(to->name, vm, '/', name);
}

static int disks_of_snapshot(struct vmimg_service *svc, const struct fmt_uuid *id,
			     struct api_point_disk **ret, size_t *count)
{
	struct cat_snapshot_disk *rows = NULL;
	size_t n = 0, used = 0;
	int r = eng_catalog_list_snapshot_disks(catalog_of(svc), id, &rows, &n);

	if (r == 0 && !n)
		r = -ENOENT; /* deleted since it was found */
	*ret = r == 0 ? calloc(n + 1, sizeof(**ret)) : NULL;
	for (size_t i = 0; *ret && i < n; i++)
		if (!rows[i].skipped)
			put_disk(&(*ret)[used++], &rows[i].disk, rows[i].vm_name, rows[i].disk_name,
				 rows[i].size, false);
	free(rows);
	*count = used;
	return r == 0 && !*ret ? -ENOMEM : r;
}

static int disks_of_refpoint(struct vmimg_service *svc, const struct fmt_uuid *id,
			     struct api_point_disk **ret, size_t *count)
{
	struct cat_refpoint_disk *rows = NULL;
	size_t n = 0;
	int r = eng_catalog_list_refpoint_disks(catalog_of(svc), id, &rows, &n);

	if (r == 0 && !n)
		r = -ENOENT; /* destroyed since it was found */
	*ret = r == 0 ? calloc(n + 1, sizeof(**ret)) : NULL;
	for (size_t i = 0; *ret && i < n; i++)
		put_disk(&(*ret)[i], &rows[i].disk, rows[i].vm_name, rows[i].disk_name,
			 rows[i].size, fmt_uuid_is_none(&rows[i].layer));
	free(rows);
	*count = n;
	return r == 0 && !*ret ? -ENOMEM : r;
}

static int disks_now(struct vmimg_service *svc, const struct fmt_uuid *collection,
		     struct api_point_disk **ret, size_t *count)
{
	struct cat_disk *rows = NULL;
	size_t n = 0, used = 0;
	int r = eng_catalog_list_collection_disks(catalog_of(svc), collection, &rows, &n);

	*ret = r == 0 ? calloc(n + 1, sizeof(**ret)) : NULL;
	for (size_t i = 0; *ret && i < n; i++)
		if (!rows[i].independent)
			put_disk(&(*ret)[used++], &rows[i].id, rows[i].vm_name, rows[i].name,
				 rows[i].size, false);
	free(rows);
	*count = used;
	return r == 0 && !*ret ? -ENOMEM : r;
}

int api_point_disks(struct vmimg_service *svc, const struct api_point *point,
		    const struct fmt_uuid *collection, struct api_point_disk **ret, size_t *count)
{
	struct api_point_disk *disks = NULL;
	int r = point->kind == API_POINT_SNAPSHOT
			? disks_of_snapshot(svc, &point->id, &disks, count)
		: point->kind == API_POINT_REFPOINT
			? disks_of_refpoint(svc, &point->id, &disks, count)
			: disks_now(svc, collection, &disks, count);

	if (r == 0)
		*ret = disks;
	return r;
}

/* --- a disk's state at a point --- */

static int state_of_snapshot(struct vmimg_service *svc, const struct fmt_uuid *id,
			     const struct fmt_uuid *disk, struct api_state *ret)
{
	struct cat_snapshot_disk *rows = NULL;
	size_t n = 0;
	int r = eng_catalog_list_snapshot_disks(catalog_of(svc), id, &rows, &n);

	if (r == 0)
		r = -ENOENT;
	for (size_t i = 0; r == -ENOENT && i < n; i++)
		if (!rows[i].skipped && fmt_uuid_equal(&rows[i].disk, disk)) {
			ret->eng.layer = rows[i].layer;
			ret->eng.size = rows[i].size;
			r = 0;
		}
	free(rows);
	return r;
}

static int state_of_refpoint(struct vmimg_service *svc, const struct fmt_uuid *id,
			     const struct fmt_uuid *disk, struct fmt_error *err,
			     struct api_state *ret)
{
	struct cat_refpoint_disk row;
	int r = eng_refpoint_state(svc->store, id, disk, err, &row, &ret->extra);

	if (r < 0)
		return r == -ENODATA ? -ENOTRECOVERABLE : r; /* RP-15 */
	ret->eng.layer = row.layer;
	ret->eng.size = row.size;
	ret->eng.extra = ret->extra;
	return 0;
}

int api_point_state(struct vmimg_service *svc, const struct api_point *point,
		    const struct fmt_uuid *disk, struct fmt_error *err, struct api_state *ret)
{
	int r = 0;

	*ret = (struct api_state){.extra = NULL};
	if (!fmt_uuid_is_none(&point->only) && !fmt_uuid_equal(&point->only, disk))
		r = -ENOENT;
	else if (point->kind == API_POINT_SNAPSHOT)
		r = state_of_snapshot(svc, &point->id, disk, ret);
	else if (point->kind == API_POINT_REFPOINT)
		r = state_of_refpoint(svc, &point->id, disk, err, ret);
	if (r == -ENOENT)
		fmt_fail(err, r, "%s: does not hold this disk", point->name);
	return r;
}

int api_point_unmoved(struct vmimg_service *svc, const struct api_point *point,
		      const struct fmt_uuid *disk, const struct api_state *was)
{
	struct api_state is = {.extra = NULL};
	int r = 0;

	if (point->kind == API_POINT_REFPOINT) {
		r = eng_refpoint_unmoved(svc->store, &point->id, disk, &was->eng.layer, was->extra);
		return r == -ENODATA ? -ENOENT : r; /* lost since: the next look says so */
	}
	if (point->kind == API_POINT_SNAPSHOT)
		r = state_of_snapshot(svc, &point->id, disk, &is);
	if (r == 0 && point->kind == API_POINT_SNAPSHOT &&
	    !fmt_uuid_equal(&is.eng.layer, &was->eng.layer))
		r = -ENOENT;
	return r;
}

static int diff_once(struct vmimg_service *svc, struct cat_disk *row, const struct api_point *from,
		     const struct api_point *to, struct fmt_error *err, uint64_t *size,
		     struct eng_blocks **ret, bool *found)
{
	struct api_state a = {.extra = NULL}, b = {.extra = NULL};
	struct eng_blocks *made = NULL;
	int r = api_point_state(svc, from, &row->id, err, &a);

	if (r == 0)
		r = api_point_state(svc, to, &row->id, err, &b);
	*found = r == 0;
	if (r == 0)
		r = eng_diff(svc->store, row, &a.eng, &b.eng, err, &made);
	if (r == 0)
		r = api_point_unmoved(svc, from, &row->id, &a);
	if (r == 0)
		r = api_point_unmoved(svc, to, &row->id, &b);
	if (r == 0) {
		*size = b.eng.size ? b.eng.size : row->size;
		*ret = made;
		made = NULL;
	}
	eng_blocks_destroy(made);
	eng_blocks_destroy(a.extra);
	eng_blocks_destroy(b.extra);
	return r;
}

int api_point_diff(struct vmimg_service *svc, const struct fmt_uuid *disk,
		   const struct api_point *from, const struct api_point *to, struct fmt_error *err,
		   struct cat_disk *row, uint64_t *size, struct eng_blocks **ret)
{
	struct fmt_error why = {""};
	bool found = true;
	int r = -ENOENT;

	/* A layer that is gone when it is asked for: a fold has put another one in its place. */
	for (unsigned i = 0; i < TRIES && found && r == -ENOENT; i++) {
		why.text[0] = 0;
		r = eng_catalog_get_disk_id(catalog_of(svc), disk, row);
		if (r == 0)
			r = diff_once(svc, row, from, to, &why, size, ret, &found);
		else
			found = false;
	}
	if (r == -ENOENT && found) /* what the catalog names is not there (P6) */
		r = -ENOTRECOVERABLE;
	return r < 0 ? fmt_fail(err, r, "%s", why.text[0] ? why.text : strerror(-r)) : 0;
}

/* --- GetVirtualDiskChanges --- */

struct region {
	uint64_t first, end; /* bytes */
	uint32_t bits;       /* of a block */
	struct vmimg_changes *ret;
	size_t cap;
};

static int make_room(struct region *region)
{
	struct vmimg_changes *c = region->ret;
	size_t cap = region->cap ? 2 * region->cap : 256;
	uint64_t *p = realloc(c->changed_byte_offsets, cap * sizeof(*p));

	if (!p)
		return -ENOMEM;
	c->changed_byte_offsets = p;
	p = realloc(c->changed_byte_lengths, cap * sizeof(*p));
	if (!p)
		return -ENOMEM;
	c->changed_byte_lengths = p;
	region->cap = cap;
	return 0;
}

static int add_change(void *arg, uint64_t first, uint64_t count)
{
	struct region *region = arg;
	struct vmimg_changes *c = region->ret;
	uint64_t start = first << region->bits, end = (first + count) << region->bits;
	int r = c->count == region->cap ? make_room(region) : 0;

	start = start > region->first ? start : region->first;
	end = end < region->end ? end : region->end;
	if (r < 0 || start >= end)
		return r;
	c->changed_byte_offsets[c->count] = start;
	c->changed_byte_lengths[c->count++] = end - start;
	return 0;
}

void vmimg_changes_free(struct vmimg_changes *changes)
{
	if (!changes)
		return;
	free(changes->changed_byte_offsets);
	free(changes->changed_byte_lengths);
	*changes = (struct vmimg_changes){0};
}

/* DF-10: what cannot be told is not what nobody has heard of. */
static uint32_t changes_code(int r)
{
	switch (r) {
	case -EUCLEAN:
	case -EBADMSG:
	case -ENOTRECOVERABLE:
	case -ENOTSUP: return VMIMG_V_INVALID_STATE;
	case -ENOENT: return VMIMG_V_INVALID_PARAMETER;
	default: return api_vendor_code(r);
	}
}

uint32_t api_point_path(struct vmimg_service *svc, const char *path, struct vmimg_error *err,
			struct fmt_uuid *disk, struct api_point *point)
{
	const char *at = path ? strchr(path, '@') : NULL, *slash = at ? strchr(at, '/') : NULL;
	char snapshot[2 * CAT_NS_MAX], vm[CAT_NAME_MAX], name[CAT_NAME_MAX];
	struct api_point_disk *disks = NULL;
	struct cat_disk row;
	size_t n = 0;
	int r;

	*point = (struct api_point){.kind = API_POINT_NOW, .name = "now"};
	if ((at && (!slash || (size_t)(slash - path) >= sizeof(snapshot))) ||
	    api_name_split(slash ? slash + 1 : path, '/', vm, name) < 0)
		return api_answer(err, VMIMG_V_INVALID_PARAMETER,
				  "path: '%.140s' is no disk, expected VM/DISK or "
				  "COLLECTION@NAME/VM/DISK",
				  path ? path : "");
	if (!at) {
		r = eng_catalog_get_disk(catalog_of(svc), vm, name, &row);
		*disk = row.id;
		return r == 0 ? 0
			      : api_answer(err,
					   r == -ENOENT ? VMIMG_V_NOT_FOUND : api_vendor_code(r),
					   "path: %s: %s", path,
					   r == -ENOENT ? "no such disk" : strerror(-r));
	}
	memcpy(snapshot, path, (size_t)(slash - path));
	snapshot[slash - path] = 0;
	r = api_point_find(svc, snapshot, point);
	if (r == 0)
		r = api_point_disks(svc, point, NULL, &disks, &n);
	if (r == 0)
		r = -ENOENT;
	for (size_t i = 0; r == -ENOENT && i < n; i++)
		if (!strcmp(disks[i].name, slash + 1)) {
			*disk = disks[i].disk;
			r = 0;
		}
	free(disks);
	return r == 0 ? 0
		      : api_answer(err, r == -ENOENT ? VMIMG_V_NOT_FOUND : api_vendor_code(r),
				   "path: %s: %s", path,
				   r == -ENOENT ? "no such disk in a snapshot" : strerror(-r));
}

static uint32_t find_id(struct vmimg_service *svc, const char *what, const char *id,
			struct vmimg_error *err, struct api_point *ret)
{
	int r = id ? api_point_find(svc, id, ret) : -EINVAL;

	if (r == 0)
		return 0;
	if (r == -EINVAL || r == -ENOENT)
		return api_answer(err, VMIMG_V_INVALID_PARAMETER,
				  "%s: '%.140s' is %s a snapshot or reference point", what,
				  id ? id : "", r == -EINVAL ? "no id or name of" : "unknown as");
	return api_answer(err, api_vendor_code(r), "%s: %s", what, strerror(-r));
}

uint32_t vmimg_get_virtual_disk_changes(struct vmimg_service *svc, const char *path,
					const char *limit_id, const char *target_snapshot_id,
					uint64_t byte_offset, uint64_t byte_length,
					struct vmimg_changes *ret, struct vmimg_error *err)
{
	struct vmimg_changes changes = {0};
	struct region region = {.first = byte_offset, .ret = &changes};
	struct eng_blocks *set = NULL;
	struct api_point from, to;
	struct fmt_error why = {""};
	struct fmt_uuid disk;
	struct cat_disk row;
	uint64_t size;
	uint32_t code;
	int r;

	if (!svc || !ret)
		return api_answer(err, VMIMG_V_INVALID_PARAMETER, "changes: no %s given",
				  svc ? "result" : "service");
	code = api_point_path(svc, path, err, &disk, &to);
	if (code == 0)
		code = find_id(svc, "limit", limit_id, err, &from);
	if (code == 0 && target_snapshot_id && *target_snapshot_id)
		code = find_id(svc, "target", target_snapshot_id, err, &to);
	if (code)
		return code;
	r = api_point_diff(svc, &disk, &from, &to, &why, &row, &size, &set);
	if (r < 0)
		return api_answer_why(err, changes_code(r), r, &why, path);
	if (byte_offset > size) {
		eng_blocks_destroy(set);
		return api_answer(err, VMIMG_V_INVALID_PARAMETER,
				  "offset: is %llu, past the end of %s at %llu",
				  (unsigned long long)byte_offset, path, (unsigned long long)size);
	}
	region.bits = row.block_bits;
	region.end = byte_length < size - byte_offset ? byte_offset + byte_length : size;
	if (region.end > byte_offset)
		r = eng_blocks_each(set, byte_offset >> region.bits,
				    ((region.end - 1) >> region.bits) + 1 -
					    (byte_offset >> region.bits),
				    add_change, &region);
	eng_blocks_destroy(set);
	if (r < 0) {
		vmimg_changes_free(&changes);
		return api_answer(err, api_vendor_code(r), "%s: %s", path, strerror(-r));
	}
	changes.processed_byte_length = region.end - byte_offset;
	*ret = changes;
	return VMIMG_OK;
}
