/* SPDX-License-Identifier: MIT */
/*
 * tls.c - GnuTLS over buffers in memory: its pull function reads what the ring has received, its push
 * function appends to what the ring will send. Neither ever fails for want of room: input is taken
 * before more is asked for, and the owner bounds what it writes before the output is sent (TL-6).
 */
#include "serve/tls.h"

#include <errno.h>
#include <gnutls/gnutls.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "serve/server.h"

#define INPUT_CAP 32768u /* a record, the largest, and what belongs to the next */
#define KEEP_MAX  65536u /* bytes of output buffer that a quiet session keeps */

struct srv_tls {
	gnutls_certificate_credentials_t certificates; /* or NULL */
	gnutls_psk_server_credentials_t psk;           /* or NULL */
	gnutls_priority_t priority;
	bool verify_peer;
};

struct srv_tls_session {
	gnutls_session_t session;
	uint8_t in[INPUT_CAP];
	size_t in_at, in_len;
	/* What is to be sent, and what came after somebody began to send that: a read may answer the
	 * peer (new keys, an alert) while the ring reads the first. */
	struct bytes {
		uint8_t *at;
		size_t start, end, cap;
	} out, late;
	const char *why;
};

/* --- credentials --- */

static int load_certificates(struct srv_tls *tls, const char *dir, struct vmimg_error *err)
{
	static const char *const names[] = {"ca-cert.pem", "server-cert.pem", "server-key.pem"};
	char path[3][4096];
	int r;

	for (unsigned i = 0; i < 3; i++) {
		if (snprintf(path[i], sizeof(path[i]), "%s/%s", dir, names[i]) >=
		    (int)sizeof(path[i]))
			return srv_fail(err, -ENAMETOOLONG, "%s: too long", dir);
		if (access(path[i], R_OK) < 0)
			return srv_fail(err, -errno, "%s: %s", path[i], strerror(errno));
	}
	r = gnutls_certificate_allocate_credentials(&tls->certificates);
	if (r < 0)
		return srv_fail(err, -ENOMEM, "TLS: %s", gnutls_strerror(r));
	r = gnutls_certificate_set_x509_trust_file(tls->certificates, path[0], GNUTLS_X509_FMT_PEM);
	if (r < 0)
		return srv_fail(err, -EINVAL, "%s: %s", path[0], gnutls_strerror(r));
	r = gnutls_certificate_set_x509_key_file(tls->certificates, path[1], path[2],
						 GNUTLS_X509_FMT_PEM);
	if (r < 0)
		return srv_fail(err, -EINVAL, "%s, %s: %s", path[1], path[2], gnutls_strerror(r));
	r = gnutls_certificate_set_known_dh_params(tls->certificates, GNUTLS_SEC_PARAM_MEDIUM);
	return r < 0 ? srv_fail(err, -EINVAL, "TLS: %s", gnutls_strerror(r)) : 0;
}

static int load_psk(struct srv_tls *tls, const char *path, struct vmimg_error *err)
{
	struct stat st;
	int r;

	if (access(path, R_OK) < 0 || stat(path, &st) < 0)
		return srv_fail(err, -errno, "%s: %s", path, strerror(errno));
	if (st.st_mode & (S_IROTH | S_IWOTH)) /* TL-4 */
		return srv_fail(err, -EACCES,
				"%s: mode is %o, expected keys that others cannot read", path,
				st.st_mode & 07777);
	r = gnutls_psk_allocate_server_credentials(&tls->psk);
	if (r < 0)
		return srv_fail(err, -ENOMEM, "TLS: %s", gnutls_strerror(r));
	r = gnutls_psk_set_server_credentials_file(tls->psk, path);
	if (r < 0)
		return srv_fail(err, -EINVAL, "%s: %s", path, gnutls_strerror(r));
	r = gnutls_psk_set_server_known_dh_params(tls->psk, GNUTLS_SEC_PARAM_MEDIUM);
	return r < 0 ? srv_fail(err, -EINVAL, "TLS: %s", gnutls_strerror(r)) : 0;
}

int srv_tls_create(const struct serve_options *options, struct vmimg_error *err,
		   struct srv_tls **ret)
{
	struct srv_tls *tls;
	int r = 0;

	if (!options->tls_certificates && !options->tls_psk) {
		if (options->tls_required || options->tls_verify_peer)
			return srv_fail(err, -EINVAL,
					"TLS is required, but there are no credentials");
		*ret = NULL;
		return 0;
	}
	if (options->tls_verify_peer && !options->tls_certificates)
		return srv_fail(err, -EINVAL, "clients can be verified with certificates only");
	tls = calloc(1, sizeof(*tls));
	if (!tls)
		return srv_fail(err, -ENOMEM, "TLS: out of memory");
	tls->verify_peer = options->tls_verify_peer;
	if (options->tls_certificates)
		r = load_certificates(tls, options->tls_certificates, err);
	if (r == 0 && options->tls_psk)
		r = load_psk(tls, options->tls_psk, err);
	if (r == 0 && gnutls_priority_init(&tls->priority,
					   options->tls_psk ? "NORMAL:-VERS-TLS1.1:-VERS-TLS1.0:"
							      "+ECDHE-PSK:+DHE-PSK:+PSK"
							    : "NORMAL:-VERS-TLS1.1:-VERS-TLS1.0",
					   NULL) < 0)
		r = srv_fail(err, -EINVAL, "TLS: this GnuTLS has no such ciphers");
	if (r < 0) {
		srv_tls_destroy(tls);
		return r;
	}
	*ret = tls;
	return 0;
}

void srv_tls_destroy(struct srv_tls *tls)
{
	if (!tls)
		return;
	if (tls->certificates)
		gnutls_certificate_free_credentials(tls->certificates);
	if (tls->psk)
		gnutls_psk_free_server_credentials(tls->psk);
	if (tls->priority)
		gnutls_priority_deinit(tls->priority);
	free(tls);
}

/* --- the buffers --- */

static ssize_t pull(gnutls_transport_ptr_t arg, void *buf, size_t len)
{
	struct srv_tls_session *s = arg;
	size_t n = s->in_len - s->in_at < len ? s->in_len - s->in_at : len;

	if (n == 0) {
		gnutls_transport_set_errno(s->session, EAGAIN);
		return -1;
	}
	memcpy(buf, s->in + s->in_at, n);
	s->in_at += n;
	return (ssize_t)n;
}

static ssize_t push(gnutls_transport_ptr_t arg, const void *buf, size_t len)
{
	struct srv_tls_session *s = arg;
	struct bytes *b = &s->late;

	if (b->end + len > b->cap) {
		size_t cap = (b->end + len) / 2 * 3 + 4096;
		uint8_t *at = realloc(b->at, cap);

		if (!at) {
			gnutls_transport_set_errno(s->session, ENOMEM);
			return -1;
		}
		b->at = at;
		b->cap = cap;
	}
	memcpy(b->at + b->end, buf, len);
	b->end += len;
	return (ssize_t)len;
}

/* Input is taken at once, so there is never a time to wait for. */
static int pull_timeout(gnutls_transport_ptr_t arg, unsigned ms)
{
	struct srv_tls_session *s = arg;

	(void)ms;
	return s->in_at < s->in_len;
}

void *srv_tls_input(struct srv_tls_session *s, size_t *room)
{
	s->in_at = 0;
	s->in_len = 0;
	*room = INPUT_CAP;
	return s->in;
}

void srv_tls_received(struct srv_tls_session *s, size_t len)
{
	s->in_len = len;
}

const void *srv_tls_output(struct srv_tls_session *s, size_t *len)
{
	if (s->out.start == s->out.end) {
		struct bytes sent = s->out;

		s->out = s->late;
		s->late = sent;
		s->late.start = s->late.end = 0;
	}
	*len = s->out.end - s->out.start;
	return s->out.at + s->out.start;
}

void srv_tls_sent(struct srv_tls_session *s, size_t len)
{
	s->out.start += len;
	if (s->out.start < s->out.end)
		return;
	s->out.start = s->out.end = 0;
	if (s->out.cap > KEEP_MAX) {
		free(s->out.at);
		s->out = (struct bytes){0};
	}
}

/* --- sessions --- */

int srv_tls_session_create(struct srv_tls *tls, struct srv_tls_session **ret)
{
	struct srv_tls_session *s = calloc(1, sizeof(*s));
	int r;

	if (!s)
		return -ENOMEM;
	r = gnutls_init(&s->session, GNUTLS_SERVER | GNUTLS_NONBLOCK | GNUTLS_NO_SIGNAL);
	if (r < 0) {
		free(s);
		return -ENOMEM;
	}
	r = gnutls_priority_set(s->session, tls->priority);
	if (r == 0 && tls->certificates)
		r = gnutls_credentials_set(s->session, GNUTLS_CRD_CERTIFICATE, tls->certificates);
	if (r == 0 && tls->psk)
		r = gnutls_credentials_set(s->session, GNUTLS_CRD_PSK, tls->psk);
	if (r < 0) {
		srv_tls_session_destroy(s);
		return -ENOMEM;
	}
	if (tls->verify_peer) {
		gnutls_certificate_server_set_request(s->session, GNUTLS_CERT_REQUIRE);
		gnutls_session_set_verify_cert(s->session, NULL, 0);
	}
	/* The owner keeps the time (TL-5). */
	gnutls_handshake_set_timeout(s->session, GNUTLS_INDEFINITE_TIMEOUT);
	gnutls_transport_set_ptr(s->session, s);
	gnutls_transport_set_pull_function(s->session, pull);
	gnutls_transport_set_pull_timeout_function(s->session, pull_timeout);
	gnutls_transport_set_push_function(s->session, push);
	*ret = s;
	return 0;
}

void srv_tls_session_destroy(struct srv_tls_session *s)
{
	if (!s)
		return;
	gnutls_deinit(s->session);
	free(s->out.at);
	free(s->late.at);
	free(s);
}

static int result_of(struct srv_tls_session *s, int r)
{
	if (r == GNUTLS_E_AGAIN || r == GNUTLS_E_INTERRUPTED)
		return -EAGAIN;
	s->why = gnutls_strerror(r);
	return -EPROTO;
}

int srv_tls_handshake(struct srv_tls_session *s)
{
	int r;

	do
		r = gnutls_handshake(s->session);
	while (r < 0 && !gnutls_error_is_fatal(r) && s->in_at < s->in_len);
	if (r == 0)
		return 0;
	if (r < 0 && !gnutls_error_is_fatal(r))
		return -EAGAIN;
	gnutls_alert_send_appropriate(s->session, r);
	return result_of(s, r);
}

const char *srv_tls_why(const struct srv_tls_session *s)
{
	return s->why ? s->why : "no error";
}

/*
 * GnuTLS says "again" also when it has dealt with a message of its own, new keys say, and more has
 * been received: until that is taken there is no room for anything else (srv_tls_input()).
 */
int srv_tls_read(struct srv_tls_session *s, void *buf, size_t len)
{
	unsigned idle = 0;

	for (;;) {
		size_t at = s->in_at;
		ssize_t n = gnutls_record_recv(s->session, buf, len);

		if (n >= 0)
			return (int)n;
		if (gnutls_error_is_fatal((int)n))
			return result_of(s, (int)n);
		if (s->in_at == s->in_len)
			return -EAGAIN;
		/* A message may have been whole already; two turns that take nothing never end. */
		idle = s->in_at == at ? idle + 1 : 0;
		if (idle > 1) {
			s->why = "it leaves what it received";
			return -EPROTO;
		}
	}
}

int srv_tls_write(struct srv_tls_session *s, const void *buf, size_t len)
{
	const uint8_t *p = buf;

	while (len > 0) {
		ssize_t n = gnutls_record_send(s->session, p, len);

		if (n < 0) {
			s->why = gnutls_strerror((int)n);
			return -EPROTO; /* push takes everything: no EAGAIN here */
		}
		p += n;
		len -= (size_t)n;
	}
	return 0;
}

void srv_tls_bye(struct srv_tls_session *s)
{
	gnutls_bye(s->session, GNUTLS_SHUT_WR);
}
