/* SPDX-License-Identifier: MIT */
/* collection.c - the collection management calls: every answer of CM-1 to CM-9. */
#include <errno.h>
#include <string.h>

#include "tests/api/fixture.h"

TestSuite(api_collection, .init = fixture_init, .fini = fixture_fini, .timeout = 60);

#define ID "8f8c1e8a-1f5f-4b1a-9d2e-0a1b2c3d4e5f"

static size_t members_of(const char *collection)
{
	json_t *doc = describe(VMIMG_KIND_COLLECTION, collection);
	size_t count = json_array_size(json_object_get(doc, "members"));

	json_decref(doc);
	return count;
}

/* CM-1 */
Test(api_collection, define_gives_name_and_id)
{
	struct vmimg_ref made = {0}, given = {0};
	json_t *doc;

	expect_ok(vmimg_define_collection(svc, "prod", ID, 0, &given, &err));
	cr_expect_str_eq(given.name, "prod");
	cr_expect_str_eq(given.id, ID);
	expect_ok(vmimg_define_collection(svc, NULL, NULL, 0, &made, &err));
	cr_expect_eq(strncmp(made.name, "c-", 2), 0, "%s", made.name);
	cr_expect_eq(strncmp(made.name + 2, made.id, 8), 0, "%s, %s", made.name, made.id);
	expect_ok(vmimg_define_collection(svc, "", "", 0, NULL, &err));
	cr_expect_eq(count_of(VMIMG_KIND_COLLECTION), 3);
	doc = describe(VMIMG_KIND_COLLECTION, "prod");
	cr_expect_str_eq(text(doc, "id"), ID);
	json_decref(doc);
}

/* CM-1 */
Test(api_collection, define_refuses)
{
	struct vmimg_ref ref = {.name = "untouched"};

	expect_ok(vmimg_define_collection(svc, "prod", ID, 0, NULL, &err));
	expect_error(vmimg_define_collection(NULL, "a", NULL, 0, &ref, &err),
		     VMIMG_V_INVALID_PARAMETER);
	expect_error(vmimg_define_collection(svc, "a", NULL, 1, &ref, &err), VMIMG_V_NOT_SUPPORTED);
	expect_error(vmimg_define_collection(svc, "a", NULL, 2, &ref, &err),
		     VMIMG_V_INVALID_PARAMETER);
	expect_error(vmimg_define_collection(svc, "a/b", NULL, 0, &ref, &err),
		     VMIMG_V_INVALID_PARAMETER);
	expect_error(vmimg_define_collection(svc, "a", "x", 0, &ref, &err),
		     VMIMG_V_INVALID_PARAMETER);
	expect_error(vmimg_define_collection(svc, "a", "00000000-0000-0000-0000-000000000000", 0,
					     &ref, &err),
		     VMIMG_V_INVALID_PARAMETER);
	expect_error(vmimg_define_collection(svc, "prod", NULL, 0, &ref, &err),
		     VMIMG_V_INVALID_PARAMETER);
	expect_error(vmimg_define_collection(svc, "a", ID, 0, &ref, &err),
		     VMIMG_V_INVALID_PARAMETER);
	cr_expect_str_eq(ref.name, "untouched");
	cr_expect_eq(count_of(VMIMG_KIND_COLLECTION), 1);
}

/* CM-2, CM-7 */
Test(api_collection, destroy_lets_members_go)
{
	make_vm("web", 0);
	make_collection("prod", "web", NULL);
	expect_error(vmimg_destroy_collection(svc, "gone", &err), VMIMG_V_NOT_FOUND);
	expect_error(vmimg_destroy_collection(svc, "a b", &err), VMIMG_V_INVALID_PARAMETER);
	expect_error(vmimg_destroy_collection(svc, NULL, &err), VMIMG_V_INVALID_PARAMETER);
	expect_error(vmimg_destroy_collection(NULL, "prod", &err), VMIMG_V_INVALID_PARAMETER);
	expect_ok(vmimg_destroy_collection(svc, "prod", &err));
	cr_expect_eq(count_of(VMIMG_KIND_COLLECTION), 0);
	expect_ok(vmimg_vm_delete(svc, "web", &err));
}

/* CM-2 */
Test(api_collection, destroy_with_snapshots_is_32775)
{
	make_vm("web", 1);
	make_collection("prod", "web", NULL);
	expect_ok(create("prod", "s1"));
	expect_error(vmimg_destroy_collection(svc, "prod", &err), VMIMG_V_INVALID_STATE);
	cr_expect_eq(members_of("prod"), 1);
	expect_filled("prod@s1/web/d0", 0, 4096, 0);
}

/* CM-3 */
Test(api_collection, rename_keeps_members_and_snapshots)
{
	json_t *snap;

	make_vm("web", 1);
	make_collection("prod", "web", NULL);
	make_collection("other", NULL);
	expect_ok(create("prod", "s1"));
	expect_error(vmimg_rename_collection(svc, "gone", "x", &err), VMIMG_V_NOT_FOUND);
	expect_error(vmimg_rename_collection(svc, "prod", "x y", &err), VMIMG_V_INVALID_PARAMETER);
	expect_error(vmimg_rename_collection(svc, "prod", NULL, &err), VMIMG_V_INVALID_PARAMETER);
	expect_error(vmimg_rename_collection(svc, "prod", "other", &err),
		     VMIMG_V_INVALID_PARAMETER);
	expect_error(vmimg_rename_collection(svc, "p d", "x", &err), VMIMG_V_INVALID_PARAMETER);
	expect_ok(vmimg_rename_collection(svc, "prod", "prod", &err));
	expect_ok(vmimg_rename_collection(svc, "prod", "live", &err));
	cr_expect_eq(members_of("live"), 1);
	snap = describe(VMIMG_KIND_SNAPSHOT, "live@s1");
	cr_expect_str_eq(text(snap, "snapshot"), "live@s1");
	json_decref(snap);
	expect_error(vmimg_rename_collection(svc, "prod", "x", &err), VMIMG_V_NOT_FOUND);
	expect_filled("live@s1/web/d0", 0, 4096, 0);
}

/* CM-4, CM-8 */
Test(api_collection, add_member)
{
	make_vm("web", 0);
	make_collection("prod", NULL);
	make_collection("also", "web", NULL);
	expect_error(vmimg_add_member(svc, "gone", "prod", &err), VMIMG_V_NOT_FOUND);
	expect_error(vmimg_add_member(svc, "web", "gone", &err), VMIMG_V_NOT_FOUND);
	expect_error(vmimg_add_member(svc, "a/b", "prod", &err), VMIMG_V_INVALID_PARAMETER);
	expect_error(vmimg_add_member(svc, "web", "a/b", &err), VMIMG_V_INVALID_PARAMETER);
	expect_error(vmimg_add_member(svc, NULL, NULL, &err), VMIMG_V_INVALID_PARAMETER);
	expect_ok(vmimg_add_member(svc, "web", "prod", &err));
	expect_error(vmimg_add_member(svc, "web", "prod", &err), VMIMG_V_INVALID_STATE);
	cr_expect_eq(members_of("prod"), 1);
	cr_expect_eq(members_of("also"), 1);
}

/* CM-5 */
Test(api_collection, remove_member_leaves_snapshots)
{
	make_vm("web", 1);
	make_vm("db", 1);
	make_collection("prod", "web", "db", NULL);
	fill("web/d0", 0, 4096, 0x66);
	expect_ok(create("prod", "s1"));
	expect_error(vmimg_remove_member(svc, "gone", "prod", &err), VMIMG_V_NOT_FOUND);
	expect_error(vmimg_remove_member(svc, "web", "gone", &err), VMIMG_V_NOT_FOUND);
	expect_ok(vmimg_remove_member(svc, "web", "prod", &err));
	expect_error(vmimg_remove_member(svc, "web", "prod", &err), VMIMG_V_INVALID_STATE);
	cr_expect_eq(members_of("prod"), 1);
	expect_filled("prod@s1/web/d0", 0, 4096, 0x66);
}

/* CM-6 */
Test(api_collection, remove_member_by_id_is_idempotent)
{
	make_vm("web", 0);
	expect_ok(vmimg_define_collection(svc, "prod", ID, 0, NULL, &err));
	expect_ok(vmimg_add_member(svc, "web", "prod", &err));
	expect_error(vmimg_remove_member_by_id(svc, "web", "x", &err), VMIMG_V_INVALID_PARAMETER);
	expect_error(vmimg_remove_member_by_id(svc, "web", NULL, &err), VMIMG_V_INVALID_PARAMETER);
	expect_error(vmimg_remove_member_by_id(svc, "w b", ID, &err), VMIMG_V_INVALID_PARAMETER);
	expect_error(vmimg_remove_member_by_id(svc, "gone", ID, &err), VMIMG_V_NOT_FOUND);
	expect_ok(vmimg_remove_member_by_id(svc, "web", ID, &err));
	cr_expect_eq(members_of("prod"), 0);
	expect_ok(vmimg_remove_member_by_id(svc, "web", ID, &err));
	expect_ok(vmimg_remove_member_by_id(svc, "web", "8f8c1e8a-1f5f-4b1a-9d2e-000000000000",
					    &err));
}

/* CM-2..CM-6, CU-4, T6: membership is locked while a create runs */
Test(api_collection, a_running_create_locks_its_collection)
{
	struct vmimg_disk_spec spec = {.size_of = sizeof(spec), .size = MIB};
	struct vmimg_ref prod = {0};
	struct vmimg_job *job;
	struct stuck guest;

	make_vm("web", 2);
	make_vm("db", 0);
	expect_ok(vmimg_define_collection(svc, "prod", NULL, 0, &prod, &err));
	expect_ok(vmimg_add_member(svc, "web", "prod", &err));
	make_collection("also", NULL);
	stuck_begin(&guest, "web/d0");
	job = start_job("prod", "s1");
	expect_error(vmimg_destroy_collection(svc, "prod", &err), VMIMG_V_INVALID_STATE);
	expect_error(vmimg_rename_collection(svc, "prod", "x", &err), VMIMG_V_IN_USE);
	expect_error(vmimg_add_member(svc, "db", "prod", &err), VMIMG_V_IN_USE);
	expect_error(vmimg_add_member(svc, "web", "also", &err), VMIMG_V_IN_USE);
	expect_error(vmimg_remove_member(svc, "web", "prod", &err), VMIMG_V_IN_USE);
	expect_error(vmimg_remove_member_by_id(svc, "web", prod.id, &err), VMIMG_V_IN_USE);
	expect_error(vmimg_vm_delete(svc, "web", &err), -ENOTEMPTY);
	expect_error(vmimg_disk_create(svc, "web/new", &spec, &err), -EBUSY);
	expect_error(vmimg_disk_resize(svc, "web/d1", 16 * MIB, &err), -EBUSY);
	expect_error(vmimg_disk_delete(svc, "web/d1", &err), -EBUSY);
	expect_ok(vmimg_add_member(svc, "db", "also", &err)); /* has nothing to do with it */
	stuck_end(&guest);
	expect_state(job, VMIMG_JOB_COMPLETED);
	vmimg_job_put(job);
	expect_ok(vmimg_add_member(svc, "web", "also", &err));
	expect_ok(vmimg_rename_collection(svc, "prod", "x", &err));
	expect_ok(vmimg_disk_create(svc, "web/new", &spec, &err));
	expect_ok(vmimg_disk_resize(svc, "web/d1", 16 * MIB, &err));
}
