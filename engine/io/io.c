/* SPDX-License-Identifier: MIT */
/*
 * io.c - calls of the I/O seam, handed to the implementation behind the object. No state, no
 * checks, no policy: a wrapper such as io_record.c must see exactly what its caller asked for.
 * Any thread, as io.h says for each call.
 */
#include "engine/io/io.h"

int eng_io_open(struct eng_io *io, const char *path, unsigned flags, struct eng_file **ret)
{
	return io->ops->open(io, path, flags, ret);
}

void eng_io_close(struct eng_io *io, struct eng_file *file)
{
	if (file)
		io->ops->close(io, file);
}

ssize_t eng_io_pread(struct eng_io *io, struct eng_file *file, void *buf, size_t len,
		     uint64_t offset)
{
	return io->ops->pread(io, file, buf, len, offset);
}

int eng_io_pwrite(struct eng_io *io, struct eng_file *file, const void *buf, size_t len,
		  uint64_t offset)
{
	return io->ops->pwrite(io, file, buf, len, offset);
}

int eng_io_fdatasync(struct eng_io *io, struct eng_file *file)
{
	return io->ops->fdatasync(io, file);
}

int eng_io_fsync(struct eng_io *io, struct eng_file *file)
{
	return io->ops->fsync(io, file);
}

int eng_io_truncate(struct eng_io *io, struct eng_file *file, uint64_t size)
{
	return io->ops->truncate(io, file, size);
}

int eng_io_allocate(struct eng_io *io, struct eng_file *file, uint64_t offset, uint64_t len)
{
	return io->ops->allocate(io, file, offset, len);
}

int eng_io_punch(struct eng_io *io, struct eng_file *file, uint64_t offset, uint64_t len)
{
	return io->ops->punch(io, file, offset, len);
}

int eng_io_fstat(struct eng_io *io, struct eng_file *file, struct eng_stat *ret)
{
	return io->ops->fstat(io, file, ret);
}

int eng_io_stat(struct eng_io *io, const char *path, struct eng_stat *ret)
{
	return io->ops->stat(io, path, ret);
}

int eng_io_space(struct eng_io *io, const char *path, uint64_t *free_bytes, uint64_t *all_bytes)
{
	return io->ops->space(io, path, free_bytes, all_bytes);
}

int eng_io_next_data(struct eng_io *io, struct eng_file *file, uint64_t offset, uint64_t *data,
		     uint64_t *hole)
{
	return io->ops->next_data(io, file, offset, data, hole);
}

int eng_io_lock(struct eng_io *io, struct eng_file *file)
{
	return io->ops->lock(io, file);
}

int eng_io_mkdir(struct eng_io *io, const char *path)
{
	return io->ops->mkdir(io, path);
}

int eng_io_rename(struct eng_io *io, const char *from, const char *to)
{
	return io->ops->rename(io, from, to, true);
}

int eng_io_rename_new(struct eng_io *io, const char *from, const char *to)
{
	return io->ops->rename(io, from, to, false);
}

int eng_io_unlink(struct eng_io *io, const char *path)
{
	return io->ops->unlink(io, path);
}

int eng_io_sync_dir(struct eng_io *io, const char *path)
{
	return io->ops->sync_dir(io, path);
}

int eng_io_list(struct eng_io *io, const char *path, int (*each)(void *arg, const char *name),
		void *arg)
{
	return io->ops->list(io, path, each, arg);
}

int eng_io_shm_create(struct eng_io *io, const char *name, size_t len, void **ret)
{
	return io->ops->shm_create(io, name, len, ret);
}

int eng_io_shm_open(struct eng_io *io, const char *name, size_t *len, void **ret)
{
	return io->ops->shm_open(io, name, len, ret);
}

void eng_io_shm_unmap(struct eng_io *io, void *map, size_t len)
{
	if (map)
		io->ops->shm_unmap(io, map, len);
}

int eng_io_shm_unlink(struct eng_io *io, const char *name)
{
	return io->ops->shm_unlink(io, name);
}

uint64_t eng_io_now_ns(struct eng_io *io)
{
	return io->ops->now_ns(io);
}

int64_t eng_io_wall_ns(struct eng_io *io)
{
	return io->ops->wall_ns(io);
}

void eng_io_random(struct eng_io *io, void *buf, size_t len)
{
	io->ops->random(io, buf, len);
}

void eng_io_boot_id(struct eng_io *io, uint8_t id[16])
{
	io->ops->boot_id(io, id);
}

void eng_io_sleep_ns(struct eng_io *io, uint64_t ns)
{
	io->ops->sleep_ns(io, ns);
}

int eng_io_spawn(struct eng_io *io, const char *name, void (*fn)(void *arg), void *arg,
		 struct eng_thread **ret)
{
	return io->ops->spawn(io, name, fn, arg, ret);
}

void eng_io_join(struct eng_io *io, struct eng_thread *thread)
{
	io->ops->join(io, thread);
}

void eng_io_destroy(struct eng_io *io)
{
	if (io)
		io->ops->destroy(io);
}

int eng_ring_create(struct eng_io *io, unsigned entries, struct eng_file *hold,
		    struct eng_ring **ret)
{
	return io->ops->ring_create(io, entries, hold, ret);
}

void eng_ring_destroy(struct eng_ring *ring)
{
	if (ring)
		ring->ops->destroy(ring);
}

void eng_ring_queue(struct eng_ring *ring, struct eng_op *op)
{
	ring->ops->queue(ring, op);
}

int eng_ring_submit(struct eng_ring *ring)
{
	return ring->ops->submit(ring);
}

int eng_ring_wait(struct eng_ring *ring, uint64_t timeout_ns)
{
	return ring->ops->wait(ring, timeout_ns);
}

void eng_ring_wake(struct eng_ring *ring)
{
	ring->ops->wake(ring);
}

int eng_ring_fd(struct eng_ring *ring)
{
	return ring->ops->fd(ring);
}

struct io_uring *eng_ring_native(struct eng_ring *ring)
{
	return ring->ops->native(ring);
}

void eng_ring_on_foreign(struct eng_ring *ring,
			 void (*fn)(void *arg, uint64_t user_data, int32_t res, uint32_t flags),
			 void *arg)
{
	ring->ops->on_foreign(ring, fn, arg);
}
