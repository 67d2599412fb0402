/* SPDX-License-Identifier: MIT */
/*
 * vhost_inflight.c - what is in flight, in memory that the front-end keeps for us: whoever serves the
 * device next reads there which requests were taken and not answered, and carries them out again
 * (VU-70..VU-74). Every store is one that a kill after it leaves in a state the reader understands;
 * the order of the stores is the program's, which the compiler is told to keep, and a dead process's
 * stores are all there.
 *
 * The region is the front-end's memory: what is read from it is checked like a descriptor.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "serve/vhost/vhost.h"

#define in_order() atomic_signal_fence(memory_order_seq_cst)

size_t srv_vhost_inflight_stride(uint16_t queue_size)
{
	size_t size = sizeof(struct vhost_inflight_queue) +
		      queue_size * sizeof(struct vhost_inflight_entry);

	return (size + VHOST_INFLIGHT_ALIGN - 1) & ~(size_t)(VHOST_INFLIGHT_ALIGN - 1);
}

static bool valid(const struct vhost_inflight_desc *desc)
{
	return desc->queues && desc->queues <= VHOST_QUEUES_MAX && desc->queue_size &&
	       desc->queue_size <= VHOST_QUEUE_SIZE;
}

int srv_vhost_inflight_create(uint16_t queues, uint16_t queue_size, int *ret,
			      struct vhost_inflight_desc *desc)
{
	struct vhost_inflight_desc d = {.queues = queues, .queue_size = queue_size};
	int fd, r = 0;

	if (!valid(&d))
		return -EINVAL;
	d.size = queues * srv_vhost_inflight_stride(queue_size);
	fd = memfd_create("vhost-inflight", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (fd < 0)
		return -errno;
	if (ftruncate(fd, (off_t)d.size) < 0 ||
	    fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0)
		r = -errno;
	if (r < 0) {
		close(fd);
		return r;
	}
	*ret = fd;
	*desc = d;
	return 0;
}

int srv_vhost_inflight_open(struct srv_vhost_inflight *inflight,
			    const struct vhost_inflight_desc *desc, int fd, struct vmimg_error *err)
{
	struct srv_vhost_mapping m = {0};
	int r;

	if (!valid(desc) || desc->offset % 8 ||
	    desc->size < desc->queues * srv_vhost_inflight_stride(desc->queue_size))
		return srv_fail(err, -EINVAL, "inflight: %u queues of %u in %llu bytes at %llu",
				desc->queues, desc->queue_size, (unsigned long long)desc->size,
				(unsigned long long)desc->offset);
	r = srv_vhost_map(fd, desc->offset, desc->size, &inflight->lost, &m, err);
	if (r < 0)
		return r;
	srv_vhost_inflight_close(inflight);
	inflight->mapping = m;
	inflight->base = (uint8_t *)m.map + m.skip;
	inflight->queues = desc->queues;
	inflight->queue_size = desc->queue_size;
	return 0;
}

void srv_vhost_inflight_close(struct srv_vhost_inflight *inflight)
{
	srv_vhost_unmap(&inflight->mapping);
	inflight->base = NULL;
	inflight->queues = 0;
	atomic_store(&inflight->lost, false);
}

struct vhost_inflight_queue *srv_vhost_inflight_queue(struct srv_vhost_inflight *inflight,
						      unsigned index, uint16_t num)
{
	if (!inflight->base || index >= inflight->queues || num > inflight->queue_size)
		return NULL;
	return (struct vhost_inflight_queue *)(inflight->base +
					       index * srv_vhost_inflight_stride(
							       inflight->queue_size));
}

/* --- what the last one left --- */

struct left {
	uint64_t counter;
	uint16_t head;
};

static int older(const void *a, const void *b)
{
	const struct left *x = a, *y = b;

	return (x->counter > y->counter) - (x->counter < y->counter);
}

/* The last batch was shown to the driver, but its entries may still say in flight. */
static void finish_batch(volatile struct vhost_inflight_queue *q, uint16_t num, uint16_t used)
{
	uint16_t count = (uint16_t)(used - q->used_idx), at = q->last_batch_head;

	for (; count && at < num; count--) {
		q->entries[at].inflight = 0;
		at = q->entries[at].next;
	}
	in_order();
	q->used_idx = used;
}

unsigned srv_vhost_inflight_resume(struct vhost_inflight_queue *queue, uint16_t num, uint16_t used,
				   uint16_t *heads, uint64_t *counter)
{
	volatile struct vhost_inflight_queue *q = queue;
	struct left left[VHOST_QUEUE_SIZE];
	unsigned count = 0;
	uint64_t next = 0;

	if (q->version != VHOST_INFLIGHT_VERSION) {
		memset(queue->entries, 0, num * sizeof(queue->entries[0]));
		q->features = 0;
		q->desc_num = num;
		q->last_batch_head = 0;
		q->used_idx = used;
		in_order();
		q->version = VHOST_INFLIGHT_VERSION;
	} else if (q->used_idx != used) {
		finish_batch(q, num, used);
	}
	for (uint16_t i = 0; i < num; i++) {
		uint64_t c = q->entries[i].counter;

		if (!q->entries[i].inflight)
			continue;
		left[count++] = (struct left){c, i};
		if (c >= next)
			next = c + 1;
	}
	qsort(left, count, sizeof(left[0]), older);
	for (unsigned i = 0; i < count; i++)
		heads[i] = left[i].head;
	*counter = next;
	return count;
}

/* --- and what we do --- */

void srv_vhost_inflight_take(struct vhost_inflight_queue *queue, uint16_t head, uint64_t counter)
{
	volatile struct vhost_inflight_queue *q = queue;

	q->entries[head].counter = counter;
	in_order();
	q->entries[head].inflight = 1;
	in_order();
}

void srv_vhost_inflight_batch(struct vhost_inflight_queue *queue, const uint16_t *heads,
			      unsigned count)
{
	volatile struct vhost_inflight_queue *q = queue;

	for (unsigned i = 0; i < count; i++) {
		q->entries[heads[i]].next = q->last_batch_head;
		in_order();
		q->last_batch_head = heads[i];
		in_order();
	}
}

void srv_vhost_inflight_done(struct vhost_inflight_queue *queue, const uint16_t *heads,
			     unsigned count, uint16_t used)
{
	volatile struct vhost_inflight_queue *q = queue;

	in_order();
	for (unsigned i = 0; i < count; i++)
		q->entries[heads[i]].inflight = 0;
	in_order();
	q->used_idx = used;
}
