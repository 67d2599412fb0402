/* SPDX-License-Identifier: MIT */
/*
 * agent.h - a QEMU guest agent for tests: a process of its own that speaks the protocol over a Unix
 * socket as a guest's port does (one client at a time, commands in order, also those of a client that
 * has gone), counts what it froze and thawed, and misbehaves as told.
 */
#ifndef TESTS_API_AGENT_H
#define TESTS_API_AGENT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

enum agent_script {
	AGENT_GOOD,
	AGENT_STALE,         /* rubbish and an old answer before the sync's */
	AGENT_SILENT,        /* never answers a sync */
	AGENT_FLOODS,        /* answers a sync without end */
	AGENT_REFUSES,       /* freeze: an error */
	AGENT_HAS_NO_FREEZE, /* freeze, thaw: no such commands */
	AGENT_GARBAGE,       /* freezes, and answers with no JSON */
	AGENT_ODD_COUNT,     /* freezes, and answers with a text for a number */
	AGENT_LONG_LINE,     /* freezes, and answers with a line of a megabyte */
	AGENT_HANGS_UP,      /* freezes, and closes the connection */
	AGENT_DIES,          /* freezes, and ends with its guest */
	AGENT_SLOW,          /* freezes after delay_ms */
	AGENT_WAS_THAWED,    /* thaws fewer file systems than it froze */
	AGENT_THAWS_BADLY,   /* the first delay_ms thaws fail, and it stays frozen */
	AGENT_CHATTERS,      /* says something unasked once it is frozen */
};

/* Shared with the process. Times: CLOCK_REALTIME. */
struct agent_state {
	_Atomic int script, delay_ms;
	_Atomic int frozen, freezes, thaws; /* now; transitions */
	_Atomic int asked;                  /* freezes that were begun */
	_Atomic int64_t frozen_at_ns, thawed_at_ns;
};

struct agent {
	pid_t pid; /* 0: ended */
	char path[108];
	struct agent_state *state;
};

void agent_start(struct agent *agent, const char *path);
void agent_kill(struct agent *agent);  /* the socket stays, as it does */
void agent_again(struct agent *agent); /* a new one at the socket; the guest's state stays */
void agent_end(struct agent *agent);

#endif
