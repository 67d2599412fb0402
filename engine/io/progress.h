/* SPDX-License-Identifier: MIT */
/*
 * progress.h - what the rest of the world has in its hands of long work: how far it is, its rate limit,
 * its cancelling. NULL is fine wherever a progress is taken: nobody looks.
 *
 * PR-1: total is set before done moves, and done never falls. PR-2: of cancel and decide exactly one is
 * true: what was cancelled never commits. Any thread; several may work on one.
 */
#ifndef ENGINE_PROGRESS_H
#define ENGINE_PROGRESS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "engine/io/io.h"
#include "format/error.h"

struct cat_job;

/* Not 0: cancel. */
typedef int eng_progress_watch(void *arg, uint64_t done, uint64_t total);

struct eng_progress {
	_Atomic uint64_t done, total; /* bytes */
	_Atomic uint64_t rate;        /* bytes a second, 0 unlimited; may change at any time */
	_Atomic bool cancel;          /* what the work looks at */
	_Atomic uint8_t fate;         /* of cancel and decide, the first */
	_Atomic uint64_t due_ns;      /* until when the limit has spent its bytes */
	/* Or told, at each step of the work and ten times a second while it waits, by the one thread
	 * that paces it. */
	eng_progress_watch *watch;
	void *watch_arg;
	/* The job that this is, as it was when it began, or NULL. Borrowed. */
	const struct cat_job *job;
};

/* @total bytes are ahead; what was done already stays. */
void eng_progress_start(struct eng_progress *p, uint64_t total);
void eng_progress_add(struct eng_progress *p, uint64_t bytes);
/* Whether the work is to end with -ECANCELED; who watches is asked. */
bool eng_progress_stop(struct eng_progress *p);
/*
 * How much one operation moves under a limit of @rate (0: none), at most @most bytes: small enough that a
 * guest's request, which waits for what the device took before it, does not feel it (FO-18).
 */
uint32_t eng_progress_piece(uint64_t rate, uint32_t most);
/*
 * Waits as the limit wants it for @bytes that were just read or written; a new limit, none and a cancel
 * are seen within a tenth of a second. -ECANCELED with @err filled: "@what: cancelled after ...".
 */
int eng_progress_wait(struct eng_progress *p, struct eng_io *io, uint64_t bytes, const char *what,
		      struct fmt_error *err);
/* Counts @bytes as done too. */
int eng_progress_pace(struct eng_progress *p, struct eng_io *io, uint64_t bytes, const char *what,
		      struct fmt_error *err);
/* The same of what was not even looked at: a hole. The limit does not count it. */
int eng_progress_pass(struct eng_progress *p, struct eng_io *io, uint64_t bytes, const char *what,
		      struct fmt_error *err);

/* Asks for the end: false when the work is past the point where it could be cancelled. */
bool eng_progress_cancel(struct eng_progress *p);
/* Just before what cannot be taken back: false when the end was asked for; else nobody can any more. */
bool eng_progress_decide(struct eng_progress *p);
/* Whether eng_progress_cancel() would still do. */
bool eng_progress_open(const struct eng_progress *p);

/* For the transaction that is the work's commit point (eng_catalog_put_completed()); NULL: none. */
static inline const struct cat_job *eng_progress_job(const struct eng_progress *p)
{
	return p ? p->job : NULL;
}

/* --- rate and estimate, for whoever shows them --- */
struct eng_meter {
	uint64_t at_ns, done; /* at the last look that counted; 0: none yet */
	double rate;          /* bytes a second, of the last few seconds */
};

/* How fast it goes, bytes a second; 0: cannot tell yet. @start_ns: when @done was nothing. */
uint64_t eng_meter_look(struct eng_meter *m, uint64_t start_ns, uint64_t now_ns, uint64_t done);

#endif
