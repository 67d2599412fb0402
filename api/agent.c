/* SPDX-License-Identifier: MIT */
/*
 * agent.c - commands to a QEMU guest agent, and its answers (QU-19..QU-22). An answer is one line of
 * JSON; lines are told apart byte by byte, so that a guest can hand over any rubbish in any pieces.
 */
#include "api/agent.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "format/error.h"

#define MARK 0xff /* the agent's byte before the answer of a sync, and ours before a sync */

void api_agent_init(struct api_agent *a)
{
	memset(a, 0, sizeof(*a));
	a->fd = -1;
}

void api_agent_close(struct api_agent *a)
{
	if (a->fd >= 0)
		close(a->fd);
	api_agent_init(a);
}

int api_agent_connect(struct api_agent *a, const char *path)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	int r = 0;

	api_agent_close(a);
	if (strlen(path) >= sizeof(addr.sun_path))
		return -ENAMETOOLONG;
	strcpy(addr.sun_path, path);
	a->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (a->fd < 0)
		return -errno;
	if (connect(a->fd, (const struct sockaddr *)&addr, sizeof(addr)) < 0)
		r = -errno;
	if (r < 0)
		api_agent_close(a);
	return r;
}

/* --- commands --- */

static int64_t new_id(void)
{
	int64_t id = 0;

	/* Its one purpose is to differ from the ids of conversations before. */
	if (getrandom(&id, sizeof(id), GRND_NONBLOCK) != sizeof(id))
		id = (int64_t)getpid() << 20;
	return id & INT64_MAX;
}

int api_agent_ask(struct api_agent *a, enum api_ask ask)
{
	static const char *const commands[] = {
		[API_ASK_FREEZE] = "guest-fsfreeze-freeze",
		[API_ASK_THAW] = "guest-fsfreeze-thaw",
		[API_ASK_STATUS] = "guest-fsfreeze-status",
	};
	char *at = a->out + a->out_len;
	size_t room = sizeof(a->out) - a->out_len;
	int n;

	if (ask == API_ASK_SYNC) {
		a->asked_count = 0;
		a->syncing = true;
		a->marked = false;
		a->dropped = 0;
		a->line_len = 0;
		a->id = new_id();
		n = snprintf(at, room,
			     "\xff{\"execute\": \"guest-sync-delimited\", "
			     "\"arguments\": {\"id\": %lld}}\n",
			     (long long)a->id);
	} else {
		n = snprintf(at, room, "{\"execute\": \"%s\"}\n", commands[ask]);
	}
	if ((size_t)n >= room || a->asked_count == sizeof(a->asked) / sizeof(a->asked[0]))
		return -ENOBUFS;
	a->out_len += (size_t)n;
	a->asked[a->asked_count++] = ask;
	return 0;
}

int api_agent_flush(struct api_agent *a)
{
	while (a->out_sent < a->out_len) {
		ssize_t n = send(a->fd, a->out + a->out_sent, a->out_len - a->out_sent,
				 MSG_NOSIGNAL | MSG_DONTWAIT);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return errno == EAGAIN || errno == EWOULDBLOCK ? 0 : -errno;
		a->out_sent += (size_t)n;
	}
	a->out_len = 0;
	a->out_sent = 0;
	return 0;
}

/* --- answers --- */

/* QU-21: whatever a guest says is made printable. */
static void set_text(struct api_answer *answer, const char *text)
{
	struct fmt_error clean = {""};

	fmt_fail(&clean, 0, "%.160s", text);
	snprintf(answer->text, sizeof(answer->text), "%.160s", clean.text);
}

static int read_error(const json_t *error, struct api_answer *ret)
{
	const char *class = json_string_value(json_object_get(error, "class"));
	const char *desc = json_string_value(json_object_get(error, "desc"));

	if (!json_is_object(error))
		return -EBADMSG;
	ret->failed = true;
	ret->unknown = class && strcmp(class, "CommandNotFound") == 0;
	set_text(ret, desc && *desc ? desc : class ? class : "an error without a text");
	return 0;
}

static int read_value(const json_t *value, struct api_answer *ret)
{
	json_int_t n = json_integer_value(value);
	const char *text = json_string_value(value);

	if (ret->ask == API_ASK_STATUS) {
		ret->thawed = text && strcmp(text, "thawed") == 0;
		return text && (ret->thawed || strcmp(text, "frozen") == 0) ? 0 : -EBADMSG;
	}
	if (!json_is_integer(value) || n < 0 || n > INT32_MAX)
		return -EBADMSG;
	ret->count = (uint32_t)n;
	return 0;
}

/* A line of the agent's; 1: an answer. */
static int read_line(struct api_agent *a, struct api_answer *ret)
{
	json_t *doc = json_loadb(a->line, a->line_len, 0, NULL);
	json_t *value = json_object_get(doc, "return"), *error = json_object_get(doc, "error");
	int r = -EBADMSG;

	memset(ret, 0, sizeof(*ret));
	ret->ask = a->asked[0];
	if (a->syncing) {
		/* The answer of an older sync is as good as any rubbish. */
		a->syncing = !(json_is_integer(value) && json_integer_value(value) == a->id);
		a->marked = false;
		r = a->syncing ? 0 : 1;
	} else if (a->asked_count && value) {
		r = read_value(value, ret) < 0 ? -EBADMSG : 1;
	} else if (a->asked_count && error) {
		r = read_error(error, ret) < 0 ? -EBADMSG : 1;
	}
	json_decref(doc);
	if (r > 0)
		memmove(a->asked, a->asked + 1, --a->asked_count * sizeof(a->asked[0]));
	return r;
}

/* One byte; 1: it ended an answer. */
static int take_byte(struct api_agent *a, uint8_t byte, struct api_answer *ret)
{
	bool empty = a->line_len == 0;
	int r;

	if (a->syncing) {
		if (byte == MARK) {
			a->marked = true;
			a->line_len = 0;
			return 0;
		}
		if (++a->dropped > API_AGENT_DROP_MAX)
			return -EBADMSG;
		if (!a->marked)
			return 0;
	}
	if (byte == '\n' || byte == '\r') {
		r = empty ? 0 : read_line(a, ret);
		a->line_len = 0;
		return r;
	}
	if (a->line_len == sizeof(a->line)) {
		/* While dropping, a line without an end is dropped too. */
		a->marked = false;
		a->line_len = 0;
		return a->syncing ? 0 : -EBADMSG;
	}
	a->line[a->line_len++] = (char)byte;
	return 0;
}

int api_agent_take(struct api_agent *a, struct api_answer *ret)
{
	ssize_t n;
	int r = 0;

	for (;;) {
		while (r == 0 && a->in_at < a->in_len)
			r = take_byte(a, (uint8_t)a->in[a->in_at++], ret);
		if (r != 0)
			return r;
		do
			n = recv(a->fd, a->in, sizeof(a->in), MSG_DONTWAIT);
		while (n < 0 && errno == EINTR);
		if (n == 0)
			return -ECONNRESET;
		if (n < 0)
			return errno == EAGAIN || errno == EWOULDBLOCK ? 0 : -errno;
		a->in_at = 0;
		a->in_len = (size_t)n;
	}
}
