/* SPDX-License-Identifier: MIT */
/*
 * server.h - what the parts of serve/ share: one server, its limits, its log. Private to serve/.
 */
#ifndef SERVE_SERVER_H
#define SERVE_SERVER_H

#include <stdatomic.h>

#include "serve/export.h"
#include "serve/serve.h"
#include "serve/worker.h"

struct srv_control;
struct srv_nbd;
struct srv_tls;
struct srv_vhost;
struct srv_watch;

struct srv_server {                   /* immutable while serving, but for the atomics */
	struct serve_options options; /* defaults filled in */
	struct vmimg_service *svc;
	struct srv_worker *lobby;
	struct srv_worker **workers;
	unsigned nworkers;
	struct srv_exports *exports;
	struct srv_tls *tls; /* NULL: none */
	struct srv_watch *watch;
	struct srv_nbd *nbd;
	struct srv_vhost *vhost;
	struct srv_control *control;
	uint64_t start_ns;

	_Atomic bool stopping;
	_Atomic bool imported;           /* disks may have come that no call has named */
	_Atomic unsigned connections;    /* NBD and vhost-user */
	_Atomic uint64_t inflight_bytes; /* payload in work, all connections */
	_Atomic uint64_t accepted, refused;
};

/*
 * The parts. Each starts after those above it in struct srv_server, and is stopped before them:
 * start makes the listening sockets, so that clients can connect once all have started; stop takes
 * no new client, lets what is in flight end within the drain timeout, then drops it, and returns when
 * nothing of the part is left on any worker. Both on the main thread. NULL is fine for stop.
 */
int srv_watch_start(struct srv_server *server, struct vmimg_error *err, struct srv_watch **ret);
void srv_watch_stop(struct srv_watch *watch);
int srv_nbd_start(struct srv_server *server, struct vmimg_error *err, struct srv_nbd **ret);
void srv_nbd_stop(struct srv_nbd *nbd);
int srv_vhost_start(struct srv_server *server, struct vmimg_error *err, struct srv_vhost **ret);
void srv_vhost_stop(struct srv_vhost *vhost);
/* Any thread but a worker: the disk's socket comes or goes by what there is now; all disks'. */
void srv_vhost_follow(struct srv_vhost *vhost, const char *disk);
void srv_vhost_follow_all(struct srv_vhost *vhost);
int srv_control_start(struct srv_server *server, struct vmimg_error *err, struct srv_control **ret);
void srv_control_stop(struct srv_control *control);

/* --- listen.c: sockets --- */
/* A listening Unix socket at @path, mode @mode; one that a dead process left is replaced, a live one
 * is -EADDRINUSE. Passed sockets (systemd) of the name @fdname come first: *@passed tells, and @path is
 * then not unlinked at the end. */
int srv_listen_unix(const char *path, unsigned mode, const char *fdname, struct vmimg_error *err,
		    bool *passed);
/* Listening sockets for "HOST:PORT", at most @max; returns how many. */
int srv_listen_tcp(const char *address, int *fds, unsigned max, struct vmimg_error *err);

/* --- log.c: one line an event on standard error; any thread --- */
enum srv_level { SRV_ERROR = 3, SRV_WARNING = 4, SRV_INFO = 6, SRV_DEBUG = 7 }; /* as syslog's */
void srv_log_set(bool json);
/* @about: an export, a client, a collection; or NULL. */
void srv_log(enum srv_level level, const char *about, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

/* --- error texts; return @code --- */
int srv_fail(struct vmimg_error *err, int code, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

/* --- metrics.c: counters as documents, to be released with free() --- */
char *srv_metrics_json(struct srv_server *server);
char *srv_metrics_prometheus(struct srv_server *server);

#endif
