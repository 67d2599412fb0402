/* SPDX-License-Identifier: MIT */
/*
 * vhost_driver.h - the other side of a vhost-user-blk device: a front-end (messages on the socket) and
 * a virtio driver (split virtqueues in memory of its own), written from the specifications and from
 * nothing of the server's. One thread. Functions return 0 or a negative errno; the low-level ones are
 * there for tests that want to do it wrong.
 */
#ifndef TESTS_SERVE_VHOST_DRIVER_H
#define TESTS_SERVE_VHOST_DRIVER_H

#include <linux/virtio_blk.h>
#include <linux/virtio_ring.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define VD_QUEUES   8u
#define VD_SLOTS    32u                   /* requests in flight of a queue */
#define VD_SEGMENTS 16u                   /* of a request's data */
#define VD_SLOT_MAX (256u << 10)          /* bytes of data of a request */
#define VD_MEMORY   ((size_t)112 << 20)   /* in two files, one behind the other */
#define VD_SPLIT    ((size_t)40 << 20)    /* where the second one begins */
#define VD_GUEST    UINT64_C(0x100000000) /* guest address of the first byte */

/* Low-level facts of the protocol, under the specification's names. */
enum {
	VU_GET_FEATURES = 1,
	VU_SET_FEATURES = 2,
	VU_SET_OWNER = 3,
	VU_SET_MEM_TABLE = 5,
	VU_SET_VRING_NUM = 8,
	VU_SET_VRING_ADDR = 9,
	VU_SET_VRING_BASE = 10,
	VU_GET_VRING_BASE = 11,
	VU_SET_VRING_KICK = 12,
	VU_SET_VRING_CALL = 13,
	VU_SET_VRING_ERR = 14,
	VU_GET_PROTOCOL_FEATURES = 15,
	VU_SET_PROTOCOL_FEATURES = 16,
	VU_GET_QUEUE_NUM = 17,
	VU_SET_VRING_ENABLE = 18,
	VU_SET_BACKEND_REQ_FD = 21,
	VU_GET_CONFIG = 24,
	VU_SET_CONFIG = 25,
	VU_GET_INFLIGHT_FD = 31,
	VU_SET_INFLIGHT_FD = 32,
	VU_GET_MAX_MEM_SLOTS = 36,
	VU_ADD_MEM_REG = 37,
	VU_REM_MEM_REG = 38,
};
#define VU_BIT(n)             (UINT64_C(1) << (n))
#define VU_F_PROTOCOL         30
#define VU_PROTOCOL_MQ        0
#define VU_PROTOCOL_REPLY_ACK 3
#define VU_PROTOCOL_BACKEND   5
#define VU_PROTOCOL_CONFIG    9
#define VU_PROTOCOL_INFLIGHT  12
#define VU_PROTOCOL_MEM_SLOTS 15

struct vd_slot {
	bool busy, done;
	uint8_t op; /* VIRTIO_BLK_T_* */
	uint8_t status;
	uint64_t offset, len; /* bytes of the disk */
	uint8_t *data;        /* VD_SLOT_MAX bytes */
};

struct vd_queue {
	struct vring_desc *desc;
	struct vring_avail *avail;
	struct vring_used *used;
	uint16_t num, avail_idx, used_idx, kicked;
	int kick, call, err;
	uint8_t *tables; /* indirect ones; also headers and states */
	struct vd_slot slots[VD_SLOTS];
	unsigned busy;
	uint64_t kicks, calls;
};

struct vd {
	char path[108];
	int fd, backend; /* the socket; ours of the back channel */
	int files[2];    /* of the memory */
	uint8_t *mem;
	uint64_t features; /* acknowledged */
	uint64_t protocol;
	uint64_t offered;
	unsigned queues;
	uint16_t size; /* of a queue */
	bool indirect, event_idx;
	bool inflight; /* track, and reconnect with it */
	int inflight_fd;
	uint8_t inflight_msg[24];
	struct vd_queue q[VD_QUEUES];
};

/* Memory and rings; @queues up to VD_QUEUES, @size 128 or more. */
int vd_init(struct vd *d, const char *path, unsigned queues, uint16_t size);
void vd_fini(struct vd *d);
/* Connects, waiting up to some seconds for a server, negotiates (@features: those not to acknowledge)
 * and starts all queues, also again after vd_disconnect() with requests in flight. */
int vd_connect(struct vd *d, uint64_t without);
void vd_disconnect(struct vd *d);
int vd_dial(struct vd *d); /* the socket alone */

/* --- requests --- */
/* A free slot, or NULL. */
struct vd_slot *vd_slot_get(struct vd *d, unsigned queue);
/* Makes the slot's request available, its data cut into @segments; vd_kick() tells of it. */
void vd_submit(struct vd *d, unsigned queue, struct vd_slot *slot, uint8_t op, uint64_t offset,
	       uint64_t len, unsigned segments);
void vd_kick(struct vd *d, unsigned queue);
/* Completed slots get done, with their status. Returns how many; waits for a call, up to @timeout_ms.
 * -ECONNRESET: the server has gone. */
int vd_wait(struct vd *d, int timeout_ms);
/* One request from its start to its end; its status, or a negative errno. */
int vd_do(struct vd *d, unsigned queue, uint8_t op, uint64_t offset, void *data, uint64_t len);

/* --- messages --- */
int vd_send(struct vd *d, uint32_t request, uint32_t flags, const void *payload, uint32_t size,
	    const int *fds, unsigned nfds);
/* The answer to @request; returns its size, at most @max; -ECONNRESET, -ETIMEDOUT. @fd: may be NULL. */
int vd_receive(struct vd *d, uint32_t request, void *payload, uint32_t max, int *fd);
/* With need_reply: the answer, 0 or 1; or an errno. */
int vd_ask(struct vd *d, uint32_t request, const void *payload, uint32_t size, const int *fds,
	   unsigned nfds);
int vd_get_u64(struct vd *d, uint32_t request, uint64_t *value);
int vd_get_config(struct vd *d, void *config, uint32_t offset, uint32_t size);
int vd_give_memory(struct vd *d); /* SET_MEM_TABLE, again */
int vd_start_queue(struct vd *d, unsigned queue, uint16_t base);
/* Stops it; the base that the server tells. */
int vd_stop_queue(struct vd *d, unsigned queue, uint16_t *base);
uint64_t vd_guest(const struct vd *d, const void *at); /* an address of the memory */

#endif
