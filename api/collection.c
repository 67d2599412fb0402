/* SPDX-License-Identifier: MIT */
/*
 * collection.c - the collection management calls (CM-*). Each is one catalog transaction under the
 * service's lock, so that no create starts between its checks and its change. Any thread.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/event.h"

#define COLLECTION_OF_SYSTEMS     0
#define COLLECTION_OF_COLLECTIONS 1

static struct eng_catalog *catalog_of(const struct vmimg_service *svc)
{
	return svc->store->catalog;
}

/* What a failed look-up or commit is answered with. */
static uint32_t answer_errno(struct vmimg_error *err, int r, const struct fmt_error *why,
			     const char *what)
{
	static const struct fmt_error none;

	return api_answer_why(err, api_vendor_code(r), r, why ? why : &none, what);
}

static uint32_t check_name(const struct vmimg_service *svc, const char *kind, const char *name,
			   struct vmimg_error *err)
{
	if (!svc)
		return api_answer(err, VMIMG_V_INVALID_PARAMETER, "collection: no service given");
	if (!api_name_is_valid(name))
		return api_answer(
			err, VMIMG_V_INVALID_PARAMETER,
			"%s: '%.80s' is no name, expected 1 to 64 of A-Z a-z 0-9 . _ - beginning "
			"with a letter or digit",
			kind, name ? name : "");
	return 0;
}

static uint32_t find_collection(struct vmimg_service *svc, const char *name,
				struct vmimg_error *err, struct cat_collection *ret)
{
	int r = eng_catalog_get_collection(catalog_of(svc), name, ret);

	if (r == -ENOENT)
		return api_answer(err, VMIMG_V_NOT_FOUND,
				  "collection %s: there is none of this name", name);
	return r < 0 ? answer_errno(err, r, NULL, name) : 0;
}

static uint32_t find_vm(struct vmimg_service *svc, const char *name, struct vmimg_error *err,
			struct cat_vm *ret)
{
	int r = eng_catalog_get_vm(catalog_of(svc), name, ret);

	if (r == -ENOENT)
		return api_answer(err, VMIMG_V_NOT_FOUND, "vm %s: there is none of this name",
				  name);
	return r < 0 ? answer_errno(err, r, NULL, name) : 0;
}

/* 0, or @code while a snapshot of the collection or of the VM (may be NULL) is being created. */
static uint32_t check_idle(struct vmimg_service *svc, const struct cat_collection *coll,
			   const struct cat_vm *vm, uint32_t code, struct vmimg_error *err)
{
	if (eng_store_collection_in_cut(svc->store, &coll->id))
		return api_answer(err, code, "collection %s: a snapshot of it is being created",
				  coll->name);
	if (vm && eng_store_vm_in_cut(svc->store, &vm->id))
		return api_answer(err, code, "vm %s: a snapshot of it is being created", vm->name);
	return 0;
}

/* --- define --- */

static uint32_t new_collection(struct vmimg_service *svc, const char *name, const char *id,
			       struct vmimg_error *err, struct cat_collection *ret)
{
	char text[FMT_UUID_TEXT];

	memset(ret, 0, sizeof(*ret));
	if (name && *name && check_name(svc, "collection", name, err))
		return VMIMG_V_INVALID_PARAMETER;
	if (!id || !*id)
		eng_store_new_id(svc->store, &ret->id);
	else if (fmt_uuid_parse(id, &ret->id) < 0 || fmt_uuid_is_none(&ret->id))
		return api_answer(err, VMIMG_V_INVALID_PARAMETER,
				  "collection: id is '%.80s', expected a uuid's 36 characters", id);
	fmt_uuid_format(&ret->id, text);
	if (name && *name)
		snprintf(ret->name, sizeof(ret->name), "%s", name);
	else
		snprintf(ret->name, sizeof(ret->name), "c-%.8s", text);
	ret->created_ns = eng_io_wall_ns(svc->io);
	return 0;
}

static uint32_t put_new(struct vmimg_service *svc, const struct cat_collection *coll,
			struct vmimg_error *err)
{
	struct cat_collection other;
	struct fmt_error why = {""};
	int r = eng_catalog_begin(catalog_of(svc));

	if (r < 0)
		return answer_errno(err, r, NULL, coll->name);
	r = eng_catalog_get_collection_id(catalog_of(svc), &coll->id,
					  &other); /* put would replace it */
	if (r == 0) {
		eng_catalog_rollback(catalog_of(svc));
		return api_answer(err, VMIMG_V_INVALID_PARAMETER,
				  "collection %s: its id is taken by collection %s", coll->name,
				  other.name);
	}
	eng_catalog_put_collection(catalog_of(svc), coll);
	r = eng_catalog_commit(catalog_of(svc), &why);
	if (r == -EEXIST)
		return api_answer(err, VMIMG_V_INVALID_PARAMETER, "collection %s: exists already",
				  coll->name);
	return r < 0 ? answer_errno(err, r, &why, coll->name) : 0;
}

uint32_t vmimg_define_collection(struct vmimg_service *svc, const char *name, const char *id,
				 uint16_t type, struct vmimg_ref *result, struct vmimg_error *err)
{
	struct cat_collection coll;
	uint32_t code;

	if (!svc)
		return api_answer(err, VMIMG_V_INVALID_PARAMETER, "collection: no service given");
	if (type == COLLECTION_OF_COLLECTIONS)
		return api_answer(
			err, VMIMG_V_NOT_SUPPORTED,
			"collection: type 1, of collections; this version has type 0 only");
	if (type != COLLECTION_OF_SYSTEMS)
		return api_answer(err, VMIMG_V_INVALID_PARAMETER,
				  "collection: type is %u, expected 0", type);
	code = new_collection(svc, name, id, err, &coll);
	if (code == 0)
		code = put_new(svc, &coll, err);
	if (code == 0 && result) {
		snprintf(result->name, sizeof(result->name), "%s", coll.name);
		fmt_uuid_format(&coll.id, result->id);
	}
	if (code == 0)
		api_event_change(svc, "collection", "created", coll.name);
	return code;
}

/* --- destroy, rename --- */

static uint32_t check_no_snapshots(struct vmimg_service *svc, const struct cat_collection *coll,
				   struct vmimg_error *err)
{
	struct cat_snapshot *snaps = NULL;
	size_t count = 0;
	int r = eng_catalog_list_snapshots(catalog_of(svc), &coll->id, &snaps, &count);

	free(snaps);
	if (r < 0)
		return answer_errno(err, r, NULL, coll->name);
	if (count)
		return api_answer(err, VMIMG_V_INVALID_STATE,
				  "collection %s: has %zu snapshots, expected none", coll->name,
				  count);
	return 0;
}

/* RP-10: increments are waiting to be taken against them. */
static uint32_t check_no_refpoints(struct vmimg_service *svc, const struct cat_collection *coll,
				   struct vmimg_error *err)
{
	struct cat_refpoint *points = NULL;
	size_t count = 0;
	int r = eng_catalog_list_refpoints(catalog_of(svc), &coll->id, &points, &count);

	free(points);
	if (r < 0)
		return answer_errno(err, r, NULL, coll->name);
	if (count)
		return api_answer(err, VMIMG_V_INVALID_STATE,
				  "collection %s: has %zu reference points, expected none",
				  coll->name, count);
	return 0;
}

uint32_t vmimg_destroy_collection(struct vmimg_service *svc, const char *collection,
				  struct vmimg_error *err)
{
	struct fmt_error why = {""};
	struct cat_collection coll;
	uint32_t code = check_name(svc, "collection", collection, err);
	int r;

	if (code)
		return code;
	pthread_mutex_lock(&svc->lock);
	code = find_collection(svc, collection, err, &coll);
	if (code == 0)
		code = check_idle(svc, &coll, NULL, VMIMG_V_INVALID_STATE, err);
	if (code == 0)
		code = check_no_snapshots(svc, &coll, err);
	if (code == 0)
		code = check_no_refpoints(svc, &coll, err);
	if (code)
		goto out;
	r = eng_catalog_begin(catalog_of(svc));
	if (r == 0) {
		eng_catalog_remove_collection(catalog_of(svc), &coll.id);
		r = eng_catalog_commit(catalog_of(svc), &why);
	}
	if (r < 0)
		code = answer_errno(err, r, &why, collection);
	else
		api_event_change(svc, "collection", "deleted", collection);
out:
	pthread_mutex_unlock(&svc->lock);
	return code;
}

static uint32_t rename_locked(struct vmimg_service *svc, const char *collection,
			      const char *new_name, struct vmimg_error *err)
{
	struct fmt_error why = {""};
	struct cat_collection coll;
	uint32_t code = find_collection(svc, collection, err, &coll);
	int r;

	if (code == 0)
		code = check_name(svc, "new name", new_name, err);
	if (code || strcmp(coll.name, new_name) == 0)
		return code;
	r = eng_catalog_get_collection(catalog_of(svc), new_name, &(struct cat_collection){0});
	if (r != -ENOENT)
		return r < 0 ? answer_errno(err, r, NULL, new_name)
			     : api_answer(err, VMIMG_V_INVALID_PARAMETER,
					  "collection %s: exists already", new_name);
	code = check_idle(svc, &coll, NULL, VMIMG_V_IN_USE, err);
	if (code)
		return code;
	snprintf(coll.name, sizeof(coll.name), "%s", new_name);
	r = eng_catalog_begin(catalog_of(svc));
	if (r == 0) {
		eng_catalog_put_collection(catalog_of(svc), &coll);
		r = eng_catalog_commit(catalog_of(svc), &why);
	}
	if (r < 0)
		return answer_errno(err, r, &why, collection);
	if (api_events_wanted(svc->events))
		api_event_post(svc->events, "collection",
			       json_pack("{s:s, s:s, s:s}", "change", "renamed", "name", new_name,
					 "old_name", collection));
	return 0;
}

uint32_t vmimg_rename_collection(struct vmimg_service *svc, const char *collection,
				 const char *new_name, struct vmimg_error *err)
{
	uint32_t code = check_name(svc, "collection", collection, err);

	if (code)
		return code;
	pthread_mutex_lock(&svc->lock);
	code = rename_locked(svc, collection, new_name, err);
	pthread_mutex_unlock(&svc->lock);
	return code;
}

/* --- members --- */

static uint32_t is_member(struct vmimg_service *svc, const struct cat_collection *coll,
			  const struct cat_vm *vm, struct vmimg_error *err, bool *ret)
{
	struct cat_vm *members = NULL;
	size_t count = 0;
	int r = eng_catalog_list_members(catalog_of(svc), &coll->id, &members, &count);

	if (r < 0)
		return answer_errno(err, r, NULL, coll->name);
	*ret = false;
	for (size_t i = 0; i < count; i++)
		*ret = *ret || fmt_uuid_equal(&members[i].id, &vm->id);
	free(members);
	return 0;
}

static uint32_t change_member(struct vmimg_service *svc, const struct cat_collection *coll,
			      const struct cat_vm *vm, bool add, struct vmimg_error *err)
{
	struct fmt_error why = {""};
	int r = eng_catalog_begin(catalog_of(svc));

	if (r == 0) {
		if (add)
			eng_catalog_put_member(catalog_of(svc), &coll->id, &vm->id);
		else
			eng_catalog_remove_member(catalog_of(svc), &coll->id, &vm->id);
		r = eng_catalog_commit(catalog_of(svc), &why);
	}
	if (r < 0)
		return answer_errno(err, r, &why, vm->name);
	api_event_change(svc, "collection", "changed", coll->name);
	return 0;
}

static uint32_t set_member(struct vmimg_service *svc, const char *vm_name, const char *collection,
			   bool add, struct vmimg_error *err)
{
	struct cat_collection coll;
	struct cat_vm vm;
	bool member = false;
	uint32_t code = check_name(svc, "vm", vm_name, err);

	if (code == 0)
		code = check_name(svc, "collection", collection, err);
	if (code)
		return code;
	pthread_mutex_lock(&svc->lock);
	code = find_vm(svc, vm_name, err, &vm);
	if (code == 0)
		code = find_collection(svc, collection, err, &coll);
	if (code == 0)
		code = is_member(svc, &coll, &vm, err, &member);
	if (code == 0 && member == add)
		code = api_answer(err, VMIMG_V_INVALID_STATE,
				  "vm %s: is %s member of collection %s", vm_name,
				  member ? "already a" : "no", collection);
	if (code == 0)
		code = check_idle(svc, &coll, &vm, VMIMG_V_IN_USE, err);
	if (code == 0)
		code = change_member(svc, &coll, &vm, add, err);
	pthread_mutex_unlock(&svc->lock);
	return code;
}

uint32_t vmimg_add_member(struct vmimg_service *svc, const char *vm, const char *collection,
			  struct vmimg_error *err)
{
	return set_member(svc, vm, collection, true, err);
}

uint32_t vmimg_remove_member(struct vmimg_service *svc, const char *vm, const char *collection,
			     struct vmimg_error *err)
{
	return set_member(svc, vm, collection, false, err);
}

uint32_t vmimg_remove_member_by_id(struct vmimg_service *svc, const char *vm,
				   const char *collection_id, struct vmimg_error *err)
{
	struct cat_collection coll;
	struct fmt_uuid id;
	struct cat_vm row;
	bool member = false;
	uint32_t code = check_name(svc, "vm", vm, err);
	int r;

	if (code)
		return code;
	if (!collection_id || fmt_uuid_parse(collection_id, &id) < 0)
		return api_answer(err, VMIMG_V_INVALID_PARAMETER,
				  "collection: id is '%.80s', expected a uuid's 36 characters",
				  collection_id ? collection_id : "");
	pthread_mutex_lock(&svc->lock);
	code = find_vm(svc, vm, err, &row);
	if (code)
		goto out;
	r = eng_catalog_get_collection_id(catalog_of(svc), &id, &coll);
	if (r < 0) {
		code = r == -ENOENT ? 0 : answer_errno(err, r, NULL, collection_id);
		goto out;
	}
	code = check_idle(svc, &coll, &row, VMIMG_V_IN_USE, err);
	if (code == 0)
		code = is_member(svc, &coll, &row, err, &member);
	if (code == 0 && member)
		code = change_member(svc, &coll, &row, false, err);
out:
	pthread_mutex_unlock(&svc->lock);
	return code;
}
