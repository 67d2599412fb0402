/* SPDX-License-Identifier: MIT */
/* fold.h - folds as jobs (fold.c). Private. */
#ifndef API_FOLD_H
#define API_FOLD_H

#include "api/service.h"

/* From here on every fold is a job; at open. */
void api_folds_watch(struct vmimg_service *svc);

#endif
