/* SPDX-License-Identifier: MIT */
/*
 * nbd_buffer.c - stacks of free buffers, one a class: the one used last is the warmest. Large ones are
 * mapped, so that giving one back gives it back to the system.
 */
#include "serve/nbd/nbd_buffer.h"

#include <stdlib.h>
#include <sys/mman.h>

#define MAPPED_CLASS 4u /* 64 KiB and more */

static unsigned class_of(uint32_t len)
{
	return len <= NBD_BUFFER_ALIGN ? 0 : 20u - (unsigned)__builtin_clz(len - 1);
}

static size_t size_of(unsigned class)
{
	return (size_t)NBD_BUFFER_ALIGN << class;
}

static void *memory_get(unsigned class)
{
	void *p;

	if (class < MAPPED_CLASS)
		return aligned_alloc(NBD_BUFFER_ALIGN, size_of(class));
	p = mmap(NULL, size_of(class), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	return p == MAP_FAILED ? NULL : p;
}

static void memory_put(void *p, unsigned class)
{
	if (class < MAPPED_CLASS)
		free(p);
	else
		munmap(p, size_of(class));
}

void *nbd_buffer_get(struct nbd_buffers *b, uint32_t len)
{
	unsigned c = class_of(len);
	struct nbd_buffer *buf = c < NBD_BUFFER_CLASSES ? b->class[c].list : NULL;

	if (!buf)
		return memory_get(c);
	b->class[c].list = buf->next;
	b->class[c].kept--;
	if (b->class[c].kept < b->class[c].spare)
		b->class[c].spare = b->class[c].kept;
	b->kept_bytes -= size_of(c);
	return buf;
}

void nbd_buffer_put(struct nbd_buffers *b, void *buf, uint32_t len)
{
	struct nbd_buffer *free_buf = buf;
	unsigned c = class_of(len);

	if (!buf)
		return;
	if (c >= NBD_BUFFER_CLASSES || b->kept_bytes + size_of(c) > NBD_BUFFER_KEEP) {
		memory_put(buf, c);
		return;
	}
	free_buf->next = b->class[c].list;
	b->class[c].list = free_buf;
	b->class[c].kept++;
	b->kept_bytes += size_of(c);
}

static void drop(struct nbd_buffers *b, unsigned c, unsigned count)
{
	while (count-- > 0) {
		struct nbd_buffer *buf = b->class[c].list;

		b->class[c].list = buf->next;
		b->class[c].kept--;
		b->kept_bytes -= size_of(c);
		memory_put(buf, c);
	}
}

void nbd_buffers_trim(struct nbd_buffers *b)
{
	for (unsigned c = 0; c < NBD_BUFFER_CLASSES; c++) {
		drop(b, c, b->class[c].spare);
		b->class[c].spare = b->class[c].kept;
	}
}

void nbd_buffers_fini(struct nbd_buffers *b)
{
	for (unsigned c = 0; c < NBD_BUFFER_CLASSES; c++)
		drop(b, c, b->class[c].kept);
}
