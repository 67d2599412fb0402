/* SPDX-License-Identifier: MIT */
/*
 * vhost_ring.c - a split virtqueue in guest memory (virtio 1.2, 2.7). The driver may be hostile and may
 * write everywhere while we look: each word is read once, into a local, checked and then used (V-2). What
 * breaks the ring's rules sets @fault; a broken ring is touched no more (VU-50). The device's worker.
 */
#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "serve/vhost/vhost.h"

/* Offsets in the two rings; each begins with flags and idx. */
#define IDX_AT      2u
#define AVAIL_AT(i) (4u + 2u * (size_t)(i))
#define USED_AT(i)  (4u + 8u * (size_t)(i))

static uint16_t load16(const uint8_t *p)
{
	return le16toh(*(const volatile uint16_t *)p);
}

static void store16(uint8_t *p, uint16_t v)
{
	*(volatile uint16_t *)p = htole16(v);
}

static uint16_t load16_acquire(const uint8_t *p)
{
	uint16_t v = load16(p);

	atomic_thread_fence(memory_order_acquire);
	return v;
}

static int broken(struct srv_vhost_ring *ring, const char *why)
{
	ring->fault = why;
	return -EUCLEAN;
}

/* --- set-up --- */

int srv_vhost_ring_resize(struct srv_vhost_ring *ring, uint32_t num)
{
	uint8_t *busy;
	uint16_t *batch, *resume;

	if (!num || num > VHOST_QUEUE_SIZE || num & (num - 1))
		return -EINVAL;
	busy = calloc(num, sizeof(*busy));
	batch = calloc(num, sizeof(*batch));
	resume = calloc(num, sizeof(*resume));
	if (!busy || !batch || !resume) {
		free(busy);
		free(batch);
		free(resume);
		return -ENOMEM;
	}
	srv_vhost_ring_fini(ring);
	ring->busy = busy;
	ring->batch = batch;
	ring->resume = resume;
	ring->num = (uint16_t)num;
	return 0;
}

void srv_vhost_ring_fini(struct srv_vhost_ring *ring)
{
	free(ring->busy);
	free(ring->batch);
	free(ring->resume);
	ring->busy = NULL;
	ring->batch = ring->resume = NULL;
	ring->nbatch = ring->nresume = 0;
	ring->num = 0;
}

int srv_vhost_ring_place(struct srv_vhost_ring *ring, const struct srv_vhost_memory *mem,
			 const struct vhost_addr *addr)
{
	const uint8_t *desc, *avail;
	uint8_t *used;

	desc = srv_vhost_memory_user(mem, addr->desc, ring->num * sizeof(struct vring_desc));
	/* Each ends with the word that tells when the other side wants to hear of it. */
	avail = srv_vhost_memory_user(mem, addr->avail, AVAIL_AT(ring->num) + 2);
	used = srv_vhost_memory_user(mem, addr->used, USED_AT(ring->num) + 2);
	if (!ring->num || !desc || !avail || !used || (uintptr_t)desc % VRING_DESC_ALIGN_SIZE ||
	    (uintptr_t)avail % VRING_AVAIL_ALIGN_SIZE || (uintptr_t)used % VRING_USED_ALIGN_SIZE)
		return -EINVAL;
	ring->desc = desc;
	ring->avail = avail;
	ring->used = used;
	return 0;
}

uint16_t srv_vhost_ring_used_idx(const struct srv_vhost_ring *ring)
{
	return load16(ring->used + IDX_AT);
}

/* --- what the driver offers --- */

int srv_vhost_ring_next(struct srv_vhost_ring *ring, uint16_t *head)
{
	uint16_t idx = load16_acquire(ring->avail + IDX_AT), i;

	if (idx == ring->next_avail)
		return 0;
	if ((uint16_t)(idx - ring->next_avail) > ring->num)
		return broken(ring, "the available index jumps");
	i = load16(ring->avail + AVAIL_AT(ring->next_avail & (ring->num - 1)));
	if (i >= ring->num)
		return broken(ring, "an available head lies beyond the table");
	ring->next_avail++;
	*head = i;
	return 1;
}

int srv_vhost_ring_take(struct srv_vhost_ring *ring, uint16_t head)
{
	if (ring->busy[head])
		return broken(ring, "a head is made available twice");
	ring->busy[head] = 1;
	if (ring->inflight)
		srv_vhost_inflight_take(ring->inflight, head, ring->counter++);
	return 0;
}

/* A table of descriptors: the ring's own, or an indirect one. */
struct table {
	const uint8_t *base;
	uint32_t num;
	bool indirect;
};

static void load_desc(const struct table *t, uint32_t i, struct vring_desc *ret)
{
	const volatile uint8_t *from = t->base + i * sizeof(*ret);
	uint8_t *to = (uint8_t *)ret;

	/* An indirect table may lie at any address. */
	for (size_t k = 0; k < sizeof(*ret); k++)
		to[k] = from[k];
	ret->addr = le64toh(ret->addr);
	ret->len = le32toh(ret->len);
	ret->flags = le16toh(ret->flags);
	ret->next = le16toh(ret->next);
}

static int enter_indirect(struct srv_vhost_ring *ring, const struct srv_vhost_memory *mem,
			  const struct vring_desc *d, struct table *t)
{
	struct iovec where;
	unsigned n = 0;

	if (!ring->indirect)
		return broken(ring, "an indirect descriptor was not negotiated");
	if (t->indirect)
		return broken(ring, "an indirect table within another");
	if (d->flags & VRING_DESC_F_NEXT)
		return broken(ring, "an indirect descriptor with a next one");
	if (!d->len || d->len % sizeof(*d) || d->len / sizeof(*d) > VHOST_CHAIN_MAX)
		return broken(ring, "an indirect table of a wrong size");
	if (srv_vhost_memory_slice(mem, d->addr, d->len, &where, 1, &n) < 0)
		return broken(ring, "an indirect table outside of memory");
	*t = (struct table){where.iov_base, d->len / (uint32_t)sizeof(*d), true};
	return 0;
}

static int add_segment(struct srv_vhost_ring *ring, const struct srv_vhost_memory *mem,
		       const struct vring_desc *d, struct srv_vhost_chain *chain)
{
	unsigned count = chain->out + chain->in, before = count;
	unsigned max = sizeof(chain->iov) / sizeof(chain->iov[0]);
	bool write = d->flags & VRING_DESC_F_WRITE;

	if (!write && chain->in)
		return broken(ring, "a readable descriptor after a writable one");
	if (!d->len)
		return broken(ring, "an empty descriptor");
	if (srv_vhost_memory_slice(mem, d->addr, d->len, chain->iov, max, &count) < 0)
		return broken(ring, "a descriptor outside of memory");
	if (write)
		chain->in += count - before;
	else
		chain->out += count - before;
	return 0;
}

int srv_vhost_ring_walk(struct srv_vhost_ring *ring, const struct srv_vhost_memory *mem,
			uint16_t head, struct srv_vhost_chain *chain)
{
	struct table t = {ring->desc, ring->num, false};
	uint32_t i = head, steps = 0;
	int r = 0;

	chain->out = chain->in = 0;
	for (;;) {
		struct vring_desc d;

		if (i >= t.num)
			return broken(ring, "a descriptor beyond its table");
		/* A chain visits no descriptor twice. */
		if (steps++ == t.num)
			return broken(ring, "a chain in a circle");
		load_desc(&t, i, &d);
		if (d.flags & VRING_DESC_F_INDIRECT) {
			r = enter_indirect(ring, mem, &d, &t);
			i = 0;
			steps = 0;
		} else {
			r = add_segment(ring, mem, &d, chain);
			if (r == 0 && !(d.flags & VRING_DESC_F_NEXT))
				return 0;
			i = d.next;
		}
		if (r < 0)
			return r;
	}
}

/* --- what the driver gets back --- */

void srv_vhost_ring_give(struct srv_vhost_ring *ring, uint16_t head, uint32_t len)
{
	volatile uint32_t *e = (uint32_t *)(ring->used +
					    USED_AT(ring->next_used & (ring->num - 1)));

	e[0] = htole32(head);
	e[1] = htole32(len);
	ring->next_used++;
	ring->batch[ring->nbatch++] = head;
}

/* Whether the driver wants to hear of the buffers [from, to). */
static bool wants_call(struct srv_vhost_ring *ring, uint16_t from, uint16_t to)
{
	bool told = ring->told;

	ring->told = true;
	if (!ring->event_idx)
		return !(load16(ring->avail) & VRING_AVAIL_F_NO_INTERRUPT);
	/* What was decided before our start is not known: one call too many. */
	return !told || vring_need_event(load16(ring->avail + AVAIL_AT(ring->num)), to, from);
}

bool srv_vhost_ring_publish(struct srv_vhost_ring *ring)
{
	uint16_t from = ring->published;

	if (!ring->nbatch)
		return false;
	if (ring->inflight)
		srv_vhost_inflight_batch(ring->inflight, ring->batch, ring->nbatch);
	atomic_thread_fence(memory_order_release); /* the entries before the index */
	store16(ring->used + IDX_AT, ring->next_used);
	ring->published = ring->next_used;
	if (ring->inflight)
		srv_vhost_inflight_done(ring->inflight, ring->batch, ring->nbatch, ring->next_used);
	/* Only now may the driver use them again: a batch never holds a head twice. */
	for (unsigned i = 0; i < ring->nbatch; i++)
		ring->busy[ring->batch[i]] = 0;
	ring->nbatch = 0;
	/* The index before what the driver wants: it stores its wish, then looks at the index. */
	atomic_thread_fence(memory_order_seq_cst);
	return wants_call(ring, from, ring->published);
}

/* --- kicks --- */

void srv_vhost_ring_hush(struct srv_vhost_ring *ring)
{
	/* With event indices the driver is silent until it passes the last one it was told. */
	if (!ring->event_idx)
		store16(ring->used, VRING_USED_F_NO_NOTIFY);
}

bool srv_vhost_ring_listen(struct srv_vhost_ring *ring)
{
	if (ring->event_idx)
		store16(ring->used + USED_AT(ring->num), ring->next_avail);
	else
		store16(ring->used, 0);
	atomic_thread_fence(memory_order_seq_cst);
	return load16(ring->avail + IDX_AT) != ring->next_avail;
}
