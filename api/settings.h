/* SPDX-License-Identifier: MIT */
/*
 * settings.h - settings read from JSON: any call's, and those of CreateSnapshot (CSN-7). Private. Pure,
 * any thread.
 */
#ifndef API_SETTINGS_H
#define API_SETTINGS_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "engine/catalog/catalog.h"
#include "format/error.h"

struct api_settings {
	uint64_t consistency;              /* enum vmimg_consistency */
	uint64_t guest_backup_type;        /* 0 undefined, 1 full, 2 copy */
	uint64_t timeout_ms, max_stall_ms; /* max_stall 0: none */
	bool ignore_non_snapshottable, synchronous, fallback_to_crash;
	char element_name[CAT_TEXT_MAX]; /* "": as the name */
};

/*
 * Calls @each for every setting of @json, one object with each name once; NULL or "": there are none.
 * -EINVAL, or what @each came to, which ends it.
 */
typedef int api_settings_read_one(void *arg, const char *name, const json_t *value,
				  struct fmt_error *err);
int api_settings_each(const char *json, api_settings_read_one *each, void *arg,
		      struct fmt_error *err);

/* @json: NULL or "": the defaults. -EINVAL with the text of what is wrong. */
int api_settings_read(const char *json, struct fmt_error *err, struct api_settings *ret);

#endif
