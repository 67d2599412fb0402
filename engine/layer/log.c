/* SPDX-License-Identifier: MIT */
/*
 * log.c - a layer's map log: replay, and the records to come (spec/format.md ML-*).
 *
 * Record n+1 is written only after n is durable, so at most one record can be torn, and it is the
 * last (T13). Whoever writes calls encode, makes the bytes durable, then advance; nothing here does
 * I/O but the replay and the hardening.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/layer/layer.h"
#include "format/zero.h"

static uint64_t round_up(uint64_t v, uint64_t to)
{
	return (v + to - 1) / to * to;
}

/* --- replay --- */

struct replay {
	struct eng_layer *layer;
	struct eng_log log;
	uint8_t *buf; /* the current segment */
	uint64_t blocks, slots, slot_end;
	int (*each)(void *arg, const struct fmt_run *run);
	void *arg;
	struct fmt_error *err;
};

static int replay_load_segment(struct replay *rp, uint64_t offset, uint64_t len)
{
	struct eng_layer *layer = rp->layer;
	uint8_t *buf = NULL;
	ssize_t n;

	if (posix_memalign((void **)&buf, FMT_PAGE, round_up(len, FMT_PAGE)))
		return fmt_fail(rp->err, -ENOMEM, "%s: no memory for a log segment", layer->path);
	free(rp->buf);
	rp->buf = buf;
	n = eng_io_pread(layer->io, layer->file, buf, len, offset);
	if (n < 0)
		return fmt_fail(rp->err, (int)n, "%s: cannot read the log at %llu: %s", layer->path,
				(unsigned long long)offset, strerror((int)-n));
	if ((uint64_t)n < len)
		return fmt_fail(rp->err, -EUCLEAN,
				"%s: the file ends inside the log segment at %llu (ML-7)",
				layer->path, (unsigned long long)offset);
	rp->log.segment = offset;
	rp->log.segment_len = len;
	rp->log.offset = offset;
	return 0;
}

static void note_slots(struct replay *rp, uint64_t end)
{
	if (end > rp->slot_end)
		rp->slot_end = end;
}

static int replay_link(struct replay *rp, const struct fmt_record *rec)
{
	const struct eng_layer *layer = rp->layer;
	uint64_t bs = 1ull << layer->block_bits, off = rec->link_offset;

	if (off < layer->data_offset || (off - layer->data_offset) % bs || !rec->link_len ||
	    rec->link_len % bs || (off - layer->data_offset + rec->link_len) / bs > rp->slots)
		return fmt_fail(
			rp->err, -EUCLEAN,
			"%s: log record %llu links to a segment at %llu of %u bytes, outside the file (ML-6)",
			layer->path, (unsigned long long)rec->seq, (unsigned long long)off,
			rec->link_len);
	note_slots(rp, (off - layer->data_offset + rec->link_len) / bs);
	rp->log.segments++;
	rp->log.bytes += rec->link_len;
	return replay_load_segment(rp, off, rec->link_len);
}

static int replay_runs(struct replay *rp, const struct fmt_record *rec)
{
	struct fmt_error why = {{0}};
	struct fmt_run run;
	int r = 0;

	if (!(rec->flags & FMT_REC_DURABLE_FIRST) && rec->runs)
		return fmt_fail(rp->err, -ENOTSUP, "%s: one-flush log record %llu (ML-9)",
				rp->layer->path, (unsigned long long)rec->seq);
	for (uint32_t i = 0; i < rec->runs && r == 0; i++) {
		fmt_record_run(rec, i, &run);
		r = fmt_run_check(&run, rp->blocks, rp->slots, &why);
		if (r < 0)
			return fmt_fail(rp->err, r, "%s: log record %llu: %s", rp->layer->path,
					(unsigned long long)rec->seq, why.text);
		if (run.kind == FMT_RUN_DATA)
			note_slots(rp, (uint64_t)run.slot + run.count);
		r = rp->each(rp->arg, &run);
	}
	return r;
}

/*
 * ML-8: nothing valid may follow the first hole; else the hole is rot, not a torn tail (T13). Nor may
 * anything be in the last granule: only a LINK goes there, whose one sector is written whole or not.
 */
static int replay_check_tail(struct replay *rp, bool *dirty)
{
	const struct eng_layer *layer = rp->layer;
	uint32_t granule = layer->log_granule;
	uint64_t at = rp->log.offset - rp->log.segment;
	struct fmt_record rec;

	*dirty = false;
	for (; at < rp->log.segment_len; at += granule) {
		const uint8_t *p = rp->buf + at;
		uint64_t left = rp->log.segment_len - at;
		bool zero = fmt_is_zero(p, granule);

		*dirty = *dirty || !zero;
		if (!zero && left == granule)
			return fmt_fail(rp->err, -EUCLEAN,
					"%s: the log ends with record %llu, but its segment's last "
					"granule at %llu holds a damaged link (ML-8)",
					layer->path, (unsigned long long)rp->log.seq,
					(unsigned long long)(rp->log.segment + at));
		if (fmt_record_decode(p, left, layer->salt, &rec, NULL) == 0 &&
		    rec.seq > rp->log.seq)
			return fmt_fail(
				rp->err, -EUCLEAN,
				"%s: log record %llu is damaged: record %llu follows at %llu (ML-8)",
				layer->path, (unsigned long long)rp->log.seq + 1,
				(unsigned long long)rec.seq,
				(unsigned long long)(rp->log.segment + at));
	}
	if (rp->log.seq < layer->hdr.log_seq)
		return fmt_fail(
			rp->err, -EUCLEAN,
			"%s: the log ends with record %llu, the frozen header says %llu (ML-7)",
			layer->path, (unsigned long long)rp->log.seq,
			(unsigned long long)layer->hdr.log_seq);
	if (rp->log.segments < layer->hdr.log_segments)
		return fmt_fail(rp->err, -EUCLEAN,
				"%s: the log ends in segment %u of at least %u (ML-7)", layer->path,
				rp->log.segments, layer->hdr.log_segments);
	return 0;
}

static int replay_records(struct replay *rp)
{
	struct eng_layer *layer = rp->layer;
	uint32_t granule = layer->log_granule;
	struct fmt_error why = {{0}};
	struct fmt_record rec;
	int r;

	for (;;) {
		uint64_t at = rp->log.offset - rp->log.segment;

		if (at >= rp->log.segment_len)
			return 0;
		r = fmt_record_decode(rp->buf + at, rp->log.segment_len - at, layer->salt, &rec,
				      &why);
		if (r == -ENODATA)
			return 0;
		if (r < 0)
			return fmt_fail(rp->err, r, "%s: log at %llu: %s", layer->path,
					(unsigned long long)rp->log.offset, why.text);
		if (rec.seq != rp->log.seq + 1)
			return 0; /* an older record in recycled space is a hole too */
		rp->log.seq = rec.seq;
		if (rec.journal_seq > rp->log.journal_seq)
			rp->log.journal_seq = rec.journal_seq;
		rp->log.offset += round_up(rec.len, granule);
		r = rec.flags & FMT_REC_LINK ? replay_link(rp, &rec) : replay_runs(rp, &rec);
		if (r < 0)
			return r;
	}
}

/* The dropped tail must never be read as a record again (T13). */
static int wipe_tail(struct replay *rp)
{
	struct eng_layer *layer = rp->layer;
	uint64_t at = rp->log.offset - rp->log.segment;
	int r;

	memset(rp->buf + at, 0, rp->log.segment_len - at);
	r = eng_io_pwrite(layer->io, layer->file, rp->buf + at, rp->log.segment_len - at,
			  rp->log.offset);
	if (r == 0)
		r = eng_io_fdatasync(layer->io, layer->file);
	if (r < 0)
		fmt_fail(rp->err, r, "%s: cannot overwrite the torn end of the log: %s",
			 layer->path, strerror(-r));
	return r;
}

/* SP-1: the size of an active overlay says what is allocated: its slots and their reserve. */
static uint32_t slots_within(const struct eng_layer *layer, uint64_t size)
{
	uint32_t lo = 0, hi = UINT32_MAX - 1;

	while (lo < hi) {
		uint32_t mid = lo + (hi - lo + 1) / 2;

		if (eng_layer_slot_offset(layer, mid) + fmt_seal_reserve(mid) <= size)
			lo = mid;
		else
			hi = mid - 1;
	}
	return lo;
}

int eng_log_replay(struct eng_layer *layer, int (*each)(void *arg, const struct fmt_run *run),
		   void *arg, struct fmt_error *err)
{
	uint64_t bs = 1ull << layer->block_bits, slots;
	struct replay rp = {
		.layer = layer,
		.each = each,
		.arg = arg,
		.err = err,
		.blocks = (atomic_load(&layer->size) + bs - 1) / bs,
	};
	struct eng_stat st;
	bool dirty;
	int r = eng_io_fstat(layer->io, layer->file, &st);

	if (r < 0)
		return fmt_fail(err, r, "%s: %s", layer->path, strerror(-r));
	slots = st.size > layer->data_offset ? (st.size - layer->data_offset) / bs : 0;
	rp.slots = slots < UINT32_MAX ? slots : UINT32_MAX - 1;
	rp.log.segments = 1;
	rp.log.bytes = layer->hdr.log0_len;
	r = replay_load_segment(&rp, FMT_LOG0_OFFSET, layer->hdr.log0_len);
	if (r == 0)
		r = replay_records(&rp);
	if (r == 0)
		r = replay_check_tail(&rp, &dirty);
	if (r == 0 && dirty && layer->writable)
		r = wipe_tail(&rp);
	if (r == 0) {
		layer->log = rp.log;
		layer->next_slot = (uint32_t)rp.slot_end;
		layer->slots_ready = slots_within(layer, st.size);
		if (layer->slots_ready < layer->next_slot)
			layer->slots_ready = layer->next_slot;
	}
	free(rp.buf);
	return r;
}

/* --- appending --- */

uint64_t eng_log_room(const struct eng_layer *layer)
{
	const struct eng_log *log = &layer->log;

	return log->segment + log->segment_len - log->offset + log->next_len;
}

int64_t eng_log_encode(struct eng_layer *layer, const struct fmt_run *runs, uint32_t count,
		       uint64_t journal_seq, void *buf, size_t cap, uint64_t *offset,
		       uint32_t *taken)
{
	const struct eng_log *log = &layer->log;
	uint32_t granule = layer->log_granule;
	/* The last granule of a segment is kept for its LINK. */
	uint64_t left = log->segment + log->segment_len - log->offset - granule;
	struct fmt_record rec = {.seq = log->seq + 1, .flags = FMT_REC_DURABLE_FIRST};
	uint32_t n = count < FMT_RECORD_RUNS_MAX ? count : FMT_RECORD_RUNS_MAX;

	if (!count)
		return 0;
	*offset = log->offset;
	if (left < round_up(fmt_record_size(1, 0), granule)) {
		if (!log->next)
			return -ENOSPC;
		rec.flags = FMT_REC_LINK;
		rec.link_offset = log->next;
		rec.link_len = (uint32_t)log->next_len;
		rec.journal_seq = log->journal_seq;
		*taken = 0;
		return fmt_record_encode(&rec, NULL, NULL, layer->salt, granule, buf, cap);
	}
	while (round_up(fmt_record_size(n, 0), granule) > left)
		n = n - (n > 64 ? 32 : 1);
	rec.runs = n;
	/* Runs lie in journal order only when all of them are in: a part covers nothing new. */
	rec.journal_seq = n == count ? journal_seq : log->journal_seq;
	*taken = n;
	return fmt_record_encode(&rec, runs, NULL, layer->salt, granule, buf, cap);
}

void eng_log_advance(struct eng_layer *layer, uint64_t len, uint32_t taken, uint64_t journal_seq)
{
	struct eng_log *log = &layer->log;

	log->seq++;
	if (taken) {
		log->offset += len;
		log->journal_seq = journal_seq;
		return;
	}
	assert(log->next);
	log->segment = log->next;
	log->segment_len = log->next_len;
	log->offset = log->next;
	log->bytes += log->next_len;
	log->segments++;
	log->next = 0;
	log->next_len = 0;
}

int eng_layer_add_pending(struct eng_layer *layer, const struct fmt_run *run, uint64_t number)
{
	struct fmt_run *last = layer->pending_count ? &layer->pending[layer->pending_count - 1]
						    : NULL;

	if (number)
		layer->pending_number = number;
	if (last && last->kind == run->kind && last->block + last->count == run->block &&
	    last->count + run->count < FMT_RUN_COUNT_MAX &&
	    (run->kind == FMT_RUN_ZERO || last->slot + last->count == run->slot)) {
		last->count += run->count;
		return 0;
	}
	if (layer->pending_count == layer->pending_cap) {
		uint32_t cap = layer->pending_cap ? layer->pending_cap * 2 : 64;
		struct fmt_run *p = realloc(layer->pending, cap * sizeof(*p));

		if (!p)
			return -ENOMEM;
		layer->pending = p;
		layer->pending_cap = cap;
	}
	layer->pending[layer->pending_count++] = *run;
	return 0;
}

/* The next segment, made here and now: recovery finds the prepared one gone with its process. */
static int grow_sync(struct eng_layer *layer)
{
	uint64_t len = ENG_LOG_SEGMENT, bs = 1ull << layer->block_bits;
	uint32_t slots = (uint32_t)(len / bs);
	uint64_t offset = eng_layer_slot_offset(layer, layer->next_slot);
	uint8_t *zeros = NULL;
	int r;

	if (posix_memalign((void **)&zeros, FMT_PAGE, len))
		return -ENOMEM;
	memset(zeros, 0, len);
	r = eng_io_allocate(layer->io, layer->file, offset, len);
	if (r == 0 || r == -EOPNOTSUPP)
		r = eng_io_pwrite(layer->io, layer->file, zeros, len, offset);
	if (r == 0)
		r = eng_io_fdatasync(layer->io, layer->file);
	free(zeros);
	if (r < 0)
		return r;
	layer->next_slot += slots;
	if (layer->slots_ready < layer->next_slot)
		layer->slots_ready = layer->next_slot;
	layer->log.next = offset;
	layer->log.next_len = len;
	return 0;
}

/* Writes the pending mappings, record by record. The data is durable already. */
static int log_pending_sync(struct eng_layer *layer)
{
	uint8_t *buf = NULL;
	uint32_t done = 0, taken = 0;
	uint64_t offset;
	int64_t len;
	int r = 0;

	if (posix_memalign((void **)&buf, FMT_PAGE, ENG_LOG_BUF))
		return -ENOMEM;
	while (r == 0 && done < layer->pending_count) {
		uint64_t number = layer->pending_number;

		len = eng_log_encode(layer, layer->pending + done, layer->pending_count - done,
				     number, buf, ENG_LOG_BUF, &offset, &taken);
		if (len == -ENOSPC && !layer->log.next) {
			r = grow_sync(layer);
			continue;
		}
		if (len < 0) {
			r = (int)len;
			break;
		}
		if (done + taken < layer->pending_count)
			number = layer->log.journal_seq;
		r = eng_io_pwrite(layer->io, layer->file, buf, (size_t)len, offset);
		if (r == 0)
			r = eng_io_fdatasync(layer->io, layer->file);
		if (r == 0) {
			eng_log_advance(layer, (uint64_t)len, taken, number);
			done += taken;
		}
	}
	if (r == 0)
		layer->pending_count = 0;
	free(buf);
	return r;
}

int eng_layer_harden_sync(struct eng_layer *layer)
{
	int r = atomic_load(&layer->poisoned);

	if (r < 0)
		return -ENOTRECOVERABLE;
	if (layer->kind == FMT_KIND_QCOW2)
		return 0;
	if (layer->synced_gen != layer->dirty_gen)
		r = eng_io_fdatasync(layer->io, layer->file);
	if (r == 0)
		r = log_pending_sync(layer);
	if (r < 0) {
		eng_layer_poison(layer, r);
		return r;
	}
	layer->synced_gen = layer->dirty_gen;
	return 0;
}
