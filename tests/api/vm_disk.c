/* SPDX-License-Identifier: MIT */
/* vm_disk.c - VMs and disks: names, sizes, and what is refused while something uses them. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/api/fixture.h"

TestSuite(api_vm_disk, .init = fixture_init, .fini = fixture_fini, .timeout = 60);

#define NAME64 "a234567890123456789012345678901234567890123456789012345678901234"

static int make(const char *name, struct vmimg_disk_spec spec)
{
	spec.size_of = sizeof(spec);
	return vmimg_disk_create(svc, name, &spec, &err);
}

/* RC-6 */
Test(api_vm_disk, vm_names)
{
	static const char *const bad[] = {"",    "-a",  ".a",  "_a",       "a b",
					  "a/b", "a@b", "a#b", "\xc3\xa4", NAME64 "5"};

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		expect_error(vmimg_vm_create(svc, bad[i], &err), -EINVAL);
	expect_error(vmimg_vm_create(svc, NULL, &err), -EINVAL);
	expect_error(vmimg_vm_create(NULL, "web", &err), -EINVAL);
	expect_ok(vmimg_vm_create(svc, NAME64, &err));
	expect_ok(vmimg_vm_create(svc, "web", &err));
	expect_ok(vmimg_vm_create(svc, "Web", &err));
	expect_ok(vmimg_vm_create(svc, "0.web-1_b", &err));
	expect_error(vmimg_vm_create(svc, "web", &err), -EEXIST);
	cr_expect_eq(count_of(VMIMG_KIND_VM), 4);
	cr_expect_eq(vmimg_vm_create(svc, "web", NULL), -EEXIST, "an error text is optional");
}

Test(api_vm_disk, a_used_vm_stays)
{
	make_vm("web", 1);
	make_vm("db", 0);
	make_vm("free", 0);
	make_collection("prod", "db", NULL);
	expect_error(vmimg_vm_delete(svc, "web", &err), -ENOTEMPTY);
	expect_error(vmimg_vm_delete(svc, "db", &err), -EBUSY);
	expect_error(vmimg_vm_delete(svc, "gone", &err), -ENOENT);
	expect_error(vmimg_vm_delete(svc, "a/b", &err), -EINVAL);
	expect_error(vmimg_vm_delete(NULL, "web", &err), -EINVAL);
	expect_ok(vmimg_vm_delete(svc, "free", &err));
	cr_expect_eq(count_of(VMIMG_KIND_VM), 2);
}

Test(api_vm_disk, bad_disks_are_refused)
{
	static const char *const bad[] = {"",      "web",        "/d",
					  "web/",  "web/a/b",    "web/a b",
					  "w b/a", NAME64 "5/a", "a/" NAME64 "5"};

	make_vm("web", 1);
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		expect_error(make(bad[i], (struct vmimg_disk_spec){.size = MIB}), -EINVAL);
	expect_error(make(NULL, (struct vmimg_disk_spec){.size = MIB}), -EINVAL);
	expect_error(vmimg_disk_create(svc, "web/a", NULL, &err), -EINVAL);
	expect_error(vmimg_disk_create(svc, "web/a", &(struct vmimg_disk_spec){.size = MIB}, &err),
		     -EINVAL);
	expect_error(make("web/a", (struct vmimg_disk_spec){.size = 0}), -EINVAL);
	expect_error(make("web/a", (struct vmimg_disk_spec){.size = 511}), -EINVAL);
	expect_error(make("web/a", (struct vmimg_disk_spec){.size = (1ull << 53) + 512}), -EINVAL);
	expect_error(make("web/a", (struct vmimg_disk_spec){.size = MIB, .block_bits = 11}),
		     -EINVAL);
	expect_error(make("web/a", (struct vmimg_disk_spec){.size = MIB, .block_bits = 17}),
		     -EINVAL);
	expect_error(make("web/a", (struct vmimg_disk_spec){.size = MIB, .in_place = true}),
		     -EINVAL);
	expect_error(make("web/a", (struct vmimg_disk_spec){.size = MIB, .format = "raw"}),
		     -EINVAL);
	expect_error(make("web/a", (struct vmimg_disk_spec){.from = "/dev/null", .format = "vhdx"}),
		     -EINVAL);
	expect_error(make("web/a", (struct vmimg_disk_spec){.from = ""}), -EINVAL);
	expect_error(make("web/a", (struct vmimg_disk_spec){.from = "/nowhere/at/all"}), -ENOENT);
	expect_error(make("gone/a", (struct vmimg_disk_spec){.size = MIB}), -ENOENT);
	expect_error(make("web/d0", (struct vmimg_disk_spec){.size = MIB}), -EEXIST);
	cr_expect_eq(count_of(VMIMG_KIND_DISK), 1);
}

Test(api_vm_disk, disks_of_any_block_size)
{
	json_t *disk;
	char name[16];

	make_vm("web", 0);
	for (unsigned bits = 12; bits <= 16; bits++) {
		snprintf(name, sizeof(name), "web/b%u", bits);
		expect_ok(make(name,
			       (struct vmimg_disk_spec){.size = MIB + 512, .block_bits = bits}));
		disk = describe(VMIMG_KIND_DISK, name);
		cr_expect_eq(number(disk, "block_size"), 1 << bits);
		cr_expect_eq(number(disk, "size"), MIB + 512);
		json_decref(disk);
	}
	make_collection("prod", "web", NULL);
	expect_ok(create("prod", "s1"));
	for (unsigned bits = 12; bits <= 16; bits++) {
		snprintf(name, sizeof(name), "web/b%u", bits);
		fill(name, MIB - 512, 1024, (uint8_t)bits); /* the last, partial block */
		expect_filled(name, MIB - 512, 1024, (uint8_t)bits);
		expect_filled(name, MIB - 1024, 512, 0);
	}
}

static void write_file(const char *path, uint8_t byte, size_t len)
{
	FILE *file = fopen(path, "w");

	cr_assert_not_null(file);
	for (size_t i = 0; i < len; i++)
		fputc(byte, file);
	cr_assert_eq(fclose(file), 0);
}

/* IB-2 */
Test(api_vm_disk, an_image_in_place_belongs_to_one_disk)
{
	char path[400];

	make_vm("web", 0);
	snprintf(path, sizeof(path), "%s/base.raw", scratch);
	write_file(path, 0x5a, MIB);
	expect_ok(make("web/a",
		       (struct vmimg_disk_spec){.from = path, .format = "raw", .in_place = true}));
	expect_filled("web/a", 0, MIB, 0x5a);
	expect_error(make("web/b",
			  (struct vmimg_disk_spec){.from = path, .format = "raw", .in_place = true}),
		     -EEXIST);
	cr_expect_eq(count_of(VMIMG_KIND_DISK), 1);
}

Test(api_vm_disk, an_imported_image_is_copied)
{
	char path[400];

	make_vm("web", 0);
	snprintf(path, sizeof(path), "%s/base.raw", scratch);
	write_file(path, 0x5b, MIB);
	expect_ok(make("web/a", (struct vmimg_disk_spec){.from = path}));
	write_file(path, 0, MIB);
	expect_filled("web/a", 0, MIB, 0x5b);
}

Test(api_vm_disk, delete_refuses_what_is_used)
{
	struct vmimg_queue *queue = new_queue();
	struct vmimg_disk *disk;

	make_vm("web", 3);
	make_collection("prod", "web", NULL);
	disk = attach(queue, "web/d0", 0);
	expect_error(vmimg_disk_delete(svc, "web/d0", &err), -EBUSY);
	cr_expect_eq(vmimg_disk_detach(disk), 0);
	expect_ok(vmimg_disk_delete(svc, "web/d0", &err));
	expect_error(vmimg_disk_delete(svc, "web/d0", &err), -ENOENT);
	expect_error(vmimg_disk_delete(svc, "gone/d0", &err), -ENOENT);
	expect_error(vmimg_disk_delete(svc, "web", &err), -EINVAL);
	expect_error(vmimg_disk_delete(NULL, "web/d1", &err), -EINVAL);
	expect_ok(create("prod", "s1"));
	expect_error(vmimg_disk_delete(svc, "web/d1", &err), -EBUSY);
	cr_expect_eq(count_of(VMIMG_KIND_DISK), 2);
	cr_expect_eq(vmimg_queue_destroy(queue), 0);
}

/* AT-6 */
Test(api_vm_disk, resize_grows)
{
	struct vmimg_queue *queue = new_queue();
	struct vmimg_disk *disk;

	make_vm("web", 1);
	make_collection("prod", "web", NULL);
	fill("web/d0", 8 * MIB - 4096, 4096, 0x21);
	expect_error(vmimg_disk_resize(svc, "web/d0", 4 * MIB, &err), -EINVAL);
	expect_error(vmimg_disk_resize(svc, "web/d0", 0, &err), -EINVAL);
	expect_error(vmimg_disk_resize(svc, "web/d0", 8 * MIB + 1, &err), -EINVAL);
	expect_error(vmimg_disk_resize(svc, "web/d0", (1ull << 53) + 512, &err), -EINVAL);
	expect_error(vmimg_disk_resize(svc, "web/gone", 16 * MIB, &err), -ENOENT);
	expect_error(vmimg_disk_resize(svc, "web", 16 * MIB, &err), -EINVAL);
	disk = attach(queue, "web/d0", 0);
	expect_error(vmimg_disk_resize(svc, "web/d0", 16 * MIB, &err), -EDEADLK);
	cr_expect_eq(vmimg_disk_detach(disk), 0);
	disk = attach(queue, "web/d0", VMIMG_ATTACH_READ_ONLY);
	expect_error(vmimg_disk_resize(svc, "web/d0", 16 * MIB, &err), -EBUSY);
	cr_expect_eq(vmimg_disk_detach(disk), 0);
	expect_ok(vmimg_disk_resize(svc, "web/d0", 16 * MIB, &err)); /* a raw head */
	expect_filled("web/d0", 8 * MIB - 4096, 4096, 0x21);
	expect_filled("web/d0", 8 * MIB, 8 * MIB, 0);
	expect_ok(create("prod", "s1"));
	expect_ok(vmimg_disk_resize(svc, "web/d0", 24 * MIB, &err)); /* an overlay */
	fill("web/d0", 24 * MIB - 512, 512, 0x22);
	disk = attach(queue, "prod@s1/web/d0", VMIMG_ATTACH_READ_ONLY);
	cr_expect_eq(vmimg_disk_size(disk), 16 * MIB, "the snapshot keeps its size");
	cr_expect_eq(vmimg_disk_detach(disk), 0);
	cr_expect_eq(vmimg_queue_destroy(queue), 0);
	fixture_reopen();
	expect_filled("web/d0", 24 * MIB - 512, 512, 0x22);
	expect_filled("web/d0", 16 * MIB, 8 * MIB - 512, 0);
}
