/* SPDX-License-Identifier: MIT */
/*
 * qcow2.c - reads a qcow2 image and its backing files in place (spec/qcow2.md). The chain is fixed at
 * open: layers[0] is the image, the last one has no backing file. Entries of L1 and L2 tables are read
 * through a cache of 4 KiB pages of the files, so that no count in an image sizes any memory; inflated
 * clusters have a second, small cache. Any thread may enter; both caches are filled outside the lock,
 * which is sound because the files never change while they are open.
 */
#include "engine/layer/qcow2.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/layer/backing.h"
#include "format/qcow2.h"

enum {
	PAGE_LEN = 4096,    /* a table entry never crosses a page */
	PAGES = 256,        /* of all layers together; direct-mapped */
	INFLATED = 4,       /* clusters; replaced in turn */
	JOINED = 64,        /* clusters of one run; bounds what a hostile chain costs, too */
	EXTENT_RUNS = 4096, /* looked at by one eng_qcow2_extent() */
};

struct layer {
	struct eng_file *file;
	struct eng_stat st;
	char *path;
	bool raw;
	uint64_t size;        /* bytes the guest sees */
	struct fmt_qcow2 hdr; /* unused when raw */
};

struct page {
	uint32_t layer, len; /* @len: bytes up to the file's end */
	uint64_t number;     /* place in the file / PAGE_LEN */
	uint8_t bytes[PAGE_LEN];
};

struct inflated {
	uint32_t layer;
	uint64_t host;
	uint8_t *bytes; /* one cluster, NULL: none yet */
};

struct eng_qcow2 {
	struct eng_io *io;
	uint32_t depth; /* layers in use */
	struct layer *layers;
	pthread_mutex_t lock; /* guards all below */
	struct page *pages[PAGES];
	struct inflated inflated[INFLATED];
	unsigned next_inflated;
};

/* A guest range that one layer answers in one way. */
struct run {
	enum fmt_qcow2_state state;
	uint32_t compressed_len;
	uint64_t len;
	uint64_t host; /* DATA: its place in the file; COMPRESSED: the stream's */
	uint64_t in;   /* COMPRESSED: offset inside the cluster */
};

/* --- table entries --- */

static int truncated(const struct layer *l, const char *what, uint64_t at, uint64_t len,
		     struct fmt_error *err)
{
	return fmt_fail(err, -EUCLEAN,
			"%s: truncated: %s of %" PRIu64 " bytes at %" PRIu64
			", but the file has %" PRIu64,
			l->path, what, len, at, l->st.size);
}

static struct page **page_slot(struct eng_qcow2 *q, uint32_t layer, uint64_t number)
{
	return &q->pages[(number + layer * UINT64_C(61)) % PAGES];
}

static bool page_get(struct eng_qcow2 *q, uint32_t layer, uint64_t place, void *buf, size_t len)
{
	uint64_t number = place / PAGE_LEN;
	bool hit;

	pthread_mutex_lock(&q->lock);
	struct page *page = *page_slot(q, layer, number);
	hit = page && page->layer == layer && page->number == number &&
	      place % PAGE_LEN + len <= page->len;
	if (hit)
		memcpy(buf, page->bytes + place % PAGE_LEN, len);
	pthread_mutex_unlock(&q->lock);
	return hit;
}

/* @len bytes of metadata, 8 or 16, at a multiple of @len. */
static int table_read(struct eng_qcow2 *q, uint32_t layer, uint64_t place, void *buf, size_t len,
		      struct fmt_error *err)
{
	struct layer *l = &q->layers[layer];
	struct page *page, **slot;
	ssize_t n;

	assert(place % len == 0);
	if (page_get(q, layer, place, buf, len))
		return 0;
	if (place > l->st.size || l->st.size - place < len)
		return truncated(l, "a table entry", place, len, err);
	page = malloc(sizeof(*page));
	if (!page)
		return fmt_fail(err, -ENOMEM, "%s: out of memory", l->path);
	page->layer = layer;
	page->number = place / PAGE_LEN;
	n = eng_io_pread(q->io, l->file, page->bytes, PAGE_LEN, page->number * PAGE_LEN);
	if (n < 0 || (uint64_t)n < place % PAGE_LEN + len) {
		free(page);
		return n < 0 ? fmt_fail(err, (int)n, "%s: reading a table at %" PRIu64 ": %s",
					l->path, place, strerror((int)-n))
			     : truncated(l, "a table entry", place, len, err);
	}
	page->len = (uint32_t)n;
	memcpy(buf, page->bytes + place % PAGE_LEN, len);
	pthread_mutex_lock(&q->lock);
	slot = page_slot(q, layer, page->number);
	struct page *old = *slot;
	*slot = page;
	pthread_mutex_unlock(&q->lock);
	free(old);
	return 0;
}

/* --- look-up --- */

/* The run at @offset inside one cluster, whose L2 table is at @l2 (Q2-16 to Q2-19). */
static int cluster_run(struct eng_qcow2 *q, uint32_t layer, uint64_t l2, uint64_t offset,
		       struct fmt_error *err, struct run *ret)
{
	struct layer *l = &q->layers[layer];
	uint64_t in = offset & ((UINT64_C(1) << l->hdr.cluster_bits) - 1);
	struct fmt_qcow2_cluster cluster;
	struct fmt_error detail = {""};
	uint8_t raw[16];
	int r;

	r = table_read(q, layer, fmt_qcow2_l2_place(&l->hdr, l2, offset), raw,
		       l->hdr.extended_l2 ? 16 : 8, err);
	if (r < 0)
		return r;
	r = fmt_qcow2_l2_decode(&l->hdr, raw, &detail, &cluster);
	if (r < 0)
		return fmt_fail(err, r, "%s: guest offset %" PRIu64 ": %s", l->path, offset,
				detail.text);
	*ret = (struct run){.compressed_len = cluster.compressed_len,
			    .host = cluster.host,
			    .in = in};
	ret->state = fmt_qcow2_cluster_at(&l->hdr, &cluster, in, &ret->len);
	if (ret->state == FMT_QCOW2_DATA)
		ret->host += in;
	return 0;
}

/* The run at @offset, which one L2 table maps for @max bytes: clusters in the same state are joined,
 * those with data where they are neighbours in the file. */
static int table_run(struct eng_qcow2 *q, uint32_t layer, uint64_t l2, uint64_t offset,
		     uint64_t max, struct fmt_error *err, struct run *ret)
{
	struct run run, next;
	int r = cluster_run(q, layer, l2, offset, err, &run);

	if (r < 0)
		return r;
	for (int i = 1; i < JOINED && run.len < max && run.state != FMT_QCOW2_COMPRESSED; i++) {
		/* An entry that is bad is reported when it is its turn, not for its neighbour's read. */
		if (cluster_run(q, layer, l2, offset + run.len, NULL, &next) < 0 ||
		    next.state != run.state ||
		    (run.state == FMT_QCOW2_DATA && next.host != run.host + run.len))
			break;
		run.len += next.len;
	}
	if (run.len > max)
		run.len = max;
	*ret = run;
	return 0;
}

/* What one layer says about @offset (below its size) and at most @max bytes, as far as it goes. */
static int layer_run(struct eng_qcow2 *q, uint32_t layer, uint64_t offset, uint64_t max,
		     struct fmt_error *err, struct run *ret)
{
	struct layer *l = &q->layers[layer];
	struct run run = {.state = FMT_QCOW2_DATA, .host = offset};
	struct fmt_error detail = {""};
	uint64_t span, l2 = 0;
	uint8_t raw[8];
	int r = 0;

	if (max > l->size - offset)
		max = l->size - offset;
	run.len = max;
	if (l->raw)
		goto out;
	span = fmt_qcow2_l2_span(&l->hdr);
	if (max > span - (offset & (span - 1)))
		max = span - (offset & (span - 1));
	r = table_read(q, layer, fmt_qcow2_l1_place(&l->hdr, offset), raw, sizeof(raw), err);
	if (r < 0)
		goto out;
	r = fmt_qcow2_l1_decode(&l->hdr, raw, &detail, &l2);
	if (r < 0) {
		fmt_fail(err, r, "%s: guest offset %" PRIu64 ": %s", l->path, offset, detail.text);
		goto out;
	}
	if (l2)
		r = table_run(q, layer, l2, offset, max, err, &run);
	else
		run = (struct run){.state = FMT_QCOW2_UNALLOCATED, .len = max};
out:
	if (r == 0)
		*ret = run;
	return r;
}

/*
 * Q2-20: goes down the chain from the image. *@layer: who answers; for UNALLOCATED the lowest that
 * was asked: no file has anything there, so it is zeros.
 */
static int chain_run(struct eng_qcow2 *q, uint64_t offset, uint64_t max, struct fmt_error *err,
		     struct run *ret, uint32_t *layer)
{
	struct run run = {.state = FMT_QCOW2_UNALLOCATED, .len = max};
	uint32_t i;
	int r = 0;

	for (i = 0; i < q->depth; i++) {
		if (offset >= q->layers[i].size) /* Q2-21: zeros behind a shorter base */
			break;
		r = layer_run(q, i, offset, max, err, &run);
		if (r < 0)
			goto out;
		max = run.len;
		if (run.state != FMT_QCOW2_UNALLOCATED)
			break;
	}
	*ret = run;
	*layer = run.state == FMT_QCOW2_UNALLOCATED ? i - 1 : i;
out:
	return r;
}

/* --- reading --- */

static int read_data(struct eng_qcow2 *q, uint32_t layer, uint64_t host, void *buf, size_t len,
		     struct fmt_error *err)
{
	struct layer *l = &q->layers[layer];
	ssize_t n = eng_io_pread(q->io, l->file, buf, len, host);

	if (n < 0)
		return fmt_fail(err, (int)n, "%s: reading %zu bytes at %" PRIu64 ": %s", l->path,
				len, host, strerror((int)-n));
	return (size_t)n == len ? 0 : truncated(l, "data", host, len, err); /* Q2-22 */
}

static bool inflated_get(struct eng_qcow2 *q, uint32_t layer, const struct run *run, void *buf,
			 size_t len)
{
	bool hit = false;

	pthread_mutex_lock(&q->lock);
	for (unsigned i = 0; i < INFLATED && !hit; i++) {
		const struct inflated *c = &q->inflated[i];

		hit = c->bytes && c->layer == layer && c->host == run->host;
		if (hit)
			memcpy(buf, c->bytes + run->in, len);
	}
	pthread_mutex_unlock(&q->lock);
	return hit;
}

/* Takes @bytes. */
static void inflated_put(struct eng_qcow2 *q, uint32_t layer, uint64_t host, uint8_t *bytes)
{
	uint8_t *old;

	pthread_mutex_lock(&q->lock);
	struct inflated *c = &q->inflated[q->next_inflated++ % INFLATED];
	old = c->bytes;
	*c = (struct inflated){.layer = layer, .host = host, .bytes = bytes};
	pthread_mutex_unlock(&q->lock);
	free(old);
}

/* Q2-23. The last sector of a stream may lie behind the file's end: writers do not pad it. */
static int read_compressed(struct eng_qcow2 *q, uint32_t layer, const struct run *run, void *buf,
			   size_t len, struct fmt_error *err)
{
	struct layer *l = &q->layers[layer];
	size_t cluster = (size_t)1 << l->hdr.cluster_bits;
	uint8_t *src = NULL, *dst = NULL;
	ssize_t n;
	int r = 0;

	if (inflated_get(q, layer, run, buf, len))
		goto out;
	if (run->host >= l->st.size) {
		r = truncated(l, "compressed data", run->host, run->compressed_len, err);
		goto out;
	}
	src = malloc(run->compressed_len); /* bounded: about twice a cluster */
	dst = malloc(cluster);
	if (!src || !dst) {
		r = fmt_fail(err, -ENOMEM, "%s: out of memory", l->path);
		goto out;
	}
	n = eng_io_pread(q->io, l->file, src, run->compressed_len, run->host);
	if (n < 0) {
		r = fmt_fail(err, (int)n, "%s: reading compressed data at %" PRIu64 ": %s", l->path,
			     run->host, strerror((int)-n));
		goto out;
	}
	r = fmt_qcow2_inflate(src, (size_t)n, dst, cluster);
	if (r == -EUCLEAN && (size_t)n + 512 <= run->compressed_len)
		r = truncated(l, "compressed data", run->host, run->compressed_len, err);
	else if (r < 0)
		r = fmt_fail(err, r,
			     "%s: the compressed cluster at %" PRIu64 " (up to %" PRIu32
			     " bytes) does not inflate to %zu bytes",
			     l->path, run->host, run->compressed_len, cluster);
	if (r < 0)
		goto out;
	memcpy(buf, dst + run->in, len);
	inflated_put(q, layer, run->host, dst);
	dst = NULL;
out:
	free(src);
	free(dst);
	return r;
}

int eng_qcow2_read(struct eng_qcow2 *q, void *buf, size_t len, uint64_t offset,
		   struct fmt_error *err)
{
	uint8_t *at = buf;
	struct run run;
	uint32_t layer;
	int r = 0;

	if (offset > eng_qcow2_size(q) || len > eng_qcow2_size(q) - offset)
		return fmt_fail(err, -EINVAL,
				"%s: a read of %zu bytes at %" PRIu64 ", the disk has %" PRIu64,
				q->layers[0].path, len, offset, eng_qcow2_size(q));
	while (r == 0 && len) {
		r = chain_run(q, offset, len, err, &run, &layer);
		if (r < 0)
			break;
		if (run.state == FMT_QCOW2_DATA)
			r = read_data(q, layer, run.host, at, run.len, err);
		else if (run.state == FMT_QCOW2_COMPRESSED)
			r = read_compressed(q, layer, &run, at, run.len, err);
		else
			memset(at, 0, run.len);
		at += run.len;
		offset += run.len;
		len -= run.len;
	}
	return r;
}

/* A hole of a raw file is zeros, not data. */
static void raw_extent(struct eng_qcow2 *q, uint32_t layer, struct run *run)
{
	uint64_t data, hole;
	int r = eng_io_next_data(q->io, q->layers[layer].file, run->host, &data, &hole);

	if (r == -ENXIO || (r == 0 && data > run->host)) {
		run->state = FMT_QCOW2_ZERO;
		if (r == 0 && data - run->host < run->len)
			run->len = data - run->host;
	} else if (r == 0 && hole > run->host && hole - run->host < run->len) {
		run->len = hole - run->host;
	} /* another error: the file system cannot tell; data it is */
}

int eng_qcow2_extent(struct eng_qcow2 *q, uint64_t offset, struct fmt_error *err, uint64_t *len,
		     enum eng_qcow2_state *state, uint32_t *depth)
{
	static const enum eng_qcow2_state states[] = {
		[FMT_QCOW2_UNALLOCATED] = ENG_QCOW2_HOLE,
		[FMT_QCOW2_ZERO] = ENG_QCOW2_ZERO,
		[FMT_QCOW2_DATA] = ENG_QCOW2_DATA,
		[FMT_QCOW2_COMPRESSED] = ENG_QCOW2_DATA,
	};
	uint64_t size = eng_qcow2_size(q), got = 0;
	uint32_t first_layer = 0, layer;
	enum eng_qcow2_state first = ENG_QCOW2_HOLE;
	struct run run;
	int r = 0;

	if (offset >= size)
		return fmt_fail(err, -EINVAL, "%s: offset %" PRIu64 ", the disk has %" PRIu64,
				q->layers[0].path, offset, size);
	for (int i = 0; i < EXTENT_RUNS && got < size - offset; i++) {
		r = chain_run(q, offset + got, size - offset - got, got ? NULL : err, &run, &layer);
		if (r < 0)
			break;
		if (q->layers[layer].raw && run.state == FMT_QCOW2_DATA)
			raw_extent(q, layer, &run);
		if (got && (states[run.state] != first || layer != first_layer))
			break;
		first = states[run.state];
		first_layer = layer;
		got += run.len;
	}
	if (!got)
		return r;
	*len = got;
	*state = first;
	if (depth)
		*depth = first_layer;
	return 0;
}

/* --- opening --- */

/* Reads and checks the header of a layer whose file is open; a raw one has none. */
static int layer_load(struct eng_io *io, struct layer *l, struct fmt_error *err)
{
	uint8_t start[FMT_QCOW2_MIN_HEADER], *head = NULL;
	struct fmt_error detail = {""};
	uint32_t head_len;
	uint64_t l1_end;
	ssize_t n = eng_io_pread(io, l->file, start, sizeof(start), 0);
	int r = (int)n;

	if (n < 0)
		goto fail;
	r = fmt_qcow2_head_len(start, (size_t)n, &detail, &head_len);
	if (r < 0)
		goto fail;
	r = -ENOMEM;
	head = malloc(head_len);
	if (!head)
		goto fail;
	n = eng_io_pread(io, l->file, head, head_len, 0);
	r = n < 0 ? (int)n : fmt_qcow2_decode(head, (size_t)n, &detail, &l->hdr);
	if (r < 0)
		goto fail;
	l->size = l->hdr.size;
	l1_end = l->hdr.l1_offset + l->hdr.l1_entries * UINT64_C(8);
	if (l->hdr.l1_entries && l1_end > l->st.size) /* Q2-14 */
		r = truncated(l, "the L1 table", l->hdr.l1_offset, l1_end - l->hdr.l1_offset, err);
	goto out;
fail:
	fmt_fail(err, r, "%s: %s", l->path, detail.text[0] ? detail.text : strerror(-r));
out:
	free(head);
	return r;
}

/* Q2-35: the format comes from the image above; only where it says nothing does the content count. */
static int backing_format(struct eng_io *io, struct layer *l, const char *format,
			  struct fmt_error *err)
{
	uint8_t magic[4];
	ssize_t n;
	int r = 0;

	if (!strcmp(format, "raw")) {
		l->raw = true;
	} else if (!*format) {
		n = eng_io_pread(io, l->file, magic, sizeof(magic), 0);
		r = n < 0 ? fmt_fail(err, (int)n, "%s: %s", l->path, strerror((int)-n)) : 0;
		l->raw = r == 0 && !fmt_qcow2_is(magic, (size_t)n);
	} else if (strcmp(format, "qcow2")) {
		r = fmt_fail(err, -ENOTSUP, "%s: backing format \"%s\", expected qcow2 or raw",
			     l->path, format);
	}
	l->size = l->st.size;
	if (r < 0 || l->raw)
		return r;
	r = layer_load(io, l, err);
	if (r == 0 && !*format && l->hdr.backing[0])
		r = fmt_fail(err, -EACCES,
			     "%s: the image above records no backing format, so this "
			     "file may not name a backing file itself",
			     l->path);
	return r;
}

/* Opens what the lowest layer names, as a new lowest layer. */
static int open_backing(struct eng_qcow2 *q, const char *const *allowed, size_t ndirs,
			struct fmt_error *err)
{
	struct layer *above = &q->layers[q->depth - 1], *l = above + 1;
	int r;

	if (q->depth == ENG_QCOW2_MAX_DEPTH)
		return fmt_fail(err, -E2BIG, "%s: more than %d files in the chain",
				q->layers[0].path, ENG_QCOW2_MAX_DEPTH);
	r = eng_backing_open(q->io, above->path, above->hdr.backing, allowed, ndirs, err, &l->file,
			     &l->st, &l->path);
	if (r < 0)
		return r;
	q->depth++; /* eng_qcow2_close() closes it from here on */
	for (struct layer *other = q->layers; other < l; other++) {
		if (other->st.dev == l->st.dev && other->st.ino == l->st.ino)
			return fmt_fail(err, -ELOOP, "%s: the backing chain is a loop", l->path);
	}
	return backing_format(q->io, l, above->hdr.backing_format, err);
}

/* The image itself, alone in its chain. */
static int open_top(struct eng_io *io, const char *path, unsigned flags, struct fmt_error *err,
		    struct eng_qcow2 **ret)
{
	struct eng_qcow2 *q = calloc(1, sizeof(*q));
	struct layer *l;
	int r = -ENOMEM;

	if (!q)
		goto fail;
	q->io = io;
	pthread_mutex_init(&q->lock, NULL);
	q->layers = calloc(ENG_QCOW2_MAX_DEPTH, sizeof(*q->layers));
	if (!q->layers)
		goto fail;
	l = &q->layers[0];
	q->depth = 1;
	l->path = strdup(path);
	if (!l->path)
		goto fail;
	r = eng_io_open(io, path, flags, &l->file);
	if (r == 0)
		r = eng_io_fstat(io, l->file, &l->st);
	if (r == 0 && !l->st.is_regular && !l->st.is_block)
		r = -EINVAL;
	if (r < 0)
		goto fail;
	r = layer_load(io, l, err);
	if (r == 0) {
		*ret = q;
		q = NULL;
	}
	goto out;
fail:
	fmt_fail(err, r, "%s: %s", path, strerror(-r));
out:
	eng_qcow2_close(q);
	return r;
}

int eng_qcow2_open(struct eng_io *io, const char *path, const char *const *allowed_dirs,
		   size_t ndirs, struct fmt_error *err, struct eng_qcow2 **ret)
{
	struct eng_qcow2 *q = NULL;
	int r = open_top(io, path, ENG_OPEN_CACHED, err, &q);

	while (r == 0 && q->layers[q->depth - 1].hdr.backing[0])
		r = open_backing(q, allowed_dirs, ndirs, err);
	if (r == 0)
		*ret = q;
	else
		eng_qcow2_close(q);
	return r;
}

int eng_qcow2_open_alone(struct eng_io *io, const char *path, struct fmt_error *err,
			 struct eng_qcow2 **ret)
{
	return open_top(io, path, ENG_OPEN_NOFOLLOW, err, ret);
}

void eng_qcow2_close(struct eng_qcow2 *q)
{
	if (!q)
		return;
	for (uint32_t i = 0; i < q->depth; i++) {
		eng_io_close(q->io, q->layers[i].file);
		free(q->layers[i].path);
	}
	for (int i = 0; i < PAGES; i++)
		free(q->pages[i]);
	for (int i = 0; i < INFLATED; i++)
		free(q->inflated[i].bytes);
	free(q->layers);
	pthread_mutex_destroy(&q->lock);
	free(q);
}

/* --- what it is --- */

uint64_t eng_qcow2_size(const struct eng_qcow2 *q)
{
	return q->layers[0].size;
}

uint32_t eng_qcow2_depth(const struct eng_qcow2 *q)
{
	return q->depth;
}

void eng_qcow2_info(const struct eng_qcow2 *q, uint32_t depth, struct eng_qcow2_info *ret)
{
	const struct layer *l;

	assert(depth < q->depth);
	l = &q->layers[depth];
	*ret = (struct eng_qcow2_info){
		.path = l->path,
		.format = l->raw ? "raw" : "qcow2",
		.backing = l->hdr.backing,
		.backing_format = l->hdr.backing_format,
		.size = l->size,
		.version = l->hdr.version,
		.cluster_size = l->raw ? 0 : UINT32_C(1) << l->hdr.cluster_bits,
		.snapshots = l->hdr.snapshots,
		.stat = l->st,
	};
	if (l->raw)
		snprintf(ret->features, sizeof(ret->features), "none");
	else
		fmt_qcow2_features(&l->hdr, ret->features, sizeof(ret->features));
}
