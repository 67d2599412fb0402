/* SPDX-License-Identifier: MIT */
/*
 * events.c - the verbs of a served store alone: events, as lines while they come, and metrics. One
 * thread.
 */
#include "cli/options.h"
#include "cli/output.h"
#include "cli/session.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

/* The server's, or the reason printed. */
static int begin(struct cli *cli, struct cli_session **ret)
{
	if (!cli->store)
		cli_usage_error(cli, "no store: give --store=DIR or set VMIMG_STORE");
	if (cli_begin_served(cli, ret) < 0)
		return cli_error(cli, -ENOTCONN, "%s: no server answers", cli->store);
	return CLI_OK;
}

/* One line on standard output, at once: somebody waits for it. Takes @event. */
static int print_line(struct cli *cli, json_t *event)
{
	json_dumpf(event, stdout, JSON_COMPACT);
	putchar('\n');
	json_decref(event);
	return cli_finish_output(cli);
}

static int run_events(struct cli *cli, int argc, char **argv)
{
	struct cli_session *s = NULL;
	int status;

	cli_parse(cli, NULL, argc, argv);
	cli_catch_interrupts();
	if (begin(cli, &s))
		return CLI_FAILURE;
	status = cli_call(s, "Subscribe", json_object(), NULL);
	while (!status) {
		json_t *event = cli_next_event(s);
		const char *kind = json_string_value(json_object_get(event, "event"));
		bool dropped = kind && !strcmp(kind, "dropped");

		if (!event) {
			status = cli_interrupted() ? CLI_OK : CLI_FAILURE;
			break;
		}
		status = print_line(cli, event);
		if (dropped && !status)
			status = cli_error(cli, -ENOBUFS, "events were lost: read too slowly");
	}
	return cli_end(cli, s, status);
}

static int run_metrics(struct cli *cli, int argc, char **argv)
{
	const char *format = "json";
	const struct cli_option options[] = {
		{"format", 0, CLI_CHOICE, &format, "json|prometheus", "default: json"},
		{0},
	};
	struct cli_session *s = NULL;
	json_t *document = NULL;
	const char *text;
	int status;

	cli_parse(cli, options, argc, argv);
	if (begin(cli, &s))
		return CLI_FAILURE;
	status = cli_call(s, "Metrics", json_pack("{s:s}", "Format", format), &document);
	if (status)
		return cli_end(cli, s, status);
	if (strcmp(format, "prometheus") != 0)
		return cli_end(cli, s, cli_print_json(cli, document));
	text = json_string_value(json_object_get(document, "Text"));
	fputs(text ? text : "", stdout);
	json_decref(document);
	return cli_end(cli, s, cli_finish_output(cli));
}

const struct cli_verb cli_events_verbs[] = {
	{"events", "", "Print the events of a served store as they come", 0, 0, run_events, 0},
	{"metrics", "", "Print the counters of a served store", 0, 0, run_metrics, 0},
	{0},
};
