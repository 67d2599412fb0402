/* SPDX-License-Identifier: MIT */
/*
 * fold_impl.h - shared by the files that fold: fold.c (the thread, and what others ask of it) and
 * fold_run.c (one fold). Nobody else includes it.
 */
#ifndef ENGINE_FOLD_IMPL_H
#define ENGINE_FOLD_IMPL_H

#include "engine/fold.h"
#include "engine/fold_build.h"
#include "engine/swap.h"

/* A disk that should be looked at. */
struct want {
	struct want *next;
	struct fmt_uuid disk;
	uint64_t since_ns, not_before_ns;
};

struct eng_folder {
	struct eng_store *store;
	struct eng_thread *thread;
	_Atomic uint64_t rate;

	pthread_mutex_t lock; /* guards what follows */
	pthread_cond_t changed;
	struct want *wants;
	bool stop, paused;
	_Atomic bool cancel;          /* the fold under way */
	struct fmt_uuid leaving;      /* not to be begun: its files are about to go */
	struct eng_fold_build *build; /* under way */
	struct eng_folder_stats stats;
	unsigned swaps; /* posted, their files not removed yet */
};

/* One fold, from its plan to the inputs' removal. */
struct fold {
	struct eng_folder *folder;
	struct cat_layer *rows; /* of its inputs */
	size_t count;
	struct eng_layer **inputs;
	struct eng_layer *result;
	struct fmt_uuid *ids;
	struct eng_fold_build build;
	struct eng_swap swap;
	struct eng_task removal;
};

/*
 * Folds what there is to fold of the disk. 0: folded, or nothing to fold; -EAGAIN and others: to be tried
 * again. *@later: there may be more, or something is worth a fold once the disk is in peace (@patient).
 */
int eng_fold_disk(struct eng_folder *folder, const struct fmt_uuid *disk, bool patient,
		  bool *later);

#endif
