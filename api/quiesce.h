/* SPDX-License-Identifier: MIT */
/*
 * quiesce.h - freezing the guests of one create (spec/quiesce.md): who they are, how each is frozen,
 * and what came of it. Private.
 *
 * a record is durable before a lease is started that could freeze (QU-4). Q-2: api_quiesce_end()
 * leaves no guest frozen that nobody works on: confirmed, or with the thawer (thaw.c).
 */
#ifndef API_QUIESCE_H
#define API_QUIESCE_H

#include "api/job.h"
#include "engine/snapshot/snapshot.h"
#include "api/settings.h"

struct api_callback;
struct api_lease;
struct api_quiesce;

/* Somebody to freeze. Of one thread: the create's, or the thawer's. */
struct api_guest {
	struct fmt_uuid vm;
	char name[CAT_NAME_MAX];
	char socket[CAT_SOCKET_MAX];   /* its agent's; "": callbacks, or nothing */
	struct api_callback *callback; /* a reference, or NULL */
	struct fmt_uuid job;           /* of the create */

	bool recorded;  /* in the catalog */
	bool ready;     /* it may be frozen */
	bool sent;      /* a freeze was, as far as we know */
	bool answered;  /* to the freeze, in whatever way */
	bool frozen;    /* as far as we know */
	bool told;      /* its thaw has ended: confirmed or given up */
	bool confirmed; /* thawed */
	bool forgotten; /* nobody waits for its thaw any more (service's lock) */
	bool at_open;   /* found recorded */
	uint64_t thaw_ns, done_ns;
	uint32_t filesystems, thawed;
	int error; /* the first thing that went wrong, or 0 */
	char text[CAT_TEXT_MAX];
};

/* The first failure is what is told. */
void api_guest_fail(struct api_guest *g, int r, const char *text);

/* --- lease_client.c: our end of a lease --- */
/*
 * Starts one for @guests, kept by the lease: those to be frozen, synced within @limit_ns, or, with
 * @thaw_only, to be thawed at once. Waits for its start, 5 s at most.
 */
int api_lease_start(struct vmimg_service *svc, struct api_guest **guests, size_t count,
		    bool thaw_only, uint64_t limit_ns, struct fmt_error *err,
		    struct api_lease **ret);
int api_lease_fd(const struct api_lease *lease); /* to be polled for input; -1: ended */
/* Takes what it has told, into the guests. */
void api_lease_take(struct api_lease *lease);
bool api_lease_ended(const struct api_lease *lease);
/* Its answer to the thaw: when it decided to; 0: none yet. */
uint64_t api_lease_released_ns(const struct api_lease *lease);
int api_lease_freeze(struct api_lease *lease, uint64_t limit_ns);
void api_lease_thaw(struct api_lease *lease);
/* For one that does not answer; what it held is let go by its agents' connections alone. */
void api_lease_kill(struct api_lease *lease);
/* Leaves it to itself: it thaws what it has not thawed. NULL is fine. Service's lock not held. */
void api_lease_destroy(struct api_lease *lease);
/* At close: those that were left are the system's to wait for. */
void api_leases_finish(struct vmimg_service *svc);

/* --- callback.c: guests that the embedder freezes --- */
/* The VM's callbacks ready for one create, or NULL when it has none. Service's lock held. */
struct api_callback *api_callback_begin_locked(struct vmimg_service *svc, const struct fmt_uuid *vm,
					       int bell, int *r);
int api_callback_freeze(struct api_callback *c, uint64_t deadline_ns);
void api_callback_thaw(struct api_callback *c);
/* What has come of it so far, into the guest. */
void api_callback_look(struct api_callback *c, struct api_guest *g);
/* The create is done with it; its threads end by themselves. NULL is fine. */
void api_callback_end(struct vmimg_service *svc, struct api_callback *c);
bool api_callback_is_set_locked(struct vmimg_service *svc, const struct fmt_uuid *vm);
/* At close: waits for callbacks that still run. */
void api_callbacks_finish(struct vmimg_service *svc);

/* --- thaw.c: guests whose thaw is not confirmed yet (QU-17) --- */
/* Takes the guests (an array of @count, and what it points to) and, when not NULL, their lease. */
void api_thaw_later(struct vmimg_service *svc, struct api_guest **guests, size_t count,
		    struct api_lease *lease);
/* At open: what the catalog says may be frozen. Does not wait. */
void api_thaw_recorded(struct vmimg_service *svc);
/* The VM's agents at other sockets are nobody's concern any more. Service's lock held. */
void api_thaw_forget_locked(struct vmimg_service *svc, const struct fmt_uuid *vm,
			    const char *socket);
/* At close: waits a second at most. */
void api_thaw_finish(struct vmimg_service *svc);

/* --- quiesce.c: one create --- */
/* With its hooks for the engine, and no guests yet. The Timeout runs from here. */
int api_quiesce_create(struct vmimg_service *svc, const struct eng_snapshot_spec *spec,
		       bool fallback, struct api_quiesce **ret);
const struct eng_snapshot_guests *api_quiesce_hooks(const struct api_quiesce *q);
/*
 * Who the guests of @collection are; its members are locked. -EOPNOTSUPP: one that cannot be frozen
 * (QU-2). Service's lock held.
 */
int api_quiesce_find_locked(struct api_quiesce *q, const struct fmt_uuid *collection,
			    struct fmt_error *err);
/* Records them and has their agents ready (QU-4, QU-5). The create's thread. */
int api_quiesce_start(struct api_quiesce *q, struct eng_snapshot *snap, struct fmt_error *err);
/* After the cut, or instead. @committed: what put() said is in the catalog. */
void api_quiesce_end(struct api_quiesce *q, bool committed);
/* NULL is fine. Service's lock not held. */
void api_quiesce_destroy(struct vmimg_service *svc, struct api_quiesce *q);

#endif
