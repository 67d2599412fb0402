/* SPDX-License-Identifier: MIT */
/*
 * serve_nbd_tls.c - NBD over TLS on a real server (spec/nbd.md 7): certificates and keys that clients
 * share, libnbd for clients that keep to the protocol, a socket for those that do not.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <gnutls/gnutls.h>
#include <gnutls/x509.h>
#include <libnbd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "serve/nbd/nbd_proto.h"
#include "serve/server.h"
#include "serve/tls.h"

#define SIZE (32u << 20)

static char dir[] = "/dev/shm/vmimg-tls-XXXXXX", store[64], path[80], psk[64];
static struct srv_server server;
static struct srv_worker *workers[1];

/* --- credentials --- */

static void save(const char *name, gnutls_datum_t *pem)
{
	char file[96];
	FILE *f;

	snprintf(file, sizeof(file), "%s/%s", dir, name);
	f = fopen(file, "w");
	cr_assert_not_null(f);
	cr_assert_eq(fwrite(pem->data, pem->size, 1, f), 1);
	cr_assert_eq(fclose(f), 0);
	gnutls_free(pem->data);
}

static gnutls_x509_privkey_t make_key(const char *name)
{
	gnutls_x509_privkey_t key;
	gnutls_datum_t pem;

	cr_assert_eq(gnutls_x509_privkey_init(&key), 0);
	cr_assert_eq(gnutls_x509_privkey_generate(key, GNUTLS_PK_ECDSA,
						  GNUTLS_CURVE_TO_BITS(GNUTLS_ECC_CURVE_SECP256R1),
						  0),
		     0);
	cr_assert_eq(gnutls_x509_privkey_export2(key, GNUTLS_X509_FMT_PEM, &pem), 0);
	save(name, &pem);
	return key;
}

/* @ca NULL: it signs itself, and others. */
static gnutls_x509_crt_t make_certificate(const char *name, gnutls_x509_privkey_t key,
					  gnutls_x509_crt_t ca, gnutls_x509_privkey_t ca_key)
{
	static unsigned char serial;
	gnutls_x509_crt_t crt;
	gnutls_datum_t pem;

	serial++;
	cr_assert_eq(gnutls_x509_crt_init(&crt), 0);
	gnutls_x509_crt_set_version(crt, 3);
	gnutls_x509_crt_set_serial(crt, &serial, 1);
	gnutls_x509_crt_set_activation_time(crt, time(NULL) - 3600);
	gnutls_x509_crt_set_expiration_time(crt, time(NULL) + 86400);
	gnutls_x509_crt_set_dn(crt, ca ? "CN=localhost" : "CN=authority", NULL);
	gnutls_x509_crt_set_key(crt, key);
	gnutls_x509_crt_set_basic_constraints(crt, !ca, -1);
	gnutls_x509_crt_set_key_usage(crt,
				      ca ? GNUTLS_KEY_DIGITAL_SIGNATURE : GNUTLS_KEY_KEY_CERT_SIGN);
	if (ca)
		gnutls_x509_crt_set_subject_alt_name(crt, GNUTLS_SAN_DNSNAME, "localhost", 9,
						     GNUTLS_FSAN_SET);
	cr_assert_eq(gnutls_x509_crt_sign2(crt, ca ? ca : crt, ca ? ca_key : key, GNUTLS_DIG_SHA256,
					   0),
		     0);
	cr_assert_eq(gnutls_x509_crt_export2(crt, GNUTLS_X509_FMT_PEM, &pem), 0);
	save(name, &pem);
	return crt;
}

static void make_credentials(void)
{
	gnutls_x509_privkey_t ca_key = make_key("ca-key.pem");
	gnutls_x509_privkey_t server_key = make_key("server-key.pem");
	gnutls_x509_privkey_t client_key = make_key("client-key.pem");
	gnutls_x509_crt_t ca = make_certificate("ca-cert.pem", ca_key, NULL, NULL);

	gnutls_x509_crt_deinit(make_certificate("server-cert.pem", server_key, ca, ca_key));
	gnutls_x509_crt_deinit(make_certificate("client-cert.pem", client_key, ca, ca_key));
	gnutls_x509_crt_deinit(ca);
	gnutls_x509_privkey_deinit(ca_key);
	gnutls_x509_privkey_deinit(server_key);
	gnutls_x509_privkey_deinit(client_key);
}

static void make_psk(const char *name, const char *text)
{
	gnutls_datum_t pem = {NULL, (unsigned)strlen(text)};
	char file[96];

	pem.data = gnutls_malloc(pem.size);
	memcpy(pem.data, text, pem.size);
	save(name, &pem);
	snprintf(file, sizeof(file), "%s/%s", dir, name);
	cr_assert_eq(chmod(file, 0600), 0);
}

/* --- the server --- */

static void setup(void)
{
	struct vmimg_disk_spec spec = {.size_of = sizeof(spec), .size = SIZE};

	cr_assert_not_null(mkdtemp(dir));
	snprintf(store, sizeof(store), "%s/store", dir);
	snprintf(path, sizeof(path), "%s/nbd.sock", store);
	snprintf(psk, sizeof(psk), "%s/keys.psk", dir);
	make_credentials();
	make_psk("keys.psk", "alice:00112233445566778899aabbccddeeff\n");
	make_psk("wrong.psk", "alice:ff112233445566778899aabbccddeeff\n");
	cr_assert_eq(vmimg_store_init(store, NULL), 0);
	cr_assert_eq(vmimg_open(store, NULL, NULL, &server.svc), 0);
	cr_assert_eq(vmimg_vm_create(server.svc, "vm", NULL), 0);
	cr_assert_eq(vmimg_disk_create(server.svc, "vm/a", &spec, NULL), 0);
	server.options = (struct serve_options){
		.store = store,
		.socket_mode = 0600,
		.tls_required = true,
		.max_connections = 16,
		.max_request = 8u << 20,
		.max_inflight = 16u << 20,
		.max_inflight_total = 64u << 20,
		.handshake_timeout_s = 5,
		.drain_timeout_s = 5,
	};
	server.workers = workers;
	server.nworkers = 1;
	cr_assert_eq(srv_worker_create(server.svc, "lobby", NULL, &server.lobby), 0);
	cr_assert_eq(srv_worker_create(server.svc, "worker", NULL, &workers[0]), 0);
	cr_assert_eq(srv_exports_create(&server, &server.exports), 0);
}

static void start(void)
{
	struct vmimg_error err = {0};

	cr_assert_eq(srv_tls_create(&server.options, &err, &server.tls), 0, "%s", err.message);
	cr_assert_not_null(server.tls);
	cr_assert_eq(srv_nbd_start(&server, &err, &server.nbd), 0, "%s", err.message);
}

static void teardown(void)
{
	char command[96];

	srv_nbd_stop(server.nbd);
	cr_expect_eq(server.connections, 0);
	cr_expect_eq(server.inflight_bytes, 0);
	srv_tls_destroy(server.tls);
	srv_exports_destroy(server.exports);
	srv_worker_destroy(workers[0]);
	srv_worker_destroy(server.lobby);
	cr_expect_eq(vmimg_close(server.svc), 0);
	snprintf(command, sizeof(command), "rm -rf %s", dir);
	cr_expect_eq(system(command), 0);
}

TestSuite(serve_nbd_tls, .init = setup, .fini = teardown, .timeout = 120);

/* --- clients --- */

static struct nbd_handle *client(void)
{
	struct nbd_handle *nbd = nbd_create();

	cr_assert_not_null(nbd);
	nbd_set_export_name(nbd, "vm/a");
	nbd_set_tls(nbd, LIBNBD_TLS_REQUIRE);
	return nbd;
}

static struct nbd_handle *psk_client(const char *file)
{
	struct nbd_handle *nbd = client();
	char name[96];

	snprintf(name, sizeof(name), "%s/%s", dir, file);
	nbd_set_tls_username(nbd, "alice");
	nbd_set_tls_psk_file(nbd, name);
	return nbd;
}

static struct nbd_handle *x509_client(bool with_certificate)
{
	struct nbd_handle *nbd = client();
	char certificates[96], file[128];

	snprintf(certificates, sizeof(certificates), "%s/client", dir);
	mkdir(certificates, 0700);
	for (int i = 0; i < (with_certificate ? 3 : 1); i++) {
		static const char *const names[] = {"ca-cert.pem", "client-cert.pem",
						    "client-key.pem"};
		char target[96];

		snprintf(target, sizeof(target), "../%s", names[i]);
		snprintf(file, sizeof(file), "%s/%s", certificates, names[i]);
		if (symlink(target, file) != 0)
			cr_log_info("%s is there", file);
	}
	nbd_set_tls_certificates(nbd, certificates);
	return nbd;
}

/* Bytes of every size, both ways, more of them than TLS may be ahead. */
static void exchange(struct nbd_handle *nbd)
{
	static const size_t lengths[] = {1, 4096, 16384, 16385, 300000, 8u << 20};
	char *out = malloc(8u << 20), *in = malloc(8u << 20);

	for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
		for (size_t k = 0; k < lengths[i]; k++)
			out[k] = (char)(k * 7 + i + (k >> 12));
		cr_assert_eq(nbd_pwrite(nbd, out, lengths[i], 513 * i, 0), 0, "%s",
			     nbd_get_error());
		cr_assert_eq(nbd_pread(nbd, in, lengths[i], 513 * i, 0), 0, "%s", nbd_get_error());
		cr_assert_eq(memcmp(in, out, lengths[i]), 0, "%zu bytes", lengths[i]);
	}
	cr_expect_eq(nbd_flush(nbd, 0), 0);
	free(out);
	free(in);
}

/* Many requests at once, so that replies wait for the socket. */
static void pipeline(struct nbd_handle *nbd)
{
	enum { READS = 12 };
	char *buf[READS];

	for (int i = 0; i < READS; i++) {
		buf[i] = malloc(1u << 20);
		cr_assert_neq(nbd_aio_pread(nbd, buf[i], 1u << 20, (uint64_t)i << 20,
					    NBD_NULL_COMPLETION, 0),
			      -1);
	}
	while (nbd_aio_in_flight(nbd) > 0)
		cr_assert_neq(nbd_poll(nbd, -1), -1, "%s", nbd_get_error());
	for (int i = 0; i < READS; i++)
		free(buf[i]);
}

static void works(struct nbd_handle *nbd)
{
	cr_assert_eq(nbd_connect_unix(nbd, path), 0, "%s", nbd_get_error());
	cr_expect_eq(nbd_get_tls_negotiated(nbd), 1);
	cr_expect_eq(nbd_get_size(nbd), SIZE);
	exchange(nbd);
	pipeline(nbd);
	cr_expect_eq(nbd_shutdown(nbd, 0), 0, "%s", nbd_get_error());
	nbd_close(nbd);
}

static void refused(struct nbd_handle *nbd)
{
	cr_expect_eq(nbd_connect_unix(nbd, path), -1);
	nbd_close(nbd);
}

/* --- tests --- */

/* TL-4 */
Test(serve_nbd_tls, with_shared_keys)
{
	server.options.tls_psk = psk;
	start();
	works(psk_client("keys.psk"));
	refused(psk_client("wrong.psk"));
	works(psk_client("keys.psk"));
}

/* TL-4 */
Test(serve_nbd_tls, with_certificates)
{
	server.options.tls_certificates = dir;
	start();
	works(x509_client(false)); /* who verifies the server's */
}

/* TL-4: clients show certificates of the same authority, or go. */
Test(serve_nbd_tls, clients_are_verified_when_asked_for)
{
	server.options.tls_certificates = dir;
	server.options.tls_verify_peer = true;
	start();
	refused(x509_client(false));
	works(x509_client(true));
}

/* TL-4 */
Test(serve_nbd_tls, both_at_once)
{
	server.options.tls_certificates = dir;
	server.options.tls_psk = psk;
	start();
	works(psk_client("keys.psk"));
	works(x509_client(false));
}

/* TL-3 */
Test(serve_nbd_tls, nothing_in_the_clear_where_it_is_required)
{
	struct nbd_handle *nbd;

	server.options.tls_psk = psk;
	start();
	nbd = client();
	nbd_set_tls(nbd, LIBNBD_TLS_DISABLE);
	refused(nbd);
}

static int dial(void)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	struct timeval patience = {.tv_sec = 20};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", path);
	cr_assert_eq(connect(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	return fd;
}

/* Says @bytes and reads until the server closes; how much it said. */
static size_t talk(const void *bytes, size_t len, bool then_wait)
{
	char got[4096];
	size_t total = 0;
	ssize_t n;
	int fd = dial();

	cr_assert_eq(send(fd, bytes, len, MSG_NOSIGNAL), (ssize_t)len);
	if (!then_wait)
		shutdown(fd, SHUT_WR);
	while ((n = recv(fd, got, sizeof(got), 0)) > 0)
		total += (size_t)n;
	close(fd);
	return total;
}

#define STARTTLS "\0\0\0\3IHAVEOPT\0\0\0\5\0\0\0\0"

/* TL-2: what follows in the clear, be it an option, is not taken for what was said inside TLS. */
Test(serve_nbd_tls, bytes_behind_starttls_end_it)
{
	static const char injected[] = STARTTLS "IHAVEOPT\0\0\0\3\0\0\0\0";

	uint64_t start_ns = srv_now_ns();

	server.options.tls_psk = psk;
	server.options.handshake_timeout_s = 60;
	start();
	cr_expect_eq(talk(injected, sizeof(injected) - 1, true),
		     NBD_GREETING_LEN + NBD_OPT_REPLY_LEN);
	cr_expect_lt(srv_now_ns() - start_ns, UINT64_C(15000000000), "at once");
	works(psk_client("keys.psk"));
}

/* --- a client of GnuTLS alone: it can do what libnbd never does --- */

static gnutls_session_t secure(int fd, gnutls_psk_client_credentials_t credentials)
{
	static const unsigned char hex[] = "00112233445566778899aabbccddeeff";
	const gnutls_datum_t key = {(unsigned char *)hex, sizeof(hex) - 1};
	uint8_t reply[NBD_GREETING_LEN + NBD_OPT_REPLY_LEN];
	gnutls_session_t session;
	int r;

	cr_assert_eq(send(fd, STARTTLS, sizeof(STARTTLS) - 1, MSG_NOSIGNAL), sizeof(STARTTLS) - 1);
	cr_assert_eq(recv(fd, reply, sizeof(reply), MSG_WAITALL), sizeof(reply));
	cr_assert_eq(gnutls_psk_set_client_credentials(credentials, "alice", &key,
						       GNUTLS_PSK_KEY_HEX),
		     0);
	cr_assert_eq(gnutls_init(&session, GNUTLS_CLIENT), 0);
	cr_assert_eq(gnutls_priority_set_direct(session,
						"NORMAL:-VERS-ALL:+VERS-TLS1.3:+ECDHE-PSK:+PSK",
						NULL),
		     0);
	gnutls_credentials_set(session, GNUTLS_CRD_PSK, credentials);
	gnutls_transport_set_int(session, fd);
	do
		r = gnutls_handshake(session);
	while (r < 0 && !gnutls_error_is_fatal(r));
	cr_assert_eq(r, 0, "%s", gnutls_strerror(r));
	return session;
}

static void say(gnutls_session_t session, const void *bytes, size_t len)
{
	cr_assert_eq(gnutls_record_send(session, bytes, len), (ssize_t)len);
}

static void hear(gnutls_session_t session, uint8_t *bytes, size_t len)
{
	while (len > 0) {
		ssize_t n = gnutls_record_recv(session, bytes, len);

		if (n == GNUTLS_E_AGAIN || n == GNUTLS_E_INTERRUPTED)
			continue;
		cr_assert_gt(n, 0, "%s", n ? gnutls_strerror((int)n) : "the end");
		bytes += n;
		len -= (size_t)n;
	}
}

static void go(gnutls_session_t session)
{
	static const char option[] = "IHAVEOPT\0\0\0\7\0\0\0\12\0\0\0\4vm/a\0\0";
	uint8_t head[NBD_OPT_REPLY_LEN], data[256];

	say(session, option, sizeof(option) - 1);
	do {
		hear(session, head, sizeof(head));
		cr_assert_leq(nbd_get32(head + 16), sizeof(data));
		hear(session, data, nbd_get32(head + 16));
	} while (nbd_get32(head + 12) == NBD_REP_INFO);
	cr_assert_eq(nbd_get32(head + 12), NBD_REP_ACK);
}

/* The server answers a request for new keys while its replies wait for the socket. */
Test(serve_nbd_tls, new_keys_while_replies_wait)
{
	enum { READS = 12, LENGTH = 1 << 20 };
	gnutls_psk_client_credentials_t credentials;
	uint8_t *data = malloc(LENGTH), request[NBD_REQUEST_LEN];
	struct nbd_handle *nbd = psk_client("keys.psk");
	gnutls_session_t session;
	int fd;

	server.options.tls_psk = psk;
	start();
	cr_assert_eq(nbd_connect_unix(nbd, path), 0, "%s", nbd_get_error());
	for (int i = 0; i < READS; i++) {
		memset(data, i + 1, LENGTH);
		cr_assert_eq(nbd_pwrite(nbd, data, LENGTH, (uint64_t)i * LENGTH, 0), 0);
	}
	nbd_close(nbd);
	cr_assert_eq(gnutls_psk_allocate_client_credentials(&credentials), 0);
	fd = dial();
	session = secure(fd, credentials);
	go(session);
	for (uint64_t i = 0; i < READS; i++) {
		memset(request, 0, sizeof(request));
		nbd_put32(request, NBD_REQUEST_MAGIC);
		nbd_put64(request + 8, i);
		nbd_put32(nbd_put64(request + 16, i * LENGTH), LENGTH);
		say(session, request, sizeof(request));
		if (i % 4 == 3) {
			usleep(100000); /* until the socket is full */
			cr_assert_eq(gnutls_session_key_update(session, GNUTLS_KU_PEER), 0);
		}
	}
	for (int i = 0; i < READS; i++) {
		uint8_t head[NBD_SIMPLE_LEN];
		uint64_t which;

		hear(session, head, sizeof(head));
		cr_assert_eq(nbd_get32(head), NBD_SIMPLE_MAGIC);
		cr_assert_eq(nbd_get32(head + 4), 0);
		which = nbd_get64(head + 8);
		hear(session, data, LENGTH);
		cr_expect_eq(data[0], which + 1);
		cr_expect_eq(memcmp(data, data + 1, LENGTH - 1), 0);
	}
	gnutls_deinit(session);
	gnutls_psk_free_client_credentials(credentials);
	close(fd);
	free(data);
}

/* TL-5 */
Test(serve_nbd_tls, nonsense_and_silence_in_the_handshake_end_it)
{
	uint8_t *noise = malloc(60000);
	uint64_t seed = 88172645463325252u, start_ns;

	server.options.tls_psk = psk;
	server.options.tls_certificates = dir;
	server.options.handshake_timeout_s = 2;
	start();
	for (int i = 0; i < 60; i++) {
		uint8_t reply[NBD_GREETING_LEN + NBD_OPT_REPLY_LEN];
		size_t len = (size_t)(i * i) * 16 + 1;
		int fd = dial();

		cr_assert_eq(send(fd, STARTTLS, sizeof(STARTTLS) - 1, MSG_NOSIGNAL),
			     sizeof(STARTTLS) - 1);
		cr_assert_eq(recv(fd, reply, sizeof(reply), MSG_WAITALL), sizeof(reply));
		for (size_t k = 0; k < len; k++) {
			seed ^= seed << 13;
			seed ^= seed >> 7;
			seed ^= seed << 17;
			noise[k] = (uint8_t)seed;
		}
		if (i % 2) /* a record's header before it */
			memcpy(noise, "\26\3\1\0\200\1\0\0\174", len < 9 ? len : 9);
		send(fd, noise, len, MSG_NOSIGNAL);
		close(fd);
	}
	start_ns = srv_now_ns();
	talk(STARTTLS, sizeof(STARTTLS) - 1, true);
	cr_expect_lt(srv_now_ns() - start_ns, UINT64_C(8000000000));
	works(psk_client("keys.psk"));
	free(noise);
}

/* TL-4: what cannot be used is said at the start. */
Test(serve_nbd_tls, credentials_are_checked)
{
	struct vmimg_error err = {0};

	cr_expect_eq(srv_tls_create(&server.options, &err, &server.tls), -EINVAL,
		     "required, but none");
	server.options.tls_psk = psk;
	cr_assert_eq(chmod(psk, 0644), 0);
	cr_expect_eq(srv_tls_create(&server.options, &err, &server.tls), -EACCES);
	cr_expect_not_null(strstr(err.message, psk));
	server.options.tls_psk = NULL;
	server.options.tls_certificates = store;
	cr_expect_eq(srv_tls_create(&server.options, &err, &server.tls), -ENOENT);
	server.options.tls_required = false;
	server.options.tls_certificates = NULL;
	cr_expect_eq(srv_tls_create(&server.options, &err, &server.tls), 0);
	cr_expect_null(server.tls);
}
