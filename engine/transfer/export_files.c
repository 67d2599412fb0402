/* SPDX-License-Identifier: MIT */
/*
 * export_files.c - a disk of a snapshot as a raw or qcow2 file (EX-3, EX-4). A raw file is written in any
 * order by the threads of an assembly line, and only where there is something; qcow2 is Q2W's.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/transfer/export_impl.h"
#include "engine/io/line.h"
#include "engine/io/pace.h"
#include "engine/image/qcow2_write.h"
#include "format/content.h"

#define CHUNK   (512u << 10) /* bytes read at once */
#define PIECE   (64u << 10)  /* zeros are left out in this unit */
#define EXTENTS 1024u

/* --- a disk as a source --- */

struct disk_source {
	struct eng_export_plan *plan;
	uint32_t disk;
	/* Extents asked for at once, from @at on; the one thread's that asks. */
	struct eng_disk_extent *extents;
	int count, next;
	uint64_t at;             /* where extents[next] begins */
	uint64_t told;           /* progress */
	_Atomic uint64_t lo, hi; /* MF-5, of what was read: every piece is, once */
};

static int next_extent(struct disk_source *s, uint64_t offset, struct eng_extent *ret,
		       struct fmt_error *err)
{
	uint64_t size = s->plan->m.disks[s->disk].size, skip;
	int r;

	while (s->next < s->count && s->at + s->extents[s->next].length <= offset)
		s->at += s->extents[s->next++].length;
	if (s->next >= s->count || offset < s->at) {
		r = eng_view_extents(s->plan->view, s->plan->disks[s->disk].view, offset,
				     size - offset, s->extents, EXTENTS, err);
		if (r < 0)
			return r;
		s->count = r;
		s->next = 0;
		s->at = offset;
	}
	skip = offset - s->at;
	*ret = (struct eng_extent){
		.start = offset,
		.length = s->extents[s->next].length - skip,
		.state = (uint8_t)s->extents[s->next].state,
	};
	return 0;
}

struct change {
	uint64_t first, count;
};

static int note_change(void *arg, uint64_t first, uint64_t count)
{
	*(struct change *)arg = (struct change){first, count};
	return 1;
}

/* Q2W-6: a hole is what is as in the base; what changed to nothing reads as zeros. */
static int source_extent(void *arg, uint64_t offset, struct eng_extent *ret, struct fmt_error *err)
{
	struct disk_source *s = arg;
	const struct fmt_manifest_disk *d = &s->plan->m.disks[s->disk];
	const struct eng_blocks *changed = s->plan->disks[s->disk].changed;
	uint64_t blocks = fmt_manifest_blocks(d), first = offset >> d->block_bits, end;
	struct change c = {blocks, 0};
	int r;

	if (!changed)
		return next_extent(s, offset, ret, err);
	r = eng_blocks_each(changed, first, blocks - first, note_change, &c);
	if (r < 0)
		return r;
	end = (c.first > first ? c.first : c.first + c.count) << d->block_bits;
	end = end < d->size ? end : d->size;
	if (c.first > first) {
		*ret = (struct eng_extent){
			.start = offset,
			.length = end - offset,
			.state = ENG_EXTENT_HOLE,
		};
		return 0;
	}
	r = next_extent(s, offset, ret, err);
	if (r == 0 && ret->length > end - offset)
		ret->length = end - offset;
	if (r == 0 && ret->state == ENG_EXTENT_HOLE)
		ret->state = ENG_EXTENT_ZERO;
	return r;
}

static int source_read(void *arg, void *buf, size_t len, uint64_t offset, struct fmt_error *err)
{
	struct disk_source *s = arg;
	struct eng_view_piece piece = {.buf = buf, .len = len, .offset = offset};
	struct fmt_content sum = {0};
	int r = eng_view_read(s->plan->view, s->plan->disks[s->disk].view, &piece, 1, err);

	if (r < 0)
		return r;
	fmt_content_add(&sum, buf, len, offset);
	atomic_fetch_add(&s->lo, sum.lo);
	atomic_fetch_add(&s->hi, sum.hi);
	return r;
}

static int tell_progress(void *arg, uint64_t done, uint64_t total)
{
	struct disk_source *s = arg;

	(void)total;
	if (done > s->told)
		eng_progress_add(s->plan->how->progress, done - s->told);
	s->told = done > s->told ? done : s->told;
	return eng_progress_stop(s->plan->how->progress);
}

/* --- raw --- */

struct piece {
	uint64_t at;
	size_t len;
	uint8_t *buf;
};

struct copy {
	struct eng_io *io;
	struct eng_source source;
	struct eng_file *file;
	const char *path;
	struct eng_line *line;
	struct piece *pieces; /* by slot of the line */
	unsigned slots;
	struct eng_pace *pace;
	_Atomic uint64_t written;
	struct fmt_error *err;
};

static bool is_zero(const uint8_t *p, size_t len)
{
	return p[0] == 0 && !memcmp(p, p + 1, len - 1);
}

static int read_piece(void *arg, unsigned slot, struct fmt_error *err)
{
	struct copy *c = arg;
	struct piece *k = &c->pieces[slot];

	return c->source.read(c->source.arg, k->buf, k->len, k->at, err);
}

static int write_part(struct copy *c, const struct piece *k, size_t from, size_t to,
		      struct fmt_error *err)
{
	int r = eng_io_pwrite(c->io, c->file, k->buf + from, to - from, k->at + from);

	atomic_fetch_add(&c->written, to - from);
	return r < 0 ? fmt_fail(err, r, "%s: cannot write: %s", c->path, strerror(-r)) : 0;
}

/* What is not zero. */
static int write_piece(void *arg, unsigned slot, struct fmt_error *err)
{
	struct copy *c = arg;
	const struct piece *k = &c->pieces[slot];
	size_t from = 0, next;
	int r = 0;

	for (size_t p = 0; p < k->len && r == 0; p = next) {
		next = k->len - p < PIECE ? k->len : p + PIECE;
		if (is_zero(k->buf + p, next - p)) {
			if (p > from)
				r = write_part(c, k, from, p, err);
			from = next;
		}
	}
	return r == 0 && k->len > from ? write_part(c, k, from, k->len, err) : r;
}

static const struct eng_line_steps raw_steps = {.work = read_piece, .finish = write_piece};

static int feed_extent(struct copy *c, const struct eng_extent *e)
{
	uint64_t at = e->start, end = e->start + e->length, step;
	int r = 0;

	if (e->state != ENG_EXTENT_DATA)
		return eng_pace(c->pace, end, c->err);
	for (; r == 0 && at < end; at += step) {
		unsigned slot = 0;

		step = CHUNK - at % CHUNK;
		step = step < end - at ? step : end - at;
		r = eng_line_take(c->line, &slot);
		if (r)
			break;
		c->pieces[slot].at = at;
		c->pieces[slot].len = (size_t)step;
		eng_line_feed(c->line);
		c->pace->moved += step;
		r = eng_pace(c->pace, at + step, c->err);
	}
	return r;
}

static int feed_all(struct copy *c)
{
	struct eng_extent e;
	uint64_t at = 0;
	int r = eng_pace(c->pace, 0, c->err);

	while (r == 0 && at < c->source.size) {
		r = c->source.extent(c->source.arg, at, &e, c->err);
		if (r == 0)
			r = feed_extent(c, &e);
		at += r == 0 ? e.length : 0;
	}
	return r;
}

static int make_pieces(struct copy *c)
{
	c->pieces = calloc(c->slots, sizeof(*c->pieces));
	for (unsigned i = 0; c->pieces && i < c->slots; i++)
		if (!(c->pieces[i].buf = malloc(CHUNK)))
			return -ENOMEM;
	return c->pieces ? 0 : -ENOMEM;
}

static int copy_all(struct copy *c)
{
	unsigned threads = eng_line_threads(c->io);
	struct fmt_error why = {""};
	int r, ended;

	c->slots = ENG_LINE_SLOTS * threads;
	r = make_pieces(c);
	if (r == 0)
		r = eng_line_create(c->io, threads, c->slots, &raw_steps, c, &c->line);
	if (r < 0) {
		fmt_fail(c->err, r, "%s: cannot begin: %s", c->path, strerror(-r));
	} else {
		r = feed_all(c);
		ended = eng_line_end(c->line, &why);
		if (ended < 0 && r != -ECANCELED)
			r = fmt_fail(c->err, ended, "%s", why.text);
	}
	for (unsigned i = 0; c->pieces && i < c->slots; i++)
		free(c->pieces[i].buf);
	free(c->pieces);
	return r;
}

static int write_raw(struct eng_export_plan *plan, const char *path,
		     const struct eng_source *source, struct eng_pace *pace, struct fmt_error *err)
{
	struct eng_io *io = plan->store->io;
	struct copy c = {.io = io, .source = *source, .path = path, .pace = pace, .err = err};
	int r = eng_io_open(io, path, ENG_OPEN_WRITE | ENG_OPEN_CREATE | ENG_OPEN_EXCL, &c.file);

	if (r < 0)
		return fmt_fail(err, r, "%s: %s", path, strerror(-r));
	r = eng_io_truncate(io, c.file, source->size);
	if (r < 0)
		fmt_fail(err, r, "%s: %s", path, strerror(-r));
	else
		r = copy_all(&c);
	if (r == 0) {
		r = eng_io_fdatasync(io, c.file);
		if (r < 0)
			fmt_fail(err, r, "%s: cannot sync: %s", path, strerror(-r));
	}
	eng_io_close(io, c.file);
	plan->written += atomic_load(&c.written);
	return r;
}

/* --- qcow2 --- */

static int write_qcow2(struct eng_export_plan *plan, uint32_t disk, const char *path,
		       const struct eng_source *source, struct eng_pace *pace,
		       struct fmt_error *err)
{
	struct eng_qcow2_target target = {.path = path, .compress = plan->how->compress};
	char backing[CAT_NAME_MAX + 16];
	int r;

	if (plan->disks[disk].changed) {
		snprintf(backing, sizeof(backing), "%s.base.qcow2", plan->m.disks[disk].name);
		target.backing = backing;
		target.backing_format = "qcow2";
	}
	r = eng_qcow2_write(plan->store->io, &target, source, pace, err);
	plan->written += pace->moved;
	return r;
}

int eng_export_image(struct eng_export_plan *plan, uint32_t disk, const char *path,
		     struct fmt_error *err)
{
	struct eng_progress *p = plan->how->progress;
	struct disk_source s = {.plan = plan, .disk = disk};
	struct eng_source source = {
		.size = plan->m.disks[disk].size,
		.extent = source_extent,
		.read = source_read,
		.arg = &s,
	};
	struct eng_pace pace = {
		.io = plan->store->io,
		.path = path,
		.total = source.size,
		.rate = p ? atomic_load(&p->rate) : 0,
		.progress = tell_progress,
		.arg = &s,
	};
	int r;

	s.extents = malloc(EXTENTS * sizeof(*s.extents));
	if (!s.extents)
		return fmt_fail(err, -ENOMEM, "out of memory");
	r = plan->how->format == FMT_EXPORT_RAW
		    ? write_raw(plan, path, &source, &pace, err)
		    : write_qcow2(plan, disk, path, &source, &pace, err);
	free(s.extents);
	if (r < 0)
		return r;
	fmt_content_get(&(struct fmt_content){.lo = atomic_load(&s.lo), .hi = atomic_load(&s.hi)},
			plan->m.disks[disk].content);
	plan->m.disks[disk].has_content = true;
	return 0;
}
