/* SPDX-License-Identifier: MIT */
/*
 * job.c - job objects (JB-*): references, properties, wait, fd, state requests, errors. Any thread.
 */
#include "api/job.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "api/describe.h"
#include "api/event.h"

/* --- objects --- */

/* What an ended job made, by the names of today (JB-6). */
static void fill_affected(struct vmimg_service *svc, const struct cat_job *row,
			  struct vmimg_ref *ret)
{
	struct cat_collection coll;
	struct cat_refpoint point;
	struct cat_snapshot snap;

	memset(ret, 0, sizeof(*ret));
	if (row->state != VMIMG_JOB_COMPLETED || fmt_uuid_is_none(&row->affected))
		return;
	fmt_uuid_format(&row->affected, ret->id);
	if (eng_catalog_get_snapshot_id(svc->store->catalog, &row->affected, &snap) == 0)
		api_name_join(ret->name, snap.collection_name, '@', snap.name);
	else if (eng_catalog_get_refpoint_id(svc->store->catalog, &row->affected, &point) == 0)
		api_name_join(ret->name, point.collection_name, '#', point.name);
	else if (eng_catalog_get_collection_id(svc->store->catalog, &row->affected, &coll) == 0)
		snprintf(ret->name, sizeof(ret->name), "%s", coll.name);
	else
		snprintf(ret->name, sizeof(ret->name), "%s", row->name);
}

static uint64_t row_elapsed(const struct cat_job *row)
{
	return row->ended_ns > row->started_ns ? (uint64_t)(row->ended_ns - row->started_ns) : 0;
}

int api_job_create(struct vmimg_service *svc, const struct cat_job *row, struct vmimg_job **ret)
{
	struct vmimg_job *job = calloc(1, sizeof(*job));
	pthread_condattr_t attr;

	if (!job)
		return -ENOMEM;
	job->io = svc->io;
	job->svc = svc;
	job->refs = 1;
	job->fd = -1;
	job->start_ns = eng_io_now_ns(svc->io);
	job->row = *row;
	job->elapsed_ns = row_elapsed(row);
	fill_affected(svc, row, &job->affected);
	pthread_mutex_init(&job->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&job->ended, &attr);
	pthread_condattr_destroy(&attr);
	*ret = job;
	return 0;
}

void api_job_destroy(struct vmimg_job *job)
{
	if (!job)
		return;
	if (job->fd >= 0)
		close(job->fd);
	pthread_cond_destroy(&job->ended);
	pthread_mutex_destroy(&job->lock);
	free(job);
}

void api_job_list_locked(struct vmimg_job *job)
{
	job->next = job->svc->jobs;
	job->svc->jobs = job;
}

struct vmimg_job *api_job_find_locked(struct vmimg_service *svc, const struct fmt_uuid *id)
{
	struct vmimg_job *job = svc->jobs;

	while (job && !fmt_uuid_equal(&job->row.id, id))
		job = job->next;
	return job;
}

static void unlist_locked(struct vmimg_job *job)
{
	struct vmimg_job **at = &job->svc->jobs;

	while (*at && *at != job)
		at = &(*at)->next;
	if (*at)
		*at = job->next;
}

void vmimg_job_put(struct vmimg_job *job)
{
	struct vmimg_service *svc = job ? job->svc : NULL;
	bool last;

	if (!job)
		return;
	if (svc)
		pthread_mutex_lock(&svc->lock);
	last = --job->refs == 0;
	if (svc) {
		if (last)
			unlist_locked(job);
		pthread_mutex_unlock(&svc->lock);
	}
	if (last)
		api_job_destroy(job);
}

int vmimg_job_get(struct vmimg_service *svc, const char *instance_id, struct vmimg_error *err,
		  struct vmimg_job **ret)
{
	struct fmt_error why = {""};
	struct vmimg_job *job;
	struct fmt_uuid id;
	struct cat_job row;
	int r = 0;

	if (!svc || !ret)
		return api_fail(err, -EINVAL, "job: no %s given", svc ? "result" : "service");
	if (!instance_id || fmt_uuid_parse(instance_id, &id) < 0)
		return api_fail(err, -EINVAL, "job: id is '%.80s', expected a uuid's 36 characters",
				instance_id ? instance_id : "");
	pthread_mutex_lock(&svc->lock);
	job = api_job_find_locked(svc, &id);
	if (job) {
		job->refs++;
		goto out;
	}
	r = eng_catalog_get_job(svc->store->catalog, &id, &row);
	if (r == 0)
		r = api_job_create(svc, &row, &job);
	if (r == 0)
		api_job_list_locked(job);
	else if (r == -ENOENT)
		api_fail(err, r, "job %s: there is none of this id", instance_id);
	else
		api_fail_why(err, r, &why, instance_id);
out:
	pthread_mutex_unlock(&svc->lock);
	if (r == 0)
		*ret = job;
	return r;
}

/* --- properties --- */

static void fill_info(const struct cat_job *row, struct vmimg_job_info *ret)
{
	memset(ret, 0, sizeof(*ret));
	fmt_uuid_format(&row->id, ret->instance_id);
	snprintf(ret->name, sizeof(ret->name), "%s", row->name);
	ret->job_state = row->state;
	ret->job_type = row->type;
	ret->percent_complete = row->percent;
	ret->error_code = row->error_code;
	snprintf(ret->error_description, sizeof(ret->error_description), "%s", row->error_text);
	snprintf(ret->job_status, sizeof(ret->job_status), "%s", row->status_text);
	ret->time_submitted_ns = row->submitted_ns;
	ret->start_time_ns = row->started_ns;
	ret->time_of_last_state_change_ns = row->changed_ns;
	ret->time_before_removal_ns = API_JOB_KEPT_NS;
	ret->elapsed_ns = row_elapsed(row);
	ret->remaining_ns = UINT64_MAX;
}

/* Bytes, rate and estimate (JB-14); the percentage follows them where the work counts bytes. */
static void fill_progress_locked(struct vmimg_job *job, bool ended, struct vmimg_job_info *ret)
{
	const struct eng_progress *p = &job->progress;
	uint64_t total = atomic_load(&p->total), done = atomic_load(&p->done);
	uint64_t left;
	uint16_t percent;

	ret->rate_limit = atomic_load(&p->rate);
	ret->bytes_total = total;
	ret->bytes_done = done < total ? done : total;
	if (ended || !total)
		return;
	left = total - ret->bytes_done;
	percent = (uint16_t)((double)ret->bytes_done * 100 / (double)total);
	percent = percent > 99 ? 99 : percent;
	if (percent > job->row.percent)
		job->row.percent = percent;
	ret->percent_complete = job->row.percent;
	ret->bytes_per_second = eng_meter_look(&job->meter, job->start_ns, eng_io_now_ns(job->io),
					       ret->bytes_done);
	if (ret->bytes_per_second)
		ret->remaining_ns = (uint64_t)((double)left * 1e9 / (double)ret->bytes_per_second);
}

static bool can_cancel_locked(const struct vmimg_job *job)
{
	return job->working && job->work.cancellable && eng_progress_open(&job->progress);
}

static void fill_info_locked(struct vmimg_job *job, struct vmimg_job_info *ret)
{
	bool ended = api_job_state_is_final(job->row.state);

	fill_info(&job->row, ret);
	fill_progress_locked(job, ended, ret);
	ret->cancellable = can_cancel_locked(job);
	ret->elapsed_ns = ended ? job->elapsed_ns : eng_io_now_ns(job->io) - job->start_ns;
	ret->affected = job->affected;
	ret->element_effect = job->affected.id[0] ? VMIMG_EFFECT_CREATE : 0;
}

void vmimg_job_info(struct vmimg_job *job, struct vmimg_job_info *ret)
{
	if (!job || !ret)
		return;
	pthread_mutex_lock(&job->lock);
	fill_info_locked(job, ret);
	pthread_mutex_unlock(&job->lock);
}

void api_job_tell(struct vmimg_job *job)
{
	struct vmimg_job_info info;

	if (!api_events_wanted(job->svc->events))
		return;
	vmimg_job_info(job, &info);
	api_event_post(job->svc->events, "job", api_job_json(&info));
}

void api_job_row_info(struct vmimg_service *svc, const struct cat_job *row,
		      struct vmimg_job_info *ret)
{
	struct vmimg_job *job;

	pthread_mutex_lock(&svc->lock);
	job = api_job_find_locked(svc, &row->id);
	if (job) {
		vmimg_job_info(job, ret);
	} else {
		fill_info(row, ret);
		fill_affected(svc, row, &ret->affected);
		ret->element_effect = ret->affected.id[0] ? VMIMG_EFFECT_CREATE : 0;
	}
	pthread_mutex_unlock(&svc->lock);
}

/* --- the end --- */

void api_job_end_locked(struct vmimg_job *job, const struct cat_job *row)
{
	struct vmimg_ref affected;

	fill_affected(job->svc, row, &affected);
	pthread_mutex_lock(&job->lock);
	job->row = *row;
	job->affected = affected;
	job->elapsed_ns = eng_io_now_ns(job->io) - job->start_ns;
	if (job->fd >= 0)
		eventfd_write(job->fd, 1);
	pthread_cond_broadcast(&job->ended);
	pthread_mutex_unlock(&job->lock);
	api_job_tell(job);
}

/* 0, or a positive errno. The job has not ended: its service is there, and the service's clock. */
static int wait_locked(struct vmimg_job *job, uint64_t timeout_ns)
{
	bool forever = timeout_ns == UINT64_MAX;
	struct timespec ts = {0};
	uint64_t end;
	int r = 0;

	if (__builtin_add_overflow(eng_io_now_ns(job->io), timeout_ns, &end) || end > INT64_MAX)
		forever = true;
	if (!forever) {
		ts.tv_sec = (time_t)(end / 1000000000);
		ts.tv_nsec = (long)(end % 1000000000);
	}
	while (r == 0 && !api_job_state_is_final(job->row.state))
		r = forever ? pthread_cond_wait(&job->ended, &job->lock)
			    : pthread_cond_timedwait(&job->ended, &job->lock, &ts);
	return api_job_state_is_final(job->row.state) ? 0 : r;
}

int vmimg_job_wait(struct vmimg_job *job, uint64_t timeout_ns)
{
	int r = 0;

	if (!job)
		return -EINVAL;
	pthread_mutex_lock(&job->lock);
	if (!api_job_state_is_final(job->row.state))
		r = wait_locked(job, timeout_ns);
	pthread_mutex_unlock(&job->lock);
	return -r;
}

int vmimg_job_fd(struct vmimg_job *job)
{
	int fd;

	if (!job)
		return -EINVAL;
	pthread_mutex_lock(&job->lock);
	if (job->fd < 0)
		job->fd = eventfd(api_job_state_is_final(job->row.state),
				  EFD_CLOEXEC | EFD_NONBLOCK);
	fd = job->fd < 0 ? -errno : job->fd;
	pthread_mutex_unlock(&job->lock);
	return fd;
}

/* --- RequestStateChange (JB-12) --- */

static bool cancel_work_locked(struct vmimg_job *job)
{
	if (!can_cancel_locked(job))
		return false;
	if (!job->work.cancel || job->work.cancel(job->work.arg))
		return eng_progress_cancel(&job->progress);
	eng_progress_decide(&job->progress); /* it knew before the job did */
	return false;
}

static uint32_t cancel_locked(struct vmimg_job *job, uint16_t requested, struct vmimg_error *err)
{
	if (api_job_state_is_final(job->row.state))
		return api_answer(err, VMIMG_REQUEST_INVALID_TRANSITION,
				  "job %s: has ended (state %u)", job->row.name, job->row.state);
	if (job->requested)
		return VMIMG_REQUEST_TRANSITION_STARTED;
	if (!cancel_work_locked(job))
		return api_answer(err, VMIMG_REQUEST_INVALID_TRANSITION, "job %s: %s cancelled",
				  job->row.name,
				  job->work.cancellable ? "is past the point where it can be"
							: "is of a kind that cannot be");
	job->requested = requested;
	snprintf(job->row.status_text, sizeof(job->row.status_text), "cancelling");
	return VMIMG_REQUEST_TRANSITION_STARTED;
}

static uint32_t request_locked(struct vmimg_job *job, uint16_t requested, uint64_t timeout_ns,
			       struct vmimg_error *err)
{
	if (requested < VMIMG_REQUEST_START || requested > VMIMG_REQUEST_SERVICE)
		return api_answer(err, VMIMG_REQUEST_INVALID_PARAMETER,
				  "job %s: state %u requested, expected 2..6", job->row.name,
				  requested);
	if (requested != VMIMG_REQUEST_TERMINATE && requested != VMIMG_REQUEST_KILL)
		return api_answer(
			err, VMIMG_REQUEST_NOT_SUPPORTED,
			"job %s: state %u requested; only Terminate (4) and Kill (5) are supported",
			job->row.name, requested);
	if (timeout_ns)
		return api_answer(err, VMIMG_REQUEST_TIMEOUT_UNSUPPORTED,
				  "job %s: a time-out of %llu ns given, expected 0", job->row.name,
				  (unsigned long long)timeout_ns);
	return cancel_locked(job, requested, err);
}

uint32_t vmimg_job_request_state_change(struct vmimg_job *job, uint16_t requested_state,
					uint64_t timeout_ns, struct vmimg_error *err)
{
	uint32_t code;

	if (!job)
		return api_answer(err, VMIMG_REQUEST_INVALID_PARAMETER, "job: none given");
	pthread_mutex_lock(&job->lock);
	code = request_locked(job, requested_state, timeout_ns, err);
	pthread_mutex_unlock(&job->lock);
	return code;
}

/* --- the rate limit (JB-15) --- */

int vmimg_job_set_rate(struct vmimg_job *job, uint64_t bytes_per_second, struct vmimg_error *err)
{
	bool working;

	if (!job)
		return api_fail(err, -EINVAL, "job: none given");
	pthread_mutex_lock(&job->lock);
	working = job->working;
	if (working)
		atomic_store(&job->progress.rate, bytes_per_second);
	if (working && job->work.set_rate)
		job->work.set_rate(job->svc, bytes_per_second);
	pthread_mutex_unlock(&job->lock);
	if (!working)
		return api_fail(err, -EINVAL, "job %s: has ended", job->row.name);
	return 0;
}

/* --- GetErrorEx (JB-13) --- */

static const struct cim_status {
	uint16_t error_code;
	int code;
	const char *text;
} cim_statuses[] = {
	{VMIMG_V_ACCESS_DENIED, 2, "CIM_ERR_ACCESS_DENIED"},
	{VMIMG_V_NOT_SUPPORTED, 7, "CIM_ERR_NOT_SUPPORTED"},
	{VMIMG_V_INVALID_PARAMETER, 4, "CIM_ERR_INVALID_PARAMETER"},
	{VMIMG_V_NOT_FOUND, 6, "CIM_ERR_NOT_FOUND"},
	{0, 1, "CIM_ERR_FAILED"},
};

static json_t *error_document(const struct vmimg_job_info *info)
{
	const struct cim_status *status = cim_statuses;
	char id[24], source[sizeof(info->name)];

	while (status->error_code && status->error_code != info->error_code)
		status++;
	snprintf(id, sizeof(id), "VMIMG-%u", info->error_code);
	snprintf(source, sizeof(source), "%.*s", (int)strcspn(info->name, "@"), info->name);
	return json_pack("[{s:i, s:s, s:s, s:s, s:s, s:i, s:i, s:i, s:i, s:s}]", "ErrorType", 4,
			 "OwningEntity", "vmimg", "MessageID", id, "Message",
			 info->error_description, "ErrorSource", source, "ErrorSourceFormat", 0,
			 "PerceivedSeverity", 6, "ProbableCause", 0, "CIMStatusCode", status->code,
			 "CIMStatusCodeDescription", status->text);
}

int vmimg_job_get_error(struct vmimg_job *job, char **json)
{
	struct vmimg_job_info info;
	json_t *document;
	char *text;

	if (!job || !json)
		return -EINVAL;
	vmimg_job_info(job, &info);
	document = info.error_code ? error_document(&info) : json_null();
	text = document ? json_dumps(document, JSON_ENCODE_ANY) : NULL;
	json_decref(document);
	if (!text)
		return -ENOMEM;
	*json = text;
	return 0;
}

/* --- work done by the caller's own thread --- */

void api_job_row(struct vmimg_service *svc, uint16_t type, const char *name, const char *status,
		 struct cat_job *ret)
{
	memset(ret, 0, sizeof(*ret));
	eng_store_new_id(svc->store, &ret->id);
	ret->state = VMIMG_JOB_RUNNING;
	ret->type = type;
	snprintf(ret->name, sizeof(ret->name), "%s", name);
	snprintf(ret->status_text, sizeof(ret->status_text), "%s", status);
	ret->submitted_ns = eng_io_wall_ns(svc->io);
	ret->started_ns = ret->submitted_ns;
	ret->changed_ns = ret->submitted_ns;
}

/* Somebody may have found the row while it said Running, and waits. */
static void end_found(struct vmimg_service *svc, const struct fmt_uuid *id)
{
	struct vmimg_job *job;
	struct cat_job row;
	bool running = false;

	pthread_mutex_lock(&svc->lock);
	job = api_job_find_locked(svc, id);
	if (job) {
		pthread_mutex_lock(&job->lock);
		running = !api_job_state_is_final(job->row.state);
		pthread_mutex_unlock(&job->lock);
	}
	if (running && eng_catalog_get_job(svc->store->catalog, id, &row) == 0 &&
	    api_job_state_is_final(row.state))
		api_job_end_locked(job, &row);
	pthread_mutex_unlock(&svc->lock);
}

void api_job_hand_out(struct vmimg_service *svc, const struct cat_job *row, struct vmimg_job **job)
{
	char id[FMT_UUID_TEXT];

	end_found(svc, &row->id);
	if (!job)
		return;
	fmt_uuid_format(&row->id, id);
	vmimg_job_get(svc, id, NULL, job);
}
