/* SPDX-License-Identifier: MIT */
/*
 * swap.c - see swap.h. The worker's thread, but for the post and the reload of headers.
 */
#include "engine/disk/swap.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/disk/map.h"

#define STEP 64u /* units of work in one turn: an empty region is one, a built one eight */

#define swap_of(ptr, member) ((struct eng_swap *)((char *)(ptr)-offsetof(struct eng_swap, member)))

static void msg_step(struct eng_msg *msg);

static void end(struct eng_swap *s, int result)
{
	struct eng_disk *disk = s->disk;

	if (s->old) {
		for (uint32_t i = 0; i < s->count; i++)
			eng_layer_put(s->old[i]);
		disk->swap = NULL;
	}
	eng_layer_put(s->folded);
	free(s->old);
	free(s->stale);
	s->old = NULL;
	s->stale = NULL;
	atomic_fetch_sub(&disk->swaps, 1);
	s->done(s, result);
}

/* --- taking the place --- */

static int find(struct eng_swap *s)
{
	struct eng_disk *disk = s->disk;
	uint32_t lo = 0;

	while (lo < disk->nlayers && !fmt_uuid_equal(&disk->layers[lo]->id, &s->ids[0]))
		lo++;
	if (lo == disk->nlayers)
		return 1; /* of another branch (FO-4) */
	if (s->count > disk->nlayers - lo)
		return -ENOENT;
	s->lo = lo;
	return 0;
}

/*
 * The inputs' ordinals, which need not be as many as the inputs: where an earlier fold's result is one
 * of them, it stands at several.
 */
static int span(struct eng_swap *s, uint32_t *ret)
{
	struct eng_disk *disk = s->disk;
	uint32_t at = s->lo;

	for (uint32_t i = 0; i < s->count; i++) {
		if (at == disk->nlayers || !fmt_uuid_equal(&disk->layers[at]->id, &s->ids[i]))
			return -ENOENT;
		while (at < disk->nlayers && fmt_uuid_equal(&disk->layers[at]->id, &s->ids[i]))
			at++;
	}
	*ret = at - s->lo;
	return 0;
}

/* An overlay takes its own place: every entry goes on meaning what it meant. */
static bool is_same(const struct eng_swap *s)
{
	return s->count == 1 && s->folded->kind == FMT_KIND_OVERLAY &&
	       fmt_uuid_equal(&s->folded->id, &s->ids[0]);
}

static int take_place(struct eng_swap *s)
{
	struct eng_disk *disk = s->disk;
	bool same = is_same(s);
	uint32_t count;
	int r = span(s, &count);

	if (r < 0)
		return r;
	eng_build_note_sealed(disk);
	if (s->lo + count > disk->indexed || disk->swap)
		return -EAGAIN;
	s->old = malloc(count * sizeof(struct eng_layer *));
	if (!s->old)
		return -ENOMEM;
	s->count = count;
	for (uint32_t i = 0; i < count; i++) {
		s->old[i] = disk->layers[s->lo + i];
		disk->layers[s->lo + i] = eng_layer_get(s->folded);
	}
	s->regions = (disk->blocks + ENG_MAP_REGION - 1) >> ENG_MAP_REGION_BITS;
	s->cursor = same ? s->regions : 0; /* SW-4 */
	disk->swap = s;
	disk->layout++;
	return 0;
}

/* --- layers that others have sealed: their objects here do not know it (D-3) --- */

static void msg_reloaded(struct eng_msg *msg)
{
	struct eng_swap *s = swap_of(msg, msg);
	int r = s->result;

	if (r == 0)
		r = take_place(s);
	if (r < 0)
		end(s, r);
	else
		msg_step(&s->msg);
}

static void task_reload(struct eng_task *task)
{
	struct eng_swap *s = swap_of(task, task);

	for (uint32_t i = 0; i < s->nstale && s->result == 0; i++)
		s->result = eng_layer_reload(s->stale[i], NULL);
	s->msg.run = msg_reloaded;
	eng_queue_post(s->disk->queue, &s->msg);
}

static void msg_start(struct eng_msg *msg)
{
	struct eng_swap *s = swap_of(msg, msg);
	struct eng_disk *disk = s->disk;
	uint32_t count;
	int r;

	/* A disk without a write since a cut has not looked at its new head yet, nor at what lies between. */
	eng_disk_promote(disk);
	r = find(s);
	if (r > 0) {
		end(s, 0);
		return;
	}
	if (r == 0)
		r = span(s, &count);
	if (r == 0)
		s->stale = malloc((s->lo + count) * sizeof(struct eng_layer *));
	if (r < 0 || !s->stale) {
		end(s, r < 0 ? r : -ENOMEM);
		return;
	}
	for (uint32_t i = disk->indexed; i < s->lo + count; i++)
		if (!atomic_load(&disk->layers[i]->sealed))
			s->stale[s->nstale++] = disk->layers[i];
	/* The disk keeps them: nothing but a swap takes a layer out, and one waits for another. */
	s->task.run = task_reload;
	eng_pool_submit(disk->pool, ENG_POOL_NORMAL, &s->task);
}

void eng_swap_post(struct eng_disk *disk, struct eng_swap *s)
{
	s->disk = disk;
	s->old = NULL;
	s->stale = NULL;
	s->nstale = 0;
	s->draining = false;
	s->result = 0;
	s->msg.run = msg_start;
	atomic_fetch_add(&disk->swaps, 1);
	eng_queue_post(disk->queue, &s->msg);
}

/* --- region by region --- */

/* SW-3 */
void eng_swap_look(struct eng_disk *disk)
{
	struct eng_swap *s = disk->swap;

	if (s->draining && !disk->in_epoch[s->drained_epoch])
		end(s, 0);
}

static void msg_step(struct eng_msg *msg)
{
	struct eng_swap *s = swap_of(msg, msg);
	struct eng_disk *disk = s->disk;

	for (uint32_t work = 0; s->cursor < s->regions && work < STEP; s->cursor++) {
		work += eng_map_is_built(disk->map, s->cursor) ? 8 : 1;
		eng_map_evict(disk->map, s->cursor, s->lo + s->count);
	}
	if (s->cursor < s->regions) {
		s->msg.run = msg_step;
		eng_queue_post(disk->queue, &s->msg);
		return;
	}
	s->drained_epoch = disk->epoch & 1;
	disk->epoch++;
	s->draining = true;
	eng_swap_look(disk);
}
