/* SPDX-License-Identifier: MIT */
/* job.c - jobs: their states, properties, waiting, requests, errors, and their life in the catalog. */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "tests/api/fixture.h"

TestSuite(api_job, .init = fixture_init, .fini = fixture_fini, .timeout = 120);

static struct stuck guest;

/* A job of prod@s1 that cannot come to its cut before stuck_end(&guest). */
static struct vmimg_job *held_job(void)
{
	make_vm("web", 2);
	make_collection("prod", "web", NULL);
	stuck_begin(&guest, "web/d0");
	return start_job("prod", "s1");
}

static bool is_readable(int fd)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};

	return poll(&p, 1, 0) == 1 && (p.revents & POLLIN);
}

static struct vmimg_job_info info_of(struct vmimg_job *job)
{
	struct vmimg_job_info info;

	memset(&info, 0xff, sizeof(info));
	vmimg_job_info(job, &info);
	return info;
}

/* JB-1..JB-7 */
Test(api_job, a_running_job_says_so)
{
	struct vmimg_job *job = held_job();
	struct vmimg_job_info info = info_of(job);
	int64_t now = (int64_t)time(NULL) * (int64_t)SECOND;

	cr_expect_eq(strlen(info.instance_id), 36);
	cr_expect_str_eq(info.name, "prod@s1");
	cr_expect_eq(info.job_state, VMIMG_JOB_RUNNING);
	cr_expect_eq(info.job_type, VMIMG_JOB_TYPE_SNAPSHOT_COLLECTION);
	cr_expect_lt(info.percent_complete, 70, "not cut yet");
	cr_expect_eq(info.error_code, 0);
	cr_expect_str_eq(info.error_description, "");
	cr_expect_str_neq(info.job_status, "");
	cr_expect(info.cancellable);
	cr_expect(info.time_submitted_ns > now - 60 * (int64_t)SECOND &&
		  info.time_submitted_ns < now + 60 * (int64_t)SECOND);
	cr_expect_eq(info.start_time_ns, info.time_submitted_ns);
	cr_expect_eq(info.time_before_removal_ns, 300 * SECOND);
	cr_expect_str_eq(info.affected.name, "");
	cr_expect_str_eq(info.affected.id, "");
	cr_expect_eq(info.element_effect, 0);
	stuck_end(&guest);
	expect_state(job, VMIMG_JOB_COMPLETED);
	vmimg_job_put(job);
}

/* JB-2..JB-7 */
Test(api_job, a_completed_job_stays_as_it_ended)
{
	struct vmimg_job *job = held_job();
	struct vmimg_job_info info, later;

	stuck_end(&guest);
	expect_state(job, VMIMG_JOB_COMPLETED);
	info = info_of(job);
	cr_expect_eq(info.percent_complete, 100);
	cr_expect_eq(info.error_code, 0);
	cr_expect_not(info.cancellable);
	cr_expect_geq(info.time_of_last_state_change_ns, info.start_time_ns);
	cr_expect_gt(info.elapsed_ns, 0);
	cr_expect_str_eq(info.affected.name, "prod@s1");
	cr_expect_eq(strlen(info.affected.id), 36);
	cr_expect_eq(info.element_effect, VMIMG_EFFECT_CREATE);
	nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
	later = info_of(job);
	cr_expect_eq(later.elapsed_ns, info.elapsed_ns);
	cr_expect_eq(later.time_of_last_state_change_ns, info.time_of_last_state_change_ns);
	vmimg_job_put(job);
}

/* JB-4 */
Test(api_job, percent_never_falls_and_is_100_only_when_completed)
{
	unsigned last = 0;

	make_vm("web", 8);
	make_collection("prod", "web", NULL);
	for (int round = 0; round < 20; round++) {
		struct vmimg_job_info info;
		struct vmimg_job *job;
		char name[16];

		snprintf(name, sizeof(name), "s%d", round);
		job = start_job("prod", name);
		last = 0;
		do {
			info = info_of(job);
			cr_assert_geq(info.percent_complete, last);
			cr_assert_eq(info.percent_complete == 100,
				     info.job_state == VMIMG_JOB_COMPLETED);
			last = info.percent_complete;
		} while (info.job_state == VMIMG_JOB_RUNNING);
		cr_assert_eq(last, 100);
		vmimg_job_put(job);
	}
}

/* JB-10 */
Test(api_job, wait_and_fd_tell_the_end)
{
	struct vmimg_job *job = held_job();
	struct vmimg_job *again = NULL;
	struct vmimg_job_info info;
	int fd = vmimg_job_fd(job);

	cr_assert_geq(fd, 0);
	cr_expect_eq(vmimg_job_fd(job), fd);
	cr_expect_not(is_readable(fd));
	cr_expect_eq(vmimg_job_wait(job, 0), -ETIMEDOUT);
	cr_expect_eq(vmimg_job_wait(job, 20000000), -ETIMEDOUT);
	stuck_end(&guest);
	cr_expect_eq(vmimg_job_wait(job, UINT64_MAX), 0);
	cr_expect_eq(vmimg_job_wait(job, 0), 0);
	cr_expect(is_readable(fd));
	cr_expect(is_readable(fd), "for ever");
	info = info_of(job);
	vmimg_job_put(job);
	/* asked for after the end, of an object made from the catalog */
	expect_ok(vmimg_job_get(svc, info.instance_id, &err, &again));
	cr_expect(is_readable(vmimg_job_fd(again)));
	vmimg_job_put(again);
}

/* JB-12: the rows that need no running job */
Test(api_job, requests_that_are_refused)
{
	struct vmimg_job *job = held_job();
	struct vmimg_job_info before = info_of(job), after;

	expect_error(vmimg_job_request_state_change(job, 0, 0, &err),
		     VMIMG_REQUEST_INVALID_PARAMETER);
	expect_error(vmimg_job_request_state_change(job, 1, 0, &err),
		     VMIMG_REQUEST_INVALID_PARAMETER);
	expect_error(vmimg_job_request_state_change(job, 7, 1, &err),
		     VMIMG_REQUEST_INVALID_PARAMETER);
	expect_error(vmimg_job_request_state_change(NULL, 4, 0, &err),
		     VMIMG_REQUEST_INVALID_PARAMETER);
	expect_error(vmimg_job_request_state_change(job, VMIMG_REQUEST_START, 0, &err),
		     VMIMG_REQUEST_NOT_SUPPORTED);
	expect_error(vmimg_job_request_state_change(job, VMIMG_REQUEST_SUSPEND, 1, &err),
		     VMIMG_REQUEST_NOT_SUPPORTED);
	expect_error(vmimg_job_request_state_change(job, VMIMG_REQUEST_SERVICE, 0, &err),
		     VMIMG_REQUEST_NOT_SUPPORTED);
	expect_error(vmimg_job_request_state_change(job, VMIMG_REQUEST_TERMINATE, 1, &err),
		     VMIMG_REQUEST_TIMEOUT_UNSUPPORTED);
	expect_error(vmimg_job_request_state_change(job, VMIMG_REQUEST_KILL, UINT64_MAX, &err),
		     VMIMG_REQUEST_TIMEOUT_UNSUPPORTED);
	after = info_of(job);
	cr_expect_eq(after.time_of_last_state_change_ns, before.time_of_last_state_change_ns,
		     "JB-7");
	cr_expect(after.cancellable);
	stuck_end(&guest);
	expect_state(job, VMIMG_JOB_COMPLETED);
	expect_error(vmimg_job_request_state_change(job, VMIMG_REQUEST_TERMINATE, 0, &err),
		     VMIMG_REQUEST_INVALID_TRANSITION);
	expect_error(vmimg_job_request_state_change(job, VMIMG_REQUEST_KILL, 0, &err),
		     VMIMG_REQUEST_INVALID_TRANSITION);
	vmimg_job_put(job);
}

static void cancelled(uint16_t request, uint16_t state)
{
	struct vmimg_job *job = held_job();
	struct vmimg_job_info info;

	cr_assert_eq(vmimg_job_request_state_change(job, request, 0, &err),
		     VMIMG_REQUEST_TRANSITION_STARTED, "%s", err.message);
	expect_state(job, state);
	expect_error(vmimg_job_request_state_change(job, request, 0, &err),
		     VMIMG_REQUEST_INVALID_TRANSITION);
	info = info_of(job);
	cr_expect_lt(info.percent_complete, 100);
	cr_expect_eq(info.error_code, VMIMG_V_FAILED);
	cr_expect_str_neq(info.error_description, "");
	cr_expect_not(info.cancellable);
	cr_expect_eq(info.element_effect, 0);
	cr_expect_str_eq(info.affected.name, "");
	vmimg_job_put(job);
	stuck_end(&guest);
	/* nothing remains of it */
	cr_expect_eq(count_of(VMIMG_KIND_SNAPSHOT), 0);
	expect_ok(create("prod", "s1"));
	fill("web/d0", 0, 4096, 0x77);
	fixture_reopen();
	expect_filled("web/d0", 0, 4096, 0x77);
}

/* JB-12 */
Test(api_job, terminate_ends_in_8)
{
	cancelled(VMIMG_REQUEST_TERMINATE, VMIMG_JOB_TERMINATED);
}

/* JB-12 */
Test(api_job, kill_ends_in_9)
{
	cancelled(VMIMG_REQUEST_KILL, VMIMG_JOB_KILLED);
}

/* JB-13 */
Test(api_job, errors_are_described_when_there_are_any)
{
	struct vmimg_job *job = held_job();
	struct vmimg_job_info info;
	json_t *errors, *first;
	char *json = NULL;

	expect_ok(vmimg_job_get_error(job, &json));
	cr_expect_str_eq(json, "null");
	vmimg_free(json);
	vmimg_job_request_state_change(job, VMIMG_REQUEST_TERMINATE, 0, NULL);
	expect_state(job, VMIMG_JOB_TERMINATED);
	stuck_end(&guest);
	info = info_of(job);
	expect_ok(vmimg_job_get_error(job, &json));
	errors = json_loads(json, 0, NULL);
	vmimg_free(json);
	cr_assert_eq(json_array_size(errors), 1);
	first = json_array_get(errors, 0);
	cr_expect_eq(number(first, "ErrorType"), 4);
	cr_expect_str_eq(text(first, "MessageID"), "VMIMG-32768");
	cr_expect_str_eq(text(first, "Message"), info.error_description);
	cr_expect_str_eq(text(first, "ErrorSource"), "prod");
	cr_expect_eq(number(first, "CIMStatusCode"), 1);
	json_decref(errors);
	vmimg_job_put(job);
	cr_expect_eq(vmimg_job_get_error(NULL, &json), -EINVAL);
}

/* JB-8, JB-11 */
Test(api_job, ended_jobs_are_found_again_after_a_restart)
{
	struct vmimg_job *job = held_job(), *again = NULL;
	struct vmimg_job_info before, after;

	stuck_end(&guest);
	expect_state(job, VMIMG_JOB_COMPLETED);
	before = info_of(job);
	fixture_reopen();
	cr_expect_eq(info_of(job).job_state, VMIMG_JOB_COMPLETED,
		     "a reference outlives the service");
	vmimg_job_put(job);
	expect_ok(vmimg_job_get(svc, before.instance_id, &err, &again));
	after = info_of(again);
	cr_expect_eq(after.job_state, VMIMG_JOB_COMPLETED);
	cr_expect_eq(after.percent_complete, 100);
	cr_expect_eq(after.time_submitted_ns, before.time_submitted_ns);
	cr_expect_eq(after.time_of_last_state_change_ns, before.time_of_last_state_change_ns);
	cr_expect_str_eq(after.affected.name, "prod@s1");
	cr_expect_str_eq(after.affected.id, before.affected.id);
	vmimg_job_put(again);
}

/* JB-11 */
Test(api_job, references_to_a_running_job_share_it)
{
	struct vmimg_job *job = held_job(), *again = NULL;
	struct vmimg_job_info info = info_of(job);

	expect_ok(vmimg_job_get(svc, info.instance_id, &err, &again));
	cr_expect_eq(again, job);
	vmimg_job_put(job);
	cr_expect_eq(info_of(again).job_state, VMIMG_JOB_RUNNING);
	stuck_end(&guest);
	expect_state(again, VMIMG_JOB_COMPLETED);
	vmimg_job_put(again);
	vmimg_job_put(NULL);
}

/* JB-10 */
Test(api_job, unknown_ids_are_refused)
{
	struct vmimg_job *job = NULL;

	expect_error(vmimg_job_get(svc, "00000000-0000-4000-8000-000000000000", &err, &job),
		     -ENOENT);
	expect_error(vmimg_job_get(svc, "prod@s1", &err, &job), -EINVAL);
	expect_error(vmimg_job_get(svc, NULL, &err, &job), -EINVAL);
	expect_error(vmimg_job_get(NULL, "00000000-0000-4000-8000-000000000000", &err, &job),
		     -EINVAL);
	cr_expect_null(job);
	cr_expect_eq(vmimg_job_wait(NULL, 0), -EINVAL);
	cr_expect_eq(vmimg_job_fd(NULL), -EINVAL);
}

/* The process dies with a job running; its parent opens the store and looks at what is left. */
static void die_with_a_job_running(void)
{
	struct vmimg_job *job;

	expect_ok(vmimg_open(store_dir, NULL, &err, &svc));
	stuck_begin(&guest, "web/d0");
	job = start_job("prod", "s1");
	(void)job;
	raise(SIGKILL);
}

/* JB-9, RV-8 */
Test(api_job, a_job_cut_off_by_a_crash_ends_in_exception)
{
	json_t *jobs, *first;
	int status;
	pid_t pid;

	make_vm("web", 2);
	make_collection("prod", "web", NULL);
	fixture_close();
	pid = fork();
	if (pid == 0)
		die_with_a_job_running();
	cr_assert_eq(waitpid(pid, &status, 0), pid);
	cr_assert(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
	while (vmimg_open(store_dir, NULL, &err, &svc) ==
	       -EBUSY) /* T19: its last request ends first */
		nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
	cr_assert_not_null(svc, "%s", err.message);
	jobs = list(VMIMG_KIND_JOB, NULL);
	cr_assert_eq(json_array_size(jobs), 1);
	first = json_array_get(jobs, 0);
	cr_expect_eq(number(first, "job_state"), VMIMG_JOB_EXCEPTION);
	cr_expect_eq(number(first, "error_code"), VMIMG_V_FAILED);
	cr_expect_str_neq(text(first, "error_description"), "");
	cr_expect(json_is_false(json_object_get(first, "cancellable")));
	json_decref(jobs);
	cr_expect_eq(count_of(VMIMG_KIND_SNAPSHOT), 0);
	expect_ok(create("prod", "s1"));
}
