/* SPDX-License-Identifier: MIT */
/*
 * copy.h - a source's content, without its holes and zeros, to whatever takes bytes at offsets: read in
 * pieces by the threads of an assembly line. The calling thread asks the source for extents, and tells
 * the progress: bytes of the disk, those passed over too; its limit counts what is read.
 */
#ifndef ENGINE_COPY_H
#define ENGINE_COPY_H

#include "engine/image/source.h"
#include "engine/io/progress.h"

/* Takes what is not zeros. 0, or a negative errno with @err. */
typedef int eng_copy_write(void *arg, const void *buf, size_t len, uint64_t offset,
			   struct fmt_error *err);

struct eng_copy {
	struct eng_io *io;
	const struct eng_source *source;
	const char *name;      /* of where it goes, for messages */
	eng_copy_write *write; /* on the line's threads */
	void *arg;
	bool in_order; /* write is called in the disk's order, by one thread at a time */
	struct eng_progress *progress; /* or NULL */
};

/* -ECANCELED, or what a read or a write came to. */
int eng_copy(const struct eng_copy *how, struct fmt_error *err);

/* Calls @write for the parts of @buf, from @offset on the disk, that are not zeros; neighbours together. */
int eng_copy_nonzero(const void *buf, size_t len, uint64_t offset, eng_copy_write *write, void *arg,
		     struct fmt_error *err);

#endif
