/* SPDX-License-Identifier: MIT */
/*
 * disk.h - a chain of layers as one block device, worked on by one queue.
 *
 * D-1: all fields but the atomics are the worker's. D-2: layers[] grows at the end only; ordinal i in
 * the map is layers[i]; a folded layer stands at every ordinal that it replaced. D-3: layers below @indexed
 * answer through their index, region by region; the map holds every entry of the layers above from the
 * start.
 */
#ifndef ENGINE_DISK_H
#define ENGINE_DISK_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "engine/disk/cut.h"
#include "engine/io/io.h"
#include "engine/layer/journal.h"
#include "engine/layer/layer.h"
#include "engine/disk/map.h"
#include "engine/io/pool.h"
#include "engine/disk/queue.h"
#include "engine/disk/rangelock.h"

struct eng_build;
struct eng_round;
struct eng_swap;

/* Somebody waits for a layer (or the whole chain) to be durable. */
struct eng_waiter {
	struct eng_waiter *next;
	void (*wake)(struct eng_waiter *w, int result);
};

/* What the control side does for a disk; NULL members: never needed (an image without a store). */
struct eng_disk_ops {
	/* The head's log or map is at half its bound (T6). Worker; must not block; at most one call
	 * until eng_disk_rolled(). */
	void (*roll)(void *owner, struct eng_disk *disk);
};

struct eng_disk {
	struct eng_io *io;
	struct eng_pool *pool;
	struct eng_queue *queue;
	const struct eng_disk_ops *ops;
	void *owner;
	struct fmt_uuid id;
	_Atomic uint64_t size; /* bytes; written by the worker, read by any thread */
	uint64_t blocks; /* that the map knows of: the disk's, or more where it was larger once (RZ-2) */
	uint32_t block_bits;
	bool read_only;
	bool verify; /* check sealed data against its checksums */

	struct eng_layer **layers; /* base first; a reference each */
	uint32_t nlayers, layers_cap;
	uint32_t indexed;
	uint32_t first_undurable; /* oldest ordinal that a flush must look at (T12) */
	struct eng_layer *head;   /* layers[nlayers - 1] */

	struct eng_map *map;
	struct eng_rangelocks locks;
	struct eng_journal *journal; /* NULL: none (read-only, raw head, image) */
	uint32_t journal_reserved;   /* entries promised to writes in flight */

	struct eng_build *builds; /* regions being built, with who waits */
	struct eng_req *stalled,
		**stalled_tail;     /* writes that wait for space, log room or journal room */
	struct eng_waiter emptying; /* the background round, oldest layer first */
	bool is_emptying;
	uint32_t emptying_ordinal;
	struct eng_waiter *hardening; /* flushes that wait for the coordinator's hardening */
	unsigned background;          /* pool tasks and internal rounds under way */
	unsigned requests;            /* of this disk, in flight */
	unsigned epoch, in_epoch[2];  /* the same by the epoch they began in (swap.c) */
	struct eng_swap *swap;        /* folded layers being put in place, or NULL */
	uint32_t layout;              /* how many times that was begun */
	_Atomic unsigned swaps;       /* posted or under way */
	_Atomic unsigned forwarded;   /* on their way here from other queues */

	uint64_t log_bound, map_bound; /* bytes, blocks */
	uint64_t map_memory;           /* bytes; above it, regions of sealed layers are forgotten */
	uint64_t clock, trim_left;     /* next region to forget; how many are worth a look */
	bool rolling;
	unsigned small_flushes;        /* recent flushes of a few mappings, 0..FLUSHY_MAX */
	_Atomic uint64_t max_write_ns; /* longest write since it is watched */
	_Atomic bool watched;
	struct eng_req *watch_first, *watch_last; /* writes begun while watched, oldest first */
	_Atomic uint64_t watch_since_ns;          /* start of the oldest; 0: none */
	_Atomic uint64_t journal_nonce; /* for overlays made while attached; 0: no journal */
	struct eng_msg hardened_msg;
	_Atomic bool hardened_posted, harden_wanted;
	struct { /* AT-6; the poster's until @posted, the worker's from then on */
		struct eng_msg msg;
		uint64_t size, base_bytes;
		void *table;
		_Atomic bool posted;
	} grow;
};

struct eng_disk_spec {
	struct eng_io *io;
	struct eng_pool *pool;
	struct eng_queue *queue;
	const struct eng_disk_ops *ops;
	void *owner;
	struct fmt_uuid id;
	uint64_t size;
	uint32_t block_bits;
	bool read_only;
	struct eng_layer **layers; /* takes the references, not the array */
	uint32_t nlayers;
	uint64_t log_bound, map_bound, map_memory; /* 0: defaults */
};

/*
 * Makes the device: replays the logs of the layers that are not sealed into the map. On the queue's
 * thread, before any request. On failure the layers stay the caller's.
 */
int eng_disk_create(const struct eng_disk_spec *spec, struct fmt_error *err, struct eng_disk **ret);
/* Before the first write; takes the journal. */
void eng_disk_set_journal(struct eng_disk *disk, struct eng_journal *journal);
/* No request in flight and no background work: see eng_disk_settle(). NULL is fine. */
void eng_disk_destroy(struct eng_disk *disk);
/* Turns the queue until the disk's background work is done. -ETIMEDOUT. */
int eng_disk_settle(struct eng_disk *disk, uint64_t timeout_ns);

/* --- requests (worker) --- */
struct eng_req {
	struct eng_disk *disk;
	uint8_t op, flags;
	uint32_t iovcnt;
	const struct iovec *iov;
	uint64_t offset, length;
	int result;
	void (*done)(struct eng_req *req);

	/* private to the engine from here on */
	struct eng_queue *origin; /* the queue it came through */
	uint8_t epoch;
	struct eng_req *next;
	struct eng_msg msg;
	uint64_t user_data;
	uint64_t start_ns; /* 0: not watched */
	struct eng_req *watch_older, *watch_newer;
	struct eng_layer *layer; /* T3: the answer it got, with its place in flight */
	uint32_t ordinal;
	struct eng_rangelock lock;
	bool locked;
	unsigned parts;     /* operations under way, plus one while issuing */
	uint64_t lo, hi;    /* bytes really written: edges filled up (T4, T18) */
	void *bounce;       /* edge or alignment buffer */
	struct iovec *wiov; /* what is written, from lo to hi */
	uint32_t wiovcnt;
	struct fmt_run *runs; /* new mappings, to publish when the data is there */
	uint32_t nruns, runs_cap;
	uint32_t journal_promised;
	struct eng_waiter waiter; /* flush */
	uint32_t flush_ordinal, flush_last;
	struct eng_req *parent; /* an edge read's write */
	/* from here on not cleared for a new request */
	struct iovec wiov_inline[4];
	struct fmt_run runs_inline[2];
};

/* Starts a request: everything is checked here; completes through req->done, maybe before returning. */
void eng_disk_start(struct eng_req *req);

/* --- shared between disk.c, read.c, write.c, flush.c, space.c (worker) --- */
/* Moves head past every fired cut. */
void eng_disk_promote(struct eng_disk *disk);
/* Counts a write in flight on the layer it goes to and says which (P1). */
struct eng_layer *eng_disk_enter(struct eng_disk *disk, uint32_t *ordinal);
void eng_req_begin(struct eng_req *req); /* counts it in flight */
void eng_req_end(struct eng_req *req, int result);
void eng_read_start(struct eng_req *req);
void eng_write_start(struct eng_req *req);
void eng_zero_start(struct eng_req *req);
void eng_flush_start(struct eng_req *req);
void eng_extents_start(struct eng_req *req);
/* Makes everything of the chain that is not durable durable, oldest layer first; then wakes. */
void eng_flush_chain(struct eng_disk *disk, struct eng_req *req);
/* A background round on every layer with unlogged mappings, to empty the journal. */
void eng_flush_background(struct eng_disk *disk);
void eng_flush_continue(struct eng_disk *disk, struct eng_layer *layer,
			int result);                 /* segment there */
bool eng_flush_quiet(const struct eng_layer *layer); /* no record on its way: pending says it all */
/* Passes over hardened layers: no flush needs them, and their journal tags are free. */
void eng_flush_advance(struct eng_disk *disk);
/* The coordinator hardened a layer: frees the journal's room, and tries what waits for it again. */
void eng_flush_hardened(struct eng_disk *disk);
/* Space: true when @slots slots and log room for @runs mappings are there; else more is on its way,
 * or *@error says why not. */
bool eng_space_have(struct eng_disk *disk, struct eng_layer *layer, uint32_t slots, uint32_t runs,
		    int *error);
uint32_t eng_space_take(struct eng_layer *layer, uint32_t slots); /* first slot */
void eng_space_segment(struct eng_disk *disk, struct eng_layer *layer);
void eng_space_ahead(struct eng_disk *disk, struct eng_layer *layer);
/* How many mappings a guest's flush found to log: tells whether writing space ahead pays. */
void eng_space_note_flush(struct eng_disk *disk, uint32_t mappings);
/* Retries the stalled writes; with @error they fail. */
void eng_write_unstall(struct eng_disk *disk, int error);
/* Layers sealed since answer through their indexes from here on (D-3). */
void eng_build_note_sealed(struct eng_disk *disk);
/* Forgets regions of sealed layers, @some at most, while the map is above its bound. */
void eng_build_trim(struct eng_disk *disk, unsigned some);
/* Whether the map knows all layers of @region. */
bool eng_build_ready(const struct eng_disk *disk, uint64_t region);
/* How many regions from @region on (@max at most) are as ready as it is. */
uint64_t eng_build_count_ready(const struct eng_disk *disk, uint64_t region, uint64_t max);
/* Builds the region of @block when needed: true when it is built, else @req is resumed later. */
bool eng_build_region(struct eng_disk *disk, uint64_t region, struct eng_req *req,
		      void (*resume)(struct eng_req *req, int result));

/*
 * What the base alone says of @offset (below its end @end) and for how many bytes; of a qcow2 chain also
 * which of its files (*@depth). May wait for the file: not on a worker that has guests.
 */
int eng_base_extent(const struct eng_layer *base, uint64_t end, uint64_t offset,
		    struct fmt_error *err, uint64_t *len, enum eng_extent_state *state,
		    uint32_t *depth);
/* Where the base's bytes end: beyond it zeros. 0: there is no base. */
uint64_t eng_base_end(const struct eng_layer *base);

/* --- for the control side --- */
/* Any thread: a layer of this disk got hardened by the coordinator; waiting flushes look again. */
void eng_disk_post_hardened(struct eng_disk *disk);
/* Any thread: the worker hardens the frozen layers that can be, and logs the head's mappings. */
void eng_disk_post_harden(struct eng_disk *disk);
/*
 * The worker makes the disk @size bytes long at its next turn, when nothing of an earlier call is left
 * (grow.posted). @table: eng_map_table() of its blocks, taken. @base_bytes: of a raw head; else 0. By
 * who has the disk's shape lock.
 */
void eng_disk_post_grow(struct eng_disk *disk, uint64_t size, uint64_t base_bytes, void *table);
void eng_disk_rolled(struct eng_disk *disk, int result); /* worker: the roll has ended */

#endif
