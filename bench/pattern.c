/* SPDX-License-Identifier: MIT */
/* pattern.c - the order of blocks, and the content of verified ones. */
#include "bench/pattern.h"

#include <string.h>
#include <xxhash.h>

#define STAMP_MAGIC UINT64_C(0x31706d617473766d) /* "mvstamp1" in the file */

struct stamp {
	uint64_t hash; /* XXH3-64 of everything after it */
	uint64_t magic, run, offset, generation;
};

/* splitmix64: any seed does, and every state is visited. */
uint64_t pattern_random(struct pattern *p)
{
	uint64_t x = p->random += UINT64_C(0x9e3779b97f4a7c15);

	x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
	return x ^ x >> 31;
}

static void new_pass(struct pattern *p)
{
	p->next = 0;
	for (unsigned i = 0; p->shuffled && i < PATTERN_ROUNDS; i++) {
		p->factor[i] = pattern_random(p) | 1;
		p->term[i] = pattern_random(p);
	}
}

void pattern_init(struct pattern *p, uint64_t blocks, bool shuffled, bool repeats, uint64_t seed)
{
	unsigned bits = blocks > 2 ? 64 - (unsigned)__builtin_clzll(blocks - 1) : 1;

	*p = (struct pattern){
		.blocks = blocks,
		.random = seed,
		.mask = UINT64_MAX >> (64 - bits),
		.shift = (bits + 1) / 2,
		.shuffled = shuffled,
		.repeats = repeats,
	};
	new_pass(p);
}

uint64_t pattern_next(struct pattern *p)
{
	uint64_t x;

	if (p->shuffled && p->repeats)
		return (uint64_t)((unsigned __int128)pattern_random(p) * p->blocks >> 64);
	if (p->next == p->blocks)
		new_pass(p);
	x = p->next++;
	if (!p->shuffled)
		return x;
	do {
		/* Odd factors, sums and xor with a shift of itself: each a bijection of the bits. */
		for (unsigned i = 0; i < PATTERN_ROUNDS; i++) {
			x = (x * p->factor[i] + p->term[i]) & p->mask;
			x ^= x >> p->shift;
		}
	} while (x >= p->blocks);
	return x;
}

/* --- stamps --- */

static uint64_t stamp_hash(const void *buf, size_t len)
{
	return XXH3_64bits((const char *)buf + sizeof(uint64_t), len - sizeof(uint64_t));
}

void stamp_write(void *buf, size_t len, uint64_t run, uint64_t offset, uint64_t generation)
{
	struct stamp stamp = {0, STAMP_MAGIC, run, offset, generation};
	struct pattern fill = {.random = run ^ offset ^ generation << 40};
	char *at = buf;

	for (size_t i = 0; i + 8 <= len; i += 8) {
		uint64_t word = pattern_random(&fill);

		memcpy(at + i, &word, 8);
	}
	memcpy(at, &stamp, sizeof(stamp));
	stamp.hash = stamp_hash(buf, len);
	memcpy(at, &stamp.hash, sizeof(stamp.hash));
}

bool stamp_check(const void *buf, size_t len, uint64_t run, uint64_t offset, uint64_t generation)
{
	struct stamp stamp;

	memcpy(&stamp, buf, sizeof(stamp));
	return stamp.magic == STAMP_MAGIC && stamp.offset == offset &&
	       (!run || (stamp.run == run && stamp.generation == generation)) &&
	       stamp.hash == stamp_hash(buf, len);
}
