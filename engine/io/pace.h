/* SPDX-License-Identifier: MIT */
/*
 * pace.h - what the caller of a long copy holds in its hands: progress, cancelling, a rate limit. One
 * thread, the caller's own, which is also the one that @progress is called on.
 */
#ifndef ENGINE_PACE_H
#define ENGINE_PACE_H

#include <stdint.h>

#include "engine/io/io.h"
#include "format/error.h"

typedef int eng_progress(void *arg, uint64_t done, uint64_t total);

struct eng_pace {
	struct eng_io *io;
	const char *path;       /* for messages */
	uint64_t total;         /* bytes */
	uint64_t rate;          /* bytes a second, 0 none */
	eng_progress *progress; /* or NULL; not 0: cancel */
	void *arg;
	uint64_t moved, start_ns; /* bytes that count for the rate; since when (0: not yet) */
};

/* Tells of @done, and waits as the limit wants it. -ECANCELED. */
int eng_pace(struct eng_pace *pace, uint64_t done, struct fmt_error *err);

#endif
