/* SPDX-License-Identifier: MIT */
/*
 * serve_nbd_live.c - the NBD server on a real store, against clients that keep to the protocol and such
 * that do not: bytes in pieces, refused requests, slow readers, clients that vanish, limits, the stop.
 * The client is a socket and nothing more, so that it can say whatever it likes.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "serve/nbd/nbd_proto.h"
#include "serve/server.h"

#define SIZE (64u << 20)
#define MIB  (1u << 20)

static char dir[] = "/tmp/vmimg-nbd-XXXXXX", store[64], path[80];
static struct srv_server server;
static struct srv_worker *workers[2];

/* --- the server --- */

static void setup(void)
{
	struct vmimg_disk_spec spec = {.size_of = sizeof(spec), .size = SIZE};
	static const char *const disks[] = {"vm/a", "vm/b"};

	cr_assert_not_null(mkdtemp(dir));
	snprintf(store, sizeof(store), "%s/store", dir);
	snprintf(path, sizeof(path), "%s/nbd.sock", store);
	cr_assert_eq(vmimg_store_init(store, NULL), 0);
	cr_assert_eq(vmimg_open(store, NULL, NULL, &server.svc), 0);
	cr_assert_eq(vmimg_vm_create(server.svc, "vm", NULL), 0);
	for (int i = 0; i < 2; i++)
		cr_assert_eq(vmimg_disk_create(server.svc, disks[i], &spec, NULL), 0);
	cr_assert_eq(vmimg_define_collection(server.svc, "c", NULL, 0, NULL, NULL), 0);
	cr_assert_eq(vmimg_add_member(server.svc, "vm", "c", NULL), 0);
	server.options = (struct serve_options){
		.store = store,
		.socket_mode = 0600,
		.max_connections = 8,
		.max_request = 4 * MIB,
		.max_inflight = 8 * MIB,
		.max_inflight_total = 12 * MIB,
		.handshake_timeout_s = 2,
		.drain_timeout_s = 3,
	};
	server.workers = workers;
	server.nworkers = 2;
	cr_assert_eq(srv_worker_create(server.svc, "lobby", NULL, &server.lobby), 0);
	for (int i = 0; i < 2; i++)
		cr_assert_eq(srv_worker_create(server.svc, "worker", NULL, &workers[i]), 0);
	cr_assert_eq(srv_exports_create(&server, &server.exports), 0);
	cr_assert_eq(srv_nbd_start(&server, NULL, &server.nbd), 0);
}

static void stop(void)
{
	server.stopping = true;
	srv_nbd_stop(server.nbd);
	server.nbd = NULL;
}

static void teardown(void)
{
	char command[96];

	stop();
	cr_expect_eq(server.connections, 0);
	cr_expect_eq(server.inflight_bytes, 0);
	srv_exports_destroy(server.exports);
	for (int i = 0; i < 2; i++)
		srv_worker_destroy(workers[i]);
	srv_worker_destroy(server.lobby);
	cr_expect_eq(vmimg_close(server.svc), 0);
	cr_expect_neq(access(path, F_OK), 0, "the socket is gone");
	snprintf(command, sizeof(command), "rm -rf %s", dir);
	cr_expect_eq(system(command), 0);
}

TestSuite(serve_nbd_live, .init = setup, .fini = teardown, .timeout = 120);

/* --- a client --- */

static int dial(void)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	struct timeval patience = {.tv_sec = 20};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", path);
	cr_assert_eq(connect(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
	return fd;
}

static void say(int fd, const void *bytes, size_t len)
{
	cr_assert_eq(send(fd, bytes, len, MSG_NOSIGNAL), (ssize_t)len);
}

static void hear(int fd, void *bytes, size_t len)
{
	ssize_t n = len ? recv(fd, bytes, len, MSG_WAITALL) : 0;

	cr_assert_eq(n, (ssize_t)len, "%zd of %zu bytes: %s", n, len, strerror(errno));
}

/* The server has closed it, and said nothing more than what was read. */
static bool closed(int fd)
{
	char byte;
	ssize_t n = recv(fd, &byte, 1, 0);

	return n == 0 || (n < 0 && errno == ECONNRESET);
}

static void say_option(int fd, uint32_t option, const void *data, uint32_t len)
{
	uint8_t head[NBD_OPTION_LEN];

	nbd_put32(nbd_put32(nbd_put64(head, NBD_OPTION_MAGIC), option), len);
	say(fd, head, sizeof(head));
	if (len)
		say(fd, data, len);
}

/* The type of the last reply to an option; what came with it is dropped. */
static uint32_t hear_option(int fd)
{
	uint8_t head[NBD_OPT_REPLY_LEN], data[4096];

	for (;;) {
		uint32_t type;

		hear(fd, head, sizeof(head));
		cr_assert_eq(nbd_get64(head), NBD_REPLY_MAGIC);
		type = nbd_get32(head + 12);
		cr_assert_leq(nbd_get32(head + 16), sizeof(data));
		hear(fd, data, nbd_get32(head + 16));
		if (type == NBD_REP_ACK || type & NBD_REP_ERROR)
			return type;
	}
}

static int greet(void)
{
	uint8_t hello[NBD_GREETING_LEN];
	int fd = dial();

	hear(fd, hello, sizeof(hello));
	say(fd, "\0\0\0\3", 4);
	return fd;
}

static uint32_t ask(int fd, uint32_t option, const char *name)
{
	uint8_t data[300], *p = nbd_put32(data, (uint32_t)strlen(name));

	memcpy(p, name, strlen(name));
	nbd_put16(p + strlen(name), 0);
	say_option(fd, option, data, (uint32_t)(6 + strlen(name)));
	return hear_option(fd);
}

/* A connection that is ready for requests; simple replies. */
static int open_export(const char *name)
{
	int fd = greet();

	cr_assert_eq(ask(fd, NBD_OPT_GO, name), NBD_REP_ACK, "%s", name);
	return fd;
}

static void request(int fd, uint16_t flags, uint16_t type, uint64_t cookie, uint64_t offset,
		    uint32_t length)
{
	uint8_t b[NBD_REQUEST_LEN];

	nbd_put64(nbd_put16(nbd_put16(nbd_put32(b, NBD_REQUEST_MAGIC), flags), type), cookie);
	nbd_put32(nbd_put64(b + 16, offset), length);
	say(fd, b, sizeof(b));
}

static uint32_t reply(int fd, uint64_t *cookie)
{
	uint8_t b[NBD_SIMPLE_LEN];

	hear(fd, b, sizeof(b));
	cr_assert_eq(nbd_get32(b), NBD_SIMPLE_MAGIC);
	if (cookie)
		*cookie = nbd_get64(b + 8);
	return nbd_get32(b + 4);
}

/* One request and its reply. */
static uint32_t call(int fd, uint16_t flags, uint16_t type, uint64_t offset, uint32_t length)
{
	uint64_t cookie;
	uint32_t error;

	request(fd, flags, type, 4711, offset, length);
	error = reply(fd, &cookie);
	cr_assert_eq(cookie, 4711);
	return error;
}

static uint32_t write_at(int fd, uint64_t offset, const void *data, uint32_t length)
{
	request(fd, 0, NBD_CMD_WRITE, 1, offset, length);
	say(fd, data, length);
	return reply(fd, NULL);
}

static void expect_bytes(int fd, uint64_t offset, uint8_t value, uint32_t length)
{
	uint8_t *got = malloc(length);

	cr_assert_not_null(got);
	cr_assert_eq(call(fd, 0, NBD_CMD_READ, offset, length), 0);
	hear(fd, got, length);
	for (uint32_t i = 0; i < length; i++)
		cr_assert_eq(got[i], value, "byte %u of %u", i, length);
	free(got);
}

static void await_connections(unsigned count)
{
	for (int i = 0; i < 500 && server.connections != count; i++)
		usleep(10000);
	cr_assert_eq(server.connections, count);
}

/* --- requests --- */

/* NB-33: a payload in every kind of piece. */
Test(serve_nbd_live, bytes_may_come_in_pieces)
{
	static const uint32_t lengths[] = {1, 511, 4096, 4097, 40000, 300001, MIB};
	uint8_t *data = malloc(MIB), head[NBD_REQUEST_LEN];
	int fd = open_export("vm/a");

	for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
		uint32_t len = lengths[i], step = len / 7 + 1;

		memset(data, 0x10 + (int)i, len);
		nbd_put64(nbd_put16(nbd_put16(nbd_put32(head, NBD_REQUEST_MAGIC), 0),
				    NBD_CMD_WRITE),
			  i);
		nbd_put32(nbd_put64(head + 16, 1000 * i), len);
		for (size_t k = 0; k < sizeof(head); k++) {
			say(fd, head + k, 1);
			if (k % 9 == 0)
				usleep(1000);
		}
		for (uint32_t at = 0; at < len; at += step) {
			say(fd, data + at, len - at < step ? len - at : step);
			usleep(1000);
		}
		cr_assert_eq(reply(fd, NULL), 0);
		expect_bytes(fd, 1000 * i, 0x10 + (uint8_t)i, len);
	}
	free(data);
	close(fd);
}

/* NB-30: what was refused is read to its end, so that the next request is understood. */
Test(serve_nbd_live, refused_writes_leave_the_stream_in_step)
{
	uint8_t *data = calloc(1, 5 * MIB);
	int fd = open_export("vm/a");

	memset(data, 0x77, 4096);
	cr_expect_eq(write_at(fd, 0, data, 4096), 0);
	cr_expect_eq(write_at(fd, SIZE - 100, data, 101), NBD_ENOSPC);
	cr_expect_eq(write_at(fd, UINT64_MAX - 3, data, 70000), NBD_ENOSPC);
	cr_expect_eq(write_at(fd, 0, data, 5 * MIB), NBD_EINVAL);
	cr_expect_eq(call(fd, 0, 99, 0, 0), NBD_EINVAL);
	cr_expect_eq(call(fd, 0, NBD_CMD_BLOCK_STATUS, 0, 4096), NBD_EINVAL);
	cr_expect_eq(call(fd, 0x8000, NBD_CMD_READ, 0, 4096), NBD_EINVAL);
	cr_expect_eq(write_at(fd, 0, data, 0), 0);
	expect_bytes(fd, 0, 0x77, 4096);
	free(data);
	close(fd);
}

/* NB-34 */
Test(serve_nbd_live, zeros)
{
	uint8_t *data = malloc(9 * MIB);
	int fd = open_export("vm/a");

	memset(data, 0x55, 9 * MIB);
	for (unsigned i = 0; i < 3; i++)
		cr_assert_eq(write_at(fd, i * 3 * MIB, data, 3 * MIB), 0);
	cr_expect_eq(call(fd, NBD_CMD_FLAG_NO_HOLE, NBD_CMD_WRITE_ZEROES, 1000, 5 * MIB), 0);
	expect_bytes(fd, 0, 0x55, 1000);
	expect_bytes(fd, 1000, 0, MIB);
	expect_bytes(fd, 1000 + 4 * MIB, 0, MIB);
	expect_bytes(fd, 1000 + 5 * MIB, 0x55, MIB);
	cr_expect_eq(call(fd, NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO, NBD_CMD_WRITE_ZEROES,
			  0, 4096),
		     NBD_ENOTSUP);
	cr_expect_eq(call(fd, NBD_CMD_FLAG_FAST_ZERO | NBD_CMD_FLAG_FUA, NBD_CMD_WRITE_ZEROES,
			  6 * MIB, MIB),
		     0);
	expect_bytes(fd, 6 * MIB, 0, MIB);
	cr_expect_eq(call(fd, 0, NBD_CMD_TRIM, 7 * MIB, MIB), 0);
	cr_expect_eq(call(fd, 0, NBD_CMD_CACHE, 0, SIZE), 0);
	cr_expect_eq(call(fd, 0, NBD_CMD_FLUSH, 0, 0), 0);
	free(data);
	close(fd);
}

/* NB-1, NB-4: a snapshot's disk is there at once, keeps its bytes, and cannot be written. */
Test(serve_nbd_live, snapshots_are_exports)
{
	struct vmimg_ref ref = {.name = "s"};
	uint8_t data[4096];
	int fd = open_export("vm/a"), old;

	memset(data, 1, sizeof(data));
	cr_assert_eq(write_at(fd, 0, data, sizeof(data)), 0);
	old = greet();
	cr_expect_eq(ask(old, NBD_OPT_INFO, "c@s/vm/a"), NBD_REP_ERR_UNKNOWN);
	cr_assert_eq(vmimg_create_snapshot(server.svc, "c", "{\"Synchronous\": true}",
					   VMIMG_SNAPSHOT_RECOVERY, &ref, NULL, NULL),
		     0);
	memset(data, 2, sizeof(data));
	cr_assert_eq(write_at(fd, 0, data, sizeof(data)), 0);
	cr_expect_eq(ask(old, NBD_OPT_INFO, "c@s/vm/a"), NBD_REP_ACK);
	cr_assert_eq(ask(old, NBD_OPT_GO, "c@s/vm/a"), NBD_REP_ACK);
	expect_bytes(old, 0, 1, 4096);
	expect_bytes(fd, 0, 2, 4096);
	cr_expect_eq(write_at(old, 0, data, sizeof(data)), NBD_EPERM);
	expect_bytes(old, 0, 1, 4096);
	close(old);
	close(fd);
}

/* A SET_META_CONTEXT of @count contexts for @name, after structured replies; ids are in their order. */
static int open_with_contexts(const char *name, const char *const *contexts, uint32_t count)
{
	uint8_t data[600], *p = nbd_put32(data, (uint32_t)strlen(name));
	int fd = greet();

	say_option(fd, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
	cr_assert_eq(hear_option(fd), NBD_REP_ACK);
	memcpy(p, name, strlen(name));
	p = nbd_put32(p + strlen(name), count);
	for (uint32_t i = 0; i < count; i++) {
		p = nbd_put32(p, (uint32_t)strlen(contexts[i]));
		memcpy(p, contexts[i], strlen(contexts[i]));
		p += strlen(contexts[i]);
	}
	say_option(fd, NBD_OPT_SET_META_CONTEXT, data, (uint32_t)(p - data));
	cr_assert_eq(hear_option(fd), NBD_REP_ACK);
	cr_assert_eq(ask(fd, NBD_OPT_GO, name), NBD_REP_ACK);
	return fd;
}

struct extents {
	uint32_t length[16], flags[16];
	unsigned count;
};

/* One chunk of BLOCK_STATUS; whether it is the last. */
static bool hear_extents(int fd, uint32_t context, struct extents *ret)
{
	uint8_t head[NBD_STRUCTURED_LEN + 4], data[16 * 8];
	uint32_t len;

	hear(fd, head, sizeof(head));
	cr_assert_eq(nbd_get32(head), NBD_STRUCTURED_MAGIC);
	cr_assert_eq(nbd_get16(head + 6), NBD_CHUNK_BLOCK_STATUS);
	cr_assert_eq(nbd_get32(head + 20), context);
	len = nbd_get32(head + 16) - 4;
	cr_assert_leq(len, sizeof(data));
	hear(fd, data, len);
	ret->count = len / 8;
	for (unsigned i = 0; i < ret->count; i++) {
		ret->length[i] = nbd_get32(data + 8 * i);
		ret->flags[i] = nbd_get32(data + 8 * i + 4);
	}
	return nbd_get16(head + 4) & NBD_REPLY_DONE;
}

static void expect_extents(const struct extents *e, unsigned count, const uint32_t (*want)[2])
{
	cr_assert_eq(e->count, count, "%u extents", e->count);
	for (unsigned i = 0; i < count; i++) {
		cr_expect_eq(e->length[i], want[i][0], "extent %u: %u bytes", i, e->length[i]);
		cr_expect_eq(e->flags[i], want[i][1], "extent %u: %x", i, e->flags[i]);
	}
}

/* NB-20..NB-24: written, cut, written again. */
Test(serve_nbd_live, block_status_through_every_context)
{
	static const char *const contexts[] = {"base:allocation", "vmimg:depth",
					       "vmimg:changed:c@s"};
	static const uint32_t allocation[][2] = {{20480, 0}, {MIB - 20480, 3}};
	static const uint32_t depth[][2] = {{8192, 1}, {12288, 0}, {MIB - 20480, UINT32_MAX}};
	static const uint32_t changed[][2] = {{8192, 0}, {12288, 1}, {MIB - 20480, 0}};
	struct vmimg_ref ref = {.name = "s"};
	uint8_t data[12288];
	struct extents e;
	int fd = open_export("vm/a");

	memset(data, 1, sizeof(data));
	cr_assert_eq(write_at(fd, 0, data, sizeof(data)), 0);
	cr_assert_eq(vmimg_create_snapshot(server.svc, "c", "{\"Synchronous\": true}",
					   VMIMG_SNAPSHOT_RECOVERY, &ref, NULL, NULL),
		     0);
	cr_assert_eq(write_at(fd, 8192, data, sizeof(data)), 0);
	close(fd);
	fd = open_with_contexts("vm/a", contexts, 3);
	request(fd, 0, NBD_CMD_BLOCK_STATUS, 5, 0, MIB);
	cr_expect_not(hear_extents(fd, 0, &e));
	expect_extents(&e, 2, allocation);
	cr_expect_not(hear_extents(fd, 1, &e));
	expect_extents(&e, 3, depth);
	cr_expect(hear_extents(fd, 2, &e));
	expect_extents(&e, 3, changed);
	request(fd, NBD_CMD_FLAG_REQ_ONE, NBD_CMD_BLOCK_STATUS, 6, 4096, 8192);
	cr_expect_not(hear_extents(fd, 0, &e));
	expect_extents(&e, 1, (const uint32_t[][2]){{8192, 0}});
	cr_expect_not(hear_extents(fd, 1, &e));
	expect_extents(&e, 1, (const uint32_t[][2]){{4096, 1}});
	cr_expect(hear_extents(fd, 2, &e));
	expect_extents(&e, 1, (const uint32_t[][2]){{4096, 0}});
	close(fd);
}

/* NB-2 */
Test(serve_nbd_live, the_empty_name_is_the_only_disk)
{
	int fd = greet();

	cr_expect_eq(ask(fd, NBD_OPT_INFO, ""), NBD_REP_ERR_UNKNOWN, "of two");
	cr_assert_eq(vmimg_disk_delete(server.svc, "vm/b", NULL), 0);
	cr_expect_eq(ask(fd, NBD_OPT_GO, ""), NBD_REP_ACK);
	expect_bytes(fd, 0, 0, 4096);
	close(fd);
}

/* NB-6 */
Test(serve_nbd_live, connections_see_each_others_writes)
{
	uint8_t data[4096];
	int a = open_export("vm/a"), b = open_export("vm/a");

	for (int i = 0; i < 200; i++) {
		memset(data, i, sizeof(data));
		cr_assert_eq(write_at(i % 2 ? a : b, 4096, data, sizeof(data)), 0);
		cr_assert_eq(call(i % 2 ? b : a, 0, NBD_CMD_FLUSH, 0, 0), 0);
		expect_bytes(i % 2 ? b : a, 4096, (uint8_t)i, sizeof(data));
	}
	close(a);
	close(b);
}

/* --- limits and other people's clients --- */

/* NB-40 */
Test(serve_nbd_live, too_many_connections_are_refused)
{
	int fds[9];

	for (int i = 0; i < 8; i++)
		fds[i] = open_export("vm/a");
	fds[8] = dial();
	cr_expect(closed(fds[8]));
	close(fds[8]);
	expect_bytes(fds[7], 0, 0, 512);
	close(fds[0]);
	await_connections(7);
	fds[0] = open_export("vm/a");
	for (int i = 0; i < 8; i++)
		close(fds[i]);
	await_connections(0);
	cr_expect_eq(server.refused, 1);
}

/* NB-11 */
Test(serve_nbd_live, who_negotiates_for_too_long_is_closed)
{
	int silent = dial(), slow = greet(), busy = open_export("vm/a");
	uint8_t hello[NBD_GREETING_LEN];

	hear(silent, hello, sizeof(hello));
	say(slow, "IHAVE", 5);
	cr_expect(closed(silent));
	cr_expect(closed(slow));
	expect_bytes(busy, 0, 0, 512);
	await_connections(1);
	close(silent);
	close(slow);
	close(busy);
}

/* NB-30, NB-44 */
Test(serve_nbd_live, a_broken_client_is_closed_alone)
{
	int good = open_export("vm/a"), bad = open_export("vm/a"), worse = greet();

	request(bad, 0, NBD_CMD_READ, 1, 0, 4096);
	say(bad, "this is no request at all....", 28);
	say(worse, "GET / HTTP/1.1\r\n\r\n", 18);
	cr_expect(closed(worse));
	await_connections(2 - 1);
	expect_bytes(good, 0, 0, 4096);
	close(good);
	close(bad);
	close(worse);
}

/* NB-41, NB-44: a client that asks for everything and reads nothing. */
Test(serve_nbd_live, a_slow_reader_is_bounded_and_alone)
{
	enum { READS = 60 };
	int slow = open_export("vm/a"), other = open_export("vm/a");
	uint8_t *data = malloc(MIB);

	for (uint64_t i = 0; i < READS; i++)
		request(slow, 0, NBD_CMD_READ, i, i * MIB, MIB);
	for (int i = 0; i < 50; i++) {
		expect_bytes(other, 0, 0, 4096);
		cr_assert_leq(server.inflight_bytes, server.options.max_inflight + 4096);
	}
	usleep(200000);
	cr_expect_leq(server.inflight_bytes, server.options.max_inflight);
	cr_expect_gt(server.inflight_bytes, 0);
	for (int i = 0; i < READS; i++) {
		cr_assert_eq(reply(slow, NULL), 0);
		hear(slow, data, MIB);
	}
	expect_bytes(slow, 0, 0, 512);
	close(slow);
	close(other);
	free(data);
}

/* NB-42: the total is used up by some that do not read; everybody else goes on. */
Test(serve_nbd_live, nobody_waits_for_anothers_room)
{
	uint8_t *data = calloc(1, 4 * MIB);
	int hogs[3], other;

	for (int i = 0; i < 3; i++) {
		hogs[i] = open_export("vm/a");
		for (uint64_t k = 0; k < 4; k++)
			request(hogs[i], 0, NBD_CMD_READ, k, 0, 4 * MIB);
	}
	usleep(300000);
	cr_expect_geq(server.inflight_bytes, server.options.max_inflight_total - 4 * MIB);
	other = open_export("vm/b");
	for (int i = 0; i < 20; i++)
		cr_assert_eq(write_at(other, 0, data, 4 * MIB), 0);
	for (int i = 0; i < 3; i++) {
		for (uint64_t k = 0; k < 4; k++) {
			cr_assert_eq(reply(hogs[i], NULL), 0);
			hear(hogs[i], data, 4 * MIB);
		}
		close(hogs[i]);
	}
	close(other);
	free(data);
}

/* NB-41: more requests than may be in work are read when there is room, and all are answered. */
enum { COUNT = 5000 };

static void *ask_without_end(void *arg)
{
	for (uint64_t i = 0; i < COUNT; i++)
		request(*(int *)arg, 0, i % 3 ? NBD_CMD_READ : 77, i, 0, 512);
	return NULL;
}

Test(serve_nbd_live, requests_without_end_are_all_answered)
{
	int fd = open_export("vm/a");
	uint8_t data[512];
	pthread_t thread;

	cr_assert_eq(pthread_create(&thread, NULL, ask_without_end, &fd), 0);
	usleep(200000); /* until nobody can send any more */
	for (unsigned i = 0; i < COUNT; i++) {
		uint64_t cookie;
		uint32_t error = reply(fd, &cookie);

		cr_assert_eq(error, cookie % 3 ? 0 : NBD_EINVAL);
		if (!error)
			hear(fd, data, sizeof(data));
	}
	pthread_join(thread, NULL);
	close(fd);
}

/* NB-52: whatever was under way. */
Test(serve_nbd_live, clients_may_vanish)
{
	uint8_t *data = malloc(4 * MIB);

	memset(data, 0x42, 4 * MIB);
	for (int i = 0; i < 40; i++) {
		int fd = i % 4 ? open_export("vm/a") : greet();

		if (i % 4 == 1)
			for (int k = 0; k < 8; k++)
				request(fd, 0, NBD_CMD_READ, 1, 0, MIB);
		if (i % 4 >= 2)
			request(fd, 0, NBD_CMD_WRITE, 1, 0, 4 * MIB);
		if (i % 4 == 3)
			say(fd, data, MIB + (unsigned)i);
		if (i % 8 > 4)
			usleep(3000);
		close(fd);
	}
	await_connections(0);
	cr_expect_eq(server.inflight_bytes, 0);
	{
		int fd = open_export("vm/a"); /* none of the torn writes has happened */

		expect_bytes(fd, 0, 0, MIB);
		close(fd);
	}
	free(data);
}

/* NB-37: what was asked for before DISC is answered. */
Test(serve_nbd_live, disc_comes_after_all_replies)
{
	uint8_t *data = malloc(MIB);
	int fd = open_export("vm/a");

	for (uint64_t i = 0; i < 8; i++)
		request(fd, 0, NBD_CMD_READ, i, i * MIB, MIB);
	request(fd, 0, NBD_CMD_DISC, 9, 0, 0);
	shutdown(fd, SHUT_WR);
	for (int i = 0; i < 8; i++) {
		cr_assert_eq(reply(fd, NULL), 0);
		hear(fd, data, MIB);
	}
	cr_expect(closed(fd));
	close(fd);
	free(data);
}

/* --- the stop --- */

/* NB-50: a write that was acknowledged or not at all; nobody holds the stop up for long. */
Test(serve_nbd_live, the_stop_answers_what_is_done_and_no_more)
{
	int idle = open_export("vm/a"), half = open_export("vm/a"), new = greet();
	int reader = open_export("vm/b");
	uint8_t data[4096] = {9};
	uint64_t start;

	request(half, 0, NBD_CMD_WRITE, 1, 0, MIB);
	say(half, data, sizeof(data));
	request(reader, 0, NBD_CMD_READ, 1, 0, 65536);
	usleep(100000);
	start = srv_now_ns();
	stop();
	cr_expect_lt(srv_now_ns() - start, UINT64_C(2500000000), "below the drain time-out");
	cr_expect(closed(idle));
	cr_expect(closed(half));
	cr_expect(closed(new));
	cr_expect_eq(reply(reader, NULL), 0, "what was done is answered");
	close(idle);
	close(half);
	close(new);
	close(reader);
}

/* NB-51 */
Test(serve_nbd_live, the_stop_does_not_wait_for_who_does_not_read)
{
	int slow = open_export("vm/a");
	uint64_t start;

	for (uint64_t i = 0; i < 8; i++)
		request(slow, 0, NBD_CMD_READ, i, 0, MIB);
	usleep(200000);
	start = srv_now_ns();
	stop();
	cr_expect_geq(srv_now_ns() - start, UINT64_C(2900000000), "the drain time-out");
	cr_expect_lt(srv_now_ns() - start, UINT64_C(8000000000));
	close(slow);
}
