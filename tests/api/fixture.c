/* SPDX-License-Identifier: MIT */
/* fixture.c - see fixture.h. */
#include "tests/api/fixture.h"

#include <ftw.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct vmimg_service *svc;
struct vmimg_error err;
char scratch[256];
char store_dir[300];

/* --- the store --- */

static int remove_entry(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	(void)st;
	(void)type;
	(void)ftw;
	return remove(path);
}

void fixture_init(void)
{
	const char *tmp = getenv("TMPDIR");

	snprintf(scratch, sizeof(scratch), "%s/vmimg-api-XXXXXX", tmp ? tmp : "/tmp");
	cr_assert_not_null(mkdtemp(scratch), "%s", scratch);
	snprintf(store_dir, sizeof(store_dir), "%s/store", scratch);
	expect_ok(vmimg_store_init(store_dir, &err));
	expect_ok(vmimg_open(store_dir, NULL, &err, &svc));
}

void fixture_fini(void)
{
	cr_expect_eq(vmimg_close(svc), 0, "the test left something open");
	nftw(scratch, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

void fixture_close(void)
{
	expect_ok(vmimg_close(svc));
	svc = NULL;
}

void fixture_reopen(void)
{
	fixture_close();
	expect_ok(vmimg_open(store_dir, NULL, &err, &svc));
}

void make_disk(const char *disk, uint64_t size, bool independent)
{
	struct vmimg_disk_spec spec = {
		.size_of = sizeof(spec),
		.size = size,
		.independent = independent,
	};

	expect_ok(vmimg_disk_create(svc, disk, &spec, &err));
}

void make_vm(const char *vm, unsigned disks)
{
	char name[80];

	expect_ok(vmimg_vm_create(svc, vm, &err));
	for (unsigned i = 0; i < disks; i++) {
		snprintf(name, sizeof(name), "%s/d%u", vm, i);
		make_disk(name, 8 * MIB, false);
	}
}

void make_collection(const char *name, ...)
{
	const char *vm;
	va_list args;

	expect_ok(vmimg_define_collection(svc, name, NULL, 0, NULL, &err));
	va_start(args, name);
	while ((vm = va_arg(args, const char *)))
		expect_ok(vmimg_add_member(svc, vm, name, &err));
	va_end(args);
}

/* --- documents --- */

static json_t *parse(char *json)
{
	json_t *doc = json_loads(json, JSON_REJECT_DUPLICATES, NULL);

	cr_assert_not_null(doc, "no JSON: %s", json);
	vmimg_free(json);
	return doc;
}

json_t *describe(enum vmimg_kind kind, const char *name)
{
	char *json = NULL;

	expect_ok(vmimg_describe(svc, kind, name, &err, &json));
	return parse(json);
}

json_t *list(enum vmimg_kind kind, const char *filter)
{
	char *json = NULL;

	expect_ok(vmimg_list(svc, kind, filter, &err, &json));
	return parse(json);
}

size_t count_of(enum vmimg_kind kind)
{
	json_t *rows = list(kind, NULL);
	size_t count = json_array_size(rows);

	json_decref(rows);
	return count;
}

int64_t number(const json_t *object, const char *key)
{
	const json_t *value = json_object_get(object, key);

	cr_assert(json_is_integer(value), "%s is no number", key);
	return json_integer_value(value);
}

const char *text(const json_t *object, const char *key)
{
	const json_t *value = json_object_get(object, key);

	cr_assert(json_is_string(value), "%s is no string", key);
	return json_string_value(value);
}

/* --- requests --- */

struct vmimg_queue *new_queue(void)
{
	struct vmimg_queue *queue = NULL;

	expect_ok(vmimg_queue_create(svc, 16, &err, &queue));
	return queue;
}

struct vmimg_disk *attach(struct vmimg_queue *queue, const char *name, unsigned flags)
{
	struct vmimg_disk *disk = NULL;

	expect_ok(vmimg_disk_attach(queue, name, flags, &err, &disk));
	return disk;
}

static int complete_one(struct vmimg_queue *queue, const struct vmimg_request *request)
{
	struct vmimg_completion done = {0};

	cr_assert_eq(vmimg_queue_submit(queue, request, 1), 1);
	cr_assert_eq(vmimg_queue_poll(queue, &done, 1, 60 * SECOND), 1);
	cr_assert_eq(done.user_data, request->user_data);
	cr_assert_not(done.foreign);
	return done.result;
}

int transfer(struct vmimg_queue *queue, struct vmimg_disk *disk, uint8_t op, void *buf, size_t len,
	     uint64_t offset)
{
	struct iovec iov = {.iov_base = buf, .iov_len = len};
	struct vmimg_request request = {
		.disk = disk,
		.op = op,
		.iovcnt = 1,
		.iov = &iov,
		.offset = offset,
		.length = len,
		.user_data = 0x100 + offset,
	};

	return complete_one(queue, &request);
}

int flush(struct vmimg_queue *queue, struct vmimg_disk *disk)
{
	struct vmimg_request request = {.disk = disk, .op = VMIMG_FLUSH, .user_data = 2};

	return complete_one(queue, &request);
}

void fill(const char *name, uint64_t offset, size_t len, uint8_t byte)
{
	struct vmimg_queue *queue = new_queue();
	struct vmimg_disk *disk = attach(queue, name, 0);
	void *buf = malloc(len);

	memset(buf, byte, len);
	cr_assert_eq(transfer(queue, disk, VMIMG_WRITE, buf, len, offset), 0);
	free(buf);
	cr_assert_eq(vmimg_disk_detach(disk), 0);
	cr_assert_eq(vmimg_queue_destroy(queue), 0);
}

void expect_filled(const char *name, uint64_t offset, size_t len, uint8_t byte)
{
	struct vmimg_queue *queue = new_queue();
	struct vmimg_disk *disk = attach(queue, name, VMIMG_ATTACH_READ_ONLY);
	uint8_t *buf = malloc(len);
	size_t same = 0;

	memset(buf, ~byte, len);
	cr_assert_eq(transfer(queue, disk, VMIMG_READ, buf, len, offset), 0);
	while (same < len && buf[same] == byte)
		same++;
	cr_assert_eq(same, len, "%s: byte %zu is %02x, expected %02x", name, same, buf[same], byte);
	free(buf);
	cr_assert_eq(vmimg_disk_detach(disk), 0);
	cr_assert_eq(vmimg_queue_destroy(queue), 0);
}

/* --- a guest that has stopped --- */

void stuck_begin(struct stuck *stuck, const char *disk)
{
	struct vmimg_request request;

	stuck->queue = new_queue();
	stuck->disk = attach(stuck->queue, disk, 0);
	stuck->iov.iov_len = 4096;
	stuck->iov.iov_base = calloc(1, 4096);
	request = (struct vmimg_request){
		.disk = stuck->disk,
		.op = VMIMG_WRITE,
		.iovcnt = 1,
		.iov = &stuck->iov,
		.length = 4096,
		.user_data = 4,
	};
	cr_assert_eq(vmimg_queue_submit(stuck->queue, &request, 1), 1);
}

void stuck_end(struct stuck *stuck)
{
	struct vmimg_completion done;

	cr_assert_eq(vmimg_queue_poll(stuck->queue, &done, 1, 60 * SECOND), 1);
	cr_assert_eq(done.result, 0);
	free(stuck->iov.iov_base);
	cr_assert_eq(vmimg_disk_detach(stuck->disk), 0);
	cr_assert_eq(vmimg_queue_destroy(stuck->queue), 0);
}

/* --- creates --- */

uint32_t create(const char *collection, const char *name)
{
	struct vmimg_ref result = {0};
	struct vmimg_job *job = NULL;
	uint32_t code;

	snprintf(result.name, sizeof(result.name), "%s", name ? name : "");
	code = vmimg_create_snapshot(svc, collection, "{\"Synchronous\": true}",
				     VMIMG_SNAPSHOT_STANDARD, &result, &job, &err);
	vmimg_job_put(job);
	return code;
}

struct vmimg_job *start_job(const char *collection, const char *name)
{
	struct vmimg_ref result = {0};
	struct vmimg_job *job = NULL;
	uint32_t code;

	snprintf(result.name, sizeof(result.name), "%s", name);
	code = vmimg_create_snapshot(svc, collection, "{\"Timeout\": 60000}",
				     VMIMG_SNAPSHOT_STANDARD, &result, &job, &err);
	cr_assert_eq(code, VMIMG_JOB_STARTED, "%u: %s", code, err.message);
	return job;
}

void expect_state(struct vmimg_job *job, uint16_t state)
{
	struct vmimg_job_info info;

	cr_assert_eq(vmimg_job_wait(job, 60 * SECOND), 0);
	vmimg_job_info(job, &info);
	cr_expect_eq(info.job_state, state, "state %u, expected %u: %s", info.job_state, state,
		     info.error_description);
}
