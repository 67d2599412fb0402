/* SPDX-License-Identifier: MIT */
/*
 * life_io.c - requests of life.h. What is about to be submitted is noted in the world first, and is in
 * doubt until its completion has been seen; no two requests in flight touch the same unit.
 */
#include "tests/sim/life.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

static struct vmimg_error err;

struct waiting { /* a request that is waited for */
	bool done;
	int result;
};

/* --- attachments --- */

void life_attach(uint32_t disk)
{
	int r = vmimg_disk_attach(life.queue, life_disk_name(disk), 0, &err, &life.disk[disk]);

	life_must(r == 0, "attach %s: %d, %s", life_disk_name(disk), r, err.message);
}

/* But the one whose deletion a death has cut short: see life_recover_undisk(). */
void life_attach_all(void)
{
	const struct life_op *op = &world->op;

	for (uint32_t i = 0; i < LIFE_DISKS; i++)
		if (world->disk[i].there && !life.disk[i] &&
		    !(op->kind == LIFE_UNDISK && op->disk == i))
			life_attach(i);
}

void life_detach(uint32_t disk)
{
	int r;

	life_quiet();
	r = vmimg_disk_detach(life.disk[disk]);
	life_must(r == 0, "detach %s: %d", life_disk_name(disk), r);
	life.disk[disk] = NULL;
	life_all_durable(disk);
}

/* --- writes in flight --- */

static bool overlap(const struct life_write *w, uint32_t disk, uint32_t at, uint32_t count)
{
	return w->busy && w->disk == disk && w->at < at + count && at < w->at + w->count;
}

static bool is_being_written(uint32_t disk, uint32_t at, uint32_t count)
{
	for (uint32_t i = 0; i < LIFE_WRITES; i++)
		if (overlap(&world->write[i], disk, at, count))
			return true;
	return false;
}

static void complete(struct life_slot *slot, int result)
{
	struct life_write *w = slot->write;
	uint32_t *unit = world->state[world->disk[w->disk].state].unit;

	life_must(result == 0, "%s: write %u of %u sectors at %u ended with %d",
		  life_disk_name(w->disk), w->number, w->count, w->at, result);
	for (uint32_t i = 0; i < w->count; i++)
		unit[w->at + i] = w->number;
	if (world->loss)
		world->loose[world->loose_count++] = *w;
	atomic_signal_fence(memory_order_seq_cst);
	w->busy = false;
	slot->write = NULL;
}

void life_turn(uint64_t timeout_ns)
{
	struct vmimg_completion c[16];
	int n = vmimg_queue_poll(life.queue, c, 16, timeout_ns);

	life_must(n >= 0, "poll: %d", n);
	for (int i = 0; i < n; i++) {
		if (c[i].user_data <= LIFE_WRITES) {
			complete(&life.slot[c[i].user_data - 1], c[i].result);
		} else {
			struct waiting *w = (struct waiting *)(uintptr_t)c[i].user_data;

			w->result = c[i].result;
			w->done = true;
		}
	}
}

static bool any_in_flight(void)
{
	for (uint32_t i = 0; i < LIFE_WRITES; i++)
		if (life.slot[i].write)
			return true;
	return false;
}

void life_quiet(void)
{
	while (any_in_flight())
		life_turn(UINT64_MAX);
}

static void note_in_window(const struct life_write *w)
{
	struct life_op *op = &world->op;

	life_must(op->window_count < LIFE_WINDOW, "the window of %s is full", world->doing);
	op->windows[op->window_count] = *w;
	atomic_signal_fence(memory_order_seq_cst);
	op->window_count++;
}

/* Mostly somewhere small, so that things meet; now and then the very end. */
static void pick_range(const struct life_disk *d, uint32_t *at, uint32_t *count)
{
	uint32_t units = life_units(d->size), area = life_chance(4) ? units : units / 16;

	*count = 1 + life_pick(life_chance(3) ? LIFE_WRITE : 16);
	if (life_chance(2)) { /* whole blocks */
		*count = (*count + 7) / 8 * 8;
		*at = life_pick(area / 8) * 8;
	} else {
		*at = life_pick(area);
	}
	if (life_chance(64))
		*at = units - *count;
	if (*at + *count > units)
		*count = units - *at;
}

static void submit(struct life_slot *slot, uint8_t op, uint8_t flags)
{
	const struct life_write *w = slot->write;
	struct vmimg_request rq = {
		.disk = life.disk[w->disk],
		.op = op,
		.flags = flags,
		.offset = (uint64_t)w->at * LIFE_UNIT,
		.length = (uint64_t)w->count * LIFE_UNIT,
		.user_data = (uint64_t)(slot - life.slot) + 1,
	};
	struct iovec iov = {slot->buf, rq.length};
	int r;

	if (op == VMIMG_WRITE) {
		*slot->iov = iov;
		rq.iov = slot->iov;
		rq.iovcnt = 1;
		life_fill(slot->buf, w->number, rq.offset, rq.length);
	}
	r = vmimg_queue_submit(life.queue, &rq, 1);
	life_must(r == 1, "%s: submit: %d", life_disk_name(w->disk), r);
}

void life_begin_write(void)
{
	uint32_t at, count, free = LIFE_WRITES;
	int disk = life_some_disk();
	struct life_write *w;
	uint8_t op = VMIMG_WRITE;

	for (uint32_t i = 0; i < LIFE_WRITES; i++)
		if (!life.slot[i].write)
			free = i;
	if (disk < 0 || !life.disk[disk] || free == LIFE_WRITES)
		return;
	if (world->op.window && world->op.window_count == LIFE_WINDOW)
		return;
	if (world->loose_count + LIFE_WRITES >= LIFE_LOOSE) {
		life_flush();
		return;
	}
	pick_range(&world->disk[disk], &at, &count);
	if (is_being_written((uint32_t)disk, at, count))
		return;
	if (life_chance(8))
		op = life_chance(2) ? VMIMG_DISCARD : VMIMG_WRITE_ZEROES;
	w = &world->write[free];
	*w = (struct life_write){.disk = (uint32_t)disk, .at = at, .count = count};
	w->number = op == VMIMG_WRITE ? ++world->number : 0;
	atomic_signal_fence(memory_order_seq_cst);
	w->busy = true;
	if (world->op.window)
		note_in_window(w);
	if (life_touched)
		life_touched(false);
	life.slot[free].write = w;
	submit(&life.slot[free], op, !world->loss && life_chance(16) ? VMIMG_FUA : 0);
}

/* What was acknowledged before the flush began is durable when it has ended. */
static void note_flushed(uint32_t disk)
{
	uint32_t *durable = world->state[world->disk[disk].durable].unit, kept = 0;

	for (uint32_t i = 0; i < world->loose_count; i++) {
		const struct life_write *w = &world->loose[i];

		if (w->disk != disk || !w->flushing) {
			world->loose[kept++] = *w;
			continue;
		}
		for (uint32_t u = 0; u < w->count; u++)
			durable[w->at + u] = w->number;
	}
	world->loose_count = kept;
}

void life_flush(void)
{
	int disk = life_some_disk(), r;

	if (disk < 0 || !life.disk[disk])
		return;
	for (uint32_t i = 0; i < world->loose_count; i++)
		world->loose[i].flushing = world->loose[i].disk == (uint32_t)disk;
	r = life_request(life.disk[disk], VMIMG_FLUSH, NULL, 0, 0);
	life_must(r == 0, "%s: flush: %d", life_disk_name((uint32_t)disk), r);
	if (world->loss)
		note_flushed((uint32_t)disk);
}

int life_request(struct vmimg_disk *disk, uint8_t op, void *buf, uint64_t offset, uint64_t len)
{
	struct waiting w = {.result = 0};
	struct iovec iov = {buf, len};
	struct vmimg_request rq = {
		.disk = disk,
		.op = op,
		.iov = buf ? &iov : NULL,
		.iovcnt = buf ? 1 : 0,
		.offset = offset,
		.length = len,
		.user_data = (uint64_t)(uintptr_t)&w,
	};
	int r = vmimg_queue_submit(life.queue, &rq, 1);

	life_must(r == 1, "submit of operation %u: %d", op, r);
	while (!w.done)
		life_turn(UINT64_MAX);
	return w.result;
}

/* --- comparing --- */

/* Which write a unit says it is of; zeros: 0; neither: UINT32_MAX. */
static uint32_t number_in(const uint8_t *unit, uint64_t offset)
{
	static _Thread_local uint8_t want[LIFE_UNIT];
	uint64_t word;

	memcpy(&word, unit, 8);
	life_fill(want, (uint32_t)(word >> 32), offset, LIFE_UNIT);
	return memcmp(unit, want, LIFE_UNIT) ? UINT32_MAX : (uint32_t)(word >> 32);
}

static void blame(const char *where, uint32_t unit, const uint8_t *found, uint32_t want)
{
	uint32_t is = number_in(found, (uint64_t)unit * LIFE_UNIT);
	uint64_t word;

	memcpy(&word, found, 8);
	if (is != UINT32_MAX)
		life_fail("%s: sector %u holds write %u, expected %u", where, unit, is, want);
	life_fail("%s: sector %u holds %016llx... (of write %u, sector %llu?), expected write %u",
		  where, unit, (unsigned long long)word, (uint32_t)(word >> 32),
		  (unsigned long long)((word & 0xffffffff) * 8 / LIFE_UNIT), want);
}

static bool same(const uint8_t *unit, uint32_t number, uint64_t offset)
{
	const uint64_t *words = (const uint64_t *)unit;
	uint64_t word = number ? (uint64_t)number << 32 | offset / 8 : 0;

	for (uint32_t i = 0; i < LIFE_UNIT / 8; i++)
		if (words[i] != word + (number ? i : 0))
			return false;
	return true;
}

static uint32_t index_of(const struct vmimg_disk *disk)
{
	for (uint32_t i = 0; i < LIFE_DISKS; i++)
		if (life.disk[i] == disk)
			return i;
	return UINT32_MAX;
}

void life_expect(struct vmimg_disk *disk, const char *where, uint32_t state, uint32_t at,
		 uint32_t count)
{
	uint32_t which = index_of(disk);
	uint8_t *buf = malloc((size_t)count * LIFE_UNIT);
	int r;

	life_must(buf != NULL, "no memory");
	if (which != UINT32_MAX && is_being_written(which, at, count))
		life_quiet();
	memset(buf, 0xee, (size_t)count * LIFE_UNIT);
	r = life_request(disk, VMIMG_READ, buf, (uint64_t)at * LIFE_UNIT,
			 (uint64_t)count * LIFE_UNIT);
	life_must(r == 0, "%s: read of %u sectors at %u: %d", where, count, at, r);
	for (uint32_t i = 0; i < count; i++) {
		uint32_t want = world->state[state].unit[at + i];

		if (!same(buf + (size_t)i * LIFE_UNIT, want, (uint64_t)(at + i) * LIFE_UNIT))
			blame(where, at + i, buf + (size_t)i * LIFE_UNIT, want);
	}
	world->compared += count;
	free(buf);
}

void life_expect_all(struct vmimg_disk *disk, const char *where, uint32_t state, uint64_t size)
{
	uint32_t units = life_units(size);

	life_must(vmimg_disk_size(disk) == size, "%s: size is %llu, expected %llu", where,
		  (unsigned long long)vmimg_disk_size(disk), (unsigned long long)size);
	for (uint32_t at = 0; at < units; at += 2048)
		life_expect(disk, where, state, at, units - at < 2048 ? units - at : 2048);
}

static void expect_some(struct vmimg_disk *disk, const char *where, uint32_t state, uint64_t size)
{
	uint32_t units = life_units(size), at = life_pick(life_chance(2) ? units : units / 16);

	life_expect(disk, where, state, at, units - at < 512 ? units - at : 512);
}

void life_check_head(uint32_t disk, bool whole)
{
	const struct life_disk *d = &world->disk[disk];

	if (!life.disk[disk])
		return;
	if (whole)
		life_expect_all(life.disk[disk], life_disk_name(disk), d->state, d->size);
	else
		expect_some(life.disk[disk], life_disk_name(disk), d->state, d->size);
}

static struct vmimg_disk *open_member(const struct life_snap *snap, uint32_t member)
{
	const char *name = life_member_name(snap, member);
	struct vmimg_disk *view;
	int r = vmimg_disk_attach(life.queue, name, VMIMG_ATTACH_READ_ONLY, &err, &view);

	life_must(r == 0, "attach %s: %d, %s", name, r, err.message);
	return view;
}

static void close_member(struct vmimg_disk *view)
{
	int r = vmimg_disk_detach(view);

	life_must(r == 0, "detach of a snapshot: %d", r);
}

void life_check_snap(const struct life_snap *snap, bool whole)
{
	for (uint32_t m = 0; m < snap->count; m++) {
		const struct life_member *member = &snap->member[m];
		struct vmimg_disk *view;

		if (!whole && life_pick(snap->count))
			continue;
		view = open_member(snap, m);
		if (whole)
			life_expect_all(view, life_member_name(snap, m), member->state,
					member->size);
		else
			expect_some(view, life_member_name(snap, m), member->state, member->size);
		close_member(view);
	}
}

/* --- what is in doubt --- */

/* Each of its units holds what it held, or what was written. */
static void settle(struct life_write *w)
{
	uint32_t *unit = world->state[world->disk[w->disk].state].unit;
	uint8_t buf[LIFE_WRITE * LIFE_UNIT];
	int r = life_request(life.disk[w->disk], VMIMG_READ, buf, (uint64_t)w->at * LIFE_UNIT,
			     (uint64_t)w->count * LIFE_UNIT);

	life_must(r == 0, "%s: read of sector %u: %d", life_disk_name(w->disk), w->at, r);
	for (uint32_t i = 0; i < w->count; i++) {
		const uint8_t *found = buf + (size_t)i * LIFE_UNIT;
		uint64_t offset = (uint64_t)(w->at + i) * LIFE_UNIT;

		if (same(found, w->number, offset))
			unit[w->at + i] = w->number;
		else if (!same(found, unit[w->at + i], offset))
			life_fail("%s: sector %u holds write %u after a kill, expected %u, or %u "
				  "that was in flight",
				  life_disk_name(w->disk), w->at + i, number_in(found, offset),
				  unit[w->at + i], w->number);
	}
}

/* Whether a power loss may have left this one there: acknowledged and not flushed, or in flight. */
static bool may_be_left(uint32_t disk, uint32_t unit, uint32_t number)
{
	for (uint32_t i = 0; i < world->loose_count + LIFE_WRITES; i++) {
		const struct life_write *w = i < LIFE_WRITES ? &world->write[i]
							     : &world->loose[i - LIFE_WRITES];

		if ((i >= LIFE_WRITES || w->busy) && w->disk == disk && w->number == number &&
		    w->at <= unit && unit < w->at + w->count)
			return true;
	}
	return false;
}

static void settle_loss(uint32_t disk)
{
	const uint32_t *durable = world->state[world->disk[disk].durable].unit;
	uint32_t *unit = world->state[world->disk[disk].state].unit;
	uint32_t units = life_units(world->disk[disk].size), found;
	uint8_t *buf = malloc((size_t)units * LIFE_UNIT);
	int r;

	life_must(buf != NULL, "no memory");
	r = life_request(life.disk[disk], VMIMG_READ, buf, 0, (uint64_t)units * LIFE_UNIT);
	life_must(r == 0, "%s: read: %d", life_disk_name(disk), r);
	for (uint32_t u = 0; u < units; u++) {
		found = number_in(buf + (size_t)u * LIFE_UNIT, (uint64_t)u * LIFE_UNIT);
		life_must(found == durable[u] || may_be_left(disk, u, found),
			  "%s: sector %u holds write %u after a power loss, expected %u that was "
			  "flushed, or a later one (the last was %u)",
			  life_disk_name(disk), u, found, durable[u], unit[u]);
		unit[u] = found;
	}
	free(buf);
	world->compared += units;
}

void life_settle_writes(void)
{
	for (uint32_t i = 0; world->loss && i < LIFE_DISKS; i++)
		if (world->disk[i].there)
			settle_loss(i);
	for (uint32_t i = 0; i < LIFE_WRITES; i++) {
		if (world->write[i].busy && !world->loss)
			settle(&world->write[i]);
		world->write[i].busy = false;
	}
	for (uint32_t i = 0; world->loss && i < LIFE_DISKS; i++)
		if (world->disk[i].there)
			life_all_durable(i);
}

static bool is_in_window(uint32_t disk, uint32_t unit, uint32_t number)
{
	const struct life_op *op = &world->op;

	for (uint32_t i = 0; i < op->window_count; i++) {
		const struct life_write *w = &op->windows[i];

		if (w->disk == disk && w->number == number && w->at <= unit &&
		    unit < w->at + w->count)
			return true;
	}
	return false;
}

/* What @member holds of the units that @w wrote. */
static void settle_member(struct life_snap *snap, uint32_t m, struct vmimg_disk *view,
			  const struct life_write *w)
{
	const struct life_member *member = &snap->member[m];
	uint8_t buf[LIFE_WRITE * LIFE_UNIT];
	int r = life_request(view, VMIMG_READ, buf, (uint64_t)w->at * LIFE_UNIT,
			     (uint64_t)w->count * LIFE_UNIT);

	life_must(r == 0, "%s: read: %d", life_member_name(snap, m), r);
	for (uint32_t i = 0; i < w->count; i++) {
		uint32_t *held = &world->state[member->state].unit[w->at + i];
		uint32_t found = number_in(buf + (size_t)i * LIFE_UNIT,
					   (uint64_t)(w->at + i) * LIFE_UNIT);

		life_must(found == *held || is_in_window(member->disk, w->at + i, found),
			  "%s: sector %u holds write %u, expected %u or one that was in flight "
			  "during the create",
			  life_member_name(snap, m), w->at + i, found, *held);
		*held = found;
	}
}

void life_settle_window(struct life_snap *snap)
{
	for (uint32_t m = 0; world->op.window_count && m < snap->count; m++) {
		struct vmimg_disk *view = open_member(snap, m);

		for (uint32_t i = 0; i < world->op.window_count; i++)
			if (world->op.windows[i].disk == snap->member[m].disk)
				settle_member(snap, m, view, &world->op.windows[i]);
		close_member(view);
	}
}

/* --- calls that wait for the queue --- */

struct beside {
	uint32_t (*call)(void *arg);
	void *arg;
	uint32_t result;
	_Atomic bool done;
};

static void *beside_main(void *arg)
{
	struct beside *b = arg;

	b->result = b->call(b->arg);
	atomic_store(&b->done, true);
	return NULL;
}

uint32_t life_beside(uint32_t (*call)(void *arg), void *arg, bool load)
{
	struct beside b = {.call = call, .arg = arg};
	struct beside company = {.call = life_company_call};
	pthread_t thread, other;
	bool two = world->op.kind != LIFE_NONE && world->op.also.kind != LIFE_NONE;

	life_must(pthread_create(&thread, NULL, beside_main, &b) == 0, "no thread");
	if (two)
		life_must(pthread_create(&other, NULL, beside_main, &company) == 0, "no thread");
	while (!atomic_load(&b.done) || (two && !atomic_load(&company.done))) {
		if (load)
			life_begin_write();
		life_turn(200000);
	}
	pthread_join(thread, NULL);
	if (two)
		pthread_join(other, NULL);
	return b.result;
}
