/* SPDX-License-Identifier: MIT */
/*
 * output.c - errors and documents. Every verb builds or fetches one JSON document; --output=json prints
 * it, the human form is drawn from it. Standard output is checked once, at the end.
 */
#include "cli/output.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define JSON_STYLE (JSON_INDENT(2) | JSON_REAL_PRECISION(6))

uint64_t cli_now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

/* --- errors --- */

/* A message may quote a file name, which need not be UTF-8: then what is not ASCII becomes '?'. */
static json_t *message_json(const char *message)
{
	json_t *text = json_string(message);
	char plain[1024];

	if (text)
		return text;
	snprintf(plain, sizeof(plain), "%s", message);
	for (char *c = plain; *c; c++) {
		if (*c & 0x80)
			*c = '?';
	}
	return json_string(plain);
}

json_t *cli_error_document(int64_t code, const char *message)
{
	const char *name = code < 0 ? strerrorname_np((int)-code) : NULL;

	return json_pack("{s:o, s:o}", "code", name ? json_string(name) : json_integer(code),
			 "message", message_json(message));
}

/* What the library was given in the place of "-". */
static void name_streams(char *text, size_t size)
{
	static const char *const names[] = {"standard input", "standard output"};
	static const char fd[] = "/proc/self/fd/";
	char rest[1024], *at = strstr(text, fd);
	size_t len = strlen(fd);

	for (; at; at = strstr(at + 1, fd)) {
		if ((at[len] != '0' && at[len] != '1') ||
		    (at[len + 1] >= '0' && at[len + 1] <= '9'))
			continue;
		snprintf(rest, sizeof(rest), "%s", at + len + 1);
		snprintf(at, size - (size_t)(at - text), "%s%s", names[at[len] - '0'], rest);
	}
}

int cli_error_with(struct cli *cli, int64_t code, const char *text, json_t *more)
{
	json_t *document;
	char message[1024];

	snprintf(message, sizeof(message), "%s", text);
	name_streams(message, sizeof(message));
	document = cli->json ? cli_error_document(code, message) : NULL;
	if (!cli->json) {
		fprintf(stderr, "vmimg: %s\n", message);
	} else if (document) {
		if (more)
			json_object_update_missing(document, more);
		document = json_pack("{s:o}", "error", document);
		json_dumpf(document, stderr, 0);
		fputc('\n', stderr);
		json_decref(document);
	}
	json_decref(more);
	return CLI_FAILURE;
}

int cli_error(struct cli *cli, int64_t code, const char *format, ...)
{
	char message[1024];
	va_list ap;

	va_start(ap, format);
	vsnprintf(message, sizeof(message), format, ap);
	va_end(ap);
	return cli_error_with(cli, code, message, NULL);
}

int cli_fail(struct cli *cli, int64_t code, const struct vmimg_error *err)
{
	if (err->message[0])
		return cli_error_with(cli, code, err->message, NULL);
	return cli_error_with(cli, code,
			      code < 0 ? strerror((int)-code) : vmimg_strerror((uint32_t)code),
			      NULL);
}

/* --- texts --- */

const char *cli_size_text(char buf[static CLI_TEXT_MAX], uint64_t bytes)
{
	static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
	double value = (double)bytes;
	unsigned unit = 0;

	while (value >= 1024 && unit < 6) {
		value /= 1024;
		unit++;
	}
	snprintf(buf, CLI_TEXT_MAX, "%.*f %s",
		 value < 10 && value != (double)(uint64_t)value ? 1 : 0, value, units[unit]);
	return buf;
}

const char *cli_duration_text(char buf[static CLI_TEXT_MAX], uint64_t ns)
{
	if (ns < 1000)
		snprintf(buf, CLI_TEXT_MAX, "%llu ns", (unsigned long long)ns);
	else if (ns < 1000000)
		snprintf(buf, CLI_TEXT_MAX, "%.1f us", (double)ns / 1e3);
	else if (ns < 1000000000)
		snprintf(buf, CLI_TEXT_MAX, "%.1f ms", (double)ns / 1e6);
	else
		snprintf(buf, CLI_TEXT_MAX, "%.1f s", (double)ns / 1e9);
	return buf;
}

const char *cli_time_text(char buf[static CLI_TEXT_MAX], const char *iso)
{
	const char *time = strchr(iso, 'T');

	if (time && strlen(time) > 8)
		snprintf(buf, CLI_TEXT_MAX, "%.10s %.8sZ", iso, time + 1);
	else
		snprintf(buf, CLI_TEXT_MAX, "%s", iso);
	return buf;
}

/* --- documents --- */

json_t *cli_take_json(struct cli *cli, char *text)
{
	json_error_t why;
	json_t *document = json_loads(text, JSON_DECODE_ANY, &why);

	if (!document)
		cli_error(cli, -EPROTO, "the library's JSON does not parse: %s", why.text);
	vmimg_free(text);
	return document;
}

int cli_finish_output(struct cli *cli)
{
	if (fflush(stdout) || ferror(stdout))
		return cli_error(cli, -(errno ? errno : EIO), "cannot write to standard output: %s",
				 strerror(errno ? errno : EIO));
	return CLI_OK;
}

int cli_print_json(struct cli *cli, json_t *document)
{
	if (!document)
		return cli_error(cli, -ENOMEM, "out of memory");
	json_dumpf(document, stdout, JSON_STYLE | JSON_ENCODE_ANY);
	putchar('\n');
	json_decref(document);
	return cli_finish_output(cli);
}

/* --- the human form --- */

static bool ends_with(const char *text, const char *end)
{
	size_t n = strlen(text), m = strlen(end);

	return n >= m && !strcmp(text + n - m, end);
}

/* What a number under this key is, where no column says so. */
static enum cli_format format_of(const char *key)
{
	static const struct {
		const char *key;
		enum cli_format format;
	} known[] = {
		{"size", CLI_AS_SIZE},
		{"virtual_size", CLI_AS_SIZE},
		{"block_size", CLI_AS_SIZE},
		{"cluster_size", CLI_AS_SIZE},
		{"allocated", CLI_AS_SIZE},
		{"used", CLI_AS_SIZE},
		{"exclusive", CLI_AS_SIZE},
		{"shared", CLI_AS_SIZE},
		{"masked", CLI_AS_SIZE},
		{"data", CLI_AS_SIZE},
		{"free", CLI_AS_SIZE},
		{"space_reserve", CLI_AS_SIZE},
		{"bytes", CLI_AS_SIZE},
		{"bytes_done", CLI_AS_SIZE},
		{"bytes_total", CLI_AS_SIZE},
		{"bytes_per_second", CLI_AS_RATE},
		{"rate_limit", CLI_AS_LIMIT},
		{"job_state", CLI_AS_JOB_STATE},
		{"job_type", CLI_AS_JOB_TYPE},
		{"remaining_time", CLI_AS_DURATION},
		{"created", CLI_AS_TIME},
		{"cut_time", CLI_AS_TIME},
		{"time_submitted", CLI_AS_TIME},
		{"start_time", CLI_AS_TIME},
		{"time_of_last_state_change", CLI_AS_TIME},
		{"elapsed_time", CLI_AS_DURATION},
		{"time_before_removal", CLI_AS_DURATION},
		{"consistency", CLI_AS_CONSISTENCY},
	};

	for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
		if (!strcmp(key, known[i].key))
			return known[i].format;
	}
	return ends_with(key, "_ns") ? CLI_AS_DURATION : CLI_AS_TEXT;
}

/* What a number of the API family says; the number itself where we do not know it. */
static const char *word_of(json_int_t number, enum cli_format format)
{
	static const struct {
		enum cli_format format;
		json_int_t number;
		const char *word;
	} words[] = {
		{CLI_AS_JOB_STATE, VMIMG_JOB_RUNNING, "running"},
		{CLI_AS_JOB_STATE, VMIMG_JOB_COMPLETED, "completed"},
		{CLI_AS_JOB_STATE, VMIMG_JOB_TERMINATED, "terminated"},
		{CLI_AS_JOB_STATE, VMIMG_JOB_KILLED, "killed"},
		{CLI_AS_JOB_STATE, VMIMG_JOB_EXCEPTION, "exception"},
		{CLI_AS_JOB_TYPE, VMIMG_JOB_TYPE_MERGE, "fold"},
		{CLI_AS_JOB_TYPE, VMIMG_JOB_TYPE_EXPORT, "export"},
		{CLI_AS_JOB_TYPE, VMIMG_JOB_TYPE_APPLY_SNAPSHOT, "revert"},
		{CLI_AS_JOB_TYPE, VMIMG_JOB_TYPE_DELETE_SNAPSHOT, "delete"},
		{CLI_AS_JOB_TYPE, VMIMG_JOB_TYPE_SNAPSHOT_COLLECTION, "snapshot"},
		{CLI_AS_JOB_TYPE, VMIMG_JOB_TYPE_CONVERT_TO_REFPOINT, "convert"},
		{CLI_AS_JOB_TYPE, VMIMG_JOB_TYPE_CREATE_REFPOINT_COLLECTION, "refpoint"},
		{CLI_AS_JOB_TYPE, VMIMG_JOB_TYPE_EXPORT_REFPOINT_COLLECTION, "refpoint export"},
		{CLI_AS_JOB_TYPE, VMIMG_JOB_TYPE_REMOVE_REFPOINT_DATA_COLLECTION, "refpoint data"},
		{CLI_AS_JOB_TYPE, VMIMG_JOB_TYPE_DELETE_REFPOINT_COLLECTION, "refpoint delete"},
		{CLI_AS_JOB_TYPE, VMIMG_JOB_TYPE_SETTLE, "settle"},
		{CLI_AS_JOB_TYPE, VMIMG_JOB_TYPE_IMPORT, "import"},
		{CLI_AS_JOB_TYPE, VMIMG_JOB_TYPE_VERIFY, "verify"},
		{CLI_AS_JOB_TYPE, VMIMG_JOB_TYPE_CLONE, "clone"},
		{CLI_AS_JOB_TYPE, VMIMG_JOB_TYPE_FLATTEN, "flatten"},
	};

	for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
		if (words[i].format == format && words[i].number == number)
			return words[i].word;
	}
	return NULL;
}

static void print_number(FILE *out, json_int_t number, enum cli_format format)
{
	const char *word = word_of(number, format);
	static const char *const levels[] = {"unknown", "application", "crash"};
	char buf[CLI_TEXT_MAX];

	if (word)
		fprintf(out, "%s (%" JSON_INTEGER_FORMAT ")", word, number);
	else if (format == CLI_AS_LIMIT && !number)
		fputs("none", out);
	else if (format == CLI_AS_RATE || format == CLI_AS_LIMIT)
		fprintf(out, "%s/s", cli_size_text(buf, (uint64_t)number));
	else if (format == CLI_AS_SIZE)
		fputs(cli_size_text(buf, (uint64_t)number), out);
	else if (format == CLI_AS_DURATION)
		fputs(cli_duration_text(buf, (uint64_t)number), out);
	else if (format == CLI_AS_CONSISTENCY && number >= 0 && number <= 2)
		fputs(levels[number], out);
	else
		fprintf(out, "%" JSON_INTEGER_FORMAT, number);
}

/* A value as text, malloced; lists and objects of scalars in one line. NULL when out of memory. */
static char *value_text(const json_t *value, enum cli_format format)
{
	char buf[CLI_TEXT_MAX];
	char *text = NULL;
	size_t len = 0;
	FILE *out = open_memstream(&text, &len);
	size_t i;
	const char *key;
	json_t *item;

	if (!out)
		return NULL;
	if (!value || json_is_null(value)) {
		fputs("-", out);
	} else if (json_is_string(value) && format == CLI_AS_TIME) {
		fputs(cli_time_text(buf, json_string_value(value)), out);
	} else if (json_is_string(value)) {
		fputs(json_string_length(value) ? json_string_value(value) : "-", out);
	} else if (json_is_boolean(value)) {
		fputs(json_is_true(value) ? "yes" : "no", out);
	} else if (json_is_integer(value)) {
		print_number(out, json_integer_value(value), format);
	} else if (json_is_real(value)) {
		fprintf(out, "%.6g", json_real_value(value));
	} else if (json_is_array(value)) {
		json_array_foreach (value, i, item) {
			const json_t *tag = format == CLI_AS_TAGS ? json_object_get(item, "tag")
								  : NULL;
			char *one = value_text(tag ? tag : item, format);

			fprintf(out, "%s%s", i ? ", " : "", one ? one : "");
			free(one);
		}
		if (!json_array_size(value))
			fputs("-", out);
	} else {
		i = 0;
		json_object_foreach ((json_t *)value, key, item) {
			char *one = value_text(item, format_of(key));

			fprintf(out, "%s%s %s", i++ ? ", " : "", key, one ? one : "");
			free(one);
		}
	}
	fclose(out);
	return text;
}

/* Columns that hold terminal cells, not bytes: names are ASCII, but messages need not be. */
static size_t text_width(const char *text)
{
	size_t n = 0;

	for (; *text; text++)
		n += (*text & 0xc0) != 0x80;
	return n;
}

#define COLUMNS_MAX 12

static void print_cells(char *const *cells, const size_t *widths, unsigned columns, size_t rows)
{
	for (size_t r = 0; r < rows; r++) {
		for (unsigned c = 0; c < columns; c++) {
			const char *text = cells[r * columns + c];
			size_t width = text_width(text ? text : "");

			printf("%s", text ? text : "");
			if (c + 1 < columns)
				printf("%*s", (int)(widths[c] - width + 2), "");
		}
		putchar('\n');
	}
}

static int print_table(struct cli *cli, const json_t *rows, const struct cli_column *columns)
{
	size_t widths[COLUMNS_MAX] = {0};
	size_t count = json_array_size(rows) + 1;
	unsigned n = 0;
	char **cells;

	while (columns[n].title && n < COLUMNS_MAX)
		n++;
	cells = calloc(count * n, sizeof(*cells));
	if (!cells)
		return cli_error(cli, -ENOMEM, "out of memory");
	for (size_t i = 0; i < count * n; i++) {
		const struct cli_column *c = &columns[i % n];

		cells[i] = i < n ? strdup(c->title)
				 : value_text(json_object_get(json_array_get(rows, i / n - 1),
							      c->key),
					      c->format);
		if (cells[i] && text_width(cells[i]) > widths[i % n])
			widths[i % n] = text_width(cells[i]);
	}
	print_cells(cells, widths, n, count);
	for (size_t i = 0; i < count * n; i++)
		free(cells[i]);
	free(cells);
	return CLI_OK;
}

static bool is_list_of_objects(const json_t *value)
{
	return json_is_array(value) && json_is_object(json_array_get(value, 0));
}

/* A table whose columns are the keys of the first row. */
static int print_rows_by_key(struct cli *cli, const json_t *rows)
{
	struct cli_column columns[COLUMNS_MAX + 1] = {0};
	unsigned n = 0;
	const char *key;
	json_t *value;

	json_object_foreach (json_array_get(rows, 0), key, value) {
		if (n < COLUMNS_MAX)
			columns[n++] = (struct cli_column){key, key, format_of(key)};
	}
	return print_table(cli, rows, columns);
}

static int print_object(struct cli *cli, json_t *object)
{
	const char *key;
	json_t *value;
	size_t width = 0;

	json_object_foreach (object, key, value) {
		if (strlen(key) > width && !is_list_of_objects(value))
			width = strlen(key);
	}
	json_object_foreach (object, key, value) {
		char *text;

		if (is_list_of_objects(value))
			continue;
		text = value_text(value, format_of(key));
		printf("%-*s  %s\n", (int)width, key, text ? text : "");
		free(text);
	}
	json_object_foreach (object, key, value) {
		if (!is_list_of_objects(value))
			continue;
		printf("%s:\n", key);
		if (print_rows_by_key(cli, value))
			return CLI_FAILURE;
	}
	return CLI_OK;
}

int cli_print(struct cli *cli, json_t *document)
{
	int status = CLI_OK;
	size_t i;
	json_t *item;

	if (!document || cli->json)
		return cli_print_json(cli, document);
	if (json_is_object(document)) {
		status = print_object(cli, document);
	} else {
		json_array_foreach (document, i, item) {
			if (i)
				putchar('\n');
			status |= print_object(cli, item);
		}
	}
	json_decref(document);
	return status ? status : cli_finish_output(cli);
}

int cli_print_rows(struct cli *cli, json_t *rows, const struct cli_column *columns)
{
	int status;

	if (!rows || cli->json)
		return cli_print_json(cli, rows);
	status = print_table(cli, rows, columns);
	json_decref(rows);
	return status ? status : cli_finish_output(cli);
}
