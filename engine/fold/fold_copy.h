/* SPDX-License-Identifier: MIT */
/*
 * fold_copy.h - copies what adjacent sealed overlays hold to its places in the raw base beneath them
 * (spec/lifecycle.md FO-12): the bytes alone, nothing of headers, catalogs or disks in use. One thread a
 * copy; the overlays are only read, and mask every byte that is written.
 */
#ifndef ENGINE_FOLD_COPY_H
#define ENGINE_FOLD_COPY_H

#include "engine/layer/layer.h"
#include "engine/io/progress.h"

struct eng_fold_copy {
	struct eng_io *io;
	struct eng_file *hold; /* the store's lock (T19), or NULL */
	bool direct;
	struct eng_layer **inputs; /* sealed overlays, lowest first; borrowed */
	uint32_t count;
	const char *path; /* of the raw file */
	uint64_t size; /* bytes: of the topmost input; the file is made as long, if it is shorter */
	bool (*stop)(void *arg); /* asked often; true ends it with -ECANCELED */
	void *arg;
	struct eng_progress *progress; /* or NULL */
};

/*
 * 0: everything is in the file, durably. After a failure any part of it may be; the copy can be begun
 * again. -EBADMSG: a block of an input does not match its checksum, and was not written.
 */
int eng_fold_copy(struct eng_fold_copy *copy, struct fmt_error *err);

#endif
