/* SPDX-License-Identifier: MIT */
/*
 * group.c - what a snapshot of many disks costs, and what their writers feel of it.
 *
 * Makes a store of N disks, attaches them all, lets up to four writers run at queue depth 1 (or none),
 * and takes snapshots. Around every snapshot a window without one, as long as the last snapshot took, is
 * measured the same way: the longest write that touches a window. Prints one JSON object.
 *
 *   group DIR DISKS SNAPSHOTS idle|load standby|fresh [SIZE_MIB]
 */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include <jansson.h>

#include "api/vmimg.h"

#define WRITERS   4u
#define PER_VM    4u          /* disks of each VM */
#define SPAN      (64u << 20) /* bytes that a writer writes to, the same again and again */
#define LOG_MAX   (4u << 20)  /* writes a writer remembers */
#define SETTLE_US 500000

struct write {
	uint64_t start, end; /* ns */
};

struct writer {
	unsigned disk;
	pthread_t thread;
	struct write *log;
	_Atomic uint32_t count;
	atomic_bool ready;
};

struct window {
	uint64_t start, end;
};

static struct vmimg_service *svc;
static unsigned disk_count;
static uint64_t disk_size;
static atomic_bool stop;
static atomic_uint attached;

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static void die(const char *what, const struct vmimg_error *err)
{
	fprintf(stderr, "group: %s: %s\n", what, err ? err->message : strerror(errno));
	exit(1);
}

static void name_of(unsigned disk, char name[48])
{
	snprintf(name, 48, "vm%u/d%u", disk / PER_VM, disk % PER_VM);
}

static struct vmimg_disk *attach(struct vmimg_queue *queue, unsigned disk)
{
	struct vmimg_disk *ret;
	struct vmimg_error err;
	char name[48];

	name_of(disk, name);
	if (vmimg_disk_attach(queue, name, 0, &err, &ret) < 0)
		die(name, &err);
	atomic_fetch_add(&attached, 1);
	return ret;
}

static struct vmimg_queue *make_queue(void)
{
	struct vmimg_queue *queue;
	struct vmimg_error err;

	if (vmimg_queue_create(svc, 32, &err, &queue) < 0)
		die("queue", &err);
	return queue;
}

/* --- writers --- */

static void write_one(struct vmimg_queue *queue, struct vmimg_disk *disk, uint8_t *buf,
		      uint64_t offset)
{
	struct iovec iov = {buf, 4096};
	struct vmimg_request rq = {
		.disk = disk,
		.op = VMIMG_WRITE,
		.iov = &iov,
		.iovcnt = 1,
		.offset = offset,
		.length = 4096,
	};
	struct vmimg_completion done;

	if (vmimg_queue_submit(queue, &rq, 1) != 1 ||
	    vmimg_queue_poll(queue, &done, 1, UINT64_MAX) != 1 || done.result < 0)
		die("write", NULL);
}

static void *run_writer(void *arg)
{
	struct writer *w = arg;
	struct vmimg_queue *queue = make_queue();
	struct vmimg_disk *disk = attach(queue, w->disk);
	uint64_t seed = w->disk + 1;
	uint8_t *buf;

	if (posix_memalign((void **)&buf, 4096, 4096))
		die("memory", NULL);
	memset(buf, (int)w->disk + 1, 4096);
	while (!atomic_load(&stop)) {
		uint32_t n = atomic_load(&w->count);
		uint64_t start = now_ns();

		seed = seed * 6364136223846793005u + 1442695040888963407u;
		write_one(queue, disk, buf, (seed >> 33) % (SPAN / 4096) * 4096);
		if (n < LOG_MAX) {
			w->log[n] = (struct write){start, now_ns()};
			atomic_store(&w->count, n + 1);
		}
		atomic_store(&w->ready, true);
	}
	if (vmimg_disk_detach(disk) < 0 || vmimg_queue_destroy(queue) < 0)
		die("detach", NULL);
	free(buf);
	return NULL;
}

/* The other disks: attached, and their queue polled, as a VM that does nothing would. */
static void *run_idle(void *arg)
{
	struct vmimg_disk **disks = calloc(disk_count, sizeof(struct vmimg_disk *));
	struct vmimg_queue *queue = make_queue();
	struct vmimg_completion none;
	unsigned first = *(unsigned *)arg;

	for (unsigned i = first; i < disk_count; i++)
		disks[i] = attach(queue, i);
	while (!atomic_load(&stop))
		vmimg_queue_poll(queue, &none, 1, 20000000);
	for (unsigned i = first; i < disk_count; i++)
		if (vmimg_disk_detach(disks[i]) < 0)
			die("detach", NULL);
	if (vmimg_queue_destroy(queue) < 0)
		die("queue", NULL);
	free(disks);
	return NULL;
}

/* --- the store --- */

static void make_store(const char *dir, bool standby)
{
	struct vmimg_options options = {.size = sizeof(options), .standby = standby};
	struct vmimg_disk_spec spec = {.size_of = sizeof(spec), .size = disk_size};
	struct vmimg_error err;
	char name[48];

	if (vmimg_store_init(dir, &err) < 0 || vmimg_open(dir, &options, &err, &svc) < 0)
		die(dir, &err);
	if (vmimg_define_collection(svc, "all", NULL, 0, NULL, &err))
		die("collection", &err);
	for (unsigned i = 0; i < disk_count; i++) {
		name_of(i, name);
		*strchr(name, '/') = 0;
		if (i % PER_VM == 0 && (vmimg_vm_create(svc, name, &err) < 0 ||
					vmimg_add_member(svc, name, "all", &err)))
			die(name, &err);
		name_of(i, name);
		if (vmimg_disk_create(svc, name, &spec, &err) < 0)
			die(name, &err);
	}
}

/* --- figures --- */

static int by_size(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

static json_t *spread(uint64_t *values, unsigned n)
{
	qsort(values, n, sizeof(*values), by_size);
	return json_pack("{s:I, s:I, s:I}", "min", (json_int_t)values[0], "median",
			 (json_int_t)values[n / 2], "max", (json_int_t)values[n - 1]);
}

/* The longest write that was under way at some time of the window. */
static uint64_t longest(const struct writer *writers, unsigned count, struct window win)
{
	uint64_t max = 0;

	for (unsigned w = 0; w < count; w++)
		for (uint32_t i = 0, n = atomic_load(&writers[w].count); i < n; i++) {
			const struct write *wr = &writers[w].log[i];

			if (wr->end >= win.start && wr->start <= win.end &&
			    wr->end - wr->start > max)
				max = wr->end - wr->start;
		}
	return max;
}

static uint64_t number(const json_t *doc, const char *key)
{
	return (uint64_t)json_integer_value(json_object_get(doc, key));
}

struct figures {
	uint64_t *total, *prepare, *cut, *harden, *with, *without;
};

static struct window take_snapshot(unsigned i, struct figures *f)
{
	struct vmimg_ref ref = {.name = ""};
	struct vmimg_error err;
	struct window win;
	json_t *doc;
	char *text;

	snprintf(ref.name, sizeof(ref.name), "s%u", i);
	win.start = now_ns();
	if (vmimg_create_snapshot(svc, "all", "{\"Synchronous\": true}", VMIMG_SNAPSHOT_STANDARD,
				  &ref, NULL, &err))
		die("snapshot", &err);
	win.end = now_ns();
	if (vmimg_describe(svc, VMIMG_KIND_SNAPSHOT, ref.name, &err, &text) < 0)
		die(ref.name, &err);
	doc = json_loads(text, 0, NULL);
	f->total[i] = win.end - win.start;
	f->prepare[i] = number(doc, "prepare_ns");
	f->cut[i] = number(doc, "cut_ns");
	f->harden[i] = number(doc, "harden_ns");
	json_decref(doc);
	vmimg_free(text);
	return win;
}

static void measure(unsigned snapshots, struct writer *writers, unsigned writer_count,
		    struct figures *f)
{
	struct window *with = calloc(snapshots, sizeof(*with));
	struct window *without = calloc(snapshots, sizeof(*without));
	uint64_t last = 100000000;

	for (unsigned i = 0; i < snapshots; i++) {
		usleep(SETTLE_US);
		without[i].start = now_ns();
		usleep((useconds_t)(last / 1000));
		without[i].end = now_ns();
		with[i] = take_snapshot(i, f);
		last = with[i].end - with[i].start;
	}
	atomic_store(&stop, true);
	for (unsigned i = 0; i < snapshots; i++) {
		f->with[i] = longest(writers, writer_count, with[i]);
		f->without[i] = longest(writers, writer_count, without[i]);
	}
	free(with);
	free(without);
}

static void print(const struct figures *f, unsigned n, unsigned writers, bool standby)
{
	json_t *doc = json_pack("{s:I, s:I, s:I, s:b}", "disks", (json_int_t)disk_count,
				"snapshots", (json_int_t)n, "writers", (json_int_t)writers,
				"standby", standby);

	json_object_set_new(doc, "total_ns", spread(f->total, n));
	json_object_set_new(doc, "prepare_ns", spread(f->prepare, n));
	json_object_set_new(doc, "cut_ns", spread(f->cut, n));
	json_object_set_new(doc, "harden_ns", spread(f->harden, n));
	if (writers) {
		json_object_set_new(doc, "longest_write_ns", spread(f->with, n));
		json_object_set_new(doc, "longest_write_without_ns", spread(f->without, n));
	}
	json_dumpf(doc, stdout, JSON_PRESERVE_ORDER);
	putchar('\n');
	json_decref(doc);
}

static uint64_t *numbers(unsigned n)
{
	uint64_t *p = calloc(n, sizeof(*p));

	if (!p)
		die("memory", NULL);
	return p;
}

int main(int argc, char **argv)
{
	struct writer writers[WRITERS] = {0};
	unsigned snapshots, count;
	pthread_t idle;
	bool standby;

	if (argc < 6) {
		fprintf(stderr, "usage: group DIR DISKS SNAPSHOTS idle|load standby|fresh [MIB]\n");
		return 2;
	}
	disk_count = (unsigned)atoi(argv[2]);
	snapshots = (unsigned)atoi(argv[3]);
	count = strcmp(argv[4], "load") ? 0 : disk_count < WRITERS ? disk_count : WRITERS;
	standby = !strcmp(argv[5], "standby");
	disk_size = (argc > 6 ? (uint64_t)atoi(argv[6]) : 1024) << 20;
	make_store(argv[1], standby);
	for (unsigned i = 0; i < count; i++) {
		writers[i].disk = i;
		writers[i].log = calloc(LOG_MAX, sizeof(struct write));
		pthread_create(&writers[i].thread, NULL, run_writer, &writers[i]);
	}
	pthread_create(&idle, NULL, run_idle, &count);
	while (atomic_load(&attached) < disk_count)
		usleep(10000);
	usleep(2 * SETTLE_US);

	struct figures f = {numbers(snapshots), numbers(snapshots), numbers(snapshots),
			    numbers(snapshots), numbers(snapshots), numbers(snapshots)};

	measure(snapshots, writers, count, &f);
	for (unsigned i = 0; i < count; i++)
		pthread_join(writers[i].thread, NULL);
	pthread_join(idle, NULL);
	if (vmimg_close(svc) < 0)
		die("close", NULL);
	print(&f, snapshots, count, standby);
	return 0;
}
