/* SPDX-License-Identifier: MIT */
/*
 * run.c - the thread of a create: runs the cut, then settles how the job ended.
 *
 * Order at the end: the final row is durable (committed with the snapshot, or here), the member
 * disks are free again, then the end is seen. A crash before the row is durable leaves it Running,
 * which the next open ends in Exception (JB-9).
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/describe.h"
#include "api/event.h"
#include "api/quiesce.h"

#define PRUNE_EVERY_NS (60ull * 1000000000)

static void set_status(struct vmimg_job *job, uint16_t percent, const char *status)
{
	pthread_mutex_lock(&job->lock);
	job->row.percent = percent;
	if (!job->requested)
		snprintf(job->row.status_text, sizeof(job->row.status_text), "%s", status);
	pthread_mutex_unlock(&job->lock);
	api_job_tell(job);
}

/* The engine's steps in percent (JB-4). */
static void on_phase(void *arg, int phase)
{
	struct vmimg_job *job = arg;

	switch (phase) {
	case ENG_SNAPSHOT_PREPARING: set_status(job, 5, "preparing overlays"); break;
	case ENG_SNAPSHOT_FREEZING: set_status(job, 60, "freezing guests"); break;
	case ENG_SNAPSHOT_CUT:
		pthread_mutex_lock(&job->lock);
		job->decided = true;
		pthread_mutex_unlock(&job->lock);
		set_status(job, 70, "draining: waiting for writes in flight");
		break;
	case ENG_SNAPSHOT_HARDENING:
		set_status(job, 75, "hardening: making the frozen layers durable");
		break;
	case ENG_SNAPSHOT_COMMITTED: set_status(job, 95, "committed"); break;
	default: break;
	}
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

/*
 * The engine committed the row with the snapshot; this is what it says, should it not be readable.
 */
static void settle_success(struct vmimg_service *svc, struct cat_job *row)
{
	struct cat_job committed;

	if (eng_catalog_get_job(svc->store->catalog, &row->id, &committed) == 0 &&
	    committed.state == VMIMG_JOB_COMPLETED) {
		*row = committed;
		return;
	}
	row->state = VMIMG_JOB_COMPLETED;
	row->percent = 100;
	row->cancellable = false;
	row->changed_ns = eng_io_wall_ns(svc->io);
	row->ended_ns = row->changed_ns;
	snprintf(row->status_text, sizeof(row->status_text), "completed");
}

static void settle_failure(struct vmimg_service *svc, struct cat_job *row, uint16_t requested,
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
			 "%s: cancelled before the cut by request (%s)", row->name,
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

static void put_row(struct vmimg_service *svc, const struct cat_job *row)
{
	/* When it cannot be written, the next open finds the job Running and ends it. */
	if (eng_catalog_begin(svc->store->catalog) < 0)
		return;
	eng_catalog_put_job(svc->store->catalog, row);
	eng_catalog_commit(svc->store->catalog, NULL);
}

static void tell_snapshot(struct vmimg_service *svc, const struct cat_job *row)
{
	if (api_events_wanted(svc->events))
		api_event_post(svc->events, "snapshot",
			       json_pack("{s:s, s:s, s:o}", "change", "created", "snapshot",
					 row->name, "snapshot_id", api_json_id(&row->affected)));
}

static void finish(struct vmimg_job *job, int r, const struct fmt_error *why)
{
	struct vmimg_service *svc = job->svc;
	struct eng_snapshot *snap = job->snap;
	uint16_t requested;
	struct cat_job row;

	pthread_mutex_lock(&job->lock);
	job->snap = NULL; /* requests are refused from here on */
	job->decided = true;
	requested = job->requested;
	row = job->row;
	pthread_mutex_unlock(&job->lock);

	if (r == 0) {
		settle_success(svc, &row);
	} else {
		settle_failure(svc, &row, requested, r, why);
		put_row(svc, &row);
	}
	eng_snapshot_destroy(snap);
	if (r == 0)
		tell_snapshot(svc, &row);

	pthread_mutex_lock(&svc->lock);
	api_job_end_locked(job, &row);
	job->next_finished = svc->finished;
	svc->finished = job;
	pthread_cond_broadcast(&svc->create_ended);
	pthread_mutex_unlock(&svc->lock);
}

static void run(void *arg)
{
	struct vmimg_job *job = arg;
	struct eng_snapshot_times times;
	struct fmt_error why = {""};

	int r = 0;

	on_phase(job, ENG_SNAPSHOT_PREPARING);
	if (job->quiesce)
		r = api_quiesce_start(job->quiesce, job->snap, &why);
	if (r == 0)
		r = eng_snapshot_run(job->snap, on_phase, job, &why, &times);
	if (job->quiesce)
		api_quiesce_end(job->quiesce, r == 0);
	api_quiesce_destroy(job->svc, job->quiesce);
	finish(job, r, &why);
}

int api_job_start_locked(struct vmimg_job *job)
{
	int r;

	job->refs++; /* the thread's */
	r = eng_io_spawn(job->io, "vmimg-create", run, job, &job->thread);
	if (r < 0)
		job->refs--;
	return r;
}

/* --- threads and rows that are done --- */

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
		if (!ended)
			return true;
	}
	return false;
}

void api_jobs_finish(struct vmimg_service *svc)
{
	pthread_mutex_lock(&svc->lock);
	while (some_run_locked(svc))
		pthread_cond_wait(&svc->create_ended, &svc->lock);
	pthread_mutex_unlock(&svc->lock);
	api_jobs_reap(svc);
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
	settle_failure(svc, row, 0, -EIO, &why);
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
