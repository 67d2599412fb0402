/* SPDX-License-Identifier: MIT */
/*
 * hold.c - holds and readers of snapshots (HD-*, RT-5).
 *
 * A hold is a row and nothing else. It is put in a transaction that finds the snapshot complete,
 * and a deletion's mark is set in one that finds no hold: one of the two comes first. Readers are
 * known to the process only, as long as it has the store. Any thread.
 */
#include "engine/store/hold.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- holds --- */

static int find_tag(struct eng_catalog *cat, const struct fmt_uuid *snapshot, const char *tag,
		    bool *ret)
{
	struct cat_hold *holds = NULL;
	size_t n = 0;
	int r = eng_catalog_list_holds(cat, snapshot, &holds, &n);

	*ret = false;
	for (size_t i = 0; i < n; i++)
		*ret = *ret || !strcmp(holds[i].tag, tag);
	free(holds);
	return r;
}

/* A transaction that has found the snapshot, and whether it has the tag; none on failure. */
static int begin_tag(struct eng_catalog *cat, const char *collection, const char *name,
		     const char *tag, struct cat_snapshot *snap, bool *there, struct fmt_error *err)
{
	int r = eng_catalog_begin(cat);

	if (r < 0)
		return fmt_fail(err, r, "cannot begin in the catalog: %s", strerror(-r));
	r = eng_catalog_find_snapshot(cat, collection, name, err, snap);
	if (r == 0)
		r = find_tag(cat, &snap->id, tag, there);
	if (r < 0)
		eng_catalog_rollback(cat);
	return r;
}

int eng_store_hold(struct eng_store *store, const char *collection, const char *name,
		   const char *tag, struct fmt_error *err)
{
	struct cat_hold hold = {.created_ns = eng_io_wall_ns(store->io)};
	struct eng_catalog *cat = store->catalog;
	struct cat_snapshot snap;
	bool there = false;
	int r = begin_tag(cat, collection, name, tag, &snap, &there, err);

	if (r < 0)
		return r;
	if (there) {
		eng_catalog_rollback(cat);
		return fmt_fail(err, -EEXIST, "tag %s: it holds %s@%s already", tag, collection,
				name);
	}
	hold.snapshot = snap.id;
	snprintf(hold.tag, sizeof(hold.tag), "%s", tag);
	eng_catalog_put_hold(cat, &hold);
	return eng_catalog_commit(cat, err);
}

int eng_store_release(struct eng_store *store, const char *collection, const char *name,
		      const char *tag, struct fmt_error *err)
{
	struct eng_catalog *cat = store->catalog;
	struct cat_snapshot snap;
	bool there = false;
	int r = begin_tag(cat, collection, name, tag, &snap, &there, err);

	if (r < 0)
		return r;
	if (!there) {
		eng_catalog_rollback(cat);
		return fmt_fail(err, -ENOENT, "tag %s: it does not hold %s@%s", tag, collection,
				name);
	}
	eng_catalog_remove_hold(cat, &snap.id, tag);
	return eng_catalog_commit(cat, err);
}

int eng_store_check_held(struct eng_catalog *cat, const struct cat_snapshot *snap,
			 struct fmt_error *err)
{
	struct cat_hold *holds = NULL;
	char tags[192] = "";
	size_t n = 0, len = 0;
	int r = eng_catalog_list_holds(cat, &snap->id, &holds, &n);

	for (size_t i = 0; i < n && len < sizeof(tags); i++)
		len += (size_t)snprintf(tags + len, sizeof(tags) - len, "%s%s", i ? ", " : "",
					holds[i].tag);
	free(holds);
	if (r < 0 || n == 0)
		return r;
	if (len >= sizeof(tags))
		strcpy(tags + sizeof(tags) - 4, "...");
	return fmt_fail(err, -EBUSY, "snapshot %s@%s: held by %s", snap->collection_name,
			snap->name, tags);
}

/* --- readers: under the store's lock --- */

int eng_store_reading_begin(struct eng_store *store, const struct eng_disk *disk,
			    const struct fmt_uuid *snapshot)
{
	struct eng_reading *reading = malloc(sizeof(*reading));

	if (!reading)
		return -ENOMEM;
	reading->disk = disk;
	reading->snapshot = *snapshot;
	pthread_mutex_lock(&store->lock);
	reading->next = store->readings;
	store->readings = reading;
	pthread_mutex_unlock(&store->lock);
	return 0;
}

void eng_store_reading_end(struct eng_store *store, const struct eng_disk *disk)
{
	struct eng_reading *found = NULL;

	pthread_mutex_lock(&store->lock);
	for (struct eng_reading **p = &store->readings; *p && !found; p = &(*p)->next) {
		if ((*p)->disk == disk) {
			found = *p;
			*p = found->next;
			break;
		}
	}
	pthread_mutex_unlock(&store->lock);
	free(found);
}

bool eng_store_reading_of(const struct eng_disk *disk, struct fmt_uuid *snapshot)
{
	struct eng_store *store = ((const struct eng_entry *)disk->owner)->store;
	const struct eng_reading *p;

	pthread_mutex_lock(&store->lock);
	p = store->readings;
	while (p && p->disk != disk)
		p = p->next;
	if (p)
		*snapshot = p->snapshot;
	pthread_mutex_unlock(&store->lock);
	return p != NULL;
}

bool eng_store_is_read(struct eng_store *store, const struct fmt_uuid *snapshot)
{
	bool read = false;

	pthread_mutex_lock(&store->lock);
	for (const struct eng_reading *p = store->readings; p; p = p->next)
		read = read || fmt_uuid_equal(&p->snapshot, snapshot);
	pthread_mutex_unlock(&store->lock);
	return read;
}
