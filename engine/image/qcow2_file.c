/* SPDX-License-Identifier: MIT */
/*
 * qcow2_file.c - lays out a new qcow2 image, front to back. Clusters are handed out in ascending order,
 * so one L2 table and one refcount block are in memory at a time; each is written when the next one
 * begins. Everything written here is a whole cluster from aligned memory, and so are data clusters, so
 * that the file can be written directly, past the page cache: what is written is on the disk when the
 * last sync comes. Packed streams are not aligned: then the file is buffered.
 *
 * QF1: next is the first cluster not handed out; refs holds the counts of next's region, or of the one
 *      before where next begins a region.
 * QF2: no cluster is handed out twice: a region's first is its block's (Q2W-3).
 * Whoever calls the layout is one thread at a time; space ahead is allocated by it, too.
 */
#include "engine/image/qcow2_file.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define AHEAD     (64u << 20) /* bytes of space allocated at once */
#define MEM_ALIGN 4096u
#define NO_L2     UINT64_MAX

struct eng_qcow2_file {
	struct eng_io *io;
	struct eng_file *file;
	char *path;
	struct fmt_qcow2_new new;
	uint64_t cluster; /* bytes */
	uint64_t per;     /* clusters in a region */
	uint64_t next;    /* QF1 */
	uint64_t ahead;   /* bytes for which there is space; UINT64_MAX: don't ask any more */
	uint8_t *refs;    /* the refcount block of the region */
	uint64_t refs_at; /* cluster */
	uint8_t *table;   /* refcount table: entries of all regions so far */
	size_t table_room;
	uint64_t regions;
	uint8_t *l1, *l2;
	uint64_t l2_index, l2_at;       /* whose table l2 is, NO_L2: nobody's; cluster */
	uint64_t packed_at, packed_end; /* bytes free behind the last stream */
};

static int fail(const struct eng_qcow2_file *f, int r, const char *what, uint64_t at,
		struct fmt_error *err)
{
	return fmt_fail(err, r, "%s: cannot write %s at %" PRIu64 ": %s", f->path, what, at,
			strerror(-r));
}

static uint8_t *aligned_zeros(size_t len)
{
	uint8_t *p = NULL;

	len = (len + MEM_ALIGN - 1) / MEM_ALIGN * MEM_ALIGN;
	p = aligned_alloc(MEM_ALIGN, len);
	if (p)
		memset(p, 0, len);
	return p;
}

/* --- clusters --- */

static int write_clusters(struct eng_qcow2_file *f, const void *buf, uint64_t count, uint64_t at,
			  const char *what, struct fmt_error *err)
{
	int r = eng_io_pwrite(f->io, f->file, buf, count * f->cluster, at * f->cluster);

	return r < 0 ? fail(f, r, what, at * f->cluster, err) : 0;
}

/* Without it every write would change the file's length, which costs. It can be done without. */
static void allocate_ahead(struct eng_qcow2_file *f)
{
	uint64_t end = f->next * f->cluster;

	if (end <= f->ahead)
		return;
	end = (end + AHEAD - 1) / AHEAD * AHEAD;
	if (eng_io_allocate(f->io, f->file, f->ahead, end - f->ahead) < 0)
		end = UINT64_MAX;
	f->ahead = end;
}

static void add_reference(struct eng_qcow2_file *f, uint64_t cluster)
{
	assert(cluster / f->per == f->regions - 1);
	fmt_qcow2_add_reference(f->refs + cluster % f->per * FMT_QCOW2_REFCOUNT_BYTES);
}

/* Q2W-3: begins the region whose first cluster is next; the block of the one before is complete. */
static int begin_region(struct eng_qcow2_file *f, struct fmt_error *err)
{
	int r = 0;

	if (f->regions)
		r = write_clusters(f, f->refs, 1, f->refs_at, "reference counts", err);
	if (r < 0)
		return r;
	if (f->regions * 8 == f->table_room) {
		size_t room = f->table_room ? f->table_room * 2 : 512;
		uint8_t *p = realloc(f->table, room);

		if (!p)
			return fmt_fail(err, -ENOMEM, "%s: out of memory", f->path);
		f->table = p;
		f->table_room = room;
	}
	f->packed_at = f->packed_end = 0;      /* its count is written */
	f->refs_at = f->regions ? f->next : 1; /* behind the header in region 0 */
	fmt_qcow2_put_refcount_block(f->table + f->regions * 8, f->refs_at * f->cluster);
	memset(f->refs, 0, f->cluster);
	f->regions++;
	for (; f->next <= f->refs_at; f->next++)
		add_reference(f, f->next);
	return 0;
}

/* @count neighbours, inside one region. */
static int allocate(struct eng_qcow2_file *f, uint64_t count, struct fmt_error *err, uint64_t *ret)
{
	uint64_t left = f->per - f->next % f->per;
	int r = 0;

	assert(count < f->per);
	if (f->next % f->per && count > left)
		f->next += left; /* free for good, and counted so */
	if (f->next % f->per == 0)
		r = begin_region(f, err);
	if (r < 0)
		return r;
	*ret = f->next;
	for (uint64_t i = 0; i < count; i++)
		add_reference(f, f->next++);
	allocate_ahead(f);
	return 0;
}

/* --- L2 tables --- */

static int end_l2(struct eng_qcow2_file *f, struct fmt_error *err)
{
	if (f->l2_index == NO_L2)
		return 0;
	return write_clusters(f, f->l2, 1, f->l2_at, "an L2 table", err);
}

/* The entry of guest @cluster (Q2W-5). */
static int entry_of(struct eng_qcow2_file *f, uint64_t cluster, struct fmt_error *err,
		    uint8_t **entry)
{
	uint64_t per_table = f->cluster / 8, index = cluster / per_table;
	int r;

	assert(f->l2_index == NO_L2 || index >= f->l2_index);
	if (index != f->l2_index) {
		r = end_l2(f, err);
		if (r == 0)
			r = allocate(f, 1, err, &f->l2_at);
		if (r < 0)
			return r;
		f->l2_index = index;
		memset(f->l2, 0, f->cluster);
		fmt_qcow2_put_l1(f->l1 + index * 8, f->l2_at * f->cluster);
	}
	*entry = f->l2 + cluster % per_table * 8;
	return 0;
}

int eng_qcow2_file_data(struct eng_qcow2_file *f, uint64_t cluster, struct fmt_error *err,
			uint64_t *host)
{
	uint8_t *entry;
	uint64_t at;
	int r = entry_of(f, cluster, err, &entry);

	if (r == 0)
		r = allocate(f, 1, err, &at);
	if (r < 0)
		return r;
	fmt_qcow2_put_data(entry, at * f->cluster);
	*host = at * f->cluster;
	return 0;
}

int eng_qcow2_file_zero(struct eng_qcow2_file *f, uint64_t cluster, struct fmt_error *err)
{
	uint8_t *entry;
	int r = entry_of(f, cluster, err, &entry);

	if (r == 0)
		fmt_qcow2_put_zero(entry);
	return r;
}

/* Q2W-7: behind the last stream, into the next cluster where that is free; else at a new one. */
static int pack(struct eng_qcow2_file *f, uint32_t len, struct fmt_error *err, uint64_t *ret)
{
	uint64_t room = f->packed_end - f->packed_at, at = f->packed_at, more;
	bool joins = room && f->packed_end == f->next * f->cluster && f->next % f->per;
	int r = 0;

	if (room >= len || joins)
		add_reference(f, at / f->cluster);
	if (room < len) {
		r = allocate(f, 1, err, &more);
		if (r < 0)
			return r;
		f->packed_end = (more + 1) * f->cluster;
		at = joins ? at : more * f->cluster;
	}
	f->packed_at = at + len;
	*ret = at;
	return 0;
}

int eng_qcow2_file_compressed(struct eng_qcow2_file *f, uint64_t cluster, uint32_t len,
			      struct fmt_error *err, uint64_t *host)
{
	uint8_t *entry;
	uint64_t at = 0;
	int r = entry_of(f, cluster, err, &entry);

	if (r == 0)
		r = pack(f, len, err, &at);
	if (r < 0)
		return r;
	r = fmt_qcow2_put_compressed(entry, f->new.cluster_bits, at, len);
	if (r < 0)
		return fail(f, r, "compressed data", at, err);
	*host = at;
	return 0;
}

int eng_qcow2_file_write(struct eng_qcow2_file *f, const void *buf, size_t len, uint64_t host,
			 struct fmt_error *err)
{
	int r = eng_io_pwrite(f->io, f->file, buf, len, host);

	return r < 0 ? fail(f, r, "data", host, err) : 0;
}

/* --- the beginning and the end --- */

/* Direct, where its granules are no larger than ours. */
static int open_file(struct eng_qcow2_file *f, bool packed, struct fmt_error *err)
{
	unsigned flags = ENG_OPEN_WRITE | ENG_OPEN_CREATE | ENG_OPEN_EXCL;
	struct eng_stat st;
	int r = eng_io_open(f->io, f->path, flags | (packed ? 0 : ENG_OPEN_DIRECT), &f->file);

	if (r == 0)
		r = eng_io_fstat(f->io, f->file, &st);
	if (r == 0 && (st.dio_align > f->cluster || st.mem_align > MEM_ALIGN)) {
		eng_io_close(f->io, f->file);
		f->file = NULL;
		r = eng_io_open(f->io, f->path, ENG_OPEN_WRITE, &f->file);
	}
	return r < 0 ? fmt_fail(err, r, "%s: %s", f->path, strerror(-r)) : 0;
}

int eng_qcow2_file_create(struct eng_io *io, const char *path, const struct fmt_qcow2_new *new,
			  bool packed, struct fmt_error *err, struct eng_qcow2_file **ret)
{
	struct eng_qcow2_file *f = calloc(1, sizeof(*f));
	uint64_t l1_clusters, l1_at;
	bool made = false;
	int r = -ENOMEM;

	if (!f)
		return fmt_fail(err, r, "%s: out of memory", path);
	f->io = io;
	f->new = *new;
	f->l2_index = NO_L2;
	r = fmt_qcow2_new_check(&f->new, err);
	if (r < 0)
		goto out;
	f->cluster = UINT64_C(1) << f->new.cluster_bits;
	f->per = f->cluster / FMT_QCOW2_REFCOUNT_BYTES;
	l1_clusters = (f->new.l1_entries *UINT64_C(8) + f->cluster - 1) / f->cluster;
	l1_clusters = l1_clusters ? l1_clusters
				  : 1; /* of an empty disk, too: an L1 table has a place */
	f->path = strdup(path);
	f->refs = aligned_zeros(f->cluster);
	f->l2 = aligned_zeros(f->cluster);
	f->l1 = aligned_zeros(l1_clusters * f->cluster);
	if (!f->path || !f->refs || !f->l2 || !f->l1) {
		r = fmt_fail(err, -ENOMEM, "%s: out of memory", path);
		goto out;
	}
	r = open_file(f, packed, err);
	made = f->file != NULL;
	if (r == 0)
		r = allocate(f, l1_clusters, err, &l1_at);
	if (r < 0)
		goto out;
	f->new.l1_offset = l1_at * f->cluster;
	*ret = f;
	return 0;
out:
	eng_qcow2_file_close(f);
	if (made)
		eng_io_unlink(io, path);
	return r;
}

void eng_qcow2_file_close(struct eng_qcow2_file *f)
{
	if (!f)
		return;
	eng_io_close(f->io, f->file);
	free(f->path);
	free(f->refs);
	free(f->table);
	free(f->l1);
	free(f->l2);
	free(f);
}

/* Q2W-10: the table's own clusters may begin one more region. */
static int write_refcounts(struct eng_qcow2_file *f, struct fmt_error *err)
{
	uint64_t count = ((f->regions + 1) * 8 + f->cluster - 1) / f->cluster, at = 0;
	uint8_t *table = NULL;
	int r = 0;

	if (count >= f->per || count * f->cluster > FMT_QCOW2_MAX_REFCOUNT_TABLE)
		return fmt_fail(err, -EFBIG,
				"%s: the refcount table would have %" PRIu64
				" clusters; larger clusters need fewer (Q2W-4)",
				f->path, count);
	table = aligned_zeros(count * f->cluster);
	if (!table)
		return fmt_fail(err, -ENOMEM, "%s: out of memory", f->path);
	r = allocate(f, count, err, &at);
	if (r == 0)
		r = write_clusters(f, f->refs, 1, f->refs_at, "reference counts", err);
	if (r == 0) {
		memcpy(table, f->table, f->regions * 8);
		r = write_clusters(f, table, count, at, "the refcount table", err);
	}
	f->new.refcount_offset = at * f->cluster;
	f->new.refcount_clusters = (uint32_t)count;
	free(table);
	return r;
}

int eng_qcow2_file_finish(struct eng_qcow2_file *f, struct fmt_error *err)
{
	uint64_t l1_clusters = (f->new.l1_entries *UINT64_C(8) + f->cluster - 1) / f->cluster;
	int r = end_l2(f, err);

	if (r == 0)
		r = write_refcounts(f, err);
	if (r == 0 && l1_clusters)
		r = write_clusters(f, f->l1, l1_clusters, f->new.l1_offset / f->cluster,
				   "the L1 table", err);
	if (r < 0)
		return r;
	fmt_qcow2_encode(&f->new, f->l2); /* whose table is written */
	r = write_clusters(f, f->l2, 1, 0, "the header", err);
	if (r < 0)
		return r;
	r = eng_io_truncate(f->io, f->file, f->next * f->cluster);
	if (r == 0)
		r = eng_io_fdatasync(f->io, f->file);
	return r < 0 ? fmt_fail(err, r, "%s: cannot make it durable: %s", f->path, strerror(-r))
		     : 0;
}
