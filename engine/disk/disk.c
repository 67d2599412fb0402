/* SPDX-License-Identifier: MIT */
/*
 * disk.c - a chain put together, its requests checked and sent on their way, and its head moved past
 * the cuts that fired. The worker's thread only, but for the posts at the end.
 */
#include "engine/disk/disk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/disk/part.h"
#include "engine/disk/swap.h"

#define LOG_BOUND  (128ull << 20) /* bytes: replayed in about a tenth of a second */
#define MAP_BOUND  (4ull << 20)   /* blocks: 32 MiB of map */
#define MAP_MEMORY (64ull << 20)

/* --- loading --- */

struct load {
	struct eng_disk *disk;
	uint32_t ordinal;
};

static int load_run(void *arg, const struct fmt_run *run)
{
	struct load *ld = arg;

	return eng_map_put(ld->disk->map, run->block, run->count,
			   (struct eng_map_entry){
				   .layer = ld->ordinal,
				   .slot = run->kind == FMT_RUN_DATA ? run->slot : FMT_SLOT_NONE,
				   .state = run->kind == FMT_RUN_DATA ? ENG_MAP_DATA : ENG_MAP_ZERO,
			   });
}

/* D-3: the sealed layers at the bottom answer through their indexes, the others are loaded now. */
static int load_layers(struct eng_disk *disk, struct fmt_error *err)
{
	uint32_t i = 0;
	int r = 0;

	if (disk->nlayers && disk->layers[0]->kind != FMT_KIND_OVERLAY)
		i = 1;
	while (i < disk->nlayers && atomic_load(&disk->layers[i]->sealed))
		i++;
	disk->indexed = i;
	for (; i < disk->nlayers && r == 0; i++) {
		struct load ld = {.disk = disk, .ordinal = i};

		r = eng_log_replay(disk->layers[i], load_run, &ld, err);
	}
	return r;
}

static int append_layer(struct eng_disk *disk, struct eng_layer *layer)
{
	if (disk->nlayers == disk->layers_cap) {
		uint32_t cap = disk->layers_cap ? disk->layers_cap * 2 : 8;
		struct eng_layer **p = realloc(disk->layers, cap * sizeof(struct eng_layer *));

		if (!p)
			return -ENOMEM;
		disk->layers = p;
		disk->layers_cap = cap;
	}
	disk->layers[disk->nlayers++] = layer;
	return 0;
}

/* RZ-2: of the disk, and of layers that were made when it was larger: what they hold there masks, too. */
static uint64_t count_blocks(const struct eng_disk_spec *spec)
{
	uint64_t size = spec->size, one;

	for (uint32_t i = 0; i < spec->nlayers; i++) {
		one = spec->layers[i]->kind == FMT_KIND_OVERLAY
			      ? atomic_load(&spec->layers[i]->size)
			      : 0;
		size = one > size ? one : size;
	}
	return (size + (1ull << spec->block_bits) - 1) >> spec->block_bits;
}

int eng_disk_create(const struct eng_disk_spec *spec, struct fmt_error *err, struct eng_disk **ret)
{
	struct eng_disk *disk = calloc(1, sizeof(*disk));
	int r = -ENOMEM;

	if (!disk)
		return r;
	disk->io = spec->io;
	disk->pool = spec->pool;
	disk->queue = spec->queue;
	disk->ops = spec->ops;
	disk->owner = spec->owner;
	disk->id = spec->id;
	disk->size = spec->size;
	disk->block_bits = spec->block_bits;
	disk->blocks = count_blocks(spec);
	disk->read_only = spec->read_only;
	disk->verify = true;
	disk->log_bound = spec->log_bound ? spec->log_bound : LOG_BOUND;
	disk->map_bound = spec->map_bound ? spec->map_bound : MAP_BOUND;
	disk->map_memory = spec->map_memory ? spec->map_memory : MAP_MEMORY;
	disk->stalled_tail = &disk->stalled;
	r = eng_map_create(disk->blocks, &disk->map);
	for (uint32_t i = 0; r == 0 && i < spec->nlayers; i++)
		r = append_layer(disk, spec->layers[i]);
	if (r < 0)
		goto fail;
	disk->head = disk->layers[disk->nlayers - 1];
	disk->first_undurable = disk->nlayers - 1;
	r = load_layers(disk, err);
	if (r < 0)
		goto fail;
	eng_queue_attached(disk->queue, 1);
	*ret = disk;
	return 0;
fail:
	eng_map_destroy(disk->map);
	free(disk->layers);
	free(disk);
	return r;
}

void eng_disk_set_journal(struct eng_disk *disk, struct eng_journal *journal)
{
	disk->journal = journal;
	atomic_store(&disk->journal_nonce, eng_journal_nonce(journal));
}

void eng_disk_destroy(struct eng_disk *disk)
{
	if (!disk)
		return;
	assert(!disk->requests && !disk->background && !disk->locks.head && !disk->swap);
	eng_queue_attached(disk->queue, -1);
	for (uint32_t i = 0; i < disk->nlayers; i++)
		eng_layer_put(disk->layers[i]);
	eng_journal_close(disk->journal);
	eng_map_destroy(disk->map);
	free(disk->layers);
	free(disk);
}

int eng_disk_settle(struct eng_disk *disk, uint64_t timeout_ns)
{
	uint64_t end = eng_io_now_ns(disk->io) + timeout_ns;

	while (disk->background || atomic_load(&disk->hardened_posted) ||
	       atomic_load(&disk->grow.posted) || atomic_load(&disk->swaps)) {
		int r = eng_queue_turn(disk->queue, 10000000);

		if (r < 0 && r != -EINTR)
			return r;
		if (eng_io_now_ns(disk->io) > end)
			return -ETIMEDOUT;
	}
	return 0;
}

/* --- the head and the cuts (P1) --- */

void eng_disk_promote(struct eng_disk *disk)
{
	while (eng_layer_fired(disk->head)) {
		struct eng_layer *next = atomic_load(&disk->head->succ)->layer;

		/* The pointer array must grow before anyone relies on the new head; a worker that
		 * cannot get a few bytes keeps trying rather than write behind the cut. */
		while (append_layer(disk, next) < 0)
			eng_io_sleep_ns(disk->io, 1000000);
		eng_layer_get(next);
		disk->head = next;
	}
}

struct eng_layer *eng_disk_enter(struct eng_disk *disk, uint32_t *ordinal)
{
	while (!eng_layer_enter(disk->head))
		eng_disk_promote(disk);
	*ordinal = disk->nlayers - 1;
	return disk->head;
}

/* --- requests --- */

/* CSN-14: the coordinator asks for the longest write, those still in flight included. */
static void watch_begin(struct eng_req *req)
{
	struct eng_disk *disk = req->disk;

	req->start_ns = eng_io_now_ns(disk->io);
	req->watch_older = disk->watch_last;
	if (disk->watch_last)
		disk->watch_last->watch_newer = req;
	else
		disk->watch_first = req;
	disk->watch_last = req;
	atomic_store(&disk->watch_since_ns, disk->watch_first->start_ns);
}

static void watch_end(struct eng_req *req)
{
	struct eng_disk *disk = req->disk;
	uint64_t ns = eng_io_now_ns(disk->io) - req->start_ns;

	*(req->watch_older ? &req->watch_older->watch_newer
			   : &disk->watch_first) = req->watch_newer;
	*(req->watch_newer ? &req->watch_newer->watch_older : &disk->watch_last) = req->watch_older;
	if (ns > atomic_load_explicit(&disk->max_write_ns, memory_order_relaxed))
		atomic_store(&disk->max_write_ns, ns);
	atomic_store(&disk->watch_since_ns, disk->watch_first ? disk->watch_first->start_ns : 0);
}

void eng_req_begin(struct eng_req *req)
{
	struct eng_disk *disk = req->disk;

	req->epoch = disk->epoch & 1;
	disk->requests++;
	disk->in_epoch[req->epoch]++;
}

void eng_req_end(struct eng_req *req, int result)
{
	struct eng_disk *disk = req->disk;

	if (req->start_ns)
		watch_end(req);
	free(req->bounce);
	if (req->runs != req->runs_inline)
		free(req->runs);
	req->wiov = NULL;
	req->bounce = NULL;
	req->runs = NULL;
	req->result = result;
	disk->requests--;
	disk->in_epoch[req->epoch]--;
	if (disk->swap)
		eng_swap_look(disk);
	req->done(req);
}

static int check(const struct eng_req *req)
{
	const struct eng_disk *disk = req->disk;

	bool writes = req->op != ENG_READ && req->op != ENG_FLUSH && req->op != ENG_EXTENTS;

	if (writes && disk->read_only)
		return -EROFS;
	if (req->offset > disk->size || req->length > disk->size - req->offset)
		return -EINVAL;
	return 0;
}

void eng_disk_start(struct eng_req *req)
{
	struct eng_disk *disk = req->disk;
	int r = check(req);

	eng_req_begin(req);
	if (r < 0 || (req->length == 0 && req->op != ENG_FLUSH)) {
		eng_req_end(req, r);
		return;
	}
	if (req->op == ENG_READ) {
		eng_read_start(req);
		return;
	}
	if (req->op == ENG_EXTENTS) {
		eng_extents_start(req);
		return;
	}
	if (req->op != ENG_FLUSH && atomic_load_explicit(&disk->watched, memory_order_relaxed))
		watch_begin(req);
	switch (req->op) {
	case ENG_WRITE: eng_write_start(req); break;
	case ENG_FLUSH: eng_flush_start(req); break;
	default: eng_zero_start(req);
	}
}

/* --- from other threads --- */

static void msg_hardened(struct eng_msg *msg)
{
	struct eng_disk *disk = (struct eng_disk *)((char *)msg -
						    offsetof(struct eng_disk, hardened_msg));
	struct eng_waiter *w = disk->hardening, *next;

	atomic_store(&disk->hardened_posted, false);
	disk->hardening = NULL;
	for (; w; w = next) {
		next = w->next;
		w->wake(w, -EAGAIN);
	}
	eng_flush_hardened(disk);
	if (atomic_exchange(&disk->harden_wanted, false))
		eng_flush_background(disk);
}

void eng_disk_post_harden(struct eng_disk *disk)
{
	atomic_store(&disk->harden_wanted, true);
	eng_disk_post_hardened(disk);
}

void eng_disk_post_hardened(struct eng_disk *disk)
{
	if (atomic_exchange(&disk->hardened_posted, true))
		return;
	disk->hardened_msg.run = msg_hardened;
	eng_queue_post(disk->queue, &disk->hardened_msg);
}

static void msg_grow(struct eng_msg *msg)
{
	struct eng_disk *disk = (struct eng_disk *)((char *)msg -
						    offsetof(struct eng_disk, grow.msg));
	uint64_t bs = 1ull << disk->block_bits;
	uint64_t blocks = (disk->grow.size + bs - 1) >> disk->block_bits;

	if (blocks > disk->blocks) {
		disk->blocks = blocks;
		free(eng_map_grow(disk->map, blocks, disk->grow.table));
	} else { /* it was that large before */
		free(disk->grow.table);
	}
	if (disk->grow.base_bytes)
		disk->layers[0]->base_bytes = disk->grow.base_bytes;
	atomic_store(&disk->size, disk->grow.size);
	atomic_store(&disk->grow.posted, false);
}

void eng_disk_post_grow(struct eng_disk *disk, uint64_t size, uint64_t base_bytes, void *table)
{
	bool posted = atomic_exchange(&disk->grow.posted, true);

	assert(!posted);
	(void)posted;
	disk->grow.size = size;
	disk->grow.base_bytes = base_bytes;
	disk->grow.table = table;
	disk->grow.msg.run = msg_grow;
	eng_queue_post(disk->queue, &disk->grow.msg);
}

void eng_disk_rolled(struct eng_disk *disk, int result)
{
	(void)result; /* a failed roll is asked for again by the next write over the bound */
	disk->rolling = false;
}
