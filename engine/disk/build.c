/* SPDX-License-Identifier: MIT */
/*
 * build.c - fills a region of the map from the sealed layers below, in the background (D-3, M1).
 *
 * The look-ups run on a pool thread over immutable indexes; the merge runs on the worker and never
 * replaces a newer layer's entry, however late it comes (T5).
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/layer/index.h"
#include "engine/disk/part.h"
#include "engine/disk/swap.h"

#define TRIM 4u /* regions forgotten for one that is built */

struct build_run {
	struct fmt_run run;
	uint32_t ordinal;
};

struct build_waiter {
	struct build_waiter *next;
	struct eng_req *req;
	void (*resume)(struct eng_req *req, int result);
};

struct eng_build {
	struct eng_build *next;
	struct eng_disk *disk;
	uint64_t region;
	/* Of the disk, as they were in that layout; a request waits, so they stay (swap.c). */
	struct eng_layer **layers;
	uint32_t count, layout;
	struct build_run *runs;
	size_t nruns, cap;
	uint32_t ordinal;
	int result;
	struct build_waiter *waiters, **tail;
	struct eng_task task;
	struct eng_msg msg;
};

static void build_done(struct eng_msg *msg);

static int add_run(void *arg, const struct fmt_run *run)
{
	struct eng_build *b = arg;

	if (b->nruns == b->cap) {
		size_t cap = b->cap ? b->cap * 2 : 256;
		struct build_run *p = realloc(b->runs, cap * sizeof(*p));

		if (!p)
			return -ENOMEM;
		b->runs = p;
		b->cap = cap;
	}
	b->runs[b->nruns++] = (struct build_run){*run, b->ordinal};
	return 0;
}

static void task_build(struct eng_task *task)
{
	struct eng_build *b = (struct eng_build *)((char *)task - offsetof(struct eng_build, task));
	uint64_t first = b->region << ENG_MAP_REGION_BITS;
	struct eng_index *index;

	for (uint32_t i = 0; i < b->count && b->result == 0; i++) {
		if (b->layers[i]->kind != FMT_KIND_OVERLAY ||
		    (i + 1 < b->count && b->layers[i] == b->layers[i + 1]))
			continue; /* a folded layer is asked once, at its newest ordinal */
		b->ordinal = i;
		b->result = eng_layer_index(b->layers[i], NULL, &index);
		if (b->result == 0)
			b->result = eng_index_each(index, first, ENG_MAP_REGION, add_run, b, NULL);
	}
	b->msg.run = build_done;
	eng_queue_post(b->disk->queue, &b->msg);
}

static int merge(struct eng_build *b)
{
	int r = b->result;

	for (size_t i = 0; i < b->nruns && r == 0; i++) {
		const struct fmt_run *run = &b->runs[i].run;
		bool data = run->kind == FMT_RUN_DATA;

		if (run->block >= b->disk->blocks)
			continue; /* the disk was larger once */
		r = eng_map_merge(b->disk->map, run->block, run->count,
				  (struct eng_map_entry){
					  .layer = b->runs[i].ordinal,
					  .slot = data ? run->slot : FMT_SLOT_NONE,
					  .state = data ? ENG_MAP_DATA : ENG_MAP_ZERO,
				  });
	}
	if (r == 0)
		eng_map_set_built(b->disk->map, b->region);
	return r;
}

static uint64_t region_count(const struct eng_disk *disk)
{
	return (disk->blocks + ENG_MAP_REGION - 1) >> ENG_MAP_REGION_BITS;
}

void eng_build_note_sealed(struct eng_disk *disk)
{
	while (disk->indexed + 1 < disk->nlayers &&
	       atomic_load(&disk->layers[disk->indexed]->sealed)) {
		disk->indexed++;
		disk->trim_left = region_count(disk);
	}
}

static bool is_building(const struct eng_disk *disk, uint64_t region)
{
	const struct eng_build *b = disk->builds;

	while (b && b->region != region)
		b = b->next;
	return b;
}

/*
 * P7: the map of sealed layers is a cache. While it is too large, regions are forgotten round robin, a
 * few at a time; entries of layers that are not sealed stay.
 */
void eng_build_trim(struct eng_disk *disk, unsigned some)
{
	if (eng_map_memory(disk->map) <= disk->map_memory)
		return;
	eng_build_note_sealed(disk);
	for (; some && disk->trim_left; some--, disk->trim_left--) {
		uint64_t region = disk->clock++ % region_count(disk);

		if (!is_building(disk, region))
			eng_map_evict(disk->map, region, disk->indexed);
	}
}

/* The layers to ask, as they stand for that region now. */
static int take_layers(struct eng_build *b)
{
	const struct eng_disk *disk = b->disk;
	struct eng_layer **layers = malloc(disk->indexed * sizeof(struct eng_layer *));

	if (!layers)
		return -ENOMEM;
	for (uint32_t i = 0; i < disk->indexed; i++)
		layers[i] = eng_swap_layer(disk, i, b->region);
	free(b->layers);
	b->layers = layers;
	b->count = disk->indexed;
	b->layout = eng_swap_layout(disk, b->region);
	return 0;
}

static void build_done(struct eng_msg *msg)
{
	struct eng_build *b = (struct eng_build *)((char *)msg - offsetof(struct eng_build, msg));
	struct eng_disk *disk = b->disk;
	struct eng_build **p = &disk->builds;
	struct build_waiter *w = b->waiters, *next;
	int r;

	/* A fold has come between: these runs name slots of layers that are gone. */
	if (b->layout != eng_swap_layout(disk, b->region) && take_layers(b) == 0) {
		b->nruns = 0;
		b->result = 0;
		eng_pool_submit(disk->pool, ENG_POOL_URGENT, &b->task);
		return;
	}
	r = b->layout == eng_swap_layout(disk, b->region) ? merge(b) : -ENOMEM;

	while (*p != b)
		p = &(*p)->next;
	*p = b->next;
	disk->background--;
	for (; w; w = next) {
		next = w->next;
		w->resume(w->req, r);
		free(w);
	}
	disk->trim_left = region_count(disk);
	eng_build_trim(disk, TRIM);
	free(b->layers);
	free(b->runs);
	free(b);
}

static struct eng_build *build_start(struct eng_disk *disk, uint64_t region)
{
	struct eng_build *b = calloc(1, sizeof(*b));

	if (!b)
		return NULL;
	b->disk = disk;
	b->region = region;
	if (take_layers(b) < 0) {
		free(b);
		return NULL;
	}
	b->tail = &b->waiters;
	b->task.run = task_build;
	b->next = disk->builds;
	disk->builds = b;
	disk->background++;
	eng_pool_submit(disk->pool, ENG_POOL_URGENT, &b->task);
	return b;
}

static bool has_indexed(const struct eng_disk *disk)
{
	return disk->indexed > (disk->layers[0]->kind != FMT_KIND_OVERLAY);
}

bool eng_build_ready(const struct eng_disk *disk, uint64_t region)
{
	return !has_indexed(disk) || eng_map_is_built(disk->map, region);
}

uint64_t eng_build_count_ready(const struct eng_disk *disk, uint64_t region, uint64_t max)
{
	if (!has_indexed(disk))
		return max;
	return eng_map_count_built(disk->map, region, max, eng_map_is_built(disk->map, region));
}

bool eng_build_region(struct eng_disk *disk, uint64_t region, struct eng_req *req,
		      void (*resume)(struct eng_req *req, int result))
{
	struct eng_build *b = disk->builds;
	struct build_waiter *w;

	if (eng_build_ready(disk, region))
		return true;
	while (b && b->region != region)
		b = b->next;
	w = calloc(1, sizeof(*w));
	if (w && !b)
		b = build_start(disk, region);
	if (!w || !b) {
		free(w);
		resume(req, -ENOMEM);
		return false;
	}
	w->req = req;
	w->resume = resume;
	*b->tail = w;
	b->tail = &w->next;
	return false;
}
