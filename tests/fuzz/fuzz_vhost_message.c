/* SPDX-License-Identifier: MIT */
/*
 * fuzz_vhost_message.c - any bytes as what a front-end does: messages whole and cut, descriptors of all
 * sorts, writes to the memory it shares, kicks. A real worker, disk and store on tmpfs, no mock.
 * Invariants:
 * - no crash, no undefined behaviour
 * - the device ends when its front-end has gone: no hang
 * - answers are well formed: version 1, the reply bit, a bounded size
 * - no descriptor is left open
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <poll.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "serve/vhost/vhost.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

#define MEMORY     65536u
#define GUEST      UINT64_C(0x10000)
#define USER       UINT64_C(0x7f0000000000)
#define PATIENCE_S 30

static char scratch[64];
static struct srv_server server;
static struct srv_worker *workers[1];
static sem_t ended;

static struct {
	int fd, peer, memory, kick, file, back;
	uint8_t *mem;
} f;

static void check(bool ok, const char *what)
{
	if (!ok) {
		fprintf(stderr, "violated: %s\n", what);
		abort();
	}
}

static int remove_entry(const char *name, const struct stat *st, int type, struct FTW *ftw)
{
	(void)st;
	(void)type;
	(void)ftw;
	return remove(name);
}

static void stop(void)
{
	srv_exports_destroy(server.exports);
	srv_worker_destroy(workers[0]);
	srv_worker_destroy(server.lobby);
	vmimg_close(server.svc);
	nftw(scratch, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

static void start(void)
{
	struct vmimg_disk_spec spec = {.size_of = sizeof(spec), .size = 1 << 20};
	char store[80];

	snprintf(scratch, sizeof(scratch), "/dev/shm/vmimg-fuzz-XXXXXX");
	check(mkdtemp(scratch) != NULL, "a directory");
	snprintf(store, sizeof(store), "%s/store", scratch);
	check(vmimg_store_init(store, NULL) == 0, "a store");
	check(vmimg_open(store, NULL, NULL, &server.svc) == 0, "a service");
	check(vmimg_vm_create(server.svc, "m", NULL) == 0, "a machine");
	check(vmimg_disk_create(server.svc, "m/d", &spec, NULL) == 0, "a disk");
	server.options.max_request = 1 << 20;
	server.options.max_inflight = 64 << 20;
	server.options.max_connections = 8;
	server.workers = workers;
	server.nworkers = 1;
	check(srv_worker_create(server.svc, "lobby", NULL, &server.lobby) == 0, "the lobby");
	check(srv_worker_create(server.svc, "worker", NULL, &workers[0]) == 0, "a worker");
	check(srv_exports_create(&server, &server.exports) == 0, "exports");
	check(srv_vhost_guard_install() == 0, "the guard");
	sem_init(&ended, 0, 0);
	atexit(stop);
}

static void on_ended(void *owner)
{
	(void)owner;
	sem_post(&ended);
}

static void on_wanted(struct srv_want *want, int result, struct srv_export *export)
{
	struct srv_vhost_device *device;

	(void)want;
	check(result == 0, "the export is there");
	check(srv_vhost_device_start(&server, export, f.peer, on_ended, NULL, &device) == 0,
	      "a device");
}

/* libFuzzer's own alarm interrupts what waits. */
static bool wait_ended(void)
{
	struct timespec until;
	int r;

	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += PATIENCE_S;
	do
		r = sem_timedwait(&ended, &until);
	while (r < 0 && errno == EINTR);
	return r == 0;
}

/* --- the front-end --- */

static void drain(bool to_the_end)
{
	struct pollfd p = {.fd = f.fd, .events = POLLIN};
	static uint8_t buf[4096];
	static size_t have;

	while (poll(&p, 1, to_the_end ? PATIENCE_S * 1000 : 0) > 0) {
		ssize_t n = recv(f.fd, buf + have, sizeof(buf) - have, 0);
		struct vhost_header h;

		if (n <= 0)
			break;
		have += (size_t)n;
		while (have >= sizeof(h)) {
			memcpy(&h, buf, sizeof(h));
			check(h.flags == (VHOST_FLAG_VERSION | VHOST_FLAG_REPLY) &&
				      h.size <= sizeof(union vhost_payload),
			      "an answer is well formed");
			if (have < sizeof(h) + h.size)
				break;
			have -= sizeof(h) + h.size;
			memmove(buf, buf + sizeof(h) + h.size, have);
		}
	}
	if (to_the_end)
		have = 0;
}

static void send_with(const void *bytes, size_t len, unsigned nfds, uint8_t kinds)
{
	const int fds[4] = {f.memory, f.kick, f.back, f.file};
	char control[CMSG_SPACE(sizeof(int) * 12)] = {0};
	struct iovec iov = {(void *)(uintptr_t)bytes, len};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};

	if (nfds) {
		struct cmsghdr *c;

		msg.msg_control = control;
		msg.msg_controllen = CMSG_SPACE(sizeof(int) * nfds);
		c = CMSG_FIRSTHDR(&msg);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int) * nfds);
		for (unsigned i = 0; i < nfds; i++)
			memcpy(CMSG_DATA(c) + i * sizeof(int), &fds[kinds >> 2 * (i % 4) & 3],
			       sizeof(int));
	}
	sendmsg(f.fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
	drain(false);
}

static void message(uint32_t request, uint32_t flags, const void *payload, uint32_t size,
		    unsigned nfds, uint8_t kinds)
{
	uint8_t bytes[sizeof(struct vhost_header) + 256];
	struct vhost_header h = {request, flags, size};

	memcpy(bytes, &h, sizeof(h));
	memcpy(bytes + sizeof(h), payload, size);
	send_with(bytes, sizeof(h) + size, nfds, kinds);
}

/* All that a queue needs, so that what comes is about its ring. */
static void set_up(uint64_t features)
{
	uint64_t protocol = 0x9229, all = features & 0x170007646, queue = 0;
	struct vhost_mem_table t = {1, 0, {{GUEST, MEMORY, USER, 0}}};
	struct vhost_addr a = {.desc = USER, .avail = USER + 4096, .used = USER + 8192};
	struct vhost_state num = {0, 16}, on = {0, 1};

	message(VHOST_SET_PROTOCOL_FEATURES, 1, &protocol, 8, 0, 0);
	message(VHOST_SET_FEATURES, 1, &all, 8, 0, 0);
	message(VHOST_SET_MEM_TABLE, 1, &t, 40, 1, 0);
	message(VHOST_SET_VRING_NUM, 1, &num, 8, 0, 0);
	message(VHOST_SET_VRING_ADDR, 1, &a, 40, 0, 0);
	message(VHOST_SET_VRING_KICK, 1, &queue, 8, 1, 1);
	message(VHOST_SET_VRING_CALL, 1, &queue, 8, 1, 1);
	message(VHOST_SET_VRING_ENABLE, 1, &on, 8, 0, 0);
}

static uint8_t take(const uint8_t **data, size_t *len)
{
	if (!*len)
		return 0;
	(*len)--;
	return *(*data)++;
}

static void act(const uint8_t **data, size_t *len)
{
	uint8_t what = take(data, len), a = take(data, len), b = take(data, len);
	size_t n = take(data, len);

	n = n < *len ? n : *len;
	switch (what % 7) {
	case 0: send_with(*data, n, a % 10, b); break;
	case 1:
	case 2:
		message(a % 40, what & 16 ? b : 1 | (b & 8), *data, (uint32_t)n, b >> 4 & 3, b);
		break;
	case 3:
		set_up(a & 1 ? UINT64_MAX : UINT64_C(1) << 30 | a);
		n = 0;
		break;
	case 4: memcpy(f.mem + (a << 8 | b) % (MEMORY - 256), *data, n); break;
	case 5:
		eventfd_write(f.kick, 1);
		n = 0;
		break;
	default:
		n = 0;
		if (a == 77 && ftruncate(f.memory, b * 1024) < 0)
			check(false, "truncate");
	}
	*data += n;
	*len -= n;
}

static unsigned open_fds(void)
{
	DIR *dir = opendir("/proc/self/fd");
	unsigned n = 0;

	while (readdir(dir))
		n++;
	closedir(dir);
	return n;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	static unsigned runs, fds;
	struct srv_want want = {.done = on_wanted, .name = "m/d"};
	int pair[2], back[2];

	if (!runs)
		start();
	check(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0 &&
		      socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, back) == 0,
	      "sockets");
	f.fd = pair[0];
	f.peer = pair[1];
	f.back = back[0];
	f.memory = memfd_create("guest", MFD_CLOEXEC);
	f.kick = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	f.file = open("/dev/null", O_RDWR | O_CLOEXEC);
	check(ftruncate(f.memory, MEMORY) == 0, "memory");
	f.mem = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED, f.memory, 0);
	check(f.mem != MAP_FAILED, "memory");
	srv_export_want(server.exports, &want);
	while (len) {
		/* We write there too: after a truncation nothing but messages. */
		struct stat st;

		check(fstat(f.memory, &st) == 0, "memory");
		if (st.st_size < MEMORY && data[0] % 7 == 4) {
			data++;
			len--;
			continue;
		}
		act(&data, &len);
	}
	shutdown(f.fd, SHUT_WR);
	drain(true);
	check(wait_ended(), "the device ends");
	munmap(f.mem, MEMORY);
	close(f.fd);
	close(f.back);
	close(back[1]);
	close(f.memory);
	close(f.kick);
	close(f.file);
	if (++runs == 100)
		fds = open_fds();
	if (runs % 1000 == 0)
		check(open_fds() <= fds + 8, "no descriptor is left open");
	return 0;
}
