/* SPDX-License-Identifier: MIT */
/*
 * store.c - a verb's hold on the store, and the interrupts that end it cleanly. A store belongs to one
 * process at a time, so commands that meet another one wait for it a little.
 */
#include "cli/cli.h"
#include "cli/options.h"
#include "cli/output.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <time.h>

#define LOCK_RETRY_NS (20 * 1000000L)

bool cli_wait_for_lock(struct cli *cli, uint64_t start_ns)
{
	const struct timespec pause = {.tv_nsec = LOCK_RETRY_NS};

	if (cli_interrupted() || cli_now_ns() - start_ns >= cli->lock_timeout_ns)
		return false;
	nanosleep(&pause, NULL);
	return true;
}

void cli_fill_options(const struct cli *cli, const struct vmimg_options *options,
		      struct cli_open_options *ret)
{
	*ret = (struct cli_open_options){.lease = {cli->exe, "lease", NULL}};
	if (options)
		ret->options = *options;
	ret->options.size = sizeof(ret->options);
	if (cli->exe[0])
		ret->options.lease_argv = ret->lease;
}

int cli_open(struct cli *cli, const struct vmimg_options *options, struct vmimg_service **ret)
{
	struct cli_open_options o;
	struct vmimg_error err = {0};
	uint64_t start = cli_now_ns();
	int r;

	if (!cli->store)
		cli_usage_error(cli, "no store: give --store=DIR or set VMIMG_STORE");
	cli_fill_options(cli, options, &o);
	do
		r = vmimg_open(cli->store, &o.options, &err, ret);
	while (r == -EBUSY && cli_wait_for_lock(cli, start));
	return r < 0 ? cli_fail(cli, r, &err) : CLI_OK;
}

int cli_close(struct cli *cli, struct vmimg_service *svc, int status)
{
	int r = vmimg_close(svc);

	if (r < 0 && status == CLI_OK)
		return cli_error(cli, r, "closing the store %s failed", cli->store);
	return status;
}

/* --- interrupts --- */

#define SECOND_NS UINT64_C(1000000000)

static atomic_int interrupted;
static _Atomic uint64_t first_ns;

/* Shells and timeout(1) may send the same signal twice: only a later one is meant as the second. */
static void on_interrupt(int sig)
{
	uint64_t now = cli_now_ns();

	if (!atomic_exchange(&interrupted, 1)) {
		atomic_store(&first_ns, now);
	} else if (now - atomic_load(&first_ns) > SECOND_NS) {
		signal(sig, SIG_DFL);
		raise(sig);
	}
}

void cli_catch_interrupts(void)
{
	/* No SA_RESTART: a read of standard input must end. */
	struct sigaction action = {.sa_handler = on_interrupt};

	sigemptyset(&action.sa_mask);
	sigaction(SIGINT, &action, NULL);
	sigaction(SIGTERM, &action, NULL);
}

bool cli_interrupted(void)
{
	return atomic_load(&interrupted) != 0;
}

atomic_int *cli_interrupt_flag(void)
{
	return &interrupted;
}
