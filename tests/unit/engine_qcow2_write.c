/* SPDX-License-Identifier: MIT */
/*
 * engine_qcow2_write.c - new qcow2 images: what they hold, read back by our reader and checked by
 * qemu-img; small clusters make a small image cross every boundary that a large one has.
 */
#include <sys/stat.h>
#include <unistd.h>

#include "engine/io/io_fault.h"
#include "engine/layer/qcow2.h"
#include "engine/image/qcow2_write.h"
#include "tests/unit/engine_io_tmp.h"
#include "tests/unit/engine_source.h"

static struct tmp t;
static struct fmt_error err;

static struct disk disk;

static void start(void)
{
	const char *where = getenv("TMPDIR");

	tmp_init(&t, where ? where : "/tmp");
	memset(&err, 0, sizeof(err));
}

static void finish(void)
{
	tmp_fini(&t);
	disk_free(&disk);
}

TestSuite(engine_qcow2_write, .init = start, .fini = finish, .timeout = 300);

static int write_image(const char *name, uint32_t bits, bool compress, const char *backing)
{
	struct eng_qcow2_target target = {
		.path = tmp_path(&t, name),
		.cluster_bits = bits,
		.compress = compress,
		.backing = backing,
		.backing_format = backing ? "raw" : NULL,
	};
	struct eng_source source = disk_source(&disk);

	return eng_qcow2_write(t.io, &target, &source, NULL, &err, NULL);
}

static bool have_qemu(void)
{
	return !system("command -v qemu-img >/dev/null 2>&1");
}

/* 0: neither errors nor leaks. */
static void check_by_qemu(const char *name)
{
	char command[256];

	if (!have_qemu())
		return;
	snprintf(command, sizeof(command), "qemu-img check -q -f qcow2 %s", tmp_path(&t, name));
	cr_assert_eq(system(command), 0, "%s", command);
}

static void check_content(const char *name)
{
	struct eng_qcow2 *q = NULL;
	uint8_t *got = malloc(disk.size + SECTOR);
	uint64_t size = (disk.size + SECTOR - 1) / SECTOR * SECTOR;

	cr_assert_eq(eng_qcow2_open(t.io, tmp_path(&t, name), NULL, 0, &err, &q), 0, "%s",
		     err.text);
	cr_assert_eq(eng_qcow2_size(q), size);
	cr_assert_eq(eng_qcow2_read(q, got, size, 0, &err), 0, "%s", err.text);
	for (uint64_t i = 0; i < size; i++)
		if (got[i] != disk.bytes[i])
			cr_assert_fail("%s: byte %llu is %#x, not %#x", name, (unsigned long long)i,
				       got[i], disk.bytes[i]);
	eng_qcow2_close(q);
	free(got);
}

static uint64_t length_of(const char *name)
{
	struct eng_stat st;

	cr_assert_eq(eng_io_stat(t.io, tmp_path(&t, name), &st), 0);
	return st.size;
}

/* Q2W-1, Q2W-3 to Q2W-7, Q2W-10 */
Test(engine_qcow2_write, random_disks_come_back_and_pass_the_check_of_qemu_img)
{
	uint64_t rnd = disk_seed(t.io);

	for (unsigned round = 0; round < 60; round++) {
		uint32_t bits = 9 + (uint32_t)(test_random(&rnd) % 5);
		uint64_t size = test_random(&rnd) % (4u << 20) + 1;

		disk_make(&disk, round % 4 ? (size + SECTOR - 1) / SECTOR * SECTOR : size);
		disk_fill(&disk, &rnd);
		cr_assert_eq(write_image("a", bits, round % 2, NULL), 0, "%s", err.text);
		check_content("a");
		check_by_qemu("a");
		unlink(tmp_path(&t, "a"));
	}
}

/* Q2W-2, Q2W-6 */
Test(engine_qcow2_write, increments_hold_what_is_no_hole_and_leave_the_rest_to_their_base)
{
	uint64_t rnd = disk_seed(t.io);
	struct eng_file *file;
	char command[256];

	for (unsigned round = 0; round < 30; round++) {
		uint64_t size = (test_random(&rnd) % 4096 + 1) * SECTOR;
		uint8_t *base = malloc(size);

		disk_make(&disk, size);
		disk_fill(&disk, &rnd);
		for (uint64_t i = 0; i < size; i++)
			base[i] = (uint8_t)test_random(&rnd);
		for (uint64_t i = 0; i < size; i++)
			if (disk.states[i / SECTOR] == ENG_EXTENT_HOLE)
				disk.bytes[i] = base[i];
		file = tmp_open(&t, t.io, "base", FRESH);
		cr_assert_eq(eng_io_pwrite(t.io, file, base, size, 0), 0);
		eng_io_close(t.io, file);
		cr_assert_eq(write_image("a", 9 + round % 6, round % 2, "base"), 0, "%s", err.text);
		check_content("a");
		check_by_qemu("a");
		if (have_qemu()) { /* the base is found and needed by others too */
			file = tmp_open(&t, t.io, "flat", FRESH);
			cr_assert_eq(eng_io_pwrite(t.io, file, disk.bytes, size, 0), 0);
			eng_io_close(t.io, file);
			snprintf(command, sizeof(command),
				 "qemu-img compare -q -f qcow2 -F raw %s/a %s/flat", t.dir, t.dir);
			cr_assert_eq(system(command), 0, "%s", command);
			unlink(tmp_path(&t, "flat"));
		}
		unlink(tmp_path(&t, "a"));
		unlink(tmp_path(&t, "base"));
		free(base);
	}
}

/* Q2W-6: a disk of holes and zeros takes no data, with a base zeros take flags. */
Test(engine_qcow2_write, holes_stay_out_and_zeros_over_a_base_are_flags)
{
	enum eng_qcow2_state state;
	struct eng_file *file;
	struct eng_qcow2 *q;
	uint64_t len;
	uint32_t depth;

	disk_make(&disk, 1u << 20);
	cr_assert_eq(write_image("empty", 0, false, NULL), 0, "%s", err.text);
	cr_expect_eq(length_of("empty"), 4u << 16, "header, counts, L1, the table of counts");
	check_content("empty");
	check_by_qemu("empty");

	memset(disk.states, ENG_EXTENT_ZERO, disk.size / SECTOR);
	cr_assert_eq(write_image("zeros", 0, true, NULL), 0);
	cr_expect_eq(length_of("zeros"), 4u << 16);
	disk_data(&disk, 0, disk.size, DISK_ZEROS, NULL);
	cr_assert_eq(write_image("written", 0, true, NULL), 0);
	cr_expect_eq(length_of("written"), 4u << 16);

	file = tmp_open(&t, t.io, "base", FRESH);
	cr_assert_eq(eng_io_pwrite(t.io, file, "base", 4, 0), 0);
	eng_io_close(t.io, file);
	for (unsigned said = 0; said < 2; said++) {
		memset(disk.states, said ? ENG_EXTENT_ZERO : ENG_EXTENT_DATA, disk.size / SECTOR);
		cr_assert_eq(write_image("over", 0, false, "base"), 0, "%s", err.text);
		cr_expect_eq(length_of("over"), 5u << 16, "and one L2 table");
		cr_assert_eq(eng_qcow2_open(t.io, tmp_path(&t, "over"), NULL, 0, &err, &q), 0);
		cr_assert_eq(eng_qcow2_extent(q, 0, &err, &len, &state, &depth), 0);
		cr_expect(state == ENG_QCOW2_ZERO && depth == 0 && len == disk.size);
		eng_qcow2_close(q);
		check_by_qemu("over");
		unlink(tmp_path(&t, "over"));
	}
}

/* Q2W-7 */
Test(engine_qcow2_write, what_does_not_shrink_is_written_as_it_is)
{
	uint64_t rnd = disk_seed(t.io);
	uint64_t plain;

	disk_make(&disk, 1u << 20);
	disk_data(&disk, 0, disk.size, DISK_NOISE, &rnd);
	cr_assert_eq(write_image("plain", 0, false, NULL), 0);
	cr_assert_eq(write_image("packed", 0, true, NULL), 0);
	plain = length_of("plain");
	cr_expect_eq(length_of("packed"), plain);
	check_content("packed");
	check_by_qemu("packed");
	unlink(tmp_path(&t, "packed"));
	disk_data(&disk, disk.size / 2, disk.size / 2, DISK_PATTERN, &rnd);
	cr_assert_eq(write_image("packed", 0, true, NULL), 0);
	cr_expect_lt(length_of("packed"), plain * 3 / 4);
	check_content("packed");
	check_by_qemu("packed");
}

/* Q2W-8 */
Test(engine_qcow2_write, same_disk_gives_the_same_file)
{
	uint64_t rnd = disk_seed(t.io);
	char command[256];

	disk_make(&disk, 24u << 20);
	disk_fill(&disk, &rnd);
	cr_assert_eq(write_image("a", 12, true, NULL), 0, "%s", err.text);
	cr_assert_eq(write_image("b", 12, true, NULL), 0, "%s", err.text);
	snprintf(command, sizeof(command), "cmp %s/a %s/b", t.dir, t.dir);
	cr_expect_eq(system(command), 0);
}

/* Q2W-4: an image of 1 TiB takes what its data take; one that no table reaches is refused. */
Test(engine_qcow2_write, large_sparse_disks_are_small_and_too_large_ones_refused)
{
	struct eng_file *file = tmp_open(&t, t.io, "raw", FRESH);
	struct eng_convert how = {.dst_format = "qcow2", .compress = true};
	uint8_t bytes[100000];
	char command[256];

	memset(bytes, 'x', sizeof(bytes));
	cr_assert_eq(eng_io_truncate(t.io, file, 1ull << 40), 0);
	for (uint64_t at = 1000; at < 1ull << 40; at += 100ull << 30)
		cr_assert_eq(eng_io_pwrite(t.io, file, bytes, sizeof(bytes), at), 0);
	cr_assert_eq(eng_image_convert(t.io, tmp_path(&t, "raw"), tmp_path(&t, "a"), &how, &err), 0,
		     "%s", err.text);
	cr_expect_leq(length_of("a"), 30u << 16);
	check_by_qemu("a");
	if (have_qemu()) {
		snprintf(command, sizeof(command),
			 "qemu-img compare -q -f raw -F qcow2 %s/raw %s/a", t.dir, t.dir);
		cr_expect_eq(system(command), 0);
	}
	how.cluster_bits = 9;
	cr_expect_eq(eng_image_convert(t.io, tmp_path(&t, "raw"), tmp_path(&t, "b"), &how, &err),
		     -EFBIG);
	cr_expect(strstr(err.text, "larger clusters"), "%s", err.text);
	cr_expect_neq(access(tmp_path(&t, "b"), F_OK), 0);
	eng_io_close(t.io, file);
}

/* Q2W-2 */
Test(engine_qcow2_write, backing_names_with_a_path_or_a_protocol_are_refused)
{
	static const char *const names[] = {"a/b", "/b", "nbd:b", "", ".", ".."};
	char name[2000];

	disk_make(&disk, 4096);
	for (unsigned i = 0; i < 6; i++)
		cr_expect_eq(write_image("a", 0, false, names[i]), -EINVAL, "'%s'", names[i]);
	memset(name, 'n', sizeof(name));
	name[1024] = 0;
	cr_expect_eq(write_image("a", 0, false, name), -EINVAL);
	name[500] = 0;
	cr_expect_eq(write_image("a", 9, false, name), -EINVAL, "no room in 512 bytes");
	cr_expect_neq(access(tmp_path(&t, "a"), F_OK), 0);
	cr_expect_eq(write_image("a", 12, false, name), 0, "%s", err.text);
}

/* Q2W-9: whenever power is lost, the name stands for the whole image or for nothing. */
Test(engine_qcow2_write, power_loss_leaves_the_whole_image_or_no_name)
{
	uint64_t rnd = disk_seed(t.io);
	struct eng_convert how = {.dst_format = "qcow2", .cluster_bits = 9};
	struct eng_record *rec = NULL;
	struct eng_file *file;
	unsigned whole = 0;
	char src[128], dst[128], crash[128];

	disk_make(&disk, 40000 / SECTOR * SECTOR);
	disk_fill(&disk, &rnd);
	file = tmp_open(&t, t.io, "raw", FRESH);
	cr_assert_eq(eng_io_pwrite(t.io, file, disk.bytes, disk.size, 0), 0);
	eng_io_close(t.io, file);
	strcpy(src, tmp_path(&t, "raw"));
	strcpy(dst, tmp_path(&t, "out/a"));
	strcpy(crash, tmp_path(&t, "crash"));
	for (unsigned i = 0; i < 2; i++) {
		how.compress = i;
		cr_assert_eq(eng_io_mkdir(t.io, tmp_path(&t, "out")), 0);
		cr_assert_eq(eng_record_create(t.io, tmp_path(&t, "out"), &rec), 0);
		cr_assert_eq(eng_image_convert(eng_record_io(rec), src, dst, &how, &err), 0, "%s",
			     err.text);
		for (uint64_t at = 0; at <= eng_record_index(rec); at++) {
			for (uint64_t way = 0; way < 3; way++) {
				cr_assert_eq(eng_record_crash(rec, at, way, crash), 0);
				if (access(tmp_path(&t, "crash/a"), F_OK) == 0) {
					check_content("crash/a");
					whole++;
				} else {
					cr_assert_lt(at, eng_record_index(rec));
				}
				cr_assert_eq(eng_record_remove_tree(crash), 0);
			}
		}
		eng_record_destroy(rec);
		cr_assert_eq(eng_record_remove_tree(tmp_path(&t, "out")), 0);
	}
	cr_expect_gt(whole, 5u);
}
