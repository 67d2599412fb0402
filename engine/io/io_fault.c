/* SPDX-License-Identifier: MIT */
/*
 * io_fault.c - passes every call on to another eng_io unless a rule strikes. Every operation asks
 * fault_strike() once, before anything is done; a struck one reaches the implementation below only
 * as far as the rule says. Any thread, as io.h says; the lock guards rules and counters and is
 * never held across a call below or a strike function.
 */
#include "engine/io/io_fault.h"
#include "engine/io/io_wrap.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

struct fault_file {
	struct eng_wrap_file wrap;
	char *path;
};

struct fault_rule {
	struct eng_fault_rule rule;
	char *path; /* the copy that rule.path points to */
	bool ended;
	uint64_t matched, struck;
};

struct eng_fault {
	struct eng_io io;
	struct eng_io *inner;
	pthread_mutex_t lock;
	struct fault_rule *rules;
	size_t rule_count;
	uint64_t counts[ENG_FAULT_OPS];
};

/* What an operation has to do: all zero when nothing strikes. */
struct fault_verdict {
	int error;
	bool shorten;
	uint64_t short_len;
};

static struct eng_fault *fault_of(struct eng_io *io)
{
	return (struct eng_fault *)io;
}

static struct eng_io *fault_inner(struct eng_io *io)
{
	return fault_of(io)->inner;
}

static const char *fault_path(struct eng_file *file)
{
	return file ? ((struct fault_file *)file)->path : "";
}

/* --- rules --- */

static bool fault_matches(const struct fault_rule *fr, enum eng_fault_op op, const char *path,
			  const char *path2)
{
	const char *part = fr->rule.path;

	return !fr->ended && (fr->rule.ops & op) &&
	       (!part || strstr(path, part) || (path2 && strstr(path2, part)));
}

static struct fault_verdict fault_strike2(struct eng_io *io, enum eng_fault_op op, const char *path,
					  const char *path2)
{
	struct eng_fault *fault = fault_of(io);
	struct eng_fault_rule rule = {0};
	struct fault_rule *fr;
	bool struck = false;
	size_t i;

	pthread_mutex_lock(&fault->lock);
	fault->counts[__builtin_ctz(op)]++;
	for (i = 0; i < fault->rule_count && !struck; i++) {
		fr = &fault->rules[i];
		if (!fault_matches(fr, op, path, path2))
			continue;
		struck = fr->matched++ >= fr->rule.skip && (fr->rule.sticky || fr->struck == 0);
		if (struck) {
			fr->struck++;
			rule = fr->rule;
		}
	}
	pthread_mutex_unlock(&fault->lock);
	if (rule.strike)
		rule.strike(rule.arg);
	return (struct fault_verdict){rule.error, rule.shorten, rule.short_len};
}

static struct fault_verdict fault_strike(struct eng_io *io, enum eng_fault_op op, const char *path)
{
	return fault_strike2(io, op, path, NULL);
}

int eng_fault_add(struct eng_fault *fault, const struct eng_fault_rule *rule)
{
	struct fault_rule fr = {.rule = *rule}, *rules;
	int r = -ENOMEM;

	if (rule->error > 0 ||
	    (rule->shorten && rule->error == 0 && (rule->ops & ENG_FAULT_ANY_WRITE)))
		return -EINVAL;
	if (rule->path) {
		fr.path = strdup(rule->path);
		if (!fr.path)
			return -ENOMEM;
		fr.rule.path = fr.path;
	}
	pthread_mutex_lock(&fault->lock);
	rules = reallocarray(fault->rules, fault->rule_count + 1, sizeof(*rules));
	if (rules) {
		fault->rules = rules;
		r = (int)fault->rule_count++;
		rules[r] = fr;
	}
	pthread_mutex_unlock(&fault->lock);
	if (r < 0)
		free(fr.path);
	return r;
}

void eng_fault_clear(struct eng_fault *fault)
{
	size_t i;

	pthread_mutex_lock(&fault->lock);
	for (i = 0; i < fault->rule_count; i++)
		fault->rules[i].ended = true;
	pthread_mutex_unlock(&fault->lock);
}

uint64_t eng_fault_matched(struct eng_fault *fault, int rule)
{
	uint64_t n;

	pthread_mutex_lock(&fault->lock);
	n = fault->rules[rule].matched;
	pthread_mutex_unlock(&fault->lock);
	return n;
}

uint64_t eng_fault_struck(struct eng_fault *fault, int rule)
{
	uint64_t n;

	pthread_mutex_lock(&fault->lock);
	n = fault->rules[rule].struck;
	pthread_mutex_unlock(&fault->lock);
	return n;
}

uint64_t eng_fault_count(struct eng_fault *fault, enum eng_fault_op op)
{
	uint64_t n;

	pthread_mutex_lock(&fault->lock);
	n = fault->counts[__builtin_ctz(op)];
	pthread_mutex_unlock(&fault->lock);
	return n;
}

/* --- files --- */

static int fault_open(struct eng_io *io, const char *path, unsigned flags, struct eng_file **ret)
{
	enum eng_fault_op op = flags & ENG_OPEN_CREATE ? ENG_FAULT_CREATE : ENG_FAULT_OPEN;
	struct fault_verdict v = fault_strike(io, op, path);
	struct fault_file *file;
	int r = -ENOMEM;

	if (v.error)
		return v.error;
	file = calloc(1, sizeof(*file));
	if (!file)
		return r;
	file->path = strdup(path);
	if (!file->path)
		goto out;
	r = eng_io_open(fault_inner(io), path, flags, &file->wrap.inner);
	if (r < 0)
		goto out;
	*ret = (struct eng_file *)file;
	file = NULL;
out:
	if (file)
		free(file->path);
	free(file);
	return r;
}

static void fault_close(struct eng_io *io, struct eng_file *file)
{
	eng_io_close(fault_inner(io), eng_wrap_inner(file));
	free(((struct fault_file *)file)->path);
	free(file);
}

static ssize_t fault_pread(struct eng_io *io, struct eng_file *file, void *buf, size_t len,
			   uint64_t offset)
{
	struct fault_verdict v = fault_strike(io, ENG_FAULT_PREAD, fault_path(file));
	ssize_t r = 0;

	if (v.error && !v.shorten)
		return v.error;
	if (v.shorten && v.short_len < len)
		len = v.short_len;
	r = eng_io_pread(fault_inner(io), eng_wrap_inner(file), buf, len, offset);
	return v.error ? v.error : r;
}

static int fault_pwrite(struct eng_io *io, struct eng_file *file, const void *buf, size_t len,
			uint64_t offset)
{
	struct fault_verdict v = fault_strike(io, ENG_FAULT_PWRITE, fault_path(file));
	int r;

	if (v.error && !v.shorten)
		return v.error;
	if (v.shorten && v.short_len < len)
		len = v.short_len;
	r = eng_io_pwrite(fault_inner(io), eng_wrap_inner(file), buf, len, offset);
	return v.error ? v.error : r;
}

static int fault_fdatasync(struct eng_io *io, struct eng_file *file)
{
	struct fault_verdict v = fault_strike(io, ENG_FAULT_FDATASYNC, fault_path(file));

	return v.error ? v.error : eng_io_fdatasync(fault_inner(io), eng_wrap_inner(file));
}

static int fault_fsync(struct eng_io *io, struct eng_file *file)
{
	struct fault_verdict v = fault_strike(io, ENG_FAULT_FDATASYNC, fault_path(file));

	return v.error ? v.error : eng_io_fsync(fault_inner(io), eng_wrap_inner(file));
}

static int fault_truncate(struct eng_io *io, struct eng_file *file, uint64_t size)
{
	struct fault_verdict v = fault_strike(io, ENG_FAULT_TRUNCATE, fault_path(file));

	return v.error ? v.error : eng_io_truncate(fault_inner(io), eng_wrap_inner(file), size);
}

static int fault_allocate(struct eng_io *io, struct eng_file *file, uint64_t offset, uint64_t len)
{
	struct fault_verdict v = fault_strike(io, ENG_FAULT_ALLOCATE, fault_path(file));

	return v.error ? v.error
		       : eng_io_allocate(fault_inner(io), eng_wrap_inner(file), offset, len);
}

static int fault_punch(struct eng_io *io, struct eng_file *file, uint64_t offset, uint64_t len)
{
	struct fault_verdict v = fault_strike(io, ENG_FAULT_PUNCH, fault_path(file));

	return v.error ? v.error : eng_io_punch(fault_inner(io), eng_wrap_inner(file), offset, len);
}

static int fault_fstat(struct eng_io *io, struct eng_file *file, struct eng_stat *ret)
{
	struct fault_verdict v = fault_strike(io, ENG_FAULT_STAT, fault_path(file));

	return v.error ? v.error : eng_io_fstat(fault_inner(io), eng_wrap_inner(file), ret);
}

static int fault_stat(struct eng_io *io, const char *path, struct eng_stat *ret)
{
	struct fault_verdict v = fault_strike(io, ENG_FAULT_STAT, path);

	return v.error ? v.error : eng_io_stat(fault_inner(io), path, ret);
}

static int fault_space(struct eng_io *io, const char *path, uint64_t *free_bytes,
		       uint64_t *all_bytes)
{
	return eng_io_space(fault_inner(io), path, free_bytes, all_bytes);
}

static int fault_next_data(struct eng_io *io, struct eng_file *file, uint64_t offset,
			   uint64_t *data, uint64_t *hole)
{
	struct fault_verdict v = fault_strike(io, ENG_FAULT_NEXT_DATA, fault_path(file));

	return v.error ? v.error
		       : eng_io_next_data(fault_inner(io), eng_wrap_inner(file), offset, data,
					  hole);
}

static int fault_lock(struct eng_io *io, struct eng_file *file)
{
	struct fault_verdict v = fault_strike(io, ENG_FAULT_LOCK, fault_path(file));

	return v.error ? v.error : eng_io_lock(fault_inner(io), eng_wrap_inner(file));
}

/* --- directories --- */

static int fault_mkdir(struct eng_io *io, const char *path)
{
	struct fault_verdict v = fault_strike(io, ENG_FAULT_MKDIR, path);

	return v.error ? v.error : eng_io_mkdir(fault_inner(io), path);
}

static int fault_rename(struct eng_io *io, const char *from, const char *to, bool replace)
{
	struct fault_verdict v = fault_strike2(io, ENG_FAULT_RENAME, from, to);

	if (v.error)
		return v.error;
	return replace ? eng_io_rename(fault_inner(io), from, to)
		       : eng_io_rename_new(fault_inner(io), from, to);
}

static int fault_unlink(struct eng_io *io, const char *path)
{
	struct fault_verdict v = fault_strike(io, ENG_FAULT_UNLINK, path);

	return v.error ? v.error : eng_io_unlink(fault_inner(io), path);
}

static int fault_sync_dir(struct eng_io *io, const char *path)
{
	struct fault_verdict v = fault_strike(io, ENG_FAULT_SYNC_DIR, path);

	return v.error ? v.error : eng_io_sync_dir(fault_inner(io), path);
}

static int fault_list(struct eng_io *io, const char *path, int (*each)(void *, const char *),
		      void *arg)
{
	struct fault_verdict v = fault_strike(io, ENG_FAULT_LIST, path);

	return v.error ? v.error : eng_io_list(fault_inner(io), path, each, arg);
}

/* --- shared memory, threads --- */

static int fault_shm_create(struct eng_io *io, const char *name, size_t len, void **ret)
{
	struct fault_verdict v = fault_strike(io, ENG_FAULT_SHM_CREATE, name);

	return v.error ? v.error : eng_io_shm_create(fault_inner(io), name, len, ret);
}

static int fault_shm_open(struct eng_io *io, const char *name, size_t *len, void **ret)
{
	struct fault_verdict v = fault_strike(io, ENG_FAULT_SHM_OPEN, name);

	return v.error ? v.error : eng_io_shm_open(fault_inner(io), name, len, ret);
}

static void fault_shm_unmap(struct eng_io *io, void *map, size_t len)
{
	eng_io_shm_unmap(fault_inner(io), map, len);
}

static int fault_shm_unlink(struct eng_io *io, const char *name)
{
	struct fault_verdict v = fault_strike(io, ENG_FAULT_SHM_UNLINK, name);

	return v.error ? v.error : eng_io_shm_unlink(fault_inner(io), name);
}

static int fault_spawn(struct eng_io *io, const char *name, void (*fn)(void *), void *arg,
		       struct eng_thread **ret)
{
	struct fault_verdict v = fault_strike(io, ENG_FAULT_SPAWN, name);

	return v.error ? v.error : eng_io_spawn(fault_inner(io), name, fn, arg, ret);
}

/* --- the ring --- */

/* Leaves the first @len bytes of @op, in a copy of its vector. */
static int fault_shorten(struct eng_wrap_op *op, uint64_t len)
{
	unsigned count = op->op.iovcnt, i;
	struct iovec *iov = calloc(count ? count : 1, sizeof(*iov));

	if (!iov)
		return -ENOMEM;
	for (i = 0; i < count; i++) {
		iov[i] = op->op.iov[i];
		if (iov[i].iov_len > len)
			iov[i].iov_len = len;
		len -= iov[i].iov_len;
	}
	op->ptr = iov;
	op->op.iov = iov;
	return 0;
}

static int fault_ring_start(void *arg, struct eng_wrap_op *op)
{
	static const enum eng_fault_op ops[] = {
		[ENG_OP_READ] = ENG_FAULT_RING_READ,
		[ENG_OP_WRITE] = ENG_FAULT_RING_WRITE,
		[ENG_OP_FDATASYNC] = ENG_FAULT_RING_FDATASYNC,
	};
	struct fault_verdict v = fault_strike(arg, ops[op->op.kind], fault_path(op->outer->file));

	if (!v.shorten || op->op.kind == ENG_OP_FDATASYNC)
		return v.error;
	op->num = (uint64_t)-v.error;
	return fault_shorten(op, v.short_len);
}

static void fault_ring_done(void *arg, struct eng_wrap_op *op)
{
	(void)arg;
	free(op->ptr);
	if (op->num)
		op->op.res = -(int64_t)op->num;
}

static const struct eng_wrap_hooks fault_ring_hooks = {
	.start = fault_ring_start,
	.done = fault_ring_done,
};

static int fault_ring_create(struct eng_io *io, unsigned entries, struct eng_file *hold,
			     struct eng_ring **ret)
{
	struct fault_verdict v = fault_strike(io, ENG_FAULT_RING_CREATE, fault_path(hold));

	if (v.error)
		return v.error;
	return eng_wrap_ring_create(fault_inner(io), entries, hold, &fault_ring_hooks, io, ret);
}

/* --- never struck --- */

static uint64_t fault_now_ns(struct eng_io *io)
{
	return eng_io_now_ns(fault_inner(io));
}

static int64_t fault_wall_ns(struct eng_io *io)
{
	return eng_io_wall_ns(fault_inner(io));
}

static void fault_random(struct eng_io *io, void *buf, size_t len)
{
	eng_io_random(fault_inner(io), buf, len);
}

static void fault_boot_id(struct eng_io *io, uint8_t id[16])
{
	eng_io_boot_id(fault_inner(io), id);
}

static void fault_sleep_ns(struct eng_io *io, uint64_t ns)
{
	eng_io_sleep_ns(fault_inner(io), ns);
}

static void fault_join(struct eng_io *io, struct eng_thread *thread)
{
	eng_io_join(fault_inner(io), thread);
}

static void fault_destroy(struct eng_io *io)
{
	struct eng_fault *fault = fault_of(io);
	size_t i;

	for (i = 0; i < fault->rule_count; i++)
		free(fault->rules[i].path);
	free(fault->rules);
	pthread_mutex_destroy(&fault->lock);
	free(fault);
}

static const struct eng_io_ops fault_ops = {
	.open = fault_open,
	.close = fault_close,
	.pread = fault_pread,
	.pwrite = fault_pwrite,
	.fdatasync = fault_fdatasync,
	.fsync = fault_fsync,
	.truncate = fault_truncate,
	.allocate = fault_allocate,
	.punch = fault_punch,
	.fstat = fault_fstat,
	.stat = fault_stat,
	.space = fault_space,
	.next_data = fault_next_data,
	.lock = fault_lock,
	.mkdir = fault_mkdir,
	.rename = fault_rename,
	.unlink = fault_unlink,
	.sync_dir = fault_sync_dir,
	.list = fault_list,
	.shm_create = fault_shm_create,
	.shm_open = fault_shm_open,
	.shm_unmap = fault_shm_unmap,
	.shm_unlink = fault_shm_unlink,
	.now_ns = fault_now_ns,
	.wall_ns = fault_wall_ns,
	.random = fault_random,
	.boot_id = fault_boot_id,
	.sleep_ns = fault_sleep_ns,
	.spawn = fault_spawn,
	.join = fault_join,
	.ring_create = fault_ring_create,
	.destroy = fault_destroy,
};

int eng_fault_create(struct eng_io *inner, struct eng_fault **ret)
{
	struct eng_fault *fault = calloc(1, sizeof(*fault));

	if (!fault)
		return -ENOMEM;
	fault->io.ops = &fault_ops;
	fault->inner = inner;
	pthread_mutex_init(&fault->lock, NULL);
	*ret = fault;
	return 0;
}

void eng_fault_destroy(struct eng_fault *fault)
{
	if (fault)
		fault_destroy(&fault->io);
}

struct eng_io *eng_fault_io(struct eng_fault *fault)
{
	return &fault->io;
}
