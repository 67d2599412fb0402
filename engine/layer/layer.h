/* SPDX-License-Identifier: MIT */
/*
 * layer.h - one layer file in use: its header, its map log, its space, and its place in the chain.
 *
 * Who may touch what:
 *   - id, size, kind, block_bits, salt, paths: immutable after open.
 *   - hdr: under meta_lock, written by control threads only (never by a worker).
 *   - log, slots, pending: the worker's while the layer is a head or has requests in flight; after
 *     FIRED and inflight == 0 of whoever claimed hardening (T16, FL-6).
 *   - succ, inflight, hardening, poisoned: atomics.
 * References keep a layer; the last put closes its file.
 */
#ifndef ENGINE_LAYER_H
#define ENGINE_LAYER_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "engine/io/io.h"
#include "format/error.h"
#include "format/layer.h"

struct eng_cut;
struct eng_gone;
struct eng_layer;
struct eng_qcow2;
struct eng_index;
struct eng_round;

/* What follows a layer, once its cut has fired (spec/snapshot.md, "The cut"). Never changes. */
struct eng_succ {
	struct eng_layer *layer;
	struct eng_cut *cut;
	struct eng_succ *older; /* abandoned ones, kept until the layer goes */
};
void eng_succ_destroy(struct eng_succ *succ); /* drops both references; NULL is fine */

/* Hardening: NONE -> BUSY -> DONE or FAILED; claimed by compare-and-swap. */
enum eng_harden {
	ENG_HARDEN_NONE = 0,
	ENG_HARDEN_BUSY = 1,
	ENG_HARDEN_DONE = 2,
	ENG_HARDEN_FAILED = 3,
};

/* The map log being appended to. */
struct eng_log {
	uint64_t seq;                  /* of the newest record, 0: none */
	uint64_t segment, segment_len; /* file offset and bytes of the current segment */
	uint64_t offset;               /* file offset of the next record */
	uint32_t segments;             /* linked so far, the first included */
	uint64_t bytes;                /* in all segments */
	uint64_t next, next_len;       /* prepared segment, 0: none */
	uint64_t journal_seq;          /* last journal number that durable records cover */
};

struct eng_layer {
	struct eng_io *io;
	struct fmt_uuid id;
	uint32_t kind; /* enum fmt_kind */
	uint32_t block_bits, log_granule;
	uint64_t generation, salt, data_offset;
	_Atomic uint64_t size; /* bytes of the disk as this layer knows it */
	uint64_t dev, ino;     /* of the data file */
	uint32_t dio_align, mem_align;
	bool direct, in_place;
	char *path;               /* of the file with the header slots */
	char *data_path;          /* RAW, QCOW2: of the base file; NULL for overlays */
	struct eng_file *file;    /* data; overlays: header and log too */
	struct eng_file *sidecar; /* RAW, QCOW2: the header's file; NULL for a bare image */
	struct eng_qcow2 *qcow2;
	uint64_t base_bytes;   /* RAW: length of the file */
	struct eng_gone *gone; /* slots that must not be read, as it was opened; or NULL */

	pthread_mutex_t meta_lock;
	struct fmt_header hdr;
	uint64_t durable_seq; /* meta_lock: of the header that this object made durable (LH-13) */
	bool writable;

	_Atomic unsigned refs;
	_Atomic(struct eng_succ *) succ;
	struct eng_succ *abandoned; /* meta_lock */
	_Atomic unsigned inflight;  /* writes dequeued and flush rounds under way */
	_Atomic int harden;         /* enum eng_harden */
	_Atomic int poisoned;       /* 0 or the negative errno of the sync that failed */
	_Atomic bool sealed;        /* index and checksums can be used */
	/* Background calls that allocate or fill space behind the mapped slots: a seal, whose pages
	 * go there, waits for their end. */
	_Atomic unsigned spacing;
	_Atomic(struct eng_index *) index; /* of a sealed layer, opened on first use */

	/* the worker's */
	struct eng_log log;
	uint32_t next_slot;   /* first slot never given out */
	uint32_t slots_ready; /* slots whose space (and index reserve) is allocated */
	uint64_t dirty_gen,
		synced_gen;      /* data writes completed; covered by a successful fdatasync */
	struct fmt_run *pending; /* published, in no durable record */
	uint32_t pending_count, pending_cap;
	uint64_t pending_number;  /* newest journal number among them */
	uint64_t first_uncovered; /* oldest journal number in no record and no round; 0: none */
	uint32_t journal_tag;     /* UINT32_MAX: none */
	uint32_t promised_runs;   /* new mappings of writes in flight */
	uint32_t promised_writes; /* ... of so many writes */
	uint32_t chunk_slots;     /* size of the newest extension */
	uint32_t written_next, written_end; /* slots in space written ahead (SP-6) */
	bool writing_ahead;
	bool extending, segmenting; /* asked for, not there yet */
	struct eng_round *round;    /* its flush rounds, malloced on first use; freed at rest */
};

struct eng_layer_spec {
	const char *path;
	struct fmt_uuid store, disk, layer, parent;
	uint64_t generation, size;
	uint32_t block_bits;
	uint32_t initial_slots; /* space to allocate at once */
	uint8_t boot_id[16];    /* of the journal it will use, or zero */
	uint64_t journal_nonce;
	bool direct;
};

/* --- creation, in steps so that many layers share a ring and one directory sync --- */
/* Fills @hdr for a new overlay. */
void eng_layer_new_header(struct eng_io *io, const struct eng_layer_spec *spec, uint32_t granule,
			  struct fmt_header *hdr);
/*
 * Creates the file, allocates its first space and returns the open layer. Its head (header slots and
 * log segment 0, @head_len bytes for offset 0) is in *@head, to be written and synced by the caller
 * before anything else; free() it.
 */
int eng_layer_create_begin(struct eng_io *io, const struct eng_layer_spec *spec, void **head,
			   size_t *head_len, struct fmt_error *err, struct eng_layer **ret);
/* The whole of it for one layer: create, write, fdatasync; not the directory. */
int eng_layer_create(struct eng_io *io, const struct eng_layer_spec *spec, struct fmt_error *err,
		     struct eng_layer **ret);

/* Writes a base's sidecar, durable; not the directory. */
int eng_sidecar_create(struct eng_io *io, const char *path, const struct fmt_header *hdr,
		       struct fmt_error *err);

struct eng_layer_open {
	const char *path;      /* overlay, or sidecar of a base, or NULL for a bare base */
	const char *data_path; /* base file, else NULL */
	uint32_t kind;
	const char *const *base_dirs; /* for qcow2 backing files */
	size_t base_dirs_count;
	bool writable, direct;
	bool in_place; /* a base that is not the store's own: its time is checked */
};
/* Reads and checks the header (LH-*); does not read the log. */
int eng_layer_open(struct eng_io *io, const struct eng_layer_open *how, struct fmt_error *err,
		   struct eng_layer **ret);
struct eng_layer *eng_layer_get(struct eng_layer *layer);
void eng_layer_put(struct eng_layer *layer); /* NULL is fine */

/*
 * Changes the header durably: @edit changes a copy, which is written to the older slot and synced; what is
 * in the other one is settled first. Of a layer that is not ACTIVE the copy is what the file says, since
 * others may have changed it. Control threads only. A failed write or sync leaves hdr as it was.
 */
int eng_layer_update(struct eng_layer *layer, void (*edit)(struct fmt_header *hdr, void *arg),
		     void *arg, struct fmt_error *err);
/*
 * The header that the file shows becomes durable, and is hdr (LH-13): it may be of an update whose sync
 * failed, or of a process that died in one. For who makes anything else durable because of what it says.
 * Does no I/O, or no more than a read, where this object wrote it. Open for writing; control threads.
 */
int eng_layer_settle_header(struct eng_layer *layer, struct fmt_error *err);
/* It is, and nobody but this object changes it: no look at the file is needed. */
bool eng_layer_is_settled(struct eng_layer *layer);
/*
 * The same in parts, for many layers over one ring: where it returns 1, FMT_PAGE bytes of @slots (two pages,
 * aligned) at *@offset are to be written there in *@file, durably, before the end is called; with 0 there is
 * nothing to do. All of it between the two calls below, during which nobody else changes the header of a
 * layer that is not ACTIVE.
 */
int eng_layer_settle_begin(struct eng_layer *layer, void *slots, struct eng_file **file,
			   uint64_t *offset, struct fmt_error *err);
void eng_layer_settle_end(struct eng_layer *layer);
void eng_layer_lock_headers(void);
void eng_layer_unlock_headers(void);
/* Takes the header from the file again: another object sealed the layer, say. Any thread. */
int eng_layer_reload(struct eng_layer *layer, struct fmt_error *err);
/* Update in parts, of a settled layer: encode the next slot into @buf (FMT_PAGE, aligned), write it at
 * *@offset, sync, then commit. Between encode and commit/abort meta_lock is held. */
struct eng_file *eng_layer_update_begin(struct eng_layer *layer,
					void (*edit)(struct fmt_header *hdr, void *arg), void *arg,
					void *buf, uint64_t *offset);
void eng_layer_update_end(struct eng_layer *layer, const void *buf, bool ok);

static inline uint64_t eng_layer_slot_offset(const struct eng_layer *layer, uint32_t slot)
{
	return layer->data_offset + ((uint64_t)slot << layer->block_bits);
}

/* --- the map log: reading (control threads, or the worker before any request) --- */
/*
 * Replays the log (ML-*): calls @each for every run in order, then sets layer->log, next_slot and
 * slots_ready so that it can be appended to. A torn tail is dropped and, when the layer is writable,
 * durably overwritten. -EUCLEAN for rot in the middle (T13).
 */
int eng_log_replay(struct eng_layer *layer, int (*each)(void *arg, const struct fmt_run *run),
		   void *arg, struct fmt_error *err);
/* Bytes of log that can still take records: current segment and prepared one. */
uint64_t eng_log_room(const struct eng_layer *layer);
/*
 * Encodes into @buf the next record, of as many of the first pending runs as fit what is left of the
 * segment (*@taken), or a LINK (*@taken 0) when it is full. Returns its padded length and file
 * offset, 0 when there is nothing to do, -ENOSPC when a segment must be prepared first. Does not
 * change the layer; eng_log_advance() does, once the record is durable.
 */
int64_t eng_log_encode(struct eng_layer *layer, const struct fmt_run *runs, uint32_t count,
		       uint64_t journal_seq, void *buf, size_t cap, uint64_t *offset,
		       uint32_t *taken);
void eng_log_advance(struct eng_layer *layer, uint64_t len, uint32_t taken, uint64_t journal_seq);
#define ENG_LOG_SEGMENT (256u << 10) /* bytes of a segment after the first */
#define ENG_LOG_BUF     (FMT_RECORD_RUNS_MAX * 16u + 8192u)

/* Adds a published run to pending; -ENOMEM. Worker. */
int eng_layer_add_pending(struct eng_layer *layer, const struct fmt_run *run, uint64_t number);

/*
 * Makes a drained layer durable with synchronous calls: fdatasync, then its pending mappings. Only
 * by who claimed hardening. Poisons the layer on failure (T16).
 */
int eng_layer_harden_sync(struct eng_layer *layer);
/* Records a failed sync; the first error stays. */
void eng_layer_poison(struct eng_layer *layer, int error);

#endif
