/* SPDX-License-Identifier: MIT */
/*
 * rig.c - see rig.h. A worker thread owns its queue, its disks and its slots; the snapshot thread
 * owns the entries that it adds to the log. rig->lock guards the snapshot that may be cancelled.
 */
#include "tests/crash/rig.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/io/fdcache.h"
#include "engine/fold/fold.h"

#define LENGTH_MAX (64u << 10)
#define HANG_NS    (60ull * 1000000000)

static const struct {
	const char *vm, *name;
	uint64_t size;
	uint32_t block_bits;
	bool independent;
} disks[RIG_DISKS] = {
	{"a", "d0", 1 << 20, 12, false}, {"a", "d1", 2 << 20, 16, false},
	{"b", "d0", 1 << 20, 12, false}, {"b", "d1", (1 << 20) + 300 * 4096 + 5 * 512, 12, false},
	{"b", "ind", 1 << 20, 14, true},
};

const char *rig_disk_name(unsigned disk)
{
	static char names[RIG_DISKS][16];

	snprintf(names[disk], sizeof(names[disk]), "%s/%s", disks[disk].vm, disks[disk].name);
	return names[disk];
}

const char *rig_snap_disk(const char *snapshot, unsigned disk)
{
	static char name[64];

	snprintf(name, sizeof(name), "c@%s/%s/%s", snapshot, disks[disk].vm, disks[disk].name);
	return name;
}

uint64_t rig_size(unsigned disk)
{
	return disks[disk].size;
}

bool rig_is_member(unsigned disk)
{
	return !disks[disk].independent;
}

size_t rig_log_size(size_t ops)
{
	return sizeof(struct rig_log) + ops * sizeof(struct hist_op);
}

void rig_log_reset(struct rig_log *log, size_t ops, uint64_t first_id)
{
	memset(log, 0, rig_log_size(ops));
	log->history.disks = RIG_DISKS;
	for (unsigned d = 0; d < RIG_DISKS; d++)
		log->history.size[d] = disks[d].size;
	log->history.first_id = first_id;
	log->history.room = ops;
	log->history.ops = log->ops;
}

__attribute__((format(printf, 2, 3))) static void fail(struct rig *rig, const char *fmt, ...)
{
	va_list args;

	if (!atomic_exchange(&rig->log->failed, true)) {
		va_start(args, fmt);
		vsnprintf(rig->log->why, sizeof(rig->log->why), fmt, args);
		va_end(args);
	}
	atomic_store(&rig->stop, true);
}

/* --- the store --- */

static int make_rows(struct eng_store *store, struct fmt_error *err)
{
	static const char *const vms[] = {"a", "b", "x"};
	struct cat_collection c = {.name = "c"};
	struct cat_vm vm = {0};
	int r = eng_catalog_begin(store->catalog);

	if (r < 0)
		return r;
	eng_store_new_id(store, &c.id);
	eng_catalog_put_collection(store->catalog, &c);
	for (int i = 0; i < 3; i++) {
		eng_store_new_id(store, &vm.id);
		strcpy(vm.name, vms[i]);
		eng_catalog_put_vm(store->catalog, &vm);
		if (i < 2)
			eng_catalog_put_member(store->catalog, &c.id, &vm.id);
	}
	return eng_catalog_commit(store->catalog, err);
}

int rig_make_store(struct eng_io *io, const char *dir, uint64_t seed, struct fmt_error *err)
{
	struct eng_store *store;
	int r = eng_store_init(io, dir, err), closed;

	if (r == 0)
		r = eng_store_open(io, dir, NULL, err, &store);
	if (r < 0)
		return r;
	r = make_rows(store, err);
	for (unsigned d = 0; r == 0 && d < RIG_DISKS; d++) {
		struct eng_disk_make make = {
			.vm = disks[d].vm,
			.name = disks[d].name,
			.size = disks[d].size,
			.independent = disks[d].independent,
			.block_bits = disks[d].block_bits,
		};

		if (seed % 4 == 3)
			make.block_bits = 12 + (uint32_t)(seed / 4 + d) % 5;
		r = eng_store_make_disk(store, &make, err);
	}
	closed = eng_store_close(store);
	return r < 0 ? r : closed;
}

/* --- workers --- */

struct slot {
	struct slot *next;
	struct hist_op *op; /* NULL: a read */
	uint8_t *buf;
	struct iovec iov[3];
};

struct worker {
	struct rig *rig;
	uint64_t rng;
	unsigned first, disks; /* of the rig's, every second one */
	struct eng_queue *queue;
	struct eng_disk *disk[RIG_DISKS];
	struct slot *slots, *free;
	unsigned in_flight;
	unsigned flush_first; /* so many disks are flushed before anything else */
	pthread_t thread;
};

static uint64_t pick(struct worker *w, uint64_t below)
{
	return test_random(&w->rng) % below;
}

/* Half of all goes to a small part of the disk, so that requests meet. */
static void pick_range(struct worker *w, unsigned disk, uint64_t *offset, uint32_t *length)
{
	uint64_t size = disks[disk].size, unit = 1, area = size;

	switch (pick(w, 8)) {
	case 0:
	case 1:
	case 2:
		unit = 4096;
		*length = (uint32_t)(1 + pick(w, 4)) * 4096;
		break;
	case 3:
	case 4:
		unit = 512;
		*length = (uint32_t)(1 + pick(w, 20)) * 512;
		break;
	case 5:
	case 6: *length = (uint32_t)(1 + pick(w, 9000)); break;
	default: unit = 512; *length = (uint32_t)(1 + pick(w, LENGTH_MAX / 512)) * 512;
	}
	if (pick(w, 2))
		area = 128 << 10;
	*offset = pick(w, (area - *length) / unit + 1) * unit;
	if (pick(w, 64) == 0)
		*offset = (size - *length) / unit * unit;
}

/* The write's content, not aligned one time in four, in up to three pieces. */
static unsigned fill(struct worker *w, struct slot *slot)
{
	uint8_t *p = slot->buf + (pick(w, 4) ? 0 : 1 + pick(w, 511));
	uint32_t left = slot->op ? slot->op->length : 0, n = 0;

	hist_fill(p, slot->op->disk, hist_id(&w->rig->log->history, slot->op), slot->op->offset,
		  left);
	while (left) {
		uint32_t part = n < 2 && left > 512 && pick(w, 4) == 0
					? (uint32_t)(pick(w, left / 512) + 1) * 512
					: left;

		if (part > left || n == 2)
			part = left;
		slot->iov[n++] = (struct iovec){p, part};
		p += part;
		left -= part;
	}
	return n;
}

static bool needs_sectors(const struct worker *w, const struct hist_op *op)
{
	if (w->rig->sectors)
		return true;
	return op->kind == HIST_ZERO && w->rig->sectors_punched &&
	       (!rig_is_member(op->disk) || !atomic_load(&w->rig->log->overlaid));
}

static void decide(struct worker *w, struct hist_op *op, uint8_t *code)
{
	struct rig *rig = w->rig;
	uint64_t x = pick(w, 256);
	bool first = w->flush_first > 0;

	op->disk = (uint8_t)(w->first + 2 * (first ? --w->flush_first : pick(w, w->disks)));
	pick_range(w, op->disk, &op->offset, &op->length);
	op->fua = pick(w, 256) < rig->fuas;
	*code = ENG_WRITE;
	if (first || x < rig->flushes) {
		op->kind = HIST_FLUSH;
		op->offset = 0;
		op->length = 0;
		op->fua = false;
		*code = ENG_FLUSH;
	} else if (x < rig->flushes + 20) {
		op->kind = HIST_ZERO;
		*code = x % 2 ? ENG_WRITE_ZEROES : ENG_DISCARD;
	} else if (x < rig->flushes + 32) {
		*code = ENG_READ;
		op->fua = false;
	}
	if (needs_sectors(w, op)) {
		uint64_t end = op->offset + op->length;

		op->offset -= op->offset % HIST_SECTOR;
		end += (HIST_SECTOR - end % HIST_SECTOR) % HIST_SECTOR;
		op->length = (uint32_t)(end - op->offset);
	}
}

/* False: the history is full. */
static bool issue(struct worker *w)
{
	struct rig *rig = w->rig;
	struct slot *slot = w->free;
	struct hist_op what = {.kind = HIST_WRITE};
	struct eng_request rq = {0};
	int r;

	decide(w, &what, &rq.op);
	slot->op = NULL;
	if (rq.op == ENG_READ) {
		slot->iov[0] = (struct iovec){slot->buf, what.length};
		rq.iovcnt = 1;
	} else {
		slot->op = hist_add(&rig->log->history, what);
		if (!slot->op)
			return false;
		if (rq.op == ENG_WRITE)
			rq.iovcnt = fill(w, slot);
	}
	rq.disk = w->disk[what.disk];
	rq.flags = what.fua ? ENG_REQ_FUA : 0;
	rq.iov = rq.iovcnt ? slot->iov : NULL;
	rq.offset = what.offset;
	rq.length = what.length;
	rq.user_data = (uint64_t)(uintptr_t)slot;
	r = eng_queue_submit(w->queue, &rq, 1);
	if (r != 1) {
		fail(rig, "submit of operation %u on %s: %d", rq.op, rig_disk_name(what.disk), r);
		return false;
	}
	w->free = slot->next;
	w->in_flight++;
	return true;
}

/* Completions, for at least one when anything is in flight. */
static void reap(struct worker *w)
{
	struct eng_completion c[16];
	int n = eng_queue_poll(w->queue, c, 16, w->in_flight ? HANG_NS : 1000000);

	if (n < 0 || (n == 0 && w->in_flight)) {
		fail(w->rig, "poll with %u in flight: %d", w->in_flight, n);
		w->in_flight = 0;
		return;
	}
	for (int i = 0; i < n; i++) {
		struct slot *slot = (struct slot *)(uintptr_t)c[i].user_data;

		if (c[i].result < 0)
			fail(w->rig, "%s: operation ended with %d",
			     slot->op ? rig_disk_name(slot->op->disk) : "read", c[i].result);
		else if (slot->op)
			hist_ack(&w->rig->log->history, slot->op);
		slot->next = w->free;
		w->free = slot;
		w->in_flight--;
	}
}

static int attach(struct worker *w, unsigned d)
{
	struct fmt_error err = {{0}};
	int r = eng_store_attach(w->rig->store, w->queue, rig_disk_name(d), 0, &err, &w->disk[d]);

	if (r < 0)
		fail(w->rig, "attach %s: %d, %s", rig_disk_name(d), r, err.text);
	return r;
}

/* A detach makes durable what was acknowledged before: it counts as a flush. */
static int detach(struct worker *w, unsigned d)
{
	struct hist_op *op = hist_add(&w->rig->log->history,
				      (struct hist_op){.kind = HIST_FLUSH, .disk = (uint8_t)d});
	int r = eng_store_detach(w->disk[d]);

	w->disk[d] = NULL;
	if (r < 0)
		fail(w->rig, "detach %s: %d", rig_disk_name(d), r);
	else if (op)
		hist_ack(&w->rig->log->history, op);
	return r;
}

static void reattach(struct worker *w)
{
	unsigned d = w->first + 2 * (unsigned)pick(w, w->disks);

	while (w->in_flight)
		reap(w);
	if (!atomic_load(&w->rig->log->failed) && detach(w, d) == 0)
		attach(w, d);
}

static bool worker_open(struct worker *w)
{
	unsigned depth = w->rig->depth;
	int r = eng_queue_create(w->rig->io, depth, w->rig->store->lock_file, &w->queue);

	w->slots = calloc(depth, sizeof(*w->slots));
	if (r < 0 || !w->slots) {
		fail(w->rig, "queue: %d", r);
		return false;
	}
	for (unsigned i = 0; i < depth; i++) {
		w->slots[i].buf = aligned_alloc(4096, LENGTH_MAX + 8192);
		w->slots[i].next = w->free;
		w->free = &w->slots[i];
	}
	for (unsigned d = w->first; d < RIG_DISKS; d += 2, w->disks++)
		if (attach(w, d) < 0)
			return false;
	return true;
}

/* As if the process had died just now: header and journal stay as they are. */
static void abandon(struct worker *w, unsigned d)
{
	int r = eng_disk_settle(w->disk[d], HANG_NS);

	if (r < 0)
		fail(w->rig, "%s: background work does not end: %d", rig_disk_name(d), r);
	eng_queue_attached(w->queue, -1);
}

static void worker_close(struct worker *w)
{
	int r = 0;

	while (w->in_flight)
		reap(w);
	/* Who dies holds nothing of a disk that is about to be let go of. */
	if (w->rig->die)
		eng_folder_pause(w->rig->store->folder, true);
	/* The other worker's snapshot may need this queue until everybody has stopped. */
	atomic_fetch_sub(&w->rig->running, 1);
	while (atomic_load(&w->rig->running))
		eng_queue_poll(w->queue, (struct eng_completion[1]){{0}}, 1, 1000000);
	for (unsigned d = w->first; d < RIG_DISKS; d += 2) {
		if (!w->disk[d] || atomic_load(&w->rig->log->failed))
			continue;
		if (w->rig->die)
			abandon(w, d);
		else
			detach(w, d);
	}
	if (!atomic_load(&w->rig->log->failed))
		r = eng_queue_destroy(w->queue);
	if (r < 0)
		fail(w->rig, "destroying the queue: %d", r);
	for (unsigned i = 0; w->slots && i < w->rig->depth; i++)
		free(w->slots[i].buf);
	free(w->slots);
}

/* A guest that comes back may flush what a dead process has acknowledged (RV-5). */
static void flush_before(struct worker *w)
{
	w->flush_first = pick(w, 2) ? w->disks : 0;
	while (w->flush_first && issue(w))
		;
	while (w->in_flight)
		reap(w);
}

static void *worker_main(void *arg)
{
	struct worker *w = arg;
	struct rig *rig = w->rig;

	if (worker_open(w)) {
		flush_before(w);
		while (!atomic_load(&rig->stop)) {
			if (atomic_load(&rig->log->history.count) >= rig->ops)
				atomic_store(&rig->stop, true);
			if (pick(w, 4096) < rig->detaches)
				reattach(w);
			while (w->free && pick(w, 8) && !atomic_load(&rig->stop))
				if (!issue(w))
					atomic_store(&rig->stop, true);
			reap(w);
		}
	}
	worker_close(w);
	return NULL;
}

/* --- snapshots --- */

static int put_job(struct eng_store *store, const struct cat_job *job)
{
	struct fmt_error err;
	int r = eng_catalog_begin(store->catalog);

	if (r < 0)
		return r;
	eng_catalog_put_job(store->catalog, job);
	return eng_catalog_commit(store->catalog, &err);
}

static void spec_of(struct eng_store *store, const char *name, struct eng_snapshot_spec *spec)
{
	memset(spec, 0, sizeof(*spec));
	eng_catalog_get_collection(store->catalog, "c", &spec->collection);
	eng_store_new_id(store, &spec->id);
	snprintf(spec->name, sizeof(spec->name), "%s", name);
	spec->type = 1;
	spec->consistency = 2;
	spec->ignore_independent = true;
	spec->timeout_ns = HANG_NS;
	eng_store_new_id(store, &spec->job.id);
	spec->job.state = 4;
	spec->job.type = 198;
	snprintf(spec->job.name, sizeof(spec->job.name), "c@%s", name);
	spec->job.submitted_ns = eng_io_wall_ns(store->io);
	spec->job.started_ns = spec->job.submitted_ns;
	spec->job.changed_ns = spec->job.submitted_ns;
}

static void set_current(struct rig *rig, struct eng_snapshot *snap)
{
	pthread_mutex_lock(&rig->lock);
	rig->current = snap;
	pthread_mutex_unlock(&rig->lock);
}

static void take_snapshot(struct rig *rig, bool cancel)
{
	unsigned n = atomic_load(&rig->log->snap_count);
	struct rig_snap *s = &rig->log->snaps[n];
	struct eng_snapshot_times times;
	struct eng_snapshot_spec spec;
	struct fmt_error err = {{0}};
	struct eng_snapshot *snap;
	int r;

	if (n == RIG_SNAPS)
		return;
	snprintf(s->name, sizeof(s->name), "s%llu-%u",
		 (unsigned long long)rig->log->history.first_id, n);
	spec_of(rig->store, s->name, &spec);
	s->id = spec.id;
	s->job = spec.job.id;
	r = eng_snapshot_check(rig->store, &spec, &err, &snap);
	if (r < 0) {
		if (r != -EBUSY)
			fail(rig, "checking %s: %d, %s", s->name, r, err.text);
		return;
	}
	atomic_store(&rig->log->snap_count, n + 1);
	r = put_job(rig->store, &spec.job);
	s->called = hist_tick(&rig->log->history);
	if (cancel)
		set_current(rig, snap);
	if (r == 0)
		r = eng_snapshot_run(snap, NULL, NULL, &err, &times);
	s->ended = hist_tick(&rig->log->history);
	set_current(rig, NULL);
	eng_snapshot_destroy(snap);
	if (r == 0) {
		atomic_store(&s->done, s->ended);
		atomic_store(&rig->log->overlaid, true);
	} else
		atomic_store(&s->failed, true);
	if (r == -ECANCELED) {
		spec.job.state = 8;
		spec.job.error_code = 32768;
		strcpy(spec.job.error_text, "cancelled");
		spec.job.ended_ns = eng_io_wall_ns(rig->io);
		r = put_job(rig->store, &spec.job);
	}
	if (r < 0)
		fail(rig, "snapshot %s: %d, %s", s->name, r, err.text);
}

/* A disk of VM x comes, or the oldest one goes. */
static void change_extra(struct rig *rig, uint64_t x)
{
	unsigned n = atomic_load(&rig->log->extra_count);
	struct rig_extra *e = &rig->log->extras[n];
	struct fmt_error err = {{0}};
	int r;

	if (x % 2 == 0 && n < RIG_EXTRAS) {
		struct eng_disk_make make = {.vm = "x", .name = e->name, .size = 1 << 20};

		snprintf(e->name, sizeof(e->name), "e%llu-%u",
			 (unsigned long long)rig->log->history.first_id, n);
		atomic_store(&e->making, hist_tick(&rig->log->history));
		atomic_store(&rig->log->extra_count, n + 1);
		r = eng_store_make_disk(rig->store, &make, &err);
		atomic_store(&e->made, hist_tick(&rig->log->history));
		if (r < 0)
			fail(rig, "making x/%s: %d, %s", e->name, r, err.text);
		return;
	}
	for (unsigned i = 0; i < n; i++) {
		e = &rig->log->extras[i];
		if (atomic_load(&e->removing) || !atomic_load(&e->made))
			continue;
		atomic_store(&e->removing, hist_tick(&rig->log->history));
		r = eng_store_delete_disk(rig->store, "x", e->name, &err);
		atomic_store(&e->removed, hist_tick(&rig->log->history));
		if (r < 0)
			fail(rig, "deleting x/%s: %d, %s", e->name, r, err.text);
		return;
	}
}

/* One of those that are there: the oldest, the newest or any between (DL-1). */
static void delete_snapshot(struct rig *rig, uint64_t x)
{
	unsigned n = atomic_load(&rig->log->snap_count), found = 0;
	struct rig_snap *those[RIG_SNAPS], *s;
	struct cat_job job = {.state = 4, .type = 72};
	struct fmt_error err = {{0}};
	bool marked;
	int r;

	for (unsigned i = 0; i < n; i++)
		if (atomic_load(&rig->log->snaps[i].done) &&
		    !atomic_load(&rig->log->snaps[i].deleting))
			those[found++] = &rig->log->snaps[i];
	if (!found)
		return;
	s = those[x % found];
	eng_store_new_id(rig->store, &job.id);
	snprintf(job.name, sizeof(job.name), "c@%s", s->name);
	job.submitted_ns = eng_io_wall_ns(rig->io);
	atomic_store(&s->deleting, hist_tick(&rig->log->history));
	r = eng_store_delete_snapshot(rig->store, "c", s->name, &job, &marked, &err);
	atomic_store(&s->deleted, hist_tick(&rig->log->history));
	if (r < 0)
		fail(rig, "deleting %s: %d, %s", s->name, r, err.text);
}

static void *snapper_main(void *arg)
{
	struct rig *rig = arg;
	uint64_t rng = rig->seed ^ 0x5eed;

	while (!atomic_load(&rig->stop)) {
		uint64_t x = test_random(&rng);

		usleep((useconds_t)(x >> 32) % (rig->pause_us + 1));
		if (x % 256 < rig->extras)
			change_extra(rig, x >> 8);
		else if (x % 256 < rig->extras + rig->deletes)
			delete_snapshot(rig, x >> 8);
		else if (!atomic_load(&rig->stop))
			take_snapshot(rig, (x >> 8 & 3) == 0);
	}
	atomic_fetch_sub(&rig->running, 1);
	return NULL;
}

/* Cancels a snapshot now and then. */
static void *canceller_main(void *arg)
{
	struct rig *rig = arg;
	uint64_t rng = rig->seed ^ 0xca9ce1;

	while (!atomic_load(&rig->stop)) {
		usleep((useconds_t)(test_random(&rng) % (4 * rig->pause_us + 2000)));
		pthread_mutex_lock(&rig->lock);
		if (rig->current)
			eng_snapshot_cancel(rig->current);
		pthread_mutex_unlock(&rig->lock);
	}
	return NULL;
}

/*
 * Lets go of the lock and nothing else: no detach, no last commit, no end of the catalog's log. What a
 * dead process would have lost stays allocated, within reach of leak checkers.
 */
static void abandon_store(struct eng_store *store)
{
	static struct eng_store *abandoned[64] __attribute__((used));
	static unsigned count;

	eng_folder_stop(store->folder);
	eng_pool_destroy(store->pool);
	eng_io_close(store->io, store->lock_file);
	store->pool = NULL;
	store->lock_file = NULL;
	abandoned[count++ % 64] = store;
}

bool rig_run(struct rig *rig)
{
	struct worker workers[2];
	pthread_t snapper, canceller;
	struct fmt_error err = {{0}};
	int r;

	eng_fdcache_set_limit(rig->files);
	r = eng_store_open(rig->io, rig->dir, &rig->options, &err, &rig->store);
	if (r < 0) {
		fail(rig, "open: %d, %s", r, err.text);
		return false;
	}
	eng_folder_set_punch_run(rig->store->folder, 4096);
	atomic_store(&rig->stop, false);
	atomic_store(&rig->running, 3);
	pthread_mutex_init(&rig->lock, NULL);
	memset(workers, 0, sizeof(workers));
	for (unsigned i = 0; i < 2; i++) {
		workers[i].rig = rig;
		workers[i].rng = rig->seed + i;
		workers[i].first = i;
		pthread_create(&workers[i].thread, NULL, worker_main, &workers[i]);
	}
	pthread_create(&snapper, NULL, snapper_main, rig);
	pthread_create(&canceller, NULL, canceller_main, rig);
	pthread_join(canceller, NULL);
	pthread_join(snapper, NULL);
	for (unsigned i = 0; i < 2; i++)
		pthread_join(workers[i].thread, NULL);
	pthread_mutex_destroy(&rig->lock);
	if (atomic_load(&rig->log->failed))
		return false; /* what is left attached stays so: the test has failed */
	if (rig->die) {
		abandon_store(rig->store);
		return true;
	}
	r = eng_store_close(rig->store);
	if (r < 0)
		fail(rig, "close: %d", r);
	return r == 0;
}

/* --- looking at a store --- */

int rig_view_open(struct eng_io *io, const char *dir, const struct eng_store_options *options,
		  struct rig_view *view, struct fmt_error *err)
{
	uint64_t end = eng_io_now_ns(io) + 10ull * 1000000000;
	int r;

	memset(view, 0, sizeof(*view));
	view->io = io;
	while ((r = eng_store_open(io, dir, options, err, &view->store)) == -EBUSY &&
	       eng_io_now_ns(io) < end)
		eng_io_sleep_ns(io, 100000);
	if (r == 0)
		r = eng_queue_create(io, 16, view->store->lock_file, &view->queue);
	return r;
}

int rig_view_close(struct rig_view *view)
{
	int r = eng_queue_destroy(view->queue);

	return r < 0 ? r : eng_store_close(view->store);
}

static int request(struct rig_view *view, struct eng_disk *disk, uint8_t op, uint8_t *buf,
		   uint64_t offset, uint64_t len)
{
	struct iovec iov = {buf, len};
	struct eng_request rq = {
		.disk = disk,
		.op = op,
		.iovcnt = 1,
		.iov = &iov,
		.offset = offset,
		.length = len,
	};
	struct eng_completion c;
	int r = eng_queue_submit(view->queue, &rq, 1);

	if (r < 0)
		return r;
	r = eng_queue_poll(view->queue, &c, 1, HANG_NS);
	return r == 1 ? c.result : r < 0 ? r : -ETIMEDOUT;
}

int rig_view_read(struct rig_view *view, const char *name, uint8_t *data, uint64_t size,
		  struct fmt_error *err)
{
	unsigned flags = strchr(name, '@') ? ENG_ATTACH_READ_ONLY : 0;
	struct eng_disk *disk;
	int r = eng_store_attach(view->store, view->queue, name, flags, err, &disk), detached;

	if (r < 0)
		return r;
	for (uint64_t at = 0, len; r == 0 && at < size; at += len) {
		len = size - at < 1 << 20 ? size - at : 1 << 20;
		r = request(view, disk, ENG_READ, data + at, at, len);
	}
	if (r < 0)
		fmt_fail(err, r, "%s: read: %s", name, strerror(-r));
	detached = eng_store_detach(disk);
	if (r == 0 && detached < 0)
		r = fmt_fail(err, detached, "%s: detach: %s", name, strerror(-detached));
	return r;
}

static int use_disks(struct rig_view *view, struct eng_disk **disk, struct fmt_error *err)
{
	static uint8_t wrote[HIST_SECTOR], read[HIST_SECTOR];
	int r = 0;

	for (unsigned d = 0; r == 0 && d < RIG_DISKS; d++)
		r = eng_store_attach(view->store, view->queue, rig_disk_name(d), 0, err, &disk[d]);
	for (unsigned d = 0; r == 0 && d < RIG_DISKS; d++) {
		hist_fill(wrote, d, 1, 4096, sizeof(wrote));
		r = request(view, disk[d], ENG_WRITE, wrote, 4096 + HIST_SECTOR, HIST_SECTOR);
		if (r == 0)
			r = request(view, disk[d], ENG_READ, read, 4096 + HIST_SECTOR, HIST_SECTOR);
		if (r < 0)
			fmt_fail(err, r, "%s: write after recovery: %s", rig_disk_name(d),
				 strerror(-r));
		else if (memcmp(wrote, read, sizeof(read)))
			r = fmt_fail(err, -EIO, "%s: does not hold a write after recovery",
				     rig_disk_name(d));
	}
	return r;
}

int rig_view_use(struct rig_view *view, struct fmt_error *err)
{
	struct eng_disk *disk[RIG_DISKS] = {0};
	struct eng_snapshot_times times;
	struct eng_snapshot_spec spec;
	struct eng_snapshot *snap;
	int r = use_disks(view, disk, err), detached;

	if (r == 0) {
		spec_of(view->store, "after", &spec);
		spec.job.id = (struct fmt_uuid){{0}};
		r = eng_snapshot_check(view->store, &spec, err, &snap);
	}
	if (r == 0) {
		r = eng_snapshot_run(snap, NULL, NULL, err, &times);
		eng_snapshot_destroy(snap);
	}
	for (unsigned d = 0; d < RIG_DISKS; d++) {
		detached = disk[d] ? eng_store_detach(disk[d]) : 0;
		if (r == 0 && detached < 0)
			r = fmt_fail(err, detached, "%s: detach after recovery", rig_disk_name(d));
	}
	return r;
}
