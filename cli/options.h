/* SPDX-License-Identifier: MIT */
/*
 * options.h - the command line: a verb declares its options in a table, cli_parse() fills them in.
 * Long options are --name=VALUE or --name VALUE, short ones -x VALUE or -xVALUE; global options may
 * stand anywhere; "--" ends options. What is wrong is named on standard error and ends the process.
 */
#ifndef CLI_OPTIONS_H
#define CLI_OPTIONS_H

#include "cli/cli.h"

enum cli_option_kind {
	CLI_FLAG,   /* bool: set by the option's presence */
	CLI_TEXT,   /* const char * */
	CLI_SIZE,   /* uint64_t: bytes, K, M, G, T */
	CLI_RATE,   /* uint64_t: the same, with or without "/s"; not 0 */
	CLI_COUNT,  /* uint64_t */
	CLI_CHOICE, /* const char *: one of the words in @values */
};

struct cli_option {
	const char *name; /* without dashes; NULL ends a table */
	char letter;      /* short form, or 0 */
	enum cli_option_kind kind;
	void *value;        /* of the kind's type; untouched unless the option is given */
	const char *values; /* what help calls the value; CLI_CHOICE: "one|two" */
	const char *help;
};

/*
 * Parses the global options from argv[i] on, and anywhere whether errors are to be JSON. Returns the
 * index of the first word that is no option.
 */
int cli_parse_global(struct cli *cli, int argc, char **argv, int i);
/*
 * Parses a verb's arguments: @options (NULL: none of its own) and the global ones. Moves the other
 * words to the front of @argv, checks their number against the verb's, and returns it. Exits on
 * --help and on a usage error.
 */
int cli_parse(struct cli *cli, const struct cli_option *options, int argc, char **argv);

/* "10", "4k", "1GiB". False when it is none, or does not fit. */
bool cli_parse_size(const char *text, uint64_t *ret);
bool cli_parse_count(const char *text, uint64_t *ret);
/* An argument that is a size; exits with a usage error that names @what otherwise. */
uint64_t cli_size_argument(struct cli *cli, const char *what, const char *text);

__attribute__((noreturn, format(printf, 2, 3))) void cli_usage_error(struct cli *cli,
								     const char *format, ...);
/* The options that every verb has, as help prints them. */
void cli_print_global_options(void);

#endif
