/* SPDX-License-Identifier: MIT */
/*
 * gone.c - see gone.h.
 *
 * A list is never changed in place: the new one is written elsewhere and synced, then a header names it.
 * Short ones take turns in the two halves of the gap before slot 0, which was allocated with the layer;
 * longer ones lie behind the seal's pages, each behind the one before. A crash may leave bytes behind the
 * layer's end, or the space of an old list: leaks both.
 */
#include "engine/layer/gone.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

int eng_gone_read(struct eng_io *io, struct eng_file *file, const char *path,
		  const struct fmt_header *hdr, struct fmt_error *err, struct eng_gone **ret)
{
	size_t len = (size_t)fmt_gone_pages(hdr->gone_runs) * FMT_PAGE;
	struct fmt_error why = {""};
	struct eng_gone *list;
	void *pages = NULL;
	ssize_t n;
	int r;

	*ret = NULL;
	if (!hdr->gone_runs)
		return 0;
	list = malloc(sizeof(*list) + hdr->gone_runs * sizeof(list->run[0])); /* bounded: GO-1 */
	if (!list || posix_memalign(&pages, FMT_PAGE, len)) {
		free(list);
		return fmt_fail(err, -ENOMEM, "%s: no memory for its list of gone slots", path);
	}
	n = eng_io_pread(io, file, pages, len, hdr->gone_offset);
	if (n < (ssize_t)len) {
		r = fmt_fail(err, n < 0 ? (int)n : -EUCLEAN,
			     "%s: cannot read its list of gone slots at %#" PRIx64 ": %s", path,
			     hdr->gone_offset, n < 0 ? strerror((int)-n) : "the file ends");
	} else {
		r = fmt_gone_decode(hdr, pages, list->run, &why);
		if (r < 0)
			fmt_fail(err, r, "%s: %s", path, why.text);
	}
	free(pages);
	if (r < 0) {
		free(list);
		return r;
	}
	list->count = hdr->gone_runs;
	list->slots = 0;
	for (uint32_t i = 0; i < list->count; i++)
		list->slots += list->run[i].count;
	*ret = list;
	return 0;
}

/* --- asking --- */

/* The first run that ends behind @slot; @list->count where there is none. */
static uint32_t find(const struct eng_gone *list, uint32_t slot)
{
	uint32_t low = 0, high = list->count;

	while (low < high) {
		uint32_t mid = low + (high - low) / 2;

		if ((uint64_t)list->run[mid].slot + list->run[mid].count <= slot)
			low = mid + 1;
		else
			high = mid;
	}
	return low;
}

uint32_t eng_gone_span(const struct eng_gone *list, uint32_t slot, uint32_t count, bool *gone)
{
	const struct fmt_gone *run;
	uint64_t n;
	uint32_t i;

	*gone = false;
	if (!list)
		return count;
	i = find(list, slot);
	if (i == list->count)
		return count;
	run = &list->run[i];
	*gone = run->slot <= slot;
	n = *gone ? (uint64_t)run->slot + run->count - slot : run->slot - slot;
	return n < count ? (uint32_t)n : count;
}

bool eng_gone_any(const struct eng_gone *list, uint32_t slot, uint32_t count)
{
	bool gone;

	return eng_gone_span(list, slot, count, &gone) < count || (gone && count);
}

int eng_gone_refuse(const struct eng_layer *layer, uint64_t block, uint32_t slot,
		    struct fmt_error *err)
{
	if (!layer->gone || !eng_gone_any(layer->gone, slot, 1))
		return 0;
	return fmt_fail(err, -EUCLEAN,
			"%s: block %" PRIu64 " in slot %" PRIu32
			" is gone, and no newer layer holds it (PU-6)",
			layer->path, block, slot);
}

/* --- changing it --- */

static int encode(const struct eng_layer *layer, const struct fmt_gone *runs, uint32_t count,
		  struct eng_gone_place *place, uint8_t *pages)
{
	struct fmt_seal_hash *hash = fmt_seal_hash_create();

	if (!hash)
		return -ENOMEM;
	for (uint32_t i = 0; i < count; i += FMT_GONE_SLOTS, pages += FMT_PAGE) {
		uint32_t n = count - i < FMT_GONE_SLOTS ? count - i : FMT_GONE_SLOTS;

		fmt_gone_encode(runs + i, n, layer->salt,
				place->offset + i / FMT_GONE_SLOTS * (uint64_t)FMT_PAGE, pages);
		fmt_seal_hash_add(hash, pages, FMT_PAGE);
	}
	place->runs = count;
	fmt_seal_hash_end(hash, place->hash);
	fmt_seal_hash_destroy(hash);
	return 0;
}

/* Where what the header names ends, but for what lies before slot 0. */
static uint64_t end_of(const struct fmt_header *hdr)
{
	uint64_t end = fmt_seal_end(hdr);

	return hdr->gone_runs && hdr->gone_offset >= end
		       ? hdr->gone_offset + fmt_gone_pages(hdr->gone_runs) * FMT_PAGE
		       : end;
}

/* Where a list of @pages may be written: neither over anything, nor over the list that is there. */
static uint64_t find_place(const struct fmt_header *hdr, uint64_t pages)
{
	uint64_t gap, half = fmt_gap_pages(hdr, &gap) / 2, middle = gap + half * FMT_PAGE;
	uint64_t used = fmt_gone_pages(hdr->gone_runs) * FMT_PAGE;

	if (pages > half)
		return end_of(hdr);
	if (!used || hdr->gone_offset >= middle)
		return gap;
	return hdr->gone_offset + used <= middle ? middle : end_of(hdr);
}

uint32_t eng_gone_room(const struct eng_layer *layer)
{
	uint64_t gap, half = fmt_gap_pages(&layer->hdr, &gap) / 2;

	return half < FMT_GONE_RUNS_MAX / FMT_GONE_SLOTS ? (uint32_t)half * FMT_GONE_SLOTS
							 : FMT_GONE_RUNS_MAX;
}

int eng_gone_write(struct eng_layer *layer, const struct fmt_gone *runs, uint32_t count,
		   struct fmt_error *err, struct eng_gone_place *ret)
{
	struct eng_gone_place place = {.offset = find_place(&layer->hdr, fmt_gone_pages(count))};
	size_t len = (size_t)fmt_gone_pages(count) * FMT_PAGE;
	void *pages = NULL;
	int r = -ENOMEM;

	assert(layer->hdr.state == FMT_STATE_SEALED && count && count <= FMT_GONE_RUNS_MAX);
	if (posix_memalign(&pages, FMT_PAGE, len) == 0)
		r = encode(layer, runs, count, &place, pages);
	if (r == 0) {
		r = eng_io_pwrite(layer->io, layer->file, pages, len, place.offset);
		if (r == 0)
			r = eng_io_fdatasync(layer->io, layer->file);
		if (r < 0)
			eng_gone_drop(layer, &place);
	}
	free(pages);
	if (r < 0)
		return fmt_fail(err, r, "%s: cannot write a list of gone slots: %s", layer->path,
				strerror(-r));
	*ret = place;
	return 0;
}

void eng_gone_drop(struct eng_layer *layer, const struct eng_gone_place *place)
{
	if (place->offset >= end_of(&layer->hdr))
		(void)eng_io_truncate(layer->io, layer->file, place->offset); /* else a leak */
}

static void edit_gone(struct fmt_header *hdr, void *arg)
{
	const struct eng_gone_place *place = arg;

	hdr->incompat |= FMT_INCOMPAT_GONE;
	hdr->gone_offset = place->offset;
	hdr->gone_runs = place->runs;
	memcpy(hdr->gone_hash, place->hash, sizeof(hdr->gone_hash));
}

int eng_gone_name(struct eng_layer *layer, const struct eng_gone_place *place,
		  struct fmt_error *err)
{
	uint64_t old = layer->hdr.gone_offset,
		 old_len = fmt_gone_pages(layer->hdr.gone_runs) * FMT_PAGE;
	struct eng_gone_place mine = *place;
	int r = eng_layer_update(layer, edit_gone, &mine, err);

	if (r < 0)
		return r;
	/* Leaks where they fail. What is behind the list was of a try that came to nothing. */
	if (old_len && old != place->offset && old >= fmt_seal_end(&layer->hdr))
		(void)eng_io_punch(layer->io, layer->file, old, old_len);
	(void)eng_io_truncate(layer->io, layer->file, end_of(&layer->hdr));
	return 0;
}
