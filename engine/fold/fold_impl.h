/* SPDX-License-Identifier: MIT */
/*
 * fold_impl.h - shared by the files that fold: fold.c (the thread, and what others ask of it),
 * fold_run.c (one fold), fold_base.c (one into the base) and punch_run.c (holes instead of a fold). Nobody
 * else includes it.
 */
#ifndef ENGINE_FOLD_IMPL_H
#define ENGINE_FOLD_IMPL_H

#include "engine/fold/fold.h"
#include "engine/fold/fold_build.h"
#include "engine/fold/fold_copy.h"
#include "engine/fold/fold_refpoints.h"
#include "engine/store/users.h"

/* A disk that should be looked at. */
struct want {
	struct want *next;
	struct fmt_uuid disk;
	uint64_t since_ns, not_before_ns;
	bool looked;       /* nothing pays at present: it waits for peace */
	unsigned failures; /* in a row */
	int last_r;
	struct fmt_error last; /* of them */
};

/* A layer and the one on top of it, and what there was to punch at the last look. */
#define ENG_PUNCH_SEEN 64u
struct eng_punch_seen {
	struct fmt_uuid lower, upper;
	uint64_t bytes;
};

struct eng_folder {
	struct eng_store *store;
	struct eng_thread *thread;
	_Atomic uint64_t rate;
	_Atomic uint64_t punch_run; /* bytes; 0: the default */
	/* the thread's (punch_run.c) */
	struct eng_punch_seen seen[ENG_PUNCH_SEEN];
	bool cannot_punch; /* the file system has no holes */

	pthread_mutex_t lock; /* guards what follows */
	pthread_cond_t changed;
	struct want *wants;
	bool stop, paused;
	_Atomic bool cancel;           /* the fold under way */
	struct fmt_uuid leaving;       /* not to be begun: its files are about to go */
	struct eng_progress *progress; /* of the fold under way, or NULL */
	struct eng_folder_stats stats;
	struct eng_fold_watch watch; /* .begin NULL: nobody */
	unsigned swaps;              /* posted, their files not removed yet */
};

/* One fold, from its plan to the inputs' removal. */
struct fold {
	struct eng_folder *folder;
	struct cat_layer *rows; /* of its inputs */
	size_t count;
	struct eng_layer **inputs;
	struct eng_layer *result;
	struct fmt_uuid *ids;               /* of the layers whose ordinals the result takes */
	struct eng_progress own, *progress; /* &own where nobody watches */
	/* Of its inputs, and of the base where it is into that. */
	struct eng_refpoint_moves *points;
	struct eng_fold_build build;
	bool into_base; /* copied into the layer beneath; @result is that one, opened anew */
	struct cat_layer base;
	struct eng_layer *base_layer; /* its headers' */
	struct eng_fold_copy copy;
	struct eng_task removal;
};

/* Whether @row may be joined with the layer on top of it, *@child (T25). */
int eng_fold_joins(struct eng_store *store, const struct cat_layer *row, bool *ret,
		   struct cat_layer *child);
/* FD-1: adds to @hdr's list the topmost input, and whomever else its children name. */
int eng_fold_note_replaced(struct fold *f, struct fmt_header *hdr, struct fmt_error *err);
bool eng_fold_stopped(void *fold);
/* The commit's transaction: @row in the inputs' place, and the job's end. -ECANCELED. */
int eng_fold_put_rows(struct fold *f, const struct cat_layer *row, struct fmt_error *err);
/* D-3: whether what lies beneath that layer answers through indexes, or no disk could put one there. */
int eng_fold_beneath_is_sealed(struct eng_store *store, const struct cat_layer *row, bool *ret);

/* --- into the base (fold_base.c): FO-10 to FO-14 --- */
/* Whether the @count layers of @run, lowest first, may be copied into the layer beneath: *@base. */
int eng_fold_base_fits(struct eng_store *store, const struct cat_layer *run, size_t count,
		       bool *ret, struct cat_layer *base);
/* Whether none of them is smaller than what it stands on: what a disk had given up would show again. */
int eng_fold_base_grows(struct eng_store *store, const struct cat_layer *base,
			const struct cat_layer *run, size_t count, bool *ret);
/* Does it, durably. Nobody sees it: the inputs mask it, and nobody reads beneath the topmost. */
int eng_fold_base_copy(struct fold *f, struct fmt_error *err);
/* The commit, but for what fold_run.c looks at; the disk is claimed. */
int eng_fold_base_commit(struct fold *f, bool attached, struct fmt_error *err);

/* --- holes (punch_run.c): PU-* --- */
/*
 * Punches what a layer of the disk may lose: 1: one was punched, there may be more; 0: nothing to punch.
 * @all: also what is hardly worth it.
 */
int eng_punch_disk(struct eng_folder *folder, const struct fmt_uuid *disk, bool all,
		   struct fmt_error *err);

/*
 * Folds what there is to fold of the disk, or punches where no fold is due or has room (PU-3). 1: done,
 * there may be more; 0: nothing to do; an error: to be tried again. *@later: something is worth a fold
 * once the disk is in peace (@patient).
 */
int eng_fold_disk(struct eng_folder *folder, const struct fmt_uuid *disk, bool patient,
		  struct fmt_error *err, bool *later);
/* Bytes of the layers that a fold of the disk would join now; 0: there is none. */
int eng_fold_ahead(struct eng_folder *folder, const struct fmt_uuid *disk, bool patient,
		   uint64_t *ret);

#endif
