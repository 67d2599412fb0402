/* SPDX-License-Identifier: MIT */
/*
 * tls.h - TLS between a connection and its bytes (spec/nbd.md 7). A session does no I/O: its owner
 * brings what the socket had and takes away what the socket is to have, so it goes with the
 * connection from thread to thread and into any ring. Credentials are shared and never change.
 */
#ifndef SERVE_TLS_H
#define SERVE_TLS_H

#include <stddef.h>
#include <stdint.h>

#include "serve/serve.h"

struct srv_tls;
struct srv_tls_session;

/* *@ret is NULL when the options name no credentials. -EINVAL, -ENOENT, -EACCES, with the reason. */
int srv_tls_create(const struct serve_options *options, struct vmimg_error *err,
		   struct srv_tls **ret);
void srv_tls_destroy(struct srv_tls *tls); /* no session is left; NULL is fine */

int srv_tls_session_create(struct srv_tls *tls, struct srv_tls_session **ret);
void srv_tls_session_destroy(struct srv_tls_session *session); /* NULL is fine */
/* 0: done; -EAGAIN: more input; -EPROTO: it failed, srv_tls_why(). Output may be there each time. */
int srv_tls_handshake(struct srv_tls_session *session);
/* What went wrong last. */
const char *srv_tls_why(const struct srv_tls_session *session);

/* Where the next bytes from the socket go, and how many at most; all earlier input is used up. */
void *srv_tls_input(struct srv_tls_session *session, size_t *room);
void srv_tls_received(struct srv_tls_session *session, size_t len);
/* Plain bytes: their number; 0: the peer said goodbye; -EAGAIN: needs input; -EPROTO. */
int srv_tls_read(struct srv_tls_session *session, void *buf, size_t len);
/* Encrypts all of it into the output. -ENOMEM, -EPROTO. */
int srv_tls_write(struct srv_tls_session *session, const void *buf, size_t len);
void srv_tls_bye(struct srv_tls_session *session); /* a last alert into the output */
/* What is to be sent; then how much of it was. The bytes stay where they are until all of them were
 * sent, whatever is read and written meanwhile. */
const void *srv_tls_output(struct srv_tls_session *session, size_t *len);
void srv_tls_sent(struct srv_tls_session *session, size_t len);

#endif
