/* SPDX-License-Identifier: MIT */
/*
 * vhost_hostile.c - drivers and front-ends that break every rule, one rule at a time. Beside the hostile
 * one a second device does its work, which must not notice.
 */
#include "tests/serve/vhost_driver.h"
#include "tests/serve/vhost_server.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#define DISK ((uint64_t)8 << 20)
#define NUM  128u

#define NEXT     VRING_DESC_F_NEXT
#define WRITE    VRING_DESC_F_WRITE
#define INDIRECT VRING_DESC_F_INDIRECT

static struct vd bad, good;

static void start(uint64_t without)
{
	vs_make(2, DISK);
	vs_start();
	cr_assert_eq(vd_init(&good, vs_socket(1), 1, NUM), 0);
	cr_assert_eq(vd_connect(&good, 0), 0);
	cr_assert_eq(vd_init(&bad, vs_socket(0), 2, NUM), 0);
	cr_assert_eq(vd_connect(&bad, without), 0);
}

static void good_works(const char *after)
{
	uint8_t out[4096], in[4096];

	memset(out, (int)strlen(after), sizeof(out));
	cr_assert_eq(vd_do(&good, 0, VIRTIO_BLK_T_OUT, 8192, out, sizeof(out)), 0, "%s", after);
	cr_assert_eq(vd_do(&good, 0, VIRTIO_BLK_T_IN, 8192, in, sizeof(in)), 0, "%s", after);
	cr_assert_arr_eq(out, in, sizeof(in), "%s", after);
}

static void finish(void)
{
	good_works("at the end");
	vd_fini(&bad);
	vd_fini(&good);
	cr_assert(vs_alive(), "the server lives");
	cr_expect_eq(vs_stop(), 0);
	vs_remove();
}

TestSuite(vhost_hostile, .fini = vs_remove, .timeout = 300);

/* --- chains as they should not be --- */

#define SCRATCH ((size_t)5 << 20) /* of the memory: what the cases point to */

static uint64_t at(size_t offset)
{
	return VD_GUEST + SCRATCH + offset;
}

struct broken_chain {
	const char *name;
	struct vring_desc d[4];
	uint16_t head, idx;            /* idx: how far the available index moves, 0: by one */
	uint16_t again;                /* the head is made available so many times more */
	struct vring_desc indirect[3]; /* at scratch + 64 KiB */
};

#define TABLE (VD_GUEST + SCRATCH + 65536)
#define HEADER                                                                                     \
	{                                                                                          \
		VD_GUEST + SCRATCH, 16, NEXT, 1                                                    \
	}
#define STATUS                                                                                     \
	{                                                                                          \
		VD_GUEST + SCRATCH + 8192, 1, WRITE, 0                                             \
	}

static const struct broken_chain chains[] = {
	{"an index too far ahead", {HEADER, STATUS}, 0, NUM + 1, 0, {{0}}},
	{"a head beyond the table", {HEADER, STATUS}, NUM, 0, 0, {{0}}},
	{"a head far beyond the table", {HEADER, STATUS}, 0xffff, 0, 0, {{0}}},
	{"a head twice", {HEADER, STATUS}, 0, 0, 3, {{0}}},
	{"a next beyond the table", {{VD_GUEST + SCRATCH, 16, NEXT, NUM}}, 0, 0, 0, {{0}}},
	{"a next far beyond the table", {{VD_GUEST + SCRATCH, 16, NEXT, 0xffff}}, 0, 0, 0, {{0}}},
	{"a chain to itself", {{VD_GUEST + SCRATCH, 16, NEXT, 0}}, 0, 0, 0, {{0}}},
	{"a circle", {HEADER, {VD_GUEST + SCRATCH, 512, NEXT, 0}}, 0, 0, 0, {{0}}},
	{"readable behind writable",
	 {HEADER,
	  {VD_GUEST + SCRATCH, 512, WRITE | NEXT, 2},
	  {VD_GUEST + SCRATCH, 512, NEXT, 3},
	  STATUS},
	 0,
	 0,
	 0,
	 {{0}}},
	{"an empty segment",
	 {HEADER, {VD_GUEST + SCRATCH, 0, NEXT | WRITE, 2}, STATUS},
	 0,
	 0,
	 0,
	 {{0}}},
	{"a segment below the memory",
	 {HEADER, {VD_GUEST - 1, 512, NEXT | WRITE, 2}, STATUS},
	 0,
	 0,
	 0,
	 {{0}}},
	{"a segment behind the memory",
	 {HEADER, {VD_GUEST + VD_MEMORY, 512, NEXT | WRITE, 2}, STATUS},
	 0,
	 0,
	 0,
	 {{0}}},
	{"a segment across the end",
	 {HEADER, {VD_GUEST + VD_MEMORY - 511, 512, NEXT | WRITE, 2}, STATUS},
	 0,
	 0,
	 0,
	 {{0}}},
	{"a segment that wraps",
	 {HEADER, {UINT64_MAX - 100, 512, NEXT | WRITE, 2}, STATUS},
	 0,
	 0,
	 0,
	 {{0}}},
	{"a segment of 4 GiB",
	 {HEADER, {VD_GUEST + SCRATCH, UINT32_MAX, NEXT | WRITE, 2}, STATUS},
	 0,
	 0,
	 0,
	 {{0}}},
	{"a status outside", {HEADER, {1, 1, WRITE, 0}}, 0, 0, 0, {{0}}},
	{"no status", {{VD_GUEST + SCRATCH, 16, 0, 0}}, 0, 0, 0, {{0}}},
	{"no header", {STATUS}, 0, 0, 0, {{0}}},
	{"a short header", {{VD_GUEST + SCRATCH, 15, NEXT, 1}, STATUS}, 0, 0, 0, {{0}}},
	{"indirect with a next",
	 {{TABLE, 32, INDIRECT | NEXT, 1}, STATUS},
	 0,
	 0,
	 0,
	 {HEADER, STATUS}},
	{"an empty indirect table", {{TABLE, 0, INDIRECT, 0}}, 0, 0, 0, {HEADER, STATUS}},
	{"half an indirect descriptor", {{TABLE, 40, INDIRECT, 0}}, 0, 0, 0, {HEADER, STATUS}},
	{"an indirect table too long", {{TABLE, 16 * 1025, INDIRECT, 0}}, 0, 0, 0, {HEADER, STATUS}},
	{"an indirect table outside", {{VD_GUEST + VD_MEMORY - 16, 32, INDIRECT, 0}}, 0, 0, 0, {{0}}},
	{"an indirect table in two regions",
	 {{VD_GUEST + VD_SPLIT - 16, 32, INDIRECT, 0}},
	 0,
	 0,
	 0,
	 {{0}}},
	{"indirect in indirect",
	 {{TABLE, 32, INDIRECT, 0}},
	 0,
	 0,
	 0,
	 {HEADER, {TABLE, 32, INDIRECT, 0}}},
	{"an indirect next beyond its table",
	 {{TABLE, 32, INDIRECT, 0}},
	 0,
	 0,
	 0,
	 {{VD_GUEST + SCRATCH, 16, NEXT, 2}, STATUS}},
	{"an indirect circle",
	 {{TABLE, 32, INDIRECT, 0}},
	 0,
	 0,
	 0,
	 {HEADER, {VD_GUEST + SCRATCH, 512, NEXT, 0}}},
};

static void offer(const struct broken_chain *c)
{
	struct vd_queue *q = &bad.q[0];

	memset(bad.mem + SCRATCH, 0, 70000);
	bad.mem[SCRATCH] = VIRTIO_BLK_T_GET_ID;
	memcpy(q->desc, c->d, sizeof(c->d));
	memcpy(bad.mem + SCRATCH + 65536, c->indirect, sizeof(c->indirect));
	for (unsigned i = 0; i <= c->again; i++)
		q->avail->ring[q->avail_idx++ % NUM] = c->head;
	if (c->idx)
		q->avail_idx = (uint16_t)(q->avail_idx - 1 + c->idx);
	__atomic_store_n(&q->avail->idx, q->avail_idx, __ATOMIC_RELEASE);
	eventfd_write(q->kick, 1);
}

static bool told_of_error(void)
{
	struct pollfd p = {.fd = bad.q[0].err, .events = POLLIN};
	eventfd_t value;

	return poll(&p, 1, 10000) == 1 && eventfd_read(bad.q[0].err, &value) == 0;
}

/* Both queues stop, the ring is emptied, both start: as a driver does after a reset. */
static void reset_bad(const char *name)
{
	uint16_t base;

	for (unsigned i = 0; i < 2; i++) {
		struct vd_queue *q = &bad.q[i];

		cr_assert_eq(vd_stop_queue(&bad, i, &base), 0, "%s", name);
		memset(q->avail, 0, 4 + 2 * NUM + 2);
		memset(q->used, 0, 4 + 8 * NUM + 2);
		q->avail_idx = q->used_idx = q->kicked = 0;
	}
	for (unsigned i = 0; i < 2; i++)
		cr_assert_eq(vd_start_queue(&bad, i, 0), 0, "%s", name);
}

/* VU-50, VU-51 */
Test(vhost_hostile, a_broken_ring_stops_its_device_alone_and_can_be_reset)
{
	uint8_t data[512];

	start(0);
	for (unsigned i = 0; i < sizeof(chains) / sizeof(chains[0]); i++) {
		const char *name = chains[i].name;
		struct vd_slot *slot;

		offer(&chains[i]);
		cr_assert(told_of_error(), "%s: no error told", name);
		/* The other queue of the device takes nothing either. */
		slot = vd_slot_get(&bad, 1);
		vd_submit(&bad, 1, slot, VIRTIO_BLK_T_IN, 0, 512, 1);
		eventfd_write(bad.q[1].kick, 1);
		cr_assert_eq(vd_wait(&bad, 50), 0, "%s: the device still works", name);
		slot->busy = false;
		good_works(name);
		reset_bad(name);
		cr_assert_eq(vd_do(&bad, 0, VIRTIO_BLK_T_IN, 0, data, 512), 0, "%s", name);
	}
	finish();
}

Test(vhost_hostile, an_indirect_descriptor_needs_its_feature)
{
	static const struct broken_chain c = {"", {{TABLE, 32, INDIRECT, 0}},
					      0,  0,
					      0,  {HEADER, STATUS}};

	start(VU_BIT(VIRTIO_RING_F_INDIRECT_DESC));
	offer(&c);
	cr_assert(told_of_error());
	finish();
}

/* --- requests that ask for something wrong: a status, and on it goes --- */

struct odd_request {
	const char *name;
	uint32_t type;
	uint64_t sector;
	uint32_t out, in; /* bytes of data, in one segment each */
	struct virtio_blk_discard_write_zeroes range;
	uint8_t status;
};

static const struct odd_request requests[] = {
	{"read", VIRTIO_BLK_T_IN, 0, 0, 512, {0}, 0},
	{"read of 100 bytes", VIRTIO_BLK_T_IN, 0, 0, 100, {0}, 1},
	{"read of nothing", VIRTIO_BLK_T_IN, 0, 0, 0, {0}, 1},
	{"read of the last sector", VIRTIO_BLK_T_IN, DISK / 512 - 1, 0, 512, {0}, 0},
	{"read across the end", VIRTIO_BLK_T_IN, DISK / 512 - 1, 0, 1024, {0}, 1},
	{"read behind the end", VIRTIO_BLK_T_IN, DISK / 512, 0, 512, {0}, 1},
	{"read far behind", VIRTIO_BLK_T_IN, UINT64_MAX, 0, 512, {0}, 1},
	{"read that wraps", VIRTIO_BLK_T_IN, UINT64_MAX / 512, 0, 1024, {0}, 1},
	{"read that is too long", VIRTIO_BLK_T_IN, 0, 0, 33u << 20, {0}, 1},
	{"write of 513 bytes", VIRTIO_BLK_T_OUT, 0, 513, 0, {0}, 1},
	{"write of nothing", VIRTIO_BLK_T_OUT, 0, 0, 0, {0}, 1},
	{"write behind the end", VIRTIO_BLK_T_OUT, DISK / 512, 512, 0, {0}, 1},
	{"unknown", 99, 0, 0, 512, {0}, 2},
	{"scsi", 2, 0, 0, 512, {0}, 2},
	{"flush with data", VIRTIO_BLK_T_FLUSH, 77, 0, 512, {0}, 0},
	{"id of one byte", VIRTIO_BLK_T_GET_ID, 0, 0, 1, {0}, 0},
	{"id of nothing", VIRTIO_BLK_T_GET_ID, 0, 0, 0, {0}, 0},
	{"discard", VIRTIO_BLK_T_DISCARD, 0, 16, 0, {8, 8, 0}, 0},
	{"discard of nothing", VIRTIO_BLK_T_DISCARD, 0, 16, 0, {8, 0, 0}, 0},
	{"discard with unmap", VIRTIO_BLK_T_DISCARD, 0, 16, 0, {8, 8, 1}, 2},
	{"discard across the end", VIRTIO_BLK_T_DISCARD, 0, 16, 0, {DISK / 512 - 1, 2, 0}, 1},
	{"discard that wraps", VIRTIO_BLK_T_DISCARD, 0, 16, 0, {UINT64_MAX, 2, 0}, 1},
	{"discard of too much", VIRTIO_BLK_T_DISCARD, 0, 16, 0, {0, UINT32_MAX, 0}, 1},
	{"discard without ranges", VIRTIO_BLK_T_DISCARD, 0, 0, 0, {0}, 1},
	{"discard with half a range", VIRTIO_BLK_T_DISCARD, 0, 24, 0, {8, 8, 0}, 1},
	{"discard with 65 ranges", VIRTIO_BLK_T_DISCARD, 0, 16 * 65, 0, {8, 8, 0}, 1},
	{"zeroes with unmap", VIRTIO_BLK_T_WRITE_ZEROES, 0, 16, 0, {8, 8, 1}, 0},
	{"zeroes with another flag", VIRTIO_BLK_T_WRITE_ZEROES, 0, 16, 0, {8, 8, 2}, 2},
	{"secure erase", VIRTIO_BLK_T_SECURE_ERASE, 0, 16, 0, {8, 8, 0}, 2},
};

static void ask_odd(const struct odd_request *o)
{
	struct vd_queue *q = &bad.q[0];
	struct virtio_blk_outhdr hdr = {o->type, 0, o->sector};
	struct vring_desc d[4] = {{at(0), 16, NEXT, 1}};
	unsigned n = 1;
	uint16_t used = q->used->idx;

	memcpy(bad.mem + SCRATCH, &hdr, sizeof(hdr));
	memcpy(bad.mem + SCRATCH + 32, &o->range, sizeof(o->range));
	bad.mem[SCRATCH + 8192] = 0xff;
	if (o->out)
		d[n++] = (struct vring_desc){at(32), o->out, NEXT, 2};
	/* A second one may be 33 MiB long: it lies in both files. */
	if (o->in)
		d[n++] = (struct vring_desc){at(1 << 20), o->in, NEXT | WRITE, 0};
	d[n - 1].next = (uint16_t)n;
	d[n] = (struct vring_desc){at(8192), 1, WRITE, 0};
	memcpy(q->desc, d, sizeof(d));
	q->avail->ring[q->avail_idx++ % NUM] = 0;
	__atomic_store_n(&q->avail->idx, q->avail_idx, __ATOMIC_RELEASE);
	eventfd_write(q->kick, 1);
	for (int i = 0; i < 5000 && *(volatile uint16_t *)&q->used->idx == used; i++)
		usleep(1000);
	cr_assert_eq(q->used->idx, (uint16_t)(used + 1), "%s: no answer", o->name);
	cr_expect_eq(q->used->ring[used % NUM].len, o->in + 1, "%s: used length %u", o->name,
		     q->used->ring[used % NUM].len);
	cr_expect_eq(bad.mem[SCRATCH + 8192], o->status, "%s: status %u", o->name,
		     bad.mem[SCRATCH + 8192]);
}

/* VU-62, VU-63, VU-66, VU-67 */
Test(vhost_hostile, an_odd_request_is_answered_with_a_status)
{
	uint8_t data[512];

	start(0);
	for (unsigned i = 0; i < sizeof(requests) / sizeof(requests[0]); i++)
		ask_odd(&requests[i]);
	bad.q[0].used_idx = bad.q[0].used->idx;
	cr_assert_eq(vd_do(&bad, 1, VIRTIO_BLK_T_IN, 0, data, 512), 0);
	finish();
}

/* VU-69 */
Test(vhost_hostile, the_id_is_the_disks_name)
{
	char id[20];

	start(0);
	cr_assert_eq(vd_do(&bad, 0, VIRTIO_BLK_T_GET_ID, 0, id, sizeof(id)), 0);
	cr_expect_str_eq(id, "m.d0");
	finish();
}

/* --- front-ends --- */

/* VU-34 */
Test(vhost_hostile, memory_that_is_taken_away_ends_its_device_alone)
{
	char byte;
	struct pollfd p;

	start(0);
	for (int round = 0; round < 4; round++) {
		int file = round % 2;
		struct vd_slot *slot = vd_slot_get(&bad, 0);

		/* Once the rings, once the data: the latter the kernel refuses, or the engine copies. */
		vd_submit(&bad, 0, slot, VIRTIO_BLK_T_OUT, 512, 1024, 2);
		if (file == 1) {
			bad.q[0].desc[0].flags = 0;
			bad.mem[SCRATCH] = VIRTIO_BLK_T_OUT;
			bad.q[0].desc[0] = (struct vring_desc){at(0), 16, NEXT, 1};
			bad.q[0].desc[1] = (struct vring_desc){VD_GUEST + VD_SPLIT + 7, 1024, NEXT,
							       2};
			bad.q[0].desc[2] = (struct vring_desc){VD_GUEST + VD_SPLIT + 4096, 1, WRITE,
							       0};
		}
		cr_assert_eq(ftruncate(bad.files[file], 0), 0);
		eventfd_write(bad.q[0].kick, 1);
		p = (struct pollfd){.fd = bad.fd, .events = POLLIN};
		cr_assert_eq(poll(&p, 1, 10000), 1, "round %d: the connection ends", round);
		cr_assert_leq(recv(bad.fd, &byte, 1, 0), 0);
		good_works("truncated");
		vd_fini(&bad);
		cr_assert_eq(vd_init(&bad, vs_socket(0), 2, NUM), 0);
		cr_assert_eq(vd_connect(&bad, 0), 0);
	}
	cr_expect(vs_logged("took its memory away"));
	finish();
}

struct bad_message {
	const char *name;
	uint32_t request, size;
	uint64_t words[12];
	unsigned fds;
};

#define STATE(index, num) ((uint64_t)(num) << 32 | (index))

/* Every one is refused: with need_reply it is answered with 1. */
static const struct bad_message messages[] = {
	{"unknown", 99, 0, {0}, 0},
	{"number zero", 0, 0, {0}, 0},
	{"beyond the table", 0x7fffffff, 0, {0}, 0},
	{"log base", 6, 16, {0}, 1},
	{"features too short", VU_SET_FEATURES, 4, {0}, 0},
	{"features not offered", VU_SET_FEATURES, 8, {UINT64_MAX}, 0},
	{"features with a descriptor", VU_SET_FEATURES, 8, {0}, 1},
	{"protocol features not offered", VU_SET_PROTOCOL_FEATURES, 8, {VU_BIT(1)}, 0},
	{"a queue of no entries", VU_SET_VRING_NUM, 8, {STATE(5, 0)}, 0},
	{"a queue of 3 entries", VU_SET_VRING_NUM, 8, {STATE(5, 3)}, 0},
	{"a queue of 2048 entries", VU_SET_VRING_NUM, 8, {STATE(5, 2048)}, 0},
	{"a size while it runs", VU_SET_VRING_NUM, 8, {STATE(0, 64)}, 0},
	{"queue 128", VU_SET_VRING_NUM, 8, {STATE(128, 64)}, 0},
	{"queue 2^32 - 1", VU_SET_VRING_BASE, 8, {STATE(UINT32_MAX, 0)}, 0},
	{"a base too large", VU_SET_VRING_BASE, 8, {STATE(5, 65536)}, 0},
	{"a base while it runs", VU_SET_VRING_BASE, 8, {STATE(0, 1)}, 0},
	{"enable 2", VU_SET_VRING_ENABLE, 8, {STATE(0, 2)}, 0},
	{"an address with flags", VU_SET_VRING_ADDR, 40, {STATE(5, 1)}, 0},
	{"an address outside", VU_SET_VRING_ADDR, 40, {STATE(0, 0), 1, 2, 3}, 0},
	{"a kick to be polled", VU_SET_VRING_KICK, 8, {5 | 256}, 0},
	{"a kick without", VU_SET_VRING_KICK, 8, {5}, 0},
	{"a kick with two", VU_SET_VRING_KICK, 8, {5}, 2},
	{"a kick that is no eventfd", VU_SET_VRING_KICK, 8, {5}, 1},
	{"a call that is no eventfd", VU_SET_VRING_CALL, 8, {5}, 1},
	{"an error that is no eventfd", VU_SET_VRING_ERR, 8, {5}, 1},
	{"a call with more bits", VU_SET_VRING_CALL, 8, {5 | 512 | 256}, 0},
	{"no back channel", VU_SET_BACKEND_REQ_FD, 0, {0}, 0},
	{"a back channel that is no socket", VU_SET_BACKEND_REQ_FD, 0, {0}, 1},
	{"a configuration to be written", VU_SET_CONFIG, 16, {0, 4ull << 32}, 0},
	{"memory without its files", VU_SET_MEM_TABLE, 40, {1, 0, 4096, 0, 0}, 0},
	{"memory with too many files", VU_SET_MEM_TABLE, 40, {1, 0, 4096, 0, 0}, 2},
	{"nine regions", VU_SET_MEM_TABLE, 40, {9, 0, 4096, 0, 0}, 1},
	{"four billion regions", VU_SET_MEM_TABLE, 40, {UINT32_MAX, 0, 4096, 0, 0}, 1},
	{"memory of another file system", VU_SET_MEM_TABLE, 40, {1, 0, 4096, 0, 0}, 1},
	{"a region of another file system",
	 VU_ADD_MEM_REG,
	 40,
	 {0, 1ull << 50, 4096, 1ull << 50, 0},
	 1},
	{"a region that overlaps", VU_ADD_MEM_REG, 40, {0, VD_GUEST + 4096, 4096, 1ull << 50, 0}, 1},
	{"a region that wraps", VU_ADD_MEM_REG, 40, {0, UINT64_MAX - 4096, 8192, 1ull << 50, 0}, 1},
	{"a region of nothing", VU_ADD_MEM_REG, 40, {0, 1ull << 50, 0, 1ull << 50, 0}, 1},
	{"a region that is not there", VU_REM_MEM_REG, 40, {0, 1ull << 50, 4096, 1ull << 50, 0}, 0},
	{"an inflight region of no queues", VU_SET_INFLIGHT_FD, 24, {4096, 0, 0}, 1},
	{"an inflight region while a queue runs",
	 VU_SET_INFLIGHT_FD,
	 24,
	 {1 << 20, 0, 2 | 128 << 16},
	 1},
};

/* VU-10..VU-14, VU-30..VU-32, VU-42, VU-43, VU-48 */
Test(vhost_hostile, a_wrong_message_is_refused_and_changes_nothing)
{
	uint8_t data[512];
	int file = open("/proc/self/status", O_RDONLY | O_CLOEXEC), fds[2] = {file, file};

	start(0);
	for (unsigned i = 0; i < sizeof(messages) / sizeof(messages[0]); i++) {
		const struct bad_message *m = &messages[i];

		cr_expect_eq(vd_ask(&bad, m->request, m->words, m->size, fds, m->fds), 1, "%s",
			     m->name);
		cr_assert_eq(vd_do(&bad, 0, VIRTIO_BLK_T_IN, 0, data, 512), 0, "after %s", m->name);
	}
	close(file);
	finish();
}

static const struct {
	const char *name;
	uint32_t request, flags, size, sent;
	unsigned fds;
} frames[] = {
	{"another version", VU_SET_OWNER, 2, 0, 0, 0},
	{"no version", VU_SET_OWNER, 0, 0, 0, 0},
	{"a reply", VU_SET_OWNER, 1 | 4, 0, 0, 0},
	{"too long", VU_SET_OWNER, 1, 513, 0, 0},
	{"far too long", VU_SET_OWNER, 1, UINT32_MAX, 0, 0},
	{"cut off", VU_SET_FEATURES, 1, 8, 4, 0},
	{"too many descriptors", VU_SET_MEM_TABLE, 1, 0, 0, 9},
	{"refused without a reply", VU_SET_FEATURES, 1, 4, 4, 0},
	{"a configuration beyond its end", VU_GET_CONFIG, 1, 16, 16, 0},
	{"a queue that cannot be", VU_GET_VRING_BASE, 1, 8, 8, 0},
	{"too many queues in flight", VU_GET_INFLIGHT_FD, 1, 24, 24, 0},
};

/* VU-10, VU-12 */
Test(vhost_hostile, a_broken_message_ends_the_connection_alone)
{
	start(0);
	for (unsigned i = 0; i < sizeof(frames) / sizeof(frames[0]); i++) {
		uint32_t h[3] = {frames[i].request, frames[i].flags, frames[i].size};
		uint32_t payload[8] = {0xffffff, 0xffffff, 0, 0, 0xffffffff};
		int fds[16];
		char byte;
		struct pollfd p;

		for (unsigned k = 0; k < 16; k++)
			fds[k] = bad.files[0];
		if (frames[i].fds) {
			cr_assert_eq(vd_send(&bad, h[0], h[1], NULL, 0, fds, frames[i].fds), 0);
		} else {
			cr_assert_eq(send(bad.fd, h, sizeof(h), 0), sizeof(h));
			if (frames[i].sent)
				send(bad.fd, payload, frames[i].sent, MSG_NOSIGNAL);
			if (frames[i].sent < frames[i].size)
				shutdown(bad.fd, SHUT_WR);
		}
		p = (struct pollfd){.fd = bad.fd, .events = POLLIN};
		cr_assert_eq(poll(&p, 1, 10000), 1, "%s: the connection stays", frames[i].name);
		cr_assert_leq(recv(bad.fd, &byte, 1, 0), 0, "%s: an answer", frames[i].name);
		good_works(frames[i].name);
		vd_disconnect(&bad);
		cr_assert_eq(vd_connect(&bad, 0), 0);
	}
	finish();
}
