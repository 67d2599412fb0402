/* SPDX-License-Identifier: MIT */
/*
 * job.c - the verbs of jobs. A job runs in the process that has the store; these verbs see it once they
 * have the store themselves, which `wait` waits for as long as it may.
 */
#include "cli/options.h"
#include "cli/output.h"

#include <errno.h>
#include <string.h>

#define POLL_NS 100000000u

static int run_list(struct cli *cli, int argc, char **argv)
{
	static const struct cli_column columns[] = {
		{"JOB", "instance_id", CLI_AS_TEXT},   {"NAME", "name", CLI_AS_TEXT},
		{"STATE", "job_state", CLI_AS_TEXT},   {"%", "percent_complete", CLI_AS_TEXT},
		{"ERROR", "error_code", CLI_AS_TEXT},  {"SUBMITTED", "time_submitted", CLI_AS_TIME},
		{"STATUS", "job_status", CLI_AS_TEXT}, {0},
	};

	cli_parse(cli, NULL, argc, argv);
	return cli_list(cli, VMIMG_KIND_JOB, NULL, columns);
}

static int run_show(struct cli *cli, int argc, char **argv)
{
	cli_parse(cli, NULL, argc, argv);
	return cli_show(cli, VMIMG_KIND_JOB, argv[0]);
}

static int describe_job(struct cli *cli, struct vmimg_service *svc, const char *id)
{
	struct vmimg_error err = {0};
	char *text = NULL;
	json_t *document;
	int r = vmimg_describe(svc, VMIMG_KIND_JOB, id, &err, &text);

	if (r < 0)
		return cli_fail(cli, r, &err);
	document = cli_take_json(cli, text);
	return document ? cli_print(cli, document) : CLI_FAILURE;
}

/* Until the job's end, @deadline_ns or an interrupt: 0, -ETIMEDOUT or -EINTR. */
static int wait_job(struct cli *cli, struct vmimg_job *job, uint64_t deadline_ns)
{
	struct cli_progress progress;
	struct vmimg_job_info info;
	int r;

	cli_progress_init(&progress, cli, "job");
	while ((r = vmimg_job_wait(job, POLL_NS)) == -ETIMEDOUT) {
		if (cli_interrupted())
			r = -EINTR;
		if (r == -EINTR || cli_now_ns() >= deadline_ns)
			break;
		vmimg_job_info(job, &info);
		cli_progress_show(&progress, info.percent_complete, 100);
	}
	cli_progress_fini(&progress);
	return r;
}

static int run_wait(struct cli *cli, int argc, char **argv)
{
	uint64_t timeout_s = UINT64_MAX;
	const struct cli_option options[] = {
		{"timeout", 0, CLI_COUNT, &timeout_s, "SECONDS", "give up after so long"},
		{0},
	};
	uint64_t deadline = UINT64_MAX;
	struct vmimg_service *svc = NULL;
	struct vmimg_error err = {0};
	struct vmimg_job *job = NULL;
	struct vmimg_job_info info;
	int status;
	int r;

	cli_parse(cli, options, argc, argv);
	cli_catch_interrupts();
	if (timeout_s < UINT64_MAX / 2000000000)
		deadline = cli_now_ns() + timeout_s * 1000000000;
	/* The process that runs the job has the store until the job's end. */
	cli->lock_timeout_ns = deadline == UINT64_MAX ? UINT64_MAX : timeout_s * 1000000000;
	if (cli_open(cli, NULL, &svc))
		return CLI_FAILURE;
	r = vmimg_job_get(svc, argv[0], &err, &job);
	if (r < 0)
		return cli_close(cli, svc, cli_fail(cli, r, &err));
	r = wait_job(cli, job, deadline);
	vmimg_job_info(job, &info);
	vmimg_job_put(job);
	if (r < 0)
		return cli_close(cli, svc,
				 cli_error(cli, r, "job %s has not ended: %s", argv[0],
					   strerror(-r)));
	status = describe_job(cli, svc, argv[0]);
	if (!status && info.job_state != VMIMG_JOB_COMPLETED)
		status = cli_error(cli, info.error_code, "job %s failed: %s", argv[0],
				   info.error_description);
	return cli_close(cli, svc, status);
}

static int run_cancel(struct cli *cli, int argc, char **argv)
{
	bool kill = false;
	const struct cli_option options[] = {
		{"kill", 0, CLI_FLAG, &kill, NULL, "request Kill instead of Terminate"},
		{0},
	};
	struct vmimg_service *svc = NULL;
	struct vmimg_error err = {0};
	struct vmimg_job *job = NULL;
	uint32_t answer;
	int status;
	int r;

	cli_parse(cli, options, argc, argv);
	if (cli_open(cli, NULL, &svc))
		return CLI_FAILURE;
	r = vmimg_job_get(svc, argv[0], &err, &job);
	if (r < 0)
		return cli_close(cli, svc, cli_fail(cli, r, &err));
	answer = vmimg_job_request_state_change(job,
						kill ? VMIMG_REQUEST_KILL : VMIMG_REQUEST_TERMINATE,
						0, &err);
	if (answer == VMIMG_REQUEST_OK || answer == VMIMG_REQUEST_TRANSITION_STARTED) {
		vmimg_job_wait(job, UINT64_MAX);
		status = describe_job(cli, svc, argv[0]);
	} else if (err.message[0]) {
		status = cli_fail(cli, answer, &err);
	} else {
		status = cli_error(cli, answer, "job %s cannot be cancelled (%u)", argv[0], answer);
	}
	vmimg_job_put(job);
	return cli_close(cli, svc, status);
}

const struct cli_verb cli_job_verbs[] = {
	{"job list", "", "List the jobs", 0, 0, run_list, 0},
	{"job show", "ID", "Show a job's properties", 1, 1, run_show, 0},
	{"job wait", "ID", "Wait for a job's end; 0 when it completed", 1, 1, run_wait, 0},
	{"job cancel", "ID", "Cancel a job that has not come to its cut", 1, 1, run_cancel, 0},
	{0},
};
