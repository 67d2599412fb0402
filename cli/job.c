/* SPDX-License-Identifier: MIT */
/*
 * job.c - the verbs of jobs. A job runs in the process that has the store. A server is asked about it; of
 * another process's job these verbs hear once they have the store themselves, which `wait` waits for as
 * long as it may.
 */
#include "cli/options.h"
#include "cli/output.h"
#include "cli/session.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define POLL_MS 100

static int run_list(struct cli *cli, int argc, char **argv)
{
	static const struct cli_column columns[] = {
		{"JOB", "instance_id", CLI_AS_TEXT},   {"NAME", "name", CLI_AS_TEXT},
		{"STATE", "job_state", CLI_AS_TEXT},   {"%", "percent_complete", CLI_AS_TEXT},
		{"ERROR", "error_code", CLI_AS_TEXT},  {"SUBMITTED", "time_submitted", CLI_AS_TIME},
		{"STATUS", "job_status", CLI_AS_TEXT}, {0},
	};

	cli_parse(cli, NULL, argc, argv);
	return cli_list(cli, "job", NULL, columns);
}

static int run_show(struct cli *cli, int argc, char **argv)
{
	cli_parse(cli, NULL, argc, argv);
	return cli_show(cli, "job", argv[0]);
}

/* The job's document, now or when it has ended within POLL_MS. */
static int ask_job(struct cli_session *s, const char *id, json_t **ret)
{
	return cli_call(s, "WaitJob", json_pack("{s:s, s:i}", "Job", id, "Timeout", POLL_MS), ret);
}

/* Until the job's end, @deadline_ns or an interrupt: 0, -ETIMEDOUT or -EINTR. -EPROTO: printed. */
static int wait_job(struct cli *cli, struct cli_session *s, const char *id, uint64_t deadline_ns,
		    json_t **ret)
{
	struct cli_progress progress;
	json_t *job = NULL;
	int r = 0;

	cli_progress_init(&progress, cli, "job");
	while (r == 0) {
		json_decref(job);
		job = NULL;
		if (ask_job(s, id, &job)) {
			r = -EPROTO;
			break;
		}
		if (cli_job_state(job) >= VMIMG_JOB_COMPLETED)
			break;
		cli_progress_show(&progress, cli_number(job, "percent_complete"), 100);
		if (cli_interrupted())
			r = -EINTR;
		else if (cli_now_ns() >= deadline_ns)
			r = -ETIMEDOUT;
	}
	cli_progress_fini(&progress);
	if (r == 0)
		*ret = job;
	else
		json_decref(job);
	return r;
}

/* Takes @job. */
static int print_ended(struct cli *cli, const char *id, json_t *job)
{
	uint64_t state = cli_job_state(job), code = cli_number(job, "error_code");
	const char *why = json_string_value(json_object_get(job, "error_description"));
	char *text = strdup(why ? why : "");
	int status = cli_print(cli, job);

	if (!status && state != VMIMG_JOB_COMPLETED)
		status = cli_error(cli, (int64_t)code, "job %s failed: %s", id, text ? text : "");
	free(text);
	return status;
}

static int run_wait(struct cli *cli, int argc, char **argv)
{
	uint64_t timeout_s = UINT64_MAX;
	const struct cli_option options[] = {
		{"timeout", 0, CLI_COUNT, &timeout_s, "SECONDS", "give up after so long"},
		{0},
	};
	uint64_t deadline = UINT64_MAX;
	struct cli_session *s = NULL;
	json_t *job = NULL;
	int r;

	cli_parse(cli, options, argc, argv);
	cli_catch_interrupts();
	if (timeout_s < UINT64_MAX / 2000000000)
		deadline = cli_now_ns() + timeout_s * 1000000000;
	/* A process that is no server has the store until the job's end. */
	cli->lock_timeout_ns = deadline == UINT64_MAX ? UINT64_MAX : timeout_s * 1000000000;
	if (cli_begin(cli, NULL, &s))
		return CLI_FAILURE;
	r = wait_job(cli, s, argv[0], deadline, &job);
	if (r == -EPROTO)
		return cli_end(cli, s, CLI_FAILURE);
	if (r < 0)
		return cli_end(cli, s,
			       cli_error(cli, r, "job %s has not ended: %s", argv[0],
					 strerror(-r)));
	return cli_end(cli, s, print_ended(cli, argv[0], job));
}

static int run_cancel(struct cli *cli, int argc, char **argv)
{
	bool kill = false;
	const struct cli_option options[] = {
		{"kill", 0, CLI_FLAG, &kill, NULL, "request Kill instead of Terminate"},
		{0},
	};
	struct cli_session *s = NULL;
	json_t *job = NULL;

	cli_parse(cli, options, argc, argv);
	if (cli_begin(cli, NULL, &s))
		return CLI_FAILURE;
	if (cli_call(s, "RequestStateChange",
		     json_pack("{s:s, s:i}", "Job", argv[0], "RequestedState",
			       kill ? VMIMG_REQUEST_KILL : VMIMG_REQUEST_TERMINATE),
		     NULL) ||
	    wait_job(cli, s, argv[0], UINT64_MAX, &job) < 0)
		return cli_end(cli, s, CLI_FAILURE);
	return cli_end(cli, s, cli_print(cli, job));
}

const struct cli_verb cli_job_verbs[] = {
	{"job list", "", "List the jobs", 0, 0, run_list, 0},
	{"job show", "ID", "Show a job's properties", 1, 1, run_show, 0},
	{"job wait", "ID", "Wait for a job's end; 0 when it completed", 1, 1, run_wait, 0},
	{"job cancel", "ID", "Cancel a job that has not come to its cut", 1, 1, run_cancel, 0},
	{0},
};
