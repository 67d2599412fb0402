/* SPDX-License-Identifier: MIT */
/*
 * diff.c - the verb snapshot diff: what changed of every disk of a collection.
 */
#include "cli/options.h"
#include "cli/output.h"
#include "cli/session.h"

#include <stdio.h>
#include <stdlib.h>

static json_t *disk_row(const json_t *disk)
{
	const json_t *changed = json_object_get(disk, "changed"), *range;
	uint64_t bytes = 0;
	size_t i;

	json_array_foreach (changed, i, range)
		bytes += cli_number(range, "length");
	return json_pack("{s:O, s:O, s:I, s:I, s:s}", "disk", json_object_get(disk, "disk"), "size",
			 json_object_get(disk, "size"), "changed", (json_int_t)bytes, "ranges",
			 (json_int_t)json_array_size(changed), "known",
			 json_is_true(json_object_get(disk, "tracked")) ? "yes" : "no: all of it");
}

static int print_disks(struct cli *cli, const json_t *disks)
{
	static const struct cli_column columns[] = {
		{"DISK", "disk", CLI_AS_TEXT},       {"SIZE", "size", CLI_AS_SIZE},
		{"CHANGED", "changed", CLI_AS_SIZE}, {"RANGES", "ranges", CLI_AS_TEXT},
		{"TRACKED", "known", CLI_AS_TEXT},   {0},
	};
	json_t *rows = json_array();
	const json_t *disk;
	size_t i;

	json_array_foreach (disks, i, disk)
		json_array_append_new(rows, disk_row(disk));
	return cli_print_rows(cli, rows, columns);
}

static int print_ranges(struct cli *cli, const json_t *disks)
{
	const json_t *disk, *range;
	size_t i, j;

	printf("%-24s %20s %20s\n", "DISK", "START", "LENGTH");
	json_array_foreach (disks, i, disk)
		json_array_foreach (json_object_get(disk, "changed"), j, range)
			printf("%-24s %20llu %20llu\n",
			       json_string_value(json_object_get(disk, "disk")),
			       (unsigned long long)cli_number(range, "start"),
			       (unsigned long long)cli_number(range, "length"));
	return cli_finish_output(cli);
}

static int run_diff(struct cli *cli, int argc, char **argv)
{
	bool ranges = false;
	const struct cli_option options[] = {
		{"ranges", 0, CLI_FLAG, &ranges, NULL, "list every range"},
		{0},
	};
	int words = cli_parse(cli, options, argc, argv), status;
	struct cli_session *s = NULL;
	json_t *params = json_pack("{s:s, s:s*}", "From", argv[0], "To",
				   words > 1 ? argv[1] : NULL);
	json_t *answer = NULL;
	const json_t *disks;
	char *text = NULL;

	if (cli_begin(cli, NULL, &s)) {
		json_decref(params);
		return CLI_FAILURE;
	}
	if (cli->json) {
		status = cli_call_text(s, "GetCollectionChanges", params, &text);
		if (!status) {
			puts(text);
			status = cli_finish_output(cli);
		}
		free(text);
		return cli_end(cli, s, status);
	}
	status = cli_call(s, "GetCollectionChanges", params, &answer);
	disks = json_object_get(answer, "disks");
	if (!status)
		status = ranges ? print_ranges(cli, disks) : print_disks(cli, disks);
	json_decref(answer);
	return cli_end(cli, s, status);
}

const struct cli_verb cli_diff_verbs[] = {
	{"snapshot diff", "COLLECTION@A|COLLECTION#A [COLLECTION@B]",
	 "What changed of every disk since A, to B or now", 1, 2, run_diff, 0},
	{0},
};
