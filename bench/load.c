/* SPDX-License-Identifier: MIT */
/*
 * load.c - the load loop. Every job is a thread with a backend of its own and a region of its target:
 * the jobs of one target divide its blocks, so no block is in two hands. Job 0 of a disk attaches it;
 * requests of the others are forwarded to its thread, which therefore keeps polling until they are done.
 *
 * A run passes three gates, where the jobs wait for each other and the caller's thread measures: opened,
 * planned, loaded. In the loop one clock reading serves as the end of the requests reaped and the start
 * of those sent next.
 */
#include "bench/load.h"
#include "bench/backend.h"
#include "bench/histogram.h"
#include "bench/pattern.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/uio.h>
#include <time.h>

#define BUFFER_ALIGN 4096u
#define BS_MAX       (UINT64_C(32) << 20)
#define SERVE_NS     5000000u
#define BUSY         (UINT32_C(1) << 31) /* of a block's state: a request is in flight */

enum phase {
	PHASE_LOAD,
	PHASE_READ_BACK,
	PHASES,
};

struct target {
	const char *name;
	const char *file; /* of a raw target, else NULL */
	bool nbd;
	struct vmimg_disk *disk; /* job 0's; set before the first gate */
	uint64_t size;
	atomic_uint others[PHASES]; /* jobs but the first that are still in the phase */
};

struct gate {
	pthread_mutex_t lock;
	pthread_cond_t changed;
	unsigned arrived, opened;
};

struct run {
	struct load_options o; /* defaults filled in */
	struct vmimg_service *svc;
	struct target *targets;
	struct gate gate;
	atomic_bool failed; /* a job could not start: none loads */
	uint64_t id;        /* in the stamps of this run */
};

struct slot {
	uint64_t start_ns;
	uint64_t block; /* of the region */
	uint32_t generation;
	uint8_t op;
	struct iovec iov;
};

struct job {
	struct run *run;
	struct target *target;
	unsigned number, index; /* of all jobs, of the target's */
	pthread_t thread;
	struct backend backend;
	bool open;
	enum phase phase;

	struct pattern pattern;
	uint64_t first;     /* block of the target at which the region begins */
	uint32_t *states;   /* a block's generation, 0: not written; with verify only */
	uint64_t read_back; /* next block to be read back */

	struct slot *slots;
	char *buffers;
	unsigned *free_slots;
	unsigned free_count, queued, in_flight;
	struct vmimg_request *batch;
	struct vmimg_completion *done;

	uint64_t start_ns, loaded_ns, deadline_ns;
	uint64_t issued, since_flush;
	bool flush_due;
	uint64_t reads, writes, flushes, errors, verified;
	struct histogram io_ns, flush_ns;
	int result; /* why it could not start, or the first error */
	struct vmimg_error err;
};

uint64_t load_now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

/* --- gates --- */

static void gate_pass(struct gate *g)
{
	unsigned opened;

	pthread_mutex_lock(&g->lock);
	opened = g->opened;
	g->arrived++;
	pthread_cond_broadcast(&g->changed);
	while (g->opened == opened)
		pthread_cond_wait(&g->changed, &g->lock);
	pthread_mutex_unlock(&g->lock);
}

static void gate_await(struct gate *g, unsigned jobs)
{
	pthread_mutex_lock(&g->lock);
	while (g->arrived < jobs)
		pthread_cond_wait(&g->changed, &g->lock);
	pthread_mutex_unlock(&g->lock);
}

static void gate_open(struct gate *g)
{
	pthread_mutex_lock(&g->lock);
	g->arrived = 0;
	g->opened++;
	pthread_cond_broadcast(&g->changed);
	pthread_mutex_unlock(&g->lock);
}

/* --- setting up a job --- */

static bool only_reads(const struct load_options *o)
{
	return o->rw == LOAD_READ || o->rw == LOAD_RANDREAD;
}

static bool is_random(const struct load_options *o)
{
	return o->rw != LOAD_READ && o->rw != LOAD_WRITE;
}

static int job_allocate(struct job *j)
{
	const struct load_options *o = &j->run->o;
	struct pattern noise = {.random = o->seed + j->number};

	j->slots = calloc(o->iodepth, sizeof(*j->slots));
	j->free_slots = calloc(o->iodepth, sizeof(*j->free_slots));
	j->batch = calloc(o->iodepth, sizeof(*j->batch));
	j->done = calloc(o->iodepth, sizeof(*j->done));
	if (posix_memalign((void **)&j->buffers, BUFFER_ALIGN, o->iodepth * o->bs))
		j->buffers = NULL;
	if (!j->slots || !j->free_slots || !j->batch || !j->done || !j->buffers)
		return load_error(&j->err, -ENOMEM, "%s", j->target->name);
	for (uint64_t i = 0; i < o->iodepth * o->bs; i += 8) {
		uint64_t word = pattern_random(&noise);

		memcpy(j->buffers + i, &word, 8);
	}
	for (unsigned i = 0; i < o->iodepth; i++) {
		j->slots[i].iov = (struct iovec){j->buffers + i * o->bs, o->bs};
		j->free_slots[i] = o->iodepth - 1 - i;
	}
	j->free_count = o->iodepth;
	return 0;
}

static int job_open(struct job *j)
{
	const struct load_options *o = &j->run->o;
	struct target *t = j->target;
	bool read_only = only_reads(o) && (t->file || strchr(t->name, '@'));
	int r = job_allocate(j);

	if (r < 0)
		return r;
	if (t->nbd)
		r = backend_open_nbd(&j->backend, t->name, o->iodepth, !only_reads(o), &j->err);
	else if (t->file)
		r = backend_open_file(&j->backend, t->file, o->iodepth, read_only, o->buffered,
				      &j->err);
	else if (!j->index)
		r = backend_open_disk(&j->backend, j->run->svc, t->name, o->iodepth, read_only,
				      &j->err);
	else
		r = backend_open_queue(&j->backend, j->run->svc, o->iodepth, &j->err);
	if (r < 0)
		return r;
	j->open = true;
	if (!j->index) {
		t->disk = j->backend.disk;
		t->size = j->backend.size;
	}
	return 0;
}

/* The job's share of its target, known once every job 0 has opened it. */
static int job_plan(struct job *j)
{
	const struct load_options *o = &j->run->o;
	uint64_t blocks = j->target->size / o->bs;
	uint64_t first = (uint64_t)((unsigned __int128)blocks * j->index / o->numjobs);
	uint64_t end = (uint64_t)((unsigned __int128)blocks * (j->index + 1) / o->numjobs);

	if (first == end || (o->verify && end - first <= o->iodepth))
		return load_error(&j->err, -EINVAL, "%s: too small for such a load (%llu bytes)",
				  j->target->name, (unsigned long long)j->target->size);
	if (o->verify) {
		j->states = calloc(end - first, sizeof(*j->states));
		if (!j->states)
			return load_error(&j->err, -ENOMEM, "%s: verify", j->target->name);
	}
	j->first = first;
	j->backend.disk = j->target->disk;
	pattern_init(&j->pattern, end - first, is_random(o), o->norandommap,
		     o->seed + (uint64_t)j->number * 0x1000003);
	return 0;
}

static void job_close(struct job *j)
{
	int r = 0;

	/* What is in flight keeps its buffers, and the queue its thread's memory: leak rather than that. */
	if (j->in_flight)
		return;
	if (j->open)
		r = j->backend.ops->close(&j->backend);
	if (r < 0 && !j->result) {
		j->result = load_error(&j->err, r, "%s: closing", j->target->name);
		j->errors++;
	}
	free(j->slots);
	free(j->free_slots);
	free(j->batch);
	free(j->done);
	free(j->buffers);
	free(j->states);
}

/* --- the loop --- */

static bool wants_more(const struct job *j, uint64_t now)
{
	const struct load_options *o = &j->run->o;

	if (o->stop && atomic_load_explicit(o->stop, memory_order_relaxed))
		return false;
	if (j->phase == PHASE_READ_BACK)
		return j->read_back < j->pattern.blocks;
	if (j->result || (o->number_ios && j->issued >= o->number_ios))
		return false;
	if (j->deadline_ns)
		return now < j->deadline_ns;
	return o->number_ios || j->issued < j->pattern.blocks;
}

static uint8_t choose_op(struct job *j)
{
	switch (j->run->o.rw) {
	case LOAD_READ:
	case LOAD_RANDREAD: return VMIMG_READ;
	case LOAD_RANDRW: return pattern_random(&j->pattern) & 1 ? VMIMG_WRITE : VMIMG_READ;
	default: return VMIMG_WRITE;
	}
}

/* The next block of the load; with verify one that nothing is in flight on. */
static uint64_t choose_block(struct job *j)
{
	uint64_t block = pattern_next(&j->pattern);

	while (j->states && j->states[block] & BUSY)
		block = block + 1 < j->pattern.blocks ? block + 1 : 0;
	return block;
}

/* Sends a request on a free slot. */
static void queue_request(struct job *j, uint8_t op, uint64_t block, uint64_t now)
{
	const struct load_options *o = &j->run->o;
	unsigned number = j->free_slots[--j->free_count];
	struct slot *slot = &j->slots[number];
	struct vmimg_request *q = &j->batch[j->queued++];

	slot->start_ns = now;
	slot->op = op;
	slot->block = block;
	*q = (struct vmimg_request){.disk = j->backend.disk, .op = op, .user_data = number};
	if (op == VMIMG_FLUSH)
		return;
	q->iov = &slot->iov;
	q->iovcnt = 1;
	q->offset = (j->first + block) * o->bs;
	q->length = o->bs;
	if (!j->states)
		return;
	slot->generation = (j->states[block] + (op == VMIMG_WRITE)) & ~BUSY;
	j->states[block] |= BUSY;
	if (op == VMIMG_WRITE)
		stamp_write(slot->iov.iov_base, o->bs, j->run->id, q->offset, slot->generation);
}

static void fill(struct job *j, uint64_t now)
{
	while (j->free_count) {
		uint8_t op;

		if (j->flush_due) {
			queue_request(j, VMIMG_FLUSH, 0, now);
			j->flush_due = false;
			continue;
		}
		if (!wants_more(j, now))
			return;
		if (j->phase == PHASE_READ_BACK) {
			uint64_t block = j->read_back++;

			if (j->states[block])
				queue_request(j, VMIMG_READ, block, now);
			continue;
		}
		op = choose_op(j);
		queue_request(j, op, choose_block(j), now);
		j->issued++;
		if (op == VMIMG_WRITE && j->run->o.fsync && ++j->since_flush == j->run->o.fsync) {
			j->since_flush = 0;
			j->flush_due = true;
		}
	}
}

static void fail_request(struct job *j, const struct slot *slot, int code)
{
	static const char *const names[] = {"read", "write", "flush"};
	uint64_t offset = (j->first + slot->block) * j->run->o.bs;

	j->errors++;
	if (!j->result)
		j->result = load_error(&j->err, code, "%s: %s at %llu", j->target->name,
				       names[slot->op],
				       (unsigned long long)(slot->op == VMIMG_FLUSH ? 0 : offset));
}

/* Whether what was read is what was written; blocks that this run did not write are another's. */
static void check_read(struct job *j, const struct slot *slot)
{
	uint64_t bs = j->run->o.bs;
	uint64_t run = slot->generation ? j->run->id : 0;

	if (!run && !only_reads(&j->run->o))
		return;
	if (stamp_check(slot->iov.iov_base, bs, run, (j->first + slot->block) * bs,
			slot->generation))
		j->verified++;
	else
		fail_request(j, slot, -EBADMSG);
}

static void reap(struct job *j, const struct vmimg_completion *done, uint64_t now)
{
	const struct load_options *o = &j->run->o;
	unsigned number = (unsigned)done->user_data;
	struct slot *slot = &j->slots[number];

	j->in_flight--;
	j->free_slots[j->free_count++] = number;
	if (j->states && slot->op != VMIMG_FLUSH)
		j->states[slot->block] = slot->generation;
	if (done->result < 0) {
		fail_request(j, slot, done->result);
		return;
	}
	if (slot->op == VMIMG_FLUSH) {
		j->flushes++;
		histogram_add(&j->flush_ns, now - slot->start_ns);
		return;
	}
	if (slot->op == VMIMG_READ && o->verify)
		check_read(j, slot);
	if (j->phase == PHASE_READ_BACK)
		return;
	j->reads += slot->op == VMIMG_READ;
	j->writes += slot->op == VMIMG_WRITE;
	histogram_add(&j->io_ns, now - slot->start_ns);
	if (o->trace)
		o->trace(o->trace_arg, j->number, slot->op, slot->start_ns, now);
}

static int submit(struct job *j)
{
	int n = j->backend.ops->submit(&j->backend, j->batch, j->queued);

	if (n == -EAGAIN && j->in_flight)
		return 0;
	if (n < 0)
		return n;
	j->in_flight += (unsigned)n;
	j->queued -= (unsigned)n;
	if (j->queued)
		memmove(j->batch, j->batch + n, j->queued * sizeof(*j->batch));
	return 0;
}

static void loop(struct job *j)
{
	uint64_t now = load_now_ns();
	int n = 0;

	for (;;) {
		fill(j, now);
		if (j->queued)
			n = submit(j);
		if (n < 0 || !(j->in_flight || j->queued))
			break;
		n = j->backend.ops->poll(&j->backend, j->done, j->run->o.iodepth, UINT64_MAX);
		if (n < 0)
			break;
		now = load_now_ns();
		for (int i = 0; i < n; i++)
			reap(j, &j->done[i], now);
		n = 0;
	}
	if (n < 0) {
		j->result = load_error(&j->err, n, "%s: the queue", j->target->name);
		j->errors++;
	}
	if (j->phase == PHASE_LOAD)
		j->loaded_ns = now;
}

/* One phase of a job; the disk's own thread goes on for those that forward to it. */
static void run_phase(struct job *j, enum phase phase)
{
	struct target *t = j->target;

	j->phase = phase;
	if (atomic_load(&j->run->failed)) /* decided before the second gate */
		return;
	if (phase == PHASE_LOAD || !j->result)
		loop(j);
	if (j->index)
		atomic_fetch_sub(&t->others[phase], 1);
	while (t->disk && !j->index && atomic_load(&t->others[phase])) {
		if (j->backend.ops->poll(&j->backend, j->done, j->run->o.iodepth, SERVE_NS) < 0)
			break;
	}
}

static void *job_main(void *arg)
{
	struct job *j = arg;
	struct run *run = j->run;

	j->result = job_open(j);
	if (j->result < 0)
		atomic_store(&run->failed, true);
	gate_pass(&run->gate);
	if (!atomic_load(&run->failed)) {
		j->result = job_plan(j);
		if (j->result < 0)
			atomic_store(&run->failed, true);
	}
	gate_pass(&run->gate);
	j->start_ns = load_now_ns();
	j->deadline_ns = run->o.runtime_ns ? j->start_ns + run->o.runtime_ns : 0;
	run_phase(j, PHASE_LOAD);
	gate_pass(&run->gate);
	if (run->o.verify && !only_reads(&run->o))
		run_phase(j, PHASE_READ_BACK);
	job_close(j);
	return NULL;
}

/* --- the run --- */

/* How many jobs run once the threads are started: fewer than asked for when a thread cannot be. */
static unsigned start_jobs(struct run *run, struct job *jobs, unsigned count,
			   struct vmimg_error *err, int *result)
{
	for (unsigned i = 0; i < count; i++) {
		struct job *j = &jobs[i];
		int r;

		j->run = run;
		j->number = i;
		j->index = i % run->o.numjobs;
		j->target = &run->targets[i / run->o.numjobs];
		r = pthread_create(&j->thread, NULL, job_main, j);
		if (r) {
			*result = load_error(err, -r, "thread %u of %u", i, count);
			atomic_store(&run->failed, true);
			return i;
		}
	}
	return count;
}

static double cpu_seconds(void)
{
	struct rusage u;

	getrusage(RUSAGE_SELF, &u);
	return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
	       (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

/* Leads the jobs through the gates. Returns the processor time of the load, in seconds. */
static double conduct(struct run *run, struct job *jobs, unsigned count)
{
	double cpu = 0;

	for (unsigned gate = 0; gate < 3; gate++) {
		gate_await(&run->gate, count);
		/* Between gates 1 and 2 lies the load. */
		if (gate)
			cpu = cpu_seconds() - cpu;
		gate_open(&run->gate);
	}
	for (unsigned i = 0; i < count; i++)
		pthread_join(jobs[i].thread, NULL);
	return cpu;
}

static void sum_up(const struct run *run, const struct job *jobs, unsigned count, double cpu,
		   struct histogram *io, struct histogram *flush, struct load_result *ret)
{
	uint64_t start = UINT64_MAX, end = 0;
	double seconds;

	*ret = (struct load_result){.direct = true};
	for (unsigned i = 0; i < count; i++) {
		const struct job *j = &jobs[i];

		ret->reads += j->reads;
		ret->writes += j->writes;
		ret->flushes += j->flushes;
		ret->errors += j->errors;
		ret->verified += j->verified;
		ret->direct &= j->backend.direct;
		start = j->start_ns < start ? j->start_ns : start;
		end = j->loaded_ns > end ? j->loaded_ns : end;
		histogram_merge(io, &j->io_ns);
		histogram_merge(flush, &j->flush_ns);
	}
	ret->ios = ret->reads + ret->writes;
	ret->bytes = ret->ios * run->o.bs;
	ret->elapsed_ns = end > start ? end - start : 0;
	seconds = (double)ret->elapsed_ns / 1e9;
	if (ret->elapsed_ns) {
		ret->iops = (double)ret->ios / seconds;
		ret->bandwidth = (double)ret->bytes / seconds;
	}
	if (ret->ios)
		ret->cpu_us_per_io = cpu * 1e6 / (double)ret->ios;
	histogram_latency(io, &ret->latency);
	histogram_latency(flush, &ret->flush_latency);
}

static int fill_defaults(struct run *run, const struct load_options *options,
			 struct vmimg_error *err)
{
	struct load_options *o = &run->o;

	*o = *options;
	o->bs = o->bs ? o->bs : 4096;
	o->iodepth = o->iodepth ? o->iodepth : 32;
	o->numjobs = o->numjobs ? o->numjobs : 1;
	if (!o->seed)
		o->seed = load_now_ns();
	run->id = o->seed ? o->seed : 1;
	if (o->bs % 512 || o->bs > BS_MAX)
		return load_error(err, -EINVAL, "block size %llu, not a multiple of 512 up to %llu",
				  (unsigned long long)o->bs, (unsigned long long)BS_MAX);
	if (o->iodepth > 4096 || o->numjobs > 1024)
		return load_error(err, -EINVAL, "%u in flight, at most 4096; %u jobs, at most 1024",
				  o->iodepth, o->numjobs);
	return 0;
}

static int name_targets(struct run *run, const char *const *names, unsigned count,
			struct vmimg_error *err)
{
	for (unsigned i = 0; i < count; i++) {
		struct target *t = &run->targets[i];
		bool is_disk;

		t->name = names[i];
		t->file = strncmp(names[i], "raw:", 4) ? NULL : names[i] + 4;
		t->nbd = load_is_nbd(names[i]);
		is_disk = !t->file && !t->nbd;
		if (is_disk && !run->svc)
			return load_error(err, -EINVAL, "%s: a disk, but no store", names[i]);
		if (is_disk && strchr(names[i], '@') && !only_reads(&run->o))
			return load_error(err, -EROFS, "%s: a snapshot's disk is only read",
					  names[i]);
		for (unsigned p = 0; p < PHASES; p++)
			atomic_store(&t->others[p], run->o.numjobs - 1);
	}
	return 0;
}

/* The first error of a job, which also says why nothing could be loaded. */
static int first_error(const struct job *jobs, unsigned count, struct vmimg_error *err)
{
	for (unsigned i = 0; i < count; i++) {
		if (jobs[i].result < 0) {
			if (err)
				*err = jobs[i].err;
			return jobs[i].result;
		}
	}
	return 0;
}

int load_run(struct vmimg_service *svc, const char *const *targets, unsigned count,
	     const struct load_options *options, struct vmimg_error *err, struct load_result *ret)
{
	struct run run = {
		.svc = svc,
		.gate = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0, 0},
	};
	struct histogram *sums = NULL;
	struct job *jobs = NULL;
	unsigned total, started;
	double cpu;
	int r = fill_defaults(&run, options, err);

	if (r < 0)
		return r;
	total = count * run.o.numjobs;
	r = -ENOMEM;
	run.targets = calloc(count, sizeof(*run.targets));
	jobs = calloc(total, sizeof(*jobs));
	sums = calloc(2, sizeof(*sums));
	if (!run.targets || !jobs || !sums) {
		load_error(err, r, "a load of %u jobs", total);
		goto out;
	}
	r = name_targets(&run, targets, count, err);
	if (r < 0)
		goto out;
	started = start_jobs(&run, jobs, total, err, &r);
	cpu = conduct(&run, jobs, started);
	if (r < 0)
		goto out;
	r = first_error(jobs, started, err);
	if (r < 0 && atomic_load(&run.failed))
		goto out;
	r = 0;
	sum_up(&run, jobs, started, cpu, &sums[0], &sums[1], ret);
out:
	free(sums);
	free(jobs);
	free(run.targets);
	return r;
}
