/* SPDX-License-Identifier: MIT */
/*
 * verify.c - reads the layers beneath a snapshot one by one, from front to back, and compares every block
 * with its checksum and index and checksums with the seal hash (VF-1). Damage is noted, and the rest is
 * read all the same (VF-3). The snapshot's disks are open meanwhile, so that no layer goes.
 */
#include "engine/transfer/verify.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/layer/gone.h"
#include "engine/layer/index.h"
#include "engine/layer/qcow2.h"
#include "engine/store/view.h"

#define CHUNK (1u << 20)

struct run {
	struct eng_store *store;
	struct eng_progress *progress;
	struct fmt_error *err;
	struct eng_verify_report report;
	uint8_t *buf; /* CHUNK, aligned */
	/* the layer being read */
	const char *disk;
	struct eng_layer *layer;
	struct eng_index *index; /* NULL: not sealed */
	struct eng_file *file;
	/* those that were read already: disks may share layers */
	struct fmt_uuid *seen;
	size_t seen_count, seen_cap;
};

void eng_verify_report_fini(struct eng_verify_report *report)
{
	free(report->findings);
	memset(report, 0, sizeof(*report));
}

static void find(struct run *v, uint64_t offset, const char *text)
{
	struct eng_verify_report *rep = &v->report;
	struct eng_verify_finding *f;

	rep->damaged++;
	if (rep->count == ENG_VERIFY_FINDINGS)
		return;
	f = &rep->findings[rep->count++];
	snprintf(f->disk, sizeof(f->disk), "%s", v->disk);
	f->layer = v->layer->id;
	f->offset = offset;
	snprintf(f->text, sizeof(f->text), "%s", text);
}

static int pace(struct run *v, uint64_t bytes, bool verified)
{
	*(verified ? &v->report.bytes : &v->report.unverified_bytes) += bytes;
	return eng_progress_pace(v->progress, v->store->io, bytes, "verify", v->err);
}

/* --- overlays --- */

static int want_csum(struct run *v, uint32_t slot, uint64_t *ret)
{
	int r = eng_index_csum(v->index, slot, ret);

	if (r == -EAGAIN) {
		r = eng_index_load_csum(v->index, slot, NULL);
		if (r == 0)
			r = eng_index_csum(v->index, slot, ret);
	}
	return r;
}

static void check_block(struct run *v, const uint8_t *data, uint64_t block, uint32_t slot)
{
	uint32_t bits = v->layer->block_bits;
	uint64_t want;
	char text[160];
	int r = want_csum(v, slot, &want);

	if (r < 0)
		snprintf(text, sizeof(text), "no checksum for slot %" PRIu32 ": %s (CS-1)", slot,
			 strerror(-r));
	else if (fmt_block_csum(data, (size_t)1 << bits) != want)
		snprintf(text, sizeof(text),
			 "the data of slot %" PRIu32 " does not match its checksum (CS-2)", slot);
	else
		return;
	find(v, block << bits, text);
}

static int read_run(void *arg, const struct fmt_run *run)
{
	struct run *v = arg;
	uint32_t bits = v->layer->block_bits, most = CHUNK >> bits, n;
	char text[160];
	int r = 0;

	if (run->kind != FMT_RUN_DATA)
		return 0;
	for (uint32_t i = 0; r == 0 && i < run->count; i += n) {
		size_t len;
		ssize_t got;
		bool gone;

		n = run->count - i < most ? run->count - i : most;
		n = eng_gone_span(v->layer->gone, run->slot + i, n, &gone);
		if (gone) /* PU-7: there is nothing that anybody could read */
			continue;
		len = (size_t)n << bits;
		got = eng_io_pread(v->store->io, v->file, v->buf, len,
				   eng_layer_slot_offset(v->layer, run->slot + i));
		if (got < (ssize_t)len) {
			snprintf(text, sizeof(text),
				 "cannot read %zu bytes of slot %" PRIu32 ": %s", len,
				 run->slot + i, got < 0 ? strerror((int)-got) : "the file ends");
			find(v, (run->block + i) << bits, text);
		}
		for (uint32_t j = 0; got == (ssize_t)len && v->index && j < n; j++)
			check_block(v, v->buf + ((size_t)j << bits), run->block + i + j,
				    run->slot + i + j);
		r = pace(v, len, v->index != NULL);
	}
	return r;
}

/* SL-3: index and checksums are what was sealed. */
static int check_hash(struct run *v, const struct fmt_header *hdr)
{
	uint64_t at = hdr->index_offset;
	uint64_t end = hdr->csum_offset + fmt_csum_pages(hdr->slots) * FMT_PAGE;
	struct fmt_seal_hash *hash = fmt_seal_hash_create();
	uint8_t found[16];

	if (!hash)
		return -ENOMEM;
	while (at < end) {
		size_t len = end - at < CHUNK ? (size_t)(end - at) : CHUNK;
		ssize_t got = eng_io_pread(v->store->io, v->file, v->buf, len, at);

		if (got < (ssize_t)len)
			break;
		fmt_seal_hash_add(hash, v->buf, len);
		at += len;
	}
	fmt_seal_hash_end(hash, found);
	fmt_seal_hash_destroy(hash);
	if (at < end || memcmp(found, hdr->seal_hash, sizeof(found)) != 0)
		find(v, UINT64_MAX, "index and checksums do not match the seal hash (SL-3)");
	return 0;
}

static int read_sealed(struct run *v)
{
	struct fmt_error why = {""};
	struct fmt_header hdr;
	int r;

	pthread_mutex_lock(&v->layer->meta_lock);
	hdr = v->layer->hdr;
	pthread_mutex_unlock(&v->layer->meta_lock);
	r = check_hash(v, &hdr);
	if (r < 0)
		return r;
	r = eng_layer_index(v->layer, &why, &v->index);
	if (r == 0)
		r = eng_index_each(v->index, 0, UINT64_MAX, read_run, v, &why);
	v->index = NULL;
	if (r == -ECANCELED || r == -ENOMEM)
		return r;
	if (r < 0)
		find(v, UINT64_MAX, why.text);
	return 0;
}

/* No checksums yet: what its log names is read. */
static int read_unsealed(struct run *v)
{
	struct fmt_error why = {""};
	int r = eng_log_replay(v->layer, read_run, v, &why);

	v->report.unverified_layers++;
	if (r == -ECANCELED || r == -ENOMEM)
		return r;
	if (r < 0)
		find(v, UINT64_MAX, why.text);
	return 0;
}

/* --- bases --- */

static int read_base_range(struct run *v, uint64_t from, uint64_t to)
{
	struct eng_layer *base = v->layer;
	struct fmt_error why = {""};
	char text[160];
	int r = 0;

	for (uint64_t at = from, len; r == 0 && at < to; at += len) {
		ssize_t got;

		len = to - at < CHUNK ? to - at : CHUNK;
		if (base->kind == FMT_KIND_QCOW2) {
			got = eng_qcow2_read(base->qcow2, v->buf, (size_t)len, at, &why);
			got = got < 0 ? got : (ssize_t)len;
		} else {
			got = eng_io_pread(v->store->io, base->file, v->buf, CHUNK, at);
		}
		if (got < 0) {
			snprintf(text, sizeof(text), "cannot read %" PRIu64 " bytes: %s", len,
				 why.text[0] ? why.text : strerror((int)-got));
			find(v, at, text);
		}
		r = pace(v, len, false);
	}
	return r;
}

/* Only where the file has data; what it reads as is all that can be said of it. */
static int read_base(struct run *v)
{
	uint64_t end = eng_base_end(v->layer), at = 0, len;
	enum eng_extent_state state;
	uint32_t depth;
	int r = 0;

	v->report.unverified_layers++;
	while (r == 0 && at < end) {
		struct fmt_error why = {""};

		r = eng_base_extent(v->layer, end, at, &why, &len, &state, &depth);
		if (r < 0) {
			find(v, at, why.text);
			return 0;
		}
		if (state == ENG_EXTENT_DATA)
			r = read_base_range(v, at, at + len < end ? at + len : end);
		at += len;
	}
	return r;
}

/* --- all of it --- */

static int is_new(struct run *v, const struct fmt_uuid *id)
{
	for (size_t i = 0; i < v->seen_count; i++)
		if (fmt_uuid_equal(&v->seen[i], id))
			return 0;
	if (v->seen_count == v->seen_cap) {
		size_t cap = v->seen_cap ? 2 * v->seen_cap : 64;
		struct fmt_uuid *p = realloc(v->seen, cap * sizeof(*p));

		if (!p)
			return -ENOMEM;
		v->seen = p;
		v->seen_cap = cap;
	}
	v->seen[v->seen_count++] = *id;
	return 1;
}

static int verify_overlay(struct run *v)
{
	unsigned flags = ENG_OPEN_NOFOLLOW | (v->layer->direct ? ENG_OPEN_DIRECT : 0);
	bool sealed;
	int r = eng_io_open(v->store->io, v->layer->path, flags, &v->file);

	if (r < 0) {
		find(v, UINT64_MAX, strerror(-r));
		return 0;
	}
	pthread_mutex_lock(&v->layer->meta_lock);
	sealed = v->layer->hdr.state == FMT_STATE_SEALED;
	pthread_mutex_unlock(&v->layer->meta_lock);
	r = sealed ? read_sealed(v) : read_unsealed(v);
	eng_io_close(v->store->io, v->file);
	v->file = NULL;
	return r;
}

static int verify_layer(struct run *v, const struct cat_layer *row)
{
	struct fmt_error why = {""};
	int r = is_new(v, &row->id);

	if (r <= 0)
		return r;
	v->report.layers++;
	r = eng_store_open_layer(v->store, row, false, &why, &v->layer);
	if (r == -ENOMEM)
		return r;
	if (r < 0) {
		struct eng_layer none = {.id = row->id};

		v->layer = &none;
		find(v, UINT64_MAX, why.text);
		v->layer = NULL;
		return 0;
	}
	r = row->kind == FMT_KIND_OVERLAY ? verify_overlay(v) : read_base(v);
	eng_layer_put(v->layer);
	v->layer = NULL;
	return r;
}

static int verify_disk(struct run *v, const struct cat_snapshot_disk *disk)
{
	char name[2 * CAT_NAME_MAX];
	struct cat_layer *rows = NULL;
	size_t n = 0;
	int r = eng_catalog_chain(v->store->catalog, &disk->layer, &rows, &n);

	snprintf(name, sizeof(name), "%s/%s", disk->vm_name, disk->disk_name);
	v->disk = name;
	v->report.disks++;
	for (size_t i = 0; r == 0 && i < n; i++)
		r = verify_layer(v, &rows[i]);
	free(rows);
	v->disk = NULL;
	return r;
}

/*
 * DL-5: what is open stays, and is what is read, whatever becomes of the snapshot; a fold may have moved it
 * until then. A disk that cannot be opened is read layer by layer all the same, as long as it is there.
 */
static int hold_disk(struct run *v, struct eng_view *view, struct cat_snapshot_disk *disk)
{
	struct cat_snapshot now;
	char name[2 * CAT_NAME_MAX];
	uint32_t number;
	int r;

	snprintf(name, sizeof(name), "%s/%s", disk->vm_name, disk->disk_name);
	r = eng_view_add_member(view, disk, name, NULL, &number);
	if (r == 0)
		disk->layer = *eng_view_layer(view, number);
	if (r == 0 || r == -ENOMEM)
		return r;
	r = eng_catalog_get_snapshot_id(v->store->catalog, &disk->snapshot, &now);
	return r == -ENOENT ? fmt_fail(v->err, r, "%s: the snapshot is gone", name) : r;
}

static uint64_t count_bytes(struct eng_store *store, const struct cat_snapshot_disk *disks,
			    size_t n)
{
	uint64_t total = 0;

	for (size_t i = 0; i < n; i++) {
		struct cat_layer *rows = NULL;
		size_t layers = 0;

		if (disks[i].skipped ||
		    eng_catalog_chain(store->catalog, &disks[i].layer, &rows, &layers) < 0)
			continue;
		for (size_t j = 0; j < layers; j++)
			total += eng_store_layer_bytes(store, &rows[j]);
		free(rows);
	}
	return total;
}

static int verify(struct run *v, struct cat_snapshot_disk *disks, size_t n)
{
	struct eng_view *view = NULL;
	int r = eng_view_open(v->store, v->err, &view);

	for (size_t i = 0; r == 0 && i < n; i++)
		if (!disks[i].skipped)
			r = hold_disk(v, view, &disks[i]);
	if (r == 0)
		eng_progress_start(v->progress, count_bytes(v->store, disks, n));
	for (size_t i = 0; r == 0 && i < n; i++)
		if (!disks[i].skipped)
			r = verify_disk(v, &disks[i]);
	eng_view_close(view);
	return r;
}

int eng_store_verify_snapshot(struct eng_store *store, const char *collection, const char *name,
			      struct eng_progress *progress, struct fmt_error *err,
			      struct eng_verify_report *ret)
{
	struct run v = {.store = store, .progress = progress, .err = err};
	struct cat_snapshot_disk *disks = NULL;
	struct cat_snapshot snap;
	size_t n = 0;
	int r = eng_catalog_find_members(store->catalog, collection, name, err, &snap, &disks, &n);

	if (r < 0)
		return r;
	v.report.findings = calloc(ENG_VERIFY_FINDINGS, sizeof(*v.report.findings));
	if (!v.report.findings || posix_memalign((void **)&v.buf, FMT_PAGE, CHUNK))
		r = -ENOMEM;
	if (r == 0)
		r = verify(&v, disks, n);
	free(disks);
	free(v.buf);
	free(v.seen);
	if (r == 0)
		*ret = v.report;
	else
		eng_verify_report_fini(&v.report);
	if (r < 0 && err && !err->text[0])
		fmt_fail(err, r, "%s@%s: cannot verify: %s", collection, name, strerror(-r));
	return r;
}
