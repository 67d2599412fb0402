/* SPDX-License-Identifier: MIT */
/*
 * session.h - a verb's hold on the store, idle or served: the store itself, opened here, or a
 * connection to the server that has it. Calls go the same way in both (spec/control.md), so a verb does
 * and prints the same.
 */
#ifndef CLI_SESSION_H
#define CLI_SESSION_H

#include "cli/cli.h"

#include <jansson.h>

struct cli_session;

#define CLI_SOCKET_MAX 108 /* bytes of a Unix socket's address */

/*
 * The store named by -s or VMIMG_STORE: opened, or reached through the control socket of the server
 * that has it; waits cli->lock_timeout_ns while a process has it that is no server. @options: for an idle
 * store, or NULL. Returns CLI_OK, or CLI_FAILURE with the reason printed.
 */
int cli_begin(struct cli *cli, const struct vmimg_options *options, struct cli_session **ret);
/* The same without printing: 0 or a negative errno, with the reason in @err. */
int cli_begin_quietly(struct cli *cli, const struct vmimg_options *options, struct vmimg_error *err,
		      struct cli_session **ret);
/* Only when it is served: -ENOENT when there is no server. */
int cli_begin_served(struct cli *cli, struct cli_session **ret);
/* Returns @status, or CLI_FAILURE when closing failed. NULL is fine. */
int cli_end(struct cli *cli, struct cli_session *session, int status);
/*
 * A path to connect to in place of @path, which may be longer than an address holds: then it goes through a
 * descriptor of its directory, to be closed when connected (else -1). -ENOENT: there is no such directory.
 */
int cli_socket_path(const char *path, char ret[static CLI_SOCKET_MAX], int *dir_fd);
/* NULL: the store is served. */
struct vmimg_service *cli_service(const struct cli_session *session);

/*
 * Calls @method; takes @params (NULL: they could not be made, which is told). CLI_OK with *@result to be
 * released by json_decref(); @result may be NULL. CLI_FAILURE with the error printed.
 */
int cli_call(struct cli_session *session, const char *method, json_t *params, json_t **result);
/* The same with the result as its text, to be released by free(): for documents too large for a tree. */
int cli_call_text(struct cli_session *session, const char *method, json_t *params, char **result);
/* The same without printing: the error's document, to be released, or NULL with *@result. */
json_t *cli_try(struct cli_session *session, const char *method, json_t *params, json_t **result);
/* Prints what cli_try() returned, with the members of @more beside its own; takes both. CLI_FAILURE. */
int cli_fail_call(struct cli *cli, json_t *error, json_t *more);
/* The next line of a served store that is no reply: an event; NULL with the error printed, or at an
 * interrupt. */
json_t *cli_next_event(struct cli_session *session);

/* --- the verbs list and show, the same for every kind --- */
struct cli_column;
int cli_list(struct cli *cli, const char *kind, const char *filter,
	     const struct cli_column *columns);
int cli_show(struct cli *cli, const char *kind, const char *name);
/* With --output=json what was just made; nothing otherwise. Takes it. */
int cli_print_made(struct cli *cli, json_t *document);

/* A whole number of a document; 0 where there is none. */
uint64_t cli_number(const json_t *document, const char *key);
/* enum vmimg_job_state of a job's document. */
uint64_t cli_job_state(const json_t *job);

/* @path as the server sees it, absolute; malloced; NULL when memory is short. */
char *cli_absolute_path(const char *path);

#endif
