/* SPDX-License-Identifier: MIT */
/*
 * compare.c - two disks side by side, over an assembly line: the caller's thread walks both sides'
 * extents and feeds the ranges where one of them has data; the line's threads read and compare. Ranges
 * are settled in their order, so the difference found is the first one, and nothing is read behind it
 * but what was under way.
 */
#include "engine/image/compare.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/io/line.h"

#define CHUNK     (512u << 10) /* bytes read at once from each */
#define COARSE    (128u << 10) /* shorter extents are not told from what follows them */
#define STEP      4096u        /* bytes compared at once */
#define MEM_ALIGN 4096u
#define SAME      UINT64_MAX
#define DIFFER    1 /* ends the line */
#define WHAT      "compare"

/* One side and the extent that was asked for last. */
struct side {
	const struct eng_source *source;
	uint64_t end; /* of the extent; 0: none yet */
	bool data;
};

struct range {
	uint64_t start;
	size_t len;
	bool read[2];
	uint8_t *buf[2];
	uint64_t differs; /* offset on the disk, or SAME */
};

struct compare {
	struct side side[2];
	uint64_t size; /* the longer one's */
	struct eng_io *io;
	struct eng_progress *progress;
	struct eng_line *line;
	struct range *ranges;
	unsigned slots;
	uint64_t differs; /* the line's, in order */
};

/* --- the line's steps --- */

/* The first byte that differs, or @len. */
static size_t mismatch(const uint8_t *a, const uint8_t *b, size_t len)
{
	size_t at = 0, n;

	for (; at < len; at += n) {
		n = len - at < STEP ? len - at : STEP;
		if (memcmp(a + at, b + at, n)) {
			while (a[at] == b[at])
				at++;
			break;
		}
	}
	return at;
}

/* Zeros beyond the side's end. */
static int read_side(const struct eng_source *s, struct range *range, uint8_t *buf,
		     struct fmt_error *err)
{
	uint64_t have = s->size > range->start ? s->size - range->start : 0;
	size_t len = have < range->len ? (size_t)have : range->len;

	memset(buf + len, 0, range->len - len);
	return len ? s->read(s->arg, buf, len, range->start, err) : 0;
}

static int compare_range(void *arg, unsigned slot, struct fmt_error *err)
{
	struct compare *c = arg;
	struct range *range = &c->ranges[slot];
	size_t at;
	int r = 0;

	for (int i = 0; r == 0 && i < 2; i++) {
		if (range->read[i])
			r = read_side(c->side[i].source, range, range->buf[i], err);
		else
			memset(range->buf[i], 0, range->len);
	}
	if (r < 0)
		return r;
	at = mismatch(range->buf[0], range->buf[1], range->len);
	range->differs = at < range->len ? range->start + at : SAME;
	return 0;
}

static int settle(void *arg, unsigned slot, struct fmt_error *err)
{
	struct compare *c = arg;

	(void)err;
	if (c->ranges[slot].differs == SAME)
		return 0;
	c->differs = c->ranges[slot].differs;
	return DIFFER;
}

static const struct eng_line_steps steps = {.work = compare_range, .commit = settle};

/* --- what is fed --- */

/* Sees to it that the side's extent reaches beyond @at. */
static int look(struct compare *c, struct side *s, uint64_t at, struct fmt_error *err)
{
	struct eng_extent e;
	int r;

	if (at < s->end)
		return 0;
	s->data = false;
	s->end = c->size;
	if (at >= s->source->size)
		return 0;
	r = s->source->extent(s->source->arg, at, &e, err);
	if (r < 0)
		return r;
	s->data = e.state == ENG_EXTENT_DATA;
	s->end = e.start + e.length;
	return 0;
}

static int feed(struct compare *c, uint64_t at, uint64_t end, bool read_a, bool read_b)
{
	struct range *range;
	unsigned slot = 0;
	int r = eng_line_take(c->line, &slot);

	if (r)
		return r;
	range = &c->ranges[slot];
	range->start = at;
	range->len = (size_t)(end - at);
	range->read[0] = read_a;
	range->read[1] = read_b;
	eng_line_feed(c->line);
	return 0;
}

static int feed_all(struct compare *c, struct fmt_error *err)
{
	struct side *a = &c->side[0], *b = &c->side[1];
	uint64_t at = 0, end;
	int r = eng_progress_pass(c->progress, c->io, 0, WHAT, err);

	for (; r == 0 && at < c->size; at = end) {
		bool read_a, read_b;
		uint64_t limit;

		r = look(c, a, at, err);
		if (r == 0)
			r = look(c, b, at, err);
		if (r < 0)
			break;
		end = a->end < b->end ? a->end : b->end;
		read_a = a->data;
		read_b = b->data;
		limit = (at / COARSE + 1) * COARSE;
		limit = limit < c->size ? limit : c->size;
		if (end < limit && (a->data || b->data)) {
			end = limit;
			read_a = read_b = true;
		}
		limit = (at / CHUNK + 1) * CHUNK;
		if (!read_a && !read_b) {
			r = eng_progress_pass(c->progress, c->io, end - at, WHAT, err);
			continue;
		}
		end = end < limit ? end : limit;
		r = feed(c, at, end, read_a, read_b);
		if (r == 0)
			r = eng_progress_pace(c->progress, c->io, end - at, WHAT, err);
	}
	return r;
}

/* --- all of it --- */

static int make_ranges(struct compare *c)
{
	c->ranges = calloc(c->slots, sizeof(*c->ranges));
	for (unsigned i = 0; c->ranges && i < c->slots; i++) {
		for (int side = 0; side < 2; side++) {
			c->ranges[i].buf[side] = aligned_alloc(MEM_ALIGN, CHUNK);
			if (!c->ranges[i].buf[side])
				return -ENOMEM;
		}
	}
	return c->ranges ? 0 : -ENOMEM;
}

static void free_ranges(struct compare *c)
{
	for (unsigned i = 0; c->ranges && i < c->slots; i++) {
		free(c->ranges[i].buf[0]);
		free(c->ranges[i].buf[1]);
	}
	free(c->ranges);
}

static int run(struct compare *c, struct fmt_error *err)
{
	struct fmt_error why = {""};
	int fed = feed_all(c, err), r = eng_line_end(c->line, &why);

	if (r == DIFFER) /* whatever became of the ranges behind it */
		return 0;
	if (r < 0 && fed != -ECANCELED)
		return fmt_fail(err, r, "%s", why.text);
	return fed;
}

int eng_compare(struct eng_io *io, const struct eng_source *a, const struct eng_source *b,
		struct eng_progress *progress, struct fmt_error *err, struct eng_comparison *ret)
{
	unsigned threads = eng_line_threads(io);
	struct compare c = {
		.side = {{.source = a}, {.source = b}},
		.size = a->size > b->size ? a->size : b->size,
		.io = io,
		.progress = progress,
		.slots = ENG_LINE_SLOTS * threads,
		.differs = SAME,
	};
	int r = make_ranges(&c);

	eng_progress_start(progress, c.size);
	if (r == 0)
		r = eng_line_create(io, threads, c.slots, &steps, &c, &c.line);
	if (r < 0)
		fmt_fail(err, r, "cannot begin to compare: %s", strerror(-r));
	else
		r = run(&c, err);
	free_ranges(&c);
	if (r == 0)
		*ret = (struct eng_comparison){
			.same = c.differs == SAME,
			.first_difference = c.differs,
		};
	return r;
}
