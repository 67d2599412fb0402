/* SPDX-License-Identifier: MIT */
/*
 * roll.c - a disk's own cuts (T6, RO-*): when its log or map is full, on the pool, the worker only asks;
 * and when its head hides much of what lies beneath it, on the thread that gives space back (FO-19).
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/diff/diff.h"
#include "engine/snapshot/snapshot.h"

/* --- asked for by the worker --- */

struct roll {
	struct eng_task task;
	struct eng_msg msg;
	struct eng_entry *entry;
	struct eng_disk *disk;
	int result;
};

static void msg_rolled(struct eng_msg *msg)
{
	struct roll *roll = (struct roll *)((char *)msg - offsetof(struct roll, msg));
	struct eng_disk *disk = roll->disk;

	disk->background--;
	eng_disk_rolled(disk, roll->result);
	free(roll);
}

static void task_roll(struct eng_task *task)
{
	struct roll *roll = (struct roll *)((char *)task - offsetof(struct roll, task));
	struct eng_entry *entry = roll->entry, *claimed;

	/* A disk that is busy (a cut, a detach) is asked again by its next write. */
	roll->result = eng_entry_claim(entry->store, &entry->id, 0, &claimed);
	if (roll->result == 0) {
		roll->result = eng_roll_run(entry, NULL);
		eng_entry_release(entry);
		eng_store_want_standby(entry);
	}
	roll->msg.run = msg_rolled;
	eng_queue_post(roll->disk->queue, &roll->msg);
}

static void ask_roll(void *owner, struct eng_disk *disk)
{
	struct eng_entry *entry = owner;
	struct roll *roll = calloc(1, sizeof(*roll));

	if (!roll) {
		eng_disk_rolled(disk, -ENOMEM);
		return;
	}
	roll->task.run = task_roll;
	roll->entry = entry;
	roll->disk = disk;
	disk->background++;
	eng_pool_submit(disk->pool, ENG_POOL_NORMAL, &roll->task);
}

const struct eng_disk_ops eng_store_disk_ops = {.roll = ask_roll};

/* --- heads that hide what lies beneath them (FO-19) --- */

#define MUCH     (64ull << 20) /* bytes that are worth a cut */
#define CLAIM_NS 1000000000ull
#define LOOKS    8u /* at a chain that changes */

/* Whether a fold could join the head and *@beneath, if both were sealed. */
static int find_beneath(struct eng_store *store, const struct cat_disk *disk,
			struct cat_layer *beneath, bool *ret)
{
	struct cat_layer head, *children = NULL;
	size_t n = 0;
	int r = eng_catalog_get_layer(store->catalog, &disk->head, &head);

	*ret = false;
	if (r < 0 || head.kind != FMT_KIND_OVERLAY || fmt_uuid_is_none(&head.parent))
		return r;
	r = eng_catalog_get_layer(store->catalog, &head.parent, beneath);
	if (r < 0 || !fmt_uuid_is_none(&beneath->snapshot) ||
	    !fmt_uuid_equal(&beneath->disk, &disk->id) || beneath->path[0] ||
	    beneath->kind == FMT_KIND_QCOW2)
		return r;
	r = eng_catalog_list_children(store->catalog, &beneath->id, &children, &n);
	*ret = r == 0 && n == 1;
	free(children);
	return r;
}

/* The head's bytes, as they lie there: what was allocated ahead too. */
static int pays(struct eng_store *store, const struct cat_disk *disk,
		const struct cat_layer *beneath, bool *ret)
{
	uint64_t least = eng_store_layer_bytes(store, beneath) / 4;
	struct cat_layer head;
	int r = eng_catalog_get_layer(store->catalog, &disk->head, &head);

	*ret = r == 0 && eng_store_layer_bytes(store, &head) >= (least > MUCH ? least : MUCH);
	return r;
}

/* Whether the head holds anything, zeros too. */
static int holds(struct eng_store *store, const struct cat_disk *disk,
		 const struct cat_layer *beneath, struct fmt_error *err, bool *ret)
{
	struct eng_state from = {.layer = beneath->id}, now = {0};
	struct eng_blocks *blocks = NULL;
	int r = eng_diff(store, disk, &from, &now, err, &blocks);

	*ret = r == 0 && eng_blocks_cardinality(blocks) > 0;
	eng_blocks_destroy(blocks);
	return r;
}

int eng_roll_pays(struct eng_store *store, const struct fmt_uuid *id, bool *ret)
{
	struct cat_layer beneath;
	struct cat_disk disk;
	int r = eng_catalog_get_disk_id(store->catalog, id, &disk);

	*ret = false;
	if (r == 0)
		r = find_beneath(store, &disk, &beneath, ret);
	return r == 0 && *ret ? pays(store, &disk, &beneath, ret) : r;
}

static int look_once(struct eng_store *store, const struct cat_disk *disk, bool whole,
		     struct fmt_error *err, bool *ret)
{
	struct cat_layer beneath;
	int r = find_beneath(store, disk, &beneath, ret);

	if (r < 0 || !*ret)
		return r;
	return whole ? holds(store, disk, &beneath, err, ret) : pays(store, disk, &beneath, ret);
}

/* Nothing is claimed: a layer that is gone when it is looked for was folded, or its disk is gone, too. */
static int look(struct eng_store *store, const struct fmt_uuid *id, bool whole,
		struct fmt_error *err, bool *ret)
{
	int r = -ENOENT;

	for (unsigned i = 0; r == -ENOENT && i < LOOKS; i++) {
		struct cat_disk disk;

		*ret = false;
		if (eng_catalog_get_disk_id(store->catalog, id, &disk) == -ENOENT)
			return 0;
		r = look_once(store, &disk, whole, err, ret);
	}
	return r;
}

int eng_roll_disk(struct eng_store *store, const struct fmt_uuid *id, bool whole,
		  struct fmt_error *err)
{
	struct eng_entry *entry;
	struct cat_layer beneath;
	struct cat_disk disk;
	bool fits = false;
	int r = look(store, id, whole, err, &fits);

	if (r < 0 || !fits)
		return r;
	r = eng_entry_claim(store, id, eng_io_now_ns(store->io) + CLAIM_NS, &entry);
	if (r < 0)
		return r;
	/* It may have been snapshotted, reverted, rolled or deleted meanwhile. */
	r = eng_catalog_get_disk_id(store->catalog, id, &disk);
	if (r == 0)
		r = find_beneath(store, &disk, &beneath, &fits);
	else if (r == -ENOENT)
		r = fits = 0;
	if (r == 0 && fits)
		r = eng_roll_run(entry, err);
	if (r == 0 && fits && entry->disk)
		eng_store_want_standby(entry);
	eng_entry_release(entry);
	return r < 0 ? r : fits;
}
