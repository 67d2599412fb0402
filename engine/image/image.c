/* SPDX-License-Identifier: MIT */
/*
 * image.c - an open image: its chain as an eng_disk on a queue that a thread of the image turns.
 *
 * Any thread may call: a call is a message to the image's thread, and its caller waits for it. The
 * queue, the disk and all below belong to that thread from its start to its end; the rest of the
 * struct is immutable in between, but for the calls, which the lock guards.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "engine/disk/disk.h"
#include "engine/image/image_impl.h"

#define DEPTH     64u
#define PART      (4u << 20) /* a longer read or write is done in parts */
#define SETTLE_NS 1000000000u

struct eng_image {
	struct eng_io *io;
	char *path;
	bool writable;
	uint64_t size;
	struct eng_file *lock_file; /* writable: IM-4 */
	struct eng_pool *pool;
	struct eng_thread *thread;
	struct eng_layer **layers; /* the disk's from the start on */
	uint32_t count;
	struct fmt_error *err; /* of the start */

	struct eng_queue *queue; /* the thread's */
	struct eng_disk *disk;
	bool stopping;

	pthread_mutex_t lock; /* results below, and of calls */
	pthread_cond_t started;
	bool has_started;
	int start_result;
};

/* One call, on its caller's stack until done. */
struct call {
	struct eng_msg msg;
	struct eng_image *image;
	struct eng_req req;
	struct iovec iov;
	uint64_t offset; /* extent */
	struct eng_extent extent;
	struct fmt_error *err;
	pthread_cond_t ended;
	bool done;
	int result;
};

static struct call *call_of(struct eng_req *req)
{
	return (struct call *)((char *)req - offsetof(struct call, req));
}

static void call_end(struct call *call, int result)
{
	struct eng_image *image = call->image;

	/* Signalled under the lock: once it is released the call is gone. */
	pthread_mutex_lock(&image->lock);
	call->result = result;
	call->done = true;
	pthread_cond_signal(&call->ended);
	pthread_mutex_unlock(&image->lock);
}

static int call_run(struct call *call, struct eng_image *image, void (*run)(struct eng_msg *msg))
{
	call->image = image;
	call->msg.run = run;
	pthread_cond_init(&call->ended, NULL);
	eng_queue_post(image->queue, &call->msg);
	pthread_mutex_lock(&image->lock);
	while (!call->done)
		pthread_cond_wait(&call->ended, &image->lock);
	pthread_mutex_unlock(&image->lock);
	pthread_cond_destroy(&call->ended);
	return call->result;
}

/* --- the image's thread --- */

static int thread_start(struct eng_image *image)
{
	struct eng_disk_spec spec = {
		.io = image->io,
		.pool = image->pool,
		.size = image->size,
		.block_bits = image->layers[image->count - 1]->block_bits,
		.read_only = !image->writable,
		.layers = image->layers,
		.nlayers = image->count,
	};
	int r = eng_queue_create(image->io, DEPTH, image->lock_file, &image->queue);

	if (r < 0)
		return fmt_fail(image->err, r, "%s: cannot make a ring: %s", image->path,
				strerror(-r));
	spec.queue = image->queue;
	r = eng_disk_create(&spec, image->err, &image->disk);
	if (r < 0)
		eng_queue_destroy(image->queue);
	return r;
}

static void thread_main(void *arg)
{
	struct eng_image *image = arg;
	int r = thread_start(image), turned;

	pthread_mutex_lock(&image->lock);
	image->start_result = r;
	image->has_started = true;
	pthread_cond_signal(&image->started);
	pthread_mutex_unlock(&image->lock);
	if (r < 0)
		return;
	while (!image->stopping) {
		turned = eng_queue_turn(image->queue, UINT64_MAX);
		if (turned < 0 && turned != -EINTR)
			eng_io_sleep_ns(image->io, 1000000);
	}
	while (eng_disk_settle(image->disk, SETTLE_NS) < 0)
		eng_io_sleep_ns(image->io, 1000000);
	eng_disk_destroy(image->disk);
	r = eng_queue_destroy(image->queue);
	assert(r == 0);
}

static void msg_stop(struct eng_msg *msg)
{
	struct call *call = (struct call *)((char *)msg - offsetof(struct call, msg));

	call->image->stopping = true;
	call_end(call, 0);
}

/* --- opening --- */

/* IM-3, IM-6 */
static int check_writable(struct eng_image *image, const char *format, struct fmt_error *err)
{
	struct fmt_header hdr;
	char *sidecar = NULL;
	int r = 0;

	if (!strcmp(format, "vmo"))
		hdr = image->layers[image->count - 1]->hdr;
	else
		r = eng_sidecar_find(image->io, image->path, err, &hdr, &sidecar);
	free(sidecar);
	if (r == -ENOENT)
		return 0;
	if (r < 0)
		return r;
	if (!fmt_uuid_is_none(&hdr.store_id))
		return fmt_fail(err, -EROFS, "%s: a layer of a store is read-only here (IM-3)",
				image->path);
	if (hdr.state != FMT_STATE_ACTIVE)
		return fmt_fail(err, -EROFS, "%s: a frozen layer is read-only (IM-6)", image->path);
	if (hdr.ro_compat)
		return fmt_fail(err, -EROFS,
				"%s: read-only, it has the unknown features %#" PRIx64 " (FB-1)",
				image->path, hdr.ro_compat);
	return 0;
}

/* IM-4. Through a descriptor of its own, which every ring keeps too (T19). */
static int take_lock(struct eng_image *image, struct fmt_error *err)
{
	int r = eng_io_open(image->io, image->path, ENG_OPEN_WRITE, &image->lock_file);

	if (r == 0)
		r = eng_io_lock(image->io, image->lock_file);
	if (r == -EWOULDBLOCK)
		return fmt_fail(err, -EBUSY, "%s: in use by somebody else (IM-4)", image->path);
	return r < 0 ? fmt_fail(err, r, "%s: %s", image->path, strerror(-r)) : 0;
}

static int open_layers(struct eng_image *image, const char *format, const char *base_dir,
		       struct fmt_error *err)
{
	struct eng_finder *finder = NULL;
	int r;

	if (image->writable && !strcmp(format, "qcow2"))
		return fmt_fail(err, -EROFS, "%s: qcow2 is read only", image->path);
	r = image->writable ? take_lock(image, err) : 0;
	if (r == 0)
		r = eng_finder_create(image->io, image->path, base_dir, &finder);
	if (r == 0)
		r = eng_finder_open_chain(finder, image->path, format, image->writable, err,
					  &image->layers, &image->count);
	if (r == 0 && image->writable)
		r = check_writable(image, format, err);
	eng_finder_destroy(finder);
	if (r < 0)
		return r;
	image->size = atomic_load(&image->layers[image->count - 1]->size);
	if (image->size == 0 || image->size > FMT_SIZE_MAX)
		return fmt_fail(err, -EINVAL, "%s: %" PRIu64 " bytes, expected 1 to %llu",
				image->path, image->size, (unsigned long long)FMT_SIZE_MAX);
	return 0;
}

static int start(struct eng_image *image, struct fmt_error *err)
{
	int r = eng_pool_create(image->io, 1, &image->pool);

	if (r < 0)
		return r;
	image->err = err;
	r = eng_io_spawn(image->io, "vmimg-image", thread_main, image, &image->thread);
	if (r < 0)
		return r;
	pthread_mutex_lock(&image->lock);
	while (!image->has_started)
		pthread_cond_wait(&image->started, &image->lock);
	r = image->start_result;
	pthread_mutex_unlock(&image->lock);
	image->err = NULL;
	if (r < 0)
		eng_io_join(image->io, image->thread);
	else
		image->count = 0; /* the disk's now */
	return r;
}

static void image_free(struct eng_image *image)
{
	eng_pool_destroy(image->pool);
	for (uint32_t i = 0; i < image->count; i++)
		eng_layer_put(image->layers[i]);
	free(image->layers);
	eng_io_close(image->io, image->lock_file);
	pthread_cond_destroy(&image->started);
	pthread_mutex_destroy(&image->lock);
	free(image->path);
	free(image);
}

int eng_image_open_as(struct eng_io *io, const char *path, const char *format, const char *base_dir,
		      bool writable, struct fmt_error *err, struct eng_image **ret)
{
	struct eng_image *image = calloc(1, sizeof(*image));
	int r = -ENOMEM;

	if (!image)
		return fmt_fail(err, r, "%s: out of memory", path);
	image->io = io;
	image->writable = writable;
	pthread_mutex_init(&image->lock, NULL);
	pthread_cond_init(&image->started, NULL);
	if (err)
		err->text[0] = 0;
	image->path = strdup(path);
	if (image->path)
		r = format ? 0 : eng_image_probe(io, path, &format, err);
	if (r == 0)
		r = open_layers(image, format, base_dir, err);
	if (r == 0)
		r = start(image, err);
	if (r == 0) {
		*ret = image;
		return 0;
	}
	if (err && !err->text[0])
		fmt_fail(err, r, "%s: cannot open: %s", path, strerror(-r));
	image_free(image);
	return r;
}

int eng_image_open(struct eng_io *io, const char *path, const char *base_dir, bool writable,
		   struct fmt_error *err, struct eng_image **ret)
{
	return eng_image_open_as(io, path, NULL, base_dir, writable, err, ret);
}

int eng_image_close(struct eng_image *image)
{
	struct call call = {0};
	int r;

	if (!image)
		return 0;
	r = eng_image_flush(image, NULL);
	call_run(&call, image, msg_stop);
	eng_io_join(image->io, image->thread);
	image_free(image);
	return r;
}

uint64_t eng_image_size(const struct eng_image *image)
{
	return image->size;
}

const struct eng_layer *eng_image_base(const struct eng_image *image)
{
	const struct eng_disk *disk = image->disk; /* immutable, where nothing is written */

	if (image->writable || disk->nlayers != 1 || disk->layers[0]->kind == FMT_KIND_OVERLAY)
		return NULL;
	return disk->layers[0];
}

/* --- requests --- */

static void req_done(struct eng_req *req)
{
	call_end(call_of(req), req->result);
}

static void msg_request(struct eng_msg *msg)
{
	struct call *call = (struct call *)((char *)msg - offsetof(struct call, msg));

	call->req.disk = call->image->disk;
	call->req.origin = call->image->queue;
	call->req.done = req_done;
	eng_disk_start(&call->req);
}

static int request(struct eng_image *image, uint8_t op, void *buf, size_t len, uint64_t offset)
{
	struct call call = {
		.req = {.op = op, .offset = offset, .length = len, .iovcnt = len != 0},
		.iov = {buf, len},
	};

	call.req.iov = &call.iov;
	return call_run(&call, image, msg_request);
}

static int transfer(struct eng_image *image, uint8_t op, uint8_t *buf, size_t len, uint64_t offset,
		    struct fmt_error *err)
{
	const char *verb = op == ENG_READ ? "read" : "write";
	int r = 0;

	if (offset > image->size || len > image->size - offset)
		return fmt_fail(err, -EINVAL,
				"%s: %zu bytes at %" PRIu64 " reach beyond the end at %" PRIu64,
				image->path, len, offset, image->size);
	while (len && r == 0) {
		size_t n = PART - offset % PART;

		n = n < len ? n : len;
		r = request(image, op, buf, n, offset);
		if (r < 0)
			return fmt_fail(err, r, "%s: cannot %s %zu bytes at %" PRIu64 ": %s",
					image->path, verb, n, offset, strerror(-r));
		buf += n;
		offset += n;
		len -= n;
	}
	return 0;
}

int eng_image_read(struct eng_image *image, void *buf, size_t len, uint64_t offset,
		   struct fmt_error *err)
{
	return transfer(image, ENG_READ, buf, len, offset, err);
}

int eng_image_write(struct eng_image *image, const void *buf, size_t len, uint64_t offset,
		    struct fmt_error *err)
{
	if (!image->writable)
		return fmt_fail(err, -EROFS, "%s: opened for reading only", image->path);
	return transfer(image, ENG_WRITE, (uint8_t *)buf, len, offset, err);
}

int eng_image_flush(struct eng_image *image, struct fmt_error *err)
{
	int r = request(image, ENG_FLUSH, NULL, 0, 0);

	return r < 0 ? fmt_fail(err, r, "%s: cannot flush: %s", image->path, strerror(-r)) : 0;
}

/* --- extents --- */

/* What the base says of up to @max bytes at @offset; the image's thread may wait for the file. */
static int base_extent(struct call *call, uint64_t offset, uint64_t max)
{
	const struct eng_layer *base = call->image->disk->layers[0];
	uint64_t end = eng_base_end(base);
	struct eng_extent *e = &call->extent;
	enum eng_extent_state state = ENG_EXTENT_HOLE;
	uint32_t depth = 0;
	int r = 0;

	e->length = max;
	if (offset < end)
		r = eng_base_extent(base, end, offset, call->err, &e->length, &state, &depth);
	if (r < 0)
		return r;
	e->state = (uint8_t)state;
	e->depth += depth;
	e->length = e->length < max ? e->length : max;
	return 0;
}

static int look_up(struct call *call)
{
	const struct eng_disk *disk = call->image->disk;
	struct eng_extent *e = &call->extent;
	uint64_t block = call->offset >> disk->block_bits, left = disk->size - call->offset;
	uint64_t len = left;
	struct eng_map_entry entry = {.state = ENG_MAP_NONE};
	uint32_t count;

	if (disk->nlayers > 1 || disk->layers[0]->kind == FMT_KIND_OVERLAY) {
		entry = eng_map_get_run(disk->map, block, ENG_MAP_REGION, &count);
		len = ((block + count) << disk->block_bits) - call->offset;
		len = len < left ? len : left;
	}
	*e = (struct eng_extent){
		.start = call->offset,
		.length = len,
		.state = entry.state == ENG_MAP_DATA ? ENG_EXTENT_DATA : ENG_EXTENT_ZERO,
		.depth = disk->nlayers - 1 - (entry.state == ENG_MAP_NONE ? 0 : entry.layer),
	};
	return entry.state == ENG_MAP_NONE ? base_extent(call, call->offset, len) : 0;
}

static void extent_resume(struct eng_req *req, int result)
{
	struct call *call = call_of(req);
	struct eng_disk *disk = call->image->disk;
	uint64_t region = call->offset >> (disk->block_bits + ENG_MAP_REGION_BITS);

	if (result == 0 && !eng_build_region(disk, region, req, extent_resume))
		return;
	call_end(call, result < 0 ? result : look_up(call));
}

static void msg_extent(struct eng_msg *msg)
{
	struct call *call = (struct call *)((char *)msg - offsetof(struct call, msg));

	extent_resume(&call->req, 0);
}

int eng_image_extent(struct eng_image *image, uint64_t offset, struct eng_extent *ret,
		     struct fmt_error *err)
{
	struct fmt_error why = {{0}};
	struct call call = {.offset = offset, .err = &why};
	int r;

	if (offset >= image->size)
		return fmt_fail(err, -EINVAL,
				"%s: no extent at %" PRIu64 ", the end is at %" PRIu64, image->path,
				offset, image->size);
	r = call_run(&call, image, msg_extent);
	if (r < 0)
		return fmt_fail(err, r, "%s: no extent at %" PRIu64 ": %s", image->path, offset,
				why.text[0] ? why.text : strerror(-r));
	*ret = call.extent;
	return 0;
}
