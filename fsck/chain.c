/* SPDX-License-Identifier: MIT */
/*
 * chain.c - layers against their parents, disks against their heads (CT-11, CU-19, SL-4, AT-6), and
 * layers that nothing stands on. One thread a check.
 */
#include "fsck/store.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

void fsck_reach(struct fsck_node *node)
{
	for (; node && !node->reached; node = node->up)
		node->reached = true;
}

/* --- layers and their parents --- */

/* CT-11. A parent that does not fit is not followed, so that every walk up the chain ends. */
static void link_parent(struct fsck_store *s, struct fsck_node *n)
{
	struct fsck_node *up;

	if (fmt_uuid_is_none(&n->parent))
		return;
	up = fsck_node_find(s, &n->parent);
	fsck_at(s->f, "%s", n->name);
	if (!up)
		fsck_found(s->f, PR_CHAIN_BROKEN, "its parent is not in the catalog");
	else if (!fmt_uuid_equal(&up->disk, &n->disk) && up->state != CAT_LAYER_HARDENED &&
		 up->state != CAT_LAYER_SEALED) /* CL-2 */
		fsck_found(s->f, PR_CHAIN_BROKEN, "its parent %s is another disk's and may change",
			   up->name);
	else if (up->generation >= n->generation)
		fsck_found(s->f, PR_CHAIN_BROKEN,
			   "it has generation %" PRIu64 ", its parent %" PRIu64, n->generation,
			   up->generation);
	else
		n->up = up;
}

/* What the child's header says of its parent: its id, or one that it lists (FD-2); SL-4. */
static void check_parent_header(const struct fsck_store *s, const struct fsck_node *n)
{
	static const uint8_t unknown[16];
	const struct fsck_node *up = n->up;
	const uint8_t *hash = NULL;

	if (!n->has_header)
		return;
	fsck_at(s->f, "%s", n->name);
	if (fmt_uuid_equal(&n->hdr.parent_id, &n->parent)) {
		if (up && up->has_header && up->hdr.state == FMT_STATE_SEALED)
			hash = up->hdr.seal_hash;
		else if (up && up->has_header && memcmp(n->hdr.parent_hash, unknown, 16) != 0)
			fsck_found(s->f, PR_PARENT_HASH,
				   "it knows a hash of %s, which is not sealed", up->name);
	} else {
		for (uint32_t i = 0; up && up->has_header && i < up->hdr.replaced_count; i++)
			if (fmt_uuid_equal(&up->hdr.replaced[i].id, &n->hdr.parent_id))
				hash = up->hdr.replaced[i].hash;
		if (!hash && (!up || up->has_header))
			fsck_found(s->f, PR_ROW_PARENT, "the parent's id is another one");
	}
	if (hash && memcmp(hash, unknown, 16) != 0 &&
	    memcmp(n->hdr.parent_hash, unknown, 16) != 0 &&
	    memcmp(n->hdr.parent_hash, hash, 16) != 0)
		fsck_found(s->f, PR_PARENT_HASH, "the seal hash of %s is another one", up->name);
}

/* T31: by the files themselves, however they are named. */
static int by_file(const void *a, const void *b)
{
	const struct fsck_node *x = *(struct fsck_node *const *)a;
	const struct fsck_node *y = *(struct fsck_node *const *)b;

	if (x->dev != y->dev)
		return x->dev < y->dev ? -1 : 1;
	return x->ino < y->ino ? -1 : x->ino > y->ino;
}

static int check_shared(struct fsck_store *s)
{
	struct fsck_node **bases = calloc(s->count + 1, sizeof(*bases));
	size_t n = 0;

	if (!bases)
		return fsck_cannot(s->f, -ENOMEM, "%s: no memory", s->dir);
	for (size_t i = 0; i < s->count; i++)
		if (s->nodes[i].ino)
			bases[n++] = &s->nodes[i];
	if (n)
		qsort(bases, n, sizeof(struct fsck_node *), by_file);
	for (size_t i = 1; i < n; i++) {
		if (by_file(&bases[i - 1], &bases[i]) != 0)
			continue;
		fsck_at(s->f, "%s", bases[i]->name);
		fsck_found(s->f, PR_BASE_SHARED, "the other one is %s", bases[i - 1]->name);
	}
	free(bases);
	return 0;
}

/* --- disks and their heads --- */

/* AT-6, and states that only a head may have, or may not. */
static void check_head(const struct fsck_store *s, const struct cat_disk *disk,
		       const struct fsck_node *head)
{
	if (head->state != CAT_LAYER_ACTIVE)
		fsck_found(s->f, PR_HEAD_STATE, "%s", head->name);
	if (!head->has_header)
		return;
	if (head->hdr.state != FMT_STATE_ACTIVE)
		fsck_found(s->f, PR_HEAD_FROZEN, "%s", head->name);
	if (head->hdr.size < disk->size)
		fsck_found(s->f, PR_SIZE_SMALLER, "%s has %" PRIu64 " bytes, the disk %" PRIu64,
			   head->name, head->hdr.size, disk->size);
	else if (head->hdr.size > disk->size)
		fsck_found(s->f, PR_SIZE_LARGER, "%s has %" PRIu64 " bytes, the disk %" PRIu64,
			   head->name, head->hdr.size, disk->size);
}

static void check_disk(struct fsck_store *s, const struct cat_disk *disk)
{
	struct fsck_node *head = fsck_node_find(s, &disk->head);

	s->f->sum.disks++;
	fsck_at(s->f, "%s/%s", disk->vm_name, disk->name);
	if (!head || !fmt_uuid_equal(&head->disk, &disk->id)) {
		fsck_found(s->f, PR_HEAD_MISSING, "its head is %s",
			   head ? head->name : "not in the catalog");
		return;
	}
	check_head(s, disk, head);
	fsck_reach(head);
}

/* CU-19: only layers of a cut that did not end may stand on a head. */
static void check_tip(const struct fsck_store *s, const struct fsck_node *n,
		      const struct cat_disk *disks, size_t count)
{
	if (!n->up || n->state == CAT_LAYER_PENDING)
		return;
	for (size_t i = 0; i < count; i++) {
		if (!fmt_uuid_equal(&disks[i].head, &n->up->id))
			continue;
		fsck_at(s->f, "%s/%s", disks[i].vm_name, disks[i].name);
		fsck_found(s->f, PR_HEAD_BEHIND, "%s stands on it", n->name);
	}
}

int fsck_chains(struct fsck_store *s)
{
	struct cat_disk *disks = NULL;
	size_t count = 0;
	int r = eng_catalog_list_disks(s->cat, NULL, &disks, &count);

	for (size_t i = 0; r == 0 && i < s->count; i++)
		link_parent(s, &s->nodes[i]);
	for (size_t i = 0; r == 0 && i < s->count; i++)
		check_parent_header(s, &s->nodes[i]);
	for (size_t i = 0; r == 0 && i < count; i++)
		check_disk(s, &disks[i]);
	for (size_t i = 0; r == 0 && i < s->count; i++)
		if (!s->nodes[i].reached)
			check_tip(s, &s->nodes[i], disks, count);
	free(disks);
	return r < 0 ? r : check_shared(s);
}

void fsck_unreached(struct fsck_store *s)
{
	for (size_t i = 0; i < s->count; i++) {
		struct fsck_node *n = &s->nodes[i];

		if (n->state == CAT_LAYER_PENDING) {
			fsck_at(s->f, "%s", n->name);
			fsck_found(s->f, PR_ROW_PENDING, "it is kept when it holds anything");
		} else if (!n->reached) {
			fsck_at(s->f, "%s", n->name);
			fsck_found(s->f, PR_ROW_UNREACHED, "generation %" PRIu64, n->generation);
		}
	}
}
