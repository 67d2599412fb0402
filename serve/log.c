/* SPDX-License-Identifier: MIT */
/*
 * log.c - one line an event on standard error, as text or as a JSON object. To a journal each line
 * goes with its priority in front, as sd-daemon(3) has it.
 */
#include <errno.h>
#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "serve/server.h"

#define TEXT_MAX 1024

static bool as_json;

void srv_log_set(bool json)
{
	as_json = json;
}

static const char *level_name(enum srv_level level)
{
	switch (level) {
	case SRV_ERROR: return "error";
	case SRV_WARNING: return "warning";
	case SRV_DEBUG: return "debug";
	default: return "info";
	}
}

static void time_text(char *buf, size_t size)
{
	struct timespec ts;
	struct tm tm;
	size_t n;

	clock_gettime(CLOCK_REALTIME, &ts);
	gmtime_r(&ts.tv_sec, &tm);
	n = strftime(buf, size, "%Y-%m-%dT%H:%M:%S", &tm);
	snprintf(buf + n, size - n, ".%06ldZ", ts.tv_nsec / 1000);
}

/* What a client sent may be in a text: no line may be forged with it. */
static void make_printable(char *text)
{
	for (; *text; text++)
		if ((unsigned char)*text < 0x20 || *text == 0x7f)
			*text = '?';
}

void srv_log(enum srv_level level, const char *about, const char *format, ...)
{
	char text[TEXT_MAX], when[40];
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	make_printable(text);
	time_text(when, sizeof(when));
	if (as_json) {
		json_t *line = json_pack("{s:s, s:s, s:s*, s:s+}", "time", when, "level",
					 level_name(level), "about", about, "message", text, "");
		char *dump = line ? json_dumps(line, JSON_COMPACT) : NULL;

		if (dump)
			fprintf(stderr, "%s\n", dump);
		free(dump);
		json_decref(line);
	} else if (getenv("JOURNAL_STREAM")) {
		fprintf(stderr, "<%d>%s%s%s\n", level, about ? about : "", about ? ": " : "", text);
	} else {
		fprintf(stderr, "%s %-7s %s%s%s\n", when, level_name(level), about ? about : "",
			about ? ": " : "", text);
	}
}

int srv_fail(struct vmimg_error *err, int code, const char *format, ...)
{
	va_list args;

	if (!err)
		return code;
	err->code = code;
	va_start(args, format);
	vsnprintf(err->message, sizeof(err->message), format, args);
	va_end(args);
	return code;
}
