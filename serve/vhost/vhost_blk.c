/* SPDX-License-Identifier: MIT */
/*
 * vhost_blk.c - virtio-blk requests (virtio 1.2, 5.2; VU-60..VU-69): from a chain of descriptors to a
 * request of the disk's queue, straight from guest memory, and back. A request that asks for something
 * wrong is answered with a status; only one that leaves no place for a status breaks the ring. The
 * device's worker.
 */
#include <endian.h>
#include <errno.h>
#include <linux/virtio_config.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "serve/vhost/vhost.h"

#define SECTOR      512u
#define RANGE_BYTES (1u << 30) /* of one discard or write zeroes */
#define BIT(n)      (UINT64_C(1) << (n))

/* --- what the device is --- */

uint64_t srv_vhost_blk_features(const struct srv_export *export)
{
	uint64_t f = BIT(VIRTIO_F_VERSION_1) | BIT(VIRTIO_RING_F_INDIRECT_DESC) |
		     BIT(VIRTIO_RING_F_EVENT_IDX) | BIT(VHOST_F_PROTOCOL_FEATURES) |
		     BIT(VIRTIO_BLK_F_SIZE_MAX) | BIT(VIRTIO_BLK_F_SEG_MAX) |
		     BIT(VIRTIO_BLK_F_BLK_SIZE) | BIT(VIRTIO_BLK_F_TOPOLOGY) |
		     BIT(VIRTIO_BLK_F_MQ) | BIT(VIRTIO_BLK_F_FLUSH);

	return f | (export->read_only ? BIT(VIRTIO_BLK_F_RO)
				      : BIT(VIRTIO_BLK_F_DISCARD) | BIT(VIRTIO_BLK_F_WRITE_ZEROES));
}

/* VU-61 */
void srv_vhost_blk_config(const struct srv_export *export, uint32_t max_request,
			  struct virtio_blk_config *ret)
{
	uint32_t per_segment = max_request / VHOST_SEGMENTS & ~4095u, block = export->block_size;
	struct virtio_blk_config c = {
		.capacity = htole64(atomic_load(&export->size) / SECTOR),
		.size_max = htole32(per_segment ? per_segment : 4096),
		.seg_max = htole32(VHOST_SEGMENTS),
		.blk_size = htole32(SECTOR),
		.wce = 1,
		.num_queues = htole16(VHOST_QUEUES_MAX),
		.max_discard_sectors = htole32(RANGE_BYTES / SECTOR),
		.max_discard_seg = htole32(VHOST_RANGES_MAX),
		.discard_sector_alignment = htole32(block >= SECTOR ? block / SECTOR : 1),
		.max_write_zeroes_sectors = htole32(RANGE_BYTES / SECTOR),
		.max_write_zeroes_seg = htole32(VHOST_RANGES_MAX),
		.write_zeroes_may_unmap = 1,
	};

	while (block > SECTOR << c.physical_block_exp)
		c.physical_block_exp++;
	c.min_io_size = htole16((uint16_t)(1u << c.physical_block_exp));
	*ret = c;
}

/* VU-69: the name, or its beginning and a hash of all of it. */
void srv_vhost_blk_id(const char *name, char id[VIRTIO_BLK_ID_BYTES])
{
	char text[VIRTIO_BLK_ID_BYTES + 1] = {0};
	uint32_t hash = 2166136261u; /* FNV-1a */

	for (const char *p = name; *p; p++)
		hash = (hash ^ (uint8_t)*p) * 16777619u;
	if (strlen(name) <= VIRTIO_BLK_ID_BYTES)
		memcpy(text, name, strlen(name));
	else
		snprintf(text, sizeof(text), "%.11s-%08x", name, hash);
	for (char *p = text; *p; p++)
		if (*p == '/' || *p == '@')
			*p = '.';
	memcpy(id, text, VIRTIO_BLK_ID_BYTES);
}

/* --- vectors --- */

struct vec {
	struct iovec *iov;
	unsigned count;
};

static uint64_t vec_len(const struct vec *v)
{
	uint64_t len = 0;

	for (unsigned i = 0; i < v->count; i++)
		len += v->iov[i].iov_len;
	return len;
}

/* Copies the first @len bytes of @v out and takes them off it; false when it is shorter. */
static bool vec_take(struct vec *v, void *to, size_t len)
{
	while (len) {
		size_t n;

		if (!v->count)
			return false;
		n = v->iov->iov_len < len ? v->iov->iov_len : len;
		memcpy(to, v->iov->iov_base, n);
		to = (char *)to + n;
		len -= n;
		v->iov->iov_base = (char *)v->iov->iov_base + n;
		v->iov->iov_len -= n;
		if (!v->iov->iov_len) {
			v->iov++;
			v->count--;
		}
	}
	return true;
}

/* Takes the last byte off @v: the status' place (VU-62). NULL: there is none. */
static uint8_t *vec_last(struct vec *v)
{
	struct iovec *last;
	uint8_t *at;

	if (!v->count)
		return NULL;
	last = &v->iov[v->count - 1];
	at = (uint8_t *)last->iov_base + last->iov_len - 1;
	if (--last->iov_len == 0)
		v->count--;
	return at;
}

/* --- a request --- */

struct parsed {
	uint32_t type;
	uint64_t sector;
	struct vec out, in; /* data */
	uint8_t *status;
	uint16_t queue, head;
	uint64_t in_len; /* of the data's place */
};

static struct srv_vhost_io *io_get(struct srv_vhost_device *device)
{
	struct srv_vhost_io *io = device->free_ios;

	if (io)
		device->free_ios = io->next;
	else
		io = malloc(sizeof(*io));
	return io;
}

static void io_put(struct srv_vhost_device *device, struct srv_vhost_io *io)
{
	io->next = device->free_ios;
	device->free_ios = io;
}

/* Used length: everything writable, as the status is its last byte. */
static void answer(struct srv_vhost_device *device, const struct parsed *p, uint8_t status)
{
	*(volatile uint8_t *)p->status = status;
	srv_vhost_ring_give(&device->queues[p->queue]->ring, p->head, (uint32_t)p->in_len + 1);
	srv_vhost_device_wake(device);
}

static uint8_t status_of(int32_t result)
{
	if (result >= 0)
		return VIRTIO_BLK_S_OK;
	return result == -ENOTSUP ? VIRTIO_BLK_S_UNSUPP : VIRTIO_BLK_S_IOERR;
}

static void io_end(struct srv_vhost_io *io, int32_t result)
{
	struct srv_vhost_device *device = io->device;
	struct srv_vhost_queue *q = device->queues[io->queue];

	srv_stats_note(&device->export->stats, io->io.request.op, io->bytes, io->start_ns, result);
	*(volatile uint8_t *)io->status = status_of(result);
	if (!q->ring.fault)
		srv_vhost_ring_give(&q->ring, io->head, io->used_len);
	q->inflight--;
	device->inflight_ios--;
	device->inflight_bytes -= io->bytes;
	io_put(device, io);
	srv_vhost_device_wake(device);
}

static void start_range(struct srv_vhost_io *io)
{
	const struct virtio_blk_discard_write_zeroes *w = &io->wire[io->range];

	io->io.request.op = io->discard || w->flags ? VMIMG_DISCARD : VMIMG_WRITE_ZEROES;
	io->io.request.offset = w->sector * SECTOR;
	io->io.request.length = (uint64_t)w->num_sectors * SECTOR;
	srv_worker_io(io->device->worker, &io->io);
}

static void on_done(struct srv_io *sio, int32_t result)
{
	struct srv_vhost_io *io = (struct srv_vhost_io *)sio;

	if (result >= 0 && ++io->range < io->ranges)
		start_range(io);
	else
		io_end(io, result);
}

static struct srv_vhost_io *io_begin(struct srv_vhost_device *device, const struct parsed *p,
				     uint8_t op, uint64_t bytes)
{
	struct srv_vhost_io *io = io_get(device);
	bool changes = op == VMIMG_WRITE || op == VMIMG_WRITE_ZEROES || op == VMIMG_DISCARD;

	if (!io)
		return NULL;
	io->io.done = on_done;
	io->io.request = (struct vmimg_request){
		.disk = device->export->disk,
		.op = op,
		/* VU-64: a driver that cannot flush has no cache to flush. */
		.flags = changes && !(device->features & BIT(VIRTIO_BLK_F_FLUSH)) ? VMIMG_FUA : 0,
	};
	io->device = device;
	io->queue = p->queue;
	io->head = p->head;
	io->status = p->status;
	io->used_len = (uint32_t)p->in_len + 1;
	io->bytes = bytes;
	io->start_ns = device->now_ns;
	io->ranges = io->range = 0;
	device->queues[p->queue]->inflight++;
	device->inflight_ios++;
	device->inflight_bytes += bytes;
	return io;
}

static bool in_disk(const struct srv_vhost_device *device, uint64_t sector, uint64_t bytes)
{
	uint64_t size = atomic_load_explicit(&device->export->size, memory_order_relaxed);

	return sector <= size / SECTOR && bytes <= size - sector * SECTOR;
}

/* VU-63 */
static void start_data(struct srv_vhost_device *device, const struct parsed *p, bool write)
{
	const struct vec *v = write ? &p->out : &p->in;
	uint64_t len = vec_len(v);
	struct srv_vhost_io *io;

	if (!len || len % SECTOR || len > device->server->options.max_request ||
	    v->count > sizeof(io->iov) / sizeof(io->iov[0]) || !in_disk(device, p->sector, len) ||
	    (write && device->export->read_only) ||
	    !(io = io_begin(device, p, write ? VMIMG_WRITE : VMIMG_READ, len))) {
		answer(device, p, VIRTIO_BLK_S_IOERR);
		return;
	}
	memcpy(io->iov, v->iov, v->count * sizeof(*v->iov));
	io->io.request.iov = io->iov;
	io->io.request.iovcnt = v->count;
	io->io.request.offset = p->sector * SECTOR;
	io->io.request.length = len;
	srv_worker_io(device->worker, &io->io);
}

/* VU-66: all ranges are checked before the first is started. Makes them the host's. */
static uint8_t check_ranges(const struct srv_vhost_device *device,
			    struct virtio_blk_discard_write_zeroes *wire, unsigned count,
			    uint32_t type, uint64_t *bytes)
{
	for (unsigned i = 0; i < count; i++) {
		struct virtio_blk_discard_write_zeroes *w = &wire[i];
		uint64_t len;

		w->sector = le64toh(w->sector);
		w->num_sectors = le32toh(w->num_sectors);
		w->flags = le32toh(w->flags);
		len = (uint64_t)w->num_sectors * SECTOR;
		if (w->flags & ~VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP ||
		    (type == VIRTIO_BLK_T_DISCARD && w->flags))
			return VIRTIO_BLK_S_UNSUPP;
		if (len > RANGE_BYTES || !in_disk(device, w->sector, len))
			return VIRTIO_BLK_S_IOERR;
		*bytes += len;
	}
	return VIRTIO_BLK_S_OK;
}

static void start_ranges(struct srv_vhost_device *device, struct parsed *p)
{
	struct virtio_blk_discard_write_zeroes wire[VHOST_RANGES_MAX];
	uint64_t len = vec_len(&p->out), bytes = 0;
	unsigned count = (unsigned)(len / sizeof(wire[0]));
	uint8_t status = VIRTIO_BLK_S_IOERR;
	struct srv_vhost_io *io;

	if (device->export->read_only || !len || len % sizeof(wire[0]) || len > sizeof(wire) ||
	    !vec_take(&p->out, wire, len))
		goto refuse;
	status = check_ranges(device, wire, count, p->type, &bytes);
	if (status != VIRTIO_BLK_S_OK)
		goto refuse;
	io = io_begin(device, p, VMIMG_WRITE_ZEROES, bytes);
	status = VIRTIO_BLK_S_IOERR;
	if (!io)
		goto refuse;
	memcpy(io->wire, wire, len);
	io->ranges = count;
	io->discard = p->type == VIRTIO_BLK_T_DISCARD;
	start_range(io);
	return;
refuse:
	answer(device, p, status);
}

static void start_flush(struct srv_vhost_device *device, const struct parsed *p)
{
	struct srv_vhost_io *io = io_begin(device, p, VMIMG_FLUSH, 0);

	if (io)
		srv_worker_io(device->worker, &io->io);
	else
		answer(device, p, VIRTIO_BLK_S_IOERR);
}

static void answer_id(struct srv_vhost_device *device, const struct parsed *p)
{
	char id[VIRTIO_BLK_ID_BYTES];
	size_t done = 0;

	srv_vhost_blk_id(device->export->name, id);
	for (unsigned i = 0; i < p->in.count && done < sizeof(id); i++) {
		size_t n = sizeof(id) - done;

		if (n > p->in.iov[i].iov_len)
			n = p->in.iov[i].iov_len;
		memcpy(p->in.iov[i].iov_base, id + done, n);
		done += n;
	}
	answer(device, p, VIRTIO_BLK_S_OK);
}

int srv_vhost_blk_start(struct srv_vhost_device *device, unsigned index, uint16_t head,
			struct srv_vhost_chain *chain)
{
	struct srv_vhost_ring *ring = &device->queues[index]->ring;
	struct parsed p = {.queue = (uint16_t)index, .head = head};
	struct virtio_blk_outhdr hdr;
	int r = srv_vhost_ring_walk(ring, device->memory, head, chain);

	if (r < 0)
		return r;
	p.out = (struct vec){chain->iov, chain->out};
	p.in = (struct vec){chain->iov + chain->out, chain->in};
	p.status = vec_last(&p.in);
	if (!p.status || !vec_take(&p.out, &hdr, sizeof(hdr))) {
		ring->fault = p.status ? "a request without a header"
				       : "a request without a status";
		return -EUCLEAN;
	}
	p.type = le32toh(hdr.type);
	p.sector = le64toh(hdr.sector);
	p.in_len = vec_len(&p.in);
	switch (p.type) {
	case VIRTIO_BLK_T_IN: start_data(device, &p, false); break;
	case VIRTIO_BLK_T_OUT: start_data(device, &p, true); break;
	case VIRTIO_BLK_T_FLUSH: start_flush(device, &p); break;
	case VIRTIO_BLK_T_GET_ID: answer_id(device, &p); break;
	case VIRTIO_BLK_T_DISCARD:
	case VIRTIO_BLK_T_WRITE_ZEROES: start_ranges(device, &p); break;
	default: answer(device, &p, VIRTIO_BLK_S_UNSUPP);
	}
	return 0;
}
