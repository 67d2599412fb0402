/* SPDX-License-Identifier: MIT */
/*
 * diff_live.h - what the layers of an attached disk hold that no file tells yet: asked of the disk's
 * worker, a few regions of its map at a time (DF-3).
 */
#ifndef ENGINE_DIFF_LIVE_H
#define ENGINE_DIFF_LIVE_H

#include "engine/diff/blocks.h"
#include "engine/disk/disk.h"

/*
 * Adds the blocks that the layer @lowest and those above it hold. The disk stays attached meanwhile: the
 * caller has its shape lock. Not the worker's thread. -EAGAIN: the layer is not the worker's to tell any
 * more (sealed, or folded), the files do; -ETIMEDOUT: the worker does not turn.
 */
int eng_diff_live(struct eng_disk *disk, const struct fmt_uuid *lowest, struct eng_blocks *set);

#endif
