/* SPDX-License-Identifier: MIT */
/* engine_io_fault.c - which operation a rule strikes, how often, and what it leaves. */
#include <criterion/criterion.h>
#include <poll.h>
#include <unistd.h>

#include "engine/io/io_fault.h"
#include "tests/unit/engine_io_tmp.h"

#define FOR_EVER UINT64_MAX

static struct tmp tmp;
static struct eng_fault *fault;
static struct eng_io *io;

static void setup(void)
{
	tmp_init(&tmp, "/dev/shm");
	cr_assert_eq(eng_io_posix_set_shm_dir(tmp.io, tmp.dir), 0);
	cr_assert_eq(eng_fault_create(tmp.io, &fault), 0);
	io = eng_fault_io(fault);
}

static void teardown(void)
{
	eng_fault_destroy(fault);
	tmp_fini(&tmp);
}

TestSuite(engine_io_fault, .init = setup, .fini = teardown, .timeout = 60);

static int add(struct eng_fault_rule rule)
{
	int r = eng_fault_add(fault, &rule);

	cr_assert_geq(r, 0);
	return r;
}

Test(engine_io_fault, once_skips_and_strikes_once)
{
	struct eng_file *file = tmp_open(&tmp, io, "a", FRESH);
	int i, rule, r;

	rule = add((struct eng_fault_rule){.ops = ENG_FAULT_PWRITE, .skip = 2, .error = -EIO});
	for (i = 0; i < 5; i++) {
		r = eng_io_pwrite(io, file, "x", 1, (uint64_t)i);
		cr_expect_eq(r, i == 2 ? -EIO : 0, "%d", i);
	}
	cr_expect_eq(eng_fault_matched(fault, rule), 5u);
	cr_expect_eq(eng_fault_struck(fault, rule), 1u);
	cr_expect_eq(eng_fault_count(fault, ENG_FAULT_PWRITE), 5u);
	eng_io_close(io, file);
}

Test(engine_io_fault, sticky_strikes_until_cleared)
{
	struct eng_file *file = tmp_open(&tmp, io, "a", FRESH);
	int i, rule;

	rule = add((struct eng_fault_rule){
		.ops = ENG_FAULT_ANY_FDATASYNC, .skip = 1, .sticky = true, .error = -EIO});
	cr_expect_eq(eng_io_fdatasync(io, file), 0);
	for (i = 0; i < 3; i++)
		cr_expect_eq(eng_io_fdatasync(io, file), -EIO);
	eng_fault_clear(fault);
	cr_expect_eq(eng_io_fdatasync(io, file), 0);
	cr_expect_eq(eng_fault_struck(fault, rule), 3u);
	eng_io_close(io, file);
}

Test(engine_io_fault, path_chooses_the_file)
{
	struct eng_file *a = tmp_open(&tmp, io, "a.vmo", FRESH);
	struct eng_file *b = tmp_open(&tmp, io, "b.raw", FRESH);

	add((struct eng_fault_rule){
		.ops = ENG_FAULT_ANY_WRITE, .path = ".vmo", .sticky = true, .error = -ENOSPC});
	cr_expect_eq(eng_io_pwrite(io, a, "x", 1, 0), -ENOSPC);
	cr_expect_eq(eng_io_pwrite(io, b, "x", 1, 0), 0);
	eng_io_close(io, a);
	eng_io_close(io, b);
}

Test(engine_io_fault, short_write_moves_its_bytes_and_fails)
{
	struct eng_file *file = tmp_open(&tmp, io, "a", FRESH);
	char buf[8];

	add((struct eng_fault_rule){
		.ops = ENG_FAULT_PWRITE, .error = -ENOSPC, .shorten = true, .short_len = 3});
	cr_expect_eq(eng_io_pwrite(io, file, "abcdef", 6, 0), -ENOSPC);
	cr_expect_eq(tmp_read(tmp_path(&tmp, "a"), buf, 8), 3);
	cr_expect_eq(eng_io_pwrite(io, file, "abcdef", 6, 0), 0);
	add((struct eng_fault_rule){.ops = ENG_FAULT_PREAD, .shorten = true, .short_len = 2});
	cr_expect_eq(eng_io_pread(io, file, buf, 6, 0), 2);
	cr_expect_eq(eng_io_pread(io, file, buf, 6, 0), 6);
	eng_io_close(io, file);
}

Test(engine_io_fault, rule_that_would_lie_is_refused)
{
	struct eng_fault_rule rule = {.ops = ENG_FAULT_RING_WRITE, .shorten = true};

	cr_expect_eq(eng_fault_add(fault, &rule), -EINVAL);
	rule = (struct eng_fault_rule){.ops = ENG_FAULT_OPEN, .error = EIO};
	cr_expect_eq(eng_fault_add(fault, &rule), -EINVAL);
}

static void nothing(void *arg)
{
	(void)arg;
}

static int no_name(void *arg, const char *name)
{
	(void)arg;
	(void)name;
	return 0;
}

/* Does one operation of each kind but those on a ring's files; what it returns. */
static int do_one(enum eng_fault_op op, struct eng_file *file)
{
	const char *path = tmp_path(&tmp, "x");
	struct eng_thread *thread = NULL;
	struct eng_file *other = NULL;
	struct eng_ring *ring = NULL;
	uint64_t data, hole;
	struct eng_stat st;
	void *map = NULL;
	size_t len = 0;
	char c = 'c';
	int r;

	switch (op) {
	case ENG_FAULT_OPEN: r = eng_io_open(io, tmp_path(&tmp, "a"), 0, &other); break;
	case ENG_FAULT_CREATE: r = eng_io_open(io, path, FRESH, &other); break;
	case ENG_FAULT_PREAD: r = (int)eng_io_pread(io, file, &c, 0, 0); break;
	case ENG_FAULT_PWRITE: r = eng_io_pwrite(io, file, &c, 1, 0); break;
	case ENG_FAULT_FDATASYNC: r = eng_io_fdatasync(io, file); break;
	case ENG_FAULT_TRUNCATE: r = eng_io_truncate(io, file, 1); break;
	case ENG_FAULT_ALLOCATE: r = eng_io_allocate(io, file, 0, 1); break;
	case ENG_FAULT_PUNCH: r = eng_io_punch(io, file, 0, 1); break;
	case ENG_FAULT_STAT: r = eng_io_fstat(io, file, &st); break;
	case ENG_FAULT_NEXT_DATA: r = eng_io_next_data(io, file, 0, &data, &hole); break;
	case ENG_FAULT_LOCK: r = eng_io_lock(io, file); break;
	case ENG_FAULT_MKDIR: r = eng_io_mkdir(io, tmp_path(&tmp, "d")); break;
	case ENG_FAULT_RENAME: r = eng_io_rename(io, path, tmp_path(&tmp, "y")); break;
	case ENG_FAULT_UNLINK: r = eng_io_unlink(io, tmp_path(&tmp, "y")); break;
	case ENG_FAULT_SYNC_DIR: r = eng_io_sync_dir(io, tmp.dir); break;
	case ENG_FAULT_LIST: r = eng_io_list(io, tmp.dir, no_name, NULL); break;
	case ENG_FAULT_SHM_CREATE: r = eng_io_shm_create(io, "j", 4096, &map); break;
	case ENG_FAULT_SHM_OPEN: r = eng_io_shm_open(io, "j", &len, &map); break;
	case ENG_FAULT_SHM_UNLINK: r = eng_io_shm_unlink(io, "j"); break;
	case ENG_FAULT_SPAWN: r = eng_io_spawn(io, "t", nothing, NULL, &thread); break;
	default: r = eng_ring_create(io, 16, NULL, &ring); break;
	}
	eng_io_close(io, other);
	eng_io_shm_unmap(io, map, 4096);
	if (thread)
		eng_io_join(io, thread);
	eng_ring_destroy(ring);
	return r;
}

Test(engine_io_fault, every_operation_can_fail_and_leaves_nothing_done)
{
	struct eng_file *file = tmp_open(&tmp, io, "a", FRESH);
	enum eng_fault_op op;
	uint64_t count;
	int rule;

	cr_assert_eq(eng_io_pwrite(io, file, "data", 4, 0), 0);
	for (op = ENG_FAULT_OPEN; op <= ENG_FAULT_RING_CREATE; op <<= 1) {
		rule = add((struct eng_fault_rule){.ops = op, .error = -EDQUOT});
		count = eng_fault_count(fault, op);
		cr_expect_eq(do_one(op, file), -EDQUOT, "operation %#x", op);
		cr_expect_eq(eng_fault_struck(fault, rule), 1u, "operation %#x", op);
		/* It succeeds now: the failure had neither made nor removed anything. */
		cr_expect_eq(do_one(op, file), 0, "operation %#x", op);
		cr_expect_eq(eng_fault_count(fault, op), count + 2, "operation %#x", op);
	}
	eng_io_close(io, file);
}

static void note_done(struct eng_op *op)
{
	op->priv[5] = 1;
}

static struct eng_op op_make(enum eng_op_kind kind, struct eng_file *file, struct iovec *iov,
			     unsigned iovcnt)
{
	return (struct eng_op){.kind = (uint8_t)kind,
			       .file = file,
			       .iov = iov,
			       .iovcnt = iovcnt,
			       .done = note_done};
}

static void run(struct eng_ring *ring, struct eng_op *ops, unsigned count)
{
	unsigned i;

	for (i = 0; i < count; i++) {
		ops[i].priv[5] = 0;
		eng_ring_queue(ring, &ops[i]);
	}
	for (i = 0; i < count; i++)
		while (!ops[i].priv[5])
			cr_assert_geq(eng_ring_wait(ring, FOR_EVER), 0);
}

Test(engine_io_fault, ring_operations_fail_and_cancel_what_is_linked)
{
	struct eng_file *file = tmp_open(&tmp, io, "a", FRESH);
	struct eng_ring *ring = NULL;
	char text[] = "abcdef", buf[8];
	struct iovec iov[] = {{text, 2}, {text + 2, 4}};
	struct eng_op ops[3];

	cr_assert_eq(eng_ring_create(io, 16, NULL, &ring), 0);
	ops[0] = op_make(ENG_OP_WRITE, file, iov, 2);
	ops[1] = op_make(ENG_OP_FDATASYNC, file, NULL, 0);
	ops[2] = op_make(ENG_OP_READ, file, iov, 2);
	ops[0].link = ops[1].link = true;
	run(ring, ops, 3);
	cr_expect(ops[0].res == 6 && ops[1].res == 0 && ops[2].res == 6);

	add((struct eng_fault_rule){.ops = ENG_FAULT_RING_FDATASYNC, .error = -EIO});
	run(ring, ops, 3);
	cr_expect(ops[0].res == 6 && ops[1].res == -EIO && ops[2].res == -ECANCELED);

	add((struct eng_fault_rule){.ops = ENG_FAULT_RING_WRITE, .path = "a", .error = -ENOSPC});
	run(ring, ops, 3);
	cr_expect_eq(ops[0].res, -ENOSPC);
	cr_expect(ops[1].res == -ECANCELED && ops[2].res == -ECANCELED);

	ops[0].link = ops[1].link = false;
	add((struct eng_fault_rule){.ops = ENG_FAULT_RING_READ, .error = -EIO});
	run(ring, ops, 3);
	cr_expect(ops[0].res == 6 && ops[1].res == 0 && ops[2].res == -EIO);

	cr_assert_eq(eng_io_truncate(io, file, 0), 0);
	add((struct eng_fault_rule){
		.ops = ENG_FAULT_RING_WRITE, .error = -ENOSPC, .shorten = true, .short_len = 3});
	ops[0].link = true;
	run(ring, ops, 2);
	cr_expect(ops[0].res == -ENOSPC && ops[1].res == -ECANCELED);
	cr_expect_eq(tmp_read(tmp_path(&tmp, "a"), buf, 8), 3);
	add((struct eng_fault_rule){.ops = ENG_FAULT_RING_READ, .shorten = true, .short_len = 1});
	run(ring, &ops[2], 1);
	cr_expect_eq(ops[2].res, 1);
	eng_ring_destroy(ring);
	eng_io_close(io, file);
}

Test(engine_io_fault, failed_ring_operation_makes_the_fd_readable)
{
	struct eng_file *file = tmp_open(&tmp, io, "a", FRESH);
	struct eng_op op = op_make(ENG_OP_FDATASYNC, file, NULL, 0);
	struct eng_ring *ring = NULL;
	struct pollfd pfd;

	cr_assert_eq(eng_ring_create(io, 16, NULL, &ring), 0);
	add((struct eng_fault_rule){.ops = ENG_FAULT_RING_FDATASYNC, .error = -EIO});
	eng_ring_queue(ring, &op);
	cr_expect_eq(eng_ring_submit(ring), 0);
	pfd = (struct pollfd){.fd = eng_ring_fd(ring), .events = POLLIN};
	cr_expect_eq(poll(&pfd, 1, 5000), 1);
	cr_expect_geq(eng_ring_wait(ring, 0), 1);
	cr_expect_eq(op.res, -EIO);
	eng_ring_destroy(ring);
	eng_io_close(io, file);
}

Test(engine_io_fault, owner_may_poll_between_linked_operations)
{
	struct eng_file *file = tmp_open(&tmp, io, "a", FRESH);
	struct iovec iov = {"x", 1};
	struct eng_op ops[] = {op_make(ENG_OP_WRITE, file, &iov, 1),
			       op_make(ENG_OP_FDATASYNC, file, NULL, 0)};
	struct eng_ring *ring = NULL;
	struct pollfd pfd;

	cr_assert_eq(eng_ring_create(io, 16, NULL, &ring), 0);
	pfd = (struct pollfd){.fd = eng_ring_fd(ring), .events = POLLIN};
	ops[0].link = true;
	eng_ring_queue(ring, &ops[0]);
	eng_ring_queue(ring, &ops[1]);
	cr_expect_eq(eng_ring_submit(ring), 0);
	while (!ops[1].priv[5]) {
		cr_assert_eq(poll(&pfd, 1, 5000), 1);
		cr_assert_geq(eng_ring_wait(ring, 0), 0);
	}
	eng_ring_destroy(ring);
	eng_io_close(io, file);
}

static void count_strike(void *arg)
{
	++*(unsigned *)arg;
}

Test(engine_io_fault, watching_rule_calls_and_changes_nothing)
{
	struct eng_file *file = tmp_open(&tmp, io, "a", FRESH);
	unsigned strikes = 0;

	add((struct eng_fault_rule){
		.ops = ENG_FAULT_PWRITE, .sticky = true, .strike = count_strike, .arg = &strikes});
	cr_expect_eq(eng_io_pwrite(io, file, "x", 1, 0), 0);
	cr_expect_eq(eng_io_pwrite(io, file, "x", 1, 0), 0);
	cr_expect_eq(strikes, 2u);
	eng_io_close(io, file);
}
