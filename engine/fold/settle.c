/* SPDX-License-Identifier: MIT */
/*
 * settle.c - waiting until the background has done what there is to do: seals first, for only sealed
 * layers are folded, then the folds that pay. Does nothing itself but roll the heads that hide much, once,
 * and look, a few times a second. Any thread.
 *
 * Progress counts the layers that a disk's fold joins, as they lie there: what a fold has still to
 * join afterwards is not ahead yet, so the estimate only ever grows by what is new.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "engine/fold/fold_impl.h"
#include "engine/snapshot/snapshot.h"

#define LOOK_NS 20000000u

struct disk {
	struct fmt_uuid id;
	uint64_t ahead; /* bytes that its folds join; known once sealed */
	bool counted, ended;
};

struct settle {
	struct eng_store *store;
	struct disk *disks;
	size_t count;
	bool whole;
	struct eng_progress *p;
	uint64_t shown; /* of p->done: it never falls */
};

static int find_disks(struct settle *s, const struct fmt_uuid *disks, size_t count)
{
	struct cat_disk *rows = NULL;
	size_t n = count;
	int r = count ? 0 : eng_catalog_list_disks(s->store->catalog, NULL, &rows, &n);

	if (r == 0) {
		s->disks = calloc(n ? n : 1, sizeof(*s->disks));
		r = s->disks ? 0 : -ENOMEM;
	}
	for (size_t i = 0; r == 0 && i < n; i++) {
		s->disks[i].id = count ? disks[i] : rows[i].id;
		eng_folder_try(s->store->folder, &s->disks[i].id);
	}
	s->count = n;
	free(rows);
	return r;
}

/* FO-19, once: what guests write from now on is not waited for. A disk that is busy is left alone. */
static int roll_heads(struct settle *s, struct fmt_error *err)
{
	struct fmt_error why = {""};
	int first = 0;

	for (size_t i = 0; i < s->count && !eng_progress_stop(s->p); i++) {
		int r = eng_roll_disk(s->store, &s->disks[i].id, s->whole, &why);

		if (r < 0 && r != -EBUSY && !first)
			first = fmt_fail(err, r, "cannot fold a head: %s",
					 why.text[0] ? why.text : strerror(-r));
	}
	return first;
}

/* Once, when everything is sealed. */
static void count_ahead(struct settle *s)
{
	uint64_t total = 0;

	for (size_t i = 0; i < s->count; i++) {
		struct disk *d = &s->disks[i];

		/* An estimate: without memory for it there is none. */
		if (!d->counted)
			eng_fold_ahead(s->store->folder, &d->id, !s->whole, &d->ahead);
		d->counted = true;
		total += d->ahead;
	}
	eng_progress_start(s->p, total);
}

static void show(struct settle *s, double done)
{
	uint64_t now = (uint64_t)done;

	if (now > s->shown) {
		eng_progress_add(s->p, now - s->shown);
		s->shown = now;
	}
}

/* 1: something is pending; 0: nothing is; an error: what stands in the way. */
static int look(struct settle *s, struct fmt_error *err)
{
	bool pending = false;
	double done = 0;
	int failed = 0;

	if (atomic_load(&s->store->seals))
		return 1;
	count_ahead(s);
	for (size_t i = 0; i < s->count; i++) {
		struct disk *d = &s->disks[i];
		struct eng_folder_rest rest;

		eng_folder_rest(s->store->folder, &d->id, s->whole, &rest);
		pending = pending || rest.active || rest.removing || (rest.pending && !rest.failed);
		/* Whatever comes after its first fold is not ahead any more. */
		if (!rest.pending)
			d->ended = true;
		done += (double)d->ahead * (d->ended ? 1 : rest.done);
		if (rest.failed && !failed)
			failed = fmt_fail(err, rest.failed, "cannot fold: %s",
					  rest.why.text[0] ? rest.why.text
							   : strerror(-rest.failed));
	}
	show(s, done);
	return pending ? 1 : failed; /* the others' space comes back first */
}

int eng_store_settle(struct eng_store *store, const struct fmt_uuid *disks, size_t count,
		     bool whole, uint64_t deadline_ns, struct eng_progress *p,
		     struct fmt_error *err)
{
	struct settle s = {.store = store, .whole = whole, .p = p};
	int r = find_disks(&s, disks, count);
	int rolled = r == 0 ? roll_heads(&s, err) : 0;

	while (r == 0) {
		r = look(&s, err);
		if (r <= 0)
			break;
		r = 0;
		if (eng_progress_stop(p))
			r = fmt_fail(err, -ECANCELED, "not waited for: space is given back later");
		else if (eng_io_now_ns(store->io) >= deadline_ns)
			r = fmt_fail(err, -ETIMEDOUT, "space is still being given back");
		else
			eng_io_sleep_ns(store->io, LOOK_NS);
	}
	free(s.disks);
	return r < 0 ? r : rolled;
}
