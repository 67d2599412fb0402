/* SPDX-License-Identifier: MIT */
/*
 * nbd_conn.h - what the parts of the NBD server share: its lanes, its connections and their requests.
 * Private to serve/nbd_*.c.
 *
 * NC-1: a connection is on one lane at a time, and touched by that lane's worker only. While it waits
 * for an export it is on none, and nothing of it is in any ring.
 * NC-2: at most one receive and one send of a connection are in the ring; it is freed in its turn task,
 * when neither is, and no request of it lives.
 */
#ifndef SERVE_NBD_CONN_H
#define SERVE_NBD_CONN_H

#include <pthread.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "serve/nbd/nbd_buffer.h"
#include "serve/nbd/nbd_handshake.h"
#include "serve/server.h"
#include "serve/tls.h"

#define NBD_REQUESTS_MAX 256u /* NB-41 */
#define NBD_LISTENERS    9u
#define NBD_HEAD_MAX     48u

struct srv_nbd;
struct nbd_conn;

#define nbd_of(type, member, ptr) ((type *)((char *)(ptr)-offsetof(type, member)))

/* --- nbd.c: start, stop, lanes --- */

enum nbd_phase { NBD_SERVING, NBD_DRAINING, NBD_CUT };

/* What the server has on one worker. The first lane is the lobby's. */
struct nbd_lane {
	struct srv_nbd *nbd;
	struct srv_worker *worker;
	struct nbd_conn *conns;
	struct nbd_buffers buffers;
	struct nbd_req *spare; /* requests to be used again */
	unsigned nspare;
	struct srv_op tick_op;
	struct __kernel_timespec tick_time;
	uint64_t tick_data; /* its user data, to cancel it by */
	bool ticking;
};

struct nbd_listener {
	struct srv_op op;
	struct srv_nbd *nbd;
	uint64_t op_data;
	int fd;
	bool tcp, armed, paused; /* paused: out of descriptors; the next tick tries again */
	const char *path;        /* to be unlinked; or NULL */
};

struct srv_nbd {
	struct srv_server *server;
	_Atomic int phase;     /* enum nbd_phase */
	_Atomic unsigned live; /* connections that are not freed yet */
	pthread_mutex_t lock;  /* for @ended alone */
	pthread_cond_t ended;  /* the last one was freed */
	uint64_t ids;          /* the lobby's */
	char socket_path[4096];
	struct nbd_listener listeners[NBD_LISTENERS];
	unsigned nlisteners;
	unsigned nlanes;
	struct nbd_lane lanes[];
};

struct nbd_lane *nbd_lane_of(struct srv_nbd *nbd, const struct srv_worker *worker);
void nbd_lane_tick(struct nbd_lane *lane); /* there is something to look after */

/* --- nbd_listen.c --- */
int nbd_listen(struct srv_nbd *nbd, struct vmimg_error *err); /* makes the sockets; main thread */
void nbd_listen_arm(struct srv_nbd *nbd);                     /* the lobby */
void nbd_listen_cancel(struct srv_nbd *nbd);                  /* the lobby */
void nbd_listen_close(struct srv_nbd *nbd);                   /* nothing is armed */

/* --- nbd_conn.c: a connection's life and its bytes --- */

struct nbd_req {
	struct srv_io io;
	struct nbd_conn *conn;
	struct nbd_req *next; /* among the replies, or the spare */
	struct nbd_request wire;
	uint64_t start_ns;
	uint8_t *buf; /* payload, from the lane's buffers, got for buf_len bytes */
	uint32_t buf_len;
	uint32_t cost;  /* what it counts in flight */
	uint64_t piece; /* done in pieces: bytes behind us */
	struct iovec iov;
	uint32_t payload; /* bytes of @buf in the reply */
	uint32_t head_len;
	uint8_t head[NBD_HEAD_MAX];
};

/* The negotiation of a connection (nbd_greet.c). */
struct nbd_greeting {
	struct nbd_conn *conn;
	struct nbd_handshake hs;
	enum nbd_decision open; /* to be acted on when everything is sent */
	struct srv_want want;
	struct srv_task back; /* to the lobby */
	int result;
	struct nbd_export_info info;
	char info_name[SRV_EXPORT_NAME_MAX];
	struct nbd_context *found; /* contexts that the export has */
	size_t nfound;
	/* Of the contexts chosen, CHANGED: from the lobby's GO to the worker's nbd_status_choose(). */
	struct vmimg_baseline *baselines[NBD_CONTEXTS_MAX];
};

/* What a chosen context needs to answer (nbd_status.c). */
struct nbd_lens {
	enum nbd_context_kind kind;
	struct vmimg_baseline *baseline; /* CHANGED; NULL: it is gone, everything has changed */
};

struct nbd_conn {
	struct srv_nbd *nbd;
	struct nbd_lane *lane;
	struct nbd_conn *next, **link; /* of the lane */
	int fd;
	bool tcp;
	char name[64]; /* in the log */
	/* Uses what is in @in; false: it waits for something else than bytes. */
	bool (*consume)(struct nbd_conn *conn);
	struct srv_task turn;

	/* bytes in */
	struct srv_op recv_op;
	bool receiving, blocked; /* blocked: no room for the next request (NB-41) */
	bool ended;              /* nothing more is read */
	uint8_t *in;             /* NBD_IN_CAP bytes */
	uint32_t in_at, in_len;
	uint32_t skip;           /* bytes of payload to be thrown away */
	struct nbd_req *refused; /* whose payload that is; replied to behind it (NB-30) */
	int32_t refusal;
	struct nbd_req *filling; /* a write whose payload is arriving */
	uint32_t filled;

	/* bytes out: the greeting's, then the replies */
	struct srv_op send_op;
	bool sending;
	bool broken; /* shut down: whatever is left is dropped */
	struct nbd_req *replies, **replies_tail;
	size_t first_sent; /* bytes of the first reply */
	struct msghdr msg; /* of the send in the ring */
	struct iovec *iov;

	/* TLS */
	struct srv_tls_session *tls;
	bool securing; /* its handshake is not done */
	bool parted;   /* goodbye was said */

	struct nbd_greeting *greeting; /* until transmission begins */
	uint64_t deadline_ns;          /* of the negotiation; then 0 */

	/* transmission */
	struct srv_export *export;
	bool structured, draining, lingering;
	uint64_t linger_ns;
	unsigned requests; /* that live */
	uint64_t inflight; /* bytes */
	unsigned nlenses;
	struct nbd_lens lenses[NBD_CONTEXTS_MAX];
};

/* Takes @fd. The lobby. */
void nbd_conn_create(struct srv_nbd *nbd, int fd, bool tcp);
void nbd_conn_enter(struct nbd_conn *conn, struct nbd_lane *lane);
void nbd_conn_leave(struct nbd_conn *conn); /* its lane; to wait for an export */
void nbd_conn_pump(struct nbd_conn *conn);  /* uses bytes, and asks for more */
void nbd_conn_kick(struct nbd_conn *conn);  /* its turn comes at the end of this one */
void nbd_conn_break(struct nbd_conn *conn); /* no more bytes, in or out */
/* The client broke the protocol, or the connection cannot go on. */
void nbd_conn_fail(struct nbd_conn *conn, const char *why);
void nbd_conn_drain(struct nbd_conn *conn, enum nbd_phase phase); /* NB-50 */

/* --- nbd_send.c --- */
void nbd_send_flush(struct nbd_conn *conn);
bool nbd_send_idle(const struct nbd_conn *conn); /* nothing to send, and nothing being sent */
void nbd_send_drop(struct nbd_conn *conn);
void nbd_send_done(struct srv_op *op, int32_t result, uint32_t flags);

/* --- nbd_greet.c: negotiation --- */
int nbd_greet_start(struct nbd_conn *conn);
bool nbd_greet_consume(struct nbd_conn *conn);
/* All is sent: go on, with the open decision if there is one. May move the connection away: whoever
 * calls does not touch it afterwards. */
void nbd_greet_act(struct nbd_conn *conn);
void nbd_greeting_destroy(struct nbd_greeting *greeting); /* NULL is fine */

/* --- nbd_serve.c: requests --- */
bool nbd_serve_consume(struct nbd_conn *conn);
void nbd_serve_filled(struct nbd_conn *conn); /* the payload of @filling is all there */
void nbd_req_put(struct nbd_req *req);
/* The request has ended: its reply goes out with the turn. */
void nbd_reply(struct nbd_req *req, int32_t result);
/* Makes *@req's buffer one of at least @len bytes, for a reply's payload. -ENOMEM. */
int nbd_req_grow(struct nbd_req *req, uint32_t len);

/* --- nbd_status.c: block status --- */
/* Takes the baselines. */
void nbd_status_choose(struct nbd_conn *conn, const struct nbd_context *contexts,
		       struct vmimg_baseline **baselines, unsigned count);
void nbd_status_fini(struct nbd_conn *conn);
uint32_t nbd_status_memory(const struct nbd_conn *conn); /* at most, for one request */
void nbd_status_start(struct nbd_req *req);

/* --- nbd_names.c: the catalog's names; may wait for it --- */
struct nbd_names {
	char **names;
	size_t count;
};
int nbd_names_exports(struct vmimg_service *svc, struct nbd_names *ret);
/* An export, as what a context compares. */
struct nbd_subject {
	char disk[SRV_EXPORT_NAME_MAX]; /* VM/DISK */
};
int nbd_names_look_up(struct vmimg_service *svc, const char *export, struct nbd_subject *ret);
/* Whether @point ("COLLECTION@NAME", "COLLECTION#NAME") holds the disk. */
bool nbd_names_comparable(struct vmimg_service *svc, const struct nbd_subject *subject,
			  const char *point);
int nbd_names_points(struct vmimg_service *svc, const struct nbd_subject *subject,
		     struct nbd_names *ret);                   /* all of those */
int nbd_names_only_disk(struct vmimg_service *svc, char *ret); /* SRV_EXPORT_NAME_MAX; -ENOENT */
void nbd_names_fini(struct nbd_names *names);

#endif
