/* SPDX-License-Identifier: MIT */
/*
 * quiesce.c - freezes the guests of one create for its cut, and settles what came of it (QU-2..QU-11).
 * All on the create's thread, but for finding the guests. Agents are the lease's to hold
 * (lease_client.c), callbacks hold themselves (callback.c).
 */
#include "api/quiesce.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define MS         1000000ull
#define SYNC_NS    (5000 * MS) /* QU-5 */
#define CONFIRM_NS (1000 * MS) /* QU-8 */
#define LOOK_MS    20          /* QU-10: for a cut that has been given up meanwhile */

struct api_quiesce {
	struct eng_snapshot_guests hooks;
	struct vmimg_service *svc;
	struct fmt_uuid job, snapshot;
	bool fallback;
	uint64_t max_stall_ns, deadline_ns; /* to the cut */
	struct eng_snapshot *snap;
	struct api_guest **guests; /* each its own, so that it can be handed on */
	size_t count;
	struct api_lease *lease;
	int bell;
	uint64_t sent_ns;    /* freezes were sent; 0: not */
	uint64_t limit_ns;   /* after which they are thawed */
	uint64_t thaw_ns;    /* we told them to thaw; 0: not */
	uint64_t release_ns; /* the same, after the swap */
	bool settled, put;
};

static uint64_t now_ns(const struct api_quiesce *q)
{
	return eng_io_now_ns(q->svc->io);
}

/* --- looking --- */

static bool by_lease(const struct api_guest *g)
{
	return !g->callback && g->socket[0];
}

static void look(struct api_quiesce *q)
{
	bool ended = false, let_go = false;

	if (q->lease) {
		api_lease_take(q->lease);
		ended = api_lease_ended(q->lease);
		let_go = !q->thaw_ns && api_lease_released_ns(q->lease);
	}
	for (size_t i = 0; i < q->count; i++) {
		struct api_guest *g = q->guests[i];

		if (g->callback) {
			api_callback_look(g->callback, g);
		} else if (ended && !g->told && g->recorded) {
			g->frozen = false;
			api_guest_fail(g, -EPIPE, "its lease has ended");
		} else if (let_go && g->recorded) { /* SIGTERM, or the limit */
			g->frozen = false;
			api_guest_fail(g,
				       now_ns(q) >= q->limit_ns && q->sent_ns ? -ETIMEDOUT : -EPIPE,
				       "its lease has let go of it");
		}
	}
}

static const struct api_guest *first_failed(const struct api_quiesce *q)
{
	for (size_t i = 0; i < q->count; i++)
		if (q->guests[i]->error)
			return q->guests[i];
	return NULL;
}

static bool failed_for_good(const struct api_quiesce *q)
{
	return !q->fallback && first_failed(q);
}

static bool all_ready(const struct api_quiesce *q)
{
	for (size_t i = 0; i < q->count; i++)
		if (!q->guests[i]->ready && !q->guests[i]->error)
			return failed_for_good(q);
	return true;
}

static bool all_answered(const struct api_quiesce *q)
{
	for (size_t i = 0; i < q->count; i++)
		if (q->guests[i]->sent && !q->guests[i]->answered && !q->guests[i]->error)
			return failed_for_good(q);
	return true;
}

static bool all_told(const struct api_quiesce *q)
{
	bool over = !q->lease || api_lease_ended(q->lease);

	for (size_t i = 0; i < q->count; i++)
		if (q->guests[i]->sent && !q->guests[i]->told && !(over && by_lease(q->guests[i])))
			return false;
	return true;
}

/* 0, -ETIMEDOUT, or, before the cut, -ECANCELED when there will be none. */
static int wait_until(struct api_quiesce *q, bool (*done)(const struct api_quiesce *),
		      uint64_t end_ns, bool before_cut)
{
	for (;;) {
		struct pollfd polls[2] = {{.fd = q->bell, .events = POLLIN}, {.fd = -1}};
		uint64_t now;
		eventfd_t count;
		int ms = LOOK_MS;

		look(q);
		if (done(q))
			return 0;
		if (before_cut && !eng_snapshot_is_open(q->snap))
			return -ECANCELED;
		now = now_ns(q);
		if (now >= end_ns)
			return -ETIMEDOUT;
		if (end_ns - now < (uint64_t)ms * MS)
			ms = (int)((end_ns - now) / MS) + 1;
		if (q->lease)
			polls[1] = (struct pollfd){.fd = api_lease_fd(q->lease), .events = POLLIN};
		poll(polls, 2, ms);
		if (polls[0].revents)
			eventfd_read(q->bell, &count);
	}
}

static int fail_guest(const struct api_guest *g, const char *what, struct fmt_error *err)
{
	int r = g->error == -ETIMEDOUT ? -ETIMEDOUT : -EIO; /* QU-11 */

	return fmt_fail(err, r, "VM %s: %s: %s", g->name, what, g->text);
}

/* --- who --- */

static int add_guest_locked(struct api_quiesce *q, const struct cat_vm *vm, struct fmt_error *err)
{
	struct api_guest *g = calloc(1, sizeof(*g));
	int r = 0;

	if (!g)
		return fmt_fail(err, -ENOMEM, "no memory for a guest");
	q->guests[q->count++] = g;
	g->vm = vm->id;
	g->job = q->job;
	memcpy(g->name, vm->name, sizeof(g->name));
	g->callback = api_callback_begin_locked(q->svc, &vm->id, q->bell, &r);
	if (r < 0)
		return fmt_fail(err, r, "VM %s: %s", vm->name, strerror(-r));
	if (g->callback) {
		g->ready = true;
		return 0;
	}
	memcpy(g->socket, vm->guest_agent, sizeof(g->socket));
	if (g->socket[0])
		return 0;
	if (!q->fallback) /* QU-2 */
		return fmt_fail(err, -EOPNOTSUPP,
				"VM %s: has no guest agent; ConsistencyLevel 1 (Application) needs "
				"one, or FallbackToCrash",
				vm->name);
	api_guest_fail(g, -EOPNOTSUPP, "no guest agent");
	return 0;
}

static bool has_disk(const struct cat_vm *vm, const struct cat_disk *disks, size_t count)
{
	for (size_t i = 0; i < count; i++)
		if (!disks[i].independent && fmt_uuid_equal(&disks[i].vm, &vm->id))
			return true;
	return false;
}

int api_quiesce_find_locked(struct api_quiesce *q, const struct fmt_uuid *collection,
			    struct fmt_error *err)
{
	struct eng_catalog *cat = q->svc->store->catalog;
	struct cat_disk *disks = NULL;
	struct cat_vm *vms = NULL;
	size_t ndisks = 0, nvms = 0;
	int r = eng_catalog_list_members(cat, collection, &vms, &nvms);

	if (r == 0)
		r = eng_catalog_list_collection_disks(cat, collection, &disks, &ndisks);
	if (r < 0) {
		fmt_fail(err, r, "cannot read the catalog: %s", strerror(-r));
		goto out;
	}
	q->guests = calloc(nvms + 1, sizeof(*q->guests));
	r = q->guests ? 0 : fmt_fail(err, -ENOMEM, "no memory for %zu guests", nvms);
	for (size_t i = 0; r == 0 && i < nvms; i++)
		if (has_disk(&vms[i], disks, ndisks))
			r = add_guest_locked(q, &vms[i], err);
out:
	free(vms);
	free(disks);
	return r;
}

/* --- start: records, the lease, the agents' syncs --- */

/* QU-18 */
static int check_earlier(struct api_quiesce *q)
{
	struct cat_freeze *rows = NULL;
	size_t count;
	int r = 0;

	for (size_t i = 0; r == 0 && i < q->count; i++) {
		struct api_guest *g = q->guests[i];

		if (!by_lease(g))
			continue;
		r = eng_catalog_list_freezes(q->svc->store->catalog, &g->vm, &rows, &count);
		if (r == 0 && count)
			api_guest_fail(g, -EBUSY, "an earlier freeze waits for its thaw");
		if (r == 0)
			free(rows);
	}
	return r;
}

/* QU-4: durable when this returns. */
static int record(struct api_quiesce *q, size_t *n, struct fmt_error *err)
{
	struct eng_catalog *cat = q->svc->store->catalog;
	int r = eng_catalog_begin(cat);

	*n = 0;
	if (r < 0)
		return r;
	for (size_t i = 0; i < q->count; i++) {
		const struct api_guest *g = q->guests[i];
		struct cat_freeze row = {
			.vm = g->vm,
			.job = q->job,
			.created_ns = eng_io_wall_ns(q->svc->io),
		};

		if (!by_lease(g) || g->error)
			continue;
		memcpy(row.socket, g->socket, sizeof(row.socket));
		eng_catalog_put_freeze(cat, &row);
		++*n;
	}
	r = eng_catalog_commit(cat, err);
	for (size_t i = 0; r == 0 && i < q->count; i++)
		q->guests[i]->recorded = by_lease(q->guests[i]) && !q->guests[i]->error;
	return r;
}

/* A lease for the recorded guests that @thaw_only wants thawed, or for all. */
static int start_lease(struct api_quiesce *q, bool thaw_only, uint64_t limit_ns,
		       struct fmt_error *err)
{
	struct api_guest **guests = calloc(q->count + 1, sizeof(*guests));
	size_t n = 0;
	int r = 0;

	if (!guests)
		return fmt_fail(err, -ENOMEM, "no memory for a lease");
	for (size_t i = 0; i < q->count; i++) {
		struct api_guest *g = q->guests[i];

		if (g->recorded && (!thaw_only || (g->sent && !g->confirmed)))
			guests[n++] = g;
	}
	if (n)
		r = api_lease_start(q->svc, guests, n, thaw_only, limit_ns, err, &q->lease);
	free(guests);
	return r;
}

int api_quiesce_start(struct api_quiesce *q, struct eng_snapshot *snap, struct fmt_error *err)
{
	uint64_t end, now = now_ns(q);
	size_t n = 0;
	int r = check_earlier(q);

	q->snap = snap;
	if (r == 0 && failed_for_good(q))
		return fail_guest(first_failed(q), "cannot be frozen", err);
	if (r == 0)
		r = record(q, &n, err);
	if (r < 0 || !n)
		return r;
	end = now + SYNC_NS < q->deadline_ns ? now + SYNC_NS : q->deadline_ns;
	r = start_lease(q, false, end > now ? end - now : 1, err);
	if (r < 0) {
		for (size_t i = 0; i < q->count; i++)
			if (q->guests[i]->recorded)
				api_guest_fail(q->guests[i], r, "its lease did not start");
		return q->fallback ? 0 : r == -ETIMEDOUT ? r : -EIO;
	}
	r = wait_until(q, all_ready, end + 50 * MS, true);
	if (r == -ECANCELED)
		return fmt_fail(err, r, "ended before the cut");
	for (size_t i = 0; r < 0 && i < q->count; i++)
		if (!q->guests[i]->ready)
			api_guest_fail(q->guests[i], -ETIMEDOUT, "no answer to a sync");
	return failed_for_good(q) ? fail_guest(first_failed(q), "its guest agent", err) : 0;
}

/* --- freeze and thaw --- */

static void tell_thaw(struct api_quiesce *q)
{
	if (!q->sent_ns || q->thaw_ns)
		return;
	q->thaw_ns = now_ns(q);
	for (size_t i = 0; i < q->count; i++)
		if (q->guests[i]->callback && q->guests[i]->sent)
			api_callback_thaw(q->guests[i]->callback);
	if (!q->lease)
		return;
	look(q);
	if (!api_lease_ended(q->lease)) {
		api_lease_thaw(q->lease);
		return;
	}
	/* It was killed: another one at once (QU-17). Failing that, the thawer. */
	api_lease_destroy(q->lease);
	q->lease = NULL;
	start_lease(q, true, 0, NULL);
}

/* How many are to be frozen. */
static size_t send_freezes(struct api_quiesce *q)
{
	size_t n = 0, agents = 0;

	q->sent_ns = now_ns(q);
	q->limit_ns = q->sent_ns + q->max_stall_ns;
	if (q->limit_ns > q->deadline_ns)
		q->limit_ns = q->deadline_ns > q->sent_ns ? q->deadline_ns : q->sent_ns + 1;
	for (size_t i = 0; i < q->count; i++) {
		struct api_guest *g = q->guests[i];

		g->sent = g->ready && !g->error;
		n += g->sent;
		agents += g->sent && by_lease(g);
	}
	if (agents)
		api_lease_freeze(q->lease, q->limit_ns - q->sent_ns); /* else look() tells */
	for (size_t i = 0; i < q->count; i++) {
		struct api_guest *g = q->guests[i];
		int r = g->callback && g->sent ? api_callback_freeze(g->callback, q->limit_ns) : 0;

		if (r < 0) {
			g->sent = false;
			api_guest_fail(g, r, strerror(-r));
		}
	}
	return n;
}

static size_t count_frozen(const struct api_quiesce *q)
{
	size_t n = 0;

	for (size_t i = 0; i < q->count; i++)
		n += q->guests[i]->frozen;
	return n;
}

static int too_late(struct api_quiesce *q, struct fmt_error *err)
{
	const struct api_guest *late = NULL;

	for (size_t i = 0; i < q->count; i++) {
		struct api_guest *g = q->guests[i];

		if (!g->sent || g->answered)
			continue;
		api_guest_fail(g, -ETIMEDOUT, "not frozen in time");
		late = late ? late : g;
	}
	return fmt_fail(err, -ETIMEDOUT, "%s%s: not frozen in time (MaxStall or Timeout)",
			late ? "VM " : "the guests", late ? late->name : "");
}

/* The engine's hook: 0 guests are frozen, 1 none is, or an error. */
static int freeze(void *arg, struct fmt_error *err)
{
	struct api_quiesce *q = arg;
	int r;

	if (!send_freezes(q))
		return failed_for_good(q) ? fail_guest(first_failed(q), "not frozen", err) : 1;
	r = wait_until(q, all_answered, q->limit_ns, true);
	if (r == -ECANCELED)
		return fmt_fail(err, r, "ended before the cut");
	if (r == -ETIMEDOUT || now_ns(q) >= q->limit_ns) {
		r = too_late(q, err);
		if (!q->fallback || now_ns(q) >= q->deadline_ns)
			return r;
		tell_thaw(q); /* QU-6: nobody is held up longer for those that do not come */
		return 1;
	}
	if (failed_for_good(q))
		return fail_guest(first_failed(q), "not frozen", err);
	if (count_frozen(q))
		return 0;
	tell_thaw(q);
	return 1;
}

/* The engine's hook: right after the swap, or when there will be none (QU-7). */
static void thaw(void *arg)
{
	struct api_quiesce *q = arg;

	if (q->thaw_ns)
		return;
	tell_thaw(q);
	if (!eng_snapshot_is_open(q->snap))
		q->release_ns = q->thaw_ns;
}

/* --- what came of it --- */

/* Past a second without an answer of the lease itself it is stopped, or worse. */
static void wait_told(struct api_quiesce *q)
{
	if (!q->thaw_ns)
		return;
	wait_until(q, all_told, q->thaw_ns + CONFIRM_NS, false);
	if (q->lease && !api_lease_ended(q->lease) && !api_lease_released_ns(q->lease)) {
		api_lease_kill(q->lease);
		look(q);
	}
}

/* QU-3, QU-22: frozen when the swap came, and thawed only afterwards. */
static bool was_held(struct api_quiesce *q, struct api_guest *g)
{
	uint64_t thawed_ns = g->thaw_ns;

	if (!g->frozen || !q->release_ns)
		return false;
	if (!g->told && by_lease(g))
		thawed_ns = q->lease ? api_lease_released_ns(q->lease) : 0;
	if ((g->told || by_lease(g)) && thawed_ns < q->release_ns) {
		api_guest_fail(g, -ETIMEDOUT, "thawed before the cut");
		return false;
	}
	if (g->told && g->confirmed && by_lease(g) && g->thawed < g->filesystems) {
		api_guest_fail(g, -EIO, "somebody else thawed it before the cut");
		return false;
	}
	if (!g->told)
		api_guest_fail(g, -EAGAIN, "its thaw is not confirmed yet");
	return true;
}

/* The engine's hook: after the cut, before the commit (QU-8). */
static int settle(void *arg, struct fmt_error *err, uint8_t *consistency, uint64_t *freeze_ns)
{
	struct api_quiesce *q = arg;
	const struct api_guest *lost = NULL;
	uint64_t last = q->sent_ns, now;
	bool all_held = true;

	wait_told(q);
	q->settled = true;
	now = now_ns(q);
	for (size_t i = 0; i < q->count; i++) {
		struct api_guest *g = q->guests[i];
		bool was_frozen = g->frozen;
		uint64_t end = g->told ? g->done_ns : now;

		g->frozen = was_held(q, g);
		all_held = all_held && g->frozen;
		if (!g->frozen)
			lost = lost ? lost : g;
		if (!g->frozen && !g->error)
			api_guest_fail(g, -EIO, was_frozen ? "not held" : "not frozen");
		if (g->sent && end > last)
			last = end;
	}
	if (lost && !q->fallback)
		return fail_guest(lost, "not frozen over the cut", err);
	*consistency = all_held ? VMIMG_CONSISTENCY_APPLICATION : VMIMG_CONSISTENCY_CRASH;
	*freeze_ns = last - q->sent_ns;
	return 0;
}

/* The engine's hook: in the commit's transaction. */
static void put(void *arg, struct eng_catalog *cat)
{
	struct api_quiesce *q = arg;
	uint64_t now = now_ns(q);

	for (size_t i = 0; i < q->count; i++) {
		const struct api_guest *g = q->guests[i];
		struct cat_snapshot_guest row = {
			.snapshot = q->snapshot,
			.vm = g->vm,
			.index = (uint32_t)i,
			.frozen = g->frozen,
			.filesystems = g->frozen ? g->filesystems : 0,
		};

		if (g->sent)
			row.frozen_ns = (g->told ? g->done_ns : now) - q->sent_ns;
		memcpy(row.vm_name, g->name, sizeof(row.vm_name));
		memcpy(row.error, g->text, sizeof(row.error));
		eng_catalog_put_snapshot_guest(cat, &row);
		if (g->recorded && (!g->sent || g->confirmed))
			eng_catalog_remove_freeze(cat, &g->vm, g->socket);
	}
	q->put = true;
}

/* --- the end --- */

/* Records of guests that were never frozen, or are thawed (QU-4). */
static void take_back_records(struct api_quiesce *q)
{
	struct eng_catalog *cat = q->svc->store->catalog;
	bool any = false;

	for (size_t i = 0; i < q->count; i++) {
		const struct api_guest *g = q->guests[i];

		if (!g->recorded || (g->sent && !g->confirmed))
			continue;
		if (!any && eng_catalog_begin(cat) < 0)
			return;
		any = true;
		eng_catalog_remove_freeze(cat, &g->vm, g->socket);
	}
	if (any)
		eng_catalog_commit(cat, NULL);
}

/* who is not known to be thawed goes to the thawer, with the lease that is at it. */
static void hand_on(struct api_quiesce *q)
{
	struct api_guest **guests = calloc(q->count + 1, sizeof(*guests));
	size_t n = 0, left = 0;

	if (!guests)
		return; /* the lease thaws on by itself; the record is the next open's */
	for (size_t i = 0; i < q->count; i++) {
		struct api_guest *g = q->guests[i];

		/* A lease still tells of all its guests. */
		if (g->recorded && (q->lease || (g->sent && !g->confirmed)))
			guests[n++] = g;
		else
			q->guests[left++] = g;
		g->forgotten = !g->sent;
	}
	q->count = left;
	api_thaw_later(q->svc, guests, n, q->lease);
	q->lease = NULL;
}

void api_quiesce_end(struct api_quiesce *q, bool committed)
{
	bool open = false;

	if (!q->settled)
		wait_told(q);
	if (!committed || !q->put)
		take_back_records(q);
	for (size_t i = 0; i < q->count; i++) {
		struct api_guest *g = q->guests[i];

		open = open || (g->recorded && g->sent && !g->confirmed);
		if (g->callback)
			api_callback_end(q->svc, g->callback);
		g->callback = NULL;
	}
	if (open)
		hand_on(q);
}

int api_quiesce_create(struct vmimg_service *svc, const struct eng_snapshot_spec *spec,
		       bool fallback, struct api_quiesce **ret)
{
	struct api_quiesce *q = calloc(1, sizeof(*q));

	if (!q)
		return -ENOMEM;
	q->bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (q->bell < 0) {
		free(q);
		return -errno;
	}
	q->svc = svc;
	q->job = spec->job.id;
	q->snapshot = spec->id;
	q->fallback = fallback;
	q->max_stall_ns = spec->max_stall_ns;
	q->deadline_ns = now_ns(q) + spec->timeout_ns;
	q->hooks = (struct eng_snapshot_guests){q, freeze, thaw, settle, put};
	*ret = q;
	return 0;
}

const struct eng_snapshot_guests *api_quiesce_hooks(const struct api_quiesce *q)
{
	return &q->hooks;
}

void api_quiesce_destroy(struct vmimg_service *svc, struct api_quiesce *q)
{
	if (!q)
		return;
	api_lease_destroy(q->lease);
	for (size_t i = 0; i < q->count; i++) {
		api_callback_end(svc, q->guests[i]->callback);
		free(q->guests[i]);
	}
	free(q->guests);
	close(q->bell);
	free(q);
}
