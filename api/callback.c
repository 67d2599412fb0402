/* SPDX-License-Identifier: MIT */
/*
 * callback.c - guests that the embedder freezes (QU-23..QU-25). A create has two threads for each: one
 * calls freeze, the other watches the time and does all the thawing, so that a freeze that never
 * returns costs nobody else anything. Both end by themselves; they are joined later.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "api/quiesce.h"

#define MS         1000000ull
#define GIVE_UP_NS (60000 * MS)

/* What vmimg_vm_set_guest() was given. The service's lock. */
struct api_guest_ops {
	struct api_guest_ops *next;
	struct fmt_uuid vm;
	struct vmimg_guest_ops ops;
	void *arg;
	unsigned users; /* creates, and threads that they left */
};

struct api_callback {
	struct api_callback *next; /* svc->callbacks; the service's lock */
	struct api_guest_ops *set;
	struct eng_io *io;
	int bell;                             /* rung when something has come of it */
	bool ended;                           /* by its create; the service's lock */
	struct eng_thread *freezer, *watcher; /* NULL: not started */

	pthread_mutex_t lock; /* guards what follows */
	pthread_cond_t changed;
	uint64_t deadline_ns;
	bool returned, released, done;
	int result; /* of freeze */
	bool confirmed;
	uint64_t thaw_ns, done_ns;
};

/* --- the threads --- */

static void ring(struct api_callback *c)
{
	pthread_cond_broadcast(&c->changed);
	eventfd_write(c->bell, 1);
}

static void run_freeze(void *arg)
{
	struct api_callback *c = arg;
	int r = c->set->ops.freeze(c->set->arg, c->deadline_ns);

	pthread_mutex_lock(&c->lock);
	c->result = r > 0 ? -EIO : r;
	c->returned = true;
	ring(c);
	pthread_mutex_unlock(&c->lock);
}

/* Until *@flag, or the deadline has come. */
static void wait_for_locked(struct api_callback *c, const bool *flag)
{
	struct timespec ts = {
		.tv_sec = (time_t)(c->deadline_ns / (1000 * MS)),
		.tv_nsec = (long)(c->deadline_ns % (1000 * MS)),
	};

	while (!*flag && eng_io_now_ns(c->io) < c->deadline_ns)
		pthread_cond_timedwait(&c->changed, &c->lock, &ts);
}

static bool thaw(struct api_callback *c, uint64_t end_ns)
{
	while (c->set->ops.thaw(c->set->arg) != 0) {
		if (eng_io_now_ns(c->io) >= end_ns)
			return false;
		eng_io_sleep_ns(c->io, 100 * MS);
	}
	return true;
}

static void run_watch(void *arg)
{
	struct api_callback *c = arg;
	bool confirmed = true;
	uint64_t begun = 0;

	pthread_mutex_lock(&c->lock);
	wait_for_locked(c, &c->returned);
	if (!c->returned) { /* QU-24: late; it may have frozen, or be about to */
		pthread_mutex_unlock(&c->lock);
		thaw(c, 0);
		pthread_mutex_lock(&c->lock);
	}
	while (!c->returned)
		pthread_cond_wait(&c->changed, &c->lock);
	if (c->result == 0) {
		wait_for_locked(c, &c->released);
		begun = eng_io_now_ns(c->io);
		c->thaw_ns = begun;
		pthread_mutex_unlock(&c->lock);
		confirmed = thaw(c, begun + GIVE_UP_NS);
		pthread_mutex_lock(&c->lock);
	}
	c->confirmed = confirmed;
	c->done_ns = eng_io_now_ns(c->io);
	c->done = true;
	ring(c);
	pthread_mutex_unlock(&c->lock);
}

/* --- one create --- */

static struct api_guest_ops *find_set_locked(struct vmimg_service *svc, const struct fmt_uuid *vm)
{
	struct api_guest_ops *set = svc->guest_ops;

	while (set && !fmt_uuid_equal(&set->vm, vm))
		set = set->next;
	return set;
}

bool api_callback_is_set_locked(struct vmimg_service *svc, const struct fmt_uuid *vm)
{
	return find_set_locked(svc, vm) != NULL;
}

static void callback_free(struct api_callback *c)
{
	if (c->bell >= 0)
		close(c->bell);
	pthread_cond_destroy(&c->changed);
	pthread_mutex_destroy(&c->lock);
	free(c);
}

struct api_callback *api_callback_begin_locked(struct vmimg_service *svc, const struct fmt_uuid *vm,
					       int bell, int *r)
{
	struct api_guest_ops *set = find_set_locked(svc, vm);
	struct api_callback *c;
	pthread_condattr_t attr;

	*r = 0;
	if (!set)
		return NULL;
	c = calloc(1, sizeof(*c));
	if (!c) {
		*r = -ENOMEM;
		return NULL;
	}
	pthread_mutex_init(&c->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&c->changed, &attr);
	pthread_condattr_destroy(&attr);
	c->bell = dup(bell);
	if (c->bell < 0) {
		*r = -errno;
		callback_free(c);
		return NULL;
	}
	c->io = svc->io;
	c->set = set;
	set->users++;
	c->next = svc->callbacks;
	svc->callbacks = c;
	return c;
}

int api_callback_freeze(struct api_callback *c, uint64_t deadline_ns)
{
	int r;

	c->deadline_ns = deadline_ns;
	r = eng_io_spawn(c->io, "vmimg-thaw", run_watch, c, &c->watcher);
	if (r < 0)
		return r;
	r = eng_io_spawn(c->io, "vmimg-freeze", run_freeze, c, &c->freezer);
	if (r == 0)
		return 0;
	pthread_mutex_lock(&c->lock);
	c->result = r;
	c->returned = true;
	ring(c);
	pthread_mutex_unlock(&c->lock);
	return r;
}

void api_callback_thaw(struct api_callback *c)
{
	pthread_mutex_lock(&c->lock);
	c->released = true;
	pthread_cond_broadcast(&c->changed);
	pthread_mutex_unlock(&c->lock);
}

void api_callback_look(struct api_callback *c, struct api_guest *g)
{
	pthread_mutex_lock(&c->lock);
	g->answered = c->returned;
	g->frozen = c->returned && c->result == 0;
	if (c->returned && c->result < 0)
		api_guest_fail(g, c->result, strerror(-c->result));
	g->thaw_ns = c->thaw_ns;
	if (c->done) {
		g->told = true;
		g->confirmed = c->confirmed;
		g->done_ns = c->done_ns;
	}
	pthread_mutex_unlock(&c->lock);
}

/* --- the end --- */

/* Those whose threads have ended, or with @all every one, waited for. */
static void reap(struct vmimg_service *svc, bool all)
{
	struct api_callback **at, *c, *gone = NULL;

	pthread_mutex_lock(&svc->lock);
	for (at = &svc->callbacks; (c = *at);) {
		bool idle = false;

		if (c->ended) { /* its create's thread touches it no more */
			pthread_mutex_lock(&c->lock);
			idle = all || c->done || !c->watcher;
			pthread_mutex_unlock(&c->lock);
		}
		if (!idle) {
			at = &c->next;
			continue;
		}
		*at = c->next;
		c->next = gone;
		gone = c;
	}
	pthread_mutex_unlock(&svc->lock);
	for (; (c = gone); callback_free(c)) {
		gone = c->next;
		if (c->freezer)
			eng_io_join(svc->io, c->freezer);
		if (c->watcher)
			eng_io_join(svc->io, c->watcher);
		pthread_mutex_lock(&svc->lock);
		c->set->users--;
		pthread_mutex_unlock(&svc->lock);
	}
}

void api_callback_end(struct vmimg_service *svc, struct api_callback *c)
{
	if (!c)
		return;
	pthread_mutex_lock(&svc->lock);
	c->ended = true;
	pthread_mutex_unlock(&svc->lock);
	reap(svc, false);
}

void api_callbacks_finish(struct vmimg_service *svc)
{
	struct api_guest_ops *set;

	reap(svc, true);
	while ((set = svc->guest_ops)) {
		svc->guest_ops = set->next;
		free(set);
	}
}

/* --- vmimg_vm_set_guest() --- */

static int set_locked(struct vmimg_service *svc, const struct fmt_uuid *vm,
		      const struct vmimg_guest_ops *ops, void *arg)
{
	struct api_guest_ops **at = &svc->guest_ops, *set;

	while (*at && !fmt_uuid_equal(&(*at)->vm, vm))
		at = &(*at)->next;
	set = *at;
	if (set && set->users)
		return -EBUSY;
	if (!ops) {
		if (set)
			*at = set->next;
		free(set);
		return 0;
	}
	if (!set) {
		set = calloc(1, sizeof(*set));
		if (!set)
			return -ENOMEM;
		set->vm = *vm;
		*at = set;
	}
	set->ops = *ops;
	set->arg = arg;
	return 0;
}

int vmimg_vm_set_guest(struct vmimg_service *svc, const char *vm, const struct vmimg_guest_ops *ops,
		       void *arg, struct vmimg_error *err)
{
	struct cat_vm row;
	int r;

	if (!svc || !api_name_is_valid(vm))
		return api_fail(err, -EINVAL, "vm: no %s given", svc ? "name" : "service");
	if (ops && (!ops->freeze || !ops->thaw))
		return api_fail(err, -EINVAL, "vm %s: no %s given, expected both or none", vm,
				ops->freeze ? "thaw" : "freeze");
	r = eng_catalog_get_vm(svc->store->catalog, vm, &row);
	if (r < 0)
		return api_fail(err, r, "vm %s: %s", vm,
				r == -ENOENT ? "there is none of this name" : strerror(-r));
	reap(svc, false);
	pthread_mutex_lock(&svc->lock);
	r = set_locked(svc, &row.id, ops, arg);
	pthread_mutex_unlock(&svc->lock);
	if (r == -EBUSY)
		return api_fail(err, r, "vm %s: a create is using its callbacks", vm);
	return r < 0 ? api_fail(err, r, "vm %s: %s", vm, strerror(-r)) : 0;
}
