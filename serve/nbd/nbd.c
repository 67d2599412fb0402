/* SPDX-License-Identifier: MIT */
/*
 * nbd.c - the NBD server as a whole: its start, its lanes (one a worker, and the lobby's), its end. Start
 * and stop are the main thread's; it reaches into a lane by running a function there and waiting for it.
 */
#include <errno.h>
#include <semaphore.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "serve/nbd/nbd_conn.h"

#define SECOND_NS UINT64_C(1000000000)
#define NUDGE_NS  (SECOND_NS / 10)

/* --- calls into a lane --- */

struct call {
	struct srv_task task;
	struct nbd_lane *lane;
	int (*run)(struct nbd_lane *lane, int arg);
	int arg, result;
	sem_t done;
};

static void run_call(struct srv_worker *worker, struct srv_task *task)
{
	struct call *call = nbd_of(struct call, task, task);

	(void)worker;
	call->result = call->run(call->lane, call->arg);
	sem_post(&call->done);
}

static int lane_call(struct nbd_lane *lane, int (*run)(struct nbd_lane *lane, int arg), int arg)
{
	struct call call = {.task.run = run_call, .lane = lane, .run = run, .arg = arg};

	sem_init(&call.done, 0, 0);
	srv_worker_post(lane->worker, &call.task);
	while (sem_wait(&call.done) < 0)
		;
	sem_destroy(&call.done);
	return call.result;
}

/* The sum of what they return. */
static int lanes_call(struct srv_nbd *nbd, int (*run)(struct nbd_lane *lane, int arg), int arg)
{
	int sum = 0;

	for (unsigned i = 0; i < nbd->nlanes; i++)
		sum += lane_call(&nbd->lanes[i], run, arg);
	return sum;
}

/* --- lanes --- */

struct nbd_lane *nbd_lane_of(struct srv_nbd *nbd, const struct srv_worker *worker)
{
	unsigned i = 0;

	while (nbd->lanes[i].worker != worker)
		i++;
	return &nbd->lanes[i];
}

/* NB-11: who negotiates for too long. Breaking one frees it later, in its turn. */
static void check_deadlines(struct nbd_lane *lane)
{
	uint64_t now = srv_now_ns();

	for (struct nbd_conn *c = lane->conns; c; c = c->next)
		if (c->deadline_ns && now > c->deadline_ns && !c->broken)
			nbd_conn_fail(c, "it negotiates for too long");
}

static bool look_after(struct nbd_lane *lane)
{
	struct srv_nbd *nbd = lane->nbd;
	bool paused = false;

	if (lane != &nbd->lanes[0]) {
		nbd_buffers_trim(&lane->buffers); /* NB-43 */
		return lane->buffers.kept_bytes > 0;
	}
	check_deadlines(lane);
	for (unsigned i = 0; i < nbd->nlisteners; i++)
		paused |= nbd->listeners[i].paused;
	if (paused)
		nbd_listen_arm(nbd);
	return lane->conns || paused;
}

static void on_tick(struct srv_op *op, int32_t result, uint32_t flags)
{
	struct nbd_lane *lane = nbd_of(struct nbd_lane, tick_op, op);

	(void)flags;
	lane->ticking = false;
	if (result == -ETIME && look_after(lane))
		nbd_lane_tick(lane);
}

void nbd_lane_tick(struct nbd_lane *lane)
{
	struct io_uring_sqe *sqe;

	if (lane->ticking || atomic_load(&lane->nbd->phase) == NBD_CUT)
		return;
	sqe = srv_worker_sqe(lane->worker, &lane->tick_op);
	lane->tick_data = sqe->user_data;
	io_uring_prep_timeout(sqe, &lane->tick_time, 0, 0);
	lane->ticking = true;
}

static int lane_drain(struct nbd_lane *lane, int phase)
{
	struct nbd_conn *next;

	for (struct nbd_conn *c = lane->conns; c; c = next) {
		next = c->next;
		nbd_conn_drain(c, (enum nbd_phase)phase);
	}
	return 0;
}

static void on_nothing(struct srv_op *op, int32_t result, uint32_t flags)
{
	(void)op;
	(void)result;
	(void)flags;
}

static int lane_end(struct nbd_lane *lane, int unused)
{
	static struct srv_op nothing = {.done = on_nothing};

	(void)unused;
	nbd_buffers_fini(&lane->buffers);
	while (lane->spare) {
		struct nbd_req *req = lane->spare;

		lane->spare = req->next;
		free(req);
	}
	if (lane->ticking)
		io_uring_prep_timeout_remove(srv_worker_sqe(lane->worker, &nothing),
					     lane->tick_data, 0);
	return 0;
}

/* How many operations are still in its ring. */
static int lane_busy(struct nbd_lane *lane, int unused)
{
	int busy = lane->ticking;

	(void)unused;
	for (unsigned i = 0; i < lane->nbd->nlisteners && lane == lane->nbd->lanes; i++)
		busy += lane->nbd->listeners[i].armed;
	return busy;
}

static int lobby_unlisten(struct nbd_lane *lane, int unused)
{
	(void)unused;
	nbd_listen_cancel(lane->nbd);
	return 0;
}

static int lobby_listen(struct nbd_lane *lane, int unused)
{
	(void)unused;
	nbd_listen_arm(lane->nbd);
	return 0;
}

/* --- start and stop --- */

static void wait_ended(struct srv_nbd *nbd, uint64_t ns)
{
	struct timespec until;

	clock_gettime(CLOCK_MONOTONIC, &until);
	ns += (uint64_t)until.tv_nsec;
	until.tv_sec += (time_t)(ns / SECOND_NS);
	until.tv_nsec = (long)(ns % SECOND_NS);
	pthread_mutex_lock(&nbd->lock);
	if (atomic_load(&nbd->live))
		pthread_cond_timedwait(&nbd->ended, &nbd->lock, &until);
	pthread_mutex_unlock(&nbd->lock);
}

/* NB-50, NB-51 */
static void end_connections(struct srv_nbd *nbd)
{
	uint64_t end = srv_now_ns() + nbd->server->options.drain_timeout_s * SECOND_NS;
	enum nbd_phase phase = NBD_DRAINING;

	while (atomic_load(&nbd->live)) {
		if (phase == NBD_DRAINING && srv_now_ns() >= end) {
			srv_log(SRV_WARNING, NULL, "NBD: %u connections are cut off",
				atomic_load(&nbd->live));
			phase = NBD_CUT;
		}
		atomic_store(&nbd->phase, phase);
		lanes_call(nbd, lane_drain, phase);
		wait_ended(nbd, NUDGE_NS);
	}
	atomic_store(&nbd->phase, NBD_CUT);
}

static void nbd_free(struct srv_nbd *nbd)
{
	nbd_listen_close(nbd);
	pthread_cond_destroy(&nbd->ended);
	pthread_mutex_destroy(&nbd->lock);
	free(nbd);
}

void srv_nbd_stop(struct srv_nbd *nbd)
{
	if (!nbd)
		return;
	atomic_store(&nbd->phase, NBD_DRAINING);
	lane_call(&nbd->lanes[0], lobby_unlisten, 0);
	end_connections(nbd);
	lanes_call(nbd, lane_end, 0);
	while (lanes_call(nbd, lane_busy, 0))
		usleep(1000);
	nbd_free(nbd);
}

static struct srv_nbd *nbd_make(struct srv_server *server)
{
	unsigned nlanes = server->nworkers + 1;
	struct srv_nbd *nbd = calloc(1, sizeof(*nbd) + nlanes * sizeof(nbd->lanes[0]));
	pthread_condattr_t attr;

	if (!nbd)
		return NULL;
	nbd->server = server;
	nbd->nlanes = nlanes;
	pthread_mutex_init(&nbd->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&nbd->ended, &attr);
	pthread_condattr_destroy(&attr);
	for (unsigned i = 0; i < nlanes; i++) {
		struct nbd_lane *lane = &nbd->lanes[i];

		lane->nbd = nbd;
		lane->worker = i ? server->workers[i - 1] : server->lobby;
		lane->tick_op.done = on_tick;
		lane->tick_time.tv_sec = 1;
	}
	return nbd;
}

int srv_nbd_start(struct srv_server *server, struct vmimg_error *err, struct srv_nbd **ret)
{
	struct srv_nbd *nbd = nbd_make(server);
	int r;

	if (!nbd)
		return srv_fail(err, -ENOMEM, "NBD: out of memory");
	r = nbd_listen(nbd, err);
	if (r < 0) {
		nbd_free(nbd);
		return r;
	}
	lane_call(&nbd->lanes[0], lobby_listen, 0);
	*ret = nbd;
	return 0;
}
