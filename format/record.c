/* SPDX-License-Identifier: MIT */
/*
 * record.c - the records of the map log and the runs they hold (spec/format.md ML-2..ML-6, RU-*).
 * A record that passed fmt_record_decode() has runs that can be used without another check of their
 * shape; their bounds in the disk and the layer are fmt_run_check()'s. Pure functions, any thread.
 */
#include "format/layer.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#define XXH_STATIC_LINKING_ONLY /* a hash state on the stack */
#include <xxhash.h>

#include "format/run.h"

static const uint8_t MAGIC[4] = {'V', 'L', 'O', 'G'};

/* Over the record with a checksum of zero; @d is a copy of its header. */
static uint64_t record_csum(struct fmt_record_disk d, const uint8_t *body, size_t len,
			    uint64_t salt)
{
	XXH3_state_t state;

	d.csum = le64_make(0);
	XXH3_INITSTATE(&state);
	XXH3_64bits_reset_withSeed(&state, salt);
	XXH3_64bits_update(&state, &d, sizeof(d));
	XXH3_64bits_update(&state, body, len);
	return XXH3_64bits_digest(&state);
}

uint32_t fmt_record_size(uint32_t runs, uint32_t csums)
{
	assert(runs <= FMT_RECORD_RUNS_MAX && csums <= FMT_RECORD_CSUMS_MAX);
	return (uint32_t)sizeof(struct fmt_record_disk) +
	       runs * (uint32_t)sizeof(struct fmt_run_disk) + csums * 8;
}

/* RU-1: what holds of a run wherever it stands. */
static int run_shape(const struct fmt_run *run, struct fmt_error *err)
{
	if (run->kind > FMT_RUN_ZERO)
		return fmt_fail(err, -EUCLEAN,
				"run at block %" PRIu64 ": kind is %u, expected 0 or 1", run->block,
				run->kind);
	if (!run->count || run->count > FMT_RUN_COUNT_MAX)
		return fmt_fail(err, -EUCLEAN, "run at block %" PRIu64 ": count is %" PRIu32,
				run->block, run->count);
	if (run->block > FMT_SIZE_MAX)
		return fmt_fail(err, -EUCLEAN, "run at block %" PRIu64 ": past any disk",
				run->block);
	if (run->kind == FMT_RUN_ZERO && run->slot != FMT_SLOT_NONE)
		return fmt_fail(err, -EUCLEAN, "run at block %" PRIu64 ": zeros with slot %" PRIu32,
				run->block, run->slot);
	if (run->kind == FMT_RUN_DATA && (uint64_t)run->slot + run->count > FMT_SLOT_NONE)
		return fmt_fail(err, -EUCLEAN,
				"run at block %" PRIu64 ": slots %" PRIu32 "+%" PRIu32
				" are past the last possible slot",
				run->block, run->slot, run->count);
	return 0;
}

int fmt_run_check(const struct fmt_run *run, uint64_t blocks, uint64_t slots, struct fmt_error *err)
{
	int r = run_shape(run, err);

	if (r < 0)
		return r;
	if (run->block >= blocks || run->count > blocks - run->block)
		return fmt_fail(err, -EUCLEAN,
				"run of blocks %" PRIu64 "+%" PRIu32
				" is past the disk's end at block %" PRIu64,
				run->block, run->count, blocks);
	if (run->kind == FMT_RUN_DATA && (uint64_t)run->slot + run->count > slots)
		return fmt_fail(err, -EUCLEAN,
				"run at block %" PRIu64 ": slots %" PRIu32 "+%" PRIu32
				" are past the layer's end at slot %" PRIu64,
				run->block, run->slot, run->count, slots);
	return 0;
}

void fmt_run_pack(const struct fmt_run *run, uint8_t ret[sizeof(struct fmt_run_disk)])
{
	struct fmt_run_disk d = {
		.block = le64_make(run->block),
		.slot = le32_make(run->slot),
		.count_kind = le32_make(run->count | (uint32_t)run->kind << 30),
	};

	assert(run_shape(run, NULL) == 0);
	memcpy(ret, &d, sizeof(d));
}

void fmt_run_unpack(const uint8_t bytes[sizeof(struct fmt_run_disk)], struct fmt_run *ret)
{
	struct fmt_run_disk d;

	memcpy(&d, bytes, sizeof(d));
	ret->block = le64_get(d.block);
	ret->slot = le32_get(d.slot);
	ret->count = le32_get(d.count_kind) & FMT_RUN_COUNT_MAX;
	ret->kind = (uint8_t)(le32_get(d.count_kind) >> 30);
}

/* ML-3, ML-5: the rules between a record's fields. */
static int check(const struct fmt_record *rec, struct fmt_error *err)
{
	bool link = rec->flags & FMT_REC_LINK;

	if (rec->flags & ~(uint32_t)(FMT_REC_DURABLE_FIRST | FMT_REC_LINK))
		return fmt_fail(err, -EUCLEAN, "record %" PRIu64 ": unknown flags %#" PRIx32,
				rec->seq, rec->flags);
	if (rec->seq > INT64_MAX || rec->journal_seq > INT64_MAX) /* "+ 1" never wraps */
		return fmt_fail(err, -EUCLEAN,
				"record %" PRIu64 ": journal number %" PRIu64 ", both below 2^63",
				rec->seq, rec->journal_seq);
	if (!rec->seq || rec->confirmed_seq > rec->seq)
		return fmt_fail(err, -EUCLEAN, "record %" PRIu64 ": confirms record %" PRIu64,
				rec->seq, rec->confirmed_seq);
	if (rec->runs > FMT_RECORD_RUNS_MAX)
		return fmt_fail(err, -EUCLEAN, "record %" PRIu64 ": %" PRIu32 " runs, at most %u",
				rec->seq, rec->runs, FMT_RECORD_RUNS_MAX);
	if (link && (rec->runs || !rec->link_len || rec->link_len % 512 || rec->link_offset % 512 ||
		     rec->link_offset < FMT_LOG0_OFFSET || rec->link_offset > FMT_OFFSET_MAX))
		return fmt_fail(err, -EUCLEAN,
				"record %" PRIu64 ": link to %#" PRIx64 "+%#" PRIx32
				" with %" PRIu32 " runs",
				rec->seq, rec->link_offset, rec->link_len, rec->runs);
	if (!link && (rec->link_offset || rec->link_len))
		return fmt_fail(err, -EUCLEAN, "record %" PRIu64 ": a link target without the flag",
				rec->seq);
	return 0;
}

int64_t fmt_record_encode(const struct fmt_record *rec, const struct fmt_run *runs,
			  const uint64_t *csums, uint64_t salt, uint32_t granule, uint8_t *buf,
			  size_t cap)
{
	struct fmt_record_disk d;
	uint64_t csum_count = 0;
	uint32_t len;
	size_t padded;
	uint8_t *p = buf + sizeof(d);

	assert(check(rec, NULL) == 0);
	if (!(rec->flags & FMT_REC_DURABLE_FIRST)) {
		for (uint32_t i = 0; i < rec->runs; i++)
			csum_count += runs[i].kind == FMT_RUN_DATA ? runs[i].count : 0;
	}
	assert(csum_count <= FMT_RECORD_CSUMS_MAX);
	len = fmt_record_size(rec->runs, (uint32_t)csum_count);
	padded = (len + granule - 1) / granule * granule;
	if (padded > cap)
		return -ENOSPC;
	for (uint32_t i = 0; i < rec->runs; i++, p += sizeof(struct fmt_run_disk))
		fmt_run_pack(&runs[i], p);
	for (uint64_t i = 0; i < csum_count; i++, p += 8) {
		le64 v = le64_make(csums[i]);

		memcpy(p, &v, 8);
	}
	memset(p, 0, padded - len);
	memset(&d, 0, sizeof(d));
	memcpy(d.magic, MAGIC, sizeof(MAGIC));
	d.len = le32_make(len);
	d.seq = le64_make(rec->seq);
	d.journal_seq = le64_make(rec->journal_seq);
	d.confirmed_seq = le64_make(rec->confirmed_seq);
	d.flags = le32_make(rec->flags);
	d.runs = le32_make(rec->runs);
	d.link_offset = le64_make(rec->link_offset);
	d.link_len = le32_make(rec->link_len);
	d.csum = le64_make(record_csum(d, buf + sizeof(d), len - sizeof(d), salt));
	memcpy(buf, &d, sizeof(d));
	return (int64_t)padded;
}

/* The record's runs one by one, and that length, runs and checksums agree. */
static int check_body(const struct fmt_record *rec, struct fmt_error *err)
{
	uint64_t csums = 0;

	if (rec->len < fmt_record_size(rec->runs, 0))
		return fmt_fail(err, -EUCLEAN,
				"record %" PRIu64 ": %" PRIu32 " runs in %" PRIu32 " bytes",
				rec->seq, rec->runs, rec->len);
	for (uint32_t i = 0; i < rec->runs; i++) {
		struct fmt_run run;
		int r;

		fmt_record_run(rec, i, &run);
		r = run_shape(&run, err);
		if (r < 0)
			return r;
		if (run.kind == FMT_RUN_DATA && !(rec->flags & FMT_REC_DURABLE_FIRST))
			csums += run.count;
	}
	if (csums > FMT_RECORD_CSUMS_MAX || rec->len != fmt_record_size(rec->runs, (uint32_t)csums))
		return fmt_fail(err, -EUCLEAN,
				"record %" PRIu64 ": %" PRIu32 " bytes for %" PRIu32
				" runs and %" PRIu64 " checksums",
				rec->seq, rec->len, rec->runs, csums);
	return 0;
}

int fmt_record_decode(const uint8_t *buf, size_t len, uint64_t salt, struct fmt_record *ret,
		      struct fmt_error *err)
{
	struct fmt_record_disk d;
	struct fmt_record rec;
	int r;

	if (len < sizeof(d))
		return fmt_fail(err, -ENODATA, "record: no room for one");
	memcpy(&d, buf, sizeof(d));
	memset(&rec, 0, sizeof(rec));
	rec.len = le32_get(d.len);
	if (memcmp(d.magic, MAGIC, sizeof(MAGIC)) != 0)
		return fmt_fail(err, -ENODATA, "record: no magic \"VLOG\"");
	if (rec.len < sizeof(d) || rec.len > len)
		return fmt_fail(err, -ENODATA, "record: length is %" PRIu32, rec.len);
	if (le64_get(d.csum) != record_csum(d, buf + sizeof(d), rec.len - sizeof(d), salt))
		return fmt_fail(err, -ENODATA, "record: checksum");
	rec.seq = le64_get(d.seq);
	rec.journal_seq = le64_get(d.journal_seq);
	rec.confirmed_seq = le64_get(d.confirmed_seq);
	rec.flags = le32_get(d.flags);
	rec.runs = le32_get(d.runs);
	rec.link_offset = le64_get(d.link_offset);
	rec.link_len = le32_get(d.link_len);
	r = check(&rec, err);
	if (r < 0)
		return r;
	rec.run_bytes = buf + sizeof(d);
	if (!(rec.flags & FMT_REC_DURABLE_FIRST))
		rec.csum_bytes = rec.run_bytes + rec.runs * sizeof(struct fmt_run_disk);
	r = check_body(&rec, err);
	if (r < 0)
		return r;
	*ret = rec;
	return 0;
}

void fmt_record_run(const struct fmt_record *rec, uint32_t i, struct fmt_run *ret)
{
	assert(i < rec->runs);
	fmt_run_unpack(rec->run_bytes + i * sizeof(struct fmt_run_disk), ret);
}

uint64_t fmt_record_csum(const struct fmt_record *rec, uint32_t i)
{
	le64 v;

	assert(rec->csum_bytes &&
	       rec->csum_bytes + 8ull * i + 8 <=
		       rec->run_bytes + rec->len - sizeof(struct fmt_record_disk));
	memcpy(&v, rec->csum_bytes + 8ull * i, 8);
	return le64_get(v);
}
