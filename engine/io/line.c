/* SPDX-License-Identifier: MIT */
/*
 * line.c - the assembly line. Pieces have numbers in the order of feeding; piece n uses slot n mod
 * slots. One mutex guards everything but the owner's pieces, which belong to the owner until fed, then
 * to the thread that does a step of them, until the slot is free again. No thread waits for a piece
 * that another one has: a piece whose turn has not come is left where it is, and whoever is free when
 * it comes goes on with it; so a thread that the processor was taken from holds up nobody's work.
 *
 * LN1: commits are one at a time, in the order of feeding.
 * LN2: once the line has a result, no step begins any more.
 */
#include "engine/io/line.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

/* FREE -> FED (the owner) -> WORKED -> FREE (threads); the steps are done in between. */
enum slot_state {
	SLOT_FREE,
	SLOT_FED,
	SLOT_WORKED, /* to be committed, or being so, or to be finished */
};

struct eng_line {
	struct eng_io *io;
	struct eng_line_steps steps;
	void *arg;
	unsigned slots, count;
	pthread_mutex_t lock;           /* guards what follows */
	pthread_cond_t work, freed;     /* the threads'; the owner's */
	uint64_t fed, taken, committed; /* pieces */
	bool committing;                /* a thread has piece number committed */
	enum slot_state *states;        /* by slot */
	bool ending;
	int result;
	struct fmt_error err;
	struct eng_thread *threads[ENG_LINE_THREADS_MAX];
};

unsigned eng_line_threads(struct eng_io *io)
{
	cpu_set_t set;
	unsigned n = 1;

	(void)io;
	CPU_ZERO(&set);
	if (sched_getaffinity(0, sizeof(set), &set) == 0)
		n = (unsigned)CPU_COUNT(&set);
	n = 2 * (n ? n : 1);
	return n < ENG_LINE_THREADS_MAX ? n : ENG_LINE_THREADS_MAX;
}

static void end_with_locked(struct eng_line *line, int r, const struct fmt_error *err)
{
	if (!r || line->result)
		return;
	line->result = r;
	line->err = *err;
	pthread_cond_broadcast(&line->freed);
}

/* One step of the piece in @slot without the lock; LN2. */
static void step_locked(struct eng_line *line, unsigned slot,
			int (*step)(void *arg, unsigned slot, struct fmt_error *err))
{
	struct fmt_error err = {""};
	int r;

	if (!step || line->result)
		return;
	pthread_mutex_unlock(&line->lock);
	r = step(line->arg, slot, &err);
	pthread_mutex_lock(&line->lock);
	end_with_locked(line, r, &err);
}

static void work_locked(struct eng_line *line)
{
	unsigned slot = (unsigned)(line->taken++ % line->slots);

	step_locked(line, slot, line->steps.work);
	line->states[slot] = SLOT_WORKED;
}

static bool may_commit_locked(const struct eng_line *line)
{
	return !line->committing && line->states[line->committed % line->slots] == SLOT_WORKED &&
	       line->committed < line->taken;
}

/* LN1. Another thread may commit the next piece while this one is finished. */
static void commit_locked(struct eng_line *line)
{
	unsigned slot = (unsigned)(line->committed % line->slots);

	line->committing = true;
	step_locked(line, slot, line->steps.commit);
	line->committing = false;
	line->committed++;
	if (may_commit_locked(line))
		pthread_cond_signal(&line->work);
	step_locked(line, slot, line->steps.finish);
	line->states[slot] = SLOT_FREE;
	pthread_cond_signal(&line->freed);
}

static void line_thread(void *arg)
{
	struct eng_line *line = arg;

	pthread_mutex_lock(&line->lock);
	for (;;) {
		if (may_commit_locked(line))
			commit_locked(line);
		else if (line->taken < line->fed)
			work_locked(line);
		else if (line->ending)
			break;
		else
			pthread_cond_wait(&line->work, &line->lock);
	}
	pthread_mutex_unlock(&line->lock);
}

static void line_free(struct eng_line *line)
{
	pthread_mutex_lock(&line->lock);
	line->ending = true;
	pthread_cond_broadcast(&line->work);
	pthread_mutex_unlock(&line->lock);
	for (unsigned i = 0; i < line->count; i++)
		eng_io_join(line->io, line->threads[i]);
	pthread_cond_destroy(&line->work);
	pthread_cond_destroy(&line->freed);
	pthread_mutex_destroy(&line->lock);
	free(line->states);
	free(line);
}

int eng_line_create(struct eng_io *io, unsigned threads, unsigned slots,
		    const struct eng_line_steps *steps, void *arg, struct eng_line **ret)
{
	struct eng_line *line;
	int r = 0;

	if (!threads || threads > ENG_LINE_THREADS_MAX || !slots)
		return -EINVAL;
	line = calloc(1, sizeof(*line));
	if (!line)
		return -ENOMEM;
	line->states = calloc(slots, sizeof(*line->states));
	if (!line->states) {
		free(line);
		return -ENOMEM;
	}
	line->io = io;
	line->steps = *steps;
	line->arg = arg;
	line->slots = slots;
	pthread_mutex_init(&line->lock, NULL);
	pthread_cond_init(&line->work, NULL);
	pthread_cond_init(&line->freed, NULL);
	for (; r == 0 && line->count < threads; line->count += r == 0)
		r = eng_io_spawn(io, "vmimg-line", line_thread, line, &line->threads[line->count]);
	if (r == 0)
		*ret = line;
	else
		line_free(line);
	return r;
}

int eng_line_take(struct eng_line *line, unsigned *slot)
{
	unsigned next = (unsigned)(line->fed % line->slots);
	int r;

	pthread_mutex_lock(&line->lock);
	while (!line->result && line->states[next] != SLOT_FREE)
		pthread_cond_wait(&line->freed, &line->lock);
	r = line->result;
	pthread_mutex_unlock(&line->lock);
	if (r == 0)
		*slot = next;
	return r;
}

void eng_line_feed(struct eng_line *line)
{
	pthread_mutex_lock(&line->lock);
	line->states[line->fed % line->slots] = SLOT_FED;
	line->fed++;
	pthread_cond_signal(&line->work);
	pthread_mutex_unlock(&line->lock);
}

int eng_line_end(struct eng_line *line, struct fmt_error *err)
{
	int r;

	pthread_mutex_lock(&line->lock);
	for (unsigned i = 0; i < line->slots; i++) {
		while (line->states[i] != SLOT_FREE)
			pthread_cond_wait(&line->freed, &line->lock);
	}
	r = line->result;
	if (r && err)
		*err = line->err;
	pthread_mutex_unlock(&line->lock);
	line_free(line);
	return r;
}
