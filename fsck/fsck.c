/* SPDX-License-Identifier: MIT */
/*
 * fsck.c - one check: what is at the path, and the pass that is for it. Any thread.
 */
#include "fsck/fsck.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "format/qcow2.h"
#include "fsck/image.h"
#include "fsck/layer.h"

#define PROBE (FMT_LOG0_OFFSET + 4u) /* both header slots and the first record's magic */

enum kind { KIND_RAW, KIND_LAYER, KIND_QCOW2 };

static bool ends_with(const char *path, const char *suffix)
{
	size_t len = strlen(path), n = strlen(suffix);

	return len > n && strcmp(path + len - n, suffix) == 0;
}

/* A layer may have lost both headers: its name and its log speak for it, too. */
static enum kind probe(const char *path, const uint8_t *head, size_t len)
{
	static const char magic[] = "VMIMGLYR";

	if (fmt_qcow2_is(head, len))
		return KIND_QCOW2;
	if ((len >= 8 && memcmp(head, magic, 8) == 0) ||
	    (len >= FMT_PAGE + 8 && memcmp(head + FMT_PAGE, magic, 8) == 0) ||
	    (len >= PROBE && memcmp(head + FMT_LOG0_OFFSET, "VLOG", 4) == 0) ||
	    ends_with(path, ".vmo") || ends_with(path, ".vmr"))
		return KIND_LAYER;
	return KIND_RAW;
}

static int read_head(struct fsck *f, const char *path, uint8_t head[PROBE], size_t *len)
{
	struct eng_file *file = NULL;
	ssize_t n;
	int r = eng_io_open(f->io, path, 0, &file);

	if (r < 0)
		return fsck_cannot(f, r, "%s: %s", path, strerror(-r));
	n = eng_io_pread(f->io, file, head, PROBE, 0);
	r = n < 0 ? fsck_cannot(f, (int)n, "%s: cannot read: %s", path, strerror((int)-n))
		  : eng_io_lock(f->io, file);
	if (n >= 0 && r == -EWOULDBLOCK) /* IM-4 */
		r = fsck_cannot(f, -EBUSY, "%s: the image is in use", path);
	else if (n >= 0 && r < 0)
		fsck_cannot(f, r, "%s: cannot lock: %s", path, strerror(-r));
	if (r == 0)
		*len = (size_t)n;
	eng_io_close(f->io, file);
	return r;
}

static void check_image(struct fsck *f, const char *path)
{
	uint8_t head[PROBE];
	struct fmt_header hdr;
	size_t len = 0;

	fsck_at(f, "%s", path);
	if (read_head(f, path, head, &len) < 0)
		return;
	switch (probe(path, head, len)) {
	case KIND_LAYER: fsck_layer(f, path, 0, &hdr); break;
	case KIND_QCOW2:
		f->sum.layers++;
		fsck_qcow2(f, path);
		break;
	case KIND_RAW: /* any bytes are a raw image */ f->sum.layers++; break;
	}
}

int fsck_run(struct eng_io *io, const char *path,
	     void (*finding)(void *arg, const struct fsck_finding *f), void *arg,
	     struct fmt_error *err, struct fsck_summary *ret)
{
	struct fsck f = {.io = io, .finding = finding, .arg = arg};
	struct eng_stat st;
	int r = eng_io_stat(io, path, &st);

	if (r < 0)
		fsck_cannot(&f, r, "%s: %s", path, strerror(-r));
	else if (st.is_dir)
		fsck_store(&f, path);
	else if (st.is_regular || st.is_block)
		check_image(&f, path);
	else
		fsck_cannot(&f, -EINVAL, "%s: neither a store nor an image", path);
	fsck_at(&f, "%s", path);
	*ret = f.sum;
	return f.result < 0 ? fmt_fail(err, f.result, "%s", f.why.text) : 0;
}
