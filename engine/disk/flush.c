/* SPDX-License-Identifier: MIT */
/*
 * flush.c - rounds: data durable, then the record of its mappings, then the acknowledgement (FL-*).
 * Worker only.
 *
 * T9: a round takes the mappings published when it starts, before its fdatasync is submitted. T10: a
 * flush that finds a round under way waits for the next one. T12: a flush goes through every layer of
 * the chain that is not durable, oldest first; it never waits for another disk. T16: a failed sync
 * poisons the layer, and with it every later flush above.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/disk/part.h"

struct eng_round {
	struct eng_disk *disk;
	struct eng_layer *layer;
	bool active;
	bool claimed; /* of a frozen layer: ends in hardened */
	bool wants_segment;
	int result;
	unsigned ops;         /* under way */
	uint64_t gen, number; /* captured at the start */
	uint64_t first;       /* oldest journal number among the mappings; 0: none */
	struct fmt_run *runs; /* captured mappings */
	uint32_t count, logged, taken;
	struct eng_op sync, record;
	struct iovec iov;
	void *buf;
	struct eng_waiter *now, *next;
};

static void flush_layer(struct eng_disk *disk, struct eng_layer *layer, struct eng_waiter *w);
static void round_next_record(struct eng_round *round, bool with_sync);

bool eng_flush_quiet(const struct eng_layer *layer)
{
	return !layer->round || !layer->round->active;
}

/* --- what a finished round frees --- */

/* The oldest layers that are hardened need no flush any more; their journal entries are void. */
void eng_flush_advance(struct eng_disk *disk)
{
	while (disk->first_undurable + 1 < disk->nlayers) {
		struct eng_layer *layer = disk->layers[disk->first_undurable];

		if (atomic_load(&layer->harden) != ENG_HARDEN_DONE)
			return;
		if (disk->journal && layer->journal_tag != UINT32_MAX) {
			eng_journal_drop_layer(disk->journal, layer->journal_tag);
			layer->journal_tag = UINT32_MAX;
		}
		disk->first_undurable++;
	}
}

/* The oldest journal number of @layer that no durable record covers, as this worker knows it. */
static uint64_t first_uncovered(const struct eng_layer *layer)
{
	const struct eng_round *round = layer->round;

	return round && round->active && round->first ? round->first : layer->first_uncovered;
}

/*
 * JN-5: entries go once the logs of all layers cover them. Only the worker's own knowledge counts: the
 * log of a frozen layer may be another thread's just now.
 */
static void drop_journal(struct eng_disk *disk)
{
	uint64_t upto, first;

	if (!disk->journal)
		return;
	eng_flush_advance(disk);
	upto = eng_journal_last(disk->journal);
	for (uint32_t i = disk->first_undurable; i < disk->nlayers; i++) {
		struct eng_layer *layer = disk->layers[i];

		if (atomic_load(&layer->harden) == ENG_HARDEN_DONE)
			continue;
		first = first_uncovered(layer);
		if (first && first - 1 < upto)
			upto = first - 1;
	}
	eng_journal_drop(disk->journal, upto);
}

void eng_flush_hardened(struct eng_disk *disk)
{
	drop_journal(disk);
	if (disk->stalled)
		eng_write_unstall(disk, 0);
}

static void round_end(struct eng_round *round)
{
	struct eng_disk *disk = round->disk;
	struct eng_layer *layer = round->layer;
	struct eng_waiter *now = round->now, *next = round->next, *w;
	int r = round->result;

	if (r < 0) {
		eng_layer_poison(layer, r);
		if (round->first)
			layer->first_uncovered = round->first;
	} else {
		layer->synced_gen = round->gen;
	}
	free(round->runs);
	free(round->buf);
	round->runs = NULL;
	round->buf = NULL;
	round->now = NULL;
	round->next = NULL;
	round->active = false;
	if (round->claimed)
		atomic_store(&layer->harden, r < 0 ? ENG_HARDEN_FAILED : ENG_HARDEN_DONE);
	else
		eng_layer_leave(layer);
	disk->background--;
	drop_journal(disk);
	while ((w = now)) {
		now = w->next;
		w->wake(w, r < 0 ? -ENOTRECOVERABLE : 0);
	}
	while ((w = next)) {
		next = w->next;
		flush_layer(disk, layer, w);
	}
	if (disk->stalled)
		eng_write_unstall(disk, 0);
}

/* --- a round --- */

static void round_op_ended(struct eng_round *round, int64_t res)
{
	struct eng_layer *layer = round->layer;

	if (res < 0 && res != -ECANCELED && round->result == 0)
		round->result = (int)res;
	if (--round->ops)
		return;
	if (round->result == 0 && round->buf) {
		uint64_t number = layer->log.journal_seq;

		if (round->logged + round->taken == round->count)
			number = round->number;
		eng_log_advance(layer, round->iov.iov_len, round->taken, number);
		round->logged += round->taken;
		free(round->buf);
		round->buf = NULL;
	}
	if (round->result == 0 && round->logged < round->count)
		round_next_record(round, false);
	else
		round_end(round);
}

static void sync_done(struct eng_op *op)
{
	round_op_ended((struct eng_round *)((char *)op - offsetof(struct eng_round, sync)),
		       op->res);
}

static void record_done(struct eng_op *op)
{
	round_op_ended((struct eng_round *)((char *)op - offsetof(struct eng_round, record)),
		       op->res);
}

static int encode_record(struct eng_round *round)
{
	uint32_t left = round->count - round->logged;
	size_t cap = fmt_record_size(left < FMT_RECORD_RUNS_MAX ? left : FMT_RECORD_RUNS_MAX, 0) +
		     FMT_PAGE;
	int64_t len;

	cap = (cap + FMT_PAGE - 1) / FMT_PAGE * FMT_PAGE;
	if (posix_memalign(&round->buf, FMT_PAGE, cap)) {
		round->buf = NULL;
		return -ENOMEM;
	}
	len = eng_log_encode(round->layer, round->runs + round->logged, left, round->number,
			     round->buf, cap, &round->record.offset, &round->taken);
	if (len < 0) {
		free(round->buf);
		round->buf = NULL;
		return (int)len;
	}
	round->iov = (struct iovec){round->buf, (size_t)len};
	return 0;
}

/*
 * The fdatasync and the first record go out together, linked: the record starts when the data is
 * durable and not at all when that failed. Record n+1 starts when n is durable (T13).
 */
static void round_next_record(struct eng_round *round, bool with_sync)
{
	struct eng_ring *ring = eng_queue_ring(round->disk->queue);
	bool with_record = round->logged < round->count;
	int r = with_record ? encode_record(round) : 0;

	if (r == -ENOSPC && !round->layer->log.next) {
		with_record = false;
		round->wants_segment = !with_sync;
		if (!with_sync) {
			eng_space_segment(round->disk, round->layer);
			return; /* eng_flush_continue() goes on */
		}
		r = 0;
	}
	if (r < 0) {
		round->result = r;
		round_end(round);
		return;
	}
	round->ops = with_sync + with_record;
	if (with_sync) {
		round->sync.kind = ENG_OP_FDATASYNC;
		round->sync.file = round->layer->file;
		round->sync.link = with_record;
		round->sync.done = sync_done;
		eng_ring_queue(ring, &round->sync);
	}
	if (with_record) {
		round->record.kind = ENG_OP_WRITE;
		round->record.dsync = true;
		round->record.file = round->layer->file;
		round->record.iov = &round->iov;
		round->record.iovcnt = 1;
		round->record.done = record_done;
		eng_ring_queue(ring, &round->record);
	}
}

void eng_flush_continue(struct eng_disk *disk, struct eng_layer *layer, int result)
{
	struct eng_round *round = layer->round;

	(void)disk;
	if (!round || !round->wants_segment)
		return;
	round->wants_segment = false;
	if (result < 0) {
		round->result = result;
		round_end(round);
		return;
	}
	round_next_record(round, false);
}

/* Takes over the published mappings (T9) and goes. In flight (or claimed) is counted already. */
static void round_start(struct eng_disk *disk, struct eng_layer *layer, bool claimed,
			struct eng_waiter *w)
{
	struct eng_round *round = layer->round;

	assert(!round->active);
	w->next = NULL;
	round->now = w;
	round->disk = disk;
	round->active = true;
	round->claimed = claimed;
	round->result = 0;
	round->gen = layer->dirty_gen;
	round->number = layer->pending_number;
	round->first = layer->first_uncovered;
	layer->first_uncovered = 0;
	round->runs = layer->pending;
	round->count = layer->pending_count;
	round->logged = 0;
	layer->pending = NULL;
	layer->pending_count = 0;
	layer->pending_cap = 0;
	disk->background++;
	if (w != &disk->emptying)
		eng_space_note_flush(disk, round->count);
	round_next_record(round, true);
}

static bool is_clean(const struct eng_layer *layer)
{
	return layer->synced_gen == layer->dirty_gen && !layer->pending_count;
}

/* A frozen layer with nothing in flight is hardened once, by whoever claims it. */
static void harden_frozen(struct eng_disk *disk, struct eng_layer *layer, struct eng_waiter *w)
{
	int state = ENG_HARDEN_NONE;

	if (atomic_compare_exchange_strong(&layer->harden, &state, ENG_HARDEN_BUSY)) {
		round_start(disk, layer, true, w);
		return;
	}
	if (state == ENG_HARDEN_BUSY) {
		w->next = disk->hardening;
		disk->hardening = w;
		state = atomic_load(&layer->harden);
		if (state == ENG_HARDEN_BUSY)
			return; /* the coordinator's post comes after its last word */
		disk->hardening = w->next;
	}
	w->wake(w, state == ENG_HARDEN_DONE ? 0 : -ENOTRECOVERABLE);
}

/* Makes durable what @layer acknowledged so far; then wakes @w, maybe at once. */
static void flush_layer(struct eng_disk *disk, struct eng_layer *layer, struct eng_waiter *w)
{
	if (atomic_load(&layer->poisoned)) {
		w->wake(w, -ENOTRECOVERABLE);
		return;
	}
	if (!layer->round) {
		layer->round = calloc(1, sizeof(*layer->round));
		if (!layer->round) {
			w->wake(w, -ENOMEM);
			return;
		}
		layer->round->layer = layer;
	}
	if (layer->round->active) {
		w->next = layer->round->next;
		layer->round->next = w;
		return;
	}
	if (!eng_layer_enter(layer)) {
		if (atomic_load(&layer->inflight) == 0) {
			harden_frozen(disk, layer, w);
			return;
		}
		/* Our own writes are still in flight there: nobody can claim it before they end. */
		atomic_fetch_add(&layer->inflight, 1);
	}
	if (is_clean(layer)) {
		eng_layer_leave(layer);
		w->wake(w, 0);
		return;
	}
	round_start(disk, layer, false, w);
}

/* --- a flush of the chain --- */

/* FL-9: looked at last: the error may have been another descriptor's, while ours saw none. */
static int poison_beneath(const struct eng_req *req)
{
	const struct eng_disk *disk = req->disk;

	for (uint32_t i = disk->first_undurable; i <= req->flush_last; i++)
		if (atomic_load(&disk->layers[i]->poisoned))
			return -ENOTRECOVERABLE;
	return 0;
}

static void flush_step(struct eng_req *req)
{
	if (req->flush_ordinal > req->flush_last)
		eng_req_end(req, poison_beneath(req));
	else
		flush_layer(req->disk, req->disk->layers[req->flush_ordinal], &req->waiter);
}

static void flush_woken(struct eng_waiter *w, int result)
{
	struct eng_req *req = (struct eng_req *)((char *)w - offsetof(struct eng_req, waiter));

	if (result == 0)
		req->flush_ordinal++;
	if (result < 0 && result != -EAGAIN)
		eng_req_end(req, result);
	else
		flush_step(req);
}

void eng_flush_chain(struct eng_disk *disk, struct eng_req *req)
{
	eng_disk_promote(disk);
	eng_flush_advance(disk);
	req->flush_ordinal = disk->first_undurable;
	req->flush_last = disk->nlayers - 1;
	req->waiter.wake = flush_woken;
	flush_step(req);
}

void eng_flush_start(struct eng_req *req)
{
	if (req->disk->read_only)
		eng_req_end(req, 0);
	else
		eng_flush_chain(req->disk, req);
}

/* --- in the background: an empty journal before a full one --- */

static void empty_step(struct eng_disk *disk)
{
	if (disk->emptying_ordinal < disk->nlayers)
		flush_layer(disk, disk->layers[disk->emptying_ordinal], &disk->emptying);
	else
		disk->is_emptying = false;
}

static void empty_woken(struct eng_waiter *w, int result)
{
	struct eng_disk *disk = (struct eng_disk *)((char *)w -
						    offsetof(struct eng_disk, emptying));

	if (result < 0 && result != -EAGAIN) {
		disk->is_emptying = false;
		if (disk->stalled)
			eng_write_unstall(disk, -ENOTRECOVERABLE);
		return;
	}
	if (result == 0)
		disk->emptying_ordinal++;
	empty_step(disk);
}

void eng_flush_background(struct eng_disk *disk)
{
	if (disk->is_emptying)
		return;
	eng_flush_advance(disk);
	disk->is_emptying = true;
	disk->emptying_ordinal = disk->first_undurable;
	disk->emptying.wake = empty_woken;
	empty_step(disk);
}
