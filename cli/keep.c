/* SPDX-License-Identifier: MIT */
/*
 * keep.c - the verbs of what keeps snapshots, holds and retention, and of the store's space.
 */
#include "cli/options.h"
#include "cli/output.h"
#include "cli/session.h"
#include "cli/work.h"

#include <stdio.h>
#include <string.h>

/* --- holds --- */

static int change_hold(struct cli *cli, const char *method, const char *snapshot, const char *tag)
{
	struct cli_session *s = NULL;
	int status;

	if (cli_begin(cli, NULL, &s))
		return CLI_FAILURE;
	status = cli_call(s, method,
			  json_pack("{s:s, s:s}", "AffectedSnapshotCollection", snapshot, "Tag",
				    tag),
			  NULL);
	if (!status && cli->json)
		status = cli_print_json(cli, json_pack("{s:s, s:s, s:i}", "snapshot", snapshot,
						       "tag", tag, "return_value", 0));
	return cli_end(cli, s, status);
}

static int run_hold(struct cli *cli, int argc, char **argv)
{
	cli_parse(cli, NULL, argc, argv);
	return change_hold(cli, "HoldSnapshot", argv[0], argv[1]);
}

static int run_release(struct cli *cli, int argc, char **argv)
{
	cli_parse(cli, NULL, argc, argv);
	return change_hold(cli, "ReleaseSnapshot", argv[0], argv[1]);
}

/* A row a hold. */
static void add_holds(json_t *rows, const json_t *snapshot)
{
	const json_t *hold;
	size_t i;

	json_array_foreach (json_object_get(snapshot, "holds"), i, hold)
		json_array_append_new(rows, json_pack("{s:O, s:O, s:O}", "snapshot",
						      json_object_get(snapshot, "snapshot"), "tag",
						      json_object_get(hold, "tag"), "created",
						      json_object_get(hold, "created")));
}

static int run_holds(struct cli *cli, int argc, char **argv)
{
	static const struct cli_column columns[] = {
		{"SNAPSHOT", "snapshot", CLI_AS_TEXT},
		{"TAG", "tag", CLI_AS_TEXT},
		{"CREATED", "created", CLI_AS_TIME},
		{0},
	};
	int words = cli_parse(cli, NULL, argc, argv), status;
	bool one = words && strchr(argv[0], '@');
	json_t *answer = NULL, *rows, *snapshot;
	struct cli_session *s = NULL;
	size_t i;

	if (cli_begin(cli, NULL, &s))
		return CLI_FAILURE;
	status = cli_call(s, one ? "Describe" : "List",
			  json_pack("{s:s, s:s*}", "Kind", "snapshot", one ? "Name" : "Filter",
				    words ? argv[0] : NULL),
			  &answer);
	if (status)
		return cli_end(cli, s, status);
	rows = json_array();
	if (one)
		add_holds(rows, answer);
	json_array_foreach (answer, i, snapshot)
		add_holds(rows, snapshot);
	json_decref(answer);
	return cli_end(cli, s, cli_print_rows(cli, rows, columns));
}

/* --- retention --- */

static void print_reasons(const json_t *snapshot)
{
	const json_t *reasons = json_object_get(snapshot, "reasons");
	const json_t *reason;
	size_t i;

	json_array_foreach (reasons, i, reason)
		printf("%s%s", i ? ", " : "", json_string_value(reason));
}

static int print_pruned(struct cli *cli, const json_t *answer)
{
	bool dry = json_is_true(json_object_get(answer, "dry_run"));
	const json_t *snapshots = json_object_get(answer, "snapshots"), *snapshot;
	char time[CLI_TEXT_MAX];
	size_t i, go = 0;
	int width = 8;

	json_array_foreach (snapshots, i, snapshot) {
		int len = (int)json_string_length(json_object_get(snapshot, "snapshot"));

		width = len > width ? len : width;
		go += !json_is_true(json_object_get(snapshot, "keep"));
	}
	json_array_foreach (snapshots, i, snapshot) {
		bool keep = json_is_true(json_object_get(snapshot, "keep"));
		const char *created = json_string_value(json_object_get(snapshot, "created"));

		printf("%-7s  %-*s  %s  ",
		       keep  ? "keep"
		       : dry ? "delete"
			     : "deleted",
		       width, json_string_value(json_object_get(snapshot, "snapshot")),
		       cli_time_text(time, created ? created : ""));
		print_reasons(snapshot);
		putchar('\n');
	}
	printf("%llu kept, %zu %s\n", (unsigned long long)cli_number(answer, "kept"), go,
	       dry ? "would be deleted" : "deleted");
	return cli_finish_output(cli);
}

static void add_count(struct cli *cli, json_t *params, const char *key, const char *option,
		      uint64_t value)
{
	if (value > INT32_MAX)
		cli_usage_error(cli, "--%s: too large", option);
	if (value)
		json_object_set_new(params, key, json_integer((json_int_t)value));
}

static int run_prune(struct cli *cli, int argc, char **argv)
{
	uint64_t last = 0, hourly = 0, daily = 0, weekly = 0, monthly = 0, yearly = 0;
	bool automatic = false, dry_run = false, no_wait = false, deleted;
	const struct cli_option options[] = {
		{"keep-last", 0, CLI_COUNT, &last, "N", "the N newest"},
		{"keep-hourly", 0, CLI_COUNT, &hourly, "N", "the newest of each of N hours"},
		{"keep-daily", 0, CLI_COUNT, &daily, "N", "the newest of each of N days"},
		{"keep-weekly", 0, CLI_COUNT, &weekly, "N", "the newest of each of N ISO weeks"},
		{"keep-monthly", 0, CLI_COUNT, &monthly, "N", "the newest of each of N months"},
		{"keep-yearly", 0, CLI_COUNT, &yearly, "N", "the newest of each of N years"},
		{"automatic", 0, CLI_FLAG, &automatic, NULL,
		 "those that a revert made may go, too"},
		{"dry-run", 'n', CLI_FLAG, &dry_run, NULL, "only tell what would go, and why not"},
		{"no-wait", 0, CLI_FLAG, &no_wait, NULL,
		 "idle store: leave the space to the next who opens it"},
		{0},
	};
	struct cli_session *s = NULL;
	json_t *params, *answer = NULL;
	int status;

	cli_parse(cli, options, argc, argv);
	if (!last && !hourly && !daily && !weekly && !monthly && !yearly)
		cli_usage_error(cli,
				"snapshot prune: give at least one --keep-... rule, of 1 or more");
	params = json_pack("{s:s, s:b, s:b}", "Collection", argv[0], "Automatic", (int)automatic,
			   "DryRun", (int)dry_run);
	add_count(cli, params, "KeepLast", "keep-last", last);
	add_count(cli, params, "KeepHourly", "keep-hourly", hourly);
	add_count(cli, params, "KeepDaily", "keep-daily", daily);
	add_count(cli, params, "KeepWeekly", "keep-weekly", weekly);
	add_count(cli, params, "KeepMonthly", "keep-monthly", monthly);
	add_count(cli, params, "KeepYearly", "keep-yearly", yearly);
	cli_catch_interrupts();
	if (cli_begin(cli, NULL, &s))
		return CLI_FAILURE;
	status = cli_call(s, "PruneSnapshots", params, &answer);
	if (status)
		return cli_end(cli, s, status);
	deleted = !dry_run && cli_number(answer, "deleted");
	if (cli->json) {
		status = cli_print_json(cli, answer);
	} else {
		status = print_pruned(cli, answer);
		json_decref(answer);
	}
	if (!status && deleted && !no_wait)
		cli_settle(cli, s, argv[0], 0);
	return cli_end(cli, s, status);
}

/* --- space --- */

static int run_store_show(struct cli *cli, int argc, char **argv)
{
	cli_parse(cli, NULL, argc, argv);
	return cli_show(cli, "store", NULL);
}

static int run_reserve(struct cli *cli, int argc, char **argv)
{
	struct cli_session *s = NULL;
	json_t *params = json_object(), *store = NULL;
	uint64_t bytes;
	int status;

	cli_parse(cli, NULL, argc, argv);
	if (strcmp(argv[0], "default") != 0) {
		bytes = cli_size_argument(cli, "SIZE", argv[0]);
		if (bytes > INT64_MAX)
			cli_usage_error(cli, "SIZE: too large");
		json_object_set_new(params, "Bytes", json_integer((json_int_t)bytes));
	}
	if (cli_begin(cli, NULL, &s))
		return CLI_FAILURE;
	status = cli_call(s, "SetSpaceReserve", params, &store);
	return cli_end(cli, s, status ? status : cli_print_made(cli, store));
}

const struct cli_verb cli_keep_verbs[] = {
	{"store show", "", "Show the store: counts, what is used, and free space", 0, 0,
	 run_store_show, 0},
	{"store reserve", "SIZE|default", "How much free space snapshots leave to guests", 1, 1,
	 run_reserve, 0},
	{"snapshot hold", "COLLECTION@NAME TAG", "Keep a snapshot from being deleted", 2, 2,
	 run_hold, 0},
	{"snapshot release", "COLLECTION@NAME TAG", "Undo a hold", 2, 2, run_release, 0},
	{"snapshot holds", "[COLLECTION[@NAME]]", "List the holds", 0, 1, run_holds, 0},
	{"snapshot prune", "COLLECTION --keep-...=N",
	 "Delete the snapshots that no rule keeps; --dry-run first", 1, 1, run_prune, 0},
	{0},
};
