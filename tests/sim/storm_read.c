/* SPDX-License-Identifier: MIT */
/* storm_read.c - what a storm's threads share, and how they read (storm.h). */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>

#include "tests/lib/random.h"
#include "tests/sim/storm.h"

struct vmimg_service *storm_svc;
char storm_dir[256];
uint64_t storm_seed;
const char *const storm_disks[STORM_DISKS] = {"a/d0", "a/d1", "b/d0", "b/d1"};

void storm_fail(const struct storm_thread *t, const char *format, ...)
{
	char text[1000];
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	fprintf(stderr, "storm: thread %u, %s: %s (SEED=%llu, store %s)\n", t->number, t->doing,
		text, (unsigned long long)storm_seed, storm_dir);
	abort();
}

uint64_t storm_pick(struct storm_thread *t, uint64_t n)
{
	return test_random(&t->random) % n;
}

json_t *storm_document(struct storm_thread *t, struct vmimg_service *svc, enum vmimg_kind kind,
		       const char *name)
{
	char *json = NULL;
	json_t *doc;

	if (vmimg_describe(svc, kind, name, &t->err, &json) < 0)
		return NULL;
	doc = json_loads(json, 0, NULL);
	vmimg_free(json);
	return doc;
}

void storm_text(struct storm_thread *t, struct vmimg_service *svc, enum vmimg_kind kind,
		const char *name, const char *key, char ret[80])
{
	json_t *doc = storm_document(t, svc, kind | VMIMG_KIND_BRIEF, name);
	const char *text = json_string_value(json_object_get(doc, key));

	snprintf(ret, 80, "%s", text ? text : "");
	json_decref(doc);
}

/* --- reading --- */

/* One request, waited for. */
int32_t storm_transfer(struct storm_thread *t, struct vmimg_queue *queue, struct vmimg_disk *disk,
		       uint8_t op, void *buf, size_t len, uint64_t offset)
{
	struct iovec iov = {.iov_base = buf, .iov_len = len};
	struct vmimg_request request = {
		.disk = disk,
		.op = op,
		.iovcnt = len ? 1 : 0,
		.iov = len ? &iov : NULL,
		.offset = offset,
		.length = len,
	};
	struct vmimg_completion done = {0};

	if (vmimg_queue_submit(queue, &request, 1) != 1 ||
	    vmimg_queue_poll(queue, &done, 1, 60 * STORM_SECOND) != 1)
		storm_fail(t, "a request does not end");
	return done.result;
}

uint32_t storm_read_one(struct storm_thread *t, struct vmimg_queue *queue, struct vmimg_disk *disk,
			unsigned d)
{
	uint64_t size = vmimg_disk_size(disk);
	uint32_t version;
	uint8_t *buf;
	int r;

	if (size < STORM_SIZE || size > 8 * STORM_SIZE)
		storm_fail(t, "%s has %llu bytes", storm_disks[d], (unsigned long long)size);
	buf = aligned_alloc(STORM_BLOCK, size);
	r = storm_transfer(t, queue, disk, VMIMG_READ, buf, size, 0);
	if (r < 0)
		storm_fail(t, "%s: cannot be read: %s", storm_disks[d], strerror(-r));
	version = storm_version_of(d, buf, size);
	if (!version)
		storm_fail(t, "%s holds no version", storm_disks[d]);
	free(buf);
	return version;
}

/* All are attached before the first is read: what is attached stays, whatever the others do. */
uint32_t storm_read(struct storm_thread *t, struct vmimg_service *svc, const char *before)
{
	struct vmimg_disk *disks[STORM_DISKS] = {NULL};
	struct vmimg_queue *queue;
	uint32_t version = 0;
	unsigned n = 0;
	char name[200];

	if (vmimg_queue_create(svc, 16, &t->err, &queue) < 0)
		storm_fail(t, "no queue: %s", t->err.message);
	for (; n < STORM_DISKS; n++) {
		snprintf(name, sizeof(name), "%s%s", before, storm_disks[n]);
		if (vmimg_disk_attach(queue, name, VMIMG_ATTACH_READ_ONLY, &t->err, &disks[n]) < 0)
			break;
	}
	for (unsigned d = 0; n == STORM_DISKS && d < n; d++) {
		uint32_t v = storm_read_one(t, queue, disks[d], d);

		/* Names are given again: the caller knows whether it was one all the time. */
		version = d == 0 || v == version ? v : UINT32_MAX;
		if (version == UINT32_MAX)
			break;
	}
	while (n-- > 0)
		if (vmimg_disk_detach(disks[n]) < 0)
			storm_fail(t, "%s%s cannot be detached", before, storm_disks[n]);
	vmimg_queue_destroy(queue);
	if (version == UINT32_MAX && !strchr(before, '@'))
		storm_fail(t, "%s: not one version", before);
	return version;
}

uint32_t storm_read_snapshot(struct storm_thread *t, struct vmimg_service *svc, const char *name)
{
	char before[80], was[80], is[80];
	uint32_t version;

	snprintf(before, sizeof(before), "%s/", name);
	storm_text(t, svc, VMIMG_KIND_SNAPSHOT, name, "snapshot_id", was);
	if (!was[0])
		return 0;
	version = storm_read(t, svc, before);
	storm_text(t, svc, VMIMG_KIND_SNAPSHOT, name, "snapshot_id", is);
	if (!version || strcmp(was, is) != 0)
		return 0;
	if (version == UINT32_MAX)
		storm_fail(t, "%s holds more than one version", name);
	storm_note(t, was, version);
	return version;
}
