/* SPDX-License-Identifier: MIT */
/* branch.c - the verbs that make branches: `snapshot revert`, `snapshot clone`, `disk flatten`. */
#include "cli/options.h"
#include "cli/output.h"
#include "cli/session.h"
#include "cli/work.h"

#include <stdio.h>

/* What the method said, with the return value and the job, as the command's document. */
static json_t *answer_document(const json_t *reply)
{
	json_t *answer = json_object(), *job = json_object_get(reply, "Job");

	json_object_update(answer, json_object_get(reply, "Result"));
	json_object_set_new(answer, "return_value",
			    json_integer((json_int_t)cli_number(reply, "ReturnValue")));
	json_object_set_new(answer, "job",
			    json_pack("{s:O, s:I}", "id", job, "state",
				      (json_int_t)cli_number(reply, "JobState")));
	return answer;
}

static void print_names(const json_t *result, const char *key, const char *suffix)
{
	const json_t *name;
	size_t i;

	json_array_foreach (json_object_get(result, key), i, name)
		printf("  %s%s\n", json_string_value(name), suffix);
}

static int print_reverted(struct cli *cli, const json_t *reply)
{
	const json_t *result = json_object_get(reply, "Result");
	const char *kept = json_string_value(json_object_get(result, "kept"));
	uint64_t disks = cli_number(result, "disks");
	char buf[CLI_TEXT_MAX];

	if (cli->json)
		return cli_print_json(cli, answer_document(reply));
	printf("%s: %llu disk%s reverted in %s\n",
	       json_string_value(json_object_get(result, "snapshot")), (unsigned long long)disks,
	       disks == 1 ? "" : "s", cli_duration_text(buf, cli_number(result, "total_ns")));
	if (kept)
		printf("the state before is kept as %s\n", kept);
	print_names(result, "untouched", ": not in the snapshot, left as it is");
	return cli_finish_output(cli);
}

static int run_revert(struct cli *cli, int argc, char **argv)
{
	struct cli_session *s = NULL;
	const char *kept = NULL;
	json_t *reply = NULL;
	bool no_keep = false;
	const struct cli_option options[] = {
		{"no-keep", 0, CLI_FLAG, &no_keep, NULL,
		 "do not keep the state that is left as a snapshot"},
		{"keep-as", 0, CLI_TEXT, &kept, "NAME", "name of that snapshot"},
		{0},
	};
	int status;

	cli_parse(cli, options, argc, argv);
	if (no_keep && kept)
		cli_usage_error(cli, "--no-keep and --keep-as exclude each other");
	if (cli_begin(cli, NULL, &s))
		return CLI_FAILURE;
	status = cli_call(s, "ApplySnapshot",
			  json_pack("{s:s, s:{s:b, s:s}}", "SnapshotCollection", argv[0],
				    "ApplySettings", "KeepState", !no_keep, "KeptName",
				    kept ? kept : ""),
			  &reply);
	if (!status)
		status = print_reverted(cli, reply);
	json_decref(reply);
	return cli_end(cli, s, status);
}

static int print_cloned(struct cli *cli, const json_t *reply)
{
	const json_t *result = json_object_get(reply, "Result");
	uint64_t disks = cli_number(result, "disks"), vms = cli_number(result, "vms");
	char buf[CLI_TEXT_MAX];

	if (cli->json)
		return cli_print_json(cli, answer_document(reply));
	printf("collection %s: %llu VM%s, %llu disk%s of %s in %s\n",
	       json_string_value(json_object_get(result, "collection")), (unsigned long long)vms,
	       vms == 1 ? "" : "s", (unsigned long long)disks, disks == 1 ? "" : "s",
	       json_string_value(json_object_get(result, "snapshot")),
	       cli_duration_text(buf, cli_number(result, "total_ns")));
	print_names(result, "skipped", ": the snapshot does not hold it, not cloned");
	return cli_finish_output(cli);
}

static int run_clone(struct cli *cli, int argc, char **argv)
{
	struct cli_session *s = NULL;
	json_t *reply = NULL;
	int status;

	cli_parse(cli, NULL, argc, argv);
	if (cli_begin(cli, NULL, &s))
		return CLI_FAILURE;
	status = cli_call(s, "CloneSnapshot",
			  json_pack("{s:s, s:s}", "SnapshotCollection", argv[0], "NewCollection",
				    argv[1]),
			  &reply);
	if (!status)
		status = print_cloned(cli, reply);
	json_decref(reply);
	return cli_end(cli, s, status);
}

static int print_flattened(struct cli *cli, struct cli_session *s, const void *arg,
			   const json_t *result, const json_t *job)
{
	(void)s;
	(void)result;
	if (cli->json)
		return cli_print_json(cli, json_pack("{s:s, s:i, s:o}", "name", arg, "return_value",
						     0, "job", cli_job_document(job)));
	printf("%s: stands on no other disk's layers\n", (const char *)arg);
	return cli_finish_output(cli);
}

static int run_flatten(struct cli *cli, int argc, char **argv)
{
	struct cli_work work = {
		.operation = "flatten",
		.method = "Flatten",
		.done = print_flattened,
	};
	uint64_t rate = 0;
	bool async = false;
	const struct cli_option options[] = {
		{"rate-limit", 0, CLI_RATE, &rate, "BYTES/s", "copy at most so fast"},
		{"async", 0, CLI_FLAG, &async, NULL,
		 "return when the job runs; do not wait for it"},
		{0},
	};

	cli_parse(cli, options, argc, argv);
	work.params = json_pack("{s:s, s:I}", "Name", argv[0], "BytesPerSecond", (json_int_t)rate);
	work.arg = argv[0];
	return cli_run_work(cli, &work, async);
}

const struct cli_verb cli_branch_verbs[] = {
	{"snapshot revert", "COLLECTION@NAME", "Bring every disk back to a snapshot", 1, 1,
	 run_revert, 0},
	{"snapshot clone", "COLLECTION@NAME NEWCOLLECTION",
	 "Make a collection of new VMs from a snapshot, without copying", 2, 2, run_clone, 0},
	{"disk flatten", "VM/DISK | COLLECTION", "Make clones independent of their origins", 1, 1,
	 run_flatten, 0},
	{0},
};
