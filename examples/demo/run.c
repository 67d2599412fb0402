/* SPDX-License-Identifier: MIT */
/*
 * run.c - the load and the snapshot in its middle. One thread a disk has a queue with that disk attached
 * and keeps random writes and now and then a flush in flight. One thread a chain has a queue of its own
 * and writes from disk to disk, each write only after the one before it was acknowledged; these reach
 * the disks by forwarding. The main thread starts the job, waits on its fd, and watches the seal.
 *
 * Bounds (demo_bounds): a thread reads the phase when it issues a write and when it has seen its
 * completion. BEFORE at the completion: acknowledged before the call. AFTER at the issue: issued
 * after the job was seen to be done. A block has one write in flight at most, so its numbers only rise.
 */
#include "api/vmimg.h"
#include "examples/demo/demo.h"
#include "examples/demo/report.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>

#define DEPTH       4u  /* requests of one disk's load in flight */
#define FLUSH_EVERY 64u /* one request in so many is a flush */
#define FUA_EVERY   16u /* one write of a chain in so many is durable when acknowledged */
#define WARM_UP_NS  500000000u
#define SLICE_NS    20000000u
#define SEAL_NS     UINT64_C(30000000000) /* the load goes on at most so long for the seal */

enum phase { WARM_UP, BEFORE, DURING, AFTER }; /* only ever the next one */

/* A request in flight, or a place for one. */
struct op {
	void *buf;
	struct iovec iov;
	uint64_t start_ns, number;
	uint32_t block;
	uint8_t op, phase; /* enum vmimg_op; the phase at the issue */
	bool busy;
};

struct run {
	struct vmimg_service *svc;
	struct demo_plan plan;
	struct demo_state state; /* each block and chain is its thread's */
	struct vmimg_disk *disks[DEMO_DISKS_MAX];
	pthread_barrier_t attached;
	atomic_int phase;
	atomic_bool stop;   /* no new requests */
	atomic_bool detach; /* the chains are done too */
	atomic_bool failed;
	uint64_t phase_ns[AFTER + 2]; /* when each began, and the end */
};

/* A disk's thread, or a chain's. */
struct worker {
	struct run *run;
	pthread_t thread;
	unsigned index; /* of the disk, or the chain */
	struct vmimg_queue *queue;
	struct op ops[DEPTH];
	unsigned inflight;
	uint64_t issued, seed;
	bool *busy; /* blocks with a write in flight */
	struct samples samples[REPORT_KINDS][REPORT_WINDOWS];
};

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* The first failure is printed; it ends the run. */
__attribute__((format(printf, 2, 3))) static void fail(struct run *run, const char *format, ...)
{
	va_list args;

	if (!atomic_exchange(&run->failed, true)) {
		fputs("load: ", stderr);
		va_start(args, format);
		vfprintf(stderr, format, args);
		va_end(args);
		fputc('\n', stderr);
	}
	atomic_store(&run->stop, true);
}

/* --- what both kinds of threads do --- */

static int worker_open(struct worker *w, unsigned depth)
{
	struct vmimg_error err = {0};
	int r = vmimg_queue_create(w->run->svc, depth, &err, &w->queue);

	if (r < 0) {
		fail(w->run, "queue: %s", err.message);
		return r;
	}
	for (unsigned i = 0; i < depth; i++) {
		if (posix_memalign(&w->ops[i].buf, DEMO_BLOCK, DEMO_BLOCK) != 0) {
			fail(w->run, "out of memory");
			return -ENOMEM;
		}
		w->ops[i].iov = (struct iovec){w->ops[i].buf, DEMO_BLOCK};
	}
	return 0;
}

static void worker_close(struct worker *w)
{
	int r = vmimg_queue_destroy(w->queue);

	if (r < 0)
		fail(w->run, "queue: %s", strerror(-r));
	for (unsigned i = 0; i < DEPTH; i++)
		free(w->ops[i].buf);
	free(w->busy);
	w->busy = NULL;
}

static int submit(struct worker *w, struct op *op, unsigned disk, uint8_t flags)
{
	bool write = op->op == VMIMG_WRITE;
	const struct vmimg_request request = {
		.disk = w->run->disks[disk],
		.op = op->op,
		.flags = flags,
		.iovcnt = write,
		.iov = write ? &op->iov : NULL,
		.offset = write ? w->run->plan.disks[disk].offsets[op->block] : 0,
		.length = write ? DEMO_BLOCK : 0,
		.user_data = (uint64_t)(op - w->ops) << 1,
	};
	int r;

	op->start_ns = now_ns();
	op->busy = true;
	r = vmimg_queue_submit(w->queue, &request, 1);
	if (r == 1) {
		w->inflight++;
		w->issued++;
		return 0;
	}
	op->busy = false;
	fail(w->run, "%s: submit: %s", w->run->plan.disks[disk].name, strerror(-r));
	return -1;
}

/* Issuing in @phase, the write @number: it may be in the snapshot unless that was seen done. */
static void note_issue(struct demo_bounds *bounds, int phase, uint64_t number)
{
	if (phase < AFTER)
		bounds->high = number;
}

static void note_done(struct demo_bounds *bounds, int phase, uint64_t number)
{
	if (phase <= BEFORE)
		bounds->low = number;
	bounds->last = number;
}

/* A request that overlaps the job belongs to DURING. */
static void note_latency(struct worker *w, enum report_kind kind, const struct op *op, int phase)
{
	enum report_window window = REPORT_DURING;

	if (op->phase == WARM_UP)
		return;
	if (phase == BEFORE)
		window = REPORT_BEFORE;
	else if (op->phase == AFTER)
		window = REPORT_AFTER;
	if (samples_add(&w->samples[kind][window], now_ns() - op->start_ns) < 0)
		fail(w->run, "out of memory");
}

/* --- a disk's load --- */

static uint32_t next_random(struct worker *w)
{
	w->seed = w->seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
	return (uint32_t)(w->seed >> 32);
}

static int load_issue(struct worker *w, struct op *op)
{
	const struct demo_disk *disk = &w->run->plan.disks[w->index];
	struct demo_bounds *bounds;

	op->phase = (uint8_t)atomic_load(&w->run->phase);
	op->op = w->issued % FLUSH_EVERY == FLUSH_EVERY - 1 ? VMIMG_FLUSH : VMIMG_WRITE;
	if (op->op == VMIMG_FLUSH)
		return submit(w, op, w->index, 0);
	do
		op->block = DEMO_CHAIN_BLOCKS + next_random(w) % (disk->count - DEMO_CHAIN_BLOCKS);
	while (w->busy[op->block]);
	bounds = &w->run->state.blocks[w->index][op->block];
	op->number = bounds->last + 1;
	demo_block_fill(op->buf, disk->name, op->block, op->number);
	note_issue(bounds, op->phase, op->number);
	w->busy[op->block] = true;
	return submit(w, op, w->index, 0);
}

static void load_done(struct worker *w, const struct vmimg_completion *done)
{
	struct op *op = &w->ops[done->user_data >> 1];
	int phase = atomic_load(&w->run->phase);

	op->busy = false;
	w->inflight--;
	if (done->result < 0)
		fail(w->run, "%s: %s: %s", w->run->plan.disks[w->index].name,
		     op->op == VMIMG_FLUSH ? "flush" : "write", strerror(-done->result));
	if (op->op == VMIMG_WRITE) {
		w->busy[op->block] = false;
		if (done->result == 0)
			note_done(&w->run->state.blocks[w->index][op->block], phase, op->number);
	}
	note_latency(w, op->op == VMIMG_FLUSH ? REPORT_FLUSH : REPORT_WRITE, op, phase);
}

/* Until told to detach: after the end of the own load the chains' writes still come through here. */
static void load_loop(struct worker *w)
{
	struct vmimg_completion done[DEPTH];

	while (!atomic_load(&w->run->detach) || w->inflight) {
		int n;

		for (unsigned i = 0; i < DEPTH; i++)
			if (!w->ops[i].busy && !atomic_load(&w->run->stop))
				load_issue(w, &w->ops[i]);
		n = vmimg_queue_poll(w->queue, done, DEPTH, SLICE_NS);
		for (int i = 0; i < n; i++)
			load_done(w, &done[i]);
		if (n < 0) {
			fail(w->run, "poll: %s", strerror(-n));
			exit(1); /* what is in flight can no longer be waited for */
		}
	}
}

static void *load_thread(void *arg)
{
	struct worker *w = arg;
	struct run *run = w->run;
	const struct demo_disk *disk = &run->plan.disks[w->index];
	struct vmimg_error err = {0};
	int r = worker_open(w, DEPTH);

	w->busy = calloc(disk->count, sizeof(*w->busy));
	if (r == 0 && !w->busy)
		fail(run, "out of memory");
	if (r == 0) {
		r = vmimg_disk_attach(w->queue, disk->name, 0, &err, &run->disks[w->index]);
		if (r < 0)
			fail(run, "%s: %s", disk->name, err.message);
	}
	pthread_barrier_wait(&run->attached);
	if (r == 0 && w->busy)
		load_loop(w);
	if (r == 0) {
		r = vmimg_disk_detach(run->disks[w->index]);
		if (r < 0)
			fail(run, "%s: detach: %s", disk->name, strerror(-r));
	}
	worker_close(w);
	return NULL;
}

/* --- a chain --- */

static int chain_step(struct worker *w, uint64_t number)
{
	struct run *run = w->run;
	struct demo_place place = demo_chain_place(&run->plan, w->index, number);
	struct demo_bounds *bounds = &run->state.chains[w->index];
	const char *name = run->plan.disks[place.disk].name;
	struct op *op = &w->ops[0];
	struct vmimg_completion done;
	int phase, n;

	op->op = VMIMG_WRITE;
	op->phase = (uint8_t)atomic_load(&run->phase);
	op->block = place.block;
	demo_block_fill(op->buf, name, place.block, number);
	note_issue(bounds, op->phase, number);
	if (submit(w, op, place.disk, number % FUA_EVERY ? 0 : VMIMG_FUA) < 0)
		return -1;
	do
		n = vmimg_queue_poll(w->queue, &done, 1, SLICE_NS);
	while (n == 0);
	if (n < 0 || done.result < 0) {
		fail(run, "%s: dependent write: %s", name, strerror(n < 0 ? -n : -done.result));
		return -1;
	}
	op->busy = false;
	w->inflight--;
	phase = atomic_load(&run->phase);
	note_done(bounds, phase, number);
	note_latency(w, REPORT_DEPENDENT, op, phase);
	return 0;
}

static void *chain_thread(void *arg)
{
	struct worker *w = arg;

	if (worker_open(w, 1) == 0)
		for (uint64_t n = 1; !atomic_load(&w->run->stop); n++)
			if (chain_step(w, n) < 0)
				break;
	worker_close(w);
	return NULL;
}

/* --- the main thread --- */

static void enter(struct run *run, enum phase phase)
{
	run->phase_ns[phase] = now_ns();
	atomic_store(&run->phase, phase);
}

/* Sleeps until the time, or a failure. */
static void sleep_until(struct run *run, uint64_t end_ns)
{
	const struct timespec slice = {.tv_nsec = SLICE_NS};

	while (!atomic_load(&run->failed) && now_ns() < end_ns)
		nanosleep(&slice, NULL);
}

/* Starts the job and waits for its end on its fd; *@call_ns: how long the starting took. */
static void take_snapshot(struct run *run, const char *snapshot, uint64_t *call_ns)
{
	char collection[VMIMG_NAME_MAX + 1];
	struct vmimg_error err = {0};
	struct vmimg_ref result = {0};
	struct vmimg_job *job = NULL;
	struct vmimg_job_info info;
	struct pollfd wait = {.events = POLLIN};
	uint32_t code;

	snprintf(collection, sizeof(collection), "%.*s", (int)strcspn(snapshot, "@"), snapshot);
	snprintf(result.name, sizeof(result.name), "%s", snapshot);
	enter(run, DURING);
	code = vmimg_create_snapshot(run->svc, collection, NULL, VMIMG_SNAPSHOT_STANDARD, &result,
				     &job, &err);
	*call_ns = now_ns() - run->phase_ns[DURING];
	if (code != VMIMG_JOB_STARTED) {
		fail(run, "CreateSnapshot returned %" PRIu32 ": %s", code, err.message);
		return;
	}
	wait.fd = vmimg_job_fd(job);
	if (wait.fd < 0)
		fail(run, "job fd: %s", strerror(-wait.fd));
	while (wait.fd >= 0 && poll(&wait, 1, -1) < 0 && errno == EINTR)
		continue;
	vmimg_job_info(job, &info);
	enter(run, AFTER);
	if (info.job_state != VMIMG_JOB_COMPLETED)
		fail(run, "the job ended in state %u, error %u: %s", info.job_state,
		     info.error_code, info.error_description);
	vmimg_job_put(job);
}

static json_t *describe(struct run *run, const char *snapshot)
{
	struct vmimg_error err = {0};
	json_t *document = NULL;
	char *text = NULL;

	if (vmimg_describe(run->svc, VMIMG_KIND_SNAPSHOT, snapshot, &err, &text) < 0) {
		fail(run, "%s: %s", snapshot, err.message);
		return NULL;
	}
	document = json_loads(text, 0, NULL);
	vmimg_free(text);
	if (!document)
		fail(run, "%s: the library's description is no JSON", snapshot);
	return document;
}

/* Follows the seal until all layers are sealed, or the time is over; prints when each one was. */
static void watch_seal(struct run *run, const char *snapshot, uint64_t end_ns)
{
	uint64_t after_ns[DEMO_DISKS_MAX] = {0};
	unsigned sealed = 0, total = 1;
	char buf[REPORT_TEXT_MAX];

	while (sealed < total && now_ns() < end_ns && !atomic_load(&run->failed)) {
		json_t *document = describe(run, snapshot);
		unsigned now = report_sealed(document, &total);

		json_decref(document);
		while (sealed < now && sealed < run->plan.count)
			after_ns[sealed++] = now_ns() - run->phase_ns[AFTER];
		sleep_until(run, now_ns() + SLICE_NS);
	}
	if (sealed < total) {
		fail(run, "%s: only %u of %u layers are sealed", snapshot, sealed, total);
		return;
	}
	printf("%-10s %10s   in the background, under load, layer by layer after", "seal",
	       report_duration(buf, after_ns[sealed - 1]));
	for (unsigned i = 0; i < sealed; i++)
		printf(" %" PRIu64, (after_ns[i] + 500000) / 1000000);
	puts(" ms");
}

/* The load runs before this and until its end. */
static void measure(struct run *run, const char *snapshot, unsigned seconds)
{
	uint64_t length_ns = (uint64_t)seconds * 1000000000u, call_ns = 0;
	json_t *document;

	sleep_until(run, now_ns() + WARM_UP_NS);
	enter(run, BEFORE);
	sleep_until(run, now_ns() + length_ns);
	if (atomic_load(&run->failed))
		return;
	take_snapshot(run, snapshot, &call_ns);
	if (atomic_load(&run->failed))
		return;
	document = describe(run, snapshot);
	if (document)
		report_snapshot(document, call_ns);
	json_decref(document);
	watch_seal(run, snapshot, run->phase_ns[AFTER] + SEAL_NS);
	sleep_until(run, run->phase_ns[AFTER] + length_ns);
}

static void print_latency(struct run *run, struct worker *workers, unsigned count)
{
	struct samples all[REPORT_KINDS][REPORT_WINDOWS] = {0};
	uint64_t lengths[REPORT_WINDOWS];

	for (int w = 0; w < REPORT_WINDOWS; w++)
		lengths[w] = run->phase_ns[BEFORE + w + 1] - run->phase_ns[BEFORE + w];
	for (unsigned i = 0; i < count * REPORT_KINDS * REPORT_WINDOWS; i++) {
		unsigned k = i / REPORT_WINDOWS % REPORT_KINDS, w = i % REPORT_WINDOWS;
		struct worker *worker = &workers[i / (REPORT_KINDS * REPORT_WINDOWS)];

		if (samples_append(&all[k][w], &worker->samples[k][w]) < 0)
			fail(run, "out of memory");
		samples_fini(&worker->samples[k][w]);
	}
	putchar('\n');
	report_latency(all, lengths);
	for (unsigned i = 0; i < REPORT_KINDS * REPORT_WINDOWS; i++)
		samples_fini(&all[i / REPORT_WINDOWS][i % REPORT_WINDOWS]);
}

/* Starts the threads, measures, and ends them: the chains first, then the disks. */
static void run_load(struct run *run, const char *snapshot, unsigned seconds)
{
	struct worker workers[DEMO_DISKS_MAX + DEMO_CHAINS] = {0};
	unsigned disks = run->plan.count, count = disks + DEMO_CHAINS;

	pthread_barrier_init(&run->attached, NULL, disks + 1);
	for (unsigned i = 0; i < count; i++) {
		workers[i].run = run;
		workers[i].index = i < disks ? i : i - disks;
		workers[i].seed = i + 1;
		if (i == disks)
			pthread_barrier_wait(&run->attached);
		if (pthread_create(&workers[i].thread, NULL, i < disks ? load_thread : chain_thread,
				   &workers[i]) != 0) {
			fputs("load: cannot create a thread\n", stderr);
			exit(1);
		}
	}
	measure(run, snapshot, seconds);
	atomic_store(&run->stop, true);
	run->phase_ns[AFTER + 1] = now_ns();
	for (unsigned i = disks; i < count; i++)
		pthread_join(workers[i].thread, NULL);
	atomic_store(&run->detach, true);
	for (unsigned i = 0; i < disks; i++)
		pthread_join(workers[i].thread, NULL);
	pthread_barrier_destroy(&run->attached);
	print_latency(run, workers, count);
}

int demo_run(const char *store, const char *snapshot, const char *plan_path, const char *state_path,
	     unsigned seconds)
{
	struct run run = {0};
	struct vmimg_error err = {0};
	int r;

	if (demo_plan_read(plan_path, &run.plan) < 0)
		return -1;
	if (demo_state_init(&run.plan, &run.state) < 0)
		goto out;
	r = vmimg_open(store, NULL, &err, &run.svc);
	if (r < 0) {
		fail(&run, "%s: %s", store, err.message);
		goto out;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	run_load(&run, snapshot, seconds);
	r = vmimg_close(run.svc);
	if (r < 0)
		fail(&run, "%s: close: %s", store, strerror(-r));
	if (!atomic_load(&run.failed) && demo_state_write(state_path, &run.plan, &run.state) < 0)
		atomic_store(&run.failed, true);
out:
	demo_state_fini(&run.plan, &run.state);
	demo_plan_fini(&run.plan);
	return atomic_load(&run.failed) ? -1 : 0;
}
