/* SPDX-License-Identifier: MIT */
/*
 * snapshot.c - the verbs of snapshots. `snapshot create` starts a job and waits for it here, so that an
 * interrupt can cancel it; with --async a process of its own has the store and the job, and the command
 * returns once that one has told the job's id.
 */
#include "cli/options.h"
#include "cli/output.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define POLL_NS 20000000u

/* What `snapshot create` was asked for. */
struct request {
	char collection[VMIMG_NAME_MAX + 1];
	struct vmimg_ref result; /* .name: COLLECTION@NAME, or "" */
	uint16_t type;
	char *settings; /* merged, malloced */
	bool async, dry_run;
};

/* --- the request --- */

/* Only takes the two apart; whether they are names is the library's to say. */
static void parse_target(struct cli *cli, const char *target, struct request *req)
{
	size_t len = strcspn(target, "@");

	if (len >= sizeof(req->collection) || strlen(target) >= sizeof(req->result.name))
		exit(cli_error(cli, VMIMG_INVALID_PARAMETER, "'%s' is too long for COLLECTION@NAME",
			       target));
	memcpy(req->collection, target, len);
	if (target[len])
		memcpy(req->result.name, target, strlen(target) + 1);
}

static uint16_t parse_type(struct cli *cli, const char *type)
{
	uint64_t number;

	if (!strcmp(type, "standard"))
		return VMIMG_SNAPSHOT_STANDARD;
	if (!strcmp(type, "recovery"))
		return VMIMG_SNAPSHOT_RECOVERY;
	if (!cli_parse_count(type, &number) || number > UINT16_MAX)
		cli_usage_error(cli,
				"--type: '%s' is not standard, recovery or a number of the API",
				type);
	return (uint16_t)number;
}

/* Adds what a flag says; it may repeat --settings, not contradict them. */
static void merge(struct cli *cli, json_t *settings, const char *key, json_int_t value,
		  const char *flag)
{
	json_t *there = json_object_get(settings, key);

	if (there && (!json_is_integer(there) || json_integer_value(there) != value))
		cli_usage_error(cli, "%s contradicts \"%s\" in --settings", flag, key);
	json_object_set_new(settings, key, json_integer(value));
}

/*
 * The settings as the library takes them; what is no JSON object goes there as it is, to be refused.
 * The command does the waiting itself, so Synchronous never does.
 */
static char *merge_settings(struct cli *cli, const char *text, const char *consistency,
			    uint64_t max_stall_ms, bool async)
{
	json_t *settings = text ? json_loads(text, JSON_REJECT_DUPLICATES, NULL) : json_object();
	json_t *synchronous;
	char *merged;

	if (!json_is_object(settings)) {
		json_decref(settings);
		return strdup(text ? text : "");
	}
	if (consistency)
		merge(cli, settings, "ConsistencyLevel",
		      strcmp(consistency, "crash") ? VMIMG_CONSISTENCY_APPLICATION
						   : VMIMG_CONSISTENCY_CRASH,
		      "--consistency");
	if (max_stall_ms != UINT64_MAX && max_stall_ms > INT64_MAX)
		cli_usage_error(cli, "--max-stall: too large");
	if (max_stall_ms != UINT64_MAX)
		merge(cli, settings, "MaxStall", (json_int_t)max_stall_ms, "--max-stall");
	synchronous = json_object_get(settings, "Synchronous");
	if (json_is_boolean(synchronous)) {
		if (json_is_true(synchronous) == async)
			cli_usage_error(cli, "\"Synchronous\" in --settings contradicts %s",
					async ? "--async" : "waiting; give --async");
		json_object_del(settings, "Synchronous");
	}
	merged = json_dumps(settings, JSON_COMPACT);
	json_decref(settings);
	return merged;
}

/* --- a snapshot that is there --- */

/* @document's member, moved under @key of the answer; null where there is none. */
static void copy_member(json_t *answer, const char *key, const json_t *document, const char *from)
{
	json_t *value = json_object_get(document, from);

	json_object_set_new(answer, key, value ? json_incref(value) : json_null());
}

static json_t *job_document(const struct vmimg_job_info *info)
{
	return json_pack("{s:s, s:i, s:i, s:i}", "id", info->instance_id, "state", info->job_state,
			 "percent_complete", info->percent_complete, "error_code",
			 info->error_code);
}

static json_t *created_document(const struct vmimg_job_info *info, const json_t *snapshot)
{
	static const char *const members[] = {
		"disks",       "skipped",   "cut_ns",   "prepare_ns",
		"drain_ns",    "harden_ns", "total_ns", "max_write_latency_ns",
		"consistency", "created",
	};
	json_t *answer = json_object();

	copy_member(answer, "snapshot", snapshot, "snapshot");
	copy_member(answer, "snapshot_id", snapshot, "snapshot_id");
	copy_member(answer, "type", snapshot, "type");
	json_object_set_new(answer, "return_value", json_integer(VMIMG_OK));
	json_object_set_new(answer, "job", job_document(info));
	for (size_t i = 0; i < sizeof(members) / sizeof(members[0]); i++)
		copy_member(answer, members[i], snapshot, members[i]);
	return answer;
}

static void print_time(const json_t *document, const char *title, const char *key)
{
	json_t *value = json_object_get(document, key);
	char buf[CLI_TEXT_MAX];

	if (json_is_integer(value))
		printf("%-14s %10s\n", title,
		       cli_duration_text(buf, (uint64_t)json_integer_value(value)));
}

static int print_created(struct cli *cli, const struct vmimg_job_info *info, const json_t *snapshot)
{
	json_int_t disks = json_integer_value(json_object_get(snapshot, "disks"));
	json_int_t skipped = json_integer_value(json_object_get(snapshot, "skipped"));
	const char *name = json_string_value(json_object_get(snapshot, "snapshot"));
	const char *type = json_string_value(json_object_get(snapshot, "type_name"));

	if (cli->json)
		return cli_print_json(cli, created_document(info, snapshot));
	printf("%s: %lld disk%s, %s", name ? name : info->affected.name, (long long)disks,
	       disks == 1 ? "" : "s", type ? type : "snapshot");
	if (skipped)
		printf(", %lld skipped", (long long)skipped);
	putchar('\n');
	print_time(snapshot, "cut", "cut_ns");
	print_time(snapshot, "prepare", "prepare_ns");
	print_time(snapshot, "drain", "drain_ns");
	print_time(snapshot, "harden", "harden_ns");
	print_time(snapshot, "total", "total_ns");
	print_time(snapshot, "longest write", "max_write_latency_ns");
	return cli_finish_output(cli);
}

/* --- create, waiting --- */

/* Until the job's end. The first interrupt asks for its end; it may still complete. */
static void wait_job(struct cli *cli, struct vmimg_job *job, struct vmimg_job_info *info)
{
	struct cli_progress progress;
	bool asked = false;

	cli_progress_init(&progress, cli, "snapshot");
	while (vmimg_job_wait(job, POLL_NS) == -ETIMEDOUT) {
		struct vmimg_error ignored;

		vmimg_job_info(job, info);
		cli_progress_show(&progress, info->percent_complete, 100);
		if (cli_interrupted() && !asked) {
			vmimg_job_request_state_change(job, VMIMG_REQUEST_TERMINATE, 0, &ignored);
			asked = true;
		}
	}
	vmimg_job_info(job, info);
	if (info->job_state == VMIMG_JOB_COMPLETED)
		cli_progress_show(&progress, 100, 100);
	cli_progress_fini(&progress);
}

/* The synchronous return value of a job that did not complete (spec/api.md CS-*): 2, or 3. */
static int fail_job(struct cli *cli, const struct vmimg_job_info *info)
{
	uint32_t code = info->error_code == VMIMG_V_TIMEOUT ? VMIMG_TIMEOUT : VMIMG_FAILED;
	const char *why = info->error_description;

	return cli_error_with(cli, code, *why ? why : vmimg_strerror(code),
			      json_pack("{s:o}", "job", job_document(info)));
}

static int create_and_wait(struct cli *cli, struct request *req)
{
	struct vmimg_service *svc = NULL;
	struct vmimg_error err = {0};
	struct vmimg_job *job = NULL;
	struct vmimg_job_info info;
	char *text = NULL;
	json_t *snapshot;
	uint32_t code;
	int status;
	int r;

	cli_catch_interrupts();
	if (cli_open(cli, NULL, &svc))
		return CLI_FAILURE;
	code = vmimg_create_snapshot(svc, req->collection, req->settings, req->type, &req->result,
				     &job, &err);
	if (code != VMIMG_JOB_STARTED)
		return cli_close(cli, svc, cli_fail(cli, code, &err));
	wait_job(cli, job, &info);
	vmimg_job_put(job);
	if (info.job_state != VMIMG_JOB_COMPLETED)
		return cli_close(cli, svc, fail_job(cli, &info));
	r = vmimg_describe(svc, VMIMG_KIND_SNAPSHOT, info.affected.name, &err, &text);
	if (r < 0)
		return cli_close(cli, svc, cli_fail(cli, r, &err));
	snapshot = cli_take_json(cli, text);
	status = snapshot ? print_created(cli, &info, snapshot) : CLI_FAILURE;
	json_decref(snapshot);
	return cli_close(cli, svc, status);
}

static int check_only(struct cli *cli, struct request *req)
{
	struct vmimg_service *svc = NULL;
	struct vmimg_error err = {0};
	const char *name = *req->result.name ? req->result.name : NULL;
	uint32_t code;
	int status = CLI_OK;

	if (cli_open(cli, NULL, &svc))
		return CLI_FAILURE;
	code = vmimg_check_snapshot(svc, req->collection, req->settings, req->type, name, &err);
	if (code != VMIMG_OK)
		status = cli_fail(cli, code, &err);
	else if (cli->json)
		status = cli_print_json(cli, json_pack("{s:s, s:i, s:b, s:i}", "collection",
						       req->collection, "type", req->type,
						       "dry_run", 1, "return_value", 0));
	else
		printf("%s: a snapshot could be created now\n", req->collection);
	return cli_close(cli, svc, status ? status : cli_finish_output(cli));
}

/* --- create --async --- */

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

static void tell(int pipe, json_t *document)
{
	if (document)
		json_dumpfd(document, pipe, JSON_COMPACT);
	json_decref(document);
	close(pipe);
}

/* The background process: the store, the job, one answer, and the job's end. */
static int run_background(struct cli *cli, struct request *req, int pipe)
{
	struct vmimg_service *svc = NULL;
	struct vmimg_error err = {0};
	struct vmimg_job *job = NULL;
	struct vmimg_job_info info;
	uint32_t code;
	int r = detach_process(&pipe);

	cli->no_progress = true;
	cli->progress_fd = -1;
	cli_catch_interrupts();
	if (r >= 0)
		r = cli_open_quietly(cli, NULL, &err, &svc);
	if (r < 0) {
		tell(pipe,
		     json_pack("{s:o}", "error",
			       cli_error_document(r, *err.message ? err.message : strerror(-r))));
		return CLI_FAILURE;
	}
	code = vmimg_create_snapshot(svc, req->collection, req->settings, req->type, &req->result,
				     &job, &err);
	if (code != VMIMG_JOB_STARTED) {
		tell(pipe,
		     json_pack("{s:o}", "error",
			       cli_error_document(code, *err.message ? err.message
								     : vmimg_strerror(code))));
		vmimg_close(svc);
		return CLI_FAILURE;
	}
	vmimg_job_info(job, &info);
	tell(pipe, json_pack("{s:s, s:i, s:i, s:o, s:i}", "collection", req->collection, "type",
			     req->type, "return_value", (int)code, "job", job_document(&info),
			     "pid", (int)getpid()));
	wait_job(cli, job, &info);
	vmimg_job_put(job);
	return vmimg_close(svc) < 0 ? CLI_FAILURE : CLI_OK;
}

static int print_answer(struct cli *cli, FILE *in, pid_t child)
{
	json_error_t why;
	json_t *answer = json_loadf(in, 0, &why);
	json_t *error = json_object_get(answer, "error");
	int status;

	if (!answer) {
		waitpid(child, NULL, 0);
		return cli_error(cli, -ECHILD, "the background process ended without an answer");
	}
	if (error) {
		const char *message = json_string_value(json_object_get(error, "message"));

		status = CLI_FAILURE;
		if (!cli->json) {
			fprintf(stderr, "vmimg: %s\n", message ? message : "unknown error");
		} else {
			json_dumpf(answer, stderr, 0);
			fputc('\n', stderr);
		}
		json_decref(answer);
		return status;
	}
	if (cli->json)
		return cli_print_json(cli, answer);
	printf("job %s\n",
	       json_string_value(json_object_get(json_object_get(answer, "job"), "id")));
	json_decref(answer);
	return cli_finish_output(cli);
}

/* Forks before the store is opened: its lock, rings and threads belong to the process that opens. */
static int create_in_background(struct cli *cli, struct request *req)
{
	int ends[2];
	int status;
	pid_t child;
	FILE *in;

	if (!cli->store)
		cli_usage_error(cli, "no store: give --store=DIR or set VMIMG_STORE");
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
		_exit(run_background(cli, req, ends[1]));
	}
	close(ends[1]);
	in = fdopen(ends[0], "r");
	if (!in) {
		close(ends[0]);
		return cli_error(cli, -ENOMEM, "out of memory");
	}
	status = print_answer(cli, in, child);
	fclose(in);
	return status;
}

static int run_create(struct cli *cli, int argc, char **argv)
{
	const char *type = "standard", *consistency = NULL, *settings = NULL;
	uint64_t max_stall = UINT64_MAX;
	struct request req = {0};
	const struct cli_option options[] = {
		{"type", 0, CLI_TEXT, &type, "standard|recovery",
		 "SnapshotType (default: standard)"},
		{"consistency", 0, CLI_CHOICE, &consistency, "crash|application",
		 "ConsistencyLevel"},
		{"settings", 0, CLI_TEXT, &settings, "JSON",
		 "SnapshotSettings, joined with the options"},
		{"max-stall", 0, CLI_COUNT, &max_stall, "MS", "at most so long for freeze and cut"},
		{"dry-run", 0, CLI_FLAG, &req.dry_run, NULL,
		 "only tell whether it could be created"},
		{"async", 0, CLI_FLAG, &req.async, NULL,
		 "return when the job runs; do not wait for it"},
		{0},
	};
	int status;

	cli_parse(cli, options, argc, argv);
	parse_target(cli, argv[0], &req);
	req.type = parse_type(cli, type);
	if (req.async && req.dry_run)
		cli_usage_error(cli, "--async and --dry-run exclude each other");
	req.settings = merge_settings(cli, settings, consistency, max_stall, req.async);
	if (!req.settings)
		return cli_error(cli, -ENOMEM, "out of memory");
	if (req.dry_run)
		status = check_only(cli, &req);
	else if (req.async)
		status = create_in_background(cli, &req);
	else
		status = create_and_wait(cli, &req);
	free(req.settings);
	return status;
}

/* --- list and show --- */

static int run_list(struct cli *cli, int argc, char **argv)
{
	static const struct cli_column columns[] = {
		{"SNAPSHOT", "snapshot", CLI_AS_TEXT},
		{"TYPE", "type_name", CLI_AS_TEXT},
		{"CONSISTENCY", "consistency", CLI_AS_CONSISTENCY},
		{"DISKS", "disks", CLI_AS_TEXT},
		{"STATE", "state", CLI_AS_TEXT},
		{"CUT", "cut_ns", CLI_AS_DURATION},
		{"TOTAL", "total_ns", CLI_AS_DURATION},
		{"CREATED", "created", CLI_AS_TIME},
		{0},
	};
	int words = cli_parse(cli, NULL, argc, argv);

	return cli_list(cli, VMIMG_KIND_SNAPSHOT, words ? argv[0] : NULL, columns);
}

static int run_show(struct cli *cli, int argc, char **argv)
{
	cli_parse(cli, NULL, argc, argv);
	return cli_show(cli, VMIMG_KIND_SNAPSHOT, argv[0]);
}

const struct cli_verb cli_snapshot_verbs[] = {
	{"snapshot create", "COLLECTION[@NAME]",
	 "Snapshot every disk of every member at one instant", 1, 1, run_create, 0},
	{"snapshot list", "[COLLECTION]", "List the snapshots", 0, 1, run_list, 0},
	{"snapshot show", "COLLECTION@NAME", "Show a snapshot and its disks", 1, 1, run_show, 0},
	{0},
};
