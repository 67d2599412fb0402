/* SPDX-License-Identifier: MIT */
/*
 * nbd_buffer.h - memory for payload: aligned for direct I/O, in classes of powers of two, kept for
 * reuse up to a bound and given back when a worker has not needed it for a while (NB-43). One thread.
 */
#ifndef SERVE_NBD_BUFFER_H
#define SERVE_NBD_BUFFER_H

#include <stddef.h>
#include <stdint.h>

#define NBD_BUFFER_ALIGN   4096u
#define NBD_BUFFER_CLASSES 10u         /* 4 KiB .. 2 MiB; larger ones are never kept */
#define NBD_BUFFER_KEEP    (16u << 20) /* bytes */

struct nbd_buffer { /* in the first bytes of a kept one */
	struct nbd_buffer *next;
};

struct nbd_buffers {
	struct {
		struct nbd_buffer *list;
		unsigned kept, spare; /* spare: the least that was kept since the last trim */
	} class[NBD_BUFFER_CLASSES];
	size_t kept_bytes;
};

void *nbd_buffer_get(struct nbd_buffers *buffers, uint32_t len);           /* NULL: no memory */
void nbd_buffer_put(struct nbd_buffers *buffers, void *buf, uint32_t len); /* NULL is fine */
/* Frees what was not needed since the last call. */
void nbd_buffers_trim(struct nbd_buffers *buffers);
void nbd_buffers_fini(struct nbd_buffers *buffers);

#endif
