/* SPDX-License-Identifier: MIT */
/*
 * engine_journal.c - the journal over shared memory that the test keeps: what a death at any moment
 * leaves, and what damage is refused.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "engine/layer/journal.h"

/* --- an I/O whose shared memory is one buffer --- */

static uint8_t *memory;
static size_t memory_len;
static char memory_name[64];
static int open_error;
static uint8_t boot;
static uint8_t next_random;

static int fake_create(struct eng_io *io, const char *name, size_t len, void **ret)
{
	(void)io;
	if (memory)
		return -EEXIST;
	memory = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	cr_assert_neq(memory, MAP_FAILED);
	memory_len = len;
	snprintf(memory_name, sizeof(memory_name), "%s", name);
	*ret = memory;
	return 0;
}

static int fake_open(struct eng_io *io, const char *name, size_t *len, void **ret)
{
	(void)io;
	if (open_error)
		return open_error;
	if (!memory || strcmp(name, memory_name) != 0)
		return -ENOENT;
	*len = memory_len;
	*ret = memory;
	return 0;
}

static void fake_unmap(struct eng_io *io, void *map, size_t len)
{
	(void)io;
	cr_assert_eq(map, memory);
	cr_assert_eq(len, memory_len);
}

static int fake_unlink(struct eng_io *io, const char *name)
{
	(void)io;
	if (!memory || strcmp(name, memory_name) != 0)
		return -ENOENT;
	munmap(memory, memory_len);
	memory = NULL;
	return 0;
}

static void fake_random(struct eng_io *io, void *buf, size_t len)
{
	(void)io;
	memset(buf, ++next_random, len);
}

static void fake_boot_id(struct eng_io *io, uint8_t id[16])
{
	(void)io;
	memset(id, boot, 16);
}

static const struct eng_io_ops OPS = {
	.shm_create = fake_create,
	.shm_open = fake_open,
	.shm_unmap = fake_unmap,
	.shm_unlink = fake_unlink,
	.random = fake_random,
	.boot_id = fake_boot_id,
};
static struct eng_io io = {.ops = &OPS};
static const struct fmt_uuid STORE = {{1}}, DISK = {{2}}, LAYER_A = {{3}}, LAYER_B = {{4}};

static struct eng_journal *create(uint64_t after)
{
	struct eng_journal *j = NULL;

	cr_assert_eq(eng_journal_create(&io, &STORE, &DISK, after, &j), 0);
	return j;
}

/* As the next process sees it. */
static struct eng_journal *reopen(struct eng_journal *j)
{
	struct eng_journal *next = NULL;

	eng_journal_close(j);
	cr_assert_eq(eng_journal_open(&io, &STORE, &DISK, &next), 0);
	return next;
}

static uint32_t add(struct eng_journal *j, const struct fmt_uuid *layer)
{
	uint32_t tag = UINT32_MAX;

	cr_assert_eq(eng_journal_add_layer(j, layer, 8, 9, &tag), 0);
	return tag;
}

static uint64_t append(struct eng_journal *j, uint32_t tag, uint64_t block)
{
	struct fmt_run run = {.block = block, .slot = (uint32_t)block * 2, .count = 3};
	uint64_t number = 0;

	cr_assert_eq(eng_journal_append(j, tag, &run, &number), 0);
	return number;
}

struct seen {
	uint64_t numbers[64];
	struct fmt_run runs[64];
	int count, stop_at;
};

static int see(void *arg, uint64_t number, const struct fmt_run *run)
{
	struct seen *s = arg;

	cr_assert_lt(s->count, 64);
	s->numbers[s->count] = number;
	s->runs[s->count++] = *run;
	return s->count == s->stop_at ? -EINTR : 0;
}

static int count_only(void *arg, uint64_t number, const struct fmt_run *run)
{
	(void)number;
	(void)run;
	++*(int *)arg;
	return 0;
}

/* JN-1, T20 */
Test(engine_journal, entries_outlive_the_process)
{
	struct eng_journal *j = create(0);
	uint32_t a = add(j, &LAYER_A), b = add(j, &LAYER_B), tag;
	struct fmt_run zero = {.block = 1ull << 40,
			       .slot = FMT_SLOT_NONE,
			       .count = FMT_RUN_COUNT_MAX,
			       .kind = FMT_RUN_ZERO};
	struct seen s = {0};
	uint64_t number, nonce = eng_journal_nonce(j);

	cr_expect_str_eq(memory_name, "vmimg-02000000-0000-0000-0000-000000000000");
	cr_expect_eq(append(j, a, 10), 1);
	cr_expect_eq(append(j, b, 20), 2);
	cr_assert_eq(eng_journal_append(j, a, &zero, &number), 0);
	cr_expect_eq(number, 3);
	j = reopen(j);
	cr_expect_eq(eng_journal_nonce(j), nonce);
	cr_expect_eq(eng_journal_last(j), 3);
	cr_assert_eq(eng_journal_find_layer(j, &LAYER_A, 8, 9, &tag), 0);
	cr_assert_eq(eng_journal_each(j, tag, 0, see, &s), 0);
	cr_assert_eq(s.count, 2);
	cr_expect_eq(s.numbers[0], 1);
	cr_expect_eq(s.runs[0].block, 10);
	cr_expect_eq(s.runs[0].slot, 20);
	cr_expect_eq(s.runs[0].count, 3);
	cr_expect_eq(s.runs[0].kind, FMT_RUN_DATA);
	cr_expect_eq(s.numbers[1], 3);
	cr_expect_eq(s.runs[1].block, zero.block);
	cr_expect_eq(s.runs[1].slot, FMT_SLOT_NONE);
	cr_expect_eq(s.runs[1].count, FMT_RUN_COUNT_MAX);
	cr_expect_eq(s.runs[1].kind, FMT_RUN_ZERO);
	eng_journal_close(j);
}

#define HEADER_PAGE 4096u /* the header, the layers and the first entries */
#define NEXT_OFFSET 80u   /* of the store that makes an entry count */

static sigjmp_buf died;

static void die(int sig)
{
	(void)sig;
	siglongjmp(died, 1);
}

/*
 * JN-1: the append dies at its first store to the header: no entry yet, but all of it is in place.
 */
Test(engine_journal, an_append_that_dies_leaves_a_whole_entry_or_none)
{
	struct eng_journal *j = create(0);
	uint32_t tag = add(j, &LAYER_A);
	struct fmt_run run = {.block = 77, .slot = 88, .count = 99};
	struct sigaction action = {.sa_handler = die}, old;
	struct seen s = {0};
	volatile bool appended = false;
	uint64_t number;

	for (uint64_t i = 0; i < 1000; i++)
		append(j, tag, i);
	sigaction(SIGSEGV, &action, &old);
	cr_assert_eq(mprotect(memory, HEADER_PAGE, PROT_READ), 0);
	if (sigsetjmp(died, 1) == 0) {
		eng_journal_append(j, tag, &run, &number);
		appended = true;
	}
	sigaction(SIGSEGV, &old, NULL);
	cr_assert_eq(mprotect(memory, HEADER_PAGE, PROT_READ | PROT_WRITE), 0);
	cr_assert(!appended, "the append did without the header");
	j = reopen(j);
	cr_expect_eq(eng_journal_last(j), 1000);
	number = 1002; /* had it died one instruction later */
	memcpy(memory + NEXT_OFFSET, &number, sizeof(number));
	j = reopen(j);
	cr_expect_eq(eng_journal_last(j), 1001);
	cr_assert_eq(eng_journal_each(j, tag, 1000, see, &s), 0);
	cr_assert_eq(s.count, 1);
	cr_expect_eq(s.runs[0].block, 77);
	cr_expect_eq(s.runs[0].slot, 88);
	cr_expect_eq(s.runs[0].count, 99);
	eng_journal_close(j);
}

/* JN-4 */
Test(engine_journal, replay_skips_what_the_log_covers_and_numbers_go_on)
{
	struct eng_journal *j = create(500);
	uint32_t tag = add(j, &LAYER_A);
	struct seen s = {0};

	cr_expect_eq(eng_journal_last(j), 500);
	for (uint64_t i = 0; i < 10; i++)
		cr_assert_eq(append(j, tag, i), 501 + i);
	cr_assert_eq(eng_journal_each(j, tag, 507, see, &s), 0);
	cr_assert_eq(s.count, 3);
	cr_expect_eq(s.numbers[0], 508);
	s = (struct seen){.stop_at = 2};
	cr_expect_eq(eng_journal_each(j, tag, 0, see, &s), -EINTR);
	cr_expect_eq(s.count, 2);
	eng_journal_close(j);
}

Test(engine_journal, a_full_ring_refuses_and_a_drop_makes_room_for_ever)
{
	struct eng_journal *j = create(0);
	uint32_t tag = add(j, &LAYER_A);
	struct fmt_run run = {.block = 1, .slot = 1, .count = 1};
	uint64_t number = 42;
	int count = 0;

	for (uint32_t i = 0; i < ENG_JOURNAL_ENTRIES; i++) {
		cr_assert_eq(eng_journal_room(j), ENG_JOURNAL_ENTRIES - i);
		append(j, tag, i);
	}
	cr_expect_eq(eng_journal_append(j, tag, &run, &number), -ENOSPC);
	cr_expect_eq(number, 42);
	eng_journal_drop(j, 100);
	cr_expect_eq(eng_journal_room(j), 100);
	eng_journal_drop(j, 50); /* again, older: nothing */
	cr_expect_eq(eng_journal_room(j), 100);
	for (uint32_t i = 0; i < 3 * ENG_JOURNAL_ENTRIES; i++) {
		number = append(j, tag, i);
		eng_journal_drop(j, number - 8000);
	}
	j = reopen(j);
	cr_expect_eq(eng_journal_each(j, tag, 0, count_only, &count), 0);
	cr_expect_eq(count, 8000);
	eng_journal_drop(j, UINT64_MAX - 1);
	cr_expect_eq(eng_journal_room(j), ENG_JOURNAL_ENTRIES);
	cr_expect_eq(eng_journal_last(j), number);
	eng_journal_close(j);
}

Test(engine_journal, a_tag_used_again_does_not_inherit_entries)
{
	struct eng_journal *j = create(0);
	uint32_t a = add(j, &LAYER_A), b, tag;
	struct seen s = {0};

	append(j, a, 10);
	eng_journal_drop_layer(j, a);
	cr_expect_eq(eng_journal_find_layer(j, &LAYER_A, 8, 9, &tag), -ENOENT);
	b = add(j, &LAYER_B);
	cr_assert_eq(b, a, "the test wants the tag used again");
	append(j, b, 20);
	j = reopen(j);
	cr_assert_eq(eng_journal_each(j, b, 0, see, &s), 0);
	cr_assert_eq(s.count, 1);
	cr_expect_eq(s.runs[0].block, 20);
	eng_journal_close(j);
}

Test(engine_journal, layers_are_bounded_and_known_by_file)
{
	struct eng_journal *j = create(0);
	uint32_t tag = 0;

	for (uint32_t i = 0; i < ENG_JOURNAL_LAYERS; i++) {
		struct fmt_uuid id = {{100, (uint8_t)i}};

		cr_assert_eq(eng_journal_add_layer(j, &id, 1, i, &tag), 0);
	}
	cr_expect_eq(eng_journal_add_layer(j, &LAYER_A, 1, 1, &tag), -ENOSPC);
	cr_expect_eq(eng_journal_find_layer(j, &(struct fmt_uuid){{100, 5}}, 1, 5, &tag), 0);
	cr_expect_eq(eng_journal_find_layer(j, &(struct fmt_uuid){{100, 5}}, 1, 6, &tag), -EUCLEAN);
	cr_expect_eq(eng_journal_find_layer(j, &(struct fmt_uuid){{100, 5}}, 2, 5, &tag), -EUCLEAN);
	eng_journal_close(j);
}

/* T20 */
Test(engine_journal, another_stores_disks_or_boots_journal_is_refused)
{
	struct eng_journal *j = create(0), *got = NULL;

	eng_journal_close(j);
	cr_expect_eq(eng_journal_open(&io, &DISK, &DISK, &got), -EUCLEAN);
	cr_expect_eq(eng_journal_open(&io, &STORE, &STORE, &got), -ENOENT);
	boot = 1;
	cr_expect_eq(eng_journal_open(&io, &STORE, &DISK, &got), -EUCLEAN);
	boot = 0;
	open_error = -EPERM;
	cr_expect_eq(eng_journal_open(&io, &STORE, &DISK, &got), -EPERM);
	open_error = 0;
	memory_len--;
	cr_expect_eq(eng_journal_open(&io, &STORE, &DISK, &got), -EUCLEAN);
	memory_len++;
	cr_assert_eq(eng_journal_open(&io, &STORE, &DISK, &got), 0);
	eng_journal_close(got);
	eng_journal_remove(&io, &DISK);
	cr_expect_eq(eng_journal_open(&io, &STORE, &DISK, &got), -ENOENT);
}

Test(engine_journal, a_new_one_replaces_the_old_with_a_fresh_nonce)
{
	struct eng_journal *j = create(0);
	uint32_t tag = add(j, &LAYER_A);
	uint64_t nonce = eng_journal_nonce(j);

	append(j, tag, 1);
	eng_journal_close(j);
	j = create(1);
	cr_expect_neq(eng_journal_nonce(j), nonce);
	cr_expect_eq(eng_journal_find_layer(j, &LAYER_A, 8, 9, &tag), -ENOENT);
	cr_expect_eq(eng_journal_last(j), 1);
	eng_journal_close(j);
}

/* Whatever bytes another program left, nothing crashes, and no entry is made up of them. */
Test(engine_journal, random_damage_is_refused_or_harmless)
{
	struct eng_journal *j = create(0), *got;
	uint32_t tag = add(j, &LAYER_A), refused = 0;
	uint8_t *good;

	for (uint64_t i = 0; i < 50; i++)
		append(j, tag, i);
	eng_journal_close(j);
	good = malloc(memory_len);
	memcpy(good, memory, memory_len);
	for (size_t at = 0; at < 96 + 16 * 64 + 51 * 24; at++) {
		struct seen s = {0};
		int r;

		memcpy(memory, good, memory_len);
		memory[at] ^= 0x81;
		r = eng_journal_open(&io, &STORE, &DISK, &got);
		if (r == 0) {
			r = eng_journal_each(got, tag, 0, see, &s);
			eng_journal_close(got);
		}
		refused += r < 0;
		cr_assert(r == 0 || r == -EUCLEAN, "byte %zu: %d", at, r);
	}
	cr_expect_gt(refused, 500);
	free(good);
}
