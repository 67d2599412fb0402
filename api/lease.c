/* SPDX-License-Identifier: MIT */
/*
 * lease.c - the process that holds guests frozen, and lets none stay so (QU-12..QU-16, T24). One thread, a
 * poll loop over its parent's socket, its signals and the agents; nothing in it blocks.
 *
 * L-1: whoever was sent a freeze is sent a thaw behind it, whatever was answered. L-2: once thawing is
 * decided nothing is frozen any more. L-3: the end of the parent, SIGTERM and the limit decide it as
 * the parent's word does.
 *
 *     CONNECT -> SYNC -> READY -> FREEZE -> FROZEN -> THAW -> DONE
 *     CONNECT, SYNC, READY -> FAILED; FREEZE (refused, broken) -> THAW; a lease that only thaws: THAW -> DONE
 */
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

#include "api/agent.h"
#include "api/lease.h"
#include "api/vmimg.h"

#define MS           1000000ull
#define SECOND       (1000 * MS)
#define GIVE_UP_NS   (60 * SECOND) /* QU-15 */
#define SILENT_NS    (10 * SECOND)
#define ORPHAN_NS    (5 * SECOND) /* a lease that only thaws, its parent gone: the next one goes on */
#define LIMIT_MAX_NS (3600 * SECOND)
#define NEVER        UINT64_MAX

enum guest_state { CONNECT, SYNC, READY, FAILED, FREEZE, FROZEN, THAW, DONE };

/* What is told of a guest, in this order. */
enum about { ABOUT_READY, ABOUT_FROZEN, ABOUT_THAWED, ABOUT_COUNT };

struct outcome {
	bool due; /* to be told */
	int result;
	uint32_t count; /* file systems */
	char text[LEASE_TEXT_MAX];
};

struct guest {
	char path[LEASE_TEXT_MAX];
	struct api_agent agent;
	enum guest_state state;
	struct outcome about[ABOUT_COUNT];
	bool answered; /* to the thaw, with a number or as one that has no such command */
	uint64_t frozen_ns, thaw_ns, done_ns;
	uint64_t retry_ns;   /* to be tried again */
	uint64_t silent_ns;  /* the try at hand ends */
	uint64_t give_up_ns; /* thawing ends */
};

struct lease {
	int fd; /* the parent, or -1: gone */
	int signals;
	struct guest *guests;
	size_t count, room;
	struct pollfd *polls;
	bool talking, thawing, only_thaws;
	uint64_t sync_ns, limit_ns; /* when the syncs, and the freeze, end; NEVER */
	uint64_t released_ns;
	bool tell_hello, tell_released;
};

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * SECOND + (uint64_t)ts.tv_nsec;
}

static void set_text(struct guest *g, enum about about, const char *text)
{
	snprintf(g->about[about].text, LEASE_TEXT_MAX, "%s", text);
}

static void set_due(struct guest *g, enum about about, int result)
{
	g->about[about].result = result;
	g->about[about].due = true;
}

/* --- a guest's thaw --- */

static void done(struct guest *g, int result)
{
	api_agent_close(&g->agent);
	g->state = DONE;
	g->done_ns = now_ns();
	g->retry_ns = NEVER;
	g->silent_ns = NEVER;
	set_due(g, ABOUT_THAWED, result);
}

/* This try has failed; another follows, over a new connection (QU-15). */
static void thaw_again(struct guest *g, const char *why, uint64_t pause_ns)
{
	set_text(g, ABOUT_THAWED, why);
	api_agent_close(&g->agent);
	g->silent_ns = NEVER;
	g->retry_ns = now_ns() + pause_ns;
}

static void ask_thaw(struct guest *g)
{
	int r = 0;

	if (g->agent.fd < 0)
		r = api_agent_connect(&g->agent, g->path);
	if (r == 0)
		r = api_agent_ask(&g->agent, API_ASK_SYNC);
	if (r == 0)
		r = api_agent_ask(&g->agent, API_ASK_THAW);
	if (r == 0)
		r = api_agent_ask(&g->agent, API_ASK_STATUS);
	if (r == 0)
		r = api_agent_flush(&g->agent);
	if (r < 0) {
		thaw_again(g, strerror(-r), r == -EAGAIN ? 20 * MS : 200 * MS);
		return;
	}
	g->answered = false;
	g->retry_ns = NEVER;
	g->silent_ns = now_ns() + SILENT_NS;
}

/* L-1: on the connection that the freeze went over, behind it (QU-14). */
static void begin_thaw(struct guest *g)
{
	g->state = THAW;
	g->thaw_ns = now_ns();
	g->give_up_ns = g->thaw_ns + GIVE_UP_NS;
	ask_thaw(g);
}

/* QU-19 */
static void thaw_answered(struct guest *g, const struct api_answer *a)
{
	struct outcome *o = &g->about[ABOUT_THAWED];

	if (a->ask == API_ASK_THAW) {
		/* Who does not know how to thaw does not freeze either. */
		g->answered = !a->failed || a->unknown;
		o->count = a->count;
		set_text(g, ABOUT_THAWED, a->failed && !a->unknown ? a->text : "");
	} else if (a->ask == API_ASK_STATUS) {
		if (a->failed ? g->answered : a->thawed)
			done(g, 0);
		else
			thaw_again(g, a->failed ? a->text : "it says that it is frozen", 100 * MS);
	}
}

/* --- a guest before its thaw --- */

static void not_ready(struct guest *g, int r, const char *text)
{
	api_agent_close(&g->agent);
	g->state = FAILED;
	g->retry_ns = NEVER;
	set_text(g, ABOUT_READY, text);
	set_due(g, ABOUT_READY, r);
}

static void not_frozen(struct guest *g, int r, const char *text)
{
	set_text(g, ABOUT_FROZEN, text);
	set_due(g, ABOUT_FROZEN, r);
	begin_thaw(g);
}

static void start_talking(struct guest *g)
{
	int r = api_agent_connect(&g->agent, g->path);

	if (r == -EAGAIN) {
		g->retry_ns = now_ns() + 20 * MS;
		return;
	}
	if (r == 0)
		r = api_agent_ask(&g->agent, API_ASK_SYNC);
	if (r == 0)
		r = api_agent_flush(&g->agent);
	if (r < 0) {
		not_ready(g, r, strerror(-r));
		return;
	}
	g->retry_ns = NEVER;
	g->state = SYNC;
}

static void freeze(struct guest *g)
{
	int r;

	if (g->state != READY) {
		if (g->state != FAILED)
			not_ready(g, -ETIMEDOUT, "no answer to a sync");
		set_text(g, ABOUT_FROZEN, g->about[ABOUT_READY].text);
		set_due(g, ABOUT_FROZEN, g->about[ABOUT_READY].result);
		return;
	}
	g->state = FREEZE; /* from here on it may be frozen */
	r = api_agent_ask(&g->agent, API_ASK_FREEZE);
	if (r == 0)
		r = api_agent_flush(&g->agent);
	if (r < 0)
		not_frozen(g, r, strerror(-r));
}

static void freeze_answered(struct guest *g, const struct api_answer *a)
{
	if (a->failed) {
		not_frozen(g, -EREMOTEIO, a->text);
		return;
	}
	g->state = FROZEN;
	g->frozen_ns = now_ns();
	g->about[ABOUT_FROZEN].count = a->count;
	set_due(g, ABOUT_FROZEN, 0);
}

/* --- what comes from an agent --- */

static void broken(struct guest *g, int r)
{
	const char *text = r == -ECONNRESET ? "it hung up"
			   : r == -EBADMSG  ? "it does not speak the guest agent's protocol"
					    : strerror(-r);

	api_agent_close(&g->agent);
	switch (g->state) {
	case SYNC:
	case READY: not_ready(g, r, text); break;
	case FREEZE:
	case FROZEN: not_frozen(g, r, text); break;
	default: thaw_again(g, text, 200 * MS); break;
	}
}

static void agent_ready(struct guest *g)
{
	struct api_answer a;
	int r;

	while ((r = api_agent_take(&g->agent, &a)) > 0) {
		if (g->state == SYNC && a.ask == API_ASK_SYNC) {
			g->state = READY;
			set_due(g, ABOUT_READY, 0);
		} else if (g->state == FREEZE && a.ask == API_ASK_FREEZE) {
			freeze_answered(g, &a);
		} else if (g->state == THAW) {
			thaw_answered(g, &a);
		}
		if (g->agent.fd < 0)
			return;
	}
	if (r == 0)
		r = api_agent_flush(&g->agent);
	if (r < 0)
		broken(g, r);
}

/* --- what the parent says --- */

/* L-2, L-3 */
static void decide_thaw(struct lease *l)
{
	if (l->thawing)
		return;
	l->thawing = true;
	l->limit_ns = NEVER;
	l->sync_ns = NEVER;
	l->released_ns = now_ns();
	l->tell_released = true;
	for (size_t i = 0; i < l->count; i++) {
		struct guest *g = &l->guests[i];

		if (g->state == FREEZE || g->state == FROZEN || l->only_thaws) {
			begin_thaw(g);
		} else if (g->state != THAW && g->state != DONE) {
			api_agent_close(&g->agent);
			g->state = DONE; /* nothing was sent: nothing to tell */
			g->retry_ns = NEVER;
		}
	}
}

static int add_guest(struct lease *l, const struct lease_packet *p)
{
	struct guest *g;

	if (l->talking || l->thawing || p->index != l->count || l->count >= LEASE_GUESTS_MAX)
		return -EPROTO;
	if (l->count == l->room) {
		size_t room = l->room ? 2 * l->room : 16;
		struct pollfd *polls = reallocarray(l->polls, room + 2, sizeof(*polls));

		l->polls = polls ? polls : l->polls;
		g = polls ? reallocarray(l->guests, room, sizeof(*g)) : NULL;
		if (!g)
			return -ENOMEM;
		l->guests = g;
		l->room = room;
	}
	g = &l->guests[l->count++];
	memset(g, 0, sizeof(*g));
	memcpy(g->path, p->text, sizeof(g->path));
	api_agent_init(&g->agent);
	g->retry_ns = NEVER;
	g->silent_ns = NEVER;
	g->give_up_ns = NEVER;
	return 0;
}

static int obey(struct lease *l, const struct lease_packet *p)
{
	uint64_t limit = p->limit_ns < LIMIT_MAX_NS ? p->limit_ns : LIMIT_MAX_NS;

	switch (p->kind) {
	case LEASE_GUEST: return add_guest(l, p);
	case LEASE_SYNC:
		if (l->talking || l->thawing)
			return -EPROTO;
		l->talking = true;
		l->sync_ns = now_ns() + limit;
		for (size_t i = 0; i < l->count; i++)
			start_talking(&l->guests[i]);
		return 0;
	case LEASE_FREEZE:
		if (l->thawing)
			return 0; /* SIGTERM came first */
		if (!l->talking || l->limit_ns != NEVER)
			return -EPROTO;
		l->sync_ns = NEVER;
		l->limit_ns = now_ns() + limit;
		for (size_t i = 0; i < l->count; i++)
			freeze(&l->guests[i]);
		return 0;
	case LEASE_THAW:
		l->only_thaws = !l->talking && !l->thawing;
		/* Who hung up by now was not held until now. */
		for (size_t i = 0; i < l->count; i++)
			if (l->guests[i].state == FROZEN)
				agent_ready(&l->guests[i]);
		decide_thaw(l);
		return 0;
	default: return -EPROTO;
	}
}

static void parent_ready(struct lease *l)
{
	struct lease_packet p;
	int r;

	while ((r = lease_receive(l->fd, &p)) > 0) {
		r = obey(l, &p);
		if (r < 0)
			break;
	}
	if (r == 0)
		return;
	close(l->fd);
	l->fd = -1;
	decide_thaw(l);
	for (size_t i = 0; l->only_thaws && i < l->count; i++) {
		uint64_t end = now_ns() + ORPHAN_NS;

		if (l->guests[i].give_up_ns > end)
			l->guests[i].give_up_ns = end;
	}
}

/* --- what the parent is told --- */

static int tell_guests(struct lease *l, enum about about)
{
	static const uint16_t kinds[] = {LEASE_READY, LEASE_FROZEN, LEASE_THAWED};
	int r = 1;

	for (size_t i = 0; r > 0 && i < l->count; i++) {
		struct guest *g = &l->guests[i];
		struct outcome *o = &g->about[about];
		struct lease_packet p = {
			.kind = kinds[about],
			.index = (uint32_t)i,
			.result = o->result,
			.count = o->count,
			.at_ns = about == ABOUT_THAWED ? g->thaw_ns : g->frozen_ns,
			.limit_ns = g->done_ns,
		};

		if (!o->due)
			continue;
		memcpy(p.text, o->text, sizeof(p.text));
		r = lease_send(l->fd, &p);
		o->due = r == 0;
	}
	return r;
}

/* 1: all is told; 0: no room just now. */
static int tell(struct lease *l)
{
	struct lease_packet hello = {.kind = LEASE_HELLO};
	struct lease_packet released = {.kind = LEASE_RELEASED, .at_ns = l->released_ns};
	int r = 1;

	if (l->tell_hello) {
		r = lease_send(l->fd, &hello);
		l->tell_hello = r == 0;
	}
	if (r > 0)
		r = tell_guests(l, ABOUT_READY);
	if (r > 0)
		r = tell_guests(l, ABOUT_FROZEN);
	/* What a guest did before it was released has been told before. */
	if (r > 0 && l->tell_released) {
		r = lease_send(l->fd, &released);
		l->tell_released = r == 0;
	}
	return r > 0 ? tell_guests(l, ABOUT_THAWED) : r;
}

/* --- the loop --- */

static void guest_time(struct guest *g, uint64_t now, bool thawing)
{
	if (g->state == THAW && now >= g->give_up_ns) {
		if (!g->about[ABOUT_THAWED].text[0])
			set_text(g, ABOUT_THAWED, "no answer");
		done(g, -ETIMEDOUT);
	} else if (g->state == THAW && now >= g->silent_ns) {
		thaw_again(g, "no answer", 0);
	}
	if (now < g->retry_ns)
		return;
	if (g->state == THAW)
		ask_thaw(g);
	else if (g->state == CONNECT && !thawing)
		start_talking(g);
}

static void look_at_clock(struct lease *l)
{
	uint64_t now = now_ns();

	if (now >= l->limit_ns)
		decide_thaw(l);
	for (size_t i = 0; i < l->count; i++) {
		struct guest *g = &l->guests[i];

		if (now >= l->sync_ns && (g->state == CONNECT || g->state == SYNC))
			not_ready(g, -ETIMEDOUT, "no answer to a sync");
		guest_time(g, now, l->thawing);
	}
	if (now >= l->sync_ns)
		l->sync_ns = NEVER;
}

static int time_left_ms(const struct lease *l)
{
	uint64_t now = now_ns(), end = l->sync_ns < l->limit_ns ? l->sync_ns : l->limit_ns;

	for (size_t i = 0; i < l->count; i++) {
		const struct guest *g = &l->guests[i];

		if (g->retry_ns < end)
			end = g->retry_ns;
		if (g->silent_ns < end)
			end = g->silent_ns;
		if (g->state == THAW && g->give_up_ns < end)
			end = g->give_up_ns;
	}
	if (end == NEVER)
		return -1;
	if (end <= now)
		return 0;
	return end - now < 60 * SECOND ? (int)((end - now) / MS) + 1 : 60000;
}

static void wait_for_something(struct lease *l, bool told)
{
	struct signalfd_siginfo signal;

	l->polls[0] = (struct pollfd){.fd = l->fd, .events = POLLIN | (told ? 0 : POLLOUT)};
	l->polls[1] = (struct pollfd){.fd = l->signals, .events = POLLIN};
	for (size_t i = 0; i < l->count; i++) {
		const struct api_agent *a = &l->guests[i].agent;

		l->polls[i + 2] = (struct pollfd){
			.fd = a->fd,
			.events = POLLIN | (a->out_sent < a->out_len ? POLLOUT : 0),
		};
	}
	if (poll(l->polls, l->count + 2, time_left_ms(l)) <= 0)
		return;
	if (l->polls[1].revents && read(l->signals, &signal, sizeof(signal)) > 0)
		decide_thaw(l);
	/* The agents first: what they did counts as before what the parent says now. */
	for (size_t i = 0; i < l->count; i++)
		if (l->polls[i + 2].revents && l->polls[i + 2].fd == l->guests[i].agent.fd)
			agent_ready(&l->guests[i]);
	if (l->polls[0].revents & (POLLIN | POLLHUP | POLLERR))
		parent_ready(l);
}

static bool is_over(const struct lease *l)
{
	bool over = l->thawing;

	for (size_t i = 0; over && i < l->count; i++)
		over = l->guests[i].state == DONE;
	return over;
}

static int hold(struct lease *l)
{
	for (;;) {
		bool told = true;

		if (l->fd >= 0) {
			int r = tell(l);

			told = r != 0;
			if (r < 0) {
				close(l->fd);
				l->fd = -1;
				decide_thaw(l);
			}
		}
		if (is_over(l) && (l->fd < 0 || told))
			return 0;
		wait_for_something(l, told);
		look_at_clock(l);
	}
}

static int set_up_signals(void)
{
	static const int ignored[] = {SIGINT, SIGHUP, SIGPIPE, SIGQUIT};
	struct sigaction ignore = {.sa_handler = SIG_IGN};
	sigset_t set;
	int fd;

	for (size_t i = 0; i < sizeof(ignored) / sizeof(ignored[0]); i++)
		sigaction(ignored[i], &ignore, NULL);
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	if (sigprocmask(SIG_BLOCK, &set, NULL) < 0)
		return -errno;
	fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	return fd < 0 ? -errno : fd;
}

int vmimg_lease_run(int fd)
{
	struct lease l = {.fd = fd, .sync_ns = NEVER, .limit_ns = NEVER, .tell_hello = true};
	int type = 0, r;
	socklen_t len = sizeof(type);

	if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) < 0 || type != SOCK_SEQPACKET)
		return -EINVAL;
	prctl(PR_SET_NAME, "vmimg-lease");
	r = set_up_signals();
	if (r < 0)
		return r;
	l.signals = r;
	l.polls = calloc(2, sizeof(*l.polls));
	/* So that it keeps no file system busy. */
	r = l.polls && chdir("/") == 0 ? hold(&l) : -ENOMEM;
	for (size_t i = 0; i < l.count; i++)
		api_agent_close(&l.guests[i].agent);
	free(l.guests);
	free(l.polls);
	close(l.signals);
	return r;
}
