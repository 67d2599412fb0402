/* SPDX-License-Identifier: MIT */
/*
 * qcow2.c - a qcow2 image: its header, and every table entry that a reader may follow, against the file's
 * end (Q2-*). Clusters' contents have no checksums and are not read, nor are backing files. Each L2 table
 * is read once, however often it is named. One thread a check.
 */
#include "fsck/image.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "format/qcow2.h"

#define CHUNK (64u << 10) /* of a table, read at once */

struct image {
	struct fsck *f;
	const char *path;
	struct eng_file *file;
	uint64_t size; /* of the file */
	struct fmt_qcow2 hdr;
};

struct table {
	uint64_t l2;
	uint32_t l1; /* first L1 entry that names it */
};

/* What was found to be inside the file. */
static int read_all(struct image *q, void *buf, size_t len, uint64_t offset)
{
	ssize_t n = eng_io_pread(q->f->io, q->file, buf, len, offset);

	if (n < 0)
		return fsck_cannot(q->f, (int)n, "%s: cannot read %zu bytes at %#" PRIx64 ": %s",
				   q->path, len, offset, strerror((int)-n));
	if ((size_t)n == len)
		return 0;
	return fsck_cannot(q->f, -EIO, "%s: it ended at %#" PRIx64 " while it was read", q->path,
			   offset + (uint64_t)n);
}

/* Q2-1 to Q2-14. */
static int read_header(struct image *q)
{
	uint8_t small[FMT_QCOW2_MIN_HEADER] = {0}, *head = NULL;
	struct fmt_error why = {""};
	uint32_t len = 0;
	ssize_t n = eng_io_pread(q->f->io, q->file, small, sizeof(small), 0);
	int r = n < 0 ? (int)n : fmt_qcow2_head_len(small, (size_t)n, &why, &len);

	if (n >= 0 && r == 0) {
		head = malloc(len);
		n = head ? eng_io_pread(q->f->io, q->file, head, len, 0) : -ENOMEM;
		r = n < 0 ? (int)n : fmt_qcow2_decode(head, (size_t)n, &why, &q->hdr);
	}
	free(head);
	if (n < 0)
		return fsck_cannot(q->f, r, "%s: cannot read the header: %s", q->path,
				   strerror(-r));
	if (r == -ENOTSUP || r == -EFBIG) {
		fsck_found(q->f, PR_QCOW2_UNKNOWN, "%s", why.text);
		return fsck_cannot(q->f, r, "%s: %s", q->path, why.text);
	}
	if (r < 0)
		fsck_found(q->f, PR_QCOW2_HEADER, "%s", why.text);
	return r;
}

static bool in_file(const struct image *q, uint64_t at, uint64_t len)
{
	return at <= q->size && len <= q->size - at;
}

static int by_place(const void *a, const void *b)
{
	const struct table *x = a, *y = b;

	if (x->l2 != y->l2)
		return x->l2 < y->l2 ? -1 : 1;
	return x->l1 < y->l1 ? -1 : x->l1 > y->l1;
}

/* The L2 tables that the L1 table names, those inside the file. */
static int read_l1(struct image *q, struct table *tables, uint32_t *count)
{
	uint64_t cluster = UINT64_C(1) << q->hdr.cluster_bits;
	uint8_t *buf = malloc(CHUNK);
	int r = buf ? 0 : fsck_cannot(q->f, -ENOMEM, "%s: no memory", q->path);

	*count = 0;
	for (uint32_t i = 0; r == 0 && i < q->hdr.l1_entries; i++) {
		uint32_t left = q->hdr.l1_entries - i;
		struct fmt_error why = {""};
		uint64_t l2 = 0;

		if (i % (CHUNK / 8) == 0)
			r = read_all(q, buf, left < CHUNK / 8 ? left * 8 : CHUNK,
				     q->hdr.l1_offset + 8ull * i);
		if (r < 0)
			break;
		if (fmt_qcow2_l1_decode(&q->hdr, buf + i % (CHUNK / 8) * 8, &why, &l2) < 0)
			fsck_found(q->f, PR_QCOW2_L1_ENTRY, "entry %" PRIu32 ": %s", i, why.text);
		else if (l2 && !in_file(q, l2, cluster))
			fsck_found(q->f, PR_QCOW2_L2_TABLE, "entry %" PRIu32 " names %#" PRIx64, i,
				   l2);
		else if (l2)
			tables[(*count)++] = (struct table){l2, i};
	}
	free(buf);
	return r;
}

/* Q2-15 to Q2-19, Q2-22, Q2-23, of the entry for guest bytes from @offset. */
static void check_entry(struct image *q, const uint8_t raw[16], uint64_t offset)
{
	uint64_t cluster = UINT64_C(1) << q->hdr.cluster_bits, len = q->hdr.size - offset;
	struct fmt_qcow2_cluster c;
	struct fmt_error why = {""};

	if (fmt_qcow2_l2_decode(&q->hdr, raw, &why, &c) < 0) {
		fsck_found(q->f, PR_QCOW2_L2_ENTRY, "of guest offset %#" PRIx64 ": %s", offset,
			   why.text);
		return;
	}
	if (c.state == FMT_QCOW2_COMPRESSED && !in_file(q, c.host, 1))
		fsck_found(q->f, PR_QCOW2_DATA,
			   "compressed cluster of guest offset %#" PRIx64 " at %#" PRIx64, offset,
			   c.host);
	/* The cluster that the disk's end cuts may be cut in the file, too. */
	if (c.state == FMT_QCOW2_DATA && !q->hdr.extended_l2 &&
	    !in_file(q, c.host, len < cluster ? len : cluster))
		fsck_found(q->f, PR_QCOW2_DATA, "cluster of guest offset %#" PRIx64 " at %#" PRIx64,
			   offset, c.host);
	if (c.state == FMT_QCOW2_DATA && q->hdr.extended_l2 && c.allocated) {
		uint64_t sub = cluster / FMT_QCOW2_SUBCLUSTERS, last = 31;
		uint64_t end;

		while (!(c.allocated >> last & 1))
			last--;
		end = (last + 1) * sub < len ? (last + 1) * sub : len;
		if (last * sub < len && !in_file(q, c.host, end))
			fsck_found(q->f, PR_QCOW2_DATA,
				   "subclusters of guest offset %#" PRIx64 " at %#" PRIx64, offset,
				   c.host);
	}
}

static int check_table(struct image *q, const struct table *t, uint8_t *buf)
{
	uint32_t entry = q->hdr.extended_l2 ? 16 : 8, cluster = 1u << q->hdr.cluster_bits;
	uint64_t offset = t->l1 * fmt_qcow2_l2_span(&q->hdr);
	uint8_t raw[16] = {0};
	int r = read_all(q, buf, cluster, t->l2);

	for (uint32_t at = 0; r == 0 && at < cluster && offset < q->hdr.size; at += entry) {
		memcpy(raw, buf + at, entry);
		check_entry(q, raw, offset);
		offset += cluster;
	}
	return r;
}

static int check_tables(struct image *q)
{
	struct table *tables = calloc(q->hdr.l1_entries + 1, sizeof(*tables));
	uint8_t *buf = malloc((size_t)1 << q->hdr.cluster_bits);
	uint32_t count = 0;
	int r = tables && buf ? read_l1(q, tables, &count)
			      : fsck_cannot(q->f, -ENOMEM, "%s: no memory", q->path);

	if (r == 0 && count)
		qsort(tables, count, sizeof(*tables), by_place);
	for (uint32_t i = 0; r == 0 && i < count; i++) {
		if (i == 0 || tables[i].l2 != tables[i - 1].l2)
			r = check_table(q, &tables[i], buf);
		else
			fsck_found(q->f, PR_QCOW2_L2_SHARED,
				   "entries %" PRIu32 " and %" PRIu32 ", at %#" PRIx64,
				   tables[i - 1].l1, tables[i].l1, tables[i].l2);
	}
	free(tables);
	free(buf);
	return r;
}

int fsck_qcow2(struct fsck *f, const char *path)
{
	struct image q = {.f = f, .path = path};
	struct eng_stat st;
	int r = eng_io_open(f->io, path, 0, &q.file);

	if (r == 0)
		r = eng_io_fstat(f->io, q.file, &st);
	if (r < 0) {
		fsck_cannot(f, r, "%s: %s", path, strerror(-r));
		goto out;
	}
	q.size = st.size;
	r = read_header(&q);
	if (r == 0 && q.hdr.l1_entries && !in_file(&q, q.hdr.l1_offset, 8ull * q.hdr.l1_entries)) {
		fsck_found(f, PR_QCOW2_L1_TABLE,
			   "%" PRIu32 " entries at %#" PRIx64 ", the file has %" PRIu64 " bytes",
			   q.hdr.l1_entries, q.hdr.l1_offset, q.size);
		r = -EUCLEAN;
	}
	if (r == 0)
		r = check_tables(&q);
out:
	eng_io_close(f->io, q.file);
	return r;
}
