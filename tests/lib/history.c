/* SPDX-License-Identifier: MIT */
/*
 * history.c - see history.h. Versions are kept as hashes: comparing one with what was found is one
 * look at each, however it came about. Content is computed again only to say what is wrong.
 */
#include "tests/lib/history.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

uint64_t hist_tick(struct history *h)
{
	return h->tick ? h->tick(h->tick_arg) : atomic_fetch_add(&h->clock, 1) + 1;
}

struct hist_op *hist_add(struct history *h, struct hist_op what)
{
	size_t n = atomic_fetch_add(&h->count, 1);
	struct hist_op *op = &h->ops[n];

	if (n >= h->room) {
		atomic_fetch_sub(&h->count, 1);
		return NULL;
	}
	op->offset = what.offset;
	op->length = what.length;
	op->kind = what.kind;
	op->disk = what.disk;
	op->fua = what.fua;
	atomic_store(&op->acked, 0);
	atomic_store(&op->failed, false);
	atomic_store(&op->issued, hist_tick(h));
	return op;
}

void hist_ack(struct history *h, struct hist_op *op)
{
	atomic_store(&op->acked, hist_tick(h));
}

void hist_fail(struct hist_op *op)
{
	atomic_store(&op->failed, true);
}

uint64_t hist_id(const struct history *h, const struct hist_op *op)
{
	return h->first_id + (uint64_t)(op - h->ops);
}

/* --- content --- */

static uint64_t word_at(unsigned disk, uint64_t id, uint64_t offset)
{
	return id << 32 | (uint64_t)disk << 24 | (offset / 8 & 0xffffff);
}

void hist_fill(void *buf, unsigned disk, uint64_t id, uint64_t offset, size_t len)
{
	uint8_t *p = buf;

	while (len) {
		uint64_t word = word_at(disk, id, offset);
		size_t skip = offset % 8, n = 8 - skip < len ? 8 - skip : len;

		memcpy(p, (uint8_t *)&word + skip, n);
		p += n;
		offset += n;
		len -= n;
	}
}

/* What @op leaves of the sector at @start. */
static void apply(const struct history *h, const struct hist_op *op, uint64_t start,
		  uint8_t sector[HIST_SECTOR])
{
	uint64_t end = start + HIST_SECTOR, from = op->offset > start ? op->offset : start;
	uint64_t to = op->offset + op->length < end ? op->offset + op->length : end;

	if (op->kind == HIST_ZERO)
		memset(sector + (from - start), 0, to - from);
	else
		hist_fill(sector + (from - start), op->disk, hist_id(h, op), from, to - from);
}

static void describe(const uint8_t sector[HIST_SECTOR], char *text, size_t room)
{
	uint64_t word;
	size_t at = 0;

	memcpy(&word, sector, 8);
	while (at < HIST_SECTOR && sector[at] == 0)
		at++;
	if (at == HIST_SECTOR) {
		snprintf(text, room, "zeros");
		return;
	}
	memcpy(&word, sector + at / 8 * 8, 8);
	snprintf(text, room, "write %llu of disk %u for sector %llu (from byte %zu on)",
		 (unsigned long long)(word >> 32), (unsigned)(word >> 24 & 0xff),
		 (unsigned long long)((word & 0xffffff) * 8 / HIST_SECTOR), at);
}

/* --- versions --- */

struct versions {
	size_t sectors;
	uint32_t *start; /* of a sector's versions in op[] and hash[] */
	uint32_t *op;    /* which made it; unused for the first of a sector */
	uint64_t *hash;
};

struct hist_index {
	const struct history *h;
	uint8_t *const *base;
	size_t count;
	struct versions disks[HIST_DISKS];
	uint8_t *marks; /* hist_check_cut()'s, one for each op */
};

static void *alloc(size_t count, size_t size)
{
	void *p = calloc(count + 1, size);

	if (!p)
		abort();
	return p;
}

static bool changes(const struct hist_op *op, unsigned disk)
{
	return op->disk == disk && op->kind != HIST_FLUSH && atomic_load(&op->issued) && op->length;
}

static void add_versions(struct versions *v, const struct hist_op *op, uint32_t number,
			 uint32_t *next)
{
	uint64_t last = (op->offset + op->length - 1) / HIST_SECTOR;

	for (uint64_t s = op->offset / HIST_SECTOR; s <= last; s++)
		v->op[next[s]++] = number;
}

static void hash_sector(struct hist_index *ix, unsigned disk, size_t s)
{
	struct versions *v = &ix->disks[disk];
	uint8_t sector[HIST_SECTOR] = {0};

	if (ix->base && ix->base[disk])
		memcpy(sector, ix->base[disk] + s * HIST_SECTOR, HIST_SECTOR);
	for (uint32_t i = v->start[s]; i < v->start[s + 1]; i++) {
		if (i > v->start[s])
			apply(ix->h, &ix->h->ops[v->op[i]], s * HIST_SECTOR, sector);
		v->hash[i] = XXH3_64bits(sector, HIST_SECTOR);
	}
}

static void index_disk(struct hist_index *ix, unsigned disk)
{
	struct versions *v = &ix->disks[disk];
	uint32_t *next;

	v->sectors = ix->h->size[disk] / HIST_SECTOR;
	v->start = alloc(v->sectors + 1, sizeof(*v->start));
	next = alloc(v->sectors, sizeof(*next));
	for (size_t i = 0; i < ix->count; i++) {
		const struct hist_op *op = &ix->h->ops[i];

		for (uint64_t s = op->offset / HIST_SECTOR;
		     changes(op, disk) && s <= (op->offset + op->length - 1) / HIST_SECTOR; s++)
			v->start[s + 1]++;
	}
	for (size_t s = 0; s < v->sectors; s++) {
		v->start[s + 1] += v->start[s] + 1;
		next[s] = v->start[s] + 1;
	}
	v->op = alloc(v->start[v->sectors], sizeof(*v->op));
	v->hash = alloc(v->start[v->sectors], sizeof(*v->hash));
	for (size_t i = 0; i < ix->count; i++)
		if (changes(&ix->h->ops[i], disk))
			add_versions(v, &ix->h->ops[i], (uint32_t)i, next);
	free(next);
	for (size_t s = 0; s < v->sectors; s++)
		hash_sector(ix, disk, s);
}

struct hist_index *hist_index_create(const struct history *h, uint8_t *const base[HIST_DISKS])
{
	struct hist_index *ix = alloc(1, sizeof(*ix));

	ix->h = h;
	ix->base = base;
	ix->count = atomic_load(&h->count);
	ix->marks = alloc(ix->count, 1);
	for (unsigned d = 0; d < h->disks; d++)
		index_disk(ix, d);
	return ix;
}

void hist_index_destroy(struct hist_index *ix)
{
	if (!ix)
		return;
	for (unsigned d = 0; d < ix->h->disks; d++) {
		free(ix->disks[d].start);
		free(ix->disks[d].op);
		free(ix->disks[d].hash);
	}
	free(ix->marks);
	free(ix);
}

size_t hist_sectors(const struct hist_index *ix, unsigned disk)
{
	return ix->disks[disk].sectors;
}

static const struct hist_op *op_of(const struct hist_index *ix, unsigned disk, size_t s,
				   uint32_t version)
{
	const struct versions *v = &ix->disks[disk];

	return &ix->h->ops[v->op[v->start[s] + version]];
}

static uint32_t last_version(const struct hist_index *ix, unsigned disk, size_t s)
{
	const struct versions *v = &ix->disks[disk];

	return v->start[s + 1] - v->start[s] - 1;
}

/* The versions from @lo to @hi that look like this: the first and the last; false: none. */
static bool find(const struct hist_index *ix, unsigned disk, size_t s, const uint8_t *sector,
		 uint32_t lo, uint32_t hi, uint32_t *first, uint32_t *last)
{
	const struct versions *v = &ix->disks[disk];
	uint64_t hash = XXH3_64bits(sector, HIST_SECTOR);
	const uint64_t *hashes = v->hash + v->start[s];

	while (lo < hi && hashes[lo] != hash)
		lo++;
	while (hi > lo && hashes[hi] != hash)
		hi--;
	*first = lo;
	*last = hi;
	return hashes[lo] == hash;
}

static void explain(const struct hist_index *ix, unsigned disk, size_t s, const uint8_t *sector,
		    uint32_t lo, uint32_t hi, const char *what, char *why)
{
	uint32_t first, last, all = last_version(ix, disk, s);
	char found[128], where[128] = "none of its versions";
	const struct hist_op *op;
	size_t n;

	describe(sector, found, sizeof(found));
	if (find(ix, disk, s, sector, 0, all, &first, &last))
		snprintf(where, sizeof(where), "version %u..%u of %u", first, last, all);
	n = (size_t)snprintf(why, HIST_WHY, "disk %u sector %zu: found %s, %s; %s %u..%u:", disk, s,
			     found, where, what, lo, hi);
	for (uint32_t i = lo ? lo : 1; i <= all && i < lo + 6 && n < HIST_WHY; i++) {
		op = op_of(ix, disk, s, i);
		n += (size_t)snprintf(why + n, HIST_WHY - n,
				      " [%u: %s %llu+%u id %llu%s %llu-%llu]", i,
				      op->kind == HIST_ZERO ? "zero" : "write",
				      (unsigned long long)op->offset, op->length,
				      (unsigned long long)hist_id(ix->h, op), op->fua ? " fua" : "",
				      (unsigned long long)atomic_load(&op->issued),
				      (unsigned long long)atomic_load(&op->acked));
	}
}

/* --- P4 --- */

static bool acked_before(const struct hist_op *op, uint64_t when)
{
	uint64_t acked = atomic_load(&op->acked);

	return acked && acked < when;
}

/* What was acknowledged before this is durable: the issue of the last flush that had ended. */
static uint64_t flushed_before(const struct hist_index *ix, unsigned disk, uint64_t when)
{
	uint64_t latest = 0;

	for (size_t i = 0; i < ix->count; i++) {
		const struct hist_op *op = &ix->h->ops[i];

		if (op->disk == disk && op->kind == HIST_FLUSH && acked_before(op, when) &&
		    atomic_load(&op->issued) > latest)
			latest = atomic_load(&op->issued);
	}
	return latest;
}

bool hist_check_disk(const struct hist_index *ix, unsigned disk, const uint8_t *data,
		     enum hist_crash crash, uint64_t when, const uint32_t *floor, char *why)
{
	uint64_t flushed = crash == HIST_POWER ? flushed_before(ix, disk, when) : when;

	for (size_t s = 0; s < ix->disks[disk].sectors; s++) {
		const uint8_t *sector = data + s * HIST_SECTOR;
		uint32_t lo, hi = last_version(ix, disk, s), first, last;

		while (hi && atomic_load(&op_of(ix, disk, s, hi)->issued) >= when)
			hi--;
		for (lo = hi; lo; lo--) {
			const struct hist_op *op = op_of(ix, disk, s, lo);

			if (acked_before(op, flushed) || (op->fua && acked_before(op, when)) ||
			    (floor && lo <= floor[s]))
				break;
		}
		if (!find(ix, disk, s, sector, lo, hi, &first, &last)) {
			explain(ix, disk, s, sector, lo, hi, "expected", why);
			return false;
		}
	}
	return true;
}

/* --- P1 --- */

enum { MARK_IN = 1, MARK_OUT = 2 };

struct cut {
	const struct hist_index *ix;
	uint64_t newest; /* issue of the last write that is surely in */
	uint64_t newest_id;
};

/* Marks the writes that the sector's content says are in, and out. */
static bool mark_sector(struct cut *cut, unsigned disk, size_t s, const uint8_t *sector,
			uint32_t *floor, char *why)
{
	const struct hist_index *ix = cut->ix;
	uint32_t all = last_version(ix, disk, s), first, last;

	if (!find(ix, disk, s, sector, 0, all, &first, &last)) {
		explain(ix, disk, s, sector, 0, all, "expected", why);
		return false;
	}
	if (floor)
		floor[s] = first;
	for (uint32_t i = 1; i <= all; i++) {
		const struct hist_op *op = op_of(ix, disk, s, i);
		uint8_t mark = i <= first ? MARK_IN : i > last ? MARK_OUT : 0;

		if (atomic_load(&op->failed))
			continue;
		ix->marks[op - ix->h->ops] |= mark;
		if (mark == MARK_IN && atomic_load(&op->issued) > cut->newest) {
			cut->newest = atomic_load(&op->issued);
			cut->newest_id = hist_id(ix->h, op);
		}
	}
	return true;
}

static bool judge(const struct cut *cut, const struct hist_op *op, uint8_t mark, uint64_t called,
		  uint64_t done, char *why)
{
	const char *wrong = NULL;

	if (mark == (MARK_IN | MARK_OUT))
		wrong = "is in it in part";
	else if (mark & MARK_OUT && acked_before(op, called))
		wrong = "was acknowledged before the call and is not in it";
	else if (mark & MARK_IN && atomic_load(&op->issued) > done)
		wrong = "was issued after the completion and is in it";
	else if (mark & MARK_OUT && acked_before(op, cut->newest))
		wrong = "was acknowledged before the issue of a write that is in it, and is not";
	if (!wrong)
		return true;
	snprintf(why, HIST_WHY,
		 "write %llu (disk %u, %llu+%u, %llu-%llu) %s; called %llu, done %llu; the newest "
		 "in it is write %llu, issued %llu",
		 (unsigned long long)hist_id(cut->ix->h, op), op->disk,
		 (unsigned long long)op->offset, op->length,
		 (unsigned long long)atomic_load(&op->issued),
		 (unsigned long long)atomic_load(&op->acked), wrong, (unsigned long long)called,
		 (unsigned long long)done, (unsigned long long)cut->newest_id,
		 (unsigned long long)cut->newest);
	return false;
}

bool hist_check_cut(const struct hist_index *ix, uint8_t *const data[HIST_DISKS], uint64_t called,
		    uint64_t done, uint32_t *const floor[HIST_DISKS], char *why)
{
	struct cut cut = {.ix = ix};

	memset(ix->marks, 0, ix->count);
	for (unsigned d = 0; d < ix->h->disks; d++)
		for (size_t s = 0; data[d] && s < ix->disks[d].sectors; s++)
			if (!mark_sector(&cut, d, s, data[d] + s * HIST_SECTOR,
					 floor ? floor[d] : NULL, why))
				return false;
	for (size_t i = 0; i < ix->count; i++)
		if (!judge(&cut, &ix->h->ops[i], ix->marks[i], called, done, why))
			return false;
	return true;
}
