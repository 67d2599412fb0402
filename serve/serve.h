/* SPDX-License-Identifier: MIT */
/*
 * serve.h - the server of a store: every disk over NBD and vhost-user-blk, the API family over a
 * control socket. What `vmimg serve` runs; the only header of serve/ that others include.
 */
#ifndef SERVE_SERVE_H
#define SERVE_SERVE_H

#include "api/vmimg.h"

/* What is served, and how. Zeros and NULLs are the defaults; texts are borrowed until the return. */
struct serve_options {
	const char *store;         /* directory */
	struct vmimg_options open; /* .size is set by serve_run() */

	const char *nbd_socket;     /* NULL: STORE/nbd.sock; "": none */
	const char *nbd_tcp;        /* "HOST:PORT", "[V6]:PORT" or ":PORT"; NULL: no TCP */
	const char *control_socket; /* NULL: STORE/control.sock; "": none */
	const char *vhost_dir;      /* VM.DISK.sock are made in it; NULL: none */
	unsigned socket_mode;       /* of Unix sockets; 0: 0600 */

	const char *tls_certificates; /* directory: ca-cert.pem, server-cert.pem, server-key.pem */
	const char *tls_psk;          /* file of "user:key" lines */
	bool tls_required;            /* also on the Unix socket; TCP with TLS given always is */
	bool tls_verify_peer;

	unsigned threads;         /* workers; 0: one a processor, at most 64 */
	unsigned max_connections; /* 0: 1024 */
	uint32_t max_request;     /* bytes of one request; 0: 32 MiB; 64 KiB..64 MiB */
	uint64_t max_inflight;    /* bytes of payload that one connection has in work; 0: 64 MiB */
	uint64_t max_inflight_total;  /* of all; 0: 512 MiB */
	unsigned handshake_timeout_s; /* 0: 10 */
	unsigned drain_timeout_s;     /* at SIGTERM, for requests in flight; 0: 30 */

	const char *pid_file; /* written when all exports can be reached; NULL: none */
	bool log_json;        /* log lines on standard error as JSON, not as text */
};

/*
 * Opens the store and serves it until SIGTERM or SIGINT, then drains, flushes, detaches and closes.
 * Takes over those signals and logs on standard error. The calling thread is busy meanwhile; one
 * server a process. 0, or a negative errno with the reason in @err, nothing being left behind.
 */
int serve_run(const struct serve_options *options, struct vmimg_error *err);

#endif
