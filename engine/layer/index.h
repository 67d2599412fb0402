/* SPDX-License-Identifier: MIT */
/*
 * index.h - a sealed layer's index and checksums: searched on disk page by page, never loaded whole,
 * and written by the seal (spec/format.md IX-*, CS-*, SL-*).
 *
 * Reading: any thread; pages come through the page cache and are checked each time. Checksum pages once
 * read stay in memory with the index (8 bytes a block read), so that a warm read costs one look-up.
 */
#ifndef ENGINE_INDEX_H
#define ENGINE_INDEX_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/io/io.h"
#include "engine/layer/layer.h"

struct eng_index;

/* Opens the index of a sealed layer (its own buffered descriptor), -EUCLEAN when the header lies,
 * -EINVAL when it is not a sealed overlay's. */
int eng_index_open(struct eng_io *io, const char *path, const struct fmt_header *hdr,
		   struct fmt_error *err, struct eng_index **ret);
void eng_index_close(struct eng_index *index); /* NULL is fine */
/* The layer's index, opened on first use and kept; any thread. */
int eng_layer_index(struct eng_layer *layer, struct fmt_error *err, struct eng_index **ret);

/* Calls @each for the runs that touch [first, first + count), clipped to it, ascending; stops with
 * its value when that is not 0. */
int eng_index_each(struct eng_index *index, uint64_t first, uint64_t count,
		   int (*each)(void *arg, const struct fmt_run *run), void *arg,
		   struct fmt_error *err);
/*
 * The checksum of @slot if its page is in memory: 0 and *@csum; -EAGAIN: not in memory, call
 * eng_index_load_csum() on a thread that may block, then ask again; -EUCLEAN: the layer has no such
 * slot. Only for slots that the index names. No lock, no I/O.
 */
int eng_index_csum(struct eng_index *index, uint32_t slot, uint64_t *csum);
int eng_index_load_csum(struct eng_index *index, uint32_t slot, struct fmt_error *err);
size_t eng_index_memory(const struct eng_index *index);

/*
 * Seals a hardened, FROZEN overlay: reads its log, writes index and checksum pages behind the last
 * slot, syncs, then marks the header SEALED and gives unused space back (SL-*). Background thread.
 * @rate: bytes a second of data read, 0 unlimited. @stop (NULL is fine) is asked now and then; true:
 * -ECANCELED, nothing changed. @parent_hash is zero when unknown; then what the header has stays.
 * 0 also when it is sealed already; -EBUSY not hardened or not FROZEN, -EROFS not open for writing,
 * -ENOSPC; after any error the layer stays hardened and may be sealed again.
 */
int eng_layer_seal(struct eng_layer *layer, const uint8_t parent_hash[16], uint64_t rate,
		   bool (*stop)(void *arg), void *arg, struct fmt_error *err);
/* The same for a layer whose slots' checksums are known (0 where a slot is not in use), so that the
 * data is not read again: slot i has csums[i], those from @count on are not in use. */
int eng_layer_seal_known(struct eng_layer *layer, const uint8_t parent_hash[16],
			 const uint64_t *csums, uint64_t count, bool (*stop)(void *arg), void *arg,
			 struct fmt_error *err);
/* Re-reads every block of a sealed layer against its checksums, and index and checksums against the
 * seal hash: 0, -EBADMSG, -EUCLEAN. */
int eng_layer_verify(struct eng_layer *layer, struct fmt_error *err);

#endif
