/* SPDX-License-Identifier: MIT */
/* branch.c - see branch.h. */
#include "engine/snapshot/branch.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define CLAIM_NS (10ull * 1000000000)

static int load_rows(struct eng_branch *b)
{
	struct cat_snapshot_disk *all = NULL, *rows;
	size_t n = 0, held = 0, skipped;
	int r = eng_catalog_list_snapshot_disks(b->store->catalog, &b->snap.id, &all, &n);

	if (r < 0)
		return r;
	rows = calloc(n + 1, sizeof(*rows));
	for (size_t i = 0; rows && i < n; i++)
		if (!all[i].skipped)
			rows[held++] = all[i];
	skipped = held;
	for (size_t i = 0; rows && i < n; i++)
		if (all[i].skipped)
			rows[skipped++] = all[i];
	free(all);
	if (!rows)
		return -ENOMEM;
	free(b->rows);
	b->rows = rows;
	if (b->claimed && held != b->count)
		return -ENOENT;
	b->count = held;
	b->skipped = n - held;
	return 0;
}

int eng_branch_find(struct eng_branch *b, struct fmt_error *err)
{
	int r = eng_catalog_find_snapshot(b->store->catalog, b->collection, b->name, err, &b->snap);

	if (r == 0)
		r = load_rows(b);
	if (r < 0)
		return r;
	b->disks = calloc(b->count + 1, sizeof(*b->disks));
	b->entries = calloc(b->count + 1, sizeof(struct eng_entry *));
	b->members = calloc(b->count + 1, sizeof(*b->members));
	if (!b->disks || !b->entries || !b->members)
		return -ENOMEM;
	for (size_t i = 0; i < b->count; i++)
		b->disks[i] = b->rows[i].disk;
	return 0;
}

int eng_branch_claim(struct eng_branch *b, struct fmt_error *err)
{
	struct eng_store *store = b->store;
	int r = eng_store_claim_all(store, b->disks, b->count, eng_io_now_ns(store->io) + CLAIM_NS,
				    b->entries);

	if (r < 0)
		return fmt_fail(err, r,
				"a disk of it is busy with a snapshot, an attach or a fold");
	b->claimed = true;
	/* A fold may have put other layers in their place until here. */
	r = load_rows(b);
	return r == -ENOENT ? fmt_fail(err, r, "%s@%s: deleted meanwhile", b->collection, b->name)
			    : r;
}

int eng_branch_create_overlays(struct eng_branch *b, struct fmt_error *err)
{
	int r = eng_batch_create(b->store, &b->batch);

	if (r < 0)
		return fmt_fail(err, r, "cannot set up a ring: %s", strerror(-r));
	return eng_batch_create_overlays(b->batch, b->members, b->count, err);
}

int eng_branch_recheck(struct eng_branch *b, struct fmt_error *err)
{
	struct cat_snapshot snap;
	int r = eng_catalog_find_snapshot(b->store->catalog, b->collection, b->name, err, &snap);

	if (r == 0 && !fmt_uuid_equal(&snap.id, &b->snap.id))
		r = fmt_fail(err, -ENOENT, "%s@%s: deleted, and another one made", b->collection,
			     b->name);
	return r;
}

void eng_branch_put_head(struct eng_branch *b, struct eng_member *m)
{
	struct cat_layer row = {
		.id = m->pending->id,
		.disk = m->disk.id,
		.parent = m->parent,
		.kind = FMT_KIND_OVERLAY,
		.state = CAT_LAYER_ACTIVE,
		.generation = m->generation,
		.created_ns = m->pending->hdr.created_ns,
	};

	m->disk.head = row.id;
	eng_catalog_put_layer(b->store->catalog, &row);
	eng_catalog_put_disk(b->store->catalog, &m->disk);
}

void eng_branch_undo(struct eng_branch *b)
{
	for (size_t i = 0; b->members && i < b->count; i++)
		if (b->members[i].pending)
			eng_io_unlink(b->store->io, b->members[i].pending->path);
}

void eng_branch_fini(struct eng_branch *b)
{
	for (size_t i = 0; b->members && i < b->count; i++) {
		eng_layer_put(b->members[i].tail);
		eng_layer_put(b->members[i].pending);
	}
	if (b->claimed)
		eng_store_release_all(b->entries, b->count);
	eng_batch_destroy(b->batch);
	free(b->members);
	free(b->entries);
	free(b->disks);
	free(b->rows);
}
