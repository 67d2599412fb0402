/* SPDX-License-Identifier: MIT */
/*
 * create.c - the work of a create: guests are frozen where that is asked for, the engine makes the cut.
 * The job's thread; api_create_cancel() under the job's lock.
 */
#include "api/create.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/describe.h"
#include "api/event.h"
#include "api/quiesce.h"

struct create {
	struct eng_snapshot *snap;
	struct api_quiesce *quiesce; /* or NULL */
	struct eng_progress *progress;
};

/* The engine's steps in percent (JB-4). */
static void on_phase(void *arg, int phase)
{
	struct eng_progress *p = ((struct create *)arg)->progress;

	switch (phase) {
	case ENG_SNAPSHOT_PREPARING: api_work_status(p, 5, "preparing overlays"); break;
	case ENG_SNAPSHOT_FREEZING: api_work_status(p, 60, "freezing guests"); break;
	case ENG_SNAPSHOT_CUT:
		eng_progress_decide(p);
		api_work_status(p, 70, "draining: waiting for writes in flight");
		break;
	case ENG_SNAPSHOT_HARDENING:
		api_work_status(p, 75, "hardening: making the frozen layers durable");
		break;
	case ENG_SNAPSHOT_COMMITTED: api_work_status(p, 95, "committed"); break;
	default: break;
	}
}

static int run(struct vmimg_service *svc, void *arg, struct eng_progress *progress,
	       struct fmt_error *err, struct fmt_uuid *affected)
{
	struct create *c = arg;
	struct eng_snapshot_times times;
	int r = 0;

	(void)affected; /* the engine commits the row with the snapshot */
	c->progress = progress;
	on_phase(c, ENG_SNAPSHOT_PREPARING);
	if (c->quiesce)
		r = api_quiesce_start(c->quiesce, c->snap, err);
	if (r == 0)
		r = eng_snapshot_run(c->snap, on_phase, c, err, &times);
	if (c->quiesce)
		api_quiesce_end(c->quiesce, r == 0);
	api_quiesce_destroy(svc, c->quiesce);
	return r;
}

static bool cancel(void *arg)
{
	return eng_snapshot_cancel(((struct create *)arg)->snap);
}

static void destroy(void *arg)
{
	eng_snapshot_destroy(((struct create *)arg)->snap);
	free(arg);
}

static void tell(struct vmimg_service *svc, const struct cat_job *row)
{
	if (row->state != VMIMG_JOB_COMPLETED || !api_events_wanted(svc->events))
		return;
	if (row->type == VMIMG_JOB_TYPE_CREATE_REFPOINT_COLLECTION)
		api_event_change(svc, "refpoint", "created", row->name);
	else
		api_event_post(svc->events, "snapshot",
			       json_pack("{s:s, s:s, s:o}", "change", "created", "snapshot",
					 row->name, "snapshot_id", api_json_id(&row->affected)));
}

/* The row is the snapshot's spec's, which is committed with it: so here is where it begins. */
static void begin_row(const struct eng_snapshot_spec *spec, struct cat_job *ret)
{
	*ret = spec->job;
	ret->state = VMIMG_JOB_RUNNING;
	ret->percent = 0;
	ret->changed_ns = ret->submitted_ns;
	ret->cancellable = true;
	memset(&ret->affected, 0, sizeof(ret->affected));
	snprintf(ret->status_text, sizeof(ret->status_text), "checking");
}

int api_create_start_locked(struct vmimg_service *svc, const struct eng_snapshot_spec *spec,
			    struct eng_snapshot *snap, struct api_quiesce *quiesce,
			    struct fmt_error *why, struct vmimg_job **ret)
{
	struct api_work work = {
		.type = spec->job.type,
		.cancellable = true,
		.run = run,
		.cancel = cancel,
		.destroy = destroy,
		.tell = tell,
	};
	struct create *c = calloc(1, sizeof(*c));
	struct cat_job row;
	int r;

	if (!c)
		return -ENOMEM;
	c->snap = snap;
	c->quiesce = quiesce;
	work.arg = c;
	begin_row(spec, &row);
	r = api_work_start_locked(svc, &work, &row, why, ret);
	if (r < 0)
		free(c);
	return r;
}
