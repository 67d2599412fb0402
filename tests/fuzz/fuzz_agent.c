/* SPDX-License-Identifier: MIT */
/*
 * fuzz_agent.c - any bytes as what a guest agent sends to the lease (QU-21), in any pieces, while
 * commands are asked of it. The input's first byte chooses where it is cut. Invariants:
 * - no crash, no undefined behaviour, no leak; it ends, since what is read is what was sent
 * - an answer is of the command that was asked first, and there are no more answers than commands
 * - what is told of an error is short and printable
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "api/agent.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static void check(bool ok, const char *what)
{
	if (!ok) {
		fprintf(stderr, "violated: %s\n", what);
		abort();
	}
}

static void check_text(const char *text)
{
	check(strnlen(text, API_AGENT_TEXT_MAX) < API_AGENT_TEXT_MAX, "a text has an end");
	for (const char *c = text; *c; c++)
		check((uint8_t)*c >= 0x20 && *c != 0x7f, "a text is printable");
}

/* Everything that has come; false: only close is left. */
static bool drain(struct api_agent *a, enum api_ask *next)
{
	struct api_answer answer;
	int r;

	while ((r = api_agent_take(a, &answer)) > 0) {
		check(answer.ask == *next, "answers come in order");
		check(answer.ask != API_ASK_SYNC || !a->syncing, "a sync is over with its answer");
		check(answer.count <= INT32_MAX, "a count is in range");
		check_text(answer.text);
		*next = answer.ask + 1;
	}
	return r == 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	enum api_ask next = API_ASK_SYNC;
	struct api_agent a;
	size_t piece, at = 1;
	char buf[512];
	int ends[2];

	if (len < 2 || socketpair(AF_UNIX, SOCK_STREAM, 0, ends) < 0)
		return 0;
	piece = data[0] ? data[0] : 4096;
	api_agent_init(&a);
	a.fd = ends[0];
	check(api_agent_ask(&a, API_ASK_SYNC) == 0, "there is room");
	a.id = 7; /* so that the input can answer it */
	for (int ask = API_ASK_FREEZE; ask <= API_ASK_STATUS; ask++)
		check(api_agent_ask(&a, (enum api_ask)ask) == 0, "there is room");
	check(api_agent_ask(&a, API_ASK_STATUS) < 0, "and none for a fifth");
	check(api_agent_flush(&a) == 0, "it is sent");
	check(read(ends[1], buf, sizeof(buf)) > 0, "and comes");
	while (at < len) {
		size_t n = len - at < piece ? len - at : piece;

		if (send(ends[1], data + at, n, MSG_DONTWAIT | MSG_NOSIGNAL) != (ssize_t)n ||
		    !drain(&a, &next))
			break;
		at += n;
	}
	api_agent_close(&a);
	close(ends[1]);
	return 0;
}
