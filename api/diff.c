/* SPDX-License-Identifier: MIT */
/*
 * diff.c - what changed in a whole collection, as a document (DF-13). Written as text at once: with a
 * million ranges a tree of JSON objects would be hundreds of megabytes. Any thread.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "api/changes.h"

struct text {
	char *at;
	size_t used, cap;
	uint32_t bits;  /* of a block */
	uint64_t size;  /* of the disk, in bytes */
	unsigned count; /* of what has been listed */
};

static int reserve(struct text *t, size_t len)
{
	size_t cap = t->cap ? t->cap : 4096;
	char *p;

	if (t->cap - t->used > len)
		return 0;
	while (cap - t->used <= len)
		cap *= 2;
	p = realloc(t->at, cap);
	if (!p)
		return -ENOMEM;
	t->at = p;
	t->cap = cap;
	return 0;
}

static int put(struct text *t, const char *s)
{
	size_t len = strlen(s);
	int r = reserve(t, len + 1);

	if (r < 0)
		return r;
	memcpy(t->at + t->used, s, len + 1);
	t->used += len;
	return 0;
}

static int put_number(struct text *t, uint64_t n)
{
	char digits[24], *p = digits + sizeof(digits);

	*--p = 0;
	do
		*--p = (char)('0' + n % 10);
	while (n /= 10);
	return put(t, p);
}

/* Names are of [A-Za-z0-9._-] and separators: nothing in them is escaped (RC-6). */
static int put_all(struct text *t, const char *before, const char *name, const char *after)
{
	int r = put(t, before);

	if (r == 0)
		r = put(t, name);
	return r == 0 ? put(t, after) : r;
}

static int put_range(void *arg, uint64_t first, uint64_t count)
{
	struct text *t = arg;
	uint64_t start = first << t->bits, end = (first + count) << t->bits;
	int r;

	end = end < t->size ? end : t->size;
	if (start >= end)
		return 0;
	r = put(t, t->count++ ? ",{\"start\":" : "{\"start\":");
	if (r == 0)
		r = put_number(t, start);
	if (r == 0)
		r = put(t, ",\"length\":");
	if (r == 0)
		r = put_number(t, end - start);
	return r == 0 ? put(t, "}") : r;
}

/* @set NULL: nothing is known of the disk at the first point, so that all of it counts (DF-7). */
static int put_disk(struct text *t, const char *name, const struct eng_blocks *set)
{
	uint64_t blocks = (t->size >> t->bits) + 1;
	int r = put_all(t, "{\"disk\":\"", name, "\",\"size\":");

	if (r == 0)
		r = put_number(t, t->size);
	if (r == 0)
		r = put(t, ",\"block_size\":");
	if (r == 0)
		r = put_number(t, UINT64_C(1) << t->bits);
	if (r == 0)
		r = put_all(t, ",\"tracked\":", set ? "true" : "false", ",\"changed\":[");
	t->count = 0;
	if (r == 0)
		r = set ? eng_blocks_each(set, 0, blocks, put_range, t) : put_range(t, 0, blocks);
	return r == 0 ? put(t, "]}") : r;
}

struct both {
	struct vmimg_service *svc;
	struct api_point from, to;
	struct api_point_disk *before, *after;
	size_t nbefore, nafter;
	struct fmt_error why;
};

static const struct api_point_disk *find(const struct api_point_disk *disks, size_t n,
					 const struct fmt_uuid *id)
{
	for (size_t i = 0; i < n; i++)
		if (fmt_uuid_equal(&disks[i].disk, id))
			return &disks[i];
	return NULL;
}

static int diff_disk(struct both *b, const struct api_point_disk *disk, struct text *t)
{
	const struct api_point_disk *before = find(b->before, b->nbefore, &disk->disk);
	struct eng_blocks *set = NULL;
	struct cat_disk row;
	int r;

	if (before && !before->lost && !disk->lost)
		r = api_point_diff(b->svc, &disk->disk, &b->from, &b->to, &b->why, &row, &t->size,
				   &set);
	else
		r = eng_catalog_get_disk_id(b->svc->store->catalog, &disk->disk, &row);
	if (r == 0) {
		t->bits = row.block_bits;
		if (!set)
			t->size = disk->size;
		r = put_disk(t, disk->name, set);
	}
	eng_blocks_destroy(set);
	return r;
}

static int put_gone(struct both *b, struct text *t)
{
	int r = put(t, "],\"gone\":[");
	bool any = false;

	for (size_t i = 0; r == 0 && i < b->nbefore; i++) {
		if (find(b->after, b->nafter, &b->before[i].disk))
			continue;
		r = put_all(t, any ? ",\"" : "\"", b->before[i].name, "\"");
		any = true;
	}
	return r == 0 ? put(t, "]}") : r;
}

static int write_document(struct both *b, struct text *t)
{
	int r = put_all(t, "{\"from\":\"", b->from.name, "\",\"to\":\"");

	if (r == 0)
		r = put_all(t, b->to.name, "\",\"disks\":[", "");
	for (size_t i = 0; r == 0 && i < b->nafter; i++) {
		if (i)
			r = put(t, ",");
		if (r == 0)
			r = diff_disk(b, &b->after[i], t);
	}
	return r == 0 ? put_gone(b, t) : r;
}

static int find_point(struct vmimg_service *svc, const char *which, const char *name,
		      struct vmimg_error *err, struct api_point *ret)
{
	int r = name && (strchr(name, '@') || strchr(name, '#')) ? api_point_find(svc, name, ret)
								 : -EINVAL;

	if (r == -EINVAL)
		return api_fail(err, r,
				"%s: '%.140s' is no name, expected COLLECTION@NAME or "
				"COLLECTION#NAME",
				which, name ? name : "");
	if (r == -ENOENT)
		return api_fail(err, r, "%s: %.140s: no such %s", which, name,
				strchr(name, '#') ? "reference point" : "snapshot");
	return r < 0 ? api_fail(err, r, "%s: %s", which, strerror(-r)) : 0;
}

int vmimg_diff(struct vmimg_service *svc, const char *from, const char *to, struct vmimg_error *err,
	       char **json)
{
	struct both b = {.svc = svc, .to = {.kind = API_POINT_NOW, .name = "now"}};
	struct text t = {.at = NULL};
	int r;

	if (!svc || !json)
		return api_fail(err, -EINVAL, "diff: no %s given", svc ? "result" : "service");
	r = find_point(svc, "from", from, err, &b.from);
	if (r == 0 && to)
		r = find_point(svc, "to", to, err, &b.to);
	if (r < 0)
		return r;
	if (to && !fmt_uuid_equal(&b.from.collection, &b.to.collection))
		return api_fail(err, -EINVAL, "to: %.140s is of another collection than %.140s", to,
				from);
	r = api_point_disks(svc, &b.from, &b.from.collection, &b.before, &b.nbefore);
	if (r == 0)
		r = api_point_disks(svc, &b.to, &b.from.collection, &b.after, &b.nafter);
	if (r == -ENOENT)
		fmt_fail(&b.why, r, "%s or %s: deleted meanwhile", b.from.name, b.to.name);
	if (r == 0)
		r = write_document(&b, &t);
	free(b.before);
	free(b.after);
	if (r < 0) {
		free(t.at);
		return api_fail_why(err, r, &b.why, "diff");
	}
	*json = t.at;
	return 0;
}
