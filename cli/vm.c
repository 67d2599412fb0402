/* SPDX-License-Identifier: MIT */
/* vm.c - the verbs init and vm: a store, and the virtual machines in it. */
#include "cli/options.h"
#include "cli/output.h"
#include "cli/session.h"

#include <string.h>

static int run_init(struct cli *cli, int argc, char **argv)
{
	struct vmimg_error err = {0};
	const char *dir = cli_parse(cli, NULL, argc, argv) ? argv[0] : cli->store;
	int r;

	if (!dir)
		cli_usage_error(cli, "init: missing argument");
	r = vmimg_store_init(dir, &err);
	if (r < 0)
		return cli_fail(cli, r, &err);
	return cli->json ? cli_print_json(cli, json_pack("{s:s}", "store", dir)) : CLI_OK;
}

static int run_create(struct cli *cli, int argc, char **argv)
{
	struct cli_session *s = NULL;
	const char *agent = "";
	const struct cli_option options[] = {
		{"guest-agent", 0, CLI_TEXT, &agent, "SOCKET",
		 "of its QEMU guest agent, absolute; none without"},
		{0},
	};
	json_t *made = NULL;
	int status;

	cli_parse(cli, options, argc, argv);
	if (cli_begin(cli, NULL, &s))
		return CLI_FAILURE;
	status = cli_call(s, "DefineVirtualMachine",
			  json_pack("{s:s, s:s}", "Name", argv[0], "GuestAgent", agent), &made);
	return cli_end(cli, s, status ? status : cli_print_made(cli, made));
}

static int run_set(struct cli *cli, int argc, char **argv)
{
	struct cli_session *s = NULL;
	const char *agent = NULL;
	const struct cli_option options[] = {
		{"guest-agent", 0, CLI_TEXT, &agent, "SOCKET|none",
		 "of its QEMU guest agent, absolute"},
		{0},
	};
	json_t *made = NULL;
	int status;

	cli_parse(cli, options, argc, argv);
	if (!agent)
		cli_usage_error(cli, "vm set: nothing to set; give --guest-agent");
	if (cli_begin(cli, NULL, &s))
		return CLI_FAILURE;
	status = cli_call(s, "SetGuestAgent",
			  json_pack("{s:s, s:s}", "VirtualMachine", argv[0], "GuestAgent",
				    strcmp(agent, "none") ? agent : ""),
			  &made);
	return cli_end(cli, s, status ? status : cli_print_made(cli, made));
}

static int run_delete(struct cli *cli, int argc, char **argv)
{
	struct cli_session *s = NULL;

	cli_parse(cli, NULL, argc, argv);
	if (cli_begin(cli, NULL, &s))
		return CLI_FAILURE;
	return cli_end(cli, s,
		       cli_call(s, "DestroyVirtualMachine",
				json_pack("{s:s}", "VirtualMachine", argv[0]), NULL));
}

static int run_list(struct cli *cli, int argc, char **argv)
{
	static const struct cli_column columns[] = {
		{"VM", "name", CLI_AS_TEXT},
		{"DISKS", "disks", CLI_AS_LIST},
		{"CREATED", "created", CLI_AS_TIME},
		{0},
	};

	cli_parse(cli, NULL, argc, argv);
	return cli_list(cli, "vm", NULL, columns);
}

static int run_show(struct cli *cli, int argc, char **argv)
{
	cli_parse(cli, NULL, argc, argv);
	return cli_show(cli, "vm", argv[0]);
}

const struct cli_verb cli_vm_verbs[] = {
	{"init", "DIR", "Make an empty store", 0, 1, run_init, 0},
	{"vm create", "VM", "Add a virtual machine", 1, 1, run_create, 0},
	{"vm set", "VM", "Change a virtual machine's guest agent", 1, 1, run_set, 0},
	{"vm list", "", "List the virtual machines", 0, 0, run_list, 0},
	{"vm show", "VM", "Show a virtual machine", 1, 1, run_show, 0},
	{"vm delete", "VM", "Delete a virtual machine that has no disks", 1, 1, run_delete, 0},
	{0},
};
