/* SPDX-License-Identifier: MIT */
/*
 * vhost_proto.h - the vhost-user protocol as bytes: numbers and structures of its messages and of the
 * region that tracks requests in flight (spec/vhost-user.md; QEMU's docs/interop/vhost-user.rst).
 * Host byte order on the socket, both ends being on one machine; rings are little-endian.
 */
#ifndef SERVE_VHOST_PROTO_H
#define SERVE_VHOST_PROTO_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

enum vhost_request_id {
	VHOST_GET_FEATURES = 1,
	VHOST_SET_FEATURES = 2,
	VHOST_SET_OWNER = 3,
	VHOST_RESET_OWNER = 4,
	VHOST_SET_MEM_TABLE = 5,
	VHOST_SET_VRING_NUM = 8,
	VHOST_SET_VRING_ADDR = 9,
	VHOST_SET_VRING_BASE = 10,
	VHOST_GET_VRING_BASE = 11,
	VHOST_SET_VRING_KICK = 12,
	VHOST_SET_VRING_CALL = 13,
	VHOST_SET_VRING_ERR = 14,
	VHOST_GET_PROTOCOL_FEATURES = 15,
	VHOST_SET_PROTOCOL_FEATURES = 16,
	VHOST_GET_QUEUE_NUM = 17,
	VHOST_SET_VRING_ENABLE = 18,
	VHOST_SET_BACKEND_REQ_FD = 21,
	VHOST_GET_CONFIG = 24,
	VHOST_SET_CONFIG = 25,
	VHOST_GET_INFLIGHT_FD = 31,
	VHOST_SET_INFLIGHT_FD = 32,
	VHOST_GET_MAX_MEM_SLOTS = 36,
	VHOST_ADD_MEM_REG = 37,
	VHOST_REM_MEM_REG = 38,
};

/* Ours to the front-end, on its back channel. */
enum vhost_backend_id {
	VHOST_BACKEND_CONFIG_CHANGE = 2,
};

#define VHOST_FLAG_VERSION      1u /* bits 0 and 1 of the flags */
#define VHOST_FLAG_VERSION_MASK 3u
#define VHOST_FLAG_REPLY        (1u << 2)
#define VHOST_FLAG_NEED_REPLY   (1u << 3)

#define VHOST_F_PROTOCOL_FEATURES 30 /* among the virtio features */

enum vhost_protocol_feature {
	VHOST_PROTOCOL_MQ = 0,
	VHOST_PROTOCOL_REPLY_ACK = 3,
	VHOST_PROTOCOL_BACKEND_REQ = 5,
	VHOST_PROTOCOL_CONFIG = 9,
	VHOST_PROTOCOL_INFLIGHT_SHMFD = 12,
	VHOST_PROTOCOL_CONFIGURE_MEM_SLOTS = 15,
};

#define VHOST_VRING_INDEX_MASK 0xffu /* of the u64 that goes with a descriptor */
#define VHOST_VRING_NO_FD      (1u << 8)
#define VHOST_FDS_MAX          8u   /* of one message; also regions of SET_MEM_TABLE */
#define VHOST_CONFIG_MAX       256u /* bytes of configuration space */

struct vhost_header {
	uint32_t request, flags;
	uint32_t size; /* bytes that follow */
};
static_assert(sizeof(struct vhost_header) == 12, "VU-10");

struct vhost_state {
	uint32_t index, num;
};

struct vhost_addr {
	uint32_t index, flags;
	uint64_t desc, used, avail; /* the front-end's own addresses */
	uint64_t log;
};

struct vhost_region_desc {
	uint64_t guest;  /* guest-physical */
	uint64_t size;   /* bytes */
	uint64_t user;   /* the front-end's own address */
	uint64_t offset; /* in the file */
};

struct vhost_mem_table {
	uint32_t count, padding;
	struct vhost_region_desc regions[VHOST_FDS_MAX];
};

struct vhost_mem_region {
	uint64_t padding;
	struct vhost_region_desc region;
};

struct vhost_config {
	uint32_t offset, size, flags;
	uint8_t bytes[VHOST_CONFIG_MAX];
};
#define VHOST_CONFIG_HEAD offsetof(struct vhost_config, bytes)

struct vhost_inflight_desc {
	uint64_t size, offset; /* of the region in its file */
	uint16_t queues, queue_size;
};
#define VHOST_INFLIGHT_DESC_SIZE 20u /* on the wire, without the padding at its end */

union vhost_payload {
	uint64_t u64;
	struct vhost_state state;
	struct vhost_addr addr;
	struct vhost_mem_table table;
	struct vhost_mem_region region;
	struct vhost_config config;
	struct vhost_inflight_desc inflight;
	uint8_t bytes[512];
};

/* One virtqueue's part of the region that tracks what is in flight; split rings, version 1. */
struct vhost_inflight_entry {
	uint8_t inflight;
	uint8_t padding[5];
	uint16_t next;    /* in the last batch of used buffers */
	uint64_t counter; /* the order in which they were taken */
};
static_assert(sizeof(struct vhost_inflight_entry) == 16, "VU-70");

struct vhost_inflight_queue {
	uint64_t features;
	uint16_t version; /* 0: never used */
	uint16_t desc_num;
	uint16_t last_batch_head;
	uint16_t used_idx;
	struct vhost_inflight_entry entries[];
};
static_assert(offsetof(struct vhost_inflight_queue, entries) == 16, "VU-70");

#define VHOST_INFLIGHT_VERSION 1u
#define VHOST_INFLIGHT_ALIGN   64u /* of each queue's part */

#endif
