/* SPDX-License-Identifier: MIT */
/* engine_source.h - a disk in memory as a source of copies: its bytes, and what each sector is said to be. */
#ifndef TESTS_UNIT_ENGINE_SOURCE_H
#define TESTS_UNIT_ENGINE_SOURCE_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/image/source.h"
#include "tests/lib/random.h"

#define SECTOR 512u

struct disk {
	uint64_t size;
	uint8_t *bytes;    /* a sector more than size, zeros */
	uint8_t *states;   /* enum eng_extent_state */
	uint64_t fails_at; /* reads that touch this byte fail; UINT64_MAX: none does */
	_Atomic uint64_t bytes_read;
};

/* Of this run; taken back from VMIMG_SEED. */
static inline uint64_t disk_seed(struct eng_io *io)
{
	const char *given = getenv("VMIMG_SEED");
	uint64_t seed;

	eng_io_random(io, &seed, sizeof(seed));
	if (given)
		seed = strtoull(given, NULL, 0);
	fprintf(stderr, "VMIMG_SEED=%llu\n", (unsigned long long)seed);
	return seed;
}

static inline void disk_free(struct disk *disk)
{
	free(disk->bytes);
	free(disk->states);
	disk->bytes = disk->states = NULL;
}

/* One hole. */
static inline void disk_make(struct disk *disk, uint64_t size)
{
	disk_free(disk);
	disk->size = size;
	disk->fails_at = UINT64_MAX;
	disk->bytes = calloc(1, size + SECTOR);
	disk->states = malloc(size / SECTOR + 1);
	cr_assert(disk->bytes && disk->states);
	memset(disk->states, ENG_EXTENT_HOLE, size / SECTOR + 1);
}

static inline int disk_extent(void *arg, uint64_t offset, struct eng_extent *ret,
			      struct fmt_error *err)
{
	struct disk *disk = arg;
	uint64_t end = offset;

	(void)err;
	while (end < disk->size && disk->states[end / SECTOR] == disk->states[offset / SECTOR])
		end = (end / SECTOR + 1) * SECTOR;
	*ret = (struct eng_extent){
		.start = offset,
		.length = (end < disk->size ? end : disk->size) - offset,
		.state = disk->states[offset / SECTOR],
	};
	return 0;
}

static inline int disk_read(void *arg, void *buf, size_t len, uint64_t offset,
			    struct fmt_error *err)
{
	struct disk *disk = arg;

	cr_assert(offset <= disk->size && len <= disk->size - offset);
	if (disk->fails_at >= offset && disk->fails_at - offset < len)
		return fmt_fail(err, -EIO, "a bad place at %llu",
				(unsigned long long)disk->fails_at);
	memcpy(buf, disk->bytes + offset, len);
	disk->bytes_read += len;
	return 0;
}

static inline struct eng_source disk_source(struct disk *disk)
{
	return (struct eng_source){.size = disk->size,
				   .extent = disk_extent,
				   .read = disk_read,
				   .arg = disk};
}

enum disk_kind {
	DISK_NOISE,
	DISK_PATTERN, /* compresses well */
	DISK_ZEROS,   /* written ones */
};

static inline void disk_data(struct disk *disk, uint64_t offset, uint64_t len, enum disk_kind kind,
			     uint64_t *rnd)
{
	for (uint64_t i = offset; i < offset + len && i < disk->size; i++) {
		disk->bytes[i] = kind == DISK_NOISE     ? (uint8_t)test_random(rnd)
				 : kind == DISK_PATTERN ? (uint8_t)(i / 64 % 255 + 1)
							: 0;
		disk->states[i / SECTOR] = ENG_EXTENT_DATA;
	}
}

/* Random runs of all kinds. */
static inline void disk_fill(struct disk *disk, uint64_t *rnd)
{
	for (uint64_t at = 0; at < disk->size;) {
		uint64_t len = (1 + test_random(rnd) % 64) * SECTOR;

		len = len < disk->size - at ? len : disk->size - at;
		if (test_random(rnd) % 3 == 0) {
			for (uint64_t s = at / SECTOR; s <= (at + len - 1) / SECTOR; s++)
				disk->states[s] = test_random(rnd) % 2 ? ENG_EXTENT_ZERO
								       : ENG_EXTENT_HOLE;
		} else {
			disk_data(disk, at, len, (enum disk_kind)(test_random(rnd) % 3), rnd);
		}
		at += len;
	}
}

#endif
