/* SPDX-License-Identifier: MIT */
/*
 * engine_backing.c - what an image may name as its base, and what it may not. The images are made
 * here, byte by byte, so that nothing but the name differs.
 */
#include "engine/layer/backing.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/layer/qcow2.h"
#include "tests/fuzz/memory_io.h"

enum { IMAGE = 2048 }; /* header with name, L1 table; clusters of 512 bytes */

static struct eng_io *io;
static struct fmt_error err;
static char dir[512];

static void put32(uint8_t *p, uint32_t v)
{
	for (int i = 0; i < 4; i++)
		p[i] = (uint8_t)(v >> (24 - 8 * i));
}

/* An empty qcow2 overlay of 4 KiB. @backing, @format: "" for none. */
static void make_image(uint8_t image[IMAGE], const char *backing, const char *format)
{
	memset(image, 0, IMAGE);
	put32(image, 0x514649fb);
	put32(image + 4, 2);
	put32(image + 20, 9);
	put32(image + 28, 4096);
	put32(image + 36, 1);
	put32(image + 44, 1024);
	if (*format) {
		put32(image + 72, 0xe2792aca);
		put32(image + 76, (uint32_t)strlen(format));
		memcpy(image + 80, format, strlen(format));
	}
	put32(image + 12, 128);
	put32(image + 16, (uint32_t)strlen(backing));
	memcpy(image + 128, backing, strlen(backing));
}

static void write_file(const char *name, const void *bytes, size_t len)
{
	FILE *f = fopen(name, "wb");

	cr_assert(f && fwrite(bytes, 1, len, f) == len, "%s", name);
	fclose(f);
}

static void write_image(const char *name, const char *backing, const char *format)
{
	uint8_t image[IMAGE];

	make_image(image, backing, format);
	write_file(name, image, sizeof(image));
}

/* own/ with the images, allowed/ and outside/, each with a base; the test runs inside the directory. */
static void setup(void)
{
	const char *tmp = getenv("TMPDIR");

	snprintf(dir, sizeof(dir), "%s/backing-XXXXXX", tmp ? tmp : "/tmp");
	cr_assert(mkdtemp(dir) && chdir(dir) == 0);
	cr_assert(!mkdir("own", 0700) && !mkdir("own/sub", 0700) && !mkdir("allowed", 0700) &&
		  !mkdir("allowed/sub", 0700) && !mkdir("outside", 0700));
	write_file("own/base", "own", 3);
	write_file("own/sub/base", "own sub", 7);
	write_file("allowed/base", "allowed", 7);
	write_file("allowed/only", "only", 4);
	write_file("allowed/sub/base", "allowed sub", 11);
	write_file("outside/base", "outside", 7);
	cr_assert_eq(eng_io_posix_create(&io), 0);
}

static void teardown(void)
{
	char command[600];

	eng_io_destroy(io);
	snprintf(command, sizeof(command), "rm -rf '%s'", dir);
	cr_assert_eq(system(command), 0);
}

TestSuite(engine_backing, .init = setup, .fini = teardown, .timeout = 60);

/* Opens own/image, which names @backing; *@got: the start of what is read. */
static int try_open(const char *backing, const char *format, const char *allowed, char got[16])
{
	struct eng_qcow2 *q;
	int r;

	write_image("own/image", backing, format);
	memset(got, 0, 16);
	memset(&err, 0, sizeof(err));
	r = eng_qcow2_open(io, "own/image", &allowed, allowed ? 1 : 0, &err, &q);
	if (r < 0)
		return r;
	cr_assert_eq(eng_qcow2_read(q, got, 15, 0, &err), 0, "%s", err.text);
	eng_qcow2_close(q);
	return 0;
}

static void expect_reads(const char *backing, const char *allowed, const char *want)
{
	char got[16];
	int r = try_open(backing, "raw", allowed, got);

	cr_expect_eq(r, 0, "%s: %d: %s", backing, r, err.text);
	cr_expect_str_eq(got, want, "%s", backing);
}

static void expect_refused(const char *backing, const char *allowed, int code, const char *saying)
{
	char got[16];
	int r = try_open(backing, "raw", allowed, got);

	cr_expect_eq(r, code, "%s: %d: %s", backing, r, err.text);
	cr_expect(strstr(err.text, saying), "%s: \"%s\"", backing, err.text);
	cr_expect(strstr(err.text, "backing file \""), "%s", err.text);
}

static char *absolute(const char *rest)
{
	static char path[1024];

	snprintf(path, sizeof(path), "%s/%s", dir, rest);
	return path;
}

/* Q2-32 */
Test(engine_backing, files_of_the_own_directory_are_opened_however_they_are_spelled)
{
	expect_reads("base", NULL, "own");
	expect_reads("./base", NULL, "own");
	expect_reads(".//base", NULL, "own");
	expect_reads("sub/base", NULL, "own sub");
	expect_reads("sub/./base", NULL, "own sub");
	expect_reads("../own/base", NULL, "own");
	expect_reads("sub/../base", NULL, "own");
	expect_reads(absolute("own/base"), NULL, "own");
	expect_reads(absolute("own/sub/base"), NULL, "own sub");
}

/* Q2-32 */
Test(engine_backing, files_outside_are_refused)
{
	expect_refused("../outside/base", NULL, -EACCES, "outside");
	expect_refused("../allowed/base", NULL, -EACCES, "outside");
	expect_refused("sub/../../outside/base", NULL, -EACCES, "outside");
	expect_refused("sub/../sub/../../outside/base", "allowed", -EACCES, "outside");
	expect_refused(absolute("outside/base"), "allowed", -EACCES, "outside");
	expect_refused(absolute("own/../outside/base"), "allowed", -EACCES, "outside");
	expect_refused("/etc/passwd", NULL, -EACCES, "outside");
	expect_refused("/etc/passwd", "allowed", -EACCES, "outside");
	expect_refused("../own-not/base", NULL, -EACCES, "outside");
}

/* Q2-32 */
Test(engine_backing, files_of_allowed_directories_are_opened)
{
	expect_reads("../allowed/base", "allowed", "allowed");
	expect_reads("../allowed/base", "./allowed/", "allowed");
	expect_reads("../allowed/sub/base", "allowed", "allowed sub");
	expect_reads("../allowed/base", absolute("allowed"), "allowed");
	expect_reads(absolute("allowed/sub/base"), "allowed", "allowed sub");
	expect_reads(absolute("allowed/base"), "/", "allowed");
	expect_refused("../allowed/missing", "allowed", -ENOENT, "allowed/missing");
}

/* Q2-33 */
Test(engine_backing, plain_names_are_looked_for_in_the_own_directory_first)
{
	expect_reads("base", "allowed", "own");
	expect_reads("only", "allowed", "only");
	expect_refused("only", "outside", -ENOENT, "not in own, nor in the allowed");
	expect_refused("./only", "allowed", -ENOENT, "only");
}

/* Q2-34 */
Test(engine_backing, symbolic_links_are_never_followed_out)
{
	cr_assert(!symlink("../outside/base", "own/link") && !symlink("base", "own/inner") &&
		  !symlink("../outside", "own/linkdir") &&
		  !symlink("../allowed", "own/toallowed") && !symlink("allowed", "alias") &&
		  !symlink("/etc/passwd", "allowed/passwd") &&
		  !symlink("../outside", "allowed/linkdir"));
	expect_refused("link", NULL, -ELOOP, "symbolic link");
	expect_refused("inner", NULL, -ELOOP, "symbolic link");
	expect_refused("link", "outside", -ELOOP, "symbolic link");
	expect_refused("linkdir/base", NULL, -ELOOP, "symbolic link");
	expect_refused("sub/../linkdir/base", NULL, -ELOOP, "symbolic link");
	expect_refused("linkdir/../allowed/base", NULL, -EACCES, "outside");
	expect_refused("../allowed/passwd", "allowed", -ELOOP, "symbolic link");
	expect_refused("../allowed/linkdir/base", "allowed", -ELOOP, "symbolic link");
	/* A link that leads to a trusted directory is a way to spell it; its own path is opened. */
	expect_reads("toallowed/base", "allowed", "allowed");
	expect_reads("../allowed/base", "alias", "allowed");
	expect_reads("../alias/sub/base", "allowed", "allowed sub");
}

/* Q2-31 */
Test(engine_backing, names_that_are_no_path_are_refused)
{
	expect_refused("json:{\"driver\":\"file\"}", NULL, -ENOTSUP, "protocol");
	expect_refused("nbd://host/disk", NULL, -ENOTSUP, "protocol");
	expect_refused("nbd:unix:/run/x", "/", -ENOTSUP, "protocol");
	expect_refused("file:base", NULL, -ENOTSUP, "protocol");
	expect_refused("sub/", NULL, -EINVAL, "directory");
	expect_refused("..", NULL, -EINVAL, "directory");
	expect_refused("sub/..", NULL, -EINVAL, "directory");
	expect_refused(".", NULL, -EINVAL, "directory");
	write_file("own/a:b", "colon", 5);
	expect_reads("./a:b", NULL, "colon");
}

/* Q2-34 */
Test(engine_backing, what_is_no_regular_file_is_refused)
{
	cr_assert_eq(mkfifo("own/fifo", 0600), 0);
	expect_refused("fifo", NULL, -EINVAL, "regular");
	expect_refused("sub", NULL, -EISDIR, "irectory");
	expect_refused("base/base", NULL, -ENOTDIR, "irectory");
	expect_refused("/dev/zero", "/dev", -EINVAL, "regular");
}

/* Q2-34: a device would let an image read what its owner may not; as the image itself it is fine. */
Test(engine_backing, block_devices_are_no_backing_files)
{
	static struct memory_io m;
	uint8_t image[IMAGE];
	struct eng_qcow2 *q = NULL;

	make_image(image, "base", "raw");
	memory_io_init(&m);
	memory_io_add(&m, "image", image, sizeof(image));
	memory_io_add(&m, "base", "base", 4);
	m.files[0].block = true;
	cr_assert_eq(eng_qcow2_open(&m.io, "image", NULL, 0, &err, &q), 0, "%s", err.text);
	eng_qcow2_close(q);
	m.files[1].block = true;
	cr_expect_eq(eng_qcow2_open(&m.io, "image", NULL, 0, &err, &q), -EINVAL);
	cr_expect(strstr(err.text, "not a regular file"), "%s", err.text);
}

/* Q2-35 */
Test(engine_backing, the_format_is_what_the_image_records)
{
	char got[16];

	write_image("own/plain", "", "");
	write_image("own/stacked", "base", "raw");
	cr_expect_eq(try_open("base", "", NULL, got), 0, "%s", err.text);
	cr_expect_str_eq(got, "own");
	cr_expect_eq(try_open("plain", "", NULL, got), 0, "%s", err.text);
	cr_expect_str_eq(got, "", "read as raw");
	cr_expect_eq(try_open("plain", "raw", NULL, got), 0, "%s", err.text);
	cr_expect_str_eq(got, "QFI\xfb", "not read as raw");
	cr_expect_eq(try_open("stacked", "qcow2", NULL, got), 0, "%s", err.text);
	cr_expect_str_eq(got, "own");
	cr_expect_eq(try_open("stacked", "", NULL, got), -EACCES);
	cr_expect(strstr(err.text, "records no backing format"), "%s", err.text);
	cr_expect_eq(try_open("base", "qcow2", NULL, got), -EINVAL);
	cr_expect(strstr(err.text, "magic"), "%s", err.text);
	cr_expect_eq(try_open("base", "vmdk", NULL, got), -ENOTSUP);
	cr_expect(strstr(err.text, "\"vmdk\""), "%s", err.text);
}

/* Q2-36 */
Test(engine_backing, loops_are_refused)
{
	char got[16];

	cr_expect_eq(try_open("image", "qcow2", NULL, got), -ELOOP);
	cr_expect(strstr(err.text, "loop"), "%s", err.text);
	write_image("own/a", "image", "qcow2");
	write_image("own/b", "a", "qcow2");
	cr_expect_eq(try_open("b", "qcow2", NULL, got), -ELOOP);
	cr_assert_eq(link("own/image", "own/hardlink"), 0);
	write_image("own/a", "hardlink", "qcow2");
	cr_expect_eq(try_open("b", "qcow2", NULL, got), -ELOOP);
}

/* Q2-36 */
Test(engine_backing, chains_end_at_the_limit)
{
	static uint8_t images[ENG_QCOW2_MAX_DEPTH][IMAGE];
	static char names[ENG_QCOW2_MAX_DEPTH + 1][12];
	static struct memory_io m;
	struct eng_qcow2 *q = NULL;
	char got[5] = "";

	memory_io_init(&m);
	for (int i = 0; i <= ENG_QCOW2_MAX_DEPTH; i++)
		snprintf(names[i], sizeof(names[i]), "%d", i);
	for (int i = 0; i < ENG_QCOW2_MAX_DEPTH; i++) {
		make_image(images[i], names[i + 1], i + 1 < ENG_QCOW2_MAX_DEPTH ? "qcow2" : "raw");
		memory_io_add(&m, names[i], images[i], IMAGE);
	}
	memory_io_add(&m, names[ENG_QCOW2_MAX_DEPTH], "deep", 4);
	cr_expect_eq(eng_qcow2_open(&m.io, "0", NULL, 0, &err, &q), -E2BIG, "%s", err.text);
	cr_assert_eq(eng_qcow2_open(&m.io, "1", NULL, 0, &err, &q), 0, "%s", err.text);
	cr_expect_eq(eng_qcow2_depth(q), ENG_QCOW2_MAX_DEPTH);
	cr_expect_eq(eng_qcow2_read(q, got, 4, 0, &err), 0, "%s", err.text);
	cr_expect_str_eq(got, "deep");
	eng_qcow2_close(q);
}
