/* SPDX-License-Identifier: MIT */
/* vhost_driver.c - see vhost_driver.h. */
#include "tests/serve/vhost_driver.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define PAGE        4096u
#define QUEUE_AREA  ((size_t)512 << 10) /* rings, tables, headers of a queue */
#define TABLE_BYTES ((VD_SEGMENTS + 2) * sizeof(struct vring_desc))
#define SLOT_META   1024u /* table, header, status of a slot */
#define META_HEADER 512u
#define META_STATUS 600u
#define ANSWER_MS   20000

struct header {
	uint32_t request, flags, size;
};

/* --- memory --- */

uint64_t vd_guest(const struct vd *d, const void *at)
{
	return VD_GUEST + (uint64_t)((const uint8_t *)at - d->mem);
}

static int make_memory(struct vd *d)
{
	size_t len[2] = {VD_SPLIT, VD_MEMORY - VD_SPLIT};
	uint8_t *at;

	at = mmap(NULL, VD_MEMORY, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (at == MAP_FAILED)
		return -errno;
	d->mem = at;
	for (int i = 0; i < 2; at += len[i++]) {
		d->files[i] = memfd_create("guest", MFD_CLOEXEC);
		if (d->files[i] < 0 || ftruncate(d->files[i], (off_t)len[i]) < 0 ||
		    mmap(at, len[i], PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, d->files[i],
			 0) == MAP_FAILED)
			return -errno;
	}
	return 0;
}

/* Everything of a queue's own lies in the first file; data across both. */
static void place_queue(struct vd *d, unsigned i)
{
	struct vd_queue *q = &d->q[i];
	uint8_t *at = d->mem + i * QUEUE_AREA;
	/* So that the data of queue 0's slot 16 crosses from file to file. */
	uint8_t *data = d->mem + VD_SPLIT - 16 * VD_SLOT_MAX - VD_SLOT_MAX / 2 +
			(size_t)i * VD_SLOTS * VD_SLOT_MAX;

	q->num = d->size;
	q->desc = (struct vring_desc *)at;
	at += (d->size * sizeof(struct vring_desc) + PAGE - 1) & ~(size_t)(PAGE - 1);
	q->avail = (struct vring_avail *)at;
	at += 2 * PAGE;
	q->used = (struct vring_used *)at;
	at += 4 * PAGE;
	q->tables = at;
	for (unsigned s = 0; s < VD_SLOTS; s++)
		q->slots[s].data = data + s * VD_SLOT_MAX;
}

int vd_init(struct vd *d, const char *path, unsigned queues, uint16_t size)
{
	memset(d, 0, sizeof(*d));
	snprintf(d->path, sizeof(d->path), "%s", path);
	d->fd = d->backend = d->inflight_fd = d->files[0] = d->files[1] = -1;
	d->queues = queues;
	d->size = size;
	for (unsigned i = 0; i < VD_QUEUES; i++)
		d->q[i].kick = d->q[i].call = d->q[i].err = -1;
	for (unsigned i = 0; i < queues; i++) {
		d->q[i].kick = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
		d->q[i].call = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
		d->q[i].err = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	}
	if (make_memory(d) < 0)
		return -ENOMEM;
	for (unsigned i = 0; i < queues; i++)
		place_queue(d, i);
	return 0;
}

static void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

void vd_disconnect(struct vd *d)
{
	close_fd(&d->fd);
	close_fd(&d->backend);
}

void vd_fini(struct vd *d)
{
	vd_disconnect(d);
	close_fd(&d->inflight_fd);
	for (unsigned i = 0; i < VD_QUEUES; i++) {
		close_fd(&d->q[i].kick);
		close_fd(&d->q[i].call);
		close_fd(&d->q[i].err);
	}
	close_fd(&d->files[0]);
	close_fd(&d->files[1]);
	if (d->mem)
		munmap(d->mem, VD_MEMORY);
	d->mem = NULL;
}

/* --- messages --- */

int vd_send(struct vd *d, uint32_t request, uint32_t flags, const void *payload, uint32_t size,
	    const int *fds, unsigned nfds)
{
	struct header h = {request, flags, size};
	struct iovec iov[2] = {{&h, sizeof(h)}, {(void *)(uintptr_t)payload, size}};
	char control[CMSG_SPACE(sizeof(int) * 16)] = {0};
	struct msghdr msg = {.msg_iov = iov, .msg_iovlen = size ? 2 : 1};
	ssize_t n;

	if (nfds) {
		struct cmsghdr *c;

		msg.msg_control = control;
		msg.msg_controllen = CMSG_SPACE(sizeof(int) * nfds);
		c = CMSG_FIRSTHDR(&msg);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int) * nfds);
		memcpy(CMSG_DATA(c), fds, sizeof(int) * nfds);
	}
	n = sendmsg(d->fd, &msg, MSG_NOSIGNAL);
	if (n < 0)
		return -errno;
	return n == (ssize_t)(sizeof(h) + size) ? 0 : -EIO;
}

static int receive_bytes(int fd, void *to, size_t len, int *passed)
{
	char *at = to;

	while (len) {
		char control[CMSG_SPACE(sizeof(int))];
		struct iovec iov = {at, len};
		struct msghdr msg = {.msg_iov = &iov,
				     .msg_iovlen = 1,
				     .msg_control = control,
				     .msg_controllen = sizeof(control)};
		struct pollfd p = {.fd = fd, .events = POLLIN};
		struct cmsghdr *c;
		ssize_t n;

		if (poll(&p, 1, ANSWER_MS) <= 0)
			return -ETIMEDOUT;
		n = recvmsg(fd, &msg, MSG_CMSG_CLOEXEC);
		if (n <= 0)
			return n < 0 ? -errno : -ECONNRESET;
		c = CMSG_FIRSTHDR(&msg);
		if (c && c->cmsg_type == SCM_RIGHTS && passed)
			memcpy(passed, CMSG_DATA(c), sizeof(int));
		at += n;
		len -= (size_t)n;
	}
	return 0;
}

int vd_receive(struct vd *d, uint32_t request, void *payload, uint32_t max, int *fd)
{
	struct header h;
	int r = receive_bytes(d->fd, &h, sizeof(h), fd);

	if (r < 0)
		return r;
	if (h.request != request || h.flags != (1u | 1u << 2) || h.size > max)
		return -EPROTO;
	r = receive_bytes(d->fd, payload, h.size, fd);
	return r < 0 ? r : (int)h.size;
}

int vd_ask(struct vd *d, uint32_t request, const void *payload, uint32_t size, const int *fds,
	   unsigned nfds)
{
	uint64_t value = 0;
	int r = vd_send(d, request, 1u | 1u << 3, payload, size, fds, nfds);

	if (r == 0)
		r = vd_receive(d, request, &value, sizeof(value), NULL);
	return r < 0 ? r : (int)value;
}

int vd_get_u64(struct vd *d, uint32_t request, uint64_t *value)
{
	int r = vd_send(d, request, 1, NULL, 0, NULL, 0);

	if (r == 0)
		r = vd_receive(d, request, value, sizeof(*value), NULL);
	return r < 0 ? r : 0;
}

int vd_get_config(struct vd *d, void *config, uint32_t offset, uint32_t size)
{
	struct {
		uint32_t offset, size, flags;
		uint8_t bytes[256];
	} c = {offset, size, 0, {0}};
	int r = vd_send(d, VU_GET_CONFIG, 1, &c, 12 + size, NULL, 0);

	if (r == 0)
		r = vd_receive(d, VU_GET_CONFIG, &c, sizeof(c), NULL);
	if (r < 0)
		return r;
	if (r != (int)(12 + size) || c.size != size || c.offset != offset)
		return -EPROTO;
	memcpy(config, c.bytes, size);
	return 0;
}

/* --- set-up --- */

int vd_dial(struct vd *d)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	struct timespec nap = {0, 20000000};

	memcpy(addr.sun_path, d->path, sizeof(addr.sun_path) - 1);
	for (int tries = 0; tries < 1000; tries++) {
		d->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
		if (d->fd < 0)
			return -errno;
		if (connect(d->fd, (struct sockaddr *)&addr, sizeof(addr)) == 0)
			return 0;
		close_fd(&d->fd);
		nanosleep(&nap, NULL);
	}
	return -ETIMEDOUT;
}

static int negotiate(struct vd *d, uint64_t without)
{
	uint64_t protocol = 0;
	int r = vd_get_u64(d, VU_GET_FEATURES, &d->offered);

	if (r == 0)
		r = vd_get_u64(d, VU_GET_PROTOCOL_FEATURES, &protocol);
	d->features = d->offered & ~without;
	d->protocol = protocol;
	d->event_idx = d->features & VU_BIT(VIRTIO_RING_F_EVENT_IDX);
	d->indirect = d->features & VU_BIT(VIRTIO_RING_F_INDIRECT_DESC);
	if (r == 0)
		r = vd_send(d, VU_SET_PROTOCOL_FEATURES, 1, &protocol, 8, NULL, 0);
	if (r == 0)
		r = vd_ask(d, VU_SET_OWNER, NULL, 0, NULL, 0);
	if (r == 0)
		r = vd_ask(d, VU_SET_FEATURES, &d->features, 8, NULL, 0);
	return r;
}

static int give_backend_channel(struct vd *d)
{
	int pair[2], r;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
		return -errno;
	r = vd_ask(d, VU_SET_BACKEND_REQ_FD, NULL, 0, &pair[1], 1);
	close(pair[1]);
	d->backend = pair[0];
	return r;
}

int vd_give_memory(struct vd *d)
{
	struct {
		uint32_t count, padding;
		uint64_t regions[2][4];
	} t = {2,
	       0,
	       {{VD_GUEST, VD_SPLIT, (uintptr_t)d->mem, 0},
		{VD_GUEST + VD_SPLIT, VD_MEMORY - VD_SPLIT, (uintptr_t)d->mem + VD_SPLIT, 0}}};

	return vd_ask(d, VU_SET_MEM_TABLE, &t, sizeof(t), d->files, 2);
}

static int give_inflight(struct vd *d)
{
	struct {
		uint64_t size, offset;
		uint16_t queues, queue_size, padding[2];
	} m = {0, 0, (uint16_t)d->queues, d->size, {0}};
	int r = 0;

	if (d->inflight_fd < 0) {
		r = vd_send(d, VU_GET_INFLIGHT_FD, 1, &m, sizeof(m), NULL, 0);
		if (r == 0)
			r = vd_receive(d, VU_GET_INFLIGHT_FD, d->inflight_msg,
				       sizeof(d->inflight_msg), &d->inflight_fd);
		if (r != sizeof(d->inflight_msg) || d->inflight_fd < 0)
			return r < 0 ? r : -EPROTO;
	}
	return vd_ask(d, VU_SET_INFLIGHT_FD, d->inflight_msg, sizeof(d->inflight_msg),
		      &d->inflight_fd, 1);
}

int vd_start_queue(struct vd *d, unsigned i, uint16_t base)
{
	struct vd_queue *q = &d->q[i];
	uint32_t num[2] = {i, q->num}, start[2] = {i, base}, on[2] = {i, 1};
	struct {
		uint32_t index, flags;
		uint64_t desc, used, avail, log;
	} addr = {i, 0, (uintptr_t)q->desc, (uintptr_t)q->used, (uintptr_t)q->avail, 0};
	uint64_t index = i;
	int r = vd_ask(d, VU_SET_VRING_NUM, num, sizeof(num), NULL, 0);

	if (r == 0)
		r = vd_ask(d, VU_SET_VRING_BASE, start, sizeof(start), NULL, 0);
	if (r == 0)
		r = vd_ask(d, VU_SET_VRING_ADDR, &addr, sizeof(addr), NULL, 0);
	if (r == 0)
		r = vd_ask(d, VU_SET_VRING_ERR, &index, sizeof(index), &q->err, 1);
	if (r == 0)
		r = vd_ask(d, VU_SET_VRING_KICK, &index, sizeof(index), &q->kick, 1);
	if (r == 0)
		r = vd_ask(d, VU_SET_VRING_CALL, &index, sizeof(index), &q->call, 1);
	if (r == 0 && d->features & VU_BIT(VU_F_PROTOCOL))
		r = vd_ask(d, VU_SET_VRING_ENABLE, on, sizeof(on), NULL, 0);
	return r;
}

int vd_stop_queue(struct vd *d, unsigned queue, uint16_t *base)
{
	uint32_t state[2] = {queue, 0};
	int r = vd_send(d, VU_GET_VRING_BASE, 1, state, sizeof(state), NULL, 0);

	if (r == 0)
		r = vd_receive(d, VU_GET_VRING_BASE, state, sizeof(state), NULL);
	if (r == sizeof(state))
		*base = (uint16_t)state[1];
	return r < 0 ? r : 0;
}

int vd_connect(struct vd *d, uint64_t without)
{
	int r = vd_dial(d);

	if (r == 0)
		r = negotiate(d, without);
	if (r == 0)
		r = give_backend_channel(d);
	if (r == 0)
		r = vd_give_memory(d);
	if (r == 0 && d->inflight)
		r = give_inflight(d);
	/* As after a reset of the connection: what the used ring says, everything before is done. */
	for (unsigned i = 0; i < d->queues && r == 0; i++)
		r = vd_start_queue(d, i, d->q[i].used->idx);
	return r;
}

/* --- requests --- */

struct vd_slot *vd_slot_get(struct vd *d, unsigned queue)
{
	struct vd_queue *q = &d->q[queue];

	for (unsigned s = 0; s < VD_SLOTS; s++)
		if (!q->slots[s].busy) {
			q->slots[s].busy = true;
			q->slots[s].done = false;
			q->busy++;
			return &q->slots[s];
		}
	return NULL;
}

static uint8_t *meta_of(struct vd_queue *q, unsigned s)
{
	return q->tables + s * SLOT_META;
}

/* The chain in @table, whose entries are linked from @first on. Returns its length. */
static unsigned build(struct vd *d, struct vring_desc *table, unsigned first, struct vd_queue *q,
		      unsigned s, unsigned segments)
{
	struct vd_slot *slot = &q->slots[s];
	uint8_t *meta = meta_of(q, s);
	bool in = slot->op == VIRTIO_BLK_T_IN || slot->op == VIRTIO_BLK_T_GET_ID;
	uint64_t len = slot->op == VIRTIO_BLK_T_DISCARD || slot->op == VIRTIO_BLK_T_WRITE_ZEROES
			       ? sizeof(struct virtio_blk_discard_write_zeroes)
			       : slot->len;
	unsigned n = 0;
	uint64_t done = 0;

	table[n++] = (struct vring_desc){vd_guest(d, meta + META_HEADER), 16, 0, 0};
	for (unsigned k = 0; k < segments && done < len; k++) {
		uint64_t piece = k + 1 == segments ? len - done : len / segments / 512 * 512;

		if (!piece)
			piece = len - done < 512 ? len - done : 512;
		table[n++] = (struct vring_desc){vd_guest(d, slot->data + done), (uint32_t)piece,
						 in ? VRING_DESC_F_WRITE : 0, 0};
		done += piece;
	}
	table[n++] = (struct vring_desc){vd_guest(d, meta + META_STATUS), 1, VRING_DESC_F_WRITE, 0};
	for (unsigned k = 0; k + 1 < n; k++) {
		table[k].flags |= VRING_DESC_F_NEXT;
		table[k].next = (uint16_t)(first + k + 1);
	}
	return n;
}

void vd_submit(struct vd *d, unsigned queue, struct vd_slot *slot, uint8_t op, uint64_t offset,
	       uint64_t len, unsigned segments)
{
	struct vd_queue *q = &d->q[queue];
	unsigned s = (unsigned)(slot - q->slots);
	unsigned per_slot = q->num / VD_SLOTS, head = s * per_slot;
	struct virtio_blk_outhdr hdr = {op, 0, offset / 512};
	uint8_t *meta = meta_of(q, s);

	slot->op = op;
	slot->offset = offset;
	slot->len = len;
	slot->done = false;
	if (op == VIRTIO_BLK_T_FLUSH)
		segments = 0;
	if (op == VIRTIO_BLK_T_DISCARD || op == VIRTIO_BLK_T_WRITE_ZEROES) {
		struct virtio_blk_discard_write_zeroes w = {offset / 512, (uint32_t)(len / 512), 0};

		hdr.sector = 0;
		memcpy(slot->data, &w, sizeof(w));
		segments = 1;
	}
	memcpy(meta + META_HEADER, &hdr, sizeof(hdr));
	meta[META_STATUS] = 0xff;
	if (d->indirect) {
		unsigned n = build(d, (struct vring_desc *)meta, 0, q, s, segments);

		q->desc[head] = (struct vring_desc){vd_guest(d, meta),
						    n * (uint32_t)sizeof(struct vring_desc),
						    VRING_DESC_F_INDIRECT, 0};
	} else {
		if (segments + 2 > per_slot)
			segments = per_slot - 2;
		build(d, &q->desc[head], head, q, s, segments);
	}
	q->avail->ring[q->avail_idx % q->num] = (uint16_t)head;
	q->avail_idx++;
	__atomic_store_n(&q->avail->idx, q->avail_idx, __ATOMIC_RELEASE);
}

void vd_kick(struct vd *d, unsigned queue)
{
	struct vd_queue *q = &d->q[queue];
	uint16_t from = q->kicked, event;
	bool wanted;

	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	q->kicked = q->avail_idx;
	memcpy(&event, (uint8_t *)&q->used->ring[q->num], sizeof(event));
	wanted = d->event_idx ? vring_need_event(event, q->avail_idx, from)
			      : !(*(volatile uint16_t *)&q->used->flags & VRING_USED_F_NO_NOTIFY);
	if (!wanted)
		return;
	q->kicks++;
	eventfd_write(q->kick, 1);
}

static int collect(struct vd *d, struct vd_queue *q)
{
	int n = 0;

	for (;;) {
		uint16_t idx = __atomic_load_n(&q->used->idx, __ATOMIC_ACQUIRE);

		while (q->used_idx != idx) {
			uint32_t head = q->used->ring[q->used_idx++ % q->num].id;
			unsigned s = head / (q->num / VD_SLOTS);
			struct vd_slot *slot = &q->slots[s];

			if (s >= VD_SLOTS || head % (q->num / VD_SLOTS) || !slot->busy ||
			    slot->done)
				return -EPROTO; /* nobody asked for that */
			slot->done = true;
			slot->status = meta_of(q, s)[META_STATUS];
			n++;
		}
		if (d->event_idx)
			*(volatile uint16_t *)&q->avail->ring[q->num] = q->used_idx;
		__atomic_thread_fence(__ATOMIC_SEQ_CST);
		if (__atomic_load_n(&q->used->idx, __ATOMIC_ACQUIRE) == q->used_idx)
			return n;
	}
}

static int collect_all(struct vd *d)
{
	int total = 0;

	for (unsigned i = 0; i < d->queues; i++) {
		int n = collect(d, &d->q[i]);

		if (n < 0)
			return n;
		total += n;
	}
	return total;
}

static int64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * INT64_C(1000) + ts.tv_nsec / 1000000;
}

int vd_wait(struct vd *d, int timeout_ms)
{
	int64_t end = now_ms() + timeout_ms;
	int n;

	/* A call may be about buffers that were seen already. */
	while ((n = collect_all(d)) == 0) {
		struct pollfd p[VD_QUEUES + 1];
		int64_t left = end - now_ms();

		for (unsigned i = 0; i < d->queues; i++)
			p[i] = (struct pollfd){.fd = d->q[i].call, .events = POLLIN};
		p[d->queues] = (struct pollfd){.fd = d->fd, .events = POLLIN};
		if (left <= 0 || poll(p, d->queues + 1, (int)left) <= 0)
			return 0;
		for (unsigned i = 0; i < d->queues; i++) {
			eventfd_t value;

			if (p[i].revents && eventfd_read(d->q[i].call, &value) == 0)
				d->q[i].calls++;
		}
		if (p[d->queues].revents)
			return -ECONNRESET;
	}
	return n;
}

int vd_do(struct vd *d, unsigned queue, uint8_t op, uint64_t offset, void *data, uint64_t len)
{
	struct vd_slot *slot = vd_slot_get(d, queue);
	int r = 0, status;

	if (!slot)
		return -EBUSY;
	if (op == VIRTIO_BLK_T_OUT)
		memcpy(slot->data, data, len);
	vd_submit(d, queue, slot, op, offset, len, 1);
	vd_kick(d, queue);
	for (int waited = 0; !slot->done && r >= 0 && waited < ANSWER_MS; waited += r ? 0 : 1000)
		r = vd_wait(d, 1000);
	status = slot->status;
	if (slot->done && (op == VIRTIO_BLK_T_IN || op == VIRTIO_BLK_T_GET_ID))
		memcpy(data, slot->data, len);
	if (!slot->done)
		return r < 0 ? r : -ETIMEDOUT;
	slot->busy = false;
	d->q[queue].busy--;
	return status;
}
