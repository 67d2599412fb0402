/* SPDX-License-Identifier: MIT */
/*
 * log.c - the second pass: the map log, record by record, through a window of the file that is longer
 * than any record (ML-*). Every run is kept, in the log's order; memory follows the bytes of the file
 * that hold records, since no two segments may overlap. One thread a check.
 */
#include "fsck/layer.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define RECORD_MAX                                                                                 \
	(sizeof(struct fmt_record_disk) + FMT_RECORD_RUNS_MAX * sizeof(struct fmt_run_disk) +      \
	 FMT_RECORD_CSUMS_MAX * 8u)
static_assert(RECORD_MAX <= FSCK_BUF, "the window holds any record");

struct walk {
	struct fsck_layer *l;
	uint64_t base, have;   /* what of the file the layer's buffer holds */
	uint64_t at, end;      /* of the segment being read */
	uint64_t seq, journal; /* of the last record */
	uint64_t segments;
	/* ML-9: the last record, when it is one-flush and nothing has confirmed it */
	uint64_t pending_seq; /* 0: none */
	size_t pending;       /* its first run in l->log; they go up to the end */
	uint64_t *csums;
};

/* @len bytes at @at, inside the segment; NULL: reported. */
static const uint8_t *window(struct walk *w, uint64_t at, uint64_t len)
{
	uint64_t want = w->end - at < FSCK_BUF ? w->end - at : FSCK_BUF;
	int r;

	if (at >= w->base && at - w->base <= w->have && len <= w->have - (at - w->base))
		return w->l->buf + (at - w->base);
	w->have = 0;
	r = fsck_read(w->l, w->l->buf, want, at);
	if (r == -ENODATA)
		fsck_found(w->l->f, PR_LOG_SHORT,
			   "it has %" PRIu64 " bytes, the segment ends at %#" PRIx64, w->l->st.size,
			   w->end);
	if (r < 0)
		return NULL;
	w->base = at;
	w->have = want;
	return w->l->buf;
}

/*
 * The record at @at: 0, -ENODATA where none is valid (a longer one than there can be is not), -EUCLEAN
 * with *@why, or -EIO when the file could not be read.
 */
static int decode(struct walk *w, uint64_t at, struct fmt_record *rec, struct fmt_error *why)
{
	uint64_t left = w->end - at, len = sizeof(struct fmt_record_disk);
	struct fmt_record_disk d;
	const uint8_t *p;

	if (left < len)
		return -ENODATA;
	p = window(w, at, len);
	if (!p)
		return -EIO;
	memcpy(&d, p, sizeof(d));
	if (memcmp(d.magic, "VLOG", 4) != 0 || le32_get(d.len) > left ||
	    le32_get(d.len) > RECORD_MAX)
		return -ENODATA;
	if (le32_get(d.len) > len)
		len = le32_get(d.len);
	p = window(w, at, len);
	return p ? fmt_record_decode(p, len, w->l->hdr.salt, rec, why) : -EIO;
}

/* --- one-flush records (ML-9) --- */

static void settle_pending(struct walk *w, const struct fmt_record *next)
{
	if (w->pending_seq && next->confirmed_seq < w->pending_seq)
		for (size_t i = w->pending; i < w->l->log.count; i++)
			w->l->log.run[i].dropped = true;
	w->pending_seq = 0;
}

static int keep_pending(struct walk *w, const struct fmt_record *rec, size_t first)
{
	uint32_t n = (rec->len - fmt_record_size(rec->runs, 0)) / 8;

	if (!(w->l->hdr.incompat & FMT_INCOMPAT_ONE_FLUSH)) {
		fsck_found(w->l->f, PR_LOG_ONE_FLUSH, "record %" PRIu64, rec->seq);
		return -EUCLEAN;
	}
	free(w->csums);
	w->csums = calloc(n + 1, sizeof(*w->csums));
	if (!w->csums)
		return fsck_cannot(w->l->f, -ENOMEM, "%s: no memory", w->l->path);
	for (uint32_t i = 0; i < n; i++)
		w->csums[i] = fmt_record_csum(rec, i);
	w->pending_seq = rec->seq;
	w->pending = first;
	return 0;
}

/* ML-9b: of the log's last record those blocks count whose slot has their checksum. */
static int verify_pending(struct walk *w)
{
	struct fsck_layer *l = w->l;
	size_t end = l->log.count, bs = (size_t)1 << l->hdr.block_bits;
	uint64_t n = 0, bad = 0;
	int r = 0;

	if (!w->pending_seq)
		return 0;
	w->have = 0; /* the buffer is used for slots from here on */
	for (size_t i = w->pending; i < end; i++) {
		struct fsck_run run = l->log.run[i];

		if (run.kind != FMT_RUN_DATA)
			continue;
		l->log.run[i].dropped = true;
		for (uint32_t j = 0; r == 0 && j < run.count; j++, n++) {
			struct fsck_run one = {run.block + j, run.slot + j, 1, FMT_RUN_DATA, false};

			r = fsck_read(l, l->buf, bs,
				      l->hdr.data_offset +
					      ((uint64_t)one.slot << l->hdr.block_bits));
			if (r == 0 && fmt_block_csum(l->buf, bs) == w->csums[n])
				r = fsck_runs_add(l->f, &l->log, &one);
			else if (r == 0)
				bad++;
		}
	}
	if (bad)
		fsck_found(l->f, PR_LOG_DROPPED,
			   "%" PRIu64 " of %" PRIu64 " blocks of record %" PRIu64, bad, n,
			   w->pending_seq);
	return r;
}

/* --- records --- */

static void note_slots(struct fsck_layer *l, uint64_t end)
{
	if (end > l->log_slots)
		l->log_slots = end;
}

static int add_runs(struct walk *w, const struct fmt_record *rec)
{
	struct fsck_layer *l = w->l;
	size_t first = l->log.count;
	int r = 0;

	for (uint32_t i = 0; r == 0 && i < rec->runs; i++) {
		struct fmt_error why = {""};
		struct fsck_run keep = {0};
		struct fmt_run run;

		fmt_record_run(rec, i, &run);
		r = fmt_run_check(&run, l->blocks, l->file_slots, &why);
		if (r < 0) {
			fsck_found(l->f, PR_LOG_RUN, "record %" PRIu64 ": %s", rec->seq, why.text);
			return r;
		}
		if (run.kind == FMT_RUN_DATA)
			note_slots(l, (uint64_t)run.slot + run.count);
		keep.block = run.block;
		keep.slot = run.slot;
		keep.count = run.count;
		keep.kind = run.kind;
		r = fsck_runs_add(l->f, &l->log, &keep);
	}
	if (r == 0 && rec->runs && !(rec->flags & FMT_REC_DURABLE_FIRST))
		r = keep_pending(w, rec, first);
	return r;
}

/* Where the segment @s belongs among those known. */
static size_t segment_place(const struct fsck_layer *l, const struct fsck_segment *s)
{
	size_t lo = 0, hi = l->segment_count;

	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;

		if (l->segments[mid].slot < s->slot)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

static int add_segment(struct fsck_layer *l, const struct fsck_segment *s, size_t place)
{
	if (l->segment_count == l->segment_cap) {
		size_t cap = l->segment_cap ? l->segment_cap * 2 : 16;
		struct fsck_segment *p = realloc(l->segments, cap * sizeof(*p));

		if (!p)
			return fsck_cannot(l->f, -ENOMEM, "%s: no memory", l->path);
		l->segments = p;
		l->segment_cap = cap;
	}
	memmove(l->segments + place + 1, l->segments + place,
		(l->segment_count - place) * sizeof(*s));
	l->segments[place] = *s;
	l->segment_count++;
	note_slots(l, s->end);
	return 0;
}

/* ML-6. Segments never overlap: a log that came back to itself would have no end. */
static int follow_link(struct walk *w, const struct fmt_record *rec)
{
	struct fsck_layer *l = w->l;
	uint64_t bs = UINT64_C(1) << l->hdr.block_bits, off = rec->link_offset;
	struct fsck_segment s;
	const char *wrong = NULL;
	size_t place = 0;

	s.slot = off < l->hdr.data_offset ? 0 : (off - l->hdr.data_offset) / bs;
	s.end = s.slot + rec->link_len / bs;
	if (off < l->hdr.data_offset || (off - l->hdr.data_offset) % bs)
		wrong = "it does not start at a slot";
	else if (!rec->link_len || rec->link_len % bs)
		wrong = "it is not whole slots";
	else if (s.end > l->file_slots)
		wrong = "it is past the file's end";
	else if (w->segments == FMT_LOG_SEGMENTS_MAX)
		wrong = "it is one too many";
	if (!wrong) {
		place = segment_place(l, &s);
		if ((place && l->segments[place - 1].end > s.slot) ||
		    (place < l->segment_count && l->segments[place].slot < s.end))
			wrong = "it overlaps another one";
	}
	if (wrong) {
		fsck_found(l->f, PR_LOG_LINK,
			   "record %" PRIu64 " names %" PRIu32 " bytes at %#" PRIx64 ": %s",
			   rec->seq, rec->link_len, off, wrong);
		return -EUCLEAN;
	}
	w->at = off;
	w->end = off + rec->link_len;
	w->segments++;
	return add_segment(l, &s, place);
}

static int take_record(struct walk *w, const struct fmt_record *rec)
{
	settle_pending(w, rec);
	if (rec->journal_seq < w->journal) {
		fsck_found(w->l->f, PR_LOG_JOURNAL_SEQ,
			   "record %" PRIu64 " covers the journal up to %" PRIu64
			   ", the one before up to %" PRIu64,
			   rec->seq, rec->journal_seq, w->journal);
		return -EUCLEAN;
	}
	w->seq = rec->seq;
	w->journal = rec->journal_seq;
	if (rec->flags & FMT_REC_LINK)
		return follow_link(w, rec);
	w->at += (rec->len + w->l->hdr.log_granule - 1) / w->l->hdr.log_granule *
		 w->l->hdr.log_granule;
	return add_runs(w, rec);
}

/* Up to the first place where no next record is valid. */
static int read_records(struct walk *w)
{
	struct fmt_error why = {""};
	struct fmt_record rec;
	int r;

	while (w->at < w->end) {
		r = decode(w, w->at, &rec, &why);
		if (r == -ENODATA || (r == 0 && rec.seq != w->seq + 1))
			return 0;
		if (r == -EUCLEAN)
			fsck_found(w->l->f, PR_LOG_RECORD, "at %#" PRIx64 ": %s", w->at, why.text);
		if (r == 0)
			r = take_record(w, &rec);
		if (r < 0)
			return r;
	}
	return 0;
}

/* --- the end --- */

/*
 * ML-8: a later record behind the end is rot, and so is anything but zeros where only a LINK can be;
 * anything else there but zeros was torn, or rots.
 */
static int check_tail(struct walk *w)
{
	static const uint8_t zeros[FMT_PAGE];
	uint32_t granule = w->l->hdr.log_granule;
	uint64_t torn = 0;

	for (uint64_t at = w->at; at < w->end; at += granule) {
		struct fmt_error why = {""};
		struct fmt_record rec;
		const uint8_t *p = window(w, at, granule);
		bool zero = p && memcmp(p, zeros, granule) == 0;
		int r = !p ? -EIO : zero ? -ENODATA : decode(w, at, &rec, &why);

		if (r == -EIO)
			return r;
		if (!zero && !torn)
			torn = at;
		if (r == -EUCLEAN || (r == 0 && rec.seq > w->seq)) {
			fsck_found(w->l->f, PR_LOG_ROT,
				   "record %" PRIu64 " at %#" PRIx64 " cannot be read, but another "
				   "one follows at %#" PRIx64,
				   w->seq + 1, w->at, at);
			return -EUCLEAN;
		}
		if (!zero && w->end - at == granule) {
			fsck_found(w->l->f, PR_LOG_ROT,
				   "record %" PRIu64
				   " is the last that can be read, but the end of "
				   "its segment at %#" PRIx64 " holds a damaged link",
				   w->seq, at);
			return -EUCLEAN;
		}
	}
	if (torn)
		fsck_found(w->l->f, PR_LOG_TORN, "at %#" PRIx64 ", behind record %" PRIu64, torn,
			   w->seq);
	return 0;
}

/* ML-7 */
static int check_end(const struct walk *w)
{
	const struct fmt_header *h = &w->l->hdr;

	if (w->segments < h->log_segments) {
		fsck_found(w->l->f, PR_LOG_ENDS_EARLY,
			   "it ends in segment %" PRIu64 " of at least %" PRIu32, w->segments,
			   h->log_segments);
		return -EUCLEAN;
	}
	if (w->seq < h->log_seq) {
		fsck_found(w->l->f, PR_LOG_ENDS_EARLY,
			   "it ends with record %" PRIu64 ", the layer was frozen with %" PRIu64,
			   w->seq, h->log_seq);
		return -EUCLEAN;
	}
	if (h->state != FMT_STATE_ACTIVE && h->log_seq && w->seq > h->log_seq) {
		fsck_found(w->l->f, PR_LOG_ENDS_LATE,
			   "it ends with record %" PRIu64 ", the layer was frozen with %" PRIu64,
			   w->seq, h->log_seq);
		return -EUCLEAN;
	}
	return 0;
}

int fsck_log(struct fsck_layer *l)
{
	struct walk w = {.l = l, .at = FMT_LOG0_OFFSET, .segments = 1};
	int r;

	w.end = w.at + l->hdr.log0_len;
	r = read_records(&w);
	if (r == 0)
		r = check_tail(&w);
	if (r == 0)
		r = check_end(&w);
	if (r == 0)
		r = verify_pending(&w);
	l->log_sound = r == 0;
	free(w.csums);
	return r;
}
