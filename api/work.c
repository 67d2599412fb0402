/* SPDX-License-Identifier: MIT */
/*
 * work.c - the life of a job: its row, its thread, its end. What it does is its work's (struct api_work).
 *
 * Order at the end: the final row is durable (committed with the work's effect, or here), the work has
 * let go of what it held, then the end is seen. A crash before the row is durable leaves it Running,
 * which the next open ends (JB-9).
 */
#include "api/work.h"

#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct vmimg_job *job_of(struct eng_progress *progress)
{
	return (struct vmimg_job *)((char *)progress - offsetof(struct vmimg_job, progress));
}

void api_work_status(struct eng_progress *progress, uint16_t percent, const char *status)
{
	struct vmimg_job *job;

	if (!progress)
		return;
	job = job_of(progress);
	pthread_mutex_lock(&job->lock);
	if (percent > job->row.percent && percent < 100)
		job->row.percent = percent;
	if (!job->requested)
		snprintf(job->row.status_text, sizeof(job->row.status_text), "%s", status);
	pthread_mutex_unlock(&job->lock);
	api_job_tell(job);
}

/* --- the end --- */

static uint16_t error_code_of(struct vmimg_service *svc, int r)
{
	if (r == -ENOTRECOVERABLE && eng_catalog_poisoned(svc->store->catalog))
		return VMIMG_V_UNKNOWN; /* CU-22 */
	if (r == -ECANCELED)
		return VMIMG_V_IN_USE; /* nobody asked: a disk had to roll (RO-3) */
	return (uint16_t)api_vendor_code(r);
}

/* Whether the engine committed the final row with what the job did; *@row is that one then. */
static bool is_committed(struct vmimg_service *svc, struct cat_job *row)
{
	struct cat_job committed;

	if (eng_catalog_get_job(svc->store->catalog, &row->id, &committed) < 0 ||
	    committed.state != VMIMG_JOB_COMPLETED)
		return false;
	*row = committed;
	return true;
}

static void settle_success(struct vmimg_service *svc, struct cat_job *row,
			   const struct fmt_uuid *affected)
{
	row->affected = *affected;
	eng_catalog_complete_job(row, eng_io_wall_ns(svc->io));
}

void api_job_settle_failure(struct vmimg_service *svc, struct cat_job *row, uint16_t requested,
			    int r, const struct fmt_error *why)
{
	row->changed_ns = eng_io_wall_ns(svc->io);
	row->ended_ns = row->changed_ns;
	row->cancellable = false;
	memset(&row->affected, 0, sizeof(row->affected));
	if (requested) {
		bool kill = requested == VMIMG_REQUEST_KILL;

		row->state = kill ? VMIMG_JOB_KILLED : VMIMG_JOB_TERMINATED;
		row->error_code = VMIMG_V_FAILED;
		snprintf(row->error_text, sizeof(row->error_text),
			 "%s: cancelled by request (%s), before it took effect", row->name,
			 kill ? "Kill" : "Terminate");
		snprintf(row->status_text, sizeof(row->status_text), "cancelled");
		return;
	}
	row->state = VMIMG_JOB_EXCEPTION;
	row->error_code = error_code_of(svc, r);
	snprintf(row->error_text, sizeof(row->error_text), "%s: %s", row->name,
		 why->text[0] ? why->text : strerror(-r));
	snprintf(row->status_text, sizeof(row->status_text), "failed");
}

static int put_row(struct vmimg_service *svc, const struct cat_job *row, struct fmt_error *why)
{
	struct eng_catalog *cat = svc->store->catalog;
	int r = eng_catalog_begin(cat);

	if (r < 0)
		return r;
	eng_catalog_put_job(cat, row);
	return eng_catalog_commit(cat, why);
}

/* The work has returned @r: nobody can cancel it from here on. The row that says how it ended. */
static void settle(struct vmimg_job *job, int r, const struct fmt_error *why,
		   const struct fmt_uuid *affected, struct cat_job *row)
{
	struct vmimg_service *svc = job->svc;
	uint16_t requested;

	pthread_mutex_lock(&job->lock);
	job->working = false;
	requested = job->requested;
	*row = job->row;
	pthread_mutex_unlock(&job->lock);
	if (r == 0 && is_committed(svc, row))
		return;
	if (r == 0)
		settle_success(svc, row, affected);
	else
		api_job_settle_failure(svc, row, requested, r, why);
	/* The engine's own, stopped for something else: no failure of anybody's. */
	if (r == -ECANCELED && !requested && !job->thread) {
		row->state = VMIMG_JOB_TERMINATED;
		snprintf(row->status_text, sizeof(row->status_text), "stopped");
	}
	/* When it cannot be written, the next open finds the job Running and ends it. */
	put_row(svc, row, NULL);
}

static void end(struct vmimg_job *job, int r, const struct fmt_error *why,
		const struct fmt_uuid *affected)
{
	struct vmimg_service *svc = job->svc;
	struct cat_job row;

	settle(job, r, why, affected, &row);
	if (job->work.destroy)
		job->work.destroy(job->work.arg);
	if (job->work.tell)
		job->work.tell(svc, &row);
	pthread_mutex_lock(&svc->lock);
	api_job_end_locked(job, &row);
	if (job->thread) {
		job->next_finished = svc->finished;
		svc->finished = job;
	}
	pthread_cond_broadcast(&svc->job_ended);
	pthread_mutex_unlock(&svc->lock);
}

/* --- the thread --- */

static void run(void *arg)
{
	struct vmimg_job *job = arg;
	struct fmt_error why = {""};
	struct fmt_uuid affected = {{0}};
	int r = job->work.run(job->svc, job->work.arg, &job->progress, &why, &affected);

	end(job, r, &why, &affected);
}

static void remove_row(struct vmimg_service *svc, const struct cat_job *row)
{
	if (eng_catalog_begin(svc->store->catalog) < 0)
		return;
	eng_catalog_remove_job(svc->store->catalog, &row->id);
	eng_catalog_commit(svc->store->catalog, NULL);
}

/* The row is durable before anyone hears of the job (JB-9). */
static int create_job(struct vmimg_service *svc, const struct api_work *work,
		      const struct cat_job *row, struct fmt_error *why, struct vmimg_job **ret)
{
	struct vmimg_job *job;
	int r = api_job_create(svc, row, &job);

	if (r < 0)
		return r;
	job->begun = *row;
	job->progress.job = &job->begun;
	atomic_store(&job->progress.rate, work->rate);
	job->work = *work;
	job->working = true;
	r = put_row(svc, row, why);
	if (r < 0) {
		api_job_destroy(job);
		return r;
	}
	*ret = job;
	return 0;
}

void api_work_row(struct vmimg_service *svc, const struct api_work *work, struct cat_job *ret)
{
	memset(ret, 0, sizeof(*ret));
	eng_store_new_id(svc->store, &ret->id);
	ret->state = VMIMG_JOB_RUNNING;
	ret->type = work->type;
	ret->cancellable = work->cancellable;
	snprintf(ret->name, sizeof(ret->name), "%s", work->name);
	snprintf(ret->status_text, sizeof(ret->status_text), "running");
	ret->submitted_ns = eng_io_wall_ns(svc->io);
	ret->started_ns = ret->submitted_ns;
	ret->changed_ns = ret->submitted_ns;
}

int api_work_start_locked(struct vmimg_service *svc, const struct api_work *work,
			  const struct cat_job *row, struct fmt_error *why, struct vmimg_job **ret)
{
	struct vmimg_job *job;
	int r = create_job(svc, work, row, why, &job);

	if (r < 0)
		return r;
	job->refs++; /* the thread's */
	r = eng_io_spawn(job->io, "vmimg-job", run, job, &job->thread);
	if (r < 0) {
		remove_row(svc, row);
		api_job_destroy(job);
		return r;
	}
	api_job_list_locked(job); /* the thread needs the service's lock to end */
	*ret = job;
	return 0;
}

int api_work_begin(struct vmimg_service *svc, const struct api_work *work, struct vmimg_job **ret)
{
	struct vmimg_job *job;
	struct cat_job row;
	int r;

	api_work_row(svc, work, &row);
	/* Nobody finds the row before there is the object that will say how it ended. */
	pthread_mutex_lock(&svc->lock);
	r = create_job(svc, work, &row, NULL, &job);
	if (r == 0)
		api_job_list_locked(job);
	pthread_mutex_unlock(&svc->lock);
	if (r < 0)
		return r;
	api_job_tell(job);
	*ret = job;
	return 0;
}

void api_work_end(struct vmimg_job *job, int r, const struct fmt_error *why)
{
	static const struct fmt_uuid none;

	end(job, r, why, &none);
	vmimg_job_put(job);
}

/* --- the call --- */

void api_work_tidy(struct vmimg_service *svc)
{
	api_jobs_reap(svc);
	api_jobs_prune(svc);
}

/* The number of a method for what would have been the error of its job (RC-1). */
static uint32_t number_of(uint16_t error_code)
{
	switch (error_code) {
	case VMIMG_V_NOT_SUPPORTED: return VMIMG_NOT_SUPPORTED;
	case VMIMG_V_TIMEOUT: return VMIMG_TIMEOUT;
	case VMIMG_V_INVALID_PARAMETER:
	case VMIMG_V_NOT_FOUND: return VMIMG_INVALID_PARAMETER;
	case VMIMG_V_IN_USE:
	case VMIMG_V_INVALID_STATE: return VMIMG_INVALID_STATE;
	default: return VMIMG_FAILED;
	}
}

uint32_t api_work_wait(struct vmimg_job *job, struct vmimg_error *err)
{
	struct vmimg_job_info info;

	vmimg_job_wait(job, UINT64_MAX);
	vmimg_job_info(job, &info);
	if (info.job_state == VMIMG_JOB_COMPLETED)
		return VMIMG_OK;
	return api_answer(err, number_of(info.error_code), "%s", info.error_description);
}

void *api_work_alloc(const struct vmimg_service *svc, size_t size, const char *verb,
		     struct vmimg_job **job, struct vmimg_error *err, uint32_t *code)
{
	void *arg = svc ? calloc(1, size) : NULL;

	if (job)
		*job = NULL;
	if (!svc)
		*code = api_answer(err, VMIMG_INVALID_PARAMETER, "%s: no service given", verb);
	else if (!arg)
		*code = api_answer(err, VMIMG_FAILED, "out of memory");
	return arg;
}

uint32_t api_work_start(struct vmimg_service *svc, struct api_work *work, bool synchronous,
			struct vmimg_job **job, struct vmimg_error *err)
{
	struct vmimg_job *started = NULL;
	struct fmt_error why = {""};
	uint32_t code = VMIMG_JOB_STARTED;
	struct cat_job row;
	int r;

	if (job)
		*job = NULL;
	api_work_tidy(svc);
	api_work_row(svc, work, &row);
	pthread_mutex_lock(&svc->lock);
	r = api_work_start_locked(svc, work, &row, &why, &started);
	pthread_mutex_unlock(&svc->lock);
	if (r < 0) {
		if (work->destroy)
			work->destroy(work->arg);
		return api_answer_why(err, VMIMG_INVALID_STATE, r, &why, work->name);
	}
	if (synchronous)
		code = api_work_wait(started, err);
	if (job)
		*job = started;
	else
		vmimg_job_put(started);
	return code;
}
