/* SPDX-License-Identifier: MIT */
/*
 * roll.c - a disk's own cuts (T6, RO-*). They run on the pool; the worker only asks.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/snapshot/snapshot.h"

/* --- rolls --- */

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
