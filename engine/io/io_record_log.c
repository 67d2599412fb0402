/* SPDX-License-Identifier: MIT */
/*
 * io_record_log.c - the recorder's log: submissions and completions, and the images and directories
 * that it keeps. The calls that take a struct eng_record lock it; the others are for whoever holds
 * its lock.
 */
#include "engine/io/io_record_log.h"

#include <stdlib.h>
#include <string.h>

/* --- events --- */

void *rec_alloc(size_t len)
{
	void *mem = calloc(1, len ? len : 1);

	if (!mem)
		abort();
	return mem;
}

void *rec_grow(void *array, size_t count, size_t *room, size_t element)
{
	if (count < *room)
		return array;
	*room = *room ? *room * 2 : 8;
	array = reallocarray(array, *room, element);
	if (!array)
		abort();
	return array;
}

uint64_t rec_event(struct eng_record *rec)
{
	uint64_t event;

	pthread_mutex_lock(&rec->lock);
	event = rec->events++;
	pthread_mutex_unlock(&rec->lock);
	return event;
}

struct rec_node *rec_node_create(struct eng_record *rec, bool is_dir)
{
	struct rec_node *node = rec_alloc(sizeof(*node));

	node->is_dir = is_dir;
	pthread_mutex_lock(&rec->lock);
	node->id = rec->node_count;
	rec->nodes = rec_grow(rec->nodes, rec->node_count, &rec->node_room, sizeof(void *));
	rec->nodes[rec->node_count++] = node;
	pthread_mutex_unlock(&rec->lock);
	return node;
}

/* Logs a submission; NULL outside the root, which rec_end() takes. */
struct rec_op *rec_begin(struct eng_record *rec, struct rec_node *node, struct rec_op what)
{
	struct rec_op *op;

	if (!node)
		return NULL;
	op = rec_alloc(sizeof(*op));
	*op = what;
	op->complete = REC_NEVER;
	pthread_mutex_lock(&rec->lock);
	op->submit = rec->events++;
	node->ops = rec_grow(node->ops, node->op_count, &node->op_room, sizeof(void *));
	node->ops[node->op_count++] = op;
	pthread_mutex_unlock(&rec->lock);
	return op;
}

struct rec_op *rec_begin_write(struct eng_record *rec, struct rec_node *node, uint64_t offset,
			       const struct iovec *iov, unsigned count, bool dsync)
{
	struct rec_op what = {.kind = REC_WRITE, .dsync = dsync, .offset = offset};
	uint64_t done = 0;
	unsigned i;

	if (!node)
		return NULL;
	for (i = 0; i < count; i++)
		what.len += iov[i].iov_len;
	what.data = rec_alloc(what.len);
	for (i = 0; i < count; done += iov[i++].iov_len)
		if (iov[i].iov_len > 0)
			memcpy(what.data + done, iov[i].iov_base, iov[i].iov_len);
	return rec_begin(rec, node, what);
}

static void rec_add_sync(struct rec_node *node, uint64_t submit, uint64_t complete, bool all)
{
	node->syncs = rec_grow(node->syncs, node->sync_count, &node->sync_room,
			       sizeof(*node->syncs));
	node->syncs[node->sync_count++] = (struct rec_sync){submit, complete, all};
}

void rec_end(struct eng_record *rec, struct rec_node *node, struct rec_op *op, bool ok)
{
	if (!op)
		return;
	pthread_mutex_lock(&rec->lock);
	op->complete = rec->events++;
	op->ok = ok;
	if (ok && op->dsync)
		rec_add_sync(node, op->submit, op->complete, false);
	pthread_mutex_unlock(&rec->lock);
}

/* A flush failed: the kernel may have dropped what it should have written, and forget that. */
static void rec_taint(struct rec_node *node)
{
	uint64_t durable_before = 0;
	struct rec_op *op;
	size_t i;

	for (i = 0; i < node->sync_count; i++)
		if (node->syncs[i].all && node->syncs[i].submit > durable_before)
			durable_before = node->syncs[i].submit;
	for (i = 0; i < node->op_count; i++) {
		op = node->ops[i];
		if (op->complete != REC_NEVER && op->complete >= durable_before && !op->dsync)
			op->tainted = true;
	}
}

/* The end of an fdatasync or sync_dir that was submitted at @submit. */
void rec_end_sync(struct eng_record *rec, struct rec_node *node, uint64_t submit, bool ok)
{
	if (!node)
		return;
	pthread_mutex_lock(&rec->lock);
	if (ok)
		rec_add_sync(node, submit, rec->events, true);
	else
		rec_taint(node);
	rec->events++;
	pthread_mutex_unlock(&rec->lock);
}

/* --- images --- */

static uint8_t *rec_image_page(struct rec_image *image, uint64_t index)
{
	size_t room = image->count;

	if (index >= image->count) {
		while (room <= index)
			room = room ? room * 2 : 16;
		image->pages = reallocarray(image->pages, room, sizeof(void *));
		if (!image->pages)
			abort();
		memset(image->pages + image->count, 0, (room - image->count) * sizeof(void *));
		image->count = room;
	}
	if (!image->pages[index])
		image->pages[index] = rec_alloc(REC_PAGE);
	return image->pages[index];
}

/* Does not change the size: chance may have left it behind. */
void rec_image_write(struct rec_image *image, uint64_t offset, const uint8_t *data, uint64_t len)
{
	uint64_t part;

	for (; len > 0; offset += part, data += part, len -= part) {
		part = REC_PAGE - offset % REC_PAGE;
		if (part > len)
			part = len;
		memcpy(rec_image_page(image, offset / REC_PAGE) + offset % REC_PAGE, data, part);
	}
}

void rec_image_punch(struct rec_image *image, uint64_t offset, uint64_t len)
{
	uint64_t end = offset + len, part;
	uint8_t **page;

	if (end > (uint64_t)image->count * REC_PAGE)
		end = (uint64_t)image->count * REC_PAGE;
	for (; offset < end; offset += part) {
		part = REC_PAGE - offset % REC_PAGE;
		if (part > end - offset)
			part = end - offset;
		page = &image->pages[offset / REC_PAGE];
		if (part == REC_PAGE) {
			free(*page);
			*page = NULL;
		} else if (*page) {
			memset(*page + offset % REC_PAGE, 0, part);
		}
	}
}

void rec_image_truncate(struct rec_image *image, uint64_t size)
{
	if (size < image->size)
		rec_image_punch(image, size, image->size - size);
	image->size = size;
}

void rec_image_copy(struct rec_image *to, const struct rec_image *from)
{
	size_t i;

	rec_image_fini(to);
	for (i = 0; i < from->count; i++)
		if (from->pages[i])
			memcpy(rec_image_page(to, i), from->pages[i], REC_PAGE);
	to->size = from->size;
}

void rec_image_fini(struct rec_image *image)
{
	size_t i;

	for (i = 0; i < image->count; i++)
		free(image->pages[i]);
	free(image->pages);
	*image = (struct rec_image){0};
}

/* --- directories --- */

static struct rec_entry *rec_dir_entry(const struct rec_dir *dir, const char *name)
{
	size_t i;

	for (i = 0; i < dir->count; i++)
		if (strcmp(dir->entries[i].name, name) == 0)
			return &dir->entries[i];
	return NULL;
}

struct rec_node *rec_dir_find(const struct rec_dir *dir, const char *name)
{
	struct rec_entry *entry = rec_dir_entry(dir, name);

	return entry ? entry->node : NULL;
}

void rec_dir_apply(const struct rec_name *name, struct rec_dir *from, struct rec_dir *to)
{
	struct rec_entry *entry = from ? rec_dir_entry(from, name->from) : NULL;

	if (entry)
		*entry = from->entries[--from->count];
	if (!to)
		return;
	entry = rec_dir_entry(to, name->to);
	if (!entry) {
		to->entries = rec_grow(to->entries, to->count, &to->room, sizeof(*to->entries));
		entry = &to->entries[to->count++];
		entry->name = name->to;
	}
	entry->node = name->node;
}
