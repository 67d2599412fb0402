/* SPDX-License-Identifier: MIT */
/*
 * manifest.c - the manifest of an export as JSON and as a struct (MF-*). What is read is untrusted:
 * every member is typed, bounded and looked at once more for what belongs together. Pure, any thread.
 */
#include "format/manifest.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "format/layer.h"
#include "format/stream.h"

#define VERSION 1

static const char *const formats[] = {"stream", "raw", "qcow2"};

void fmt_manifest_fini(struct fmt_manifest *m)
{
	free(m->vms);
	free(m->disks);
	memset(m, 0, sizeof(*m));
}

int fmt_manifest_state(const struct fmt_uuid *snapshot, const struct fmt_manifest_disk *disks,
		       uint32_t count, uint8_t ret[16])
{
	struct fmt_digest *d = fmt_digest_create();

	if (!d)
		return -ENOMEM;
	fmt_digest_add(d, snapshot->b, sizeof(snapshot->b));
	for (uint32_t i = 0; i < count; i++) {
		le64 size = le64_make(disks[i].size);
		le32 bits = le32_make(disks[i].block_bits);

		fmt_digest_add(d, disks[i].id.b, sizeof(disks[i].id.b));
		fmt_digest_add(d, &size, sizeof(size));
		fmt_digest_add(d, &bits, sizeof(bits));
	}
	fmt_digest_get(d, ret);
	fmt_digest_destroy(d);
	return 0;
}

/* --- writing --- */

static json_t *id_json(const struct fmt_uuid *id)
{
	char text[FMT_UUID_TEXT];

	fmt_uuid_format(id, text);
	return json_string(text);
}

static json_t *state_json(const uint8_t state[16])
{
	char text[33];

	for (int i = 0; i < 16; i++)
		snprintf(text + 2 * i, 3, "%02x", state[i]);
	return json_string(text);
}

static json_t *base_json(const struct fmt_manifest *m)
{
	const struct fmt_manifest_base *b = &m->base;

	if (!m->has_base)
		return json_null();
	return json_pack("{s:s, s:o, s:s, s:o, s:o}", "kind", b->refpoint ? "refpoint" : "snapshot",
			 "id", id_json(&b->id), "name", b->name, "snapshot_id",
			 id_json(&b->snapshot), "state", state_json(b->state));
}

static json_t *snapshot_json(const struct fmt_manifest *m)
{
	return json_pack("{s:o, s:s, s:s, s:i, s:i, s:i, s:I, s:I, s:I, s:o}", "id",
			 id_json(&m->snapshot), "name", m->snapshot_name, "element_name",
			 m->element_name, "type", m->type, "consistency", m->consistency,
			 "guest_backup_type", m->guest_backup_type, "created_ns",
			 (json_int_t)m->created_ns, "cut_wall_ns", (json_int_t)m->cut_wall_ns,
			 "skipped", (json_int_t)m->skipped, "state", state_json(m->state));
}

static json_t *disk_json(const struct fmt_manifest *m, const struct fmt_manifest_disk *d)
{
	json_t *o = json_pack("{s:o, s:I, s:s, s:I, s:I, s:I, s:b}", "id", id_json(&d->id), "vm",
			      (json_int_t)d->vm, "name", d->name, "size", (json_int_t)d->size,
			      "block_bits", (json_int_t)d->block_bits, "position",
			      (json_int_t)d->position, "full", d->full);

	if (o && m->format != FMT_EXPORT_STREAM)
		json_object_set_new(o, "content",
				    d->has_content ? state_json(d->content) : json_null());
	return o;
}

static json_t *lists_json(const struct fmt_manifest *m, json_t **disks)
{
	json_t *vms = json_array();

	*disks = json_array();
	for (uint32_t i = 0; i < m->vm_count; i++)
		json_array_append_new(vms, json_pack("{s:o, s:s}", "id", id_json(&m->vms[i].id),
						     "name", m->vms[i].name));
	for (uint32_t i = 0; i < m->disk_count; i++)
		json_array_append_new(*disks, disk_json(m, &m->disks[i]));
	return vms;
}

int fmt_manifest_encode(const struct fmt_manifest *m, char **ret, size_t *len)
{
	json_t *disks, *vms = lists_json(m, &disks);
	json_t *top = json_pack("{s:s, s:i, s:{s:o, s:s}, s:o, s:o, s:i, s:o, s:o}", "format",
				formats[m->format], "version", VERSION, "collection", "id",
				id_json(&m->collection), "name", m->collection_name, "snapshot",
				snapshot_json(m), "base", base_json(m), "backup_intent", m->intent,
				"vms", vms, "disks", disks);
	bool whole = top && json_array_size(vms) == m->vm_count &&
		     json_array_size(disks) == m->disk_count;
	char *text = whole ? json_dumps(top, JSON_COMPACT) : NULL;
	int r = text ? 0 : -ENOMEM;

	if (text && strlen(text) > FMT_STREAM_MANIFEST_MAX) {
		free(text);
		r = -E2BIG;
	}
	if (r == 0) {
		*ret = text;
		*len = strlen(text);
	}
	json_decref(top);
	return r;
}

/* --- reading --- */

struct in {
	struct fmt_error *err;
	int r; /* the first failure; nothing more is looked at */
};

static void refuse(struct in *in, int r, const char *what, const char *expected)
{
	if (in->r == 0)
		in->r = fmt_fail(in->err, r, "manifest: %s is missing or wrong, expected %s (MF-1)",
				 what, expected);
}

static const json_t *member(struct in *in, const json_t *object, const char *name, json_type type)
{
	const json_t *v = json_object_get(object, name);

	if (v && json_typeof(v) == type)
		return v;
	refuse(in, -EUCLEAN, name, "it");
	return NULL;
}

static uint64_t number(struct in *in, const json_t *object, const char *name, uint64_t min,
		       uint64_t max)
{
	const json_t *v = json_object_get(object, name);
	json_int_t n = json_integer_value(v);

	if (!json_is_integer(v) || n < 0 || (uint64_t)n < min || (uint64_t)n > max) {
		refuse(in, -EUCLEAN, name, "a number within its bounds");
		return min;
	}
	return (uint64_t)n;
}

static const char *text(struct in *in, const json_t *object, const char *name, size_t max)
{
	const json_t *v = json_object_get(object, name);

	if (json_is_string(v) && json_string_length(v) < max &&
	    strlen(json_string_value(v)) == json_string_length(v))
		return json_string_value(v);
	refuse(in, -EUCLEAN, name, "a text");
	return "";
}

static bool is_name(const char *s)
{
	static const char alnum[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
	size_t n = strlen(s);

	if (!n || n >= FMT_NAME_MAX || !memchr(alnum, s[0], sizeof(alnum) - 1))
		return false;
	for (size_t i = 1; i < n; i++)
		if (!memchr(alnum, s[i], sizeof(alnum) - 1) && s[i] != '.' && s[i] != '_' &&
		    s[i] != '-')
			return false;
	return true;
}

static void name(struct in *in, const json_t *object, const char *key, char ret[FMT_NAME_MAX])
{
	const char *s = text(in, object, key, FMT_NAME_MAX);

	if (in->r == 0 && is_name(s))
		strcpy(ret, s);
	else
		refuse(in, -EUCLEAN, key, "a name of 1 to 64 letters, digits, '.', '_', '-'");
}

static void id(struct in *in, const json_t *object, const char *key, struct fmt_uuid *ret)
{
	if (fmt_uuid_parse(text(in, object, key, FMT_UUID_TEXT), ret) < 0 || fmt_uuid_is_none(ret))
		refuse(in, -EUCLEAN, key, "an id");
}

static int digit(char c)
{
	return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static void hash(struct in *in, const json_t *object, const char *key, uint8_t ret[16])
{
	const char *s = text(in, object, key, 33);
	bool ok = strlen(s) == 32;

	for (int i = 0; ok && i < 16; i++) {
		int hi = digit(s[2 * i]), lo = digit(s[2 * i + 1]);

		ok = hi >= 0 && lo >= 0;
		ret[i] = (uint8_t)(ok ? hi << 4 | lo : 0);
	}
	if (!ok)
		refuse(in, -EUCLEAN, key, "32 hexadecimal digits");
}

static void read_format(struct in *in, const json_t *top, struct fmt_manifest *m)
{
	const char *format = text(in, top, "format", 16);
	bool known = false;

	for (int i = 0; i < 3; i++)
		if (!strcmp(format, formats[i])) {
			m->format = (enum fmt_export_format)i;
			known = true;
		}
	if (!known)
		refuse(in, -EUCLEAN, "format", "stream, raw or qcow2");
	if (number(in, top, "version", 0, INT64_MAX) != VERSION)
		refuse(in, -ENOTSUP, "version", "1");
}

static void read_snapshot(struct in *in, const json_t *top, struct fmt_manifest *m)
{
	const json_t *coll = member(in, top, "collection", JSON_OBJECT);
	const json_t *snap = member(in, top, "snapshot", JSON_OBJECT);

	if (in->r < 0)
		return;
	id(in, coll, "id", &m->collection);
	name(in, coll, "name", m->collection_name);
	id(in, snap, "id", &m->snapshot);
	name(in, snap, "name", m->snapshot_name);
	memcpy(m->element_name, "", 1);
	strncat(m->element_name, text(in, snap, "element_name", sizeof(m->element_name)),
		sizeof(m->element_name) - 1);
	m->type = (uint16_t)number(in, snap, "type", 1, 2);
	m->consistency = (uint8_t)number(in, snap, "consistency", 1, 2);
	m->guest_backup_type = (uint8_t)number(in, snap, "guest_backup_type", 0, UINT8_MAX);
	m->created_ns = (int64_t)number(in, snap, "created_ns", 0, INT64_MAX);
	m->cut_wall_ns = (int64_t)number(in, snap, "cut_wall_ns", 0, INT64_MAX);
	m->skipped = (uint32_t)number(in, snap, "skipped", 0, UINT32_MAX);
	hash(in, snap, "state", m->state);
}

static void read_base(struct in *in, const json_t *top, struct fmt_manifest *m)
{
	const json_t *base = json_object_get(top, "base");
	const char *kind;

	if (json_is_null(base))
		return;
	base = member(in, top, "base", JSON_OBJECT);
	if (!base)
		return;
	m->has_base = true;
	kind = text(in, base, "kind", 16);
	m->base.refpoint = !strcmp(kind, "refpoint");
	if (!m->base.refpoint && strcmp(kind, "snapshot") != 0)
		refuse(in, -EUCLEAN, "kind", "snapshot or refpoint");
	id(in, base, "id", &m->base.id);
	name(in, base, "name", m->base.name);
	id(in, base, "snapshot_id", &m->base.snapshot);
	hash(in, base, "state", m->base.state);
}

static void *read_array(struct in *in, const json_t *top, const char *key, size_t size,
			const json_t **array, uint32_t *count)
{
	void *rows = NULL;

	*array = member(in, top, key, JSON_ARRAY);
	*count = 0;
	if (!*array || in->r < 0)
		return NULL;
	if (json_array_size(*array) > FMT_MANIFEST_COUNT_MAX) {
		refuse(in, -EUCLEAN, key, "at most 65536");
		return NULL;
	}
	rows = calloc(json_array_size(*array) + 1, size);
	if (rows)
		*count = (uint32_t)json_array_size(*array);
	else
		in->r = fmt_fail(in->err, -ENOMEM, "out of memory");
	return rows;
}

static void read_vms(struct in *in, const json_t *top, struct fmt_manifest *m)
{
	const json_t *array;

	m->vms = read_array(in, top, "vms", sizeof(*m->vms), &array, &m->vm_count);
	for (uint32_t i = 0; in->r == 0 && i < m->vm_count; i++) {
		const json_t *vm = json_array_get(array, i);

		id(in, vm, "id", &m->vms[i].id);
		name(in, vm, "name", m->vms[i].name);
	}
}

static void read_disk(struct in *in, const json_t *object, const struct fmt_manifest *m,
		      struct fmt_manifest_disk *d)
{
	const json_t *full = json_object_get(object, "full");

	id(in, object, "id", &d->id);
	d->vm = (uint32_t)number(in, object, "vm", 0, m->vm_count ? m->vm_count - 1 : 0);
	name(in, object, "name", d->name);
	d->size = number(in, object, "size", 512, FMT_SIZE_MAX);
	d->block_bits = (uint32_t)number(in, object, "block_bits", FMT_BLOCK_BITS_MIN,
					 FMT_BLOCK_BITS_MAX);
	d->position = (uint32_t)number(in, object, "position", 0, UINT32_MAX);
	d->full = json_is_true(full);
	d->has_content = m->format != FMT_EXPORT_STREAM &&
			 !json_is_null(json_object_get(object, "content"));
	if (d->has_content)
		hash(in, object, "content", d->content);
	if (!json_is_boolean(full) || (!m->has_base && !d->full))
		refuse(in, -EUCLEAN, "full", "true, or false with a base");
	if (d->size % 512)
		refuse(in, -EUCLEAN, "size", "a multiple of 512");
	if (!m->vm_count)
		refuse(in, -EUCLEAN, "vm", "the place of a VM");
}

static void read_disks(struct in *in, const json_t *top, struct fmt_manifest *m)
{
	const json_t *array;

	m->disks = read_array(in, top, "disks", sizeof(*m->disks), &array, &m->disk_count);
	for (uint32_t i = 0; in->r == 0 && i < m->disk_count; i++)
		read_disk(in, json_array_get(array, i), m, &m->disks[i]);
	if (in->r == 0 && !m->disk_count)
		refuse(in, -EUCLEAN, "disks", "one at least");
}

/* --- what belongs together --- */

static int by_id(const void *a, const void *b)
{
	return memcmp(*(const struct fmt_uuid *const *)a, *(const struct fmt_uuid *const *)b,
		      sizeof(struct fmt_uuid));
}

static int by_vm_name(const void *a, const void *b)
{
	return strcmp((*(const struct fmt_manifest_vm *const *)a)->name,
		      (*(const struct fmt_manifest_vm *const *)b)->name);
}

static int by_disk_name(const void *a, const void *b)
{
	const struct fmt_manifest_disk *x = *(const struct fmt_manifest_disk *const *)a;
	const struct fmt_manifest_disk *y = *(const struct fmt_manifest_disk *const *)b;

	return x->vm != y->vm ? (x->vm < y->vm ? -1 : 1) : strcmp(x->name, y->name);
}

static int by_position(const void *a, const void *b)
{
	const struct fmt_manifest_disk *x = *(const struct fmt_manifest_disk *const *)a;
	const struct fmt_manifest_disk *y = *(const struct fmt_manifest_disk *const *)b;

	return x->vm != y->vm               ? (x->vm < y->vm ? -1 : 1)
	       : x->position != y->position ? (x->position < y->position ? -1 : 1)
					    : 0;
}

static bool each_once(const void **p, size_t n, int (*compare)(const void *, const void *))
{
	qsort(p, n, sizeof(*p), compare);
	for (size_t i = 1; i < n; i++)
		if (compare(&p[i - 1], &p[i]) == 0)
			return false;
	return true;
}

static void check_once(struct in *in, const struct fmt_manifest *m)
{
	size_t n = (size_t)m->vm_count + m->disk_count;
	const void **p = calloc(n + 1, sizeof(*p));

	if (!p) {
		in->r = fmt_fail(in->err, -ENOMEM, "out of memory");
		return;
	}
	for (uint32_t i = 0; i < m->vm_count; i++)
		p[i] = &m->vms[i].id;
	for (uint32_t i = 0; i < m->disk_count; i++)
		p[m->vm_count + i] = &m->disks[i].id;
	if (!each_once(p, n, by_id))
		refuse(in, -EUCLEAN, "an id", "each of them once");
	for (uint32_t i = 0; i < m->vm_count; i++)
		p[i] = &m->vms[i];
	if (!each_once(p, m->vm_count, by_vm_name))
		refuse(in, -EUCLEAN, "a VM's name", "each of them once");
	for (uint32_t i = 0; i < m->disk_count; i++)
		p[i] = &m->disks[i];
	if (!each_once(p, m->disk_count, by_disk_name))
		refuse(in, -EUCLEAN, "a disk's name", "each of them once in its VM");
	if (!each_once(p, m->disk_count, by_position))
		refuse(in, -EUCLEAN, "a disk's position", "each of them once in its VM");
	free(p);
}

static void check_state(struct in *in, const struct fmt_manifest *m)
{
	uint8_t expected[16];

	if (fmt_manifest_state(&m->snapshot, m->disks, m->disk_count, expected) < 0)
		in->r = fmt_fail(in->err, -ENOMEM, "out of memory");
	else if (memcmp(expected, m->state, sizeof(expected)) != 0)
		refuse(in, -EUCLEAN, "state", "what the ids and sizes give (MF-3)");
}

int fmt_manifest_decode(const char *bytes, size_t len, struct fmt_manifest *ret,
			struct fmt_error *err)
{
	struct fmt_manifest m = {0};
	struct in in = {.err = err};
	json_error_t why;
	json_t *top;

	if (len > FMT_STREAM_MANIFEST_MAX)
		return fmt_fail(err, -EUCLEAN, "manifest: longer than %u bytes (ST-2)",
				FMT_STREAM_MANIFEST_MAX);
	top = json_loadb(bytes, len, JSON_REJECT_DUPLICATES, &why);
	if (!json_is_object(top)) {
		json_decref(top);
		return fmt_fail(err, -EUCLEAN, "manifest: no JSON object (MF-1)");
	}
	read_format(&in, top, &m);
	read_snapshot(&in, top, &m);
	read_base(&in, top, &m);
	m.intent = (uint16_t)number(&in, top, "backup_intent", 1, 2);
	read_vms(&in, top, &m);
	read_disks(&in, top, &m);
	if (in.r == 0)
		check_once(&in, &m);
	if (in.r == 0)
		check_state(&in, &m);
	json_decref(top);
	if (in.r == 0)
		*ret = m;
	else
		fmt_manifest_fini(&m);
	return in.r;
}
