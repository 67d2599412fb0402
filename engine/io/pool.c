/* SPDX-License-Identifier: MIT */
/*
 * pool.c - the background threads and their three queues. One mutex guards everything; a task runs
 * without it and may submit others.
 *
 * PL1: IDLE tasks run one at a time.
 * PL2: with more than one thread, NORMAL and IDLE together leave one of them free for URGENT.
 * PL3: a task is not touched after its run() was called: it may be gone.
 * Any thread may enter; a task must not drain or destroy its own pool.
 */
#include "engine/io/pool.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#define CLASSES 3

struct queue {
	struct eng_task *first, *last;
};

struct eng_pool {
	struct eng_io *io;
	pthread_mutex_t lock; /* guards what follows */
	pthread_cond_t work;  /* something queued, or stopping */
	pthread_cond_t quiet; /* nothing queued or running */
	struct queue queues[CLASSES];
	unsigned running[CLASSES];
	bool stopping;
	unsigned count;
	struct eng_thread *threads[];
};

static bool may_start_locked(const struct eng_pool *pool, enum eng_pool_class class)
{
	unsigned background = pool->running[ENG_POOL_NORMAL] + pool->running[ENG_POOL_IDLE];

	if (class == ENG_POOL_URGENT)
		return true;
	if (class == ENG_POOL_IDLE && pool->running[ENG_POOL_IDLE])
		return false;                                    /* PL1 */
	return pool->count == 1 || background < pool->count - 1; /* PL2 */
}

static struct eng_task *take_locked(struct eng_pool *pool, enum eng_pool_class *class)
{
	for (unsigned c = 0; c < CLASSES; c++) {
		struct queue *q = &pool->queues[c];
		struct eng_task *task = q->first;

		if (!task || !may_start_locked(pool, c))
			continue;
		q->first = task->next;
		if (!q->first)
			q->last = NULL;
		*class = c;
		return task;
	}
	return NULL;
}

static bool quiet_locked(const struct eng_pool *pool)
{
	for (unsigned c = 0; c < CLASSES; c++) {
		if (pool->running[c] || pool->queues[c].first)
			return false;
	}
	return true;
}

static void pool_thread(void *arg)
{
	struct eng_pool *pool = arg;
	enum eng_pool_class class;
	struct eng_task *task;

	pthread_mutex_lock(&pool->lock);
	for (;;) {
		task = take_locked(pool, &class);
		if (task) {
			pool->running[class]++;
			pthread_mutex_unlock(&pool->lock);
			task->run(task);
			pthread_mutex_lock(&pool->lock);
			pool->running[class]--;
			/* What its class held back this thread takes itself: nobody to wake. */
			if (quiet_locked(pool))
				pthread_cond_broadcast(&pool->quiet);
		} else if (pool->stopping) {
			break; /* what is held back or yet to come, the running threads take */
		} else {
			pthread_cond_wait(&pool->work, &pool->lock);
		}
	}
	pthread_mutex_unlock(&pool->lock);
}

int eng_pool_create(struct eng_io *io, unsigned threads, struct eng_pool **ret)
{
	struct eng_pool *pool;
	int r;

	if (!threads)
		return -EINVAL;
	pool = calloc(1, sizeof(*pool) + threads * sizeof(struct eng_thread *));
	if (!pool)
		return -ENOMEM;
	pool->io = io;
	pool->count = threads;
	pthread_mutex_init(&pool->lock, NULL);
	pthread_cond_init(&pool->work, NULL);
	pthread_cond_init(&pool->quiet, NULL);
	for (unsigned i = 0; i < threads; i++) {
		r = eng_io_spawn(io, "vmimg-pool", pool_thread, pool, &pool->threads[i]);
		if (r < 0) {
			eng_pool_destroy(pool);
			return r;
		}
	}
	*ret = pool;
	return 0;
}

void eng_pool_destroy(struct eng_pool *pool)
{
	if (!pool)
		return;
	pthread_mutex_lock(&pool->lock);
	pool->stopping = true;
	pthread_cond_broadcast(&pool->work);
	pthread_mutex_unlock(&pool->lock);
	for (unsigned i = 0; i < pool->count && pool->threads[i]; i++)
		eng_io_join(pool->io, pool->threads[i]);
	assert(quiet_locked(pool));
	pthread_cond_destroy(&pool->quiet);
	pthread_cond_destroy(&pool->work);
	pthread_mutex_destroy(&pool->lock);
	free(pool);
}

void eng_pool_submit(struct eng_pool *pool, enum eng_pool_class class, struct eng_task *task)
{
	struct queue *q = &pool->queues[class];

	assert(class < CLASSES && task->run);
	task->next = NULL;
	pthread_mutex_lock(&pool->lock);
	if (q->last)
		q->last->next = task;
	else
		q->first = task;
	q->last = task;
	pthread_cond_signal(&pool->work);
	pthread_mutex_unlock(&pool->lock);
}

void eng_pool_drain(struct eng_pool *pool)
{
	pthread_mutex_lock(&pool->lock);
	while (!quiet_locked(pool))
		pthread_cond_wait(&pool->quiet, &pool->lock);
	pthread_mutex_unlock(&pool->lock);
}

bool eng_pool_stopping(struct eng_pool *pool)
{
	bool stopping;

	pthread_mutex_lock(&pool->lock);
	stopping = pool->stopping;
	pthread_mutex_unlock(&pool->lock);
	return stopping;
}
