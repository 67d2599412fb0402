/* SPDX-License-Identifier: MIT */
/*
 * event.h - what changes, told to who subscribed (EV-*). Any thread may tell, under any lock: the
 * callbacks run on a thread of the events' own. Private.
 */
#ifndef API_EVENT_H
#define API_EVENT_H

#include <jansson.h>

#include "api/service.h"

struct api_events;

int api_events_create(struct vmimg_service *svc, struct api_events **ret);
/* Ends the thread: before the store goes. No subscription is left. */
void api_events_stop(struct api_events *events);
void api_events_destroy(struct api_events *events); /* NULL is fine */
/* Somebody subscribed: whoever composes an event asks first. */
bool api_events_wanted(struct api_events *events);
/* Takes @fields, an object (NULL: memory was short; the event is lost), and adds @event to it. */
void api_event_post(struct api_events *events, const char *event, json_t *fields);
/* {"event": @event, "change": @change, "name": @name}. */
void api_event_change(struct vmimg_service *svc, const char *event, const char *change,
		      const char *name);
/*
 * Which threshold free space is below: 0 none, 1 a tenth of all, 2 a twentieth, 3 a hundredth. From
 * level @was it goes back only a tenth of the threshold above it.
 */
unsigned api_space_level(uint64_t free_bytes, uint64_t all_bytes, unsigned was);

#endif
