/* SPDX-License-Identifier: MIT */
/*
 * serve_vhost_ring.c - a split virtqueue as its device sees it: chains, notifications, and the record of
 * what is in flight at every point where a back-end can die. The driver is these tests.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "serve/vhost/vhost.h"

#define NUM   16u
#define SIZE  65536u
#define GUEST UINT64_C(0x40000000)
#define USER  UINT64_C(0x7f0000000000)
#define AVAIL 4096u
#define USED  8192u

static struct srv_vhost_memory mem;
static struct srv_vhost_ring ring;
static uint8_t *host;
static struct vring_desc *desc;
static struct vring_avail *avail;
static struct vring_used *used;
static struct vhost_inflight_queue *region;
static int fd;

static void setup(void)
{
	struct vhost_region_desc d = {GUEST, SIZE, USER, 0};
	struct vhost_addr addr = {.desc = USER, .avail = USER + AVAIL, .used = USER + USED};

	fd = memfd_create("guest", MFD_CLOEXEC);
	cr_assert_eq(ftruncate(fd, SIZE), 0);
	cr_assert_eq(srv_vhost_memory_add(&mem, &d, fd, NULL), 0);
	cr_assert_eq(srv_vhost_ring_resize(&ring, NUM), 0);
	cr_assert_eq(srv_vhost_ring_place(&ring, &mem, &addr), 0);
	ring.indirect = true;
	host = srv_vhost_memory_user(&mem, USER, SIZE);
	desc = (struct vring_desc *)host;
	avail = (struct vring_avail *)(host + AVAIL);
	used = (struct vring_used *)(host + USED);
	region = calloc(1, srv_vhost_inflight_stride(NUM));
}

static void teardown(void)
{
	srv_vhost_ring_fini(&ring);
	srv_vhost_memory_clear(&mem);
	free(region);
	close(fd);
}

TestSuite(serve_vhost_ring, .init = setup, .fini = teardown, .timeout = 60);

static void offer(uint16_t head)
{
	avail->ring[avail->idx++ % NUM] = head;
}

static uint16_t must_take(void)
{
	uint16_t head = 0;

	cr_assert_eq(srv_vhost_ring_next(&ring, &head), 1);
	cr_assert_eq(srv_vhost_ring_take(&ring, head), 0);
	return head;
}

/* VU-40 */
Test(serve_vhost_ring, a_size_is_a_power_of_two_up_to_1024)
{
	cr_expect_eq(srv_vhost_ring_resize(&ring, 0), -EINVAL);
	cr_expect_eq(srv_vhost_ring_resize(&ring, 3), -EINVAL);
	cr_expect_eq(srv_vhost_ring_resize(&ring, 2048), -EINVAL);
	cr_expect_eq(srv_vhost_ring_resize(&ring, UINT32_MAX), -EINVAL);
	cr_expect_eq(ring.num, NUM);
	cr_expect_eq(srv_vhost_ring_resize(&ring, 1), 0);
	cr_expect_eq(srv_vhost_ring_resize(&ring, 1024), 0);
}

Test(serve_vhost_ring, a_ring_that_is_misaligned_or_not_in_memory_is_refused)
{
	struct vhost_addr good = {.desc = USER, .avail = USER + AVAIL, .used = USER + USED}, a;
	uint64_t *part[] = {&a.desc, &a.avail, &a.used};
	/* The last byte of each part must be in memory: its size is the spec's. */
	uint64_t size[] = {16 * NUM, 6 + 2 * NUM, 6 + 8 * NUM}, align[] = {16, 2, 4};

	for (unsigned i = 0; i < 3; i++) {
		a = good;
		*part[i] += align[i] / 2;
		cr_expect_eq(srv_vhost_ring_place(&ring, &mem, &a), -EINVAL, "part %u", i);
		*part[i] = (USER + SIZE - size[i]) / align[i] * align[i];
		cr_expect_eq(srv_vhost_ring_place(&ring, &mem, &a), 0, "part %u", i);
		*part[i] += align[i];
		cr_expect_eq(srv_vhost_ring_place(&ring, &mem, &a), -EINVAL, "part %u", i);
	}
}

Test(serve_vhost_ring, a_chain_is_walked_in_its_order_also_through_an_indirect_table)
{
	struct srv_vhost_chain *chain = malloc(sizeof(*chain));
	struct vring_desc *table = (struct vring_desc *)(host + 32768 + 3); /* any address */
	struct vring_desc t[3] = {{GUEST + 100, 16, VRING_DESC_F_NEXT, 2},
				  {GUEST + 300, 1, VRING_DESC_F_WRITE, 0},
				  {GUEST + 200, 512, VRING_DESC_F_NEXT, 1}};

	memcpy(table, t, sizeof(t));
	memcpy(desc + 4, t, sizeof(t));
	desc[4].next = 6;
	desc[6].next = 5;
	desc[9] = (struct vring_desc){GUEST + 32768 + 3, sizeof(t), VRING_DESC_F_INDIRECT, 0};
	for (uint16_t head = 4; head <= 9; head += 5) {
		cr_assert_eq(srv_vhost_ring_walk(&ring, &mem, head, chain), 0, "%s", ring.fault);
		cr_assert_eq(chain->out, 2);
		cr_assert_eq(chain->in, 1);
		cr_expect_eq(chain->iov[0].iov_base, host + 100);
		cr_expect_eq(chain->iov[1].iov_base, host + 200);
		cr_expect_eq(chain->iov[1].iov_len, 512);
		cr_expect_eq(chain->iov[2].iov_base, host + 300);
	}
	free(chain);
}

/* The longest chain has each descriptor once; one more step is a circle. */
Test(serve_vhost_ring, a_chain_may_use_the_whole_table)
{
	struct srv_vhost_chain *chain = malloc(sizeof(*chain));

	for (uint16_t i = 0; i < NUM; i++)
		desc[i] = (struct vring_desc){GUEST, 1, VRING_DESC_F_NEXT, (uint16_t)(i + 1)};
	desc[NUM - 1].flags = VRING_DESC_F_WRITE;
	cr_expect_eq(srv_vhost_ring_walk(&ring, &mem, 0, chain), 0);
	cr_expect_eq(chain->out + chain->in, NUM);
	desc[NUM - 1].flags = VRING_DESC_F_NEXT;
	desc[NUM - 1].next = 0;
	cr_expect_eq(srv_vhost_ring_walk(&ring, &mem, 0, chain), -EUCLEAN);
	cr_expect_str_eq(ring.fault, "a chain in a circle");
	free(chain);
}

Test(serve_vhost_ring, indices_wrap)
{
	ring.next_avail = ring.next_used = ring.published = 65530;
	avail->idx = used->idx = 65530;
	for (unsigned i = 0; i < 20; i++) {
		uint16_t head;

		offer((uint16_t)(i % NUM));
		head = must_take();
		cr_expect_eq(head, i % NUM);
		srv_vhost_ring_give(&ring, head, 1);
		srv_vhost_ring_publish(&ring);
		cr_expect_eq(used->idx, (uint16_t)(65531 + i));
		cr_expect_eq(used->ring[(65530 + i) % NUM].id, i % NUM);
	}
	cr_expect_eq(srv_vhost_ring_next(&ring, &(uint16_t){0}), 0);
}

/* VU-46 */
Test(serve_vhost_ring, a_driver_is_called_as_it_asked_with_flags)
{
	offer(1);
	srv_vhost_ring_give(&ring, must_take(), 1);
	cr_expect(srv_vhost_ring_publish(&ring));
	cr_expect_not(srv_vhost_ring_publish(&ring), "nothing new");
	avail->flags = VRING_AVAIL_F_NO_INTERRUPT;
	offer(1);
	srv_vhost_ring_give(&ring, must_take(), 1);
	cr_expect_not(srv_vhost_ring_publish(&ring));
	srv_vhost_ring_hush(&ring);
	cr_expect_eq(used->flags, VRING_USED_F_NO_NOTIFY);
	cr_expect_not(srv_vhost_ring_listen(&ring));
	cr_expect_eq(used->flags, 0);
	offer(1);
	cr_expect(srv_vhost_ring_listen(&ring), "one came in between");
}

Test(serve_vhost_ring, a_driver_is_called_as_it_asked_with_event_indices)
{
	ring.event_idx = true;
	avail->ring[NUM] = 2; /* used_event */
	for (uint16_t i = 0; i < 6; i++) {
		offer(i);
		srv_vhost_ring_give(&ring, must_take(), 1);
		/* The first is told whatever was asked; then only the third: index 2. */
		cr_expect_eq(srv_vhost_ring_publish(&ring), i == 0 || i == 2, "%u", i);
	}
	cr_expect_not(srv_vhost_ring_listen(&ring));
	cr_expect_eq(used->ring[NUM].id & 0xffff, 6, "the index at which to kick");
}

/* --- in flight --- */

static unsigned resume(uint16_t *heads, uint64_t *counter)
{
	return srv_vhost_inflight_resume(region, NUM, used->idx, heads, counter);
}

/* VU-71, VU-72 */
Test(serve_vhost_ring, what_was_taken_and_not_given_back_is_resumed_in_its_order)
{
	uint16_t heads[NUM], order[] = {7, 3, 9, 1};
	uint64_t counter;

	cr_assert_eq(resume(heads, &counter), 0);
	cr_expect_eq(region->version, 1);
	cr_expect_eq(region->desc_num, NUM);
	ring.inflight = region;
	for (unsigned i = 0; i < 4; i++) {
		offer(order[i]);
		must_take();
	}
	srv_vhost_ring_give(&ring, 3, 1);
	srv_vhost_ring_publish(&ring);
	cr_assert_eq(resume(heads, &counter), 3);
	cr_expect_eq(heads[0], 7);
	cr_expect_eq(heads[1], 9);
	cr_expect_eq(heads[2], 1);
	cr_expect_eq(counter, 4, "later ones come after them");
}

/* Given back and not shown: it is carried out again. */
Test(serve_vhost_ring, a_batch_that_was_not_shown_is_resumed)
{
	uint16_t heads[NUM];
	uint64_t counter;

	resume(heads, &counter);
	for (uint16_t h = 2; h < 5; h++)
		srv_vhost_inflight_take(region, h, counter++);
	srv_vhost_inflight_batch(region, (uint16_t[]){3, 2}, 2);
	cr_expect_eq(resume(heads, &counter), 3);
}

/* Shown, and died before it was noted. */
Test(serve_vhost_ring, a_batch_that_was_shown_is_not_resumed)
{
	uint16_t heads[NUM];
	uint64_t counter;

	used->idx = 65535;
	resume(heads, &counter);
	for (uint16_t h = 2; h < 6; h++)
		srv_vhost_inflight_take(region, h, counter++);
	srv_vhost_inflight_batch(region, (uint16_t[]){4}, 1);
	used->idx++;
	srv_vhost_inflight_done(region, (uint16_t[]){4}, 1, used->idx);
	srv_vhost_inflight_batch(region, (uint16_t[]){3, 2}, 2);
	used->idx = (uint16_t)(used->idx + 2);
	cr_assert_eq(resume(heads, &counter), 1);
	cr_expect_eq(heads[0], 5);
	cr_expect_eq(region->used_idx, used->idx);
	cr_expect_eq(region->entries[3].inflight, 0);
}

/* VU-73 */
Test(serve_vhost_ring, a_hostile_region_is_bounded)
{
	uint16_t heads[NUM];
	uint64_t counter;

	region->version = 1;
	region->desc_num = 65535;
	region->last_batch_head = 3;
	region->used_idx = 1000;
	for (unsigned i = 0; i < NUM; i++) {
		region->entries[i].inflight = 0xff;
		region->entries[i].next = i == 3 ? 65535 : 3;
		region->entries[i].counter = UINT64_MAX;
	}
	cr_expect_eq(resume(heads, &counter), NUM - 1);
	region->used_idx = 1000;
	region->entries[3].next = 3;
	cr_expect_leq(resume(heads, &counter), NUM);
}

Test(serve_vhost_ring, a_region_of_another_version_starts_anew)
{
	uint16_t heads[NUM];
	uint64_t counter;

	memset(region, 0xff, srv_vhost_inflight_stride(NUM));
	cr_expect_eq(resume(heads, &counter), 0);
	cr_expect_eq(counter, 0);
	cr_expect_eq(region->version, 1);
}

/* VU-70 */
Test(serve_vhost_ring, a_region_must_hold_its_queues)
{
	struct srv_vhost_inflight inflight = {0};
	struct vhost_inflight_desc d, wrong;
	struct vmimg_error err;
	int file = -1;

	cr_expect_eq(srv_vhost_inflight_create(0, 16, &file, &d), -EINVAL);
	cr_expect_eq(srv_vhost_inflight_create(1, 0, &file, &d), -EINVAL);
	cr_expect_eq(srv_vhost_inflight_create(VHOST_QUEUES_MAX + 1, 16, &file, &d), -EINVAL);
	cr_expect_eq(srv_vhost_inflight_create(1, 2048, &file, &d), -EINVAL);
	cr_assert_eq(srv_vhost_inflight_create(3, 128, &file, &d), 0);
	cr_expect_eq(d.size, 3 * 2112, "16 and 128 times 16, rounded up to 64");
	cr_expect_eq(ftruncate(file, 0), -1, "it is sealed");
	wrong = d;
	wrong.size--;
	cr_expect_eq(srv_vhost_inflight_open(&inflight, &wrong, file, &err), -EINVAL);
	wrong = d;
	wrong.offset = 8;
	cr_expect_eq(srv_vhost_inflight_open(&inflight, &wrong, file, &err), -EINVAL);
	wrong = d;
	wrong.queues = 4;
	cr_expect_eq(srv_vhost_inflight_open(&inflight, &wrong, file, &err), -EINVAL);
	cr_assert_eq(srv_vhost_inflight_open(&inflight, &d, file, &err), 0);
	cr_expect_not_null(srv_vhost_inflight_queue(&inflight, 2, 128));
	cr_expect_null(srv_vhost_inflight_queue(&inflight, 3, 128));
	cr_expect_null(srv_vhost_inflight_queue(&inflight, 0, 256));
	srv_vhost_inflight_close(&inflight);
	close(file);
}
