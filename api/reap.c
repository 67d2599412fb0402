/* SPDX-License-Identifier: MIT */
/*
 * reap.c - what is left of jobs that have ended: threads to be joined, rows to be removed. Any thread.
 */
#include <errno.h>
#include <stdlib.h>

#include "api/work.h"

#define PRUNE_EVERY_NS (60ull * 1000000000)

void api_jobs_reap(struct vmimg_service *svc)
{
	struct vmimg_job *job, *next;

	pthread_mutex_lock(&svc->lock);
	job = svc->finished;
	svc->finished = NULL;
	pthread_mutex_unlock(&svc->lock);
	for (; job; job = next) {
		next = job->next_finished;
		eng_io_join(svc->io, job->thread);
		vmimg_job_put(job);
	}
}

static bool some_run_locked(const struct vmimg_service *svc)
{
	for (struct vmimg_job *job = svc->jobs; job; job = job->next) {
		bool ended;

		pthread_mutex_lock(&job->lock);
		ended = api_job_state_is_final(job->row.state);
		pthread_mutex_unlock(&job->lock);
		if (!ended && job->thread)
			return true;
	}
	return false;
}

void api_jobs_finish(struct vmimg_service *svc)
{
	pthread_mutex_lock(&svc->lock);
	while (some_run_locked(svc))
		pthread_cond_wait(&svc->job_ended, &svc->lock);
	pthread_mutex_unlock(&svc->lock);
	api_jobs_reap(svc);
}

/* The thread's job: a fold's is the engine's, which ends it at the close. */
void vmimg_cancel_jobs(struct vmimg_service *svc)
{
	if (!svc)
		return;
	pthread_mutex_lock(&svc->lock);
	for (struct vmimg_job *job = svc->jobs; job; job = job->next)
		if (job->thread && job->work.run && !job->work.cancel)
			vmimg_job_request_state_change(job, VMIMG_REQUEST_TERMINATE, 0, NULL);
	pthread_mutex_unlock(&svc->lock);
}

void api_jobs_forget(struct vmimg_service *svc)
{
	struct vmimg_job *next;

	for (struct vmimg_job *job = svc->jobs; job; job = next) {
		next = job->next;
		job->svc = NULL;
	}
	svc->jobs = NULL;
}

/* Only at open: a row that its end did not reach, although the store was closed in order (JB-9). */
static bool end_interrupted(struct vmimg_service *svc, struct cat_job *row)
{
	static const struct fmt_error why = {
		"interrupted: the end of the job could not be recorded"};

	if (api_job_state_is_final(row->state))
		return false;
	api_job_settle_failure(svc, row, 0, -EIO, &why);
	return true;
}

void api_jobs_prune(struct vmimg_service *svc)
{
	struct eng_catalog *cat = svc->store->catalog;
	int64_t before = eng_io_wall_ns(svc->io) - (int64_t)API_JOB_KEPT_NS;
	uint64_t now = eng_io_now_ns(svc->io);
	struct cat_job *rows = NULL;
	bool at_open, due, any = false;
	size_t count = 0;

	pthread_mutex_lock(&svc->lock);
	at_open = !svc->pruned_ns;
	due = at_open || now - svc->pruned_ns >= PRUNE_EVERY_NS;
	if (due)
		svc->pruned_ns = now;
	pthread_mutex_unlock(&svc->lock);
	if (!due || eng_catalog_list_jobs(cat, &rows, &count) < 0)
		return;
	for (size_t i = 0; i < count; i++) {
		bool ends = at_open && end_interrupted(svc, &rows[i]);
		bool old = api_job_state_is_final(rows[i].state) && rows[i].ended_ns < before;

		if (!ends && !old)
			continue;
		if (!any && eng_catalog_begin(cat) < 0)
			break;
		any = true;
		if (ends)
			eng_catalog_put_job(cat, &rows[i]);
		else
			eng_catalog_remove_job(cat, &rows[i].id);
	}
	if (any) /* a failure leaves them to the next time */
		eng_catalog_commit(cat, NULL);
	free(rows);
}
