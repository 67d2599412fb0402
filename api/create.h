/* SPDX-License-Identifier: MIT */
/* create.h - a create as a job (create.c). Private. */
#ifndef API_CREATE_H
#define API_CREATE_H

#include "api/work.h"
#include "engine/snapshot/snapshot.h"

struct api_quiesce;

/*
 * Starts the job of @snap, which has been checked; @quiesce: NULL, or what freezes the guests. Takes both,
 * but nothing on failure. Service's lock held.
 */
int api_create_start_locked(struct vmimg_service *svc, const struct eng_snapshot_spec *spec,
			    struct eng_snapshot *snap, struct api_quiesce *quiesce,
			    struct fmt_error *why, struct vmimg_job **ret);

#endif
