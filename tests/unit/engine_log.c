/* SPDX-License-Identifier: MIT */
/* engine_log.c - what a replay takes for the end of the log, and what it makes of it: T13, FL-8, ML-*. */
#include "tests/unit/engine_overlay.h"

TestSuite(engine_log, .init = start, .fini = finish, .timeout = 60);

static int note_run(void *arg, const struct fmt_run *run)
{
	(void)run;
	++*(unsigned *)arg;
	return 0;
}

/* A layer with @n records of one block each; where they begin. */
static void make_records(unsigned n, uint64_t at[])
{
	make_layer((struct shape){.block_bits = 12, .slots = 2000, .blocks = 4000});
	for (unsigned i = 0; i < n; i++) {
		if (layer->log.segment + layer->log.segment_len - layer->log.offset < 1024)
			give_segment(64 << 10);
		at[i] = layer->log.offset;
		put_data(2 * i, 1);
		record();
		if (layer->log.offset - layer->log.segment == layer->log_granule)
			at[i] = layer->log.segment; /* behind a LINK */
	}
}

static void damage(uint64_t at)
{
	uint8_t page[512];

	cr_assert_eq(eng_io_pread(io, layer->file, page, sizeof(page), at), 512);
	page[40] ^= 0x10;
	cr_assert_eq(eng_io_pwrite(io, layer->file, page, sizeof(page), at), 0);
}

static int replay(unsigned *runs)
{
	struct fmt_error err = {{0}};

	*runs = 0;
	return eng_log_replay(layer, note_run, runs, &err);
}

/* ML-8: nothing but a LINK is ever in a segment's last granule, however far the header lags. */
Test(engine_log, damaged_link_is_no_torn_tail)
{
	uint64_t at[300], link;
	unsigned runs;

	make_records(300, at);
	link = FMT_LOG0_OFFSET + layer->hdr.log0_len - layer->log_granule;
	cr_assert_geq(layer->log.segments, 2u);
	cr_assert_eq(layer->hdr.log_segments, 1u, "the header lags");
	damage(link);
	reopen();
	cr_expect_eq(replay(&runs), -EUCLEAN);
	damage(link);
	reopen();
	cr_expect_eq(replay(&runs), 0);
	cr_expect_eq(runs, 300u);
}

/* ML-6, FL-8 */
Test(engine_log, replay_follows_the_links)
{
	uint64_t at[300];
	unsigned runs;

	make_records(300, at);
	cr_assert_geq(layer->log.segments, 3u);
	reopen();
	cr_assert_eq(replay(&runs), 0);
	cr_expect_eq(runs, 300u);
	cr_expect_geq(layer->next_slot, 300u);
	put_data(1, 1);
	record();
	reopen();
	cr_assert_eq(replay(&runs), 0);
	cr_expect_eq(runs, 301u);
}

/* T13 */
Test(engine_log, torn_tail_is_dropped_and_overwritten)
{
	uint64_t at[8], end;
	uint8_t page[512];
	unsigned runs;

	make_records(8, at);
	end = layer->log.offset;
	damage(at[7]);
	reopen();
	cr_assert_eq(replay(&runs), 0);
	cr_expect_eq(runs, 7u);
	cr_expect_eq(layer->log.offset, at[7]);
	for (uint64_t o = at[7]; o < end; o += sizeof(page)) {
		cr_assert_eq(eng_io_pread(io, layer->file, page, sizeof(page), o), 512);
		for (unsigned i = 0; i < sizeof(page); i++)
			cr_assert_eq(page[i], 0, "the torn record is still there");
	}
	put_data(100, 1);
	record();
	reopen();
	cr_assert_eq(replay(&runs), 0);
	cr_expect_eq(runs, 8u);
}

/* T13: what is torn cannot have a successor. */
Test(engine_log, bad_record_before_a_good_one_is_no_torn_tail)
{
	uint64_t at[8];
	unsigned runs;

	make_records(8, at);
	damage(at[3]);
	reopen();
	cr_expect_eq(replay(&runs), -EUCLEAN);
	damage(at[3]);
	cr_expect_eq(replay(&runs), 0);
	cr_expect_eq(runs, 8u);
}

/* T13, ML-7: in an older segment nothing is torn. */
Test(engine_log, bad_record_before_a_linked_segment_is_no_torn_tail)
{
	uint64_t at[120];
	unsigned runs;

	make_records(120, at);
	cr_assert_geq(layer->log.segments, 2u);
	layer->hdr.log_segments = layer->log.segments;
	damage(at[40]);
	cr_expect_eq(replay(&runs), -EUCLEAN);
}

/* ML-8: a frozen layer's header says how long its log is. */
Test(engine_log, log_shorter_than_its_header_says_is_refused)
{
	uint64_t at[8];
	unsigned runs;

	make_records(8, at);
	layer->hdr.log_seq = 8;
	damage(at[7]);
	cr_expect_eq(replay(&runs), -EUCLEAN);
}
