/* SPDX-License-Identifier: MIT */
/*
 * view.c - the thread behind a view: attaches disks of snapshots to its queue, and starts what others
 * ask for as requests of theirs.
 *
 * The queue and the disks are the thread's. A read is a message; its caller waits for it. Disks are
 * attached outside of messages, since attaching turns the queue itself.
 */
#include "engine/store/view.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define DEPTH 256u /* of the ring; requests beyond it wait in it */

struct view_disk {
	char *name;
	struct eng_disk *disk;
	uint64_t size;
	struct fmt_uuid layer; /* the topmost */
};

/* A disk to be attached: a snapshot's, or what a layer holds. Its owner's, who waits. */
struct ask {
	const struct cat_snapshot_disk *member; /* NULL: the two below */
	const struct fmt_uuid *disk, *layer;
};

struct eng_view {
	struct eng_store *store;
	struct eng_queue *queue;
	struct eng_thread *thread;
	pthread_mutex_t lock;
	pthread_cond_t changed; /* lock: what follows */
	bool started, stopping, woken;
	int start_result;
	const struct ask *adding; /* NULL: nothing to do */
	struct eng_disk *added;
	int add_result;
	struct fmt_error add_error;
	struct view_disk *disks; /* the owner's */
	uint32_t count, cap;
};

/* One read: on its caller's stack until done. */
struct call {
	struct eng_msg msg;
	struct eng_view *view;
	struct eng_req *reqs;
	unsigned count;
	unsigned left; /* the view's thread: not ended, plus one while starting */
	bool done;     /* lock */
};

/* --- the thread --- */

static void call_end(struct call *call)
{
	struct eng_view *view = call->view;

	if (--call->left)
		return;
	/* Signalled under the lock: once it is released the call is gone. */
	pthread_mutex_lock(&view->lock);
	call->done = true;
	pthread_cond_broadcast(&view->changed);
	pthread_mutex_unlock(&view->lock);
}

static void req_done(struct eng_req *req)
{
	call_end((struct call *)(uintptr_t)req->user_data);
}

static void msg_start(struct eng_msg *msg)
{
	struct call *call = (struct call *)((char *)msg - offsetof(struct call, msg));
	unsigned count = call->count;

	call->left = count + 1;
	for (unsigned i = 0; i < count; i++) {
		call->reqs[i].origin = call->view->queue;
		call->reqs[i].done = req_done;
		call->reqs[i].user_data = (uint64_t)(uintptr_t)call;
		eng_disk_start(&call->reqs[i]);
	}
	call_end(call);
}

static void attach_asked(struct eng_view *view)
{
	struct eng_disk *disk = NULL;
	const struct ask *ask;
	int r;

	pthread_mutex_lock(&view->lock);
	ask = view->adding;
	pthread_mutex_unlock(&view->lock);
	if (!ask)
		return;
	r = ask->member ? eng_store_attach_member(view->store, view->queue, ask->member,
						  &view->add_error, &disk)
			: eng_store_attach_layer(view->store, view->queue, ask->disk, ask->layer,
						 &view->add_error, &disk);
	pthread_mutex_lock(&view->lock);
	view->added = disk;
	view->add_result = r;
	view->adding = NULL;
	pthread_cond_broadcast(&view->changed);
	pthread_mutex_unlock(&view->lock);
}

static bool is_stopping(struct eng_view *view)
{
	bool stopping;

	pthread_mutex_lock(&view->lock);
	stopping = view->stopping;
	pthread_mutex_unlock(&view->lock);
	return stopping;
}

static void thread_main(void *arg)
{
	struct eng_view *view = arg;
	int r = eng_queue_create(view->store->io, DEPTH, view->store->lock_file, &view->queue);

	pthread_mutex_lock(&view->lock);
	view->started = true;
	view->start_result = r;
	pthread_cond_broadcast(&view->changed);
	pthread_mutex_unlock(&view->lock);
	if (r < 0)
		return;
	while (!is_stopping(view)) {
		r = eng_queue_turn(view->queue, UINT64_MAX);
		if (r < 0 && r != -EINTR)
			eng_io_sleep_ns(view->store->io, 1000000);
		attach_asked(view);
	}
	for (uint32_t i = 0; i < view->count; i++)
		while (eng_store_detach(view->disks[i].disk) < 0)
			eng_io_sleep_ns(view->store->io, 1000000);
	/* Whoever closes the view has the ring in its hands until then. */
	pthread_mutex_lock(&view->lock);
	while (!view->woken)
		pthread_cond_wait(&view->changed, &view->lock);
	pthread_mutex_unlock(&view->lock);
	while (eng_queue_destroy(view->queue) < 0) /* messages that only woke it */
		eng_queue_turn(view->queue, 1000000);
}

/* --- the owner --- */

int eng_view_open(struct eng_store *store, struct fmt_error *err, struct eng_view **ret)
{
	struct eng_view *view = calloc(1, sizeof(*view));
	int r;

	if (!view)
		return fmt_fail(err, -ENOMEM, "out of memory");
	view->store = store;
	pthread_mutex_init(&view->lock, NULL);
	pthread_cond_init(&view->changed, NULL);
	r = eng_io_spawn(store->io, "vmimg-view", thread_main, view, &view->thread);
	if (r == 0) {
		pthread_mutex_lock(&view->lock);
		while (!view->started)
			pthread_cond_wait(&view->changed, &view->lock);
		r = view->start_result;
		pthread_mutex_unlock(&view->lock);
		if (r < 0)
			eng_io_join(store->io, view->thread);
	}
	if (r == 0) {
		*ret = view;
		return 0;
	}
	pthread_cond_destroy(&view->changed);
	pthread_mutex_destroy(&view->lock);
	free(view);
	return fmt_fail(err, r, "cannot start reading: %s", strerror(-r));
}

void eng_view_close(struct eng_view *view)
{
	if (!view)
		return;
	pthread_mutex_lock(&view->lock);
	view->stopping = true;
	pthread_mutex_unlock(&view->lock);
	eng_ring_wake(eng_queue_ring(view->queue));
	pthread_mutex_lock(&view->lock);
	view->woken = true;
	pthread_cond_broadcast(&view->changed);
	pthread_mutex_unlock(&view->lock);
	eng_io_join(view->store->io, view->thread);
	for (uint32_t i = 0; i < view->count; i++)
		free(view->disks[i].name);
	free(view->disks);
	pthread_cond_destroy(&view->changed);
	pthread_mutex_destroy(&view->lock);
	free(view);
}

static int make_room(struct eng_view *view)
{
	uint32_t cap = view->cap ? view->cap * 2 : 16;
	struct view_disk *p;

	if (view->count < view->cap)
		return 0;
	p = realloc(view->disks, cap * sizeof(*p));
	if (!p)
		return -ENOMEM;
	view->disks = p;
	view->cap = cap;
	return 0;
}

static int add(struct eng_view *view, const struct ask *ask, const char *name,
	       struct fmt_error *err, uint32_t *ret)
{
	char *copy = strdup(name);
	struct view_disk *d;
	int r = copy ? make_room(view) : -ENOMEM;

	if (r < 0) {
		free(copy);
		return fmt_fail(err, r, "out of memory");
	}
	pthread_mutex_lock(&view->lock);
	view->add_error.text[0] = 0;
	view->adding = ask;
	pthread_mutex_unlock(&view->lock);
	eng_ring_wake(eng_queue_ring(view->queue));
	pthread_mutex_lock(&view->lock);
	while (view->adding)
		pthread_cond_wait(&view->changed, &view->lock);
	pthread_mutex_unlock(&view->lock);
	if (view->add_result < 0) {
		free(copy);
		return fmt_fail(err, view->add_result, "%s", view->add_error.text);
	}
	d = &view->disks[view->count];
	d->name = copy;
	d->disk = view->added;
	d->size = atomic_load(&view->added->size);
	d->layer = view->added->layers[view->added->nlayers - 1]->id;
	*ret = view->count++;
	return 0;
}

int eng_view_add_member(struct eng_view *view, const struct cat_snapshot_disk *member,
			const char *name, struct fmt_error *err, uint32_t *ret)
{
	return add(view, &(struct ask){.member = member}, name, err, ret);
}

int eng_view_add_layer(struct eng_view *view, const struct fmt_uuid *disk,
		       const struct fmt_uuid *layer, struct fmt_error *err, uint32_t *ret)
{
	return add(view, &(struct ask){.disk = disk, .layer = layer}, "", err, ret);
}

uint64_t eng_view_size(const struct eng_view *view, uint32_t disk)
{
	return view->disks[disk].size;
}

const struct fmt_uuid *eng_view_layer(const struct eng_view *view, uint32_t disk)
{
	return &view->disks[disk].layer;
}

/* --- anybody --- */

static void call_run(struct eng_view *view, struct call *call)
{
	call->view = view;
	call->msg.run = msg_start;
	eng_queue_post(view->queue, &call->msg);
	pthread_mutex_lock(&view->lock);
	while (!call->done)
		pthread_cond_wait(&view->changed, &view->lock);
	pthread_mutex_unlock(&view->lock);
}

int eng_view_read(struct eng_view *view, uint32_t disk, const struct eng_view_piece *pieces,
		  unsigned count, struct fmt_error *err)
{
	const struct view_disk *d = &view->disks[disk];
	struct call call = {.count = count};
	struct iovec *iov = calloc(count, sizeof(*iov));
	int r = 0;

	call.reqs = calloc(count, sizeof(*call.reqs));
	if (!iov || !call.reqs)
		r = fmt_fail(err, -ENOMEM, "%s: out of memory", d->name);
	for (unsigned i = 0; r == 0 && i < count; i++) {
		iov[i] = (struct iovec){pieces[i].buf, pieces[i].len};
		call.reqs[i].disk = d->disk;
		call.reqs[i].op = ENG_READ;
		call.reqs[i].offset = pieces[i].offset;
		call.reqs[i].length = pieces[i].len;
		call.reqs[i].iov = &iov[i];
		call.reqs[i].iovcnt = 1;
	}
	if (r == 0)
		call_run(view, &call);
	for (unsigned i = 0; r == 0 && i < count; i++)
		if (call.reqs[i].result < 0)
			r = fmt_fail(err, call.reqs[i].result,
				     "%s: cannot read %zu bytes at %" PRIu64 ": %s", d->name,
				     pieces[i].len, pieces[i].offset,
				     strerror(-call.reqs[i].result));
	free(call.reqs);
	free(iov);
	return r;
}

int eng_view_extents(struct eng_view *view, uint32_t disk, uint64_t offset, uint64_t length,
		     struct eng_disk_extent *extents, unsigned max, struct fmt_error *err)
{
	const struct view_disk *d = &view->disks[disk];
	struct iovec iov = {extents, max * sizeof(*extents)};
	struct eng_req req = {
		.disk = d->disk,
		.op = ENG_EXTENTS,
		.offset = offset,
		.length = length,
		.iov = &iov,
		.iovcnt = 1,
	};
	struct call call = {.reqs = &req, .count = 1};

	call_run(view, &call);
	if (req.result < 0)
		return fmt_fail(err, req.result, "%s: no extents at %" PRIu64 ": %s", d->name,
				offset, strerror(-req.result));
	return req.result;
}
