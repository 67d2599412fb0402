/* SPDX-License-Identifier: MIT */
/*
 * layer.c - one layer's file through all its passes. What one pass finds broken ends those that would
 * stand on it, and no others. One thread a check.
 */
#include "fsck/layer.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

int fsck_read(struct fsck_layer *l, void *buf, size_t len, uint64_t offset)
{
	ssize_t n = eng_io_pread(l->f->io, l->file, buf, len, offset);

	if (n < 0)
		return fsck_cannot(l->f, (int)n, "%s: cannot read %zu bytes at %#" PRIx64 ": %s",
				   l->path, len, offset, strerror((int)-n));
	if ((size_t)n == len)
		return 0;
	if (offset <= l->st.size && len <= l->st.size - offset)
		return fsck_cannot(l->f, -EIO, "%s: it ended at %#" PRIx64 " while it was read",
				   l->path, offset + (uint64_t)n);
	return -ENODATA;
}

static int open_layer(struct fsck_layer *l)
{
	int r = eng_io_open(l->f->io, l->path, ENG_OPEN_NOFOLLOW, &l->file);

	if (r == -ENOENT)
		return r;
	if (r == 0)
		r = eng_io_fstat(l->f->io, l->file, &l->st);
	if (r < 0)
		return fsck_cannot(l->f, r, "%s: %s", l->path, strerror(-r));
	l->buf = malloc(FSCK_BUF);
	return l->buf ? 0 : fsck_cannot(l->f, -ENOMEM, "%s: no memory", l->path);
}

static int read_header(struct fsck_layer *l, uint32_t kind)
{
	int r = fsck_read(l, l->buf, FMT_HEADER_SLOTS * FMT_PAGE, 0);

	if (r == -ENODATA)
		fsck_found(l->f, PR_HEADER_SHORT, "it has %" PRIu64 " bytes", l->st.size);
	if (r == 0)
		r = fsck_header(l->f, l->buf, &l->hdr);
	if (r == 0 && kind && l->hdr.kind != kind) {
		fsck_found(l->f, PR_HEADER_KIND, "kind %" PRIu32 ", expected %" PRIu32, l->hdr.kind,
			   kind);
		r = -EUCLEAN;
	}
	return r;
}

static void check_overlay(struct fsck_layer *l)
{
	uint64_t bs = UINT64_C(1) << l->hdr.block_bits, slots = 0;

	l->blocks = (l->hdr.size + bs - 1) / bs;
	if (l->st.size > l->hdr.data_offset)
		slots = (l->st.size - l->hdr.data_offset) / bs;
	l->file_slots = slots < FMT_SLOT_NONE ? slots : FMT_SLOT_NONE;
	if (fsck_log(l) == 0 && fsck_map(l) < 0)
		return;
	if (l->hdr.state == FMT_STATE_SEALED)
		fsck_seal(l);
}

/* LH-10, JN-2. In a store that was closed no journal is in use. */
static void check_journal(struct fsck_layer *l)
{
	static const uint8_t none[16];

	if (l->hdr.journal_nonce || memcmp(l->hdr.boot_id, none, 16) != 0)
		fsck_found(l->f, PR_JOURNAL_NAMED,
			   "acknowledged writes may be in it and not in the log");
}

int fsck_layer(struct fsck *f, const char *path, uint32_t kind, struct fmt_header *ret)
{
	struct fsck_layer l = {.f = f, .path = path};
	int r = open_layer(&l);

	if (r == 0)
		r = read_header(&l, kind);
	if (r < 0)
		goto out;
	f->sum.layers++;
	check_journal(&l);
	if (l.hdr.kind == FMT_KIND_OVERLAY)
		check_overlay(&l);
	else if (l.st.size > FMT_HEADER_SLOTS * FMT_PAGE)
		fsck_leaked(f, PR_SIDECAR_SIZE, l.st.size - FMT_HEADER_SLOTS * FMT_PAGE,
			    "%" PRIu64 " bytes", l.st.size);
	*ret = l.hdr;
out:
	eng_io_close(f->io, l.file);
	free(l.segments);
	free(l.log.run);
	free(l.map.run);
	free(l.gone);
	free(l.buf);
	return r;
}
