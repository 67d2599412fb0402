/* SPDX-License-Identifier: MIT */
/*
 * space.c - slots and log segments, made ahead of need by the background (SP-*, T15).
 *
 * A slot is given out only when its place in the file, the reserve for its index entry and checksum,
 * and room for its log record are all there: a later flush or seal cannot meet a full disk. The
 * worker decides, the pool's threads call the file system.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/disk/part.h"

#define CHUNK_MIN   256u          /* slots: 1 MiB of 4 KiB blocks */
#define CHUNK_MAX   (64ull << 20) /* bytes: what is allocated ahead at once, at most */
#define PENDING_MAX 8192u         /* mappings without a record, where no journal bounds them */
#define WRITTEN_LEN (512u << 10)  /* bytes written ahead at once */
#define FEW         16u           /* mappings of a small flush */
#define FLUSHY      4u            /* small flushes in a row that make it worth while */

enum space_kind { SPACE_SLOTS, SPACE_SEGMENT, SPACE_WRITTEN };

struct eng_space_task {
	struct eng_task task;
	struct eng_msg msg;
	struct eng_disk *disk;
	struct eng_layer *layer;
	enum space_kind kind;
	uint64_t offset, len;
	uint32_t slots;    /* SLOTS: ready afterwards */
	uint32_t first;    /* SLOTS: ready before */
	uint32_t least;    /* SLOTS: with fewer more it is no use */
	uint32_t segments; /* SEGMENT: linked so far */
	int result;
};

/* --- in the background --- */

static void note_segments(struct fmt_header *hdr, void *arg)
{
	hdr->log_segments = *(uint32_t *)arg;
}

/* FL-9: a failed sync poisons, whoever asked for it; a failed write before it loses nothing. */
static int write_synced(struct eng_layer *layer, struct eng_file *file, const void *buf, size_t len,
			uint64_t offset)
{
	int r = eng_io_pwrite(layer->io, file, buf, len, offset);

	if (r < 0)
		return r;
	r = eng_io_fdatasync(layer->io, file);
	if (r < 0)
		eng_layer_poison(layer, r);
	return r;
}

/*
 * CU-17: through a descriptor of its own. The layer's must not have an error taken from it that the
 * guest's next flush should see (T16).
 */
static int write_zeros(struct eng_space_task *t)
{
	struct eng_layer *layer = t->layer;
	struct eng_file *file = NULL;
	void *buf = NULL;
	int r = eng_io_open(layer->io, layer->path,
			    ENG_OPEN_WRITE | (layer->direct ? ENG_OPEN_DIRECT : 0), &file);

	if (r < 0)
		return r;
	if (posix_memalign(&buf, FMT_PAGE, t->len)) {
		buf = NULL;
		r = -ENOMEM;
	} else {
		memset(buf, 0, t->len);
		r = write_synced(layer, file, buf, t->len, t->offset);
		if (r < 0 && t->kind == SPACE_SEGMENT) /* FL-9 */
			eng_layer_poison(layer, r);
	}
	eng_io_close(layer->io, file);
	free(buf);
	return r;
}

/* ML-7: the header may name only segments whose LINK is durable; it lags by one. */
static int make_segment(struct eng_space_task *t)
{
	struct eng_layer *layer = t->layer;
	uint32_t known;
	int r = 0;

	pthread_mutex_lock(&layer->meta_lock);
	known = layer->hdr.log_segments;
	pthread_mutex_unlock(&layer->meta_lock);
	if (t->segments > known)
		r = eng_layer_update(layer, note_segments, &t->segments, NULL);
	return r < 0 ? r : write_zeros(t);
}

static uint64_t slots_len(const struct eng_layer *layer, uint64_t offset, uint32_t slots)
{
	return eng_layer_slot_offset(layer, slots) + fmt_seal_reserve(slots) - offset;
}

/* SG-2: on a disk that is nearly full as much as there is, down to what somebody waits for. */
static int make_slots(struct eng_space_task *t)
{
	int r = eng_io_allocate(t->layer->io, t->layer->file, t->offset, t->len);

	while (r == -ENOSPC && t->slots - t->first > t->least) {
		uint32_t half = (t->slots - t->first) / 2;

		t->slots = t->first + (half > t->least ? half : t->least);
		t->len = slots_len(t->layer, t->offset, t->slots);
		r = eng_io_allocate(t->layer->io, t->layer->file, t->offset, t->len);
	}
	if (r == -EOPNOTSUPP)
		r = eng_io_truncate(t->layer->io, t->layer->file, t->offset + t->len);
	return r;
}

static void space_made(struct eng_msg *msg);

static void task_space(struct eng_task *task)
{
	struct eng_space_task *t = (struct eng_space_task *)((char *)task -
							     offsetof(struct eng_space_task, task));

	switch (t->kind) {
	case SPACE_SLOTS: t->result = make_slots(t); break;
	case SPACE_SEGMENT: t->result = make_segment(t); break;
	case SPACE_WRITTEN: t->result = write_zeros(t);
	}
	atomic_fetch_sub(&t->layer->spacing, 1);
	t->msg.run = space_made;
	eng_queue_post(t->disk->queue, &t->msg);
}

/* --- on the worker --- */

/* Once a layer is frozen and drained its log belongs to whoever hardens it (FL-6). */
static bool log_is_ours(struct eng_layer *layer)
{
	return !eng_layer_fired(layer) || atomic_load(&layer->inflight) || !eng_flush_quiet(layer);
}

static void segment_made(struct eng_disk *disk, struct eng_layer *layer,
			 const struct eng_space_task *t)
{
	layer->segmenting = false;
	if (t->result == 0 && log_is_ours(layer)) {
		layer->log.next = t->offset;
		layer->log.next_len = t->len;
	}
	eng_flush_continue(disk, layer, t->result);
}

static void written_made(struct eng_layer *layer, const struct eng_space_task *t)
{
	layer->writing_ahead = false;
	if (t->result < 0)
		return;
	layer->written_next = t->slots;
	layer->written_end = t->slots + (uint32_t)(t->len >> layer->block_bits);
}

static void space_made(struct eng_msg *msg)
{
	struct eng_space_task *t = (struct eng_space_task *)((char *)msg -
							     offsetof(struct eng_space_task, msg));
	struct eng_disk *disk = t->disk;
	struct eng_layer *layer = t->layer;
	int r = t->result;

	switch (t->kind) {
	case SPACE_SLOTS:
		layer->extending = false;
		if (r == 0) {
			layer->slots_ready = t->slots;
			if (layer->chunk_slots > t->slots - t->first)
				layer->chunk_slots = t->slots - t->first;
		}
		break;
	case SPACE_SEGMENT: segment_made(disk, layer, t); break;
	case SPACE_WRITTEN: written_made(layer, t); r = 0; /* it was only meant to help */
	}
	free(t);
	disk->background--;
	eng_write_unstall(disk, r);
	eng_layer_put(layer);
}

static int submit(struct eng_disk *disk, struct eng_layer *layer, const struct eng_space_task *what)
{
	struct eng_space_task *t = malloc(sizeof(*t));

	if (!t)
		return -ENOMEM;
	*t = *what;
	t->disk = disk;
	t->layer = eng_layer_get(layer);
	t->task.run = task_space;
	disk->background++;
	atomic_fetch_add(&layer->spacing, 1);
	/* Never behind other background work: a write, and with it a cut, may come to wait for it. */
	eng_pool_submit(disk->pool, ENG_POOL_URGENT, &t->task);
	return 0;
}

static int extend(struct eng_disk *disk, struct eng_layer *layer, uint32_t need)
{
	uint32_t max = (uint32_t)(CHUNK_MAX >> layer->block_bits);
	uint32_t chunk = layer->chunk_slots ? layer->chunk_slots * 2 : CHUNK_MIN;
	struct eng_space_task t = {.kind = SPACE_SLOTS};
	uint64_t slots;
	int r;

	if (layer->extending)
		return 0;
	chunk = chunk < max ? chunk : max;
	layer->chunk_slots = chunk;
	slots = (uint64_t)layer->slots_ready + (need > chunk ? need : chunk);
	if (slots >= FMT_SLOT_NONE)
		return -EFBIG;
	t.slots = (uint32_t)slots;
	t.first = layer->slots_ready;
	t.least = need ? need : CHUNK_MIN / 4;
	t.offset = eng_layer_slot_offset(layer, layer->slots_ready);
	t.len = slots_len(layer, t.offset, t.slots);
	layer->extending = true;
	r = submit(disk, layer, &t);
	if (r < 0)
		layer->extending = false;
	return r;
}

static uint32_t segment_slots(const struct eng_layer *layer)
{
	return ENG_LOG_SEGMENT >> layer->block_bits;
}

static int make_next_segment(struct eng_disk *disk, struct eng_layer *layer)
{
	uint32_t slots = segment_slots(layer);
	struct eng_space_task t = {.kind = SPACE_SEGMENT};
	int r;

	if (layer->segmenting || layer->log.next)
		return 0;
	if (layer->next_slot + slots > layer->slots_ready)
		return extend(disk, layer, slots);
	t.offset = eng_layer_slot_offset(layer, eng_space_take(layer, slots));
	t.len = (uint64_t)slots << layer->block_bits;
	t.segments = layer->log.segments;
	layer->segmenting = true;
	r = submit(disk, layer, &t);
	if (r < 0)
		layer->segmenting = false;
	return r;
}

static bool written_has(const struct eng_layer *layer, uint32_t slots)
{
	return layer->written_end - layer->written_next >= slots;
}

uint32_t eng_space_take(struct eng_layer *layer, uint32_t slots)
{
	uint32_t slot = layer->next_slot;

	if (slots && written_has(layer, slots)) {
		slot = layer->written_next;
		layer->written_next += slots;
		return slot;
	}
	assert(slots <= layer->slots_ready - slot);
	layer->next_slot += slots;
	return slot;
}

/*
 * T15: log bytes that must be free before one more write may be promised @runs mappings: every promised
 * write might be flushed alone, the published ones go together, and each segment ends in a LINK. What
 * one write can need fits a fresh segment, so that it never waits in vain.
 */
static uint64_t log_need(const struct eng_layer *layer, uint32_t runs)
{
	uint64_t all = (uint64_t)layer->promised_runs + runs + layer->pending_count;

	/* A record's own bytes and its padding are less than two granules. */
	return layer->log_granule * (2ull * (layer->promised_writes + 1) + 4) +
	       sizeof(struct fmt_run_disk) * all;
}

bool eng_space_have(struct eng_disk *disk, struct eng_layer *layer, uint32_t slots, uint32_t runs,
		    int *error)
{
	bool room = eng_log_room(layer) >= log_need(layer, runs) || layer->kind == FMT_KIND_RAW;
	/* A segment's slots stay in hand: the log must be able to grow when the disk is full. */
	uint32_t keep = segment_slots(layer);

	if (room && layer->next_slot + slots + keep <= layer->slots_ready)
		return true;
	if (layer->next_slot + slots + keep > layer->slots_ready)
		*error = extend(disk, layer, slots + keep);
	if (*error == 0 && !room) {
		if (layer->log.next)
			eng_flush_background(disk); /* uses the current segment up */
		else
			*error = make_next_segment(disk, layer);
	}
	return false;
}

void eng_space_segment(struct eng_disk *disk, struct eng_layer *layer)
{
	int r = make_next_segment(disk, layer);

	if (r < 0)
		eng_flush_continue(disk, layer, r);
}

void eng_space_note_flush(struct eng_disk *disk, uint32_t mappings)
{
	if (mappings > FEW)
		disk->small_flushes = 0;
	else if (mappings && disk->small_flushes < FLUSHY)
		disk->small_flushes++;
}

/*
 * SP-6: a flush after a write into allocated but unwritten space makes the file system write its
 * extents, too, which is most of what the flush costs. A disk that flushes every few writes gets slots
 * in space written beforehand; others would pay twice the bytes for nothing.
 */
static void write_ahead(struct eng_disk *disk, struct eng_layer *layer)
{
	uint32_t slots = WRITTEN_LEN >> layer->block_bits;
	struct eng_space_task t = {.kind = SPACE_WRITTEN};

	if (disk->small_flushes < FLUSHY || layer->writing_ahead || written_has(layer, slots / 4) ||
	    layer->next_slot + slots + segment_slots(layer) > layer->slots_ready)
		return;
	layer->written_end = layer->written_next; /* what is left is too little to matter */
	t.slots = eng_space_take(layer, slots);
	t.offset = eng_layer_slot_offset(layer, t.slots);
	t.len = (uint64_t)slots << layer->block_bits;
	layer->writing_ahead = submit(disk, layer, &t) == 0;
}

/* T6: rolls start at half the bound; at the whole bound a prepared cut gives way, but for the roll. */
static void roll_ahead(struct eng_disk *disk, struct eng_layer *head)
{
	struct eng_succ *succ;

	if (head->log.bytes < disk->log_bound / 2 && head->next_slot < disk->map_bound / 2)
		return;
	if (!disk->rolling) {
		disk->rolling = true;
		disk->ops->roll(disk->owner, disk);
	}
	if (head->log.bytes < disk->log_bound && head->next_slot < disk->map_bound)
		return;
	succ = atomic_load(&head->succ);
	if (succ && !succ->cut->is_roll)
		eng_cut_abandon(succ->cut);
}

void eng_space_ahead(struct eng_disk *disk, struct eng_layer *layer)
{
	const struct eng_log *log = &layer->log;
	uint32_t ready = layer->slots_ready - layer->next_slot;

	if (layer->kind != FMT_KIND_OVERLAY)
		return;
	if (ready < layer->chunk_slots / 2 || ready < CHUNK_MIN / 2)
		extend(disk, layer, 0);
	if (!log->next && log->segment + log->segment_len - log->offset < log->segment_len / 2)
		make_next_segment(disk, layer);
	if (disk->journal ? eng_journal_room(disk->journal) < ENG_JOURNAL_ENTRIES / 2
			  : layer->pending_count > PENDING_MAX / 2)
		eng_flush_background(disk);
	write_ahead(disk, layer);
	eng_build_trim(disk, 1);
	if (disk->ops && layer == disk->head)
		roll_ahead(disk, layer);
}
