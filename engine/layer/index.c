/* SPDX-License-Identifier: MIT */
/*
 * index.c - look-ups in a sealed layer's index and checksums. The index is a static B+tree of 4 KiB
 * pages (spec/format.md IX-*): page p of level n has the pages p * 509 ... of level n - 1 below it, so
 * no page holds a pointer and every page's entry count is known beforehand.
 *
 * Any thread may enter. Everything but the caches is immutable after open:
 *   - inner pages: a small direct-mapped cache under a mutex, never held during I/O;
 *   - leaves: not kept, the page cache has them;
 *   - checksum pages: once read, kept until close, one atomic pointer each. A pointer is set once.
 * Nothing read is used before its page's checksum and its place in the tree were checked.
 */
#include "engine/layer/index.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define INNER_CACHED 16u /* inner pages in memory at most: 64 KiB */
#define LEAVES       16u /* read at once, at most */
#define NO_KEY       UINT64_MAX

struct inner {
	uint64_t number; /* of the page, counted from index_offset */
	uint8_t *page;   /* NULL: none */
};

struct eng_index {
	struct eng_io *io;
	struct eng_file *file;
	char *path;
	uint64_t salt, index_offset, csum_offset;
	uint64_t blocks, slots, runs;
	struct fmt_index_shape shape;
	pthread_mutex_t lock;
	struct inner inner[INNER_CACHED]; /* lock */
	_Atomic size_t memory;
	_Atomic(uint64_t *) *csums; /* one pointer a checksum page */
};

/* --- opening --- */

static int check_place(const struct eng_index *index, struct fmt_error *err)
{
	uint64_t index_end = index->index_offset + index->shape.total * FMT_PAGE;
	uint64_t csum_end = index->csum_offset + fmt_csum_pages(index->slots) * FMT_PAGE;
	uint64_t end = index_end > csum_end ? index_end : csum_end;
	struct eng_stat st;
	int r = eng_io_fstat(index->io, index->file, &st);

	if (r < 0)
		return fmt_fail(err, r, "%s: %s", index->path, strerror(-r));
	if (end > st.size)
		return fmt_fail(err, -EUCLEAN,
				"%s: index and checksums end at %#" PRIx64
				", past the file's end at %#" PRIx64 " (SL-2)",
				index->path, end, st.size);
	return 0;
}

int eng_index_open(struct eng_io *io, const char *path, const struct fmt_header *hdr,
		   struct fmt_error *err, struct eng_index **ret)
{
	uint64_t bs = 1ull << hdr->block_bits, pages = fmt_csum_pages(hdr->slots);
	struct eng_index *index;
	int r = -ENOMEM;

	if (hdr->kind != FMT_KIND_OVERLAY || hdr->state != FMT_STATE_SEALED)
		return fmt_fail(err, -EINVAL, "%s: not a sealed overlay", path);
	index = calloc(1, sizeof(*index));
	if (!index)
		return fmt_fail(err, -ENOMEM, "%s: no memory for its index", path);
	pthread_mutex_init(&index->lock, NULL);
	index->io = io;
	index->salt = hdr->salt;
	index->index_offset = hdr->index_offset;
	index->csum_offset = hdr->csum_offset;
	index->blocks = (hdr->size + bs - 1) >> hdr->block_bits;
	index->slots = hdr->slots;
	index->runs = hdr->index_runs;
	index->path = strdup(path);
	if (!index->path) {
		fmt_fail(err, r, "%s: no memory for its index", path);
		goto out;
	}
	r = fmt_index_shape(hdr->index_runs, &index->shape);
	if (r < 0) {
		fmt_fail(err, r, "%s: index of %" PRIu64 " runs is too deep (IX-2)", path,
			 hdr->index_runs);
		goto out;
	}
	r = eng_io_open(io, path, ENG_OPEN_NOFOLLOW | ENG_OPEN_CACHED, &index->file);
	if (r < 0) {
		fmt_fail(err, r, "%s: %s", path, strerror(-r));
		goto out;
	}
	r = check_place(index, err); /* bounds the array below by the file's size */
	if (r < 0)
		goto out;
	index->csums = calloc(pages + 1, sizeof(*index->csums));
	if (!index->csums) {
		r = fmt_fail(err, -ENOMEM, "%s: no memory for its checksums", path);
		goto out;
	}
	atomic_init(&index->memory, sizeof(*index) + (pages + 1) * sizeof(*index->csums));
	*ret = index;
	index = NULL;
out:
	eng_index_close(index);
	return r;
}

void eng_index_close(struct eng_index *index)
{
	if (!index)
		return;
	for (uint64_t i = 0; index->csums && i < fmt_csum_pages(index->slots); i++)
		free(atomic_load_explicit(&index->csums[i], memory_order_relaxed));
	free(index->csums);
	for (unsigned i = 0; i < INNER_CACHED; i++)
		free(index->inner[i].page);
	eng_io_close(index->io, index->file);
	pthread_mutex_destroy(&index->lock);
	free(index->path);
	free(index);
}

int eng_layer_index(struct eng_layer *layer, struct fmt_error *err, struct eng_index **ret)
{
	struct eng_index *index = atomic_load_explicit(&layer->index, memory_order_acquire);
	struct eng_index *other = NULL;
	struct fmt_header hdr;
	int r;

	if (index) {
		*ret = index;
		return 0;
	}
	pthread_mutex_lock(&layer->meta_lock);
	hdr = layer->hdr;
	pthread_mutex_unlock(&layer->meta_lock);
	r = eng_index_open(layer->io, layer->path, &hdr, err, &index);
	if (r < 0)
		return r;
	if (!atomic_compare_exchange_strong(&layer->index, &other, index)) {
		eng_index_close(index); /* another thread was faster */
		index = other;
	}
	*ret = index;
	return 0;
}

/* --- pages --- */

/* Entries of page @i of a level that has @total entries in all, @per to a full page. */
static uint32_t entries_of(uint64_t total, uint32_t per, uint64_t i)
{
	uint64_t left = total - i * per;

	return left < per ? (uint32_t)left : per;
}

/* Reads @count pages at once; each is to be checked before it is used. */
static int read_raw(struct eng_index *index, uint64_t offset, uint32_t count, uint8_t *pages,
		    struct fmt_error *err)
{
	ssize_t n = eng_io_pread(index->io, index->file, pages, (size_t)count * FMT_PAGE, offset);

	if (n < 0)
		return fmt_fail(err, (int)n, "%s: cannot read the page at %#" PRIx64 ": %s",
				index->path, offset, strerror((int)-n));
	if (n < (ssize_t)((size_t)count * FMT_PAGE))
		return fmt_fail(err, -EUCLEAN,
				"%s: the file ends inside the page at %#" PRIx64 " (SL-2)",
				index->path, offset + (uint64_t)n / FMT_PAGE * FMT_PAGE);
	return 0;
}

static int check_page(struct eng_index *index, uint64_t offset, enum fmt_page_type type,
		      uint32_t level, uint32_t expected, const uint8_t page[FMT_PAGE],
		      struct fmt_error *err)
{
	struct fmt_error why = {{0}};
	uint32_t count;
	int r = fmt_page_check(page, type, level, index->salt, offset, &count, &why);

	if (r < 0)
		return fmt_fail(err, r, "%s: %s", index->path, why.text);
	if (count != expected)
		return fmt_fail(err, -EUCLEAN,
				"%s: the page at %#" PRIx64 " has %" PRIu32
				" entries, expected %" PRIu32 " (IX-2)",
				index->path, offset, count, expected);
	return 0;
}

static int read_page(struct eng_index *index, uint64_t offset, enum fmt_page_type type,
		     uint32_t level, uint32_t expected, uint8_t page[FMT_PAGE],
		     struct fmt_error *err)
{
	int r = read_raw(index, offset, 1, page, err);

	return r < 0 ? r : check_page(index, offset, type, level, expected, page, err);
}

/* IX-4: a page starts with the key its parent gave. */
static int check_first(const struct eng_index *index, uint64_t offset, uint64_t key, uint64_t found,
		       struct fmt_error *err)
{
	if (key == NO_KEY || key == found)
		return 0;
	return fmt_fail(err, -EUCLEAN,
			"%s: the page at %#" PRIx64 " starts with block %" PRIu64
			", its parent says %" PRIu64 " (IX-4)",
			index->path, offset, found, key);
}

/* The last of @count children that starts at or before @block; the first one if none does. */
static uint32_t search_keys(const uint8_t *page, uint32_t count, uint64_t block)
{
	uint32_t low = 0, high = count;

	while (high - low > 1) {
		uint32_t mid = low + (high - low) / 2;

		if (fmt_inner_key(page, mid) <= block)
			low = mid;
		else
			high = mid;
	}
	return low;
}

static bool inner_cached(struct eng_index *index, uint64_t number, uint8_t page[FMT_PAGE])
{
	struct inner *e = &index->inner[number % INNER_CACHED];
	bool hit;

	pthread_mutex_lock(&index->lock);
	hit = e->page && e->number == number;
	if (hit)
		memcpy(page, e->page, FMT_PAGE);
	pthread_mutex_unlock(&index->lock);
	return hit;
}

static void inner_keep(struct eng_index *index, uint64_t number, const uint8_t page[FMT_PAGE])
{
	struct inner *e = &index->inner[number % INNER_CACHED];

	pthread_mutex_lock(&index->lock);
	if (!e->page) {
		e->page = malloc(FMT_PAGE);
		if (e->page)
			atomic_fetch_add(&index->memory, FMT_PAGE);
	}
	if (e->page) { /* without memory it is read again the next time */
		memcpy(e->page, page, FMT_PAGE);
		e->number = number;
	}
	pthread_mutex_unlock(&index->lock);
}

/* From the root to the leaf that would hold @block. *@key: what that leaf must start with. */
static int find_leaf(struct eng_index *index, uint64_t block, struct fmt_error *err, uint64_t *leaf,
		     uint64_t *key)
{
	const struct fmt_index_shape *shape = &index->shape;
	uint64_t i = 0, expected_key = NO_KEY;
	uint8_t page[FMT_PAGE];

	for (uint32_t level = shape->levels - 1; level > 0; level--) {
		uint64_t number = shape->first[level] + i;
		uint64_t offset = index->index_offset + number * FMT_PAGE;
		uint32_t count = entries_of(shape->pages[level - 1], FMT_INNER_KEYS, i), child;
		bool hit = inner_cached(index, number, page);
		int r = 0;

		if (!hit)
			r = read_page(index, offset, FMT_PAGE_INNER, level, count, page, err);
		if (r == 0)
			r = check_first(index, offset, expected_key, fmt_inner_key(page, 0), err);
		if (r < 0)
			return r;
		if (!hit)
			inner_keep(index, number, page);
		child = search_keys(page, count, block);
		expected_key = fmt_inner_key(page, child);
		i = i * FMT_INNER_KEYS + child;
	}
	*leaf = i;
	*key = expected_key;
	return 0;
}

/* --- look-up --- */

struct scan {
	uint64_t first, end; /* blocks asked for */
	uint64_t last_end;   /* of the run before */
	int (*each)(void *arg, const struct fmt_run *run);
	void *arg;
	bool done;
};

static int scan_leaf(struct eng_index *index, struct scan *scan, const uint8_t *page,
		     uint32_t count, struct fmt_error *err)
{
	struct fmt_error why = {{0}};
	struct fmt_run run;
	int r = 0;

	for (uint32_t i = 0; i < count && r == 0; i++) {
		uint64_t end, skip;

		fmt_leaf_run(page, i, &run);
		r = fmt_run_check(&run, index->blocks, index->slots, &why);
		if (r < 0)
			return fmt_fail(err, r, "%s: index: %s", index->path, why.text);
		if (run.block < scan->last_end)
			return fmt_fail(err, -EUCLEAN,
					"%s: index: the run at block %" PRIu64
					" overlaps the one before (IX-3)",
					index->path, run.block);
		end = run.block + run.count;
		scan->last_end = end;
		if (end <= scan->first)
			continue;
		if (run.block >= scan->end) {
			scan->done = true;
			return 0;
		}
		skip = run.block < scan->first ? scan->first - run.block : 0;
		run.block += skip;
		if (run.kind == FMT_RUN_DATA)
			run.slot += (uint32_t)skip;
		run.count = (uint32_t)((end < scan->end ? end : scan->end) - run.block);
		r = scan->each(scan->arg, &run);
	}
	return r;
}

/* Leaves in a row, read a few at a time: one look-up wants one, a walk over all of them many. */
struct leaves {
	uint64_t first;
	uint32_t count, want;
	uint8_t *more; /* of the larger reads; or NULL */
	uint8_t one[FMT_PAGE];
};

static int next_leaf(struct eng_index *index, struct leaves *l, uint64_t leaf,
		     struct fmt_error *err, const uint8_t **ret)
{
	uint64_t left = index->shape.pages[0] - leaf,
		 offset = index->index_offset + leaf * FMT_PAGE;
	uint8_t *to;
	int r = 0;

	if (leaf >= l->first + l->count) {
		l->first = leaf;
		l->count = l->want < left ? l->want : (uint32_t)left;
		l->want = l->want < LEAVES ? 2 * l->want : LEAVES;
		if (l->count > 1 && !l->more)
			l->more = malloc(LEAVES * FMT_PAGE);
		if (!l->more)
			l->count = 1;
		to = l->more ? l->more : l->one;
		r = read_raw(index, offset, l->count, to, err);
	}
	if (r < 0)
		return r;
	to = (l->more ? l->more : l->one) + (leaf - l->first) * FMT_PAGE;
	*ret = to;
	return check_page(index, offset, FMT_PAGE_LEAF, 0,
			  entries_of(index->runs, FMT_LEAF_RUNS, leaf), to, err);
}

int eng_index_each(struct eng_index *index, uint64_t first, uint64_t count,
		   int (*each)(void *arg, const struct fmt_run *run), void *arg,
		   struct fmt_error *err)
{
	struct scan scan = {.first = first, .each = each, .arg = arg};
	struct leaves leaves = {.count = 0, .want = 1};
	uint64_t leaf, key;
	const uint8_t *page;
	int r;

	if (!count || first >= index->blocks || !index->runs)
		return 0;
	scan.end = count < index->blocks - first ? first + count : index->blocks;
	r = find_leaf(index, first, err, &leaf, &key);
	for (; r == 0 && !scan.done && leaf < index->shape.pages[0]; leaf++) {
		r = next_leaf(index, &leaves, leaf, err, &page);
		if (r == 0 && key != NO_KEY) {
			struct fmt_run run;

			fmt_leaf_run(page, 0, &run);
			r = check_first(index, index->index_offset + leaf * FMT_PAGE, key,
					run.block, err);
		}
		if (r == 0)
			r = scan_leaf(index, &scan, page,
				      entries_of(index->runs, FMT_LEAF_RUNS, leaf), err);
		key = NO_KEY;
	}
	free(leaves.more);
	return r;
}

/* --- checksums --- */

int eng_index_csum(struct eng_index *index, uint32_t slot, uint64_t *csum)
{
	const uint64_t *page;

	if (slot >= index->slots)
		return -EUCLEAN;
	page = atomic_load_explicit(&index->csums[slot / FMT_CSUM_SLOTS], memory_order_acquire);
	if (!page)
		return -EAGAIN;
	*csum = page[slot % FMT_CSUM_SLOTS];
	return 0;
}

int eng_index_load_csum(struct eng_index *index, uint32_t slot, struct fmt_error *err)
{
	uint64_t i = slot / FMT_CSUM_SLOTS, *csums, *none = NULL;
	uint32_t count;
	uint8_t page[FMT_PAGE];
	int r;

	if (slot >= index->slots)
		return fmt_fail(err, -EUCLEAN,
				"%s: no checksum for slot %" PRIu32 ", there are %" PRIu64
				" (CS-1)",
				index->path, slot, index->slots);
	if (atomic_load_explicit(&index->csums[i], memory_order_relaxed))
		return 0;
	count = entries_of(index->slots, FMT_CSUM_SLOTS, i);
	r = read_page(index, index->csum_offset + i * FMT_PAGE, FMT_PAGE_CSUM, 0, count, page, err);
	if (r < 0)
		return r;
	csums = malloc(count * sizeof(*csums));
	if (!csums)
		return fmt_fail(err, -ENOMEM, "%s: no memory for checksums", index->path);
	for (uint32_t n = 0; n < count; n++)
		csums[n] = fmt_csum_get(page, n);
	if (atomic_compare_exchange_strong(&index->csums[i], &none, csums))
		atomic_fetch_add(&index->memory, count * sizeof(*csums));
	else
		free(csums); /* another thread was faster */
	return 0;
}

size_t eng_index_memory(const struct eng_index *index)
{
	return atomic_load_explicit(&index->memory, memory_order_relaxed);
}
