/* SPDX-License-Identifier: MIT */
/*
 * seal.c - seals a hardened overlay, and verifies a sealed one (spec/format.md SL-*).
 *
 * The order is what makes it safe at any crash: pages are written where no mapped slot and no log
 * segment is, synced, and only then does the header name them. Before the header the layer is what
 * it was, and the pages are free space; after it the layer is sealed. The space behind the pages is
 * given back last: a crash before that leaks it, nothing else.
 *
 * The log is replayed by a private object on the same file, because a replay sets what belongs to
 * the layer's worker. One background thread a layer; guests may read the layer all the while.
 *
 * Memory: 24 bytes a run of the log (and as much again while they are sorted), one bit a slot.
 */
#include "engine/io/progress.h"
#include "engine/layer/gone.h"
#include "engine/layer/index.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define IN_LEN       (1u << 20)      /* data read at a time, at most */
#define OUT_LEN      (64 * FMT_PAGE) /* pages written at a time */
#define SLEEP_MAX_NS 20000000ull     /* @stop is asked between sleeps */
#define STOP_RUNS    65536u          /* and once in so many runs of the log */

/* A run of the log; a higher @seq is newer. */
struct piece {
	uint64_t block;
	uint32_t slot, count, seq;
	uint8_t kind;
};

/* What the log's runs come to, in order of blocks: no overlaps, as few runs as possible. */
struct sweep {
	const struct piece *pieces; /* sorted by block */
	uint32_t count, next;       /* pieces in all; first that starts after pos */
	uint64_t pos;               /* blocks before it are done */
	uint32_t *heap, heap_count; /* pieces that started, the newest on top */
	struct fmt_run held;        /* found, but may still grow */
	bool holds;
};

/* Reads the slots in use, paced. */
struct reader {
	struct eng_io *io;
	struct eng_file *file;
	const char *path;
	uint64_t data_offset;
	uint32_t block_bits;
	uint64_t slots;
	uint8_t *used;               /* one bit a slot */
	const struct eng_gone *gone; /* slots that are not verified; or NULL */
	uint8_t *buf;                /* IN_LEN */
	uint64_t rate;               /* bytes a second, 0: unlimited */
	bool (*stop)(void *arg);
	void *arg;
	struct fmt_error *err;
};

struct seal {
	struct eng_layer *layer;
	struct reader in; /* its file takes the pages too */
	uint64_t salt;
	struct piece *pieces;
	uint32_t count, cap;
	uint64_t runs;
	struct fmt_index_shape shape;
	uint8_t *out; /* OUT_LEN: pages not yet written */
	size_t out_len;
	uint64_t offset; /* where they go */
	struct fmt_seal_hash *hash;
	struct fmt_run leaf[FMT_LEAF_RUNS];
	const uint64_t *known; /* checksums of the first slots; NULL: read the data */
	uint64_t known_count;
	/* for the header */
	uint64_t index_offset, csum_offset;
	uint8_t seal_hash[16], parent_hash[16];
};

static void *alloc_aligned(size_t len)
{
	void *p = NULL;

	return posix_memalign(&p, FMT_PAGE, len) ? NULL : p;
}

static int no_memory(struct fmt_error *err, const char *path)
{
	return fmt_fail(err, -ENOMEM, "%s: no memory to seal or verify it", path);
}

/* --- reading data --- */

static int check_stop(const struct reader *in)
{
	if (in->stop && in->stop(in->arg))
		return fmt_fail(in->err, -ECANCELED, "%s: the seal was stopped", in->path);
	return 0;
}

/* Waits until the @len bytes read since @start_ns have taken as long as the rate wants. */
static int pace(const struct reader *in, uint64_t len, uint64_t start_ns)
{
	uint64_t end_ns = start_ns;
	int r;

	if (in->rate)
		end_ns += (uint64_t)((double)len * 1e9 / (double)in->rate);
	for (;;) {
		uint64_t now_ns = eng_io_now_ns(in->io), left_ns;

		r = check_stop(in);
		if (r < 0 || now_ns >= end_ns)
			return r;
		left_ns = end_ns - now_ns;
		eng_io_sleep_ns(in->io, left_ns < SLEEP_MAX_NS ? left_ns : SLEEP_MAX_NS);
	}
}

static bool is_used(const struct reader *in, uint64_t slot)
{
	return in->used[slot / 8] >> slot % 8 & 1;
}

/* A slot belongs to one block (T17), and lies inside the layer. */
static int mark_used(struct reader *in, const struct fmt_run *run)
{
	if (run->kind != FMT_RUN_DATA)
		return 0;
	for (uint64_t slot = run->slot; slot < (uint64_t)run->slot + run->count; slot++) {
		if (slot >= in->slots || is_used(in, slot))
			return fmt_fail(in->err, -EUCLEAN,
					"%s: slot %" PRIu64 ", of block %" PRIu64 ", is %s (IX-5)",
					in->path, slot, run->block + (slot - run->slot),
					slot >= in->slots ? "past the last one"
							  : "another block's too");
		in->used[slot / 8] |= (uint8_t)(1u << slot % 8);
	}
	return 0;
}

/* Checksums of @count slots from @first on; 0 where a slot is not in use. */
static int read_csums(const struct reader *in, uint64_t first, uint32_t count, uint64_t *csums)
{
	size_t bs = (size_t)1 << in->block_bits;
	uint32_t i = 0, n, most = eng_progress_piece(in->rate, IN_LEN) >> in->block_bits;
	int r = 0;

	while (r == 0 && i < count) {
		uint64_t start_ns = eng_io_now_ns(in->io);
		uint64_t offset = in->data_offset + ((first + i) << in->block_bits);
		ssize_t len;

		csums[i] = 0;
		for (n = 0; i + n < count && n < (most ? most : 1) && is_used(in, first + i + n);)
			n++;
		if (!n) {
			i++;
			continue;
		}
		len = eng_io_pread(in->io, in->file, in->buf, n * bs, offset);
		if (len < 0)
			return fmt_fail(in->err, (int)len,
					"%s: cannot read the slots at %#" PRIx64 ": %s", in->path,
					offset, strerror((int)-len));
		if ((size_t)len < n * bs)
			return fmt_fail(in->err, -EUCLEAN,
					"%s: the file ends inside the slots at %#" PRIx64
					", after %zd of %zu bytes",
					in->path, offset, len, n * bs);
		for (uint32_t j = 0; j < n; j++)
			csums[i + j] = fmt_block_csum(in->buf + j * bs, bs);
		i += n;
		r = pace(in, n * bs, start_ns);
	}
	return r;
}

/* --- the log's runs --- */

static bool continues(const struct fmt_run *run, uint64_t block, uint32_t slot, uint32_t count,
		      uint8_t kind)
{
	return run->kind == kind && run->block + run->count == block &&
	       run->count + count <= FMT_RUN_COUNT_MAX &&
	       (kind == FMT_RUN_ZERO || run->slot + run->count == slot);
}

static int collect(void *arg, const struct fmt_run *run)
{
	struct seal *s = arg;
	struct piece *p;

	if (s->count % STOP_RUNS == 0 && check_stop(&s->in) < 0)
		return -ECANCELED;
	if (s->count == s->cap) {
		uint64_t cap = s->cap ? s->cap + s->cap / 2 : 1024;

		if (cap > UINT32_MAX)
			return no_memory(s->in.err, s->in.path);
		p = realloc(s->pieces, cap * sizeof(*p));
		if (!p)
			return no_memory(s->in.err, s->in.path);
		s->pieces = p;
		s->cap = (uint32_t)cap;
	}
	s->pieces[s->count] = (struct piece){.block = run->block,
					     .slot = run->slot,
					     .count = run->count,
					     .kind = run->kind,
					     .seq = s->count};
	s->count++;
	return 0;
}

static int compare_pieces(const void *a, const void *b)
{
	const struct piece *x = a, *y = b;

	if (x->block != y->block)
		return x->block < y->block ? -1 : 1;
	return x->seq < y->seq ? -1 : x->seq > y->seq;
}

/*
 * Replays the log through an object of our own; nothing of the layer in use is touched. A log that
 * ends before the record that hardening wrote last would put the pages over live slots (CU-23).
 */
static int load_log(struct seal *s)
{
	struct eng_layer_open how = {.path = s->layer->path,
				     .kind = FMT_KIND_OVERLAY,
				     .direct = s->layer->direct};
	struct eng_layer *mine = NULL;
	int r = eng_layer_open(s->layer->io, &how, s->in.err, &mine);

	if (r < 0)
		return r;
	if (!fmt_uuid_equal(&mine->id, &s->layer->id))
		r = fmt_fail(s->in.err, -EUCLEAN, "%s: the file holds another layer", s->in.path);
	if (r == 0)
		r = eng_log_replay(mine, collect, s, s->in.err);
	if (r == 0 && s->layer->log.seq && s->layer->log.seq != mine->log.seq)
		r = fmt_fail(s->in.err, -EUCLEAN,
			     "%s: the log ends with record %" PRIu64 ", expected %" PRIu64
			     " (ML-7)",
			     s->in.path, mine->log.seq, s->layer->log.seq);
	s->in.slots = mine->next_slot;
	eng_layer_put(mine);
	if (r == 0 && s->count)
		qsort(s->pieces, s->count, sizeof(*s->pieces), compare_pieces);
	return r;
}

static uint64_t piece_end(const struct piece *p)
{
	return p->block + p->count;
}

static bool newer(const struct sweep *sw, uint32_t a, uint32_t b)
{
	return sw->pieces[sw->heap[a]].seq > sw->pieces[sw->heap[b]].seq;
}

static void heap_swap(struct sweep *sw, uint32_t a, uint32_t b)
{
	uint32_t t = sw->heap[a];

	sw->heap[a] = sw->heap[b];
	sw->heap[b] = t;
}

static void heap_push(struct sweep *sw, uint32_t piece)
{
	uint32_t i = sw->heap_count++;

	sw->heap[i] = piece;
	for (; i && newer(sw, i, (i - 1) / 2); i = (i - 1) / 2)
		heap_swap(sw, i, (i - 1) / 2);
}

static void heap_pop(struct sweep *sw)
{
	uint32_t i = 0, child;

	sw->heap[0] = sw->heap[--sw->heap_count];
	while ((child = 2 * i + 1) < sw->heap_count) {
		if (child + 1 < sw->heap_count && newer(sw, child + 1, child))
			child++;
		if (!newer(sw, child, i))
			break;
		heap_swap(sw, i, child);
		i = child;
	}
}

/* The newest piece at pos, as far as no other one starts. False at the end. */
static bool sweep_step(struct sweep *sw, struct fmt_run *ret)
{
	const struct piece *p;
	uint64_t end;

	for (;;) {
		while (sw->heap_count && piece_end(&sw->pieces[sw->heap[0]]) <= sw->pos)
			heap_pop(sw);
		if (!sw->heap_count) {
			if (sw->next == sw->count)
				return false;
			sw->pos = sw->pieces[sw->next].block;
		}
		if (sw->next == sw->count || sw->pieces[sw->next].block > sw->pos)
			break;
		while (sw->next < sw->count && sw->pieces[sw->next].block == sw->pos)
			heap_push(sw, sw->next++);
	}
	p = &sw->pieces[sw->heap[0]];
	end = piece_end(p);
	if (sw->next < sw->count && sw->pieces[sw->next].block < end)
		end = sw->pieces[sw->next].block;
	*ret = (struct fmt_run){.block = sw->pos,
				.slot = p->slot,
				.kind = p->kind,
				.count = (uint32_t)(end - sw->pos)};
	if (p->kind == FMT_RUN_DATA)
		ret->slot += (uint32_t)(sw->pos - p->block);
	sw->pos = end;
	return true;
}

static bool sweep_next(struct sweep *sw, struct fmt_run *ret)
{
	struct fmt_run run;

	while (sweep_step(sw, &run)) {
		if (sw->holds && continues(&sw->held, run.block, run.slot, run.count, run.kind)) {
			sw->held.count += run.count;
			continue;
		}
		*ret = sw->held;
		sw->held = run;
		if (sw->holds)
			return true;
		sw->holds = true;
	}
	if (!sw->holds)
		return false;
	*ret = sw->held;
	sw->holds = false;
	return true;
}

static int sweep_start(const struct seal *s, struct sweep *sw)
{
	*sw = (struct sweep){.pieces = s->pieces, .count = s->count};
	sw->heap = malloc((s->count + 1ull) * sizeof(*sw->heap));
	return sw->heap ? 0 : no_memory(s->in.err, s->in.path);
}

/* First sweep: how many runs there will be, and which slots they use. */
static int survey(struct seal *s)
{
	struct fmt_run run;
	struct sweep sw;
	int r;

	s->in.used = calloc(s->in.slots / 8 + 1, 1);
	if (!s->in.used)
		return no_memory(s->in.err, s->in.path);
	r = sweep_start(s, &sw);
	if (r < 0)
		return r;
	while (r == 0 && sweep_next(&sw, &run)) {
		s->runs++;
		r = mark_used(&s->in, &run);
	}
	free(sw.heap);
	if (r == 0)
		r = fmt_index_shape(s->runs, &s->shape);
	return r;
}

/* --- writing pages --- */

static int write_out(struct seal *s)
{
	int r = check_stop(&s->in);

	if (r < 0 || !s->out_len)
		return r;
	r = eng_io_pwrite(s->in.io, s->in.file, s->out, s->out_len, s->offset);
	if (r < 0)
		return fmt_fail(s->in.err, r, "%s: cannot write the index at %#" PRIx64 ": %s",
				s->in.path, s->offset, strerror(-r));
	s->offset += s->out_len;
	s->out_len = 0;
	return 0;
}

/* The page that was encoded at out + out_len, for offset + out_len, is complete. */
static int page_done(struct seal *s)
{
	fmt_seal_hash_add(s->hash, s->out + s->out_len, FMT_PAGE);
	s->out_len += FMT_PAGE;
	return s->out_len == OUT_LEN ? write_out(s) : 0;
}

/* Second sweep: the leaves; @keys gets the first block of each. */
static int write_leaves(struct seal *s, uint64_t *keys)
{
	struct sweep sw;
	int r = sweep_start(s, &sw);

	if (r < 0)
		return r;
	for (uint64_t i = 0; r == 0 && i < s->shape.pages[0]; i++) {
		uint32_t n = 0;

		while (n < FMT_LEAF_RUNS && sweep_next(&sw, &s->leaf[n]))
			n++;
		keys[i] = n ? s->leaf[0].block : 0;
		fmt_leaf_encode(s->leaf, n, s->salt, s->offset + s->out_len, s->out + s->out_len);
		r = page_done(s);
	}
	free(sw.heap);
	return r;
}

/* The leaves, then the levels above. */
static int write_index(struct seal *s)
{
	uint64_t *keys = calloc(s->shape.pages[0], sizeof(*keys));
	int r;

	if (!keys)
		return no_memory(s->in.err, s->in.path);
	r = write_leaves(s, keys);
	for (uint32_t level = 1; r == 0 && level < s->shape.levels; level++) {
		for (uint64_t i = 0; r == 0 && i < s->shape.pages[level]; i++) {
			uint64_t *child = keys + i * FMT_INNER_KEYS;
			uint64_t left = s->shape.pages[level - 1] - i * FMT_INNER_KEYS;
			uint32_t n = left < FMT_INNER_KEYS ? (uint32_t)left : FMT_INNER_KEYS;

			fmt_inner_encode(child, n, level, s->salt, s->offset + s->out_len,
					 s->out + s->out_len);
			keys[i] = *child; /* below what is still to be read */
			r = page_done(s);
		}
	}
	free(keys);
	return r;
}

static int take_csums(struct seal *s, uint64_t first, uint32_t count, uint64_t *csums)
{
	if (!s->known)
		return read_csums(&s->in, first, count, csums);
	for (uint32_t i = 0; i < count; i++)
		csums[i] = first + i < s->known_count ? s->known[first + i] : 0;
	return 0;
}

static int write_csums(struct seal *s)
{
	uint64_t csums[FMT_CSUM_SLOTS];
	int r = 0;

	for (uint64_t first = 0; r == 0 && first < s->in.slots; first += FMT_CSUM_SLOTS) {
		uint64_t left = s->in.slots - first;
		uint32_t n = left < FMT_CSUM_SLOTS ? (uint32_t)left : FMT_CSUM_SLOTS;

		r = take_csums(s, first, n, csums);
		if (r < 0)
			break;
		fmt_csum_encode(csums, n, s->salt, s->offset + s->out_len, s->out + s->out_len);
		r = page_done(s);
	}
	return r;
}

/* Everything up to the header: durable pages that nothing names yet. */
static int write_pages(struct seal *s)
{
	uint64_t len;
	int r;

	s->index_offset = s->in.data_offset + (s->in.slots << s->in.block_bits);
	s->csum_offset = s->index_offset + s->shape.total * FMT_PAGE;
	s->offset = s->index_offset;
	len = (s->shape.total + fmt_csum_pages(s->in.slots)) * FMT_PAGE;
	/* The reserve has it (SP-2), except for very many runs of zeros (SP-3). */
	r = eng_io_allocate(s->in.io, s->in.file, s->index_offset, len);
	if (r < 0 && r != -EOPNOTSUPP)
		return fmt_fail(s->in.err, r, "%s: no space for an index of %" PRIu64 " bytes: %s",
				s->in.path, len, strerror(-r));
	r = write_index(s);
	if (r == 0)
		r = write_csums(s);
	if (r == 0)
		r = write_out(s);
	if (r < 0)
		return r;
	r = eng_io_fdatasync(s->in.io, s->in.file);
	if (r < 0)
		return fmt_fail(s->in.err, r, "%s: cannot sync the index: %s", s->in.path,
				strerror(-r));
	fmt_seal_hash_end(s->hash, s->seal_hash);
	return 0;
}

/* --- the seal --- */

static void edit_sealed(struct fmt_header *hdr, void *arg)
{
	const struct seal *s = arg;
	static const uint8_t unknown[16];

	hdr->state = FMT_STATE_SEALED;
	hdr->index_offset = s->index_offset;
	hdr->index_runs = s->runs;
	hdr->csum_offset = s->csum_offset;
	hdr->slots = s->in.slots;
	memcpy(hdr->seal_hash, s->seal_hash, sizeof(hdr->seal_hash));
	if (memcmp(s->parent_hash, unknown, sizeof(unknown)) != 0)
		memcpy(hdr->parent_hash, s->parent_hash, sizeof(hdr->parent_hash));
}

static int check_layer(struct eng_layer *layer, const uint8_t parent_hash[16],
		       struct fmt_error *err)
{
	static const uint8_t unknown[16];
	bool orphan, frozen;

	if (layer->kind != FMT_KIND_OVERLAY)
		return fmt_fail(err, -EINVAL, "%s: only overlays are sealed", layer->path);
	if (!layer->writable)
		return fmt_fail(err, -EROFS, "%s: open for reading only", layer->path);
	if (atomic_load(&layer->poisoned))
		return fmt_fail(err, -ENOTRECOVERABLE, "%s: poisoned, cannot be sealed",
				layer->path);
	pthread_mutex_lock(&layer->meta_lock);
	orphan = fmt_uuid_is_none(&layer->hdr.parent_id);
	frozen = layer->hdr.state != FMT_STATE_ACTIVE;
	pthread_mutex_unlock(&layer->meta_lock);
	if (!frozen || atomic_load(&layer->harden) != ENG_HARDEN_DONE)
		return fmt_fail(err, -EBUSY, "%s: not frozen and hardened, cannot be sealed (SL-1)",
				layer->path);
	if (orphan && memcmp(parent_hash, unknown, sizeof(unknown)) != 0)
		return fmt_fail(err, -EINVAL, "%s: a parent's hash for a layer without a parent",
				layer->path);
	return 0;
}

/* Its own descriptor: the layer's stays the worker's, and no sync error of data is eaten (T16). */
static int reader_init(struct reader *in, const struct eng_layer *layer, unsigned flags,
		       struct fmt_error *err)
{
	int r;

	in->io = layer->io;
	in->path = layer->path;
	in->data_offset = layer->data_offset;
	in->block_bits = layer->block_bits;
	in->err = err;
	in->buf = alloc_aligned(IN_LEN);
	if (!in->buf)
		return no_memory(err, layer->path);
	flags |= ENG_OPEN_NOFOLLOW | (layer->direct ? ENG_OPEN_DIRECT : 0);
	r = eng_io_open(in->io, in->path, flags, &in->file);
	return r < 0 ? fmt_fail(err, r, "%s: %s", in->path, strerror(-r)) : 0;
}

static void reader_fini(struct reader *in)
{
	eng_io_close(in->io, in->file);
	free(in->used);
	free(in->buf);
}

static int seal_layer(struct eng_layer *layer, const uint8_t parent_hash[16], const uint64_t *known,
		      uint64_t known_count, uint64_t rate, bool (*stop)(void *arg), void *arg,
		      struct fmt_error *err)
{
	struct seal *s;
	uint64_t end;
	int r = check_layer(layer, parent_hash, err);

	if (r < 0 || atomic_load(&layer->sealed))
		return r;
	s = calloc(1, sizeof(*s));
	if (!s)
		return no_memory(err, layer->path);
	s->layer = layer;
	s->salt = layer->salt;
	memcpy(s->parent_hash, parent_hash, sizeof(s->parent_hash));
	r = reader_init(&s->in, layer, ENG_OPEN_WRITE, err);
	if (r < 0)
		goto out;
	s->known = known;
	s->known_count = known_count;
	s->in.rate = rate;
	s->in.stop = stop;
	s->in.arg = arg;
	s->out = alloc_aligned(OUT_LEN);
	s->hash = fmt_seal_hash_create();
	r = s->out && s->hash ? load_log(s) : no_memory(err, layer->path);
	if (r == 0)
		r = survey(s);
	if (r == 0)
		r = write_pages(s);
	if (r == 0)
		r = check_stop(&s->in);
	/* A crash before this is durable: hardened, the pages are free space. After it: sealed. */
	if (r == 0)
		r = eng_layer_update(layer, edit_sealed, s, err);
	if (r < 0)
		goto out;
	atomic_store_explicit(&layer->sealed, true, memory_order_release);
	end = s->csum_offset + fmt_csum_pages(s->in.slots) * FMT_PAGE;
	(void)eng_io_truncate(s->in.io, s->in.file, end); /* a leak when it fails */
out:
	reader_fini(&s->in);
	fmt_seal_hash_destroy(s->hash);
	free(s->out);
	free(s->pieces);
	free(s);
	return r;
}

int eng_layer_seal(struct eng_layer *layer, const uint8_t parent_hash[16], uint64_t rate,
		   bool (*stop)(void *arg), void *arg, struct fmt_error *err)
{
	return seal_layer(layer, parent_hash, NULL, 0, rate, stop, arg, err);
}

int eng_layer_seal_known(struct eng_layer *layer, const uint8_t parent_hash[16],
			 const uint64_t *csums, uint64_t count, bool (*stop)(void *arg), void *arg,
			 struct fmt_error *err)
{
	return seal_layer(layer, parent_hash, csums, count, 0, stop, arg, err);
}

/* --- verifying --- */

static int verify_mark(void *arg, const struct fmt_run *run)
{
	return mark_used(arg, run);
}

/* Reads @len bytes at @offset; the file was checked to be long enough. */
static int verify_read(const struct reader *in, uint64_t offset, void *buf, size_t len)
{
	ssize_t n = eng_io_pread(in->io, in->file, buf, len, offset);

	if (n == (ssize_t)len)
		return 0;
	return fmt_fail(in->err, n < 0 ? (int)n : -EUCLEAN,
			"%s: cannot read %zu bytes at %#" PRIx64 ": %s", in->path, len, offset,
			n < 0 ? strerror((int)-n) : "the file ends");
}

static int verify_csum_page(const struct reader *in, const struct fmt_header *hdr, uint64_t i,
			    uint8_t *page)
{
	uint64_t csums[FMT_CSUM_SLOTS] = {0}, offset = hdr->csum_offset + i * FMT_PAGE;
	uint64_t left = hdr->slots - i * FMT_CSUM_SLOTS;
	uint32_t n = left < FMT_CSUM_SLOTS ? (uint32_t)left : FMT_CSUM_SLOTS, count;
	struct fmt_error why = {{0}};
	int r = verify_read(in, offset, page, FMT_PAGE);

	if (r < 0)
		return r;
	r = fmt_page_check(page, FMT_PAGE_CSUM, 0, hdr->salt, offset, &count, &why);
	if (r < 0)
		return fmt_fail(in->err, r, "%s: %s", in->path, why.text);
	if (count != n)
		return fmt_fail(in->err, -EUCLEAN,
				"%s: the page at %#" PRIx64 " has %" PRIu32
				" checksums, expected %" PRIu32 " (CS-1)",
				in->path, offset, count, n);
	r = read_csums(in, i * FMT_CSUM_SLOTS, n, csums);
	for (uint32_t j = 0; r == 0 && j < n; j++) {
		uint64_t slot = i * FMT_CSUM_SLOTS + j;

		if (is_used(in, slot) && !eng_gone_any(in->gone, (uint32_t)slot, 1) &&
		    csums[j] != fmt_csum_get(page, j))
			r = fmt_fail(in->err, -EBADMSG,
				     "%s: the data of slot %" PRIu64 " at %#" PRIx64
				     " has checksum %016" PRIx64 ", expected %016" PRIx64 " (CS-2)",
				     in->path, slot, in->data_offset + (slot << in->block_bits),
				     csums[j], fmt_csum_get(page, j));
	}
	return r;
}

/* The data against its checksums, and both kinds of pages against the seal hash. */
static int verify_all(const struct reader *in, const struct fmt_header *hdr, uint64_t index_pages,
		      struct fmt_seal_hash *hash)
{
	uint8_t found[16], *page = alloc_aligned(FMT_PAGE);
	int r = page ? 0 : no_memory(in->err, in->path);

	for (uint64_t i = 0; r == 0 && i < index_pages; i++) {
		r = verify_read(in, hdr->index_offset + i * FMT_PAGE, page, FMT_PAGE);
		if (r == 0)
			fmt_seal_hash_add(hash, page, FMT_PAGE);
	}
	for (uint64_t i = 0; r == 0 && i < fmt_csum_pages(hdr->slots); i++) {
		r = verify_csum_page(in, hdr, i, page);
		if (r == 0)
			fmt_seal_hash_add(hash, page, FMT_PAGE);
	}
	if (r == 0) {
		fmt_seal_hash_end(hash, found);
		if (memcmp(found, hdr->seal_hash, sizeof(found)) != 0)
			r = fmt_fail(in->err, -EBADMSG,
				     "%s: index and checksums do not match the seal"
				     " hash (SL-3)",
				     in->path);
	}
	free(page);
	return r;
}

int eng_layer_verify(struct eng_layer *layer, struct fmt_error *err)
{
	struct fmt_seal_hash *hash = NULL;
	struct eng_index *index = NULL;
	struct fmt_index_shape shape;
	struct reader in = {0};
	struct fmt_header hdr;
	int r;

	pthread_mutex_lock(&layer->meta_lock);
	hdr = layer->hdr;
	pthread_mutex_unlock(&layer->meta_lock);
	r = eng_index_open(layer->io, layer->path, &hdr, err, &index);
	if (r < 0)
		return r;
	r = reader_init(&in, layer, 0, err);
	if (r < 0)
		goto out;
	in.slots = hdr.slots;
	in.gone = layer->gone;
	in.used = calloc(hdr.slots / 8 + 1, 1);
	hash = fmt_seal_hash_create();
	r = in.used && hash ? 0 : no_memory(err, layer->path);
	if (r == 0)
		r = eng_index_each(index, 0, UINT64_MAX, verify_mark, &in, err);
	if (r == 0)
		r = fmt_index_shape(hdr.index_runs, &shape);
	if (r == 0)
		r = verify_all(&in, &hdr, shape.total, hash);
out:
	fmt_seal_hash_destroy(hash);
	reader_fini(&in);
	eng_index_close(index);
	return r;
}
