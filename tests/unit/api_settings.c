/* SPDX-License-Identifier: MIT */
/* api_settings.c - the settings of CreateSnapshot: what is taken, what is refused, and why (CSN-7). */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/settings.h"

static struct api_settings settings;
static struct fmt_error err;

static void accept(const char *json)
{
	cr_assert_eq(api_settings_read(json, &err, &settings), 0, "%s: %s", json, err.text);
}

/* Refused, with @part in the text, and nothing written. */
static void refuse(const char *json, const char *part)
{
	struct api_settings before = settings;

	memset(&err, 0, sizeof(err));
	cr_expect_eq(api_settings_read(json, &err, &settings), -EINVAL, "%s", json);
	cr_expect_not_null(strstr(err.text, part), "%s: '%s' has no '%s'", json, err.text, part);
	cr_expect_eq(memcmp(&before, &settings, sizeof(before)), 0, "%s", json);
}

/* CSN-7 */
Test(api_settings, defaults)
{
	static const char *const empty[] = {NULL, "", "{}", " {\n} "};

	for (size_t i = 0; i < sizeof(empty) / sizeof(empty[0]); i++) {
		memset(&settings, 0xff, sizeof(settings));
		accept(empty[i]);
		cr_expect_eq(settings.consistency, 2);
		cr_expect_eq(settings.guest_backup_type, 0);
		cr_expect_eq(settings.timeout_ms, 10000);
		cr_expect_eq(settings.max_stall_ms, 0);
		cr_expect_not(settings.ignore_non_snapshottable);
		cr_expect_not(settings.synchronous);
		cr_expect_str_eq(settings.element_name, "");
	}
}

/* CSN-7 */
Test(api_settings, every_name)
{
	accept("{\"ConsistencyLevel\": 1, \"IgnoreNonSnapshottableDisks\": true, \"GuestBackupType\": 2, "
	       "\"ElementName\": \"x\\u00fc\", \"Synchronous\": true, \"Timeout\": 3600000, "
	       "\"MaxStall\": 3600000}");
	cr_expect_eq(settings.consistency, 1);
	cr_expect_eq(settings.guest_backup_type, 2);
	cr_expect_eq(settings.timeout_ms, 3600000);
	cr_expect_eq(settings.max_stall_ms, 3600000);
	cr_expect(settings.ignore_non_snapshottable);
	cr_expect(settings.synchronous);
	cr_expect_str_eq(settings.element_name, "x\xc3\xbc");
	accept("{\"ConsistencyLevel\": 0, \"Timeout\": 1, \"MaxStall\": 0, \"Synchronous\": false}");
	cr_expect_eq(settings.consistency, 0);
	cr_expect_eq(settings.timeout_ms, 1);
}

/* CSN-8 */
Test(api_settings, unknown_names_are_named)
{
	refuse("{\"Quiesce\": 1}", "Quiesce");
	refuse("{\"consistencylevel\": 2}", "consistencylevel");
	refuse("{\"ConsistencyLevel \": 2}", "'ConsistencyLevel '");
	refuse("{\"\": 2}", "''");
	refuse("{\"Synchronous\": true, \"Extra\": {\"a\": [1]}}", "Extra");
}

/* CSN-7 */
Test(api_settings, types_are_strict)
{
	static const char *const names[] = {"ConsistencyLevel", "GuestBackupType", "Timeout",
					    "MaxStall"};
	static const char *const wrong[] = {"true", "null", "\"2\"", "1.0", "1e0", "[1]", "{}"};
	char json[80];

	for (size_t i = 0; i < 4; i++)
		for (size_t j = 0; j < 7; j++) {
			snprintf(json, sizeof(json), "{\"%s\": %s}", names[i], wrong[j]);
			refuse(json, names[i]);
		}
	refuse("{\"Synchronous\": 1}", "Synchronous");
	refuse("{\"Synchronous\": \"true\"}", "Synchronous");
	refuse("{\"Synchronous\": null}", "Synchronous");
	refuse("{\"IgnoreNonSnapshottableDisks\": 0}", "IgnoreNonSnapshottableDisks");
	refuse("{\"ElementName\": 5}", "ElementName");
	refuse("{\"ElementName\": null}", "ElementName");
}

/* CSN-7 */
Test(api_settings, ranges)
{
	refuse("{\"ConsistencyLevel\": 3}", "expected 0..2");
	refuse("{\"ConsistencyLevel\": -1}", "expected 0..2");
	refuse("{\"GuestBackupType\": 3}", "expected 0..2");
	refuse("{\"Timeout\": 0}", "expected 1..3600000");
	refuse("{\"Timeout\": 3600001}", "expected 1..3600000");
	refuse("{\"MaxStall\": -1}", "expected 0..3600000");
	refuse("{\"MaxStall\": 9223372036854775807}", "expected 0..3600000");
	refuse("{\"MaxStall\": 92233720368547758070}", "JSON");
}

/* CSN-7, CSN-8 */
Test(api_settings, lengths)
{
	char *json = malloc(70000);

	snprintf(json, 70000, "{\"ElementName\": \"%0255d\"}", 0);
	accept(json);
	cr_expect_eq(strlen(settings.element_name), 255);
	snprintf(json, 70000, "{\"ElementName\": \"%0256d\"}", 0);
	refuse(json, "256");
	memset(json, ' ', 70000);
	json[0] = '{';
	json[65535] = '}';
	json[65536] = 0;
	accept(json);
	json[65535] = ' ';
	json[65536] = '}';
	json[65537] = 0;
	refuse(json, "65536");
	free(json);
}

/* CSN-8 */
Test(api_settings, only_one_json_object)
{
	static const char *const bad[] = {"{",
					  "}",
					  "{}{}",
					  "{} x",
					  "null",
					  "[]",
					  "1",
					  "\"a\"",
					  "{'a': 1}",
					  "{\"Timeout\": 5,}",
					  "{Timeout: 5}",
					  "\xff",
					  "{\"a\xff\": 1}",
					  "{\"ElementName\": \"a\\u0000b\"}"};

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		refuse(bad[i], "settings");
	refuse("{\"Timeout\": 5, \"Timeout\": 5}", "duplicate");
}
