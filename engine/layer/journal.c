/* SPDX-License-Identifier: MIT */
/*
 * journal.c - a disk's journal in shared memory: a header, a table of layers and a ring of entries.
 *
 * A process may die between any two instructions, so every change ends with one store that makes it
 * count: `next` after an entry, a layer's `state` after its other fields, `magic` after the header.
 * Entry n lies at n modulo ENG_JOURNAL_ENTRIES and repeats its number. Native byte order: shared
 * memory does not outlive the boot. What is opened may have been written by anyone with our rights,
 * and is checked before it is used.
 */
#include "engine/layer/journal.h"

#include <assert.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define JOURNAL_MAGIC   0x4c4e4a474d494d56ull /* "VMIMGJNL" */
#define JOURNAL_VERSION 1u

/* A layer's place in the table: FREE -> BUSY (being filled in) -> USED -> FREE. */
enum { LAYER_FREE = 0, LAYER_BUSY = 1, LAYER_USED = 2 };

struct shm_layer {
	_Atomic uint32_t state;
	uint32_t reserved;
	uint8_t id[16];
	uint64_t dev, ino;
	uint64_t since; /* older entries with this tag are another layer's */
	uint8_t pad[16];
};

struct shm_entry {
	uint64_t number;
	uint64_t where; /* block 0..47, tag 48..55, kind 56..63 */
	uint32_t slot;
	uint32_t count;
};

#define WHERE_TAG_SHIFT  48
#define WHERE_KIND_SHIFT 56
#define WHERE_BLOCK      ((1ull << WHERE_TAG_SHIFT) - 1)

struct shm {
	_Atomic uint64_t magic;
	uint32_t version;
	uint32_t reserved;
	uint8_t store[16];
	uint8_t disk[16];
	uint8_t boot[16];
	uint64_t nonce;
	_Atomic uint64_t first; /* number of the oldest entry kept */
	_Atomic uint64_t next;  /* number of the next entry; first..next-1 are in the ring */
	uint64_t pad;
	struct shm_layer layers[ENG_JOURNAL_LAYERS];
	struct shm_entry entries[ENG_JOURNAL_ENTRIES];
};
static_assert(sizeof(struct shm_layer) == 64, "table entry");
static_assert(sizeof(struct shm_entry) == 24, "ring entry");
static_assert(offsetof(struct shm, layers) == 96, "header");
static_assert((ENG_JOURNAL_ENTRIES & (ENG_JOURNAL_ENTRIES - 1)) == 0, "numbers wrap evenly");

struct eng_journal {
	struct eng_io *io;
	struct shm *shm;
};

#define NAME_LEN (sizeof("vmimg-") - 1 + FMT_UUID_TEXT)

static void shm_name(const struct fmt_uuid *disk, char name[NAME_LEN])
{
	char text[FMT_UUID_TEXT];

	fmt_uuid_format(disk, text);
	snprintf(name, NAME_LEN, "vmimg-%s", text);
}

int eng_journal_create(struct eng_io *io, const struct fmt_uuid *store, const struct fmt_uuid *disk,
		       uint64_t after, struct eng_journal **ret)
{
	struct eng_journal *j = calloc(1, sizeof(*j));
	char name[NAME_LEN];
	void *map = NULL;
	int r = -ENOMEM;

	if (!j)
		goto out;
	shm_name(disk, name);
	r = eng_io_shm_unlink(io, name);
	if (r < 0 && r != -ENOENT)
		goto out;
	r = eng_io_shm_create(io, name, sizeof(struct shm), &map);
	if (r < 0)
		goto out;
	j->io = io;
	j->shm = map;
	memset(map, 0, sizeof(struct shm));
	j->shm->version = JOURNAL_VERSION;
	memcpy(j->shm->store, store->b, 16);
	memcpy(j->shm->disk, disk->b, 16);
	eng_io_boot_id(io, j->shm->boot);
	eng_io_random(io, &j->shm->nonce, sizeof(j->shm->nonce));
	atomic_init(&j->shm->first, after + 1);
	atomic_init(&j->shm->next, after + 1);
	atomic_store_explicit(&j->shm->magic, JOURNAL_MAGIC, memory_order_release);
	*ret = j;
	j = NULL;
out:
	free(j);
	return r;
}

/* Everything but the entries, which eng_journal_each() checks. */
static int check_header(struct eng_io *io, const struct shm *shm, const struct fmt_uuid *store,
			const struct fmt_uuid *disk)
{
	uint64_t first = atomic_load(&shm->first), next = atomic_load(&shm->next);
	uint8_t boot[16];

	eng_io_boot_id(io, boot);
	if (atomic_load(&shm->magic) != JOURNAL_MAGIC || shm->version != JOURNAL_VERSION ||
	    memcmp(shm->store, store->b, 16) != 0 || memcmp(shm->disk, disk->b, 16) != 0 ||
	    memcmp(shm->boot, boot, 16) != 0)
		return -EUCLEAN;
	if (!first || first > next || next - first > ENG_JOURNAL_ENTRIES)
		return -EUCLEAN;
	for (uint32_t tag = 0; tag < ENG_JOURNAL_LAYERS; tag++) {
		uint32_t state = atomic_load(&shm->layers[tag].state);

		if (state > LAYER_USED || (state == LAYER_USED && shm->layers[tag].since > next))
			return -EUCLEAN;
	}
	return 0;
}

int eng_journal_open(struct eng_io *io, const struct fmt_uuid *store, const struct fmt_uuid *disk,
		     struct eng_journal **ret)
{
	struct eng_journal *j = calloc(1, sizeof(*j));
	char name[NAME_LEN];
	void *map = NULL;
	size_t len = 0;
	int r = -ENOMEM;

	if (!j)
		goto out;
	shm_name(disk, name);
	r = eng_io_shm_open(io, name, &len, &map);
	if (r < 0)
		goto out;
	r = len == sizeof(struct shm) ? check_header(io, map, store, disk) : -EUCLEAN;
	if (r < 0)
		goto out;
	j->io = io;
	j->shm = map;
	map = NULL;
	for (uint32_t tag = 0; tag < ENG_JOURNAL_LAYERS; tag++) {
		uint32_t busy = LAYER_BUSY; /* its maker died before it counted */

		atomic_compare_exchange_strong(&j->shm->layers[tag].state, &busy, LAYER_FREE);
	}
	*ret = j;
	j = NULL;
out:
	if (map)
		eng_io_shm_unmap(io, map, len);
	free(j);
	return r;
}

void eng_journal_close(struct eng_journal *j)
{
	if (!j)
		return;
	eng_io_shm_unmap(j->io, j->shm, sizeof(*j->shm));
	free(j);
}

void eng_journal_remove(struct eng_io *io, const struct fmt_uuid *disk)
{
	char name[NAME_LEN];

	shm_name(disk, name);
	eng_io_shm_unlink(io, name); /* -ENOENT is fine, and nothing hangs on the rest */
}

uint64_t eng_journal_nonce(const struct eng_journal *j)
{
	return j->shm->nonce;
}

/* --- layers --- */

int eng_journal_add_layer(struct eng_journal *j, const struct fmt_uuid *layer, uint64_t dev,
			  uint64_t ino, uint32_t *tag)
{
	for (uint32_t t = 0; t < ENG_JOURNAL_LAYERS; t++) {
		struct shm_layer *l = &j->shm->layers[t];
		uint32_t state = LAYER_FREE;

		if (!atomic_compare_exchange_strong(&l->state, &state, LAYER_BUSY))
			continue;
		memcpy(l->id, layer->b, 16);
		l->dev = dev;
		l->ino = ino;
		l->since = atomic_load(&j->shm->next);
		atomic_store_explicit(&l->state, LAYER_USED, memory_order_release);
		*tag = t;
		return 0;
	}
	return -ENOSPC;
}

void eng_journal_drop_layer(struct eng_journal *j, uint32_t tag)
{
	assert(tag < ENG_JOURNAL_LAYERS);
	atomic_store_explicit(&j->shm->layers[tag].state, LAYER_FREE, memory_order_release);
}

int eng_journal_find_layer(const struct eng_journal *j, const struct fmt_uuid *layer, uint64_t dev,
			   uint64_t ino, uint32_t *tag)
{
	for (uint32_t t = 0; t < ENG_JOURNAL_LAYERS; t++) {
		const struct shm_layer *l = &j->shm->layers[t];

		if (atomic_load_explicit(&l->state, memory_order_acquire) != LAYER_USED ||
		    memcmp(l->id, layer->b, 16) != 0)
			continue;
		if (l->dev != dev || l->ino != ino)
			return -EUCLEAN;
		*tag = t;
		return 0;
	}
	return -ENOENT;
}

/* --- entries --- */

uint32_t eng_journal_room(const struct eng_journal *j)
{
	uint64_t used = atomic_load_explicit(&j->shm->next, memory_order_relaxed) -
			atomic_load_explicit(&j->shm->first, memory_order_relaxed);

	return used < ENG_JOURNAL_ENTRIES ? ENG_JOURNAL_ENTRIES - (uint32_t)used : 0;
}

int eng_journal_append(struct eng_journal *j, uint32_t tag, const struct fmt_run *run,
		       uint64_t *number)
{
	uint64_t n = atomic_load_explicit(&j->shm->next, memory_order_relaxed);
	struct shm_entry *e = &j->shm->entries[n % ENG_JOURNAL_ENTRIES];

	assert(tag < ENG_JOURNAL_LAYERS);
	assert(run->block <= WHERE_BLOCK && run->count && run->kind <= FMT_RUN_ZERO);
	if (!eng_journal_room(j))
		return -ENOSPC;
	e->number = n;
	e->where = run->block | (uint64_t)tag << WHERE_TAG_SHIFT |
		   (uint64_t)run->kind << WHERE_KIND_SHIFT;
	e->slot = run->slot;
	e->count = run->count;
	/* A death before this store leaves no entry, one after it a whole one (JN-1). */
	atomic_store_explicit(&j->shm->next, n + 1, memory_order_release);
	*number = n;
	return 0;
}

uint64_t eng_journal_last(const struct eng_journal *j)
{
	return atomic_load_explicit(&j->shm->next, memory_order_acquire) - 1;
}

void eng_journal_drop(struct eng_journal *j, uint64_t number)
{
	uint64_t next = atomic_load_explicit(&j->shm->next, memory_order_relaxed);
	uint64_t first = number < next ? number + 1 : next;

	if (first > atomic_load_explicit(&j->shm->first, memory_order_relaxed))
		atomic_store_explicit(&j->shm->first, first, memory_order_release);
}

int eng_journal_each(const struct eng_journal *j, uint32_t tag, uint64_t after,
		     int (*each)(void *arg, uint64_t number, const struct fmt_run *run), void *arg)
{
	uint64_t first = atomic_load_explicit(&j->shm->first, memory_order_acquire);
	uint64_t next = atomic_load_explicit(&j->shm->next, memory_order_acquire);
	uint64_t since;

	assert(tag < ENG_JOURNAL_LAYERS);
	if (first > next || next - first > ENG_JOURNAL_ENTRIES)
		return -EUCLEAN;
	since = j->shm->layers[tag].since;
	for (uint64_t n = first; n < next; n++) {
		const struct shm_entry *e = &j->shm->entries[n % ENG_JOURNAL_ENTRIES];
		struct fmt_run run = {
			.block = e->where & WHERE_BLOCK,
			.slot = e->slot,
			.count = e->count,
			.kind = (uint8_t)(e->where >> WHERE_KIND_SHIFT),
		};
		uint32_t entry_tag = (e->where >> WHERE_TAG_SHIFT) & 0xff;
		int r;

		if (e->number != n || entry_tag >= ENG_JOURNAL_LAYERS ||
		    fmt_run_check(&run, WHERE_BLOCK, FMT_SLOT_NONE, NULL) < 0)
			return -EUCLEAN;
		if (entry_tag != tag || n < since || n <= after)
			continue;
		r = each(arg, n, &run);
		if (r != 0)
			return r;
	}
	return 0;
}
