/* SPDX-License-Identifier: MIT */
/*
 * life_job.c - jobs that go on in life.h while other steps are taken, one of each kind at a time: they read
 * snapshots that are deleted meanwhile, and copy what is folded. They are slowed down and cancelled at
 * random (JB-12, JB-15, XP-5, FT-5, FO-15), and may fail only when what they need has gone.
 */
#include "tests/sim/life.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/job.h"

static struct vmimg_error err;

void life_job_begin(enum life_job_kind kind, struct vmimg_job *job, const struct life_snap *snap,
		    uint32_t group)
{
	life.job[kind] = (struct life_job){.job = job, .group = group};
	if (snap)
		life.job[kind].born = snap->born;
}

bool life_job_reads(const struct life_snap *snap)
{
	for (uint32_t i = 0; i < LIFE_JOBS; i++)
		if (life.job[i].job && life.job[i].born == snap->born)
			return true;
	return false;
}

static bool is_there(uint32_t born)
{
	for (uint32_t i = 0; i < LIFE_SNAPS; i++)
		if (world->snap[i].there && world->snap[i].born == born)
			return true;
	return false;
}

/* Where the base of the export under way still has the name that was given. */
static bool base_is_there(void)
{
	const struct life_link *link = &world->backup.link[world->backup.count];
	bool there = !link->base[0];
	char name[2 * LIFE_NAME];

	for (uint32_t i = 0; i < LIFE_SNAPS + LIFE_POINTS; i++) {
		const struct life_snap *s = i < LIFE_SNAPS ? &world->snap[i]
							   : &world->point[i - LIFE_SNAPS];

		snprintf(name, sizeof(name), "%s%c%s", world->group[s->group].name,
			 i < LIFE_SNAPS ? '@' : '#', s->name);
		there = there || (s->there && !strcmp(name, link->base));
	}
	return there;
}

/* What it reads has gone, a disk of the clone, or its chain is another one after a revert. */
static bool may_fail(enum life_job_kind kind)
{
	const struct life_job *j = &life.job[kind];

	switch (kind) {
	case LIFE_JOB_EXPORT: return !is_there(j->born) || !base_is_there();
	case LIFE_JOB_VERIFY: return !is_there(j->born);
	case LIFE_JOB_FLATTEN: return j->excused;
	default: return false;
	}
}

static void end_job(enum life_job_kind kind)
{
	struct life_job *j = &life.job[kind];
	struct vmimg_job_info info;

	vmimg_job_info(j->job, &info);
	life_must(info.job_state == VMIMG_JOB_COMPLETED ||
			  (info.job_state == VMIMG_JOB_TERMINATED && j->cancelled) ||
			  (info.job_state == VMIMG_JOB_EXCEPTION && may_fail(kind)),
		  "job of %s (type %u) ended in state %u, error %u: %s", info.name, info.job_type,
		  info.job_state, info.error_code, info.error_description);
	world->cancelled += info.job_state == VMIMG_JOB_TERMINATED;
	vmimg_job_put(j->job);
	j->job = NULL;
	if (kind == LIFE_JOB_EXPORT)
		life_backup_ended(info.job_state == VMIMG_JOB_COMPLETED);
}

void life_jobs_turn(void)
{
	for (uint32_t i = 0; i < LIFE_JOBS; i++)
		if (life.job[i].job && vmimg_job_wait(life.job[i].job, 0) == 0)
			end_job((enum life_job_kind)i);
}

static void cancel(enum life_job_kind kind)
{
	struct life_job *j = &life.job[kind];

	uint32_t r = vmimg_job_request_state_change(j->job, VMIMG_REQUEST_TERMINATE, 0, &err);

	life_must(r == VMIMG_REQUEST_TRANSITION_STARTED || r == VMIMG_REQUEST_INVALID_TRANSITION,
		  "cancel: %u, %s", r, err.message);
	j->cancelled = j->cancelled || r == VMIMG_REQUEST_TRANSITION_STARTED;
}

static void change_rate(struct vmimg_job *job, uint32_t what)
{
	static const uint64_t rates[] = {0, 0, 1 << 20, 16 << 20};
	int r = vmimg_job_set_rate(job, rates[what % 4], &err);

	life_must(r == 0 || r == -EINVAL, "rate of a job: %d, %s", r, err.message);
}

void life_jobs_end(bool leave)
{
	for (uint32_t i = 0; i < LIFE_JOBS; i++) {
		struct life_job *j = &life.job[i];

		if (!j->job)
			continue;
		if (life_chance(2))
			cancel((enum life_job_kind)i);
		change_rate(j->job, 0);
		while (!leave && vmimg_job_wait(j->job, 0) == -ETIMEDOUT)
			life_turn(200000);
		if (!leave)
			end_job((enum life_job_kind)i);
		else
			vmimg_job_put(j->job);
		j->job = NULL;
	}
}

/* --- those that change nothing but the layers --- */

void life_verify(void)
{
	struct vmimg_job *job = NULL;
	char settings[64];
	int i = life_some_snap();
	uint32_t r;

	if (i < 0 || life.job[LIFE_JOB_VERIFY].job)
		return;
	snprintf(settings, sizeof(settings), "{\"RateLimit\": %u}",
		 life_chance(2) ? 0 : 1u << (20 + life_pick(8)));
	snprintf(world->doing, sizeof(world->doing), "verify %s", life_snap_name(&world->snap[i]));
	r = vmimg_verify_snapshot(life.svc, life_snap_name(&world->snap[i]), settings, &job, &err);
	life_must(r == VMIMG_JOB_STARTED, "%s: %u, %s", world->doing, r, err.message);
	life_job_begin(LIFE_JOB_VERIFY, job, &world->snap[i], world->snap[i].group);
}

void life_flatten_on(uint32_t group)
{
	uint64_t rate = life_chance(2) ? 0 : 1u << (20 + life_pick(8));
	struct vmimg_job *job = NULL;
	uint32_t r;

	if (life.job[LIFE_JOB_FLATTEN].job)
		return;
	r = vmimg_flatten(life.svc, world->group[group].name, rate, 0, &job, &err);
	life_must(r == VMIMG_JOB_STARTED, "%s: %u, %s", world->doing, r, err.message);
	life_job_begin(LIFE_JOB_FLATTEN, job, NULL, group);
}

void life_settle(void)
{
	struct vmimg_job *job = NULL;
	uint32_t r;

	if (life.job[LIFE_JOB_SETTLE].job)
		return;
	snprintf(world->doing, sizeof(world->doing), "settle");
	r = vmimg_settle(life.svc, NULL, life_chance(2) ? VMIMG_SETTLE_WHOLE : 0, UINT64_MAX, &job,
			 &err);
	life_must(r == VMIMG_JOB_STARTED, "settle: %u, %s", r, err.message);
	life_job_begin(LIFE_JOB_SETTLE, job, NULL, 0);
}

/* --- somebody changes his mind --- */

static struct vmimg_job *some_fold(void)
{
	struct vmimg_job *job = NULL;
	char id[FMT_UUID_TEXT] = "";

	pthread_mutex_lock(&life.svc->lock);
	for (struct vmimg_job *j = life.svc->jobs; j; j = j->next)
		if (j->begun.type == VMIMG_JOB_TYPE_MERGE)
			fmt_uuid_format(&j->begun.id, id);
	pthread_mutex_unlock(&life.svc->lock);
	if (id[0])
		vmimg_job_get(life.svc, id, &err, &job);
	return job;
}

/* It may have ended meanwhile. */
static void meddle_with_fold(void)
{
	struct vmimg_job *job = some_fold();
	uint32_t r;

	if (!job)
		return;
	snprintf(world->doing, sizeof(world->doing), "cancel a fold");
	if (life_chance(3)) {
		change_rate(job, life_pick(4));
	} else {
		r = vmimg_job_request_state_change(job, VMIMG_REQUEST_TERMINATE, 0, &err);
		life_must(r == VMIMG_REQUEST_TRANSITION_STARTED ||
				  r == VMIMG_REQUEST_INVALID_TRANSITION,
			  "%s: %u, %s", world->doing, r, err.message);
		world->cancelled += r == VMIMG_REQUEST_TRANSITION_STARTED;
	}
	vmimg_job_put(job);
}

void life_meddle(void)
{
	uint32_t i = life_pick(LIFE_JOBS + 1);

	if (i == LIFE_JOBS)
		meddle_with_fold();
	else if (life.job[i].job && life_chance(3))
		cancel((enum life_job_kind)i);
	else if (life.job[i].job)
		change_rate(life.job[i].job, life_pick(4));
}
