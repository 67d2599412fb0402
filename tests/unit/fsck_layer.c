/* SPDX-License-Identifier: MIT */
/*
 * fsck_layer.c - the checker on single overlays: sound ones in every state, the corpus of damages
 * (tests/images/damages.h), logs that the engine does not write, and bytes changed at random, which must
 * be found or be where nothing is read.
 */
#include "tests/unit/engine_overlay.h"
#include "tests/unit/fsck_findings.h"

#include "tests/images/damages.h"

#define DATA_RUNS 600u /* three leaves and a root; two pages of checksums */

TestSuite(fsck_layer, .init = start, .fini = finish);

/* An ACTIVE overlay with a log of two segments; every eighth record says zeros, too. */
static void build(void)
{
	make_layer((struct shape){.block_bits = 12, .slots = 900, .blocks = 4000});
	for (unsigned i = 0; i < DATA_RUNS; i++) {
		put_data(i * 7 % 601 * 6, 1);
		if (i % 80 == 79)
			put_zeros(i * 6 + 3, 2);
		if (i % 10 == 9)
			record();
	}
	cr_assert_eq(layer->log.segments, 2);
}

static void note_log_seq(struct fmt_header *hdr, void *arg)
{
	(void)arg;
	hdr->log_seq = layer->log.seq;
	hdr->log_segments = layer->log.segments;
}

static void build_as(enum image image)
{
	build();
	if (image != ACTIVE) {
		cr_assert_eq(eng_layer_update(layer, note_log_seq, NULL, NULL), 0);
		freeze();
	}
	if (image == SEALED)
		seal();
}

/* --- places --- */

struct places {
	struct fmt_header h;
	uint64_t header, link, log_end;
	uint64_t records[128];
	unsigned count;
};

/* LAST is the last record of runs; a LINK is counted like any. */
static void find_places(struct places *p)
{
	static uint8_t buf[1 << 20];
	uint64_t at = FMT_LOG0_OFFSET, end;
	struct fmt_record rec;

	memset(p, 0, sizeof(*p));
	p->header = newest_header(path, &p->h);
	end = at + p->h.log0_len;
	for (;;) {
		file_read(path, buf, end - at, at);
		if (fmt_record_decode(buf, end - at, p->h.salt, &rec, NULL) < 0)
			break;
		cr_assert_lt(p->count, 128);
		p->records[p->count++] = at;
		at += (rec.len + p->h.log_granule - 1) / p->h.log_granule * p->h.log_granule;
		if (rec.flags & FMT_REC_LINK) {
			p->link = p->records[p->count - 1];
			at = rec.link_offset;
			end = at + rec.link_len;
		}
	}
	p->log_end = at;
}

static uint64_t place_of(const struct damage *d, const struct places *p, size_t *len)
{
	struct fmt_index_shape shape;

	*len = FMT_PAGE;
	switch (d->part) {
	case HEADER: return p->header;
	case OLD_HEADER: return FMT_PAGE - p->header;
	case RECORD: *len = 512; return p->records[d->number == LAST ? p->count - 1 : d->number];
	case LINK: *len = 512; return p->link;
	case LOG_END: return p->log_end;
	case LEAF: return p->h.index_offset + d->number * FMT_PAGE;
	case INNER:
		cr_assert_eq(fmt_index_shape(p->h.index_runs, &shape), 0);
		return p->h.index_offset + (shape.first[1] + d->number) * FMT_PAGE;
	case CSUMS: return p->h.csum_offset + d->number * FMT_PAGE;
	case SLOT: return p->h.data_offset + d->number * 4096ull;
	default: return 0;
	}
}

static void refit(const struct damage *d, uint8_t *bytes, uint64_t salt, uint64_t offset)
{
	if (d->part == HEADER || d->part == OLD_HEADER)
		refit_header(bytes);
	else if (d->part == RECORD || d->part == LINK)
		refit_record(bytes, salt);
	else
		refit_page(bytes, salt, offset);
}

static void apply(const struct damage *d)
{
	uint8_t bytes[FMT_PAGE];
	struct places p;
	uint64_t at, v;
	size_t len;

	find_places(&p);
	if (d->part == FILE_END) {
		v = (d->act == ADD ? file_size(path) : 0) + d->value;
		cr_assert_eq(truncate(path, (off_t)v), 0);
		return;
	}
	at = place_of(d, &p, &len);
	file_read(path, bytes, len, at);
	for (unsigned i = 0; i < d->bytes; i++) {
		v = d->value >> (8 * i) & 0xff;
		if (d->act == XOR || d->act == FLIP)
			v ^= bytes[d->offset + i];
		bytes[d->offset + i] = (uint8_t)(d->act == ADD ? bytes[d->offset + i] : v);
	}
	if (d->act == ADD) {
		uint8_t word[8] = {0};

		memcpy(word, bytes + d->offset, d->bytes);
		put_le64(word, get_le64(word) + d->value);
		memcpy(bytes + d->offset, word, d->bytes);
	}
	if (d->act != FLIP)
		refit(d, bytes, p.h.salt, at);
	file_write(path, bytes, len, at);
}

/* --- the corpus --- */

/* CK-1, CK-3 */
Test(fsck_layer, every_damage_of_the_corpus_is_found_with_its_rule)
{
	char sound[3][320];
	unsigned bad = 0;

	for (enum image i = ACTIVE; i <= SEALED; i++) {
		snprintf(sound[i], sizeof(sound[i]), "%s/sound%d", dir, i);
		build_as(i);
		eng_layer_put(layer);
		layer = NULL;
		assert_sound(io, path);
		file_copy(path, sound[i]);
		unlink(path);
	}
	for (size_t i = 0; i < sizeof(damages) / sizeof(*damages); i++) {
		const struct damage *d = &damages[i];
		int r, result = d->verdict == UNKNOWN ? -ENOTSUP : 0;

		file_copy(sound[d->image], path);
		apply(d);
		r = check(io, path);
		if (r == result && (summary.corruptions > 0) == (d->verdict == BAD) &&
		    (summary.leaks > 0) == (d->verdict == LEAK) &&
		    was_found(d->rule,
			      d->verdict == UNKNOWN ? FSCK_NOTE : (enum fsck_severity)d->verdict))
			continue;
		cr_log_error("%s: expected %s; %d, %s", d->name, d->rule, r, all_findings());
		bad++;
	}
	for (enum image i = ACTIVE; i <= SEALED; i++)
		unlink(sound[i]);
	cr_assert_eq(bad, 0, "%u damages", bad);
}

/* --- sound layers --- */

/* CK-4 */
Test(fsck_layer, an_overlay_is_sound_from_its_creation_to_its_seal)
{
	make_layer((struct shape){.block_bits = 12, .slots = 900, .blocks = 4000});
	assert_sound(io, path);
	cr_assert_eq(summary.layers, 1);
	put_data(5, 7);
	assert_sound(io, path);
	record();
	assert_sound(io, path);
	put_zeros(6, 2);
	put_data(7, 1);
	record();
	assert_sound(io, path);
	freeze();
	assert_sound(io, path);
	seal();
	assert_sound(io, path);
	reopen();
	assert_sound(io, path);
}

/* IX-2 */
Test(fsck_layer, an_empty_layer_is_sound_when_sealed)
{
	make_layer((struct shape){.block_bits = 16, .slots = 16, .blocks = 100});
	freeze();
	seal();
	assert_sound(io, path);
}

/* RU-3, IX-5: overwritten in pieces, runs over runs, at random. */
Test(fsck_layer, maps_of_many_shapes_agree_with_their_index)
{
	for (unsigned seed = 1; seed <= 12; seed++) {
		srand(seed);
		make_layer((struct shape){.block_bits = seed % 2 ? 12 : 13,
					  .slots = 3000,
					  .blocks = 300});
		for (unsigned i = 0; i < 200; i++) {
			uint64_t block = (unsigned)rand() % 290;
			uint32_t count = 1 + (unsigned)rand() % 10;

			/* T17: data runs of a layer never overlap, zeros may lie anywhere. */
			if (rand() % 3 == 0)
				put_zeros(block, count);
			else if (model[block] == NOTHING)
				put_data(block, 1);
			if (rand() % 4 == 0)
				record();
		}
		freeze();
		assert_sound(io, path);
		seal();
		assert_sound(io, path);
		compare();
		eng_layer_put(layer);
		layer = NULL;
		unlink(path);
	}
}

static void edit_unsealed(struct fmt_header *hdr, void *arg)
{
	(void)arg;
	hdr->state = FMT_STATE_FROZEN;
}

/* LH-12 */
Test(fsck_layer, a_layer_that_was_sealed_and_is_not_is_found)
{
	build_as(SEALED);
	cr_assert_eq(eng_layer_update(layer, edit_unsealed, NULL, NULL), 0);
	assert_found(io, path, "LH-12", FSCK_CORRUPT);
}

/* SP-5, CK-6, CS-3 */
Test(fsck_layer, slots_that_nothing_names_are_noted_when_a_layer_is_sealed)
{
	uint8_t page[FMT_PAGE];
	struct fmt_header h;

	make_layer((struct shape){.block_bits = 12, .slots = 300, .blocks = 100});
	put_data(3, 4);
	layer->next_slot += 5; /* writes that failed */
	put_data(50, 4);
	freeze();
	cr_assert_eq(check(io, path), 0);
	cr_assert_eq(finding_count, 0, "%s", all_findings());
	seal();
	assert_found(io, path, "SP-5", FSCK_NOTE);
	cr_assert_eq(finding_count, 1, "%s", all_findings());
	cr_assert_eq(findings[0].leaked_bytes, 5 * 4096);
	newest_header(path, &h);
	file_read(path, page, sizeof(page), h.csum_offset);
	put_le64(page + ENTRY(6, 8), 77);
	refit_page(page, h.salt, h.csum_offset);
	file_write(path, page, sizeof(page), h.csum_offset);
	check(io, path);
	cr_assert(was_found("CS-3", FSCK_NOTE), "%s", all_findings());
}

/* SP-4 */
Test(fsck_layer, bytes_past_the_disks_end_are_found)
{
	uint8_t one = 1;

	make_layer((struct shape){.block_bits = 12, .slots = 300, .blocks = 9});
	put_data(8, 1);
	freeze();
	assert_sound(io, path);
	eng_layer_put(layer);
	layer = NULL;
	file_write(path, &one, 1, FMT_DATA_OFFSET + 4000);
	assert_sound(io, path);
	{
		struct fmt_header_disk d;
		struct fmt_header h;
		uint64_t at = newest_header(path, &h);

		file_read(path, &d, sizeof(d), at);
		d.size = le64_make(9 * 4096 - 512);
		refit_header((uint8_t *)&d);
		file_write(path, &d, sizeof(d), at);
		memset(&d, 0, sizeof(d));
		file_write(path, &d, sizeof(d), FMT_PAGE - at);
	}
	assert_found(io, path, "SP-4", FSCK_CORRUPT);
}

/* RU-4 */
Test(fsck_layer, a_block_in_a_log_segments_slot_is_found)
{
	struct fmt_run run = {.block = 3999, .count = 1};

	build();
	run.slot = (uint32_t)((layer->log.segment - layer->data_offset) >> 12) + 3;
	put(&run);
	record();
	assert_found(io, path, "RU-4", FSCK_CORRUPT);
}

/* RU-4, T17 */
Test(fsck_layer, a_block_may_come_back_to_its_own_slot)
{
	struct fmt_run run = {.block = 10, .count = 4, .slot = 0};

	make_layer((struct shape){.block_bits = 12, .slots = 300, .blocks = 100});
	put_data(10, 4);
	record();
	put_zeros(9, 6);
	record();
	put(&run);
	run = (struct fmt_run){.block = 12, .count = 1, .slot = 2};
	put(&run);
	freeze();
	assert_sound(io, path);
	seal();
	assert_sound(io, path);
}

/* LH-4: not even a header says what it is; the name and the log do. */
Test(fsck_layer, an_overlay_without_headers_is_no_raw_image)
{
	uint8_t zeros[2 * FMT_PAGE] = {0};
	char bare[300];

	build_as(FROZEN);
	file_write(path, zeros, sizeof(zeros), 0);
	assert_found(io, path, "LH-4", FSCK_CORRUPT);
	snprintf(bare, sizeof(bare), "%s/image", dir);
	cr_assert_eq(rename(path, bare), 0);
	assert_found(io, bare, "LH-4", FSCK_CORRUPT);
	cr_assert_eq(rename(bare, path), 0);
}

/* --- one-flush logs (ML-9), which this version reads and does not write --- */

struct log_writer {
	uint64_t at, seq, salt;
	int fd;
};

static void write_record(struct log_writer *w, const struct fmt_run *runs, uint32_t n,
			 uint32_t flags, const uint64_t *csums, uint64_t confirmed)
{
	struct fmt_record rec = {.seq = ++w->seq,
				 .flags = flags,
				 .runs = n,
				 .confirmed_seq = confirmed};
	uint8_t buf[8192];
	int64_t len = fmt_record_encode(&rec, runs, csums, w->salt, 512, buf, sizeof(buf));

	cr_assert_gt(len, 0);
	file_write(path, buf, (size_t)len, w->at);
	w->at += (uint64_t)len;
}

static void set_one_flush(struct fmt_header *hdr, void *arg)
{
	(void)arg;
	hdr->incompat |= FMT_INCOMPAT_ONE_FLUSH;
}

static struct log_writer one_flush_log(bool feature)
{
	struct log_writer w = {.at = FMT_LOG0_OFFSET};

	make_layer((struct shape){.block_bits = 12, .slots = 300, .blocks = 100});
	if (feature)
		cr_assert_eq(eng_layer_update(layer, set_one_flush, NULL, NULL), 0);
	w.salt = layer->salt;
	return w;
}

static uint64_t fill_slot(uint32_t slot)
{
	uint64_t block[512];

	fill(slot, block);
	file_write(path, block, sizeof(block), FMT_DATA_OFFSET + slot * 4096ull);
	return fmt_block_csum(block, sizeof(block));
}

/* ML-9, FB-2 */
Test(fsck_layer, a_one_flush_record_needs_its_feature_bit)
{
	struct fmt_run run = {.block = 1, .count = 1, .slot = 0};
	struct log_writer w = one_flush_log(false);
	uint64_t csum = fill_slot(0);

	write_record(&w, &run, 1, 0, &csum, 0);
	assert_found(io, path, "ML-9", FSCK_CORRUPT);
}

/* ML-9a, ML-9b */
Test(fsck_layer, an_unconfirmed_record_counts_block_by_block)
{
	struct fmt_run run = {.block = 1, .count = 3, .slot = 0};
	struct log_writer w = one_flush_log(true);
	uint64_t csums[3];

	for (uint32_t i = 0; i < 3; i++)
		csums[i] = fill_slot(i);
	write_record(&w, &run, 1, 0, csums, 0);
	assert_sound(io, path);
	csums[1]++;
	w.at = FMT_LOG0_OFFSET;
	w.seq = 0;
	write_record(&w, &run, 1, 0, csums, 0);
	assert_found(io, path, "ML-9b", FSCK_NOTE);
	/* confirmed, it is never verified */
	run = (struct fmt_run){.block = 9, .count = 1, .slot = 3};
	write_record(&w, &run, 1, FMT_REC_DURABLE_FIRST, NULL, 1);
	assert_sound(io, path);
}

/* ML-9c */
Test(fsck_layer, a_void_record_still_owns_its_slots)
{
	struct fmt_run run = {.block = 1, .count = 3, .slot = 0};
	struct log_writer w = one_flush_log(true);
	uint64_t csums[3] = {1, 2, 3};

	write_record(&w, &run, 1, 0, csums, 0);
	run = (struct fmt_run){.block = 2, .count = 1, .slot = 1};
	write_record(&w, &run, 1, FMT_REC_DURABLE_FIRST, NULL, 0);
	assert_sound(io, path);
	run = (struct fmt_run){.block = 50, .count = 1, .slot = 2};
	write_record(&w, &run, 1, FMT_REC_DURABLE_FIRST, NULL, 0);
	assert_found(io, path, "RU-4", FSCK_CORRUPT);
}

/* ML-6: a log that comes back to itself has no end. */
Test(fsck_layer, segments_that_overlap_are_found)
{
	struct fmt_record link = {.flags = FMT_REC_LINK,
				  .link_offset = FMT_DATA_OFFSET,
				  .link_len = 8192};
	struct log_writer w = one_flush_log(false);
	uint8_t buf[512];

	for (link.seq = 1; link.seq <= 3; link.seq++) {
		cr_assert_eq(fmt_record_encode(&link, NULL, NULL, w.salt, 512, buf, sizeof(buf)),
			     512);
		file_write(path, buf, sizeof(buf), w.at);
		w.at = FMT_DATA_OFFSET + (link.seq - 1) * 512;
		link.link_offset = FMT_DATA_OFFSET + 4096;
	}
	assert_found(io, path, "ML-6", FSCK_CORRUPT);
}

/* --- bytes at random --- */

/* May a change at @at go unseen? Only where no reader looks. */
static bool is_unread(uint64_t at, const struct places *p)
{
	static uint8_t buf[4096];

	if (at >= (uint64_t)FMT_LOG0_OFFSET + p->h.log0_len && at < p->h.data_offset)
		return true;
	for (unsigned i = 0; i < p->count; i++) {
		uint64_t start = p->records[i], len, end;

		file_read(path, buf, 64, start);
		len = get_le32(buf + 4);
		end = start + (len + 511) / 512 * 512;
		if (start == p->link)
			end = (uint64_t)FMT_LOG0_OFFSET + p->h.log0_len; /* ML-6 */
		if (at >= start + len && at < end)
			return true; /* ML-3 */
	}
	return false;
}

static uint64_t random_place(const struct places *p)
{
	uint64_t segment = p->records[p->count - 1] & ~4095ull, r = (unsigned)rand();
	uint64_t pages = (file_size(path) - p->h.index_offset) / FMT_PAGE;

	switch (rand() % (p->h.state == FMT_STATE_SEALED ? 6 : 4)) {
	case 0: return r % (2 * FMT_PAGE);
	case 1: return FMT_LOG0_OFFSET + r % p->h.log0_len;
	case 2: return segment + r % 8192;
	case 3: return p->records[r % p->count] + (unsigned)rand() % 512;
	case 4: return p->h.index_offset + r % (pages * FMT_PAGE);
	default: return p->h.data_offset + r % 100000; /* data */
	}
}

static void flip_bits(enum image image)
{
	uint8_t was, is;
	struct places p;

	build_as(image);
	eng_layer_put(layer);
	layer = NULL;
	find_places(&p);
	srand(1);
	for (unsigned i = 0; i < 1500; i++) {
		uint64_t at = random_place(&p);
		bool unread = is_unread(at, &p);

		file_read(path, &was, 1, at);
		is = was ^ (uint8_t)(1u << rand() % 8);
		file_write(path, &is, 1, at);
		check(io, path);
		cr_assert(finding_count || unread, "a bit at %#" PRIx64 " was not missed", at);
		cr_assert(!unread || !summary.corruptions,
			  "a bit at %#" PRIx64 " means nothing: %s", at, all_findings());
		file_write(path, &was, 1, at);
	}
	assert_sound(io, path);
}

/* P6 */
Test(fsck_layer, any_bit_of_a_sealed_layer_is_found_or_never_read)
{
	flip_bits(SEALED);
}

Test(fsck_layer, any_bit_of_a_frozen_layers_metadata_is_found_or_never_read)
{
	flip_bits(FROZEN);
}

Test(fsck_layer, any_bit_of_an_active_layers_metadata_is_found_or_never_read)
{
	flip_bits(ACTIVE);
}

/* BY-1: behind good checksums, where the rules themselves must hold. */
Test(fsck_layer, hostile_bytes_under_good_checksums_end_in_findings)
{
	static const uint64_t interesting[] = {0,          1,          0x7f,       0x80,
					       0xff,       0x1000,     0x3fffffff, 0x7fffffff,
					       0xffffffff, 1ull << 53, 1ull << 62, UINT64_MAX};
	char sound[320];
	struct places p;

	snprintf(sound, sizeof(sound), "%s/sound", dir);
	build_as(SEALED);
	eng_layer_put(layer);
	layer = NULL;
	file_copy(path, sound);
	find_places(&p);
	srand(7);
	for (unsigned i = 0; i < 800; i++) {
		static const enum part parts[] = {HEADER, HEADER, OLD_HEADER, RECORD,
						  LINK,   LEAF,   INNER,      CSUMS};
		struct damage d = {.part = parts[rand() % 8], .bytes = rand() % 2 ? 4 : 8};

		d.number = d.part == RECORD ? (unsigned)rand() % p.count : (unsigned)rand() % 3;
		if (d.part == INNER || (d.part == CSUMS && d.number == 2))
			d.number = 0;
		d.offset = (unsigned)rand() % (d.part == RECORD || d.part == LINK ? 50 : 75) * 4;
		if (d.part == HEADER || d.part == OLD_HEADER)
			d.offset += 8;
		if ((d.part == RECORD || d.part == LINK) && d.offset / 4 == 1)
			continue; /* the length says what the checksum is of */
		d.act = rand() % 2 ? ADD : SET;
		d.value = interesting[rand() % (int)(sizeof(interesting) / 8)];
		apply(&d);
		check(io, path);
		file_copy(sound, path);
	}
	unlink(sound);
	assert_sound(io, path);
}
