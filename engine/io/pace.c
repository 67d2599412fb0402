/* SPDX-License-Identifier: MIT */
/*
 * pace.c - progress, cancelling and the rate limit of a long copy. While a limit holds it back, the
 * caller is asked again ten times a second whether to go on.
 */
#include "engine/io/pace.h"

#include <errno.h>
#include <inttypes.h>

#define SLEEP_NS 100000000u /* a cancel is seen this soon */

int eng_pace(struct eng_pace *pace, uint64_t done, struct fmt_error *err)
{
	uint64_t due, now;

	if (!pace->start_ns)
		pace->start_ns = eng_io_now_ns(pace->io);
	for (;;) {
		if (pace->progress && pace->progress(pace->arg, done, pace->total))
			return fmt_fail(err, -ECANCELED,
					"%s: cancelled after %" PRIu64 " of %" PRIu64 " bytes",
					pace->path, done, pace->total);
		due = pace->rate ? (uint64_t)((double)pace->moved * 1e9 / (double)pace->rate) : 0;
		now = eng_io_now_ns(pace->io) - pace->start_ns;
		if (now >= due)
			return 0;
		eng_io_sleep_ns(pace->io, due - now < SLEEP_NS ? due - now : SLEEP_NS);
	}
}
