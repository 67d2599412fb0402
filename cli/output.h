/* SPDX-License-Identifier: MIT */
/*
 * output.h - everything the command prints: errors, JSON documents, tables, progress. Human texts go
 * through the same documents as --output=json, so both forms say the same.
 */
#ifndef CLI_OUTPUT_H
#define CLI_OUTPUT_H

#include "cli/cli.h"

#include <jansson.h>

/* --- errors: all return CLI_FAILURE --- */
/* @code: a negative errno, or a number of the API family. */
__attribute__((format(printf, 3, 4))) int cli_error(struct cli *cli, int64_t code,
						    const char *format, ...);
/* The library's message; @code when it left none. */
int cli_fail(struct cli *cli, int64_t code, const struct vmimg_error *err);
/* An error with more members beside code and message; takes @more. */
int cli_error_with(struct cli *cli, int64_t code, const char *message, json_t *more);
/* {"code": ..., "message": ...}; NULL when out of memory. */
json_t *cli_error_document(int64_t code, const char *message);

/* --- documents --- */
/* Parses what the library returned and frees it; NULL with the reason printed. */
json_t *cli_take_json(struct cli *cli, char *text);
/* One JSON document on standard output. Takes @document. */
int cli_print_json(struct cli *cli, json_t *document);
/* --output=json: the document; human: "key  value" lines, lists of objects as tables. Takes it. */
int cli_print(struct cli *cli, json_t *document);
/* Flushes standard output: CLI_FAILURE when something could not be written. */
int cli_finish_output(struct cli *cli);

enum cli_format {
	CLI_AS_TEXT,
	CLI_AS_SIZE,
	CLI_AS_DURATION,    /* ns */
	CLI_AS_TIME,        /* ISO 8601 text */
	CLI_AS_CONSISTENCY, /* enum vmimg_consistency */
	CLI_AS_LIST,        /* of strings, with commas */
	CLI_AS_TAGS,        /* of objects, their "tag" */
	CLI_AS_RATE,        /* bytes a second */
	CLI_AS_LIMIT,       /* the same, 0: none */
	CLI_AS_JOB_STATE,   /* enum vmimg_job_state */
	CLI_AS_JOB_TYPE,    /* VMIMG_JOB_TYPE_... */
};

struct cli_column {
	const char *title; /* NULL ends a table */
	const char *key;
	enum cli_format format;
};

/* --output=json: the array; human: a table of these columns. Takes @rows. */
int cli_print_rows(struct cli *cli, json_t *rows, const struct cli_column *columns);

/* --- texts: into @buf, returned --- */
#define CLI_TEXT_MAX 32
const char *cli_size_text(char buf[static CLI_TEXT_MAX], uint64_t bytes);
const char *cli_duration_text(char buf[static CLI_TEXT_MAX], uint64_t ns);
const char *cli_time_text(char buf[static CLI_TEXT_MAX], const char *iso); /* to the second */

/* --- progress: a bar on a terminal, JSON lines on --progress=FD --- */
struct cli_progress {
	struct cli *cli;
	const char *operation;
	uint64_t last_ns;
	bool drawn;
	unsigned width; /* of the line drawn last */
};
void cli_progress_init(struct cli_progress *progress, struct cli *cli, const char *operation);
void cli_progress_show(struct cli_progress *progress, uint64_t done, uint64_t total);
/* With how fast it goes (bytes a second; 0: not known) and how long it takes (ns; UINT64_MAX: not known). */
void cli_progress_bytes(struct cli_progress *progress, uint64_t done, uint64_t total, uint64_t rate,
			uint64_t left_ns);
void cli_progress_fini(struct cli_progress *progress);

uint64_t cli_now_ns(void); /* monotonic */

#endif
