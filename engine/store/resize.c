/* SPDX-License-Identifier: MIT */
/*
 * resize.c - a disk made larger, attached or not (AT-6). Control threads, under the disk's shape lock.
 *
 * The head's file and header first, durable; then the catalog; then, of an attached disk, its worker is
 * told. What a crash leaves: before the commit the old size, with a head that could hold more; after
 * it the new one. No request passes the old end before the commit.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/disk/cut.h"
#include "engine/store/store.h"

#define BUSY_NS   (10ull * 1000000000) /* longest wait for a roll or an attach to end */
#define SWITCH_NS (10ull * 1000000000) /* and for the worker's turn */
#define NAP_NS    100000u

struct resize {
	struct eng_store *store;
	struct eng_entry *entry;
	struct cat_disk row;
	uint64_t size;
	struct eng_disk *disk; /* attached, or NULL */
	void *table;           /* of its map */
	struct eng_layer *head;
};

static void edit_size(struct fmt_header *hdr, void *arg)
{
	uint64_t size = *(uint64_t *)arg;

	if (size > hdr->size) /* LH-11 */
		hdr->size = size;
}

static bool is_in_cut(struct eng_store *store, const struct fmt_uuid *id)
{
	struct eng_entry *e;
	bool in_cut;

	pthread_mutex_lock(&store->lock);
	e = eng_entry_get_locked(store, id);
	in_cut = e && e->in_cut;
	pthread_mutex_unlock(&store->lock);
	return in_cut;
}

/* A roll or a standby ends soon and is waited for; a create is the caller's to wait for. */
static int claim(struct resize *rs, struct fmt_error *err)
{
	uint64_t end = eng_io_now_ns(rs->store->io) + BUSY_NS;
	int r;

	if (eng_entry_is_mine(rs->store, &rs->row.id))
		return fmt_fail(err, -EDEADLK, "%s/%s: resized by the thread that works on it",
				rs->row.vm_name, rs->row.name);
	for (;;) {
		uint64_t now = eng_io_now_ns(rs->store->io);

		r = eng_entry_claim(rs->store, &rs->row.id, now + BUSY_NS / 1000, &rs->entry);
		if (r != -EBUSY || now > end || is_in_cut(rs->store, &rs->row.id))
			break;
	}
	if (r == 0 && is_in_cut(rs->store, &rs->row.id)) { /* CU-4: a create waits for us */
		eng_entry_release(rs->entry);
		r = -EBUSY;
	}
	if (r == -EBUSY && is_in_cut(rs->store, &rs->row.id))
		return fmt_fail(err, r, "%s/%s: a snapshot of it is being created", rs->row.vm_name,
				rs->row.name);
	return r < 0 ? fmt_fail(err, r, "%s/%s: in use", rs->row.vm_name, rs->row.name) : 0;
}

/* Everything that can be refused, before anything is changed. */
static int check(struct resize *rs, struct fmt_error *err)
{
	const struct cat_disk *row = &rs->row;
	uint32_t align;
	int r;

	pthread_mutex_lock(&rs->store->lock);
	rs->disk = rs->entry->disk;
	r = rs->disk && rs->disk->read_only ? -EBUSY : 0;
	pthread_mutex_unlock(&rs->store->lock);
	if (r < 0)
		return fmt_fail(err, r, "%s/%s: attached read-only", row->vm_name, row->name);
	if (rs->disk && atomic_load(&rs->disk->grow.posted))
		return fmt_fail(err, -EBUSY, "%s/%s: its thread has not seen the last resize yet",
				row->vm_name, row->name);
	if (rs->size < row->size)
		return fmt_fail(err, -EINVAL,
				"%s/%s: does not shrink from %llu to %llu bytes unless told to",
				row->vm_name, row->name, (unsigned long long)row->size,
				(unsigned long long)rs->size);
	r = eng_entry_tail(rs->entry, row, err, &rs->head);
	if (r < 0)
		return r;
	rs->head = eng_layer_newest(rs->head);
	if (atomic_load(&rs->head->poisoned))
		return fmt_fail(err, -ENOTRECOVERABLE, "%s/%s: a failed flush poisoned it",
				row->vm_name, row->name);
	if (!rs->disk)
		return 0;
	/* A direct write of the last unit would make the file longer than the disk. */
	align = rs->head->kind == FMT_KIND_RAW ? rs->head->dio_align : 1;
	if (rs->size % align)
		return fmt_fail(err, -EINVAL,
				"%s/%s: %llu bytes; while attached it grows to a multiple of %u",
				row->vm_name, row->name, (unsigned long long)rs->size, align);
	rs->table = eng_map_table((rs->size + (1ull << rs->disk->block_bits) - 1) >>
				  rs->disk->block_bits);
	return rs->table ? 0 : fmt_fail(err, -ENOMEM, "no memory for a map of that size");
}

/* CU-17: through a descriptor that no guest's flush uses; a sync that fails is the layer's. */
static int grow_file(struct resize *rs, struct fmt_error *err)
{
	struct eng_io *io = rs->store->io;
	struct eng_file *file = NULL;
	int r = eng_io_open(io, rs->head->data_path, ENG_OPEN_WRITE, &file);

	if (r == 0)
		r = eng_io_truncate(io, file, rs->size);
	if (r == 0) {
		r = eng_io_fdatasync(io, file);
		if (r < 0)
			eng_layer_poison(rs->head, r);
	}
	eng_io_close(io, file);
	return r < 0 ? fmt_fail(err, r, "%s: cannot grow: %s", rs->head->data_path, strerror(-r))
		     : 0;
}

static int commit(struct resize *rs, struct fmt_error *err)
{
	int r = eng_catalog_begin(rs->store->catalog);

	if (r < 0)
		return fmt_fail(err, r, "cannot begin in the catalog: %s", strerror(-r));
	rs->row.size = rs->size;
	eng_catalog_put_disk(rs->store->catalog, &rs->row);
	return eng_catalog_commit(rs->store->catalog, err);
}

/* Committed: a worker that does not turn now sees it when it does. */
static void tell_worker(struct resize *rs)
{
	uint64_t end = eng_io_now_ns(rs->store->io) + SWITCH_NS;

	eng_disk_post_grow(rs->disk, rs->size, rs->head->kind == FMT_KIND_RAW ? rs->size : 0,
			   rs->table);
	rs->table = NULL;
	while (atomic_load(&rs->disk->grow.posted) && eng_io_now_ns(rs->store->io) < end)
		eng_io_sleep_ns(rs->store->io, NAP_NS);
}

static int resize_claimed(struct resize *rs, struct fmt_error *err)
{
	int r = eng_catalog_get_disk_id(rs->store->catalog, &rs->row.id, &rs->row);

	if (r < 0)
		return fmt_fail(err, r, "cannot read the catalog: %s", strerror(-r));
	r = check(rs, err);
	if (r < 0 || rs->size == rs->row.size)
		return r;
	if (rs->head->kind == FMT_KIND_RAW)
		r = grow_file(rs, err);
	if (r == 0)
		r = eng_layer_update(rs->head, edit_size, &rs->size, err);
	if (!rs->disk)
		eng_entry_set_tail(rs->entry, NULL); /* opened anew, with its new length */
	if (r == 0)
		r = commit(rs, err);
	if (r == 0 && rs->disk) {
		eng_entry_drop_standby(rs->entry); /* SB-1: of the old size */
		tell_worker(rs);
	}
	return r;
}

int eng_store_resize_disk(struct eng_store *store, const char *vm, const char *name, uint64_t size,
			  struct fmt_error *err)
{
	struct resize rs = {.store = store, .size = size};
	int r = eng_store_check_size(size, err);

	if (r < 0)
		return r;
	r = eng_catalog_get_disk(store->catalog, vm, name, &rs.row);
	if (r < 0)
		return fmt_fail(err, r, "%s/%s: no such disk", vm, name);
	r = claim(&rs, err);
	if (r < 0)
		return r;
	r = resize_claimed(&rs, err);
	eng_entry_release(rs.entry);
	if (r == 0 && rs.disk)
		eng_store_want_standby(rs.entry);
	free(rs.table);
	if (r < 0 && err && !err->text[0])
		fmt_fail(err, r, "%s/%s: cannot resize: %s", vm, name, strerror(-r));
	return r;
}
