/* SPDX-License-Identifier: MIT */
/*
 * job.h - a job as the service knows it: its catalog row, and the create that runs for it. Private.
 *
 * J-1: Running, then exactly one of Completed, Terminated, Killed, Exception (JB-2). J-2: its
 * snapshot's disks are free again before anyone sees the end. J-3: an ended job without references
 * lives in the catalog alone.
 */
#ifndef API_JOB_H
#define API_JOB_H

#include "api/service.h"
#include "engine/snapshot.h"

struct api_quiesce;

struct vmimg_job {
	struct eng_io *io;
	struct eng_thread *thread; /* of a create; joined by api_jobs_reap() */
	uint64_t start_ns;         /* monotonic */

	/* the service's lock */
	struct vmimg_service *svc; /* NULL once the service is closed */
	struct vmimg_job *next, *next_finished;
	unsigned refs;

	pthread_mutex_t lock; /* guards what follows */
	pthread_cond_t ended;
	struct cat_job row;
	struct eng_snapshot *snap;   /* while it can be cancelled or the like */
	struct api_quiesce *quiesce; /* or NULL; the thread's */
	bool decided;                /* the cut has happened, or will not */
	uint16_t requested;          /* enum vmimg_requested_state that won, or 0 */
	uint64_t elapsed_ns;         /* final */
	int fd;                      /* eventfd, or -1: nobody asked */
	struct vmimg_ref affected;
};

static inline bool api_job_state_is_final(uint16_t state)
{
	return state >= VMIMG_JOB_COMPLETED && state <= VMIMG_JOB_EXCEPTION;
}

/* A job object with one reference; not in the service's list. */
int api_job_create(struct vmimg_service *svc, const struct cat_job *row, struct vmimg_job **ret);
/* For one that was never listed. */
void api_job_destroy(struct vmimg_job *job);
void api_job_list_locked(struct vmimg_job *job);
struct vmimg_job *api_job_find_locked(struct vmimg_service *svc, const struct fmt_uuid *id);
/* Its end, seen by everyone from here on: @row is final. Service's lock held. */
void api_job_end_locked(struct vmimg_job *job, const struct cat_job *row);
/* Tells subscribers what the job says now. */
void api_job_tell(struct vmimg_job *job);
/*
 * The job of @row as vmimg_job_info() tells it, with what only its object knows where there is one.
 */
void api_job_row_info(struct vmimg_service *svc, const struct cat_job *row,
		      struct vmimg_job_info *ret);

/* --- run.c: the thread of a create --- */
/* Starts it; its row is in the catalog. Takes nothing on failure. */
int api_job_start_locked(struct vmimg_job *job);
/* Joins threads that have ended. Service's lock not held. */
void api_jobs_reap(struct vmimg_service *svc);
/* Waits for those that run. */
void api_jobs_finish(struct vmimg_service *svc);
/* The service goes; references that are left keep working by themselves. */
void api_jobs_forget(struct vmimg_service *svc);
/*
 * Removes rows of jobs that ended more than the time before removal ago (JB-8); looks only now and
 * then. The first call, at open, ends rows that say Running although nothing runs.
 */
void api_jobs_prune(struct vmimg_service *svc);

#define API_JOB_KEPT_NS (5ull * 60 * 1000000000)

#endif
