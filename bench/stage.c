/* SPDX-License-Identifier: MIT */
/* stage.c - stores, disks, snapshots and a plain loop for the programs of this folder. */
#include "bench/stage.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/uio.h>
#include <unistd.h>

#define SEAL_WAIT_NS UINT64_C(300000000000)
#define SEAL_LOOK_NS 20000000u

void stage_die(const char *what, const struct vmimg_error *err)
{
	fprintf(stderr, "%s: %s: %s\n", program_invocation_short_name, what,
		err ? err->message : strerror(errno));
	exit(1);
}

unsigned stage_number(const char *text)
{
	char *end;
	unsigned long value = strtoul(text, &end, 10);

	errno = EINVAL;
	if (*end || !value || value > INT32_MAX)
		stage_die(text, NULL);
	return (unsigned)value;
}

/* --- the store --- */

struct vmimg_service *stage_open(const char *dir)
{
	struct vmimg_service *svc;
	struct vmimg_error err;

	if (access(dir, F_OK) < 0 && vmimg_store_init(dir, &err) < 0)
		stage_die(dir, &err);
	if (vmimg_open(dir, NULL, &err, &svc) < 0)
		stage_die(dir, &err);
	return svc;
}

void stage_close(struct vmimg_service *svc)
{
	errno = EBUSY;
	if (vmimg_close(svc) < 0)
		stage_die("closing the store", NULL);
}

static void disk_name(const char *name, char ret[2 * VMIMG_NAME_MAX])
{
	snprintf(ret, 2 * VMIMG_NAME_MAX, "%s/d", name);
}

void stage_disk(struct vmimg_service *svc, const char *name, uint64_t size)
{
	struct vmimg_disk_spec spec = {.size_of = sizeof(spec), .size = size};
	char disk[2 * VMIMG_NAME_MAX];
	struct vmimg_error err;

	disk_name(name, disk);
	if (vmimg_vm_create(svc, name, &err) < 0 ||
	    vmimg_define_collection(svc, name, NULL, 0, NULL, &err) ||
	    vmimg_add_member(svc, name, name, &err) ||
	    vmimg_disk_create(svc, disk, &spec, &err) < 0)
		stage_die(name, &err);
	stage_snapshot(svc, name, 0);
}

void stage_snapshot(struct vmimg_service *svc, const char *name, unsigned number)
{
	struct vmimg_ref ref = {.name = ""};
	struct vmimg_error err;

	snprintf(ref.name, sizeof(ref.name), "s%u", number);
	if (vmimg_create_snapshot(svc, name, "{\"Synchronous\": true}", VMIMG_SNAPSHOT_STANDARD,
				  &ref, NULL, &err))
		stage_die(name, &err);
}

static bool is_sealed(struct vmimg_service *svc, const char *snapshot)
{
	struct vmimg_error err;
	bool sealed = true;
	json_t *doc, *member;
	char *text;
	size_t i;

	if (vmimg_describe(svc, VMIMG_KIND_SNAPSHOT, snapshot, &err, &text) < 0)
		stage_die(snapshot, &err);
	doc = json_loads(text, 0, NULL);
	json_array_foreach (json_object_get(doc, "members"), i, member)
		sealed &= json_is_true(json_object_get(member, "sealed"));
	json_decref(doc);
	vmimg_free(text);
	return sealed;
}

void stage_await_seal(struct vmimg_service *svc, const char *name, unsigned number,
		      struct vmimg_queue *queue)
{
	uint64_t start = load_now_ns();
	struct vmimg_completion none;
	char snapshot[2 * VMIMG_NAME_MAX];

	snprintf(snapshot, sizeof(snapshot), "%s@s%u", name, number);
	while (!is_sealed(svc, snapshot)) {
		errno = ETIMEDOUT;
		if (load_now_ns() - start > SEAL_WAIT_NS)
			stage_die(snapshot, NULL);
		if (queue)
			vmimg_queue_poll(queue, &none, 1, SEAL_LOOK_NS);
		else
			usleep(SEAL_LOOK_NS / 1000);
	}
}

/* --- requests --- */

struct vmimg_queue *stage_queue(struct vmimg_service *svc)
{
	struct vmimg_queue *queue;
	struct vmimg_error err;

	if (vmimg_queue_create(svc, STAGE_DEPTH, &err, &queue) < 0)
		stage_die("a queue", &err);
	return queue;
}

struct vmimg_disk *stage_attach(struct vmimg_queue *queue, const char *name)
{
	char disk[2 * VMIMG_NAME_MAX];
	struct vmimg_disk *ret;
	struct vmimg_error err;

	disk_name(name, disk);
	if (vmimg_disk_attach(queue, disk, 0, &err, &ret) < 0)
		stage_die(disk, &err);
	return ret;
}

void stage_detach(struct vmimg_disk *disk)
{
	errno = EIO;
	if (vmimg_disk_detach(disk) < 0)
		stage_die("detaching", NULL);
}

struct lane {
	struct iovec iov;
	uint64_t start_ns;
};

static void send(struct vmimg_queue *queue, struct vmimg_disk *disk, enum vmimg_op op,
		 struct pattern *order, struct lane *lane, unsigned number)
{
	struct vmimg_request request = {
		.disk = disk,
		.op = (uint8_t)op,
		.iov = &lane->iov,
		.iovcnt = 1,
		.offset = pattern_next(order) * STAGE_BLOCK,
		.length = STAGE_BLOCK,
		.user_data = number,
	};

	errno = EIO;
	if (vmimg_queue_submit(queue, &request, 1) != 1)
		stage_die("a request", NULL);
}

uint64_t stage_run(struct vmimg_queue *queue, struct vmimg_disk *disk, enum vmimg_op op,
		   struct pattern *order, unsigned depth, uint64_t ios, uint64_t deadline_ns,
		   struct histogram *latency)
{
	struct vmimg_completion done[STAGE_DEPTH];
	struct lane lanes[STAGE_DEPTH];
	uint64_t sent = 0, ended = 0, now;
	char *buffers;

	if (posix_memalign((void **)&buffers, STAGE_BLOCK, (size_t)depth * STAGE_BLOCK))
		stage_die("buffers", NULL);
	memset(buffers, 0x5a, (size_t)depth * STAGE_BLOCK);
	now = load_now_ns();
	for (; sent < depth && (!ios || sent < ios); sent++) {
		lanes[sent] = (struct lane){{buffers + sent * STAGE_BLOCK, STAGE_BLOCK}, now};
		send(queue, disk, op, order, &lanes[sent], (unsigned)sent);
	}
	while (ended < sent) {
		int n = vmimg_queue_poll(queue, done, depth, UINT64_MAX);

		now = load_now_ns();
		for (int i = 0; i < n; i++, ended++) {
			struct lane *lane = &lanes[done[i].user_data];

			errno = -done[i].result;
			if (done[i].result < 0)
				stage_die(op == VMIMG_READ ? "a read" : "a write", NULL);
			histogram_add(latency, now - lane->start_ns);
			if ((ios && sent == ios) || (deadline_ns && now >= deadline_ns))
				continue;
			lane->start_ns = now;
			send(queue, disk, op, order, lane, (unsigned)done[i].user_data);
			sent++;
		}
	}
	free(buffers);
	return ended;
}

/* --- figures --- */

double stage_cpu_us(void)
{
	struct rusage u;

	getrusage(RUSAGE_SELF, &u);
	return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) * 1e6 +
	       (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec);
}

void stage_print(json_t *line)
{
	if (!line)
		stage_die("memory", NULL);
	json_dumpf(line, stdout, JSON_PRESERVE_ORDER | JSON_COMPACT | JSON_REAL_PRECISION(9));
	putchar('\n');
	fflush(stdout);
	json_decref(line);
}
