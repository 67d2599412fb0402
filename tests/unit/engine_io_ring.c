/* SPDX-License-Identifier: MIT */
/* engine_io_ring.c - the ring: order, links, short transfers, wakes, and the held lock. */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <liburing.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/wait.h>
#include <unistd.h>

#include "engine/io/io_posix.h"
#include "tests/unit/engine_io_tmp.h"

#define FOR_EVER UINT64_MAX
#define SECOND   1000000000u

static struct tmp tmp;
static struct eng_ring *ring;
static unsigned done;

static void setup(void)
{
	tmp_init(&tmp, "/tmp");
	cr_assert_eq(eng_ring_create(tmp.io, 16, NULL, &ring), 0);
	done = 0;
}

static void teardown(void)
{
	eng_ring_destroy(ring);
	tmp_fini(&tmp);
}

TestSuite(engine_io_ring, .init = setup, .fini = teardown, .timeout = 60);

static void count(struct eng_op *op)
{
	op->priv[5] = ++done;
}

static struct eng_op op_make(enum eng_op_kind kind, struct eng_file *file, struct iovec *iov,
			     unsigned iovcnt, uint64_t offset)
{
	return (struct eng_op){
		.kind = (uint8_t)kind,
		.file = file,
		.iov = iov,
		.iovcnt = iovcnt,
		.offset = offset,
		.done = count,
	};
}

static void wait_for(unsigned want)
{
	while (done < want)
		cr_assert_geq(eng_ring_wait(ring, 10ull * SECOND), 0);
	cr_assert_eq(done, want);
}

Test(engine_io_ring, writes_and_reads_vectors)
{
	struct eng_file *file = tmp_open(&tmp, tmp.io, "a", FRESH);
	char a[] = "one", b[] = "three", back[9] = "";
	struct iovec iov[] = {{a, 3}, {NULL, 0}, {b, 5}}, all = {back, 9};
	struct eng_op write = op_make(ENG_OP_WRITE, file, iov, 3, 100), read;

	write.dsync = true;
	eng_ring_queue(ring, &write);
	cr_assert_eq(eng_ring_wait(ring, FOR_EVER), 1);
	cr_expect_eq(write.res, 8);
	read = op_make(ENG_OP_READ, file, &all, 1, 100);
	eng_ring_queue(ring, &read);
	wait_for(2);
	cr_expect_eq(read.res, 8, "short at the end of the file");
	cr_expect_str_eq(back, "onethree");
	iov[0].iov_base = back;
	iov[2].iov_base = back + 3;
	memset(back, 0, sizeof(back));
	read = op_make(ENG_OP_READ, file, iov, 3, 100);
	eng_ring_queue(ring, &read);
	wait_for(3);
	cr_expect_eq(read.res, 8);
	cr_expect_str_eq(back, "onethree");
	read = op_make(ENG_OP_READ, file, &all, 1, 1000);
	eng_ring_queue(ring, &read);
	wait_for(4);
	cr_expect_eq(read.res, 0);
	read = op_make(ENG_OP_READ, file, NULL, 0, 0);
	eng_ring_queue(ring, &read);
	wait_for(5);
	cr_expect_eq(read.res, 0);
	eng_io_close(tmp.io, file);
}

Test(engine_io_ring, errors_reach_the_op)
{
	struct eng_file *file = tmp_open(&tmp, tmp.io, "a", FRESH), *reader;
	struct iovec iov = {"x", 1};
	struct eng_op write;

	reader = tmp_open(&tmp, tmp.io, "a", 0);
	write = op_make(ENG_OP_WRITE, reader, &iov, 1, 0);
	eng_ring_queue(ring, &write);
	wait_for(1);
	cr_expect_eq(write.res, -EBADF);
	eng_io_close(tmp.io, reader);
	eng_io_close(tmp.io, file);
}

Test(engine_io_ring, direct_read_of_an_odd_end_is_short)
{
	struct eng_file *file = tmp_open(&tmp, tmp.io, "a", FRESH | ENG_OPEN_DIRECT);
	struct iovec iov = {aligned_alloc(4096, 8192), 8192};
	struct eng_op op = op_make(ENG_OP_WRITE, file, &iov, 1, 0);

	memset(iov.iov_base, 'd', 8192);
	eng_ring_queue(ring, &op);
	wait_for(1);
	cr_assert_eq(op.res, 8192);
	cr_assert_eq(eng_io_truncate(tmp.io, file, 4196), 0);
	op = op_make(ENG_OP_READ, file, &iov, 1, 0);
	eng_ring_queue(ring, &op);
	wait_for(2);
	cr_expect_eq(op.res, 4196);
	free(iov.iov_base);
	eng_io_close(tmp.io, file);
}

Test(engine_io_ring, more_ops_than_entries_all_complete_once)
{
	struct eng_file *file = tmp_open(&tmp, tmp.io, "a", FRESH);
	struct eng_op ops[500];
	struct iovec iov[500];
	char bytes[500];
	unsigned i;

	for (i = 0; i < 500; i++) {
		bytes[i] = (char)i;
		iov[i] = (struct iovec){bytes + i, 1};
		ops[i] = op_make(ENG_OP_WRITE, file, &iov[i], 1, i);
		eng_ring_queue(ring, &ops[i]);
	}
	wait_for(500);
	for (i = 0; i < 500; i++)
		cr_expect_eq(ops[i].res, 1);
	memset(bytes, 0, sizeof(bytes));
	cr_expect_eq(eng_io_pread(tmp.io, file, bytes, 500, 0), 500);
	for (i = 0; i < 500; i++)
		cr_expect_eq(bytes[i], (char)i);
	eng_io_close(tmp.io, file);
}

Test(engine_io_ring, linked_ops_run_in_order_however_full_the_queue)
{
	struct eng_file *file = tmp_open(&tmp, tmp.io, "a", FRESH);
	struct iovec one = {"1", 1}, two = {"2", 1}, three = {"3", 1};
	struct eng_op ops[200 * 3];
	char back[200];
	unsigned i;

	/* Three writes to the same byte; 16 entries are no multiple of 3. */
	for (i = 0; i < 200; i++) {
		ops[3 * i] = op_make(ENG_OP_WRITE, file, &one, 1, i);
		ops[3 * i + 1] = op_make(ENG_OP_WRITE, file, &two, 1, i);
		ops[3 * i + 2] = op_make(ENG_OP_WRITE, file, &three, 1, i);
		ops[3 * i].link = ops[3 * i + 1].link = true;
		eng_ring_queue(ring, &ops[3 * i]);
		eng_ring_queue(ring, &ops[3 * i + 1]);
		eng_ring_queue(ring, &ops[3 * i + 2]);
	}
	wait_for(600);
	cr_assert_eq(eng_io_pread(tmp.io, file, back, 200, 0), 200);
	for (i = 0; i < 200; i++) {
		cr_expect_eq(back[i], '3');
		cr_expect_lt(ops[3 * i].priv[5], ops[3 * i + 1].priv[5]);
		cr_expect_lt(ops[3 * i + 1].priv[5], ops[3 * i + 2].priv[5]);
	}
	eng_io_close(tmp.io, file);
}

Test(engine_io_ring, failure_cancels_what_is_linked_behind)
{
	struct eng_file *file = tmp_open(&tmp, tmp.io, "a", FRESH), *reader;
	struct iovec iov = {"x", 1};
	struct eng_op fail, flush, after;

	reader = tmp_open(&tmp, tmp.io, "a", 0);
	fail = op_make(ENG_OP_WRITE, reader, &iov, 1, 0);
	flush = op_make(ENG_OP_FDATASYNC, file, NULL, 0, 0);
	after = op_make(ENG_OP_WRITE, file, &iov, 1, 0);
	fail.link = true;
	eng_ring_queue(ring, &fail);
	eng_ring_queue(ring, &flush);
	eng_ring_queue(ring, &after);
	wait_for(3);
	cr_expect_eq(fail.res, -EBADF);
	cr_expect_eq(flush.res, -ECANCELED);
	cr_expect_eq(after.res, 1, "the chain had ended");
	eng_io_close(tmp.io, reader);
	eng_io_close(tmp.io, file);
}

static struct eng_file pipe_end(int fd)
{
	return (struct eng_file){.fd = fd, .dio_align = 1, .mem_align = 1};
}

static void *slow_writer(void *arg)
{
	const char *text = "abcdefghij";
	int i;

	for (i = 0; i < 10; i++) {
		usleep(3000);
		if (write(*(int *)arg, text + i, 1) != 1)
			return NULL;
	}
	return arg;
}

/* A pipe is where transfers are short for sure. */
Test(engine_io_ring, short_transfers_go_on_and_hold_back_what_is_linked)
{
	struct eng_file *file = tmp_open(&tmp, tmp.io, "a", FRESH), in;
	struct eng_op read, write, flush;
	char a[3] = "", b[7] = "", back[10];
	struct iovec iov[] = {{a, 3}, {b, 7}};
	pthread_t thread;
	void *ok;
	int fds[2];

	cr_assert_eq(pipe(fds), 0);
	in = pipe_end(fds[0]);
	/* The write copies what the read got: it must not start before the read is whole. */
	read = op_make(ENG_OP_READ, &in, iov, 2, 0);
	write = op_make(ENG_OP_WRITE, file, iov, 2, 0);
	flush = op_make(ENG_OP_FDATASYNC, file, NULL, 0, 0);
	read.link = write.link = true;
	eng_ring_queue(ring, &read);
	eng_ring_queue(ring, &write);
	eng_ring_queue(ring, &flush);
	cr_assert_eq(pthread_create(&thread, NULL, slow_writer, &fds[1]), 0);
	wait_for(3);
	pthread_join(thread, &ok);
	cr_assert_not_null(ok);
	cr_expect_eq(read.res, 10);
	cr_expect_eq(write.res, 10);
	cr_expect_eq(flush.res, 0);
	cr_expect(read.priv[5] == 1 && write.priv[5] == 2 && flush.priv[5] == 3);
	cr_assert_eq(eng_io_pread(tmp.io, file, back, 10, 0), 10);
	cr_expect_eq(memcmp(back, "abcdefghij", 10), 0);
	close(fds[0]);
	close(fds[1]);
	eng_io_close(tmp.io, file);
}

static void *slow_reader(void *arg)
{
	static unsigned char got[300000];
	size_t n = 0, i;
	ssize_t r;

	while (n < sizeof(got)) {
		r = read(*(int *)arg, got + n, 10007);
		if (r <= 0)
			return NULL;
		n += (size_t)r;
	}
	for (i = 0; i < n; i++)
		if (got[i] != (unsigned char)(i * 7 >> 3))
			return NULL;
	return arg;
}

Test(engine_io_ring, short_writes_of_vectors_lose_no_byte)
{
	static unsigned char bytes[300000];
	struct iovec iov[] = {{bytes, 100}, {bytes + 100, 99900}, {bytes + 100000, 200000}};
	struct eng_file out;
	struct eng_op op;
	pthread_t thread;
	void *ok = NULL;
	int fds[2];
	size_t i;

	for (i = 0; i < sizeof(bytes); i++)
		bytes[i] = (unsigned char)(i * 7 >> 3);
	cr_assert_eq(pipe(fds), 0);
	out = pipe_end(fds[1]);
	op = op_make(ENG_OP_WRITE, &out, iov, 3, 0);
	cr_assert_eq(pthread_create(&thread, NULL, slow_reader, &fds[0]), 0);
	eng_ring_queue(ring, &op);
	wait_for(1);
	pthread_join(thread, &ok);
	cr_expect_not_null(ok);
	cr_expect_eq(op.res, 300000);
	close(fds[0]);
	close(fds[1]);
}

Test(engine_io_ring, vectors_longer_than_a_request_are_sent_in_pieces)
{
	struct eng_file *file = tmp_open(&tmp, tmp.io, "a", FRESH);
	static char bytes[3000], back[3000];
	static struct iovec iov[3000];
	struct eng_op op = op_make(ENG_OP_WRITE, file, iov, 3000, 1);
	unsigned i;

	for (i = 0; i < 3000; i++) {
		bytes[i] = (char)(i % 251);
		iov[i] = (struct iovec){bytes + i, 1};
	}
	eng_ring_queue(ring, &op);
	wait_for(1);
	cr_expect_eq(op.res, 3000);
	cr_expect_eq(eng_io_pread(tmp.io, file, back, 3000, 1), 3000);
	cr_expect_eq(memcmp(bytes, back, 3000), 0);
	eng_io_close(tmp.io, file);
}

static unsigned again;

static void queue_again(struct eng_op *op)
{
	done++;
	if (again > 0) {
		again--;
		eng_ring_queue(ring, op);
	}
}

Test(engine_io_ring, callbacks_may_queue)
{
	struct eng_file *file = tmp_open(&tmp, tmp.io, "a", FRESH);
	struct iovec iov = {"x", 1};
	struct eng_op ops[40];
	unsigned i;

	again = 2000;
	for (i = 0; i < 40; i++) {
		ops[i] = op_make(ENG_OP_WRITE, file, &iov, 1, i);
		ops[i].done = queue_again;
		eng_ring_queue(ring, &ops[i]);
	}
	wait_for(2040);
	eng_io_close(tmp.io, file);
}

Test(engine_io_ring, wait_keeps_its_time)
{
	uint64_t start = eng_io_now_ns(tmp.io), took;

	cr_expect_eq(eng_ring_wait(ring, 0), 0);
	cr_expect_eq(eng_ring_wait(ring, 20000000), 0);
	took = eng_io_now_ns(tmp.io) - start;
	cr_expect_geq(took, 20000000u);
	cr_expect_lt(took, 5ull * SECOND);
}

static int readable(int timeout_ms)
{
	struct pollfd pfd = {.fd = eng_ring_fd(ring), .events = POLLIN};

	return poll(&pfd, 1, timeout_ms);
}

Test(engine_io_ring, fd_is_readable_when_there_is_something_to_do)
{
	struct eng_file *file = tmp_open(&tmp, tmp.io, "a", FRESH);
	struct iovec iov = {"x", 1};
	struct eng_op op = op_make(ENG_OP_WRITE, file, &iov, 1, 0);
	int i;

	cr_expect_eq(readable(0), 0);
	for (i = 0; i < 3; i++) {
		eng_ring_wake(ring);
		eng_ring_wake(ring);
		cr_expect_eq(readable(5000), 1, "wake %d", i);
		cr_expect_eq(eng_ring_wait(ring, 0), 1);
		cr_expect_eq(readable(0), 0);
	}
	eng_ring_queue(ring, &op);
	cr_expect_eq(eng_ring_submit(ring), 0);
	cr_expect_eq(readable(5000), 1);
	cr_expect_geq(eng_ring_wait(ring, 0), 1);
	cr_expect_eq(done, 1u);
	eng_io_close(tmp.io, file);
}

static atomic_uint posted;

static void *poster(void *arg)
{
	unsigned i;

	for (i = 0; i < 20000; i++) {
		atomic_fetch_add_explicit(&posted, 1, memory_order_relaxed);
		eng_ring_wake(arg);
	}
	return NULL;
}

Test(engine_io_ring, no_wake_is_lost)
{
	pthread_t threads[2];
	unsigned seen = 0;
	int i;

	for (i = 0; i < 2; i++)
		cr_assert_eq(pthread_create(&threads[i], NULL, poster, ring), 0);
	/* A lost one leaves us waiting with something posted, and is found by the time-out. */
	while (seen < 40000) {
		cr_assert_gt(eng_ring_wait(ring, 10ull * SECOND), 0, "after %u", seen);
		seen = atomic_load_explicit(&posted, memory_order_relaxed);
	}
	for (i = 0; i < 2; i++)
		pthread_join(threads[i], NULL);
}

static uint64_t foreign_seen;

static void foreign(void *arg, uint64_t user_data, int32_t res, uint32_t flags)
{
	(void)flags;
	cr_expect_eq(arg, &foreign_seen);
	cr_expect_eq(res, 0);
	foreign_seen = user_data;
}

Test(engine_io_ring, completions_of_the_embedder_reach_its_handler)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(eng_ring_native(ring));

	eng_ring_on_foreign(ring, foreign, &foreign_seen);
	cr_assert_not_null(sqe);
	io_uring_prep_nop(sqe);
	sqe->user_data = 0xabcd1;
	cr_expect_eq(eng_ring_wait(ring, FOR_EVER), 1);
	cr_expect_eq(foreign_seen, 0xabcd1u);
	cr_expect_eq(done, 0u);
}

/* T19 */
Test(engine_io_ring, held_lock_lasts_as_long_as_the_ring)
{
	struct eng_file *lock = tmp_open(&tmp, tmp.io, "lock", FRESH), *other;
	struct eng_ring *holder = NULL;

	cr_assert_eq(eng_io_lock(tmp.io, lock), 0);
	cr_assert_eq(eng_ring_create(tmp.io, 16, lock, &holder), 0);
	eng_io_close(tmp.io, lock);
	other = tmp_open(&tmp, tmp.io, "lock", ENG_OPEN_WRITE);
	cr_expect_eq(eng_io_lock(tmp.io, other), -EWOULDBLOCK);
	eng_ring_destroy(holder);
	cr_expect_eq(eng_io_lock(tmp.io, other), 0, "free at once, not when the kernel is done");
	eng_io_close(tmp.io, other);
}

/* T19 */
Test(engine_io_ring, held_lock_goes_with_a_killed_process)
{
	struct eng_file *lock = tmp_open(&tmp, tmp.io, "lock", FRESH);
	struct eng_ring *holder = NULL;
	int fds[2], status, i, r = -1;
	char c = 0;
	pid_t pid;

	cr_assert_eq(pipe(fds), 0);
	pid = fork();
	if (pid == 0) {
		struct eng_file *mine = tmp_open(&tmp, tmp.io, "lock", ENG_OPEN_WRITE);

		r = eng_io_lock(tmp.io, mine);
		r = r ? r : eng_ring_create(tmp.io, 16, mine, &holder);
		eng_io_close(tmp.io, mine);
		c = r == 0;
		if (write(fds[1], &c, 1) == 1)
			pause();
		_exit(1);
	}
	cr_assert_gt(pid, 0);
	cr_assert_eq(read(fds[0], &c, 1), 1);
	cr_assert_eq(c, 1);
	cr_expect_eq(eng_io_lock(tmp.io, lock), -EWOULDBLOCK);
	kill(pid, SIGKILL);
	waitpid(pid, &status, 0);
	for (i = 0; i < 500 && r != 0; i++) {
		r = eng_io_lock(tmp.io, lock);
		usleep(10000);
	}
	cr_expect_eq(r, 0);
	close(fds[0]);
	close(fds[1]);
	eng_io_close(tmp.io, lock);
}
