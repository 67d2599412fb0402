/* SPDX-License-Identifier: MIT */
/*
 * usage.c - used, exclusive and shared bytes (US-*): what each snapshot and disk refers to, against
 * counts made by hand, and against a model of random writes, cuts and deletions.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tests/api/fixture.h"

#define KIB 1024u

static void begin(void)
{
	fixture_init();
	make_vm("web", 1);
	make_collection("prod", "web", NULL);
}

TestSuite(api_usage, .init = begin, .fini = fixture_fini, .timeout = 120);

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * SECOND + (uint64_t)ts.tv_nsec;
}

static void expect_usage(enum vmimg_kind kind, const char *name, int64_t used, int64_t exclusive)
{
	json_t *doc = describe(kind, name);

	cr_expect_eq(number(doc, "used"), used, "%s: used %lld, expected %lld", name,
		     (long long)number(doc, "used"), (long long)used);
	cr_expect_eq(number(doc, "exclusive"), exclusive, "%s: exclusive %lld, expected %lld", name,
		     (long long)number(doc, "exclusive"), (long long)exclusive);
	cr_expect_eq(number(doc, "shared"), used - exclusive);
	cr_expect(json_is_true(json_object_get(doc, "exact")), "%s: not exact", name);
	json_decref(doc);
}

/* US-1, US-2 */
Test(api_usage, each_state_and_what_only_it_sees)
{
	json_t *store, *member;

	fill("web/d0", 0, MIB, 1);
	expect_usage(VMIMG_KIND_DISK, "web/d0", MIB, MIB);
	expect_ok(create("prod", "s0"));
	expect_usage(VMIMG_KIND_DISK, "web/d0", MIB, 0);
	expect_usage(VMIMG_KIND_SNAPSHOT, "prod@s0", MIB, 0);
	fill("web/d0", 0, 512 * KIB, 2);
	expect_ok(create("prod", "s1"));
	fill("web/d0", 0, 256 * KIB, 3);
	expect_usage(VMIMG_KIND_SNAPSHOT, "prod@s0", MIB, 512 * KIB);
	expect_usage(VMIMG_KIND_SNAPSHOT, "prod@s1", MIB, 256 * KIB);
	expect_usage(VMIMG_KIND_DISK, "web/d0", MIB, 256 * KIB);
	store = describe(VMIMG_KIND_STORE, NULL);
	cr_expect_eq(number(store, "data"), (1024 + 512 + 256) * KIB);
	cr_expect_eq(number(store, "exclusive"), (512 + 256 + 256) * KIB);
	cr_expect_eq(number(store, "shared"), (512 + 256) * KIB);
	cr_expect_eq(number(store, "masked"), 0);
	json_decref(store);
	store = describe(VMIMG_KIND_SNAPSHOT, "prod@s1");
	member = json_array_get(json_object_get(store, "members"), 0);
	cr_expect_eq(number(member, "exclusive"), 256 * KIB);
	json_decref(store);
}

/* US-8: each look counts all that is seen, whatever the folds behind it do. */
Test(api_usage, folds_under_way_do_not_show)
{
	enum { DISKS = 8, ROUNDS = 12 };
	unsigned looks = 0, hasty = 0;
	struct vmimg_job *job = NULL;
	char name[32];

	for (unsigned d = 1; d < DISKS; d++) {
		snprintf(name, sizeof(name), "web/d%u", d);
		make_disk(name, 4 * MIB, false);
	}
	for (unsigned i = 0; i <= ROUNDS; i++) {
		for (unsigned d = 0; d < DISKS; d++) {
			snprintf(name, sizeof(name), "web/d%u", d);
			fill(name, 0, 64 * KIB, 1 + i);
		}
		snprintf(name, sizeof(name), "s%u", i);
		expect_ok(create("prod", name));
	}
	expect_ok(vmimg_settle(svc, NULL, VMIMG_SETTLE_WAIT, UINT64_MAX, NULL, &err));
	for (unsigned i = 0; i < ROUNDS; i++) {
		snprintf(name, sizeof(name), "prod@s%u", i);
		expect_ok(vmimg_destroy_snapshot(svc, name, NULL, &err));
		cr_assert_eq(vmimg_settle(svc, NULL, VMIMG_SETTLE_WHOLE, UINT64_MAX, &job, &err),
			     VMIMG_JOB_STARTED);
		do {
			uint64_t start_ns = now_ns();
			json_t *store = describe(VMIMG_KIND_STORE, NULL);

			looks++;
			/* On a machine that is busy elsewhere a quarter of a second may not do. */
			if (!json_is_true(json_object_get(store, "exact")))
				hasty += now_ns() - start_ns < SECOND / 4;
			else
				cr_assert_eq(number(store, "exclusive") + number(store, "shared"),
					     (ROUNDS - i) * DISKS * 64 * (int64_t)KIB, "%s", name);
			json_decref(store);
		} while (vmimg_job_wait(job, 0) == -ETIMEDOUT);
		expect_state(job, VMIMG_JOB_COMPLETED);
		vmimg_job_put(job);
	}
	cr_expect_leq(hasty * 20, looks, "%u of %u looks are hasty estimates", hasty, looks);
}

/* US-2: what two snapshots share comes back with the second one. */
Test(api_usage, what_two_share_is_nobodys_alone)
{
	fill("web/d0", 0, MIB, 1);
	expect_ok(create("prod", "s0"));
	expect_ok(create("prod", "s1"));
	fill("web/d0", 0, MIB, 2);
	expect_usage(VMIMG_KIND_SNAPSHOT, "prod@s0", MIB, 0);
	expect_usage(VMIMG_KIND_SNAPSHOT, "prod@s1", MIB, 0);
	expect_usage(VMIMG_KIND_DISK, "web/d0", MIB, MIB);
	expect_ok(vmimg_destroy_snapshot(svc, "prod@s0", NULL, &err));
	expect_usage(VMIMG_KIND_SNAPSHOT, "prod@s1", MIB, MIB);
	expect_ok(vmimg_destroy_snapshot(svc, "prod@s1", NULL, &err));
	expect_usage(VMIMG_KIND_DISK, "web/d0", MIB, MIB);
}

/* US-3: zeros mask, and take no space. */
Test(api_usage, zeros_mask_and_take_nothing)
{
	struct vmimg_queue *queue;
	struct vmimg_request request;
	struct vmimg_completion done;

	fill("web/d0", 0, MIB, 1);
	expect_ok(create("prod", "s0"));
	queue = new_queue();
	request = (struct vmimg_request){
		.disk = attach(queue, "web/d0", 0),
		.op = VMIMG_WRITE_ZEROES,
		.length = MIB,
	};
	cr_assert_eq(vmimg_queue_submit(queue, &request, 1), 1);
	cr_assert_eq(vmimg_queue_poll(queue, &done, 1, 60 * SECOND), 1);
	cr_assert_eq(done.result, 0);
	cr_assert_eq(vmimg_disk_detach(request.disk), 0);
	cr_assert_eq(vmimg_queue_destroy(queue), 0);
	expect_usage(VMIMG_KIND_SNAPSHOT, "prod@s0", MIB, MIB);
	expect_usage(VMIMG_KIND_DISK, "web/d0", 0, 0);
}

/* US-5: a head in use is counted by what its log says, and that is told. */
Test(api_usage, a_head_in_use_is_not_exact)
{
	struct vmimg_queue *queue;
	struct vmimg_disk *disk;
	json_t *doc;

	expect_ok(create("prod", "s0"));
	queue = new_queue();
	disk = attach(queue, "web/d0", 0);
	doc = describe(VMIMG_KIND_DISK, "web/d0");
	cr_expect(json_is_false(json_object_get(doc, "exact")));
	json_decref(doc);
	cr_assert_eq(vmimg_disk_detach(disk), 0);
	cr_assert_eq(vmimg_queue_destroy(queue), 0);
}

/* US-6: what a clone sees is not its origin's alone; US-7 lists what a disk has left. */
Test(api_usage, clones_and_branches)
{
	json_t *tree, *disk;

	fill("web/d0", 0, MIB, 1);
	expect_ok(create("prod", "s0"));
	expect_ok(vmimg_clone_snapshot(svc, "prod@s0", "copy", NULL, NULL, NULL, &err));
	expect_usage(VMIMG_KIND_DISK, "copy-web/d0", MIB, 0);
	fill("web/d0", 0, MIB, 2);
	expect_usage(VMIMG_KIND_SNAPSHOT, "prod@s0", MIB, 0);
	fill("copy-web/d0", 0, 512 * KIB, 3);
	expect_usage(VMIMG_KIND_SNAPSHOT, "prod@s0", MIB, 512 * KIB);
	expect_usage(VMIMG_KIND_DISK, "copy-web/d0", MIB, 512 * KIB);
	expect_usage(VMIMG_KIND_DISK, "web/d0", MIB, MIB);
	expect_ok(create("prod", "s1"));
	expect_ok(vmimg_apply_snapshot(svc, "prod@s0", "{\"KeepState\": false}", NULL, NULL, &err));
	expect_usage(VMIMG_KIND_SNAPSHOT, "prod@s1", MIB, MIB);
	expect_usage(VMIMG_KIND_SNAPSHOT, "prod@s0", MIB, 0);
	tree = describe(VMIMG_KIND_TREE, NULL);
	disk = json_array_get(json_object_get(json_array_get(json_object_get(tree, "vms"), 1),
					      "disks"),
			      0);
	cr_expect_str_eq(text(disk, "disk"), "web/d0");
	cr_expect_eq(json_array_size(json_object_get(disk, "branches")), 1, "s1's layer");
	json_decref(tree);
}

/* --- a model: which version of each block every state has --- */

#define BLOCKS 64u
#define STATES 24u

struct state {
	bool there;
	unsigned version[BLOCKS]; /* 0: never written */
};

static unsigned count_seen(const struct state *states, unsigned which, bool alone)
{
	unsigned n = 0;

	for (unsigned b = 0; b < BLOCKS; b++) {
		unsigned others = 0, v = states[which].version[b];

		for (unsigned s = 0; s <= STATES; s++)
			others += s != which && states[s].there && states[s].version[b] == v;
		n += v && (!alone || !others);
	}
	return n;
}

static void expect_model(const struct state *states)
{
	char name[16];

	for (unsigned s = 0; s <= STATES; s++) {
		snprintf(name, sizeof(name), "prod@s%u", s);
		if (states[s].there)
			expect_usage(s == STATES ? VMIMG_KIND_DISK : VMIMG_KIND_SNAPSHOT,
				     s == STATES ? "web/d0" : name,
				     4096 * (int64_t)count_seen(states, s, false),
				     4096 * (int64_t)count_seen(states, s, true));
	}
}

/* US-1..US-3, US-6, through cuts, deletions in random order, reverts, and whatever folds meanwhile. */
Test(api_usage, random_lives_agree_with_a_model)
{
	static struct state states[STATES + 1];
	struct state *head = &states[STATES];
	unsigned seed = 77, version = 0, made = 0;
	char name[16];

	head->there = true;
	for (unsigned round = 0; round < 60; round++) {
		unsigned pick = (unsigned)rand_r(&seed) % 7;
		unsigned first = (unsigned)rand_r(&seed) % BLOCKS;
		unsigned len = 1 + (unsigned)rand_r(&seed) % 16;

		if (pick == 6 && made && states[first % made].there) {
			snprintf(name, sizeof(name), "prod@s%u", first % made);
			expect_ok(vmimg_apply_snapshot(svc, name, "{\"KeepState\": false}", NULL,
						       NULL, &err));
			memcpy(head->version, states[first % made].version, sizeof(head->version));
		} else if (pick < 2 && made < STATES) {
			snprintf(name, sizeof(name), "s%u", made);
			expect_ok(create("prod", name));
			states[made] = *head;
			made++;
		} else if (pick < 4 && pick > 1 && made && states[first % made].there) {
			snprintf(name, sizeof(name), "prod@s%u", first % made);
			expect_ok(vmimg_destroy_snapshot(svc, name, NULL, &err));
			states[first % made].there = false;
		} else {
			len = len < BLOCKS - first ? len : BLOCKS - first;
			fill("web/d0", first * 4096, len * 4096, (uint8_t)(version + 1));
			version++;
			for (unsigned b = first; b < first + len; b++)
				head->version[b] = version;
		}
		if (round % 6 == 5)
			expect_model(states);
	}
	expect_model(states);
}
