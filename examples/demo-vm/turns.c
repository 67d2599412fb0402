/* SPDX-License-Identifier: MIT */
/*
 * turns.c - passes the turn between the guests.
 *
 * turns [--chains=N] [--seed=N] [--idle=SECONDS] [--resume] VM=SOCKET VM=SOCKET...
 * connects to the port of each guest's program (guest.c) and, once all are there, runs chains of
 * dependent writes through them: write k + 1 of a chain is asked of another VM, only after write k was
 * answered. With --resume the chains go on from the highest number that any of the guests holds,
 * instead of from 1.
 *
 * Commands on standard input, one a line, each answered by one line on standard output:
 *   run N    chains go on up to write N                   -> ok
 *   wait N   until each chain has N writes acknowledged    -> at N
 *   mark     how far they are now                         -> mark ACKED ISSUED ACKED ISSUED..., by chain
 *   times    how long the turns took, in microseconds      -> times COUNT MEDIAN P99 LONGEST
 *   stop     the guests end in order                      -> stopped
 * "failed WHY" in their place, and status 1, when something is wrong: a guest has lost what it had
 * acknowledged, could not write, or nothing moves. A guest that goes away is waited for: when it is
 * back it says what it has, and a write that had no answer is asked for again unless it is there.
 */
#include "examples/demo-vm/record.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define GUESTS_MAX  8u
#define TARGETS_MAX 4u
#define LINE_BYTES  2048u
#define RETRY_NS    UINT64_C(100000000)

struct target {
	char name[16];
	bool raw;
	uint64_t acked[RECORD_CHAINS]; /* highest number that this guest answered for */
	uint64_t held[RECORD_CHAINS];  /* that it had when it said that it is ready */
};

struct line {
	char bytes[LINE_BYTES];
	size_t have;
};

struct guest {
	const char *name, *path;
	int fd;     /* -1: not connected */
	bool ready; /* has said what it holds */
	bool stopped;
	struct line in;
	struct target targets[TARGETS_MAX];
	unsigned count;
	uint64_t retry_ns;
};

/* A write is in flight while issued > acked; it then belongs to @guest and @target. */
struct chain {
	uint64_t issued, acked;
	unsigned guest, target;
	const char *how;
	uint64_t start_ns;
};

struct turns {
	struct guest guests[GUESTS_MAX];
	unsigned count, chains;
	struct chain chain[RECORD_CHAINS];
	uint64_t limit, wait; /* of every chain; 0: nobody waits */
	bool stopping;
	bool resume; /* chains go on from what the guests hold, once that is known */
	uint64_t seed, moved_ns, idle_ns;
	struct line commands;
	uint32_t *times_us;
	size_t times, times_room;
};

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static _Noreturn void fail(const char *format, ...)
{
	char why[LINE_BYTES];
	va_list args;

	va_start(args, format);
	vsnprintf(why, sizeof(why), format, args);
	va_end(args);
	printf("failed %s\n", why);
	fprintf(stderr, "turns: %s\n", why);
	exit(1);
}

static uint64_t random_below(struct turns *turns, uint64_t bound)
{
	uint64_t x = turns->seed;

	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	turns->seed = x;
	return bound ? x % bound : 0;
}

/* ---- guests --------------------------------------------------------------------------------------- */

static void guest_close(struct guest *guest)
{
	if (guest->fd >= 0)
		close(guest->fd);
	guest->fd = -1;
	guest->ready = false;
	guest->in.have = 0;
	guest->retry_ns = now_ns() + RETRY_NS;
}

static void guest_send(struct guest *guest, const char *format, ...)
{
	char line[256];
	va_list args;
	int n;

	va_start(args, format);
	n = vsnprintf(line, sizeof(line), format, args);
	va_end(args);
	/* A line is far smaller than a socket's buffer, and few are on their way. */
	if (send(guest->fd, line, (size_t)n, MSG_NOSIGNAL) != n)
		guest_close(guest);
}

static void guest_connect(struct guest *guest)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};

	strcpy(address.sun_path, guest->path); /* its length was checked */
	guest->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (guest->fd < 0)
		fail("no socket: %s", strerror(errno));
	if (connect(guest->fd, (struct sockaddr *)&address, sizeof(address)) < 0)
		guest_close(guest);
	else
		guest_send(guest, "hello\n");
}

/* ---- chains --------------------------------------------------------------------------------------- */

static bool in_flight(const struct chain *chain)
{
	return chain->issued > chain->acked;
}

static void chain_send(struct turns *turns, unsigned c)
{
	struct chain *chain = &turns->chain[c];
	struct guest *guest = &turns->guests[chain->guest];

	if (guest->ready)
		guest_send(guest, "go %u %" PRIu64 " %s %s\n", c, chain->issued,
			   guest->targets[chain->target].name, chain->how);
}

/* Another VM, any of its targets, any way to write there. */
static void chain_next(struct turns *turns, unsigned c)
{
	static const char *const raw[] = {"write", "write", "dsync", "fdatasync"};
	static const char *const file[] = {"fsync", "fdatasync", "dsync", "fsync"};
	struct chain *chain = &turns->chain[c];
	struct target *target;
	unsigned others = turns->count - 1;

	assert(turns->count >= 2); /* and all are known */
	chain->guest = (chain->guest + 1 + (unsigned)random_below(turns, others)) % turns->count;
	chain->target = (unsigned)random_below(turns, turns->guests[chain->guest].count);
	target = &turns->guests[chain->guest].targets[chain->target];
	chain->how = (target->raw ? raw : file)[random_below(turns, 4)];
	chain->issued++;
	chain->start_ns = now_ns();
	chain_send(turns, c);
}

static void chain_acked(struct turns *turns, unsigned c)
{
	struct chain *chain = &turns->chain[c];
	uint64_t now = now_ns();

	chain->acked = chain->issued;
	turns->guests[chain->guest].targets[chain->target].acked[c] = chain->acked;
	turns->moved_ns = now;
	if (turns->times == turns->times_room) {
		turns->times_room = turns->times_room ? 2 * turns->times_room : 4096;
		turns->times_us = realloc(turns->times_us,
					  turns->times_room * sizeof(*turns->times_us));
		if (!turns->times_us)
			fail("no memory");
	}
	turns->times_us[turns->times++] = (uint32_t)((now - chain->start_ns) / 1000);
}

/* ready NAME:KIND:LAST:LAST...: what it has must be what it acknowledged, or more. */
static void guest_ready(struct turns *turns, unsigned g, char *line)
{
	struct guest *guest = &turns->guests[g];
	unsigned count = 0;

	for (char *word = strtok(line, " "); word; word = strtok(NULL, " ")) {
		struct target *target = &guest->targets[count];
		char *at = strchr(word, ':');

		if (count == TARGETS_MAX || !at || at - word >= (ptrdiff_t)sizeof(target->name) ||
		    !at[1])
			fail("%s: no targets in '%s'", guest->name, word);
		*at = 0;
		strcpy(target->name, word);
		target->raw = at[1] == 'r';
		at += 2;
		for (unsigned c = 0; c < turns->chains; c++) {
			uint64_t last = *at == ':' ? strtoull(at + 1, &at, 10) : 0;
			struct chain *chain = &turns->chain[c];

			target->held[c] = last;
			if (last < target->acked[c])
				fail("%s/%s: holds chain %u up to %" PRIu64
				     ", acknowledged was %" PRIu64,
				     guest->name, target->name, c, last, target->acked[c]);
			if (in_flight(chain) && chain->guest == g && chain->target == count &&
			    last == chain->issued)
				chain_acked(turns, c);
		}
		count++;
	}
	guest->count = count;
	guest->ready = true;
	turns->moved_ns = now_ns();
	for (unsigned c = 0; c < turns->chains; c++)
		if (in_flight(&turns->chain[c]) && turns->chain[c].guest == g)
			chain_send(turns, c);
}

static void guest_line(struct turns *turns, unsigned g, char *line)
{
	struct guest *guest = &turns->guests[g];
	uint64_t number;
	unsigned c;

	if (strncmp(line, "ready ", 6) == 0) {
		guest_ready(turns, g, line + 6);
	} else if (sscanf(line, "done %u %" SCNu64, &c, &number) == 2) {
		if (c >= turns->chains || turns->chain[c].guest != g ||
		    turns->chain[c].issued != number || !in_flight(&turns->chain[c]))
			fail("%s: '%s' was not asked for", guest->name, line);
		chain_acked(turns, c);
	} else if (strcmp(line, "stopped") == 0 && turns->stopping) {
		guest->stopped = true;
	} else {
		fail("%s: %s", guest->name, line);
	}
}

/* ---- commands ------------------------------------------------------------------------------------- */

static int by_size(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return (x > y) - (x < y);
}

static void say_times(struct turns *turns)
{
	size_t n = turns->times;

	if (n > 0)
		qsort(turns->times_us, n, sizeof(*turns->times_us), by_size);
	printf("times %zu %" PRIu32 " %" PRIu32 " %" PRIu32 "\n", n, n ? turns->times_us[n / 2] : 0,
	       n ? turns->times_us[n - 1 - n / 100] : 0, n ? turns->times_us[n - 1] : 0);
}

static void command_line(struct turns *turns, char *line)
{
	uint64_t number;

	turns->moved_ns = now_ns();
	if (sscanf(line, "run %" SCNu64, &number) == 1) {
		turns->limit = number;
		printf("ok\n");
	} else if (sscanf(line, "wait %" SCNu64, &number) == 1) {
		turns->wait = number;
	} else if (strcmp(line, "mark") == 0) {
		printf("mark");
		for (unsigned c = 0; c < turns->chains; c++)
			printf(" %" PRIu64 " %" PRIu64, turns->chain[c].acked,
			       turns->chain[c].issued);
		printf("\n");
	} else if (strcmp(line, "times") == 0) {
		say_times(turns);
	} else if (strcmp(line, "stop") == 0) {
		turns->stopping = true;
		for (unsigned g = 0; g < turns->count; g++)
			if (turns->guests[g].ready)
				guest_send(&turns->guests[g], "stop\n");
	} else {
		fail("no such command: %s", line);
	}
}

/* Reads what is there and hands on whole lines. False: the other end is closed. */
static bool lines_read(struct turns *turns, int fd, struct line *in, int g)
{
	ssize_t n = read(fd, in->bytes + in->have, sizeof(in->bytes) - in->have);
	char *at = in->bytes, *end;

	if (n <= 0)
		return n < 0 && (errno == EINTR || errno == EAGAIN);
	in->have += (size_t)n;
	while ((end = memchr(at, '\n', in->have - (size_t)(at - in->bytes)))) {
		*end = 0;
		if (g < 0)
			command_line(turns, at);
		else
			guest_line(turns, (unsigned)g, at);
		at = end + 1;
	}
	in->have -= (size_t)(at - in->bytes);
	memmove(in->bytes, at, in->have);
	if (in->have == sizeof(in->bytes))
		fail("a line longer than %zu bytes", sizeof(in->bytes));
	return true;
}

/* ---- the loop ------------------------------------------------------------------------------------- */

static void resume(struct turns *turns)
{
	for (unsigned c = 0; c < turns->chains; c++)
		for (unsigned g = 0; g < turns->count; g++)
			for (unsigned t = 0; t < turns->guests[g].count; t++)
				if (turns->guests[g].targets[t].held[c] > turns->chain[c].acked)
					turns->chain[c].acked = turns->chain[c].issued =
						turns->guests[g].targets[t].held[c];
	turns->resume = false;
}

static void advance(struct turns *turns)
{
	bool reached = turns->wait > 0, gone = turns->stopping, known = true;
	uint64_t now = now_ns();

	for (unsigned g = 0; g < turns->count; g++) {
		struct guest *guest = &turns->guests[g];

		if (guest->fd < 0 && now >= guest->retry_ns && !turns->stopping)
			guest_connect(guest);
		gone &= guest->stopped;
		known &= guest->count > 0;
	}
	if (known && turns->resume)
		resume(turns);
	for (unsigned c = 0; c < turns->chains; c++) {
		struct chain *chain = &turns->chain[c];

		if (!in_flight(chain) && chain->acked < turns->limit && known && !turns->stopping)
			chain_next(turns, c);
		reached &= chain->acked >= turns->wait && known;
		if (in_flight(chain) && now - turns->moved_ns > turns->idle_ns)
			fail("nothing has moved for %" PRIu64
			     " s: chain %u waits for %s to do %" PRIu64,
			     turns->idle_ns / 1000000000u, c, turns->guests[chain->guest].name,
			     chain->issued);
	}
	if (now - turns->moved_ns > turns->idle_ns && (turns->stopping || turns->wait > 0))
		fail("nothing has moved for %" PRIu64 " s", turns->idle_ns / 1000000000u);
	if (reached) {
		printf("at %" PRIu64 "\n", turns->wait);
		turns->wait = 0;
	}
	if (gone) {
		printf("stopped\n");
		exit(0);
	}
}

static void loop(struct turns *turns)
{
	struct pollfd fds[GUESTS_MAX + 1];

	turns->moved_ns = now_ns();
	for (;;) {
		advance(turns);
		for (unsigned g = 0; g < turns->count; g++)
			fds[g] = (struct pollfd){.fd = turns->guests[g].fd, .events = POLLIN};
		fds[turns->count] = (struct pollfd){.fd = STDIN_FILENO, .events = POLLIN};
		if (poll(fds, turns->count + 1, 100) < 0 && errno != EINTR)
			fail("poll: %s", strerror(errno));
		for (unsigned g = 0; g < turns->count; g++)
			if (fds[g].revents && fds[g].fd == turns->guests[g].fd &&
			    !lines_read(turns, fds[g].fd, &turns->guests[g].in, (int)g))
				guest_close(&turns->guests[g]);
		if (fds[turns->count].revents &&
		    !lines_read(turns, STDIN_FILENO, &turns->commands, -1))
			exit(0);
	}
}

int main(int argc, char **argv)
{
	static struct turns turns = {.chains = 1, .seed = 1, .idle_ns = UINT64_C(120000000000)};
	char *at;

	setvbuf(stdout, NULL, _IOLBF, 0);
	for (int i = 1; i < argc; i++) {
		unsigned long number = (at = strchr(argv[i], '=')) ? strtoul(at + 1, NULL, 10) : 0;

		if (strncmp(argv[i], "--chains=", 9) == 0 && number >= 1 &&
		    number <= RECORD_CHAINS) {
			turns.chains = (unsigned)number;
		} else if (strncmp(argv[i], "--seed=", 7) == 0 && number >= 1) {
			turns.seed = number;
		} else if (strncmp(argv[i], "--idle=", 7) == 0 && number >= 1) {
			turns.idle_ns = UINT64_C(1000000000) * number;
		} else if (strcmp(argv[i], "--resume") == 0) {
			turns.resume = true;
		} else if (at && argv[i][0] != '-' && turns.count < GUESTS_MAX &&
			   strlen(at + 1) < sizeof(((struct sockaddr_un *)0)->sun_path)) {
			*at = 0;
			turns.guests[turns.count++] = (struct guest){.name = argv[i],
								     .path = at + 1,
								     .fd = -1};
		} else {
			fprintf(stderr, "turns: not understood: %s\n", argv[i]);
			return 2;
		}
	}
	if (turns.count < 2) {
		fprintf(stderr, "turns: expected at least two words VM=SOCKET\n");
		return 2;
	}
	loop(&turns);
}
