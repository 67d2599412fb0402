/* SPDX-License-Identifier: MIT */
/* compare.h - whether two disks hold the same (spec/api.md, IM-10 to IM-12). */
#ifndef ENGINE_COMPARE_H
#define ENGINE_COMPARE_H

#include "engine/image/source.h"
#include "engine/io/progress.h"

struct eng_comparison {
	bool same;
	uint64_t first_difference; /* a byte's offset; UINT64_MAX: no byte differs */
};

/*
 * Reads what either side calls data; what both call zeros or holes is passed over. Beyond the shorter
 * one's end the longer one must hold zeros. The limit counts the longer side's bytes that are read. The
 * calling thread asks for extents and tells the progress, whose total is set.
 */
int eng_compare(struct eng_io *io, const struct eng_source *a, const struct eng_source *b,
		struct eng_progress *progress, struct fmt_error *err, struct eng_comparison *ret);

#endif
