/* SPDX-License-Identifier: MIT */
/*
 * users.h - the disks that stand on a layer: its own, and clones (CL-2). What changes the layer's place in
 * their chains claims them all at once, and tells the workers of those that are attached.
 */
#ifndef ENGINE_USERS_H
#define ENGINE_USERS_H

#include "engine/store/store.h"

struct eng_users_swap;

struct eng_users {
	struct eng_store *store;
	struct fmt_uuid *disks;
	struct eng_entry **entries;
	size_t count;
	struct eng_users_swap *swap; /* made before there is no way back */
};

/*
 * Claims every disk with a layer at or above @layer, without waiting. -EBUSY, and nothing is held: one is
 * busy, in a cut, attached read-only, its snapshots are being read, or its last swap is under way (FO-5).
 * While they are held nobody begins to read a snapshot of them.
 */
int eng_users_claim(struct eng_store *store, const struct fmt_uuid *layer, struct eng_users *u);
/*
 * Puts @folded in the place of the layers @ids under every attached disk that uses them. @ids and what
 * they name stay until @done, which is called once: 0 when no disk uses them any more, an error when one
 * goes on with them until it is detached. On a worker, or at once where no disk is attached; @folded
 * may be NULL then.
 */
void eng_users_swap(struct eng_users *u, struct eng_layer *folded, const struct fmt_uuid *ids,
		    uint32_t count, void (*done)(void *arg, int result), void *arg);
/* Whether a worker will have to be told. */
bool eng_users_are_attached(const struct eng_users *u);
void eng_users_release(struct eng_users *u);

/*
 * The other side: holds the disk's chain as it is, as one more reader of it (FO-5), until it is let go. Waits
 * for a change that is about to commit. -ENOMEM.
 */
int eng_users_hold(struct eng_store *store, const struct fmt_uuid *disk, struct eng_entry **ret);
void eng_users_let_go(struct eng_entry *entry); /* NULL is fine */

#endif
