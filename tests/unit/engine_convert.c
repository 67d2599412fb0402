/* SPDX-License-Identifier: MIT */
/*
 * engine_convert.c - copies of images: what they hold, what they leave out, what a failed one leaves.
 * qemu-img, where it is installed, makes the qcow2 images and is the second opinion on them.
 */
#include <sys/stat.h>
#include <unistd.h>

#include "engine/image/image.h"
#include "engine/layer/index.h"
#include "engine/io/io_fault.h"
#include "tests/unit/engine_io_tmp.h"

#define SIZE (8u << 20)

static struct tmp t;
static struct fmt_error err;

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

TestSuite(engine_convert, .init = start, .fini = finish);

static uint8_t *random_bytes(size_t len)
{
	uint8_t *p = malloc(len);

	cr_assert(p != NULL);
	eng_io_random(t.io, p, len);
	return p;
}

/* A sparse raw file of @size with data at 1 MiB (100000 bytes), 3 MiB (written zeros), and its end. */
static void make_raw(const char *name, uint64_t size)
{
	struct eng_file *file = tmp_open(&t, t.io, name, FRESH);
	uint8_t *data = random_bytes(300000);
	uint8_t *zeros = calloc(1, 1u << 20);

	cr_assert_eq(eng_io_truncate(t.io, file, size), 0);
	cr_assert_eq(eng_io_pwrite(t.io, file, data, 100000, 1u << 20), 0);
	cr_assert_eq(eng_io_pwrite(t.io, file, zeros, 1u << 20, 3u << 20), 0);
	cr_assert_eq(eng_io_pwrite(t.io, file, data, 200000, size - 200000), 0);
	eng_io_close(t.io, file);
	free(data);
	free(zeros);
}

static uint8_t *load(const char *name, size_t *len)
{
	struct eng_file *file = tmp_open(&t, t.io, name, 0);
	struct eng_stat st;
	uint8_t *p;

	cr_assert_eq(eng_io_fstat(t.io, file, &st), 0);
	p = malloc(st.size + 1);
	cr_assert_eq(eng_io_pread(t.io, file, p, st.size, 0), (ssize_t)st.size);
	eng_io_close(t.io, file);
	*len = st.size;
	return p;
}

static void assert_same(const char *a, const char *b)
{
	size_t la, lb;
	uint8_t *pa = load(a, &la), *pb = load(b, &lb);

	cr_assert_eq(la, lb, "%s has %zu bytes, %s %zu", a, la, b, lb);
	for (size_t i = 0; i < la; i++)
		if (pa[i] != pb[i])
			cr_assert_fail("%s and %s differ at %zu", a, b, i);
	free(pa);
	free(pb);
}

static int convert(const char *src, const char *from, const char *dst, const char *to)
{
	struct eng_convert how = {.src_format = from, .dst_format = to};

	return eng_image_convert(t.io, tmp_path(&t, src), tmp_path(&t, dst), &how, &err);
}

static bool exists(const char *name)
{
	return access(tmp_path(&t, name), F_OK) == 0;
}

static int count_name(void *arg, const char *name)
{
	(void)name;
	++*(unsigned *)arg;
	return 0;
}

/* How many there are, whatever they are called. */
static unsigned files(void)
{
	unsigned n = 0;

	cr_assert_eq(eng_io_list(t.io, t.dir, count_name, &n), 0);
	return n;
}

/* False: no qemu-img here. */
static bool qemu_img(const char *fmt, const char *a, const char *b)
{
	char command[1024];
	int n;

	if (system("command -v qemu-img >/dev/null 2>&1"))
		return false;
	n = snprintf(command, sizeof(command), "exec >/dev/null; qemu-img ");
	snprintf(command + n, sizeof(command) - (size_t)n, fmt, a, b);
	cr_assert_eq(system(command), 0, "%s", command);
	return true;
}

/* IM-8 */
Test(engine_convert, raw_copy_is_the_same_and_leaves_holes_and_zeros_out)
{
	struct eng_stat st;

	make_raw("a", SIZE + 1000);
	cr_assert_eq(convert("a", NULL, "b", NULL), 0, "%s", err.text);
	assert_same("a", "b");
	cr_assert_eq(eng_io_stat(t.io, tmp_path(&t, "b"), &st), 0);
	cr_expect_lt(st.allocated, 600000u, "%llu bytes", (unsigned long long)st.allocated);
}

/* IM-8 */
Test(engine_convert, a_file_that_is_one_hole_stays_one)
{
	struct eng_file *file = tmp_open(&t, t.io, "c", FRESH);
	struct eng_stat st;

	cr_assert_eq(eng_io_truncate(t.io, file, 5ull << 30), 0);
	eng_io_close(t.io, file);
	cr_assert_eq(convert("c", "raw", "d", "raw"), 0, "%s", err.text);
	cr_assert_eq(eng_io_stat(t.io, tmp_path(&t, "d"), &st), 0);
	cr_expect_eq(st.size, 5ull << 30);
	cr_expect_eq(st.allocated, 0u);
}

/* IM-8 */
Test(engine_convert, compressed_qcow2_equals_what_qemu_img_makes_of_it)
{
	char a[128], b[128], c[128];

	make_raw("a", SIZE);
	strcpy(a, tmp_path(&t, "a"));
	strcpy(b, tmp_path(&t, "b.qcow2"));
	strcpy(c, tmp_path(&t, "c"));
	if (!qemu_img("convert -c -f raw -O qcow2 %s %s", a, b))
		cr_skip_test("no qemu-img");
	qemu_img("convert -f qcow2 -O raw %s %s", b, c);
	cr_assert_eq(convert("b.qcow2", NULL, "d", "raw"), 0, "%s", err.text);
	assert_same("c", "d");
	cr_assert_eq(convert("b.qcow2", "raw", "e", "raw"), 0, "%s", err.text);
	assert_same("b.qcow2", "e"); /* what the caller says is believed */
}

/* IM-8 */
Test(engine_convert, never_writes_over_a_file)
{
	make_raw("a", SIZE);
	make_raw("b", SIZE / 2);
	cr_assert_eq(convert("a", "raw", "b", "raw"), -EEXIST);
	cr_expect_neq(err.text[0], 0);
	cr_assert_eq(convert("b", "raw", "c", "raw"), 0);
	assert_same("b", "c");
	cr_assert_eq(convert("a", "raw", "a", "raw"), -EEXIST);
}

/* IM-8 */
Test(engine_convert, bad_formats_and_sources_make_nothing)
{
	make_raw("a", SIZE);
	cr_expect_eq(convert("a", "qcow2", "b", "raw"), -EINVAL);
	cr_expect_eq(convert("a", "vmo", "b", "raw"), -EBADMSG, "%s", err.text);
	cr_expect_eq(convert("a", "vhd", "b", "raw"), -EINVAL);
	cr_expect_eq(convert("a", "raw", "b", "vhd"), -EINVAL);
	cr_expect_eq(convert("none", NULL, "b", "raw"), -ENOENT);
	cr_expect_eq(convert(".", "raw", "b", "raw"), -EINVAL, "%s", err.text);
	cr_expect_eq(files(), 1u);
}

static int cancel_late(void *arg, uint64_t done, uint64_t total)
{
	uint64_t *calls = arg;

	cr_assert_leq(done, total);
	++*calls;
	return done > total / 4;
}

/* IM-8 */
Test(engine_convert, cancel_removes_the_target)
{
	static const char *const formats[] = {"raw", "vmo", "qcow2"};

	make_raw("a", SIZE);
	for (unsigned i = 0; i < 3; i++) {
		uint64_t calls = 0;
		struct eng_convert how = {.dst_format = formats[i],
					  .progress = cancel_late,
					  .arg = &calls};

		cr_assert_eq(eng_image_convert(t.io, tmp_path(&t, "a"), tmp_path(&t, "b"), &how,
					       &err),
			     -ECANCELED);
		cr_expect_gt(calls, 1u);
		cr_expect_eq(files(), 1u, "%s: something is left", formats[i]);
	}
}

static int count_done(void *arg, uint64_t done, uint64_t total)
{
	uint64_t *last = arg;

	(void)total;
	cr_assert_geq(done, *last);
	*last = done;
	return 0;
}

/* IM-8 */
Test(engine_convert, rate_limit_bounds_the_copy_and_progress_reaches_the_end)
{
	uint64_t last = 0, begin = eng_io_now_ns(t.io);
	struct eng_convert how = {.rate_limit = 4u << 20, .progress = count_done, .arg = &last};

	make_raw("a", SIZE); /* about 1.3 MiB of it written */
	cr_assert_eq(eng_image_convert(t.io, tmp_path(&t, "a"), tmp_path(&t, "b"), &how, &err), 0,
		     "%s", err.text);
	cr_expect_geq(eng_io_now_ns(t.io) - begin, 250000000u);
	cr_expect_eq(last, SIZE);
	assert_same("a", "b");
}

/* --- vmo --- */

static struct eng_layer *open_layer(const char *name)
{
	struct eng_layer_open how = {.path = tmp_path(&t, name), .kind = FMT_KIND_OVERLAY};
	struct eng_layer *layer = NULL;

	cr_assert_eq(eng_layer_open(t.io, &how, &err, &layer), 0, "%s", err.text);
	return layer;
}

/* IM-8, SL-1 */
Test(engine_convert, raw_to_vmo_and_back_is_the_same_and_sealed_in_between)
{
	struct eng_layer *layer;
	struct eng_stat st;

	make_raw("a", SIZE);
	cr_assert_eq(convert("a", NULL, "b.vmo", "vmo"), 0, "%s", err.text);
	cr_assert_eq(eng_io_stat(t.io, tmp_path(&t, "b.vmo"), &st), 0);
	cr_expect_lt(st.size, 700000u, "%llu bytes", (unsigned long long)st.size);
	layer = open_layer("b.vmo");
	cr_expect_eq(layer->hdr.state, FMT_STATE_SEALED);
	cr_expect_eq(eng_layer_verify(layer, &err), 0, "%s", err.text);
	eng_layer_put(layer);
	cr_assert_eq(convert("b.vmo", NULL, "c", "raw"), 0, "%s", err.text);
	assert_same("a", "c");
	cr_assert_eq(eng_io_stat(t.io, tmp_path(&t, "c"), &st), 0);
	cr_expect_lt(st.allocated, 700000u, "%llu bytes", (unsigned long long)st.allocated);
}

/* IM-8, SC-5 */
Test(engine_convert, image_that_ends_inside_a_sector_becomes_a_vmo_of_whole_ones)
{
	struct eng_stat st;
	uint8_t *a, *b;
	size_t la, lb;

	make_raw("a", SIZE + 100);
	cr_assert_eq(convert("a", "raw", "b.vmo", "vmo"), 0, "%s", err.text);
	cr_assert_eq(convert("b.vmo", "vmo", "c", "raw"), 0, "%s", err.text);
	cr_assert_eq(eng_io_stat(t.io, tmp_path(&t, "c"), &st), 0);
	cr_expect_eq(st.size, SIZE + 512);
	a = load("a", &la);
	b = load("c", &lb);
	cr_expect_eq(memcmp(a, b, la), 0);
	for (size_t i = la; i < lb; i++)
		cr_expect_eq(b[i], 0);
	free(a);
	free(b);
}

/* IM-1, IM-8 */
Test(engine_convert, overlays_of_a_chain_are_flattened_over_a_sealed_one)
{
	struct eng_image *image = NULL;
	uint8_t *data = random_bytes(1u << 20), *expected;
	size_t len;

	make_raw("a", SIZE);
	cr_assert_eq(convert("a", "raw", "b.vmo", "vmo"), 0, "%s", err.text);
	expected = load("a", &len);
	cr_assert_eq(eng_image_create(t.io, tmp_path(&t, "c.vmo"), "vmo", tmp_path(&t, "b.vmo"), 0,
				      &err),
		     0, "%s", err.text);
	cr_assert_eq(eng_image_open(t.io, tmp_path(&t, "c.vmo"), NULL, true, &err, &image), 0, "%s",
		     err.text);
	cr_assert_eq(eng_image_write(image, data, 1u << 20, 1048000, &err), 0, "%s", err.text);
	memcpy(expected + 1048000, data, 1u << 20);
	cr_assert_eq(eng_image_close(image), 0);
	cr_assert_eq(convert("c.vmo", NULL, "d", "raw"), 0, "%s", err.text);
	cr_assert_eq(convert("c.vmo", NULL, "e.vmo", "vmo"), 0, "%s", err.text);
	cr_assert_eq(convert("e.vmo", NULL, "f", "raw"), 0, "%s", err.text);
	free(data);
	data = load("d", &len);
	cr_expect_eq(memcmp(data, expected, len), 0);
	assert_same("d", "f");
	free(data);
	free(expected);
}

/* P6, CS-4 */
Test(engine_convert, rot_in_a_sealed_image_is_an_error_and_leaves_no_copy)
{
	struct eng_file *file;

	make_raw("a", SIZE);
	cr_assert_eq(convert("a", "raw", "b.vmo", "vmo"), 0, "%s", err.text);
	file = tmp_open(&t, t.io, "b.vmo", ENG_OPEN_WRITE);
	cr_assert_eq(eng_io_pwrite(t.io, file, "rotten", 6, FMT_DATA_OFFSET + 5000), 0);
	eng_io_close(t.io, file);
	cr_expect_eq(convert("b.vmo", NULL, "c", "raw"), -EBADMSG, "%s", err.text);
	cr_expect(!exists("c"));
}

/* SL-4 */
Test(engine_convert, sealed_parent_replaced_by_another_is_refused)
{
	struct eng_image *image = NULL;
	struct eng_file *file;
	uint8_t slot[FMT_PAGE];
	struct fmt_header hdr;
	struct eng_layer *layer;

	make_raw("a", SIZE);
	cr_assert_eq(convert("a", "raw", "b.vmo", "vmo"), 0, "%s", err.text);
	cr_assert_eq(eng_image_create(t.io, tmp_path(&t, "c.vmo"), "vmo", tmp_path(&t, "b.vmo"), 0,
				      &err),
		     0, "%s", err.text);
	layer = open_layer("b.vmo");
	hdr = layer->hdr;
	eng_layer_put(layer);
	hdr.seal_hash[0] ^= 1;
	hdr.seq++;
	fmt_header_encode(&hdr, slot);
	file = tmp_open(&t, t.io, "b.vmo", ENG_OPEN_WRITE);
	cr_assert_eq(eng_io_pwrite(t.io, file, slot, FMT_PAGE, hdr.seq % 2 * FMT_PAGE), 0);
	eng_io_close(t.io, file);
	cr_expect_eq(eng_image_open(t.io, tmp_path(&t, "c.vmo"), NULL, false, &err, &image),
		     -EUCLEAN, "%s", err.text);
	cr_expect(strstr(err.text, "SL-4"), "%s", err.text);
}

/* --- errors --- */

/* IM-8: each operation of a copy fails once; the copy fails, and leaves nothing. */
Test(engine_convert, any_failed_operation_fails_the_copy_and_removes_it, .timeout = 120)
{
	static const uint32_t ops[] = {
		ENG_FAULT_CREATE,     ENG_FAULT_PWRITE,         ENG_FAULT_FDATASYNC,
		ENG_FAULT_TRUNCATE,   ENG_FAULT_ALLOCATE,       ENG_FAULT_SYNC_DIR,
		ENG_FAULT_SPAWN,      ENG_FAULT_RING_CREATE,    ENG_FAULT_RING_READ,
		ENG_FAULT_RING_WRITE, ENG_FAULT_RING_FDATASYNC, ENG_FAULT_LOCK,
		ENG_FAULT_RENAME,
	};
	static const char *const formats[] = {"raw", "vmo", "qcow2"};
	struct eng_fault *fault = NULL;
	unsigned failed = 0;

	make_raw("a", SIZE);
	cr_assert_eq(eng_fault_create(t.io, &fault), 0);
	for (size_t i = 0; i < 3 * sizeof(ops) / sizeof(*ops); i++) {
		for (uint64_t skip = 0;; skip++) {
			int rule = eng_fault_add(fault, &(struct eng_fault_rule){
								.ops = ops[i / 3],
								.skip = skip,
								.error = -ENOSPC,
							});
			struct eng_convert how = {.dst_format = formats[i % 3],
						  .compress = i % 3 == 2 && skip % 2};
			int r = eng_image_convert(eng_fault_io(fault), tmp_path(&t, "a"),
						  tmp_path(&t, "b"), &how, &err);
			bool struck = eng_fault_struck(fault, rule) != 0;

			eng_fault_clear(fault);
			if (r == 0) {
				unlink(tmp_path(&t, "b"));
				if (!struck)
					break;
				/* A seal's give-back and space ahead of need can be done without. */
				cr_expect(ops[i / 3] & (ENG_FAULT_TRUNCATE | ENG_FAULT_ALLOCATE),
					  "op %#x, %llu", ops[i / 3], (unsigned long long)skip);
			} else {
				failed++;
				cr_expect(err.text[0]);
				cr_assert_eq(files(), 1u, "op %#x, %llu, %s", ops[i / 3],
					     (unsigned long long)skip, formats[i % 3]);
			}
		}
	}
	cr_expect_gt(failed, 20u);
	eng_fault_destroy(fault);
}

/* IM-8: from some transfer on, half of it and then none: a full disk, a broken one, either side. */
Test(engine_convert, disk_that_fails_in_the_middle_for_good_leaves_nothing, .timeout = 120)
{
	static const uint32_t ops[] = {ENG_FAULT_ANY_WRITE, ENG_FAULT_ANY_READ};
	static const char *const formats[] = {"raw", "vmo", "qcow2", "qcow2"};
	struct eng_fault *fault = NULL;
	unsigned failed = 0;

	make_raw("a", SIZE);
	cr_assert_eq(eng_fault_create(t.io, &fault), 0);
	for (unsigned i = 0; i < 64; i++) {
		struct eng_fault_rule rule = {
			.ops = ops[i % 2],
			.path = i % 2 ? "/a" : "/b",
			.skip = i / 16,
			.sticky = true,
			.error = i / 8 % 2 ? -EIO : -ENOSPC,
			.shorten = i / 2 % 2,
			.short_len = 1024,
		};
		struct eng_convert how = {.src_format = "raw",
					  .dst_format = formats[i % 4],
					  .compress = i % 4 == 3};
		int n = eng_fault_add(fault, &rule), r;

		cr_assert_geq(n, 0);
		r = eng_image_convert(eng_fault_io(fault), tmp_path(&t, "a"), tmp_path(&t, "b"),
				      &how, &err);
		if (eng_fault_struck(fault, n)) {
			failed++;
			cr_assert_eq(r, rule.error, "%u: %s", i, err.text);
			cr_assert_eq(files(), 1u, "%u", i);
		} else {
			cr_assert_eq(r, 0, "%s", err.text);
			unlink(tmp_path(&t, "b"));
		}
		eng_fault_clear(fault);
	}
	cr_expect_gt(failed, 30u);
	eng_fault_destroy(fault);
}
