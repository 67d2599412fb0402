/* SPDX-License-Identifier: MIT */
/* engine_io.c - files, directories, shared memory and threads of the machine itself. */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/unit/engine_io_tmp.h"

static struct tmp tmp;

static void setup(void)
{
	tmp_init(&tmp, "/tmp");
}

static void teardown(void)
{
	tmp_fini(&tmp);
}

TestSuite(engine_io, .init = setup, .fini = teardown, .timeout = 60);

Test(engine_io, create_is_exclusive_and_private)
{
	const char *path = tmp_path(&tmp, "a");
	struct eng_file *file = NULL, *other = NULL;
	struct stat st;

	cr_assert_eq(eng_io_open(tmp.io, path, FRESH, &file), 0);
	cr_assert_eq(eng_io_open(tmp.io, path, FRESH, &other), -EEXIST);
	cr_expect_null(other);
	cr_assert_eq(stat(path, &st), 0);
	cr_expect_eq(st.st_mode & 0777, 0600);
	eng_io_close(tmp.io, file);
	eng_io_close(tmp.io, NULL);
}

Test(engine_io, open_refuses_what_is_no_file_and_does_not_block)
{
	struct eng_file *file = NULL;

	cr_assert_eq(mkfifo(tmp_path(&tmp, "fifo"), 0600), 0);
	cr_assert_eq(symlink("a", tmp_path(&tmp, "link")), 0);
	eng_io_close(tmp.io, tmp_open(&tmp, tmp.io, "a", FRESH));
	cr_expect_eq(eng_io_open(tmp.io, tmp_path(&tmp, "fifo"), 0, &file), -EINVAL);
	cr_expect_eq(eng_io_open(tmp.io, tmp.dir, 0, &file), -EISDIR);
	cr_expect_eq(eng_io_open(tmp.io, tmp_path(&tmp, "none"), 0, &file), -ENOENT);
	cr_expect_eq(eng_io_open(tmp.io, tmp_path(&tmp, "link"), ENG_OPEN_NOFOLLOW, &file), -ELOOP);
	cr_expect_null(file);
}

Test(engine_io, reads_are_short_only_at_the_end)
{
	struct eng_file *file = tmp_open(&tmp, tmp.io, "a", FRESH);
	char buf[16] = "";

	cr_assert_eq(eng_io_pwrite(tmp.io, file, "hello world", 11, 5), 0);
	cr_expect_eq(eng_io_pread(tmp.io, file, buf, 8, 5), 8);
	cr_expect_eq(eng_io_pread(tmp.io, file, buf, 16, 8), 8);
	cr_expect_eq(memcmp(buf, "lo world", 8), 0);
	cr_expect_eq(eng_io_pread(tmp.io, file, buf, 16, 16), 0);
	cr_expect_eq(eng_io_fdatasync(tmp.io, file), 0);
	eng_io_close(tmp.io, file);
	file = tmp_open(&tmp, tmp.io, "a", 0);
	cr_expect_eq(eng_io_pwrite(tmp.io, file, "x", 1, 0), -EBADF, "opened for reading");
	eng_io_close(tmp.io, file);
	file = tmp_open(&tmp, tmp.io, "a", ENG_OPEN_WRITE | ENG_OPEN_TRUNC);
	cr_expect_eq(eng_io_pread(tmp.io, file, buf, 16, 0), 0);
	eng_io_close(tmp.io, file);
}

Test(engine_io, direct_reports_its_granule_and_reads_an_odd_end)
{
	struct eng_file *file = tmp_open(&tmp, tmp.io, "a", FRESH | ENG_OPEN_DIRECT);
	char *buf = aligned_alloc(4096, 8192);
	struct eng_stat st;

	cr_assert_eq(eng_io_fstat(tmp.io, file, &st), 0);
	if (st.dio_align == 1)
		cr_skip_test("no direct I/O in /tmp");
	cr_expect_eq(st.dio_align & (st.dio_align - 1), 0u);
	cr_expect_leq(st.dio_align, 4096u);
	cr_expect_leq(st.mem_align, 4096u);
	memset(buf, 'x', 8192);
	cr_assert_eq(eng_io_pwrite(tmp.io, file, buf, 8192, 0), 0);
	cr_assert_eq(eng_io_truncate(tmp.io, file, 5000), 0);
	cr_expect_eq(eng_io_pread(tmp.io, file, buf, 8192, 0), 5000);
	cr_expect_eq(eng_io_pread(tmp.io, file, buf, 4096, 4096), 904);
	eng_io_close(tmp.io, file);
	free(buf);
}

Test(engine_io, direct_falls_back_to_buffered_on_tmpfs)
{
	struct eng_file *file;
	struct eng_stat st;
	struct tmp shm;

	tmp_init(&shm, "/dev/shm");
	file = tmp_open(&shm, shm.io, "a", FRESH | ENG_OPEN_DIRECT);
	cr_expect_eq(eng_io_pwrite(shm.io, file, "odd", 3, 7), 0);
	cr_assert_eq(eng_io_fstat(shm.io, file, &st), 0);
	cr_expect_eq(st.dio_align, 1u);
	cr_expect_eq(st.mem_align, 1u);
	cr_expect_eq(st.size, 10u);
	eng_io_close(shm.io, file);
	tmp_fini(&shm);
}

Test(engine_io, allocate_extends_and_keeps_data_and_punch_gives_back)
{
	struct eng_file *file = tmp_open(&tmp, tmp.io, "a", FRESH);
	uint64_t data = 0, hole = 0;
	char buf[4] = "";
	struct eng_stat st;

	cr_assert_eq(eng_io_pwrite(tmp.io, file, "keep", 4, 0), 0);
	cr_assert_eq(eng_io_allocate(tmp.io, file, 0, 1 << 20), 0);
	cr_assert_eq(eng_io_fstat(tmp.io, file, &st), 0);
	cr_expect_eq(st.size, 1u << 20);
	cr_expect_geq(st.allocated, 1u << 20);
	cr_expect_eq(eng_io_pread(tmp.io, file, buf, 4, 0), 4);
	cr_expect_eq(memcmp(buf, "keep", 4), 0);

	cr_assert_eq(eng_io_pwrite(tmp.io, file, "far", 3, 512 << 10), 0);
	cr_assert_eq(eng_io_punch(tmp.io, file, 0, 512 << 10), 0);
	cr_expect_eq(eng_io_pread(tmp.io, file, buf, 4, 0), 4);
	cr_expect_eq(memcmp(buf, "\0\0\0\0", 4), 0);
	cr_assert_eq(eng_io_next_data(tmp.io, file, 0, &data, &hole), 0);
	cr_expect_eq(data, 512u << 10);
	cr_expect_gt(hole, data);
	cr_expect_eq(eng_io_next_data(tmp.io, file, 1 << 20, &data, &hole), -ENXIO);
	cr_assert_eq(eng_io_fstat(tmp.io, file, &st), 0);
	cr_expect_eq(st.size, 1u << 20);
	cr_expect_leq(st.allocated, 512u << 10);
	eng_io_close(tmp.io, file);
}

Test(engine_io, lock_excludes_another_open_file)
{
	struct eng_file *one = tmp_open(&tmp, tmp.io, "lock", FRESH);
	struct eng_file *two = tmp_open(&tmp, tmp.io, "lock", ENG_OPEN_WRITE);

	cr_expect_eq(eng_io_lock(tmp.io, one), 0);
	cr_expect_eq(eng_io_lock(tmp.io, two), -EWOULDBLOCK);
	eng_io_close(tmp.io, one);
	cr_expect_eq(eng_io_lock(tmp.io, two), 0);
	eng_io_close(tmp.io, two);
}

static int count_names(void *arg, const char *name)
{
	unsigned *seen = arg;

	cr_expect_neq(name[0], '.');
	return ++*seen == 3 ? 77 : 0;
}

Test(engine_io, directories_list_rename_unlink_sync)
{
	struct eng_stat st;
	unsigned seen = 0;

	cr_assert_eq(eng_io_mkdir(tmp.io, tmp_path(&tmp, "d")), 0);
	cr_expect_eq(eng_io_mkdir(tmp.io, tmp_path(&tmp, "d")), -EEXIST);
	cr_assert_eq(eng_io_stat(tmp.io, tmp_path(&tmp, "d"), &st), 0);
	cr_expect(st.is_dir && !st.is_regular && !st.is_block);
	eng_io_close(tmp.io, tmp_open(&tmp, tmp.io, "d/a", FRESH));
	eng_io_close(tmp.io, tmp_open(&tmp, tmp.io, "d/b", FRESH));
	cr_expect_eq(eng_io_list(tmp.io, tmp_path(&tmp, "d"), count_names, &seen), 0);
	cr_expect_eq(seen, 2u);
	cr_expect_eq(eng_io_list(tmp.io, tmp_path(&tmp, "d"), count_names, &seen), 77);
	cr_expect_eq(eng_io_rename_new(tmp.io, tmp_path(&tmp, "d/a"), tmp_path(&tmp, "d/b")),
		     -EEXIST);
	cr_expect_eq(eng_io_rename(tmp.io, tmp_path(&tmp, "d/a"), tmp_path(&tmp, "d/b")), 0);
	cr_expect_eq(eng_io_stat(tmp.io, tmp_path(&tmp, "d/a"), &st), -ENOENT);
	cr_expect_eq(eng_io_rename_new(tmp.io, tmp_path(&tmp, "d/b"), tmp_path(&tmp, "d/a")), 0);
	cr_expect_eq(eng_io_rename_new(tmp.io, tmp_path(&tmp, "d/a"), tmp_path(&tmp, "d/b")), 0);
	cr_expect_eq(eng_io_unlink(tmp.io, tmp_path(&tmp, "d/b")), 0);
	cr_expect_eq(eng_io_unlink(tmp.io, tmp_path(&tmp, "d/b")), -ENOENT);
	cr_expect_eq(eng_io_sync_dir(tmp.io, tmp_path(&tmp, "d")), 0);
	cr_expect_eq(eng_io_sync_dir(tmp.io, tmp_path(&tmp, "e")), -ENOENT);
	cr_expect_eq(eng_io_list(tmp.io, tmp_path(&tmp, "e"), count_names, &seen), -ENOENT);
}

/* T20 */
Test(engine_io, shared_memory_is_private_allocated_and_outlives_its_mapping)
{
	char *map = NULL, *again = NULL;
	struct stat st;
	size_t len = 0;

	cr_assert_eq(eng_io_posix_set_shm_dir(tmp.io, "/dev/shm"), 0);
	cr_assert_eq(eng_io_posix_set_shm_dir(tmp.io, tmp.dir), 0);
	cr_assert_eq(eng_io_shm_create(tmp.io, "j", 1 << 20, (void **)&map), 0);
	cr_expect_eq(eng_io_shm_create(tmp.io, "j", 1 << 20, (void **)&again), -EEXIST);
	cr_assert_eq(stat(tmp_path(&tmp, "j"), &st), 0);
	cr_expect_eq(st.st_mode & 0777, 0600);
	cr_expect_geq(st.st_blocks * 512, 1 << 20);
	strcpy(map, "still here");
	eng_io_shm_unmap(tmp.io, map, 1 << 20);
	cr_assert_eq(eng_io_shm_open(tmp.io, "j", &len, (void **)&again), 0);
	cr_expect_eq(len, 1u << 20);
	cr_expect_str_eq(again, "still here");
	eng_io_shm_unmap(tmp.io, again, len);
	cr_expect_eq(eng_io_shm_unlink(tmp.io, "j"), 0);
	cr_expect_eq(eng_io_shm_open(tmp.io, "j", &len, (void **)&again), -ENOENT);
}

/* T20 */
Test(engine_io, shared_memory_of_others_is_refused)
{
	void *map = NULL;
	size_t len = 7;

	cr_assert_eq(eng_io_posix_set_shm_dir(tmp.io, tmp.dir), 0);
	cr_assert_eq(eng_io_shm_create(tmp.io, "j", 4096, &map), 0);
	eng_io_shm_unmap(tmp.io, map, 4096);
	map = NULL;
	cr_assert_eq(chmod(tmp_path(&tmp, "j"), 0660), 0);
	cr_expect_eq(eng_io_shm_open(tmp.io, "j", &len, &map), -EPERM);
	cr_assert_eq(chmod(tmp_path(&tmp, "j"), 0600), 0);
	if (geteuid() == 0) {
		cr_assert_eq(chown(tmp_path(&tmp, "j"), 1, (gid_t)-1), 0);
		cr_expect_eq(eng_io_shm_open(tmp.io, "j", &len, &map), -EPERM);
	}
	cr_assert_eq(symlink("j", tmp_path(&tmp, "k")), 0);
	cr_expect_eq(eng_io_shm_open(tmp.io, "k", &len, &map), -ELOOP);
	cr_expect_eq(eng_io_shm_open(tmp.io, "../j", &len, &map), -EINVAL);
	cr_expect_eq(eng_io_shm_open(tmp.io, "d/j", &len, &map), -EINVAL);
	cr_expect_eq(eng_io_shm_create(tmp.io, "..", 4096, &map), -EINVAL);
	cr_expect_null(map);
	cr_expect_eq(len, 7u);
}

Test(engine_io, boot_id_is_the_hosts_until_a_test_sets_it)
{
	uint8_t id[16], set[16] = "another boot id", text[64] = "";
	char want[64] = "", got[64] = "";
	size_t i, n = 0;

	cr_assert_gt(tmp_read("/proc/sys/kernel/random/boot_id", (char *)text, 63), 0);
	for (i = 0; text[i] && text[i] != '\n'; i++)
		if (text[i] != '-')
			want[n++] = (char)text[i];
	eng_io_boot_id(tmp.io, id);
	for (i = 0; i < 16; i++)
		snprintf(got + 2 * i, 3, "%02x", id[i]);
	cr_expect_str_eq(got, want);
	eng_io_posix_set_boot_id(tmp.io, set);
	eng_io_boot_id(tmp.io, id);
	cr_expect_eq(memcmp(id, set, 16), 0);
}

static void note_signals(void *arg)
{
	pthread_sigmask(SIG_BLOCK, NULL, arg);
}

Test(engine_io, threads_run_with_signals_blocked_and_join)
{
	struct eng_thread *thread = NULL;
	sigset_t mask, own;

	sigemptyset(&mask);
	cr_assert_eq(eng_io_spawn(tmp.io, "a name far too long for a thread", note_signals, &mask,
				  &thread),
		     0);
	eng_io_join(tmp.io, thread);
	cr_expect(sigismember(&mask, SIGTERM));
	pthread_sigmask(SIG_BLOCK, NULL, &own);
	cr_expect(!sigismember(&own, SIGTERM), "the caller's mask is as it was");
}

Test(engine_io, clock_sleeps_and_randomness_differs)
{
	uint64_t start = eng_io_now_ns(tmp.io);
	uint8_t a[64], b[64];

	eng_io_sleep_ns(tmp.io, 2000000);
	cr_expect_geq(eng_io_now_ns(tmp.io) - start, 2000000u);
	cr_expect_gt(eng_io_wall_ns(tmp.io), 1700000000ll * 1000000000);
	eng_io_random(tmp.io, a, sizeof(a));
	eng_io_random(tmp.io, b, sizeof(b));
	cr_expect_neq(memcmp(a, b, sizeof(a)), 0);
}

Test(engine_io, open_file_limit_is_raised)
{
	struct eng_io *another = NULL;
	struct rlimit lim;

	cr_assert_eq(getrlimit(RLIMIT_NOFILE, &lim), 0);
	lim.rlim_cur = 64;
	cr_assert_eq(setrlimit(RLIMIT_NOFILE, &lim), 0);
	cr_assert_eq(eng_io_posix_create(&another), 0);
	cr_assert_eq(getrlimit(RLIMIT_NOFILE, &lim), 0);
	cr_expect_eq(lim.rlim_cur, lim.rlim_max);
	eng_io_destroy(another);
}
