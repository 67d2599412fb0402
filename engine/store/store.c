/* SPDX-License-Identifier: MIT */
/*
 * store.c - a store made, opened and closed, and the disks in use in it. Control threads.
 */
#include "engine/store/store.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "engine/disk/cut.h"
#include "engine/fold/fold.h"
#include "engine/store/shrink.h"

#define THREADS 3u /* one is always free for what a guest waits for */

static char *join(const char *dir, const char *name)
{
	char *path;

	return asprintf(&path, "%s/%s", dir, name) < 0 ? NULL : path;
}

char *eng_store_layer_path(const struct eng_store *store, const struct fmt_uuid *layer,
			   const char *suffix)
{
	char text[FMT_UUID_TEXT], *path;

	fmt_uuid_format(layer, text);
	return asprintf(&path, "%s/%s.%s", store->layers_dir, text, suffix) < 0 ? NULL : path;
}

void eng_store_new_id(struct eng_store *store, struct fmt_uuid *ret)
{
	uint8_t random[16];

	eng_io_random(store->io, random, sizeof(random));
	fmt_uuid_from_random(random, ret);
}

/* --- init --- */

static int count_name(void *arg, const char *name)
{
	(void)name;
	++*(unsigned *)arg;
	return 0;
}

static int init_dirs(struct eng_io *io, const char *dir, const char *layers, struct fmt_error *err)
{
	unsigned names = 0;
	int r = eng_io_mkdir(io, dir);

	if (r == -EEXIST) {
		r = eng_io_list(io, dir, count_name, &names);
		if (r == 0 && names)
			return fmt_fail(err, -EEXIST, "%s: not empty (%u names in it)", dir, names);
	}
	if (r == 0)
		r = eng_io_mkdir(io, layers);
	if (r < 0)
		fmt_fail(err, r, "%s: cannot make the directory: %s", dir, strerror(-r));
	return r;
}

int eng_store_init(struct eng_io *io, const char *dir, struct fmt_error *err)
{
	char *layers = join(dir, "layers"), *lock = join(dir, "lock"),
	     *db = join(dir, "catalog.db");
	struct eng_store store = {.io = io};
	struct eng_catalog *cat = NULL;
	struct eng_file *file = NULL;
	char text[FMT_UUID_TEXT];
	int r = -ENOMEM;

	if (!layers || !lock || !db)
		goto out;
	r = init_dirs(io, dir, layers, err);
	if (r < 0)
		goto out;
	r = eng_io_open(io, lock, ENG_OPEN_WRITE | ENG_OPEN_CREATE | ENG_OPEN_EXCL, &file);
	if (r < 0) {
		fmt_fail(err, r, "%s: %s", lock, strerror(-r));
		goto out;
	}
	eng_store_new_id(&store, &store.id);
	fmt_uuid_format(&store.id, text);
	r = eng_catalog_open(io, db, true, err, &cat);
	if (r < 0)
		goto out;
	r = eng_catalog_fact_set(cat, "store_version", "1");
	if (r == 0)
		r = eng_catalog_fact_set(cat, "clean", "1");
	if (r == 0) /* last: a store without an id is not one */
		r = eng_catalog_fact_set(cat, "store_id", text);
	if (r == 0)
		eng_catalog_keep_reserve(cat);
	if (r == 0)
		r = eng_io_sync_dir(io, layers);
	if (r == 0)
		r = eng_io_sync_dir(io, dir);
	if (r < 0)
		fmt_fail(err, r, "%s: cannot write the catalog: %s", dir, strerror(-r));
out:
	eng_catalog_close(cat);
	eng_io_close(io, file);
	free(layers);
	free(lock);
	free(db);
	return r;
}

/* --- open and close --- */

static int open_lock(struct eng_store *store, struct fmt_error *err)
{
	char *path = join(store->dir, "lock");
	int r = -ENOMEM;

	if (!path)
		return r;
	r = eng_io_open(store->io, path, ENG_OPEN_WRITE, &store->lock_file);
	if (r == -ENOENT || r == -ENOTDIR) {
		fmt_fail(err, r, "%s: not a store: %s", store->dir, strerror(-r));
	} else if (r < 0) {
		fmt_fail(err, r, "%s: cannot open: %s", path, strerror(-r));
	} else {
		r = eng_io_lock(store->io, store->lock_file);
		if (r == -EWOULDBLOCK)
			r = fmt_fail(err, -EBUSY, "%s: the store is in use by another process",
				     store->dir);
		else if (r < 0)
			fmt_fail(err, r, "%s: cannot lock: %s", path, strerror(-r));
	}
	free(path);
	return r;
}

static int open_catalog(struct eng_store *store, struct fmt_error *err)
{
	char *path = join(store->dir, "catalog.db"), text[CAT_TEXT_MAX];
	int r = -ENOMEM;

	if (!path)
		return r;
	r = eng_catalog_open(store->io, path, false, err, &store->catalog);
	if (r < 0)
		goto out;
	if (eng_catalog_reserve(store->catalog) == 0)
		eng_catalog_checkpoint(store->catalog); /* CT-13 */
	r = eng_catalog_fact_get(store->catalog, "store_id", text);
	if (r == 0)
		r = fmt_uuid_parse(text, &store->id);
	if (r < 0)
		r = fmt_fail(err, -EUCLEAN, "%s: the catalog has no store id", path);
out:
	free(path);
	return r;
}

static int copy_options(struct eng_store *store, const struct eng_store_options *options)
{
	size_t n = 0;

	if (!options)
		return 0;
	store->options = *options;
	while (options->base_dirs && options->base_dirs[n])
		n++;
	store->base_dirs = calloc(n + 1, sizeof(char *));
	if (!store->base_dirs)
		return -ENOMEM;
	for (size_t i = 0; i < n; i++)
		if (!(store->base_dirs[i] = strdup(options->base_dirs[i])))
			return -ENOMEM;
	store->base_dirs_count = n;
	store->options.base_dirs = NULL;
	return 0;
}

static void raise_file_limit(void)
{
	struct rlimit lim;

	if (getrlimit(RLIMIT_NOFILE, &lim) == 0 && lim.rlim_cur < lim.rlim_max) {
		lim.rlim_cur = lim.rlim_max;
		setrlimit(RLIMIT_NOFILE, &lim);
	}
}

static void store_free(struct eng_store *store)
{
	eng_folder_stop(store->folder);
	eng_pool_destroy(store->pool);
	eng_folder_destroy(store->folder);
	for (struct eng_entry *e = store->entries, *next; e; e = next) {
		next = e->next;
		eng_entry_drop_standby(e);
		eng_entry_set_tail(e, NULL);
		eng_io_close(store->io, e->base_lock);
		free(e->unhardened);
		free(e);
	}
	eng_catalog_close(store->catalog);
	eng_io_close(store->io, store->lock_file);
	for (size_t i = 0; i < store->base_dirs_count; i++)
		free(store->base_dirs[i]);
	free(store->base_dirs);
	free(store->dir);
	free(store->layers_dir);
	pthread_cond_destroy(&store->changed);
	pthread_mutex_destroy(&store->lock);
	free(store);
}

int eng_store_open(struct eng_io *io, const char *dir, const struct eng_store_options *options,
		   struct fmt_error *err, struct eng_store **ret)
{
	struct eng_store *store = calloc(1, sizeof(*store));
	pthread_condattr_t attr;
	struct eng_stat st;
	int r = -ENOMEM;

	if (!store)
		return fmt_fail(err, r, "%s: out of memory", dir);
	store->io = io;
	pthread_mutex_init(&store->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&store->changed, &attr);
	pthread_condattr_destroy(&attr);
	store->dir = strdup(dir);
	store->layers_dir = join(dir, "layers");
	if (!store->dir || !store->layers_dir || copy_options(store, options) < 0)
		goto fail;
	store->direct = !store->options.buffered;
	raise_file_limit();
	r = open_lock(store, err);
	if (r == 0)
		r = open_catalog(store, err);
	if (r == 0)
		r = eng_io_fstat(io, store->lock_file, &st);
	if (r < 0)
		goto fail;
	store->journal_key = st.dev * 0x9e3779b97f4a7c15ull ^ st.ino;
	r = eng_pool_create(io, store->options.threads ? store->options.threads : THREADS,
			    &store->pool);
	if (r == 0)
		r = eng_store_recover(store, err);
	if (r == 0)
		r = eng_store_finish_shrink(store, err); /* RZ-3 */
	if (r == 0) {
		r = eng_catalog_fact_set(store->catalog, "clean", "0");
		if (r < 0)
			fmt_fail(err, r, "%s: cannot write the catalog: %s", dir, strerror(-r));
	}
	if (r == 0)
		eng_catalog_keep_reserve(store->catalog);
	if (r == 0 && !store->options.no_folds) /* seals tell it of their ends */
		r = eng_folder_create(store, &store->folder);
	if (r == 0)
		r = eng_store_seal_rest(store);
	if (r < 0)
		goto fail;
	*ret = store;
	return 0;
fail:
	if (err && !err->text[0])
		fmt_fail(err, r, "%s: cannot open the store: %s", dir, strerror(-r));
	store_free(store);
	return r;
}

int eng_store_close(struct eng_store *store)
{
	bool used = false, refused = false;

	if (!store)
		return 0;
	eng_folder_pause(store->folder, true);
	pthread_mutex_lock(&store->lock);
	for (struct eng_entry *e = store->entries; e; e = e->next) {
		used = used || e->busy || e->disk || e->readers;
		refused = refused || e->refused;
	}
	used = used || store->cuts;
	pthread_mutex_unlock(&store->lock);
	if (used) {
		eng_folder_pause(store->folder, false);
		return -EBUSY;
	}
	eng_folder_stop(store->folder);
	eng_folder_sweep(store->folder);
	eng_pool_destroy(store->pool);
	store->pool = NULL;
	eng_folder_destroy(store->folder);
	store->folder = NULL;
	eng_catalog_keep_reserve(store->catalog);
	/* A disk that could not be detached cleanly needs the next open's recovery. */
	if (!refused && !atomic_load(&store->unsettled) && !eng_catalog_poisoned(store->catalog))
		eng_catalog_fact_set(store->catalog, "clean", "1");
	store_free(store);
	return 0;
}

struct fmt_uuid eng_store_journal_id(const struct eng_store *store, const struct fmt_uuid *disk)
{
	struct fmt_uuid id = *disk;

	for (int i = 0; i < 8; i++)
		id.b[8 + i] ^= (uint8_t)(store->journal_key >> (8 * i));
	return id;
}

/* --- layers --- */

/* IB-2: one lock a base, for all who have it open here: the disk and views of its snapshots. */
static int lock_base(struct eng_store *store, const struct cat_layer *row, struct fmt_error *err)
{
	struct eng_file *file = NULL;
	struct eng_entry *e;
	int r = 0;

	pthread_mutex_lock(&store->lock);
	e = eng_entry_get_locked(store, &row->disk);
	if (!e)
		r = -ENOMEM;
	else if (!e->base_lock)
		r = eng_io_open(store->io, row->path, 0, &file);
	if (r == 0 && file)
		r = eng_io_lock(store->io, file);
	if (r == 0 && file) {
		e->base_lock = file;
		file = NULL;
	}
	pthread_mutex_unlock(&store->lock);
	eng_io_close(store->io, file);
	if (r == -EWOULDBLOCK)
		return fmt_fail(err, -EBUSY, "%s: in use by somebody else (T31)", row->path);
	return r < 0 ? fmt_fail(err, r, "%s: %s", row->path, strerror(-r)) : 0;
}

int eng_store_open_layer(struct eng_store *store, const struct cat_layer *row, bool writable,
			 struct fmt_error *err, struct eng_layer **ret)
{
	const char *suffix = row->kind == FMT_KIND_RAW ? "raw" : "qcow2";
	struct eng_layer_open how = {
		.kind = row->kind,
		.base_dirs = (const char *const *)store->base_dirs,
		.base_dirs_count = store->base_dirs_count,
		.writable = writable,
		.direct = store->direct,
		.in_place = row->path[0] != 0,
	};
	char *path, *data = NULL;
	int r = -ENOMEM;

	path = eng_store_layer_path(store, &row->id, row->kind == FMT_KIND_OVERLAY ? "vmo" : "vmr");
	if (row->kind != FMT_KIND_OVERLAY)
		data = row->path[0] ? strdup(row->path)
				    : eng_store_layer_path(store, &row->id, suffix);
	if (!path || (row->kind != FMT_KIND_OVERLAY && !data))
		goto out;
	how.path = path;
	how.data_path = data;
	r = how.in_place ? lock_base(store, row, err) : 0;
	if (r == 0)
		r = eng_layer_open(store->io, &how, err, ret);
	if (r == 0 && !fmt_uuid_equal(&(*ret)->id, &row->id)) {
		eng_layer_put(*ret);
		*ret = NULL;
		r = fmt_fail(err, -EUCLEAN, "%s: holds another layer than its name says", path);
	}
out:
	free(path);
	free(data);
	return r;
}

uint64_t eng_store_layer_bytes(struct eng_store *store, const struct cat_layer *row)
{
	const char *suffix = row->kind == FMT_KIND_OVERLAY ? "vmo"
			     : row->kind == FMT_KIND_RAW   ? "raw"
							   : "qcow2";
	char *path = row->path[0] ? strdup(row->path)
				  : eng_store_layer_path(store, &row->id, suffix);
	struct eng_stat st = {0};

	if (path)
		eng_io_stat(store->io, path, &st);
	free(path);
	return st.allocated;
}

/* --- entries --- */

struct eng_entry *eng_entry_get_locked(struct eng_store *store, const struct fmt_uuid *disk)
{
	struct eng_entry *e;

	for (e = store->entries; e; e = e->next)
		if (fmt_uuid_equal(&e->id, disk))
			return e;
	e = calloc(1, sizeof(*e));
	if (!e)
		return NULL;
	e->id = *disk;
	e->store = store;
	e->next = store->entries;
	store->entries = e;
	return e;
}

bool eng_entry_is_mine(struct eng_store *store, const struct fmt_uuid *disk)
{
	struct eng_entry *e;
	bool mine;

	pthread_mutex_lock(&store->lock);
	e = eng_entry_get_locked(store, disk);
	mine = e && e->disk && !e->disk->read_only && eng_queue_is_mine(e->disk->queue);
	pthread_mutex_unlock(&store->lock);
	return mine;
}

int eng_entry_claim(struct eng_store *store, const struct fmt_uuid *disk, uint64_t deadline_ns,
		    struct eng_entry **ret)
{
	struct timespec ts = {
		.tv_sec = (time_t)(deadline_ns / 1000000000u),
		.tv_nsec = (long)(deadline_ns % 1000000000u),
	};
	struct eng_entry *e;
	int r = 0;

	pthread_mutex_lock(&store->lock);
	e = eng_entry_get_locked(store, disk);
	if (!e)
		r = ENOMEM;
	while (r == 0 && e->busy)
		r = deadline_ns ? pthread_cond_timedwait(&store->changed, &store->lock, &ts)
				: EBUSY;
	if (r == 0) {
		e->busy = true;
		*ret = e;
	}
	pthread_mutex_unlock(&store->lock);
	return r == ETIMEDOUT ? -EBUSY : -r;
}

void eng_entry_release(struct eng_entry *entry)
{
	pthread_mutex_lock(&entry->store->lock);
	assert(entry->busy);
	entry->busy = false;
	pthread_cond_broadcast(&entry->store->changed);
	pthread_mutex_unlock(&entry->store->lock);
}

int eng_entry_tail(struct eng_entry *entry, const struct cat_disk *row, struct fmt_error *err,
		   struct eng_layer **ret)
{
	struct cat_layer layer;
	int r;

	if (entry->refused)
		return fmt_fail(err, -ENOTRECOVERABLE,
				"%s/%s: could not be detached cleanly; reopen the store",
				row->vm_name, row->name);
	if (!entry->tail) {
		r = eng_catalog_get_layer(entry->store->catalog, &row->head, &layer);
		if (r < 0)
			return fmt_fail(err, r, "%s/%s: its head is not in the catalog",
					row->vm_name, row->name);
		r = eng_store_open_layer(entry->store, &layer, true, err, &entry->tail);
		if (r < 0)
			return r;
	}
	*ret = entry->tail;
	return 0;
}

void eng_entry_set_tail(struct eng_entry *entry, struct eng_layer *layer)
{
	struct eng_layer *old = entry->tail;

	entry->tail = layer ? eng_layer_get(layer) : NULL;
	eng_layer_put(old);
	if (layer)
		return;
	for (uint32_t i = 0; i < entry->unhardened_count; i++)
		eng_layer_put(entry->unhardened[i]);
	entry->unhardened_count = 0;
}

void eng_entry_set_disk(struct eng_entry *entry, struct eng_disk *disk)
{
	pthread_mutex_lock(&entry->store->lock);
	entry->disk = disk;
	pthread_mutex_unlock(&entry->store->lock);
	atomic_fetch_add(&entry->store->attachments, 1);
}

/* Not busy: nobody changes the tail while the lock is held. */
static bool is_poisoned(const struct eng_entry *e)
{
	for (uint32_t i = 0; i < e->unhardened_count; i++)
		if (atomic_load(&e->unhardened[i]->poisoned))
			return true;
	return e->tail && (atomic_load(&e->tail->poisoned) ||
			   atomic_load(&eng_layer_newest(e->tail)->poisoned));
}

size_t eng_store_poisoned(struct eng_store *store, struct fmt_uuid *disks, size_t max)
{
	size_t n = 0;

	pthread_mutex_lock(&store->lock);
	for (struct eng_entry *e = store->entries; e && n < max; e = e->next) {
		if (e->busy || e->poison_told || !is_poisoned(e))
			continue;
		e->poison_told = true;
		disks[n++] = e->id;
	}
	pthread_mutex_unlock(&store->lock);
	return n;
}

int eng_entry_keep_unhardened(struct eng_entry *entry, struct eng_layer *layer)
{
	struct eng_layer **p = realloc(entry->unhardened,
				       (entry->unhardened_count + 1) * sizeof(struct eng_layer *));

	if (!p)
		return -ENOMEM;
	entry->unhardened = p;
	p[entry->unhardened_count++] = eng_layer_get(layer);
	return 0;
}

void eng_entry_forget_hardened(struct eng_entry *entry)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < entry->unhardened_count; i++) {
		struct eng_layer *layer = entry->unhardened[i];

		if (atomic_load(&layer->harden) == ENG_HARDEN_DONE)
			eng_layer_put(layer);
		else
			entry->unhardened[n++] = layer;
	}
	entry->unhardened_count = n;
}
