/* SPDX-License-Identifier: MIT */
/*
 * fsck_base.c - the checker on a store's bases: what their sidecars recorded, and the files themselves.
 */
#include "tests/unit/fsck_made_store.h"

TestSuite(fsck_base, .init = start, .fini = finish);

/* SC-3, IB-3: the store's own base is known by its length. */
Test(fsck_base, a_frozen_base_of_another_length_is_found)
{
	uint8_t one = 1;

	make_store();
	file_write(base_file(), &one, 1, 77);
	assert_sound(io, store_dir);
	cr_assert_eq(truncate(base_file(), DISK_SIZE + 512), 0);
	assert_found(io, store_dir, "SC-3", FSCK_CORRUPT);
	cr_assert_eq(truncate(base_file(), DISK_SIZE - 512), 0);
	assert_found(io, store_dir, "SC-3", FSCK_CORRUPT);
}

/* A raw base in place under a snapshot; returns its path. */
static const char *make_in_place(void)
{
	static char path[400];
	int fd;

	snprintf(path, sizeof(path), "%s/base.img", dir);
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	cr_assert(fd >= 0);
	cr_assert_eq(ftruncate(fd, DISK_SIZE), 0);
	close(fd);
	open_store();
	make_vm();
	make_disk("d", path, true);
	make_disk("e", NULL, false);
	attach();
	use(20);
	detach();
	close_store();
	assert_sound(io, store_dir);
	open_store();
	snapshot("s1");
	attach();
	use(20);
	detach();
	close_store();
	assert_sound(io, store_dir);
	return path;
}

/* SC-3 */
Test(fsck_base, a_base_in_place_that_was_written_is_found)
{
	const char *path = make_in_place();
	struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, {.tv_sec = 1000000000}};

	cr_assert_eq(utimensat(AT_FDCWD, path, times, 0), 0);
	assert_found(io, store_dir, "SC-3", FSCK_CORRUPT);
}

/* SC-6, SC-1 */
Test(fsck_base, a_base_in_place_that_is_gone_is_found)
{
	const char *path = make_in_place();

	cr_assert_eq(unlink(path), 0);
	assert_found(io, store_dir, "SC-6", FSCK_CORRUPT);
	cr_assert_eq(mkdir(path, 0700), 0);
	assert_found(io, store_dir, "SC-1", FSCK_CORRUPT);
}

/* IB-2: another file with the same bytes and time. */
Test(fsck_base, a_base_in_place_that_was_replaced_is_noted)
{
	const char *path = make_in_place();
	struct timespec times[2];
	char copy[420];
	struct stat st;

	snprintf(copy, sizeof(copy), "%s.copy", path);
	file_copy(path, copy);
	cr_assert_eq(stat(path, &st), 0);
	times[0] = st.st_atim;
	times[1] = st.st_mtim;
	cr_assert_eq(utimensat(AT_FDCWD, copy, times, 0), 0);
	cr_assert_eq(rename(copy, path), 0);
	assert_found(io, store_dir, "IB-2", FSCK_NOTE);
}

/* T31 */
Test(fsck_base, a_file_claimed_by_two_disks_is_found)
{
	const char *path = make_in_place();
	struct cat_layer *rows = NULL;
	struct eng_catalog *cat;
	struct cat_disk e;
	char own[400], id[FMT_UUID_TEXT];
	size_t count = 0;

	cat = open_catalog();
	ok(eng_catalog_get_disk(cat, "a", "e", &e));
	ok(eng_catalog_list_layers(cat, &e.id, &rows, &count));
	eng_catalog_rollback(cat);
	eng_catalog_close(cat);
	fmt_uuid_format(&rows[0].id, id);
	snprintf(own, sizeof(own), "%s/layers/%s.raw", store_dir, id);
	cr_assert_eq(unlink(own), 0);
	cr_assert_eq(link(path, own), 0);
	assert_found(io, store_dir, "T31", FSCK_CORRUPT);
	free(rows);
}

/* SC-1 */
Test(fsck_base, a_sidecar_that_is_too_long_is_a_leak)
{
	make_store();
	cr_assert_eq(truncate(layer_file(0), 9000), 0);
	assert_found(io, store_dir, "SC-1", FSCK_LEAK);
	cr_assert_eq(summary.leaked_bytes, 9000 - 8192);
}
