/* SPDX-License-Identifier: MIT */
/*
 * io_record.c - the recorder: passes every call on and logs what a power loss could undo. Any
 * thread, as io.h says. Invariants:
 *
 * - An operation's submission is logged before the call below starts, its completion after it
 *   returned: the log never says "durable" earlier than the machine could.
 * - A directory operation and its place in the log are one step (names_lock).
 */
#define _GNU_SOURCE 1
#include "engine/io/io_record_log.h"
#include "engine/io/io_wrap.h"

#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct rec_file {
	struct eng_wrap_file wrap;
	struct rec_node *node; /* NULL outside the root */
};

static struct eng_record *rec_of(struct eng_io *io)
{
	return (struct eng_record *)io;
}

static struct rec_node *rec_node_of(struct eng_file *file)
{
	return ((struct rec_file *)file)->node;
}

/* --- names --- */

/* Where a path below the root leads. dir is NULL for the root itself and for paths outside. */
struct rec_place {
	bool inside;
	struct rec_node *dir, *node;
	char name[NAME_MAX + 1];
};

static int rec_adopt(struct eng_record *rec, struct rec_node *dir, const char *name,
		     const char *path, struct rec_node **ret);

struct rec_adopt_arg {
	struct eng_record *rec;
	struct rec_node *dir;
	const char *path;
};

static int rec_adopt_child(void *opaque, const char *name)
{
	struct rec_adopt_arg *arg = opaque;
	char path[PATH_MAX];
	struct rec_node *node;
	int r;

	if (snprintf(path, sizeof(path), "%s/%s", arg->path, name) >= (int)sizeof(path))
		return -ENAMETOOLONG;
	r = rec_adopt(arg->rec, arg->dir, name, path, &node);
	/* Sockets and the like are no part of a store's state. */
	return r == -ENOTSUP || r == -ENOENT ? 0 : r;
}

static int rec_adopt_content(struct eng_record *rec, struct rec_node *node, const char *path)
{
	uint64_t data = 0, hole = 0, end;
	uint8_t buf[16 * REC_PAGE];
	struct eng_file *file;
	ssize_t n = 0;
	struct eng_stat st;
	int r;

	r = eng_io_open(rec->inner, path, 0, &file);
	if (r < 0)
		return r;
	r = eng_io_fstat(rec->inner, file, &st);
	while (r == 0) {
		r = eng_io_next_data(rec->inner, file, hole, &data, &hole);
		for (; r == 0 && data < hole; data += (uint64_t)n) {
			end = data - data % REC_PAGE + sizeof(buf);
			n = eng_io_pread(rec->inner, file, buf, (end < hole ? end : hole) - data,
					 data);
			r = n > 0 ? 0 : n < 0 ? (int)n : -EIO;
			if (r == 0)
				rec_image_write(&node->origin, data, buf, (uint64_t)n);
		}
	}
	if (r == -ENXIO) {
		rec_image_truncate(&node->origin, st.size);
		r = 0;
	}
	eng_io_close(rec->inner, file);
	return r;
}

static void rec_add_name(struct eng_record *rec, struct rec_name name)
{
	pthread_mutex_lock(&rec->lock);
	name.complete = name.adopted ? name.submit : rec->events++;
	rec->names = rec_grow(rec->names, rec->name_count, &rec->name_room, sizeof(*rec->names));
	rec->names[rec->name_count++] = name;
	rec_dir_apply(&name, name.from_dir ? &name.from_dir->live : NULL,
		      name.to_dir ? &name.to_dir->live : NULL);
	pthread_mutex_unlock(&rec->lock);
}

static char *rec_strdup(const char *s)
{
	char *copy = strdup(s);

	if (!copy)
		abort();
	return copy;
}

/* Takes in what somebody made without us, as durable. -ENOENT where there is nothing. */
static int rec_adopt(struct eng_record *rec, struct rec_node *dir, const char *name,
		     const char *path, struct rec_node **ret)
{
	struct rec_adopt_arg arg = {rec, NULL, path};
	struct rec_node *node;
	struct eng_stat st;
	int r;

	r = eng_io_stat(rec->inner, path, &st);
	if (r < 0)
		return r;
	if (!st.is_dir && !st.is_regular)
		return -ENOTSUP;
	node = rec_node_create(rec, st.is_dir);
	if (!st.is_dir) {
		r = rec_adopt_content(rec, node, path);
		if (r < 0)
			return r;
	}
	rec_add_name(rec, (struct rec_name){.to_dir = dir,
					    .to = rec_strdup(name),
					    .node = node,
					    .submit = rec_event(rec),
					    .adopted = true});
	*ret = node;
	arg.dir = node;
	return st.is_dir ? eng_io_list(rec->inner, path, rec_adopt_child, &arg) : 0;
}

/* The part of @path below the root, or NULL. */
static const char *rec_below_root(struct eng_record *rec, const char *path)
{
	const char *roots[] = {rec->root, rec->root_real};
	size_t i, len;

	for (i = 0; i < 2; i++) {
		len = strlen(roots[i]);
		if (strncmp(path, roots[i], len) == 0 && (path[len] == '/' || !path[len]))
			return path + len;
	}
	return NULL;
}

/* names_lock is held. A place without a node is a name that is free, or leads nowhere (no dir). */
static void rec_find(struct eng_record *rec, const char *path, struct rec_place *place)
{
	const char *s = rec_below_root(rec, path);
	char prefix[PATH_MAX];
	size_t len;

	memset(place, 0, sizeof(*place));
	place->inside = s != NULL;
	if (!s)
		return;
	place->node = rec->nodes[0];
	while (*s) {
		len = strcspn(s, "/");
		if (len == 0 || (len == 1 && *s == '.')) {
			s += len ? len : 1;
			continue;
		}
		assert(len <= NAME_MAX && !(len == 2 && s[0] == '.' && s[1] == '.'));
		place->dir = place->node && place->node->is_dir ? place->node : NULL;
		place->node = NULL;
		if (!place->dir)
			return;
		memcpy(place->name, s, len);
		place->name[len] = 0;
		s += len;
		place->node = rec_dir_find(&place->dir->live, place->name);
		snprintf(prefix, sizeof(prefix), "%.*s", (int)(s - path), path);
		if (!place->node)
			rec_adopt(rec, place->dir, place->name, prefix, &place->node);
	}
}

static int rec_open(struct eng_io *io, const char *path, unsigned flags, struct eng_file **ret)
{
	struct eng_record *rec = rec_of(io);
	struct rec_file *file = rec_alloc(sizeof(*file));
	struct rec_op *trunc = NULL;
	struct rec_place place;
	uint64_t submit;
	int r;

	pthread_mutex_lock(&rec->names_lock);
	rec_find(rec, path, &place);
	submit = rec_event(rec);
	if (place.node && (flags & ENG_OPEN_TRUNC))
		trunc = rec_begin(rec, place.node, (struct rec_op){.kind = REC_TRUNCATE});
	r = eng_io_open(rec->inner, path, flags, &file->wrap.inner);
	rec_end(rec, place.node, trunc, r == 0);
	if (r == 0 && place.inside && !place.node) {
		assert(place.dir);
		place.node = rec_node_create(rec, false);
		rec_add_name(rec, (struct rec_name){.to_dir = place.dir,
						    .to = rec_strdup(place.name),
						    .node = place.node,
						    .submit = submit});
	}
	pthread_mutex_unlock(&rec->names_lock);
	if (r < 0) {
		free(file);
		return r;
	}
	file->node = place.node;
	*ret = (struct eng_file *)file;
	return 0;
}

static void rec_close(struct eng_io *io, struct eng_file *file)
{
	eng_io_close(rec_of(io)->inner, eng_wrap_inner(file));
	free(file);
}

static int rec_mkdir(struct eng_io *io, const char *path)
{
	struct eng_record *rec = rec_of(io);
	struct rec_place place;
	uint64_t submit;
	int r;

	pthread_mutex_lock(&rec->names_lock);
	rec_find(rec, path, &place);
	submit = rec_event(rec);
	r = eng_io_mkdir(rec->inner, path);
	if (r == 0 && place.inside)
		rec_add_name(rec, (struct rec_name){.to_dir = place.dir,
						    .to = rec_strdup(place.name),
						    .node = rec_node_create(rec, true),
						    .submit = submit});
	pthread_mutex_unlock(&rec->names_lock);
	return r;
}

static int rec_rename(struct eng_io *io, const char *from_path, const char *to_path, bool replace)
{
	struct eng_record *rec = rec_of(io);
	struct rec_place from, to;
	uint64_t submit;
	int r = -EXDEV; /* what crosses the root can't be logged */

	pthread_mutex_lock(&rec->names_lock);
	rec_find(rec, from_path, &from);
	rec_find(rec, to_path, &to);
	if (from.inside != to.inside)
		goto out;
	submit = rec_event(rec);
	r = replace ? eng_io_rename(rec->inner, from_path, to_path)
		    : eng_io_rename_new(rec->inner, from_path, to_path);
	if (r == 0 && from.inside)
		rec_add_name(rec, (struct rec_name){.from_dir = from.dir,
						    .from = rec_strdup(from.name),
						    .to_dir = to.dir,
						    .to = rec_strdup(to.name),
						    .node = from.node,
						    .submit = submit});
out:
	pthread_mutex_unlock(&rec->names_lock);
	return r;
}

static int rec_unlink(struct eng_io *io, const char *path)
{
	struct eng_record *rec = rec_of(io);
	struct rec_place place;
	uint64_t submit;
	int r;

	pthread_mutex_lock(&rec->names_lock);
	rec_find(rec, path, &place);
	submit = rec_event(rec);
	r = eng_io_unlink(rec->inner, path);
	if (r == 0 && place.inside)
		rec_add_name(rec, (struct rec_name){.from_dir = place.dir,
						    .from = rec_strdup(place.name),
						    .node = place.node,
						    .submit = submit});
	pthread_mutex_unlock(&rec->names_lock);
	return r;
}

static int rec_sync_dir(struct eng_io *io, const char *path)
{
	struct eng_record *rec = rec_of(io);
	struct rec_place place;
	uint64_t submit;
	int r;

	pthread_mutex_lock(&rec->names_lock);
	rec_find(rec, path, &place);
	pthread_mutex_unlock(&rec->names_lock);
	submit = rec_event(rec);
	r = eng_io_sync_dir(rec->inner, path);
	rec_end_sync(rec, place.node, submit, r == 0);
	return r;
}

/* --- files --- */

static ssize_t rec_pread(struct eng_io *io, struct eng_file *file, void *buf, size_t len,
			 uint64_t offset)
{
	return eng_io_pread(rec_of(io)->inner, eng_wrap_inner(file), buf, len, offset);
}

static int rec_pwrite(struct eng_io *io, struct eng_file *file, const void *buf, size_t len,
		      uint64_t offset)
{
	struct eng_record *rec = rec_of(io);
	struct rec_node *node = rec_node_of(file);
	struct iovec iov = {.iov_base = (void *)(uintptr_t)buf, .iov_len = len};
	struct rec_op *op = rec_begin_write(rec, node, offset, &iov, 1, false);
	int r;

	r = eng_io_pwrite(rec->inner, eng_wrap_inner(file), buf, len, offset);
	rec_end(rec, node, op, r == 0);
	return r;
}

static int rec_fdatasync(struct eng_io *io, struct eng_file *file)
{
	struct eng_record *rec = rec_of(io);
	uint64_t submit = rec_event(rec);
	int r;

	r = eng_io_fdatasync(rec->inner, eng_wrap_inner(file));
	rec_end_sync(rec, rec_node_of(file), submit, r == 0);
	return r;
}

static int rec_fsync(struct eng_io *io, struct eng_file *file)
{
	struct eng_record *rec = rec_of(io);
	uint64_t submit = rec_event(rec);
	int r;

	r = eng_io_fsync(rec->inner, eng_wrap_inner(file));
	rec_end_sync(rec, rec_node_of(file), submit, r == 0);
	return r;
}

static int rec_truncate(struct eng_io *io, struct eng_file *file, uint64_t size)
{
	struct eng_record *rec = rec_of(io);
	struct rec_node *node = rec_node_of(file);
	struct rec_op *op = rec_begin(rec, node,
				      (struct rec_op){.kind = REC_TRUNCATE, .offset = size});
	int r;

	r = eng_io_truncate(rec->inner, eng_wrap_inner(file), size);
	rec_end(rec, node, op, r == 0);
	return r;
}

static int rec_allocate(struct eng_io *io, struct eng_file *file, uint64_t offset, uint64_t len)
{
	struct eng_record *rec = rec_of(io);
	struct rec_node *node = rec_node_of(file);
	struct rec_op *op = rec_begin(
		rec, node, (struct rec_op){.kind = REC_ALLOCATE, .offset = offset, .len = len});
	int r;

	r = eng_io_allocate(rec->inner, eng_wrap_inner(file), offset, len);
	rec_end(rec, node, op, r == 0);
	return r;
}

static int rec_punch(struct eng_io *io, struct eng_file *file, uint64_t offset, uint64_t len)
{
	struct eng_record *rec = rec_of(io);
	struct rec_node *node = rec_node_of(file);
	struct rec_op *op = rec_begin(
		rec, node, (struct rec_op){.kind = REC_PUNCH, .offset = offset, .len = len});
	int r;

	r = eng_io_punch(rec->inner, eng_wrap_inner(file), offset, len);
	rec_end(rec, node, op, r == 0);
	return r;
}

static int rec_fstat(struct eng_io *io, struct eng_file *file, struct eng_stat *ret)
{
	return eng_io_fstat(rec_of(io)->inner, eng_wrap_inner(file), ret);
}

static int rec_stat(struct eng_io *io, const char *path, struct eng_stat *ret)
{
	return eng_io_stat(rec_of(io)->inner, path, ret);
}

static int rec_space(struct eng_io *io, const char *path, uint64_t *free_bytes, uint64_t *all_bytes)
{
	return eng_io_space(rec_of(io)->inner, path, free_bytes, all_bytes);
}

static int rec_next_data(struct eng_io *io, struct eng_file *file, uint64_t offset, uint64_t *data,
			 uint64_t *hole)
{
	return eng_io_next_data(rec_of(io)->inner, eng_wrap_inner(file), offset, data, hole);
}

static int rec_lock(struct eng_io *io, struct eng_file *file)
{
	return eng_io_lock(rec_of(io)->inner, eng_wrap_inner(file));
}

static int rec_list(struct eng_io *io, const char *path, int (*each)(void *, const char *),
		    void *arg)
{
	return eng_io_list(rec_of(io)->inner, path, each, arg);
}

/* --- the ring --- */

static int rec_ring_start(void *arg, struct eng_wrap_op *op)
{
	struct rec_node *node = rec_node_of(op->outer->file);

	if (op->op.kind == ENG_OP_WRITE)
		op->ptr = rec_begin_write(arg, node, op->op.offset, op->op.iov, op->op.iovcnt,
					  op->op.dsync);
	else if (op->op.kind == ENG_OP_FDATASYNC)
		op->num = rec_event(arg);
	return 0;
}

static void rec_ring_done(void *arg, struct eng_wrap_op *op)
{
	struct rec_node *node = rec_node_of(op->outer->file);

	if (op->op.kind == ENG_OP_WRITE)
		rec_end(arg, node, op->ptr, op->op.res >= 0);
	else if (op->op.kind == ENG_OP_FDATASYNC)
		rec_end_sync(arg, node, op->num, op->op.res == 0);
}

static const struct eng_wrap_hooks rec_ring_hooks = {
	.start = rec_ring_start,
	.done = rec_ring_done,
};

static int rec_ring_create(struct eng_io *io, unsigned entries, struct eng_file *hold,
			   struct eng_ring **ret)
{
	return eng_wrap_ring_create(rec_of(io)->inner, entries, hold, &rec_ring_hooks, io, ret);
}

/* --- passed on --- */

static int rec_shm_create(struct eng_io *io, const char *name, size_t len, void **ret)
{
	return eng_io_shm_create(rec_of(io)->inner, name, len, ret);
}

static int rec_shm_open(struct eng_io *io, const char *name, size_t *len, void **ret)
{
	return eng_io_shm_open(rec_of(io)->inner, name, len, ret);
}

static void rec_shm_unmap(struct eng_io *io, void *map, size_t len)
{
	eng_io_shm_unmap(rec_of(io)->inner, map, len);
}

static int rec_shm_unlink(struct eng_io *io, const char *name)
{
	return eng_io_shm_unlink(rec_of(io)->inner, name);
}

static uint64_t rec_now_ns(struct eng_io *io)
{
	return eng_io_now_ns(rec_of(io)->inner);
}

static int64_t rec_wall_ns(struct eng_io *io)
{
	return eng_io_wall_ns(rec_of(io)->inner);
}

static void rec_random(struct eng_io *io, void *buf, size_t len)
{
	eng_io_random(rec_of(io)->inner, buf, len);
}

static void rec_boot_id(struct eng_io *io, uint8_t id[16])
{
	eng_io_boot_id(rec_of(io)->inner, id);
}

static void rec_sleep_ns(struct eng_io *io, uint64_t ns)
{
	eng_io_sleep_ns(rec_of(io)->inner, ns);
}

static int rec_spawn(struct eng_io *io, const char *name, void (*fn)(void *), void *arg,
		     struct eng_thread **ret)
{
	return eng_io_spawn(rec_of(io)->inner, name, fn, arg, ret);
}

static void rec_join(struct eng_io *io, struct eng_thread *thread)
{
	eng_io_join(rec_of(io)->inner, thread);
}

/* --- the recorder --- */

static void rec_destroy(struct eng_io *io)
{
	struct eng_record *rec = rec_of(io);
	struct rec_node *node;
	size_t i, j;

	for (i = 0; i < rec->node_count; i++) {
		node = rec->nodes[i];
		for (j = 0; j < node->op_count; j++) {
			free(node->ops[j]->data);
			free(node->ops[j]);
		}
		free(node->ops);
		free(node->syncs);
		rec_image_fini(&node->origin);
		rec_image_fini(&node->image);
		free(node->live.entries);
		free(node->durable.entries);
		free(node->crash.entries);
		free(node);
	}
	for (i = 0; i < rec->name_count; i++) {
		free(rec->names[i].from);
		free(rec->names[i].to);
	}
	free(rec->nodes);
	free(rec->names);
	free(rec->marks);
	free(rec->root);
	free(rec->root_real);
	pthread_mutex_destroy(&rec->lock);
	pthread_mutex_destroy(&rec->names_lock);
	free(rec);
}

static const struct eng_io_ops rec_ops = {
	.open = rec_open,
	.close = rec_close,
	.pread = rec_pread,
	.pwrite = rec_pwrite,
	.fdatasync = rec_fdatasync,
	.fsync = rec_fsync,
	.truncate = rec_truncate,
	.allocate = rec_allocate,
	.punch = rec_punch,
	.fstat = rec_fstat,
	.stat = rec_stat,
	.space = rec_space,
	.next_data = rec_next_data,
	.lock = rec_lock,
	.mkdir = rec_mkdir,
	.rename = rec_rename,
	.unlink = rec_unlink,
	.sync_dir = rec_sync_dir,
	.list = rec_list,
	.shm_create = rec_shm_create,
	.shm_open = rec_shm_open,
	.shm_unmap = rec_shm_unmap,
	.shm_unlink = rec_shm_unlink,
	.now_ns = rec_now_ns,
	.wall_ns = rec_wall_ns,
	.random = rec_random,
	.boot_id = rec_boot_id,
	.sleep_ns = rec_sleep_ns,
	.spawn = rec_spawn,
	.join = rec_join,
	.ring_create = rec_ring_create,
	.destroy = rec_destroy,
};

int rec_set_root(struct eng_record *rec, struct eng_io *inner, const char *root)
{
	char *real = realpath(root, NULL);
	size_t len;

	if (!real)
		return -errno;
	free(rec->root);
	free(rec->root_real);
	rec->inner = inner;
	rec->root_real = real;
	rec->root = rec_strdup(root);
	for (len = strlen(root); len > 1 && root[len - 1] == '/'; len--)
		rec->root[len - 1] = 0;
	return 0;
}

int eng_record_create(struct eng_io *inner, const char *root, struct eng_record **ret)
{
	struct eng_record *rec = rec_alloc(sizeof(*rec));
	struct rec_adopt_arg arg = {rec, NULL, root};
	int r;

	rec->io.ops = &rec_ops;
	pthread_mutex_init(&rec->names_lock, NULL);
	pthread_mutex_init(&rec->lock, NULL);
	r = rec_set_root(rec, inner, root);
	if (r < 0)
		goto out;
	arg.dir = rec_node_create(rec, true);
	r = eng_io_list(inner, root, rec_adopt_child, &arg);
	if (r < 0)
		goto out;
	rec->base_count = rec->name_count;
	rec->events = 0;
	*ret = rec;
	rec = NULL;
out:
	eng_record_destroy(rec);
	return r;
}

void eng_record_destroy(struct eng_record *rec)
{
	if (rec)
		rec_destroy(&rec->io);
}

struct eng_io *eng_record_io(struct eng_record *rec)
{
	return &rec->io;
}

uint64_t eng_record_index(struct eng_record *rec)
{
	uint64_t index;

	pthread_mutex_lock(&rec->lock);
	index = rec->events;
	pthread_mutex_unlock(&rec->lock);
	return index;
}

uint64_t eng_record_mark(struct eng_record *rec, uint64_t kind, uint64_t a, uint64_t b)
{
	uint64_t index;

	pthread_mutex_lock(&rec->lock);
	index = rec->events++;
	rec->marks = rec_grow(rec->marks, rec->mark_count, &rec->mark_room, sizeof(*rec->marks));
	rec->marks[rec->mark_count++] = (struct eng_record_mark){index, kind, a, b};
	pthread_mutex_unlock(&rec->lock);
	return index;
}

bool eng_record_get_mark(struct eng_record *rec, size_t n, struct eng_record_mark *ret)
{
	bool found;

	pthread_mutex_lock(&rec->lock);
	found = n < rec->mark_count;
	if (found)
		*ret = rec->marks[n];
	pthread_mutex_unlock(&rec->lock);
	return found;
}
