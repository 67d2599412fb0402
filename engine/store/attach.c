/* SPDX-License-Identifier: MIT */
/*
 * attach.c - disks and their snapshots put on a queue and taken off again (AT-*). On the queue's
 * thread; while it waits for a disk that is busy it turns its own ring, because the cut it waits for
 * may need this very thread for another disk (AT-1).
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/fold/fold.h"
#include "engine/store/hold.h"
#include "engine/store/store.h"

#define BUSY_NS (30ull * 1000000000) /* longest wait for a cut to end */

static int claim_turning(struct eng_store *store, struct eng_queue *queue,
			 const struct fmt_uuid *disk, struct eng_entry **ret)
{
	uint64_t end = eng_io_now_ns(store->io) + BUSY_NS;
	int r;

	while ((r = eng_entry_claim(store, disk, 0, ret)) == -EBUSY &&
	       eng_io_now_ns(store->io) < end) {
		r = eng_queue_turn(queue, 1000000);
		if (r < 0 && r != -EINTR)
			return r;
	}
	return r;
}

/* --- names --- */

/* Splits "A/B" in place; NULL when there is no slash or an empty part. */
static char *split(char *name, char at)
{
	char *p = strchr(name, at);

	if (!p || p == name || !p[1])
		return NULL;
	*p = 0;
	return p + 1;
}

static int find_snapshot_disk(struct eng_store *store, char *collection, char *snapshot, char *vm,
			      char *disk, struct cat_snapshot_disk *ret, struct fmt_error *err)
{
	struct cat_snapshot_disk *rows = NULL;
	struct cat_snapshot snap;
	size_t n = 0;
	int r = eng_catalog_find_members(store->catalog, collection, snapshot, err, &snap, &rows,
					 &n);

	if (r < 0)
		return r;
	r = -ENOENT;
	for (size_t i = 0; i < n; i++)
		if (!rows[i].skipped && !strcmp(rows[i].vm_name, vm) &&
		    !strcmp(rows[i].disk_name, disk)) {
			*ret = rows[i];
			r = 0;
		}
	free(rows);
	return r < 0 ? fmt_fail(err, r, "%s@%s: holds no disk %s/%s", collection, snapshot, vm,
				disk)
		     : 0;
}

/* @row as it is now; -ENOENT: its snapshot has been deleted. */
static int refresh_member(struct eng_store *store, const struct cat_snapshot_disk *row,
			  struct cat_snapshot_disk *ret, struct fmt_error *err)
{
	struct cat_snapshot_disk *rows = NULL;
	size_t n = 0;
	int r = eng_catalog_list_snapshot_disks(store->catalog, &row->snapshot, &rows, &n);

	if (r == 0)
		r = -ENOENT;
	for (size_t i = 0; r == -ENOENT && i < n; i++)
		if (fmt_uuid_equal(&rows[i].disk, &row->disk)) {
			*ret = rows[i];
			r = 0;
		}
	free(rows);
	return r < 0 ? fmt_fail(err, r, "%s/%s: its snapshot is gone", row->vm_name, row->disk_name)
		     : 0;
}

static int ordinal_of(const struct eng_disk *disk, const struct fmt_uuid *layer, uint32_t *ret)
{
	for (uint32_t i = disk->nlayers; i-- > 0;)
		if (fmt_uuid_equal(&disk->layers[i]->id, layer)) {
			*ret = i;
			return 0;
		}
	return -ENOENT;
}

int eng_store_frozen_layer(struct eng_disk *disk, const char *collection, const char *snapshot,
			   struct fmt_error *err, uint32_t *ret)
{
	struct eng_store *store = ((struct eng_entry *)disk->owner)->store;
	struct cat_snapshot_disk *rows = NULL;
	struct cat_snapshot snap;
	size_t n = 0;
	int r = eng_catalog_find_members(store->catalog, collection, snapshot, err, &snap, &rows,
					 &n);

	if (r < 0)
		return r;
	eng_disk_promote(disk);
	r = -ENOENT;
	for (size_t i = 0; i < n && r < 0; i++)
		if (!rows[i].skipped && fmt_uuid_equal(&rows[i].disk, &disk->id))
			r = ordinal_of(disk, &rows[i].layer, ret);
	free(rows);
	return r < 0 ? fmt_fail(err, r, "%s@%s: holds no layer of this disk", collection, snapshot)
		     : 0;
}

/* --- chains --- */

static void put_layers(struct eng_layer **layers, size_t n)
{
	for (size_t i = 0; layers && i < n; i++)
		eng_layer_put(layers[i]);
	free(layers);
}

/*
 * Opens the chain under @top, base first; for writing, when @writable, the top and what a failed cut
 * froze without saying so: the detach does (settle_frozen()).
 */
static int open_chain(struct eng_store *store, const struct fmt_uuid *top, bool writable,
		      struct fmt_error *err, struct eng_layer ***ret, size_t *count)
{
	struct cat_layer *rows = NULL;
	struct eng_layer **layers = NULL;
	size_t n = 0, i = 0;
	int r = eng_catalog_chain(store->catalog, top, &rows, &n);

	if (r < 0)
		return fmt_fail(err, r, "the chain is broken in the catalog");
	layers = calloc(n, sizeof(struct eng_layer *));
	if (!layers) {
		free(rows);
		return fmt_fail(err, -ENOMEM, "no memory for a chain of %zu layers", n);
	}
	for (; i < n && r == 0; i++) {
		r = eng_store_open_layer(store, &rows[i],
					 writable &&
						 (i + 1 == n || rows[i].state == CAT_LAYER_ACTIVE),
					 err, &layers[i]);
		if (r == 0 && i &&
		    fmt_header_check_child(&layers[i - 1]->hdr, &layers[i]->hdr.parent_id,
					   layers[i]->hdr.parent_hash) < 0)
			r = fmt_fail(err, -EUCLEAN, "%s: its parent is not %s (FD-2)",
				     layers[i]->path, layers[i - 1]->path);
	}
	free(rows);
	if (r < 0) {
		put_layers(layers, n);
		return r;
	}
	*ret = layers;
	*count = n;
	return 0;
}

static int make_disk(struct eng_entry *entry, struct eng_queue *queue, uint64_t size,
		     bool read_only, struct eng_layer **layers, size_t n, struct fmt_error *err,
		     struct eng_disk **ret)
{
	struct eng_store *store = entry->store;
	struct eng_disk_spec spec = {
		.io = store->io,
		.pool = store->pool,
		.queue = queue,
		.ops = read_only ? NULL : &eng_store_disk_ops,
		.owner = entry,
		.id = entry->id,
		.size = size,
		.block_bits = layers[n - 1]->block_bits,
		.read_only = read_only,
		.layers = layers,
		.nlayers = (uint32_t)n,
		.log_bound = store->options.log_bound,
		.map_bound = store->options.map_bound,
		.map_memory = store->options.map_memory,
	};

	if (atomic_load(&layers[n - 1]->size) < size)
		return fmt_fail(err, -EUCLEAN,
				"%s: of %llu bytes, expected the disk's %llu at least (AT-6)",
				layers[n - 1]->path,
				(unsigned long long)atomic_load(&layers[n - 1]->size),
				(unsigned long long)size);
	return eng_disk_create(&spec, err, ret);
}

/* --- a snapshot's disk --- */

/* From here on no fold changes the chain; waits for one that is about to commit (FO-5). */
static struct eng_entry *begin_reading(struct eng_store *store, struct eng_queue *queue,
				       const struct fmt_uuid *disk)
{
	struct eng_entry *entry;
	bool folding = true;

	while (folding) {
		pthread_mutex_lock(&store->lock);
		entry = eng_entry_get_locked(store, disk);
		folding = entry && entry->folding;
		if (entry && !folding)
			entry->readers++;
		pthread_mutex_unlock(&store->lock);
		if (folding)
			eng_queue_turn(queue, 1000000);
	}
	return entry;
}

static void end_reading(struct eng_store *store, struct eng_entry *entry)
{
	pthread_mutex_lock(&store->lock);
	entry->readers--;
	pthread_mutex_unlock(&store->lock);
	eng_folder_want(store->folder, &entry->id);
}

int eng_store_attach_member(struct eng_store *store, struct eng_queue *queue,
			    const struct cat_snapshot_disk *member, struct fmt_error *err,
			    struct eng_disk **ret)
{
	struct cat_snapshot_disk row;
	struct eng_layer **layers = NULL;
	struct eng_disk *disk = NULL;
	struct eng_entry *entry = begin_reading(store, queue, &member->disk);
	size_t n = 0;
	int r;

	if (!entry)
		return -ENOMEM;
	/* Its layer may have been folded into another until then. */
	r = refresh_member(store, member, &row, err);
	if (r == 0)
		r = open_chain(store, &row.layer, false, err, &layers, &n);
	if (r == 0) {
		r = make_disk(entry, queue, row.size, true, layers, n, err, &disk);
		if (r == 0)
			free(layers);
		else
			put_layers(layers, n);
	}
	if (r == 0) {
		r = eng_store_reading_begin(store, disk, &row.snapshot);
		if (r < 0)
			eng_disk_destroy(disk);
	}
	if (r < 0)
		end_reading(store, entry);
	else
		*ret = disk;
	return r;
}

int eng_store_attach_layer(struct eng_store *store, struct eng_queue *queue,
			   const struct fmt_uuid *disk, const struct fmt_uuid *layer,
			   struct fmt_error *err, struct eng_disk **ret)
{
	struct eng_entry *entry = begin_reading(store, queue, disk);
	struct eng_layer **layers = NULL;
	size_t n = 0;
	int r;

	if (!entry)
		return -ENOMEM;
	r = open_chain(store, layer, false, err, &layers, &n);
	if (r == 0) {
		r = make_disk(entry, queue, atomic_load(&layers[n - 1]->size), true, layers, n, err,
			      ret);
		if (r == 0)
			free(layers);
		else
			put_layers(layers, n);
	}
	if (r < 0)
		end_reading(store, entry);
	return r;
}

/* --- a disk --- */

struct nonce {
	uint8_t boot_id[16];
	uint64_t nonce;
};

static void set_nonce(struct fmt_header *hdr, void *arg)
{
	const struct nonce *n = arg;

	memcpy(hdr->boot_id, n->boot_id, 16);
	hdr->journal_nonce = n->nonce;
}

/* AT-2: the journal, then its name in the head's header, both before the first write. */
static int start_journal(struct eng_store *store, struct eng_disk *disk, struct fmt_error *err)
{
	struct fmt_uuid name = eng_store_journal_id(store, &disk->id);
	struct eng_layer *head = disk->head;
	struct eng_journal *journal;
	uint64_t after = 0;
	struct nonce n;
	int r;

	/* JN-4: numbers go on above all that the logs cover already. */
	for (uint32_t i = disk->indexed; i < disk->nlayers; i++)
		if (disk->layers[i]->log.journal_seq > after)
			after = disk->layers[i]->log.journal_seq;
	r = eng_journal_create(store->io, &store->id, &name, after, &journal);
	if (r < 0)
		return fmt_fail(err, r, "cannot make the journal in shared memory: %s",
				strerror(-r));
	if (head->kind == FMT_KIND_OVERLAY) {
		eng_io_boot_id(store->io, n.boot_id);
		n.nonce = eng_journal_nonce(journal);
		r = eng_layer_update(head, set_nonce, &n, err);
	}
	if (r < 0) {
		eng_journal_close(journal);
		eng_journal_remove(store->io, &name);
		return r;
	}
	eng_disk_set_journal(disk, journal);
	return 0;
}

static int stop_journal(struct eng_store *store, const struct fmt_uuid *disk,
			struct eng_layer *head)
{
	struct fmt_uuid name = eng_store_journal_id(store, disk);
	struct nonce none = {.nonce = 0};
	int r = 0;

	if (head->kind == FMT_KIND_OVERLAY)
		r = eng_layer_update(head, set_nonce, &none, NULL);
	if (r == 0)
		eng_journal_remove(store->io, &name);
	return r;
}

static int attach_claimed(struct eng_entry *entry, struct eng_queue *queue,
			  const struct cat_disk *row, bool read_only, struct fmt_error *err,
			  struct eng_disk **ret)
{
	struct eng_store *store = entry->store;
	struct eng_layer **layers = NULL;
	struct eng_disk *disk = NULL;
	size_t n = 0;
	int r;

	if (entry->disk)
		return fmt_fail(err, -EBUSY, "%s/%s: attached already", row->vm_name, row->name);
	if (entry->refused)
		return fmt_fail(err, -ENOTRECOVERABLE,
				"%s/%s: recovery refused it, or it was not detached cleanly; "
				"check the store and open it anew",
				row->vm_name, row->name);
	eng_entry_set_tail(entry, NULL);
	r = open_chain(store, &row->head, !read_only, err, &layers, &n);
	if (r < 0)
		return r;
	r = make_disk(entry, queue, row->size, read_only, layers, n, err, &disk);
	if (r < 0) {
		put_layers(layers, n);
		return r;
	}
	free(layers);
	if (!read_only)
		r = start_journal(store, disk, err);
	if (r < 0) {
		eng_disk_destroy(disk);
		return r;
	}
	eng_entry_set_disk(entry, disk);
	if (!read_only) /* whoever freezes or resizes the head writes to it: opened anew for them */
		eng_entry_set_tail(entry, disk->head);
	*ret = disk;
	return 0;
}

int eng_store_attach(struct eng_store *store, struct eng_queue *queue, const char *name,
		     unsigned flags, struct fmt_error *err, struct eng_disk **ret)
{
	char buf[4 * CAT_NAME_MAX], *vm, *disk, *snapshot;
	struct cat_snapshot_disk member;
	struct eng_entry *entry;
	struct cat_disk row;
	int r;

	if (strlen(name) >= sizeof(buf))
		return fmt_fail(err, -EINVAL, "disk name of %zu bytes is too long", strlen(name));
	strcpy(buf, name);
	vm = buf;
	snapshot = strchr(buf, '@') ? split(buf, '@') : NULL;
	if (snapshot && !(vm = split(snapshot, '/')))
		return fmt_fail(err, -EINVAL, "%s: expected COLLECTION@SNAPSHOT/VM/DISK", name);
	disk = split(vm, '/');
	if (!disk)
		return fmt_fail(err, -EINVAL, "%s: expected VM/DISK", name);
	if (snapshot) {
		if (!(flags & ENG_ATTACH_READ_ONLY))
			return fmt_fail(err, -EROFS, "%s: a snapshot is read-only", name);
		r = find_snapshot_disk(store, buf, snapshot, vm, disk, &member, err);
		return r < 0 ? r : eng_store_attach_member(store, queue, &member, err, ret);
	}
	r = eng_catalog_get_disk(store->catalog, vm, disk, &row);
	if (r < 0)
		return fmt_fail(err, r, "%s: %s", name,
				r == -ENOENT ? "no such disk" : strerror(-r));
	r = claim_turning(store, queue, &row.id, &entry);
	if (r < 0)
		return fmt_fail(err, r, "%s: busy with a snapshot or another attach", name);
	/* The head may have moved while we waited. */
	r = eng_catalog_get_disk_id(store->catalog, &row.id, &row);
	if (r < 0)
		fmt_fail(err, r, "%s: cannot read the catalog: %s", name, strerror(-r));
	else
		r = attach_claimed(entry, queue, &row, flags & ENG_ATTACH_READ_ONLY, err, ret);
	eng_entry_release(entry);
	if (r == 0 && !(flags & ENG_ATTACH_READ_ONLY))
		eng_store_want_standby(entry);
	return r;
}

/* --- detach --- */

struct final_flush {
	struct eng_req req;
	bool done;
};

static void final_flush_done(struct eng_req *req)
{
	((struct final_flush *)req)->done = true;
}

static int flush_all(struct eng_disk *disk)
{
	struct final_flush f = {.req = {
					.disk = disk,
					.op = ENG_FLUSH,
					.origin = disk->queue,
					.done = final_flush_done,
				}};
	int r;

	eng_disk_start(&f.req);
	while (!f.done) {
		r = eng_queue_turn(disk->queue, UINT64_MAX);
		if (r < 0 && r != -EINTR)
			return r;
	}
	return f.req.result;
}

static uint32_t state_of(struct eng_layer *layer)
{
	uint32_t state;

	pthread_mutex_lock(&layer->meta_lock);
	state = layer->hdr.state;
	pthread_mutex_unlock(&layer->meta_lock);
	return state;
}

struct frozen {
	uint64_t log_seq;
	struct eng_stat st;
};

static void freeze(struct fmt_header *hdr, void *arg)
{
	const struct frozen *f = arg;

	hdr->state = FMT_STATE_FROZEN;
	memset(hdr->boot_id, 0, 16);
	hdr->journal_nonce = 0;
	if (hdr->kind == FMT_KIND_OVERLAY) {
		hdr->log_seq = f->log_seq;
	} else {
		hdr->base_bytes = f->st.size;
		hdr->base_mtime_ns = f->st.mtime_ns;
	}
}

/* The header first, then the row; each only where it does not say so yet. */
static int settle_layer(struct eng_store *store, struct eng_layer *layer)
{
	struct frozen f = {.log_seq = layer->log.seq};
	struct cat_layer row;
	int r = eng_catalog_get_layer(store->catalog, &layer->id, &row);

	if (r == 0 && state_of(layer) == FMT_STATE_ACTIVE) {
		if (layer->kind == FMT_KIND_RAW && layer->in_place) /* IB-3 */
			r = eng_io_fsync(layer->io, layer->file);
		if (r == 0)
			r = eng_io_fstat(layer->io, layer->file, &f.st);
		if (r == 0)
			r = eng_layer_update(layer, freeze, &f, NULL);
	}
	if (r < 0 || row.state == CAT_LAYER_HARDENED || row.state == CAT_LAYER_SEALED)
		return r;
	r = eng_layer_settle_header(layer, NULL); /* LH-13: before the row says so, too */
	if (r < 0)
		return r;
	r = eng_catalog_begin(store->catalog);
	if (r < 0)
		return r;
	eng_catalog_set_layer_state(store->catalog, &layer->id, CAT_LAYER_HARDENED);
	r = eng_catalog_commit(store->catalog, NULL);
	if (r == 0)
		eng_store_seal(store, &layer->id, NULL);
	return r;
}

/*
 * Layers that a cut froze whose job failed afterwards: durable by the flush, now said so. Where even the
 * failure could not be recorded, and the catalog knows the successor as pending only, the next open
 * decides which of the two is the head: nothing is said before it.
 */
static int settle_frozen(struct eng_store *store, struct eng_disk *disk)
{
	struct cat_layer child;
	int r = 0;

	for (uint32_t i = 0; r == 0 && i + 1 < disk->nlayers; i++) {
		if (state_of(disk->layers[i]) == FMT_STATE_SEALED)
			continue;
		r = eng_catalog_get_layer(store->catalog, &disk->layers[i + 1]->id, &child);
		if (r == 0 && child.state == CAT_LAYER_PENDING)
			break;
		if (r == 0)
			r = settle_layer(store, disk->layers[i]);
	}
	return r;
}

static int detach_view(struct eng_disk *disk)
{
	struct eng_entry *entry = disk->owner;
	struct eng_store *store = entry->store;
	int r = eng_disk_settle(disk, BUSY_NS);
	bool view;

	if (r < 0)
		return r;
	pthread_mutex_lock(&store->lock);
	view = entry->disk != disk;
	if (!view)
		entry->disk = NULL;
	pthread_mutex_unlock(&store->lock);
	eng_store_reading_end(store, disk);
	eng_disk_destroy(disk);
	if (view)
		end_reading(store, entry);
	return 0;
}

int eng_store_detach(struct eng_disk *disk)
{
	struct eng_entry *entry = disk->owner, *claimed;
	struct eng_store *store = entry->store;
	int r;

	if (disk->requests || atomic_load(&disk->forwarded))
		return -EBUSY;
	if (disk->read_only)
		return detach_view(disk);
	r = claim_turning(store, disk->queue, &entry->id, &claimed);
	if (r < 0)
		return r;
	r = flush_all(disk);
	if (eng_disk_settle(disk, BUSY_NS) < 0) {
		eng_entry_release(entry);
		return -EBUSY;
	}
	if (r == 0)
		r = settle_frozen(store, disk);
	if (r == 0)
		r = stop_journal(store, &disk->id, disk->head);
	/* JN-9: a journal that a header may still name is kept for the next open. */
	entry->refused = r < 0;
	eng_entry_drop_standby(entry);
	eng_entry_set_tail(entry, NULL);
	eng_entry_set_disk(entry, NULL);
	eng_disk_destroy(disk);
	eng_entry_release(entry);
	return r < 0 ? -ENOTRECOVERABLE : 0;
}
