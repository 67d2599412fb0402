/* SPDX-License-Identifier: MIT */
/*
 * engine_fdcache.c - files whose descriptor is closed and opened again: more of them than may be open,
 * in use by many threads, replaced, gone; and a chain longer than the process's limit.
 */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/image/image.h"
#include "engine/io/io_posix.h"
#include "tests/unit/engine_io_tmp.h"

#define LEN   8192u
#define FILES 64u
#define LIMIT 8u

static struct tmp tmp;
static struct eng_file *files[FILES];

static void setup(void)
{
	const char *where = getenv("TMPDIR");

	tmp_init(&tmp, where ? where : "/tmp");
	memset(files, 0, sizeof(files));
	eng_io_posix_set_fd_limit(LIMIT);
}

static void teardown(void)
{
	for (unsigned i = 0; i < FILES; i++)
		eng_io_close(tmp.io, files[i]);
	tmp_fini(&tmp);
}

TestSuite(engine_fdcache, .init = setup, .fini = teardown, .timeout = 120);

/* --- helpers --- */

static void fill(uint64_t *buf, unsigned n)
{
	for (unsigned i = 0; i < LEN / 8; i++)
		buf[i] = n * UINT64_C(0x9e3779b97f4a7c15) + i;
}

static const char *name_of(unsigned n)
{
	static __thread char name[16];

	snprintf(name, sizeof(name), "f%u", n);
	return name;
}

static void put_file(const char *name, unsigned n)
{
	struct eng_file *file = tmp_open(&tmp, tmp.io, name, FRESH);
	uint64_t buf[LEN / 8];

	fill(buf, n);
	cr_assert_eq(eng_io_pwrite(tmp.io, file, buf, LEN, 0), 0);
	eng_io_close(tmp.io, file);
}

static void open_files(unsigned from, unsigned to, unsigned flags)
{
	for (unsigned i = from; i < to; i++) {
		put_file(name_of(i), i);
		files[i] = tmp_open(&tmp, tmp.io, name_of(i), flags | ENG_OPEN_CACHED);
	}
}

static bool reads_right(unsigned n)
{
	uint64_t want[LEN / 8], got[LEN / 8];

	fill(want, n);
	return eng_io_pread(tmp.io, files[n], got, LEN, 0) == LEN && !memcmp(want, got, LEN);
}

/* Reads another file until file @n is closed. */
static void evict(unsigned n, unsigned other)
{
	eng_io_posix_set_fd_limit(1);
	for (int i = 0; i < 4 && eng_fdcache_is_open(files[n]->cached); i++)
		cr_assert(reads_right(other));
	cr_assert_not(eng_fdcache_is_open(files[n]->cached));
}

static unsigned descriptors(void)
{
	unsigned n = 0;

	for (int fd = 0; fd < 4096; fd++)
		n += fcntl(fd, F_GETFD) >= 0;
	return n;
}

static void op_done(struct eng_op *op)
{
	op->priv[0] = 1;
}

static struct eng_op op_of(enum eng_op_kind kind, unsigned n, const struct iovec *iov)
{
	return (struct eng_op){
		.kind = (uint8_t)kind, .file = files[n], .iov = iov, .iovcnt = 1, .done = op_done};
}

static void turn(struct eng_ring *ring, unsigned count)
{
	while (count) {
		int r = eng_ring_wait(ring, UINT64_C(10000000000));

		cr_assert_gt(r, 0);
		count -= (unsigned)r;
	}
}

/* --- the flag --- */

/* IO-9 */
Test(engine_fdcache, a_cached_file_is_read_as_any_other_and_never_changed)
{
	struct eng_ring *ring;
	struct eng_stat st, want;
	uint64_t buf[LEN / 8], data, hole;
	struct iovec iov = {buf, LEN};
	struct eng_file *file;
	struct eng_op write, sync;

	open_files(0, 2, 0);
	evict(0, 1);
	cr_expect_eq(eng_io_fstat(tmp.io, files[0], &st), 0);
	cr_expect_eq(eng_io_stat(tmp.io, tmp_path(&tmp, "f0"), &want), 0);
	cr_expect(st.ino == want.ino && st.size == LEN && st.dio_align == 1);
	evict(0, 1);
	cr_expect_eq(eng_io_next_data(tmp.io, files[0], 0, &data, &hole), 0);
	cr_expect(data == 0 && hole == LEN);
	evict(0, 1);
	cr_expect_eq(eng_io_pread(tmp.io, files[0], buf, LEN, LEN - 100), 100);
	cr_expect_eq(eng_io_pwrite(tmp.io, files[0], buf, LEN, 0), -EBADF);
	cr_expect_eq(eng_io_fdatasync(tmp.io, files[0]), -EBADF);
	cr_expect_eq(eng_io_fsync(tmp.io, files[0]), -EBADF);
	cr_expect_eq(eng_io_truncate(tmp.io, files[0], 0), -EBADF);
	cr_expect_eq(eng_io_lock(tmp.io, files[0]), -EBADF);
	cr_assert_eq(eng_ring_create(tmp.io, 16, NULL, &ring), 0);
	write = op_of(ENG_OP_WRITE, 0, &iov);
	sync = op_of(ENG_OP_FDATASYNC, 0, NULL);
	eng_ring_queue(ring, &write);
	eng_ring_queue(ring, &sync);
	turn(ring, 2);
	cr_expect_eq(write.res, -EBADF);
	cr_expect_eq(sync.res, -EBADF);
	eng_ring_destroy(ring);
	cr_expect(reads_right(0));

	cr_expect_eq(eng_io_open(tmp.io, tmp_path(&tmp, "f0"),
				 ENG_OPEN_CACHED | ENG_OPEN_WRITE | ENG_OPEN_TRUNC, &file),
		     -EINVAL);
	cr_expect_eq(eng_io_open(tmp.io, tmp_path(&tmp, "new"), ENG_OPEN_CACHED | ENG_OPEN_CREATE,
				 &file),
		     -EINVAL);
	cr_expect_eq(eng_io_open(tmp.io, tmp.dir, ENG_OPEN_CACHED, &file), -EISDIR);
}

/* IO-9 */
Test(engine_fdcache, a_file_opened_again_is_direct_if_it_was)
{
	int fd;

	open_files(0, 2, ENG_OPEN_DIRECT);
	for (int i = 0; i < 2; i++) {
		fd = eng_fdcache_get(files[0]->cached);
		cr_assert_geq(fd, 0);
		cr_expect_eq(!!(fcntl(fd, F_GETFL) & O_DIRECT), files[0]->dio_align > 1);
		cr_expect_eq(fcntl(fd, F_GETFL) & O_NONBLOCK, 0);
		cr_expect_neq(fcntl(fd, F_GETFD) & FD_CLOEXEC, 0);
		eng_fdcache_put(files[0]->cached);
		eng_io_posix_set_fd_limit(1);
		fd = eng_fdcache_get(files[1]->cached);
		cr_assert_geq(fd, 0);
		eng_fdcache_put(files[1]->cached);
		cr_expect_not(eng_fdcache_is_open(files[0]->cached));
	}
}

/* IO-9 */
Test(engine_fdcache, a_relative_path_is_found_from_another_directory)
{
	char *was = getcwd(NULL, 0);

	open_files(0, 2, 0);
	eng_io_close(tmp.io, files[0]);
	cr_assert_eq(chdir(tmp.dir), 0);
	cr_assert_eq(eng_io_open(tmp.io, "f0", ENG_OPEN_CACHED, &files[0]), 0);
	cr_assert_eq(chdir("/"), 0);
	evict(0, 1);
	cr_expect(reads_right(0));
	cr_assert_eq(chdir(was), 0);
	free(was);
}

/* --- the limit --- */

/* IO-9 */
Test(engine_fdcache, more_files_than_the_limit_are_read_and_no_more_are_open)
{
	unsigned before = descriptors();

	open_files(0, FILES, 0);
	for (unsigned round = 0; round < 3; round++) {
		for (unsigned i = 0; i < FILES; i++)
			cr_expect(reads_right(i * 29 % FILES), "file %u", i * 29 % FILES);
		cr_expect_leq(descriptors(), before + LIMIT);
		cr_expect_eq(eng_fdcache_open_count(), LIMIT);
	}
}

/* IO-9 */
Test(engine_fdcache, what_is_used_often_stays_open)
{
	unsigned closed = 0;

	open_files(0, FILES, 0);
	cr_assert(reads_right(0));
	for (unsigned i = 1; i < FILES; i++) {
		cr_expect(reads_right(i));
		closed += !eng_fdcache_is_open(files[0]->cached);
		cr_expect(reads_right(0));
	}
	cr_expect_eq(closed, 0, "%u times", closed);
}

/* IO-9 */
Test(engine_fdcache, a_queued_read_keeps_its_descriptor_until_it_is_done)
{
	static uint64_t bufs[FILES][LEN / 8];
	struct iovec iov[FILES];
	struct eng_op ops[FILES];
	struct eng_ring *ring;
	uint64_t want[LEN / 8];

	open_files(0, FILES, 0);
	cr_assert_eq(eng_ring_create(tmp.io, FILES, NULL, &ring), 0);
	for (unsigned i = 0; i < FILES / 2; i++) {
		iov[i] = (struct iovec){bufs[i], LEN};
		ops[i] = op_of(ENG_OP_READ, i, &iov[i]);
		eng_ring_queue(ring, &ops[i]);
	}
	cr_expect_eq(eng_fdcache_open_count(), FILES / 2, "over the limit, all in use");
	for (unsigned i = FILES / 2; i < FILES; i++)
		cr_expect(reads_right(i));
	turn(ring, FILES / 2);
	for (unsigned i = 0; i < FILES / 2; i++) {
		fill(want, i);
		cr_expect_eq(ops[i].res, LEN);
		cr_expect_eq(memcmp(bufs[i], want, LEN), 0, "file %u", i);
	}
	eng_io_posix_set_fd_limit(LIMIT);
	cr_expect_eq(eng_fdcache_open_count(), LIMIT, "idle again");
	eng_ring_destroy(ring);
}

/* IO-3, IO-9: 1,500 pieces are more than one request takes. */
Test(engine_fdcache, a_read_in_pieces_keeps_its_descriptor)
{
	static uint8_t buf[1500 * 5];
	struct iovec iov[1500];
	struct eng_op op;
	struct eng_ring *ring;
	uint64_t want[LEN / 8];

	open_files(0, 2, 0);
	evict(0, 1);
	cr_assert_eq(eng_ring_create(tmp.io, 16, NULL, &ring), 0);
	for (unsigned i = 0; i < 1500; i++)
		iov[i] = (struct iovec){buf + (size_t)i * 5, 5};
	op = op_of(ENG_OP_READ, 0, iov);
	op.iovcnt = 1500;
	eng_ring_queue(ring, &op);
	while (!op.res) {
		cr_assert_geq(eng_ring_wait(ring, UINT64_C(10000000000)), 0);
		cr_expect(reads_right(1));
	}
	fill(want, 0);
	cr_expect_eq(op.res, sizeof(buf));
	cr_expect_eq(memcmp(buf, want, sizeof(buf)), 0);
	evict(0, 1);
	eng_ring_destroy(ring);
}

/* --- errors --- */

/* The ring's answer for a file, and for what is linked behind it. */
static void expect_ring(unsigned n, int error)
{
	uint64_t buf[LEN / 8];
	struct iovec iov = {buf, LEN};
	struct eng_op first = op_of(ENG_OP_READ, n, &iov), second = op_of(ENG_OP_READ, 1, &iov);
	struct eng_ring *ring;

	cr_assert_eq(eng_ring_create(tmp.io, 16, NULL, &ring), 0);
	first.link = true;
	eng_ring_queue(ring, &first);
	eng_ring_queue(ring, &second);
	turn(ring, 2);
	cr_expect_eq(first.res, error, "%ld", (long)first.res);
	cr_expect_eq(second.res, error < 0 ? -ECANCELED : (int)LEN);
	eng_ring_destroy(ring);
}

static void expect_error(int error)
{
	uint64_t buf[LEN / 8], data, hole;
	struct eng_stat st;

	evict(0, 1);
	cr_expect_eq(eng_io_pread(tmp.io, files[0], buf, LEN, 0), error);
	cr_expect_eq(eng_io_fstat(tmp.io, files[0], &st), error);
	cr_expect_eq(eng_io_next_data(tmp.io, files[0], 0, &data, &hole), error);
	expect_ring(0, error);
	cr_expect(reads_right(1), "of that file only");
	cr_expect_eq(eng_fdcache_open_count(), 1, "what could not be opened takes no room");
}

/* IO-9 */
Test(engine_fdcache, a_file_in_the_place_of_another_is_told)
{
	const char *path = tmp_path(&tmp, "f0"), *away = tmp_path(&tmp, "away");

	open_files(0, 2, 0);
	evict(0, 1);
	cr_assert_eq(rename(path, away), 0);
	expect_error(-ENOENT);
	put_file("f0", 0);
	expect_error(-ESTALE);
	cr_assert_eq(unlink(path), 0);
	cr_assert_eq(symlink(away, path), 0);
	expect_error(-ESTALE);
	cr_assert_eq(unlink(path), 0);
	cr_assert_eq(mkfifo(path, 0600), 0);
	expect_error(-ESTALE);
	cr_assert_eq(rename(away, path), 0);
	cr_expect(reads_right(0), "the right file is back");
	expect_ring(0, LEN);
}

/* IO-9: ext4 gives the number of a removed file to the next one. */
Test(engine_fdcache, a_new_file_with_the_old_inode_number_is_told)
{
	struct stat was, is;
	int reused = 0;

	open_files(0, 2, 0);
	for (int i = 0; i < 3; i++) {
		evict(0, 1);
		cr_assert_eq(stat(tmp_path(&tmp, "f0"), &was), 0);
		cr_assert_eq(unlink(tmp_path(&tmp, "f0")), 0);
		usleep(20000); /* a birth is told to a tick of the kernel's clock */
		put_file("f0", 0);
		cr_assert_eq(stat(tmp_path(&tmp, "f0"), &is), 0);
		reused += was.st_ino == is.st_ino;
		expect_error(-ESTALE);
	}
	if (!reused)
		cr_log_info("no number was used again here");
}

/* IO-9 */
Test(engine_fdcache, no_descriptor_left_is_an_error_of_that_request)
{
	struct rlimit was, few;

	open_files(0, 2, 0);
	evict(0, 1);
	cr_assert_eq(getrlimit(RLIMIT_NOFILE, &was), 0);
	few = (struct rlimit){3, was.rlim_max};
	cr_assert_eq(setrlimit(RLIMIT_NOFILE, &few), 0);
	cr_expect(!reads_right(0));
	cr_expect_eq(eng_io_pread(tmp.io, files[0], &few, 1, 0), -EMFILE);
	cr_assert_eq(setrlimit(RLIMIT_NOFILE, &was), 0);
	cr_expect(reads_right(0));
	expect_ring(0, LEN);
}

/* IO-9 */
Test(engine_fdcache, idle_files_give_way_to_what_needs_a_descriptor)
{
	struct rlimit was, few;
	struct eng_file *file[4];
	int fds[4096], n = 0;

	eng_io_posix_set_fd_limit(1000);
	open_files(0, 16, 0);
	cr_assert_eq(getrlimit(RLIMIT_NOFILE, &was), 0);
	few = (struct rlimit){256, was.rlim_max};
	cr_assert_eq(setrlimit(RLIMIT_NOFILE, &few), 0);
	while ((fds[n] = open("/dev/null", O_RDONLY)) >= 0)
		n++;
	for (unsigned i = 0; i < 4; i++)
		cr_expect_eq(eng_io_open(tmp.io, tmp_path(&tmp, name_of(i)), 0, &file[i]), 0);
	cr_expect_eq(eng_fdcache_open_count(), 12);
	for (unsigned i = 0; i < 16; i++)
		cr_expect(reads_right(i), "those left take turns");
	for (unsigned i = 0; i < 4; i++)
		eng_io_close(tmp.io, file[i]);
	while (n)
		close(fds[--n]);
	cr_assert_eq(setrlimit(RLIMIT_NOFILE, &was), 0);
}

/* --- changed files --- */

#define CACHED_RW (ENG_OPEN_CACHED | ENG_OPEN_WRITE)

/* File 0, new and written to by @change alone; file 1 is read to drive it out. */
static void make_changed(void)
{
	put_file("f1", 1);
	files[0] = tmp_open(&tmp, tmp.io, "f0", FRESH | ENG_OPEN_CACHED);
	files[1] = tmp_open(&tmp, tmp.io, "f1", ENG_OPEN_CACHED);
}

static bool stays_open(void)
{
	eng_io_posix_set_fd_limit(1);
	for (int i = 0; i < 4; i++)
		cr_assert(reads_right(1));
	return eng_fdcache_is_open(files[0]->cached);
}

static int64_t ring_does(struct eng_op op)
{
	struct eng_ring *ring;

	cr_assert_eq(eng_ring_create(tmp.io, 16, NULL, &ring), 0);
	eng_ring_queue(ring, &op);
	turn(ring, 1);
	eng_ring_destroy(ring);
	return op.res;
}

static int ring_writes(bool dsync)
{
	uint64_t buf[LEN / 8];
	struct iovec iov = {buf, LEN};
	struct eng_op op = op_of(ENG_OP_WRITE, 0, &iov);

	fill(buf, 0);
	op.dsync = dsync;
	return (int)ring_does(op);
}

static int writes(void)
{
	uint64_t buf[LEN / 8];

	fill(buf, 0);
	return eng_io_pwrite(tmp.io, files[0], buf, LEN, 0);
}

static int change(int how)
{
	switch (how) {
	case 0: return writes();
	case 1: return ring_writes(false) == LEN ? 0 : -EIO;
	case 2: return eng_io_truncate(tmp.io, files[0], LEN);
	case 3: return eng_io_allocate(tmp.io, files[0], 0, LEN);
	default: return eng_io_punch(tmp.io, files[0], LEN, 4096);
	}
}

static int sync_of(int how)
{
	switch (how) {
	case 0: return eng_io_fdatasync(tmp.io, files[0]);
	case 1: return eng_io_fsync(tmp.io, files[0]);
	default: return (int)ring_does(op_of(ENG_OP_FDATASYNC, 0, NULL));
	}
}

/* IO-9, T16 */
Test(engine_fdcache, a_changed_file_is_closed_only_after_a_sync_and_changed_again)
{
	make_changed();
	cr_assert_eq(eng_io_allocate(tmp.io, files[0], 0, LEN), 0);
	cr_expect_not(stays_open(), "new, and with space: there is nothing to lose");
	cr_assert_eq(writes(), 0, "opened again for writing");
	for (int i = 0; i < 15; i++) {
		cr_expect_eq(change(i % 5), 0);
		cr_expect(stays_open(), "change %d", i % 5);
		cr_expect_eq(sync_of(i / 5), 0);
		cr_expect_not(stays_open(), "change %d, sync %d", i % 5, i / 5);
	}
	cr_expect_eq(ring_writes(true), LEN);
	cr_expect_not(stays_open(), "durable when complete");
	cr_expect(reads_right(0));
	cr_expect_eq(sync_of(0), 0);
}

/* IO-9, T16, RV-5: what a dead process wrote may fail yet. */
Test(engine_fdcache, a_file_that_was_there_stays_open_until_its_first_sync)
{
	put_file("f0", 0);
	put_file("f1", 1);
	files[0] = tmp_open(&tmp, tmp.io, "f0", CACHED_RW);
	files[1] = tmp_open(&tmp, tmp.io, "f1", ENG_OPEN_CACHED);
	cr_expect_eq(ring_writes(true), LEN);
	cr_expect(stays_open(), "a write that is durable covers itself only");
	cr_expect_eq(sync_of(0), 0);
	cr_expect_not(stays_open());
}

/* IO-9, T16: only what had ended when the sync began. */
Test(engine_fdcache, a_sync_covers_no_change_that_ends_later)
{
	struct eng_cached *file;
	uint64_t sync, later;

	make_changed();
	file = files[0]->cached;
	cr_assert_geq(eng_fdcache_get(file), 0);
	eng_fdcache_change_begin(file);
	sync = eng_fdcache_sync_begin(file);
	eng_fdcache_change_end(file);
	eng_fdcache_sync_end(file, sync);
	eng_fdcache_put(file);
	cr_expect(stays_open(), "it ran when the sync began");

	cr_assert_geq(eng_fdcache_get(file), 0);
	sync = eng_fdcache_sync_begin(file);
	eng_fdcache_change_begin(file);
	eng_fdcache_change_end(file);
	later = eng_fdcache_sync_begin(file);
	eng_fdcache_sync_end(file, sync);
	eng_fdcache_put(file);
	cr_expect(stays_open(), "it began after the sync");

	cr_assert_geq(eng_fdcache_get(file), 0);
	eng_fdcache_sync_end(file, later);
	eng_fdcache_put(file);
	cr_expect_not(stays_open());
}

/* A request of file 0, or a sync where @op is NULL, through the descriptor of @path instead. */
static int64_t refused(const char *path, int mode, struct eng_op *op)
{
	int fd = eng_fdcache_get(files[0]->cached), other = open(path, mode | O_CLOEXEC);
	int was = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	int64_t r;

	cr_assert(fd >= 0 && other >= 0 && was >= 0);
	cr_assert_eq(dup3(other, fd, O_CLOEXEC), fd);
	r = op ? ring_does(*op) : sync_of(0);
	cr_assert_eq(dup3(was, fd, O_CLOEXEC), fd);
	eng_fdcache_put(files[0]->cached);
	close(other);
	close(was);
	return r;
}

/* IO-9, T16 */
Test(engine_fdcache, a_failed_write_or_sync_pins_the_descriptor)
{
	uint64_t buf[LEN / 8] = {0};
	struct iovec iov = {buf, LEN};
	struct eng_op op;

	for (int i = 0; i < 4; i++) {
		make_changed();
		cr_assert_eq(writes(), 0);
		op = op_of(i < 3 ? ENG_OP_WRITE : ENG_OP_FDATASYNC, 0, i < 3 ? &iov : NULL);
		op.dsync = i == 2;
		cr_expect_lt(refused("/dev/null", O_RDONLY, i ? &op : NULL), 0);
		cr_expect_eq(sync_of(0), 0, "a later sync heals nothing");
		cr_expect(stays_open(), "case %d", i);
		for (unsigned j = 0; j < 2; j++) {
			eng_io_close(tmp.io, files[j]);
			files[j] = NULL;
			cr_assert_eq(unlink(tmp_path(&tmp, name_of(j))), 0);
		}
	}
}

/* --- many threads --- */

#define THREADS 4u

static void *read_much(void *arg)
{
	unsigned seed = (unsigned)(uintptr_t)arg;
	uint64_t bufs[4][LEN / 8], want[LEN / 8];
	struct iovec iov[4];
	struct eng_op ops[4];
	unsigned picked[4];
	struct eng_ring *ring;

	cr_assert_eq(eng_ring_create(tmp.io, 16, NULL, &ring), 0);
	for (unsigned round = 0; round < 500; round++) {
		for (unsigned i = 0; i < 4; i++) {
			picked[i] = (unsigned)rand_r(&seed) % FILES;
			iov[i] = (struct iovec){bufs[i], LEN};
			ops[i] = op_of(ENG_OP_READ, picked[i], &iov[i]);
			eng_ring_queue(ring, &ops[i]);
		}
		cr_assert(reads_right((unsigned)rand_r(&seed) % FILES));
		turn(ring, 4);
		for (unsigned i = 0; i < 4; i++) {
			fill(want, picked[i]);
			cr_assert_eq(ops[i].res, LEN, "%ld", (long)ops[i].res);
			cr_assert_eq(memcmp(bufs[i], want, LEN), 0, "file %u", picked[i]);
		}
	}
	eng_ring_destroy(ring);
	return NULL;
}

/* IO-9 */
Test(engine_fdcache, threads_read_more_files_than_may_be_open)
{
	pthread_t threads[THREADS];

	open_files(0, FILES, 0);
	for (unsigned i = 0; i < THREADS; i++)
		cr_assert_eq(pthread_create(&threads[i], NULL, read_much,
					    (void *)(uintptr_t)(i + 1)),
			     0);
	for (unsigned i = 0; i < 200; i++) { /* files come and go meanwhile */
		struct eng_file *file = tmp_open(&tmp, tmp.io, name_of(i % FILES), ENG_OPEN_CACHED);

		eng_io_close(tmp.io, file);
	}
	for (unsigned i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	cr_expect_leq(eng_fdcache_open_count(), LIMIT + THREADS * 5);
	eng_io_posix_set_fd_limit(LIMIT);
	cr_expect_leq(eng_fdcache_open_count(), LIMIT);
}

/* One thread a range of the file's blocks; whatever is closed in between must be found again. */
static void *write_much(void *arg)
{
	unsigned mine = (unsigned)(uintptr_t)arg, seed = mine;
	uint64_t buf[LEN / 8], got[LEN / 8];
	struct iovec iov = {buf, LEN};
	struct eng_ring *ring;

	cr_assert_eq(eng_ring_create(tmp.io, 16, NULL, &ring), 0);
	for (unsigned round = 0; round < 300; round++) {
		unsigned n = (unsigned)rand_r(&seed) % FILES;
		struct eng_op op = op_of(ENG_OP_WRITE, n, &iov);

		fill(buf, mine * 1000 + round);
		op.offset = (uint64_t)mine * LEN;
		op.dsync = round % 3 == 0;
		eng_ring_queue(ring, &op);
		turn(ring, 1);
		cr_assert_eq(op.res, LEN, "%ld", (long)op.res);
		cr_assert_eq(eng_io_pread(tmp.io, files[n], got, LEN, op.offset), LEN);
		cr_assert_eq(memcmp(buf, got, LEN), 0, "file %u", n);
		if (round % 3 == 1)
			cr_assert_eq(eng_io_fdatasync(tmp.io, files[n]), 0);
	}
	eng_ring_destroy(ring);
	return NULL;
}

/* IO-9, T16 */
Test(engine_fdcache, threads_change_more_files_than_may_be_open)
{
	pthread_t threads[THREADS];

	open_files(0, FILES, ENG_OPEN_WRITE);
	for (unsigned i = 0; i < THREADS; i++)
		cr_assert_eq(pthread_create(&threads[i], NULL, write_much,
					    (void *)(uintptr_t)(i + 1)),
			     0);
	for (unsigned i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	for (unsigned i = 0; i < FILES; i++) {
		cr_expect(reads_right(i));
		cr_expect_eq(eng_io_fdatasync(tmp.io, files[i]), 0);
	}
	eng_io_posix_set_fd_limit(LIMIT);
	cr_expect_leq(eng_fdcache_open_count(), LIMIT, "all are clean");
}

/* --- a chain --- */

#define DEPTH     300u
#define WITH_DATA 4u /* every fourth layer holds a block: the building takes its time */
#define BLOCK     4096u

/* IO-9: the kernel's own limit, too low for the chain, lets every layer be read. */
Test(engine_fdcache, a_chain_is_longer_than_the_limit_of_open_files)
{
	struct rlimit was, few;
	struct eng_image *image = NULL;
	struct fmt_error err = {{0}};
	uint8_t block[BLOCK], got[BLOCK];
	char names[2][16];

	eng_io_posix_set_fd_limit(0);
	cr_assert_eq(getrlimit(RLIMIT_NOFILE, &was), 0);
	few = (struct rlimit){64, was.rlim_max};
	cr_assert_eq(setrlimit(RLIMIT_NOFILE, &few), 0);
	for (unsigned i = 0; i < DEPTH; i++) {
		snprintf(names[i % 2], sizeof(names[0]), "l%u.vmo", i);
		cr_assert_eq(eng_image_create(tmp.io, tmp_path(&tmp, names[i % 2]), "vmo",
					      i ? tmp_path(&tmp, names[(i + 1) % 2]) : NULL,
					      i ? 0 : DEPTH * BLOCK, &err),
			     0, "%u: %s", i, err.text);
		if (i % WITH_DATA)
			continue;
		cr_assert_eq(eng_image_open(tmp.io, tmp_path(&tmp, names[i % 2]), NULL, true, &err,
					    &image),
			     0, "%u: %s", i, err.text);
		memset(block, (int)(i % 255 + 1), BLOCK);
		cr_assert_eq(eng_image_write(image, block, BLOCK, i * BLOCK, &err), 0, "%s",
			     err.text);
		cr_assert_eq(eng_image_close(image), 0);
	}
	cr_assert_eq(eng_image_open(tmp.io, tmp_path(&tmp, names[(DEPTH - 1) % 2]), NULL, false,
				    &err, &image),
		     0, "%s", err.text);
	cr_expect_leq(descriptors(), 64);
	for (unsigned i = 0; i < 2 * DEPTH; i++) {
		unsigned n = i * 7 % DEPTH;

		memset(block, n % WITH_DATA ? 0 : (int)(n % 255 + 1), BLOCK);
		cr_assert_eq(eng_image_read(image, got, BLOCK, n * BLOCK, &err), 0, "layer %u: %s",
			     n, err.text);
		cr_expect_eq(memcmp(block, got, BLOCK), 0, "layer %u", n);
	}
	cr_assert_eq(eng_image_close(image), 0);
	cr_assert_eq(setrlimit(RLIMIT_NOFILE, &was), 0);
}
