/* SPDX-License-Identifier: MIT */
/*
 * vhost_message.c - what the front-end may ask (VU-10..VU-49). The form of each message is in a table
 * and checked before anything acts on it; what changes memory or stops a queue waits until no request in
 * flight uses it (V-3). The export's worker.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "serve/vhost/vhost.h"

#define BIT(n) (UINT64_C(1) << (n))

#define PROTOCOL_FEATURES                                                                          \
	(BIT(VHOST_PROTOCOL_MQ) | BIT(VHOST_PROTOCOL_REPLY_ACK) |                                  \
	 BIT(VHOST_PROTOCOL_BACKEND_REQ) | BIT(VHOST_PROTOCOL_CONFIG) |                            \
	 BIT(VHOST_PROTOCOL_INFLIGHT_SHMFD) | BIT(VHOST_PROTOCOL_CONFIGURE_MEM_SLOTS))

bool srv_vhost_negotiated(const struct srv_vhost_device *device, enum vhost_protocol_feature f)
{
	return device->protocol_features & BIT(f);
}

static int reply_with(struct srv_vhost_device *device, const void *payload, uint32_t size)
{
	memcpy(device->out.payload, payload, size);
	device->out.header.size = size;
	return VHOST_REPLY;
}

static int reply_u64(struct srv_vhost_device *device, uint64_t value)
{
	return reply_with(device, &value, sizeof(value));
}

/* The descriptor of a message that brought one: the caller's now. */
static int take_fd(struct srv_vhost_device *device)
{
	int fd = device->in.fds[0];

	device->in.fds[0] = -1;
	return fd;
}

static bool any_started(const struct srv_vhost_device *device)
{
	for (unsigned i = 0; i < device->nqueues; i++)
		if (device->queues[i] && device->queues[i]->started)
			return true;
	return false;
}

static struct srv_vhost_queue *queue_of(struct srv_vhost_device *device, uint32_t index,
					struct vmimg_error *err)
{
	struct srv_vhost_queue *q = srv_vhost_queue_get(device, index);

	if (!q)
		srv_fail(err, -EINVAL, "queue %u, expected 0..%u", index, VHOST_QUEUES_MAX - 1);
	return q;
}

/* --- features --- */

static int get_features(struct srv_vhost_device *device, struct vmimg_error *err)
{
	(void)err;
	return reply_u64(device, srv_vhost_blk_features(device->export));
}

static int set_features(struct srv_vhost_device *device, struct vmimg_error *err)
{
	uint64_t unknown = device->in.payload.u64 & ~srv_vhost_blk_features(device->export);

	if (unknown)
		return srv_fail(err, -EINVAL, "features %llx were not offered",
				(unsigned long long)unknown);
	device->features = device->in.payload.u64;
	return VHOST_DONE;
}

static int get_protocol_features(struct srv_vhost_device *device, struct vmimg_error *err)
{
	(void)err;
	return reply_u64(device, PROTOCOL_FEATURES);
}

static int set_protocol_features(struct srv_vhost_device *device, struct vmimg_error *err)
{
	uint64_t unknown = device->in.payload.u64 & ~PROTOCOL_FEATURES;

	if (unknown)
		return srv_fail(err, -EINVAL, "protocol features %llx were not offered",
				(unsigned long long)unknown);
	device->protocol_features = device->in.payload.u64;
	return VHOST_DONE;
}

/* SET_OWNER starts nothing, RESET_OWNER is to be ignored (VU-14). */
static int ignore(struct srv_vhost_device *device, struct vmimg_error *err)
{
	(void)device;
	(void)err;
	return VHOST_DONE;
}

static int get_queue_num(struct srv_vhost_device *device, struct vmimg_error *err)
{
	(void)err;
	return reply_u64(device, VHOST_QUEUES_MAX);
}

/* --- memory: changes when nothing is in flight --- */

/* Whether the rings in use are all in @mem; @apply: moves them there. */
static bool place_rings(struct srv_vhost_device *device, const struct srv_vhost_memory *mem,
			bool apply)
{
	for (unsigned i = 0; i < device->nqueues; i++) {
		struct srv_vhost_queue *q = device->queues[i];
		struct srv_vhost_ring trial;

		if (!q || !q->started)
			continue;
		trial = q->ring;
		if (srv_vhost_ring_place(apply ? &q->ring : &trial, mem, &q->addr) < 0)
			return false;
	}
	return true;
}

static int wait_table(struct srv_vhost_device *device, struct vmimg_error *err)
{
	struct srv_vhost_memory *old = device->memory, *new = device->wait_memory;
	int r = VHOST_DONE;

	if (device->inflight_ios)
		return VHOST_LATER;
	device->paused = false;
	device->wait_memory = NULL;
	if (place_rings(device, new, false)) {
		device->memory = new;
		place_rings(device, new, true);
	} else {
		r = srv_fail(err, -EINVAL, "memory: a ring in use is not in it");
		old = new;
	}
	if (old)
		srv_vhost_memory_clear(old);
	free(old);
	for (unsigned i = 0; i < device->nqueues && r == 0; i++)
		if (device->queues[i])
			r = srv_vhost_queue_start(device, i, err);
	srv_vhost_device_wake(device);
	return r;
}

static int wait_for_memory(struct srv_vhost_device *device,
			   int (*wait)(struct srv_vhost_device *device, struct vmimg_error *err))
{
	device->paused = true;
	device->wait = wait;
	return VHOST_LATER;
}

static int set_mem_table(struct srv_vhost_device *device, struct vmimg_error *err)
{
	const struct vhost_mem_table *t = &device->in.payload.table;
	struct srv_vhost_memory *mem;
	int r = 0;

	if (t->count > VHOST_FDS_MAX || t->count != device->in.nfds ||
	    device->in.header.size <
		    offsetof(struct vhost_mem_table, regions) + t->count * sizeof(t->regions[0]))
		return srv_fail(err, -EINVAL, "memory: %u regions with %u files in %u bytes",
				t->count, device->in.nfds, device->in.header.size);
	mem = calloc(1, sizeof(*mem));
	if (!mem)
		return srv_fail(err, -ENOMEM, "out of memory");
	for (unsigned i = 0; i < t->count && r == 0; i++)
		r = srv_vhost_memory_add(mem, &t->regions[i], device->in.fds[i], err);
	if (r < 0) {
		srv_vhost_memory_clear(mem);
		free(mem);
		return r;
	}
	device->wait_memory = mem;
	return wait_for_memory(device, wait_table);
}

static int get_max_mem_slots(struct srv_vhost_device *device, struct vmimg_error *err)
{
	(void)err;
	return reply_u64(device, VHOST_REGIONS_MAX);
}

/* What is in flight knows its places already: a new region moves none. */
static int add_mem_reg(struct srv_vhost_device *device, struct vmimg_error *err)
{
	int r;

	if (!device->memory)
		device->memory = calloc(1, sizeof(*device->memory));
	if (!device->memory)
		return srv_fail(err, -ENOMEM, "out of memory");
	r = srv_vhost_memory_add(device->memory, &device->in.payload.region.region,
				 device->in.fds[0], err);
	for (unsigned i = 0; i < device->nqueues && r == 0; i++)
		if (device->queues[i])
			r = srv_vhost_queue_start(device, i, err);
	return r;
}

static int wait_rem_mem_reg(struct srv_vhost_device *device, struct vmimg_error *err)
{
	const struct vhost_region_desc *d = &device->in.payload.region.region;

	if (device->inflight_ios)
		return VHOST_LATER;
	device->paused = false;
	srv_vhost_device_wake(device);
	for (unsigned i = 0; i < device->nqueues; i++) {
		const struct srv_vhost_queue *q = device->queues[i];

		/* Each part of a ring lies in one region, and so does its beginning. */
		if (q && q->started &&
		    (q->addr.desc - d->user < d->size || q->addr.avail - d->user < d->size ||
		     q->addr.used - d->user < d->size))
			return srv_fail(err, -EBUSY, "memory: queue %u is in the region", i);
	}
	return srv_vhost_memory_remove(device->memory, d, err);
}

static int rem_mem_reg(struct srv_vhost_device *device, struct vmimg_error *err)
{
	if (!device->memory)
		return srv_fail(err, -ENOENT, "memory: there is none");
	return wait_for_memory(device, wait_rem_mem_reg);
}

/* --- queues --- */

static int set_vring_num(struct srv_vhost_device *device, struct vmimg_error *err)
{
	const struct vhost_state *s = &device->in.payload.state;
	struct srv_vhost_queue *q = queue_of(device, s->index, err);
	uint16_t base;
	int r;

	if (!q)
		return -EINVAL;
	if (q->started)
		return srv_fail(err, -EBUSY, "queue %u runs", s->index);
	base = q->ring.next_avail;
	r = srv_vhost_ring_resize(&q->ring, s->num);
	if (r < 0)
		return srv_fail(err, r, "queue %u: %u entries, expected a power of two up to %u",
				s->index, s->num, VHOST_QUEUE_SIZE);
	q->ring.next_avail = base;
	return srv_vhost_queue_start(device, s->index, err);
}

static int set_vring_base(struct srv_vhost_device *device, struct vmimg_error *err)
{
	const struct vhost_state *s = &device->in.payload.state;
	struct srv_vhost_queue *q = queue_of(device, s->index, err);

	if (!q)
		return -EINVAL;
	if (q->started || s->num > UINT16_MAX)
		return srv_fail(err, -EINVAL, "queue %u: base %u%s", s->index, s->num,
				q->started ? " while it runs" : "");
	q->ring.next_avail = (uint16_t)s->num;
	return VHOST_DONE;
}

static int set_vring_addr(struct srv_vhost_device *device, struct vmimg_error *err)
{
	const struct vhost_addr *a = &device->in.payload.addr;
	struct srv_vhost_queue *q = queue_of(device, a->index, err);

	if (!q)
		return -EINVAL;
	if (a->flags)
		return srv_fail(err, -EINVAL, "queue %u: flags %x", a->index, a->flags);
	if (q->started && srv_vhost_ring_place(&q->ring, device->memory, a) < 0)
		return srv_fail(err, -EINVAL, "queue %u: not in memory, or misaligned", a->index);
	q->addr = *a;
	q->addressed = true;
	return srv_vhost_queue_start(device, a->index, err);
}

/* VU-45 */
static int wait_vring_base(struct srv_vhost_device *device, struct vmimg_error *err)
{
	struct srv_vhost_queue *q = device->queues[device->wait_queue];
	struct vhost_state s = {device->wait_queue, 0};

	(void)err;
	if (q->inflight || (q->ring.nbatch && !q->ring.fault))
		return VHOST_LATER;
	srv_vhost_queue_stop(q);
	q->stopping = false;
	if (!any_started(device))
		device->broken = NULL;
	s.num = q->ring.next_avail;
	return reply_with(device, &s, sizeof(s));
}

static int get_vring_base(struct srv_vhost_device *device, struct vmimg_error *err)
{
	uint32_t index = device->in.payload.state.index;
	struct srv_vhost_queue *q = queue_of(device, index, err);

	if (!q)
		return -EINVAL;
	q->stopping = true;
	device->wait_queue = index;
	device->wait = wait_vring_base;
	return VHOST_LATER;
}

static int set_vring_enable(struct srv_vhost_device *device, struct vmimg_error *err)
{
	const struct vhost_state *s = &device->in.payload.state;
	struct srv_vhost_queue *q = queue_of(device, s->index, err);

	if (!q)
		return -EINVAL;
	if (s->num > 1)
		return srv_fail(err, -EINVAL, "queue %u: enable %u", s->index, s->num);
	q->enabled = s->num;
	q->kicked = q->started;
	srv_vhost_device_wake(device);
	return VHOST_DONE;
}

/* A new event of a queue, or none, from the message's number and descriptor. */
static int event_of(struct srv_vhost_device *device, struct srv_vhost_queue **queue,
		    uint32_t *index, struct srv_vhost_event **ret, struct vmimg_error *err)
{
	uint64_t v = device->in.payload.u64;
	bool none = v & VHOST_VRING_NO_FD;
	int r = 0;

	*index = v & VHOST_VRING_INDEX_MASK;
	*queue = queue_of(device, *index, err);
	*ret = NULL;
	if (!*queue)
		return -EINVAL;
	if (v & ~(uint64_t)(VHOST_VRING_INDEX_MASK | VHOST_VRING_NO_FD) || device->in.nfds != !none)
		return srv_fail(err, -EINVAL, "queue %u: %u descriptors with %llx", *index,
				device->in.nfds, (unsigned long long)v);
	if (!none) {
		r = srv_vhost_event_create(device, *index, device->in.fds[0], ret);
		if (r < 0)
			return srv_fail(err, r, "queue %u: not an eventfd", *index);
		take_fd(device);
	}
	return 0;
}

static int set_vring_kick(struct srv_vhost_device *device, struct vmimg_error *err)
{
	struct srv_vhost_queue *q;
	struct srv_vhost_event *e;
	uint32_t index;
	int r = event_of(device, &q, &index, &e, err);

	if (r < 0)
		return r;
	if (!e)
		return srv_fail(err, -ENOTSUP, "queue %u: no kicks", index); /* VU-43 */
	srv_vhost_event_drop(q->kick);
	q->kick = e;
	if (q->started) {
		srv_vhost_event_poll(e);
		return VHOST_DONE;
	}
	return srv_vhost_queue_start(device, index, err);
}

static int set_vring_call(struct srv_vhost_device *device, struct vmimg_error *err)
{
	struct srv_vhost_queue *q;
	struct srv_vhost_event *e;
	uint32_t index;
	int r = event_of(device, &q, &index, &e, err);

	if (r < 0)
		return r;
	srv_vhost_event_drop(q->call);
	q->call = e;
	/* What the old one was told may have been lost with it. */
	if (e && q->started)
		srv_vhost_event_signal(e);
	return VHOST_DONE;
}

static int set_vring_err(struct srv_vhost_device *device, struct vmimg_error *err)
{
	struct srv_vhost_queue *q;
	struct srv_vhost_event *e;
	uint32_t index;
	int r = event_of(device, &q, &index, &e, err);

	if (r < 0)
		return r;
	srv_vhost_event_drop(q->err);
	q->err = e;
	return VHOST_DONE;
}

/* --- configuration --- */

/* VU-47: bytes beyond what we know are zero. */
static int get_config(struct srv_vhost_device *device, struct vmimg_error *err)
{
	struct vhost_config c = device->in.payload.config;
	uint8_t space[VHOST_CONFIG_MAX] = {0};
	struct virtio_blk_config config;

	if (c.size != device->in.header.size - VHOST_CONFIG_HEAD || c.offset > VHOST_CONFIG_MAX ||
	    c.size > VHOST_CONFIG_MAX - c.offset)
		return srv_fail(err, -EINVAL, "configuration: %u bytes at %u in a message of %u",
				c.size, c.offset, device->in.header.size);
	srv_vhost_blk_config(device->export, device->server->options.max_request, &config);
	memcpy(space, &config, sizeof(config));
	memcpy(c.bytes, space + c.offset, c.size);
	return reply_with(device, &c, (uint32_t)VHOST_CONFIG_HEAD + c.size);
}

/* VU-48: nothing of it can be written; with the bit of live migration it need not be. */
static int set_config(struct srv_vhost_device *device, struct vmimg_error *err)
{
	(void)err;
	return device->in.payload.config.flags & 1 ? VHOST_DONE : VHOST_NO;
}

static int set_backend_req_fd(struct srv_vhost_device *device, struct vmimg_error *err)
{
	struct stat st;

	if (fstat(device->in.fds[0], &st) < 0 || !S_ISSOCK(st.st_mode))
		return srv_fail(err, -EINVAL, "the back channel is no socket");
	if (device->backend_fd >= 0)
		return srv_fail(err, -EBUSY, "there is a back channel already");
	device->backend_fd = take_fd(device);
	return VHOST_DONE;
}

/* --- requests in flight --- */

static int get_inflight_fd(struct srv_vhost_device *device, struct vmimg_error *err)
{
	const struct vhost_inflight_desc *asked = &device->in.payload.inflight;
	struct vhost_inflight_desc d = {0};
	int r = srv_vhost_inflight_create(asked->queues, asked->queue_size, &device->out_fd, &d);

	if (r < 0)
		return srv_fail(err, r, "inflight: %u queues of %u: %s", asked->queues,
				asked->queue_size, strerror(-r));
	return reply_with(device, &d, device->in.header.size); /* with its padding, as asked */
}

static int set_inflight_fd(struct srv_vhost_device *device, struct vmimg_error *err)
{
	if (any_started(device))
		return srv_fail(err, -EBUSY, "inflight: a queue runs");
	return srv_vhost_inflight_open(&device->inflight, &device->in.payload.inflight,
				       device->in.fds[0], err);
}

/* --- the table (VU-11) --- */

#define ANY UINT32_MAX

static const struct form {
	int (*act)(struct srv_vhost_device *device, struct vmimg_error *err);
	uint32_t min, max; /* bytes of payload */
	uint32_t fds;      /* how many, or ANY: @act checks */
	bool reply;
	uint64_t needs; /* protocol feature */
} forms[] = {
	[VHOST_GET_FEATURES] = {get_features, 0, 0, 0, true, 0},
	[VHOST_SET_FEATURES] = {set_features, 8, 8, 0, false, 0},
	[VHOST_SET_OWNER] = {ignore, 0, 0, 0, false, 0},
	[VHOST_RESET_OWNER] = {ignore, 0, 0, 0, false, 0},
	[VHOST_SET_MEM_TABLE] = {set_mem_table, 8, sizeof(struct vhost_mem_table), ANY, false, 0},
	[VHOST_SET_VRING_NUM] = {set_vring_num, 8, 8, 0, false, 0},
	[VHOST_SET_VRING_ADDR] = {set_vring_addr, 40, 40, 0, false, 0},
	[VHOST_SET_VRING_BASE] = {set_vring_base, 8, 8, 0, false, 0},
	[VHOST_GET_VRING_BASE] = {get_vring_base, 8, 8, 0, true, 0},
	[VHOST_SET_VRING_KICK] = {set_vring_kick, 8, 8, ANY, false, 0},
	[VHOST_SET_VRING_CALL] = {set_vring_call, 8, 8, ANY, false, 0},
	[VHOST_SET_VRING_ERR] = {set_vring_err, 8, 8, ANY, false, 0},
	[VHOST_GET_PROTOCOL_FEATURES] = {get_protocol_features, 0, 0, 0, true, 0},
	[VHOST_SET_PROTOCOL_FEATURES] = {set_protocol_features, 8, 8, 0, false, 0},
	[VHOST_GET_QUEUE_NUM] = {get_queue_num, 0, 0, 0, true, 0},
	[VHOST_SET_VRING_ENABLE] = {set_vring_enable, 8, 8, 0, false, 0},
	[VHOST_SET_BACKEND_REQ_FD] = {set_backend_req_fd, 0, 8, 1, false,
				      BIT(VHOST_PROTOCOL_BACKEND_REQ)},
	[VHOST_GET_CONFIG] = {get_config, VHOST_CONFIG_HEAD, sizeof(struct vhost_config), 0, true,
			      BIT(VHOST_PROTOCOL_CONFIG)},
	[VHOST_SET_CONFIG] = {set_config, VHOST_CONFIG_HEAD, sizeof(struct vhost_config), 0, false,
			      BIT(VHOST_PROTOCOL_CONFIG)},
	[VHOST_GET_INFLIGHT_FD] = {get_inflight_fd, VHOST_INFLIGHT_DESC_SIZE,
				   sizeof(struct vhost_inflight_desc), 0, true,
				   BIT(VHOST_PROTOCOL_INFLIGHT_SHMFD)},
	[VHOST_SET_INFLIGHT_FD] = {set_inflight_fd, VHOST_INFLIGHT_DESC_SIZE,
				   sizeof(struct vhost_inflight_desc), 1, false,
				   BIT(VHOST_PROTOCOL_INFLIGHT_SHMFD)},
	[VHOST_GET_MAX_MEM_SLOTS] = {get_max_mem_slots, 0, 0, 0, true,
				     BIT(VHOST_PROTOCOL_CONFIGURE_MEM_SLOTS)},
	[VHOST_ADD_MEM_REG] = {add_mem_reg, 40, 40, 1, false,
			       BIT(VHOST_PROTOCOL_CONFIGURE_MEM_SLOTS)},
	[VHOST_REM_MEM_REG] = {rem_mem_reg, 40, 40, ANY, false,
			       BIT(VHOST_PROTOCOL_CONFIGURE_MEM_SLOTS)},
};

static const struct form *form_of(uint32_t request)
{
	if (request >= sizeof(forms) / sizeof(forms[0]) || !forms[request].act)
		return NULL;
	return &forms[request];
}

bool srv_vhost_has_reply(uint32_t request)
{
	const struct form *f = form_of(request);

	return f && f->reply;
}

int srv_vhost_message(struct srv_vhost_device *device, struct vmimg_error *err)
{
	const struct vhost_header *h = &device->in.header;
	const struct form *f = form_of(h->request);

	if (!f)
		return srv_fail(err, -ENOTSUP, "unknown");
	if (h->size < f->min || h->size > f->max)
		return srv_fail(err, -EINVAL, "%u bytes, expected %u..%u", h->size, f->min, f->max);
	if (f->fds != ANY && device->in.nfds != f->fds)
		return srv_fail(err, -EINVAL, "%u descriptors, expected %u", device->in.nfds,
				f->fds);
	if (f->needs & ~device->protocol_features)
		return srv_fail(err, -EINVAL, "not negotiated");
	/* What the message does not fill must not be an earlier one's. */
	memset(device->in.payload.bytes + h->size, 0, sizeof(device->in.payload) - h->size);
	return f->act(device, err);
}
