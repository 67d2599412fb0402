/* SPDX-License-Identifier: MIT */
/*
 * copy.c - disk read and disk write: bytes between a disk and a pipe, with several requests in flight:
 * through a queue of this thread on an idle store, over NBD on a served one. Chunks keep their order:
 * chunk n uses buffer n mod DEPTH, and is waited for before that buffer's next use. On any error
 * everything in flight is waited for before the disk is let go.
 */
#include "cli/copy.h"
#include "cli/options.h"
#include "cli/output.h"
#include "cli/session.h"
#include "bench/backend.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define CHUNK        (UINT64_C(1) << 20)
#define DEPTH        8u
#define BUFFER_ALIGN 4096u
#define PACE_NS      UINT64_C(100000000)
#define FLUSH_SLOT   DEPTH /* user_data of the flush */

struct copy {
	struct cli *cli;
	const char *name;
	struct cli_session *session;
	struct backend disk; /* .ops NULL: not open */
	struct cli_progress progress;
	uint64_t size; /* of the disk */
	uint64_t rate; /* bytes a second at most; 0: as fast as it goes */
	uint64_t start_ns;
	int error; /* the first failed request's */
	bool busy[DEPTH + 1];
	uint64_t length[DEPTH];
	struct iovec iov[DEPTH];
	char *buffers;
};

/* --- a served disk --- */

static bool has_member(const json_t *snapshot, const char *disk)
{
	const json_t *members = json_object_get(snapshot, "members");
	json_t *member;
	size_t i;

	json_array_foreach (members, i, member) {
		const char *name = json_string_value(json_object_get(member, "disk"));

		if (name && !strcmp(name, disk) &&
		    !json_is_true(json_object_get(member, "skipped")))
			return true;
	}
	return false;
}

/* A name that is none is refused by the server's words, not by NBD's, which has few. */
static int check_name(struct copy *c)
{
	const char *at = strchr(c->name, '@'), *disk = at ? strchr(at, '/') : NULL;
	json_t *document = NULL;
	int status;

	if (!disk)
		return cli_call(c->session, "Describe",
				json_pack("{s:s, s:s}", "Kind", "disk", "Name", c->name), NULL);
	status = cli_call(c->session, "Describe",
			  json_pack("{s:s, s:s%}", "Kind", "snapshot", "Name", c->name,
				    (size_t)(disk - c->name)),
			  &document);
	if (!status && !has_member(document, disk + 1))
		status = cli_error(c->cli, -ENOENT, "%s: the snapshot has no such disk", c->name);
	json_decref(document);
	return status;
}

/* As a URI has it: all but letters, digits and some marks by their codes. */
static void put_escaped(FILE *out, const char *text)
{
	static const char plain[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
				    "0123456789-._~/";

	for (; *text; text++)
		fprintf(out, strchr(plain, *text) ? "%c" : "%%%02X", (unsigned char)*text);
}

/* Malloced. */
static char *disk_uri(const char *name, const char *socket)
{
	char *text = NULL;
	size_t len = 0;
	FILE *out = open_memstream(&text, &len);

	if (!out)
		return NULL;
	fputs("nbd+unix:///", out);
	put_escaped(out, name);
	fputs("?socket=", out);
	put_escaped(out, socket);
	fclose(out);
	return text;
}

static int open_served(struct copy *c, bool writes)
{
	char socket_path[CLI_SOCKET_MAX];
	struct vmimg_error err = {0};
	json_t *server = NULL;
	const char *socket;
	char *uri = NULL;
	int status = check_name(c), dir_fd = -1, r;

	if (!status)
		status = cli_call(c->session, "Server", json_object(), &server);
	if (status)
		return status;
	socket = json_string_value(json_object_get(server, "Nbd"));
	if (!socket) {
		status = cli_error(c->cli, -ENOTSUP,
				   "%s: the store is served without an NBD socket", c->name);
	} else {
		r = cli_socket_path(socket, socket_path, &dir_fd);
		uri = r == 0 ? disk_uri(c->name, socket_path) : NULL;
		if (r == 0)
			r = uri ? backend_open_nbd(&c->disk, uri, DEPTH + 1, writes, &err)
				: -ENOMEM;
		if (r < 0)
			status = cli_fail(c->cli, r, &err);
	}
	json_decref(server);
	if (dir_fd >= 0)
		close(dir_fd);
	free(uri);
	return status;
}

/* --- any disk --- */

/* @c holds the command and the rate so far. copy_close() follows in any case. */
static int copy_open(struct copy *c, const char *name, bool writes)
{
	struct cli *cli = c->cli;
	struct vmimg_error err = {0};
	int status = CLI_OK;
	int r;

	c->name = name;
	if (cli_begin(cli, NULL, &c->session))
		return CLI_FAILURE;
	cli_progress_init(&c->progress, cli, writes ? "write" : "read");
	c->buffers = aligned_alloc(BUFFER_ALIGN, DEPTH * CHUNK);
	if (!c->buffers)
		return cli_error(cli, -ENOMEM, "out of memory");
	if (cli_service(c->session)) {
		r = backend_open_disk(&c->disk, cli_service(c->session), name, DEPTH, !writes,
				      &err);
		status = r < 0 ? cli_fail(cli, r, &err) : CLI_OK;
	} else {
		status = open_served(c, writes);
	}
	c->size = c->disk.size;
	c->start_ns = cli_now_ns();
	return status;
}

static int copy_close(struct copy *c, int status)
{
	int r;

	cli_progress_fini(&c->progress);
	r = c->disk.ops ? c->disk.ops->close(&c->disk) : 0;
	if (r < 0 && !status)
		status = cli_error(c->cli, r, "%s: closing the disk failed: %s", c->name,
				   strerror(-r));
	free(c->buffers);
	return cli_end(c->cli, c->session, status);
}

/* Takes completions; waits for one up to @timeout_ns. */
static int turn(struct copy *c, uint64_t timeout_ns)
{
	struct vmimg_completion done[DEPTH + 1];
	int n = c->disk.ops->poll(&c->disk, done, DEPTH + 1, timeout_ns);

	if (n < 0 && !c->error)
		c->error = n;
	for (int i = 0; i < n; i++) {
		c->busy[done[i].user_data] = false;
		if (done[i].result < 0 && !c->error)
			c->error = done[i].result;
	}
	return n;
}

static void submit(struct copy *c, uint8_t op, unsigned slot, uint64_t offset, uint64_t length)
{
	struct vmimg_request request = {.disk = c->disk.disk, .op = op, .user_data = slot};
	int r;

	if (op != VMIMG_FLUSH) {
		c->iov[slot] = (struct iovec){c->buffers + slot * CHUNK, length};
		c->length[slot] = length;
		request.iov = &c->iov[slot];
		request.iovcnt = 1;
		request.offset = offset;
		request.length = length;
	}
	r = c->disk.ops->submit(&c->disk, &request, 1);
	if (r == 1) {
		c->busy[slot] = true;
		turn(c, 0); /* starts it: the next turn may be long in coming */
	} else if (!c->error) {
		c->error = r < 0 ? r : -EAGAIN;
	}
}

/* Waits until @slot is free; without polls nothing completes, so a failed one ends the wait. */
static void wait_slot(struct copy *c, unsigned slot)
{
	while (c->busy[slot] && turn(c, UINT64_MAX) >= 0)
		;
}

/* Waits until @done bytes are not too many for --rate-limit; the queue goes on being polled. */
static void pace(struct copy *c, uint64_t done)
{
	uint64_t due = c->rate ? (uint64_t)((double)done * 1e9 / (double)c->rate) : 0;
	uint64_t passed;

	while (due && (passed = cli_now_ns() - c->start_ns) < due && !cli_interrupted()) {
		uint64_t rest = due - passed;

		if (turn(c, rest < PACE_NS ? rest : PACE_NS) < 0)
			break;
	}
}

static void drain(struct copy *c)
{
	for (unsigned slot = 0; slot <= DEPTH; slot++)
		wait_slot(c, slot);
}

/* The chunk at @offset ends on a chunk boundary of the disk, so that later ones are aligned. */
static uint64_t chunk_at(uint64_t offset, uint64_t end)
{
	uint64_t length = CHUNK - offset % CHUNK;

	return length < end - offset ? length : end - offset;
}

/* --- read --- */

static int write_out(const char *buf, uint64_t length)
{
	while (length) {
		ssize_t n = write(STDOUT_FILENO, buf, length);

		if (n < 0 && errno == EINTR && !cli_interrupted())
			continue;
		if (n < 0)
			return -errno;
		buf += n;
		length -= (uint64_t)n;
	}
	return 0;
}

static int read_range(struct copy *c, uint64_t offset, uint64_t end)
{
	uint64_t start = offset, next = offset; /* next to be read */
	unsigned head = 0, pending = 0;         /* slot to print next, slots read or being read */
	int r = 0;

	while (offset < end && !r) {
		while (next < end && pending < DEPTH && !c->error) {
			uint64_t length = chunk_at(next, end);

			submit(c, VMIMG_READ, (head + pending) % DEPTH, next, length);
			next += length;
			pending++;
		}
		wait_slot(c, head);
		if (c->error)
			break;
		r = cli_interrupted() ? -EINTR
				      : write_out(c->buffers + head * CHUNK, c->length[head]);
		offset += c->length[head];
		head = (head + 1) % DEPTH;
		pending--;
		cli_progress_show(&c->progress, offset - start, end - start);
		pace(c, offset - start);
	}
	drain(c);
	if (c->error)
		return cli_error(c->cli, c->error, "%s: reading at %llu failed: %s", c->name,
				 (unsigned long long)offset, strerror(-c->error));
	if (r == -EINTR)
		return cli_error(c->cli, r, "%s: interrupted", c->name);
	if (r < 0)
		return cli_error(c->cli, r, "cannot write to standard output: %s", strerror(-r));
	return CLI_OK;
}

int cli_disk_read(struct cli *cli, int argc, char **argv)
{
	struct copy c = {.cli = cli};
	const struct cli_option options[] = {
		{"rate-limit", 0, CLI_RATE, &c.rate, "BYTES/s", "copy no faster than this"},
		{0},
	};
	int words = cli_parse(cli, options, argc, argv);
	uint64_t offset = words > 1 ? cli_size_argument(cli, "OFFSET", argv[1]) : 0;
	uint64_t length = words > 2 ? cli_size_argument(cli, "LENGTH", argv[2]) : 0;
	int status;

	cli_catch_interrupts();
	status = copy_open(&c, argv[0], false);
	if (status)
		return copy_close(&c, status);
	if (words < 3 && offset <= c.size)
		length = c.size - offset;
	if (offset > c.size || length > c.size - offset)
		status = cli_error(cli, -EINVAL,
				   "%s: %llu bytes at %llu reach beyond the end of the disk at %llu",
				   argv[0], (unsigned long long)length, (unsigned long long)offset,
				   (unsigned long long)c.size);
	else
		status = read_range(&c, offset, offset + length);
	return copy_close(&c, status);
}

/* --- write --- */

/* Up to @length bytes of standard input; fewer only at its end. Negative errno, -EINTR included. */
static int64_t read_in(char *buf, uint64_t length)
{
	uint64_t got = 0;

	while (got < length) {
		struct pollfd in = {.fd = STDIN_FILENO, .events = POLLIN};
		ssize_t n;

		/* The signal may be another thread's, so its flag is looked at between waits. */
		if (cli_interrupted())
			return -EINTR;
		if (poll(&in, 1, 100) <= 0)
			continue;
		n = read(STDIN_FILENO, buf + got, length - got);
		if (n < 0 && errno != EINTR && errno != EAGAIN)
			return -errno;
		if (n == 0)
			break;
		got += n > 0 ? (uint64_t)n : 0;
	}
	return (int64_t)got;
}

/* What is left of standard input where that can be told (a file), else 0. */
static uint64_t input_size(void)
{
	off_t at = lseek(STDIN_FILENO, 0, SEEK_CUR);
	struct stat st;

	if (at < 0 || fstat(STDIN_FILENO, &st) < 0 || !S_ISREG(st.st_mode) || st.st_size <= at)
		return 0;
	return (uint64_t)(st.st_size - at);
}

/* Sends standard input; *@end is where it ended. 0, or a negative errno that is not the disk's. */
static int write_input(struct copy *c, uint64_t offset, uint64_t *end)
{
	uint64_t start = offset, total = input_size();
	unsigned slot = 0;
	int64_t got;

	if (offset > c->size || total > c->size - offset)
		return -EFBIG;
	do {
		uint64_t want = CHUNK - offset % CHUNK;

		wait_slot(c, slot);
		if (c->error)
			return 0;
		got = read_in(c->buffers + slot * CHUNK, want);
		if (got <= 0)
			return (int)got;
		if ((uint64_t)got > c->size - offset)
			return -EFBIG;
		submit(c, VMIMG_WRITE, slot, offset, (uint64_t)got);
		offset += (uint64_t)got;
		*end = offset;
		slot = (slot + 1) % DEPTH;
		cli_progress_show(&c->progress, offset - start, total);
		pace(c, offset - start);
	} while ((uint64_t)got == CHUNK - (offset - (uint64_t)got) % CHUNK && !c->error);
	return 0;
}

int cli_disk_write(struct cli *cli, int argc, char **argv)
{
	struct copy c = {.cli = cli};
	const struct cli_option options[] = {
		{"rate-limit", 0, CLI_RATE, &c.rate, "BYTES/s", "copy no faster than this"},
		{0},
	};
	int words = cli_parse(cli, options, argc, argv);
	uint64_t offset = words > 1 ? cli_size_argument(cli, "OFFSET", argv[1]) : 0;
	uint64_t end = offset;
	int status;
	int r;

	cli_catch_interrupts();
	status = copy_open(&c, argv[0], true);
	if (status)
		return copy_close(&c, status);
	r = write_input(&c, offset, &end);
	drain(&c);
	if (!c.error) {
		submit(&c, VMIMG_FLUSH, FLUSH_SLOT, 0, 0);
		wait_slot(&c, FLUSH_SLOT);
	}
	if (c.error)
		status = cli_error(cli, c.error, "%s: writing failed: %s", argv[0],
				   strerror(-c.error));
	else if (r == -EFBIG)
		status = cli_error(cli, r,
				   "%s: the input reaches beyond the end of the disk at %llu "
				   "(%llu bytes were written)",
				   argv[0], (unsigned long long)c.size,
				   (unsigned long long)(end - offset));
	else if (r < 0)
		status = cli_error(cli, r, "%s: standard input: %s (%llu bytes were written)",
				   argv[0], strerror(-r), (unsigned long long)(end - offset));
	else if (cli->json)
		status = cli_print_json(cli, json_pack("{s:s, s:I, s:I}", "disk", argv[0], "offset",
						       (json_int_t)offset, "written",
						       (json_int_t)(end - offset)));
	return copy_close(&c, status);
}
