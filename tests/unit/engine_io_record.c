/* SPDX-License-Identifier: MIT */
/* engine_io_record.c - what the recorder says a power loss leaves: always, sometimes and never. */
#include <criterion/criterion.h>
#include <pthread.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/io/io_fault.h"
#include "engine/io/io_record.h"
#include "tests/unit/engine_io_tmp.h"

#define SEEDS    200
#define FOR_EVER UINT64_MAX

static struct tmp tmp; /* has store/, which is recorded, and crash/ */
static struct eng_fault *fault;
static struct eng_record *rec;
static struct eng_io *io;

static void start(void)
{
	cr_assert_eq(eng_record_create(eng_fault_io(fault), tmp_path(&tmp, "store"), &rec), 0);
	io = eng_record_io(rec);
}

static void setup(void)
{
	tmp_init(&tmp, "/dev/shm");
	cr_assert_eq(eng_io_mkdir(tmp.io, tmp_path(&tmp, "store")), 0);
	cr_assert_eq(eng_fault_create(tmp.io, &fault), 0);
	start();
}

static void teardown(void)
{
	eng_record_destroy(rec);
	eng_fault_destroy(fault);
	tmp_fini(&tmp);
}

TestSuite(engine_io_record, .init = setup, .fini = teardown, .timeout = 120);

static struct eng_file *create(const char *name)
{
	return tmp_open(&tmp, io, name, FRESH);
}

/* A file that is there for certain, with @text in it. */
static struct eng_file *create_durable(const char *name, const char *text)
{
	struct eng_file *file = create(name);

	cr_assert_eq(eng_io_pwrite(io, file, text, strlen(text), 0), 0);
	cr_assert_eq(eng_io_fdatasync(io, file), 0);
	cr_assert_eq(eng_io_sync_dir(io, tmp_path(&tmp, "store")), 0);
	return file;
}

static void put(struct eng_file *file, const char *text, uint64_t offset)
{
	cr_assert_eq(eng_io_pwrite(io, file, text, strlen(text), offset), 0);
}

static void crash(uint64_t index, uint64_t seed)
{
	if (access(tmp_path(&tmp, "crash"), F_OK) == 0)
		cr_assert_eq(eng_record_remove_tree(tmp_path(&tmp, "crash")), 0);
	cr_assert_eq(eng_record_crash(rec, index, seed, tmp_path(&tmp, "crash")), 0);
}

static uint64_t now(void)
{
	return eng_record_index(rec);
}

/* How often, in SEEDS crashes, @name had just @text in it; NULL: was not there. */
static unsigned times(uint64_t index, const char *name, const char *text)
{
	unsigned seed, n = 0;
	char buf[8192], *path = strdup(tmp_path(&tmp, name));
	long len;

	for (seed = 0; seed < SEEDS; seed++) {
		crash(index, seed);
		len = tmp_read(path, buf, sizeof(buf));
		if (!text)
			n += len < 0;
		else
			n += len == (long)strlen(text) && memcmp(buf, text, (size_t)len) == 0;
	}
	free(path);
	return n;
}

/* P4 */
Test(engine_io_record, flushed_write_always_survives_and_unflushed_one_sometimes)
{
	struct eng_file *file = create_durable("store/a", "old");
	uint64_t before = now(), written, flushed;
	unsigned n;

	put(file, "new", 0);
	written = now();
	cr_assert_eq(eng_io_fdatasync(io, file), 0);
	flushed = now();
	put(file, "not", 0);
	eng_io_close(io, file);
	cr_expect_eq(times(before, "crash/a", "old"), SEEDS);
	n = times(written, "crash/a", "new");
	cr_expect(n > 0 && n < SEEDS, "%u", n);
	cr_expect_eq(n + times(written, "crash/a", "old"), SEEDS);
	n = times(flushed - 1, "crash/a", "new");
	cr_expect(n > 0 && n < SEEDS, "before the flush completed: %u", n);
	cr_expect_eq(times(flushed, "crash/a", "new"), SEEDS);
	n = times(now(), "crash/a", "not");
	cr_expect(n > 0 && n < SEEDS, "%u", n);
}

Test(engine_io_record, write_not_yet_submitted_never_shows_and_one_in_flight_may)
{
	struct eng_file *file = create_durable("store/a", "old");
	uint64_t before = now();

	put(file, "new", 0);
	eng_io_close(io, file);
	cr_expect_eq(times(before, "crash/a", "new"), 0u);
	cr_expect_gt(times(before + 1, "crash/a", "new"), 0u, "submitted, not complete");
}

Test(engine_io_record, unflushed_write_tears_at_sectors_only)
{
	struct eng_file *file = create_durable("store/a", "");
	char buf[2048], *path = strdup(tmp_path(&tmp, "crash/a"));
	unsigned seed, torn = 0, whole = 0, i, marks;

	cr_assert_eq(eng_io_truncate(io, file, sizeof(buf)), 0);
	cr_assert_eq(eng_io_fdatasync(io, file), 0);
	memset(buf, 'x', sizeof(buf));
	cr_assert_eq(eng_io_pwrite(io, file, buf + 100, sizeof(buf) - 100, 100), 0);
	eng_io_close(io, file);
	for (seed = 0; seed < SEEDS; seed++) {
		crash(now(), seed);
		cr_assert_eq(tmp_read(path, buf, sizeof(buf)), 2048);
		for (i = 100, marks = 0; i < sizeof(buf); i++) {
			if (i % 512)
				cr_assert_eq(buf[i], i == 100 ? buf[511] : buf[i - 1]);
			marks += i % 512 == 0 && buf[i] == 'x';
		}
		cr_assert_eq(buf[99], 0);
		torn += marks > 0 && marks < 3;
		whole += marks == 3 && buf[100] == 'x';
	}
	cr_expect_gt(torn, 0u);
	cr_expect_gt(whole, SEEDS / 5u);
	free(path);
}

Test(engine_io_record, unflushed_writes_are_lost_in_any_order_and_apply_in_theirs)
{
	struct eng_file *file = create_durable("store/a", "....");
	unsigned n;

	put(file, "1", 0);
	put(file, "2", 1);
	put(file, "3", 0);
	eng_io_close(io, file);
	n = times(now(), "crash/a", ".2..");
	cr_expect_gt(n, 0u, "the first lost, the second kept");
	n = times(now(), "crash/a", "1...");
	cr_expect_gt(n, 0u, "the other way round");
	n = times(now(), "crash/a", "32..");
	cr_expect_gt(n, 0u, "all");
}

/* A flush covers what had completed when it was submitted, and nothing else. */
static void note_done(struct eng_op *op)
{
	op->priv[5] = 1;
}

static void run(struct eng_ring *ring, struct eng_op *a, struct eng_op *b)
{
	eng_ring_queue(ring, a);
	eng_ring_queue(ring, b);
	while (!a->priv[5] || !b->priv[5])
		cr_assert_geq(eng_ring_wait(ring, FOR_EVER), 0);
}

Test(engine_io_record, ring_flush_beside_a_write_does_not_cover_it_but_a_linked_one_does)
{
	struct eng_file *file = create_durable("store/a", "old");
	struct iovec iov[] = {{"n", 1}, {"ew", 2}};
	struct eng_op write, flush;
	struct eng_ring *ring = NULL;
	unsigned n;

	cr_assert_eq(eng_ring_create(io, 16, NULL, &ring), 0);
	write = (struct eng_op){
		.kind = ENG_OP_WRITE, .file = file, .iov = iov, .iovcnt = 2, .done = note_done};
	flush = (struct eng_op){.kind = ENG_OP_FDATASYNC, .file = file, .done = note_done};
	run(ring, &write, &flush);
	cr_assert_eq(write.res, 3);
	cr_assert_eq(flush.res, 0);
	n = times(now(), "crash/a", "new");
	cr_expect(n > 0 && n < SEEDS, "side by side: %u", n);

	write.priv[5] = flush.priv[5] = 0;
	write.link = true;
	run(ring, &write, &flush);
	cr_assert_eq(flush.res, 0);
	cr_expect_eq(times(now(), "crash/a", "new"), SEEDS, "linked");
	eng_ring_destroy(ring);
	eng_io_close(io, file);
}

Test(engine_io_record, dsync_write_is_durable_itself_and_nothing_else)
{
	struct eng_file *file = create_durable("store/a", "....");
	struct eng_op write = {.kind = ENG_OP_WRITE,
			       .dsync = true,
			       .file = file,
			       .offset = 4,
			       .iov = &(struct iovec){"dsync", 5},
			       .iovcnt = 1,
			       .done = note_done};
	struct eng_ring *ring = NULL;
	unsigned n;

	put(file, "xx", 0);
	cr_assert_eq(eng_ring_create(io, 16, NULL, &ring), 0);
	eng_ring_queue(ring, &write);
	while (!write.priv[5])
		cr_assert_geq(eng_ring_wait(ring, FOR_EVER), 0);
	eng_ring_destroy(ring);
	eng_io_close(io, file);
	n = times(now(), "crash/a", "xx..dsync");
	cr_expect(n > 0 && n < SEEDS, "%u", n);
	cr_expect_eq(n + times(now(), "crash/a", "....dsync"), SEEDS);
}

Test(engine_io_record, flush_of_one_file_covers_no_other)
{
	struct eng_file *a = create_durable("store/a", "old"),
			*b = create_durable("store/b", "old");

	put(a, "new", 0);
	put(b, "new", 0);
	cr_assert_eq(eng_io_fdatasync(io, b), 0);
	cr_expect_lt(times(now(), "crash/a", "new"), SEEDS);
	cr_expect_eq(times(now(), "crash/b", "new"), SEEDS);
	eng_io_close(io, a);
	eng_io_close(io, b);
}

Test(engine_io_record, flush_through_another_descriptor_covers_the_file)
{
	struct eng_file *a = create_durable("store/a", "old"), *b;

	put(a, "new", 0);
	eng_io_close(io, a);
	b = tmp_open(&tmp, io, "store/./a", ENG_OPEN_WRITE);
	cr_assert_eq(eng_io_fdatasync(io, b), 0);
	cr_expect_eq(times(now(), "crash/a", "new"), SEEDS);
	eng_io_close(io, b);
}

/* T16 */
Test(engine_io_record, failed_flush_loses_what_a_later_one_cannot_bring_back)
{
	struct eng_file *file = create_durable("store/a", "12");
	unsigned n;

	put(file, "a", 0);
	cr_assert_geq(eng_fault_add(fault, &(struct eng_fault_rule){.ops = ENG_FAULT_FDATASYNC,
								    .error = -EIO}),
		      0);
	cr_assert_eq(eng_io_fdatasync(io, file), -EIO);
	put(file, "b", 1);
	cr_assert_eq(eng_io_fdatasync(io, file), 0);
	eng_io_close(io, file);
	n = times(now(), "crash/a", "ab");
	cr_expect(n > 0 && n < SEEDS, "%u", n);
	cr_expect_eq(n + times(now(), "crash/a", "1b"), SEEDS);
}

Test(engine_io_record, failed_write_may_be_there_or_not_for_ever)
{
	struct eng_file *file = create_durable("store/a", "old");
	struct eng_fault_rule rule = {.ops = ENG_FAULT_PWRITE,
				      .error = -EIO,
				      .shorten = true,
				      .short_len = 3};
	unsigned n;

	cr_assert_geq(eng_fault_add(fault, &rule), 0);
	cr_assert_eq(eng_io_pwrite(io, file, "new", 3, 0), -EIO);
	cr_assert_eq(eng_io_fdatasync(io, file), 0);
	eng_io_close(io, file);
	n = times(now(), "crash/a", "new");
	cr_expect(n > 0 && n < SEEDS, "%u", n);
}

Test(engine_io_record, created_file_needs_the_directorys_sync)
{
	struct eng_file *file = create("store/a");
	uint64_t synced;
	unsigned n;

	put(file, "text", 0);
	cr_assert_eq(eng_io_fdatasync(io, file), 0);
	n = times(now(), "crash/a", NULL);
	cr_expect(n > 0 && n < SEEDS, "%u", n);
	cr_expect_eq(n + times(now(), "crash/a", "text"), SEEDS);
	cr_assert_eq(eng_io_sync_dir(io, tmp_path(&tmp, "store")), 0);
	synced = now();
	cr_expect_eq(times(synced, "crash/a", "text"), SEEDS);
	eng_io_close(io, file);
	cr_assert_eq(eng_io_unlink(io, tmp_path(&tmp, "store/a")), 0);
	n = times(now(), "crash/a", NULL);
	cr_expect(n > 0 && n < SEEDS, "%u", n);
	cr_assert_eq(eng_io_sync_dir(io, tmp_path(&tmp, "store")), 0);
	cr_expect_eq(times(now(), "crash/a", NULL), SEEDS);
}

Test(engine_io_record, rename_shows_the_old_name_or_the_new_one)
{
	unsigned seed, old = 0, new = 0;
	char a[16], b[16];
	long la, lb;

	eng_io_close(io, create_durable("store/a", "moved"));
	eng_io_close(io, create_durable("store/b", "replaced"));
	cr_assert_eq(eng_io_rename(io, tmp_path(&tmp, "store/a"), tmp_path(&tmp, "store/b")), 0);
	for (seed = 0; seed < SEEDS; seed++) {
		crash(now(), seed);
		la = tmp_read(tmp_path(&tmp, "crash/a"), a, sizeof(a));
		lb = tmp_read(tmp_path(&tmp, "crash/b"), b, sizeof(b));
		old += la == 5 && lb == 8;
		new += la == -1 && lb == 5;
	}
	cr_expect(old > 0 && new > 0, "%u %u", old, new);
	cr_expect_eq(old + new, SEEDS);
	cr_assert_eq(eng_io_sync_dir(io, tmp_path(&tmp, "store")), 0);
	cr_expect_eq(times(now(), "crash/b", "moved"), SEEDS);
}

Test(engine_io_record, rename_between_directories_is_whole_and_takes_the_past_along)
{
	unsigned seed, here = 0, there = 0, lost = 0;
	bool in_d, in_e;

	cr_assert_eq(eng_io_mkdir(io, tmp_path(&tmp, "store/d")), 0);
	cr_assert_eq(eng_io_mkdir(io, tmp_path(&tmp, "store/e")), 0);
	cr_assert_eq(eng_io_sync_dir(io, tmp_path(&tmp, "store")), 0);
	eng_io_close(io, create("store/d/a"));
	cr_assert_eq(eng_io_rename(io, tmp_path(&tmp, "store/d/a"), tmp_path(&tmp, "store/e/a")),
		     0);
	for (seed = 0; seed < SEEDS; seed++) {
		crash(now(), seed);
		in_d = access(tmp_path(&tmp, "crash/d/a"), F_OK) == 0;
		in_e = access(tmp_path(&tmp, "crash/e/a"), F_OK) == 0;
		cr_assert(!in_d || !in_e);
		here += in_d;
		there += in_e;
		lost += !in_d && !in_e;
	}
	cr_expect(here > 0 && there > 0 && lost > 0, "%u %u %u", here, there, lost);
	cr_assert_eq(eng_io_sync_dir(io, tmp_path(&tmp, "store/e")), 0);
	cr_expect_eq(times(now(), "crash/e/a", ""), SEEDS);
}

Test(engine_io_record, entries_survive_in_order)
{
	unsigned seed, i, n, seen[4] = {0};
	char name[16];

	for (i = 0; i < 3; i++) {
		snprintf(name, sizeof(name), "store/%u", i);
		eng_io_close(io, create(name));
	}
	for (seed = 0; seed < SEEDS; seed++) {
		crash(now(), seed);
		for (i = 0, n = 0; i < 3; i++) {
			snprintf(name, sizeof(name), "crash/%u", i);
			if (access(tmp_path(&tmp, name), F_OK) == 0)
				cr_assert_eq(n++, i);
		}
		seen[n]++;
	}
	cr_expect(seen[0] && seen[1] && seen[2] && seen[3]);
}

Test(engine_io_record, removals_survive_in_order_and_not_before_their_time)
{
	unsigned seed, i, n, seen[4] = {0};
	uint64_t before;
	char name[16];

	for (i = 0; i < 3; i++) {
		snprintf(name, sizeof(name), "store/%u", i);
		eng_io_close(io, create_durable(name, ""));
	}
	before = now();
	for (i = 0; i < 3; i++) {
		snprintf(name, sizeof(name), "store/%u", i);
		cr_assert_eq(eng_io_unlink(io, tmp_path(&tmp, name)), 0);
	}
	cr_expect_eq(times(before, "crash/0", ""), SEEDS);
	for (seed = 0; seed < SEEDS; seed++) {
		crash(now(), seed);
		for (i = 0, n = 0; i < 3; i++) {
			snprintf(name, sizeof(name), "crash/%u", i);
			if (access(tmp_path(&tmp, name), F_OK) != 0)
				cr_assert_eq(n++, i);
		}
		seen[n]++;
	}
	cr_expect(seen[0] && seen[1] && seen[2] && seen[3]);
}

Test(engine_io_record, lost_directory_takes_its_files_along)
{
	struct eng_file *file;
	unsigned n;

	cr_assert_eq(eng_io_mkdir(io, tmp_path(&tmp, "store/d")), 0);
	file = create("store/d/a");
	cr_assert_eq(eng_io_fdatasync(io, file), 0);
	eng_io_close(io, file);
	cr_assert_eq(eng_io_sync_dir(io, tmp_path(&tmp, "store/d")), 0);
	n = times(now(), "crash/d/a", NULL);
	cr_expect(n > 0 && n < SEEDS, "%u", n);
	cr_assert_eq(eng_io_sync_dir(io, tmp_path(&tmp, "store")), 0);
	cr_expect_eq(times(now(), "crash/d/a", ""), SEEDS);
}

Test(engine_io_record, sizes_survive_in_order_and_bound_what_is_read)
{
	struct eng_file *file = create_durable("store/a", "abcdef");
	unsigned n;

	cr_assert_eq(eng_io_truncate(io, file, 2), 0);
	cr_assert_eq(eng_io_allocate(io, file, 0, 4), 0);
	put(file, "Z", 4);
	eng_io_close(io, file);
	n = times(now(), "crash/a", "abcdef");
	cr_expect(n > 0 && n < SEEDS, "nothing: %u", n);
	cr_expect_gt(times(now(), "crash/a", "abcdZf"), 0u, "only the write");
	cr_expect_gt(times(now(), "crash/a", "ab"), 0u, "only the truncation");
	crash(now(), 0);
	for (n = 0; n < SEEDS; n++) {
		char buf[8];
		long len;

		crash(now(), n);
		len = tmp_read(tmp_path(&tmp, "crash/a"), buf, sizeof(buf));
		/* Truncated bytes never come back: zeros from the second size on. */
		if (len == 4 || len == 5)
			cr_assert_eq(memcmp(buf, "ab\0\0", 4), 0);
		else
			cr_assert(len == 2 || len == 6, "%ld", len);
	}
}

Test(engine_io_record, flushed_sizes_and_holes_are_durable)
{
	struct eng_file *file = create_durable("store/a", "abcdef");
	unsigned n;

	cr_assert_eq(eng_io_punch(io, file, 0, 6), 0);
	n = times(now(), "crash/a", "abcdef");
	cr_expect(n > 0 && n < SEEDS, "%u", n);
	cr_assert_eq(eng_io_fdatasync(io, file), 0);
	cr_expect_eq(times(now(), "crash/a", "abcdef"), 0u);
	cr_assert_eq(eng_io_truncate(io, file, 0), 0);
	cr_assert_eq(eng_io_fdatasync(io, file), 0);
	cr_expect_eq(times(now(), "crash/a", ""), SEEDS);
	put(file, "more", 0);
	eng_io_close(io, file);
	file = tmp_open(&tmp, io, "store/a", ENG_OPEN_WRITE | ENG_OPEN_TRUNC);
	cr_assert_eq(eng_io_fdatasync(io, file), 0);
	cr_expect_eq(times(now(), "crash/a", ""), SEEDS, "truncated by open");
	eng_io_close(io, file);
}

Test(engine_io_record, what_was_there_at_the_start_is_durable)
{
	struct eng_file *file;
	char big[3 * 4096 + 5], back[sizeof(big) + 1];

	eng_record_destroy(rec);
	memset(big, 'b', sizeof(big));
	cr_assert_eq(eng_io_mkdir(tmp.io, tmp_path(&tmp, "store/d")), 0);
	file = tmp_open(&tmp, tmp.io, "store/d/base", FRESH);
	cr_assert_eq(eng_io_pwrite(tmp.io, file, big, sizeof(big), 70000), 0);
	eng_io_close(tmp.io, file);
	start();
	crash(0, 1);
	cr_expect_eq(tmp_read(tmp_path(&tmp, "crash/d/base"), back, sizeof(back)),
		     (long)sizeof(back));
	file = tmp_open(&tmp, tmp.io, "crash/d/base", 0);
	cr_assert_eq(eng_io_pread(tmp.io, file, back, sizeof(back), 70000), (ssize_t)sizeof(big));
	cr_expect_eq(memcmp(big, back, sizeof(big)), 0);
	eng_io_close(tmp.io, file);
	cr_assert_eq(eng_io_unlink(io, tmp_path(&tmp, "store/d/base")), 0);
	cr_assert_eq(eng_io_sync_dir(io, tmp_path(&tmp, "store/d")), 0);
	cr_expect_eq(times(now(), "crash/d/base", NULL), SEEDS);
	crash(0, 1);
	cr_expect_eq(access(tmp_path(&tmp, "crash/d/base"), F_OK), 0, "and back at the start");
}

Test(engine_io_record, paths_outside_the_root_are_passed_on_and_not_logged)
{
	struct eng_file *file;
	uint64_t before;

	file = tmp_open(&tmp, io, "storeroom", FRESH);
	before = now();
	put(file, "x", 0);
	cr_expect_eq(eng_io_fdatasync(io, file), 0);
	eng_io_close(io, file);
	cr_expect_leq(now() - before, 1u);
	crash(now(), 0);
	cr_expect_neq(access(tmp_path(&tmp, "crash/room"), F_OK), 0);
	cr_expect_eq(eng_io_rename(io, tmp_path(&tmp, "storeroom"), tmp_path(&tmp, "store/a")),
		     -EXDEV);
}

Test(engine_io_record, marks_come_back_in_order_with_their_events)
{
	struct eng_record_mark mark = {0};
	uint64_t first, second;

	first = eng_record_mark(rec, 1, 10, 11);
	eng_io_close(io, create("store/a"));
	second = eng_record_mark(rec, 2, 20, 21);
	cr_assert(eng_record_get_mark(rec, 0, &mark));
	cr_expect(mark.index == first && mark.kind == 1 && mark.a == 10 && mark.b == 11);
	cr_assert(eng_record_get_mark(rec, 1, &mark));
	cr_expect(mark.index == second && mark.kind == 2 && mark.a == 20 && mark.b == 21);
	cr_expect_lt(first, second);
	cr_expect_eq(now(), second + 1);
	cr_expect(!eng_record_get_mark(rec, 2, &mark));
}

Test(engine_io_record, crash_needs_a_past_index_and_an_empty_directory)
{
	cr_expect_eq(eng_record_crash(rec, now() + 1, 0, tmp_path(&tmp, "crash")), -EINVAL);
	eng_io_close(io, create_durable("store/a", "x"));
	crash(now(), 0);
	cr_expect_eq(eng_record_crash(rec, now(), 0, tmp_path(&tmp, "crash")), -EEXIST);
	cr_expect_eq(eng_record_crash(rec, now(), 0, tmp_path(&tmp, "none/crash")), -ENOENT);
}

/* --- a random run --- */

static uint64_t lcg = 1;

static unsigned rnd(unsigned n)
{
	lcg = lcg * 6364136223846793005u + 1442695040888963407u;
	return (unsigned)(lcg >> 33) % n;
}

static void random_step(struct eng_file **files, unsigned count)
{
	struct eng_file *file = files[rnd(count)];
	char buf[3000], from[16], to[16];
	unsigned what = rnd(40);

	memset(buf, 'a' + (int)rnd(26), sizeof(buf));
	if (what < 20)
		cr_assert_eq(eng_io_pwrite(io, file, buf, 1 + rnd(2999), rnd(30000)), 0);
	else if (what < 24)
		cr_assert_eq(eng_io_truncate(io, file, rnd(30000)), 0);
	else if (what < 28)
		cr_assert_eq(eng_io_allocate(io, file, rnd(20000), 1 + rnd(9999)), 0);
	else if (what < 32)
		cr_assert_eq(eng_io_punch(io, file, rnd(30000), 1 + rnd(9999)), 0);
	else if (what < 36)
		cr_assert_eq(eng_io_fdatasync(io, file), 0);
	else if (what < 37)
		cr_assert_eq(eng_io_sync_dir(io, tmp_path(&tmp, "store")), 0);
	if (what < 38)
		return;
	snprintf(from, sizeof(from), "store/%u", rnd(8));
	snprintf(to, sizeof(to), "store/%u", rnd(8));
	if (what == 38)
		eng_io_rename(io, tmp_path(&tmp, from), tmp_path(&tmp, to));
	else if (rnd(4) == 0)
		eng_io_unlink(io, tmp_path(&tmp, from));
}

static void expect_same(const char *left, const char *right)
{
	static char a[65536], b[65536];
	unsigned i, there = 0;
	char name[32];
	long la, lb;

	for (i = 0; i < 8; i++) {
		snprintf(name, sizeof(name), "%s/%u", left, i);
		la = tmp_read(tmp_path(&tmp, name), a, sizeof(a));
		snprintf(name, sizeof(name), "%s/%u", right, i);
		lb = tmp_read(tmp_path(&tmp, name), b, sizeof(b));
		cr_assert_eq(la, lb, "%s: %ld and %ld bytes", name, la, lb);
		if (la > 0)
			cr_assert_eq(memcmp(a, b, (size_t)la), 0, "%s", name);
		there += la >= 0;
	}
	cr_assert_gt(there, 0u);
}

static void random_run(struct eng_file **files, unsigned steps)
{
	char name[16];
	unsigned i;

	for (i = 0; i < 8; i++) {
		snprintf(name, sizeof(name), "store/%u", i);
		files[i] = create(name);
	}
	for (i = 0; i < steps; i++)
		random_step(files, 8);
}

Test(engine_io_record, after_flushing_everything_the_crash_is_the_store)
{
	struct eng_file *files[8];
	unsigned round, i;

	for (round = 0; round < 6; round++) {
		lcg = round;
		random_run(files, 400);
		for (i = 0; i < 8; i++) {
			cr_assert_eq(eng_io_fdatasync(io, files[i]), 0);
			eng_io_close(io, files[i]);
		}
		cr_assert_eq(eng_io_sync_dir(io, tmp_path(&tmp, "store")), 0);
		crash(now(), round);
		expect_same("crash", "store");
		cr_assert_eq(eng_record_remove_tree(tmp_path(&tmp, "store")), 0);
		eng_record_destroy(rec);
		cr_assert_eq(eng_io_mkdir(tmp.io, tmp_path(&tmp, "store")), 0);
		start();
	}
}

Test(engine_io_record, same_index_and_seed_give_the_same_tree_from_either_side)
{
	struct eng_file *files[8];
	uint64_t end, index;
	unsigned i;

	random_run(files, 300);
	end = now();
	for (i = 0; i < 40; i++) {
		index = end / 4 + rnd((unsigned)(end / 2));
		crash(index, i);
		cr_assert_eq(rename(tmp_path(&tmp, "crash"), tmp_path(&tmp, "first")), 0);
		/* From before, with everything replayed, and from the end, going back. */
		crash(i % 2 ? 0 : end, i);
		crash(index, i);
		expect_same("first", "crash");
		cr_assert_eq(eng_record_remove_tree(tmp_path(&tmp, "first")), 0);
	}
	for (i = 0; i < 8; i++)
		eng_io_close(io, files[i]);
}

static void *write_and_flush(void *arg)
{
	struct eng_file *file = arg;
	unsigned i;

	for (i = 0; i < 300; i++) {
		put(file, i % 2 ? "odd " : "even", i * 4);
		if (i % 10 == 9)
			cr_assert_eq(eng_io_fdatasync(io, file), 0);
	}
	return NULL;
}

Test(engine_io_record, threads_may_record_while_others_crash)
{
	struct eng_file *files[3];
	pthread_t threads[3];
	char name[16];
	unsigned i;

	for (i = 0; i < 3; i++) {
		snprintf(name, sizeof(name), "store/%u", i);
		files[i] = create_durable(name, "");
		cr_assert_eq(pthread_create(&threads[i], NULL, write_and_flush, files[i]), 0);
	}
	for (i = 0; i < 50; i++)
		crash(now(), i);
	for (i = 0; i < 3; i++) {
		pthread_join(threads[i], NULL);
		eng_io_close(io, files[i]);
	}
	crash(now(), 0);
	expect_same("crash", "store");
}

/* --- the death of a process --- */

static void die(uint64_t index, uint64_t seed)
{
	cr_assert_eq(eng_record_kill(rec, index, seed, eng_fault_io(fault), tmp_path(&tmp, "next")),
		     0);
}

static bool reads(const char *name, const char *text)
{
	char buf[64];
	long len = tmp_read(tmp_path(&tmp, name), buf, sizeof(buf));

	return text ? len == (long)strlen(text) && memcmp(buf, text, (size_t)len) == 0 : len < 0;
}

/* IO-6 */
Test(engine_io_record, a_successor_reads_what_a_dead_process_did_not_flush_and_power_may_take_it)
{
	struct eng_file *file = create_durable("store/a", "old");
	unsigned n;

	put(file, "new", 0);
	eng_io_close(io, file);
	die(now(), 1);
	cr_expect(reads("next/a", "new"));
	n = times(now(), "crash/a", "new");
	cr_expect(n > 0 && n < SEEDS, "%u", n);
	file = tmp_open(&tmp, io, "next/a", ENG_OPEN_WRITE);
	put(file, "!", 3);
	cr_expect_gt(times(now(), "crash/a", "old!"), 0u, "its own kept, the dead one's not");
	cr_assert_eq(eng_io_fdatasync(io, file), 0);
	eng_io_close(io, file);
	cr_expect_eq(times(now(), "crash/a", "new!"), SEEDS);
}

/* IO-6 */
Test(engine_io_record, what_comes_behind_a_death_never_happened)
{
	struct eng_file *file = create_durable("store/a", "old");
	uint64_t before = now();
	unsigned seen = 0;

	put(file, "one", 0);
	cr_assert_eq(eng_io_fdatasync(io, file), 0);
	eng_io_close(io, file);
	eng_io_close(io, create("store/b"));
	cr_assert_eq(eng_io_sync_dir(io, tmp_path(&tmp, "store")), 0);
	cr_assert_eq(eng_io_unlink(io, tmp_path(&tmp, "store/a")), 0);
	die(before + 1, before);
	cr_expect(reads("next/b", NULL));
	seen = reads("next/a", "one");
	cr_expect(seen || reads("next/a", "old"), "in flight, it came to its end or not");
	cr_expect_eq(times(now(), "crash/b", NULL), SEEDS);
	cr_expect_gt(times(now(), "crash/a", "old"), 0u);
	cr_expect_eq(times(now(), "crash/a", "one") > 0, seen);
	/* Files and names go on from there. */
	eng_io_close(io, tmp_open(&tmp, io, "next/b", FRESH));
	cr_assert_eq(eng_io_sync_dir(io, tmp_path(&tmp, "next")), 0);
	cr_expect_eq(times(now(), "crash/b", ""), SEEDS);
}

/* IO-6 */
Test(engine_io_record, names_of_a_dead_process_are_durable_by_the_successors_sync)
{
	unsigned n;

	eng_io_close(io, create_durable("store/a", "old"));
	eng_io_close(io, create("store/b"));
	cr_assert_eq(eng_io_rename(io, tmp_path(&tmp, "store/a"), tmp_path(&tmp, "store/c")), 0);
	die(now(), 1);
	cr_expect(reads("next/a", NULL) && reads("next/b", "") && reads("next/c", "old"));
	n = times(now(), "crash/c", "old");
	cr_expect(n > 0 && n < SEEDS, "%u", n);
	cr_assert_eq(eng_io_unlink(io, tmp_path(&tmp, "next/c")), 0);
	n = times(now(), "crash/a", "old");
	cr_expect(n > 0 && n < SEEDS, "%u", n);
	cr_assert_eq(eng_io_sync_dir(io, tmp_path(&tmp, "next")), 0);
	cr_expect_eq(times(now(), "crash/b", ""), SEEDS);
	cr_expect_eq(times(now(), "crash/a", NULL) + times(now(), "crash/c", NULL), 2 * SEEDS);
}
