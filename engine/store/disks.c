/* SPDX-License-Identifier: MIT */
/*
 * disks.c - disks made, imported and deleted. Files first and durable, then one transaction,
 * so that a crash leaves files without a row (removed at open or reported as leaks), never a row
 * without a file.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/image/image.h"
#include "engine/layer/qcow2.h"
#include "engine/fold/fold.h"
#include "engine/store/garbage.h"
#include "engine/store/store.h"

#define CUT_NS (30ull * 1000000000) /* longest wait for a create to end */

struct making {
	struct eng_store *store;
	const struct eng_disk_make *make;
	struct cat_disk disk;
	struct cat_layer base, overlay;
	bool has_overlay;
	char *data, *sidecar, *overlay_path;
	bool made_data, made_sidecar;
};

static int check_new(struct making *m, struct fmt_error *err)
{
	const struct eng_disk_make *make = m->make;
	struct eng_catalog *cat = m->store->catalog;
	struct cat_disk taken;
	struct cat_vm vm;
	int r = eng_catalog_get_vm(cat, make->vm, &vm);

	if (r < 0)
		return fmt_fail(err, r, "%s: %s", make->vm,
				r == -ENOENT ? "no such VM" : strerror(-r));
	if (eng_catalog_get_disk(cat, make->vm, make->name, &taken) == 0)
		return fmt_fail(err, -EEXIST, "%s/%s: there is one already", make->vm, make->name);
	if (eng_store_vm_in_cut(m->store, &vm.id))
		return fmt_fail(err, -EBUSY, "%s: a snapshot of its collection is being created",
				make->vm);
	m->disk.vm = vm.id;
	strcpy(m->disk.name, make->name);
	eng_store_new_id(m->store, &m->disk.id);
	eng_store_new_id(m->store, &m->base.id);
	m->disk.block_bits = make->block_bits ? make->block_bits : FMT_BLOCK_BITS_MIN;
	m->disk.independent = make->independent;
	m->disk.created_ns = eng_io_wall_ns(m->store->io);
	m->disk.head = m->base.id;
	m->base.disk = m->disk.id;
	m->base.state = CAT_LAYER_ACTIVE;
	m->base.created_ns = m->disk.created_ns;
	return 0;
}

int eng_store_check_size(uint64_t size, struct fmt_error *err)
{
	if (size == 0 || size % 512 || size > FMT_SIZE_MAX)
		return fmt_fail(err, -EINVAL,
				"size %llu: expected a multiple of 512, at most %llu bytes",
				(unsigned long long)size, (unsigned long long)FMT_SIZE_MAX);
	return 0;
}

/* --- where the data comes from --- */

static int make_empty(struct making *m, uint64_t size, struct fmt_error *err)
{
	struct eng_io *io = m->store->io;
	struct eng_file *file = NULL;
	int r = eng_io_open(io, m->data, ENG_OPEN_WRITE | ENG_OPEN_CREATE | ENG_OPEN_EXCL, &file);

	m->made_data = r == 0;
	if (r == 0)
		r = eng_io_truncate(io, file, size);
	if (r == 0)
		r = eng_io_fdatasync(io, file);
	eng_io_close(io, file);
	return r < 0 ? fmt_fail(err, r, "%s: %s", m->data, strerror(-r)) : 0;
}

/* A raw image may end anywhere; a disk ends on a sector. */
static int round_size(struct making *m, uint64_t size, struct fmt_error *err)
{
	struct eng_io *io = m->store->io;
	struct eng_file *file = NULL;
	struct eng_stat st;
	int r = eng_io_open(io, m->data, ENG_OPEN_WRITE, &file);

	if (r == 0)
		r = eng_io_fstat(io, file, &st);
	if (r == 0 && !size)
		size = (st.size + 511) / 512 * 512;
	if (r == 0 && size < st.size)
		r = fmt_fail(err, -EINVAL, "size %llu is smaller than the image's %llu",
			     (unsigned long long)size, (unsigned long long)st.size);
	if (r == 0)
		r = eng_store_check_size(size, err);
	if (r == 0 && size != st.size)
		r = eng_io_truncate(io, file, size);
	if (r == 0)
		r = eng_io_fdatasync(io, file);
	eng_io_close(io, file);
	m->disk.size = size;
	return r;
}

static int import_copy(struct making *m, const char *format, struct fmt_error *err)
{
	struct eng_convert how = {.src_format = format};
	int r = eng_image_convert(m->store->io, m->make->from, m->data, &how, err);

	m->made_data = r == 0;
	return r < 0 ? r : round_size(m, m->make->size, err);
}

static int claim_file(struct making *m, struct fmt_error *err)
{
	const char *from = m->make->from;
	char *real = realpath(from, NULL);
	struct eng_stat st;
	int r;

	if (!real)
		return fmt_fail(err, -errno, "%s: %s", from, strerror(errno));
	if (strlen(real) >= sizeof(m->base.path)) {
		free(real);
		return fmt_fail(err, -ENAMETOOLONG, "%s: path too long", from);
	}
	strcpy(m->base.path, real);
	free(m->data);
	m->data = real;
	r = eng_io_stat(m->store->io, real, &st);
	if (r == 0 && !st.is_regular)
		r = fmt_fail(err, -EINVAL, "%s: not a regular file", real);
	if (r < 0)
		return r;
	m->base.base_dev = st.dev;
	m->base.base_ino = st.ino;
	m->disk.size = m->make->size ? m->make->size : st.size;
	return 0;
}

static int import_raw_in_place(struct making *m, struct fmt_error *err)
{
	struct eng_stat st;
	int r = claim_file(m, err);

	if (r == 0)
		r = eng_io_stat(m->store->io, m->data, &st);
	if (r == 0 && (st.size != m->disk.size || st.size % 512))
		r = fmt_fail(err, -EINVAL,
			     "%s: %llu bytes; in place it must have the disk's size, a "
			     "multiple of 512",
			     m->data, (unsigned long long)st.size);
	return r < 0 ? r : eng_store_check_size(m->disk.size, err);
}

static int import_qcow2_in_place(struct making *m, struct fmt_error *err)
{
	struct eng_store *store = m->store;
	struct eng_qcow2 *q = NULL;
	int r = claim_file(m, err);

	if (r == 0)
		r = eng_qcow2_open(store->io, m->data, (const char *const *)store->base_dirs,
				   store->base_dirs_count, err, &q);
	if (r < 0)
		return r;
	m->disk.size = m->make->size ? m->make->size : (eng_qcow2_size(q) + 511) / 512 * 512;
	if (m->disk.size < eng_qcow2_size(q))
		r = fmt_fail(err, -EINVAL, "size %llu is smaller than the image's %llu",
			     (unsigned long long)m->disk.size,
			     (unsigned long long)eng_qcow2_size(q));
	eng_qcow2_close(q);
	m->has_overlay = true;
	m->base.kind = FMT_KIND_QCOW2;
	m->base.state = CAT_LAYER_HARDENED;
	return r < 0 ? r : eng_store_check_size(m->disk.size, err);
}

static int get_data(struct making *m, struct fmt_error *err)
{
	const struct eng_disk_make *make = m->make;
	const char *format = make->format;
	int r = 0;

	m->base.kind = FMT_KIND_RAW;
	if (!make->from) {
		m->disk.size = make->size;
		r = eng_store_check_size(make->size, err);
		return r < 0 ? r : make_empty(m, make->size, err);
	}
	if (!format)
		r = eng_image_probe(m->store->io, make->from, &format, err);
	if (r < 0)
		return r;
	if (make->in_place && !strcmp(format, "raw"))
		return import_raw_in_place(m, err);
	if (make->in_place && !strcmp(format, "qcow2"))
		return import_qcow2_in_place(m, err);
	if (make->in_place)
		return fmt_fail(err, -EINVAL, "%s: format %s cannot be used in place", make->from,
				format);
	return import_copy(m, format, err);
}

/* --- layers --- */

static int make_sidecar(struct making *m, struct fmt_error *err)
{
	struct eng_store *store = m->store;
	struct fmt_header hdr = {
		.kind = m->base.kind,
		.state = m->base.kind == FMT_KIND_RAW ? FMT_STATE_ACTIVE : FMT_STATE_FROZEN,
		.block_bits = m->disk.block_bits,
		.seq = 1,
		.store_id = store->id,
		.disk_id = m->disk.id,
		.layer_id = m->base.id,
		.size = m->disk.size,
		.created_ns = m->disk.created_ns,
	};
	struct eng_stat st;
	int r = eng_io_stat(store->io, m->data, &st);

	if (r < 0)
		return fmt_fail(err, r, "%s: %s", m->data, strerror(-r));
	if (hdr.state == FMT_STATE_FROZEN) {
		hdr.base_bytes = st.size;
		hdr.base_mtime_ns = st.mtime_ns;
	}
	eng_io_random(store->io, &hdr.salt, sizeof(hdr.salt));
	r = eng_sidecar_create(store->io, m->sidecar, &hdr, err);
	m->made_sidecar = r == 0;
	return r;
}

static int make_overlay(struct making *m, struct fmt_error *err)
{
	struct eng_store *store = m->store;
	struct eng_layer_spec spec = {
		.store = store->id,
		.disk = m->disk.id,
		.parent = m->base.id,
		.generation = 1,
		.size = m->disk.size,
		.block_bits = m->disk.block_bits,
		.initial_slots = 256,
		.direct = store->direct,
	};
	struct eng_layer *layer;
	int r;

	eng_store_new_id(store, &spec.layer);
	m->overlay_path = eng_store_layer_path(store, &spec.layer, "vmo");
	if (!m->overlay_path)
		return -ENOMEM;
	spec.path = m->overlay_path;
	r = eng_layer_create(store->io, &spec, err, &layer);
	if (r < 0) {
		free(m->overlay_path);
		m->overlay_path = NULL;
		return r;
	}
	m->overlay = (struct cat_layer){
		.id = spec.layer,
		.disk = m->disk.id,
		.parent = m->base.id,
		.kind = FMT_KIND_OVERLAY,
		.state = CAT_LAYER_ACTIVE,
		.generation = 1,
		.created_ns = m->disk.created_ns,
	};
	m->disk.head = spec.layer;
	eng_layer_put(layer);
	return 0;
}

/*
 * CU-4: a disk appears before a cut's check or after its end, never between: what it acknowledged in
 * between would be missing beneath the writes that depend on it. Checked inside the transaction.
 */
static int begin_outside_cuts(struct making *m, struct fmt_error *err)
{
	struct eng_store *store = m->store;
	uint64_t end = eng_io_now_ns(store->io) + CUT_NS;

	for (;;) {
		int r = eng_catalog_begin(store->catalog);

		if (r < 0)
			return fmt_fail(err, r, "cannot begin in the catalog: %s", strerror(-r));
		if (!eng_store_vm_in_cut(store, &m->disk.vm))
			return 0;
		eng_catalog_rollback(store->catalog);
		if (eng_io_now_ns(store->io) > end)
			return fmt_fail(err, -EBUSY,
					"%s: a snapshot of its collection is being created",
					m->make->vm);
		eng_io_sleep_ns(store->io, 1000000);
	}
}

/* Behind the VM's others, in the transaction: two that are made at once get different places. */
static int choose_position(struct making *m)
{
	struct cat_disk *rows = NULL;
	size_t n = 0;
	int r = eng_catalog_list_disks(m->store->catalog, &m->disk.vm, &rows, &n);

	for (size_t i = 0; i < n; i++)
		if (rows[i].position >= m->disk.position)
			m->disk.position = rows[i].position + 1;
	free(rows);
	return r;
}

static int put_rows(struct making *m, struct fmt_error *err)
{
	struct eng_catalog *cat = m->store->catalog;
	int r = begin_outside_cuts(m, err);

	if (r < 0)
		return r;
	r = choose_position(m);
	if (r < 0) {
		eng_catalog_rollback(cat);
		return r;
	}
	eng_catalog_put_disk(cat, &m->disk);
	eng_catalog_put_layer(cat, &m->base);
	if (m->has_overlay)
		eng_catalog_put_layer(cat, &m->overlay);
	r = eng_catalog_commit(cat, err);
	if (r == -EEXIST)
		fmt_fail(err, r, "%s/%s: the name or the file is taken by another disk",
			 m->make->vm, m->make->name);
	return r;
}

static int check_name(const char *name, struct fmt_error *err)
{
	size_t n = strlen(name);

	if (n == 0 || n >= CAT_NAME_MAX)
		return fmt_fail(err, -EINVAL, "name of %zu bytes: expected 1 to %d", n,
				CAT_NAME_MAX - 1);
	return 0;
}

int eng_store_make_disk(struct eng_store *store, const struct eng_disk_make *make,
			struct fmt_error *err)
{
	struct making m = {.store = store, .make = make};
	int r = check_name(make->name, err);

	if (r == 0)
		r = check_new(&m, err);
	if (r < 0)
		goto out;
	m.data = eng_store_layer_path(store, &m.base.id, "raw");
	m.sidecar = eng_store_layer_path(store, &m.base.id, "vmr");
	r = m.data && m.sidecar ? get_data(&m, err) : -ENOMEM;
	if (r == 0)
		r = make_sidecar(&m, err);
	if (r == 0 && m.has_overlay)
		r = make_overlay(&m, err);
	if (r == 0)
		r = eng_io_sync_dir(store->io, store->layers_dir);
	if (r == 0)
		r = put_rows(&m, err);
	if (r < 0 && !eng_catalog_poisoned(store->catalog)) {
		if (m.made_data)
			eng_io_unlink(store->io, m.data);
		if (m.made_sidecar)
			eng_io_unlink(store->io, m.sidecar);
		if (m.overlay_path)
			eng_io_unlink(store->io, m.overlay_path);
	}
out:
	if (r < 0 && err && !err->text[0])
		fmt_fail(err, r, "%s/%s: %s", make->vm, make->name, strerror(-r));
	free(m.data);
	free(m.sidecar);
	free(m.overlay_path);
	return r;
}

/* --- delete --- */

static int snapshot_holds(struct eng_store *store, const struct cat_disk *disk,
			  const struct cat_layer *layers, size_t n, struct fmt_error *err)
{
	struct cat_snapshot snap;

	for (size_t i = 0; i < n; i++)
		if (!fmt_uuid_is_none(&layers[i].snapshot) &&
		    eng_catalog_get_snapshot_id(store->catalog, &layers[i].snapshot, &snap) == 0)
			return fmt_fail(err, -EBUSY, "%s/%s: held by the snapshot %s@%s",
					disk->vm_name, disk->name, snap.collection_name, snap.name);
	return 0;
}

/* CL-5: another disk's layer stands on one of its. */
static int clone_stands_on(struct eng_store *store, const struct cat_disk *disk,
			   const struct cat_layer *layers, size_t n, struct fmt_error *err)
{
	int r = 0;

	for (size_t i = 0; r == 0 && i < n; i++) {
		struct cat_layer *children = NULL;
		struct cat_disk clone;
		size_t count = 0;

		r = eng_catalog_list_children(store->catalog, &layers[i].id, &children, &count);
		for (size_t j = 0; r == 0 && j < count; j++)
			if (!fmt_uuid_equal(&children[j].disk, &disk->id) &&
			    eng_catalog_get_disk_id(store->catalog, &children[j].disk, &clone) == 0)
				r = fmt_fail(err, -EBUSY,
					     "%s/%s: the clone %s/%s stands on it; flatten or "
					     "delete that first",
					     disk->vm_name, disk->name, clone.vm_name, clone.name);
		free(children);
	}
	return r;
}

/* What only this disk held of others', too (GB-2). */
static int remove_beneath(struct eng_store *store, const struct cat_layer *layers, size_t n,
			  struct eng_garbage *g)
{
	struct cat_layer beneath;
	int r = 0;

	for (size_t i = 0; r == 0 && i < n; i++)
		if (!fmt_uuid_is_none(&layers[i].parent) &&
		    eng_catalog_get_layer(store->catalog, &layers[i].parent, &beneath) == 0 &&
		    !eng_garbage_is_read(store, &beneath.disk))
			r = eng_garbage_rows(store, &beneath.disk, g);
	return r;
}

/* In the transaction. Readers are asked for behind clones: whoever makes one independent reads on (FT-4). */
static int check_unused(struct eng_store *store, const struct cat_disk *disk,
			const struct cat_layer *layers, size_t n, struct fmt_error *err)
{
	int r = snapshot_holds(store, disk, layers, n, err);

	if (r == 0)
		r = clone_stands_on(store, disk, layers, n, err);
	if (r == 0 && eng_garbage_is_read(store, &disk->id))
		r = fmt_fail(err, -EBUSY, "%s/%s: attached", disk->vm_name, disk->name);
	return r;
}

static int delete_rows(struct eng_store *store, const struct cat_disk *disk,
		       struct cat_layer **layers, size_t *n, struct eng_garbage *g,
		       struct fmt_error *err)
{
	int r = eng_catalog_begin(store->catalog);

	if (r < 0)
		return fmt_fail(err, r, "cannot begin in the catalog: %s", strerror(-r));
	r = eng_catalog_list_layers(store->catalog, &disk->id, layers, n);
	if (r == 0)
		r = check_unused(store, disk, *layers, *n, err);
	if (r < 0) {
		eng_catalog_rollback(store->catalog);
		return r;
	}
	eng_catalog_lose_refpoints(store->catalog, &disk->id); /* RP-10 */
	for (size_t i = *n; i-- > 0;)
		eng_catalog_remove_layer(store->catalog, &(*layers)[i].id);
	eng_catalog_remove_disk(store->catalog, &disk->id);
	/* Its own are gone: the parents left are others'. */
	r = remove_beneath(store, *layers, *n, g);
	if (r < 0) {
		eng_catalog_rollback(store->catalog);
		return r;
	}
	return eng_catalog_commit(store->catalog, err);
}

/* An in-place base is the user's file and stays; its sidecar goes. */
void eng_store_remove_files(struct eng_store *store, const struct cat_layer *layers, size_t n)
{
	static const char *const suffixes[] = {"vmo", "vmr", "raw", "qcow2"};

	for (size_t i = 0; i < n; i++)
		for (size_t s = 0; s < sizeof(suffixes) / sizeof(*suffixes); s++) {
			char *path = eng_store_layer_path(store, &layers[i].id, suffixes[s]);

			if (path)
				eng_io_unlink(store->io, path);
			free(path);
		}
	eng_io_sync_dir(store->io, store->layers_dir);
}

/* What a clone stood on may be joined now that nothing else does; its own rows are gone. */
static void want_beneath(struct eng_store *store, const struct cat_layer *layers, size_t n)
{
	struct cat_layer row;

	for (size_t i = 0; i < n; i++)
		if (!fmt_uuid_is_none(&layers[i].parent) &&
		    eng_catalog_get_layer(store->catalog, &layers[i].parent, &row) == 0)
			eng_folder_want(store->folder, &row.disk);
}

static int delete_claimed(struct eng_entry *entry, const struct cat_disk *disk,
			  struct fmt_error *err)
{
	struct eng_store *store = entry->store;
	struct cat_layer *layers = NULL;
	struct eng_garbage garbage = {0};
	size_t n = 0;
	int r;

	if (entry->disk)
		return fmt_fail(err, -EBUSY, "%s/%s: attached", disk->vm_name, disk->name);
	r = delete_rows(store, disk, &layers, &n, &garbage, err);
	if (r == 0) {
		eng_entry_drop_standby(entry);
		eng_entry_set_tail(entry, NULL);
		eng_folder_leave(store->folder, &disk->id);
		eng_pool_drain(store->pool); /* a seal may have a file open */
		eng_io_close(store->io, entry->base_lock);
		entry->base_lock = NULL;
		eng_store_remove_files(store, layers, n);
		eng_garbage_files(store, &garbage);
		want_beneath(store, layers, n);
	}
	eng_garbage_fini(&garbage);
	free(layers);
	return r;
}

int eng_store_delete_disk(struct eng_store *store, const char *vm, const char *name,
			  struct fmt_error *err)
{
	struct eng_entry *entry;
	struct cat_disk disk;
	int r = eng_catalog_get_disk(store->catalog, vm, name, &disk);

	if (r < 0)
		return fmt_fail(err, r, "%s/%s: no such disk", vm, name);
	r = eng_entry_claim(store, &disk.id, 0, &entry);
	if (r < 0)
		return fmt_fail(err, r, "%s/%s: in use", vm, name);
	r = delete_claimed(entry, &disk, err);
	eng_entry_release(entry);
	if (r < 0 && err && !err->text[0])
		fmt_fail(err, r, "%s/%s: cannot delete: %s", vm, name, strerror(-r));
	return r;
}
