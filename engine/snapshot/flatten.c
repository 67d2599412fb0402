/* SPDX-License-Identifier: MIT */
/*
 * flatten.c - see flatten.h (FT-*).
 *
 * The copy is read through a view, as a snapshot is, so that no fold changes what lies beneath it
 * meanwhile; it is a raw file with a sidecar that says for whom it stands (FD-1). Then all disks that
 * stand on the clone's lowest layer are claimed, one transaction puts the copy beneath it, and workers
 * take it into use as they do a folded layer. Until the last has, the origins' layers stay as they are.
 */
#include "engine/snapshot/flatten.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/fold/fold.h"
#include "engine/image/copy.h"
#include "engine/store/garbage.h"
#include "engine/store/users.h"
#include "engine/store/view.h"

#define PIECES   8u
#define PIECE    (128u << 10) /* bytes read at once; PIECES in flight */
#define EXTENTS  512u
#define NAP_NS   1000000ull
#define RETRY_NS 100000000ull
#define ATTEMPTS 16u

struct flatten {
	struct eng_store *store;
	struct cat_disk disk;
	struct cat_layer *chain; /* of it */
	size_t count, foreign;   /* layers; of these others', from the bottom up */
	struct eng_progress *progress;
	bool last;
	struct fmt_error *err;

	struct fmt_header hdr; /* of the new base */
	char *data, *sidecar;
	bool made_data, made_sidecar;
	struct eng_view *view;
	uint32_t number; /* in the view */
	struct eng_file *file;
	uint8_t *bufs;
	uint64_t copied;

	struct eng_layer *base; /* opened, for workers */
	struct fmt_uuid *ids;   /* of the layers whose place it takes */
	struct fmt_uuid *origins;
	size_t origin_count;
	struct eng_garbage garbage;
	pthread_mutex_t lock;
	pthread_cond_t let_go;
	bool done, asked_seals;
	int swapped;
};

/* --- what --- */

static int look(struct flatten *f)
{
	struct eng_catalog *cat = f->store->catalog;
	int r = eng_catalog_get_disk_id(cat, &f->disk.id, &f->disk);

	free(f->chain);
	f->chain = NULL;
	f->foreign = 0;
	if (r == 0)
		r = eng_catalog_chain(cat, &f->disk.head, &f->chain, &f->count);
	while (r == 0 && f->foreign < f->count &&
	       !fmt_uuid_equal(&f->chain[f->foreign].disk, &f->disk.id))
		f->foreign++;
	return r;
}

/* The clone's lowest layer, and what it stands on. */
static const struct cat_layer *lowest(const struct flatten *f)
{
	return &f->chain[f->foreign];
}

static const struct cat_layer *beneath(const struct flatten *f)
{
	return &f->chain[f->foreign - 1];
}

/* FD-1, FD-2: the new base stands for what the clone's lowest layer names as its parent. */
static int make_header(struct flatten *f)
{
	struct eng_store *store = f->store;
	struct eng_layer *child = NULL, *parent = NULL;
	struct fmt_header *h = &f->hdr;
	int r = eng_store_open_layer(store, lowest(f), false, f->err, &child);

	if (r == 0)
		r = eng_store_open_layer(store, beneath(f), false, f->err, &parent);
	if (r == 0) {
		const uint8_t *hash = fmt_header_hash_for(&parent->hdr, &child->hdr.parent_id);

		h->kind = FMT_KIND_RAW;
		h->state = FMT_STATE_FROZEN;
		h->block_bits = f->disk.block_bits;
		h->seq = 1;
		h->store_id = store->id;
		h->disk_id = f->disk.id;
		eng_store_new_id(store, &h->layer_id);
		h->size = parent->hdr.size;
		h->created_ns = eng_io_wall_ns(store->io);
		h->incompat |= FMT_INCOMPAT_FOLDED;
		h->replaced_count = 1;
		h->replaced[0].id = child->hdr.parent_id;
		if (hash)
			memcpy(h->replaced[0].hash, hash, 16);
		eng_io_random(store->io, &h->salt, sizeof(h->salt));
	}
	eng_layer_put(child);
	eng_layer_put(parent);
	return r;
}

/* --- the copy --- */

static int write_part(void *arg, const void *buf, size_t len, uint64_t offset,
		      struct fmt_error *err)
{
	struct flatten *f = arg;
	int r = eng_io_pwrite(f->store->io, f->file, buf, len, offset);

	f->copied += len;
	return r < 0 ? fmt_fail(err, r, "%s: cannot write: %s", f->data, strerror(-r)) : 0;
}

static int copy_extent(struct flatten *f, uint64_t offset, uint64_t length)
{
	struct eng_view_piece pieces[PIECES];
	int r = 0;

	while (r == 0 && length) {
		uint64_t batch = 0;
		unsigned n = 0;

		for (; n < PIECES && batch < length; n++) {
			uint64_t len = length - batch < PIECE ? length - batch : PIECE;

			pieces[n] = (struct eng_view_piece){f->bufs + (size_t)n * PIECE,
							    (size_t)len, offset + batch};
			batch += len;
		}
		r = eng_view_read(f->view, f->number, pieces, n, f->err);
		for (unsigned i = 0; r == 0 && i < n; i++)
			r = eng_copy_nonzero(pieces[i].buf, pieces[i].len, pieces[i].offset,
					     write_part, f, f->err);
		if (r == 0)
			r = eng_progress_pace(f->progress, f->store->io, batch, f->disk.vm_name,
					      f->err);
		offset += batch;
		length -= batch;
	}
	return r;
}

static int copy_all(struct flatten *f)
{
	struct eng_disk_extent *extents = calloc(EXTENTS, sizeof(*extents));
	uint64_t at = 0;
	int r = extents ? 0 : -ENOMEM;

	while (r == 0 && at < f->hdr.size) {
		int n = eng_view_extents(f->view, f->number, at, f->hdr.size - at, extents, EXTENTS,
					 f->err);

		r = n < 0 ? n : 0;
		for (int i = 0; r == 0 && i < n; i++) {
			if (extents[i].state == ENG_EXTENT_DATA)
				r = copy_extent(f, at, extents[i].length);
			else
				eng_progress_add(f->progress, extents[i].length);
			at += extents[i].length;
			if (r == 0 && eng_progress_stop(f->progress))
				r = fmt_fail(f->err, -ECANCELED, "cancelled");
		}
	}
	free(extents);
	return r;
}

/* FT-2: the file, then its sidecar, then their names, each durable. */
static int copy(struct flatten *f)
{
	struct eng_io *io = f->store->io;
	struct eng_stat st;
	int r;

	f->data = eng_store_layer_path(f->store, &f->hdr.layer_id, "raw");
	f->sidecar = eng_store_layer_path(f->store, &f->hdr.layer_id, "vmr");
	if (!f->data || !f->sidecar || posix_memalign((void **)&f->bufs, 4096, PIECES * PIECE))
		return -ENOMEM;
	r = eng_io_open(io, f->data, ENG_OPEN_WRITE | ENG_OPEN_CREATE | ENG_OPEN_EXCL, &f->file);
	f->made_data = r == 0;
	if (r == 0)
		r = eng_io_truncate(io, f->file, f->hdr.size);
	if (r == 0)
		r = copy_all(f);
	if (r == 0)
		r = eng_io_fdatasync(io, f->file);
	if (r == 0)
		r = eng_io_fstat(io, f->file, &st);
	if (r < 0)
		return r;
	f->hdr.base_bytes = st.size;
	f->hdr.base_mtime_ns = st.mtime_ns;
	r = eng_sidecar_create(io, f->sidecar, &f->hdr, f->err);
	f->made_sidecar = r == 0;
	return r < 0 ? r : eng_io_sync_dir(io, f->store->layers_dir);
}

/* --- the commit --- */

/* Under the claims: nothing but a fold beneath has changed since, which changes no content (FO-2). */
static int recheck(struct flatten *f)
{
	struct fmt_uuid child = lowest(f)->id;
	struct cat_layer *rows = NULL;
	size_t n = 0;
	int r = look(f);

	if (r == 0 &&
	    (!f->foreign || f->foreign == f->count || !fmt_uuid_equal(&lowest(f)->id, &child)))
		r = fmt_fail(f->err, -ESTALE, "%s/%s: its chain has changed", f->disk.vm_name,
			     f->disk.name);
	/* All of the disk must stand on that one layer, what reverts have left too. */
	if (r == 0)
		r = eng_catalog_list_layers(f->store->catalog, &f->disk.id, &rows, &n);
	for (size_t i = 0; r == 0 && i < n; i++) {
		bool own = fmt_uuid_equal(&rows[i].id, &child);

		for (size_t j = 0; j < n && !own; j++)
			own = fmt_uuid_equal(&rows[j].id, &rows[i].parent);
		if (!own)
			r = fmt_fail(f->err, -EBUSY, "%s/%s: another layer of it is a clone's",
				     f->disk.vm_name, f->disk.name);
	}
	free(rows);
	return r;
}

/* D-3: a worker takes over sealed layers only. */
static int check_sealed(struct flatten *f)
{
	bool all = true;

	for (size_t i = 0; i < f->foreign; i++)
		if (f->chain[i].kind == FMT_KIND_OVERLAY && f->chain[i].state != CAT_LAYER_SEALED) {
			if (!f->asked_seals)
				eng_store_seal(f->store, &f->chain[i].id, NULL);
			all = false;
		}
	f->asked_seals = true;
	return all ? 0 : -EAGAIN;
}

static int list_origins(struct flatten *f)
{
	f->ids = calloc(f->foreign, sizeof(*f->ids));
	f->origins = calloc(f->foreign, sizeof(*f->origins));
	if (!f->ids || !f->origins)
		return -ENOMEM;
	f->origin_count = 0;
	for (size_t i = 0; i < f->foreign; i++) {
		size_t j = 0;

		f->ids[i] = f->chain[i].id;
		while (j < f->origin_count && !fmt_uuid_equal(&f->origins[j], &f->chain[i].disk))
			j++;
		if (j == f->origin_count)
			f->origins[f->origin_count++] = f->chain[i].disk;
	}
	return 0;
}

/* FT-4: until the workers have let go, the origins have one reader more. */
static void hold_origins(struct flatten *f, bool hold)
{
	pthread_mutex_lock(&f->store->lock);
	for (size_t i = 0; i < f->origin_count; i++) {
		struct eng_entry *e = eng_entry_get_locked(f->store, &f->origins[i]);

		if (e && hold)
			e->readers++;
		else if (e)
			e->readers--;
	}
	pthread_mutex_unlock(&f->store->lock);
	for (size_t i = 0; !hold && i < f->origin_count; i++)
		eng_folder_want(f->store->folder, &f->origins[i]);
}

static int put_rows(struct flatten *f, bool attached)
{
	struct eng_catalog *cat = f->store->catalog;
	struct cat_layer child = *lowest(f), row = {
						     .id = f->hdr.layer_id,
						     .disk = f->disk.id,
						     .kind = FMT_KIND_RAW,
						     .state = CAT_LAYER_HARDENED,
						     .created_ns = f->hdr.created_ns,
					     };
	int r = eng_catalog_begin(cat);

	if (r < 0)
		return r;
	r = eng_catalog_get_layer(cat, &child.id, &child); /* a seal may have ended just now */
	child.parent = row.id;
	if (r == 0)
		r = eng_catalog_put_layer(cat, &row);
	if (r == 0)
		r = eng_catalog_put_layer(cat, &child);
	for (size_t i = 0; r == 0 && !attached && i < f->origin_count; i++)
		if (!eng_garbage_is_read(f->store, &f->origins[i]))
			r = eng_garbage_rows(f->store, &f->origins[i], &f->garbage);
	if (r == 0 &&
	    (f->last ? !eng_progress_decide(f->progress) : eng_progress_stop(f->progress)))
		r = -ECANCELED;
	if (r < 0) {
		eng_catalog_rollback(cat);
		return r;
	}
	return eng_catalog_commit(cat, f->err);
}

/* A worker, or this thread. */
static void let_go(void *arg, int result)
{
	struct flatten *f = arg;

	pthread_mutex_lock(&f->lock);
	f->done = true;
	f->swapped = result;
	pthread_cond_broadcast(&f->let_go);
	pthread_mutex_unlock(&f->lock);
}

static int commit_claimed(struct flatten *f, struct eng_users *users)
{
	bool attached = eng_users_are_attached(users);
	struct cat_layer row = {.id = f->hdr.layer_id, .disk = f->disk.id, .kind = FMT_KIND_RAW};
	int r = recheck(f);

	if (r == 0 && attached)
		r = check_sealed(f);
	if (r == 0)
		r = list_origins(f);
	if (r == 0)
		r = eng_store_open_layer(f->store, &row, false, f->err, &f->base);
	if (r < 0)
		return r;
	if (attached)
		hold_origins(f, true);
	r = put_rows(f, attached);
	if (r < 0) {
		if (attached)
			hold_origins(f, false);
		return r;
	}
	eng_users_swap(users, f->base, f->ids, (uint32_t)f->foreign, let_go, f);
	return 0;
}

static void forget(struct flatten *f)
{
	eng_layer_put(f->base);
	free(f->ids);
	free(f->origins);
	f->base = NULL;
	f->ids = NULL;
	f->origins = NULL;
}

/* FT-3: waits for readers and seals as a fold does, as long as nobody cancels. */
static int commit(struct flatten *f, bool *attached)
{
	struct eng_users users;
	int r;

	for (;;) {
		if (eng_progress_stop(f->progress))
			return fmt_fail(f->err, -ECANCELED, "cancelled");
		r = eng_users_claim(f->store, &lowest(f)->id, &users);
		if (r == 0) {
			*attached = eng_users_are_attached(&users);
			r = commit_claimed(f, &users);
			eng_users_release(&users);
			if (r != -EAGAIN)
				return r;
			forget(f);
			eng_io_sleep_ns(f->store->io, RETRY_NS);
		} else if (r != -EBUSY) {
			return r;
		}
		eng_io_sleep_ns(f->store->io, NAP_NS);
	}
}

static int wait_let_go(struct flatten *f)
{
	pthread_mutex_lock(&f->lock);
	while (!f->done)
		pthread_cond_wait(&f->let_go, &f->lock);
	f->done = false;
	pthread_mutex_unlock(&f->lock);
	return f->swapped;
}

/*
 * FT-4: a worker that could not (no memory) is asked again, until it has, or its disk is detached. The disks
 * are found by the new base: what stood on it may have been folded since, or be gone with its disk.
 */
static void swap_until_done(struct flatten *f)
{
	struct eng_users users;
	int r;

	while (wait_let_go(f) < 0) {
		do {
			eng_io_sleep_ns(f->store->io, RETRY_NS);
			r = eng_users_claim(f->store, &f->hdr.layer_id, &users);
		} while (r < 0 && r != -ENOENT);
		if (r == -ENOENT)
			return;
		eng_users_swap(&users, f->base, f->ids, (uint32_t)f->foreign, let_go, f);
		eng_users_release(&users);
	}
}

/* --- all of it --- */

static int check_view(struct flatten *f)
{
	struct eng_entry *e;
	int r = 0;

	pthread_mutex_lock(&f->store->lock);
	e = eng_entry_get_locked(f->store, &f->disk.id);
	if (e && e->disk && e->disk->read_only)
		r = -EBUSY;
	pthread_mutex_unlock(&f->store->lock);
	return r < 0 ? fmt_fail(f->err, r, "%s/%s: attached read-only", f->disk.vm_name,
				f->disk.name)
		     : 0;
}

static int run(struct flatten *f)
{
	bool attached = false;
	int r = make_header(f);

	if (r == 0)
		r = check_view(f);
	if (r == 0)
		r = eng_view_open(f->store, f->err, &f->view);
	if (r == 0)
		r = eng_view_add_layer(f->view, &f->disk.id, &beneath(f)->id, f->err, &f->number);
	if (r == 0)
		r = copy(f);
	eng_view_close(f->view); /* readers of it would hold up the commit */
	f->view = NULL;
	if (r == 0)
		r = commit(f, &attached);
	if (r < 0)
		return r;
	swap_until_done(f);
	if (attached)
		hold_origins(f, false);
	eng_garbage_files(f->store, &f->garbage);
	eng_folder_want(f->store->folder, &f->disk.id);
	return 0;
}

static void fini(struct flatten *f, int r)
{
	struct eng_io *io = f->store->io;

	eng_io_close(io, f->file);
	if (r < 0 && !eng_catalog_poisoned(f->store->catalog)) {
		if (f->made_data)
			eng_io_unlink(io, f->data);
		if (f->made_sidecar)
			eng_io_unlink(io, f->sidecar);
	}
	forget(f);
	eng_garbage_fini(&f->garbage);
	free(f->bufs);
	free(f->data);
	free(f->sidecar);
	free(f->chain);
	pthread_cond_destroy(&f->let_go);
	pthread_mutex_destroy(&f->lock);
}

int eng_store_flatten_bytes(struct eng_store *store, const struct fmt_uuid *disk, uint64_t *ret)
{
	struct flatten f = {.store = store, .disk.id = *disk};
	struct eng_layer *layer = NULL;
	uint64_t bytes = 0;
	int r = look(&f);

	if (r == 0 && f.foreign)
		r = eng_store_open_layer(store, beneath(&f), false, NULL, &layer);
	if (r == 0 && layer)
		bytes = layer->hdr.size;
	eng_layer_put(layer);
	free(f.chain);
	if (r == 0)
		*ret = bytes;
	return r;
}

/* One attempt; -ESTALE, -ENOENT: the disk's layers are others by now, or the disk is gone. */
static int flatten_once(struct flatten *f)
{
	int r;

	pthread_mutex_init(&f->lock, NULL);
	pthread_cond_init(&f->let_go, NULL);
	r = look(f);
	if (r == 0 && f->foreign)
		r = run(f);
	fini(f, r);
	return r;
}

int eng_store_flatten(struct eng_store *store, const struct fmt_uuid *disk, bool last,
		      struct eng_progress *progress, struct fmt_error *err, uint64_t *copied)
{
	struct flatten f;
	int r = -ESTALE;

	/* FT-6 */
	for (unsigned i = 0; (r == -ESTALE || r == -ENOENT) && i < ATTEMPTS; i++) {
		if (i)
			eng_io_sleep_ns(store->io, NAP_NS);
		f = (struct flatten){
			.store = store,
			.disk.id = *disk,
			.progress = progress,
			.last = last,
			.err = err,
		};
		if (err)
			err->text[0] = 0;
		r = flatten_once(&f);
		if (r < 0 && progress)
			atomic_fetch_add(&progress->total, f.hdr.size);
	}
	if (r < 0 && err && !err->text[0])
		fmt_fail(err, r, "%s/%s: cannot flatten: %s", f.disk.vm_name, f.disk.name,
			 strerror(-r));
	if (r == 0)
		*copied = f.copied;
	return r;
}
