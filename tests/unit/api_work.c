/* SPDX-License-Identifier: MIT */
/*
 * api_work.c - jobs whose work is a function: their progress, limit, cancel, end and rows (JB-*), with
 * works that do as they are told.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "api/work.h"
#include "engine/io/io_record.h"

#define MIB 1048576u

static char dir[80];
static struct vmimg_service *svc;
static struct vmimg_error err;

/* What a work does, step by step, at the test's word. */
static struct script {
	uint64_t total;
	_Atomic uint64_t allowed; /* bytes it may do */
	_Atomic bool may_end;
	int result;
	bool commits; /* puts the final row itself */
	struct fmt_uuid made;
	_Atomic unsigned destroyed;
} script;

static void setup(void)
{
	memset(&script, 0, sizeof(script));
	strcpy(dir, "/dev/shm/vmimg-work-XXXXXX");
	cr_assert_not_null(mkdtemp(dir));
	cr_assert_eq(vmimg_store_init(dir, &err), 0, "%s", err.message);
	cr_assert_eq(vmimg_open(dir, NULL, &err, &svc), 0, "%s", err.message);
}

static void teardown(void)
{
	cr_assert_eq(vmimg_close(svc), 0);
	cr_assert_eq(eng_record_remove_tree(dir), 0);
}

TestSuite(api_work, .init = setup, .fini = teardown, .timeout = 60);

static int commit(struct eng_progress *p)
{
	struct eng_catalog *cat = svc->store->catalog;

	if (!eng_progress_decide(p))
		return -ECANCELED;
	if (eng_catalog_begin(cat) < 0)
		return -EIO;
	eng_catalog_put_completed(cat, eng_progress_job(p), &script.made, eng_io_wall_ns(svc->io));
	return eng_catalog_commit(cat, NULL);
}

static int play(struct vmimg_service *s, void *arg, struct eng_progress *p, struct fmt_error *why,
		struct fmt_uuid *affected)
{
	(void)s;
	(void)arg;
	api_work_status(p, 0, "playing");
	eng_progress_start(p, script.total);
	while (!atomic_load(&script.may_end) ||
	       (atomic_load(&p->done) < script.total && !script.result)) {
		uint64_t left = atomic_load(&script.allowed) - atomic_load(&p->done);
		int r = eng_progress_pace(p, svc->io, left < MIB ? left : MIB, "play", why);

		if (r < 0)
			return r;
		if (!left)
			usleep(1000);
	}
	if (script.result < 0)
		return fmt_fail(why, script.result, "the play is bad");
	if (script.commits)
		return commit(p); /* with what was made */
	*affected = script.made;
	return 0;
}

static void destroyed(void *arg)
{
	(void)arg;
	script.destroyed++;
}

static uint32_t start_named(const char *name, bool cancellable, bool synchronous, uint64_t rate,
			    struct vmimg_job **job)
{
	struct api_work work = {.type = 50,
				.cancellable = cancellable,
				.run = play,
				.destroy = destroyed,
				.rate = rate};

	snprintf(work.name, sizeof(work.name), "%s", name);
	return api_work_start(svc, &work, synchronous, job, &err);
}

static struct vmimg_job *start(uint64_t total, uint64_t rate)
{
	struct vmimg_job *job = NULL;

	script.total = total;
	cr_assert_eq(start_named("play/one", true, false, rate, &job), VMIMG_JOB_STARTED, "%s",
		     err.message);
	return job;
}

static struct vmimg_job_info info_of(struct vmimg_job *job)
{
	struct vmimg_job_info info;

	vmimg_job_info(job, &info);
	return info;
}

static struct cat_job row_of(struct vmimg_job *job)
{
	struct vmimg_job_info info = info_of(job);
	struct fmt_uuid id;
	struct cat_job row;

	cr_assert_eq(fmt_uuid_parse(info.instance_id, &id), 0);
	cr_assert_eq(eng_catalog_get_job(svc->store->catalog, &id, &row), 0);
	return row;
}

static void until_done(struct vmimg_job *job, uint64_t bytes)
{
	while (info_of(job).bytes_done < bytes)
		usleep(1000);
}

static struct vmimg_job_info ended(struct vmimg_job *job, uint16_t state)
{
	struct vmimg_job_info info;

	cr_assert_eq(vmimg_job_wait(job, 20 * 1000000000ull), 0);
	info = info_of(job);
	cr_expect_eq(info.job_state, state, "%u: %s", info.job_state, info.error_description);
	cr_expect_eq(row_of(job).state, state, "the row says the same");
	cr_expect_eq(script.destroyed, 1, "freed before the end is seen, once");
	return info;
}

/* JB-9, JB-14 */
Test(api_work, progress_shows_while_it_runs)
{
	struct vmimg_job *job = start(100 * MIB, 0);
	struct vmimg_job_info info;

	cr_expect_eq(row_of(job).state, VMIMG_JOB_RUNNING, "the row is there before the end");
	script.allowed = 40 * MIB;
	until_done(job, 40 * MIB);
	usleep(600000); /* a rate takes half a second's look */
	info = info_of(job);
	cr_expect_eq(info.job_type, 50);
	cr_expect_str_eq(info.name, "play/one");
	cr_expect_str_eq(info.job_status, "playing");
	cr_expect_eq(info.bytes_done, 40 * MIB);
	cr_expect_eq(info.bytes_total, 100 * MIB);
	cr_expect_eq(info.percent_complete, 40);
	cr_expect_gt(info.bytes_per_second, 0);
	cr_expect_lt(info.remaining_ns, UINT64_MAX);
	script.allowed = 100 * MIB;
	until_done(job, 100 * MIB);
	cr_expect_eq(info_of(job).percent_complete, 99, "100 is Completed's");
	script.may_end = true;
	info = ended(job, VMIMG_JOB_COMPLETED);
	cr_expect_eq(info.percent_complete, 100);
	cr_expect_eq(info.error_code, 0);
	cr_expect_eq(info.bytes_done, 100 * MIB);
	cr_expect_eq(info.remaining_ns, UINT64_MAX);
	vmimg_job_put(job);
}

/* JB-12 */
Test(api_work, a_cancelled_work_ends_as_it_was_asked_to)
{
	static const uint16_t requests[] = {VMIMG_REQUEST_TERMINATE, VMIMG_REQUEST_KILL};

	for (int i = 0; i < 2; i++) {
		struct vmimg_job *job = start(100 * MIB, 0);
		struct vmimg_job_info info;

		cr_expect(info_of(job).cancellable);
		cr_expect_eq(vmimg_job_request_state_change(job, requests[i], 0, &err),
			     VMIMG_REQUEST_TRANSITION_STARTED);
		info = ended(job, i ? VMIMG_JOB_KILLED : VMIMG_JOB_TERMINATED);
		cr_expect_eq(info.error_code, VMIMG_V_FAILED);
		cr_expect_not(info.cancellable);
		cr_expect_lt(info.percent_complete, 100);
		cr_expect_neq(info.error_description[0], 0);
		cr_expect_eq(vmimg_job_request_state_change(job, requests[i], 0, &err),
			     VMIMG_REQUEST_INVALID_TRANSITION);
		vmimg_job_put(job);
		script.destroyed = 0;
	}
}

/* JB-5 */
Test(api_work, what_cannot_be_cancelled_says_so)
{
	struct vmimg_job *job = NULL;

	script.total = MIB;
	cr_assert_eq(start_named("play/one", false, false, 0, &job), VMIMG_JOB_STARTED);
	cr_expect_not(info_of(job).cancellable);
	cr_expect_eq(vmimg_job_request_state_change(job, VMIMG_REQUEST_TERMINATE, 0, &err),
		     VMIMG_REQUEST_INVALID_TRANSITION);
	script.allowed = MIB;
	script.may_end = true;
	ended(job, VMIMG_JOB_COMPLETED);
	vmimg_job_put(job);
}

/* JB-3 */
Test(api_work, a_failure_has_a_number_and_words)
{
	struct vmimg_job *job = start(MIB, 0);
	struct vmimg_job_info info;

	script.result = -EBUSY;
	script.may_end = true;
	info = ended(job, VMIMG_JOB_EXCEPTION);
	cr_expect_eq(info.error_code, VMIMG_V_IN_USE);
	cr_expect_str_eq(info.error_description, "play/one: the play is bad");
	vmimg_job_put(job);
}

/* RC-1 */
Test(api_work, a_synchronous_one_answers_how_it_ended)
{
	static const struct {
		int result;
		uint32_t code;
	} outcomes[] = {{0, 0}, {-EBUSY, 5}, {-ETIMEDOUT, 3}, {-EINVAL, 4}, {-EIO, 2}};

	script.total = MIB;
	script.allowed = MIB;
	script.may_end = true;
	for (size_t i = 0; i < sizeof(outcomes) / sizeof(outcomes[0]); i++) {
		script.result = outcomes[i].result;
		script.destroyed = 0;
		err.message[0] = 0;
		cr_expect_eq(start_named("play/one", true, true, 0, NULL), outcomes[i].code);
		cr_expect_eq(!err.message[0], !outcomes[i].code, "'%s'", err.message);
		cr_expect_eq(script.destroyed, 1);
	}
}

/* JB-9: what the work committed is what the end says, and comes too late to be cancelled. */
Test(api_work, the_row_is_committed_with_the_effect)
{
	struct vmimg_job *job = start(MIB, 0);
	struct vmimg_job_info info;
	struct cat_job row;

	eng_store_new_id(svc->store, &script.made);
	script.commits = true;
	script.allowed = MIB;
	script.may_end = true;
	info = ended(job, VMIMG_JOB_COMPLETED);
	row = row_of(job);
	cr_expect(fmt_uuid_equal(&row.affected, &script.made));
	cr_expect_eq(info.element_effect, VMIMG_EFFECT_CREATE);
	cr_expect_eq(strlen(info.affected.id), 36);
	vmimg_job_put(job);
}

/* JB-15 */
Test(api_work, the_limit_changes_while_it_runs)
{
	struct vmimg_job *job = start(64 * MIB, 65536); /* a quarter of an hour */
	struct vmimg_job_info info;

	script.allowed = 64 * MIB;
	script.may_end = true;
	usleep(300000);
	info = info_of(job);
	cr_expect_leq(info.bytes_done, 3 * MIB, "a limit is kept");
	cr_expect_eq(info.rate_limit, 65536);
	cr_expect_eq(vmimg_job_set_rate(job, 0, &err), 0);
	cr_assert_eq(vmimg_job_wait(job, 10 * 1000000000ull), 0, "it goes on at once");
	info = ended(job, VMIMG_JOB_COMPLETED);
	cr_expect_eq(vmimg_job_set_rate(job, 1, &err), -EINVAL, "it has ended");
	vmimg_job_put(job);
}

/* PR-2 */
Test(api_work, of_cancel_and_decide_one_wins)
{
	struct eng_progress a = {0}, b = {0}, c = {0};

	cr_expect(eng_progress_decide(&a));
	cr_expect_not(eng_progress_cancel(&a));
	cr_expect_not(eng_progress_stop(&a));
	cr_expect(eng_progress_cancel(&b));
	cr_expect_not(eng_progress_decide(&b));
	cr_expect(eng_progress_stop(&b));
	cr_expect(eng_progress_open(&c));
	cr_expect(eng_progress_decide(NULL), "nobody looks");
	cr_expect_not(eng_progress_stop(NULL));
}

/* JB-14 */
Test(api_work, the_rate_is_that_of_the_last_seconds)
{
	const uint64_t second = 1000000000ull;
	struct eng_meter m = {0};
	uint64_t rate;

	cr_expect_eq(eng_meter_look(&m, second, second + second / 10, MIB), 0, "too early");
	rate = eng_meter_look(&m, second, 2 * second, 10 * MIB);
	cr_expect_eq(rate, 10 * MIB);
	cr_expect_eq(eng_meter_look(&m, second, 2 * second + 1, 11 * MIB), rate, "no look yet");
	for (uint64_t s = 3; s < 30; s++)
		rate = eng_meter_look(&m, second, s * second, 10 * MIB + (s - 2) * MIB);
	cr_expect(rate > MIB - MIB / 8 && rate < MIB + MIB / 8, "it forgets: %llu",
		  (unsigned long long)rate);
}
