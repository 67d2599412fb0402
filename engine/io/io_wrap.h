/* SPDX-License-Identifier: MIT */
/*
 * io_wrap.h - a ring around another one, for the I/O implementations that wrap another eng_io
 * (io_record.c, io_fault.c): a hook sees every operation before it goes below and after it came
 * back.
 */
#ifndef ENGINE_IO_WRAP_H
#define ENGINE_IO_WRAP_H

#include "engine/io/io.h"

/* First member of a wrapper's open file. */
struct eng_wrap_file {
	struct eng_file *inner;
};

struct eng_wrap_op {
	struct eng_op op;     /* the one below; op.res is the outcome */
	struct eng_op *outer; /* the caller's, untouched until it is done */
	void *ptr;            /* the hooks' own, zero at first */
	uint64_t num;
	struct eng_wrap_ring *ring;
	struct eng_wrap_op *next, *linked;
};

struct eng_wrap_hooks {
	/* May change op->op. A negative errno ends the operation with it; done is called too. */
	int (*start)(void *arg, struct eng_wrap_op *op);
	/* May change op->op.res. */
	void (*done)(void *arg, struct eng_wrap_op *op);
};

int eng_wrap_ring_create(struct eng_io *inner, unsigned entries, struct eng_file *hold,
			 const struct eng_wrap_hooks *hooks, void *arg, struct eng_ring **ret);

static inline struct eng_file *eng_wrap_inner(struct eng_file *file)
{
	return file ? ((struct eng_wrap_file *)file)->inner : NULL;
}

#endif
