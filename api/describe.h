/* SPDX-License-Identifier: MIT */
/* describe.h - what describe.c and tree.c share: values and documents in JSON (DS-*). Private. */
#ifndef API_DESCRIBE_H
#define API_DESCRIBE_H

#include <jansson.h>

#include "api/service.h"

/* jansson's: NULL when memory is short, which every composition passes on. */
json_t *api_json_id(const struct fmt_uuid *id);
json_t *api_json_time(int64_t ns);
json_t *api_json_path(const char *path); /* '?' for what is no UTF-8 */
json_t *api_json_name(const char *left, char sep, const char *right);
json_t *api_job_json(const struct vmimg_job_info *info);
const char *api_kind_name(uint32_t kind);
int api_json_members(struct vmimg_service *svc, const struct fmt_uuid *collection, json_t **ret);
/* An array of the documents that @fn makes of the rows; -ENOENT of it leaves a row out. */
int api_json_rows(struct vmimg_service *svc, const void *rows, size_t count, size_t size,
		  int (*fn)(struct vmimg_service *svc, const void *row, json_t **ret),
		  json_t **ret);

/* --- hold.c: [{tag, created}] --- */
int api_json_holds(struct vmimg_service *svc, const struct fmt_uuid *snapshot, json_t **ret);

/*
 * usage.c: puts the counts of space (US-*) into the document of a kind, or an array of them: used, exclusive,
 * shared, exact of disks and snapshots; data, exclusive, shared, masked, exact of layers and the store.
 */
int api_fill_usage(struct vmimg_service *svc, enum vmimg_kind kind, json_t *doc);
/* space.c: free, size, space_reserve, space_reserve_default, space_state. */
int api_add_space(struct vmimg_service *svc, json_t *object);
void api_usage_forget(struct vmimg_service *svc);

/* --- clone.c: who stands on whose layers (CL-5); never NULL but without memory --- */
/* Names of other disks that stand on @layer of @disk; on any of its layers. */
json_t *api_json_clones_on(struct vmimg_service *svc, const struct fmt_uuid *layer,
			   const struct fmt_uuid *disk);
json_t *api_json_clones_of(struct vmimg_service *svc, const struct fmt_uuid *disk);
/* What of the disk's chain is others': {disk, layers, allocated}, or null. */
json_t *api_json_shared(struct vmimg_service *svc, const struct fmt_uuid *disk,
			const struct cat_layer *chain, size_t count);
/* Before a deletion: [{disk, layer, clones}] of what stays, and for whom. */
json_t *api_json_kept(struct vmimg_service *svc, const char *snapshot);

/*
 * The chain of *@disk as it is now, which is read anew where its head has gone since (a revert, an import).
 * -ENOENT: the disk has.
 */
int api_disk_chain(struct vmimg_service *svc, struct cat_disk *disk, struct cat_layer **ret,
		   size_t *count);

/* --- tree.c --- */
int api_store_document(struct vmimg_service *svc, json_t **ret);
int api_tree_document(struct vmimg_service *svc, json_t **ret);

#endif
