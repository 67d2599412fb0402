/* SPDX-License-Identifier: MIT */
/* limit.c - more layers than the process may have open files (IO-9). */
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>

#include "tests/api/fixture.h"

#define LAYERS 300u
#define FILES  64u
#define BLOCK  4096u

TestSuite(api_limit, .init = fixture_init, .fini = fixture_fini, .timeout = 300);

static void set_limit(rlim_t files)
{
	struct rlimit lim = {files, files};

	cr_assert_eq(setrlimit(RLIMIT_NOFILE, &lim), 0);
}

/* Layer i holds block i; the blocks of the first @count layers are there, no others. */
static void expect_blocks(struct vmimg_queue *queue, struct vmimg_disk *disk, unsigned count)
{
	uint8_t want[BLOCK], got[BLOCK];

	for (unsigned i = 0; i < LAYERS; i++) {
		unsigned n = i * 7 % LAYERS;

		memset(want, n < count ? (int)(n % 255 + 1) : 0, BLOCK);
		cr_assert_eq(transfer(queue, disk, VMIMG_READ, got, BLOCK, n * BLOCK), 0, "%u", n);
		cr_expect_eq(memcmp(want, got, BLOCK), 0, "block %u of %u layers", n, count);
	}
}

/* IO-9 */
Test(api_limit, views_of_a_chain_longer_than_the_limit_read_right)
{
	struct vmimg_queue *queue;
	struct vmimg_disk *views[3];
	char name[32];

	make_vm("web", 1);
	make_collection("prod", "web", NULL);
	fixture_close();
	set_limit(FILES);
	expect_ok(vmimg_open(store_dir, NULL, &err, &svc));
	for (unsigned i = 0; i < LAYERS; i++) {
		fill("web/d0", i * BLOCK, BLOCK, (uint8_t)(i % 255 + 1));
		snprintf(name, sizeof(name), "s%u", i);
		expect_ok(create("prod", name));
	}
	fixture_reopen();
	queue = new_queue();
	views[0] = attach(queue, "web/d0", 0);
	views[1] = attach(queue, "prod@s299/web/d0", VMIMG_ATTACH_READ_ONLY);
	views[2] = attach(queue, "prod@s99/web/d0", VMIMG_ATTACH_READ_ONLY);
	for (unsigned round = 0; round < 2; round++) {
		expect_blocks(queue, views[0], LAYERS);
		expect_blocks(queue, views[1], LAYERS);
		expect_blocks(queue, views[2], 100);
	}
	for (unsigned i = 0; i < 3; i++)
		expect_ok(vmimg_disk_detach(views[i]));
	expect_ok(vmimg_queue_destroy(queue));
}

#define ATTACHED 200u /* snapshots of a disk that stays attached */

/* IO-9: overlays made while a disk is attached, too, are closed; half of them are never written to. */
Test(api_limit, one_attached_disk_has_more_snapshots_than_files_may_be_open)
{
	struct vmimg_queue *queue;
	struct vmimg_disk *disk;
	uint8_t want[BLOCK], got[BLOCK];
	char name[32];

	make_vm("web", 1);
	make_collection("prod", "web", NULL);
	fixture_close();
	set_limit(FILES);
	expect_ok(vmimg_open(store_dir, NULL, &err, &svc));
	queue = new_queue();
	disk = attach(queue, "web/d0", 0);
	for (unsigned i = 0; i < ATTACHED; i++) {
		memset(want, (int)(i % 255 + 1), BLOCK);
		if (i % 2)
			cr_assert_eq(transfer(queue, disk, VMIMG_WRITE, want, BLOCK, i * BLOCK), 0,
				     "%u", i);
		snprintf(name, sizeof(name), "s%u", i);
		cr_assert_eq(create("prod", name), 0, "%u: %s", i, err.message);
	}
	for (unsigned i = 0; i < ATTACHED; i++) {
		memset(want, i % 2 ? (int)(i % 255 + 1) : 0, BLOCK);
		cr_assert_eq(transfer(queue, disk, VMIMG_READ, got, BLOCK, i * BLOCK), 0, "%u", i);
		cr_expect_eq(memcmp(want, got, BLOCK), 0, "block %u", i);
	}
	expect_ok(vmimg_disk_detach(disk));
	expect_ok(vmimg_queue_destroy(queue));
}
