/* SPDX-License-Identifier: MIT */
/*
 * delete_order.c - snapshots deleted in every order (DL, FO, US-3): after each deletion the others
 * hold what they did, and in the end nothing is left of them: no layer, no file, no block.
 */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "tests/api/fixture.h"

TestSuite(api_delete_order, .init = fixture_init, .fini = fixture_fini, .timeout = 240);

#define UNIT  65536u
#define UNITS 32u
#define SNAPS 4u
/* Of a head that was just made: its header, log, and space allocated ahead. */
#define OVERHEAD (3u * MIB)

struct state {
	uint8_t value[UNITS];
};

static void settle(void)
{
	expect_ok(vmimg_settle(svc, NULL, VMIMG_SETTLE_WAIT | VMIMG_SETTLE_WHOLE, UINT64_MAX, NULL,
			       &err));
}

static int64_t store_number(const char *key)
{
	json_t *store = describe(VMIMG_KIND_STORE, NULL);
	int64_t n = number(store, key);

	json_decref(store);
	return n;
}

/* Files in the layers' directory whose name ends in @suffix, and the bytes that all have allocated. */
static unsigned count_files(const char *suffix, int64_t *bytes)
{
	char path[700];
	struct dirent *e;
	struct stat st;
	unsigned n = 0;
	DIR *dir;

	snprintf(path, sizeof(path), "%s/layers", store_dir);
	dir = opendir(path);
	cr_assert_not_null(dir);
	*bytes = 0;
	while ((e = readdir(dir))) {
		size_t len = strlen(e->d_name), end = strlen(suffix);

		if (e->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "%s/layers/%s", store_dir, e->d_name);
		cr_assert_eq(stat(path, &st), 0);
		*bytes += (int64_t)st.st_blocks * 512;
		n += len > end && !strcmp(e->d_name + len - end, suffix);
	}
	closedir(dir);
	return n;
}

static void expect_content(const char *name, const struct state *s)
{
	struct vmimg_queue *queue = new_queue();
	struct vmimg_disk *disk = attach(queue, name, VMIMG_ATTACH_READ_ONLY);
	uint8_t *is = malloc(UNITS * UNIT), *expected = malloc(UNITS * UNIT);

	for (unsigned u = 0; u < UNITS; u++)
		memset(expected + u * UNIT, s->value[u], UNIT);
	cr_assert_eq(transfer(queue, disk, VMIMG_READ, is, UNITS * UNIT, 0), 0);
	cr_assert_eq(memcmp(is, expected, UNITS * UNIT), 0, "%s", name);
	free(is);
	free(expected);
	cr_assert_eq(vmimg_disk_detach(disk), 0);
	cr_assert_eq(vmimg_queue_destroy(queue), 0);
}

static void write_some(const char *disk, struct state *head, unsigned *seed, uint8_t version)
{
	for (unsigned i = 0; i < 3; i++) {
		unsigned first = (unsigned)rand_r(seed) % UNITS;
		unsigned count = 1 +
				 (unsigned)rand_r(seed) % (UNITS - first < 8 ? UNITS - first : 8);

		fill(disk, first * UNIT, count * UNIT, version);
		memset(head->value + first, version, count);
	}
}

/* One collection's life: SNAPS snapshots, deleted in the order @order. */
static void live(unsigned number_of, const unsigned *order, unsigned *seed)
{
	char vm[16], disk[32], coll[16], name[64], at[96];
	struct state states[SNAPS], head = {{0}};
	bool there[SNAPS] = {true, true, true, true};

	snprintf(vm, sizeof(vm), "v%u", number_of);
	snprintf(disk, sizeof(disk), "v%u/d", number_of);
	snprintf(coll, sizeof(coll), "c%u", number_of);
	expect_ok(vmimg_vm_create(svc, vm, &err));
	make_disk(disk, UNITS * UNIT, false);
	make_collection(coll, vm, NULL);
	for (unsigned s = 0; s < SNAPS; s++) {
		write_some(disk, &head, seed, (uint8_t)(s + 1));
		snprintf(name, sizeof(name), "s%u", s);
		expect_ok(create(coll, name));
		states[s] = head;
	}
	write_some(disk, &head, seed, SNAPS + 1);
	for (unsigned i = 0; i < SNAPS; i++) {
		snprintf(name, sizeof(name), "%s@s%u", coll, order[i]);
		expect_ok(vmimg_destroy_snapshot(svc, name, NULL, &err));
		there[order[i]] = false;
		if (rand_r(seed) % 8 == 0)
			settle();
		expect_content(disk, &head);
		for (unsigned s = 0; s < SNAPS; s++) {
			snprintf(at, sizeof(at), "%s@s%u/%s", coll, s, disk);
			if (there[s])
				expect_content(at, &states[s]);
		}
	}
}

static void expect_nothing_left(unsigned disks)
{
	int64_t used = 0, bytes = 0;
	json_t *rows = list(VMIMG_KIND_DISK, NULL), *row;
	size_t i;

	json_array_foreach (rows, i, row) {
		cr_expect_eq(number(row, "layers"), 2, "%s: base and head", text(row, "disk"));
		cr_expect_eq(number(row, "shared"), 0);
		used += number(row, "used");
	}
	json_decref(rows);
	cr_expect_eq(store_number("layers"), 2 * (int64_t)disks);
	cr_expect_eq(store_number("masked") + used, store_number("data"));
	cr_expect_eq(count_files(".vmo", &bytes), disks, "a file each for the heads");
	cr_expect_eq(count_files(".raw", &bytes), disks);
	cr_expect_leq(bytes, used + store_number("masked") + (int64_t)disks * OVERHEAD,
		      "%lld bytes are allocated, %lld used", (long long)bytes, (long long)used);
}

Test(api_delete_order, every_order_of_four)
{
	unsigned seed = 99, number_of = 0;
	char *json = NULL;

	for (unsigned code = 0; code < SNAPS * SNAPS * SNAPS * SNAPS; code++) {
		unsigned order[SNAPS], seen = 0;

		for (unsigned i = 0, rest = code; i < SNAPS; i++, rest /= SNAPS) {
			order[i] = rest % SNAPS;
			seen |= 1u << order[i];
		}
		if (seen == (1u << SNAPS) - 1)
			live(number_of++, order, &seed);
	}
	cr_assert_eq(number_of, 24);
	settle();
	expect_nothing_left(number_of);
	fixture_reopen();
	expect_nothing_left(number_of);
	fixture_close();
	cr_expect_eq(vmimg_check(store_dir, &err, &json), VMIMG_CHECK_SOUND, "%s", json);
	vmimg_free(json);
	expect_ok(vmimg_open(store_dir, NULL, &err, &svc));
}
