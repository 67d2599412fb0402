/* SPDX-License-Identifier: MIT */
/*
 * fold_base.c - a fold into the base: the lowest layers of a disk are copied into the raw file beneath
 * them and go (FO-10 to FO-14).
 *
 * The file changes under readers' eyes, and none of them sees it: whoever stands on the topmost input
 * finds every changed place in one of the inputs. So nobody may stand lower, from before the first write
 * to the commit. A crash at any time leaves the inputs, which still mask what was written, or the base,
 * which holds all of it. The folder's thread; recovery's for the last function.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/fold/fold_impl.h"

/* --- which --- */

/* A raw file of the store's own that no snapshot holds and that nothing but @lowest stands on. */
static int is_free(struct eng_store *store, const struct cat_layer *base,
		   const struct cat_layer *lowest, bool *ret)
{
	struct cat_layer *children = NULL;
	size_t n = 0;
	int r = 0;

	*ret = false;
	if (base->kind != FMT_KIND_RAW || base->path[0] || base->state != CAT_LAYER_HARDENED ||
	    !fmt_uuid_is_none(&base->snapshot) || !fmt_uuid_equal(&base->disk, &lowest->disk))
		return 0;
	r = eng_catalog_list_children(store->catalog, &base->id, &children, &n);
	*ret = r == 0 && n == 1 && fmt_uuid_equal(&children[0].id, &lowest->id);
	free(children);
	return r;
}

int eng_fold_base_fits(struct eng_store *store, const struct cat_layer *run, size_t count,
		       bool *ret, struct cat_layer *base)
{
	struct cat_layer row;
	int r;

	*ret = false;
	if (!count || run[0].kind != FMT_KIND_OVERLAY || run[0].state != CAT_LAYER_SEALED ||
	    fmt_uuid_is_none(&run[0].parent))
		return 0;
	r = eng_catalog_get_layer(store->catalog, &run[0].parent, &row);
	if (r == 0)
		r = is_free(store, &row, &run[0], ret);
	if (r == 0 && *ret)
		*base = row;
	return r;
}

int eng_fold_base_grows(struct eng_store *store, const struct cat_layer *base,
			const struct cat_layer *run, size_t count, bool *ret)
{
	uint64_t size = 0;
	int r = 0;

	*ret = true;
	for (size_t i = 0; r == 0 && i <= count; i++) {
		struct eng_layer *layer = NULL;

		r = eng_store_open_layer(store, i ? &run[i - 1] : base, false, NULL, &layer);
		if (r < 0)
			break;
		*ret = *ret && layer->hdr.size >= size;
		size = layer->hdr.size;
		eng_layer_put(layer);
	}
	return r;
}

/* --- the copy --- */

static void edit_size(struct fmt_header *hdr, void *arg)
{
	hdr->size = *(uint64_t *)arg;
}

int eng_fold_base_copy(struct fold *f, struct fmt_error *err)
{
	struct eng_store *store = f->folder->store;
	uint64_t size = f->inputs[f->count - 1]->hdr.size;
	int r = eng_store_open_layer(store, &f->base, true, err, &f->base_layer);

	/* SC-3: the file may be as long as its sidecar, durably, says that the disk is. */
	if (r == 0)
		r = f->base_layer->hdr.size < size
			    ? eng_layer_update(f->base_layer, edit_size, &size, err)
			    : eng_layer_settle_header(f->base_layer, err);
	if (r < 0)
		return r;
	f->copy.io = store->io;
	f->copy.hold = store->lock_file;
	f->copy.direct = store->direct;
	f->copy.inputs = f->inputs;
	f->copy.count = (uint32_t)f->count;
	f->copy.path = f->base_layer->data_path;
	f->copy.size = size;
	f->copy.progress = f->progress;
	f->copy.stop = eng_fold_stopped;
	f->copy.arg = f;
	return eng_fold_copy(&f->copy, err);
}

/* --- the commit: the disk is claimed --- */

struct change {
	const struct fmt_header *top;
	struct fmt_header list; /* replaced_count and replaced */
	struct eng_stat st;
};

static void edit_folded(struct fmt_header *hdr, void *arg)
{
	const struct change *c = arg;

	hdr->snapshot_id = c->top->snapshot_id;
	hdr->snapshot_members = c->top->snapshot_members;
	hdr->snapshot_index = c->top->snapshot_index;
	hdr->base_bytes = c->st.size;
	hdr->base_mtime_ns = c->st.mtime_ns;
	hdr->incompat |= FMT_INCOMPAT_FOLDED;
	hdr->replaced_count = c->list.replaced_count;
	memcpy(hdr->replaced, c->list.replaced, sizeof(hdr->replaced));
}

static void edit_unbound(struct fmt_header *hdr, void *arg)
{
	(void)arg;
	memset(&hdr->snapshot_id, 0, sizeof(hdr->snapshot_id));
	hdr->snapshot_members = 0;
	hdr->snapshot_index = 0;
}

/* FD-5: those who stand on the topmost input, and, until the commit, who stands on the base. */
static int list_replaced(struct fold *f, struct fmt_header *list, struct fmt_error *err)
{
	const struct fmt_header *base = &f->base_layer->hdr;
	const struct fmt_uuid *named = &f->inputs[0]->hdr.parent_id;

	for (uint32_t i = 0; i < base->replaced_count; i++)
		if (fmt_uuid_equal(&base->replaced[i].id, named))
			list->replaced[list->replaced_count++] = base->replaced[i];
	return eng_fold_note_replaced(f, list, err);
}

/* The topmost input's header as it is now: a deletion may have cleared its boundary. */
static int write_header(struct fold *f, struct fmt_error *err)
{
	struct eng_layer *top = f->inputs[f->count - 1];
	struct change c = {.top = &top->hdr};
	int r = eng_layer_reload(top, err);

	if (r == 0)
		r = list_replaced(f, &c.list, err);
	if (r == 0)
		r = eng_io_stat(f->folder->store->io, f->base_layer->data_path, &c.st);
	return r == 0 ? eng_layer_update(f->base_layer, edit_folded, &c, err) : r;
}

/*
 * FO-13: the bytes are durable; now the header that says whom they stand for, then the transaction. Both
 * lists of parents are in that header, so that it is true before the transaction and after it.
 */
int eng_fold_base_commit(struct fold *f, bool attached, struct fmt_error *err)
{
	struct eng_store *store = f->folder->store;
	struct cat_layer row;
	bool fits;
	int r = eng_fold_base_fits(store, f->rows, f->count, &fits, &row);

	if (r == 0 && (!fits || !fmt_uuid_equal(&row.id, &f->base.id)))
		r = -ESTALE;
	if (r < 0)
		return r;
	f->base = row;
	row.snapshot = f->rows[f->count - 1].snapshot;
	r = write_header(f, err);
	/* FO-13: the disk's own object knows another length, and another header. */
	if (r == 0 && attached)
		r = eng_store_open_layer(store, &f->base, false, err, &f->result);
	if (r == 0)
		r = eng_fold_put_rows(f, &row, err);
	if (r == 0 || eng_catalog_poisoned(store->catalog))
		return r;
	/* T27: the boundary is the topmost input's alone again; failing that, the next open sees to it. */
	if (eng_layer_update(f->base_layer, edit_unbound, NULL, NULL) < 0)
		atomic_store(&store->unsettled, true);
	return r;
}

/* --- after a crash --- */

/* RV-11: between the header and the transaction. */
int eng_fold_base_recover(struct eng_store *store, const struct cat_layer *row,
			  struct fmt_error *err)
{
	struct eng_layer *layer = NULL;
	int r;

	if (row->kind != FMT_KIND_RAW || row->path[0] || row->state != CAT_LAYER_HARDENED ||
	    !fmt_uuid_is_none(&row->snapshot))
		return 0;
	r = eng_store_open_layer(store, row, true, err, &layer);
	if (r == 0)
		r = fmt_uuid_is_none(&layer->hdr.snapshot_id)
			    ? eng_layer_settle_header(layer, err)
			    : eng_layer_update(layer, edit_unbound, NULL, err);
	eng_layer_put(layer);
	return r;
}
