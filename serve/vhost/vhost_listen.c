/* SPDX-License-Identifier: MIT */
/*
 * vhost_listen.c - a listening socket a disk, DIR/VM.DISK.sock (VU-1..VU-5). One front-end at a time: the
 * next one waits in the socket's backlog until the first has ended, so a hypervisor that restarts is not
 * refused for being quicker than its predecessor's end.
 *
 * A port is the lobby's: it accepts there, asks for the export, and hears there of the device's end.
 *     IDLE -> ACCEPTING   armed
 *     ACCEPTING -> WANTED accepted; -> IDLE refused
 *     WANTED -> SERVING   the device runs on its export's worker; -> IDLE no export
 *     SERVING -> IDLE     the device has ended
 * and from IDLE it goes when it is closing. What the device's worker sets of it (@device) is that
 * worker's alone. Whoever removes a port waits until it is gone.
 */
#include <errno.h>
#include <jansson.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "serve/vhost/vhost.h"

enum port_state {
	IDLE,
	ACCEPTING,
	WANTED,
	SERVING,
};

struct port {
	struct port *next; /* this and the next: the list's lock */
	bool removed;      /* told to close */
	struct srv_vhost *vhost;
	char name[2 * (VMIMG_NAME_MAX + 1)]; /* "VM/DISK"; immutable, as is the path */
	char *path;
	bool passed;

	/* the lobby's */
	int fd;
	enum port_state state;
	bool closing;
	unsigned tasks; /* that come back: nothing is freed before */
	struct srv_op accept, cancel, pause;
	struct __kernel_timespec pause_time;
	struct srv_worker *worker; /* SERVING: the device's */
	struct srv_task arm, close, wanted, ended, stopped;
	struct srv_want want;
	int client;

	/* the export's worker's */
	struct srv_vhost_device *device;
	struct srv_task stop;
};

struct srv_vhost {
	struct srv_server *server;
	pthread_mutex_t lock; /* guards the list */
	pthread_cond_t gone;  /* a port has left it */
	pthread_mutex_t turn; /* of who follows a disk: before the other */
	struct port *ports;
};

#define PAUSE_NS 100000000 /* after an accept that failed: descriptors may come free */

#define port_of(ptr, member) ((struct port *)((char *)(ptr)-offsetof(struct port, member)))

static void arm(struct port *port);

/* --- the lobby --- */

static struct srv_worker *lobby(const struct port *port)
{
	return port->vhost->server->lobby;
}

/* A turn of the port: idle, it accepts, or goes. */
static void idle(struct port *port)
{
	struct srv_vhost *vhost = port->vhost;
	struct port **p = &vhost->ports;

	port->state = IDLE;
	if (!port->closing && !port->tasks) {
		arm(port);
		return;
	}
	if (port->tasks)
		return;
	close(port->fd);
	if (!port->passed)
		unlink(port->path);
	pthread_mutex_lock(&vhost->lock);
	while (*p != port)
		p = &(*p)->next;
	*p = port->next;
	pthread_cond_broadcast(&vhost->gone);
	pthread_mutex_unlock(&vhost->lock);
	free(port->path);
	free(port);
}

static void on_paused(struct srv_op *op, int32_t result, uint32_t flags)
{
	struct port *port = port_of(op, pause);

	(void)result;
	(void)flags;
	port->tasks--;
	idle(port);
}

static void pause_port(struct port *port)
{
	struct io_uring_sqe *sqe;

	port->state = IDLE;
	port->tasks++;
	port->pause.done = on_paused;
	port->pause_time = (struct __kernel_timespec){.tv_nsec = PAUSE_NS};
	sqe = srv_worker_sqe(lobby(port), &port->pause);
	io_uring_prep_timeout(sqe, &port->pause_time, 0, 0);
}

static void on_accepted(struct srv_op *op, int32_t result, uint32_t flags)
{
	struct port *port = port_of(op, accept);
	struct srv_server *server = port->vhost->server;

	(void)flags;
	if (port->closing) {
		if (result >= 0)
			close(result);
		idle(port);
	} else if (result < 0) {
		srv_log(SRV_WARNING, port->name, "vhost-user: cannot accept: %s",
			strerror(-result));
		pause_port(port);
	} else if (atomic_fetch_add(&server->connections, 1) >= server->options.max_connections) {
		atomic_fetch_sub(&server->connections, 1);
		atomic_fetch_add(&server->refused, 1);
		srv_log(SRV_WARNING, port->name, "vhost-user: more than %u connections",
			server->options.max_connections);
		close(result);
		pause_port(port);
	} else {
		atomic_fetch_add(&server->accepted, 1);
		port->client = result;
		port->state = WANTED;
		snprintf(port->want.name, sizeof(port->want.name), "%s", port->name);
		srv_export_want(server->exports, &port->want);
	}
}

static void arm(struct port *port)
{
	struct io_uring_sqe *sqe;

	port->state = ACCEPTING;
	port->accept.done = on_accepted;
	sqe = srv_worker_sqe(lobby(port), &port->accept);
	io_uring_prep_accept(sqe, port->fd, NULL, NULL, SOCK_CLOEXEC);
}

static void run_arm(struct srv_worker *worker, struct srv_task *task)
{
	(void)worker;
	idle(port_of(task, arm));
}

static void post_stop(struct port *port)
{
	port->tasks++;
	srv_worker_post(port->worker, &port->stop);
}

static void run_wanted(struct srv_worker *worker, struct srv_task *task)
{
	struct port *port = port_of(task, wanted);

	(void)worker;
	port->state = SERVING;
	if (port->closing)
		post_stop(port);
}

static void run_ended(struct srv_worker *worker, struct srv_task *task)
{
	struct port *port = port_of(task, ended);

	(void)worker;
	atomic_fetch_sub(&port->vhost->server->connections, 1);
	idle(port);
}

static void run_stopped(struct srv_worker *worker, struct srv_task *task)
{
	struct port *port = port_of(task, stopped);

	(void)worker;
	port->tasks--;
	if (port->state == IDLE)
		idle(port);
}

static void on_cancelled(struct srv_op *op, int32_t result, uint32_t flags)
{
	struct port *port = port_of(op, cancel);

	(void)result;
	(void)flags;
	port->tasks--;
	if (port->state == IDLE)
		idle(port);
}

static void run_close(struct srv_worker *worker, struct srv_task *task)
{
	struct port *port = port_of(task, close);
	struct io_uring_sqe *sqe;

	port->closing = true;
	if (port->state == ACCEPTING) {
		port->tasks++;
		port->cancel.done = on_cancelled;
		sqe = srv_worker_sqe(worker, &port->cancel);
		io_uring_prep_cancel64(sqe, (uint64_t)(uintptr_t)&port->accept | 1, 0);
	} else if (port->state == SERVING) {
		post_stop(port);
	}
}

/* --- the export's worker --- */

static void on_device_ended(void *owner)
{
	struct port *port = owner;

	port->device = NULL;
	srv_worker_post(lobby(port), &port->ended);
}

static void on_wanted(struct srv_want *want, int result, struct srv_export *export)
{
	struct port *port = port_of(want, want);

	if (result == 0) {
		/* First told, then started: it may end at once. */
		port->worker = export->worker;
		srv_worker_post(lobby(port), &port->wanted);
		result = srv_vhost_device_start(port->vhost->server, export, port->client,
						on_device_ended, port, &port->device);
		if (result == 0)
			return;
		srv_export_put(export);
	} else {
		srv_log(SRV_WARNING, port->name, "vhost-user: %s", want->error.message);
	}
	close(port->client);
	srv_worker_post(lobby(port), &port->ended);
}

static void run_stop(struct srv_worker *worker, struct srv_task *task)
{
	struct port *port = port_of(task, stop);

	(void)worker;
	if (port->device)
		srv_vhost_device_stop(port->device);
	srv_worker_post(lobby(port), &port->stopped);
}

/* --- ports come and go: any thread but a worker --- */

static struct port *find_locked(struct srv_vhost *vhost, const char *name, const char *path)
{
	for (struct port *p = vhost->ports; p; p = p->next)
		if ((name && !strcmp(p->name, name)) || (path && !strcmp(p->path, path)))
			return p;
	return NULL;
}

static int listen_at(struct port *port, struct vmimg_error *err)
{
	const struct serve_options *o = &port->vhost->server->options;
	int fd = srv_listen_unix(port->path, o->socket_mode, NULL, err, &port->passed);

	if (fd < 0)
		return fd;
	/* The ring waits for us; a non-blocking socket would have it fail at once. */
	fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
	port->fd = fd;
	return 0;
}

static struct port *port_create(struct srv_vhost *vhost, const char *disk)
{
	struct port *port = calloc(1, sizeof(*port));
	char *slash;

	if (!port || strlen(disk) >= sizeof(port->name) ||
	    asprintf(&port->path, "%s/%s.sock", vhost->server->options.vhost_dir, disk) < 0) {
		free(port);
		return NULL;
	}
	slash = strrchr(port->path, '/'); /* that of VM/DISK */
	*slash = '.';
	port->vhost = vhost;
	strcpy(port->name, disk);
	port->arm.run = run_arm;
	port->close.run = run_close;
	port->wanted.run = run_wanted;
	port->ended.run = run_ended;
	port->stopped.run = run_stopped;
	port->stop.run = run_stop;
	port->want.done = on_wanted;
	return port;
}

static bool has_port(struct srv_vhost *vhost, const char *disk)
{
	bool has;

	pthread_mutex_lock(&vhost->lock);
	has = find_locked(vhost, disk, NULL) != NULL;
	pthread_mutex_unlock(&vhost->lock);
	return has;
}

/* VU-2 */
static void add(struct srv_vhost *vhost, const char *disk)
{
	struct vmimg_error err = {0};
	struct port *port, *other;
	int r = 0;

	if (!strchr(disk, '/') || has_port(vhost, disk))
		return;
	port = port_create(vhost, disk);
	if (!port) {
		srv_log(SRV_ERROR, disk, "vhost-user: out of memory");
		return;
	}
	pthread_mutex_lock(&vhost->lock);
	other = find_locked(vhost, disk, port->path);
	if (other)
		r = srv_fail(&err, -EEXIST, "%s is %s's", port->path, other->name);
	else
		r = listen_at(port, &err);
	if (r == 0) {
		port->next = vhost->ports;
		vhost->ports = port;
		srv_worker_post(lobby(port), &port->arm);
	}
	pthread_mutex_unlock(&vhost->lock);
	if (r < 0) {
		srv_log(SRV_ERROR, disk, "vhost-user: no socket: %s", err.message);
		free(port->path);
		free(port);
	}
}

static void close_locked(struct port *port)
{
	if (!port->removed)
		srv_worker_post(lobby(port), &port->close);
	port->removed = true;
}

static void remove_port(struct srv_vhost *vhost, const char *disk)
{
	struct port *port;

	pthread_mutex_lock(&vhost->lock);
	while ((port = find_locked(vhost, disk, NULL))) {
		close_locked(port);
		pthread_cond_wait(&vhost->gone, &vhost->lock);
	}
	pthread_mutex_unlock(&vhost->lock);
}

/*
 * By what there is now: two who have made and deleted the disk may come here in any order. One at a time.
 * Where it cannot be told nothing is done: a guest may be using it.
 */
void srv_vhost_follow(struct srv_vhost *vhost, const char *disk)
{
	char *text = NULL;
	int r;

	if (!vhost)
		return;
	pthread_mutex_lock(&vhost->turn);
	r = vmimg_describe(vhost->server->svc, VMIMG_KIND_BRIEF | VMIMG_KIND_DISK, disk, NULL,
			   &text);
	if (r == 0)
		add(vhost, disk);
	else if (r == -ENOENT)
		remove_port(vhost, disk);
	vmimg_free(text);
	pthread_mutex_unlock(&vhost->turn);
}

static int follow_all(struct srv_vhost *vhost, struct vmimg_error *err)
{
	char *text = NULL;
	json_t *list, *disk;
	size_t i;
	int r = vmimg_list(vhost->server->svc, VMIMG_KIND_BRIEF | VMIMG_KIND_DISK, NULL, err,
			   &text);

	if (r < 0)
		return r;
	list = json_loads(text, 0, NULL);
	vmimg_free(text);
	json_array_foreach (list, i, disk) {
		const char *name = json_string_value(json_object_get(disk, "disk"));

		if (name && !has_port(vhost, name))
			srv_vhost_follow(vhost, name);
	}
	json_decref(list);
	return list ? 0 : srv_fail(err, -ENOMEM, "out of memory");
}

void srv_vhost_follow_all(struct srv_vhost *vhost)
{
	struct vmimg_error err = {0};

	if (vhost && follow_all(vhost, &err) < 0)
		srv_log(SRV_ERROR, NULL, "vhost-user: no sockets for new disks: %s", err.message);
}

/* --- start and stop --- */

int srv_vhost_start(struct srv_server *server, struct vmimg_error *err, struct srv_vhost **ret)
{
	const char *dir = server->options.vhost_dir;
	struct srv_vhost *vhost;
	int r;

	if (!dir || !*dir)
		return 0;
	if (mkdir(dir, 0700) < 0 && errno != EEXIST)
		return srv_fail(err, -errno, "%s: %s", dir, strerror(errno));
	vhost = calloc(1, sizeof(*vhost));
	if (!vhost)
		return srv_fail(err, -ENOMEM, "out of memory");
	vhost->server = server;
	pthread_mutex_init(&vhost->lock, NULL);
	pthread_cond_init(&vhost->gone, NULL);
	pthread_mutex_init(&vhost->turn, NULL);
	r = srv_vhost_guard_install();
	if (r == 0)
		r = follow_all(vhost, err);
	if (r < 0) {
		srv_vhost_stop(vhost);
		return r;
	}
	*ret = vhost;
	return 0;
}

void srv_vhost_stop(struct srv_vhost *vhost)
{
	struct timespec until;
	bool told = false;

	if (!vhost)
		return;
	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += vhost->server->options.drain_timeout_s;
	pthread_mutex_lock(&vhost->lock);
	for (struct port *p = vhost->ports; p; p = p->next)
		close_locked(p);
	/* What is in flight uses the guests' memory and the disks: it cannot be dropped (VU-5). */
	while (vhost->ports) {
		if (told)
			pthread_cond_wait(&vhost->gone, &vhost->lock);
		else if (pthread_cond_timedwait(&vhost->gone, &vhost->lock, &until) == ETIMEDOUT) {
			srv_log(SRV_WARNING, vhost->ports->name,
				"vhost-user: requests in flight for longer than %u s",
				vhost->server->options.drain_timeout_s);
			told = true;
		}
	}
	pthread_mutex_unlock(&vhost->lock);
	srv_vhost_guard_remove();
	pthread_mutex_destroy(&vhost->turn);
	pthread_cond_destroy(&vhost->gone);
	pthread_mutex_destroy(&vhost->lock);
	free(vhost);
}
