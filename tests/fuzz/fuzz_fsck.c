/* SPDX-License-Identifier: MIT */
/*
 * fuzz_fsck.c - the checker on a small sealed overlay with bytes changed. The first byte's low bit asks
 * for checksums made good afterwards, so that the rules behind them are reached; then come changes of
 * three bytes each: offset (16 bits) and value. Invariants:
 * - no crash, no undefined behaviour, and an end
 * - a finding has a rule, a place and a message
 * - what has no findings has a header that counts, and says nothing else than before
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "format/layer.h"
#include "fsck/fsck.h"
#include "tests/fuzz/memory_io.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

#define SALT     0x5a17ull
#define LOG_LEN  0x1000u
#define DATA     0x3000u
#define INDEX    0x6000u /* behind three slots */
#define CSUMS    0x7000u
#define FILE_LEN 0x8000u
#define ID(n)    ((struct fmt_uuid){{[0] = (n), [6] = 0x40, [8] = 0x80}})

static uint8_t sound[FILE_LEN], file[FILE_LEN];
static size_t findings;

static void check(bool ok, const char *what)
{
	if (!ok) {
		fprintf(stderr, "violated: %s\n", what);
		abort();
	}
}

/* --- the sound overlay --- */

static void build_pages(struct fmt_header *h)
{
	const struct fmt_run leaf[] = {{3, 0, 1, FMT_RUN_DATA},
				       {4, FMT_SLOT_NONE, 1, FMT_RUN_ZERO},
				       {9, 2, 1, FMT_RUN_DATA}};
	struct fmt_seal_hash *hash = fmt_seal_hash_create();
	uint64_t csums[3] = {0};

	check(hash != NULL, "memory");
	csums[0] = fmt_block_csum(sound + DATA, 4096);
	csums[2] = fmt_block_csum(sound + DATA + 8192, 4096);
	fmt_leaf_encode(leaf, 3, SALT, INDEX, sound + INDEX);
	fmt_csum_encode(csums, 3, SALT, CSUMS, sound + CSUMS);
	fmt_seal_hash_add(hash, sound + INDEX, 2 * FMT_PAGE);
	fmt_seal_hash_end(hash, h->seal_hash);
	fmt_seal_hash_destroy(hash);
}

static void build(void)
{
	const struct fmt_run data[] = {{3, 0, 2, FMT_RUN_DATA}, {9, 2, 1, FMT_RUN_DATA}};
	const struct fmt_run zeros = {4, FMT_SLOT_NONE, 1, FMT_RUN_ZERO};
	struct fmt_header h = {
		.kind = FMT_KIND_OVERLAY,
		.state = FMT_STATE_FROZEN,
		.block_bits = 12,
		.seq = 1,
		.layer_id = ID(1),
		.size = 16 * 4096,
		.salt = SALT,
		.data_offset = DATA,
		.log0_len = LOG_LEN,
		.log_granule = 512,
		.log_segments = 1,
		.log_seq = 2,
		.index_offset = INDEX,
		.index_runs = 3,
		.csum_offset = CSUMS,
		.slots = 3,
	};
	struct fmt_record rec = {.seq = 1, .flags = FMT_REC_DURABLE_FIRST, .runs = 2};

	memset(sound + DATA, 0x61, 3 * 4096);
	fmt_record_encode(&rec, data, NULL, SALT, 512, sound + FMT_LOG0_OFFSET, LOG_LEN);
	rec = (struct fmt_record){.seq = 2, .flags = FMT_REC_DURABLE_FIRST, .runs = 1};
	fmt_record_encode(&rec, &zeros, NULL, SALT, 512, sound + FMT_LOG0_OFFSET + 512,
			  LOG_LEN - 512);
	fmt_header_encode(&h, sound + FMT_PAGE);
	build_pages(&h);
	h.seq = 2;
	h.state = FMT_STATE_SEALED;
	fmt_header_encode(&h, sound);
}

/* --- checksums made good --- */

static void put_csum(uint8_t *at, uint64_t value)
{
	le64 v = le64_make(value);

	memcpy(at, &v, sizeof(v));
}

static void refit_record(uint8_t *at, size_t room)
{
	struct fmt_record_disk d;

	memcpy(&d, at, sizeof(d));
	if (le32_get(d.len) < sizeof(d) || le32_get(d.len) > room)
		return;
	put_csum(at + offsetof(struct fmt_record_disk, csum), 0);
	put_csum(at + offsetof(struct fmt_record_disk, csum),
		 XXH3_64bits_withSeed(at, le32_get(d.len), SALT));
}

static void refit(void)
{
	for (unsigned i = 0; i < FMT_HEADER_SLOTS; i++)
		put_csum(file + i * FMT_PAGE + offsetof(struct fmt_header_disk, csum),
			 XXH3_64bits(file + i * FMT_PAGE, offsetof(struct fmt_header_disk, csum)));
	for (unsigned at = 0; at < LOG_LEN; at += 512)
		refit_record(file + FMT_LOG0_OFFSET + at, LOG_LEN - at);
	for (uint64_t at = INDEX; at < FILE_LEN; at += FMT_PAGE) {
		put_csum(file + at + offsetof(struct fmt_page_disk, csum), 0);
		put_csum(file + at + offsetof(struct fmt_page_disk, csum),
			 XXH3_64bits_withSeed(file + at, FMT_PAGE, SALT ^ at));
	}
}

/* --- the check --- */

static int file_stat(struct eng_io *io, const char *path, struct eng_stat *ret)
{
	(void)io;
	(void)path;
	*ret = (struct eng_stat){.size = FILE_LEN, .ino = 2, .is_regular = true};
	return 0;
}

static int file_lock(struct eng_io *io, struct eng_file *on)
{
	(void)io;
	(void)on;
	return 0;
}

static void take_finding(void *arg, const struct fsck_finding *f)
{
	(void)arg;
	findings++;
	check(f->rule && f->rule[0] && f->where && f->where[0] && f->message && f->message[0],
	      "a finding says what, where and why");
}

/* Nothing found: the header is there, and data, log and pages are as they were. */
static void check_sound(bool refitted)
{
	struct fmt_error err = {""};
	struct fmt_header h;

	check(fmt_header_pick(file, &h, &err) == 0, "a sound overlay has a header");
	if (refitted || h.state != FMT_STATE_SEALED)
		return;
	check(memcmp(file + DATA, sound + DATA, 4096) == 0, "sound data is unchanged");
	check(memcmp(file + DATA + 8192, sound + DATA + 8192, FILE_LEN - DATA - 8192) == 0,
	      "sound pages are unchanged");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	struct eng_io_ops ops;
	struct memory_io memory;
	struct fsck_summary sum;
	struct fmt_error err = {""};
	bool fix = len && data[0] & 1;
	int r;

	if (!sound[0])
		build();
	memcpy(file, sound, FILE_LEN);
	for (size_t i = 1; i + 3 <= len; i += 3)
		file[(data[i] | data[i + 1] << 8) % FILE_LEN] = data[i + 2];
	if (fix)
		refit();
	memory_io_init(&memory);
	ops = *memory.io.ops;
	ops.stat = file_stat;
	ops.lock = file_lock;
	memory.io.ops = &ops;
	memory_io_add(&memory, "image.vmo", file, FILE_LEN);
	findings = 0;
	r = fsck_run(&memory.io, "image.vmo", take_finding, NULL, &err, &sum);
	check(r == 0 || (r == -ENOTSUP && err.text[0]), "checked, or not supported");
	check(findings || !(sum.corruptions + sum.leaks), "what is counted is reported");
	check(len > 1 || (r == 0 && !findings), "the overlay is sound");
	if (r == 0 && !findings)
		check_sound(fix);
	return 0;
}
