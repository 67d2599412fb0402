/* SPDX-License-Identifier: MIT */
/*
 * job.h - a job as the service knows it: its catalog row, and the work that it is. Private.
 *
 * J-1: Running, then exactly one of Completed, Terminated, Killed, Exception (JB-2). J-2: its
 * snapshot's disks are free again before anyone sees the end. J-3: an ended job without references
 * lives in the catalog alone.
 */
#ifndef API_JOB_H
#define API_JOB_H

#include "api/service.h"
#include "engine/io/progress.h"

/* What a job does (work.h). */
struct api_work {
	uint16_t type;         /* VMIMG_JOB_TYPE_* */
	char name[CAT_NS_MAX]; /* of the element that it is about */
	bool cancellable;
	/*
	 * On the job's thread. 0, or a negative errno with @err; -ECANCELED when it ended because of
	 * @progress->cancel. @affected: what it made, where it made something. A work whose effect is one
	 * transaction puts eng_catalog_put_completed() into it, and asks eng_progress_decide() before.
	 */
	int (*run)(struct vmimg_service *svc, void *arg, struct eng_progress *progress,
		   struct fmt_error *err, struct fmt_uuid *affected);
	/* Frees @arg: after run(), before the end is seen. May be NULL. */
	void (*destroy)(void *arg);
	void *arg;
	uint64_t rate; /* bytes a second to begin with, 0 unlimited */
	/* Instead of eng_progress_cancel(), under the job's lock, before destroy(); may be NULL. */
	bool (*cancel)(void *arg);
	/* What is told of the end, after destroy(): for events. May be NULL. */
	void (*tell)(struct vmimg_service *svc, const struct cat_job *row);
	/* A new rate limit applies to more than this job. May be NULL. */
	void (*set_rate)(struct vmimg_service *svc, uint64_t rate);
};

struct vmimg_job {
	struct eng_io *io;         /* until it has ended: a job may outlive its service */
	struct eng_thread *thread; /* its own; joined by api_jobs_reap(). NULL: somebody else's */
	uint64_t start_ns;         /* monotonic */
	struct eng_progress progress;
	struct cat_job begun; /* the row as it was when the work began */

	/* the service's lock */
	struct vmimg_service *svc; /* NULL once the service is closed */
	struct vmimg_job *next, *next_finished;
	unsigned refs;

	pthread_mutex_t lock; /* guards what follows */
	pthread_cond_t ended;
	struct cat_job row;
	struct api_work work;
	bool working;        /* the work has not returned */
	uint16_t requested;  /* enum vmimg_requested_state that won, or 0 */
	uint64_t elapsed_ns; /* final */
	int fd;              /* eventfd, or -1: nobody asked */
	struct eng_meter meter;
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

/* Makes @row the final one of a job that failed with @r, or of one that @requested ended (work.c). */
void api_job_settle_failure(struct vmimg_service *svc, struct cat_job *row, uint16_t requested,
			    int r, const struct fmt_error *why);

/* --- reap.c: what is left of jobs that have ended --- */
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

/* --- work done by the caller's own thread, with a job all the same --- */
/* Its row as it begins: Running, new. */
void api_job_row(struct vmimg_service *svc, uint16_t type, const char *name, const char *status,
		 struct cat_job *ret);
/*
 * The job of @row, whose end is in the catalog, for the caller; @job NULL: not wanted. Whoever found it
 * before hears of the end.
 */
void api_job_hand_out(struct vmimg_service *svc, const struct cat_job *row, struct vmimg_job **job);

#endif
