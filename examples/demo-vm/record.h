/* SPDX-License-Identifier: MIT */
/*
 * record.h - what one dependent write leaves behind, in a file or on a raw disk. Shared by the program
 * in the guests and the one on the host; no state, any thread.
 *
 * A file holds records one after another; only its last one may be torn. A raw disk has a header in
 * its first block, and then one record a block, the blocks in an order that scatters them.
 */
#ifndef EXAMPLES_DEMO_VM_RECORD_H
#define EXAMPLES_DEMO_VM_RECORD_H

#include <stdbool.h>
#include <stdint.h>

#define RECORD_BYTES  64u
#define RECORD_BLOCK  4096u /* of a raw disk */
#define RECORD_CHAINS 8u    /* at most */
#define RECORD_RAW    "vmimg demo: a raw disk\n"

/* Fills @bytes, the sizes above, with write @number (from 1) of @chain. */
void record_make(void *bytes, uint32_t chain, uint64_t number);

/* Whether @bytes hold a record; then which. */
bool record_read(const void *bytes, uint32_t *chain, uint64_t *number);

/* How many records a raw disk of @bytes takes, and where the one with this index lies. */
uint64_t record_raw_room(uint64_t bytes);
uint64_t record_raw_offset(uint64_t index, uint64_t room);

/* Called for each record of a file or disk, in its order. */
typedef void (*record_fn)(void *opaque, uint32_t chain, uint64_t number);

/*
 * Reads records up to the first place that holds none: in a file, or with @room above 0 on a raw disk.
 * A negative errno, or 0 and how many there are.
 */
int record_scan(int fd, uint64_t room, record_fn each, void *opaque, uint64_t *count);

#endif
