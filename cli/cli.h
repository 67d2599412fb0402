/* SPDX-License-Identifier: MIT */
/*
 * cli.h - what the files of the `vmimg` command share: the state of one invocation and the table of
 * verbs. One file a family of verbs; each ends in a table that main.c lists. A verb parses its
 * arguments (options.h) before it touches anything, so a usage error may simply exit, and returns the
 * exit status: 0, 1, or what `check` answers. One thread, except where a verb says otherwise.
 */
#ifndef CLI_CLI_H
#define CLI_CLI_H

#include "api/vmimg.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum cli_status {
	CLI_OK = 0,
	CLI_FAILURE = 1,
	CLI_USAGE = 2,
};

struct cli_verb;

struct cli {
	const struct cli_verb *verb; /* NULL while it is being looked for */
	const char *store;           /* -s, or VMIMG_STORE, or NULL */
	const char *control;         /* --control, or NULL: STORE/control.sock */
	bool json;                   /* --output=json */
	bool help;                   /* --help was given, wherever */
	int progress_fd;             /* --progress, or -1 */
	bool no_progress;
	char exe[4096];           /* this program; "": not known */
	uint64_t lock_timeout_ns; /* how long to wait for a store that another process has */
};

struct cli_verb {
	const char *name;    /* "disk create"; NULL ends a table */
	const char *args;    /* of the usage line */
	const char *summary; /* NULL: not listed */
	unsigned min_args, max_args;
	int (*run)(struct cli *cli, int argc, char **argv);
	int usage_status; /* 0: CLI_USAGE */
};

extern const struct cli_verb cli_image_verbs[];
extern const struct cli_verb cli_compare_verbs[];
extern const struct cli_verb cli_vm_verbs[];
extern const struct cli_verb cli_disk_verbs[];
extern const struct cli_verb cli_collection_verbs[];
extern const struct cli_verb cli_snapshot_verbs[];
extern const struct cli_verb cli_keep_verbs[];
extern const struct cli_verb cli_branch_verbs[];
extern const struct cli_verb cli_diff_verbs[];
extern const struct cli_verb cli_transfer_verbs[];
extern const struct cli_verb cli_refpoint_verbs[];
extern const struct cli_verb cli_job_verbs[];
extern const struct cli_verb cli_tree_verbs[];
extern const struct cli_verb cli_check_verbs[];
extern const struct cli_verb cli_bench_verbs[];
extern const struct cli_verb cli_events_verbs[];
extern const struct cli_verb cli_lease_verbs[];
extern const struct cli_verb cli_serve_verbs[];

/* --- store.c: an idle store, for verbs that work on its disks; session.h has the others' --- */
/*
 * Opens the store named by -s or VMIMG_STORE; waits cli->lock_timeout_ns while another process has it.
 * Returns CLI_OK, or CLI_FAILURE with the reason printed.
 */
int cli_open(struct cli *cli, const struct vmimg_options *options, struct vmimg_service **ret);
/* After -EBUSY at a try begun at @start_ns: whether to try again, after a pause. */
bool cli_wait_for_lock(struct cli *cli, uint64_t start_ns);
/* What vmimg_open() is told: @options, or the defaults, and @cli's own program as the lease. */
struct cli_open_options {
	struct vmimg_options options;
	const char *lease[3];
};
void cli_fill_options(const struct cli *cli, const struct vmimg_options *options,
		      struct cli_open_options *ret);
/* Closes and returns @status, or CLI_FAILURE when closing failed. NULL is fine. */
int cli_close(struct cli *cli, struct vmimg_service *svc, int status);

/* --- interrupts --- */
/* From here on SIGINT and SIGTERM set the flag instead of killing; one more a second later kills. */
void cli_catch_interrupts(void);
bool cli_interrupted(void);
/* The flag itself, for loops that are not the command's own. */
atomic_int *cli_interrupt_flag(void);

#endif
