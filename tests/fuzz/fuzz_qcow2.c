/* SPDX-License-Identifier: MIT */
/*
 * fuzz_qcow2.c - any bytes as an image: opened, mapped and read through the engine's reader, with a
 * raw file and a second copy as possible backing files. The seeds in corpus/ were made by qemu-img;
 * written* by vmimg convert, with clusters of 512 bytes; subclusters by hand, to be small. Invariants:
 * - no crash, no undefined behaviour, no leak; bounded memory and time
 * - every extent is inside the disk, and one that is not data reads as zeros
 * - two reads of one place give the same bytes
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/layer/qcow2.h"
#include "format/qcow2.h"
#include "tests/fuzz/memory_io.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

enum { EXTENTS = 64, READ = 70000 };

static void check(bool ok, const char *what)
{
	if (!ok) {
		fprintf(stderr, "violated: %s\n", what);
		abort();
	}
}

static void read_extent(struct eng_qcow2 *q, uint64_t offset, uint64_t len,
			enum eng_qcow2_state state)
{
	static uint8_t first[READ], second[READ];
	struct fmt_error err;
	size_t n = len < READ ? (size_t)len : READ;

	if (eng_qcow2_read(q, first, n, offset, &err) < 0)
		return;
	check(eng_qcow2_read(q, second, n, offset, &err) == 0, "a second read works");
	check(!memcmp(first, second, n), "two reads agree");
	for (size_t i = 0; i < n && state != ENG_QCOW2_DATA; i++)
		check(!first[i], "what is not data reads as zeros");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	static struct memory_io m;
	struct fmt_error err;
	struct eng_qcow2 *q;
	uint64_t offset = 0, size;

	memory_io_init(&m);
	memory_io_add(&m, "image", data, len);
	memory_io_add(&m, "base.raw", "raw base", 8);
	memory_io_add(&m, "base.qcow2", data, len);
	if (eng_qcow2_open(&m.io, "image", NULL, 0, &err, &q) < 0) {
		check(memchr(err.text, 0, sizeof(err.text)) && err.text[0], "a refusal has a text");
		return 0;
	}
	size = eng_qcow2_size(q);
	for (int i = 0; i < EXTENTS && offset < size; i++) {
		enum eng_qcow2_state state;
		uint32_t depth;
		uint64_t got;

		if (eng_qcow2_extent(q, offset, &err, &got, &state, &depth) < 0)
			got = size - offset < 512 ? size - offset : 512;
		else {
			check(got && got <= size - offset, "an extent is inside the disk");
			check(depth < eng_qcow2_depth(q), "a file of the chain answers");
			read_extent(q, offset, got, state);
		}
		offset += got;
	}
	check(m.longest <= 2u << FMT_QCOW2_MAX_CLUSTER_BITS, "reads are bounded");
	eng_qcow2_close(q);
	return 0;
}
