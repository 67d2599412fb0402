/* SPDX-License-Identifier: MIT */
/*
 * work.h - long calls as jobs: the work is one function on a thread of its own, and this is all it has
 * to bring. Everything else a job promises (JB-*) is done here, for every kind of work alike: its row
 * is Running, durably, before the work begins; the final row is durable before anyone sees the end.
 * Private.
 */
#ifndef API_WORK_H
#define API_WORK_H

#include "api/job.h"

/*
 * What a call that starts work begins with: @size zeroed bytes for its argument, and *@job NULL. NULL with
 * the answer in *@code when there is no service, @verb naming the call, or no memory.
 */
void *api_work_alloc(const struct vmimg_service *svc, size_t size, const char *verb,
		     struct vmimg_job **job, struct vmimg_error *err, uint32_t *code);

/*
 * Fills in @work and hands it over: a job of that type and name, Running. @synchronous: waits, and
 * returns how it ended: 0, or the number that stands for its error (RC-1). Otherwise 4096. 5, with @err
 * and nothing started, when the catalog cannot take the row. @work->arg is taken in every case, also
 * on failure. @job: NULL, or set whenever there is one; vmimg_job_put(). Any thread.
 */
uint32_t api_work_start(struct vmimg_service *svc, struct api_work *work, bool synchronous,
			struct vmimg_job **job, struct vmimg_error *err);

/*
 * The same under the service's lock, for checks that must hold when it has begun: @row is the job's as
 * it begins (api_work_row()). Takes nothing on failure, which is a negative errno. Whoever called it
 * calls api_work_wait() without the lock.
 */
int api_work_start_locked(struct vmimg_service *svc, const struct api_work *work,
			  const struct cat_job *row, struct fmt_error *why, struct vmimg_job **job);
void api_work_row(struct vmimg_service *svc, const struct api_work *work, struct cat_job *ret);
/* Old threads and rows go; before a new job, the lock not held. */
void api_work_tidy(struct vmimg_service *svc);
/* Waits; the number of the family that the job's end means: 0, or one with @err filled. */
uint32_t api_work_wait(struct vmimg_job *job, struct vmimg_error *err);

/* --- within run() --- */
/* What it is doing, for humans; @percent: never less than before, and below 100; 0: as it is. */
void api_work_status(struct eng_progress *progress, uint16_t percent, const char *status);

/* --- work that has a thread already (folds) --- */
/* A job without a thread: Running, and in the list. */
int api_work_begin(struct vmimg_service *svc, const struct api_work *work, struct vmimg_job **job);
/* Its end, @r being how it went; the reference of api_work_begin() is given back. */
void api_work_end(struct vmimg_job *job, int r, const struct fmt_error *why);

#endif
