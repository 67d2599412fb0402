/* SPDX-License-Identifier: MIT */
/*
 * fuzz_nbd_request.c - a client's bytes after the negotiation, at the real server: a store in memory with
 * one writable disk and a snapshot, its workers, its sockets. The first byte chooses the export and
 * whether replies are structured with contexts, the second how the bytes are cut into sends; the rest
 * is sent as it is, except that a byte 0xf5 at a request's place stands for the request magic.
 * Invariants:
 * - no crash, no undefined behaviour, and the server lives: after every input another client reads
 * - every reply is one that the protocol knows, and as long as it says
 * - when the client has gone, nothing of it is left
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "serve/nbd/nbd_proto.h"
#include "serve/server.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

#define SIZE  (4u << 20)
#define DRAIN 65536u

static char dir[] = "/dev/shm/vmimg-fuzz-nbd-XXXXXX", store[64], path[80];
static struct srv_server server;
static struct srv_worker *worker;

static void check(bool ok, const char *what)
{
	if (!ok) {
		fprintf(stderr, "violated: %s\n", what);
		abort();
	}
}

static void clean_up(void)
{
	char command[96];

	snprintf(command, sizeof(command), "rm -rf %s", dir);
	if (system(command) != 0)
		fprintf(stderr, "%s is left\n", dir);
}

static void start(void)
{
	struct vmimg_disk_spec spec = {.size_of = sizeof(spec), .size = SIZE};
	struct vmimg_ref ref = {.name = "s"};

	check(mkdtemp(dir) != NULL, "a directory");
	atexit(clean_up);
	snprintf(store, sizeof(store), "%s/store", dir);
	snprintf(path, sizeof(path), "%s/nbd.sock", store);
	check(vmimg_store_init(store, NULL) == 0 &&
		      vmimg_open(store, NULL, NULL, &server.svc) == 0 &&
		      vmimg_vm_create(server.svc, "v", NULL) == 0 &&
		      vmimg_disk_create(server.svc, "v/d", &spec, NULL) == 0 &&
		      vmimg_define_collection(server.svc, "c", NULL, 0, NULL, NULL) == 0 &&
		      vmimg_add_member(server.svc, "v", "c", NULL) == 0 &&
		      vmimg_create_snapshot(server.svc, "c", "{\"Synchronous\": true}", 2, &ref,
					    NULL, NULL) == 0,
	      "a store");
	server.options = (struct serve_options){
		.store = store,
		.socket_mode = 0600,
		.max_connections = 16,
		.max_request = 1 << 20,
		.max_inflight = 2 << 20,
		.max_inflight_total = 4 << 20,
		.handshake_timeout_s = 300,
		.drain_timeout_s = 5,
	};
	server.workers = &worker;
	server.nworkers = 1;
	check(srv_worker_create(server.svc, "lobby", NULL, &server.lobby) == 0 &&
		      srv_worker_create(server.svc, "worker", NULL, &worker) == 0 &&
		      srv_exports_create(&server, &server.exports) == 0 &&
		      srv_nbd_start(&server, NULL, &server.nbd) == 0,
	      "a server");
}

static int dial(void)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	struct timeval patience = {.tv_sec = 300}; /* a starved machine is no hang */
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", path);
	check(connect(fd, (struct sockaddr *)&addr, sizeof(addr)) == 0, "the server listens");
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
	return fd;
}

/* The fuzzer's alarm interrupts calls on a socket that has a time-out. */
static bool hear(int fd, void *bytes, size_t len)
{
	size_t at = 0;
	ssize_t n;

	while (at < len) {
		n = recv(fd, (uint8_t *)bytes + at, len - at, MSG_WAITALL);
		if (n == 0 || (n < 0 && errno != EINTR))
			return false;
		at += n > 0 ? (size_t)n : 0;
	}
	return true;
}

static bool tell(int fd, const void *bytes, size_t len)
{
	ssize_t n;

	do
		n = send(fd, bytes, len, MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);
	return n == (ssize_t)len;
}

/* @script: all that a client says until its requests; @option is the last one of it. */
static int negotiate(const void *script, size_t len, uint32_t option)
{
	uint8_t hello[NBD_GREETING_LEN], head[NBD_OPT_REPLY_LEN], data[512];
	int fd = dial();

	check(hear(fd, hello, sizeof(hello)), "a greeting");
	check(tell(fd, script, len), "it reads");
	do {
		check(hear(fd, head, sizeof(head)) && nbd_get32(head + 16) <= sizeof(data) &&
			      hear(fd, data, nbd_get32(head + 16)),
		      "it answers");
	} while (nbd_get32(head + 8) != option || nbd_get32(head + 12) != NBD_REP_ACK);
	return fd;
}

#define MAGIC "IHAVEOPT\0\0\0"
static const char simple[] = "\0\0\0\3" MAGIC "\7\0\0\0\11\0\0\0\3v/d\0\0";
static const char snapshot[] = "\0\0\0\3" MAGIC "\7\0\0\0\15\0\0\0\7c@s/v/d\0\0";
static const char contexts[] = "\0\0\0\3" MAGIC "\10\0\0\0\0" MAGIC
			       "\12\0\0\0\102\0\0\0\3v/d\0\0\0\3\0\0\0\17base:allocation"
			       "\0\0\0\13vmimg:depth\0\0\0\21vmimg:changed:c@s" MAGIC
			       "\7\0\0\0\11\0\0\0\3v/d\0\0";

static int open_export(uint8_t which)
{
	switch (which % 3) {
	case 0: return negotiate(simple, sizeof(simple) - 1, NBD_OPT_GO);
	case 1: return negotiate(snapshot, sizeof(snapshot) - 1, NBD_OPT_GO);
	default: return negotiate(contexts, sizeof(contexts) - 1, NBD_OPT_GO);
	}
}

/* --- replies --- */

static uint8_t got[1 << 24];
static size_t got_len;

static void take_replies(int fd, int flags)
{
	ssize_t n;

	while (got_len < sizeof(got)) {
		n = recv(fd, got + got_len, sizeof(got) - got_len, flags);
		if (n == 0 || (n < 0 && errno != EINTR))
			return;
		got_len += n > 0 ? (size_t)n : 0;
	}
}

/* Structured replies can be walked; simple ones have payload that only the client knows of. */
static void check_replies(void)
{
	size_t at = 0;

	while (got_len - at >= NBD_STRUCTURED_LEN) {
		const uint8_t *p = got + at;
		uint32_t len;

		if (nbd_get32(p) == NBD_SIMPLE_MAGIC) {
			at += NBD_SIMPLE_LEN;
			continue;
		}
		check(nbd_get32(p) == NBD_STRUCTURED_MAGIC, "a reply has its magic");
		len = nbd_get32(p + 16);
		check(len <= (1 << 20) + 8, "a chunk is bounded");
		if (len > got_len - at - NBD_STRUCTURED_LEN)
			break; /* the client has closed before it came */
		if (nbd_get16(p + 6) == NBD_CHUNK_BLOCK_STATUS)
			check(len >= 12 && (len - 4) % 8 == 0, "extents are whole");
		at += NBD_STRUCTURED_LEN + len;
	}
}

static void say(int fd, const uint8_t *data, size_t len, uint8_t cut)
{
	size_t step = cut ? cut : len;

	for (size_t at = 0; at < len;) {
		size_t n = len - at < step ? len - at : step;
		ssize_t sent = send(fd, data + at, n, MSG_NOSIGNAL | MSG_DONTWAIT);

		take_replies(fd, MSG_DONTWAIT);
		if (sent < 0 && errno != EAGAIN && errno != EINTR)
			return; /* the server has had enough */
		at += sent > 0 ? (size_t)sent : 0;
	}
}

/* Every 0xf5 becomes a magic, so that the fuzzer finds requests. */
static size_t expand(const uint8_t *data, size_t len, uint8_t *to, size_t room)
{
	size_t n = 0;

	for (size_t i = 0; i < len && n + 4 <= room; i++)
		if (data[i] == 0xf5)
			n = (size_t)(nbd_put32(to + n, NBD_REQUEST_MAGIC) - to);
		else
			to[n++] = data[i];
	return n;
}

static void read_with_another(void)
{
	uint8_t request[NBD_REQUEST_LEN] = {0}, answer[NBD_SIMPLE_LEN + 512];
	int fd = open_export(0);

	nbd_put32(request, NBD_REQUEST_MAGIC);
	nbd_put32(request + 24, 512);
	check(tell(fd, request, sizeof(request)), "it reads");
	check(hear(fd, answer, sizeof(answer)) && nbd_get32(answer + 4) == 0, "others are served");
	close(fd);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	static uint8_t bytes[DRAIN];
	size_t n;
	int fd;

	if (!server.nbd)
		start();
	if (len < 2)
		return 0;
	got_len = 0;
	n = expand(data + 2, len - 2, bytes, sizeof(bytes));
	fd = open_export(data[0]);
	say(fd, bytes, n, data[1]);
	if (data[0] & 0x80) { /* else it vanishes */
		shutdown(fd, SHUT_WR);
		take_replies(fd, 0);
		if (data[0] % 3 == 2)
			check_replies();
	}
	close(fd);
	read_with_another();
	for (int i = 0; i < 5000 && server.connections; i++)
		usleep(1000);
	check(server.connections == 0 && server.inflight_bytes == 0, "nothing is left of them");
	return 0;
}
