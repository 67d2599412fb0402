/* SPDX-License-Identifier: MIT */
/*
 * shrink.c - disks made smaller (RZ-*): what is cut off is gone from the disk and reads as zeros
 * ever after, and snapshots keep what they have; by hand, and in random lives against a model.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/api/fixture.h"

#define SIZE (8u * MIB)

static void begin(void)
{
	fixture_init();
	make_vm("web", 1);
	make_collection("prod", "web", NULL);
}

TestSuite(api_shrink, .init = begin, .fini = fixture_fini, .timeout = 180);

static int64_t disk_size(void)
{
	json_t *disk = describe(VMIMG_KIND_DISK, "web/d0");
	int64_t size = number(disk, "size");

	json_decref(disk);
	return size;
}

/* RZ-1, RZ-2: a raw head's file is cut off. */
Test(api_shrink, a_disk_without_snapshots)
{
	fill("web/d0", 0, SIZE, 1);
	expect_ok(vmimg_disk_shrink(svc, "web/d0", 4 * MIB, &err));
	cr_expect_eq(disk_size(), 4 * MIB);
	expect_filled("web/d0", 0, 4 * MIB, 1);
	expect_ok(vmimg_disk_resize(svc, "web/d0", SIZE, &err));
	expect_filled("web/d0", 0, 4 * MIB, 1);
	expect_filled("web/d0", 4 * MIB, 4 * MIB, 0);
}

/* RZ-1, RZ-2: what layers beneath hold never shows again. */
Test(api_shrink, snapshots_keep_their_size_and_content)
{
	json_t *snapshot, *member;

	fill("web/d0", 0, SIZE, 1);
	expect_ok(create("prod", "s0"));
	fill("web/d0", 6 * MIB, MIB, 2);
	expect_ok(vmimg_disk_shrink(svc, "web/d0", 4 * MIB, &err));
	expect_filled("prod@s0/web/d0", 0, SIZE, 1);
	expect_ok(create("prod", "s1"));
	expect_ok(vmimg_disk_resize(svc, "web/d0", 7 * MIB, &err));
	expect_filled("web/d0", 4 * MIB, 3 * MIB, 0);
	fill("web/d0", 5 * MIB, MIB, 3);
	expect_ok(create("prod", "s2"));
	expect_ok(vmimg_disk_resize(svc, "web/d0", SIZE + MIB, &err));
	for (unsigned pass = 0; pass < 2; pass++) {
		expect_filled("web/d0", 0, 4 * MIB, 1);
		expect_filled("web/d0", 4 * MIB, MIB, 0);
		expect_filled("web/d0", 5 * MIB, MIB, 3);
		expect_filled("web/d0", 6 * MIB, 3 * MIB, 0);
		expect_filled("prod@s0/web/d0", 0, SIZE, 1);
		expect_filled("prod@s1/web/d0", 0, 4 * MIB, 1);
		expect_filled("prod@s2/web/d0", 4 * MIB, MIB, 0);
		fixture_reopen();
	}
	snapshot = describe(VMIMG_KIND_SNAPSHOT, "prod@s1");
	member = json_array_get(json_object_get(snapshot, "members"), 0);
	cr_expect_eq(number(member, "size"), 4 * MIB, "the size at its cut");
	json_decref(snapshot);
}

/* RZ-2: grown while attached, the new end reads as zeros, too. */
Test(api_shrink, a_live_grow_after_it)
{
	struct vmimg_queue *queue;
	struct vmimg_disk *disk;
	uint8_t *buf = malloc(SIZE);
	struct vmimg_completion done;

	fill("web/d0", 0, SIZE, 1);
	expect_ok(create("prod", "s0"));
	fill("web/d0", 7 * MIB, MIB, 2);
	expect_ok(vmimg_disk_shrink(svc, "web/d0", 4 * MIB + 4096, &err));
	queue = new_queue();
	disk = attach(queue, "web/d0", 0);
	expect_error(vmimg_disk_shrink(svc, "web/d0", MIB, &err), -EBUSY);
	cr_expect_eq(transfer(queue, disk, VMIMG_READ, buf, 8192, 4 * MIB), -EINVAL);
	cr_expect_eq(transfer(queue, disk, VMIMG_READ, buf, 4096, 4 * MIB), 0);
	cr_expect_eq(buf[0], 1);
	expect_error(vmimg_disk_resize(svc, "web/d0", SIZE, &err), -EDEADLK);
	cr_assert_eq(vmimg_disk_detach(disk), 0);
	expect_ok(vmimg_disk_resize(svc, "web/d0", SIZE, &err));
	disk = attach(queue, "web/d0", 0);
	vmimg_queue_poll(queue, &done, 1, 0);
	cr_expect_eq(transfer(queue, disk, VMIMG_READ, buf, 4 * MIB - 4096, 4 * MIB + 4096), 0);
	for (size_t i = 0; i < 4 * MIB - 4096; i++)
		cr_assert_eq(buf[i], 0, "byte %zu", i);
	cr_assert_eq(vmimg_disk_detach(disk), 0);
	cr_assert_eq(vmimg_queue_destroy(queue), 0);
	free(buf);
}

/* RZ-2: the result of a fold is as long as the longest of its inputs. */
Test(api_shrink, folds_keep_the_zeros)
{
	json_t *disk;

	fill("web/d0", 0, SIZE, 1);
	expect_ok(create("prod", "s0"));
	fill("web/d0", 0, 4096, 2);
	expect_ok(vmimg_disk_shrink(svc, "web/d0", 4 * MIB, &err));
	expect_ok(create("prod", "s1"));
	fill("web/d0", MIB, MIB, 3);
	expect_ok(create("prod", "s2"));
	expect_ok(vmimg_destroy_snapshot(svc, "prod@s1", NULL, &err));
	expect_ok(vmimg_settle(svc, NULL, VMIMG_SETTLE_WAIT | VMIMG_SETTLE_WHOLE, UINT64_MAX, NULL,
			       &err));
	disk = describe(VMIMG_KIND_DISK, "web/d0");
	cr_expect_eq(number(disk, "layers"), 3, "base, fold, head");
	json_decref(disk);
	expect_ok(vmimg_disk_resize(svc, "web/d0", SIZE, &err));
	expect_filled("web/d0", 4 * MIB, 4 * MIB, 0);
	expect_filled("web/d0", MIB, MIB, 3);
	expect_filled("prod@s2/web/d0", MIB, MIB, 3);
	expect_filled("prod@s0/web/d0", 0, SIZE, 1);
}

/* RZ-4 */
Test(api_shrink, what_is_refused_changes_nothing)
{
	struct vmimg_disk_spec spec = {.size_of = sizeof(spec), .size = SIZE, .block_bits = 16};

	fill("web/d0", 0, SIZE, 1);
	expect_ok(vmimg_disk_create(svc, "web/big", &spec, &err));
	expect_error(vmimg_disk_shrink(svc, "web/d0", SIZE, &err), -EINVAL);
	expect_error(vmimg_disk_shrink(svc, "web/d0", SIZE + 4096, &err), -EINVAL);
	expect_error(vmimg_disk_shrink(svc, "web/d0", 0, &err), -EINVAL);
	expect_error(vmimg_disk_shrink(svc, "web/d0", MIB + 512, &err), -EINVAL);
	expect_error(vmimg_disk_shrink(svc, "web/big", MIB + 4096, &err), -EINVAL);
	expect_error(vmimg_disk_shrink(svc, "web/none", MIB, &err), -ENOENT);
	expect_error(vmimg_disk_shrink(svc, "web", MIB, &err), -EINVAL);
	expect_error(vmimg_disk_shrink(NULL, "web/d0", MIB, &err), -EINVAL);
	expect_error(vmimg_disk_resize(svc, "web/d0", MIB, &err), -EINVAL);
	cr_expect_eq(disk_size(), SIZE);
	expect_filled("web/d0", 0, SIZE, 1);
	expect_ok(vmimg_disk_shrink(svc, "web/big", MIB, &err));
}

/* --- random lives --- */

#define UNIT   65536u
#define UNITS  64u /* of the largest disk */
#define STATES 10u

struct state {
	bool there;
	unsigned units;
	uint8_t value[UNITS];
};

static void expect_state_is(const char *name, const struct state *s)
{
	struct vmimg_queue *queue = new_queue();
	struct vmimg_disk *disk = attach(queue, name, VMIMG_ATTACH_READ_ONLY);
	uint8_t *buf = malloc(UNITS * UNIT);

	cr_assert_eq(vmimg_disk_size(disk), (uint64_t)s->units * UNIT, "%s", name);
	cr_assert_eq(transfer(queue, disk, VMIMG_READ, buf, s->units * UNIT, 0), 0);
	for (unsigned u = 0; u < s->units; u++)
		for (unsigned at = 0; at < UNIT; at += 4096)
			cr_assert_eq(buf[u * UNIT + at], s->value[u], "%s: unit %u is %u, not %u",
				     name, u, buf[u * UNIT + at], s->value[u]);
	free(buf);
	cr_assert_eq(vmimg_disk_detach(disk), 0);
	cr_assert_eq(vmimg_queue_destroy(queue), 0);
}

static void expect_all(const struct state *states)
{
	char name[24];

	expect_state_is("web/r", &states[STATES]);
	for (unsigned i = 0; i < STATES; i++) {
		snprintf(name, sizeof(name), "prod@s%u/web/r", i);
		if (states[i].there)
			expect_state_is(name, &states[i]);
	}
}

static void resize(struct state *head, unsigned units)
{
	uint64_t size = (uint64_t)units * UNIT;

	if (units < head->units)
		expect_ok(vmimg_disk_shrink(svc, "web/r", size, &err));
	else
		expect_ok(vmimg_disk_resize(svc, "web/r", size, &err));
	for (unsigned u = units; u < UNITS; u++)
		head->value[u] = 0;
	head->units = units;
}

static void one_step(struct state *states, unsigned *seed, uint8_t *version)
{
	struct state *head = &states[STATES];
	unsigned which = (unsigned)rand_r(seed) % STATES, first, count;
	char name[16];

	snprintf(name, sizeof(name), "prod@s%u", which);
	switch (rand_r(seed) % 8) {
	case 0:
	case 1: resize(head, 1 + (unsigned)rand_r(seed) % UNITS); break;
	case 2:
	case 3:
		if (states[which].there) {
			expect_ok(vmimg_destroy_snapshot(svc, name, NULL, &err));
			states[which].there = false;
		} else {
			expect_ok(create("prod", name));
			states[which] = *head;
			states[which].there = true;
		}
		break;
	case 4:
		if (!states[which].there)
			break;
		expect_ok(vmimg_apply_snapshot(svc, name, "{\"KeepState\": false}", NULL, NULL,
					       &err));
		*head = states[which];
		break;
	default:
		first = (unsigned)rand_r(seed) % head->units;
		count = 1 + (unsigned)rand_r(seed) % (head->units - first);
		*version = *version == 255 ? 1 : *version + 1;
		fill("web/r", first * UNIT, count * UNIT, *version);
		memset(head->value + first, *version, count);
	}
}

/* RZ-1, RZ-2 through cuts, deletions, reverts, reopens, and whatever folds meanwhile. */
Test(api_shrink, random_lives_agree_with_a_model)
{
	static struct state states[STATES + 1];
	unsigned seed = 4711;
	uint8_t version = 0;
	char *json = NULL;

	expect_ok(vmimg_disk_delete(svc, "web/d0", &err));
	make_disk("web/r", UNITS * UNIT, false);
	states[STATES].units = UNITS;
	for (unsigned step = 0; step < 160; step++) {
		one_step(states, &seed, &version);
		if (step % 16 == 15)
			expect_all(states);
		if (step % 40 == 39)
			fixture_reopen();
	}
	expect_all(states);
	fixture_close();
	cr_expect_eq(vmimg_check(store_dir, &err, &json), VMIMG_CHECK_SOUND, "%s", json);
	vmimg_free(json);
	expect_ok(vmimg_open(store_dir, NULL, &err, &svc));
}
