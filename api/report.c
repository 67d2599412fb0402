/* SPDX-License-Identifier: MIT */
/*
 * report.c - what jobs came to beyond what a job's row can say: the last REPORTS_MAX of them, in memory,
 * under the service's lock (XP-6). Any thread.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "api/transfer.h"

#define REPORTS_MAX 64u

struct api_report {
	struct api_report *next;
	struct fmt_uuid job;
	json_t *report;
};

static void report_free(struct api_report *r)
{
	json_decref(r->report);
	free(r);
}

void api_report_put(struct vmimg_service *svc, const struct cat_job *job, json_t *report)
{
	struct api_report *r = job ? calloc(1, sizeof(*r)) : NULL, **p;
	unsigned n = 0;

	if (!r || !report) {
		free(r);
		json_decref(report);
		return;
	}
	r->job = job->id;
	r->report = report;
	pthread_mutex_lock(&svc->lock);
	r->next = svc->reports;
	svc->reports = r;
	for (p = &svc->reports; *p && n < REPORTS_MAX; n++)
		p = &(*p)->next;
	r = *p;
	*p = NULL;
	pthread_mutex_unlock(&svc->lock);
	if (r)
		report_free(r);
}

void api_reports_free(struct vmimg_service *svc)
{
	struct api_report *next;

	for (struct api_report *r = svc->reports; r; r = next) {
		next = r->next;
		report_free(r);
	}
	svc->reports = NULL;
}

int vmimg_job_report(struct vmimg_service *svc, const char *instance_id, struct vmimg_error *err,
		     char **json)
{
	char *text = NULL;
	struct fmt_uuid id;
	bool found = false;

	if (!svc || !json || !instance_id || fmt_uuid_parse(instance_id, &id) < 0)
		return api_fail(err, -EINVAL, "job: '%.64s' is no id",
				instance_id ? instance_id : "");
	pthread_mutex_lock(&svc->lock);
	for (const struct api_report *r = svc->reports; r && !found; r = r->next)
		if (fmt_uuid_equal(&r->job, &id)) {
			text = json_dumps(r->report, JSON_COMPACT);
			found = true;
		}
	pthread_mutex_unlock(&svc->lock);
	if (!found)
		return api_fail(err, -ENOENT, "job %s: has left no report", instance_id);
	if (!text)
		return api_fail(err, -ENOMEM, "out of memory");
	*json = text;
	return 0;
}
