/* SPDX-License-Identifier: MIT */
/*
 * punch.h - which slots of a sealed overlay nobody can read any more, since the one layer on top of it
 * holds every block in them, and giving those slots back (spec/lifecycle.md PU-*): the files alone, nothing
 * of catalogs or disks in use. One thread.
 */
#ifndef ENGINE_PUNCH_H
#define ENGINE_PUNCH_H

#include "engine/layer/gone.h"
#include "engine/layer/layer.h"

struct eng_punch_list {
	struct fmt_gone *runs; /* that may be gone, those that are among them; sorted; free() */
	uint32_t count;
	uint64_t bytes; /* that punching them gives back */
};

struct eng_punch {
	struct eng_io *io;
	struct eng_layer *lower, *upper; /* sealed overlays; borrowed */
	uint64_t shortest;               /* bytes of a run that is worth it */
	uint32_t most;                   /* runs of the list; the longest are taken */
	_Atomic uint64_t *rate;          /* bytes a second, 0: unlimited; or NULL */
	bool (*stop)(void *arg);         /* asked often; true ends it with -ECANCELED */
	void *arg;
};

/*
 * What of the lower layer @upper masks, in runs of slots. -EUCLEAN: a slot is gone whose block @upper
 * does not hold. Memory: a bit a slot, and the runs.
 */
int eng_punch_find(const struct eng_punch *p, struct fmt_error *err, struct eng_punch_list *ret);
/*
 * Gives back what the lower layer's list names and the file still has; the list is durable, and nobody
 * reads those slots. *@done: bytes, also after a failure.
 */
int eng_punch_do(const struct eng_punch *p, struct fmt_error *err, uint64_t *done);

#endif
