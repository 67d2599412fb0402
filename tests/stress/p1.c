/* SPDX-License-Identifier: MIT */
/*
 * p1.c - the consistent cut under load, through the public header (P1).
 *
 * What is checked: writers issue write k+1 only after write k was acknowledged, each to another disk
 * of another VM, some through the queue the disk is attached to and some forwarded from another one.
 * Write k puts the number k into its block, on a disk that gets every n-th number. In every snapshot
 * the largest number found, K, decides what all the other disks must hold: exactly the state after
 * write K. One number too new or too old is a write that slipped through a cut.
 *
 * Meanwhile other writers keep every disk busy with full and partial blocks, zeroes and flushes, so that
 * cuts meet writes in every stage. P1_WRITES and P1_SNAPSHOTS set the size; the seed is printed, and
 * taken back in P1_SEED.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "api/vmimg.h"

#define VMS         4u
#define DISKS       4u /* of each VM */
#define ALL         (VMS * DISKS)
#define THREADS     4u /* queues; disk i is attached to queue i % THREADS */
#define CHAINS      6u /* dependent sequences of each thread */
#define NOISE       6u /* other requests in flight of each thread */
#define BLOCK       4096u
#define DISK_BLOCKS 1024u
#define CHAIN_AREA  (THREADS * CHAINS) /* first blocks of every disk: one a chain */

struct number {
	uint64_t magic, k;
};
#define MAGIC 0x5031c0de5031c0deull

struct worker {
	unsigned index;
	uint64_t seed;
	struct vmimg_queue *queue;
	pthread_t thread;
	uint64_t writes, noise_errors;
};

static struct vmimg_service *svc;
static struct vmimg_disk *disks[ALL];
static struct worker workers[THREADS];
static pthread_barrier_t attached, finished, detached;
static atomic_bool stop;
static atomic_ulong total_writes;
static char dir[64];

static uint64_t next_random(uint64_t *seed)
{
	*seed = *seed * 6364136223846793005ull + 1442695040888963407ull;
	return *seed >> 33;
}

static unsigned long setting(const char *name, unsigned long fallback)
{
	const char *text = getenv(name);

	return text && *text ? strtoul(text, NULL, 0) : fallback;
}

static void disk_name(unsigned i, char name[32])
{
	snprintf(name, 32, "vm%u/d%u", i % VMS, i / VMS);
}

/* --- load --- */

struct slot {
	struct vmimg_request rq;
	struct iovec iov;
	uint8_t *buf;
	uint64_t k; /* chains: number being written */
};

/* Chain c's k-th write goes to disk (k + c) % ALL: neighbours are disks of different VMs. */
static void chain_next(struct worker *w, struct slot *s, unsigned chain)
{
	struct number *n = (struct number *)s->buf;
	unsigned id = w->index * CHAINS + chain;

	s->k++;
	/* Half of the numbers are written into part of the block only. */
	n->magic = MAGIC;
	n->k = s->k;
	s->iov = (struct iovec){s->buf, s->k & 1 ? BLOCK : 512};
	s->rq = (struct vmimg_request){
		.disk = disks[(s->k + id) % ALL],
		.op = VMIMG_WRITE,
		.iov = &s->iov,
		.iovcnt = 1,
		.offset = (uint64_t)id * BLOCK,
		.length = s->iov.iov_len,
		.user_data = chain,
		.flags = s->k % 64 == 0 ? VMIMG_FUA : 0,
	};
	cr_assert_eq(vmimg_queue_submit(w->queue, &s->rq, 1), 1);
}

static void noise_next(struct worker *w, struct slot *s, unsigned index)
{
	uint64_t block = CHAIN_AREA + next_random(&w->seed) % (DISK_BLOCKS - CHAIN_AREA - 8);
	uint64_t r = next_random(&w->seed);
	uint64_t offset = block * BLOCK + (r & 1 ? 0 : r / 2 % 8 * 512);
	uint64_t length = 512 * (1 + r / 16 % 40);

	s->iov = (struct iovec){s->buf, length};
	s->rq = (struct vmimg_request){
		.disk = disks[next_random(&w->seed) % ALL],
		.op = VMIMG_WRITE,
		.iov = &s->iov,
		.iovcnt = 1,
		.offset = offset,
		.length = length,
		.user_data = CHAINS + index,
	};
	if (r % 97 == 0)
		s->rq.op = VMIMG_DISCARD;
	if (r % 41 == 0) {
		s->rq.op = VMIMG_FLUSH;
		s->rq.length = 0;
		s->rq.offset = 0;
	}
	cr_assert_eq(vmimg_queue_submit(w->queue, &s->rq, 1), 1);
}

static void load(struct worker *w)
{
	struct slot slots[CHAINS + NOISE];
	struct vmimg_completion done[CHAINS + NOISE];
	unsigned busy = CHAINS + NOISE;

	memset(slots, 0, sizeof(slots));
	for (unsigned i = 0; i < CHAINS + NOISE; i++) {
		cr_assert_eq(posix_memalign((void **)&slots[i].buf, BLOCK, 8 * BLOCK), 0);
		memset(slots[i].buf, (int)(w->index * 16 + i + 1), 8 * BLOCK);
		if (i < CHAINS)
			chain_next(w, &slots[i], i);
		else
			noise_next(w, &slots[i], i - CHAINS);
	}
	while (busy) {
		int n = vmimg_queue_poll(w->queue, done, CHAINS + NOISE, UINT64_MAX);

		cr_assert_geq(n, 0);
		for (int i = 0; i < n; i++) {
			unsigned id = (unsigned)done[i].user_data;

			cr_assert_eq(done[i].result, 0, "request failed: %d", done[i].result);
			if (id < CHAINS) {
				w->writes++;
				atomic_fetch_add(&total_writes, 1);
			}
			if (atomic_load(&stop))
				busy--;
			else if (id < CHAINS)
				chain_next(w, &slots[id], id);
			else
				noise_next(w, &slots[id], id - CHAINS);
		}
	}
	for (unsigned i = 0; i < CHAINS + NOISE; i++)
		free(slots[i].buf);
}

/* Waits at a barrier while still serving requests that others forward. */
static void serve_until_all(struct worker *w, atomic_uint *count)
{
	struct vmimg_completion none;

	atomic_fetch_add(count, 1);
	while (atomic_load(count) < THREADS)
		cr_assert_eq(vmimg_queue_poll(w->queue, &none, 1, 1000000), 0);
}

static atomic_uint loads_done;

static void *work(void *arg)
{
	struct worker *w = arg;
	struct vmimg_error err;
	char name[32];

	cr_assert_eq(vmimg_queue_create(svc, 64, &err, &w->queue), 0, "%s", err.message);
	for (unsigned i = w->index; i < ALL; i += THREADS) {
		disk_name(i, name);
		cr_assert_eq(vmimg_disk_attach(w->queue, name, 0, &err, &disks[i]), 0, "%s",
			     err.message);
	}
	pthread_barrier_wait(&attached);
	load(w);
	serve_until_all(w, &loads_done);
	pthread_barrier_wait(&finished);
	for (unsigned i = w->index; i < ALL; i += THREADS)
		cr_assert_eq(vmimg_disk_detach(disks[i]), 0);
	cr_assert_eq(vmimg_queue_destroy(w->queue), 0);
	pthread_barrier_wait(&detached);
	return NULL;
}

/* --- snapshots, and what they must hold --- */

static void make_store(void)
{
	struct vmimg_options options = {.size = sizeof(options), .standby = 1};
	struct vmimg_error err;
	char name[32];

	strcpy(dir, "/tmp/vmimg-p1-XXXXXX");
	cr_assert_not_null(mkdtemp(dir));
	cr_assert_eq(vmimg_store_init(dir, &err), 0, "%s", err.message);
	cr_assert_eq(vmimg_open(dir, &options, &err, &svc), 0, "%s", err.message);
	cr_assert_eq(vmimg_define_collection(svc, "all", NULL, 0, NULL, &err), 0, "%s",
		     err.message);
	for (unsigned v = 0; v < VMS; v++) {
		snprintf(name, sizeof(name), "vm%u", v);
		cr_assert_eq(vmimg_vm_create(svc, name, &err), 0, "%s", err.message);
		cr_assert_eq(vmimg_add_member(svc, name, "all", &err), 0, "%s", err.message);
	}
	for (unsigned i = 0; i < ALL; i++) {
		struct vmimg_disk_spec spec = {
			.size_of = sizeof(spec),
			.size = (uint64_t)DISK_BLOCKS * BLOCK,
		};

		disk_name(i, name);
		cr_assert_eq(vmimg_disk_create(svc, name, &spec, &err), 0, "%s", err.message);
	}
}

static void read_numbers(struct vmimg_queue *queue, unsigned snapshot, unsigned disk,
			 uint64_t numbers[CHAIN_AREA])
{
	static uint8_t buf[CHAIN_AREA * BLOCK] __attribute__((aligned(4096)));
	struct iovec iov = {buf, sizeof(buf)};
	struct vmimg_completion done;
	struct vmimg_request rq;
	struct vmimg_disk *view;
	struct vmimg_error err;
	char path[96], name[32];

	disk_name(disk, name);
	snprintf(path, sizeof(path), "all@s%u/%s", snapshot, name);
	cr_assert_eq(vmimg_disk_attach(queue, path, VMIMG_ATTACH_READ_ONLY, &err, &view), 0,
		     "%s: %s", path, err.message);
	rq = (struct vmimg_request){
		.disk = view,
		.op = VMIMG_READ,
		.iov = &iov,
		.iovcnt = 1,
		.length = sizeof(buf),
	};
	cr_assert_eq(vmimg_queue_submit(queue, &rq, 1), 1);
	cr_assert_eq(vmimg_queue_poll(queue, &done, 1, UINT64_MAX), 1);
	cr_assert_eq(done.result, 0, "%s: read failed: %d", path, done.result);
	cr_assert_eq(vmimg_disk_detach(view), 0);
	for (unsigned c = 0; c < CHAIN_AREA; c++) {
		const struct number *n = (const struct number *)(buf + (size_t)c * BLOCK);

		cr_assert(n->magic == MAGIC || n->k == 0, "%s: block %u is not ours", path, c);
		numbers[c] = n->k;
	}
}

static void check_snapshot(struct vmimg_queue *queue, unsigned snapshot)
{
	static uint64_t numbers[ALL][CHAIN_AREA];

	for (unsigned d = 0; d < ALL; d++)
		read_numbers(queue, snapshot, d, numbers[d]);
	for (unsigned c = 0; c < CHAIN_AREA; c++) {
		uint64_t last = 0;

		for (unsigned d = 0; d < ALL; d++)
			last = numbers[d][c] > last ? numbers[d][c] : last;
		for (unsigned d = 0; d < ALL; d++) {
			/* the largest k <= last that goes to disk d */
			uint64_t behind = (last + c + ALL - d) % ALL;
			uint64_t want = behind < last ? last - behind : 0;

			cr_assert_eq(numbers[d][c], want,
				     "P1 violated in snapshot %u, chain %u: disk %u holds %lu, the "
				     "newest write is %lu, so it must hold %lu",
				     snapshot, c, d, numbers[d][c], last, want);
		}
	}
}

static unsigned take_snapshots(unsigned long want_snapshots, unsigned long want_writes,
			       unsigned long seconds)
{
	time_t end = time(NULL) + (time_t)seconds;
	unsigned long taken = 0;
	uint64_t max_cut = 0;

	while ((taken < want_snapshots || atomic_load(&total_writes) < want_writes) &&
	       time(NULL) < end) {
		struct vmimg_ref ref = {.name = ""};
		struct vmimg_error err = {0};
		uint32_t r;

		if (taken >= want_snapshots) {
			usleep(20000);
			continue;
		}
		snprintf(ref.name, sizeof(ref.name), "s%lu", taken);
		r = vmimg_create_snapshot(svc, "all", "{\"Synchronous\": true}",
					  VMIMG_SNAPSHOT_STANDARD, &ref, NULL, &err);
		cr_assert_eq(r, 0, "snapshot %lu: %u: %s", taken, r, err.message);
		taken++;
		(void)max_cut;
		usleep((useconds_t)(1000 + taken * 7919 % 40000));
	}
	return (unsigned)taken;
}

/* P1 */
Test(p1, no_write_crosses_a_cut, .timeout = 7200)
{
	uint64_t seed = setting("P1_SEED", (unsigned long)time(NULL));
	unsigned long seconds = setting("VMIMG_TEST_SECONDS", 60);
	unsigned long snapshots = setting("P1_SNAPSHOTS", 200);
	unsigned long writes = setting("P1_WRITES", 1000000);
	struct vmimg_queue *queue;
	struct vmimg_error err;
	unsigned taken;
	char cmd[96];

	make_store();
	pthread_barrier_init(&attached, NULL, THREADS + 1);
	pthread_barrier_init(&finished, NULL, THREADS + 1);
	pthread_barrier_init(&detached, NULL, THREADS + 1);
	for (unsigned i = 0; i < THREADS; i++) {
		workers[i] = (struct worker){.index = i, .seed = seed + i};
		cr_assert_eq(pthread_create(&workers[i].thread, NULL, work, &workers[i]), 0);
	}
	pthread_barrier_wait(&attached);
	taken = take_snapshots(snapshots, writes, seconds);
	atomic_store(&stop, true);
	pthread_barrier_wait(&finished);
	pthread_barrier_wait(&detached);
	cr_assert_eq(vmimg_queue_create(svc, 8, &err, &queue), 0);
	for (unsigned s = 0; s < taken; s++)
		check_snapshot(queue, s);
	cr_assert_eq(vmimg_queue_destroy(queue), 0);
	for (unsigned i = 0; i < THREADS; i++)
		pthread_join(workers[i].thread, NULL);
	cr_assert_eq(vmimg_close(svc), 0);
	cr_assert_gt(taken, 0u);
	fprintf(stderr, "p1: seed %lu, %lu dependent writes, %u snapshots checked\n",
		(unsigned long)seed, (unsigned long)atomic_load(&total_writes), taken);
	snprintf(cmd, sizeof(cmd), "rm -rf %s", dir);
	cr_assert_eq(system(cmd), 0);
}
