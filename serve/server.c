/* SPDX-License-Identifier: MIT */
/*
 * server.c - the life of a server: open, start the parts, serve until a signal, and all of it backwards.
 * The main thread sleeps in the signals' descriptor meanwhile, and wakes once a second to let go of
 * disks that nobody uses.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include "serve/server.h"
#include "serve/tls.h"

#define THREADS_MAX     64u
#define OPEN_PATIENCE_S 10 /* a killed server's last requests hold the store's lock */
#define MIB             (UINT64_C(1) << 20)

/* --- options --- */

static int set_defaults(const struct serve_options *options, struct vmimg_error *err,
			struct serve_options *ret)
{
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);

	*ret = *options;
	if (!ret->threads)
		ret->threads = cpus > 0 ? (unsigned)cpus : 1;
	if (ret->threads > THREADS_MAX)
		ret->threads = THREADS_MAX;
	if (!ret->max_connections)
		ret->max_connections = 1024;
	if (!ret->max_request)
		ret->max_request = 32 * MIB;
	if (!ret->max_inflight)
		ret->max_inflight = 64 * MIB;
	if (!ret->max_inflight_total)
		ret->max_inflight_total = 512 * MIB;
	if (!ret->handshake_timeout_s)
		ret->handshake_timeout_s = 10;
	if (!ret->drain_timeout_s)
		ret->drain_timeout_s = 30;
	if (!ret->socket_mode)
		ret->socket_mode = 0600;
	ret->open.size = sizeof(ret->open);
	if (ret->max_request < 64 << 10 || ret->max_request > 64 * MIB)
		return srv_fail(err, -EINVAL, "max request: %u bytes, expected 64 KiB..64 MiB",
				ret->max_request);
	if (ret->max_inflight < ret->max_request || ret->max_inflight_total < ret->max_inflight)
		return srv_fail(
			err, -EINVAL,
			"bytes in flight: one connection's %llu must hold a request's %u, and "
			"all connections' %llu one connection's",
			(unsigned long long)ret->max_inflight, ret->max_request,
			(unsigned long long)ret->max_inflight_total);
	return 0;
}

/* A descriptor a connection, a layer, a socket a disk: the soft limit is no policy of ours. */
static void raise_file_limit(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
		limit.rlim_cur = limit.rlim_max;
		setrlimit(RLIMIT_NOFILE, &limit);
	}
}

/* --- the store and its workers --- */

static int open_store(struct srv_server *s, struct vmimg_error *err)
{
	uint64_t end = srv_now_ns() + OPEN_PATIENCE_S * UINT64_C(1000000000);
	int r;

	while ((r = vmimg_open(s->options.store, &s->options.open, err, &s->svc)) == -EBUSY &&
	       srv_now_ns() < end)
		usleep(50000);
	return r;
}

static int start_workers(struct srv_server *s, struct vmimg_error *err)
{
	int r = srv_worker_create(s->svc, "vmimg-lobby", err, &s->lobby);

	s->workers = calloc(s->options.threads, sizeof(struct srv_worker *));
	if (!s->workers)
		return srv_fail(err, -ENOMEM, "out of memory");
	while (r == 0 && s->nworkers < s->options.threads) {
		char name[32];

		snprintf(name, sizeof(name), "vmimg-disk-%u", s->nworkers);
		r = srv_worker_create(s->svc, name, err, &s->workers[s->nworkers]);
		if (r == 0)
			s->nworkers++;
	}
	if (r < 0)
		return r;
	r = srv_exports_create(s, &s->exports);
	return r < 0 ? srv_fail(err, r, "out of memory") : 0;
}

static void stop_workers(struct srv_server *s)
{
	srv_exports_destroy(s->exports);
	while (s->nworkers)
		srv_worker_destroy(s->workers[--s->nworkers]);
	srv_worker_destroy(s->lobby);
	free(s->workers);
}

/* --- the parts, in the order of struct srv_server --- */

static int start_parts(struct srv_server *s, struct vmimg_error *err)
{
	int r = srv_tls_create(&s->options, err, &s->tls);

	if (r == 0)
		r = srv_watch_start(s, err, &s->watch);
	if (r == 0)
		r = srv_nbd_start(s, err, &s->nbd);
	if (r == 0)
		r = srv_vhost_start(s, err, &s->vhost);
	if (r == 0)
		r = srv_control_start(s, err, &s->control);
	return r;
}

static void stop_parts(struct srv_server *s)
{
	srv_control_stop(s->control);
	srv_vhost_stop(s->vhost);
	srv_nbd_stop(s->nbd);
	srv_watch_stop(s->watch);
	srv_tls_destroy(s->tls);
}

/* --- ready, and until the end --- */

static int write_pid_file(const struct srv_server *s, struct vmimg_error *err)
{
	FILE *f;
	int r = 0;

	if (!s->options.pid_file)
		return 0;
	f = fopen(s->options.pid_file, "we");
	if (!f)
		return srv_fail(err, -errno, "%s: %s", s->options.pid_file, strerror(errno));
	if (fprintf(f, "%d\n", (int)getpid()) < 0)
		r = -errno;
	if (fclose(f) != 0 && r == 0)
		r = -errno;
	return r < 0 ? srv_fail(err, r, "%s: %s", s->options.pid_file, strerror(-r)) : 0;
}

/* A task that comes back from every worker says that none hangs: only then is the watchdog fed. */
struct pulse {
	struct srv_task task;
	_Atomic bool beats;
};

static void run_pulse(struct srv_worker *worker, struct srv_task *task)
{
	(void)worker;
	atomic_store(&((struct pulse *)task)->beats, true);
}

static void feed_watchdog(struct srv_server *s, struct pulse *pulses)
{
	bool all = true;

	for (unsigned i = 0; i < s->nworkers; i++)
		all = all && atomic_load(&pulses[i].beats);
	if (!all)
		return;
	sd_notify(0, "WATCHDOG=1");
	for (unsigned i = 0; i < s->nworkers; i++) {
		atomic_store(&pulses[i].beats, false);
		srv_worker_post(s->workers[i], &pulses[i].task);
	}
}

static void serve(struct srv_server *s, int signals, struct pulse *pulses)
{
	struct pollfd poll_fd = {.fd = signals, .events = POLLIN};
	struct signalfd_siginfo info;
	int n;

	for (unsigned i = 0; i < s->nworkers; i++) {
		pulses[i].task.run = run_pulse;
		pulses[i].beats = true;
	}
	srv_log(SRV_INFO, s->options.store, "serving with %u worker%s", s->nworkers,
		s->nworkers == 1 ? "" : "s");
	sd_notifyf(0, "READY=1\nSTATUS=serving\nMAINPID=%d", (int)getpid());
	while ((n = poll(&poll_fd, 1, 1000)) <= 0) {
		if (n < 0 && errno != EINTR)
			break;
		srv_exports_tick(s->exports);
		if (atomic_exchange(&s->imported, false))
			srv_vhost_follow_all(s->vhost);
		feed_watchdog(s, pulses);
	}
	if (read(signals, &info, sizeof(info)) == sizeof(info))
		srv_log(SRV_INFO, NULL, "%s: draining",
			info.ssi_signo == SIGTERM ? "SIGTERM" : "SIGINT");
	sd_notify(0, "STOPPING=1\nSTATUS=draining");
}

/* Workers end after their last pulse has run: they run what was posted before the stop. */
static int run(struct srv_server *s, int signals, struct vmimg_error *err)
{
	struct pulse *pulses = NULL;
	int r = open_store(s, err);

	if (r < 0)
		return r;
	r = start_workers(s, err);
	if (r == 0)
		r = start_parts(s, err);
	if (r == 0)
		r = write_pid_file(s, err);
	if (r == 0) {
		pulses = calloc(s->nworkers, sizeof(*pulses));
		r = pulses ? 0 : srv_fail(err, -ENOMEM, "out of memory");
	}
	if (r == 0)
		serve(s, signals, pulses);
	atomic_store(&s->stopping, true);
	vmimg_cancel_jobs(s->svc); /* who waits for one on the control socket hears of it */
	stop_parts(s);
	stop_workers(s);
	free(pulses);
	if (s->options.pid_file && r == 0)
		unlink(s->options.pid_file);
	return r;
}

static int close_store(struct srv_server *s, int status, struct vmimg_error *err)
{
	int r;

	vmimg_cancel_jobs(s->svc); /* begun since */
	r = vmimg_close(s->svc);

	if (r < 0 && status == 0)
		return srv_fail(err, r, "%s: cannot close: %s", s->options.store, strerror(-r));
	return status;
}

int serve_run(const struct serve_options *options, struct vmimg_error *err)
{
	struct srv_server s = {.start_ns = srv_now_ns()};
	sigset_t set, old;
	int signals, r = set_defaults(options, err, &s.options);

	if (r < 0)
		return r;
	srv_log_set(options->log_json);
	raise_file_limit();
	signal(SIGPIPE, SIG_IGN);
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	pthread_sigmask(SIG_BLOCK, &set, &old); /* before any thread: they inherit it */
	signals = signalfd(-1, &set, SFD_CLOEXEC);
	if (signals < 0) {
		r = srv_fail(err, -errno, "signals: %s", strerror(errno));
	} else {
		r = run(&s, signals, err);
		close(signals);
	}
	r = close_store(&s, r, err);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (r == 0)
		srv_log(SRV_INFO, s.options.store, "closed");
	return r;
}
