/* SPDX-License-Identifier: MIT */
/* copy.c - see copy.h. */
#include "engine/image/copy.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/io/line.h"
#include "format/zero.h"

#define CHUNK (512u << 10) /* bytes read at once */
#define UNIT  (64u << 10)  /* zeros are left out in this unit */

struct chunk {
	uint64_t at;
	size_t len;
	uint8_t *buf;
};

struct copy {
	const struct eng_copy *how;
	struct eng_line *line;
	struct chunk *chunks; /* by slot of the line */
	unsigned slots;
	struct fmt_error *err;
};

int eng_copy_nonzero(const void *buf, size_t len, uint64_t offset, eng_copy_write *write, void *arg,
		     struct fmt_error *err)
{
	const uint8_t *bytes = buf;
	size_t from = 0, next;
	int r = 0;

	for (size_t p = 0; p < len && r == 0; p = next) {
		next = UNIT - (offset + p) % UNIT;
		next = len - p < next ? len : p + next;
		if (fmt_is_zero(bytes + p, next - p)) {
			if (p > from)
				r = write(arg, bytes + from, p - from, offset + from, err);
			from = next;
		}
	}
	return r == 0 && len > from ? write(arg, bytes + from, len - from, offset + from, err) : r;
}

/* --- the line's steps --- */

static int read_chunk(void *arg, unsigned slot, struct fmt_error *err)
{
	struct copy *c = arg;
	struct chunk *k = &c->chunks[slot];
	const struct eng_source *source = c->how->source;

	return source->read(source->arg, k->buf, k->len, k->at, err);
}

static int write_chunk(void *arg, unsigned slot, struct fmt_error *err)
{
	struct copy *c = arg;
	const struct chunk *k = &c->chunks[slot];

	return eng_copy_nonzero(k->buf, k->len, k->at, c->how->write, c->how->arg, err);
}

static const struct eng_line_steps any_order = {.work = read_chunk, .finish = write_chunk};
static const struct eng_line_steps in_order = {.work = read_chunk, .commit = write_chunk};

/* --- what is fed --- */

static int feed(struct copy *c, uint64_t at, size_t len)
{
	const struct eng_copy *how = c->how;
	unsigned slot = 0;
	int r = eng_line_take(c->line, &slot);

	if (r)
		return r;
	c->chunks[slot].at = at;
	c->chunks[slot].len = len;
	eng_line_feed(c->line);
	return eng_progress_pace(how->progress, how->io, len, how->name, c->err);
}

static int feed_extent(struct copy *c, const struct eng_extent *e)
{
	const struct eng_copy *how = c->how;
	uint64_t at = e->start, end = e->start + e->length, step;
	int r = 0;

	if (e->state != ENG_EXTENT_DATA)
		return eng_progress_pass(how->progress, how->io, e->length, how->name, c->err);
	for (; r == 0 && at < end; at += step) {
		step = CHUNK - at % CHUNK;
		step = step < end - at ? step : end - at;
		r = feed(c, at, (size_t)step);
	}
	return r;
}

static int feed_all(struct copy *c)
{
	const struct eng_copy *how = c->how;
	struct eng_extent e;
	uint64_t at = 0;
	int r = eng_progress_pass(how->progress, how->io, 0, how->name, c->err);

	while (r == 0 && at < how->source->size) {
		r = how->source->extent(how->source->arg, at, &e, c->err);
		if (r == 0)
			r = feed_extent(c, &e);
		at += r == 0 ? e.length : 0;
	}
	return r;
}

/* --- all of it --- */

static int make_chunks(struct copy *c)
{
	c->chunks = calloc(c->slots, sizeof(*c->chunks));
	for (unsigned i = 0; c->chunks && i < c->slots; i++) {
		c->chunks[i].buf = malloc(CHUNK);
		if (!c->chunks[i].buf)
			return -ENOMEM;
	}
	return c->chunks ? 0 : -ENOMEM;
}

int eng_copy(const struct eng_copy *how, struct fmt_error *err)
{
	unsigned threads = eng_line_threads(how->io);
	struct copy c = {.how = how, .slots = ENG_LINE_SLOTS * threads, .err = err};
	struct fmt_error why = {""};
	int r = make_chunks(&c), ended;

	if (r == 0)
		r = eng_line_create(how->io, threads, c.slots,
				    how->in_order ? &in_order : &any_order, &c, &c.line);
	if (r < 0) {
		fmt_fail(err, r, "%s: cannot begin: %s", how->name, strerror(-r));
	} else {
		r = feed_all(&c);
		ended = eng_line_end(c.line, &why);
		if (ended < 0 && r != -ECANCELED)
			r = fmt_fail(err, ended, "%s", why.text);
	}
	for (unsigned i = 0; c.chunks && i < c.slots; i++)
		free(c.chunks[i].buf);
	free(c.chunks);
	return r;
}
