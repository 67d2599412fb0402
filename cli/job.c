/* SPDX-License-Identifier: MIT */
/*
 * job.c - the verbs of jobs. A job runs in the process that has the store. A server is asked about it; of
 * another process's job these verbs hear once they have the store themselves, which `wait` waits for as
 * long as it may.
 */
#include "cli/options.h"
#include "cli/output.h"
#include "cli/session.h"
#include "cli/work.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int run_list(struct cli *cli, int argc, char **argv)
{
	static const struct cli_column columns[] = {
		{"JOB", "instance_id", CLI_AS_TEXT},
		{"TYPE", "job_type", CLI_AS_JOB_TYPE},
		{"NAME", "name", CLI_AS_TEXT},
		{"STATE", "job_state", CLI_AS_JOB_STATE},
		{"%", "percent_complete", CLI_AS_TEXT},
		{"ERROR", "error_code", CLI_AS_TEXT},
		{"SUBMITTED", "time_submitted", CLI_AS_TIME},
		{"ELAPSED", "elapsed_time", CLI_AS_DURATION},
		{"STATUS", "job_status", CLI_AS_TEXT},
		{0},
	};

	cli_parse(cli, NULL, argc, argv);
	return cli_list(cli, "job", NULL, columns);
}

static int run_show(struct cli *cli, int argc, char **argv)
{
	cli_parse(cli, NULL, argc, argv);
	return cli_show(cli, "job", argv[0]);
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
	json_t *job = NULL, *error = NULL;
	struct cli_session *s = NULL;
	int r;

	cli_parse(cli, options, argc, argv);
	cli_catch_interrupts();
	if (timeout_s < UINT64_MAX / 2000000000)
		deadline = cli_now_ns() + timeout_s * 1000000000;
	/* A process that is no server has the store until the job's end. */
	cli->lock_timeout_ns = deadline == UINT64_MAX ? UINT64_MAX : timeout_s * 1000000000;
	if (cli_begin(cli, NULL, &s))
		return CLI_FAILURE;
	r = cli_wait_job(cli, s, argv[0], "job", deadline, false, &job, &error);
	if (r == -EPROTO)
		return cli_end(cli, s, cli_fail_call(cli, error, NULL));
	if (r == -ETIMEDOUT)
		return cli_end(cli, s,
			       cli_error(cli, r, "job %s goes on: it has not ended within %llu s",
					 argv[0], (unsigned long long)timeout_s));
	if (r < 0)
		return cli_end(cli, s,
			       cli_error(cli, r, "job %s goes on: not waited for any longer",
					 argv[0]));
	return cli_end(cli, s, print_ended(cli, argv[0], job));
}

static int run_cancel(struct cli *cli, int argc, char **argv)
{
	bool kill = false;
	const struct cli_option options[] = {
		{"kill", 0, CLI_FLAG, &kill, NULL, "request Kill instead of Terminate"},
		{0},
	};
	json_t *job = NULL, *error = NULL;
	struct cli_session *s = NULL;

	cli_parse(cli, options, argc, argv);
	if (cli_begin(cli, NULL, &s))
		return CLI_FAILURE;
	if (cli_call(s, "RequestStateChange",
		     json_pack("{s:s, s:i}", "Job", argv[0], "RequestedState",
			       kill ? VMIMG_REQUEST_KILL : VMIMG_REQUEST_TERMINATE),
		     NULL))
		return cli_end(cli, s, CLI_FAILURE);
	if (cli_wait_job(cli, s, argv[0], "job", UINT64_MAX, false, &job, &error) < 0)
		return cli_end(cli, s, error ? cli_fail_call(cli, error, NULL) : CLI_FAILURE);
	return cli_end(cli, s, cli_print(cli, job));
}

/* --- rate --- */

/* "0" and "none": no limit. */
static uint64_t parse_rate(struct cli *cli, const char *text)
{
	char number[32];
	size_t len = strcspn(text, "/");
	uint64_t rate;

	if (!strcmp(text, "none") || !strcmp(text, "0"))
		return 0;
	snprintf(number, sizeof(number), "%.*s", (int)len, text);
	if (len >= sizeof(number) || (text[len] && strcmp(text + len, "/s") != 0) ||
	    !cli_parse_size(number, &rate) || rate > INT64_MAX)
		cli_usage_error(cli, "'%s' is no rate, expected BYTES/s or none", text);
	return rate;
}

static int run_rate(struct cli *cli, int argc, char **argv)
{
	struct cli_session *s = NULL;
	json_t *answer = NULL;
	json_int_t rate;
	int status;

	cli_parse(cli, NULL, argc, argv);
	rate = (json_int_t)parse_rate(cli, argv[1]);
	if (cli_begin(cli, NULL, &s))
		return CLI_FAILURE;
	if (!strcmp(argv[0], "folds"))
		status = cli_call(s, "SetFoldRate", json_pack("{s:I}", "BytesPerSecond", rate),
				  NULL);
	else
		status = cli_call(s, "SetJobRate",
				  json_pack("{s:s, s:I}", "Job", argv[0], "BytesPerSecond", rate),
				  &answer);
	if (!status)
		status = cli_print_made(cli,
					answer ? answer : json_pack("{s:I}", "fold_rate", rate));
	return cli_end(cli, s, status);
}

/* --- settle --- */

static int print_settled(struct cli *cli, struct cli_session *s, const void *arg,
			 const json_t *result, const json_t *job)
{
	(void)s;
	(void)arg;
	(void)result;
	return cli_print_made(cli, json_incref((json_t *)job));
}

static int run_settle(struct cli *cli, int argc, char **argv)
{
	struct cli_work work = {.operation = "space", .method = "Settle", .done = print_settled};
	bool async = false, whole = false;
	uint64_t timeout_s = UINT64_MAX;
	const struct cli_option options[] = {
		{"whole", 0, CLI_FLAG, &whole, NULL, "also joins what does not pay yet"},
		{"timeout", 0, CLI_COUNT, &timeout_s, "SECONDS", "give up waiting after so long"},
		{"rate-limit", 0, CLI_RATE, &work.rate_limit, "BYTES/s",
		 "idle store: at most so fast"},
		{"async", 0, CLI_FLAG, &async, NULL, "return at once"},
		{0},
	};
	int words = cli_parse(cli, options, argc, argv);

	work.params = json_pack("{s:b}", "Whole", (int)whole);
	if (words)
		json_object_set_new(work.params, "Name", json_string(argv[0]));
	if (timeout_s <= UINT32_MAX / 1000)
		json_object_set_new(work.params, "Timeout",
				    json_integer((json_int_t)timeout_s * 1000));
	return cli_run_work(cli, &work, async);
}

const struct cli_verb cli_job_verbs[] = {
	{"job list", "", "List the jobs", 0, 0, run_list, 0},
	{"job show", "ID", "Show a job's properties", 1, 1, run_show, 0},
	{"job wait", "ID", "Wait for a job's end; 0 when it completed", 1, 1, run_wait, 0},
	{"job cancel", "ID", "Cancel a job that has not come to its commit", 1, 1, run_cancel, 0},
	{"job rate", "ID|folds BYTES/s|none", "Change the limit of a job, or of folds to come", 2,
	 2, run_rate, 0},
	{"settle", "[VM/DISK|COLLECTION]", "Wait until deleted snapshots' space is given back", 0,
	 1, run_settle, 0},
	{0},
};
