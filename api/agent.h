/* SPDX-License-Identifier: MIT */
/*
 * agent.h - one conversation with a QEMU guest agent over its Unix socket (spec/quiesce.md 5).
 * Private to the lease. Never blocks; what the agent sends is bounded and checked (QU-21). One thread.
 */
#ifndef API_AGENT_H
#define API_AGENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define API_AGENT_LINE_MAX 4096u      /* bytes of one answer */
#define API_AGENT_DROP_MAX (1u << 20) /* bytes dropped before a sync's answer */
#define API_AGENT_TEXT_MAX 161

enum api_ask {
	API_ASK_SYNC,
	API_ASK_FREEZE,
	API_ASK_THAW,
	API_ASK_STATUS,
};

struct api_answer {
	enum api_ask ask;
	bool failed;    /* the agent answered with an error: @text */
	bool unknown;   /* that it has no such command, or not for us */
	bool thawed;    /* STATUS */
	uint32_t count; /* FREEZE, THAW: file systems */
	char text[API_AGENT_TEXT_MAX];
};

struct api_agent {
	int fd; /* -1: not connected */
	/* until the sync's answer has come everything is dropped; behind its 0xFF a line is taken */
	bool syncing, marked;
	int64_t id;
	uint32_t dropped;
	enum api_ask asked[4]; /* not answered yet, oldest first */
	unsigned asked_count;
	char out[512];
	size_t out_len, out_sent;
	char in[1024];
	size_t in_len, in_at;
	char line[API_AGENT_LINE_MAX];
	size_t line_len;
};

void api_agent_init(struct api_agent *a);
/* -EAGAIN: its listener has no room just now. Closes what was open. */
int api_agent_connect(struct api_agent *a, const char *path);
void api_agent_close(struct api_agent *a);
/* Queues a command; -ENOBUFS when four are open. SYNC forgets what is open (QU-20). */
int api_agent_ask(struct api_agent *a, enum api_ask ask);
/* Sends what is queued as far as it goes; @a->out_sent < @a->out_len: more when writable. */
int api_agent_flush(struct api_agent *a);
/*
 * The next answer: 1, or 0 when there is none now. -ECONNRESET: the agent has hung up; -EBADMSG: it
 * breaks its protocol; others of recv(). After an error only close is left.
 */
int api_agent_take(struct api_agent *a, struct api_answer *ret);

#endif
