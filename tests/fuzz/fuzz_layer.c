/* SPDX-License-Identifier: MIT */
/*
 * fuzz_layer.c - any bytes as header slots, log, pages or a journal. The first byte chooses; with
 * its high bit set the checksums are made good first, so that the rules behind them are reached.
 * Invariants:
 * - no crash, no undefined behaviour, and every refusal has a text
 * - what is accepted encodes again, and decodes to the same
 * - every run of an accepted record, page or journal is well formed
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "engine/layer/journal.h"
#include "format/layer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

#define SALT    0x5a17ull
#define LOG_LEN 0x6000u

static void check(bool ok, const char *what)
{
	if (!ok) {
		fprintf(stderr, "violated: %s\n", what);
		abort();
	}
}

static void put_csum(uint8_t *at, uint64_t value)
{
	le64 v = le64_make(value);

	memcpy(at, &v, sizeof(v));
}

static void check_refusal(int r, const struct fmt_error *err)
{
	check(r == -EUCLEAN || r == -EBADMSG || r == -ENOTSUP || r == -ENODATA, "a known refusal");
	check(memchr(err->text, 0, sizeof(err->text)) && err->text[0], "a refusal has a text");
}

/* --- header --- */

static void fuzz_header(uint8_t *slots, bool fix)
{
	uint8_t again[FMT_PAGE], twice[FMT_PAGE];
	struct fmt_header h;
	struct fmt_error err = {{0}};
	int r;

	for (unsigned i = 0; fix && i < FMT_HEADER_SLOTS; i++) {
		uint8_t *slot = slots + i * FMT_PAGE;

		put_csum(slot + offsetof(struct fmt_header_disk, csum),
			 XXH3_64bits(slot, offsetof(struct fmt_header_disk, csum)));
	}
	r = fmt_header_pick(slots, &h, &err);
	if (r < 0) {
		check_refusal(r, &err);
		return;
	}
	fmt_header_encode(&h, again);
	check(fmt_header_decode(again, &h, NULL) == 0, "an encoded header decodes");
	fmt_header_encode(&h, twice);
	check(memcmp(again, twice, FMT_PAGE) == 0, "a header comes back");
}

/* --- log --- */

static void reencode(const struct fmt_record *rec)
{
	static struct fmt_run runs[FMT_RECORD_RUNS_MAX];
	static uint64_t csums[FMT_RECORD_CSUMS_MAX];
	static uint8_t buf[2 << 20];
	struct fmt_record got;
	uint32_t n = 0;

	for (uint32_t i = 0; i < rec->runs; i++) {
		fmt_record_run(rec, i, &runs[i]);
		check(fmt_run_check(&runs[i], UINT64_MAX, FMT_SLOT_NONE, NULL) == 0,
		      "a run is one");
		for (uint32_t j = 0;
		     rec->csum_bytes && runs[i].kind == FMT_RUN_DATA && j < runs[i].count; j++, n++)
			csums[n] = fmt_record_csum(rec, n);
	}
	check(fmt_record_encode(rec, runs, csums, SALT, 512, buf, sizeof(buf)) > 0, "it encodes");
	check(fmt_record_decode(buf, sizeof(buf), SALT, &got, NULL) == 0, "it decodes");
	check(got.len == rec->len && got.seq == rec->seq && got.flags == rec->flags,
	      "it is the same");
	check(!memcmp(got.run_bytes, rec->run_bytes, rec->len - sizeof(struct fmt_record_disk)),
	      "its runs and checksums are");
}

static void fuzz_log(uint8_t *log, bool fix)
{
	for (size_t at = 0; at < LOG_LEN; at += 512) {
		struct fmt_record_disk *d = (struct fmt_record_disk *)(log + at);
		uint32_t len = le32_get(d->len);
		struct fmt_record rec;
		struct fmt_error err = {{0}};
		int r;

		if (fix && len >= sizeof(*d) && len <= LOG_LEN - at) {
			d->csum = le64_make(0);
			d->csum = le64_make(XXH3_64bits_withSeed(log + at, len, SALT));
		}
		r = fmt_record_decode(log + at, LOG_LEN - at, SALT, &rec, &err);
		if (r < 0)
			check_refusal(r, &err);
		else
			reencode(&rec);
	}
}

/* --- pages --- */

static volatile uint64_t sink;

static void fuzz_page(uint8_t *page, enum fmt_page_type type, bool fix)
{
	struct fmt_page_disk *d = (struct fmt_page_disk *)page;
	uint32_t level = type == FMT_PAGE_INNER ? 1 : 0, count;
	struct fmt_error err = {{0}};
	uint64_t end = 0;
	int r;

	if (fix) {
		d->csum = le64_make(0);
		d->csum = le64_make(XXH3_64bits_withSeed(page, FMT_PAGE, SALT ^ 0x1000));
	}
	r = fmt_page_check(page, type, level, SALT, 0x1000, &count, &err);
	if (r < 0) {
		check_refusal(r, &err);
		return;
	}
	for (uint32_t i = 0; i < count; i++) {
		struct fmt_run run;

		if (type != FMT_PAGE_LEAF) {
			sink = type == FMT_PAGE_INNER ? fmt_inner_key(page, i)
						      : fmt_csum_get(page, i);
			continue;
		}
		fmt_leaf_run(page, i, &run);
		check(fmt_run_check(&run, UINT64_MAX, FMT_SLOT_NONE, NULL) == 0, "a run is one");
		check(run.block >= end, "runs are sorted and apart");
		end = run.block + run.count;
	}
}

/* --- journal: shared memory is the input --- */

static uint8_t *shm;
static size_t shm_len;

static int fake_open(struct eng_io *io, const char *name, size_t *len, void **ret)
{
	(void)io;
	(void)name;
	*len = shm_len;
	*ret = shm;
	return 0;
}

static int fake_unlink(struct eng_io *io, const char *name)
{
	(void)io;
	(void)name;
	return -ENOENT;
}

static int fake_create(struct eng_io *io, const char *name, size_t len, void **ret)
{
	(void)io;
	(void)name;
	shm = aligned_alloc(64, (len + 63) & ~(size_t)63);
	shm_len = len;
	*ret = shm;
	return shm ? 0 : -ENOMEM;
}

static void fake_unmap(struct eng_io *io, void *map, size_t len)
{
	(void)io;
	(void)map;
	(void)len;
}

static void fake_bytes(struct eng_io *io, void *buf, size_t len)
{
	(void)io;
	memset(buf, 7, len);
}

static void fake_boot_id(struct eng_io *io, uint8_t id[16])
{
	fake_bytes(io, id, 16);
}

static int each_entry(void *arg, uint64_t number, const struct fmt_run *run)
{
	uint64_t *last = arg;

	check(number > *last, "numbers rise");
	*last = number;
	check(fmt_run_check(run, UINT64_MAX, FMT_SLOT_NONE, NULL) == 0, "a run is one");
	return 0;
}

/* A good journal with the input laid over its start, past the ids. */
static void fuzz_journal(const uint8_t *data, size_t len)
{
	static const struct eng_io_ops ops = {
		.shm_create = fake_create,
		.shm_open = fake_open,
		.shm_unlink = fake_unlink,
		.shm_unmap = fake_unmap,
		.random = fake_bytes,
		.boot_id = fake_boot_id,
	};
	static const struct fmt_uuid id = {{1}};
	static struct eng_io io = {.ops = &ops};
	const size_t skip = 64;
	struct fmt_run run = {.block = 1, .slot = 2, .count = 3};
	struct eng_journal *j;
	uint64_t number, last = 0;
	uint32_t tag;
	int r;

	if (eng_journal_create(&io, &id, &id, 0, &j) < 0)
		return;
	check(eng_journal_add_layer(j, &id, 1, 2, &tag) == 0, "room for a layer");
	for (int i = 0; i < 3; i++)
		check(eng_journal_append(j, tag, &run, &number) == 0, "room for an entry");
	eng_journal_close(j);
	memcpy(shm + skip, data, len < shm_len - skip ? len : shm_len - skip);
	r = eng_journal_open(&io, &id, &id, &j);
	check(r == 0 || r == -EUCLEAN, "opened or refused");
	if (r == 0) {
		check(eng_journal_room(j) <= ENG_JOURNAL_ENTRIES, "room is bounded");
		for (tag = 0; tag < ENG_JOURNAL_LAYERS; tag++, last = 0) {
			r = eng_journal_each(j, tag, 0, each_entry, &last);
			check(r == 0 || r == -EUCLEAN, "replayed or refused");
		}
		eng_journal_drop(j, UINT64_MAX - 1);
		eng_journal_close(j);
	}
	free(shm);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	static uint8_t buf[LOG_LEN];
	bool fix;
	int which;

	if (len < 1)
		return 0;
	fix = data[0] & 0x80;
	which = (data[0] & 0x7f) % 6;
	memset(buf, 0, sizeof(buf));
	memcpy(buf, data + 1, len - 1 < sizeof(buf) ? len - 1 : sizeof(buf));
	switch (which) {
	case 0: fuzz_header(buf, fix); break;
	case 1: fuzz_log(buf, fix); break;
	case 2: fuzz_page(buf, FMT_PAGE_LEAF, fix); break;
	case 3: fuzz_page(buf, FMT_PAGE_INNER, fix); break;
	case 4: fuzz_page(buf, FMT_PAGE_CSUM, fix); break;
	default: fuzz_journal(data + 1, len - 1); break;
	}
	return 0;
}
