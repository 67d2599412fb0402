/* SPDX-License-Identifier: MIT */
/* engine_compare.c - two disks side by side: same is same, and a difference is the first one. */
#include "engine/image/compare.h"
#include "tests/unit/engine_io_tmp.h"
#include "tests/unit/engine_source.h"

static struct tmp t;
static struct fmt_error err;
static struct disk a, b;

static void start(void)
{
	tmp_init(&t, "/tmp");
	memset(&err, 0, sizeof(err));
}

static void finish(void)
{
	disk_free(&a);
	disk_free(&b);
	tmp_fini(&t);
}

TestSuite(engine_compare, .init = start, .fini = finish, .timeout = 120);

static int compare(struct eng_comparison *ret)
{
	struct eng_source sa = disk_source(&a), sb = disk_source(&b);

	return eng_compare(t.io, &sa, &sb, NULL, &err, ret);
}

static void expect(uint64_t first)
{
	struct eng_comparison got = {0};

	cr_assert_eq(compare(&got), 0, "%s", err.text);
	cr_assert_eq(got.first_difference, first, "%llu, not %llu",
		     (unsigned long long)got.first_difference, (unsigned long long)first);
	cr_assert_eq(got.same, first == UINT64_MAX);
}

static void copy(struct disk *to, const struct disk *from)
{
	disk_make(to, from->size);
	memcpy(to->bytes, from->bytes, from->size);
	memcpy(to->states, from->states, from->size / SECTOR + 1);
}

/* Sectors of zeros may be called anything. */
static void rename_zeros(struct disk *disk, uint64_t *rnd)
{
	static const uint8_t zeros[SECTOR];

	for (uint64_t s = 0; s < disk->size / SECTOR; s++) {
		if (!memcmp(disk->bytes + s * SECTOR, zeros, SECTOR))
			disk->states[s] = (uint8_t)(test_random(rnd) % 3);
	}
}

/* IM-10, IM-11 */
Test(engine_compare, random_disks_differ_first_where_they_do)
{
	uint64_t rnd = disk_seed(t.io);

	for (unsigned round = 0; round < 60; round++) {
		uint64_t size = (1 + test_random(&rnd) % 12000) * SECTOR, first = UINT64_MAX;

		disk_make(&a, size);
		disk_fill(&a, &rnd);
		copy(&b, &a);
		rename_zeros(&b, &rnd);
		expect(UINT64_MAX);
		for (uint64_t n = test_random(&rnd) % 4 + 1; n; n--) {
			uint64_t at = test_random(&rnd) % size;

			b.bytes[at] = (uint8_t)(a.bytes[at] + 1 + n);
			b.states[at / SECTOR] = ENG_EXTENT_DATA;
			first = at < first ? at : first;
		}
		expect(first);
	}
}

/* IM-10 */
Test(engine_compare, longer_disk_must_end_in_zeros)
{
	uint64_t rnd = disk_seed(t.io), size = 3000 * SECTOR, longer = 7001 * SECTOR;

	for (unsigned swapped = 0; swapped < 2; swapped++) {
		struct disk *s = swapped ? &a : &b, *l = swapped ? &b : &a;

		disk_make(s, size);
		disk_fill(s, &rnd);
		disk_make(l, longer);
		memcpy(l->bytes, s->bytes, size);
		memset(l->states, ENG_EXTENT_DATA, longer / SECTOR);
		expect(UINT64_MAX);
		l->bytes[longer - 1] = 1;
		expect(longer - 1);
		l->bytes[size] = 1;
		expect(size);
		memset(l->states, ENG_EXTENT_HOLE, longer / SECTOR + 1);
	}
}

/* IM-12 */
Test(engine_compare, what_both_call_zeros_is_not_read)
{
	disk_make(&a, 256u << 20);
	disk_make(&b, 256u << 20);
	memset(b.states, ENG_EXTENT_ZERO, b.size / SECTOR);
	disk_data(&b, 100u << 20, 4u << 20, DISK_ZEROS, NULL);
	expect(UINT64_MAX);
	cr_expect_eq(a.bytes_read, 0u, "%llu", (unsigned long long)a.bytes_read);
	cr_expect_eq(b.bytes_read, 4u << 20, "%llu", (unsigned long long)b.bytes_read);
}

/* IM-12: an error is never "the same"; one behind the first difference does not hide it. */
Test(engine_compare, errors_before_the_first_difference_are_errors)
{
	struct eng_comparison got = {.same = true};
	uint64_t rnd = disk_seed(t.io);

	disk_make(&a, 32u << 20);
	disk_data(&a, 0, a.size, DISK_NOISE, &rnd);
	copy(&b, &a);
	b.fails_at = 20u << 20;
	cr_expect_eq(compare(&got), -EIO);
	cr_expect(strstr(err.text, "bad place"), "%s", err.text);
	b.bytes[25u << 20] ^= 1;
	cr_expect_eq(compare(&got), -EIO);
	cr_expect(got.same, "nothing is written on failure");
}

static int stop(void *arg, uint64_t done, uint64_t total)
{
	(void)arg;
	return done > total / 2;
}

Test(engine_compare, can_be_cancelled)
{
	struct eng_comparison got;
	struct eng_source sa, sb;
	struct eng_progress progress = {.watch = stop};
	uint64_t rnd = disk_seed(t.io);

	disk_make(&a, 32u << 20);
	disk_data(&a, 0, a.size, DISK_NOISE, &rnd);
	copy(&b, &a);
	sa = disk_source(&a);
	sb = disk_source(&b);
	cr_expect_eq(eng_compare(t.io, &sa, &sb, &progress, &err, &got), -ECANCELED);
	cr_expect(a.bytes_read < a.size);
}
