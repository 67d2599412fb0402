/* SPDX-License-Identifier: MIT */
/*
 * fsck.h - the checker: a second opinion on a store or an image file (spec/api.md CK-*).
 *
 * It shares the format's definitions with the engine, and nothing else: logs, maps, indexes and chains
 * are walked by code of its own. It changes no layer and no base. Of a store it takes the lock and opens
 * the catalog as the engine does, which moves what a dead process left in SQLite's log into place (CT-8);
 * nothing else is written. Everything read is untrusted. Any thread; a check uses no other.
 */
#ifndef FSCK_FSCK_H
#define FSCK_FSCK_H

#include <stdint.h>

#include "engine/io/io.h"
#include "format/error.h"

enum fsck_severity {
	FSCK_NOTE,    /* worth knowing: what the next open settles, or what cannot be judged */
	FSCK_LEAK,    /* space that nothing uses; no data is at stake */
	FSCK_CORRUPT, /* a rule of the format or of the store is broken */
};

/* Strings live for the call. */
struct fsck_finding {
	const char *rule; /* of spec/, "ML-8" */
	enum fsck_severity severity;
	const char *where; /* the file, "web/root: layers/ID.vmo", or the element, "c@s" */
	const char *message;
	uint64_t leaked_bytes;
};

struct fsck_summary {
	uint64_t layers, disks, snapshots; /* looked at; an image file counts as a layer */
	uint64_t leaks, corruptions, leaked_bytes;
};

/*
 * @path: a store's directory, or an image: vmo, vmr (the header alone), qcow2 (header and tables), raw
 * (nothing to check). Calls @finding for each finding, on this thread. 0: checked, see *@ret. -EBUSY:
 * the store, or the image, is in use. Other errors: something could not be checked, -ENOTSUP when that
 * is for a feature that this version does not know. *@ret is filled whatever is returned, with what was
 * found until then.
 */
int fsck_run(struct eng_io *io, const char *path,
	     void (*finding)(void *arg, const struct fsck_finding *f), void *arg,
	     struct fmt_error *err, struct fsck_summary *ret);

#endif
