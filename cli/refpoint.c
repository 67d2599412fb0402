/* SPDX-License-Identifier: MIT */
/*
 * refpoint.c - the verbs of reference points: marks since which changes are kept track of, without the
 * data of a snapshot.
 */
#include "cli/options.h"
#include "cli/output.h"
#include "cli/session.h"
#include "cli/work.h"

#include <stdio.h>
#include <string.h>

/* COLLECTION or COLLECTION#NAME, apart; whether they are names is the library's to say. */
static void parse_target(struct cli *cli, const char *target, char *collection, size_t size,
			 const char **wanted)
{
	size_t len = strcspn(target, "#");

	if (len >= size || strlen(target) > 2 * VMIMG_NAME_MAX + 1)
		cli_usage_error(cli, "'%s' is too long for COLLECTION#NAME", target);
	memcpy(collection, target, len);
	collection[len] = 0;
	*wanted = target[len] ? target : NULL;
}

/* The point @name: its document with the call's numbers, or a line. @job: the id. */
static int print_made(struct cli *cli, struct cli_session *s, const char *name, json_t *job)
{
	json_t *point = NULL;
	int status = cli_call(s, "Describe",
			      json_pack("{s:s, s:s*}", "Kind", "refpoint", "Name", name), &point);

	if (!status && cli->json) {
		json_object_set_new(point, "return_value", json_integer(VMIMG_OK));
		json_object_set(point, "job", job);
		status = cli_print_json(cli, json_incref(point));
	} else if (!status) {
		uint64_t disks = cli_number(point, "disks");

		printf("%s: %llu disk%s, %s consistent\n", name ? name : "",
		       (unsigned long long)disks, disks == 1 ? "" : "s",
		       json_string_value(json_object_get(point, "consistency")));
		status = cli_finish_output(cli);
	}
	json_decref(point);
	return status;
}

static int run_convert(struct cli *cli, int argc, char **argv)
{
	int words = cli_parse(cli, NULL, argc, argv), status;
	struct cli_session *s = NULL;
	json_t *answer = NULL, *made;

	if (cli_begin(cli, NULL, &s))
		return CLI_FAILURE;
	status = cli_call(s, "ConvertToReferencePoint",
			  json_pack("{s:s, s:s*}", "AffectedSnapshotCollection", argv[0],
				    "ResultingReferencePointCollection",
				    words > 1 ? argv[1] : NULL),
			  &answer);
	made = json_object_get(answer, "ResultingReferencePointCollection");
	if (!status)
		status = print_made(cli, s, json_string_value(json_object_get(made, "Name")),
				    json_object_get(answer, "Job"));
	json_decref(answer);
	return cli_end(cli, s, status);
}

static int print_created(struct cli *cli, struct cli_session *s, const void *arg,
			 const json_t *result, const json_t *job)
{
	const json_t *made = json_object_get(job, "affected_element");

	(void)arg;
	return print_made(cli, s, json_string_value(json_object_get(made, "name")),
			  json_object_get(result, "Job"));
}

static int run_create(struct cli *cli, int argc, char **argv)
{
	struct cli_work work = {
		.operation = "reference point",
		.method = "CreateReferencePoint",
		.done = print_created,
	};
	const char *consistency = "crash", *wanted;
	char collection[VMIMG_NAME_MAX + 2];
	bool skip = false, async = false;
	const struct cli_option options[] = {
		{"consistency", 0, CLI_CHOICE, &consistency, "crash|application",
		 "ConsistencyLevel"},
		{"skip-independent", 0, CLI_FLAG, &skip, NULL,
		 "leave independent disks out (IgnoreNonSnapshottableDisks)"},
		{"async", 0, CLI_FLAG, &async, NULL,
		 "return when the job runs; do not wait for it"},
		{0},
	};
	json_t *settings;

	cli_parse(cli, options, argc, argv);
	parse_target(cli, argv[0], collection, sizeof(collection), &wanted);
	settings = json_pack("{s:i, s:b}", "ConsistencyLevel",
			     strcmp(consistency, "crash") ? VMIMG_CONSISTENCY_APPLICATION
							  : VMIMG_CONSISTENCY_CRASH,
			     "IgnoreNonSnapshottableDisks", (int)skip);
	work.params = json_pack("{s:s, s:o, s:i}", "Collection", collection,
				"ReferencePointSettings", settings, "ReferencePointType",
				VMIMG_REFPOINT_RCT);
	if (wanted)
		json_object_set_new(work.params, "ResultingReferencePointCollection",
				    json_string(wanted));
	return cli_run_work(cli, &work, async);
}

static int run_list(struct cli *cli, int argc, char **argv)
{
	static const struct cli_column columns[] = {
		{"REFPOINT", "refpoint", CLI_AS_TEXT},       {"TYPE", "type_name", CLI_AS_TEXT},
		{"CONSISTENCY", "consistency", CLI_AS_TEXT}, {"DISKS", "disks", CLI_AS_TEXT},
		{"TRACKED", "tracked", CLI_AS_TEXT},         {"SNAPSHOT", "snapshot", CLI_AS_TEXT},
		{"CREATED", "created", CLI_AS_TIME},         {0},
	};
	int words = cli_parse(cli, NULL, argc, argv);

	return cli_list(cli, "refpoint", words ? argv[0] : NULL, columns);
}

static int run_show(struct cli *cli, int argc, char **argv)
{
	cli_parse(cli, NULL, argc, argv);
	return cli_show(cli, "refpoint", argv[0]);
}

static int run_delete(struct cli *cli, int argc, char **argv)
{
	struct cli_session *s = NULL;
	json_t *answer = NULL;
	int status;

	cli_parse(cli, NULL, argc, argv);
	if (cli_begin(cli, NULL, &s))
		return CLI_FAILURE;
	status = cli_call(s, "DestroyReferencePoint",
			  json_pack("{s:s}", "AffectedReferencePointCollection", argv[0]), &answer);
	if (!status && cli->json)
		status = cli_print_json(cli, json_pack("{s:s, s:i, s:O}", "refpoint", argv[0],
						       "return_value", 0, "job",
						       json_object_get(answer, "Job")));
	json_decref(answer);
	return cli_end(cli, s, status);
}

const struct cli_verb cli_refpoint_verbs[] = {
	{"refpoint convert", "COLLECTION@NAME [COLLECTION#NAME]",
	 "Of a recovery snapshot, keep only what has changed since", 1, 2, run_convert, 0},
	{"refpoint create", "COLLECTION[#NAME]", "Track changes from now on, without a snapshot", 1,
	 1, run_create, 0},
	{"refpoint list", "[COLLECTION]", "List the reference points", 0, 1, run_list, 0},
	{"refpoint show", "COLLECTION#NAME", "Show a reference point, its disks and their ids", 1,
	 1, run_show, 0},
	{"refpoint delete", "COLLECTION#NAME", "Delete a reference point", 1, 1, run_delete, 0},
	{0},
};
