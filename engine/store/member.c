/* SPDX-License-Identifier: MIT */
/*
 * member.c - a disk as a member of a cut: whether it can be cut at all. Coordinator threads.
 */
#include <errno.h>
#include <string.h>

#include "engine/store/overlay.h"
#include "engine/store/store.h"

static bool is_poisoned(const struct eng_member *m)
{
	for (uint32_t i = 0; i < m->entry->unhardened_count; i++)
		if (atomic_load(&m->entry->unhardened[i]->poisoned))
			return true;
	return atomic_load(&m->tail->poisoned);
}

/*
 * JN-5, RO-5: layers whose tags in the journal may be in use when the cut has made one more; tags are
 * given back oldest first. A roll leaves one for a snapshot.
 */
static int check_tags(const struct eng_member *m, bool for_snapshot, struct fmt_error *err)
{
	uint32_t n = 2, most = ENG_JOURNAL_LAYERS - !for_snapshot; /* the tail, and the new one */

	if (!m->entry->disk || !m->entry->unhardened_count)
		return 0;
	for (struct eng_layer *l = m->entry->unhardened[0]; l != m->tail; n++)
		l = atomic_load(&l->succ)->layer;
	if (n <= most)
		return 0;
	eng_disk_post_harden(m->entry->disk); /* for the next one: perhaps nobody flushes */
	return fmt_fail(err, -EBUSY,
			"%s/%s: %u layers of it are not durable yet, expected at most %u (JN-5)",
			m->disk.vm_name, m->disk.name, n - 1, most - 1);
}

int eng_member_open(struct eng_store *store, struct eng_member *m, bool for_snapshot,
		    struct fmt_error *err)
{
	struct eng_layer *tail;
	int r = eng_catalog_get_disk_id(store->catalog, &m->disk.id, &m->disk);

	if (r < 0)
		return fmt_fail(err, r, "%s/%s: cannot read the catalog: %s", m->disk.vm_name,
				m->disk.name, strerror(-r));
	r = eng_entry_tail(m->entry, &m->disk, err, &tail);
	if (r < 0)
		return r;
	/* A worker that has not looked yet is behind; the chain's end is what counts. */
	m->tail = eng_layer_get(eng_layer_newest(tail));
	eng_entry_forget_hardened(m->entry);
	if (is_poisoned(m))
		return fmt_fail(err, -ENOTRECOVERABLE,
				"%s/%s: a failed flush poisoned it; reopen the store",
				m->disk.vm_name, m->disk.name);
	return check_tags(m, for_snapshot, err);
}
