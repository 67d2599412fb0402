/* SPDX-License-Identifier: MIT */
/*
 * io_record_crash.c - from the recorder's log to the tree that a power loss leaves (the rules are
 * in io_record.h). Everything here runs under both of the recorder's locks.
 *
 * What is durable at one crash index is durable at every later one. So the log's durable beginning
 * is folded into an image a file and a list of entries a directory, once; only what comes behind
 * the first undurable operation is replayed for each crash. Going back starts over.
 */
#define _GNU_SOURCE 1
#include "engine/io/io_record_log.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define SECTOR      512u
#define WRITE_PAGES 256

/* --- chance --- */

/* A number that depends on the seed and on what it decides about, and on nothing else. */
static uint64_t crash_random(uint64_t seed, uint64_t a, uint64_t b)
{
	uint64_t x = seed * 0x9e3779b97f4a7c15u + a;
	int i;

	for (i = 0; i < 2; i++) { /* splitmix64 */
		x += 0x9e3779b97f4a7c15u;
		x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
		x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
		x = (x ^ (x >> 31)) + b;
	}
	return x ^ (x >> 32);
}

enum { CHANCE_CRASH = 1, CHANCE_FILE = 2, CHANCE_CUT = 3, CHANCE_DIR = 4, CHANCE_EVENTS = 5 };

/* How many of @count to keep: none and all come up often, since bugs live at the ends. */
static uint64_t crash_prefix(uint64_t seed, uint64_t what, uint64_t id, uint64_t count)
{
	uint64_t x = crash_random(seed, what, id);

	switch (x & 3) {
	case 0: return 0;
	case 1: return count;
	default: return (x >> 2) % (count + 1);
	}
}

/* The share, of 256, of a file's undurable writes to keep; one crash in four treats all alike. */
static unsigned crash_share(uint64_t seed, const struct rec_node *node)
{
	uint64_t all = crash_random(seed, CHANCE_CRASH, 0) % 8;

	if (all < 2)
		return all ? 256 : 0;
	return (unsigned)(crash_random(seed, CHANCE_FILE, node->id) % 5) * 64;
}

/* --- directories --- */

static void rec_dir_copy(struct rec_dir *to, const struct rec_dir *from)
{
	while (to->room < from->count)
		to->entries = rec_grow(to->entries, to->room, &to->room, sizeof(*to->entries));
	if (from->count > 0)
		memcpy(to->entries, from->entries, from->count * sizeof(*to->entries));
	to->count = from->count;
}

/* --- what is durable --- */

/* The size that @op leaves, and for a write also that its bytes are below it. */
static bool crash_size_durable(const struct rec_node *node, const struct rec_op *op, uint64_t index)
{
	if (!op->ok || op->tainted)
		return false;
	if (op->kind == REC_PUNCH)
		return op->complete < node->durable_before;
	return op->complete < node->size_before || (op->dsync && op->complete < index);
}

static bool crash_data_durable(const struct rec_node *node, const struct rec_op *op, uint64_t index)
{
	return op->ok && !op->tainted &&
	       (op->complete < node->durable_before || (op->dsync && op->complete < index));
}

/* Whether @op's effect is the same for every crash from @index on. */
static bool crash_settled(const struct rec_node *node, const struct rec_op *op, uint64_t index)
{
	if (op->kind == REC_WRITE)
		return crash_data_durable(node, op, index);
	return op->complete < index && (!op->ok || crash_size_durable(node, op, index));
}

static bool crash_name_durable(const struct rec_name *name, uint64_t index)
{
	if (name->adopted)
		return name->submit < index;
	return (name->from_dir && name->complete < name->from_dir->durable_before) ||
	       (name->to_dir && name->complete < name->to_dir->durable_before);
}

static void crash_fold_op(struct rec_image *image, const struct rec_op *op)
{
	if (op->kind == REC_WRITE)
		rec_image_write(image, op->offset, op->data, op->len);
	else if (op->kind == REC_PUNCH && op->ok)
		rec_image_punch(image, op->offset, op->len);
	else if (op->kind == REC_TRUNCATE && op->ok)
		rec_image_truncate(image, op->offset);
	if ((op->kind == REC_WRITE || (op->kind == REC_ALLOCATE && op->ok)) &&
	    op->offset + op->len > image->size)
		image->size = op->offset + op->len;
}

static void crash_fold_node(struct rec_node *node, uint64_t index)
{
	const struct rec_sync *sync;

	if (!node->has_image)
		rec_image_copy(&node->image, &node->origin);
	node->has_image = true;
	for (; node->syncs_seen < node->sync_count; node->syncs_seen++) {
		sync = &node->syncs[node->syncs_seen];
		if (sync->complete >= index)
			break;
		if (sync->all && sync->submit > node->durable_before)
			node->durable_before = sync->submit;
		if (sync->submit > node->size_before)
			node->size_before = sync->submit;
	}
	while (node->folded < node->op_count && crash_settled(node, node->ops[node->folded], index))
		crash_fold_op(&node->image, node->ops[node->folded++]);
}

static void crash_start_over(struct eng_record *rec)
{
	struct rec_node *node;
	size_t i;

	for (i = 0; i < rec->node_count; i++) {
		node = rec->nodes[i];
		node->syncs_seen = 0;
		node->durable_before = 0;
		node->size_before = 0;
		node->folded = 0;
		node->has_image = false;
		node->durable.count = 0;
	}
	rec->names_folded = 0;
}

static void crash_fold(struct eng_record *rec, uint64_t index)
{
	struct rec_name *name;
	size_t i;

	if (index < rec->at)
		crash_start_over(rec);
	rec->at = index;
	for (i = 0; i < rec->node_count; i++)
		crash_fold_node(rec->nodes[i], index);
	for (; rec->names_folded < rec->name_count; rec->names_folded++) {
		name = &rec->names[rec->names_folded];
		if (rec->names_folded >= rec->base_count && !crash_name_durable(name, index))
			break;
		rec_dir_apply(name, name->from_dir ? &name->from_dir->durable : NULL,
			      name->to_dir ? &name->to_dir->durable : NULL);
	}
}

/* --- names at the crash --- */

/* Decides name by name, backwards, what must be there: a durable one takes all before it in its
 * directories along. */
static void crash_decide_names(struct eng_record *rec, size_t end, uint64_t index)
{
	struct rec_name *name;
	struct rec_node *dir;
	size_t i;
	int side;

	for (i = end; i-- > rec->names_folded;) {
		name = &rec->names[i];
		name->durable = crash_name_durable(name, index);
		for (side = 0; side < 2; side++) {
			dir = side ? name->to_dir : name->from_dir;
			if (dir && name->submit < dir->entries_before)
				name->durable = true;
		}
		for (side = 0; side < 2; side++) {
			dir = side ? name->to_dir : name->from_dir;
			if (!dir || (side && dir == name->from_dir))
				continue;
			if (!name->durable)
				dir->undecided++;
			else if (name->submit >= dir->entries_before)
				dir->entries_before = name->submit + 1;
		}
	}
}

static void crash_build_names(struct eng_record *rec, uint64_t index, uint64_t seed)
{
	struct rec_node *node, *from, *to;
	struct rec_name *name;
	size_t i, end;
	bool keep;

	for (i = 0; i < rec->node_count; i++) {
		node = rec->nodes[i];
		rec_dir_copy(&node->crash, &node->durable);
		node->entries_before = 0;
		node->undecided = 0;
	}
	for (end = rec->names_folded; end < rec->name_count; end++)
		if (rec->names[end].submit >= index)
			break;
	crash_decide_names(rec, end, index);
	for (i = 0; i < rec->node_count; i++) {
		node = rec->nodes[i];
		node->keep = crash_prefix(seed, CHANCE_DIR, node->id, node->undecided);
	}
	for (i = rec->names_folded; i < end; i++) {
		name = &rec->names[i];
		from = name->from_dir;
		to = name->to_dir == from ? NULL : name->to_dir;
		keep = name->durable || ((!from || from->keep > 0) && (!to || to->keep > 0));
		if (keep)
			rec_dir_apply(name, from ? &from->crash : NULL,
				      name->to_dir ? &name->to_dir->crash : NULL);
		/* What is lost ends its directories' prefixes. */
		if (from && !name->durable)
			from->keep = keep ? from->keep - 1 : 0;
		if (to && !name->durable)
			to->keep = keep ? to->keep - 1 : 0;
	}
}

/* --- files at the crash --- */

static int crash_pwrite(int fd, const uint8_t *data, uint64_t len, uint64_t offset)
{
	ssize_t n;

	for (; len > 0; data += n, len -= (uint64_t)n, offset += (uint64_t)n) {
		n = pwrite(fd, data, len, (off_t)offset);
		if (n <= 0)
			return n < 0 ? -errno : -EIO;
	}
	return 0;
}

/* Whether the page must be written: one of zeros reads the same as a hole, and costs nothing. */
static bool crash_holds(const uint8_t *page)
{
	return page && (page[0] || memcmp(page, page + 1, REC_PAGE - 1) != 0);
}

static int crash_write_image(int fd, const struct rec_image *image)
{
	struct iovec iov[WRITE_PAGES];
	uint64_t len;
	ssize_t done;
	size_t i, n;

	if (ftruncate(fd, (off_t)image->size) < 0)
		return -errno;
	for (i = 0; i < image->count && i * REC_PAGE < image->size; i += n ? n : 1) {
		len = 0;
		for (n = 0; n < WRITE_PAGES && i + n < image->count &&
			    crash_holds(image->pages[i + n]) && (i + n) * REC_PAGE < image->size;
		     n++) {
			iov[n].iov_base = image->pages[i + n];
			iov[n].iov_len = REC_PAGE;
			if ((i + n + 1) * REC_PAGE > image->size)
				iov[n].iov_len = image->size % REC_PAGE;
			len += iov[n].iov_len;
		}
		if (n == 0)
			continue;
		done = pwritev(fd, iov, (int)n, (off_t)(i * REC_PAGE));
		if (done != (ssize_t)len)
			return done < 0 ? -errno : -EIO;
	}
	return 0;
}

/* One write that chance decides: kept, torn or dropped. */
static int crash_chance_write(int fd, const struct rec_op *op, uint64_t len, unsigned share,
			      uint64_t seed)
{
	uint64_t x = crash_random(seed, CHANCE_EVENTS, op->submit), done, part;
	int r = 0;

	if (x % 256 < share)
		return crash_pwrite(fd, op->data, len, op->offset);
	if (share == 0 || (x >> 8) % 4 != 0)
		return 0;
	for (done = 0; done < len && r == 0; done += part) {
		part = SECTOR - (op->offset + done) % SECTOR;
		if (part > len - done)
			part = len - done;
		if (crash_random(x, (op->offset + done) / SECTOR, 0) & 1)
			r = crash_pwrite(fd, op->data + done, part, op->offset + done);
	}
	return r;
}

/* Replays what is not folded. Operations before ops[cut] have their effect on the size. */
static int crash_write_tail(int fd, const struct rec_node *node, size_t end, size_t cut,
			    uint64_t index, uint64_t seed)
{
	unsigned share = crash_share(seed, node);
	uint64_t size = node->image.size, len;
	const struct rec_op *op;
	int r = 0;
	size_t i;

	for (i = node->folded; i < end && r == 0; i++) {
		op = node->ops[i];
		if (op->kind != REC_WRITE && (i >= cut || (op->complete != REC_NEVER && !op->ok)))
			continue;
		if (op->kind == REC_TRUNCATE) {
			size = op->offset;
			r = ftruncate(fd, (off_t)size) < 0 ? -errno : 0;
			continue;
		}
		if (op->kind == REC_PUNCH) {
			r = fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				      (off_t)op->offset, (off_t)op->len) < 0
				    ? -errno
				    : 0;
			continue;
		}
		if (i < cut && op->offset + op->len > size)
			size = op->offset + op->len;
		if (op->kind == REC_ALLOCATE || op->offset >= size)
			continue;
		len = op->len < size - op->offset ? op->len : size - op->offset;
		if (crash_data_durable(node, op, index))
			r = crash_pwrite(fd, op->data, len, op->offset);
		else
			r = crash_chance_write(fd, op, len, share, seed);
	}
	if (r == 0 && ftruncate(fd, (off_t)size) < 0)
		r = -errno;
	return r;
}

/* As a process finds it that comes after one that died: all of it, durable or not. */
static int crash_write_whole(int fd, const struct rec_node *node)
{
	struct rec_image image = {0};
	int r;

	rec_image_copy(&image, &node->image);
	for (size_t i = node->folded; i < node->op_count; i++)
		crash_fold_op(&image, node->ops[i]);
	r = crash_write_image(fd, &image);
	rec_image_fini(&image);
	return r;
}

static int crash_write_cut(int fd, const struct rec_node *node, uint64_t index, uint64_t seed)
{
	size_t end, cut = node->folded;
	int r;

	for (end = node->folded; end < node->op_count && node->ops[end]->submit < index; end++)
		if (crash_size_durable(node, node->ops[end], index))
			cut = end + 1;
	cut += crash_prefix(seed, CHANCE_CUT, node->id, end - cut);
	r = crash_write_image(fd, &node->image);
	return r == 0 ? crash_write_tail(fd, node, end, cut, index, seed) : r;
}

/* @whole: without a loss. */
static int crash_write_file(int dirfd, const char *name, const struct rec_node *node,
			    uint64_t index, uint64_t seed, bool whole)
{
	int fd = openat(dirfd, name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	int r;

	if (fd < 0)
		return -errno;
	r = whole ? crash_write_whole(fd, node) : crash_write_cut(fd, node, index, seed);
	close(fd);
	return r;
}

static int crash_write_dir(int fd, const struct rec_node *dir, uint64_t index, uint64_t seed,
			   bool whole)
{
	const struct rec_entry *entry;
	int child, r = 0;
	size_t i;

	for (i = 0; i < dir->crash.count && r == 0; i++) {
		entry = &dir->crash.entries[i];
		if (!entry->node->is_dir) {
			r = crash_write_file(fd, entry->name, entry->node, index, seed, whole);
			continue;
		}
		if (mkdirat(fd, entry->name, 0700) < 0)
			return -errno;
		child = openat(fd, entry->name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		if (child < 0)
			return -errno;
		r = crash_write_dir(child, entry->node, index, seed, whole);
		close(child);
	}
	return r;
}

/* An existing directory, or a new one: its descriptor. */
static int crash_open(const char *to)
{
	int fd;

	if (mkdir(to, 0700) < 0 && errno != EEXIST)
		return -errno;
	fd = open(to, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

int eng_record_crash(struct eng_record *rec, uint64_t index, uint64_t seed, const char *to)
{
	int fd = crash_open(to), r = 0;

	if (fd < 0)
		return fd;
	pthread_mutex_lock(&rec->names_lock);
	pthread_mutex_lock(&rec->lock);
	if (index > rec->events) {
		r = -EINVAL;
	} else {
		crash_fold(rec, index);
		crash_build_names(rec, index, seed);
		r = crash_write_dir(fd, rec->nodes[0], index, seed, false);
	}
	pthread_mutex_unlock(&rec->lock);
	pthread_mutex_unlock(&rec->names_lock);
	close(fd);
	return r;
}

/* --- the death of a process --- */

/*
 * What was under way happens all the same, now, or not at all; nothing of it is durable. What failed
 * never happened: a second reader may see it or not, and this one does not.
 */
static void crash_end_op(struct rec_op *op, uint64_t index)
{
	op->complete = index;
	op->ok = true;
	op->dsync = false;
}

static void crash_end_node(struct rec_node *node, uint64_t index, uint64_t seed)
{
	struct rec_op *op;
	size_t kept = node->folded;

	while (node->sync_count && node->syncs[node->sync_count - 1].complete >= index)
		node->sync_count--;
	for (size_t i = node->folded; i < node->op_count; i++) {
		op = node->ops[i];
		if (op->submit < index && op->complete < index && op->ok) {
			node->ops[kept++] = op;
		} else if (op->submit < index && op->complete >= index &&
			   crash_random(seed, CHANCE_EVENTS, op->submit) & 1) {
			crash_end_op(op, index);
			node->ops[kept++] = op;
		} else {
			free(op->data);
			free(op);
		}
	}
	node->op_count = kept;
}

/* names_lock and lock are held. A change of names is one step: it has happened once it is in the log. */
static void crash_end_names(struct eng_record *rec, uint64_t index)
{
	struct rec_name *name;
	size_t kept = 0;

	for (size_t i = 0; i < rec->node_count; i++)
		rec->nodes[i]->live.count = 0;
	for (size_t i = 0; i < rec->name_count; i++) {
		name = &rec->names[i];
		if (i >= rec->base_count && name->submit >= index) {
			free(name->from);
			free(name->to);
			continue;
		}
		if (i >= rec->base_count && name->complete > index)
			name->complete = index;
		rec_dir_apply(name, name->from_dir ? &name->from_dir->live : NULL,
			      name->to_dir ? &name->to_dir->live : NULL);
		rec->names[kept++] = *name;
	}
	rec->name_count = kept;
}

int eng_record_kill(struct eng_record *rec, uint64_t index, uint64_t seed, struct eng_io *inner,
		    const char *to)
{
	int fd = crash_open(to), r = 0;

	if (fd < 0)
		return fd;
	pthread_mutex_lock(&rec->names_lock);
	pthread_mutex_lock(&rec->lock);
	if (index > rec->events) {
		r = -EINVAL;
		goto out;
	}
	crash_fold(rec, index);
	crash_end_names(rec, index);
	for (size_t i = 0; i < rec->node_count; i++) {
		crash_end_node(rec->nodes[i], index, seed);
		rec_dir_copy(&rec->nodes[i]->crash, &rec->nodes[i]->live);
	}
	while (rec->mark_count && rec->marks[rec->mark_count - 1].index >= index)
		rec->mark_count--;
	rec->events = index + 1;
	r = crash_write_dir(fd, rec->nodes[0], index, seed, true);
	if (r == 0)
		r = rec_set_root(rec, inner, to);
out:
	pthread_mutex_unlock(&rec->lock);
	pthread_mutex_unlock(&rec->names_lock);
	close(fd);
	return r;
}

static int crash_remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	(void)st;
	(void)type;
	(void)ftw;
	return remove(path) < 0 ? -errno : 0;
}

int eng_record_remove_tree(const char *path)
{
	int r = nftw(path, crash_remove_one, 16, FTW_DEPTH | FTW_PHYS);

	return r == -1 ? -errno : r;
}
