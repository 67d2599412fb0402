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

/* How far, and what is known of the rest. */
struct state {
	uint64_t done, total; /* of 100, or bytes */
	bool bytes;
	uint64_t rate, left_ns;
	unsigned percent;
};

static int rest_text(const struct state *st, char *buf, size_t size)
{
	char rate[CLI_TEXT_MAX], total[CLI_TEXT_MAX];
	uint64_t s = st->left_ns / 1000000000;
	int n = 0;

	buf[0] = 0;
	if (st->bytes)
		n = snprintf(buf, size, " of %s", cli_size_text(total, st->total));
	if (st->rate)
		n += snprintf(buf + n, size - (size_t)n, ", %s/s", cli_size_text(rate, st->rate));
	if (st->left_ns != UINT64_MAX)
		n += snprintf(buf + n, size - (size_t)n, ", %llu:%02llu left",
			      (unsigned long long)(s / 60), (unsigned long long)(s % 60));
	return n;
}

static void draw_bar(struct cli_progress *p, const struct state *st)
{
	static const char full[] = "##############################";
	unsigned cells = st->percent * BAR_WIDTH / 100, width;
	char rest[128];

	rest_text(st, rest, sizeof(rest));
	width = (unsigned)fprintf(stderr, "\r%s [%.*s%*s] %3u %%%s", p->operation, (int)cells, full,
				  (int)(BAR_WIDTH - cells), "", st->percent, rest);
	if (width < p->width)
		fprintf(stderr, "%*s", (int)(p->width - width), "");
	p->width = width;
	p->drawn = true;
}

static void write_line(struct cli_progress *p, const struct state *st)
{
	char more[96] = "";
	int n = 0;

	if (st->bytes)
		n = snprintf(more, sizeof(more), ", \"bytes_per_second\": %llu",
			     (unsigned long long)st->rate);
	if (st->left_ns != UINT64_MAX)
		snprintf(more + n, sizeof(more) - (size_t)n, ", \"remaining_time\": %llu",
			 (unsigned long long)st->left_ns);
	/* A reader that went away must not end the operation. */
	(void)!dprintf(p->cli->progress_fd,
		       "{\"operation\": \"%s\", \"done\": %llu, \"total\": %llu, "
		       "\"percent_complete\": %u%s}\n",
		       p->operation, (unsigned long long)st->done, (unsigned long long)st->total,
		       st->percent, more);
}

static void show(struct cli_progress *p, struct state *st)
{
	uint64_t now = cli_now_ns();

	if (!st->total || (st->done < st->total && p->last_ns && now - p->last_ns < INTERVAL_NS))
		return;
	p->last_ns = now;
	st->percent = (unsigned)((double)st->done * 100 / (double)st->total);
	if (p->cli->progress_fd >= 0)
		write_line(p, st);
	else if (!p->cli->no_progress && !p->cli->json && isatty(STDERR_FILENO))
		draw_bar(p, st);
}

void cli_progress_show(struct cli_progress *p, uint64_t done, uint64_t total)
{
	struct state st = {.done = done, .total = total, .left_ns = UINT64_MAX};

	show(p, &st);
}

void cli_progress_bytes(struct cli_progress *p, uint64_t done, uint64_t total, uint64_t rate,
			uint64_t left_ns)
{
	struct state st = {
		.done = done, .total = total, .bytes = true, .rate = rate, .left_ns = left_ns};

	show(p, &st);
}

void cli_progress_fini(struct cli_progress *p)
{
	if (p->drawn)
		fputc('\n', stderr);
	p->drawn = false;
}
