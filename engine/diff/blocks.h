/* SPDX-License-Identifier: MIT */
/*
 * blocks.h - a set of block numbers, compressed (CRoaring): the blocks that changed between two states of
 * a disk (diff.h), and what a reference point keeps of a fold (T29; spec/lifecycle.md DF-*).
 *
 * Not locked: any number of readers, or one writer. Its bytes may come from anywhere: decoding checks all
 * of them before the library sees one.
 */
#ifndef ENGINE_BLOCKS_H
#define ENGINE_BLOCKS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "format/error.h"

struct eng_blocks;

int eng_blocks_create(struct eng_blocks **ret);
void eng_blocks_destroy(struct eng_blocks *set); /* NULL is fine */

/* Adds @count blocks from @first; -EINVAL beyond FMT_SIZE_MAX, -ENOMEM. */
int eng_blocks_add_range(struct eng_blocks *set, uint64_t first, uint64_t count);
/* Adds what @other holds; NULL is none. */
int eng_blocks_or(struct eng_blocks *set, const struct eng_blocks *other);

/* Takes out what @other holds, or what it does not hold; NULL holds nothing. */
void eng_blocks_andnot(struct eng_blocks *set, const struct eng_blocks *other);
void eng_blocks_and(struct eng_blocks *set, const struct eng_blocks *other);
int eng_blocks_copy(const struct eng_blocks *set, struct eng_blocks **ret);
/* How many both hold. */
uint64_t eng_blocks_and_cardinality(const struct eng_blocks *a, const struct eng_blocks *b);

/* Many short ranges in ascending order cost least through one of these. */
struct eng_blocks_adder {
	struct eng_blocks *set;
	uint64_t high; /* bits 32 and up of all @values */
	uint32_t count;
	uint32_t values[1024];
};
void eng_blocks_adder_init(struct eng_blocks_adder *adder, struct eng_blocks *set);
int eng_blocks_adder_add(struct eng_blocks_adder *adder, uint64_t first, uint64_t count);
/* The set has what was added only after this. */
int eng_blocks_adder_end(struct eng_blocks_adder *adder);

bool eng_blocks_has(const struct eng_blocks *set, uint64_t block);
uint64_t eng_blocks_cardinality(const struct eng_blocks *set); /* how many; NULL: 0 */
/*
 * Calls @each for the ranges that touch [first, first + count), clipped to it: ascending, never empty,
 * never adjacent; stops with its value when that is not 0.
 */
int eng_blocks_each(const struct eng_blocks *set, uint64_t first, uint64_t count,
		    int (*each)(void *arg, uint64_t first, uint64_t count), void *arg);

/* The set as bytes (DF-8), at most 2^31; free(). Its containers may be packed tighter by it. */
int eng_blocks_encode(struct eng_blocks *set, void **bytes, size_t *len);
/* -EBADMSG: the checksum does not match; -EUCLEAN: no such bytes; -ENOTSUP: of a newer version. */
int eng_blocks_decode(const void *bytes, size_t len, struct fmt_error *err,
		      struct eng_blocks **ret);

#endif
