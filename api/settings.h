/* SPDX-License-Identifier: MIT */
/*
 * settings.h - the settings of CreateSnapshot, read from JSON (CSN-7). Private. Pure, any thread.
 */
#ifndef API_SETTINGS_H
#define API_SETTINGS_H

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

/* @json: NULL or "": the defaults. -EINVAL with the text of what is wrong. */
int api_settings_read(const char *json, struct fmt_error *err, struct api_settings *ret);

#endif
