/* SPDX-License-Identifier: MIT */
/*
 * event.c - the queue of events, its thread, and what that thread looks at by itself: free space and
 * poisoned disks (EV-*). Any thread.
 *
 * The thread starts with the first subscription and ends with the service. Without subscribers nothing
 * is composed and nothing looked at. The block path knows nothing of all this.
 */
#include "api/event.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "engine/space/guard.h"

#define QUEUE_MAX 1024u       /* events; then the newest are dropped, and counted */
#define LOOK_NS   1000000000u /* between looks at space and poison */

struct vmimg_subscription {
	struct vmimg_subscription *next;
	struct api_events *events;
	void (*callback)(void *arg, const char *json);
	void *arg;
	bool due; /* the event under way is still to be told */
};

struct event {
	struct event *next;
	char *json;
};

struct api_events {
	struct vmimg_service *svc;
	struct eng_thread *thread;
	unsigned space_level; /* the thread's */
	enum eng_guard_state space_state;
	_Atomic unsigned wanted;

	pthread_mutex_t lock; /* guards what follows */
	pthread_cond_t wake, told;
	pthread_t self; /* the thread, once it runs */
	bool started, stopping;
	struct vmimg_subscription *subs, *telling; /* telling: its callback runs */
	struct event *first, **last;
	unsigned count;
	uint64_t lost;
};

/* --- the queue --- */

static void post_text(struct api_events *ev, char *json)
{
	struct event *e = json ? malloc(sizeof(*e)) : NULL;

	pthread_mutex_lock(&ev->lock);
	if (e && ev->count < QUEUE_MAX) {
		*e = (struct event){.json = json};
		*ev->last = e;
		ev->last = &e->next;
		ev->count++;
		e = NULL;
		json = NULL;
	} else {
		ev->lost++;
	}
	pthread_cond_signal(&ev->wake);
	pthread_mutex_unlock(&ev->lock);
	free(e);
	free(json);
}

void api_event_post(struct api_events *ev, const char *event, json_t *fields)
{
	json_t *object = json_pack("{s:s}", "event", event);
	char *json = NULL;

	if (object && fields && json_object_update(object, fields) == 0)
		json = json_dumps(object, JSON_COMPACT);
	json_decref(object);
	json_decref(fields);
	post_text(ev, json);
}

void api_event_change(struct vmimg_service *svc, const char *event, const char *change,
		      const char *name)
{
	if (api_events_wanted(svc->events))
		api_event_post(svc->events, event,
			       json_pack("{s:s, s:s}", "change", change, "name", name));
}

bool api_events_wanted(struct api_events *ev)
{
	return atomic_load_explicit(&ev->wanted, memory_order_relaxed);
}

/* --- what the thread looks at --- */

unsigned api_space_level(uint64_t free_bytes, uint64_t all_bytes, unsigned was)
{
	static const unsigned parts[] = {10, 20, 100};
	unsigned level = 0;

	for (unsigned i = 0; i < 3; i++) {
		uint64_t limit = all_bytes / parts[i];

		if (free_bytes < limit + (i < was ? limit / 10 : 0))
			level = i + 1;
	}
	return level;
}

/* EV-6 */
static void look_at_space(struct api_events *ev)
{
	static const int percents[] = {100, 10, 5, 1};
	static const char *const states[] = {"ok", "warning", "reached"};
	enum eng_guard_state state;
	struct eng_guard g;
	unsigned level;

	if (eng_guard_look(ev->svc->store, &g) < 0)
		return;
	level = api_space_level(g.free, g.size, ev->space_level);
	state = eng_guard_state(&g, ev->space_state); /* SG-5 */
	if (level == ev->space_level && state == ev->space_state)
		return;
	ev->space_level = level;
	ev->space_state = state;
	api_event_post(ev, "space",
		       json_pack("{s:I, s:I, s:i, s:I, s:I, s:s}", "free", (json_int_t)g.free,
				 "size", (json_int_t)g.size, "below_percent", percents[level],
				 "reserve",
				 (json_int_t)eng_catalog_reserve(ev->svc->store->catalog),
				 "space_reserve", (json_int_t)g.reserve, "space_state",
				 states[state]));
}

/* EV-7 */
static void look_at_poison(struct api_events *ev)
{
	struct vmimg_service *svc = ev->svc;
	struct fmt_uuid disks[16];
	size_t n;

	do {
		n = eng_store_poisoned(svc->store, disks, 16);
		for (size_t i = 0; i < n; i++) {
			struct cat_disk row = {0};
			char name[CAT_NS_MAX], id[37];

			fmt_uuid_format(&disks[i], id);
			if (eng_catalog_get_disk_id(svc->store->catalog, &disks[i], &row) == 0)
				api_name_join(name, row.vm_name, '/', row.name);
			else
				snprintf(name, sizeof(name), "%s", id);
			api_event_post(ev, "poisoned",
				       json_pack("{s:s, s:s}", "disk", name, "id", id));
		}
	} while (n == 16);
}

/* --- the thread --- */

static void tell_locked(struct api_events *ev, const char *json)
{
	struct vmimg_subscription *sub;

	for (sub = ev->subs; sub; sub = sub->next)
		sub->due = true;
	for (;;) {
		for (sub = ev->subs; sub && !sub->due; sub = sub->next)
			;
		if (!sub)
			return;
		sub->due = false;
		ev->telling = sub;
		pthread_mutex_unlock(&ev->lock);
		sub->callback(sub->arg, json);
		pthread_mutex_lock(&ev->lock);
		ev->telling = NULL;
		pthread_cond_broadcast(&ev->told);
	}
}

static void tell_lost_locked(struct api_events *ev)
{
	char json[64];

	snprintf(json, sizeof(json), "{\"event\":\"lost\",\"count\":%llu}",
		 (unsigned long long)ev->lost);
	ev->lost = 0;
	tell_locked(ev, json);
}

static void tell_all_locked(struct api_events *ev)
{
	struct event *e;

	while ((e = ev->first)) {
		ev->first = e->next;
		if (!ev->first)
			ev->last = &ev->first;
		ev->count--;
		tell_locked(ev, e->json);
		free(e->json);
		free(e);
	}
	if (ev->lost)
		tell_lost_locked(ev);
}

static void thread_main(void *arg)
{
	struct api_events *ev = arg;
	uint64_t next = 0;

	pthread_mutex_lock(&ev->lock);
	ev->self = pthread_self();
	while (!ev->stopping) {
		struct timespec ts = {(time_t)(next / 1000000000), (long)(next % 1000000000)};

		if (ev->subs && eng_io_now_ns(ev->svc->io) >= next) {
			pthread_mutex_unlock(&ev->lock);
			look_at_space(ev);
			look_at_poison(ev);
			next = eng_io_now_ns(ev->svc->io) + LOOK_NS;
			pthread_mutex_lock(&ev->lock);
		} else if (ev->first || ev->lost) {
			tell_all_locked(ev);
		} else if (ev->subs) {
			pthread_cond_timedwait(&ev->wake, &ev->lock, &ts);
		} else {
			pthread_cond_wait(&ev->wake, &ev->lock);
		}
	}
	pthread_mutex_unlock(&ev->lock);
}

/* --- life --- */

int api_events_create(struct vmimg_service *svc, struct api_events **ret)
{
	struct api_events *ev = calloc(1, sizeof(*ev));
	pthread_condattr_t attr;

	if (!ev)
		return -ENOMEM;
	ev->svc = svc;
	ev->last = &ev->first;
	pthread_mutex_init(&ev->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&ev->wake, &attr);
	pthread_condattr_destroy(&attr);
	pthread_cond_init(&ev->told, NULL);
	*ret = ev;
	return 0;
}

void api_events_stop(struct api_events *ev)
{
	pthread_mutex_lock(&ev->lock);
	ev->stopping = true;
	pthread_cond_signal(&ev->wake);
	pthread_mutex_unlock(&ev->lock);
	if (ev->started)
		eng_io_join(ev->svc->io, ev->thread);
	ev->started = false;
	ev->stopping = false;
}

void api_events_destroy(struct api_events *ev)
{
	if (!ev)
		return;
	for (struct event *e = ev->first, *next; e; e = next) {
		next = e->next;
		free(e->json);
		free(e);
	}
	pthread_cond_destroy(&ev->told);
	pthread_cond_destroy(&ev->wake);
	pthread_mutex_destroy(&ev->lock);
	free(ev);
}

/* --- subscriptions --- */

static int start_locked(struct api_events *ev)
{
	int r = ev->started
			? 0
			: eng_io_spawn(ev->svc->io, "vmimg-events", thread_main, ev, &ev->thread);

	ev->started = ev->started || r == 0;
	return r;
}

int vmimg_subscribe(struct vmimg_service *svc, void (*callback)(void *arg, const char *json),
		    void *arg, struct vmimg_error *err, struct vmimg_subscription **ret)
{
	struct vmimg_subscription *sub;
	struct api_events *ev;
	int r;

	if (!svc || !callback || !ret)
		return api_fail(err, -EINVAL, "subscribe: no %s given",
				!svc   ? "service"
				: !ret ? "result"
				       : "callback");
	sub = calloc(1, sizeof(*sub));
	if (!sub)
		return api_fail(err, -ENOMEM, "subscribe: out of memory");
	ev = svc->events;
	sub->events = ev;
	sub->callback = callback;
	sub->arg = arg;
	pthread_mutex_lock(&ev->lock);
	r = start_locked(ev);
	if (r == 0) {
		struct vmimg_subscription **at = &ev->subs;

		while (*at)
			at = &(*at)->next;
		*at = sub;
		atomic_fetch_add(&ev->wanted, 1);
		pthread_cond_signal(&ev->wake);
	}
	pthread_mutex_unlock(&ev->lock);
	if (r < 0) {
		free(sub);
		return api_fail(err, r, "subscribe: cannot start a thread");
	}
	*ret = sub;
	return 0;
}

int vmimg_unsubscribe(struct vmimg_subscription *sub)
{
	struct api_events *ev = sub ? sub->events : NULL;
	struct vmimg_subscription **at;

	if (!sub)
		return 0;
	pthread_mutex_lock(&ev->lock);
	if (ev->telling && pthread_equal(ev->self, pthread_self())) {
		pthread_mutex_unlock(&ev->lock);
		return -EDEADLK;
	}
	for (at = &ev->subs; *at != sub; at = &(*at)->next)
		;
	*at = sub->next;
	atomic_fetch_sub(&ev->wanted, 1);
	while (ev->telling == sub)
		pthread_cond_wait(&ev->told, &ev->lock);
	pthread_mutex_unlock(&ev->lock);
	free(sub);
	return 0;
}
