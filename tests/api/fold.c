/* SPDX-License-Identifier: MIT */
/* fold.c - folds as jobs, their rate and their cancel, and waiting until space has come back. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "tests/api/fixture.h"

TestSuite(api_fold, .init = fixture_init, .fini = fixture_fini, .timeout = 120);

static void nap(unsigned ms)
{
	nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L}, NULL);
}

static void delete (const char *snapshot)
{
	struct vmimg_job *job = NULL;

	expect_ok(vmimg_destroy_snapshot(svc, snapshot, &job, &err));
	expect_state(job, VMIMG_JOB_COMPLETED);
	vmimg_job_put(job);
}

static int64_t layers_of(const char *disk)
{
	json_t *doc = describe(VMIMG_KIND_DISK, disk);
	int64_t layers = number(doc, "layers");

	json_decref(doc);
	return layers;
}

/* web/d0 with three snapshots, 4 MiB of its own in each; deleting s1 and s2 leaves three layers to fold. */
static void make_chain(void)
{
	make_vm("web", 1);
	make_collection("prod", "web", NULL);
	cr_assert_eq(create("prod", "base"), VMIMG_OK);
	fill("web/d0", 0, 4 * MIB, 1);
	cr_assert_eq(create("prod", "s1"), VMIMG_OK);
	fill("web/d0", MIB, 4 * MIB, 2);
	cr_assert_eq(create("prod", "s2"), VMIMG_OK);
	fill("web/d0", 2 * MIB, 4 * MIB, 3);
	cr_assert_eq(create("prod", "s3"), VMIMG_OK);
	expect_ok(vmimg_settle(svc, NULL, VMIMG_SETTLE_WAIT, UINT64_MAX, NULL, &err));
}

static void expect_content(void)
{
	expect_filled("web/d0", 0, MIB, 1);
	expect_filled("web/d0", MIB, MIB, 2);
	expect_filled("web/d0", 2 * MIB, 4 * MIB, 3);
	expect_filled("prod@s3/web/d0", MIB, MIB, 2);
}

/* The newest job of the type in the list; its reference, or NULL. */
static struct vmimg_job *job_of_type(unsigned type)
{
	json_t *jobs = list(VMIMG_KIND_JOB, NULL);
	struct vmimg_job *job = NULL;

	for (size_t i = json_array_size(jobs); i-- > 0 && !job;) {
		const json_t *one = json_array_get(jobs, i);

		if (number(one, "job_type") == type)
			expect_ok(vmimg_job_get(svc, text(one, "instance_id"), &err, &job));
	}
	json_decref(jobs);
	return job;
}

static struct vmimg_job *running_fold(void)
{
	struct vmimg_job_info info;
	struct vmimg_job *job;

	for (int i = 0; i < 500; i++) {
		job = job_of_type(VMIMG_JOB_TYPE_MERGE);
		if (job) {
			vmimg_job_info(job, &info);
			if (info.job_state == VMIMG_JOB_RUNNING && info.bytes_total)
				return job;
		}
		vmimg_job_put(job);
		nap(10);
	}
	cr_assert_fail("no fold began");
	return NULL;
}

/* FO-15, FO-16 */
Test(api_fold, settle_waits_until_space_is_back)
{
	struct vmimg_job_info info;
	struct vmimg_job *job = NULL;
	int64_t layers;

	make_chain();
	layers = layers_of("web/d0");
	delete ("prod@s1");
	delete ("prod@s2");
	cr_assert_eq(vmimg_settle(svc, "prod", 0, UINT64_MAX, &job, &err), VMIMG_JOB_STARTED);
	expect_state(job, VMIMG_JOB_COMPLETED);
	vmimg_job_info(job, &info);
	cr_expect_eq(info.job_type, VMIMG_JOB_TYPE_SETTLE);
	cr_expect_str_eq(info.name, "prod");
	vmimg_job_put(job);
	cr_expect_eq(layers_of("web/d0"), layers - 2, "three layers are one");
	job = job_of_type(VMIMG_JOB_TYPE_MERGE);
	cr_assert_not_null(job, "the fold was a job");
	vmimg_job_info(job, &info);
	cr_expect_eq(info.job_state, VMIMG_JOB_COMPLETED);
	cr_expect_str_eq(info.name, "web/d0");
	cr_expect_eq(info.percent_complete, 100);
	vmimg_job_put(job);
	expect_content();
}

/* FO-15, JB-14, JB-15 */
Test(api_fold, a_fold_under_way_shows_and_goes_faster)
{
	struct vmimg_job_info info;
	struct vmimg_job *job;

	make_chain();
	expect_ok(vmimg_set_fold_rate(svc, MIB, &err));
	delete ("prod@s1");
	job = running_fold();
	nap(700);
	vmimg_job_info(job, &info);
	cr_expect_eq(info.job_state, VMIMG_JOB_RUNNING);
	cr_expect(info.cancellable);
	cr_expect_eq(info.rate_limit, MIB);
	cr_expect_gt(info.bytes_total, 3 * MIB);
	cr_expect_lt(info.bytes_done, info.bytes_total);
	cr_expect_lt(info.percent_complete, 100);
	expect_ok(vmimg_job_set_rate(job, 0, &err));
	cr_assert_eq(vmimg_job_wait(job, 10 * SECOND), 0, "it goes on at once");
	expect_state(job, VMIMG_JOB_COMPLETED);
	vmimg_job_put(job);
	expect_content();
}

/* FO-15, FO-17 */
Test(api_fold, a_cancelled_fold_is_not_begun_again_until_something_changes)
{
	struct vmimg_job_info info;
	struct vmimg_job *job;
	int64_t layers;

	make_chain();
	expect_ok(vmimg_set_fold_rate(svc, 65536, &err));
	layers = layers_of("web/d0");
	delete ("prod@s1");
	job = running_fold();
	cr_assert_eq(vmimg_job_request_state_change(job, VMIMG_REQUEST_TERMINATE, 0, &err),
		     VMIMG_REQUEST_TRANSITION_STARTED);
	cr_assert_eq(vmimg_job_wait(job, 10 * SECOND), 0, "a limit does not keep it");
	expect_state(job, VMIMG_JOB_TERMINATED);
	vmimg_job_put(job);
	expect_ok(vmimg_set_fold_rate(svc, 0, &err));
	nap(1500);
	cr_expect_eq(layers_of("web/d0"), layers);
	delete ("prod@s2");
	expect_ok(vmimg_settle(svc, NULL, VMIMG_SETTLE_WAIT, UINT64_MAX, NULL, &err));
	cr_expect_eq(layers_of("web/d0"), layers - 2, "both at once");
	job = job_of_type(VMIMG_JOB_TYPE_MERGE);
	vmimg_job_info(job, &info);
	cr_expect_eq(info.job_state, VMIMG_JOB_COMPLETED);
	vmimg_job_put(job);
	expect_content();
}

/* FO-15 */
Test(api_fold, a_fold_whose_layers_change_has_not_failed)
{
	struct vmimg_job_info info;
	struct vmimg_job *job;
	int64_t layers;

	make_chain();
	expect_ok(vmimg_set_fold_rate(svc, MIB, &err));
	layers = layers_of("web/d0");
	delete ("prod@s1");
	job = running_fold();
	delete ("prod@s2"); /* which its result was to be of */
	expect_ok(vmimg_job_set_rate(job, 0, &err));
	cr_assert_eq(vmimg_job_wait(job, 10 * SECOND), 0);
	expect_state(job, VMIMG_JOB_TERMINATED);
	vmimg_job_info(job, &info);
	cr_expect(strstr(info.error_description, "begun anew"), "%s", info.error_description);
	vmimg_job_put(job);
	expect_ok(vmimg_settle(svc, NULL, VMIMG_SETTLE_WAIT, UINT64_MAX, NULL, &err));
	cr_expect_eq(layers_of("web/d0"), layers - 2, "three layers are one");
	expect_content();
}

/* FO-17 */
Test(api_fold, settle_begins_a_cancelled_fold_again)
{
	struct vmimg_job *job;
	int64_t layers;

	make_chain();
	expect_ok(vmimg_set_fold_rate(svc, 65536, &err));
	layers = layers_of("web/d0");
	delete ("prod@s1");
	job = running_fold();
	cr_assert_eq(vmimg_job_request_state_change(job, VMIMG_REQUEST_TERMINATE, 0, &err),
		     VMIMG_REQUEST_TRANSITION_STARTED);
	expect_state(job, VMIMG_JOB_TERMINATED);
	vmimg_job_put(job);
	expect_ok(vmimg_set_fold_rate(svc, 0, &err));
	nap(300);
	cr_expect_eq(layers_of("web/d0"), layers);
	expect_ok(vmimg_settle(svc, "web/d0", VMIMG_SETTLE_WAIT, UINT64_MAX, NULL, &err));
	cr_expect_eq(layers_of("web/d0"), layers - 1);
	expect_content();
}

/* FO-16 */
Test(api_fold, settle_ends_by_its_time_or_a_cancel_and_folds_go_on)
{
	struct vmimg_job *job = NULL;
	int64_t layers;

	make_chain();
	layers = layers_of("web/d0");
	expect_ok(vmimg_set_fold_rate(svc, 65536, &err));
	delete ("prod@s1");
	vmimg_job_put(running_fold());
	expect_error(vmimg_settle(svc, "web/d0", VMIMG_SETTLE_WAIT, SECOND / 10, NULL, &err),
		     VMIMG_TIMEOUT);
	cr_assert_eq(vmimg_settle(svc, "prod", 0, UINT64_MAX, &job, &err), VMIMG_JOB_STARTED);
	cr_assert_eq(vmimg_job_request_state_change(job, VMIMG_REQUEST_TERMINATE, 0, &err),
		     VMIMG_REQUEST_TRANSITION_STARTED);
	expect_state(job, VMIMG_JOB_TERMINATED);
	vmimg_job_put(job);
	expect_ok(vmimg_set_fold_rate(svc, 0, &err));
	expect_ok(vmimg_settle(svc, "prod", VMIMG_SETTLE_WAIT, UINT64_MAX, NULL, &err));
	cr_expect_eq(layers_of("web/d0"), layers - 1);
	expect_content();
}

/* FO-9, FO-16 */
Test(api_fold, whole_folds_what_does_not_pay)
{
	int64_t layers;

	make_vm("web", 1);
	make_collection("prod", "web", NULL);
	fill("web/d0", 0, 8 * MIB, 1);
	cr_assert_eq(create("prod", "s1"), VMIMG_OK);
	fill("web/d0", 0, 4096, 2);
	cr_assert_eq(create("prod", "s2"), VMIMG_OK);
	fill("web/d0", 0, 4 * MIB, 3);
	cr_assert_eq(create("prod", "s3"), VMIMG_OK);
	fill("web/d0", 0, 4096, 4);
	cr_assert_eq(create("prod", "s4"), VMIMG_OK);
	layers = layers_of("web/d0");
	delete ("prod@s3");
	expect_ok(vmimg_settle(svc, NULL, VMIMG_SETTLE_WAIT, UINT64_MAX, NULL, &err));
	cr_expect_eq(layers_of("web/d0"), layers, "4 KiB do not pay for 4 MiB");
	expect_ok(vmimg_settle(svc, NULL, VMIMG_SETTLE_WAIT | VMIMG_SETTLE_WHOLE, UINT64_MAX, NULL,
			       &err));
	cr_expect_eq(layers_of("web/d0"), layers - 1);
	expect_filled("web/d0", 0, 4096, 4);
	expect_filled("web/d0", 4096, 4 * MIB - 4096, 3);
	expect_filled("prod@s2/web/d0", 0, 4096, 2);
}

static int64_t mib_of(const char *disk)
{
	json_t *doc = describe(VMIMG_KIND_DISK, disk);
	int64_t mib = number(doc, "allocated") / MIB;

	json_decref(doc);
	return mib;
}

/* A disk with 100 MiB, and 80 MiB of the same places written since its only snapshot, which goes. */
static void make_hiding_head(void)
{
	make_vm("web", 0);
	make_disk("web/d0", 128 * MIB, false);
	make_collection("prod", "web", NULL);
	expect_ok(vmimg_set_fold_rate(svc, 0, &err));
	fill("web/d0", 0, 100 * MIB, 1);
	cr_assert_eq(create("prod", "s1"), VMIMG_OK);
	fill("web/d0", 10 * MIB, 80 * MIB, 2);
	cr_assert_geq(mib_of("web/d0"), 180);
	delete ("prod@s1");
}

/* FO-19: there is nobody whose snapshot would seal it. */
Test(api_fold, settle_folds_a_head_that_hides_much)
{
	make_hiding_head();
	expect_ok(vmimg_settle(svc, "prod", VMIMG_SETTLE_WAIT, UINT64_MAX, NULL, &err));
	cr_expect_leq(mib_of("web/d0"), 110, "%d MiB", (int)mib_of("web/d0"));
	expect_filled("web/d0", 0, 10 * MIB, 1);
	expect_filled("web/d0", 10 * MIB, 80 * MIB, 2);
	expect_filled("web/d0", 90 * MIB, 10 * MIB, 1);
}

/* FO-19 */
Test(api_fold, a_head_that_hides_much_is_folded_in_peace)
{
	make_hiding_head();
	for (int i = 0; i < 600 && mib_of("web/d0") > 110; i++)
		nap(100);
	cr_expect_leq(mib_of("web/d0"), 110, "%d MiB", (int)mib_of("web/d0"));
	expect_filled("web/d0", 10 * MIB, 80 * MIB, 2);
	expect_filled("web/d0", 90 * MIB, 10 * MIB, 1);
}

/* FO-19: a cut for little does not pay, but for who asks for all of it. */
Test(api_fold, whole_folds_any_head_but_one_above_a_snapshot)
{
	int64_t mib, layers;

	make_vm("web", 1);
	make_collection("prod", "web", NULL);
	fill("web/d0", 0, 6 * MIB, 1);
	cr_assert_eq(create("prod", "s1"), VMIMG_OK);
	fill("web/d0", 0, 6 * MIB, 2);
	layers = layers_of("web/d0");
	expect_ok(vmimg_settle(svc, NULL, VMIMG_SETTLE_WAIT | VMIMG_SETTLE_WHOLE, UINT64_MAX, NULL,
			       &err));
	cr_expect_eq(layers_of("web/d0"), layers, "the snapshot is still there");
	delete ("prod@s1");
	expect_ok(vmimg_settle(svc, NULL, VMIMG_SETTLE_WAIT, UINT64_MAX, NULL, &err));
	mib = mib_of("web/d0");
	cr_expect_geq(mib, 12);
	expect_ok(vmimg_settle(svc, NULL, VMIMG_SETTLE_WAIT | VMIMG_SETTLE_WHOLE, UINT64_MAX, NULL,
			       &err));
	cr_expect_leq(mib_of("web/d0"), mib - 5);
	expect_filled("web/d0", 0, 6 * MIB, 2);
}

Test(api_fold, settle_refuses_what_is_not_there)
{
	make_vm("web", 1);
	expect_error(vmimg_settle(NULL, NULL, 0, 0, NULL, &err), VMIMG_INVALID_PARAMETER);
	expect_error(vmimg_settle(svc, "web/d9", 0, 0, NULL, &err), VMIMG_INVALID_PARAMETER);
	expect_error(vmimg_settle(svc, "prod", 0, 0, NULL, &err), VMIMG_INVALID_PARAMETER);
	expect_error(vmimg_settle(svc, "a b", 0, 0, NULL, &err), VMIMG_INVALID_PARAMETER);
	expect_error(vmimg_settle(svc, NULL, 4, 0, NULL, &err), VMIMG_INVALID_PARAMETER);
	expect_error(vmimg_set_fold_rate(NULL, 0, &err), -EINVAL);
	make_collection("empty", NULL);
	expect_ok(vmimg_settle(svc, "empty", VMIMG_SETTLE_WAIT, UINT64_MAX, NULL, &err));
}

/* FO-19: the folds that a deletion brings take layers away while whoever settles looks at the heads. */
Test(api_fold, heads_are_looked_at_while_others_are_folded)
{
	enum { DISKS = 8, ROUNDS = 12 };
	char name[32];

	make_vm("web", DISKS);
	make_collection("prod", "web", NULL);
	for (unsigned i = 0; i < ROUNDS; i++) {
		for (unsigned d = 0; d < DISKS; d++) {
			snprintf(name, sizeof(name), "web/d%u", d);
			fill(name, i * 65536, 65536, 1 + i);
		}
		expect_ok(create("prod", "s"));
		delete ("prod@s");
		expect_ok(vmimg_settle(svc, NULL, VMIMG_SETTLE_WAIT | VMIMG_SETTLE_WHOLE,
				       UINT64_MAX, NULL, &err));
	}
	for (unsigned d = 0; d < DISKS; d++) {
		snprintf(name, sizeof(name), "web/d%u", d);
		for (unsigned i = 0; i < ROUNDS; i++)
			expect_filled(name, i * 65536, 65536, 1 + i);
	}
}

/* The process dies in the middle of a fold, and of a job that waits for it. */
static void die_with_a_fold(void)
{
	expect_ok(vmimg_open(store_dir, NULL, &err, &svc));
	expect_ok(vmimg_set_fold_rate(svc, 65536, &err));
	delete ("prod@s1");
	cr_assert_eq(vmimg_settle(svc, NULL, 0, UINT64_MAX, NULL, &err), VMIMG_JOB_STARTED);
	vmimg_job_put(running_fold());
	raise(SIGKILL);
}

static void expect_interrupted(unsigned type)
{
	struct vmimg_job *job = job_of_type(type);
	struct vmimg_job_info info;

	cr_assert_not_null(job, "job of type %u", type);
	vmimg_job_info(job, &info);
	cr_expect_eq(info.job_state, VMIMG_JOB_EXCEPTION);
	cr_expect_neq(info.error_description[0], 0);
	cr_expect_str_eq(info.job_status, "interrupted");
	cr_expect_not(info.cancellable);
	vmimg_job_put(job);
}

/* JB-9, FO-8 */
Test(api_fold, a_crash_ends_the_jobs_and_the_next_open_folds)
{
	int64_t layers;
	int status;
	pid_t pid;

	make_chain();
	layers = layers_of("web/d0");
	fixture_close();
	pid = fork();
	if (pid == 0)
		die_with_a_fold();
	cr_assert_eq(waitpid(pid, &status, 0), pid);
	cr_assert(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
	while (vmimg_open(store_dir, NULL, &err, &svc) == -EBUSY) /* T19 */
		nap(1);
	cr_assert_not_null(svc, "%s", err.message);
	err = (struct vmimg_error){0};
	expect_interrupted(VMIMG_JOB_TYPE_SETTLE);
	expect_ok(vmimg_settle(svc, NULL, VMIMG_SETTLE_WAIT, UINT64_MAX, NULL, &err));
	cr_expect_eq(layers_of("web/d0"), layers - 1);
	expect_content();
}

/* CP-8: a service that is to be closed soon does not wait for what may take long. */
Test(api_fold, jobs_are_cancelled_all_together)
{
	struct vmimg_job *one = NULL, *other = NULL, *fold;

	make_chain();
	expect_ok(vmimg_set_fold_rate(svc, 65536, &err));
	delete ("prod@s1");
	fold = running_fold();
	cr_assert_eq(vmimg_settle(svc, NULL, 0, UINT64_MAX, &one, &err), VMIMG_JOB_STARTED);
	cr_assert_eq(vmimg_settle(svc, "prod", 0, UINT64_MAX, &other, &err), VMIMG_JOB_STARTED);
	vmimg_cancel_jobs(svc);
	vmimg_cancel_jobs(NULL);
	expect_state(one, VMIMG_JOB_TERMINATED);
	expect_state(other, VMIMG_JOB_TERMINATED);
	vmimg_job_put(one);
	vmimg_job_put(other);
	fixture_reopen();
	expect_state(fold, VMIMG_JOB_TERMINATED);
	vmimg_job_put(fold);
	expect_content();
}

/* JB-9, FO-8: a store that is closed in the middle of a fold leaves neither a file nor a job. */
Test(api_fold, a_close_ends_the_fold_and_the_next_open_folds)
{
	struct vmimg_job_info info;
	struct vmimg_job *job;
	int64_t layers;

	make_chain();
	layers = layers_of("web/d0");
	expect_ok(vmimg_set_fold_rate(svc, 65536, &err));
	delete ("prod@s1");
	vmimg_job_put(running_fold());
	fixture_reopen();
	expect_ok(vmimg_settle(svc, NULL, VMIMG_SETTLE_WAIT, UINT64_MAX, NULL, &err));
	cr_expect_eq(layers_of("web/d0"), layers - 1);
	job = job_of_type(VMIMG_JOB_TYPE_MERGE);
	vmimg_job_info(job, &info);
	cr_expect_eq(info.job_state, VMIMG_JOB_COMPLETED);
	vmimg_job_put(job);
	expect_content();
}
