/* SPDX-License-Identifier: MIT */
/*
 * full.c - a full disk (SG-*, T15): guests' writes fail with ENOSPC, nothing is lost, deletion
 * works and gives space back, and everything goes on. On a small file system of the test's own;
 * skipped where none can be mounted.
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <time.h>
#include <unistd.h>

#include "tests/api/fixture.h"

#define DISK_MIB 200u

static char small[64];

static void begin(void)
{
	strcpy(small, "/tmp/vmimg-full-XXXXXX");
	cr_assert_not_null(mkdtemp(small));
	if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
	    mount("vmimg", small, "tmpfs", 0, "size=96m") < 0) {
		rmdir(small);
		small[0] = 0;
		return;
	}
	setenv("TMPDIR", small, 1);
	fixture_init();
	expect_ok(vmimg_vm_create(svc, "web", &err));
	make_disk("web/d0", DISK_MIB * (uint64_t)MIB, false);
	make_collection("prod", "web", NULL);
}

static void end(void)
{
	if (!small[0])
		return;
	fixture_fini();
	umount2(small, MNT_DETACH);
	rmdir(small);
}

TestSuite(api_full, .init = begin, .fini = end, .timeout = 120);

#define need_mount()                                                                               \
	do {                                                                                       \
		if (!small[0])                                                                     \
			cr_skip_test("no file system can be mounted here");                        \
	} while (0)

static int64_t store_number(const char *key)
{
	json_t *store = describe(VMIMG_KIND_STORE, NULL);
	int64_t n = number(store, key);

	json_decref(store);
	return n;
}

/* One MiB of one byte, and a block that tells which MiB it is. */
static void pattern(uint8_t *buf, unsigned mib, uint8_t version)
{
	memset(buf, version, MIB);
	memcpy(buf, &mib, sizeof(mib));
}

static int put(struct vmimg_queue *queue, struct vmimg_disk *disk, unsigned mib, uint8_t version)
{
	uint8_t *buf = malloc(MIB);
	int r;

	pattern(buf, mib, version);
	r = transfer(queue, disk, VMIMG_WRITE, buf, MIB, (uint64_t)mib * MIB);
	free(buf);
	return r;
}

static void expect_mib(struct vmimg_queue *queue, struct vmimg_disk *disk, unsigned mib,
		       uint8_t version)
{
	uint8_t *is = malloc(MIB), *expected = malloc(MIB);

	pattern(expected, mib, version);
	memset(is, ~version, MIB);
	cr_assert_eq(transfer(queue, disk, VMIMG_READ, is, MIB, (uint64_t)mib * MIB), 0);
	cr_assert_eq(memcmp(is, expected, MIB), 0, "MiB %u is not version %u", mib, version);
	free(is);
	free(expected);
}

/* Fills MiBs from @first on until one fails; its number. */
static unsigned fill_up(struct vmimg_queue *queue, struct vmimg_disk *disk, unsigned first,
			uint8_t version)
{
	int r = 0;

	while (r == 0 && first < DISK_MIB) {
		r = put(queue, disk, first, version);
		first += r == 0;
	}
	cr_assert_eq(r, -ENOSPC, "%d", r);
	return first;
}

/* Turns the queue, as a guest's thread does, until so much is free. */
static void await_free(struct vmimg_queue *queue, int64_t bytes)
{
	struct vmimg_completion done;
	int64_t is = 0;

	for (unsigned i = 0; i < 600 && is < bytes; i++) {
		vmimg_queue_poll(queue, &done, 1, SECOND / 20);
		is = store_number("free");
	}
	cr_assert_geq(is, bytes, "%lld bytes are free", (long long)is);
}

/* SG-2, SG-4, SG-7 */
Test(api_full, a_full_disk_fails_writes_and_nothing_else)
{
	struct vmimg_queue *queue;
	struct vmimg_disk *disk;
	int64_t was;
	unsigned end_mib;
	char *json = NULL;

	need_mount();
	queue = new_queue();
	disk = attach(queue, "web/d0", 0);
	for (unsigned i = 0; i < 16; i++)
		cr_assert_eq(put(queue, disk, i, 1), 0);
	expect_ok(vmimg_disk_detach(disk));
	expect_ok(create("prod", "s1"));
	disk = attach(queue, "web/d0", 0);
	for (unsigned i = 0; i < 16; i++)
		cr_assert_eq(put(queue, disk, i, 2), 0);
	expect_ok(vmimg_disk_detach(disk));
	expect_ok(create("prod", "s2"));
	/* A layer's seal gives back what was allocated ahead of it: not after the disk is full. */
	expect_ok(vmimg_settle(svc, NULL, VMIMG_SETTLE_WAIT, UINT64_MAX, NULL, &err));
	disk = attach(queue, "web/d0", 0);
	end_mib = fill_up(queue, disk, 16, 3);
	cr_assert_gt(end_mib, 24);
	cr_expect_eq(put(queue, disk, end_mib, 3), -ENOSPC, "again");
	cr_expect_eq(flush(queue, disk), 0, "what was acknowledged has its room (T15)");
	for (unsigned i = 0; i < 16; i++)
		expect_mib(queue, disk, i, 2);
	for (unsigned i = 16; i < end_mib; i++)
		expect_mib(queue, disk, i, 3);
	cr_expect_eq(put(queue, disk, 20, 4), 0, "overwriting in place needs nothing");

	was = store_number("free");
	expect_error(create("prod", "s3"), VMIMG_INVALID_STATE);
	expect_ok(vmimg_hold_snapshot(svc, "prod@s2", "audit", &err));
	expect_error(vmimg_destroy_snapshot(svc, "prod@s2", NULL, &err), VMIMG_INVALID_STATE);
	expect_ok(vmimg_release_snapshot(svc, "prod@s2", "audit", &err));
	expect_ok(vmimg_destroy_snapshot(svc, "prod@s1", NULL, &err));
	await_free(queue, was + 12 * (int64_t)MIB);
	for (unsigned i = end_mib; i < end_mib + 8; i++)
		cr_expect_eq(put(queue, disk, i, 5), 0);
	cr_expect_eq(flush(queue, disk), 0);
	for (unsigned i = 0; i < end_mib; i++)
		expect_mib(queue, disk, i, i < 16 ? 2 : i == 20 ? 4 : 3);
	expect_ok(vmimg_disk_detach(disk));
	disk = attach(queue, "prod@s2/web/d0", VMIMG_ATTACH_READ_ONLY);
	for (unsigned i = 0; i < 16; i++)
		expect_mib(queue, disk, i, 2);
	expect_ok(vmimg_disk_detach(disk));
	expect_ok(vmimg_queue_destroy(queue));
	fixture_reopen();
	queue = new_queue();
	disk = attach(queue, "web/d0", 0);
	for (unsigned i = end_mib; i < end_mib + 8; i++)
		expect_mib(queue, disk, i, 5);
	expect_ok(vmimg_disk_detach(disk));
	expect_ok(vmimg_queue_destroy(queue));
	fixture_close();
	cr_expect_eq(vmimg_check(store_dir, &err, &json), VMIMG_CHECK_SOUND, "%s", json);
	vmimg_free(json);
	expect_ok(vmimg_open(store_dir, NULL, &err, &svc));
}

static void put_all(unsigned first, unsigned count, uint8_t version)
{
	struct vmimg_queue *queue = new_queue();
	struct vmimg_disk *disk = attach(queue, "web/d0", 0);

	for (unsigned i = first; i < first + count; i++)
		cr_assert_eq(put(queue, disk, i, version), 0);
	expect_ok(vmimg_disk_detach(disk));
	expect_ok(vmimg_queue_destroy(queue));
}

/* SG-4, FO-17: what masks the base needs nothing, what lies above it more than there is. */
Test(api_full, into_the_base_goes_what_fits_and_settle_tells_of_the_rest)
{
	struct vmimg_queue *queue;
	struct vmimg_disk *disk;
	json_t *doc;
	int64_t was;

	need_mount();
	expect_ok(vmimg_set_space_reserve(svc, 0, &err));
	put_all(0, 16, 1);
	expect_ok(create("prod", "s1"));
	put_all(0, 8, 2);
	expect_ok(create("prod", "s2"));
	put_all(100, 44, 3);
	expect_ok(create("prod", "s3"));
	expect_ok(vmimg_settle(svc, NULL, VMIMG_SETTLE_WAIT, UINT64_MAX, NULL, &err));
	was = store_number("free");
	cr_assert_lt(was, 28 * (int64_t)MIB);
	/* All at once: none of them pays by itself. */
	expect_ok(vmimg_set_fold_rate(svc, 1, &err));
	expect_ok(vmimg_destroy_snapshot(svc, "prod@s3", NULL, &err));
	expect_ok(vmimg_destroy_snapshot(svc, "prod@s2", NULL, &err));
	expect_ok(vmimg_destroy_snapshot(svc, "prod@s1", NULL, &err));
	expect_ok(vmimg_set_fold_rate(svc, 0, &err));
	cr_expect_eq(vmimg_settle(svc, "web/d0", VMIMG_SETTLE_WAIT | VMIMG_SETTLE_WHOLE, UINT64_MAX,
				  NULL, &err),
		     VMIMG_FAILED);
	cr_expect(strstr(err.message, "SG-4"), "%s", err.message);
	cr_expect_geq(store_number("free"), was + 7 * (int64_t)MIB);
	doc = describe(VMIMG_KIND_DISK, "web/d0");
	cr_expect_eq(number(doc, "layers"), 3, "base, what does not fit, head");
	json_decref(doc);
	queue = new_queue();
	disk = attach(queue, "web/d0", VMIMG_ATTACH_READ_ONLY);
	for (unsigned i = 0; i < 16; i++)
		expect_mib(queue, disk, i, i < 8 ? 2 : 1);
	for (unsigned i = 100; i < 144; i++)
		expect_mib(queue, disk, i, 3);
	expect_ok(vmimg_disk_detach(disk));
	expect_ok(vmimg_queue_destroy(queue));
}

/* SG-1, SG-3 */
Test(api_full, no_snapshot_below_the_reserve)
{
	json_t *store;

	need_mount();
	store = describe(VMIMG_KIND_STORE, NULL);
	cr_expect(json_is_true(json_object_get(store, "space_reserve_default")));
	cr_expect_eq(number(store, "space_reserve"), number(store, "size") / 20);
	cr_expect_str_eq(text(store, "space_state"), "ok");
	json_decref(store);
	expect_ok(create("prod", "s0"));
	expect_ok(vmimg_set_space_reserve(svc, 1ull << 40, &err));
	cr_expect_eq(create("prod", "s1"), VMIMG_INVALID_STATE);
	cr_expect(strstr(err.message, "below the reserve of 1099511627776"), "%s", err.message);
	expect_error(vmimg_check_snapshot(svc, "prod", NULL, VMIMG_SNAPSHOT_STANDARD, "s1", &err),
		     VMIMG_INVALID_STATE);
	fixture_reopen();
	store = describe(VMIMG_KIND_STORE, NULL);
	cr_expect_eq(number(store, "space_reserve"), 1ll << 40, "it is kept");
	cr_expect_str_eq(text(store, "space_state"), "reached");
	json_decref(store);
	expect_error(create("prod", "s1"), VMIMG_INVALID_STATE);
	expect_ok(vmimg_set_space_reserve(svc, 0, &err));
	expect_ok(create("prod", "s1"));
	expect_ok(vmimg_set_space_reserve(svc, UINT64_MAX, &err));
	expect_ok(create("prod", "s2"));
	expect_error(vmimg_set_space_reserve(svc, (1ull << 62) + 1, &err), -EINVAL);
	expect_error(vmimg_set_space_reserve(NULL, 0, &err), -EINVAL);
}

static pthread_mutex_t telling = PTHREAD_MUTEX_INITIALIZER;
static char told[4096];

static void note(void *arg, const char *json)
{
	(void)arg;
	pthread_mutex_lock(&telling);
	if (strstr(json, "\"space\""))
		snprintf(told, sizeof(told), "%s", json);
	pthread_mutex_unlock(&telling);
}

static void await_told(const char *what)
{
	const struct timespec nap = {.tv_nsec = 50000000};
	char now[sizeof(told)] = "";

	for (unsigned i = 0; i < 200 && !strstr(now, what); i++) {
		if (i)
			nanosleep(&nap, NULL);
		pthread_mutex_lock(&telling);
		memcpy(now, told, sizeof(now));
		pthread_mutex_unlock(&telling);
	}
	cr_expect(strstr(now, what), "no '%s' in %s", what, now);
}

/* SG-5 */
Test(api_full, events_before_and_at_the_reserve)
{
	struct vmimg_subscription *sub = NULL;
	int64_t left;

	need_mount();
	left = store_number("free");
	expect_ok(vmimg_subscribe(svc, note, NULL, &err, &sub));
	expect_ok(vmimg_set_space_reserve(svc, (uint64_t)left * 2 / 3, &err));
	await_told("\"space_state\":\"warning\"");
	expect_ok(vmimg_set_space_reserve(svc, (uint64_t)left * 2, &err));
	await_told("\"space_state\":\"reached\"");
	expect_ok(vmimg_set_space_reserve(svc, 0, &err));
	await_told("\"space_state\":\"ok\"");
	expect_ok(vmimg_unsubscribe(sub));
}
