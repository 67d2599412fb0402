/* SPDX-License-Identifier: MIT */
/*
 * node.c - one layer of a store: its files, and whether its header is what the catalog's row says
 * (LH-7, LH-12, SC-*, T31). One thread a check.
 */
#include "fsck/image.h"
#include "fsck/layer.h"
#include "fsck/store.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const state_names[] = {"none", "pending", "active", "hardened", "sealed"};
static const char *const header_states[] = {"none", "active", "frozen", "sealed"};

/* --- the header against the row --- */

static void check_identity(const struct fsck_store *s, const struct fsck_node *n)
{
	const struct fmt_header *h = &n->hdr;
	const char *what = NULL;

	if (!fmt_uuid_equal(&h->store_id, &s->id))
		what = "store";
	else if (!fmt_uuid_equal(&h->disk_id, &n->disk))
		what = "disk";
	else if (!fmt_uuid_equal(&h->layer_id, &n->id))
		what = "layer";
	if (what)
		fsck_found(s->f, PR_ROW_IDENTITY, "its %s id is another one", what);
	if (h->generation != n->generation)
		fsck_found(s->f, PR_ROW_GENERATION,
			   "%" PRIu64 " in the header, %" PRIu64 " in the catalog", h->generation,
			   n->generation);
}

/*
 * The header's state goes first, the row's follows: HARDENED may be SEALED already, and a layer that
 * the catalog thinks active may be frozen where a cut failed. A head is looked at with its disk.
 */
static void check_state(const struct fsck_store *s, const struct fsck_node *n)
{
	uint32_t h = n->hdr.state;
	bool holds = true;

	switch (n->state) {
	case CAT_LAYER_SEALED: holds = h == FMT_STATE_SEALED; break;
	case CAT_LAYER_HARDENED: holds = h != FMT_STATE_ACTIVE; break;
	case CAT_LAYER_ACTIVE:
	case CAT_LAYER_PENDING: holds = h != FMT_STATE_SEALED; break;
	default: break;
	}
	if (!holds)
		fsck_found(s->f, PR_ROW_STATE, "%s in the catalog, the header says %s",
			   state_names[n->state], header_states[h]);
}

static void check_row(const struct fsck_store *s, const struct fsck_node *n,
		      const struct cat_disk *disk)
{
	check_identity(s, n);
	check_state(s, n);
	if (n->kind == FMT_KIND_OVERLAY && n->hdr.block_bits != disk->block_bits)
		fsck_found(s->f, PR_ROW_BLOCK_BITS, "%u bytes, the disk has blocks of %u bytes",
			   1u << n->hdr.block_bits, 1u << disk->block_bits);
}

/* --- bases --- */

/* SC-3, IB-3: files of the store's own are known by their length only, which a fold may raise. */
static void check_frozen(const struct fsck_store *s, const struct fsck_node *n,
			 const struct eng_stat *st)
{
	const struct fmt_header *h = &n->hdr;

	if (!n->in_place && st->size > h->base_bytes && st->size <= h->size)
		return;
	if (st->size != h->base_bytes)
		fsck_found(s->f, PR_BASE_CHANGED, "it has %" PRIu64 " bytes, recorded are %" PRIu64,
			   st->size, h->base_bytes);
	else if (n->in_place && st->mtime_ns != h->base_mtime_ns)
		fsck_found(s->f, PR_BASE_CHANGED,
			   "modified at %" PRId64 " ns, recorded is %" PRId64, st->mtime_ns,
			   h->base_mtime_ns);
}

static void check_base(const struct fsck_store *s, struct fsck_node *n, const struct cat_layer *row,
		       const char *path)
{
	struct eng_stat st;
	int r = eng_io_stat(s->f->io, path, &st);

	if (r == -ENOENT || r == -ENOTDIR) {
		fsck_found(s->f, PR_BASE_MISSING, "%s", path);
		return;
	}
	if (r < 0) {
		fsck_cannot(s->f, r, "%s: %s", path, strerror(-r));
		return;
	}
	if (!st.is_regular) {
		fsck_found(s->f, PR_BASE_KIND, "%s is not a regular file", path);
		return;
	}
	n->dev = st.dev;
	n->ino = st.ino;
	/* Inodes stay over a restart, numbers of devices need not. */
	if (n->in_place && st.ino != row->base_ino)
		fsck_found(s->f, PR_BASE_MOVED, "%s is inode %" PRIu64 ", claimed was %" PRIu64,
			   path, st.ino, row->base_ino);
	if (n->has_header && n->hdr.state == FMT_STATE_FROZEN)
		check_frozen(s, n, &st);
	if (n->kind == FMT_KIND_QCOW2)
		fsck_qcow2(s->f, path);
}

/* --- all of it --- */

static const char *base_suffix(uint32_t kind)
{
	return kind == FMT_KIND_RAW ? "raw" : "qcow2";
}

static void check_header_file(struct fsck_store *s, struct fsck_node *n, const char *path)
{
	int r = fsck_layer(s->f, path, n->kind, &n->hdr);

	n->has_header = r == 0;
	if (r == -ENOENT)
		fsck_found(s->f,
			   n->state == CAT_LAYER_PENDING ? PR_PENDING_MISSING : PR_FILE_MISSING,
			   "%s", path);
}

void fsck_node_check(struct fsck_store *s, struct fsck_node *n, const struct cat_layer *row,
		     const struct cat_disk *disk)
{
	const char *suffix = n->kind == FMT_KIND_OVERLAY ? "vmo" : "vmr";
	char *path = fsck_layer_path(s, &n->id, suffix), *base = NULL, text[FMT_UUID_TEXT];

	if (!path)
		return;
	fmt_uuid_format(&n->id, text);
	if (asprintf(&n->name, "%s/%s: layers/%s.%s", disk->vm_name, disk->name, text, suffix) < 0)
		n->name = NULL;
	fsck_at(s->f, "%s", n->name ? n->name : path);
	check_header_file(s, n, path);
	if (n->has_header)
		check_row(s, n, disk);
	if (n->kind != FMT_KIND_OVERLAY) {
		base = n->in_place ? strdup(row->path)
				   : fsck_layer_path(s, &n->id, base_suffix(n->kind));
		if (base)
			check_base(s, n, row, base);
	}
	free(base);
	free(path);
}
