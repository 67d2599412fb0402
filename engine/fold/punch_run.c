/* SPDX-License-Identifier: MIT */
/*
 * punch_run.c - one punch on one disk (PU-*): which layer, the list that says what will be gone, the wait
 * for everybody who may have looked before, and then the holes (punch.c).
 *
 * The list is durable before the first hole, and every attached disk has the layer opened anew, with that
 * list, before the wait begins. From the recheck under the claim on nobody can come to read the layer
 * but through the one on top of it: only snapshots and heads are stood upon or read, and it is neither.
 * So the claim ends before the wait. A crash at any time leaves slots that are listed and may be there,
 * which the next look gives back. The folder's thread, but for the ends of swaps.
 */
#include "engine/fold/fold_impl.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/fold/punch.h"
#include "engine/store/garbage.h"

#define SHORTEST (64u << 10) /* bytes of a run */
#define WORTH    16u         /* such runs are worth a list and a wait */
#define CLAIM_NS (10 * 1000000000ull)
#define NAP_NS   10000000ull

enum wait { WAITING, LET_GO, LEFT };

/* Shared with the workers until they have let go. */
struct barrier {
	struct eng_folder *folder;
	struct eng_layer *fresh; /* the lower layer with its list; NULL: no disk is attached */
	struct fmt_uuid id;
	enum wait state; /* folder's lock; -> LET_GO by the last worker, -> LEFT by who waited */
	int result;
};

struct punch {
	struct eng_folder *folder;
	struct cat_layer lower, upper;
	struct eng_punch files;
	struct eng_punch_list list;
	struct eng_gone_place place;
	bool may_drop; /* the list was written, and no header was told to name it */
	struct fmt_error *err;
};

static bool is_stopped(void *arg)
{
	const struct eng_folder *folder = arg;

	return atomic_load(&folder->cancel);
}

static uint64_t shortest(struct eng_folder *folder)
{
	uint64_t bytes = atomic_load(&folder->punch_run);

	return bytes ? bytes : SHORTEST;
}

/* --- what was looked at: a pair of sealed layers never changes its mind --- */

static struct eng_punch_seen *seen_of(struct eng_folder *folder, const struct punch *p)
{
	return &folder->seen[(p->lower.id.b[0] ^ p->upper.id.b[1]) % ENG_PUNCH_SEEN];
}

/* Bytes that were found at the last look; UINT64_MAX: there was none. */
static uint64_t bytes_seen(struct eng_folder *folder, const struct punch *p)
{
	const struct eng_punch_seen *seen = seen_of(folder, p);

	return fmt_uuid_equal(&seen->lower, &p->lower.id) &&
			       fmt_uuid_equal(&seen->upper, &p->upper.id)
		       ? seen->bytes
		       : UINT64_MAX;
}

static void note_seen(struct eng_folder *folder, const struct punch *p, uint64_t bytes)
{
	*seen_of(folder, p) = (struct eng_punch_seen){p->lower.id, p->upper.id, bytes};
}

/* --- the list --- */

static int open_files(struct punch *p)
{
	struct eng_store *store = p->folder->store;
	int r = eng_store_open_layer(store, &p->lower, true, p->err, &p->files.lower);

	if (r == 0)
		r = eng_store_open_layer(store, &p->upper, false, p->err, &p->files.upper);
	if (r < 0)
		return r;
	p->files.io = store->io;
	p->files.shortest = shortest(p->folder);
	p->files.most = FMT_GONE_RUNS_MAX;
	p->files.rate = &p->folder->rate;
	p->files.stop = is_stopped;
	p->files.arg = p->folder;
	/* FO-6: the row's snapshot is none, and so is the header's, or somebody is at it. */
	return fmt_uuid_is_none(&p->files.lower->hdr.snapshot_id) &&
			       !(p->files.lower->hdr.incompat & FMT_INCOMPAT_ONE_FLUSH)
		       ? 0
		       : -ESTALE;
}

static void forget_list(struct punch *p)
{
	free(p->list.runs);
	p->list = (struct eng_punch_list){0};
}

/* On a full file system only a list that needs no space of its own can be written. */
static int write_list(struct punch *p)
{
	uint32_t room = eng_gone_room(p->files.lower);
	int r = eng_gone_write(p->files.lower, p->list.runs, p->list.count, p->err, &p->place);

	if (r == -ENOSPC && room && p->list.count > room) {
		p->files.most = room;
		forget_list(p);
		r = eng_punch_find(&p->files, p->err, &p->list);
		if (r == 0)
			r = eng_gone_write(p->files.lower, p->list.runs, p->list.count, p->err,
					   &p->place);
	}
	p->may_drop = r == 0;
	return r;
}

/* A try that came to nothing has written it, or a process that died; its header is durable by now. */
static bool is_listed(const struct punch *p)
{
	const struct eng_gone *gone = p->files.lower->gone;

	return gone && gone->count == p->list.count &&
	       memcmp(gone->run, p->list.runs, gone->count * sizeof(gone->run[0])) == 0;
}

/* --- the disks that are attached --- */

static void barrier_free(struct barrier *b)
{
	eng_layer_put(b->fresh);
	free(b);
}

/* A worker, or our own thread: every request that began before has ended; or a disk goes on as it was. */
static void let_go(void *arg, int result)
{
	struct barrier *b = arg;
	struct eng_folder *folder = b->folder;
	bool left;

	pthread_mutex_lock(&folder->lock);
	left = b->state == LEFT;
	b->state = LET_GO;
	b->result = result;
	folder->swaps--;
	pthread_cond_broadcast(&folder->changed);
	pthread_mutex_unlock(&folder->lock);
	if (left)
		barrier_free(b);
}

/* T25, as it is now, under the claim; then the header, then the workers. */
static int publish(struct punch *p, struct eng_users *users, struct barrier *b)
{
	struct eng_folder *folder = p->folder;
	struct eng_store *store = folder->store;
	struct cat_layer row, child;
	bool joined = false;
	int r = eng_catalog_get_layer(store->catalog, &p->lower.id, &row);

	if (r == 0)
		r = eng_fold_joins(store, &row, &joined, &child);
	if (r == 0 && (!joined || !fmt_uuid_equal(&child.id, &p->upper.id)))
		r = -ESTALE;
	if (r == 0 && p->may_drop) {
		p->may_drop = false; /* what fails may have been written all the same */
		r = eng_gone_name(p->files.lower, &p->place, p->err);
	}
	if (r < 0)
		return r;
	if (eng_users_are_attached(users))
		r = eng_store_open_layer(store, &p->lower, false, p->err, &b->fresh);
	if (r < 0)
		return r;
	b->folder = folder;
	b->id = p->lower.id;
	pthread_mutex_lock(&folder->lock);
	folder->swaps++;
	pthread_mutex_unlock(&folder->lock);
	eng_users_swap(users, b->fresh, &b->id, 1, let_go, b);
	return 0;
}

/* As a fold's commit: never in one long wait for who may be waiting for us. Takes @b over on success. */
static int claim(struct punch *p, struct barrier *b)
{
	struct eng_store *store = p->folder->store;
	uint64_t end = eng_io_now_ns(store->io) + CLAIM_NS;
	struct eng_users users;
	int r = -EBUSY;

	while (r == -EBUSY && !is_stopped(p->folder) && eng_io_now_ns(store->io) < end) {
		r = eng_users_claim(store, &p->lower.id, &users);
		if (r == 0) {
			r = publish(p, &users, b);
			eng_users_release(&users);
			return r;
		}
		eng_io_sleep_ns(store->io, 1000000);
	}
	return r;
}

/* PU-5: until all have let go, or we are wanted elsewhere, which leaves the slots for another time. */
static int wait_for(struct eng_folder *folder, struct barrier *b)
{
	uint64_t now = eng_io_now_ns(folder->store->io), end = now + CLAIM_NS;
	bool done;
	int r;

	pthread_mutex_lock(&folder->lock);
	while (b->state == WAITING && !atomic_load(&folder->cancel) && now < end) {
		struct timespec ts;

		now += NAP_NS; /* nobody wakes us to tell of a cancel */
		ts.tv_sec = (time_t)(now / 1000000000u);
		ts.tv_nsec = (long)(now % 1000000000u);
		pthread_cond_timedwait(&folder->changed, &folder->lock, &ts);
		now = eng_io_now_ns(folder->store->io);
	}
	done = b->state == LET_GO;
	r = done ? b->result : -EBUSY;
	if (!done)
		b->state = LEFT; /* its last worker frees it */
	pthread_mutex_unlock(&folder->lock);
	if (done)
		barrier_free(b);
	return r;
}

/* --- all of it --- */

static int make_holes(struct punch *p)
{
	struct eng_folder *folder = p->folder;
	uint64_t done = 0;
	int r;

	/* The list as it is on the disk: what is not in it stays. */
	eng_layer_put(p->files.lower);
	p->files.lower = NULL;
	r = eng_store_open_layer(folder->store, &p->lower, true, p->err, &p->files.lower);
	if (r == 0)
		r = eng_punch_do(&p->files, p->err, &done);
	pthread_mutex_lock(&folder->lock);
	folder->stats.punches += done > 0;
	folder->stats.punched += done;
	pthread_mutex_unlock(&folder->lock);
	return r;
}

static int punch(struct punch *p)
{
	struct barrier *b = calloc(1, sizeof(*b));
	int r = b ? 0 : -ENOMEM;

	if (r == 0) /* PU-4: the list that a durable header names is never written over */
		r = eng_layer_settle_header(p->files.lower, p->err);
	if (r == 0)
		r = is_listed(p) ? 0 : write_list(p);
	if (r == 0)
		r = claim(p, b);
	if (r < 0) {
		if (p->may_drop)
			eng_gone_drop(p->files.lower, &p->place);
		if (b)
			barrier_free(b);
		return r;
	}
	r = wait_for(p->folder, b);
	return r == 0 ? make_holes(p) : r;
}

static int consider(struct punch *p, uint64_t worth)
{
	int r;

	if (bytes_seen(p->folder, p) < worth)
		return 0;
	r = open_files(p);
	if (r == 0)
		r = eng_punch_find(&p->files, p->err, &p->list);
	if (r < 0)
		return r;
	if (p->list.bytes < worth) {
		note_seen(p->folder, p, p->list.bytes);
		return 0;
	}
	r = punch(p);
	if (r == 0)
		note_seen(p->folder, p, 0);
	return r < 0 ? r : 1;
}

int eng_punch_disk(struct eng_folder *folder, const struct fmt_uuid *disk, bool all,
		   struct fmt_error *err)
{
	uint64_t worth = shortest(folder) * (all ? 1 : WORTH);
	struct eng_store *store = folder->store;
	struct cat_layer *rows = NULL;
	size_t n = 0;
	int r;

	if (shortest(folder) == UINT64_MAX || folder->cannot_punch)
		return 0;
	if (eng_garbage_is_read(store, disk))
		return -EBUSY;
	r = eng_catalog_list_layers(store->catalog, disk, &rows, &n);
	for (size_t i = 0; r == 0 && i < n; i++) {
		struct punch p = {.folder = folder, .lower = rows[i], .err = err};
		bool joined = false, sealed = false;

		r = eng_fold_joins(store, &rows[i], &joined, &p.upper);
		if (r == 0 && joined)
			r = eng_fold_beneath_is_sealed(store, &rows[i], &sealed);
		if (r == 0 && joined && sealed)
			r = consider(&p, worth);
		forget_list(&p);
		eng_layer_put(p.files.lower);
		eng_layer_put(p.files.upper);
	}
	free(rows);
	folder->cannot_punch = r == -EOPNOTSUPP;
	return r;
}
