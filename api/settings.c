/* SPDX-License-Identifier: MIT */
/*
 * settings.c - reads the settings of CreateSnapshot (CSN-7, CSN-8): one JSON object, every name
 * known, given once, of its type and in its range. Nothing is guessed or converted. Pure, any
 * thread.
 */
#include "api/settings.h"

#include <errno.h>
#include <jansson.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "api/vmimg.h"

#define JSON_BYTES_MAX (64u << 10)

enum type {
	NUMBER,
	BOOLEAN,
	TEXT,
};

static const struct setting {
	const char *name;
	enum type type;
	size_t offset;     /* in struct api_settings */
	uint64_t min, max; /* of the number; bytes of the text */
} settings[] = {
	{"ConsistencyLevel", NUMBER, offsetof(struct api_settings, consistency), 0, 2},
	{"IgnoreNonSnapshottableDisks", BOOLEAN,
	 offsetof(struct api_settings, ignore_non_snapshottable), 0, 0},
	{"GuestBackupType", NUMBER, offsetof(struct api_settings, guest_backup_type), 0, 2},
	{"ElementName", TEXT, offsetof(struct api_settings, element_name), 0, CAT_TEXT_MAX - 1},
	{"Synchronous", BOOLEAN, offsetof(struct api_settings, synchronous), 0, 0},
	{"Timeout", NUMBER, offsetof(struct api_settings, timeout_ms), 1, 3600000},
	{"MaxStall", NUMBER, offsetof(struct api_settings, max_stall_ms), 0, 3600000},
	{"FallbackToCrash", BOOLEAN, offsetof(struct api_settings, fallback_to_crash), 0, 0},
};

static const struct setting *find(const char *name)
{
	for (size_t i = 0; i < sizeof(settings) / sizeof(settings[0]); i++)
		if (strcmp(settings[i].name, name) == 0)
			return &settings[i];
	return NULL;
}

static int mistyped(const struct setting *s, const json_t *value, const char *expected,
		    struct fmt_error *err)
{
	static const char *const types[] = {
		"an object", "an array", "a string", "a whole number", "a number with a fraction",
		"true",      "false",    "null"};

	return fmt_fail(err, -EINVAL, "settings: %s is %s, expected %s", s->name,
			types[json_typeof(value)], expected);
}

static int read_number(const struct setting *s, const json_t *value, struct fmt_error *err,
		       uint64_t *ret)
{
	json_int_t n = json_integer_value(value);

	if (!json_is_integer(value))
		return mistyped(s, value, "a whole number", err);
	if (n < (json_int_t)s->min || n > (json_int_t)s->max)
		return fmt_fail(err, -EINVAL, "settings: %s is %lld, expected %llu..%llu", s->name,
				(long long)n, (unsigned long long)s->min,
				(unsigned long long)s->max);
	*ret = (uint64_t)n;
	return 0;
}

static int read_setting(void *arg, const char *name, const json_t *value, struct fmt_error *err)
{
	struct api_settings *ret = arg;
	const struct setting *s = find(name);
	void *field;

	if (!s)
		return fmt_fail(
			err, -EINVAL,
			"settings: '%.64s' is unknown, expected ConsistencyLevel, "
			"IgnoreNonSnapshottableDisks, GuestBackupType, ElementName, Synchronous, "
			"Timeout, MaxStall or FallbackToCrash",
			name);
	field = (char *)ret + s->offset;
	switch (s->type) {
	case NUMBER: return read_number(s, value, err, field);
	case BOOLEAN:
		if (!json_is_boolean(value))
			return mistyped(s, value, "true or false", err);
		*(bool *)field = json_is_true(value);
		return 0;
	case TEXT:
		if (!json_is_string(value))
			return mistyped(s, value, "a string", err);
		if (json_string_length(value) > s->max)
			return fmt_fail(err, -EINVAL,
					"settings: %s has %zu bytes, expected at most %llu",
					s->name, json_string_length(value),
					(unsigned long long)s->max);
		memcpy(field, json_string_value(value), json_string_length(value) + 1);
		return 0;
	}
	return -EINVAL;
}

int api_settings_each(const char *json, api_settings_read_one *each, void *arg,
		      struct fmt_error *err)
{
	size_t len = json ? strnlen(json, JSON_BYTES_MAX + 1) : 0;
	json_t *object, *value;
	json_error_t why;
	const char *name;
	int r = 0;

	if (!len)
		return 0;
	if (len > JSON_BYTES_MAX)
		return fmt_fail(err, -EINVAL, "settings: longer than %u bytes", JSON_BYTES_MAX);
	object = json_loadb(json, len, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &why);
	if (!object)
		return fmt_fail(err, -EINVAL, "settings: no valid JSON at byte %d: %s",
				why.position, why.text);
	if (!json_is_object(object))
		r = fmt_fail(err, -EINVAL, "settings: no JSON object");
	json_object_foreach (object, name, value) {
		if (r == 0)
			r = each(arg, name, value, err);
	}
	json_decref(object);
	return r;
}

int api_settings_read(const char *json, struct fmt_error *err, struct api_settings *ret)
{
	struct api_settings s = {
		.consistency = VMIMG_CONSISTENCY_CRASH,
		.timeout_ms = 10000,
	};
	int r = api_settings_each(json, read_setting, &s, err);

	if (r == 0)
		*ret = s;
	return r;
}
