/* SPDX-License-Identifier: MIT */
/*
 * quiesce.c - application consistency through guest agents (spec/quiesce.md): guests are frozen over
 * the cut, and whatever goes wrong, none stays frozen (T24).
 */
#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "tests/api/agent.h"
#include "tests/api/fixture.h"

#define MS     (SECOND / 1000)
#define APP    "{\"ConsistencyLevel\": 1, \"Synchronous\": true}"
#define APP_OR "{\"ConsistencyLevel\": 1, \"Synchronous\": true, \"FallbackToCrash\": true}"
#define AGENTS 3
#define MARK   "VMIMG_TEST_LEASE_OF="

static struct agent agents[AGENTS];
static const char *const vms[AGENTS] = {"app", "db", "web"};

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * SECOND + (uint64_t)ts.tv_nsec;
}

static int open_store(struct vmimg_error *why, struct vmimg_service **ret)
{
	const char *const lease[] = {getenv("VMIMG"), "lease", NULL};
	const struct vmimg_options options = {.size = sizeof(options), .lease_argv = lease};

	return vmimg_open(store_dir, &options, why, ret);
}

/* Collection "prod" of three VMs with an agent and a disk each; "other" has no agent, "bare" no disk. */
static void begin(void)
{
	char path[300];

	cr_assert(getenv("VMIMG"), "VMIMG names the command, which is the lease");
	fixture_init();
	fixture_close();
	setenv("VMIMG_TEST_LEASE_OF", scratch, 1);
	expect_ok(open_store(&err, &svc));
	for (unsigned i = 0; i < AGENTS; i++) {
		snprintf(path, sizeof(path), "%s/ga%u", scratch, i);
		agent_start(&agents[i], path);
		make_vm(vms[i], 1);
		expect_ok(vmimg_vm_set_guest_agent(svc, vms[i], path, &err));
	}
	make_vm("other", 1);
	make_vm("bare", 0);
	make_collection("prod", "app", "db", "web", "bare", NULL);
	make_collection("mixed", "app", "other", NULL);
}

static void end(void)
{
	for (unsigned i = 0; i < AGENTS; i++)
		agent_end(&agents[i]);
	fixture_fini();
}

TestSuite(api_quiesce, .init = begin, .fini = end, .timeout = 120);

#define wait_until(cond, seconds)                                                                  \
	do {                                                                                       \
		uint64_t end_ns = now_ns() + (seconds)*SECOND;                                     \
                                                                                                   \
		while (!(cond) && now_ns() < end_ns)                                               \
			usleep(2000);                                                              \
		cr_assert(cond, "not in " #seconds " s: " #cond);                                  \
	} while (0)

static uint32_t create_with(const char *collection, const char *settings)
{
	struct vmimg_ref result = {.name = "s1"};

	return vmimg_create_snapshot(svc, collection, settings, VMIMG_SNAPSHOT_STANDARD, &result,
				     NULL, &err);
}

static struct vmimg_job *start_with(const char *settings)
{
	struct vmimg_job *job = NULL;

	cr_assert_eq(vmimg_create_snapshot(svc, "prod", settings, VMIMG_SNAPSHOT_STANDARD, NULL,
					   &job, &err),
		     VMIMG_JOB_STARTED, "%s", err.message);
	return job;
}

static int frozen_now(void)
{
	int n = 0;

	for (unsigned i = 0; i < AGENTS; i++)
		n += agents[i].state->frozen;
	return n;
}

static bool is_pending(const char *vm)
{
	json_t *doc = describe(VMIMG_KIND_VM, vm);
	bool pending = json_is_true(json_object_get(doc, "thaw_pending"));

	json_decref(doc);
	return pending;
}

/* QU-4: no record is left, and nobody frozen. */
static void expect_all_thawed(void)
{
	wait_until(frozen_now() == 0, 10);
	for (unsigned i = 0; i < AGENTS; i++) {
		wait_until(!is_pending(vms[i]), 10);
		cr_expect_eq(agents[i].state->freezes, agents[i].state->thaws, "%s", vms[i]);
	}
}

/* The one snapshot: its consistency, and of each guest "vm+" held, "vm-" not. */
static void expect_snapshot(const char *name, int consistency, const char *guests)
{
	json_t *doc = describe(VMIMG_KIND_SNAPSHOT, name), *guest;
	char got[256] = "";
	size_t i;

	json_array_foreach (json_object_get(doc, "guests"), i, guest) {
		bool held = json_is_true(json_object_get(guest, "frozen"));

		snprintf(got + strlen(got), sizeof(got) - strlen(got), "%s%s%c", i ? " " : "",
			 text(guest, "vm"), held ? '+' : '-');
		if (held)
			cr_expect(json_is_null(json_object_get(guest, "error")), "%s",
				  text(guest, "vm"));
		else
			cr_expect_neq(text(guest, "error")[0], 0);
	}
	cr_expect_str_eq(got, guests);
	cr_expect_eq(number(doc, "consistency"), consistency);
	json_decref(doc);
}

/* --- it works --- */

static int64_t wall_of(const char *iso)
{
	struct tm tm = {0};
	const char *rest = strptime(iso, "%Y-%m-%dT%H:%M:%S", &tm);

	cr_assert(rest && *rest == '.', "%s", iso);
	return timegm(&tm) * INT64_C(1000000000) + atoll(rest + 1) * 1000;
}

/* QU-2, QU-3, QU-7, CSN-14 */
Test(api_quiesce, all_guests_are_frozen_when_the_cut_comes_and_thawed_after)
{
	json_t *snap, *guest;
	int64_t cut;

	expect_ok(create_with("prod", APP));
	expect_all_thawed();
	expect_snapshot("prod@s1", 1, "app+ db+ web+");
	snap = describe(VMIMG_KIND_SNAPSHOT, "prod@s1");
	cut = wall_of(text(snap, "cut_time"));
	for (unsigned i = 0; i < AGENTS; i++) {
		const struct agent_state *s = agents[i].state;

		cr_expect_eq(s->freezes, 1);
		cr_expect_leq(s->frozen_at_ns / 1000, cut / 1000);
		cr_expect_geq(s->thawed_at_ns / 1000, cut / 1000);
		guest = json_array_get(json_object_get(snap, "guests"), i);
		cr_expect_eq(number(guest, "filesystems"), 3);
		cr_expect_geq(number(guest, "frozen_ns"), s->thawed_at_ns - s->frozen_at_ns);
		cr_expect_leq(number(guest, "frozen_ns"), number(snap, "freeze_ns"));
	}
	json_decref(snap);
}

/* QU-6: together, not one after the other */
Test(api_quiesce, guests_are_frozen_concurrently)
{
	uint64_t begun = now_ns();

	for (unsigned i = 0; i < AGENTS; i++) {
		agents[i].state->script = AGENT_SLOW;
		agents[i].state->delay_ms = 400;
	}
	expect_ok(create_with("prod", APP));
	cr_expect_lt(now_ns() - begun, 1100 * MS);
	expect_snapshot("prod@s1", 1, "app+ db+ web+");
	expect_all_thawed();
}

/* QU-20 */
Test(api_quiesce, what_an_agent_had_left_to_say_is_dropped)
{
	agents[1].state->script = AGENT_STALE;
	expect_ok(create_with("prod", APP));
	expect_snapshot("prod@s1", 1, "app+ db+ web+");
	expect_all_thawed();
}

/* CSN-7: the other levels ask no agent */
Test(api_quiesce, crash_consistency_freezes_nobody)
{
	expect_ok(create_with("prod", "{\"ConsistencyLevel\": 2, \"Synchronous\": true}"));
	expect_snapshot("prod@s1", 2, "");
	cr_expect_eq(agents[0].state->asked, 0);
}

/* --- who cannot be frozen --- */

/* QU-2, CSN-2 12 */
Test(api_quiesce, a_guest_without_an_agent_is_1_and_named)
{
	expect_error(create_with("mixed", APP), VMIMG_NOT_SUPPORTED);
	cr_expect_eq(create_with("mixed", APP), VMIMG_NOT_SUPPORTED);
	cr_expect(strstr(err.message, "other"), "%s", err.message);
	cr_expect_eq(vmimg_check_snapshot(svc, "mixed", APP, VMIMG_SNAPSHOT_STANDARD, NULL, &err),
		     VMIMG_NOT_SUPPORTED);
	cr_expect_eq(count_of(VMIMG_KIND_JOB), 0);
	cr_expect_eq(agents[0].state->asked, 0);
	cr_expect_eq(vmimg_check_snapshot(svc, "prod", APP, VMIMG_SNAPSHOT_STANDARD, NULL, &err),
		     0);
}

/* QU-2: with the fallback it is one that could not be frozen */
Test(api_quiesce, a_guest_without_an_agent_falls_back)
{
	expect_ok(create_with("mixed", APP_OR));
	expect_snapshot("mixed@s1", 2, "app+ other-");
	expect_all_thawed();
}

struct failure {
	int script;
	const char *name;
	uint32_t code; /* of the create */
	int asked;     /* freezes that reach the others: 0 none, 1 all */
};

static const struct failure failures[] = {
	{AGENT_SILENT, "silent", VMIMG_TIMEOUT, 0},
	{AGENT_FLOODS, "floods", VMIMG_FAILED, 0},
	{AGENT_REFUSES, "refuses", VMIMG_FAILED, 1},
	{AGENT_HAS_NO_FREEZE, "has no freeze", VMIMG_FAILED, 1},
	{AGENT_GARBAGE, "garbage", VMIMG_FAILED, 1},
	{AGENT_ODD_COUNT, "odd count", VMIMG_FAILED, 1},
	{AGENT_LONG_LINE, "long line", VMIMG_FAILED, 1},
	{AGENT_HANGS_UP, "hangs up", VMIMG_FAILED, 1},
	{AGENT_WAS_THAWED, "was thawed", VMIMG_FAILED, 1},
};

#define QUICK    "{\"ConsistencyLevel\": 1, \"Synchronous\": true, \"Timeout\": 1500}"
#define FAILURES (sizeof(failures) / sizeof(failures[0]))

/* QU-5, QU-6, QU-11, QU-21, QU-22: no snapshot, the VM named, all others thawed at once */
Test(api_quiesce, a_bad_agent_costs_the_snapshot_and_nothing_else)
{
	for (size_t i = 0; i < FAILURES; i++) {
		const struct failure *f = &failures[i];
		uint64_t begun = now_ns();
		int asked = agents[0].state->asked;

		agents[1].state->script = f->script;
		cr_expect_eq(create_with("prod", QUICK), f->code, "%s: %s", f->name, err.message);
		cr_expect(strstr(err.message, "VM db"), "%s: %s", f->name, err.message);
		cr_expect_lt(now_ns() - begun, 3500 * MS, "%s", f->name);
		cr_expect_eq(agents[0].state->asked - asked, f->asked, "%s", f->name);
		cr_expect_eq(agents[0].state->frozen, 0, "%s", f->name);
		cr_expect_eq(agents[2].state->frozen, 0, "%s", f->name);
		cr_expect_eq(count_of(VMIMG_KIND_SNAPSHOT), 0, "%s", f->name);
		agents[1].state->script = AGENT_GOOD;
		expect_all_thawed();
	}
	/* Nothing of it is left. */
	expect_ok(create_with("prod", APP));
}

/* QU-3, QU-6 */
Test(api_quiesce, a_bad_agent_falls_back_to_a_crash_consistent_snapshot)
{
	for (size_t i = 0; i < FAILURES; i++) {
		const struct failure *f = &failures[i];
		struct vmimg_ref result = {0};

		if (f->script == AGENT_SILENT)
			continue; /* 5 s */
		agents[1].state->script = f->script;
		expect_ok(vmimg_create_snapshot(svc, "prod", APP_OR, VMIMG_SNAPSHOT_STANDARD,
						&result, NULL, &err));
		expect_snapshot(result.name, 2, "app+ db- web+");
		agents[1].state->script = AGENT_GOOD;
		expect_all_thawed();
	}
}

/* QU-21: what it says is made printable */
Test(api_quiesce, an_agents_words_are_made_printable)
{
	agents[1].state->script = AGENT_REFUSES;
	expect_error(create_with("prod", APP), VMIMG_FAILED);
	cr_expect_eq(create_with("prod", APP), VMIMG_FAILED);
	cr_expect(strstr(err.message, "failed to freeze ?[2J/: busy"), "%s", err.message);
	expect_all_thawed();
}

/* An agent that is not there. */
Test(api_quiesce, no_listener_is_a_failure_that_is_known_at_once)
{
	uint64_t begun = now_ns();

	agent_kill(&agents[2]);
	expect_error(create_with("prod", APP), VMIMG_FAILED);
	cr_expect_lt(now_ns() - begun, SECOND);
	cr_expect_eq(agents[0].state->asked, 0, "QU-5: nobody was held up");
	expect_ok(create_with("prod", APP_OR));
	expect_snapshot("prod@s1", 2, "app+ db+ web-");
	expect_all_thawed();
}

/* QU-22 */
Test(api_quiesce, a_thaw_from_elsewhere_is_no_application_consistency)
{
	agents[0].state->script = AGENT_WAS_THAWED;
	cr_expect_eq(create_with("prod", APP), VMIMG_FAILED);
	cr_expect(strstr(err.message, "somebody else"), "%s", err.message);
	cr_expect_eq(count_of(VMIMG_KIND_SNAPSHOT), 0, "CU-20");
	expect_all_thawed();
}

/* An agent that says something while it is frozen is not trusted to be. */
Test(api_quiesce, an_answer_to_nothing_while_frozen_ends_the_hold)
{
	agents[0].state->script = AGENT_CHATTERS;
	agents[1].state->script = AGENT_SLOW;
	agents[1].state->delay_ms = 300;
	cr_expect_eq(create_with("prod", APP), VMIMG_FAILED, "%s", err.message);
	expect_all_thawed();
}

/* --- time --- */

/* QU-9, QU-14: the bound thaws all, and a freeze that comes late too */
Test(api_quiesce, a_slow_freeze_ends_at_max_stall)
{
	uint64_t begun = now_ns();

	agents[1].state->script = AGENT_SLOW;
	agents[1].state->delay_ms = 1500;
	cr_expect_eq(create_with("prod", "{\"ConsistencyLevel\": 1, \"Synchronous\": true, "
					 "\"MaxStall\": 300}"),
		     VMIMG_TIMEOUT, "%s", err.message);
	cr_expect(strstr(err.message, "VM db"), "%s", err.message);
	for (unsigned i = 0; i < AGENTS; i += 2) {
		const struct agent_state *s = agents[i].state;

		cr_expect_eq(s->frozen, 0);
		cr_expect_lt(s->thawed_at_ns - s->frozen_at_ns, (int64_t)(600 * MS));
	}
	cr_expect_lt(now_ns() - begun, 1900 * MS);
	expect_all_thawed();
	cr_expect_eq(agents[1].state->freezes, 1, "it was frozen, late");
	cr_expect_eq(count_of(VMIMG_KIND_SNAPSHOT), 0);
}

/* QU-6, QU-9 */
Test(api_quiesce, a_slow_freeze_falls_back_with_nobody_held_up)
{
	agents[1].state->script = AGENT_SLOW;
	agents[1].state->delay_ms = 1500;
	expect_ok(create_with("prod", "{\"ConsistencyLevel\": 1, \"Synchronous\": true, "
				      "\"MaxStall\": 300, \"FallbackToCrash\": true}"));
	expect_snapshot("prod@s1", 2, "app- db- web-");
	expect_all_thawed();
}

/* QU-9: Timeout bounds it too, the fallback does not stretch it */
Test(api_quiesce, a_freeze_ends_with_the_timeout)
{
	agents[1].state->script = AGENT_SLOW;
	agents[1].state->delay_ms = 1200;
	cr_expect_eq(create_with("prod", "{\"ConsistencyLevel\": 1, \"Synchronous\": true, "
					 "\"Timeout\": 500, \"FallbackToCrash\": true}"),
		     VMIMG_TIMEOUT, "%s", err.message);
	expect_all_thawed();
}

/* QU-10 */
Test(api_quiesce, a_cancel_during_the_freeze_thaws)
{
	struct vmimg_job *job;

	agents[1].state->script = AGENT_SLOW;
	agents[1].state->delay_ms = 1000;
	job = start_with("{\"ConsistencyLevel\": 1}");
	wait_until(agents[0].state->frozen && agents[2].state->frozen, 5);
	cr_expect_eq(vmimg_job_request_state_change(job, VMIMG_REQUEST_TERMINATE, 0, &err),
		     VMIMG_REQUEST_TRANSITION_STARTED);
	wait_until(!agents[0].state->frozen && !agents[2].state->frozen, 1);
	cr_expect_eq(agents[1].state->freezes, 0, "the third had not come so far");
	expect_state(job, VMIMG_JOB_TERMINATED);
	vmimg_job_put(job);
	expect_all_thawed();
	cr_expect_eq(agents[1].state->freezes, 1);
}

/* QU-15, QU-19 */
Test(api_quiesce, a_thaw_is_tried_until_it_is_confirmed)
{
	agents[1].state->script = AGENT_THAWS_BADLY;
	agents[1].state->delay_ms = 3;
	expect_ok(create_with("prod", APP));
	expect_all_thawed();
	cr_expect_eq(agents[1].state->delay_ms, 0);
}

/* --- death --- */

/* The lease's process: the one that inherited our mark, and is not us. */
static pid_t find_lease(void)
{
	DIR *proc = opendir("/proc");
	struct dirent *entry;
	char want[400], path[300], name[32] = "";
	pid_t found = 0;

	snprintf(want, sizeof(want), MARK "%s", scratch);
	while (!found && (entry = readdir(proc))) {
		static char env[65536];
		size_t len;
		FILE *f;

		if (atoi(entry->d_name) <= 0)
			continue;
		snprintf(path, sizeof(path), "/proc/%.20s/comm", entry->d_name);
		f = fopen(path, "r");
		if (!f || !fgets(name, sizeof(name), f) || strcmp(name, "vmimg-lease\n") != 0) {
			if (f)
				fclose(f);
			continue;
		}
		fclose(f);
		snprintf(path, sizeof(path), "/proc/%.20s/environ", entry->d_name);
		f = fopen(path, "r");
		len = f ? fread(env, 1, sizeof(env) - 1, f) : 0;
		if (f)
			fclose(f);
		env[len] = 0;
		for (char *p = env; p < env + len; p += strlen(p) + 1)
			if (strcmp(p, want) == 0)
				found = atoi(entry->d_name);
	}
	closedir(proc);
	return found;
}

static void slow_second(int delay_ms)
{
	agents[1].state->script = AGENT_SLOW;
	agents[1].state->delay_ms = delay_ms;
}

/* The first and third are frozen, the second is about to be. */
static void wait_half_frozen(void)
{
	wait_until(agents[0].state->frozen && agents[2].state->frozen && agents[1].state->asked,
		   10);
	cr_assert_eq(agents[1].state->frozen, 0);
}

/* A process of its own that has the store and makes the snapshot. */
static pid_t create_in_child(const char *settings)
{
	pid_t child;

	fixture_close();
	fflush(NULL);
	child = fork();
	cr_assert_geq(child, 0);
	if (child == 0) {
		struct vmimg_service *own = NULL;
		uint32_t code = 99;

		if (open_store(NULL, &own) == 0)
			code = vmimg_create_snapshot(own, "prod", settings, VMIMG_SNAPSHOT_STANDARD,
						     NULL, NULL, NULL);
		vmimg_close(own);
		_exit((int)code);
	}
	return child;
}

static void kill_child(pid_t child)
{
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
}

static void open_again(void)
{
	uint64_t begun = now_ns();
	int r;

	while ((r = open_store(&err, &svc)) == -EBUSY && now_ns() - begun < 10 * SECOND)
		usleep(10000);
	expect_ok(r);
}

/* T24, QU-13, QU-17: the lease thaws at once, also who freezes late; the next open confirms it */
Test(api_quiesce, kill_9_between_freeze_and_cut_leaves_nobody_frozen)
{
	json_t *jobs;
	pid_t child;

	slow_second(1500);
	child = create_in_child(APP);
	wait_half_frozen();
	kill_child(child);
	wait_until(!agents[0].state->frozen && !agents[2].state->frozen, 1);
	cr_expect_eq(agents[1].state->freezes, 0);
	wait_until(agents[1].state->freezes == 1 && !agents[1].state->frozen, 5);
	open_again();
	cr_expect_eq(count_of(VMIMG_KIND_SNAPSHOT), 0);
	expect_all_thawed();
	jobs = list(VMIMG_KIND_JOB, NULL);
	cr_assert_eq(json_array_size(jobs), 1);
	cr_expect(strstr(text(json_array_get(jobs, 0), "job_status"), "guest db thawed"), "%s",
		  text(json_array_get(jobs, 0), "job_status"));
	json_decref(jobs);
	expect_ok(create_with("prod", APP));
}

/* T24, QU-4, QU-17: neither is left, but the record */
Test(api_quiesce, what_was_frozen_when_all_died_is_thawed_at_the_next_open)
{
	pid_t child, lease;

	slow_second(6000);
	child = create_in_child(APP);
	wait_half_frozen();
	lease = find_lease();
	cr_assert_gt(lease, 0);
	kill(lease, SIGKILL);
	kill_child(child);
	usleep(300000);
	cr_assert_eq(agents[0].state->frozen, 1, "nobody is there to thaw it");
	open_again();
	/* The second's agent answers nobody before it has frozen, seconds from now. */
	cr_expect_eq(agents[1].state->freezes, 0, "open does not wait");
	expect_all_thawed();
	cr_expect_eq(agents[1].state->freezes, 1, "the second froze after all had died");
}

/* Closing waits for the confirmation, so that one short command is enough. */
Test(api_quiesce, a_short_visit_thaws_what_was_left)
{
	pid_t child, lease;

	slow_second(600);
	child = create_in_child(APP);
	wait_half_frozen();
	lease = find_lease();
	kill(lease, SIGKILL);
	kill_child(child);
	usleep(700000);
	open_again();
	fixture_close();
	cr_expect_eq(frozen_now(), 0);
	open_again();
	cr_expect(!is_pending("app"));
	cr_expect(!is_pending("db"));
}

/* QU-13: the limit holds when we are stopped; QU-8: the cut that comes late is no snapshot */
Test(api_quiesce, the_lease_thaws_by_itself_when_we_are_stopped)
{
	pid_t child;
	int status;

	slow_second(300);
	child = create_in_child(
		"{\"ConsistencyLevel\": 1, \"Synchronous\": true, \"MaxStall\": 1500}");
	wait_half_frozen();
	kill(child, SIGSTOP);
	wait_until(frozen_now() == 3, 5);
	wait_until(frozen_now() == 0, 12);
	kill(child, SIGCONT);
	cr_assert_eq(waitpid(child, &status, 0), child);
	cr_expect(WIFEXITED(status) && WEXITSTATUS(status) == VMIMG_TIMEOUT, "status %x", status);
	open_again();
	cr_expect_eq(count_of(VMIMG_KIND_SNAPSHOT), 0);
	expect_all_thawed();
}

/* QU-17 */
Test(api_quiesce, a_killed_lease_is_replaced_and_there_is_no_snapshot)
{
	struct vmimg_job *job;

	slow_second(800);
	job = start_with("{\"ConsistencyLevel\": 1}");
	wait_half_frozen();
	kill(find_lease(), SIGKILL);
	expect_state(job, VMIMG_JOB_EXCEPTION);
	vmimg_job_put(job);
	expect_all_thawed();
	cr_expect_eq(count_of(VMIMG_KIND_SNAPSHOT), 0);
	agents[1].state->script = AGENT_GOOD;
	expect_ok(create_with("prod", APP));
}

/* QU-17: one that is stopped is killed, and replaced */
Test(api_quiesce, a_stopped_lease_is_replaced)
{
	struct vmimg_job *job;
	pid_t lease;

	slow_second(800);
	job = start_with("{\"ConsistencyLevel\": 1, \"MaxStall\": 1500}");
	wait_half_frozen();
	lease = find_lease();
	kill(lease, SIGSTOP);
	expect_state(job, VMIMG_JOB_EXCEPTION);
	vmimg_job_put(job);
	expect_all_thawed();
	cr_expect_eq(kill(lease, 0), -1, "it is gone");
}

/* QU-13 */
Test(api_quiesce, a_lease_thaws_on_sigterm)
{
	struct vmimg_job *job;
	pid_t lease;

	slow_second(800);
	job = start_with("{\"ConsistencyLevel\": 1}");
	wait_half_frozen();
	lease = find_lease();
	kill(lease, SIGINT);
	kill(lease, SIGHUP);
	usleep(100000);
	cr_expect_eq(agents[0].state->frozen, 1, "QU-12: these are ignored");
	kill(lease, SIGTERM);
	wait_until(!agents[0].state->frozen && !agents[2].state->frozen, 1);
	expect_state(job, VMIMG_JOB_EXCEPTION);
	vmimg_job_put(job);
	expect_all_thawed();
}

/* QU-5: an agent that is stopped before holds nobody up */
Test(api_quiesce, a_stopped_agent_is_found_before_anybody_is_frozen)
{
	kill(agents[1].pid, SIGSTOP);
	cr_expect_eq(create_with("prod", QUICK), VMIMG_TIMEOUT, "%s", err.message);
	cr_expect_eq(agents[0].state->asked, 0);
	kill(agents[1].pid, SIGCONT);
	expect_all_thawed();
}

/* QU-14: the thaw stands behind the freeze when it goes on */
Test(api_quiesce, an_agent_stopped_in_its_freeze_thaws_when_it_goes_on)
{
	struct vmimg_job *job;

	slow_second(500);
	job = start_with("{\"ConsistencyLevel\": 1, \"MaxStall\": 1000}");
	wait_half_frozen();
	kill(agents[1].pid, SIGSTOP);
	wait_until(!agents[0].state->frozen && !agents[2].state->frozen, 3);
	expect_state(job, VMIMG_JOB_EXCEPTION);
	vmimg_job_put(job);
	cr_expect(is_pending("db"));
	/* QU-18 */
	cr_expect_eq(create_with("prod", APP), VMIMG_FAILED);
	cr_expect(strstr(err.message, "an earlier freeze"), "%s", err.message);
	kill(agents[1].pid, SIGCONT);
	expect_all_thawed();
	cr_expect_eq(agents[1].state->freezes, 1);
}

/* The guest is gone in its freeze, and comes back later. */
Test(api_quiesce, a_guest_that_dies_frozen_is_thawed_when_it_is_back)
{
	agents[1].state->script = AGENT_DIES;
	cr_expect_eq(create_with("prod", APP), VMIMG_FAILED, "%s", err.message);
	cr_expect_eq(agents[0].state->frozen + agents[2].state->frozen, 0);
	cr_expect(is_pending("db"));
	agents[1].state->script = AGENT_GOOD;
	agent_again(&agents[1]);
	expect_all_thawed();
}

/* QU-4: who takes its agent away answers for the guest */
Test(api_quiesce, without_its_agent_a_guest_is_nobodys_to_thaw)
{
	agents[1].state->script = AGENT_DIES;
	cr_expect_eq(create_with("prod", APP), VMIMG_FAILED);
	cr_expect(is_pending("db"));
	expect_ok(vmimg_vm_set_guest_agent(svc, "db", agents[1].path, &err));
	cr_expect(is_pending("db"), "the same one");
	expect_ok(vmimg_vm_set_guest_agent(svc, "db", NULL, &err));
	cr_expect(!is_pending("db"));
}

/* --- the property --- */

/* QU-1, DS-5 */
Test(api_quiesce, an_agent_is_an_absolute_path_that_fits_a_socket)
{
	struct vmimg_vm_spec spec = {.size_of = sizeof(spec), .guest_agent = "/run/x.sock"};
	char longest[109] = "/";
	json_t *doc;

	expect_error(vmimg_vm_set_guest_agent(svc, "none", "/x", &err), -ENOENT);
	expect_error(vmimg_vm_set_guest_agent(svc, "web", "x", &err), -EINVAL);
	expect_error(vmimg_vm_set_guest_agent(svc, "web", "/", &err), -EINVAL);
	memset(longest + 1, 'x', 107);
	expect_error(vmimg_vm_set_guest_agent(svc, "web", longest, &err), -EINVAL);
	longest[107] = 0;
	expect_ok(vmimg_vm_set_guest_agent(svc, "web", longest, &err));
	fixture_reopen();
	doc = describe(VMIMG_KIND_VM, "web");
	cr_expect_str_eq(text(doc, "guest_agent"), longest);
	json_decref(doc);
	expect_ok(vmimg_vm_set_guest_agent(svc, "web", "", &err));
	doc = describe(VMIMG_KIND_VM, "web");
	cr_expect(json_is_null(json_object_get(doc, "guest_agent")));
	json_decref(doc);
	expect_ok(vmimg_vm_create_with(svc, "new", &spec, &err));
	doc = describe(VMIMG_KIND_VM, "new");
	cr_expect_str_eq(text(doc, "guest_agent"), "/run/x.sock");
	json_decref(doc);
	spec.guest_agent = "run";
	expect_error(vmimg_vm_create_with(svc, "newer", &spec, &err), -EINVAL);
	expect_error(vmimg_vm_create_with(svc, "new", NULL, &err), -EEXIST);
}

/* A lease that is none: known in time, and nobody is frozen. */
Test(api_quiesce, a_program_that_is_no_lease_fails_the_create)
{
	static const char *const wrong[][4] = {{"/nonexistent/vmimg", "lease", NULL},
					       {"true", NULL}};

	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		const struct vmimg_options o = {.size = sizeof(o), .lease_argv = wrong[i]};

		fixture_close();
		expect_ok(vmimg_open(store_dir, &o, &err, &svc));
		cr_expect_eq(create_with("prod", APP), VMIMG_FAILED);
		cr_expect(strstr(err.message, "lease"), "%s", err.message);
		cr_expect(!is_pending("web"));
	}
	cr_expect_eq(agents[0].state->asked, 0);
}
