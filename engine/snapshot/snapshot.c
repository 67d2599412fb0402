/* SPDX-License-Identifier: MIT */
/*
 * snapshot.c - prepare, cut, drain, harden, commit: one coordinator thread a cut (CU-*).
 *
 * What a crash leaves: before the intent, files without a row (removed at open). From the intent to
 * the commit, an intent that recovery takes back: overlays that hold nothing go, others stay members of
 * their chains, boundaries are cleared. After the commit, the snapshot.
 */
#include "engine/snapshot/snapshot.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/space/guard.h"
#include "engine/store/overlay.h"
#include "engine/snapshot/refpoint.h"

#define ROLL_NS (10ull * 1000000000) /* to a roll's cut, and from there to its end */

struct eng_snapshot {
	struct eng_snapshot *next; /* store->cuts */
	struct eng_store *store;
	struct eng_snapshot_spec spec;
	struct eng_cut *cut;
	struct eng_batch *batch;
	struct eng_member *members;
	size_t count;
	struct cat_disk *skipped;
	size_t skipped_count;
	bool intended;     /* the intent is in the catalog */
	bool has_snapshot; /* false: a roll, or a reference point (RP-8) */
	uint64_t started_ns, stall_ns;
	uint64_t timeout_ns; /* from the start to the cut, and once more from there (CU-14) */
	void (*phase)(void *arg, int phase);
	void *phase_arg;
	struct eng_snapshot_times times;
};

/* --- membership (CU-4) --- */

bool eng_store_collection_in_cut(struct eng_store *store, const struct fmt_uuid *collection)
{
	bool found = false;

	pthread_mutex_lock(&store->lock);
	for (struct eng_snapshot *s = store->cuts; s; s = s->next)
		found = found || fmt_uuid_equal(&s->spec.collection.id, collection);
	pthread_mutex_unlock(&store->lock);
	return found;
}

bool eng_store_vm_in_cut(struct eng_store *store, const struct fmt_uuid *vm)
{
	struct fmt_uuid *collections = NULL;
	bool found = false;
	size_t n = 0;

	pthread_mutex_lock(&store->lock);
	for (struct eng_snapshot *s = store->cuts; s; s = s->next)
		n++;
	collections = calloc(n + 1, sizeof(*collections));
	n = 0;
	for (struct eng_snapshot *s = store->cuts; collections && s; s = s->next)
		collections[n++] = s->spec.collection.id;
	pthread_mutex_unlock(&store->lock);
	if (!collections)
		return true; /* cannot tell: the careful answer */
	for (size_t i = 0; i < n && !found; i++) {
		struct cat_vm *vms = NULL;
		size_t count = 0;

		if (eng_catalog_list_members(store->catalog, &collections[i], &vms, &count) < 0)
			found = true;
		for (size_t j = 0; j < count; j++)
			found = found || fmt_uuid_equal(&vms[j].id, vm);
		free(vms);
	}
	free(collections);
	return found;
}

static void cuts_add(struct eng_snapshot *s)
{
	pthread_mutex_lock(&s->store->lock);
	s->next = s->store->cuts;
	s->store->cuts = s;
	pthread_mutex_unlock(&s->store->lock);
}

static void cuts_remove(struct eng_snapshot *s)
{
	struct eng_snapshot **p = &s->store->cuts;

	pthread_mutex_lock(&s->store->lock);
	while (*p && *p != s)
		p = &(*p)->next;
	if (*p)
		*p = s->next;
	pthread_mutex_unlock(&s->store->lock);
}

/* --- check --- */

/* T7: one create a disk. Marked from the check to the end, whoever has the disk busy just now. */
static int mark_member(struct eng_store *store, const struct cat_disk *disk)
{
	struct eng_entry *e;
	int r = 0;

	pthread_mutex_lock(&store->lock);
	e = eng_entry_get_locked(store, &disk->id);
	if (!e)
		r = -ENOMEM;
	else if (e->in_cut)
		r = -EBUSY;
	else
		e->in_cut = true;
	pthread_mutex_unlock(&store->lock);
	return r;
}

static void unmark_member(struct eng_store *store, const struct cat_disk *disk)
{
	struct eng_entry *e;

	pthread_mutex_lock(&store->lock);
	e = eng_entry_get_locked(store, &disk->id);
	if (e)
		e->in_cut = false;
	pthread_mutex_unlock(&store->lock);
}

static int add_member(struct eng_snapshot *s, const struct cat_disk *disk, struct fmt_error *err)
{
	struct eng_member *m = &s->members[s->count];
	int r = mark_member(s->store, disk);

	if (r < 0)
		return fmt_fail(
			err, r, "%s/%s: %s", disk->vm_name, disk->name,
			r == -EBUSY ? "another snapshot or reference point of it is being created"
				    : strerror(-r));
	m->disk = *disk;
	m->index = (uint32_t)s->count++;
	r = eng_entry_claim(s->store, &disk->id, 0, &m->entry);
	if (r == -EBUSY)
		return 0; /* a roll, an attach, a detach: the job waits for its end */
	return r < 0 ? r : eng_member_open(s->store, m, s->has_snapshot, err);
}

/* CU-5: what was busy at the check is waited for here, on the job's thread. */
static int claim_rest(struct eng_snapshot *s, uint64_t deadline_ns, struct fmt_error *err)
{
	for (size_t i = 0; i < s->count; i++) {
		struct eng_member *m = &s->members[i];
		int r;

		if (m->entry)
			continue;
		r = eng_entry_claim(s->store, &m->disk.id, deadline_ns, &m->entry);
		if (r < 0)
			return fmt_fail(err, r == -EBUSY ? -ETIMEDOUT : r,
					"%s/%s: busy with a roll, an attach or a detach",
					m->disk.vm_name, m->disk.name);
		r = eng_member_open(s->store, m, s->has_snapshot, err);
		if (r < 0)
			return r;
	}
	return 0;
}

static int check_name(struct eng_snapshot *s, struct fmt_error *err)
{
	struct cat_snapshot row;
	int r;

	if (s->spec.refpoint)
		return eng_refpoint_check_name(s->store, &s->spec, err);
	r = eng_catalog_get_snapshot(s->store->catalog, s->spec.collection.name, s->spec.name,
				     &row);
	if (r == 0)
		return fmt_fail(err, -EEXIST, "%s@%s: the name is taken", s->spec.collection.name,
				s->spec.name);
	return r == -ENOENT ? 0 : fmt_fail(err, r, "cannot read the catalog");
}

static int check_disks(struct eng_snapshot *s, struct fmt_error *err)
{
	struct cat_disk *disks = NULL;
	size_t n = 0;
	int r = eng_catalog_list_collection_disks(s->store->catalog, &s->spec.collection.id, &disks,
						  &n);

	if (r < 0)
		return fmt_fail(err, r, "%s: cannot list its disks", s->spec.collection.name);
	s->members = calloc(n + 1, sizeof(*s->members));
	s->skipped = calloc(n + 1, sizeof(*s->skipped));
	if (!s->members || !s->skipped)
		r = fmt_fail(err, -ENOMEM, "no memory for %zu disks", n);
	for (size_t i = 0; r == 0 && i < n; i++) {
		if (!disks[i].independent)
			r = add_member(s, &disks[i], err);
		else if (s->spec.ignore_independent)
			s->skipped[s->skipped_count++] = disks[i];
		else
			r = fmt_fail(err, -EPERM,
				     "%s/%s: independent, cannot be snapshotted "
				     "(IgnoreNonSnapshottableDisks skips it)",
				     disks[i].vm_name, disks[i].name);
	}
	if (r == 0 && !s->count)
		r = fmt_fail(err, -ENODATA, "%s: has no disk to snapshot", s->spec.collection.name);
	free(disks);
	return r;
}

static struct eng_snapshot *snapshot_alloc(struct eng_store *store)
{
	struct eng_snapshot *s = calloc(1, sizeof(*s));

	if (!s)
		return NULL;
	s->store = store;
	s->started_ns = eng_io_now_ns(store->io);
	if (eng_cut_create(&s->cut) < 0) {
		free(s);
		return NULL;
	}
	return s;
}

int eng_snapshot_check(struct eng_store *store, const struct eng_snapshot_spec *spec,
		       struct fmt_error *err, struct eng_snapshot **ret)
{
	struct eng_snapshot *s = snapshot_alloc(store);
	int r;

	if (!s)
		return fmt_fail(err, -ENOMEM, "no memory for a snapshot");
	s->spec = *spec;
	s->has_snapshot = !spec->refpoint;
	cuts_add(s); /* membership is locked from here on */
	r = check_name(s, err);
	if (r == 0)
		r = check_disks(s, err);
	if (r == 0)
		r = eng_guard_snapshot(store, err); /* SG-3 */
	if (r < 0) {
		eng_snapshot_destroy(s);
		return r;
	}
	*ret = s;
	return 0;
}

static void drop_members(struct eng_snapshot *s)
{
	for (size_t i = 0; i < s->count; i++) {
		eng_layer_put(s->members[i].tail);
		eng_layer_put(s->members[i].pending);
	}
}

void eng_snapshot_destroy(struct eng_snapshot *s)
{
	if (!s)
		return;
	drop_members(s);
	for (size_t i = 0; i < s->count; i++) {
		unmark_member(s->store, &s->members[i].disk);
		if (!s->members[i].entry)
			continue;
		eng_entry_release(s->members[i].entry);
		eng_store_want_standby(s->members[i].entry); /* which passes over busy disks */
	}
	cuts_remove(s);
	eng_batch_destroy(s->batch);
	eng_cut_put(s->cut);
	free(s->members);
	free(s->skipped);
	free(s);
}

/* --- catalog --- */

static void snapshot_row(const struct eng_snapshot *s, uint32_t state, struct cat_snapshot *row)
{
	memset(row, 0, sizeof(*row));
	row->id = s->spec.id;
	row->collection = s->spec.collection.id;
	strcpy(row->name, s->spec.name);
	strcpy(row->collection_name, s->spec.collection.name);
	strcpy(row->element_name, s->spec.element_name);
	row->state = state;
	row->type = s->spec.type;
	row->consistency = s->spec.consistency;
	row->guest_backup_type = s->spec.guest_backup_type;
	row->disks = (uint32_t)s->count;
	row->skipped = (uint32_t)s->skipped_count;
	row->created_ns = eng_io_wall_ns(s->store->io);
	row->cut_wall_ns = s->times.cut_wall_ns;
	row->cut_ns = s->times.cut_ns;
	row->prepare_ns = s->times.prepare_ns;
	row->drain_ns = s->times.drain_ns;
	row->harden_ns = s->times.harden_ns;
	row->total_ns = s->times.total_ns;
	row->max_write_latency_ns = s->times.max_write_latency_ns;
	row->freeze_ns = s->times.freeze_ns;
}

static void put_snapshot_disk(struct eng_snapshot *s, const struct cat_disk *disk,
			      const struct fmt_uuid *layer, uint32_t index, bool skipped)
{
	struct cat_snapshot_disk row = {
		.snapshot = s->spec.id,
		.disk = disk->id,
		.size = disk->size,
		.index = index,
		.skipped = skipped,
	};

	if (layer)
		row.layer = *layer;
	strcpy(row.vm_name, disk->vm_name);
	strcpy(row.disk_name, disk->name);
	eng_catalog_put_snapshot_disk(s->store->catalog, &row);
}

static void put_pending(struct eng_snapshot *s, const struct eng_member *m)
{
	struct cat_layer row = {
		.id = m->pending->id,
		.disk = m->disk.id,
		.parent = m->tail->id,
		.kind = FMT_KIND_OVERLAY,
		.state = CAT_LAYER_PENDING,
		.generation = m->pending->generation,
		.created_ns = m->pending->hdr.created_ns,
	};

	eng_catalog_put_layer(s->store->catalog, &row);
}

/* The files are there before their rows: a row without a file is never left. */
static int intent(struct eng_snapshot *s, struct fmt_error *err)
{
	struct eng_catalog *cat = s->store->catalog;
	struct cat_snapshot row;
	int r = eng_catalog_begin(cat);

	if (r < 0)
		return fmt_fail(err, r, "cannot begin in the catalog: %s", strerror(-r));
	if (s->has_snapshot) {
		snapshot_row(s, CAT_SNAPSHOT_INTENT, &row);
		eng_catalog_put_snapshot(cat, &row);
	}
	for (size_t i = 0; i < s->count; i++) {
		put_pending(s, &s->members[i]);
		if (s->has_snapshot)
			put_snapshot_disk(s, &s->members[i].disk, &s->members[i].tail->id,
					  s->members[i].index, false);
	}
	for (size_t i = 0; i < s->skipped_count; i++)
		put_snapshot_disk(s, &s->skipped[i], NULL, (uint32_t)(s->count + i), true);
	r = eng_catalog_commit(cat, err);
	s->intended = r == 0;
	return r;
}

/* CU-19: a head only moves forward. Busy by us since its tail was looked up: no roll has moved it. */
static void put_head(struct eng_snapshot *s, const struct eng_member *m)
{
	assert(m->pending->generation == m->tail->generation + 1);
	eng_catalog_set_layer_state(s->store->catalog, &m->pending->id, CAT_LAYER_ACTIVE);
	eng_catalog_set_disk_head(s->store->catalog, &m->disk.id, &m->pending->id);
}

static int commit(struct eng_snapshot *s, struct fmt_error *err)
{
	struct eng_catalog *cat = s->store->catalog;
	int64_t now = eng_io_wall_ns(s->store->io);
	struct cat_snapshot row;
	int r = eng_catalog_begin(cat);

	if (r < 0)
		return fmt_fail(err, r, "cannot begin in the catalog: %s", strerror(-r));
	for (size_t i = 0; i < s->count; i++) {
		struct eng_member *m = &s->members[i];

		eng_catalog_set_layer_state(cat, &m->tail->id, CAT_LAYER_HARDENED);
		if (s->has_snapshot)
			eng_catalog_set_layer_snapshot(cat, &m->tail->id, &s->spec.id);
		put_head(s, m);
	}
	if (s->has_snapshot) {
		snapshot_row(s, CAT_SNAPSHOT_COMPLETE, &row);
		eng_catalog_put_snapshot(cat, &row);
	}
	if (s->spec.refpoint)
		eng_refpoint_put_cut(s->store, &s->spec, s->times.cut_wall_ns, s->members,
				     s->count);
	if (s->spec.guests && s->has_snapshot)
		s->spec.guests->put(s->spec.guests->arg, cat);
	eng_catalog_put_completed(cat, &s->spec.job, &s->spec.id, now);
	return eng_catalog_commit(cat, err);
}

/* --- the end of a cut that did not happen (CU-21) --- */

static void undo(struct eng_snapshot *s)
{
	struct eng_catalog *cat = s->store->catalog;
	int r = 0;

	eng_cut_abandon(s->cut);
	for (size_t i = 0; i < s->count; i++)
		if (s->members[i].attached)
			eng_cut_detach(s->members[i].tail);
	if (s->intended) {
		r = eng_catalog_begin(cat);
		if (r == 0) {
			if (s->has_snapshot)
				eng_catalog_remove_snapshot(cat, &s->spec.id);
			for (size_t i = 0; i < s->count; i++)
				eng_catalog_remove_layer(cat, &s->members[i].pending->id);
			r = eng_catalog_commit(cat, NULL);
		}
	}
	if (r < 0)
		atomic_store(&s->store->unsettled, true);
	/* With the rows still there the files stay: recovery takes both away. */
	for (size_t i = 0; i < s->count && r == 0; i++)
		if (s->members[i].pending)
			eng_io_unlink(s->store->io, s->members[i].pending->path);
}

/* --- the end of a cut that happened without a snapshot (CU-20) --- */

static void move_tails(struct eng_snapshot *s)
{
	for (size_t i = 0; i < s->count; i++)
		eng_entry_set_tail(s->members[i].entry, s->members[i].pending);
}

/* Heads and the end of the snapshot, then headers, then what hangs on these. */
static int take_back(struct eng_snapshot *s)
{
	struct eng_catalog *cat = s->store->catalog;
	struct cat_snapshot row;
	int r = eng_catalog_begin(cat), cleared;

	if (r < 0)
		return r;
	for (size_t i = 0; i < s->count; i++)
		put_head(s, &s->members[i]);
	if (s->has_snapshot) {
		snapshot_row(s, CAT_SNAPSHOT_DELETING, &row);
		eng_catalog_put_snapshot(cat, &row);
	}
	r = eng_catalog_commit(cat, NULL);
	if (r < 0)
		return r;
	cleared = eng_batch_unbound(s->batch, s->members, s->count);
	r = eng_catalog_begin(cat);
	if (r < 0)
		return r;
	for (size_t i = 0; i < s->count; i++)
		if (s->members[i].settled)
			eng_catalog_set_layer_state(cat, &s->members[i].tail->id,
						    CAT_LAYER_HARDENED);
	/* The row stays until the boundaries are gone (RV-7). */
	if (s->has_snapshot && cleared == 0)
		eng_catalog_remove_snapshot(cat, &s->spec.id);
	r = eng_catalog_commit(cat, NULL);
	return r < 0 ? r : cleared;
}

static void fail_after_cut(struct eng_snapshot *s)
{
	for (size_t i = 0; i < s->count; i++)
		if (atomic_load(&s->members[i].tail->harden) != ENG_HARDEN_DONE &&
		    eng_entry_keep_unhardened(s->members[i].entry, s->members[i].tail) < 0)
			s->members[i].entry->refused = true; /* no create may pass over it */
	move_tails(s);
	/* CU-22: with a poisoned catalog the next open decides, from the boundaries too. */
	if (!eng_catalog_poisoned(s->store->catalog) && take_back(s) < 0)
		atomic_store(&s->store->unsettled, true);
}

/* --- prepare --- */

struct ping {
	struct eng_msg msg;
	_Atomic unsigned refs;
	_Atomic bool seen;
};

static void ping_put(struct ping *p)
{
	if (atomic_fetch_sub(&p->refs, 1) == 1)
		free(p);
}

static void ping_run(struct eng_msg *msg)
{
	struct ping *p = (struct ping *)msg;

	atomic_store(&p->seen, true);
	ping_put(p);
}

/*
 * T8: a thread that no longer turns its ring must not hold the others' cut: every queue with a write
 * in flight on a member answers before the cut, or there is none.
 */
static int check_alive(struct eng_snapshot *s, uint64_t deadline_ns, struct fmt_error *err)
{
	struct eng_io *io = s->store->io;

	for (size_t i = 0; i < s->count; i++) {
		struct eng_member *m = &s->members[i];
		struct ping *p;
		bool seen;

		if (!m->entry->disk || !atomic_load(&m->tail->inflight))
			continue;
		p = calloc(1, sizeof(*p));
		if (!p)
			return fmt_fail(err, -ENOMEM, "no memory");
		atomic_store(&p->refs, 2);
		p->msg.run = ping_run;
		eng_queue_post(m->entry->disk->queue, &p->msg);
		while (!(seen = atomic_load(&p->seen)) && eng_io_now_ns(io) < deadline_ns &&
		       atomic_load(&s->cut->word) == ENG_CUT_PREPARED)
			eng_io_sleep_ns(io, 20000);
		ping_put(p);
		if (atomic_load(&s->cut->word) != ENG_CUT_PREPARED)
			return fmt_fail(err, -ECANCELED, "ended before the cut");
		if (!seen)
			return fmt_fail(err, -ETIMEDOUT,
					"%s/%s: its queue is not being polled (T8)",
					m->disk.vm_name, m->disk.name);
	}
	return 0;
}

static int prepare(struct eng_snapshot *s, uint64_t deadline_ns, struct fmt_error *err)
{
	int r = eng_batch_create(s->store, &s->batch);

	if (r < 0)
		return fmt_fail(err, r, "cannot set up a ring: %s", strerror(-r));
	r = eng_batch_create_overlays(s->batch, s->members, s->count, err);
	if (r == 0)
		r = intent(s, err);
	for (size_t i = 0; r == 0 && i < s->count; i++) {
		r = eng_cut_attach(s->cut, s->members[i].tail, s->members[i].pending);
		s->members[i].attached = r == 0;
		if (r < 0)
			fmt_fail(err, r, "%s/%s: has a pending overlay already",
				 s->members[i].disk.vm_name, s->members[i].disk.name);
	}
	if (r == 0)
		r = check_alive(s, deadline_ns, err);
	if (r == 0 && eng_io_now_ns(s->store->io) > deadline_ns)
		return fmt_fail(err, -ETIMEDOUT, "preparing %zu disks took too long", s->count);
	return r;
}

/* --- run --- */

/* Or @max, when that is longer. What is in flight counts with its age. */
static uint64_t longest_write(struct eng_disk *disk, uint64_t max)
{
	uint64_t since = atomic_load(&disk->watch_since_ns), now = eng_io_now_ns(disk->io);
	uint64_t ended = atomic_load(&disk->max_write_ns);

	max = ended > max ? ended : max;
	return since && now > since && now - since > max ? now - since : max;
}

static void watch(struct eng_snapshot *s, bool on)
{
	uint64_t max = 0;

	for (size_t i = 0; i < s->count; i++) {
		struct eng_disk *disk = s->members[i].entry->disk;

		if (!disk)
			continue;
		if (on)
			atomic_store(&disk->max_write_ns, 0);
		else
			max = longest_write(disk, max);
		atomic_store(&disk->watched, on);
	}
	if (!on)
		s->times.max_write_latency_ns = max;
}

static void tell(struct eng_snapshot *s, int phase)
{
	if (s->phase)
		s->phase(s->phase_arg, phase);
}

static int fire(struct eng_snapshot *s, struct fmt_error *err)
{
	uint64_t before = eng_io_now_ns(s->store->io);

	/* CU-10: the last look at the bound on what guests feel: from the freeze, if any, to here. */
	if (s->spec.max_stall_ns && before - s->stall_ns > s->spec.max_stall_ns) {
		eng_cut_abandon(s->cut);
		return fmt_fail(err, -ETIMEDOUT, "the stall reached MaxStall before the cut");
	}
	if (!eng_cut_fire(s->cut))
		return fmt_fail(err, -ECANCELED, "ended before the cut");
	s->times.cut_ns = eng_io_now_ns(s->store->io) - before;
	s->times.cut_wall_ns = eng_io_wall_ns(s->store->io);
	s->times.prepare_ns = before - s->started_ns;
	return 0;
}

/* QU-7: whatever becomes of it, a freeze is followed by its thaw, and nothing waits in between. */
static int cut(struct eng_snapshot *s, struct fmt_error *err)
{
	const struct eng_snapshot_guests *guests = s->spec.guests;
	int r = 1;

	if (guests) {
		tell(s, ENG_SNAPSHOT_FREEZING);
		s->stall_ns = eng_io_now_ns(s->store->io);
		r = guests->freeze(guests->arg, err);
	}
	if (r > 0)
		s->stall_ns = eng_io_now_ns(s->store->io); /* nobody is held up: it is the cut */
	if (r >= 0)
		r = fire(s, err);
	if (guests)
		guests->thaw(guests->arg);
	return r;
}

static int drain(struct eng_snapshot *s, struct fmt_error *err)
{
	uint64_t deadline = eng_io_now_ns(s->store->io) + s->timeout_ns;
	int first = 0;

	for (size_t i = 0; i < s->count; i++) {
		struct eng_entry *e = s->members[i].entry;
		int r = eng_cut_drain(s->cut, s->members[i].tail, deadline);

		for (uint32_t j = 0; r == 0 && j < e->unhardened_count; j++)
			r = eng_cut_drain(eng_layer_fired(e->unhardened[j]), e->unhardened[j],
					  deadline);
		if (r < 0 && first == 0)
			first = fmt_fail(err, r, "%s/%s: a write from before the cut did not end",
					 s->members[i].disk.vm_name, s->members[i].disk.name);
	}
	return first;
}

static int after_cut(struct eng_snapshot *s, struct fmt_error *err)
{
	static const struct fmt_uuid none;
	struct eng_io *io = s->store->io;
	uint64_t t = eng_io_now_ns(io);
	int r;

	tell(s, ENG_SNAPSHOT_CUT);
	r = drain(s, err);
	s->times.drain_ns = eng_io_now_ns(io) - t;
	tell(s, ENG_SNAPSHOT_HARDENING);
	t = eng_io_now_ns(io);
	if (r == 0)
		r = eng_batch_harden(s->batch, s->members, s->count, t + s->timeout_ns, err);
	if (r == 0)
		r = eng_batch_bound(s->batch, s->members, s->count,
				    s->has_snapshot ? &s->spec.id : &none, err);
	s->times.harden_ns = eng_io_now_ns(io) - t;
	watch(s, false);
	if (r == 0 && s->spec.guests)
		r = s->spec.guests->settle(s->spec.guests->arg, err, &s->spec.consistency,
					   &s->times.freeze_ns);
	if (r < 0)
		return r;
	t = eng_io_now_ns(io);
	s->times.total_ns = t - s->started_ns;
	r = commit(s, err);
	s->times.commit_ns = eng_io_now_ns(io) - t;
	s->times.total_ns = eng_io_now_ns(io) - s->started_ns;
	return r;
}

static void finish(struct eng_snapshot *s)
{
	move_tails(s);
	for (size_t i = 0; i < s->count; i++)
		if (s->members[i].tail->kind == FMT_KIND_OVERLAY)
			eng_store_seal(s->store, &s->members[i].tail->id, s->members[i].tail);
	eng_store_checkpoint(s->store);
	tell(s, ENG_SNAPSHOT_COMMITTED);
}

static int run(struct eng_snapshot *s, uint64_t timeout_ns, struct fmt_error *err)
{
	uint64_t deadline = s->started_ns + timeout_ns;
	int r = claim_rest(s, deadline, err);

	s->timeout_ns = timeout_ns;
	if (r == 0) {
		watch(s, true);
		r = prepare(s, deadline, err);
		if (r == 0)
			r = cut(s, err);
		if (r < 0)
			watch(s, false);
	}
	if (r < 0) {
		undo(s);
		return r;
	}
	r = after_cut(s, err);
	if (r < 0)
		fail_after_cut(s);
	else
		finish(s);
	return r;
}

int eng_snapshot_run(struct eng_snapshot *snap, void (*phase)(void *arg, int phase), void *arg,
		     struct fmt_error *err, struct eng_snapshot_times *ret)
{
	int r;

	snap->phase = phase;
	snap->phase_arg = arg;
	snap->times.disks = (uint32_t)snap->count;
	snap->times.skipped = (uint32_t)snap->skipped_count;
	r = run(snap, snap->spec.timeout_ns, err);
	*ret = snap->times;
	return r;
}

bool eng_snapshot_cancel(struct eng_snapshot *snap)
{
	return eng_cut_abandon(snap->cut);
}

bool eng_snapshot_is_open(struct eng_snapshot *snap)
{
	return atomic_load(&snap->cut->word) == ENG_CUT_PREPARED;
}

int eng_roll_run(struct eng_entry *entry, struct fmt_error *err)
{
	struct eng_snapshot *s = snapshot_alloc(entry->store);
	struct eng_member *m;
	int r = -ENOMEM;

	if (!s)
		return fmt_fail(err, r, "no memory for a roll");
	s->cut->is_roll = true;
	s->members = m = calloc(1, sizeof(*m));
	if (m) {
		s->count = 1;
		m->entry = entry;
		m->disk.id = entry->id;
		r = eng_member_open(s->store, m, s->has_snapshot, err);
	}
	if (r == 0)
		r = run(s, ROLL_NS, err);
	drop_members(s);
	eng_batch_destroy(s->batch);
	eng_cut_put(s->cut);
	free(s->members);
	free(s);
	return r;
}
