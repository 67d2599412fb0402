/* SPDX-License-Identifier: MIT */
/*
 * check.c - vmimg_check(): the checker's findings as a document and one verdict (CK-*). Changes
 * nothing. Any thread.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "api/describe.h"
#include "fsck/fsck.h"

static const char *kind_of(const struct fsck_finding *f)
{
	switch (f->severity) {
	case FSCK_CORRUPT: return "corruption";
	case FSCK_LEAK: return "leak";
	default: return "note";
	}
}

static void add_finding(void *arg, const struct fsck_finding *f)
{
	json_t *where = api_json_path(f->where ? f->where : "");
	json_t *message = api_json_path(f->message ? f->message : "");
	json_t *doc = json_pack("{s:s, s:s, s:o, s:o}", "kind", kind_of(f), "rule",
				f->rule ? f->rule : "", "where", where, "message", message);

	if (f->leaked_bytes)
		json_object_set_new(doc, "leaked_bytes", json_integer((json_int_t)f->leaked_bytes));
	json_array_append_new(arg, doc);
}

/* The worst wins: corruption, then an unknown feature, then no check, then leaks (CK-2). */
static int verdict(int r, const struct fsck_summary *sum)
{
	if (sum->corruptions || r == -EUCLEAN || r == -EBADMSG)
		return VMIMG_CHECK_CORRUPT;
	if (r == -ENOTSUP)
		return VMIMG_CHECK_NOT_SUPPORTED;
	if (r < 0)
		return VMIMG_CHECK_FAILED;
	return sum->leaks ? VMIMG_CHECK_LEAKS : VMIMG_CHECK_SOUND;
}

static char *report(const char *path, int result, json_t *findings, const struct fsck_summary *sum)
{
	json_t *doc = json_pack("{s:o, s:i, s:O, s:{s:I, s:I, s:I, s:I}}", "path",
				api_json_path(path), "result", result, "findings", findings,
				"checked", "layers", (json_int_t)sum->layers, "disks",
				(json_int_t)sum->disks, "snapshots", (json_int_t)sum->snapshots,
				"leaked_bytes", (json_int_t)sum->leaked_bytes);
	char *text = doc ? json_dumps(doc, JSON_COMPACT) : NULL;

	json_decref(doc);
	return text;
}

int vmimg_check(const char *path, struct vmimg_error *err, char **json)
{
	struct fsck_summary sum = {0};
	struct fmt_error why = {""};
	struct eng_io *io = NULL;
	json_t *findings;
	char *text;
	int r, result = VMIMG_CHECK_FAILED;

	if (!path || !*path || !json) {
		api_fail(err, -EINVAL, "check: no %s given", json ? "path" : "result");
		return VMIMG_CHECK_FAILED;
	}
	findings = json_array();
	r = findings ? eng_io_posix_create(&io) : -ENOMEM;
	if (r == 0) {
		r = fsck_run(io, path, add_finding, findings, &why, &sum);
		result = verdict(r, &sum);
	}
	if (r < 0)
		api_fail_why(err, r, &why, path);
	/* What could not be checked has no report, only an error. */
	if (result != VMIMG_CHECK_FAILED && result != VMIMG_CHECK_NOT_SUPPORTED) {
		text = report(path, result, findings, &sum);
		if (text)
			*json = text;
	}
	eng_io_destroy(io);
	json_decref(findings);
	return result;
}
