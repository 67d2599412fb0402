/* SPDX-License-Identifier: MIT */
/*
 * recover.c - what is done at open after an unclean end (RV-*, T20, T21, T22).
 *
 * Decided from what the files say, in an order that a crash of the recovery itself may interrupt
 * anywhere: logs and journals are made durable first, boundaries cleared next, then one transaction,
 * then files go. A disk whose own files cannot be trusted is refused; the others open.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/fold/fold.h"
#include "engine/store/store.h"

#define JOB_DELETION   72
#define JOB_CREATION   198
#define JOB_CONVERSION 200

struct rlayer {
	struct cat_layer row;
	struct eng_layer *layer; /* NULL: its file is missing */
	bool holds, keep;
};

struct rdisk {
	struct cat_disk row;
	struct rlayer *layers; /* PENDING and ACTIVE ones, oldest first */
	size_t count;
	struct fmt_uuid head; /* as decided */
	bool refused;
};

struct recovery {
	struct eng_store *store;
	struct rdisk *disks;
	size_t count;
	struct cat_snapshot *snapshots; /* INTENT and DELETING */
	size_t snapshot_count;
	uint8_t boot_id[16];
};

/* --- replaying one layer --- */

struct replayed {
	struct eng_layer *layer;
	uint64_t blocks, slots;
	struct fmt_error *err;
	uint64_t runs;
};

static int count_run(void *arg, const struct fmt_run *run)
{
	(void)run;
	((struct replayed *)arg)->runs++;
	return 0;
}

static int journal_run(void *arg, uint64_t number, const struct fmt_run *run)
{
	struct replayed *rp = arg;
	struct eng_layer *layer = rp->layer;
	struct fmt_error why = {{0}};
	int r = fmt_run_check(run, rp->blocks, rp->slots, &why);

	if (r < 0)
		return fmt_fail(rp->err, r, "%s: journal entry %llu: %s", layer->path,
				(unsigned long long)number, why.text);
	if (run->kind == FMT_RUN_DATA && run->slot + run->count > layer->next_slot)
		layer->next_slot = run->slot + run->count;
	rp->runs++;
	return eng_layer_add_pending(layer, run, number);
}

/* JN-2: a head of this boot without its journal is an error, not silence. */
static int replay_journal(struct recovery *rc, struct eng_layer *layer, const struct fmt_uuid *disk,
			  struct replayed *rp, struct fmt_error *err)
{
	static const uint8_t none[16];
	struct fmt_uuid name = eng_store_journal_id(rc->store, disk);
	struct eng_journal *j = NULL;
	uint32_t tag;
	int r;

	if (!memcmp(layer->hdr.boot_id, none, 16) || memcmp(layer->hdr.boot_id, rc->boot_id, 16))
		return 0;
	r = eng_journal_open(rc->store->io, &rc->store->id, &name, &j);
	if (r == 0 && eng_journal_nonce(j) != layer->hdr.journal_nonce)
		r = -EUCLEAN;
	if (r < 0) {
		eng_journal_close(j);
		return fmt_fail(
			err, -EUCLEAN,
			"%s: was written since this host started, and its journal is %s (JN-2)",
			layer->path, r == -ENOENT ? "gone" : "not its own");
	}
	r = eng_journal_find_layer(j, &layer->id, layer->dev, layer->ino, &tag);
	if (r == 0)
		r = eng_journal_each(j, tag, layer->log.journal_seq, journal_run, rp);
	else if (r == -ENOENT)
		r = 0; /* JN-7: nothing was published to it */
	else
		r = fmt_fail(err, r, "%s: its journal belongs to another file (JN-2)", layer->path);
	eng_journal_close(j);
	return r;
}

/* RV-3, RV-5: everything the dead process wrote is made durable before it counts. */
static int replay_layer(struct recovery *rc, struct rlayer *rl, const struct fmt_uuid *disk,
			struct fmt_error *err)
{
	struct eng_layer *layer = rl->layer;
	uint64_t bs = 1ull << layer->block_bits;
	struct replayed rp = {
		.layer = layer,
		.err = err,
		.blocks = (atomic_load(&layer->size) + bs - 1) / bs,
	};
	struct eng_stat st;
	int r = eng_io_fdatasync(layer->io, layer->file);

	if (r < 0)
		return fmt_fail(err, r, "%s: fdatasync: %s", layer->path, strerror(-r));
	if (layer->kind != FMT_KIND_OVERLAY) {
		rl->holds = true;
		return 0;
	}
	r = eng_log_replay(layer, count_run, &rp, err);
	if (r == 0)
		r = eng_io_fstat(layer->io, layer->file, &st);
	if (r < 0)
		return r;
	rp.slots = st.size > layer->data_offset ? (st.size - layer->data_offset) / bs : 0;
	r = replay_journal(rc, layer, disk, &rp, err);
	if (r == 0 && layer->pending_count) {
		r = eng_layer_harden_sync(layer);
		if (r < 0)
			fmt_fail(err, r, "%s: cannot log the journal's entries: %s", layer->path,
				 strerror(-r));
	}
	rl->holds = rp.runs > 0;
	return r;
}

/* --- one disk --- */

static bool is_child(const struct rdisk *d, const struct rlayer *parent)
{
	for (size_t i = 0; i < d->count; i++)
		if (d->layers[i].keep && fmt_uuid_equal(&d->layers[i].row.parent, &parent->row.id))
			return true;
	return false;
}

/* T21, RV-4: newest first, so that a removed child does not hold its parent. */
static void decide(struct rdisk *d)
{
	uint64_t newest = 0;

	for (size_t i = d->count; i-- > 0;) {
		struct rlayer *rl = &d->layers[i];

		rl->keep = rl->row.state == CAT_LAYER_ACTIVE ||
			   (rl->layer && (rl->holds || is_child(d, rl)));
	}
	d->head = d->row.head;
	for (size_t i = 0; i < d->count; i++)
		if (d->layers[i].keep && d->layers[i].row.generation >= newest) {
			newest = d->layers[i].row.generation;
			d->head = d->layers[i].row.id;
		}
}

static int recover_disk(struct recovery *rc, struct rdisk *d, struct fmt_error *err)
{
	struct cat_layer *rows = NULL;
	size_t n = 0;
	int r = eng_catalog_list_layers(rc->store->catalog, &d->row.id, &rows, &n);

	if (r < 0)
		return fmt_fail(err, r, "cannot list the layers of %s/%s", d->row.vm_name,
				d->row.name);
	d->layers = calloc(n + 1, sizeof(*d->layers));
	if (!d->layers)
		r = -ENOMEM;
	for (size_t i = 0; r == 0 && i < n; i++) {
		struct rlayer *rl = &d->layers[d->count];

		if (rows[i].state != CAT_LAYER_PENDING && rows[i].state != CAT_LAYER_ACTIVE) {
			r = eng_fold_base_recover(rc->store, &rows[i], err);
			continue;
		}
		rl->row = rows[i];
		d->count++;
		r = eng_store_open_layer(rc->store, &rl->row, true, err, &rl->layer);
		if (r == -ENOENT && rl->row.state == CAT_LAYER_PENDING) {
			r = 0;
			continue;
		}
		if (r == 0)
			r = replay_layer(rc, rl, &d->row.id, err);
	}
	free(rows);
	if (r == 0)
		decide(d);
	return r;
}

/* --- headers --- */

struct verdict {
	const struct recovery *rc;
	bool head; /* takes writes again */
	struct eng_stat st;
	uint64_t log_seq;
};

static bool is_undone(const struct recovery *rc, const struct fmt_uuid *snapshot)
{
	for (size_t i = 0; i < rc->snapshot_count; i++)
		if (fmt_uuid_equal(&rc->snapshots[i].id, snapshot))
			return true;
	return false;
}

/* T22: no boundary of a snapshot that never was outlives the recovery. */
static void edit_recovered(struct fmt_header *hdr, void *arg)
{
	const struct verdict *v = arg;

	if (v->head) {
		hdr->state = FMT_STATE_ACTIVE;
		hdr->base_bytes = 0;
		hdr->base_mtime_ns = 0;
	} else if (hdr->state == FMT_STATE_ACTIVE) {
		hdr->state = FMT_STATE_FROZEN;
		hdr->log_seq = v->log_seq;
		if (hdr->kind != FMT_KIND_OVERLAY) {
			hdr->base_bytes = v->st.size;
			hdr->base_mtime_ns = v->st.mtime_ns;
		}
	}
	if (v->head || is_undone(v->rc, &hdr->snapshot_id)) {
		memset(&hdr->snapshot_id, 0, sizeof(hdr->snapshot_id));
		hdr->snapshot_members = 0;
		hdr->snapshot_index = 0;
	}
	memset(hdr->boot_id, 0, 16);
	hdr->journal_nonce = 0;
}

static int settle_headers(struct recovery *rc, struct rdisk *d, struct fmt_error *err)
{
	int r = 0;

	for (size_t i = 0; r == 0 && i < d->count; i++) {
		struct rlayer *rl = &d->layers[i];
		struct verdict v = {.rc = rc, .head = fmt_uuid_equal(&rl->row.id, &d->head)};

		if (!rl->keep || rl->row.kind == FMT_KIND_QCOW2)
			continue;
		v.log_seq = rl->layer->log.seq;
		if (rl->row.kind == FMT_KIND_RAW && !v.head) {
			r = rl->layer->in_place ? eng_io_fsync(rl->layer->io, rl->layer->file) : 0;
			if (r == 0)
				r = eng_io_fstat(rl->layer->io, rl->layer->file, &v.st);
		}
		if (r == 0)
			r = eng_layer_update(rl->layer, edit_recovered, &v, err);
	}
	return r;
}

/* Members that were hardened already (no longer ACTIVE in the catalog) may hold a boundary, too. */
static int clear_boundaries(struct recovery *rc, struct fmt_error *err)
{
	int r = 0;

	for (size_t i = 0; r == 0 && i < rc->snapshot_count; i++) {
		struct cat_snapshot_disk *rows = NULL;
		size_t n = 0;

		r = eng_catalog_list_snapshot_disks(rc->store->catalog, &rc->snapshots[i].id, &rows,
						    &n);
		for (size_t j = 0; r == 0 && j < n; j++) {
			struct verdict v = {.rc = rc};
			struct eng_layer *layer;
			struct cat_layer row;

			if (rows[j].skipped ||
			    eng_catalog_get_layer(rc->store->catalog, &rows[j].layer, &row) < 0 ||
			    row.state == CAT_LAYER_ACTIVE || row.state == CAT_LAYER_PENDING)
				continue;
			r = eng_store_open_layer(rc->store, &row, true, err, &layer);
			if (r < 0)
				break;
			if (fmt_uuid_equal(&layer->hdr.snapshot_id, &rc->snapshots[i].id))
				r = eng_layer_update(layer, edit_recovered, &v, err);
			else /* cleared, perhaps, by a process that was killed in it (LH-13) */
				r = eng_layer_settle_header(layer, err);
			eng_layer_put(layer);
		}
		free(rows);
	}
	return r;
}

/* --- the transaction --- */

static void settle_disk_rows(struct eng_catalog *cat, const struct rdisk *d)
{
	for (size_t i = d->count; i-- > 0;) { /* children before their parents */
		const struct rlayer *rl = &d->layers[i];
		bool head = fmt_uuid_equal(&rl->row.id, &d->head);

		if (!rl->keep)
			eng_catalog_remove_layer(cat, &rl->row.id);
		else
			eng_catalog_set_layer_state(cat, &rl->row.id,
						    head ? CAT_LAYER_ACTIVE : CAT_LAYER_HARDENED);
	}
	eng_catalog_set_disk_head(cat, &d->row.id, &d->head);
}

static void end_interrupted(struct cat_job *job)
{
	job->state = 10;
	job->error_code = 32768;
	snprintf(job->status_text, sizeof(job->status_text), "interrupted");
	snprintf(job->error_text, sizeof(job->error_text),
		 "interrupted: the process that ran the job ended before it; %s",
		 job->type == JOB_CREATION ? "no snapshot was made" : "nothing of it took effect");
}

/* Work whose row is put by the mark from which on it only goes forward: done by now (JB-9). */
static bool is_resumed(const struct cat_job *job)
{
	return job->type == JOB_DELETION || job->type == JOB_CONVERSION; /* DL-1, RP-7 */
}

static int end_jobs(struct recovery *rc)
{
	struct cat_job *jobs = NULL;
	size_t n = 0;
	int r = eng_catalog_list_jobs(rc->store->catalog, &jobs, &n);
	int64_t now = eng_io_wall_ns(rc->store->io);

	for (size_t i = 0; r == 0 && i < n; i++) {
		if (jobs[i].ended_ns)
			continue;
		jobs[i].cancellable = false;
		jobs[i].changed_ns = now;
		jobs[i].ended_ns = now;
		if (is_resumed(&jobs[i]))
			eng_catalog_complete_job(&jobs[i], now);
		else
			end_interrupted(&jobs[i]);
		eng_catalog_put_job(rc->store->catalog, &jobs[i]);
	}
	free(jobs);
	return r;
}

static bool snapshot_refused(struct recovery *rc, const struct cat_snapshot *snap)
{
	struct cat_snapshot_disk *rows = NULL;
	bool refused = false;
	size_t n = 0;

	if (eng_catalog_list_snapshot_disks(rc->store->catalog, &snap->id, &rows, &n) < 0)
		return true;
	for (size_t i = 0; i < n; i++)
		for (size_t j = 0; j < rc->count; j++)
			refused = refused || (rc->disks[j].refused &&
					      fmt_uuid_equal(&rc->disks[j].row.id, &rows[i].disk));
	free(rows);
	return refused;
}

static int settle_catalog(struct recovery *rc, struct fmt_error *err)
{
	struct eng_catalog *cat = rc->store->catalog;
	int r = eng_catalog_begin(cat);

	if (r < 0)
		return fmt_fail(err, r, "cannot begin in the catalog: %s", strerror(-r));
	for (size_t i = 0; i < rc->snapshot_count; i++)
		if (!snapshot_refused(rc, &rc->snapshots[i]))
			eng_catalog_remove_snapshot(cat, &rc->snapshots[i].id);
	for (size_t i = 0; i < rc->count; i++)
		if (!rc->disks[i].refused && rc->disks[i].count)
			settle_disk_rows(cat, &rc->disks[i]);
	r = end_jobs(rc);
	if (r < 0) {
		eng_catalog_rollback(cat);
		return r;
	}
	return eng_catalog_commit(cat, err);
}

/* --- files without a row (RV-9) --- */

/* The id of a layer that no row names, of a file "<id><suffix>". */
static bool is_orphan(struct eng_store *store, const char *name, const char *suffix,
		      struct fmt_uuid *ret)
{
	char text[FMT_UUID_TEXT];
	struct cat_layer row;

	if (strlen(name) != FMT_UUID_TEXT - 1 + 4 || strcmp(name + FMT_UUID_TEXT - 1, suffix))
		return false;
	memcpy(text, name, FMT_UUID_TEXT - 1);
	text[FMT_UUID_TEXT - 1] = 0;
	return fmt_uuid_parse(text, ret) == 0 &&
	       eng_catalog_get_layer(store->catalog, ret, &row) == -ENOENT;
}

/* One without a valid header was never finished; another store's is not ours to remove. */
static bool is_ours(struct eng_store *store, const struct eng_layer_open *how)
{
	struct eng_layer *layer = NULL;
	int r = eng_layer_open(store->io, how, NULL, &layer);
	bool ours = r == 0 ? fmt_uuid_equal(&layer->hdr.store_id, &store->id)
			   : r == -EBADMSG || r == -EUCLEAN;

	eng_layer_put(layer);
	return ours;
}

static int check_overlay(struct eng_store *store, const struct fmt_uuid *id)
{
	struct eng_layer_open how = {.kind = FMT_KIND_OVERLAY};
	char *path = eng_store_layer_path(store, id, "vmo");

	if (!path)
		return -ENOMEM;
	how.path = path;
	if (is_ours(store, &how))
		eng_io_unlink(store->io, path);
	free(path);
	return 0;
}

/*
 * A base is made before its sidecar, and has no header: without a sidecar it was never finished. The
 * sidecar goes first, so that a crash in between leaves such a one.
 */
static int check_base(struct eng_store *store, const struct fmt_uuid *id)
{
	struct eng_layer_open how = {.kind = FMT_KIND_RAW};
	char *sidecar = eng_store_layer_path(store, id, "vmr");
	char *data = eng_store_layer_path(store, id, "raw");
	struct eng_stat st;
	int r = sidecar && data ? 0 : -ENOMEM;

	how.path = sidecar;
	how.data_path = data;
	if (r == 0 && (eng_io_stat(store->io, sidecar, &st) == -ENOENT || is_ours(store, &how))) {
		eng_io_unlink(store->io, sidecar);
		eng_io_unlink(store->io, data);
	}
	free(sidecar);
	free(data);
	return r;
}

static int check_orphan(void *arg, const char *name)
{
	struct eng_store *store = arg;
	struct fmt_uuid id;

	if (is_orphan(store, name, ".vmo", &id))
		return check_overlay(store, &id);
	return is_orphan(store, name, ".raw", &id) ? check_base(store, &id) : 0;
}

static int remove_orphans(struct recovery *rc)
{
	int r = eng_io_list(rc->store->io, rc->store->layers_dir, check_orphan, rc->store);

	return r < 0 ? r : eng_io_sync_dir(rc->store->io, rc->store->layers_dir);
}

/* --- all of it --- */

static int load(struct recovery *rc)
{
	struct cat_snapshot *snaps = NULL;
	struct cat_disk *disks = NULL;
	size_t n = 0, all = 0;
	int r = eng_catalog_list_disks(rc->store->catalog, NULL, &disks, &n);

	if (r == 0)
		r = eng_catalog_list_snapshots(rc->store->catalog, NULL, &snaps, &all);
	if (r == 0) {
		rc->disks = calloc(n + 1, sizeof(*rc->disks));
		rc->snapshots = calloc(all + 1, sizeof(*rc->snapshots));
		if (!rc->disks || !rc->snapshots)
			r = -ENOMEM;
	}
	for (size_t i = 0; r == 0 && i < n; i++)
		rc->disks[rc->count++].row = disks[i];
	for (size_t i = 0; r == 0 && i < all; i++)
		if (snaps[i].state != CAT_SNAPSHOT_COMPLETE)
			rc->snapshots[rc->snapshot_count++] = snaps[i];
	free(disks);
	free(snaps);
	return r;
}

/* RV-10: refused alone; the reason is found again by whoever attaches or checks it. */
static int refuse(struct recovery *rc, struct rdisk *d)
{
	struct eng_entry *e;

	d->refused = true;
	pthread_mutex_lock(&rc->store->lock);
	e = eng_entry_get_locked(rc->store, &d->row.id);
	if (e)
		e->refused = true;
	pthread_mutex_unlock(&rc->store->lock);
	return e ? 0 : -ENOMEM;
}

static void unload(struct recovery *rc)
{
	for (size_t i = 0; i < rc->count; i++) {
		for (size_t j = 0; j < rc->disks[i].count; j++)
			eng_layer_put(rc->disks[i].layers[j].layer);
		free(rc->disks[i].layers);
	}
	free(rc->disks);
	free(rc->snapshots);
}

static void remove_files(struct recovery *rc)
{
	for (size_t i = 0; i < rc->count; i++) {
		struct rdisk *d = &rc->disks[i];
		struct fmt_uuid name = eng_store_journal_id(rc->store, &d->row.id);

		for (size_t j = 0; j < d->count && !d->refused; j++)
			if (!d->layers[j].keep && d->layers[j].layer)
				eng_io_unlink(rc->store->io, d->layers[j].layer->path);
		if (!d->refused)
			eng_journal_remove(rc->store->io, &name);
	}
}

int eng_store_recover(struct eng_store *store, struct fmt_error *err)
{
	struct recovery rc = {.store = store};
	char clean[CAT_TEXT_MAX];
	int r = eng_catalog_fact_get(store->catalog, "clean", clean);

	if (r == 0 && !strcmp(clean, "1"))
		return 0;
	eng_io_boot_id(store->io, rc.boot_id);
	r = load(&rc);
	for (size_t i = 0; r == 0 && i < rc.count; i++)
		if (recover_disk(&rc, &rc.disks[i], err) < 0)
			r = refuse(&rc, &rc.disks[i]);
	if (r == 0)
		r = clear_boundaries(&rc, err);
	for (size_t i = 0; r == 0 && i < rc.count; i++)
		if (!rc.disks[i].refused)
			r = settle_headers(&rc, &rc.disks[i], err);
	if (r == 0)
		r = settle_catalog(&rc, err);
	if (r == 0) {
		remove_files(&rc);
		r = remove_orphans(&rc);
	}
	if (r < 0 && err && !err->text[0])
		fmt_fail(err, r, "%s: recovery failed: %s", store->dir, strerror(-r));
	unload(&rc);
	return r;
}
