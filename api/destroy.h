/* SPDX-License-Identifier: MIT */
/* destroy.h - a snapshot deleted as DestroySnapshot does it, for other calls. Private. */
#ifndef API_DESTROY_H
#define API_DESTROY_H

#include "api/job.h"

/*
 * As vmimg_destroy_snapshot(); with @id not NULL it deletes that snapshot and no other, whatever has its name
 * by now.
 */
uint32_t api_destroy_snapshot(struct vmimg_service *svc, const char *snapshot,
			      const struct fmt_uuid *id, struct vmimg_job **job,
			      struct vmimg_error *err);

#endif
