/* SPDX-License-Identifier: MIT */
/*
 * progress.c - how far a long verb is: a bar where standard error is a terminal, a JSON object a line
 * on the descriptor of --progress. At most ten a second, and always the last.
 */
#include "cli/output.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define INTERVAL_NS 100000000u
#define BAR_WIDTH   30u

void cli_progress_init(struct cli_progress *progress, struct cli *cli, const char *operation)
{
	*progress = (struct cli_progress){.cli = cli, .operation = operation};
}

static void draw_bar(struct cli_progress *p, uint64_t done, uint64_t total)
{
	static const char full[] = "##############################";
	unsigned percent = (unsigned)((double)done * 100 / (double)total);
	unsigned cells = percent * BAR_WIDTH / 100;

	fprintf(stderr, "\r%s [%.*s%*s] %3u %%", p->operation, (int)cells, full,
		(int)(BAR_WIDTH - cells), "", percent);
	p->drawn = true;
}

void cli_progress_show(struct cli_progress *p, uint64_t done, uint64_t total)
{
	uint64_t now = cli_now_ns();

	if (!total || (done < total && p->last_ns && now - p->last_ns < INTERVAL_NS))
		return;
	p->last_ns = now;
	if (p->cli->progress_fd >= 0) {
		/* A reader that went away must not end the operation. */
		(void)!dprintf(p->cli->progress_fd,
			       "{\"operation\": \"%s\", \"done\": %llu, \"total\": %llu, "
			       "\"percent_complete\": %u}\n",
			       p->operation, (unsigned long long)done, (unsigned long long)total,
			       (unsigned)((double)done * 100 / (double)total));
	} else if (!p->cli->no_progress && !p->cli->json && isatty(STDERR_FILENO)) {
		draw_bar(p, done, total);
	}
}

void cli_progress_fini(struct cli_progress *p)
{
	if (p->drawn)
		fputc('\n', stderr);
	p->drawn = false;
}
