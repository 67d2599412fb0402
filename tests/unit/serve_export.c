/* SPDX-License-Identifier: MIT */
/*
 * serve_export.c - workers and exports on a real store: each disk attached once, on one worker, as long
 * as somebody uses it. "Somebody" is a client: a want, a reference held for a while, a put.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "serve/server.h"

#define DISKS 4
#define SIZE  (8u << 20)

static char dir[] = "/dev/shm/vmimg-export-XXXXXX", store[64];
static struct srv_server server;

static void setup(void)
{
	struct vmimg_disk_spec spec = {.size_of = sizeof(spec), .size = SIZE};
	static struct srv_worker *workers[2];

	cr_assert_not_null(mkdtemp(dir));
	snprintf(store, sizeof(store), "%s/store", dir);
	cr_assert_eq(vmimg_store_init(store, NULL), 0);
	cr_assert_eq(vmimg_open(store, NULL, NULL, &server.svc), 0);
	cr_assert_eq(vmimg_vm_create(server.svc, "vm", NULL), 0);
	for (int i = 0; i < DISKS; i++) {
		char name[16];

		snprintf(name, sizeof(name), "vm/d%d", i);
		cr_assert_eq(vmimg_disk_create(server.svc, name, &spec, NULL), 0);
	}
	server.workers = workers;
	server.nworkers = 2;
	cr_assert_eq(srv_worker_create(server.svc, "lobby", NULL, &server.lobby), 0);
	for (int i = 0; i < 2; i++)
		cr_assert_eq(srv_worker_create(server.svc, "worker", NULL, &workers[i]), 0);
	cr_assert_eq(srv_exports_create(&server, &server.exports), 0);
}

static void teardown(void)
{
	char command[96];

	srv_exports_destroy(server.exports);
	for (int i = 0; i < 2; i++)
		srv_worker_destroy(server.workers[i]);
	srv_worker_destroy(server.lobby);
	cr_expect_eq(vmimg_close(server.svc), 0);
	snprintf(command, sizeof(command), "rm -rf %s", dir);
	cr_expect_eq(system(command), 0);
}

TestSuite(serve_export, .init = setup, .fini = teardown, .timeout = 60);

/* A client on a thread that is no worker: waits for its want. */
struct client {
	struct srv_want want;
	struct srv_task task;
	sem_t woken;
	int result;
	struct srv_export *export;
	bool on_its_worker;
};

static void wanted(struct srv_want *want, int result, struct srv_export *export)
{
	struct client *c = (struct client *)want;

	c->result = result;
	c->export = export;
	c->on_its_worker = export && srv_worker_is_current(export->worker);
	sem_post(&c->woken);
}

static int get(struct client *c, const char *name)
{
	memset(c, 0, sizeof(*c));
	sem_init(&c->woken, 0, 0);
	snprintf(c->want.name, sizeof(c->want.name), "%s", name);
	c->want.done = wanted;
	srv_export_want(server.exports, &c->want);
	sem_wait(&c->woken);
	return c->result;
}

static void run_put(struct srv_worker *worker, struct srv_task *task)
{
	struct client *c = (struct client *)((char *)task - offsetof(struct client, task));

	(void)worker;
	srv_export_put(c->export);
	sem_post(&c->woken);
}

static void put(struct client *c)
{
	c->task.run = run_put;
	srv_worker_post(c->export->worker, &c->task);
	sem_wait(&c->woken);
}

/* */
Test(serve_export, clients_of_a_disk_share_its_attachment)
{
	struct client a, b;

	cr_assert_eq(get(&a, "vm/d0"), 0);
	cr_assert_eq(get(&b, "vm/d0"), 0);
	cr_expect_eq(a.export, b.export);
	cr_expect(a.on_its_worker);
	cr_expect(b.on_its_worker);
	cr_expect_eq(atomic_load(&a.export->size), SIZE);
	put(&a);
	cr_expect_eq(srv_exports_release(server.exports, "vm/d0"), -EBUSY);
	put(&b);
	cr_expect_eq(srv_exports_release(server.exports, "vm"), 0);
}

Test(serve_export, disks_are_spread_over_the_workers)
{
	struct client c[DISKS];
	int on_first = 0;

	for (int i = 0; i < DISKS; i++) {
		char name[16];

		snprintf(name, sizeof(name), "vm/d%d", i);
		cr_assert_eq(get(&c[i], name), 0);
		on_first += c[i].export->worker == server.workers[0];
	}
	cr_expect_eq(on_first, DISKS / 2);
	for (int i = 0; i < DISKS; i++)
		put(&c[i]);
}

Test(serve_export, an_unknown_disk_is_refused_with_its_reason)
{
	struct client c;

	cr_expect_eq(get(&c, "vm/none"), -ENOENT);
	cr_expect_null(c.export);
	cr_expect(strstr(c.want.error.message, "vm/none"), "'%s'", c.want.error.message);
	cr_expect_lt(get(&c, "../../etc/passwd"), 0);
	cr_expect_eq(get(&c, "vm/d0"), 0); /* nothing is stuck */
	put(&c);
}

Test(serve_export, a_released_disk_can_be_deleted)
{
	struct client c;

	cr_assert_eq(get(&c, "vm/d1"), 0);
	cr_expect_eq(vmimg_disk_delete(server.svc, "vm/d1", NULL), -EBUSY);
	put(&c);
	cr_expect_eq(vmimg_disk_delete(server.svc, "vm/d1", NULL), -EBUSY, "it lingers");
	cr_expect_eq(srv_exports_release(server.exports, "vm/d1"), 0);
	cr_expect_eq(vmimg_disk_delete(server.svc, "vm/d1", NULL), 0);
	cr_expect_eq(get(&c, "vm/d1"), -ENOENT);
}

static void make_snapshot(void)
{
	struct vmimg_ref ref = {.name = "s"};

	cr_assert_eq(vmimg_create_snapshot(server.svc, "c", "{\"Synchronous\": true}",
					   VMIMG_SNAPSHOT_STANDARD, &ref, NULL, NULL),
		     0);
}

/* X-3, NB-1, BQ-22 */
Test(serve_export, a_name_given_again_is_another_snapshots)
{
	struct client old, also, new;

	cr_assert_eq(vmimg_define_collection(server.svc, "c", NULL, 0, NULL, NULL), 0);
	cr_assert_eq(vmimg_add_member(server.svc, "vm", "c", NULL), 0);
	make_snapshot();
	cr_assert_eq(get(&old, "c@s/vm/d0"), 0);
	cr_assert_eq(get(&also, "c@s/vm/d0"), 0);
	cr_expect_eq(old.export, also.export);
	put(&also);
	cr_assert_eq(vmimg_destroy_snapshot(server.svc, "c@s", NULL, NULL), 0);
	cr_expect_eq(get(&new, "c@s/vm/d0"), -ENOENT);
	make_snapshot();
	cr_assert_eq(get(&new, "c@s/vm/d0"), 0);
	cr_expect_neq(new.export, old.export);
	cr_assert_eq(get(&also, "c@s/vm/d0"), 0);
	cr_expect_eq(also.export, new.export);
	put(&also);
	put(&new);
	/* Who still reads the old one is in nobody's way. */
	cr_expect_eq(srv_exports_release(server.exports, "c@s"), 0);
	put(&old);
	srv_exports_tick(server.exports);
	cr_expect_eq(srv_exports_release(server.exports, NULL), 0);
}

static _Atomic int failures;

static void *come_and_go(void *arg)
{
	unsigned seed = (unsigned)(uintptr_t)arg;
	struct client c;

	for (int i = 0; i < 300; i++) {
		char name[16];

		snprintf(name, sizeof(name), "vm/d%d", rand_r(&seed) % DISKS);
		if (get(&c, name) != 0 || !c.on_its_worker) {
			atomic_fetch_add(&failures, 1);
			continue;
		}
		if (rand_r(&seed) % 2)
			usleep(rand_r(&seed) % 200);
		put(&c);
	}
	return NULL;
}

/* Every order of wanted, flushed, detached and wanted again. */
Test(serve_export, wants_meet_detaches)
{
	pthread_t threads[4];

	for (uintptr_t i = 0; i < 4; i++)
		cr_assert_eq(pthread_create(&threads[i], NULL, come_and_go, (void *)(i + 1)), 0);
	for (int i = 0; i < 200; i++) {
		char name[16];

		snprintf(name, sizeof(name), "vm/d%d", i % DISKS);
		srv_exports_release(server.exports, name);
		usleep(500);
	}
	for (int i = 0; i < 4; i++)
		pthread_join(threads[i], NULL);
	cr_expect_eq(atomic_load(&failures), 0);
	cr_expect_eq(srv_exports_release(server.exports, NULL), 0);
}

/* --- the worker's requests --- */

#define READS 5000 /* more than a queue holds */

struct reading {
	struct srv_task task;
	struct srv_export *export;
	struct srv_io io[READS];
	struct iovec iov;
	uint8_t buf[512] __attribute__((aligned(512)));
	unsigned ended, errors;
	sem_t done;
};

static struct reading reading;

static void read_done(struct srv_io *io, int32_t result)
{
	(void)io;
	reading.errors += result != 0;
	if (++reading.ended == READS)
		sem_post(&reading.done);
}

static void run_reads(struct srv_worker *worker, struct srv_task *task)
{
	(void)task;
	reading.iov = (struct iovec){reading.buf, sizeof(reading.buf)};
	for (unsigned i = 0; i < READS; i++) {
		reading.io[i].done = read_done;
		reading.io[i].request = (struct vmimg_request){
			.disk = reading.export->disk,
			.op = VMIMG_READ,
			.iov = &reading.iov,
			.iovcnt = i == READS / 2 ? 2000 : 1, /* one that the queue refuses */
			.length = sizeof(reading.buf),
		};
		srv_worker_io(worker, &reading.io[i]);
	}
}

Test(serve_export, more_requests_than_a_queue_holds_all_end_once)
{
	struct client c;

	cr_assert_eq(get(&c, "vm/d2"), 0);
	sem_init(&reading.done, 0, 0);
	reading.export = c.export;
	reading.task.run = run_reads;
	srv_worker_post(c.export->worker, &reading.task);
	sem_wait(&reading.done);
	usleep(20000);
	cr_expect_eq(reading.ended, READS);
	cr_expect_eq(reading.errors, 1u, "only the malformed one");
	put(&c);
}

Test(serve_export, counters_count)
{
	struct srv_stats stats = {0};
	uint64_t now = srv_now_ns();

	srv_stats_note(&stats, VMIMG_WRITE, 4096, now - 3000000, 0);
	srv_stats_note(&stats, VMIMG_WRITE, 4096, now, -EIO);
	srv_stats_note(&stats, VMIMG_DISCARD, 8192, now, 0);
	cr_expect_eq(stats.op[SRV_STAT_WRITE].requests, 2);
	cr_expect_eq(stats.op[SRV_STAT_WRITE].bytes, 4096);
	cr_expect_eq(stats.op[SRV_STAT_WRITE].errors, 1);
	cr_expect_eq(stats.op[SRV_STAT_WRITE].latency[12], 1, "2.048 to 4.096 ms");
	cr_expect_eq(stats.op[SRV_STAT_ZERO].bytes, 8192);
	cr_expect_eq(stats.snapshot_write_max_ns, 0);
	atomic_store(&srv_snapshots_running, 1);
	srv_stats_note(&stats, VMIMG_WRITE, 1, now - 5000000, 0);
	cr_expect_geq(stats.snapshot_write_max_ns, 5000000);
	atomic_store(&srv_snapshots_running, 0);
}
