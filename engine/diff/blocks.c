/* SPDX-License-Identifier: MIT */
/*
 * blocks.c - see blocks.h: one CRoaring bitmap of 32 bits for each value of the bits above them, in
 * ascending order; disks up to 16 TiB of 4 KiB blocks have one.
 *
 * The library checks where the bytes of a bitmap end and believes what they say; check_bitmap() walks
 * them first, by the format's description, so that nothing malformed gets in (DF-8).
 */
#include "engine/diff/blocks.h"

#include <errno.h>
#include <roaring/roaring.h>
#include <stdlib.h>
#include <string.h>

#include "format/layer.h"

#define BLOCKS_MAX (FMT_SIZE_MAX >> FMT_BLOCK_BITS_MIN)
#define CHUNK      (1ull << 32)
#define PIECE      (1ull << 16) /* values of one container */
#define SHORT      8u           /* ranges up to this are added value by value */

struct chunk {
	uint64_t high;
	roaring_bitmap_t *bits;
};

struct eng_blocks {
	struct chunk *chunks; /* ascending */
	size_t count;
};

int eng_blocks_create(struct eng_blocks **ret)
{
	struct eng_blocks *set = calloc(1, sizeof(*set));

	if (!set)
		return -ENOMEM;
	*ret = set;
	return 0;
}

void eng_blocks_destroy(struct eng_blocks *set)
{
	if (!set)
		return;
	for (size_t i = 0; i < set->count; i++)
		roaring_bitmap_free(set->chunks[i].bits);
	free(set->chunks);
	free(set);
}

/* --- adding --- */

/* The first chunk that is not below @high. */
static size_t find(const struct eng_blocks *set, uint64_t high)
{
	size_t i = 0;

	while (i < set->count && set->chunks[i].high < high)
		i++;
	return i;
}

/* The bitmap of @high, made when there is none; NULL: no memory. */
static roaring_bitmap_t *chunk_of(struct eng_blocks *set, uint64_t high)
{
	size_t i = find(set, high);
	struct chunk *p;
	roaring_bitmap_t *bits;

	if (i < set->count && set->chunks[i].high == high)
		return set->chunks[i].bits;
	p = realloc(set->chunks, (set->count + 1) * sizeof(*p));
	if (!p)
		return NULL;
	set->chunks = p;
	bits = roaring_bitmap_create();
	if (!bits)
		return NULL;
	memmove(p + i + 1, p + i, (set->count - i) * sizeof(*p));
	p[i] = (struct chunk){high, bits};
	set->count++;
	return bits;
}

static bool is_in_bounds(uint64_t first, uint64_t count)
{
	return first < BLOCKS_MAX && count <= BLOCKS_MAX - first;
}

int eng_blocks_add_range(struct eng_blocks *set, uint64_t first, uint64_t count)
{
	if (!count)
		return 0;
	if (!is_in_bounds(first, count))
		return -EINVAL;
	while (count) {
		uint64_t low = first % CHUNK, n = CHUNK - low < count ? CHUNK - low : count;
		roaring_bitmap_t *bits = chunk_of(set, first / CHUNK);

		if (!bits)
			return -ENOMEM;
		roaring_bitmap_add_range_closed(bits, (uint32_t)low, (uint32_t)(low + n - 1));
		first += n;
		count -= n;
	}
	return 0;
}

int eng_blocks_or(struct eng_blocks *set, const struct eng_blocks *other)
{
	for (size_t i = 0; other && i < other->count; i++) {
		roaring_bitmap_t *bits = chunk_of(set, other->chunks[i].high);

		if (!bits)
			return -ENOMEM;
		roaring_bitmap_or_inplace(bits, other->chunks[i].bits);
	}
	return 0;
}

static const roaring_bitmap_t *chunk_at(const struct eng_blocks *set, uint64_t high)
{
	size_t i = set ? find(set, high) : 0;

	return set && i < set->count && set->chunks[i].high == high ? set->chunks[i].bits : NULL;
}

void eng_blocks_andnot(struct eng_blocks *set, const struct eng_blocks *other)
{
	for (size_t i = 0; i < set->count; i++) {
		const roaring_bitmap_t *bits = chunk_at(other, set->chunks[i].high);

		if (bits)
			roaring_bitmap_andnot_inplace(set->chunks[i].bits, bits);
	}
}

void eng_blocks_and(struct eng_blocks *set, const struct eng_blocks *other)
{
	for (size_t i = 0; i < set->count; i++) {
		const roaring_bitmap_t *bits = chunk_at(other, set->chunks[i].high);

		if (bits)
			roaring_bitmap_and_inplace(set->chunks[i].bits, bits);
		else
			roaring_bitmap_clear(set->chunks[i].bits);
	}
}

int eng_blocks_copy(const struct eng_blocks *set, struct eng_blocks **ret)
{
	struct eng_blocks *copy = NULL;
	int r = eng_blocks_create(&copy);

	if (r == 0)
		r = eng_blocks_or(copy, set);
	if (r < 0)
		eng_blocks_destroy(copy);
	else
		*ret = copy;
	return r;
}

uint64_t eng_blocks_and_cardinality(const struct eng_blocks *a, const struct eng_blocks *b)
{
	uint64_t n = 0;

	for (size_t i = 0; a && i < a->count; i++) {
		const roaring_bitmap_t *bits = chunk_at(b, a->chunks[i].high);

		if (bits)
			n += roaring_bitmap_and_cardinality(a->chunks[i].bits, bits);
	}
	return n;
}

void eng_blocks_adder_init(struct eng_blocks_adder *adder, struct eng_blocks *set)
{
	adder->set = set;
	adder->high = 0;
	adder->count = 0;
}

int eng_blocks_adder_end(struct eng_blocks_adder *adder)
{
	roaring_bitmap_t *bits;

	if (!adder->count)
		return 0;
	bits = chunk_of(adder->set, adder->high);
	if (!bits)
		return -ENOMEM;
	roaring_bitmap_add_many(bits, adder->count, adder->values);
	adder->count = 0;
	return 0;
}

int eng_blocks_adder_add(struct eng_blocks_adder *adder, uint64_t first, uint64_t count)
{
	const uint32_t room = sizeof(adder->values) / sizeof(adder->values[0]);
	int r = 0;

	if (count > SHORT || first / CHUNK != (first + count) / CHUNK ||
	    !is_in_bounds(first, count))
		return eng_blocks_add_range(adder->set, first, count);
	if (adder->high != first / CHUNK || adder->count + count > room)
		r = eng_blocks_adder_end(adder);
	if (r < 0)
		return r;
	adder->high = first / CHUNK;
	for (uint64_t i = 0; i < count; i++)
		adder->values[adder->count++] = (uint32_t)(first + i);
	return 0;
}

/* --- asking --- */

bool eng_blocks_has(const struct eng_blocks *set, uint64_t block)
{
	size_t i = find(set, block / CHUNK);

	return i < set->count && set->chunks[i].high == block / CHUNK &&
	       roaring_bitmap_contains(set->chunks[i].bits, (uint32_t)block);
}

uint64_t eng_blocks_cardinality(const struct eng_blocks *set)
{
	uint64_t n = 0;

	for (size_t i = 0; set && i < set->count; i++)
		n += roaring_bitmap_get_cardinality(set->chunks[i].bits);
	return n;
}

struct walk {
	uint64_t end;          /* of what is asked for */
	uint64_t first, count; /* the range under construction; count 0: none */
	int (*each)(void *arg, uint64_t first, uint64_t count);
	void *arg;
};

static int walk_add(struct walk *w, uint64_t first, uint64_t count)
{
	int r = 0;

	if (w->count && first == w->first + w->count) {
		w->count += count;
		return 0;
	}
	if (w->count)
		r = w->each(w->arg, w->first, w->count);
	w->first = first;
	w->count = count;
	return r;
}

/* The values from @from on; a whole piece is one range, not 65536 values. */
static int walk_chunk(struct walk *w, const struct chunk *chunk, uint64_t from)
{
	uint64_t base = chunk->high * CHUNK;
	roaring_uint32_iterator_t it;
	uint32_t values[1024], n;
	int r = 0;

	roaring_init_iterator(chunk->bits, &it);
	if (from > base)
		roaring_move_uint32_iterator_equalorlarger(&it, (uint32_t)(from - base));
	while (r == 0 && it.has_value && base + it.current_value < w->end) {
		uint64_t at = it.current_value, piece = at | (PIECE - 1);

		if (at % PIECE == 0 && roaring_bitmap_contains_range(chunk->bits, at, at + PIECE)) {
			uint64_t left = w->end - base - at;

			r = walk_add(w, base + at, left < PIECE ? left : PIECE);
			if (piece == UINT32_MAX)
				break;
			roaring_move_uint32_iterator_equalorlarger(&it, (uint32_t)piece + 1);
			continue;
		}
		/* No further than a piece, to look at the next one as a whole. */
		while (r == 0 && it.has_value && it.current_value <= piece) {
			n = roaring_read_uint32_iterator(&it, values, 1024);
			for (uint32_t i = 0; r == 0 && i < n; i++)
				r = base + values[i] < w->end ? walk_add(w, base + values[i], 1)
							      : 0;
			if (base + values[n - 1] >= w->end)
				return r;
		}
	}
	return r;
}

int eng_blocks_each(const struct eng_blocks *set, uint64_t first, uint64_t count,
		    int (*each)(void *arg, uint64_t first, uint64_t count), void *arg)
{
	struct walk w = {
		.end = count < UINT64_MAX - first ? first + count : UINT64_MAX,
		.each = each,
		.arg = arg,
	};
	int r = 0;

	for (size_t i = find(set, first / CHUNK);
	     r == 0 && i < set->count && set->chunks[i].high * CHUNK < w.end; i++)
		r = walk_chunk(&w, &set->chunks[i], first);
	return r == 0 && w.count ? each(arg, w.first, w.count) : r;
}

/* --- as bytes --- */

#define MAGIC   "VMIMGBLK"
#define VERSION 1u

struct head {
	uint8_t magic[8];
	le32 version;
	le32 chunks;
	le64 csum; /* XXH3-64 of all that follows */
};
struct chunk_head {
	le32 high;
	le32 len; /* of the bitmap that follows */
};
static_assert(sizeof(struct head) == 24 && sizeof(struct chunk_head) == 8, "DF-8");

int eng_blocks_encode(struct eng_blocks *set, void **bytes, size_t *len)
{
	size_t total = sizeof(struct head), at = sizeof(struct head);
	struct head head = {.version = le32_make(VERSION)};
	uint8_t *p;

	for (size_t i = 0; i < set->count; i++) {
		roaring_bitmap_run_optimize(set->chunks[i].bits);
		total += sizeof(struct chunk_head) +
			 roaring_bitmap_portable_size_in_bytes(set->chunks[i].bits);
	}
	if (total > INT32_MAX)
		return -EFBIG;
	p = malloc(total);
	if (!p)
		return -ENOMEM;
	for (size_t i = 0; i < set->count; i++) {
		uint8_t *body = p + at + sizeof(struct chunk_head);
		size_t n = roaring_bitmap_portable_serialize(set->chunks[i].bits, (char *)body);
		struct chunk_head ch = {
			.high = le32_make((uint32_t)set->chunks[i].high),
			.len = le32_make((uint32_t)n),
		};

		memcpy(p + at, &ch, sizeof(ch));
		at += sizeof(ch) + n;
	}
	memcpy(head.magic, MAGIC, sizeof(head.magic));
	head.chunks = le32_make((uint32_t)set->count);
	head.csum = le64_make(fmt_block_csum(p + sizeof(head), at - sizeof(head)));
	memcpy(p, &head, sizeof(head));
	*bytes = p;
	*len = at;
	return 0;
}

static uint16_t get16(const uint8_t *p)
{
	return (uint16_t)(p[0] | p[1] << 8);
}

static uint32_t get32(const uint8_t *p)
{
	return get16(p) | (uint32_t)get16(p + 2) << 16;
}

/* One container of @values values at @p: its length, or -EUCLEAN. */
static int64_t check_container(const uint8_t *p, size_t left, bool runs, uint32_t values)
{
	uint32_t found = 0, n;

	if (runs) {
		n = left < 2 ? 0 : get16(p);
		if (!n || left < 2 + 4ull * n)
			return -EUCLEAN;
		for (uint32_t i = 0, end = 0; i < n; i++) {
			uint32_t start = get16(p + 2 + 4 * i), more = get16(p + 4 + 4 * i);

			if (start < end || start + more > UINT16_MAX)
				return -EUCLEAN;
			end = start + more + 2; /* ranges that touch are one */
			found += more + 1;
		}
		return found == values ? 2 + 4 * (int64_t)n : -EUCLEAN;
	}
	if (values <= 4096) {
		if (left < 2ull * values)
			return -EUCLEAN;
		for (uint32_t i = 1; i < values; i++)
			if (get16(p + 2 * i) <= get16(p + 2 * i - 2))
				return -EUCLEAN;
		return 2 * (int64_t)values;
	}
	if (left < PIECE / 8)
		return -EUCLEAN;
	for (uint32_t i = 0; i < PIECE / 8; i++)
		found += (uint32_t)__builtin_popcount(p[i]);
	return found == values ? (int64_t)(PIECE / 8) : -EUCLEAN;
}

/* What the library's portable format may hold, to the last byte; its offsets are what they must be. */
static int check_bitmap(const uint8_t *p, size_t len)
{
	bool has_runs = len >= 4 && get16(p) == 12347;
	uint32_t n = has_runs ? get16(p + 2) + 1u : len >= 8 ? get32(p + 4) : 0;
	const uint8_t *flags = p + 4, *keys, *offsets;
	bool has_offsets = !has_runs || n >= 4;
	size_t at = has_runs ? 4 + (n + 7) / 8 : 8;

	if (!n || n > PIECE || (!has_runs && get32(p) != 12346))
		return -EUCLEAN;
	keys = p + at;
	offsets = keys + 4ull * n;
	at += 4ull * n + (has_offsets ? 4ull * n : 0);
	if (at > len)
		return -EUCLEAN;
	for (uint32_t i = 0; i < n; i++) {
		bool runs = has_runs && flags[i / 8] & 1u << i % 8;
		int64_t got;

		if ((i && get16(keys + 4 * i) <= get16(keys + 4 * i - 4)) ||
		    (has_offsets && get32(offsets + 4 * i) != at))
			return -EUCLEAN;
		got = check_container(p + at, len - at, runs, get16(keys + 4 * i + 2) + 1u);
		if (got < 0)
			return -EUCLEAN;
		at += (size_t)got;
	}
	return at == len ? 0 : -EUCLEAN;
}

static int decode_chunk(struct eng_blocks *set, const uint8_t *p, size_t left, size_t *used,
			struct fmt_error *err)
{
	struct chunk_head ch;
	roaring_bitmap_t *bits;
	struct chunk *chunks;
	uint64_t high;

	if (left < sizeof(ch))
		return fmt_fail(err, -EUCLEAN, "set of blocks: ends inside a chunk (DF-8)");
	memcpy(&ch, p, sizeof(ch));
	high = le32_get(ch.high);
	if (high > (BLOCKS_MAX - 1) / CHUNK ||
	    (set->count && high <= set->chunks[set->count - 1].high))
		return fmt_fail(err, -EUCLEAN, "set of blocks: chunk %llu out of order (DF-8)",
				(unsigned long long)high);
	if (le32_get(ch.len) > left - sizeof(ch) ||
	    check_bitmap(p + sizeof(ch), le32_get(ch.len)) < 0)
		return fmt_fail(err, -EUCLEAN, "set of blocks: chunk %llu is malformed (DF-8)",
				(unsigned long long)high);
	chunks = realloc(set->chunks, (set->count + 1) * sizeof(*chunks));
	if (!chunks)
		return fmt_fail(err, -ENOMEM, "no memory for a set of blocks");
	set->chunks = chunks;
	bits = roaring_bitmap_portable_deserialize_safe((const char *)p + sizeof(ch),
							le32_get(ch.len));
	if (!bits)
		return fmt_fail(err, -ENOMEM, "no memory for a set of blocks");
	set->chunks[set->count++] = (struct chunk){high, bits};
	*used = sizeof(ch) + le32_get(ch.len);
	return 0;
}

int eng_blocks_decode(const void *bytes, size_t len, struct fmt_error *err, struct eng_blocks **ret)
{
	const uint8_t *p = bytes;
	struct eng_blocks *set = NULL;
	struct head head;
	size_t at = sizeof(head), used = 0;
	int r;

	if (len < sizeof(head) || memcmp(p, MAGIC, sizeof(head.magic)) != 0)
		return fmt_fail(err, -EUCLEAN, "set of blocks: no magic in %zu bytes (DF-8)", len);
	memcpy(&head, p, sizeof(head));
	if (le32_get(head.version) != VERSION)
		return fmt_fail(err, -ENOTSUP, "set of blocks: of version %u, expected %u",
				le32_get(head.version), VERSION);
	if (le64_get(head.csum) != fmt_block_csum(p + at, len - at))
		return fmt_fail(err, -EBADMSG, "set of blocks: checksum does not match (DF-8)");
	r = eng_blocks_create(&set);
	for (uint32_t i = 0; r == 0 && i < le32_get(head.chunks); i++) {
		r = decode_chunk(set, p + at, len - at, &used, err);
		at += used;
	}
	if (r == 0 && at != len)
		r = fmt_fail(err, -EUCLEAN, "set of blocks: %zu bytes too many (DF-8)", len - at);
	if (r == 0) {
		*ret = set;
		set = NULL;
	}
	eng_blocks_destroy(set);
	return r;
}
