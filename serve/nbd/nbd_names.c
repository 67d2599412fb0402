/* SPDX-License-Identifier: MIT */
/*
 * nbd_names.c - which exports and snapshots there are, from the API's lists. Called in the lobby: a list
 * waits for the catalog, but for no disk.
 */
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "serve/nbd/nbd_conn.h"

static int load(struct vmimg_service *svc, enum vmimg_kind kind, const char *filter, json_t **ret)
{
	char *text = NULL;
	int r = vmimg_list(svc, kind | VMIMG_KIND_BRIEF, filter, NULL, &text);

	if (r < 0)
		return r;
	*ret = json_loads(text, 0, NULL);
	vmimg_free(text);
	return *ret ? 0 : -ENOMEM;
}

static int add(struct nbd_names *names, const char *before, const char *name)
{
	if (!(names->count & (names->count + 1))) { /* room is one less than a power of two */
		char **more = reallocarray(names->names, 2 * names->count + 2, sizeof(char *));

		if (!more)
			return -ENOMEM;
		names->names = more;
	}
	if (asprintf(&names->names[names->count], "%s%s%s", before ? before : "", before ? "/" : "",
		     name) < 0)
		return -ENOMEM;
	names->count++;
	return 0;
}

void nbd_names_fini(struct nbd_names *names)
{
	for (size_t i = 0; i < names->count; i++)
		free(names->names[i]);
	free(names->names);
	*names = (struct nbd_names){0};
}

static const char *text_of(const json_t *object, const char *key)
{
	const char *text = json_string_value(json_object_get(object, key));

	return text ? text : "";
}

/* A member that was left out of its snapshot is no export. */
static bool holds(const json_t *member)
{
	return json_is_string(json_object_get(member, "layer"));
}

static int add_disks(struct vmimg_service *svc, struct nbd_names *names)
{
	json_t *list = NULL, *disk;
	size_t i;
	int r = load(svc, VMIMG_KIND_DISK, NULL, &list);

	json_array_foreach (list, i, disk)
		if (r == 0)
			r = add(names, NULL, text_of(disk, "disk"));
	json_decref(list);
	return r;
}

static int add_snapshot(const json_t *snapshot, struct nbd_names *names)
{
	const json_t *member;
	size_t i;
	int r = 0;

	json_array_foreach (json_object_get(snapshot, "members"), i, member)
		if (r == 0 && holds(member))
			r = add(names, text_of(snapshot, "snapshot"), text_of(member, "disk"));
	return r;
}

int nbd_names_exports(struct vmimg_service *svc, struct nbd_names *ret)
{
	struct nbd_names names = {0};
	json_t *list = NULL, *snapshot;
	size_t i;
	int r = add_disks(svc, &names);

	if (r == 0)
		r = load(svc, VMIMG_KIND_SNAPSHOT, NULL, &list);
	json_array_foreach (list, i, snapshot)
		if (r == 0)
			r = add_snapshot(snapshot, &names);
	json_decref(list);
	if (r < 0)
		nbd_names_fini(&names);
	else
		*ret = names;
	return r;
}

/* --- one export, and the snapshots that it can be compared with --- */

static const json_t *member_of(const json_t *snapshot, const char *disk)
{
	const json_t *member;
	size_t i;

	json_array_foreach (json_object_get(snapshot, "members"), i, member)
		if (holds(member) && !strcmp(text_of(member, "disk"), disk))
			return member;
	return NULL;
}

static int describe(struct vmimg_service *svc, enum vmimg_kind kind, const char *name, json_t **ret)
{
	char *text = NULL;
	int r = vmimg_describe(svc, kind | VMIMG_KIND_BRIEF, name, NULL, &text);

	if (r < 0)
		return r;
	*ret = json_loads(text, 0, NULL);
	vmimg_free(text);
	return *ret ? 0 : -ENOMEM;
}

int nbd_names_look_up(struct vmimg_service *svc, const char *export, struct nbd_subject *ret)
{
	const char *at = strchr(export, '@'), *slash = strchr(export, '/');
	char snapshot[SRV_EXPORT_NAME_MAX];
	json_t *found = NULL;
	int r;

	snprintf(ret->disk, sizeof(ret->disk), "%s", at && slash ? slash + 1 : export);
	if (!at)
		r = describe(svc, VMIMG_KIND_DISK, export, &found);
	else if (!slash || slash < at)
		r = -ENOENT;
	else {
		snprintf(snapshot, sizeof(snapshot), "%.*s", (int)(slash - export), export);
		r = describe(svc, VMIMG_KIND_SNAPSHOT, snapshot, &found);
	}
	if (r == 0 && at)
		r = member_of(found, ret->disk) ? 0 : -ENOENT;
	json_decref(found);
	return r;
}

bool nbd_names_comparable(struct vmimg_service *svc, const struct nbd_subject *subject,
			  const char *point)
{
	enum vmimg_kind kind = strchr(point, '#') ? VMIMG_KIND_REFPOINT : VMIMG_KIND_SNAPSHOT;
	json_t *found = NULL;
	bool ok = describe(svc, kind, point, &found) == 0 && member_of(found, subject->disk);

	json_decref(found);
	return ok;
}

static int add_points(struct vmimg_service *svc, const struct nbd_subject *subject,
		      enum vmimg_kind kind, const char *key, struct nbd_names *names)
{
	json_t *list = NULL;
	const json_t *point;
	size_t i;
	int r = load(svc, kind, NULL, &list);

	json_array_foreach (list, i, point)
		if (r == 0 && member_of(point, subject->disk))
			r = add(names, NULL, text_of(point, key));
	json_decref(list);
	return r;
}

int nbd_names_points(struct vmimg_service *svc, const struct nbd_subject *subject,
		     struct nbd_names *ret)
{
	struct nbd_names names = {0};
	int r = add_points(svc, subject, VMIMG_KIND_SNAPSHOT, "snapshot", &names);

	if (r == 0)
		r = add_points(svc, subject, VMIMG_KIND_REFPOINT, "refpoint", &names);
	if (r < 0)
		nbd_names_fini(&names);
	else
		*ret = names;
	return r;
}

int nbd_names_only_disk(struct vmimg_service *svc, char *ret)
{
	struct nbd_names names = {0};
	int r = add_disks(svc, &names);

	if (r == 0 && names.count != 1)
		r = -ENOENT;
	if (r == 0)
		snprintf(ret, SRV_EXPORT_NAME_MAX, "%s", names.names[0]);
	nbd_names_fini(&names);
	return r;
}
