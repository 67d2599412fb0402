/* SPDX-License-Identifier: MIT */
/*
 * diff_live.c - see diff_live.h. A message goes to the worker, is filled with runs there and comes back,
 * until the map has been walked once: nobody's request waits for more than one of them, and the worker
 * allocates nothing. A write that was acknowledged before the first message is in the map by then, and
 * stays (M1); what is written behind the walk's cursor came later.
 *
 * The message is shared by the two threads: whoever lets go of it last frees it, so that a caller may give
 * up on a worker that does not turn. Once given up (@abandoned) it does not touch the disk.
 */
#include "engine/diff/diff_live.h"

#include <errno.h>
#include <stdlib.h>

#define RUNS    (2u * ENG_MAP_REGION) /* a region has half as many at most: there is room for one */
#define ENTRIES (16u * ENG_MAP_REGION) /* looked at in one turn: some 0.1 ms */
#define REGIONS 4096u
#define WAIT_NS (10ull * 1000000000)

struct live {
	struct eng_disk *disk;
	struct fmt_uuid lowest;
	struct eng_msg msg;
	pthread_mutex_t lock; /* guards the next four */
	pthread_cond_t turned;
	bool is_back, abandoned;
	unsigned refs;

	/* of whose turn it is */
	uint64_t region;
	bool is_done;
	int result;
	uint32_t count;
	struct {
		uint64_t block;
		uint32_t count;
	} runs[RUNS];
};

static void put(struct live *live)
{
	bool last;

	pthread_mutex_lock(&live->lock);
	last = --live->refs == 0;
	pthread_mutex_unlock(&live->lock);
	if (!last)
		return;
	pthread_cond_destroy(&live->turned);
	pthread_mutex_destroy(&live->lock);
	free(live);
}

static int create(struct eng_disk *disk, const struct fmt_uuid *lowest, struct live **ret)
{
	struct live *live = malloc(sizeof(*live));
	pthread_condattr_t attr;

	if (!live)
		return -ENOMEM;
	live->disk = disk;
	live->lowest = *lowest;
	live->is_back = live->abandoned = live->is_done = false;
	live->refs = 1;
	live->region = 0;
	live->result = 0;
	live->count = 0;
	pthread_mutex_init(&live->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&live->turned, &attr);
	pthread_condattr_destroy(&attr);
	*ret = live;
	return 0;
}

/* --- the worker --- */

static int add_run(void *arg, uint64_t block, uint32_t count)
{
	struct live *live = arg;

	live->runs[live->count].block = block;
	live->runs[live->count++].count = count;
	return 0;
}

/* The ordinal from which on the map's entries count; the map has all of them only above @indexed (D-3). */
static int find(const struct live *live, uint32_t *ret)
{
	const struct eng_disk *disk = live->disk;

	for (uint32_t i = disk->nlayers; i-- > disk->indexed;)
		if (fmt_uuid_equal(&disk->layers[i]->id, &live->lowest)) {
			*ret = i;
			return 0;
		}
	return -EAGAIN;
}

static void walk(struct live *live)
{
	struct eng_disk *disk = live->disk;
	uint64_t regions = (disk->blocks + ENG_MAP_REGION - 1) >> ENG_MAP_REGION_BITS;
	uint32_t ordinal, looked = 0, entries = 0;

	eng_disk_promote(disk);
	live->count = 0;
	live->result = find(live, &ordinal);
	for (; live->result == 0 && live->region < regions; live->region++) {
		if (live->count + ENG_MAP_REGION / 2 > RUNS || entries >= ENTRIES ||
		    looked++ == REGIONS)
			return;
		if (!eng_map_entries(disk->map, live->region))
			continue;
		entries += eng_map_entries(disk->map, live->region);
		eng_map_each_newer(disk->map, live->region, 1, ordinal, add_run, live);
	}
	live->is_done = true;
}

static void msg_walk(struct eng_msg *msg)
{
	struct live *live = (struct live *)((char *)msg - offsetof(struct live, msg));

	pthread_mutex_lock(&live->lock);
	if (!live->abandoned)
		walk(live);
	live->is_back = true;
	pthread_cond_signal(&live->turned);
	pthread_mutex_unlock(&live->lock);
	put(live);
}

/* --- who asks --- */

static int ask(struct live *live)
{
	uint64_t end = eng_io_now_ns(live->disk->io) + WAIT_NS;
	struct timespec ts = {
		.tv_sec = (time_t)(end / 1000000000u),
		.tv_nsec = (long)(end % 1000000000u),
	};
	int r = 0;

	pthread_mutex_lock(&live->lock);
	live->is_back = false;
	live->refs++; /* the worker's */
	pthread_mutex_unlock(&live->lock);
	live->msg.run = msg_walk;
	eng_queue_post(live->disk->queue, &live->msg);
	pthread_mutex_lock(&live->lock);
	while (!live->is_back && r == 0)
		r = pthread_cond_timedwait(&live->turned, &live->lock, &ts);
	r = live->is_back ? live->result : -ETIMEDOUT;
	live->abandoned = !live->is_back;
	pthread_mutex_unlock(&live->lock);
	return r;
}

int eng_diff_live(struct eng_disk *disk, const struct fmt_uuid *lowest, struct eng_blocks *set)
{
	struct eng_blocks_adder adder;
	struct live *live = NULL;
	int r = create(disk, lowest, &live);

	eng_blocks_adder_init(&adder, set);
	while (r == 0 && !live->is_done) {
		r = ask(live);
		for (uint32_t i = 0; r == 0 && i < live->count; i++)
			r = eng_blocks_adder_add(&adder, live->runs[i].block, live->runs[i].count);
	}
	if (r == 0)
		r = eng_blocks_adder_end(&adder);
	if (live)
		put(live);
	return r;
}
