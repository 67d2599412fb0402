/* SPDX-License-Identifier: MIT */
/*
 * call_elements.c - the methods of VMs, disks and collections, and those that only look (CP-*, section
 * 2 of spec/control.md). Each hands its checked parameters to the call of vmimg.h that does it. Any
 * thread.
 */
#include "api/call.h"

#include <errno.h>
#include <string.h>

/* The method has one name to look up; what is wrong is wrong with that. */
static int64_t blame_name(struct api_call *call, int64_t code)
{
	static const struct api_blame about[] = {{"", 0}, {NULL, 0}};

	return api_call_blame_words(call, code, about);
}

static int64_t answer_nothing(struct api_call *call, int64_t code)
{
	if (code)
		return code;
	call->result = json_object();
	return 0;
}

/* What was made is there, whether or not it can be described. */
static int64_t answer_made(struct api_call *call, int64_t code, enum vmimg_kind kind)
{
	if (code == 0 &&
	    api_call_describe(call, kind | VMIMG_KIND_BRIEF, api_call_text(call, 0)) < 0)
		call->result = json_object();
	return code;
}

/* --- virtual machines --- */

static const struct api_blame about_vm[] = {{": guest agent", 1}, {"", 0}, {NULL, 0}};

static int64_t define_vm(struct api_call *call)
{
	const struct vmimg_vm_spec spec = {
		.size_of = sizeof(spec),
		.guest_agent = api_call_text(call, 1),
	};
	int64_t code = vmimg_vm_create_with(call->svc, api_call_text(call, 0), &spec, &call->error);

	return answer_made(call, api_call_blame_words(call, code, about_vm), VMIMG_KIND_VM);
}

static int64_t set_guest_agent(struct api_call *call)
{
	int64_t code = vmimg_vm_set_guest_agent(call->svc, api_call_text(call, 0),
						api_call_text(call, 1), &call->error);

	return answer_made(call, api_call_blame_words(call, code, about_vm), VMIMG_KIND_VM);
}

static int64_t destroy_vm(struct api_call *call)
{
	int64_t code = vmimg_vm_delete(call->svc, api_call_text(call, 0), &call->error);

	return answer_nothing(call, blame_name(call, code));
}

/* --- disks --- */

static int64_t create_disk(struct api_call *call)
{
	struct vmimg_disk_spec spec = {
		.size_of = sizeof(spec),
		.size = api_call_number(call, 1),
		.from = api_call_text(call, 2),
		.format = api_call_text(call, 3),
		.in_place = api_call_bool(call, 4),
		.independent = api_call_bool(call, 5),
	};
	uint64_t block = api_call_number(call, 6);

	if (spec.from && spec.from[0] != '/') /* CP-6 */
		return api_call_blame(call, 2,
				      api_fail(&call->error, -EINVAL,
					       "From is '%.128s', expected an absolute path",
					       spec.from));
	while (block && UINT64_C(1) << spec.block_bits < block)
		spec.block_bits++;
	if (block && UINT64_C(1) << spec.block_bits != block)
		return api_call_blame(call, 6,
				      api_fail(&call->error, -EINVAL,
					       "BlockSize is %llu, expected a power of two",
					       (unsigned long long)block));
	return answer_made(call,
			   vmimg_disk_create(call->svc, api_call_text(call, 0), &spec,
					     &call->error),
			   VMIMG_KIND_DISK);
}

/* Shrink allows it, and is no more than that: a larger size is a grow all the same. */
static int64_t resize_disk(struct api_call *call)
{
	const char *disk = api_call_text(call, 0);
	uint64_t size = api_call_number(call, 1);
	int64_t code = vmimg_disk_resize(call->svc, disk, size, &call->error);

	if (code == -EINVAL && api_call_bool(call, 2))
		code = vmimg_disk_shrink(call->svc, disk, size, &call->error);
	return answer_made(call, code, VMIMG_KIND_DISK);
}

static int64_t delete_disk(struct api_call *call)
{
	int64_t code = vmimg_disk_delete(call->svc, api_call_text(call, 0), &call->error);

	return answer_nothing(call, blame_name(call, code));
}

/* --- collections --- */

/* CP-5; none of these starts a job (CM). */
static int64_t answer_collection(struct api_call *call, int64_t code)
{
	if (code)
		return code;
	call->result = json_pack("{s:i, s:n}", "ReturnValue", 0, "Job");
	return 0;
}

static int64_t define_collection(struct api_call *call)
{
	static const struct api_blame about[] = {{": its id", 1},
						 {"collection: id", 1},
						 {"collection: type", 2},
						 {"collection", 0},
						 {NULL, 0}};
	struct vmimg_ref made;
	uint32_t code = vmimg_define_collection(call->svc, api_call_text(call, 0),
						api_call_text(call, 1),
						(uint16_t)api_call_number(call, 2), &made,
						&call->error);

	if (code)
		return api_call_blame_words(call, code, about);
	call->result = json_pack("{s:i, s:{s:s, s:s}, s:n}", "ReturnValue", 0, "DefinedCollection",
				 "Name", made.name, "Id", made.id, "Job");
	return 0;
}

static int64_t destroy_collection(struct api_call *call)
{
	uint32_t code = vmimg_destroy_collection(call->svc, api_call_text(call, 0), &call->error);

	return answer_collection(call, blame_name(call, code));
}

static int64_t rename_collection(struct api_call *call)
{
	static const struct api_blame about[] = {{": exists already", 1},
						 {": there is none", 0},
						 {NULL, 0}};
	uint32_t code = vmimg_rename_collection(call->svc, api_call_text(call, 0),
						api_call_text(call, 1), &call->error);

	return answer_collection(call, api_call_blame_words(call, code, about));
}

static const struct api_blame about_member[] = {{"vm", 0}, {"collection", 1}, {NULL, 0}};

static int64_t add_member(struct api_call *call)
{
	uint32_t code = vmimg_add_member(call->svc, api_call_text(call, 0), api_call_text(call, 1),
					 &call->error);

	return answer_collection(call, api_call_blame_words(call, code, about_member));
}

static int64_t remove_member(struct api_call *call)
{
	uint32_t code = vmimg_remove_member(call->svc, api_call_text(call, 0),
					    api_call_text(call, 1), &call->error);

	return answer_collection(call, api_call_blame_words(call, code, about_member));
}

static int64_t remove_member_by_id(struct api_call *call)
{
	uint32_t code = vmimg_remove_member_by_id(call->svc, api_call_text(call, 0),
						  api_call_text(call, 1), &call->error);

	return answer_collection(call, api_call_blame_words(call, code, about_member));
}

/* --- looking --- */

static int64_t read_kind(struct api_call *call, enum vmimg_kind *ret)
{
	static const char *const kinds[] = {
		[VMIMG_KIND_STORE] = "store",       [VMIMG_KIND_VM] = "vm",
		[VMIMG_KIND_DISK] = "disk",         [VMIMG_KIND_COLLECTION] = "collection",
		[VMIMG_KIND_SNAPSHOT] = "snapshot", [VMIMG_KIND_JOB] = "job",
		[VMIMG_KIND_TREE] = "tree",         [VMIMG_KIND_REFPOINT] = "refpoint",
	};

	for (unsigned i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
		if (strcmp(kinds[i], api_call_text(call, 0)) == 0) {
			*ret = (enum vmimg_kind)i;
			return 0;
		}
	}
	return api_call_blame(call, 0,
			      api_fail(&call->error, -EINVAL,
				       "Kind is '%.64s', expected store, vm, disk, collection, "
				       "snapshot, refpoint, job or tree",
				       api_call_text(call, 0)));
}

static int64_t describe(struct api_call *call)
{
	enum vmimg_kind kind;
	int64_t code = read_kind(call, &kind);

	if (code)
		return code;
	if (api_call_bool(call, 2))
		kind |= VMIMG_KIND_BRIEF;
	code = api_call_describe(call, kind, api_call_text(call, 1));
	return code == -EINVAL || code == -ENOENT ? api_call_blame(call, 1, code) : code;
}

static int64_t list(struct api_call *call)
{
	enum vmimg_kind kind;
	int64_t code = read_kind(call, &kind);

	if (code)
		return code;
	if (api_call_bool(call, 2))
		kind |= VMIMG_KIND_BRIEF;
	code = vmimg_list(call->svc, kind, api_call_text(call, 1), &call->error, &call->text);
	return code == -EINVAL || code == -ENOENT ? api_call_blame(call, 1, code) : code;
}

static int64_t store_info(struct api_call *call)
{
	return api_call_describe(call, VMIMG_KIND_STORE, NULL);
}

static int64_t version(struct api_call *call)
{
	call->result = json_pack("{s:s}", "Version", vmimg_version());
	return 0;
}

const struct api_method api_element_methods[] = {
	{"DefineVirtualMachine", define_vm, {TEXT("Name", true), TEXT("GuestAgent", false)}},
	{"SetGuestAgent", set_guest_agent, {TEXT("VirtualMachine", true), TEXT("GuestAgent", true)}},
	{"DestroyVirtualMachine", destroy_vm, {TEXT("VirtualMachine", true)}},
	{"CreateDisk",
	 create_disk,
	 {TEXT("Disk", true),
	  NUMBER("Size", false, INT64_MAX),
	  PATH("From", false),
	  TEXT("Format", false),
	  BOOL("InPlace"),
	  BOOL("Independent"),
	  {.name = "BlockSize", .type = API_NUMBER, .min = 4096, .max = 65536}}},
	{"ResizeDisk",
	 resize_disk,
	 {TEXT("Disk", true), NUMBER("Size", true, INT64_MAX), BOOL("Shrink")}},
	{"DeleteDisk", delete_disk, {TEXT("Disk", true)}},
	{"DefineCollection",
	 define_collection,
	 {TEXT("Name", false), TEXT("Id", false), NUMBER("Type", false, UINT16_MAX)}},
	{"DestroyCollection", destroy_collection, {TEXT("Collection", true)}},
	{"RenameCollection", rename_collection, {TEXT("Collection", true), TEXT("NewName", true)}},
	{"AddMember", add_member, {TEXT("Member", true), TEXT("Collection", true)}},
	{"RemoveMember", remove_member, {TEXT("Member", true), TEXT("Collection", true)}},
	{"RemoveMemberById",
	 remove_member_by_id,
	 {TEXT("Member", true), TEXT("CollectionId", true)}},
	{"Describe", describe, {TEXT("Kind", true), TEXT("Name", false), BOOL("Brief")}},
	{"List", list, {TEXT("Kind", true), TEXT("Filter", false), BOOL("Brief")}},
	{"StoreInfo", store_info, {{0}}},
	{"Version", version, {{0}}},
	{0},
};
