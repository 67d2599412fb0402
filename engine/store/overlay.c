/* SPDX-License-Identifier: MIT */
/*
 * overlay.c - see overlay.h. Many operations are under way at once: the device merges the flushes of
 * many files, which is most of what a snapshot of many disks costs.
 */
#include "engine/store/overlay.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define DEPTH 64u  /* operations under way */
#define GROUP 16u  /* layers claimed for hardening at a time */
#define SLOTS 256u /* first space of an overlay: 1 MiB of 4 KiB blocks */
#define HEADS (FMT_HEADER_SLOTS * FMT_PAGE)

struct eng_batch {
	struct eng_store *store;
	struct eng_ring *ring;
	unsigned under_way;
	int result;
};

struct batch_op {
	struct eng_op op;
	struct eng_batch *batch;
	struct iovec iov;
	int64_t res;
};

int eng_batch_create(struct eng_store *store, struct eng_batch **ret)
{
	struct eng_batch *batch = calloc(1, sizeof(*batch));
	int r;

	if (!batch)
		return -ENOMEM;
	batch->store = store;
	r = eng_ring_create(store->io, DEPTH * 2, store->lock_file, &batch->ring);
	if (r < 0) {
		free(batch);
		return r;
	}
	*ret = batch;
	return 0;
}

void eng_batch_destroy(struct eng_batch *batch)
{
	if (!batch)
		return;
	eng_ring_destroy(batch->ring);
	free(batch);
}

/* --- many operations, one wait --- */

static void op_done(struct eng_op *op)
{
	struct batch_op *bo = (struct batch_op *)((char *)op - offsetof(struct batch_op, op));

	bo->res = op->res;
	if (op->res < 0 && bo->batch->result == 0)
		bo->batch->result = (int)op->res;
	bo->batch->under_way--;
}

static int wait_below(struct eng_batch *batch, unsigned limit)
{
	while (batch->under_way >= limit) {
		int r = eng_ring_wait(batch->ring, UINT64_MAX);

		if (r < 0 && r != -EINTR)
			return r;
	}
	return 0;
}

/* Runs all; the first error, when all have ended. */
static int run(struct eng_batch *batch, struct batch_op *ops, size_t count)
{
	batch->result = 0;
	for (size_t i = 0; i < count; i++) {
		int r = wait_below(batch, DEPTH);

		if (r < 0)
			return r;
		ops[i].batch = batch;
		ops[i].op.done = op_done;
		batch->under_way++;
		eng_ring_queue(batch->ring, &ops[i].op);
	}
	while (batch->under_way) {
		int r = wait_below(batch, batch->under_way);

		if (r < 0)
			return r;
	}
	return batch->result;
}

/* Durable when complete: measured at half the cost of writes followed by an fdatasync a file. */
static void op_write(struct batch_op *bo, struct eng_file *file, void *buf, size_t len,
		     uint64_t offset)
{
	memset(bo, 0, sizeof(*bo));
	bo->iov = (struct iovec){buf, len};
	bo->op.kind = ENG_OP_WRITE;
	bo->op.dsync = true;
	bo->op.file = file;
	bo->op.offset = offset;
	bo->op.iov = &bo->iov;
	bo->op.iovcnt = 1;
}

/* --- pending overlays --- */

static int spec_of(struct eng_store *store, const struct eng_member *m, struct eng_layer_spec *spec,
		   char **path)
{
	struct eng_disk *disk = m->branch ? NULL : m->entry->disk;

	memset(spec, 0, sizeof(*spec));
	eng_store_new_id(store, &spec->layer);
	*path = eng_store_layer_path(store, &spec->layer, "vmo");
	if (!*path)
		return -ENOMEM;
	spec->path = *path;
	spec->store = store->id;
	spec->disk = m->disk.id;
	spec->parent = m->branch ? m->parent : m->tail->id;
	spec->generation = m->branch ? m->generation : m->tail->generation + 1;
	spec->size = m->disk.size;
	spec->block_bits = m->disk.block_bits;
	spec->initial_slots = SLOTS;
	spec->direct = store->direct;
	if (disk) {
		eng_io_boot_id(store->io, spec->boot_id);
		spec->journal_nonce = atomic_load(&disk->journal_nonce);
	}
	return 0;
}

/* SB-1: only what was made for this head, of this size, under this journal. */
static bool take_standby(struct eng_member *m)
{
	struct eng_layer *s = m->entry->standby;
	struct eng_disk *disk = m->entry->disk;

	if (!s)
		return false;
	if (!disk || !fmt_uuid_equal(&s->hdr.parent_id, &m->tail->id) ||
	    atomic_load(&s->size) != m->disk.size ||
	    s->hdr.journal_nonce != atomic_load(&disk->journal_nonce)) {
		eng_entry_drop_standby(m->entry);
		return false;
	}
	m->entry->standby = NULL;
	m->pending = s;
	m->from_standby = true;
	return true;
}

static int create_one(struct eng_store *store, struct eng_member *m, void **head, size_t *len,
		      struct fmt_error *err)
{
	struct eng_layer_spec spec;
	char *path = NULL;
	int r = spec_of(store, m, &spec, &path);

	if (r == 0)
		r = eng_layer_create_begin(store->io, &spec, head, len, err, &m->pending);
	free(path);
	return r;
}

int eng_batch_create_overlays(struct eng_batch *batch, struct eng_member *members, size_t count,
			      struct fmt_error *err)
{
	struct eng_store *store = batch->store;
	struct batch_op *ops = calloc(count, sizeof(*ops));
	void **heads = calloc(count, sizeof(void *));
	size_t n = 0, len = 0;
	int r = ops && heads ? 0 : -ENOMEM;

	for (size_t i = 0; r == 0 && i < count; i++) {
		if (!members[i].branch && take_standby(&members[i]))
			continue;
		r = create_one(store, &members[i], &heads[n], &len, err);
		if (r == 0) {
			op_write(&ops[n], members[i].pending->file, heads[n], len, 0);
			n++;
		}
	}
	if (r == 0)
		r = run(batch, ops, n);
	if (r == 0 && n)
		r = eng_io_sync_dir(store->io, store->layers_dir);
	if (r < 0 && err && !err->text[0])
		fmt_fail(err, r, "cannot write the new overlays: %s", strerror(-r));
	for (size_t i = 0; heads && i < n; i++)
		free(heads[i]);
	free(heads);
	free(ops);
	return r;
}

/* --- hardening --- */

static bool needs_sync(const struct eng_layer *layer)
{
	return layer->dirty_gen != layer->synced_gen || layer->pending_count;
}

/* One claimed layer on its way, and whom its end is told. */
struct hardening {
	struct eng_op sync;
	struct hardener *hardener;
	struct hardening *next; /* free or ended */
	struct eng_layer *layer;
	struct eng_disk *disk; /* NULL: not attached */
	int result;
};

struct hardener {
	struct eng_batch *batch;
	struct hardening slots[GROUP], *free, *ended;
	unsigned under_way;
	int first; /* error */
};

/* CU-15, I8: a guest's flush that waits for this layer waits for no other one. */
static void hardened(struct hardener *hr, struct eng_layer *layer, struct eng_disk *disk, int r)
{
	atomic_store(&layer->harden, r < 0 ? ENG_HARDEN_FAILED : ENG_HARDEN_DONE);
	if (disk)
		eng_disk_post_hardened(disk);
	if (r < 0 && hr->first == 0)
		hr->first = r;
}

static void sync_done(struct eng_op *op)
{
	struct hardening *h = (struct hardening *)((char *)op - offsetof(struct hardening, sync));

	h->result = op->res < 0 ? (int)op->res : 0;
	h->next = h->hardener->ended;
	h->hardener->ended = h;
	h->hardener->under_way--;
}

/* Its data is durable, or not: logs its tail. */
static void settle(struct hardener *hr, struct hardening *h)
{
	int r = h->result;

	if (r < 0) {
		eng_layer_poison(h->layer, r);
	} else {
		h->layer->synced_gen = h->layer->dirty_gen;
		r = eng_layer_harden_sync(h->layer);
	}
	hardened(hr, h->layer, h->disk, r);
	h->layer = NULL;
	h->next = hr->free;
	hr->free = h;
}

/* Waits until one has ended, and settles those that have. */
static void settle_some(struct hardener *hr)
{
	struct hardening *h;

	while (!hr->ended) {
		int r = eng_ring_wait(hr->batch->ring, UINT64_MAX);

		if (r >= 0 || r == -EINTR)
			continue;
		/* Without an answer of their own the ring's error stands for it. */
		for (h = hr->slots; h < hr->slots + GROUP; h++)
			if (h->layer) {
				h->sync.res = r;
				sync_done(&h->sync);
			}
	}
	while ((h = hr->ended)) {
		hr->ended = h->next;
		settle(hr, h);
	}
}

static void harden_start(struct hardener *hr, struct eng_layer *layer, struct eng_disk *disk)
{
	struct hardening *h = hr->free;

	hr->free = h->next;
	memset(h, 0, sizeof(*h));
	h->hardener = hr;
	h->layer = layer;
	h->disk = disk;
	h->sync.kind = ENG_OP_FDATASYNC;
	h->sync.file = layer->file;
	h->sync.done = sync_done;
	hr->under_way++;
	eng_ring_queue(hr->batch->ring, &h->sync);
}

static int wait_hardened(struct eng_batch *batch, struct eng_layer *layer, uint64_t deadline_ns)
{
	struct eng_io *io = batch->store->io;

	while (atomic_load(&layer->harden) == ENG_HARDEN_BUSY) {
		if (eng_io_now_ns(io) > deadline_ns)
			return -ETIMEDOUT;
		eng_io_sleep_ns(io, 50000);
	}
	return atomic_load(&layer->harden) == ENG_HARDEN_DONE ? 0 : -ENOTRECOVERABLE;
}

/* CU-15: what earlier cuts froze and did not harden comes first. */
static struct eng_layer *layer_to_harden(const struct eng_member *m, uint32_t i)
{
	if (i < m->entry->unhardened_count)
		return m->entry->unhardened[i];
	return i == m->entry->unhardened_count ? m->tail : NULL;
}

static void harden_layer(struct hardener *hr, struct eng_layer *layer, struct eng_disk *disk)
{
	int none = ENG_HARDEN_NONE;

	if (!hr->free)
		settle_some(hr);
	if (hr->first < 0 ||
	    !atomic_compare_exchange_strong(&layer->harden, &none, ENG_HARDEN_BUSY))
		return;
	if (needs_sync(layer))
		harden_start(hr, layer, disk);
	else /* FL-9: clean by now, but a sync may have failed before. */
		hardened(hr, layer, disk, atomic_load(&layer->poisoned));
}

/* GROUP layers at a time, each done by itself: see hardened(). The first error starts no others. */
static int harden_all(struct eng_batch *batch, struct eng_member *members, size_t count)
{
	struct hardener *hr = calloc(1, sizeof(*hr));
	struct eng_layer *layer;
	int r;

	if (!hr)
		return -ENOMEM;
	hr->batch = batch;
	for (unsigned i = 0; i < GROUP; i++) {
		hr->slots[i].next = hr->free;
		hr->free = &hr->slots[i];
	}
	for (size_t i = 0; i < count && hr->first == 0; i++)
		for (uint32_t j = 0; (layer = layer_to_harden(&members[i], j)); j++)
			harden_layer(hr, layer, members[i].entry->disk);
	while (hr->under_way || hr->ended)
		settle_some(hr);
	r = hr->first;
	free(hr);
	return r;
}

static int wait_member(struct eng_batch *batch, const struct eng_member *m, uint64_t deadline_ns)
{
	struct eng_layer *layer;
	int r = 0;

	for (uint32_t i = 0; r == 0 && (layer = layer_to_harden(m, i)); i++)
		r = wait_hardened(batch, layer, deadline_ns);
	return r;
}

int eng_batch_harden(struct eng_batch *batch, struct eng_member *members, size_t count,
		     uint64_t deadline_ns, struct fmt_error *err)
{
	int r = harden_all(batch, members, count);

	for (size_t i = 0; i < count && r == 0; i++) {
		r = wait_member(batch, &members[i], deadline_ns);
		if (r < 0)
			fmt_fail(err, r, "%s/%s: its frozen layer cannot be made durable: %s",
				 members[i].disk.vm_name, members[i].disk.name, strerror(-r));
	}
	if (r < 0 && err && !err->text[0])
		fmt_fail(err, r, "cannot make the frozen layers durable: %s", strerror(-r));
	return r;
}

/* --- boundaries --- */

struct boundary {
	struct eng_member *member;
	struct fmt_uuid snapshot;
	uint32_t members, index;
	struct eng_stat st;
};

static void edit_bound(struct fmt_header *hdr, void *arg)
{
	const struct boundary *b = arg;
	bool none = fmt_uuid_is_none(&b->snapshot);

	if (hdr->state == FMT_STATE_ACTIVE)
		hdr->state = FMT_STATE_FROZEN;
	hdr->snapshot_id = b->snapshot;
	hdr->snapshot_members = none ? 0 : b->members;
	hdr->snapshot_index = none ? 0 : b->index;
	memset(hdr->boot_id, 0, 16);
	hdr->journal_nonce = 0;
	if (hdr->kind == FMT_KIND_OVERLAY) {
		hdr->log_seq = b->member->tail->log.seq;
	} else {
		hdr->base_bytes = b->st.size;
		hdr->base_mtime_ns = b->st.mtime_ns;
	}
}

/* IB-3: what a frozen base is known by; for files that are not ours its time must be durable too. */
static int note_base(struct eng_member *m, struct boundary *b)
{
	struct eng_layer *layer = m->tail;
	int r = 0;

	if (layer->kind == FMT_KIND_OVERLAY)
		return 0;
	if (layer->in_place && layer->writable)
		r = eng_io_fsync(layer->io, layer->file);
	return r < 0 ? r : eng_io_fstat(layer->io, layer->file, &b->st);
}

/* Up to DEPTH layers at once; *@done: how many. */
static int settle_group(struct eng_batch *batch, struct batch_op *ops, uint8_t *slots,
			struct eng_layer *const *layers, size_t count, size_t *done)
{
	struct eng_layer *begun[DEPTH];
	size_t n = 0, i = 0;
	int r = 0;

	for (; r >= 0 && i < count && n < DEPTH; i++) {
		uint8_t *buf = slots + n * HEADS;
		struct eng_file *file;
		uint64_t offset;

		r = eng_layer_settle_begin(layers[i], buf, &file, &offset, NULL);
		if (r <= 0)
			continue;
		op_write(&ops[n], file, buf + offset, FMT_PAGE, offset);
		begun[n++] = layers[i];
	}
	r = r < 0 ? r : run(batch, ops, n);
	for (size_t j = 0; r == 0 && j < n; j++)
		eng_layer_settle_end(begun[j]);
	*done = i;
	return r;
}

int eng_batch_settle(struct eng_batch *batch, struct eng_layer *const *layers, size_t count)
{
	struct batch_op *ops = calloc(DEPTH, sizeof(*ops));
	uint8_t *slots = NULL;
	int r = ops && posix_memalign((void **)&slots, FMT_PAGE, DEPTH * HEADS) == 0 ? 0 : -ENOMEM;

	for (size_t done = 0, n; r == 0 && done < count; done += n) {
		eng_layer_lock_headers();
		r = settle_group(batch, ops, slots, layers + done, count - done, &n);
		eng_layer_unlock_headers();
	}
	free(slots);
	free(ops);
	return r;
}

/* LH-13: of disks that are not attached, say, whose ends were opened for this. */
static int settle_tails(struct eng_batch *batch, const struct eng_member *members, size_t count)
{
	struct eng_layer **layers = calloc(count, sizeof(*layers));
	size_t n = 0;
	int r = layers ? 0 : -ENOMEM;

	for (size_t i = 0; r == 0 && i < count; i++)
		if (!eng_layer_is_settled(members[i].tail))
			layers[n++] = members[i].tail;
	if (n)
		r = eng_batch_settle(batch, layers, n);
	free(layers);
	return r;
}

static int write_headers(struct eng_batch *batch, struct eng_member *members, size_t count,
			 const struct fmt_uuid *snapshot)
{
	struct batch_op *ops = calloc(count, sizeof(*ops));
	uint8_t *bufs = NULL;
	size_t begun = 0;
	int r = ops && posix_memalign((void **)&bufs, FMT_PAGE, count * FMT_PAGE) == 0 ? 0
										       : -ENOMEM;

	if (r == 0)
		r = settle_tails(batch, members, count);
	for (; r == 0 && begun < count; begun++) {
		struct eng_member *m = &members[begun];
		struct boundary b = {.member = m,
				     .snapshot = *snapshot,
				     .members = (uint32_t)count,
				     .index = m->index};
		struct eng_file *file;
		uint64_t offset;

		r = note_base(m, &b);
		if (r < 0)
			break;
		m->bounded = true;
		file = eng_layer_update_begin(m->tail, edit_bound, &b, bufs + begun * FMT_PAGE,
					      &offset);
		op_write(&ops[begun], file, bufs + begun * FMT_PAGE, FMT_PAGE, offset);
	}
	if (r == 0)
		r = run(batch, ops, count);
	for (size_t i = 0; i < begun; i++)
		eng_layer_update_end(members[i].tail, bufs + i * FMT_PAGE, r == 0);
	free(bufs);
	free(ops);
	return r;
}

int eng_batch_bound(struct eng_batch *batch, struct eng_member *members, size_t count,
		    const struct fmt_uuid *snapshot, struct fmt_error *err)
{
	int r = write_headers(batch, members, count, snapshot);

	if (r < 0)
		fmt_fail(err, r, "cannot record the snapshot in the frozen layers: %s",
			 strerror(-r));
	return r;
}

int eng_batch_unbound(struct eng_batch *batch, struct eng_member *members, size_t count)
{
	static const struct fmt_uuid none;
	int first = 0;

	for (size_t i = 0; i < count; i++) {
		struct eng_member *m = &members[i];
		int r = 0;

		if (!m->bounded && atomic_load(&m->tail->harden) != ENG_HARDEN_DONE)
			continue;
		r = write_headers(batch, m, 1, &none);
		m->settled = r == 0;
		if (r < 0 && first == 0)
			first = r;
	}
	return first;
}
