/* SPDX-License-Identifier: MIT */
/*
 * lease.c - the verb lease: the process that holds guests frozen (spec/quiesce.md 4). The library starts
 * it, with its socket as standard input; it is not for people, and not listed.
 */
#include "cli/options.h"
#include "cli/output.h"

static int run_lease(struct cli *cli, int argc, char **argv)
{
	struct vmimg_error err = {0};
	int r;

	cli_parse(cli, NULL, argc, argv);
	r = vmimg_lease_run(0);
	return r < 0 ? cli_fail(cli, r, &err) : CLI_OK;
}

const struct cli_verb cli_lease_verbs[] = {
	{"lease", "", NULL, 0, 0, run_lease, 0},
	{0},
};
