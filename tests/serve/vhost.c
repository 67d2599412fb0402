/* SPDX-License-Identifier: MIT */
/*
 * vhost.c - disks over vhost-user-blk, as a driver sees them: a real server in a process of its own and
 * the tests' driver here.
 */
#include "tests/serve/vhost_driver.h"
#include "tests/serve/vhost_server.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "tests/lib/random.h"

#define DISK ((uint64_t)32 << 20)

static struct vd dev;

static void start(unsigned disks)
{
	vs_make(disks, DISK);
	vs_start();
}

static void finish(void)
{
	vd_fini(&dev);
	cr_expect_eq(vs_stop(), 0, "the server ends well");
	cr_expect_eq(vs_run("check"), 0);
	vs_remove();
}

TestSuite(vhost, .fini = vs_remove, .timeout = 300);

/* --- a load that knows what it wrote --- */

struct load {
	uint8_t *model;
	uint64_t rng;
	uint8_t busy[DISK / 4096]; /* blocks with a request in flight: 1 a read, 2 a change */
	uint64_t done[16];         /* by type */
	unsigned resets;
};

static bool claim(struct load *l, uint64_t offset, uint64_t len, bool change, bool take)
{
	for (uint64_t b = offset / 4096; b <= (offset + len - 1) / 4096; b++) {
		if (take && (l->busy[b] == 255 || (change && l->busy[b])))
			return false;
		if (!take)
			l->busy[b] = change ? 0 : (uint8_t)(l->busy[b] - 1);
	}
	for (uint64_t b = offset / 4096; take && b <= (offset + len - 1) / 4096; b++)
		l->busy[b] = change ? 255 : (uint8_t)(l->busy[b] + 1);
	return true;
}

static void start_one(struct load *l, unsigned queue)
{
	static const uint8_t ops[] = {VIRTIO_BLK_T_OUT,     VIRTIO_BLK_T_OUT,
				      VIRTIO_BLK_T_IN,      VIRTIO_BLK_T_IN,
				      VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES,
				      VIRTIO_BLK_T_FLUSH};
	uint8_t op = ops[test_random(&l->rng) % sizeof(ops)];
	uint64_t sectors = 1 + test_random(&l->rng) % (test_random(&l->rng) % 8 ? 32 : 512);
	uint64_t len = sectors * 512;
	uint64_t offset = test_random(&l->rng) % ((DISK - len) / 512 + 1) * 512;
	unsigned segments = 1 + (unsigned)(test_random(&l->rng) % VD_SEGMENTS);
	struct vd_slot *slot;

	if (test_random(&l->rng) % 2) {
		offset &= ~UINT64_C(4095);
		len = (len + 4095) & ~UINT64_C(4095);
	}
	if (op == VIRTIO_BLK_T_FLUSH)
		len = offset = 0;
	if (offset + len > DISK || (len && !claim(l, offset, len, op != VIRTIO_BLK_T_IN, true)))
		return;
	slot = vd_slot_get(&dev, queue);
	if (!slot) {
		if (len)
			claim(l, offset, len, op != VIRTIO_BLK_T_IN, false);
		return;
	}
	if (op == VIRTIO_BLK_T_OUT)
		for (uint64_t i = 0; i < len; i += 8) {
			uint64_t v = test_random(&l->rng);

			memcpy(slot->data + i, &v, 8);
		}
	vd_submit(&dev, queue, slot, op, offset, len, segments);
}

static void end_one(struct load *l, struct vd_queue *q, struct vd_slot *slot)
{
	cr_assert_eq(slot->status, VIRTIO_BLK_S_OK, "type %u at %llu: status %u", slot->op,
		     (unsigned long long)slot->offset, slot->status);
	if (slot->op == VIRTIO_BLK_T_OUT)
		memcpy(l->model + slot->offset, slot->data, slot->len);
	else if (slot->op == VIRTIO_BLK_T_IN)
		cr_assert_arr_eq(l->model + slot->offset, slot->data, slot->len,
				 "what was written is read, at %llu",
				 (unsigned long long)slot->offset);
	else if (slot->op != VIRTIO_BLK_T_FLUSH)
		memset(l->model + slot->offset, 0, slot->len);
	if (slot->len)
		claim(l, slot->offset, slot->len, slot->op != VIRTIO_BLK_T_IN, false);
	l->done[slot->op]++;
	slot->busy = slot->done = false;
	q->busy--;
}

static unsigned in_flight(void)
{
	unsigned n = 0;

	for (unsigned i = 0; i < dev.queues; i++)
		n += dev.q[i].busy;
	return n;
}

/* One step of the load: -ECONNRESET when the server has gone. */
static int step(struct load *l, bool more)
{
	int r;

	for (unsigned i = 0; i < dev.queues; i++) {
		for (unsigned k = 0; more && k < 4 && dev.q[i].busy < VD_SLOTS; k++)
			start_one(l, i);
		vd_kick(&dev, i);
	}
	r = vd_wait(&dev, 5000);
	if (r < 0)
		return r;
	cr_assert(r > 0 || !in_flight(), "nothing ends although %u are in flight", in_flight());
	for (unsigned i = 0; i < dev.queues; i++)
		for (unsigned s = 0; s < VD_SLOTS; s++)
			if (dev.q[i].slots[s].busy && dev.q[i].slots[s].done)
				end_one(l, &dev.q[i], &dev.q[i].slots[s]);
	return 0;
}

static struct load *load_create(uint64_t seed)
{
	struct load *l = calloc(1, sizeof(*l));

	l->model = calloc(1, DISK);
	l->rng = seed;
	return l;
}

static void load_verify(struct load *l)
{
	uint8_t *buf = malloc(VD_SLOT_MAX);

	while (in_flight())
		cr_assert_eq(step(l, false), 0);
	for (uint64_t at = 0; at < DISK; at += VD_SLOT_MAX) {
		cr_assert_eq(vd_do(&dev, 0, VIRTIO_BLK_T_IN, at, buf, VD_SLOT_MAX), 0);
		cr_assert_arr_eq(buf, l->model + at, VD_SLOT_MAX, "at %llu",
				 (unsigned long long)at);
	}
	free(buf);
	free(l->model);
	free(l);
}

static void run_load(unsigned queues, uint64_t without, unsigned steps)
{
	struct load *l = load_create(queues * 7919 + without);

	start(1);
	cr_assert_eq(vd_init(&dev, vs_socket(0), queues, 256), 0);
	cr_assert_eq(vd_connect(&dev, without), 0);
	for (unsigned i = 0; i < steps; i++)
		cr_assert_eq(step(l, true), 0);
	for (unsigned op = 0; op < 14; op++)
		cr_expect(l->done[op] > 0 || !(0x2813 >> op & 1), "type %u was never done", op);
	load_verify(l);
	finish();
}

/* VU-46, VU-62, VU-63, VU-66 */
Test(vhost, four_queues_with_indirect_chains_and_event_idx_read_what_was_written)
{
	run_load(4, 0, 3000);
}

Test(vhost, one_queue_with_direct_chains_and_flags_reads_what_was_written)
{
	run_load(1, VU_BIT(VIRTIO_RING_F_INDIRECT_DESC) | VU_BIT(VIRTIO_RING_F_EVENT_IDX), 3000);
}

Test(vhost, eight_queues_with_direct_chains_and_event_idx_read_what_was_written)
{
	run_load(8, VU_BIT(VIRTIO_RING_F_INDIRECT_DESC), 1000);
}

/* VU-64: without FLUSH the driver's writes go through. */
Test(vhost, a_driver_that_cannot_flush_reads_what_was_written)
{
	run_load(2, VU_BIT(VIRTIO_BLK_F_FLUSH) | VU_BIT(VIRTIO_RING_F_EVENT_IDX), 300);
}

/* --- death and end of the server --- */

/* P4, VU-71, VU-72 */
Test(vhost, nothing_is_lost_and_everything_ends_when_the_server_is_killed)
{
	struct load *l = load_create(42);

	start(1);
	cr_assert_eq(vd_init(&dev, vs_socket(0), 4, 256), 0);
	dev.inflight = true;
	cr_assert_eq(vd_connect(&dev, 0), 0);
	for (unsigned round = 0; round < 6; round++) {
		unsigned steps = 20 + (unsigned)(test_random(&l->rng) % 200), left;

		for (unsigned i = 0; i < steps; i++)
			cr_assert_eq(step(l, true), 0);
		left = in_flight();
		cr_assert_gt(left, 0, "the kill is to hit requests in flight");
		vs_kill();
		vd_disconnect(&dev);
		vs_start();
		cr_assert_eq(vd_connect(&dev, 0), 0);
	}
	load_verify(l);
	finish();
}

/* VU-5: SIGTERM drains; the next server goes on. */
Test(vhost, a_server_that_is_told_to_stop_answers_what_it_took)
{
	struct load *l = load_create(43);

	start(1);
	cr_assert_eq(vd_init(&dev, vs_socket(0), 2, 256), 0);
	dev.inflight = true;
	cr_assert_eq(vd_connect(&dev, 0), 0);
	for (unsigned round = 0; round < 3; round++) {
		for (unsigned i = 0; i < 100; i++)
			cr_assert_eq(step(l, true), 0);
		cr_assert_eq(vs_stop(), 0);
		vd_disconnect(&dev);
		vs_start();
		cr_assert_eq(vd_connect(&dev, 0), 0);
	}
	load_verify(l);
	finish();
}

/* VU-45 */
Test(vhost, a_queue_is_stopped_when_what_it_took_has_ended)
{
	struct vd_queue *q = &dev.q[0];

	start(1);
	cr_assert_eq(vd_init(&dev, vs_socket(0), 1, 128), 0);
	cr_assert_eq(vd_connect(&dev, 0), 0);
	for (unsigned round = 0; round < 50; round++) {
		struct vd_slot *slot;
		uint16_t base = 0;
		unsigned n = 0;

		for (; (slot = vd_slot_get(&dev, 0)); n++)
			vd_submit(&dev, 0, slot, VIRTIO_BLK_T_OUT, n << 18, VD_SLOT_MAX, 4);
		vd_kick(&dev, 0);
		cr_assert_eq(vd_stop_queue(&dev, 0, &base), 0);
		cr_assert_eq(q->used->idx, base, "round %u: taken %u, shown %u", round, base,
			     q->used->idx);
		/* What it did not take is taken after the start, without a kick. */
		cr_assert_eq(vd_start_queue(&dev, 0, base), 0);
		for (unsigned done = 0; done < n;) {
			int r = vd_wait(&dev, 10000);

			cr_assert_gt(r, 0, "%u of %u", done, n);
			done += (unsigned)r;
		}
		for (unsigned s = 0; s < VD_SLOTS; s++)
			q->slots[s].busy = false;
		q->busy = 0;
	}
	finish();
}

/* VU-33: what is in flight goes on, wherever the memory is mapped meanwhile. */
Test(vhost, memory_may_change_under_a_load)
{
	struct load *l = load_create(44);
	uint64_t extra[5] = {0, UINT64_C(1) << 40, 1 << 20, UINT64_C(1) << 46, 0};
	uint64_t rings[5] = {0, VD_GUEST, VD_SPLIT, 0, 0};

	start(1);
	cr_assert_eq(vd_init(&dev, vs_socket(0), 4, 256), 0);
	cr_assert_eq(vd_connect(&dev, 0), 0);
	rings[3] = (uintptr_t)dev.mem;
	for (unsigned i = 0; i < 400; i++) {
		cr_assert_eq(step(l, true), 0);
		if (i % 20 == 5)
			cr_assert_eq(vd_give_memory(&dev), 0);
		if (i % 20 == 10)
			cr_assert_eq(vd_ask(&dev, VU_ADD_MEM_REG, extra, 40, dev.files, 1), 0);
		if (i % 20 == 15)
			cr_assert_eq(vd_ask(&dev, VU_REM_MEM_REG, extra, 40, NULL, 0), 0);
		if (i % 20 == 16)
			cr_assert_eq(vd_ask(&dev, VU_REM_MEM_REG, rings, 40, NULL, 0), 1,
				     "the rings are in it");
	}
	load_verify(l);
	finish();
}

/* --- snapshots, sizes --- */

/* P1: block k is written only after block k - 1 was acknowledged. */
Test(vhost, a_snapshot_of_a_running_disk_has_no_gap)
{
	uint8_t block[4096] = {0};
	FILE *out;
	char path[300];
	uint64_t k = 0, seen = 0;
	pid_t pid;

	start(1);
	cr_assert_eq(vd_init(&dev, vs_socket(0), 1, 128), 0);
	cr_assert_eq(vd_connect(&dev, 0), 0);
	fflush(NULL);
	for (; k < DISK / 4096 / 2; k++) {
		memset(block, 1, sizeof(block));
		cr_assert_eq(vd_do(&dev, 0, VIRTIO_BLK_T_OUT, k * 4096, block, 4096), 0);
		if (k == 300 && (pid = fork()) == 0)
			_exit(vs_run("snapshot create c@s"));
	}
	for (int tries = 0; tries < 100 && vs_run("snapshot show c@s") != 0; tries++)
		usleep(50000);
	vd_fini(&dev);
	cr_assert_eq(vs_stop(), 0);
	cr_assert_eq(vs_run("disk read c@s/m/d0"), 0);
	snprintf(path, sizeof(path), "%s/out", vs_dir);
	out = fopen(path, "r");
	while (fread(block, sizeof(block), 1, out) == 1 && block[0]) {
		cr_assert_eq(block[4095], 1);
		seen++;
	}
	cr_expect_geq(seen, 300, "what was acknowledged before is in it");
	while (fread(block, sizeof(block), 1, out) == 1)
		cr_assert_eq(block[0], 0, "a later block is in it, block %llu is not",
			     (unsigned long long)seen);
	fclose(out);
	vs_remove();
}

/* VU-68 */
Test(vhost, a_disk_that_grows_tells_its_front_end)
{
	uint64_t capacity = 0;
	uint32_t message[3] = {0};
	struct pollfd p;
	uint8_t data[512];

	start(1);
	cr_assert_eq(vd_init(&dev, vs_socket(0), 1, 128), 0);
	cr_assert_eq(vd_connect(&dev, 0), 0);
	cr_assert_eq(vd_get_config(&dev, &capacity, 0, 8), 0);
	cr_assert_eq(capacity, DISK / 512);
	cr_assert_eq(vd_do(&dev, 0, VIRTIO_BLK_T_IN, DISK, data, 512), VIRTIO_BLK_S_IOERR);
	cr_assert_eq(vs_run("disk resize m/d0 48M"), 0);
	p = (struct pollfd){.fd = dev.backend, .events = POLLIN};
	cr_assert_eq(poll(&p, 1, 10000), 1, "the front-end is told");
	cr_assert_eq(recv(dev.backend, message, sizeof(message), 0), 12);
	cr_expect_eq(message[0], 2);
	cr_expect_eq(message[1], 1);
	cr_expect_eq(message[2], 0);
	cr_assert_eq(vd_get_config(&dev, &capacity, 0, 8), 0);
	cr_expect_eq(capacity, ((uint64_t)48 << 20) / 512);
	cr_expect_eq(vd_do(&dev, 0, VIRTIO_BLK_T_IN, DISK, data, 512), 0);
	finish();
}

/* VU-2 */
Test(vhost, a_disk_that_comes_gets_a_socket_and_one_that_goes_loses_it)
{
	char path[300];
	uint8_t data[512];

	start(1);
	cr_assert_eq(vd_init(&dev, vs_socket(0), 1, 128), 0);
	cr_assert_eq(vd_connect(&dev, 0), 0);
	cr_assert_eq(vs_run("disk create m/d1 --size=1M"), 0);
	vd_fini(&dev);
	cr_assert_eq(vd_init(&dev, vs_socket(1), 1, 128), 0);
	cr_assert_eq(vd_connect(&dev, 0), 0);
	cr_assert_eq(vd_do(&dev, 0, VIRTIO_BLK_T_IN, 0, data, 512), 0);
	cr_expect_neq(vs_run("disk delete m/d1"), 0, "it is in use");
	cr_assert_eq(vd_do(&dev, 0, VIRTIO_BLK_T_IN, 0, data, 512), 0);
	vd_disconnect(&dev);
	for (int tries = 0; tries < 100 && vs_run("disk delete m/d1") != 0; tries++)
		usleep(50000);
	snprintf(path, sizeof(path), "%s", vs_socket(1));
	for (int tries = 0; tries < 100 && access(path, F_OK) == 0; tries++)
		usleep(20000);
	cr_expect_neq(access(path, F_OK), 0, "the socket goes with the disk");
	finish();
}

/* VU-3 */
Test(vhost, the_next_front_end_waits_for_the_first_to_end)
{
	static struct vd second;
	struct pollfd p;
	uint64_t features = 0;

	start(1);
	cr_assert_eq(vd_init(&dev, vs_socket(0), 1, 128), 0);
	cr_assert_eq(vd_connect(&dev, 0), 0);
	cr_assert_eq(vd_init(&second, vs_socket(0), 1, 128), 0);
	cr_assert_eq(vd_dial(&second), 0);
	cr_assert_eq(vd_send(&second, VU_GET_FEATURES, 1, NULL, 0, NULL, 0), 0);
	p = (struct pollfd){.fd = second.fd, .events = POLLIN};
	cr_assert_eq(poll(&p, 1, 300), 0, "the second one is not served yet");
	vd_disconnect(&dev);
	cr_assert_eq(poll(&p, 1, 10000), 1, "now it is");
	cr_assert_eq(vd_receive(&second, VU_GET_FEATURES, &features, 8, NULL), 8);
	cr_expect(features & VU_BIT(VIRTIO_BLK_F_FLUSH));
	vd_fini(&second);
	finish();
}
