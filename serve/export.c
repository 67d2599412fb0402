/* SPDX-License-Identifier: MIT */
/*
 * export.c - the table of disks in use.
 *
 * States, under the table's lock; what an export waits for happens on its worker:
 *     DETACHED  -> ATTACHING   wanted
 *     ATTACHING -> ATTACHED    attached; -> DETACHED failed
 *     ATTACHED  -> FLUSHING    no user for a while, or released
 *     FLUSHING  -> ATTACHED    wanted again; -> DETACHING flushed, still nobody
 *     DETACHING -> DETACHED    and ATTACHING at once if wanted meanwhile
 * The flush goes ahead of the detach as an ordinary request, so that the worker, with its other
 * disks, is not held up by it. A disk's entry stays for its counters; a snapshot's goes.
 *
 * A snapshot's name may come to mean another one while the first is attached: who asks for it looks up
 * what it means now, and an export of another snapshot is stale from then on.
 */
#include "serve/export.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "serve/server.h"

#define LINGER_NS (5 * UINT64_C(1000000000)) /* a client that reconnects finds its disk attached */

enum {
	DETACHED,
	ATTACHING,
	ATTACHED,
	FLUSHING,
	DETACHING,
};

struct srv_exports {
	struct srv_server *server;
	pthread_mutex_t lock; /* guards the list, and of an export: state, refs, wants, idle_ns */
	pthread_cond_t changed;
	struct srv_export *list;
};

static void run_attach(struct srv_worker *worker, struct srv_task *task);
static void run_flush(struct srv_worker *worker, struct srv_task *task);

#define export_of(ptr, member)                                                                     \
	((struct srv_export *)((char *)(ptr)-offsetof(struct srv_export, member)))
#define want_of(ptr) ((struct srv_want *)((char *)(ptr)-offsetof(struct srv_want, task)))

int srv_exports_create(struct srv_server *server, struct srv_exports **ret)
{
	struct srv_exports *x = calloc(1, sizeof(*x));

	if (!x)
		return -ENOMEM;
	x->server = server;
	pthread_mutex_init(&x->lock, NULL);
	pthread_cond_init(&x->changed, NULL);
	*ret = x;
	return 0;
}

static void forget_locked(struct srv_exports *x, struct srv_export *export)
{
	struct srv_export **p = &x->list;

	while (*p != export)
		p = &(*p)->next;
	*p = export->next;
	free(export);
}

void srv_exports_destroy(struct srv_exports *x)
{
	if (!x)
		return;
	srv_exports_release(x, NULL);
	pthread_cond_destroy(&x->changed);
	pthread_mutex_destroy(&x->lock);
	free(x);
}

static struct srv_export *find_locked(struct srv_exports *x, const char *name)
{
	for (struct srv_export *e = x->list; e; e = e->next)
		if (!e->stale && !strcmp(e->name, name))
			return e;
	return NULL;
}

static bool is_attached(const struct srv_export *export)
{
	return export->state == ATTACHED || export->state == FLUSHING;
}

/* One that is attached is of the snapshot that is wanted. */
static struct srv_export *find_wanted_locked(struct srv_exports *x, const struct srv_want *want)
{
	struct srv_export *e = find_locked(x, want->name);

	if (!e || !is_attached(e) || !strcmp(e->snapshot, want->snapshot))
		return e;
	e->stale = true;
	return NULL;
}

/* What the name means now: a snapshot's id, or "" of a disk. */
static int look_up(struct srv_exports *x, struct srv_want *want)
{
	const char *slash = strchr(want->name, '/');
	char snapshot[SRV_EXPORT_NAME_MAX];

	want->snapshot[0] = 0;
	if (!strchr(want->name, '@') || !slash)
		return 0;
	snprintf(snapshot, sizeof(snapshot), "%.*s", (int)(slash - want->name), want->name);
	return vmimg_snapshot_id(x->server->svc, snapshot, &want->error, want->snapshot);
}

/* The worker with the fewest exports in use. */
static struct srv_worker *choose_worker_locked(struct srv_exports *x)
{
	unsigned best = 0, best_load = UINT32_MAX;

	for (unsigned i = 0; i < x->server->nworkers; i++) {
		unsigned load = 0;

		for (struct srv_export *e = x->list; e; e = e->next)
			load += e->worker == x->server->workers[i] && e->state != DETACHED;
		if (load < best_load) {
			best = i;
			best_load = load;
		}
	}
	return x->server->workers[best];
}

static struct srv_export *make_locked(struct srv_exports *x, const char *name)
{
	struct srv_export *e = calloc(1, sizeof(*e));

	if (!e)
		return NULL;
	snprintf(e->name, sizeof(e->name), "%s", name);
	e->read_only = strchr(name, '@') != NULL;
	e->table = x;
	e->next = x->list;
	x->list = e;
	return e;
}

/* --- attaching (the worker) --- */

static void start_attach_locked(struct srv_export *export)
{
	export->state = ATTACHING;
	export->task.run = run_attach;
	srv_worker_post(export->worker, &export->task);
}

static void run_want(struct srv_worker *worker, struct srv_task *task)
{
	struct srv_want *want = want_of(task);

	(void)worker;
	want->done(want, 0, want->export);
}

static void run_attach(struct srv_worker *worker, struct srv_task *task)
{
	struct srv_export *export = export_of(task, task);
	struct srv_exports *x = export->table;
	struct vmimg_error error = {0};
	struct srv_want *wants, *next;
	char snapshot[37] = "";
	int r = vmimg_disk_attach(srv_worker_queue(worker), export->name,
				  export->read_only ? VMIMG_ATTACH_READ_ONLY : 0, &error,
				  &export->disk);

	if (r == 0) {
		atomic_store(&export->size, vmimg_disk_size(export->disk));
		export->block_size = vmimg_disk_block_size(export->disk);
		vmimg_disk_snapshot_id(export->disk, snapshot);
	}
	pthread_mutex_lock(&x->lock);
	wants = export->wants;
	export->wants = NULL;
	export->state = r < 0 ? DETACHED : ATTACHED;
	memcpy(export->snapshot, snapshot, sizeof(snapshot));
	export->idle_ns = srv_now_ns();
	for (struct srv_want *w = wants; w && r == 0; w = w->next)
		export->refs += !strcmp(w->snapshot, snapshot);
	if (r < 0)
		forget_locked(x, export);
	pthread_cond_broadcast(&x->changed);
	pthread_mutex_unlock(&x->lock);
	for (struct srv_want *w = wants; w; w = next) {
		next = w->next;
		w->error = error;
		if (r == 0 && strcmp(w->snapshot, snapshot) != 0)
			srv_export_want(x, w); /* it asked for another one of this name */
		else
			w->done(w, r, r < 0 ? NULL : export);
	}
}

static void run_failed(struct srv_worker *worker, struct srv_task *task)
{
	struct srv_want *want = want_of(task);

	(void)worker;
	want->done(want, want->result, NULL);
}

static void fail(struct srv_exports *x, struct srv_want *want, int result)
{
	want->result = result;
	want->task.run = run_failed;
	srv_worker_post(x->server->lobby, &want->task);
}

void srv_export_want(struct srv_exports *x, struct srv_want *want)
{
	struct srv_export *export;
	int r;

	memset(&want->error, 0, sizeof(want->error));
	want->task.run = run_want;
	r = look_up(x, want);
	if (r < 0) {
		fail(x, want, r);
		return;
	}
	pthread_mutex_lock(&x->lock);
	export = find_wanted_locked(x, want);
	if (!export)
		export = make_locked(x, want->name);
	if (!export) {
		fail(x, want, srv_fail(&want->error, -ENOMEM, "%s: out of memory", want->name));
	} else if (is_attached(export)) {
		export->state = ATTACHED;
		export->refs++;
		want->export = export;
		srv_worker_post(export->worker, &want->task);
	} else {
		want->next = export->wants;
		export->wants = want;
		if (export->state == DETACHED) {
			export->worker = choose_worker_locked(x);
			start_attach_locked(export);
		}
	}
	pthread_mutex_unlock(&x->lock);
}

void srv_export_put(struct srv_export *export)
{
	struct srv_exports *x = export->table;

	pthread_mutex_lock(&x->lock);
	if (--export->refs == 0) {
		export->idle_ns = srv_now_ns();
		pthread_cond_broadcast(&x->changed);
	}
	pthread_mutex_unlock(&x->lock);
}

/* --- detaching --- */

static void detach(struct srv_export *export)
{
	struct srv_exports *x = export->table;
	char name[SRV_EXPORT_NAME_MAX];
	int r = vmimg_disk_detach(export->disk);

	memcpy(name, export->name, sizeof(name));
	pthread_mutex_lock(&x->lock);
	export->disk = NULL;
	export->state = DETACHED;
	if (export->wants)
		start_attach_locked(export);
	else if (export->read_only)
		forget_locked(x, export);
	pthread_cond_broadcast(&x->changed);
	pthread_mutex_unlock(&x->lock);
	if (r < 0)
		srv_log(SRV_ERROR, name, "detached with an error: %s", strerror(-r));
}

static void on_flushed(struct srv_io *io, int32_t result)
{
	struct srv_export *export = export_of(io, flush);
	struct srv_exports *x = export->table;
	bool wanted;

	if (result < 0)
		srv_log(SRV_ERROR, export->name, "the last flush failed: %s", strerror(-result));
	pthread_mutex_lock(&x->lock);
	export->flushing = false;
	wanted = export->state != FLUSHING;
	if (!wanted)
		export->state = DETACHING;
	pthread_mutex_unlock(&x->lock);
	if (!wanted)
		detach(export);
}

static void run_flush(struct srv_worker *worker, struct srv_task *task)
{
	struct srv_export *export = export_of(task, task);

	export->flush.request = (struct vmimg_request){.disk = export->disk, .op = VMIMG_FLUSH};
	export->flush.done = on_flushed;
	srv_worker_io(worker, &export->flush);
}

/* A flush whose detach was called off may still be under way; then its end decides again. */
static void start_detach_locked(struct srv_export *export)
{
	export->state = FLUSHING;
	if (export->flushing)
		return;
	export->flushing = true;
	export->task.run = run_flush;
	srv_worker_post(export->worker, &export->task);
}

void srv_exports_tick(struct srv_exports *x)
{
	uint64_t now = srv_now_ns();

	pthread_mutex_lock(&x->lock);
	for (struct srv_export *e = x->list; e; e = e->next)
		if (e->state == ATTACHED && e->refs == 0 &&
		    (e->stale || now - e->idle_ns >= LINGER_NS))
			start_detach_locked(e);
	pthread_mutex_unlock(&x->lock);
}

static bool matches(const struct srv_export *e, const char *prefix)
{
	size_t len = prefix ? strlen(prefix) : 0;

	return !prefix || (!e->stale && !strncmp(e->name, prefix, len) &&
			   (!e->name[len] || e->name[len] == '/'));
}

int srv_exports_release(struct srv_exports *x, const char *prefix)
{
	bool busy;
	int r = 0;

	pthread_mutex_lock(&x->lock);
	do {
		busy = false;
		for (struct srv_export *e = x->list; e && r == 0; e = e->next) {
			if (!matches(e, prefix) || e->state == DETACHED)
				continue;
			if (e->refs || e->wants)
				r = -EBUSY;
			else if (e->state == ATTACHED)
				start_detach_locked(e);
			busy = true;
		}
		if (busy && r == 0)
			pthread_cond_wait(&x->changed, &x->lock);
	} while (busy && r == 0);
	for (struct srv_export *e = x->list, *next; e && r == 0; e = next) {
		next = e->next;
		if (matches(e, prefix))
			forget_locked(x, e);
	}
	pthread_mutex_unlock(&x->lock);
	return r;
}

/* --- changes and counters --- */

static void run_resized(struct srv_worker *worker, struct srv_task *task)
{
	struct srv_export *export = export_of(task, resize_task);
	struct srv_exports *x = export->table;
	struct srv_watcher *next;

	(void)worker;
	pthread_mutex_lock(&x->lock);
	export->resizing = false; /* what comes from here on is told anew */
	pthread_mutex_unlock(&x->lock);
	if (export->disk)
		atomic_store(&export->size, vmimg_disk_size(export->disk));
	for (struct srv_watcher *w = export->watchers; w; w = next) {
		next = w->next;
		w->resized(w);
	}
	pthread_mutex_lock(&x->lock);
	export->refs--;
	pthread_cond_broadcast(&x->changed);
	pthread_mutex_unlock(&x->lock);
}

void srv_exports_resized(struct srv_exports *x, const char *name)
{
	struct srv_export *export;

	pthread_mutex_lock(&x->lock);
	export = find_locked(x, name);
	if (export && export->state == ATTACHED && !export->resizing) {
		export->resizing = true;
		export->refs++; /* not detached before it was told */
		export->resize_task.run = run_resized;
		srv_worker_post(export->worker, &export->resize_task);
	}
	pthread_mutex_unlock(&x->lock);
}

void srv_exports_each(struct srv_exports *x,
		      void (*each)(void *arg, const struct srv_export *export, unsigned users),
		      void *arg)
{
	pthread_mutex_lock(&x->lock);
	for (struct srv_export *e = x->list; e; e = e->next)
		if (!e->stale)
			each(arg, e, e->refs);
	pthread_mutex_unlock(&x->lock);
}
