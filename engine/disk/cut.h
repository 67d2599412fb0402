/* SPDX-License-Identifier: MIT */
/*
 * cut.h - the one word that all disks of a cut share (P1, T1; spec/snapshot.md CU-*).
 *
 * PREPARED -> FIRED is the cut, PREPARED -> ABANDONED its end without effect; by compare-and-swap, so
 * one of them happens, once. A worker looks at the word when it dequeues a write, after it has counted
 * the write in flight on its layer: either it sees FIRED and moves on, or the coordinator, which looks
 * at the count after firing, sees the write and waits for it.
 */
#ifndef ENGINE_CUT_H
#define ENGINE_CUT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "engine/io/io.h"
#include "engine/layer/layer.h"

enum eng_cut_word {
	ENG_CUT_PREPARED = 0,
	ENG_CUT_FIRED = 1,
	ENG_CUT_ABANDONED = 2,
};

struct eng_cut {
	_Atomic int word; /* enum eng_cut_word */
	_Atomic unsigned refs;
	bool is_roll;           /* a disk's own; immutable once a layer hangs on it */
	pthread_mutex_t lock;   /* for the condition only */
	pthread_cond_t drained; /* some layer of the cut has no write in flight any more */
};

int eng_cut_create(struct eng_cut **ret);
struct eng_cut *eng_cut_get(struct eng_cut *cut);
void eng_cut_put(struct eng_cut *cut); /* NULL is fine */

/* Both return false when the other one came first. */
bool eng_cut_fire(struct eng_cut *cut);
bool eng_cut_abandon(struct eng_cut *cut);

/* Hangs @pending (takes a reference) under @tail. Coordinator. -EBUSY: it has one; -ENOMEM. */
int eng_cut_attach(struct eng_cut *cut, struct eng_layer *tail, struct eng_layer *pending);
/* After abandon: unhangs it again. The objects live until @tail goes: a worker may be looking. */
void eng_cut_detach(struct eng_layer *tail);

/* The layer that takes @layer's next write: @layer itself, or what fired cuts put in its place. */
struct eng_layer *eng_layer_newest(struct eng_layer *layer);
/* The fired cut that froze @layer, or NULL. */
struct eng_cut *eng_layer_fired(struct eng_layer *layer);

/* Counts one in flight on @layer and says whether it may stay: false when @layer is frozen. */
bool eng_layer_enter(struct eng_layer *layer);
void eng_layer_leave(struct eng_layer *layer);
/* Waits until @layer, frozen by @cut, has nothing in flight: 0 or -ETIMEDOUT at @deadline_ns. */
int eng_cut_drain(struct eng_cut *cut, struct eng_layer *layer, uint64_t deadline_ns);

#endif
