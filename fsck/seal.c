/* SPDX-License-Identifier: MIT */
/*
 * seal.c - the fourth pass, for sealed layers: index pages, whether they say what the log says, checksum
 * pages, the data itself, the seal hash (IX-*, CS-*, SL-*). Pages are read once, in order of offset,
 * which is the order of the hash. One thread a check.
 */
#include "fsck/layer.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

struct seal {
	struct fsck_layer *l;
	struct fmt_index_shape shape;
	struct fmt_seal_hash *hash;
	uint8_t page[FMT_PAGE];
	uint64_t *keys;          /* first block of each page of the level below */
	struct fsck_runs index;  /* what the leaves say */
	bool sound;              /* every page so far could be read and was right */
	uint64_t bad, bad_count; /* damaged slots in a row, not yet reported */
};

/* SL-2, as far as the file decides. */
static bool check_bounds(struct seal *s)
{
	const struct fmt_header *h = &s->l->hdr;
	uint64_t size = s->l->st.size, csum_len = fmt_csum_pages(h->slots) * FMT_PAGE, end;

	if (fmt_index_shape(h->index_runs, &s->shape) < 0)
		return false; /* the header's rules have it already */
	end = h->index_offset + s->shape.total * FMT_PAGE;
	if (h->csum_offset + csum_len > end)
		end = h->csum_offset + csum_len;
	if (end > size) {
		fsck_found(s->l->f, PR_SEAL_BOUNDS,
			   "they end at %#" PRIx64 ", the file at %#" PRIx64, end, size);
		return false;
	}
	if (s->l->gone && h->gone_offset >= end)
		end = h->gone_offset + fmt_gone_pages(h->gone_runs) * FMT_PAGE;
	if (s->l->log_slots > h->slots)
		fsck_found(s->l->f, PR_SEAL_SLOTS, "%" PRIu64 ", sealed were %" PRIu64,
			   s->l->log_slots, h->slots);
	if (size > end)
		fsck_leaked(s->l->f, PR_SEAL_LEAK, size - end, "%" PRIu64 " bytes behind %#" PRIx64,
			    size - end, end);
	return true;
}

/* Reads the next page for the hash; what it must be is checked by the caller. */
static int read_page(struct seal *s, uint64_t offset)
{
	int r = fsck_read(s->l, s->page, FMT_PAGE, offset);

	if (r == 0)
		fmt_seal_hash_add(s->hash, s->page, FMT_PAGE);
	else
		s->sound = false;
	return r;
}

/* The page, as one of the index: its checksum, then its place in the tree (IX-1, IX-2). */
static bool check_page(struct seal *s, uint32_t level, uint64_t i, uint64_t offset)
{
	enum fmt_page_type type = level ? FMT_PAGE_INNER : FMT_PAGE_LEAF;
	uint64_t per_page = level ? FMT_INNER_KEYS : FMT_LEAF_RUNS;
	uint64_t entries = level ? s->shape.pages[level - 1] : s->l->hdr.index_runs;
	uint64_t want = entries - i * per_page < per_page ? entries - i * per_page : per_page;
	struct fmt_error why = {""};
	struct fmt_page_disk d;
	uint32_t count = 0;
	int r = fmt_page_check(s->page, type, level, s->l->hdr.salt, offset, &count, &why);

	memcpy(&d, s->page, sizeof(d));
	if (r == -EBADMSG)
		fsck_found(s->l->f, PR_PAGE_CSUM, "%s", why.text);
	else if (le16_get(d.type) != type || le16_get(d.level) != level ||
		 le32_get(d.count) != want)
		fsck_found(s->l->f, PR_PAGE_SHAPE,
			   "at %#" PRIx64 ": type %u, level %u, %" PRIu32
			   " entries, expected %u, %" PRIu32 " and %" PRIu64,
			   offset, le16_get(d.type), le16_get(d.level), le32_get(d.count), type,
			   level, want);
	else if (r < 0)
		fsck_found(s->l->f, level ? PR_INNER_KEYS : PR_LEAF_ORDER, "%s", why.text);
	else
		return true;
	return false;
}

/* A leaf's runs behind those of the leaf before. */
static bool take_leaf(struct seal *s, uint64_t offset, uint64_t *key)
{
	struct fsck_layer *l = s->l;
	struct fmt_page_disk d;
	uint64_t end = 0;

	memcpy(&d, s->page, sizeof(d));
	if (s->index.count) {
		const struct fsck_run *last = &s->index.run[s->index.count - 1];

		end = last->block + last->count;
	}
	for (uint32_t i = 0; i < le32_get(d.count); i++) {
		struct fmt_error why = {""};
		struct fsck_run keep = {0};
		struct fmt_run run;

		fmt_leaf_run(s->page, i, &run);
		if (fmt_run_check(&run, l->blocks, l->hdr.slots, &why) < 0) {
			fsck_found(l->f, PR_INDEX_RUN, "page at %#" PRIx64 ": %s", offset,
				   why.text);
			return false;
		}
		if (run.block < end) {
			fsck_found(l->f, PR_LEAF_ORDER,
				   "page at %#" PRIx64 ": run %" PRIu32 " starts at block %" PRIu64
				   ", the one before ends at %" PRIu64,
				   offset, i, run.block, end);
			return false;
		}
		keep = (struct fsck_run){run.block, run.slot, run.count, run.kind, false};
		if (fsck_runs_add(l->f, &s->index, &keep) < 0)
			return false;
		end = run.block + run.count;
		if (i == 0)
			*key = run.block;
	}
	return true;
}

/* IX-4: each key is the first block of the page beneath. */
static bool take_inner(struct seal *s, uint64_t i, uint64_t offset, uint64_t *key)
{
	struct fmt_page_disk d;

	memcpy(&d, s->page, sizeof(d));
	for (uint32_t j = 0; j < le32_get(d.count); j++) {
		uint64_t got = fmt_inner_key(s->page, j), want = s->keys[i * FMT_INNER_KEYS + j];

		if (got == want)
			continue;
		fsck_found(s->l->f, PR_INNER_KEYS,
			   "page at %#" PRIx64 ": key %" PRIu32 " is %" PRIu64
			   ", the page beneath starts with block %" PRIu64,
			   offset, j, got, want);
		return false;
	}
	*key = fmt_inner_key(s->page, 0);
	return true;
}

/* All pages of @level, up to the first that is bad: what is above it cannot be judged. */
static int check_level(struct seal *s, uint32_t level)
{
	uint64_t pages = s->shape.pages[level], cap = 0, *keys = NULL;
	int r = 0;

	for (uint64_t i = 0; r == 0 && s->sound && i < pages; i++) {
		uint64_t offset = s->l->hdr.index_offset + (s->shape.first[level] + i) * FMT_PAGE;

		r = read_page(s, offset);
		if (r < 0)
			break;
		if (i ==
		    cap) { /* grown with the pages that are right, not with what the header says */
			uint64_t *p = realloc(keys, (cap * 2 + 16) * sizeof(*keys));

			if (!p) {
				r = fsck_cannot(s->l->f, -ENOMEM, "%s: no memory", s->l->path);
				break;
			}
			keys = p;
			cap = cap * 2 + 16;
		}
		keys[i] = 0;
		s->sound = check_page(s, level, i, offset) &&
			   (level ? take_inner(s, i, offset, &keys[i])
				  : take_leaf(s, offset, &keys[i]));
	}
	free(s->keys);
	s->keys = keys;
	return r;
}

/* IX-5, in steps over which neither changes: how runs are joined or split says nothing. */
static void compare_maps(const struct seal *s)
{
	const struct fsck_runs *log = &s->l->map, *index = &s->index;
	uint64_t done = 0; /* blocks before it agree */
	size_t i = 0, j = 0;

	while (i < log->count || j < index->count) {
		const struct fsck_run *a = i < log->count ? &log->run[i] : NULL;
		const struct fsck_run *b = j < index->count ? &index->run[j] : NULL;
		uint64_t at_a = !a ? UINT64_MAX : a->block > done ? a->block : done;
		uint64_t at_b = !b ? UINT64_MAX : b->block > done ? b->block : done;

		if (at_a != at_b || a->kind != b->kind ||
		    (a->kind == FMT_RUN_DATA &&
		     a->slot + (at_a - a->block) != b->slot + (at_b - b->block))) {
			fsck_found(s->l->f, PR_INDEX_DIFFERS, "first at block %" PRIu64,
				   at_a < at_b ? at_a : at_b);
			return;
		}
		done = a->block + a->count < b->block + b->count ? a->block + a->count
								 : b->block + b->count;
		i += done == a->block + a->count;
		j += done == b->block + b->count;
	}
}

/* --- checksums --- */

static void say_bad(struct seal *s)
{
	const struct fmt_header *h = &s->l->hdr;

	if (s->bad_count)
		fsck_found(s->l->f, PR_DATA_CSUM,
			   "%" PRIu64 " slots from slot %" PRIu64 ", at %#" PRIx64, s->bad_count,
			   s->bad, h->data_offset + (s->bad << h->block_bits));
	s->bad_count = 0;
}

/* The data of slots @from up to @to against their entries in the page, which starts with @first. */
static int check_data(struct seal *s, uint64_t first, uint64_t from, uint64_t to)
{
	const struct fmt_header *h = &s->l->hdr;
	uint64_t at_once = FSCK_BUF >> h->block_bits;
	size_t bs = (size_t)1 << h->block_bits;

	while (from < to) {
		uint64_t n = to - from < at_once ? to - from : at_once;
		int r = fsck_read(s->l, s->l->buf, n * bs,
				  h->data_offset + (from << h->block_bits));

		if (r < 0)
			return r;
		for (uint64_t i = 0; i < n; i++, from++) {
			if (fsck_is_gone(s->l, from) ||
			    fmt_block_csum(s->l->buf + i * bs, bs) ==
				    fmt_csum_get(s->page, (uint32_t)(from - first)))
				continue;
			if (s->bad_count && s->bad + s->bad_count != from)
				say_bad(s);
			if (!s->bad_count)
				s->bad = from;
			s->bad_count++;
		}
	}
	return 0;
}

/* CS-1: one page, whose entries are those of the slots from @first. */
static bool check_csum_page(struct seal *s, uint64_t offset, uint64_t first)
{
	uint64_t left = s->l->hdr.slots - first,
		 want = left < FMT_CSUM_SLOTS ? left : FMT_CSUM_SLOTS;
	struct fmt_error why = {""};
	uint32_t count = 0;
	int r = fmt_page_check(s->page, FMT_PAGE_CSUM, 0, s->l->hdr.salt, offset, &count, &why);

	if (r < 0)
		fsck_found(s->l->f, PR_CSUM_PAGE, "%s", why.text);
	else if (count != want)
		fsck_found(s->l->f, PR_CSUM_PAGE,
			   "page at %#" PRIx64 ": %" PRIu32 " entries, expected %" PRIu64, offset,
			   count, want);
	else
		return true;
	s->sound = false;
	return false;
}

/* CS-3: entries of slots from @from up to @to, which no run names. */
static void check_unused(struct seal *s, uint64_t first, uint64_t from, uint64_t to)
{
	for (uint64_t slot = from; slot < to; slot++)
		if (fmt_csum_get(s->page, (uint32_t)(slot - first)))
			fsck_found(s->l->f, PR_CSUM_UNUSED, "slot %" PRIu64, slot);
}

/* All checksum pages, with the data of those slots that @used, sorted by slot, names. */
static int check_csums(struct seal *s, const struct fsck_runs *used)
{
	const struct fmt_header *h = &s->l->hdr;
	size_t u = 0;
	int r = 0;

	for (uint64_t first = 0; r == 0 && first < h->slots; first += FMT_CSUM_SLOTS) {
		uint64_t offset = h->csum_offset + first / FMT_CSUM_SLOTS * FMT_PAGE, at = first;
		uint64_t end = h->slots - first < FMT_CSUM_SLOTS ? h->slots
								 : first + FMT_CSUM_SLOTS;
		bool good;

		r = read_page(s, offset);
		if (r < 0)
			break;
		good = check_csum_page(s, offset, first);
		for (; r == 0 && u < used->count && used->run[u].slot < end; u++) {
			uint64_t run_end = (uint64_t)used->run[u].slot + used->run[u].count;
			uint64_t from = used->run[u].slot > at ? used->run[u].slot : at;
			uint64_t to = run_end < end ? run_end : end;

			if (good && from < to) {
				check_unused(s, first, at, from);
				r = check_data(s, first, from, to);
			}
			at = to > at ? to : at;
			if (run_end > end)
				break;
		}
		if (good && r == 0)
			check_unused(s, first, at, end);
	}
	say_bad(s);
	return r;
}

/* --- all of it --- */

static int check_all(struct seal *s)
{
	struct fsck_layer *l = s->l;
	struct fsck_runs used = {0};
	uint8_t found[16];
	bool index_sound;
	int r = 0;

	for (uint32_t level = 0; r == 0 && s->sound && level < s->shape.levels; level++)
		r = check_level(s, level);
	index_sound = s->sound && r == 0;
	if (index_sound && l->log_sound)
		compare_maps(s);
	/* Readers go by the index; the log stands in for a damaged one. Neither: pages alone. */
	if (r == 0 && index_sound)
		r = fsck_runs_by_slot(l->f, &s->index, &used);
	else if (r == 0 && l->log_sound)
		r = fsck_runs_by_slot(l->f, &l->map, &used);
	if (r == 0 && (index_sound || l->log_sound))
		fsck_gone_named(l, &used);
	if (r == 0)
		r = check_csums(s, &used);
	free(used.run);
	if (r < 0 || !s->sound)
		return r; /* a bad page has been reported: the hash would only say so again */
	fmt_seal_hash_end(s->hash, found);
	if (memcmp(found, l->hdr.seal_hash, sizeof(found)) != 0)
		fsck_found(l->f, PR_SEAL_HASH, "of %" PRIu64 " pages",
			   s->shape.total + fmt_csum_pages(l->hdr.slots));
	return 0;
}

void fsck_seal(struct fsck_layer *l)
{
	struct seal s = {.l = l, .sound = true};

	fsck_gone_load(l);
	s.hash = fmt_seal_hash_create();
	if (!s.hash)
		fsck_cannot(l->f, -ENOMEM, "%s: no memory", l->path);
	else if (check_bounds(&s))
		check_all(&s);
	fmt_seal_hash_destroy(s.hash);
	free(s.keys);
	free(s.index.run);
}
