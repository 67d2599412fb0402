/* SPDX-License-Identifier: MIT */
/*
 * engine_qcow2.c - what the reader gives is what qemu-img convert gives, for every kind of image that
 * qemu-img makes; damaged images give the right bytes or an error, within bounds. Tests that need
 * qemu-img are skipped without it.
 */
#include "engine/layer/qcow2.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <jansson.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/fuzz/memory_io.h"

static struct eng_io *io;
static struct fmt_error err;
static char dir[512];
static uint64_t seed = 0x9e3779b97f4a7c15;

static uint64_t next_random(uint64_t below)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return seed % below;
}

/* Runs a command in the test's directory; its output is dropped. */
static int try_sh(const char *format, va_list args)
{
	char command[8192], *line;
	int r;

	vsnprintf(command, sizeof(command), format, args);
	cr_assert_neq(asprintf(&line, "cd '%s' && { %s; } >log 2>&1", dir, command), -1);
	r = system(line);
	free(line);
	return r;
}

__attribute__((format(printf, 1, 2))) static void sh(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	cr_assert_eq(try_sh(format, args), 0, "failed: %s", format);
	va_end(args);
}

static void setup(void)
{
	const char *tmp = getenv("TMPDIR");

	/* First: what is made before a skip stays behind. */
	if (system("qemu-img --version >/dev/null 2>&1 && qemu-io --version >/dev/null 2>&1"))
		cr_skip_test("no qemu-img or no qemu-io");
	snprintf(dir, sizeof(dir), "%s/qcow2-XXXXXX", tmp ? tmp : "/tmp");
	cr_assert(mkdtemp(dir));
	cr_assert_eq(eng_io_posix_create(&io), 0);
}

static void teardown(void)
{
	char command[600];

	eng_io_destroy(io);
	snprintf(command, sizeof(command), "rm -rf '%s'", dir);
	cr_assert_eq(system(command), 0);
}

TestSuite(engine_qcow2, .init = setup, .fini = teardown, .timeout = 300);

static char *path_of(const char *name)
{
	static char path[2][1024];
	static int turn;

	turn = !turn;
	snprintf(path[turn], sizeof(path[turn]), "%s/%s", dir, name);
	return path[turn];
}

static uint8_t *slurp(const char *name, size_t *len)
{
	FILE *f = fopen(path_of(name), "rb");
	uint8_t *bytes;

	cr_assert(f, "%s", name);
	fseek(f, 0, SEEK_END);
	*len = (size_t)ftell(f);
	rewind(f);
	bytes = malloc(*len + 1);
	cr_assert_eq(fread(bytes, 1, *len, f), *len);
	fclose(f);
	return bytes;
}

static struct eng_qcow2 *opened(const char *name)
{
	struct eng_qcow2 *q = NULL;
	int r = eng_qcow2_open(io, path_of(name), NULL, 0, &err, &q);

	cr_assert_eq(r, 0, "%s: %d: %s", name, r, err.text);
	return q;
}

static void check_all_bytes(struct eng_qcow2 *q, const uint8_t *want, size_t size)
{
	uint8_t *got = malloc(size + 1);

	cr_assert_eq(eng_qcow2_size(q), size);
	cr_assert_eq(eng_qcow2_read(q, got, size, 0, &err), 0, "%s", err.text);
	cr_assert_eq(memcmp(got, want, size), 0);
	for (int i = 0; i < 100; i++) {
		uint64_t offset = next_random(size), len = next_random(i % 2 ? 5000 : 200000);

		if (len > size - offset)
			len = size - offset;
		memset(got, 0x5a, len + 1);
		cr_assert(eng_qcow2_read(q, got, len, offset, &err) == 0 &&
				  !memcmp(got, want + offset, len) && got[len] == 0x5a,
			  "at %lu, %lu bytes: %s", offset, len, err.text);
	}
	free(got);
}

/* Our map against the bytes, and against qemu-img's: data where it says data. */
static void check_map(struct eng_qcow2 *q, const char *name, const uint8_t *want, size_t size)
{
	uint8_t *is_data = malloc(size);
	uint64_t offset = 0, len, wrong = 0;
	enum eng_qcow2_state state;
	json_t *map, *range;
	uint32_t depth;
	size_t i;

	for (; offset < size; offset += len) {
		cr_assert_eq(eng_qcow2_extent(q, offset, &err, &len, &state, &depth), 0, "%s",
			     err.text);
		cr_assert(len && len <= size - offset);
		cr_assert_lt(depth, eng_qcow2_depth(q));
		memset(is_data + offset, state == ENG_QCOW2_DATA, len);
		for (i = offset; state != ENG_QCOW2_DATA && i < offset + len; i++)
			wrong += want[i] != 0;
	}
	cr_assert_eq(wrong, 0, "%s: not data, but not zeros", name);
	sh("qemu-img map -f qcow2 --output=json '%s' >map.json", name);
	map = json_load_file(path_of("map.json"), 0, NULL);
	cr_assert(map);
	json_array_foreach (map, i, range) {
		uint64_t start = json_integer_value(json_object_get(range, "start"));
		uint64_t n = json_integer_value(json_object_get(range, "length"));
		bool data = json_is_true(json_object_get(range, "data"));

		cr_assert_leq(start, size);
		if (n > size - start)
			n = size - start;
		for (uint64_t at = start; at < start + n; at++)
			wrong += is_data[at] != data;
		cr_assert_eq(wrong, 0, "%s: %lu bytes at %lu are %sdata for qemu-img", name, n,
			     start, data ? "" : "no ");
	}
	json_decref(map);
	free(is_data);
}

/* The image reads as qemu-img reads it. */
static void check_image(const char *name)
{
	struct eng_qcow2 *q = opened(name);
	uint8_t *want;
	size_t size;

	sh("qemu-img convert -f qcow2 -O raw '%s' want.raw", name);
	want = slurp("want.raw", &size);
	check_all_bytes(q, want, size);
	check_map(q, name, want, size);
	free(want);
	eng_qcow2_close(q);
}

/* Random writes, zeroes and discards; sector-aligned, as qemu-io wants them. */
static void scribble(const char *name, uint64_t size, int count)
{
	const uint64_t longest[] = {512, 4096, 66048, 300032};
	char commands[4096] = "";
	size_t used = 0;

	for (int i = 0; i < count; i++) {
		uint64_t offset = next_random(size / 512) * 512;
		uint64_t len = (next_random(longest[next_random(4)] / 512) + 1) * 512;
		uint64_t kind = next_random(6);

		if (len > size - offset)
			len = size - offset;
		if (kind == 0)
			used += (size_t)sprintf(commands + used, " -c 'write -z %lu %lu'", offset,
						len);
		else if (kind == 1)
			used += (size_t)sprintf(commands + used, " -c 'discard %lu %lu'", offset,
						len);
		else
			used += (size_t)sprintf(commands + used, " -c 'write -P %lu %lu %lu'",
						1 + next_random(255), offset, len);
	}
	sh("qemu-io -f qcow2%s '%s'", commands, name);
}

static void matrix(const char *options, int first_bits, int last_bits, int step)
{
	static const char *const preallocation[] = {"off", "metadata", "falloc"};
	static const uint64_t sizes[] = {7 << 20, (3 << 20) + 512, 1536};

	for (int bits = first_bits; bits <= last_bits; bits += step) {
		uint64_t size = sizes[bits % 3];

		for (int p = 0; p < 3; p++) {
			sh("rm -f a.qcow2 c.qcow2; qemu-img create -f qcow2 -o %s,cluster_size=%d,"
			   "preallocation=%s a.qcow2 %lu",
			   options, 1 << bits, preallocation[p], size);
			scribble("a.qcow2", size, 14);
			check_image("a.qcow2");
		}
		sh("qemu-img convert -c -f qcow2 -O qcow2 -o %s,cluster_size=%d a.qcow2 c.qcow2",
		   options, 1 << bits);
		check_image("c.qcow2");
		scribble("c.qcow2", size, 6); /* compressed and plain clusters side by side */
		check_image("c.qcow2");
	}
}

/* Q2-1 Q2-2 Q2-17 Q2-18 Q2-23 */
Test(engine_qcow2, version_2_reads_as_qemu_reads_it)
{
	matrix("compat=0.10", 9, 21, 3);
}

/* Q2-1 Q2-2 Q2-16 Q2-17 Q2-18 Q2-23 */
Test(engine_qcow2, version_3_reads_as_qemu_reads_it)
{
	matrix("compat=1.1", 9, 21, 2);
}

/* Q2-19 */
Test(engine_qcow2, subclusters_read_as_qemu_reads_them)
{
	matrix("compat=1.1,extended_l2=on", 14, 20, 2);
}

/* Q2-20 Q2-21 */
Test(engine_qcow2, backing_chains_read_as_qemu_reads_them)
{
	sh("truncate -s 2097700 base.raw; dd if=/dev/urandom of=base.raw bs=1000 seek=3 count=900 "
	   "conv=notrunc; printf '%%0100d' 7 >>base.raw");
	sh("qemu-img create -f qcow2 -F raw -b base.raw 1.qcow2 3M");
	scribble("1.qcow2", 3 << 20, 10);
	check_image("1.qcow2");
	sh("qemu-img create -f qcow2 -F qcow2 -b 1.qcow2 -o cluster_size=4k,compat=0.10 2.qcow2 2M");
	scribble("2.qcow2", 2 << 20, 10);
	check_image("2.qcow2");
	sh("qemu-img convert -c -f qcow2 -O qcow2 -B 1.qcow2 -F qcow2 2.qcow2 3.qcow2");
	check_image("3.qcow2");
	sh("qemu-img create -f qcow2 -F qcow2 -b 3.qcow2 -o extended_l2=on 4.qcow2 5244416");
	scribble("4.qcow2", 5244416, 10);
	check_image("4.qcow2");
	sh("qemu-img create -f qcow2 -F qcow2 -b 4.qcow2 5.qcow2");
	check_image("5.qcow2");
	struct eng_qcow2 *q = opened("5.qcow2");
	struct eng_qcow2_info info;

	cr_assert_eq(eng_qcow2_depth(q), 5); /* 3.qcow2 stands on 1.qcow2 */
	eng_qcow2_info(q, 1, &info);
	cr_expect_str_eq(info.format, "qcow2");
	cr_expect_str_eq(info.features, "extended-l2");
	cr_expect_str_eq(info.backing, "3.qcow2");
	cr_expect_str_eq(info.backing_format, "qcow2");
	cr_expect_eq(info.cluster_size, 65536);
	eng_qcow2_info(q, 4, &info);
	cr_expect_str_eq(info.format, "raw");
	cr_expect_str_eq(info.backing, "");
	cr_expect_eq(info.size, 2097800);
	eng_qcow2_close(q);
}

/* Q2-20 Q2-23: the first stream of each file has the same place; they are not taken for each other. */
Test(engine_qcow2, compressed_images_stand_on_compressed_images)
{
	sh("qemu-img create -f qcow2 a.qcow2 1M && qemu-io -f qcow2 -c 'write -P 1 0 1M' a.qcow2 && "
	   "qemu-img convert -c -f qcow2 -O qcow2 a.qcow2 1.qcow2 && "
	   "qemu-img create -f qcow2 -F qcow2 -b 1.qcow2 b.qcow2 && "
	   "qemu-io -f qcow2 -c 'write -P 2 64k 64k' b.qcow2 && "
	   "qemu-img convert -c -f qcow2 -O qcow2 -B 1.qcow2 -F qcow2 b.qcow2 2.qcow2");
	check_image("2.qcow2");
}

/* Q2-13 */
Test(engine_qcow2, internal_snapshots_are_ignored_and_resized_images_read)
{
	struct eng_qcow2_info info;
	struct eng_qcow2 *q;

	sh("qemu-img create -f qcow2 a.qcow2 1M");
	scribble("a.qcow2", 1 << 20, 8);
	sh("qemu-img snapshot -c one a.qcow2");
	scribble("a.qcow2", 1 << 20, 8);
	check_image("a.qcow2");
	q = opened("a.qcow2");
	eng_qcow2_info(q, 0, &info);
	cr_expect_eq(info.snapshots, 1);
	cr_expect_str_eq(info.features, "internal-snapshots");
	eng_qcow2_close(q);
	sh("qemu-img snapshot -d one a.qcow2 && qemu-img resize a.qcow2 3000320");
	check_image("a.qcow2");
	sh("qemu-img resize --shrink a.qcow2 70144");
	check_image("a.qcow2");
}

/* Q2-12 */
Test(engine_qcow2, a_dirty_image_is_read)
{
	sh("qemu-img create -f qcow2 -o lazy_refcounts=on a.qcow2 1M");
	scribble("a.qcow2", 1 << 20, 8);
	sh("qemu-img convert -f qcow2 -O raw a.qcow2 want.raw");
	sh("printf '\\1' | dd of=a.qcow2 bs=1 seek=79 conv=notrunc");
	struct eng_qcow2 *q = opened("a.qcow2");
	struct eng_qcow2_info info;
	size_t size;
	uint8_t *want = slurp("want.raw", &size);

	check_all_bytes(q, want, size);
	eng_qcow2_info(q, 0, &info);
	cr_expect_str_eq(info.features, "dirty, lazy-refcounts");
	free(want);
	eng_qcow2_close(q);
}

static void expect_open(const char *name, int want, const char *saying)
{
	struct eng_qcow2 *q = NULL;
	int r = eng_qcow2_open(io, path_of(name), NULL, 0, &err, &q);

	cr_expect_eq(r, want, "%s: %d, %s", name, r, err.text);
	cr_expect(strstr(err.text, saying), "%s: \"%s\"", name, err.text);
	cr_expect_null(q, "written on failure");
	eng_qcow2_close(q);
}

/* Q2-7 Q2-8 Q2-9 Q2-11 */
Test(engine_qcow2, what_is_not_read_is_refused_by_name)
{
	expect_open("missing", -ENOENT, "No such file");
	expect_open(".", -EISDIR, "directory");
	sh("head -c 100000 /dev/zero >raw; : >empty");
	expect_open("raw", -EINVAL, "magic");
	expect_open("empty", -EINVAL, "magic");
	sh("qemu-img create -f qcow2 -o data_file=d.raw a.qcow2 1M");
	expect_open("a.qcow2", -ENOTSUP, "external data file \"d.raw\"");
	/* Method 2 in the header: qemu-img's own LUKS set-up times the machine, and fails on a busy one. */
	sh("qemu-img create -f qcow2 b.qcow2 1M; printf '\\2' | dd of=b.qcow2 bs=1 seek=35 "
	   "conv=notrunc");
	expect_open("b.qcow2", -ENOTSUP, "LUKS");
	/* Not every qemu-img has zstd: feature bit 3 and type 1, as it would write them. */
	sh("qemu-img create -f qcow2 z.qcow2 1M; printf '\\10' | dd of=z.qcow2 bs=1 seek=79 "
	   "conv=notrunc; printf '\\1' | dd of=z.qcow2 bs=1 seek=104 conv=notrunc");
	expect_open("z.qcow2", -ENOTSUP, "zstd");
	sh("qemu-img create -f qcow2 c.qcow2 1M; printf '\\2' | dd of=c.qcow2 bs=1 seek=79 "
	   "conv=notrunc");
	expect_open("c.qcow2", -EUCLEAN, "marked corrupt");
}

Test(engine_qcow2, ranges_outside_the_disk_are_refused)
{
	enum eng_qcow2_state state;
	struct eng_qcow2 *q;
	uint8_t buf[16];
	uint64_t len;

	sh("qemu-img create -f qcow2 a.qcow2 1536");
	q = opened("a.qcow2");
	cr_expect_eq(eng_qcow2_read(q, buf, 1, 1535, &err), 0);
	cr_expect_eq(eng_qcow2_read(q, buf, 0, 1536, &err), 0);
	cr_expect_eq(eng_qcow2_read(q, buf, 1, 1536, &err), -EINVAL);
	cr_expect_eq(eng_qcow2_read(q, buf, 2, 1535, &err), -EINVAL);
	cr_expect_eq(eng_qcow2_read(q, buf, 16, UINT64_MAX - 8, &err), -EINVAL);
	cr_expect_eq(eng_qcow2_extent(q, 1536, &err, &len, &state, NULL), -EINVAL);
	cr_expect_eq(eng_qcow2_extent(q, 0, NULL, &len, &state, NULL), 0);
	cr_expect_eq(len, 1536);
	cr_expect_eq(state, ENG_QCOW2_HOLE);
	eng_qcow2_close(q);
}

/* An image with data, zeros and, when compressed, streams that share sectors. */
static uint8_t *small_image(const char *options, bool compressed, size_t *len, uint8_t **want,
			    size_t *size)
{
	sh("rm -f s.qcow2 t.qcow2; qemu-img create -f qcow2 -o %s s.qcow2 100352", options);
	scribble("s.qcow2", 100352, 16);
	if (compressed)
		sh("qemu-img convert -c -f qcow2 -O qcow2 -o %s s.qcow2 t.qcow2", options);
	sh("qemu-img convert -f qcow2 -O raw s.qcow2 want.raw");
	*want = slurp("want.raw", size);
	return slurp(compressed ? "t.qcow2" : "s.qcow2", len);
}

/* Q2-14 Q2-22 Q2-23, P6: a truncated image gives the right bytes or an error. */
static void truncate_everywhere(const char *options, bool compressed)
{
	size_t len, size, refused = 0, wrong = 0;
	uint8_t *want, *image = small_image(options, compressed, &len, &want, &size);
	uint8_t buf[512];

	for (size_t cut = 0; cut < len; cut += 1 + next_random(300)) {
		struct memory_io m;
		struct eng_qcow2 *q;

		memory_io_init(&m);
		memory_io_add(&m, "image", image, cut);
		if (eng_qcow2_open(&m.io, "image", NULL, 0, &err, &q) < 0) {
			refused++;
			continue;
		}
		for (size_t at = 0; at < size; at += sizeof(buf)) {
			int r = eng_qcow2_read(q, buf, sizeof(buf), at, &err);

			refused += r < 0;
			wrong += r < 0 ? r != -EUCLEAN : memcmp(buf, want + at, sizeof(buf)) != 0;
		}
		cr_assert_eq(wrong, 0, "cut at %zu: wrong bytes, or another error: %s", cut,
			     err.text);
		eng_qcow2_close(q);
	}
	cr_assert_gt(refused, 100);
	free(image);
	free(want);
}

Test(engine_qcow2, truncated_images_give_the_right_bytes_or_an_error)
{
	truncate_everywhere("compat=0.10,cluster_size=512", false);
	truncate_everywhere("cluster_size=4k", true);
	truncate_everywhere("cluster_size=16k,extended_l2=on", false);
}

/* Q2-3 to Q2-23: no crash, no hang, no allocation beyond two clusters, whatever the damage. */
static void flip(const char *options, bool compressed, int rounds)
{
	size_t len, size;
	uint8_t *want, *image = small_image(options, compressed, &len, &want, &size);
	uint8_t *bad = malloc(len), *buf = malloc(300000);
	int opened_ok = 0, violations = 0;

	for (int i = 0; i < rounds; i++) {
		/* Mostly the header, else anywhere: with small clusters half of that is tables. */
		size_t reach = i % 3 ? len : 128;
		struct memory_io m;
		struct eng_qcow2 *q;
		uint64_t offset = 0, n;
		enum eng_qcow2_state state;

		memcpy(bad, image, len);
		for (uint64_t flips = 1 + next_random(6); flips; flips--)
			bad[next_random(reach)] ^= (uint8_t)(1 << next_random(8));
		memory_io_init(&m);
		memory_io_add(&m, "image", bad, len);
		memset(&err, 0, sizeof(err));
		if (eng_qcow2_open(&m.io, "image", NULL, 0, &err, &q) < 0) {
			violations += !err.text[0];
			continue;
		}
		opened_ok++;
		for (int extents = 0; extents < 400 && offset < eng_qcow2_size(q); extents++) {
			uint64_t left = eng_qcow2_size(q) - offset;

			if (eng_qcow2_extent(q, offset, &err, &n, &state, NULL) < 0)
				n = left < 512 ? left : 512;
			violations += !n || n > left;
			(void)eng_qcow2_read(q, buf, n < 300000 ? n : 300000, offset, &err);
			offset += n;
		}
		eng_qcow2_close(q);
		violations += m.longest > 4u << 20 || m.reads > 1000000;
		cr_assert_eq(violations, 0, "round %d, %s", i, options);
	}
	cr_assert_gt(opened_ok, rounds / 10);
	free(bad);
	free(buf);
	free(image);
	free(want);
}

Test(engine_qcow2, random_damage_never_crashes_hangs_or_over_allocates)
{
	flip("compat=0.10,cluster_size=512", false, 1500);
	flip("cluster_size=512", true, 1500);
	flip("cluster_size=4k", true, 1500);
	flip("cluster_size=16k,extended_l2=on", false, 1500);
}

struct reader {
	struct eng_qcow2 *q;
	const uint8_t *want;
	size_t size;
	uint64_t seed;
	int wrong;
};

static void *read_at_random(void *arg)
{
	struct reader *me = arg;
	uint8_t *buf = malloc(100000);

	for (int i = 0; i < 1500; i++) {
		me->seed = me->seed * 6364136223846793005 + 1442695040888963407;
		size_t offset = (me->seed >> 20) % me->size, len = 1 + (me->seed >> 33) % 9000;

		if (len > me->size - offset)
			len = me->size - offset;
		me->wrong += eng_qcow2_read(me->q, buf, len, offset, NULL) < 0 ||
			     memcmp(buf, me->want + offset, len);
	}
	free(buf);
	return NULL;
}

Test(engine_qcow2, many_threads_read_at_once)
{
	struct reader readers[4];
	pthread_t threads[4];
	struct eng_qcow2 *q;
	uint8_t *want;
	size_t size;

	sh("qemu-img create -f qcow2 -o cluster_size=4k a.qcow2 4M");
	scribble("a.qcow2", 4 << 20, 24);
	sh("qemu-img convert -c -f qcow2 -O qcow2 -o cluster_size=4k a.qcow2 b.qcow2; "
	   "qemu-img create -f qcow2 -F qcow2 -b b.qcow2 c.qcow2");
	scribble("c.qcow2", 4 << 20, 8);
	sh("qemu-img convert -f qcow2 -O raw c.qcow2 want.raw");
	want = slurp("want.raw", &size);
	q = opened("c.qcow2");
	for (int i = 0; i < 4; i++) {
		readers[i] = (struct reader){.q = q, .want = want, .size = size, .seed = 77 + i};
		cr_assert_eq(pthread_create(&threads[i], NULL, read_at_random, &readers[i]), 0);
	}
	for (int i = 0; i < 4; i++) {
		pthread_join(threads[i], NULL);
		cr_expect_eq(readers[i].wrong, 0);
	}
	eng_qcow2_close(q);
	free(want);
}
