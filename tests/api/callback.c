/* SPDX-License-Identifier: MIT */
/*
 * callback.c - guests that the embedder freezes itself (QU-23..QU-25): when its calls come, on which
 * threads, and what becomes of those that fail, are late or never return.
 */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "tests/api/fixture.h"

TestSuite(api_callback, .init = fixture_init, .fini = fixture_fini, .timeout = 60);

#define MS  (SECOND / 1000)
#define APP "{\"ConsistencyLevel\": 1, \"Synchronous\": true}"

struct guest {
	_Atomic int frozen, freezes, thaws, inside; /* now; calls; freezes at work */
	_Atomic int answer;                         /* of freeze */
	_Atomic int bad_thaws;                      /* to come */
	_Atomic int delay_ms;
	_Atomic uint64_t deadline_ns;
	pthread_t freezer;
};

static struct guest guests[2];

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * SECOND + (uint64_t)ts.tv_nsec;
}

static int freeze(void *arg, uint64_t deadline_ns)
{
	struct guest *g = arg;

	g->inside++;
	g->freezer = pthread_self();
	g->deadline_ns = deadline_ns;
	usleep((useconds_t)g->delay_ms * 1000);
	if (g->answer == 0)
		g->frozen = 1;
	g->freezes++;
	g->inside--;
	return g->answer;
}

static int thaw(void *arg)
{
	struct guest *g = arg;

	g->thaws++;
	if (g->bad_thaws > 0) {
		g->bad_thaws--;
		return -EIO;
	}
	g->frozen = 0;
	return 0;
}

static const struct vmimg_guest_ops ops = {freeze, thaw};

static void begin(void)
{
	memset(guests, 0, sizeof(guests));
	make_vm("a", 1);
	make_vm("b", 1);
	make_collection("prod", "a", "b", NULL);
	expect_ok(vmimg_vm_set_guest(svc, "a", &ops, &guests[0], &err));
	expect_ok(vmimg_vm_set_guest(svc, "b", &ops, &guests[1], &err));
}

static uint32_t create_with(const char *settings)
{
	return vmimg_create_snapshot(svc, "prod", settings, VMIMG_SNAPSHOT_STANDARD, NULL, NULL,
				     &err);
}

static void expect_consistency(int expected)
{
	json_t *all = list(VMIMG_KIND_SNAPSHOT, NULL);

	cr_assert_eq(json_array_size(all), 1);
	cr_expect_eq(number(json_array_get(all, 0), "consistency"), expected);
	json_decref(all);
}

/* QU-23: at the same time, on threads that are not the caller's */
Test(api_callback, guests_are_frozen_together_and_thawed_once)
{
	uint64_t begun = now_ns();

	begin();
	guests[0].delay_ms = 400;
	guests[1].delay_ms = 400;
	expect_ok(create_with(APP));
	cr_expect_lt(now_ns() - begun, 750 * MS);
	for (unsigned i = 0; i < 2; i++) {
		cr_expect_eq(guests[i].freezes, 1);
		cr_expect_eq(guests[i].thaws, 1);
		cr_expect_eq(guests[i].frozen, 0);
		cr_expect_gt(guests[i].deadline_ns, begun + 9 * SECOND);
		cr_expect_lt(guests[i].deadline_ns, begun + 11 * SECOND);
		cr_expect_not(pthread_equal(guests[i].freezer, pthread_self()));
	}
	expect_consistency(1);
}

/* QU-1: callbacks go before an agent, and only as long as the service is open */
Test(api_callback, callbacks_go_before_the_agent)
{
	begin();
	expect_ok(vmimg_vm_set_guest_agent(svc, "a", "/nonexistent", &err));
	expect_ok(create_with(APP));
	expect_ok(vmimg_vm_set_guest(svc, "b", NULL, NULL, &err));
	cr_expect_eq(create_with(APP), VMIMG_NOT_SUPPORTED);
	fixture_reopen();
	cr_expect_eq(create_with(APP), VMIMG_NOT_SUPPORTED);
	cr_expect_eq(guests[0].freezes, 1);
}

/* QU-6, QU-11 */
Test(api_callback, one_that_cannot_freeze_costs_the_snapshot)
{
	begin();
	guests[1].answer = -ENOSPC;
	cr_expect_eq(create_with(APP), VMIMG_FAILED);
	cr_expect(strstr(err.message, "VM b"), "%s", err.message);
	cr_expect_eq(guests[0].frozen, 0);
	cr_expect_eq(guests[0].freezes, guests[0].thaws);
	cr_expect_eq(guests[1].thaws, 0, "QU-24: it was not frozen");
	cr_expect_eq(count_of(VMIMG_KIND_SNAPSHOT), 0);
	expect_ok(create_with("{\"ConsistencyLevel\": 1, \"Synchronous\": true, "
			      "\"FallbackToCrash\": true}"));
	expect_consistency(2);
	cr_expect_eq(guests[0].frozen, 0);
}

/* QU-9, QU-24: thaw comes from another thread at the bound, and once more when it returns */
Test(api_callback, a_late_freeze_is_thawed_at_the_bound_and_when_it_returns)
{
	uint64_t begun = now_ns();

	begin();
	guests[1].delay_ms = 2500;
	cr_expect_eq(create_with("{\"ConsistencyLevel\": 1, \"Synchronous\": true, "
				 "\"MaxStall\": 200}"),
		     VMIMG_TIMEOUT, "%s", err.message);
	cr_expect_eq(guests[0].frozen, 0);
	cr_expect_eq(guests[1].inside, 1, "it still runs");
	cr_expect_eq(guests[1].thaws, 1);
	expect_error(vmimg_vm_set_guest(svc, "b", NULL, NULL, &err), -EBUSY);
	expect_ok(vmimg_vm_set_guest(svc, "a", NULL, NULL, &err));
	fixture_close(); /* waits for it */
	cr_expect_geq(now_ns() - begun, 2500 * MS);
	cr_expect_eq(guests[1].freezes, 1);
	cr_expect_eq(guests[1].frozen, 0);
	cr_expect_eq(guests[1].thaws, 2);
	expect_ok(vmimg_open(store_dir, NULL, &err, &svc));
}

/* QU-24 */
Test(api_callback, a_thaw_that_fails_is_tried_again)
{
	begin();
	guests[0].bad_thaws = 3;
	expect_ok(create_with(APP));
	cr_expect_eq(guests[0].thaws, 4);
	cr_expect_eq(guests[0].frozen, 0);
	expect_consistency(1);
}

/* QU-10 */
Test(api_callback, a_cancel_thaws_who_is_frozen)
{
	struct vmimg_job *job = NULL;

	begin();
	guests[1].delay_ms = 600;
	cr_assert_eq(vmimg_create_snapshot(svc, "prod", "{\"ConsistencyLevel\": 1}",
					   VMIMG_SNAPSHOT_STANDARD, NULL, &job, &err),
		     VMIMG_JOB_STARTED);
	while (!guests[0].frozen)
		usleep(1000);
	cr_expect_eq(vmimg_job_request_state_change(job, VMIMG_REQUEST_KILL, 0, &err),
		     VMIMG_REQUEST_TRANSITION_STARTED);
	usleep(200000);
	cr_expect_eq(guests[0].frozen, 0);
	expect_state(job, VMIMG_JOB_KILLED);
	vmimg_job_put(job);
	fixture_reopen();
	cr_expect_eq(guests[1].frozen, 0);
	cr_expect_eq(guests[1].thaws, 1);
}

Test(api_callback, callbacks_come_in_pairs_and_of_vms_that_are_there)
{
	static const struct vmimg_guest_ops half = {.freeze = freeze};

	begin();
	expect_error(vmimg_vm_set_guest(svc, "none", &ops, NULL, &err), -ENOENT);
	expect_error(vmimg_vm_set_guest(svc, "a/b", &ops, NULL, &err), -EINVAL);
	expect_error(vmimg_vm_set_guest(svc, "a", &half, NULL, &err), -EINVAL);
	expect_ok(vmimg_vm_set_guest(svc, "a", NULL, NULL, &err));
	expect_ok(vmimg_vm_set_guest(svc, "a", NULL, NULL, &err));
}
