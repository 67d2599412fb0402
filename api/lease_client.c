/* SPDX-License-Identifier: MIT */
/*
 * lease_client.c - our end of a lease: starts the process, speaks to it, and takes what it tells into the
 * guests. One thread at a time. The process is our child; it is reaped when it has ended, and one
 * that is left to itself when we end.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "api/lease.h"
#include "api/quiesce.h"

#define MS       1000000ull
#define START_NS (5000 * MS)

extern char **environ;

struct api_lease {
	struct vmimg_service *svc;
	struct eng_io *io;
	pid_t pid; /* 0: reaped */
	int fd;    /* -1: it has ended, or broke the protocol */
	bool hello;
	uint64_t released_ns;
	struct api_guest **guests;
	size_t count;
};

void api_guest_fail(struct api_guest *g, int r, const char *text)
{
	if (g->error)
		return;
	g->error = r;
	snprintf(g->text, sizeof(g->text), "%s", text);
}

/* --- the process --- */

static int spawn_attributes(posix_spawnattr_t *attr)
{
	sigset_t none, all;
	int r;

	sigemptyset(&none);
	sigfillset(&all);
	r = posix_spawnattr_setflags(attr, POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK |
						   POSIX_SPAWN_SETSIGDEF);
	if (r == 0)
		r = posix_spawnattr_setsigmask(attr, &none);
	return r ? r : posix_spawnattr_setsigdefault(attr, &all);
}

/* QU-12: its end of the socket is 0, and nothing else of ours goes with it. */
static int spawn_files(posix_spawn_file_actions_t *files, int end)
{
	int r = posix_spawn_file_actions_adddup2(files, end, 0);

	if (r == 0)
		r = posix_spawn_file_actions_addopen(files, 1, "/dev/null", O_WRONLY, 0);
	if (r == 0)
		r = posix_spawn_file_actions_adddup2(files, 1, 2);
	return r ? r : posix_spawn_file_actions_addclosefrom_np(files, 3);
}

static int spawn(char *const *argv, int end, pid_t *ret)
{
	posix_spawn_file_actions_t files;
	posix_spawnattr_t attr;
	int r = posix_spawnattr_init(&attr);

	if (r)
		return -r;
	r = posix_spawn_file_actions_init(&files);
	if (r == 0) {
		r = spawn_attributes(&attr);
		if (r == 0)
			r = spawn_files(&files, end);
		if (r == 0)
			r = posix_spawnp(ret, argv[0], &files, &attr, argv, environ);
		posix_spawn_file_actions_destroy(&files);
	}
	posix_spawnattr_destroy(&attr);
	return -r;
}

static void reap(struct api_lease *l, int flags)
{
	pid_t got;

	if (!l->pid)
		return;
	do
		got = waitpid(l->pid, NULL, flags);
	while (got < 0 && errno == EINTR);
	if (got != 0)
		l->pid = 0;
}

static void drop(struct api_lease *l)
{
	if (l->fd < 0)
		return;
	close(l->fd);
	l->fd = -1;
}

void api_lease_kill(struct api_lease *l)
{
	if (l->pid)
		kill(l->pid, SIGKILL);
	drop(l);
	reap(l, 0);
}

/* A lease that ends later: its process is waited for when somebody comes by. */
struct api_orphan {
	struct api_orphan *next;
	pid_t pid;
};

static void leave(struct api_lease *l)
{
	struct api_orphan *o;

	reap(l, WNOHANG);
	o = l->pid ? calloc(1, sizeof(*o)) : NULL;
	if (!o)
		return;
	o->pid = l->pid;
	pthread_mutex_lock(&l->svc->lock);
	o->next = l->svc->orphans;
	l->svc->orphans = o;
	pthread_mutex_unlock(&l->svc->lock);
}

static void reap_orphans(struct vmimg_service *svc, bool forget)
{
	pthread_mutex_lock(&svc->lock);
	for (struct api_orphan **at = &svc->orphans, *o; (o = *at);) {
		if (waitpid(o->pid, NULL, WNOHANG) == 0 && !forget) {
			at = &o->next;
		} else {
			*at = o->next;
			free(o);
		}
	}
	pthread_mutex_unlock(&svc->lock);
}

void api_leases_finish(struct vmimg_service *svc)
{
	reap_orphans(svc, true);
}

void api_lease_destroy(struct api_lease *l)
{
	if (!l)
		return;
	drop(l);
	leave(l);
	free(l->guests);
	free(l);
}

/* --- what it tells --- */

static void take_guest(struct api_guest *g, const struct lease_packet *p)
{
	switch (p->kind) {
	case LEASE_READY:
		g->ready = p->result == 0;
		if (p->result)
			api_guest_fail(g, p->result, p->text);
		break;
	case LEASE_FROZEN:
		/* A second one says that it does not hold any more. */
		g->answered = true;
		g->frozen = p->result == 0;
		if (p->result == 0)
			g->filesystems = p->count;
		else
			api_guest_fail(g, p->result, p->text);
		break;
	default:
		g->told = true;
		g->confirmed = p->result == 0;
		g->thawed = p->count;
		g->thaw_ns = p->at_ns;
		g->done_ns = p->limit_ns;
		if (p->text[0])
			api_guest_fail(g, p->result ? p->result : -EREMOTEIO, p->text);
		break;
	}
}

static int take(struct api_lease *l, const struct lease_packet *p)
{
	switch (p->kind) {
	case LEASE_HELLO: l->hello = true; return 0;
	case LEASE_RELEASED: l->released_ns = p->at_ns; return 0;
	case LEASE_READY:
	case LEASE_FROZEN:
	case LEASE_THAWED:
		if (p->index >= l->count || p->result > 0)
			return -EPROTO;
		take_guest(l->guests[p->index], p);
		return 0;
	default: return -EPROTO;
	}
}

void api_lease_take(struct api_lease *l)
{
	struct lease_packet p;
	int r = 0;

	while (l->fd >= 0 && r == 0) {
		r = lease_receive(l->fd, &p);
		if (r == 0)
			return;
		if (r > 0)
			r = take(l, &p);
	}
	if (r < 0)
		drop(l);
	if (r == -EPIPE)
		reap(l, 0); /* it closes its socket when it ends */
}

int api_lease_fd(const struct api_lease *l)
{
	return l->fd;
}

bool api_lease_ended(const struct api_lease *l)
{
	return l->fd < 0;
}

uint64_t api_lease_released_ns(const struct api_lease *l)
{
	return l->released_ns;
}

/* --- what it is told --- */

static int say(struct api_lease *l, struct lease_packet *p, uint64_t deadline_ns)
{
	int r = 0;

	while (l->fd >= 0 && (r = lease_send(l->fd, p)) == 0) {
		struct pollfd poller = {.fd = l->fd, .events = POLLOUT};

		if (eng_io_now_ns(l->io) >= deadline_ns)
			return -ETIMEDOUT;
		poll(&poller, 1, 10);
	}
	return l->fd < 0 ? -EPIPE : r < 0 ? r : 0;
}

int api_lease_freeze(struct api_lease *l, uint64_t limit_ns)
{
	struct lease_packet p = {.kind = LEASE_FREEZE, .limit_ns = limit_ns};

	return say(l, &p, 0);
}

/* No room for one packet: it takes none any more, and the end of the socket says the same. */
void api_lease_thaw(struct api_lease *l)
{
	struct lease_packet p = {.kind = LEASE_THAW};

	if (say(l, &p, 0) == -ETIMEDOUT)
		drop(l);
}

static int wait_hello(struct api_lease *l, uint64_t deadline_ns)
{
	while (!l->hello && l->fd >= 0) {
		struct pollfd poller = {.fd = l->fd, .events = POLLIN};

		if (eng_io_now_ns(l->io) >= deadline_ns)
			return -ETIMEDOUT;
		poll(&poller, 1, 50);
		api_lease_take(l);
	}
	return l->hello ? 0 : -ECHILD;
}

static int introduce(struct api_lease *l, bool thaw_only, uint64_t limit_ns)
{
	uint64_t deadline = eng_io_now_ns(l->io) + START_NS;
	struct lease_packet p = {.kind = LEASE_GUEST};
	int r = wait_hello(l, deadline);

	for (size_t i = 0; r == 0 && i < l->count; i++) {
		p.index = (uint32_t)i;
		snprintf(p.text, sizeof(p.text), "%s", l->guests[i]->socket);
		r = say(l, &p, deadline);
	}
	p = (struct lease_packet){.kind = thaw_only ? LEASE_THAW : LEASE_SYNC,
				  .limit_ns = limit_ns};
	return r < 0 ? r : say(l, &p, deadline);
}

static int start(struct api_lease *l, char *const *argv, struct fmt_error *err)
{
	int ends[2], r;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0)
		return fmt_fail(err, -errno, "lease: no socket: %s", strerror(errno));
	r = spawn(argv, ends[1], &l->pid);
	close(ends[1]);
	l->fd = ends[0];
	if (r < 0) {
		l->pid = 0;
		return fmt_fail(err, r, "lease: cannot start %s: %s", argv[0], strerror(-r));
	}
	return 0;
}

int api_lease_start(struct vmimg_service *svc, struct api_guest **guests, size_t count,
		    bool thaw_only, uint64_t limit_ns, struct fmt_error *err,
		    struct api_lease **ret)
{
	struct api_lease *l = calloc(1, sizeof(*l));
	int r = -ENOMEM;

	if (!l)
		return fmt_fail(err, r, "lease: no memory");
	reap_orphans(svc, false);
	l->fd = -1;
	l->svc = svc;
	l->io = svc->io;
	l->guests = calloc(count, sizeof(*l->guests));
	if (!l->guests)
		goto out;
	memcpy(l->guests, guests, count * sizeof(*guests));
	l->count = count;
	r = start(l, svc->lease_argv, err);
	if (r < 0)
		goto out;
	r = introduce(l, thaw_only, limit_ns);
	if (r < 0) {
		fmt_fail(err, r, "lease: %s does not answer as one", svc->lease_argv[0]);
		api_lease_kill(l);
		goto out;
	}
	*ret = l;
	l = NULL;
out:
	api_lease_destroy(l);
	return r;
}
