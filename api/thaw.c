/* SPDX-License-Identifier: MIT */
/*
 * thaw.c - the thawer: a thread of the service that goes on with guests whose thaw was not confirmed in
 * time, by this process or by one that died (QU-17). It starts leases that only thaw, one after the
 * other, until every record is gone or the service closes; what is left then is the next open's.
 *
 * A batch is touched by the thread alone once it has it; what is new waits in svc->thaw_new.
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "api/event.h"
#include "api/quiesce.h"

#define MS        1000000ull
#define SOON_NS   (100 * MS)
#define LATER_NS  (10000 * MS)
#define ANSWER_NS (1000 * MS)  /* to our thaw, by a lease */
#define LIFE_NS   (75000 * MS) /* of a lease that thaws */
#define CLOSE_NS  (1000 * MS)  /* that closing waits */
#define POLLS     16

struct api_thaw_batch {
	struct api_thaw_batch *next;
	struct api_guest **guests;
	size_t count;
	struct api_lease *lease; /* at work, or NULL */
	uint64_t since_ns;       /* it has it */
	uint64_t retry_ns;       /* without: when the next one starts */
	bool tried;
};

static void batch_free(struct api_thaw_batch *b)
{
	api_lease_destroy(b->lease);
	for (size_t i = 0; i < b->count; i++)
		free(b->guests[i]);
	free(b->guests);
	free(b);
}

/* --- records --- */

/* What the job of a process that died says of it. */
static void note_in_job(struct eng_catalog *cat, const struct api_guest *g)
{
	struct cat_job row;
	size_t len;

	if (!g->at_open || eng_catalog_get_job(cat, &g->job, &row) < 0 ||
	    !api_job_state_is_final(row.state))
		return;
	len = strlen(row.status_text);
	snprintf(row.status_text + len, sizeof(row.status_text) - len, "; guest %s thawed",
		 g->name);
	eng_catalog_put_job(cat, &row);
}

/* Records of the confirmed ones go. Should that fail, the next open thaws what is thawed. */
static void take_back_records(struct vmimg_service *svc, const struct api_thaw_batch *b)
{
	struct eng_catalog *cat = svc->store->catalog;
	bool any = false;

	for (size_t i = 0; i < b->count; i++) {
		const struct api_guest *g = b->guests[i];

		if (!g->confirmed || !g->recorded)
			continue;
		if (!any && eng_catalog_begin(cat) < 0)
			return;
		any = true;
		eng_catalog_remove_freeze(cat, &g->vm, g->socket);
		note_in_job(cat, g);
	}
	if (!any || eng_catalog_commit(cat, NULL) < 0)
		return;
	for (size_t i = 0; i < b->count; i++)
		if (b->guests[i]->confirmed && b->guests[i]->recorded)
			api_event_change(svc, "vm", "thawed", b->guests[i]->name);
}

/* Leaves those that are still to be thawed. */
static void sort_out(struct vmimg_service *svc, struct api_thaw_batch *b)
{
	size_t left = 0;

	take_back_records(svc, b);
	pthread_mutex_lock(&svc->lock);
	for (size_t i = 0; i < b->count; i++) {
		struct api_guest *g = b->guests[i];

		if (g->confirmed || g->forgotten)
			free(g);
		else
			b->guests[left++] = g;
	}
	b->count = left;
	pthread_mutex_unlock(&svc->lock);
}

/* --- the thread --- */

static void start_lease(struct vmimg_service *svc, struct api_thaw_batch *b, uint64_t now)
{
	for (size_t i = 0; i < b->count; i++)
		b->guests[i]->told = false;
	b->tried = true;
	b->since_ns = now;
	if (api_lease_start(svc, b->guests, b->count, true, 0, NULL, &b->lease) < 0)
		b->retry_ns = now + LATER_NS;
}

static void step(struct vmimg_service *svc, struct api_thaw_batch *b)
{
	uint64_t now = eng_io_now_ns(svc->io);
	bool all_told = true;

	if (!b->lease) {
		if (b->count && now >= b->retry_ns)
			start_lease(svc, b, now);
		return;
	}
	api_lease_take(b->lease);
	if (now - b->since_ns >= LIFE_NS ||
	    (now - b->since_ns >= ANSWER_NS && !api_lease_released_ns(b->lease)))
		api_lease_kill(b->lease);
	if (!api_lease_ended(b->lease))
		return;
	for (size_t i = 0; i < b->count; i++)
		all_told = all_told && b->guests[i]->told;
	b->retry_ns = now + (all_told ? LATER_NS : SOON_NS);
	api_lease_destroy(b->lease);
	b->lease = NULL;
	sort_out(svc, b);
}

/* Takes over what is new; whether the service closes. */
static bool take_new(struct vmimg_service *svc, struct api_thaw_batch **list)
{
	struct api_thaw_batch **end = list;
	bool stop;

	while (*end)
		end = &(*end)->next;
	pthread_mutex_lock(&svc->lock);
	*end = svc->thaw_new;
	svc->thaw_new = NULL;
	svc->thaw_now = *list;
	stop = svc->thaw_stop;
	pthread_mutex_unlock(&svc->lock);
	return stop;
}

/* Batches with nobody left go; when @closing those that nothing is being done for go too. */
static void drop_done(struct vmimg_service *svc, struct api_thaw_batch **list, bool closing)
{
	struct api_thaw_batch **at = list, *b, *gone = NULL;

	pthread_mutex_lock(&svc->lock);
	while ((b = *at)) {
		if (!b->lease && (!b->count || (closing && b->tried))) {
			*at = b->next;
			b->next = gone;
			gone = b;
		} else {
			at = &b->next;
		}
	}
	svc->thaw_now = *list;
	pthread_mutex_unlock(&svc->lock);
	for (; (b = gone); batch_free(b))
		gone = b->next;
}

static void wait_for_something(struct vmimg_service *svc, const struct api_thaw_batch *list)
{
	struct pollfd polls[POLLS] = {{.fd = svc->thaw_bell, .events = POLLIN}};
	eventfd_t count;
	nfds_t n = 1;

	for (const struct api_thaw_batch *b = list; b && n < POLLS; b = b->next)
		if (b->lease)
			polls[n++] = (struct pollfd){.fd = api_lease_fd(b->lease),
						     .events = POLLIN};
	poll(polls, n, list ? 50 : -1);
	if (polls[0].revents)
		eventfd_read(svc->thaw_bell, &count);
}

static void run(void *arg)
{
	struct vmimg_service *svc = arg;
	struct api_thaw_batch *list = NULL;
	uint64_t end_ns = 0;

	for (;;) {
		bool stop = take_new(svc, &list);

		for (struct api_thaw_batch *b = list; b; b = b->next)
			step(svc, b);
		drop_done(svc, &list, stop);
		if (stop && !end_ns)
			end_ns = eng_io_now_ns(svc->io) + CLOSE_NS;
		if (stop && (!list || eng_io_now_ns(svc->io) >= end_ns))
			break;
		wait_for_something(svc, list);
	}
	pthread_mutex_lock(&svc->lock);
	svc->thaw_now = NULL;
	pthread_mutex_unlock(&svc->lock);
	while (list) {
		struct api_thaw_batch *b = list;

		list = b->next;
		batch_free(b);
	}
}

/* --- for others --- */

static int start_thread_locked(struct vmimg_service *svc)
{
	int r;

	if (svc->thaw_thread)
		return 0;
	svc->thaw_bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (svc->thaw_bell < 0)
		return -errno;
	r = eng_io_spawn(svc->io, "vmimg-thawer", run, svc, &svc->thaw_thread);
	if (r < 0)
		close(svc->thaw_bell);
	return r;
}

void api_thaw_later(struct vmimg_service *svc, struct api_guest **guests, size_t count,
		    struct api_lease *lease)
{
	struct api_thaw_batch *b = calloc(1, sizeof(*b));
	int r = -ENOMEM;

	if (b) {
		b->guests = guests;
		b->count = count;
		b->lease = lease;
		b->since_ns = eng_io_now_ns(svc->io);
		pthread_mutex_lock(&svc->lock);
		r = start_thread_locked(svc);
		if (r == 0) {
			b->next = svc->thaw_new;
			svc->thaw_new = b;
			eventfd_write(svc->thaw_bell, 1);
		}
		pthread_mutex_unlock(&svc->lock);
	}
	if (r == 0)
		return;
	/* The lease thaws by itself once we leave it; the records are the next open's. */
	free(b);
	api_lease_destroy(lease);
	for (size_t i = 0; i < count; i++)
		free(guests[i]);
	free(guests);
}

void api_thaw_recorded(struct vmimg_service *svc)
{
	struct cat_freeze *rows = NULL;
	struct api_guest **guests = NULL;
	size_t count = 0, n = 0;

	if (eng_catalog_list_freezes(svc->store->catalog, NULL, &rows, &count) < 0 || !count)
		goto out;
	guests = calloc(count, sizeof(*guests));
	for (size_t i = 0; guests && i < count; i++) {
		struct api_guest *g = calloc(1, sizeof(*g));

		if (!g)
			break;
		g->vm = rows[i].vm;
		g->job = rows[i].job;
		memcpy(g->name, rows[i].vm_name, sizeof(g->name));
		memcpy(g->socket, rows[i].socket, sizeof(g->socket));
		g->recorded = true;
		g->at_open = true;
		guests[n++] = g;
	}
	if (n)
		api_thaw_later(svc, guests, n, NULL);
	else
		free(guests);
out:
	free(rows);
}

void api_thaw_forget_locked(struct vmimg_service *svc, const struct fmt_uuid *vm,
			    const char *socket)
{
	struct api_thaw_batch *lists[] = {svc->thaw_new, svc->thaw_now};

	for (size_t l = 0; l < 2; l++)
		for (struct api_thaw_batch *b = lists[l]; b; b = b->next)
			for (size_t i = 0; i < b->count; i++)
				if (fmt_uuid_equal(&b->guests[i]->vm, vm) &&
				    strcmp(b->guests[i]->socket, socket) != 0)
					b->guests[i]->forgotten = true;
}

void api_thaw_finish(struct vmimg_service *svc)
{
	if (!svc->thaw_thread)
		return;
	pthread_mutex_lock(&svc->lock);
	svc->thaw_stop = true;
	eventfd_write(svc->thaw_bell, 1);
	pthread_mutex_unlock(&svc->lock);
	eng_io_join(svc->io, svc->thaw_thread);
	svc->thaw_thread = NULL;
	close(svc->thaw_bell);
	svc->thaw_stop = false;
}
