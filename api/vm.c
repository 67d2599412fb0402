/* SPDX-License-Identifier: MIT */
/* vm.c - virtual machines: rows of the catalog that disks and collections refer to. Any thread. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/event.h"
#include "api/quiesce.h"

static int check_arguments(const struct vmimg_service *svc, const char *vm, struct vmimg_error *err)
{
	if (!svc)
		return api_fail(err, -EINVAL, "vm: no service given");
	if (!api_name_is_valid(vm))
		return api_fail(err, -EINVAL,
				"vm: '%.80s' is no name, expected 1 to 64 of A-Z a-z 0-9 . _ - "
				"beginning with a letter or digit",
				vm ? vm : "");
	return 0;
}

/* QU-1: into a row. */
static int set_agent(struct cat_vm *row, const char *socket, struct vmimg_error *err)
{
	size_t len = socket ? strlen(socket) : 0;

	if (len && (socket[0] != '/' || len < 2 || len >= sizeof(row->guest_agent)))
		return api_fail(err, -EINVAL,
				"vm %s: guest agent '%.120s' is no socket, expected an absolute "
				"path of 2 to %zu bytes",
				row->name, socket, sizeof(row->guest_agent) - 1);
	memset(row->guest_agent, 0, sizeof(row->guest_agent));
	if (len)
		memcpy(row->guest_agent, socket, len);
	return 0;
}

int vmimg_vm_create(struct vmimg_service *svc, const char *vm, struct vmimg_error *err)
{
	return vmimg_vm_create_with(svc, vm, NULL, err);
}

int vmimg_vm_create_with(struct vmimg_service *svc, const char *vm,
			 const struct vmimg_vm_spec *spec, struct vmimg_error *err)
{
	struct fmt_error why = {""};
	struct cat_vm row = {0};
	int r = check_arguments(svc, vm, err);

	if (r < 0)
		return r;
	if (spec && spec->size_of < sizeof(*spec))
		return api_fail(err, -EINVAL, "vm %s: size_of is %u, expected at least %zu", vm,
				spec->size_of, sizeof(*spec));
	snprintf(row.name, sizeof(row.name), "%s", vm);
	r = set_agent(&row, spec ? spec->guest_agent : NULL, err);
	if (r < 0)
		return r;
	eng_store_new_id(svc->store, &row.id);
	row.created_ns = eng_io_wall_ns(svc->io);
	r = eng_catalog_begin(svc->store->catalog);
	if (r == 0) {
		eng_catalog_put_vm(svc->store->catalog, &row);
		r = eng_catalog_commit(svc->store->catalog, &why);
	}
	if (r == -EEXIST)
		return api_fail(err, r, "vm %s: exists already", vm);
	if (r < 0)
		return api_fail_why(err, r, &why, vm);
	api_event_change(svc, "vm", "created", vm);
	return 0;
}

/*
 * QU-4: freezes of agents that are not the VM's any more are nobody's to thaw. In the transaction: a VM that
 * was deleted since @row was read must not come back.
 */
static int put_rows(struct vmimg_service *svc, const struct cat_vm *row)
{
	struct eng_catalog *cat = svc->store->catalog;
	struct cat_freeze *freezes = NULL;
	struct cat_vm now;
	size_t count = 0;
	int r = eng_catalog_get_vm(cat, row->name, &now);

	if (r == 0 && !fmt_uuid_equal(&now.id, &row->id))
		r = -ENOENT;
	if (r == 0)
		r = eng_catalog_list_freezes(cat, &row->id, &freezes, &count);
	if (r == 0)
		r = eng_catalog_put_vm(cat, row);
	for (size_t i = 0; r == 0 && i < count; i++)
		if (strcmp(freezes[i].socket, row->guest_agent) != 0)
			r = eng_catalog_remove_freeze(cat, &row->id, freezes[i].socket);
	free(freezes);
	return r;
}

static int put_agent(struct vmimg_service *svc, const struct cat_vm *row, struct fmt_error *why)
{
	struct eng_catalog *cat = svc->store->catalog;
	int r = eng_catalog_begin(cat);

	if (r < 0)
		return r;
	r = put_rows(svc, row);
	if (r < 0) {
		eng_catalog_rollback(cat);
		return r == -ENOENT ? fmt_fail(why, r, "vm %s: deleted meanwhile", row->name) : r;
	}
	r = eng_catalog_commit(cat, why);
	if (r < 0)
		return r;
	pthread_mutex_lock(&svc->lock);
	api_thaw_forget_locked(svc, &row->id, row->guest_agent);
	pthread_mutex_unlock(&svc->lock);
	api_event_change(svc, "vm", "changed", row->name);
	return 0;
}

/* The VM that a call is about. */
static int find(struct vmimg_service *svc, const char *vm, struct vmimg_error *err,
		struct cat_vm *ret)
{
	static const struct fmt_error none;
	int r = check_arguments(svc, vm, err);

	if (r < 0)
		return r;
	r = eng_catalog_get_vm(svc->store->catalog, vm, ret);
	if (r == -ENOENT)
		return api_fail(err, r, "vm %s: there is none of this name", vm);
	return r < 0 ? api_fail_why(err, r, &none, vm) : 0;
}

int vmimg_vm_set_guest_agent(struct vmimg_service *svc, const char *vm, const char *socket,
			     struct vmimg_error *err)
{
	struct fmt_error why = {""};
	struct cat_vm row;
	int r = find(svc, vm, err, &row);

	if (r == 0)
		r = set_agent(&row, socket, err);
	if (r < 0)
		return r;
	r = put_agent(svc, &row, &why);
	return r < 0 ? api_fail_why(err, r, &why, vm) : 0;
}

static int check_unused(struct vmimg_service *svc, const struct cat_vm *vm, struct vmimg_error *err)
{
	struct cat_disk *disks = NULL;
	size_t count = 0;
	int r = eng_catalog_list_disks(svc->store->catalog, &vm->id, &disks, &count);

	free(disks);
	if (r < 0)
		return api_fail(err, r, "vm %s: its disks cannot be read", vm->name);
	if (count)
		return api_fail(err, -ENOTEMPTY, "vm %s: has %zu disks, expected none", vm->name,
				count);
	return 0;
}

int vmimg_vm_delete(struct vmimg_service *svc, const char *vm, struct vmimg_error *err)
{
	struct fmt_error why = {""};
	struct cat_vm row;
	int r = find(svc, vm, err, &row);

	if (r == 0)
		r = check_unused(svc, &row, err);
	if (r < 0)
		return r;
	r = eng_catalog_begin(svc->store->catalog);
	if (r == 0) {
		eng_catalog_remove_vm(svc->store->catalog, &row.id);
		r = eng_catalog_commit(svc->store->catalog, &why);
	}
	/* The catalog refuses to remove what something refers to. */
	if (r == -EBUSY)
		return api_fail(err, r, "vm %s: is a member of a collection", vm);
	if (r < 0)
		return api_fail_why(err, r, &why, vm);
	api_event_change(svc, "vm", "deleted", vm);
	return 0;
}
