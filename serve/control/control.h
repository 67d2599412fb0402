/* SPDX-License-Identifier: MIT */
/*
 * control.h - what the files of the control socket share (spec/control.md). Private to them.
 *
 * CN-1: one thread a connection reads its lines, makes its calls and writes all that it gets; others
 * only queue events. CN-2: under the control's lock lie the lists, and of a connection what its comment
 * says; no call is made and nothing is written under it.
 */
#ifndef SERVE_CONTROL_H
#define SERVE_CONTROL_H

#include <pthread.h>

#include "serve/server.h"

#define SRV_CONTROL_CONNECTIONS 64u         /* CP-12 */
#define SRV_CONTROL_LINE_MAX    (64u << 10) /* CP-11 */
#define SRV_CONTROL_EVENTS      1024u       /* CP-18 */

struct srv_conn {
	struct srv_control *control;
	pthread_t thread;
	int fd;
	int wake; /* eventfd: an event waits */
	char *buffer;
	size_t used;
	uint64_t line_start_ns;                  /* when the line that has begun did */
	struct vmimg_subscription *subscription; /* NULL: none */
	/* the control's lock */
	struct srv_conn *next;
	bool dropped;
	char *events[SRV_CONTROL_EVENTS]; /* a ring */
	unsigned first_event, nevents;
};

struct srv_control {
	struct srv_server *server;
	char *path; /* absolute; unlinked at the end unless @passed */
	bool passed;
	int fd, wake;
	pthread_t acceptor;
	pthread_mutex_t lock; /* guards what follows */
	pthread_cond_t left;
	struct srv_conn *conns, *ended; /* ended: threads to be joined */
	unsigned nconns;
	bool stopping;
};

/* --- control_conn.c --- */
/* The thread of a connection, @arg. It leaves the list as its last deed. */
void *srv_conn_run(void *arg);
/* Events from here on (CP-17); again: nothing. The connection's thread. */
int srv_conn_subscribe(struct srv_conn *conn, struct vmimg_error *err);
/* One line, within @timeout_s. 0 or a negative errno. */
int srv_conn_send(int fd, const char *text, size_t len, unsigned timeout_s);

/* --- control_call.c --- */
/* The reply to @line, malloced; NULL when memory is short. The connection's thread; it may block. */
char *srv_control_answer(struct srv_conn *conn, const char *line);
/* An error's reply without a request to reply to. */
char *srv_control_refusal(int code, const char *message);

/* --- control.c --- */
/* The connection's thread has ended, but for being joined. */
void srv_control_left(struct srv_conn *conn);

#endif
