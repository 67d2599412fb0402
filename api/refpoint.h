/* SPDX-License-Identifier: MIT */
/* refpoint.h - what refpoint.c gives to the listings (RP-25). Private. */
#ifndef API_REFPOINT_H
#define API_REFPOINT_H

#include <jansson.h>

#include "api/service.h"

int api_refpoint_document(struct vmimg_service *svc, const void *row, json_t **ret);
int api_refpoint_find(struct vmimg_service *svc, const char *name, json_t **ret);
int api_refpoint_list(struct vmimg_service *svc, const char *filter, json_t **ret);

#endif
