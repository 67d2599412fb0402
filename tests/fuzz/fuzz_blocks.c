/* SPDX-License-Identifier: MIT */
/*
 * fuzz_blocks.c - any bytes as a saved set of blocks (DF-8), with a checksum that matches, so that what is
 * behind it is looked at. Invariants:
 * - no crash, no undefined behaviour, no leak
 * - what is accepted is a set: its ranges ascend, do not touch, and count what the cardinality says
 * - its bytes, written again and read, hold the same ranges
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/diff/blocks.h"
#include "format/layer.h"
#include "format/le.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

#define HEAD 24u

static void check(bool ok, const char *what)
{
	if (!ok) {
		fprintf(stderr, "violated: %s\n", what);
		abort();
	}
}

struct seen {
	uint64_t end, count, hash;
	bool any;
};

static int look(void *arg, uint64_t first, uint64_t count)
{
	struct seen *s = arg;

	check(count > 0, "a range is not empty");
	check(!s->any || first > s->end, "ranges ascend and do not touch");
	check(first + count <= FMT_SIZE_MAX >> FMT_BLOCK_BITS_MIN, "blocks are in bounds");
	s->any = true;
	s->end = first + count;
	s->count += count;
	s->hash = (s->hash ^ first) * 0x9e3779b97f4a7c15ull + count;
	return 0;
}

static struct seen walk(const struct eng_blocks *set)
{
	struct seen s = {.any = false};

	eng_blocks_each(set, 0, UINT64_MAX, look, &s);
	check(s.count == eng_blocks_cardinality(set), "the ranges are what the set counts");
	return s;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	struct eng_blocks *set = NULL, *back = NULL;
	uint8_t *bytes = malloc(len + HEAD);
	struct seen before, after;
	void *written;
	size_t n;
	le64 csum;

	/* Magic and version are given; the number of chunks and all that follows is the input's. */
	memcpy(bytes, "VMIMGBLK\1\0\0", 12);
	memset(bytes + 12, 0, HEAD - 12);
	memcpy(bytes + 12, data, len < 1 ? len : 1);
	if (len > 1)
		memcpy(bytes + HEAD, data + 1, len - 1);
	n = HEAD + (len > 1 ? len - 1 : 0);
	csum = le64_make(fmt_block_csum(bytes + HEAD, n - HEAD));
	memcpy(bytes + 16, &csum, 8);
	if (eng_blocks_decode(bytes, n, NULL, &set) == 0) {
		before = walk(set);
		check(eng_blocks_encode(set, &written, &n) == 0, "a set can be written");
		check(eng_blocks_decode(written, n, NULL, &back) == 0, "and read again");
		after = walk(back);
		check(before.hash == after.hash && before.count == after.count,
		      "what was written is what is read");
		free(written);
	}
	eng_blocks_destroy(set);
	eng_blocks_destroy(back);
	free(bytes);
	return 0;
}
