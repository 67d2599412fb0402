/* SPDX-License-Identifier: MIT */
/*
 * engine_pool.c - the background threads: order, classes, drain and end. Tests wait on gates, not on
 * time; a test that hangs has failed.
 */
#include <criterion/criterion.h>

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "engine/io/pool.h"

#define MANY 200

static struct eng_io *io;
static struct eng_pool *pool;
static _Atomic bool open_gate;
static _Atomic unsigned started, ended, now, most;
static unsigned order[MANY];

struct job {
	struct eng_task task;
	unsigned number;
};

static void reset(void)
{
	cr_assert_eq(eng_io_posix_create(&io), 0);
	atomic_store(&open_gate, false);
	atomic_store(&started, 0);
	atomic_store(&ended, 0);
	atomic_store(&now, 0);
	atomic_store(&most, 0);
}

static void done(void)
{
	eng_io_destroy(io);
}

TestSuite(engine_pool, .init = reset, .fini = done, .timeout = 60);

static void wait_for(_Atomic unsigned *what, unsigned value)
{
	while (atomic_load(what) < value)
		sched_yield();
}

/* Waits at the gate; notes how many were inside at once. */
static void run_gated(struct eng_task *task)
{
	unsigned inside = atomic_fetch_add(&now, 1) + 1, seen = atomic_load(&most);

	(void)task;
	while (seen < inside && !atomic_compare_exchange_weak(&most, &seen, inside))
		;
	atomic_fetch_add(&started, 1);
	while (!atomic_load(&open_gate))
		sched_yield();
	atomic_fetch_sub(&now, 1);
	atomic_fetch_add(&ended, 1);
}

static void run_noting(struct eng_task *task)
{
	struct job *job = (struct job *)task;

	order[atomic_fetch_add(&ended, 1)] = job->number;
}

static void run_yielding(struct eng_task *task)
{
	unsigned inside = atomic_fetch_add(&now, 1) + 1, seen = atomic_load(&most);

	(void)task;
	while (seen < inside && !atomic_compare_exchange_weak(&most, &seen, inside))
		;
	for (int i = 0; i < 50; i++)
		sched_yield();
	atomic_fetch_sub(&now, 1);
	atomic_fetch_add(&ended, 1);
}

Test(engine_pool, no_threads_are_refused)
{
	cr_assert_eq(eng_pool_create(io, 0, &pool), -EINVAL);
	eng_pool_destroy(NULL);
}

Test(engine_pool, a_class_is_first_in_first_out)
{
	struct job jobs[MANY];

	cr_assert_eq(eng_pool_create(io, 1, &pool), 0);
	for (unsigned i = 0; i < MANY; i++) {
		jobs[i] = (struct job){.task.run = run_noting, .number = i};
		eng_pool_submit(pool, ENG_POOL_NORMAL, &jobs[i].task);
	}
	eng_pool_drain(pool);
	cr_assert_eq(atomic_load(&ended), MANY);
	for (unsigned i = 0; i < MANY; i++)
		cr_assert_eq(order[i], i);
	eng_pool_destroy(pool);
}

Test(engine_pool, urgent_goes_before_normal_before_idle)
{
	struct eng_task gate = {.run = run_gated};
	struct job idle = {.task.run = run_noting, .number = 2};
	struct job normal = {.task.run = run_noting, .number = 1};
	struct job urgent = {.task.run = run_noting, .number = 0};

	cr_assert_eq(eng_pool_create(io, 1, &pool), 0);
	eng_pool_submit(pool, ENG_POOL_NORMAL, &gate);
	wait_for(&started, 1);
	eng_pool_submit(pool, ENG_POOL_IDLE, &idle.task);
	eng_pool_submit(pool, ENG_POOL_NORMAL, &normal.task);
	eng_pool_submit(pool, ENG_POOL_URGENT, &urgent.task);
	/* The gate counts itself last: the others' places start at 1. */
	atomic_store(&open_gate, true);
	eng_pool_drain(pool);
	cr_assert_eq(atomic_load(&ended), 4);
	for (unsigned i = 0; i < 3; i++)
		cr_expect_eq(order[i + 1], i);
	eng_pool_destroy(pool);
}

/* PL1 */
Test(engine_pool, idle_tasks_run_one_at_a_time)
{
	struct eng_task tasks[40];

	cr_assert_eq(eng_pool_create(io, 4, &pool), 0);
	for (unsigned i = 0; i < 40; i++) {
		tasks[i] = (struct eng_task){.run = run_yielding};
		eng_pool_submit(pool, ENG_POOL_IDLE, &tasks[i]);
	}
	eng_pool_drain(pool);
	cr_expect_eq(atomic_load(&ended), 40);
	cr_expect_eq(atomic_load(&most), 1, "%u ran at once", atomic_load(&most));
	eng_pool_destroy(pool);
}

/* PL2 */
Test(engine_pool, a_thread_is_always_free_for_urgent_work)
{
	struct eng_task slow[8];
	struct job urgent = {.task.run = run_noting};

	for (unsigned threads = 2; threads <= 4; threads++) {
		eng_io_destroy(io);
		reset();
		cr_assert_eq(eng_pool_create(io, threads, &pool), 0);
		for (unsigned i = 0; i < 8; i++) {
			slow[i] = (struct eng_task){.run = run_gated};
			eng_pool_submit(pool, i % 4 ? ENG_POOL_NORMAL : ENG_POOL_IDLE, &slow[i]);
		}
		wait_for(&started, threads - 1);
		eng_pool_submit(pool, ENG_POOL_URGENT, &urgent.task);
		wait_for(&ended, 1); /* while the gate is shut */
		cr_expect_eq(atomic_load(&started), threads - 1);
		atomic_store(&open_gate, true);
		eng_pool_drain(pool);
		cr_expect_eq(atomic_load(&ended), 9);
		cr_expect_eq(atomic_load(&most), threads - 1);
		eng_pool_destroy(pool);
	}
}

Test(engine_pool, urgent_work_uses_every_thread)
{
	struct eng_task slow[3];

	cr_assert_eq(eng_pool_create(io, 3, &pool), 0);
	for (unsigned i = 0; i < 3; i++) {
		slow[i] = (struct eng_task){.run = run_gated};
		eng_pool_submit(pool, ENG_POOL_URGENT, &slow[i]);
	}
	wait_for(&started, 3);
	atomic_store(&open_gate, true);
	eng_pool_destroy(pool);
	cr_assert_eq(atomic_load(&ended), 3);
}

static void run_once_more(struct eng_task *task)
{
	struct job *job = (struct job *)task;

	atomic_fetch_add(&ended, 1);
	if (--job->number)
		eng_pool_submit(pool, job->number % 3, task);
}

Test(engine_pool, the_end_finishes_what_is_queued_and_what_that_submits)
{
	struct job jobs[4];

	cr_assert_eq(eng_pool_create(io, 3, &pool), 0);
	for (unsigned i = 0; i < 4; i++) {
		jobs[i] = (struct job){.task.run = run_once_more, .number = 50};
		eng_pool_submit(pool, ENG_POOL_IDLE, &jobs[i].task);
	}
	eng_pool_destroy(pool);
	cr_assert_eq(atomic_load(&ended), 200);
}

static void run_until_stopping(struct eng_task *task)
{
	(void)task;
	if (!eng_pool_stopping(pool))
		atomic_fetch_add(&started, 1);
	while (!eng_pool_stopping(pool))
		sched_yield();
	atomic_fetch_add(&ended, 1);
}

Test(engine_pool, a_running_task_sees_the_end_coming)
{
	struct eng_task task = {.run = run_until_stopping};

	cr_assert_eq(eng_pool_create(io, 2, &pool), 0);
	eng_pool_submit(pool, ENG_POOL_IDLE, &task);
	wait_for(&started, 1);
	eng_pool_destroy(pool);
	cr_assert_eq(atomic_load(&ended), 1);
}

static void run_freeing(struct eng_task *task)
{
	free(task);
	atomic_fetch_add(&ended, 1);
}

/* PL3 */
Test(engine_pool, a_task_may_free_itself)
{
	cr_assert_eq(eng_pool_create(io, 2, &pool), 0);
	for (unsigned i = 0; i < MANY; i++) {
		struct eng_task *task = calloc(1, sizeof(*task));

		task->run = run_freeing;
		eng_pool_submit(pool, i % 3, task);
	}
	eng_pool_drain(pool);
	cr_assert_eq(atomic_load(&ended), MANY);
	eng_pool_destroy(pool);
}

/* A machine that gives out only so many threads. */
static unsigned threads_left;
static const struct eng_io_ops *real;

static int few_spawn(struct eng_io *self, const char *name, void (*fn)(void *), void *arg,
		     struct eng_thread **ret)
{
	return threads_left-- ? real->spawn(self, name, fn, arg, ret) : -EAGAIN;
}

Test(engine_pool, a_pool_that_cannot_be_made_leaves_no_thread)
{
	struct eng_io_ops few = *io->ops;

	real = io->ops;
	few.spawn = few_spawn;
	io->ops = &few;
	threads_left = 2;
	pool = NULL;
	cr_expect_eq(eng_pool_create(io, 4, &pool), -EAGAIN);
	cr_expect_null(pool);
	io->ops = real;
}
