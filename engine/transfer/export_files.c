/* SPDX-License-Identifier: MIT */
/*
 * export_files.c - a disk of a snapshot as a raw or qcow2 file (EX-3, EX-4). A raw file is written only
 * where there is something (copy.h); qcow2 is Q2W's.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/transfer/export_impl.h"
#include "engine/image/copy.h"
#include "engine/image/qcow2_write.h"
#include "format/content.h"

#define EXTENTS 1024u

/* --- a disk as a source --- */

struct disk_source {
	struct eng_export_plan *plan;
	uint32_t disk;
	/* Extents asked for at once, from @at on; the one thread's that asks. */
	struct eng_disk_extent *extents;
	int count, next;
	uint64_t at;             /* where extents[next] begins */
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

/* --- raw --- */

struct raw {
	struct eng_io *io;
	struct eng_file *file;
	const char *path;
	_Atomic uint64_t written;
};

static int write_part(void *arg, const void *buf, size_t len, uint64_t offset,
		      struct fmt_error *err)
{
	struct raw *raw = arg;
	int r = eng_io_pwrite(raw->io, raw->file, buf, len, offset);

	atomic_fetch_add(&raw->written, len);
	return r < 0 ? fmt_fail(err, r, "%s: cannot write: %s", raw->path, strerror(-r)) : 0;
}

static int write_raw(struct eng_export_plan *plan, const char *path,
		     const struct eng_source *source, struct fmt_error *err)
{
	struct eng_io *io = plan->store->io;
	struct raw raw = {.io = io, .path = path};
	struct eng_copy how = {
		.io = io,
		.source = source,
		.name = path,
		.write = write_part,
		.arg = &raw,
		.progress = plan->how->progress,
	};
	int r = eng_io_open(io, path, ENG_OPEN_WRITE | ENG_OPEN_CREATE | ENG_OPEN_EXCL, &raw.file);

	if (r < 0)
		return fmt_fail(err, r, "%s: %s", path, strerror(-r));
	r = eng_io_truncate(io, raw.file, source->size);
	if (r < 0)
		fmt_fail(err, r, "%s: %s", path, strerror(-r));
	else
		r = eng_copy(&how, err);
	if (r == 0) {
		r = eng_io_fdatasync(io, raw.file);
		if (r < 0)
			fmt_fail(err, r, "%s: cannot sync: %s", path, strerror(-r));
	}
	eng_io_close(io, raw.file);
	plan->written += atomic_load(&raw.written);
	return r;
}

/* --- qcow2 --- */

static int write_qcow2(struct eng_export_plan *plan, uint32_t disk, const char *path,
		       const struct eng_source *source, struct fmt_error *err)
{
	struct eng_qcow2_target target = {.path = path, .compress = plan->how->compress};
	char backing[CAT_NAME_MAX + 16];
	uint64_t read;
	int r;

	if (plan->disks[disk].changed) {
		snprintf(backing, sizeof(backing), "%s.base.qcow2", plan->m.disks[disk].name);
		target.backing = backing;
		target.backing_format = "qcow2";
	}
	r = eng_qcow2_write(plan->store->io, &target, source, plan->how->progress, err, &read);
	plan->written += r == 0 ? read : 0;
	return r;
}

int eng_export_image(struct eng_export_plan *plan, uint32_t disk, const char *path,
		     struct fmt_error *err)
{
	struct disk_source s = {.plan = plan, .disk = disk};
	struct eng_source source = {
		.size = plan->m.disks[disk].size,
		.extent = source_extent,
		.read = source_read,
		.arg = &s,
	};
	int r;

	s.extents = malloc(EXTENTS * sizeof(*s.extents));
	if (!s.extents)
		return fmt_fail(err, -ENOMEM, "out of memory");
	r = plan->how->format == FMT_EXPORT_RAW ? write_raw(plan, path, &source, err)
						: write_qcow2(plan, disk, path, &source, err);
	free(s.extents);
	if (r < 0)
		return r;
	fmt_content_get(&(struct fmt_content){.lo = atomic_load(&s.lo), .hi = atomic_load(&s.hi)},
			plan->m.disks[disk].content);
	plan->m.disks[disk].has_content = true;
	return 0;
}
