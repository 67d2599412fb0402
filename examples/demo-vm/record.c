/* SPDX-License-Identifier: MIT */
/*
 * record.c - records to bytes and back: "vmimgrec", the chain, the number, and a checksum over them
 * (FNV-1a, 64 bits), each little-endian.
 */
#include "examples/demo-vm/record.h"

#include <endian.h>
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAGIC  "vmimgrec"
#define STRIDE 2654435761u /* odd, so it visits every one of a power of two */

struct record {
	char magic[8];
	uint64_t chain, number, sum;
};

static uint64_t checksum(const struct record *record)
{
	const unsigned char *at = (const unsigned char *)record;
	uint64_t sum = UINT64_C(0xcbf29ce484222325);

	for (size_t i = 0; i < offsetof(struct record, sum); i++)
		sum = (sum ^ at[i]) * UINT64_C(0x100000001b3);
	return sum;
}

void record_make(void *bytes, uint32_t chain, uint64_t number)
{
	struct record record = {.chain = htole64(chain), .number = htole64(number)};

	memcpy(record.magic, MAGIC, sizeof(record.magic));
	record.sum = htole64(checksum(&record));
	memset(bytes, 0, RECORD_BYTES);
	memcpy(bytes, &record, sizeof(record));
}

bool record_read(const void *bytes, uint32_t *chain, uint64_t *number)
{
	struct record record;

	memcpy(&record, bytes, sizeof(record));
	if (memcmp(record.magic, MAGIC, sizeof(record.magic)) != 0 ||
	    le64toh(record.sum) != checksum(&record) || le64toh(record.chain) >= RECORD_CHAINS)
		return false;
	*chain = (uint32_t)le64toh(record.chain);
	*number = le64toh(record.number);
	return true;
}

uint64_t record_raw_room(uint64_t bytes)
{
	uint64_t blocks = bytes / RECORD_BLOCK, room = 1;

	if (blocks < 2)
		return 0;
	while (room * 2 <= blocks - 1)
		room *= 2;
	return room;
}

uint64_t record_raw_offset(uint64_t index, uint64_t room)
{
	return (1 + (index * STRIDE & (room - 1))) * RECORD_BLOCK;
}

int record_scan(int fd, uint64_t room, record_fn each, void *opaque, uint64_t *count)
{
	size_t bytes = room ? RECORD_BLOCK : RECORD_BYTES;
	char *block = aligned_alloc(RECORD_BLOCK,
				    RECORD_BLOCK); /* of a descriptor with O_DIRECT, maybe */
	uint64_t index = 0, number;
	uint32_t chain;
	ssize_t n = 0;

	if (!block)
		return -ENOMEM;
	while (!room || index < room) {
		n = pread(fd, block, bytes,
			  (off_t)(room ? record_raw_offset(index, room) : index * bytes));
		if (n < (ssize_t)RECORD_BYTES || !record_read(block, &chain, &number))
			break;
		each(opaque, chain, number);
		index++;
	}
	if (n < 0)
		room = (uint64_t)errno;
	free(block);
	if (n < 0)
		return -(int)room;
	*count = index;
	return 0;
}
