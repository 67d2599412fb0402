/* SPDX-License-Identifier: MIT */
/* queue.c - the block path's contract: BQ-1 to BQ-15. */
#include <errno.h>
#include <liburing.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tests/api/fixture.h"

TestSuite(api_queue, .init = fixture_init, .fini = fixture_fini, .timeout = 60);

static uint8_t page[4096];
static struct iovec page_iov = {page, sizeof(page)};

static struct vmimg_request page_request(struct vmimg_disk *disk, uint8_t op, uint64_t offset)
{
	return (struct vmimg_request){
		.disk = disk,
		.op = op,
		.iovcnt = 1,
		.iov = &page_iov,
		.offset = offset,
		.length = sizeof(page),
		.user_data = 2 * offset + 2,
	};
}

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * SECOND + (uint64_t)ts.tv_nsec;
}

static int result_of(struct vmimg_queue *queue, struct vmimg_request request)
{
	struct vmimg_completion done = {0};

	cr_assert_eq(vmimg_queue_submit(queue, &request, 1), 1);
	cr_assert_eq(vmimg_queue_poll(queue, &done, 1, 30 * SECOND), 1);
	cr_expect_eq(done.user_data, request.user_data);
	return done.result;
}

/* BQ-1 */
Test(api_queue, depth_is_bounded)
{
	struct vmimg_queue *queue = NULL;

	expect_error(vmimg_queue_create(svc, 0, &err, &queue), -EINVAL);
	expect_error(vmimg_queue_create(svc, 4097, &err, &queue), -EINVAL);
	expect_error(vmimg_queue_create(NULL, 1, &err, &queue), -EINVAL);
	expect_error(vmimg_queue_create(svc, 1, &err, NULL), -EINVAL);
	cr_expect_null(queue);
	expect_ok(vmimg_queue_create(svc, 4096, &err, &queue));
	cr_expect_geq(vmimg_queue_fd(queue), 0);
	cr_expect_not_null(vmimg_queue_ring(queue));
	cr_expect_eq(vmimg_queue_destroy(queue), 0);
	cr_expect_eq(vmimg_queue_destroy(NULL), 0);
}

/* BQ-3 */
Test(api_queue, one_writer_any_number_of_readers)
{
	struct vmimg_queue *queue = new_queue();
	struct vmimg_disk *disk, *other = NULL, *first, *second;

	make_vm("web", 1);
	make_collection("prod", "web", NULL);
	expect_ok(create("prod", "s1"));
	disk = attach(queue, "web/d0", 0);
	expect_error(vmimg_disk_attach(queue, "web/d0", 0, &err, &other), -EBUSY);
	expect_error(vmimg_disk_attach(queue, "prod@s1/web/d0", 0, &err, &other), -EROFS);
	expect_error(vmimg_disk_attach(queue, "web/gone", 0, &err, &other), -ENOENT);
	expect_error(vmimg_disk_attach(queue, "prod@gone/web/d0", VMIMG_ATTACH_READ_ONLY, &err,
				       &other),
		     -ENOENT);
	expect_error(vmimg_disk_attach(queue, "web", 0, &err, &other), -EINVAL);
	expect_error(vmimg_disk_attach(queue, "web/d0", 2, &err, &other), -EINVAL);
	expect_error(vmimg_disk_attach(NULL, "web/d0", 0, &err, &other), -EINVAL);
	expect_error(vmimg_disk_attach(queue, NULL, 0, &err, &other), -EINVAL);
	cr_expect_null(other);
	first = attach(queue, "prod@s1/web/d0", VMIMG_ATTACH_READ_ONLY);
	second = attach(queue, "prod@s1/web/d0", VMIMG_ATTACH_READ_ONLY);
	cr_expect_eq(result_of(queue, page_request(first, VMIMG_WRITE, 0)), -EROFS);
	cr_expect_eq(result_of(queue, page_request(second, VMIMG_READ, 0)), 0);
	cr_expect_eq(vmimg_disk_size(disk), 8 * MIB);
	cr_expect_eq(vmimg_disk_detach(first), 0);
	cr_expect_eq(vmimg_disk_detach(second), 0);
	cr_expect_eq(vmimg_disk_detach(disk), 0);
	cr_expect_eq(vmimg_disk_detach(NULL), -EINVAL);
	cr_expect_eq(vmimg_queue_destroy(queue), 0);
}

/* BQ-17, BQ-20, BQ-21 */
Test(api_queue, extents_tell_what_changed_since_a_snapshot)
{
	struct vmimg_disk_extent extents[4] __attribute__((aligned(8)));
	struct iovec iov = {extents, sizeof(extents)};
	struct vmimg_queue *queue = new_queue();
	struct vmimg_request request = {.op = VMIMG_EXTENTS,
					.iovcnt = 1,
					.iov = &iov,
					.length = 8 * MIB};
	struct vmimg_disk *disk;
	uint32_t frozen = 9;

	make_vm("web", 1);
	make_collection("prod", "web", NULL);
	fill("web/d0", MIB, MIB, 1);
	expect_ok(create("prod", "s1"));
	disk = attach(queue, "web/d0", 0);
	cr_expect_eq(vmimg_disk_block_size(disk), 4096u);
	cr_expect_eq(vmimg_disk_block_size(NULL), 0u);
	cr_expect_eq(vmimg_disk_layers(disk), 1u);
	expect_ok(vmimg_disk_frozen_layer(disk, "prod@s1", &err, &frozen));
	cr_expect_eq(frozen, 0u);
	expect_error(vmimg_disk_frozen_layer(disk, "prod@s2", &err, &frozen), -ENOENT);
	expect_error(vmimg_disk_frozen_layer(disk, "prod", &err, &frozen), -EINVAL);
	expect_error(vmimg_disk_frozen_layer(disk, NULL, &err, &frozen), -EINVAL);
	expect_error(vmimg_disk_frozen_layer(NULL, "prod@s1", &err, &frozen), -EINVAL);
	expect_error(vmimg_disk_frozen_layer(disk, "prod@s1", &err, NULL), -EINVAL);
	cr_assert_eq(transfer(queue, disk, VMIMG_WRITE, page, sizeof(page), 0), 0);
	request.disk = disk;
	cr_assert_eq(result_of(queue, request), 4);
	cr_expect(extents[0].length == 4096 && extents[0].state == VMIMG_EXTENT_DATA &&
		  extents[0].layer == frozen + 1);
	cr_expect(extents[1].length == MIB - 4096 && extents[1].state == VMIMG_EXTENT_HOLE &&
		  extents[1].layer == 0);
	cr_expect(extents[2].length == MIB && extents[2].state == VMIMG_EXTENT_DATA &&
		  extents[2].layer == 0);
	request.flags = VMIMG_FUA;
	cr_expect_eq(vmimg_queue_submit(queue, &request, 1), -EINVAL);
	request.flags = 0;
	request.length = 0;
	cr_expect_eq(vmimg_queue_submit(queue, &request, 1), -EINVAL);
	cr_expect_eq(vmimg_disk_detach(disk), 0);
	cr_expect_eq(vmimg_queue_destroy(queue), 0);
}

/* BQ-5 */
Test(api_queue, malformed_requests_are_refused)
{
	struct vmimg_queue *queue = new_queue();
	struct vmimg_request good, bad[12];
	struct vmimg_completion done[4];
	struct vmimg_disk *disk;
	unsigned n = 0;

	make_vm("web", 1);
	disk = attach(queue, "web/d0", 0);
	good = page_request(disk, VMIMG_READ, 0);
	for (unsigned i = 0; i < 12; i++)
		bad[i] = good;
	bad[n++].disk = NULL;
	bad[n++].op = 6;
	bad[n++].flags = 2;
	bad[n++].flags = VMIMG_FUA; /* on a read */
	bad[n++].reserved = 1;
	bad[n++].iovcnt = 0;
	bad[n++].iovcnt = 1025;
	bad[n++].iov = NULL;
	bad[n++].length = 4095;
	bad[n++].length = UINT64_MAX;
	bad[n++].op = VMIMG_FLUSH; /* with a length */
	bad[n] = (struct vmimg_request){.disk = disk, .op = VMIMG_FLUSH, .flags = VMIMG_FUA};
	for (unsigned i = 0; i < 12; i++)
		cr_expect_eq(vmimg_queue_submit(queue, &bad[i], 1), -EINVAL, "request %u", i);
	/* A malformed later one ends the batch. */
	bad[0] = good;
	bad[1] = good;
	for (unsigned i = 2; i < 12; i++) {
		bad[2] = bad[i];
		cr_expect_eq(vmimg_queue_submit(queue, bad, 3), 2, "request %u", i);
		cr_expect_eq(vmimg_queue_poll(queue, done, 4, SECOND), 2);
		if (vmimg_queue_poll(queue, done, 4, 0))
			cr_expect_fail("request %u came through", i);
	}
	cr_expect_eq(vmimg_queue_submit(queue, &good, 0), 0);
	cr_expect_eq(vmimg_queue_submit(queue, NULL, 1), -EINVAL);
	cr_expect_eq(vmimg_queue_submit(NULL, &good, 1), -EINVAL);
	cr_expect_eq(vmimg_queue_poll(queue, NULL, 1, 0), -EINVAL);
	cr_expect_eq(vmimg_queue_poll(queue, done, 0, 0), -EINVAL);
	cr_expect_eq(vmimg_queue_poll(NULL, done, 1, 0), -EINVAL);
	cr_expect_eq(vmimg_disk_detach(disk), 0);
	cr_expect_eq(vmimg_queue_destroy(queue), 0);
}

/* BQ-6 */
Test(api_queue, ranges_past_the_end_complete_with_einval)
{
	struct vmimg_queue *queue = new_queue();
	static const uint64_t bad[] = {8 * MIB, 8 * MIB - 4095, UINT64_MAX, UINT64_MAX - 4095,
				       1ull << 60};
	struct vmimg_request request;
	struct vmimg_disk *disk;

	make_vm("web", 1);
	disk = attach(queue, "web/d0", 0);
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		for (uint8_t op = VMIMG_READ; op <= VMIMG_DISCARD; op++)
			if (op != VMIMG_FLUSH)
				cr_expect_eq(result_of(queue, page_request(disk, op, bad[i])),
					     -EINVAL, "op %u at %llx", op,
					     (unsigned long long)bad[i]);
	for (uint8_t op = VMIMG_READ; op <= VMIMG_DISCARD; op++) {
		struct iovec none = {page, 0};

		request = page_request(disk, op, 8 * MIB);
		request.length = 0;
		request.iov = &none;
		cr_expect_eq(result_of(queue, request), 0, "length 0 at the end, op %u", op);
	}
	request = page_request(disk, VMIMG_WRITE_ZEROES, 512);
	request.length = UINT64_MAX;
	cr_expect_eq(result_of(queue, request), -EINVAL, "wraps");
	cr_expect_eq(vmimg_disk_detach(disk), 0);
	cr_expect_eq(vmimg_queue_destroy(queue), 0);
}

/* BQ-7 */
Test(api_queue, every_request_completes_once_and_depth_is_respected)
{
	struct vmimg_queue *queue = NULL;
	struct vmimg_request requests[20];
	struct vmimg_completion done[20];
	unsigned seen[20] = {0}, total = 0;
	struct vmimg_disk *disk;

	make_vm("web", 1);
	expect_ok(vmimg_queue_create(svc, 8, &err, &queue));
	disk = attach(queue, "web/d0", 0);
	for (unsigned i = 0; i < 20; i++) {
		requests[i] = page_request(disk, VMIMG_WRITE, 4096 * i);
		requests[i].user_data = i * 2;
	}
	cr_expect_eq(vmimg_queue_submit(queue, requests, 20), 8);
	cr_expect_eq(vmimg_queue_submit(queue, requests + 8, 12), -EAGAIN);
	for (unsigned next = 8; total < 20;) {
		int n = vmimg_queue_poll(queue, done, 20, SECOND);

		cr_assert_gt(n, 0);
		for (int i = 0; i < n; i++) {
			cr_expect_eq(done[i].result, 0);
			cr_assert_lt(done[i].user_data, 40);
			seen[done[i].user_data / 2]++;
		}
		total += (unsigned)n;
		if (next < 20) {
			n = vmimg_queue_submit(queue, requests + next, 20 - next);
			cr_assert_gt(n, 0);
			next += (unsigned)n;
		}
	}
	for (unsigned i = 0; i < 20; i++)
		cr_expect_eq(seen[i], 1, "request %u: %u times", i, seen[i]);
	cr_expect_eq(vmimg_queue_poll(queue, done, 20, 1000000), 0);
	cr_expect_eq(vmimg_disk_detach(disk), 0);
	cr_expect_eq(vmimg_queue_destroy(queue), 0);
}

/* BQ-16 */
Test(api_queue, prepared_requests_start_with_the_next_submit_or_poll)
{
	struct vmimg_request requests[16], bad;
	struct vmimg_completion done[16];
	struct vmimg_queue *queue = NULL;
	struct vmimg_disk *disk;
	unsigned total = 0;

	make_vm("web", 1);
	expect_ok(vmimg_queue_create(svc, 8, &err, &queue));
	disk = attach(queue, "web/d0", 0);
	for (unsigned i = 0; i < 16; i++)
		requests[i] = page_request(disk, VMIMG_WRITE, 4096 * i);
	bad = requests[0];
	bad.reserved = 1;
	cr_expect_eq(vmimg_queue_prepare(queue, &bad, 1), -EINVAL);
	cr_expect_eq(vmimg_queue_prepare(NULL, requests, 1), -EINVAL);
	cr_expect_eq(vmimg_queue_prepare(queue, requests, 4), 4);
	cr_expect_eq(vmimg_queue_prepare(queue, requests + 4, 12), 4);
	cr_expect_eq(vmimg_queue_prepare(queue, requests + 8, 8), -EAGAIN);
	while (total < 8) {
		int n = vmimg_queue_poll(queue, done, 16, 10 * SECOND);

		cr_assert_gt(n, 0, "poll starts them");
		total += (unsigned)n;
	}
	cr_expect_eq(vmimg_queue_prepare(queue, requests, 1), 1);
	cr_expect_eq(vmimg_queue_submit(queue, NULL, 0), 0);
	cr_expect_eq(vmimg_queue_poll(queue, done, 16, 10 * SECOND), 1);
	cr_expect_eq(done[0].user_data, requests[0].user_data);
	cr_expect_eq(vmimg_disk_detach(disk), 0);
	cr_expect_eq(vmimg_queue_destroy(queue), 0);
}

/* Waits on the fd alone, and looks only when it says so: the number of completions there are. */
static int polled(struct vmimg_queue *queue, struct vmimg_completion *done, unsigned max)
{
	struct pollfd fd = {.fd = vmimg_queue_fd(queue), .events = POLLIN};
	uint64_t deadline = now_ns() + 5 * SECOND;
	int n = 0;

	while (n == 0) {
		cr_assert_eq(poll(&fd, 1, 1000), 1, "the fd says nothing");
		cr_assert_lt(now_ns(), deadline, "the fd speaks too late");
		n = vmimg_queue_poll(queue, done, max, 0);
	}
	return n;
}

/* BQ-2: completions of the device, of what needs none, and those that did not fit into one poll */
Test(api_queue, the_fd_tells_of_completions)
{
	struct vmimg_queue *queue = new_queue();
	struct vmimg_completion done[8];
	struct vmimg_request requests[6];
	struct vmimg_disk *disk;
	uint64_t start = now_ns();

	make_vm("web", 1);
	make_collection("prod", "web", NULL);
	expect_ok(create("prod", "s1"));
	disk = attach(queue, "web/d0", 0);
	cr_assert_geq(vmimg_queue_fd(queue), 0);
	while (vmimg_queue_poll(queue, done, 8, 0) > 0)
		continue;
	for (unsigned round = 0; round < 20; round++) {
		requests[0] = page_request(disk, VMIMG_WRITE, 4096 * round);
		cr_assert_eq(vmimg_queue_submit(queue, requests, 1), 1);
		cr_expect_eq(polled(queue, done, 8), 1);
		cr_expect_eq(done[0].result, 0);
		requests[0] = page_request(disk, VMIMG_READ, 16 * MIB); /* fails without any I/O */
		cr_assert_eq(vmimg_queue_submit(queue, requests, 1), 1);
		cr_expect_eq(polled(queue, done, 8), 1);
		cr_expect_eq(done[0].result, -EINVAL);
	}
	for (unsigned i = 0; i < 6; i++)
		requests[i] = page_request(disk, VMIMG_READ, 4096 * i);
	cr_assert_eq(vmimg_queue_submit(queue, requests, 6), 6);
	for (unsigned i = 0; i < 6; i++)
		cr_expect_eq(polled(queue, done, 1), 1);
	cr_expect_lt(now_ns() - start, 5 * SECOND);
	cr_expect_eq(vmimg_disk_detach(disk), 0);
	cr_expect_eq(vmimg_queue_destroy(queue), 0);
}

/* BQ-10 */
Test(api_queue, zeroes_and_discard_read_as_zeros)
{
	struct vmimg_queue *queue = new_queue();
	uint8_t *buf = malloc(MIB);
	struct vmimg_disk *disk;

	make_vm("web", 1);
	make_collection("prod", "web", NULL);
	for (int round = 0; round < 2; round++) { /* a raw head, then an overlay */
		disk = attach(queue, "web/d0", 0);
		memset(buf, 0xee, MIB);
		cr_assert_eq(transfer(queue, disk, VMIMG_WRITE, buf, MIB, 0), 0);
		cr_expect_eq(transfer(queue, disk, VMIMG_WRITE_ZEROES, buf, 10000, 5000), 0);
		cr_expect_eq(transfer(queue, disk, VMIMG_DISCARD, buf, 65536, 131072), 0);
		cr_expect_eq(flush(queue, disk), 0);
		cr_assert_eq(transfer(queue, disk, VMIMG_READ, buf, MIB, 0), 0);
		for (size_t i = 0; i < MIB; i++) {
			bool zero = (i >= 5000 && i < 15000) || (i >= 131072 && i < 196608);

			cr_assert_eq(buf[i], zero ? 0 : 0xee, "byte %zu", i);
		}
		cr_expect_eq(vmimg_disk_detach(disk), 0);
		if (round == 0)
			expect_ok(create("prod", "s1"));
	}
	expect_filled("web/d0", 5000, 10000, 0);
	expect_filled("web/d0", 131072, 65536, 0);
	free(buf);
	cr_expect_eq(vmimg_queue_destroy(queue), 0);
}

/* BQ-9 */
Test(api_queue, fua_and_many_buffers)
{
	struct vmimg_queue *queue = new_queue();
	struct vmimg_request request;
	struct iovec iov[1024];
	struct vmimg_disk *disk;
	uint8_t *buf = malloc(1024 * 512);

	make_vm("web", 1);
	make_collection("prod", "web", NULL);
	expect_ok(create("prod", "s1"));
	disk = attach(queue, "web/d0", 0);
	for (unsigned i = 0; i < 1024; i++)
		iov[i] = (struct iovec){buf + 512 * i, 512};
	memset(buf, 0x3c, 1024 * 512);
	request = page_request(disk, VMIMG_WRITE, 100 * 512);
	request.flags = VMIMG_FUA;
	request.iov = iov;
	request.iovcnt = 1024;
	request.length = 1024 * 512;
	cr_expect_eq(result_of(queue, request), 0);
	request.flags = 0;
	request.op = VMIMG_READ;
	memset(buf, 0, 1024 * 512);
	cr_expect_eq(result_of(queue, request), 0);
	for (unsigned i = 0; i < 1024 * 512; i++)
		cr_assert_eq(buf[i], 0x3c);
	cr_expect_eq(vmimg_disk_detach(disk), 0);
	cr_expect_eq(vmimg_queue_destroy(queue), 0);
	free(buf);
}

/* --- another thread's disk (BQ-12) --- */

struct owner {
	struct vmimg_disk *disk;
	pthread_barrier_t ready, over;
};

static void *own(void *arg)
{
	struct owner *owner = arg;
	struct vmimg_queue *queue = new_queue();
	struct vmimg_completion done;

	owner->disk = attach(queue, "web/d0", 0);
	pthread_barrier_wait(&owner->ready);
	/* It polls although it asked for nothing: others' requests go through here (BQ-2). */
	for (int i = 0; i < 2000; i++)
		cr_assert_eq(vmimg_queue_poll(queue, &done, 1, 1000000), 0);
	pthread_barrier_wait(&owner->over);
	cr_expect_eq(vmimg_disk_detach(owner->disk), 0);
	cr_expect_eq(vmimg_queue_destroy(queue), 0);
	return NULL;
}

/* BQ-12 */
Test(api_queue, requests_for_another_queues_disk_are_forwarded)
{
	struct vmimg_queue *queue = new_queue();
	struct owner owner;
	pthread_t thread;

	make_vm("web", 1);
	pthread_barrier_init(&owner.ready, NULL, 2);
	pthread_barrier_init(&owner.over, NULL, 2);
	cr_assert_eq(pthread_create(&thread, NULL, own, &owner), 0);
	pthread_barrier_wait(&owner.ready);
	memset(page, 0x42, sizeof(page));
	for (unsigned i = 0; i < 50; i++)
		cr_expect_eq(result_of(queue, page_request(owner.disk, VMIMG_WRITE, 4096 * i)), 0);
	memset(page, 0, sizeof(page));
	cr_expect_eq(result_of(queue, page_request(owner.disk, VMIMG_READ, 4096 * 49)), 0);
	cr_expect_eq(page[0], 0x42);
	cr_expect_eq(page[4095], 0x42);
	cr_expect_eq(flush(queue, owner.disk), 0);
	pthread_barrier_wait(&owner.over);
	pthread_join(thread, NULL);
	cr_expect_eq(vmimg_queue_destroy(queue), 0);
}

/* BQ-13 */
Test(api_queue, the_ring_carries_the_callers_operations)
{
	struct vmimg_queue *queue = new_queue();
	struct io_uring_sqe *sqe;
	struct vmimg_completion done[2];
	struct vmimg_request request;
	struct vmimg_disk *disk;
	unsigned foreign = 0, own_ones = 0;

	make_vm("web", 1);
	disk = attach(queue, "web/d0", 0);
	sqe = io_uring_get_sqe(vmimg_queue_ring(queue));
	cr_assert_not_null(sqe);
	io_uring_prep_nop(sqe);
	io_uring_sqe_set_data64(sqe, 0xfeedfacefeedfacf);
	request = page_request(disk, VMIMG_READ, 0);
	cr_assert_eq(vmimg_queue_submit(queue, &request, 1), 1);
	while (foreign + own_ones < 2) {
		int n = vmimg_queue_poll(queue, done, 2, 10 * SECOND);

		cr_assert_gt(n, 0);
		for (int i = 0; i < n; i++) {
			if (done[i].foreign) {
				foreign++;
				cr_expect_eq(done[i].user_data, 0xfeedfacefeedfacf);
				cr_expect_eq(done[i].result, 0);
			} else {
				own_ones++;
				cr_expect_eq(done[i].user_data, request.user_data);
			}
		}
	}
	cr_expect_eq(foreign, 1);
	cr_expect_eq(vmimg_disk_detach(disk), 0);
	cr_expect_eq(vmimg_queue_destroy(queue), 0);
}

/* BQ-14, BQ-15 */
Test(api_queue, what_is_in_use_is_not_torn_down)
{
	struct vmimg_queue *queue = new_queue();
	struct vmimg_completion done;
	struct vmimg_request request;
	struct vmimg_disk *disk;

	make_vm("web", 1);
	disk = attach(queue, "web/d0", 0);
	cr_expect_eq(vmimg_queue_destroy(queue), -EBUSY);
	cr_expect_eq(vmimg_close(svc), -EBUSY);
	request = page_request(disk, VMIMG_WRITE, 0);
	cr_assert_eq(vmimg_queue_submit(queue, &request, 1), 1);
	cr_expect_eq(vmimg_disk_detach(disk), -EBUSY);
	cr_expect_eq(vmimg_queue_poll(queue, &done, 1, 10 * SECOND), 1);
	cr_expect_eq(vmimg_disk_detach(disk), 0);
	cr_expect_eq(vmimg_close(svc), -EBUSY, "a queue is left");
	cr_expect_eq(vmimg_queue_destroy(queue), 0);
}

/* The memory of the map follows what is written (M2). */
Test(api_queue, memory_is_told)
{
	struct vmimg_queue *queue = new_queue();
	uint64_t bytes = 0, blocks = 0, before;
	struct vmimg_disk *disk;

	make_vm("web", 1);
	make_collection("prod", "web", NULL);
	expect_ok(create("prod", "s1"));
	disk = attach(queue, "web/d0", 0);
	vmimg_disk_memory(disk, &before, &blocks);
	cr_expect_eq(blocks, 0);
	for (unsigned i = 0; i < 100; i++)
		cr_assert_eq(result_of(queue, page_request(disk, VMIMG_WRITE, 16384 * i)), 0);
	vmimg_disk_memory(disk, &bytes, &blocks);
	cr_expect_eq(blocks, 100);
	cr_expect_geq(bytes, before);
	vmimg_disk_memory(disk, NULL, NULL);
	cr_expect_eq(vmimg_disk_detach(disk), 0);
	cr_expect_eq(vmimg_queue_destroy(queue), 0);
}
