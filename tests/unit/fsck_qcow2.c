/* SPDX-License-Identifier: MIT */
/*
 * fsck_qcow2.c - the checker on qcow2 images, made here byte by byte: header, tables, and places against
 * the file's end.
 */
#include "tests/unit/fsck_findings.h"

#include <errno.h>

#include "format/qcow2.h"

#define CLUSTER 4096u
#define SIZE    (3u << 20) /* two L2 tables, the second one half used */

/* Clusters of the image: header, L1, two L2 tables, data. */
enum { HEAD, L1, L2A, L2B, DATA, COMPRESSED, CLUSTERS };

static uint8_t image[CLUSTERS * CLUSTER];
static char path[300];
static struct eng_io *io;

static void put_be(uint64_t at, uint64_t v, unsigned bytes)
{
	for (unsigned i = 0; i < bytes; i++)
		image[at + i] = (uint8_t)(v >> (8 * (bytes - 1 - i)));
}

static void save(size_t len)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	cr_assert(fd >= 0);
	cr_assert_eq(write(fd, image, len), (ssize_t)len);
	close(fd);
}

static void start(void)
{
	const char *tmp = getenv("TMPDIR");

	snprintf(path, sizeof(path), "%s/vmimg-fsck-XXXXXX", tmp ? tmp : "/tmp");
	close(mkstemp(path));
	cr_assert_eq(eng_io_posix_create(&io), 0);
	put_be(0, 0x514649fb, 4);
	put_be(4, 3, 4);
	put_be(20, 12, 4);
	put_be(24, SIZE, 8);
	put_be(36, 2, 4);
	put_be(40, L1 * CLUSTER, 8);
	put_be(96, 4, 4);
	put_be(100, 104, 4);
	put_be(L1 * CLUSTER, L2A * CLUSTER, 8);
	put_be(L1 * CLUSTER + 8, L2B * CLUSTER, 8);
	put_be(L2A * CLUSTER, DATA * CLUSTER, 8);
	put_be(L2A * CLUSTER + 8, 1, 8); /* reads as zeros */
	put_be(L2B * CLUSTER, UINT64_C(1) << 62 | (COMPRESSED * CLUSTER + 100), 8);
	save(sizeof(image));
}

static void finish(void)
{
	unlink(path);
	eng_io_destroy(io);
}

TestSuite(fsck_qcow2, .init = start, .fini = finish);

Test(fsck_qcow2, a_sound_image_has_no_findings)
{
	assert_sound(io, path);
	cr_assert_eq(summary.layers, 1);
}

/* Q2-3, Q2-14 */
Test(fsck_qcow2, a_broken_header_is_found)
{
	put_be(20, 30, 4);
	save(sizeof(image));
	assert_found(io, path, "Q2-3", FSCK_CORRUPT);
	put_be(20, 12, 4);
	save(50);
	assert_found(io, path, "Q2-3", FSCK_CORRUPT);
}

/* Q2-7, CK-2 */
Test(fsck_qcow2, an_unknown_feature_is_not_supported_rather_than_broken)
{
	put_be(32, 1, 4);
	save(sizeof(image));
	cr_assert_eq(check(io, path), -ENOTSUP);
	cr_assert_eq(summary.corruptions, 0);
	cr_assert(was_found("Q2-10", FSCK_NOTE), "%s", all_findings());
}

/* Q2-14 */
Test(fsck_qcow2, an_l1_table_past_the_end_is_found)
{
	put_be(40, CLUSTERS * CLUSTER, 8);
	save(sizeof(image));
	assert_found(io, path, "Q2-14", FSCK_CORRUPT);
}

/* Q2-15 */
Test(fsck_qcow2, broken_l1_entries_are_found)
{
	put_be(L1 * CLUSTER, L2A * CLUSTER + 1, 8);
	save(sizeof(image));
	assert_found(io, path, "Q2-15", FSCK_CORRUPT);
	put_be(L1 * CLUSTER, UINT64_C(1) << 50, 8);
	save(sizeof(image));
	assert_found(io, path, "Q2-15", FSCK_CORRUPT);
	put_be(L1 * CLUSTER, L2B * CLUSTER, 8);
	save(sizeof(image));
	assert_found(io, path, "Q2-15", FSCK_NOTE);
}

/* Q2-17, Q2-18 */
Test(fsck_qcow2, broken_l2_entries_are_found)
{
	put_be(L2A * CLUSTER, DATA * CLUSTER + 512, 8);
	save(sizeof(image));
	assert_found(io, path, "Q2-17", FSCK_CORRUPT);
}

/* Q2-22, Q2-23 */
Test(fsck_qcow2, data_past_the_end_is_found)
{
	save(DATA * CLUSTER + 4095);
	assert_found(io, path, "Q2-22", FSCK_CORRUPT);
	cr_assert_eq(summary.corruptions, 2, "%s", all_findings());
	save(COMPRESSED * CLUSTER + 101); /* a stream may end early */
	assert_sound(io, path);
}

/* Q2-22: the cluster that the disk's end cuts may be cut in the file. */
Test(fsck_qcow2, the_last_cluster_may_be_cut)
{
	put_be(24, SIZE - 4096 + 512, 8);
	put_be(L2B * CLUSTER + 255 * 8, COMPRESSED * CLUSTER, 8);
	put_be(L2B * CLUSTER, 0, 8);
	save(COMPRESSED * CLUSTER + 512);
	assert_sound(io, path);
	save(COMPRESSED * CLUSTER + 511);
	assert_found(io, path, "Q2-22", FSCK_CORRUPT);
}

/* Entries behind the disk's end are never looked at. */
Test(fsck_qcow2, entries_behind_the_end_mean_nothing)
{
	put_be(L2B * CLUSTER + 300 * 8, UINT64_MAX, 8);
	save(sizeof(image));
	assert_sound(io, path);
}

/* Q2-19 */
Test(fsck_qcow2, subclusters_are_checked_one_by_one)
{
	memset(image + L1 * CLUSTER, 0, sizeof(image) - L1 * CLUSTER);
	put_be(20, 14, 4);
	put_be(24, 1 << 20, 8);
	put_be(36, 1, 4);
	put_be(72, FMT_QCOW2_EXTENDED_L2, 8);
	put_be(40, 0x4000, 8);
	save(sizeof(image));
	cr_assert_eq(truncate(path, 0x10000), 0);
	memset(image, 0, sizeof(image));
	put_be(0, 0x8000, 8);
	file_write(path, image, 8, 0x4000);
	put_be(0, 0xc000, 8);
	put_be(8, 0xffff, 8); /* the first half */
	file_write(path, image, 16, 0x8000);
	cr_assert_eq(truncate(path, 0xc000 + 0x2000), 0);
	assert_sound(io, path);
	cr_assert_eq(truncate(path, 0xc000 + 0x1fff), 0);
	assert_found(io, path, "Q2-22", FSCK_CORRUPT);
	put_be(8, 0x100000001, 8); /* a subcluster of zeros with data */
	file_write(path, image, 16, 0x8000);
	assert_found(io, path, "Q2-17", FSCK_CORRUPT);
}

/* BY-1 */
Test(fsck_qcow2, bytes_at_random_end_in_an_answer)
{
	uint8_t sound[sizeof(image)];

	memcpy(sound, image, sizeof(image));
	srand(1);
	for (unsigned i = 0; i < 600; i++) {
		static const unsigned parts[] = {HEAD, HEAD, L1, L2A, L2B};
		int r;

		memcpy(image, sound, sizeof(image));
		for (unsigned j = 0; j < 4; j++)
			image[parts[rand() % 5] * CLUSTER + (unsigned)rand() % 112] = (uint8_t)
				rand();
		save((unsigned)rand() % 4 ? sizeof(image) : (unsigned)rand() % sizeof(image));
		r = check(io, path);
		cr_assert(r == 0 || r == -ENOTSUP || r == -EFBIG, "%d: %s", r, check_error.text);
	}
}

/* A raw image may hold any bytes. */
Test(fsck_qcow2, a_raw_image_has_nothing_to_check)
{
	image[0] = 0;
	save(777);
	assert_sound(io, path);
	save(0);
	assert_sound(io, path);
}
