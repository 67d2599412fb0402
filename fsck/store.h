/* SPDX-License-Identifier: MIT */
/*
 * store.h - a store under check: its catalog, and a node for each of its layers that keeps what the
 * catalog and the layer's own header say. One thread a check.
 */
#ifndef FSCK_STORE_H
#define FSCK_STORE_H

#include "engine/catalog/catalog.h"
#include "format/layer.h"
#include "fsck/problem.h"

struct fsck_node {
	struct fmt_uuid id, disk, parent, snapshot; /* the catalog's */
	uint32_t kind, state;                       /* enum fmt_kind, enum cat_layer_state */
	uint64_t generation;
	char *name;                /* of its file, in messages: "web/root: layers/ID.vmo" */
	bool in_place, has_header; /* @hdr could be read */
	struct fmt_header hdr;
	uint64_t dev, ino;    /* of a base's file; 0: not found */
	struct fsck_node *up; /* the parent; set once all are known */
	bool reached;         /* a disk or a snapshot stands on it */
};

struct fsck_store {
	struct fsck *f;
	const char *dir;
	struct eng_catalog *cat;
	struct fmt_uuid id;
	struct fsck_node *nodes; /* by id */
	size_t count, cap;
};

struct fsck_node *fsck_node_find(const struct fsck_store *s, const struct fmt_uuid *id);
/* "DIR/layers/ID.suffix"; free(). NULL: no memory, reported. */
char *fsck_layer_path(struct fsck_store *s, const struct fmt_uuid *id, const char *suffix);

/* node.c: the files of one row, by themselves and against the row. Fills the rest of @node. */
void fsck_node_check(struct fsck_store *s, struct fsck_node *node, const struct cat_layer *row,
		     const struct cat_disk *disk);
/* chain.c: what layers say of each other, and disks of their heads; which layers are in use. */
int fsck_chains(struct fsck_store *s);
/* gone.c, after all that marks: that what is gone of a layer is held by the one on top of it. */
int fsck_gone_masks(struct fsck_store *s);
/* chain.c, after all that marks: layers that nothing stands on. */
void fsck_unreached(struct fsck_store *s);
/* Marks @node and all beneath. */
void fsck_reach(struct fsck_node *node);
/* snapshot.c: snapshots against their layers, boundaries against their snapshots. */
int fsck_snapshots(struct fsck_store *s);
/* refpoint.c: reference points against the layers that they refer to, and their saved sets. */
int fsck_refpoints(struct fsck_store *s);

#endif
