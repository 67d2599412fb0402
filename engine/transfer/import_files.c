/* SPDX-License-Identifier: MIT */
/*
 * import_files.c - what an export as raw or qcow2 has written, read back (IP-7): manifest.json and one file
 * a disk, over an assembly line whose threads read and hash pieces (any order), give the blocks that are
 * not zeros slots (in order) and write them (any order). Nothing in the directory is trusted: names are
 * the manifest's, which are names; no symbolic link is followed below it, and no backing file opened.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/io/line.h"
#include "engine/layer/qcow2.h"
#include "engine/transfer/import_impl.h"
#include "format/content.h"
#include "format/layer.h"
#include "format/zero.h"

#define PIECE  (512u << 10)
#define BLOCKS (PIECE >> FMT_BLOCK_BITS_MIN)

static_assert(PIECE >> FMT_BLOCK_BITS_MAX >= 1, "a piece is a block at least");

/* Some blocks in a row. Afterwards those that are not zeros lie at the front of @data. */
struct piece {
	uint64_t block, count;
	bool zero; /* all of them; nothing is read, count is not bounded */
	bool zeros[BLOCKS];
	uint64_t csums[BLOCKS]; /* of the others */
	size_t len;             /* bytes of the others */
	uint64_t offset;        /* in the layer's file */
	uint8_t *data;
};

struct files {
	struct eng_import_run *run;
	struct eng_io *io;
	struct fmt_manifest m;
	struct eng_line *line;
	struct piece *pieces; /* by slot */
	unsigned slots;
	/* the disk that is being read */
	uint32_t disk;
	char *path;
	struct eng_file *raw; /* or */
	struct eng_qcow2 *qcow2;
	_Atomic uint64_t lo, hi; /* MF-5 */
	struct fmt_error *err;
};

static const struct fmt_manifest_disk *the_disk(const struct files *f)
{
	return &f->m.disks[f->disk];
}

/* --- the line's steps --- */

static int read_image(struct files *f, void *buf, size_t len, uint64_t offset,
		      struct fmt_error *err)
{
	ssize_t n;

	if (f->qcow2)
		return eng_qcow2_read(f->qcow2, buf, len, offset, err);
	n = eng_io_pread(f->io, f->raw, buf, len, offset);
	if (n < 0)
		return fmt_fail(err, (int)n, "%s: cannot read %zu bytes at %" PRIu64 ": %s",
				f->path, len, offset, strerror((int)-n));
	return (size_t)n == len
		       ? 0
		       : fmt_fail(err, -ENODATA, "%s: ended at %" PRIu64 " while it was read",
				  f->path, offset + (uint64_t)n);
}

static int work(void *arg, unsigned slot, struct fmt_error *err)
{
	struct files *f = arg;
	struct piece *p = &f->pieces[slot];
	const struct fmt_manifest_disk *d = the_disk(f);
	size_t bs = (size_t)1 << d->block_bits, len = (size_t)p->count << d->block_bits;
	uint64_t start = p->block << d->block_bits, left = d->size - start;
	struct fmt_content sum = {0};
	int r;

	p->len = 0;
	if (p->zero)
		return 0;
	if (left < len)
		memset(p->data + left, 0, len - left);
	r = read_image(f, p->data, left < len ? left : len, start, err);
	if (r < 0)
		return r;
	fmt_content_add(&sum, p->data, left < len ? left : len, start);
	atomic_fetch_add(&f->lo, sum.lo);
	atomic_fetch_add(&f->hi, sum.hi);
	for (size_t i = 0; i < p->count; i++) {
		const uint8_t *block = p->data + i * bs;

		p->zeros[i] = fmt_is_zero(block, bs);
		if (p->zeros[i])
			continue;
		p->csums[p->len / bs] = fmt_block_csum(block, bs);
		if (block != p->data + p->len)
			memcpy(p->data + p->len, block, bs);
		p->len += bs;
	}
	return 0;
}

/* Slots of a piece are one behind the other: one write. */
static int commit(void *arg, unsigned slot, struct fmt_error *err)
{
	struct files *f = arg;
	struct piece *p = &f->pieces[slot];
	struct eng_import_layer *l = f->run->disks[f->disk].writer;
	uint32_t done = 0, next;
	int r = 0;

	if (p->zero)
		return eng_import_layer_zero(l, p->block, p->count, err);
	for (uint32_t i = 0; r == 0 && i < p->count; i = next) {
		uint64_t offset = 0;

		for (next = i + 1; next < p->count && p->zeros[next] == p->zeros[i];)
			next++;
		if (p->zeros[i]) {
			r = eng_import_layer_zero(l, p->block + i, next - i, err);
			continue;
		}
		r = eng_import_layer_add(l, p->block + i, next - i, p->csums + done, err, &offset);
		if (!done)
			p->offset = offset;
		done += next - i;
	}
	return r;
}

static int finish(void *arg, unsigned slot, struct fmt_error *err)
{
	struct files *f = arg;
	struct piece *p = &f->pieces[slot];

	return p->len ? eng_import_layer_write(f->run->disks[f->disk].writer, p->data, p->len,
					       p->offset, err)
		      : 0;
}

static const struct eng_line_steps steps = {.work = work, .commit = commit, .finish = finish};

/* --- a disk's file --- */

/* DIR/VM is a directory, and no symbolic link to one. */
static int check_directory(struct files *f, const char *vm)
{
	struct eng_file *file = NULL;
	char *path = NULL;
	int r;

	if (asprintf(&path, "%s/%s", f->run->how->dir, vm) < 0)
		return fmt_fail(f->err, -ENOMEM, "out of memory");
	r = eng_io_open(f->io, path, ENG_OPEN_NOFOLLOW, &file);
	eng_io_close(f->io, file);
	r = r == -EISDIR ? 0 : r < 0 ? r : -ENOTDIR; /* only files can be opened */
	if (r < 0)
		fmt_fail(f->err, r, "%s: %s", path, r == -ELOOP ? "a symbolic link" : strerror(-r));
	free(path);
	return r;
}

static int wrong_size(struct files *f, uint64_t size)
{
	return fmt_fail(f->err, -EUCLEAN, "%s: %" PRIu64 " bytes, expected %" PRIu64 " (IP-7)",
			f->path, size, the_disk(f)->size);
}

static int open_raw(struct files *f)
{
	struct eng_stat st;
	int r = eng_io_open(f->io, f->path, ENG_OPEN_NOFOLLOW, &f->raw);

	if (r == 0)
		r = eng_io_fstat(f->io, f->raw, &st);
	if (r == 0 && !st.is_regular)
		r = -EINVAL;
	if (r < 0)
		return fmt_fail(f->err, r, "%s: %s", f->path,
				r == -ELOOP    ? "a symbolic link"
				: r == -EINVAL ? "not a regular file"
					       : strerror(-r));
	return st.size == the_disk(f)->size ? 0 : wrong_size(f, st.size);
}

static int open_qcow2(struct files *f)
{
	struct eng_qcow2_info info;
	int r = eng_qcow2_open_alone(f->io, f->path, f->err, &f->qcow2);

	if (r < 0)
		return r;
	eng_qcow2_info(f->qcow2, 0, &info);
	if (!info.stat.is_regular)
		return fmt_fail(f->err, -EINVAL, "%s: not a regular file", f->path);
	if (info.size != the_disk(f)->size)
		return wrong_size(f, info.size);
	if (the_disk(f)->full && info.backing[0])
		return fmt_fail(f->err, -EUCLEAN,
				"%s: names the backing file \"%.200s\", expected none (IP-7)",
				f->path, info.backing);
	return 0;
}

static void close_disk(struct files *f)
{
	eng_io_close(f->io, f->raw);
	eng_qcow2_close(f->qcow2);
	free(f->path);
	f->raw = NULL;
	f->qcow2 = NULL;
	f->path = NULL;
}

static int open_disk(struct files *f, uint32_t disk)
{
	const struct fmt_manifest_disk *d = &f->m.disks[disk];
	bool raw = f->m.format == FMT_EXPORT_RAW;
	const char *vm = f->m.vms[d->vm].name;
	int r = check_directory(f, vm);

	f->disk = disk;
	if (r < 0)
		return r;
	if (asprintf(&f->path, "%s/%s/%s.%s", f->run->how->dir, vm, d->name,
		     raw ? "raw" : "qcow2") < 0) {
		f->path = NULL;
		return fmt_fail(f->err, -ENOMEM, "out of memory");
	}
	return raw ? open_raw(f) : open_qcow2(f);
}

/* What is at @offset, and for how long. */
static int extent(struct files *f, uint64_t offset, uint64_t *len, enum eng_qcow2_state *state)
{
	uint64_t size = the_disk(f)->size, data, hole;
	int r;

	if (f->qcow2)
		return eng_qcow2_extent(f->qcow2, offset, f->err, len, state, NULL);
	r = eng_io_next_data(f->io, f->raw, offset, &data, &hole);
	if (r < 0 && r != -ENXIO)
		return fmt_fail(f->err, r, "%s: cannot look for data: %s", f->path, strerror(-r));
	*state = r == 0 && data <= offset ? ENG_QCOW2_DATA : ENG_QCOW2_HOLE;
	*len = (r < 0 ? size : *state == ENG_QCOW2_DATA ? hole : data) - offset;
	return 0;
}

/*
 * What the blocks from @block on are, and where the first one of another kind is. One that is not the same
 * from end to end is read; in an increment there is none, for what it leaves to the base is not here.
 */
static int classify(struct files *f, uint64_t block, uint64_t *end, enum eng_qcow2_state *state)
{
	const struct fmt_manifest_disk *d = the_disk(f);
	uint64_t start = block << d->block_bits, blocks = fmt_manifest_blocks(d);
	uint64_t bs = 1ull << d->block_bits, len = 0, stop;
	int r = extent(f, start, &len, state);

	if (r < 0)
		return r;
	stop = start + len < d->size ? start + len : d->size;
	if (!d->full && stop % bs && stop < d->size)
		return fmt_fail(f->err, -EUCLEAN,
				"%s: a change ends at %" PRIu64 ", inside of a block of %" PRIu64
				" bytes (IP-7)",
				f->path, stop, bs);
	*end = stop == d->size ? blocks : stop >> d->block_bits;
	if (*state != ENG_QCOW2_DATA && *end > block)
		return 0;
	*state = ENG_QCOW2_DATA;
	*end = (stop + bs - 1) >> d->block_bits;
	return 0;
}

/* --- feeding --- */

static int pace(struct files *f, uint64_t end, uint64_t bytes)
{
	struct eng_import_disk *to = &f->run->disks[f->disk];
	uint64_t size = the_disk(f)->size, at = end << the_disk(f)->block_bits, moved;
	struct eng_progress *p = f->run->how->progress;

	at = at < size ? at : size;
	moved = at - to->told;
	to->told = at;
	bytes = bytes < moved ? bytes : moved;
	if (moved > bytes)
		eng_progress_add(p, moved - bytes);
	f->run->bytes += bytes;
	return eng_progress_pace(p, f->io, bytes, f->path, f->err);
}

static int feed(struct files *f, uint64_t block, uint64_t count, bool zero)
{
	unsigned slot = 0;
	int r = eng_line_take(f->line, &slot);

	if (r)
		return r;
	f->pieces[slot].block = block;
	f->pieces[slot].count = count;
	f->pieces[slot].zero = zero;
	eng_line_feed(f->line);
	return 0;
}

static int feed_data(struct files *f, uint64_t block, uint64_t end)
{
	uint32_t bits = the_disk(f)->block_bits;
	uint64_t room = PIECE >> bits, count;
	int r = 0;

	for (; r == 0 && block < end; block += count) {
		count = end - block < room ? end - block : room;
		r = feed(f, block, count, false);
		if (r == 0)
			r = pace(f, block + count, count << bits);
	}
	return r;
}

static int feed_disk(struct files *f)
{
	uint64_t blocks = fmt_manifest_blocks(the_disk(f)), end = 0;
	enum eng_qcow2_state state;
	int r = 0;

	for (uint64_t block = 0; r == 0 && block < blocks; block = end) {
		r = classify(f, block, &end, &state);
		if (r == 0 && state == ENG_QCOW2_DATA) {
			r = feed_data(f, block, end);
			continue;
		}
		if (r == 0 && state == ENG_QCOW2_ZERO)
			r = feed(f, block, end - block, true);
		if (r == 0)
			r = pace(f, end, 0);
	}
	return r;
}

static int check_content(struct files *f)
{
	const struct fmt_content sum = {.lo = atomic_load(&f->lo), .hi = atomic_load(&f->hi)};
	uint8_t found[16];

	fmt_content_get(&sum, found);
	if (!memcmp(found, the_disk(f)->content, sizeof(found)))
		return 0;
	return fmt_fail(f->err, -EBADMSG,
			"%s: not what was exported: changed since, or damaged (MF-5); a disk of "
			"its own can be created from a changed image",
			f->path);
}

static int read_disk(void *arg, uint32_t disk)
{
	struct files *f = arg;
	struct fmt_error why = {""};
	int r = open_disk(f, disk), ended;

	atomic_store(&f->lo, 0);
	atomic_store(&f->hi, 0);
	if (r == 0) {
		r = eng_line_create(f->io, eng_line_threads(f->io), f->slots, &steps, f, &f->line);
		if (r < 0)
			fmt_fail(f->err, r, "%s: cannot begin: %s", f->path, strerror(-r));
	}
	if (r == 0) {
		r = feed_disk(f);
		ended = eng_line_end(f->line, &why);
		if (ended < 0 && r != -ECANCELED)
			r = fmt_fail(f->err, ended, "%s", why.text);
	}
	if (r == 0)
		r = check_content(f);
	close_disk(f);
	return r;
}

/* --- all of it --- */

static int make_pieces(struct files *f)
{
	f->slots = ENG_LINE_SLOTS * eng_line_threads(f->io);
	f->pieces = calloc(f->slots, sizeof(*f->pieces));
	for (unsigned i = 0; f->pieces && i < f->slots; i++)
		if (!(f->pieces[i].data = malloc(PIECE)))
			return fmt_fail(f->err, -ENOMEM, "out of memory");
	return f->pieces ? 0 : fmt_fail(f->err, -ENOMEM, "out of memory");
}

/* Every file is there and has its size, before the first is read. */
static int begin(void *arg)
{
	struct files *f = arg;
	int r = make_pieces(f);

	for (uint32_t i = 0; r == 0 && i < f->m.disk_count; i++) {
		if (!f->m.disks[i].has_content)
			return fmt_fail(f->err, -EINVAL,
					"%s: the manifest alone, without data (IP-7)",
					f->run->how->dir);
		if (!f->m.disks[i].full && f->m.format == FMT_EXPORT_RAW)
			return fmt_fail(f->err, -EUCLEAN,
					"%s: an increment, and raw files cannot say what is as in "
					"the base (EX-4)",
					f->run->how->dir);
		r = open_disk(f, i);
		close_disk(f);
	}
	return r;
}

static void close_files(void *arg)
{
	struct files *f = arg;

	for (unsigned i = 0; f->pieces && i < f->slots; i++)
		free(f->pieces[i].data);
	free(f->pieces);
	fmt_manifest_fini(&f->m);
	free(f);
}

static int read_text(struct eng_io *io, const char *path, struct fmt_error *err, char **ret,
		     size_t *len)
{
	struct eng_file *file = NULL;
	struct eng_stat st;
	char *text = NULL;
	ssize_t n = 0;
	int r = eng_io_open(io, path, ENG_OPEN_NOFOLLOW, &file);

	if (r == 0)
		r = eng_io_fstat(io, file, &st);
	if (r == 0 && (!st.is_regular || st.size > FMT_STREAM_MANIFEST_MAX))
		r = -EINVAL;
	if (r == 0)
		r = (text = malloc(st.size + 1)) ? 0 : -ENOMEM;
	if (r == 0) {
		n = eng_io_pread(io, file, text, st.size, 0);
		r = n < 0 ? (int)n : 0;
	}
	eng_io_close(io, file);
	if (r < 0) {
		free(text);
		return fmt_fail(err, r, "%s: %s", path,
				r == -EINVAL ? "no manifest: not a regular file of up to 16 MiB"
					     : strerror(-r));
	}
	*ret = text;
	*len = (size_t)n;
	return 0;
}

static int read_manifest(struct files *f, const char *dir)
{
	struct fmt_error why = {""};
	char *path = NULL, *text = NULL;
	size_t len = 0;
	int r;

	if (asprintf(&path, "%s/manifest.json", dir) < 0)
		return fmt_fail(f->err, -ENOMEM, "out of memory");
	r = read_text(f->io, path, f->err, &text, &len);
	if (r == 0) {
		r = fmt_manifest_decode(text, len, &f->m, &why);
		if (r < 0)
			fmt_fail(f->err, r, "%s: %s", path, why.text);
	}
	if (r == 0 && f->m.format == FMT_EXPORT_STREAM)
		r = fmt_fail(f->err, -EINVAL, "%s: the manifest alone, without data (IP-7)", dir);
	free(text);
	free(path);
	return r;
}

static int open_files(struct eng_import_run *run, void **ret)
{
	struct files *f = calloc(1, sizeof(*f));
	int r;

	if (!f)
		return fmt_fail(run->err, -ENOMEM, "out of memory");
	f->run = run;
	f->io = run->store->io;
	f->err = run->err;
	r = read_manifest(f, run->how->dir);
	if (r < 0) {
		close_files(f);
		return r;
	}
	run->m = &f->m;
	run->name = run->how->dir;
	*ret = f;
	return 0;
}

const struct eng_import_reader eng_import_files = {
	.open = open_files,
	.begin = begin,
	.disk = read_disk,
	.close = close_files,
};
