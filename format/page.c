/* SPDX-License-Identifier: MIT */
/*
 * page.c - what sealing adds to a layer: the pages of its static index, the pages of its data's
 * checksums, and the seal hash over both (spec/format.md IX-1..IX-6, CS-1..CS-4, SL-3). Pure
 * functions, any thread; a seal hash belongs to its creator.
 */
#include "format/layer.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "format/run.h"

static const uint8_t MAGIC[4] = {'V', 'P', 'A', 'G'};

struct fmt_seal_hash {
	XXH3_state_t *state;
};

static uint64_t div_up(uint64_t n, uint64_t d)
{
	return n / d + (n % d != 0);
}

int fmt_index_shape(uint64_t runs, struct fmt_index_shape *ret)
{
	struct fmt_index_shape s;
	uint64_t pages = runs ? div_up(runs, FMT_LEAF_RUNS) : 1;

	memset(&s, 0, sizeof(s));
	for (;;) {
		if (s.levels == FMT_INDEX_LEVELS_MAX)
			return -EUCLEAN;
		s.first[s.levels] = s.total;
		s.pages[s.levels] = pages;
		s.total += pages;
		s.levels++;
		if (pages == 1)
			break;
		pages = div_up(pages, FMT_INNER_KEYS);
	}
	*ret = s;
	return 0;
}

uint64_t fmt_csum_pages(uint64_t slots)
{
	return div_up(slots, FMT_CSUM_SLOTS);
}

/*
 * Every slot a run of its own, with a run of zeros in every gap before, between and after them. A
 * layer with still more runs of zeros finds its space when it is sealed, or stays FROZEN (SP-3).
 */
uint64_t fmt_seal_reserve(uint64_t slots)
{
	struct fmt_index_shape shape;

	assert(slots <= FMT_SLOT_NONE);
	if (fmt_index_shape(2 * slots + 1, &shape) < 0)
		abort(); /* 2^33 runs take five levels */
	return (shape.total + fmt_csum_pages(slots)) * FMT_PAGE;
}

/* Clears the page's checksum and computes it. */
static uint64_t page_csum(struct fmt_page_disk *d, uint64_t salt, uint64_t offset)
{
	d->csum = le64_make(0);
	return XXH3_64bits_withSeed(d, sizeof(*d), salt ^ offset);
}

static void page_end(struct fmt_page_disk *d, enum fmt_page_type type, uint32_t level,
		     uint32_t count, uint64_t salt, uint64_t offset, uint8_t page[FMT_PAGE])
{
	memcpy(d->magic, MAGIC, sizeof(MAGIC));
	d->type = le16_make((uint16_t)type);
	d->level = le16_make((uint16_t)level);
	d->count = le32_make(count);
	d->csum = le64_make(page_csum(d, salt, offset));
	memcpy(page, d, FMT_PAGE);
}

void fmt_leaf_encode(const struct fmt_run *runs, uint32_t count, uint64_t salt, uint64_t offset,
		     uint8_t page[FMT_PAGE])
{
	struct fmt_page_disk d;

	assert(count <= FMT_LEAF_RUNS);
	memset(&d, 0, sizeof(d));
	for (uint32_t i = 0; i < count; i++) {
		assert(i == 0 || runs[i].block >= runs[i - 1].block + runs[i - 1].count);
		fmt_run_pack(&runs[i], d.body + i * sizeof(struct fmt_run_disk));
	}
	page_end(&d, FMT_PAGE_LEAF, 0, count, salt, offset, page);
}

static void put_words(const uint64_t *words, uint32_t count, uint8_t *body)
{
	for (uint32_t i = 0; i < count; i++) {
		le64 v = le64_make(words[i]);

		memcpy(body + i * 8, &v, 8);
	}
}

static uint64_t get_word(const uint8_t page[FMT_PAGE], uint32_t i)
{
	le64 v;

	memcpy(&v, page + offsetof(struct fmt_page_disk, body) + i * 8, 8);
	return le64_get(v);
}

void fmt_inner_encode(const uint64_t *first_blocks, uint32_t count, uint32_t level, uint64_t salt,
		      uint64_t offset, uint8_t page[FMT_PAGE])
{
	struct fmt_page_disk d;

	assert(count && count <= FMT_INNER_KEYS && level && level < FMT_INDEX_LEVELS_MAX);
	for (uint32_t i = 1; i < count; i++)
		assert(first_blocks[i] > first_blocks[i - 1]);
	memset(&d, 0, sizeof(d));
	put_words(first_blocks, count, d.body);
	page_end(&d, FMT_PAGE_INNER, level, count, salt, offset, page);
}

void fmt_csum_encode(const uint64_t *csums, uint32_t count, uint64_t salt, uint64_t offset,
		     uint8_t page[FMT_PAGE])
{
	struct fmt_page_disk d;

	assert(count && count <= FMT_CSUM_SLOTS);
	memset(&d, 0, sizeof(d));
	put_words(csums, count, d.body);
	page_end(&d, FMT_PAGE_CSUM, 0, count, salt, offset, page);
}

/* IX-3: a leaf's runs are well formed, sorted and apart. */
static int check_leaf(const uint8_t page[FMT_PAGE], uint32_t count, uint64_t offset,
		      struct fmt_error *err)
{
	uint64_t end = 0;

	for (uint32_t i = 0; i < count; i++) {
		struct fmt_run run;
		int r;

		fmt_leaf_run(page, i, &run);
		r = fmt_run_check(&run, UINT64_MAX, FMT_SLOT_NONE, err);
		if (r < 0)
			return r;
		if (run.block < end)
			return fmt_fail(err, -EUCLEAN,
					"page at %#" PRIx64 ": run %" PRIu32
					" starts at block %" PRIu64 ", expected at least %" PRIu64,
					offset, i, run.block, end);
		end = run.block + run.count;
	}
	return 0;
}

/* IX-4: an inner page's keys rise. */
static int check_inner(const uint8_t page[FMT_PAGE], uint32_t count, uint64_t offset,
		       struct fmt_error *err)
{
	for (uint32_t i = 1; i < count; i++) {
		if (get_word(page, i) <= get_word(page, i - 1))
			return fmt_fail(err, -EUCLEAN,
					"page at %#" PRIx64 ": key %" PRIu32 " does not rise",
					offset, i);
	}
	return 0;
}

/* GO-2: runs that rise, apart from each other. */
static int check_gone(const uint8_t page[FMT_PAGE], uint32_t count, uint64_t offset,
		      struct fmt_error *err)
{
	uint64_t end = 0;

	for (uint32_t i = 0; i < count; i++) {
		struct fmt_gone run;

		fmt_gone_run(page, i, &run);
		if (!run.count || (i && run.slot <= end))
			return fmt_fail(err, -EUCLEAN,
					"page at %#" PRIx64 ": run %" PRIu32 " of %" PRIu32
					" gone slots from %" PRIu32 ", behind slot %" PRIu64,
					offset, i, run.count, run.slot, end);
		end = (uint64_t)run.slot + run.count;
	}
	return 0;
}

int fmt_page_check(const uint8_t page[FMT_PAGE], enum fmt_page_type type, uint32_t level,
		   uint64_t salt, uint64_t offset, uint32_t *count, struct fmt_error *err)
{
	struct fmt_page_disk d;
	uint64_t csum;
	uint32_t n, max = type == FMT_PAGE_LEAF ? FMT_LEAF_RUNS : FMT_INNER_KEYS;
	int r = 0;

	memcpy(&d, page, sizeof(d));
	if (memcmp(d.magic, MAGIC, sizeof(MAGIC)) != 0)
		return fmt_fail(err, -EBADMSG, "page at %#" PRIx64 ": no magic \"VPAG\"", offset);
	csum = le64_get(d.csum);
	if (csum != page_csum(&d, salt, offset))
		return fmt_fail(err, -EBADMSG, "page at %#" PRIx64 ": checksum", offset);
	if (le16_get(d.type) != type || le16_get(d.level) != level)
		return fmt_fail(err, -EUCLEAN,
				"page at %#" PRIx64 ": type %u level %u, expected %u and %" PRIu32,
				offset, le16_get(d.type), le16_get(d.level), type, level);
	n = le32_get(d.count);
	if (n > max || (n == 0 && type != FMT_PAGE_LEAF))
		return fmt_fail(err, -EUCLEAN,
				"page at %#" PRIx64 ": %" PRIu32 " entries, at most %" PRIu32,
				offset, n, max);
	if (type == FMT_PAGE_LEAF)
		r = check_leaf(page, n, offset, err);
	else if (type == FMT_PAGE_INNER)
		r = check_inner(page, n, offset, err);
	else if (type == FMT_PAGE_GONE)
		r = check_gone(page, n, offset, err);
	if (r == 0)
		*count = n;
	return r;
}

void fmt_leaf_run(const uint8_t page[FMT_PAGE], uint32_t i, struct fmt_run *ret)
{
	assert(i < FMT_LEAF_RUNS);
	fmt_run_unpack(page + offsetof(struct fmt_page_disk, body) +
			       i * sizeof(struct fmt_run_disk),
		       ret);
}

uint64_t fmt_inner_key(const uint8_t page[FMT_PAGE], uint32_t i)
{
	assert(i < FMT_INNER_KEYS);
	return get_word(page, i);
}

uint64_t fmt_csum_get(const uint8_t page[FMT_PAGE], uint32_t i)
{
	assert(i < FMT_CSUM_SLOTS);
	return get_word(page, i);
}

void fmt_gone_encode(const struct fmt_gone *runs, uint32_t count, uint64_t salt, uint64_t offset,
		     uint8_t page[FMT_PAGE])
{
	uint64_t words[FMT_GONE_SLOTS];
	struct fmt_page_disk d;

	assert(count && count <= FMT_GONE_SLOTS);
	for (uint32_t i = 0; i < count; i++) {
		assert(runs[i].count);
		assert(i == 0 || runs[i].slot > (uint64_t)runs[i - 1].slot + runs[i - 1].count);
		words[i] = runs[i].slot | (uint64_t)runs[i].count << 32;
	}
	memset(&d, 0, sizeof(d));
	put_words(words, count, d.body);
	page_end(&d, FMT_PAGE_GONE, 0, count, salt, offset, page);
}

void fmt_gone_run(const uint8_t page[FMT_PAGE], uint32_t i, struct fmt_gone *ret)
{
	uint64_t word;

	assert(i < FMT_GONE_SLOTS);
	word = get_word(page, i);
	*ret = (struct fmt_gone){(uint32_t)word, (uint32_t)(word >> 32)};
}

uint64_t fmt_block_csum(const void *block, size_t len)
{
	return XXH3_64bits(block, len);
}

struct fmt_seal_hash *fmt_seal_hash_create(void)
{
	struct fmt_seal_hash *h = malloc(sizeof(*h));

	if (!h)
		return NULL;
	h->state = XXH3_createState(); /* wants an alignment that malloc does not promise */
	if (!h->state) {
		free(h);
		return NULL;
	}
	XXH3_128bits_reset(h->state);
	return h;
}

void fmt_seal_hash_destroy(struct fmt_seal_hash *h)
{
	if (!h)
		return;
	XXH3_freeState(h->state);
	free(h);
}

void fmt_seal_hash_add(struct fmt_seal_hash *h, const void *page, size_t len)
{
	XXH3_128bits_update(h->state, page, len);
}

void fmt_seal_hash_end(struct fmt_seal_hash *h, uint8_t ret[16])
{
	XXH128_canonical_t canonical;

	XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(h->state));
	memcpy(ret, canonical.digest, 16);
}
