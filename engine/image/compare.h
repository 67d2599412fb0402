/* SPDX-License-Identifier: MIT */
/* compare.h - whether two disks hold the same (spec/api.md, IM-10 to IM-12). */
#ifndef ENGINE_COMPARE_H
#define ENGINE_COMPARE_H

#include "engine/io/pace.h"
#include "engine/image/source.h"

struct eng_comparison {
	bool same;
	uint64_t first_difference; /* a byte's offset; UINT64_MAX: no byte differs */
};

/*
 * Reads what either side calls data; what both call zeros or holes is passed over. Beyond the shorter
 * one's end the longer one must hold zeros. @pace counts the bytes read, and its total is set. The
 * calling thread asks for extents and calls pace->progress.
 */
int eng_compare(struct eng_io *io, const struct eng_source *a, const struct eng_source *b,
		struct eng_pace *pace, struct fmt_error *err, struct eng_comparison *ret);

#endif
