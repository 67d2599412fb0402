/* SPDX-License-Identifier: MIT */
/*
 * fold.h - the store's folds: one background thread that joins adjacent sealed layers with no snapshot
 * between them (spec/lifecycle.md FO-*). Any thread may call.
 */
#ifndef ENGINE_FOLD_H
#define ENGINE_FOLD_H

#include "engine/io/progress.h"
#include "engine/store/store.h"

struct eng_folder;

/* Starts the thread; it looks at every disk once. */
int eng_folder_create(struct eng_store *store, struct eng_folder **ret);
/* Stops the fold under way, which leaves nothing, and the thread. The pool's tasks may still ask. */
void eng_folder_stop(struct eng_folder *folder);
/*
 * Once it has stopped, and nobody reads any more: what nothing refers to goes (GB-2), where a reader was in
 * the way before. What fails is left to the next open.
 */
void eng_folder_sweep(struct eng_folder *folder);
void eng_folder_destroy(struct eng_folder *folder); /* NULL is fine */

/* Something may have become foldable: a snapshot went, a layer was sealed, a reader left. */
void eng_folder_want(struct eng_folder *folder, const struct fmt_uuid *disk);
/* Somebody waits for it: also what failed a moment ago, and what was cancelled (FO-17). */
void eng_folder_try(struct eng_folder *folder, const struct fmt_uuid *disk);
/* Ends a fold of that disk before it commits, and waits for that: its files are about to go. */
void eng_folder_leave(struct eng_folder *folder, const struct fmt_uuid *disk);
/* Ends the fold under way and begins none, until it is called with false. */
void eng_folder_pause(struct eng_folder *folder, bool pause);
/* Bytes a second that folds read; 0, UINT64_MAX: as fast as it goes. Also for the one under way. */
void eng_folder_set_rate(struct eng_folder *folder, uint64_t rate);
uint64_t eng_folder_rate(struct eng_folder *folder);
/* Slots in a row from so many bytes on are punched (PU-1); 0: the default; UINT64_MAX: none are. */
void eng_folder_set_punch_run(struct eng_folder *folder, uint64_t bytes);

/* Who is told of folds: on the folds' thread, which holds nothing. */
struct eng_fold_watch {
	void *arg;
	/*
	 * One is about to join @layers layers of that disk: what it is to be told by, stopped by, and
	 * recorded with; NULL: it is not watched.
	 */
	struct eng_progress *(*begin)(void *arg, const struct fmt_uuid *disk, uint32_t layers);
	/* It has ended: 0, or why not; -ECANCELED also when the store needed it to. */
	void (*end)(void *arg, struct eng_progress *progress, int r, const struct fmt_error *err);
};
/* From here on. A fold that is under way is begun anew, so that it is told too. */
void eng_folder_watch(struct eng_folder *folder, const struct eng_fold_watch *watch);

struct eng_folder_stats {
	bool active;
	struct fmt_uuid disk;      /* of the fold under way */
	uint32_t layers;           /* its inputs */
	uint64_t done, total;      /* bytes */
	uint64_t folds, bytes;     /* ended well since the start; bytes written */
	uint64_t punches, punched; /* that made holes since the start; bytes given back */
};
void eng_folder_stats(struct eng_folder *folder, struct eng_folder_stats *ret);

/* RV-11: what a fold into that base left, whose commit did not happen (fold_base.c). */
int eng_fold_base_recover(struct eng_store *store, const struct cat_layer *row,
			  struct fmt_error *err);
/* --- waiting for the end (settle.c) --- */
/*
 * Waits until nothing is being sealed and no fold of those disks (@count 0: of all) pays any more; with
 * @whole until nothing is left to fold. @p: bytes of what is joined, an estimate that is met in the end;
 * cancels it. -ECANCELED, -ETIMEDOUT at @deadline_ns (monotonic), or what keeps a fold from its end. The
 * folds go on whatever it returns.
 */
int eng_store_settle(struct eng_store *store, const struct fmt_uuid *disks, size_t count,
		     bool whole, uint64_t deadline_ns, struct eng_progress *p,
		     struct fmt_error *err);

struct eng_folder_rest {
	bool pending;  /* it is wanted, or under way, or its inputs are not removed yet */
	bool removing; /* inputs of some fold are still to be removed */
	bool active;   /* under way now, with */
	double done;   /* that share of it */
	int failed;    /* negative errno that tries again will hardly change, with */
	struct fmt_error why;
};
/* What is still to be done of that disk; with @whole it counts as left in peace from now on. */
void eng_folder_rest(struct eng_folder *folder, const struct fmt_uuid *disk, bool whole,
		     struct eng_folder_rest *ret);

/* --- which layers (fold_plan.c; pure) --- */
#define ENG_FOLD_MAX 256u /* layers joined at once */
/*
 * Of @n layers in a row that may all be joined, lowest first, with their sizes: which to fold now,
 * *@first and *@count >= 2. @patient: only where rewriting the largest pays. False: none.
 */
bool eng_fold_pick(const uint64_t *bytes, size_t n, bool patient, size_t *first, size_t *count);
/* The same of layers that may go into their base, which takes all of them or none. */
bool eng_fold_pick_base(const uint64_t *bytes, size_t n, bool patient);

#endif
