/* SPDX-License-Identifier: MIT */
/*
 * check.c - the verb check: the checker's findings, and its verdict as the exit status. Status 2 means
 * corruption here, so a usage error is 1: "could not check".
 */
#include "cli/options.h"
#include "cli/output.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static const char *verdict(int result)
{
	switch (result) {
	case VMIMG_CHECK_SOUND: return "sound";
	case VMIMG_CHECK_CORRUPT: return "corrupt";
	case VMIMG_CHECK_LEAKS: return "leaks only: space is lost, data is not";
	case VMIMG_CHECK_NOT_SUPPORTED: return "cannot be checked by this version";
	default: return "could not be checked";
	}
}

static const char *text_of(const json_t *object, const char *key)
{
	return json_string_value(json_object_get(object, key));
}

static void print_findings(const json_t *findings)
{
	size_t i;
	json_t *finding;

	json_array_foreach (findings, i, finding) {
		const char *rule = text_of(finding, "rule");
		const char *kind = text_of(finding, "kind");
		const char *where = text_of(finding, "where");
		const char *message = text_of(finding, "message");

		printf("%s: %s%s%s%s%s%s\n", kind ? kind : "finding", where ? where : "",
		       where ? ": " : "", message ? message : "", rule ? " [" : "",
		       rule ? rule : "", rule ? "]" : "");
	}
}

static int run_check(struct cli *cli, int argc, char **argv)
{
	struct vmimg_error err = {0};
	const char *path = cli_parse(cli, NULL, argc, argv) ? argv[0] : cli->store;
	uint64_t start = cli_now_ns();
	char *text = NULL;
	json_t *report;
	int result, printed;

	if (!path)
		cli_usage_error(cli, "check: name an image file or a store");
	do
		result = vmimg_check(path, &err, &text);
	while (result == VMIMG_CHECK_FAILED && err.code == -EBUSY && cli_wait_for_lock(cli, start));
	if (!text) {
		cli_fail(cli, err.code ? err.code : VMIMG_FAILED, &err);
		return result < 0 ? VMIMG_CHECK_FAILED : result;
	}
	report = cli_take_json(cli, text);
	if (!report)
		return VMIMG_CHECK_FAILED;
	if (cli->json) {
		printed = cli_print_json(cli, report);
	} else {
		print_findings(json_object_get(report, "findings"));
		printf("%s: %s\n", path, verdict(result));
		json_decref(report);
		printed = cli_finish_output(cli);
	}
	if (result < 0)
		return VMIMG_CHECK_FAILED;
	return result ? result : printed;
}

const struct cli_verb cli_check_verbs[] = {
	{"check", "FILE|DIR", "Check an image file or a store; changes nothing", 0, 1, run_check,
	 VMIMG_CHECK_FAILED},
	{0},
};
