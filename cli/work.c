/* SPDX-License-Identifier: MIT */
/*
 * work.c - verbs whose call is a job. The job runs in the process that has the store: a server, or the
 * command itself. With --async on an idle store that is a child in a session of its own, which has the
 * store's lock until the job's end and answers once, through a pipe, when the call has. What is deleted
 * on an idle store leaves space to be given back, which nobody would do after us: so that is waited for,
 * by whoever has the store, and an interrupt leaves it to the next one.
 */
#include "cli/options.h"
#include "cli/work.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define POLL_MS 20

/* --- waiting --- */

json_t *cli_job_document(const json_t *job)
{
	static const char *const names[][2] = {
		{"id", "instance_id"},
		{"state", "job_state"},
		{"percent_complete", "percent_complete"},
		{"error_code", "error_code"},
	};
	json_t *answer = json_object();

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		json_t *value = json_object_get(job, names[i][1]);

		json_object_set_new(answer, names[i][0], value ? json_incref(value) : json_null());
	}
	return answer;
}

static void show(struct cli_progress *progress, const json_t *job)
{
	const json_t *left = json_object_get(job, "remaining_time");
	uint64_t total = cli_number(job, "bytes_total");

	if (total)
		cli_progress_bytes(progress, cli_number(job, "bytes_done"), total,
				   cli_number(job, "bytes_per_second"),
				   json_is_integer(left) ? (uint64_t)json_integer_value(left)
							 : UINT64_MAX);
	else
		cli_progress_show(progress, cli_number(job, "percent_complete"), 100);
}

static void ask_for_end(struct cli_session *s, const char *id)
{
	json_decref(cli_try(s, "RequestStateChange",
			    json_pack("{s:s, s:i}", "Job", id, "RequestedState",
				      VMIMG_REQUEST_TERMINATE),
			    NULL));
}

int cli_wait_job(struct cli *cli, struct cli_session *s, const char *id, const char *operation,
		 uint64_t deadline_ns, bool cancels, json_t **ret, json_t **error)
{
	struct cli_progress progress;
	bool asked = false;
	json_t *job = NULL;
	int r = 0;

	cli_progress_init(&progress, cli, operation);
	*error = NULL;
	while (r == 0) {
		json_decref(job);
		job = NULL;
		*error = cli_try(s, "WaitJob",
				 json_pack("{s:s, s:i}", "Job", id, "Timeout", POLL_MS), &job);
		if (*error)
			r = -EPROTO;
		else if (cli_job_state(job) >= VMIMG_JOB_COMPLETED)
			break;
		if (r == 0)
			show(&progress, job);
		if (r == 0 && cli_interrupted() && !cancels)
			r = -EINTR;
		if (r == 0 && cli_interrupted() && !asked) {
			ask_for_end(s, id);
			asked = true; /* it may still complete */
		}
		if (r == 0 && cli_now_ns() >= deadline_ns)
			r = -ETIMEDOUT;
	}
	if (r == 0)
		show(&progress, job);
	cli_progress_fini(&progress);
	if (r == 0)
		*ret = job;
	else
		json_decref(job);
	return r;
}

/* The synchronous return value of a job that did not complete: 2, or 3 (CSN-11). */
int cli_fail_job(struct cli *cli, const json_t *job)
{
	const char *why = json_string_value(json_object_get(job, "error_description"));
	uint32_t code = VMIMG_FAILED;

	if (cli_number(job, "error_code") == VMIMG_V_TIMEOUT)
		code = VMIMG_TIMEOUT;
	return cli_error_with(cli, code, why && *why ? why : vmimg_strerror(code),
			      json_pack("{s:o}", "job", cli_job_document(job)));
}

/* --- space --- */

/* What an idle store's process does, as fast as it goes: no guest is there to be in the way of. */
static void fill_options(const struct cli_work *work, struct vmimg_options *ret)
{
	memset(ret, 0, sizeof(*ret));
	ret->fold_rate = work->rate_limit ? work->rate_limit : UINT64_MAX;
	ret->seal_rate = ret->fold_rate;
}

/* What was asked for is done, and space that is not given back now is later. */
void cli_settle(struct cli *cli, struct cli_session *s, const char *name, uint64_t rate_limit)
{
	json_t *started = NULL, *job = NULL, *error;
	const char *why = NULL;

	if (!cli_service(s) || cli_interrupted())
		return;
	json_decref(cli_try(s, "SetFoldRate",
			    json_pack("{s:I}", "BytesPerSecond", (json_int_t)rate_limit), NULL));
	error = cli_try(s, "Settle", json_pack("{s:s*}", "Name", name), &started);
	if (!error)
		cli_wait_job(cli, s, json_string_value(json_object_get(started, "Job")), "space",
			     UINT64_MAX, true, &job, &error);
	if (error)
		why = json_string_value(json_object_get(error, "message"));
	else if (cli_job_state(job) != VMIMG_JOB_COMPLETED)
		why = json_string_value(json_object_get(job, "error_description"));
	if (why && !cli->json)
		fprintf(stderr, "vmimg: space comes back when the store is open again: %s\n", why);
	json_decref(started);
	json_decref(job);
	json_decref(error);
}

static void prepare(const struct cli_work *work, struct cli_session *s)
{
	if (work->prepare)
		work->prepare(s, work->arg, work->params);
}

/* --- here --- */

static int run_here(struct cli *cli, const struct cli_work *work)
{
	json_t *result = NULL, *job = NULL, *error = NULL;
	struct cli_session *s = NULL;
	struct vmimg_options options;
	const char *id;
	int status;

	fill_options(work, &options);
	cli_catch_interrupts();
	if (cli_begin(cli, &options, &s))
		return CLI_FAILURE;
	prepare(work, s);
	status = cli_call(s, work->method, json_incref(work->params), &result);
	if (status)
		return cli_end(cli, s, status);
	id = json_string_value(json_object_get(result, "Job"));
	cli_wait_job(cli, s, id ? id : "", work->operation, UINT64_MAX, true, &job, &error);
	if (error)
		status = cli_fail_call(cli, error, NULL);
	else if (cli_job_state(job) != VMIMG_JOB_COMPLETED)
		status = cli_fail_job(cli, job);
	else
		status = work->done(cli, s, work->arg, result, job);
	fflush(stdout);
	if (!status && work->settle)
		cli_settle(cli, s, work->settle, work->rate_limit);
	json_decref(result);
	json_decref(job);
	return cli_end(cli, s, status);
}

/* --- elsewhere --- */

static json_t *started_document(const struct cli_work *work, const json_t *result)
{
	if (work->started)
		return work->started(work->arg, result);
	return json_pack("{s:O, s:{s:O}}", "return_value", json_object_get(result, "ReturnValue"),
			 "job", "id", json_object_get(result, "Job"));
}

/* Takes @answer. */
static int print_started(struct cli *cli, const struct cli_work *work, json_t *answer)
{
	const json_t *job = json_object_get(answer, "job");

	if (cli->json)
		return cli_print_json(cli, answer);
	if (work->print_started)
		work->print_started(work->arg, answer);
	else
		printf("job %s\n", json_string_value(json_object_get(job, "id")));
	json_decref(answer);
	return cli_finish_output(cli);
}

/* Standard streams to /dev/null, everything else but @pipe closed: nobody shall wait for us. */
static int detach_process(int *pipe)
{
	int null = open("/dev/null", O_RDWR);

	if (null < 0 || setsid() < 0)
		return -errno;
	if (dup2(null, 0) < 0 || dup2(null, 1) < 0 || dup2(null, 2) < 0 || dup2(*pipe, 3) < 0)
		return -errno;
	*pipe = 3;
	return close_range(4, ~0u, 0) < 0 ? -errno : 0;
}

/* Takes @document. */
static void tell(int pipe, json_t *document)
{
	if (document)
		json_dumpfd(document, pipe, JSON_COMPACT);
	json_decref(document);
	close(pipe);
}

/* The background process: the store, the call, one answer, and the job's end. */
static int run_background(struct cli *cli, const struct cli_work *work, int pipe)
{
	json_t *result = NULL, *answer, *error, *job = NULL;
	struct cli_session *s = NULL;
	struct vmimg_error err = {0};
	struct vmimg_options options;
	int r = detach_process(&pipe);

	fill_options(work, &options);
	cli->no_progress = true;
	cli->progress_fd = -1;
	cli->json = true; /* it has nobody to talk to */
	cli_catch_interrupts();
	if (r >= 0)
		r = cli_begin_quietly(cli, &options, &err, &s);
	if (r < 0) {
		tell(pipe,
		     json_pack("{s:o}", "error",
			       cli_error_document(r, *err.message ? err.message : strerror(-r))));
		return CLI_FAILURE;
	}
	prepare(work, s);
	error = cli_try(s, work->method, json_incref(work->params), &result);
	if (error) {
		tell(pipe, json_pack("{s:o}", "error", error));
		return cli_end(cli, s, CLI_FAILURE);
	}
	answer = started_document(work, result);
	json_object_set_new(answer, "pid", json_integer(getpid()));
	tell(pipe, answer);
	cli_wait_job(cli, s, json_string_value(json_object_get(result, "Job")), "", UINT64_MAX,
		     true, &job, &error);
	if (work->settle)
		cli_settle(cli, s, work->settle, work->rate_limit);
	json_decref(job);
	json_decref(error);
	json_decref(result);
	return cli_end(cli, s, CLI_OK);
}

static int print_answer(struct cli *cli, const struct cli_work *work, FILE *in, pid_t child)
{
	json_error_t why;
	json_t *answer = json_loadf(in, 0, &why);
	json_t *error = json_incref(json_object_get(answer, "error"));

	if (!answer) {
		waitpid(child, NULL, 0);
		return cli_error(cli, -ECHILD, "the background process ended without an answer");
	}
	if (error) {
		json_decref(answer);
		return cli_fail_call(cli, error, NULL);
	}
	return print_started(cli, work, answer);
}

/* Forks before the store is opened: its lock, rings and threads belong to the process that opens. */
static int run_in_background(struct cli *cli, const struct cli_work *work)
{
	int ends[2];
	int status;
	pid_t child;
	FILE *in;

	if (pipe2(ends, O_CLOEXEC) < 0)
		return cli_error(cli, -errno, "pipe: %s", strerror(errno));
	fflush(NULL);
	child = fork();
	if (child < 0) {
		status = cli_error(cli, -errno, "fork: %s", strerror(errno));
		close(ends[0]);
		close(ends[1]);
		return status;
	}
	if (!child) {
		close(ends[0]);
		_exit(run_background(cli, work, ends[1]));
	}
	close(ends[1]);
	in = fdopen(ends[0], "r");
	if (!in) {
		close(ends[0]);
		return cli_error(cli, -ENOMEM, "out of memory");
	}
	status = print_answer(cli, work, in, child);
	fclose(in);
	return status;
}

/* The server's job, where there is a server; the parent opens no store itself. */
static int run_elsewhere(struct cli *cli, const struct cli_work *work)
{
	struct cli_session *s = NULL;
	json_t *result = NULL;
	int status;

	if (!cli->store)
		cli_usage_error(cli, "no store: give --store=DIR or set VMIMG_STORE");
	if (cli_begin_served(cli, &s) < 0)
		return run_in_background(cli, work);
	prepare(work, s);
	status = cli_call(s, work->method, json_incref(work->params), &result);
	if (!status)
		status = print_started(cli, work, started_document(work, result));
	json_decref(result);
	return cli_end(cli, s, status);
}

int cli_run_work(struct cli *cli, const struct cli_work *work, bool async)
{
	int status = async ? run_elsewhere(cli, work) : run_here(cli, work);

	json_decref(work->params);
	return status;
}
