/* SPDX-License-Identifier: MIT */
/*
 * fold_run.c - one fold of one disk: what is joined, the build (fold_build.c), the commit, and the
 * inputs' removal (FO-*).
 *
 * The build holds nothing locked and may take any time; the commit claims the disk for one transaction,
 * looks at everything again, and hands the result to the disk's worker (swap.c). The inputs' files go
 * when the worker has let go of them. A crash before the commit leaves a file without a row, one after
 * it the inputs' files without rows: leaks that the next open removes (RV-9). The folder's thread, but
 * for the ends of swaps.
 */
#include "engine/fold/fold_impl.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/store/garbage.h"
#include "engine/space/guard.h"

#define CLAIM_NS (10 * 1000000000ull)

/* --- planning --- */

int eng_fold_joins(struct eng_store *store, const struct cat_layer *row, bool *ret,
		   struct cat_layer *child)
{
	struct cat_layer *children = NULL;
	size_t n = 0;
	int r = 0;

	*ret = false;
	if (row->kind != FMT_KIND_OVERLAY || row->state != CAT_LAYER_SEALED ||
	    !fmt_uuid_is_none(&row->snapshot))
		return 0;
	r = eng_catalog_list_children(store->catalog, &row->id, &children, &n);
	if (r == 0 && n == 1 && children[0].state == CAT_LAYER_SEALED &&
	    children[0].kind == FMT_KIND_OVERLAY && fmt_uuid_equal(&children[0].disk, &row->disk)) {
		*child = children[0];
		*ret = true;
	}
	free(children);
	return r;
}

/* The longest run that begins with @row: @run has room for ENG_FOLD_MAX. */
static int follow(struct eng_store *store, const struct cat_layer *row, struct cat_layer *run,
		  size_t *count)
{
	bool more = true;
	int r = 0;

	run[0] = *row;
	*count = 1;
	while (r == 0 && more && *count < ENG_FOLD_MAX) {
		r = eng_fold_joins(store, &run[*count - 1], &more, &run[*count]);
		*count += r == 0 && more;
	}
	return r;
}

/* D-3: what lies beneath the run must answer through indexes, or no disk could put it in place. */
int eng_fold_beneath_is_sealed(struct eng_store *store, const struct cat_layer *row, bool *ret)
{
	struct cat_layer *chain = NULL;
	size_t n = 0;
	int r = eng_catalog_chain(store->catalog, &row->id, &chain, &n);

	*ret = r == 0;
	for (size_t i = 0; r == 0 && i + 1 < n; i++)
		*ret = *ret &&
		       (chain[i].kind != FMT_KIND_OVERLAY || chain[i].state == CAT_LAYER_SEALED);
	free(chain);
	return r;
}

static bool is_in(const struct cat_layer *rows, size_t n, const struct fmt_uuid *id)
{
	for (size_t i = 0; i < n; i++)
		if (fmt_uuid_equal(&rows[i].id, id))
			return true;
	return false;
}

/*
 * PU-6: what is gone of a layer is held by the one on top of it, so that one is folded too; the longer fold,
 * or where there is none on top in this run, the shorter one. *@n may come to be 0.
 */
static int mind_gone(struct eng_store *store, const struct cat_layer *run, size_t end, size_t first,
		     size_t *n)
{
	bool gone = *n > 0, up = true;
	int r = 0;

	while (r == 0 && gone) {
		struct eng_layer *top = NULL;

		r = eng_store_open_layer(store, &run[first + *n - 1], false, NULL, &top);
		if (r < 0)
			break;
		gone = top->gone != NULL;
		eng_layer_put(top);
		up = up && first + *n < end;
		if (gone)
			*n = up ? *n + 1 : *n - 1;
		gone = gone && *n;
	}
	return r;
}

/* What to do with the @count layers of @run: rows of @f, or none. */
static int choose(struct fold *f, const struct cat_layer *run, size_t count, bool patient,
		  bool *later)
{
	struct eng_store *store = f->folder->store;
	uint64_t bytes[ENG_FOLD_MAX];
	size_t first = 0, least;
	bool sealed;
	int r = eng_fold_base_fits(store, run, count, &f->into_base, &f->base);

	if (r < 0 || (count < 2 && !f->into_base))
		return r;
	r = eng_fold_beneath_is_sealed(store, &run[0], &sealed);
	if (r < 0 || !sealed)
		return r;
	for (size_t j = 0; j < count; j++)
		bytes[j] = eng_store_layer_bytes(store, &run[j]);
	*later = true;
	if (f->into_base && !eng_fold_pick_base(bytes, count, patient))
		return 0;
	if (f->into_base)
		r = eng_fold_base_grows(store, &f->base, run, count, &f->into_base);
	if (r < 0)
		return r;
	if (f->into_base)
		f->count = count;
	else if (count >= 2)
		eng_fold_pick(bytes, count, patient, &first, &f->count);
	least = f->into_base ? 1 : 2;
	r = mind_gone(store, run, count, first, &f->count);
	if (r < 0 || f->count < least) {
		f->count = 0;
		return r;
	}
	r = f->into_base ? eng_guard_fold_base(store, &f->base, run, bytes, &f->count)
			 : eng_guard_fold(store, bytes, count, &first, &f->count); /* SG-4 */
	if (r == 0) /* what has room, and no more than that */
		r = mind_gone(store, run, first + f->count, first, &f->count);
	if (r == 0 && f->count < least)
		r = -ENOSPC;
	if (r < 0) {
		f->count = 0;
		return r;
	}
	f->rows = calloc(f->count, sizeof(*f->rows));
	if (!f->rows)
		return -ENOMEM;
	memcpy(f->rows, run + first, f->count * sizeof(*f->rows));
	return 0;
}

/*
 * Finds what to fold of the disk: rows of @f, lowest first; none: count 0. *@later: something is worth a
 * fold once the disk is in peace.
 */
static int plan(struct fold *f, const struct fmt_uuid *disk, bool patient, bool *later)
{
	struct eng_store *store = f->folder->store;
	struct cat_layer *all = NULL, *run = calloc(ENG_FOLD_MAX, sizeof(*run));
	size_t n = 0, count = 0;
	bool full = false;
	int r = run ? eng_catalog_list_layers(store->catalog, disk, &all, &n) : -ENOMEM;

	*later = false;
	for (size_t i = 0; r == 0 && i < n && !f->count; i++) {
		if (is_in(run, count, &all[i].id))
			continue; /* inside the run that was found last */
		r = follow(store, &all[i], run, &count);
		if (r == 0)
			r = choose(f, run, count, patient, later);
		if (r == -ENOSPC) { /* others may be smaller */
			full = true;
			r = 0;
		}
	}
	if (r == 0 && full && !f->count)
		r = -ENOSPC;
	free(all);
	free(run);
	return r;
}

/* --- building --- */

bool eng_fold_stopped(void *arg)
{
	const struct fold *f = arg;

	return atomic_load(&f->folder->cancel) || eng_progress_stop(f->progress);
}

static int open_inputs(struct fold *f, struct fmt_error *err)
{
	int r = 0;

	f->inputs = calloc(f->count, sizeof(struct eng_layer *));
	f->ids = calloc(f->count + 1, sizeof(*f->ids));
	if (!f->inputs || !f->ids)
		return -ENOMEM;
	f->ids[0] = f->base.id; /* a base's ordinal is one of those, too (SW-1) */
	for (size_t i = 0; r == 0 && i < f->count; i++) {
		f->ids[i + f->into_base] = f->rows[i].id;
		r = eng_store_open_layer(f->folder->store, &f->rows[i], false, err, &f->inputs[i]);
	}
	return r;
}

/* Unless it is there. */
static int add_replaced(struct fold *f, struct fmt_header *hdr, const struct fmt_uuid *id,
			const uint8_t hash[16], struct fmt_error *err)
{
	for (uint32_t i = 0; i < hdr->replaced_count; i++)
		if (fmt_uuid_equal(&hdr->replaced[i].id, id))
			return 0;
	if (hdr->replaced_count == FMT_REPLACED_MAX)
		return fmt_fail(err, -EUCLEAN, "%s: its children name more than %u layers (FD-1)",
				f->inputs[f->count - 1]->path, FMT_REPLACED_MAX);
	hdr->replaced[hdr->replaced_count].id = *id;
	memcpy(hdr->replaced[hdr->replaced_count++].hash, hash, 16);
	return 0;
}

int eng_fold_note_replaced(struct fold *f, struct fmt_header *hdr, struct fmt_error *err)
{
	struct eng_store *store = f->folder->store;
	const struct fmt_header *top = &f->inputs[f->count - 1]->hdr;
	struct cat_layer *children = NULL;
	size_t n = 0;
	int r = eng_catalog_list_children(store->catalog, &f->rows[f->count - 1].id, &children, &n);

	if (r == 0)
		r = add_replaced(f, hdr, &top->layer_id, top->seal_hash, err);
	for (size_t i = 0; r == 0 && i < n; i++) {
		struct eng_layer *child = NULL;
		const uint8_t *hash;

		r = eng_store_open_layer(store, &children[i], false, err, &child);
		if (r < 0)
			break;
		hash = fmt_header_hash_for(top, &child->hdr.parent_id);
		r = hash ? add_replaced(f, hdr, &child->hdr.parent_id, hash, err)
			 : fmt_fail(err, -EUCLEAN, "%s: does not stand on %s (FD-2)", child->path,
				    f->inputs[f->count - 1]->path);
		eng_layer_put(child);
	}
	free(children);
	return r;
}

/* SL-4: of the layer that it will stand on, which may be another than its lowest input named. */
static int beneath_hash(struct fold *f, uint8_t hash[16], struct fmt_error *err)
{
	struct eng_store *store = f->folder->store;
	struct eng_layer *beneath = NULL;
	struct cat_layer row;
	int r;

	if (fmt_uuid_is_none(&f->rows[0].parent))
		return 0;
	r = eng_catalog_get_layer(store->catalog, &f->rows[0].parent, &row);
	if (r == 0 && row.kind == FMT_KIND_OVERLAY)
		r = eng_store_open_layer(store, &row, false, err, &beneath);
	if (r == 0 && beneath)
		memcpy(hash, beneath->hdr.seal_hash, 16);
	eng_layer_put(beneath);
	return r;
}

static int set_up(struct fold *f, struct fmt_error *err)
{
	struct eng_fold_build *b = &f->build;
	struct eng_store *store = f->folder->store;
	const struct fmt_header *top = &f->inputs[f->count - 1]->hdr;
	const struct cat_layer *row = &f->rows[f->count - 1];
	int r;

	b->io = store->io;
	b->hold = store->lock_file;
	b->inputs = f->inputs;
	b->count = (uint32_t)f->count;
	b->progress = f->progress;
	b->stop = eng_fold_stopped;
	b->arg = f;
	b->spec.store = store->id;
	b->spec.disk = row->disk;
	eng_store_new_id(store, &b->spec.layer);
	b->spec.parent = f->rows[0].parent;
	b->spec.generation = fmt_uuid_is_none(&b->spec.parent) ? 0 : row->generation;
	for (size_t i = 0; i < f->count;
	     i++) /* RZ-2: also what a smaller one above does not reach */
		if (f->inputs[i]->hdr.size > b->spec.size)
			b->spec.size = f->inputs[i]->hdr.size;
	b->spec.block_bits = top->block_bits;
	b->spec.direct = store->direct;
	b->spec.path = eng_store_layer_path(store, &b->spec.layer, "vmo");
	if (!b->spec.path)
		return -ENOMEM;
	b->boundary.snapshot_id = top->snapshot_id;
	b->boundary.snapshot_members = top->snapshot_members;
	b->boundary.snapshot_index = top->snapshot_index;
	r = beneath_hash(f, b->parent_hash, err);
	return r < 0 ? r : eng_fold_note_replaced(f, &b->boundary, err);
}

static int build(struct fold *f, struct fmt_error *err)
{
	int r = open_inputs(f, err);

	if (r == 0 && !f->into_base)
		r = set_up(f, err);
	if (r < 0)
		return r;
	r = f->into_base ? eng_fold_base_copy(f, err) : eng_fold_build(&f->build, err, &f->result);
	if (r == 0 && !f->into_base)
		r = eng_io_sync_dir(f->folder->store->io, f->folder->store->layers_dir);
	return r;
}

/* --- the commit: the disk is claimed --- */

/* T25, rechecked: nothing between the inputs, nobody else on them, the same boundary on top. */
static int recheck(struct fold *f, struct fmt_error *err)
{
	struct eng_store *store = f->folder->store;
	const struct cat_layer *last = &f->rows[f->count - 1];
	struct fmt_header now = {0};
	struct cat_layer row, child;
	struct cat_snapshot snap;
	bool joined;
	int r = 0;

	for (size_t i = 0; r == 0 && i + 1 < f->count; i++) {
		r = eng_catalog_get_layer(store->catalog, &f->rows[i].id, &row);
		if (r == 0)
			r = eng_fold_joins(store, &row, &joined, &child);
		if (r == 0 && (!joined || !fmt_uuid_equal(&child.id, &f->rows[i + 1].id)))
			r = -ESTALE;
	}
	if (r == 0)
		r = eng_catalog_get_layer(store->catalog, &last->id, &row);
	if (r == 0 && !fmt_uuid_equal(&row.snapshot, &last->snapshot))
		r = -ESTALE;
	/* FO-6: one that is being deleted must not go on in the result's header. */
	if (r == 0 && !fmt_uuid_is_none(&row.snapshot))
		r = eng_catalog_get_snapshot_id(store->catalog, &row.snapshot, &snap);
	if (r == 0 && !fmt_uuid_is_none(&row.snapshot) && snap.state != CAT_SNAPSHOT_COMPLETE)
		r = -ESTALE;
	if (r == 0)
		r = eng_catalog_get_layer(store->catalog, &f->rows[0].id, &row);
	if (r == 0 && !fmt_uuid_equal(&row.parent, &f->rows[0].parent))
		r = -ESTALE;
	if (r < 0 || f->into_base)
		return r;
	r = eng_fold_note_replaced(f, &now, err);
	for (uint32_t i = 0; r == 0 && i < now.replaced_count; i++)
		if (!fmt_header_hash_for(&f->result->hdr, &now.replaced[i].id))
			r = -ESTALE;
	return r;
}

/* @row takes the inputs' place. */
int eng_fold_put_rows(struct fold *f, const struct cat_layer *row, struct fmt_error *err)
{
	struct eng_store *store = f->folder->store;
	struct eng_catalog *cat = store->catalog;
	int r = eng_catalog_begin(cat);

	if (r < 0)
		return r;
	r = eng_refpoint_moves_put(cat, f->points, &row->id); /* T29 */
	if (r < 0) {
		eng_catalog_rollback(cat);
		return r;
	}
	if (!eng_progress_decide(f->progress)) {
		eng_catalog_rollback(cat);
		return -ECANCELED;
	}
	eng_catalog_put_layer(cat, row);
	eng_catalog_replace_layer(cat, &f->rows[f->count - 1].id, &row->id);
	for (size_t i = f->count; i-- > 0;)
		eng_catalog_remove_layer(cat, &f->rows[i].id);
	eng_catalog_put_completed(cat, eng_progress_job(f->progress), NULL,
				  eng_io_wall_ns(store->io));
	return eng_catalog_commit(cat, err);
}

static int put_result(struct fold *f, struct fmt_error *err)
{
	const struct cat_layer *last = &f->rows[f->count - 1];
	struct cat_layer row = {
		.id = f->build.spec.layer,
		.disk = last->disk,
		.parent = f->build.spec.parent,
		.kind = FMT_KIND_OVERLAY,
		.state = CAT_LAYER_SEALED,
		.generation = f->build.spec.generation,
		.snapshot = last->snapshot,
		.created_ns = f->result->hdr.created_ns,
	};

	return eng_fold_put_rows(f, &row, err);
}

static void fold_free(struct fold *f)
{
	for (size_t i = 0; f->inputs && i < f->count; i++)
		eng_layer_put(f->inputs[i]);
	eng_layer_put(f->result);
	eng_layer_put(f->base_layer);
	eng_refpoint_moves_destroy(f->points);
	free((char *)f->build.spec.path);
	free(f->inputs);
	free(f->ids);
	free(f->rows);
	free(f);
}

/* The last step: nothing names the inputs any more, and nobody reads them. */
static void remove_inputs(struct fold *f)
{
	struct eng_folder *folder = f->folder;
	struct eng_store *store = folder->store;

	for (size_t i = 0; i < f->count; i++)
		eng_io_unlink(store->io, f->inputs[i]->path);
	eng_io_sync_dir(store->io, store->layers_dir);
	fold_free(f);
	pthread_mutex_lock(&folder->lock);
	folder->swaps--;
	pthread_cond_broadcast(&folder->changed);
	pthread_mutex_unlock(&folder->lock);
}

static void task_removal(struct eng_task *task)
{
	remove_inputs((struct fold *)((char *)task - offsetof(struct fold, removal)));
}

/* No disk uses the inputs any more; or one does until it is detached, and the next open removes them
 * (RV-9). On a worker, or on our own thread. */
static void swap_done(void *arg, int result)
{
	struct fold *f = arg;
	struct eng_folder *folder = f->folder;

	if (result == 0) {
		f->removal.run = task_removal;
		eng_pool_submit(folder->store->pool, ENG_POOL_NORMAL, &f->removal);
		return;
	}
	fold_free(f);
	pthread_mutex_lock(&folder->lock);
	folder->swaps--;
	pthread_cond_broadcast(&folder->changed);
	pthread_mutex_unlock(&folder->lock);
}

/* Takes @f over on success. */
static int commit_claimed(struct fold *f, struct eng_users *users, struct fmt_error *err)
{
	struct eng_folder *folder = f->folder;
	int r = recheck(f, err);

	if (r == 0)
		r = f->into_base ? eng_fold_base_commit(f, eng_users_are_attached(users), err)
				 : put_result(f, err);
	if (r < 0)
		return r;
	pthread_mutex_lock(&folder->lock);
	folder->swaps++;
	folder->stats.folds++;
	folder->stats.bytes += atomic_load(&f->progress->total);
	folder->progress = NULL; /* nobody can stop it now, and @f may be gone at any time */
	pthread_mutex_unlock(&folder->lock);
	eng_users_swap(users, f->result, f->ids, (uint32_t)f->count + f->into_base, swap_done, f);
	return 0;
}

/* Who has a disk may be about to remove it, and wait for us: so never in one long wait. */
static int commit(struct fold *f, struct fmt_error *err)
{
	struct eng_store *store = f->folder->store;
	uint64_t end = eng_io_now_ns(store->io) + CLAIM_NS;
	struct eng_users users;
	int r = -EBUSY;

	while (r == -EBUSY && !eng_fold_stopped(f) && eng_io_now_ns(store->io) < end) {
		/* FO-4: all that stand on them, clones too. */
		r = eng_users_claim(store, &f->rows[f->count - 1].id, &users);
		if (r == 0) {
			r = commit_claimed(f, &users, err);
			eng_users_release(&users);
			return r;
		}
		eng_io_sleep_ns(store->io, 1000000);
	}
	return r;
}

/* --- all of it --- */

/* From here to end() the fold is known, and can be cancelled. */
static void begin(struct fold *f)
{
	struct eng_folder *folder = f->folder;
	struct eng_progress *p = NULL;

	if (folder->watch.begin)
		p = folder->watch.begin(folder->watch.arg, &f->rows[0].disk, (uint32_t)f->count);
	f->progress = p ? p : &f->own;
	pthread_mutex_lock(&folder->lock);
	atomic_store(&f->progress->rate, atomic_load(&folder->rate));
	if (atomic_load(&folder->cancel))
		atomic_store(&f->progress->cancel, true);
	folder->progress = f->progress;
	folder->stats.layers = (uint32_t)f->count;
	pthread_mutex_unlock(&folder->lock);
}

/* @p is the fold's, which may be gone when it went well, or NULL where nobody watches. */
static void end(struct eng_folder *folder, struct eng_progress *p, int r,
		const struct fmt_error *err)
{
	pthread_mutex_lock(&folder->lock);
	folder->progress = NULL;
	folder->stats.layers = 0;
	pthread_mutex_unlock(&folder->lock);
	if (p)
		folder->watch.end(folder->watch.arg, p, r, err);
}

/* PU-3: no fold is due (@r 0), or none has room. What keeps a punch from its end keeps nothing else. */
static int punch_instead(struct eng_folder *folder, const struct fmt_uuid *disk, int r,
			 struct fmt_error *err, bool *later)
{
	struct fmt_error why = {""};
	int punched = eng_punch_disk(folder, disk, r == -ENOSPC, &why);

	if (punched == -EBUSY || punched == -ESTALE)
		*later = true;
	if (punched == -EBUSY || punched == -ESTALE || punched == -ENOSPC ||
	    punched == -EOPNOTSUPP || punched == 0)
		return r;
	if (punched < 0 && err)
		*err = why;
	return punched;
}

/*
 * Nothing is claimed until the commit: a deletion, or a revert, may take away what was found. That is no
 * failure of the fold's; what is wrong with a layer that is there is one.
 */
static int stale_if_gone(struct eng_store *store, const struct cat_layer *rows, size_t count, int r)
{
	struct cat_layer now;

	for (size_t i = 0; r < 0 && r != -ECANCELED && i < count; i++)
		if (eng_catalog_get_layer(store->catalog, &rows[i].id, &now) == -ENOENT)
			return -ESTALE;
	return r;
}

int eng_fold_disk(struct eng_folder *folder, const struct fmt_uuid *disk, bool patient,
		  struct fmt_error *err, bool *later)
{
	struct fold *f = calloc(1, sizeof(*f));
	struct eng_progress *watched;
	uint64_t changes;
	int r;

	if (!f)
		return -ENOMEM;
	f->folder = folder;
	changes = eng_catalog_changes(folder->store->catalog);
	r = plan(f, disk, patient, later);
	if ((r == 0 && !f->count) || r == -ENOSPC)
		r = punch_instead(folder, disk, r, err, later);
	if (r == -ENOENT && eng_catalog_changes(folder->store->catalog) != changes)
		r = -ESTALE; /* a layer that was found and taken away; if not, the next look says so */
	if (r == -ENOSPC)
		r = fmt_fail(err, r, "joining layers waits for free space (SG-4)");
	/*
	 * FO-5: there would be no commit, so nothing is built either. FO-11: into the base nothing may be:
	 * who reads now may stand beneath the topmost input, who begins later finds no snapshot there.
	 */
	if (r == 0 && f->count && eng_garbage_is_read(folder->store, disk))
		r = fmt_fail(err, -EBUSY, "a snapshot of the disk is being read");
	if (r != 0 || !f->count)
		goto out;
	begin(f);
	watched = f->progress == &f->own ? NULL : f->progress;
	r = build(f, err);
	if (r == 0) {
		r = eng_refpoint_moves_prepare(folder->store, f->into_base ? &f->base.id : NULL,
					       f->inputs, f->count, err, &f->points);
		if (r == 0)
			r = commit(f, err);
		if (r == 0)
			f = NULL; /* its swap's, or gone */
		/* T23: with a COMMIT of unknown outcome either may be what the next open finds. */
		else if (!f->into_base && !eng_catalog_poisoned(folder->store->catalog))
			eng_io_unlink(folder->store->io, f->result->path);
	}
	if (f)
		r = stale_if_gone(folder->store, f->rows, f->count, r);
	end(folder, watched, r, err);
	r = r < 0 ? r : 1;
out:
	if (f)
		fold_free(f);
	return r;
}

int eng_fold_ahead(struct eng_folder *folder, const struct fmt_uuid *disk, bool patient,
		   uint64_t *ret)
{
	struct fold *f = calloc(1, sizeof(*f));
	uint64_t bytes = 0;
	bool later;
	int r;

	if (!f)
		return -ENOMEM;
	f->folder = folder;
	r = plan(f, disk, patient, &later);
	for (size_t i = 0; r == 0 && i < f->count; i++)
		bytes += eng_store_layer_bytes(folder->store, &f->rows[i]);
	fold_free(f);
	if (r == 0)
		*ret = bytes;
	return r;
}
