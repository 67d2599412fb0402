/* SPDX-License-Identifier: MIT */
/*
 * layer.c - layer files: creation, opening, durable header changes, references.
 *
 * A header change goes to the slot that does not hold the newest header, so a crash in the middle
 * leaves the old one (LH-4). meta_lock is held from the encoding to the end of the sync: two changes
 * of one layer never overlap. A header that was read is settled before the slot of the one before it
 * is written over (LH-13).
 */
#include "engine/layer/layer.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/layer/gone.h"
#include "engine/layer/index.h"
#include "engine/layer/qcow2.h"

#define LOG0_LEN  0x6000u /* 24 KiB: some fifty small flushes before the first segment */
#define SLOTS_LEN (FMT_HEADER_SLOTS * FMT_PAGE)
#define NOT_KNOWN UINT64_MAX /* which header is durable: no seq comes this far */

static void *alloc_aligned(size_t len)
{
	void *p = NULL;

	if (posix_memalign(&p, FMT_PAGE, len))
		return NULL;
	memset(p, 0, len);
	return p;
}

static struct eng_layer *layer_alloc(struct eng_io *io)
{
	struct eng_layer *layer = calloc(1, sizeof(*layer));

	if (!layer)
		return NULL;
	layer->io = io;
	layer->durable_seq = NOT_KNOWN;
	layer->journal_tag = UINT32_MAX;
	atomic_store(&layer->refs, 1);
	pthread_mutex_init(&layer->meta_lock, NULL);
	return layer;
}

struct eng_layer *eng_layer_get(struct eng_layer *layer)
{
	atomic_fetch_add(&layer->refs, 1);
	return layer;
}

void eng_layer_put(struct eng_layer *layer)
{
	if (!layer || atomic_fetch_sub(&layer->refs, 1) != 1)
		return;
	assert(atomic_load(&layer->inflight) == 0);
	for (struct eng_succ *s = layer->abandoned, *older; s; s = older) {
		older = s->older;
		eng_succ_destroy(s);
	}
	eng_succ_destroy(atomic_load(&layer->succ));
	eng_index_close(atomic_load(&layer->index));
	eng_qcow2_close(layer->qcow2);
	eng_io_close(layer->io, layer->sidecar);
	eng_io_close(layer->io, layer->file);
	pthread_mutex_destroy(&layer->meta_lock);
	free(layer->round);
	free(layer->pending);
	free(layer->gone);
	free(layer->path);
	free(layer->data_path);
	free(layer);
}

static void layer_take_header(struct eng_layer *layer, const struct fmt_header *hdr)
{
	layer->hdr = *hdr;
	layer->id = hdr->layer_id;
	layer->kind = hdr->kind;
	layer->block_bits = hdr->block_bits;
	layer->log_granule = hdr->log_granule;
	layer->generation = hdr->generation;
	layer->salt = hdr->salt;
	layer->data_offset = hdr->data_offset;
	atomic_store(&layer->size, hdr->size);
	atomic_store(&layer->sealed, hdr->state == FMT_STATE_SEALED);
	if (hdr->state != FMT_STATE_ACTIVE)
		atomic_store(&layer->harden, ENG_HARDEN_DONE);
}

static int layer_take_stat(struct eng_layer *layer)
{
	struct eng_stat st;
	int r = eng_io_fstat(layer->io, layer->file, &st);

	if (r < 0)
		return r;
	layer->dev = st.dev;
	layer->ino = st.ino;
	layer->dio_align = st.dio_align;
	layer->mem_align = st.mem_align;
	layer->direct = st.dio_align > 1;
	layer->base_bytes = st.size;
	return 0;
}

/* --- creation --- */

void eng_layer_new_header(struct eng_io *io, const struct eng_layer_spec *spec, uint32_t granule,
			  struct fmt_header *hdr)
{
	memset(hdr, 0, sizeof(*hdr));
	hdr->kind = FMT_KIND_OVERLAY;
	hdr->state = FMT_STATE_ACTIVE;
	hdr->block_bits = spec->block_bits;
	hdr->seq = 1;
	hdr->store_id = spec->store;
	hdr->disk_id = spec->disk;
	hdr->layer_id = spec->layer;
	hdr->parent_id = spec->parent;
	hdr->generation = spec->generation;
	hdr->size = spec->size;
	eng_io_random(io, &hdr->salt, sizeof(hdr->salt));
	hdr->created_ns = eng_io_wall_ns(io);
	hdr->data_offset = FMT_DATA_OFFSET;
	hdr->log0_len = LOG0_LEN;
	hdr->log_granule = granule;
	hdr->log_segments = 1;
	memcpy(hdr->boot_id, spec->boot_id, 16);
	hdr->journal_nonce = spec->journal_nonce;
}

static void log_start(struct eng_layer *layer)
{
	layer->log = (struct eng_log){
		.segment = FMT_LOG0_OFFSET,
		.segment_len = layer->hdr.log0_len,
		.offset = FMT_LOG0_OFFSET,
		.segments = 1,
		.bytes = layer->hdr.log0_len,
	};
}

int eng_layer_create_begin(struct eng_io *io, const struct eng_layer_spec *spec, void **head,
			   size_t *head_len, struct fmt_error *err, struct eng_layer **ret)
{
	unsigned flags = ENG_OPEN_WRITE | ENG_OPEN_CREATE | ENG_OPEN_EXCL | ENG_OPEN_CACHED;
	struct eng_layer *layer = layer_alloc(io);
	struct fmt_header hdr;
	size_t len = FMT_LOG0_OFFSET + LOG0_LEN;
	uint64_t space;
	uint8_t *buf = alloc_aligned(len);
	bool made = false;
	int r = -ENOMEM;

	if (!layer || !buf || !(layer->path = strdup(spec->path)))
		goto out;
	r = eng_io_open(io, spec->path, flags | (spec->direct ? ENG_OPEN_DIRECT : 0), &layer->file);
	if (r < 0)
		goto out;
	made = true;
	r = layer_take_stat(layer);
	if (r < 0)
		goto out;
	eng_layer_new_header(io, spec, layer->dio_align > 512 ? layer->dio_align : 512, &hdr);
	layer_take_header(layer, &hdr);
	layer->durable_seq = hdr.seq; /* before anything is done with it (LH-9) */
	space = layer->data_offset + ((uint64_t)spec->initial_slots << layer->block_bits) +
		fmt_seal_reserve(spec->initial_slots);
	r = eng_io_allocate(io, layer->file, 0, space);
	if (r == -EOPNOTSUPP) /* a file system without allocation: T15 is then its user's risk */
		r = eng_io_truncate(io, layer->file, space);
	if (r < 0)
		goto out;
	layer->writable = true;
	layer->slots_ready = spec->initial_slots;
	log_start(layer);
	fmt_header_encode(&hdr, buf + (hdr.seq % FMT_HEADER_SLOTS) * FMT_PAGE);
	*head = buf;
	*head_len = len;
	*ret = layer;
	buf = NULL;
	layer = NULL;
out:
	if (layer && made)
		eng_io_unlink(io, spec->path);
	if (r < 0)
		r = fmt_fail(err, r, "%s: cannot create the layer: %s", spec->path, strerror(-r));
	eng_layer_put(layer);
	free(buf);
	return r;
}

int eng_layer_create(struct eng_io *io, const struct eng_layer_spec *spec, struct fmt_error *err,
		     struct eng_layer **ret)
{
	struct eng_layer *layer = NULL;
	void *head = NULL;
	size_t len;
	int r = eng_layer_create_begin(io, spec, &head, &len, err, &layer);

	if (r < 0)
		return r;
	r = eng_io_pwrite(io, layer->file, head, len, 0);
	if (r == 0)
		r = eng_io_fdatasync(io, layer->file);
	free(head);
	if (r < 0) {
		eng_io_unlink(io, spec->path);
		eng_layer_put(layer);
		return fmt_fail(err, r, "%s: cannot write the new layer: %s", spec->path,
				strerror(-r));
	}
	*ret = layer;
	return 0;
}

int eng_sidecar_create(struct eng_io *io, const char *path, const struct fmt_header *hdr,
		       struct fmt_error *err)
{
	uint8_t *slots = alloc_aligned(SLOTS_LEN);
	struct eng_file *file = NULL;
	int r = -ENOMEM;

	if (!slots)
		goto out;
	r = eng_io_open(io, path, ENG_OPEN_WRITE | ENG_OPEN_CREATE | ENG_OPEN_EXCL, &file);
	if (r < 0)
		goto out;
	fmt_header_encode(hdr, slots + (hdr->seq % FMT_HEADER_SLOTS) * FMT_PAGE);
	r = eng_io_pwrite(io, file, slots, SLOTS_LEN, 0);
	if (r == 0)
		r = eng_io_fdatasync(io, file);
	if (r < 0)
		eng_io_unlink(io, path);
out:
	if (r < 0)
		fmt_fail(err, r, "%s: cannot write the sidecar: %s", path, strerror(-r));
	eng_io_close(io, file);
	free(slots);
	return r;
}

/* --- opening --- */

/* Both slots as they are in the file, @slots, and the header that they come to. */
static int read_both(struct eng_layer *layer, struct eng_file *file, uint8_t *slots,
		     struct fmt_header *ret, struct fmt_error *err)
{
	struct fmt_error why = {{0}};
	ssize_t n = eng_io_pread(layer->io, file, slots, SLOTS_LEN, 0);
	int r = n < 0 ? (int)n : n < (ssize_t)SLOTS_LEN ? -EUCLEAN : 0;

	if (r < 0)
		return fmt_fail(err, r, "%s: cannot read the header: %s", layer->path,
				n < 0 ? strerror(-r) : "the file is shorter than two header slots");
	r = fmt_header_pick(slots, ret, &why);
	return r < 0 ? fmt_fail(err, r, "%s: %s", layer->path, why.text) : 0;
}

static int read_slots(struct eng_layer *layer, struct eng_file *file, struct fmt_header *ret,
		      struct fmt_error *err)
{
	uint8_t *slots = alloc_aligned(SLOTS_LEN);
	int r = slots ? read_both(layer, file, slots, ret, err) : -ENOMEM;

	free(slots);
	return r;
}

static int read_header(struct eng_layer *layer, struct eng_file *file, struct fmt_error *err)
{
	struct fmt_header hdr;
	int r = read_slots(layer, file, &hdr, err);

	if (r == 0)
		layer_take_header(layer, &hdr);
	return r;
}

/* T31: a frozen base is refused when it is not the file that was frozen. */
static int check_frozen_base(struct eng_layer *layer, bool in_place, struct fmt_error *err)
{
	const struct fmt_header *h = &layer->hdr;
	struct eng_stat st;
	int r = eng_io_stat(layer->io, layer->data_path, &st);

	if (r < 0)
		return fmt_fail(err, r, "%s: %s", layer->data_path, strerror(-r));
	if (h->state == FMT_STATE_ACTIVE)
		return 0;
	/* The store's own files are nobody else's to change, and a copy of the store has new times; a
	 * fold that did not commit may have made one longer (SC-3). */
	if (in_place ? st.size != h->base_bytes || st.mtime_ns != h->base_mtime_ns
		     : st.size < h->base_bytes || (st.size > h->base_bytes && st.size > h->size))
		return fmt_fail(
			err, -EUCLEAN,
			"%s: the frozen base was changed behind our back: %llu bytes, modified "
			"%lld; recorded %llu, %lld (T31)",
			layer->data_path, (unsigned long long)st.size, (long long)st.mtime_ns,
			(unsigned long long)h->base_bytes, (long long)h->base_mtime_ns);
	return 0;
}

/* A raw or qcow2 file without a sidecar: an image outside a store. */
static void bare_base(struct eng_layer *layer, const struct eng_layer_open *how)
{
	struct fmt_header hdr = {
		.kind = how->kind,
		.state = how->writable ? FMT_STATE_ACTIVE : FMT_STATE_FROZEN,
		.block_bits = FMT_BLOCK_BITS_MIN,
	};

	layer_take_header(layer, &hdr);
}

/* A chain may have more layers than the process may have files open. A lock needs its descriptor. */
static unsigned open_flags(const struct eng_layer_open *how)
{
	unsigned flags = how->direct ? ENG_OPEN_DIRECT : 0;

	flags |= how->writable ? ENG_OPEN_WRITE : 0;
	return how->in_place ? flags : flags | ENG_OPEN_CACHED;
}

static int open_sidecar(struct eng_layer *layer, const struct eng_layer_open *how,
			struct fmt_error *err)
{
	struct eng_file *file;
	int r = eng_io_open(layer->io, how->path, ENG_OPEN_CACHED, &layer->sidecar);

	if (r < 0)
		return fmt_fail(err, r, "%s: %s", how->path, strerror(-r));
	r = read_header(layer, layer->sidecar, err);
	/* A snapshot changes an active base's header, however the base is open. */
	if (r < 0 || (!how->writable && layer->hdr.state != FMT_STATE_ACTIVE))
		return r;
	r = eng_io_open(layer->io, how->path, ENG_OPEN_WRITE, &file);
	if (r == -EACCES || r == -EROFS)
		return 0;
	if (r < 0)
		return fmt_fail(err, r, "%s: %s", how->path, strerror(-r));
	eng_io_close(layer->io, layer->sidecar);
	layer->sidecar = file;
	return 0;
}

static int open_base(struct eng_layer *layer, const struct eng_layer_open *how,
		     struct fmt_error *err)
{
	unsigned flags = open_flags(how);
	int r;

	if (!(layer->data_path = strdup(how->data_path)))
		return -ENOMEM;
	if (how->path) {
		r = open_sidecar(layer, how, err);
		if (r < 0)
			return r;
		if (layer->kind != how->kind)
			return fmt_fail(err, -EUCLEAN, "%s: kind %u, expected %u (SC-1)", how->path,
					layer->kind, how->kind);
		r = check_frozen_base(layer, how->in_place, err);
		if (r < 0)
			return r;
	} else {
		bare_base(layer, how);
	}
	r = eng_io_open(layer->io, how->data_path, flags, &layer->file);
	if (r == 0)
		r = layer_take_stat(layer);
	/* A file that ends inside a direct I/O unit would grow by a write of its last unit. */
	if (r == 0 && layer->base_bytes % layer->dio_align) {
		eng_io_close(layer->io, layer->file);
		layer->file = NULL;
		r = eng_io_open(layer->io, how->data_path, flags & ~(unsigned)ENG_OPEN_DIRECT,
				&layer->file);
		if (r == 0)
			r = layer_take_stat(layer);
	}
	if (r < 0)
		return fmt_fail(err, r, "%s: %s", how->data_path, strerror(-r));
	if (how->kind == FMT_KIND_QCOW2)
		r = eng_qcow2_open(layer->io, how->data_path, how->base_dirs, how->base_dirs_count,
				   err, &layer->qcow2);
	if (!how->path)
		atomic_store(&layer->size,
			     layer->qcow2 ? eng_qcow2_size(layer->qcow2) : layer->base_bytes);
	return r;
}

static int open_overlay(struct eng_layer *layer, const struct eng_layer_open *how,
			struct fmt_error *err)
{
	unsigned flags = open_flags(how) | ENG_OPEN_NOFOLLOW;
	int r = eng_io_open(layer->io, how->path, flags, &layer->file);

	if (r < 0)
		return fmt_fail(err, r, "%s: %s", how->path, strerror(-r));
	r = read_header(layer, layer->file, err);
	if (r < 0)
		return r;
	if (layer->kind != FMT_KIND_OVERLAY)
		return fmt_fail(err, -EUCLEAN, "%s: kind %u, expected an overlay (LH-2)", how->path,
				layer->kind);
	r = layer_take_stat(layer);
	if (r < 0)
		return fmt_fail(err, r, "%s: %s", how->path, strerror(-r));
	log_start(layer);
	return eng_gone_read(layer->io, layer->file, how->path, &layer->hdr, err, &layer->gone);
}

int eng_layer_open(struct eng_io *io, const struct eng_layer_open *how, struct fmt_error *err,
		   struct eng_layer **ret)
{
	struct eng_layer *layer = layer_alloc(io);
	int r = -ENOMEM;

	if (!layer || !(layer->path = strdup(how->path ? how->path : how->data_path)))
		goto out;
	layer->writable = how->writable;
	layer->in_place = how->in_place;
	r = how->kind == FMT_KIND_OVERLAY ? open_overlay(layer, how, err)
					  : open_base(layer, how, err);
	if (r < 0)
		goto out;
	*ret = layer;
	layer = NULL;
out:
	eng_layer_put(layer);
	return r;
}

/* --- durable header changes --- */

static struct eng_file *header_file(const struct eng_layer *layer)
{
	return layer->sidecar ? layer->sidecar : layer->file;
}

struct eng_file *eng_layer_update_begin(struct eng_layer *layer,
					void (*edit)(struct fmt_header *hdr, void *arg), void *arg,
					void *buf, uint64_t *offset)
{
	struct fmt_header hdr;

	pthread_mutex_lock(&layer->meta_lock);
	assert(layer->durable_seq == layer->hdr.seq); /* LH-13 */
	hdr = layer->hdr;
	edit(&hdr, arg);
	hdr.seq++;
	fmt_header_encode(&hdr, buf);
	*offset = (hdr.seq % FMT_HEADER_SLOTS) * FMT_PAGE;
	return header_file(layer);
}

void eng_layer_update_end(struct eng_layer *layer, const void *buf, bool ok)
{
	struct fmt_header hdr;
	int r;

	if (ok) {
		r = fmt_header_decode(buf, &hdr, NULL);
		assert(r == 0);
		(void)r;
		layer->hdr = hdr;
		layer->durable_seq = hdr.seq;
		atomic_store(&layer->size, hdr.size);
	}
	pthread_mutex_unlock(&layer->meta_lock);
}

/*
 * A frozen layer may be open in several objects at once (the disk's, the seal's, a deletion's), and
 * each may change another part of the header: one after the other, each from what the file says.
 */
static pthread_mutex_t frozen_headers = PTHREAD_MUTEX_INITIALIZER;

void eng_layer_lock_headers(void)
{
	pthread_mutex_lock(&frozen_headers);
}

void eng_layer_unlock_headers(void)
{
	pthread_mutex_unlock(&frozen_headers);
}

static bool is_frozen(struct eng_layer *layer)
{
	bool frozen;

	pthread_mutex_lock(&layer->meta_lock);
	frozen = layer->hdr.state != FMT_STATE_ACTIVE;
	pthread_mutex_unlock(&layer->meta_lock);
	return frozen;
}

static int take_read(struct eng_layer *layer, const struct fmt_header *hdr, struct fmt_error *err)
{
	if (!fmt_uuid_equal(&hdr->layer_id, &layer->id))
		return fmt_fail(err, -EUCLEAN, "%s: the file holds another layer", layer->path);
	pthread_mutex_lock(&layer->meta_lock);
	layer->hdr = *hdr;
	pthread_mutex_unlock(&layer->meta_lock);
	if (hdr->state == FMT_STATE_SEALED)
		atomic_store_explicit(&layer->sealed, true, memory_order_release);
	return 0;
}

int eng_layer_reload(struct eng_layer *layer, struct fmt_error *err)
{
	struct fmt_header hdr;
	int r;

	pthread_mutex_lock(&frozen_headers);
	r = read_slots(layer, header_file(layer), &hdr, err);
	if (r == 0)
		r = take_read(layer, &hdr, err);
	pthread_mutex_unlock(&frozen_headers);
	return r;
}

bool eng_layer_is_settled(struct eng_layer *layer)
{
	bool settled;

	pthread_mutex_lock(&layer->meta_lock);
	settled = layer->hdr.state == FMT_STATE_ACTIVE && layer->durable_seq == layer->hdr.seq;
	pthread_mutex_unlock(&layer->meta_lock);
	return settled;
}

/*
 * The header that was read is written once more where it is, since a sync alone would not do (IO-5).
 * Torn, that leaves it, or the one before, where it was not durable.
 */
int eng_layer_settle_begin(struct eng_layer *layer, void *slots, struct eng_file **file,
			   uint64_t *offset, struct fmt_error *err)
{
	struct fmt_header hdr;
	bool active, durable;
	uint64_t seq;
	int r;

	pthread_mutex_lock(&layer->meta_lock);
	active = layer->hdr.state == FMT_STATE_ACTIVE;
	seq = layer->hdr.seq;
	durable = layer->durable_seq == seq;
	pthread_mutex_unlock(&layer->meta_lock);
	if (active && durable)
		return 0;
	r = read_both(layer, header_file(layer), slots, &hdr, err);
	if (r == 0 && active && hdr.seq != seq)
		r = fmt_fail(err, -EUCLEAN, "%s: somebody else changed the header", layer->path);
	if (r == 0)
		r = take_read(layer, &hdr, err);
	if (r < 0)
		return r;
	*file = header_file(layer);
	*offset = (hdr.seq % FMT_HEADER_SLOTS) * FMT_PAGE;
	return !durable || hdr.seq != seq;
}

void eng_layer_settle_end(struct eng_layer *layer)
{
	pthread_mutex_lock(&layer->meta_lock);
	layer->durable_seq = layer->hdr.seq;
	pthread_mutex_unlock(&layer->meta_lock);
}

static int write_header(struct eng_layer *layer, struct eng_file *file, const void *buf,
			uint64_t offset)
{
	int r = eng_io_pwrite(layer->io, file, buf, FMT_PAGE, offset);

	if (r == 0)
		r = eng_io_fdatasync(layer->io, file);
	/* The descriptor is shared: this sync may have taken an error that a flush should see (T16). */
	if (r < 0 && !layer->sidecar && atomic_load(&layer->harden) != ENG_HARDEN_DONE)
		eng_layer_poison(layer, r);
	return r;
}

static int settle(struct eng_layer *layer, struct fmt_error *err)
{
	uint8_t *slots = alloc_aligned(SLOTS_LEN);
	struct eng_file *file;
	uint64_t offset;
	int r = slots ? eng_layer_settle_begin(layer, slots, &file, &offset, err)
		      : fmt_fail(err, -ENOMEM, "%s: no memory for a header", layer->path);

	if (r > 0) {
		r = write_header(layer, file, slots + offset, offset);
		if (r == 0)
			eng_layer_settle_end(layer);
		else
			fmt_fail(err, r, "%s: cannot write the header again: %s", layer->path,
				 strerror(-r));
	}
	free(slots);
	return r;
}

int eng_layer_settle_header(struct eng_layer *layer, struct fmt_error *err)
{
	bool frozen = is_frozen(layer);
	int r;

	if (frozen)
		pthread_mutex_lock(&frozen_headers);
	r = settle(layer, err);
	if (frozen)
		pthread_mutex_unlock(&frozen_headers);
	return r;
}

static int update(struct eng_layer *layer, void (*edit)(struct fmt_header *hdr, void *arg),
		  void *arg, struct fmt_error *err)
{
	struct eng_file *file;
	uint64_t offset;
	void *buf = alloc_aligned(FMT_PAGE);
	int r;

	if (!buf)
		return fmt_fail(err, -ENOMEM, "%s: no memory for a header", layer->path);
	file = eng_layer_update_begin(layer, edit, arg, buf, &offset);
	r = write_header(layer, file, buf, offset);
	eng_layer_update_end(layer, buf, r == 0);
	free(buf);
	if (r < 0)
		fmt_fail(err, r, "%s: cannot write the header: %s", layer->path, strerror(-r));
	return r;
}

int eng_layer_update(struct eng_layer *layer, void (*edit)(struct fmt_header *hdr, void *arg),
		     void *arg, struct fmt_error *err)
{
	bool frozen = is_frozen(layer);
	int r;

	if (frozen)
		pthread_mutex_lock(&frozen_headers);
	r = settle(layer, err);
	if (r == 0)
		r = update(layer, edit, arg, err);
	if (frozen)
		pthread_mutex_unlock(&frozen_headers);
	return r;
}

void eng_layer_poison(struct eng_layer *layer, int error)
{
	int none = 0;

	assert(error < 0);
	atomic_compare_exchange_strong(&layer->poisoned, &none, error);
}
