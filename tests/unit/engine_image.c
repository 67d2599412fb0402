/* SPDX-License-Identifier: MIT */
/*
 * engine_image.c - image files outside a store: chains found by id, written, read and reopened; who may
 * open what; extents; what damage and missing files are told as.
 */
#include <pthread.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <unistd.h>

#include "engine/image/image.h"
#include "engine/layer/layer.h"
#include "tests/unit/engine_io_tmp.h"

#define MIB  (1ull << 20)
#define SIZE (4 * MIB)

static struct tmp t;
static struct fmt_error err;
static uint64_t seed = 1;

static void start(void)
{
	const char *where = getenv("TMPDIR");

	tmp_init(&t, where ? where : "/tmp");
	memset(&err, 0, sizeof(err));
}

static void finish(void)
{
	tmp_fini(&t);
}

TestSuite(engine_image, .init = start, .fini = finish);

/* --- helpers --- */

static uint64_t rnd(uint64_t below)
{
	seed = seed * 6364136223846793005u + 1442695040888963407u;
	return (seed >> 33) % below;
}

static void fill(uint8_t *p, size_t len)
{
	for (size_t i = 0; i < len; i++)
		p[i] = (uint8_t)(rnd(255) + 1);
}

static void put_file(const char *name, const void *data, size_t len)
{
	struct eng_file *file = tmp_open(&t, t.io, name, FRESH);

	cr_assert_eq(eng_io_pwrite(t.io, file, data, len, 0), 0);
	eng_io_close(t.io, file);
}

static void create(const char *name, const char *format, const char *base, uint64_t size)
{
	cr_assert_eq(eng_image_create(t.io, tmp_path(&t, name), format,
				      base ? tmp_path(&t, base) : NULL, size, &err),
		     0, "%s", err.text);
}

static int try_open(const char *name, bool writable, struct eng_image **ret)
{
	return eng_image_open(t.io, tmp_path(&t, name), NULL, writable, &err, ret);
}

static struct eng_image *open_image(const char *name, bool writable)
{
	struct eng_image *image = NULL;

	cr_assert_eq(try_open(name, writable, &image), 0, "%s", err.text);
	return image;
}

static void expect_refused(const char *name, bool writable, int code)
{
	struct eng_image *image = NULL;
	int r = try_open(name, writable, &image);

	cr_expect_eq(r, code, "%s: got %d, expected %d: %s", name, r, code, err.text);
	cr_expect_neq(err.text[0], 0);
	cr_expect_null(image);
	eng_image_close(image);
}

static void write_at(struct eng_image *image, uint8_t *model, uint64_t offset, size_t len)
{
	fill(model + offset, len);
	cr_assert_eq(eng_image_write(image, model + offset, len, offset, &err), 0, "%s", err.text);
}

static void expect_same(struct eng_image *image, const uint8_t *model, size_t size)
{
	uint8_t *buf = malloc(size);

	cr_assert_eq(eng_image_size(image), size);
	memset(buf, 0xee, size);
	cr_assert_eq(eng_image_read(image, buf, size, 0, &err), 0, "%s", err.text);
	for (size_t i = 0; i < size; i++)
		if (buf[i] != model[i])
			cr_assert_fail("byte %zu is %#x, expected %#x", i, buf[i], model[i]);
	free(buf);
}

static void expect_holds(const char *name, const uint8_t *model, size_t size)
{
	struct eng_image *image = open_image(name, false);

	expect_same(image, model, size);
	cr_assert_eq(eng_image_close(image), 0);
}

/* Changes an overlay's (or sidecar's) header, past every rule of the engine. */
static void edit_header(const char *name, void (*edit)(struct fmt_header *hdr))
{
	struct eng_file *file = tmp_open(&t, t.io, name, ENG_OPEN_WRITE);
	uint8_t slots[2 * FMT_PAGE];
	struct fmt_header hdr;

	cr_assert_eq(eng_io_pread(t.io, file, slots, sizeof(slots), 0), (ssize_t)sizeof(slots));
	cr_assert_eq(fmt_header_pick(slots, &hdr, &err), 0, "%s", err.text);
	edit(&hdr);
	hdr.seq++;
	fmt_header_encode(&hdr, slots);
	cr_assert_eq(eng_io_pwrite(t.io, file, slots, FMT_PAGE, hdr.seq % 2 * FMT_PAGE), 0);
	eng_io_close(t.io, file);
}

static void poke(const char *name, uint64_t offset, size_t len)
{
	struct eng_file *file = tmp_open(&t, t.io, name, ENG_OPEN_WRITE);
	uint8_t *junk = malloc(len);

	memset(junk, 0x5a, len);
	cr_assert_eq(eng_io_pwrite(t.io, file, junk, len, offset), 0);
	eng_io_close(t.io, file);
	free(junk);
}

static bool exists(const char *name)
{
	return access(tmp_path(&t, name), F_OK) == 0;
}

static void move(const char *from, const char *to)
{
	cr_assert_eq(rename(tmp_path(&t, from), tmp_path(&t, to)), 0);
}

static void copy_file(const char *from, const char *to)
{
	struct eng_file *file = tmp_open(&t, t.io, from, 0);
	struct eng_stat st;
	char *buf;

	cr_assert_eq(eng_io_fstat(t.io, file, &st), 0);
	buf = malloc(st.size);
	cr_assert_eq(eng_io_pread(t.io, file, buf, st.size, 0), (ssize_t)st.size);
	eng_io_close(t.io, file);
	put_file(to, buf, st.size);
	free(buf);
}

/* False: no qemu-img here. */
static bool make_qcow2(const char *raw, const char *qcow2)
{
	char command[512];

	snprintf(command, sizeof(command),
		 "qemu-img convert -c -f raw -O qcow2 %s %s >/dev/null 2>&1", tmp_path(&t, raw),
		 tmp_path(&t, qcow2));
	if (system("command -v qemu-img >/dev/null 2>&1"))
		return false;
	cr_assert_eq(system(command), 0, "%s", command);
	return true;
}

/* --- reading and writing --- */

/* IM-5 */
Test(engine_image, raw_and_vmo_hold_what_was_written)
{
	static const char *const formats[] = {"raw", "vmo"};

	for (int f = 0; f < 2; f++) {
		uint8_t *model = calloc(1, SIZE);
		struct eng_image *image;

		create(formats[f], formats[f], NULL, SIZE);
		expect_holds(formats[f], model, SIZE);
		image = open_image(formats[f], true);
		for (int i = 0; i < 100; i++) {
			uint64_t offset = rnd(SIZE), len = rnd(20000) + 1;

			write_at(image, model, offset, len < SIZE - offset ? len : SIZE - offset);
		}
		expect_same(image, model, SIZE);
		cr_expect_eq(eng_image_flush(image, &err), 0, "%s", err.text);
		cr_expect_eq(eng_image_close(image), 0);
		expect_holds(formats[f], model, SIZE);
		free(model);
	}
}

/* IM-1, IM-5 */
Test(engine_image, chain_of_three_on_a_raw_base_reads_as_written_after_every_reopen)
{
	static const char *const names[] = {"base.raw", "one.vmo", "two.vmo", "three.vmo"};
	uint8_t *model = malloc(SIZE);

	fill(model, SIZE);
	put_file("base.raw", model, SIZE);
	for (int i = 1; i < 4; i++) {
		create(names[i], "vmo", names[i - 1], 0);
		for (int round = 0; round < 3; round++) {
			struct eng_image *image = open_image(names[i], true);

			for (int w = 0; w < 20; w++)
				write_at(image, model, rnd(SIZE - 30000), rnd(30000) + 1);
			expect_same(image, model, SIZE);
			cr_assert_eq(eng_image_close(image), 0);
			expect_holds(names[i], model, SIZE);
		}
	}
	free(model);
}

/* IM-1 */
Test(engine_image, lower_images_keep_what_they_held)
{
	uint8_t *low = calloc(1, SIZE), *high = calloc(1, SIZE);
	struct eng_image *image;

	create("low.vmo", "vmo", NULL, SIZE);
	image = open_image("low.vmo", true);
	write_at(image, low, 5000, 10000);
	eng_image_close(image);
	memcpy(high, low, SIZE);
	create("high.vmo", "vmo", "low.vmo", 0);
	image = open_image("high.vmo", true);
	write_at(image, high, 5123, 100);
	eng_image_close(image);
	expect_holds("low.vmo", low, SIZE);
	expect_holds("high.vmo", high, SIZE);
	free(low);
	free(high);
}

/* IM-1 */
Test(engine_image, overlay_on_a_compressed_qcow2_reads_through)
{
	uint8_t *model = calloc(1, SIZE);
	struct eng_image *image;

	fill(model + MIB, MIB);
	put_file("a.raw", model, SIZE);
	if (!make_qcow2("a.raw", "a.qcow2"))
		cr_skip_test("no qemu-img");
	expect_holds("a.qcow2", model, SIZE);
	expect_refused("a.qcow2", true, -EROFS);
	create("a.vmo", "vmo", "a.qcow2", 0);
	image = open_image("a.vmo", true);
	write_at(image, model, MIB + 777, 5000);
	write_at(image, model, 100, 50);
	eng_image_close(image);
	expect_holds("a.vmo", model, SIZE);
	free(model);
}

/* SC-5, LH-11 */
Test(engine_image, overlay_larger_than_its_base_has_zeros_there)
{
	uint8_t *model = calloc(1, SIZE);
	struct eng_image *image;

	fill(model, 5000);
	put_file("base.raw", model, 5000);
	create("a.vmo", "vmo", "base.raw", SIZE);
	expect_holds("a.vmo", model, SIZE);
	image = open_image("a.vmo", true);
	write_at(image, model, 4999, 2);
	eng_image_close(image);
	expect_holds("a.vmo", model, SIZE);
	create("b.vmo", "vmo", "a.vmo", 2 * SIZE);
	image = open_image("b.vmo", false);
	cr_expect_eq(eng_image_size(image), 2 * SIZE);
	eng_image_close(image);
	free(model);
}

/* BQ-6, BQ-11 */
Test(engine_image, ranges_beyond_the_end_and_writes_to_a_reader_are_refused)
{
	struct eng_image *image;
	char buf[512] = {0};

	create("a.vmo", "vmo", NULL, SIZE);
	image = open_image("a.vmo", true);
	cr_expect_eq(eng_image_read(image, buf, 512, SIZE - 511, &err), -EINVAL);
	cr_expect_eq(eng_image_write(image, buf, 512, UINT64_MAX - 100, &err), -EINVAL);
	cr_expect_eq(eng_image_read(image, buf, 0, SIZE, &err), 0);
	cr_expect_eq(eng_image_read(image, buf, 512, SIZE - 512, &err), 0);
	eng_image_close(image);
	image = open_image("a.vmo", false);
	cr_expect_eq(eng_image_write(image, buf, 512, 0, &err), -EROFS);
	cr_expect_eq(eng_image_flush(image, &err), 0);
	eng_image_close(image);
	cr_expect_eq(eng_image_close(NULL), 0);
}

struct user {
	pthread_t thread;
	struct eng_image *image;
	uint8_t *model;
	uint64_t from, to;
	unsigned failures;
};

static void *use(void *arg)
{
	struct user *u = arg;
	uint8_t buf[9000];

	for (int i = 0; i < 300; i++) {
		uint64_t offset = u->from + (uint64_t)i * 7919 % (u->to - u->from - sizeof(buf));

		if (i % 3 == 0) {
			memset(u->model + offset, i, sizeof(buf));
			u->failures += eng_image_write(u->image, u->model + offset, sizeof(buf),
						       offset, NULL) != 0;
		}
		u->failures += eng_image_read(u->image, buf, sizeof(buf), offset, NULL) != 0 ||
			       memcmp(buf, u->model + offset, sizeof(buf)) != 0;
	}
	return NULL;
}

/* Any thread may call (image.h). */
Test(engine_image, threads_share_an_open_image)
{
	uint8_t *model = malloc(SIZE);
	struct user users[8];
	struct eng_image *image;

	fill(model, SIZE);
	put_file("base.raw", model, SIZE);
	create("a.vmo", "vmo", "base.raw", 0);
	image = open_image("a.vmo", true);
	for (uint64_t i = 0; i < 8; i++) {
		users[i] = (struct user){.image = image,
					 .model = model,
					 .from = i * SIZE / 8,
					 .to = (i + 1) * SIZE / 8};
		cr_assert_eq(pthread_create(&users[i].thread, NULL, use, &users[i]), 0);
	}
	for (int i = 0; i < 8; i++) {
		pthread_join(users[i].thread, NULL);
		cr_expect_eq(users[i].failures, 0u);
	}
	expect_same(image, model, SIZE);
	eng_image_close(image);
	expect_holds("a.vmo", model, SIZE);
	free(model);
}

/* --- who may open what --- */

/* IM-4 */
Test(engine_image, writable_image_is_locked)
{
	static const char *const names[] = {"a.raw", "a.vmo"};

	for (int i = 0; i < 2; i++) {
		struct eng_image *image;

		create(names[i], names[i] + 2, NULL, SIZE);
		image = open_image(names[i], true);
		expect_refused(names[i], true, -EBUSY);
		eng_image_close(image);
		eng_image_close(open_image(names[i], true));
	}
}

static void freeze(struct fmt_header *hdr)
{
	hdr->state = FMT_STATE_FROZEN;
}

static void set_store(struct fmt_header *hdr)
{
	hdr->store_id.b[0] = 1;
}

static void set_journal(struct fmt_header *hdr)
{
	eng_io_boot_id(t.io, hdr->boot_id);
	hdr->journal_nonce = 1;
}

static void set_old_journal(struct fmt_header *hdr)
{
	hdr->boot_id[0] ^= 1;
}

/* IM-6 */
Test(engine_image, frozen_layers_and_bases_are_read_only)
{
	create("a.vmo", "vmo", NULL, SIZE);
	edit_header("a.vmo", freeze);
	expect_refused("a.vmo", true, -EROFS);
	eng_image_close(open_image("a.vmo", false));
	create("b.raw", "raw", NULL, SIZE);
	eng_image_close(open_image("b.raw", true));
	create("b.vmo", "vmo", "b.raw", 0);
	expect_refused("b.raw", true, -EROFS);
	eng_image_close(open_image("b.raw", false));
}

/* IM-3 */
Test(engine_image, layers_of_a_store_are_read_only_and_untouched_while_it_is_open)
{
	create("a.vmo", "vmo", NULL, SIZE);
	create("above.vmo", "vmo", "a.vmo", 0);
	edit_header("a.vmo", set_store);
	expect_refused("a.vmo", true, -EROFS);
	eng_image_close(open_image("a.vmo", false));
	edit_header("a.vmo", set_journal);
	expect_refused("a.vmo", false, -EBUSY);
	expect_refused("above.vmo", false, -EBUSY);
	edit_header("a.vmo", set_old_journal);
	eng_image_close(open_image("a.vmo", false));
	cr_expect_eq(eng_image_create(t.io, tmp_path(&t, "c.vmo"), "vmo", tmp_path(&t, "a.vmo"), 0,
				      &err),
		     -EBUSY);
}

static void unknown_ro_compat(struct fmt_header *hdr)
{
	hdr->ro_compat = 1ull << 40;
}

/* FB-1 */
Test(engine_image, unknown_read_only_feature_forbids_writing_only)
{
	create("a.vmo", "vmo", NULL, SIZE);
	edit_header("a.vmo", unknown_ro_compat);
	expect_refused("a.vmo", true, -EROFS);
	eng_image_close(open_image("a.vmo", false));
}

/* --- finding parents --- */

/* IM-1 */
Test(engine_image, parents_are_found_by_id_whatever_they_are_called)
{
	uint8_t *model = calloc(1, SIZE);
	struct eng_image *image;

	fill(model, SIZE);
	put_file("base.raw", model, SIZE);
	create("one.vmo", "vmo", "base.raw", 0);
	create("two.vmo", "vmo", "one.vmo", 0);
	image = open_image("two.vmo", true);
	write_at(image, model, 100000, 100000);
	eng_image_close(image);
	move("one.vmo", "uno.vmo");
	move("base.raw", "basis");
	move("base.raw.vmr", "basis.vmr");
	expect_holds("two.vmo", model, SIZE);
	free(model);
}

/* IM-1 */
Test(engine_image, parents_may_lie_in_base_dir_and_nowhere_else)
{
	uint8_t *model = calloc(1, SIZE);
	struct eng_image *image = NULL;

	fill(model, SIZE);
	cr_assert_eq(mkdir(tmp_path(&t, "bases"), 0700), 0);
	put_file("bases/base.raw", model, SIZE);
	create("a.vmo", "vmo", "bases/base.raw", 0);
	expect_refused("a.vmo", false, -ENOENT);
	cr_expect(strstr(err.text, "a.vmo") && strstr(err.text, t.dir), "%s", err.text);
	cr_assert_eq(eng_image_open(t.io, tmp_path(&t, "a.vmo"), tmp_path(&t, "bases"), false, &err,
				    &image),
		     0, "%s", err.text);
	expect_same(image, model, SIZE);
	eng_image_close(image);
	free(model);
}

/* IM-1, BY-4 */
Test(engine_image, missing_parent_is_named_by_its_id)
{
	char text[FMT_UUID_TEXT];
	struct fmt_header hdr;
	uint8_t slots[2 * FMT_PAGE];
	struct eng_file *file;

	create("a.vmo", "vmo", NULL, SIZE);
	create("b.vmo", "vmo", "a.vmo", 0);
	file = tmp_open(&t, t.io, "a.vmo", 0);
	cr_assert_eq(eng_io_pread(t.io, file, slots, sizeof(slots), 0), (ssize_t)sizeof(slots));
	eng_io_close(t.io, file);
	cr_assert_eq(fmt_header_pick(slots, &hdr, &err), 0);
	fmt_uuid_format(&hdr.layer_id, text);
	unlink(tmp_path(&t, "a.vmo"));
	expect_refused("b.vmo", false, -ENOENT);
	cr_expect(strstr(err.text, text), "%s", err.text);
	cr_expect(strstr(err.text, "b.vmo"), "%s", err.text);
}

/* BY-4 */
Test(engine_image, two_files_with_the_parents_id_are_refused)
{
	create("a.vmo", "vmo", NULL, SIZE);
	create("b.vmo", "vmo", "a.vmo", 0);
	copy_file("a.vmo", "c.vmo");
	expect_refused("b.vmo", false, -ENOTUNIQ);
	unlink(tmp_path(&t, "a.vmo"));
	eng_image_close(open_image("b.vmo", false));
}

/* SC-3 */
Test(engine_image, base_changed_behind_our_back_is_refused)
{
	uint8_t *model = calloc(1, SIZE);
	struct timeval times[2] = {{1000, 0}, {1000, 0}};

	put_file("base.raw", model, SIZE);
	create("a.vmo", "vmo", "base.raw", 0);
	create("b.vmo", "vmo", "base.raw", 0);
	eng_image_close(open_image("b.vmo", false));
	cr_assert_eq(utimes(tmp_path(&t, "base.raw"), times), 0);
	expect_refused("a.vmo", false, -EUCLEAN);
	cr_expect_eq(eng_image_create(t.io, tmp_path(&t, "c.vmo"), "vmo", tmp_path(&t, "base.raw"),
				      0, &err),
		     -EUCLEAN);
	cr_expect(!exists("c.vmo"));
	free(model);
}

static void be_older(struct fmt_header *hdr)
{
	hdr->generation += 7;
}

static void be_larger(struct fmt_header *hdr)
{
	hdr->size *= 2;
}

static void be_coarser(struct fmt_header *hdr)
{
	hdr->block_bits = 16;
}

/* LH-7, LH-11 */
Test(engine_image, parents_that_cannot_be_are_refused)
{
	static void (*const edits[])(struct fmt_header *) = {be_older, be_larger, be_coarser};
	static const int codes[] = {-EUCLEAN, -ENOTSUP, -EUCLEAN};
	char low[32], mid[32], high[32];

	for (int i = 0; i < 3; i++) {
		snprintf(low, sizeof(low), "low%d.vmo", i);
		snprintf(mid, sizeof(mid), "mid%d.vmo", i);
		snprintf(high, sizeof(high), "high%d.vmo", i);
		create(low, "vmo", NULL, SIZE);
		create(mid, "vmo", low, 0);
		create(high, "vmo", mid, 0);
		edit_header(mid, edits[i]);
		expect_refused(high, false, codes[i]);
	}
}

/* LH-3, LH-4 */
Test(engine_image, one_torn_header_slot_is_survived_two_are_not)
{
	uint8_t *model = calloc(1, SIZE);
	struct eng_image *image;

	create("a.vmo", "vmo", NULL, SIZE);
	image = open_image("a.vmo", true);
	write_at(image, model, 12345, 6789);
	eng_image_close(image);
	poke("a.vmo", 0, 100); /* slot 1 holds the header */
	expect_holds("a.vmo", model, SIZE);
	create("b.vmo", "vmo", "a.vmo", 0);
	expect_holds("b.vmo", model, SIZE);
	poke("a.vmo", FMT_PAGE + 0x60, 8);
	expect_refused("a.vmo", false, -EBADMSG);
	expect_refused("b.vmo", false, -ENOENT);
	cr_expect(strstr(err.text, "a.vmo"), "the unreadable file is named: %s", err.text);
	free(model);
}

/* --- creating --- */

static int try_create(const char *name, const char *format, const char *base, uint64_t size)
{
	int r = eng_image_create(t.io, tmp_path(&t, name), format, base ? tmp_path(&t, base) : NULL,
				 size, &err);

	cr_expect(r == 0 || err.text[0]);
	return r;
}

/* IM-2 */
Test(engine_image, bad_creates_make_nothing)
{
	create("a.raw", "raw", NULL, SIZE);
	cr_expect_eq(try_create("a.raw", "raw", NULL, SIZE), -EEXIST);
	cr_expect_eq(try_create("a.raw", "vmo", "a.raw", SIZE), -EEXIST);
	cr_expect_eq(try_create("b", "vmo", NULL, 0), -EINVAL);
	cr_expect_eq(try_create("b", "raw", NULL, 0), -EINVAL);
	cr_expect_eq(try_create("b", "vmo", NULL, 513), -EINVAL);
	cr_expect_eq(try_create("b", "vmo", NULL, FMT_SIZE_MAX + 512), -EINVAL);
	cr_expect_eq(try_create("b", "raw", NULL, UINT64_MAX), -EINVAL);
	cr_expect_eq(try_create("b", "raw", "a.raw", SIZE), -EINVAL);
	cr_expect_eq(try_create("b", "qcow2", NULL, SIZE), -EINVAL);
	cr_expect_eq(try_create("b", "vmo", "a.raw", SIZE / 2), -EINVAL);
	cr_expect_eq(try_create("b", "vmo", "none", 0), -ENOENT);
	cr_expect_eq(try_create("none/b", "raw", NULL, SIZE), -ENOENT);
	cr_expect(!exists("b"));
	cr_expect(!exists("a.raw.vmr"), "a refused create leaves no sidecar");
	put_file("empty", "", 0);
	cr_expect_eq(try_create("b", "vmo", "empty", 0), -EINVAL);
	cr_expect_eq(try_create("b", "vmo", "empty", SIZE), -EINVAL);
}

/* --- extents and info --- */

static void expect_extent(struct eng_image *image, uint64_t offset, uint64_t end, uint8_t state,
			  uint32_t depth)
{
	struct eng_extent e = {0};

	cr_assert_eq(eng_image_extent(image, offset, &e, &err), 0, "%s", err.text);
	cr_expect_eq(e.start, offset);
	cr_expect_eq(e.start + e.length, end, "at %llu: ends at %llu, expected %llu",
		     (unsigned long long)offset, (unsigned long long)(e.start + e.length),
		     (unsigned long long)end);
	cr_expect_eq(e.state, state, "at %llu: %d", (unsigned long long)offset, e.state);
	cr_expect_eq(e.depth, depth, "at %llu: %u", (unsigned long long)offset, e.depth);
}

/* IM-7 */
Test(engine_image, extents_say_which_layer_holds_what)
{
	uint8_t *model = calloc(1, SIZE);
	struct eng_image *image;
	struct eng_extent e;

	create("base.raw", "raw", NULL, SIZE);
	image = open_image("base.raw", true);
	write_at(image, model, MIB, MIB);
	eng_image_close(image);
	create("one.vmo", "vmo", "base.raw", 2 * SIZE);
	image = open_image("one.vmo", true);
	write_at(image, model, MIB + 8192, 4096);
	eng_image_close(image);
	create("two.vmo", "vmo", "one.vmo", 0);
	image = open_image("two.vmo", true);
	write_at(image, model, 3 * MIB + 100, 1);
	expect_extent(image, 0, MIB, ENG_EXTENT_HOLE, 2);
	expect_extent(image, MIB, MIB + 8192, ENG_EXTENT_DATA, 2);
	expect_extent(image, MIB + 5, MIB + 8192, ENG_EXTENT_DATA, 2);
	expect_extent(image, MIB + 8192, MIB + 12288, ENG_EXTENT_DATA, 1);
	expect_extent(image, MIB + 12288, 2 * MIB, ENG_EXTENT_DATA, 2);
	expect_extent(image, 2 * MIB, 3 * MIB, ENG_EXTENT_HOLE, 2);
	expect_extent(image, 3 * MIB, 3 * MIB + 4096, ENG_EXTENT_DATA, 0);
	expect_extent(image, SIZE, 2 * SIZE, ENG_EXTENT_HOLE, 2);
	cr_expect_eq(eng_image_extent(image, 2 * SIZE, &e, &err), -EINVAL);
	eng_image_close(image);
	free(model);
}

struct told {
	unsigned count;
	char text[8][300];
};

static void tell(void *arg, const struct eng_image_info *info)
{
	struct told *told = arg;
	const char *name = strrchr(info->filename, '/');
	const char *backing = info->backing ? strrchr(info->backing, '/') : "-";

	cr_assert_eq(info->depth, told->count);
	snprintf(told->text[told->count++ % 8], 300, "%s %s %s %llu %u %s %d%d", name, info->format,
		 backing, (unsigned long long)info->virtual_size, info->block_size,
		 info->state ? info->state : "-", !fmt_uuid_is_none(&info->layer),
		 !fmt_uuid_is_none(&info->parent));
}

/* IM-1 */
Test(engine_image, info_tells_of_the_chain_top_first)
{
	struct told told = {0};

	create("base.raw", "raw", NULL, SIZE);
	create("one.vmo", "vmo", "base.raw", 0);
	edit_header("one.vmo", freeze);
	create("two.vmo", "vmo", "one.vmo", 2 * SIZE);
	cr_assert_eq(eng_image_info(t.io, tmp_path(&t, "two.vmo"), NULL, true, tell, &told, &err),
		     0, "%s", err.text);
	cr_assert_eq(told.count, 3u);
	cr_expect_str_eq(told.text[0], "/two.vmo vmo /one.vmo 8388608 4096 active 11");
	cr_expect_str_eq(told.text[1], "/one.vmo vmo /base.raw 4194304 4096 frozen 11");
	cr_expect_str_eq(told.text[2], "/base.raw raw - 4194304 0 - 00");
	told.count = 0;
	unlink(tmp_path(&t, "base.raw"));
	cr_expect_eq(eng_image_info(t.io, tmp_path(&t, "one.vmo"), NULL, true, tell, &told, &err),
		     -ENOENT, "%s", err.text);
	told.count = 0;
	cr_expect_eq(eng_image_info(t.io, tmp_path(&t, "one.vmo"), NULL, false, tell, &told, &err),
		     0);
	cr_expect_str_eq(told.text[0], "/one.vmo vmo - 4194304 4096 frozen 11");
}

/* IM-1 */
Test(engine_image, info_and_extents_go_on_into_a_qcow2_chain)
{
	uint8_t *data = calloc(1, SIZE);
	struct told told = {0};
	struct eng_image *image;
	char command[512];

	fill(data + MIB, MIB);
	put_file("base.raw", data, SIZE);
	free(data);
	if (!make_qcow2("base.raw", "low.qcow2"))
		cr_skip_test("no qemu-img");
	snprintf(command, sizeof(command),
		 "cd %s && qemu-img create -q -f qcow2 -F qcow2 -b low.qcow2 "
		 "high.qcow2",
		 t.dir);
	cr_assert_eq(system(command), 0);
	create("top.vmo", "vmo", "high.qcow2", 0);
	cr_assert_eq(eng_image_info(t.io, tmp_path(&t, "top.vmo"), NULL, true, tell, &told, &err),
		     0, "%s", err.text);
	cr_assert_eq(told.count, 3u);
	cr_expect_str_eq(told.text[0], "/top.vmo vmo /high.qcow2 4194304 4096 active 11");
	cr_expect_str_eq(told.text[1], "/high.qcow2 qcow2 /low.qcow2 4194304 65536 - 00");
	cr_expect_str_eq(told.text[2], "/low.qcow2 qcow2 - 4194304 65536 - 00");
	image = open_image("top.vmo", false);
	expect_extent(image, MIB, 2 * MIB, ENG_EXTENT_DATA, 2);
	eng_image_close(image);
}

/* LH-2, LH-4 */
Test(engine_image, probe_knows_the_formats)
{
	const char *format = NULL;

	create("a", "raw", NULL, SIZE);
	create("b", "vmo", NULL, SIZE);
	cr_assert_eq(eng_image_probe(t.io, tmp_path(&t, "a"), &format, &err), 0);
	cr_expect_str_eq(format, "raw");
	cr_assert_eq(eng_image_probe(t.io, tmp_path(&t, "b"), &format, &err), 0);
	cr_expect_str_eq(format, "vmo");
	put_file("c", "QFI\xfb", 4);
	cr_assert_eq(eng_image_probe(t.io, tmp_path(&t, "c"), &format, &err), 0);
	cr_expect_str_eq(format, "qcow2");
	cr_expect_eq(eng_image_probe(t.io, tmp_path(&t, "none"), &format, &err), -ENOENT);
	cr_expect_eq(eng_image_probe(t.io, t.dir, &format, &err), -EINVAL);
}
