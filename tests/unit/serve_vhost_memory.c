/* SPDX-License-Identifier: MIT */
/*
 * serve_vhost_memory.c - guest memory: which files and regions are taken, where an address is, and what
 * happens when a file becomes shorter.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "serve/vhost/vhost.h"

#define SIZE  65536u
#define GUEST UINT64_C(0x40000000)
#define USER  UINT64_C(0x7f0000000000)

static struct srv_vhost_memory mem;
static struct vmimg_error err;
static int fd;

static void setup(void)
{
	fd = memfd_create("guest", MFD_CLOEXEC);
	cr_assert_eq(ftruncate(fd, 4 * SIZE), 0);
}

static void teardown(void)
{
	srv_vhost_memory_clear(&mem);
	close(fd);
}

TestSuite(serve_vhost_memory, .init = setup, .fini = teardown, .timeout = 60);

static int add(uint64_t guest, uint64_t size, uint64_t user, uint64_t offset)
{
	struct vhost_region_desc d = {guest, size, user, offset};

	return srv_vhost_memory_add(&mem, &d, fd, &err);
}

/* VU-30, VU-31 */
Test(serve_vhost_memory, a_region_beyond_its_file_or_over_another_is_refused)
{
	cr_expect_eq(add(GUEST, 0, USER, 0), -EINVAL, "empty");
	cr_expect_eq(add(GUEST, 4 * SIZE + 1, USER, 0), -EINVAL, "longer than the file");
	cr_expect_eq(add(GUEST, SIZE, USER, 4 * SIZE), -EINVAL, "behind the file");
	cr_expect_eq(add(GUEST, SIZE, USER, UINT64_MAX - 4096), -EINVAL, "offset wraps");
	cr_expect_eq(add(UINT64_MAX - SIZE + 1, SIZE, USER, 0), -EINVAL, "guest address wraps");
	cr_expect_eq(add(GUEST, SIZE, UINT64_MAX - 1, 0), -EINVAL, "user address wraps");
	cr_expect_eq(mem.count, 0);
	cr_assert_eq(add(GUEST + SIZE, SIZE, USER + SIZE, 0), 0);
	cr_expect_eq(add(GUEST + 1, SIZE, USER, 0), -EINVAL, "over the beginning");
	cr_expect_eq(add(GUEST + 2 * SIZE - 1, SIZE, USER, 0), -EINVAL, "over the end");
	cr_expect_eq(add(GUEST, 3 * SIZE, USER + 4 * SIZE, 0), -EINVAL, "around it");
	cr_expect_eq(add(GUEST + SIZE + 1, 1, USER + 4 * SIZE, 0), -EINVAL, "within it");
	cr_expect_eq(add(GUEST, SIZE, USER + SIZE + 1, 0), -EINVAL, "over its user addresses");
	cr_expect_eq(add(GUEST, SIZE, USER, 0), 0, "beside it");
	cr_expect_eq(mem.count, 2);
}

Test(serve_vhost_memory, there_are_at_most_64_regions)
{
	for (unsigned i = 0; i < VHOST_REGIONS_MAX; i++)
		cr_assert_eq(add(GUEST + i * SIZE, 4096, USER + i * SIZE, 0), 0);
	cr_expect_eq(add(GUEST - SIZE, 4096, USER - SIZE, 0), -ENOSPC);
}

/* VU-32 */
Test(serve_vhost_memory, only_memory_files_are_taken)
{
	struct vhost_region_desc d = {GUEST, 4096, USER, 0};
	int pipes[2], proc = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);

	cr_assert_eq(pipe(pipes), 0);
	cr_expect_eq(srv_vhost_memory_add(&mem, &d, proc, &err), -EINVAL);
	cr_expect(strstr(err.message, "tmpfs"), "%s", err.message);
	cr_expect_eq(srv_vhost_memory_add(&mem, &d, pipes[0], &err), -EINVAL);
	cr_expect_eq(srv_vhost_memory_add(&mem, &d, -1, &err), -EBADF);
	close(proc);
	close(pipes[0]);
	close(pipes[1]);
}

Test(serve_vhost_memory, an_address_is_where_its_regions_file_is)
{
	struct iovec iov[4];
	unsigned n = 0;
	char c = 0;

	/* Out of order, with a hole between the second and the third, files the other way round. */
	cr_assert_eq(add(GUEST + SIZE, SIZE, USER, SIZE + 512), 0);
	cr_assert_eq(add(GUEST, SIZE, USER + 8 * SIZE, 0), 0);
	cr_assert_eq(add(GUEST + 3 * SIZE, SIZE, USER + 4 * SIZE, 3 * SIZE), 0);
	cr_assert_eq(pwrite(fd, "a", 1, 5), 1);
	cr_assert_eq(pwrite(fd, "b", 1, SIZE + 512 + 6), 1);
	cr_assert_eq(pwrite(fd, "c", 1, 3 * SIZE + SIZE - 1), 1);
	cr_assert_eq(srv_vhost_memory_slice(&mem, GUEST + 5, 1, iov, 4, &n), 0);
	cr_assert_eq(srv_vhost_memory_slice(&mem, GUEST + SIZE + 6, 1, iov, 4, &n), 0);
	cr_assert_eq(srv_vhost_memory_slice(&mem, GUEST + 4 * SIZE - 1, 1, iov, 4, &n), 0);
	cr_assert_eq(n, 3);
	cr_expect_eq(*(char *)iov[0].iov_base, 'a');
	cr_expect_eq(*(char *)iov[1].iov_base, 'b');
	cr_expect_eq(*(char *)iov[2].iov_base, 'c');
	*(char *)iov[1].iov_base = 'B';
	cr_assert_eq(pread(fd, &c, 1, SIZE + 512 + 6), 1);
	cr_expect_eq(c, 'B');
	cr_expect_eq(srv_vhost_memory_user(&mem, USER + 6, 1), iov[1].iov_base);
	cr_expect_null(srv_vhost_memory_user(&mem, USER + SIZE - 1, 2), "not in one piece");
	cr_expect_null(srv_vhost_memory_user(&mem, USER - 1, 1));
	cr_expect_null(srv_vhost_memory_user(&mem, USER, UINT64_MAX));
}

Test(serve_vhost_memory, a_buffer_may_cross_regions_but_no_hole)
{
	struct iovec iov[4];
	unsigned n = 0;

	cr_assert_eq(add(GUEST, SIZE, USER, 0), 0);
	cr_assert_eq(add(GUEST + SIZE, SIZE, USER + 4 * SIZE, SIZE), 0);
	cr_assert_eq(srv_vhost_memory_slice(&mem, GUEST + SIZE - 10, 30, iov, 4, &n), 0);
	cr_assert_eq(n, 2);
	cr_expect_eq(iov[0].iov_len, 10);
	cr_expect_eq(iov[1].iov_len, 20);
	cr_expect_eq(srv_vhost_memory_slice(&mem, GUEST, 2 * SIZE, iov, 3, &n), -E2BIG);
	cr_expect_eq(n, 2, "unchanged by a failure");
	cr_expect_eq(srv_vhost_memory_slice(&mem, GUEST - 1, 2, iov, 4, &n), -EFAULT);
	cr_expect_eq(srv_vhost_memory_slice(&mem, GUEST + 2 * SIZE - 1, 2, iov, 4, &n), -EFAULT);
	cr_expect_eq(srv_vhost_memory_slice(&mem, UINT64_MAX, UINT64_MAX, iov, 4, &n), -EFAULT);
}

Test(serve_vhost_memory, a_region_is_removed_by_its_three_numbers)
{
	struct vhost_region_desc d = {GUEST + SIZE, SIZE, USER + SIZE, 0}, other = d;
	struct iovec iov[2];
	unsigned n = 0;

	for (unsigned i = 0; i < 3; i++)
		cr_assert_eq(add(GUEST + i * SIZE, SIZE, USER + i * SIZE, i * SIZE), 0);
	other.user++;
	cr_expect_eq(srv_vhost_memory_remove(&mem, &other, &err), -ENOENT);
	cr_assert_eq(srv_vhost_memory_remove(&mem, &d, &err), 0);
	cr_expect_eq(mem.count, 2);
	cr_expect_eq(srv_vhost_memory_slice(&mem, GUEST + SIZE, 1, iov, 2, &n), -EFAULT);
	cr_expect_eq(srv_vhost_memory_slice(&mem, GUEST + 2 * SIZE, 1, iov, 2, &n), 0);
}

/* VU-34 */
Test(serve_vhost_memory, a_page_that_went_away_reads_as_zero_and_is_noticed)
{
	struct srv_vhost_memory other = {0};
	struct vhost_region_desc d = {GUEST, SIZE, USER, 0};
	volatile char *at, *there;
	int second = memfd_create("guest", MFD_CLOEXEC);

	cr_assert_eq(ftruncate(second, SIZE), 0);
	cr_assert_eq(srv_vhost_guard_install(), 0);
	cr_assert_eq(add(GUEST, SIZE, USER, 0), 0);
	cr_assert_eq(srv_vhost_memory_add(&other, &d, second, &err), 0);
	at = srv_vhost_memory_user(&mem, USER + 5000, 1);
	there = srv_vhost_memory_user(&other, USER, 1);
	*at = 7;
	*there = 8;
	cr_assert_eq(ftruncate(fd, 0), 0);
	cr_expect_eq(*at, 0);
	*at = 9;
	cr_expect_eq(*at, 9, "and takes writes");
	cr_expect(atomic_load(&mem.lost));
	cr_expect_not(atomic_load(&other.lost));
	cr_expect_eq(*there, 8, "another mapping is as it was");
	srv_vhost_memory_clear(&other);
	srv_vhost_guard_remove();
	close(second);
}

Test(serve_vhost_memory, a_sigbus_elsewhere_still_kills)
{
	int status;
	pid_t pid;

	signal(SIGBUS, SIG_DFL); /* a sanitizer has one of its own */
	cr_assert_eq(srv_vhost_guard_install(), 0);
	cr_assert_eq(add(GUEST, SIZE, USER, 0), 0);
	pid = fork();
	if (pid == 0) {
		char *p = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);

		if (ftruncate(fd, 0) == 0)
			_exit(*(volatile char *)p);
		_exit(0);
	}
	cr_assert_eq(waitpid(pid, &status, 0), pid);
	cr_expect(WIFSIGNALED(status));
	cr_expect_eq(WTERMSIG(status), SIGBUS);
	srv_vhost_guard_remove();
}
