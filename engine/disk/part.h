/* SPDX-License-Identifier: MIT */
/*
 * part.h - one ring operation of a request, with its vectors. Taken from and given back to the queue,
 * on the queue's thread.
 */
#ifndef ENGINE_PART_H
#define ENGINE_PART_H

#include <stddef.h>

#include "engine/disk/disk.h"

struct eng_part {
	struct eng_op op;
	struct eng_part *next;
	struct eng_req *req;
	struct iovec *iov;       /* iov_inline or heap */
	void *bounce;            /* aligned stand-in for the caller's buffer */
	struct eng_layer *layer; /* read: whose data it is, when it must be verified */
	struct eng_qcow2 *qcow2; /* read of a qcow2 base: that one */
	uint32_t slot, skip;     /* read: first slot; bytes of the bounce before the data */
	uint64_t from, len;      /* read: bytes of the request it answers */
	struct eng_msg msg;
	struct eng_task task;
	int64_t result;
	struct iovec iov_inline[8];
};

struct eng_part *eng_part_get(struct eng_queue *q);
void eng_part_put(struct eng_queue *q, struct eng_part *part);

/* --- vectors --- */
/* Entries of @iov that cover [skip, skip + len) of it; fills @out when it is not NULL. */
unsigned eng_iov_slice(const struct iovec *iov, unsigned count, uint64_t skip, uint64_t len,
		       struct iovec *out);
void eng_iov_zero(const struct iovec *iov, unsigned count, uint64_t skip, uint64_t len);
void eng_iov_copy_in(const struct iovec *iov, unsigned count, uint64_t skip, const void *src,
		     uint64_t len); /* src -> vector */
void eng_iov_copy_out(const struct iovec *iov, unsigned count, uint64_t skip, void *dst,
		      uint64_t len); /* vector -> dst */
/* Whether [skip, skip + len) of the vector can be given to direct I/O as it is. */
bool eng_iov_aligned(const struct iovec *iov, unsigned count, uint64_t skip, uint64_t len,
		     uint32_t mem_align, uint32_t len_align);

/* Slices the vector into @part: -ENOMEM. */
int eng_part_set_iov(struct eng_part *part, const struct iovec *iov, unsigned count, uint64_t skip,
		     uint64_t len);

#endif
