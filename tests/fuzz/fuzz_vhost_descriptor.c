/* SPDX-License-Identifier: MIT */
/*
 * fuzz_vhost_descriptor.c - any bytes as guest memory with a virtqueue in it, and as the region that
 * tracks requests in flight. Guest memory is on the heap, to its last byte, so that the address sanitizer
 * sees what leaves it. Invariants (VU-50, VU-52, VU-73):
 * - no crash, no undefined behaviour, an end
 * - a chain that is accepted lies in memory: readable segments, then writable ones, none empty
 * - no head is in flight twice; a broken ring says why
 * - what is resumed are different heads of the ring
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "serve/vhost/vhost.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

#define GUEST UINT64_C(0x10000)
#define USER  UINT64_C(0x7f0000000000)

static void check(bool ok, const char *what)
{
	if (!ok) {
		fprintf(stderr, "violated: %s\n", what);
		abort();
	}
}

/* Two regions side by side in the guest's addresses, and apart here: what crosses is seen. */
static void make_memory(struct srv_vhost_memory *mem, const uint8_t *data, size_t len)
{
	size_t first = len / 3 & ~(size_t)15, sizes[2] = {first, len - first};
	uint64_t guest = GUEST;

	memset(mem, 0, sizeof(*mem));
	for (unsigned i = 0; i < 2; i++) {
		struct srv_vhost_region *r = &mem->regions[mem->count];

		if (!sizes[i])
			continue;
		*r = (struct srv_vhost_region){
			guest, USER + (guest - GUEST), sizes[i], malloc(sizes[i]), {0}};
		memcpy(r->host, data, sizes[i]);
		data += sizes[i];
		guest += sizes[i];
		mem->count++;
	}
}

static bool in_memory(const struct srv_vhost_memory *mem, const struct iovec *v)
{
	for (unsigned i = 0; i < mem->count; i++) {
		const struct srv_vhost_region *r = &mem->regions[i];
		uint8_t *at = v->iov_base;

		if (at >= r->host && at < r->host + r->size)
			return v->iov_len && v->iov_len <= (size_t)(r->host + r->size - at);
	}
	return false;
}

static void run_ring(struct srv_vhost_ring *ring, struct srv_vhost_memory *mem,
		     struct srv_vhost_chain *chain)
{
	static bool in_flight[VHOST_QUEUE_SIZE];
	int r = 0;

	memset(in_flight, 0, sizeof(in_flight));
	for (unsigned steps = 0; steps < 4096; steps++) {
		uint16_t head;

		r = srv_vhost_ring_next(ring, &head);
		if (r <= 0)
			break;
		check(head < ring->num, "a head is in the table");
		r = srv_vhost_ring_take(ring, head);
		check((r < 0) == in_flight[head], "a head is in flight once");
		if (r == 0)
			r = srv_vhost_ring_walk(ring, mem, head, chain);
		if (r < 0)
			break;
		in_flight[head] = true;
		for (unsigned i = 0; i < chain->out + chain->in; i++)
			check(in_memory(mem, &chain->iov[i]), "a segment is in memory");
		/* Written like a status: the ring itself may be what the driver pointed to. */
		if (chain->in)
			*(uint8_t *)chain->iov[chain->out].iov_base ^= 1;
		if (steps % 3 == 0) {
			srv_vhost_ring_give(ring, head, 1);
			srv_vhost_ring_publish(ring);
			in_flight[head] = false;
		}
		if (steps % 5 == 0) {
			srv_vhost_ring_hush(ring);
			srv_vhost_ring_listen(ring);
		}
	}
	check(r >= 0 || (r == -EUCLEAN && ring->fault), "a broken ring says why");
}

static void run_inflight(const uint8_t *data, size_t len, uint16_t num, uint16_t used)
{
	size_t size = sizeof(struct vhost_inflight_queue) +
		      num * sizeof(struct vhost_inflight_entry);
	struct vhost_inflight_queue *q = calloc(1, size);
	uint16_t heads[VHOST_QUEUE_SIZE];
	bool seen[VHOST_QUEUE_SIZE] = {0};
	uint64_t counter;
	unsigned n;

	memcpy(q, data, len < size ? len : size);
	n = srv_vhost_inflight_resume(q, num, used, heads, &counter);
	check(n <= num, "no more than there are");
	for (unsigned i = 0; i < n; i++) {
		check(heads[i] < num && !seen[heads[i]], "different heads of the ring");
		seen[heads[i]] = true;
	}
	check(q->version == 1 && q->used_idx == used, "the region is in order");
	free(q);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	struct srv_vhost_chain *chain;
	struct srv_vhost_memory mem;
	struct srv_vhost_ring ring = {0};
	struct vhost_addr addr = {0};
	uint16_t at[3];

	if (len < 16)
		return 0;
	check(srv_vhost_ring_resize(&ring, 1u << (data[0] % 11)) == 0, "a size");
	memcpy(at, data + 2, sizeof(at));
	ring.event_idx = data[1] & 1;
	ring.indirect = data[1] & 2;
	memcpy(&ring.next_avail, data + 8, 2);
	memcpy(&ring.next_used, data + 10, 2);
	ring.published = ring.next_used;
	run_inflight(data + 16, len - 16, ring.num, ring.next_used);
	make_memory(&mem, data + 16, len - 16);
	chain = malloc(sizeof(*chain));
	addr.desc = USER + at[0];
	addr.avail = USER + at[1];
	addr.used = USER + at[2];
	if (srv_vhost_ring_place(&ring, &mem, &addr) == 0)
		run_ring(&ring, &mem, chain);
	for (unsigned i = 0; i < mem.count; i++)
		free(mem.regions[i].host);
	srv_vhost_ring_fini(&ring);
	free(chain);
	return 0;
}
