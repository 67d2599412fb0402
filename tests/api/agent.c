/* SPDX-License-Identifier: MIT */
/* agent.c - see agent.h. The process is single-threaded and ends with its parent. */
#include "tests/api/agent.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define FILESYSTEMS 3

static struct agent_state *state;

static int64_t wall_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	return ts.tv_sec * INT64_C(1000000000) + ts.tv_nsec;
}

/* --- the process --- */

static bool say(int fd, const char *text)
{
	size_t len = strlen(text);

	while (len) {
		ssize_t n = send(fd, text, len, MSG_NOSIGNAL);

		if (n <= 0)
			return false;
		text += n;
		len -= (size_t)n;
	}
	return true;
}

static bool say_number(int fd, const char *before, long long n)
{
	char text[80];

	snprintf(text, sizeof(text), "%s{\"return\": %lld}\n", before, n);
	return say(fd, text);
}

static void sync_with(int fd, const char *line)
{
	const char *id = strstr(line, "\"id\":");
	long long n = id ? atoll(id + 5) : 0;

	switch (atomic_load(&state->script)) {
	case AGENT_SILENT: return;
	case AGENT_FLOODS:
		while (say(fd, "{\"return\": 1}\n\xff{\"return\": 1}\n"))
			;
		return;
	case AGENT_STALE:
		say(fd, "{\"return\": {}}\n\xff{\"return\": 12345}\n{\"ret\xff\n\xff{\"re");
		/* fall through */
	default: say_number(fd, "\xff", n);
	}
}

static void set_frozen(void)
{
	if (state->frozen)
		return;
	state->frozen_at_ns = wall_ns();
	state->freezes++;
	state->frozen = 1;
}

/* False: the connection is closed. */
static bool freeze(int fd)
{
	char *line;

	state->asked++;
	switch (atomic_load(&state->script)) {
	case AGENT_REFUSES:
		return say(fd,
			   "{\"error\": {\"class\": \"GenericError\", \"desc\": \"failed to freeze "
			   "\\u001b[2J/: busy\"}}\n");
	case AGENT_HAS_NO_FREEZE:
		return say(fd, "{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"no\"}}\n");
	case AGENT_SLOW: usleep((useconds_t)state->delay_ms * 1000); break;
	default: break;
	}
	set_frozen();
	switch (atomic_load(&state->script)) {
	case AGENT_GARBAGE: return say(fd, "what? }{\n");
	case AGENT_ODD_COUNT: return say(fd, "{\"return\": \"3\"}\n");
	case AGENT_LONG_LINE:
		line = malloc(1 << 20);
		memset(line, ' ', 1 << 20);
		line[(1 << 20) - 1] = 0;
		say(fd, line);
		free(line);
		return true;
	case AGENT_HANGS_UP: return false;
	case AGENT_DIES: _exit(0);
	case AGENT_CHATTERS:
		return say_number(fd, "", FILESYSTEMS) && say(fd, "{\"return\": {}}\n");
	default: return say_number(fd, "", FILESYSTEMS);
	}
}

static bool thaw(int fd)
{
	int count = state->frozen ? FILESYSTEMS : 0;

	if (state->script == AGENT_HAS_NO_FREEZE)
		return say(fd, "{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"no\"}}\n");
	if (state->script == AGENT_THAWS_BADLY && state->delay_ms > 0) {
		state->delay_ms--;
		return say(fd, "{\"error\": {\"class\": \"GenericError\", \"desc\": \"hook\"}}\n");
	}
	if (state->frozen) {
		state->thawed_at_ns = wall_ns();
		state->thaws++;
		state->frozen = 0;
	}
	return say_number(fd, "", count && state->script == AGENT_WAS_THAWED ? count - 1 : count);
}

static bool obey(int fd, const char *line)
{
	if (strstr(line, "guest-sync-delimited"))
		sync_with(fd, line);
	else if (strstr(line, "guest-fsfreeze-freeze"))
		return freeze(fd);
	else if (strstr(line, "guest-fsfreeze-thaw"))
		return thaw(fd);
	else if (strstr(line, "guest-fsfreeze-status"))
		return say(fd, state->frozen ? "{\"return\": \"frozen\"}\n"
					     : "{\"return\": \"thawed\"}\n");
	return true;
}

/* What a client has sent is obeyed also when it has gone. */
static void converse(int fd)
{
	char line[1024];
	size_t len = 0;
	uint8_t byte;

	while (recv(fd, &byte, 1, 0) == 1) {
		if (byte == 0xff || len == sizeof(line) - 1) {
			len = 0;
		} else if (byte != '\n') {
			line[len++] = (char)byte;
		} else {
			line[len] = 0;
			len = 0;
			if (strchr(line, '{') && !obey(fd, line) && state->script == AGENT_HANGS_UP)
				return;
		}
	}
}

static void serve(int listener)
{
	for (;;) {
		int fd = accept(listener, NULL, NULL);

		if (fd < 0)
			_exit(1);
		converse(fd);
		close(fd);
	}
}

/* --- for the test --- */

static void launch(struct agent *agent)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", agent->path);
	unlink(agent->path);
	cr_assert_eq(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), 0, "%s", agent->path);
	cr_assert_eq(listen(fd, 1), 0);
	fflush(NULL);
	agent->pid = fork();
	cr_assert_geq(agent->pid, 0);
	if (agent->pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		dup2(fd, 3);
		close_range(4, ~0u, 0);
		state = agent->state;
		serve(3);
	}
	close(fd);
}

void agent_start(struct agent *agent, const char *path)
{
	memset(agent, 0, sizeof(*agent));
	snprintf(agent->path, sizeof(agent->path), "%s", path);
	agent->state = mmap(NULL, sizeof(*agent->state), PROT_READ | PROT_WRITE,
			    MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	cr_assert_neq(agent->state, MAP_FAILED);
	launch(agent);
}

void agent_kill(struct agent *agent)
{
	if (!agent->pid)
		return;
	kill(agent->pid, SIGKILL);
	waitpid(agent->pid, NULL, 0);
	agent->pid = 0;
}

void agent_again(struct agent *agent)
{
	agent_kill(agent);
	launch(agent);
}

void agent_end(struct agent *agent)
{
	agent_kill(agent);
	if (agent->state)
		munmap(agent->state, sizeof(*agent->state));
	agent->state = NULL;
}
