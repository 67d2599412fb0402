/* SPDX-License-Identifier: MIT */
/*
 * watch.c - what the server itself takes from the store's events: its log, and since when a snapshot is
 * being created, so that the counters can tell how long a guest's write took meanwhile. Called on the
 * library's thread, one event at a time.
 */
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "serve/server.h"

#define CREATES_MAX 64u /* at once; one more is not watched */

struct srv_watch {
	struct srv_server *server;
	struct vmimg_subscription *subscription;
	char creates[CREATES_MAX][37]; /* jobs that run, by instance id; "": free */
};

static const char *text_of(const json_t *event, const char *key)
{
	const char *text = json_string_value(json_object_get(event, key));

	return text ? text : "";
}

static void note_create(struct srv_watch *w, const char *id, bool running)
{
	unsigned at = 0, count = 0;

	while (at < CREATES_MAX && strcmp(w->creates[at], id) != 0)
		at++;
	if (running && at == CREATES_MAX)
		for (at = 0; at < CREATES_MAX && w->creates[at][0];)
			at++;
	if (at < CREATES_MAX)
		snprintf(w->creates[at], sizeof(w->creates[at]), "%s", running ? id : "");
	for (unsigned i = 0; i < CREATES_MAX; i++)
		count += w->creates[i][0] != 0;
	atomic_store_explicit(&srv_snapshots_running, count, memory_order_relaxed);
}

static void on_job(struct srv_watch *w, const json_t *event)
{
	json_int_t state = json_integer_value(json_object_get(event, "job_state"));

	if (json_integer_value(json_object_get(event, "job_type")) !=
	    VMIMG_JOB_TYPE_SNAPSHOT_COLLECTION)
		return;
	note_create(w, text_of(event, "instance_id"), state < VMIMG_JOB_COMPLETED);
	if (state > VMIMG_JOB_COMPLETED)
		srv_log(SRV_WARNING, text_of(event, "name"), "no snapshot: %s",
			text_of(event, "error_description"));
}

static void on_snapshot(struct srv_watch *w, const json_t *event)
{
	const char *change = text_of(event, "change");

	srv_log(SRV_INFO, text_of(event, "snapshot"), "%s", change);
	if (!strcmp(change, "imported")) /* the main thread looks: this one calls nobody */
		atomic_store(&w->server->imported, true);
}

static void on_event(void *arg, const char *json)
{
	json_t *event = json_loads(json, 0, NULL);
	const char *kind = text_of(event, "event");

	if (!strcmp(kind, "job"))
		on_job(arg, event);
	else if (!strcmp(kind, "snapshot"))
		on_snapshot(arg, event);
	else if (!strcmp(kind, "space") || !strcmp(kind, "poisoned"))
		srv_log(SRV_WARNING, NULL, "%s", json);
	json_decref(event);
}

int srv_watch_start(struct srv_server *server, struct vmimg_error *err, struct srv_watch **ret)
{
	struct srv_watch *w = calloc(1, sizeof(*w));
	int r;

	if (!w)
		return srv_fail(err, -ENOMEM, "out of memory");
	w->server = server;
	r = vmimg_subscribe(server->svc, on_event, w, err, &w->subscription);
	if (r < 0) {
		free(w);
		return r;
	}
	*ret = w;
	return 0;
}

void srv_watch_stop(struct srv_watch *w)
{
	if (!w)
		return;
	vmimg_unsubscribe(w->subscription);
	free(w);
}
