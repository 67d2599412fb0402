/* SPDX-License-Identifier: MIT */
/*
 * transfer.c - the verbs that move snapshots: export, import. The store's process, a server or this one,
 * does it as a job. A stream to or from standard output and input goes by a pipe: directly where that
 * is one and the store is open here, else through a FIFO of our own, which a thread empties or fills.
 */
#include "cli/options.h"
#include "cli/output.h"
#include "cli/session.h"
#include "cli/work.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PIPE_BYTES (1 << 20)

/* --- a hop between a standard stream and the store's process --- */

struct hop {
	char dir[PATH_MAX], path[PATH_MAX + 8]; /* "": none */
	int from, to;
	bool started, joined;
	int error; /* of standard output; read when joined */
	pthread_t thread;
};

static int copy_by_hand(int from, int to)
{
	static char buf[1 << 16];
	ssize_t n, put;

	while ((n = read(from, buf, sizeof(buf))) > 0 || (n < 0 && errno == EINTR))
		for (ssize_t at = 0; at < n; at += put) {
			put = write(to, buf + at, (size_t)(n - at));
			if (put < 0 && errno != EINTR)
				return -errno;
			put = put < 0 ? 0 : put;
		}
	return n < 0 ? -errno : 0;
}

static void *hop_main(void *arg)
{
	struct hop *hop = arg;
	ssize_t n = 1;

	while (n > 0 || (n < 0 && errno == EINTR))
		n = splice(hop->from, NULL, hop->to, NULL, PIPE_BYTES, SPLICE_F_MOVE);
	n = n < 0 ? -errno : 0;
	if (n == -EINVAL)
		n = copy_by_hand(hop->from, hop->to);
	hop->error = (int)n;
	/* The other side sees the end, or that nobody reads any more. */
	close(hop->from == STDIN_FILENO ? hop->to : hop->from);
	return NULL;
}

static bool is_pipe(int fd)
{
	struct stat st;

	return fstat(fd, &st) == 0 && S_ISFIFO(st.st_mode);
}

/* Makes the FIFO and opens our end of it: a reader does not wait for the writer, nor the other way. */
static int hop_open(struct cli *cli, struct hop *hop, bool out)
{
	const char *tmp = getenv("TMPDIR");
	int fd, r;

	snprintf(hop->dir, sizeof(hop->dir), "%s/vmimg-pipe.XXXXXX", tmp && *tmp ? tmp : "/tmp");
	if (!mkdtemp(hop->dir)) {
		hop->dir[0] = 0;
		return cli_error(cli, -errno, "cannot make a pipe: %s", strerror(errno));
	}
	snprintf(hop->path, sizeof(hop->path), "%s/stream", hop->dir);
	if (mkfifo(hop->path, 0600) < 0)
		return cli_error(cli, -errno, "%s: %s", hop->path, strerror(errno));
	fd = open(hop->path, (out ? O_RDONLY : O_RDWR) | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0)
		return cli_error(cli, -errno, "%s: %s", hop->path, strerror(errno));
	r = fcntl(fd, F_SETPIPE_SZ, PIPE_BYTES);
	(void)r; /* it only goes slower */
	hop->from = out ? fd : STDIN_FILENO;
	hop->to = out ? STDOUT_FILENO : fd;
	return CLI_OK;
}

/* The other side has opened its end. */
static int hop_start(struct cli *cli, struct hop *hop)
{
	int fd = hop->from == STDIN_FILENO ? hop->to : hop->from;
	int only = -1;

	if (!hop->path[0])
		return CLI_OK;
	if (hop->from == STDIN_FILENO) {
		/* O_RDWR kept the FIFO alive until here; the end must be seen when we close ours. */
		only = open(hop->path, O_WRONLY | O_CLOEXEC);
		if (only < 0)
			return cli_error(cli, -errno, "%s: %s", hop->path, strerror(errno));
		close(fd);
		hop->to = only;
	} else {
		fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
	}
	hop->started = pthread_create(&hop->thread, NULL, hop_main, hop) == 0;
	return hop->started ? CLI_OK : cli_error(cli, -EAGAIN, "cannot start a thread");
}

static void hop_join(struct hop *hop)
{
	if (hop->started && !hop->joined)
		pthread_join(hop->thread, NULL);
	hop->joined = hop->started;
}

/* Why nothing could be written any more, where that was us; the job has ended. */
static int hop_error(struct hop *hop)
{
	if (!hop->started || hop->from == STDIN_FILENO)
		return 0;
	hop_join(hop);
	return hop->error;
}

static void hop_end(struct hop *hop, bool failed)
{
	/* Who waits for input that nobody wants any more is not waited for. */
	if (!(failed && hop->from == STDIN_FILENO))
		hop_join(hop);
	else if (hop->started)
		pthread_detach(hop->thread);
	if (hop->path[0])
		unlink(hop->path);
	if (hop->dir[0])
		rmdir(hop->dir);
}

/* --- the job --- */

/* The job's outcome: its report, or the error printed. */
static int finish(struct cli *cli, struct cli_session *s, struct hop *hop, const char *operation,
		  const char *id, json_t **report)
{
	json_t *error = NULL, *job = NULL;
	const char *why;
	int status, r;

	cli_wait_job(cli, s, id, operation, UINT64_MAX, true, &job, &error);
	if (!job)
		return cli_fail_call(cli, error, NULL);
	why = json_string_value(json_object_get(job, "error_description"));
	r = cli_job_state(job) != VMIMG_JOB_COMPLETED ? hop_error(hop) : 0;
	if (r < 0) {
		status = cli_error(cli, r, "standard output: %s", strerror(-r));
	} else if (cli_job_state(job) != VMIMG_JOB_COMPLETED) {
		/* One that failed may have said more. */
		json_decref(cli_try(s, "JobReport", json_pack("{s:s}", "Job", id), report));
		status = cli_error_with(cli, VMIMG_FAILED,
					why && *why ? why : vmimg_strerror(VMIMG_FAILED),
					json_pack("{s:s, s:I}", "job", id, "error_code",
						  (json_int_t)cli_number(job, "error_code")));
	} else
		status = cli_call(s, "JobReport", json_pack("{s:s}", "Job", id), report);
	json_decref(job);
	return status;
}

/* Starts @method, moves the stream where there is a hop, waits. Takes @params. */
static int run_job(struct cli *cli, struct cli_session *s, struct hop *hop, const char *method,
		   const char *operation, json_t *params, json_t **report)
{
	json_t *started = NULL;
	int status = cli_call(s, method, params, &started), r;
	char id[64];

	if (status) {
		hop_end(hop, true);
		return status;
	}
	snprintf(id, sizeof(id), "%s", json_string_value(json_object_get(started, "Job")));
	json_decref(started);
	status = hop_start(cli, hop);
	if (!status)
		status = finish(cli, s, hop, operation, id, report);
	/* The job is done when the pipe has taken the last byte, and we when our output has. */
	r = status ? 0 : hop_error(hop);
	if (r < 0)
		status = cli_error(cli, r, "standard output: %s", strerror(-r));
	hop_end(hop, status != CLI_OK);
	return status;
}

static int print_report(struct cli *cli, json_t *report, const char *done)
{
	const char *warning = json_string_value(json_object_get(report, "warning"));

	if (cli->json) {
		json_object_set_new(report, "return_value", json_integer(0));
		return cli_print_json(cli, report);
	}
	printf("%s: %s, %llu disk%s, %llu bytes of data\n",
	       json_string_value(json_object_get(report, "snapshot")), done,
	       (unsigned long long)cli_number(report, "disks"),
	       cli_number(report, "disks") == 1 ? "" : "s",
	       (unsigned long long)cli_number(report, "bytes"));
	if (warning)
		fprintf(stderr, "vmimg: warning: %s\n", warning);
	json_decref(report);
	return cli_finish_output(cli);
}

/* --- export --- */

/* "NAME" is a snapshot of the same collection; "@NAME" and "#NAME" too, "COLLECTION@NAME" as it is. */
static bool full_base(const char *snapshot, const char *base, char ret[2 * VMIMG_NAME_MAX + 8])
{
	int len = (int)strcspn(snapshot, "@"), n;
	bool bare = !strchr(base, '@') && !strchr(base, '#');
	bool whole = !bare && base[0] != '@' && base[0] != '#';

	n = whole ? snprintf(ret, 2 * VMIMG_NAME_MAX + 8, "%s", base)
		  : snprintf(ret, 2 * VMIMG_NAME_MAX + 8, "%.*s%s%s", len, snapshot,
			     bare ? "@" : "", base);
	return n < 2 * VMIMG_NAME_MAX + 8;
}

struct export
{
	const char *base, *format;
	bool compress, resume, merge, no_storage;
	uint64_t rate;
	char full_base[2 * VMIMG_NAME_MAX + 8];
};

static json_t *export_settings(const struct export *e)
{
	json_t *settings = json_pack("{s:s, s:b, s:b, s:b, s:i}", "Format", e->format, "Compress",
				     e->compress, "Resume", e->resume, "CopyVmStorage",
				     !e->no_storage, "BackupIntent", e->merge ? 2 : 1);

	if (e->base)
		json_object_set_new(settings, "DifferentialBackupBase", json_string(e->full_base));
	if (e->rate)
		json_object_set_new(settings, "RateLimit", json_integer((json_int_t)e->rate));
	return settings;
}

/* A bare base that is no snapshot may be a reference point. */
static void find_base(struct cli_session *s, struct export *e)
{
	char *at = strchr(e->full_base, '@');
	json_t *error;

	if (!e->base || strchr(e->base, '@') || strchr(e->base, '#') || !at)
		return;
	error = cli_try(s, "Describe",
			json_pack("{s:s, s:s}", "Kind", "snapshot", "Name", e->full_base), NULL);
	if (error)
		*at = '#';
	json_decref(error);
}

static int do_export(struct cli *cli, const char *snapshot, const char *dir, struct export *e)
{
	bool to_stdout = !strcmp(dir, "-");
	struct hop hop = {.path = ""};
	struct cli_session *s = NULL;
	json_t *report = NULL;
	char *path = NULL;
	int status;

	cli_catch_interrupts();
	signal(SIGPIPE, SIG_IGN);
	if (cli_begin(cli, NULL, &s))
		return CLI_FAILURE;
	find_base(s, e);
	status = CLI_OK;
	if (!to_stdout)
		path = cli_absolute_path(dir);
	else if (cli_service(s) && is_pipe(STDOUT_FILENO))
		path = strdup("/proc/self/fd/1");
	else if (!(status = hop_open(cli, &hop, true)))
		path = strdup(hop.path);
	if (!status && !path)
		status = cli_error(cli, -ENOMEM, "out of memory");
	if (!status)
		status = run_job(cli, s, &hop, "ExportSnapshot", "export",
				 json_pack("{s:s, s:s, s:o}", "SnapshotCollection", snapshot,
					   "ExportDirectory", path, "ExportSettingData",
					   export_settings(e)),
				 &report);
	else
		hop_end(&hop, true);
	free(path);
	if (!status && !to_stdout)
		status = print_report(cli, report, "exported");
	else
		json_decref(report);
	return cli_end(cli, s, status);
}

static void prepare_export(struct cli_session *s, const void *arg, json_t *params)
{
	struct export e = *(const struct export *)arg;

	find_base(s, &e);
	json_object_set_new(params, "ExportSettingData", export_settings(&e));
}

/* Its report is not waited for: what was made has a manifest. */
static int export_async(struct cli *cli, const char *snapshot, const char *dir,
			const struct export *e)
{
	struct cli_work work = {
		.operation = "export",
		.method = "ExportSnapshot",
		.prepare = prepare_export,
		.arg = e,
	};
	char *path = cli_absolute_path(dir);

	if (!path)
		return cli_error(cli, -ENOMEM, "out of memory");
	work.params = json_pack("{s:s, s:s}", "SnapshotCollection", snapshot, "ExportDirectory",
				path);
	free(path);
	return cli_run_work(cli, &work, true);
}

static int run_export(struct cli *cli, int argc, char **argv)
{
	struct export e = {.format = "stream"};
	bool async = false;
	const struct cli_option options[] = {
		{"base", 0, CLI_TEXT, &e.base, "SNAPSHOT|REFPOINT",
		 "only what changed since that snapshot, or #REFPOINT"},
		{"format", 'f', CLI_CHOICE, &e.format, "raw|qcow2|stream",
		 "of what is made (default: stream)"},
		{"compress", 'c', CLI_FLAG, &e.compress, NULL, "qcow2 and stream: by zlib"},
		{"resume", 0, CLI_FLAG, &e.resume, NULL,
		 "go on where an interrupted export of a stream ended, and keep what a failure "
		 "leaves"},
		{"merge", 0, CLI_FLAG, &e.merge, NULL,
		 "BackupIntent Merge: importing it deletes its base"},
		{"no-storage", 0, CLI_FLAG, &e.no_storage, NULL, "the manifest alone"},
		{"rate-limit", 0, CLI_RATE, &e.rate, "BYTES/s", "read at most so fast"},
		{"async", 0, CLI_FLAG, &async, NULL,
		 "return when the job runs; do not wait for it"},
		{0},
	};

	cli_parse(cli, options, argc, argv);
	if (async && !strcmp(argv[1], "-"))
		cli_usage_error(cli, "--async: standard output does not outlive the command");
	if (!strchr(argv[0], '@'))
		cli_usage_error(cli, "'%s': expected COLLECTION@NAME", argv[0]);
	if (e.base && !full_base(argv[0], e.base, e.full_base))
		cli_usage_error(cli, "the base's name is too long");
	return async ? export_async(cli, argv[0], argv[1], &e)
		     : do_export(cli, argv[0], argv[1], &e);
}

/* --- export of a reference point --- */

/* Takes @params. */
static int do_export_point(struct cli *cli, json_t *params)
{
	struct hop none = {.path = ""};
	struct cli_session *s = NULL;
	json_t *report = NULL;
	int status = CLI_FAILURE;

	cli_catch_interrupts();
	if (!cli_begin(cli, NULL, &s))
		status = run_job(cli, s, &none, "ExportReferencePoint", "export",
				 json_incref(params), &report);
	if (!status && cli->json) {
		json_object_set_new(report, "return_value", json_integer(0));
		status = cli_print_json(cli, json_incref(report));
	}
	json_decref(report);
	json_decref(params);
	return cli_end(cli, s, status);
}

static int run_export_point(struct cli *cli, int argc, char **argv)
{
	struct cli_work work = {.operation = "export", .method = "ExportReferencePoint"};
	const char *base = NULL;
	bool async = false;
	const struct cli_option options[] = {
		{"base", 0, CLI_TEXT, &base, "COLLECTION#NAME",
		 "with what has changed since that point"},
		{"async", 0, CLI_FLAG, &async, NULL,
		 "return when the job runs; do not wait for it"},
		{0},
	};
	char *path = NULL, full[2 * VMIMG_NAME_MAX + 8];

	cli_parse(cli, options, argc, argv);
	if (base)
		snprintf(full, sizeof(full), "%.*s%s",
			 base[0] == '#' ? (int)strcspn(argv[0], "#") : 0, argv[0], base);
	path = cli_absolute_path(argv[1]);
	if (!path)
		return cli_error(cli, -ENOMEM, "out of memory");
	work.params = json_pack("{s:s, s:s, s:{s:s*}}", "ReferencePointCollection", argv[0],
				"ExportDirectory", path, "ExportSettingData",
				"BaseReferencePointCollection", base ? full : NULL);
	free(path);
	return async ? cli_run_work(cli, &work, true) : do_export_point(cli, work.params);
}

/* --- import --- */

static int do_import(struct cli *cli, const char *source, json_t *settings)
{
	bool from_stdin = !strcmp(source, "-");
	struct hop hop = {.path = ""};
	struct cli_session *s = NULL;
	json_t *report = NULL;
	char *path = NULL;
	int status = CLI_OK;

	cli_catch_interrupts();
	signal(SIGPIPE, SIG_IGN);
	if (cli_begin(cli, NULL, &s)) {
		json_decref(settings);
		return CLI_FAILURE;
	}
	if (!from_stdin)
		path = cli_absolute_path(source);
	else if (cli_service(s) && is_pipe(STDIN_FILENO))
		path = strdup("/proc/self/fd/0");
	else if (!(status = hop_open(cli, &hop, false)))
		path = strdup(hop.path);
	if (!status && !path)
		status = cli_error(cli, -ENOMEM, "out of memory");
	if (!status) {
		status = run_job(cli, s, &hop, "ImportSnapshot", "import",
				 json_pack("{s:s, s:o}", "ImportSource", path, "ImportSettingData",
					   settings),
				 &report);
	} else {
		json_decref(settings);
		hop_end(&hop, true);
	}
	free(path);
	if (!status)
		status = print_report(cli, report, "imported");
	else
		json_decref(report);
	return cli_end(cli, s, status);
}

/* Its report is not waited for: what was made is there to be seen. Takes @settings. */
static int import_async(struct cli *cli, const char *source, json_t *settings)
{
	struct cli_work work = {.operation = "import", .method = "ImportSnapshot"};
	char *path = cli_absolute_path(source);

	if (!path) {
		json_decref(settings);
		return cli_error(cli, -ENOMEM, "out of memory");
	}
	work.params = json_pack("{s:s, s:o}", "ImportSource", path, "ImportSettingData", settings);
	free(path);
	return cli_run_work(cli, &work, true);
}

static int run_import(struct cli *cli, int argc, char **argv)
{
	const char *collection = NULL;
	bool merge = false, async = false;
	uint64_t rate = 0;
	const struct cli_option options[] = {
		{"collection", 0, CLI_TEXT, &collection, "NAME",
		 "of a full one: under this name, its VMs as NAME-VM"},
		{"merge", 0, CLI_FLAG, &merge, NULL,
		 "of an increment: delete its base when it is in"},
		{"rate-limit", 0, CLI_RATE, &rate, "BYTES/s", "write at most so fast"},
		{"async", 0, CLI_FLAG, &async, NULL,
		 "return when the job runs; do not wait for it"},
		{0},
	};
	json_t *settings;

	cli_parse(cli, options, argc, argv);
	if (async && !strcmp(argv[0], "-"))
		cli_usage_error(cli, "--async: standard input does not outlive the command");
	settings = json_object();
	if (collection)
		json_object_set_new(settings, "Collection", json_string(collection));
	if (merge)
		json_object_set_new(settings, "BackupIntent", json_integer(2));
	if (rate)
		json_object_set_new(settings, "RateLimit", json_integer((json_int_t)rate));
	return async ? import_async(cli, argv[0], settings) : do_import(cli, argv[0], settings);
}

/* --- verify --- */

static void print_findings(const json_t *report)
{
	const json_t *findings = json_object_get(report, "findings"), *f;
	size_t i;

	json_array_foreach (findings, i, f) {
		const char *disk = json_string_value(json_object_get(f, "disk"));

		if (json_object_get(f, "offset"))
			printf("%s at %llu: ", disk, (unsigned long long)cli_number(f, "offset"));
		else if (disk)
			printf("%s: ", disk);
		printf("%s\n", json_string_value(json_object_get(f, "message")));
	}
	if (cli_number(report, "damaged") > json_array_size(findings))
		printf("... %llu in all\n", (unsigned long long)cli_number(report, "damaged"));
}

/* Takes @report, which may be NULL. The error is printed by who knows it. */
static int print_verified(struct cli *cli, json_t *report, const char *what, int status)
{
	int printed = CLI_OK;

	if (!report)
		return status;
	if (cli->json) {
		printed = cli_print_json(cli, report);
		return status ? status : printed;
	}
	print_findings(report);
	if (!status)
		printf("%s: sound, %llu bytes compared\n", what,
		       (unsigned long long)cli_number(report, "bytes"));
	if (cli_number(report, "unverified_bytes"))
		printf("%llu bytes, of %llu layers, have no checksums: read only\n",
		       (unsigned long long)cli_number(report, "unverified_bytes"),
		       (unsigned long long)cli_number(report, "unverified_layers"));
	json_decref(report);
	printed = cli_finish_output(cli);
	return status ? status : printed;
}

static int verify_snapshot(struct cli *cli, const char *snapshot, uint64_t rate, bool async)
{
	json_t *settings = rate ? json_pack("{s:I}", "RateLimit", (json_int_t)rate) : json_object();
	struct cli_work work = {
		.operation = "verify",
		.method = "VerifySnapshot",
		.params = json_pack("{s:s, s:o}", "SnapshotCollection", snapshot,
				    "VerifySettingData", settings),
	};
	struct hop none = {.path = ""};
	struct cli_session *s = NULL;
	json_t *report = NULL;
	int status;

	if (async)
		return cli_run_work(cli, &work, true);
	if (cli_begin(cli, NULL, &s)) {
		json_decref(work.params);
		return CLI_FAILURE;
	}
	status = run_job(cli, s, &none, work.method, work.operation, work.params, &report);
	return cli_end(cli, s, print_verified(cli, report, snapshot, status));
}

static int on_progress(void *arg, uint64_t done, uint64_t total)
{
	cli_progress_show(arg, done, total);
	return cli_interrupted();
}

static int verify_stream(struct cli *cli, const char *source)
{
	const char *path = strcmp(source, "-") != 0 ? source : "/proc/self/fd/0";
	struct cli_progress progress;
	struct vmimg_verify how = {.progress = on_progress, .arg = &progress};
	struct vmimg_error err = {0};
	char *text = NULL;
	int r;

	cli_progress_init(&progress, cli, "verify");
	r = vmimg_verify_stream(path, &how, &err, &text);
	cli_progress_fini(&progress);
	r = print_verified(cli, text ? json_loads(text, 0, NULL) : NULL, source,
			   r < 0 ? cli_fail(cli, r, &err) : CLI_OK);
	vmimg_free(text);
	return r;
}

static int run_verify(struct cli *cli, int argc, char **argv)
{
	uint64_t rate = 0;
	bool async = false;
	const struct cli_option options[] = {
		{"rate-limit", 0, CLI_RATE, &rate, "BYTES/s",
		 "of a snapshot: read at most so fast"},
		{"async", 0, CLI_FLAG, &async, NULL,
		 "of a snapshot: return when the job runs; do not wait for it"},
		{0},
	};

	cli_parse(cli, options, argc, argv);
	cli_catch_interrupts();
	if (strchr(argv[0], '@') && !strchr(argv[0], '/'))
		return verify_snapshot(cli, argv[0], rate, async);
	if (async)
		cli_usage_error(cli, "--async: a stream is verified by the command itself");
	return verify_stream(cli, argv[0]);
}

const struct cli_verb cli_transfer_verbs[] = {
	{"snapshot verify", "COLLECTION@NAME|DIR",
	 "Read every block of a snapshot, or of a stream, against its checksum", 1, 1, run_verify,
	 0},
	{"snapshot export", "COLLECTION@NAME DIR",
	 "Write a snapshot to image files or a stream; DIR - is standard output", 2, 2, run_export,
	 0},
	{"refpoint export", "COLLECTION#NAME DIR",
	 "Write what a reference point says, and what changed since another", 2, 2,
	 run_export_point, 0},
	{"snapshot import", "DIR",
	 "A snapshot from an export, full or onto its base; - is a stream on standard input", 1, 1,
	 run_import, 0},
	{0},
};
