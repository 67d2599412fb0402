/* SPDX-License-Identifier: MIT */
/*
 * options.c - parses the command line by tables of options. A verb's table and the global one are
 * searched the same way, so global options may stand before and after the verb. Nothing is kept
 * between calls.
 */
#include "cli/options.h"
#include "cli/output.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define GLOBAL_OPTIONS 9

/* What the global options are parsed into before it is checked. */
struct globals {
	const char *store;
	const char *control;
	const char *output;
	uint64_t progress_fd;
	uint64_t lock_timeout_s;
	bool no_progress;
	bool help;
	bool version;
};

static const struct globals no_globals = {
	.progress_fd = UINT64_MAX,
	.lock_timeout_s = UINT64_MAX,
};

static void globals_table(struct globals *g, struct cli_option table[static GLOBAL_OPTIONS])
{
	const struct cli_option all[GLOBAL_OPTIONS] = {
		{"store", 's', CLI_TEXT, &g->store, "DIR", "the store (default: $VMIMG_STORE)"},
		{"control", 0, CLI_TEXT, &g->control, "SOCKET",
		 "of the store's server (default: STORE/control.sock)"},
		{"output", 0, CLI_CHOICE, &g->output, "human|json", "how to print"},
		{"progress", 0, CLI_COUNT, &g->progress_fd, "FD",
		 "write progress to this descriptor, a JSON object a line"},
		{"no-progress", 0, CLI_FLAG, &g->no_progress, NULL, "no progress bar"},
		{"lock-timeout", 0, CLI_COUNT, &g->lock_timeout_s, "SECONDS",
		 "how long to wait while another process has the store (default: 5)"},
		{"help", 'h', CLI_FLAG, &g->help, NULL, "print this and exit"},
		{"version", 0, CLI_FLAG, &g->version, NULL, "print the version and exit"},
		{0},
	};

	memcpy(table, all, sizeof(all));
}

/* --- values --- */

bool cli_parse_count(const char *text, uint64_t *ret)
{
	char *end;
	unsigned long long value;

	if (*text < '0' || *text > '9')
		return false;
	errno = 0;
	value = strtoull(text, &end, 10);
	if (errno || *end)
		return false;
	*ret = value;
	return true;
}

bool cli_parse_size(const char *text, uint64_t *ret)
{
	static const char units[] = "KMGT";
	const char *unit;
	char *end;
	unsigned long long value;
	unsigned shift = 0;

	if (*text < '0' || *text > '9')
		return false;
	errno = 0;
	value = strtoull(text, &end, 10);
	if (errno)
		return false;
	if (*end && *end != 'B' && *end != 'b') {
		unit = strchr(units, *end & ~0x20);
		if (!unit)
			return false;
		shift = 10 * (unsigned)(unit - units + 1);
		end++;
		if (*end == 'i')
			end++;
	}
	if (*end == 'B' || *end == 'b')
		end++;
	if (*end || value > UINT64_MAX >> shift)
		return false;
	*ret = (uint64_t)value << shift;
	return true;
}

uint64_t cli_size_argument(struct cli *cli, const char *what, const char *text)
{
	uint64_t value;

	if (!cli_parse_size(text, &value))
		cli_usage_error(cli, "%s: '%s' is not a number of bytes (K, M, G and T may follow)",
				what, text);
	return value;
}

static bool parse_rate(const char *text, uint64_t *ret)
{
	size_t len = strlen(text);
	char number[32];
	uint64_t rate;

	if (len > 2 && !strcmp(text + len - 2, "/s"))
		len -= 2;
	if (len >= sizeof(number))
		return false;
	memcpy(number, text, len);
	number[len] = '\0';
	if (!cli_parse_size(number, &rate) || !rate)
		return false;
	*ret = rate;
	return true;
}

static bool is_choice(const char *choices, const char *word)
{
	size_t len = strlen(word);

	for (;;) {
		size_t n = strcspn(choices, "|");

		if (n == len && !memcmp(choices, word, n))
			return true;
		if (!choices[n])
			return false;
		choices += n + 1;
	}
}

static void set_value(struct cli *cli, const struct cli_option *o, const char *text)
{
	switch (o->kind) {
	case CLI_FLAG: *(bool *)o->value = true; break;
	case CLI_TEXT: *(const char **)o->value = text; break;
	case CLI_SIZE:
		if (!cli_parse_size(text, o->value))
			cli_usage_error(cli, "--%s: '%s' is not a size such as 4096, 4K or 10G",
					o->name, text);
		break;
	case CLI_RATE:
		if (!parse_rate(text, o->value))
			cli_usage_error(cli, "--%s: '%s' is not a rate such as 100M/s", o->name,
					text);
		break;
	case CLI_COUNT:
		if (!cli_parse_count(text, o->value))
			cli_usage_error(cli, "--%s: '%s' is not a number", o->name, text);
		break;
	case CLI_CHOICE:
		if (!is_choice(o->values, text))
			cli_usage_error(cli, "--%s: '%s' is not one of %s", o->name, text,
					o->values);
		*(const char **)o->value = text;
		break;
	}
}

/* --- options --- */

static const struct cli_option *find_option(const struct cli_option *table, const char *name,
					    size_t len, char letter)
{
	for (; table && table->name; table++) {
		if (letter ? table->letter == letter
			   : strlen(table->name) == len && !memcmp(table->name, name, len))
			return table;
	}
	return NULL;
}

/* Parses the option at argv[i], which begins with '-'. Returns the index after it and its value. */
static int parse_option(struct cli *cli, const struct cli_option *own,
			const struct cli_option *global, int argc, char **argv, int i)
{
	const char *word = argv[i];
	bool is_long = word[1] == '-';
	const char *name = word + (is_long ? 2 : 1);
	size_t len = is_long ? strcspn(name, "=") : 1;
	const char *value = NULL;
	const struct cli_option *o = find_option(own, name, len, is_long ? 0 : *name);

	if (!o)
		o = find_option(global, name, len, is_long ? 0 : *name);
	if (!o)
		cli_usage_error(cli, "unknown option '%.*s'", (int)(name + len - word), word);
	if (is_long && name[len] == '=')
		value = name + len + 1;
	else if (!is_long && name[1])
		value = name + 1;
	if (o->kind == CLI_FLAG && value)
		cli_usage_error(cli, "option '%.*s' takes no value", (int)(name + len - word),
				word);
	i++;
	if (o->kind != CLI_FLAG && !value) {
		if (i == argc)
			cli_usage_error(cli, "option '%s' needs a value", word);
		value = argv[i++];
	}
	set_value(cli, o, value);
	return i;
}

static bool is_option(const char *word)
{
	return word[0] == '-' && word[1];
}

static void apply_globals(struct cli *cli, const struct globals *g)
{
	if (g->store)
		cli->store = *g->store ? g->store : NULL;
	if (g->control)
		cli->control = *g->control ? g->control : NULL;
	if (g->output)
		cli->json = !strcmp(g->output, "json");
	if (g->no_progress)
		cli->no_progress = true;
	if (g->help)
		cli->help = true;
	if (g->lock_timeout_s != UINT64_MAX)
		cli->lock_timeout_ns = g->lock_timeout_s > UINT64_MAX / 1000000000
					       ? UINT64_MAX
					       : g->lock_timeout_s * 1000000000;
	if (g->progress_fd != UINT64_MAX) {
		if (g->progress_fd > INT_MAX || fcntl((int)g->progress_fd, F_GETFD) < 0)
			cli_usage_error(cli, "--progress: descriptor %llu is not open",
					(unsigned long long)g->progress_fd);
		cli->progress_fd = (int)g->progress_fd;
	}
}

/* --- help --- */

static void print_option(const struct cli_option *o)
{
	char form[80];
	int n = snprintf(form, sizeof(form), o->letter ? "-%c, " : "    ", o->letter);

	snprintf(form + n, sizeof(form) - (size_t)n, "--%s%s%s", o->name, o->values ? "=" : "",
		 o->values ? o->values : "");
	if (strlen(form) > 34)
		printf("  %s\n  %-34s  %s\n", form, "", o->help);
	else
		printf("  %-34s  %s\n", form, o->help);
}

void cli_print_global_options(void)
{
	struct cli_option table[GLOBAL_OPTIONS];
	struct globals g = no_globals;

	globals_table(&g, table);
	printf("\nGlobal options, anywhere on the line:\n");
	for (const struct cli_option *o = table; o->name; o++)
		print_option(o);
}

static void print_help(const struct cli *cli, const struct cli_option *options)
{
	printf("Usage: vmimg %s%s%s\n%s.\n", cli->verb->name, *cli->verb->args ? " " : "",
	       cli->verb->args, cli->verb->summary ? cli->verb->summary : "Not for people");
	if (options && options->name)
		printf("\nOptions:\n");
	for (; options && options->name; options++)
		print_option(options);
	cli_print_global_options();
}

static void print_version(struct cli *cli)
{
	if (cli->json)
		printf("{\"version\": \"%s\"}\n", vmimg_version());
	else
		printf("vmimg %s\n", vmimg_version());
	exit(cli_finish_output(cli));
}

void cli_usage_error(struct cli *cli, const char *format, ...)
{
	char message[512];
	va_list ap;

	va_start(ap, format);
	vsnprintf(message, sizeof(message), format, ap);
	va_end(ap);
	cli_error(cli, -EINVAL, "%s", message);
	if (!cli->json && cli->verb)
		fprintf(stderr, "Usage: vmimg %s %s\nTry 'vmimg %s --help'.\n", cli->verb->name,
			cli->verb->args, cli->verb->name);
	else if (!cli->json)
		fprintf(stderr, "Try 'vmimg --help'.\n");
	exit(cli->verb && cli->verb->usage_status ? cli->verb->usage_status : CLI_USAGE);
}

/* --- the two entries --- */

/* Usage errors are JSON too, wherever on the line --output=json stands. */
static void find_output(struct cli *cli, int argc, char **argv)
{
	for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++) {
		if (!strcmp(argv[i], "--output=json") ||
		    (!strcmp(argv[i], "--output") && i + 1 < argc && !strcmp(argv[i + 1], "json")))
			cli->json = true;
	}
}

int cli_parse_global(struct cli *cli, int argc, char **argv, int i)
{
	struct cli_option table[GLOBAL_OPTIONS];
	struct globals g = no_globals;

	find_output(cli, argc, argv);
	globals_table(&g, table);
	while (i < argc && is_option(argv[i]))
		i = parse_option(cli, NULL, table, argc, argv, i);
	apply_globals(cli, &g);
	if (g.version)
		print_version(cli);
	return i;
}

int cli_parse(struct cli *cli, const struct cli_option *options, int argc, char **argv)
{
	struct cli_option table[GLOBAL_OPTIONS];
	struct globals g = no_globals;
	int words = 0;
	int i = 0;

	globals_table(&g, table);
	while (i < argc) {
		if (!strcmp(argv[i], "--")) {
			for (i++; i < argc; i++)
				argv[words++] = argv[i];
		} else if (is_option(argv[i])) {
			i = parse_option(cli, options, table, argc, argv, i);
		} else {
			argv[words++] = argv[i++];
		}
	}
	apply_globals(cli, &g);
	if (cli->help) {
		print_help(cli, options);
		exit(cli_finish_output(cli));
	}
	if (g.version)
		print_version(cli);
	if (words < (int)cli->verb->min_args)
		cli_usage_error(cli, "%s: missing argument", cli->verb->name);
	if (words > (int)cli->verb->max_args)
		cli_usage_error(cli, "%s: unexpected argument '%s'", cli->verb->name,
				argv[cli->verb->max_args]);
	return words;
}
