/* SPDX-License-Identifier: MIT */
/*
 * progress.c - progress, limit and cancelling of long work. Nothing here takes a lock.
 */
#include "engine/io/progress.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define SLEEP_NS  100000000ull /* a cancel or another limit is seen this soon */
#define SAVED_NS  10000000ull  /* what is not used is saved up for this long: no burst is longer */
#define PIECE     (64u << 10)  /* bytes of an operation under a limit, at least */
#define TICK      1024u        /* operations a second under a limit, at most */
#define WINDOW_NS 4000000000ull
#define LOOK_NS   500000000ull

enum { OPEN, CANCELLED, DECIDED };

void eng_progress_start(struct eng_progress *p, uint64_t total)
{
	if (p)
		atomic_store(&p->total, total);
}

void eng_progress_add(struct eng_progress *p, uint64_t bytes)
{
	if (p)
		atomic_fetch_add(&p->done, bytes);
}

bool eng_progress_stop(struct eng_progress *p)
{
	if (p && p->watch && p->watch(p->watch_arg, atomic_load(&p->done), atomic_load(&p->total)))
		atomic_store(&p->cancel, true);
	return p && atomic_load(&p->cancel);
}

static int check_stop(struct eng_progress *p, const char *what, struct fmt_error *err)
{
	if (!eng_progress_stop(p))
		return 0;
	return fmt_fail(err, -ECANCELED, "%s: cancelled after %" PRIu64 " of %" PRIu64 " bytes",
			what, atomic_load(&p->done), atomic_load(&p->total));
}

/* Takes the time that @bytes are worth from the limit's account, which saves up SAVED_NS. */
static uint64_t spend(struct eng_progress *p, uint64_t bytes, uint64_t rate, uint64_t now_ns)
{
	uint64_t due = atomic_load(&p->due_ns), end;
	uint64_t cost = (uint64_t)((double)bytes * 1e9 / (double)rate);

	do {
		uint64_t from = due ? due : now_ns;

		if (from + SAVED_NS < now_ns)
			from = now_ns - SAVED_NS;
		end = from + cost;
	} while (!atomic_compare_exchange_weak(&p->due_ns, &due, end));
	return end;
}

uint32_t eng_progress_piece(uint64_t rate, uint32_t most)
{
	uint64_t bytes = rate / TICK > PIECE ? rate / TICK : PIECE;

	return rate && bytes < most ? (uint32_t)bytes : most;
}

int eng_progress_wait(struct eng_progress *p, struct eng_io *io, uint64_t bytes, const char *what,
		      struct fmt_error *err)
{
	uint64_t rate = p ? atomic_load(&p->rate) : 0, end = 0, now;
	int r = p ? check_stop(p, what, err) : 0;

	if (r == 0 && rate)
		end = spend(p, bytes, rate, eng_io_now_ns(io));
	while (r == 0 && end && (now = eng_io_now_ns(io)) < end) {
		eng_io_sleep_ns(io, end - now < SLEEP_NS ? end - now : SLEEP_NS);
		r = check_stop(p, what, err);
		if (atomic_load(&p->rate) != rate) {
			/* What is left to wait was reckoned by the old limit: it is forgiven. */
			atomic_store(&p->due_ns, 0);
			break;
		}
	}
	return r;
}

int eng_progress_pace(struct eng_progress *p, struct eng_io *io, uint64_t bytes, const char *what,
		      struct fmt_error *err)
{
	eng_progress_add(p, bytes);
	return eng_progress_wait(p, io, bytes, what, err);
}

int eng_progress_pass(struct eng_progress *p, struct eng_io *io, uint64_t bytes, const char *what,
		      struct fmt_error *err)
{
	eng_progress_add(p, bytes);
	return eng_progress_wait(p, io, 0, what, err);
}

bool eng_progress_cancel(struct eng_progress *p)
{
	uint8_t fate = OPEN;

	if (!atomic_compare_exchange_strong(&p->fate, &fate, CANCELLED) && fate == DECIDED)
		return false;
	atomic_store(&p->cancel, true);
	return true;
}

bool eng_progress_decide(struct eng_progress *p)
{
	uint8_t fate = OPEN;

	if (!p)
		return true;
	if (atomic_load(&p->cancel))
		return false;
	return atomic_compare_exchange_strong(&p->fate, &fate, DECIDED) || fate == DECIDED;
}

bool eng_progress_open(const struct eng_progress *p)
{
	return atomic_load(&p->fate) == OPEN && !atomic_load(&p->cancel);
}

/* --- rate --- */

uint64_t eng_meter_look(struct eng_meter *m, uint64_t start_ns, uint64_t now_ns, uint64_t done)
{
	uint64_t since = now_ns - (m->at_ns ? m->at_ns : start_ns);

	if (since >= LOOK_NS) {
		double now = (double)(done - m->done) * 1e9 / (double)since;
		double weight = (double)since / WINDOW_NS;

		m->rate += (now - m->rate) * (m->at_ns && weight < 1 ? weight : 1);
		m->at_ns = now_ns;
		m->done = done;
	}
	return (uint64_t)m->rate;
}
