/* SPDX-License-Identifier: MIT */
/*
 * work.h - verbs whose call is a job: started, waited for with a bar, cancelled by an interrupt; or, with
 * --async, left to the server, or on an idle store to a process of its own. work.c says how.
 */
#ifndef CLI_WORK_H
#define CLI_WORK_H

#include "cli/output.h"
#include "cli/session.h"

struct cli_work {
	const char *operation; /* of the bar */
	const char *method;    /* its result has "Job", an instance id */
	json_t *params;        /* taken */
	/* Adds what only the store can tell, once it is there; NULL: nothing. */
	void (*prepare)(struct cli_session *s, const void *arg, json_t *params);
	/*
	 * Whose space is to be given back afterwards (cli_settle(); NULL: nobody's), and how fast folds
	 * and seals go on an idle store (bytes a second; 0: no limit).
	 */
	const char *settle;
	uint64_t rate_limit;
	/*
	 * What --async prints of the method's result, as a document, which gets a "pid" where a process
	 * of its own goes on. NULL: {"return_value", "job": {...}}.
	 */
	json_t *(*started)(const void *arg, const json_t *result);
	/* The same for humans; NULL: "job ID". */
	void (*print_started)(const void *arg, const json_t *answer);
	/* Prints what came of a job that completed; the exit status. */
	int (*done)(struct cli *cli, struct cli_session *s, const void *arg, const json_t *result,
		    const json_t *job);
	const void *arg;
};

/* Runs it: the exit status. */
int cli_run_work(struct cli *cli, const struct cli_work *work, bool async);

/*
 * On an idle store, after something was deleted: waits with a bar until the space of @name (a collection,
 * VM/DISK, or NULL: all) is given back, at most at @rate_limit bytes a second (0: no limit); an interrupt
 * leaves it to the next one. A server does it by itself. Never fails: what stands in its way is told.
 */
void cli_settle(struct cli *cli, struct cli_session *s, const char *name, uint64_t rate_limit);

/*
 * Until the job's end, @deadline_ns or an interrupt: 0, -ETIMEDOUT, -EINTR, or -EPROTO with *@error,
 * the error's document. With @cancels an interrupt asks for the job's end, once, and waits for that.
 */
int cli_wait_job(struct cli *cli, struct cli_session *s, const char *id, const char *operation,
		 uint64_t deadline_ns, bool cancels, json_t **job, json_t **error);
/* {"id", "state", "percent_complete", "error_code"} of a job's document. */
json_t *cli_job_document(const json_t *job);
/* The error of a job that did not complete, as the synchronous call's: printed; CLI_FAILURE. */
int cli_fail_job(struct cli *cli, const json_t *job);

#endif
