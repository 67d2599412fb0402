/* SPDX-License-Identifier: MIT */
/* snapshot.c - the verbs of snapshots. Creating and deleting are jobs (work.h). */
#include "cli/options.h"
#include "cli/output.h"
#include "cli/session.h"
#include "cli/work.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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

static json_t *created_document(const json_t *job, const json_t *snapshot)
{
	static const char *const members[] = {
		"disks",       "skipped",   "cut_ns",    "prepare_ns",
		"drain_ns",    "harden_ns", "total_ns",  "max_write_latency_ns",
		"consistency", "created",   "freeze_ns", "guests",
	};
	json_t *answer = json_object();

	copy_member(answer, "snapshot", snapshot, "snapshot");
	copy_member(answer, "snapshot_id", snapshot, "snapshot_id");
	copy_member(answer, "type", snapshot, "type");
	json_object_set_new(answer, "return_value", json_integer(VMIMG_OK));
	json_object_set_new(answer, "job", cli_job_document(job));
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

/* Whom the cut found frozen, and who was not and why. */
static void print_guests(const json_t *snapshot)
{
	const json_t *guest;
	size_t i;

	if (json_array_size(json_object_get(snapshot, "guests")))
		print_time(snapshot, "freeze", "freeze_ns");
	json_array_foreach (json_object_get(snapshot, "guests"), i, guest) {
		const char *vm = json_string_value(json_object_get(guest, "vm"));
		const char *error = json_string_value(json_object_get(guest, "error"));
		bool frozen = json_is_true(json_object_get(guest, "frozen"));
		char buf[CLI_TEXT_MAX];

		printf("  %s: %s", vm ? vm : "", frozen ? "frozen for " : "not frozen");
		if (frozen)
			printf("%s", cli_duration_text(buf, cli_number(guest, "frozen_ns")));
		printf("%s%s\n", error ? ": " : "", error ? error : "");
	}
	if (cli_number(snapshot, "consistency") == VMIMG_CONSISTENCY_CRASH &&
	    json_array_size(json_object_get(snapshot, "guests")))
		printf("crash-consistent only\n");
}

static int print_created(struct cli *cli, const json_t *job, const json_t *snapshot)
{
	uint64_t disks = cli_number(snapshot, "disks"), skipped = cli_number(snapshot, "skipped");
	const char *name = json_string_value(json_object_get(snapshot, "snapshot"));
	const char *type = json_string_value(json_object_get(snapshot, "type_name"));

	if (cli->json)
		return cli_print_json(cli, created_document(job, snapshot));
	printf("%s: %llu disk%s, %s", name ? name : "", (unsigned long long)disks,
	       disks == 1 ? "" : "s", type ? type : "snapshot");
	if (skipped)
		printf(", %llu skipped", (unsigned long long)skipped);
	putchar('\n');
	print_guests(snapshot);
	print_time(snapshot, "cut", "cut_ns");
	print_time(snapshot, "prepare", "prepare_ns");
	print_time(snapshot, "drain", "drain_ns");
	print_time(snapshot, "harden", "harden_ns");
	print_time(snapshot, "total", "total_ns");
	/* 0 is no write at all, not a fast one. */
	if (cli_number(snapshot, "max_write_latency_ns"))
		print_time(snapshot, "longest write", "max_write_latency_ns");
	else
		printf("%-14s %10s\n", "longest write", "none");
	return cli_finish_output(cli);
}

/* --- create, waiting --- */

static json_t *request_params(const struct request *req)
{
	json_t *params = json_pack("{s:s, s:i, s:s}", "Collection", req->collection, "SnapshotType",
				   (int)req->type, "SnapshotSettings", req->settings);

	if (req->result.name[0])
		json_object_set_new(params, "ResultingSnapshotCollection",
				    json_string(req->result.name));
	return params;
}

/* A create that completed. */
static int print_outcome(struct cli *cli, struct cli_session *s, const void *arg,
			 const json_t *result, const json_t *job)
{
	const json_t *affected = json_object_get(job, "affected_element");
	const char *name = json_string_value(json_object_get(affected, "name"));
	json_t *snapshot = NULL;
	int status;

	(void)arg;
	(void)result;
	status = cli_call(s, "Describe",
			  json_pack("{s:s, s:s*, s:b}", "Kind", "snapshot", "Name", name, "Brief",
				    1),
			  &snapshot);
	if (!status)
		status = print_created(cli, job, snapshot);
	json_decref(snapshot);
	return status;
}

static int check_only(struct cli *cli, struct request *req)
{
	struct cli_session *s = NULL;
	int status;

	if (cli_begin(cli, NULL, &s))
		return CLI_FAILURE;
	status = cli_call(s, "CheckSnapshot", request_params(req), NULL);
	if (!status && cli->json)
		status = cli_print_json(cli, json_pack("{s:s, s:i, s:b, s:i}", "collection",
						       req->collection, "type", req->type,
						       "dry_run", 1, "return_value", 0));
	else if (!status)
		printf("%s: a snapshot could be created now\n", req->collection);
	return cli_end(cli, s, status ? status : cli_finish_output(cli));
}

/* What --async prints of a job that was started, from CreateSnapshot's result. */
static json_t *started_document(const void *arg, const json_t *started)
{
	const struct request *req = arg;
	json_t *job = json_object();

	copy_member(job, "id", started, "Job");
	copy_member(job, "state", started, "JobState");
	copy_member(job, "percent_complete", started, "PercentComplete");
	copy_member(job, "error_code", started, "ErrorCode");
	return json_pack("{s:s, s:i, s:i, s:o}", "collection", req->collection, "type", req->type,
			 "return_value", VMIMG_JOB_STARTED, "job", job);
}

static int create(struct cli *cli, const struct request *req)
{
	const struct cli_work work = {
		.operation = "snapshot",
		.method = "CreateSnapshot",
		.params = request_params(req),
		.started = started_document,
		.done = print_outcome,
		.arg = req,
	};

	return cli_run_work(cli, &work, req->async);
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
	status = req.dry_run ? check_only(cli, &req) : create(cli, &req);
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
		{"USED", "used", CLI_AS_SIZE},
		{"EXCLUSIVE", "exclusive", CLI_AS_SIZE},
		{"AUTOMATIC", "automatic", CLI_AS_TEXT},
		{"HOLDS", "holds", CLI_AS_TAGS},
		{"CUT", "cut_ns", CLI_AS_DURATION},
		{"TOTAL", "total_ns", CLI_AS_DURATION},
		{"CREATED", "created", CLI_AS_TIME},
		{0},
	};
	int words = cli_parse(cli, NULL, argc, argv);

	return cli_list(cli, "snapshot", words ? argv[0] : NULL, columns);
}

static int run_show(struct cli *cli, int argc, char **argv)
{
	cli_parse(cli, NULL, argc, argv);
	return cli_show(cli, "snapshot", argv[0]);
}

/* --- delete --- */

/* What the clones of the snapshot go on standing on. */
static int print_kept(struct cli *cli, const json_t *kept)
{
	const json_t *disk, *clone;
	size_t i, j;

	json_array_foreach (kept, i, disk) {
		printf("%s: its layer stays for", json_string_value(json_object_get(disk, "disk")));
		json_array_foreach (json_object_get(disk, "clones"), j, clone)
			printf("%s %s", j ? "," : "", json_string_value(clone));
		putchar('\n');
	}
	return cli_finish_output(cli);
}

static json_t *deleted_document(const void *arg, const json_t *result)
{
	return json_pack("{s:s, s:i, s:O, s:O}", "snapshot", arg, "return_value", 0, "job",
			 json_object_get(result, "Job"), "kept", json_object_get(result, "Kept"));
}

static int print_deleted(struct cli *cli, struct cli_session *s, const void *arg,
			 const json_t *result, const json_t *job)
{
	(void)s;
	(void)job;
	return cli->json ? cli_print_json(cli, deleted_document(arg, result))
			 : print_kept(cli, json_object_get(result, "Kept"));
}

static void print_nothing(const void *arg, const json_t *answer)
{
	(void)arg;
	(void)answer; /* it is deleted; what goes on is only its space's return */
}

static int run_delete(struct cli *cli, int argc, char **argv)
{
	struct cli_work work = {
		.operation = "delete",
		.method = "DestroySnapshot",
		.started = deleted_document,
		.print_started = print_nothing,
		.done = print_deleted,
	};
	bool async = false, no_settle = false;
	char collection[VMIMG_NAME_MAX + 1];
	const struct cli_option options[] = {
		{"rate-limit", 0, CLI_RATE, &work.rate_limit, "BYTES/s",
		 "idle store: at most so fast while space is given back"},
		{"no-wait", 0, CLI_FLAG, &no_settle, NULL,
		 "idle store: leave the space to the next who opens it"},
		{"async", 0, CLI_FLAG, &async, NULL,
		 "idle store: give space back in the background"},
		{0},
	};

	cli_parse(cli, options, argc, argv);
	snprintf(collection, sizeof(collection), "%.*s", (int)strcspn(argv[0], "@"), argv[0]);
	work.params = json_pack("{s:s}", "AffectedSnapshotCollection", argv[0]);
	work.settle = no_settle ? NULL : collection;
	work.arg = argv[0];
	return cli_run_work(cli, &work, async);
}

const struct cli_verb cli_snapshot_verbs[] = {
	{"snapshot create", "COLLECTION[@NAME]",
	 "Snapshot every disk of every member at one instant", 1, 1, run_create, 0},
	{"snapshot list", "[COLLECTION]", "List the snapshots", 0, 1, run_list, 0},
	{"snapshot show", "COLLECTION@NAME", "Show a snapshot and its disks", 1, 1, run_show, 0},
	{"snapshot delete", "COLLECTION@NAME", "Delete a snapshot; its space comes back behind it",
	 1, 1, run_delete, 0},
	{0},
};
