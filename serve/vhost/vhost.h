/* SPDX-License-Identifier: MIT */
/*
 * vhost.h - the parts of the vhost-user-blk server. Private to serve/vhost*.c and their tests.
 *
 * From below: guest memory (vhost_memory.c, vhost_guard.c), a split virtqueue in it (vhost_ring.c) and
 * what it has in flight (vhost_inflight.c), requests (vhost_blk.c), a connected device with its
 * messages (vhost_device.c, vhost_message.c, vhost_queue.c), and the sockets (vhost_listen.c).
 *
 * V-1: all of a device is its export's worker's, from srv_vhost_device_start() to its @ended.
 * V-2: nothing in guest memory is believed: read once into a local, checked, then used.
 * V-3: guest memory stays mapped while a request or a ring uses it.
 */
#ifndef SERVE_VHOST_H
#define SERVE_VHOST_H

#include <linux/virtio_blk.h>
#include <linux/virtio_ring.h>
#include <stdalign.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "serve/server.h"
#include "serve/vhost/vhost_proto.h"

#define VHOST_REGIONS_MAX 64u   /* of guest memory */
#define VHOST_QUEUES_MAX  128u  /* of a device: a virtual processor has one each */
#define VHOST_QUEUE_SIZE  1024u /* entries of a ring at most */
#define VHOST_SEGMENTS    126u  /* of one request's data, told to the driver */
#define VHOST_CHAIN_MAX   1024u /* descriptors of one chain at most */
#define VHOST_RANGES_MAX  64u   /* of one discard or write zeroes */
#define VHOST_DEPTH       256u  /* requests in flight of one device */

/* --- vhost_guard.c: a SIGBUS in guest memory marks that memory, and harms nobody --- */
struct srv_vhost_guard;

/* The handler, process-wide, and its end. Main thread. */
int srv_vhost_guard_install(void);
void srv_vhost_guard_remove(void);
/* [start, start + len) is a mapping; @hit is set when a page of it went away under us (VU-34). Any
 * thread. -ENOMEM. */
int srv_vhost_guard_add(void *start, size_t len, _Atomic bool *hit, struct srv_vhost_guard **ret);
void srv_vhost_guard_drop(struct srv_vhost_guard *guard); /* NULL is fine */

/* --- vhost_memory.c: the guest's memory --- */
/* A file of memory, mapped and guarded: tmpfs or hugetlbfs only, [offset, offset + len) within it;
 * @offset's place is at @map + @skip. @hit: see srv_vhost_guard_add(). */
struct srv_vhost_mapping {
	void *map;
	size_t map_len, skip;
	struct srv_vhost_guard *guard;
};
int srv_vhost_map(int fd, uint64_t offset, uint64_t len, _Atomic bool *hit,
		  struct srv_vhost_mapping *ret, struct vmimg_error *err);
void srv_vhost_unmap(struct srv_vhost_mapping *mapping); /* zeroed is fine */

struct srv_vhost_region {
	uint64_t guest, user, size;
	uint8_t *host; /* where @guest is mapped */
	struct srv_vhost_mapping mapping;
};

struct srv_vhost_memory {
	unsigned count;
	struct srv_vhost_region regions[VHOST_REGIONS_MAX]; /* sorted by @guest, disjoint */
	_Atomic bool lost; /* a page was not there: the file is shorter than it was */
};

/* Maps a part of @fd, which stays the caller's. -EINVAL, -ENOSPC, mmap's errors. */
int srv_vhost_memory_add(struct srv_vhost_memory *mem, const struct vhost_region_desc *desc, int fd,
			 struct vmimg_error *err);
int srv_vhost_memory_remove(struct srv_vhost_memory *mem, const struct vhost_region_desc *desc,
			    struct vmimg_error *err);
void srv_vhost_memory_clear(struct srv_vhost_memory *mem);
/* Where guest-physical [guest, guest + len) is: appends to @iov. -EFAULT, -E2BIG. */
int srv_vhost_memory_slice(const struct srv_vhost_memory *mem, uint64_t guest, uint64_t len,
			   struct iovec *iov, unsigned max, unsigned *count);
/* The same for the front-end's addresses, in one piece; NULL when it is in no region. */
void *srv_vhost_memory_user(const struct srv_vhost_memory *mem, uint64_t user, uint64_t len);

/* --- vhost_inflight.c: what survives us --- */
struct srv_vhost_inflight {
	struct srv_vhost_mapping mapping;
	uint8_t *base;
	uint16_t queues, queue_size;
	_Atomic bool lost;
};

/* Bytes of one queue's part. */
size_t srv_vhost_inflight_stride(uint16_t queue_size);
/* A new region, zeroed, in a sealed memory file: @fd is the caller's. */
int srv_vhost_inflight_create(uint16_t queues, uint16_t queue_size, int *fd,
			      struct vhost_inflight_desc *desc);
/* The front-end gives one (back). */
int srv_vhost_inflight_open(struct srv_vhost_inflight *inflight,
			    const struct vhost_inflight_desc *desc, int fd,
			    struct vmimg_error *err);
void srv_vhost_inflight_close(struct srv_vhost_inflight *inflight);
struct vhost_inflight_queue *srv_vhost_inflight_queue(struct srv_vhost_inflight *inflight,
						      unsigned index, uint16_t num);
/* What was in flight when the last back-end ended, in the order it was taken (VU-72): fills @heads (room
 * for @num) and @*counter, the first number not used. @used: the used ring's index. Returns how many. */
unsigned srv_vhost_inflight_resume(struct vhost_inflight_queue *q, uint16_t num, uint16_t used,
				   uint16_t *heads, uint64_t *counter);
void srv_vhost_inflight_take(struct vhost_inflight_queue *q, uint16_t head, uint64_t counter);
/* Before the used index moves: @heads get their links; after it: they are no longer in flight. */
void srv_vhost_inflight_batch(struct vhost_inflight_queue *q, const uint16_t *heads,
			      unsigned count);
void srv_vhost_inflight_done(struct vhost_inflight_queue *q, const uint16_t *heads, unsigned count,
			     uint16_t used);

/* --- vhost_ring.c: a split virtqueue --- */
struct srv_vhost_ring {
	uint16_t num; /* entries, a power of two; 0: not set */
	bool event_idx, indirect;
	const uint8_t *desc, *avail; /* in guest memory */
	uint8_t *used;
	uint16_t next_avail; /* the next entry to take */
	uint16_t next_used;  /* the next to fill; the driver sees @published */
	uint16_t published;
	bool told; /* the driver was called since the start: its used_event is meant */
	struct vhost_inflight_queue *inflight; /* NULL: not tracked */
	uint64_t counter;
	uint8_t *busy;   /* a byte a descriptor: head of a request taken and not published */
	uint16_t *batch; /* heads used, not yet published */
	unsigned nbatch;
	uint16_t *resume; /* heads that the last back-end left in flight */
	unsigned nresume;
	const char *fault; /* why the ring is broken; NULL: it is not */
};

/* A chain: @out readable segments, then @in writable ones. */
struct srv_vhost_chain {
	unsigned out, in;
	struct iovec iov[VHOST_CHAIN_MAX + VHOST_REGIONS_MAX];
};

/* @num: a power of two up to VHOST_QUEUE_SIZE. -EINVAL, -ENOMEM. Entries in flight: none. */
int srv_vhost_ring_resize(struct srv_vhost_ring *ring, uint32_t num);
void srv_vhost_ring_fini(struct srv_vhost_ring *ring);
/* Places the ring's three parts; -EINVAL, nothing changed, when one is misaligned or not in memory. */
int srv_vhost_ring_place(struct srv_vhost_ring *ring, const struct srv_vhost_memory *mem,
			 const struct vhost_addr *addr);
uint16_t srv_vhost_ring_used_idx(const struct srv_vhost_ring *ring);
/* 1 and the next available chain's head; 0: none; -EUCLEAN: the ring is broken, @fault says how. */
int srv_vhost_ring_next(struct srv_vhost_ring *ring, uint16_t *head);
/* Takes a head: marks it in flight. -EUCLEAN: it is already. */
int srv_vhost_ring_take(struct srv_vhost_ring *ring, uint16_t head);
/* The segments of a chain. -EUCLEAN: broken. */
int srv_vhost_ring_walk(struct srv_vhost_ring *ring, const struct srv_vhost_memory *mem,
			uint16_t head, struct srv_vhost_chain *chain);
/* Gives a chain back, @len bytes of it written; seen by the driver with the next publish. */
void srv_vhost_ring_give(struct srv_vhost_ring *ring, uint16_t head, uint32_t len);
/* Shows what was given; returns whether the driver wants to be called. */
bool srv_vhost_ring_publish(struct srv_vhost_ring *ring);
/* No kicks, please; and kicks again, with whether something has come meanwhile. */
void srv_vhost_ring_hush(struct srv_vhost_ring *ring);
bool srv_vhost_ring_listen(struct srv_vhost_ring *ring);

/* --- vhost_queue.c: a virtqueue of a device: its ring, its events, its requests --- */
struct srv_vhost_device;

/* An eventfd that is read or written through the ring; lives until the last operation on it has
 * ended, whoever has replaced it meanwhile. */
struct srv_vhost_event {
	struct srv_op op;     /* the poll, or the write */
	struct srv_op cancel; /* of the poll */
	struct srv_vhost_device *device;
	unsigned queue;
	int fd;
	unsigned ops;        /* under way */
	bool dropped;        /* freed when they are not */
	bool writing, again; /* a write is under way; another call came meanwhile */
	uint64_t one;
};

struct srv_vhost_queue {
	struct srv_vhost_ring ring;
	struct vhost_addr addr;
	bool addressed;    /* @addr was given */
	bool enabled;      /* by SET_VRING_ENABLE */
	bool started;      /* all was given; until GET_VRING_BASE */
	bool stopping;     /* GET_VRING_BASE waits for what is in flight */
	bool kicked;       /* the ring may hold something */
	unsigned inflight; /* requests */
	struct srv_vhost_event *kick, *call, *err;
};

/* --- vhost_blk.c: requests --- */
struct srv_vhost_io {
	struct srv_io io;
	struct srv_vhost_device *device;
	struct srv_vhost_io *next; /* free */
	uint16_t queue, head;
	uint32_t used_len; /* bytes of its chain that are written */
	uint8_t *status;
	uint64_t bytes, start_ns;
	bool discard;
	unsigned ranges, range; /* discard, write zeroes: how many, which one is under way */
	union {
		struct iovec iov[VHOST_SEGMENTS + 4]; /* a few may cross from region to region */
		struct virtio_blk_discard_write_zeroes wire[VHOST_RANGES_MAX];
	};
};

uint64_t srv_vhost_blk_features(const struct srv_export *export);
void srv_vhost_blk_config(const struct srv_export *export, uint32_t max_request,
			  struct virtio_blk_config *ret);
/* The 20 bytes of GET_ID. */
void srv_vhost_blk_id(const char *name, char id[VIRTIO_BLK_ID_BYTES]);
/* Starts the request at @head of queue @index, or answers it at once. -EUCLEAN: the ring is broken.
 * @chain: scratch. */
int srv_vhost_blk_start(struct srv_vhost_device *device, unsigned index, uint16_t head,
			struct srv_vhost_chain *chain);

/* --- vhost_device.c: a connected front-end --- */
struct srv_vhost_message {
	struct vhost_header header;
	union vhost_payload payload;
	int fds[VHOST_FDS_MAX];
	unsigned nfds;
};

struct srv_vhost_device {
	struct srv_worker *worker;
	struct srv_export *export;
	const struct srv_server *server;
	void (*ended)(void *owner); /* the device is gone */
	void *owner;
	int fd;
	bool closing, torn; /* no new request; and all operations told to end */
	unsigned ops;       /* ring operations under way, events' included */

	/* messages, one at a time */
	struct srv_op socket_op; /* receives, or sends */
	struct srv_vhost_message in;
	size_t received; /* bytes of header and payload */
	struct {
		struct vhost_header header;
		uint8_t payload[sizeof(union vhost_payload)];
	} out;
	size_t sent;
	int out_fd; /* goes with it; -1: none */
	struct iovec iov;
	struct msghdr msg;
	alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int) * VHOST_FDS_MAX)];
	/* The message waits for requests in flight: asked each turn, VHOST_LATER until they ended. */
	int (*wait)(struct srv_vhost_device *device, struct vmimg_error *err);
	unsigned wait_queue;
	struct srv_vhost_memory *wait_memory;

	/* what was negotiated */
	uint64_t features, protocol_features;
	bool features_set;
	struct srv_vhost_memory *memory; /* NULL: none yet */
	struct srv_vhost_inflight inflight;
	struct srv_vhost_queue *queues[VHOST_QUEUES_MAX]; /* NULL: never spoken of */
	unsigned nqueues;                                 /* the highest spoken of, and one */
	unsigned first_queue;                             /* of the next turn */

	/* requests */
	struct srv_task turn; /* publishes, calls, and takes what has come */
	bool paused;          /* memory is about to change: nothing is taken */
	const char *broken;   /* a ring is: nothing is taken until all have stopped */
	uint64_t now_ns;      /* of this turn */
	unsigned inflight_ios;
	uint64_t inflight_bytes;
	struct srv_vhost_io *free_ios;
	struct srv_vhost_chain *chain;

	/* config change */
	struct srv_watcher watcher;
	bool watching;
	int backend_fd;
	struct srv_op backend_op;
	struct vhost_header backend_message;
	bool backend_busy, backend_again;
};

/* Takes @fd and the reference of @export. On its worker. -ENOMEM: neither is taken. */
int srv_vhost_device_start(const struct srv_server *server, struct srv_export *export, int fd,
			   void (*ended)(void *owner), void *owner, struct srv_vhost_device **ret);
/* No new request; ends when those in flight have. */
void srv_vhost_device_stop(struct srv_vhost_device *device);
/* Something happened that a turn has to look at. */
void srv_vhost_device_wake(struct srv_vhost_device *device);
/* One of its ring operations has. */
void srv_vhost_device_op_ended(struct srv_vhost_device *device);

/* --- vhost_message.c --- */
enum srv_vhost_verdict {
	VHOST_DONE = 0,  /* acknowledge if asked */
	VHOST_REPLY = 1, /* @out is the answer */
	VHOST_LATER = 2, /* @wait will tell */
	VHOST_NO = 3,    /* refused, which is told when asked */
};
/* Acts on @in; what it keeps of the descriptors is -1 there afterwards. A negative errno refuses the
 * message, @err says why. */
int srv_vhost_message(struct srv_vhost_device *device, struct vmimg_error *err);
bool srv_vhost_negotiated(const struct srv_vhost_device *device, enum vhost_protocol_feature f);
/* Whether the front-end waits for an answer whatever it asked for. */
bool srv_vhost_has_reply(uint32_t request);

/* --- vhost_queue.c --- */
struct srv_vhost_queue *srv_vhost_queue_get(struct srv_vhost_device *device, uint32_t index);
/* The descriptor becomes the event's. */
int srv_vhost_event_create(struct srv_vhost_device *device, unsigned queue, int fd,
			   struct srv_vhost_event **ret);
void srv_vhost_event_drop(struct srv_vhost_event *event); /* NULL is fine */
void srv_vhost_event_poll(struct srv_vhost_event *event);
void srv_vhost_event_signal(struct srv_vhost_event *event);
/* Begins to process the ring once all is set up; 0 also when it is not yet. */
int srv_vhost_queue_start(struct srv_vhost_device *device, unsigned index, struct vmimg_error *err);
void srv_vhost_queue_stop(struct srv_vhost_queue *queue);
void srv_vhost_queue_destroy(struct srv_vhost_queue *queue);
/* One turn of all queues. */
void srv_vhost_queues_turn(struct srv_vhost_device *device);

#endif
