/* SPDX-License-Identifier: MIT */
/*
 * main.c - finds the verb among the words of the command line and runs it. A verb is one word
 * ("check") or two ("disk create"); options may stand before, between and after them.
 */
#include "cli/options.h"
#include "cli/output.h"

#include <errno.h>
#include <fcntl.h>
#include <locale.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const struct cli_verb *const families[] = {
	cli_image_verbs,      cli_compare_verbs,  cli_check_verbs,  cli_vm_verbs,   cli_disk_verbs,
	cli_collection_verbs, cli_snapshot_verbs, cli_branch_verbs, cli_keep_verbs, cli_diff_verbs,
	cli_transfer_verbs,   cli_refpoint_verbs, cli_job_verbs,    cli_tree_verbs, cli_bench_verbs,
	cli_serve_verbs,      cli_events_verbs,   cli_lease_verbs,
};
#define FAMILIES (sizeof(families) / sizeof(families[0]))

/* The verb of that first and second word; with @second NULL, a verb of one word. */
static const struct cli_verb *find_verb(const char *first, const char *second)
{
	size_t len = strlen(first);

	for (size_t f = 0; f < FAMILIES; f++) {
		for (const struct cli_verb *v = families[f]; v->name; v++) {
			if (strncmp(v->name, first, len) != 0)
				continue;
			if (second ? v->name[len] == ' ' && !strcmp(v->name + len + 1, second)
				   : !v->name[len])
				return v;
		}
	}
	return NULL;
}

static bool is_group(const char *word)
{
	size_t len = strlen(word);

	for (size_t f = 0; f < FAMILIES; f++) {
		for (const struct cli_verb *v = families[f]; v->name; v++) {
			if (!strncmp(v->name, word, len) && v->name[len] == ' ')
				return true;
		}
	}
	return false;
}

/* All verbs, or those whose first word is @group. */
static int print_verbs(struct cli *cli, const char *group)
{
	size_t len = group ? strlen(group) : 0;

	printf("Usage: vmimg [global options] %s\n\n", group ? group : "VERB ...");
	for (size_t f = 0; f < FAMILIES; f++) {
		for (const struct cli_verb *v = families[f]; v->name; v++) {
			char line[160];

			if (!v->summary)
				continue;
			if (group && (strncmp(v->name, group, len) != 0 || v->name[len] != ' '))
				continue;
			snprintf(line, sizeof(line), "%s %s", v->name, v->args);
			if (strlen(line) > 46)
				printf("  %s\n  %-46s  %s\n", line, "", v->summary);
			else
				printf("  %-46s  %s\n", line, v->summary);
		}
	}
	cli_print_global_options();
	printf("\n'vmimg VERB --help' tells a verb's options; vmimg(1) tells everything.\n");
	return cli_finish_output(cli);
}

/*
 * A standard stream that was closed stays unusable: the number must not become that of a store's file or a
 * socket, which output would then be written into.
 */
static void hold_standard_streams(void)
{
	for (int fd = 0; fd < 3; fd++)
		if (fcntl(fd, F_GETFD) < 0 && errno == EBADF &&
		    open("/dev/null", fd ? O_RDONLY : O_WRONLY) != fd)
			_exit(CLI_FAILURE);
}

int main(int argc, char **argv)
{
	struct cli cli = {
		.store = getenv("VMIMG_STORE"),
		.progress_fd = -1,
		.lock_timeout_ns = 5 * 1000000000ull,
	};
	const char *word;
	ssize_t len;
	int i;

	hold_standard_streams();
	setlocale(LC_CTYPE, "");
	signal(SIGPIPE, SIG_IGN); /* a closed pipe is a failed write, not a kill */
	if (cli.store && !*cli.store)
		cli.store = NULL;
	len = readlink("/proc/self/exe", cli.exe, sizeof(cli.exe) - 1);
	cli.exe[len > 0 ? len : 0] = 0;
	i = cli_parse_global(&cli, argc, argv, 1);
	if (i == argc && cli.help)
		return print_verbs(&cli, NULL);
	if (i == argc)
		cli_usage_error(&cli, "no verb given");
	word = argv[i++];
	if (!is_group(word)) {
		cli.verb = find_verb(word, NULL);
		if (!cli.verb)
			cli_usage_error(&cli, "unknown verb '%s'", word);
	} else {
		i = cli_parse_global(&cli, argc, argv, i);
		if (i == argc && cli.help)
			return print_verbs(&cli, word);
		if (i == argc)
			cli_usage_error(&cli, "'%s' needs a second word; see 'vmimg %s --help'",
					word, word);
		cli.verb = find_verb(word, argv[i]);
		if (!cli.verb)
			cli_usage_error(&cli, "unknown verb '%s %s'", word, argv[i]);
		i++;
	}
	return cli.verb->run(&cli, argc - i, argv + i);
}
