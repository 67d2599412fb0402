/* SPDX-License-Identifier: MIT */
/*
 * block.c - the block path: queues, attachments and requests (BQ-*). As thin as it can be: the
 * public structs are the engine's under another name, so that arrays pass through as they are. A
 * queue's calls are made on its thread.
 */
#include <errno.h>
#include <stdlib.h>

#include "api/service.h"
#include "engine/disk/map.h"
#include "engine/disk/queue.h"
#include "engine/store/hold.h"

#define DEPTH_MAX 4096u

#define SAME_FIELD(pub, priv, field)                                                               \
	static_assert(offsetof(struct pub, field) == offsetof(struct priv, field) &&               \
			      sizeof(((struct pub *)0)->field) ==                                  \
				      sizeof(((struct priv *)0)->field),                           \
		      #pub "." #field)

static_assert(sizeof(struct vmimg_request) == sizeof(struct eng_request), "passed through");
SAME_FIELD(vmimg_request, eng_request, disk);
SAME_FIELD(vmimg_request, eng_request, op);
SAME_FIELD(vmimg_request, eng_request, flags);
SAME_FIELD(vmimg_request, eng_request, iovcnt);
SAME_FIELD(vmimg_request, eng_request, iov);
SAME_FIELD(vmimg_request, eng_request, offset);
SAME_FIELD(vmimg_request, eng_request, length);
SAME_FIELD(vmimg_request, eng_request, user_data);
static_assert(sizeof(struct vmimg_completion) == sizeof(struct eng_completion), "passed through");
SAME_FIELD(vmimg_completion, eng_completion, user_data);
SAME_FIELD(vmimg_completion, eng_completion, result);
SAME_FIELD(vmimg_completion, eng_completion, flags);
SAME_FIELD(vmimg_completion, eng_completion, foreign);
static_assert((int)VMIMG_READ == (int)ENG_READ && (int)VMIMG_WRITE == (int)ENG_WRITE &&
		      (int)VMIMG_FLUSH == (int)ENG_FLUSH &&
		      (int)VMIMG_WRITE_ZEROES == (int)ENG_WRITE_ZEROES &&
		      (int)VMIMG_DISCARD == (int)ENG_DISCARD &&
		      (int)VMIMG_EXTENTS == (int)ENG_EXTENTS,
	      "operations");
static_assert(sizeof(struct vmimg_disk_extent) == sizeof(struct eng_disk_extent), "passed through");
SAME_FIELD(vmimg_disk_extent, eng_disk_extent, length);
SAME_FIELD(vmimg_disk_extent, eng_disk_extent, state);
SAME_FIELD(vmimg_disk_extent, eng_disk_extent, layer);
static_assert((int)VMIMG_EXTENT_DATA == (int)ENG_EXTENT_DATA &&
		      (int)VMIMG_EXTENT_ZERO == (int)ENG_EXTENT_ZERO &&
		      (int)VMIMG_EXTENT_HOLE == (int)ENG_EXTENT_HOLE,
	      "extent states");
static_assert(VMIMG_FUA == ENG_REQ_FUA, "flags");
static_assert((int)VMIMG_ATTACH_READ_ONLY == (int)ENG_ATTACH_READ_ONLY, "flags");

struct vmimg_queue {
	struct eng_queue *eng;
	struct vmimg_service *svc;
};

/* A vmimg_disk is an eng_disk. */
static struct eng_disk *disk_of(struct vmimg_disk *disk)
{
	return (struct eng_disk *)disk;
}

int vmimg_queue_create(struct vmimg_service *svc, unsigned depth, struct vmimg_error *err,
		       struct vmimg_queue **ret)
{
	struct fmt_error why = {""};
	struct vmimg_queue *queue;
	int r;

	if (!svc || !ret)
		return api_fail(err, -EINVAL, "queue: no %s given", svc ? "result" : "service");
	if (depth == 0 || depth > DEPTH_MAX)
		return api_fail(err, -EINVAL, "queue: depth is %u, expected 1..%u", depth,
				DEPTH_MAX);
	queue = malloc(sizeof(*queue));
	if (!queue)
		return api_fail(err, -ENOMEM, "queue: out of memory");
	queue->svc = svc;
	r = eng_queue_create(svc->io, depth, svc->store->lock_file, &queue->eng);
	if (r < 0) {
		free(queue);
		return api_fail_why(err, r, &why, "queue: cannot make a ring");
	}
	atomic_fetch_add(&svc->queues, 1);
	*ret = queue;
	return 0;
}

int vmimg_queue_destroy(struct vmimg_queue *queue)
{
	int r;

	if (!queue)
		return 0;
	r = eng_queue_destroy(queue->eng);
	if (r < 0)
		return r;
	atomic_fetch_sub(&queue->svc->queues, 1);
	free(queue);
	return 0;
}

int vmimg_queue_fd(struct vmimg_queue *queue)
{
	return queue ? eng_queue_fd(queue->eng) : -EINVAL;
}

struct io_uring *vmimg_queue_ring(struct vmimg_queue *queue)
{
	return queue ? eng_ring_native(eng_queue_ring(queue->eng)) : NULL;
}

/* BQ-5, as far as the engine does not look at it. */
static bool is_well_formed(const struct vmimg_request *request)
{
	bool takes_fua = request->op != VMIMG_READ && request->op != VMIMG_FLUSH &&
			 request->op != VMIMG_EXTENTS;

	return request->reserved == 0 && (takes_fua || request->flags == 0);
}

int vmimg_queue_prepare(struct vmimg_queue *queue, const struct vmimg_request *requests,
			unsigned count)
{
	unsigned good = 0;

	if (!queue || (!requests && count))
		return -EINVAL;
	while (good < count && is_well_formed(&requests[good]))
		good++;
	if (!good && count)
		return -EINVAL;
	return eng_queue_take(queue->eng, (const struct eng_request *)requests, good);
}

int vmimg_queue_submit(struct vmimg_queue *queue, const struct vmimg_request *requests,
		       unsigned count)
{
	int taken = vmimg_queue_prepare(queue, requests, count);

	if (queue)
		eng_ring_submit(eng_queue_ring(queue->eng));
	return taken;
}

int vmimg_queue_poll(struct vmimg_queue *queue, struct vmimg_completion *completions, unsigned max,
		     uint64_t timeout_ns)
{
	if (!queue || !completions || !max)
		return -EINVAL;
	return eng_queue_poll(queue->eng, (struct eng_completion *)completions, max, timeout_ns);
}

int vmimg_disk_attach(struct vmimg_queue *queue, const char *disk, unsigned flags,
		      struct vmimg_error *err, struct vmimg_disk **ret)
{
	struct fmt_error why = {""};
	struct eng_disk *attached;
	int r;

	if (!queue || !ret || !disk)
		return api_fail(err, -EINVAL, "attach: no %s given",
				!queue ? "queue"
				: disk ? "result"
				       : "disk");
	if (flags & ~(unsigned)VMIMG_ATTACH_READ_ONLY)
		return api_fail(err, -EINVAL, "attach %.140s: flags are 0x%x, expected 0 or 0x%x",
				disk, flags, VMIMG_ATTACH_READ_ONLY);
	r = eng_store_attach(queue->svc->store, queue->eng, disk, flags, &why, &attached);
	if (r < 0)
		return api_fail_why(err, r, &why, disk);
	*ret = (struct vmimg_disk *)attached;
	return 0;
}

int vmimg_disk_detach(struct vmimg_disk *disk)
{
	return disk ? eng_store_detach(disk_of(disk)) : -EINVAL;
}

uint64_t vmimg_disk_size(struct vmimg_disk *disk)
{
	return disk ? disk_of(disk)->size : 0;
}

uint32_t vmimg_disk_block_size(struct vmimg_disk *disk)
{
	return disk ? 1u << disk_of(disk)->block_bits : 0;
}

void vmimg_disk_snapshot_id(struct vmimg_disk *disk, char id[37])
{
	struct fmt_uuid snapshot;

	id[0] = 0;
	if (disk && eng_store_reading_of(disk_of(disk), &snapshot))
		fmt_uuid_format(&snapshot, id);
}

uint32_t vmimg_disk_layers(struct vmimg_disk *disk)
{
	if (!disk)
		return 0;
	eng_disk_promote(disk_of(disk));
	return disk_of(disk)->nlayers - 1;
}

int vmimg_disk_frozen_layer(struct vmimg_disk *disk, const char *snapshot, struct vmimg_error *err,
			    uint32_t *ret)
{
	struct fmt_error why = {""};
	char collection[CAT_NAME_MAX], name[CAT_NAME_MAX];
	int r;

	if (!disk || !ret)
		return api_fail(err, -EINVAL, "frozen layer: no %s given",
				disk ? "result" : "disk");
	if (api_name_split(snapshot, '@', collection, name) < 0)
		return api_fail(err, -EINVAL,
				"frozen layer: '%.140s' is no name, expected COLLECTION@NAME",
				snapshot ? snapshot : "");
	r = eng_store_frozen_layer(disk_of(disk), collection, name, &why, ret);
	return r < 0 ? api_fail_why(err, r, &why, snapshot) : 0;
}

void vmimg_disk_memory(struct vmimg_disk *disk, uint64_t *map_bytes, uint64_t *head_blocks)
{
	const struct eng_disk *d = disk_of(disk);

	if (map_bytes)
		*map_bytes = d->map ? eng_map_memory(d->map) : 0;
	if (head_blocks)
		*head_blocks = d->head ? d->head->next_slot : 0;
}
